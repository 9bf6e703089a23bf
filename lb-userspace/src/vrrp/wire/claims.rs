//! Says on one interface who has a VIP, and hears who else says so: ARP (RFC 5227) and neighbour discovery (RFC 4861).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{filter, socket::QUEUE_PRIORITY};
use crate::host::announce::{frame, frame_for, link_address, probe};

const ETHERTYPE_ARP: u16 = 0x0806;
/// A whole ARP frame with padding, or a neighbour advertisement with more options than anyone sends.
const LARGEST: usize = 256;

/// Somebody else says that a VIP is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) vip: IpAddr,
    /// Absent where a neighbour advertisement does not give it.
    pub(super) mac: Option<[u8; 6]>,
}

/// The sockets of one interface for the VIPs of its instances.
pub(super) struct Claims {
    mac: [u8; 6],
    /// With the virtual MACs that they are at.
    vips: BTreeMap<IpAddr, Option<[u8; 6]>>,
    sender: Socket,
    /// Apart from it, which may be full of what is told to neighbours.
    adverts: Socket,
    arp: Option<Socket>,
    neighbours: Option<Socket>,
}

impl Claims {
    pub(super) fn open(
        interface: &str,
        index: u32,
        mac: [u8; 6],
        vips: &BTreeMap<IpAddr, Option<[u8; 6]>>,
    ) -> io::Result<Self> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for vip in vips.keys() {
            match vip {
                IpAddr::V4(vip) => v4.push(*vip),
                IpAddr::V6(vip) => v6.push(*vip),
            }
        }
        let (sender, adverts) = (packet_socket()?, packet_socket()?);
        sender.bind(&link_address(index, 0)?)?;
        adverts.bind(&link_address(index, 0)?)?;
        adverts.set_priority(QUEUE_PRIORITY)?;
        let ours: BTreeSet<[u8; 6]> = vips.values().copied().flatten().chain([mac]).collect();
        let (arp, neighbours) = (listen_to_arp(index, ours, v4)?, listen_to_neighbours(interface, v6)?);
        Ok(Self { mac, vips: vips.clone(), sender, adverts, arp, neighbours })
    }

    /// Those that receive.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.arp.iter().chain(&self.neighbours)
    }

    /// Tells the link that `vip` is here.
    pub(super) fn announce(&self, vip: IpAddr) -> io::Result<()> {
        self.sender.send(&frame(self.mac_of(vip), vip)).map(drop)
    }

    /// Tells one neighbour, who may have missed what was told to all.
    pub(super) fn tell(&self, vip: IpAddr, neighbour: (IpAddr, [u8; 6])) -> io::Result<()> {
        match frame_for(self.mac_of(vip), vip, neighbour) {
            Some(frame) => self.sender.send(&frame).map(drop),
            None => Ok(()),
        }
    }

    /// Asks whether anybody has `vip`; the answer is a claim.
    pub(super) fn probe(&self, vip: IpAddr) -> io::Result<()> {
        self.sender.send(&probe(self.mac, vip)).map(drop)
    }

    /// Sends an advert that is a whole frame.
    pub(super) fn advertise(&self, frame: &[u8]) -> io::Result<()> {
        self.adverts.send(frame).map(drop)
    }

    /// Hands over the claims that came, but no more than `limit`: a flood must not hold up what is more urgent.
    pub(super) fn drain(&self, limit: usize, mut each: impl FnMut(Claim)) -> io::Result<()> {
        let mut buffer = [0; LARGEST];
        for (socket, parse) in
            [(&self.arp, parse_arp as fn(&[u8]) -> Option<Claim>), (&self.neighbours, parse_advertisement)]
        {
            for _ in 0..limit {
                let Some(bytes) = socket.as_ref().map(|socket| receive(socket, &mut buffer)).transpose()?.flatten()
                else {
                    break;
                };
                if let Some(claim) = parse(bytes).filter(|claim| self.is_foreign(claim)) {
                    each(claim);
                }
            }
        }
        Ok(())
    }

    fn mac_of(&self, vip: IpAddr) -> [u8; 6] {
        self.vips.get(&vip).copied().flatten().unwrap_or(self.mac)
    }

    /// Another master at the virtual MAC is known by its adverts.
    fn is_foreign(&self, claim: &Claim) -> bool {
        claim.mac.is_none_or(|mac| mac != self.mac && mac != self.mac_of(claim.vip))
    }
}

/// Receives nothing until it is bound to an EtherType.
fn packet_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen_to_arp(index: u32, ours: BTreeSet<[u8; 6]>, vips: Vec<Ipv4Addr>) -> io::Result<Option<Socket>> {
    if vips.is_empty() {
        return Ok(None);
    }
    let socket = packet_socket()?;
    socket.attach_filter(&filter::arp_claims(ours, vips))?;
    socket.bind(&link_address(index, ETHERTYPE_ARP)?)?;
    Ok(Some(socket))
}

/// What came before the socket was bound is of other interfaces, and is thrown away.
fn listen_to_neighbours(interface: &str, vips: Vec<Ipv6Addr>) -> io::Result<Option<Socket>> {
    if vips.is_empty() {
        return Ok(None);
    }
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&filter::advertised_targets(vips))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let mut buffer = [0; LARGEST];
    while receive(&socket, &mut buffer)?.is_some() {}
    Ok(Some(socket))
}

fn receive<'a>(socket: &Socket, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => Ok(Some(&buffer[..length])),
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn parse_arp(frame: &[u8]) -> Option<Claim> {
    let (mac, vip) = (frame.get(22..28)?, frame.get(28..32)?);
    Some(Claim { vip: IpAddr::from(<[u8; 4]>::try_from(vip).ok()?), mac: mac.try_into().ok() })
}

/// RFC 4861, 4.4: options follow after 24 bytes, their length in units of 8; type 2 is the target's link-layer address.
fn parse_advertisement(message: &[u8]) -> Option<Claim> {
    let vip = IpAddr::from(<[u8; 16]>::try_from(message.get(8..24)?).ok()?);
    let mut options = message.get(24..)?;
    let mut mac = None;
    while let [kind, units, ..] = options
        && *units > 0
    {
        if *kind == 2 {
            mac = options.get(2..8).and_then(|mac| mac.try_into().ok());
        }
        options = options.get(usize::from(*units) * 8..).unwrap_or_default();
    }
    Some(Claim { vip, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 1];

    #[test]
    fn what_a_node_announces_is_what_another_hears() {
        let vip = "192.168.2.100".parse().unwrap();
        assert_eq!(parse_arp(&frame(MAC, vip)), Some(Claim { vip, mac: Some(MAC) }));
        let vip = "fd00:2::100".parse().unwrap();
        assert_eq!(parse_advertisement(&frame(MAC, vip)[54..]), Some(Claim { vip, mac: Some(MAC) }));
    }

    #[test]
    fn what_is_cut_off_or_has_no_address_does_no_harm() {
        let vip = "fd00:2::100".parse().unwrap();
        let whole = frame(MAC, vip)[54..].to_vec();
        for length in 24..32 {
            assert_eq!(parse_advertisement(&whole[..length]), Some(Claim { vip, mac: None }), "{length} bytes");
        }
        // An option of length zero would never end; one that is too long ends the message.
        for units in [0, 9] {
            let odd = [&whole[..24], &[1, units, 0, 0, 0, 0, 0, 0], &whole[24..]].concat();
            assert_eq!(parse_advertisement(&odd), Some(Claim { vip, mac: None }), "{units} units");
        }
        assert_eq!(parse_advertisement(&whole[..23]), None);
        assert_eq!(parse_arp(&[0; 31]), None);
    }
}
