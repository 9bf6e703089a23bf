//! One instance as the thread drives it: its adverts as bytes, what it holds, and who else claims it.

use std::{collections::BTreeMap, io, net::IpAddr, ops::ControlFlow, time::Duration};

use ipnet::IpNet;

use super::{
    Instance,
    claims::Claim,
    clock, framed,
    journal::{Journal, Seldom},
    links::Address,
    network::Network,
    rounds::Rounds,
    view::InstanceView,
};
use crate::host::unicast::in_hex;
use crate::vrrp::{
    Condition, Moment, Settings, View,
    packet::{Advertisement, Family, Proof, Seal, hmac},
    reception::{Auth, HmacMode, Reception},
};

/// After a takeover: frames of the former holder may still be under way.
const SETTLED: Duration = Duration::from_secs(1);
/// After a takeover, when whoever still has the VIPs is asked to say so.
const PROBE_AFTER: Duration = Duration::from_millis(1_200);
/// Between two answers to a claim: both sides may believe that they are right.
const DEFENCE: Duration = Duration::from_secs(1);

/// A conflict that nobody has renewed for this long is over.
const RETAINED: Duration = Duration::from_secs(300);

/// Somebody else said that a VIP is theirs while this node held it: another machine has the address, or the nodes do not
/// hear each other's adverts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub vip: IpAddr,
    /// Absent where the claim did not give it.
    pub mac: Option<[u8; 6]>,
    pub first: Moment,
    pub last: Moment,
    pub count: u64,
}

/// Which VIPs are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those that bear the mark of a virtual router.
    Ours,
    Anybodys,
}

pub(super) struct Running {
    pub(super) instance: Instance,
    pub(super) reception: Reception,
    /// What tracking said last.
    pub(super) told: Condition,
    /// The data plane does not take leases: without one it will not let this node claim the VIPs for long, or let it for ever. When to
    /// try again.
    pub(super) unfenced: Option<Moment>,
    /// Since when the VIPs are here.
    pub(super) held: Option<Moment>,
    pub(super) conflicts: BTreeMap<IpAddr, Conflict>,
    /// Told one by one when the VIPs come here.
    pub(super) neighbours: Rounds<(IpAddr, [u8; 6])>,
    /// When to ask whether anybody else has the VIPs.
    pub(super) probe: Option<Moment>,
    failures: Seldom,
    claims: Seldom,
    /// Where adverts come from. Kept when the interface loses it: the advert that resigns may still leave.
    source: Option<IpAddr>,
    sequence: hmac::Sequence,
    packet: Vec<u8>,
    /// Adverts that left, one for each peer.
    sent: u64,
    defended: Option<Moment>,
}

impl Running {
    pub(super) fn new(instance: Instance) -> Self {
        Self {
            reception: Reception::new(instance.rules(None)),
            told: instance.settings.condition,
            unfenced: None,
            instance,
            held: None,
            conflicts: BTreeMap::new(),
            neighbours: Rounds::default(),
            probe: None,
            failures: Seldom::default(),
            claims: Seldom::default(),
            source: None,
            sequence: hmac::Sequence::default(),
            packet: Vec::new(),
            sent: 0,
            defended: None,
        }
    }

    /// What counts for the priority.
    pub(super) fn condition(&self) -> Condition {
        Condition { fault: self.told.fault || self.unfenced.is_some(), ..self.told }
    }

    pub(super) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.instance.addresses.iter().map(IpNet::addr)
    }

    /// The address that adverts can be sent from now.
    pub(super) fn find_source(&mut self, network: &Network) -> Option<IpAddr> {
        let Instance { interface, peers, source, addresses, .. } = &self.instance;
        let family = self.instance.family();
        if !network.port(interface)?.is_ready(family, self.instance.virtual_mac) {
            return None;
        }
        let found = network.link(interface)?.source(family, *source, peers, addresses);
        self.reception.set_source(found);
        self.source = found.or(self.source);
        found
    }

    /// Sends one advert to the group or to each peer. An error if it reached nobody.
    ///
    /// Who stays master sends to the group from the virtual MAC, so that switches know where that is (RFC 9568, 7.2); who gives up, from the
    /// interface's own, so that they do not believe that it is here when the next master has spoken.
    pub(super) fn advertise(&mut self, priority: u8, stays: bool, network: &Network) -> io::Result<()> {
        let port = network.port(&self.instance.interface);
        let (Some(source), Some(port)) = (self.source, port) else {
            return Err(io::ErrorKind::NetworkDown.into());
        };
        let socket = port.adverts(self.instance.family()).ok_or(io::ErrorKind::NetworkDown)?;
        let mac = self.instance.mac().filter(|_| stays && self.instance.peers.is_empty());
        let from = mac.zip(port.claims.as_ref());
        let group = [Family::of(source).group()];
        let to = if self.instance.peers.is_empty() { &group } else { self.instance.peers.as_slice() };
        let mut outcome = Ok(());
        let mut sent = false;
        for destination in to {
            emit(&self.instance, priority, (source, *destination), &mut self.sequence, &mut self.packet)?;
            let left = match from {
                Some((mac, link)) => link.advertise(&framed::to_group(mac, source, &self.packet)),
                None => socket.send(&self.packet, source, *destination),
            };
            match left {
                Ok(()) => {
                    sent = true;
                    self.sent += 1;
                }
                Err(e) => outcome = Err(e),
            }
        }
        if sent { Ok(()) } else { outcome }
    }

    /// Makes the interface listen to the virtual MAC, if there is one; true if it did not. It goes on with that when the VIPs have gone, for
    /// what is still on its way: `host::unicast` takes it off at the end.
    pub(super) fn listen(&mut self, network: &mut Network, journal: &mut Journal) -> bool {
        let Some(mac) = self.instance.mac() else { return false };
        let Instance { name, interface, .. } = &self.instance;
        match network.listen_to(interface, mac) {
            Ok(added) => added,
            Err(e) => {
                let what = || format!("{name}: making {interface} listen to virtual MAC {}: {e}", in_hex(mac));
                journal.seldom(&mut self.failures, what);
                false
            }
        }
    }

    /// Puts the VIPs on the interface.
    pub(super) fn hold(&mut self, network: &mut Network, journal: &mut Journal) {
        let now = clock::now();
        (self.held, self.probe) = (Some(now), Some(now + PROBE_AFTER));
        self.neighbours.restart();
        self.restore(network, journal);
    }

    /// Puts back the VIPs that are not there; true if there were any.
    pub(super) fn restore(&mut self, network: &mut Network, journal: &mut Journal) -> bool {
        let Instance { name, interface, addresses, label, .. } = &self.instance;
        let mut restored = false;
        for vip in addresses {
            if network.link(interface).is_some_and(|link| link.has(vip.addr())) {
                continue;
            }
            match network.add(interface, *vip, label.as_deref()) {
                Ok(_) => {
                    restored = true;
                    journal.info(format!("{name}: VIP {vip} added to {interface}"));
                }
                Err(e) => {
                    journal.seldom(&mut self.failures, || format!("{name}: adding VIP {vip} to {interface}: {e}"))
                }
            }
        }
        restored
    }

    /// Takes the VIPs off the interface.
    pub(super) fn release(&mut self, network: &mut Network, journal: &mut Journal) {
        (self.held, self.probe) = (None, None);
        self.clear(network, Whose::Anybodys, journal);
    }

    /// Takes VIPs off that are not to be there.
    pub(super) fn clear(&mut self, network: &mut Network, whose: Whose, journal: &mut Journal) {
        let Instance { name, interface, .. } = &self.instance;
        let Some(link) = network.link(interface) else { return };
        let is_vip = |address: &Address| self.instance.addresses.iter().any(|vip| vip.addr() == address.net.addr());
        let unwanted = |address: &Address| is_vip(address) && (address.marked || whose == Whose::Anybodys);
        let present: Vec<IpNet> = link.addresses.iter().filter(|a| unwanted(a)).map(|address| address.net).collect();
        for vip in present {
            match network.remove(interface, vip) {
                Ok(true) => journal.info(format!("{name}: VIP {vip} removed from {interface}")),
                Ok(false) => {}
                Err(e) => {
                    journal.seldom(&mut self.failures, || format!("{name}: removing VIP {vip} from {interface}: {e}"));
                }
            }
        }
    }

    /// Tells everybody on the link that the VIPs are here, then the neighbours one by one, as many as the socket takes at once.
    pub(super) fn announce(&mut self, network: &mut Network, journal: &mut Journal) {
        if self.listen(network, journal) {
            let Instance { name, interface, .. } = &self.instance;
            journal.warn(format!("{name}: {interface} had lost its virtual MAC: put back"));
        }
        let Some(claims) = network.port(&self.instance.interface).and_then(|port| port.claims.as_ref()) else { return };
        let vips = || self.instance.addresses.iter().map(IpNet::addr);
        let mut outcome = Ok(());
        for vip in vips() {
            outcome = outcome.and(claims.announce(vip));
        }
        self.neighbours.go_on(|neighbour| match vips().try_for_each(|vip| claims.tell(vip, neighbour)) {
            Err(e) if is_full(&e) => ControlFlow::Break(()),
            told => {
                outcome = std::mem::replace(&mut outcome, Ok(())).and(told);
                ControlFlow::Continue(())
            }
        });
        if let Err(e) = outcome {
            journal.seldom(&mut self.failures, || format!("{}: announcing the VIPs: {e}", self.instance.name));
        }
    }

    /// Asks whether anybody else has the VIPs, if it is time.
    pub(super) fn probe(&mut self, network: &Network, now: Moment) -> io::Result<()> {
        if self.probe.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.probe = None;
        match network.port(&self.instance.interface).and_then(|port| port.claims.as_ref()) {
            Some(claims) => self.vips().try_for_each(|vip| claims.probe(vip)),
            None => Ok(()),
        }
    }

    /// Takes in a foreign claim; true if it is to be answered.
    pub(super) fn claimed(&mut self, claim: Claim, now: Moment, journal: &mut Journal) -> bool {
        if self.held.is_none_or(|since| now - since < SETTLED) {
            return false;
        }
        let Claim { vip, mac } = claim;
        let conflict = self.conflicts.entry(vip).or_insert(Conflict { vip, mac, first: now, last: now, count: 0 });
        (conflict.mac, conflict.last, conflict.count) = (mac, now, conflict.count + 1);
        journal.seldom(&mut self.claims, || {
            let by = mac.map_or_else(|| "another MAC".to_owned(), in_hex);
            format!("{}: {by} says that it has VIP {vip}, which is here", self.instance.name)
        });
        let answer = self.defended.is_none_or(|last| now - last >= DEFENCE);
        if answer {
            self.defended = Some(now);
        }
        answer
    }

    /// Writes to the log what did not succeed, but not again and again.
    pub(super) fn note(&mut self, what: &str, outcome: io::Result<()>, journal: &mut Journal) {
        if let Err(e) = outcome {
            journal.seldom(&mut self.failures, || format!("{}: {what}: {e}", self.instance.name));
        }
    }

    pub(super) fn view(&self, router: View, now: Moment) -> InstanceView {
        InstanceView {
            name: self.instance.name.clone(),
            interface: self.instance.interface.clone(),
            vrid: self.instance.vrid,
            addresses: self.instance.addresses.clone(),
            router,
            fenced: self.unfenced.is_none(),
            sent: self.sent,
            counters: self.reception.counters().clone(),
            reports: self.reception.reports(now),
            conflicts: self.conflicts.values().filter(|conflict| now - conflict.last < RETAINED).copied().collect(),
        }
    }
}

/// What waits in the socket, or in the interface's queue, has to leave first (packet_snd in net/packet/af_packet.c).
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The bytes of one advert.
fn emit(
    instance: &Instance,
    priority: u8,
    (source, destination): (IpAddr, IpAddr),
    sequence: &mut hmac::Sequence,
    packet: &mut Vec<u8>,
) -> io::Result<()> {
    let Settings { version, interval, .. } = instance.settings;
    let advertisement =
        Advertisement { version, vrid: instance.vrid, priority, interval, addresses: instance.advertised().collect() };
    let proof = match &instance.auth {
        Auth::None | Auth::Hmac { mode: HmacMode::ReceiveOnly, .. } => Proof::None,
        Auth::Password(password) => Proof::Password(password),
        Auth::Hmac { keys, mode: HmacMode::Permissive | HmacMode::Enforce } => {
            let stamp = sequence.next(clock::time_of_day(), hmac::window(interval));
            keys.first().map_or(Proof::None, |key| Proof::Hmac(key, stamp))
        }
    };
    let seal = Seal { source, destination, checksum: instance.checksum, proof };
    advertisement.emit(packet, &seal).map_err(io::Error::other)
}
