//! The interfaces of the instances with their sockets, kept as the kernel's news of links and addresses say.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::AsFd,
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::{
    Instance,
    journal::Journal,
    links::{Link, Links, MARK},
    netlink::{Netlink, News},
    port::{Needs, Port},
};
use crate::{
    host::{
        unicast::{self, in_hex},
        vip::address_message,
    },
    vrrp::{Moment, packet::Family},
};

/// After a socket could not be opened.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Network {
    pub(super) epoll: Epoll,
    netlink: Netlink,
    news: News,
    links: Links,
    needs: BTreeMap<String, Needs>,
    ports: BTreeMap<String, Port>,
    retry: Option<Moment>,
}

impl Network {
    pub(super) fn open(instances: &[Instance], journal: &mut Journal) -> io::Result<Self> {
        let mut needs: BTreeMap<String, Needs> = BTreeMap::new();
        for instance in instances {
            let needs = needs.entry(instance.interface.clone()).or_default();
            let adverts = match instance.family() {
                Family::V4 => &mut needs.v4,
                Family::V6 => &mut needs.v6,
            };
            adverts.vrids.insert(instance.vrid);
            adverts.multicast |= instance.peers.is_empty();
            needs.vips.extend(instance.addresses.iter().map(|net| (net.addr(), instance.mac())));
        }
        // News first, so that nothing falls between them and the dump.
        let news = News::subscribe()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        wake_on(&epoll, &news)?;
        let links = Links::new(needs.keys().cloned());
        let mut network =
            Self { epoll, netlink: Netlink::open()?, news, links, needs, ports: BTreeMap::new(), retry: None };
        network.dump()?;
        network.ignore_left_overs(journal);
        network.connect(Moment::default(), journal);
        Ok(network)
    }

    /// Takes in what the kernel tells, and opens and closes sockets. `None` if nothing has changed; otherwise which interfaces
    /// have new sockets: neighbours there know nothing of us.
    pub(super) fn update(&mut self, now: Moment, journal: &mut Journal) -> Option<BTreeSet<String>> {
        let (mut told, mut unknown) = (false, false);
        let links = &mut self.links;
        let drained = self.news.drain(|message| {
            told = true;
            unknown |= links.apply(message);
        });
        let dumped = match drained {
            Ok(lost) if lost || unknown => self.dump(),
            other => other.map(drop),
        };
        if let Err(e) = dumped {
            journal.warn(format!("reading the state of the interfaces: {e}"));
            self.retry = Some(now + RETRY);
        }
        let due = self.retry.is_some_and(|retry| retry <= now);
        (told || due).then(|| self.connect(now, journal))
    }

    /// When to call [`Network::update`] without news.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.retry
    }

    pub(super) fn link(&self, interface: &str) -> Option<&Link> {
        self.links.named(interface)
    }

    pub(super) fn port(&self, interface: &str) -> Option<&Port> {
        self.ports.get(interface)
    }

    pub(super) fn ports(&mut self) -> impl Iterator<Item = (&String, &mut Port)> {
        self.ports.iter_mut()
    }

    /// The addresses that were put there for virtual routers.
    pub(super) fn marked(&self) -> Vec<(String, IpNet)> {
        let of = |name: &String| {
            let addresses = self.links.named(name).map_or(&[][..], |link| &link.addresses);
            addresses
                .iter()
                .filter(|address| address.marked)
                .map(|address| (name.clone(), address.net))
                .collect::<Vec<_>>()
        };
        self.needs.keys().flat_map(of).collect()
    }

    /// Puts a VIP on an interface; false if it was there.
    pub(super) fn add(&mut self, interface: &str, vip: IpNet, label: Option<&str>) -> io::Result<bool> {
        let Some(link) = self.links.named(interface) else { return Err(io::Error::from_raw_os_error(libc::ENODEV)) };
        let message = address_message(link.index, vip, label, MARK);
        let added = self.netlink.add_address(message.clone())?;
        if let IpAddr::V6(vip) = vip.addr() {
            // Without it, who has a socket open to the VIP finds out some seconds later.
            let _ = self.netlink.touch_route(link.index, vip);
        }
        // Not only when the kernel tells it, which would look like a loss until then.
        self.links.apply(&RouteNetlinkMessage::NewAddress(message));
        Ok(added)
    }

    /// Takes an address off an interface; false if it was not there.
    pub(super) fn remove(&mut self, interface: &str, vip: IpNet) -> io::Result<bool> {
        let Some(link) = self.links.named(interface) else { return Ok(false) };
        let message = address_message(link.index, vip, None, MARK);
        let removed = self.netlink.remove_address(message.clone())?;
        self.links.apply(&RouteNetlinkMessage::DelAddress(message));
        Ok(removed)
    }

    /// Makes an interface listen to a virtual MAC; false if it did.
    pub(super) fn listen_to(&mut self, interface: &str, mac: [u8; 6]) -> io::Result<bool> {
        let Some(link) = self.links.named(interface) else { return Err(io::Error::from_raw_os_error(libc::ENODEV)) };
        self.netlink.listen_to(link.index, mac)
    }

    /// Takes virtual MACs off that a former configuration has left on the interfaces of this one.
    fn ignore_left_overs(&mut self, journal: &mut Journal) {
        let (mut theirs, mut listened) = (BTreeSet::new(), Vec::new());
        let links = self.netlink.dump(|message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                theirs.extend(unicast::mac_of(link));
            }
        });
        let all = self.netlink.dump_listened(|message| {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
                listened.extend(unicast::listened(neighbour));
            }
        });
        if let Err(e) = links.and(all) {
            journal.warn(format!("asking what interfaces listen to: {e}"));
        }
        for (name, needs) in &self.needs {
            let Some(index) = self.links.named(name).map(|link| link.index) else { continue };
            let left = |(on, mac): &&(u32, [u8; 6])| {
                *on == index && !theirs.contains(mac) && !needs.macs().any(|wanted| wanted == *mac)
            };
            for (_, mac) in listened.iter().filter(left) {
                let what = format!("virtual MAC {} was left on {name} by a former configuration", in_hex(*mac));
                match self.netlink.ignore(index, *mac) {
                    Ok(_) => journal.info(format!("{what}: removed")),
                    Err(e) => journal.warn(format!("{what}: {e}")),
                }
            }
        }
    }

    fn dump(&mut self) -> io::Result<()> {
        self.links.clear();
        let links = &mut self.links;
        self.netlink.dump(|message| {
            links.apply(message);
        })
    }

    /// A port for each interface that is up, and none for others. One that was made anew has new sockets.
    fn connect(&mut self, now: Moment, journal: &mut Journal) -> BTreeSet<String> {
        self.retry = None;
        let mut renewed = BTreeSet::new();
        for (name, needs) in &self.needs {
            let link = self.links.named(name).filter(|link| link.up);
            let Some(link) = link else {
                self.ports.remove(name);
                continue;
            };
            let port = self.ports.remove(name).filter(|port| port.is_of(link));
            if port.is_none() {
                renewed.insert(name.clone());
            }
            let mut port = port.unwrap_or_else(|| Port::of(link));
            let completed =
                port.complete(name, needs, &self.epoll).map_err(|e| format!("opening sockets on {name}: {e}"));
            if let Err(why) = completed.and(port.try_macs(name, needs, &mut self.netlink)) {
                journal.warn(format!("{why}; trying again every second"));
                self.retry = Some(now + RETRY);
            }
            self.ports.insert(name.clone(), port);
        }
        renewed
    }
}

/// Wakes the thread when there is something to read. A descriptor that is closed is no longer watched.
pub(super) fn wake_on(epoll: &Epoll, what: impl AsFd) -> io::Result<()> {
    Ok(epoll.add(what, EpollEvent::new(EpollFlags::EPOLLIN, 0))?)
}
