//! Direct server return: the VIP's holder sends a client's packets on as they are, by MAC address only, and the backend's own node turns
//! them for its backend and the replies into the VIP's. So the backend sees its client, and replies go there without a detour.
//!
//! ```text
//!   client -- client -> VIP --> holder -- the same --> backend's node: client -> backend, up the stack
//!     ^                                                    |  its replies become the VIP's on their way out
//!     +---------------------- VIP -> client ---------------+
//! ```
//! No packet goes round in circles: what another backend's node has sent on is for the backend here, and is not sent on again; nothing is
//! sent to where it came from; and each time takes a hop off.

use super::{Stop, Tables, Verdict, Way, send};
use crate::{
    abi::{BackendId, Counter, Holds, ServiceKey, Turned},
    address::Address,
    flow::{Hop, Key},
    frame::Frame,
    wire::Ethernet,
};

/// The backend on this host that a new connection with this key is for because another node has chosen it; none if this node is
/// to choose.
#[inline(always)]
pub fn turned<A: Address, T: Tables + ?Sized>(tables: &T, key: &Key<A>, sender: [u8; 6]) -> BackendId {
    let asked = ServiceKey::new(key.destination.mapped(), key.destination_port);
    let own = tables.settings().filter(|settings| settings.turns()).and_then(|_| tables.service(&asked.turned()));
    let Some(own) = own.map(Turned::of) else {
        return BackendId::NONE;
    };
    let chooses = match own.holds() {
        Holds::Never => false,
        Holds::Always => true,
        Holds::Leased => tables.lease(&asked.address()).is_some_and(|lease| tables.uptime() <= lease.carried_until()),
    };
    // Two nodes may hold a VIP for a moment.
    if chooses && tables.service(&ServiceKey::forwarder(sender)).is_none() { BackendId::NONE } else { own.backend() }
}

/// Sends a packet on to a backend's node as it is, with a hop less.
#[inline(always)]
pub(super) fn along<A, F, T>(
    frame: &mut F,
    tables: &T,
    network: usize,
    arrived: u32,
    hop: &Hop,
    way: Way,
) -> Result<Verdict, Stop>
where
    A: Address,
    F: Frame + ?Sized,
    T: Tables,
{
    if let Way::Kernel(interface) = way {
        A::take_hop(frame.get_mut::<A::Header>(network)?);
        tables.count(Counter::Unresolved);
        return Ok(Verdict::Neighbour(interface));
    }
    if send::words(&frame.get::<Ethernet>(0)?.source) == send::words(&hop.destination) {
        return Err(Stop::drop(Counter::Circling));
    }
    A::take_hop(frame.get_mut::<A::Header>(network)?);
    send::leave(frame, tables, arrived, hop, way)
}
