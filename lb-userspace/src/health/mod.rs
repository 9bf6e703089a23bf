//! Health of backends: pure rise/fall counters, probes, and the tasks that run them.

use std::fmt;

use serde::Serialize;

pub use checker::{BackendKey, Checkers, LastCheck, Report, Reports};

mod checker;
mod connection;
pub mod counter;
mod failure;
mod probe;
mod schedule;
mod silence;
#[cfg(test)]
mod stand_in;
mod tls;
mod watched;

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections.
    Up,
    /// Its TCP port lives but the check is refused: no new connections, established ones stay.
    Draining,
    /// Nothing answers: its connections are lost, if it is not this node that is cut off.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Up => "up",
            State::Draining => "draining",
            State::Down => "down",
        })
    }
}
