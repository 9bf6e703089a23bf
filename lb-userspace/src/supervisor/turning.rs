//! Direct server return: what the other nodes say of themselves, and what this node says.

use std::{collections::BTreeSet, net::IpAddr};

use super::Node;
use crate::{
    config::model::VirtualServer,
    health::State,
    host::Neighbours,
    reconcile::{Part, Surroundings, Turned, forwarders, turned, way},
};

impl Node {
    /// The other nodes' part, as things stand.
    pub(super) fn part(&self, servers: &[VirtualServer], states: &[Vec<State>]) -> Part {
        let local = self.host_addresses();
        let backends = servers.iter().flat_map(|server| &server.backends).map(|backend| backend.address);
        let on_link: BTreeSet<IpAddr> = backends.filter(|address| self.host.on_link(*address)).collect();
        let told = self.sync.as_ref().map(|sync| sync.view().turned);
        let around = Surroundings { local: &local, on_link: &on_link, told: told.as_ref() };
        let of = |(index, server)| way(server, states.get(index).map_or(&[][..], Vec::as_slice), &around);
        let moving = self.config.vrrp.iter().flat_map(|instance| &instance.addresses).map(|net| net.addr());
        Part {
            ways: servers.iter().enumerate().map(of).collect(),
            moving: moving.collect(),
            forwarders: forwarders(servers, &local, &self.macs),
        }
    }

    /// Follows what the others say.
    pub(super) fn heed(&mut self) -> anyhow::Result<()> {
        let (states, _) = self.health(&self.followed);
        let servers = self.orders.weighted(&self.config.virtual_servers);
        if self.part(&servers, &states) == self.part { Ok(()) } else { self.reconcile(false) }
    }

    /// Says in the log what becomes of new connections, where that has changed.
    pub(super) fn say(&self, before: &Part) {
        for (index, server) in self.config.virtual_servers.iter().enumerate() {
            let now = &self.part.ways[index];
            if before.ways.get(index).unwrap_or(&Default::default()) == now {
                continue;
            }
            let direct = now.direct.iter().filter(|direct| **direct).count();
            let because = now.because.as_ref().map_or(String::new(), |because| format!(" ({because})"));
            if direct > 0 || now.because.is_some() {
                log::info!(
                    "virtual server \"{}\": packets of new connections are sent on as they are to {direct} of {} backends{because}",
                    server.name,
                    now.direct.len()
                );
            }
        }
    }

    /// What this node turns, unless it is about to stop.
    pub(super) fn turns(&self) -> BTreeSet<Turned> {
        match self.leaves {
            true => BTreeSet::new(),
            false => turned(&self.config.virtual_servers, &self.host_addresses()).collect(),
        }
    }

    /// Notes the MAC addresses of backends' nodes. One that the kernel forgets meanwhile is not another's.
    pub(super) async fn meet(&mut self) {
        match Neighbours::read(&self.handle).await {
            Ok(neighbours) => self.macs.extend(neighbours.iter().map(|(_, address, mac)| (address, mac))),
            Err(error) => log::warn!("{error}"),
        }
        let backends = self.config.virtual_servers.iter().flat_map(|server| &server.backends);
        let backends: BTreeSet<IpAddr> = backends.map(|backend| backend.address).collect();
        self.macs.retain(|address, _| backends.contains(address));
    }
}
