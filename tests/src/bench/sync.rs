//! What telling a peer of connections costs, and how far it is behind.
//!
//! Deployment C with both nodes. Connections are made on one of them by test runs of its program: SYN, the backend's answer, ACK. The daemon
//! cannot tell them from others. Who looks on sees when each of them is in the other node's table.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{address::V4, flow::Key, table::find};
use serde::Serialize;

use super::inside::Inside;
use crate::{
    lab::Host,
    packets::{
        NOTE,
        frames::{ACK, Extra, SYN, Segment},
    },
    site::{Site, quick},
    topology::{CLIENT, Deployment, Topology},
    xvip::Xvip,
};

const A: &str = "ha-lb-a";
const B: &str = "ha-lb-b";
const LIMIT: Duration = Duration::from_secs(20);
/// A connection that is not there by then was lost.
const LOST: Duration = Duration::from_secs(3);
/// How often connections are made, and looked for.
const BEAT: Duration = Duration::from_millis(1);
const VIP: ([u8; 4], u16) = ([192, 168, 2, 100], 16_443);
const BACKEND_PORT: u16 = 6_443;

/// Targets.
const BEHIND_MS: f64 = 200.0;
const SHARE: f64 = 0.1;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// New connections a second.
    pub rate: u32,
    pub seconds: u32,
    /// `dataplane.max_connections`, if it is not the usual one.
    pub room: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub connections: u64,
    /// Achieved, a second.
    pub rate: f64,
    /// Those that never came.
    pub lost: u64,
    /// From a connection's last packet until it is in the other node's table.
    pub behind_median_ms: f64,
    pub behind_p99_ms: f64,
    pub behind_max_ms: f64,
    /// CPU time by real time: of who tells, and of who is told; by thread, those that took any.
    pub teller: f64,
    pub told: f64,
    pub teller_threads: BTreeMap<String, f64>,
    pub told_threads: BTreeMap<String, f64>,
}

/// Makes connections. Needs root.
///
/// # Errors
/// Also when a connection was not made.
pub fn sync(options: &Options) -> Result<Report> {
    let deployment = Topology::C.build("sync")?;
    let text = configuration(&deployment, A, options)?;
    let site = Site::of(deployment, A, &text)?;
    let b = Xvip::start_with(&site.deployment, B, &configuration(&site.deployment, B, options)?)?;
    for xvip in [&site.xvip, &b] {
        let is_connected =
            |status: &lb_userspace::admin::Status| status.sync.as_ref().is_some_and(|sync| sync.peers[0].connected);
        xvip.wait_for("the peer to be there", LIMIT, is_connected)?;
    }
    // Where the clients seem to be.
    site.host(A).ip(&format!("route replace 10.64.0.0/10 via {}", site.deployment.node(CLIENT)?.v4))?;
    let maker = Maker { mac: mac(site.host(A))?, here: Inside::of(site.host(A), "eth0")? };
    let there = Inside::of(site.host(B), "eth0")?;
    let before = [Spent::of(&site.xvip)?, Spent::of(&b)?];
    let begin = Instant::now();
    let (made, watched) = thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let there = &there;
        let watching = scope.spawn(move || watch(there, &told));
        let made = site.host(A).enter(move || maker.make(options, &tell));
        (made, watching.join().expect("it does not panic"))
    });
    let took = begin.elapsed();
    let after = [Spent::of(&site.xvip)?, Spent::of(&b)?];
    let made = made??;
    let Watched { mut behind, lost } = watched;
    ensure!(!behind.is_empty(), "no connection came:\n{}\n{}", site.xvip.log(), b.log());
    behind.sort_unstable();
    let at = |share: f64| behind[((behind.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let threads = |node: usize| after[node].since(&before[node], took);
    let all = |node: usize| threads(node).values().sum();
    Ok(Report {
        connections: made.connections,
        rate: made.connections as f64 / made.took.as_secs_f64(),
        lost,
        behind_median_ms: at(0.5),
        behind_p99_ms: at(0.99),
        behind_max_ms: at(1.0),
        teller: all(0),
        told: all(1),
        teller_threads: threads(0),
        told_threads: threads(1),
    })
}

fn configuration(deployment: &Deployment, node: &str, options: &Options) -> Result<String> {
    let (own, other) = if node == A { ("10", "20") } else { ("20", "10") };
    let key = deployment.host(node)?.directory().join("sync.key");
    fs::write(&key, "5a".repeat(32))?;
    let room = options.room.map_or(String::new(), |room| format!("max_connections = {room}\n"));
    // No VRRP: the sync is to be measured, and one address at both nodes hurts nobody here. The client is silent.
    Ok(quick(&deployment.xvip_config_of(node, false)?).replacen("[dataplane]\n", &format!("[dataplane]\n{room}"), 1)
        + &format!(
            "\n[sync]\nlisten = \"192.168.2.{own}:9096\"\npeers = [\"192.168.2.{other}:9096\"]\nkey_file = {key:?}\n"
        ))
}

struct Made {
    connections: u64,
    took: Duration,
}

/// A connection that was made, and when.
type Told = (Key<V4>, Instant);

/// Who makes connections, in its thread's namespace.
struct Maker {
    /// Of the node.
    mac: [u8; 6],
    here: Inside,
}

impl Maker {
    /// Makes connections at a steady rate.
    fn make(&self, options: &Options, tell: &mpsc::Sender<Told>) -> Result<Made> {
        let begin = Instant::now();
        let end = Duration::from_secs(options.seconds.into());
        let (mut number, mut refused) = (0_u32, 0);
        while begin.elapsed() < end {
            let due = (begin.elapsed().as_secs_f64() * f64::from(options.rate)) as u32;
            while number < due {
                match self.connect(number)? {
                    // Who looks on has ended only if something is wrong there.
                    Some(key) => tell.send((key, Instant::now())).context("nobody looks on")?,
                    None => refused += 1,
                }
                number += 1;
            }
            thread::sleep(BEAT);
        }
        Ok(Made { connections: (number - refused).into(), took: begin.elapsed() })
    }

    /// One handshake, of another client each; `None` if its SYN was not sent on.
    fn connect(&self, number: u32) -> Result<Option<Key<V4>>> {
        let client = Ipv4Addr::from(0x0a40_0000 + number / 4);
        // Few clients have the same port, so that each gets it at the backend, too.
        let client = SocketAddr::from((client, 1_024 + (number % 60_000) as u16));
        let vip = SocketAddr::from(VIP);
        let syn = self.segment(client, vip, SYN);
        let out = self.here.receive(&syn.bytes()).with_context(|| format!("SYN {number}"))?;
        // A note for the kernel may stand before the frame.
        let frame = if out.starts_with(b"xvip") { out.get(NOTE..).unwrap_or_default() } else { &out[..] };
        // Where a client's port is taken at its backend, a few others are tried: sometimes none of them is free.
        if frame.len() < 38 || frame[26..30] != VIP.0 || frame[30..34] == VIP.0 {
            return Ok(None);
        }
        let address = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        let answer = self.segment((address(30), BACKEND_PORT).into(), (address(26), port).into(), SYN | ACK);
        self.here.receive(&answer.bytes()).with_context(|| format!("answer {number}"))?;
        self.here.receive(&self.segment(client, vip, ACK).bytes()).with_context(|| format!("ACK {number}"))?;
        let SocketAddr::V4(client) = client else { unreachable!("an IPv4 address was written") };
        Ok(Some(Key {
            source: V4(client.ip().octets()),
            destination: V4(VIP.0),
            source_port: client.port().to_be_bytes(),
            destination_port: VIP.1.to_be_bytes(),
        }))
    }

    fn segment(&self, from: SocketAddr, to: SocketAddr, flags: u8) -> Segment {
        Segment {
            macs: [self.mac, [2, 0, 0, 0, 0, 2]],
            tags: Vec::new(),
            from,
            to,
            hops: 64,
            extra: Extra::None,
            sequence: 1,
            acknowledgement: 1,
            flags,
            window: 65_535,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

/// The MAC address of the node's interface.
fn mac(host: &Host) -> Result<[u8; 6]> {
    let line = host.exec(&["ip", "-br", "link", "show", "dev", "eth0"])?;
    let text = line.split_whitespace().nth(2).context("an address")?;
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is no MAC address"))
}

#[derive(Default)]
struct Watched {
    behind: Vec<Duration>,
    lost: u64,
}

/// Looks for each connection until nothing more is told.
fn watch(there: &Inside, told: &mpsc::Receiver<Told>) -> Watched {
    let mut watched = Watched::default();
    let mut waiting: Vec<Told> = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        loop {
            match told.try_recv() {
                Ok(next) => waiting.push(next),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        waiting.retain(|(key, made)| {
            let (is_there, took) = (find(there, key).is_some(), made.elapsed());
            if is_there {
                watched.behind.push(took);
            } else if took > LOST {
                watched.lost += 1;
            }
            !is_there && took <= LOST
        });
        thread::sleep(BEAT);
    }
    watched
}

/// Nanoseconds that the threads of a daemon have been on a CPU, by their names.
struct Spent(BTreeMap<String, u64>);

impl Spent {
    fn of(xvip: &Xvip) -> Result<Self> {
        let mut spent = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", xvip.process().pid()))? {
            // Threads may end meanwhile.
            let path = task?.path();
            let read = |file| fs::read_to_string(path.join(file)).ok();
            let (Some(name), Some(line)) = (read("comm"), read("schedstat")) else { continue };
            let ran: u64 = line.split_whitespace().next().context("the time on a CPU")?.parse()?;
            *spent.entry(name.trim().to_owned()).or_default() += ran;
        }
        Ok(Self(spent))
    }

    fn since(&self, before: &Self, took: Duration) -> BTreeMap<String, f64> {
        let share = |(name, ran): (&String, &u64)| {
            let ran = Duration::from_nanos(ran.saturating_sub(before.0.get(name).copied().unwrap_or_default()));
            (!ran.is_zero()).then(|| (name.clone(), ran.as_secs_f64() / took.as_secs_f64()))
        };
        self.0.iter().filter_map(share).collect()
    }
}

impl Report {
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, rate, lost, behind_median_ms, behind_p99_ms, behind_max_ms, teller, told, .. } = self;
        let verdict = |is_reached: bool| if is_reached { "reached" } else { "missed" };
        writeln!(f, "{connections} connections, {rate:.0} a second, {lost} never came")?;
        let behind = verdict(*behind_max_ms <= BEHIND_MS);
        writeln!(
            f,
            "behind: {behind_median_ms:.1} ms half of the time, {behind_p99_ms:.1} ms at most in 99 %, {behind_max_ms:.1} ms at most   ≤ {BEHIND_MS} {behind}"
        )?;
        for (what, share, threads) in [("tells", teller, &self.teller_threads), ("is told", told, &self.told_threads)] {
            let each: Vec<_> = threads.iter().map(|(name, share)| format!("{name} {:.1} %", share * 100.0)).collect();
            let reached = verdict(*share <= SHARE);
            writeln!(
                f,
                "who {what}: {:.1} % of a core ({})   ≤ {:.0} % {reached}",
                share * 100.0,
                each.join(", "),
                SHARE * 100.0
            )?;
        }
        Ok(())
    }
}
