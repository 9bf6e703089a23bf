//! The sections of VRRP: what must agree inside of an instance, and what must differ between them.

use std::{collections::HashMap, fmt::Display, net::IpAddr, path::Path, time::Duration};

use ipnet::IpNet;

use super::{Checker, at, optional, written};
use crate::config::{
    files::{Content, FileUse},
    keys::Section as _,
    leaf::Time,
    model::{self, Authentication, Version},
    raw,
    report::{Span, line_of},
};

/// What the packet's 12 bits hold, in steps of 10 ms.
const LONGEST_V3: Duration = Duration::from_millis(40_950);
/// More IPv6 addresses than this do not fit into one packet of 1500 bytes, and the count of either family has 8 bits.
const MOST: (usize, usize) = (255, 88);

impl Checker<'_> {
    /// `None` only after a mistake.
    pub(super) fn vrrp(&mut self, raw: &[raw::Vrrp], servers: &[raw::VirtualServer]) -> Option<Vec<model::Vrrp>> {
        self.refuse_clashes(raw);
        self.refuse_other_carriers(raw, servers);
        let instances: Vec<_> = raw.iter().map(|instance| self.instance(instance)).collect();
        instances.into_iter().collect()
    }

    fn instance(&mut self, raw: &raw::Vrrp) -> Option<model::Vrrp> {
        let addresses = self.addresses(raw);
        let family = addresses.as_ref().map(|addresses| Family::of(addresses[0].addr()));
        let interval = self.interval(raw);
        let peers = self.peers(raw, family);
        self.refuse_idle_keys(raw, family);
        let authentication = self.authentication(raw);
        let scripts = self.scripts(raw);
        if let Some((notify, at)) = at(&raw.notify) {
            self.program(&notify.0, at, "notify");
        }
        Some(model::Vrrp {
            name: raw.name.value()?.0.clone(),
            interface: raw.interface.value()?.0.clone(),
            vrid: *raw.vrid.value()?,
            version: *raw.version.value()?,
            priority: *raw.priority.value()?,
            interval: interval?,
            down_factor: *raw.down_factor.value()?,
            preempt: *raw.preempt.value()?,
            preempt_delay: raw.preempt_delay.value()?.0,
            addresses: addresses?,
            virtual_mac: *raw.virtual_mac.value()?,
            peers: peers?,
            min_ttl: *raw.min_ttl.value()?,
            source: optional(&raw.source)?.map(|source| source.0),
            authentication: authentication?,
            checksum: *raw.checksum.value()?,
            label: optional(&raw.label)?.map(|label| label.0.clone()),
            sync_group: optional(&raw.sync_group)?.map(|name| name.0.clone()),
            notify: optional(&raw.notify)?.map(|path| path.0.clone()),
            backends_weight: *raw.backends_weight.value()?,
            dataplane_weight: *raw.dataplane_weight.value()?,
            scripts: scripts?,
        })
    }

    fn addresses(&mut self, raw: &raw::Vrrp) -> Option<Vec<IpNet>> {
        let written = raw.addresses.value()?;
        let mut addresses: Vec<IpNet> = written.iter().map(|net| net.get_ref().0).collect();
        let first = Family::of(addresses[0].addr());
        if let Some(other) = written.iter().find(|net| Family::of(net.get_ref().0.addr()) != first) {
            let message = format!("{} is not {first} as {} is", other.get_ref().0.addr(), addresses[0].addr());
            let help = "a virtual router has one family: write a [[vrrp]] section for each, and the same `sync_group` in both to keep them together";
            self.mistakes.add(&other.span(), message, help);
            return None;
        }
        let most = if first == Family::V4 { MOST.0 } else { MOST.1 };
        if let Some(over) = written.get(most) {
            let message = format!("more than {most} addresses do not fit into an advertisement");
            self.mistakes.add(&over.span(), message, "move some to another [[vrrp]] section, with a `vrid` of its own");
        }
        addresses.sort_by_key(|net| !is_link_local(net.addr()));
        Some(addresses)
    }

    fn interval(&mut self, raw: &raw::Vrrp) -> Option<Duration> {
        let version = *raw.version.value()?;
        let Some((interval, span)) = optional(&raw.interval)?.copied().zip(raw.interval.span()) else {
            return Some(match version {
                Version::V2 => Duration::from_secs(1),
                Version::V3 => Duration::from_millis(100),
            });
        };
        let (message, help) = match version {
            Version::V2 if interval.0.as_nanos() % 1_000_000_000 != 0 => (
                format!("version 2 cannot say {}: it knows whole seconds only", written(interval)),
                "write `interval = \"1s\"`; or `version = 3` here and on all other nodes (keepalived: vrrp_version 3)",
            ),
            Version::V3 if interval.0 > LONGEST_V3 => (
                format!("version 3 cannot say {}", written(interval)),
                "the longest is 40950ms; `version = 2` goes up to 255s",
            ),
            Version::V3 if interval.0.as_nanos() % 10_000_000 != 0 => {
                (format!("version 3 cannot say {}: it knows steps of 10ms", written(interval)), "round it to 10ms")
            }
            _ => return Some(interval.0),
        };
        self.mistakes.add(&span, message, help);
        None
    }

    /// The peers; and the source, which must not be among them.
    fn peers(&mut self, raw: &raw::Vrrp, family: Option<Family>) -> Option<Vec<IpAddr>> {
        let peers = raw.peers.value();
        let items = peers.map(Vec::as_slice).unwrap_or_default();
        let items: Vec<(IpAddr, Span)> = items.iter().map(|peer| (peer.get_ref().0, peer.span())).collect();
        let source = at(&raw.source).map(|(source, at)| (source.0, at));
        for (address, at) in items.iter().cloned().chain(source.clone()) {
            if let Some(family) = family.filter(|family| *family != Family::of(address)) {
                let message = format!("{address} is not {family} as the VIPs are");
                self.mistakes.add(&at, message, format!("give the {family} address of that node"));
            }
        }
        let vips: Vec<IpAddr> = raw.addresses.value().into_iter().flatten().map(|net| net.get_ref().0.addr()).collect();
        for (address, at) in &items {
            if source.as_ref().is_some_and(|(source, _)| source == address) {
                let message = format!("{address} is this node's own `source`");
                self.mistakes.add(at, message, "`peers` names the other nodes only: leave this one out");
            }
        }
        let is_owner = raw.priority.value() == Some(&255);
        for (address, at) in items.iter().chain(source.iter().filter(|_| !is_owner)) {
            if vips.contains(address) {
                let message = format!("{address} is a VIP of this section: it moves, and so says nothing of who sent");
                self.mistakes.add(at, message, "give the address that the node itself always has");
            }
        }
        self.refuse_duplicates(items.into_iter(), |address, line| {
            (format!("{address} is given twice (first in line {line})"), "leave out one of the two".to_owned())
        });
        peers.map(|peers| peers.iter().map(|peer| peer.get_ref().0).collect())
    }

    /// Keys that mean nothing beside others: who wrote them expects something that would not come.
    fn refuse_idle_keys(&mut self, raw: &raw::Vrrp, family: Option<Family>) {
        let version = raw.version.value();
        if version == Some(&Version::V2) && family == Some(Family::V6) {
            let at = raw.version.span().unwrap_or(raw.header());
            self.mistakes.add(&at, "version 2 knows no IPv6", "leave out `version`, or set it to 3");
        }
        let plain = version == Some(&Version::V2) || family == Some(Family::V6);
        if let Some(at) = raw.checksum.key_span().filter(|_| plain) {
            let message = "`checksum` means nothing but to version 3 over IPv4";
            self.mistakes.add(at, message, "leave it out: there is one way to compute it here");
        }
        if raw.preempt.value() == Some(&false)
            && raw.preempt_delay.value().is_some_and(|delay| !delay.0.is_zero())
            && let Some(at) = raw.preempt_delay.key_span()
        {
            let message = "`preempt_delay` is never used with `preempt = false`";
            self.mistakes.add(at, message, "leave out one of the two");
        }
        self.refuse_useless_label(raw, family);
        self.refuse_weights_of_an_owner(raw);
    }

    fn refuse_useless_label(&mut self, raw: &raw::Vrrp, family: Option<Family>) {
        let Some((label, at)) = at(&raw.label) else {
            return;
        };
        if family == Some(Family::V6) {
            self.mistakes.add(&at, "IPv6 addresses have no labels", "leave `label` out");
        } else if let Some(interface) = raw.interface.value().filter(|interface| !label.0.starts_with(&interface.0)) {
            let message = format!("{:?} does not begin with `{}`, the name of the interface", label.0, interface.0);
            self.mistakes.add(&at, message, format!("write `label = \"{}:vip\"`", interface.0));
        }
    }

    fn refuse_weights_of_an_owner(&mut self, raw: &raw::Vrrp) {
        let Some((255, at)) = at(&raw.priority) else {
            return;
        };
        let weights = [("backends_weight", &raw.backends_weight), ("dataplane_weight", &raw.dataplane_weight)];
        let scripts = raw.script.0.iter().map(|script| ("weight", &script.weight));
        let idle =
            weights.into_iter().chain(scripts).find(|(_, weight)| weight.value().is_some_and(|&weight| weight != 0));
        if let Some((name, weight)) = idle {
            let weight = weight.value().copied().unwrap_or_default();
            self.mistakes.add(
                &at,
                format!("priority 255 is never changed by a weight, so `{name} = {weight}` could not move the VIPs"),
                "take 254; the node with the highest priority holds the VIPs all the same",
            );
        }
    }

    fn authentication(&mut self, raw: &raw::Vrrp) -> Option<Authentication> {
        let version = raw.version.value();
        if let Some(at) = raw.password.key_span().filter(|_| version == Some(&Version::V3)) {
            let message = "`password` means nothing to version 3, which has no passwords";
            let help = "set `version = 2` if the other nodes speak it (keepalived does where vrrp_version is not set), or leave `password` out; a section [vrrp.hmac] signs";
            self.mistakes.add(at, message, help);
        }
        let Some(hmac) = &raw.hmac.0 else {
            return Some(optional(&raw.password)?.cloned().map_or(Authentication::None, Authentication::Password));
        };
        if version == Some(&Version::V2) {
            let help = "set `version = 3` on all nodes, or use `password`";
            self.mistakes.add(&hmac.header(), "version 2 cannot be signed", help);
        }
        if let Some((path, at)) = at(&hmac.key_file) {
            self.files.push(FileUse { path: path.0.clone(), at, content: Content::SharedKey });
        }
        Some(Authentication::Hmac(model::Hmac {
            key_id: *hmac.key_id.value()?,
            key_file: hmac.key_file.value()?.0.clone(),
            mode: *hmac.mode.value()?,
        }))
    }

    fn scripts(&mut self, raw: &raw::Vrrp) -> Option<Vec<model::Script>> {
        let scripts = &raw.script.0;
        let names = scripts.iter().filter_map(|script| at(&script.name)).map(|(name, at)| (name.0.as_str(), at));
        self.refuse_duplicates(names, |name, line| {
            (format!("the name `{name}` is taken by the script in line {line}"), "give each its own name".to_owned())
        });
        let checked: Vec<_> = scripts.iter().map(|script| self.script(script)).collect();
        checked.into_iter().collect()
    }

    fn script(&mut self, raw: &raw::Script) -> Option<model::Script> {
        if let Some(program) = raw.command.value().and_then(|words| words.first()) {
            let path = Path::new(&program.get_ref().0);
            if path.is_absolute() {
                self.program(path, program.span(), "command");
            } else {
                let message = format!("{:?} is not an absolute path", program.get_ref().0);
                let help = "name the program by its absolute path: what it would be found by differs between a shell and a service";
                self.mistakes.add(&program.span(), message, help);
            }
        }
        let interval = raw.interval.value()?.0;
        let timeout = optional(&raw.timeout)?.map_or(interval, |timeout| timeout.0);
        if let Some(at) = raw.timeout.span().filter(|_| timeout > interval) {
            let message = format!("a run may take {}, longer than the `interval`", written(Time(timeout)));
            let help = format!("make it {} at most, or the `interval` longer", written(Time(interval)));
            self.mistakes.add(&at, message, help);
        }
        Some(model::Script {
            name: raw.name.value()?.0.clone(),
            command: raw.command.value()?.iter().map(|word| word.get_ref().0.clone()).collect(),
            interval,
            timeout,
            rise: *raw.rise.value()?,
            fall: *raw.fall.value()?,
            weight: *raw.weight.value()?,
        })
    }

    fn program(&mut self, path: &Path, at: Span, key: &'static str) {
        self.files.push(FileUse { path: path.to_owned(), at, content: Content::Program { key } });
    }

    /// What must differ between instances, and what must not stand alone.
    fn refuse_clashes(&mut self, raw: &[raw::Vrrp]) {
        let names = raw.iter().filter_map(|instance| at(&instance.name)).map(|(name, at)| (name.0.as_str(), at));
        self.refuse_duplicates(names, |name, line| {
            (format!("the name `{name}` is taken by the [[vrrp]] in line {line}"), "give each its own name".to_owned())
        });
        let routers = raw.iter().filter_map(|instance| {
            let family = Family::of(instance.addresses.value()?[0].get_ref().0.addr());
            let (vrid, at) = at(&instance.vrid)?;
            Some(((instance.interface.value()?.0.as_str(), *vrid, family), at))
        });
        self.refuse_duplicates(routers, |(interface, vrid, family), line| {
            let message = format!("VRID {vrid} is taken on `{interface}` for {family} by the [[vrrp]] in line {line}");
            (message, "give it a `vrid` of its own, or put the addresses of both into one section".to_owned())
        });
        let vips = raw.iter().flat_map(|instance| instance.addresses.value()).flatten();
        self.refuse_duplicates(vips.map(|net| (net.get_ref().0.addr(), net.span())), |address, line| {
            let message = format!("{address} is a VIP already (line {line})");
            (message, "leave out one of the two: one section decides where it is".to_owned())
        });
        let mut groups: HashMap<&str, Vec<Span>> = HashMap::new();
        for (name, at) in raw.iter().filter_map(|instance| at(&instance.sync_group)) {
            groups.entry(name.0.as_str()).or_default().push(at);
        }
        let known = raw.iter().all(|instance| !instance.sync_group.is_wrong());
        for (name, members) in groups {
            if let [alone] = &members[..]
                && known
            {
                let message = format!("the sync_group `{name}` has one member only");
                self.mistakes.add(alone, message, "write the same name into each section that is to move together");
            }
        }
    }

    /// A virtual server may name the interface of its VIP, but here it is the instance that puts it there.
    fn refuse_other_carriers(&mut self, raw: &[raw::Vrrp], servers: &[raw::VirtualServer]) {
        for server in servers {
            let (Some(vip), Some((carrier, span))) = (server.address.value(), at(&server.interface)) else {
                continue;
            };
            for instance in raw {
                let has = |net: &IpNet| net.addr() == vip.0;
                let (Some(addresses), Some((interface, instance_at))) =
                    (instance.addresses.value(), at(&instance.interface))
                else {
                    continue;
                };
                if addresses.iter().any(|net| has(&net.get_ref().0)) && interface != carrier {
                    let line = line_of(self.text, &instance_at);
                    let message =
                        format!("the [[vrrp]] section of {} puts it on `{}` (line {line})", vip.0, interface.0);
                    self.mistakes.add(&span, message, "leave out the `interface` here");
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
