//! Connections shared with the other nodes, so that who takes a VIP over goes on with them: each node tells its peers what it carries.
//!
//! News (a connection is established, or it ends) goes out every 20 ms. Beside that, each node goes through its table all the time and tells
//! what it finds: so what was lost on the way comes in the end, and what a peer is no longer told of goes.
//!
//! Who has seen a connection's last packet knows best: what is told of it counts if the packet is later than any seen here.

mod datagram;
mod greeting;
pub mod peer;
pub mod record;
mod thread;

pub use datagram::{Key, Session};
pub use peer::Refused;
pub use thread::{Backends, Known, Options, PeerView, StartError, Sync, View};
