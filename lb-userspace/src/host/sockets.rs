//! Sockets of this host by the kernel's socket diagnostics (sock_diag(7)): finding those that are connected to a backend, and closing them.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// linux/sock_diag.h and linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_HEADER: usize = 16;
/// struct inet_diag_req_v2: family, protocol, extensions, padding, states, then the identity.
const REQUEST: usize = 8;
/// struct inet_diag_msg: family, state, timer, retransmissions, then the identity.
const MESSAGE: usize = 4;
/// struct inet_diag_sockid: ports, addresses, interface, cookie.
const IDENTITY: usize = 48;
/// A dump fills this at most (kernel: `netlink_dump`).
const BUFFER: usize = 32 * 1024;

/// States of include/net/tcp_states.h with a backend at the other end: all but TIME_WAIT, CLOSE, LISTEN and those of accepting.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

type Identity = [u8; IDENTITY];

/// Closes the TCP sockets of this thread's network namespace that are connected to `backend` and have one of these cookies: whoever waits on
/// one wakes with ECONNABORTED, and the backend, should it live, is sent a reset. Gives how many there were.
///
/// # Errors
/// `Unsupported` where the kernel was built without CONFIG_INET_DIAG_DESTROY, `PermissionDenied` without CAP_NET_ADMIN.
pub fn close(backend: SocketAddr, cookies: &BTreeSet<u64>) -> io::Result<usize> {
    let netlink = open()?;
    let mut closed = 0;
    // An IPv6 socket may be connected to either.
    let families = if backend.is_ipv4() { &[libc::AF_INET, libc::AF_INET6][..] } else { &[libc::AF_INET6] };
    for &family in families {
        for identity in connected(&netlink, family, backend)? {
            if cookies.contains(&cookie(&identity)) && destroy(&netlink, family, &identity)? {
                closed += 1;
            }
        }
    }
    Ok(closed)
}

/// Whether sockets can be closed here, by asking for one that does not exist.
///
/// # Errors
/// As [`close`].
pub fn probe() -> io::Result<()> {
    let mut identity = [0; IDENTITY];
    // Any cookie: port 0 is nobody's.
    identity[40..].fill(0xff);
    destroy(&open()?, libc::AF_INET, &identity).map(drop)
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?)
}

/// Sockets of one family with that peer.
fn connected(netlink: &OwnedFd, family: i32, peer: SocketAddr) -> io::Result<Vec<Identity>> {
    let mut wanted = [0; IDENTITY];
    // The kernel filters by ports; addresses are few enough then.
    wanted[2..4].copy_from_slice(&peer.port().to_be_bytes());
    ask(netlink, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, &wanted)?;
    let address = address(family, peer.ip());
    let mut found = Vec::new();
    let mut buffer = [0; BUFFER];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, payload) in messages(&buffer[..length]) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return Err(refusal(payload).unwrap_or(io::ErrorKind::InvalidData.into())),
                _ => {
                    let identity = payload.get(MESSAGE..MESSAGE + IDENTITY).and_then(|bytes| bytes.try_into().ok());
                    found.extend(identity.filter(|identity: &Identity| identity[20..36] == address));
                }
            }
        }
    }
}

/// Whether it was still there.
fn destroy(netlink: &OwnedFd, family: i32, identity: &Identity) -> io::Result<bool> {
    ask(netlink, SOCK_DESTROY, libc::NLM_F_ACK, family, identity)?;
    let mut buffer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let (_, payload) = messages(&buffer[..length]).next().ok_or(io::ErrorKind::InvalidData)?;
    match refusal(payload) {
        None => Ok(true),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(error) => Err(error),
    }
}

fn ask(netlink: &OwnedFd, kind: u16, flags: i32, family: i32, identity: &Identity) -> io::Result<()> {
    let mut request = Vec::with_capacity(NLMSG_HEADER + REQUEST + IDENTITY);
    request.extend(((NLMSG_HEADER + REQUEST + IDENTITY) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    // Sequence and port: one request at a time, and the kernel knows whose.
    request.extend([0; 8]);
    request.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(identity);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    Ok(())
}

/// An address as sockets of a family have it.
fn address(family: i32, address: IpAddr) -> [u8; 16] {
    match (address, family) {
        (IpAddr::V4(v4), libc::AF_INET) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        (IpAddr::V4(v4), _) => v4.to_ipv6_mapped().octets(),
        (IpAddr::V6(v6), _) => Ipv6Addr::octets(&v6),
    }
}

fn cookie(identity: &Identity) -> u64 {
    let word = |at: usize| u32::from_ne_bytes([identity[at], identity[at + 1], identity[at + 2], identity[at + 3]]);
    u64::from(word(44)) << 32 | u64::from(word(40))
}

/// Kind and payload of each message of a datagram; each begins at a multiple of 4 (NLMSG_ALIGN).
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (rest.first_chunk::<4>()?, rest.get(4..6)?);
        let length = u32::from_ne_bytes(*length) as usize;
        let payload = rest.get(NLMSG_HEADER..length)?;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// What a struct nlmsgerr says: the negated error, 0 for none.
fn refusal(payload: &[u8]) -> Option<io::Error> {
    match payload.first_chunk::<4>().map(|error| i32::from_ne_bytes(*error)) {
        Some(0) => None,
        Some(error) => Some(Errno::from_raw(-error).into()),
        None => Some(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_apart_and_a_short_one_ends_them() {
        let mut datagram = Vec::new();
        for (kind, payload) in [(20_u16, &b"abcde"[..]), (3, b"")] {
            datagram.extend(((NLMSG_HEADER + payload.len()) as u32).to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 10]);
            datagram.extend(payload);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        datagram.extend(100_u32.to_ne_bytes());
        datagram.extend([0; 20]);
        let found: Vec<_> = messages(&datagram).collect();
        assert_eq!(found, [(20, &b"abcde"[..]), (3, &b""[..])]);
    }

    #[test]
    fn a_cookie_is_two_words_the_lower_first() {
        let mut identity = [0; IDENTITY];
        identity[40..44].copy_from_slice(&7_u32.to_ne_bytes());
        identity[44..48].copy_from_slice(&1_u32.to_ne_bytes());
        assert_eq!(cookie(&identity), 1 << 32 | 7);
    }

    #[test]
    fn addresses_stand_as_their_sockets_have_them() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(address(libc::AF_INET, v4)[..5], [10, 0, 0, 1, 0]);
        assert_eq!(address(libc::AF_INET6, v4)[10..], [0xff, 0xff, 10, 0, 0, 1]);
    }
}
