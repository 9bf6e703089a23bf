//! Many requests: how many, how many at once, how fast, for how long; and the sum of what became of them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use hyper::StatusCode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{mpsc, watch};

use super::{Client, Failure};

/// Outcomes that room is made for at once.
const LARGE: usize = 100_000;

/// A bounded amount of requests. The default is one.
#[derive(Clone, Debug)]
pub struct Load {
    pub requests: usize,
    /// How many are under way at once.
    pub concurrency: usize,
    /// Requests a second at most; none: as fast as answers come.
    pub rate: Option<f64>,
    /// No request starts later than this.
    pub time: Option<Duration>,
    /// Source addresses, taken in turn; none: the host's own choice.
    pub sources: Vec<IpAddr>,
    /// Ends the load early when it becomes true.
    pub stop: Option<watch::Receiver<bool>>,
    /// Gets every outcome as it comes; what does not fit is left out, the report has it.
    pub live: Option<mpsc::Sender<Outcome>>,
}

impl Default for Load {
    fn default() -> Self {
        Self { requests: 1, concurrency: 1, rate: None, time: None, sources: Vec::new(), stop: None, live: None }
    }
}

impl Load {
    pub fn sequential(requests: usize) -> Self {
        Self { requests, ..Self::default() }
    }

    pub fn concurrent(requests: usize) -> Self {
        Self { requests, concurrency: requests, ..Self::default() }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub started: Instant,
    pub latency: Duration,
    pub source: Option<IpAddr>,
    /// Who answered 200.
    pub result: Result<String, Failure>,
}

impl Outcome {
    pub fn ended(&self) -> Instant {
        self.started + self.latency
    }
}

/// All requests of a load, in the order in which they ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub outcomes: Vec<Outcome>,
}

/// Makes the requests, within the namespace of the calling thread.
pub async fn run(client: &Client, load: Load) -> Report {
    raise_limit();
    let start = Instant::now();
    let outcomes = RefCell::new(Vec::with_capacity(load.requests.min(LARGE)));
    let stopped = || load.stop.as_ref().is_some_and(|stop| *stop.borrow());
    let late = || load.time.is_some_and(|time| start.elapsed() >= time);
    stream::iter(0..load.requests)
        .take_while(|_| std::future::ready(!stopped() && !late()))
        .then(|number| pace(start, number, load.rate))
        .for_each_concurrent(load.concurrency.max(1), |number| {
            let (outcomes, load) = (&outcomes, &load);
            async move {
                let outcome = one(client, load, number).await;
                if let Some(live) = &load.live {
                    let _ = live.try_send(outcome.clone());
                }
                outcomes.borrow_mut().push(outcome);
            }
        })
        .await;
    Report { outcomes: outcomes.into_inner() }
}

/// One descriptor a connection: the usual soft limit of 1024 is less than a load may need. Where it cannot be raised,
/// requests fail and say why.
pub(super) fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Waits for the moment at which request `number` is due.
async fn pace(start: Instant, number: usize, rate: Option<f64>) -> usize {
    if let Some(rate) = rate {
        let due = start + Duration::from_secs_f64(number as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
    }
    number
}

async fn one(client: &Client, load: &Load, number: usize) -> Outcome {
    let source = (!load.sources.is_empty()).then(|| load.sources[number % load.sources.len()]);
    let started = Instant::now();
    let answer = client.request(source.map(|ip| SocketAddr::new(ip, 0))).await;
    Outcome {
        started,
        latency: started.elapsed(),
        source,
        result: match answer {
            Ok(answer) if answer.status == StatusCode::OK => Ok(answer.backend),
            Ok(answer) => Err(Failure::status(answer.status)),
            Err(failure) => Err(failure),
        },
    }
}

impl Report {
    /// Answers with status 200.
    pub fn good(&self) -> usize {
        self.outcomes.iter().filter(|o| o.result.is_ok()).count()
    }

    pub fn backends(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for name in self.outcomes.iter().filter_map(|o| o.result.as_ref().ok()) {
            *counts.entry(name.as_str()).or_default() += 1;
        }
        counts
    }

    pub fn failures(&self) -> BTreeMap<&Failure, usize> {
        let mut counts = BTreeMap::new();
        for kind in (self.outcomes.iter()).filter_map(|o| o.result.as_ref().err()) {
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }

    /// When the last request started that failed.
    pub fn latest_failure(&self) -> Option<Instant> {
        (self.outcomes.iter()).filter(|outcome| outcome.result.is_err()).map(|outcome| outcome.started).max()
    }

    /// Who answered each source; the last one where they differ.
    pub fn by_source(&self) -> BTreeMap<IpAddr, &str> {
        (self.outcomes.iter()).filter_map(|o| Some((o.source?, o.result.as_deref().ok()?))).collect()
    }

    /// The latency below which this share (0–1) of the good answers came.
    pub fn latency(&self, share: f64) -> Option<Duration> {
        let mut good: Vec<Duration> =
            (self.outcomes.iter()).filter(|outcome| outcome.result.is_ok()).map(|outcome| outcome.latency).collect();
        good.sort_unstable();
        let rank = (share * good.len() as f64).ceil() as usize;
        good.get(rank.max(1) - 1).copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered", self.good(), self.outcomes.len())?;
        if let (Some(half), Some(most)) = (self.latency(0.5), self.latency(0.99)) {
            write!(f, ", median {half:.1?}, 99 % within {most:.1?}")?;
        }
        for (name, count) in self.backends() {
            write!(f, "\n  {name}: {count}")?;
        }
        for (failure, count) in self.failures() {
            write!(f, "\n  failed, {failure}: {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(start: Instant, millis: u64, result: Result<&str, Failure>) -> Outcome {
        Outcome {
            started: start + Duration::from_millis(millis),
            latency: Duration::from_millis(millis),
            source: Some(IpAddr::from([10, 0, 0, millis as u8])),
            result: result.map(str::to_owned),
        }
    }

    #[test]
    fn a_report_counts() {
        let start = Instant::now();
        let refused = Failure::Refused(super::super::Stage::Connect);
        let report = Report {
            outcomes: vec![
                outcome(start, 1, Ok("a")),
                outcome(start, 9, Err(refused.clone())),
                outcome(start, 2, Ok("b")),
                outcome(start, 3, Ok("a")),
                outcome(start, 4, Err(Failure::Status(500))),
            ],
        };
        assert_eq!(report.good(), 3);
        assert_eq!(report.backends(), BTreeMap::from([("a", 2), ("b", 1)]));
        assert_eq!(report.failures()[&refused], 1);
        assert_eq!(report.latest_failure(), Some(start + Duration::from_millis(9)));
        assert_eq!(report.latency(0.5), Some(Duration::from_millis(2)));
        assert_eq!(report.latency(1.0), Some(Duration::from_millis(3)));
        assert_eq!(report.by_source().len(), 3);
        assert_eq!(Report::default().latency(0.5), None);
    }
}
