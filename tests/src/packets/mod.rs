//! The packet table: frames that run through the programs in the kernel, and what must come out of each, byte by byte.

pub mod discovery;
pub mod frames;
mod relay;
pub mod stage;
mod table;

use std::collections::BTreeMap;

use anyhow::Context as _;
use lb_common::abi::Counter;
use lb_userspace::dataplane::{Change, Dataplane, Options, Run};

use stage::{Family, Landlord, Stage, Tenure};
use table::{Program, Scene, Script, Step, TABLE};

/// Bytes of a note to the kernel in front of a frame, which begins with `xvip`: that, the interface, and which neighbour of which family.
pub const NOTE: usize = 4 + 4 + 4 + 16;

/// What one run of the table found.
#[derive(Debug)]
pub struct Summary {
    pub cases: usize,
    pub failed: Vec<String>,
    /// Name and verified instructions of each program; 0 where the kernel (before 5.16) does not tell.
    pub programs: Vec<(String, u32)>,
}

/// Runs all cases for both families, in a network namespace of their own, and one daemon after another. Needs root.
pub fn run() -> Summary {
    let mut summary = summarize(|script| script);
    summary.cases += 1;
    if let Err(error) = relay::run() {
        summary.failed.push(format!("one daemon after another: {error:#}"));
    }
    summary
}

/// Runs all cases with one expected byte turned wrong in each, or one frame if there is no byte: all must fail.
pub fn run_spoiled() -> Summary {
    summarize(|mut script| {
        let step = script.steps.last_mut().expect("a case has steps");
        let middle = step.out.len() / 2;
        step.out[middle] ^= 1;
        script
    })
}

/// What cannot be run at all counts as one case that fails.
fn summarize(change: fn(Script) -> Script) -> Summary {
    Stage::set(move |stage| play(stage, change)).unwrap_or_else(|error| Summary {
        cases: 1,
        failed: vec![format!("table: {error:#}")],
        programs: Vec::new(),
    })
}

fn play(stage: Stage, change: fn(Script) -> Script) -> anyhow::Result<Summary> {
    let mut dataplane = load()?;
    let programs = dataplane.programs()?.into_iter().map(|(name, count)| (name, count.unwrap_or(0))).collect();
    let mut summary = Summary { cases: 0, failed: Vec::new(), programs };
    dataplane.apply(&stage.tables())?;
    let mut theatre = Theatre { landlord: Landlord::new(&mut dataplane)?, dataplane };
    for family in Family::ALL {
        for (name, case) in TABLE {
            summary.cases += 1;
            let number = summary.cases as u16;
            // Each case has its own client port, and so connections of its own.
            let scene = Scene { stage, family, client_port: 30_000 + 64 * number, generation: 3 * u32::from(number) };
            theatre.dataplane.apply(&stage.reset(scene.generation))?;
            theatre.landlord.grant(family, Tenure::Unbounded)?;
            if let Err(error) = theatre.perform(family, change(case(&scene))) {
                summary.failed.push(format!("{name}, {family:?}: {error:#}"));
            }
        }
    }
    Ok(summary)
}

/// Loads the programs, not showing their maps anywhere.
pub fn load() -> anyhow::Result<Dataplane> {
    Ok(Dataplane::load(&Options { max_connections: 65_536, virtual_servers: 16, bpffs: None })?)
}

/// The programs and their maps.
struct Theatre {
    dataplane: Dataplane,
    landlord: Landlord,
}

impl Theatre {
    fn perform(&mut self, family: Family, script: Script) -> anyhow::Result<()> {
        for (number, step) in (1..).zip(script.steps) {
            self.take(family, &step).with_context(|| format!("step {number}, {}", step.what))?;
        }
        Ok(())
    }

    fn take(&mut self, family: Family, step: &Step) -> anyhow::Result<()> {
        self.dataplane.apply(&step.before)?;
        if let Some(tenure) = step.tenure {
            self.landlord.grant(family, tenure)?;
        }
        let before = self.dataplane.counters()?;
        let Run { action, mut frame } = match step.program {
            Program::Ingress => self.dataplane.ingress(&step.frame)?,
            Program::Egress => self.dataplane.egress(&step.frame)?,
        };
        for place in &step.open {
            let known = step.out.get(place.clone()).context("a place beyond the end")?;
            frame.get_mut(place.clone()).context("it ends before that")?.copy_from_slice(known);
        }
        let after = self.dataplane.counters()?;
        anyhow::ensure!(action == step.action, "action {action} instead of {}", step.action);
        if frame != step.out {
            let at = frame.iter().zip(&step.out).position(|(got, wanted)| got != wanted);
            anyhow::bail!(
                "the frame differs from byte {}:\n  in     {}\n  out    {}\n  wanted {}",
                at.unwrap_or(frame.len().min(step.out.len())),
                hex(&step.frame),
                hex(&frame),
                hex(&step.out)
            );
        }
        let rose = risen(&before, &after);
        anyhow::ensure!(rose == step.counters, "counted {rose:?} instead of {:?}", step.counters);
        Ok(())
    }
}

/// The counters that went up by one, once each.
fn risen(before: &BTreeMap<Counter, u64>, after: &BTreeMap<Counter, u64>) -> Vec<Counter> {
    let times = |counter: &Counter| after[counter] - before[counter];
    after.keys().flat_map(|counter| std::iter::repeat_n(*counter, times(counter) as usize)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
