//! What this node's right to be master depends on beyond its link: its data plane, the backends that it reaches, and scripts.
//! Counted as keepalived counts.

mod script;
mod tally;

use std::collections::BTreeMap;

use super::Condition;
use crate::{
    config::model::{self, VirtualServer},
    health::State,
};
pub use script::{Reports, Scripts};

/// What [`Tracked::what`] says of the backends.
pub const BACKENDS: &str = "backends";

/// Something that counts for an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// `backends`, `data plane`, or `script NAME`.
    pub what: String,
    pub weight: i16,
    pub good: bool,
    /// In words: "2 of 3 backends healthy".
    pub text: String,
}

/// All that is tracked, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub servers: &'a [VirtualServer],
    /// Health by virtual server and backend, in the order of the configuration; what is missing counts as down.
    pub states: &'a [Vec<State>],
    /// Interfaces that packets are not carried on, and why.
    pub broken: &'a BTreeMap<String, String>,
    pub scripts: &'a Reports,
}

/// What counts for the instance at this place of the configuration.
pub fn tracked(instance: &model::Vrrp, position: usize, inputs: &Inputs<'_>) -> Vec<Tracked> {
    let mut tracked = vec![data_plane(instance, inputs.broken)];
    tracked.extend(backends(instance, inputs));
    let reports = inputs.scripts.get(position).map_or(&[][..], Vec::as_slice);
    tracked.extend(instance.scripts.iter().zip(reports).map(|(script, report)| Tracked {
        what: format!("script {}", script.name),
        weight: script.weight,
        good: report.good == Some(true),
        text: report.text.clone(),
    }));
    tracked
}

/// What follows for each instance. Members of a sync group are master together, so what counts for one counts for all, and once: if
/// each advertised what is its own, one could keep the others from going where it cannot follow.
pub fn conditions(instances: &[model::Vrrp], tracked: &[Vec<Tracked>]) -> Vec<Condition> {
    let of = |(index, instance): (usize, &model::Vrrp)| {
        let counts = |(other, candidate): &(usize, &model::Vrrp)| {
            *other == index || instance.sync_group.is_some() && candidate.sync_group == instance.sync_group
        };
        let members = instances.iter().enumerate().filter(counts).map(|(other, _)| other);
        let mut all: BTreeMap<(&str, i16), bool> = BTreeMap::new();
        for Tracked { what, weight, good, .. } in members.filter_map(|member| tracked.get(member)).flatten() {
            *all.entry((what, *weight)).or_insert(true) &= good;
        }
        all.into_iter().fold(Condition::default(), |so_far, ((_, weight), good)| counted(so_far, weight, good))
    };
    instances.iter().enumerate().map(of).collect()
}

/// A negative weight counts on failure, a positive one on success, and zero means that failure is a fault.
fn counted(so_far: Condition, weight: i16, good: bool) -> Condition {
    match (weight, good) {
        (0, false) => Condition { fault: true, ..so_far },
        (1.., true) | (..0, false) => Condition { adjustment: so_far.adjustment.saturating_add(weight), ..so_far },
        _ => so_far,
    }
}

fn data_plane(instance: &model::Vrrp, broken: &BTreeMap<String, String>) -> Tracked {
    let why: Vec<String> = broken.iter().map(|(interface, why)| format!("{interface}: {why}")).collect();
    Tracked {
        what: "data plane".to_owned(),
        weight: instance.dataplane_weight,
        good: broken.is_empty(),
        text: if why.is_empty() { "attached".to_owned() } else { why.join("; ") },
    }
}

/// Of all virtual servers on the instance's addresses together; none where there is no such virtual server.
fn backends(instance: &model::Vrrp, inputs: &Inputs<'_>) -> Option<Tracked> {
    let is_here = |server: &VirtualServer| instance.addresses.iter().any(|net| net.addr() == server.address);
    let (mut all, mut healthy) = (0, 0);
    for (index, server) in inputs.servers.iter().enumerate().filter(|(_, server)| is_here(server)) {
        let states = inputs.states.get(index).map_or(&[][..], Vec::as_slice);
        all += server.backends.len();
        healthy += states.iter().filter(|state| **state == State::Up).count();
    }
    (all > 0).then(|| Tracked {
        what: BACKENDS.to_owned(),
        weight: instance.backends_weight,
        good: healthy > 0,
        text: format!("{healthy} of {all} healthy"),
    })
}

#[cfg(test)]
mod tests {
    use super::{script::Report, *};
    use crate::config::parse;

    /// Of an instance that tracks these, each something of its own.
    fn named(tracked: &[(i16, bool)]) -> Vec<Tracked> {
        let one = |(index, (weight, good)): (usize, &(i16, bool))| Tracked {
            what: format!("number {index}"),
            weight: *weight,
            good: *good,
            text: String::new(),
        };
        tracked.iter().enumerate().map(one).collect()
    }

    fn of(adjustment: i16, fault: bool) -> Condition {
        Condition { adjustment, fault }
    }

    #[test]
    fn weights_count_as_keepalived_counts_them() {
        let table: &[(&[(i16, bool)], Condition)] = &[
            (&[], of(0, false)),
            // The three kinds, good and bad.
            (&[(0, true)], of(0, false)),
            (&[(0, false)], of(0, true)),
            (&[(-2, true)], of(0, false)),
            (&[(-2, false)], of(-2, false)),
            (&[(11, true)], of(11, false)),
            (&[(11, false)], of(0, false)),
            // Several add up, and one fault is enough.
            (&[(-2, false), (-30, false), (11, true)], of(-21, false)),
            (&[(-2, false), (0, false), (0, true)], of(-2, true)),
            (&[(253, true); 200], of(i16::MAX, false)),
            (&[(-253, false); 200], of(i16::MIN, false)),
        ];
        let instance = config().vrrp.remove(0);
        for (tracked, expected) in table {
            assert_eq!(conditions(std::slice::from_ref(&instance), &[named(tracked)]), [*expected], "{tracked:?}");
        }
    }

    #[test]
    fn what_counts_for_one_member_of_a_sync_group_counts_for_all_and_once() {
        let mut instances = config().vrrp;
        let all = [
            named(&[(-10, false), (11, true), (5, true)]),
            named(&[(-10, false), (11, true), (5, false), (0, false)]),
            named(&[(-3, false), (-30, false)]),
        ];
        assert_eq!(conditions(&instances, &all), [of(6, false), of(1, true), of(-33, false)]);
        for index in [0, 1] {
            instances[index].sync_group = Some("group".to_owned());
        }
        // The third is good in one member only, and so not good.
        assert_eq!(conditions(&instances, &all), [of(1, true), of(1, true), of(-33, false)]);
    }

    /// Two virtual servers on one instance's VIPs, one on another's, one on none.
    fn config() -> model::Config {
        let server = |name: &str, vip: &str, backends: usize| {
            let backend =
                |index| format!("[[virtual_server.backend]]\nname = \"b{index}\"\naddress = \"10.0.0.{index}\"\n");
            let backends: String = (1..=backends).map(backend).collect();
            format!("[[virtual_server]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 443\n{backends}")
        };
        let text = [
            "[dataplane]\ninterfaces = [\"eth0\"]\n".to_owned(),
            server("a", "10.0.1.1", 2),
            server("b", "10.0.1.2", 1),
            server("c", "10.0.1.3", 1),
            server("d", "10.0.1.4", 1),
            "[[vrrp]]\nname = \"one\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"10.0.1.1\", \"10.0.1.2/24\"]\n".to_owned(),
            "[[vrrp.script]]\nname = \"s\"\ncommand = [\"/bin/true\"]\nweight = 7\n".to_owned(),
            "[[vrrp]]\nname = \"two\"\ninterface = \"eth0\"\nvrid = 2\naddresses = [\"10.0.1.3\"]\nbackends_weight = 0\n".to_owned(),
            "[[vrrp]]\nname = \"bare\"\ninterface = \"eth0\"\nvrid = 3\naddresses = [\"10.0.1.9\"]\n".to_owned(),
        ];
        parse(&text.concat(), "test").unwrap_or_else(|report| panic!("{report}"))
    }

    fn found(states: &[Vec<State>], broken: &[&str], script: bool) -> Vec<Condition> {
        let config = config();
        let scripts = vec![vec![Report { good: Some(script), text: String::new() }], Vec::new(), Vec::new()];
        let broken = broken.iter().map(|name| ((*name).to_owned(), "gone".to_owned())).collect();
        let inputs = Inputs { servers: &config.virtual_servers, states, broken: &broken, scripts: &scripts };
        let of = |(position, instance)| tracked(instance, position, &inputs);
        conditions(&config.vrrp, &config.vrrp.iter().enumerate().map(of).collect::<Vec<_>>())
    }

    #[test]
    fn each_instance_depends_on_the_backends_of_its_own_vips() {
        let (up, down, draining) = (State::Up, State::Down, State::Draining);
        let good = vec![vec![up, up], vec![up], vec![up], vec![up]];
        assert_eq!(found(&good, &[], false), [of(0, false), of(0, false), of(0, false)]);
        // The first is still good for the instance's other VIP; the fourth is nobody's.
        let some = vec![vec![down, down], vec![up], vec![up], vec![down]];
        assert_eq!(found(&some, &[], false), [of(0, false), of(0, false), of(0, false)]);
        let none = vec![vec![down, draining], vec![down], vec![down], vec![up]];
        assert_eq!(found(&none, &[], true), [of(-253 + 7, false), of(0, true), of(0, false)]);
        // Nothing is known yet.
        assert_eq!(found(&[], &[], false), [of(-253, false), of(0, true), of(0, false)]);
    }

    #[test]
    fn a_data_plane_that_is_gone_concerns_all() {
        let good = vec![vec![State::Up; 2], vec![State::Up], vec![State::Up], vec![State::Up]];
        assert_eq!(found(&good, &["eth0"], true), [of(7, true), of(0, true), of(0, true)]);
    }

    #[test]
    fn what_is_tracked_is_told_in_words() {
        let config = config();
        let states = [vec![State::Up, State::Down], vec![State::Down]];
        let scripts = vec![vec![Report { good: Some(false), text: "exit code 1".to_owned() }]];
        let broken = BTreeMap::from([("eth1".to_owned(), "no XDP program".to_owned())]);
        let inputs = Inputs { servers: &config.virtual_servers, states: &states, broken: &broken, scripts: &scripts };
        let said: Vec<_> = tracked(&config.vrrp[0], 0, &inputs)
            .into_iter()
            .map(|Tracked { what, weight, good, text }| format!("{what} {weight} {good}: {text}"))
            .collect();
        assert_eq!(
            said,
            [
                "data plane 0 false: eth1: no XDP program",
                "backends -253 true: 1 of 3 healthy",
                "script s 7 false: exit code 1"
            ]
        );
    }
}
