//! What the kernel side logs, passed on to the daemon's log.

use std::{
    fmt, io,
    os::fd::{AsRawFd, RawFd},
};

use aya_log::EbpfLogger;
use log::{Log as Logger, max_level};
use tokio::io::{Interest, unix::AsyncFd};

use super::Dataplane;

/// The kernel side's log records, as they come.
#[derive(Debug)]
pub struct Log(AsyncFd<Records>);

struct Records(EbpfLogger<&'static dyn Logger>);

impl AsRawFd for Records {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Records")
    }
}

impl Dataplane {
    /// Takes the log, within a runtime. It can be taken once.
    pub fn log(&mut self) -> io::Result<Log> {
        let records = EbpfLogger::init(&mut self.ebpf).map_err(io::Error::other)?;
        // SAFETY: the ring buffer owns its file descriptor for as long as it lives, and stays inside.
        let readable = unsafe { AsyncFd::register_with_interest(Records(records), Interest::READABLE) };
        Ok(Log(readable.map_err(io::Error::from)?))
    }
}

impl Log {
    /// Passes records on until it is dropped.
    pub async fn pass_on(mut self) {
        while let Ok(mut ready) = self.0.readable_mut().await {
            ready.get_inner_mut().0.flush();
            ready.clear_ready();
        }
    }
}

/// The daemon's own level, in aya-log's numbers: what it would not show is taken out of the programs when they are loaded.
pub(super) fn level() -> u8 {
    max_level() as u8
}
