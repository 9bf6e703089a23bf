//! The two address families as types, so that everything about packets is written once.

use core::hash::Hash;

use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum::{Delta, sum_pairs},
    frame::{Frame, Header, Truncated},
    table::product,
};

// SAFETY: all fields are bytes or arrays of bytes.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for Ipv6Hdr {}

/// An IPv4 address, as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct V4(pub [u8; 4]);

/// An IPv6 address, as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct V6(pub [u8; 16]);

impl V6 {
    /// The address in four words of the host's byte order.
    ///
    /// By way of one number: taken apart byte by byte, an address would stay sixteen values for the compiler, each with a place on the stack.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let whole = u128::from_ne_bytes(self.0);
        if cfg!(target_endian = "little") {
            [whole as u32, (whole >> 32) as u32, (whole >> 64) as u32, (whole >> 96) as u32]
        } else {
            [(whole >> 96) as u32, (whole >> 64) as u32, (whole >> 32) as u32, whole as u32]
        }
    }
}

/// Where the transport header starts, and how much of the packet belongs to IP.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Offset from the start of the frame.
    pub at: usize,
    pub protocol: u8,
    /// Offset from the start of the frame at which the IP packet ends.
    pub end: usize,
    pub fragment: bool,
}

/// An address family: its header and its addresses.
pub trait Address: Copy + Eq + Hash + Default + core::fmt::Debug {
    type Header: Header;

    /// Protocol number of the family's ICMP, and whether its checksum covers the addresses in front of a message.
    const ICMP: u8;
    const ICMP_COVERS_ADDRESSES: bool;
    /// Type of the error that a packet's hops are used up.
    const TIME_EXCEEDED: u8;
    /// Bytes of the longest packet with an error: RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c).
    const LONGEST_ERROR: usize;

    /// Whether an ICMP message of this type is an error, and so quotes the packet that it is about.
    fn is_icmp_error(kind: u8) -> bool;
    /// What another address in a header does to the checksum of an ICMP message, be it the header of the message or one quoted in
    /// it. Nothing in IPv4: the first is not covered, and a quoted header's own checksum changes with it and evens it out.
    fn icmp_delta(delta: Delta, old: &Self, new: &Self) -> Delta;
    /// Destination of a packet.
    fn destination(header: &Self::Header) -> Self;
    fn source(header: &Self::Header) -> Self;
    /// Time to live, or hop limit.
    fn hops(header: &Self::Header) -> u8;
    /// Bytes of the packet with its header.
    fn total(header: &Self::Header) -> usize;
    /// Whether it may be one host's, as a source.
    fn is_single(&self) -> bool;
    /// Finds the transport header of the IP packet at `at`; `None` where the header is not well formed. In IPv6 it looks through
    /// that many extension headers; what comes next is then the protocol.
    fn transport<F, const EXTENSIONS: usize>(frame: &F, at: usize) -> Result<Option<Transport>, Truncated>
    where
        F: Frame + ?Sized;
    /// Writes both addresses, takes one hop off, and corrects the header's own checksum by `delta` if it has one.
    fn rewrite(header: &mut Self::Header, source: &Self, destination: &Self, delta: u16);
    /// Takes one hop off and changes nothing else.
    fn take_hop(header: &mut Self::Header);
    /// Writes both addresses and nothing else, and corrects the header's own checksum.
    fn readdress(header: &mut Self::Header, source: Self, destination: Self);
    /// What [`Self::rewrite`] does to the header's own checksum.
    fn header_delta(old: (&Self, &Self), new: (&Self, &Self)) -> u16;
    /// Adds what another address in its place does to a checksum that covers it.
    fn delta(&self, delta: Delta, new: &Self) -> Delta;
    /// Turns the header round and gives it `payload` bytes after `header_length`, with a fresh hop count.
    fn answer(header: &mut Self::Header, header_length: u16, payload: u16);
    /// Writes the header in front of an ICMP error of `payload` bytes.
    fn begin_error(header: &mut Self::Header, source: &Self, destination: &Self, payload: u16);
    /// Unfolded sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo_sum(header: &Self::Header, protocol: u8, length: u16) -> u32;
    /// IPv4 as `::ffff:a.b.c.d`.
    fn mapped(self) -> [u8; 16];
    /// The inverse of [`Self::mapped`], without a check.
    fn from_mapped(mapped: &[u8; 16]) -> Self;
    /// The same address by way of registers. Sixteen bytes from one place in memory to another are moved by a loop, since the two might
    /// overlap.
    fn copied(&self) -> Self;
    /// 0 if the two are the same.
    fn difference(&self, other: &Self) -> u32;
    /// 32 bits to be mixed further.
    fn digest(self) -> u32;
    /// The sum of products of two addresses' words, each with a word of the secret added: see [`crate::table::Hashing`].
    fn products(one: &Self, other: &Self, secret: &[u32; 8]) -> u64;
}

/// Hops that a packet of our own making starts with.
const OWN_HOPS: u8 = 64;
/// Extension headers of a segment that are looked through before it is left to the kernel.
pub const MAX_EXTENSIONS: usize = 4;

impl Address for V4 {
    type Header = Ipv4Hdr;

    const ICMP: u8 = IpProto::Icmp as u8;
    const ICMP_COVERS_ADDRESSES: bool = false;
    const TIME_EXCEEDED: u8 = 11;
    const LONGEST_ERROR: usize = 576;

    /// Destination unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn icmp_delta(delta: Delta, _old: &Self, _new: &Self) -> Delta {
        delta
    }

    #[inline(always)]
    fn destination(header: &Ipv4Hdr) -> Self {
        Self(header.dst_addr)
    }

    #[inline(always)]
    fn source(header: &Ipv4Hdr) -> Self {
        Self(header.src_addr)
    }

    #[inline(always)]
    fn hops(header: &Ipv4Hdr) -> u8 {
        header.ttl
    }

    #[inline(always)]
    fn total(header: &Ipv4Hdr) -> usize {
        u16::from_be_bytes(header.tot_len).into()
    }

    /// Not "this network", loopback, a group or reserved (RFC 1122 §3.2.1.3).
    #[inline(always)]
    fn is_single(&self) -> bool {
        !matches!(self.0[0], 0 | 127 | 224..)
    }

    #[inline(always)]
    fn transport<F, const EXTENSIONS: usize>(frame: &F, at: usize) -> Result<Option<Transport>, Truncated>
    where
        F: Frame + ?Sized,
    {
        let header = frame.get::<Ipv4Hdr>(at)?;
        let header_length = usize::from(header.vihl & 0x0f) * 4;
        if header.vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN {
            return Ok(None);
        }
        // More fragments, or an offset (RFC 791 §3.1); "don't fragment" is neither.
        let fragment = header.frags[0] & 0x3f != 0 || header.frags[1] != 0;
        Ok(Some(Transport { at: at + header_length, protocol: header.proto, end: at + Self::total(header), fragment }))
    }

    #[inline(always)]
    fn rewrite(header: &mut Ipv4Hdr, source: &Self, destination: &Self, delta: u16) {
        header.src_addr = source.0;
        header.dst_addr = destination.0;
        header.ttl = header.ttl.wrapping_sub(1);
        header.check = crate::checksum::adjust(header.check, delta);
    }

    #[inline(always)]
    fn take_hop(header: &mut Ipv4Hdr) {
        header.ttl = header.ttl.wrapping_sub(1);
        header.check = crate::checksum::adjust(header.check, Delta::new().word([1, 0], [0, 0]).folded());
    }

    #[inline(always)]
    fn readdress(header: &mut Ipv4Hdr, source: Self, destination: Self) {
        let delta = Self(header.dst_addr).delta(Self(header.src_addr).delta(Delta::new(), &source), &destination);
        header.src_addr = source.0;
        header.dst_addr = destination.0;
        header.check = crate::checksum::adjust(header.check, delta.folded());
    }

    #[inline(always)]
    fn header_delta(old: (&Self, &Self), new: (&Self, &Self)) -> u16 {
        old.1
            .delta(old.0.delta(Delta::new(), new.0), new.1)
            // TTL is the upper half of its word: one hop less is always the same difference.
            .word([1, 0], [0, 0])
            .folded()
    }

    #[inline(always)]
    fn delta(&self, delta: Delta, new: &Self) -> Delta {
        delta.pair(self.digest(), new.digest())
    }

    #[inline(always)]
    fn answer(header: &mut Ipv4Hdr, header_length: u16, payload: u16) {
        let total = header_length.wrapping_add(payload).to_be_bytes();
        let delta = Delta::new()
            .word(header.tot_len, total)
            .word([header.ttl, header.proto], [OWN_HOPS, header.proto])
            .folded();
        core::mem::swap(&mut header.src_addr, &mut header.dst_addr);
        header.tot_len = total;
        header.ttl = OWN_HOPS;
        header.check = crate::checksum::adjust(header.check, delta);
    }

    /// With the precedence of internetwork control (RFC 1812 §4.3.2.5).
    #[inline(always)]
    fn begin_error(header: &mut Ipv4Hdr, source: &Self, destination: &Self, payload: u16) {
        *header = Ipv4Hdr {
            vihl: 0x45,
            tos: 0xc0,
            tot_len: (Ipv4Hdr::LEN as u16).wrapping_add(payload).to_be_bytes(),
            id: [0; 2],
            // "Don't fragment", and so no number (RFC 6864 §4.1).
            frags: [0x40, 0],
            ttl: OWN_HOPS,
            proto: Self::ICMP,
            check: [0; 2],
            src_addr: source.0,
            dst_addr: destination.0,
        };
        let words = sum_pairs([source.digest(), destination.digest()])
            + crate::checksum::sum(&[0x45, 0xc0])
            + crate::checksum::sum(&header.tot_len)
            + crate::checksum::sum(&[0x40, 0])
            + crate::checksum::sum(&[OWN_HOPS, Self::ICMP]);
        header.check = (!crate::checksum::fold(words)).to_ne_bytes();
    }

    #[inline(always)]
    fn pseudo_sum(header: &Ipv4Hdr, protocol: u8, length: u16) -> u32 {
        sum_pairs([Self(header.src_addr).digest(), Self(header.dst_addr).digest()])
            + crate::checksum::sum(&[0, protocol])
            + crate::checksum::sum(&length.to_be_bytes())
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        // As one number out of whole words: byte by byte, the zeros would be written by a loop and the rest at odd places of the stack,
        // which the verifier refuses.
        let (prefix, last) = (u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(self.0));
        let whole = if cfg!(target_endian = "little") {
            u128::from(last) << 96 | u128::from(prefix) << 64
        } else {
            u128::from(prefix) << 32 | u128::from(last)
        };
        whole.to_ne_bytes()
    }

    #[inline(always)]
    fn from_mapped(mapped: &[u8; 16]) -> Self {
        Self([mapped[12], mapped[13], mapped[14], mapped[15]])
    }

    #[inline(always)]
    fn copied(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn difference(&self, other: &Self) -> u32 {
        u32::from_ne_bytes(self.0) ^ u32::from_ne_bytes(other.0)
    }

    #[inline(always)]
    fn digest(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    #[inline(always)]
    fn products(one: &Self, other: &Self, secret: &[u32; 8]) -> u64 {
        product(one.digest().wrapping_add(secret[0]), other.digest().wrapping_add(secret[1]))
    }
}

impl Address for V6 {
    type Header = Ipv6Hdr;

    const ICMP: u8 = IpProto::Ipv6Icmp as u8;
    const ICMP_COVERS_ADDRESSES: bool = true;
    const TIME_EXCEEDED: u8 = 3;
    const LONGEST_ERROR: usize = 1280;

    /// RFC 4443 §2.1: messages up to 127 are errors; four of them are defined.
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn icmp_delta(delta: Delta, old: &Self, new: &Self) -> Delta {
        old.delta(delta, new)
    }

    #[inline(always)]
    fn destination(header: &Ipv6Hdr) -> Self {
        Self(header.dst_addr)
    }

    #[inline(always)]
    fn source(header: &Ipv6Hdr) -> Self {
        Self(header.src_addr)
    }

    #[inline(always)]
    fn hops(header: &Ipv6Hdr) -> u8 {
        header.hop_limit
    }

    #[inline(always)]
    fn total(header: &Ipv6Hdr) -> usize {
        Ipv6Hdr::LEN + usize::from(u16::from_be_bytes(header.payload_len))
    }

    /// Not a group, unspecified or loopback (RFC 4291 §2.5, §2.7).
    #[inline(always)]
    fn is_single(&self) -> bool {
        let [a, b, c, d] = self.words();
        self.0[0] != 0xff && (a | b | c | (u32::from_be(d) & !1)) != 0
    }

    #[inline(always)]
    fn transport<F, const EXTENSIONS: usize>(frame: &F, at: usize) -> Result<Option<Transport>, Truncated>
    where
        F: Frame + ?Sized,
    {
        let header = frame.get::<Ipv6Hdr>(at)?;
        if header.vcf[0] >> 4 != 6 {
            return Ok(None);
        }
        let end = at + Self::total(header);
        let mut protocol = header.next_hdr;
        let mut offset = at + Ipv6Hdr::LEN;
        let mut fragment = false;
        for _ in 0..EXTENSIONS {
            if protocol == IpProto::Ipv6Frag as u8 {
                fragment = true;
                break;
            }
            let extension = protocol == IpProto::HopOpt as u8
                || protocol == IpProto::Ipv6Route as u8
                || protocol == IpProto::Ipv6Opts as u8;
            if !extension {
                break;
            }
            // RFC 8200 §4.3–4.6: next header, then the length in units of 8 bytes beyond the first.
            let option = frame.get::<Extension>(offset)?;
            protocol = option.0[0];
            offset += 8 + usize::from(option.0[1]) * 8;
        }
        Ok(Some(Transport { at: offset, protocol, end, fragment }))
    }

    #[inline(always)]
    fn rewrite(header: &mut Ipv6Hdr, source: &Self, destination: &Self, _delta: u16) {
        header.src_addr = source.0;
        header.dst_addr = destination.0;
        header.hop_limit = header.hop_limit.wrapping_sub(1);
    }

    #[inline(always)]
    fn take_hop(header: &mut Ipv6Hdr) {
        header.hop_limit = header.hop_limit.wrapping_sub(1);
    }

    #[inline(always)]
    fn readdress(header: &mut Ipv6Hdr, source: Self, destination: Self) {
        header.src_addr = source.0;
        header.dst_addr = destination.0;
    }

    #[inline(always)]
    fn header_delta(_old: (&Self, &Self), _new: (&Self, &Self)) -> u16 {
        0
    }

    #[inline(always)]
    fn delta(&self, delta: Delta, new: &Self) -> Delta {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), new.words());
        delta.pair(a, e).pair(b, f).pair(c, g).pair(d, h)
    }

    #[inline(always)]
    fn answer(header: &mut Ipv6Hdr, header_length: u16, payload: u16) {
        core::mem::swap(&mut header.src_addr, &mut header.dst_addr);
        let extensions = header_length.wrapping_sub(Ipv6Hdr::LEN as u16);
        header.payload_len = extensions.wrapping_add(payload).to_be_bytes();
        header.hop_limit = OWN_HOPS;
    }

    #[inline(always)]
    fn begin_error(header: &mut Ipv6Hdr, source: &Self, destination: &Self, payload: u16) {
        *header = Ipv6Hdr {
            vcf: [0x60, 0, 0, 0],
            payload_len: payload.to_be_bytes(),
            next_hdr: Self::ICMP,
            hop_limit: OWN_HOPS,
            src_addr: source.0,
            dst_addr: destination.0,
        };
    }

    #[inline(always)]
    fn pseudo_sum(header: &Ipv6Hdr, protocol: u8, length: u16) -> u32 {
        sum_pairs(Self(header.src_addr).words())
            + sum_pairs(Self(header.dst_addr).words())
            + crate::checksum::sum(&[0, protocol])
            + crate::checksum::sum(&length.to_be_bytes())
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        self.0
    }

    #[inline(always)]
    fn from_mapped(mapped: &[u8; 16]) -> Self {
        Self(*mapped).copied()
    }

    #[inline(always)]
    fn copied(&self) -> Self {
        Self(u128::from_ne_bytes(self.0).to_ne_bytes())
    }

    #[inline(always)]
    fn difference(&self, other: &Self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    }

    #[inline(always)]
    fn digest(self) -> u32 {
        let [a, b, c, d] = self.words();
        a ^ b.rotate_left(7) ^ c.rotate_left(13) ^ d.rotate_left(19)
    }

    #[inline(always)]
    fn products(one: &Self, other: &Self, secret: &[u32; 8]) -> u64 {
        let ([a, b, c, d], [e, f, g, h]) = (one.words(), other.words());
        let [s0, s1, s2, s3, s4, s5, s6, s7] = *secret;
        let keyed = |one: u32, s: u32, other: u32, t: u32| product(one.wrapping_add(s), other.wrapping_add(t));
        keyed(a, s0, e, s1)
            .wrapping_add(keyed(b, s2, f, s3))
            .wrapping_add(keyed(c, s4, g, s5))
            .wrapping_add(keyed(d, s6, h, s7))
    }
}

/// The first two bytes of an IPv6 extension header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Extension([u8; 2]);
// SAFETY: two bytes.
unsafe impl Header for Extension {}

#[cfg(any(test, feature = "user"))]
impl From<V4> for std::net::IpAddr {
    fn from(address: V4) -> Self {
        Self::V4(address.0.into())
    }
}

#[cfg(any(test, feature = "user"))]
impl From<V6> for std::net::IpAddr {
    fn from(address: V6) -> Self {
        Self::V6(address.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_options_move_the_transport_header() {
        let mut packet = [0_u8; 28];
        packet[0] = 0x47;
        packet[2..4].copy_from_slice(&28_u16.to_be_bytes());
        packet[6] = 0x40;
        packet[9] = 6;
        let transport = V4::transport::<_, 0>(&packet[..], 0).unwrap().unwrap();
        assert_eq!((transport.at, transport.protocol, transport.end, transport.fragment), (28, 6, 28, false));
        packet[0] = 0x44;
        assert!(V4::transport::<_, 0>(&packet[..], 0).unwrap().is_none());
        packet[0] = 0x65;
        assert!(V4::transport::<_, 0>(&packet[..], 0).unwrap().is_none());
    }

    #[test]
    fn ipv4_fragments_are_told_from_dont_fragment() {
        let fragment = |flags: [u8; 2]| {
            let mut packet = [0_u8; 20];
            packet[0] = 0x45;
            packet[6..8].copy_from_slice(&flags);
            V4::transport::<_, 0>(&packet[..], 0).unwrap().unwrap().fragment
        };
        assert!(!fragment([0x40, 0]));
        assert!(fragment([0x20, 0]));
        assert!(fragment([0, 1]));
        assert!(fragment([0x01, 0]));
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let mut packet = [0_u8; 40 + 8 + 16];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&24_u16.to_be_bytes());
        packet[6] = 0; // hop-by-hop
        packet[40] = 60; // destination options …
        packet[48] = 6; // … then TCP
        packet[49] = 1;
        let transport = V6::transport::<_, MAX_EXTENSIONS>(&packet[..], 0).unwrap().unwrap();
        assert_eq!((transport.at, transport.protocol, transport.end, transport.fragment), (64, 6, 64, false));
        packet[40] = 44;
        assert!(V6::transport::<_, MAX_EXTENSIONS>(&packet[..], 0).unwrap().unwrap().fragment);
        assert_eq!(V6::transport::<_, MAX_EXTENSIONS>(&packet[..41], 0).unwrap_err(), Truncated);
    }
}
