//! Connections of a node's own processes: straight to a backend, wherever the VIP is. Needs root.

mod ends;
mod shares;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    client::{Load, Report, run},
    lab::{Cgroup, Host},
    site::{DETECTION, Site, quick, serving},
    topology::{APISERVER_PORT, Deployment, Topology},
    traces::Traces,
    wait,
    xvip::{Xvip, backends},
};
use lb_userspace::{
    admin::{Status, vrrp},
    health::State,
    host::namespace,
};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, SockAddr, Socket, Type};

const HOLDER: &str = "ha-lb-a";
/// A node without the VIP.
const ELSEWHERE: &str = "worker-1";
const WORKER: &str = "worker-1";
const LIMIT: Duration = Duration::from_secs(5);
/// From the end of a host to the last connection that may go there: as for a process, but each check waits for its whole timeout.
const LEFT: Duration = DETECTION.saturating_add(Duration::from_secs(1));

/// Deployment C, with the hooks on a cgroup that the test's threads may join. The site ends before the cgroup: declare it last.
fn site(name: &str, cgroup: &Cgroup) -> Site {
    Site::up_with(Topology::C, name, HOLDER, |text| on(cgroup, &text)).unwrap()
}

fn on(cgroup: &Cgroup, configuration: &str) -> String {
    let off = "cgroup = \"off\"\n";
    assert!(configuration.contains(off));
    configuration.replace(off, &format!("cgroup = {:?}\n", cgroup.path()))
}

/// A thread on a host and in the cgroup.
fn inside<T: Send>(host: &Host, cgroup: &Cgroup, work: impl FnOnce() -> T + Send) -> T {
    let joined = || {
        cgroup.join().unwrap();
        work()
    };
    host.enter(joined).unwrap()
}

/// Requests from a host, in the cgroup.
fn requests(site: &Site, host: &str, cgroup: &Cgroup, v6: bool, load: Load) -> Report {
    let client = site.client(v6).unwrap();
    let joined = || {
        cgroup.join().unwrap();
        run(&client, load)
    };
    site.host(host).run(joined).unwrap()
}

/// An address as an IPv6 socket has it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn tcp(target: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
    if target.is_ipv6() {
        socket.set_only_v6(false).unwrap();
    }
    socket
}

/// Of its own choice, the kernel gives one port to connections to several backends, and then [`truth`] does not tell them apart.
fn connected(target: SocketAddr) -> Socket {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let socket = tcp(target);
    let any = if target.is_ipv6() { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    socket.bind(&SocketAddr::new(any, PORT.fetch_add(1, Ordering::Relaxed)).into()).unwrap();
    socket.connect(&target.into()).unwrap();
    socket
}

fn shown(address: std::io::Result<SockAddr>) -> SocketAddr {
    address.unwrap().as_socket().unwrap()
}

/// Where the TCP sockets of a host really lead, by their own addresses, as the kernel tells it.
fn truth(host: &Host) -> BTreeMap<SocketAddr, SocketAddr> {
    let list = host.exec(&["ss", "-tnH"]).unwrap();
    let pair = |line: &str| {
        let mut columns = line.split_whitespace().skip(3);
        let mut next = || columns.next()?.parse().ok().map(plain);
        Some((next()?, next()?))
    };
    list.lines().filter_map(pair).collect()
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The backend that a socket of that host leads to.
fn backend_of(host: &Host, socket: &Socket) -> SocketAddr {
    truth(host)[&plain(shown(socket.local_addr()))]
}

fn masters(topology: Topology, v6: bool) -> Vec<SocketAddr> {
    let nodes = topology.nodes().into_iter().filter(|node| node.runs_apiserver);
    nodes.map(|node| SocketAddr::new(node.addresses()[usize::from(v6)], APISERVER_PORT)).collect()
}

fn master(topology: Topology, name: &str, v6: bool) -> SocketAddr {
    let node = topology.nodes().into_iter().find(|node| node.name == name).unwrap();
    SocketAddr::new(node.addresses()[usize::from(v6)], APISERVER_PORT)
}

/// Whether the kernel has ended the connection.
fn ended(socket: &Socket) -> bool {
    socket.set_nonblocking(true).unwrap();
    match (&*socket).read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn every_kind_of_connect_reaches_a_backend_and_is_shown_the_vip() {
    let cgroup = Cgroup::new("kinds").unwrap();
    let site = site("kinds", &cgroup);
    for node in [HOLDER, ELSEWHERE] {
        for (target, v6) in [
            (Topology::C.endpoint(false), false),
            (mapped(Topology::C.endpoint(false)), false),
            (Topology::C.endpoint(true), true),
        ] {
            for blocking in [true, false] {
                let host = site.host(node);
                let what = format!("{target} from {node}, blocking {blocking}");
                let socket = inside(host, &cgroup, || {
                    let socket = tcp(target);
                    let outcome = match blocking {
                        true => socket.connect(&target.into()),
                        false => socket.connect_timeout(&target.into(), LIMIT),
                    };
                    outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
                    socket
                });
                assert_eq!(shown(socket.peer_addr()), target, "{what}");
                let backend = backend_of(host, &socket);
                assert!(masters(Topology::C, v6).contains(&backend), "{what} leads to {backend}");
                let own = site.deployment.node(node).unwrap().addresses()[usize::from(v6)];
                assert_eq!(plain(shown(socket.local_addr())).ip(), own, "{what}: the VIP is nobody's own address");
            }
        }
        for v6 in [false, true] {
            let report = requests(&site, node, &cgroup, v6, Load::sequential(100));
            assert_eq!((report.good(), report.backends().len()), (100, 3), "{report}");
        }
    }
    // Not one packet of all this has met the data path.
    let status =
        site.xvip.wait_for("all to be counted", LIMIT, |status| status.counters.events["local"] == 2 * (6 + 200));
    let status = status.unwrap();
    assert_eq!(status.counters.verdicts["forward"], 0, "{status:#?}");
    assert_eq!((status.counters.events["connected"], status.counters.events["no_service"]), (0, 0), "{status:#?}");
    let total: u64 = status.virtual_servers.iter().flat_map(|s| &s.backends).map(|b| b.connections).sum();
    assert_eq!(total, 2 * (6 + 200));
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_backup_sends_its_own_straight_to_backends() {
    const BACKUP: &str = "ha-lb-b";
    let sections = |priority: u8| {
        let section = |vrid, vip| {
            format!(
                "\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {priority}\naddresses = [{vip:?}]\n"
            )
        };
        section(51, "192.168.2.100") + &section(52, "fd00:2::100")
    };
    let cgroup = Cgroup::new("backup").unwrap();
    let site = Site::up_with(Topology::C, "backup", HOLDER, |text| text + &sections(100)).unwrap();
    let held = |status: &Status, held: bool| status.virtual_servers.iter().all(|server| server.held == held);
    site.xvip.wait_for("the VIPs", LIMIT * 2, |status| held(status, true)).unwrap();
    let configuration = on(&cgroup, &quick(&site.deployment.xvip_config(BACKUP).unwrap())) + &sections(98);
    let backup = Xvip::start_with(&site.deployment, BACKUP, &configuration).unwrap();
    let states = |status: &Status| status.vrrp.iter().all(|instance| instance.state == vrrp::State::Backup);
    backup.wait_for("it to be a backup", LIMIT * 2, |status| held(status, false) && states(status)).unwrap();
    for v6 in [false, true] {
        let report = requests(&site, BACKUP, &cgroup, v6, Load::sequential(50));
        assert_eq!((report.good(), report.backends().len()), (50, 3), "{report}");
    }
    backup.wait_for("all to be counted", LIMIT, |status| status.counters.events["local"] == 100).unwrap();
    for xvip in [&site.xvip, &backup] {
        assert_eq!(xvip.status().unwrap().counters.verdicts["forward"], 0);
    }
}

#[test]
fn sockets_outside_the_cgroup_and_to_other_places_are_left_alone() {
    let cgroup = Cgroup::new("others").unwrap();
    let site = site("others", &cgroup);
    let host = site.host(ELSEWHERE);
    let target = Topology::C.endpoint(false);
    // Outside: through the VIP, by the data path.
    let socket = host.enter(|| connected(target)).unwrap();
    assert_eq!(backend_of(host, &socket), target);
    for v6 in [false, true] {
        let direct = master(Topology::C, "master-2", v6);
        let socket = inside(host, &cgroup, || connected(direct));
        assert_eq!(shown(socket.peer_addr()), direct);
        assert_eq!(backend_of(host, &socket), direct);
    }
    assert_eq!(site.event("local").unwrap(), 0);
}

#[test]
fn nothing_stays_attached() {
    let cgroup = Cgroup::new("traces").unwrap();
    assert_eq!(cgroup.programs().unwrap(), 0);
    let site = site("traces", &cgroup);
    assert_eq!(cgroup.programs().unwrap(), 5);
    let Site { xvip, apiservers, deployment } = site;
    assert!(xvip.stop().unwrap().success());
    assert_eq!(cgroup.programs().unwrap(), 0);
    let site = Site { xvip: restart(&deployment, &cgroup), apiservers, deployment };
    site.xvip.process().kill();
    let goes_on = |what: &str| {
        assert_eq!(cgroup.programs().unwrap(), 5, "{what}");
        let report = requests(&site, ELSEWHERE, &cgroup, false, Load::sequential(5));
        assert_eq!(report.good(), 5, "{what}: {report}");
    };
    goes_on("a killed daemon's hooks");
    let next = restart(&site.deployment, &cgroup);
    goes_on("taken over by the next");
    assert!(next.stop().unwrap().success());
    assert_eq!(cgroup.programs().unwrap(), 0);
    // The next connect goes where it is meant to.
    let target = Topology::C.endpoint(false);
    let failed = inside(site.host(ELSEWHERE), &cgroup, || {
        tcp(target).connect_timeout(&target.into(), Duration::from_millis(300)).is_err()
    });
    assert!(failed);
}

fn restart(deployment: &Deployment, cgroup: &Cgroup) -> Xvip {
    let configuration = quick(&on(cgroup, &deployment.xvip_config(HOLDER).unwrap()));
    Xvip::start_with(deployment, HOLDER, &configuration).unwrap()
}

fn traces(deployment: &Deployment) -> Traces {
    Traces::of(deployment.host(WORKER).unwrap(), "eth0", &deployment.control_socket(WORKER).unwrap()).unwrap()
}

#[test]
fn a_namespace_without_a_name_is_found_by_its_processes() {
    let mut process = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", process.id());
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let entered = || fs::read_link(&path).is_ok_and(|now| now != own).then_some(());
    wait::until("the process to be in its namespace", LIMIT, entered).unwrap();
    let home = namespace::cookie().unwrap();
    let visited = thread::scope(|scope| {
        let cookie = || {
            setns(fs::File::open(&path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            namespace::cookie().unwrap()
        };
        let theirs = scope.spawn(cookie).join().unwrap();
        let mut visited = Vec::new();
        let missing = namespace::visit(BTreeSet::from([theirs, home, u64::MAX]), |netns| {
            visited.push((netns, namespace::cookie().unwrap()));
        });
        assert_eq!(visited, [(home, home), (theirs, theirs)]);
        assert_eq!(namespace::cookie().unwrap(), home, "back at home");
        missing
    });
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(visited, BTreeSet::from([u64::MAX]));
}

#[test]
fn a_connect_costs_little() {
    const ROUNDS: usize = 5;
    const CONNECTS: usize = 600;
    let cgroup = Cgroup::new("cost").unwrap();
    let site = site("cost", &cgroup);
    let host = site.host(ELSEWHERE);
    let masters = masters(Topology::C, false);
    let fresh = || -> Vec<Socket> {
        let socket = |_| {
            let socket = tcp(masters[0]);
            // No TIME_WAIT: thousands of ports are needed.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket
        };
        (0..CONNECTS).map(socket).collect()
    };
    let timed = |socket: Socket, target: SocketAddr| {
        let start = Instant::now();
        socket.connect(&target.into()).unwrap();
        start.elapsed()
    };
    let vip = Topology::C.endpoint(false);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        // The hooks go by the cgroup that a socket was made in.
        let (through, beside) = (inside(host, &cgroup, fresh), inside(host, &cgroup, fresh));
        let free = host.enter(fresh).unwrap();
        let [mut to_vip, mut hooked, mut direct] = [const { Vec::new() }; 3];
        for (index, ((through, beside), free)) in through.into_iter().zip(beside).zip(free).enumerate() {
            let backend = masters[index % masters.len()];
            hooked.push(timed(beside, backend));
            direct.push(timed(free, backend));
            to_vip.push(timed(through, vip));
        }
        let [to_vip, hooked, direct] = [to_vip, hooked, direct].map(median);
        println!("connect(), median: {direct:.1} us direct, {hooked:.1} us past the hooks, {to_vip:.1} us to the VIP");
        best = best.min(to_vip - direct);
    }
    assert!(best <= 5.0, "{best:.1} us more to the VIP");
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}
