//! Tells the link who holds a VIP: gratuitous ARP (RFC 5227, 2.3) and unsolicited neighbour advertisements (RFC 4861, 7.2.6).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use log::{debug, warn};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Interface;

/// When the frames of a burst leave, counted from its start: at once for the switch's table, again for hosts that missed it, and late
/// for ports that a spanning tree opens only after the link came up.
pub const BURST: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const NEXT_HEADER_ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464, 7: 33:33 and the last four bytes of the group.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Announces one VIP on one Ethernet interface. It knows the interface by index and keeps its MAC: make a new one when either changes.
#[derive(Debug)]
pub struct Announcer {
    socket: Socket,
    frame: Vec<u8>,
    /// For the log.
    claim: String,
}

impl Announcer {
    /// `None` for an interface without Ethernet address: nobody there resolves addresses.
    pub fn new(interface: &Interface, vip: IpAddr) -> io::Result<Option<Self>> {
        if interface.mac == [0; 6] {
            return Ok(None);
        }
        // Protocol 0 receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.bind(&link_address(interface.index, 0)?)?;
        Ok(Some(Self { socket, frame: frame(interface.mac, vip), claim: format!("{vip} on {}", interface.name) }))
    }

    /// Sends one frame.
    pub fn send(&self) -> io::Result<()> {
        self.socket.send(&self.frame).map(drop)
    }

    /// Sends at the times of [`BURST`]; a frame that cannot leave (link down) is logged, and the next ones are tried.
    /// Cancel-safe: a dropped burst has sent a prefix of its frames.
    pub async fn burst(&self) {
        let start = tokio::time::Instant::now();
        for after in BURST {
            tokio::time::sleep_until(start + after).await;
            match self.send() {
                Ok(()) => debug!("announced {}", self.claim),
                Err(e) => warn!("announcing {}: {e}", self.claim),
            }
        }
    }
}

/// The whole Ethernet frame that says `mac` has `vip`.
pub fn frame(mac: [u8; 6], vip: IpAddr) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => arp_request(BROADCAST, mac, vip, BROADCAST, vip),
        IpAddr::V6(vip) => unsolicited_advertisement(mac, vip, (ALL_NODES, ALL_NODES_MAC)),
    }
}

/// The same for one neighbour alone; `None` if it is of the other family.
pub(crate) fn frame_for(mac: [u8; 6], vip: IpAddr, neighbour: (IpAddr, [u8; 6])) -> Option<Vec<u8>> {
    match (vip, neighbour) {
        // Still gratuitous, which caches believe at once (`arp_is_garp` in net/ipv4/arp.c).
        (IpAddr::V4(vip), (IpAddr::V4(_), to)) => Some(arp_request(to, mac, vip, BROADCAST, vip)),
        (IpAddr::V6(vip), (IpAddr::V6(address), to)) => Some(unsolicited_advertisement(mac, vip, (address, to))),
        _ => None,
    }
}

/// The frame that asks whether anybody else has `vip` without saying that `mac` has it (RFC 5227, 2.1.1; RFC 4862, 5.4.2).
pub(crate) fn probe(mac: [u8; 6], vip: IpAddr) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => arp_request(BROADCAST, mac, Ipv4Addr::UNSPECIFIED, [0; 6], vip),
        IpAddr::V6(vip) => {
            let [.., a, b, c] = vip.octets();
            let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
            let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &vip.octets()].concat();
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, (group, [0x33, 0x33, 0xff, a, b, c]), solicitation)
        }
    }
}

/// Requests update the caches of hosts that ignore replies they did not ask for.
fn arp_request(to: [u8; 6], mac: [u8; 6], sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, 6-byte and 4-byte addresses, request.
    const HEADER: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];
    [&to[..], &mac, &ETHERTYPE_ARP, &HEADER, &mac, &sender.octets(), &target_mac, &target.octets()].concat()
}

fn unsolicited_advertisement(mac: [u8; 6], vip: Ipv6Addr, to: (Ipv6Addr, [u8; 6])) -> Vec<u8> {
    // Type 136. Override set, so that caches take the new MAC; Solicited clear, as nobody asked; Router clear, since nobody
    // routes through a VIP. Then the target link-layer address option, one unit of 8 bytes.
    icmpv6(mac, vip, to, [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &vip.octets(), &[2, 1], &mac].concat())
}

fn icmpv6(mac: [u8; 6], source: Ipv6Addr, (to, to_mac): (Ipv6Addr, [u8; 6]), mut icmp: Vec<u8>) -> Vec<u8> {
    let checksum = icmpv6_checksum(source, to, &icmp);
    icmp[2..4].copy_from_slice(&checksum);
    let length = u16::try_from(icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    // Hop limit 255 proves that no router forwarded it (RFC 4861, 7.1.2).
    let ip = [&[0x60, 0, 0, 0][..], &length, &[NEXT_HEADER_ICMPV6, 255], &source.octets(), &to.octets()].concat();
    [&to_mac[..], &mac, &ETHERTYPE_IPV6, &ip, &icmp].concat()
}

/// RFC 4443, 2.3: over the pseudo-header and the message, whose length is even here.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> [u8; 2] {
    let words = |bytes: &[u8]| bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut sum = words(&source.octets())
        + words(&destination.octets())
        + length
        + u32::from(NEXT_HEADER_ICMPV6)
        + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

/// A packet socket's address: one interface, and the EtherType that it receives, zero for none.
pub(crate) fn link_address(index: u32, ethertype: u16) -> io::Result<SockAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: sockaddr_storage is larger than sockaddr_ll and as strictly aligned, and the length given is that of what was written.
    let filled = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
            Ok(())
        })
    };
    filled.map(|((), address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01];

    #[test]
    fn gratuitous_arp_bytes() {
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  0x08, 0x06,
            0x00, 0x01,  0x08, 0x00,  0x06, 0x04,  0x00, 0x01,
            0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  192, 168, 2, 100,
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  192, 168, 2, 100,
        ];
        assert_eq!(frame(MAC, "192.168.2.100".parse().unwrap()), expected);
    }

    #[test]
    fn unsolicited_advertisement_bytes() {
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0x00, 0x00, 0x00, 0x01,  0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  0x86, 0xdd,
            0x60, 0x00, 0x00, 0x00,  0x00, 0x20,  58, 255,
            0xfd, 0x00, 0x00, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
            136, 0,  0x9c, 0xee,  0x20, 0, 0, 0,
            0xfd, 0x00, 0x00, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00,
            2, 1,  0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,
        ];
        assert_eq!(frame(MAC, "fd00:2::100".parse().unwrap()), expected);
    }

    #[test]
    fn one_neighbour_is_told_in_a_frame_of_its_own() {
        const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 9];
        let vip: IpAddr = "192.168.2.100".parse().unwrap();
        let told = frame_for(MAC, vip, ("192.168.2.9".parse().unwrap(), NEIGHBOUR)).unwrap();
        assert_eq!((&told[..6], &told[6..]), (&NEIGHBOUR[..], &frame(MAC, vip)[6..]));

        let (vip, neighbour) = ("fd00:2::100".parse().unwrap(), "fd00:2::9".parse().unwrap());
        let told = frame_for(MAC, vip, (neighbour, NEIGHBOUR)).unwrap();
        assert_eq!(told[..6], NEIGHBOUR);
        assert_eq!(told[38..54], "fd00:2::9".parse::<Ipv6Addr>().unwrap().octets());
        // The checksum in the frame makes the sum of everything zero.
        let (IpAddr::V6(vip), IpAddr::V6(neighbour)) = (vip, neighbour) else { unreachable!() };
        assert_eq!(icmpv6_checksum(vip, neighbour, &told[54..]), [0, 0]);
        assert_eq!(frame_for(MAC, vip.into(), ("192.168.2.9".parse().unwrap(), NEIGHBOUR)), None);
    }

    #[test]
    fn probe_bytes() {
        #[rustfmt::skip]
        let arp = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  0x08, 0x06,
            0x00, 0x01,  0x08, 0x00,  0x06, 0x04,  0x00, 0x01,
            0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  0, 0, 0, 0,
            0, 0, 0, 0, 0, 0,  192, 168, 2, 100,
        ];
        assert_eq!(probe(MAC, "192.168.2.100".parse().unwrap()), arp);
        #[rustfmt::skip]
        let solicitation = [
            0x33, 0x33, 0xff, 0x00, 0x01, 0x00,  0x02, 0x00, 0x00, 0xaa, 0xbb, 0x01,  0x86, 0xdd,
            0x60, 0x00, 0x00, 0x00,  0x00, 0x18,  58, 255,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x00, 0x01, 0x00,
            135, 0,  0x7b, 0xa5,  0, 0, 0, 0,
            0xfd, 0x00, 0x00, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00,
        ];
        assert_eq!(probe(MAC, "fd00:2::100".parse().unwrap()), solicitation);
    }
}
