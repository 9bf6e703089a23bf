//! The interfaces of this host, and the questions a configuration asks of them.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp},
    },
};

use super::NetlinkError;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// All zero where the link has no Ethernet address (loopback, tunnels).
    pub mac: [u8; 6],
    pub mtu: u32,
    /// In the kernel's order: the first of a family is what a bare route takes as its source.
    pub addresses: Vec<IpNet>,
    /// Set up by the administrator; says nothing of the carrier.
    pub up: bool,
    pub vlan: Option<Vlan>,
    /// Id of the XDP program that is attached to it, whosever it is.
    pub xdp: Option<u32>,
}

/// What makes an interface an 802.1Q sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface that carries the tagged frames.
    pub parent: u32,
    pub id: u16,
}

/// All interfaces of one network namespace at one moment, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(Vec<Interface>);

#[cfg(test)]
impl FromIterator<Interface> for Interfaces {
    fn from_iter<I: IntoIterator<Item = Interface>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

/// The configuration names what this host does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error(
        "interface \"{name}\" does not exist; this host has {present}. \
         Set dataplane.interfaces (or the virtual server's interface) to one of these."
    )]
    NoSuchInterface { name: String, present: String },
    #[error(
        "VIP {vip} is in none of the subnets of {subnets}. Choose a VIP inside one of these subnets, add the interface that is in \
         the VIP's subnet to dataplane.interfaces, or give that interface an address of the subnet."
    )]
    NoSubnet { vip: IpAddr, subnets: String },
    #[error(
        "VIP {vip} is in the subnets of {first} and of {second} alike. \
         Set interface = \"{first}\" or interface = \"{second}\" at its virtual server."
    )]
    Ambiguous { vip: IpAddr, first: String, second: String },
}

/// Asks the kernel for the interfaces and their addresses.
pub async fn interfaces(handle: &Handle) -> Result<Interfaces, NetlinkError> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| NetlinkError::new("listing the interfaces", e))?;
    let addresses: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| NetlinkError::new("listing the addresses", e))?;

    let mut found: Vec<Interface> = links.iter().map(Interface::from_link).collect();
    for message in &addresses {
        let interface = found.iter_mut().find(|i| i.index == message.header.index);
        if let (Some(interface), Some(address)) = (interface, address_of(message)) {
            interface.addresses.push(address);
        }
    }
    found.sort_by_key(|i| i.index);
    Ok(Interfaces(found))
}

impl Interface {
    fn from_link(message: &LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            mac: [0; 6],
            mtu: 0,
            addresses: Vec::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            vlan: None,
            xdp: None,
        };
        let (mut parent, mut vlan_id) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(bytes) => interface.mac = bytes.as_slice().try_into().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::Xdp(attributes) => interface.xdp = attributes.iter().find_map(program_of),
                LinkAttribute::LinkInfo(infos) => vlan_id = infos.iter().find_map(vlan_id_of),
                _ => {}
            }
        }
        interface.vlan = parent.zip(vlan_id).map(|(parent, id)| Vlan { parent, id });
        interface
    }

    /// The length of the longest prefix of this interface that holds `vip`. Host addresses are no subnets: the VIP itself,
    /// once it is on the interface, must not vouch for itself.
    fn subnet_of(&self, vip: IpAddr) -> Option<u8> {
        let subnets = self.addresses.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
        subnets.filter(|net| net.contains(&vip)).map(IpNet::prefix_len).max()
    }

    fn describe(&self) -> String {
        if self.addresses.is_empty() {
            return format!("{} (no address)", self.name);
        }
        let mut text = format!("{} (", self.name);
        for (i, address) in self.addresses.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{address}");
        }
        text + ")"
    }
}

impl Interfaces {
    pub fn iter(&self) -> impl Iterator<Item = &Interface> {
        self.0.iter()
    }

    /// Whether there is an interface with that number.
    pub fn has(&self, index: u32) -> bool {
        self.0.iter().any(|interface| interface.index == index)
    }

    pub fn named(&self, name: &str) -> Result<&Interface, LookupError> {
        self.0.iter().find(|i| i.name == name).ok_or_else(|| LookupError::NoSuchInterface {
            name: name.to_owned(),
            present: join(self.0.iter().map(|i| i.name.clone())),
        })
    }

    pub fn by_index(&self, index: u32) -> Option<&Interface> {
        self.0.iter().find(|i| i.index == index)
    }

    /// The interface among `names` whose subnet holds `vip`; where several do, the one with the longest prefix.
    pub fn carrier<'a>(&'a self, vip: IpAddr, names: &[impl AsRef<str>]) -> Result<&'a Interface, LookupError> {
        let candidates = names.iter().map(|name| self.named(name.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let mut holders: Vec<(u8, &Interface)> =
            candidates.iter().filter_map(|i| Some((i.subnet_of(vip)?, *i))).collect();
        // A stable sort: equal prefixes stay in the order of the configuration.
        holders.sort_by_key(|(prefix, _)| std::cmp::Reverse(*prefix));
        match holders.as_slice() {
            [] => Err(LookupError::NoSubnet { vip, subnets: join(candidates.iter().map(|i| i.describe())) }),
            [(longest, first), (second_longest, second), ..] if longest == second_longest => {
                Err(LookupError::Ambiguous { vip, first: first.name.clone(), second: second.name.clone() })
            }
            [(_, best), ..] => Ok(best),
        }
    }

    /// Whether a subnet of this host holds the address, so that no router is in between.
    pub fn on_link(&self, address: IpAddr) -> bool {
        self.0.iter().any(|interface| interface.subnet_of(address).is_some())
    }

    /// Every address of this host: a backend among them is this host itself.
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.0.iter().flat_map(|i| &i.addresses).map(IpNet::addr).collect()
    }

    /// Every MAC address of this host: what comes to one is for it, whichever interface it comes in by (bridges and bonds have their own).
    pub fn macs(&self) -> BTreeSet<[u8; 6]> {
        self.0.iter().map(|interface| interface.mac).collect()
    }

    /// The 802.1Q sub-interfaces whose frames arrive on interface `index`.
    pub fn vlans_on(&self, index: u32) -> impl Iterator<Item = &Interface> {
        self.0.iter().filter(move |i| i.vlan.is_some_and(|vlan| vlan.parent == index))
    }
}

/// The interface's own address and prefix length. On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL is ours;
/// IPv6 gives IFA_ADDRESS alone where there is no peer.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn program_of(attribute: &LinkXdp) -> Option<u32> {
    match attribute {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    }
}

fn vlan_id_of(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else {
        return None;
    };
    attributes.iter().find_map(|a| match a {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            up: true,
            vlan: None,
            xdp: None,
        }
    }

    fn host() -> Interfaces {
        Interfaces(vec![
            interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
            interface(2, "eth0", &["192.168.2.10/24", "192.168.2.100/32", "fd00:2::a/64"]),
            interface(3, "eth1", &["10.0.0.1/8", "192.168.2.11/24"]),
            interface(4, "eth2", &["10.9.0.1/16", "10.10.10.10/32"]),
            interface(5, "eth3", &[]),
        ])
    }

    #[test]
    fn a_missing_interface_names_those_that_exist() {
        assert_eq!(
            host().named("eth9").unwrap_err().to_string(),
            "interface \"eth9\" does not exist; this host has lo, eth0, eth1, eth2, eth3. \
             Set dataplane.interfaces (or the virtual server's interface) to one of these."
        );
        assert_eq!(host().named("eth1").unwrap().index, 3);
    }

    #[test]
    fn the_carrier_is_found_by_subnet() {
        let table: &[(&str, &[&str], &str)] = &[
            ("192.168.2.100", &["eth0"], "eth0"),
            ("fd00:2::fe", &["eth1", "eth0"], "eth0"),
            ("10.1.2.3", &["eth1", "eth2"], "eth1"),
            // The longest prefix, wherever it stands in the configuration.
            ("10.9.2.3", &["eth1", "eth2"], "eth2"),
            ("10.9.2.3", &["eth2", "eth1"], "eth2"),
        ];
        for (vip, names, expected) in table {
            let host = host();
            let found = host.carrier(vip.parse().unwrap(), names).unwrap();
            assert_eq!(found.name, *expected, "{vip} among {names:?}");
        }
    }

    #[test]
    fn a_vip_outside_every_subnet_says_which_there_are() {
        let vip = "10.9.9.9".parse().unwrap();
        assert_eq!(
            host().carrier(vip, &["eth0", "eth3"]).unwrap_err().to_string(),
            "VIP 10.9.9.9 is in none of the subnets of eth0 (192.168.2.10/24, 192.168.2.100/32, fd00:2::a/64), eth3 (no address). \
             Choose a VIP inside one of these subnets, add the interface that is in the VIP's subnet to dataplane.interfaces, \
             or give that interface an address of the subnet."
        );
    }

    #[test]
    fn a_vip_does_not_vouch_for_itself() {
        let vip = "10.10.10.10".parse().unwrap();
        let refused = host().carrier(vip, &["eth2"]).unwrap_err();
        assert!(matches!(refused, LookupError::NoSubnet { .. }), "{refused}");
    }

    #[test]
    fn two_interfaces_in_one_subnet_are_ambiguous() {
        let vip = "192.168.2.100".parse().unwrap();
        assert_eq!(
            host().carrier(vip, &["eth1", "eth0"]).unwrap_err(),
            LookupError::Ambiguous { vip, first: "eth1".into(), second: "eth0".into() }
        );
    }

    #[test]
    fn a_vlan_sub_interface_names_its_parent_and_tag() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)])),
            ]),
        ];
        let interface = Interface::from_link(&message);
        assert_eq!(interface.vlan, Some(Vlan { parent: 2, id: 100 }));
        let all = Interfaces(vec![interface.clone()]);
        assert_eq!(all.vlans_on(2).collect::<Vec<_>>(), [&interface]);
        assert_eq!(all.vlans_on(3).count(), 0);
    }

    #[test]
    fn a_veth_end_has_a_link_but_no_vlan() {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::Link(2), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)])];
        assert_eq!(Interface::from_link(&message).vlan, None);
    }

    #[test]
    fn local_addresses_are_those_of_every_interface() {
        let local = host().local_addresses();
        for address in ["127.0.0.1", "192.168.2.100", "fd00:2::a", "10.9.0.1"] {
            assert!(local.contains(&address.parse().unwrap()), "{address}");
        }
        assert!(!local.contains(&"192.168.2.12".parse().unwrap()));
    }
}
