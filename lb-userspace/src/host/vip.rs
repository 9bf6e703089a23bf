//! A VIP on an interface of this host: put there as a host address, and taken away again exactly where it was not there before.
//!
//! The kernel must not choose a VIP as the source of the host's own connections, or they die when the VIP moves.
//! IPv6 would prefer the /128 by longest match (RFC 6724, 5, rule 8), so its preferred lifetime is zero: a deprecated address
//! loses to any other (rule 3). IPv4 knows no such rule, but picks the first address in the gateway's or destination's subnet
//! (`inet_select_addr`), and a /32 has none; it is of global scope because the kernel lists narrower scopes first, where
//! programs that take the first address of an interface, such as kubelet, would find it.
//! One case remains: a route without gateway and without `src` takes the interface's first address, which is the VIP only after
//! the host's own address has been taken away and put back.

use std::{collections::BTreeSet, net::IpAddr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use log::info;
use rtnetlink::{
    Handle,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo},
        link::LinkMessage,
    },
};

use super::{Interface, NetlinkError, interface::address_of};

/// Marks the addresses that xvip added (attribute IFA_PROTO), so that one left by a crash is known as
/// its own. Kernels before 5.18 drop the mark: there a left-over VIP counts as the administrator's and stays.
pub const ADDRESS_PROTOCOL: u8 = 0x58;

/// Marks the addresses of virtual routers, which move: those are told from the VIPs that a node holds always.
pub const ROUTER_PROTOCOL: u8 = 0x59;

/// A lifetime without end, in seconds (`INFINITY_LIFE_TIME` of the kernel's addrconf.h).
const FOREVER: u32 = u32::MAX;

/// An address held on an interface. [`Vip::release`] gives it back; dropping it leaves the address where it is, as a crash does.
#[derive(Debug)]
pub struct Vip {
    handle: Handle,
    address: IpAddr,
    index: u32,
    interface: String,
    added: bool,
}

impl Vip {
    /// Puts `address` on `interface` unless it is there. One that is there already is left in place at the end, too,
    /// unless a former xvip put it there.
    pub async fn hold(handle: &Handle, address: IpAddr, interface: &Interface) -> Result<Self, NetlinkError> {
        let mut vip = Self {
            handle: handle.clone(),
            address,
            index: interface.index,
            interface: interface.name.clone(),
            added: false,
        };
        vip.ensure().await?;
        Ok(vip)
    }

    /// Puts the address back if something took it away; true if it did. Call it when the addresses changed.
    pub async fn ensure(&mut self) -> Result<bool, NetlinkError> {
        self.find_interface().await?;
        match self.present().await? {
            Some(message) if is_marked(&message, ADDRESS_PROTOCOL) => {
                if !self.added {
                    info!("VIP {} on {} was left by a former xvip: adopted", self.address, self.interface);
                }
                self.added = true;
                Ok(false)
            }
            Some(_) => Ok(false),
            None => self.add().await,
        }
    }

    /// Takes the address away if this daemon (or a former one) added it. One that is gone already is no error.
    pub async fn release(self) -> Result<(), NetlinkError> {
        if !self.added {
            info!("VIP {} was on {} before: left in place", self.address, self.interface);
            return Ok(());
        }
        let removed = self.handle.address().del(self.message()).execute().await;
        match removed.map_err(|e| self.error("removing", e)) {
            Err(e) if !matches!(e.errno(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Err(e),
            _ => {
                info!("VIP {} removed from {}", self.address, self.interface);
                Ok(())
            }
        }
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether [`Vip::release`] takes the address away.
    pub fn added(&self) -> bool {
        self.added
    }

    /// An interface that was deleted and made again has another number.
    async fn find_interface(&mut self) -> Result<(), NetlinkError> {
        let link = self.handle.link().get().match_name(self.interface.clone()).execute();
        let found: Vec<LinkMessage> =
            link.try_collect().await.map_err(|e| self.error("looking for the interface of", e))?;
        if let Some(link) = found.first() {
            self.index = link.header.index;
        }
        Ok(())
    }

    async fn add(&mut self) -> Result<bool, NetlinkError> {
        let mut request = self.handle.address().add(self.index, self.address, 0);
        *request.message_mut() = self.message();
        match request.execute().await.map_err(|e| self.error("adding", e)) {
            Ok(()) => {
                info!("VIP {} added to {}", self.address, self.interface);
                self.added = true;
                Ok(true)
            }
            // Somebody was faster, so it is theirs.
            Err(e) if e.errno() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn present(&self) -> Result<Option<AddressMessage>, NetlinkError> {
        let (index, address) = (self.index, self.address);
        // A stream that is dropped early would leave the rest of the dump to be logged as unexpected.
        let all: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(|e| self.error("looking for", e))?;
        let is_it =
            |m: &AddressMessage| m.header.index == index && address_of(m).is_some_and(|net| net.addr() == address);
        Ok(all.into_iter().find(is_it))
    }

    fn message(&self) -> AddressMessage {
        address_message(self.index, IpNet::from(self.address), None, ADDRESS_PROTOCOL)
    }

    fn error(&self, verb: &str, source: rtnetlink::Error) -> NetlinkError {
        NetlinkError::new(format!("{verb} VIP {} on {}", self.address, self.interface), source)
    }
}

/// Takes those of the addresses away that a daemon has left on any interface, and tells which.
pub async fn remove_left(handle: &Handle, vips: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, NetlinkError> {
    let failed = |source| NetlinkError::new("removing VIPs that were left", source);
    let all: Vec<AddressMessage> = handle.address().get().execute().try_collect().await.map_err(failed)?;
    let mut removed = Vec::new();
    let left =
        |message: &AddressMessage| [ADDRESS_PROTOCOL, ROUTER_PROTOCOL].iter().any(|mark| is_marked(message, *mark));
    for message in all.into_iter().filter(left) {
        if let Some(address) = address_of(&message).map(|net| net.addr()).filter(|address| vips.contains(address)) {
            handle.address().del(message).execute().await.map_err(failed)?;
            removed.push(address);
        }
    }
    Ok(removed)
}

/// The request that puts `net` on an interface, or takes it away: no source of the host's own connections, usable at once, `mark`ed.
/// A label is IPv4's only.
pub(crate) fn address_message(index: u32, net: IpNet, label: Option<&str>, mark: u8) -> AddressMessage {
    let address = net.addr();
    // Even of a single IPv6 address the kernel makes a route to the prefix, in the table of the routes by which it went to the address before. By that,
    // sockets that have kept such a route ask again (`fib6_check`); of the local table's they would not hear.
    let flags = AddressFlags::Nodad;
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    // Duplicate detection would keep the address unusable for a second, and for good where the former holder still answers.
    message.header.flags = AddressHeaderFlags::Nodad;
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_valid = FOREVER;
    lifetime.ifa_preferred = 0;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(flags),
        AddressAttribute::CacheInfo(lifetime),
        AddressAttribute::Protocol(AddressProtocol::Other(mark)),
    ];
    message
        .attributes
        .extend(label.filter(|_| address.is_ipv4()).map(|label| AddressAttribute::Label(label.to_owned())));
    message
}

/// Whether the address bears this mark.
pub(crate) fn is_marked(message: &AddressMessage, mark: u8) -> bool {
    message.attributes.contains(&AddressAttribute::Protocol(AddressProtocol::Other(mark)))
}
