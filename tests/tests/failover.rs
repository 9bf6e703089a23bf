//! Two daemons that hold the VIPs among themselves: who has them, when they move, and whether the status says the truth. Needs root.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_tests::{
    apiserver::Apiserver,
    client::{self, Load, Report},
    site::quick,
    topology::{Deployment, Topology},
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::{
    Status,
    vrrp::{Instance, State},
};
use nix::sys::signal::Signal;

const A: &str = "ha-lb-a";
const B: &str = "ha-lb-b";
const A_ADDRESS: [u8; 4] = [192, 168, 2, 10];
const B_ADDRESS: [u8; 4] = [192, 168, 2, 20];
/// A takeover takes less than half a second; a machine that is busy with other tests may take its time.
const LIMIT: Duration = Duration::from_secs(20);

/// Both appliances of deployment C: A with the higher priority, and a sync group over both families.
struct Pair {
    daemons: BTreeMap<&'static str, Xvip>,
    _apiservers: Vec<Apiserver>,
    deployment: Deployment,
}

impl Pair {
    /// The VIPs are at A when this returns.
    fn up(name: &str) -> Self {
        let deployment = Topology::C.build(name).unwrap();
        let apiservers = deployment.start_apiservers().unwrap();
        let mut pair = Self { daemons: BTreeMap::new(), _apiservers: apiservers, deployment };
        pair.start(A);
        pair.start(B);
        pair.wait_for(A, State::Master);
        pair.wait_for(B, State::Backup);
        pair
    }

    fn start(&mut self, node: &'static str) {
        self.start_with(node, "");
    }

    /// With something more in the last `[[vrrp]]` section.
    fn start_with(&mut self, node: &'static str, more: &str) {
        let configuration = quick(&self.deployment.xvip_config(node).unwrap()) + &self.vrrp(node) + more;
        let xvip = Xvip::start_with(&self.deployment, node, &configuration).unwrap();
        self.daemons.insert(node, xvip);
    }

    fn vrrp(&self, node: &str) -> String {
        let priority = if node == A { 100 } else { 98 };
        let section = |vrid, vip: &str| {
            format!(
                "\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {priority}\naddresses = [\"{vip}\"]\n\
                 sync_group = \"both\"\nnotify = {:?}\n",
                self.notify(node)
            )
        };
        section(51, "192.168.2.100") + &section(52, "fd00:2::100")
    }

    /// A program that writes down what it is told.
    fn notify(&self, node: &str) -> PathBuf {
        let host = self.deployment.host(node).unwrap();
        let path = host.directory().join("notify.sh");
        if !path.exists() {
            let text = format!("#!/bin/sh\necho \"$*\" >> {}\n", self.told_path(node).display());
            // By a shell: a file that this process has open for writing could not be executed by what it starts meanwhile.
            let path = path.to_str().unwrap();
            host.exec(&["sh", "-c", "printf %s \"$1\" > \"$0\"; chmod 755 \"$0\"", path, text.as_str()]).unwrap();
        }
        path
    }

    fn told_path(&self, node: &str) -> PathBuf {
        self.deployment.host(node).unwrap().directory().join("told")
    }

    fn xvip(&self, node: &str) -> &Xvip {
        &self.daemons[node]
    }

    /// Waits until both instances of a node are in this state, and the addresses where that says.
    fn wait_for(&self, node: &str, state: State) -> Status {
        let all = |status: &Status| {
            status.vrrp.len() == 2
                && status.vrrp.iter().all(|instance| instance.state == state)
                && status.virtual_servers.iter().all(|server| server.held == (state == State::Master))
        };
        self.xvip(node).wait_for(&format!("{node} to be {state:?}"), LIMIT, all).unwrap()
    }

    fn load(&self, v6: bool, requests: usize) -> Report {
        let client = self.deployment.client(Topology::C.endpoint(v6)).unwrap();
        self.deployment.client_host().run(|| client::run(&client, Load::sequential(requests))).unwrap()
    }

    fn assert_serves(&self) {
        for v6 in [false, true] {
            let report = self.load(v6, 10);
            assert_eq!(report.good(), 10, "IPv6: {v6}: {report}");
        }
    }

    /// Whether an address is on the host, whatever the daemon says.
    fn has(&self, node: &str, vip: &str) -> bool {
        let host = self.deployment.host(node).unwrap();
        host.exec(&["ip", "-o", "address", "show", "dev", "eth0"]).unwrap().contains(&format!(" {vip}/"))
    }

    fn mac(&self, node: &str) -> String {
        let host = self.deployment.host(node).unwrap();
        word_after(&host.exec(&["ip", "-o", "link", "show", "dev", "eth0"]).unwrap(), "link/ether ")
    }

    /// Whose answer a client that has forgotten everything gets.
    fn claimant(&self, vip: &str) -> String {
        let client = self.deployment.client_host();
        client.exec(&["ip", "neighbour", "flush", "dev", "eth0"]).unwrap();
        assert_eq!(self.load(false, 1).good(), 1);
        word_after(&client.exec(&["ip", "neighbour", "show", vip, "dev", "eth0"]).unwrap(), "lladdr ")
    }

    /// Makes all masters unreachable from one node, and from that alone.
    fn cut_off(&self, node: &str, verb: &str) {
        for master in self.deployment.nodes().iter().filter(|node| node.runs_apiserver) {
            for address in master.addresses() {
                let family = if address.is_ipv4() { "-4" } else { "-6" };
                self.deployment
                    .host(node)
                    .unwrap()
                    .exec(&["ip", family, "route", verb, "unreachable", &address.to_string()])
                    .unwrap();
            }
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
    let mut pair = Pair::up("stop");
    pair.assert_serves();
    let knows = |status: &Status| instance(status, 51).master.is_some();
    let status = pair.xvip(B).wait_for("B to know its master", LIMIT, knows).unwrap();
    let master = instance(&status, 51).master.unwrap();
    assert_eq!((master.address, master.priority), (IpAddr::from(A_ADDRESS), 100));
    assert!(!pair.has(B, "192.168.2.100") && !pair.has(B, "fd00:2::100"));

    let first = pair.daemons.remove(A).unwrap();
    let begun = Instant::now();
    first.process().signal(Signal::SIGTERM).unwrap();
    pair.wait_for(B, State::Master);
    // It still carries what is on its way.
    assert!(first.process().exited().is_none(), "{}", first.log());
    assert!(!pair.has(A, "192.168.2.100") && !pair.has(A, "fd00:2::100"));
    pair.assert_serves();
    assert!(first.process().wait(LIMIT).unwrap().success(), "{}", first.log());
    assert!(begun.elapsed() >= Duration::from_secs(2), "the drain was cut short");
    pair.assert_serves();
    pair.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_node_that_has_lost_its_backends_gives_the_vips_to_one_that_has_not() {
    let pair = Pair::up("lost");
    pair.cut_off(A, "add");
    pair.wait_for(B, State::Master);
    let status = pair.wait_for(A, State::Backup);
    let backup = instance(&status, 51);
    assert_eq!((backup.priority, backup.configured_priority), (1, 100));
    let backends = backup.tracked.iter().find(|tracked| tracked.name == "backends").unwrap();
    assert_eq!((backends.good, &*backends.text), (false, "0 of 3 healthy"));
    assert_eq!(backup.master.unwrap().address, IpAddr::from(B_ADDRESS));
    let shown = String::from_utf8(pair.xvip(A).command(&["status"]).unwrap().stdout).unwrap();
    assert!(shown.contains("vip51: backends: 0 of 3 healthy; this counts -253"), "{shown}");
    pair.assert_serves();

    pair.cut_off(A, "delete");
    pair.wait_for(A, State::Master);
    pair.wait_for(B, State::Backup);
    pair.assert_serves();
}

#[test]
fn a_node_that_somebody_takes_a_program_from_gives_the_vips_away() {
    let mut pair = Pair::up("stripped");
    let host = pair.deployment.host(A).unwrap().clone();
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
        pair.wait_for(B, State::Master);
        let status = pair.wait_for(A, State::Fault);
        let tracked = instance(&status, 51).tracked.iter().find(|tracked| tracked.name == "data plane").unwrap();
        let text = format!("eth0: program {program} is gone from it; a restart of xvip puts it back");
        assert_eq!((tracked.good, &*tracked.text), (false, &*text));
        pair.assert_serves();

        let first = pair.daemons.remove(A).unwrap();
        first.process().kill();
        pair.start(A);
        pair.wait_for(A, State::Master);
        pair.wait_for(B, State::Backup);
        pair.assert_serves();
    }
}

#[test]
fn if_nobody_reaches_a_backend_the_vips_stay() {
    let pair = Pair::up("nobody");
    let before = pair.xvip(A).status().unwrap();
    pair.cut_off(B, "add");
    let low = |status: &Status| status.vrrp.iter().all(|instance| instance.priority == 1);
    pair.xvip(B).wait_for("B to have lost its backends", LIMIT, low).unwrap();
    pair.cut_off(A, "add");
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
    let mut pair = Pair::up("script");
    let (flag, first) = (pair.deployment.host(A).unwrap().directory().join("good"), pair.daemons.remove(A).unwrap());
    assert!(first.stop().unwrap().success());
    fs::write(&flag, "").unwrap();
    let script = format!(
        "[[vrrp.script]]\nname = \"uplink\"\ncommand = [\"/usr/bin/test\", \"-e\", {flag:?}]\ninterval = \"200ms\"\ntimeout = \"200ms\"\n\
         fall = 2\nweight = -10\n"
    );
    pair.start_with(A, &script);
    pair.wait_for(A, State::Master);
    fs::remove_file(&flag).unwrap();
    pair.wait_for(B, State::Master);
    let status = pair.wait_for(A, State::Backup);
    // One instance has the script, and it counts for the group.
    assert_eq!((instance(&status, 51).priority, instance(&status, 52).priority), (90, 90));
    let script = instance(&status, 52).tracked.iter().find(|tracked| tracked.name == "script uplink").unwrap();
    assert_eq!((script.good, script.weight, &*script.text), (false, -10, "exit code 1"));
    fs::write(&flag, "").unwrap();
    pair.wait_for(A, State::Master);
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
    let pair = Pair::up("release");
    let output = pair.xvip(A).command(&["vrrp", "release"]).unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("vip51: 192.168.2.20 holds the VIPs now (priority 98)\n"), "{said}");
    pair.wait_for(B, State::Master);
    let status = pair.wait_for(A, State::Backup);
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
    pair.wait_for(A, State::Master);
    pair.wait_for(B, State::Backup);
    pair.assert_serves();
}

#[test]
fn a_client_that_misses_every_broadcast_is_told_by_itself() {
    let mut pair = Pair::up("told");
    // B gets to know the client while it has the VIPs.
    assert!(pair.daemons.remove(A).unwrap().stop().unwrap().success());
    pair.wait_for(B, State::Master);
    pair.assert_serves();
    let swept = |status: &Status| status.connections.tracked > 0;
    pair.xvip(B).wait_for("a sweep that has seen the client", LIMIT, swept).unwrap();
    pair.start(A);
    pair.wait_for(A, State::Master);
    pair.wait_for(B, State::Backup);
    assert_eq!(pair.claimant("192.168.2.100"), pair.mac(A));

    let client = pair.deployment.client_host();
    client.hear_broadcasts(false).unwrap();
    assert!(pair.daemons.remove(A).unwrap().stop().unwrap().success());
    pair.wait_for(B, State::Master);
    // It sends nothing, and so asks nobody.
    let (theirs, show) =
        (format!("lladdr {} ", pair.mac(B)), ["ip", "neighbour", "show", "192.168.2.100", "dev", "eth0"]);
    let learnt = || client.exec(&show).unwrap().contains(&theirs).then_some(());
    wait::until("the client to learn of B", LIMIT, learnt).unwrap();
    pair.assert_serves();
}

#[test]
fn a_daemon_that_hangs_does_not_claim_the_vips_and_listens_first_when_it_goes_on() {
    let pair = Pair::up("hang");
    let before = instance(&pair.xvip(A).status().unwrap(), 51).transitions;
    pair.xvip(A).process().signal(Signal::SIGSTOP).unwrap();
    pair.wait_for(B, State::Master);
    // The address is still there, and nobody but B answers for it.
    assert!(pair.has(A, "192.168.2.100"));
    let theirs = pair.mac(B);
    for _ in 0..10 {
        assert_eq!(pair.claimant("192.168.2.100"), theirs);
    }
    pair.assert_serves();

    pair.xvip(A).process().signal(Signal::SIGCONT).unwrap();
    // It gives up first, and comes back by its priority.
    let back = |status: &Status| {
        let instance = instance(status, 51);
        instance.state == State::Master && instance.transitions == before + 2
    };
    pair.xvip(A).wait_for("A to have given up and come back", LIMIT, back).unwrap();
    pair.wait_for(B, State::Backup);
    assert_eq!(pair.claimant("192.168.2.100"), pair.mac(A));
    pair.assert_serves();
}

#[test]
fn a_daemon_that_was_killed_claims_nothing_and_the_next_one_comes_back_in_order() {
    let mut pair = Pair::up("kill");
    let first = pair.daemons.remove(A).unwrap();
    first.process().kill();
    pair.wait_for(B, State::Master);
    // The address and the programs stayed behind, and the lease has ended.
    assert!(pair.has(A, "192.168.2.100"));
    let theirs = pair.mac(B);
    for _ in 0..10 {
        assert_eq!(pair.claimant("192.168.2.100"), theirs);
    }
    pair.assert_serves();

    pair.start(A);
    pair.wait_for(A, State::Master);
    pair.wait_for(B, State::Backup);
    assert_eq!(pair.claimant("192.168.2.100"), pair.mac(A));
    pair.assert_serves();
}

#[test]
fn programs_are_told_of_each_change() {
    let mut pair = Pair::up("notify");
    let daemon = pair.daemons.remove(A).unwrap();
    assert!(daemon.stop().unwrap().success());
    let told = fs::read_to_string(pair.told_path(A)).unwrap();
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
    let pair = Pair::up("metrics");
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
