//! All virtual routers of this node: sync groups, and one queue of actions for the driver. Pure: time is a parameter, and
//! whoever calls does the input and output.
//!
//! The driver, each time it wakes: reads every advertisement that has arrived into [`Router::on_advertisement`], then
//! calls [`Router::on_timeout`], carries out all of [`Router::next_action`], and sleeps until [`Router::next_deadline`].
//! The order matters: a late driver that promotes before it has read its sockets makes a second master.

use std::net::IpAddr;

use super::{
    Heard, InstanceId, Moment,
    action::{Action, State, View},
    machine::{Actions, Event, Machine},
    settings::{Condition, Settings},
};

#[cfg(test)]
mod tests;

/// Every instance belongs to one group, most to one of their own.
#[derive(Debug)]
pub struct Router {
    machines: Vec<Machine>,
    groups: Vec<Vec<usize>>,
    actions: Actions,
    /// When the sockets were last read to the end.
    drained: Moment,
    /// By instance: when its last advertisement arrived.
    latest: Vec<Moment>,
}

impl Router {
    /// Instances are numbered as they stand in `instances`.
    pub fn new(instances: Vec<Settings>, now: Moment) -> Self {
        let groups = groups(&instances);
        let has_siblings = |index: usize| groups.iter().any(|group| group.len() > 1 && group.contains(&index));
        let machines = instances
            .into_iter()
            .enumerate()
            .map(|(index, settings)| Machine::new(InstanceId(index), settings, has_siblings(index), now))
            .collect::<Vec<_>>();
        let latest = vec![now; machines.len()];
        let mut router = Self { machines, groups, actions: Actions::new(), drained: now, latest };
        router.settle(now);
        for (index, machine) in router.machines.iter_mut().enumerate() {
            // Who could not go on at once has to listen, however long the lease.
            machine.settings.lease = None;
            if machine.state() == State::Fault {
                router.actions.push_back((InstanceId(index), Action::Became(State::Fault)));
            }
        }
        router
    }

    pub fn on_advertisement(&mut self, id: InstanceId, heard: &Heard, now: Moment) {
        // The clock that stamps packets is another one, and may be set. The sockets were empty at the last timeout, and what is read
        // later from one of them arrived later: a master's first word after another's last must not pass for history.
        let received = heard.received.max(self.drained).max(self.latest[id.0]).min(now);
        self.latest[id.0] = received;
        let heard = Heard { received, ..*heard };
        self.tell(id, Event::Heard(&heard), now);
    }

    pub fn on_condition(&mut self, id: InstanceId, condition: Condition, now: Moment) {
        let settings = &mut self.machines[id.0].settings;
        let before = settings.effective_priority();
        settings.condition = condition;
        let changed = settings.effective_priority() != before;
        // A fault first: who resigns does not advertise a priority in between.
        self.settle(now);
        if changed {
            self.tell(id, Event::Changed, now);
        }
    }

    /// The address that advertisements are sent from; none while the interface is down or has no address.
    pub fn on_link(&mut self, id: InstanceId, source: Option<IpAddr>, now: Moment) {
        let settings = &mut self.machines[id.0].settings;
        if settings.source != source {
            settings.source = source;
            self.settle(now);
            self.tell(id, Event::Changed, now);
        }
    }

    /// Neighbours may have been told otherwise, as when someone took a VIP off the interface: announce from the start.
    pub fn on_contest(&mut self, id: InstanceId, now: Moment) {
        self.tell(id, Event::Contested, now);
    }

    /// Planned hand-over of every VIP: priority 0, and no way back before a peer has taken over or shown in twice the
    /// down interval that none will. After that no preemption until the successor is gone.
    pub fn on_release(&mut self, now: Moment) {
        self.tell_all(Event::Release, now);
    }

    /// The same of one instance, and of those that are in one group with it.
    pub fn on_release_of(&mut self, id: InstanceId, now: Moment) {
        for index in self.groups.iter().filter(|group| group.contains(&id.0)).flatten() {
            self.machines[*index].on(Event::Release, now, &mut self.actions);
        }
        self.settle(now);
    }

    /// Priority 0 and the end. A process that only makes room for its next version just goes without this.
    pub fn on_shutdown(&mut self, now: Moment) {
        self.tell_all(Event::Shutdown, now);
    }

    /// The same of some instances, and so of the groups that they are in.
    pub fn on_shutdown_of(&mut self, ids: &[InstanceId], now: Moment) {
        for id in ids {
            self.machines[id.0].on(Event::Shutdown, now, &mut self.actions);
        }
        self.settle(now);
    }

    /// Every advertisement that had arrived has been handed in.
    pub fn on_timeout(&mut self, now: Moment) {
        self.drained = now;
        self.tell_all(Event::Due, now);
    }

    /// When `on_timeout` has something to do, unless something else happens first.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.machines.iter().filter_map(Machine::deadline).min()
    }

    /// Oldest first; to be taken until there is none.
    pub fn next_action(&mut self) -> Option<(InstanceId, Action)> {
        self.actions.pop_front()
    }

    pub fn view(&self, id: InstanceId) -> View {
        self.machines[id.0].view()
    }

    fn tell(&mut self, id: InstanceId, event: Event<'_>, now: Moment) {
        self.machines[id.0].on(event, now, &mut self.actions);
        self.settle(now);
    }

    fn tell_all(&mut self, event: Event<'_>, now: Moment) {
        for machine in &mut self.machines {
            machine.on(event, now, &mut self.actions);
        }
        self.settle(now);
    }

    /// Makes each group of one mind again.
    fn settle(&mut self, now: Moment) {
        for group in &self.groups {
            let mut tell = |machines: &mut [Machine], event| {
                group.iter().for_each(|index| machines[*index].on(event, now, &mut self.actions));
            };
            let machines = &mut self.machines;

            let able = group.iter().all(|index| machines[*index].settings.is_able());
            tell(machines, if able { Event::Able } else { Event::Unable });

            if let Some(first) = group.iter().position(|index| machines[*index].state() == State::Backup) {
                // Two nodes whose groups beat each other crosswise would leave and come back in step for ever. One of
                // them is beaten in its first member, the other is not.
                tell(machines, Event::Lost { stay_away: first == 0 });
            }
            if group.iter().all(|index| machines[*index].is_ready()) {
                tell(machines, Event::Elected);
            }
        }
    }
}

fn groups(instances: &[Settings]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for (index, settings) in instances.iter().enumerate() {
        let name = settings.sync_group.as_deref();
        match groups.iter_mut().find(|(other, _)| name.is_some() && *other == name) {
            Some((_, group)) => group.push(index),
            None => groups.push((name, vec![index])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}
