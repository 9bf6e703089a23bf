//! How a backend is chosen, as the daemon tells the programs, and what they count for that.

use super::{BackendId, Excess};
use crate::shared::{Shared, Tally};

/// What decides which backend a new connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Balance {
    /// The client's address.
    #[default]
    SourceHash = 0,
    /// The client's address and port.
    FlowHash = 1,
    /// Whose turn it is.
    RoundRobin = 2,
    /// Who has the fewest for its weight.
    LeastConnections = 3,
}

impl Balance {
    pub const ALL: [Self; 4] = [Self::SourceHash, Self::FlowHash, Self::RoundRobin, Self::LeastConnections];

    /// Reads a stored one; what is none counts as the first.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::FlowHash,
            2 => Self::RoundRobin,
            3 => Self::LeastConnections,
            _ => Self::SourceHash,
        }
    }

    /// As it is written in files and shown.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SourceHash => "source-hash",
            Self::FlowHash => "flow-hash",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
        }
    }

    /// Whether backends take turns: then the table is [`crate::rotation`]'s, and no other node could tell which one it was.
    #[inline(always)]
    pub const fn takes_turns(self) -> bool {
        matches!(self, Self::RoundRobin | Self::LeastConnections)
    }
}

/// How a virtual server chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Policy {
    /// A [`Balance`].
    balance: u32,
    /// One more than the [`BackendId`] that processes of this host prefer; 0 if there is none.
    own: u32,
    /// New connections a second; 0 sets no limit.
    rate: u32,
    /// An [`Excess`].
    excess: u32,
}

impl Policy {
    pub const fn new(balance: Balance) -> Self {
        Self { balance: balance as u32, own: 0, rate: 0, excess: Excess::Challenge as u32 }
    }

    /// Processes of this host get that backend.
    #[must_use]
    pub const fn preferring(self, own: BackendId) -> Self {
        Self { own: own.0.wrapping_add(1), ..self }
    }

    /// That many new connections a second are taken, and what becomes of more.
    #[must_use]
    pub const fn limited(self, rate: u32, excess: Excess) -> Self {
        Self { rate, excess: excess as u32, ..self }
    }

    #[inline(always)]
    pub const fn rate(&self) -> Option<u32> {
        if self.rate == 0 { None } else { Some(self.rate) }
    }

    #[inline(always)]
    pub const fn excess(&self) -> Excess {
        Excess::from_raw(self.excess)
    }

    #[inline(always)]
    pub const fn balance(&self) -> Balance {
        Balance::from_raw(self.balance)
    }

    /// What processes of this host get, if it lives; [`BackendId::NONE`] if that is no other than what everybody gets.
    #[inline(always)]
    pub const fn own(&self) -> BackendId {
        BackendId(self.own.wrapping_sub(1))
    }
}

/// Connections that a backend has open, as counted when they begin and end. The daemon corrects it by what it finds in the tables.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Load {
    /// Those that packets are carried for.
    pub carried: Tally,
    /// Those of this host's own sockets, which go straight to it.
    pub own: Tally,
    /// How many it should have, against the others; 0 is none.
    pub weight: Shared<u32>,
    reserved: u32,
}

impl Load {
    /// All of them.
    #[inline(always)]
    pub fn open(&self) -> u64 {
        self.carried.load() + self.own.load()
    }
}
