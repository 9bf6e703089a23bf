//! Virtual servers: how they are numbered and found.

use super::BackendId;

/// Number of a selection table. The daemon numbers virtual servers, each with one table; in the maps each has two banks, of which
/// one is in use and the other is filled next, and this is the number of the bank in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

impl ServiceId {
    /// Stands under the address and port of a backend: what comes from there is a reply.
    pub const BACKEND: Self = Self(u32::MAX);
    /// Stands under [`ServiceKey::vip`].
    pub const VIP: Self = Self(u32::MAX - 1);
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

    /// Something stands there if packets to that address are looked at: a filter only says "perhaps".
    #[inline(always)]
    pub const fn vip(address: [u8; 16]) -> Self {
        Self { address, port: [0; 2], scope: [4, 0] }
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
