//! Adverts as whole frames, for a source that no socket of the kernel's has: the virtual MAC.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::checksum::{fold, sum};

use crate::vrrp::packet::{GROUP_V4, GROUP_V6, PROTOCOL, SERVICE_CLASS, TTL};

/// One that goes from `mac` and `source` to the group.
pub(super) fn to_group(mac: [u8; 6], source: IpAddr, payload: &[u8]) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => over_ipv4(mac, source, payload),
        IpAddr::V6(source) => over_ipv6(mac, source, payload),
    }
}

fn over_ipv4(mac: [u8; 6], source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    const HEADER: u16 = 20;
    let [.., b, c, d] = GROUP_V4.octets();
    // RFC 1112, 6.4.
    let ethernet = [&[0x01, 0x00, 0x5e, b & 0x7f, c, d], &mac[..], &[0x08, 0x00]].concat();
    let length = (HEADER + length(payload)).to_be_bytes();
    // No identification is needed by what may not be fragmented (RFC 6864, 4).
    let start = [0x45, SERVICE_CLASS, length[0], length[1], 0, 0, 0x40, 0, TTL, PROTOCOL, 0, 0];
    let mut ip = [&start[..], &source.octets(), &GROUP_V4.octets()].concat();
    let checksum = (!fold(sum(&ip))).to_ne_bytes();
    ip[10..12].copy_from_slice(&checksum);
    [&ethernet[..], &ip, payload].concat()
}

fn over_ipv6(mac: [u8; 6], source: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let [.., a, b, c, d] = GROUP_V6.octets();
    // RFC 2464, 7.
    let ethernet = [&[0x33, 0x33, a, b, c, d], &mac[..], &[0x86, 0xdd]].concat();
    let length = length(payload).to_be_bytes();
    let start = [0x60 | SERVICE_CLASS >> 4, SERVICE_CLASS << 4, 0, 0, length[0], length[1], PROTOCOL, TTL];
    [&ethernet[..], &start, &source.octets(), &GROUP_V6.octets(), payload].concat()
}

/// An advert has at most 255 addresses: it is never so long that the rest would be needed.
fn length(payload: &[u8]) -> u16 {
    u16::try_from(payload.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVERT: [u8; 12] = [0x31, 0x33, 0x64, 0x01, 0x00, 0x32, 0x04, 0x4b, 192, 168, 2, 100];

    #[test]
    fn ipv4_bytes() {
        #[rustfmt::skip]
        let expected = [
            0x01, 0x00, 0x5e, 0x00, 0x00, 0x12,  0x00, 0x00, 0x5e, 0x00, 0x01, 0x33,  0x08, 0x00,
            0x45, 0xc0, 0x00, 0x20,  0x00, 0x00, 0x40, 0x00,  255, 112, 0xd7, 0xe8,
            192, 168, 2, 10,  224, 0, 0, 18,
            0x31, 0x33, 0x64, 0x01, 0x00, 0x32, 0x04, 0x4b, 192, 168, 2, 100,
        ];
        assert_eq!(to_group([0, 0, 0x5e, 0, 1, 51], "192.168.2.10".parse().unwrap(), &ADVERT), expected);
    }

    #[test]
    fn ipv6_bytes() {
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0x00, 0x00, 0x00, 0x12,  0x00, 0x00, 0x5e, 0x00, 0x02, 0x33,  0x86, 0xdd,
            0x6c, 0x00, 0x00, 0x00,  0x00, 0x02,  112, 255,
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12,
            0x31, 0x33,
        ];
        assert_eq!(to_group([0, 0, 0x5e, 0, 2, 51], "fe80::a".parse().unwrap(), &ADVERT[..2]), expected);
    }
}
