//! Backends that leave a SYN unanswered or refuse it: the daemon is told, and the client's next SYN goes elsewhere.
//!
//! ```text
//!   SYN, repeated, no answer yet -------> the daemon is told; each second repetition goes to another backend
//!   RST in answer to a SYN: another backend takes connections --> told, dropped; the client repeats its SYN, which goes there
//!                           none does, or only failing ones do,
//!                           or that SYN was its fourth ---------> told, the client gets the RST
//! ```
//! A backend whose answers do not pass here must not be judged so: its connections have no half for them.

use super::{Arrival, Family, Tables};
use crate::{
    abi::{Backend, BackendId, Counter, ServiceId, ServiceKey, source_hash},
    address::Address,
    conntrack::{Phase, Sender},
    flow::{Flow, mix},
    maglev,
    shared::{either, is_zero, opaque},
    wire::{Flags, Segment},
};

/// Slots that are looked at for another backend. Where two share a table evenly, one time in 256 none is found.
const TRIES: u32 = 8;

/// From here on a client has waited for seconds, and the checks have found nothing: its SYNs are refused as its backends refuse them.
const SILENT_REFUSALS: u32 = 4;

/// A backend in the virtual server's table that is not that one, drawn by `seed`; [`BackendId::NONE`] if none was found, or it has a flag
/// that is `shunned`.
#[inline(always)]
pub fn another<T: Tables + ?Sized>(
    tables: &T,
    service: ServiceId,
    than: BackendId,
    seed: u32,
    shunned: u8,
) -> BackendId {
    let mut found = BackendId::NONE.0;
    for attempt in 0..TRIES {
        // One after the other: made all at once, the hashes would take more stack than there is.
        let hash = mix(opaque(u64::from(seed.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)))) as u32);
        let drawn = tables.slot(service, maglev::slot(hash)).unwrap_or(than).0;
        found = either(is_zero(u64::from(drawn ^ than.0)), found.into(), drawn.into()) as u32;
    }
    match tables.backend(BackendId(found)) {
        Some(backend) if backend.is(shunned) => BackendId::NONE,
        _ => BackendId(found),
    }
}

/// The backend for a SYN: `wanted`, unless `before`, the client's half of what its SYNs have led to so far, says otherwise.
#[inline(always)]
pub(super) fn choose<A, T>(
    tables: &T,
    service: ServiceId,
    arrival: &Arrival<A>,
    before: &Flow<A>,
    wanted: BackendId,
) -> BackendId
where
    A: Address,
    T: Family<A>,
{
    if !before.is_half_open() {
        return wanted;
    }
    let (tried, sent) = (before.backend(), before.packets());
    let (refused, silent) = (before.phase() == Phase::Refused, before.phase() == Phase::SynSent);
    if silent {
        tables.count(Counter::Unanswered);
        tables.suspect(tried, arrival.now);
    }
    let is_lost = tables.backend(tried).is_none_or(|backend| backend.is(Backend::DOWN));
    let stays = !refused && !is_lost && (!silent || sent & 1 == 1);
    let chosen = if stays {
        tried
    } else {
        let seed = source_hash(&arrival.segment.key.source).wrapping_add(sent);
        match tables.another(service, tried, seed, 0) {
            BackendId::NONE => wanted,
            other => other,
        }
    };
    if chosen != tried {
        tables.count(Counter::Retried);
        // What it may say after all is not for the client any more.
        if tables.flow(&before.other).is_some_and(|reply| reply.other.same(&arrival.segment.key)) {
            tables.remove(&before.other, arrival.now);
        }
    }
    chosen
}

/// Whether a segment is a backend's refusal that its client is not to see, because another backend takes connections. Then it is noted.
#[inline(always)]
pub(super) fn is_withheld<A, T>(tables: &T, segment: &Segment<A>, flow: &Flow<A>, now: u64) -> bool
where
    A: Address,
    T: Family<A>,
{
    if !segment.flags.any(Flags::RST) || flow.sender() != Sender::Backend || !flow.is_unanswered() {
        return false;
    }
    let refuses = flow.backend();
    tables.suspect(refuses, now);
    // Where its next SYN goes is for who holds the VIP to say, and that node has not heard of this.
    if flow.role.is_turned() {
        return false;
    }
    let vip = ServiceKey::new(flow.other.destination.mapped(), flow.other.destination_port);
    let another = |service| tables.another(service, refuses, 0, Backend::FAILING);
    if tables.service(&vip).map_or(BackendId::NONE, another) == BackendId::NONE {
        return false;
    }
    if tables.flow(&flow.other).is_some_and(|client| client.packets() >= SILENT_REFUSALS) {
        return false;
    }
    flow.set_phase(Phase::Refused);
    tables.advance(&segment.key, &flow.other, flow);
    tables.advance(&flow.other, &segment.key, flow);
    true
}
