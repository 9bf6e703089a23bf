//! The families of virtual routers.

use std::fmt;

use super::Families;
use crate::admin::vrrp::{Instance, State};

pub(super) fn families(instances: &[Instance], encoder: &mut Families<'_, '_>) -> fmt::Result {
    let label = |instance: &Instance| ("instance", instance.name.clone());

    let states = instances.iter().flat_map(|instance| {
        State::ALL.map(|state| {
            let labels = [
                label(instance),
                ("interface", instance.interface.clone()),
                ("vrid", instance.vrid.to_string()),
                ("state", state.name().to_owned()),
            ];
            (labels, u32::from(instance.state == state))
        })
    });
    encoder.gauges("vrrp_state", "1 for the state the virtual router is in, 0 for the others", None, states)?;
    let priorities = instances.iter().map(|instance| ([label(instance)], u32::from(instance.priority)));
    encoder.gauges("vrrp_priority", "Priority after weights; 0 while it takes no part", None, priorities)?;
    let tracked = instances.iter().flat_map(|instance| {
        let of = |tracked: &crate::admin::vrrp::Tracked| {
            ([label(instance), ("tracked", tracked.name.clone())], u32::from(tracked.good))
        };
        instance.tracked.iter().map(of).collect::<Vec<_>>()
    });
    encoder.gauges("vrrp_tracked_good", "Whether what counts for the priority is good", None, tracked)?;
    let reports = instances.iter().map(|instance| ([label(instance)], instance.reports.len() as u64));
    encoder.gauges(
        "vrrp_reports",
        "What is wrong with peers or the network; the status tells it in words",
        None,
        reports,
    )?;

    let mut count = |name, help, value: fn(&Instance) -> u64| {
        encoder.counters(name, help, None, instances.iter().map(|instance| ([label(instance)], value(instance))))
    };
    count("vrrp_transitions", "Changes of state", |instance| instance.transitions)?;
    count("vrrp_advertisements_sent", "Advertisements sent", |instance| instance.advertisements.sent)?;
    count("vrrp_advertisements_received", "Advertisements heard and followed", |instance| {
        instance.advertisements.received
    })?;
    let discarded = instances.iter().flat_map(|instance| {
        let by = |(reason, count): (&String, &u64)| ([label(instance), ("reason", reason.clone())], *count);
        instance.advertisements.discarded.iter().map(by).collect::<Vec<_>>()
    });
    encoder.counters("vrrp_discarded", "Advertisements heard and not followed", None, discarded)
}

#[cfg(test)]
mod tests {
    use super::super::{super::status::tests::sample, render, tests::assert_strict};
    use crate::admin::{Status, vrrp::tests::sample_instances};

    const FAMILIES: &str = r#"# HELP xvip_vrrp_state 1 for the state the virtual router is in, 0 for the others
# TYPE xvip_vrrp_state gauge
xvip_vrrp_state{instance="apiserver",interface="eth0",vrid="51",state="fault"} 0
xvip_vrrp_state{instance="apiserver",interface="eth0",vrid="51",state="backup"} 0
xvip_vrrp_state{instance="apiserver",interface="eth0",vrid="51",state="master"} 1
xvip_vrrp_state{instance="apiserver",interface="eth0",vrid="51",state="stopped"} 0
# HELP xvip_vrrp_priority Priority after weights; 0 while it takes no part
# TYPE xvip_vrrp_priority gauge
xvip_vrrp_priority{instance="apiserver"} 100
# HELP xvip_vrrp_tracked_good Whether what counts for the priority is good
# TYPE xvip_vrrp_tracked_good gauge
xvip_vrrp_tracked_good{instance="apiserver",tracked="data plane"} 1
xvip_vrrp_tracked_good{instance="apiserver",tracked="backends"} 1
xvip_vrrp_tracked_good{instance="apiserver",tracked="script spare"} 0
# HELP xvip_vrrp_reports What is wrong with peers or the network; the status tells it in words
# TYPE xvip_vrrp_reports gauge
xvip_vrrp_reports{instance="apiserver"} 1
# HELP xvip_vrrp_transitions Changes of state
# TYPE xvip_vrrp_transitions counter
xvip_vrrp_transitions_total{instance="apiserver"} 2
# HELP xvip_vrrp_advertisements_sent Advertisements sent
# TYPE xvip_vrrp_advertisements_sent counter
xvip_vrrp_advertisements_sent_total{instance="apiserver"} 3120
# HELP xvip_vrrp_advertisements_received Advertisements heard and followed
# TYPE xvip_vrrp_advertisements_received counter
xvip_vrrp_advertisements_received_total{instance="apiserver"} 4
# HELP xvip_vrrp_discarded Advertisements heard and not followed
# TYPE xvip_vrrp_discarded counter
xvip_vrrp_discarded_total{instance="apiserver",reason="password"} 7
"#;

    #[test]
    fn the_families_of_one_instance() {
        let mut instances = sample_instances();
        instances.truncate(1);
        let text = render(&Status { vrrp: instances, ..sample() });
        assert_strict(&text);
        assert!(text.contains(FAMILIES), "{text}");
    }

    #[test]
    fn without_vrrp_there_are_none() {
        assert!(!render(&sample()).contains("vrrp"));
    }
}
