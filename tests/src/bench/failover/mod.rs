//! How long a VIP's failover takes, and how many nodes answer for it afterwards: xvip beside keepalived, in the lab.
//!
//! Deployment C: two holders, their switch, backends. From a host of its own, ARP requests leave a thousand times a second, and who
//! answers is noted with the kernel's timestamps. From the client, ICMP echo goes to the VIP each millisecond, through the
//! kernel's own neighbour table, freshly learnt before each event. Both daemons are started anew for each run.
//!
//! | event | what happens to the master | what is measured |
//! |---|---|---|
//! | power-off | its port leaves the bridge, carriers stay up | until another node answers |
//! | orderly-stop | SIGTERM | until another node answers |
//! | kill | SIGKILL of all its processes | what the client waits at most |
//! | heal | cut off as by power-off, and back after 8 s | what the client waits at most after that |
//! | garp-lost | power-off, and the client misses every broadcast in the first 100 ms of announcements | from the first announcement until the client is answered |
//! | service-death | it alone has no route to any backend any more | until another node answers |
//! | stall | its processes are stopped for 30 ms | how long another node answers: 0 where there was no false takeover |
//! | busy | every CPU has ordinary work for 10 minutes; only when asked for, once | the same |
//!
//! Owners are the most nodes that answer for the VIP at the same time, for more than the 20 ms that a hand-over may take, within
//! one second that begins 100 ms after another node has answered first, or after the partition has healed. At a stall and under
//! work they are all that ever answer.

mod report;
mod scene;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Error, Result, bail};

pub use self::report::Report;
use self::{
    report::Outcome,
    scene::{Sample, Scene},
};

/// Labs side by side for runs that take seconds: their watchers are idle mostly.
const LANES: usize = 4;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub runs: usize,
    pub events: Vec<Event>,
    pub systems: Vec<System>,
    pub profiles: Vec<Profile>,
    /// How long the master is away before a partition heals.
    pub partition: Duration,
    /// How long [`Event::Busy`] lasts.
    pub busy: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    PowerOff,
    OrderlyStop,
    Kill,
    Heal,
    GarpLost,
    ServiceDeath,
    Stall,
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    Keepalived,
    Xvip,
}

/// `default`: keepalived's version 2 with 1 s, xvip's 100 ms. `fast`: 10 ms each, keepalived with its factor of 3 and xvip with 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    Default,
    Fast,
}

/// One line of the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) event: Event,
    pub(crate) system: System,
    pub(crate) profile: Profile,
}

impl Event {
    /// Those that take no more than a minute each.
    pub const USUAL: [Self; 7] =
        [Self::PowerOff, Self::OrderlyStop, Self::Kill, Self::Heal, Self::GarpLost, Self::ServiceDeath, Self::Stall];

    pub fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::OrderlyStop => "orderly-stop",
            Self::Kill => "kill",
            Self::Heal => "heal",
            Self::GarpLost => "garp-lost",
            Self::ServiceDeath => "service-death",
            Self::Stall => "stall",
            Self::Busy => "busy",
        }
    }
}

impl System {
    pub const ALL: [Self; 2] = [Self::Keepalived, Self::Xvip];

    pub fn name(self) -> &'static str {
        match self {
            Self::Keepalived => "keepalived",
            Self::Xvip => "xvip",
        }
    }
}

impl Profile {
    pub const ALL: [Self; 2] = [Self::Default, Self::Fast];

    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fast => "fast",
        }
    }
}

impl Cell {
    /// Between two advertisements.
    pub(crate) fn interval(&self) -> Duration {
        match (self.system, self.profile) {
            (System::Keepalived, Profile::Default) => Duration::from_secs(1),
            (System::Xvip, Profile::Default) => Duration::from_millis(100),
            (_, Profile::Fast) => Duration::from_millis(10),
        }
    }

    /// Its runs take so many seconds that milliseconds, and other labs beside it, do not matter.
    fn is_slow(&self) -> bool {
        let seconds = self.profile == Profile::Default || self.event == Event::Heal;
        self.system == System::Keepalived && seconds && self.event != Event::Busy
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.event.name(), self.system.name(), self.profile.name())
    }
}

impl FromStr for Event {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all: Vec<Self> = Self::USUAL.into_iter().chain([Self::Busy]).collect();
        named(&all, Self::name, name)
    }
}

impl FromStr for System {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        named(&Self::ALL, Self::name, name)
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        named(&Self::ALL, Self::name, name)
    }
}

fn named<T: Copy>(all: &[T], name_of: fn(T) -> &'static str, name: &str) -> Result<T> {
    let Some(found) = all.iter().find(|one| name_of(**one) == name) else {
        let names: Vec<&str> = all.iter().map(|one| name_of(*one)).collect();
        bail!("not one of {}", names.join(", "));
    };
    Ok(*found)
}

/// Measures. Needs root, and keepalived and nginx; all cells with 20 runs take about half an hour.
///
/// # Errors
/// Where nothing at all could be measured. A cell that could not be measured is in the report, with the reason.
pub fn failover(options: &Options) -> Result<Report> {
    let mut cells = Vec::new();
    for &event in &options.events {
        for &profile in &options.profiles {
            cells.extend(options.systems.iter().map(|&system| Cell { event, system, profile }));
        }
    }
    let outcomes = Mutex::new(cells.iter().map(|cell| (*cell, Outcome::default())).collect());
    let (slow, quick): (Vec<Cell>, Vec<Cell>) = cells.iter().partition(|cell| cell.is_slow());
    for (cells, lanes) in [(slow, LANES), (quick, 1)] {
        // Interleaved: the machine's mood is the same for all.
        let runs = |cell: &Cell| if cell.event == Event::Busy { 1 } else { options.runs };
        let round = |number: usize| cells.iter().filter(move |cell| number < runs(cell)).copied();
        let queue: Vec<Cell> = (0..options.runs.max(1)).flat_map(round).collect();
        let queue = Mutex::new(queue.into_iter());
        thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| lane(&queue, &outcomes, options));
            }
        });
    }
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    Report::new(&cells, &outcomes)
}

/// Takes runs from the queue until it is empty, on labs of its own.
fn lane(queue: &Mutex<impl Iterator<Item = Cell>>, outcomes: &Mutex<BTreeMap<Cell, Outcome>>, options: &Options) {
    let mut scenes = BTreeMap::new();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(cell) = next else { break };
        let given_up =
            |outcomes: &BTreeMap<Cell, Outcome>| outcomes.get(&cell).is_some_and(|outcome| outcome.gave_up());
        if given_up(&outcomes.lock().unwrap_or_else(PoisonError::into_inner)) {
            continue;
        }
        let sample = attempt(&mut scenes, &cell, options);
        match &sample {
            Ok(Sample { time, owners }) => eprintln!("{cell}: {:.1} ms, owners {owners}", time.as_secs_f64() * 1e3),
            Err(error) => {
                eprintln!("{cell}: {error:#}");
                // Nobody knows what the failure has left there.
                scenes.remove(&cell.system);
            }
        }
        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.entry(cell).or_default().add(sample);
    }
}

fn attempt(scenes: &mut BTreeMap<System, Scene>, cell: &Cell, options: &Options) -> Result<Sample> {
    let scene = match scenes.entry(cell.system) {
        Entry::Occupied(built) => built.into_mut(),
        Entry::Vacant(place) => place.insert(Scene::build(cell.system)?),
    };
    scene.run(cell, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_output() {
        for event in Event::USUAL {
            assert_eq!(event.name().parse::<Event>().unwrap(), event);
        }
        let wrong = "keepalive".parse::<System>().unwrap_err().to_string();
        assert_eq!(wrong, "not one of keepalived, xvip");
    }
}
