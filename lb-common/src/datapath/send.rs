//! Rewriting a packet as its entry says, and the verdict that sends it.

use super::{Arrival, Stop, Tables, Verdict, Way, direct, inherited};
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
    if flow.role.is_direct() {
        return direct::along::<A, _, _>(
            frame,
            tables,
            arrival.segment.network,
            arrival.from.interface,
            &flow.hop,
            way,
        );
    }
    let header = frame.get_mut::<A::Header>(arrival.segment.network)?;
    A::rewrite(header, flow.new_source(), flow.new_destination(), flow.header_delta);
    let tcp = frame.get_mut::<Tcp>(arrival.segment.transport)?;
    tcp.source = flow.new_source_port();
    tcp.destination = flow.new_destination_port();
    tcp.checksum = checksum::adjust(tcp.checksum, flow.segment_delta);

    if flow.role.is_local() {
        return Ok(inherited::up(flow.role));
    }
    leave(frame, tables, arrival.from.interface, &flow.hop, way)
}

/// Sends a packet that was rewritten to its next hop.
#[inline(always)]
pub(super) fn leave<F, T>(frame: &mut F, tables: &T, arrived: u32, hop: &Hop, way: Way) -> Result<Verdict, Stop>
where
    F: Frame + ?Sized,
    T: Tables,
{
    if let Way::Kernel(interface) = way {
        tables.count(Counter::Unresolved);
        return Ok(Verdict::Kernel(interface));
    }
    // Read whole before the packet is written: six bytes from one place in memory to another are moved by a loop, since the two
    // might overlap, and that costs a sixth of the whole way.
    let (destination, source) = (words(&hop.destination), words(&hop.source));
    let ethernet = frame.get_mut::<Ethernet>(0)?;
    ethernet.destination = bytes(destination);
    ethernet.source = bytes(source);
    Ok(if hop.interface == arrived { Verdict::Transmit } else { Verdict::Redirect(hop.interface) })
}

/// A MAC address in registers.
#[inline(always)]
pub(super) fn words(address: &[u8; 6]) -> (u32, u16) {
    let [a, b, c, d, e, f] = *address;
    (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]))
}

#[inline(always)]
fn bytes((first, last): (u32, u16)) -> [u8; 6] {
    let ([a, b, c, d], [e, f]) = (first.to_ne_bytes(), last.to_ne_bytes());
    [a, b, c, d, e, f]
}
