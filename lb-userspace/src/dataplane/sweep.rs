//! The table of connections from the daemon's side: what is idle goes, what is alive is counted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use lb_common::{
    abi::{BackendId, Record4, Record6, Stored, names},
    address::{V4, V6},
    conntrack::Patience,
    flow::{Flow, Key},
};

use super::{
    ApplyError, Dataplane, LoadError,
    maps::{ignore_missing, reading, taken},
    ticks_per_second,
};

/// Idle times after which a connection is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub syn: Duration,
    pub established: Duration,
    pub closing: Duration,
}

impl Timeouts {
    const fn of(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Syn => self.syn,
            Patience::Established => self.established,
            Patience::Closing => self.closing,
        }
    }
}

/// Walks the connections. On its own, because a walk over a large table takes seconds, which nobody else should wait.
pub struct Sweeper {
    flows4: HashMap<MapData, Key<V4>, Record4>,
    flows6: HashMap<MapData, Key<V6>, Record6>,
    /// Ticks of the kernel at one moment; they go with the monotonic clock.
    ticks: u64,
    at: Instant,
    rate: u64,
    /// A table that changes under the walk can send it back to its start (`htab_map_get_next_key`), so steps are counted.
    most: usize,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").field("most", &self.most).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Takes the sweeper; there is one.
    pub fn sweeper(&mut self) -> Result<Sweeper, LoadError> {
        let ticks = self.ticks().map_err(LoadError::Clock)?;
        Ok(Sweeper {
            flows4: taken(&mut self.ebpf, names::FLOWS4)?,
            flows6: taken(&mut self.ebpf, names::FLOWS6)?,
            ticks,
            at: Instant::now(),
            rate: ticks_per_second(),
            most: usize::try_from(self.max_connections).unwrap_or(usize::MAX).saturating_mul(2),
        })
    }
}

impl Sweeper {
    /// Removes the connections whose both halves have been idle for longer than their phase's timeout, and counts the others by
    /// backend.
    pub fn sweep(&mut self, timeouts: &Timeouts) -> Result<BTreeMap<BackendId, u64>, ApplyError> {
        let clock = Clock { now: self.ticks + ticks(self.at.elapsed(), self.rate), rate: self.rate, timeouts };
        let mut alive = BTreeMap::new();
        sweep(&mut self.flows4, &clock, self.most, &mut alive)?;
        sweep(&mut self.flows6, &clock, self.most, &mut alive)?;
        Ok(alive)
    }
}

struct Clock<'a> {
    now: u64,
    rate: u64,
    timeouts: &'a Timeouts,
}

impl Clock<'_> {
    fn idle<A: lb_common::address::Address>(&self, flow: &Flow<A>) -> bool {
        self.now.saturating_sub(flow.last_seen()) > ticks(self.timeouts.of(flow.phase().patience()), self.rate)
    }
}

fn ticks(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(rate) / 1000
}

fn sweep<R>(
    flows: &mut HashMap<MapData, Key<R::Address>, R>,
    clock: &Clock<'_>,
    most: usize,
    alive: &mut BTreeMap<BackendId, u64>,
) -> Result<(), ApplyError>
where
    R: Stored + Pod,
    Key<R::Address>: Pod,
{
    let dead = |flows: &HashMap<MapData, Key<R::Address>, R>, flow: &Flow<R::Address>| {
        clock.idle(flow) && flows.get(&flow.other, 0).map_or(true, |other| clock.idle(other.flow()))
    };
    let mut found = Vec::new();
    // A half that goes while it is read is as good as gone.
    for (key, record) in flows.iter().take(most).flatten() {
        let flow = record.flow();
        if dead(flows, flow) {
            found.push(key);
        } else if flow.role.from_client() {
            *alive.entry(flow.backend).or_default() += 1;
        }
    }
    for key in found {
        // The walk takes its time, and the same client may have come back under the same key.
        if flows.get(&key, 0).is_ok_and(|record| dead(flows, record.flow())) {
            ignore_missing(flows.remove(&key)).map_err(reading("an idle connection"))?;
        }
    }
    Ok(())
}
