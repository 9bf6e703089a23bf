//! What the kernel and the daemon share: names, keys, values and capacities of the maps.
//!
//! Everything is `repr(C)` without implicit padding, addresses and ports are in network order, and 0 is "none".

use crate::{
    address::Address,
    conntrack::Sender,
    flow::{Flow, Key, News, mix},
    shared::is_zero,
    table::Hashing,
    wire::Tags,
};

mod balancing;
mod counter;
mod filter;
mod rate;

pub use balancing::{Balance, Load, Policy};
pub use counter::Counter;
pub use filter::Filter;
pub use rate::{Excess, Inflow, LINES, Sieve};

/// Names of programs and maps, spelled once. The kernel keeps 15 characters of them.
pub mod names {
    pub const XDP_INGRESS: &str = "xdp_ingress";
    pub const XDP_ICMP: &str = "xdp_icmp";
    pub const XDP_EXPIRED: &str = "xdp_expired";
    pub const XDP_SETTLE4: &str = "xdp_settle4";
    pub const XDP_SETTLE6: &str = "xdp_settle6";
    pub const XDP_CLOCK: &str = "xdp_clock";
    pub const TC_INGRESS: &str = "tc_ingress";
    pub const TC_EGRESS: &str = "tc_egress";
    pub const TC_LOOPBACK: &str = "tc_loopback";
    pub const CONNECT4: &str = "connect4";
    pub const CONNECT6: &str = "connect6";
    pub const GETPEERNAME4: &str = "getpeername4";
    pub const GETPEERNAME6: &str = "getpeername6";
    pub const SOCK_RELEASE: &str = "sock_release";
    /// Constants that the loader sets: the daemon's network namespace, whether the kernel lets a hook choose its error, and its ticks in a second.
    pub const HOME: &str = "HOME";
    pub const CHOOSES_ERRORS: &str = "CHOOSES_ERRORS";
    pub const TICKS_PER_SECOND: &str = "TICKS_PER_SECOND";
    pub const SETTINGS: &str = "SETTINGS";
    pub const FLOWS4: &str = "FLOWS4";
    pub const FLOWS6: &str = "FLOWS6";
    pub const SERVICES: &str = "SERVICES";
    pub const TABLES: &str = "TABLES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const POLICIES: &str = "POLICIES";
    pub const TURNS: &str = "TURNS";
    pub const LOADS: &str = "LOADS";
    pub const TRAFFIC: &str = "TRAFFIC";
    pub const PORTS: &str = "PORTS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const PROGRAMS: &str = "PROGRAMS";
    pub const LEASES: &str = "LEASES";
    pub const FENCE: &str = "FENCE";
    pub const LOCALS: &str = "LOCALS";
    pub const HASHING: &str = "HASHING";
    /// Nobody's but the daemon's: packets do without it.
    pub const NEWS: &str = "NEWS";
    pub const RANGES: &str = "RANGES";
    /// As `NEWS`.
    pub const SUSPICIONS: &str = "SUSPICIONS";
    pub const MAPS: [&str; 18] = [
        SETTINGS, HASHING, FLOWS4, FLOWS6, SERVICES, RANGES, TABLES, POLICIES, TURNS, BACKENDS, LOADS, TRAFFIC, PORTS,
        COUNTERS, PROGRAMS, LEASES, FENCE, LOCALS,
    ];
    /// The tables of connections, which mean something only together.
    pub const FLOWS: &[&str] = &[HASHING, FLOWS4, FLOWS6];
    /// What a new daemon takes over from the one before it, each group as a whole or not at all.
    pub const KEPT: [&[&str]; 6] = [FLOWS, &[TRAFFIC], &[COUNTERS], &[LEASES], &[FENCE], &[LOCALS]];
}

/// Version of what the maps in [`names::KEPT`] mean. Raise it when that changes while the sizes of keys and values stay.
pub const LAYOUT: u32 = 2;

/// Virtual servers at once.
pub const MAX_SERVICES: usize = 256;
/// Selection tables that a virtual server has in the maps.
pub const BANKS: u32 = 2;
/// Ranges of sources at once that virtual servers have rules for, over all of them.
pub const MAX_RANGES: usize = 16_384;
/// Backends at once, over all virtual servers.
pub const MAX_BACKENDS: usize = 4096;
/// Pairs of interface and VLAN tags at once.
pub const MAX_PORTS: usize = 256;
/// Connections that processes of this host have open at once. A node has a few hundred.
pub const MAX_LOCALS: usize = 65_536;
/// Leases at once: no more VIPs than virtual servers, and no more virtual MACs than virtual routers have numbers, in each family.
pub const MAX_LEASES: usize = MAX_SERVICES + 2 * 255;
/// Bytes of the ring of [`News`](crate::flow::News): 2,000 new connections in 20 ms.
pub const NEWS_BYTES: usize = 1 << 18;

/// Bytes of the ring of suspicions: a page, which is the least.
pub const SUSPICION_BYTES: usize = 1 << 12;

/// Kernel ticks between two suspicions of one backend: a third of a second at 100 a second, a thirtieth at 1,000.
pub const SUSPICION_REST: u32 = 32;

/// Connections that there is room for unless something else is configured.
pub const DEFAULT_CONNECTIONS: u32 = 262_144;

/// Place of a backend in the backend table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BackendId(pub u32);

impl BackendId {
    /// No backend: an empty slot of a selection table.
    pub const NONE: Self = Self(u32::MAX);
}

/// Number of a selection table. The daemon numbers virtual servers, each with one table; in the maps each has two banks, of which
/// one is in use and the other is filled next, and this is the number of the bank in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

impl ServiceId {
    /// Stands under the address and port of a backend: what comes from there is a reply.
    pub const BACKEND: Self = Self(u32::MAX);
}

/// What stands under [`ServiceKey::turned`], in the place of a selection table: the backend on this host that is meant by what other nodes
/// send here, and when this node chooses among all backends instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turned(u32);

/// When a node holds the VIP of a virtual server whose packets it turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holds {
    Always,
    /// While the VIP has a lease that runs.
    Leased,
    Never,
}

impl Turned {
    const LEASED: u32 = 1 << 30;
    const NEVER: u32 = 1 << 31;

    pub const fn new(backend: BackendId, holds: Holds) -> Self {
        Self(match holds {
            Holds::Always => backend.0,
            Holds::Leased => backend.0 | Self::LEASED,
            Holds::Never => backend.0 | Self::NEVER,
        })
    }

    /// As it stands in the map.
    pub const fn stored(self) -> ServiceId {
        ServiceId(self.0)
    }

    #[inline(always)]
    pub const fn of(stored: ServiceId) -> Self {
        Self(stored.0)
    }

    #[inline(always)]
    pub const fn backend(self) -> BackendId {
        BackendId(self.0 & !(Self::LEASED | Self::NEVER))
    }

    #[inline(always)]
    pub const fn holds(self) -> Holds {
        if self.0 & Self::NEVER != 0 {
            Holds::Never
        } else if self.0 & Self::LEASED != 0 {
            Holds::Leased
        } else {
            Holds::Always
        }
    }
}

/// Which address and port a virtual server answers on, or a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// IPv4 as `::ffff:a.b.c.d`.
    address: [u8; 16],
    port: [u8; 2],
    scope: [u8; 2],
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self { address, port, scope: [0; 2] }
    }

    /// A virtual server that only sockets of this host may use. Packets are never looked up under it, so that nobody reaches a
    /// loopback address from outside.
    #[inline(always)]
    pub const fn on_host(address: [u8; 16], port: [u8; 2]) -> Self {
        Self { address, port, scope: [1, 0] }
    }

    /// Where [`Turned`] stands for the virtual server with this key.
    #[inline(always)]
    #[must_use]
    pub const fn turned(self) -> Self {
        Self { scope: [2, 0], ..self }
    }

    /// Stands there if other nodes with that MAC address send here what they have chosen this host's backend for.
    #[inline(always)]
    pub const fn forwarder(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self { address: [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], port: [0; 2], scope: [3, 0] }
    }

    pub const fn address(&self) -> [u8; 16] {
        self.address
    }

    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    /// Whether only sockets of this host may use it.
    pub const fn is_on_host(&self) -> bool {
        self.scope[0] == 1
    }

    /// Whether it leads to a selection table, unless it is a backend's.
    pub const fn has_table(&self) -> bool {
        self.scope[0] < 2
    }
}

/// Who asks for a virtual server, or a range of them: the data of a key in a trie of prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Source {
    /// The virtual server's number, as the daemon counts.
    service: u32,
    /// IPv4 as `::ffff:a.b.c.d`.
    address: [u8; 16],
}

impl Source {
    /// Bits of a key whose every bit counts.
    pub const BITS: u32 = 8 * size_of::<Self>() as u32;
    /// Those of the virtual server alone.
    pub const SERVICE_BITS: u32 = u32::BITS;

    #[inline(always)]
    pub const fn new(service: ServiceId, address: [u8; 16]) -> Self {
        Self { service: service.0, address }
    }
}

/// A prefix of [`Source`]: a virtual server and, unless it is about everybody, a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    bits: u32,
    source: Source,
}

impl Range {
    /// Everybody who asks for the virtual server and is in no other range.
    pub const fn everybody(service: ServiceId) -> Self {
        Self { bits: Source::SERVICE_BITS, source: Source::new(service, [0; 16]) }
    }

    /// Addresses that have the first `length` bits of this one; the others are zero. Bits of an IPv4 address are counted from its own
    /// first one.
    pub fn new<A: Address>(service: ServiceId, network: A, length: u32) -> Self {
        let skipped = u8::BITS * (16 - size_of::<A>() as u32);
        Self { bits: Source::SERVICE_BITS + skipped + length, source: Source::new(service, network.mapped()) }
    }

    pub const fn bits(&self) -> u32 {
        self.bits
    }

    pub const fn source(&self) -> Source {
        self.source
    }

    /// Whether a source is in it.
    pub fn holds(&self, source: &Source) -> bool {
        let differing = u128::from_be_bytes(self.source.address) ^ u128::from_be_bytes(source.address);
        self.source.service == source.service && differing.leading_zeros() + Source::SERVICE_BITS >= self.bits
    }
}

/// Whether a range of sources may use a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Access(u32);

impl Access {
    pub const ALLOWED: Self = Self(0);
    pub const DENIED: Self = Self(1);

    #[inline(always)]
    pub const fn is_denied(self) -> bool {
        self.0 == Self::DENIED.0
    }
}

/// One backend of one virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Backend {
    address: [u8; 16],
    port: [u8; 2],
    flags: u8,
    reserved: u8,
    /// For the next daemon, so that it gives the same backend the same number.
    service: ServiceKey,
}

impl Backend {
    /// Its connections are lost: the next packet of each is answered with a reset.
    pub const DOWN: u8 = 1;
    /// It listens on this host.
    pub const LOCAL: u8 = 2;
    /// The entry is in use.
    pub const PRESENT: u8 = 4;
    /// Its own xvip turns what is for the virtual server: new connections are sent on as they are.
    pub const DIRECT: u8 = 8;
    /// Its check fails, and it takes new connections all the same, as all others do: what it refuses is refused.
    pub const FAILING: u8 = 16;

    pub const fn new(address: [u8; 16], port: [u8; 2], flags: u8) -> Self {
        Self { address, port, flags: flags | Self::PRESENT, reserved: 0, service: ServiceKey::new([0; 16], [0; 2]) }
    }

    /// The same, as a backend of that virtual server.
    #[must_use]
    pub const fn of(self, service: ServiceKey) -> Self {
        Self { service, ..self }
    }

    pub const fn service(&self) -> ServiceKey {
        self.service
    }

    /// An entry that stands for no backend.
    pub const fn absent() -> Self {
        Self { address: [0; 16], port: [0; 2], flags: 0, reserved: 0, service: ServiceKey::new([0; 16], [0; 2]) }
    }

    #[inline(always)]
    pub fn address<A: Address>(&self) -> A {
        A::from_mapped(&self.address)
    }

    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    #[inline(always)]
    pub const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// 1 for a flag that is set, 0 for one that is not, without a branch.
    #[inline(always)]
    pub fn has(&self, flag: u8) -> u64 {
        1 - is_zero(u64::from(self.flags & flag))
    }

    /// Its address, IPv4 as `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn mapped(&self) -> [u8; 16] {
        self.address
    }

    /// Whether this entry is the backend with that address and port, and not a successor in its place.
    #[inline(always)]
    pub fn answers<A: Address>(&self, address: &A, port: [u8; 2]) -> bool {
        // As numbers: arrays are compared by a loop.
        let same = u128::from_ne_bytes(self.address) == u128::from_ne_bytes(address.mapped());
        self.is(Self::PRESENT) && same && self.port == port
    }
}

/// A connection that a socket of this host has to a backend, while it asked for a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Local {
    /// Number of the socket's network namespace, as `SO_NETNS_COOKIE` tells it.
    pub netns: u64,
    pub backend: BackendId,
    /// Ports of the virtual server and of the backend.
    pub asked_port: [u8; 2],
    pub port: [u8; 2],
    /// What was asked for, IPv4 as `::ffff:a.b.c.d`.
    pub asked: [u8; 16],
    /// What it got.
    pub address: [u8; 16],
}

/// Traffic of one backend, counted on each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    pub connections: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

impl Traffic {
    /// Counts one packet.
    #[inline(always)]
    pub fn count(&mut self, sender: Sender, bytes: usize) {
        match sender {
            Sender::Client => {
                self.packets_in += 1;
                self.bytes_in += bytes as u64;
            }
            Sender::Backend => {
                self.packets_out += 1;
                self.bytes_out += bytes as u64;
            }
        }
    }
}

/// An interface and the tags that frames have there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Port {
    pub interface: u32,
    pub tags: Tags,
}

/// What all packets need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Raised when a route, a neighbour or a backend changes: what was looked up before is looked up again. Never 0.
    generation: u32,
    /// Not 0 if anything stands under [`ServiceKey::turned`].
    turns: u32,
    /// Addresses of virtual servers.
    pub vips: Filter,
    /// Addresses of backends on this host.
    pub locals: Filter,
    /// MAC addresses of this host, virtual ones among them: what is for another's is not carried here.
    pub macs: Filter,
}

impl Settings {
    pub const fn new(generation: u32, vips: Filter, locals: Filter, macs: Filter) -> Self {
        Self { generation, turns: 0, vips, locals, macs }
    }

    /// The same for a node that has backends which other nodes send packets for.
    #[must_use]
    pub const fn turning(self, turns: bool) -> Self {
        Self { turns: turns as u32, ..self }
    }

    #[inline(always)]
    pub const fn turns(&self) -> bool {
        self.turns != 0
    }

    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}

/// How long this node may speak for a VIP, in nanoseconds of `CLOCK_BOOTTIME`. A VIP without a lease is this node's for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    claimed_until: u64,
    carried_until: u64,
    /// All zero where the VIP is at the MAC of its interface.
    mac: [u8; 6],
    _reserved: [u8; 2],
}

impl Lease {
    /// Until when the node answers who asks for the VIP's MAC address, and until when it carries the VIP's traffic.
    pub const fn new(claimed_until: u64, carried_until: u64) -> Self {
        Self { claimed_until, carried_until, mac: [0; 6], _reserved: [0; 2] }
    }

    /// The VIP is at that virtual MAC, whatever the interface's own is.
    #[must_use]
    pub const fn at(self, mac: [u8; 6]) -> Self {
        Self { mac, ..self }
    }

    /// Where the lease of a virtual MAC itself stands: under a group address of no scope, which is nobody's VIP.
    #[inline(always)]
    pub const fn key_of(mac: [u8; 6]) -> [u8; 16] {
        let [a, b, c, d, e, f] = mac;
        [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f]
    }

    /// The virtual MAC whose lease stands under a key.
    pub fn mac_under(key: &[u8; 16]) -> Option<[u8; 6]> {
        let mac = *key.last_chunk()?;
        (Self::key_of(mac) == *key).then_some(mac)
    }

    /// The virtual MAC that the VIP is at.
    #[inline(always)]
    pub fn mac(&self) -> Option<[u8; 6]> {
        Some(self.mac).filter(|mac| *mac != [0; 6])
    }

    #[inline(always)]
    pub const fn claimed_until(&self) -> u64 {
        self.claimed_until
    }

    #[inline(always)]
    pub const fn carried_until(&self) -> u64 {
        self.carried_until
    }
}

/// The kernel tick until which this node carries VIPs without a look at their leases.
///
/// Kept as the distance to the end of all ticks. So an empty map says "for ever", and an addition and a shift tell which side a tick
/// is on: from a comparison the verifier would learn about the time, and follow all that comes after once for each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Fence(u64);

impl Fence {
    /// More than the clock ever shows.
    const END: u64 = 1 << 63;

    /// Where there are no leases.
    pub const NONE: Self = Self(0);

    /// After that tick, leases are looked at.
    pub const fn after(tick: u64) -> Self {
        Self((Self::END - 1).saturating_sub(tick))
    }

    #[inline(always)]
    pub const fn is_behind(self, now: u64) -> bool {
        self.0.wrapping_add(now) >= Self::END
    }
}

/// Spreads a client's address over a selection table.
#[inline(always)]
pub fn source_hash<A: Address>(address: &A) -> u32 {
    mix(address.digest())
}

/// Spreads a client's connections over a selection table, each by itself: by the hash of its address, and its port. Which virtual server they
/// are to makes no difference: each has a table of its own.
#[inline(always)]
pub fn flow_hash(source: u32, port: u32) -> u32 {
    mix(source ^ port.wrapping_mul(0x9e37_79b1))
}

/// Spreads sockets without an address of their own over a selection table.
#[inline(always)]
pub fn socket_hash(cookie: u64) -> u32 {
    mix(cookie as u32 ^ mix((cookie >> 32) as u32))
}

/// Sizes are part of the contract with what is already in the kernel.
const _: () = {
    assert!(size_of::<Key<crate::address::V4>>() == 12);
    assert!(size_of::<Key<crate::address::V6>>() == 36);
    assert!(size_of::<Flow<crate::address::V4>>() == 64);
    assert!(size_of::<Flow<crate::address::V6>>() == 88);
    assert!(size_of::<News<crate::address::V4>>() == 32);
    assert!(size_of::<News<crate::address::V6>>() == 80);
    assert!(size_of::<Hashing>() == 56);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Source>() == 20);
    assert!(size_of::<Access>() == 4);
    assert!(size_of::<Backend>() == 40);
    assert!(size_of::<Policy>() == 16);
    assert!(size_of::<Inflow>() == 16);
    assert!(size_of::<Sieve>() == 64);
    assert!(size_of::<Load>() == 24);
    assert!(size_of::<Traffic>() == 40);
    assert!(size_of::<Local>() == 48);
    assert!(size_of::<Port>() == 8);
    assert!(size_of::<Lease>() == 24);
    assert!(size_of::<Fence>() == 8);
    assert!(size_of::<Settings>() == 8 + 3 * 512);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Access, Backend, BackendId, Fence, Hashing, Lease, Local, Policy, Port, ServiceId, ServiceKey, Settings,
        Source, Traffic,
    };

    /// SAFETY of all: `repr(C)` or `repr(transparent)` over integers and arrays of them, no implicit padding, every bit
    /// pattern valid.
    macro_rules! pod {
        ($($type:ty),*) => { $(
            // SAFETY: see above.
            unsafe impl aya::Pod for $type {}
        )* };
    }
    pod!(
        Access, BackendId, ServiceId, ServiceKey, Source, Backend, Local, Traffic, Port, Settings, Lease, Fence,
        Hashing, Policy
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn a_fence_is_behind_whoever_is_past_its_tick() {
        let fence = Fence::after(4_295_000_000);
        assert!(!fence.is_behind(4_295_000_000));
        assert!(fence.is_behind(4_295_000_001));
        assert!(Fence::after(0).is_behind(1));
        for never in [Fence::NONE, Fence::after(u64::MAX)] {
            assert!(!never.is_behind(1 << 62));
        }
    }

    #[test]
    fn kernel_names_are_short_enough() {
        for name in names::MAPS.iter().chain(&[
            names::XDP_INGRESS,
            names::TC_INGRESS,
            names::TC_EGRESS,
            names::TC_LOOPBACK,
            names::GETPEERNAME4,
            names::SOCK_RELEASE,
        ]) {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn a_range_holds_what_begins_as_it_does() {
        let source = |service, address| Source::new(ServiceId(service), address);
        let [a, b] = [V4([10, 1, 255, 255]).mapped(), V4([10, 2, 0, 0]).mapped()];
        let range = Range::new(ServiceId(3), V4([10, 1, 0, 0]), 16);
        assert_eq!(
            (range.holds(&source(3, a)), range.holds(&source(3, b)), range.holds(&source(4, a))),
            (true, false, false)
        );
        assert!(Range::new(ServiceId(3), V4([10, 0, 0, 0]), 14).holds(&source(3, b)));
        let whole = Range::new(ServiceId(3), V4([0; 4]), 0);
        assert!(whole.holds(&source(3, b)) && !whole.holds(&source(3, [0xfd; 16])) && !whole.holds(&source(4, b)));
        let one = Range::new(ServiceId(3), V6([0xfd; 16]), 128);
        assert_eq!(one.bits(), Source::BITS);
        assert!(one.holds(&source(3, [0xfd; 16])) && !one.holds(&source(3, [0xfc; 16])));
        let everybody = Range::everybody(ServiceId(3));
        assert!(everybody.bits() < whole.bits());
        assert!(
            everybody.holds(&source(3, a))
                && everybody.holds(&source(3, [0xfd; 16]))
                && !everybody.holds(&source(4, a))
        );
    }

    #[test]
    fn a_backends_successor_is_not_the_backend() {
        let backend = Backend::new(V4([10, 0, 0, 1]).mapped(), [0x19, 0x2b], 0);
        assert!(backend.answers(&V4([10, 0, 0, 1]), [0x19, 0x2b]));
        assert!(!backend.answers(&V4([10, 0, 0, 2]), [0x19, 0x2b]));
        assert!(!Backend::absent().answers(&V4([0; 4]), [0; 2]));
    }
}
