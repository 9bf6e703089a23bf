//! When checks start and how long a host may stay silent, so that a lost backend is found in `interval × fall + 1 s`.
//!
//! Let a backend be lost right after a good check that started at time 0, with interval *I*:
//!
//! * The wait after a good check is *I* ± jitter, late by at most [`LATE`]; after a failed one jitter only shortens it.
//! * Waits count from the start of a check. A check to which the host says nothing, not even a TCP acknowledgement,
//!   ends as dead after min(timeout, *I*), so that it never delays the next. Failing check *n* therefore starts at
//!   *n* × *I* + [`LATE`] at the latest.
//! * The check that decides, number `fall`, gives the host only [`DECIDING`]. Earlier ones have waited longer, and a TCP
//!   answer takes a round trip. Only silence is cut short: a host that answers TCP has the whole timeout for its HTTP answer.
//!
//! So the decision falls at `fall` × *I* + 0.2 s + 0.6 s at the latest, whatever the timeout, and the rest of the second is for
//! the kernel's timers; where TCP is refused, as after the death of a process, the 0.6 s are spared. A backend that accepts and
//! then hangs is another matter: each of its checks takes the whole timeout, so it drains after
//! *I* + `fall` × max(*I*, timeout) at the latest.
//!
//! Where clients get no answer from a backend that is up, it is checked at once, and then every [`HURRY`], each check with the silence of a
//! deciding one, until the checks have decided: `fall` × 0.2 s after a client was refused, `fall` × 0.6 s after one was left unanswered.

use std::time::Duration;

use crate::config::model::Check;

/// The most that jitter may delay a check.
const LATE: Duration = Duration::from_millis(200);

/// How long a host may be silent in the check that would take its backend down.
const DECIDING: Duration = Duration::from_millis(600);

/// From the start of a check to the start of the next of a backend that is suspected.
pub(super) const HURRY: Duration = Duration::from_millis(200);

/// From the start of a check to the start of the next where the backend is suspected.
pub(super) fn hurry(check: &Check) -> Duration {
    check.interval.min(HURRY)
}

/// From the start of a check to the start of the next. `roll` is random in −1..=1.
pub(super) fn wait(check: &Check, failing: bool, roll: f64) -> Duration {
    let share = check.interval.mul_f64(f64::from(check.jitter_percent) / 100.0);
    let shift = share.mul_f64(roll.abs());
    if failing || roll < 0.0 { check.interval - shift } else { check.interval + shift.min(LATE) }
}

/// How long a host may say nothing at all before the check ends as dead; `short` if that decides, or the backend is suspected.
pub(super) fn silence(check: &Check, short: bool) -> Duration {
    let usual = check.timeout.min(check.interval);
    if short { usual.min(DECIDING) } else { usual }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::config::model::CheckKind;

    fn check(interval_ms: u64, timeout_ms: u64, fall: u32, jitter_percent: u8) -> Check {
        Check {
            kind: CheckKind::Tcp,
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_millis(timeout_ms),
            rise: NonZeroU32::MIN,
            fall: NonZeroU32::new(fall).unwrap(),
            jitter_percent,
            port: None,
        }
    }

    #[test]
    fn jitter_goes_both_ways_only_while_healthy() {
        let check = check(2000, 3000, 3, 10);
        for (failing, roll, expected) in [
            (false, 0.0, 2000),
            (false, -1.0, 1800),
            (false, 0.5, 2100),
            (false, 1.0, 2200),
            (true, -1.0, 1800),
            (true, 1.0, 1800),
            (true, 0.0, 2000),
        ] {
            let waited = wait(&check, failing, roll);
            assert_eq!(waited, Duration::from_millis(expected), "failing {failing}, roll {roll}");
        }
    }

    proptest! {
        /// The arithmetic of the module's header, for any configuration and any dice.
        #[test]
        fn silent_host_is_found_in_time(
            interval in 100u64..20_000,
            timeout in 100u64..20_000,
            jitter in 0u8..=50,
            rolls in prop::collection::vec(-1.0f64..=1.0, 1..8),
        ) {
            let fall = rolls.len() as u32;
            let check = check(interval, timeout, fall, jitter);
            let mut start = Duration::ZERO;
            let mut decided = Duration::ZERO;
            for (failures, roll) in rolls.iter().enumerate() {
                start = decided.max(start + wait(&check, failures > 0, *roll));
                decided = start + silence(&check, failures as u32 + 1 == fall);
            }
            prop_assert!(decided <= check.interval * fall + LATE + DECIDING);
        }

        #[test]
        fn wait_stays_within_the_share(
            interval in 1u64..100_000,
            jitter in 0u8..=50,
            failing: bool,
            roll in -1.0f64..=1.0,
        ) {
            let check = check(interval, 1, 1, jitter);
            let share = check.interval.mul_f64(f64::from(jitter) / 100.0);
            let waited = wait(&check, failing, roll);
            prop_assert!(waited >= check.interval - share);
            prop_assert!(waited <= check.interval + share);
        }
    }
}
