//! Who has an address: ARP (RFC 826) and neighbour discovery (RFC 4861), as frames.

use std::net::{IpAddr, Ipv6Addr};

use super::stage::mac;

/// Asks for the MAC address of `target`.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: IpAddr,
    pub target: IpAddr,
    /// VLANs, outer first.
    pub tags: Vec<u16>,
    /// To the one who had it last, not to everyone.
    pub directed: bool,
}

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

impl Question {
    /// # Panics
    /// When the two addresses are not of one family.
    pub fn bytes(&self) -> Vec<u8> {
        match (self.from, self.target) {
            (IpAddr::V4(from), IpAddr::V4(target)) => {
                let to = if self.directed { mac(1) } else { [0xff; 6] };
                [ethernet(to, &self.tags, ARP), arp(1, from.octets(), target.octets())].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(target)) => {
                let group = group(target);
                let [.., a, b, c, d] = group.octets();
                let (to, ip) = if self.directed { (mac(1), target) } else { ([0x33, 0x33, a, b, c, d], group) };
                [ethernet(to, &self.tags, IPV6), ipv6(from, ip), message(135, target)].concat()
            }
            _ => panic!("{} and {} are not of one family", self.from, self.target),
        }
    }
}

/// `from` tells `to` its MAC address.
///
/// # Panics
/// When the two are not of one family.
pub fn answer(from: IpAddr, to: IpAddr) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [ethernet(mac(1), &[], ARP), arp(2, from.octets(), to.octets())].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [ethernet(mac(1), &[], IPV6), ipv6(from, to), message(136, from)].concat()
        }
        _ => panic!("{from} and {to} are not of one family"),
    }
}

fn ethernet(to: [u8; 6], tags: &[u16], ether_type: u16) -> Vec<u8> {
    let mut header = [to, mac(50)].concat();
    for tag in tags {
        header.extend([0x81, 0x00]);
        header.extend(tag.to_be_bytes());
    }
    header.extend(ether_type.to_be_bytes());
    header
}

fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation], &mac(50)[..], &sender, &[0; 6], &target].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    // Version 6, 32 bytes of ICMPv6, and the hop limit that says it is from this link.
    [&[0x60, 0, 0, 0, 0, 32, 58, 255], &from.octets()[..], &to.octets()].concat()
}

/// A solicitation or an advertisement with the sender's MAC address; nobody here reads its checksum.
fn message(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    // Source link-layer address in the one, target link-layer address in the other.
    let option = if kind == 136 { 2 } else { 1 };
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..], &[option, 1], &mac(50)].concat()
}

/// Where solicitations for an address go (RFC 4291 §2.7.1).
fn group(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}
