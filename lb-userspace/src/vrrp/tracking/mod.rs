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

/// A negative weight counts on failure, a positive one on success, and zero means that failure is a fault.
pub fn condition(tracked: &[Tracked]) -> Condition {
    tracked.iter().fold(Condition::default(), |so_far, Tracked { weight, good, .. }| match (weight, good) {
        (0, false) => Condition { fault: true, ..so_far },
        (1.., true) | (..0, false) => Condition { adjustment: so_far.adjustment.saturating_add(*weight), ..so_far },
        _ => so_far,
    })
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
        what: "backends".to_owned(),
        weight: instance.backends_weight,
        good: healthy > 0,
        text: format!("{healthy} of {all} healthy"),
    })
}

#[cfg(test)]
mod tests {
    use super::{script::Report, *};
    use crate::config::parse;

    fn counted(tracked: &[(i16, bool)]) -> Condition {
        let named = |(weight, good): &(i16, bool)| Tracked {
            what: "any".to_owned(),
            weight: *weight,
            good: *good,
            text: String::new(),
        };
        condition(&tracked.iter().map(named).collect::<Vec<_>>())
    }

    #[test]
    fn weights_count_as_keepalived_counts_them() {
        let of = |adjustment, fault| Condition { adjustment, fault };
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
        for (tracked, expected) in table {
            assert_eq!(counted(tracked), *expected, "{tracked:?}");
        }
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

    fn conditions(states: &[Vec<State>], broken: &[&str], script: bool) -> Vec<(i16, bool)> {
        let config = config();
        let scripts = vec![vec![Report { good: Some(script), text: String::new() }], Vec::new(), Vec::new()];
        let broken = broken.iter().map(|name| ((*name).to_owned(), "gone".to_owned())).collect();
        let inputs = Inputs { servers: &config.virtual_servers, states, broken: &broken, scripts: &scripts };
        let of = |(position, instance)| {
            let Condition { adjustment, fault } = condition(&tracked(instance, position, &inputs));
            (adjustment, fault)
        };
        config.vrrp.iter().enumerate().map(of).collect()
    }

    #[test]
    fn each_instance_depends_on_the_backends_of_its_own_vips() {
        let (up, down, draining) = (State::Up, State::Down, State::Draining);
        let good = vec![vec![up, up], vec![up], vec![up], vec![up]];
        assert_eq!(conditions(&good, &[], false), [(0, false), (0, false), (0, false)]);
        // The first is still good for the instance's other VIP; the fourth is nobody's.
        let some = vec![vec![down, down], vec![up], vec![up], vec![down]];
        assert_eq!(conditions(&some, &[], false), [(0, false), (0, false), (0, false)]);
        let none = vec![vec![down, draining], vec![down], vec![down], vec![up]];
        assert_eq!(conditions(&none, &[], true), [(-253 + 7, false), (0, true), (0, false)]);
        // Nothing is known yet.
        assert_eq!(conditions(&[], &[], false), [(-253, false), (0, true), (0, false)]);
    }

    #[test]
    fn a_data_plane_that_is_gone_concerns_all() {
        let good = vec![vec![State::Up; 2], vec![State::Up], vec![State::Up], vec![State::Up]];
        assert_eq!(conditions(&good, &["eth0"], true), [(7, true), (0, true), (0, true)]);
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
