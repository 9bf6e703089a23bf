//! Asks the segment a thousand times a second, by ARP or neighbour discovery, who has the VIP, and notes which MAC addresses answer. It asks with frames of its own,
//! so that no neighbour table is between the question and the answer, and from a host of its own, whose table nobody measures.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};
use etherparse::PacketBuilder;

use super::pace::{Pair, between};
use crate::lab::{Host, Mac};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// A question or two may go unanswered for reasons of the machine's.
const SILENCE: Duration = Duration::from_millis(50);
const HANDOVER: Duration = Duration::from_millis(20);
const BROADCAST: Mac = [0xff; 6];

/// Somebody who says that the VIP is his, by the kernel's time of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub at: SystemTime,
    pub mac: Mac,
    /// Unasked: a gratuitous ARP, or an unsolicited advertisement.
    pub announced: bool,
}

#[derive(Debug)]
pub struct Prober {
    claims: Arc<Mutex<Vec<Claim>>>,
    _threads: Pair,
}

impl Prober {
    /// Asks from a host's `eth0` until it is dropped. Both addresses are of one family.
    pub fn start(host: &Host, own: impl Into<IpAddr>, vip: impl Into<IpAddr>) -> Result<Self> {
        let (own, vip) = (own.into(), vip.into());
        let link = Arc::new(host.link("eth0", if vip.is_ipv4() { ETHERTYPE_ARP } else { ETHERTYPE_IPV6 })?);
        let claims: Arc<Mutex<Vec<Claim>>> = Arc::default();
        let (asking, noted) = (Arc::clone(&link), Arc::clone(&claims));
        let question = match (own, vip) {
            (IpAddr::V4(own), IpAddr::V4(vip)) => question(link.mac(), own, vip),
            (IpAddr::V6(own), IpAddr::V6(vip)) => solicitation(link.mac(), own, vip)?,
            _ => bail!("{own} cannot ask for {vip}"),
        };
        let mut frame = [0; 128];
        let hear = move || {
            if let Some((length, at)) = link.receive(&mut frame)?
                && let Some((mac, announced)) = said(&frame[..length], vip)
            {
                lock(&noted).push(Claim { at, mac, announced });
            }
            Ok(())
        };
        // A frame that cannot leave is a question without an answer.
        let threads = Pair::start(move || drop(asking.send(&question)), hear);
        Ok(Self { claims, _threads: threads })
    }

    /// Begins anew.
    pub fn forget(&self) {
        lock(&self.claims).clear();
    }

    /// Everything noted from a moment on.
    pub fn since(&self, moment: SystemTime) -> Vec<Claim> {
        lock(&self.claims).iter().filter(|claim| claim.at >= moment).copied().collect()
    }

    /// The first answer from a moment on of somebody else than `master`.
    pub fn other(&self, master: Mac, moment: SystemTime) -> Option<SystemTime> {
        self.since(moment).iter().find(|claim| !claim.announced && claim.mac != master).map(|claim| claim.at)
    }

    /// The most nodes that answered at the same time in a window, hand-overs aside.
    pub fn at_once(&self, from: SystemTime, length: Duration) -> usize {
        let answers = self.since(from).into_iter().filter(|claim| !claim.announced && claim.at <= from + length);
        at_once(&answers.map(|claim| (claim.mac, claim.at)).collect::<Vec<_>>(), HANDOVER)
    }

    /// Who answered in a window.
    pub fn owners(&self, from: SystemTime, length: Duration) -> BTreeSet<Mac> {
        let answers = self.since(from).into_iter().filter(|claim| !claim.announced && claim.at <= from + length);
        answers.map(|claim| claim.mac).collect()
    }
}

/// The MAC address by which a host answers.
pub fn mac(host: &Host) -> Result<Mac> {
    Ok(host.link("eth0", ETHERTYPE_ARP)?.mac())
}

fn lock(claims: &Mutex<Vec<Claim>>) -> MutexGuard<'_, Vec<Claim>> {
    claims.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node reigns from an answer on, as long as the next one is less than [`SILENCE`] away, but for the last `handover`: who is
/// told that another one has come goes when he hears of it, and may have answered until then.
pub fn at_once(answers: &[(Mac, SystemTime)], handover: Duration) -> usize {
    let mut reigns: Vec<(Mac, SystemTime, SystemTime)> = Vec::new();
    for &(mac, at) in answers {
        match reigns.iter_mut().rev().find(|(own, ..)| *own == mac) {
            Some((.., until)) if between(*until, at) <= SILENCE => *until = at,
            _ => reigns.push((mac, at, at)),
        }
    }
    let lasting: Vec<_> = (reigns.iter())
        .filter(|(_, from, until)| between(*from, *until) > handover)
        .map(|(_, from, until)| (*from, *until - handover))
        .collect();
    let during = |moment: SystemTime| lasting.iter().filter(|(from, until)| (*from..=*until).contains(&moment)).count();
    let most = lasting.iter().map(|(from, _)| during(*from)).max().unwrap_or_default();
    most.max(usize::from(!answers.is_empty()))
}

/// RFC 826, as a broadcast: Ethernet, IPv4, 6-byte and 4-byte addresses, request.
fn question(mac: Mac, own: Ipv4Addr, vip: Ipv4Addr) -> Vec<u8> {
    const HEADER: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];
    [&BROADCAST[..], &mac, &ETHERTYPE_ARP.to_be_bytes(), &HEADER, &mac, &own.octets(), &[0; 6], &vip.octets()].concat()
}

/// RFC 4861, 4.3: a neighbour solicitation with the asker's link-layer address, to the group of those who may have the VIP.
fn solicitation(mac: Mac, own: Ipv6Addr, vip: Ipv6Addr) -> Result<Vec<u8>> {
    let [.., a, b, c] = vip.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let builder = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0xff, a, b, c]).ipv6(own.octets(), group.octets(), 255);
    let mut frame = Vec::new();
    builder.icmpv6_raw(135, 0, [0; 4]).write(&mut frame, &[&vip.octets()[..], &[1, 1], &mac].concat())?;
    Ok(frame)
}

/// Who says in a frame that the VIP is his, and whether unasked.
fn said(frame: &[u8], vip: IpAddr) -> Option<(Mac, bool)> {
    match vip {
        IpAddr::V4(vip) => claim(frame, vip),
        IpAddr::V6(vip) => advertisement(frame, vip),
    }
}

/// The same of a neighbour advertisement, whose sender names himself in its only option (RFC 4861, 4.4).
fn advertisement(frame: &[u8], vip: Ipv6Addr) -> Option<(Mac, bool)> {
    let (ip, icmp) = frame.get(14..)?.split_at_checked(40)?;
    let is_it = ip[6] == 58 && icmp.first() == Some(&136) && icmp.get(8..24)? == vip.octets();
    let mac = icmp.get(24..32)?.strip_prefix(&[2, 1])?.try_into().ok()?;
    is_it.then_some((mac, icmp[4] & 0x40 == 0))
}

/// The sender of an ARP frame whose sender address is the VIP, and whether it was not an answer.
fn claim(frame: &[u8], vip: Ipv4Addr) -> Option<(Mac, bool)> {
    let arp = frame.get(14..42)?;
    let (operation, target) = (arp[7], &arp[24..28]);
    let sender = arp[8..14].try_into().ok()?;
    // RFC 5227, 3: an announcement may be a reply too, and then has the VIP as its target.
    (arp[14..18] == vip.octets()).then_some((sender, operation != 2 || target == vip.octets()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 21);

    #[test]
    fn answers_and_announcements_are_told_apart() {
        let mut frame = question([2; 6], VIP, VIP);
        assert_eq!(claim(&frame, VIP), Some(([2; 6], true)));
        frame[21] = 2;
        assert_eq!(claim(&frame, VIP), Some(([2; 6], true)));
        frame[38..42].copy_from_slice(&OWN.octets());
        assert_eq!(claim(&frame, VIP), Some(([2; 6], false)));
        assert_eq!(claim(&question([2; 6], OWN, VIP), VIP), None);
        assert_eq!(claim(&frame[..41], VIP), None);
    }

    #[test]
    fn advertisements_are_read_by_target_option_and_flag() {
        let [vip, own]: [Ipv6Addr; 2] = ["fd00:2::100", "fd00:2::21"].map(|text| text.parse().unwrap());
        let asked = solicitation([2; 6], own, vip).unwrap();
        assert_eq!((asked.len(), &asked[..6], asked[54]), (86, &[0x33, 0x33, 0xff, 0, 1, 0][..], 135));
        assert_eq!(said(&asked, vip.into()), None, "a question is no answer");
        let mut told = asked;
        (told[54], told[78]) = (136, 2);
        assert_eq!(said(&told, vip.into()), Some(([2; 6], true)));
        told[58] = 0x40;
        assert_eq!(said(&told, vip.into()), Some(([2; 6], false)));
        assert_eq!(said(&told, own.into()), None);
        assert_eq!(said(&told[..85], vip.into()), None);
    }

    #[test]
    fn a_handover_has_one_owner_and_two_that_go_on_are_two() {
        // Answers each 5 ms, from one time to another, in milliseconds.
        let run = |mac: u8, from: u64, to: u64| {
            let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
            (from..=to).step_by(5).map(move |ms| ([mac; 6], at(ms))).collect::<Vec<_>>()
        };
        for (runs, expected) in [
            (vec![], 0),
            (vec![run(1, 0, 0)], 1),
            (vec![run(1, 0, 500), run(2, 505, 1000)], 1),
            (vec![run(1, 0, 500), run(2, 490, 1000)], 1),
            (vec![run(1, 0, 500), run(2, 470, 1000)], 2),
            (vec![run(1, 0, 200), run(2, 210, 500), run(1, 510, 900)], 1),
            (vec![run(1, 0, 900), run(2, 0, 900), run(3, 400, 500)], 3),
        ] {
            let mut answers = runs.concat();
            answers.sort_by_key(|(_, at)| *at);
            assert_eq!(at_once(&answers, HANDOVER), expected, "{runs:?}");
        }
    }
}
