//! Nanoseconds a packet in the data path, as multiples of a program that only swaps MAC addresses and returns.
//!
//! A test run (`BPF_PROG_TEST_RUN`) repeats without restoring the packet, so a harness program stores it anew and jumps to
//! the program under test. What that costs is measured beside every case, with the same flows, and subtracted:
//!
//! ```text
//!   ns = (harness -> program) - (harness -> bare) + (bare)       bare: return XDP_TX
//! ```
//! so that a case's figure is what a test run of the program alone would take. A round measures every case once; ratios are
//! taken within a round, where the machine's mood is the same for both.

pub mod adoption;
mod case;
pub mod continuity;
pub mod failover;
mod harness;
mod inside;
mod report;
mod scene;
pub mod sync;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_common::abi::DEFAULT_CONNECTIONS;
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

pub use self::report::{Line, Report};
use self::{
    case::{Case, Kind, Tables},
    harness::{Frame, Harness},
    scene::{Family, Network},
};

/// Rounds, unless time runs out before.
const ROUNDS: usize = 100;
const LIMIT: Duration = Duration::from_secs(18);
/// Runs of most measurements: about a tenth of a millisecond, so that the system call and the clock are about a hundredth of
/// it.
const RUNS: u32 = 2_000;
/// Measurements of which the quickest counts: what disturbs one of them seldom disturbs all.
const TRIES: usize = 5;
/// Room where few connections are established: as the product is compiled.
const USUAL_ROOM: u32 = DEFAULT_CONNECTIONS;
/// Room for the most connections: so much that none is turned away, see `lb_common::table`.
const MOST_ROOM: u32 = 2_250_000;
/// Room where new connections come, of which none is answered.
const NEW_ROOM: u32 = DEFAULT_CONNECTIONS;

/// Measures the data path in a network namespace of its own. Needs root; takes about a minute.
///
/// # Errors
/// Also when a case did not measure what it says: another verdict, another way through the data path.
pub fn datapath(shuffled: bool) -> anyhow::Result<Report> {
    let network = Network::new()?;
    network.host.enter(|| {
        pin()?;
        let interface = if_nametoindex("eth0").context("the host's interface")?;
        measure(interface, shuffled)
    })?
}

fn measure(interface: u32, shuffled: bool) -> anyhow::Result<Report> {
    let mut harness = Harness::load(interface)?;
    let tables = Tables::load(interface, &mut harness)?;
    for family in Family::ALL {
        case::establish(&mut harness, &tables, family, shuffled)?;
    }
    let mut cases = Vec::new();
    for family in Family::ALL {
        for kind in Kind::all() {
            cases.push(Case::new(kind, family)?);
        }
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        round(&mut harness, &tables, &mut cases)?;
        if start.elapsed() > LIMIT {
            break;
        }
    }
    Report::new(&cases)
}

/// Measures every case once. A family's first case is its no-op.
fn round(harness: &mut Harness, tables: &Tables, cases: &mut [Case]) -> anyhow::Result<()> {
    let mut no_op = 0.0;
    for case in cases {
        let ns = case.measure(harness, tables)?;
        if case.kind == Kind::NoOp {
            no_op = ns;
        }
        case.samples.push((ns, ns / no_op));
    }
    Ok(())
}

/// Keeps this thread on one CPU, the last of those that it may use: the first one is where most interrupts go.
fn pin() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU to run on")?)?;
    sched_setaffinity(this, &one).context("staying on one CPU")
}
/// The time that this many of a hundred did not exceed (nearest rank), in milliseconds to a hundredth.
fn rank(sorted: &[Duration], percent: usize) -> Option<f64> {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).map(|time| (time.as_secs_f64() * 1e5).round() / 1e2)
}
