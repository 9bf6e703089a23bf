//! The host as the daemon needs it: its interfaces, the VIPs it holds and announces, its sysctls, and news of what changes.
//! Knows nothing of BPF.

use std::io;

pub use rtnetlink::Handle;

pub mod announce;
pub mod cgroup;
pub mod changes;
pub mod forwarding;
pub mod interface;
pub mod namespace;
mod news;
pub mod preflight;
pub mod process;
pub mod qdisc;
pub mod reset;
pub mod sockets;
pub mod unicast;
pub mod vip;

pub use announce::Announcer;
pub use changes::{Change, Changes};
pub use forwarding::Forwarding;
pub use interface::{Interface, Interfaces, interfaces};
pub use news::Neighbours;
pub use reset::{Reset, ResetSocket};
pub use vip::Vip;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct NetlinkError {
    pub what: String,
    pub source: rtnetlink::Error,
}

impl NetlinkError {
    fn new(what: impl Into<String>, source: rtnetlink::Error) -> Self {
        Self { what: what.into(), source }
    }

    /// The kernel's errno, where it gave one.
    fn errno(&self) -> Option<i32> {
        match &self.source {
            rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
            _ => None,
        }
    }
}

/// Opens a routing netlink socket in this thread's network namespace; a task of the current runtime serves it until the
/// last clone of the handle is gone.
pub fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}
