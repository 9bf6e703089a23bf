//! What a configuration may mean and probably does not: no mistakes, but worth a second look before the night it matters.

use std::time::Duration;

use super::model::{Cgroup, Config, PreferLocal, ServerMode, VirtualServer, Vrrp};

/// Above this many times a second, a scheduler that is busy elsewhere can look like a dead node.
const FAST: Duration = Duration::from_millis(50);
const FAST_FACTOR: u8 = 5;

/// A sentence each, with what to do about it.
pub fn hints(config: &Config) -> Vec<String> {
    let mut hints: Vec<String> = config.vrrp.iter().flat_map(of_instance).collect();
    hints.extend(config.virtual_servers.iter().flat_map(|server| of_server(config, server)));
    for server in
        config.virtual_servers.iter().filter(|server| server.mode == ServerMode::Auto && config.sync.is_none())
    {
        hints.push(format!(
            "virtual server \"{}\" has mode \"auto\", and there is no [sync] section, by which nodes say that they turn packets: its mode is always \
             \"nat\". Add [sync], with every backend's node among `peers`, or say \"dsr\".",
            server.name
        ));
    }
    if config.vrrp.is_empty() {
        return hints;
    }
    let moves = |address| config.vrrp.iter().any(|instance| has(instance, address));
    for server in config.virtual_servers.iter().filter(|server| !moves(server.address) && !server.elsewhere) {
        hints.push(format!(
            "the VIP {} of virtual server \"{}\" is in no [[vrrp]] section, so this node always holds it while others move. If other nodes \
             serve it too, add it to `addresses` of a section.",
            server.address, server.name
        ));
    }
    for instance in &config.vrrp {
        let group =
            config.vrrp.iter().filter(|other| instance.sync_group.is_some() && other.sync_group == instance.sync_group);
        if let Some(first) = group.take(1).find(|first| first.priority != instance.priority) {
            hints.push(format!(
                "[[vrrp]] \"{}\" has priority {}, and \"{}\" of the same `sync_group` has {}. They are master together: if another node wins in \
                 one of them only, nobody does in both. Give all members of a group the same.",
                instance.name, instance.priority, first.name, first.priority
            ));
        }
        for net in &instance.addresses {
            let link_local = matches!(net.addr(), std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !link_local && !config.virtual_servers.iter().any(|server| server.address == net.addr()) {
                hints.push(format!(
                    "no virtual server is on the VIP {} of [[vrrp]] \"{}\": it moves, and xvip carries nothing for it. Is the address the one \
                     that is meant?",
                    net.addr(),
                    instance.name
                ));
            }
        }
    }
    hints
}

fn of_server(config: &Config, server: &VirtualServer) -> Vec<String> {
    let mut hints = Vec::new();
    let moves = config.vrrp.iter().any(|instance| has(instance, server.address));
    if moves && config.sync.is_none() && server.balance.takes_turns() {
        hints.push(format!(
            "virtual server \"{}\": with `balance = \"{}\"` no other node can tell which backend a connection has. Without [sync], all of them end when the \
             VIP moves; \"source-hash\" and \"flow-hash\" keep them.",
            server.name,
            server.balance.label()
        ));
    }
    if moves && server.prefer_local == PreferLocal::All {
        hints.push(format!(
            "virtual server \"{}\": with `prefer_local = \"all\"` the VIP's connections end when it moves, since they are with the node that held it. \
             \"processes\" prefers the own backend for this node's processes alone.",
            server.name
        ));
    }
    if config.dataplane.cgroup == Cgroup::Off && server.prefer_local == PreferLocal::Processes {
        hints.push(format!(
            "virtual server \"{}\": `prefer_local = \"processes\"` does nothing with `cgroup = \"off\"`, with which processes go by the VIP.",
            server.name
        ));
    }
    hints
}

fn of_instance(instance: &Vrrp) -> Vec<String> {
    let mut hints = Vec::new();
    let scripts = instance.scripts.iter().map(|script| ("a script's weight", script.weight));
    let mut weights = [("backends_weight", instance.backends_weight), ("dataplane_weight", instance.dataplane_weight)]
        .into_iter()
        .chain(scripts);
    if let Some((name, weight)) = weights.find(|(_, weight)| !instance.preempt && *weight != 0) {
        hints.push(format!(
            "[[vrrp]] \"{}\": with `preempt = false` a master keeps its VIPs however low its priority is, so {name} ({weight}) moves none. With \
             `preempt = true` they move, and `preempt_delay` keeps a node that has just started from taking them back at once; a weight \
             of 0 gives them up in any case.",
            instance.name
        ));
    }
    if instance.virtual_mac && !instance.peers.is_empty() {
        hints.push(format!(
            "[[vrrp]] \"{}\": `virtual_mac` beside `peers`. Clouds and hypervisors deliver no frames to a MAC address that they have not given out: they \
             must allow another one (promiscuous mode, MAC changes and forged transmits), or leave `virtual_mac` out. Advertisements to \
             peers come from the interface's own MAC; switches learn the virtual one from announcements.",
            instance.name
        ));
    }
    if instance.interval < FAST && instance.down_factor < FAST_FACTOR {
        hints.push(format!(
            "[[vrrp]] \"{}\": {} advertisements at an interval of {} are missed as soon as a busy node is late by {}. Set `down_factor` to \
             {FAST_FACTOR} or more.",
            instance.name,
            instance.down_factor,
            humantime::format_duration(instance.interval),
            humantime::format_duration(instance.interval * u32::from(instance.down_factor)),
        ));
    }
    hints
}

fn has(instance: &Vrrp, address: std::net::IpAddr) -> bool {
    instance.addresses.iter().any(|net| net.addr() == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn hinted(vrrp: &str) -> Vec<String> {
        let server = |name: &str, vip: &str| {
            format!(
                "[[virtual_server]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 443\n[[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.9\"\n"
            )
        };
        let text = [
            "[dataplane]\ninterfaces = [\"eth0\"]\n".to_owned(),
            server("a", "10.0.0.1"),
            server("b", "10.0.0.2"),
            vrrp.to_owned(),
        ];
        hints(&parse(&text.concat(), "test").unwrap_or_else(|report| panic!("{report}")))
    }

    #[test]
    fn what_would_not_survive_a_failover_or_does_nothing() {
        let head = "[dataplane]\ninterfaces = [\"eth0\"]\n";
        let backend = "[[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.9\"\n";
        let vrrp = "[[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"10.0.0.1\"]\n";
        let sync = "[sync]\nlisten = \"10.0.0.3:1\"\npeers = [\"10.0.0.4:1\"]\nkey_file = \"/k\"\n";
        let off = "cgroup = \"off\"\n";
        let turns = "virtual server \"a\": with `balance = \"round-robin\"` no other node can tell";
        let all = "virtual server \"a\": with `prefer_local = \"all\"` the VIP's connections end";
        let idle = "virtual server \"a\": `prefer_local = \"processes\"` does nothing";
        for (dataplane, line, rest, expected) in [
            ("", "balance = \"round-robin\"", vrrp.to_owned(), &[turns][..]),
            ("", "balance = \"round-robin\"", String::new(), &[]),
            ("", "balance = \"round-robin\"", vrrp.to_owned() + sync, &[]),
            ("", "balance = \"flow-hash\"", vrrp.to_owned(), &[]),
            ("", "prefer_local = \"all\"", vrrp.to_owned() + sync, &[all]),
            ("", "prefer_local = \"processes\"", vrrp.to_owned(), &[]),
            (off, "prefer_local = \"processes\"", vrrp.to_owned(), &[idle]),
            (off, "prefer_local = \"all\"", String::new(), &[]),
        ] {
            let server =
                format!("[[virtual_server]]\nname = \"a\"\naddress = \"10.0.0.1\"\nport = 443\n{line}\n{backend}");
            let text = format!("{head}{dataplane}{server}{rest}");
            let found = hints(&parse(&text, "test").unwrap_or_else(|report| panic!("{report}")));
            let right = found.len() == expected.len()
                && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
            assert!(right, "{text}\n{found:#?}");
        }
    }

    #[test]
    fn what_is_worth_a_second_look() {
        let head = "[[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\n";
        let both = format!("{head}addresses = [\"10.0.0.1\", \"10.0.0.2\"]\n");
        let script = "[[vrrp.script]]\nname = \"s\"\ncommand = [\"/bin/true\"]\nweight = 11\n";
        let table: &[(String, &[&str])] = &[
            (String::new(), &[]),
            (both.clone(), &[]),
            (
                format!("{head}addresses = [\"10.0.0.1\"]\n"),
                &["the VIP 10.0.0.2 of virtual server \"b\" is in no [[vrrp]]"],
            ),
            (
                format!("{head}addresses = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\"]\n"),
                &["no virtual server is on the VIP 10.0.0.3 of [[vrrp]] \"v\""],
            ),
            (
                format!(
                    "{head}addresses = [\"10.0.0.1\"]\nsync_group = \"g\"\n[[vrrp]]\nname = \"w\"\ninterface = \"eth0\"\nvrid = 2\n\
                     addresses = [\"10.0.0.2\"]\nsync_group = \"g\"\npriority = 99\n"
                ),
                &["[[vrrp]] \"w\" has priority 99, and \"v\" of the same `sync_group` has 100."],
            ),
            (
                format!("{both}preempt = false\n"),
                &[
                    "[[vrrp]] \"v\": with `preempt = false` a master keeps its VIPs however low its priority is, so backends_weight (-253)",
                ],
            ),
            (
                format!("{both}preempt = false\nbackends_weight = 0\n{script}"),
                &["[[vrrp]] \"v\": with `preempt = false`"],
            ),
            (format!("{both}preempt = false\nbackends_weight = 0\n"), &[]),
            (
                format!("{both}interval = \"10ms\"\n"),
                &[
                    "[[vrrp]] \"v\": 3 advertisements at an interval of 10ms are missed as soon as a busy node is late by 30ms",
                ],
            ),
            (format!("{both}interval = \"10ms\"\ndown_factor = 5\n"), &[]),
            (format!("{both}interval = \"50ms\"\n"), &[]),
            (format!("{both}virtual_mac = true\n"), &[]),
            (
                format!("{both}virtual_mac = true\npeers = [\"10.0.0.8\"]\n"),
                &["[[vrrp]] \"v\": `virtual_mac` beside `peers`."],
            ),
        ];
        for (vrrp, expected) in table {
            let found = hinted(vrrp);
            let right = found.len() == expected.len()
                && found.iter().zip(*expected).all(|(found, expected)| found.starts_with(expected));
            assert!(right, "{vrrp}\n{found:#?}");
        }
    }
}
