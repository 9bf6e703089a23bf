//! One interface that is up: its sockets, and whether it can do what the instances on it need.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use nix::sys::epoll::Epoll;

use super::{claims::Claims, links::Link, netlink::Netlink, network::wake_on, socket::VrrpSocket};
use crate::{
    host::unicast::in_hex,
    vrrp::{Vrid, packet::Family},
};

/// What the instances of one interface need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) v4: Adverts,
    pub(super) v6: Adverts,
    /// With the virtual MACs that they are at.
    pub(super) vips: BTreeMap<IpAddr, Option<[u8; 6]>>,
}

#[derive(Debug, Default)]
pub(super) struct Adverts {
    pub(super) vrids: BTreeSet<Vrid>,
    pub(super) multicast: bool,
}

/// One interface that is up.
pub(super) struct Port {
    index: u32,
    mac: [u8; 6],
    v4: Option<VrrpSocket>,
    v6: Option<VrrpSocket>,
    pub(super) claims: Option<Claims>,
    /// Whether the interface can listen to the virtual MACs.
    takes_macs: bool,
}

impl Needs {
    pub(super) fn macs(&self) -> impl Iterator<Item = [u8; 6]> {
        self.vips.values().copied().flatten()
    }
}

impl Port {
    /// Nothing is open yet.
    pub(super) fn of(link: &Link) -> Self {
        Self { index: link.index, mac: link.mac, v4: None, v6: None, claims: None, takes_macs: false }
    }

    /// Whether it is still the same interface.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        (self.index, self.mac) == (link.index, link.mac)
    }

    /// Whether adverts can be sent, and VIPs be reached where they will be.
    pub(super) fn is_ready(&self, family: Family, virtual_mac: bool) -> bool {
        self.adverts(family).is_some() && (self.takes_macs || !virtual_mac)
    }

    pub(super) fn adverts(&self, family: Family) -> Option<&VrrpSocket> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    pub(super) fn sockets(&mut self) -> impl Iterator<Item = (&mut VrrpSocket, Family)> {
        let v6 = self.v6.iter_mut().map(|socket| (socket, Family::V6));
        self.v4.iter_mut().map(|socket| (socket, Family::V4)).chain(v6)
    }

    /// Tries whether the interface takes virtual MACs. One that has never been master does not listen to any: if the switch sent a frame to
    /// everybody, two nodes would carry it.
    pub(super) fn try_macs(&mut self, name: &str, needs: &Needs, netlink: &mut Netlink) -> Result<(), String> {
        if self.takes_macs {
            return Ok(());
        }
        for mac in needs.macs().collect::<BTreeSet<_>>() {
            let tried = netlink.listen_to(self.index, mac);
            tried.and_then(|added| if added { netlink.ignore(self.index, mac) } else { Ok(false) }).map_err(|e| {
                format!(
                    "{name} does not take what is sent to virtual MAC {}: {e}. Leave `virtual_mac` out",
                    in_hex(mac)
                )
            })?;
        }
        self.takes_macs = true;
        Ok(())
    }

    /// Opens what is needed and missing. Where one fails, the others are tried.
    pub(super) fn complete(&mut self, name: &str, needs: &Needs, epoll: &Epoll) -> io::Result<()> {
        let mut outcome = Ok(());
        for (socket, family, adverts) in [(&mut self.v4, Family::V4, &needs.v4), (&mut self.v6, Family::V6, &needs.v6)]
        {
            if socket.is_none() && !adverts.vrids.is_empty() {
                let opened =
                    VrrpSocket::open(name, self.index, family, adverts.multicast, adverts.vrids.iter().copied())
                        .and_then(|socket| wake_on(epoll, &socket.socket).map(|()| socket));
                outcome = outcome.and(opened.map(|opened| *socket = Some(opened)));
            }
        }
        // Where there is no Ethernet address, nobody resolves any.
        if self.claims.is_none() && self.mac != [0; 6] {
            let opened = Claims::open(name, self.index, self.mac, &needs.vips).and_then(|claims| {
                claims.sockets().try_for_each(|socket| wake_on(epoll, socket))?;
                Ok(claims)
            });
            outcome = outcome.and(opened.map(|opened| self.claims = Some(opened)));
        }
        outcome
    }
}
