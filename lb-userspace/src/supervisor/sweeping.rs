//! The sweep of idle connections, beside the loop that must answer at once; on the way it learns who the clients are.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::callers::{Caller, ranked};
use crate::{
    config::model,
    dataplane::{Sweeper, Swept, Timeouts},
    host::{Handle, Neighbours},
};

/// A sweep takes at most one part in this many of the time…
const SHARE: u32 = 50;
/// …and there is not more than one in this time.
const EVERY: Duration = Duration::from_secs(5);

/// Where those go who are to be told of a VIP one by one, and by what the kernel is asked for them.
pub(super) type Callers = (Handle, watch::Sender<Arc<Vec<Caller>>>);

/// Sweeps for ever, publishing what it found. Cancel-safe: a walk under way ends by itself.
pub(super) async fn run(
    mut sweeper: Sweeper,
    configured: watch::Receiver<model::Timeouts>,
    counts: watch::Sender<Swept>,
    callers: Option<Callers>,
) {
    loop {
        let model::Timeouts { syn, established, closing } = *configured.borrow();
        let timeouts = Timeouts { syn, established, closing };
        let start = Instant::now();
        let neighbours = match &callers {
            Some((handle, _)) => neighbours(handle).await,
            None => Neighbours::default(),
        };
        let known: HashSet<_> = neighbours.iter().map(|(_, address, _)| address).collect();
        let walk = spawn_blocking(move || {
            let swept = sweeper.sweep(&timeouts, &known);
            (sweeper, swept)
        });
        let Ok((back, swept)) = walk.await else {
            log::error!("the sweep of idle connections has failed: they go only when the table is full");
            return;
        };
        sweeper = back;
        if let Some((_, callers)) = &callers {
            callers.send_replace(Arc::new(ranked(neighbours.iter(), &swept.callers)));
        }
        counts.send_replace(swept);
        sleep(pause(start.elapsed())).await;
    }
}

async fn neighbours(handle: &Handle) -> Neighbours {
    Neighbours::read(handle).await.unwrap_or_else(|error| {
        log::warn!("{error}: a VIP that comes here is announced to all, but not to each client by itself");
        Neighbours::default()
    })
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
