//! VRRP in the daemon: from the configuration to the thread on the wire, from what is tracked to its conditions, and from its
//! views to the status. Without a `[[vrrp]]` section all of it does nothing.

mod instance;
mod regaining;
mod shown;

use std::{
    collections::BTreeMap,
    error::Error,
    future::pending,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::Instant,
};

use self::regaining::Regaining;
use super::callers::{self, Caller};
use crate::{
    admin,
    config::model::{self, VirtualServer},
    dataplane::{Dataplane, Fence},
    health::State,
    host::Interfaces,
    vrrp::{
        self, Condition, InstanceId, Moment,
        hooks::Hooks,
        tracking::{self, Scripts, Tracked},
        wire::{Instance, InstanceView, Lease, Options, Wire},
    },
};

/// Changes that wait for the hooks; a start or an end has one or two for each instance.
const CHANGES: usize = 256;
/// For programs that are told of the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long packets to a VIP are carried after this node's right to it has ended: clients need not know yet.
const GRACE: Duration = Duration::from_secs(10);

/// What the rest of the daemon knows and mastership depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) servers: &'a [VirtualServer],
    pub(super) states: &'a [Vec<State>],
    /// Interfaces that packets are not carried on, and why.
    pub(super) broken: &'a BTreeMap<String, String>,
}

pub(super) struct Vrrp {
    instances: Vec<model::Vrrp>,
    scripts: Scripts,
    tracked: Vec<Vec<Tracked>>,
    regaining: Regaining,
    /// What the thread was told.
    conditions: Vec<Condition>,
    /// From the start of the thread to its end.
    running: Option<(Wire, Hooks)>,
    /// From the start of the thread on; what it said last stays.
    views: Option<watch::Receiver<Arc<Vec<InstanceView>>>>,
}

impl Vrrp {
    /// Begins to run the scripts; nothing is on the wire yet.
    pub(super) fn new(instances: Vec<model::Vrrp>) -> Self {
        let (tracked, conditions) = (vec![Vec::new(); instances.len()], vec![Condition::default(); instances.len()]);
        Self {
            scripts: Scripts::spawn(&instances),
            instances,
            tracked,
            regaining: Regaining::default(),
            conditions,
            running: None,
            views: None,
        }
    }

    /// Waits for the scripts' first results.
    pub(super) async fn settle(&mut self) {
        self.scripts.settle().await;
    }

    /// Starts to speak VRRP. From here on VIPs may come at any time.
    pub(super) fn start(&mut self, seen: &Seen<'_>, dataplane: &mut Dataplane) -> anyhow::Result<()> {
        let macs = self.instances.iter().filter_map(|instance| Some((instance, instance.mac()?)));
        let macs = macs.flat_map(|(instance, mac)| instance.addresses.iter().map(move |net| (net.addr(), mac)));
        let fence = dataplane.fence(GRACE, macs.collect())?;
        let vips = self.instances.iter().flat_map(|instance| instance.addresses.iter().map(IpNet::addr));
        fence.retain(&vips.collect())?;
        if self.instances.is_empty() {
            return Ok(());
        }
        self.tracked = self.track(seen);
        self.conditions = tracking::conditions(&self.instances, &self.tracked);
        let instances = self.instances.iter().zip(&self.conditions).map(|(instance, condition)| {
            let lease = fence.claimed_until(instance.addresses[0].addr())?.map(Moment);
            prepared(instance, *condition, lease)
        });
        let instances = instances.collect::<anyhow::Result<_>>()?;
        let (events, changes) = mpsc::channel(CHANGES);
        let lease: Box<dyn Lease> = Box::new(Claims(fence));
        let wire = Wire::start(instances, Options { realtime: true, lease: Some(lease), events: Some(events) })?;
        let hooks = Hooks::spawn(&self.instances, changes);
        self.views = Some(wire.views());
        self.running = Some((wire, hooks));
        Ok(())
    }

    /// Goes over to other instances, if they are others. Where one is the same virtual router as before, its VIPs stay: its lease runs on from
    /// one thread to the next. The others are handed over first. A failure leaves either the thread before or none.
    pub(super) async fn replace(
        &mut self,
        instances: &[model::Vrrp],
        seen: &Seen<'_>,
        dataplane: &mut Dataplane,
    ) -> anyhow::Result<()> {
        if self.running.is_some() && self.instances == instances {
            return Ok(());
        }
        // What can fail and what takes long comes while the thread before still runs.
        for configured in instances {
            prepared(configured, Condition::default(), None)?;
        }
        let mut next = Self::new(instances.to_vec());
        next.settle().await;
        self.leave(instances).await;
        *self = next;
        self.start(seen, dataplane)
    }

    /// Ends the thread for another one with these instances.
    async fn leave(&mut self, next: &[model::Vrrp]) {
        let Some((wire, hooks)) = self.running.take() else {
            return;
        };
        let stays = |instance: &model::Vrrp| next.iter().any(|next| next.is_the_same_as(instance));
        let resigning = self.instances.iter().enumerate().filter(|(_, instance)| !stays(instance));
        let resigning = resigning.map(|(index, _)| InstanceId(index)).collect();
        // It waits for the thread.
        if let Err(error) = spawn_blocking(move || wire.leave(resigning)).await {
            log::error!("ending VRRP for its successor: {error}");
        }
        tokio::spawn(hooks.finish(FAREWELL));
    }

    /// Tells the thread what has changed for the worse. Before the tables follow, which takes its time: another node may be better off.
    pub(super) fn warn(&mut self, seen: &Seen<'_>) {
        self.tell(seen, |before, now| now.fault && !before.fault || now.adjustment < before.adjustment);
    }

    /// Tells the thread all that has changed. After the tables have followed: VIPs may come for it.
    pub(super) fn follow(&mut self, seen: &Seen<'_>) {
        self.tell(seen, |before, now| now != before);
    }

    fn tell(&mut self, seen: &Seen<'_>, wanted: impl Fn(&Condition, &Condition) -> bool) {
        let mut tracked = self.track(seen);
        self.regaining.hold_back(&self.instances, seen, &self.tracked, &mut tracked, Instant::now());
        self.tracked = tracked;
        let Some((wire, _)) = &self.running else {
            return;
        };
        let now = tracking::conditions(&self.instances, &self.tracked);
        for (index, (before, now)) in self.conditions.iter_mut().zip(now).enumerate() {
            if wanted(before, &now) {
                log::info!("{}: {}", self.instances[index].name, told(&self.tracked[index], now));
                wire.set_condition(InstanceId(index), now);
                *before = now;
            }
        }
    }

    /// Tells the thread whom to tell one by one when VIPs come here.
    pub(super) fn meet(&self, callers: &[Caller], host: &Interfaces) {
        let Some((wire, _)) = &self.running else {
            return;
        };
        for (index, instance) in self.instances.iter().enumerate() {
            // One that is gone has nobody on it.
            let found = host.named(&instance.interface).map(|interface| callers::on(interface, callers));
            wire.set_neighbours(InstanceId(index), found.unwrap_or_default());
        }
    }

    /// Waits until there is something new to [`follow`](Self::follow) or to show. Cancel-safe.
    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        let views = async {
            match &mut self.views {
                Some(views) => views.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = views => ended.context("the VRRP thread has ended unexpectedly"),
            changed = self.scripts.changed() => changed.context("a script's task has ended unexpectedly"),
            () = self.regaining.due() => Ok(()),
        }
    }

    /// Hands VIPs over to another node: those of the instance of this name and of its sync group, or all.
    pub(super) fn release(&self, name: Option<&str>) {
        let Some((wire, _)) = &self.running else {
            return;
        };
        let Some(name) = name else {
            return wire.release(None);
        };
        if let Some(index) = self.instances.iter().position(|instance| instance.name == name) {
            wire.release(Some(InstanceId(index)));
        }
    }

    /// Gives the VIPs up; true if there were any. On return priority 0 is out and the addresses are off.
    pub(super) async fn stop(&mut self) -> bool {
        let Some((wire, hooks)) = self.running.take() else {
            return false;
        };
        let is_master = |view: &InstanceView| view.router.state == vrrp::State::Master;
        let was_master = self.views.as_ref().is_some_and(|views| views.borrow().iter().any(is_master));
        // It waits for the thread.
        if let Err(error) = spawn_blocking(move || wire.stop()).await {
            log::error!("stopping VRRP: {error}");
        }
        hooks.finish(FAREWELL).await;
        was_master
    }

    /// For the status, in the order of the configuration.
    pub(super) fn status(&self) -> Vec<admin::vrrp::Instance> {
        let Some(views) = &self.views else {
            return Vec::new();
        };
        // Held no longer than it takes to copy a pointer: the thread must not wait for this one when it has news.
        let views = Arc::clone(&views.borrow());
        let shown = self.instances.iter().zip(&self.tracked).zip(views.iter());
        let (now, wall) = (shown::now(), SystemTime::now());
        shown.map(|((instance, tracked), view)| shown::instance(instance, tracked, view, now, wall)).collect()
    }

    fn track(&self, seen: &Seen<'_>) -> Vec<Vec<Tracked>> {
        let Seen { servers, states, broken } = *seen;
        let inputs = tracking::Inputs { servers, states, broken, scripts: &self.scripts.reports() };
        let of = |(position, instance)| tracking::tracked(instance, position, &inputs);
        self.instances.iter().enumerate().map(of).collect()
    }
}

fn prepared(configured: &model::Vrrp, condition: Condition, lease: Option<Moment>) -> anyhow::Result<Instance> {
    instance::instance(configured, condition, lease).with_context(|| format!("[[vrrp]] \"{}\"", configured.name))
}

/// The thread's hand on the fence.
struct Claims(Fence);

impl Lease for Claims {
    fn renew(&self, vip: IpAddr, until: Moment) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.renew(vip, until.0)?)
    }

    fn revoke(&self, vip: IpAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.revoke(vip)?)
    }
}

/// A condition in words: what is not good, and what follows.
fn told(tracked: &[Tracked], condition: Condition) -> String {
    let bad = tracked.iter().filter(|tracked| !tracked.good);
    let bad: Vec<String> = bad.map(|tracked| format!("{} ({})", tracked.what, tracked.text)).collect();
    let why = match (&bad[..], condition == Condition::default()) {
        ([], true) => "all is good".to_owned(),
        // Of the sync group.
        ([], false) => "all is good here, not in another member of the group".to_owned(),
        _ => format!("not good: {}", bad.join(", ")),
    };
    match condition {
        Condition { fault: true, .. } => format!("{why}; this is a fault"),
        Condition { adjustment: 0, .. } => format!("{why}; the priority is as configured"),
        Condition { adjustment, .. } => format!("{why}; the priority changes by {adjustment}"),
    }
}
