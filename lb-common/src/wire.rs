//! Ethernet, TCP and ICMP headers, and what a packet says about itself before anything is known of its connection.

use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    address::{Address, MAX_EXTENSIONS},
    flow::Key,
    frame::{Frame, Header, Truncated},
};

/// Ethernet II header. (network-types' has an alignment of 2, which a packet does not promise.)
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ether_type: [u8; 2],
}
// SAFETY: bytes only.
unsafe impl Header for Ethernet {}

impl Ethernet {
    pub const LEN: usize = size_of::<Self>();
}

/// An IEEE 802.1Q or 802.1ad tag after its EtherType: the control information, then the next EtherType.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Vlan {
    pub control: [u8; 2],
    pub ether_type: [u8; 2],
}
// SAFETY: bytes only.
unsafe impl Header for Vlan {}

/// TCP header without options (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tcp {
    pub source: [u8; 2],
    pub destination: [u8; 2],
    pub sequence: [u8; 4],
    pub acknowledgement: [u8; 4],
    /// Data offset in 32-bit words, in the upper four bits.
    pub offset: u8,
    pub flags: Flags,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}
// SAFETY: bytes, and `Flags`, which is one.
unsafe impl Header for Tcp {}

impl Tcp {
    pub const LEN: usize = size_of::<Self>();
}

/// Head of an ICMP error (RFC 792, RFC 4443 §2.1); the quoted packet follows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    /// The MTU, the pointer, or nothing.
    pub rest: [u8; 4],
}
// SAFETY: bytes only.
unsafe impl Header for Icmp {}

impl Icmp {
    pub const LEN: usize = size_of::<Self>();
}

/// As much of a TCP header as every ICMP error quotes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct QuotedTcp {
    pub source: [u8; 2],
    pub destination: [u8; 2],
    pub sequence: [u8; 4],
}
// SAFETY: bytes only.
unsafe impl Header for QuotedTcp {}

/// Bytes that mean nothing by themselves.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Bytes<const N: usize>(pub [u8; N]);
// SAFETY: bytes only.
unsafe impl<const N: usize> Header for Bytes<N> {}

/// A checksum by itself.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Checksum(pub [u8; 2]);
// SAFETY: two bytes.
unsafe impl Header for Checksum {}

/// An ARP packet (RFC 826) for IPv4 on Ethernet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Arp {
    /// Hardware and protocol, the lengths of their addresses, and the operation.
    pub kind: [u8; 8],
    pub sender_hardware: [u8; 6],
    pub sender: [u8; 4],
    _target_hardware: [u8; 6],
    pub target: [u8; 4],
}
// SAFETY: bytes only.
unsafe impl Header for Arp {}

/// A neighbour solicitation (RFC 4861 §4.3) without its options.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Solicitation {
    pub kind: u8,
    _code_and_checksum: [u8; 3],
    _reserved: [u8; 4],
    pub target: [u8; 16],
}
// SAFETY: bytes only.
unsafe impl Header for Solicitation {}

/// A neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4) that begins its options with a MAC address (§4.6.1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Acquaintance {
    pub kind: u8,
    _code: u8,
    pub checksum: [u8; 2],
    _flags: [u8; 4],
    pub target: [u8; 16],
    /// Kind and length: whose address it is.
    pub option: [u8; 2],
    pub hardware: [u8; 6],
}
// SAFETY: bytes only.
unsafe impl Header for Acquaintance {}

/// TCP control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const ACK: Self = Self(0x10);

    /// Whether any bit of `other` is set.
    #[inline(always)]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// A SYN that opens a connection, not one that answers.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

/// The VLAN tags of a frame, outer tag first; 0 where there is none. Priority bits are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Tags(pub u32);

impl Tags {
    /// Says that there is a tag: VLAN 0 is one.
    const PRESENT: u32 = 0x8000;

    /// A single tag.
    pub const fn single(id: u16) -> Self {
        Self(Self::PRESENT | (id & 0x0fff) as u32)
    }
}

/// What carries a frame's IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub ether_type: [u8; 2],
    /// Where the network header starts.
    pub at: usize,
    pub tags: Tags,
}

/// Tags that are looked through: a service tag and a customer tag.
const MAX_TAGS: usize = 2;

pub const IPV4: [u8; 2] = (EtherType::Ipv4 as u16).to_ne_bytes();
pub const IPV6: [u8; 2] = (EtherType::Ipv6 as u16).to_ne_bytes();
pub const ARP: [u8; 2] = (EtherType::Arp as u16).to_ne_bytes();
const DOT1Q: [u8; 2] = (EtherType::Ieee8021q as u16).to_ne_bytes();
const DOT1AD: [u8; 2] = (EtherType::Ieee8021ad as u16).to_ne_bytes();

/// Reads the Ethernet header and up to two VLAN tags.
#[inline(always)]
pub fn link<F: Frame + ?Sized>(frame: &F) -> Result<Link, Truncated> {
    let mut link = Link { ether_type: frame.get::<Ethernet>(0)?.ether_type, at: Ethernet::LEN, tags: Tags(0) };
    for _ in 0..MAX_TAGS {
        if link.ether_type != DOT1Q && link.ether_type != DOT1AD {
            break;
        }
        let vlan = frame.get::<Vlan>(link.at)?;
        let id = u16::from_be_bytes(vlan.control) & 0x0fff;
        link.tags = Tags(link.tags.0 << 16 | Tags::single(id).0);
        link.ether_type = vlan.ether_type;
        link.at += size_of::<Vlan>();
    }
    Ok(link)
}

/// A TCP segment in a well-formed IP packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment<A> {
    pub key: Key<A>,
    pub flags: Flags,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Where the network and the transport header start.
    pub network: usize,
    pub transport: usize,
    /// Sequence numbers that the segment takes: its payload, SYN and FIN.
    pub length: u32,
    /// What its sender waits for next, as on the wire; means nothing without ACK.
    pub acknowledgement: [u8; 4],
}

impl<A> Segment<A> {
    /// Makes the kernel's verifier forget by which of many ways through VLAN tags, options and extension headers the headers
    /// were found, so that it follows what comes after once instead of once for each way. `now` is below 2^48 ticks, so what
    /// is mixed in is zero; the verifier cannot know. Every access is checked against the packet's end all the same.
    ///
    /// The masks are wider than any offset and leave each way the same bounds. (An exclusive or would do as well, but LLVM moves
    /// the mask in front of it, and the verifier of 6.1 loses its bounds.)
    #[inline(always)]
    pub fn forget_ways(&mut self, tags: &mut Tags, now: u64) {
        let zero = (now >> 48) as usize;
        self.network = self.network.wrapping_add(zero);
        self.transport = self.transport.wrapping_add(zero);
        self.limit();
        tags.0 = tags.0.wrapping_add(zero as u32 | (zero as u32) << 16);
    }

    /// Shows the verifier bounds that the offsets have anyway.
    #[inline(always)]
    pub const fn limit(&mut self) {
        self.network &= 0x3f;
        self.transport &= 0x7fff;
    }
}

/// Why a packet is not a segment that can be balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTcp {
    /// Another protocol.
    Other,
    /// The family's ICMP.
    Icmp,
    /// Part of a fragmented packet: ports are in the first part only.
    Fragment,
    /// Lengths that contradict each other.
    Malformed,
}

impl From<Truncated> for NotTcp {
    fn from(Truncated: Truncated) -> Self {
        Self::Malformed
    }
}

/// Reads the IP packet that starts `at` bytes into the frame.
#[inline(always)]
pub fn segment<A: Address, F: Frame + ?Sized>(frame: &F, at: usize) -> Result<Segment<A>, NotTcp> {
    let transport = A::transport::<F, MAX_EXTENSIONS>(frame, at)?.ok_or(NotTcp::Malformed)?;
    if transport.fragment {
        return Err(NotTcp::Fragment);
    }
    if transport.protocol != IpProto::Tcp as u8 {
        return Err(if transport.protocol == A::ICMP { NotTcp::Icmp } else { NotTcp::Other });
    }
    let tcp = frame.get::<Tcp>(transport.at)?;
    let payload = transport.at + usize::from(tcp.offset >> 4) * 4;
    if (tcp.offset >> 4) < 5 || payload > transport.end || transport.end > frame.len() {
        return Err(NotTcp::Malformed);
    }
    let header = frame.get::<A::Header>(at)?;
    let controls = u32::from(tcp.flags.any(Flags::SYN)) + u32::from(tcp.flags.any(Flags::FIN));
    Ok(Segment {
        key: Key {
            source: A::source(header),
            destination: A::destination(header),
            source_port: tcp.source,
            destination_port: tcp.destination,
        },
        flags: tcp.flags,
        hops: A::hops(header),
        network: at,
        transport: transport.at,
        length: (transport.end - payload) as u32 + controls,
        acknowledgement: tcp.acknowledgement,
    })
}

/// An ICMP error about a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// Of the message itself: time to live, or hop limit.
    pub hops: u8,
    /// Where the network header, the message, the quoted network header and the quoted transport header start.
    pub network: usize,
    pub message: usize,
    pub quoted: usize,
    pub transport: usize,
    /// Whether the quotation reaches as far as the segment's checksum.
    pub has_checksum: bool,
}

/// Reads the IP packet of a frame as an ICMP error about a TCP segment. One that did not go to who sent the segment is forged, and as good as
/// [`NotTcp::Other`]. Extension headers are not looked through, neither in front of the message nor in what it quotes: the two would multiply what
/// the verifier has to follow, for a packet that nobody has seen.
///
/// The quoted header's own length says nothing: it is the whole segment's, of which little is quoted. But eight bytes of TCP must be inside the
/// message (RFC 1122 §3.2.2), and not in what comes after it in the frame.
///
/// `key` becomes the quoted segment's, turned round: the key by which its receiver's packets arrive. (In place, because it would be
/// too much for a BPF program's stack.)
#[inline(always)]
pub fn quote<A, F>(frame: &F, link: &mut Link, key: &mut Key<A>, now: u64) -> Result<Quote, NotTcp>
where
    A: Address,
    F: Frame + ?Sized,
{
    // Between one header and the next, the verifier forgets how it was found (see `Segment::forget_ways`).
    let zero = (now >> 48) as usize;
    link.tags.0 = link.tags.0.wrapping_add(zero as u32 | (zero as u32) << 16);
    let network = link.at.wrapping_add(zero) & 0x3f;
    let outer = A::transport::<F, 0>(frame, network)?.ok_or(NotTcp::Malformed)?;
    if outer.fragment || outer.protocol != A::ICMP {
        return Err(NotTcp::Other);
    }
    if outer.end > frame.len() {
        return Err(NotTcp::Malformed);
    }
    if !A::is_icmp_error(frame.get::<Icmp>(outer.at)?.kind) {
        return Err(NotTcp::Other);
    }
    let message = outer.at.wrapping_add(zero) & 0x3fff;
    let end = outer.end.wrapping_add(zero) & 0xffff;
    // (So must LLVM, which would leave out the check of the message that this one implies.)
    let quoted = (message + Icmp::LEN).wrapping_add(zero) & 0x3fff;
    let inner = A::transport::<F, 0>(frame, quoted)?.ok_or(NotTcp::Malformed)?;
    if inner.fragment || inner.protocol != IpProto::Tcp as u8 {
        return Err(NotTcp::Other);
    }
    let transport = inner.at.wrapping_add(zero) & 0x7fff;
    if transport + size_of::<QuotedTcp>() > end {
        return Err(NotTcp::Malformed);
    }
    let about = frame.get::<A::Header>(quoted)?;
    key.source = A::destination(about);
    key.destination = A::source(about);
    let tcp = frame.get::<QuotedTcp>(transport)?;
    key.source_port = tcp.destination;
    key.destination_port = tcp.source;
    let header = frame.get::<A::Header>(network)?;
    if key.destination.difference(&A::destination(header)) != 0 {
        return Err(NotTcp::Other);
    }
    Ok(Quote {
        hops: A::hops(header),
        network,
        message,
        quoted,
        transport,
        has_checksum: transport + core::mem::offset_of!(Tcp, checksum) + size_of::<Checksum>() <= end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::V4;

    #[test]
    fn tags_are_told_apart() {
        let mut frame = [0_u8; 64];
        frame[12..14].copy_from_slice(&[0x88, 0xa8]);
        frame[14..18].copy_from_slice(&[0x20, 0x0a, 0x81, 0x00]);
        frame[18..22].copy_from_slice(&[0xe0, 0x14, 0x08, 0x00]);
        let two = link(&frame[..]).unwrap();
        assert_eq!((two.ether_type, two.at, two.tags), (IPV4, 22, Tags(0x800a_8014)));
        frame[16..18].copy_from_slice(&[0x86, 0xdd]);
        let one = link(&frame[..]).unwrap();
        assert_eq!((one.ether_type, one.at, one.tags), (IPV6, 18, Tags(0x800a)));
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        assert_eq!(link(&frame[..]).unwrap().tags, Tags(0));
    }

    #[test]
    fn lengths_must_agree() {
        let mut frame = [0_u8; 40];
        frame[0] = 0x45;
        frame[2..4].copy_from_slice(&40_u16.to_be_bytes());
        frame[8] = 64;
        frame[9] = 6;
        frame[32] = 0x50;
        frame[33] = 0x02;
        let read = |frame: &[u8]| segment::<V4, _>(frame, 0).map(|segment| segment.length);
        assert_eq!(read(&frame), Ok(1));
        assert_eq!(read(&frame[..39]), Err(NotTcp::Malformed));
        frame[32] = 0x40;
        assert_eq!(read(&frame), Err(NotTcp::Malformed), "data offset below 5");
        frame[32] = 0x60;
        assert_eq!(read(&frame), Err(NotTcp::Malformed), "options beyond the packet");
        frame[32] = 0x50;
        frame[2..4].copy_from_slice(&41_u16.to_be_bytes());
        assert_eq!(read(&frame), Err(NotTcp::Malformed), "longer than the frame");
        frame[9] = 17;
        assert_eq!(read(&frame), Err(NotTcp::Other));
    }
}
