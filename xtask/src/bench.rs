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
    /// What a flood of SYNs costs those who work; about a minute
    Flood {
        /// Passed on to the benchmark; `--json` prints one object a line, `--seconds` says how long
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
        Bench::Failover { rest } => {
            setup::ensure(&[Need::Compile, Need::Lab, Need::Peers])?;
            build::release(&["--package", "lb-userspace"])?;
            build::release(&["--package", "lb-tests", "--bin", "lab-bench", "--bin", "lab-apiserver"])?;
            ("failover", rest)
        }
        Bench::Flood { rest } => {
            setup::ensure(&[Need::Compile, Need::Lab])?;
            build::release(&["--package", "lb-userspace"])?;
            build::release(&["--package", "lb-tests", "--bin", "lab-bench", "--bin", "lab-apiserver"])?;
            ("flood", rest)
        }
    };
    let arguments: Vec<String> = iter::once(what.to_owned()).chain(rest.iter().cloned()).collect();
    run_lab("lab-bench", &arguments)
}
