//! What the kernel says of the interfaces that instances are on: index, MAC, carrier, addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
};

use crate::{
    host::{interface::address_of, vip},
    vrrp::packet::Family,
};

/// Marks the addresses of virtual routers (attribute IFA_PROTO), so that those left by a crash are known as such, and are told from
/// the VIPs that a node holds always ([`vip::ADDRESS_PROTOCOL`]).
pub(super) const MARK: u8 = vip::ROUTER_PROTOCOL;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
    /// Switched on, and with a carrier.
    pub(super) up: bool,
    /// In the kernel's order.
    pub(super) addresses: Vec<Address>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) net: IpNet,
    /// Put there for a virtual router, by this process or a former one.
    pub(super) marked: bool,
    /// Fit to be the source of adverts: duplicate detection is over, and went well.
    usable: bool,
}

/// The interfaces of the configuration, as far as they exist.
#[derive(Debug, Default)]
pub(super) struct Links {
    wanted: BTreeSet<String>,
    found: BTreeMap<String, Link>,
}

impl Links {
    pub(super) fn new(wanted: impl IntoIterator<Item = String>) -> Self {
        Self { wanted: wanted.into_iter().collect(), found: BTreeMap::new() }
    }

    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.found.get(name)
    }

    /// Before a dump.
    pub(super) fn clear(&mut self) {
        self.found.clear();
    }

    /// Takes in what a message says. True if an interface has got its name only now, so that its addresses have to be asked for.
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            // A bridge tells of its ports by messages of its own family; those leaving it do not end.
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.link(link)
            }
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.found.retain(|_, known| known.index != link.header.index);
                false
            }
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            _ => false,
        }
    }

    fn link(&mut self, message: &LinkMessage) -> bool {
        let index = message.header.index;
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        let Some(name) = name else { return false };
        self.found.retain(|known, link| link.index != index || known == name);
        if !self.wanted.contains(name) {
            return false;
        }
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
        let (mac, up) = (mac.unwrap_or_default(), message.header.flags.contains(LinkFlags::Up | LinkFlags::Running));
        match self.found.get_mut(name).filter(|link| link.index == index) {
            Some(link) => {
                (link.mac, link.up) = (mac, up);
                false
            }
            None => {
                self.found.insert(name.clone(), Link { index, mac, up, addresses: Vec::new() });
                true
            }
        }
    }

    fn address(&mut self, message: &AddressMessage, there: bool) -> bool {
        let link = self.found.values_mut().find(|link| link.index == message.header.index);
        let (Some(link), Some(net)) = (link, address_of(message)) else { return false };
        let flags = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
        let address = Address {
            net,
            marked: vip::is_marked(message, MARK),
            usable: !flags.unwrap_or(AddressFlags::empty()).intersects(unusable),
        };
        match (link.addresses.iter().position(|known| known.net == net), there) {
            (Some(at), true) => link.addresses[at] = address,
            (None, true) => link.addresses.push(address),
            (Some(at), false) => drop(link.addresses.remove(at)),
            (None, false) => {}
        }
        false
    }
}

impl Link {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|known| known.net.addr() == address)
    }

    /// The address that adverts come from: `configured` if it is there; otherwise the first of the family that is none of `vips`, for IPv6
    /// of the scope of the receivers: link-local for the group (RFC 9568, 5.1.2.2) and for link-local peers.
    pub(super) fn source(
        &self,
        family: Family,
        configured: Option<IpAddr>,
        peers: &[IpAddr],
        vips: &[IpNet],
    ) -> Option<IpAddr> {
        let far = peers.iter().any(|peer| !is_link_local(*peer));
        let is_vip = |address: &IpAddr| vips.iter().any(|vip| vip.addr() == *address);
        let mut candidates = self.addresses.iter().filter(|a| a.usable && !a.marked).map(|a| a.net.addr());
        match configured {
            Some(wanted) => candidates.find(|address| *address == wanted),
            None => candidates.find(|address| {
                Family::of(*address) == family
                    && !is_vip(address)
                    && (family == Family::V4 || is_link_local(*address) != far)
            }),
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkHeader;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header = LinkHeader { index, flags, ..LinkHeader::default() };
        message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(MAC.to_vec())];
        message
    }

    fn carrier(index: u32, name: &str) -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewLink(link(index, name, LinkFlags::Up | LinkFlags::Running))
    }

    fn address(index: u32, net: &str) -> AddressMessage {
        vip::address_message(index, net.parse().unwrap(), None, 0)
    }

    fn links() -> Links {
        let mut links = Links::new(["eth0".to_owned()]);
        assert!(!links.apply(&carrier(1, "lo")), "nobody asked for lo");
        assert!(links.apply(&carrier(2, "eth0")), "its addresses are not known");
        links
    }

    #[test]
    fn carrier_and_addresses_come_and_go() {
        let mut links = links();
        links.apply(&RouteNetlinkMessage::NewAddress(address(2, "192.168.2.10/24")));
        links.apply(&RouteNetlinkMessage::NewAddress(address(3, "192.168.2.11/24")));
        let ip = "192.168.2.10".parse().unwrap();
        assert!(links.named("eth0").is_some_and(|link| link.up && link.mac == MAC && link.has(ip)));
        assert!(!links.named("eth0").unwrap().has("192.168.2.11".parse().unwrap()));

        links.apply(&RouteNetlinkMessage::NewLink(link(2, "eth0", LinkFlags::Up)));
        assert!(links.named("eth0").is_some_and(|link| !link.up && link.has(ip)), "no carrier, same address");
        links.apply(&RouteNetlinkMessage::DelAddress(address(2, "192.168.2.10/24")));
        assert!(!links.named("eth0").unwrap().has(ip));
        links.apply(&RouteNetlinkMessage::DelLink(link(2, "eth0", LinkFlags::empty())));
        assert_eq!(links.named("eth0"), None);
    }

    #[test]
    fn an_interface_that_returns_is_another_one() {
        let mut links = links();
        links.apply(&RouteNetlinkMessage::NewAddress(address(2, "192.168.2.10/24")));
        // Renamed away, and one made under the old name.
        links.apply(&carrier(2, "old0"));
        assert_eq!(links.named("eth0"), None);
        assert!(links.apply(&carrier(7, "eth0")));
        let link = links.named("eth0").unwrap();
        assert_eq!((link.index, link.addresses.as_slice()), (7, [].as_slice()));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_still_there() {
        let mut links = links();
        let mut left = link(2, "eth0", LinkFlags::empty());
        left.header.interface_family = AddressFamily::Bridge;
        links.apply(&RouteNetlinkMessage::DelLink(left.clone()));
        links.apply(&RouteNetlinkMessage::NewLink(left));
        assert!(links.named("eth0").is_some_and(|link| link.up));
    }

    #[test]
    fn the_source_is_no_vip_and_of_the_scope_of_the_receivers() {
        let mut links = links();
        let mut tentative = address(2, "fe80::9/64");
        for attribute in &mut tentative.attributes {
            if let AddressAttribute::Flags(flags) = attribute {
                flags.insert(AddressFlags::Tentative);
            }
        }
        links.apply(&RouteNetlinkMessage::NewAddress(tentative));
        for net in ["192.168.2.100/32", "192.168.2.10/24", "192.168.2.11/24", "fd00:2::a/64", "fe80::1/64"] {
            links.apply(&RouteNetlinkMessage::NewAddress(address(2, net)));
        }
        let vips: Vec<IpNet> = ["192.168.2.100/32", "fd00:2::100/128"].iter().map(|vip| vip.parse().unwrap()).collect();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let source = |family, configured: Option<&str>, peers: &[IpAddr]| {
            links.named("eth0").unwrap().source(family, configured.map(ip), peers, &vips)
        };
        assert_eq!(source(Family::V4, None, &[]), Some(ip("192.168.2.10")));
        assert_eq!(source(Family::V4, None, &[ip("192.168.2.12")]), Some(ip("192.168.2.10")));
        assert_eq!(source(Family::V4, Some("192.168.2.11"), &[]), Some(ip("192.168.2.11")));
        assert_eq!(source(Family::V4, Some("192.168.2.12"), &[]), None, "not on the interface");
        assert_eq!(source(Family::V6, None, &[]), Some(ip("fe80::1")));
        assert_eq!(source(Family::V6, None, &[ip("fd00:2::b")]), Some(ip("fd00:2::a")));
        assert_eq!(source(Family::V6, None, &[ip("fe80::2")]), Some(ip("fe80::1")));
    }
}
