//! What the sender of a segment hears that has no hop left here: time exceeded (RFC 792 type 11, RFC 4443 §3.3), so that `traceroute -T` sees
//! the way to a VIP. The kernel says so of what it routes; but a VIP is an address of this host, and to it such a segment has arrived.
//!
//! ```text
//!   Ethernet, tags |            IP header | TCP ...          as it came, cut to what may be quoted
//!   Ethernet, tags | IP header | ICMP | IP header | TCP ...  as it goes back: from the VIP, nothing of the quotation changed
//! ```
//! A backend whose reply has no hop left is told the same: it too has sent to the VIP. An ICMP error that has none is dropped (RFC 1122 §3.2.2).

use super::{Arrival, Family, Stop, Verdict, connect, fence};
use crate::{
    abi::{BackendId, Counter, Port, ServiceKey, Settings},
    address::{Address, V4, V6},
    checksum::{fold, sum, sum_pairs},
    frame::{Frame, Truncated},
    shared::opaque,
    wire::{self, Bytes, Ethernet, Icmp, Link, Vlan},
};

/// How a segment becomes the error about it: cut to `kept` bytes, then with `front` more before its first, then [`time_exceeded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub kept: usize,
    pub front: usize,
    /// Where its network header starts.
    network: usize,
}

/// Decides about a segment to a VIP that has no hop left, which [`super::ingress`] has left to this. `Err` is what becomes of one whose sender is
/// not told.
#[inline(always)]
pub fn expired<F, T>(frame: &F, tables: &T, interface: u32, now: u64) -> Result<Room, Verdict>
where
    F: Frame + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let (Some(settings), Ok(link)) = (tables.settings(), wire::link(frame)) else {
        return Err(Verdict::Pass);
    };
    match link.ether_type {
        wire::IPV4 => room::<V4, _, _>(frame, tables, settings, link, interface, now),
        wire::IPV6 => room::<V6, _, _>(frame, tables, settings, link, interface, now),
        _ => Err(Verdict::Pass),
    }
}

#[inline(always)]
fn room<A, F, T>(
    frame: &F,
    tables: &T,
    settings: &Settings,
    link: Link,
    interface: u32,
    now: u64,
) -> Result<Room, Verdict>
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    let Ok(mut segment) = wire::segment::<A, F>(frame, link.at) else {
        return Err(Verdict::Pass);
    };
    let mut from = Port { interface, tags: link.tags };
    segment.forget_ways(&mut from.tags, now);
    let network = segment.network;
    let arrival = Arrival { generation: settings.generation(), segment, from, now, bytes: frame.len() };
    let (Ok(ethernet), Ok(header)) = (frame.get::<Ethernet>(0), frame.get::<A::Header>(network)) else {
        return Err(Verdict::Pass);
    };
    if let Err(stop) = would_be_sent(tables, &arrival, ethernet.source) {
        tables.count(stop.counter);
        return Err(stop.verdict());
    }
    tables.count(Counter::Expired);
    // RFC 1122 §3.2.2 and RFC 4443 §2.4 (e): not about what came to a group, nor to who is not one host. (f): not too often.
    let may_hear = ethernet.destination[0] & 1 == 0 && A::source(header).is_single();
    if !may_hear || !tables.allowance().is_some_and(|allowance| allowance.take(now as u32)) {
        return Err(Verdict::Drop);
    }
    let length = A::total(header);
    let quoted = if length < A::LONGEST_ERROR - front::<A>() { length } else { A::LONGEST_ERROR - front::<A>() };
    Ok(Room { kept: network + quoted, front: front::<A>(), network })
}

/// Whether the segment would have been sent on, had it had more hops; what becomes of it otherwise.
#[inline(always)]
fn would_be_sent<A, T>(tables: &T, arrival: &Arrival<A>, sender: [u8; 6]) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    let key = &arrival.segment.key;
    let mut asked = ServiceKey::new(key.destination.mapped(), key.destination_port);
    let service = tables.service(&asked);
    let is_turned = match tables.flow(key) {
        Some(known) => known.role.is_turned(),
        None if service.is_none() => return Err(connect::stranger(tables, arrival, &mut asked)),
        None => tables.turned(key, sender) != BackendId::NONE,
    };
    if !is_turned {
        fence::carries(tables, arrival)?;
    }
    if service.is_some_and(|service| tables.denies(service, &key.source.mapped())) {
        return Err(Stop::drop(Counter::Denied));
    }
    Ok(())
}

/// What stands between the link's header and what is quoted.
const fn front<A: Address>() -> usize {
    size_of::<A::Header>() + Icmp::LEN
}

/// Makes a segment with that room in front the error about it.
#[inline(always)]
pub fn time_exceeded<F: Frame + ?Sized>(frame: &mut F, room: &Room, now: u64) -> Verdict {
    // Zero in all of its bits, of which the verifier knows none (see `Segment::forget_ways`).
    let zero = (now >> 48).wrapping_mul(0x0001_0001_0001_0001);
    let made =
        if room.front == front::<V4>() { make::<V4, _>(frame, room, zero) } else { make::<V6, _>(frame, room, zero) };
    made.map_or(Verdict::Drop, |()| Verdict::Answer(room.front + room.kept))
}

#[inline(always)]
fn make<A: Address, F: Frame + ?Sized>(frame: &mut F, room: &Room, zero: u64) -> Result<(), Truncated> {
    let (front, network) = (front::<A>(), room.network);
    // Where the driver could not cut it, more than is quoted would be summed up.
    if frame.len() != front + room.kept {
        return Err(Truncated);
    }
    let Ethernet { destination, source, ether_type } = *frame.get(front)?;
    *frame.get_mut(0)? = Ethernet { destination: source, source: destination, ether_type };
    for at in [Ethernet::LEN, Ethernet::LEN + size_of::<Vlan>()] {
        if at < network {
            let tag: Vlan = *frame.get(front + at)?;
            *frame.get_mut(at)? = tag;
        }
    }
    // From here on the verifier is to go one way, whichever led here.
    let network = network.wrapping_add(zero as usize) & 0x3f;
    let kept = room.kept.wrapping_add(zero as usize) & 0x7ff;
    frame.forget();
    let quoted = network + front;
    let about = frame.get::<A::Header>(quoted)?;
    let (to, from) = (A::source(about), A::destination(about));
    let rest = rest(frame, quoted, zero);
    let length = kept.wrapping_sub(network).wrapping_add(Icmp::LEN) as u16;
    // What was found further behind says that there is room for this, but the verifier does not see that.
    frame.forget();
    let header = frame.get_mut::<A::Header>(network)?;
    A::begin_error(header, &from, &to, length);
    let covered = if A::ICMP_COVERS_ADDRESSES { A::pseudo_sum(header, A::ICMP, length) } else { 0 };
    let message = frame.get_mut::<Icmp>(network + size_of::<A::Header>())?;
    let checksum = !fold(covered + sum(&[A::TIME_EXCEEDED, 0]) + u32::from(rest));
    *message = Icmp { kind: A::TIME_EXCEEDED, code: 0, checksum: checksum.to_ne_bytes(), rest: [0; 4] };
    Ok(())
}

/// The sum of a frame's bytes from a place on, of no more than are quoted.
#[inline(always)]
fn rest<F: Frame + ?Sized>(frame: &F, from: usize, zero: u64) -> u16 {
    // One number to the compiler, or it looks at one pointer's distance from the end and reads by another.
    let (mut at, mut total) = (opaque(from as u64) as usize, 0);
    for _ in 0..V6::LONGEST_ERROR / 4 {
        let Ok(bytes) = frame.get::<Bytes<4>>(at) else { break };
        total += u64::from(u32::from_ne_bytes(bytes.0));
        at += 4;
    }
    // Neither is it to go on from each turn of the loop.
    let mut at = at.wrapping_add(zero as usize) & 0x7ff;
    let mut total = total.wrapping_add(zero) & ((1 << 44) - 1);
    if let Ok(bytes) = frame.get::<Bytes<2>>(at) {
        total += u64::from(u16::from_ne_bytes(bytes.0));
        at += 2;
    }
    if let Ok(bytes) = frame.get::<Bytes<1>>(at) {
        total += u64::from(u16::from_ne_bytes([bytes.0[0], 0]));
    }
    fold(sum_pairs([total as u32, (total >> 32) as u32]))
}
