//! The packet table in this machine's kernel. Needs root.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use etherparse::PacketBuilder;
use lb_tests::{
    packets::{
        self,
        stage::{CLIENTS, Family, REMOTE, Stage, VIP},
    },
    wait,
};
use lb_userspace::dataplane::{Swept, Timeouts};

/// Of the one million that the verifier follows at most.
const MOST_INSTRUCTIONS: u32 = 50_000;

#[test]
fn every_case_comes_out_as_written() {
    let summary = packets::run();
    println!("{} cases", summary.cases);
    assert!(summary.failed.is_empty(), "{}", summary.failed.join("\n"));
    assert!(summary.cases >= 40, "only {} cases", summary.cases);
    assert_eq!(summary.programs.len(), 10, "{:?}", summary.programs);
    for (name, verified) in &summary.programs {
        println!("{name}: {verified} instructions verified");
        assert!(*verified <= MOST_INSTRUCTIONS, "{name} takes {verified}");
    }
}

#[test]
fn every_case_fails_when_a_byte_is_wrong() {
    let summary = packets::run_spoiled();
    assert!(summary.cases >= 40, "only {} cases", summary.cases);
    assert_eq!(summary.failed.len(), summary.cases, "{}", summary.failed.join("\n"));
}

#[test]
fn idle_connections_are_swept_out_and_live_ones_counted() {
    let counts = Stage::set(|stage| {
        let mut dataplane = packets::load()?;
        dataplane.apply(&stage.tables())?;
        let address = |host| match Family::Ipv4.address(host) {
            std::net::IpAddr::V4(address) => address.octets(),
            std::net::IpAddr::V6(_) => unreachable!("an IPv4 address was asked for"),
        };
        let syn = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(address(CLIENTS[0]), address(VIP), 64)
            .tcp(40_000, REMOTE.port, 1, 1024)
            .syn();
        let mut frame = Vec::new();
        syn.write(&mut frame, &[])?;
        dataplane.ingress(&frame)?;

        let mut sweeper = dataplane.sweeper()?;
        let (never, at_once) = (Duration::MAX, Duration::ZERO);
        let patient = Timeouts { syn: never, established: at_once, closing: at_once };
        let neighbours = HashSet::from([CLIENTS[0], CLIENTS[1]].map(|client| Family::Ipv4.address(client)));
        let before = sweeper.sweep(&patient, &neighbours);
        // A tick must pass before a connection that may be idle for none is.
        let hasty = Timeouts { syn: at_once, established: never, closing: never };
        let swept = wait::until("the sweep", Duration::from_secs(2), || {
            (sweeper.sweep(&hasty, &neighbours).entries == 0).then_some(())
        });
        swept?;
        Ok((before, sweeper.sweep(&patient, &neighbours)))
    });
    let (before, after) = counts.unwrap();
    assert_eq!(before.alive, BTreeMap::from([(REMOTE.id(Family::Ipv4), 1)]), "one connection, counted once");
    assert_eq!((before.entries, before.half_open, before.full_sets), (2, 2, 0));
    let callers: Vec<_> = before.callers.keys().collect();
    assert_eq!(
        callers,
        [&Family::Ipv4.address(CLIENTS[0])],
        "of two neighbours one has spoken, and the backend has called nobody"
    );
    assert_eq!(after, Swept { room: before.room, ..Swept::default() });
    assert!(before.room >= 2 * 65_536 * 2, "both families' connections have two entries each");
}
