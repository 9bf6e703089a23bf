//! Ctrl-C as something to ask for: it must never end this program before the lab is gone.

use std::{
    cell::Cell,
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

/// The user wants an end. Not a failure of anything.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

#[derive(Debug)]
pub(super) struct Interrupt {
    signals: Receiver<()>,
    raised: Cell<bool>,
}

impl Interrupt {
    /// To be called before any other thread starts: threads, and tools such as `ip`, inherit that the signals are blocked,
    /// so that Ctrl-C does not stop them half-way.
    pub(super) fn watch() -> Result<Self> {
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        set.thread_block()?;
        let (raise, signals) = mpsc::channel();
        thread::spawn(move || while set.wait().is_ok() && raise.send(()).is_ok() {});
        Ok(Self { signals, raised: Cell::new(false) })
    }

    /// An error once a signal has come.
    pub(super) fn check(&self) -> Result<(), Interrupted> {
        if self.signals.try_recv().is_ok() {
            self.raised.set(true);
        }
        if self.raised.get() { Err(Interrupted) } else { Ok(()) }
    }

    pub(super) fn wait(&self) {
        // The watching thread ends only with the program, so this ends only with a signal.
        let _ = self.signals.recv();
    }
}
