//! Connections that both appliances know: what a failover leaves of them. Needs root.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    client::{EchoReport, Failure},
    site::{Site, quick},
    topology::{Deployment, Topology},
    wait,
    xvip::Xvip,
};
use lb_userspace::{
    admin::{Status, vrrp::State as Role},
    health::State,
};
use socket2::{Domain, Socket, Type};

const A: &str = "ha-lb-a";
const B: &str = "ha-lb-b";
/// Gone while the streams begin: so their connections are not where hashing would put them after it is back.
const ABSENT: &str = "master-2";
const STREAMS: u32 = 30;
const LIMIT: Duration = Duration::from_secs(20);
/// What a stream waits at most for one answer: the takeover, and a retransmission or two.
const LONGEST: Duration = Duration::from_secs(4);

fn configuration(deployment: &Deployment, node: &str) -> String {
    let (priority, own, other) = if node == A { (100, "10", "20") } else { (98, "20", "10") };
    let key = deployment.host(node).unwrap().directory().join("sync.key");
    fs::write(&key, "5a".repeat(32)).unwrap();
    let section = |vrid, vip: &str| {
        format!(
            "\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {priority}\naddresses = [\"{vip}\"]\n\
             sync_group = \"both\"\n"
        )
    };
    quick(&deployment.xvip_config(node).unwrap())
        + &section(51, "192.168.2.100")
        + &section(52, "fd00:2::100")
        + &format!(
            "\n[sync]\nlisten = \"192.168.2.{own}:9096\"\npeers = [\"192.168.2.{other}:9096\"]\nkey_file = {key:?}\n"
        )
}

fn wait_for(xvip: &Xvip, role: Role) {
    let all = |status: &Status| status.vrrp.len() == 2 && status.vrrp.iter().all(|instance| instance.state == role);
    xvip.wait_for(&format!("it to be {role:?}"), LIMIT, all).unwrap();
}

fn wait_for_backend(xvip: &Xvip, name: &str, state: State) {
    let backends =
        |status: &Status| status.virtual_servers.iter().flat_map(|server| server.backends.clone()).collect::<Vec<_>>();
    let all = |status: &Status| backends(status).iter().all(|backend| backend.name != name || backend.state == state);
    xvip.wait_for(&format!("{name} to be {state:?}"), LIMIT, all).unwrap();
}

/// Both nodes, which hear each other; the VIPs are at A.
fn pair(name: &str) -> (Site, Xvip) {
    let deployment = Topology::C.build(name).unwrap();
    let text = configuration(&deployment, A);
    let site = Site::of(deployment, A, &text).unwrap();
    let b = Xvip::start_with(&site.deployment, B, &configuration(&site.deployment, B)).unwrap();
    wait_for(&site.xvip, Role::Master);
    wait_for(&b, Role::Backup);
    for xvip in [&site.xvip, &b] {
        let connected = |status: &Status| status.sync.as_ref().is_some_and(|sync| sync.peers[0].connected);
        xvip.wait_for("the peer to be there", LIMIT, connected).unwrap();
    }
    (site, b)
}

fn wait_for_taken(xvip: &Xvip, connections: u32) {
    let all = |status: &Status| status.sync.as_ref().is_some_and(|sync| sync.taken >= u64::from(connections));
    xvip.wait_for("all connections to be known there", LIMIT, all).unwrap();
}

/// Streams of both families, opened while a backend is away; then it returns, and `faults` come with the VIPs at A.
fn survive(name: &str, faults: impl Fn(&Site, &Xvip) + Sync) {
    let (site, b) = pair(name);
    site.host(ABSENT).unplug().unwrap();
    wait_for_backend(&site.xvip, ABSENT, State::Down);
    wait_for_backend(&b, ABSENT, State::Down);

    let scene = || {
        wait_for_taken(&b, 2 * STREAMS);
        site.host(ABSENT).plug()?;
        wait_for_backend(&site.xvip, ABSENT, State::Up);
        wait_for_backend(&b, ABSENT, State::Up);
        faults(&site, &b);
        anyhow::Ok(())
    };
    let sources = |v6| site.sources(v6, STREAMS).unwrap();
    let (four, six) = thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let six =
            scope.spawn(|| site.echo_during(true, &sources(true), move || Ok(stopped.recv().is_err())).unwrap().1);
        let ((), four) = site.echo_during(false, &sources(false), scene).unwrap();
        drop(stop);
        (four, six.join().unwrap())
    });
    assert_whole(&four, &b);
    assert_whole(&six, &b);
    site.deployment.lab.assert_checksums_clean();
}

fn assert_whole(streams: &[Result<EchoReport, Failure>], xvip: &Xvip) {
    let longest = streams.iter().flatten().map(|stream| stream.longest).max();
    println!("{} streams, the longest wait {longest:?}", streams.len());
    for stream in streams {
        let stream = stream.as_ref().unwrap();
        assert!(stream.failure.is_none() && stream.longest < LONGEST, "{stream:?}\n{}", xvip.log());
        assert!(stream.echoed > 20 && stream.backend != ABSENT, "{stream:?}");
    }
}

/// That every connection now goes by this node, and none had to be guessed.
fn assert_carries_all(xvip: &Xvip) {
    let own = |status: &Status| {
        let active =
            status.virtual_servers.iter().flat_map(|server| &server.backends).filter_map(|b| b.active_connections);
        active.sum::<u64>() >= u64::from(2 * STREAMS)
    };
    let status = xvip.wait_for("all connections to be counted", LIMIT, own).unwrap();
    assert_eq!(status.counters.events.get("rebuilt").copied().unwrap_or_default(), 0, "{status:#?}");
    assert_eq!(status.counters.drops.get("orphan").copied().unwrap_or_default(), 0, "{status:#?}");
}

/// Lets every stream send some lines the way it is now.
fn let_run() {
    let start = Instant::now();
    wait::until("the streams to go on", LIMIT, || (start.elapsed() > Duration::from_secs(2)).then_some(())).unwrap();
}

#[test]
fn streams_outlive_the_loss_of_the_master_and_its_return() {
    survive("loss", |site, b| {
        site.host(A).unplug().unwrap();
        wait_for(b, Role::Master);
        let_run();
        assert_carries_all(b);
        site.host(A).plug().unwrap();
        wait_for(&site.xvip, Role::Master);
        let_run();
        assert_carries_all(&site.xvip);
    });
}

#[test]
fn streams_outlive_a_killed_master() {
    survive("killed", |site, b| {
        site.xvip.process().kill();
        wait_for(b, Role::Master);
        let_run();
        assert_carries_all(b);
    });
}

#[test]
fn idle_clients_of_a_backend_that_the_new_master_does_not_reach_are_told() {
    let (site, b) = pair("unreached");
    let sources = site.sources(false, STREAMS).unwrap();
    let answers = site.map(false, &sources).unwrap();
    let before = b.status().unwrap().sync.map_or(0, |sync| sync.taken);
    let open = |source: &IpAddr| {
        let vip = Topology::C.endpoint(false);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(*source, 0).into()).unwrap();
        socket.connect(&vip.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        (TcpStream::from(socket), answers.by_source()[source] == ABSENT)
    };
    let clients = site.deployment.client_host().enter(|| sources.iter().map(open).collect::<Vec<_>>()).unwrap();
    assert!(clients.iter().filter(|(_, doomed)| *doomed).count() >= 3);
    wait_for_taken(&b, before as u32 + STREAMS);

    let [absent, _] = site.deployment.node(ABSENT).unwrap().addresses();
    site.host(B).exec(&["ip", "route", "add", "unreachable", &absent.to_string()]).unwrap();
    let down = |status: &Status| status.virtual_servers[0].backends.iter().any(|backend| backend.state == State::Down);
    b.wait_for("B to miss it", LIMIT, down).unwrap();
    site.host(A).unplug().unwrap();
    wait_for(&b, Role::Master);
    let end = |stream: &TcpStream| (&*stream).read(&mut [0; 1]).map_err(|error| error.kind());
    let mut waiting: Vec<&TcpStream> = clients.iter().filter(|(_, doomed)| *doomed).map(|(stream, _)| stream).collect();
    let told = || {
        waiting.retain(|stream| match end(stream) {
            Err(ErrorKind::WouldBlock) => true,
            other => {
                assert_eq!(other, Err(ErrorKind::ConnectionReset));
                false
            }
        });
        waiting.is_empty().then_some(())
    };
    wait::until("its clients to be told", LIMIT, told).unwrap();
    for (stream, _) in clients.iter().filter(|(_, doomed)| !doomed) {
        assert_eq!(end(stream), Err(ErrorKind::WouldBlock), "{stream:?}");
    }
}
