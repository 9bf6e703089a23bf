//! Classic BPF programs, so that packets of no interest wake nobody.

use std::net::{Ipv4Addr, Ipv6Addr};

use socket2::SockFilter;

use crate::vrrp::{Vrid, packet::Family};

const ACCEPT: u32 = u32::MAX;

// The opcodes that are needed, from linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_BYTE_AT_X: u16 = 0x50;
/// X = 4 * (byte & 0xf): the length of an IPv4 header.
const HEADER_LENGTH_TO_X: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Takes adverts for these virtual routers. A raw IPv4 socket sees the IP header, an IPv6 one does not.
pub(super) fn adverts(family: Family, vrids: impl IntoIterator<Item = Vrid>) -> Vec<SockFilter> {
    let mut program = match family {
        Family::V4 => vec![step(HEADER_LENGTH_TO_X, 0), step(LOAD_BYTE_AT_X, 1)],
        Family::V6 => vec![step(LOAD_BYTE, 1)],
    };
    for vrid in vrids {
        program.extend([unless(u32::from(vrid.0), 1), step(RETURN, ACCEPT)]);
    }
    program.push(step(RETURN, 0));
    program
}

/// Takes ARP frames whose sender says that one of `vips` is at another MAC than `ours`.
pub(super) fn arp_claims(
    ours: impl IntoIterator<Item = [u8; 6]>,
    vips: impl IntoIterator<Item = Ipv4Addr>,
) -> Vec<SockFilter> {
    const SENDER_MAC: u32 = 22;
    const SENDER_IP: u32 = 28;
    let mut program = Vec::new();
    for [a, b, c, d, e, f] in ours {
        program.extend([
            step(LOAD_WORD, SENDER_MAC),
            unless(u32::from_be_bytes([a, b, c, d]), 3),
            step(LOAD_HALF, SENDER_MAC + 4),
            unless(u32::from_be_bytes([0, 0, e, f]), 1),
            step(RETURN, 0),
        ]);
    }
    program.push(step(LOAD_WORD, SENDER_IP));
    for vip in vips {
        program.extend([unless(vip.to_bits(), 1), step(RETURN, ACCEPT)]);
    }
    program.push(step(RETURN, 0));
    program
}

/// Takes neighbour advertisements (ICMPv6 type 136) whose target is one of `vips`.
pub(super) fn advertised_targets(vips: impl IntoIterator<Item = Ipv6Addr>) -> Vec<SockFilter> {
    const TYPE: u32 = 136;
    const TARGET: u32 = 8;
    let mut program = vec![step(LOAD_BYTE, 0), SockFilter::new(JUMP_IF_EQUAL, 1, 0, TYPE), step(RETURN, 0)];
    for vip in vips {
        // To the next address, over what is left of this one and its return.
        for ((at, word), rest) in (TARGET..).step_by(4).zip(vip.octets().chunks_exact(4)).zip([7, 5, 3, 1]) {
            let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
            program.extend([step(LOAD_WORD, at), unless(word, rest)]);
        }
        program.push(step(RETURN, ACCEPT));
    }
    program.push(step(RETURN, 0));
    program
}

const fn step(code: u16, operand: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, operand)
}

/// Skips so many steps unless the accumulator has this value.
const fn unless(value: u32, skip: u8) -> SockFilter {
    SockFilter::new(JUMP_IF_EQUAL, 0, skip, value)
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::host::announce;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];

    /// Whether the kernel lets `packet` through: a datagram socket shows a filter what was sent.
    fn passes(program: &[SockFilter], packet: &[u8]) -> bool {
        let (near, far) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        far.attach_filter(program).unwrap();
        far.set_nonblocking(true).unwrap();
        near.send(packet).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
        far.recv(&mut buffer).is_ok()
    }

    #[test]
    fn adverts_are_picked_by_their_virtual_router() {
        let vrids = [Vrid(51), Vrid(7)];
        let plain = |vrid: u8| [&[0x45; 20][..], &[0x31, vrid, 100, 1]].concat();
        let with_options = |vrid: u8| [&[0x46; 24][..], &[0x31, vrid, 100, 1]].concat();
        for (vrid, wanted) in [(51, true), (7, true), (52, false), (0x45, false), (0x46, false)] {
            assert_eq!(passes(&adverts(Family::V4, vrids), &plain(vrid)), wanted, "{vrid}");
            assert_eq!(passes(&adverts(Family::V4, vrids), &with_options(vrid)), wanted, "{vrid} after IP options");
            assert_eq!(passes(&adverts(Family::V6, vrids), &[0x31, vrid, 100, 1]), wanted, "{vrid} over IPv6");
        }
        assert!(!passes(&adverts(Family::V4, vrids), &[0x45; 20]), "too short for a virtual router");
    }

    #[test]
    fn only_foreign_claims_pass() {
        let vips = ["192.168.2.100", "192.168.2.101"].map(|vip| vip.parse().unwrap());
        let table = [
            (OURS, "192.168.2.100", false),
            (VIRTUAL, "192.168.2.100", false),
            ([0, 0, 0x5e, 0, 1, 52], "192.168.2.100", true),
            ([2, 0, 0, 0, 0, 2], "192.168.2.100", true),
            ([2, 0, 0, 1, 0, 1], "192.168.2.101", true),
            ([2, 0, 0, 0, 0, 2], "192.168.2.102", false),
        ];
        for (mac, vip, wanted) in table {
            let frame = announce::frame(mac, vip.parse().unwrap());
            assert_eq!(passes(&arp_claims([OURS, VIRTUAL], vips), &frame), wanted, "{vip} at {mac:02x?}");
        }
    }

    #[test]
    fn advertisements_are_picked_by_their_target() {
        let vips = ["fd00:2::100", "fd00:2::101"].map(|vip| vip.parse().unwrap());
        const HEADERS: usize = 14 + 40;
        for (vip, wanted) in
            [("fd00:2::100", true), ("fd00:2::101", true), ("fd00:2::102", false), ("fd01:2::100", false)]
        {
            let mut frame = announce::frame(OURS, vip.parse().unwrap());
            assert_eq!(passes(&advertised_targets(vips), &frame[HEADERS..]), wanted, "{vip}");
            // A solicitation for it is no claim.
            frame[HEADERS] = 135;
            assert!(!passes(&advertised_targets(vips), &frame[HEADERS..]), "solicited: {vip}");
        }
    }
}
