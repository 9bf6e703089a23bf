//! The daemon's faces: a control socket, metrics on loopback, and the tables that the command line prints.
//! They show a [`Status`] that somebody else publishes on a `watch`.

use std::sync::Arc;

use tokio::sync::watch;

pub mod client;
pub mod exposition;
mod http;
pub mod metrics;
pub mod probes;
pub mod reload;
pub mod socket;
pub mod status;
pub mod sync;
pub mod table;
pub mod vrrp;

pub use socket::ControlSocket;
pub use status::Status;

/// The latest status, from whoever computes it.
pub type Published = watch::Receiver<Arc<Status>>;
