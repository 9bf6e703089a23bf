//! Stacked masters: the VIP's holder is a backend itself, and VIP:6443 and its apiserver's port are the same. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    client::{Client, Load, run, transfer},
    site::{DETECTION, Site, quick},
    topology::{APISERVER_PORT, CLIENT, Deployment, Topology},
    xvip::Xvip,
};
use lb_userspace::{
    admin::{Status, vrrp::State as Role},
    health::State,
};
use tokio::net::TcpStream;

const HOLDER: &str = "master-1";
const NEXT: &str = "master-2";
const MASTERS: [&str; 3] = [HOLDER, NEXT, "master-3"];
const SOURCES: u32 = 60;
/// Far more than a socket's buffers, so that segments are as large as offloads make them.
const LARGE: usize = 8 << 20;
/// A takeover takes less than half a second; a machine that is busy with other tests may take its time.
const LIMIT: Duration = Duration::from_secs(20);
/// What a stream waits at most for one answer: the takeover, and a retransmission or two.
const LONGEST: Duration = Duration::from_secs(4);
const PACE: Duration = Duration::from_millis(50);

fn site(name: &str) -> Site {
    Site::up(Topology::D, name, HOLDER).unwrap()
}

/// A source that `backend` answers on that endpoint.
fn source_of(site: &Site, client: &Client, sources: &[IpAddr], backend: &str) -> IpAddr {
    let load = Load { sources: sources.to_vec(), concurrency: 10, ..Load::sequential(sources.len()) };
    let report = site.deployment.client_host().run(|| run(client, load)).unwrap();
    let all = report.by_source();
    let found = all.iter().find(|(_, name)| **name == backend);
    *found.unwrap_or_else(|| panic!("{backend} answers nobody: {report}")).0
}

/// The holder's own address, which its apiserver is a backend by.
fn own(site: &Site, v6: bool) -> SocketAddr {
    let [v4_address, v6_address] = site.deployment.node(HOLDER).unwrap().addresses();
    SocketAddr::new(if v6 { v6_address } else { v4_address }, APISERVER_PORT)
}

#[test]
fn every_master_answers_at_every_endpoint_and_the_holders_own_sees_the_client() {
    let site = site("stacked");
    for endpoint in Topology::D.endpoints() {
        let v6 = endpoint.is_ipv6();
        let sources = site.sources(v6, SOURCES).unwrap();
        let client = site.deployment.client(endpoint).unwrap();
        let ask = |source: IpAddr| {
            let from = Some(SocketAddr::new(source, 0));
            site.deployment.client_host().run(|| client.request(from)).unwrap().unwrap()
        };
        let mut answered = BTreeSet::new();
        for source in sources {
            let answer = ask(source);
            let seen: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            let peer: SocketAddr = seen["peer"].as_str().unwrap().parse().unwrap();
            let wanted = if answer.backend == HOLDER { source } else { endpoint.ip() };
            assert_eq!(peer.ip(), wanted, "{endpoint}: {}", answer.body);
            if answer.backend == HOLDER {
                let local: SocketAddr = seen["local"].as_str().unwrap().parse().unwrap();
                assert_eq!(local, own(&site, v6));
            }
            answered.insert(answer.backend);
        }
        assert_eq!(answered, BTreeSet::from(["master-1", "master-2", "master-3"].map(str::to_owned)), "{endpoint}");
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn one_client_port_can_be_used_for_the_vip_and_for_the_same_apiserver_directly() {
    let site = site("oneport");
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let vip =
            Topology::D.endpoints().into_iter().find(|e| e.is_ipv6() == v6 && e.port() == APISERVER_PORT).unwrap();
        let through = site.deployment.client(vip).unwrap();
        let direct = site.deployment.client(own(&site, v6)).unwrap();
        let source = source_of(&site, &through, &sources, HOLDER);
        for (port, order) in [(40_001, [&through, &direct]), (40_002, [&direct, &through])] {
            let from = Some(SocketAddr::new(source, port));
            // Both are open before either is used, and the one opened first is used last.
            let both = || async move {
                let first: TcpStream = order[0].connect(from).await?;
                let second = order[1].connect(from).await?;
                let later = order[1].request_over(second).await?;
                Ok::<_, lb_tests::client::Failure>([order[0].request_over(first).await?, later])
            };
            let answers = site.deployment.client_host().run(both).unwrap();
            for answer in answers.unwrap_or_else(|failure| panic!("IPv6 {v6}, port {port}: {failure}")) {
                assert_eq!(answer.backend, HOLDER);
                assert!(answer.body.contains(&source.to_string()), "{}", answer.body);
            }
        }
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn large_bodies_come_back_whole_from_near_and_far() {
    let site = site("large");
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let mut client = site.client(v6).unwrap();
        client.timeout = Duration::from_secs(30);
        for backend in [HOLDER, "master-2"] {
            let from = SocketAddr::new(source_of(&site, &client, &sources, backend), 0);
            let echoed = site.deployment.client_host().run(|| transfer(&client, Some(from), LARGE)).unwrap();
            assert_eq!(echoed.as_deref(), Ok(backend), "IPv6 {v6}");
        }
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_master_that_calls_the_vip_may_be_sent_to_itself() {
    let site = site("hairpin");
    for v6 in [false, true] {
        let client = site.client(v6).unwrap();
        let sources = site.sources_on("master-2", v6, SOURCES).unwrap();
        let load = Load { sources: sources.clone(), ..Load::sequential(sources.len()) };
        let report = site.host("master-2").run(|| run(&client, load)).unwrap();
        assert_eq!(report.good(), sources.len(), "{report}");
        for backend in [HOLDER, "master-2", "master-3"] {
            assert!(report.backends().get(backend).is_some_and(|count| *count >= 10), "{report}");
        }
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn the_holder_reaches_its_own_apiserver_by_the_vip() {
    let site = site("holder");
    for endpoint in Topology::D.endpoints().into_iter().filter(|endpoint| endpoint.port() == APISERVER_PORT) {
        let client = site.deployment.client(endpoint).unwrap();
        let report = site.host(HOLDER).run(|| run(&client, Load::sequential(5))).unwrap();
        assert_eq!(report.backends().get(HOLDER), Some(&5), "{report}");
        assert!(site.host(CLIENT).ping(endpoint.ip()).is_ok());
    }
}

#[test]
fn when_the_holders_own_apiserver_dies_its_clients_go_to_the_others_and_return() {
    let mut site = site("owndies");
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let before = site.map(v6, &sources).unwrap();
        assert!(before.backends().contains_key(HOLDER), "{before}");
        site.apiserver(HOLDER).unwrap().kill();
        site.wait_for_state(HOLDER, State::Down).unwrap();
        let without = site.map(v6, &sources).unwrap();
        assert_eq!((without.good(), without.backends().get(HOLDER)), (sources.len(), None), "{without}");
        site.restart(HOLDER).unwrap();
        site.wait_for_state(HOLDER, State::Up).unwrap();
        assert_eq!(site.map(v6, &sources).unwrap().by_source(), before.by_source());
    }
    site.deployment.lab.assert_checksums_clean();
}

/// A's masters hold the VIPs of both families among themselves, the first of them first, and tell each other of connections.
fn shared(deployment: &Deployment, node: &str) -> String {
    let place = MASTERS.iter().position(|master| *master == node).unwrap();
    let address = |node: &str| format!("{}:9096", deployment.node(node).unwrap().v4);
    let peers: Vec<String> = MASTERS.iter().filter(|other| **other != node).map(|other| address(other)).collect();
    let key = deployment.host(node).unwrap().directory().join("sync.key");
    fs::write(&key, "5a".repeat(32)).unwrap();
    let instance = |v6: bool| {
        format!(
            "\n[[vrrp]]\nname = \"vip{v6}\"\ninterface = \"eth0\"\nvrid = {}\npriority = {}\naddresses = [\"{}\"]\nsync_group = \"both\"\n",
            50 + u8::from(v6),
            100 - 2 * place,
            Topology::A.endpoint(v6).ip(),
        )
    };
    let sync = format!("\n[sync]\nlisten = {:?}\npeers = {peers:?}\nkey_file = {key:?}\n", address(node));
    quick(&deployment.xvip_config(node).unwrap()) + &instance(false) + &instance(true) + &sync
}

fn wait_for_role(xvip: &Xvip, role: Role) {
    let all = |status: &Status| status.vrrp.len() == 2 && status.vrrp.iter().all(|instance| instance.state == role);
    xvip.wait_for(&format!("it to be {role:?}"), LIMIT, all).unwrap();
}

/// Waits until a node reaches all backends and hears all others.
fn wait_for_sight(xvip: &Xvip) {
    let all = |status: &Status| {
        let backends = status.virtual_servers.iter().flat_map(|server| &server.backends);
        let peers = status.sync.iter().flat_map(|sync| &sync.peers);
        backends.into_iter().all(|backend| backend.state == State::Up)
            && peers.filter(|peer| peer.connected).count() == 2
    };
    xvip.wait_for("everybody to be in sight", LIMIT, all).unwrap();
}

/// What is on the loopback interface for connections that change hands: the program's link, and whether the interface forwards.
fn on_loopback(site: &Site, node: &str) -> (bool, String) {
    let host = site.host(node);
    let pin = host.bpffs().unwrap().join("links/1_tc_egress");
    let forwards = ["ipv4", "ipv6"].map(|family| {
        host.exec(&["cat".to_owned(), format!("/proc/sys/net/{family}/conf/lo/forwarding")]).unwrap().trim().to_owned()
    });
    (pin.exists(), forwards.concat())
}

#[test]
fn streams_outlive_their_holder_and_those_of_its_successors_own_apiserver_do_too() {
    let deployment = Topology::A.build("inherits").unwrap();
    let first = shared(&deployment, HOLDER);
    let mut site = Site::of(deployment, HOLDER, &first).unwrap();
    let others = [NEXT, MASTERS[2]]
        .map(|node| Xvip::start_with(&site.deployment, node, &shared(&site.deployment, node)).unwrap());
    let [next, _] = &others;
    others.iter().chain([&site.xvip]).for_each(wait_for_sight);
    wait_for_role(&site.xvip, Role::Master);
    wait_for_role(next, Role::Backup);
    assert_eq!(on_loopback(&site, NEXT), (true, "11".to_owned()));

    let streams = site.deployment.streams(SOURCES, PACE).unwrap();
    streams.wait_for_lines(1, LIMIT).unwrap();
    let all = |status: &Status| status.sync.as_ref().is_some_and(|sync| sync.taken >= u64::from(SOURCES));
    others.iter().for_each(|xvip| drop(xvip.wait_for("all connections to be known there", LIMIT, all).unwrap()));

    site.xvip.process().kill();
    wait_for_role(next, Role::Master);
    streams.wait_for_lines(20, LIMIT).unwrap();
    let counters = next.status().unwrap().counters;
    let counted = |name: &str| counters.drops.get(name).or(counters.events.get(name)).copied();
    assert_eq!(["rebuilt", "orphan", "no_route"].map(counted), [Some(0); 3], "{counters:#?}");

    // They go on where they came from, and come again.
    site.xvip = Xvip::start_with(&site.deployment, HOLDER, &first).unwrap();
    wait_for_role(&site.xvip, Role::Master);
    streams.wait_for_lines(20, LIMIT).unwrap();
    let unplugged = Instant::now();
    site.host(HOLDER).unplug().unwrap();
    wait_for_role(next, Role::Master);
    streams.wait_for_lines(20, LIMIT + 2 * DETECTION).unwrap();

    let episodes = streams.finish().unwrap();
    let mut seen = BTreeSet::new();
    for stream in 0..SOURCES as usize {
        let episode = episodes.iter().find(|episode| episode.stream == stream).unwrap();
        seen.insert((episode.backend.as_str(), episode.source.is_ipv6()));
        let (gap, end) = (episode.gaps.iter().max().unwrap(), episode.end.as_ref());
        // Its apiserver went with its host.
        let spared = episode.backend != HOLDER;
        let whole = if spared { end.is_none() && *gap < LONGEST } else { end.is_some_and(|end| end.at > unplugged) };
        assert!(whole, "{episode:?}\n{}", next.log());
    }
    assert_eq!(seen.len(), 2 * MASTERS.len(), "{seen:?}");
    site.deployment.lab.assert_checksums_clean();

    let [next, third] = others;
    drop(third);
    next.stop().unwrap();
    assert_eq!(on_loopback(&site, NEXT), (false, "00".to_owned()));
}
