//! What was played, what became of it, and what should not have.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub steps: Vec<String>,
    pub faults: BTreeMap<&'static str, usize>,
    pub streams: usize,
    /// Connections of streams, those that were lost with their backend, and lines that came back.
    pub episodes: usize,
    pub lost: usize,
    pub lines: u64,
    /// Of streams that went on.
    pub longest: Duration,
    pub requests: usize,
    pub failed: usize,
    /// From the end of a fault until all was as before.
    pub slowest: Duration,
    /// Whatever should not have been.
    pub violations: Vec<String>,
    /// Where the daemons' logs are, if there is something to look for in them.
    pub logs: Option<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: usize = self.faults.values().sum();
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "seed {}: {all} faults ({})", self.seed, faults.join(", "))?;
        writeln!(
            f,
            "{} streams with {} lines: {} connections, {} lost with their backend, the longest gap of the others {:?}",
            self.streams, self.lines, self.episodes, self.lost, self.longest
        )?;
        writeln!(f, "{} requests, {} failed near a fault", self.requests, self.failed)?;
        writeln!(f, "all was as before at most {:?} after a fault's end", self.slowest)?;
        if self.violations.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{} violations:", self.violations.len())?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "- {violation}"))?;
        if let Some(logs) = &self.logs {
            writeln!(f, "\nthe daemons' logs are in {}", logs.display())?;
        }
        writeln!(f, "\nwhat was played (again: cargo xtask chaos --seed {}):", self.seed)?;
        self.steps.iter().enumerate().try_for_each(|(number, step)| writeln!(f, "{number:>3} {step}"))
    }
}
