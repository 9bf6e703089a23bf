//! What others see of the thread: the state of every instance, whenever it changes and at least every second.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::sync::watch;

use super::running::Conflict;
use crate::vrrp::{
    Moment, View, Vrid,
    reception::{Counters, Report},
};

/// Counters may be this old.
const PERIOD: Duration = Duration::from_secs(1);

/// One instance at one moment.
#[derive(Clone, Debug)]
pub struct InstanceView {
    pub name: String,
    pub interface: String,
    pub vrid: Vrid,
    pub addresses: Vec<IpNet>,
    pub router: View,
    /// Whether the data plane takes leases; a fault if not.
    pub fenced: bool,
    /// Adverts that left, one for each peer.
    pub sent: u64,
    pub counters: Counters,
    pub reports: Vec<Report>,
    /// Others who have claimed a VIP while it was here.
    pub conflicts: Vec<Conflict>,
}

/// Publishes on a `watch` what has changed.
pub(super) struct Publisher {
    views: watch::Sender<Arc<Vec<InstanceView>>>,
    last: Moment,
    changed: bool,
    urgent: bool,
}

impl Publisher {
    pub(super) fn new() -> (Self, watch::Receiver<Arc<Vec<InstanceView>>>) {
        let (views, receiver) = watch::channel(Arc::default());
        (Self { views, last: Moment::default(), changed: true, urgent: true }, receiver)
    }

    /// Something small has changed.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// Somebody waits for what has changed.
    pub(super) fn hurry(&mut self) {
        (self.changed, self.urgent) = (true, true);
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.changed.then(|| self.last + PERIOD)
    }

    pub(super) fn publish(&mut self, now: Moment, views: impl FnOnce() -> Vec<InstanceView>) {
        if self.urgent || self.changed && now - self.last >= PERIOD {
            (self.last, self.changed, self.urgent) = (now, false, false);
            self.views.send_replace(Arc::new(views()));
        }
    }
}
