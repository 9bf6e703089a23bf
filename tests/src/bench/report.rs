//! The outcome, as a table for people and as lines for programs.

use std::fmt;

use anyhow::Context as _;
use serde::Serialize;

use super::{
    case::{Case, Direction, Kind},
    scene::Family,
};

/// Targets, as multiples of the no-op.
const AT_ONE_FLOW: f64 = 3.0;
const AT_64_000_FLOWS: f64 = 5.0;
const NOT_OURS: f64 = 1.3;

/// Every case of a run, and the machine it ran on.
#[derive(Debug)]
pub struct Report {
    pub kernel: String,
    pub cpu: String,
    pub rounds: usize,
    pub lines: Vec<Line>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub case: &'static str,
    pub family: &'static str,
    pub direction: &'static str,
    /// Connections whose packets come in turn; 0 where packets have none.
    pub flows: u32,
    pub ns_min: f64,
    pub ns_median: f64,
    pub ratio_min: f64,
    pub ratio_median: f64,
}

impl Report {
    pub(super) fn new(cases: &[Case]) -> anyhow::Result<Self> {
        let uname = nix::sys::utsname::uname().context("asking for the kernel's release")?;
        let info = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu: model.map_or("unknown CPU", |(_, model)| model).to_owned(),
            rounds: cases.first().map_or(0, |case| case.samples.len()),
            lines: cases.iter().map(Line::new).collect(),
        })
    }

    /// One JSON object a line.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(json_lines(&self.lines)?)
    }
}

impl Line {
    fn new(case: &Case) -> Self {
        let (name, direction, flows) = match case.kind {
            Kind::NoOp => ("no-op", "none", 0),
            Kind::NotOurs => ("not-ours", "none", 0),
            Kind::New => ("new", "forward", 1),
            Kind::Established(Direction::Forward, flows) => ("established", "forward", flows),
            Kind::Established(Direction::Reply, flows) => ("established", "reply", flows),
        };
        let (ns_min, ns_median) = summary(case.samples.iter().map(|(ns, _)| *ns));
        let (ratio_min, ratio_median) = summary(case.samples.iter().map(|(_, ratio)| *ratio));
        let family = match case.family {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        };
        Self { case: name, family, direction, flows, ns_min, ns_median, ratio_min, ratio_median }
    }

    fn target(&self) -> Option<f64> {
        match (self.case, self.flows) {
            ("established", 1) => Some(AT_ONE_FLOW),
            ("established", 64_000) => Some(AT_64_000_FLOWS),
            ("not-ours", _) => Some(NOT_OURS),
            _ => None,
        }
    }
}

/// What every benchmark prints with `--json`.
pub(super) fn json_lines<T: Serialize>(lines: &[T]) -> serde_json::Result<String> {
    let lines: serde_json::Result<Vec<String>> = lines.iter().map(serde_json::to_string).collect();
    Ok(lines?.join("\n"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}, {}, {} rounds\n", self.kernel, self.cpu, self.rounds)?;
        writeln!(f, "case         family  direction    flows   ns min  median   × no-op min  median   target")?;
        for line in &self.lines {
            let Line { case, family, direction, flows, ns_min, ns_median, ratio_min, ratio_median } = line;
            write!(
                f,
                "{case:<12} {family:<7} {direction:<9} {flows:>8} {ns_min:>8.1} {ns_median:>7.1} {ratio_min:>13.2} {ratio_median:>7.2}"
            )?;
            match line.target() {
                Some(target) => {
                    let reached = if *ratio_median <= target { "reached" } else { "missed" };
                    writeln!(f, "   ≤ {target} {reached}")?;
                }
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Least and median, to a hundredth.
fn summary(samples: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    let at = |place: usize| samples.get(place).map_or(0.0, |sample| (sample * 100.0).round() / 100.0);
    (at(0), at(samples.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_least_and_the_middle_of_its_samples() {
        assert_eq!(summary([5.0, 1.234_5, 3.0].into_iter()), (1.23, 3.0));
    }

    #[test]
    fn a_missed_target_is_said() {
        let line = |ratio_median| Line {
            case: "established",
            family: "ipv4",
            direction: "reply",
            flows: 1,
            ns_min: 60.0,
            ns_median: 61.0,
            ratio_min: 2.0,
            ratio_median,
        };
        let report = |ratio| Report { kernel: "6.1".into(), cpu: "x".into(), rounds: 1, lines: vec![line(ratio)] };
        assert!(report(3.0).to_string().ends_with("≤ 3 reached\n"));
        assert!(report(3.01).to_string().ends_with("≤ 3 missed\n"));
        assert_eq!(
            report(2.5).json().unwrap(),
            r#"{"case":"established","family":"ipv4","direction":"reply","flows":1,"ns_min":60.0,"ns_median":61.0,"ratio_min":2.0,"ratio_median":2.5}"#
        );
    }
}
