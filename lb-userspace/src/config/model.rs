//! The checked configuration: whatever is here holds, so no other room validates again.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

pub use lb_common::abi::{Balance, Excess};

pub use crate::vrrp::{Version, packet::ChecksumForm, reception::HmacMode};
use crate::vrrp::{Vrid, packet::Family};

/// One node's whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub dataplane: Dataplane,
    pub admin: Admin,
    /// Unique by name and by (address, port).
    pub virtual_servers: Vec<VirtualServer>,
    /// Unique by name, and by interface, VRID and family; no VIP is in two.
    pub vrrp: Vec<Vrrp>,
    /// `None` keeps connections to this node.
    pub sync: Option<Sync>,
}

/// How and where packets are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Interfaces that get the XDP program; no duplicates, and at least one unless every virtual server is on loopback.
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    pub on_stop: OnStop,
    /// Connections tracked at once, per address family.
    pub max_connections: NonZeroU32,
    pub timeouts: Timeouts,
    /// Directory in a BPF filesystem that holds this instance's maps.
    pub bpffs: PathBuf,
    /// Not off where a virtual server is on loopback.
    pub cgroup: Cgroup,
    /// How long packets are carried after the VIPs were given away.
    pub drain: Duration,
}

/// Whose own connections to a virtual server go straight to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// Every process's: the root of the host's cgroups.
    Auto,
    Off,
    At(PathBuf),
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

/// What becomes of a backend's connections when it goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They end at once.
    #[default]
    Reset,
    /// They are carried on as before.
    Keep,
}

/// What becomes of new connections while every backend is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllDown {
    /// They are refused.
    #[default]
    Reset,
    /// They go to all backends as though these were up, and those that are there go on.
    Open,
}

/// Who gets this node's own backend while it is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreferLocal {
    #[default]
    Off,
    /// This node's processes.
    Processes,
    /// Everybody whose connections this node carries.
    All,
}

/// How packets come to a backend and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerMode {
    /// Both ways by the VIP's holder; the backend sees the VIP.
    #[default]
    Nat,
    /// As they are; the backend's own node turns them, and the replies go straight to the client.
    Dsr,
    /// [`Self::Dsr`] while all backends' nodes are known to do that, otherwise [`Self::Nat`].
    Auto,
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
    /// `None` serves no probes.
    pub healthz: Option<SocketAddr>,
}

/// A VIP and port, and the backends behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    pub name: String,
    /// On loopback it is no VIP: sockets of this host are translated, and nothing else.
    pub address: IpAddr,
    pub port: u16,
    /// The interface that carries the VIP; `None` finds the one whose subnet holds it.
    pub interface: Option<String>,
    pub balance: Balance,
    /// How long a backend that comes back is brought in gradually.
    pub slow_start: Duration,
    pub prefer_local: PreferLocal,
    /// Not [`ServerMode::Nat`] only where it is a VIP.
    pub mode: ServerMode,
    /// The VIP is never on this node, and in no [`Vrrp`].
    pub elsewhere: bool,
    pub on_down: OnDown,
    pub all_down: AllDown,
    /// New connections a second; 0 sets no limit.
    pub connection_rate: u32,
    pub over_rate: Excess,
    /// Of the VIP's family, no duplicates, and none on loopback. The most specific range that a client is in counts, and of two equal ones
    /// that which denies; where any is allowed, all others are denied.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// How long connections go on with a backend that was taken out of the configuration.
    pub drain: Duration,
    pub check: Check,
    /// At least one that is no backup; unique by name and by (address, port); all of the VIP's family.
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
    /// Takes new connections only while no other does.
    pub backup: bool,
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

/// The nodes that share their connections with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    pub listen: SocketAddr,
    /// At least one, all of the family of `listen` and none of them this.
    pub peers: Vec<SocketAddr>,
    /// 32 to 64 bytes in hexadecimal.
    pub key_file: PathBuf,
}

/// A virtual router: VIPs that one of several nodes holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vrrp {
    pub name: String,
    pub interface: String,
    /// 1–255.
    pub vrid: u8,
    pub version: Version,
    /// 1–255.
    pub priority: u8,
    /// Version 2: whole seconds up to 255. Version 3: multiples of 10 ms up to 40.95 s.
    pub interval: Duration,
    /// Advertisements to miss before another node takes over; at least 2.
    pub down_factor: u8,
    pub preempt: bool,
    pub preempt_delay: Duration,
    /// At least one, of one family, no duplicates; link-local ones first, as RFC 9568 section 5.2.9 asks.
    pub addresses: Vec<IpNet>,
    pub virtual_mac: bool,
    /// None means multicast. Of the addresses' family, as is `source`, which is not among them.
    pub peers: Vec<IpAddr>,
    /// Of what peers send.
    pub min_ttl: u8,
    pub source: Option<IpAddr>,
    pub authentication: Authentication,
    pub checksum: ChecksumForm,
    /// Of IPv4 addresses; it begins with the interface's name.
    pub label: Option<String>,
    /// Shared by two instances at least.
    pub sync_group: Option<String>,
    pub notify: Option<PathBuf>,
    /// −253 to 253, as the two below: what is added on failure if negative, on success if positive; 0 means fault.
    pub backends_weight: i16,
    pub dataplane_weight: i16,
    /// Unique by name.
    pub scripts: Vec<Script>,
}

impl Vrrp {
    /// The virtual MAC that its VIPs are at, if they are at one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        let family = self.addresses.first().map(|net| Family::of(net.addr()))?;
        self.virtual_mac.then(|| family.virtual_mac(Vrid(self.vrid)))
    }

    /// Whether the other nodes, and who speaks to the VIPs, see the same virtual router in both.
    pub fn is_the_same_as(&self, other: &Self) -> bool {
        let seen = |vrrp: &Self| (vrrp.vrid, vrrp.version, vrrp.virtual_mac, vrrp.addresses.first().copied());
        self.interface == other.interface && seen(self) == seen(other)
    }
}

/// How advertisements show that they come from a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    None,
    /// Version 2 only.
    Password(Password),
    /// Version 3 only.
    Hmac(Hmac),
}

/// 1 to 8 bytes without a zero, kept out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hmac {
    pub key_id: u8,
    /// 32 to 64 bytes in hexadecimal.
    pub key_file: PathBuf,
    pub mode: HmacMode,
}

/// A program whose exit code changes the priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub name: String,
    /// The program, by its absolute path, and its arguments.
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: NonZeroU32,
    pub fall: NonZeroU32,
    pub weight: i16,
}
