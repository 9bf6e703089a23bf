//! What is different between two configurations, setting by setting, and what each difference does to a daemon that runs. Pure.

use std::{collections::BTreeMap, fmt::Debug, net::SocketAddr, time::Duration};

use humantime::format_duration;
use serde::{Deserialize, Serialize};

use super::model::{
    Admin, Backend, Balance, Check, CheckKind, Config, Dataplane, HttpRequest, Script, Sync, Timeouts, Tls, Verify,
    VirtualServer, Vrrp,
};

/// One setting, or one virtual server or backend as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// As one would say it, such as `virtual_server "api" backend "m1" weight`.
    pub setting: String,
    /// `None` where it is new.
    pub now: Option<String>,
    /// `None` where it is gone.
    pub then: Option<String>,
    pub effect: Effect,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It holds from the reload on.
    AtOnce,
    /// A backend takes connections after its check has succeeded.
    AfterCheck,
    /// A backend is checked in another way from here on, and keeps its state until that says otherwise.
    CheckedAnew,
    /// No new connections; those that are there may go on for the drain time.
    Drains,
    /// The VIPs of a virtual router are handed over to another node first, if there is one.
    HandsOver,
    /// The daemon must be started again, and refuses to reload.
    Restart,
}

impl Effect {
    /// In words, for a table.
    pub const fn text(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::AfterCheck => "takes connections when its check succeeds",
            Self::CheckedAnew => "checked anew, from the state it has",
            Self::Drains => "no new connections, its own go on for `drain`",
            Self::HandsOver => "at once, with its VIPs handed over first",
            Self::Restart => "needs a restart",
        }
    }
}

/// The way from `now` to `then`; empty if nothing that means anything is different.
pub fn differences(now: &Config, then: &Config) -> Vec<Difference> {
    let Config { dataplane, admin, virtual_servers, vrrp, sync } = now;
    let mut found = Found::default();
    found.dataplane(dataplane, &then.dataplane);
    found.admin(admin, &then.admin);
    found.servers(virtual_servers, &then.virtual_servers);
    found.vrrp(vrrp, &then.vrrp);
    found.sync(sync.as_ref(), then.sync.as_ref());
    found.0
}

#[derive(Debug, Default)]
struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, setting: String, now: Option<String>, then: Option<String>, effect: Effect) {
        self.0.push(Difference { setting, now, then, effect });
    }

    fn compare<T: PartialEq>(
        &mut self,
        setting: &str,
        [now, then]: [&T; 2],
        show: impl Fn(&T) -> String,
        effect: Effect,
    ) {
        if now != then {
            self.add(setting.to_owned(), Some(show(now)), Some(show(then)), effect);
        }
    }

    fn restart<T: PartialEq + Debug>(&mut self, setting: &str, both: [&T; 2]) {
        self.compare(setting, both, shown, Effect::Restart);
    }

    fn at_once<T: PartialEq + Debug>(&mut self, setting: &str, both: [&T; 2]) {
        self.compare(setting, both, shown, Effect::AtOnce);
    }

    fn dataplane(&mut self, now: &Dataplane, then: &Dataplane) {
        let Dataplane { interfaces, mode, on_stop, max_connections, timeouts, bpffs, cgroup, drain } = now;
        self.compare("dataplane.interfaces", [interfaces, &then.interfaces], |names| list(names), Effect::Restart);
        self.restart("dataplane.mode", [mode, &then.mode]);
        self.compare("dataplane.on_stop", [on_stop, &then.on_stop], shown, Effect::AtOnce);
        self.restart("dataplane.max_connections", [max_connections, &then.max_connections]);
        self.restart("dataplane.bpffs", [bpffs, &then.bpffs]);
        self.restart("dataplane.cgroup", [cgroup, &then.cgroup]);
        let Timeouts { syn, established, closing } = timeouts;
        let mut at_once = |setting, both| self.compare(setting, both, time, Effect::AtOnce);
        at_once("dataplane.drain", [drain, &then.drain]);
        at_once("dataplane.timeouts.syn", [syn, &then.timeouts.syn]);
        at_once("dataplane.timeouts.established", [established, &then.timeouts.established]);
        at_once("dataplane.timeouts.closing", [closing, &then.timeouts.closing]);
    }

    fn admin(&mut self, now: &Admin, then: &Admin) {
        let Admin { control_socket, metrics, healthz } = now;
        self.restart("admin.control_socket", [control_socket, &then.control_socket]);
        self.compare("admin.metrics", [metrics, &then.metrics], listener, Effect::Restart);
        self.compare("admin.healthz", [healthz, &then.healthz], listener, Effect::Restart);
    }

    /// By address and port, which is what clients know. One that has another name only is the same.
    fn servers(&mut self, now: &[VirtualServer], then: &[VirtualServer]) {
        let vip = |server: &VirtualServer| SocketAddr::new(server.address, server.port);
        let after: BTreeMap<_, _> = then.iter().map(|server| (vip(server), server)).collect();
        let before: BTreeMap<_, _> = now.iter().map(|server| (vip(server), server)).collect();
        for server in now {
            match after.get(&vip(server)) {
                Some(then) => self.server(server, then),
                None => self.add(named(server), Some(vip(server).to_string()), None, Effect::Drains),
            }
        }
        for server in then.iter().filter(|server| !before.contains_key(&vip(server))) {
            self.add(named(server), None, Some(vip(server).to_string()), Effect::AfterCheck);
            self.backends(&named(server), &[], &server.backends);
        }
    }

    fn server(&mut self, now: &VirtualServer, then: &VirtualServer) {
        let VirtualServer {
            name,
            address: _,
            port: _,
            interface,
            balance,
            slow_start,
            prefer_local,
            mode,
            elsewhere,
            on_down,
            all_down,
            connection_rate,
            over_rate,
            allow,
            deny,
            drain,
            check,
            backends,
        } = now;
        let of = named(then);
        self.compare(&format!("{of} name"), [name, &then.name], String::clone, Effect::AtOnce);
        let interface_name =
            |interface: &Option<String>| interface.clone().unwrap_or_else(|| "found by its subnet".to_owned());
        self.compare(&format!("{of} interface"), [interface, &then.interface], interface_name, Effect::AtOnce);
        let label = |balance: &Balance| balance.label().to_owned();
        self.compare(&format!("{of} balance"), [balance, &then.balance], label, Effect::AtOnce);
        self.compare(&format!("{of} slow_start"), [slow_start, &then.slow_start], time, Effect::AtOnce);
        self.compare(&format!("{of} prefer_local"), [prefer_local, &then.prefer_local], shown, Effect::AtOnce);
        self.compare(&format!("{of} all_down"), [all_down, &then.all_down], shown, Effect::AtOnce);
        self.compare(&format!("{of} connection_rate"), [connection_rate, &then.connection_rate], shown, Effect::AtOnce);
        self.compare(&format!("{of} over_rate"), [over_rate, &then.over_rate], shown, Effect::AtOnce);
        self.compare(&format!("{of} mode"), [mode, &then.mode], shown, Effect::AtOnce);
        self.compare(&format!("{of} elsewhere"), [elsewhere, &then.elsewhere], shown, Effect::AtOnce);
        self.compare(&format!("{of} on_down"), [on_down, &then.on_down], shown, Effect::AtOnce);
        self.compare(&format!("{of} allow"), [allow, &then.allow], |nets| list(nets), Effect::AtOnce);
        self.compare(&format!("{of} deny"), [deny, &then.deny], |nets| list(nets), Effect::AtOnce);
        self.compare(&format!("{of} drain"), [drain, &then.drain], time, Effect::AtOnce);
        self.check(&of, check, &then.check);
        self.backends(&of, backends, &then.backends);
    }

    fn check(&mut self, of: &str, now: &Check, then: &Check) {
        let Check { kind, interval, timeout, rise, fall, jitter_percent, port } = now;
        let anew = Effect::CheckedAnew;
        self.compare(&format!("{of} check"), [kind, &then.kind], question, anew);
        self.compare(&format!("{of} check.interval"), [interval, &then.interval], time, anew);
        self.compare(&format!("{of} check.timeout"), [timeout, &then.timeout], time, anew);
        self.compare(&format!("{of} check.rise"), [rise, &then.rise], shown, anew);
        self.compare(&format!("{of} check.fall"), [fall, &then.fall], shown, anew);
        self.compare(&format!("{of} check.jitter"), [jitter_percent, &then.jitter_percent], shown, anew);
        let own = |port: &Option<u16>| port.map_or("the backend's".to_owned(), |port| port.to_string());
        self.compare(&format!("{of} check.port"), [port, &then.port], own, anew);
    }

    /// By address and port, as connections know them.
    fn backends(&mut self, of: &str, now: &[Backend], then: &[Backend]) {
        let address = |backend: &Backend| SocketAddr::new(backend.address, backend.port);
        for backend in now {
            let Backend { name, address: _, port: _, weight, backup } = backend;
            match then.iter().find(|then| address(then) == address(backend)) {
                None => {
                    let (setting, now) = (format!("{of} backend \"{name}\""), address(backend).to_string());
                    self.add(setting, Some(now), None, Effect::Drains);
                }
                Some(then) => {
                    let of = format!("{of} backend \"{}\"", then.name);
                    self.compare(&format!("{of} name"), [name, &then.name], String::clone, Effect::AtOnce);
                    self.compare(&format!("{of} weight"), [weight, &then.weight], shown, Effect::AtOnce);
                    self.compare(&format!("{of} backup"), [backup, &then.backup], shown, Effect::AtOnce);
                }
            }
        }
        for backend in then.iter().filter(|then| !now.iter().any(|now| address(now) == address(then))) {
            let (setting, then) = (format!("{of} backend \"{}\"", backend.name), address(backend).to_string());
            self.add(setting, None, Some(then), Effect::AfterCheck);
        }
    }

    /// By name.
    fn vrrp(&mut self, now: &[Vrrp], then: &[Vrrp]) {
        let (of, vips) =
            (|instance: &Vrrp| format!("vrrp \"{}\"", instance.name), |instance: &Vrrp| list(&instance.addresses));
        let in_other = |instance: &Vrrp, all: &[Vrrp]| all.iter().any(|other| other.name == instance.name);
        for before in now {
            match then.iter().find(|after| after.name == before.name) {
                Some(after) => self.instance(before, after),
                None => self.add(of(before), Some(vips(before)), None, Effect::HandsOver),
            }
        }
        for then in then.iter().filter(|then| !in_other(then, now)) {
            self.add(of(then), None, Some(vips(then)), Effect::AtOnce);
        }
    }

    fn sync(&mut self, now: Option<&Sync>, then: Option<&Sync>) {
        let (Some(Sync { listen, peers, key_file }), Some(then)) = (now, then) else {
            let [now, then] = [now, then].map(|sync| sync.map(|sync| list(&sync.peers)));
            if now != then {
                self.add("sync".to_owned(), now, then, Effect::Restart);
            }
            return;
        };
        self.restart("sync.listen", [listen, &then.listen]);
        self.compare("sync.peers", [peers, &then.peers], |peers| list(peers), Effect::Restart);
        self.restart("sync.key_file", [key_file, &then.key_file]);
    }

    fn instance(&mut self, now: &Vrrp, then: &Vrrp) {
        let Vrrp {
            name,
            interface,
            vrid,
            virtual_mac,
            version,
            priority,
            interval,
            down_factor,
            preempt,
            preempt_delay,
            addresses,
            peers,
            min_ttl,
            source,
            authentication,
            checksum,
            label,
            sync_group,
            notify,
            backends_weight,
            dataplane_weight,
            scripts,
        } = now;
        let of = |key: &str| format!("vrrp \"{name}\" {key}");
        self.compare(&of("interface"), [interface, &then.interface], shown, Effect::HandsOver);
        self.compare(&of("vrid"), [vrid, &then.vrid], shown, Effect::HandsOver);
        self.compare(&of("virtual_mac"), [virtual_mac, &then.virtual_mac], shown, Effect::HandsOver);
        self.compare(&of("version"), [version, &then.version], shown, Effect::HandsOver);
        self.at_once(&of("priority"), [priority, &then.priority]);
        self.compare(&of("interval"), [interval, &then.interval], time, Effect::AtOnce);
        self.at_once(&of("down_factor"), [down_factor, &then.down_factor]);
        self.at_once(&of("preempt"), [preempt, &then.preempt]);
        self.compare(&of("preempt_delay"), [preempt_delay, &then.preempt_delay], time, Effect::AtOnce);
        // The first is what adverts are told apart by.
        let moved = if addresses.first() == then.addresses.first() { Effect::AtOnce } else { Effect::HandsOver };
        self.compare(&of("addresses"), [addresses, &then.addresses], |all| list(all), moved);
        self.compare(&of("peers"), [peers, &then.peers], |all| list(all), Effect::AtOnce);
        self.at_once(&of("min_ttl"), [min_ttl, &then.min_ttl]);
        self.at_once(&of("source"), [source, &then.source]);
        // Never shown.
        let secret = [authentication, &then.authentication];
        self.compare(&of("authentication"), secret, |_| "(not shown)".to_owned(), Effect::AtOnce);
        self.at_once(&of("checksum"), [checksum, &then.checksum]);
        self.at_once(&of("label"), [label, &then.label]);
        self.at_once(&of("sync_group"), [sync_group, &then.sync_group]);
        self.at_once(&of("notify"), [notify, &then.notify]);
        self.at_once(&of("backends_weight"), [backends_weight, &then.backends_weight]);
        self.at_once(&of("dataplane_weight"), [dataplane_weight, &then.dataplane_weight]);
        let names = |scripts: &Vec<Script>| list(&scripts.iter().map(|script| &script.name).collect::<Vec<_>>());
        self.compare(&of("script"), [scripts, &then.scripts], names, Effect::AtOnce);
    }
}

fn named(server: &VirtualServer) -> String {
    format!("virtual_server \"{}\"", server.name)
}

/// As it is written in the file, more or less.
fn shown<T: Debug>(value: &T) -> String {
    match format!("{value:?}") {
        none if none == "None" => "not set".to_owned(),
        text => text.strip_prefix("Some(").and_then(|text| text.strip_suffix(')')).unwrap_or(&text).to_lowercase(),
    }
}

fn time(time: &Duration) -> String {
    format_duration(*time).to_string()
}

fn list<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "none".to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// What a check asks, in one line.
fn question(kind: &CheckKind) -> String {
    let (scheme, request, tls) = match kind {
        CheckKind::Tcp => return "tcp".to_owned(),
        CheckKind::Http(request) => ("http", request, None),
        CheckKind::Https(request, tls) => ("https", request, Some(tls)),
    };
    let HttpRequest { path, status, host, token_file } = request;
    let range = |(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    let mut words =
        vec![format!("{scheme} {path}"), format!("status {}", list(&status.iter().map(range).collect::<Vec<_>>()))];
    words.extend(host.iter().map(|host| format!("host {host}")));
    words.extend(token_file.iter().map(|file| format!("token {}", file.display())));
    if let Some(Tls { verify, server_name, client_certificate }) = tls {
        words.push(match verify {
            Verify::No => "not verified".to_owned(),
            Verify::Authority(file) => format!("verified by {}", file.display()),
        });
        words.extend(server_name.iter().map(|name| format!("server name {name}")));
        words.extend(
            client_certificate.iter().map(|(chain, key)| format!("with {} and {}", chain.display(), key.display())),
        );
    }
    words.join(", ")
}

fn listener(address: &Option<SocketAddr>) -> String {
    address.map_or("off".to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{example, parse},
        *,
    };

    const BASE: &str = r#"
        [dataplane]
        interfaces = ["eth0"]
        [[virtual_server]]
        name = "api"
        address = "192.168.2.100"
        port = 6443
        check.type = "tcp"
        [[virtual_server.backend]]
        name = "m1"
        address = "192.168.2.11"
        [[virtual_server.backend]]
        name = "m2"
        address = "192.168.2.12"
        [[vrrp]]
        name = "one"
        interface = "eth0"
        vrid = 51
        version = 2
        addresses = ["192.168.2.100"]
        password = "secret"
    "#;

    fn lines(from: &str, to: &str) -> Vec<String> {
        let read = |text| parse(text, "test").unwrap_or_else(|report| panic!("{report}\n{text}"));
        let line = |difference: Difference| {
            let Difference { setting, now, then, effect } = difference;
            format!("{setting}: {} -> {}: {effect:?}", now.unwrap_or("-".to_owned()), then.unwrap_or("-".to_owned()))
        };
        differences(&read(from), &read(to)).into_iter().map(line).collect()
    }

    #[test]
    fn each_difference_is_told_with_what_it_does() {
        let table: [(&str, &str, &[&str]); 22] = [
            ("vrid = 51", "vrid = 51\npriority = 100", &[]),
            (r#"name = "api""#, r#"name = "new""#, &[r#"virtual_server "new" name: api -> new: AtOnce"#]),
            (r#"name = "m1""#, r#"name = "x""#, &[r#"virtual_server "api" backend "x" name: m1 -> x: AtOnce"#]),
            (
                r#"address = "192.168.2.11""#,
                "address = \"192.168.2.11\"\nweight = 0",
                &[r#"virtual_server "api" backend "m1" weight: 1 -> 0: AtOnce"#],
            ),
            (
                r#"address = "192.168.2.11""#,
                r#"address = "192.168.2.13""#,
                &[
                    r#"virtual_server "api" backend "m1": 192.168.2.11:6443 -> -: Drains"#,
                    r#"virtual_server "api" backend "m1": - -> 192.168.2.13:6443: AfterCheck"#,
                ],
            ),
            (
                "port = 6443",
                "port = 7443",
                &[
                    r#"virtual_server "api": 192.168.2.100:6443 -> -: Drains"#,
                    r#"virtual_server "api": - -> 192.168.2.100:7443: AfterCheck"#,
                    r#"virtual_server "api" backend "m1": - -> 192.168.2.11:6443: AfterCheck"#,
                    r#"virtual_server "api" backend "m2": - -> 192.168.2.12:6443: AfterCheck"#,
                ],
            ),
            (
                r#"check.type = "tcp""#,
                "check.type = \"tcp\"\ncheck.interval = \"1s\"\ncheck.port = 1",
                &[
                    r#"virtual_server "api" check.interval: 2s -> 1s: CheckedAnew"#,
                    r#"virtual_server "api" check.port: the backend's -> 1: CheckedAnew"#,
                ],
            ),
            (
                "port = 6443",
                "port = 6443\non_down = \"keep\"\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.7\"]",
                &[
                    r#"virtual_server "api" on_down: reset -> keep: AtOnce"#,
                    r#"virtual_server "api" allow: none -> 10.0.0.0/8: AtOnce"#,
                    r#"virtual_server "api" deny: none -> 10.0.0.7/32: AtOnce"#,
                ],
            ),
            ("port = 6443", "port = 6443\nmode = \"dsr\"", &[r#"virtual_server "api" mode: nat -> dsr: AtOnce"#]),
            (
                "port = 6443",
                "port = 6443\nconnection_rate = 0\nover_rate = \"drop\"",
                &[
                    r#"virtual_server "api" connection_rate: 10000 -> 0: AtOnce"#,
                    r#"virtual_server "api" over_rate: challenge -> drop: AtOnce"#,
                ],
            ),
            ("port = 6443", "port = 6443\ndrain = \"1h\"", &[r#"virtual_server "api" drain: 10m -> 1h: AtOnce"#]),
            (
                "port = 6443",
                "port = 6443\nbalance = \"least-connections\"\nslow_start = \"30s\"\nprefer_local = \"processes\"\nall_down = \"open\"",
                &[
                    r#"virtual_server "api" balance: source-hash -> least-connections: AtOnce"#,
                    r#"virtual_server "api" slow_start: 0s -> 30s: AtOnce"#,
                    r#"virtual_server "api" prefer_local: off -> processes: AtOnce"#,
                    r#"virtual_server "api" all_down: reset -> open: AtOnce"#,
                ],
            ),
            (
                r#"address = "192.168.2.11""#,
                "address = \"192.168.2.11\"\nbackup = true",
                &[r#"virtual_server "api" backend "m1" backup: false -> true: AtOnce"#],
            ),
            (r#"["eth0"]"#, r#"["eth0", "eth1"]"#, &["dataplane.interfaces: eth0 -> eth0, eth1: Restart"]),
            (
                "[dataplane]",
                "[dataplane]\non_stop = \"keep\"\ntimeouts.syn = \"5s\"\ncgroup = \"off\"",
                &[
                    "dataplane.on_stop: detach -> keep: AtOnce",
                    "dataplane.cgroup: auto -> off: Restart",
                    "dataplane.timeouts.syn: 1m -> 5s: AtOnce",
                ],
            ),
            (
                "[dataplane]",
                "[admin]\nmetrics = \"off\"\n[dataplane]",
                &["admin.metrics: 127.0.0.1:9095 -> off: Restart"],
            ),
            ("secret", "other", &[r#"vrrp "one" authentication: (not shown) -> (not shown): AtOnce"#]),
            ("vrid = 51", "vrid = 51\npriority = 90", &[r#"vrrp "one" priority: 100 -> 90: AtOnce"#]),
            ("vrid = 51", "vrid = 52", &[r#"vrrp "one" vrid: 51 -> 52: HandsOver"#]),
            (
                r#"addresses = ["192.168.2.100"]"#,
                r#"addresses = ["192.168.2.100", "192.168.2.101"]"#,
                &[r#"vrrp "one" addresses: 192.168.2.100/32 -> 192.168.2.100/32, 192.168.2.101/32: AtOnce"#],
            ),
            (
                r#"addresses = ["192.168.2.100"]"#,
                r#"addresses = ["192.168.2.101", "192.168.2.100"]"#,
                &[r#"vrrp "one" addresses: 192.168.2.100/32 -> 192.168.2.101/32, 192.168.2.100/32: HandsOver"#],
            ),
            (
                "name = \"one\"",
                "name = \"two\"",
                &[r#"vrrp "one": 192.168.2.100/32 -> -: HandsOver"#, r#"vrrp "two": - -> 192.168.2.100/32: AtOnce"#],
            ),
        ];
        for (from, to, expected) in table {
            assert_eq!(lines(BASE, &BASE.replacen(from, to, 1)), expected, "{from} -> {to}");
        }
    }

    #[test]
    fn order_and_comments_mean_nothing() {
        let (servers, vrrp) = BASE.split_once("[[vrrp]]").unwrap();
        let (m1, m2) = (
            r#""m1"
        address = "192.168.2.11""#,
            r#""m2"
        address = "192.168.2.12""#,
        );
        let turned = servers.replace(m1, "-").replace(m2, m1).replace('-', m2);
        assert_ne!(turned, servers);
        assert_eq!(lines(BASE, &format!("# said\n{turned}[[vrrp]]{vrrp}")), [""; 0]);
        assert_eq!(lines(&example(), &example()), [""; 0]);
    }
}
