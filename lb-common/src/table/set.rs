//! Sixteen slots that keys with some of their hash in common share, and how one of them is found, written and cleared.

use super::Place;
use crate::{
    address::Address,
    flow::{Flow, Key},
    shared::{Exposed, Lock, Shared, barrier, either, is_zero},
};

/// Slots of a set.
pub const WAYS: usize = 16;

/// A set. Tags come first and fill a cache line: a key that is not here is known to be absent after two.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Set<A> {
    /// The tag of each slot's key; 0 where it is free.
    pub(super) tags: [Shared<u32>; WAYS],
    pub(super) lock: Lock,
    /// For each half-open entry its number in the order in which they came; 0 for every other.
    pub(super) half_open: [Shared<u16>; WAYS],
    /// The last such number.
    pub(super) opened: Shared<u16>,
    /// Not 0 if a key of this set has ever gone to its spare set.
    pub(super) spilled: Shared<u16>,
    reserved: [u16; 10],
    slots: [Slot<A>; WAYS],
}

/// Room for one entry. It lies in two cache lines, in both families; what sending a packet takes comes first.
#[repr(C, align(16))]
pub struct Slot<A> {
    /// As in [`Set::tags`]. It is part of the key: while a slot is given to another one, no mixture of both has the tag of a third.
    tag: Shared<u32>,
    key: Exposed<Key<A>>,
    flow: Exposed<Flow<A>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The key's.
    Same,
    /// Another key's, which has the same tag.
    Another,
    /// Nobody's.
    Gone,
}

/// Sizes are part of the contract with what is already in the kernel.
const _: () = {
    assert!(size_of::<Slot<crate::address::V4>>() == 80);
    assert!(size_of::<Slot<crate::address::V6>>() == 128);
    assert!(size_of::<Set<crate::address::V4>>() == 128 + 80 * WAYS);
    assert!(size_of::<Set<crate::address::V6>>() == 128 + 128 * WAYS);
};

impl<A> core::fmt::Debug for Slot<A> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slot").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl<A: Address> Slot<A> {
    /// Whether it is the key's.
    #[inline(always)]
    pub fn holds(&self, tag: u32, key: &Key<A>) -> bool {
        self.tag.load() == tag && self.key().same(key)
    }

    /// What a slot is whose tag in the set is that of a key.
    #[inline(always)]
    pub(super) fn state(&self, tag: u32, key: &Key<A>) -> State {
        match self.tag.load() == tag {
            true if self.key().same(key) => State::Same,
            true => State::Another,
            false => State::Gone,
        }
    }

    /// Makes it nobody's.
    #[inline(always)]
    pub(super) fn forget(&self) {
        self.tag.store(0);
    }

    /// Which connection it is. Means nothing while the slot is free. Writers may change it under a reader, who finds by the tag that it is
    /// not what it was looking for.
    #[inline(always)]
    pub fn key(&self) -> &Key<A> {
        self.key.read()
    }

    /// If another CPU gives the slot to another connection while this is used, one packet may be rewritten as that one's, which the
    /// receiver drops.
    #[inline(always)]
    pub fn flow(&self) -> &Flow<A> {
        self.flow.read()
    }
}

impl<A: Address> Set<A> {
    #[inline(always)]
    pub fn slot(&self, way: u32) -> &Slot<A> {
        &self.slots[way as usize & (WAYS - 1)]
    }

    /// The way of a key.
    #[inline(always)]
    pub(super) fn find(&self, place: &Place, key: &Key<A>) -> Option<u32> {
        if self.slot(place.way).holds(place.tag, key) {
            return Some(place.way);
        }
        let way = self.tagged(place.tag)?;
        self.slot(way).holds(place.tag, key).then_some(way)
    }

    /// The last way with that tag, without a branch for each.
    #[inline(always)]
    pub(super) fn tagged(&self, tag: u32) -> Option<u32> {
        let mut found = 0;
        for (number, other) in (1..).zip(&self.tags) {
            found = either(is_zero(u64::from(other.load() ^ tag)), number, found);
        }
        (found != 0).then(|| found as u32 - 1)
    }

    /// Makes the slot the key's. The set is locked.
    #[inline(always)]
    pub(super) fn write(&self, way: u32, tag: u32, key: &Key<A>, flow: &Flow<A>) {
        let slot = self.slot(way);
        if slot.tag.load() != tag {
            slot.forget();
        }
        barrier();
        slot.flow.write(flow);
        slot.key.write(key);
        barrier();
        slot.tag.store(tag);
        self.tags[way as usize & (WAYS - 1)].store(tag);
        let order = &self.half_open[way as usize & (WAYS - 1)];
        if flow.is_half_open() {
            // 0 means something else.
            let number = self.opened.load().wrapping_add(1) | u16::from(self.opened.load() == u16::MAX);
            self.opened.store(number);
            order.store(number);
        } else {
            order.store(0);
        }
    }

    /// Frees a slot. The set is locked.
    #[inline(always)]
    pub(super) fn clear(&self, way: u32) {
        self.slot(way).forget();
        self.half_open[way as usize & (WAYS - 1)].store(0);
        self.tags[way as usize & (WAYS - 1)].store(0);
    }

    /// Notes that an entry is half-open no longer, if so.
    #[inline(always)]
    pub(super) fn note_phase(&self, way: u32, flow: &Flow<A>) {
        if !flow.is_half_open() {
            self.half_open[way as usize & (WAYS - 1)].store(0);
        }
    }
}

#[cfg(any(test, feature = "user"))]
mod user {
    use super::{Set, Slot, WAYS};
    use crate::{
        address::Address,
        shared::{Lock, Shared},
    };

    impl<A: Address> Default for Set<A> {
        fn default() -> Self {
            let slot = |_| Slot { tag: Shared::default(), key: Default::default(), flow: Default::default() };
            Self {
                tags: Default::default(),
                lock: Lock::default(),
                half_open: Default::default(),
                opened: Shared::default(),
                spilled: Shared::default(),
                reserved: [0; 10],
                slots: core::array::from_fn::<_, WAYS, _>(slot),
            }
        }
    }

    impl<A: Address> Set<A> {
        /// The slots that are in use.
        pub fn entries(&self) -> impl Iterator<Item = (u32, &Slot<A>)> {
            let used = (0..).zip(&self.tags).filter(|(_, tag)| tag.load() != 0);
            used.map(|(way, _)| (way, self.slot(way))).filter(|(_, slot)| slot.tag.load() != 0)
        }

        /// Frees a slot if it is in use and `judge` still says so, with nobody else writing. `now` is in kernel ticks.
        pub fn clear_if(&self, way: u32, now: u32, judge: impl FnOnce(&Slot<A>) -> bool) -> bool {
            let cleared = self.hold(way, now, |slot| judge(slot).then(|| self.clear(way)));
            cleared.flatten().is_some()
        }

        /// Does something with a slot, if it is in use, while nobody else writes: `None` if somebody does.
        pub fn hold<T>(&self, way: u32, now: u32, work: impl FnOnce(&Slot<A>) -> Option<T>) -> Option<Option<T>> {
            if !self.lock.take(now) {
                return None;
            }
            let slot = self.slot(way);
            let done = if slot.tag.load() == 0 { None } else { work(slot) };
            self.lock.give();
            Some(done)
        }
    }
}
