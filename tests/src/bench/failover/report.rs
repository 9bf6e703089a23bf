//! The outcome, as a table for people and as lines for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Result, bail};
use serde::Serialize;

use super::{Cell, Event, Profile, System, scene::Sample};
use crate::bench::rank;
use crate::bench::report::json_lines;

/// Failures after which a cell is not tried again.
const PATIENCE: usize = 2;

/// What became of a cell's runs.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    samples: Vec<Sample>,
    failures: Vec<String>,
}

/// Every cell that was asked for, also those that could not be measured.
#[derive(Debug)]
pub struct Report {
    kernel: String,
    lines: Vec<Line>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Line {
    pub(super) event: &'static str,
    pub(super) system: &'static str,
    pub(super) profile: &'static str,
    pub(super) n: usize,
    pub(super) min_ms: Option<f64>,
    pub(super) median_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) owners_max: Option<usize>,
    /// Why runs are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip)]
    target: Option<Target>,
}

/// What xvip must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Target {
    p99: Duration,
    owners: usize,
}

impl Outcome {
    pub(super) fn add(&mut self, sample: Result<Sample>) {
        match sample {
            Ok(sample) => self.samples.push(sample),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    pub(super) fn gave_up(&self) -> bool {
        self.failures.len() >= PATIENCE
    }
}

impl Report {
    pub(super) fn new(cells: &[Cell], outcomes: &BTreeMap<Cell, Outcome>) -> Result<Self> {
        let lines: Vec<Line> = cells.iter().map(|cell| Line::new(cell, &outcomes[cell])).collect();
        if lines.iter().all(|line| line.n == 0) {
            let reasons: Vec<&str> = lines.iter().filter_map(|line| line.error.as_deref()).collect();
            bail!("nothing could be measured: {}", reasons.join("; "));
        }
        let uname = nix::sys::utsname::uname()?;
        Ok(Self { kernel: uname.release().to_string_lossy().into_owned(), lines })
    }

    /// One JSON object a line.
    pub fn json(&self) -> Result<String> {
        Ok(json_lines(&self.lines)?)
    }

    /// Whether every run of every cell could be made.
    pub fn is_whole(&self) -> bool {
        self.lines.iter().all(|line| line.error.is_none())
    }
}

impl Line {
    fn new(cell: &Cell, outcome: &Outcome) -> Self {
        let mut times: Vec<Duration> = outcome.samples.iter().map(|sample| sample.time).collect();
        times.sort();
        let missing = outcome.failures.first().map(|first| {
            let count = outcome.failures.len();
            format!("{count} failed: {}", first.lines().next().unwrap_or_default())
        });
        let unasked = (times.is_empty() && missing.is_none()).then(|| "no run was made".to_owned());
        Self {
            event: cell.event.name(),
            system: cell.system.name(),
            profile: cell.profile.name(),
            n: times.len(),
            min_ms: rank(&times, 0),
            median_ms: rank(&times, 50),
            p99_ms: rank(&times, 99),
            owners_max: outcome.samples.iter().map(|sample| sample.owners).max(),
            error: missing.or(unasked),
            target: target(cell),
        }
    }
}

fn target(cell: &Cell) -> Option<Target> {
    if cell.system != System::Xvip {
        return None;
    }
    let ms = match (cell.event, cell.profile) {
        (Event::PowerOff, Profile::Default) => 400,
        (Event::PowerOff, Profile::Fast) => 100,
        (Event::OrderlyStop | Event::Kill, _) => 20,
        (Event::Heal, _) => 100,
        (Event::GarpLost, _) => 300,
        // Two checks half a second apart, and 100 ms.
        (Event::ServiceDeath, _) => 1100,
        (Event::Stall, _) | (Event::Busy, Profile::Default) => 0,
        (Event::Busy, Profile::Fast) => return None,
    };
    Some(Target { p99: Duration::from_millis(ms), owners: 1 })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}, milliseconds\n", self.kernel)?;
        writeln!(
            f,
            "{:<14} {:<11} {:<8} {:>3} {:>9} {:>9} {:>9} {:>7}   target for p99 and owners",
            "event", "system", "profile", "n", "min", "median", "p99", "owners"
        )?;
        for line in &self.lines {
            write!(f, "{:<14} {:<11} {:<8} {:>3}", line.event, line.system, line.profile, line.n)?;
            for time in [line.min_ms, line.median_ms, line.p99_ms] {
                write!(f, " {:>9}", time.map_or("-".to_owned(), |time| format!("{time:.1}")))?;
            }
            write!(f, " {:>7}", line.owners_max.map_or("-".to_owned(), |owners| owners.to_string()))?;
            if let Some(Target { p99, owners }) = line.target {
                let within = line.p99_ms.is_some_and(|time| time <= p99.as_secs_f64() * 1e3);
                let reached = if within && line.owners_max <= Some(owners) { "reached" } else { "missed" };
                write!(f, "   ≤ {}, {owners}: {reached}", p99.as_millis())?;
            }
            if let Some(error) = &line.error {
                write!(f, "   {error}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: u64, owners: usize) -> Result<Sample> {
        Ok(Sample { time: Duration::from_millis(ms), owners })
    }

    fn cell(system: System) -> Cell {
        Cell { event: Event::PowerOff, system, profile: Profile::Default }
    }

    #[test]
    fn ranks_are_samples() {
        let times: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!([0, 50, 99].map(|percent| rank(&times, percent).unwrap()), [1.0, 10.0, 20.0]);
        assert_eq!(rank(&[Duration::from_micros(1234)], 99), Some(1.23));
        assert_eq!(rank(&[], 50), None);
    }

    #[test]
    fn a_line_is_what_programs_expect_and_a_missing_cell_says_why() {
        let mut outcomes = BTreeMap::new();
        let mut measured = Outcome::default();
        [sample(300, 1), sample(401, 1), sample(350, 2)].into_iter().for_each(|run| measured.add(run));
        outcomes.insert(cell(System::Xvip), measured);
        let mut failed = Outcome::default();
        failed.add(Err(anyhow::anyhow!("`keepalived` is not installed")));
        assert!(!failed.gave_up());
        outcomes.insert(cell(System::Keepalived), failed);
        let report = Report::new(&[cell(System::Xvip), cell(System::Keepalived)], &outcomes).unwrap();
        assert_eq!(
            report.json().unwrap(),
            r#"{"event":"power-off","system":"xvip","profile":"default","n":3,"min_ms":300.0,"median_ms":350.0,"p99_ms":401.0,"owners_max":2}
{"event":"power-off","system":"keepalived","profile":"default","n":0,"min_ms":null,"median_ms":null,"p99_ms":null,"owners_max":null,"error":"1 failed: `keepalived` is not installed"}"#
        );
        assert!(!report.is_whole());
        let table = report.to_string();
        assert!(table.contains("≤ 400, 1: missed") && table.contains("is not installed"), "{table}");
    }

    #[test]
    fn a_target_is_reached_by_time_and_owners() {
        for (owners, verdict) in [(1, "reached"), (2, "missed")] {
            let mut outcome = Outcome::default();
            outcome.add(sample(400, owners));
            let outcomes = BTreeMap::from([(cell(System::Xvip), outcome)]);
            let table = Report::new(&[cell(System::Xvip)], &outcomes).unwrap().to_string();
            assert!(table.contains(verdict), "{table}");
        }
    }
}
