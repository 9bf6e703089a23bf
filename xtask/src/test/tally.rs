//! Counting what runners report, so that the closing line tells the truth about all of them.

use std::{iter::Sum, ops::AddAssign, process::ExitStatus};

/// Tests that passed, failed and were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Tally {
    /// One check that has no tests inside.
    pub(crate) fn single(passed: bool) -> Self {
        Self { passed: passed.into(), failed: (!passed).into(), ignored: 0 }
    }

    /// What a line of libtest's (`test result: ok. 5 passed; 0 failed; 1 ignored; …`) or of one of our own runners
    /// (`packet table: 1,234 passed, 0 failed`) says; other lines say nothing.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let line = line.trim();
        let counts = match line.strip_prefix("test result: ") {
            Some(result) => result.split_once(". ")?.1,
            None => line.rsplit(": ").next()?,
        };
        let count = |what: &str| {
            let mut parts = counts.split("; ").flat_map(|part| part.split(", "));
            let number = parts.find_map(|part| part.strip_suffix(what)?.strip_suffix(' '))?;
            number.replace(',', "").parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored").unwrap_or(0) })
    }

    /// A runner that fails without naming a failed test (a crash, a compile error), or that reports nothing, has
    /// failed once.
    pub(crate) fn judge(reported: Option<Self>, status: ExitStatus) -> Self {
        let fine = status.success() && reported.is_some();
        let tally = reported.unwrap_or_default();
        if fine || tally.failed > 0 { tally } else { Self { failed: 1, ..tally } }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn tally(passed: u32, failed: u32, ignored: u32) -> Tally {
        Tally { passed, failed, ignored }
    }

    #[test]
    fn lines_of_both_kinds_of_runner_are_read() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let bad = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tally::read(ok), Some(tally(12, 0, 1)));
        assert_eq!(Tally::read(bad), Some(tally(2, 1, 0)));
        assert_eq!(Tally::read("40 passed, 2 failed\r"), Some(tally(40, 2, 0)));
        assert_eq!(Tally::read("6.1.0-cloud-amd64  packet table: 1,234 passed, 0 failed"), Some(tally(1234, 0, 0)));
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in
            ["", "running 3 tests", "3 passed", "all 3 passed, 0 failed so far", "passed, failed", "test result: ok"]
        {
            assert_eq!(Tally::read(line), None, "{line}");
        }
    }

    #[test]
    fn silence_and_crashes_are_failures() {
        let (success, failure) = (ExitStatus::from_raw(0), ExitStatus::from_raw(101 << 8));
        for (reported, status, judged) in [
            (Some(tally(5, 0, 0)), success, tally(5, 0, 0)),
            (Some(tally(5, 1, 0)), failure, tally(5, 1, 0)),
            (Some(tally(5, 0, 0)), failure, tally(5, 1, 0)),
            (Some(tally(0, 0, 0)), success, tally(0, 0, 0)),
            (None, success, tally(0, 1, 0)),
            (None, failure, tally(0, 1, 0)),
        ] {
            assert_eq!(Tally::judge(reported, status), judged, "{reported:?}, {status}");
        }
    }
}
