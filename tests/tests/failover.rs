//! Two daemons that hold the VIPs among themselves: who has them, when they move, and whether the status says the truth. Needs root.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_tests::{
    client::Load,
    lab::Host,
    pair::{A, B, LIMIT, Pair, Setup},
    topology::Topology,
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::{
    Status,
    vrrp::{Instance, State},
};
use nix::sys::signal::Signal;

const A_ADDRESS: [u8; 4] = [192, 168, 2, 10];
const B_ADDRESS: [u8; 4] = [192, 168, 2, 20];

/// Both appliances, with programs that are told of changes.
fn up(name: &str) -> Pair {
    let instance = |host: &Host| format!("sync_group = \"both\"\nnotify = {:?}\n", notify(host));
    Pair::up(name, Setup { instance, ..Setup::default() }).unwrap()
}

/// A program that writes down what it is told.
fn notify(host: &Host) -> PathBuf {
    let path = host.directory().join("notify.sh");
    if !path.exists() {
        let text = format!("#!/bin/sh\necho \"$*\" >> {}\n", told_path(host).display());
        // By a shell: a file that this process has open for writing could not be executed by what it starts meanwhile.
        let path = path.to_str().unwrap();
        host.exec(&["sh", "-c", "printf %s \"$1\" > \"$0\"; chmod 755 \"$0\"", path, text.as_str()]).unwrap();
    }
    path
}

fn told_path(host: &Host) -> PathBuf {
    host.directory().join("told")
}

fn mac(pair: &Pair, node: &str) -> String {
    let host = pair.host(node);
    word_after(&host.exec(&["ip", "-o", "link", "show", "dev", "eth0"]).unwrap(), "link/ether ")
}

/// Whose answer a client that has forgotten everything gets.
fn claimant(pair: &Pair, vip: &str) -> String {
    let client = pair.deployment.client_host();
    client.exec(&["ip", "neighbour", "flush", "dev", "eth0"]).unwrap();
    assert_eq!(pair.deployment.load(false, Load::sequential(1)).unwrap().good(), 1);
    word_after(&client.exec(&["ip", "neighbour", "show", vip, "dev", "eth0"]).unwrap(), "lladdr ")
}

/// Makes all masters unreachable from one node, and from that alone.
fn cut_off(pair: &Pair, node: &str, verb: &str) {
    for master in pair.deployment.nodes().iter().filter(|node| node.runs_apiserver) {
        for address in master.addresses() {
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            pair.host(node).exec(&["ip", family, "route", verb, "unreachable", &address.to_string()]).unwrap();
        }
    }
}

fn word_after(text: &str, mark: &str) -> String {
    text.split_once(mark).and_then(|(_, rest)| rest.split(' ').next()).expect(text).to_owned()
}

fn instance(status: &Status, vrid: u8) -> &Instance {
    status.vrrp.iter().find(|instance| instance.vrid == vrid).unwrap()
}

#[test]
fn an_orderly_stop_hands_the_vips_over_before_the_daemon_ends() {
    let mut pair = up("stop");
    pair.assert_serves();
    let knows = |status: &Status| instance(status, 51).master.is_some();
    let status = pair.xvip(B).wait_for("B to know its master", LIMIT, knows).unwrap();
    let master = instance(&status, 51).master.unwrap();
    assert_eq!((master.address, master.priority), (IpAddr::from(A_ADDRESS), 100));
    assert!(!pair.has(B, "192.168.2.100").unwrap() && !pair.has(B, "fd00:2::100").unwrap());

    let first = pair.take(A).unwrap();
    let begun = Instant::now();
    first.process().signal(Signal::SIGTERM).unwrap();
    pair.wait_for(B, State::Master).unwrap();
    // It still carries what is on its way.
    assert!(first.process().exited().is_none(), "{}", first.log());
    assert!(!pair.has(A, "192.168.2.100").unwrap() && !pair.has(A, "fd00:2::100").unwrap());
    pair.assert_serves();
    assert!(first.process().wait(LIMIT).unwrap().success(), "{}", first.log());
    assert!(begun.elapsed() >= Duration::from_secs(2), "the drain was cut short");
    pair.assert_serves();
    pair.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_node_that_has_lost_its_backends_gives_the_vips_to_one_that_has_not() {
    let pair = up("lost");
    cut_off(&pair, A, "add");
    pair.wait_for(B, State::Master).unwrap();
    pair.wait_for(A, State::Backup).unwrap();
    // The whole group goes with the one that has lost its last backend; the other one's may go a moment later.
    let lost = |instance: &Instance| {
        let backends = instance.tracked.iter().find(|tracked| tracked.name == "backends");
        backends.is_some_and(|backends| !backends.good && backends.text == "0 of 3 healthy")
    };
    let status = pair.xvip(A).wait_for("A to miss all", LIMIT, |status| status.vrrp.iter().all(lost)).unwrap();
    let backup = instance(&status, 51);
    assert_eq!((backup.priority, backup.configured_priority), (1, 100));
    assert_eq!(backup.master.unwrap().address, IpAddr::from(B_ADDRESS));
    let shown = String::from_utf8(pair.xvip(A).command(&["status"]).unwrap().stdout).unwrap();
    assert!(shown.contains("vip51: backends: 0 of 3 healthy; this counts -253"), "{shown}");
    pair.assert_serves();

    cut_off(&pair, A, "delete");
    pair.wait_for(A, State::Master).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    pair.assert_serves();
}

#[test]
fn a_node_that_somebody_takes_a_program_from_gives_the_vips_away() {
    let mut pair = up("stripped");
    let host = pair.host(A).clone();
    let index = host.exec(&["cat", "/proc/net/dev_mcast"]).unwrap();
    let index =
        index.lines().find(|line| line.contains("eth0")).and_then(|line| line.split_whitespace().next()).unwrap();
    for (place, program) in [("xdp_native", "xdp_ingress"), ("tc_ingress", "tc_ingress"), ("tc_egress", "tc_egress")] {
        let pin = format!("links/{index}_{place}");
        // By its link, or by the link's name in the filesystem, which held it.
        if place == "tc_egress" {
            fs::remove_file(host.bpffs().unwrap().join(&pin)).unwrap();
        } else {
            host.cut_program(&pin).unwrap();
        }
        pair.wait_for(B, State::Master).unwrap();
        let status = pair.wait_for(A, State::Fault).unwrap();
        let tracked = instance(&status, 51).tracked.iter().find(|tracked| tracked.name == "data plane").unwrap();
        let text = format!("eth0: program {program} is gone from it; a restart of xvip puts it back");
        assert_eq!((tracked.good, &*tracked.text), (false, &*text));
        pair.assert_serves();

        let first = pair.take(A).unwrap();
        first.process().kill();
        pair.start(A).unwrap();
        pair.wait_for(A, State::Master).unwrap();
        pair.wait_for(B, State::Backup).unwrap();
        pair.assert_serves();
    }
}

#[test]
fn if_nobody_reaches_a_backend_the_vips_stay() {
    let pair = up("nobody");
    let before = pair.xvip(A).status().unwrap();
    cut_off(&pair, B, "add");
    let low = |status: &Status| status.vrrp.iter().all(|instance| instance.priority == 1);
    pair.xvip(B).wait_for("B to have lost its backends", LIMIT, low).unwrap();
    cut_off(&pair, A, "add");
    pair.xvip(A).wait_for("A to have lost them too", LIMIT, low).unwrap();
    // Equal now, and nobody preempts an equal: many advertisements later all is as it was.
    let sent = |status: &Status| instance(status, 51).advertisements.sent;
    let then = sent(&pair.xvip(A).status().unwrap());
    let after = pair.xvip(A).wait_for("20 advertisements more", LIMIT, |status| sent(status) >= then + 20).unwrap();
    for vrid in [51, 52] {
        assert_eq!(instance(&after, vrid).state, State::Master);
        assert_eq!(instance(&after, vrid).transitions, instance(&before, vrid).transitions);
    }
}

#[test]
fn a_script_that_fails_lowers_the_priority_by_its_weight() {
    let mut pair = up("script");
    let (flag, first) = (pair.host(A).directory().join("good"), pair.take(A).unwrap());
    assert!(first.stop().unwrap().success());
    fs::write(&flag, "").unwrap();
    let script = format!(
        "[[vrrp.script]]\nname = \"uplink\"\ncommand = [\"/usr/bin/test\", \"-e\", {flag:?}]\ninterval = \"200ms\"\ntimeout = \"200ms\"\n\
         fall = 2\nweight = -10\n"
    );
    let configuration = pair.configuration(A).unwrap() + &script;
    pair.start_as(A, &configuration).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    fs::remove_file(&flag).unwrap();
    pair.wait_for(B, State::Master).unwrap();
    let status = pair.wait_for(A, State::Backup).unwrap();
    // One instance has the script, and it counts for the group.
    assert_eq!((instance(&status, 51).priority, instance(&status, 52).priority), (90, 90));
    let script = instance(&status, 52).tracked.iter().find(|tracked| tracked.name == "script uplink").unwrap();
    assert_eq!((script.good, script.weight, &*script.text), (false, -10, "exit code 1"));
    fs::write(&flag, "").unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.assert_serves();
}

#[test]
fn the_file_of_another_node_is_refused() {
    let deployment = Topology::C.build("copied").unwrap();
    let vrrp = "\n[[vrrp]]\nname = \"apiserver\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"192.168.2.100\"]\n\
                peers = [\"192.168.2.20\", \"192.168.2.10\"]\n";
    let configuration = deployment.xvip_config(A).unwrap() + vrrp;
    for verb in ["check", "run"] {
        let output = Xvip::refuse(deployment.host(A).unwrap(), verb, &configuration).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(
            said.contains("[[vrrp]] \"apiserver\": 192.168.2.10 in `peers` is this host's own address. Leave it out"),
            "{said}"
        );
    }
}

#[test]
fn a_release_moves_the_vips_and_they_stay_there() {
    let pair = up("release");
    let output = pair.xvip(A).command(&["vrrp", "release"]).unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("vip51: 192.168.2.20 holds the VIPs now (priority 98)\n"), "{said}");
    pair.wait_for(B, State::Master).unwrap();
    let status = pair.wait_for(A, State::Backup).unwrap();
    assert!(status.vrrp.iter().all(|instance| instance.released), "{status:#?}");
    // Though its priority is higher, it does not come back while B is there.
    let heard = |status: &Status| instance(status, 51).advertisements.received;
    let then = heard(&status);
    let after = pair.xvip(A).wait_for("20 advertisements more", LIMIT, |status| heard(status) >= then + 20).unwrap();
    assert_eq!(instance(&after, 51).state, State::Backup);
    pair.assert_serves();

    // A second time there is nothing to hand over.
    let output = pair.xvip(A).command(&["vrrp", "release"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "this node holds no VIP of VRRP\n");

    // The other way, by the name of one: its sync group goes with it.
    let output = pair.xvip(B).command(&["vrrp", "release", "vip53"]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("no [[vrrp]] here is called `vip53`: there is vip51, vip52"),
        "{errors}"
    );
    let output = pair.xvip(B).command(&["vrrp", "release", "vip52"]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("vip51: 192.168.2.10 holds the VIPs now (priority 100)\n"),
        "{said}"
    );
    assert!(said.contains("vip52: "), "{said}");
    pair.wait_for(A, State::Master).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    pair.assert_serves();
}

#[test]
fn a_client_that_misses_every_broadcast_is_told_by_itself() {
    let mut pair = up("told");
    // B gets to know the client while it has the VIPs.
    assert!(pair.take(A).unwrap().stop().unwrap().success());
    pair.wait_for(B, State::Master).unwrap();
    pair.assert_serves();
    let swept = |status: &Status| status.connections.tracked > 0;
    pair.xvip(B).wait_for("a sweep that has seen the client", LIMIT, swept).unwrap();
    pair.start(A).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    assert_eq!(claimant(&pair, "192.168.2.100"), mac(&pair, A));

    let client = pair.deployment.client_host().clone();
    client.hear_broadcasts(false).unwrap();
    assert!(pair.take(A).unwrap().stop().unwrap().success());
    pair.wait_for(B, State::Master).unwrap();
    // It sends nothing, and so asks nobody.
    let (theirs, show) =
        (format!("lladdr {} ", mac(&pair, B)), ["ip", "neighbour", "show", "192.168.2.100", "dev", "eth0"]);
    let learnt = || client.exec(&show).unwrap().contains(&theirs).then_some(());
    wait::until("the client to learn of B", LIMIT, learnt).unwrap();
    pair.assert_serves();
}

#[test]
fn a_daemon_that_hangs_does_not_claim_the_vips_and_listens_first_when_it_goes_on() {
    let pair = up("hang");
    let before = instance(&pair.xvip(A).status().unwrap(), 51).transitions;
    pair.xvip(A).process().signal(Signal::SIGSTOP).unwrap();
    pair.wait_for(B, State::Master).unwrap();
    // The address is still there, and nobody but B answers for it.
    assert!(pair.has(A, "192.168.2.100").unwrap());
    let theirs = mac(&pair, B);
    for _ in 0..10 {
        assert_eq!(claimant(&pair, "192.168.2.100"), theirs);
    }
    pair.assert_serves();

    pair.xvip(A).process().signal(Signal::SIGCONT).unwrap();
    // It gives up first, and comes back by its priority.
    let back = |status: &Status| {
        let instance = instance(status, 51);
        instance.state == State::Master && instance.transitions == before + 2
    };
    pair.xvip(A).wait_for("A to have given up and come back", LIMIT, back).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    assert_eq!(claimant(&pair, "192.168.2.100"), mac(&pair, A));
    pair.assert_serves();
}

#[test]
fn a_daemon_that_was_killed_claims_nothing_and_the_next_one_comes_back_in_order() {
    let mut pair = up("kill");
    let first = pair.take(A).unwrap();
    first.process().kill();
    pair.wait_for(B, State::Master).unwrap();
    // The address and the programs stayed behind, and the lease has ended.
    assert!(pair.has(A, "192.168.2.100").unwrap());
    let theirs = mac(&pair, B);
    for _ in 0..10 {
        assert_eq!(claimant(&pair, "192.168.2.100"), theirs);
    }
    pair.assert_serves();

    pair.start(A).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    assert_eq!(claimant(&pair, "192.168.2.100"), mac(&pair, A));
    pair.assert_serves();
}

#[test]
fn programs_are_told_of_each_change() {
    let mut pair = up("notify");
    let daemon = pair.take(A).unwrap();
    assert!(daemon.stop().unwrap().success());
    let told = fs::read_to_string(told_path(pair.host(A))).unwrap();
    let of = |subject: &str| {
        told.lines().filter_map(|line| line.strip_prefix(subject)).map(str::to_owned).collect::<Vec<_>>()
    };
    for instance in ["INSTANCE vip51 ", "INSTANCE vip52 "] {
        let last = of(instance).split_off(of(instance).len() - 2);
        assert_eq!(last[0], "MASTER 100", "{told}");
        assert!(last[1].starts_with("STOP "), "{told}");
    }
    assert_eq!(of("GROUP both ").last().unwrap(), "MASTER 0", "{told}");
}

#[test]
fn metrics_tell_the_state_and_what_was_refused() {
    let pair = up("metrics");
    let text = |node: &str| String::from_utf8(pair.xvip(node).command(&["metrics"]).unwrap().stdout).unwrap();
    let (a, b) = (text(A), text(B));
    assert!(
        a.contains("xvip_vrrp_state{instance=\"vip51\",interface=\"eth0\",vrid=\"51\",state=\"master\"} 1\n"),
        "{a}"
    );
    assert!(
        b.contains("xvip_vrrp_state{instance=\"vip51\",interface=\"eth0\",vrid=\"51\",state=\"backup\"} 1\n"),
        "{b}"
    );
    assert!(b.contains("xvip_vrrp_priority{instance=\"vip52\"} 98\n"), "{b}");

    // One byte that is no advertisement, from a third machine.
    let host = pair.deployment.host("worker-1").unwrap();
    let socket = host.socket(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::from(112))).unwrap();
    let discarded = |status: &Status| instance(status, 51).advertisements.discarded["truncated"];
    host.enter(|| socket.bind_device(Some(b"eth0"))).unwrap().unwrap();
    let group = socket2::SockAddr::from(SocketAddr::from(([224, 0, 0, 18], 0)));
    let sent = wait::until("the refusal to be counted", LIMIT, || {
        host.enter(|| socket.send_to(&[0x31, 51, 0], &group)).unwrap().unwrap();
        pair.xvip(B).status().ok().filter(|status| discarded(status) > 0)
    });
    let status = sent.unwrap();
    let reports = &instance(&status, 51).reports;
    assert!(reports.iter().any(|report| report.text.starts_with("192.168.2.21 ")), "{reports:#?}");
}

#[test]
fn a_reload_changes_a_virtual_router_without_a_takeover() {
    const MORE: &str = "192.168.2.101";
    let pair = Pair::up("reloads", Setup { synced: true, ..Setup::default() }).unwrap();
    let base = [A, B].map(|node| pair.configuration(node).unwrap());
    let mastered = || pair.xvip(B).status().unwrap().vrrp.iter().map(|instance| instance.transitions).sum::<u64>();
    let streams = pair.deployment.streams(20, Duration::from_millis(20)).unwrap();
    streams.wait_for_lines(5, LIMIT).unwrap();

    let with = |node: usize, priority: u8, vips: &str| {
        let settings = format!("interval = \"200ms\"\npriority = {priority}");
        let text = base[node].replace(["priority = 100", "priority = 98"][node], &settings);
        text.replace("[\"192.168.2.100\"]", &format!("[{vips}]"))
    };
    let vip = "\"192.168.2.100\"";
    // Nobody notices but by what is advertised: the master goes on as master.
    pair.xvip(B).reload(&with(1, 150, vip)).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    let before = mastered();
    pair.xvip(A).reload(&with(0, 200, &format!("{vip}, \"{MORE}\""))).unwrap();
    let status = pair.wait_for(A, State::Master).unwrap();
    assert_eq!(instance(&status, 51).priority, 200);
    wait::until("the new VIP", LIMIT, || pair.has(A, MORE).unwrap().then_some(())).unwrap();
    let follows =
        |status: &Status| status.vrrp.iter().all(|one| one.master.is_some_and(|master| master.priority == 200));
    pair.xvip(B).wait_for("the new priority to be heard", LIMIT, follows).unwrap();
    pair.xvip(A).reload(&with(0, 200, vip)).unwrap();
    wait::until("the VIP to go", LIMIT, || (!pair.has(A, MORE).unwrap()).then_some(())).unwrap();
    assert!(pair.has(A, "192.168.2.100").unwrap() && pair.has(A, "fd00:2::100").unwrap());
    assert_eq!(mastered(), before, "{}", pair.xvip(B).log());

    // The lesser of two gives way, and takes back what is its again.
    pair.xvip(A).reload(&with(0, 50, vip)).unwrap();
    pair.wait_for(B, State::Master).unwrap();
    pair.wait_for(A, State::Backup).unwrap();
    pair.xvip(A).reload(&with(0, 200, vip)).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    // Another number is another virtual router: the one before is handed over in order.
    pair.xvip(A)
        .reload(&with(0, 200, vip).replace("vrid = 51", "vrid = 61").replace("vrid = 52", "vrid = 62"))
        .unwrap();
    pair.wait_for(B, State::Master).unwrap();
    streams.wait_for_lines(5, LIMIT).unwrap();
    for episode in streams.finish().unwrap() {
        assert!(episode.end.is_none() && episode.echoed > 5, "{episode:?}\n{}", pair.xvip(A).log());
    }
}
