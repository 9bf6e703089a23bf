//! Resets in the name of a VIP. The kernel finds their way, as for a connection of its own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use lb_common::checksum::{fold, sum};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Send buffer in bytes of the kernel's counting: packets to neighbours that do not answer stay in it for seconds, and are not to hold up
/// those to the others.
const SEND_BUFFER: usize = 32 << 20;
const TTL: u8 = 64;
/// Data offset in words, in the upper half.
const NO_OPTIONS: u8 = 5 << 4;
const RST: u8 = 4;

/// What tells a client that its connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The VIP and port.
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// The next one that the client waits for, as on the wire: any other it does not believe at once.
    pub sequence: [u8; 4],
}

/// Sends resets from one VIP.
#[derive(Debug)]
pub struct ResetSocket(Socket);

impl ResetSocket {
    /// Opens a socket that sends and receives nothing.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the VIP is not on this host.
    pub fn open(vip: IpAddr) -> io::Result<Self> {
        let vip = SocketAddr::new(vip, 0);
        let raw = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::for_address(vip), Type::RAW, Some(raw))?;
        socket.bind(&vip.into())?;
        socket.set_nonblocking(true)?;
        // Beyond net.core.wmem_max; in a container without the right to that, what there is must do.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER);
        Ok(Self(socket))
    }

    /// # Errors
    /// `WouldBlock` while too much is on its way.
    pub fn send(&self, reset: &Reset) -> io::Result<()> {
        // With a port the kernel would take it for a protocol number in IPv6.
        let to = SocketAddr::new(reset.to.ip(), 0);
        self.0.send_to(&packet(reset), &to.into()).map(drop)
    }
}

/// The IP packet. Nothing where the two ends are of different families, which those of no connection are.
fn packet(reset: &Reset) -> Vec<u8> {
    let ports = [reset.from.port().to_be_bytes(), reset.to.port().to_be_bytes()].concat();
    let mut segment = [&ports[..], &reset.sequence, &[0; 4], &[NO_OPTIONS, RST], &[0; 6]].concat();
    let protocol = libc::IPPROTO_TCP as u8;
    let length = segment.len() as u8;
    let (header, addresses) = match (reset.from.ip(), reset.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            // Do not fragment; the kernel fills in the checksum (raw(7)).
            (vec![0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, TTL, protocol, 0, 0], addresses)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (vec![0x60, 0, 0, 0, 0, length, protocol, TTL], [from.octets(), to.octets()].concat())
        }
        _ => return Vec::new(),
    };
    let checksum = !fold(sum(&addresses) + sum(&[0, protocol, 0, length]) + sum(&segment));
    segment[16..18].copy_from_slice(&checksum.to_ne_bytes());
    [header, addresses, segment].concat()
}

#[cfg(test)]
mod tests {
    //! A checksum is right where everything it covers, itself included, sums up to all ones.

    use super::*;

    fn reset(from: &str, to: &str) -> Reset {
        Reset { from: from.parse().unwrap(), to: to.parse().unwrap(), sequence: [0x12, 0x34, 0x56, 0x78] }
    }

    #[test]
    fn a_reset_over_ipv4() {
        let packet = packet(&reset("192.168.2.100:16443", "10.0.0.50:40000"));
        let (header, segment) = packet.split_at(20);
        assert_eq!(header, [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 168, 2, 100, 10, 0, 0, 50]);
        assert_eq!(segment[..16], [0x40, 0x3b, 0x9c, 0x40, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0x50, 4, 0, 0]);
        assert_eq!(fold(sum(&header[12..]) + sum(&[0, 6, 0, 20]) + sum(segment)), 0xffff);
    }

    #[test]
    fn a_reset_over_ipv6() {
        let packet = packet(&reset("[fd00:2::100]:16443", "[fd00:2::50]:40000"));
        let (header, segment) = packet.split_at(40);
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 20, 6, 64]);
        assert_eq!((header[9], header[23], header[39]), (0, 0, 0x50));
        assert_eq!(segment[..16], [0x40, 0x3b, 0x9c, 0x40, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0x50, 4, 0, 0]);
        assert_eq!(fold(sum(&header[8..]) + sum(&[0, 6, 0, 20]) + sum(segment)), 0xffff);
    }
}
