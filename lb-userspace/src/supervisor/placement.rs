//! Where VIPs and packets can go on this host.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use lb_common::{
    abi::{MAX_PORTS, Port},
    wire::Tags,
};

use crate::{
    config::model::{Config, VirtualServer, Vrrp},
    dataplane::Mode,
    host::Interfaces,
};

/// Shown as the interface of a virtual server on a loopback address.
pub(super) const LOOPBACK: &str = "lo";

/// The interface that each virtual server's VIP is put on.
pub(crate) fn carriers(config: &Config, host: &Interfaces) -> anyhow::Result<Vec<String>> {
    for name in &config.dataplane.interfaces {
        host.named(name)?;
    }
    config.vrrp.iter().try_for_each(|instance| refuse_own_peers(instance, host))?;
    config.vrrp.iter().try_for_each(|instance| refuse_deaf(instance, config, host))?;
    config.virtual_servers.iter().map(|server| carrier(server, config, host)).collect()
}

/// Whether the address is always here.
pub(super) fn stays(config: &Config, server: &VirtualServer) -> bool {
    !server.address.is_loopback() && !server.elsewhere && instance_of(config, server).is_none()
}

/// The interfaces with the program, and the VLANs on them.
pub(super) fn carried<'a>(config: &'a Config, host: &'a Interfaces) -> impl Iterator<Item = &'a str> {
    let below = config.dataplane.interfaces.iter().filter_map(|name| host.named(name).ok());
    below.flat_map(|interface| {
        let vlans = host.vlans_on(interface.index).map(|vlan| vlan.name.as_str());
        std::iter::once(interface.name.as_str()).chain(vlans)
    })
}

/// The interfaces that the data plane may send from, and the VLANs on them: as many as the table takes, those with addresses first. What
/// belongs to another one is sent by the kernel.
pub(super) fn ports(attached: &BTreeMap<String, Mode>, host: &Interfaces) -> BTreeMap<Port, Port> {
    let mut ports = BTreeMap::new();
    let plain = |interface: u32| Port { interface, tags: Tags(0) };
    // A driver cannot be sent to from another driver's receive path unless it has native XDP itself: the kernel sends there.
    let mixed = attached.values().any(|mode| *mode == Mode::Native);
    let reachable = attached.iter().filter(|(_, mode)| !mixed || **mode == Mode::Native);
    let mut vlans = Vec::new();
    for interface in reachable.filter_map(|(name, _)| host.named(name).ok()).take(MAX_PORTS) {
        ports.insert(plain(interface.index), plain(interface.index));
        vlans.extend(host.vlans_on(interface.index));
    }
    vlans.sort_by_key(|vlan| vlan.addresses.is_empty());
    for (interface, vlan) in
        vlans.iter().filter_map(|vlan| Some((vlan, vlan.vlan?))).take((MAX_PORTS - ports.len()) / 2)
    {
        let tagged = Port { interface: vlan.parent, tags: Tags::single(vlan.id) };
        ports.insert(tagged, plain(interface.index));
        ports.insert(plain(interface.index), tagged);
    }
    ports
}

fn carrier(server: &VirtualServer, config: &Config, host: &Interfaces) -> anyhow::Result<String> {
    if server.address.is_loopback() {
        return Ok(LOOPBACK.to_owned());
    }
    let named = match instance_of(config, server) {
        Some(instance) => Some(&instance.interface),
        None => server.interface.as_ref(),
    };
    let candidates = named.map_or(&config.dataplane.interfaces[..], std::slice::from_ref);
    if server.elsewhere {
        // It need not be of any subnet here.
        let name = candidates.first().map_or("", String::as_str);
        return Ok(host.named(name)?.name.clone());
    }
    let found = host.carrier(server.address, candidates);
    let found = found.with_context(|| format!("virtual server \"{}\"", server.name))?;
    if !carried(config, host).any(|name| name == found.name) {
        bail!(
            "virtual server \"{}\": interface {} does not get the XDP program, so nothing would carry its traffic. Add {} (or, if it is a VLAN, \
             the interface below it) to dataplane.interfaces.",
            server.name,
            found.name,
            found.name
        );
    }
    Ok(found.name.clone())
}

fn instance_of<'a>(config: &'a Config, server: &VirtualServer) -> Option<&'a Vrrp> {
    let has = |instance: &&Vrrp| instance.addresses.iter().any(|net| net.addr() == server.address);
    config.vrrp.iter().find(has)
}

/// Without the programs, the host would answer for its VIPs with the interface's own MAC, and not hear what comes to the virtual one.
fn refuse_deaf(instance: &Vrrp, config: &Config, host: &Interfaces) -> anyhow::Result<()> {
    let Vrrp { name, interface, virtual_mac, .. } = instance;
    if *virtual_mac && !carried(config, host).any(|carried| carried == interface) {
        bail!(
            "[[vrrp]] \"{name}\": `virtual_mac` needs the XDP program on {interface}. Add {interface} (or, if it is a VLAN, the interface below it) \
             to dataplane.interfaces, or leave `virtual_mac` out."
        );
    }
    Ok(())
}

/// A file that was copied from node to node names this one too; it would take its own advertisements for another's.
fn refuse_own_peers(instance: &Vrrp, host: &Interfaces) -> anyhow::Result<()> {
    host.named(&instance.interface).with_context(|| format!("[[vrrp]] \"{}\"", instance.name))?;
    let local = host.local_addresses();
    if let Some(own) = instance.peers.iter().find(|peer| local.contains(peer)) {
        bail!(
            "[[vrrp]] \"{}\": {own} in `peers` is this host's own address. Leave it out: `peers` names the other nodes only.",
            instance.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Interface, interface::Vlan};

    #[test]
    fn vlans_that_there_is_no_room_for_are_left_to_the_kernel() {
        let interface = |index: u32, vlan: Option<Vlan>| Interface {
            index,
            name: format!("i{index}"),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: Vec::new(),
            up: true,
            vlan,
            xdp: None,
        };
        let vlan = |id: u16| interface(1000 + u32::from(id), Some(Vlan { parent: 2, id }));
        let mut all: Vec<_> = (1..=MAX_PORTS as u16).map(vlan).collect();
        all.push(interface(2, None));
        // The last of them has an address, and so comes first.
        all[MAX_PORTS - 1].addresses.push("192.168.9.1/24".parse().expect("a network"));
        let last = all[MAX_PORTS - 1].clone();
        let host: Interfaces = all.into_iter().collect();
        let attached = BTreeMap::from([("i2".to_owned(), Mode::Native)]);
        let ports = ports(&attached, &host);
        let plain = |interface| Port { interface, tags: Tags(0) };
        assert_eq!(ports.len(), MAX_PORTS - 1, "pairs, and the interface itself");
        assert_eq!(ports[&plain(2)], plain(2));
        assert_eq!(ports[&plain(last.index)], Port { interface: 2, tags: Tags::single(MAX_PORTS as u16) });
        assert!(ports.contains_key(&plain(1001)) && !ports.contains_key(&plain(last.index - 1)));
    }
}
