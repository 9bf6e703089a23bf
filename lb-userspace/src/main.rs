//! `xvip`: the daemon and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
