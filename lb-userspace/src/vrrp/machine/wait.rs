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
    Skew,
    Look,
    Away,
    Ready,
}

impl Kind {
    pub(super) fn since(self, since: Moment) -> Wait {
        Wait { kind: self, since }
    }
}

impl Wait {
    pub(super) fn deadline(self, settings: &Settings, master_interval: Duration) -> Option<Moment> {
        let length = match self.kind {
            Kind::Listen | Kind::Down => settings.down_interval(master_interval),
            Kind::Skew => settings.skew(master_interval),
            Kind::Look => master_interval + settings.skew(master_interval),
            // A peer that lost our priority 0 is through with its own down interval by then.
            Kind::Away => settings.down_interval(master_interval) * 2,
            Kind::Ready => return None,
        };
        Some(self.since + length)
    }

    /// What comes of it by `now`, which may be later than the `alarm` that was set.
    pub(super) fn after(self, now: Moment, alarm: Moment, settings: &Settings, master_interval: Duration) -> Self {
        let Some(end) = self.deadline(settings, master_interval) else {
            return self;
        };
        // While we slept, the socket may have run over, or the whole machine stood still and nothing could arrive. One
        // look is enough; only who could not keep a lease either has to look again.
        let patience = match self.kind {
            Kind::Look => master_interval * u32::from(settings.down_factor).saturating_sub(1).max(1),
            Kind::Listen | Kind::Down | Kind::Skew | Kind::Away | Kind::Ready => master_interval / 4,
        };
        let look = Kind::Look.since(now);
        if now - alarm > patience && look.deadline(settings, master_interval) > Some(end) {
            look
        } else if end <= now {
            Kind::Ready.since(self.since)
        } else {
            self
        }
    }

    /// When to look at the clock next: not later than an interval from now, since only who looks that often knows that it
    /// has not slept.
    pub(super) fn alarm(self, now: Moment, settings: &Settings, master_interval: Duration) -> Moment {
        let tick = now + master_interval;
        self.deadline(settings, master_interval).map_or(tick, |end| end.min(tick))
    }
}
