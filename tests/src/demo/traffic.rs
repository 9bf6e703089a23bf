//! The client host's part: many sources that ask without pause, and streams that stay open.

use std::{
    net::{IpAddr, SocketAddr},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::future::join_all;
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::{mpsc, watch};

use crate::{
    client::{self, Client, EchoPlan, EchoReport, Failure, Load, Outcome, Report},
    lab::Host,
};

/// Each is a client of its own to the hash.
pub(super) const SOURCES: u32 = 150;
/// Right above the VIP, and no host's.
const FIRST_SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 101));
/// Requests a second: a small part of what one core's TLS handshakes allow.
const RATE: f64 = 200.0;
/// No demo lasts so long: it bounds the load where nobody stops it.
const LONGEST: Duration = Duration::from_secs(120);
/// More than a slow moment leaves unanswered.
const CONCURRENCY: usize = 256;
/// Outcomes between two looks at them, many times over.
const LIVE: usize = 4096;
/// Between two lines of a stream.
const PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(3);

/// Work inside the client host that ends when it is told to, or dropped.
#[derive(Debug)]
struct Task<T> {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T> Task<T> {
    fn finish(mut self) -> Result<T> {
        self.stop.send_replace(true);
        let thread = self.thread.take().context("a task is finished once")?;
        thread.join().unwrap_or_else(|_| Err(anyhow!("a client's thread panicked")))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // Its requests are to be over before their network goes; what became of them nobody asks.
            let _ = thread.join();
        }
    }
}

/// Requests, each over a connection of its own.
#[derive(Debug)]
pub(super) struct Requests {
    task: Task<Report>,
    outcomes: mpsc::Receiver<Outcome>,
}

impl Requests {
    /// Gives the host its addresses and starts asking from all of them in turn.
    pub(super) fn start(host: &Host, client: Client) -> Result<Self> {
        let sources = client::addresses(FIRST_SOURCE, SOURCES);
        for source in &sources {
            if let IpAddr::V4(v4) = source {
                host.add_address("eth0", IpNet::V4(Ipv4Net::new(*v4, 24)?))?;
            }
        }
        let (stop, stopped) = watch::channel(false);
        let (live, outcomes) = mpsc::channel(LIVE);
        let load = Load {
            requests: (RATE * LONGEST.as_secs_f64()) as usize,
            concurrency: CONCURRENCY,
            rate: Some(RATE),
            time: Some(LONGEST),
            sources,
            stop: Some(stopped),
            live: Some(live),
        };
        let host = host.clone();
        let thread = thread::spawn(move || Ok(host.run(|| client::run(&client, load))?));
        Ok(Self { task: Task { stop, thread: Some(thread) }, outcomes })
    }

    /// What has ended since the last call.
    pub(super) fn ended(&mut self) -> impl Iterator<Item = Outcome> {
        std::iter::from_fn(|| self.outcomes.try_recv().ok())
    }

    pub(super) fn finish(self) -> Result<Report> {
        self.task.finish()
    }
}

/// Connections on which a line comes back several times a second.
#[derive(Debug)]
pub(super) struct Streams {
    task: Task<Vec<Result<EchoReport, Failure>>>,
}

impl Streams {
    pub(super) fn open(host: &Host, client: Client, sources: &[IpAddr]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let plan = |source: &IpAddr| EchoPlan {
            lines: u64::MAX,
            pause: PAUSE,
            patience: PATIENCE,
            source: Some(SocketAddr::new(*source, 0)),
            stop: Some(stopped.clone()),
        };
        let plans: Vec<EchoPlan> = sources.iter().map(plan).collect();
        let host = host.clone();
        let thread = thread::spawn(move || {
            let all = || join_all(plans.into_iter().map(|plan| client::echo(&client, plan)));
            Ok(host.run(all)?)
        });
        Self { task: Task { stop, thread: Some(thread) } }
    }

    pub(super) fn finish(self) -> Result<Vec<Result<EchoReport, Failure>>> {
        self.task.finish()
    }
}
