//! What the status shows of an instance, from what the thread says of it.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::{
    admin::vrrp::{Advertisements, Instance, Master, Report, State, Tracked},
    config::model,
    vrrp::{
        self, Moment,
        reception::Discard,
        tracking,
        wire::{Conflict, InstanceView},
    },
};

/// Now on the clock that the thread counts with.
pub(super) fn now() -> Moment {
    // It exists on every kernel that runs this.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Moment(now)
}

/// `now` and `wall` are the same point in time.
pub(super) fn instance(
    configured: &model::Vrrp,
    tracked: &[tracking::Tracked],
    view: &InstanceView,
    now: Moment,
    wall: SystemTime,
) -> Instance {
    let at = |moment: Moment| wall.checked_sub(now - moment).unwrap_or(SystemTime::UNIX_EPOCH);
    let router = &view.router;
    let reports = view.reports.iter().map(|report| (report.to_string(), report.times, report.last));
    let conflicts = view.conflicts.iter().map(|conflict| (said(conflict), conflict.count, conflict.last));
    let mut reports: Vec<_> = reports.chain(conflicts).collect();
    reports.sort_by_key(|(_, _, last)| *last);
    Instance {
        name: configured.name.clone(),
        interface: configured.interface.clone(),
        vrid: configured.vrid,
        version: configured.version.number(),
        state: state(router.state),
        since: at(router.since),
        priority: router.priority,
        configured_priority: configured.priority,
        master: router.master.map(|(address, priority)| Master { address, priority }),
        transitions: router.transitions,
        vips: configured.addresses.iter().map(ipnet::IpNet::addr).collect(),
        sync_group: configured.sync_group.clone(),
        released: router.released,
        tracked: tracked.iter().map(shown).chain(unfenced(view)).collect(),
        advertisements: advertisements(view),
        reports: reports.into_iter().map(|(text, count, last)| Report { text, count, last: at(last) }).collect(),
    }
}

fn state(state: vrrp::State) -> State {
    match state {
        vrrp::State::Fault => State::Fault,
        vrrp::State::Backup => State::Backup,
        vrrp::State::Master => State::Master,
        vrrp::State::Stopped => State::Stopped,
    }
}

fn shown(tracked: &tracking::Tracked) -> Tracked {
    let tracking::Tracked { what, weight, good, text } = tracked;
    Tracked { name: what.clone(), good: *good, weight: *weight, text: text.clone() }
}

/// What the thread itself finds wrong with this node.
fn unfenced(view: &InstanceView) -> Option<Tracked> {
    let text = "the data plane does not take leases; the log says why".to_owned();
    (!view.fenced).then(|| Tracked { name: "lease".to_owned(), good: false, weight: 0, text })
}

fn advertisements(view: &InstanceView) -> Advertisements {
    let discarded = Discard::ALL.map(|reason| (reason.name().to_owned(), view.counters.discarded(reason)));
    Advertisements { sent: view.sent, received: view.counters.accepted, discarded: discarded.into() }
}

fn said(conflict: &Conflict) -> String {
    let by = conflict.mac.map_or("another machine".to_owned(), |mac| {
        format!("the machine with MAC {}", mac.map(|byte| format!("{byte:02x}")).join(":"))
    });
    format!(
        "{by} says that it has VIP {} while this node holds it: it is configured there by hand, or the two nodes do not hear each \
         other's advertisements",
        conflict.vip
    )
}
