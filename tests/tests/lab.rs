//! The lab itself: hosts reach each other, wrong checksums are seen, unplugging cuts, and nothing is left behind.
//! Needs root.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use lb_tests::{
    lab::{Error, Host, HostSpec, Lab, Process},
    wait,
};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use socket2::{Domain, Protocol, SockAddr, Type};

const LIMIT: Duration = Duration::from_secs(10);
const A4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const B4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2);

/// Two hosts on one segment; the second one is ready for XDP.
fn pair(name: &str) -> (Lab, Host, Host) {
    let networks = |v4: Ipv4Addr, v6: Ipv6Addr| -> [IpNet; 2] {
        [IpNet::new(v4.into(), 24).unwrap(), IpNet::new(v6.into(), 64).unwrap()]
    };
    let mut lab = Lab::new(name).unwrap();
    let a = lab.add(HostSpec::new("a").on("lan", networks(A4, A6))).unwrap();
    let spec = HostSpec::new("b").on("lan", networks(B4, B6)).with_xdp();
    let b = lab.add(spec).unwrap();
    (lab, a, b)
}

/// A connection from `a` to `b`, both ends.
fn connection(a: &Host, b: &Host, to: IpAddr) -> (TcpStream, TcpStream) {
    let listener = b.enter(|| TcpListener::bind((to, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let near = a.enter(|| TcpStream::connect_timeout(&address, LIMIT)).unwrap().unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_read_timeout(Some(LIMIT)).unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    (near, far)
}

#[test]
fn hosts_reach_each_other_in_both_families() {
    let (lab, a, b) = pair("reach");
    for to in [IpAddr::V4(B4), IpAddr::V6(B6)] {
        a.ping(to).unwrap();
        let (mut near, mut far) = connection(&a, &b, to);
        let data = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| near.write_all(&data).unwrap());
            let mut received = vec![0; data.len()];
            far.read_exact(&mut received).unwrap();
            assert!(received == data, "the data was changed on its way");
        });
    }
    lab.assert_checksums_clean();
}

#[test]
fn only_the_ports_of_xdp_hosts_get_the_pass_all_program() {
    let (lab, a, b) = pair("xdp");
    let switch = a.netns().replace("-a", "-switch");
    let shown = Command::new("ip").args(["-n", &switch, "link"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let attached = |port: &str| {
        let line = shown.lines().find(|line| line.contains(port));
        line.unwrap_or_else(|| panic!("no {port} in {shown}")).contains(" xdp ")
    };
    assert!(attached(" b.0@"), "{shown}");
    assert!(!attached(" a.0@"), "{shown}");
    drop((lab, b));
}

/// Checksum offload would let a wrong checksum pass between namespaces unseen.
#[test]
fn a_wrong_checksum_is_seen() {
    let (lab, a, b) = pair("checksum");
    let mut segment = Vec::new();
    PacketBuilder::ipv4(A4.octets(), B4.octets(), 64).tcp(40_000, 6443, 1, 64_000).write(&mut segment, &[]).unwrap();
    // TCP begins after the 20 bytes of IPv4; its checksum is at 16.
    let mut segment = segment.split_off(20);
    segment[16] ^= 0x55;

    for (domain, to) in [(Domain::IPV4, IpAddr::V4(B4)), (Domain::IPV6, IpAddr::V6(B6))] {
        let before = b.netstat().unwrap().value("TcpInCsumErrors");
        let socket = a.socket(domain, Type::RAW, Some(Protocol::TCP)).unwrap();
        let address = SockAddr::from(SocketAddr::new(to, 0));
        socket.send_to(&segment, &address).unwrap();
        wait::until("the checksum error", LIMIT, || {
            (b.netstat().unwrap().value("TcpInCsumErrors") == before + 1).then_some(())
        })
        .unwrap();
    }
    assert_eq!(lab.checksum_errors().unwrap(), ["b: TcpInCsumErrors = 2"]);
    let asserted = std::panic::catch_unwind(|| lab.assert_checksums_clean());
    assert!(asserted.is_err(), "the assertion cannot fail");
}

/// What XDP would see: with checksum offload on, only the pseudo-header's sum.
#[test]
fn frames_on_the_wire_have_finished_checksums() {
    let (_lab, a, b) = pair("finished");
    for (host, peer) in [(&a, &b), (&b, &a)] {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let mut capture = host.socket(Domain::PACKET, Type::RAW, Some(all)).unwrap();
        capture.set_read_timeout(Some(LIMIT)).unwrap();
        let to = if host.name() == "a" { A4 } else { B4 };
        let _connection = connection(peer, host, to.into());
        let mut frame = [0; 2048];
        let (found, expected) = loop {
            let length = capture.read(&mut frame).unwrap();
            let packet = SlicedPacket::from_ethernet(&frame[..length]).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else {
                continue;
            };
            if ip.header().destination_addr() == to {
                let header = ip.header().to_header();
                let expected = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload());
                break (tcp.checksum(), expected.unwrap());
            }
        };
        assert_eq!(found, expected, "of a frame that {} received", host.name());
    }
}

#[test]
fn an_unplugged_host_is_silent_with_its_carrier_up() {
    let (_lab, a, b) = pair("unplug");
    let (mut near, mut far) = connection(&a, &b, B4.into());
    b.unplug().unwrap();
    a.ping(B4.into()).unwrap_err();
    a.ping(B6.into()).unwrap_err();
    assert!(operstate(&b).contains("state UP"), "{}", operstate(&b));

    near.write_all(b"sent while it was away").unwrap();
    b.plug().unwrap();
    wait::until("an answer after plugging", LIMIT, || a.ping(B4.into()).ok()).unwrap();
    let mut received = [0; 22];
    far.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"sent while it was away");
}

#[test]
fn a_pulled_cable_is_noticed() {
    let (_lab, a, b) = pair("cable");
    b.carrier_down().unwrap();
    let down = || (!operstate(&b).contains("state UP")).then_some(());
    wait::until("the loss of the carrier", LIMIT, down).unwrap();
    b.carrier_up().unwrap();
    wait::until("an answer after it", LIMIT, || a.ping(B4.into()).ok()).unwrap();
}

fn operstate(host: &Host) -> String {
    host.exec(&["ip", "link", "show", "dev", "eth0"]).unwrap()
}

#[test]
fn hosts_do_not_forward_unless_asked_to() {
    let mut lab = Lab::new("router").unwrap();
    let net = |text: &str| -> [IpNet; 1] { [text.parse().unwrap()] };
    let router = HostSpec::new("router").on("lan", net("10.9.1.1/24")).on("wan", net("10.9.2.1/24"));
    let router = lab.add(router).unwrap();
    let left = lab.add(HostSpec::new("left").on("lan", net("10.9.1.2/24")));
    let left = left.unwrap();
    let right = lab.add(HostSpec::new("right").on("wan", net("10.9.2.2/24")));
    left.ip("route add default via 10.9.1.1").unwrap();
    right.unwrap().ip("route add default via 10.9.2.1").unwrap();

    let far = "10.9.2.2".parse().unwrap();
    left.ping(far).unwrap_err();
    router.sysctl("net/ipv4/ip_forward", "1").unwrap();
    left.ping(far).unwrap();
}

#[test]
fn exec_gives_output_and_errors() {
    let (_lab, a, _b) = pair("exec");
    let shown = a.exec(&["ip", "-brief", "address"]).unwrap();
    assert!(shown.contains("10.9.0.1/24"), "{shown}");
    // Mounts stay those of the machine, unlike with `ip netns exec`.
    let same = a.exec(&["readlink", "/proc/self/ns/mnt"]).unwrap();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(Path::new(same.trim()), own);

    let error = a.exec(&["sh", "-c", "echo broken >&2; exit 3"]).unwrap_err();
    assert!(
        matches!(&error, Error::Command { status, stderr, .. } if status.code() == Some(3) && stderr == "broken"),
        "{error}"
    );
    let missing = a.exec(&["no-such-program"]).unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");
}

#[test]
fn a_name_is_used_once() {
    let (mut lab, _a, _b) = pair("names");
    assert!(matches!(lab.add(HostSpec::new("a")), Err(Error::HostName(_))));
    assert!(matches!(lab.host("c"), Err(Error::UnknownHost(_))));
}

#[test]
fn nothing_is_left_of_a_dropped_lab() {
    let (lab, a, b) = pair("drop");
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let process = a.spawn(sleep).unwrap();
    // A child of a child, which no signal to the child itself would reach.
    let (shell, grandchild) = shell_with_child(&a, "sleep 600");
    shell.kill();
    wait::until("the end of a process group", LIMIT, || gone(grandchild)).unwrap();
    // And one that has left the process group.
    let (shell, deserter) = shell_with_child(&a, "setsid sleep 600");
    let (directory, prefix) = (lab.directory(), a.netns().replace("-a", "-"));
    let pins = b.bpffs().unwrap();
    fs::create_dir(&pins).unwrap();
    assert!(directory.exists());
    assert_eq!(namespaces(&prefix).len(), 3);

    // The handles of hosts and processes are still held.
    drop(lab);
    assert_eq!(namespaces(&prefix), Vec::<String>::new());
    assert!(!directory.exists() && !pins.exists());
    for pid in [process.pid(), shell.pid(), deserter] {
        wait::until("the end of a process", LIMIT, || gone(pid)).unwrap();
    }
    assert!(b.ping(A4.into()).is_err());
}

fn shell_with_child(host: &Host, child: &str) -> (Arc<Process>, Pid) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{child} & echo started $!; wait")]);
    let shell = host.spawn(shell).unwrap();
    shell.wait_for_output("started ", LIMIT).unwrap();
    let words = shell.stdout();
    let pid = words.split_whitespace().last().unwrap().parse().unwrap();
    (shell, Pid::from_raw(pid))
}

/// Makes a lab and dies without a word; run by the test below.
#[test]
#[ignore = "ends the test program"]
fn dies_in_a_lab() {
    let (_lab, a, _b) = pair("crash");
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let process = a.spawn(sleep).unwrap();
    println!("\nnetns {} pid {}", a.netns(), process.pid());
    std::process::abort();
}

#[test]
fn a_crash_is_swept_up() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dies_in_a_lab", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("netns "));
    let words: Vec<&str> = (line.unwrap_or_else(|| panic!("{text}{output:?}"))).split(' ').collect();
    let (netns, pid) = (words[1], Pid::from_raw(words[3].parse().unwrap()));

    wait::until("the end of the process", LIMIT, || gone(pid)).unwrap();
    Lab::sweep().unwrap();
    let prefix = netns.replace("-a", "-");
    let swept = || namespaces(&prefix).is_empty().then_some(());
    wait::until("the end of the namespaces", LIMIT, swept).unwrap();
    assert!(!Path::new("/run").join(prefix.trim_end_matches('-')).exists());
}

fn namespaces(prefix: &str) -> Vec<String> {
    (fs::read_dir("/run/netns").into_iter().flatten().flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Ended; that somebody else has yet to reap it does not count.
fn gone(pid: Pid) -> Option<()> {
    let zombie = fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('Z')));
    (zombie || kill(pid, None) == Err(Errno::ESRCH)).then_some(())
}
