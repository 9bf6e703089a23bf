//! The outcome, as a table for people and as lines for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    Event, Mode, Options,
    scene::{Sample, Samples},
};
use crate::bench::rank;
use crate::bench::report::json_lines;

/// What became of the streams, by mode and event.
#[derive(Debug)]
pub struct Report {
    streams: u32,
    pub lines: Vec<Line>,
    /// In what mode, by what event and why streams were lost, and how many.
    pub losses: BTreeMap<String, usize>,
}

/// One event in one mode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub mode: &'static str,
    pub event: &'static str,
    pub rounds: usize,
    pub streams: u32,
    pub lost: usize,
    pub survived_percent: f64,
    pub gap_min_ms: Option<f64>,
    pub gap_median_ms: Option<f64>,
    pub gap_p99_ms: Option<f64>,
    pub gap_max_ms: Option<f64>,
    /// Segments, of client and backends together, in all rounds.
    pub retransmitted: u64,
    pub spurious: u64,
    #[serde(skip)]
    target: Option<Target>,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Target {
    survived_percent: f64,
    gap: Option<Duration>,
}

impl Report {
    pub(super) fn new(options: &Options, samples: Samples) -> Self {
        let lines = samples.iter().map(|(what, sample)| Line::new(*what, options, sample)).collect();
        let mut losses = BTreeMap::new();
        for ((mode, event), sample) in samples {
            for failure in sample.lost {
                *losses.entry(format!("{} in {}: {failure}", event.name(), mode.name())).or_default() += 1;
            }
        }
        Self { streams: options.streams, lines, losses }
    }

    /// One JSON object a line.
    pub fn json(&self) -> Result<String> {
        Ok(json_lines(&self.lines)?)
    }

    /// Whether every target is reached.
    pub fn is_reached(&self) -> bool {
        self.lines.iter().all(|line| line.is_reached() != Some(false))
    }

    pub fn line(&self, mode: Mode, event: Event) -> Option<&Line> {
        self.lines.iter().find(|line| (line.mode, line.event) == (mode.name(), event.name()))
    }
}

impl Line {
    fn new((mode, event): (Mode, Event), options: &Options, sample: &Sample) -> Self {
        let mut gaps = sample.gaps.clone();
        gaps.sort();
        let all = (sample.rounds * options.streams as usize).max(1);
        let survived = all.saturating_sub(sample.lost.len());
        Self {
            mode: mode.name(),
            event: event.name(),
            rounds: sample.rounds,
            streams: options.streams,
            lost: sample.lost.len(),
            survived_percent: (survived as f64 / all as f64 * 1e5).floor() / 1e3,
            gap_min_ms: rank(&gaps, 0),
            gap_median_ms: rank(&gaps, 50),
            gap_p99_ms: rank(&gaps, 99),
            gap_max_ms: rank(&gaps, 100),
            retransmitted: sample.retransmitted,
            spurious: sample.spurious,
            target: target(mode, event),
        }
    }

    fn is_reached(&self) -> Option<bool> {
        let Target { survived_percent, gap } = self.target?;
        let in_time = gap.is_none_or(|gap| self.gap_max_ms.is_some_and(|longest| longest <= gap.as_secs_f64() * 1e3));
        Some(self.survived_percent >= survived_percent && in_time)
    }
}

fn target(mode: Mode, event: Event) -> Option<Target> {
    let survived_percent = if mode == Mode::Dsr { 100.0 } else { 99.9 };
    Some(match event {
        Event::Quiet => return None,
        // However long the former holder was away, nobody notices that it has been.
        Event::Return | Event::Heal => Target { survived_percent, gap: None },
        Event::Restart | Event::Upgrade | Event::Reload => Target { survived_percent: 100.0, gap: None },
        // 400 ms until another node answers; TCP tries again after 200, 600 and 1400 ms.
        Event::Kill | Event::LinkLoss => Target { survived_percent, gap: Some(Duration::from_millis(800)) },
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} streams, gaps in milliseconds\n", self.streams)?;
        writeln!(
            f,
            "{:<4} {:<10} {:>6} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>8}",
            "mode", "event", "rounds", "lost", "alive %", "min", "median", "p99", "max", "again", "spurious"
        )?;
        for line in &self.lines {
            write!(
                f,
                "{:<4} {:<10} {:>6} {:>5} {:>8.3}",
                line.mode, line.event, line.rounds, line.lost, line.survived_percent
            )?;
            for gap in [line.gap_min_ms, line.gap_median_ms, line.gap_p99_ms, line.gap_max_ms] {
                write!(f, " {:>8}", gap.map_or("-".to_owned(), |gap| format!("{gap:.1}")))?;
            }
            write!(f, " {:>6} {:>8}", line.retransmitted, line.spurious)?;
            if let Some(Target { survived_percent, gap }) = line.target {
                let reached = if line.is_reached() == Some(true) { "reached" } else { "missed" };
                let gap = gap.map_or(String::new(), |gap| format!(", gap ≤ {}", gap.as_millis()));
                write!(f, "   ≥ {survived_percent} %{gap}: {reached}")?;
            }
            writeln!(f)?;
        }
        self.losses.iter().try_for_each(|(loss, count)| writeln!(f, "{count} lost by {loss}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Failure, Stage};

    fn report(mode: Mode, lost: usize, longest: u64) -> Report {
        let pace = Duration::from_millis(100);
        let options = Options { streams: 500, pace, restarts: 0, failovers: 2, modes: vec![mode] };
        let sample = Sample {
            rounds: 2,
            gaps: [3, longest, 5].map(Duration::from_millis).to_vec(),
            lost: vec![Failure::Reset(Stage::Answer); lost],
            retransmitted: 7,
            spurious: 4,
        };
        Report::new(&options, Samples::from([((mode, Event::Kill), sample)]))
    }

    #[test]
    fn a_line_is_what_programs_expect() {
        assert_eq!(
            report(Mode::Nat, 1, 640).json().unwrap(),
            r#"{"mode":"nat","event":"kill","rounds":2,"streams":500,"lost":1,"survived_percent":99.9,"gap_min_ms":3.0,"gap_median_ms":5.0,"gap_p99_ms":640.0,"gap_max_ms":640.0,"retransmitted":7,"spurious":4}"#
        );
    }

    #[test]
    fn both_survivors_and_gaps_count() {
        for (mode, lost, longest, reached) in [
            (Mode::Nat, 1, 800, true),
            (Mode::Nat, 2, 640, false),
            (Mode::Nat, 0, 801, false),
            (Mode::Dsr, 0, 800, true),
            (Mode::Dsr, 1, 640, false),
        ] {
            let report = report(mode, lost, longest);
            assert_eq!(report.is_reached(), reached, "{report}");
            assert!(report.to_string().contains(if reached { "reached" } else { "missed" }), "{report}");
        }
    }
}
