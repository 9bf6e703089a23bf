//! What becomes of idle connections when their backend is gone: their clients are told at once, and nobody else is. Needs root.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use futures_util::{
    future::try_join_all,
    stream::{FuturesUnordered, StreamExt as _},
};
use lb_tests::{
    client::{Client, Failure, Stage, Watch},
    lab::{Cgroup, Host},
    site::{DETECTION, FALL, Site},
    topology::{APISERVER_PORT, Topology},
    wait,
    xvip::backends,
};
use lb_userspace::health::State;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

const HOLDER: &str = "ha-lb-a";
const DEAD: &str = "master-2";
/// Clients of each family, which backends are shared out to by their addresses, and watches of each.
const SOURCES: u32 = 25;
const EACH: usize = 19;
/// Watches of the holder's own processes, for each family: 1,000 with the others, 50 of them these.
const OWN: usize = 25;
/// From the moment that the daemon knows. The promise is 200 ms, of a release build with a CPU to itself.
const TOLD: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(10);
/// How long watches are looked at that nothing is to happen to.
const QUIET: Duration = Duration::from_millis(500);
/// What a client answers with whose reset was not exact.
const CHALLENGES: &str = "TcpExtTCPChallengeACK";

/// The end of a watch.
#[derive(Debug)]
struct End {
    backend: String,
    at: Instant,
    why: Result<(), Failure>,
}

/// Opens watches and follows each to its end, or until told to stop. Who answers is told when all are open.
async fn follow(
    client: Client,
    sources: Vec<SocketAddr>,
    opened: Sender<Vec<String>>,
    mut stop: watch::Receiver<bool>,
) -> Vec<End> {
    let mut watches = Vec::new();
    // Not all at once: handshakes of a thousand would take each longer than it may.
    for some in sources.chunks(20) {
        watches.extend(try_join_all(some.iter().map(|source| client.watch(Some(*source)))).await.unwrap());
    }
    opened.send(watches.iter().map(|watch| watch.backend.clone()).collect()).unwrap();
    let end = async |mut watch: Watch| {
        let why = loop {
            match watch.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        End { backend: watch.backend, at: Instant::now(), why }
    };
    let mut following: FuturesUnordered<_> = watches.into_iter().map(end).collect();
    let mut ends = Vec::new();
    loop {
        tokio::select! {
            Some(end) = following.next() => ends.push(end),
            _ = stop.wait_for(|stop| *stop) => return ends,
        }
    }
}

/// Watches of one family, of remote clients or of the holder's own processes.
struct Watching<'scope> {
    opened: Receiver<Vec<String>>,
    ends: thread::ScopedJoinHandle<'scope, Vec<End>>,
}

impl<'scope> Watching<'scope> {
    fn start(
        scope: &'scope thread::Scope<'scope, '_>,
        host: Host,
        (client, sources): (Client, Vec<SocketAddr>),
        cgroup: Option<&'scope Cgroup>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let (sender, opened) = mpsc::channel();
        let work = move || {
            let following = || {
                cgroup.map(Cgroup::join).transpose().unwrap();
                follow(client, sources, sender, stop)
            };
            host.run(following).unwrap()
        };
        Self { opened, ends: scope.spawn(work) }
    }

    /// How many there are, and how many of them lead to the backend that is to die.
    fn counts(&self) -> (usize, usize) {
        let backends = self.opened.recv_timeout(LIMIT * 6).expect("the watches to be open");
        (backends.len(), backends.iter().filter(|backend| *backend == DEAD).count())
    }
}

/// What became of all watches while a backend died.
struct Told {
    /// When it did.
    lost: Instant,
    /// When the daemon knew, for each family.
    known: [Instant; 2],
    /// Ends of remote clients' watches and of the holder's own, for each family.
    remote: [Vec<End>; 2],
    own: [Vec<End>; 2],
    /// How many were to end.
    doomed: [(usize, usize); 2],
}

/// Opens a thousand watches, has `event` kill a backend, and waits until the daemon knows and quiet has returned.
fn watched(site: &Site, cgroup: &Cgroup, event: impl FnOnce()) -> Told {
    let (stop, stopped) = watch::channel(false);
    thread::scope(|scope| {
        let start = |v6: bool, own: bool| {
            let any = if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
            let sources = match own {
                // Of its own choice, the kernel gives one port to connections to several backends, and then it does not tell them apart.
                true => (20_000 + 100 * u16::from(v6)..).take(OWN).map(|port| SocketAddr::new(any, port)).collect(),
                false => {
                    let sources = site.sources(v6, SOURCES).unwrap();
                    sources.iter().flat_map(|source| [SocketAddr::new(*source, 0); EACH]).collect()
                }
            };
            let host = if own { site.host(HOLDER) } else { site.deployment.client_host() };
            let cgroup = own.then_some(cgroup);
            Watching::start(scope, host.clone(), (site.client(v6).unwrap(), sources), cgroup, stopped.clone())
        };
        let all = [(false, false), (true, false), (false, true), (true, true)].map(|(v6, own)| start(v6, own));
        let counts = all.each_ref().map(Watching::counts);
        assert_eq!(counts.map(|(all, _)| all).iter().sum::<usize>(), 1_000);

        let downs = Downs::until_now(site);
        let lost = Instant::now();
        event();
        let known = downs.next();
        let quiet = Instant::now();
        wait::until("quiet", LIMIT, || (quiet.elapsed() >= TOLD + QUIET).then_some(())).unwrap();
        stop.send_replace(true);
        let [remote4, remote6, own4, own6] = all.map(|watching| watching.ends.join().unwrap());
        let doomed = [0, 1].map(|family| (counts[family].1, counts[family + 2].1));
        Told { lost, known, remote: [remote4, remote6], own: [own4, own6], doomed }
    })
}

/// How often the log says that the backend went down, for each family.
struct Downs<'a> {
    site: &'a Site,
    lines: [String; 2],
    counts: [usize; 2],
}

impl<'a> Downs<'a> {
    fn until_now(site: &'a Site) -> Self {
        let servers = site.xvip.status().unwrap().virtual_servers;
        let lines = [0, 1].map(|family| format!("backend {}/{DEAD}: up -> down", servers[family].name));
        let log = site.xvip.log();
        Self { site, counts: lines.each_ref().map(|line| log.matches(line).count()), lines }
    }

    /// Waits until it says so of both once more, and tells when it did.
    fn next(self) -> [Instant; 2] {
        let mut known = [None; 2];
        let seen = wait::until("the daemon to know", DETECTION + LIMIT, || {
            let log = self.site.xvip.log();
            for ((known, line), before) in known.iter_mut().zip(&self.lines).zip(self.counts) {
                *known = known.or_else(|| (log.matches(line).count() > before).then(Instant::now));
            }
            known[0].zip(known[1])
        });
        seen.map(|(v4, v6)| [v4, v6]).unwrap()
    }
}

/// A site whose holder's own clients are seen too.
fn site_with(cgroup: &Cgroup, name: &str) -> Site {
    let off = "cgroup = \"off\"\n";
    Site::up_with(Topology::C, name, HOLDER, |text| {
        assert!(text.contains(off));
        text.replace(off, &format!("cgroup = {:?}\n", cgroup.path()))
    })
    .unwrap()
}

impl Told {
    /// All who are to be told were, in time, and nobody else.
    fn check(&self, remote: impl Fn(&Result<(), Failure>) -> bool, own: impl Fn(&Result<(), Failure>) -> bool) {
        for family in [0, 1] {
            let (remotes, owns) = (&self.remote[family], &self.own[family]);
            let others: Vec<_> = remotes.iter().chain(owns).filter(|end| end.backend != DEAD).collect();
            assert!(others.is_empty(), "{others:#?}");
            assert_eq!((remotes.len(), owns.len()), self.doomed[family], "all of its clients");
            assert!(remotes.iter().all(|end| remote(&end.why)), "{remotes:#?}");
            assert!(owns.iter().all(|end| own(&end.why)), "{owns:#?}");
            let last = |ends: &[End]| ends.iter().map(|end| end.at).max().expect("there are some");
            let after = |ends: &[End]| last(ends).saturating_duration_since(self.known[family]);
            println!(
                "IPv{}: down after {:.2?}; {} watches of remote clients had ended {:.1?} after that, {} of local ones {:.1?}",
                [4, 6][family],
                self.known[family] - self.lost,
                remotes.len(),
                after(remotes),
                owns.len(),
                after(owns),
            );
            assert!(self.known[family] - self.lost < DETECTION + TOLD, "it is known in time");
            assert!(after(remotes) < TOLD && after(owns) < TOLD);
        }
    }
}

const RESET: Result<(), Failure> = Err(Failure::Reset(Stage::Answer));
const ABORTED: Result<(), Failure> = Err(Failure::Aborted(Stage::Answer));

#[test]
fn watches_on_an_unplugged_backend_are_reset_at_once_and_no_others() {
    let cgroup = Cgroup::new("resets").unwrap();
    let site = site_with(&cgroup, "resets");
    let direct = site.deployment.node(DEAD).unwrap().addresses().map(|address| {
        let to = SocketAddr::new(address, APISERVER_PORT);
        let stream = site.deployment.client_host().enter(|| TcpStream::connect(to).unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    });
    let challenges = || site.deployment.client_host().netstat().unwrap().value(CHALLENGES);
    let challenged = challenges();
    // Nobody is left who could end them from the other side.
    let told = watched(&site, &cgroup, || site.host(DEAD).unplug().unwrap());
    assert!(told.doomed.iter().all(|(remote, own)| *remote >= 80 && *own >= 3), "{:?}", told.doomed);
    told.check(|why| *why == RESET, |why| *why == ABORTED);

    let total: usize = told.doomed.iter().map(|(remote, _)| remote).sum();
    let counted = |status: &lb_userspace::admin::Status| status.connections.reset == total as u64;
    site.xvip.wait_for("the resets to be counted", LIMIT, counted).unwrap();
    for ((count, _), address) in told.doomed.iter().zip(site.deployment.node(DEAD).unwrap().addresses()) {
        let line = format!("reset {count} connections of backend {}", SocketAddr::new(address, APISERVER_PORT));
        assert!(site.xvip.log().contains(&line), "{line}\n{}", site.xvip.log());
    }
    assert_eq!(challenges(), challenged, "a reset was not exact");
    let waits = |mut stream: &TcpStream| stream.read(&mut [0]).unwrap_err().kind() == ErrorKind::WouldBlock;
    assert!(direct.iter().all(waits), "what does not go by the VIP is not ours");
    assert_eq!((site.event("backend_down").unwrap(), site.event("rebuilt").unwrap()), (0, 0));
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_killed_apiserver_takes_only_its_own_watches_along() {
    let cgroup = Cgroup::new("killed").unwrap();
    let site = site_with(&cgroup, "killed");
    let told = watched(&site, &cgroup, || site.apiserver(DEAD).unwrap().kill());
    // Its host's kernel ends them: with a reset where something was unread.
    let ended = |why: &Result<(), Failure>| matches!(why, Err(Failure::Closed(_) | Failure::Reset(_)) | Ok(()));
    told.check(ended, ended);
}

/// How long clients took to be connected, and the daemon to know, with clients and without.
#[derive(Debug)]
struct Detected {
    busy: Duration,
    idle: Duration,
    connected: Duration,
}

/// A backend dies; clients of one family, which were its own, come at once. Those of the other family stay away.
fn detected(site: &Site, v6: bool, event: impl FnOnce()) -> Detected {
    let sources = site.sources(v6, 12).unwrap();
    let answers = site.map(v6, &sources).unwrap();
    let own: Vec<IpAddr> = answers.by_source().iter().filter(|(_, name)| **name == DEAD).map(|(ip, _)| *ip).collect();
    assert!(own.len() >= 2, "{answers}");
    let vip = Topology::C.endpoint(v6);
    let downs = Downs::until_now(site);
    let lost = Instant::now();
    event();
    let (connected, known) = thread::scope(|scope| {
        let connect = |source: IpAddr| {
            let socket = Socket::new(Domain::for_address(vip), Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
            let outcome = socket.connect_timeout(&vip.into(), LIMIT);
            outcome.unwrap_or_else(|error| panic!("{source} after {:?}: {error}", lost.elapsed()));
        };
        let all = move || {
            thread::scope(|scope| own.iter().for_each(|source| drop(scope.spawn(move || connect(*source)))));
        };
        let all = scope.spawn(move || site.deployment.client_host().enter(all).map(|()| lost.elapsed()).unwrap());
        let known = downs.next();
        (all.join().unwrap(), known)
    });
    let [idle, busy] = if v6 { known } else { [known[1], known[0]] }.map(|known| known - lost);
    Detected { busy, idle, connected }
}

/// The other family's clients stay away, so its checks tell what detection takes without news.
#[test]
fn clients_that_get_no_answer_shorten_detection_and_are_taken_elsewhere() {
    let interval = Duration::from_secs(2);
    let site = Site::up_with(Topology::C, "passive", HOLDER, |text| text.replace("\"500ms\"", "\"2s\"")).unwrap();
    let unplugged = detected(&site, false, || site.host(DEAD).unplug().unwrap());
    println!("unplugged: {unplugged:.2?}");
    site.host(DEAD).plug().unwrap();
    site.wait_for_state(DEAD, State::Up).unwrap();
    assert!(site.event("unanswered").unwrap() >= 1 && site.xvip.status().unwrap().counters.drops["refused"] == 0);
    let killed = detected(&site, true, || site.apiserver(DEAD).unwrap().kill());
    println!("killed: {killed:.2?}");
    assert!(site.xvip.status().unwrap().counters.drops["refused"] >= 1);
    assert!(site.event("retried").unwrap() >= 1);
    for (what, limit, Detected { busy, idle, connected }) in
        [("unplugged", 1.0 + 0.6 * f64::from(FALL), unplugged), ("killed", 0.2 * f64::from(FALL), killed)]
    {
        let limit = Duration::from_secs_f64(limit) + TOLD;
        assert!(busy < limit, "{what}: {busy:?} of {limit:?}");
        assert!(idle > interval * (FALL - 1) && busy < idle, "{what}: {busy:?} and {idle:?} without news");
        assert!(connected < LIMIT, "{what}: {connected:?}");
    }
}

#[test]
fn connections_are_kept_over_a_loss_of_their_backend_if_asked_for() {
    let site = Site::up_with(Topology::C, "keep", HOLDER, |text| {
        text.replace("[[virtual_server]]\n", "[[virtual_server]]\non_down = \"keep\"\n")
    })
    .unwrap();
    let sources = site.sources(false, 12).unwrap();
    let answers = site.map(false, &sources).unwrap();
    let theirs = answers.by_source().values().filter(|name| **name == DEAD).count();
    assert!(theirs >= 1, "{answers}");
    let away = || {
        let streams = || site.apiserver(DEAD).unwrap().log().matches("/echo").count();
        wait::until("the streams to have begun", LIMIT, || (streams() == theirs).then_some(()))?;
        site.host(DEAD).unplug()?;
        site.wait_for_state(DEAD, State::Down)?;
        let elsewhere = site.map(false, &sources)?;
        site.host(DEAD).plug()?;
        site.wait_for_state(DEAD, State::Up)?;
        Ok(elsewhere)
    };
    let (elsewhere, streams) = site.echo_during(false, &sources, away).unwrap();
    assert!(elsewhere.by_source().values().all(|name| *name != DEAD), "{elsewhere}");
    let streams: Vec<_> = streams.into_iter().map(Result::unwrap).collect();
    assert_eq!(streams.iter().filter(|stream| stream.backend == DEAD).count(), theirs);
    assert!(streams.iter().all(|stream| stream.failure.is_none()), "{streams:#?}");
    let status = site.xvip.status().unwrap();
    assert_eq!((status.connections.reset, status.counters.events["backend_down"]), (0, 0));
    assert!(backends(&status, DEAD).iter().all(|backend| backend.state == State::Up));
}
