//! Long-lived connections under whatever befalls the daemons and the hosts around them. Needs root.

use std::time::Duration;

use lb_tests::{
    bench::continuity::{self, Event, Mode},
    chaos::{self, campaign},
};

/// Retransmissions of what was not there twice: a fault of the data plane's would take segments of many streams.
const STRAYS: u64 = 5;

#[test]
fn streams_outlive_restarts_upgrades_reloads_and_failovers() {
    let (pace, modes) = (Duration::from_millis(100), Mode::ALL.to_vec());
    let options = continuity::Options { streams: 60, pace, restarts: 2, failovers: 1, modes };
    let report = continuity::continuity(&options).unwrap();
    println!("{report}");
    for (mode, event, rounds) in [
        (Mode::Nat, Event::Restart, 2),
        (Mode::Nat, Event::Upgrade, 4),
        (Mode::Nat, Event::Reload, 4),
        (Mode::Nat, Event::Kill, 1),
        (Mode::Nat, Event::LinkLoss, 1),
        (Mode::Nat, Event::Return, 1),
        (Mode::Nat, Event::Heal, 1),
        (Mode::Dsr, Event::Kill, 1),
        (Mode::Dsr, Event::LinkLoss, 1),
        (Mode::Dsr, Event::Return, 1),
        (Mode::Dsr, Event::Heal, 1),
    ] {
        assert_eq!(report.line(mode, event).map(|line| (line.rounds, line.lost)), Some((rounds, 0)), "{report}");
    }
    for event in [Event::Restart, Event::Upgrade, Event::Reload] {
        let line = report.line(Mode::Nat, event).unwrap();
        assert!(line.retransmitted - line.spurious <= STRAYS, "{report}");
    }
}

#[test]
fn a_campaign_of_faults_finds_nothing() {
    let options =
        chaos::Options { seed: 1, only: Vec::new(), time: Duration::from_secs(60), streams: 40, verbose: false };
    let report = campaign(&options).unwrap();
    println!("{report}");
    assert!(report.violations.is_empty(), "{report}");
    assert!(report.faults.len() > 5 && report.requests > 500 && report.lines > 5000, "{report}");
}
