//! Random texts never break the parser, and random configurations come back as they were written.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use ipnet::IpNet;
use proptest::prelude::*;

use super::WHOLE;
use crate::config::{example, model::*, parse};

/// What must hold for any text: an answer, and if that is a report, one that can be shown and that points into the text.
fn assert_answers(text: &str) {
    let Err(report) = parse(text, "random") else {
        return;
    };
    assert!(!report.mistakes().is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    for mistake in report.mistakes() {
        let position = mistake.position.expect("text has positions");
        let line = lines.get(position.line - 1).expect("a line of the text");
        assert!((1..=line.chars().count() + 1).contains(&position.column), "{position:?} in {line:?}");
    }
    assert!(report.to_string().ends_with(" in random"));
}

/// One change of a text: at a share of its length, take away some characters and put in others.
fn edit() -> impl Strategy<Value = (f64, usize, String)> {
    let inserted = prop_oneof![
        any::<String>(),
        "[-\\[\\]{}=\"'.,#\n\r\t 0-9a-z_\u{1}é]{0,8}",
        Just("\n[[virtual_server]]\n".to_owned()),
        Just("\n[[vrrp]]\n".to_owned()),
        Just("\"\"\"".to_owned()),
    ];
    (0.0..1.0, 0_usize..40, inserted)
}

fn edited(text: &str, edits: &[(f64, usize, String)]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for (place, removed, inserted) in edits {
        let start = (characters.len() as f64 * place) as usize;
        let end = (start + removed).min(characters.len());
        characters.splice(start..end, inserted.chars());
    }
    characters.into_iter().collect()
}

fn duration(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/[a-zA-Z0-9 \"\\\\é._-]{1,20}".prop_map(PathBuf::from)
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}"
}

fn counter() -> impl Strategy<Value = NonZeroU32> {
    (1_u32..=9).prop_map(|count| NonZeroU32::new(count).expect("not zero"))
}

fn request() -> impl Strategy<Value = HttpRequest> {
    let status = (100_u16..=599, 0_u16..=99).prop_map(|(least, more)| (least, (least + more).min(599)));
    (
        "/[a-z0-9/?=&%._-]{0,20}",
        prop::collection::vec(status, 1..4),
        prop::option::of("[a-z][a-z0-9]{0,9}(:[1-9][0-9]{0,3})?"),
        prop::option::of(path()),
    )
        .prop_map(|(path, status, host, token_file)| HttpRequest { path, status, host, token_file })
}

fn tls() -> impl Strategy<Value = Tls> {
    (
        prop_oneof![Just(Verify::No), path().prop_map(Verify::Authority)],
        prop::option::of("[a-z][a-z0-9]{0,9}(\\.[a-z]{1,5})?"),
        prop::option::of((path(), path())),
    )
        .prop_map(|(verify, server_name, client_certificate)| Tls { verify, server_name, client_certificate })
}

fn check() -> impl Strategy<Value = Check> {
    let kind = prop_oneof![
        Just(CheckKind::Tcp),
        request().prop_map(CheckKind::Http),
        (request(), tls()).prop_map(|(request, tls)| CheckKind::Https(request, tls)),
    ];
    (kind, duration(100..=5_000), duration(10..=60_000), counter(), counter(), 0_u8..=50, prop::option::of(1_u16..))
        .prop_map(|(kind, interval, timeout, rise, fall, jitter_percent, port)| Check {
            kind,
            interval,
            timeout,
            rise,
            fall,
            jitter_percent,
            port,
        })
}

/// Number `index` of its configuration, so that what must be unique is.
fn virtual_server() -> impl Strategy<Value = VirtualServer> {
    let backends = prop::collection::vec((name(), 1_u16.., 0_u16..=256, any::<bool>()), 1..5);
    let balance = prop::sample::select(Balance::ALL.to_vec());
    let prefer_local = prop_oneof![Just(PreferLocal::Off), Just(PreferLocal::Processes), Just(PreferLocal::All)];
    let all_down = prop_oneof![Just(AllDown::Reset), Just(AllDown::Open)];
    let over_rate = prop_oneof![Just(Excess::Challenge), Just(Excess::Drop), Just(Excess::Reset)];
    let balancing = (balance, duration(0..=3_600_000), prefer_local, all_down, (0..=1_000_000_u32, over_rate));
    let on_down = prop_oneof![Just(OnDown::Reset), Just(OnDown::Keep)];
    let mode = prop_oneof![Just(ServerMode::Nat), Just(ServerMode::Dsr), Just(ServerMode::Auto)];
    let interface = prop::option::of("[a-z0-9._-]{3,15}");
    let ranges = || prop::collection::vec((any::<u128>(), 0_u8..=128), 0..3);
    let drain = duration(0..=600_000);
    let ends = (mode, on_down);
    (name(), any::<bool>(), 1_u16.., interface, ends, drain, (ranges(), ranges()), check(), (backends, balancing))
        .prop_map(|(name, v4, port, interface, (mode, on_down), drain, (allow, deny), check, (backends, balancing))| {
            let (balance, slow_start, prefer_local, all_down, (connection_rate, over_rate)) = balancing;
            let range = |(bits, length): &(u128, u8)| {
                let net = if v4 {
                    IpNet::new(IpAddr::from((*bits as u32).to_be_bytes()), length % 33)
                } else {
                    // Outside of IPv4's part.
                    IpNet::new(IpAddr::from((*bits | 1 << 127).to_be_bytes()), *length)
                };
                net.unwrap().trunc()
            };
            let [allow, deny] = [allow, deny].map(|list| {
                let unique: BTreeSet<IpNet> = list.iter().map(range).collect();
                unique.into_iter().collect::<Vec<_>>()
            });
            let address = |host: u8| {
                if v4 {
                    IpAddr::from([10, 0, 0, host])
                } else {
                    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)])
                }
            };
            let backend = |(host, (name, port, weight, backup)): (u8, (String, u16, u16, bool))| Backend {
                name: format!("{name}{host}"),
                address: address(host),
                port,
                weight,
                // The first is none: somebody must not be.
                backup: backup && host > 1,
            };
            let backends = (1..).zip(backends).map(backend).collect();
            let elsewhere = false;
            VirtualServer {
                name,
                address: address(100),
                port,
                interface,
                mode,
                elsewhere,
                balance,
                slow_start,
                prefer_local,
                on_down,
                all_down,
                connection_rate,
                over_rate,
                drain,
                allow,
                deny,
                check,
                backends,
            }
        })
}

fn authentication() -> impl Strategy<Value = Authentication> {
    let modes = prop_oneof![Just(HmacMode::ReceiveOnly), Just(HmacMode::Permissive), Just(HmacMode::Enforce)];
    prop_oneof![
        Just(Authentication::None),
        "[ -~é]{1,4}".prop_map(|text| Authentication::Password(Password::new(&text))),
        (any::<u8>(), path(), modes)
            .prop_map(|(key_id, key_file, mode)| { Authentication::Hmac(Hmac { key_id, key_file, mode }) }),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let command = (path(), prop::collection::vec("[ -~é]{0,9}", 0..3));
    (name(), command, 100_u64..=5_000, counter(), counter(), -253_i16..=253).prop_map(
        |(name, (program, mut command), interval, rise, fall, weight)| {
            command.insert(0, program.to_str().expect("UTF-8").to_owned());
            let interval = Duration::from_millis(interval);
            Script { name, command, interval, timeout: interval / 2, rise, fall, weight }
        },
    )
}

/// To be numbered by the configuration, so that what must be unique is.
fn vrrp() -> impl Strategy<Value = Vrrp> {
    let plain =
        (name(), "[a-z0-9._-]{3,14}", 1_u8.., 1_u8..=254, 1_u64..=255, 2_u8..=100, authentication(), any::<bool>());
    let addresses = prop::collection::vec(8_u8..=32, 1..5);
    let more = (
        (any::<bool>(), duration(0..=9_000)),
        (0_u8..4, any::<bool>(), 1_u8..),
        prop::option::of(path()),
        (-253_i16..=253, -253_i16..=253),
        prop::collection::vec(script(), 0..3),
        any::<bool>(),
    );
    (plain, addresses, more).prop_map(|(plain, prefixes, more)| {
        let (name, interface, vrid, priority, interval, down_factor, authentication, message) = plain;
        let ((preempt, delay), (peers, has_source, min_ttl), notify, weights, scripts, ipv6) = more;
        let is_v2 = matches!(authentication, Authentication::Password(_));
        let ipv6 = ipv6 && !is_v2;
        let address = |group: u8, host: u8| match ipv6 {
            false => IpAddr::from([10, 1, group, host]),
            true => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, u16::from(group), u16::from(host)]),
        };
        let vip = |(host, prefix)| IpNet::new(address(0, host), prefix).expect("a prefix length of either family");
        let unique = |(index, script): (usize, Script)| Script { name: format!("{}{index}", script.name), ..script };
        let label = format!("{}:", interface.chars().take(14).collect::<String>());
        Vrrp {
            name,
            interface,
            vrid,
            version: if is_v2 { Version::V2 } else { Version::V3 },
            priority,
            interval: if is_v2 { Duration::from_secs(interval) } else { Duration::from_millis(interval * 10) },
            down_factor,
            preempt,
            preempt_delay: if preempt { delay } else { Duration::ZERO },
            addresses: (1..).zip(prefixes).map(vip).collect(),
            virtual_mac: preempt != message,
            peers: (0..peers).map(|host| address(200, host)).collect(),
            min_ttl,
            source: has_source.then(|| address(201, 1)),
            authentication,
            checksum: if message && !is_v2 && !ipv6 { ChecksumForm::Message } else { ChecksumForm::PseudoHeader },
            label: (message && !ipv6).then_some(label),
            sync_group: None,
            notify,
            backends_weight: weights.0,
            dataplane_weight: weights.1,
            scripts: scripts.into_iter().enumerate().map(unique).collect(),
        }
    })
}

/// Gives each instance what no other has, and all of them one group where there are several.
fn numbered(mut instances: Vec<Vrrp>, grouped: bool) -> Vec<Vrrp> {
    let count = instances.len();
    for (index, instance) in (0_u8..).zip(&mut instances) {
        instance.name = format!("{}{index}", instance.name);
        instance.vrid = index + 1;
        for net in &mut instance.addresses {
            let address = match net.addr() {
                IpAddr::V4(v4) => IpAddr::from([10, 2, index, v4.octets()[3]]),
                IpAddr::V6(v6) => IpAddr::from([0xfd02, 0, 0, 0, 0, 0, u16::from(index), v6.segments()[7]]),
            };
            *net = IpNet::new(address, net.prefix_len()).expect("the same family");
        }
        instance.sync_group = (grouped && count > 1).then(|| "group".to_owned());
    }
    instances
}

fn config() -> impl Strategy<Value = Config> {
    let timeouts = (duration(1_000..=60_000), duration(60_000..=86_400_000), duration(1_000..=60_000))
        .prop_map(|(syn, established, closing)| Timeouts { syn, established, closing });
    let mode = prop_oneof![Just(XdpMode::Auto), Just(XdpMode::Native), Just(XdpMode::Generic)];
    let on_stop = prop_oneof![Just(OnStop::Detach), Just(OnStop::Keep)];
    let connections = (256_u32..=16_777_216).prop_map(|count| NonZeroU32::new(count).expect("not zero"));
    let interfaces =
        prop::collection::hash_set("[a-z0-9._-]{3,15}", 1..4).prop_map(|names| names.into_iter().collect());
    let cgroup = prop_oneof![Just(Cgroup::Auto), Just(Cgroup::Off), path().prop_map(Cgroup::At)];
    let dataplane = (interfaces, mode, on_stop, connections, timeouts, path(), cgroup, duration(0..=60_000)).prop_map(
        |(interfaces, mode, on_stop, max_connections, timeouts, bpffs, cgroup, drain)| Dataplane {
            interfaces,
            mode,
            on_stop,
            max_connections,
            timeouts,
            bpffs,
            cgroup,
            drain,
        },
    );
    let metrics = prop::option::of((any::<bool>(), 1_u16..)).prop_map(|metrics| {
        metrics.map(
            |(v4, port)| {
                if v4 { ([127, 0, 0, 1], port).into() } else { ([0, 0, 0, 0, 0, 0, 0, 1_u16], port).into() }
            },
        )
    });
    let healthz = prop::option::of((any::<[u8; 4]>(), 1_u16..)).prop_map(|healthz| healthz.map(Into::into));
    let admin = (path(), metrics, healthz).prop_map(|(control_socket, metrics, healthz)| Admin {
        control_socket,
        metrics,
        healthz,
    });
    let vrrp = (prop::collection::vec(vrrp(), 0..4), any::<bool>())
        .prop_map(|(instances, grouped)| numbered(instances, grouped));
    let nodes = prop::collection::btree_set(2_u8.., 1..4);
    let sync = prop::option::of((1_u16.., nodes, path())).prop_map(|sync| {
        let node = |host, port| (IpAddr::from([10, 0, 2, host]), port).into();
        sync.map(|(port, nodes, key_file)| Sync {
            listen: node(1, port),
            peers: nodes.into_iter().map(|host| node(host, port)).collect(),
            key_file,
        })
    });
    (dataplane, admin, prop::collection::vec(virtual_server(), 1..4), vrrp, sync).prop_map(
        |(dataplane, admin, mut virtual_servers, vrrp, sync)| {
            for (index, server) in (0_u8..).zip(&mut virtual_servers) {
                server.name = format!("{}{index}", server.name);
                // Every server has a VIP of its own, out of reach of the backends.
                server.address = match server.address {
                    IpAddr::V4(_) => IpAddr::from([10, 0, 1, index]),
                    IpAddr::V6(_) => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 1, u16::from(index)]),
                };
            }
            Config { dataplane, admin, virtual_servers, vrrp, sync }
        },
    )
}

/// The configuration as a file.
fn written(config: &Config) -> String {
    let Config { dataplane, admin, virtual_servers, vrrp, sync } = config;
    let mut text = String::from("[dataplane]\n");
    let mut key = |name: &str, value: toml::Value| text += &format!("{name} = {value}\n");
    let time = |duration: Duration| toml::Value::from(humantime::format_duration(duration).to_string());
    let file = |path: &PathBuf| toml::Value::from(path.to_str().expect("UTF-8"));
    let integer = |number: NonZeroU32| toml::Value::from(number.get());
    key("interfaces", dataplane.interfaces.clone().into());
    key("mode", format!("{:?}", dataplane.mode).to_lowercase().into());
    key("on_stop", format!("{:?}", dataplane.on_stop).to_lowercase().into());
    key("max_connections", integer(dataplane.max_connections));
    key("bpffs", file(&dataplane.bpffs));
    match &dataplane.cgroup {
        Cgroup::Auto => {}
        Cgroup::Off => key("cgroup", "off".into()),
        Cgroup::At(path) => key("cgroup", file(path)),
    }
    key("drain", time(dataplane.drain));
    key("timeouts.syn", time(dataplane.timeouts.syn));
    key("timeouts.established", time(dataplane.timeouts.established));
    key("timeouts.closing", time(dataplane.timeouts.closing));
    text += "[admin]\n";
    let mut key = |name: &str, value: toml::Value| text += &format!("{name} = {value}\n");
    key("control_socket", file(&admin.control_socket));
    key("metrics", admin.metrics.map_or("off".to_owned(), |address| address.to_string()).into());
    key("healthz", admin.healthz.map_or("off".to_owned(), |address| address.to_string()).into());
    for server in virtual_servers {
        let VirtualServer { name, address, port, interface, drain, allow, deny, check, backends, .. } = server;
        let VirtualServer { balance, slow_start, prefer_local, mode, elsewhere, on_down, all_down, .. } = server;
        let VirtualServer { connection_rate, over_rate, .. } = server;
        text += "[[virtual_server]]\n";
        let mut key = |name: &str, value: toml::Value| text += &format!("{name} = {value}\n");
        key("name", name.as_str().into());
        key("address", address.to_string().into());
        key("port", i64::from(*port).into());
        interface.iter().for_each(|interface| key("interface", interface.as_str().into()));
        key("balance", balance.label().into());
        key("slow_start", time(*slow_start));
        key("prefer_local", format!("{prefer_local:?}").to_lowercase().into());
        key("mode", format!("{mode:?}").to_lowercase().into());
        key("elsewhere", (*elsewhere).into());
        key("on_down", format!("{on_down:?}").to_lowercase().into());
        key("all_down", format!("{all_down:?}").to_lowercase().into());
        key("connection_rate", i64::from(*connection_rate).into());
        key("over_rate", format!("{over_rate:?}").to_lowercase().into());
        for (name, list) in [("allow", allow), ("deny", deny)] {
            key(name, list.iter().map(ToString::to_string).collect::<Vec<_>>().into());
        }
        key("drain", time(*drain));
        key("check.interval", time(check.interval));
        key("check.timeout", time(check.timeout));
        key("check.rise", integer(check.rise));
        key("check.fall", integer(check.fall));
        key("check.jitter", i64::from(check.jitter_percent).into());
        check.port.iter().for_each(|port| key("check.port", i64::from(*port).into()));
        let (kind, request, tls) = match &check.kind {
            CheckKind::Tcp => ("tcp", None, None),
            CheckKind::Http(request) => ("http", Some(request), None),
            CheckKind::Https(request, tls) => ("https", Some(request), Some(tls)),
        };
        key("check.type", kind.into());
        if let Some(HttpRequest { path, status, host, token_file }) = request {
            key("check.path", path.as_str().into());
            let status: Vec<_> = status.iter().map(|(least, most)| format!("{least}-{most}")).collect();
            key("check.status", status.into());
            host.iter().for_each(|host| key("check.host", host.as_str().into()));
            token_file.iter().for_each(|path| key("check.token_file", file(path)));
        }
        if let Some(Tls { verify, server_name, client_certificate }) = tls {
            match verify {
                Verify::No => key("check.verify", false.into()),
                Verify::Authority(path) => key("check.ca_file", file(path)),
            }
            server_name.iter().for_each(|name| key("check.server_name", name.as_str().into()));
            if let Some((certificate, private)) = client_certificate {
                key("check.client_certificate", file(certificate));
                key("check.client_key", file(private));
            }
        }
        for Backend { name, address, port, weight, backup } in backends {
            text += &format!("[[virtual_server.backend]]\nname = {name:?}\naddress = \"{address}\"\n");
            text += &format!("port = {port}\nweight = {weight}\nbackup = {backup}\n");
        }
    }
    vrrp.iter().for_each(|instance| write_vrrp(&mut text, instance));
    if let Some(Sync { listen, peers, key_file }) = sync {
        let peers: Vec<_> = peers.iter().map(ToString::to_string).collect();
        text += &format!("[sync]\nlisten = \"{listen}\"\npeers = {peers:?}\nkey_file = {}\n", file(key_file));
    }
    text
}

fn write_vrrp(text: &mut String, instance: &Vrrp) {
    let time = |duration: Duration| toml::Value::from(humantime::format_duration(duration).to_string());
    let file = |path: &PathBuf| toml::Value::from(path.to_str().expect("UTF-8"));
    let number = |number: i64| toml::Value::from(number);
    *text += "[[vrrp]]\n";
    let mut key = |name: &str, value: toml::Value| *text += &format!("{name} = {value}\n");
    key("name", instance.name.as_str().into());
    key("interface", instance.interface.as_str().into());
    key("vrid", number(instance.vrid.into()));
    let is_v2 = instance.version == Version::V2;
    key("version", number(if is_v2 { 2 } else { 3 }));
    key("priority", number(instance.priority.into()));
    key("interval", time(instance.interval));
    key("down_factor", number(instance.down_factor.into()));
    key("preempt", instance.preempt.into());
    if instance.preempt {
        key("preempt_delay", time(instance.preempt_delay));
    }
    key("addresses", instance.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().into());
    key("peers", instance.peers.iter().map(ToString::to_string).collect::<Vec<_>>().into());
    key("virtual_mac", instance.virtual_mac.into());
    key("min_ttl", number(instance.min_ttl.into()));
    instance.source.iter().for_each(|source| key("source", source.to_string().into()));
    if instance.checksum == ChecksumForm::Message {
        key("checksum", "message".into());
    }
    instance.label.iter().for_each(|label| key("label", label.as_str().into()));
    instance.sync_group.iter().for_each(|group| key("sync_group", group.as_str().into()));
    instance.notify.iter().for_each(|path| key("notify", file(path)));
    key("backends_weight", number(instance.backends_weight.into()));
    key("dataplane_weight", number(instance.dataplane_weight.into()));
    match &instance.authentication {
        Authentication::None => {}
        Authentication::Password(password) => {
            key("password", password.text().into());
        }
        Authentication::Hmac(Hmac { key_id, key_file, mode }) => {
            let mode = match mode {
                HmacMode::ReceiveOnly => "receive-only",
                HmacMode::Permissive => "permissive",
                HmacMode::Enforce => "enforce",
            };
            key("hmac.key_id", number((*key_id).into()));
            key("hmac.key_file", file(key_file));
            key("hmac.mode", mode.into());
        }
    }
    for Script { name, command, interval, timeout, rise, fall, weight } in &instance.scripts {
        *text += "[[vrrp.script]]\n";
        let mut key = |name: &str, value: toml::Value| *text += &format!("{name} = {value}\n");
        key("name", name.as_str().into());
        key("command", command.clone().into());
        key("interval", time(*interval));
        key("timeout", time(*timeout));
        key("rise", number(rise.get().into()));
        key("fall", number(fall.get().into()));
        key("weight", number((*weight).into()));
    }
}

proptest! {
    #[test]
    fn any_text_gets_an_answer(text in any::<String>()) {
        assert_answers(&text);
    }

    #[test]
    fn any_edited_file_gets_an_answer(edits in prop::collection::vec(edit(), 1..6), whole in any::<bool>()) {
        let text = if whole { WHOLE.to_owned() } else { example() };
        assert_answers(&edited(&text, &edits));
    }

    #[test]
    fn what_is_written_is_what_is_read(config in config()) {
        let text = written(&config);
        match parse(&text, "written") {
            Ok(read) => prop_assert_eq!(read, config),
            Err(report) => prop_assert!(false, "{report}\n{text}"),
        }
    }
}
