//! Nodes and their network in virtual time: packets, wake-ups and faults happen one after the other, all drawn from one
//! seed.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    agenda::{Happening, Letter, Relief, Scheduled},
    kernel::Kernel,
    network::{Fate, Network, between},
    plan::{Plan, SOCKET},
    rules::Rules,
};
use crate::vrrp::{Action, Condition, Heard, InstanceId, Moment, Router, Settings, State};

/// What was promised and not kept, and when.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) at: Moment,
    pub(super) what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standstill {
    Process,
    Machine,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) settings: Vec<Settings>,
    /// None while no process runs.
    pub(super) router: Option<Router>,
    pub(super) kernels: Vec<Kernel>,
    pub(super) standstill: Option<Standstill>,
    pub(super) has_link: bool,
    pub(super) condition: Condition,
    /// The clock that stamps packets is wrong: ahead or behind by so much.
    pub(super) clock_error: Option<(Ordering, Duration)>,
    /// The process has not been told yet of its link and its condition.
    pub(super) has_news: bool,
    pub(super) inbox: VecDeque<Letter>,
    pub(super) wake_at: Option<Moment>,
    /// Since when it could be owner.
    pub(super) fit_since: Moment,
    /// Two standstills followed close on each other: the second is taken for a process that is always late, which must
    /// not wait for ever.
    pub(super) is_drowsy: bool,
    pub(super) resumed: Moment,
    /// Before this wake-up.
    pub(super) has_released: bool,
    /// By instance: the master that was followed before this wake-up's timers.
    pub(super) follows: Vec<Option<IpAddr>>,
    pub(super) has_inherited: bool,
    /// When each instance has read a lower one first, as the preempt delay counts.
    pub(super) lower_since: Vec<Option<Moment>>,
}

impl Node {
    pub(super) fn is_fit(&self) -> bool {
        self.router.is_some() && self.standstill.is_none() && self.has_link && !self.condition.fault
    }

    pub(super) fn is_released(&self) -> bool {
        self.router.as_ref().is_some_and(|router| router.view(InstanceId(0)).released)
    }

    pub(super) fn claims(&self, instance: usize, now: Moment) -> bool {
        self.has_link && self.kernels[instance].claims(now)
    }

    /// As the process knows it.
    pub(super) fn priority(&self, instance: usize) -> u8 {
        self.router.as_ref().map_or(0, |router| router.view(InstanceId(instance)).priority)
    }
}

/// How much has happened, to know that a run was worth something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) promotions: u64,
    pub(super) overlaps: u64,
    pub(super) judged_leases: u64,
    pub(super) owed_announcements: u64,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: fastrand::Rng,
    pub(super) now: Moment,
    /// Since when nothing but time has passed.
    pub(super) changed: Moment,
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    /// When the last thing happened that excuses a gap or two owners.
    pub(super) quiet_since: Moment,
    pub(super) rules: Rules,
    pub(super) tally: Tally,
    pub(super) last_promotion: Moment,
    pub(super) agenda: BinaryHeap<Scheduled>,
    numbers: u64,
    pub(super) strikes_left: u32,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, traced: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::random(&mut rng);
        let instances = plan.nodes[0].len();
        let nodes = plan.nodes.iter().map(|settings| Node {
            kernels: vec![Kernel::default(); settings.len()],
            lower_since: vec![None; settings.len()],
            settings: settings.clone(),
            router: None,
            standstill: None,
            has_link: true,
            condition: Condition::default(),
            clock_error: None,
            has_news: false,
            inbox: VecDeque::new(),
            wake_at: None,
            fit_since: Moment::default(),
            is_drowsy: false,
            resumed: Moment::default(),
            has_released: false,
            follows: vec![None; settings.len()],
            has_inherited: false,
        });
        let mut world = Self {
            nodes: nodes.collect(),
            network: Network::new(plan.network.clone(), plan.nodes.len(), instances),
            rules: Rules::new(&plan),
            now: Moment::default(),
            changed: Moment::default(),
            quiet_since: Moment::default(),
            tally: Tally::default(),
            last_promotion: Moment::default(),
            agenda: BinaryHeap::new(),
            numbers: 0,
            strikes_left: plan.strikes,
            trace: traced.then(Vec::new),
            plan,
            rng,
        };
        world.note(|world| format!("{:#?}", world.plan));
        let spread = if world.rng.bool() { Duration::ZERO } else { world.plan.down * 2 };
        for node in 0..world.nodes.len() {
            let after = between(&mut world.rng, Duration::ZERO, spread);
            world.schedule(after, Happening::Relief(Relief::Start(node)));
        }
        world.schedule(spread, Happening::Strike);
        world
    }

    /// Plays to the end.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        let mut end = None;
        loop {
            if self.strikes_left == 0 && end.is_none() {
                self.relieve_all()?;
                end = Some(self.now + self.plan.settling() + self.plan.down);
            }
            let until = self.agenda.peek().map_or(end, |next| Some(end.map_or(next.at, |end| end.min(next.at))));
            let until = until.expect("an end is near or something is planned");
            self.now = until;
            // An arrival changes nothing by itself.
            if !matches!(self.agenda.peek(), Some(Scheduled { happening: Happening::Arrival { .. }, .. })) {
                self.keep(|world| world.judge(until))?;
                self.changed = until;
            }
            if Some(until) == end {
                return self.keep(Self::judge_the_end);
            }
            let next = self.agenda.pop().expect("peeked");
            self.happen(next.happening)?;
        }
    }

    pub(super) fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    pub(super) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{:>13.6} {}", self.now.0.as_secs_f64() * 1000.0, line(self));
            self.trace.get_or_insert_default().push(line);
        }
    }

    fn keep(&mut self, rule: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), Violation> {
        rule(self).map_err(|what| Violation { at: self.now, what })
    }

    pub(super) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.numbers += 1;
        self.agenda.push(Scheduled { at: self.now + after, number: self.numbers, happening });
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Arrival { to, letter } => {
                self.arrive(to, letter);
                Ok(())
            }
            Happening::Wake(node) if self.nodes[node].wake_at == Some(self.now) => self.wake(node),
            // Another wake-up was planned since.
            Happening::Wake(_) => Ok(()),
            Happening::Strike => self.strike(),
            Happening::Relief(relief) => self.relieve(relief),
        }
    }

    fn arrive(&mut self, to: usize, mut letter: Letter) {
        let node = &mut self.nodes[to];
        let heard = node.router.is_some()
            && node.has_link
            && node.standstill != Some(Standstill::Machine)
            && node.inbox.len() < SOCKET;
        let path = self.network.path(letter.instance, letter.from, to);
        if path.latest == letter.number && path.fate != Fate::Read {
            path.fate = if heard { Fate::Arrived } else { Fate::Unheard };
        }
        if heard {
            letter.heard.received = match node.clock_error {
                Some((Ordering::Greater, ahead)) => self.now + ahead,
                Some((_, behind)) => Moment(self.now - Moment(behind)),
                None => self.now,
            };
            if letter.heard.received < self.now {
                // It counts from the last wake-up, up to an interval too early.
                path.fate = Fate::Lost;
            }
            node.inbox.push_back(letter);
            self.wake_within(to, self.now);
        }
    }

    /// A process that is well wakes up soon after `due`.
    pub(super) fn wake_within(&mut self, node: usize, due: Moment) {
        let at = due.max(self.now) + between(&mut self.rng, Duration::ZERO, self.plan.latency);
        if self.nodes[node].wake_at.is_none_or(|planned| at < planned) {
            self.nodes[node].wake_at = Some(at);
            self.schedule(at - self.now, Happening::Wake(node));
        }
    }

    pub(super) fn tell(&mut self, node: usize) {
        self.nodes[node].has_news = true;
        self.wake_within(node, self.now);
    }

    /// What the driver does: sockets first, then news, then timers, then all actions.
    fn wake(&mut self, index: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[index];
        node.wake_at = None;
        if node.standstill.is_some() || node.router.is_none() {
            return Ok(());
        }
        for letter in std::mem::take(&mut self.nodes[index].inbox) {
            self.read(index, &letter);
            let router = self.nodes[index].router.as_mut().expect("runs");
            router.on_advertisement(InstanceId(letter.instance), &letter.heard, self.now);
        }
        let node = &mut self.nodes[index];
        let router = node.router.as_mut().expect("runs");
        for (instance, settings) in node.settings.iter().enumerate() {
            node.follows[instance] = router.view(InstanceId(instance)).master.map(|(master, _)| master);
            if node.has_news {
                router.on_link(InstanceId(instance), settings.source.filter(|_| node.has_link), self.now);
                router.on_condition(InstanceId(instance), node.condition, self.now);
            }
        }
        node.has_news = false;
        router.on_timeout(self.now);
        self.act(index)?;
        self.nodes[index].has_released = self.nodes[index].is_released();
        let next = self.nodes[index].router.as_ref().and_then(Router::next_deadline);
        if let Some(next) = next {
            if next <= self.now {
                return Err(Violation { at: self.now, what: format!("node {index}: deadline {next:?} is past") });
            }
            self.wake_within(index, next);
        }
        self.keep(|world| world.judge_group(index))
    }

    fn read(&mut self, to: usize, letter: &Letter) {
        let priority = self.nodes[to].priority(letter.instance);
        let path = self.network.path(letter.instance, letter.from, to);
        if path.latest == letter.number && path.fate == Fate::Arrived {
            path.fate = Fate::Read;
        }
        if letter.heard.priority > 0 {
            path.was_lower = letter.heard.priority < priority;
            let lower_since = &mut self.nodes[to].lower_since[letter.instance];
            if letter.heard.priority >= priority {
                *lower_since = None;
            } else {
                lower_since.get_or_insert(letter.heard.received.min(self.now));
            }
        }
        self.rules.last_read(letter.instance, to, letter.from, letter.heard.priority);
        self.note(|_| format!("  {to} hears {} of {}: {}", letter.instance, letter.from, letter.heard.priority));
    }

    pub(super) fn act(&mut self, index: usize) -> Result<(), Violation> {
        while let Some((InstanceId(instance), action)) = self.nodes[index].router.as_mut().and_then(Router::next_action)
        {
            self.note(|_| format!("  {index} does {action:?} for {instance}"));
            if action == Action::Hold {
                self.keep(|world| world.judge_promotion(instance, index))?;
            }
            let now = self.now;
            self.keep(|world| world.nodes[index].kernels[instance].carry_out(action, now))?;
            match action {
                Action::Advertise { priority, lease } => {
                    self.send(instance, index, priority, lease.is_some());
                }
                Action::Announce => self.rules.announced(instance, index),
                Action::Became(State::Master) => {
                    self.tally.promotions += 1;
                    self.last_promotion = now;
                    self.nodes[index].lower_since[instance] = None;
                }
                Action::Yield | Action::Hold | Action::Became(_) => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, instance: usize, from: usize, priority: u8, is_claim: bool) {
        if !self.nodes[from].has_link {
            return;
        }
        let settings = &self.nodes[from].settings[instance];
        let source = settings.source.expect("every node has one");
        let heard = Heard { source, priority, interval: settings.interval, received: Moment::default() };
        self.numbers += 1;
        let letter = Letter { instance, from, number: self.numbers, heard };
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let is_cut = self.network.is_cut(instance, from, to);
            let copies = if is_cut { Vec::new() } else { self.network.copies(&mut self.rng) };
            if copies.is_empty() {
                self.quiet_since = if is_cut { self.quiet_since } else { self.now };
                self.note(|_| format!("  lost on the way to {to}"));
            }
            if is_claim {
                let path = self.network.path(instance, from, to);
                path.latest = letter.number;
                path.fate = if copies.is_empty() { Fate::Lost } else { Fate::Underway };
            }
            for after in copies {
                self.schedule(after, Happening::Arrival { to, letter: letter.clone() });
            }
        }
    }
}
