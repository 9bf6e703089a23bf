//! Many streams in the background of whatever happens to them: each sends lines of its own at its own pace, and notes how long it waited
//! for them to come back in each *epoch*, as whoever plays the scene divides it.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use tokio::{sync::mpsc, time::timeout};

use super::{Client, Failure, Stage, backend, echo::come_back, load::raise_limit};
use crate::{lab::Host, wait};

/// From a line to its return. What takes longer is lost: a client would give up.
const PATIENCE: Duration = Duration::from_secs(15);
/// Before a stream that was lost begins again.
const AGAIN: Duration = Duration::from_millis(500);

/// One connection of a stream, from its first line on.
#[derive(Clone, Debug)]
pub struct Episode {
    pub stream: usize,
    pub source: IpAddr,
    pub backend: String,
    pub began: Instant,
    /// Lines that came back, each in its turn.
    pub echoed: u64,
    /// The longest wait for one of them, by epoch. One that lasted over more than one counts in each.
    pub gaps: Vec<Duration>,
    /// What ended it before it was told to end.
    pub end: Option<End>,
}

#[derive(Clone, Debug)]
pub struct End {
    /// When it began to wait for what never came.
    pub waited_since: Instant,
    /// In which that was.
    pub epoch: usize,
    pub at: Instant,
    pub failure: Failure,
}

/// Streams that go on until they are finished or dropped.
#[derive(Debug)]
pub struct Streams {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Vec<Episode>>>>,
}

#[derive(Debug)]
struct Shared {
    over: AtomicBool,
    epoch: AtomicUsize,
    /// Lines that came back, by stream.
    lines: Vec<AtomicU64>,
}

impl Streams {
    /// Begins one stream from each of these addresses of `host`. They send a line each `pace`, and begin again where they are lost.
    pub fn start(host: &Host, sources: Vec<(Client, IpAddr)>, pace: Duration) -> Self {
        let lines = sources.iter().map(|_| AtomicU64::default()).collect();
        let shared = Arc::new(Shared { over: AtomicBool::default(), epoch: AtomicUsize::default(), lines });
        let (host, all) = (host.clone(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            raise_limit();
            let one = |(number, (client, source)): (usize, (Client, IpAddr))| {
                Stream { number, source, pace, client: client.at("/echo"), shared: &all }.run()
            };
            let episodes = host.run(|| join_all(sources.into_iter().enumerate().map(one)))?;
            Ok(episodes.into_iter().flatten().collect())
        });
        Self { shared, thread: Some(thread) }
    }

    /// Waits until every stream has got `count` lines more than now.
    pub fn wait_for_lines(&self, count: u64, limit: Duration) -> Result<()> {
        let before: Vec<u64> = self.lines().collect();
        let moved = || self.lines().zip(&before).filter(|(now, before)| *now < **before + count).count();
        let all = wait::until("every stream to go on", limit, || (moved() == 0).then_some(()));
        all.with_context(|| format!("{} of {} streams have got fewer than {count} lines", moved(), before.len()))
    }

    /// Begins the next epoch and gives its number.
    pub fn next_epoch(&self) -> usize {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends them in order. What became of each, by streams.
    pub fn finish(mut self) -> Result<Vec<Episode>> {
        self.shared.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("streams end once")?;
        thread.join().expect("streams do not panic")
    }

    fn lines(&self) -> impl Iterator<Item = u64> {
        self.shared.lines.iter().map(|lines| lines.load(Ordering::Relaxed))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed by its thread.
            let _ = thread.join();
        }
    }
}

struct Stream<'a> {
    number: usize,
    source: IpAddr,
    pace: Duration,
    client: Client,
    shared: &'a Shared,
}

impl Stream<'_> {
    async fn run(self) -> Vec<Episode> {
        let mut episodes = Vec::new();
        // Not all of them at the same moment, now and from now on.
        tokio::time::sleep(self.pace * (self.number as u32 % 100) / 100).await;
        while !self.is_over() {
            match timeout(self.client.timeout, self.open()).await {
                Ok(Ok(open)) => episodes.push(self.hold(open).await),
                Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        episodes
    }

    async fn open(&self) -> Result<Open, Failure> {
        let (lines, mut queue) = mpsc::channel::<Bytes>(1);
        let frames = futures_util::stream::poll_fn(move |context| {
            (queue.poll_recv(context)).map(|line| Some(Ok::<_, hyper::Error>(Frame::data(line?))))
        });
        let stream = self.client.connect(Some(SocketAddr::new(self.source, 0))).await?;
        let stream = self.client.handshake(stream, self.client.tls(&["http/1.1"])).await?;
        let response = self.client.send(stream, "POST", StreamBody::new(frames)).await?;
        Ok(Open { backend: backend(response.headers()), lines, body: response.into_body() })
    }

    async fn hold(&self, Open { backend, lines, mut body }: Open) -> Episode {
        let mut episode = Episode {
            stream: self.number,
            source: self.source,
            backend,
            began: Instant::now(),
            echoed: 0,
            gaps: Vec::new(),
            end: None,
        };
        while !self.is_over() {
            let (start, first) = (Instant::now(), self.epoch());
            let line = Bytes::from(format!("{} {} {}\n", self.source, self.number, episode.echoed));
            // A stream whose connection is gone drops the queue; the body then says why.
            let _ = lines.send(line.clone()).await;
            let answer = timeout(PATIENCE, come_back(&mut body, &line)).await;
            episode.waited(first..=self.epoch(), start.elapsed());
            if let Err(failure) = answer.unwrap_or(Err(Failure::Timeout(Stage::Answer))) {
                episode.end = Some(End { waited_since: start, epoch: first, at: Instant::now(), failure });
                break;
            }
            episode.echoed += 1;
            self.shared.lines[self.number].fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.pace.saturating_sub(start.elapsed())).await;
        }
        episode
    }

    fn epoch(&self) -> usize {
        self.shared.epoch.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }
}

/// A stream that has been answered and not sent a line yet.
struct Open {
    backend: String,
    lines: mpsc::Sender<Bytes>,
    body: Incoming,
}

impl Episode {
    fn waited(&mut self, epochs: RangeInclusive<usize>, gap: Duration) {
        if self.gaps.len() <= *epochs.end() {
            self.gaps.resize(epochs.end() + 1, Duration::ZERO);
        }
        for longest in &mut self.gaps[epochs] {
            *longest = gap.max(*longest);
        }
    }

    pub fn longest(&self) -> Duration {
        self.gaps.iter().copied().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_in_every_epoch_that_it_touches() {
        let ms = Duration::from_millis;
        let mut episode = Episode {
            stream: 0,
            source: IpAddr::from([10, 0, 0, 1]),
            backend: String::new(),
            began: Instant::now(),
            echoed: 0,
            gaps: Vec::new(),
            end: None,
        };
        for (epochs, gap) in [(1..=1, 3), (1..=2, 9), (2..=2, 4), (3..=3, 1)] {
            episode.waited(epochs, ms(gap));
        }
        assert_eq!(episode.gaps, [0, 9, 9, 1].map(ms));
        assert_eq!(episode.longest(), ms(9));
    }
}
