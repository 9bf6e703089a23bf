//! Writes the thread's lines to the log from another thread: a log that blocks must not stop the adverts.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use log::{Level, log, log_enabled};

use super::clock;
use crate::vrrp::Moment;

/// Lines that may wait: those of a takeover of all instances, several times. What is more is counted and not kept.
const LINES: usize = 512;
/// Between two lines of one kind that comes again and again.
const QUIET: Duration = Duration::from_secs(10);

/// The thread's end of the log. Dropping it waits until everything is written.
pub(super) struct Journal {
    lines: Option<SyncSender<(Level, String)>>,
    writer: Option<JoinHandle<()>>,
    lost: u64,
}

impl Journal {
    pub(super) fn start() -> io::Result<Self> {
        let (lines, queue) = sync_channel::<(Level, String)>(LINES);
        let write = move || queue.into_iter().for_each(|(level, line)| log!(level, "{line}"));
        let writer = thread::Builder::new().name("xvip-vrrp-log".into()).spawn(write)?;
        Ok(Self { lines: Some(lines), writer: Some(writer), lost: 0 })
    }

    pub(super) fn debug(&mut self, line: impl FnOnce() -> String) {
        if log_enabled!(Level::Debug) {
            self.write(Level::Debug, line());
        }
    }

    pub(super) fn info(&mut self, line: String) {
        self.write(Level::Info, line);
    }

    pub(super) fn warn(&mut self, line: String) {
        self.write(Level::Warn, line);
    }

    /// A warning that would come again and again.
    pub(super) fn seldom(&mut self, seldom: &mut Seldom, line: impl FnOnce() -> String) {
        if let Some(kept) = seldom.due(clock::now()) {
            let line = line();
            self.warn(if kept == 0 { line } else { format!("{line} ({kept} more since the last line)") });
        }
    }

    fn write(&mut self, level: Level, line: String) {
        let Some(lines) = &self.lines else { return };
        let line = match self.lost {
            0 => line,
            lost => format!("{line} ({lost} lines before this one were lost: the log was not taken)"),
        };
        match lines.try_send((level, line)) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += 1,
        }
    }
}

/// Lets a line of one kind through, and then none for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seldom {
    next: Moment,
    kept: u64,
}

impl Seldom {
    /// How many lines were kept back, if this one may be written.
    fn due(&mut self, now: Moment) -> Option<u64> {
        if now < self.next {
            self.kept += 1;
            return None;
        }
        self.next = now + QUIET;
        Some(std::mem::take(&mut self.kept))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        // A writer that panicked has said so.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_again_is_written_seldom_and_counted() {
        let mut seldom = Seldom::default();
        let at = |seconds: u64| Moment(Duration::from_secs(100 + seconds));
        let table = [(0, Some(0)), (0, None), (9, None), (10, Some(2)), (11, None), (30, Some(1)), (41, Some(0))];
        for (seconds, written) in table {
            assert_eq!(seldom.due(at(seconds)), written, "after {seconds} s");
        }
    }
}
