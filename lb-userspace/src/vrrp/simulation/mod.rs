//! Several nodes in virtual time, under faults drawn from a seed. `XVIP_SIMULATION_SEED=7` plays one seed again and
//! prints what happened; `XVIP_SIMULATION_SEEDS=1000000` plays more of them.

mod agenda;
mod faults;
mod kernel;
mod network;
mod plan;
mod rules;
mod world;

use std::{env, ops::AddAssign};

pub(crate) use kernel::Kernel;
use world::{Tally, World};

const SEEDS: u64 = 20_000;

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.promotions += other.promotions;
        self.overlaps += other.overlaps;
        self.judged_leases += other.judged_leases;
        self.owed_announcements += other.owed_announcements;
    }
}

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// What the seed was good for, or what went wrong.
fn play(seed: u64, traced: bool) -> Result<Tally, String> {
    let mut world = World::new(seed, traced);
    let outcome = world.run();
    for line in world.trace() {
        println!("{line}");
    }
    match outcome {
        Ok(()) => Ok(world.tally),
        Err(violation) => Err(format!(
            "seed {seed}, at {:?}: {}\nto see it: XVIP_SIMULATION_SEED={seed} cargo test -p lb-userspace simulation -- --nocapture",
            violation.at, violation.what
        )),
    }
}

#[test]
fn promises_hold_under_every_seed() {
    if let Some(seed) = variable("XVIP_SIMULATION_SEED") {
        play(seed, true).unwrap_or_else(|wrong| panic!("{wrong}"));
        return;
    }
    let mut tally = Tally::default();
    for seed in 0..variable("XVIP_SIMULATION_SEEDS").unwrap_or(SEEDS) {
        tally += play(seed, false).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    println!("{tally:#?}");
    assert!(tally.promotions > 0 && tally.judged_leases > 0 && tally.owed_announcements > 0, "{tally:?}");
}
