//! Everything a developer does with xvip, one file a verb: `cargo xtask --help`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod chaos;
mod clean;
mod demo;
mod exec;
mod frames;
mod fuzz;
mod setup;
mod test;
mod vm_test;

/// Everything a developer does with xvip.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find or install what the other verbs need
    Setup(setup::Setup),
    /// Build target/release/xvip
    Build,
    /// Remove what an interrupted demo or test left on this host
    Clean,
    /// Carry HTTPS through the data plane in a lab of network namespaces, kill a backend, bring it back; lose the VIP's holder
    Demo(demo::Demo),
    /// Run every test there is: host, lab, fuzz, virtual machine
    Test(test::Test),
    /// Measure the data plane, or failovers
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Play faults on a pair of appliances under traffic, as a seed has them, and judge what became of it
    Chaos(chaos::Chaos),
    /// Run the fuzz targets for as long as one likes
    Fuzz(fuzz::Fuzz),
    /// Run millions of random frames through the kernel's programs and compare; minutes
    Frames(frames::Frames),
    /// Load every program and run the packet table on older kernels, in virtual machines
    VmTest(vm_test::VmTest),
}

fn main() -> ExitCode {
    let result = run(Arguments::parse().verb);
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup(arguments) => setup::run(&arguments)?,
        Verb::Build => build::run()?,
        Verb::Clean => clean::run()?,
        Verb::Demo(arguments) => demo::run(&arguments)?,
        Verb::Test(arguments) => return test::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments)?,
        Verb::Chaos(arguments) => chaos::run(&arguments)?,
        Verb::Frames(arguments) => frames::run(&arguments)?,
        Verb::Fuzz(arguments) => fuzz::run(&arguments)?,
        Verb::VmTest(arguments) => {
            setup::ensure(&[setup::Need::Compile, setup::Need::Vm])?;
            vm_test::run(&arguments)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
