//! What it costs to take a large table of connections over: a daemon is killed, the next one starts.
//!
//! Deployment C with one node. A million connections, two entries each, are written into the table beside some real streams; then the daemon is
//! killed and started again under those streams.

use std::{
    fmt, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::BackendId,
    address::V4,
    conntrack::Phase,
    flow::{Flow, Key, Role},
    table::{Existing, Inserted, insert},
};
use serde::Serialize;

use super::inside::Inside;
use super::report::json_lines;
use crate::{site::Site, topology::Topology, wait, xvip::Xvip};

const NODE: &str = "ha-lb-a";
const CONNECTIONS: u32 = 1_000_000;
/// So much that none is turned away.
const ROOM: u32 = 2_000_000;
const STREAMS: u32 = 20;
const PROBES: &str = "127.0.0.1:9097";
const LIMIT: Duration = Duration::from_secs(60);
/// After the start, for the first walks through the table.
const WATCHED: Duration = Duration::from_secs(12);

/// Targets.
const READY_MS: f64 = 2000.0;
const RESIDENT_KIB: u64 = 60 << 10;

/// One restart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Restart {
    pub entries: u64,
    /// From the start of the process until `/healthz` says that all is well.
    pub ready_ms: f64,
    /// What the daemon had resident at the most, as `ps` counts it, and at the end: in all, its own, and what files and maps share.
    pub peak_kib: u64,
    pub resident_kib: u64,
    pub own_kib: u64,
    pub file_kib: u64,
    pub shared_kib: u64,
    pub proportional_kib: u64,
    /// The longest that one of the streams waited for an answer.
    pub longest_ms: f64,
}

/// All restarts.
#[derive(Debug)]
pub struct Report(pub Vec<Restart>);

/// Restarts the daemon `runs` times. Needs root.
///
/// # Errors
/// Also when a stream is lost, or the table was not kept.
pub fn adoption(runs: usize) -> Result<Report> {
    let site = Site::up_with(Topology::C, "adoption", NODE, configuration)?;
    let text = fs::read_to_string(site.host(NODE).directory().join("xvip.toml"))?;
    fill(&Inside::of(site.host(NODE), "eth0")?)?;
    let sources = site.sources(false, STREAMS)?;
    let mut restarts = Vec::new();
    let mut last: Option<Xvip> = None;
    for _ in 0..runs {
        let ((next, mut restart), streams) = site.echo_during(false, &sources, || {
            last.as_ref().unwrap_or(&site.xvip).process().kill();
            let begin = Instant::now();
            let (next, ready) = thread::scope(|scope| {
                let ready =
                    scope.spawn(|| wait::until("the probe", LIMIT, || is_ready(&site).then(|| begin.elapsed())));
                (Xvip::start_with(&site.deployment, NODE, &text), ready.join().expect("it does not panic"))
            });
            let (next, ready) = (next?, ready?);
            let counted =
                |status: &lb_userspace::admin::Status| status.connections.table.entries >= 2 * u64::from(CONNECTIONS);
            let status = next.wait_for("all entries to be counted", LIMIT, counted)?;
            thread::sleep(WATCHED.saturating_sub(begin.elapsed()));
            let memory = Memory::of(&next)?;
            let restart = Restart {
                entries: status.connections.table.entries,
                ready_ms: ready.as_secs_f64() * 1000.0,
                peak_kib: memory.kib("VmHWM:")?,
                resident_kib: memory.kib("VmRSS:")?,
                own_kib: memory.kib("RssAnon:")?,
                file_kib: memory.kib("RssFile:")?,
                shared_kib: memory.kib("RssShmem:")?,
                proportional_kib: memory.kib("Pss:")?,
                longest_ms: 0.0,
            };
            Ok((next, restart))
        })?;
        for stream in streams {
            let stream = stream?;
            ensure!(stream.failure.is_none(), "a stream was lost: {stream:?}\n{}", next.log());
            restart.longest_ms = restart.longest_ms.max(stream.longest.as_secs_f64() * 1000.0);
        }
        restarts.push(restart);
        last = Some(next);
    }
    Ok(Report(restarts))
}

fn configuration(text: String) -> String {
    text.replacen("[dataplane]\n", &format!("[dataplane]\nmax_connections = {ROOM}\n"), 1).replacen(
        "[admin]\n",
        &format!("[admin]\nhealthz = \"{PROBES}\"\n"),
        1,
    )
}

/// Connections that no packet comes for. Each has a backend of its own, so that the ports suffice; as its number it has a real one's.
fn fill(inside: &Inside) -> Result<()> {
    let vip = V4([192, 168, 2, 100]);
    let now = crate::packets::load()?.ticks()?;
    for number in 0..CONNECTIONS {
        let [_, high, middle, low] = number.to_be_bytes();
        let key = Key {
            source: V4([10, 200 + high, middle, low]),
            destination: vip,
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: 16_443_u16.to_be_bytes(),
        };
        let other = Key {
            source: V4([10, 100 + high, middle, low]),
            destination: vip,
            source_port: 6_443_u16.to_be_bytes(),
            destination_port: 40_000_u16.to_be_bytes(),
        };
        for (key, other, role) in [(&key, &other, Role::FORWARD), (&other, &key, Role::REPLY)] {
            let mut flow = Flow::default();
            flow.start(key, other, role, BackendId(0), Phase::Established, now);
            flow.touch(now, 100, [1; 4]);
            let outcome = Inserted::from_raw(insert(inside, key, &flow, Existing::Replaced));
            ensure!(outcome == Inserted::Free, "entry {number}: {outcome:?}");
        }
    }
    Ok(())
}

fn is_ready(site: &Site) -> bool {
    let asked = site.host(NODE).enter(|| -> Result<bool> {
        let address: SocketAddr = PROBES.parse()?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    });
    matches!(asked, Ok(Ok(true)))
}

/// What the kernel says of a process's memory.
struct Memory(String);

impl Memory {
    fn of(xvip: &Xvip) -> Result<Self> {
        let id = xvip.process().pid();
        Ok(Self(
            fs::read_to_string(format!("/proc/{id}/status"))?
                + &fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?,
        ))
    }

    fn kib(&self, name: &str) -> Result<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {name}"))?;
        Ok(number.parse()?)
    }
}

impl Report {
    /// One JSON object a line.
    pub fn json(&self) -> Result<String> {
        Ok(json_lines(&self.0)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  entries  ready ms  peak KiB  resident      own      file    shared  proportional  longest wait ms"
        )?;
        for one in &self.0 {
            let Restart { entries, ready_ms, peak_kib, resident_kib, own_kib, file_kib, shared_kib, .. } = one;
            let Restart { proportional_kib, longest_ms, .. } = one;
            writeln!(
                f,
                "{entries:>9} {ready_ms:>9.0} {peak_kib:>9} {resident_kib:>9} {own_kib:>8} {file_kib:>9} {shared_kib:>9} {proportional_kib:>13} \
                 {longest_ms:>16.0}"
            )?;
        }
        let reached = |all: bool| if all { "reached" } else { "missed" };
        let ready = reached(self.0.iter().all(|one| one.ready_ms <= READY_MS));
        let resident = reached(self.0.iter().all(|one| one.peak_kib <= RESIDENT_KIB));
        writeln!(f, "ready ≤ {READY_MS} ms: {ready}; resident ≤ {RESIDENT_KIB} KiB at the most: {resident}")
    }
}
