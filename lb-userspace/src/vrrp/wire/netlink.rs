//! Routing netlink without a runtime: requests that are answered before they return, and news of links and addresses.
//!
//! The kernel handles a request within the system call that sends it, so the answer is there when the call returns: nothing here waits,
//! but for the kernel's own lock (RTNL).

use std::{
    io,
    net::Ipv6Addr,
    os::fd::{AsFd, BorrowedFd},
};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::LinkMessage,
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::host::unicast;

/// The kernel sends no larger datagram (`netlink_dump` in net/netlink/af_netlink.c allocates up to 32 KiB).
const DATAGRAM: usize = 32 * 1024;
/// Receive buffer for news, in bytes: some thousand messages.
const NEWS_BUFFER: u32 = 1 << 20;
/// Metric of the route that is there for a moment.
const TOUCHING: u32 = 0x7876_6970;
const NO_WAIT: i32 = libc::MSG_DONTWAIT;

/// Sends requests.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Every link and every address of the network namespace.
    pub(super) fn dump(&mut self, mut each: impl FnMut(&RouteNetlinkMessage)) -> io::Result<()> {
        let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.request(links, NLM_F_DUMP, &mut each)?;
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.request(addresses, NLM_F_DUMP, &mut each)
    }

    /// False if it was there already.
    pub(super) fn add_address(&mut self, message: AddressMessage) -> io::Result<bool> {
        let request = RouteNetlinkMessage::NewAddress(message);
        unless(self.request(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| {}), &[libc::EEXIST])
    }

    /// False if it, or its interface, was gone already.
    pub(super) fn remove_address(&mut self, message: AddressMessage) -> io::Result<bool> {
        let request = RouteNetlinkMessage::DelAddress(message);
        unless(self.request(request, NLM_F_ACK, |_| {}), &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }

    /// Makes sockets of this host ask anew how they reach an address. IPv6 sockets keep the route that they once found until a route changes in the same
    /// table, at the address or above it (`fib6_check` in the kernel's net/ipv6/route.c): of the local table, where an address of this host goes, those do not
    /// hear that have reached it by a link until now.
    pub(super) fn touch_route(&mut self, index: u32, to: Ipv6Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet6,
            destination_prefix_length: 128,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        // With a metric that nobody else uses, so that no route of somebody's is taken off in its place.
        let metric = RouteAttribute::Priority(TOUCHING);
        message.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Oif(index), metric];
        let made =
            self.request(RouteNetlinkMessage::NewRoute(message.clone()), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| {});
        if unless(made, &[libc::EEXIST])? {
            unless(self.request(RouteNetlinkMessage::DelRoute(message), NLM_F_ACK, |_| {}), &[libc::ESRCH])?;
        }
        Ok(())
    }

    /// What interfaces listen to beside their own MAC addresses.
    pub(super) fn dump_listened(&mut self, mut each: impl FnMut(&RouteNetlinkMessage)) -> io::Result<()> {
        self.request(RouteNetlinkMessage::GetNeighbour(unicast::question()), NLM_F_DUMP, &mut each)
    }

    /// Makes an interface listen to a MAC address; false if it did already.
    pub(super) fn listen_to(&mut self, index: u32, mac: [u8; 6]) -> io::Result<bool> {
        let request = RouteNetlinkMessage::NewNeighbour(unicast::message(index, mac));
        unless(self.request(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| {}), &[libc::EEXIST])
    }

    /// The opposite; false if it did not, or is gone.
    pub(super) fn ignore(&mut self, index: u32, mac: [u8; 6]) -> io::Result<bool> {
        let request = RouteNetlinkMessage::DelNeighbour(unicast::message(index, mac));
        unless(self.request(request, NLM_F_ACK, |_| {}), &[libc::ENOENT, libc::ENODEV])
    }

    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(&RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, NO_WAIT)?;

        let mut answer = None;
        while answer.is_none() {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, NO_WAIT)?;
            for message in Messages(&self.buffer) {
                // An answer to a request that failed halfway may still be in the queue.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => answer = Some(Ok(())),
                    NetlinkPayload::Error(error) if error.code.is_none() => answer = Some(Ok(())),
                    NetlinkPayload::Error(error) => answer = Some(Err(error.to_io())),
                    NetlinkPayload::InnerMessage(inner) => each(&inner),
                    _ => {}
                }
            }
        }
        answer.unwrap_or(Ok(()))
    }
}

/// What the kernel tells without being asked.
pub(super) struct News {
    socket: Socket,
    buffer: Vec<u8>,
}

impl News {
    pub(super) fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr] {
            socket.add_membership(group as u32)?;
        }
        socket.set_rx_buf_sz(NEWS_BUFFER)?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Everything that happened since the last call. True if some of it was lost, so that [`Netlink::dump`] has to tell.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&RouteNetlinkMessage)) -> io::Result<bool> {
        let mut lost = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, NO_WAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(e) => return Err(e),
            }
            for message in Messages(&self.buffer) {
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    each(&inner);
                }
            }
        }
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The messages of one datagram; what cannot be parsed ends it.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = NetlinkMessage<RouteNetlinkMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.0).ok()?;
        // Each begins at a multiple of four.
        let length = usize::try_from(message.header.length).ok()?.next_multiple_of(4);
        self.0 = self.0.get(length..).unwrap_or_default();
        Some(message)
    }
}

/// Turns the errors that say "there is nothing to do" into `false`.
fn unless(outcome: io::Result<()>, harmless: &[i32]) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error().is_some_and(|errno| harmless.contains(&errno)) => Ok(false),
        Err(e) => Err(e),
    }
}
