//! The table of connections from the daemon's side: what is idle goes, what is alive is counted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    abi::BackendId,
    address::{Address, V4, V6},
    conntrack::Patience,
    flow::Flow,
    table::{Set, Slot, WAYS},
};

use super::{Dataplane, LoadError, flows::Flows, run::Ticker};

/// What another node has told of goes sooner if it is told no more: there, every way through the tables takes little more than a minute.
const COPY: Duration = Duration::from_secs(600);

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

/// What a walk found, of both families together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections by backend.
    pub alive: BTreeMap<BackendId, u64>,
    /// Entries; each connection has two.
    pub entries: u64,
    /// Those of connections whose handshake is not complete.
    pub half_open: u64,
    /// Entries that there is room for.
    pub room: u64,
    /// Sets in which every slot is taken: a new connection there has to wait for another one's end.
    pub full_sets: u64,
    /// The neighbours who are clients, and how many ticks ago they last spoke.
    pub callers: HashMap<IpAddr, u32>,
}

/// Walks the connections. On its own, because a walk over a large table takes a while, which nobody else should wait.
pub struct Sweeper {
    flows4: Arc<Flows<V4>>,
    flows6: Arc<Flows<V6>>,
    ticker: Ticker,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").field("ticker", &self.ticker).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// A hand on the tables that sweeps them.
    pub fn sweeper(&mut self) -> Result<Sweeper, LoadError> {
        let (flows4, flows6) = self.flows()?;
        Ok(Sweeper { flows4, flows6, ticker: self.ticker()? })
    }
}

impl Sweeper {
    /// Removes the connections whose both halves have been idle for longer than their phase's timeout, counts the others, and looks who of
    /// `neighbours` are their clients.
    pub fn sweep(&mut self, timeouts: &Timeouts, neighbours: &HashSet<IpAddr>) -> Swept {
        let clock = Clock { now: self.ticker.now() as u32, ticker: self.ticker, timeouts };
        let mut swept = Swept::default();
        sweep(&self.flows4, &clock, neighbours, &mut swept);
        sweep(&self.flows6, &clock, neighbours, &mut swept);
        swept
    }
}

struct Clock<'a> {
    /// Kernel ticks, the lower half.
    now: u32,
    ticker: Ticker,
    timeouts: &'a Timeouts,
}

impl Clock<'_> {
    fn idle<A: Address>(&self, flow: &Flow<A>) -> bool {
        let patience = self.timeouts.of(flow.phase().patience());
        let patience = if flow.is_copy() { patience.min(COPY) } else { patience };
        u64::from(flow.idle(self.now)) > self.ticker.count(patience)
    }
}

fn sweep<A: Address>(flows: &Flows<A>, clock: &Clock<'_>, neighbours: &HashSet<IpAddr>, swept: &mut Swept) {
    flows.walk(0..flows.len(), |sets| {
        for set in sets {
            let mut left = 0;
            for (way, slot) in set.entries() {
                if !remove_idle(flows, clock, set, way, slot) {
                    left += 1;
                    count(slot.flow(), swept);
                    note_caller(slot, clock, neighbours, swept);
                }
            }
            swept.entries += left;
            swept.room += WAYS as u64;
            swept.full_sets += u64::from(left == WAYS as u64);
        }
    });
}

/// Removes an entry if it and its other half are idle. Whether that was so.
fn remove_idle<A: Address>(flows: &Flows<A>, clock: &Clock<'_>, set: &Set<A>, way: u32, slot: &Slot<A>) -> bool {
    let (key, flow) = (*slot.key(), slot.flow());
    clock.idle(flow)
        && flows.peek(&flow.other).is_none_or(|other| clock.idle(&other))
        // The slot may be another connection's by now, or this one has just woken up.
        && set.clear_if(way, clock.now, |slot| *slot.key() == key && clock.idle(slot.flow()))
}

fn count<A: Address>(flow: &Flow<A>, swept: &mut Swept) {
    swept.half_open += u64::from(flow.is_half_open());
    if flow.role.from_client() {
        *swept.alive.entry(flow.backend()).or_default() += 1;
    }
}

fn note_caller<A: Address>(slot: &Slot<A>, clock: &Clock<'_>, neighbours: &HashSet<IpAddr>, swept: &mut Swept) {
    if neighbours.is_empty() || !slot.flow().role.from_client() {
        return;
    }
    let client = Ipv6Addr::from(slot.key().source.mapped()).to_canonical();
    if neighbours.contains(&client) {
        let idle = slot.flow().idle(clock.now);
        swept.callers.entry(client).and_modify(|least| *least = idle.min(*least)).or_insert(idle);
    }
}
