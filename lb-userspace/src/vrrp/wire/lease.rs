//! How the thread tells the data plane until when this node may claim a VIP.

use std::{error::Error, net::IpAddr};

use super::{
    journal::{Journal, Seldom},
    running::Running,
};
use crate::vrrp::Moment;

/// What a VIP is claimed by. A lease ends by itself, whatever becomes of this process.
///
/// Called between two adverts: it must not wait for anything.
pub trait Lease: Send {
    /// After an advert left: the VIP may be claimed until then.
    fn renew(&self, vip: IpAddr, until: Moment) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Before an advert that gives up, and before the VIP is taken off.
    fn revoke(&self, vip: IpAddr) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The lease of every VIP, if the data plane knows leases.
pub(super) struct Leases {
    lease: Option<Box<dyn Lease>>,
    failures: Seldom,
}

impl Leases {
    pub(super) fn new(lease: Option<Box<dyn Lease>>) -> Self {
        Self { lease, failures: Seldom::default() }
    }

    /// Whether the data plane took all of them.
    pub(super) fn renew(&mut self, running: &Running, until: Moment, journal: &mut Journal) -> bool {
        self.each(running, "renewing", journal, |lease, vip| lease.renew(vip, until))
    }

    /// The same.
    pub(super) fn revoke(&mut self, running: &Running, journal: &mut Journal) -> bool {
        self.each(running, "ending", journal, |lease, vip| lease.revoke(vip))
    }

    fn each(
        &mut self,
        running: &Running,
        verb: &str,
        journal: &mut Journal,
        call: impl Fn(&dyn Lease, IpAddr) -> Result<(), Box<dyn Error + Send + Sync>>,
    ) -> bool {
        let Some(lease) = &self.lease else { return true };
        let mut taken = true;
        for vip in running.vips() {
            if let Err(e) = call(lease.as_ref(), vip) {
                taken = false;
                journal.seldom(&mut self.failures, || format!("{verb} the lease of {vip}: {e}"));
            }
        }
        taken
    }
}
