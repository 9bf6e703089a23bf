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

mod access;
mod balancing;
mod counter;
mod filter;
mod lease;
pub mod names;
#[cfg(feature = "user")]
mod pod;
mod rate;
mod service;

pub use access::{Access, Range, Source};
pub use balancing::{Balance, Load, Policy};
pub use counter::Counter;
pub use filter::Filter;
pub use lease::{Fence, Lease};
pub use rate::{Excess, Inflow, LINES, Sieve};
pub use service::{Holds, ServiceId, ServiceKey, Turned};

/// Version of what the maps in [`names::KEPT`] mean. Raise it when that changes while the sizes of keys and values stay.
pub const LAYOUT: u32 = 3;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::V4;

    #[test]
    fn a_backends_successor_is_not_the_backend() {
        let backend = Backend::new(V4([10, 0, 0, 1]).mapped(), [0x19, 0x2b], 0);
        assert!(backend.answers(&V4([10, 0, 0, 1]), [0x19, 0x2b]));
        assert!(!backend.answers(&V4([10, 0, 0, 2]), [0x19, 0x2b]));
        assert!(!Backend::absent().answers(&V4([0; 4]), [0; 2]));
    }
}
