//! The programs on their interfaces and on the cgroup.

use std::{fs::File, path::PathBuf};

use anyhow::Context as _;

use super::{
    Node,
    placement::{LOOPBACK, carried},
};
use crate::{
    config::model::{Cgroup, Config, XdpMode},
    dataplane::Mode,
    host::{Forwarding, cgroup, forwarding::Families},
};

impl Node {
    pub(super) fn attach(&mut self) -> anyhow::Result<()> {
        self.program = Some(self.dataplane.ingress_id()?);
        for name in &self.config.dataplane.interfaces {
            let interface = self.host.named(name)?;
            let mode = self.dataplane.attach(name, interface.index, wanted(&self.config), interface.xdp)?;
            self.attached.insert(name.clone(), mode);
        }
        Ok(())
    }

    /// Puts the programs on interfaces that were deleted and made again.
    pub(super) fn attach_returned(&mut self) -> anyhow::Result<()> {
        self.dataplane.forget(|index| self.host.has(index))?;
        for name in &self.config.dataplane.interfaces {
            let Ok(interface) = self.host.named(name) else { continue };
            if self.dataplane.is_attached(interface.index) {
                continue;
            }
            let forwarding = Forwarding::enable(carried(&self.config, &self.host), families(&self.config));
            let attached = self.dataplane.attach(name, interface.index, wanted(&self.config), interface.xdp);
            match (attached, forwarding) {
                (Ok(mode), Ok(forwarding)) => {
                    log::warn!("interface {name} has gone and returned: attached again");
                    self.forwarding.push(forwarding);
                    self.attached.insert(name.clone(), mode);
                }
                // The next change brings another try.
                (Err(error), _) => log::warn!("{error}"),
                (_, Err(error)) => log::warn!("{error}"),
            }
        }
        Ok(())
    }

    /// Where nodes tell each other of connections, the data plane asks for the way of packets that begin on this host, too. Whether it will hear:
    /// otherwise connections that another node has carried to a backend here are cut as this node takes over.
    pub(super) fn forward_on_loopback(&mut self, config: &Config) -> bool {
        if config.sync.is_none() || config.dataplane.interfaces.is_empty() {
            return false;
        }
        match Forwarding::enable([LOOPBACK], families(config)) {
            Ok(forwarding) => {
                self.forwarding.push(forwarding);
                true
            }
            Err(error) => {
                log::warn!("connections to a backend on this host are cut when it takes over: {error}");
                false
            }
        }
    }

    /// Puts the hooks on the cgroup, so that this node's own processes need no VIP.
    pub(super) fn attach_hooks(&mut self) -> anyhow::Result<()> {
        if let Some((path, cgroup)) = hooked(&self.config)? {
            self.dataplane.attach_hooks(&cgroup).with_context(|| format!("cgroup {}", path.display()))?;
            log::info!("connections of processes in cgroup {} go straight to backends", path.display());
        }
        Ok(())
    }
}

/// Where the XDP program is to be put.
const fn wanted(config: &Config) -> Option<Mode> {
    match config.dataplane.mode {
        XdpMode::Auto => None,
        XdpMode::Native => Some(Mode::Native),
        XdpMode::Generic => Some(Mode::Generic),
    }
}

pub(super) fn families(config: &Config) -> Families {
    Families {
        ipv4: config.virtual_servers.iter().any(|server| server.address.is_ipv4()),
        ipv6: config.virtual_servers.iter().any(|server| server.address.is_ipv6()),
    }
}

/// The cgroup whose processes need no VIP. Where others ask for the virtual servers too, it may be out of sight.
pub(crate) fn hooked(config: &Config) -> anyhow::Result<Option<(PathBuf, File)>> {
    let needed = config.virtual_servers.iter().any(|server| server.address.is_loopback());
    Ok(match &config.dataplane.cgroup {
        Cgroup::Off => None,
        Cgroup::At(path) => Some((path.clone(), cgroup::open(path)?)),
        Cgroup::Auto => match cgroup::root() {
            Err(error) if !needed => {
                log::warn!("this node's own processes go through the VIP: {error}");
                None
            }
            found => Some(found?),
        },
    })
}
