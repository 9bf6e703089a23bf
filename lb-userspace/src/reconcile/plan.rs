//! The changes that lead from what was applied to what is desired, in an order that is safe for packets in between. Pure.

use std::collections::BTreeMap;

use lb_common::abi::{Backend, Settings};

use super::Desired;
use crate::dataplane::Change;

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub desired: Desired,
    /// 0 before anything was applied.
    pub generation: u32,
}

/// Plans the way from `applied` to `desired`; `moved` says that routes or neighbours changed. Returns the changes and what holds
/// after them.
///
/// What a packet may choose is there before it can be chosen: backends, then tables, then virtual servers, then the settings that
/// let packets in. On the way out it is the other way round.
pub fn plan(desired: &Desired, applied: &Applied, moved: bool) -> (Vec<Change>, Applied) {
    let before = &applied.desired;
    let mut changes = Vec::new();
    let withdrawn = before.services.keys().filter(|key| !desired.services.contains_key(key));
    changes.extend(withdrawn.map(|key| Change::Withdraw(*key)));
    changes.extend(news(&desired.backends, &before.backends).map(|(id, backend)| Change::Backend(*id, *backend)));
    changes.extend(news(&desired.weights, &before.weights).map(|(id, weight)| Change::Weight(*id, *weight)));
    changes.extend(news(&desired.tables, &before.tables).map(|(id, table)| Change::Table(*id, table.clone())));
    changes.extend(news(&desired.policies, &before.policies).map(|(id, policy)| Change::Policy(*id, *policy)));
    // First, so that others have room: until they are there the kernel sends.
    let forgotten = before.ports.keys().filter(|port| !desired.ports.contains_key(port));
    changes.extend(forgotten.map(|port| Change::Forget(*port)));
    changes.extend(news(&desired.ports, &before.ports).map(|(from, to)| Change::Port(*from, *to)));
    // Who is allowed comes before those who are denied, among whom it would be in between.
    let mut rules: Vec<_> = news(&desired.ranges, &before.ranges).map(|(range, access)| (*range, *access)).collect();
    rules.sort_by_key(|(_, access)| access.is_denied());
    changes.extend(rules.into_iter().map(|(range, access)| Change::Rule(range, access)));
    let unruled = before.ranges.keys().filter(|range| !desired.ranges.contains_key(range));
    changes.extend(unruled.map(|range| Change::Unrule(*range)));
    changes.extend(news(&desired.services, &before.services).map(|(key, id)| Change::Serve(*key, *id)));
    let absent = before.backends.keys().filter(|id| !desired.backends.contains_key(id));
    changes.extend(absent.map(|id| Change::Backend(*id, Backend::absent())));

    // Connections have cached what they looked up: the way, that their backend lives, and that their client may.
    let stale = moved
        || desired.backends != before.backends
        || desired.ports != before.ports
        || desired.ranges != before.ranges;
    let generation = match (applied.generation, stale) {
        // 0 is never current.
        (0 | u32::MAX, _) => 1,
        (generation, true) => generation + 1,
        (generation, false) => generation,
    };
    let settings =
        |from: &Desired, generation| Settings::new(generation, from.vips, from.locals, from.macs).turning(from.turns);
    let wanted = settings(desired, generation);
    if applied.generation == 0 || wanted != settings(before, applied.generation) {
        changes.push(Change::Settings(Box::new(wanted)));
    }
    (changes, Applied { desired: desired.clone(), generation })
}

/// Entries of `wanted` that `present` lacks or has otherwise.
fn news<'a, K: Ord, V: PartialEq>(
    wanted: &'a BTreeMap<K, V>,
    present: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| present.get(key) != Some(value))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Balance, ServiceId};

    use super::*;
    use crate::{
        config::model::VirtualServer,
        health::State::{Down, Draining, Up},
        reconcile::desired::tests::{server, with_states},
    };

    fn kinds(changes: &[Change]) -> Vec<&'static str> {
        let kind = |change: &Change| match change {
            Change::Settings(_) => "settings",
            Change::Backend(_, backend) if !backend.is(Backend::PRESENT) => "absent",
            Change::Backend(_, backend) if backend.is(Backend::DOWN) => "down",
            Change::Backend(..) => "backend",
            Change::Weight(..) => "weight",
            Change::Table(..) => "table",
            Change::Policy(..) => "policy",
            Change::Serve(_, ServiceId::BACKEND) => "reply",
            Change::Serve(_, ServiceId::VIP) => "vip",
            Change::Serve(..) => "serve",
            Change::Withdraw(_) => "withdraw",
            Change::Rule(_, access) if access.is_denied() => "deny",
            Change::Rule(..) => "allow",
            Change::Unrule(_) => "unrule",
            Change::Port(..) => "port",
            Change::Forget(_) => "forget",
        };
        changes.iter().map(kind).collect()
    }

    #[test]
    fn from_each_state_to_each_next() {
        let one = [server("a", 100, 2)];
        let two = [server("a", 100, 2), server("b", 101, 1)];
        let turning = [VirtualServer { balance: Balance::LeastConnections, ..server("a", 100, 2) }];
        let up = with_states(&one, &[vec![Up, Up]], &[]);
        let mut listed = server("a", 100, 2);
        listed.allow = vec!["10.0.0.0/8".parse().unwrap()];
        let listed = with_states(&[listed], &[vec![Up, Up]], &[]);
        let table = [
            (
                "start",
                None,
                up.clone(),
                false,
                vec!["backend", "backend", "table", "policy", "reply", "reply", "vip", "serve", "settings"],
            ),
            ("some are allowed", Some(up.clone()), listed.clone(), false, vec!["allow", "deny", "settings"]),
            ("and all again", Some(listed), up.clone(), false, vec!["unrule", "unrule", "settings"]),
            ("nothing new", Some(up.clone()), up.clone(), false, vec![]),
            ("a route changed", Some(up.clone()), up.clone(), true, vec!["settings"]),
            ("one drains", Some(up.clone()), with_states(&one, &[vec![Up, Draining]], &[]), false, vec!["table"]),
            (
                "one dies",
                Some(up.clone()),
                with_states(&one, &[vec![Up, Down]], &[]),
                false,
                vec!["down", "table", "settings"],
            ),
            (
                "others take turns",
                Some(up.clone()),
                with_states(&turning, &[vec![Up, Up]], &[]),
                false,
                vec!["weight", "weight", "table", "policy"],
            ),
            (
                "a server more",
                Some(up.clone()),
                with_states(&two, &[vec![Up, Up], vec![Up]], &[]),
                false,
                vec!["backend", "table", "policy", "vip", "serve", "settings"],
            ),
            (
                "a server less",
                Some(with_states(&two, &[vec![Up, Up], vec![Up]], &[])),
                up,
                false,
                vec!["withdraw", "withdraw", "absent", "settings"],
            ),
        ];
        for (name, before, after, moved, expected) in table {
            let applied = match before {
                Some(before) => Applied { desired: before, generation: 7 },
                None => Applied::default(),
            };
            let (changes, then) = plan(&after, &applied, moved);
            assert_eq!(kinds(&changes), expected, "{name}");
            assert_eq!(then.desired, after, "{name}");
            let (again, _) = plan(&after, &then, false);
            assert!(again.is_empty(), "{name}: a second time brings {again:?}");
        }
    }

    #[test]
    fn a_generation_is_never_zero_and_changes_when_it_must() {
        let up = with_states(&[server("a", 100, 1)], &[vec![Up]], &[]);
        let (_, first) = plan(&up, &Applied::default(), false);
        assert_eq!(first.generation, 1);
        let last = Applied { generation: u32::MAX, ..first };
        assert_eq!(plan(&up, &last, true).1.generation, 1);
    }
}
