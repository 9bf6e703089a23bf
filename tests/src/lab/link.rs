//! A packet socket on one interface of a host: whole Ethernet frames, with the kernel's time of their arrival.

use std::{
    io::{self, IoSliceMut},
    mem,
    os::fd::AsRawFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    cmsg_space,
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns},
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub type Mac = [u8; 6];

/// After this a receiver looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Link {
    socket: Socket,
    mac: Mac,
}

impl Link {
    pub(super) fn open(interface: &str, protocol: u16) -> io::Result<Self> {
        let protocol = protocol.to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        socket.bind(&address(if_nametoindex(interface)?, protocol)?)?;
        stamp(&socket)?;
        let mac = getifaddrs()?
            .filter(|known| known.interface_name == interface)
            .find_map(|known| known.address?.as_link_addr()?.addr())
            .ok_or_else(|| io::Error::other(format!("{interface} has no MAC address")))?;
        Ok(Self { socket, mac })
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }

    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Sends frames in one call; how many of them were taken.
    pub fn send_many(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let part = |frame: &Vec<u8>| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
        let mut parts: Vec<libc::iovec> = frames.iter().map(part).collect();
        let message = |part: &mut libc::iovec| {
            // SAFETY: numbers and pointers, of which all zero is a value.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        };
        let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
        // SAFETY: the messages, their parts and the frames outlive the call, with the lengths given; the kernel only reads the frames.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                // The interface's queue is full: as good as lost on the way.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// One frame's length and when it arrived; `None` when none came for a moment.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<(usize, SystemTime)>> {
        receive(&self.socket, frame)
    }
}

/// Asks the kernel for arrival times, and never waits long for what does not come.
pub fn stamp(socket: &Socket) -> io::Result<()> {
    setsockopt(socket, ReceiveTimestampns, &true)?;
    socket.set_read_timeout(Some(LOOK))
}

/// One packet's length and when it arrived, from a socket prepared by [`stamp`].
pub fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<(usize, SystemTime)>> {
    let mut space = cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()) {
        Ok(message) => message,
        Err(errno) => {
            let error = io::Error::from(errno);
            let quiet = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if quiet { Ok(None) } else { Err(error) };
        }
    };
    let arrival = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
        _ => None,
    });
    let arrival = arrival.ok_or_else(|| io::Error::other("the kernel gave no time of arrival"))?;
    Ok(Some((message.bytes, arrival)))
}

fn address(index: u32, protocol: u16) -> io::Result<SockAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: sockaddr_storage is larger than sockaddr_ll and as strictly aligned, and the length given is that of what was
    // written.
    let filled = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    filled.map(|((), address)| address)
}
