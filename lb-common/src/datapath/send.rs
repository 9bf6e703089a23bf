//! Rewriting a packet as its entry says, and the verdict that sends it.

use super::{Arrival, Route, Stop, Tables, Verdict};
use crate::{
    abi::Counter,
    address::Address,
    checksum,
    flow::{Flow, Hop},
    frame::{Frame, Truncated},
    wire::{Ethernet, Tcp},
};

impl From<Truncated> for Stop {
    fn from(Truncated: Truncated) -> Self {
        Self::drop(Counter::Malformed)
    }
}

/// Rewrites the packet and sends it by `route`.
#[inline(always)]
pub(super) fn out<A, F, T>(
    frame: &mut F,
    tables: &T,
    arrival: &Arrival<'_, A>,
    flow: &Flow<A>,
    route: Route,
) -> Result<Verdict, Stop>
where
    A: Address,
    F: Frame + ?Sized,
    T: Tables,
{
    if arrival.segment.hops <= 1 {
        return Err(Stop::drop(Counter::Expired));
    }
    if route == Route::None {
        return Err(Stop::drop(Counter::NoRoute));
    }
    let header = frame.get_mut::<A::Header>(arrival.segment.network)?;
    A::rewrite(header, flow.new_source(), flow.new_destination(), flow.header_delta);
    let tcp = frame.get_mut::<Tcp>(arrival.segment.transport)?;
    tcp.source = flow.new_source_port();
    tcp.destination = flow.new_destination_port();
    tcp.checksum = checksum::adjust(tcp.checksum, flow.segment_delta);

    let hop = match route {
        _ if flow.role.is_local() => return Ok(Verdict::Pass),
        Route::Hop(hop) if hop.tags == arrival.from.tags => hop,
        // Tags are never added or taken off here: the kernel does it where they differ.
        Route::Hop(Hop { interface, .. }) | Route::Kernel(interface) => {
            tables.count(Counter::Unresolved);
            return Ok(Verdict::Kernel(interface));
        }
        Route::None => return Err(Stop::drop(Counter::NoRoute)),
    };
    let ethernet = frame.get_mut::<Ethernet>(0)?;
    ethernet.destination = hop.destination;
    ethernet.source = hop.source;
    Ok(if hop.interface == arrival.from.interface { Verdict::Transmit } else { Verdict::Redirect(hop.interface) })
}
