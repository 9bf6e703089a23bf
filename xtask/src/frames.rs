//! `frames`: very many random frames through the programs in the kernel, compared with the packet decision on the host.

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    demo::WHY,
    exec::{ask_root, exec, root_command, root_dir, step},
    setup::{self, Need},
    test,
};

/// Arguments of `frames`.
#[derive(Args, Debug)]
pub(crate) struct Frames {
    /// How many
    #[arg(long, default_value_t = 10_000_000)]
    count: u32,
    /// What they are made from, to have the same ones again
    #[arg(long)]
    seed: Option<u64>,
}

const TEST: &str = "differential";

pub(crate) fn run(arguments: &Frames) -> Result<()> {
    ask_root(WHY)?;
    setup::ensure(&[Need::Compile, Need::Lab])?;
    step("cargo test --release --test differential");
    let binaries = test::binaries(&["--release", "--locked", "--package", "lb-tests", "--test", TEST])?;
    let binary = binaries.iter().find(|binary| binary.name == TEST).context("cargo has built no such test")?;
    ensure!(arguments.count > 0, "no frames say nothing");
    let mut command = root_command("env", WHY)?;
    command.arg(format!("XVIP_FRAMES={}", arguments.count));
    command.args(arguments.seed.map(|seed| format!("XVIP_SEED={seed}")));
    command.arg(&binary.file).args(["--nocapture", "--test-threads=1"]);
    exec(command.current_dir(root_dir().join("tests")))
}
