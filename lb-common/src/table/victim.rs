//! Who gives way to a new entry.
//!
//! ```text
//!  half-open entries of the set at their limit ----> the oldest of them
//!  a free slot, in the set or in its spare one -----> nobody
//!  none:  a half-open entry ------------------------> the oldest of them
//!         one that is closing ----------------------> the one that has been silent longest
//!         an established one, silent for QUIET -----> the one that has been silent longest
//!         else -------------------------------------> the new one is refused
//! ```
//! So a flood of SYNs passes through its own part of each set, and moves no connection that is alive.

use super::{Existing, Inserted, Place, Set, WAYS, beside, set::State};
use crate::{
    address::Address,
    flow::{Flow, Key},
    shared::{either, is_below, is_zero},
};

/// Half-open entries that a set takes before they displace each other: a quarter.
pub const HALF_OPEN_WAYS: u64 = 4;

/// Ticks without a packet after which an established connection may give way to a new one where there is no other room: at least
/// three minutes, whatever the kernel's ticks. A kube-apiserver pings an idle watch every 30 seconds.
pub const QUIET: u32 = 180_000;

/// A way for a new entry, in which set, and what that means; all in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice(u64);

impl Choice {
    const SPARE: u64 = 1 << 7;

    #[inline(always)]
    const fn new(way: u32, inserted: Inserted) -> Self {
        Self((inserted as u64) << 8 | way as u64)
    }

    /// The same in the spare set.
    #[inline(always)]
    const fn in_spare(self) -> Self {
        Self(self.0 | Self::SPARE)
    }

    #[inline(always)]
    pub(super) const fn unknown(self, zero: u64) -> Self {
        Self(self.0.wrapping_add(zero))
    }

    #[inline(always)]
    pub(super) const fn way(self) -> u32 {
        self.0 as u32 & (WAYS as u32 - 1)
    }

    #[inline(always)]
    pub(super) const fn spills(self) -> bool {
        self.0 & Self::SPARE != 0
    }

    /// An [`Inserted`].
    #[inline(always)]
    pub(super) const fn inserted(self) -> u64 {
        self.0 >> 8
    }

    #[inline(always)]
    pub(super) const fn inserts(self) -> bool {
        self.inserted() < Inserted::Exists as u64
    }
}

#[inline(always)]
pub(super) fn is_full<A: Address>(set: &Set<A>) -> bool {
    set.tagged(0).is_none()
}

/// The way for a new entry. The set is locked, and so is the spare one if there is any.
#[inline(always)]
pub(super) fn choose<A: Address>(
    set: &Set<A>,
    spare: Option<&Set<A>>,
    place: &Place,
    key: &Key<A>,
    flow: &Flow<A>,
    existing: Existing,
    now: u32,
) -> Choice {
    if let Some(way) = set.tagged(place.tag) {
        return tagged(set, way, place, key, flow, existing);
    }
    if let Some(spare) = spare
        && let Some(way) = spare.tagged(place.tag)
    {
        return tagged(spare, way, place, key, flow, existing).in_spare();
    }
    let (oldest, half_open) = order(set);
    if flow.is_half_open() && half_open >= HALF_OPEN_WAYS {
        return Choice::new(oldest, Inserted::HalfOpen);
    }
    for way in [place.way, beside(place.way)] {
        if set.tags[way as usize & (WAYS - 1)].load() == 0 {
            return Choice::new(way, Inserted::Free);
        }
    }
    if let Some(way) = set.tagged(0) {
        return Choice::new(way, Inserted::Free);
    }
    if let Some(spare) = spare
        && let Some(way) = spare.tagged(0)
        && !(flow.is_half_open() && order(spare).1 >= HALF_OPEN_WAYS)
    {
        return Choice::new(way, Inserted::Free).in_spare();
    }
    if half_open > 0 {
        return Choice::new(oldest, Inserted::HalfOpen);
    }
    silent(set, now)
}

/// What becomes of the entry that has the key's tag.
#[inline(always)]
fn tagged<A: Address>(
    set: &Set<A>,
    way: u32,
    place: &Place,
    key: &Key<A>,
    flow: &Flow<A>,
    existing: Existing,
) -> Choice {
    let slot = set.slot(way);
    let inserted = match slot.state(place.tag, key) {
        // Half removed, by a daemon that was killed.
        State::Gone => Inserted::Free,
        State::Same if existing == Existing::Replaced || slot.flow().other.same(&flow.other) => Inserted::Free,
        State::Same if slot.flow().is_half_open() => Inserted::HalfOpen,
        State::Same => Inserted::Exists,
        // Once in 2^27 entries of a full table.
        State::Another => Inserted::Full,
    };
    Choice::new(way, inserted)
}

/// The half-open entry that came first, and how many there are.
#[inline(always)]
fn order<A: Address>(set: &Set<A>) -> (u32, u64) {
    let opened = set.opened.load();
    let (mut best, mut count) = (0, 0);
    for (way, order) in (0..).zip(&set.half_open) {
        let order = order.load();
        let one = 1 - is_zero(u64::from(order));
        // Its age, and in the lowest bits the way.
        let age = (u64::from(opened.wrapping_sub(order)) + 1) << 4 | way;
        best = larger(best, age * one);
        count += one;
    }
    ((best & (WAYS as u64 - 1)) as u32, count)
}

/// The entry of a full set that has been silent longest, if one may go.
#[inline(always)]
fn silent<A: Address>(set: &Set<A>, now: u32) -> Choice {
    /// Above every time of silence.
    const CLOSING: u64 = 1 << 40;
    let mut best = 0;
    for way in 0..WAYS as u64 {
        let flow = set.slot(way as u32).flow();
        let idle = u64::from(flow.idle(now));
        let closing = flow.closing();
        let quiet = 1 - is_below(idle, u64::from(QUIET));
        let rank = (CLOSING * closing + (idle + 1) * (closing | quiet)) << 4 | way;
        best = larger(best, rank * (closing | quiet));
    }
    let inserted = match best {
        0 => Inserted::Full,
        _ if best >= CLOSING << 4 => Inserted::Closing,
        _ => Inserted::Idle,
    };
    Choice::new((best & (WAYS as u64 - 1)) as u32, inserted)
}

/// The larger of two numbers below 2^63.
#[inline(always)]
fn larger(one: u64, other: u64) -> u64 {
    either(is_below(one, other), other, one)
}
