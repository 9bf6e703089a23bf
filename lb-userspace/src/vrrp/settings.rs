//! What one virtual router of this node is told from outside, and what follows from it in exact integers: its effective
//! priority and its timers.

use std::{net::IpAddr, time::Duration};

use super::{Moment, Version};

/// The priority of the node that owns the addresses; no condition moves it.
pub(super) const OWNER: u8 = 255;

/// One virtual router as this node takes part in it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub version: Version,
    /// Before conditions are counted, 1 to 255.
    pub priority: u8,
    /// Between two advertisements; above zero, whole seconds in version 2, steps of 10 ms in version 3.
    pub interval: Duration,
    /// How many advertisements a backup misses before it takes over, and for how many intervals the master's lease runs.
    /// Unequal numbers on two nodes take the difference from the pause between lease and takeover.
    pub down_factor: u8,
    pub preempt: bool,
    /// For how long a lower master must be heard before it is preempted.
    pub preempt_delay: Duration,
    /// Instances that name the same group are master together or not at all.
    pub sync_group: Option<String>,
    /// The address that advertisements are sent from; none while the interface is down or has no address.
    pub source: Option<IpAddr>,
    pub condition: Condition,
    /// Of the process before this one: if it still runs, this one goes on as master at once.
    pub lease: Option<Moment>,
}

/// In how long a time all backups have their turns, from the highest priority to the lowest: 78 µs for each step, about as long as an
/// advertisement is on its way.
const TURNS: Duration = Duration::from_millis(20);

/// What tracking says of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Sum of the weights that count now.
    pub adjustment: i16,
    /// Something failed that forbids mastership whatever the priority.
    pub fault: bool,
}

impl Settings {
    /// May be advertised.
    pub(super) fn is_able(&self) -> bool {
        self.source.is_some() && !self.condition.fault
    }

    /// The priority that is advertised and compared.
    pub(super) fn effective_priority(&self) -> u8 {
        if self.priority == OWNER {
            return OWNER;
        }
        let sum = i32::from(self.priority) + i32::from(self.condition.adjustment);
        u8::try_from(sum.clamp(1, i32::from(OWNER) - 1)).expect("clamped")
    }

    /// For how long an advertisement claims the VIPs: the down interval without the skew. A backup that heard the last one
    /// takes over after the lease, by the time on the way and its own skew, which is at least 2/256 of the interval. Each
    /// last one that was lost on the way takes an interval from that.
    pub(super) fn lease_length(&self) -> Duration {
        self.interval * u32::from(self.down_factor)
    }

    /// RFC 9568 section 6.1: the higher the priority, the sooner. RFC 3768 counts in parts of a second, whatever the
    /// interval.
    pub(super) fn skew(&self, master_interval: Duration) -> Duration {
        self.share(self.skew_unit(master_interval))
    }

    /// How long a backup waits that was told that the master leaves: only so long that the best of several is the first. The RFC has
    /// the skew time here, too, and so most of an interval in which nobody has the VIPs. Two that promote at nearly the same time
    /// settle it with their first advertisements.
    pub(super) fn turn(&self, master_interval: Duration) -> Duration {
        self.share(self.skew_unit(master_interval).min(TURNS))
    }

    /// How long a backup waits for a master that advertises every `master_interval`.
    pub(super) fn down_interval(&self, master_interval: Duration) -> Duration {
        master_interval * u32::from(self.down_factor) + self.skew(master_interval)
    }

    fn skew_unit(&self, master_interval: Duration) -> Duration {
        match self.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => master_interval,
        }
    }

    fn share(&self, of: Duration) -> Duration {
        of * (256 - u32::from(self.effective_priority())) / 256
    }
}

#[cfg(test)]
impl Settings {
    /// Version 3, each 100 ms, at a link that works.
    pub(super) fn example(priority: u8, source: IpAddr) -> Self {
        Self {
            version: Version::V3,
            priority,
            interval: Duration::from_millis(100),
            down_factor: 3,
            preempt: true,
            preempt_delay: Duration::ZERO,
            sync_group: None,
            source: Some(source),
            condition: Condition::default(),
            lease: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(version: Version, priority: u8, interval: Duration) -> Settings {
        Settings { version, interval, ..Settings::example(priority, [192, 0, 2, 1].into()) }
    }

    #[test]
    fn timers_are_exact() {
        let (second, fast) = (Duration::from_secs(1), Duration::from_millis(10));
        for (version, priority, interval, skew) in [
            (Version::V2, 100, second, 609_375_000),
            (Version::V2, 100, second * 5, 609_375_000),
            (Version::V2, 1, second, 996_093_750),
            (Version::V2, 254, second, 7_812_500),
            (Version::V2, 255, second, 3_906_250),
            (Version::V3, 100, second, 609_375_000),
            (Version::V3, 100, second * 5, 3_046_875_000),
            (Version::V3, 1, fast, 9_960_937),
            (Version::V3, 254, fast, 78_125),
            (Version::V3, 255, fast, 39_062),
            (Version::V3, 1, Duration::from_millis(40_950), 40_790_039_062),
        ] {
            let settings = settings(version, priority, interval);
            let skew = Duration::from_nanos(skew);
            assert_eq!(settings.skew(interval), skew, "{version}, {priority}, {interval:?}");
            assert_eq!(settings.down_interval(interval), interval * 3 + skew);
            assert_eq!(settings.lease_length(), interval * 3);
        }
    }

    #[test]
    fn turns_are_short_and_never_longer_than_the_skew() {
        for (version, priority, interval, turn) in [
            (Version::V2, 98, 1000, 12_343_750),
            (Version::V2, 98, 5000, 12_343_750),
            (Version::V3, 98, 10, 6_171_875),
            (Version::V3, 98, 20, 12_343_750),
            (Version::V3, 98, 100, 12_343_750),
            (Version::V3, 254, 100, 156_250),
            (Version::V3, 1, 40_950, 19_921_875),
        ] {
            let interval = Duration::from_millis(interval);
            let settings = settings(version, priority, interval);
            assert_eq!(settings.turn(interval), Duration::from_nanos(turn), "{version}, {priority}, {interval:?}");
            assert!(settings.turn(interval) <= settings.skew(interval));
        }
    }

    #[test]
    fn weights_move_the_priority_within_its_limits() {
        for (base, adjustment, effective) in [
            (100, 0, 100),
            (100, 50, 150),
            (100, -50, 50),
            (100, -253, 1),
            (254, -253, 1),
            (100, 154, 254),
            (100, 155, 254),
            (100, i16::MAX, 254),
            (100, i16::MIN, 1),
            (255, -253, 255),
            (255, 1, 255),
        ] {
            let condition = Condition { adjustment, fault: false };
            let settings = Settings { condition, ..settings(Version::V3, base, Duration::from_secs(1)) };
            assert_eq!(settings.effective_priority(), effective, "{base} and {adjustment}");
        }
    }
}
