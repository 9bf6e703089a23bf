//! From the file as written to the [`model`]: whatever depends on more than one key is checked here.
//!
//! A field that is wrong has been reported while it was read; here it only ends the section it is in.

mod check;
mod sync;
mod vrrp;

use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use toml::Spanned;

use super::{
    files::FileUse,
    keys::{Field, Section as _},
    leaf::{SourceRange, Time},
    model::{self, Config},
    raw,
    report::{Mistakes, Span, line_of},
};

/// What is on its way to a VIP that another node has taken arrives within this, where its announcement was heard. What is sent on to a node
/// that turns packets goes elsewhere within it, too: a holder looks once a second at what it was told.
const DRAIN: Duration = Duration::from_secs(2);

/// State of the checks between keys.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    pub(super) text: &'a str,
    pub(super) mistakes: &'a mut Mistakes,
    /// Files that the configuration names, for whoever may look at the file system.
    pub(super) files: Vec<FileUse>,
}

impl Checker<'_> {
    /// `None` only after a mistake.
    pub(super) fn config(&mut self, raw: raw::File) -> Option<Config> {
        self.refuse_shared_vips(&raw.virtual_server.0);
        self.check_loopback(&raw.dataplane.0, &raw.virtual_server.0);
        self.refuse_held_elsewhere(&raw.vrrp.0, &raw.virtual_server.0);
        let vrrp = self.vrrp(&raw.vrrp.0, &raw.virtual_server.0);
        let dataplane = self.dataplane(raw.dataplane.0, !raw.vrrp.0.is_empty() || raw.sync.0.is_some());
        let admin = admin(raw.admin.0);
        let sync = match &raw.sync.0 {
            Some(sync) => self.sync(sync).map(Some),
            None => Some(None),
        };
        let servers: Vec<_> = raw.virtual_server.0.into_iter().map(|server| self.virtual_server(server)).collect();
        Some(Config {
            dataplane: dataplane?,
            admin: admin?,
            virtual_servers: servers.into_iter().collect::<Option<_>>()?,
            vrrp: vrrp?,
            sync: sync?,
        })
    }

    fn dataplane(&mut self, raw: raw::Dataplane, has_peers: bool) -> Option<model::Dataplane> {
        let timeouts = self.timeouts(&raw.timeouts.0);
        let names = raw.interfaces.value().map(Vec::as_slice).unwrap_or_default();
        self.refuse_duplicates(names.iter().map(|name| (name.get_ref().0.as_str(), name.span())), |name, line| {
            (format!("interface `{name}` is given twice (first in line {line})"), "leave out one of the two".to_owned())
        });
        let names = names.iter().map(|name| name.get_ref().0.clone()).collect();
        Some(model::Dataplane {
            interfaces: optional(&raw.interfaces).map(|_| names)?,
            mode: *raw.mode.value()?,
            on_stop: *raw.on_stop.value()?,
            max_connections: *raw.max_connections.value()?,
            timeouts: timeouts?,
            bpffs: raw.bpffs.value()?.0.clone(),
            cgroup: raw.cgroup.value()?.clone(),
            drain: optional(&raw.drain)?.map_or(if has_peers { DRAIN } else { Duration::ZERO }, |drain| drain.0),
        })
    }

    fn timeouts(&mut self, raw: &raw::Timeouts) -> Option<model::Timeouts> {
        if let Some(established) = raw.established.value() {
            for (name, shorter) in [("syn", &raw.syn), ("closing", &raw.closing)] {
                if shorter.value().is_some_and(|shorter| shorter > established) {
                    let at = shorter.span().or(raw.established.span()).unwrap_or(raw.header());
                    self.mistakes.add(
                        &at,
                        format!(
                            "`{name}` is longer than `established`: connections that are open would be forgotten first"
                        ),
                        format!("make `{name}` shorter, or `established` longer (it is {})", written(*established)),
                    );
                }
            }
        }
        Some(model::Timeouts {
            syn: raw.syn.value()?.0,
            established: raw.established.value()?.0,
            closing: raw.closing.value()?.0,
        })
    }

    fn virtual_server(&mut self, raw: raw::VirtualServer) -> Option<model::VirtualServer> {
        let check = self.check(&raw.check.0);
        let backends = self.backends(&raw);
        let [allow, deny] =
            [("allow", &raw.allow), ("deny", &raw.deny)].map(|(key, list)| self.ranges(key, list, &raw));
        Some(model::VirtualServer {
            name: raw.name.value()?.0.clone(),
            address: raw.address.value()?.0,
            port: *raw.port.value()?,
            interface: optional(&raw.interface)?.map(|name| name.0.clone()),
            balance: *raw.balance.value()?,
            slow_start: raw.slow_start.value()?.0,
            prefer_local: *raw.prefer_local.value()?,
            mode: *raw.mode.value()?,
            elsewhere: *raw.elsewhere.value()?,
            on_down: *raw.on_down.value()?,
            all_down: *raw.all_down.value()?,
            connection_rate: *raw.connection_rate.value()?,
            over_rate: *raw.over_rate.value()?,
            allow: allow?,
            deny: deny?,
            drain: raw.drain.value()?.0,
            check: check?,
            backends: backends?,
        })
    }

    /// One of the lists of a virtual server's clients.
    fn ranges(
        &mut self,
        key: &str,
        list: &Field<Vec<Spanned<SourceRange>>>,
        server: &raw::VirtualServer,
    ) -> Option<Vec<IpNet>> {
        let ranges = list.value()?;
        self.refuse_duplicates(ranges.iter().map(|range| (range.get_ref().0, range.span())), |range, line| {
            (format!("{range} is given twice (first in line {line})"), "leave out one of the two".to_owned())
        });
        let vip = server.address.value()?.0;
        if let (Some(at), true) = (list.key_span(), vip.is_loopback()) {
            let message = format!(
                "`{key}` means nothing to a virtual server on loopback: its clients are this node's own processes"
            );
            self.mistakes.add(at, message, format!("leave out `{key}`"));
        }
        for range in ranges.iter().filter(|range| range.get_ref().0.addr().is_ipv4() != vip.is_ipv4()) {
            let (family, other) = if vip.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let message =
                format!("{} is {other}, but the VIP {vip} is {family}, as are all its clients", range.get_ref().0);
            let help =
                format!("give a range of {family} addresses, or move it to a virtual server with an {other} VIP");
            self.mistakes.add(&range.span(), message, help);
        }
        Some(ranges.iter().map(|range| range.get_ref().0).collect())
    }

    /// What a virtual server on loopback needs, and what only the others do.
    fn check_loopback(&mut self, dataplane: &raw::Dataplane, servers: &[raw::VirtualServer]) {
        let on_loopback = |server: &&raw::VirtualServer| server.address.value().is_some_and(|vip| vip.0.is_loopback());
        if servers.is_empty() || !servers.iter().all(|server| on_loopback(&server)) {
            let help = "add `interfaces = [\"eth0\"]` below `[dataplane]`; only a node whose virtual servers are all on loopback needs none";
            match &dataplane.interfaces {
                Field::Absent => {
                    self.mistakes.add_missing(&dataplane.header(), "[dataplane] needs `interfaces`", help);
                }
                Field::Written(names, _) if names.get_ref().is_empty() => {
                    self.mistakes.add(&names.span(), "`interfaces`: the list is empty", help);
                }
                _ => {}
            }
        }
        for server in servers.iter().filter(on_loopback) {
            if let Some(at) = server.interface.key_span() {
                let help = "leave out `interface`: a loopback address is on every host already";
                self.mistakes.add(at, "a virtual server on loopback is put on no interface", help);
            }
            for (key, at) in [("mode", server.mode.key_span()), ("elsewhere", server.elsewhere.key_span())] {
                if let Some(at) = at {
                    let message =
                        format!("`{key}` means nothing to a virtual server on loopback: no packets come to it");
                    self.mistakes.add(at, message, format!("leave out `{key}`"));
                }
            }
            if let (Some(model::Cgroup::Off), Some(at)) = (dataplane.cgroup.value(), server.address.span()) {
                let help = "leave out `cgroup`, or give this virtual server an address that others can reach";
                self.mistakes.add(&at, "with `cgroup = \"off\"` nothing serves a loopback address", help);
            }
        }
    }

    /// What must differ, or agree, between virtual servers.
    fn refuse_shared_vips(&mut self, servers: &[raw::VirtualServer]) {
        let names = servers.iter().filter_map(|server| at(&server.name)).map(|(name, at)| (name.0.as_str(), at));
        self.refuse_duplicates(names, |name, line| {
            (
                format!("the name `{name}` is taken by the virtual server in line {line}"),
                "give each its own name".to_owned(),
            )
        });
        let vips = servers.iter().filter_map(|server| {
            let (address, at) = at(&server.address)?;
            // The line that is there to be changed is the port's, where the address is shared on purpose.
            Some(((address.0, *server.port.value()?), server.port.span().unwrap_or(at)))
        });
        self.refuse_duplicates(vips, |(address, port), line| {
            let message = format!("{} is taken by the virtual server in line {line}", endpoint(*address, *port));
            (message, "change the port or the address, or put the backends of both into one".to_owned())
        });
        let mut interfaces = HashMap::new();
        for server in servers {
            let (Some(address), Some((interface, at))) = (server.address.value(), at(&server.interface)) else {
                continue;
            };
            let (first, first_at) = interfaces.entry(address.0).or_insert((interface, at.clone()));
            if *first != interface {
                let message = format!(
                    "{} is carried by `{}` already (line {})",
                    address.0,
                    first.0,
                    line_of(self.text, first_at)
                );
                self.mistakes.add(&at, message, "give both virtual servers the same interface");
            }
        }
        let vips: Vec<_> =
            servers.iter().filter_map(|server| Some((server.address.value()?.0, *server.port.value()?))).collect();
        for backend in servers.iter().flat_map(|server| &server.backend.0) {
            let (Some((address, at)), Some(port)) = (at(&backend.address), backend.port.value()) else {
                continue;
            };
            if vips.contains(&(address.0, *port)) {
                self.mistakes.add(
                    &at,
                    format!(
                        "{} is a virtual server: its traffic would go round in circles",
                        endpoint(address.0, *port)
                    ),
                    "give the backend's own address and port",
                );
            }
        }
    }

    /// A VIP that is never this node's cannot be one that may come here.
    fn refuse_held_elsewhere(&mut self, instances: &[raw::Vrrp], servers: &[raw::VirtualServer]) {
        let moving = instances.iter().filter_map(|instance| instance.addresses.value()).flatten();
        let moving: Vec<IpAddr> = moving.map(|net| net.get_ref().0.addr()).collect();
        for server in servers {
            let (Some(vip), Some((true, at))) = (server.address.value(), at(&server.elsewhere)) else { continue };
            if moving.contains(&vip.0) {
                let message = format!("{} is elsewhere, and in a [[vrrp]] section, by which it may come here", vip.0);
                self.mistakes.add(&at, message, "leave out `elsewhere`, or take the VIP out of the section");
            }
            if servers.iter().any(|other| other.address.value() == Some(vip) && other.elsewhere.value() == Some(&false))
            {
                let message = format!("{} is elsewhere, and another virtual server with it is not", vip.0);
                self.mistakes.add(&at, message, "give all virtual servers of one VIP the same `elsewhere`");
            }
        }
    }

    fn backends(&mut self, server: &raw::VirtualServer) -> Option<Vec<model::Backend>> {
        let backends = &server.backend.0;
        let names = backends.iter().filter_map(|backend| at(&backend.name)).map(|(name, at)| (name.0.as_str(), at));
        self.refuse_duplicates(names, |name, line| {
            (format!("the name `{name}` is taken by the backend in line {line}"), "give each its own name".to_owned())
        });
        let endpoints = backends.iter().filter_map(|backend| {
            let (address, at) = at(&backend.address)?;
            Some(((address.0, *backend.port.value()?), at))
        });
        self.refuse_duplicates(endpoints, |(address, port), line| {
            let message = format!("{} is the backend in line {line} already", endpoint(*address, *port));
            (message, "leave out one of the two; to give it more connections, raise its `weight`".to_owned())
        });
        for backend in backends {
            let (Some(vip), Some((address, at))) = (server.address.value(), at(&backend.address)) else {
                continue;
            };
            if vip.0.is_ipv4() != address.0.is_ipv4() {
                let (family, other) = if vip.0.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                self.mistakes.add(
                    &at,
                    format!("{} is {other}, but the VIP {} is {family}", address.0, vip.0),
                    format!("give the backend's {family} address, or move it to a virtual server with an {other} VIP"),
                );
            }
        }
        let is_backup = |backend: &raw::Backend| backend.backup.value() == Some(&true);
        if let Some(at) =
            backends.first().and_then(|first| first.backup.key_span()).filter(|_| backends.iter().all(is_backup))
        {
            self.mistakes.add(
                at,
                "every backend is a backup, and so none is",
                "leave out `backup` where connections are to go first",
            );
        }
        let checked: Option<Vec<_>> = backends.iter().map(backend).collect();
        checked.filter(|backends| !backends.is_empty())
    }

    /// `say` gets the thing and the line it stood in first.
    fn refuse_duplicates<K: Eq + Hash>(
        &mut self,
        things: impl Iterator<Item = (K, Span)>,
        say: impl Fn(&K, usize) -> (String, String),
    ) {
        let mut seen: HashMap<K, Span> = HashMap::new();
        for (thing, at) in things {
            if let Some(first) = seen.get(&thing) {
                let (message, help) = say(&thing, line_of(self.text, first));
                self.mistakes.add(&at, message, help);
            } else {
                seen.insert(thing, at);
            }
        }
    }
}

fn admin(raw: raw::Admin) -> Option<model::Admin> {
    Some(model::Admin {
        control_socket: raw.control_socket.value()?.0.clone(),
        metrics: raw.metrics.value()?.0,
        healthz: raw.healthz.value()?.0,
    })
}

fn backend(raw: &raw::Backend) -> Option<model::Backend> {
    Some(model::Backend {
        name: raw.name.value()?.0.clone(),
        address: raw.address.value()?.0,
        port: *raw.port.value()?,
        weight: *raw.weight.value()?,
        backup: *raw.backup.value()?,
    })
}

/// The value and where it was written.
fn at<T>(field: &Field<T>) -> Option<(&T, Span)> {
    field.value().zip(field.span())
}

/// `None` for a wrong one, `Some(None)` for one left out.
fn optional<T>(field: &Field<T>) -> Option<Option<&T>> {
    (!field.is_wrong()).then(|| field.value())
}

fn endpoint(address: IpAddr, port: u16) -> impl Display {
    SocketAddr::new(address, port)
}

fn written(time: Time) -> impl Display {
    humantime::format_duration(time.0)
}
