//! From the outcomes of single checks to the state of a backend: rise and fall, without clock or socket.
//!
//! ```text
//!              rise × Healthy                          rise × Healthy
//!          (the first one at once)                 (the first one at once)
//!        +------------------------> +------+ <------------------------+
//!        |                          |  Up  |                          |
//!        |      fall × not Healthy, +------+ fall × not Healthy,      |
//!        |      the last one Dead    |    |  the last one Refused     |
//!        |     +---------------------+    +---------------------+     |
//!        |     v                                                v     |
//!      +--------+                 Refused                   +----------+
//!      |  Down  | ----------------------------------------> | Draining |
//!      +--------+ <---------------------------------------- +----------+
//!       (start)                 fall × Dead
//! ```
//!
//! Hysteresis sits on the edges that cost something: into `Up` (clients are sent there), out of `Up` (clients move
//! away) and into `Down` (connections are reset). `Down` to `Draining` costs nothing, since a backend that is down
//! has no connections left and a draining one gets none, so one answer is enough; a port that opens and closes in turn
//! then rests in `Draining` instead of flapping.
//!
//! What is suspected, because clients get no answer from it, is checked in a hurry until the checks have decided: it is the checks that
//! count, and no fewer of them.
//!
//! `Silent` counts as `Dead` in all of this.
//!
//! A backend is `Down` until something is known of it. Its first `Healthy` brings it `Up` at once: a daemon that
//! restarts must not leave the VIP without backends for `rise` intervals.

use std::num::NonZeroU32;

use super::State;

/// What one check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer was the wanted one.
    Healthy,
    /// TCP lives but the check is refused: wrong status, no answer in time, TLS failure, garbage.
    Refused,
    /// TCP connections are refused.
    Dead,
    /// Nothing has come back. That is counted as dead is; whether it costs connections, `silence` says.
    Silent,
}

impl Outcome {
    /// Nobody is there who takes TCP connections, as far as this node can see.
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Dead | Self::Silent)
    }
}

/// Rise and fall of one backend.
#[derive(Clone, Debug)]
pub struct Counter {
    rise: u32,
    fall: u32,
    state: State,
    ever_healthy: bool,
    hurried: bool,
    /// Lengths of the runs that end with the latest outcome; a run of `Dead` is also one of failures.
    healthy: u32,
    failed: u32,
    dead: u32,
}

impl Counter {
    pub fn new(rise: NonZeroU32, fall: NonZeroU32) -> Self {
        Self {
            rise: rise.get(),
            fall: fall.get(),
            state: State::Down,
            ever_healthy: false,
            hurried: false,
            healthy: 0,
            failed: 0,
            dead: 0,
        }
    }

    /// Goes on from the state that another check has found out.
    pub fn resume(rise: NonZeroU32, fall: NonZeroU32, state: State) -> Self {
        Self { state, ever_healthy: state == State::Up, ..Self::new(rise, fall) }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// How many checks in a row were healthy, or failed, up to the latest.
    pub fn consecutive(&self) -> u32 {
        self.healthy.max(self.failed)
    }

    /// The latest check failed.
    pub fn is_failing(&self) -> bool {
        self.failed > 0
    }

    /// Clients get no answer from a backend that is up. Whether that is news.
    pub fn suspect(&mut self) -> bool {
        let news = self.state == State::Up && !self.hurried;
        self.hurried |= news;
        news
    }

    /// It is suspected, and its checks have not decided yet.
    pub fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// One more `Dead` would take the backend down.
    pub fn next_dead_decides(&self) -> bool {
        match self.state {
            State::Up => self.failed.saturating_add(1) >= self.fall,
            State::Draining => self.dead.saturating_add(1) >= self.fall,
            State::Down => false,
        }
    }

    /// Counts one check and returns the new state.
    pub fn record(&mut self, outcome: Outcome) -> State {
        let first_healthy = outcome == Outcome::Healthy && !self.ever_healthy;
        self.count(outcome);
        self.state = match (self.state, outcome) {
            (State::Up, Outcome::Healthy) => State::Up,
            (State::Up, Outcome::Refused) if self.failed >= self.fall => State::Draining,
            (State::Up, Outcome::Dead | Outcome::Silent) if self.failed >= self.fall => State::Down,
            (State::Up, Outcome::Refused | Outcome::Dead | Outcome::Silent) => State::Up,

            (State::Draining | State::Down, Outcome::Healthy) if first_healthy || self.healthy >= self.rise => {
                State::Up
            }
            (State::Draining, Outcome::Healthy) => State::Draining,
            (State::Down, Outcome::Healthy) => State::Down,

            (State::Draining, Outcome::Dead | Outcome::Silent) if self.dead >= self.fall => State::Down,
            (State::Draining, Outcome::Refused | Outcome::Dead | Outcome::Silent) => State::Draining,

            (State::Down, Outcome::Refused) => State::Draining,
            (State::Down, Outcome::Dead | Outcome::Silent) => State::Down,
        };
        self.hurried &= self.state == State::Up && outcome != Outcome::Healthy;
        self.state
    }

    fn count(&mut self, outcome: Outcome) {
        let extend = |run: u32, goes_on: bool| if goes_on { run.saturating_add(1) } else { 0 };
        self.healthy = extend(self.healthy, outcome == Outcome::Healthy);
        self.failed = extend(self.failed, outcome != Outcome::Healthy);
        self.dead = extend(self.dead, outcome.is_dead());
        self.ever_healthy |= outcome == Outcome::Healthy;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        Outcome::{Dead, Healthy, Refused, Silent},
        State::{Down, Draining, Up},
        *,
    };

    fn counter(rise: u32, fall: u32) -> Counter {
        Counter::new(NonZeroU32::new(rise).unwrap(), NonZeroU32::new(fall).unwrap())
    }

    /// One letter an outcome (`h`, `r`, `d`), one letter a state after it (`U`, `-` for draining, `D`).
    fn run(rise: u32, fall: u32, outcomes: &str) -> String {
        let mut counter = counter(rise, fall);
        outcomes
            .chars()
            .map(|letter| match letter {
                'h' => Healthy,
                'r' => Refused,
                'd' => Dead,
                other => panic!("no outcome is called {other}"),
            })
            .map(|outcome| match counter.record(outcome) {
                Up => 'U',
                Draining => '-',
                Down => 'D',
            })
            .collect()
    }

    #[test]
    fn histories_with_rise_2_and_fall_3() {
        for (why, outcomes, states) in [
            ("first healthy result brings it up", "h", "U"),
            ("even after failures", "ddh", "DDU"),
            ("even out of draining", "rh", "-U"),
            ("first refusal is an answer", "r", "-"),
            ("two failures are forgiven", "hddh", "UUUU"),
            ("and forgotten", "hddhdd", "UUUUUU"),
            ("three refusals drain", "hrrr", "UUU-"),
            ("three dead checks are down", "hddd", "UUUD"),
            ("the last of three decides: dead", "hrrd", "UUUD"),
            ("the last of three decides: refused", "hddr", "UUU-"),
            ("draining stays over two dead checks", "hrrrdd", "UUU---"),
            ("and goes down with the third", "hrrrddd", "UUU---D"),
            ("refusals do not take it down", "hrrrrrrr", "UUU-----"),
            ("a refusal starts the count of dead again", "hrrrddrdd", "UUU------"),
            ("so does a healthy check", "hrrrddhdd", "UUU------"),
            ("draining rises with the second healthy", "hrrrhh", "UUU--U"),
            ("not with one", "hrrrhrh", "UUU----"),
            ("down rises with the second healthy", "hdddhh", "UUUDDU"),
            ("not with one", "hdddhdh", "UUUDDDD"),
            ("an answer leads from down to draining", "hdddr", "UUUD-"),
            ("and a crash loop rests there", "hdddrdrdrdr", "UUUD-------"),
        ] {
            assert_eq!(run(2, 3, outcomes), states, "{why}: {outcomes}");
        }
    }

    #[test]
    fn rise_1_and_fall_1_follow_every_check() {
        assert_eq!(run(1, 1, "hrdhdrh"), "U-DUD-U");
    }

    /// Every state, every outcome, with the run one short of its limit and at it.
    #[test]
    fn transition_table() {
        let (rise, fall) = (2, 3);
        for (state, outcome, run_before, expected) in [
            (Up, Healthy, 0, Up),
            (Up, Healthy, 9, Up),
            (Up, Refused, 1, Up),
            (Up, Refused, 2, Draining),
            (Up, Dead, 1, Up),
            (Up, Dead, 2, Down),
            (Draining, Healthy, 0, Draining),
            (Draining, Healthy, 1, Up),
            (Draining, Refused, 0, Draining),
            (Draining, Refused, 9, Draining),
            (Draining, Dead, 1, Draining),
            (Draining, Dead, 2, Down),
            (Down, Healthy, 0, Down),
            (Down, Healthy, 1, Up),
            (Down, Refused, 0, Draining),
            (Down, Refused, 9, Draining),
            (Down, Dead, 1, Down),
            (Down, Dead, 9, Down),
        ] {
            let mut counter = counter(rise, fall);
            counter.state = state;
            counter.ever_healthy = true;
            for _ in 0..run_before {
                counter.count(outcome);
            }
            assert_eq!(counter.record(outcome), expected, "{state} after {run_before} × {outcome:?}, and one more");
        }
    }

    #[test]
    fn a_suspicion_lasts_until_the_checks_have_decided() {
        for (why, outcomes, news, hurried, state) in [
            ("it is up", "h", true, "", Up),
            ("one good check ends it", "hh", true, "", Up),
            ("one bad check does not", "hd", true, "d", Up),
            ("nor the second, and it is up still", "hdd", true, "dd", Up),
            ("the third decides", "hddd", true, "dd", Down),
            ("so does a third refusal", "hrrr", true, "rr", Draining),
            ("a good one in between", "hdh", true, "d", Up),
            ("nothing is known yet", "", false, "", Down),
        ] {
            let mut counter = counter(2, 3);
            let mut outcomes = outcomes.chars();
            let of = |c| match c {
                'h' => Healthy,
                'r' => Refused,
                _ => Dead,
            };
            outcomes.next().map(|first| counter.record(of(first)));
            assert_eq!((counter.suspect(), counter.is_hurried()), (news, news), "{why}");
            assert!(!counter.suspect(), "{why}: once is enough");
            let mut lasted = String::new();
            for outcome in outcomes {
                counter.record(of(outcome));
                lasted.extend(counter.is_hurried().then_some(outcome));
            }
            assert_eq!((lasted.as_str(), counter.state()), (hurried, state), "{why}");
            assert!(state == Up || !counter.suspect(), "{why}: who gets no clients is not suspected");
        }
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![Just(Healthy), Just(Refused), Just(Dead), Just(Silent)]
    }

    /// The length of the run at the end of `history` in which `belongs` holds.
    fn tail(history: &[Outcome], belongs: impl Fn(Outcome) -> bool) -> usize {
        history.iter().rev().take_while(|o| belongs(**o)).count()
    }

    proptest! {
        #[test]
        fn every_change_has_its_reason(
            rise in 1u32..5,
            fall in 1u32..5,
            history in prop::collection::vec(any_outcome(), 1..80),
        ) {
            let mut counter = counter(rise, fall);
            for end in 1..=history.len() {
                let (seen, outcome) = (&history[..end], history[end - 1]);
                let before = counter.state();
                let decides = counter.next_dead_decides();
                let after = counter.record(outcome);

                let healthy = tail(seen, |o| o == Healthy);
                let failed = tail(seen, |o| o != Healthy);
                let dead = tail(seen, Outcome::is_dead);
                let first = !seen[..end - 1].contains(&Healthy);
                prop_assert_eq!(counter.consecutive() as usize, healthy.max(failed));
                prop_assert_eq!(counter.is_failing(), failed > 0);
                if outcome.is_dead() {
                    prop_assert_eq!(decides, before != Down && after == Down);
                }
                // What each state promises, whatever came before.
                match after {
                    Up => prop_assert!(failed < fall as usize),
                    Draining => prop_assert!(dead < fall as usize),
                    Down => prop_assert!(outcome != Refused),
                }
                prop_assert!(healthy < rise as usize || after == Up);
                prop_assert!(!(first && outcome == Healthy) || after == Up);
                // What each change needs.
                match (before, after) {
                    (Up, Draining) => prop_assert!(outcome == Refused && failed >= fall as usize),
                    (Up, Down) => prop_assert!(outcome.is_dead() && failed >= fall as usize),
                    (Draining, Down) => prop_assert!(dead >= fall as usize),
                    (Down, Draining) => prop_assert!(outcome == Refused),
                    (Draining | Down, Up) => {
                        prop_assert!(outcome == Healthy && (first || healthy >= rise as usize));
                    }
                    _ => prop_assert_eq!(before, after),
                }
            }
        }
    }
}
