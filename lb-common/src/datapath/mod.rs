//! What happens to a packet. The same code runs in the kernel, in unit tests and under the fuzzer.
//!
//! ```text
//!  ingress:  not to a VIP ------------------------------------------> pass, untouched
//!            to a VIP:  known connection -- current -----------------> rewrite, send
//!                                        \- route or health changed -> look up again | reset
//!                       unknown          -- no such service ---------> pass, untouched
//!                                        -- SYN, or a segment ------> choose a backend, rewrite, send
//!            ARP or neighbour discovery for a VIP, its lease over ---> drop
//!  egress:   from a backend on this host, known connection ----------> the source becomes the VIP again
//! ```

mod connect;
mod fence;
mod icmp;
pub mod local;
mod renew;
mod reset;
mod send;
mod virtual_mac;

use core::ops::{Deref, DerefMut};

pub use icmp::icmp;
pub use virtual_mac::accepts;

use crate::{
    abi::{Backend, BackendId, Counter, Fence, Lease, Port, ServiceId, ServiceKey, Settings},
    address::{Address, V4, V6},
    conntrack::{Phase, Sender},
    flow::{Draft, Flow, Hop, Key},
    frame::Frame,
    wire::{self, Flags, Link, NotTcp, Segment},
};

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Up the stack, as it now is.
    Pass,
    Drop,
    /// Out of the interface that it came in by.
    Transmit,
    /// Out of another interface.
    Redirect(u32),
    /// Back to its sender, cut to that many bytes.
    Answer(usize),
    /// Rewritten; out of that interface by the kernel, which resolves the neighbour.
    Kernel(u32),
    /// An ICMP message to a VIP, for [`icmp()`] to decide about: a program of its own in the kernel, because it is rare and long.
    Icmp,
}

/// How a destination is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// With the tags that the packet has: they are never added or taken off here.
    Hop(Hop),
    /// By that interface, but the kernel must send: the neighbour is unresolved, the tags differ, or XDP cannot send there.
    Kernel(u32),
    None,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Exists,
    Full,
}

/// The tables that do not depend on the address family.
pub trait Tables {
    /// `None` before the daemon has written any.
    fn settings(&self) -> Option<&Settings>;
    fn service(&self, key: &ServiceKey) -> Option<ServiceId>;
    /// The backend in a slot of a virtual server's selection table.
    fn slot(&self, service: ServiceId, slot: u32) -> Option<BackendId>;
    fn backend(&self, id: BackendId) -> Option<&Backend>;
    fn count(&self, counter: Counter);
    /// Counts a packet of `bytes` bytes for a backend.
    fn traffic(&self, id: BackendId, sender: Sender, bytes: usize);
    /// Counts a new connection of a backend.
    fn connected(&self, id: BackendId);
    fn fence(&self) -> Fence;
    /// The lease of a VIP, IPv4 as `::ffff:a.b.c.d`.
    fn lease(&self, vip: &[u8; 16]) -> Option<Lease>;
    /// Nanoseconds of `CLOCK_BOOTTIME`. Dear: for the few packets that depend on a lease.
    fn uptime(&self) -> u64;
}

/// The tables of one address family.
pub trait Family<A: Address>: Tables {
    type Entry<'a>: Deref<Target = Flow<A>>
    where
        Self: 'a;

    type Sheet<'a>: DerefMut<Target = Draft<A>>
    where
        Self: 'a;

    fn flow(&self, key: &Key<A>) -> Option<Self::Entry<'_>>;
    /// Room to make new entries in; there is one.
    fn draft(&self) -> Option<Self::Sheet<'_>>;
    /// Inserts, or replaces if `replace` is set.
    fn insert(&self, key: &Key<A>, flow: &Flow<A>, replace: bool) -> Result<(), Refused>;
    fn remove(&self, key: &Key<A>);
    /// The way from `source` to `destination` for a packet that arrived by `from`.
    fn route(&self, from: Port, source: &A, destination: &A) -> Route;
}

/// A frame on its way out of the host, whose checksums the hardware may yet have to finish.
pub trait Outgoing: Frame {
    /// Writes the entry's addresses and ports over the segment's and keeps its checksums right. Whether that succeeded.
    fn turn<A: Address>(&mut self, segment: &Segment<A>, flow: &Flow<A>) -> bool;

    /// Writes the MAC address `new` over `old` at an even distance from the start, and keeps the checksum at that place right, if it is in
    /// one. Whether that succeeded.
    fn replace_mac(&mut self, at: usize, old: [u8; 6], new: [u8; 6], checksum: Option<usize>) -> bool;
}

/// A segment to a VIP with what is known about its arrival.
struct Arrival<A> {
    /// [`Settings::generation`], read before anything that it vouches for.
    generation: u32,
    segment: Segment<A>,
    from: Port,
    now: u64,
}

/// How a packet is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As its entry says.
    Kept,
    /// By the kernel, out of that interface.
    Kernel(u32),
}

/// Why a packet is not sent on, and what is done with it instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    counter: Counter,
    act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It is the host's.
    Pass,
    Drop,
    /// Its sender is told that the connection does not exist.
    Reset,
}

impl Stop {
    const fn pass(counter: Counter) -> Self {
        Self { counter, act: Act::Pass }
    }

    const fn drop(counter: Counter) -> Self {
        Self { counter, act: Act::Drop }
    }

    const fn reset(counter: Counter) -> Self {
        Self { counter, act: Act::Reset }
    }
}

/// Decides about a frame that arrived by `interface`, rewriting it in place. `now` is in kernel ticks.
#[inline(always)]
pub fn ingress<F, T>(frame: &mut F, tables: &T, interface: u32, now: u64) -> Verdict
where
    F: Frame + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let Some(settings) = tables.settings() else {
        return Verdict::Pass;
    };
    let Ok(link) = wire::link(frame) else {
        return Verdict::Pass;
    };
    // Apart from the others: as one of them, it makes the verifier of 6.1 follow 6,000 instructions more.
    if link.ether_type == wire::ARP {
        return fence::arp(frame, tables, settings, link.at);
    }
    match link.ether_type {
        wire::IPV4 => balance::<V4, _, _>(frame, tables, settings, link, interface, now),
        wire::IPV6 => balance::<V6, _, _>(frame, tables, settings, link, interface, now),

        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn balance<A, F, T>(frame: &mut F, tables: &T, settings: &Settings, link: Link, interface: u32, now: u64) -> Verdict
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    // On a master this is asked of every packet of the node, and the answer is nearly always no.
    match frame.get::<A::Header>(link.at) {
        Ok(header) if settings.vips.may_hold(A::destination(header)) => {}
        _ => return fence::other::<A, _, _>(frame, tables, settings, link.at),
    }
    let mut from = Port { interface, tags: link.tags };
    let mut segment = match wire::segment::<A, F>(frame, link.at) {
        Ok(segment) => segment,
        Err(NotTcp::Other) => return Verdict::Pass,
        Err(NotTcp::Icmp) => {
            return match fence::other::<A, _, _>(frame, tables, settings, link.at) {
                Verdict::Pass => Verdict::Icmp,
                withheld => withheld,
            };
        }
        Err(reason) => {
            tables.count(if reason == NotTcp::Fragment { Counter::Fragment } else { Counter::Malformed });
            return Verdict::Pass;
        }
    };
    segment.forget_ways(&mut from.tags, now);
    let arrival = Arrival { generation: settings.generation(), segment, from, now };
    match fence::carries(tables, &arrival).and_then(|()| carry(frame, tables, &arrival)) {
        Ok(verdict) => verdict,
        Err(Stop { counter, act }) => {
            tables.count(counter);
            match act {
                Act::Pass => Verdict::Pass,
                Act::Drop => Verdict::Drop,
                Act::Reset => reset::answer(frame, &arrival.segment),
            }
        }
    }
}

/// Sends a segment on by its connection's entry, which is made or brought up to date first where that is needed.
#[inline(always)]
fn carry<A, F, T>(frame: &mut F, tables: &T, arrival: &Arrival<A>) -> Result<Verdict, Stop>
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    let segment = &arrival.segment;
    let known = tables.flow(&segment.key).filter(|flow| !restarts(segment, flow));
    // Nearly every packet ends here. Kept apart from what follows: merged with it, the compiler spills all it knows, which costs a
    // third of the whole way.
    if let Some(flow) = &known
        && flow.generation == arrival.generation
        && flow.hop.tags == arrival.from.tags
    {
        note(tables, flow, segment, frame.len(), arrival.now);
        return send::out(frame, tables, arrival, flow, Way::Kept);
    }
    let mut sheet = tables.draft().ok_or(Stop::drop(Counter::TableFull))?;
    let way = prepare(tables, arrival, known.as_deref(), &mut sheet)?;
    note(tables, &sheet.forward, segment, frame.len(), arrival.now);
    tables.insert(&segment.key, &sheet.forward, true).map_err(|_| Stop::drop(Counter::TableFull))?;
    send::out(frame, tables, arrival, &sheet.forward, way)
}

/// Makes an entry for the segment in the draft: a new one, or the known one with what it had cached looked up again.
#[inline(always)]
fn prepare<A, T>(tables: &T, arrival: &Arrival<A>, known: Option<&Flow<A>>, draft: &mut Draft<A>) -> Result<Way, Stop>
where
    A: Address,
    T: Family<A>,
{
    match known {
        Some(flow) => {
            // The entry may be given to another connection by any insertion: from here on, a copy.
            draft.forward.clone_from(flow);
            renew::check(tables, arrival, &draft.forward)?;
        }
        None => connect::open(tables, arrival, draft)?,
    }
    let flow = &mut draft.forward;
    let route = if flow.role.is_local() {
        Route::Hop(Hop { tags: arrival.from.tags, ..Hop::default() })
    } else {
        tables.route(arrival.from, flow.new_source(), flow.new_destination())
    };
    match route {
        Route::Hop(hop) => {
            flow.set_way(&hop, arrival.generation);
            Ok(Way::Kept)
        }
        Route::Kernel(interface) => Ok(Way::Kernel(interface)),
        Route::None => Err(Stop::drop(Counter::NoRoute)),
    }
}

/// Notes a packet in its entry and, when the connection's phase changes, in the other half.
#[inline(always)]
fn note<A, T>(tables: &T, flow: &Flow<A>, segment: &Segment<A>, bytes: usize, now: u64)
where
    A: Address,
    T: Family<A>,
{
    let sender = if flow.role.from_client() { Sender::Client } else { Sender::Backend };
    flow.touch(now, bytes);
    tables.traffic(flow.backend, sender, bytes);
    let before = flow.phase();
    let controls = Flags::SYN.with(Flags::FIN).with(Flags::RST);
    if before == Phase::Established && !segment.flags.any(controls) {
        return;
    }
    let after = before.after(sender, segment.flags);
    if after != before {
        flow.set_phase(after);
        // The key may have become another connection's.
        if let Some(other) = tables.flow(&flow.other).filter(|other| other.other.same(&segment.key)) {
            other.set_phase(after);
        }
    }
}

/// Turns a segment that a backend on this host sends to a client back into one from the VIP; `true` if it was one.
#[inline(always)]
pub fn egress<F, T>(frame: &mut F, tables: &T, now: u64) -> bool
where
    F: Outgoing + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let (Some(settings), Ok(link)) = (tables.settings(), wire::link(frame)) else {
        return false;
    };
    match link.ether_type {
        wire::IPV4 => turn_back::<V4, _, _>(frame, tables, settings, link, now),
        wire::IPV6 if virtual_mac::is_icmp(frame, link.at) => virtual_mac::neighbour(frame, tables, link.at),
        wire::IPV6 => turn_back::<V6, _, _>(frame, tables, settings, link, now),
        wire::ARP => virtual_mac::arp(frame, tables, link.at),
        _ => false,
    }
}

#[inline(always)]
fn turn_back<A, F, T>(frame: &mut F, tables: &T, settings: &Settings, link: Link, now: u64) -> bool
where
    A: Address,
    F: Outgoing + ?Sized,
    T: Family<A>,
{
    match frame.get::<A::Header>(link.at) {
        Ok(header) if settings.locals.may_hold(A::source(header)) => {}
        _ => return false,
    }
    let Ok(segment) = wire::segment::<A, F>(frame, link.at) else {
        return false;
    };
    match tables.flow(&segment.key) {
        Some(flow) if flow.role == crate::flow::Role::LOCAL_REPLY => {
            note(tables, &flow, &segment, frame.len(), now);
            frame.turn(&segment, &flow)
        }
        _ => false,
    }
}

/// Whether a segment opens a new connection under the ports of an old one.
#[inline(always)]
fn restarts<A: Address>(segment: &Segment<A>, flow: &Flow<A>) -> bool {
    segment.flags.opens() && flow.role.from_client() && flow.phase().may_restart()
}

#[cfg(test)]
mod tests;
