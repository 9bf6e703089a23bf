//! Ways to and from a load balancer other than one segment with everybody known, and traffic that is not its own. Needs root.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    apiserver::{Apiserver, Authority, Options},
    client::{Client, Load, run, transfer},
    lab::{Host, HostSpec, Lab},
    site::Site,
    topology::{CLIENT, Topology},
    xvip::Xvip,
};
use socket2::{Domain, Type};

const NODE: &str = "ha-lb-a";
/// The kernel sends a SYN again after a second.
const RETRANSMISSION: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn an_unresolved_neighbour_costs_no_packet() {
    // No check comes in between and resolves a backend again.
    let site = Site::up_with(Topology::C, "neighbour", NODE, |text| {
        text.replace("interval = \"500ms\"", "interval = \"60s\"")
    })
    .unwrap();
    let host = site.host(NODE);
    for v6 in [false, true] {
        let family = if v6 { "-6" } else { "-4" };
        let before = site.event("unresolved").unwrap();
        let rounds = 5;
        for _ in 0..rounds {
            host.ip(&format!("{family} neigh flush dev eth0")).unwrap();
            let report = site.load(v6, Load::default()).unwrap();
            assert_eq!(report.good(), 1, "{report}");
            let taken = report.outcomes[0].latency;
            assert!(taken < RETRANSMISSION, "IPv6 {v6}: {taken:?}");
        }
        let counted = site.xvip.wait_for("packets to be counted", PATIENCE, |status| {
            status.counters.events["unresolved"] >= before + rounds
        });
        counted.unwrap_or_else(|error| panic!("IPv6 {v6}: {error}"));
    }
    site.deployment.lab.assert_checksums_clean();
}

/// A load balancer between two segments, the client behind a router on one of them.
///
/// ```text
/// client .0.50 -- outside -- .0.1 router .1.1 -- front -- .1.10 lb .2.10 -- back -- .2.11 first, .2.12 second
///                                           VIP .1.100
/// ```
struct TwoArmed {
    xvip: Xvip,
    _apiservers: Vec<Apiserver>,
    authority: PathBuf,
    lab: Lab,
}

const PREFIXES: [&str; 2] = ["10.77.", "fd77:"];

fn address(v6: bool, segment: u8, number: u8) -> IpAddr {
    let [v4_prefix, v6_prefix] = PREFIXES;
    let text = if v6 { format!("{v6_prefix}{segment}::{number}") } else { format!("{v4_prefix}{segment}.{number}") };
    text.parse().unwrap()
}

fn vip(v6: bool) -> SocketAddr {
    SocketAddr::new(address(v6, 1, 100), 6443)
}

impl TwoArmed {
    fn build() -> Self {
        let mut lab = Lab::new("arms").unwrap();
        let on = |segment: u8, number: u8| {
            [(false, 24), (true, 64)]
                .map(|(v6, length)| ipnet::IpNet::new(address(v6, segment, number), length).unwrap())
        };
        lab.add(HostSpec::new(CLIENT).on("outside", on(0, 50))).unwrap();
        lab.add(HostSpec::new("router").on("outside", on(0, 1)).on("front", on(1, 1)).with_forwarding()).unwrap();
        lab.add(HostSpec::new("lb").on("front", on(1, 10)).on("back", on(2, 10)).with_xdp()).unwrap();
        let authority = Authority::new(&lab.directory().join("pki")).unwrap();
        let mut apiservers = Vec::new();
        for (name, number) in [("first", 11), ("second", 12)] {
            let host = lab.add(HostSpec::new(name).on("back", on(2, number))).unwrap();
            let names =
                [false, true].map(|v6| [address(v6, 2, number), vip(v6).ip()].map(|ip| ip.to_string())).concat();
            let listen = vec!["[::]:6443".parse().unwrap()];
            let files = authority.server(name, &names).unwrap();
            apiservers
                .push(Apiserver::start(&host, &Options::new(name, listen, files, authority.certificate())).unwrap());
        }
        for v6 in [false, true] {
            for (host, segment, gateway) in [(CLIENT, 0, 1), ("lb", 1, 1), ("first", 2, 10), ("second", 2, 10)] {
                let family = if v6 { "-6" } else { "-4" };
                let gateway = address(v6, segment, gateway);
                lab.host(host).unwrap().ip(&format!("{family} route add default via {gateway}")).unwrap();
            }
        }
        let (host, socket) = (lab.host("lb").unwrap(), lab.directory().join("lb/xvip.sock"));
        let mut text = format!(
            "[dataplane]\ninterfaces = [\"eth0\", \"eth1\"]\ncgroup = \"off\"\nbpffs = {:?}\n[admin]\ncontrol_socket = {socket:?}\nmetrics = \"off\"\n",
            host.bpffs().unwrap()
        );
        for v6 in [false, true] {
            text += &format!("[[virtual_server]]\nname = \"v6-{v6}\"\naddress = \"{}\"\nport = 6443\n", vip(v6).ip());
            text += "check = { type = \"tcp\", interval = \"500ms\", timeout = \"500ms\" }\n";
            for (name, number) in [("first", 11), ("second", 12)] {
                text += &format!(
                    "[[virtual_server.backend]]\nname = \"{name}\"\naddress = \"{}\"\n",
                    address(v6, 2, number)
                );
            }
        }
        let xvip = Xvip::launch(host, &socket, &text).unwrap();
        Self { xvip, _apiservers: apiservers, authority: authority.certificate(), lab }
    }
}

#[test]
fn two_arms_carry_from_one_segment_to_another_and_back_through_a_router() {
    let arms = TwoArmed::build();
    let client_host = arms.lab.host(CLIENT).unwrap();
    for v6 in [false, true] {
        let line = if v6 { "-6 route add local fd77:9::/64 dev lo" } else { "-4 route add local 10.78.0.0/16 dev lo" };
        client_host.ip(line).unwrap();
        client_host.sysctl("net/ipv6/ip_nonlocal_bind", "1").unwrap();
        let (network, first) =
            if v6 { ("-6 route add fd77:9::/64", "fd77:9::1") } else { ("-4 route add 10.78.0.0/16", "10.78.0.1") };
        arms.lab.host("router").unwrap().ip(&format!("{network} via {}", address(v6, 0, 50))).unwrap();
        let sources = lb_tests::client::addresses(first.parse().unwrap(), 30);

        let mut client = Client::new(vip(v6), &arms.authority).unwrap();
        client.timeout = Duration::from_secs(20);
        let load = Load { sources, ..Load::sequential(60) };
        let report = client_host.run(|| run(&client, load)).unwrap();
        assert_eq!((report.good(), report.backends().len()), (60, 2), "{report}");
        client_host.run(|| transfer(&client, None, 4 << 20)).unwrap().unwrap();
    }
    arms.lab.assert_checksums_clean();
}

/// Largest packet of the narrow links, and hops to the router before the backends.
const NARROW: u32 = 1300;
const HOPS: u32 = 3;

/// What a connect comes to whose SYN may go that far.
fn connect(client: &Host, to: SocketAddr, hops: u32) -> io::Result<()> {
    let socket = client.socket(Domain::for_address(to), Type::STREAM, None).unwrap();
    if to.is_ipv6() { socket.set_unicast_hops_v6(hops) } else { socket.set_ttl_v4(hops) }.unwrap();
    socket.connect_timeout(&to.into(), PATIENCE)
}

/// A second router stands between the load balancer and the backends, on their own segment.
#[test]
fn errors_of_routers_reach_the_end_that_they_are_about() {
    let mut arms = TwoArmed::build();
    let on = [(false, 24), (true, 64)].map(|(v6, length)| ipnet::IpNet::new(address(v6, 2, 1), length).unwrap());
    let second = arms.lab.add(HostSpec::new("router2").on("back", on).with_forwarding()).unwrap();
    for scope in ["all", "eth0"] {
        second.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0").unwrap();
    }
    let [client, lb] = [CLIENT, "lb"].map(|name| arms.lab.host(name).unwrap().clone());
    for v6 in [false, true] {
        let family = if v6 { "-6" } else { "-4" };
        let ip = |host: &Host, line: String| host.ip(&format!("{family} route {line}")).unwrap();
        for number in [11, 12] {
            let backend = address(v6, 2, number);
            ip(&lb, format!("replace {backend} via {}", address(v6, 2, 1)));
            ip(&second, format!("replace {backend} dev eth0 mtu lock {NARROW}"));
        }
        ip(&second, format!("add default via {}", address(v6, 2, 10)));
        let router = arms.lab.host("router").unwrap();
        ip(router, format!("replace {} dev eth0 mtu lock {NARROW}", address(v6, 0, 50)));
        let mtu = |host: &Host| {
            let way = host.exec(&["ip", family, "route", "get", &vip(v6).ip().to_string()]).unwrap();
            way.contains(&format!(" mtu {NARROW}"))
        };
        assert!(!mtu(&client));

        // Both ways are too narrow for what both ends would send, and both are told.
        let mut caller = Client::new(vip(v6), &arms.authority).unwrap();
        caller.timeout = Duration::from_secs(20);
        let before = arms.xvip.status().unwrap().counters.events["icmp_error"];
        let backend = client.run(|| transfer(&caller, None, 4 << 20)).unwrap().unwrap();
        assert!(mtu(&client) && mtu(arms.lab.host(&backend).unwrap()), "IPv6 {v6}: {backend}");
        assert!(arms.xvip.status().unwrap().counters.events["icmp_error"] >= before + 2);

        // The way ends behind the load balancer: by the hops that a SYN may go, and for good.
        let unreachable = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)
        };
        connect(&client, vip(v6), HOPS + 1).unwrap();
        let error = connect(&client, vip(v6), HOPS).unwrap_err();
        assert!(unreachable(&error), "IPv6 {v6}, too few hops: {error}");
        for number in [11, 12] {
            ip(&second, format!("del {}", address(v6, 2, number)));
            ip(&second, format!("add unreachable {}", address(v6, 2, number)));
        }
        let error = connect(&client, vip(v6), 64).unwrap_err();
        assert!(unreachable(&error), "IPv6 {v6}, nothing there: {error}");
        client.ping(vip(v6).ip()).unwrap();
    }
    arms.lab.assert_checksums_clean();
}

/// Answers one caller with its own words, and gives whom it saw.
fn echo_once(listener: &TcpListener) -> io::Result<SocketAddr> {
    let (mut stream, peer) = listener.accept()?;
    let mut words = String::new();
    stream.read_to_string(&mut words)?;
    stream.write_all(words.as_bytes())?;
    Ok(peer)
}

/// Calls a TCP service of `node`'s own from the client; the service must see the client itself.
fn talk(node: &Host, client: &Host, target: SocketAddr) {
    let listener = node.enter(|| TcpListener::bind(target)).unwrap().unwrap();
    thread::scope(|scope| {
        let service = scope.spawn(|| echo_once(&listener));
        let mut socket = client.socket(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.connect_timeout(&target.into(), PATIENCE).unwrap_or_else(|error| panic!("{target}: {error}"));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"SSH-2.0-lab\r\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "SSH-2.0-lab\r\n", "{target}");
        let own = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(service.join().unwrap().unwrap(), own, "{target}");
    });
}

/// Sends a datagram to a UDP service of `node` and gets it back.
fn datagram(node: &Host, client: &Host, target: SocketAddr, length: usize) {
    let service = node.enter(|| UdpSocket::bind(target)).unwrap().unwrap();
    let own = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = client.enter(|| UdpSocket::bind(own)).unwrap().unwrap();
    for end in [&service, &socket] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let sent: Vec<u8> = (0..length).map(|at| at as u8).collect();
    let mut room = vec![0; length + 1];
    socket.send_to(&sent, target).unwrap();
    let (read, peer) = service.recv_from(&mut room).unwrap_or_else(|error| panic!("{target}, {length} bytes: {error}"));
    service.send_to(&room[..read], peer).unwrap();
    let (read, from) =
        socket.recv_from(&mut room).unwrap_or_else(|error| panic!("from {target}, {length} bytes: {error}"));
    assert_eq!((&room[..read], from), (&sent[..], target));
}

#[test]
fn traffic_that_is_not_ours_is_left_alone() {
    let site = Site::up(Topology::C, "bystanders", NODE).unwrap();
    let (node, client) = (site.host(NODE), site.host(CLIENT));
    for v6 in [false, true] {
        let endpoint = Topology::C.endpoint(v6);
        let [v4_address, v6_address] = site.deployment.node(NODE).unwrap().addresses();
        let own = if v6 { v6_address } else { v4_address };
        for ip in [own, endpoint.ip()] {
            talk(node, client, SocketAddr::new(ip, 22));
            client.ping(ip).unwrap();
            // The second is four fragments, the third goes to a virtual server's port by another protocol.
            for (port, length) in [(5353, 100), (5353, 5000), (endpoint.port(), 1000)] {
                datagram(node, client, SocketAddr::new(ip, port), length);
            }
        }
        // The virtual server's port, on an address that is not the VIP.
        talk(node, client, SocketAddr::new(own, endpoint.port()));
    }
    // To the VIP came fragments, and the kernel put them together.
    let fragments = |status: &lb_userspace::admin::Status| status.counters.events["fragment"] >= 8;
    site.xvip.wait_for("fragments to be counted", PATIENCE, fragments).unwrap();
    let start = Instant::now();
    assert_eq!(site.load(false, Load::sequential(10)).unwrap().good(), 10);
    assert!(start.elapsed() < PATIENCE);
    site.deployment.lab.assert_checksums_clean();
}
