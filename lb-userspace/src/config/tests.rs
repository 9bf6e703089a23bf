//! Whole files through [`parse`]: every field with malformed values, and files with many mistakes.

mod fields;
mod random;

use super::*;

/// Every key once, each on its own line.
const WHOLE: &str = r#"[dataplane]
interfaces = ["eth0", "eth1"]
mode = "auto"
max_connections = 262144
bpffs = "/sys/fs/bpf/xvip"
[dataplane.timeouts]
syn = "60s"
established = "24h"
closing = "30s"
[admin]
control_socket = "/run/xvip/xvip.sock"
metrics = "127.0.0.1:9095"
[[virtual_server]]
name = "kube-apiserver"
address = "192.168.2.100"
port = 16443
interface = "eth0"
[virtual_server.check]
type = "https"
path = "/readyz"
status = ["200-299", 401]
interval = "2s"
timeout = "3s"
rise = 2
fall = 3
jitter = 10
port = 6444
host = "kubernetes"
token_file = "/etc/xvip/token"
verify = true
ca_file = "/etc/kubernetes/pki/ca.crt"
server_name = "kubernetes"
client_certificate = "/etc/xvip/client.crt"
client_key = "/etc/xvip/client.key"
[[virtual_server.backend]]
name = "master-1"
address = "192.168.2.11"
port = 6443
weight = 1
[[virtual_server.backend]]
name = "master-2"
address = "192.168.2.12"
[[vrrp]]
name = "apiserver"
interface = "eth0"
vrid = 51
version = 3
priority = 100
interval = "100ms"
down_factor = 3
preempt = true
preempt_delay = "1m"
addresses = ["192.168.2.100", "192.168.2.101/24"]
peers = ["192.168.2.20"]
min_ttl = 255
source = "192.168.2.10"
checksum = "message"
label = "eth0:vip"
sync_group = "all"
notify = "/etc/xvip/notify.sh"
backends_weight = -253
dataplane_weight = 0
[vrrp.hmac]
key_id = 1
key_file = "/etc/xvip/vrrp.key"
mode = "enforce"
[[vrrp.script]]
name = "uplink"
command = ["/bin/ping", "-c1", "192.168.2.1"]
interval = "1s"
timeout = "500ms"
rise = 1
fall = 1
weight = -2
[[vrrp]]
name = "internal"
interface = "eth1"
vrid = 51
addresses = ["10.0.0.100"]
sync_group = "all"
virtual_mac = true
[sync]
listen = "192.168.2.10:9096"
peers = ["192.168.2.20:9096", "192.168.2.30:9096"]
key_file = "/etc/xvip/sync.key"
"#;

fn mistakes(text: &str) -> Vec<String> {
    let Err(report) = parse(text, "xvip.toml") else {
        return Vec::new();
    };
    let say = |mistake: &Mistake| {
        let Position { line, column } = mistake.position.expect("text has positions");
        assert!(!mistake.help.is_empty(), "no remedy for {}", mistake.message);
        format!("{line}:{column}: {}", mistake.message)
    };
    report.mistakes().iter().map(say).collect()
}

/// Replaces line `number` of [`WHOLE`].
fn with_line(number: usize, replacement: &str) -> String {
    let line = |(index, line)| {
        if index + 1 == number { replacement } else { line }
    };
    WHOLE.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_malformed_field_is_reported_where_it_stands() {
    assert_eq!(mistakes(WHOLE), Vec::<String>::new());
    let mut wrong = String::new();
    for (number, replacement, expected) in fields::CASES {
        let found = mistakes(&with_line(*number, replacement));
        if found != *expected {
            wrong += &format!("    ({number}, {replacement:?}, &{found:?}),\n");
        }
    }
    assert!(wrong.is_empty(), "these gave something else:\n{wrong}");
}

#[test]
fn all_the_mistakes_of_a_file_are_reported_in_its_order() {
    let text = r#"[dataplane]
mode = "natve"
interfaces = ["eth0"]
[dataplane.timeouts]
syn = "2m"
established = "1m"
[[virtual_server]]
name = "api"
address = "10.0.0.1"
port = 6443
interface = "eth0"
[virtual_server.check]
client_key = "/k"
fall = 100
timeout = "1m"
[[virtual_server.backend]]
name = "a"
address = 10.0.0.2
[[virtual_server]]
name = "api"
adress = "10.0.0.1"
port = 6443
[[virtual_server]]
name = "third"
address = "10.0.0.1"
interface = "eth1"
port = 6443
backend = []
"#;
    assert_eq!(
        mistakes(text),
        [
            r#"2:8: `mode`: "natve" is unknown; did you mean "native"?"#,
            "5:7: `syn` is longer than `established`: connections that are open would be forgotten first",
            "13:1: `client_key` without `client_certificate`",
            "15:11: a backend that hangs would stay in service for 1h 43m 20s",
            "18:11: `10.0.0.2` is not a number, true or false, and text must be in quotes",
            "20:8: the name `api` is taken by the virtual server in line 8",
            "21:1: unknown key `adress` in [[virtual_server]]",
            "26:13: 10.0.0.1 is carried by `eth0` already (line 11)",
            "27:8: 10.0.0.1:6443 is taken by the virtual server in line 10",
            "28:11: `backend` is empty",
        ]
    );
}

#[test]
fn sections_that_must_be_there_are_asked_for() {
    assert_eq!(
        mistakes(""),
        ["1:1: the file needs at least one [[virtual_server]]", "1:1: [dataplane] needs `interfaces`"]
    );
    let without_backends = WHOLE.split("[[virtual_server.backend]]").next().expect("a first part");
    assert_eq!(mistakes(without_backends), ["13:1: [[virtual_server]] needs at least one [[virtual_server.backend]]"]);
}

/// A node with nothing but a virtual server of its own; each `{}` is a line.
const NODE_LOCAL: &str = r#"[dataplane]
{}
[admin]
{}
[[virtual_server]]
name = "kube-apiserver"
address = "127.0.0.1"
port = 6443
{}
[[virtual_server.backend]]
name = "master-1"
address = "192.168.17.11"
"#;

fn node_local(lines: [&str; 3]) -> String {
    lines.iter().fold(NODE_LOCAL.to_owned(), |text, line| text.replacen("{}", line, 1))
}

#[test]
fn a_loopback_address_needs_no_interface() {
    for interfaces in ["", "interfaces = []"] {
        let text = node_local([interfaces, "healthz = \"0.0.0.0:8081\"", ""]);
        let config = parse(&text, "f").unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(config.dataplane.interfaces, [""; 0]);
        assert_eq!(config.admin.healthz, Some("0.0.0.0:8081".parse().expect("an address")));
    }
    let text = node_local(["cgroup = \"/sys/fs/cgroup/kubepods\"", "healthz = \"off\"", ""]);
    let config = parse(&text, "f").unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(config.dataplane.cgroup, model::Cgroup::At("/sys/fs/cgroup/kubepods".into()));
    assert_eq!(config.admin.healthz, None);
    for (lines, expected) in [
        (["", "", "interface = \"eth0\""], "9:1: a virtual server on loopback is put on no interface"),
        (
            ["", "", "allow = [\"127.0.0.0/8\"]"],
            "9:1: `allow` means nothing to a virtual server on loopback: its clients are this node's own processes",
        ),
        (["cgroup = \"off\"", "", ""], "7:11: with `cgroup = \"off\"` nothing serves a loopback address"),
        (
            ["cgroup = \"kubepods\"", "", ""],
            "2:10: `cgroup`: \"kubepods\" is relative: it would depend on where xvip was started",
        ),
        (["", "healthz = \"8081\"", ""], "4:11: `healthz`: \"8081\" is not an address with a port"),
        (["", "healthz = \"[::]:0\"", ""], "4:11: `healthz`: \"[::]:0\" has port 0"),
    ] {
        assert_eq!(mistakes(&node_local(lines)), [expected]);
    }
    let vip = "[[virtual_server]]\nname = \"vip\"\naddress = \"10.0.0.1\"\nport = 1\n[[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.2\"\n";
    for (interfaces, expected) in
        [("", "1:1: [dataplane] needs `interfaces`"), ("interfaces = []", "2:14: `interfaces`: the list is empty")]
    {
        assert_eq!(mistakes(&(node_local([interfaces, "", ""]) + vip)), [expected]);
    }
}

#[test]
fn a_misspelt_section_is_not_missed_as_well() {
    let text = WHOLE.replace("[dataplane]", "[dataplan]").replace("[virtual_server.check]", "[virtual_server.checks]");
    assert_eq!(
        mistakes(&text),
        ["1:2: unknown key `dataplan` in the file", "18:17: unknown key `checks` in [[virtual_server]]"]
    );
    assert_eq!(
        mistakes(&WHOLE.replace("[[virtual_server.backend]]", "[[virtual_server.backends]]")),
        ["35:18: unknown key `backends` in [[virtual_server]]"]
    );
}

#[test]
fn unknown_keys_come_with_the_best_guess() {
    for (line, key, help) in [
        (3, "Mode", "did you mean `mode`?"),
        (3, "bpfs", "did you mean `bpffs`?"),
        (3, "max-connections-", "did you mean `max_connections`?"),
        (3, "rise", "`rise` belongs below `[virtual_server.check]`"),
        (3, "weight", "`weight` belongs below `[[virtual_server.backend]]`"),
        (
            3,
            "virtual_ipaddress",
            "known here: interfaces, mode, on_stop, max_connections, bpffs, cgroup, drain, timeouts",
        ),
    ] {
        let report = parse(&with_line(line, &format!("{key} = 1")), "f").expect_err("an unknown key");
        assert_eq!(report.mistakes()[0].help, help, "{key}");
    }
}

#[test]
fn a_report_reads_like_a_compiler_s() {
    let report = parse(&WHOLE.replace("port = 16443", "port = 70000"), "xvip.toml").expect_err("a bad port");
    assert_eq!(
        report.to_string(),
        "xvip.toml:16:8: `port`: 70000 is out of range\n   |\n16 | port = 70000\n   |        ^^^^^\n\
         help: `port` takes an integer from 1 to 65535, for example `port = 16443`\n\n1 mistake in xvip.toml"
    );
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let config = parse(
        "[dataplane]\ninterfaces = [\"eth0\"]\n[[virtual_server]]\nname = \"v\"\naddress = \"fd00::1\"\nport = 443\n\
         [[virtual_server.backend]]\nname = \"b\"\naddress = \"fd00::2\"\n",
        "f",
    )
    .unwrap_or_else(|report| panic!("{report}"));
    let seconds = std::time::Duration::from_secs;
    let count = |count| std::num::NonZeroU32::new(count).expect("not zero");
    let request = model::HttpRequest { path: "/readyz".into(), status: vec![(200, 200)], host: None, token_file: None };
    let verify = model::Verify::Authority("/etc/kubernetes/pki/ca.crt".into());
    let tls = model::Tls { verify, server_name: None, client_certificate: None };
    let check = model::Check {
        kind: model::CheckKind::Https(request, tls),
        interval: seconds(2),
        timeout: seconds(3),
        rise: count(2),
        fall: count(3),
        jitter_percent: 10,
        port: None,
    };
    let timeouts = model::Timeouts { syn: seconds(60), established: seconds(24 * 3600), closing: seconds(30) };
    let dataplane = model::Dataplane {
        interfaces: vec!["eth0".into()],
        mode: model::XdpMode::Auto,
        on_stop: model::OnStop::Detach,
        max_connections: count(262_144),
        timeouts,
        bpffs: "/sys/fs/bpf/xvip".into(),
        cgroup: model::Cgroup::Auto,
        drain: seconds(0),
    };
    let metrics = Some("127.0.0.1:9095".parse().expect("an address"));
    let backend = model::Backend {
        name: "b".into(),
        address: "fd00::2".parse().expect("IPv6"),
        port: 6443,
        weight: 1,
        backup: false,
    };
    let server = model::VirtualServer {
        name: "v".into(),
        address: "fd00::1".parse().expect("IPv6"),
        port: 443,
        interface: None,
        balance: model::Balance::SourceHash,
        slow_start: seconds(0),
        prefer_local: model::PreferLocal::Off,
        mode: model::ServerMode::Nat,
        elsewhere: false,
        on_down: model::OnDown::Reset,
        all_down: model::AllDown::Reset,
        connection_rate: 10_000,
        over_rate: model::Excess::Challenge,
        allow: Vec::new(),
        deny: Vec::new(),
        drain: seconds(600),
        check,
        backends: vec![backend],
    };
    let admin = model::Admin { control_socket: "/run/xvip/xvip.sock".into(), metrics, healthz: None };
    assert_eq!(config, Config { dataplane, admin, virtual_servers: vec![server], vrrp: Vec::new(), sync: None });
}

#[test]
fn who_has_peers_carries_on_for_a_moment_when_it_ends_and_others_do_not() {
    const LEAST: &str = "[dataplane]\ninterfaces = [\"eth0\"]\n[[virtual_server]]\nname = \"v\"\naddress = \"10.0.0.100\"\nport = 443\n\
                         [[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.2\"\n";
    const VRRP: &str = "[[vrrp]]\nname = \"i\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"10.0.0.100\"]\n";
    const SYNC: &str = "[sync]\nlisten = \"10.0.0.3:9096\"\npeers = [\"10.0.0.4:9096\"]\nkey_file = \"/k\"\n";
    let at_once = LEAST.replacen("[[", "drain = \"0s\"\n[[", 1);
    for (text, seconds) in
        [(LEAST.to_owned(), 0), (LEAST.to_owned() + VRRP, 2), (LEAST.to_owned() + SYNC, 2), (at_once + SYNC, 0)]
    {
        let config = parse(&text, "f").unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(config.dataplane.drain.as_secs(), seconds, "{text}");
    }
}
