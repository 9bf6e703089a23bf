//! The packet table in this machine's kernel. Needs root.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use etherparse::PacketBuilder;
use lb_common::{abi::Backend, conntrack::Phase};
use lb_tests::{
    packets::{
        self,
        frames::{ACK, Extra, PSH, SYN, Segment},
        stage::{BACKEND_PORT, CLIENTS, Family, HERE, Landlord, REMOTE, Service, Stage, Tenure, VIP, mac},
    },
    wait,
};
use lb_userspace::{
    dataplane::{Connection, Dataplane, Ended, Ender, Swept, Timeouts},
    host::Reset,
};

/// Of the one million that the verifier follows at most.
const MOST_INSTRUCTIONS: u32 = 50_000;

#[test]
fn every_case_comes_out_as_written() {
    let summary = packets::run();
    println!("{} cases", summary.cases);
    assert!(summary.failed.is_empty(), "{}", summary.failed.join("\n"));
    assert!(summary.cases >= 40, "only {} cases", summary.cases);
    assert_eq!(summary.programs.len(), 14, "{:?}", summary.programs);
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
        let syn = PacketBuilder::ethernet2([2; 6], mac(1))
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
        let counted = |dataplane: &Dataplane| dataplane.open(REMOTE.id(Family::Ipv4));
        let open = counted(&dataplane);
        // A tick must pass before a connection that may be idle for none is.
        let hasty = Timeouts { syn: at_once, established: never, closing: never };
        let swept = wait::until("the sweep", Duration::from_secs(2), || {
            (sweeper.sweep(&hasty, &neighbours).entries == 0).then_some(())
        });
        swept?;
        Ok((before, sweeper.sweep(&patient, &neighbours), [open, counted(&dataplane)]))
    });
    let (before, after, open) = counts.unwrap();
    assert_eq!(open, [[1, 0], [0, 0]], "nobody saw it end, but it is no longer there");
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

/// A segment of the first client, by whichever side.
fn segment(family: Family, service: Service, from_client: bool, flags: u8, acknowledgement: u32) -> Segment {
    let [client, vip] = [family.socket(CLIENTS[0], 40_000), family.socket(VIP, service.port)];
    let seen_as = family.socket(VIP, 40_000);
    let (from, to) = if from_client { (client, vip) } else { (family.socket(service.backend, BACKEND_PORT), seen_as) };
    Segment {
        macs: [mac(1), mac(CLIENTS[0])],
        tags: Vec::new(),
        from,
        to,
        hops: 64,
        extra: Extra::None,
        sequence: 7,
        acknowledgement,
        flags,
        window: 1024,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

#[test]
fn a_connection_is_ended_by_the_number_that_its_client_acknowledged_last_and_by_nobody_but_the_vips_holder() {
    const LAST: u32 = 0x8765_4321;
    let ended = Stage::set(|stage| {
        let mut dataplane = packets::load()?;
        dataplane.apply(&stage.tables())?;
        let landlord = Landlord::new(&mut dataplane)?;
        let ender = dataplane.ender()?;
        for family in Family::ALL {
            let local = BTreeSet::from([family.address(VIP)]);
            let flags = Backend::DOWN | Backend::PRESENT;
            let backend = |host| Backend::new(family.mapped(host), BACKEND_PORT.to_be_bytes(), flags);
            let down = |host| BTreeMap::from([(REMOTE.id(family), backend(host))]);
            let told = |ended: Vec<Ended>| ended.into_iter().map(|each| (each.backend, each.reset)).collect::<Vec<_>>();
            let end = |ender: &Ender, host| told(ender.end(&down(host), &local));
            let mut pass = |from_client, flags, number| {
                dataplane.ingress(&segment(family, REMOTE, from_client, flags, number).bytes()).map(drop)
            };
            pass(true, SYN, 0)?;
            pass(false, SYN | ACK, 8)?;
            assert_eq!(end(&ender, REMOTE.backend), [], "the handshake is not complete");
            pass(true, ACK, 1)?;
            // By the short way now, of which each packet counts.
            pass(true, ACK | PSH, LAST)?;
            pass(false, ACK | PSH, 9)?;

            assert_eq!(ender.end(&down(REMOTE.backend), &BTreeSet::new()), [], "the VIP is elsewhere");
            landlord.grant(family, Tenure::Over)?;
            assert_eq!(end(&ender, REMOTE.backend), [], "this node may not speak for it");
            landlord.grant(family, Tenure::Running)?;
            assert_eq!(end(&ender, REMOTE.backend + 1), [], "another backend had that number before");
            let [from, to] = [family.socket(VIP, REMOTE.port), family.socket(CLIENTS[0], 40_000)];
            let reset = Reset { from, to, sequence: LAST.to_be_bytes() };
            let ended = ender.end(&down(REMOTE.backend), &local);
            let connection = Connection {
                client: to,
                vip: from,
                backend: family.socket(REMOTE.backend, BACKEND_PORT),
                seen: ended[0].connection.seen,
                is_direct: false,
                phase: Phase::Closed,
                idle: ended[0].connection.idle,
                acknowledged: LAST.to_be_bytes(),
            };
            assert_eq!(ended, [Ended { backend: REMOTE.id(family), reset, connection }]);
            assert_eq!((connection.seen.ip(), connection.idle < Duration::from_secs(5)), (from.ip(), true));
            assert_eq!(end(&ender, REMOTE.backend), [], "it has ended");
            // Both halves: a new connection by the same ports is one.
            pass(true, SYN, 0)?;
            pass(false, SYN | ACK, 8)?;
            pass(true, ACK, 3)?;
            let reset = Reset { sequence: 3_u32.to_be_bytes(), ..reset };
            assert_eq!(end(&ender, REMOTE.backend), [(REMOTE.id(family), reset)]);

            // One whose backend is on this host.
            for (flags, number) in [(ACK, 5), (ACK | PSH, 6)] {
                dataplane.ingress(&segment(family, HERE, true, flags, number).bytes())?;
            }
            let here = BTreeMap::from([(HERE.id(family), backend(HERE.backend))]);
            let reset = Reset { from: family.socket(VIP, HERE.port), to, sequence: 6_u32.to_be_bytes() };
            assert_eq!(told(ender.end(&here, &local)), [(HERE.id(family), reset)]);
        }
        Ok(())
    });
    ended.unwrap();
}
