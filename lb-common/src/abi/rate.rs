//! How many new connections a virtual server takes, and what is kept to know a client that tries again.

use crate::shared::Shared;

/// What becomes of new connections beyond the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Excess {
    /// A SYN goes through when it comes again.
    #[default]
    Challenge = 0,
    /// They are dropped.
    Drop = 1,
    /// They are refused.
    Reset = 2,
}

impl Excess {
    /// Reads a stored one; what is none counts as the first.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Drop,
            2 => Self::Reset,
            _ => Self::Challenge,
        }
    }
}

/// New connections of a virtual server, as a bucket that leaks at its rate: what a second takes away is as much as it holds. CPUs that count at
/// once may lose some.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Inflow {
    /// In parts of a connection: as many as a second has ticks.
    level: Shared<u64>,
    /// The tick at which something leaked last.
    since: Shared<u32>,
    reserved: u32,
}

impl Inflow {
    /// Ticks that a CPU may be behind another one: it has read the time when its packet came.
    const BEHIND: u32 = 1000;

    /// Whether there is room for one more, which then takes it.
    #[inline(always)]
    pub fn admits(&self, rate: u32, second: u32, now: u32) -> bool {
        let (rate, second) = (u64::from(rate), u64::from(second));
        let elapsed = u64::from(now.wrapping_sub(self.since.load()));
        let mut level = self.level.load();
        if elapsed != 0 && elapsed < u64::from(u32::MAX - Self::BEHIND) {
            self.since.store(now);
            let leaked = if elapsed < second { elapsed * rate } else { second * rate };
            level = level.saturating_sub(leaked);
            self.level.store(level);
        }
        if level + second > second * rate {
            return false;
        }
        self.level.store(level + second);
        true
    }
}

/// Cells of a line of the sieve: what the CPU fetches at once.
const CELLS: usize = 64;
/// Lines of the sieve: 32 MiB. At 400,000 SYNs a second, one in a hundred that have never come looks as if it had.
pub const LINES: u32 = 1 << 19;

/// A part of the sieve that knows SYNs again: a Bloom filter whose bits are times. A SYN sets two cells of one line; it has come before if both are recent.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub struct Sieve([Shared<u8>; CELLS]);

impl Default for Sieve {
    fn default() -> Self {
        Self([const { Shared::new(0) }; CELLS])
    }
}

impl Sieve {
    /// Ticks of one time, and how many times there are: 65 seconds at 250 ticks a second, 16 at 1,000. A note that is so old may look new.
    const SLICE: u32 = 64;
    const SLICES: u32 = 255;

    /// Notes a SYN by its hash; whether it has been noted in the last four seconds and a half: as long as a client waits after its first SYNs, should one
    /// of these be lost.
    #[inline(always)]
    pub fn notes(&self, hash: u32, now: u64, second: u32) -> bool {
        // 0 is never.
        let slice = (now / u64::from(Self::SLICE) % u64::from(Self::SLICES)) as u32 + 1;
        let recent = 9 * second / 2 / Self::SLICE + 1;
        let [first, other] = [&self.0[hash as usize % CELLS], &self.0[(hash >> 8) as usize % CELLS]];
        let came = |cell: &Shared<u8>| {
            let noted = u32::from(cell.load());
            noted != 0 && (slice + Self::SLICES - noted) % Self::SLICES <= recent
        };
        let both = came(first) & came(other);
        first.store(slice as u8);
        other.store(slice as u8);
        both
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::flow::mix;

    const SECOND: u32 = 250;

    #[test]
    fn a_second_takes_what_the_rate_says() {
        let inflow = Inflow::default();
        let taken = |now: u32, tries: u32| (0..tries).filter(|_| inflow.admits(100, SECOND, now)).count();
        assert_eq!(taken(1_000, 300), 100, "a second's worth at once");
        assert_eq!(taken(1_000, 1), 0);
        assert_eq!((taken(999, 1), taken(1_000, 1)), (0, 0), "another CPU is a tick behind");
        assert_eq!(taken(1_005, 10), 2, "and then as time goes by");
        assert_eq!(taken(1_250, 1_000), 98);
        assert_eq!(taken(3_000_000_000, 1_000), 100, "never more, however long nothing came");
        assert_eq!(taken(u32::MAX, 1_000), 100);
        assert_eq!(taken(4, 1_000), 2, "ticks wrap round: five of them");
        let each = (5..1_004).map(|now| taken(now, 10)).sum::<usize>();
        assert!((398..=401).contains(&each), "{each}");
    }

    #[test]
    fn what_comes_again_is_known_for_some_seconds() {
        for second in [100, 250, 1_000] {
            for start in [0, 12_345, u64::from(u32::MAX)] {
                let (sieve, hash) = (Sieve::default(), 0x1234_5678);
                let at = |ticks: u32| sieve.notes(hash, start + u64::from(ticks), second);
                assert!(!at(0));
                assert!(at(second), "after a second, at {second} and {start}");
                assert!(at(3 * second), "after two more");
                assert!(at(7 * second), "after four more");
                assert!(!at(12 * second + 128), "five are too many");
                assert!(!sieve.notes(hash ^ 0x0100, start + u64::from(12 * second + 128), second), "another");
            }
        }
    }

    /// What [`LINES`] promises, at a thousandth of the size: 390 SYNs a second.
    #[test]
    fn a_flood_rarely_looks_as_if_it_had_come() {
        let sieve: Vec<Sieve> = (0..LINES / 1024).map(|_| Sieve::default()).collect();
        let (slices, each) = (200, 100);
        let mut passed = 0;
        for slice in 0..slices {
            for number in 0..each {
                let hash = mix(slice * each + number);
                let line = &sieve[hash as usize % sieve.len()];
                passed += u32::from(line.notes(mix(hash), u64::from(slice * Sieve::SLICE), SECOND));
            }
        }
        assert!((1..slices * each / 40).contains(&passed), "{passed} of {}", slices * each);
    }
}
