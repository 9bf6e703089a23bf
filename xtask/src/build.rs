//! `build`: the product, as `target/release/xvip`.

use anyhow::Result;

use crate::{
    exec::{command, exec, step, target_dir},
    setup::{self, Need},
};

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Compile])?;
    release(&["--package", "lb-userspace"])?;
    step(format!("built {}", target_dir().join("release/xvip").display()));
    Ok(())
}

/// `cargo build --release` of what `selection` names.
pub(crate) fn release(selection: &[&str]) -> Result<()> {
    step(format!("cargo build --release {}", selection.join(" ")));
    exec(command("cargo").args(["build", "--release", "--locked"]).args(selection))
}
