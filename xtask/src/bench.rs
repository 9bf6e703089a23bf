//! `bench`: measurements of a release build, as root, in place of this process.

use std::iter;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    build,
    demo::{WHY, run_lab},
    exec::ask_root,
    setup::{self, Need},
};

/// Arguments of `bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Nanoseconds a packet, and multiples of a program that only returns it
    Datapath {
        /// Passed on to the benchmark; `--json` prints one object a line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Milliseconds until a VIP is served by another node, for xvip and for keepalived; about half an hour
    Failover {
        /// Passed on to the benchmark; `--json` prints one object a line, `-- --help` tells the rest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// What long-lived streams notice of restarts, upgrades, reloads and failovers; about ten minutes
    Continuity {
        /// Passed on to the benchmark; `--json` prints one object a line, `-- --help` tells the rest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Time and memory that it takes to go on with a million connections of a daemon that was killed; some minutes
    Adoption {
        /// Passed on to the benchmark; `--json` prints one object a line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// How far a peer is behind while connections are made, and what telling it costs
    Sync {
        /// Passed on to the benchmark; `--json` prints one object a line, `-- --help` tells the rest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

pub(crate) fn run(arguments: &Bench) -> Result<()> {
    ask_root(WHY)?;
    let (what, rest) = match arguments {
        Bench::Datapath { rest } => {
            setup::ensure(&[Need::Compile, Need::Lab])?;
            build::release(&["--package", "lb-tests", "--bin", "lab-bench"])?;
            ("datapath", rest)
        }
        Bench::Adoption { rest } => (daemons(&[Need::Compile, Need::Lab], "adoption")?, rest),
        Bench::Sync { rest } => (daemons(&[Need::Compile, Need::Lab], "sync")?, rest),
        Bench::Continuity { rest } => (daemons(&[Need::Compile, Need::Lab], "continuity")?, rest),
        Bench::Failover { rest } => (daemons(&[Need::Compile, Need::Lab, Need::Peers], "failover")?, rest),
    };
    let arguments: Vec<String> = iter::once(what.to_owned()).chain(rest.iter().cloned()).collect();
    run_lab("lab-bench", &arguments)
}

/// Builds what a measurement of whole daemons takes.
fn daemons(needs: &[Need], what: &'static str) -> Result<&'static str> {
    setup::ensure(needs)?;
    build::release(&["--package", "lb-userspace"])?;
    build::release(&["--package", "lb-tests", "--bin", "lab-bench", "--bin", "lab-apiserver"])?;
    Ok(what)
}
