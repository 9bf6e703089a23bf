//! A thousand times a second, on a thread inside a host, and another thread for what comes back.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep},
};

/// Between two questions.
pub const PERIOD: Duration = Duration::from_millis(1);

/// Two threads that end with this.
#[derive(Debug)]
pub(super) struct Pair {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pair {
    /// `ask` is called each [`PERIOD`], `hear` again and again; it must not wait long.
    pub(super) fn start(
        mut ask: impl FnMut() + Send + 'static,
        mut hear: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (asking, hearing) = (Arc::clone(&stop), Arc::clone(&stop));
        let asker = thread::spawn(move || {
            let mut next = now();
            while !asking.load(Ordering::Relaxed) {
                ask();
                // Questions that could not be asked in time are left out, not made up for.
                next = (next + TimeSpec::from(PERIOD)).max(now());
                // Interrupted or not, the next question comes at most early.
                let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &next);
            }
        });
        let hearer = thread::spawn(move || {
            while !hearing.load(Ordering::Relaxed) {
                if let Err(error) = hear() {
                    // Nothing is noted from here on, and every wait for it says so.
                    eprintln!("the bench hears nothing any more: {error}");
                    break;
                }
            }
        });
        Self { stop, threads: vec![asker, hearer] }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed by its thread.
            let _ = thread.join();
        }
    }
}

/// From one moment of the kernel's clock to another; zero where they are the other way round.
pub fn between(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

fn now() -> TimeSpec {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock")
}
