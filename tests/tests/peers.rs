//! The programs of others run in the lab as they run in the field, and do there what is known of them. Needs root.

use std::{thread, time::Duration};

use lb_tests::{
    bench::failover::{Event, Options, Profile, System, failover},
    carrier::{By, Carrier, wait_for_holder},
    client::{Load, run},
    lab::Host,
    peer::{Keepalived, Virtual, Vrrpd},
    topology::{Deployment, Topology},
    wait,
};

const LIMIT: Duration = Duration::from_secs(30);

/// The deployment with everything on it that its write-up has.
fn written(topology: Topology) {
    let deployment = topology.build("written").unwrap();
    let _servers = deployment.start_apiservers().unwrap();
    let nodes: Vec<String> = deployment.holders().iter().map(|node| node.name.clone()).collect();
    let mut carriers: Vec<Carrier> =
        nodes.iter().map(|node| Carrier::start(&deployment, node, By::Written).unwrap()).collect();
    let interval = Duration::from_secs(topology.failover().unwrap().interval.into());
    let first = wait_for_holder(&deployment, interval, LIMIT).unwrap();
    assert_served(&deployment);

    let index = nodes.iter().position(|node| *node == first).unwrap();
    carriers.remove(index).stop().unwrap();
    let second = wait_for_holder(&deployment, interval, LIMIT).unwrap();
    assert_ne!(first, second);
    assert_served(&deployment);
    for carrier in &carriers {
        let Carrier::Written { keepalived, .. } = carrier else { unreachable!("all are as written") };
        for (instance, tally) in keepalived.tallies().unwrap() {
            assert!(tally.errors.is_empty() && tally.received > 0, "{topology:?} {instance}: {tally:?}");
        }
    }
}

fn assert_served(deployment: &Deployment) {
    let client = deployment.client(deployment.topology.endpoint(false)).unwrap();
    let served = || deployment.client_host().run(|| run(&client, Load::sequential(5))).unwrap().good() == 5;
    // The proxies' own checks of their backends may be under way.
    wait::until("five requests to be served", LIMIT, || served().then_some(())).unwrap();
}

#[test]
fn a_to_d_are_carried_as_they_were_written() {
    thread::scope(|scope| {
        for topology in [Topology::A, Topology::B, Topology::C, Topology::D] {
            scope.spawn(move || written(topology));
        }
    });
}

#[test]
fn errors_that_keepalived_counts_are_read() {
    let deployment = Topology::C.build("errors").unwrap();
    let start = |node: &str, password: &str| {
        let text = deployment.keepalived_config(node).unwrap().replace("auth_pass 1111", password);
        Keepalived::start(deployment.host(node).unwrap(), &text).unwrap()
    };
    let _other = start("ha-lb-a", "auth_pass 2222");
    let one = start("ha-lb-b", "auth_pass 1111");
    let key = "Authentication Errors: Failure";
    wait::until("a wrong password to be counted", LIMIT, || {
        one.tallies().ok().filter(|all| all["VI_1"].errors.contains_key(key))
    })
    .unwrap();
}

#[test]
fn frr_hands_over_to_frr() {
    let deployment = Topology::C.build("frr").unwrap();
    let vip = deployment.vip();
    let virtual_router = |priority| Virtual {
        vrid: 51,
        priority,
        interval: Duration::from_millis(200),
        address: format!("{vip}/24").parse().unwrap(),
    };
    let start = |node: &str, priority| {
        let host: &Host = deployment.host(node).unwrap();
        Vrrpd::start(host, &virtual_router(priority)).unwrap()
    };
    let first = start("ha-lb-a", 100);
    let becomes = |vrrpd: &Vrrpd, status: &str| {
        wait::until(status, LIMIT, || vrrpd.status().ok().filter(|now| now == status)).unwrap();
    };
    becomes(&first, "Master");
    let second = start("ha-lb-b", 50);
    wait::until("advertisements", LIMIT, || second.received().ok().filter(|count| *count > 2)).unwrap();
    assert_eq!(second.status().unwrap(), "Backup");
    deployment.client_host().ping(vip.into()).unwrap();
    drop(first);
    becomes(&second, "Master");
    deployment.client_host().ping(vip.into()).unwrap();
}

/// The bench itself: a killed keepalived goes on answering for the VIP beside its successor, a killed xvip does not.
#[test]
fn failovers_are_measured() {
    let report = failover(&Options {
        runs: 1,
        events: vec![Event::Kill, Event::OrderlyStop],
        systems: System::ALL.to_vec(),
        profiles: vec![Profile::Fast],
        partition: Duration::ZERO,
        busy: Duration::ZERO,
    })
    .unwrap();
    assert!(report.is_whole(), "{report}");
    let lines: Vec<serde_json::Value> =
        report.json().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<(&str, &str, u64)> = (lines.iter())
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap();
            (text("event"), text("system"), line["owners_max"].as_u64().unwrap())
        })
        .collect();
    let expected = [
        ("kill", "keepalived", 2),
        ("kill", "xvip", 1),
        ("orderly-stop", "keepalived", 1),
        ("orderly-stop", "xvip", 1),
    ];
    assert_eq!(shown, expected, "{report}");
    for line in &lines {
        // Generous for a busy machine, and far below what a lost VIP costs.
        assert!(line["n"] == 1 && line["p99_ms"].as_f64().unwrap() < 500.0, "{report}");
    }
}
