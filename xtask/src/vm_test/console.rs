//! What a guest says on its console, understood and shown. The lines are written by `tests/src/guest.rs`.

use std::fmt::Write as _;

const PREFIX: &str = "xvip-guest: ";

/// What has been read so far. Lines that are not the guest's, the kernel's messages, are skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    kernel: Option<String>,
    programs: Vec<Program>,
    /// One entry a failure, further lines of it indented.
    failures: Vec<String>,
    pub(super) result: Option<Cases>,
}

#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    verified: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cases {
    passed: u32,
    failed: u32,
}

impl Report {
    pub(super) fn line(&mut self, line: &str) {
        let Some(line) = line.trim_end().strip_prefix(PREFIX) else {
            return;
        };
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let understood = match kind {
            "kernel" => {
                self.kernel = Some(rest.to_owned());
                Some(())
            }
            "program" => program(rest).map(|program| self.programs.push(program)),
            "failed" => {
                self.failures.push(rest.to_owned());
                Some(())
            }
            "detail" => self.failures.last_mut().map(|failure| {
                failure.push_str("\n         ");
                failure.push_str(rest);
            }),
            "result" => cases(rest).map(|cases| self.result = Some(cases)),
            _ => None,
        };
        if understood.is_none() {
            self.failures.push(format!("a line that the host does not understand: {line}"));
        }
    }

    /// Why this run is no success; empty if it is one.
    pub(super) fn faults(&self, release: &str, limit: u32) -> Vec<String> {
        let mut faults = self.failures.clone();
        match self.result {
            None => faults.push("no result".to_owned()),
            Some(Cases { passed: 0, failed: 0 }) => faults.push("the packet table is empty".to_owned()),
            Some(Cases { failed, .. }) if failed > 0 && self.failures.is_empty() => {
                faults.push(format!("{failed} cases failed, and their names were lost"));
            }
            Some(_) if self.programs.is_empty() => faults.push("no program was loaded".to_owned()),
            Some(_) if self.kernel.as_deref() != Some(release) => {
                faults.push(format!("{} ran instead", self.kernel.as_deref().unwrap_or("an unknown kernel")));
            }
            Some(_) => {}
        }
        for Program { name, verified } in &self.programs {
            match verified {
                0 => faults.push(format!("the kernel did not say how many instructions of {name} it verified")),
                _ if *verified > limit => {
                    faults.push(format!("{name}: {verified} instructions verified, limit {limit}"))
                }
                _ => {}
            }
        }
        faults
    }

    /// A row for each program and one for the packet table; nothing for a machine that did not get so far.
    pub(super) fn table(&self, release: &str, limit: u32) -> String {
        let mut table = format!("\n{:<28} {:<18} {:>9} {:>9}\n", "kernel", "program", "verified", "limit");
        for Program { name, verified } in &self.programs {
            let mark = if *verified > limit || *verified == 0 { "  FAIL" } else { "" };
            let (verified, limit) = (thousands(*verified), thousands(limit));
            writeln!(table, "{release:<28} {name:<18} {verified:>9} {limit:>9}{mark}")
                .expect("a string takes any text");
        }
        if let Some(Cases { passed, failed }) = self.result {
            writeln!(table, "{release:<28} packet table: {} passed, {} failed", thousands(passed), thousands(failed))
                .expect("a string takes any text");
        }
        table
    }
}

/// `NAME verified N`
fn program(words: &str) -> Option<Program> {
    let (name, verified) = words.split_once(" verified ")?;
    Some(Program { name: name.to_owned(), verified: verified.parse().ok()? })
}

/// `N passed, N failed`
fn cases(words: &str) -> Option<Cases> {
    let (passed, failed) = words.split_once(" passed, ")?;
    Some(Cases { passed: passed.parse().ok()?, failed: failed.strip_suffix(" failed")?.parse().ok()? })
}

fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[    0.000000] Linux version 6.1.0\r\n\
                        xvip-guest: kernel 6.1.0-56-cloud-amd64\r\n\
                        xvip-guest: program xdp_ingress verified 1234\r\n\
                        xvip-guest: program tc_egress verified 50000\r\n\
                        xvip-guest: result 120 passed, 0 failed\r\n";

    fn report(console: &str) -> Report {
        let mut report = Report::default();
        console.lines().for_each(|line| report.line(line));
        report
    }

    fn faults(console: &str) -> Vec<String> {
        report(console).faults("6.1.0-56-cloud-amd64", 50_000)
    }

    #[test]
    fn a_good_run_has_no_fault() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
        let table = report(GOOD).table("6.1.0-56-cloud-amd64", 50_000);
        let expected = "\n\
            kernel                       program             verified     limit\n\
            6.1.0-56-cloud-amd64         xdp_ingress            1,234    50,000\n\
            6.1.0-56-cloud-amd64         tc_egress             50,000    50,000\n\
            6.1.0-56-cloud-amd64         packet table: 120 passed, 0 failed\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn each_fault_is_named() {
        let with = |from: &str, to: &str| faults(&GOOD.replace(from, to));
        assert_eq!(with("xvip-guest: result 120 passed, 0 failed", "Kernel panic"), ["no result"]);
        assert_eq!(with("50000", "50001"), ["tc_egress: 50001 instructions verified, limit 50000"]);
        assert_eq!(with("50000", "0"), ["the kernel did not say how many instructions of tc_egress it verified"]);
        assert_eq!(with("120 passed", "0 passed"), ["the packet table is empty"]);
        assert_eq!(with("0 failed", "1 failed"), ["1 cases failed, and their names were lost"]);
        assert_eq!(with("xvip-guest: program", "program"), ["no program was loaded"]);
        assert_eq!(with("kernel 6.1.0-56", "kernel 6.1.0-55"), ["6.1.0-55-cloud-amd64 ran instead"]);
        assert_eq!(
            with("verified 1234", "verified many"),
            ["a line that the host does not understand: program xdp_ingress verified many"]
        );
    }

    #[test]
    fn a_failure_keeps_its_lines() {
        let failed =
            "xvip-guest: failed syn_v4: bytes differ\nxvip-guest: detail at 26\nxvip-guest: failed syn_v6: passed\n";
        assert_eq!(report(failed).failures, ["syn_v4: bytes differ\n         at 26", "syn_v6: passed"]);
    }
}
