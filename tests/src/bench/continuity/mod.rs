//! What long-lived streams notice of a daemon's end, of its successor and of failovers: how many are lost, how long the others wait,
//! and how much TCP has to send again.
//!
//! Deployment C. Streams of both families go from the client through a VIP to three backends, each with a line of its own ten times a
//! second that must come back. On one appliance whose VIPs do not move, its daemon is restarted, replaced and reloaded under them; then
//! both appliances hold the VIPs and share their connections, and the holder is lost again and again: in each mode, since in dsr replies
//! do not pass the holder, and the backends' nodes know the connections themselves.
//!
//! | event | what happens |
//! |---|---|
//! | quiet | nothing, for comparison: what the machine does to the streams by itself |
//! | restart | the daemon ends and another one takes its data plane over; killed and in order (`on_stop = "keep"`) in turn |
//! | upgrade | `xvip upgrade` by another edition, whose program for the kernel is another one, and then by the first again |
//! | reload | another configuration: a backend leaves, and comes back with the next one |
//! | kill | SIGKILL of the holder's daemon |
//! | link-loss | the holder's port leaves the switch, carriers stay up |
//! | return | the killed holder's next daemon takes the VIPs again, by its priority |
//! | heal | the lost holder's port comes back, and it has the VIPs again |
//!
//! A stream's gap is its longest wait for one line from the event until all streams have got five lines more. A retransmission is *spurious*
//! if its receiver had the segment already and said so (DSACK): nothing was lost, an answer was late.

mod report;
mod scene;

use std::time::Duration;

use anyhow::Result;

pub use self::report::{Line, Report};
use self::scene::{Samples, appliance, pair};

/// How much is to happen.
#[derive(Clone, Debug)]
pub struct Options {
    pub streams: u32,
    /// Between two lines of a stream.
    pub pace: Duration,
    /// Restarts; twice as many upgrades and reloads.
    pub restarts: usize,
    /// Of each kind, in each mode.
    pub failovers: usize,
    /// By which packets come to backends while holders are lost; the appliance alone works by nat.
    pub modes: Vec<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Mode {
    Nat,
    Dsr,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::Nat, Self::Dsr];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Quiet,
    Restart,
    Upgrade,
    Reload,
    Kill,
    LinkLoss,
    Return,
    Heal,
}

impl Event {
    pub fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
            Self::Reload => "reload",
            Self::Kill => "kill",
            Self::LinkLoss => "link-loss",
            Self::Return => "return",
            Self::Heal => "heal",
        }
    }
}

/// Measures. Needs root.
pub fn continuity(options: &Options) -> Result<Report> {
    let mut samples = Samples::default();
    if options.restarts > 0 {
        appliance(options, &mut samples)?;
    }
    if options.failovers > 0 {
        for mode in &options.modes {
            pair(options, *mode, &mut samples)?;
        }
    }
    Ok(Report::new(options, samples))
}
