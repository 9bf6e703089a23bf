//! VIPs at the MAC address of their virtual router: hosts and switches that believe no announcement follow them from node to node. Needs root.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use lb_tests::{
    client::{self, Load, Report},
    lab::Host,
    pair::{A, B, LIMIT, Pair, Setup},
    peer::Keepalived,
    site::Site,
    topology::{Deployment, Topology},
    traces::Traces,
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::{Status, vrrp::State};
use nix::sys::signal::Signal;

/// The VIPs of deployment C with the MAC addresses of virtual routers 51 and 52 (RFC 9568 §7.3).
const VIPS: [(&str, &str); 2] = [("192.168.2.100", "00:00:5e:00:01:33"), ("fd00:2::100", "00:00:5e:00:02:34")];

const SETUP: Setup = Setup { instance: |_| "virtual_mac = true\n".to_owned(), ..Setup::USUAL };

fn of(name: &str) -> Pair {
    Pair::of(Topology::C.build(name).unwrap(), SETUP).unwrap()
}

/// Sends from all hosts to the VIPs go to these MACs from now on, whatever anybody says.
fn make_stubborn(pair: &Pair) {
    for host in pair.deployment.lab.hosts() {
        for (vip, mac) in VIPS.iter().filter(|_| ![A, B].contains(&host.name())) {
            host.ip(&format!("neighbour replace {vip} lladdr {mac} dev eth0 nud permanent")).unwrap();
        }
    }
}

/// Whether the switch sends what goes to the virtual MACs to this node.
fn learned(pair: &Pair, node: &str) -> bool {
    let all = pair.host(node).learned().unwrap();
    VIPS.iter().all(|(_, mac)| all.contains(&(*mac).to_owned()))
}

/// What a host has in its cache about a VIP.
fn known(host: &Host, vip: &str) -> String {
    let text = host.exec(&["ip", "neighbour", "show", vip, "dev", "eth0"]).unwrap();
    text.split_once("lladdr ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default().to_owned()
}

/// The virtual MACs that a host listens to.
fn listens(host: &Host) -> Vec<String> {
    let text = host.exec(&["bridge", "fdb", "show", "dev", "eth0"]).unwrap();
    let all = text.lines().filter_map(|line| line.split(' ').next()).filter(|mac| mac.starts_with("00:00:5e:"));
    all.map(str::to_owned).collect()
}

/// VRRP, ARP and neighbour discovery.
fn is_of_interest(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x08, 0x00]) => frame.get(23) == Some(&112),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&112) || frame.get(20) == Some(&58),
        _ => false,
    }
}

/// What Wireshark finds in a recording: these fields of the packets that a filter picks.
fn dissect(file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is installed: `cargo xtask setup`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

#[test]
fn who_asks_is_told_the_virtual_mac_and_every_frame_for_the_vip_comes_from_it() {
    let mut pair = Pair::up("vmac", SETUP).unwrap();
    let client = &pair.deployment.client_host().clone();
    let capture = client.capture("said.pcap", is_of_interest).unwrap();
    pair.assert_serves();
    for (vip, mac) in VIPS {
        client.ip("neighbour flush dev eth0").unwrap();
        client.ping(vip.parse().unwrap()).unwrap();
        assert_eq!(known(client, vip), mac);
        // The holder forgets the client, too, and has to ask for it, as the VIP.
        pair.host(A).ip("neighbour flush dev eth0").unwrap();
        client.ping(vip.parse().unwrap()).unwrap();
        assert_eq!(known(client, vip), mac);
    }
    let link = pair.host(A).exec(&["ip", "-o", "link", "show", "dev", "eth0"]).unwrap();
    let own = link.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
    let first = pair.take(A).unwrap();
    first.stop().unwrap();
    pair.wait_for(B, State::Master).unwrap();
    for (vip, mac) in VIPS {
        wait::until("B's answer", LIMIT, || client.ping(vip.parse().unwrap()).ok()).unwrap();
        assert_eq!(known(client, vip), mac);
    }
    let file = capture.finish().unwrap();

    for (family, (vip, mac)) in [("ip", VIPS[0]), ("ipv6", VIPS[1])] {
        let adverts = dissect(&file, &format!("vrrp && {family} && vrrp.prio > 0"), &["eth.src", "eth.dst"]);
        assert!(adverts.len() >= 10, "{adverts:?}");
        let group = if family == "ip" { "01:00:5e:00:00:12" } else { "33:33:00:00:00:12" };
        assert!(adverts.iter().all(|advert| *advert == [mac, group]), "{adverts:?}");
        let farewell = dissect(&file, &format!("vrrp && {family} && vrrp.prio == 0"), &["eth.src"]);
        assert!(!farewell.is_empty() && farewell.iter().all(|advert| *advert == [own]), "{farewell:?}");
        let (filter, field) = match family {
            "ip" => (format!("arp.src.proto_ipv4 == {vip}"), "arp.src.hw_mac"),
            _ => (
                format!(
                    "(icmpv6.type == 136 && icmpv6.nd.na.target_address == {vip}) || (icmpv6.type == 135 && ipv6.src == {vip})"
                ),
                "icmpv6.opt.linkaddr",
            ),
        };
        let said = dissect(&file, &filter, &["eth.src", field, "icmpv6.checksum.status"]);
        assert!(said.len() >= 5, "{said:?}");
        let checked = if family == "ip" { "" } else { "1" };
        assert!(said.iter().all(|words| *words == [mac, mac, checked]), "{said:?}");
    }
}

#[test]
fn hosts_that_ignore_announcements_follow_by_the_switch() {
    let mut pair = Pair::up("stubborn", SETUP).unwrap();
    make_stubborn(&pair);
    pair.assert_serves();
    assert!(learned(&pair, A) && !learned(&pair, B));

    // Power off: nobody says a word, and what B says is not believed.
    pair.host(A).unplug().unwrap();
    pair.wait_for(B, State::Master).unwrap();
    pair.assert_serves();
    assert!(learned(&pair, B) && !learned(&pair, A));
    for (vip, mac) in VIPS {
        assert_eq!(known(pair.deployment.client_host(), vip), mac);
        assert!(pair.deployment.client_host().ping(vip.parse().unwrap()).is_ok());
    }
    // Both are masters for a moment when the network heals.
    pair.host(A).plug().unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    wait::until("the switch to know", LIMIT, || (learned(&pair, A) && !learned(&pair, B)).then_some(())).unwrap();
    pair.assert_serves();

    // An orderly stop: the farewell must not draw the MAC back.
    let first = pair.take(A).unwrap();
    first.stop().unwrap();
    pair.wait_for(B, State::Master).unwrap();
    pair.assert_serves();
    assert!(learned(&pair, B));
    pair.deployment.lab.assert_checksums_clean();
}

/// All that a daemon may leave on a node, before it is started and after it has ended.
fn traces(pair: &Pair, node: &str) -> Traces {
    Traces::of(pair.host(node), "eth0", &pair.deployment.control_socket(node).unwrap()).unwrap()
}

#[test]
fn nothing_is_left_behind() {
    let mut pair = of("vmacleft");
    // A killed daemon cannot put it back, and the next one takes it for the administrator's.
    for family in ["ipv4", "ipv6"] {
        pair.host(A).sysctl(&format!("net/{family}/conf/eth0/forwarding"), "1").unwrap();
    }
    let before = traces(&pair, A);
    pair.start(A).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.start(B).unwrap();
    pair.wait_for(B, State::Backup).unwrap();
    assert_eq!(listens(pair.host(A)).len(), 2);
    assert_eq!(listens(pair.host(B)), [""; 0], "it has never been master");

    // Killed: what came to the virtual MAC is carried on, until another node is there.
    pair.take(A).unwrap().process().kill();
    assert_eq!(listens(pair.host(A)).len(), 2);
    pair.wait_for(B, State::Master).unwrap();
    assert!(pair.has(A, VIPS[0].0).unwrap());
    pair.assert_serves();

    // The next one, that is not to have a virtual MAC.
    let without = pair.configuration(A).unwrap().replace("virtual_mac = true\n", "");
    pair.start_as(A, &without).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    assert_eq!(listens(pair.host(A)), [""; 0]);
    let first = pair.take(A).unwrap();
    assert!(first.stop().unwrap().success());
    assert_eq!(traces(&pair, A).since(&before), [""; 0]);

    // The next one, that is.
    pair.start(A).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.take(A).unwrap().process().kill();
    pair.start(A).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    pair.assert_serves();
    let first = pair.take(A).unwrap();
    assert!(first.stop().unwrap().success());
    assert_eq!(traces(&pair, A).since(&before), [""; 0]);
}

#[test]
fn one_that_somebody_takes_off_is_put_back() {
    let pair = Pair::up("vmacoff", SETUP).unwrap();
    for (_, mac) in VIPS {
        pair.host(A).exec(&["bridge", "fdb", "del", mac, "dev", "eth0", "self"]).unwrap();
    }
    wait::until("both to be back", LIMIT, || (listens(pair.host(A)).len() == 2).then_some(())).unwrap();
    assert!(pair.daemons[A].log().contains("vip51: eth0 had lost its virtual MAC: put back"));
    pair.assert_serves();
}

/// The holder is a backend itself: packets go up its stack, though they came to a MAC that its interface does not have.
#[test]
fn a_stacked_master_reaches_its_own_apiserver() {
    const HOLDER: &str = "master-1";
    let endpoints = Topology::D.endpoints();
    let vips = [false, true].map(|v6| Topology::D.endpoint(v6).ip());
    let site = Site::up_with(Topology::D, "vmacd", HOLDER, |configuration| {
        let section = |(vrid, vip): (u8, IpAddr)| {
            format!("\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\naddresses = [\"{vip}\"]\nvirtual_mac = true\n")
        };
        configuration + &(51..).zip(vips).map(section).collect::<String>()
    })
    .unwrap();
    let master = |status: &Status| status.vrrp.iter().all(|instance| instance.state == State::Master);
    site.xvip.wait_for("the VIPs", LIMIT, master).unwrap();
    for endpoint in endpoints {
        let sources = site.sources(endpoint.is_ipv6(), 60).unwrap();
        let client = site.deployment.client(endpoint).unwrap();
        let load = Load { sources: sources.clone(), concurrency: 10, ..Load::sequential(sources.len()) };
        let report = site.deployment.client_host().run(|| client::run(&client, load)).unwrap();
        assert_eq!(report.good(), sources.len(), "{endpoint}: {report}");
        assert!(report.backends().get(HOLDER).is_some_and(|count| *count >= 10), "{endpoint}: {report}");
        assert!(known(site.deployment.client_host(), &endpoint.ip().to_string()).starts_with("00:00:5e:00:"));
    }
    site.deployment.lab.assert_checksums_clean();
}

/// A bridge keeps the addresses that it takes frames for among those that it has learned, and has no native XDP.
#[test]
fn a_bridge_listens_too() {
    let mut pair = of("vmacbr");
    let host = pair.host(A);
    for line in ["link add br0 type bridge", "address flush dev eth0", "link set eth0 master br0", "link set br0 up"] {
        host.ip(line).unwrap();
    }
    for network in pair.deployment.node(A).unwrap().networks() {
        host.add_address("br0", network).unwrap();
    }
    let configuration = pair.configuration(A).unwrap();
    pair.start_as(A, &configuration.replace("eth0", "br0")).unwrap();
    pair.wait_for(A, State::Master).unwrap();
    make_stubborn(&pair);
    pair.assert_serves();
    for (vip, _) in VIPS {
        assert!(pair.deployment.client_host().ping(vip.parse().unwrap()).is_ok());
    }
    let listens = || pair.host(A).exec(&["bridge", "fdb", "show"]).unwrap().matches("00:00:5e:00:").count();
    assert_eq!(listens(), 2);
    pair.daemons[A].process().signal(Signal::SIGTERM).unwrap();
    assert!(pair.daemons[A].process().wait(LIMIT).unwrap().success());
    assert_eq!(listens(), 0);
}

/// keepalived makes an interface for the virtual MAC, xvip none; for everybody else it is one router.
#[test]
fn keepalived_with_use_vmac_and_xvip_share_one_mac() {
    let mut pair = of("vmacpeer");
    let instance = |vrid: u8, vip: &str| {
        format!(
            "vrrp_instance VI_{vrid} {{\n state BACKUP\n interface eth0\n virtual_router_id {vrid}\n priority 99\n advert_int 0.2\n use_vmac vrrp.{vrid}\n \
             virtual_ipaddress {{\n {vip}\n }}\n}}\n"
        )
    };
    let text = format!("global_defs {{\n vrrp_version 3\n}}\n{}{}", instance(51, VIPS[0].0), instance(52, VIPS[1].0));
    let keepalived = Keepalived::start(pair.host(B), &text).unwrap();
    let client = pair.deployment.client_host().clone();
    let answered = |by: &str, vip: &str| {
        let (host, vip) = (pair.host(by), vip.parse::<IpAddr>().unwrap());
        let is_so = || (host.addresses().unwrap().contains(&vip) && client.ping(vip).is_ok()).then_some(());
        wait::until(&format!("{vip} at {by}, and an answer"), LIMIT, is_so).unwrap();
    };
    // Asking for a client, keepalived's host names its other MAC beside the VIP; a cache would believe that.
    for (vip, mac) in VIPS {
        client.ip(&format!("neighbour replace {vip} lladdr {mac} dev eth0 nud permanent")).unwrap();
        answered(B, vip);
    }
    let configuration =
        (pair.configuration(A).unwrap()).replace("virtual_mac = true\n", "interval = \"200ms\"\nvirtual_mac = true\n");
    let xvip = Xvip::start_with(&pair.deployment, A, &configuration).unwrap();
    VIPS.iter().for_each(|(vip, _)| answered(A, vip));
    xvip.wait_for("the VIPs", LIMIT, |status| status.vrrp.iter().all(|instance| instance.state == State::Master))
        .unwrap();
    for endpoint in [false, true].map(|v6| Topology::C.endpoint(v6)) {
        let report = requests(&pair.deployment, endpoint);
        assert_eq!(report.good(), 10, "{report}");
    }
    assert!(xvip.stop().unwrap().success());
    VIPS.iter().for_each(|(vip, _)| answered(B, vip));
    let xvip = Xvip::start_with(&pair.deployment, A, &configuration).unwrap();
    VIPS.iter().for_each(|(vip, _)| answered(A, vip));

    let status = xvip.status().unwrap();
    for instance in &status.vrrp {
        assert!(instance.advertisements.discarded.values().all(|count| *count == 0), "{instance:#?}");
        assert!(instance.reports.is_empty(), "{instance:#?}");
    }
    let tallies = keepalived.tallies().unwrap();
    assert!(tallies.values().all(|tally| tally.errors.is_empty() && tally.received > 0), "{tallies:?}");
    pair.daemons.insert(A, xvip);
}

fn requests(deployment: &Deployment, endpoint: SocketAddr) -> Report {
    let client = deployment.client(endpoint).unwrap();
    deployment.client_host().run(|| client::run(&client, Load::sequential(10))).unwrap()
}
