//! Direct server return: the VIP's holder sends packets on as they are, and the backends' own nodes turn them. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use lb_tests::{
    client::{EchoReport, Failure},
    site::{DETECTION, Site, quick},
    topology::{CLIENT, Deployment, Topology},
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::{
    Status,
    status::{InUse, ServerMode},
    vrrp::State as Role,
};
use socket2::{Domain, Socket, Type};

const A: &str = "ha-lb-a";
const B: &str = "ha-lb-b";
const MASTERS: [&str; 3] = ["master-1", "master-2", "master-3"];
const SOURCES: u32 = 30;
const LIMIT: Duration = Duration::from_secs(20);
/// What a stream waits at most for one answer: the takeover, and a retransmission or two.
const LONGEST: Duration = Duration::from_secs(4);

/// Two appliances before three masters, on all of which xvip may run.
fn deployment(name: &str) -> Deployment {
    Topology::C.build_where(name, |node| node.runs_xvip || node.runs_apiserver).unwrap()
}

fn configuration(deployment: &Deployment, node: &str, mode: &str) -> String {
    let elsewhere = MASTERS.contains(&node);
    let port = "port = 16443\n";
    let text = quick(&deployment.xvip_config(node).unwrap());
    text.replace(port, &format!("{port}mode = \"{mode}\"\nelsewhere = {elsewhere}\n"))
}

fn vrrp(node: &str) -> String {
    let priority = if node == A { 100 } else { 98 };
    let section = |vrid, vip: &str| {
        format!(
            "\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {priority}\naddresses = [\"{vip}\"]\n\
             sync_group = \"both\"\n"
        )
    };
    section(51, "192.168.2.100") + &section(52, "fd00:2::100")
}

/// What A and the masters tell each other.
fn sync(deployment: &Deployment, node: &str) -> String {
    let all = [A, "master-1", "master-2", "master-3"];
    let address = |node: &str| format!("{}:9096", deployment.node(node).unwrap().v4);
    let peers: Vec<String> = all.iter().filter(|other| **other != node).map(|other| address(other)).collect();
    let key = deployment.host(node).unwrap().directory().join("sync.key");
    fs::write(&key, "5a".repeat(32)).unwrap();
    format!("\n[sync]\nlisten = {:?}\npeers = {peers:?}\nkey_file = {key:?}\n", address(node))
}

fn start(site: &Site, node: &str, configuration: &str) -> Xvip {
    Xvip::start_with(&site.deployment, node, configuration).unwrap()
}

fn wait_for_role(xvip: &Xvip, role: Role) {
    let all = |status: &Status| status.vrrp.len() == 2 && status.vrrp.iter().all(|instance| instance.state == role);
    xvip.wait_for(&format!("it to be {role:?}"), LIMIT, all).unwrap();
}

/// Waits until new connections are carried so, and says why.
fn wait_for_mode(xvip: &Xvip, in_use: InUse) -> Vec<ServerMode> {
    let all = |status: &Status| status.virtual_servers.iter().all(|server| server.mode.in_use == in_use);
    let status = xvip.wait_for(&format!("mode {in_use:?}"), LIMIT, all).unwrap();
    status.virtual_servers.into_iter().map(|server| server.mode).collect()
}

/// One request from each source: who answered, and as whom it saw the client.
fn ask(site: &Site, v6: bool, sources: &[IpAddr]) -> Vec<(String, IpAddr)> {
    let client = site.client(v6).unwrap();
    let one = |source: &IpAddr| {
        let from = Some(SocketAddr::new(*source, 0));
        let answer = site.host(CLIENT).run(|| client.request(from)).unwrap().unwrap_or_else(|failure| {
            panic!("{source}: {failure}\n{}", site.xvip.log());
        });
        let seen: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let peer: SocketAddr = seen["peer"].as_str().unwrap().parse().unwrap();
        (answer.backend, peer.ip())
    };
    sources.iter().map(one).collect()
}

/// A TCP segment from an apiserver's port or the virtual server's to anybody but the checks, as it passes A's switch port: what backends
/// answer through it.
fn is_reply(frame: &[u8]) -> bool {
    let (protocol, source, destination) = match frame.get(12..14) {
        Some([8, 0]) => (frame.get(23), frame.get(26..30), frame.get(30..34)),
        Some([0x86, 0xdd]) => (frame.get(20), frame.get(22..38), frame.get(38..54)),
        _ => return false,
    };
    let transport = if frame[12] == 8 { 34 } else { 54 };
    let [from, to] = [0, 2].map(|at| frame.get(transport + at..transport + at + 2));
    // 192.168.2.100 and fd00:2::100; their port, and the apiservers'.
    let is_vip = |address: Option<&[u8]>| matches!(address, Some([192, 168, 2, 100] | [0xfd, .., 1, 0]));
    protocol == Some(&6)
        && (is_vip(source) && from == Some(&[0x40, 0x3b]) || is_vip(destination) && from == Some(&[0x19, 0x2b]))
        && to.is_some()
}

/// Bytes of a recording of replies that pass A while `scene` plays.
fn replies<T>(site: &Site, name: &str, scene: impl FnOnce() -> T) -> (T, u64) {
    let capture = site.host(A).capture(name, is_reply).unwrap();
    let played = scene();
    let path = capture.finish().unwrap();
    // Behind the head of the file.
    (played, fs::metadata(path).unwrap().len() - 24)
}

/// Connections of these sources that say nothing.
fn idle(site: &Site, sources: &[IpAddr]) -> Vec<TcpStream> {
    let open = |source: &IpAddr| {
        let socket = Socket::new(Domain::for_address(SocketAddr::new(*source, 0)), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(*source, 0).into()).unwrap();
        socket.connect(&Topology::C.endpoint(source.is_ipv6()).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        TcpStream::from(socket)
    };
    site.host(CLIENT).enter(|| sources.iter().map(open).collect()).unwrap()
}

fn end(stream: &TcpStream) -> Option<ErrorKind> {
    (&*stream).read(&mut [0; 1]).err().map(|error| error.kind())
}

fn assert_whole(streams: &[Result<EchoReport, Failure>], xvip: &Xvip) {
    let longest = streams.iter().flatten().map(|stream| stream.longest).max();
    println!("{} streams, the longest wait {longest:?}", streams.len());
    for stream in streams {
        let stream = stream.as_ref().unwrap_or_else(|failure| panic!("{failure}\n{}", xvip.log()));
        assert!(stream.failure.is_none() && stream.longest < LONGEST, "{stream:?}\n{}", xvip.log());
        assert!(stream.echoed > 5, "{stream:?}");
    }
}

#[test]
fn backends_see_their_clients_replies_pass_the_holder_by_and_the_dead_ones_clients_are_told() {
    let deployment = deployment("direct");
    let text = configuration(&deployment, A, "dsr");
    let site = Site::of(deployment, A, &text).unwrap();
    let _turning = MASTERS.map(|node| start(&site, node, &configuration(&site.deployment, node, "dsr")));
    assert_eq!(wait_for_mode(&site.xvip, InUse::Dsr)[0].because, None);
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let (seen, recorded) = replies(&site, "dsr.pcap", || ask(&site, v6, &sources));
        for (source, (backend, peer)) in sources.iter().zip(&seen) {
            assert_eq!(peer, source, "{backend}");
        }
        let answered: BTreeSet<&str> = seen.iter().map(|(backend, _)| backend.as_str()).collect();
        assert_eq!(answered, BTreeSet::from(MASTERS));
        assert_eq!(recorded, 0, "bytes of replies at the holder, IPv6 {v6}");
        let log = site.apiserver(MASTERS[0]).unwrap().log();
        let own = sources.iter().zip(&seen).find(|(_, (backend, _))| backend == MASTERS[0]).unwrap().0;
        assert!(log.contains(&own.to_string()), "{log}");
    }

    let sources = [false, true].map(|v6| site.sources(v6, SOURCES).unwrap());
    let clients = idle(&site, &sources.concat());
    let answers = [false, true].map(|v6| ask(&site, v6, &sources[usize::from(v6)])).concat();
    let doomed: Vec<bool> = answers.iter().map(|(backend, _)| backend == MASTERS[1]).collect();
    assert!(doomed.iter().filter(|doomed| **doomed).count() >= 6);
    site.host(MASTERS[1]).unplug().unwrap();
    let mut waiting: Vec<&TcpStream> =
        clients.iter().zip(&doomed).filter_map(|(stream, doomed)| doomed.then_some(stream)).collect();
    // An end is told once.
    let told = || {
        waiting.retain(|stream| match end(stream) {
            Some(ErrorKind::WouldBlock) => true,
            ended => {
                assert_eq!(ended, Some(ErrorKind::ConnectionReset));
                false
            }
        });
        waiting.is_empty().then_some(())
    };
    wait::until("the clients of the dead backend to be told", 2 * DETECTION + LIMIT, told).unwrap();
    for (stream, _) in clients.iter().zip(&doomed).filter(|(_, doomed)| !**doomed) {
        assert_eq!(end(stream), Some(ErrorKind::WouldBlock), "{stream:?}");
    }

    // The same recording sees replies where there are any.
    site.xvip.reload(&text.replace("\"dsr\"", "\"nat\"")).unwrap();
    let (seen, recorded) = replies(&site, "nat.pcap", || ask(&site, false, &sources[0][..1]));
    assert_eq!(seen[0].1, Topology::C.endpoint(false).ip());
    assert!(recorded > 0);
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn streams_outlive_their_holder_though_nobody_told_its_successor_of_them() {
    let deployment = deployment("holders");
    let text = |deployment: &Deployment, node: &str| configuration(deployment, node, "dsr") + &vrrp(node);
    let first = text(&deployment, A);
    let site = Site::of(deployment, A, &first).unwrap();
    let b = start(&site, B, &text(&site.deployment, B));
    let _turning = MASTERS.map(|node| start(&site, node, &configuration(&site.deployment, node, "dsr")));
    wait_for_role(&site.xvip, Role::Master);
    wait_for_role(&b, Role::Backup);
    b.wait_for("B's backends", LIMIT, |status| {
        let mut all = status.virtual_servers.iter().flat_map(|server| &server.backends);
        all.all(|backend| backend.state == lb_userspace::health::State::Up)
    })
    .unwrap();
    let scene = || {
        site.host(A).unplug()?;
        wait_for_role(&b, Role::Master);
        let carried = |status: &Status| {
            let all = status.virtual_servers.iter().flat_map(|server| &server.backends);
            all.filter_map(|backend| backend.active_connections).sum::<u64>() >= u64::from(2 * SOURCES)
        };
        b.wait_for("all streams to go by B", LIMIT, carried)?;
        site.host(A).plug()?;
        wait_for_role(&site.xvip, Role::Master);
        anyhow::Ok(())
    };
    let sources = |v6| site.sources(v6, SOURCES).unwrap();
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

#[test]
fn by_itself_it_is_direct_while_all_backends_nodes_say_that_they_turn_packets() {
    let deployment = deployment("auto");
    let text = |deployment: &Deployment, node: &str| configuration(deployment, node, "auto") + &sync(deployment, node);
    let first = text(&deployment, A);
    let site = Site::of(deployment, A, &first).unwrap();
    let because = wait_for_mode(&site.xvip, InUse::Nat).remove(0).because;
    assert_eq!(because.as_deref(), Some("not said to turn packets: master-1, master-2, master-3"));
    let sources = site.sources(false, SOURCES).unwrap();
    let vip = Topology::C.endpoint(false).ip();
    let ((), streams) = site
        .echo_during(false, &sources, || {
            assert!(ask(&site, false, &sources).iter().all(|(_, peer)| *peer == vip));
            let mut turning = MASTERS.map(|node| Some(start(&site, node, &text(&site.deployment, node))));
            wait_for_mode(&site.xvip, InUse::Dsr);
            let seen = ask(&site, false, &sources);
            assert!(seen.iter().zip(&sources).all(|((_, peer), source)| peer == source), "{seen:?}");
            let table = site.xvip.command(&["status"])?;
            let table = String::from_utf8_lossy(&table.stdout).into_owned();
            assert!(table.lines().any(|line| line.contains("auto") && line.contains("dsr")), "{table}");

            // It says so before it goes: nobody is sent to a node that turns nothing any more.
            turning[2].take().map(Xvip::stop).transpose()?;
            assert!(ask(&site, false, &sources).iter().any(|(backend, _)| backend == MASTERS[2]));
            let because = wait_for_mode(&site.xvip, InUse::Nat).remove(0).because;
            assert_eq!(because.as_deref(), Some("not said to turn packets: master-3"));
            assert!(ask(&site, false, &sources).iter().all(|(_, peer)| *peer == vip));
            Ok(())
        })
        .unwrap();
    assert_whole(&streams, &site.xvip);
    site.deployment.lab.assert_checksums_clean();
}
