//! What is measured, and the proof that it was that.

use std::collections::BTreeMap;

use anyhow::ensure;
use lb_common::abi::Counter;
use lb_tests_ebpf::{MAX_FLOWS, Plan, programs};
use lb_userspace::dataplane::Dataplane;

use super::{
    Frame, Harness, MOST_ROOM, NEW_ROOM, RUNS, TRIES, USUAL_ROOM,
    harness::Runs,
    scene::{self, Connection, Family, Segment},
};

/// Connections that are established in tables of the usual size, and in large ones.
const USUAL_FLOWS: u32 = 64_000;
const MOST_FLOWS: u32 = 1_000_000;
/// Handshakes at once: more, and those that are not complete would give way to each other.
const HANDSHAKES: u32 = 1_000;
// linux/bpf.h
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

// Lists of both sizes, both directions and both families.
const _: () = assert!(4 * (USUAL_FLOWS + MOST_FLOWS) <= MAX_FLOWS);

/// The data planes under test.
pub(super) struct Tables {
    usual: Dataplane,
    most: Dataplane,
    new: Dataplane,
}

impl Tables {
    pub(super) fn load(interface: u32, harness: &mut Harness) -> anyhow::Result<Self> {
        let usual = scene::dataplane(interface, USUAL_ROOM)?;
        let most = scene::dataplane(interface, MOST_ROOM)?;
        let new = scene::dataplane(interface, NEW_ROOM)?;
        let tables = Self { usual, most, new };
        for program in [programs::USUAL, programs::MOST, programs::NEW] {
            harness.put(program, tables.of(program).ingress_program()?)?;
        }
        Ok(tables)
    }

    /// The tables of a program. What is not ours needs none, and has none of its own.
    fn of(&self, program: u32) -> &Dataplane {
        match program {
            programs::MOST => &self.most,
            programs::NEW => &self.new,
            _ => &self.usual,
        }
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Client to backend.
    Forward,
    /// Backend to client.
    Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NoOp,
    NotOurs,
    New,
    /// Packets of that many connections, in turn.
    Established(Direction, u32),
}

impl Kind {
    /// Every kind, the one that others are compared with first.
    pub(super) fn all() -> Vec<Self> {
        let mut kinds = vec![Self::NoOp, Self::NotOurs, Self::New];
        for flows in [1, 1_000, USUAL_FLOWS, MOST_FLOWS] {
            kinds.extend([Direction::Forward, Direction::Reply].map(|way| Self::Established(way, flows)));
        }
        kinds
    }
}

/// One line of the outcome in the making.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) kind: Kind,
    pub(super) family: Family,
    /// Nanoseconds, and multiples of the same round's no-op.
    pub(super) samples: Vec<(f64, f64)>,
    template: Frame,
    plan: Plan,
}

impl Case {
    pub(super) fn new(kind: Kind, family: Family) -> anyhow::Result<Self> {
        let (segment, program, direction, count) = match kind {
            Kind::NoOp => (Segment::Request, programs::NO_OP, Direction::Forward, 1),
            Kind::NotOurs => (Segment::Stranger, programs::USUAL, Direction::Forward, 1),
            Kind::New => (Segment::Syn, programs::NEW, Direction::Forward, MOST_FLOWS),
            Kind::Established(direction, flows) => {
                let segment = if direction == Direction::Forward { Segment::Request } else { Segment::Reply };
                let program = if flows > USUAL_FLOWS { programs::MOST } else { programs::USUAL };
                (segment, program, direction, flows)
            }
        };
        let plan = Plan { program, first: list(family, direction, count), count, next: 0 };
        Ok(Self { kind, family, samples: Vec::new(), template: segment.frame(family)?, plan })
    }

    /// Nanoseconds a run, see [`super`].
    pub(super) fn measure(&mut self, harness: &mut Harness, tables: &Tables) -> anyhow::Result<f64> {
        let dataplane = tables.of(self.plan.program);
        // What fits into the caches is to be there. A million connections do not fit: they are measured as they come, and
        // go on where the last round ended.
        if self.plan.count <= USUAL_FLOWS {
            self.run(harness, self.plan.program, self.plan.count.max(RUNS))?;
        }
        let (mut least, mut bare, mut alone) = (f64::MAX, f64::MAX, f64::MAX);
        for _ in 0..TRIES {
            bare = self.run(harness, programs::BARE, RUNS)?.ns.min(bare);
            alone = harness.run_alone(&self.template, RUNS)?.ns.min(alone);
            let before = dataplane.counters()?;
            let runs = self.run(harness, self.plan.program, RUNS)?;
            self.prove(runs.action, &counted(&before, &dataplane.counters()?))?;
            least = runs.ns.min(least);
            self.plan.next = (self.plan.next + RUNS) % self.plan.count;
        }
        Ok(least - bare + alone)
    }

    fn run(&self, harness: &mut Harness, program: u32, repeat: u32) -> anyhow::Result<Runs> {
        harness.run(&self.template, Plan { program, ..self.plan }, repeat)
    }

    /// Fails where packets took another way than the case's.
    fn prove(&self, action: u32, counted: &[(Counter, u64)]) -> anyhow::Result<()> {
        let wanted = if self.kind == Kind::NotOurs { XDP_PASS } else { XDP_TX };
        ensure!(action == wanted, "{self}: returned {action} in place of {wanted}; counted {counted:?}");
        let new = [(Counter::Connected, u64::from(RUNS))];
        let wanted = if self.kind == Kind::New { &new[..] } else { &[] };
        // New connections that nobody answers displace each other, as in a flood.
        let displaced = |counter| self.kind == Kind::New && counter == Counter::EvictedHalfOpen;
        let counted: Vec<_> = counted.iter().copied().filter(|(counter, _)| !displaced(*counter)).collect();
        ensure!(counted == wanted, "{self}: counted {counted:?} in place of {wanted:?}");
        Ok(())
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.family, self.kind)
    }
}

/// Takes each connection through its handshake in the data path. Shuffled, the harness's lists are left in no order: on a real
/// link packets do not come in the order in which connections were made.
pub(super) fn establish(harness: &mut Harness, tables: &Tables, family: Family, shuffled: bool) -> anyhow::Result<()> {
    for (program, flows) in [(programs::USUAL, USUAL_FLOWS), (programs::MOST, MOST_FLOWS)] {
        let mut connections = scene::connections(family, flows)?;
        write(harness, family, &connections)?;
        let before = tables.of(program).counters()?;
        for first in (0..flows).step_by(HANDSHAKES as usize) {
            let count = HANDSHAKES.min(flows - first);
            for (segment, direction) in [
                (Segment::Syn, Direction::Forward),
                (Segment::SynAck, Direction::Reply),
                (Segment::Request, Direction::Forward),
            ] {
                let plan = Plan { program, first: list(family, direction, flows) + first, count, next: 0 };
                let runs = harness.run(&segment.frame(family)?, plan, count)?;
                ensure!(runs.action == XDP_TX, "{family:?} {segment:?} returned {}", runs.action);
                // The last connection's frame, as it left: to the backend, or back to the client.
                let last = connections[(first + count) as usize - 1];
                let other = if direction == Direction::Forward { last.reply } else { last.forward };
                let right = scene::destination(&runs.frame, family) == other.source;
                ensure!(right, "{family:?} {segment:?} was sent to somebody else");
            }
        }
        let counted = counted(&before, &tables.of(program).counters()?);
        ensure!(counted == [(Counter::Connected, u64::from(flows))], "{family:?} handshakes counted {counted:?}");
        if shuffled {
            fastrand::Rng::with_seed(1).shuffle(&mut connections);
            write(harness, family, &connections)?;
        }
    }
    Ok(())
}

/// Writes the lists of connections that are as many as these.
fn write(harness: &mut Harness, family: Family, connections: &[Connection]) -> anyhow::Result<()> {
    let flows = connections.len() as u32;
    for (place, connection) in (0..).zip(connections) {
        harness.set_flow(list(family, Direction::Forward, flows) + place, connection.forward)?;
        harness.set_flow(list(family, Direction::Reply, flows) + place, connection.reply)?;
    }
    Ok(())
}

/// Where the harness has the list of a family's flows in one direction, for that many of them at most.
fn list(family: Family, direction: Direction, flows: u32) -> u32 {
    let number = family as u32 * 2 + direction as u32;
    if flows > USUAL_FLOWS { 4 * USUAL_FLOWS + number * MOST_FLOWS } else { number * USUAL_FLOWS }
}

/// The counters that have grown, and by how much.
fn counted(before: &BTreeMap<Counter, u64>, after: &BTreeMap<Counter, u64>) -> Vec<(Counter, u64)> {
    let grown = |(counter, count): (&Counter, &u64)| {
        let more = count - before.get(counter).unwrap_or(&0);
        (more > 0).then_some((*counter, more))
    };
    after.iter().filter_map(grown).collect()
}
