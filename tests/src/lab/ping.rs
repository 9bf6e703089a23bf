//! ICMP echo from the calling thread's namespace, so that the lab needs no ping program.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Sends one echo request and waits for its answer; gives the time it took.
pub(super) fn ping(to: IpAddr, limit: Duration) -> io::Result<Duration> {
    let echo = IcmpEchoHeader { id: fastrand::u16(..), seq: 1 };
    let (mut socket, request) = match to {
        IpAddr::V4(_) => (
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &[]).to_bytes().to_vec(),
        ),
        // The kernel fills in ICMPv6 checksums of raw sockets (RFC 3542, section 3.1).
        IpAddr::V6(_) => (
            Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?,
            Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
        ),
    };
    let start = Instant::now();
    socket.send_to(&request, &SockAddr::from(SocketAddr::new(to, 0)))?;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let mut packet = [0; 256];
        let length = socket.read(&mut packet)?;
        if is_answer(to, &packet[..length], echo) {
            return Ok(start.elapsed());
        }
    }
}

/// A raw IPv4 socket gives the IP header too, an IPv6 one does not.
fn is_answer(from: IpAddr, packet: &[u8], echo: IcmpEchoHeader) -> bool {
    match from {
        IpAddr::V4(_) => etherparse::Ipv4HeaderSlice::from_slice(packet)
            .ok()
            .and_then(|ip| Icmpv4Header::from_slice(&packet[ip.slice().len()..]).ok())
            .is_some_and(|(icmp, _)| icmp.icmp_type == Icmpv4Type::EchoReply(echo)),
        IpAddr::V6(_) => {
            Icmpv6Header::from_slice(packet).is_ok_and(|(icmp, _)| icmp.icmp_type == Icmpv6Type::EchoReply(echo))
        }
    }
}
