//! Measures the data path: `cargo xtask bench datapath`.

use anyhow::Result;
use clap::Parser;
use lb_tests::bench;

/// Nanoseconds a packet in the data path, and multiples of a program that only returns it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print one object a line
    #[arg(long)]
    json: bool,
    /// Visit connections in no order, so that hardly a cache line is still there: the worst that traffic can be. Without it they come in
    /// the order in which they were made
    #[arg(long)]
    shuffled: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = bench::datapath(arguments.shuffled)?;
    if arguments.json {
        println!("{}", report.json()?);
    } else {
        print!("{report}");
    }
    Ok(())
}
