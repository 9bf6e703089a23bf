//! Which backend a new connection gets: the slot of its virtual server's table that the policy says.
//!
//! ```text
//!  source-hash        the slot of the client's address
//!  flow-hash          the slot of its address and port
//!  round-robin        the next slot; the table has the backends in turns
//!  least-connections  of the next slots, the one whose backend has the fewest connections for its weight
//! ```

use super::Tables;
use crate::{
    abi::{Backend, BackendId, Balance, Load, ServiceId, flow_hash},
    maglev::{self, SLOTS},
    shared::{either, is_below},
};

/// Who asks for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The hash of the client's address.
    pub source: u32,
    /// What tells its connections apart: its port, or where it has none yet, whatever is its own.
    pub port: u32,
    pub kind: Kind,
    /// The backend of an unfinished handshake that this begins anew, which is counted as its end; [`BackendId::NONE`] if it does not.
    pub former: BackendId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// It begins.
    New = 0,
    /// It has begun somewhere.
    Lost = 1,
    /// A socket of this host begins it.
    Own = 2,
}

impl Kind {
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::New,
            1 => Self::Lost,
            _ => Self::Own,
        }
    }
}

/// How many slots are looked at for the fewest connections. Up to so many backends of equal weight, it is the fewest of all.
const WINDOW: u32 = 8;

/// The number of a [`BackendId`] for a new connection, `NONE` if there is none. A connection that has begun elsewhere gets what its address says: by turns
/// nobody could find its backend again, and so at least all its packets go to one.
#[inline(always)]
pub fn select<T: Tables + ?Sized>(tables: &T, service: ServiceId, asker: &Asker) -> u64 {
    let policy = tables.policy(service).unwrap_or_default();
    if asker.kind == Kind::Own && lives(tables, policy.own()) {
        return u64::from(policy.own().0);
    }
    if asker.former != BackendId::NONE {
        ended(tables, asker.former);
    }
    let slot = match policy.balance() {
        Balance::SourceHash => maglev::slot(asker.source),
        Balance::FlowHash => maglev::slot(flow_hash(asker.source, asker.port)),
        _ if asker.kind == Kind::Lost => maglev::slot(asker.source),
        Balance::RoundRobin => turn(tables, service),
        Balance::LeastConnections => return fewest(tables, service, turn(tables, service)),
    };
    u64::from(tables.slot(service, slot).unwrap_or(BackendId::NONE).0)
}

#[inline(always)]
fn turn<T: Tables + ?Sized>(tables: &T, service: ServiceId) -> u32 {
    tables.turn(service).map_or(0, |turn| (turn.next() % u64::from(SLOTS)) as u32)
}

/// The backend with the fewest connections for its weight, in the slots from `first` on; of equals, the first.
#[inline(always)]
fn fewest<T: Tables + ?Sized>(tables: &T, service: ServiceId, first: u32) -> u64 {
    let mut best = tables.slot(service, first).unwrap_or(BackendId::NONE).0.into();
    let Some(load) = tables.load(BackendId(best as u32)) else {
        return best;
    };
    let (mut open, mut weight) = (load.open() + 1, u64::from(load.weight.load()));
    for step in 1..WINDOW {
        let Some(other) = tables.slot(service, (first + step) % SLOTS) else {
            return best;
        };
        let Some(load) = tables.load(other) else {
            return best;
        };
        let (others, its) = (load.open() + 1, u64::from(load.weight.load()));
        let better = is_below(others * weight, open * its);
        best = either(better, other.0.into(), best);
        (open, weight) = (either(better, others, open), either(better, its, weight));
    }
    best
}

#[inline(always)]
fn lives<T: Tables + ?Sized>(tables: &T, id: BackendId) -> bool {
    tables.backend(id).is_some_and(|backend| backend.is(Backend::PRESENT) && !backend.is(Backend::DOWN))
}

/// Counts a connection that packets are carried for.
#[inline(always)]
pub fn began<T: Tables + ?Sized>(tables: &T, id: BackendId) {
    count(tables.load(id), 1);
}

#[inline(always)]
pub fn ended<T: Tables + ?Sized>(tables: &T, id: BackendId) {
    count(tables.load(id), -1);
}

#[inline(always)]
fn count(load: Option<&Load>, change: i64) {
    if let Some(load) = load {
        load.carried.add(change);
    }
}

#[cfg(test)]
mod tests;
