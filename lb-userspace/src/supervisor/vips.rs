//! The VIPs that this node always holds, and says so.

use std::{mem, net::IpAddr};

use tokio::task::JoinSet;

use crate::host::{Announcer, Handle, Interface, Interfaces, NetlinkError, Vip};

/// They stay where they are when this is dropped, as after a crash; [`Vips::release`] gives them back.
pub(super) struct Vips {
    handle: Handle,
    held: Vec<Vip>,
    announcements: JoinSet<()>,
}

impl Vips {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, held: Vec::new(), announcements: JoinSet::new() }
    }

    /// Puts a VIP on its interface and announces it. Several virtual servers may share one.
    pub(super) async fn hold(&mut self, address: IpAddr, interface: &Interface) -> Result<(), NetlinkError> {
        if self.held.iter().any(|vip| vip.address() == address && vip.interface() == interface.name) {
            return Ok(());
        }
        self.held.push(Vip::hold(&self.handle, address, interface).await?);
        self.announce(interface, address);
        Ok(())
    }

    /// Puts back what was taken away meanwhile.
    pub(super) async fn ensure(&mut self, host: &Interfaces) {
        let mut restored = Vec::new();
        for vip in &mut self.held {
            match vip.ensure().await {
                Ok(true) => {
                    log::warn!("VIP {} was taken from {}: put back", vip.address(), vip.interface());
                    restored.extend(host.named(vip.interface()).ok().map(|interface| (interface, vip.address())));
                }
                Ok(false) => {}
                // The interface may be gone for the moment; the next change brings another try.
                Err(error) => log::warn!("VIP {}: {error}", vip.address()),
            }
        }
        for (interface, address) in restored {
            self.announce(interface, address);
        }
    }

    /// Gives back those that do not stay.
    pub(super) async fn retain(&mut self, stays: impl Fn(IpAddr, &str) -> bool) {
        let (held, gone) = mem::take(&mut self.held).into_iter().partition(|vip| stays(vip.address(), vip.interface()));
        self.held = held;
        Self::remove(gone).await;
    }

    pub(super) async fn release(&mut self) {
        self.announcements.shutdown().await;
        Self::remove(mem::take(&mut self.held)).await;
    }

    async fn remove(vips: Vec<Vip>) {
        for vip in vips {
            let address = vip.address();
            if let Err(error) = vip.release().await {
                log::error!("removing VIP {address}: {error}");
            }
        }
    }

    /// Tells the segment that the VIP is here now.
    fn announce(&mut self, interface: &Interface, vip: IpAddr) {
        match Announcer::new(interface, vip) {
            Ok(Some(announcer)) => {
                self.announcements.spawn(async move { announcer.burst().await });
            }
            Ok(None) => {}
            Err(error) => log::warn!("announcing VIP {vip} on {}: {error}", interface.name),
        }
    }
}
