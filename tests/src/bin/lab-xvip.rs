//! `xvip` as the tests start it: the product's own entry, built together with them so that it is never an older one.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
