//! FRR's vrrpd, with the zebra that it cannot do without. A virtual router lives on a macvlan device with the virtual MAC
//! address, which is made here: vrrpd only takes its carrier away while it is backup.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use nix::{
    sys::signal::Signal,
    unistd::{Group, User},
};

use super::{PATIENCE, directory, write};
use crate::{
    lab::{Host, Process},
    wait,
};

/// Where Debian's package has the daemons.
const DAEMONS: &str = "/usr/lib/frr";
/// As whom they run: they refuse to be root.
const USER: &str = "frr";

/// One virtual router of version 3 on `eth0`.
#[derive(Clone, Debug)]
pub struct Virtual {
    pub vrid: u8,
    pub priority: u8,
    pub interval: Duration,
    pub address: IpNet,
}

/// A running vrrpd. It is killed with this.
#[derive(Debug)]
pub struct Vrrpd {
    // Ends before zebra does.
    vrrpd: Arc<Process>,
    zebra: Arc<Process>,
    host: Host,
    directory: PathBuf,
    device: String,
    family: &'static str,
}

impl Vrrpd {
    pub fn start(host: &Host, settings: &Virtual) -> Result<Self> {
        let Virtual { vrid, priority, interval, address } = settings;
        let (family, keyword, kind) = if address.addr().is_ipv4() { ("v4", "ip", 1) } else { ("v6", "ipv6", 2) };
        let device = format!("vrrp{}-{vrid}", &family[1..]);
        for line in [
            format!("link add {device} link eth0 type macvlan mode bridge"),
            format!("link set {device} address 00:00:5e:00:0{kind}:{vrid:02x}"),
            format!("addr add {address} dev {device}{}", if address.addr().is_ipv6() { " nodad" } else { "" }),
            format!("link set {device} up"),
        ] {
            host.ip(&line)?;
        }
        let directory = directory(host, "frr")?;
        let (user, group) = account()?;
        chown(&directory, Some(user), Some(group))?;
        let vrrp = format!(
            "debug vrrp\ninterface eth0\n vrrp {vrid} version 3\n vrrp {vrid} priority {priority}\n vrrp {vrid} advertisement-interval {}\n vrrp {vrid} {keyword} {}\n",
            interval.as_millis(),
            address.addr(),
        );
        let zebra = daemon(host, &directory, "zebra", "")?;
        let socket = directory.join("zserv.api");
        wait::until("zebra's socket", PATIENCE, || socket.exists().then_some(()))?;
        let vrrpd = daemon(host, &directory, "vrrpd", &vrrp)?;
        let started = Self { vrrpd, zebra, host: host.clone(), directory, device, family };
        wait::until("FRR's virtual router to begin", PATIENCE, || {
            started.view().ok().filter(|view| view["status"] != "Initialize")
        })
        .with_context(|| started.log())?;
        Ok(started)
    }

    /// `Master` or `Backup`, as it says of itself.
    pub fn status(&self) -> Result<String> {
        Ok(self.view()?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Advertisements that it has accepted.
    pub fn received(&self) -> Result<u64> {
        self.view()?["stats"]["adverRx"].as_u64().context("vrrpd counts what it receives")
    }

    pub fn log(&self) -> String {
        self.vrrpd.stdout() + &self.vrrpd.stderr()
    }

    pub fn process(&self) -> &Process {
        &self.vrrpd
    }

    /// Ends it in order.
    pub fn stop(self) -> Result<()> {
        self.vrrpd.signal(Signal::SIGTERM)?;
        self.vrrpd.wait(PATIENCE)?;
        Ok(())
    }

    /// What `show vrrp` knows of the one virtual router.
    fn view(&self) -> Result<serde_json::Value> {
        let directory = self.directory.to_string_lossy();
        let text = self.host.exec(&["vtysh", "--vty_socket", &directory, "-d", "vrrpd", "-c", "show vrrp json"])?;
        let all: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))?;
        Ok(all[0][self.family].clone())
    }
}

impl Drop for Vrrpd {
    fn drop(&mut self) {
        self.vrrpd.kill();
        self.zebra.kill();
        // It may be gone with the host already.
        let _ = self.host.ip(&format!("link del {}", self.device));
    }
}

fn daemon(host: &Host, directory: &Path, name: &str, configuration: &str) -> Result<Arc<Process>> {
    let file = |ending: &str| directory.join(format!("{name}.{ending}"));
    write(&file("conf"), &format!("hostname {}\n{configuration}", host.name()))?;
    let mut command = Command::new(Path::new(DAEMONS).join(name));
    command.args(["-u", USER, "-g", USER, "-P", "0", "--log", "stdout", "--log-level", "debug"]);
    command.arg("-f").arg(file("conf")).arg("-i").arg(file("pid"));
    command.arg("-z").arg(directory.join("zserv.api")).arg("--vty_socket").arg(directory);
    Ok(host.spawn(command)?)
}

fn account() -> Result<(u32, u32)> {
    let user = User::from_name(USER)?.with_context(|| format!("no user {USER}: is the package frr installed?"))?;
    let group = Group::from_name(USER)?.with_context(|| format!("no group {USER}"))?;
    Ok((user.uid.as_raw(), group.gid.as_raw()))
}
