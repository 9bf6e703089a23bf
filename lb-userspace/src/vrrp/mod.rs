//! Who holds a VIP among several nodes: the Virtual Router Redundancy Protocol, version 2 (RFC 3768) and 3 (RFC 9568).
//!
//! `packet`, `reception`, `machine`, `router` and `announcing` know no socket, no clock and no task: time is a parameter.

pub use action::{Action, State, View};
pub use router::Router;
pub use settings::{Condition, Settings};

mod action;
mod announcing;
pub mod hooks;
mod machine;
pub mod packet;
mod program;
pub mod reception;
mod router;
mod settings;
#[cfg(test)]
mod simulation;
pub mod tracking;
pub mod wire;

use std::{
    fmt,
    net::IpAddr,
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time: what has passed on `CLOCK_BOOTTIME` since the machine started; in tests, since the test did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub Duration);

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// What has passed since `earlier`, zero if that is in the future.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V2,
    V3,
}

impl Version {
    /// As it stands in the packet.
    pub const fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(formatter)
    }
}

/// Identifier of a virtual router in its network, 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(pub u8);

impl fmt::Display for Vrid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Position of a virtual router in the configuration of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub usize);

/// An advertisement that passed every rule on reception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub source: IpAddr,
    /// 0: the master resigns.
    pub priority: u8,
    /// Time between two advertisements of the sender.
    pub interval: Duration,
    /// When it arrived, as the kernel says, which may be long before it was read.
    pub received: Moment,
}
