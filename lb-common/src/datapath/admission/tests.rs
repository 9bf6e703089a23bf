//! Which SYNs are admitted, and what is counted of the others.

use std::vec::Vec;

use super::*;
use crate::{
    abi::{Balance, Policy},
    host::Memory,
};

const SERVICE: ServiceId = ServiceId(0);
const RATE: u32 = 10;
/// The ticks of a second in [`Memory`].
const SECOND: u64 = 250;

fn limited(excess: Excess) -> Memory {
    let mut memory = Memory::default();
    memory.policies.insert(SERVICE, Policy::new(Balance::SourceHash).limited(RATE, excess));
    memory
}

/// What becomes of each of these.
fn outcomes(memory: &Memory, seeds: impl IntoIterator<Item = u32>, now: u64) -> Vec<Option<Stop>> {
    seeds.into_iter().map(|seed| admit(memory, SERVICE, seed, now).err()).collect()
}

#[test]
fn without_a_rate_all_are_admitted() {
    let mut memory = Memory::default();
    assert_eq!(outcomes(&memory, 0..1_000, 1), [None; 1_000]);
    memory.policies.insert(SERVICE, Policy::new(Balance::SourceHash));
    assert_eq!(outcomes(&memory, 0..1_000, 1), [None; 1_000]);
    assert!(memory.counters().is_empty());
}

#[test]
fn beyond_the_rate_who_comes_again_is_admitted() {
    let memory = limited(Excess::Challenge);
    assert_eq!(outcomes(&memory, 0..RATE, 1_000), [None; RATE as usize]);
    // When they come again a second later, others have taken what the rate allows.
    let late = RATE..2 * RATE;
    assert_eq!(outcomes(&memory, late.clone(), 1_000), [Some(Stop::drop(Counter::OverRate)); RATE as usize]);
    assert_eq!(outcomes(&memory, 100..100 + RATE, 1_000 + SECOND), [None; RATE as usize]);
    assert_eq!(outcomes(&memory, late, 1_000 + SECOND), [None; RATE as usize]);
    assert_eq!(memory.counter(Counter::OverRateRepeated), u64::from(RATE));
    // Another virtual server has a rate of its own, here none.
    assert_eq!(admit(&memory, ServiceId(1), 7, 1_000 + SECOND), Ok(()));
}

#[test]
fn those_who_are_to_be_dropped_or_refused_may_come_as_often_as_they_like() {
    let refused = Stop::reset(Counter::OverRateRefused);
    for (excess, stop) in [(Excess::Drop, Stop::drop(Counter::OverRate)), (Excess::Reset, refused)] {
        let memory = limited(excess);
        assert_eq!(outcomes(&memory, 0..RATE, 1_000), [None; RATE as usize]);
        for tick in 1_000..1_004 {
            assert_eq!(admit(&memory, SERVICE, 77, tick), Err(stop));
        }
        assert_eq!(memory.counter(Counter::OverRateRepeated), 0);
        assert_eq!(outcomes(&memory, [77], 1_000 + SECOND), [None]);
    }
}
