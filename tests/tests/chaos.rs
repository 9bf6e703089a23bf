//! Long-lived connections under whatever befalls the daemons and the hosts around them. Needs root.

use std::time::Duration;

use lb_tests::{
    bench::continuity::{self, Event},
    chaos::{self, campaign},
};

/// Retransmissions of what was not there twice: a fault of the data plane's would take segments of many streams.
const STRAYS: u64 = 5;

#[test]
fn streams_outlive_restarts_upgrades_reloads_and_failovers() {
    let options = continuity::Options { streams: 60, pace: Duration::from_millis(100), restarts: 2, failovers: 1 };
    let report = continuity::continuity(&options).unwrap();
    println!("{report}");
    for (event, rounds) in [
        (Event::Restart, 2),
        (Event::Upgrade, 4),
        (Event::Reload, 4),
        (Event::Kill, 1),
        (Event::LinkLoss, 1),
        (Event::Return, 2),
    ] {
        assert_eq!(report.line(event).map(|line| (line.rounds, line.lost)), Some((rounds, 0)), "{report}");
    }
    for event in [Event::Restart, Event::Upgrade, Event::Reload] {
        let line = report.line(event).unwrap();
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
