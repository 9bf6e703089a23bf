//! A flood of SYNs to a VIP, from sources that nobody has, while others work: what it costs them.
//!
//! Deployment C. A worker sends as fast as one CPU makes and delivers frames, which in the lab is everybody's CPU: switch, data path and backends run
//! on it too. Two hundred connections exchange lines all the while, and clients from elsewhere connect anew. Measured is how fast the flood was, how many
//! connections were lost, and how many clients got one within their patience; a SYN that was repeated counts as one that came through.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use lb_userspace::admin::Status;
use serde::Serialize;
use tokio::time::{interval, timeout};

use super::report::json_lines;
use crate::{
    client::Client,
    lab::{Host, Mac},
    packets::frames::{Extra, SYN, Segment},
    site::Site,
    topology::Topology,
    wait,
};

const HOLDER: &str = "ha-lb-a";
const FLOODER: &str = "worker-1";
/// Connections that are there before the flood.
const ESTABLISHED: usize = 200;
/// Sources of those that come during it.
const NEWCOMERS: usize = 50;
/// Between two of them.
const PACE: Duration = Duration::from_millis(20);
/// How long one of them tries: four SYNs of today's kernels, three of others.
const PATIENCE: Duration = Duration::from_secs(10);
/// Frames that are made once, and sent at a time.
const POOL: usize = 4096;
const BATCH: usize = 64;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub duration: Duration,
}

/// Both families, one after the other.
#[derive(Debug)]
pub struct Report(pub Vec<Line>);

/// One family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub family: &'static str,
    pub seconds: f64,
    /// SYNs that were sent, those of them that the data path met, and those of these that it let through: within the rate of new connections, or
    /// because they seemed to come again.
    pub sent: u64,
    pub met: u64,
    pub admitted: u64,
    pub sent_per_second: f64,
    /// Connections that exchanged lines, how many of them broke, and the longest wait for a line in seconds.
    pub established: usize,
    pub lost: usize,
    pub longest_wait: f64,
    /// Why those broke, and what the daemon made of the backends meanwhile.
    pub failures: BTreeSet<String>,
    pub verdicts: Vec<String>,
    /// Clients that came during the flood, and those that were connected.
    pub came: usize,
    pub connected: usize,
    /// Entries of half-open connections at the next look, and how many gave way.
    pub half_open: u64,
    pub evicted_half_open: u64,
    /// Others that gave way: none may.
    pub evicted_others: u64,
}

impl Line {
    /// Of the clients that came, how many were connected.
    pub fn share(&self) -> f64 {
        self.connected as f64 / self.came as f64
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
            "family  SYNs/s sent     met  admitted   connections lost   longest wait   new ones connected   half-open   gave way"
        )?;
        for line in &self.0 {
            writeln!(
                f,
                "{:<6} {:>12.0} {:>7} {:>9} {:>13} {:>4} {:>12.2} s {:>13} of {:>4} {:>11} {:>10}",
                line.family,
                line.sent_per_second,
                line.met,
                line.admitted,
                line.established,
                line.lost,
                line.longest_wait,
                line.connected,
                line.came,
                line.half_open,
                line.evicted_half_open,
            )?;
        }
        Ok(())
    }
}

/// Measures both families. Needs root.
pub fn flood(options: &Options) -> Result<Report> {
    // A table that is soon looked through, and soon full of half-open connections.
    let small = |text: String| text.replace("[dataplane]\n", "[dataplane]\nmax_connections = 32768\n");
    let site = || Site::up_with(Topology::C, "flood", HOLDER, small);
    let lines = [false, true].into_iter().map(|v6| line(&site()?, v6, options));
    Ok(Report(lines.collect::<Result<_>>()?))
}

fn line(site: &Site, v6: bool, options: &Options) -> Result<Line> {
    let sources = site.sources(v6, (ESTABLISHED + NEWCOMERS) as u32)?;
    let (streaming, new) = sources.split_at(ESTABLISHED);
    let client = site.client(v6)?;
    let log = site.xvip.log().len();
    let scene = || {
        // All streams have begun before the flood does.
        wait::until("the streams to have begun", PATIENCE * 6, || {
            let begun =
                site.apiservers.values().map(|apiserver| apiserver.log().matches("/echo").count()).sum::<usize>();
            (begun >= ESTABLISHED).then_some(())
        })?;
        let begun = site.xvip.status()?;
        let (flooded, came) = thread::scope(|scope| {
            let flooding = scope.spawn(|| send(site, v6, options.duration));
            let came = site.deployment.client_host().run(|| newcomers(&client, new, options.duration));
            (flooding.join().expect("it does not panic"), came)
        });
        Ok((begun, flooded?, came?))
    };
    let ((begun, (sent, took), arrivals), streams) = site.echo_during(v6, streaming, scene)?;
    // The table is looked through every few seconds.
    let seen = site
        .xvip
        .wait_for("half-open connections to be seen", PATIENCE * 3, |status| status.connections.table.half_open > 0)?;
    let rose = |name| counted(&seen, name) - counted(&begun, name);
    let whole = streams.iter().flatten().filter(|stream| stream.failure.is_none());
    let failures = streams.iter().flat_map(|stream| match stream {
        Ok(report) => report.failure.as_ref().map(ToString::to_string),
        Err(failure) => Some(failure.to_string()),
    });
    let failures = failures.collect();
    let longest = streams.iter().flatten().map(|stream| stream.longest).max().unwrap_or_default();
    Ok(Line {
        family: if v6 { "ipv6" } else { "ipv4" },
        seconds: took.as_secs_f64(),
        sent,
        met: rose("connected") + dropped(&seen) - dropped(&begun),
        admitted: rose("connected"),
        sent_per_second: sent as f64 / took.as_secs_f64(),
        established: streams.len(),
        lost: streams.len() - whole.count(),
        longest_wait: longest.as_secs_f64(),
        failures,
        verdicts: site.xvip.log()[log..].lines().filter(|line| line.contains(" -> ")).map(str::to_owned).collect(),
        came: arrivals.len(),
        connected: arrivals.iter().filter(|arrived| **arrived).count(),
        half_open: seen.connections.table.half_open,
        evicted_half_open: rose("evicted_half_open"),
        evicted_others: rose("evicted_closing") + rose("evicted_idle"),
    })
}

fn counted(status: &Status, event: &str) -> u64 {
    status.counters.events.get(event).copied().unwrap_or(0)
}

/// SYNs beyond the rate.
fn dropped(status: &Status) -> u64 {
    status.counters.drops.get("over_rate").copied().unwrap_or(0)
}

/// Clients that come one after another, each with patience; whether each was connected.
async fn newcomers(client: &Client, sources: &[IpAddr], duration: Duration) -> Vec<bool> {
    let (mut pace, start) = (interval(PACE), Instant::now());
    let mut all = Vec::new();
    for source in sources.iter().cycle() {
        pace.tick().await;
        if start.elapsed() > duration {
            break;
        }
        let (client, source) = (client.clone(), SocketAddr::new(*source, 0));
        all.push(tokio::spawn(async move {
            timeout(PATIENCE, client.connect(Some(source))).await.is_ok_and(|connected| connected.is_ok())
        }));
    }
    join_all(all).await.into_iter().map(|connected| connected.unwrap_or(false)).collect()
}

/// Floods the VIP for that long; how many SYNs were sent, and how long it took.
fn send(site: &Site, v6: bool, duration: Duration) -> Result<(u64, Duration)> {
    let flooder = site.host(FLOODER);
    let macs = [mac(site.host(HOLDER))?, mac(flooder)?];
    let link = flooder.link("eth0", 0)?;
    let mut rng = fastrand::Rng::new();
    let mut frames: Vec<Vec<u8>> = (0..POOL).map(|_| syn(&mut rng, macs, Topology::C.endpoint(v6))).collect();
    // The last two words of the source.
    let at = if v6 { 34 } else { 26 };
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < duration {
        for batch in frames.chunks_mut(BATCH) {
            batch.iter_mut().for_each(|frame| reassign(frame, at, rng.u16(..)));
            sent += link.send_many(batch).context("sending SYNs")? as u64;
        }
    }
    Ok((sent, start.elapsed()))
}

fn mac(host: &Host) -> Result<Mac> {
    Ok(host.link("eth0", 0)?.mac())
}

fn syn(rng: &mut fastrand::Rng, macs: [Mac; 2], to: SocketAddr) -> Vec<u8> {
    let source = match to {
        SocketAddr::V4(_) => IpAddr::from(rng.u32(..).to_be_bytes()),
        SocketAddr::V6(_) => IpAddr::from((0xfd98_u128 << 112 | u128::from(rng.u64(..))).to_be_bytes()),
    };
    let segment = Segment {
        macs,
        tags: Vec::new(),
        from: SocketAddr::new(source, rng.u16(1024..)),
        to,
        hops: 64,
        extra: Extra::None,
        sequence: rng.u32(..),
        acknowledgement: 0,
        flags: SYN,
        window: 64_240,
        options: Vec::new(),
        payload: Vec::new(),
    };
    segment.bytes()
}

/// Gives a frame another source whose two words at that place have the same sum, so that its checksums stay right.
fn reassign(frame: &mut [u8], at: usize, by: u16) {
    let mut add = |at: usize, number: u16| {
        let word = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (sum, carry) = word.overflowing_add(number);
        frame[at..at + 2].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    };
    add(at, by);
    add(at + 2, !by);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_another_source_has_the_same_checksums() {
        for to in [SocketAddr::from(([10, 0, 0, 1], 6443)), SocketAddr::from(([0xfd, 0, 0, 0, 0, 0, 0, 1], 6443))] {
            let mut rng = fastrand::Rng::with_seed(7);
            let frame = syn(&mut rng, [[2; 6], [4; 6]], to);
            let mut other = frame.clone();
            reassign(&mut other, if to.is_ipv4() { 26 } else { 34 }, rng.u16(1..));
            assert_ne!(frame, other);
            let sum = |frame: &[u8]| {
                let words = frame[14..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
                words.sum::<u32>() % 0xffff
            };
            assert_eq!(sum(&frame), sum(&other));
        }
    }
}
