//! The table of connections: a flat array of sets, searched by a keyed hash. The same code runs on the maps and on plain memory.
//!
//! ```text
//!  hash(key) -> set, way, tag          a set:  tags[16] | lock, half-open order | slot 0 | slot 1 | ... | slot 15
//!                |                                                                    ^
//!                +--- the way in the set that a key takes if it can ------------------+
//! ```
//! A packet of a known connection looks into one slot, whose address follows from the hash: one cache miss. Only where another
//! connection has that slot are the tags of the set looked through, and those of a second set only where the first was once full. What
//! gives way to a new connection is in [`victim`].
//!
//! Readers take no lock. Writers lock the set of the key and then, if they need it, the second one: so a key is there once, and two CPUs
//! never fill the same slot.

mod hashing;
mod set;
mod victim;

pub(crate) use hashing::product;
pub use hashing::{Hashing, Place, SECRET_WORDS};
pub use set::{Set, Slot, WAYS};
pub use victim::{HALF_OPEN_WAYS, QUIET};

use crate::{
    address::Address,
    flow::{Flow, Key},
};

/// Of each set's ways, those that are counted on when a table is made large enough for a number of connections. With so many to spare
/// hardly a set is ever asked for more than it has: see the test `what_is_configured_fits`.
const LOAD: u32 = 12;

/// Sets of a table for that many connections. Each has two halves.
pub const fn sets_for(connections: u32) -> u32 {
    let halves = connections as u64 * 2;
    let sets = halves.div_ceil(LOAD as u64);
    // Sixteen million connections are the most that can be configured.
    if sets == 0 { 1 } else { sets as u32 }
}

/// A table of one address family.
///
/// Only the first two are to be written for it. The others are here so that the kernel side can make functions of their own of them, which
/// its verifier checks once and not again for each call.
pub trait Sets<A: Address> {
    /// How keys are hashed; `None` before the daemon has said so.
    fn hashing(&self) -> Option<&Hashing>;
    fn set(&self, number: u32) -> Option<&Set<A>>;

    /// See [`locate`].
    #[inline(always)]
    fn locate(&self, key: &Key<A>) -> u64 {
        locate(self, key)
    }

    /// See [`insert`]; an [`Inserted`].
    #[inline(always)]
    fn insert_as(&self, key: &Key<A>, flow: &Flow<A>, existing: Existing) -> u64 {
        insert(self, key, flow, existing)
    }

    /// See [`remove`].
    #[inline(always)]
    fn remove_at(&self, key: &Key<A>, now: u32) {
        remove(self, key, now);
    }

    /// See [`advance`].
    #[inline(always)]
    fn advance(&self, key: &Key<A>, other: &Key<A>, leader: &Flow<A>) {
        advance(self, key, other, leader);
    }
}

/// What becomes of an entry that is under the key already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Replaced,
    /// It stays, unless it belongs to the same connection or is half-open.
    Kept,
}

impl Existing {
    /// From a number other than 0 for [`Self::Kept`].
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        if raw == 0 { Self::Replaced } else { Self::Kept }
    }
}

/// What became of an entry that was to be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It took a free slot, or that of an earlier state of itself.
    Free,
    /// It took the slot of a half-open entry.
    HalfOpen,
    /// Of one that was closing.
    Closing,
    /// Of an established one that had been silent for long.
    Idle,
    /// It was refused: there is one under the key.
    Exists,
    /// It was refused: none in its set may give way. Also where another CPU writes there at this moment; to the client that is a lost
    /// packet.
    Full,
}

impl Inserted {
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => Self::Free,
            1 => Self::HalfOpen,
            2 => Self::Closing,
            3 => Self::Idle,
            4 => Self::Exists,
            _ => Self::Full,
        }
    }
}

/// The entry under a key, if it is in one of the two slots that a key takes if it can: this is on the way of nearly every packet. `Err` where
/// there is no table.
#[inline(always)]
pub fn home<'a, A, S>(sets: &'a S, key: &Key<A>) -> Result<Option<&'a Flow<A>>, NoTable>
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let place = sets.hashing().ok_or(NoTable)?.place(key);
    let set = sets.set(place.set).ok_or(NoTable)?;
    let first = set.slot(place.way);
    let slot = if first.holds(place.tag, key) { first } else { set.slot(beside(place.way)) };
    Ok(slot.holds(place.tag, key).then(|| slot.flow()))
}

/// The daemon has not made the table yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTable;

/// The way that a key takes where its own is taken: next to it in memory.
#[inline(always)]
const fn beside(way: u32) -> u32 {
    way ^ 1
}

/// The entry under a key.
#[inline(always)]
pub fn find<'a, A, S>(sets: &'a S, key: &Key<A>) -> Option<&'a Flow<A>>
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let at = sets.locate(key);
    // None has that number.
    sets.set((at >> 8) as u32).map(|set| set.slot(at as u32).flow())
}

/// Where the entry under a key is: the number of its set, and in the lowest byte its way. [`NOWHERE`] if there is none.
#[inline(always)]
pub fn locate<A, S>(sets: &S, key: &Key<A>) -> u64
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let Some(place) = sets.hashing().map(|hashing| hashing.place(key)) else {
        return NOWHERE;
    };
    let Some(set) = sets.set(place.set) else {
        return NOWHERE;
    };
    if let Some(way) = set.find(&place, key) {
        return u64::from(place.set) << 8 | u64::from(way);
    }
    if set.spilled.load() == 0 {
        return NOWHERE;
    }
    let way = sets.set(place.spare).and_then(|spare| spare.find(&place, key));
    way.map_or(NOWHERE, |way| u64::from(place.spare) << 8 | u64::from(way))
}

/// In a set that no table has.
pub const NOWHERE: u64 = (u32::MAX as u64) << 8;

/// Inserts an entry. The time is that of its last packet. An [`Inserted`] as a number.
#[inline(always)]
pub fn insert<A, S>(sets: &S, key: &Key<A>, flow: &Flow<A>, existing: Existing) -> u64
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let Some(place) = sets.hashing().map(|hashing| hashing.place(key)) else {
        return Inserted::Full as u64;
    };
    let Some(set) = sets.set(place.set) else {
        return Inserted::Full as u64;
    };
    let now = flow.last_seen();
    if !set.lock.take(now) {
        return Inserted::Full as u64;
    }
    // Where it may go to, if it comes to that.
    let wanted = place.spare != place.set && (set.spilled.load() != 0 || victim::is_full(set));
    let spare = if wanted { sets.set(place.spare).filter(|spare| spare.lock.take(now)) } else { None };
    let choice = victim::choose(set, spare, &place, key, flow, existing, now);
    // The verifier is to forget which of its ways led here.
    let choice = choice.unknown(set.lock.zero());
    if choice.inserts() {
        match spare {
            Some(spare) if choice.spills() => {
                set.spilled.store(1);
                spare.write(choice.way(), place.tag, key, flow);
            }
            _ => set.write(choice.way(), place.tag, key, flow),
        }
    }
    if let Some(spare) = spare {
        spare.lock.give();
    }
    set.lock.give();
    choice.inserted()
}

/// Removes the entry under a key, if there is one. `now` is in kernel ticks.
#[inline(always)]
pub fn remove<A, S>(sets: &S, key: &Key<A>, now: u32)
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let at = locate(sets, key);
    if let Some(set) = sets.set((at >> 8) as u32)
        && set.lock.take(now)
    {
        if set.slot(at as u32).key().same(key) {
            set.clear(at as u32);
        }
        set.lock.give();
    }
}

/// Gives the entry under a key the phase of `leader`, if it is still the half of a connection whose other half has the key `other`.
#[inline(always)]
pub fn advance<A, S>(sets: &S, key: &Key<A>, other: &Key<A>, leader: &Flow<A>)
where
    A: Address,
    S: Sets<A> + ?Sized,
{
    let at = locate(sets, key);
    if let Some(set) = sets.set((at >> 8) as u32) {
        let flow = set.slot(at as u32).flow();
        if flow.other.same(other) {
            flow.follow(leader);
            set.note_phase(at as u32, flow);
        }
    }
}

#[cfg(test)]
mod tests;
