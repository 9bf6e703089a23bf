//! The fence: a node whose daemon is gone, stopped or deposed must not claim a VIP against its successor. Its lease says how long it
//! may answer who asks for the VIP's MAC address, and how much longer it carries what is sent to it all the same.

use network_types::ip::{IpProto, Ipv6Hdr};

use super::{Arrival, Family, Stop, Tables, Verdict};
use crate::{
    abi::{Counter, Settings},
    address::{Address, V4, V6},
    flow::Key,
    frame::Frame,
    wire::{Arp, Solicitation},
};

/// A request for an IPv4 address on Ethernet.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const NEIGHBOUR_SOLICITATION: u8 = 135;

/// Withholds ARP requests for a VIP whose lease is over from the host, which would answer. Announcements, where the sender is the target,
/// ask for nothing: they tell the host who holds the VIP now.
#[inline(always)]
pub(super) fn arp<F, T>(frame: &F, tables: &T, settings: &Settings, at: usize) -> Verdict
where
    F: Frame + ?Sized,
    T: Tables,
{
    match frame.get::<Arp>(at) {
        Ok(arp) if arp.kind == REQUEST && arp.sender != arp.target => solicited(tables, settings, V4(arp.target)),
        _ => Verdict::Pass,
    }
}

/// The same for neighbour solicitations, which are ICMPv6 and go to a group or to the VIP itself: what the data path has no other use for
/// comes here. One behind extension headers, which no host sends, is not seen.
#[inline(always)]
pub(super) fn other<A, F, T>(frame: &F, tables: &T, settings: &Settings, at: usize) -> Verdict
where
    A: Address,
    F: Frame + ?Sized,
    T: Tables,
{
    if size_of::<A>() != size_of::<V6>() {
        return Verdict::Pass;
    }
    match frame.get::<Ipv6Hdr>(at) {
        Ok(header) if header.next_hdr == IpProto::Ipv6Icmp as u8 => {}
        _ => return Verdict::Pass,
    }
    match frame.get::<Solicitation>(at + Ipv6Hdr::LEN) {
        Ok(asked) if asked.kind == NEIGHBOUR_SOLICITATION => solicited(tables, settings, V6(asked.target)),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn solicited<A: Address, T: Tables>(tables: &T, settings: &Settings, target: A) -> Verdict {
    if !settings.vips.may_hold(target) {
        return Verdict::Pass;
    }
    match tables.lease(&target.mapped()) {
        Some(lease) if tables.uptime() > lease.claimed_until() => {
            tables.count(Counter::Fenced);
            Verdict::Drop
        }
        _ => Verdict::Pass,
    }
}

/// Whether this node still carries the VIP. As long as the daemon renews any lease, one comparison answers.
#[inline(always)]
pub(super) fn carries<A: Address, T: Family<A>>(tables: &T, arrival: &Arrival<A>) -> Result<(), Stop> {
    if tables.fence().is_behind(arrival.now) && tables.overdue(&arrival.segment.key) {
        return Err(Stop::drop(Counter::Overdue));
    }
    Ok(())
}

/// Whether the lease of the VIP that packets of `key` go to ended longer ago than this node goes on carrying it.
#[inline(always)]
pub fn overdue<A: Address, T: Tables + ?Sized>(tables: &T, key: &Key<A>) -> bool {
    // Before Linux 6.2, a map is asked for what is on the stack, in a map or in a packet only.
    let vip = core::hint::black_box(V6(key.destination.mapped()).copied());
    tables.lease(&vip.0).is_some_and(|lease| tables.uptime() > lease.carried_until())
}
