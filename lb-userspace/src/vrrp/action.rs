//! What a router says: where its instances stand, and what is to be done for them.

use std::net::IpAddr;

use super::Moment;

/// Where a virtual router stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// May not be master: the interface is down or has no address, a condition or another member of the group forbids it.
    Fault,
    Backup,
    Master,
    /// After shutdown, for ever.
    Stopped,
}

/// What the driver does, in this order and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send one advertisement. With `lease`: send it, and then let the kernel claim the VIPs until that moment. Without:
    /// first end the claim in the kernel, and then send.
    Advertise { priority: u8, lease: Option<Moment> },
    /// Put the VIPs on the interface.
    Hold,
    /// Tell the neighbours of every VIP, once.
    Announce,
    /// End the claim in the kernel and take the VIPs off the interface.
    Yield,
    /// For those who watch.
    Became(State),
}

/// What is told of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub state: State,
    pub since: Moment,
    /// The effective one; 0 in a state that takes no part.
    pub priority: u8,
    /// Who is known to be master, and with what priority.
    pub master: Option<(IpAddr, u8)>,
    /// Until when this node claims the VIPs unless it advertises again.
    pub lease: Option<Moment>,
    /// Handed over on purpose: it does not preempt its successor.
    pub released: bool,
    /// Changes of state, the first one after the start included.
    pub transitions: u64,
}
