//! The clock of the thread, and when a packet arrived by it.
//!
//! `CLOCK_BOOTTIME` counts what passed while the machine was suspended: a master that slept must know that it did. The kernel stamps packets
//! by the wall clock, which may be set in between.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::vrrp::Moment;

/// Now. A kernel without these clocks is older than any that runs this program.
pub(super) fn now() -> Moment {
    Moment(read(ClockId::CLOCK_BOOTTIME))
}

/// The time of day since 1970.
pub(super) fn time_of_day() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Turns the kernel's stamps of one socket into moments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    /// When the socket was last found empty: whatever is in it arrived later, whatever became of the wall clock.
    emptied: Moment,
    /// What the wall clock was ahead of ours by, then.
    ahead: Duration,
}

impl Stamps {
    /// To be called when the socket was found empty at `now`, by the wall clock at `time_of_day`.
    pub(super) fn emptied(&mut self, now: Moment, time_of_day: Duration) {
        *self = Self { emptied: now, ahead: time_of_day.saturating_sub(now.0) };
    }

    /// When a packet arrived that was stamped `stamp` and is read `now`, by the wall clock at `time_of_day`.
    /// If the clock was set in between, the stamp may be by the clock from before.
    pub(super) fn arrival(&self, stamp: Option<Duration>, now: Moment, time_of_day: Duration) -> Moment {
        let Some(stamp) = stamp else { return now };
        let by = |ahead: Duration| Moment(stamp.saturating_sub(ahead));
        let arrival = by(time_of_day.saturating_sub(now.0));
        let plausible = |moment: &Moment| (self.emptied..=now).contains(moment);
        let before = Some(by(self.ahead)).filter(plausible);
        if plausible(&arrival) { arrival } else { before.unwrap_or(arrival).clamp(self.emptied, now.max(self.emptied)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The wall clock is 1,000 s ahead of the machine's; the socket was empty at 5,000 ms.
    fn stamps() -> Stamps {
        let mut stamps = Stamps::default();
        stamps.emptied(Moment(ms(5_000)), ms(1_005_000));
        stamps
    }

    #[test]
    fn a_stamp_is_as_old_as_the_wall_clock_says() {
        let table = [
            // (stamp, now, time of day, arrival)
            (1_005_090, 5_100, 1_005_100, 5_090),
            (1_005_100, 5_100, 1_005_100, 5_100),
            // From before the socket was empty, and from the future: not possible.
            (1_004_000, 5_100, 1_005_100, 5_000),
            (1_005_200, 5_100, 1_005_100, 5_100),
        ];
        for (stamp, now, day, arrival) in table {
            let found = stamps().arrival(Some(ms(stamp)), Moment(ms(now)), ms(day));
            assert_eq!(found, Moment(ms(arrival)), "stamped {stamp}, read at {now}");
        }
        assert_eq!(stamps().arrival(None, Moment(ms(5_100)), ms(1_005_100)), Moment(ms(5_100)));
    }

    #[test]
    fn a_stamp_from_before_a_clock_step_is_read_by_the_clock_from_before() {
        let table = [
            // Set forward by an hour after the stamp, back by an hour, and then a stamp by the new clock.
            (1_005_090, 5_100, 4_605_100, 5_090),
            (1_005_090, 5_100, 1_105, 5_090),
            (4_605_098, 5_100, 4_605_100, 5_098),
        ];
        for (stamp, now, day, arrival) in table {
            let found = stamps().arrival(Some(ms(stamp)), Moment(ms(now)), ms(day));
            assert_eq!(found, Moment(ms(arrival)), "stamped {stamp}, the clock says {day}");
        }
    }

    #[test]
    fn both_clocks_go() {
        let (a, day) = (now(), time_of_day());
        assert!(a > Moment::default() && day > ms(1_600_000_000_000));
        assert!(now() >= a);
    }
}
