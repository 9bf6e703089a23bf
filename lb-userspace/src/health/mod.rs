//! Health of backends: pure rise/fall counters, probes, and the tasks that run them.

use serde::Serialize;

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections.
    Up,
    /// Its TCP port lives but the check is refused: no new connections, established ones stay.
    Draining,
    /// Nothing answers: its connections are lost.
    Down,
}
