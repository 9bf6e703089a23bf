//! What a backup waits for, and how long.

use std::time::Duration;

use crate::vrrp::{Moment, settings::Settings};

/// A wait and when it began. What was received before that is history and resets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) kind: Kind,
    pub(super) since: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Listen,
    Down,
    Vacant,
    Skew,
    Look,
    Ready,
}

impl Kind {
    pub(super) fn since(self, since: Moment) -> Wait {
        Wait { kind: self, since }
    }
}

/// What decides how long a wait is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace<'a> {
    pub(super) settings: &'a Settings,
    pub(super) master_interval: Duration,
    /// No wait ends earlier.
    pub(super) away_until: Moment,
}

impl Wait {
    pub(super) fn deadline(self, pace: Pace<'_>) -> Option<Moment> {
        let Pace { settings, master_interval, away_until } = pace;
        let length = match self.kind {
            Kind::Listen | Kind::Down => settings.down_interval(master_interval),
            Kind::Vacant => settings.turn(master_interval),
            Kind::Skew => settings.skew(master_interval),
            Kind::Look => master_interval + settings.skew(master_interval),
            Kind::Ready => return None,
        };
        Some(away_until.max(self.since + length))
    }

    /// What comes of it by `now`, which may be later than the `alarm` that was set.
    pub(super) fn after(self, now: Moment, alarm: Moment, pace: Pace<'_>) -> Self {
        let Some(end) = self.deadline(pace) else {
            return self;
        };
        // While we slept, the socket may have run over, or the whole machine stood still and nothing could arrive. One
        // look is enough; only who could not keep a lease either has to look again.
        let patience = match self.kind {
            Kind::Look => pace.master_interval * u32::from(pace.settings.down_factor).saturating_sub(1).max(1),
            Kind::Listen | Kind::Down | Kind::Vacant | Kind::Skew | Kind::Ready => pace.master_interval / 4,
        };
        let look = Kind::Look.since(now);
        if now - alarm > patience && look.deadline(pace) > Some(end) {
            look
        } else if end <= now {
            Kind::Ready.since(self.since)
        } else {
            self
        }
    }

    /// When to look at the clock next: not later than an interval from now, since only who looks that often knows that it
    /// has not slept.
    pub(super) fn alarm(self, now: Moment, pace: Pace<'_>) -> Moment {
        let tick = now + pace.master_interval;
        self.deadline(pace).map_or(tick, |end| end.min(tick))
    }
}
