//! Successes and failures in a row, as keepalived counts them for its scripts. Pure.

use std::num::NonZeroU32;

/// Whether something is good, by its latest runs. The first run decides by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    rise: NonZeroU32,
    fall: NonZeroU32,
    /// `None` before the first run.
    good: Option<bool>,
    /// Runs in a row that said otherwise.
    against: u32,
}

impl Tally {
    pub(super) fn new(rise: NonZeroU32, fall: NonZeroU32) -> Self {
        Self { rise, fall, good: None, against: 0 }
    }

    /// Counts a run; true if it made a difference.
    pub(super) fn count(&mut self, success: bool) -> bool {
        let needed = if success { self.rise } else { self.fall }.get();
        match self.good {
            Some(good) if good == success => {
                self.against = 0;
                false
            }
            Some(_) if self.against + 1 < needed => {
                self.against += 1;
                false
            }
            _ => {
                self.good = Some(success);
                self.against = 0;
                true
            }
        }
    }

    pub(super) fn is_good(&self) -> bool {
        self.good == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs, `+` or `-`, and what is thought after each.
    const TABLE: &[(u32, u32, &str, &str)] = &[
        (1, 1, "+-+-", "+-+-"),
        (1, 1, "-+", "-+"),
        // The first decides alone, whatever rise and fall are.
        (2, 10, "+", "+"),
        (2, 10, "-", "-"),
        (2, 3, "+--", "++++"),
        (2, 3, "+---", "+++-"),
        (2, 3, "+--+--", "++++++"),
        (2, 3, "+---+", "+++--"),
        (2, 3, "+---++", "+++--+"),
        (2, 3, "+---+-+-++", "+++------+"),
        (3, 1, "-++-+++", "------+"),
    ];

    #[test]
    fn it_takes_so_many_in_a_row() {
        for (rise, fall, runs, expected) in TABLE {
            let count = |count| NonZeroU32::new(count).unwrap();
            let mut tally = Tally::new(count(*rise), count(*fall));
            assert!(!tally.is_good());
            let mut before = None;
            for (index, (run, expected)) in runs.bytes().zip(expected.bytes()).enumerate() {
                let changed = tally.count(run == b'+');
                let good = tally.is_good();
                assert_eq!(good, expected == b'+', "rise {rise}, fall {fall}, run {index} of {runs}");
                assert_eq!(changed, before != Some(good), "rise {rise}, fall {fall}, run {index} of {runs}");
                before = Some(good);
            }
        }
    }
}
