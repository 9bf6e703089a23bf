//! One virtual router on this node: the state machine of RFC 9568 section 6.4 without clock or socket.
//!
//! ```text
//!                         +---------+
//!        no fault         |  Fault  |           fault: priority 0
//!     +-------------------|         |<----------------------------+
//!     |                   +---------+                             |
//!     |                        ^                                  |
//!     |                        | fault                            |
//!     v                        |                                  |
//! +--------+                   |                              +--------+
//! |        |-------------------+                              |        |
//! | Backup |                                                  | Master |
//! |        |      the wait is over, in the whole sync group   |        |
//! |        |------------------------------------------------->|        |
//! +--------+                                                  +--------+
//!     ^         a better one is heard; the lease has run out;     |
//!     |         the sync group lost; release: priority 0          |
//!     +-----------------------------------------------------------+
//! ```
//!
//! From each state a shutdown leads to `Stopped`, from `Master` with priority 0.
//!
//! What a backup waits for differs; intervals are those of the master that it follows, or its own while it knows none:
//!
//! | wait | begins with | ends after |
//! |---|---|---|
//! | `Listen` | start, end of a fault, lease run out | down interval |
//! | `Down` | an advertisement that it follows | down interval |
//! | `Vacant` | priority 0 | its turn: at most 20 ms, and never more than the skew time |
//! | `Skew` | its master below itself | skew time |
//! | `Look` | a sleep so long that something may have been missed | one interval and skew time |
//! | `Ready` | end of any other | election, once all members of the group are ready |
//!
//! After a release, and in a group that was beaten, none of them ends before twice the down interval: a peer is to take
//! over, or to show that it will not.

use std::{collections::VecDeque, time::Duration};

use wait::{Kind, Pace, Wait};

use super::{
    Heard, InstanceId, Moment,
    action::{Action, State, View},
    announcing::Announcing,
    settings::{OWNER, Settings},
};

#[cfg(test)]
mod tests;
mod wait;

/// Between two advertisements, whatever is heard: hostile ones must not make us flood the network.
const ANSWER_SPACING: Duration = Duration::from_millis(1);

pub(super) type Actions = VecDeque<(InstanceId, Action)>;

#[derive(Clone, Copy, Debug)]
pub(super) enum Event<'a> {
    Heard(&'a Heard),
    /// Time has passed, perhaps up to the deadline.
    Due,
    /// Every member of the group is ready.
    Elected,
    /// Another member of the group is no longer master.
    Lost {
        stay_away: bool,
    },
    Able,
    Unable,
    /// Priority or source have changed.
    Changed,
    /// Neighbours may have been told otherwise.
    Contested,
    Release,
    Shutdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fault,
    Backup(Wait),
    Master(Reign),
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reign {
    advertised: Moment,
    next: Moment,
    announcing: Announcing,
}

#[derive(Debug)]
pub(super) struct Machine {
    id: InstanceId,
    pub(super) settings: Settings,
    /// The group has other members.
    has_siblings: bool,
    phase: Phase,
    since: Moment,
    /// When a backup looks at the clock next.
    alarm: Moment,
    transitions: u64,
    /// Of the master that is followed, or the own.
    master_interval: Duration,
    /// The latest advertisement of the master.
    master: Option<Heard>,
    /// When a lower master was first heard: the preempt delay runs from here.
    lower_since: Option<Moment>,
    /// Gave way, and lets a peer take over until then.
    away_until: Moment,
    /// Handed over on purpose: no preemption until the successor is gone.
    released: bool,
}

impl Machine {
    pub(super) fn new(id: InstanceId, settings: Settings, has_siblings: bool, now: Moment) -> Self {
        Self {
            id,
            has_siblings,
            phase: Phase::Fault,
            since: now,
            alarm: now,
            transitions: 0,
            master_interval: settings.interval,
            master: None,
            lower_since: None,
            away_until: now,
            released: false,
            settings,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Fault => State::Fault,
            Phase::Backup(_) => State::Backup,
            Phase::Master(_) => State::Master,
            Phase::Stopped => State::Stopped,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Backup(Wait { kind: Kind::Ready, .. }))
    }

    fn pace(&self) -> Pace<'_> {
        Pace { settings: &self.settings, master_interval: self.master_interval, away_until: self.away_until }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Fault | Phase::Stopped => None,
            Phase::Backup(wait) => wait.deadline(self.pace()).map(|end| end.min(self.alarm)),
            Phase::Master(reign) => Some(reign.next.min(reign.announcing.deadline())),
        }
    }

    /// Until when this node claims the VIPs.
    pub(super) fn lease(&self) -> Option<Moment> {
        match self.phase {
            Phase::Master(reign) => Some(reign.advertised + self.settings.lease_length()),
            Phase::Fault | Phase::Backup(_) | Phase::Stopped => None,
        }
    }

    pub(super) fn view(&self) -> View {
        let priority = match self.phase {
            Phase::Backup(_) | Phase::Master(_) => self.settings.effective_priority(),
            Phase::Fault | Phase::Stopped => 0,
        };
        View {
            state: self.state(),
            since: self.since,
            priority,
            master: match self.phase {
                Phase::Master(_) => self.settings.source.map(|source| (source, priority)),
                Phase::Backup(_) => self.master.map(|heard| (heard.source, heard.priority)),
                Phase::Fault | Phase::Stopped => None,
            },
            lease: self.lease(),
            released: self.released,
            transitions: self.transitions,
        }
    }

    pub(super) fn on(&mut self, event: Event<'_>, now: Moment, actions: &mut Actions) {
        // Who slept longer than its lease has a successor by now: it may not even answer an advertisement.
        if self.lease().is_some_and(|until| now > until) {
            actions.push_back((self.id, Action::Yield));
            self.enter(Phase::Backup(Kind::Listen.since(now)), now, actions);
        }
        match (self.phase, event) {
            (Phase::Fault, Event::Able) => {
                let wait = self.first_wait(now);
                self.enter(Phase::Backup(wait), now, actions);
            }
            (Phase::Fault, Event::Shutdown) => self.enter(Phase::Stopped, now, actions),
            (
                Phase::Fault,
                Event::Heard(_)
                | Event::Due
                | Event::Elected
                | Event::Lost { .. }
                | Event::Unable
                | Event::Changed
                | Event::Contested
                | Event::Release,
            ) => {}

            (Phase::Backup(wait), Event::Heard(heard)) => {
                self.phase = Phase::Backup(self.hear_as_backup(wait, heard));
            }
            (Phase::Backup(wait), Event::Due) => {
                let wait = wait.after(now, self.alarm, self.pace());
                self.alarm = wait.alarm(now, self.pace());
                self.phase = Phase::Backup(wait);
            }
            (Phase::Backup(Wait { kind: Kind::Ready, .. }), Event::Elected) => self.promote(now, actions),
            (Phase::Backup(wait), Event::Changed) => self.phase = Phase::Backup(self.compare_again(wait)),
            (Phase::Backup(_), Event::Unable) => self.enter(Phase::Fault, now, actions),
            (Phase::Backup(_), Event::Shutdown) => self.enter(Phase::Stopped, now, actions),
            (
                Phase::Backup(_),
                Event::Elected | Event::Lost { .. } | Event::Able | Event::Contested | Event::Release,
            ) => {}

            (Phase::Master(reign), Event::Heard(heard)) => self.hear_as_master(reign, heard, now, actions),
            (Phase::Master(reign), Event::Due) => self.reign_on(reign, now, actions),
            (Phase::Master(reign), Event::Changed) => {
                self.reign_on(Reign { next: now, ..reign }, now, actions);
            }
            (Phase::Master(mut reign), Event::Contested) => {
                reign.announcing.again(now);
                self.reign_on(reign, now, actions);
            }
            (Phase::Master(_), Event::Lost { stay_away }) => {
                if stay_away {
                    self.give_way(now, actions);
                } else {
                    self.resign(Phase::Backup(Kind::Down.since(now)), now, actions);
                }
            }
            (Phase::Master(_), Event::Release) => {
                self.give_way(now, actions);
                self.released = true;
            }
            (Phase::Master(_), Event::Unable) => self.resign(Phase::Fault, now, actions),
            (Phase::Master(_), Event::Shutdown) => self.resign(Phase::Stopped, now, actions),
            (Phase::Master(_), Event::Able | Event::Elected) => {}

            (
                Phase::Stopped,
                Event::Heard(_)
                | Event::Due
                | Event::Elected
                | Event::Lost { .. }
                | Event::Able
                | Event::Unable
                | Event::Changed
                | Event::Contested
                | Event::Release
                | Event::Shutdown,
            ) => {}
        }
    }

    /// RFC 9568 section 6.4.1, and a mastership that a process before this one has left.
    fn first_wait(&self, now: Moment) -> Wait {
        let inherits = self.settings.lease.is_some_and(|until| until > now);
        let kind = if inherits || self.settings.priority == OWNER { Kind::Ready } else { Kind::Listen };
        kind.since(now)
    }

    /// RFC 9568 section 6.4.2.
    fn hear_as_backup(&mut self, wait: Wait, heard: &Heard) -> Wait {
        if heard.received < wait.since || Some(heard.source) == self.settings.source {
            return wait;
        }
        let from_master = self.master.is_some_and(|master| master.source == heard.source);
        let priority = self.settings.effective_priority();
        if heard.priority == 0 {
            // Who is not the master that is followed may resign from what it likes.
            if self.master.is_some() && !from_master {
                return wait;
            }
            self.master = None;
            return match wait.kind {
                Kind::Listen | Kind::Down | Kind::Look | Kind::Skew => Kind::Vacant.since(heard.received),
                Kind::Vacant | Kind::Ready => wait,
            };
        }
        if heard.priority >= priority {
            self.lower_since = None;
            return self.follow(heard);
        }
        let lower_since = *self.lower_since.get_or_insert(heard.received);
        let delay_is_over = heard.received - lower_since >= self.settings.preempt_delay;
        let preempts = priority == OWNER || self.settings.preempt && !self.released && delay_is_over;
        if !preempts {
            return self.follow(heard);
        }
        if from_master || self.master.is_none() {
            self.master = Some(*heard);
        }
        // Not in the RFC, and nothing of it is seen on the wire: a master that says itself that it is the lesser one
        // need not be waited for. The skew time is for it to hear that others have lost the same as it has.
        let skewed = Kind::Skew.since(heard.received);
        if from_master && wait.kind == Kind::Down && skewed.deadline(self.pace()) < wait.deadline(self.pace()) {
            skewed
        } else {
            wait
        }
    }

    /// The own priority has changed, and the master may no longer be below it: if every node loses its backends, the VIP
    /// stays where it is.
    fn compare_again(&mut self, wait: Wait) -> Wait {
        match self.master {
            Some(heard) if heard.priority >= self.settings.effective_priority() => self.hear_as_backup(wait, &heard),
            _ => wait,
        }
    }

    fn follow(&mut self, heard: &Heard) -> Wait {
        self.master = Some(*heard);
        // An interval of zero is nonsense that would promote us at once; in version 2 reception has compared it.
        if !heard.interval.is_zero() {
            self.master_interval = heard.interval;
        }
        Kind::Down.since(heard.received)
    }

    fn promote(&mut self, now: Moment, actions: &mut Actions) {
        let mut reign = Reign { advertised: now, next: now, announcing: Announcing::begin(now) };
        self.advertise(&mut reign, now, actions);
        actions.push_back((self.id, Action::Hold));
        self.announce(&mut reign, now, actions);
        self.enter(Phase::Master(reign), now, actions);
    }

    /// RFC 9568 section 6.4.3.
    fn hear_as_master(&mut self, mut reign: Reign, heard: &Heard, now: Moment, actions: &mut Actions) {
        if Some(heard.source) == self.settings.source {
            return;
        }
        let priority = self.settings.effective_priority();
        if heard.priority > 0 && (heard.priority, Some(heard.source)) > (priority, self.settings.source) {
            actions.push_back((self.id, Action::Yield));
            // The winner hears a lesser one and announces again, later than we ever did. A group resigns, so that all
            // of it is taken over together.
            let last = if self.has_siblings { 0 } else { priority };
            actions.push_back((self.id, Action::Advertise { priority: last, lease: None }));
            let wait = self.follow(heard);
            self.enter(Phase::Backup(wait), now, actions);
            return;
        }
        // Someone else has told the neighbours that it has the VIPs, or is about to.
        reign.announcing.again(now);
        reign.next = reign.next.min(now.max(reign.advertised + ANSWER_SPACING));
        self.reign_on(reign, now, actions);
    }

    fn reign_on(&mut self, mut reign: Reign, now: Moment, actions: &mut Actions) {
        if reign.next <= now {
            self.advertise(&mut reign, now, actions);
        }
        self.announce(&mut reign, now, actions);
        self.phase = Phase::Master(reign);
    }

    fn advertise(&self, reign: &mut Reign, now: Moment, actions: &mut Actions) {
        reign.advertised = now;
        reign.next = now + self.settings.interval;
        let (priority, lease) = (self.settings.effective_priority(), now + self.settings.lease_length());
        actions.push_back((self.id, Action::Advertise { priority, lease: Some(lease) }));
    }

    fn announce(&self, reign: &mut Reign, now: Moment, actions: &mut Actions) {
        if reign.announcing.take(now) {
            actions.push_back((self.id, Action::Announce));
        }
    }

    /// A peer that lost our priority 0 is through with its own down interval by the end of this.
    fn give_way(&mut self, now: Moment, actions: &mut Actions) {
        self.away_until = now + self.settings.down_interval(self.settings.interval) * 2;
        self.resign(Phase::Backup(Kind::Down.since(now)), now, actions);
    }

    fn resign(&mut self, to: Phase, now: Moment, actions: &mut Actions) {
        actions.push_back((self.id, Action::Advertise { priority: 0, lease: None }));
        actions.push_back((self.id, Action::Yield));
        self.enter(to, now, actions);
    }

    fn enter(&mut self, phase: Phase, now: Moment, actions: &mut Actions) {
        self.phase = phase;
        self.since = now;
        self.transitions += 1;
        if let Phase::Backup(wait) = phase {
            self.alarm = wait.alarm(now, self.pace());
        } else {
            self.master = None;
            self.master_interval = self.settings.interval;
            self.lower_since = None;
            self.away_until = now;
            self.released = false;
        }
        actions.push_back((self.id, Action::Became(self.state())));
    }
}
