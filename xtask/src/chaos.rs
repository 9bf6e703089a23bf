//! `chaos`: a campaign of faults under traffic, with the product as it is released.

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    demo::{WHY, run_lab},
    exec::ask_root,
    setup::{self, Need},
};

/// Arguments of `chaos`.
#[derive(Args, Debug)]
pub(crate) struct Chaos {
    /// Passed on: `--seed N`, `--minutes M`, `--streams N`, `--only KIND,…`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(arguments: &Chaos) -> Result<()> {
    ask_root(WHY)?;
    setup::ensure(&[Need::Compile, Need::Lab])?;
    build::release(&["--package", "lb-userspace"])?;
    build::release(&["--package", "lb-tests", "--bin", "lab-chaos", "--bin", "lab-apiserver"])?;
    run_lab("lab-chaos", &arguments.rest)
}
