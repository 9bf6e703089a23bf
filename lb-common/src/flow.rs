//! Connections: their keys, what is kept of each, and the hashes that choose for them.

use crate::{
    abi::BackendId,
    address::Address,
    checksum::Delta,
    conntrack::{Phase, Sender},
    shared::{Shared, either, is_below, opaque},
    table::QUIET,
    wire::Tags,
};

/// One direction of a connection as it arrives: addresses and ports in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct Key<A> {
    pub source: A,
    pub destination: A,
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
}

impl<A: Address> Key<A> {
    /// Equality without a branch: inside a loop, each would be one more way for the verifier to follow. The black box keeps LLVM
    /// from making branches of it again.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        let ports = |key: &Self| {
            let ([a, b], [c, d]) = (key.source_port, key.destination_port);
            u32::from_ne_bytes([a, b, c, d])
        };
        let addresses = self.source.difference(&other.source) | self.destination.difference(&other.destination);
        core::hint::black_box(addresses | (ports(self) ^ ports(other))) == 0
    }

    /// Makes this the same key as another one.
    #[inline(always)]
    pub fn set(&mut self, other: &Self) {
        (self.source, self.destination) = (other.source.copied(), other.destination.copied());
        (self.source_port, self.destination_port) = (other.source_port, other.destination_port);
    }

    /// What turning packets of `self` into packets against `other` does to a checksum that covers the ports and the
    /// pseudo-header.
    #[inline(always)]
    fn segment_delta(&self, other: &Self) -> u16 {
        let delta =
            Delta::new().word(self.source_port, other.destination_port).word(self.destination_port, other.source_port);
        let delta = self.source.delta(delta, &other.destination);
        self.destination.delta(delta, &other.source).folded()
    }
}

/// Which half of a connection an entry is, and so what is done to its packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Role(pub u8);

impl Role {
    /// Client to VIP, sent on to a remote backend.
    pub const FORWARD: Self = Self(0);
    /// Backend to VIP, turned back to the client.
    pub const REPLY: Self = Self(1);
    /// Client to VIP, passed up to a backend on this host.
    pub const LOCAL_FORWARD: Self = Self(2);
    /// What that backend sends, before it leaves.
    pub const LOCAL_REPLY: Self = Self(3);
    /// Client to VIP, sent on as it is to a remote backend whose own xvip turns it: there is no other half.
    pub const DIRECT: Self = Self(4);
    /// The same where it has arrived: passed up to a backend on this host, whoever holds the VIP.
    pub const TURNED_FORWARD: Self = Self(6);
    /// What that backend sends, before it leaves.
    pub const TURNED_REPLY: Self = Self(7);
    /// Client to VIP, for a backend on this host that knows the client by the VIP: another node carried the connection before. By way of the
    /// loopback interface, since nothing that comes by a link may be from an address of this host.
    pub const INHERITED_FORWARD: Self = Self(8);
    /// What that backend sends to the VIP, which is the loopback interface's too.
    pub const INHERITED_REPLY: Self = Self(9);

    /// Of the client's half: whether the backend is on this host, whether nodes send on to it as it is, and whether it is the client itself; 1 if
    /// so, 0 if not. Without a branch, which the verifier would follow.
    #[inline(always)]
    pub fn forward(local: u64, direct: u64, itself: u64) -> Self {
        let apart = direct & (local | (1 - itself));
        Self((opaque(local) << 1 | opaque(apart) << 2) as u8)
    }

    #[inline(always)]
    pub const fn from_client(self) -> bool {
        self.0 & 1 == 0
    }

    /// Of the other half.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        Self(self.0 ^ 1)
    }

    /// Whether the backend is on this host.
    #[inline(always)]
    pub const fn is_local(self) -> bool {
        self.0 & (Self::LOCAL_FORWARD.0 | Self::INHERITED_FORWARD.0) != 0
    }

    /// Whether the backend is on this host and knows the client by the VIP.
    #[inline(always)]
    pub const fn is_inherited(self) -> bool {
        self.0 & Self::INHERITED_FORWARD.0 != 0
    }

    /// Whether its packets are sent on as they are.
    #[inline(always)]
    pub const fn is_direct(self) -> bool {
        self.0 == Self::DIRECT.0
    }

    /// Whether its packets are for a backend on this host even if another node holds the VIP.
    #[inline(always)]
    pub const fn is_turned(self) -> bool {
        self.0 & Self::TURNED_FORWARD.0 == Self::TURNED_FORWARD.0
    }

    /// Whether it is what a backend on this host sends to its client by a link.
    #[inline(always)]
    pub const fn leaves(self) -> bool {
        self.0 & Self::LOCAL_REPLY.0 == Self::LOCAL_REPLY.0
    }
}

/// Where a packet goes next on the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// The interface that sends; 0 before it was looked up, and for backends on this host.
    pub interface: u32,
    /// The tags it must carry there.
    pub tags: Tags,
    pub destination: [u8; 6],
    pub source: [u8; 6],
}

/// One half of a tracked connection: how its packets are rewritten, and what has been seen of it.
///
/// Both halves carry all that is needed to make the other again. What is read for every packet comes first; only what is [`Shared`]
/// changes in place.
#[derive(Clone, Debug, Default)]
#[repr(C, align(8))]
pub struct Flow<A> {
    /// Key of the other half. What this half's packets become is the same, turned round. Of a [`Role::DIRECT`] one, which has no other half
    /// here, it names backend and client.
    pub other: Key<A>,
    /// Folded differences of the checksums, see [`crate::checksum`].
    pub header_delta: u16,
    pub segment_delta: u16,
    pub hop: Hop,
    /// [`crate::abi::Settings::generation`] under which `hop` and the backend's state were looked up.
    pub generation: u32,
    /// A [`BackendId`].
    backend: u16,
    pub role: Role,
    /// A [`Phase`].
    phase: Shared<u8>,
    /// Kernel ticks at the last packet, the lower half.
    last_seen: Shared<u32>,
    packets: Shared<u32>,
    /// The last number that the sender acknowledged, as on the wire: where its peer's next segment starts, and so a reset that it believes.
    acknowledged: Shared<u32>,
    bytes: Shared<u64>,
}

impl<A: Address> Flow<A> {
    /// Makes this the half for packets of `key`, with no way yet: what `hop` says counts for nothing.
    ///
    /// In place, because two of these and what it takes to make them are more than a BPF program's stack.
    #[inline(always)]
    pub fn start(&mut self, key: &Key<A>, other: &Key<A>, role: Role, backend: BackendId, phase: Phase, now: u64) {
        self.last_seen.store(now as u32);
        self.packets.store(0);
        self.acknowledged.store(0);
        self.bytes.store(0);
        self.other.set(other);
        self.role = role;
        self.backend = backend.0 as u16;
        self.phase.store(phase as u8);
        self.header_delta =
            A::header_delta((&key.source, &key.destination), (self.new_source(), self.new_destination()));
        self.segment_delta = key.segment_delta(other);
        self.generation = 0;
    }

    /// Goes on counting after so many packets.
    #[inline(always)]
    pub fn count_from(&self, packets: u32) {
        self.packets.store(packets);
    }

    /// Makes a half that was started for packets to port 0 the half for packets to `port`: where many ports are tried,
    /// only one word differs between them.
    #[inline(always)]
    pub fn set_arrival_port(&mut self, unported: u16, port: [u8; 2]) {
        self.segment_delta = Delta::resume(unported).word(port, [0; 2]).folded();
    }

    /// Keeps the way that was found for this half's packets under a generation.
    #[inline(always)]
    pub fn set_way(&mut self, hop: &Hop, generation: u32) {
        self.hop = *hop;
        self.generation = generation;
    }

    /// What packets of this half carry after they are rewritten: the other half's addresses, turned round.
    #[inline(always)]
    pub fn new_source(&self) -> &A {
        &self.other.destination
    }

    #[inline(always)]
    pub fn new_destination(&self) -> &A {
        &self.other.source
    }

    #[inline(always)]
    pub fn new_source_port(&self) -> [u8; 2] {
        self.other.destination_port
    }

    #[inline(always)]
    pub fn new_destination_port(&self) -> [u8; 2] {
        self.other.source_port
    }

    /// Notes one packet. A load and a store, not an atomic addition: a connection stays on one queue, and a lost count
    /// is cheaper than a locked instruction a packet.
    #[inline(always)]
    pub fn touch(&self, now: u64, bytes: usize, acknowledgement: [u8; 4]) {
        self.last_seen.store(now as u32);
        self.acknowledged.store(u32::from_ne_bytes(acknowledgement));
        self.packets.store(self.packets.load().wrapping_add(1));
        self.bytes.store(self.bytes.load().wrapping_add(bytes as u64));
    }

    #[inline(always)]
    pub fn phase(&self) -> Phase {
        Phase::from_raw(self.phase.load())
    }

    #[inline(always)]
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8);
    }

    /// Whether a SYN from the client starts a new connection under the same ports. Of a direct one, only the client's FIN is seen: the backend's
    /// node knows whether the connection is over.
    #[inline(always)]
    pub fn may_restart(&self) -> bool {
        let phase = self.phase();
        self.role.from_client() && (phase.may_restart() || (self.role.is_direct() && phase == Phase::ClientClosing))
    }

    /// Takes over the phase of another entry.
    #[inline(always)]
    pub fn follow(&self, other: &Self) {
        self.phase.store(other.phase.load());
    }

    /// Whether the handshake is not complete.
    #[inline(always)]
    pub fn is_half_open(&self) -> bool {
        // Below established, or refused, which is the last number.
        self.phase.load().wrapping_add(1) <= Phase::Established as u8
    }

    /// Whether the client is known to wait for its backend's first answer.
    #[inline(always)]
    pub fn is_unanswered(&self) -> bool {
        matches!(self.phase(), Phase::SynSent | Phase::Refused)
    }

    /// 1 if it is closing, 0 if not, without a branch.
    #[inline(always)]
    pub fn closing(&self) -> u64 {
        1 - is_below(u64::from(self.phase.load()), Phase::ClientClosing as u64)
    }

    /// Whose packets this half is for.
    #[inline(always)]
    pub fn sender(&self) -> Sender {
        if self.role.from_client() { Sender::Client } else { Sender::Backend }
    }

    #[inline(always)]
    pub fn backend(&self) -> BackendId {
        BackendId(u32::from(self.backend))
    }

    /// Kernel ticks at the last packet, the lower half.
    #[inline(always)]
    pub fn last_seen(&self) -> u32 {
        self.last_seen.load()
    }

    /// Ticks since the last packet.
    #[inline(always)]
    pub fn idle(&self, now: u32) -> u32 {
        /// A packet that came while somebody looked at the clock.
        const AHEAD: u32 = 1 << 24;
        let idle = u64::from(now.wrapping_sub(self.last_seen.load()));
        either(is_below(u64::from(u32::MAX - AHEAD), idle), 0, idle) as u32
    }

    /// Whether the last packet is so recent that the other half cannot have given way to another connection.
    #[inline(always)]
    pub fn is_fresh(&self, now: u64) -> bool {
        (now as u32).wrapping_sub(self.last_seen.load()) < QUIET / 2
    }

    /// The last number that the sender acknowledged, as on the wire; 0 if none is known.
    #[inline(always)]
    pub fn acknowledged(&self) -> [u8; 4] {
        self.acknowledged.load().to_ne_bytes()
    }

    /// Says what the sender is known to have acknowledged.
    #[cfg(any(test, feature = "user"))]
    pub fn set_acknowledged(&self, acknowledged: [u8; 4]) {
        self.acknowledged.store(u32::from_ne_bytes(acknowledged));
    }

    /// Whether another node told of it, and no packet of it has passed here.
    #[cfg(any(test, feature = "user"))]
    pub fn is_copy(&self) -> bool {
        self.packets.load() == 0
    }

    /// Wraps around.
    #[inline(always)]
    pub fn packets(&self) -> u32 {
        self.packets.load()
    }

    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        self.bytes.load()
    }
}

/// A connection that has been established or has ended, as the kernel side tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct News<A> {
    /// Of the client's packets.
    pub key: Key<A>,
    /// Of the backend's.
    pub other: Key<A>,
    /// See [`Flow::acknowledged`]; 0 unless the news is by the client's own packet.
    pub acknowledged: [u8; 4],
    /// A [`Phase`].
    phase: u8,
    pub role: Role,
    reserved: [u8; 2],
}

impl<A: Address> News<A> {
    /// Whether anybody wants to know that a connection has come to its phase.
    #[inline(always)]
    pub fn is_due(flow: &Flow<A>) -> bool {
        matches!(flow.phase(), Phase::Established | Phase::Closed)
    }

    /// Makes this the news of a connection that has just changed by a packet of `key`, whose entry is `flow`.
    #[inline(always)]
    pub fn tell(&mut self, key: &Key<A>, flow: &Flow<A>) {
        let (client, backend) = if flow.role.from_client() { (key, &flow.other) } else { (&flow.other, key) };
        self.key.set(client);
        self.other.set(backend);
        self.acknowledged = if flow.role.from_client() { flow.acknowledged() } else { [0; 4] };
        self.phase = flow.phase() as u8;
        self.role = flow.role;
        self.reserved = [0; 2];
    }

    pub const fn phase(&self) -> Phase {
        Phase::from_raw(self.phase)
    }
}

/// Mixes 32 bits so that each bit of the input reaches each of the output (the finaliser of MurmurHash3).
#[inline(always)]
pub const fn mix(mut bits: u32) -> u32 {
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Source ports to try for a connection, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    first: u16,
    seed: u32,
    /// Others are taken from as many ports above [`Self::FLOOR`].
    range: u16,
}

impl Ports {
    /// How many candidates are tried: each costs about 1,000 verified instructions. With a sixth of all ports to one backend taken
    /// (10,000 connections), one connection in 46,000 finds none, and its client tries again from another port.
    pub const TRIES: u32 = 6;
    /// Ports below this are left alone.
    const FLOOR: u16 = 1024;
    /// Where Linux starts to give out ports by itself (`net.ipv4.ip_local_port_range`).
    const EPHEMERAL: u16 = 32768;

    /// The same client and port have the same candidates always, so that a lost entry comes out as it was.
    /// For a remote backend the client's own port comes first, so that another node can make the same entry again.
    /// For a backend on this host it comes never: the client keeps its address there, and may have a connection from
    /// the same port to that backend directly. Ports below the ephemeral range keep the two apart.
    #[inline(always)]
    pub const fn new(own: [u8; 2], client: u32, local: bool) -> Self {
        let own = u16::from_be_bytes(own);
        let range = if local { Self::EPHEMERAL - Self::FLOOR } else { u16::MAX - Self::FLOOR };
        let first = if local { Self::FLOOR + Self::scale((own as u32) << 16, range) } else { own };
        Self { first, seed: mix(client) ^ (own as u32) << 16, range }
    }

    /// Candidate number `attempt`.
    #[inline(always)]
    pub const fn candidate(&self, attempt: u32) -> [u8; 2] {
        if attempt == 0 {
            return self.first.to_be_bytes();
        }
        let spread = mix(self.seed.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)));
        (Self::FLOOR + Self::scale(spread, self.range)).to_be_bytes()
    }

    /// Brings 32 bits into `0..range` without a division.
    #[inline(always)]
    const fn scale(bits: u32, range: u16) -> u16 {
        ((bits as u64 * range as u64) >> 32) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::V4;

    #[test]
    fn the_two_halves_undo_each_other() {
        let key = |source: u8, destination: u8, ports: [u16; 2]| Key {
            source: V4([10, 0, 0, source]),
            destination: V4([10, 0, 0, destination]),
            source_port: ports[0].to_be_bytes(),
            destination_port: ports[1].to_be_bytes(),
        };
        let (asks, answers) = (key(50, 100, [40000, 16443]), key(11, 100, [6443, 40000]));
        let (mut forward, mut reply) = (Flow::<V4>::default(), Flow::default());
        forward.start(&asks, &answers, Role::FORWARD, BackendId(3), Phase::SynSent, 9);
        reply.start(&answers, &asks, Role::REPLY, BackendId(3), Phase::SynSent, 9);
        assert_eq!((forward.new_source(), forward.new_destination()), (&V4([10, 0, 0, 100]), &V4([10, 0, 0, 11])));
        assert_eq!((reply.new_source(), reply.new_destination()), (&V4([10, 0, 0, 100]), &V4([10, 0, 0, 50])));
        assert_eq!(reply.new_source_port(), asks.destination_port);
        assert_eq!(reply.new_destination_port(), asks.source_port);
    }

    #[test]
    fn a_port_set_later_makes_no_difference() {
        let asks = Key {
            source: V4([1, 2, 3, 4]),
            destination: V4([5, 6, 7, 8]),
            source_port: [9, 10],
            destination_port: [11, 12],
        };
        let mut answers = Key { source: V4([13, 14, 15, 16]), source_port: [17, 18], destination_port: [0, 0], ..asks };
        let (mut late, mut early) = (Flow::default(), Flow::default());
        late.start(&answers, &asks, Role::REPLY, BackendId(0), Phase::SynSent, 0);
        late.set_arrival_port(late.segment_delta, [0xfe, 0xdc]);
        answers.destination_port = [0xfe, 0xdc];
        early.start(&answers, &asks, Role::REPLY, BackendId(0), Phase::SynSent, 0);
        let apply = |delta| crate::checksum::adjust([0x12, 0x34], delta);
        assert_eq!(apply(late.segment_delta), apply(early.segment_delta));
    }

    #[test]
    fn remote_backends_see_the_clients_port_first_and_local_ones_never_an_ephemeral_one() {
        for own in [1_u16, 1023, 1024, 32767, 32768, 60999, 65535] {
            let remote = Ports::new(own.to_be_bytes(), 7, false);
            assert_eq!(remote.candidate(0), own.to_be_bytes());
            let local = Ports::new(own.to_be_bytes(), 7, true);
            for attempt in 0..Ports::TRIES {
                let port = u16::from_be_bytes(local.candidate(attempt));
                assert!((1024..32768).contains(&port), "{own} gave {port}");
                assert!(u16::from_be_bytes(remote.candidate(attempt)) >= 1024 || attempt == 0);
            }
        }
    }

    #[test]
    fn candidates_differ() {
        let ports = Ports::new([0x9c, 0x40], 7, false);
        let mut seen: std::vec::Vec<_> = (0..Ports::TRIES).map(|attempt| ports.candidate(attempt)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), Ports::TRIES as usize);
    }
}
