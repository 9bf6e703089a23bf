//! The rules on reception, in the order in which an advertisement meets them; each has its counter. What breaks one is
//! kept as a report on its sender, and what deserves a line in the log is told apart from what would flood it.
//!
//! ```text
//! VRID (another one: not for us) -> length -> TTL -> version -> authentication -> interval -> type -> checksum
//!   -> multicast or unicast -> not from this node itself -> from a peer -> accepted; other addresses are only reported
//! ```

mod counters;
mod finding;
mod ledger;
mod replay;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, time::Duration};

use lb_common::checksum::{fold, sum};

use super::{
    Heard, Moment, Version, Vrid,
    packet::{
        self, AuthType, Family, Malformed, Packet, Password,
        hmac::{self, Key, Stamp, Trailer},
    },
};
pub use counters::{Counters, Discard};
pub use finding::Finding;
use ledger::Ledger;
pub use ledger::{Line, Report};
use replay::Marks;

/// What a virtual router demands of the advertisements that it hears.
#[derive(Clone, Debug)]
pub struct Rules {
    pub version: Version,
    pub vrid: Vrid,
    pub family: Family,
    pub auth: Auth,
    /// Who may send, unicast; if there is no one, everybody may, to the multicast group.
    pub peers: Vec<IpAddr>,
    /// The least TTL of what peers send. Over multicast it is always 255.
    pub min_ttl: u8,
    /// The VIPs as this node knows them.
    pub addresses: Vec<IpAddr>,
    /// Time between two advertisements of this node.
    pub interval: Duration,
    /// From where this node sends, once it is known: nobody else does.
    pub source: Option<IpAddr>,
}

/// How senders show that they belong to the virtual router.
#[derive(Clone, Debug)]
pub enum Auth {
    None,
    /// Version 2 only; in version 3 no advertisement can fulfil it.
    Password(Password),
    Hmac {
        /// The first one seals what is sent, each verifies what is heard: a new one is added behind, then moved to the
        /// front, then the old one goes.
        keys: Vec<Key>,
        mode: HmacMode,
    },
}

/// Steps in which a running cluster comes to authenticate. A trailer that is there must be right in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HmacMode {
    /// Sends none yet, accepts those without.
    ReceiveOnly,
    /// Sends one, accepts those without.
    Permissive,
    /// Sends one, demands one.
    Enforce,
}

/// What is known of a packet besides its payload.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    pub received: Moment,
    /// The same as the time since 1970, to judge the age of what is sealed.
    pub wall: Duration,
}

/// The ear of one virtual router.
#[derive(Debug)]
pub struct Reception {
    rules: Rules,
    marks: Marks,
    counters: Counters,
    ledger: Ledger,
}

impl Reception {
    pub fn new(rules: Rules) -> Self {
        let marks = Marks::new(rules.peers.len());
        Self { rules, marks, counters: Counters::default(), ledger: Ledger::default() }
    }

    /// From where this node sends may become known late, or change.
    pub fn set_source(&mut self, source: Option<IpAddr>) {
        self.rules.source = source;
    }

    /// Judges the payload of one IP packet.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn judge(&mut self, payload: &[u8], arrival: &Arrival) -> Result<Heard, Discard> {
        if Family::of(arrival.source) != self.rules.family
            || packet::vrid(payload).unwrap_or(Vrid(0)) != self.rules.vrid
        {
            return Err(self.counters.discard(Discard::OtherVrid));
        }
        let packet = Packet::new(payload, self.rules.family);
        match self.examine(payload, packet, arrival) {
            Ok((packet, sealed)) => {
                self.counters.accept(packet.priority());
                // Not before every rule is passed: a copy with a broken checksum, which is not sealed, must not make
                // the packet itself look like a repetition.
                if let Some(stamp) = sealed {
                    self.marks.raise(arrival.source, stamp);
                }
                self.remark(&packet, sealed.is_some(), arrival);
                let (source, received) = (arrival.source, arrival.received);
                Ok(Heard { source, priority: packet.priority(), interval: packet.interval(), received })
            }
            Err(finding) => {
                let discard = finding.discard().expect("what ends the examination is a reason to discard");
                self.ledger.note(arrival.source, finding, arrival.received);
                let whole = packet.ok().filter(|packet| packet.checksum(arrival.source, arrival.destination).is_some());
                if let Some(clash) = whole.and_then(|packet| self.clash(&packet)) {
                    self.ledger.note(arrival.source, clash, arrival.received);
                }
                Err(self.counters.discard(discard))
            }
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is wrong with whom, as far as it was seen lately.
    pub fn reports(&self, now: Moment) -> Vec<Report> {
        self.ledger.reports(now)
    }

    /// What deserves a line in the log since it was last asked for. To be asked after each judgement.
    pub fn next_line(&mut self) -> Option<Line> {
        self.ledger.next_line()
    }

    /// Every rule but that on the addresses, which refuses nothing; and when the packet was sealed, if it was.
    fn examine<'a>(
        &self,
        payload: &[u8],
        packet: Result<Packet<'a>, Malformed>,
        arrival: &Arrival,
    ) -> Result<(Packet<'a>, Option<Stamp>), Finding> {
        if let Err(Malformed::Truncated(length)) = packet {
            let vrid = self.rules.vrid;
            return Err(if is_carp(payload) { Finding::Carp { vrid } } else { Finding::Truncated { length } });
        }
        let least = if self.is_unicast() { self.rules.min_ttl } else { packet::TTL };
        if arrival.ttl < least {
            return Err(Finding::Ttl { ttl: arrival.ttl, least });
        }
        let ours = self.rules.version;
        let packet = match packet {
            Ok(packet) if packet.version() == ours => packet,
            _ => return Err(Finding::Version { theirs: payload[0] >> 4, ours }),
        };
        let sealed = self.authenticate(&packet, arrival)?;
        let (theirs, ours) = (packet.interval(), self.rules.interval);
        if theirs.is_zero() || (packet.version() == Version::V2 && theirs != ours) {
            return Err(Finding::Interval { theirs, ours });
        }
        if packet.packet_type() != 1 {
            return Err(Finding::Type(packet.packet_type()));
        }
        if packet.checksum(arrival.source, arrival.destination).is_none() {
            return Err(Finding::Checksum);
        }
        self.examine_way(arrival)?;
        Ok((packet, sealed))
    }

    /// The rules on where a packet comes from and goes to.
    fn examine_way(&self, arrival: &Arrival) -> Result<(), Finding> {
        match (self.is_unicast(), arrival.destination.is_multicast()) {
            (true, true) => return Err(Finding::Multicast),
            (false, false) => return Err(Finding::Unicast),
            (true, false) | (false, true) => {}
        }
        if self.rules.source == Some(arrival.source) {
            return Err(Finding::OwnSource);
        }
        if self.is_unicast() && !self.rules.peers.contains(&arrival.source) {
            return Err(Finding::NotPeer);
        }
        Ok(())
    }

    /// When the packet was sealed, if it was; or why the sender is refused.
    fn authenticate(&self, packet: &Packet<'_>, arrival: &Arrival) -> Result<Option<Stamp>, Finding> {
        if let Some(theirs) = packet.auth_type() {
            let ours = match self.rules.auth {
                Auth::Password(_) => AuthType::Password,
                Auth::None | Auth::Hmac { .. } => AuthType::None,
            };
            if theirs != ours {
                return Err(Finding::AuthType { theirs, ours });
            }
        }
        match &self.rules.auth {
            Auth::None => Ok(None),
            Auth::Password(password) => match packet.password() {
                Some(received) if password.is(&received) => Ok(None),
                _ => Err(Finding::Password),
            },
            Auth::Hmac { keys, mode } => {
                let Some(trailer) = Trailer::find(packet.rest()).map_err(|_| Finding::HmacMalformed)? else {
                    return if *mode == HmacMode::Enforce { Err(Finding::HmacMissing) } else { Ok(None) };
                };
                // Before anything is computed: old recordings must not cost a digest each.
                let (stamp, window) = (trailer.stamp(), hmac::window(self.rules.interval));
                if hmac::is_beyond(stamp, arrival.wall, window) {
                    return Err(Finding::HmacStale { ahead: stamp.ahead_of(arrival.wall) });
                }
                let id = trailer.key_id();
                let key = keys.iter().find(|key| key.id() == id).ok_or(Finding::HmacKey(id))?;
                if !key.verifies(packet.message(), arrival.source, &trailer) {
                    return Err(Finding::HmacWrong);
                }
                if !self.marks.is_new(arrival.source, stamp, arrival.wall, window) {
                    return Err(Finding::HmacReplay);
                }
                Ok(Some(stamp))
            }
        }
    }

    /// Reports what is accepted and yet not as it should be, and takes back what is no longer so.
    fn remark(&mut self, packet: &Packet<'_>, sealed: bool, arrival: &Arrival) {
        let (theirs, ours) = (packet.interval(), self.rules.interval);
        let interval = (theirs != ours).then_some(Finding::OtherInterval { theirs, ours });
        let addresses = self.clash(packet).or_else(|| self.other_addresses(packet));
        let unsealed = !sealed && matches!(self.rules.auth, Auth::Hmac { .. });
        let unsealed = unsealed.then_some(Finding::Unsealed);
        self.counters.other_addresses += u64::from(addresses.is_some());
        self.counters.other_interval += u64::from(interval.is_some());
        self.counters.unsealed += u64::from(unsealed.is_some());
        let remarks = [interval, addresses, unsealed];
        self.ledger.withdraw(arrival.source, &remarks);
        for finding in remarks.into_iter().flatten() {
            self.ledger.note(arrival.source, finding, arrival.received);
        }
    }

    /// Somebody else's virtual router: it has addresses, and none of them is ours.
    fn clash(&self, packet: &Packet<'_>) -> Option<Finding> {
        let mut addresses = packet.addresses();
        let foreign = addresses.len() > 0 && addresses.all(|address| !self.rules.addresses.contains(&address));
        foreign.then(|| Finding::Clash { vrid: self.rules.vrid, theirs: packet.addresses().collect() })
    }

    fn other_addresses(&self, packet: &Packet<'_>) -> Option<Finding> {
        let ours = &self.rules.addresses;
        let foreign: Vec<_> = packet.addresses().filter(|address| !ours.contains(address)).collect();
        let missing = |ours: &&IpAddr| packet.addresses().all(|address| address != **ours);
        let missing: Vec<_> = ours.iter().filter(missing).copied().collect();
        (!foreign.is_empty() || !missing.is_empty()).then_some(Finding::Addresses { foreign, missing })
    }

    fn is_unicast(&self) -> bool {
        !self.rules.peers.is_empty()
    }
}

/// The packet of CARP, which has the same protocol number and looks like version 2 with priority 0 and seven addresses,
/// but ends where their authentication would begin.
fn is_carp(payload: &[u8]) -> bool {
    const LEN: usize = 36;
    matches!(payload, [0x21, _, _, 7, ..]) && payload.get(..LEN).is_some_and(|packet| fold(sum(packet)) == 0xffff)
}
