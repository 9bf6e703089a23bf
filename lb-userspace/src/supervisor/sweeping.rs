//! The sweep of idle connections, beside the loop that must answer at once.

use std::time::{Duration, Instant};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    config::model,
    dataplane::{Sweeper, Swept, Timeouts},
};

/// A sweep takes at most one part in this many of the time…
const SHARE: u32 = 50;
/// …and there is not more than one in this time.
const EVERY: Duration = Duration::from_secs(5);

/// Sweeps for ever, publishing what it found. Cancel-safe: a walk under way ends by itself.
pub(super) async fn run(mut sweeper: Sweeper, timeouts: model::Timeouts, counts: watch::Sender<Swept>) {
    let timeouts = Timeouts { syn: timeouts.syn, established: timeouts.established, closing: timeouts.closing };
    loop {
        let start = Instant::now();
        let walk = spawn_blocking(move || {
            let swept = sweeper.sweep(&timeouts);
            (sweeper, swept)
        });
        let Ok((back, swept)) = walk.await else {
            log::error!("the sweep of idle connections has failed: they go only when the table is full");
            return;
        };
        sweeper = back;
        counts.send_replace(swept);
        sleep(pause(start.elapsed())).await;
    }
}

/// How long to leave the table alone after a walk that took `walk`.
fn pause(walk: Duration) -> Duration {
    EVERY.max(walk * SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_walk_is_followed_by_a_longer_pause() {
        assert_eq!(pause(Duration::from_millis(1)), EVERY);
        assert_eq!(pause(Duration::from_secs(1)), Duration::from_secs(50));
    }
}
