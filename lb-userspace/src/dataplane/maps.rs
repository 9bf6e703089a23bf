//! The maps, typed, and how a change gets into them.

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use lb_common::{
    abi::{
        BANKS, Backend, BackendId, Counter, Port, Record4, Record6, ServiceId, ServiceKey, Settings, Stored, Traffic,
        names,
    },
    address::{V4, V6},
    flow::{Flow, Key},
    maglev::SLOTS,
};

use super::{ApplyError, Change, LoadError, Timeouts};

pub(super) struct Maps {
    settings: Array<MapData, Settings>,
    services: HashMap<MapData, ServiceKey, ServiceId>,
    tables: Array<MapData, BackendId>,
    /// Which bank of each virtual server is in use, and under which keys it is found.
    banks: BTreeMap<ServiceId, u32>,
    served: BTreeMap<ServiceKey, ServiceId>,
    backends: Array<MapData, Backend>,
    traffic: PerCpuArray<MapData, Traffic>,
    ports: HashMap<MapData, Port, Port>,
    counters: PerCpuArray<MapData, u64>,
    flows4: HashMap<MapData, Key<V4>, Record4>,
    flows6: HashMap<MapData, Key<V6>, Record6>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            settings: taken(ebpf, names::SETTINGS)?,
            services: taken(ebpf, names::SERVICES)?,
            tables: taken(ebpf, names::TABLES)?,
            banks: BTreeMap::new(),
            served: BTreeMap::new(),
            backends: taken(ebpf, names::BACKENDS)?,
            traffic: taken(ebpf, names::TRAFFIC)?,
            ports: taken(ebpf, names::PORTS)?,
            counters: taken(ebpf, names::COUNTERS)?,
            flows4: taken(ebpf, names::FLOWS4)?,
            flows6: taken(ebpf, names::FLOWS6)?,
        })
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<(), ApplyError> {
        let outcome = match change {
            Change::Settings(settings) => self.settings.set(0, **settings, 0),
            Change::Backend(id, backend) => self.backends.set(id.0, *backend, 0),
            Change::Table(service, slots) => self.swap(*service, slots),
            Change::Serve(key, service) => self.serve(key, *service),
            Change::Withdraw(key) => {
                self.served.remove(key);
                ignore_missing(self.services.remove(key))
            }
            Change::Port(from, to) => self.ports.insert(from, to, 0),
            Change::Forget(port) => ignore_missing(self.ports.remove(port)),
        };
        outcome.map_err(|source| ApplyError::Map { what: format!("writing {}", name_of(change)), source })
    }

    /// Fills the bank that is not in use, then points the virtual server there.
    fn swap(&mut self, service: ServiceId, slots: &[BackendId]) -> Result<(), MapError> {
        let bank = self.banks.get(&service).map_or(0, |used| (used + 1) % BANKS);
        let first = (service.0 * BANKS + bank) * SLOTS;
        for (slot, backend) in (first..first + SLOTS).zip(slots) {
            self.tables.set(slot, backend, 0)?;
        }
        self.banks.insert(service, bank);
        let keys: Vec<ServiceKey> =
            self.served.iter().filter(|(_, served)| **served == service).map(|(key, _)| *key).collect();
        keys.iter().try_for_each(|key| self.point(key, service))
    }

    fn serve(&mut self, key: &ServiceKey, service: ServiceId) -> Result<(), MapError> {
        if service == ServiceId::BACKEND {
            return self.services.insert(key, service, 0);
        }
        self.served.insert(*key, service);
        self.point(key, service)
    }

    fn point(&mut self, key: &ServiceKey, service: ServiceId) -> Result<(), MapError> {
        let bank = self.banks.get(&service).copied().unwrap_or_default();
        self.services.insert(key, ServiceId(service.0 * BANKS + bank), 0)
    }

    pub(super) fn counters(&self) -> Result<BTreeMap<Counter, u64>, ApplyError> {
        let read = |counter: &Counter| {
            let each = self.counters.get(&(*counter as u32), 0).map_err(reading("a counter"))?;
            Ok((*counter, each.iter().sum()))
        };
        Counter::ALL.iter().map(read).collect()
    }

    pub(super) fn traffic(&self, id: BackendId) -> Result<Traffic, ApplyError> {
        let each = self.traffic.get(&id.0, 0).map_err(reading("a backend's traffic"))?;
        Ok(each.iter().fold(Traffic::default(), |sum, cpu| Traffic {
            connections: sum.connections + cpu.connections,
            packets_in: sum.packets_in + cpu.packets_in,
            bytes_in: sum.bytes_in + cpu.bytes_in,
            packets_out: sum.packets_out + cpu.packets_out,
            bytes_out: sum.bytes_out + cpu.bytes_out,
        }))
    }

    pub(super) fn sweep(&mut self, now: u64, timeouts: &Timeouts) -> Result<BTreeMap<BackendId, u64>, ApplyError> {
        let mut alive = BTreeMap::new();
        sweep(&mut self.flows4, now, timeouts, &mut alive)?;
        sweep(&mut self.flows6, now, timeouts, &mut alive)?;
        Ok(alive)
    }
}

/// Counts the connections of one family that are alive, and removes those whose both halves have been idle too long.
fn sweep<R>(
    flows: &mut HashMap<MapData, Key<R::Address>, R>,
    now: u64,
    timeouts: &Timeouts,
    alive: &mut BTreeMap<BackendId, u64>,
) -> Result<(), ApplyError>
where
    R: Stored + Pod,
    Key<R::Address>: Pod,
{
    let idle = |flow: &Flow<R::Address>| now.saturating_sub(flow.last_seen()) > timeouts.of(flow.phase().patience());
    let mut dead = Vec::new();
    for entry in flows.iter() {
        // A half that goes while it is read is as good as gone.
        let Ok((key, record)) = entry else { continue };
        let flow = record.flow();
        if idle(flow) && flows.get(&flow.other, 0).map_or(true, |other| idle(other.flow())) {
            dead.push(key);
        } else if flow.role.from_client() {
            *alive.entry(flow.backend).or_default() += 1;
        }
    }
    for key in dead {
        // The walk takes its time, and the same client may have come back under the same key.
        let still = flows.get(&key, 0).is_ok_and(|record| {
            let other = flows.get(&record.flow().other, 0);
            idle(record.flow()) && other.map_or(true, |other| idle(other.flow()))
        });
        if still {
            ignore_missing(flows.remove(&key)).map_err(reading("an idle connection"))?;
        }
    }
    Ok(())
}

fn taken<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(MapError::KeyNotFound);
    map.and_then(T::try_from).map_err(|source| LoadError::Map { name, source })
}

fn reading(what: &'static str) -> impl Fn(MapError) -> ApplyError {
    move |source| ApplyError::Map { what: format!("reading {what}"), source }
}

fn ignore_missing(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

const fn name_of(change: &Change) -> &'static str {
    match change {
        Change::Settings(_) => "the settings",
        Change::Backend(..) => "a backend",
        Change::Table(..) => "a selection table",
        Change::Serve(..) | Change::Withdraw(_) => "a virtual server",
        Change::Port(..) | Change::Forget(_) => "a port",
    }
}
