//! Nodes and their network in virtual time: packets, wake-ups and faults happen one after the other, all drawn from one
//! seed.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    kernel::Kernel,
    network::{Fate, Network, between},
    plan::{Fault, Plan, SOCKET},
    rules::Rules,
};
use crate::vrrp::{Action, Condition, Heard, InstanceId, Moment, Router, Settings, State};

/// What was promised and not kept, and when.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) at: Moment,
    pub(super) what: String,
}

#[derive(Clone, Debug)]
pub(super) struct Letter {
    instance: usize,
    from: usize,
    number: u64,
    heard: Heard,
}

#[derive(Debug)]
enum Happening {
    Arrival { to: usize, letter: Letter },
    Wake(usize),
    Strike,
    Relief(Relief),
}

#[derive(Clone, Copy, Debug)]
enum Relief {
    Resume(usize),
    Start(usize),
    Link(usize),
    Permit(usize),
    Weight(usize),
    Network,
}

#[derive(Debug)]
struct Scheduled {
    at: Moment,
    /// Of two at the same time, the one that was planned first.
    number: u64,
    happening: Happening,
}

impl Ord for Scheduled {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

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
    /// The process has not been told yet of its link and its condition.
    has_news: bool,
    inbox: VecDeque<Letter>,
    wake_at: Option<Moment>,
    /// Since when it could be owner.
    pub(super) fit_since: Moment,
    /// Two standstills followed close on each other: the second is taken for a process that is always late, which must
    /// not wait for ever.
    pub(super) is_drowsy: bool,
    resumed: Moment,
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
    agenda: BinaryHeap<Scheduled>,
    numbers: u64,
    strikes_left: u32,
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

    fn schedule(&mut self, after: Duration, happening: Happening) {
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
            letter.heard.received = self.now;
            node.inbox.push_back(letter);
            self.wake_within(to, self.now);
        }
    }

    /// A process that is well wakes up soon after `due`.
    fn wake_within(&mut self, node: usize, due: Moment) {
        let at = due.max(self.now) + between(&mut self.rng, Duration::ZERO, self.plan.latency);
        if self.nodes[node].wake_at.is_none_or(|planned| at < planned) {
            self.nodes[node].wake_at = Some(at);
            self.schedule(at - self.now, Happening::Wake(node));
        }
    }

    fn tell(&mut self, node: usize) {
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
        if path.latest == letter.number {
            path.fate = Fate::Read;
        }
        if letter.heard.priority > 0 {
            path.was_lower = letter.heard.priority < priority;
            let lower_since = &mut self.nodes[to].lower_since[letter.instance];
            if letter.heard.priority >= priority {
                *lower_since = None;
            } else {
                lower_since.get_or_insert(letter.heard.received);
            }
        }
        self.rules.last_read(letter.instance, to, letter.from, letter.heard.priority);
        self.note(|_| format!("  {to} hears {} of {}: {}", letter.instance, letter.from, letter.heard.priority));
    }

    fn act(&mut self, index: usize) -> Result<(), Violation> {
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

    fn strike(&mut self) -> Result<(), Violation> {
        self.strikes_left = self.strikes_left.saturating_sub(1);
        let fault = *self.rng.choice(&self.plan.faults).expect("some");
        let node = self.rng.usize(0..self.nodes.len());
        let lasts = self.some_time();
        self.note(|_| format!("{fault:?} strikes {node} for {lasts:?}"));
        let running = self.nodes[node].router.is_some() && self.nodes[node].standstill.is_none();
        let relief = match fault {
            Fault::Pause | Fault::Suspend if running => {
                let whole = fault == Fault::Suspend;
                self.nodes[node].standstill = Some(if whole { Standstill::Machine } else { Standstill::Process });
                Some(Relief::Resume(node))
            }
            Fault::Kill | Fault::PowerOff | Fault::Shutdown if running => {
                if fault == Fault::Shutdown {
                    self.nodes[node].router.as_mut().expect("runs").on_shutdown(self.now);
                    self.act(node)?;
                }
                if fault == Fault::PowerOff {
                    self.nodes[node].kernels.fill(Kernel::default());
                }
                self.nodes[node].router = None;
                self.nodes[node].inbox.clear();
                Some(Relief::Start(node))
            }
            Fault::Release if running => {
                self.nodes[node].router.as_mut().expect("runs").on_release(self.now);
                self.act(node)?;
                self.nodes[node].fit_since = self.now;
                self.wake_within(node, self.now);
                None
            }
            Fault::LinkDown if self.nodes[node].has_link => {
                self.nodes[node].has_link = false;
                self.tell(node);
                Some(Relief::Link(node))
            }
            Fault::Forbidden if !self.nodes[node].condition.fault => {
                self.nodes[node].condition.fault = true;
                self.tell(node);
                Some(Relief::Permit(node))
            }
            Fault::Weight if self.nodes[node].condition.adjustment == 0 => {
                let adjustment = *self.rng.choice(&[-253, -50, -10, 10, 50]).expect("some");
                self.nodes[node].condition.adjustment = adjustment;
                self.tell(node);
                Some(Relief::Weight(node))
            }
            Fault::Partition => {
                let side = (0..self.nodes.len()).map(|_| self.rng.bool()).collect();
                self.network.side = side;
                Some(Relief::Network)
            }
            Fault::SegmentCut if self.plan.is_grouped() => {
                let side = (0..self.nodes.len()).map(|_| self.rng.bool()).collect();
                self.network.segment_cut = Some((self.rng.usize(0..2), side));
                Some(Relief::Network)
            }
            Fault::Storm => {
                self.network.storm = *self.rng.choice(&[100, 400, 1000]).expect("some");
                Some(Relief::Network)
            }
            _ => None,
        };
        // A change of priority excuses nothing: it must neither make a gap nor two owners.
        if fault != Fault::Weight {
            self.quiet_since = self.now;
        }
        if let Some(relief) = relief {
            self.schedule(lasts, Happening::Relief(relief));
        }
        let gap = self.some_time();
        self.schedule(gap, Happening::Strike);
        Ok(())
    }

    /// From much less than an interval to more than a takeover.
    fn some_time(&mut self) -> Duration {
        let (interval, down) = (self.plan.interval, self.plan.down);
        let most = *self.rng.choice(&[interval / 4, interval * 2, down, down, down * 4]).expect("some");
        between(&mut self.rng, Duration::ZERO, most)
    }

    fn relieve_all(&mut self) -> Result<(), Violation> {
        self.note(|_| "the faults are over".to_owned());
        for node in 0..self.nodes.len() {
            for relief in [Relief::Resume, Relief::Start, Relief::Link, Relief::Permit, Relief::Weight] {
                self.relieve(relief(node))?;
            }
        }
        self.relieve(Relief::Network)?;
        self.network.conditions.loss = 0;
        self.agenda = std::mem::take(&mut self.agenda)
            .into_iter()
            .filter(|planned| !matches!(planned.happening, Happening::Strike | Happening::Relief(_)))
            .collect();
        Ok(())
    }

    fn relieve(&mut self, relief: Relief) -> Result<(), Violation> {
        self.note(|_| format!("{relief:?}"));
        let was_fit: Vec<bool> = self.nodes.iter().map(Node::is_fit).collect();
        match relief {
            Relief::Resume(node) => {
                if self.nodes[node].standstill.take().is_some() {
                    self.nodes[node].is_drowsy = self.now - self.nodes[node].resumed < self.plan.down;
                    self.nodes[node].resumed = self.now;
                    self.wake_within(node, self.now);
                }
            }
            Relief::Start(node) => {
                if self.nodes[node].router.is_none() {
                    self.start(node)?;
                }
            }
            Relief::Link(node) => {
                self.nodes[node].has_link = true;
                self.tell(node);
            }
            Relief::Permit(node) => {
                self.nodes[node].condition.fault = false;
                self.tell(node);
            }
            Relief::Weight(node) => {
                self.nodes[node].condition.adjustment = 0;
                self.tell(node);
            }
            Relief::Network => {
                self.network.heal();
                self.quiet_since = self.now;
            }
        }
        for (node, was_fit) in self.nodes.iter_mut().zip(was_fit) {
            if !was_fit && node.is_fit() {
                node.fit_since = self.now;
            }
        }
        Ok(())
    }

    /// A new process goes on where the old one was while its lease runs, or takes away what that one left.
    fn start(&mut self, index: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[index];
        let inherits = self.rng.bool() && node.kernels.iter().all(|kernel| kernel.claims(self.now));
        let mut instances = node.settings.clone();
        for (settings, kernel) in instances.iter_mut().zip(&mut node.kernels) {
            if inherits {
                settings.lease = kernel.lease;
                kernel.inherit();
            } else {
                *kernel = Kernel::default();
            }
            settings.condition = node.condition;
            settings.source = settings.source.filter(|_| node.has_link);
        }
        node.lower_since.fill(None);
        node.has_inherited = inherits;
        node.has_released = false;
        node.standstill = None;
        node.router = Some(Router::new(instances, self.now));
        self.act(index)?;
        self.nodes[index].has_inherited = false;
        self.nodes[index].kernels.iter_mut().for_each(Kernel::clean_up);
        self.wake_within(index, self.now);
        Ok(())
    }
}
