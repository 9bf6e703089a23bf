//! What the daemon tells of itself: the JSON of `GET /v1/status`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{sync::Sync, vrrp};
use crate::{health::State, reconcile::Order};

/// Everything at one moment. Points in time are RFC 3339, so that they stay true however old the status is when it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    #[serde(with = "rfc3339")]
    pub started: SystemTime,
    pub interfaces: Vec<Interface>,
    pub virtual_servers: Vec<VirtualServer>,
    /// Backends that are in the configuration no more, and still have connections.
    #[serde(default)]
    pub removed: Vec<Removed>,
    pub configuration: Configuration,
    /// Empty where VIPs do not move.
    #[serde(default)]
    pub vrrp: Vec<vrrp::Instance>,
    /// `None` where connections stay on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
    pub connections: Connections,
    pub counters: Counters,
}

/// Which configuration holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    pub file: PathBuf,
    /// When it was read.
    #[serde(with = "rfc3339")]
    pub loaded: SystemTime,
    /// The latest attempt to load another one; `None` if there was none.
    pub last_reload: Option<Reload>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// Why the one before goes on; `None` if the new one holds.
    pub error: Option<String>,
}

/// A backend that drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// By their names, where this daemon has known them.
    pub virtual_server: Option<String>,
    pub name: Option<String>,
    pub vip: SocketAddr,
    pub address: SocketAddr,
    /// When it was taken out.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// When its connections are reset.
    #[serde(with = "rfc3339")]
    pub until: SystemTime,
    /// It takes new connections, because no other backend of its virtual server does.
    pub stands_in: bool,
    pub active_connections: u64,
}

/// An interface with the XDP program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mode: Mode,
}

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver.
    Native,
    /// After the kernel has made a socket buffer: slower.
    Generic,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualServer {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub interface: String,
    /// Whether the VIP is on the interface now.
    pub held: bool,
    /// What decides which backend a new connection gets, as it is written in the configuration.
    #[serde(default)]
    pub balance: String,
    /// Every backend is down, and they get new connections as though they were up.
    #[serde(default)]
    pub open: bool,
    #[serde(default)]
    pub mode: ServerMode,
    pub backends: Vec<Backend>,
}

/// How packets come to the backends of a virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMode {
    pub configured: Configured,
    /// Of new connections.
    pub in_use: InUse,
    /// Why not "dsr", or who has not said that it turns packets.
    pub because: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Configured {
    #[default]
    Nat,
    Dsr,
    Auto,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InUse {
    #[default]
    Nat,
    Dsr,
    /// One for some backends and the other for the rest.
    Both,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    /// It takes new connections only while no other does.
    #[serde(default)]
    pub backup: bool,
    /// How much of its share it has while it comes back, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u16>,
    #[serde(deserialize_with = "StateName::deserialize")]
    pub state: State,
    /// What was ordered on the control socket; weight and state are what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// When it entered this state.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// `None` until the first check has ended.
    pub last_check: Option<LastCheck>,
    pub checks: u64,
    pub check_failures: u64,
    /// `None` where nobody counts them.
    pub active_connections: Option<u64>,
    /// Those among them that processes of this node have open, not through the VIP.
    pub local_connections: Option<u64>,
    /// Open connections as the data plane counts them, where that decides who gets the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_connections: Option<u64>,
    /// Since the daemon's maps were made, as the next two.
    pub connections: u64,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastCheck {
    /// One line: the status of the answer, or what went wrong.
    pub text: String,
    /// How long the check took.
    #[serde(rename = "latency_ms", with = "milliseconds")]
    pub latency: Duration,
}

/// Tracked connections, of both address families together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub tracked: u64,
    pub capacity: u64,
    /// Those whose client was sent a reset because the backend went down, without waiting for its next packet; since the daemon started.
    #[serde(default)]
    pub reset: u64,
    pub table: Table,
}

/// The tables that they are kept in, of both families together. A connection has two entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub entries: u64,
    /// Entries of connections whose handshake is not complete.
    pub half_open: u64,
    /// Entries that there is room for.
    pub room: u64,
    /// Sets of slots in which none is free: a new connection there takes the place of another one, or is refused.
    pub full_sets: u64,
}

/// The data plane's counters, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<String, u64>,
    /// Whatever else is counted.
    pub events: BTreeMap<String, u64>,
}

impl Status {
    /// Of a daemon that has only just started.
    pub fn starting(started: SystemTime, file: &Path) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started,
            interfaces: Vec::new(),
            virtual_servers: Vec::new(),
            removed: Vec::new(),
            configuration: Configuration { file: file.to_owned(), loaded: started, last_reload: None },
            vrrp: Vec::new(),
            sync: None,
            connections: Connections::default(),
            counters: Counters::default(),
        }
    }
}

impl VirtualServer {
    pub fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl Backend {
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// The name of a state, as JSON, metrics and tables have it.
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Draining => "draining",
        State::Down => "down",
    }
}

/// Reads back what [`State`] writes.
#[derive(Deserialize)]
#[serde(remote = "State", rename_all = "lowercase")]
enum StateName {
    Up,
    Draining,
    Down,
}

pub(super) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64() * 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)? / 1e3).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// 2025-11-21T12:00:00Z.
    pub(crate) const NOON: Duration = Duration::from_secs(1_763_726_400);

    /// Two virtual servers: one of each family, one held, and a backend in each state.
    pub(crate) fn sample() -> Status {
        let noon = SystemTime::UNIX_EPOCH + NOON;
        let ago = |seconds| noon - Duration::from_secs(seconds);
        let backend = |name: &str, address: &str, state, age| Backend {
            name: name.into(),
            address: address.parse().unwrap(),
            port: 6443,
            weight: 1,
            backup: false,
            share: None,
            state,
            order: None,
            since: ago(age),
            last_check: Some(LastCheck { text: "200 OK".into(), latency: Duration::from_micros(3_250) }),
            checks: 157,
            check_failures: 0,
            active_connections: Some(12),
            local_connections: Some(2),
            counted_connections: None,
            connections: 1034,
            packets: 20_480,
            bytes: 10_485_760,
        };
        let mut down = backend("master-3", "192.168.2.13", State::Down, 4);
        down.last_check =
            Some(LastCheck { text: "connect: connection refused".into(), latency: Duration::from_micros(412) });
        down.check_failures = 2;
        down.active_connections = None;
        let mut fresh = backend("six", "fd00:2::b", State::Down, 1);
        fresh.counted_connections = Some(7);
        (fresh.backup, fresh.share) = (true, Some(50));
        (fresh.last_check, fresh.checks, fresh.connections, fresh.packets, fresh.bytes) = (None, 0, 0, 0, 0);
        let count = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        Status {
            version: "0.1.0".into(),
            started: ago(312),
            interfaces: vec![
                Interface { name: "eth0".into(), mode: Mode::Native },
                Interface { name: "eth1".into(), mode: Mode::Generic },
            ],
            virtual_servers: vec![
                VirtualServer {
                    name: "apiserver".into(),
                    address: "192.168.2.100".parse().unwrap(),
                    port: 16443,
                    interface: "eth0".into(),
                    held: true,
                    balance: "source-hash".into(),
                    open: false,
                    mode: ServerMode::default(),
                    backends: vec![
                        backend("master-1", "192.168.2.11", State::Up, 312),
                        backend("master-2", "192.168.2.12", State::Draining, 60),
                        down,
                    ],
                },
                VirtualServer {
                    name: "apiserver6".into(),
                    address: "fd00:2::100".parse().unwrap(),
                    port: 16443,
                    interface: "eth1".into(),
                    held: false,
                    balance: "least-connections".into(),
                    open: true,
                    mode: ServerMode::default(),
                    backends: vec![fresh],
                },
            ],
            removed: Vec::new(),
            configuration: Configuration { file: "/etc/xvip/xvip.toml".into(), loaded: ago(312), last_reload: None },
            connections: Connections {
                tracked: 24,
                capacity: 131_072,
                reset: 5,
                table: Table { entries: 50, half_open: 2, room: 349_536, full_sets: 1 },
            },
            vrrp: Vec::new(),
            sync: None,
            counters: Counters {
                verdicts: count(&[("pass", 900), ("redirect", 7), ("tx", 41_000)]),
                drops: count(&[("checksum", 1)]),
                events: count(&[("neighbour_unresolved", 3)]),
            },
        }
    }

    #[test]
    fn a_status_survives_the_wire() {
        let status = sample();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn json_of_a_backend() {
        let json = serde_json::to_value(&sample().virtual_servers[0].backends[1]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "name": "master-2",
                "address": "192.168.2.12",
                "port": 6443,
                "weight": 1,
                "backup": false,
                "state": "draining",
                "since": "2025-11-21T11:59:00.000Z",
                "last_check": { "text": "200 OK", "latency_ms": 3.25 },
                "checks": 157,
                "check_failures": 0,
                "active_connections": 12,
                "local_connections": 2,
                "connections": 1034,
                "packets": 20480,
                "bytes": 10485760,
            })
        );
    }

    #[test]
    fn states_have_the_names_they_serialize_to() {
        for state in [State::Up, State::Draining, State::Down] {
            assert_eq!(serde_json::to_value(state).unwrap(), state_name(state));
        }
    }
}
