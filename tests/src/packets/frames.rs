//! TCP segments, and ICMP errors about them, as frames, put together and summed up by etherparse: nothing of the data path's own arithmetic.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpDscp, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep,
    SingleVlanHeader, TcpHeader, VlanHeader, VlanId, VlanPcp,
    icmpv4::{self, DestUnreachableHeader},
    icmpv6, ip_number,
};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// What stands between the IP and the TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    None,
    /// IPv4 options, or hop-by-hop options in IPv6.
    Options,
    /// The packet is the first part of a longer one.
    Fragment,
}

/// What a segment says.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Destination and source.
    pub macs: [[u8; 6]; 2],
    /// VLANs, outer first; two at most.
    pub tags: Vec<u16>,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub hops: u8,
    pub extra: Extra,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    /// TCP options, a multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

/// An ICMP error.
#[derive(Clone, Debug)]
pub struct Error {
    /// Destination and source.
    pub macs: [[u8; 6]; 2],
    pub from: IpAddr,
    pub to: IpAddr,
    pub hops: u8,
    /// The MTU that it names.
    pub mtu: u16,
    /// The segment that it quotes, without its tags, and how many bytes from the TCP header on.
    pub about: Segment,
    pub quoted: usize,
}

impl Error {
    /// # Panics
    /// When the error mixes families.
    pub fn bytes(&self) -> Vec<u8> {
        let about = Segment { tags: Vec::new(), ..self.about.clone() }.bytes();
        let end = (about.len() - self.about.tcp_len()).saturating_add(self.quoted).min(about.len());
        let ethernet = PacketBuilder::ethernet2(self.macs[1], self.macs[0]);
        let mut bytes = Vec::new();
        let written = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: self.mtu };
                let packet = ethernet.ipv4(from.octets(), to.octets(), self.hops);
                let packet = packet.icmpv4(Icmpv4Type::DestinationUnreachable(kind));
                packet.write_to_vec(&mut bytes, &about[14..end])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let packet = ethernet.ipv6(from.octets(), to.octets(), self.hops);
                let packet = packet.icmpv6(Icmpv6Type::PacketTooBig { mtu: self.mtu.into() });
                packet.write_to_vec(&mut bytes, &about[14..end])
            }
            _ => panic!("{} and {} are not of one family", self.from, self.to),
        };
        written.expect("a packet of lawful length");
        bytes
    }
}

/// Everything up to the IP header; destination and source come first, then outer and inner VLAN.
fn packet(macs: [[u8; 6]; 2], tags: &[u16], ip: IpHeaders) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(macs[1], macs[0]);
    let tag = |id: u16| SingleVlanHeader {
        pcp: VlanPcp::ZERO,
        drop_eligible_indicator: false,
        vlan_id: VlanId::try_new(id).expect("12 bits"),
        ether_type: 0.into(),
    };
    match *tags {
        [] => ethernet.ip(ip),
        [one] => ethernet.vlan(VlanHeader::Single(tag(one))).ip(ip),
        [outer, inner, ..] => {
            let outer = VlanId::try_new(outer).expect("12 bits");
            let inner = VlanId::try_new(inner).expect("12 bits");
            ethernet.double_vlan(outer, inner).ip(ip)
        }
    }
}

impl Segment {
    fn tcp_len(&self) -> usize {
        20 + self.options.len() + self.payload.len()
    }

    /// # Panics
    /// When the segment mixes families or is longer than a packet can be.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet = packet(self.macs, &self.tags, self.ip());
        let written = packet.tcp_header(self.tcp()).write_to_vec(&mut bytes, &self.payload);
        written.expect("a packet of lawful length");
        bytes
    }

    /// What its sender hears when its hops were used up where it was sent to, which quotes as much of it as may be.
    ///
    /// # Panics
    /// As above.
    pub fn time_exceeded(&self) -> Vec<u8> {
        let [to, from] = self.macs;
        let about = Self { tags: Vec::new(), ..self.clone() }.bytes();
        let quoted = |most: usize| &about[14..about.len().min(14 + most)];
        let mut bytes = Vec::new();
        let written = match (self.from, self.to) {
            (SocketAddr::V4(client), SocketAddr::V4(vip)) => {
                let (client, vip) = (client.ip().octets(), vip.ip().octets());
                let mut header = Ipv4Header::new(0, 64, ip_number::ICMP, vip, client).expect("a short payload");
                header.dscp = IpDscp::try_new(48).expect("six bits");
                let packet = packet([from, to], &self.tags, IpHeaders::Ipv4(header, Ipv4Extensions::default()));
                let kind = Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit);
                packet.icmpv4(kind).write_to_vec(&mut bytes, quoted(576 - 28))
            }
            (SocketAddr::V6(client), SocketAddr::V6(vip)) => {
                let header = Ipv6Header {
                    next_header: ip_number::IPV6_ICMP,
                    hop_limit: 64,
                    source: vip.ip().octets(),
                    destination: client.ip().octets(),
                    ..Ipv6Header::default()
                };
                let packet = packet([from, to], &self.tags, IpHeaders::Ipv6(header, Ipv6Extensions::default()));
                let kind = Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded);
                packet.icmpv6(kind).write_to_vec(&mut bytes, quoted(1280 - 48))
            }
            _ => panic!("{} and {} are not of one family", self.from, self.to),
        };
        written.expect("a packet of lawful length");
        bytes
    }

    fn ip(&self) -> IpHeaders {
        match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let (from, to) = (from.ip().octets(), to.ip().octets());
                let mut header = Ipv4Header::new(0, self.hops, ip_number::TCP, from, to).expect("a short payload");
                header.identification = 0xabcd;
                header.dont_fragment = self.extra != Extra::Fragment;
                header.more_fragments = self.extra == Extra::Fragment;
                if self.extra == Extra::Options {
                    // Router alert, then padding (RFC 2113).
                    header.options = Ipv4Options::from([0x94, 4, 0, 0, 1, 1, 1, 0]);
                }
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: ip_number::TCP,
                    hop_limit: self.hops,
                    source: from.ip().octets(),
                    destination: to.ip().octets(),
                };
                IpHeaders::Ipv6(header, self.extensions())
            }
            _ => panic!("{} and {} are not of one family", self.from, self.to),
        }
    }

    fn extensions(&self) -> Ipv6Extensions {
        let mut extensions = Ipv6Extensions::default();
        match self.extra {
            Extra::None => {}
            Extra::Options => {
                // PadN over all of it (RFC 8200 §4.2).
                let pad = [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &pad).expect("whole units of 8 bytes");
                extensions.hop_by_hop_options = Some(options);
            }
            Extra::Fragment => {
                extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber::TCP, IpFragOffset::ZERO, true, 7));
            }
        }
        extensions
    }

    fn tcp(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgement;
        tcp.fin = self.flags & FIN != 0;
        tcp.syn = self.flags & SYN != 0;
        tcp.rst = self.flags & RST != 0;
        tcp.psh = self.flags & PSH != 0;
        tcp.ack = self.flags & ACK != 0;
        tcp.urg = self.flags & 0x20 != 0;
        tcp.ece = self.flags & 0x40 != 0;
        tcp.cwr = self.flags & 0x80 != 0;
        tcp.set_options_raw(&self.options).expect("at most 40 bytes");
        tcp
    }
}
