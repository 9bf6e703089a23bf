//! Plays faults on a pair of appliances under traffic, and judges: `cargo xtask chaos`.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use lb_tests::chaos::{Options, campaign};

/// Faults one after the other, as a seed has them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The plan; any, if none is given
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Long-lived streams
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// Only faults of these kinds, such as `kill,cut`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let Arguments { seed, minutes, streams, only } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let time = Duration::try_from_secs_f64(minutes * 60.0)?;
    let report = campaign(&Options { seed, only, time, streams, verbose: true })?;
    print!("{report}");
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
