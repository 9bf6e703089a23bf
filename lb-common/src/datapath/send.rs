//! Rewriting a packet as its entry says, and the verdict that sends it.

use super::{Arrival, Stop, Tables, Verdict, Way};
use crate::{
    abi::Counter,
    address::Address,
    checksum,
    flow::Flow,
    frame::{Frame, Truncated},
    wire::{Ethernet, Tcp},
};

impl From<Truncated> for Stop {
    fn from(Truncated: Truncated) -> Self {
        Self::drop(Counter::Malformed)
    }
}

/// Rewrites the packet and sends it on.
#[inline(always)]
pub(super) fn out<A, F, T>(
    frame: &mut F,
    tables: &T,
    arrival: &Arrival<A>,
    flow: &Flow<A>,
    way: Way,
) -> Result<Verdict, Stop>
where
    A: Address,
    F: Frame + ?Sized,
    T: Tables,
{
    if arrival.segment.hops <= 1 {
        return Err(Stop::drop(Counter::Expired));
    }
    let header = frame.get_mut::<A::Header>(arrival.segment.network)?;
    A::rewrite(header, flow.new_source(), flow.new_destination(), flow.header_delta);
    let tcp = frame.get_mut::<Tcp>(arrival.segment.transport)?;
    tcp.source = flow.new_source_port();
    tcp.destination = flow.new_destination_port();
    tcp.checksum = checksum::adjust(tcp.checksum, flow.segment_delta);

    if flow.role.is_local() {
        return Ok(Verdict::Pass);
    }
    if let Way::Kernel(interface) = way {
        tables.count(Counter::Unresolved);
        return Ok(Verdict::Kernel(interface));
    }
    let hop = &flow.hop;
    let ethernet = frame.get_mut::<Ethernet>(0)?;
    ethernet.destination = hop.destination;
    ethernet.source = hop.source;
    let here = hop.interface == arrival.from.interface;
    Ok(if here { Verdict::Transmit } else { Verdict::Redirect(hop.interface) })
}
