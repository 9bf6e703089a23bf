//! Findings by sender: what is reported of them, and which of them deserve a line in the log. Bounded whatever arrives.

use std::{collections::VecDeque, fmt, net::IpAddr, time::Duration};

use super::Finding;
use crate::vrrp::Moment;

/// Findings kept. An attacker can invent senders without end; a real peer is back with its next advertisement.
const ENTRIES: usize = 32;
/// How long a finding is reported after it was last seen; longer than the longest interval of version 2.
const RETAINED: Duration = Duration::from_secs(300);
/// The same finding about the same sender is logged once in this time.
const REPEATED: Duration = Duration::from_secs(60);
/// Lines that may follow each other at once, all senders together, and the time after which there is one more.
const BURST: usize = 8;
const REFILL: Duration = Duration::from_secs(10);

/// A finding about a sender that was seen lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub sender: IpAddr,
    pub finding: Finding,
    pub first: Moment,
    pub last: Moment,
    pub times: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.sender, self.finding)
    }
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub report: Report,
    /// Findings since the line before that got none.
    pub unsaid: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.fmt(formatter)?;
        match self.unsaid {
            0 => Ok(()),
            unsaid => write!(formatter, " ({unsaid} findings before this one went without a line)"),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: Vec<Entry>,
    lines: VecDeque<Line>,
    /// When each of the latest lines was made, the oldest first.
    said: VecDeque<Moment>,
    unsaid: u64,
}

#[derive(Debug)]
struct Entry {
    report: Report,
    said: Option<Moment>,
}

impl Ledger {
    pub(super) fn note(&mut self, sender: IpAddr, finding: Finding, now: Moment) {
        let known = |entry: &Entry| entry.report.sender == sender && entry.report.finding.is_like(&finding);
        let index = match self.entries.iter().position(known) {
            Some(index) => {
                let report = &mut self.entries[index].report;
                report.times += 1;
                report.last = now;
                report.finding = finding;
                index
            }
            None => self.begin(Report { sender, finding, first: now, last: now, times: 1 }),
        };
        self.say(index, now);
    }

    /// Forgets what was remarked of a sender, unless it is remarked again.
    pub(super) fn withdraw(&mut self, sender: IpAddr, remarks: &[Option<Finding>]) {
        self.entries.retain(|Entry { report, .. }| {
            report.sender != sender
                || report.finding.discard().is_some()
                || remarks.iter().flatten().any(|remark| remark.is_like(&report.finding))
        });
    }

    pub(super) fn reports(&self, now: Moment) -> Vec<Report> {
        let recent = |report: &&Report| now - report.last <= RETAINED;
        let mut reports: Vec<_> = self.entries.iter().map(|entry| &entry.report).filter(recent).cloned().collect();
        reports.sort_by_key(|report| (report.sender, report.first));
        reports
    }

    pub(super) fn next_line(&mut self) -> Option<Line> {
        self.lines.pop_front()
    }

    /// Takes up a new report, in place of the one that was not seen for longest.
    fn begin(&mut self, report: Report) -> usize {
        let entry = Entry { report, said: None };
        if self.entries.len() < ENTRIES {
            self.entries.push(entry);
            return self.entries.len() - 1;
        }
        let oldest = (0..ENTRIES).min_by_key(|index| self.entries[*index].report.last).expect("there are entries");
        self.entries[oldest] = entry;
        oldest
    }

    fn say(&mut self, index: usize, now: Moment) {
        let entry = &mut self.entries[index];
        let repeated = entry.said.is_some_and(|said| now - said < REPEATED);
        let full = self.said.len() == BURST;
        if repeated || (full && now - self.said[0] < REFILL * BURST as u32) || self.lines.len() == BURST {
            self.unsaid += 1;
            return;
        }
        if full {
            self.said.pop_front();
        }
        self.said.push_back(now);
        entry.said = Some(now);
        let line = Line { report: entry.report.clone(), unsaid: std::mem::take(&mut self.unsaid) };
        self.lines.push_back(line);
    }
}
