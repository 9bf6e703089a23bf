//! The show of `cargo xtask demo`: HTTPS through a VIP to three backends, of which one is killed and comes back; then the VIP's
//! holder is lost in three ways.

use std::process::ExitCode;

use clap::Parser;

/// HTTPS through a VIP to three backends in a lab of network namespaces; one is killed and comes back, and then the VIP's holder is
/// lost in three ways.
#[derive(Debug, Parser)]
struct Arguments {
    /// Run unattended, judge what happened, and exit 0 or 1
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    lb_tests::demo::main(Arguments::parse().check)
}
