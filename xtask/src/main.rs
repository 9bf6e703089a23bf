//! Everything a developer does with xvip.

mod vm_test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Verb {
    /// Load every program and run the packet table on the kernels of Debian, in virtual machines
    VmTest(vm_test::VmTest),
}

fn main() -> ExitCode {
    let done = match Verb::parse() {
        Verb::VmTest(args) => vm_test::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
