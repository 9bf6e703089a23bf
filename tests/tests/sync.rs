//! Connections that both appliances know: what a failover leaves of them. Needs root.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    client::{EchoReport, Episode, Failure, Stage},
    pair::{A, B, LIMIT, NODES, Pair, Setup},
    topology::Topology,
    wait,
    xvip::Xvip,
};
use lb_userspace::{
    admin::{Status, sync, vrrp::State as Role},
    health::State,
};
use socket2::{Domain, Socket, Type};

/// Gone while the streams begin: so their connections are not where hashing would put them after it is back.
const ABSENT: &str = "master-2";
const STREAMS: u32 = 30;
/// What a stream waits at most for one answer: the takeover, and a retransmission or two.
const LONGEST: Duration = Duration::from_secs(4);

const SETUP: Setup = Setup { synced: true, ..Setup::USUAL };

fn wait_for_taken(xvip: &Xvip, connections: u32) {
    let all = |status: &Status| status.sync.as_ref().is_some_and(|sync| sync.taken >= u64::from(connections));
    xvip.wait_for("all connections to be known there", LIMIT, all).unwrap();
}

/// A count in the status, once it has stopped growing: a status is up to a second old.
fn settled(xvip: &Xvip, count: impl Fn(&sync::Sync) -> u64) -> u64 {
    let mut last = (Instant::now(), None);
    let grown = || {
        let now = xvip.status().unwrap().sync.as_ref().map(&count);
        if now != last.1 {
            last = (Instant::now(), now);
        }
        now.filter(|_| last.0.elapsed() > Duration::from_secs(3))
    };
    wait::until("a count to stand still", LIMIT, grown).unwrap()
}

/// Streams of both families, opened while a backend is away; then it returns, and `faults` come with the VIPs at A.
fn survive(name: &str, faults: impl Fn(&Pair) + Sync) {
    let pair = Pair::up(name, SETUP).unwrap();
    pair.host(ABSENT).unplug().unwrap();
    NODES.iter().for_each(|node| pair.wait_for_backend(node, ABSENT, State::Down).unwrap());

    let scene = || {
        wait_for_taken(pair.xvip(B), 2 * STREAMS);
        pair.host(ABSENT).plug()?;
        NODES.iter().for_each(|node| pair.wait_for_backend(node, ABSENT, State::Up).unwrap());
        faults(&pair);
        anyhow::Ok(())
    };
    let sources = |v6| pair.deployment.sources(v6, STREAMS).unwrap();
    let (four, six) = thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let six = scope.spawn(|| {
            let stopped = move || Ok(stopped.recv().is_err());
            pair.deployment.echo_during(true, &sources(true), stopped).unwrap().1
        });
        let ((), four) = pair.deployment.echo_during(false, &sources(false), scene).unwrap();
        drop(stop);
        (four, six.join().unwrap())
    });
    assert_whole(&four, pair.xvip(B));
    assert_whole(&six, pair.xvip(B));
    pair.deployment.lab.assert_checksums_clean();
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
    // The sweep that counts them takes a small part of the time: on a busy machine it is seldom.
    let status = xvip.wait_for("all connections to be counted", LIMIT * 3, own).unwrap();
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
    survive("loss", |pair| {
        pair.host(A).unplug().unwrap();
        pair.wait_for(B, Role::Master).unwrap();
        let_run();
        assert_carries_all(pair.xvip(B));
        pair.host(A).plug().unwrap();
        pair.wait_for(A, Role::Master).unwrap();
        let_run();
        assert_carries_all(pair.xvip(A));
    });
}

#[test]
fn streams_outlive_a_killed_master() {
    survive("killed", |pair| {
        pair.xvip(A).process().kill();
        pair.wait_for(B, Role::Master).unwrap();
        let_run();
        assert_carries_all(pair.xvip(B));
    });
}

/// By turns in one family and by the fewest connections in the other: a client's address says nothing of its backend.
fn taking_turns(pair: &Pair, node: &str) -> String {
    let balanced = |text: String, family: &str, balance: &str| {
        let name = format!("-{family}\"\n");
        assert!(text.contains(&name), "{text}");
        text.replace(&name, &format!("{name}balance = \"{balance}\"\n"))
    };
    let text = pair.configuration(node).unwrap();
    balanced(balanced(text, "ipv4", "round-robin"), "ipv6", "least-connections")
}

/// The connections that streams began with.
fn first_episodes(episodes: &[Episode]) -> Vec<&Episode> {
    let firsts = |number| episodes.iter().find(|episode| episode.stream == number);
    (0..2 * STREAMS as usize).map(|number| firsts(number).expect("every stream was answered")).collect()
}

#[test]
fn where_backends_take_turns_what_was_told_goes_on_and_nothing_else_is_left_hanging() {
    let mut pair = Pair::of(Topology::C.build("turns").unwrap(), SETUP).unwrap();
    for node in NODES {
        let text = taking_turns(&pair, node);
        pair.start_as(node, &text).unwrap();
    }
    pair.wait_for(A, Role::Master).unwrap();
    pair.wait_for(B, Role::Backup).unwrap();
    pair.wait_for_peers().unwrap();
    let begin = || {
        let streams = pair.deployment.streams(2 * STREAMS, Duration::from_millis(100)).unwrap();
        streams.wait_for_lines(5, LIMIT).unwrap();
        streams
    };
    let told = begin();
    wait_for_taken(pair.xvip(B), 2 * STREAMS);
    let b_address = pair.deployment.node(B).unwrap().v4;
    pair.host(A).ip(&format!("route add blackhole {b_address}")).unwrap();
    // Something of the first ones may be told again meanwhile.
    let taken = || settled(pair.xvip(B), |sync| sync.taken);
    let before = taken();
    let untold = begin();
    assert!(taken() < before + u64::from(STREAMS), "what began since then is not known there");

    pair.xvip(A).process().kill();
    pair.wait_for(B, Role::Master).unwrap();
    for streams in [&told, &untold] {
        streams.wait_for_lines(5, LIMIT).unwrap();
    }
    let [told, untold] = [told, untold].map(|streams| streams.finish().unwrap());
    assert_eq!(told.len(), 2 * STREAMS as usize, "none began again");
    for stream in &told {
        assert!(stream.end.is_none() && stream.longest() < LONGEST, "{stream:?}\n{}", pair.xvip(B).log());
    }
    // By its client's address a third of them has the backend again that it had.
    let mut cut = 0;
    for stream in first_episodes(&untold) {
        assert!(stream.longest() < LONGEST, "{stream:?}\n{}", pair.xvip(B).log());
        if let Some(end) = &stream.end {
            assert!(matches!(end.failure, Failure::Reset(Stage::Answer) | Failure::Closed(Stage::Answer)), "{end:?}");
            cut += 1;
        }
    }
    println!("{cut} of {} streams that nobody was told of were cut", 2 * STREAMS);
    assert!(cut > STREAMS / 3, "{}", pair.xvip(B).log());
    pair.deployment.lab.assert_checksums_clean();
}

/// Clients of one address each that wait for what a backend says; whether that is the one that is to go.
fn waiting(pair: &Pair) -> Vec<(TcpStream, bool)> {
    let deployment = &pair.deployment;
    let sources = deployment.sources(false, STREAMS).unwrap();
    let answers = deployment.map(false, &sources).unwrap();
    let before = settled(pair.xvip(B), |sync| sync.taken);
    let open = |source: &IpAddr| {
        let vip = Topology::C.endpoint(false);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(*source, 0).into()).unwrap();
        socket.connect(&vip.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        (TcpStream::from(socket), answers.by_source()[source] == ABSENT)
    };
    let clients = deployment.client_host().enter(|| sources.iter().map(open).collect::<Vec<_>>()).unwrap();
    assert!(clients.iter().filter(|(_, doomed)| *doomed).count() >= 3);
    wait_for_taken(pair.xvip(B), before as u32 + STREAMS);
    clients
}

/// Nothing is sent after such a reset by which the data path would notice.
#[test]
fn what_the_daemon_ends_is_over_on_the_other_node_too() {
    let pair = Pair::up("over", SETUP).unwrap();
    let clients = waiting(&pair);
    let doomed = clients.iter().filter(|(_, doomed)| *doomed).count() as u64;
    let b = pair.xvip(B);
    let ended = |status: &Status| status.sync.as_ref().map_or(0, |sync| sync.ended);
    let before = settled(b, |sync| sync.ended);
    pair.host(ABSENT).unplug().unwrap();
    let all = |status: &Status| status.connections.reset == doomed;
    pair.xvip(A).wait_for("its clients to be told", LIMIT, all).unwrap();
    b.wait_for("the other node to be told", LIMIT, |status| ended(status) >= before + doomed).unwrap();
}

#[test]
fn idle_clients_of_a_backend_that_the_new_master_does_not_reach_are_told() {
    let pair = Pair::up("unreached", SETUP).unwrap();
    let clients = waiting(&pair);
    let (deployment, b) = (&pair.deployment, pair.xvip(B));
    let [absent, _] = deployment.node(ABSENT).unwrap().addresses();
    pair.host(B).exec(&["ip", "route", "add", "unreachable", &absent.to_string()]).unwrap();
    let down = |status: &Status| status.virtual_servers[0].backends.iter().any(|backend| backend.state == State::Down);
    b.wait_for("B to miss it", LIMIT, down).unwrap();
    pair.host(A).unplug().unwrap();
    pair.wait_for(B, Role::Master).unwrap();
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
