//! The table of connections from the daemon's side: what is idle goes, what is alive is counted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use lb_common::{
    abi::{BackendId, names},
    address::{Address, V4, V6},
    conntrack::Patience,
    flow::Flow,
    table::{Set, Slot, WAYS, find},
};

use super::{Dataplane, LoadError, flows::Flows, ticks_per_second};

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
    flows4: Flows<V4>,
    flows6: Flows<V6>,
    /// Ticks of the kernel at one moment; they go with the monotonic clock.
    ticks: u64,
    at: Instant,
    rate: u64,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper").field("ticks", &self.ticks).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Takes the sweeper; there is one.
    pub fn sweeper(&mut self) -> Result<Sweeper, LoadError> {
        let ticks = self.ticks().map_err(LoadError::Clock)?;
        Ok(Sweeper {
            flows4: Flows::take(&mut self.ebpf, names::FLOWS4, self.hashing)?,
            flows6: Flows::take(&mut self.ebpf, names::FLOWS6, self.hashing)?,
            ticks,
            at: Instant::now(),
            rate: ticks_per_second(),
        })
    }
}

impl Sweeper {
    /// Removes the connections whose both halves have been idle for longer than their phase's timeout, counts the others, and looks who of
    /// `neighbours` are their clients.
    pub fn sweep(&mut self, timeouts: &Timeouts, neighbours: &HashSet<IpAddr>) -> Swept {
        let now = self.ticks + ticks(self.at.elapsed(), self.rate);
        let clock = Clock { now: now as u32, rate: self.rate, timeouts };
        let mut swept = Swept::default();
        sweep(&self.flows4, &clock, neighbours, &mut swept);
        sweep(&self.flows6, &clock, neighbours, &mut swept);
        swept
    }
}

struct Clock<'a> {
    /// Kernel ticks, the lower half.
    now: u32,
    rate: u64,
    timeouts: &'a Timeouts,
}

impl Clock<'_> {
    fn idle<A: Address>(&self, flow: &Flow<A>) -> bool {
        u64::from(flow.idle(self.now)) > ticks(self.timeouts.of(flow.phase().patience()), self.rate)
    }
}

fn ticks(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(rate) / 1000
}

fn sweep<A: Address>(flows: &Flows<A>, clock: &Clock<'_>, neighbours: &HashSet<IpAddr>, swept: &mut Swept) {
    for set in flows.all() {
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
}

/// Removes an entry if it and its other half are idle. Whether that was so.
fn remove_idle<A: Address>(flows: &Flows<A>, clock: &Clock<'_>, set: &Set<A>, way: u32, slot: &Slot<A>) -> bool {
    let (key, flow) = (*slot.key(), slot.flow());
    clock.idle(flow)
        && find(flows, &flow.other).is_none_or(|other| clock.idle(other))
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
