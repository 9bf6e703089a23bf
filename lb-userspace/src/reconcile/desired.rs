//! What the tables should hold, as a function of everything that matters. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, Backend, BackendId, Filter, MAX_BACKENDS, MAX_RANGES, MAX_SERVICES, Port, Range, ServiceId, ServiceKey,
    },
    address::{Address as _, V4, V6},
    maglev::{self, Member},
};

use crate::{
    config::model::{self, OnDown, VirtualServer},
    health::State,
};

/// All that the tables depend on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub servers: &'a [VirtualServer],
    /// Health by virtual server and backend, in the order of the configuration; what is missing counts as down.
    pub states: &'a [Vec<State>],
    /// Addresses of this host.
    pub local: &'a BTreeSet<IpAddr>,
    /// Ways between interfaces and VLAN tags, see [`lb_common::abi::Port`].
    pub ports: &'a BTreeMap<Port, Port>,
}

/// What the tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub services: BTreeMap<ServiceKey, ServiceId>,
    pub tables: BTreeMap<ServiceId, Vec<BackendId>>,
    pub backends: BTreeMap<BackendId, Backend>,
    pub ports: BTreeMap<Port, Port>,
    /// Who may use which virtual server; who is in no range may.
    pub ranges: BTreeMap<Range, Access>,
    pub vips: Filter,
    pub locals: Filter,
}

/// The configuration asks for more than the tables take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error(
        "{0} virtual servers are configured, and {MAX_SERVICES} are the most that one xvip carries. Spread them over several nodes."
    )]
    Services(usize),
    #[error(
        "{0} backends are configured, and {MAX_BACKENDS} are the most that one xvip carries. Spread them over several nodes."
    )]
    Backends(usize),
    #[error(
        "{0} ranges are in `allow` and `deny`, and {MAX_RANGES} are the most that one xvip takes. Join neighbouring ones."
    )]
    Ranges(usize),
}

/// Computes the tables.
///
/// # Errors
/// If the configuration asks for more than they take.
pub fn desired(inputs: &Inputs<'_>) -> Result<Desired, TooMany> {
    let backends: usize = inputs.servers.iter().map(|server| server.backends.len()).sum();
    if inputs.servers.len() > MAX_SERVICES {
        return Err(TooMany::Services(inputs.servers.len()));
    }
    if backends > MAX_BACKENDS {
        return Err(TooMany::Backends(backends));
    }
    let mut desired = Desired { ports: inputs.ports.clone(), ..Desired::default() };
    let mut ids = (0..).map(BackendId);
    for (index, server) in inputs.servers.iter().enumerate() {
        let service = ServiceId(index as u32);
        let key = match server.address.is_loopback() {
            // Packets must not know it: from outside, nobody may reach a loopback address.
            true => ServiceKey::on_host(mapped(server.address), server.port.to_be_bytes()),
            false => {
                mark(&mut desired.vips, server.address);
                ServiceKey::new(mapped(server.address), server.port.to_be_bytes())
            }
        };
        desired.services.insert(key, service);
        desired.ranges.extend(rules(service, server));
        let states = inputs.states.get(index).map_or(&[][..], Vec::as_slice);
        let mut members = Vec::with_capacity(server.backends.len());
        for ((position, backend), id) in server.backends.iter().enumerate().zip(&mut ids) {
            let state = states.get(position).copied().unwrap_or(State::Down);
            let local = inputs.local.contains(&backend.address);
            if local {
                mark(&mut desired.locals, backend.address);
            }
            desired.backends.insert(id, entry(backend, state == State::Down && server.on_down == OnDown::Reset, local));
            let replies = ServiceKey::new(mapped(backend.address), backend.port.to_be_bytes());
            desired.services.insert(replies, ServiceId::BACKEND);
            members.push(Member {
                id,
                address: mapped(backend.address),
                port: backend.port.to_be_bytes(),
                weight: backend.weight,
                live: state == State::Up,
            });
        }
        desired.tables.insert(service, maglev::build(&members));
    }
    if desired.ranges.len() > MAX_RANGES {
        return Err(TooMany::Ranges(desired.ranges.len()));
    }
    Ok(desired)
}

/// Who may use a virtual server. The most specific range counts, and of two equal ones that which denies; where any is allowed, all others are
/// denied.
fn rules(service: ServiceId, server: &VirtualServer) -> BTreeMap<Range, Access> {
    let range = |net: &IpNet| match net.network() {
        IpAddr::V4(v4) => Range::new(service, V4(v4.octets()), u32::from(net.prefix_len())),
        IpAddr::V6(v6) => Range::new(service, V6(v6.octets()), u32::from(net.prefix_len())),
    };
    let others = (!server.allow.is_empty()).then_some((Range::everybody(service), Access::DENIED));
    let allowed = server.allow.iter().map(|net| (range(net), Access::ALLOWED));
    let denied = server.deny.iter().map(|net| (range(net), Access::DENIED));
    others.into_iter().chain(allowed).chain(denied).collect()
}

/// Draining is not down: its connections go on.
fn entry(backend: &model::Backend, down: bool, local: bool) -> Backend {
    let down = if down { Backend::DOWN } else { 0 };
    let local = if local { Backend::LOCAL } else { 0 };
    Backend::new(mapped(backend.address), backend.port.to_be_bytes(), down | local)
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => V4(v4.octets()).mapped(),
        IpAddr::V6(v6) => V6(v6.octets()).mapped(),
    }
}

fn mark(filter: &mut Filter, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => filter.insert(V4(v4.octets())),
        IpAddr::V6(v6) => filter.insert(V6(v6.octets())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::model::{Check, CheckKind};

    /// A virtual server with as many backends as there are states.
    pub(crate) fn server(name: &str, last: u8, backends: u8) -> VirtualServer {
        let second = std::time::Duration::from_secs(1);
        VirtualServer {
            name: name.to_owned(),
            address: [192, 168, 2, last].into(),
            port: 16443,
            interface: None,
            on_down: OnDown::Reset,
            allow: Vec::new(),
            deny: Vec::new(),
            check: Check {
                kind: CheckKind::Tcp,
                interval: second,
                timeout: second,
                rise: NonZeroU32::MIN,
                fall: NonZeroU32::MIN,
                jitter_percent: 0,
                port: None,
            },
            backends: (1..=backends)
                .map(|index| model::Backend {
                    name: format!("m{index}"),
                    address: [192, 168, 2, 10 + index].into(),
                    port: 6443,
                    weight: 1,
                })
                .collect(),
        }
    }

    pub(crate) fn with_states(servers: &[VirtualServer], states: &[Vec<State>], local: &[IpAddr]) -> Desired {
        let local = local.iter().copied().collect();
        let ports = BTreeMap::new();
        desired(&Inputs { servers, states, local: &local, ports: &ports }).unwrap()
    }

    fn chosen(desired: &Desired, service: u32) -> BTreeSet<u32> {
        desired.tables[&ServiceId(service)].iter().map(|id| id.0).collect()
    }

    #[test]
    fn only_backends_that_are_up_are_chosen_and_only_dead_ones_are_down() {
        let servers = [server("a", 100, 3)];
        let desired = with_states(&servers, &[vec![State::Up, State::Draining, State::Down]], &[]);
        assert_eq!(chosen(&desired, 0), BTreeSet::from([0]));
        let down: Vec<bool> = desired.backends.values().map(|backend| backend.is(Backend::DOWN)).collect();
        assert_eq!(down, [false, false, true]);
    }

    #[test]
    fn a_dead_backend_keeps_its_connections_if_asked_to() {
        let servers = [VirtualServer { on_down: OnDown::Keep, ..server("a", 100, 2) }];
        let desired = with_states(&servers, &[vec![State::Up, State::Down]], &[]);
        assert_eq!(chosen(&desired, 0), BTreeSet::from([0]));
        assert!(desired.backends.values().all(|backend| !backend.is(Backend::DOWN)));
    }

    #[test]
    fn nobody_up_means_nobody_chosen() {
        let servers = [server("a", 100, 2)];
        let desired = with_states(&servers, &[], &[]);
        assert_eq!(chosen(&desired, 0), BTreeSet::from([BackendId::NONE.0]));
    }

    #[test]
    fn each_virtual_server_has_backends_of_its_own() {
        let servers = [server("a", 100, 2), server("b", 101, 2)];
        let desired = with_states(&servers, &[vec![State::Up; 2], vec![State::Up; 2]], &[]);
        assert_eq!(chosen(&desired, 0), BTreeSet::from([0, 1]));
        assert_eq!(chosen(&desired, 1), BTreeSet::from([2, 3]));
        let served = desired.services.values().filter(|id| **id != ServiceId::BACKEND);
        assert_eq!(served.count(), 2);
        // Both virtual servers have the same two.
        assert_eq!(desired.services.len(), 2 + 2);
    }

    #[test]
    fn a_backend_on_this_host_is_local_and_watched_for_on_the_way_out() {
        let servers = [server("a", 100, 2)];
        let here = V4([192, 168, 2, 12]);
        let desired = with_states(&servers, &[vec![State::Up; 2]], &[here.into()]);
        let local: Vec<bool> = desired.backends.values().map(|backend| backend.is(Backend::LOCAL)).collect();
        assert_eq!(local, [false, true]);
        assert!(desired.locals.may_hold(here));
        assert!(desired.vips.may_hold(V4([192, 168, 2, 100])));
    }

    #[test]
    fn a_loopback_address_is_known_to_this_host_only() {
        let mut server = server("a", 100, 1);
        server.address = [127, 0, 0, 1].into();
        let desired = with_states(&[server.clone()], &[vec![State::Up]], &[]);
        let (address, port) = (mapped(server.address), server.port.to_be_bytes());
        assert_eq!(desired.services.get(&ServiceKey::on_host(address, port)), Some(&ServiceId(0)));
        assert_eq!(desired.services.get(&ServiceKey::new(address, port)), None);
        assert_eq!(desired.vips, Filter::empty());
    }

    #[test]
    fn of_equal_ranges_the_denied_one_counts_and_what_is_not_allowed_is_denied() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut servers = [server("a", 100, 1), server("b", 101, 1), server("c", 102, 1)];
        servers[1].deny = vec![net("10.0.0.0/8")];
        servers[2].allow = vec![net("10.0.0.0/8"), net("10.1.0.0/16"), net("0.0.0.0/0")];
        servers[2].deny = vec![net("10.1.0.0/16"), net("10.0.0.7/32")];
        let ranges = with_states(&servers, &[], &[]).ranges;
        let of = |service, address, length| Range::new(ServiceId(service), V4(address), length);
        let expected = [
            (of(1, [10, 0, 0, 0], 8), Access::DENIED),
            (Range::everybody(ServiceId(2)), Access::DENIED),
            (of(2, [0, 0, 0, 0], 0), Access::ALLOWED),
            (of(2, [10, 0, 0, 0], 8), Access::ALLOWED),
            (of(2, [10, 1, 0, 0], 16), Access::DENIED),
            (of(2, [10, 0, 0, 7], 32), Access::DENIED),
        ];
        assert_eq!(ranges, BTreeMap::from(expected));
    }

    #[test]
    fn too_many_are_refused() {
        let servers = vec![server("a", 100, 1); MAX_SERVICES + 1];
        let (local, ports) = (BTreeSet::new(), BTreeMap::new());
        let inputs = Inputs { servers: &servers, states: &[], local: &local, ports: &ports };
        assert_eq!(desired(&inputs), Err(TooMany::Services(MAX_SERVICES + 1)));
        let mut wide = server("a", 100, 1);
        wide.backends = vec![wide.backends[0].clone(); MAX_BACKENDS + 1];
        let inputs = Inputs { servers: &[wide], ..inputs };
        assert_eq!(desired(&inputs), Err(TooMany::Backends(MAX_BACKENDS + 1)));
        let mut listed = server("a", 100, 1);
        listed.deny = (0..=MAX_RANGES as u32).map(|number| IpNet::from(IpAddr::V4(number.into()))).collect();
        let inputs = Inputs { servers: &[listed], ..inputs };
        assert_eq!(desired(&inputs), Err(TooMany::Ranges(MAX_RANGES + 1)));
    }
}
