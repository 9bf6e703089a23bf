//! `bench`: measurements of a release build, as root, in place of this process.

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
}

pub(crate) fn run(arguments: &Bench) -> Result<()> {
    let Bench::Datapath { rest } = arguments;
    ask_root(WHY)?;
    setup::ensure(&[Need::Compile, Need::Lab])?;
    build::release(&["--package", "lb-tests", "--bin", "lab-bench"])?;
    run_lab("lab-bench", rest)
}
