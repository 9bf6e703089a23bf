//! The checked configuration: whatever is here holds, so no other room validates again.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

/// One node's whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub dataplane: Dataplane,
    pub admin: Admin,
    /// Unique by name and by (address, port).
    pub virtual_servers: Vec<VirtualServer>,
}

/// How and where packets are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Interfaces that get the XDP program; at least one, no duplicates.
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    pub on_stop: OnStop,
    /// Connections tracked at once, per address family.
    pub max_connections: NonZeroU32,
    pub timeouts: Timeouts,
    /// Directory in a BPF filesystem that holds this instance's maps.
    pub bpffs: PathBuf,
}

/// Which XDP hook to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver has it, otherwise generic with a warning.
    #[default]
    Auto,
    Native,
    Generic,
}

/// What becomes of the traffic when the daemon ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStop {
    /// Nothing of the daemon's stays on the host.
    #[default]
    Detach,
    /// It is carried on for the next daemon.
    Keep,
}

/// Idle times after which a connection is forgotten, by TCP phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub syn: Duration,
    pub established: Duration,
    pub closing: Duration,
}

/// The daemon's own faces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub control_socket: PathBuf,
    /// Loopback only. `None` serves no metrics.
    pub metrics: Option<SocketAddr>,
}

/// A VIP and port, and the backends behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    /// The interface that carries the VIP; `None` finds the one whose subnet holds it.
    pub interface: Option<String>,
    pub check: Check,
    /// At least one; unique by name and by (address, port); all of the VIP's family.
    pub backends: Vec<Backend>,
}

/// One server behind a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    /// 0–256; 0 takes no new connections.
    pub weight: u16,
}

/// How a backend's health is found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub kind: CheckKind,
    pub interval: Duration,
    /// For one whole check: connect, handshake, request and answer.
    pub timeout: Duration,
    /// Consecutive successes that make a backend up.
    pub rise: NonZeroU32,
    /// Consecutive failures that take it out.
    pub fall: NonZeroU32,
    /// Each wait is `interval` ± this share of it, in percent (0–50).
    pub jitter_percent: u8,
    /// The port to check, where it is not the backend's own.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A TCP handshake is enough.
    Tcp,
    Http(HttpRequest),
    Https(HttpRequest, Tls),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// Starts with `/`.
    pub path: String,
    /// Inclusive ranges of status codes that mean healthy; never empty.
    pub status: Vec<(u16, u16)>,
    /// The Host header; `None` sends the backend's address.
    pub host: Option<String>,
    /// A file with a bearer token, read again when it changes.
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub verify: Verify,
    /// SNI and the name to verify; `None` uses the backend's address.
    pub server_name: Option<String>,
    /// PEM files: certificate chain and key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Any certificate is taken.
    No,
    /// A PEM file of certificate authorities.
    Authority(PathBuf),
}
