//! One task a backend: it checks on schedule, counts, and publishes what it knows.
//!
//! A backend that is lost right after a good check leaves `Up` within `interval × fall + 1 s`; `schedule` says why.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::{Future, pending},
    mem,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    select,
    sync::{Notify, watch},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    State,
    connection::is_own,
    counter::{Counter, Outcome},
    failure::Failure,
    probe::Probe,
    schedule,
    silence::{self, Evidence},
};
use crate::config::model::{Backend, Check, VirtualServer};

/// The first checks are spread over this time, so that they do not all meet the servers, or this host, at once.
const SPREAD: Duration = Duration::from_millis(100);

/// A backend of a virtual server. Prints as `virtual-server/backend`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    pub virtual_server: String,
    pub backend: String,
    pub address: SocketAddr,
}

impl BackendKey {
    pub fn of(server: &VirtualServer, backend: &Backend) -> Self {
        let address = SocketAddr::new(backend.address, backend.port);
        Self { virtual_server: server.name.clone(), backend: backend.name.clone(), address }
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.virtual_server, self.backend)
    }
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `Down` with no `checks` means that nothing is known yet.
    pub state: State,
    /// When the state was entered.
    pub since: SystemTime,
    /// `None` until the first check has ended, or could not be made.
    pub last_check: Option<LastCheck>,
    /// Checks made, and those of them that failed. One that could not be made for a local reason is in neither.
    pub checks: u64,
    pub failures: u64,
    /// How many checks in a row, up to the latest, were good, or failed.
    pub consecutive: u32,
    /// Whether it is the backend that is dead, and not this node that is cut off.
    pub evidence: Evidence,
}

impl Report {
    pub(super) fn unknown() -> Self {
        let since = SystemTime::now();
        let evidence = Evidence::default();
        Self { state: State::Down, since, last_check: None, checks: 0, failures: 0, consecutive: 0, evidence }
    }

    /// What follows for connections: those of a backend that is down go on as long as this node may be to blame.
    pub fn consequence(&self) -> State {
        if self.is_in_doubt() { State::Draining } else { self.state }
    }

    fn is_in_doubt(&self) -> bool {
        self.state == State::Down && !self.evidence.is_enough()
    }
}

/// What the latest check brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// One line: what was answered, or what went wrong.
    pub text: String,
    /// How long it took.
    pub latency: Duration,
}

/// All backends, one report each.
pub type Reports = Arc<BTreeMap<BackendKey, Report>>;

/// The running checks. They end when this is dropped.
#[derive(Debug)]
pub struct Checkers {
    tasks: JoinSet<Infallible>,
    running: BTreeMap<BackendKey, Running>,
    board: Arc<watch::Sender<Reports>>,
}

/// What one task is told.
#[derive(Debug, Default)]
struct Signals {
    /// Clients get no answer.
    suspicion: Notify,
    /// Another check is wanted at once.
    question: Notify,
}

/// What is made of one backend.
#[derive(Debug)]
struct Running {
    vip: SocketAddr,
    check: Check,
    signals: Arc<Signals>,
    /// `None` where the check cannot be made.
    task: Option<AbortHandle>,
}

impl Checkers {
    /// Starts to check every backend of `servers`. Call it within a tokio runtime.
    pub fn spawn(servers: &[VirtualServer]) -> Self {
        let board = Arc::new(watch::Sender::new(Reports::default()));
        let mut checkers = Self { tasks: JoinSet::new(), running: BTreeMap::new(), board };
        checkers.follow(servers);
        checkers
    }

    /// Checks the backends of `servers` from here on, and no others. A check that stays the same goes on undisturbed. One that is
    /// changed begins with the state that was known, as does that of a backend which only has another name.
    pub fn follow<'a>(&mut self, servers: impl IntoIterator<Item = &'a VirtualServer>) {
        let wanted: BTreeMap<BackendKey, (&VirtualServer, &Backend)> = servers
            .into_iter()
            .flat_map(|server| server.backends.iter().map(move |backend| (server, backend)))
            .map(|(server, backend)| (BackendKey::of(server, backend), (server, backend)))
            .collect();
        let mut former = mem::take(&mut self.running);
        let known = self.board.borrow().clone();
        let mut fresh = Vec::new();
        for (key, (server, backend)) in &wanted {
            let vip = SocketAddr::new(server.address, server.port);
            if former.get(key).is_some_and(|running| running.check == server.check)
                && let Some(same) = former.remove(key)
            {
                self.running.insert(key.clone(), Running { vip, ..same });
                continue;
            }
            let renamed = || former.iter().find(|(old, running)| running.vip == vip && old.address == key.address);
            let report = known.get(key).or_else(|| known.get(renamed()?.0)).cloned();
            fresh.push((key.clone(), *server, *backend, report.unwrap_or_else(Report::unknown)));
        }
        // The tasks write only to what is there.
        self.board.send_modify(|all| {
            let all = Arc::make_mut(all);
            all.retain(|key, _| wanted.contains_key(key));
            all.extend(fresh.iter().map(|(key, _, _, report)| (key.clone(), report.clone())));
        });
        for (key, server, backend, report) in fresh {
            let vip = SocketAddr::new(server.address, server.port);
            let signals = Arc::new(Signals::default());
            let task = self.begin(key.clone(), &server.check, backend, report, Arc::clone(&signals));
            self.running.insert(key, Running { vip, check: server.check.clone(), signals, task });
        }
        former.into_values().filter_map(|running| running.task).for_each(|task| task.abort());
    }

    /// A backend has left clients without an answer, or refused them: it is checked at once, and quickly until that has decided. Without
    /// a failed check nothing else comes of it.
    pub fn suspect(&self, key: &BackendKey) {
        if let Some(running) = self.running.get(key) {
            running.signals.suspicion.notify_one();
        }
    }

    /// Has those checked at once by whom it is known which backends are silent, if some are. To be called with each change of the reports.
    pub fn ask_around(&self, reports: &Reports) {
        for running in silence::to_ask(reports, &is_own).into_iter().filter_map(|key| self.running.get(key)) {
            running.signals.question.notify_one();
        }
    }

    fn begin(
        &mut self,
        key: BackendKey,
        check: &Check,
        backend: &Backend,
        report: Report,
        signals: Arc<Signals>,
    ) -> Option<AbortHandle> {
        let mut board = Board { key, report, reports: self.board.clone() };
        match Probe::new(check, backend) {
            Ok(probe) => Some(self.tasks.spawn(run(probe, check.clone(), board, signals))),
            Err(error) => {
                log::error!("backend {} cannot be checked: {error}", board.key);
                let last = LastCheck { text: error.to_string(), latency: Duration::ZERO };
                board.update(|report| report.last_check = Some(last));
                None
            }
        }
    }

    /// The latest reports. They change with every check, states or not.
    pub fn reports(&self) -> watch::Receiver<Reports> {
        self.board.subscribe()
    }

    /// Resolves when a task has died, whose backend is then no longer checked: a bug, on which a supervisor should act.
    ///
    /// Cancel-safe.
    pub async fn died(&mut self) -> JoinError {
        loop {
            match self.tasks.join_next().await {
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => return error,
                Some(Ok(never)) => match never {},
                None => return pending().await,
            }
        }
    }

    /// Ends all checks, and returns when their connections are closed.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Makes checks; a probe, or what a test puts in its place.
trait Checks {
    fn check(&mut self, silence: Duration) -> impl Future<Output = Result<String, Failure>> + Send;
}

impl Checks for Probe {
    async fn check(&mut self, silence: Duration) -> Result<String, Failure> {
        Probe::check(self, silence).await
    }
}

/// Where one task puts its reports.
struct Board {
    key: BackendKey,
    report: Report,
    reports: Arc<watch::Sender<Reports>>,
}

impl Board {
    fn heard(&self) -> Option<std::time::Instant> {
        silence::heard(&self.reports.borrow(), &self.key, is_own)
    }

    fn has_no_witness(&self) -> bool {
        silence::has_no_witness(&self.reports.borrow(), &self.key, is_own)
    }

    fn update(&mut self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report);
        self.reports.send_modify(|all| {
            // Gone if this task is about to end.
            if let Some(report) = Arc::make_mut(all).get_mut(&self.key) {
                report.clone_from(&self.report);
            }
        });
    }
}

/// Checks one backend until it is dropped.
///
/// Cancel-safe: everything between two awaits is complete in itself, and a check that is dropped closes its connection.
async fn run(mut probe: impl Checks, check: Check, mut board: Board, signals: Arc<Signals>) -> Infallible {
    let Signals { suspicion, question } = &*signals;
    let mut counter = Counter::resume(check.rise, check.fall, board.report.state);
    let mut due = Instant::now() + SPREAD.mul_f64(fastrand::f64());
    // No check may be made before.
    let mut soonest = due;
    loop {
        select! {
            () = sleep_until(due) => {}
            () = suspected(suspicion, &mut counter) => {
                log::debug!("backend {}: clients get no answer, checking at once", board.key);
                due = due.min(soonest);
                continue;
            }
            () = question.notified() => {
                due = due.min(soonest);
                continue;
            }
        }
        let start = Instant::now();
        soonest = start + schedule::hurry(&check);
        let heard = board.heard();
        let decides = counter.next_dead_decides() || board.report.is_in_doubt() && heard.is_some();
        let silence = schedule::silence(&check, decides || counter.is_hurried());
        let result = select! {
            result = probe.check(silence) => result,
            // It may have been silent for long, and be so for longer.
            () = suspected(suspicion, &mut counter) => continue,
        };
        record(&mut counter, &mut board, result, (start, heard));
        let roll = fastrand::f64() * 2.0 - 1.0;
        let usual = start + schedule::wait(&check, counter.is_failing(), roll);
        due = if counter.is_hurried() { soonest } else { usual };
    }
}

/// Resolves when the backend becomes suspected that was not.
///
/// Cancel-safe.
async fn suspected(suspicion: &Notify, counter: &mut Counter) {
    loop {
        suspicion.notified().await;
        if counter.suspect() {
            return;
        }
    }
}

/// Takes in a check: when it began, and since when another backend was known by then to answer while this one does not.
fn record(
    counter: &mut Counter,
    board: &mut Board,
    result: Result<String, Failure>,
    (begun, heard): (Instant, Option<std::time::Instant>),
) {
    let latency = begun.elapsed();
    let (outcome, mut text) = match result {
        Ok(text) => (Some(Outcome::Healthy), text),
        Err(failure) => (failure.outcome, failure.to_string()),
    };
    let before = counter.state();
    let state = outcome.map_or(before, |outcome| counter.record(outcome));
    let mut evidence = board.report.evidence;
    if let Some(outcome) = outcome {
        let times = (begun.into_std(), Instant::now().into_std());
        evidence.record(outcome, times, heard, || board.has_no_witness());
    }
    let is_in_doubt = state == State::Down && !evidence.is_enough();
    if is_in_doubt && outcome == Some(Outcome::Silent) {
        text += "; its connections stay until another backend answers and it does not";
    }
    if state == State::Down && !is_in_doubt && board.report.is_in_doubt() && before == State::Down {
        log::warn!("backend {} is down and others answer: its connections end", board.key);
    }
    if state != before {
        let level = if state == State::Up { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "backend {}: {before} -> {state}: {text}", board.key);
    }
    board.update(|report| {
        if state != before {
            report.since = SystemTime::now();
        }
        report.state = state;
        report.evidence = evidence;
        report.last_check = Some(LastCheck { text, latency });
        report.checks += u64::from(outcome.is_some());
        report.failures += u64::from(matches!(outcome, Some(Outcome::Refused | Outcome::Dead | Outcome::Silent)));
        report.consecutive = counter.consecutive();
    });
}

#[cfg(test)]
mod tests;
