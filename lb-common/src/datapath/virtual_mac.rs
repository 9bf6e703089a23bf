//! The MAC address of a virtual router (RFC 9568 §7.3), for hosts and switches that do not follow a VIP from one MAC to another. The VIPs stay
//! on their interface, which has a MAC of its own: what the host says of a VIP is given the virtual one on its way out, and what comes to
//! the virtual one is accepted.

use network_types::ip::{IpProto, Ipv6Hdr};

use super::{Outgoing, Tables};
use crate::{
    abi::Lease,
    address::{Address, V4, V6},
    frame::Frame,
    wire::{Acquaintance, Arp, Ethernet},
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The sender's MAC address, and the target's: each takes one unit of 8 bytes.
const ITS_SENDERS: [u8; 2] = [1, 1];
const ITS_TARGETS: [u8; 2] = [2, 1];
const SOURCE_MAC: usize = core::mem::offset_of!(Ethernet, source);

/// Whether a frame came to a virtual MAC that is this node's now.
#[inline(always)]
pub fn accepts<F, T>(frame: &F, tables: &T) -> bool
where
    F: Frame + ?Sized,
    T: Tables,
{
    let Ok(ethernet) = frame.get::<Ethernet>(0) else {
        return false;
    };
    let mac = ethernet.destination;
    let [0, 0, 0x5e, 0, ..] = mac else {
        return false;
    };
    tables.lease(&Lease::key_of(mac)).is_some_and(|lease| tables.uptime() <= lease.carried_until())
}

/// Gives an ARP packet that speaks for a VIP its virtual MAC. Questions speak for their sender, too.
#[inline(always)]
pub(super) fn arp<F, T>(frame: &mut F, tables: &T, at: usize) -> bool
where
    F: Outgoing + ?Sized,
    T: Tables,
{
    let Ok(arp) = frame.get::<Arp>(at) else {
        return false;
    };
    let (old, Some(mac)) = (arp.sender_hardware, mac_of(tables, V4(arp.sender))) else {
        return false;
    };
    leave(frame, mac) && frame.replace_mac(at + core::mem::offset_of!(Arp, sender_hardware), old, mac, None)
}

/// Whether ICMP follows on an IPv6 header. Behind extension headers the host sends nothing about neighbours.
#[inline(always)]
pub(super) fn is_icmp<F: Frame + ?Sized>(frame: &F, at: usize) -> bool {
    frame.get::<Ipv6Hdr>(at).is_ok_and(|header| header.next_hdr == IpProto::Ipv6Icmp as u8)
}

/// The same as for ARP for neighbour solicitations and advertisements.
#[inline(always)]
pub(super) fn neighbour<F, T>(frame: &mut F, tables: &T, at: usize) -> bool
where
    F: Outgoing + ?Sized,
    T: Tables,
{
    let message = at + Ipv6Hdr::LEN;
    let (Ok(header), Ok(said)) = (frame.get::<Ipv6Hdr>(at), frame.get::<Acquaintance>(message)) else {
        return false;
    };
    let whose = match (said.kind, said.option) {
        (SOLICITATION, ITS_SENDERS) => V6::source(header),
        (ADVERTISEMENT, ITS_TARGETS) => V6(said.target),
        _ => return false,
    };
    let (old, Some(mac)) = (said.hardware, mac_of(tables, whose)) else {
        return false;
    };
    let checksum = message + core::mem::offset_of!(Acquaintance, checksum);
    leave(frame, mac)
        && frame.replace_mac(message + core::mem::offset_of!(Acquaintance, hardware), old, mac, Some(checksum))
}

#[inline(always)]
fn mac_of<A: Address, T: Tables>(tables: &T, vip: A) -> Option<[u8; 6]> {
    tables.lease(&vip.mapped())?.mac()
}

/// By which switches learn where the virtual MAC is.
#[inline(always)]
fn leave<F: Outgoing + ?Sized>(frame: &mut F, mac: [u8; 6]) -> bool {
    let Ok(ethernet) = frame.get::<Ethernet>(0) else {
        return false;
    };
    let old = ethernet.source;
    frame.replace_mac(SOURCE_MAC, old, mac, None)
}
