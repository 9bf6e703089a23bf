//! The tables follow the configuration, the checks and the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::abi::{Backend, BackendId, MAX_PORTS, ServiceId};

use super::{Node, leaving::macs, placement::ports};
use crate::{
    config::model::{self, VirtualServer},
    dataplane::Change,
    health::{BackendKey, Reports, State},
    reconcile::{Desired, Inputs, desired, plan, service},
};

/// What the checks say: of configured backends in the order of the configuration, and of removed ones by number.
pub(super) type Health = (Vec<Vec<State>>, BTreeMap<BackendId, State>);

impl Node {
    /// Brings the tables to what configuration, health and host ask for.
    pub(super) fn reconcile(&mut self, moved: bool) -> anyhow::Result<()> {
        let servers = &self.orders.weighted(&self.config.virtual_servers);
        let reports = self.reports.borrow_and_update().clone();
        let (states, removed) = self.health(&reports);
        let takes = |(backend, state): (&model::Backend, &State)| *state == State::Up && backend.weight > 0;
        let served =
            servers.iter().zip(&states).filter(|(server, states)| server.backends.iter().zip(*states).any(takes));
        let served: BTreeSet<_> = served.map(|(server, _)| service(server)).collect();
        self.numbers.relieve(|service| served.contains(service));
        let (local, macs) = (self.host_addresses(), &self.host.macs() | &macs(&self.config));
        let ports = ports(&self.attached, &self.host);
        let now = self.begun.elapsed();
        self.returns.follow(servers, &states, now);
        let unknown = self.unknown(&reports);
        let part = self.part(servers, &states);
        let numbers = &self.numbers;
        let wanted = desired(&Inputs {
            servers,
            states: &states,
            unknown: &unknown,
            orders: &self.orders,
            returns: &self.returns,
            now,
            numbers,
            removed: &removed,
            local: &local,
            macs: &macs,
            ports: &ports,
            part: &part,
        });
        let (changes, applied) = plan(&wanted, &self.applied, moved);
        self.dataplane.apply(&changes)?;
        let moved = changes.iter().any(|change| matches!(change, Change::Port(..)));
        if moved && ports.len() + 1 >= MAX_PORTS {
            log::warn!(
                "there are more VLANs than the {} that the data path sends by itself: packets to the others, and first to those without \
                 addresses, are sent by the kernel, which takes longer",
                MAX_PORTS / 2
            );
        }
        let lost: BTreeSet<BackendId> = changes.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            self.closer.close(lost);
        }
        let down: BTreeMap<BackendId, Backend> = changes.iter().filter_map(down).collect();
        if !down.is_empty() {
            self.resetter.reset(down, self.host.local_addresses());
        }
        self.tell_open(&wanted);
        self.applied = applied;
        let before = std::mem::replace(&mut self.part, part);
        self.say(&before);
        self.followed = reports;
        Ok(())
    }

    /// Says where connections go to backends that are down.
    fn tell_open(&self, wanted: &Desired) {
        for server in &self.config.virtual_servers {
            let is_in = |open: &BTreeSet<ServiceId>| self.numbers.service(server).is_some_and(|id| open.contains(&id));
            match (is_in(&self.applied.desired.open), is_in(&wanted.open)) {
                (false, true) => log::warn!(
                    "no backend of virtual server \"{}\" is up: new connections go to all of them (all_down = \"open\")",
                    server.name
                ),
                (true, false) => {
                    log::info!("virtual server \"{}\": connections go to backends that are up again", server.name)
                }
                _ => {}
            }
        }
    }

    /// Places of virtual servers with a backend whose check has not ended yet.
    pub(super) fn unknown(&self, reports: &Reports) -> BTreeSet<usize> {
        let known = |server: &VirtualServer, backend: &model::Backend| {
            reports.get(&BackendKey::of(server, backend)).is_some_and(|report| report.last_check.is_some())
        };
        let servers = self.config.virtual_servers.iter().enumerate();
        let unknown = servers.filter(|(_, server)| !server.backends.iter().all(|backend| known(server, backend)));
        unknown.map(|(index, _)| index).collect()
    }

    /// The host's addresses without the VIPs: a backend cannot listen on one.
    pub(super) fn host_addresses(&self) -> BTreeSet<IpAddr> {
        let mut local = self.host.local_addresses();
        for server in &self.config.virtual_servers {
            local.remove(&server.address);
        }
        for net in self.config.vrrp.iter().flat_map(|instance| &instance.addresses) {
            local.remove(&net.addr());
        }
        for (endpoint, _) in self.numbers.removed() {
            local.remove(&endpoint.vip());
        }
        local
    }

    pub(super) fn health(&self, reports: &Reports) -> Health {
        let state = |server: &VirtualServer, backend: &model::Backend| {
            let report = reports.get(&BackendKey::of(server, backend))?;
            report.last_check.is_some().then(|| report.consequence())
        };
        // Of what was not checked yet nobody knows whether it lives: it gets nothing new, and keeps what it has. So does what may be silent for
        // want of a way.
        let of = |server: &VirtualServer| {
            let ordered = |backend: &model::Backend| {
                self.orders.state(server, backend, state(server, backend).unwrap_or(State::Draining))
            };
            server.backends.iter().map(ordered).collect()
        };
        let removed = self.numbers.removed().filter_map(|(_, removed)| {
            let server = removed.was.as_ref()?;
            Some((removed.id, state(server, server.backends.first()?)?))
        });
        (self.config.virtual_servers.iter().map(of).collect(), removed.collect())
    }

    /// Takes note of the VIPs that are here. To one that has come, clients may have connections whose backend went down before.
    pub(super) fn arrive(&mut self, held: &[bool]) {
        let all = self.config.virtual_servers.iter().zip(held);
        let here: BTreeSet<IpAddr> = all.filter(|(_, held)| **held).map(|(server, _)| server.address).collect();
        let down = self.applied.desired.backends.iter().filter(|(_, backend)| backend.is(Backend::DOWN));
        let down: BTreeMap<BackendId, Backend> = down.map(|(id, backend)| (*id, *backend)).collect();
        if !here.is_subset(&self.held) && !down.is_empty() {
            self.resetter.reset(down, self.host.local_addresses());
        }
        self.held = here;
    }
}

/// A backend whose connections are lost by a change.
fn lost(change: &Change) -> Option<BackendId> {
    match change {
        Change::Backend(id, backend) if backend.is(Backend::DOWN) || !backend.is(Backend::PRESENT) => Some(*id),
        _ => None,
    }
}

/// A backend whose clients are told that it is down. One that was taken out of the configuration keeps those that go by the VIP.
fn down(change: &Change) -> Option<(BackendId, Backend)> {
    match change {
        Change::Backend(id, backend) if backend.is(Backend::DOWN) => Some((*id, *backend)),
        _ => None,
    }
}
