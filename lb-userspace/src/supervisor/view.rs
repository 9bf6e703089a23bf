//! The published status, put together from all rooms.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Instant, SystemTime},
};

use lb_common::{
    abi::{BackendId, Balance, Counter},
    maglev::WHOLE,
};

use crate::{
    admin::{
        self,
        status::{self, Connections, Counters, Status, Table},
    },
    config::model::{Backend, Config, ServerMode, VirtualServer},
    dataplane::{ApplyError, Dataplane, Mode, Swept},
    health::{BackendKey, Reports, State},
    reconcile::{Desired, Endpoint, Numbers, Orders, Removed, Way},
};

/// Where a status comes from.
pub(super) struct Sources<'a> {
    pub(super) config: &'a Config,
    pub(super) configuration: status::Configuration,
    pub(super) numbers: &'a Numbers,
    /// Where their time begins.
    pub(super) begun: Instant,
    pub(super) orders: &'a Orders,
    /// What the tables hold.
    pub(super) applied: &'a Desired,
    /// Packets of backends that are gone.
    pub(super) forwarded_before: u64,
    pub(super) started: SystemTime,
    pub(super) reports: &'a Reports,
    pub(super) attached: &'a BTreeMap<String, Mode>,
    /// Interface of each virtual server's VIP, and whether it is there.
    pub(super) carriers: &'a [String],
    pub(super) held: &'a [bool],
    pub(super) dataplane: &'a Dataplane,
    /// The connections, as they were found last.
    pub(super) swept: &'a Swept,
    /// Those of this host's own sockets, which the other ones are without.
    pub(super) own: &'a BTreeMap<BackendId, u64>,
    /// Clients that were told that their backend is down.
    pub(super) reset: u64,
    pub(super) vrrp: Vec<admin::vrrp::Instance>,
    /// How packets come to the backends of each virtual server.
    pub(super) ways: &'a [Way],
    pub(super) sync: Option<admin::sync::Sync>,
}

pub(super) fn status(sources: Sources<'_>) -> Result<Status, ApplyError> {
    let mut forwarded = sources.forwarded_before;
    let mut virtual_servers = Vec::new();
    for (index, server) in sources.config.virtual_servers.iter().enumerate() {
        let mut backends = Vec::new();
        for backend in &server.backends {
            let Some(id) = sources.numbers.backend(&Endpoint::of(server, backend)) else { continue };
            let shown = view(&sources, server, backend, id)?;
            forwarded += shown.packets;
            backends.push(shown);
        }
        virtual_servers.push(status::VirtualServer {
            name: server.name.clone(),
            address: server.address,
            port: server.port,
            interface: sources.carriers.get(index).cloned().unwrap_or_default(),
            held: sources.held.get(index).copied().unwrap_or_default(),
            balance: server.balance.label().to_owned(),
            open: sources.numbers.service(server).is_some_and(|number| sources.applied.open.contains(&number)),
            mode: mode_of(server, sources.ways.get(index)),
            backends,
        });
    }
    let mut gone = Vec::new();
    for (endpoint, removed) in sources.numbers.removed() {
        let traffic = sources.dataplane.traffic(removed.id)?;
        forwarded += traffic.packets_in + traffic.packets_out;
        gone.push(drained(&sources, endpoint, removed));
    }
    let mode = |mode: &Mode| match mode {
        Mode::Native => status::Mode::Native,
        Mode::Generic => status::Mode::Generic,
    };
    let interfaces = sources.attached.iter();
    Ok(Status {
        interfaces: interfaces.map(|(name, at)| status::Interface { name: name.clone(), mode: mode(at) }).collect(),
        virtual_servers,
        removed: gone,
        configuration: sources.configuration,
        vrrp: sources.vrrp,
        sync: sources.sync,
        connections: Connections {
            tracked: sources.swept.alive.values().sum(),
            capacity: sources.dataplane.capacity(),
            reset: sources.reset,
            table: Table {
                entries: sources.swept.entries,
                half_open: sources.swept.half_open,
                room: sources.swept.room,
                full_sets: sources.swept.full_sets,
            },
        },
        counters: counters(&sources.dataplane.counters()?, forwarded),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: sources.started,
    })
}

fn mode_of(server: &VirtualServer, way: Option<&Way>) -> status::ServerMode {
    let configured = match server.mode {
        ServerMode::Nat => status::Configured::Nat,
        ServerMode::Dsr => status::Configured::Dsr,
        ServerMode::Auto => status::Configured::Auto,
    };
    let direct = way.map_or(&[][..], |way| &way.direct[..]);
    let in_use = match (direct.contains(&true), direct.contains(&false)) {
        (true, true) => status::InUse::Both,
        (true, false) => status::InUse::Dsr,
        (false, _) => status::InUse::Nat,
    };
    status::ServerMode { configured, in_use, because: way.and_then(|way| way.because.clone()) }
}

fn drained(sources: &Sources<'_>, endpoint: &Endpoint, removed: &Removed) -> status::Removed {
    let since = SystemTime::now()
        .checked_sub(sources.begun.elapsed().saturating_sub(removed.since))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let server = removed.was.as_ref();
    status::Removed {
        virtual_server: server.map(|server| server.name.clone()),
        name: server.and_then(|server| server.backends.first()).map(|backend| backend.name.clone()),
        vip: SocketAddr::new(endpoint.vip(), u16::from_be_bytes(endpoint.service().port())),
        address: SocketAddr::new(endpoint.address(), endpoint.port()),
        since,
        until: since + removed.drain(),
        stands_in: removed.stands_in,
        active_connections: sources.active(removed.id).into_iter().sum(),
    }
}

impl Sources<'_> {
    /// Connections that are alive: those that packets are forwarded for, and those of this host's own sockets.
    fn active(&self, id: BackendId) -> [u64; 2] {
        [&self.swept.alive, self.own].map(|counts| counts.get(&id).copied().unwrap_or_default())
    }
}

fn view(
    sources: &Sources<'_>,
    server: &VirtualServer,
    backend: &Backend,
    id: BackendId,
) -> Result<status::Backend, ApplyError> {
    let report = sources.reports.get(&BackendKey::of(server, backend));
    let traffic = sources.dataplane.traffic(id)?;
    let [forwarded, own] = sources.active(id);
    let order = sources.orders.of(server, backend);
    let counts = server.balance == Balance::LeastConnections;
    Ok(status::Backend {
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        weight: order.and_then(|order| order.weight).unwrap_or(backend.weight),
        backup: backend.backup,
        share: sources.applied.growing.get(&id).map(|portion| portion * 100 / WHOLE),
        state: sources.orders.state(server, backend, report.map_or(State::Down, |report| report.state)),
        order,
        since: report.map_or(sources.started, |report| report.since),
        last_check: report
            .and_then(|report| report.last_check.as_ref())
            .map(|check| status::LastCheck { text: check.text.clone(), latency: check.latency }),
        checks: report.map_or(0, |report| report.checks),
        check_failures: report.map_or(0, |report| report.failures),
        active_connections: Some(forwarded + own),
        local_connections: Some(own),
        counted_connections: counts.then(|| sources.dataplane.open(id).iter().sum()),
        connections: traffic.connections,
        packets: traffic.packets_in + traffic.packets_out,
        bytes: traffic.bytes_in + traffic.bytes_out,
    })
}

/// Sorts the data path's counters by what became of the packet.
fn counters(counts: &BTreeMap<Counter, u64>, forwarded: u64) -> Counters {
    let mut sorted = Counters::default();
    sorted.verdicts.insert("forward".to_owned(), forwarded);
    for (counter, count) in counts {
        let label = counter.label().to_owned();
        match counter {
            Counter::Connected
            | Counter::Rebuilt
            | Counter::Local
            | Counter::LocalRefused
            | Counter::Unresolved
            | Counter::IcmpError
            | Counter::Unanswered
            | Counter::Retried
            | Counter::OverRateRepeated
            | Counter::EvictedHalfOpen
            | Counter::EvictedClosing
            | Counter::EvictedIdle => sorted.events.insert(label, *count),
            Counter::NoService | Counter::Fragment | Counter::Malformed | Counter::IcmpStranger => {
                *sorted.verdicts.entry("pass".to_owned()).or_default() += count;
                sorted.events.insert(label, *count)
            }
            Counter::NoBackend | Counter::BackendDown | Counter::OverRateRefused => {
                *sorted.verdicts.entry("reset".to_owned()).or_default() += count;
                sorted.events.insert(label, *count)
            }
            Counter::Stray
            | Counter::Orphan
            | Counter::Expired
            | Counter::NoPort
            | Counter::TableFull
            | Counter::NoRoute
            | Counter::NoMetadata
            | Counter::Fenced
            | Counter::Overdue
            | Counter::Circling
            | Counter::Denied
            | Counter::OverRate
            | Counter::Refused => {
                *sorted.verdicts.entry("drop".to_owned()).or_default() += count;
                sorted.drops.insert(label, *count)
            }
        };
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_once_and_summed_once() {
        let counts: BTreeMap<Counter, u64> = Counter::ALL.iter().map(|counter| (*counter, 1)).collect();
        let sorted = counters(&counts, 100);
        assert_eq!(sorted.events.len() + sorted.drops.len(), Counter::ALL.len());
        let verdicts: Vec<(&str, u64)> = sorted.verdicts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(verdicts, [("drop", 13), ("forward", 100), ("pass", 4), ("reset", 3)]);
    }
}
