//! xvip shares VIPs with keepalived and with FRR's vrrpd: each hands over to the other, neither counts an error, and an independent
//! dissector finds nothing wrong with any packet. Needs root.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    carrier::{By, Carrier, History, wait_for_holder},
    client::{Load, run},
    peer::{Keepalived, Virtual, Vrrpd},
    site::quick,
    topology::{Deployment, Topology},
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::{status::Status, vrrp};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(40);
const OTHER: &str = "ha-lb-a";
const OWN: &str = "ha-lb-b";
const VRID: u8 = 51;
const HIGH: u8 = 100;
const LOW: u8 = 98;
/// Advertisements heard before somebody counts as heard.
const HEARD: u64 = 3;

/// How two daemons speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Speech {
    version: u8,
    v6: bool,
    unicast: bool,
    password: bool,
    interval: Duration,
}

impl Speech {
    fn vip(self) -> IpAddr {
        Topology::C.endpoint(self.v6).ip()
    }

    fn keepalived(self, deployment: &Deployment, priority: u8) -> String {
        let [own, peer] = [OTHER, OWN].map(|node| self.address(deployment, node));
        let mut text = format!(
            "global_defs {{\n vrrp_version {}\n}}\nvrrp_instance VI_1 {{\n state BACKUP\n interface eth0\n virtual_router_id {VRID}\n priority {priority}\n advert_int {}\n virtual_ipaddress {{\n  {}\n }}\n",
            self.version,
            self.interval.as_secs_f64(),
            self.vip(),
        );
        if self.password {
            text += " authentication {\n  auth_type PASS\n  auth_pass 1111\n }\n";
        }
        if self.unicast {
            write!(text, " unicast_src_ip {own}\n unicast_peer {{\n  {peer}\n }}\n").unwrap();
        }
        text + "}\n"
    }

    fn xvip(self, deployment: &Deployment, priority: u8) -> String {
        let mut text = quick(&deployment.xvip_config_of(OWN, self.v6).unwrap());
        write!(
            text,
            "\n[[vrrp]]\nname = \"shared\"\ninterface = \"eth0\"\nvrid = {VRID}\nversion = {}\npriority = {priority}\ninterval = \"{}ms\"\naddresses = [\"{}\"]\n",
            self.version,
            self.interval.as_millis(),
            self.vip(),
        )
        .unwrap();
        if self.password {
            text += "password = \"1111\"\n";
        }
        if self.unicast {
            writeln!(text, "peers = [\"{}\"]", self.address(deployment, OTHER)).unwrap();
        }
        text
    }

    fn address(self, deployment: &Deployment, node: &str) -> IpAddr {
        let node = deployment.node(node).unwrap();
        if self.v6 { node.v6.into() } else { node.v4.into() }
    }
}

/// The part of the status that is about the one virtual router.
fn instance(status: &Status) -> &vrrp::Instance {
    &status.vrrp[0]
}

fn wait_for_state(xvip: &Xvip, state: vrrp::State) {
    xvip.wait_for(state.name(), LIMIT, |status| instance(status).state == state).unwrap();
}

fn wait_for_vip(deployment: &Deployment, node: &str, vip: IpAddr) {
    let host = deployment.host(node).unwrap();
    wait::until(&format!("{node} to hold {vip}"), LIMIT, || host.addresses().unwrap().contains(&vip).then_some(()))
        .unwrap();
    // The first question may have come before the address was good.
    wait::until(&format!("an answer of {vip}"), LIMIT, || deployment.client_host().ping(vip).ok()).unwrap();
}

/// Nothing that it has heard was wrong, and it has heard something.
fn assert_content(xvip: &Xvip, speech: Speech) {
    let status = xvip.status().unwrap();
    let instance = instance(&status);
    assert!(instance.advertisements.discarded.values().all(|count| *count == 0), "{speech:?}: {instance:#?}");
    assert!(instance.advertisements.received >= HEARD, "{speech:?}: {instance:#?}");
    assert!(instance.reports.is_empty(), "{speech:?}: {instance:#?}");
}

fn assert_keepalived_content(keepalived: &Keepalived, speech: Speech) {
    let tally = &keepalived.tallies().unwrap()["VI_1"];
    assert!(tally.errors.is_empty() && tally.received > 0, "{speech:?}: {tally:?}\n{}", keepalived.log());
}

/// VRRP, in either family.
fn is_vrrp(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&112),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&112),
        _ => false,
    }
}

/// What Wireshark makes of each packet: a line each, and every line good.
fn dissect(file: &Path, speech: Speech, deployment: &Deployment) {
    const FIELDS: [&str; 14] = [
        "vrrp.version",
        "vrrp.type",
        "vrrp.virt_rtr_id",
        "vrrp.addr_count",
        "vrrp.checksum.status",
        "ip.checksum.status",
        "ip.ttl",
        "ipv6.hlim",
        "vrrp.ip_addr",
        "vrrp.ipv6_addr",
        "_ws.expert.message",
        "ip.src",
        "ipv6.src",
        "vrrp.prio",
    ];
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-o", "ip.check_checksum:TRUE", "-T", "fields", "-E", "separator=|"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is installed: `cargo xtask setup`");
    let text = String::from_utf8_lossy(&output.stdout);
    let vip = speech.vip().to_string();
    let version = speech.version.to_string();
    // 1: a checksum that was looked at and is good.
    let right = match speech.v6 {
        false => format!("{version}|1|{VRID}|1|1|1|255||{vip}||"),
        true => format!("{version}|1|{VRID}|1|1|||255||{vip}|"),
    };
    let mut sources = BTreeSet::new();
    for line in text.lines() {
        let rest = line.strip_prefix(&format!("{right}|")).unwrap_or_else(|| panic!("{line}\nin place of {right}|…"));
        let words: Vec<&str> = rest.split('|').collect();
        let [v4, v6, priority] = words[..] else { panic!("{line}") };
        let (source, priority) = (format!("{v4}{v6}"), priority.parse::<u8>().unwrap());
        assert!([0, HIGH, LOW].contains(&priority), "{line}");
        sources.insert((source, priority));
    }
    // Each has been master with either priority, and left with priority 0.
    let distinct: BTreeSet<&String> = sources.iter().map(|(source, _)| source).collect();
    assert_eq!((distinct.len(), sources.len()), (2, 6), "{sources:?}");
    if !speech.v6 {
        for node in [OTHER, OWN] {
            let address = speech.address(deployment, node).to_string();
            assert!(distinct.contains(&address), "{address} has sent nothing: {distinct:?}");
        }
    }
}

/// Each of the two is master and backup, hands over in order, and takes back what is its own.
fn beside_keepalived(speech: Speech) {
    let deployment = Topology::C.build("interop").unwrap();
    let _servers = deployment.start_apiservers().unwrap();
    let capture = deployment.host(OTHER).unwrap().capture("vrrp.pcap", is_vrrp).unwrap();
    let keepalived = |priority| {
        Keepalived::start(deployment.host(OTHER).unwrap(), &speech.keepalived(&deployment, priority)).unwrap()
    };
    let xvip = |priority| Xvip::start_with(&deployment, OWN, &speech.xvip(&deployment, priority)).unwrap();
    let heard = |xvip: &Xvip, from: u8| {
        xvip.wait_for("keepalived's advertisements", LIMIT, |status| {
            let instance = instance(status);
            instance.advertisements.received >= HEARD && instance.master.is_some_and(|master| master.priority == from)
        })
        .unwrap();
    };

    let theirs = keepalived(HIGH);
    wait_for_vip(&deployment, OTHER, speech.vip());
    let ours = xvip(LOW);
    heard(&ours, HIGH);
    wait_for_state(&ours, vrrp::State::Backup);
    theirs.stop().unwrap();
    wait_for_vip(&deployment, OWN, speech.vip());
    let theirs = keepalived(HIGH);
    wait_for_vip(&deployment, OTHER, speech.vip());
    wait_for_state(&ours, vrrp::State::Backup);
    assert_content(&ours, speech);
    assert_keepalived_content(&theirs, speech);
    theirs.stop().unwrap();
    wait_for_state(&ours, vrrp::State::Master);
    assert!(ours.stop().unwrap().success());

    let ours = xvip(HIGH);
    wait_for_vip(&deployment, OWN, speech.vip());
    let theirs = keepalived(LOW);
    let received = || theirs.tallies().unwrap()["VI_1"].received >= HEARD;
    wait::until("xvip's advertisements", LIMIT, || received().then_some(())).unwrap();
    assert!(ours.stop().unwrap().success());
    wait_for_vip(&deployment, OTHER, speech.vip());
    let ours = xvip(HIGH);
    wait_for_vip(&deployment, OWN, speech.vip());
    assert_keepalived_content(&theirs, speech);
    theirs.stop().unwrap();
    let status = ours.status().unwrap();
    assert!(instance(&status).advertisements.discarded.values().all(|count| *count == 0), "{status:#?}");
    assert!(ours.stop().unwrap().success());
    dissect(&capture.finish().unwrap(), speech, &deployment);
}

#[test]
fn keepalived_and_xvip_hand_over_to_each_other() {
    let second = Duration::from_secs(1);
    let quick = Duration::from_millis(200);
    let speech = |version, v6, unicast, interval| Speech { version, v6, unicast, password: unicast, interval };
    thread::scope(|scope| {
        for speech in [
            speech(2, false, true, second),
            speech(2, false, false, second),
            speech(3, false, false, quick),
            speech(3, true, false, quick),
        ] {
            scope.spawn(move || beside_keepalived(speech));
        }
    });
}

#[test]
fn frr_and_xvip_hand_over_to_each_other() {
    let speech =
        Speech { version: 3, v6: false, unicast: false, password: false, interval: Duration::from_millis(200) };
    let deployment = Topology::C.build("frr").unwrap();
    let _servers = deployment.start_apiservers().unwrap();
    let capture = deployment.host(OTHER).unwrap().capture("vrrp.pcap", is_vrrp).unwrap();
    let address = format!("{}/24", speech.vip()).parse().unwrap();
    let frr = |priority| {
        let settings = Virtual { vrid: VRID, priority, interval: speech.interval, address };
        Vrrpd::start(deployment.host(OTHER).unwrap(), &settings).unwrap()
    };
    let xvip = |priority| Xvip::start_with(&deployment, OWN, &speech.xvip(&deployment, priority)).unwrap();
    let becomes = |vrrpd: &Vrrpd, status: &str| {
        wait::until(status, LIMIT, || vrrpd.status().ok().filter(|now| now == status)).unwrap();
    };

    let theirs = frr(HIGH);
    becomes(&theirs, "Master");
    let ours = xvip(LOW);
    ours.wait_for("FRR's advertisements", LIMIT, |status| instance(status).advertisements.received >= HEARD).unwrap();
    wait_for_state(&ours, vrrp::State::Backup);
    theirs.stop().unwrap();
    wait_for_vip(&deployment, OWN, speech.vip());
    let theirs = frr(HIGH);
    becomes(&theirs, "Master");
    wait_for_state(&ours, vrrp::State::Backup);
    assert_content(&ours, speech);
    theirs.stop().unwrap();
    wait_for_state(&ours, vrrp::State::Master);

    assert!(ours.stop().unwrap().success());
    let ours = xvip(HIGH);
    wait_for_vip(&deployment, OWN, speech.vip());
    let theirs = frr(LOW);
    wait::until("xvip's advertisements", LIMIT, || theirs.received().ok().filter(|count| *count >= HEARD)).unwrap();
    becomes(&theirs, "Backup");
    assert!(ours.stop().unwrap().success());
    becomes(&theirs, "Master");
    let ours = xvip(HIGH);
    wait_for_vip(&deployment, OWN, speech.vip());
    becomes(&theirs, "Backup");
    assert!(!theirs.log().contains("failed validation"), "{}", theirs.log());
    theirs.stop().unwrap();
    assert!(ours.stop().unwrap().success());
    dissect(&capture.finish().unwrap(), speech, &deployment);
}

/// A cluster moves to xvip one node at a time, each time the one that holds the VIP if it is not xvip yet, while clients ask. At last
/// the holder is stopped among xvips.
fn move_over(topology: Topology) {
    /// The client of a lost VIP notices by its own timeout.
    const TIMEOUT: Duration = Duration::from_secs(2);
    /// keepalived's `garp_master_delay`. Where two keepalived of one priority become master at once, the loser's announcement may be
    /// the last one heard, and the winner repeats its own only then.
    const SECOND_BURST: Duration = Duration::from_secs(5);
    let deployment = topology.build("mixed").unwrap();
    let _servers = deployment.start_apiservers().unwrap();
    let nodes: Vec<String> = deployment.holders().iter().map(|node| node.name.clone()).collect();
    let mut carriers: Vec<(String, Carrier)> =
        nodes.iter().map(|node| (node.clone(), Carrier::start(&deployment, node, By::Written).unwrap())).collect();
    // Longer than anybody waits for a master that is silent.
    let interval = Duration::from_secs(topology.failover().unwrap().interval.into());
    let steady = 4 * interval;
    wait_for_holder(&deployment, interval, LIMIT).unwrap();

    let mut client = deployment.client(topology.endpoint(false)).unwrap();
    client.timeout = TIMEOUT;
    let asks = || deployment.client_host().run(|| run(&client, Load::sequential(5))).unwrap();
    wait::until("the first requests to be served", LIMIT, || (asks().good() == 5).then_some(())).unwrap();

    let mut replaced: HashMap<String, Instant> = HashMap::new();
    let (stop, stopped) = watch::channel(false);
    let load = Load { requests: 10_000, concurrency: 50, rate: Some(20.0), stop: Some(stopped), ..Load::default() };
    let (report, history) = thread::scope(|scope| {
        let traffic = scope.spawn(|| deployment.client_host().run(|| run(&client, load)).unwrap());
        let ((), history) = History::during(&deployment, || {
            while carriers.iter().any(|(_, carrier)| carrier.by() == By::Written) {
                let holder = wait_for_holder(&deployment, interval, LIMIT)?;
                let is_next = |(node, carrier): &(String, Carrier)| carrier.by() == By::Written && *node == holder;
                let written = |(_, carrier): &(String, Carrier)| carrier.by() == By::Written;
                let place = carriers.iter().position(is_next).or_else(|| carriers.iter().position(written));
                let (node, carrier) = carriers.remove(place.expect("one is left"));
                carrier.stop()?;
                replaced.insert(node.clone(), Instant::now());
                carriers.push((node.clone(), Carrier::start(&deployment, &node, By::Xvip)?));
                wait_for_holder(&deployment, steady, LIMIT)?;
            }
            let holder = wait_for_holder(&deployment, interval, LIMIT)?;
            let place = carriers.iter().position(|(node, _)| *node == holder).expect("a node holds it");
            carriers.remove(place).1.stop()?;
            assert_ne!(wait_for_holder(&deployment, interval, LIMIT)?, holder);
            Ok(())
        })
        .unwrap();
        stop.send(true).unwrap();
        (traffic.join().unwrap(), history)
    });

    let is_written = |at: Instant, node: &String| replaced.get(node).is_none_or(|since| at < *since);
    let slack = |at, holders: &[String]| match holders.iter().any(|node| is_written(at, node)) {
        true => SECOND_BURST + TIMEOUT,
        false => TIMEOUT,
    };
    let bad = history.unexcused(&report.outcomes, slack);
    println!(
        "{topology:?}: {} of {} requests good, held by {:?}",
        report.good(),
        report.outcomes.len(),
        history.holders()
    );
    assert!(
        bad.is_empty() && report.good() * 10 > report.outcomes.len() * 7,
        "{topology:?}: {} failed without a change of holder; {report}\n{}",
        bad.len(),
        history.told(&report.outcomes)
    );
    // The VIP has moved, at least away from the first holder.
    assert!(history.holders().len() > 2, "{:?}", history.holders());
    for (node, carrier) in &carriers {
        let Carrier::Xvip(xvip) = carrier else { unreachable!("all have been replaced") };
        let status = xvip.status().unwrap();
        let discarded = &instance(&status).advertisements.discarded;
        assert!(discarded.values().all(|count| *count == 0), "{topology:?} {node}: {discarded:?}");
    }
}

#[test]
fn clusters_move_to_xvip_one_node_at_a_time() {
    thread::scope(|scope| {
        for topology in [Topology::A, Topology::B, Topology::C, Topology::D] {
            scope.spawn(move || move_over(topology));
        }
    });
}
