//! The maps, typed, and how a change gets into them.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    util,
};
use lb_common::{
    abi::{
        Access, BANKS, Backend, BackendId, Counter, Policy, Port, Range, ServiceId, ServiceKey, Settings, Source,
        Traffic, names,
    },
    maglev::SLOTS,
    table::Hashing,
};

use super::{ApplyError, Change, LoadError, loads::Loads};

pub(super) struct Maps {
    settings: Array<MapData, Settings>,
    hashing: Array<MapData, Hashing>,
    services: HashMap<MapData, ServiceKey, ServiceId>,
    ranges: LpmTrie<MapData, Source, Access>,
    tables: Array<MapData, BackendId>,
    /// Which bank of each virtual server is in use, and under which keys it is found.
    banks: BTreeMap<ServiceId, u32>,
    served: BTreeMap<ServiceKey, ServiceId>,
    policies: Array<MapData, Policy>,
    backends: Array<MapData, Backend>,
    pub(super) loads: Loads,
    traffic: PerCpuArray<MapData, Traffic>,
    ports: HashMap<MapData, Port, Port>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            settings: taken(ebpf, names::SETTINGS)?,
            hashing: taken(ebpf, names::HASHING)?,
            services: taken(ebpf, names::SERVICES)?,
            ranges: taken(ebpf, names::RANGES)?,
            tables: taken(ebpf, names::TABLES)?,
            banks: BTreeMap::new(),
            served: BTreeMap::new(),
            policies: taken(ebpf, names::POLICIES)?,
            backends: taken(ebpf, names::BACKENDS)?,
            loads: Loads::take(ebpf)?,
            traffic: taken(ebpf, names::TRAFFIC)?,
            ports: taken(ebpf, names::PORTS)?,
            counters: taken(ebpf, names::COUNTERS)?,
        })
    }

    /// Says how the tables of connections are hashed, unless they are in use already. How they are.
    pub(super) fn hash(&mut self, fresh: Hashing) -> Result<Hashing, LoadError> {
        let failed = |source| LoadError::Map { name: names::HASHING, source };
        let known = self.hashing.get(&0, 0).map_err(failed)?;
        if known.sets() == fresh.sets() {
            return Ok(known);
        }
        self.hashing.set(0, fresh, 0).map_err(failed)?;
        Ok(fresh)
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<(), ApplyError> {
        let outcome = match change {
            Change::Settings(settings) => self.settings.set(0, **settings, 0),
            Change::Backend(id, backend) => self.set_backend(*id, *backend),
            Change::Weight(id, weight) => {
                self.loads.weigh(*id, *weight);
                Ok(())
            }
            Change::Table(service, slots) => self.swap(*service, slots),
            Change::Policy(service, policy) => self.policies.set(service.0, *policy, 0),
            Change::Serve(key, service) => self.serve(key, *service),
            Change::Withdraw(key) => {
                self.served.remove(key);
                ignore_missing(self.services.remove(key))
            }
            Change::Rule(range, access) => self.ranges.insert(&prefix(range), access, 0),
            Change::Unrule(range) => ignore_missing(self.ranges.remove(&prefix(range))),
            Change::Port(from, to) => self.ports.insert(from, to, 0),
            Change::Forget(port) => ignore_missing(self.ports.remove(port)),
        };
        outcome.map_err(|source| ApplyError { what: format!("writing {}", name_of(change)), source })
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
        if service == ServiceId::BACKEND || !key.has_table() {
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

    /// A backend's entry. The counts of one that is gone go with it: its number may become another backend's.
    fn set_backend(&mut self, id: BackendId, backend: Backend) -> Result<(), MapError> {
        self.backends.set(id.0, backend, 0)?;
        if !backend.is(Backend::PRESENT) {
            self.loads.forget(id);
            let cpus = util::nr_cpus().map_err(|(_, error)| MapError::from(error))?;
            self.traffic.set(id.0, PerCpuValues::try_from(vec![Traffic::default(); cpus])?, 0)?;
        }
        Ok(())
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
}

const fn prefix(range: &Range) -> Key<Source> {
    Key::new(range.bits(), range.source())
}

pub(super) fn taken<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(MapError::KeyNotFound);
    map.and_then(T::try_from).map_err(|source| LoadError::Map { name, source })
}

pub(super) fn reading(what: &'static str) -> impl Fn(MapError) -> ApplyError {
    move |source| ApplyError { what: format!("reading {what}"), source }
}

pub(super) fn ignore_missing(outcome: Result<(), MapError>) -> Result<(), MapError> {
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
        Change::Weight(..) => "a backend's weight",
        Change::Table(..) => "a selection table",
        Change::Policy(..) => "a policy",
        Change::Serve(..) | Change::Withdraw(_) => "a virtual server",
        Change::Rule(..) | Change::Unrule(_) => "a range of sources",
        Change::Port(..) | Change::Forget(_) => "a port",
    }
}
