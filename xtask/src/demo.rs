//! `demo`: the lab's show, as root, in place of this process.

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    exec::{ask_root, replace, root_command, step, target_dir},
    setup::{self, Need},
};

/// What the lab does that only root may.
pub(crate) const WHY: &str = "to make network namespaces and load XDP programs";

/// Arguments of `demo`.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Passed on to the demo; `--check` runs it unattended and exits 0 or 1
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(arguments: &Demo) -> Result<()> {
    ask_root(WHY)?;
    setup::ensure(&[Need::Compile, Need::Lab])?;
    build::release(&["--package", "lb-userspace"])?;
    build::release(&["--package", "lb-tests", "--bin", "lab-demo", "--bin", "lab-apiserver"])?;
    run_lab("lab-demo", &arguments.rest)
}

/// Becomes one of the lab's release binaries, as root.
pub(crate) fn run_lab(program: &str, arguments: &[String]) -> Result<()> {
    let file = target_dir().join("release").join(program);
    step(format!("{program} {}", arguments.join(" ")).trim_end());
    let mut command = root_command(&file.to_string_lossy(), WHY)?;
    match replace(command.args(arguments))? {}
}
