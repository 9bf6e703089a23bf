//! Connections that another node carried to a backend on this host before this node took the VIP over: the backend's socket knows its client as
//! VIP:port, and the VIP is this host's own address now.
//!
//! ```text
//!   client -> VIP --XDP: VIP:p -> backend--> tc_ingress --> loopback --> backend's socket
//!                                                                             |
//!   client <-- VIP --- the link <--- tc_loopback: VIP -> client <--- loopback <-- backend -> VIP:p
//! ```
//! What comes from this host's own address by a link, the kernel takes for a forgery (`fib_validate_source`), but not what it has routed to the
//! loopback interface itself. And what goes to an address of this host leaves by no other interface.

use super::{Arrival, Family, Outgoing, Port, Route, Settings, Verdict, note};
use crate::{
    abi::Counter,
    address::{Address, V4, V6},
    flow::Role,
    wire::{self, Link, Tags},
};

/// The loopback interface's number, in every network namespace (`LOOPBACK_IFINDEX` of the kernel's net/flow.h).
pub const LOOPBACK: u32 = 1;

/// How a packet that was rewritten reaches a backend on this host.
#[inline(always)]
pub(super) fn up(role: Role) -> Verdict {
    if role.is_inherited() { Verdict::Kernel(LOOPBACK) } else { Verdict::Pass }
}

/// Decides about a frame that this host sends to itself: what a backend here sends to a client that it knows by the VIP is made what it would be
/// from there. `now` is in kernel ticks.
#[inline(always)]
pub fn loopback<F, T>(frame: &mut F, tables: &T, now: u64) -> Verdict
where
    F: Outgoing + ?Sized,
    T: Family<V4> + Family<V6>,
{
    let (Some(settings), Ok(link)) = (tables.settings(), wire::link(frame)) else {
        return Verdict::Pass;
    };
    match link.ether_type {
        wire::IPV4 => turn::<V4, _, _>(frame, tables, settings, link, now),
        wire::IPV6 => turn::<V6, _, _>(frame, tables, settings, link, now),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn turn<A, F, T>(frame: &mut F, tables: &T, settings: &Settings, link: Link, now: u64) -> Verdict
where
    A: Address,
    F: Outgoing + ?Sized,
    T: Family<A>,
{
    // All that the host says to itself passes here.
    match frame.get::<A::Header>(link.at) {
        Ok(header) if settings.vips.may_hold(A::destination(header)) && settings.locals.may_hold(A::source(header)) => {
        }
        _ => return Verdict::Pass,
    }
    let Ok(segment) = wire::segment::<A, F>(frame, link.at) else {
        return Verdict::Pass;
    };
    let Some(flow) = tables.flow(&segment.key).filter(|flow| flow.role.is_inherited()) else {
        return Verdict::Pass;
    };
    let arrival = Arrival { segment, bytes: frame.len(), now, ..Arrival::default() };
    note(tables, flow, &arrival);
    // As for any packet of this host's own.
    let here = Port { interface: LOOPBACK, tags: Tags(0) };
    let way = match tables.route(here, flow.new_source(), flow.new_destination()) {
        Route::Hop(hop) => hop.interface,
        Route::Kernel(interface) => interface,
        Route::None => LOOPBACK,
    };
    if way == LOOPBACK || !frame.turn(&segment, flow, false) {
        tables.count(Counter::NoRoute);
        return Verdict::Drop;
    }
    Verdict::Kernel(way)
}
