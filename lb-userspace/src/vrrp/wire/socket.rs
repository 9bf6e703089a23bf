//! Raw sockets of IP protocol 112 (RFC 9568, 5.1): one for each interface and family.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    clock::{self, Stamps},
    filter,
};
use crate::vrrp::{
    Moment, Vrid,
    packet::{Family, GROUP_V4, GROUP_V6, PROTOCOL, SERVICE_CLASS, TTL},
};

/// `TC_PRIO_CONTROL`: first out of the interface's queue.
pub(super) const QUEUE_PRIORITY: u32 = 7;
/// Receive buffer, in bytes of the kernel's counting: a thread that was stopped finds the adverts of minutes, the newest among them.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Larger than any advert: 255 IPv6 addresses with header and trailer, and the IP header.
const LARGEST: usize = 8 * 1024;

/// Sends and receives adverts on one interface.
pub(super) struct VrrpSocket {
    pub(super) socket: Socket,
    index: u32,
    stamps: Stamps,
    packet: Box<[u8; LARGEST]>,
    control: Vec<u8>,
}

/// A packet as it arrived, without its IP header.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    pub(super) payload: &'a [u8],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    pub(super) received: Moment,
}

impl VrrpSocket {
    /// Opens a socket on the interface of this name and index that receives adverts for `vrids`.
    pub(super) fn open(
        interface: &str,
        index: u32,
        family: Family,
        multicast: bool,
        vrids: impl IntoIterator<Item = Vrid>,
    ) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
        socket.attach_filter(&filter::adverts(family, vrids))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_nonblocking(true)?;
        socket.set_priority(QUEUE_PRIORITY)?;
        // Beyond net.core.rmem_max, which an administrator in a container may not.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        if family == Family::V4 {
            socket.set_ttl_v4(u32::from(TTL))?;
            socket.set_tos_v4(u32::from(SERVICE_CLASS))?;
            socket.set_multicast_ttl_v4(u32::from(TTL))?;
            socket.set_multicast_loop_v4(false)?;
            socket.set_multicast_all_v4(false)?;
            if multicast {
                socket.join_multicast_v4_n(&GROUP_V4, &socket2::InterfaceIndexOrAddress::Index(index))?;
            }
        } else {
            socket.set_unicast_hops_v6(u32::from(TTL))?;
            socket.set_tclass_v6(u32::from(SERVICE_CLASS))?;
            socket.set_multicast_hops_v6(u32::from(TTL))?;
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_all_v6(false)?;
            socket.set_recv_hoplimit_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            if multicast {
                socket.join_multicast_v6(&GROUP_V6, index)?;
            }
        }
        let control = nix::cmsg_space!(libc::timespec, libc::in6_pktinfo, libc::c_int);
        let mut socket = Self { socket, index, stamps: Stamps::default(), packet: Box::new([0; LARGEST]), control };
        // What came between the making of the socket and its binding is of other interfaces.
        while socket.receive()?.is_some() {}
        Ok(socket)
    }

    /// The next packet; `None` when there is none.
    pub(super) fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        // The clocks are read first: what arrives after an empty look is not older than this.
        let (now, time_of_day) = (clock::now(), clock::time_of_day());
        let mut parts = [IoSliceMut::new(&mut self.packet[..])];
        let received = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        );
        let message = match received {
            Ok(message) => message,
            Err(nix::errno::Errno::EAGAIN) => {
                self.stamps.emptied(now, time_of_day);
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        };
        let (mut stamp, mut hop_limit, mut destination) = (None, None, None);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::ScmTimestampns(time) => stamp = Some(time.into()),
                ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).ok(),
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                _ => {}
            }
        }
        let (length, from) = (message.bytes, message.address);
        let (now, time_of_day) = (clock::now(), clock::time_of_day());
        let received = self.stamps.arrival(stamp, now, time_of_day);
        let bytes = &self.packet[..length.min(LARGEST)];
        let datagram = match (hop_limit.zip(destination), from.as_ref().and_then(SockaddrStorage::as_sockaddr_in6)) {
            (Some((ttl, destination)), Some(from)) => {
                Datagram { payload: bytes, source: from.ip().into(), destination: destination.into(), ttl, received }
            }
            _ => from_ipv4(bytes, received)?,
        };
        Ok(Some(datagram))
    }

    /// Sends an advert from `source`, an address of this host, to the group or to one peer.
    pub(super) fn send(&self, payload: &[u8], source: IpAddr, destination: IpAddr) -> io::Result<()> {
        let (fd, parts) = (self.socket.as_raw_fd(), [IoSlice::new(payload)]);
        let flags = MsgFlags::MSG_DONTWAIT;
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: self.index.cast_signed(),
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
                sendmsg(fd, &parts, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: self.index,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.index));
                sendmsg(fd, &parts, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}

/// A raw IPv4 socket receives the header, too; the kernel has checked it and cut off the padding of the frame.
fn from_ipv4(packet: &[u8], received: Moment) -> io::Result<Datagram<'_>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let header = packet.first_chunk::<20>().ok_or_else(malformed)?;
    let length = usize::from(header[0] & 0xf) * 4;
    let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let payload = packet.get(length..).ok_or_else(malformed)?;
    Ok(Datagram { payload, source: address(12), destination: address(16), ttl: header[8], received })
}
