//! What happens to a packet. The same code runs in the kernel, in unit tests and under the fuzzer.
//!
//! ```text
//!  ingress:  not to a VIP ------------------------------------------> pass, untouched
//!            to a VIP:  known connection -- current -----------------> rewrite, send
//!                                        \- route or health changed -> look up again | reset
//!                       unknown          -- no such service ---------> pass, untouched
//!                                        -- SYN, or a segment ------> choose a backend, rewrite, send
//!            to a VIP, with no hop left -----------------------------> tell the sender
//!            ARP or neighbour discovery for a VIP, its lease over ---> drop
//!  egress:   from a backend on this host, known connection ----------> the source becomes the VIP again
//!  loopback: from a backend on this host to a VIP, inherited --------> source and destination become VIP and client, send
//! ```

mod admission;
mod connect;
mod direct;
mod expired;
mod fence;
mod icmp;
mod inherited;
pub mod local;
mod passive;
mod renew;
mod reset;
pub mod selection;
mod send;
mod tables;
mod virtual_mac;

use core::ops::DerefMut;

pub use direct::turned;
pub use expired::{Room, expired, time_exceeded};
pub use fence::overdue;
pub use icmp::icmp;
pub use inherited::{LOOPBACK, loopback};
pub use passive::another;
use selection::Asker;
pub use tables::{Family, Tables};
pub use virtual_mac::accepts;

use crate::{
    abi::{
        Backend, BackendId, Counter, Fence, Inflow, Lease, Load, Policy, Port, ServiceId, ServiceKey, Settings, Sieve,
    },
    address::{Address, V4, V6},
    conntrack::{Phase, Sender},
    flow::{Flow, Hop, Key, News, Role},
    frame::Frame,
    shared::{self, Allowance, Tally},
    table::{self, Existing, Inserted, NoTable, Sets},
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
    /// Rewritten; out of that interface by the kernel, which resolves the neighbour. By [`LOOPBACK`], up the stack.
    Kernel(u32),
    /// As it was but for its hops; out of that interface by the kernel, to the neighbour that was asked for last, which it resolves.
    Neighbour(u32),
    /// Another part of the data path decides: a program of its own in the kernel, because it is rarer and longer.
    HandedOn(Part),
}

/// What [`ingress`] leaves to others, and its place in the kernel's table of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// [`icmp()`]: an ICMP message to a VIP.
    Icmp = 0,
    /// [`settle`]: a segment whose entry is to be made, brought up to date or ended. It stands in the draft.
    Settle4 = 1,
    Settle6 = 2,
    /// [`expired()`]: a segment to a VIP that has no hop left.
    Expired = 3,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Icmp, Self::Settle4, Self::Settle6, Self::Expired];

    /// The one of that family.
    #[inline(always)]
    const fn settle<A: Address>() -> Self {
        if size_of::<A>() == size_of::<V4>() { Self::Settle4 } else { Self::Settle6 }
    }
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

/// A frame on its way out of the host, whose checksums the hardware may yet have to finish.
pub trait Outgoing: Frame {
    /// Writes the entry's addresses and ports over the segment's and keeps its checksums right. Whether that succeeded. `keeps_receiver` says
    /// that the destination's address is the same.
    fn turn<A: Address>(&mut self, segment: &Segment<A>, flow: &Flow<A>, keeps_receiver: bool) -> bool;

    /// Writes the MAC address `new` over `old` at an even distance from the start, and keeps the checksum at that place right, if it is in
    /// one. Whether that succeeded.
    fn replace_mac(&mut self, at: usize, old: [u8; 6], new: [u8; 6], checksum: Option<usize>) -> bool;
}

/// A segment to a VIP with what is known about its arrival.
#[derive(Clone, Copy, Debug, Default)]
struct Arrival<A> {
    /// [`Settings::generation`], read before anything that it vouches for.
    generation: u32,
    segment: Segment<A>,
    from: Port,
    now: u64,
    /// Length of the frame.
    bytes: usize,
}

impl<A: Address> Arrival<A> {
    /// A copy from the draft, for the kernel's verifier: it knows nothing of what it reads there, and an offset into a packet must have bounds.
    #[inline(always)]
    fn placed(&self) -> Self {
        let mut copy = *self;
        copy.segment.limit();
        copy
    }
}

/// Room to make the two halves of a connection in, and what they are made for: what [`ingress`] leaves to [`settle`].
///
/// Two entries and a route lookup are more than a BPF program's stack. And what was written here and is read back are numbers of which
/// the kernel's verifier knows nothing: it follows what comes after once, not for each way that led there.
#[derive(Debug, Default)]
pub struct Draft<A> {
    arrival: Arrival<A>,
    /// The half that the packet belongs to.
    half: Flow<A>,
    /// The other one, and its key.
    other: Flow<A>,
    arrives: Key<A>,
    /// The MAC address that the packet came from.
    sender: [u8; 6],
    /// Under which something is looked up: on the stack, it would be too much for that.
    asked: ServiceKey,
    /// The backend of a new connection, and the role of the client's half.
    chosen: BackendId,
    kept: Role,
    /// The interface that the kernel is to send by.
    kernel: u32,
}

/// How a packet is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As its entry says.
    Kept,
    /// By the kernel, out of that interface.
    Kernel(u32),
}

/// What is to be done after the entry was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Next {
    Send,
    /// By the kernel, out of [`Draft::kernel`].
    SendByKernel,
    Pass,
    Drop,
    Reset,
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

    /// Of what is not answered.
    const fn verdict(self) -> Verdict {
        match self.act {
            Act::Pass => Verdict::Pass,
            Act::Drop | Act::Reset => Verdict::Drop,
        }
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
    // What a switch floods reaches every node that has the VIP configured; only the one that it is for may carry it.
    if !frame.get::<wire::Ethernet>(0).is_ok_and(|ethernet| settings.macs.may_hold_mac(ethernet.destination)) {
        return Verdict::Pass;
    }
    let mut from = Port { interface, tags: link.tags };
    let mut segment = match wire::segment::<A, F>(frame, link.at) {
        Ok(segment) => segment,
        Err(NotTcp::Other) => return Verdict::Pass,
        Err(NotTcp::Icmp) => {
            return match fence::other::<A, _, _>(frame, tables, settings, link.at) {
                Verdict::Pass => Verdict::HandedOn(Part::Icmp),
                withheld => withheld,
            };
        }
        Err(reason) => {
            tables.count(if reason == NotTcp::Fragment { Counter::Fragment } else { Counter::Malformed });
            return Verdict::Pass;
        }
    };
    if segment.hops <= 1 {
        return Verdict::HandedOn(Part::Expired);
    }
    segment.forget_ways(&mut from.tags, now);
    let arrival = Arrival { generation: settings.generation(), segment, from, now, bytes: frame.len() };
    carry(frame, tables, &arrival).unwrap_or_else(|stop| {
        tables.count(stop.counter);
        Verdict::Drop
    })
}

/// Sends a segment on by its connection's entry, where that takes no more than to look at it.
#[inline(always)]
fn carry<A, F, T>(frame: &mut F, tables: &T, arrival: &Arrival<A>) -> Result<Verdict, Stop>
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    let key = &arrival.segment.key;
    let known = table::home(tables, key).map_err(|NoTable| Stop::drop(Counter::TableFull))?;
    if let Some(flow) = known
        && flow.phase() == Phase::Established
        && !arrival.segment.flags.any(CONTROLS)
        && current(flow, arrival)
        && !(tables.fence().is_behind(arrival.now) & !flow.role.is_turned())
    {
        count(tables, flow, arrival);
        return send::out(frame, tables, arrival, flow, Way::Kept);
    }
    let mut sheet = tables.draft().ok_or(Stop::drop(Counter::TableFull))?;
    sheet.arrival = *arrival;
    sheet.sender = frame.get::<wire::Ethernet>(0)?.source;
    Ok(Verdict::HandedOn(Part::settle::<A>()))
}

/// Decides about the segment that [`ingress`] has left in the draft: makes its connection's entry or brings it up to date, and sends the segment
/// on by that.
#[inline(always)]
pub fn settle<A, F, T>(frame: &mut F, tables: &T) -> Verdict
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    // Headers are looked at from the front: the compiler leaves out a check that a later place implies, and the verifier misses it.
    let (Some(mut sheet), Ok(_)) = (tables.draft(), frame.get::<wire::Ethernet>(0)) else {
        return Verdict::Drop;
    };
    let next = enter(tables, &mut sheet);
    let arrival = sheet.arrival.placed();
    let sent = match next {
        Next::Send => send::out(frame, tables, &arrival, &sheet.half, Way::Kept),
        Next::SendByKernel => send::out(frame, tables, &arrival, &sheet.half, Way::Kernel(sheet.kernel)),
        Next::Pass => Ok(Verdict::Pass),
        Next::Drop => Ok(Verdict::Drop),
        Next::Reset => Ok(reset::answer(frame, &arrival.segment)),
    };
    sent.unwrap_or_else(|stop| {
        tables.count(stop.counter);
        Verdict::Drop
    })
}

/// Segments that may change the phase of an established connection.
const CONTROLS: Flags = Flags::SYN.with(Flags::FIN).with(Flags::RST);

/// Whether what the entry has cached still holds, and its other half can be relied upon.
#[inline(always)]
fn current<A: Address>(flow: &Flow<A>, arrival: &Arrival<A>) -> bool {
    flow.generation == arrival.generation && flow.hop.tags == arrival.from.tags && flow.is_fresh(arrival.now)
}

/// Makes the entry for the segment of the draft, or brings the known one up to date, and leaves it there. Counts what is in the way.
///
/// A function of its own in the kernel too: its stack is free again when the segment is sent.
#[inline(never)]
fn enter<A, T>(tables: &T, draft: &mut Draft<A>) -> Next
where
    A: Address,
    T: Family<A>,
{
    prepare(tables, draft).unwrap_or_else(|Stop { counter, act }| {
        tables.count(counter);
        match act {
            Act::Pass => Next::Pass,
            Act::Drop => Next::Drop,
            Act::Reset => Next::Reset,
        }
    })
}

#[inline(always)]
fn prepare<A, T>(tables: &T, draft: &mut Draft<A>) -> Result<Next, Stop>
where
    A: Address,
    T: Family<A>,
{
    let Draft { arrival, half, sender, .. } = &mut *draft;
    let known = tables.flow(&arrival.segment.key);
    // The entry may be given to another connection by any insertion: from then on, a copy. A SYN finds there what became of the one before.
    match known {
        Some(flow) => shared::copy(flow, half),
        None => half.set_phase(Phase::Closed),
    }
    match known.filter(|flow| !restarts(tables, &arrival.segment, *sender, flow)) {
        Some(flow) => {
            if !flow.role.is_turned() {
                fence::carries(tables, arrival)?;
            }
            if passive::is_withheld(tables, &arrival.segment, flow, arrival.now) {
                return Err(Stop::drop(Counter::Refused));
            }
            if current(flow, arrival) {
                note(tables, flow, arrival);
                return Ok(Next::Send);
            }
            renew::check(tables, draft)?;
            renew::restore(tables, draft);
        }
        None => {
            connect::open(tables, draft)?;
        }
    }
    // From here on all is read from the draft again: kept on the stack all the while, it would be too much for that.
    let draft = core::hint::black_box(draft);
    let Draft { arrival, half, .. } = &mut *draft;
    let route = if half.role.is_local() {
        Route::Hop(Hop { tags: arrival.from.tags, ..Hop::default() })
    } else {
        tables.route(arrival.from, half.new_source(), half.new_destination())
    };
    let next = match route {
        Route::Hop(hop) => {
            half.set_way(&hop, arrival.generation);
            Next::Send
        }
        Route::Kernel(interface) => {
            draft.kernel = interface;
            Next::SendByKernel
        }
        Route::None => return Err(Stop::drop(Counter::NoRoute)),
    };
    note(tables, &draft.half, &draft.arrival);
    let inserted = tables.insert(&draft.arrival.segment.key, &draft.half, Existing::Replaced);
    inserted.map_err(|_| Stop::drop(Counter::TableFull))?;
    Ok(next)
}

/// Notes a packet in its entry and, when the connection's phase changes, in the other half.
#[inline(always)]
fn note<A, T>(tables: &T, flow: &Flow<A>, arrival: &Arrival<A>)
where
    A: Address,
    T: Family<A>,
{
    count(tables, flow, arrival);
    let Arrival { segment, .. } = arrival;
    let before = flow.phase();
    let after = before.after(flow.sender(), segment.flags);
    if after != before {
        flow.set_phase(after);
        tables.advance(&segment.key, &flow.other, flow);
        tables.advance(&flow.other, &segment.key, flow);
        if after == Phase::Closed {
            selection::ended(tables, flow.backend());
        }
        if News::is_due(flow) {
            tables.tell(&segment.key, flow);
        }
    }
}

/// Counts a packet.
#[inline(always)]
fn count<A, T>(tables: &T, flow: &Flow<A>, arrival: &Arrival<A>)
where
    A: Address,
    T: Family<A>,
{
    flow.touch(arrival.now, arrival.bytes, arrival.segment.acknowledgement);
    tables.traffic(flow.backend(), flow.sender(), arrival.bytes);
}

/// What became of a frame on its way out of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It goes as it was, or as it could be rewritten.
    Goes,
    /// It says that the host has the VIP, or comes from the VIP now.
    Turned,
    /// It is to be dropped.
    Withheld,
}

impl From<bool> for Leaving {
    #[inline(always)]
    fn from(turned: bool) -> Self {
        if turned { Self::Turned } else { Self::Goes }
    }
}

/// Turns a segment that a backend on this host sends to a client back into one from the VIP.
#[inline(always)]
pub fn egress<F, T>(frame: &mut F, tables: &T, now: u64) -> Leaving
where
    F: Outgoing + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let (Some(settings), Ok(link)) = (tables.settings(), wire::link(frame)) else {
        return Leaving::Goes;
    };
    match link.ether_type {
        wire::IPV4 => turn_back::<V4, _, _>(frame, tables, settings, link, now),
        wire::IPV6 if virtual_mac::is_icmp(frame, link.at) => virtual_mac::neighbour(frame, tables, link.at).into(),
        wire::IPV6 => turn_back::<V6, _, _>(frame, tables, settings, link, now),
        wire::ARP => virtual_mac::arp(frame, tables, link.at).into(),
        _ => Leaving::Goes,
    }
}

#[inline(always)]
fn turn_back<A, F, T>(frame: &mut F, tables: &T, settings: &Settings, link: Link, now: u64) -> Leaving
where
    A: Address,
    F: Outgoing + ?Sized,
    T: Family<A>,
{
    match frame.get::<A::Header>(link.at) {
        Ok(header) if settings.locals.may_hold(A::source(header)) => {}
        _ => return Leaving::Goes,
    }
    let Ok(segment) = wire::segment::<A, F>(frame, link.at) else {
        return Leaving::Goes;
    };
    match tables.flow(&segment.key) {
        Some(flow) if flow.role.leaves() => {
            if passive::is_withheld(tables, &segment, flow, now) {
                tables.count(Counter::Refused);
                return Leaving::Withheld;
            }
            let arrival = Arrival { segment, bytes: frame.len(), now, ..Arrival::default() };
            note(tables, flow, &arrival);
            frame.turn(&segment, flow, true).into()
        }
        _ => Leaving::Goes,
    }
}

/// Whether a segment opens a new connection under the ports of an old one: also of one that this node has sent on while it held the VIP, where
/// the one who holds it now has chosen the backend here.
#[inline(always)]
fn restarts<A, T>(tables: &T, segment: &Segment<A>, sender: [u8; 6], flow: &Flow<A>) -> bool
where
    A: Address,
    T: Family<A>,
{
    let was_sent_on = || flow.role.from_client() && !flow.role.is_local();
    segment.flags.opens()
        && (flow.may_restart() || (was_sent_on() && tables.turned(&segment.key, sender) != BackendId::NONE))
}

#[cfg(test)]
mod tests;
