//! ICMP errors about packets that were sent on: a router or an end tells the VIP what became of a packet that it sees as the VIP's,
//! and the end that really sent it must hear of it, or path MTU discovery fails (RFC 1191, RFC 8201, RFC 5508 §4).
//!
//! ```text
//!   quoted: VIP:p -> backend  = what the client's packet became.  Its receiver's packets arrive as backend -> VIP:p,
//!                               so that entry says who sent it: to the client, about client -> VIP.
//!   quoted: VIP -> client     = what the backend's packet became.  Its receiver's arrive as client -> VIP:
//!                               to the backend, about backend -> VIP:p.
//! ```
//! In both cases the error takes the way of its sender's own packets, and what it quotes becomes the key of the other half.

use super::{Draft, Family, Route, Stop, Verdict, Way, direct, inherited, send};
use crate::{
    abi::{Counter, Port, Settings},
    address::{Address, V4, V6},
    checksum::{Delta, adjust},
    flow::{Flow, Key},
    frame::Frame,
    shared,
    wire::{self, Checksum, Icmp, Link, NotTcp, Quote, QuotedTcp, Tcp},
};

/// Decides about an ICMP message to a VIP, which [`super::ingress`] has left to this. Errors about connections that are known here
/// are sent on; everything else is the host's, echo requests among it.
#[inline(always)]
pub fn icmp<F, T>(frame: &mut F, tables: &T, interface: u32, now: u64) -> Verdict
where
    F: Frame + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let (Some(settings), Ok(link)) = (tables.settings(), wire::link(frame)) else {
        return Verdict::Pass;
    };
    match link.ether_type {
        wire::IPV4 => pass_on::<V4, _, _>(frame, tables, settings, link, interface, now),
        wire::IPV6 => pass_on::<V6, _, _>(frame, tables, settings, link, interface, now),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn pass_on<A, F, T>(frame: &mut F, tables: &T, settings: &Settings, mut link: Link, interface: u32, now: u64) -> Verdict
where
    A: Address,
    F: Frame + ?Sized,
    T: Family<A>,
{
    let Some(mut sheet) = tables.draft() else {
        return Verdict::Pass;
    };
    let quote = match wire::quote::<A, F>(frame, &mut link, &mut sheet.arrives, now) {
        Ok(quote) => quote,
        Err(reason) => {
            // Left to the host, as a malformed segment is: it discards both by the same lengths.
            if reason == NotTcp::Malformed {
                tables.count(Counter::Malformed);
            }
            return Verdict::Pass;
        }
    };
    let from = Port { interface, tags: link.tags };
    let generation = settings.generation();
    let Draft { half: flow, arrives, .. } = &mut *sheet;
    match tables.flow(arrives) {
        Some(known) => shared::copy(known, flow),
        None => {
            tables.count(Counter::IcmpStranger);
            return Verdict::Pass;
        }
    }
    let sent = way(tables, from, flow, generation).and_then(|way| {
        if flow.role.is_direct() {
            if quote.hops <= 1 {
                return Err(Stop::drop(Counter::Expired));
            }
            return direct::along::<A, _, _>(frame, tables, quote.network, interface, &flow.hop, way);
        }
        rewrite(frame, &quote, arrives, flow)?;
        if flow.role.is_local() {
            return Ok(inherited::up(flow.role));
        }
        send::leave(frame, tables, interface, &flow.hop, way)
    });
    match sent {
        Ok(verdict) => {
            tables.count(Counter::IcmpError);
            verdict
        }
        Err(stop) => {
            tables.count(stop.counter);
            Verdict::Drop
        }
    }
}

/// The way that packets of this half take, which a copy of its entry keeps.
#[inline(always)]
fn way<A, T>(tables: &T, from: Port, flow: &mut Flow<A>, generation: u32) -> Result<Way, Stop>
where
    A: Address,
    T: Family<A>,
{
    if flow.role.is_local() || (flow.generation == generation && flow.hop.tags == from.tags) {
        return Ok(Way::Kept);
    }
    match tables.route(from, flow.new_source(), flow.new_destination()) {
        Route::Hop(hop) => {
            flow.set_way(&hop, generation);
            Ok(Way::Kept)
        }
        Route::Kernel(interface) => Ok(Way::Kernel(interface)),
        Route::None => Err(Stop::drop(Counter::NoRoute)),
    }
}

/// Makes the message one to the other end, about what that has sent; `arrives` is the quoted segment's key, turned round.
#[inline(always)]
fn rewrite<A, F>(frame: &mut F, quote: &Quote, arrives: &Key<A>, flow: &Flow<A>) -> Result<(), Stop>
where
    A: Address,
    F: Frame + ?Sized,
{
    if quote.hops <= 1 {
        return Err(Stop::drop(Counter::Expired));
    }
    // From the VIP, whoever noticed: the client has never heard of the network behind it.
    let (source, destination) = (flow.new_source(), flow.new_destination());
    let header = frame.get_mut::<A::Header>(quote.network)?;
    let before = (&A::source(header), &arrives.destination);
    let covered = A::icmp_delta(A::icmp_delta(Delta::new(), before.0, source), before.1, destination);
    let delta = A::header_delta(before, (source, destination));
    A::rewrite(header, source, destination, delta);
    let covered = requote(frame, quote, arrives, &flow.other, covered)?;
    let message = frame.get_mut::<Icmp>(quote.message)?;
    message.checksum = adjust(message.checksum, covered.folded());
    Ok(())
}

/// Makes the quoted segment one with the key `sent`, and gives what that does to the message's checksum after `delta`.
#[inline(always)]
fn requote<A, F>(frame: &mut F, quote: &Quote, arrives: &Key<A>, sent: &Key<A>, delta: Delta) -> Result<Delta, Stop>
where
    A: Address,
    F: Frame + ?Sized,
{
    let (source, destination) = (&arrives.destination, &arrives.source);
    let ports =
        Delta::new().word(arrives.destination_port, sent.source_port).word(arrives.source_port, sent.destination_port);
    A::readdress(frame.get_mut::<A::Header>(quote.quoted)?, sent.source, sent.destination);
    let tcp = frame.get_mut::<QuotedTcp>(quote.transport)?;
    (tcp.source, tcp.destination) = (sent.source_port, sent.destination_port);
    let delta = A::icmp_delta(A::icmp_delta(delta, source, &sent.source), destination, &sent.destination);
    let delta = delta.and(ports);
    if !quote.has_checksum {
        return Ok(delta);
    }
    let segment = destination.delta(source.delta(ports, &sent.source), &sent.destination);
    let checksum = frame.get_mut::<Checksum>(quote.transport + core::mem::offset_of!(Tcp, checksum))?;
    let old = checksum.0;
    checksum.0 = adjust(old, segment.folded());
    Ok(delta.word(old, checksum.0))
}
