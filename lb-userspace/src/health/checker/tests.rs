//! Checkers against stand-ins, in virtual time and over real sockets.

use std::{net::SocketAddr, num::NonZeroU32, sync::Mutex};

use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    config::model::{AllDown, Backend, Balance, CheckKind, Excess, OnDown, PreferLocal, ServerMode},
    health::{
        failure::Reason,
        stand_in::{Reply, StandIn, check, closed_port, readyz},
        watched::FileError,
    },
};

/// A backend made of virtual time.
#[derive(Clone)]
struct Imagined {
    /// When it is lost: right after the first good check that begins later than this.
    lost_after: Duration,
    loss: Loss,
    story: Arc<Mutex<Story>>,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// TCP is refused.
    Process,
    /// No packet comes back.
    Host,
    /// TCP connects, and nothing follows.
    Hang,
}

#[derive(Default)]
struct Story {
    begun: Option<Instant>,
    lost: Option<Instant>,
    starts: Vec<Instant>,
}

impl Checks for Imagined {
    async fn check(&mut self, silence: Duration) -> Result<String, Failure> {
        let address = SocketAddr::from(([10, 0, 0, 1], 6443));
        let now = Instant::now();
        let gone = {
            let mut story = self.story.lock().unwrap();
            story.starts.push(now);
            let begun = *story.begun.get_or_insert(now);
            let gone = story.lost.is_some();
            if now - begun >= self.lost_after {
                story.lost.get_or_insert(now);
            }
            gone
        };
        if !gone {
            return Ok("HTTP 200".into());
        }
        match self.loss {
            Loss::Process => Err(Failure::connect(address, std::io::Error::from_raw_os_error(libc::ECONNREFUSED))),
            Loss::Host => {
                sleep(silence).await;
                Err(Failure::dead(Reason::Silent { address, after: silence }))
            }
            Loss::Hang => {
                sleep(self.timeout).await;
                let url = "https://10.0.0.1:6443/readyz".into();
                Err(Failure::refused(Reason::Slow { url, after: self.timeout }))
            }
        }
    }
}

fn unknown() -> Report {
    Report {
        state: State::Down,
        since: SystemTime::UNIX_EPOCH,
        last_check: None,
        checks: 0,
        failures: 0,
        consecutive: 0,
        evidence: Evidence::default(),
    }
}

fn board() -> (Board, watch::Receiver<Reports>) {
    let address = SocketAddr::from(([10, 0, 0, 1], 6443));
    let key = BackendKey { virtual_server: "api".into(), backend: "m1".into(), address };
    let (sender, receiver) = watch::channel(Arc::new(BTreeMap::from([(key.clone(), unknown())])));
    (Board { key, report: unknown(), reports: Arc::new(sender) }, receiver)
}

fn text(report: &Report) -> String {
    report.last_check.clone().expect("it has been checked").text
}

/// Waits until the only backend is in `state`.
async fn becomes(reports: &mut watch::Receiver<Reports>, state: State) -> Report {
    let wanted = |all: &Reports| all.values().all(|report| report.state == state);
    let reports = timeout(Duration::from_secs(1000), reports.wait_for(wanted)).await;
    let reports = reports.expect("in time").expect("published").clone();
    reports.values().next().unwrap().clone()
}

/// How long after its loss a backend leaves `Up` for `state`.
async fn detection(check: &Check, loss: Loss, state: State) -> Duration {
    let story = Arc::new(Mutex::new(Story::default()));
    let probe = Imagined { lost_after: check.interval * 3, loss, story: story.clone(), timeout: check.timeout };
    let (board, mut reports) = board();
    let mut task = JoinSet::new();
    task.spawn(run(probe, check.clone(), board, Arc::default()));
    becomes(&mut reports, State::Up).await;
    becomes(&mut reports, state).await;
    let found = Instant::now();
    let lost = story.lock().unwrap().lost.expect("it was up before");
    found - lost
}

fn checks() -> impl Iterator<Item = Check> {
    let of = |(interval, timeout, fall, jitter_percent)| Check {
        interval: Duration::from_millis(interval),
        timeout: Duration::from_millis(timeout),
        fall: NonZeroU32::new(fall).unwrap(),
        jitter_percent,
        ..check(CheckKind::Tcp)
    };
    [
        (2000, 3000, 3, 10),
        (2000, 3000, 3, 50),
        (2000, 3000, 1, 50),
        (10_000, 3000, 3, 50),
        (500, 10_000, 5, 0),
        (1000, 1000, 2, 25),
    ]
    .into_iter()
    .map(of)
}

#[tokio::test(start_paused = true)]
async fn lost_process_and_lost_host_are_down_within_the_promise() {
    for check in checks() {
        for loss in [Loss::Process, Loss::Host] {
            let promise = check.interval * check.fall.get() + Duration::from_secs(1);
            for _ in 0..30 {
                let took = detection(&check, loss, State::Down).await;
                assert!(took <= promise, "{loss:?} found after {took:?}: {check:?}");
                // Never by fewer checks than asked for.
                let least = check.interval.mul_f64(0.5) * check.fall.get();
                assert!(took >= least, "{loss:?} found after {took:?}: {check:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_backend_drains_within_the_documented_time() {
    for check in checks() {
        let longest = check.interval.max(check.timeout);
        let slack = Duration::from_millis(250);
        let took = detection(&check, Loss::Hang, State::Draining).await;
        assert!(took <= check.interval + longest * check.fall.get() + slack, "{took:?}: {check:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn first_good_check_is_soon_and_enough() {
    let start = Instant::now();
    let (board, mut reports) = board();
    let probe =
        Imagined { lost_after: Duration::MAX, loss: Loss::Hang, story: Arc::default(), timeout: Duration::ZERO };
    let mut task = JoinSet::new();
    task.spawn(run(probe, check(CheckKind::Tcp), board, Arc::default()));
    let report = becomes(&mut reports, State::Up).await;
    assert!(start.elapsed() <= SPREAD + Duration::from_millis(2));
    assert_eq!((report.checks, report.failures, report.consecutive), (1, 0, 1));
    assert_eq!(text(&report), "HTTP 200");
}

#[tokio::test(start_paused = true)]
async fn waits_count_from_start_to_start_and_differ() {
    let check = check(CheckKind::Tcp);
    let story = Arc::new(Mutex::new(Story::default()));
    let probe = Imagined { lost_after: Duration::MAX, loss: Loss::Hang, story: story.clone(), timeout: Duration::ZERO };
    let (board, mut reports) = board();
    let mut task = JoinSet::new();
    task.spawn(run(probe, check.clone(), board, Arc::default()));
    reports.wait_for(|all| all.values().all(|report| report.checks == 50)).await.unwrap();
    let starts = story.lock().unwrap().starts.clone();
    let mut waits: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    waits.sort();
    assert!(waits[0] >= check.interval.mul_f64(0.9) && waits[0] < check.interval);
    let last = *waits.last().unwrap();
    // The clock of tokio's timers ticks in milliseconds.
    assert!(last <= check.interval.mul_f64(1.1) + Duration::from_millis(1));
    assert!(last > check.interval);
}

/// Checks that take a while and are good until the backend is lost; who waits for news of one.
struct Suspected {
    signals: Arc<Signals>,
    story: Arc<Mutex<Story>>,
    reports: watch::Receiver<Reports>,
    _task: JoinSet<Infallible>,
}

impl Suspected {
    async fn up(check: &Check, loss: Loss) -> Self {
        let story = Arc::new(Mutex::new(Story::default()));
        let probe = Imagined { lost_after: Duration::MAX, loss, story: story.clone(), timeout: check.timeout };
        let (board, mut reports) = board();
        let signals = Arc::new(Signals::default());
        let mut task = JoinSet::new();
        task.spawn(run(probe, check.clone(), board, Arc::clone(&signals)));
        becomes(&mut reports, State::Up).await;
        Self { signals, story, reports, _task: task }
    }

    fn checks(&self) -> usize {
        self.story.lock().unwrap().starts.len()
    }
}

#[tokio::test(start_paused = true)]
async fn what_clients_get_no_answer_from_is_found_out_quickly() {
    for check in checks() {
        for (loss, each) in [(Loss::Process, 200), (Loss::Host, 600)] {
            // At any moment between two checks, and within one.
            for part in [0.0, 0.1, 0.5, 0.97, 1.03, 1.1] {
                let mut backend = Suspected::up(&check, loss).await;
                let lost = Instant::now();
                backend.story.lock().unwrap().lost = Some(lost);
                sleep(check.interval.mul_f64(part)).await;
                if backend.reports.borrow().values().any(|report| report.state != State::Up) {
                    assert_eq!(check.fall.get(), 1);
                    continue;
                }
                let news = Instant::now();
                backend.signals.suspicion.notify_one();
                becomes(&mut backend.reports, State::Down).await;
                let (took, limit) = (news.elapsed(), Duration::from_millis(each * u64::from(check.fall.get()) + 205));
                assert!(took <= limit, "{loss:?} at {part}: {took:?} of {limit:?}, {check:?}");
                let failed = backend.reports.borrow().values().next().unwrap().failures;
                assert_eq!(failed, u64::from(check.fall.get()), "never by fewer checks than asked for");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn suspicions_alone_take_no_backend_out_and_cost_few_checks() {
    for check in checks() {
        let backend = Suspected::up(&check, Loss::Process).await;
        let (before, start) = (backend.checks(), Instant::now());
        while start.elapsed() < check.interval * 4 {
            backend.signals.suspicion.notify_one();
            sleep(Duration::from_millis(10)).await;
        }
        let made = backend.checks() - before;
        let most = (check.interval * 4).as_millis() / 200 + 2;
        assert!(made as u128 <= most && made >= 4, "{made} of {most}: {check:?}");
        let report = backend.reports.borrow().values().next().unwrap().clone();
        assert_eq!((report.state, report.failures), (State::Up, 0));
        // One that comes at rest is followed by one check, and then all is as before.
        sleep(Duration::from_millis(210)).await;
        let rest = backend.checks();
        backend.signals.suspicion.notify_one();
        sleep(Duration::from_millis(200)).await;
        assert_eq!(backend.checks(), rest + 1, "{check:?}");
    }
}

#[test]
fn check_that_could_not_be_made_changes_nothing_but_the_text() {
    let (mut board, reports) = board();
    let one = NonZeroU32::MIN;
    let mut counter = Counter::new(one, one);
    let now = (Instant::now(), None);
    record(&mut counter, &mut board, Ok("HTTP 200".into()), now);
    let before = board.report.clone();
    assert_eq!((before.state, before.checks), (State::Up, 1));
    assert!(before.since > SystemTime::UNIX_EPOCH);

    let error = FileError::new("/ca.crt".as_ref(), "gone");
    record(&mut counter, &mut board, Err(error.into()), now);
    let text = "check not made: cannot use /ca.crt: gone".to_owned();
    let after = reports.borrow()[&board.key].clone();
    let latency = after.last_check.as_ref().expect("it has been tried").latency;
    assert_eq!(after, Report { last_check: Some(LastCheck { text, latency }), ..before });
}

/// Three backends on hosts of their own, which this node does not reach while it is cut off.
struct Network {
    cut: Mutex<Option<(Instant, Instant)>>,
    dead: Mutex<Option<SocketAddr>>,
}

struct Reached {
    network: Arc<Network>,
    address: SocketAddr,
    /// Since when the kernel asks for the neighbour, once a second.
    asks: Option<Instant>,
}

impl Checks for Reached {
    async fn check(&mut self, silence: Duration) -> Result<String, Failure> {
        let now = Instant::now();
        let cut = *self.network.cut.lock().unwrap();
        let is_dead = *self.network.dead.lock().unwrap() == Some(self.address);
        let mut answer = Duration::from_millis(3);
        if let Some((from, to)) = cut {
            if (from..to).contains(&now) {
                self.asks.get_or_insert(now);
            }
            if let Some(asks) = self.asks {
                let found = asks + Duration::from_secs((to - asks).as_secs_f64().ceil() as u64);
                answer += found.saturating_duration_since(now);
            }
        }
        if is_dead || answer >= silence {
            sleep(silence).await;
            return Err(Failure::silent(Reason::Silent { address: self.address, after: silence }));
        }
        sleep(answer).await;
        self.asks = None;
        Ok("HTTP 200".into())
    }
}

/// Their checks, and whoever has them asked as the supervisor does. Notes who was found dead, and when.
struct Checked {
    network: Arc<Network>,
    reports: watch::Receiver<Reports>,
    lost: Arc<Mutex<BTreeMap<SocketAddr, Instant>>>,
    _tasks: JoinSet<Infallible>,
}

impl Checked {
    async fn up(check: &Check) -> Self {
        let addresses = [1, 2, 3].map(|last| SocketAddr::from(([10, 0, 0, last], 6443)));
        let key = |address| BackendKey { virtual_server: "api".into(), backend: "b".into(), address };
        let (sender, mut reports) = watch::channel(Arc::new(addresses.map(|address| (key(address), unknown())).into()));
        let sender = Arc::new(sender);
        let network = Arc::new(Network { cut: Mutex::default(), dead: Mutex::default() });
        let mut tasks = JoinSet::new();
        let mut signals = BTreeMap::new();
        for address in addresses {
            let board = Board { key: key(address), report: unknown(), reports: sender.clone() };
            let told = signals.entry(key(address)).or_insert_with(Arc::<Signals>::default).clone();
            let reached = Reached { network: network.clone(), address, asks: None };
            tasks.spawn(run(reached, check.clone(), board, told));
        }
        let lost = Arc::new(Mutex::new(BTreeMap::new()));
        let (noted, mut changes) = (lost.clone(), reports.clone());
        becomes(&mut reports, State::Up).await;
        tasks.spawn(async move {
            loop {
                let all = changes.borrow_and_update().clone();
                silence::to_ask(&all, &|_| false).into_iter().for_each(|key| signals[key].question.notify_one());
                for (key, _) in all.iter().filter(|(_, report)| report.consequence() == State::Down) {
                    noted.lock().unwrap().entry(key.address).or_insert_with(Instant::now);
                }
                changes.changed().await.unwrap();
            }
        });
        Self { network, reports, lost, _tasks: tasks }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_takes_nobody_for_dead() {
    for check in checks() {
        for tenths in 1..60 {
            let mut checked = Checked::up(&check).await;
            sleep(check.interval.mul_f64(fastrand::f64())).await;
            let cut = Instant::now();
            let back = cut + check.interval.mul_f64(f64::from(tenths) / 10.0);
            *checked.network.cut.lock().unwrap() = Some((cut, back));
            sleep(check.interval * 7).await;
            becomes(&mut checked.reports, State::Up).await;
            assert_eq!(*checked.lost.lock().unwrap(), BTreeMap::new(), "{:?} of {check:?}", back - cut);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_dies_among_others_is_lost_within_the_promise() {
    for check in checks() {
        for _ in 0..30 {
            let checked = Checked::up(&check).await;
            sleep(check.interval.mul_f64(fastrand::f64() * 3.0)).await;
            let (dead, died) = (SocketAddr::from(([10, 0, 0, 2], 6443)), Instant::now());
            *checked.network.dead.lock().unwrap() = Some(dead);
            sleep(check.interval * (check.fall.get() + 2) + Duration::from_secs(2)).await;
            let lost = checked.lost.lock().unwrap().clone();
            // With fewer than three checks, two more may be needed to know whose fault it is.
            let more = if check.fall.get() < 3 { Duration::from_millis(1300) } else { Duration::ZERO };
            let promise = check.interval * check.fall.get() + Duration::from_secs(1) + more;
            assert_eq!(lost.keys().collect::<Vec<_>>(), [&dead]);
            assert!(lost[&dead] - died <= promise, "{:?}: {check:?}", lost[&dead] - died);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_died_while_this_node_was_cut_off_is_found_out_when_it_is_back() {
    for check in checks() {
        let checked = Checked::up(&check).await;
        let (cut, dead) = (Instant::now(), SocketAddr::from(([10, 0, 0, 3], 6443)));
        let back = cut + check.interval * 6;
        *checked.network.cut.lock().unwrap() = Some((cut, back));
        *checked.network.dead.lock().unwrap() = Some(dead);
        sleep(check.interval * 8 + Duration::from_secs(3)).await;
        let lost = checked.lost.lock().unwrap().clone();
        assert_eq!(lost.keys().collect::<Vec<_>>(), [&dead]);
        assert!(lost[&dead] >= back && lost[&dead] <= back + check.interval * 2 + Duration::from_secs(2), "{check:?}");
    }
}

fn server(name: &str, check: Check, backends: &[(&str, SocketAddr)]) -> VirtualServer {
    VirtualServer {
        name: name.into(),
        address: [10, 0, 0, 100].into(),
        port: 6443,
        interface: None,
        balance: Balance::SourceHash,
        slow_start: Duration::ZERO,
        prefer_local: PreferLocal::Off,
        mode: ServerMode::Nat,
        elsewhere: false,
        on_down: OnDown::Reset,
        all_down: AllDown::Reset,
        connection_rate: 0,
        over_rate: Excess::Challenge,
        allow: Vec::new(),
        deny: Vec::new(),
        drain: Duration::ZERO,
        check,
        backends: backends
            .iter()
            .map(|(name, address)| Backend {
                name: (*name).into(),
                address: address.ip(),
                port: address.port(),
                weight: 1,
                backup: false,
            })
            .collect(),
    }
}

/// Every backend of every server, over real sockets: up, draining, down, and back.
#[tokio::test]
async fn backends_are_followed_one_by_one() {
    let code = Arc::new(Mutex::new(200));
    let answer = code.clone();
    let sick = StandIn::start(None, move |_| Reply::Answer(*answer.lock().unwrap(), String::new())).await;
    let well = StandIn::start(None, |_| Reply::ok()).await;
    let gone = closed_port();
    let fast = |kind| Check { interval: Duration::from_millis(30), timeout: Duration::from_secs(2), ..check(kind) };
    let servers = [
        server("api", fast(CheckKind::Http(readyz())), &[("sick", sick.address), ("well", well.address)]),
        server("plain", fast(CheckKind::Tcp), &[("sick", sick.address), ("gone", gone)]),
    ];
    let checkers = Checkers::spawn(&servers);
    let mut reports = checkers.reports();
    assert_eq!(reports.borrow().len(), 4, "all are known before the first check");
    let mut until = async |states: [State; 4]| {
        let names = ["api/sick", "api/well", "plain/gone", "plain/sick"];
        let wanted = |all: &Reports| {
            let now: Vec<_> = all.iter().map(|(key, r)| (key.to_string(), r.state)).collect();
            let checked = all.values().all(|report| report.checks > 0);
            checked && now.iter().map(|(k, s)| (k.as_str(), *s)).eq(names.into_iter().zip(states))
        };
        let seen = timeout(Duration::from_secs(10), reports.wait_for(wanted)).await;
        let all = seen.expect("in time").expect("published").clone();
        all.iter().map(|(key, r)| (key.to_string(), text(r))).collect::<BTreeMap<_, _>>()
    };
    until([State::Up, State::Up, State::Down, State::Up]).await;
    *code.lock().unwrap() = 500;
    let texts = until([State::Draining, State::Up, State::Down, State::Up]).await;
    assert_eq!(texts["api/sick"], format!("HTTP 500 from http://{}/readyz", sick.address));
    *code.lock().unwrap() = 200;
    until([State::Up, State::Up, State::Down, State::Up]).await;
    let address = sick.address;
    drop(sick);
    let texts = until([State::Down, State::Up, State::Down, State::Down]).await;
    assert_eq!(texts["plain/sick"], format!("{address}: connection refused"));

    // After the end nobody is left who could publish.
    checkers.stop().await;
    assert!(reports.has_changed().is_err());
}

#[tokio::test]
async fn a_check_goes_on_or_begins_with_what_was_known() {
    let live = StandIn::start(None, |_| Reply::ok()).await;
    let other = StandIn::start(None, |_| Reply::ok()).await;
    // So long that only the first check is made.
    let slow = Check { interval: Duration::from_secs(1000), ..check(CheckKind::Tcp) };
    let mut server = server("api", slow, &[("m1", live.address), ("m2", live.address), ("m3", other.address)]);
    server.backends.remove(1);
    let mut checkers = Checkers::spawn(std::slice::from_ref(&server));
    let mut reports = checkers.reports();
    let mut checked = async |count: usize, times: u64| {
        let wanted = |all: &Reports| all.len() == count && all.values().all(|report| report.checks == times);
        timeout(Duration::from_secs(10), reports.wait_for(wanted)).await.expect("in time").unwrap().clone()
    };
    let first = checked(2, 1).await;
    checkers.follow(std::slice::from_ref(&server));
    assert_eq!(checkers.tasks.len(), 2, "nothing is begun anew");
    assert_eq!(*checkers.reports().borrow(), first);

    // Another name, another check: each begins anew, with what is known.
    let mut renamed = server.clone();
    (renamed.name, renamed.check.rise) = ("renamed".into(), NonZeroU32::new(7).unwrap());
    renamed.backends.remove(1);
    checkers.follow(std::slice::from_ref(&renamed));
    let now = checkers.reports().borrow().clone();
    let told: Vec<_> = now.iter().map(|(key, report)| (key.to_string(), report)).collect();
    assert_eq!(told, [("renamed/m1".to_owned(), first.values().next().unwrap())]);
    let then = checked(1, 2).await;
    assert!(then.values().all(|report| report.state == State::Up), "one good check does not make it up, and need not");

    // A name alone is no backend.
    renamed.backends[0].port = other.address.port();
    checkers.follow(std::slice::from_ref(&renamed));
    assert_eq!(checkers.reports().borrow().values().next().unwrap().checks, 0);
    checked(1, 1).await;
}

#[tokio::test]
async fn dropped_checkers_end() {
    let backends = [("gone", closed_port())];
    let checkers = Checkers::spawn(&[server("api", check(CheckKind::Tcp), &backends)]);
    let mut reports = checkers.reports();
    drop(checkers);
    let ended = async { while reports.changed().await.is_ok() {} };
    timeout(Duration::from_secs(5), ended).await.expect("the tasks let go of the channel");
}

#[tokio::test]
async fn unusable_check_is_reported_and_death_of_a_task_told() {
    let request = crate::config::model::HttpRequest { path: "no path".into(), ..readyz() };
    let backends = [("one", closed_port())];
    let mut checkers = Checkers::spawn(&[server("api", check(CheckKind::Http(request)), &backends)]);
    let reports = checkers.reports();
    let report = reports.borrow().values().next().unwrap().clone();
    assert_eq!(text(&report), r#""no path" is no path of an HTTP request"#);

    checkers.tasks.spawn(async { panic!("as a bug would") });
    assert!(checkers.died().await.is_panic());
}
