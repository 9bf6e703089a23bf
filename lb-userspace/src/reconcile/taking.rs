//! Who takes a virtual server's new connections, and how they are shared out. Pure.

use lb_common::{
    abi::{BackendId, Policy},
    maglev::{self, Member, WHOLE},
    rotation,
};

use crate::config::model::{AllDown, PreferLocal, VirtualServer};

/// A backend that may take new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// With portion 0 if it takes none, as its check or an order has it.
    pub(super) member: Member,
    pub(super) backup: bool,
    /// It listens on this host.
    pub(super) local: bool,
    /// Nobody has ordered that it takes none.
    pub(super) wanted: bool,
}

/// Who takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taking {
    members: Vec<Member>,
    own: Option<BackendId>,
    /// All are down, and they go to all.
    pub(super) open: bool,
}

/// `known` says that the health of each is.
pub(super) fn taking(server: &VirtualServer, candidates: &[Candidate], stand_ins: &[Member], known: bool) -> Taking {
    let takes = |candidate: &&Candidate| candidate.member.pull() > 0;
    let group = |backup| candidates.iter().filter(move |candidate| candidate.backup == backup);
    let opens = server.all_down == AllDown::Open && known && stand_ins.is_empty();
    let mut open = false;
    // Only of those that come into question at all: the table of the others must not depend on who else there is.
    let mut chosen: Vec<Candidate> = if group(false).any(|candidate| takes(&candidate)) {
        group(false).copied().collect()
    } else if group(true).any(|candidate| takes(&candidate)) {
        group(true).copied().collect()
    } else {
        let would = |candidate: &&Candidate| candidate.wanted && candidate.member.weight > 0;
        let backup = !group(false).any(|candidate| would(&candidate));
        open = opens && group(backup).any(|candidate| would(&candidate));
        let as_though_up = |candidate: &Candidate| {
            let portion = if open && candidate.wanted { WHOLE } else { 0 };
            Candidate { member: Member { portion, ..candidate.member }, ..*candidate }
        };
        group(backup).map(as_though_up).collect()
    };
    let preferred = |candidate: &&Candidate| takes(candidate) && candidate.local && candidate.member.portion == WHOLE;
    let own = chosen.iter().filter(preferred).max_by_key(|candidate| candidate.member.weight).copied();
    if own.is_some() && server.prefer_local == PreferLocal::All {
        chosen.iter_mut().filter(|candidate| !candidate.local).for_each(|candidate| candidate.member.portion = 0);
    }
    let own = own.filter(|_| server.prefer_local == PreferLocal::Processes).map(|candidate| candidate.member.id);
    let members = chosen.into_iter().map(|candidate| candidate.member).chain(stand_ins.iter().copied()).collect();
    Taking { members, own, open }
}

impl Taking {
    pub(super) fn table(&self, server: &VirtualServer) -> Vec<BackendId> {
        if server.balance.takes_turns() { rotation::build(&self.members) } else { maglev::build(&self.members) }
    }

    pub(super) fn policy(&self, server: &VirtualServer) -> Policy {
        let policy = Policy::new(server.balance).limited(server.connection_rate, server.over_rate);
        self.own.map_or(policy, |own| policy.preferring(own))
    }

    /// How many connections each is to have, against the others.
    pub(super) fn weights(&self) -> impl Iterator<Item = (BackendId, u32)> {
        self.members.iter().map(|member| (member.id, member.pull()))
    }

    /// Whose share still grows.
    pub(super) fn growing(&self) -> impl Iterator<Item = (BackendId, u16)> {
        let growing = self.members.iter().filter(|member| (1..WHOLE).contains(&member.portion));
        growing.map(|member| (member.id, member.portion))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::IpAddr,
        slice,
        time::Duration,
    };

    use lb_common::abi::{Backend, Balance, ServiceId};

    use super::*;
    use crate::{
        health::State,
        reconcile::{
            Desired, Inputs, Numbers, Orders, Part, Request, Returns, Wish, desired,
            desired::tests::{chosen, server, with_states},
        },
    };

    /// What one virtual server's table has, with everything else that it depends on.
    fn taken(server: &VirtualServer, states: &[State], local: &[u8]) -> BTreeSet<u32> {
        let local: Vec<IpAddr> = local.iter().map(|last| [192, 168, 2, *last].into()).collect();
        chosen(&with_states(slice::from_ref(server), &[states.to_vec()], &local), 0)
    }

    #[test]
    fn backups_take_over_when_nobody_else_is_left_and_leave_no_trace_before() {
        let mut mixed = server("a", 100, 4);
        (mixed.backends[2].backup, mixed.backends[3].backup) = (true, true);
        let up = [State::Up; 4];
        assert_eq!(taken(&mixed, &up, &[]), BTreeSet::from([0, 1]));
        assert_eq!(taken(&mixed, &[State::Down, State::Up, State::Up, State::Up], &[]), BTreeSet::from([1]));
        let without = server("a", 100, 2);
        let table = |server: &VirtualServer| with_states(slice::from_ref(server), &[up.to_vec()], &[]).tables;
        assert_eq!(table(&mixed), table(&without));
        for gone in [State::Down, State::Draining] {
            assert_eq!(taken(&mixed, &[gone, gone, State::Up, State::Up], &[]), BTreeSet::from([2, 3]), "{gone:?}");
        }
        mixed.backends[0].weight = 0;
        assert_eq!(taken(&mixed, &[State::Up, State::Down, State::Down, State::Up], &[]), BTreeSet::from([3]));
    }

    #[test]
    fn this_nodes_own_backend_is_preferred_by_whom_it_is_for() {
        let own = |server: &VirtualServer, states: &[State], local: u8| {
            let local = IpAddr::from([192, 168, 2, local]);
            with_states(slice::from_ref(server), &[states.to_vec()], &[local]).policies[&ServiceId(0)].own()
        };
        let off = server("a", 100, 3);
        let processes = VirtualServer { prefer_local: PreferLocal::Processes, ..off.clone() };
        let all = VirtualServer { prefer_local: PreferLocal::All, ..off.clone() };
        let (everybody, up) = (BTreeSet::from([0, 1, 2]), [State::Up; 3]);
        assert_eq!((own(&off, &up, 12), taken(&off, &up, &[12])), (BackendId::NONE, everybody.clone()));
        assert_eq!((own(&processes, &up, 12), taken(&processes, &up, &[12])), (BackendId(1), everybody.clone()));
        assert_eq!((own(&all, &up, 12), taken(&all, &up, &[12])), (BackendId::NONE, BTreeSet::from([1])));
        for server in [&processes, &all] {
            let down = [State::Up, State::Draining, State::Up];
            assert_eq!(
                (own(server, &down, 12), taken(server, &down, &[12])),
                (BackendId::NONE, BTreeSet::from([0, 2]))
            );
            assert_eq!((own(server, &up, 50), taken(server, &up, &[50])), (BackendId::NONE, everybody.clone()));
        }
        let mut backup = processes;
        backup.backends[1].backup = true;
        assert_eq!(own(&backup, &up, 12), BackendId::NONE, "it is not its turn");
        assert_eq!(own(&backup, &[State::Down, State::Up, State::Down], 12), BackendId(1));
    }

    #[test]
    fn with_all_down_new_connections_go_to_all_if_that_is_asked_for() {
        let closed = server("a", 100, 4);
        let mut open = VirtualServer { all_down: AllDown::Open, ..closed.clone() };
        open.backends[2].weight = 0;
        open.backends[3].backup = true;
        let made =
            |server: &VirtualServer, states: [State; 4]| with_states(slice::from_ref(server), &[states.to_vec()], &[]);
        let down = |desired: &Desired| desired.backends.values().filter(|backend| backend.is(Backend::DOWN)).count();
        for gone in [[State::Down; 4], [State::Draining; 4], [State::Down, State::Draining, State::Up, State::Down]] {
            let (refused, taken) = (made(&closed, [State::Down; 4]), made(&open, gone));
            assert_eq!((chosen(&refused, 0), refused.open.len()), (BTreeSet::from([BackendId::NONE.0]), 0));
            assert_eq!(chosen(&taken, 0), BTreeSet::from([0, 1]), "as though they were up: {gone:?}");
            assert_eq!((down(&refused), down(&taken)), (4, 0), "their connections are left alone");
            let failing = taken.backends.values().map(|backend| backend.is(Backend::FAILING)).collect::<Vec<_>>();
            assert_eq!(failing, gone.map(|state| state != State::Up), "what they refuse is refused: {gone:?}");
            assert!(refused.backends.values().all(|backend| !backend.is(Backend::FAILING)));
            assert_eq!(taken.open, BTreeSet::from([ServiceId(0)]));
        }
        for alive in
            [[State::Down, State::Up, State::Down, State::Down], [State::Down, State::Down, State::Down, State::Up]]
        {
            let made = made(&open, alive);
            assert_eq!((chosen(&made, 0).len(), down(&made), made.open.len()), (1, 3, 0), "{alive:?}");
        }
    }

    #[test]
    fn nobody_opens_before_all_were_checked_and_nobody_takes_who_is_drained_by_order() {
        let servers = [VirtualServer { all_down: AllDown::Open, ..server("a", 100, 2) }];
        let mut numbers = Numbers::default();
        numbers.follow(&[], &servers, Duration::ZERO).unwrap();
        let mut orders = Orders::default();
        let with = |orders: &Orders, unknown: &[usize], states: [State; 2]| {
            let unknown = unknown.iter().copied().collect();
            chosen(
                &desired(&Inputs {
                    servers: &servers,
                    states: &[states.to_vec()],
                    unknown: &unknown,
                    orders,
                    returns: &Returns::default(),
                    now: Duration::ZERO,
                    local: &BTreeSet::new(),
                    macs: &BTreeSet::new(),
                    ports: &BTreeMap::new(),
                    numbers: &numbers,
                    removed: &BTreeMap::new(),
                    part: &Part::default(),
                }),
                0,
            )
        };
        let nobody = BTreeSet::from([BackendId::NONE.0]);
        assert_eq!(with(&orders, &[], [State::Draining, State::Down]), BTreeSet::from([0, 1]));
        assert_eq!(with(&orders, &[0], [State::Draining, State::Down]), nobody);
        let drain = |name: &str| Request { wish: Wish::Drain, backends: vec![name.to_owned()], persist: false };
        orders.follow(&drain("m1"), &servers).unwrap();
        assert_eq!(with(&orders, &[], [State::Draining, State::Down]), BTreeSet::from([1]));
        orders.follow(&drain("m2"), &servers).unwrap();
        assert_eq!(with(&orders, &[], [State::Draining, State::Down]), nobody);
    }

    #[test]
    fn a_backend_that_comes_back_has_its_share_gradually_whatever_the_policy() {
        for balance in Balance::ALL {
            let slow_start = Duration::from_secs(31);
            let servers = [VirtualServer { balance, slow_start, ..server("a", 100, 2) }];
            let mut numbers = Numbers::default();
            numbers.follow(&[], &servers, Duration::ZERO).unwrap();
            let mut returns = Returns::default();
            let mut share = |second: u64, states: [State; 2]| {
                let now = Duration::from_secs(second);
                returns.follow(&servers, &[states.to_vec()], now);
                let made = desired(&Inputs {
                    servers: &servers,
                    states: &[states.to_vec()],
                    unknown: &BTreeSet::new(),
                    orders: &Orders::default(),
                    returns: &returns,
                    now,
                    local: &BTreeSet::new(),
                    macs: &BTreeSet::new(),
                    ports: &BTreeMap::new(),
                    numbers: &numbers,
                    removed: &BTreeMap::new(),
                    part: &Part::default(),
                });
                let table = &made.tables[&ServiceId(0)];
                let share = table.iter().filter(|id| **id == BackendId(1)).count() as f64 / table.len() as f64;
                (share, made.growing.get(&BackendId(1)).copied(), made.weights.get(&BackendId(1)).copied())
            };
            let near = |share: f64, fair: f64| (share - fair).abs() < 0.001;
            assert!(near(share(0, [State::Up, State::Up]).0, 0.5), "{balance:?}");
            assert!(near(share(1, [State::Up, State::Down]).0, 0.0), "{balance:?}");
            let (half, growing, weight) = {
                share(2, [State::Up, State::Up]);
                share(17, [State::Up, State::Up])
            };
            // Half of its own slots, or half as often as the other.
            let fair = if balance.takes_turns() { 1.0 / 3.0 } else { 0.25 };
            assert!(near(half, fair), "{balance:?}: {half}");
            let least = (balance == Balance::LeastConnections).then_some(16);
            assert_eq!((growing, weight), (Some(16), least), "{balance:?}");
            let (whole, growing, weight) = share(33, [State::Up, State::Up]);
            assert!(
                near(whole, 0.5) && growing.is_none() && weight == least.map(|_| WHOLE.into()),
                "{balance:?}: {whole}"
            );
        }
    }
}
