//! A campaign of faults: both appliances of deployment C, streams and requests through their VIPs all the time, and one fault after the
//! other as a seed has them.
//!
//! - One node answers for the VIP, from [`judge::BOUND`] after a fault and its end on; while the appliances do not hear each other, both do.
//! - No stream ends but with its backend, and none gets bytes of another one.
//! - No request fails but near a fault or its end.
//! - Each fault's end is followed by the state before it.
//! - Nothing is left of streams, daemons and hosts when they have ended, and no daemon grows.
//!
//! `plan` and `judge` are pure; `stage` plays and notes.

mod flood;
mod judge;
mod leaks;
mod plan;
mod report;
mod requests;
mod stage;

use std::time::Duration;

use anyhow::Result;

pub use self::report::Report;
use self::stage::Stage;

/// How much of a plan is played.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Only faults of these kinds; all if none is named.
    pub only: Vec<String>,
    /// No step begins later than this.
    pub time: Duration,
    pub streams: u32,
    /// Print each step as it is played.
    pub verbose: bool,
}

/// Plays and judges. Needs root.
///
/// # Errors
/// Where it could not be played; what went wrong in xvip is in the report.
pub fn campaign(options: &Options) -> Result<Report> {
    let mut stage = Stage::set(options)?;
    stage.play(options);
    stage.finish(options)
}
