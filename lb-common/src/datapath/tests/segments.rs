//! TCP segments and ICMP errors of both families, written byte by byte with checksums made from nothing.

use std::vec::Vec;

use crate::{
    address::{Address, MAX_EXTENSIONS, V4, V6},
    checksum::{fold, sum},
    wire::{self, Flags},
};

/// A family, and the hosts of the tests in it.
pub(super) trait Net: Address + 'static {
    const ETHER_TYPE: [u8; 2];
    /// A header between Ethernet and TCP that is looked through: IPv4 options, or an IPv6 extension.
    const EXTRA: &'static [u8];
    /// A fragment's header: bytes to be written over or after a plain one.
    fn fragment(segment: &Segment<Self>) -> Vec<u8>;
    /// Type and code of the error that a packet was too big, and the type of an echo request.
    const TOO_BIG: (u8, u8);
    const ECHO: u8;
    fn host(last: u8) -> Self;
    /// Sources that are not one host.
    const NOBODY: &'static [Self];
    /// Makes the IP header in front of an ICMP message that of one of this node's own.
    fn as_our_own(header: &mut [u8]);
    /// The IP header in front of an ICMP message.
    fn icmp_header(segment: &Segment<Self>, payload: usize) -> Vec<u8>;
    fn header(segment: &Segment<Self>, payload: usize) -> Vec<u8>;
    /// Who has a host's address? Asked by another, by ARP or neighbour discovery, to the last byte that says so.
    fn solicitation(sender: u8, target: u8, tags: &[u16]) -> Vec<u8>;
}

impl Net for V4 {
    const ETHER_TYPE: [u8; 2] = wire::IPV4;
    const EXTRA: &'static [u8] = &[0x94, 0x04, 0, 0, 1, 1, 1, 0];
    const TOO_BIG: (u8, u8) = (3, 4);
    const ECHO: u8 = 8;

    const NOBODY: &'static [Self] = &[Self([0; 4]), Self([127, 0, 0, 1]), Self([224, 0, 0, 18]), Self([255; 4])];

    fn as_our_own(header: &mut [u8]) {
        (header[1], header[4], header[5], header[10], header[11]) = (0xc0, 0, 0, 0, 0);
        let checksum = (!fold(sum(&header[..20]))).to_ne_bytes();
        header[10..12].copy_from_slice(&checksum);
    }

    fn icmp_header(segment: &Segment<Self>, payload: usize) -> Vec<u8> {
        let mut header = Self::header(segment, payload);
        (header[9], header[10], header[11]) = (1, 0, 0);
        let checksum = (!fold(sum(&header))).to_ne_bytes();
        header[10..12].copy_from_slice(&checksum);
        header
    }

    fn fragment(segment: &Segment<Self>) -> Vec<u8> {
        let mut frame = segment.bytes();
        let at = 14 + 4 * segment.tags.len() + 6;
        // More fragments.
        frame[at] = 0x20;
        frame
    }

    fn host(last: u8) -> Self {
        Self([10, 1, 0, last])
    }

    fn header(segment: &Segment<Self>, payload: usize) -> Vec<u8> {
        let length = 20 + segment.extra.len();
        let mut header = [0x45, 0, 0, 0, 0xab, 0xcd, 0x40, 0, segment.hops, 6, 0, 0].to_vec();
        header[0] = 0x40 | (length / 4) as u8;
        header[2..4].copy_from_slice(&((length + payload) as u16).to_be_bytes());
        header.extend(segment.source.0);
        header.extend(segment.destination.0);
        header.extend(&segment.extra);
        let checksum = (!fold(sum(&header))).to_ne_bytes();
        header[10..12].copy_from_slice(&checksum);
        header
    }

    fn solicitation(sender: u8, target: u8, tags: &[u16]) -> Vec<u8> {
        let mut frame = ethernet(&[[0xff; 6], [2, 0, 0, 0, 0, sender]], tags, wire::ARP);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, sender]);
        frame.extend(Self::host(sender).0);
        frame.extend([0; 6]);
        frame.extend(Self::host(target).0);
        frame
    }
}

impl Net for V6 {
    const ETHER_TYPE: [u8; 2] = wire::IPV6;
    /// Hop-by-hop options: a PadN over the rest of 16 bytes.
    const EXTRA: &'static [u8] = &[6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const TOO_BIG: (u8, u8) = (2, 0);
    const ECHO: u8 = 128;

    const NOBODY: &'static [Self] = &[
        Self([0; 16]),
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        Self([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ];

    fn as_our_own(_header: &mut [u8]) {}

    fn icmp_header(segment: &Segment<Self>, payload: usize) -> Vec<u8> {
        let mut header = Self::header(segment, payload);
        header[6] = 58;
        header
    }

    fn fragment(segment: &Segment<Self>) -> Vec<u8> {
        let mut fragment = segment.clone();
        fragment.extra = [6, 0, 0, 1, 0, 0, 0, 7].to_vec();
        let mut frame = fragment.bytes();
        frame[14 + 4 * segment.tags.len() + 6] = 44;
        frame
    }

    fn host(last: u8) -> Self {
        let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[15] = last;
        Self(address)
    }

    fn header(segment: &Segment<Self>, payload: usize) -> Vec<u8> {
        let length = (segment.extra.len() + payload) as u16;
        let mut header = [0x60, 0, 0, 0].to_vec();
        header.extend(length.to_be_bytes());
        header.extend([if segment.extra.is_empty() { 6 } else { 0 }, segment.hops]);
        header.extend(segment.source.0);
        header.extend(segment.destination.0);
        header.extend(&segment.extra);
        header
    }

    fn solicitation(sender: u8, target: u8, tags: &[u16]) -> Vec<u8> {
        let mut frame = ethernet(&[[0x33, 0x33, 0xff, 0, 0, target], [2, 0, 0, 0, 0, sender]], tags, wire::IPV6);
        frame.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
        frame.extend(Self::host(sender).0);
        frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, target]);
        frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(Self::host(target).0);
        frame
    }
}

/// What a segment says.
#[derive(Clone, Debug)]
pub(super) struct Segment<A> {
    /// Destination and source.
    pub(super) macs: [[u8; 6]; 2],
    pub(super) tags: Vec<u16>,
    pub(super) source: A,
    pub(super) destination: A,
    pub(super) ports: [u16; 2],
    pub(super) hops: u8,
    pub(super) extra: Vec<u8>,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flags: Flags,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl<A: Net> Segment<A> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.ports[0].to_be_bytes());
        tcp.extend(self.ports[1].to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags.0]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let checksum = (!fold(pseudo(self.source, self.destination, &tcp))).to_ne_bytes();
        tcp[16..18].copy_from_slice(&checksum);

        let mut frame = ethernet(&self.macs, &self.tags, A::ETHER_TYPE);
        frame.extend(A::header(self, tcp.len()));
        frame.extend(tcp);
        frame
    }
}

/// An ICMP error (or what looks like one).
#[derive(Clone, Debug)]
pub(super) struct Error<A> {
    pub(super) macs: [[u8; 6]; 2],
    pub(super) source: A,
    pub(super) destination: A,
    pub(super) hops: u8,
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) rest: [u8; 4],
    /// The packet that it quotes, and how many bytes from its TCP header on.
    pub(super) about: Segment<A>,
    pub(super) quoted: usize,
}

impl<A: Net> Error<A> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let about = self.about.bytes();
        let network = 14 + 4 * self.about.tags.len();
        let transport = A::transport::<_, MAX_EXTENSIONS>(&about[..], network)
            .expect("a header")
            .expect("one that is well formed")
            .at;
        let end = self.quoted.min(about.len() - transport) + transport;
        let mut message = [self.kind, self.code, 0, 0].to_vec();
        message.extend(self.rest);
        message.extend(&about[network..end]);
        let covered = if A::ETHER_TYPE == wire::IPV6 {
            let length = (message.len() as u32).to_be_bytes();
            sum(&self.source.mapped()) + sum(&self.destination.mapped()) + sum(&length) + sum(&[0, 58])
        } else {
            0
        };
        let checksum = (!fold(covered + sum(&message))).to_ne_bytes();
        message[2..4].copy_from_slice(&checksum);

        let outer = Segment {
            macs: self.macs,
            source: self.source,
            destination: self.destination,
            hops: self.hops,
            extra: Vec::new(),
            ..self.about.clone()
        };
        let mut frame = self.macs.concat();
        frame.extend(A::ETHER_TYPE);
        frame.extend(A::icmp_header(&outer, message.len()));
        frame.extend(message);
        frame
    }
}

/// Whether the frame is an ICMP message whose checksum is right, and that of the IPv4 header in front.
pub(super) fn sums_up<A: Net>(frame: &[u8]) -> bool {
    let at = wire::link(frame).expect("a frame").at;
    let (header, message) = frame[at..].split_at(size_of::<A::Header>());
    if header[if A::ETHER_TYPE == wire::IPV4 { 9 } else { 6 }] != A::ICMP {
        return false;
    }
    if A::ETHER_TYPE == wire::IPV4 {
        return fold(sum(header)) == 0xffff && fold(sum(message)) == 0xffff;
    }
    let length = (message.len() as u32).to_be_bytes();
    fold(sum(&header[8..40]) + sum(&length) + sum(&[0, 58]) + sum(message)) == 0xffff
}

fn ethernet(macs: &[[u8; 6]; 2], tags: &[u16], ether_type: [u8; 2]) -> Vec<u8> {
    let mut header = macs.concat();
    for tag in tags {
        header.extend([0x81, 0x00]);
        header.extend(tag.to_be_bytes());
    }
    header.extend(ether_type);
    header
}

/// Sum over a TCP segment and its pseudo-header.
fn pseudo<A: Address>(source: A, destination: A, tcp: &[u8]) -> u32 {
    let length = (tcp.len() as u32).to_be_bytes();
    // A mapped address is the IPv4 address and 0xffff, which is zero in this arithmetic.
    sum(&source.mapped()) + sum(&destination.mapped()) + sum(&length) + sum(&[0, 6]) + sum(tcp)
}

/// Whether the checksums of a frame are right, as far as the frame is a segment.
pub(super) fn valid<A: Net>(frame: &[u8]) -> bool {
    let Ok(link) = wire::link(frame) else {
        return false;
    };
    let Ok(segment) = wire::segment::<A, [u8]>(frame, link.at) else {
        return false;
    };
    let Ok(Some(transport)) = A::transport::<_, MAX_EXTENSIONS>(frame, link.at) else {
        return false;
    };
    let tcp = &frame[segment.transport..transport.end];
    let header = &frame[segment.network..segment.transport];
    let header_is = A::ETHER_TYPE == wire::IPV6 || fold(sum(header)) == 0xffff;
    header_is && fold(pseudo(segment.key.source, segment.key.destination, tcp)) == 0xffff
}
