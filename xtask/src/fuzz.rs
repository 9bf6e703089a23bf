//! `fuzz`: builds the fuzz targets and runs them, each from its committed seeds and whatever earlier runs found.
//!
//! This is what `cargo fuzz run -s none` does, for all targets with one build. Nearly all of the code is safe Rust: an address sanitizer
//! would find little in it, and doubles the build. `cargo fuzz run TARGET` works too, and brings one.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    exec::{capture, command, exec, root_dir, step, stream},
    setup::{self, Need},
};

/// Arguments of `fuzz`.
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// Only these [default: all, one after the other]
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// How well the targets are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// In half of the time.
    Dev,
    /// To run for long.
    Release,
}

/// Seconds given to one target among the tests.
pub(crate) const SMOKE: u32 = 10;

/// What libFuzzer needs to see where an input led; all of it stable. And mistakes are to be seen as in a debug build.
const FLAGS: [&str; 9] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "--cfg=fuzzing",
];

pub(crate) fn run(arguments: &Fuzz) -> Result<()> {
    let known = targets()?;
    for target in &arguments.targets {
        ensure!(known.contains(target), "no fuzz target is called {target}; there are {}", known.join(", "));
    }
    setup::ensure(&[Need::Compile, Need::Fuzz])?;
    let built = build(Profile::Release)?;
    for target in if arguments.targets.is_empty() { &known } else { &arguments.targets } {
        step(format!("fuzz: {target}, {} s", arguments.seconds));
        let status = smoke(&built, target, arguments.seconds)?;
        ensure!(status.success(), "{target}: {status}; the input is in fuzz/artifacts/{target}");
    }
    Ok(())
}

/// The targets of `fuzz/`, by name.
pub(crate) fn targets() -> Result<Vec<String>> {
    let directory = root_dir().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    ensure!(!names.is_empty(), "no fuzz target in {}", directory.display());
    names.sort();
    Ok(names)
}

/// Builds all targets. Where they are.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let host = host()?;
    step("cargo build of the fuzz targets");
    // With a target given, the flags are not for build scripts. No target loads the kernel side's object: building it can be left out.
    let mut cargo = command("cargo");
    cargo.env("AYA_BUILD_SKIP", "1").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("CARGO_TARGET_DIR");
    let (name, directory) = match profile {
        Profile::Dev => ("dev", "debug"),
        Profile::Release => ("release", "release"),
    };
    let manifest = ["--locked", "--manifest-path", "fuzz/Cargo.toml"];
    exec(cargo.args(["build", "--profile", name, "--target", &host]).args(manifest))?;
    Ok(root_dir().join("fuzz/target").join(host).join(directory))
}

/// Runs one target for a while.
pub(crate) fn smoke(built: &Path, target: &str, seconds: u32) -> Result<ExitStatus> {
    // The first directory takes what is found, the second is only read.
    let (corpus, artifacts) = (Path::new("fuzz/corpus").join(target), Path::new("fuzz/artifacts").join(target));
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(root_dir().join(directory)).with_context(|| format!("making {}", directory.display()))?;
    }
    let mut command = command(&built.join(target).to_string_lossy());
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg(format!("-max_total_time={seconds}"));
    command.args(["-rss_limit_mb=2048", "-timeout=10", "-verbosity=0", "-print_final_stats=1"]);
    command.args([&corpus, &Path::new("fuzz/seeds").join(target)]);
    stream(&mut command, |line| println!("{line}"))
}

/// The compiler's own target.
fn host() -> Result<String> {
    let version = capture(command(&env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned())).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
