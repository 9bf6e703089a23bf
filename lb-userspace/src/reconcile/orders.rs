//! What people have ordered for backends while the daemon runs, over what the configuration says. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    config::model::{self, VirtualServer},
    health::State,
};

/// What one may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// No new connections; those that are there go on.
    Drain,
    /// As configured: whatever was ordered before is over.
    Enable,
    /// Another weight than the configured one.
    Weight(u16),
}

/// A wish about some backends, by name or by `virtual-server/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub wish: Wish,
    pub backends: Vec<String>,
    /// Whether it outlives the daemon.
    #[serde(default)]
    pub persist: bool,
}

/// What holds for a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub drain: bool,
    pub weight: Option<u16>,
    /// Whether it outlives the daemon.
    pub persist: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("there is no backend \"{name}\" here; there are {present}. Nothing was changed.")]
    Unknown { name: String, present: String },
    #[error("a weight is a number from 0 to {MOST}, and {0} is none. Nothing was changed.")]
    Weight(u16),
    #[error("no backend is named. Nothing was changed.")]
    Nobody,
}

/// The highest weight, as in the configuration.
const MOST: u16 = 256;

/// All orders, by names of virtual server and backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders(BTreeMap<(String, String), Order>);

/// An order as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    virtual_server: String,
    backend: String,
    drain: bool,
    weight: Option<u16>,
}

impl Orders {
    /// Orders that were written down. Those for backends that are not configured any more are left out.
    pub fn read(written: Vec<Written>, servers: &[VirtualServer]) -> Self {
        let order = |Written { virtual_server, backend, drain, weight }| {
            (
                (virtual_server, backend),
                Order { drain, weight: weight.map(|weight: u16| weight.min(MOST)), persist: true },
            )
        };
        let mut orders = Self(written.into_iter().map(order).collect());
        orders.retain(servers);
        orders
    }

    /// What is to be written down.
    pub fn written(&self) -> Vec<Written> {
        let lasting = self.0.iter().filter(|(_, order)| order.persist);
        let written = |((virtual_server, backend), order): (&(String, String), &Order)| Written {
            virtual_server: virtual_server.clone(),
            backend: backend.clone(),
            drain: order.drain,
            weight: order.weight,
        };
        lasting.map(written).collect()
    }

    /// Follows a request; all of it or nothing. Returns `virtual-server/name` of each backend that it is about.
    ///
    /// # Errors
    /// If it names what is not there.
    pub fn follow(&mut self, request: &Request, servers: &[VirtualServer]) -> Result<Vec<String>, Unfit> {
        let Request { wish, backends, persist } = request;
        if let Wish::Weight(weight) = wish
            && *weight > MOST
        {
            return Err(Unfit::Weight(*weight));
        }
        let mut meant = BTreeSet::new();
        for name in backends {
            let found: Vec<_> = keys(servers).filter(|(server, backend)| is_meant(name, server, backend)).collect();
            if found.is_empty() {
                let present: Vec<String> =
                    keys(servers).map(|(server, backend)| format!("{server}/{backend}")).collect();
                return Err(Unfit::Unknown { name: name.clone(), present: present.join(", ") });
            }
            meant.extend(found);
        }
        if meant.is_empty() {
            return Err(Unfit::Nobody);
        }
        for key in &meant {
            let order = self.0.get(key).copied().unwrap_or_default();
            let order = match wish {
                Wish::Drain => Some(Order { drain: true, persist: *persist, ..order }),
                Wish::Weight(weight) => Some(Order { weight: Some(*weight), persist: *persist, ..order }),
                Wish::Enable => None,
            };
            match order {
                Some(order) => drop(self.0.insert(key.clone(), order)),
                None => drop(self.0.remove(key)),
            }
        }
        Ok(meant.into_iter().map(|(server, backend)| format!("{server}/{backend}")).collect())
    }

    /// Forgets those for backends that are not configured.
    pub fn retain(&mut self, servers: &[VirtualServer]) {
        let present: BTreeSet<_> = keys(servers).collect();
        self.0.retain(|key, _| present.contains(key));
    }

    pub fn of(&self, server: &VirtualServer, backend: &model::Backend) -> Option<Order> {
        self.0.get(&(server.name.clone(), backend.name.clone())).copied()
    }

    /// The state of a backend, as far as new connections go.
    pub fn state(&self, server: &VirtualServer, backend: &model::Backend, state: State) -> State {
        match self.of(server, backend) {
            Some(Order { drain: true, .. }) if state == State::Up => State::Draining,
            _ => state,
        }
    }

    /// The virtual servers with the weights that hold.
    pub fn weighted(&self, servers: &[VirtualServer]) -> Vec<VirtualServer> {
        let mut servers = servers.to_vec();
        for server in &mut servers {
            for backend in &mut server.backends {
                let order = self.0.get(&(server.name.clone(), backend.name.clone()));
                backend.weight = order.and_then(|order| order.weight).unwrap_or(backend.weight);
            }
        }
        servers
    }
}

fn keys(servers: &[VirtualServer]) -> impl Iterator<Item = (String, String)> {
    servers
        .iter()
        .flat_map(|server| server.backends.iter().map(move |backend| (server.name.clone(), backend.name.clone())))
}

fn is_meant(name: &str, server: &str, backend: &str) -> bool {
    name == backend || name.strip_prefix(server).and_then(|rest| rest.strip_prefix('/')) == Some(backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::desired::tests::server;

    fn request(wish: Wish, backends: &[&str]) -> Request {
        Request { wish, backends: backends.iter().map(|name| (*name).to_owned()).collect(), persist: false }
    }

    fn weights(servers: &[VirtualServer]) -> Vec<u16> {
        servers.iter().flat_map(|server| server.backends.iter().map(|backend| backend.weight)).collect()
    }

    fn drained(orders: &Orders, servers: &[VirtualServer]) -> Vec<bool> {
        let of = |server: &VirtualServer| -> Vec<bool> {
            let state = |backend| orders.state(server, backend, State::Up) == State::Draining;
            server.backends.iter().map(state).collect()
        };
        servers.iter().flat_map(of).collect()
    }

    #[test]
    fn an_order_holds_until_it_is_taken_back() {
        let servers = [server("a", 100, 2), server("b", 101, 2)];
        let mut orders = Orders::default();
        let everywhere = orders.follow(&request(Wish::Drain, &["m1"]), &servers).unwrap();
        assert_eq!(everywhere, ["a/m1", "b/m1"]);
        orders.follow(&request(Wish::Weight(7), &["a/m1", "b/m2"]), &servers).unwrap();
        assert_eq!(drained(&orders, &servers), [true, false, true, false]);
        assert_eq!(weights(&orders.weighted(&servers)), [7, 1, 1, 7]);
        let [a, _] = &servers;
        assert_eq!(orders.state(a, &a.backends[0], State::Down), State::Down, "dead is dead");

        orders.follow(&request(Wish::Enable, &["a/m1"]), &servers).unwrap();
        assert_eq!(drained(&orders, &servers), [false, false, true, false]);
        assert_eq!(weights(&orders.weighted(&servers)), [1, 1, 1, 7]);
        orders.retain(&servers[..1]);
        assert_eq!(orders, Orders::default());
    }

    #[test]
    fn a_request_is_followed_whole_or_not_at_all() {
        let servers = [server("a", 100, 2)];
        let mut orders = Orders::default();
        let unknown = orders.follow(&request(Wish::Drain, &["m1", "b/m2"]), &servers).unwrap_err().to_string();
        assert_eq!(unknown, "there is no backend \"b/m2\" here; there are a/m1, a/m2. Nothing was changed.");
        assert_eq!(orders.follow(&request(Wish::Weight(257), &["m1"]), &servers), Err(Unfit::Weight(257)));
        assert_eq!(orders.follow(&request(Wish::Drain, &[]), &servers), Err(Unfit::Nobody));
        assert_eq!(orders, Orders::default());
    }

    #[test]
    fn what_is_to_last_is_written_down() {
        let servers = [server("a", 100, 3)];
        let mut orders = Orders::default();
        orders.follow(&request(Wish::Drain, &["m1"]), &servers).unwrap();
        let lasting = |wish, name| Request { persist: true, ..request(wish, &[name]) };
        orders.follow(&lasting(Wish::Weight(0), "m2"), &servers).unwrap();
        orders.follow(&lasting(Wish::Drain, "m3"), &servers).unwrap();
        let json = serde_json::to_string(&orders.written()).unwrap();
        let read = Orders::read(serde_json::from_str(&json).unwrap(), &servers);
        assert_eq!(drained(&read, &servers), [false, false, true]);
        assert_eq!(weights(&read.weighted(&servers)), [1, 0, 1]);
        let fewer = Orders::read(serde_json::from_str(&json).unwrap(), &[server("a", 100, 2)]);
        assert_eq!(fewer.written().len(), 1, "no longer configured");
    }
}
