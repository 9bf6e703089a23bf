//! What the tables should hold, as a function of everything that matters. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{
    abi::{
        Access, Backend, BackendId, Balance, Filter, MAX_BACKENDS, MAX_RANGES, MAX_SERVICES, Policy, Port, Range,
        ServiceId, ServiceKey, Turned,
    },
    address::{V4, V6},
    maglev::{Member, WHOLE},
};

use super::{
    numbers::{Endpoint, Numbers, Removed, mapped, service},
    orders::Orders,
    returns::Returns,
    taking::{Candidate, taking},
    way::{Part, holds},
};
use crate::{
    config::model::{OnDown, ServerMode, VirtualServer},
    health::State,
};

/// All that the tables depend on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub servers: &'a [VirtualServer],
    /// Health by virtual server and backend, in the order of the configuration; what is missing counts as down.
    pub states: &'a [Vec<State>],
    /// Places of virtual servers with a backend that was not checked yet.
    pub unknown: &'a BTreeSet<usize>,
    pub orders: &'a Orders,
    pub returns: &'a Returns,
    /// Counted as in `returns`.
    pub now: Duration,
    pub numbers: &'a Numbers,
    /// Health of removed backends; what is missing is left to itself.
    pub removed: &'a BTreeMap<BackendId, State>,
    /// Addresses of this host.
    pub local: &'a BTreeSet<IpAddr>,
    /// MAC addresses of this host.
    pub macs: &'a BTreeSet<[u8; 6]>,
    /// Ways between interfaces and VLAN tags, see [`lb_common::abi::Port`].
    pub ports: &'a BTreeMap<Port, Port>,
    /// How packets come to backends.
    pub part: &'a Part,
}

/// What the tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub services: BTreeMap<ServiceKey, ServiceId>,
    pub tables: BTreeMap<ServiceId, Vec<BackendId>>,
    pub policies: BTreeMap<ServiceId, Policy>,
    /// How many connections each is to have, against the others of its virtual server, where that counts.
    pub weights: BTreeMap<BackendId, u32>,
    /// Backends that come back, and how much of their share they have, of [`WHOLE`]. For people.
    pub growing: BTreeMap<BackendId, u16>,
    /// Virtual servers whose backends are all down and get new connections all the same. For people.
    pub open: BTreeSet<ServiceId>,
    pub backends: BTreeMap<BackendId, Backend>,
    pub ports: BTreeMap<Port, Port>,
    /// Who may use which virtual server; who is in no range may.
    pub ranges: BTreeMap<Range, Access>,
    pub vips: Filter,
    pub locals: Filter,
    pub macs: Filter,
    /// Whether this node has backends that other nodes send packets for.
    pub turns: bool,
}

/// The configuration asks for more than the tables take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error(
        "{0} virtual servers are configured, and {MAX_SERVICES} are the most that one xvip carries. Spread them over several nodes."
    )]
    Services(usize),
    #[error(
        "{configured} backends are configured and {draining} more are draining, and {MAX_BACKENDS} are the most that one xvip carries. Spread \
         them over several nodes, or wait for the draining ones."
    )]
    Backends { configured: usize, draining: usize },
    #[error(
        "{0} ranges are in `allow` and `deny`, and {MAX_RANGES} are the most that one xvip takes. Join neighbouring ones."
    )]
    Ranges(usize),
}

/// Computes the tables. What has no number yet is not in them.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let mut desired = Desired { ports: inputs.ports.clone(), ..Desired::default() };
    for (index, server) in inputs.servers.iter().enumerate() {
        let Some(number) = inputs.numbers.service(server) else { continue };
        let key = service(server);
        if !key.is_on_host() {
            desired.look_at(server.address);
        }
        desired.services.insert(key, number);
        desired.ranges.extend(rules(number, server));
        let states = inputs.states.get(index).map_or(&[][..], Vec::as_slice);
        let mut all = Vec::with_capacity(server.backends.len());
        let direct = inputs.part.ways.get(index).map_or(&[][..], |way| &way.direct[..]);
        for (position, backend) in server.backends.iter().enumerate() {
            let endpoint = Endpoint::of(server, backend);
            let Some(id) = inputs.numbers.backend(&endpoint) else { continue };
            let state = states.get(position).copied().unwrap_or(State::Down);
            let portion = if state == State::Up { inputs.returns.portion(server, backend, inputs.now) } else { 0 };
            let candidate = Candidate {
                member: member(id, &endpoint, backend.weight, portion),
                backup: backend.backup,
                local: inputs.local.contains(&endpoint.address()),
                wanted: !inputs.orders.of(server, backend).is_some_and(|order| order.drain),
            };
            let direct = direct.get(position).copied().unwrap_or_default();
            if server.mode != ServerMode::Nat && inputs.local.contains(&backend.address) {
                desired.turn(key, Turned::new(id, holds(server, &inputs.part.moving)), inputs);
            }
            all.push((endpoint, state, direct, candidate));
        }
        let candidates: Vec<Candidate> = all.iter().map(|(_, _, _, candidate)| *candidate).collect();
        let removed = inputs.numbers.removed().filter(|(endpoint, _)| *endpoint.service() == key);
        let stand_ins: Vec<Member> =
            removed.filter_map(|(endpoint, removed)| stand_in(inputs, endpoint, removed)).collect();
        let taking = taking(server, &candidates, &stand_ins, !inputs.unknown.contains(&index));
        for (endpoint, state, direct, candidate) in &all {
            let down = *state == State::Down && server.on_down == OnDown::Reset && !taking.open;
            let failing = *state != State::Up && taking.open;
            let flags = [(Backend::DOWN, down), (Backend::FAILING, failing), (Backend::DIRECT, *direct)];
            let flags = flags.into_iter().fold(0, |all, (one, is_set)| all | flag(one, is_set));
            desired.add(inputs, endpoint, candidate.member.id, flags);
        }
        desired.tables.insert(number, taking.table(server));
        desired.policies.insert(number, taking.policy(server));
        desired.growing.extend(taking.growing());
        if server.balance == Balance::LeastConnections {
            desired.weights.extend(taking.weights());
        }
        if taking.open {
            desired.open.insert(number);
        }
    }
    for (endpoint, removed) in inputs.numbers.removed() {
        if !endpoint.service().is_on_host() {
            desired.look_at(endpoint.vip());
        }
        let keeps = removed.was.as_ref().is_some_and(|server| server.on_down == OnDown::Keep);
        let down = inputs.removed.get(&removed.id) == Some(&State::Down) && !keeps;
        desired.add(inputs, endpoint, removed.id, flag(Backend::DOWN, removed.over || down));
    }
    inputs.macs.iter().for_each(|mac| desired.macs.insert_mac(*mac));
    desired
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

impl Desired {
    fn look_at(&mut self, vip: IpAddr) {
        mark(&mut self.vips, vip);
        self.services.insert(ServiceKey::vip(mapped(vip)), ServiceId::VIP);
    }

    /// Draining is not down: its connections go on.
    fn add(&mut self, inputs: &Inputs<'_>, endpoint: &Endpoint, id: BackendId, flags: u8) {
        let local = if inputs.local.contains(&endpoint.address()) {
            mark(&mut self.locals, endpoint.address());
            Backend::LOCAL
        } else {
            0
        };
        self.backends.insert(id, endpoint.entry(flags | local));
        self.services.insert(endpoint.replies(), ServiceId::BACKEND);
    }

    /// What other nodes send here for a virtual server is for that backend: one of those that are here.
    fn turn(&mut self, server: ServiceKey, own: Turned, inputs: &Inputs<'_>) {
        self.turns = true;
        self.services.entry(server.turned()).or_insert(own.stored());
        let forwarders = inputs.part.forwarders.iter().map(|mac| (ServiceKey::forwarder(*mac), ServiceId::BACKEND));
        self.services.extend(forwarders);
    }
}

fn flag(flag: u8, is_set: bool) -> u8 {
    if is_set { flag } else { 0 }
}

fn member(id: BackendId, endpoint: &Endpoint, weight: u16, portion: u16) -> Member {
    Member { id, address: mapped(endpoint.address()), port: endpoint.port().to_be_bytes(), weight, portion }
}

/// A removed backend that new connections go to all the same, until another takes them.
fn stand_in(inputs: &Inputs<'_>, endpoint: &Endpoint, removed: &Removed) -> Option<Member> {
    let backend = removed.was.as_ref()?.backends.first()?;
    let live = removed.stands_in && !removed.over && inputs.removed.get(&removed.id) == Some(&State::Up);
    live.then(|| member(removed.id, endpoint, backend.weight, WHOLE))
}

fn mark(filter: &mut Filter, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => filter.insert(V4(v4.octets())),
        IpAddr::V6(v6) => filter.insert(V6(v6.octets())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use lb_common::abi::Holds;

    use super::*;
    use crate::{
        config::model::{self, AllDown, Check, CheckKind, Excess, PreferLocal},
        reconcile::Way,
    };

    /// A virtual server with as many backends as there are states.
    pub(crate) fn server(name: &str, last: u8, backends: u8) -> VirtualServer {
        let second = Duration::from_secs(1);
        VirtualServer {
            name: name.to_owned(),
            address: [192, 168, 2, last].into(),
            port: 16443,
            interface: None,
            balance: Balance::SourceHash,
            slow_start: Duration::ZERO,
            prefer_local: PreferLocal::Off,
            mode: ServerMode::Nat,
            elsewhere: false,
            on_down: OnDown::Reset,
            all_down: AllDown::Reset,
            connection_rate: 0,
            over_rate: Excess::Challenge,
            allow: Vec::new(),
            deny: Vec::new(),
            drain: 600 * second,
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
                    backup: false,
                })
                .collect(),
        }
    }

    pub(crate) fn with_states(servers: &[VirtualServer], states: &[Vec<State>], local: &[IpAddr]) -> Desired {
        let mut numbers = Numbers::default();
        numbers.follow(&[], servers, Duration::ZERO).unwrap();
        numbered(servers, states, local, &numbers, &[])
    }

    /// The same with the numbers and the states of removed backends given.
    pub(crate) fn numbered(
        servers: &[VirtualServer],
        states: &[Vec<State>],
        local: &[IpAddr],
        numbers: &Numbers,
        removed: &[(BackendId, State)],
    ) -> Desired {
        let local = local.iter().copied().collect();
        let (ports, removed) = (BTreeMap::new(), removed.iter().copied().collect());
        let (macs, part) = (BTreeSet::new(), Part::default());
        desired(&Inputs {
            servers,
            states,
            unknown: &BTreeSet::new(),
            orders: &Orders::default(),
            returns: &Returns::default(),
            now: Duration::ZERO,
            local: &local,
            macs: &macs,
            ports: &ports,
            numbers,
            removed: &removed,
            part: &part,
        })
    }

    pub(crate) fn chosen(desired: &Desired, service: u32) -> BTreeSet<u32> {
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
        let served = desired.services.iter().filter(|(key, id)| key.has_table() && **id != ServiceId::BACKEND);
        assert_eq!(served.count(), 2);
        // Both virtual servers have the same two.
        assert_eq!(desired.services.values().filter(|id| **id == ServiceId::BACKEND).count(), 2);
        let vips = [100, 101].map(|last| ServiceKey::vip(mapped(IpAddr::from([192, 168, 2, last]))));
        assert!(vips.iter().all(|vip| desired.services.get(vip) == Some(&ServiceId::VIP)));
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
    fn a_backend_here_is_turned_for_and_the_others_are_sent_to_directly() {
        let servers = [VirtualServer { mode: ServerMode::Dsr, ..server("a", 100, 3) }];
        let mut numbers = Numbers::default();
        numbers.follow(&[], &servers, Duration::ZERO).unwrap();
        let here = V4([192, 168, 2, 12]);
        let local = BTreeSet::from([here.into()]);
        let mac = [2, 0, 0, 0, 0, 11];
        let part = Part {
            ways: vec![Way { direct: vec![true, true, false], because: None }],
            moving: BTreeSet::from([servers[0].address]),
            forwarders: BTreeSet::from([mac]),
        };
        let (macs, ports, removed) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let inputs = Inputs {
            servers: &servers,
            states: &[],
            unknown: &BTreeSet::new(),
            orders: &Orders::default(),
            returns: &Returns::default(),
            now: Duration::ZERO,
            local: &local,
            macs: &macs,
            ports: &ports,
            numbers: &numbers,
            removed: &removed,
            part: &part,
        };
        let with = desired(&inputs);
        let direct: Vec<bool> = with.backends.values().map(|backend| backend.is(Backend::DIRECT)).collect();
        assert_eq!(direct, [true, true, false]);
        let turned = Turned::new(BackendId(1), Holds::Leased).stored();
        assert_eq!(with.services.get(&service(&servers[0]).turned()), Some(&turned));
        assert_eq!(with.services.get(&ServiceKey::forwarder(mac)), Some(&ServiceId::BACKEND));
        assert!(with.turns && !desired(&Inputs { local: &BTreeSet::new(), ..inputs }).turns);
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
    fn a_removed_backend_carries_on_without_new_connections() {
        let before = [server("a", 100, 2), server("b", 101, 1)];
        let (mut numbers, now) = (Numbers::default(), Duration::ZERO);
        numbers.follow(&[], &before, now).unwrap();
        let mut after = [before[0].clone()];
        after[0].backends.remove(0);
        numbers.follow(&before, &after, now).unwrap();
        let (first, other) = (BackendId(0), BackendId(2));
        let up = [vec![State::Up]];

        let states = [(first, State::Up), (other, State::Up)];
        let standing_in = numbered(&after, &[vec![State::Down]], &[], &numbers, &states);
        assert_eq!(chosen(&standing_in, 0), BTreeSet::from([0]), "better the old one than none");
        numbers.relieve(|_| true);
        let drained = numbered(&after, &up, &[before[1].backends[0].address], &numbers, &states);
        assert_eq!(chosen(&drained, 0), BTreeSet::from([1]));
        assert_eq!(drained.tables.len(), 1);
        assert!(!drained.services.contains_key(&service(&before[1])), "new connections to it are nobody's");
        assert!(drained.vips.may_hold(V4([192, 168, 2, 101])), "those that are there go on");
        assert!(drained.locals.may_hold(V4([192, 168, 2, 11])));
        let down = |desired: &Desired| -> Vec<bool> {
            [first, other].map(|id| desired.backends[&id].is(Backend::DOWN)).to_vec()
        };
        assert_eq!(down(&drained), [false, false]);
        assert_eq!(down(&numbered(&after, &up, &[], &numbers, &[])), [false, false], "nobody knows: let them be");
        assert_eq!(down(&numbered(&after, &up, &[], &numbers, &[(other, State::Down)])), [false, true], "it died");
        numbers.expire(now + Duration::from_secs(600));
        assert_eq!(down(&numbered(&after, &up, &[], &numbers, &states)), [true, true]);
    }
}
