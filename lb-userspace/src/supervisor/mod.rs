//! The daemon from start to end: the order in which things come up, the one loop that keeps the tables true, and the order in
//! which everything is taken away again.

mod attaching;
mod callers;
mod closing;
mod leaving;
mod ordering;
mod placement;
mod reload;
mod resetting;
mod starting;
mod sweeping;
mod syncing;
mod tables;
mod turning;
mod view;
mod vips;
mod vrrp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use lb_common::abi::BackendId;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

pub(crate) use self::{
    attaching::hooked,
    leaving::{macs, vips},
    placement::carriers,
    starting::options,
};
use self::{
    callers::Caller,
    closing::Closer,
    resetting::Resetter,
    vips::Vips,
    vrrp::{Seen, Vrrp},
};
use crate::{
    admin::{Status, socket::Command, status},
    config::model::{self, Config},
    dataplane::{Dataplane, Mode, Suspicions, Swept},
    health::{BackendKey, Checkers, Reports},
    host::{self, Changes, Forwarding, Handle, Interface, Interfaces},
    reconcile::{Applied, Endpoint, Numbers, Orders, Part, Returns},
    sync::{Backends, Sync},
};

/// How often the counters in the published status are refreshed.
const REFRESH: Duration = Duration::from_secs(1);
/// Requests that wait for the loop, which takes them at once; who finds no room is told to try again.
const COMMANDS: usize = 4;

/// Connections that are alive, by backend.
type Alive = BTreeMap<BackendId, u64>;

/// Runs until SIGTERM or SIGINT. Whatever was added to the host is removed before it returns, on failure too. SIGHUP reads `file`
/// again, where `config` comes from.
pub async fn run(config: &Config, file: &Path) -> anyhow::Result<()> {
    // Before anything is touched: a signal during the start must not end the process half-way.
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let mut node = Node::start(config, file, hangup).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        served = node.serve() => served.map(|()| "asked to hand over"),
    };
    match &ended {
        Ok(why) => log::info!("{why}: leaving"),
        Err(error) => log::error!("{error:#}: leaving"),
    }
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    node.resign(again).await;
    node.stop().await;
    ended.map(drop)
}

/// What the daemon holds. The order of the fields is the order in which they end.
struct Node {
    file: PathBuf,
    config: Arc<Config>,
    /// When that was read.
    loaded: SystemTime,
    last_reload: Option<status::Reload>,
    hangup: Signal,
    started: SystemTime,
    handle: Handle,
    /// Those that do not move.
    vips: Vips,
    vrrp: Vrrp,
    /// `None` where connections stay on this node.
    sync: Option<Sync>,
    commands: mpsc::Receiver<Command>,
    servers: JoinSet<()>,
    checkers: Checkers,
    reports: watch::Receiver<Reports>,
    /// The reports that the tables follow: what is shown must not be ahead of what packets meet.
    followed: Reports,
    suspicions: Suspicions,
    changes: Changes,
    dataplane: Dataplane,
    attached: BTreeMap<String, Mode>,
    /// Its id, by which the kernel tells what an interface has.
    program: Option<u32>,
    carriers: Vec<String>,
    host: Interfaces,
    applied: Applied,
    numbers: Numbers,
    /// Where their time begins.
    begun: Instant,
    orders: Orders,
    returns: Returns,
    /// Virtual servers that there is room for.
    room: usize,
    /// The data plane is left to another daemon, whatever the configuration says.
    hands_over: bool,
    /// Packets of backends that are gone.
    forwarded_before: u64,
    timeouts: watch::Sender<model::Timeouts>,
    swept: watch::Receiver<Swept>,
    /// The same of this host's own sockets.
    own: watch::Receiver<Alive>,
    /// Who is told one by one when a VIP comes here.
    callers: watch::Receiver<Arc<Vec<Caller>>>,
    closer: Closer,
    /// The other nodes' part that the tables follow.
    part: Part,
    /// MAC addresses of backends' nodes.
    macs: BTreeMap<IpAddr, [u8; 6]>,
    /// It has been told to stop.
    leaves: bool,
    /// VIPs that are here.
    held: BTreeSet<IpAddr>,
    /// Clients that were told that their backend is down.
    reset: watch::Receiver<u64>,
    resetter: Resetter,
    status: watch::Sender<Arc<Status>>,
    forwarding: Vec<Forwarding>,
}

impl Node {
    /// Keeps the tables true until something fails, or the data plane is to be handed over. Cancel-safe between changes: each is applied
    /// without awaiting.
    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                changed = self.reports.changed() => match changed {
                    Ok(()) => self.health_changed(),
                    Err(_) => Err(anyhow::anyhow!("the health checks have ended unexpectedly")),
                },
                error = self.checkers.died() => Err(anyhow::Error::from(error).context("a health check has ended unexpectedly")),
                told = self.suspicions.next() => told.context("reading suspicions").map(|told| self.suspect(&told)),
                batch = self.changes.next() => self.host_changed(batch.is_none()).await,
                Ok(()) = self.callers.changed() => {
                    let callers = Arc::clone(&self.callers.borrow_and_update());
                    self.vrrp.meet(&callers, &self.host);
                    Ok(())
                }
                changed = self.vrrp.changed() => changed.and_then(|()| self.follow()),
                Some(command) = self.commands.recv() => self.obey(command).await,
                _ = self.hangup.recv() => self.reload().await.map(drop),
                _ = refresh.tick() => match self.tend().await {
                    // Nobody tells of a program that somebody has taken off.
                    Ok(()) => self.follow(),
                    failed => failed,
                },
            };
            done?;
            if self.hands_over {
                return Ok(());
            }
        }
    }

    /// Follows the checks. Most of them change nothing but their own counts, which the next refresh shows.
    fn health_changed(&mut self) -> anyhow::Result<()> {
        let reports = self.reports.borrow_and_update().clone();
        self.checkers.ask_around(&reports);
        let now = self.health(&reports);
        if now == self.health(&self.followed) && self.unknown(&reports) == self.unknown(&self.followed) {
            self.followed = reports;
            return Ok(());
        }
        let broken = self.broken();
        self.vrrp.warn(&Seen { servers: &self.config.virtual_servers, states: &now.0, broken: &broken });
        self.reconcile(false)?;
        self.follow()
    }

    /// Has backends checked at once that clients get no answer from.
    fn suspect(&self, told: &BTreeSet<BackendId>) {
        for server in &self.config.virtual_servers {
            for backend in &server.backends {
                if self.numbers.backend(&Endpoint::of(server, backend)).is_some_and(|id| told.contains(&id)) {
                    self.checkers.suspect(&BackendKey::of(server, backend));
                }
            }
        }
    }

    /// Tells VRRP what its conditions depend on, and everybody what it says.
    fn follow(&mut self) -> anyhow::Result<()> {
        let broken = self.broken();
        let (states, _) = self.health(&self.followed);
        self.vrrp.follow(&Seen { servers: &self.config.virtual_servers, states: &states, broken: &broken });
        self.publish()
    }

    /// Interfaces that have lost a program, and so carry nothing, or not all.
    fn broken(&self) -> BTreeMap<String, String> {
        let lost = |name: &String| {
            let why = match self.host.named(name) {
                Err(_) => "the interface is gone".to_owned(),
                Ok(interface) => match self.dataplane.lost(interface.index) {
                    Some(program) => format!("program {program} is gone from it; a restart of xvip puts it back"),
                    None if interface.xdp.is_none() => "the XDP program is gone from it".to_owned(),
                    None if interface.xdp != self.program => "another XDP program has taken its place".to_owned(),
                    None => return None,
                },
            };
            Some((name.clone(), why))
        };
        self.attached.keys().filter_map(lost).collect()
    }

    /// Looks at the host again: what was cached about ways is void, and a VIP may be gone.
    async fn host_changed(&mut self, lost: bool) -> anyhow::Result<()> {
        if lost {
            self.changes = Changes::subscribe(&self.handle).await?;
        }
        self.host = host::interfaces(&self.handle).await?;
        self.attach_returned()?;
        self.vips.ensure(&self.host).await;
        self.meet().await;
        self.reconcile(true)?;
        self.follow()
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let held = self.config.virtual_servers.iter().zip(&self.carriers).map(|(server, carrier)| {
            let on = |interface: &Interface| interface.addresses.iter().any(|address| address.addr() == server.address);
            server.address.is_loopback() || self.host.named(carrier).is_ok_and(on)
        });
        let held: Vec<bool> = held.collect();
        self.arrive(&held);
        if let Some(sync) = &self.sync {
            let servers = &self.config.virtual_servers;
            let (local, inherits) = (self.host_addresses(), self.dataplane.inherits());
            let backends = syncing::backends(servers, &self.numbers, &local, inherits, &held);
            sync.follow(Backends { turns: self.turns(), ..backends });
        }
        let status = view::status(view::Sources {
            config: &self.config,
            configuration: status::Configuration {
                file: self.file.clone(),
                loaded: self.loaded,
                last_reload: self.last_reload.clone(),
            },
            numbers: &self.numbers,
            begun: self.begun,
            orders: &self.orders,
            applied: &self.applied.desired,
            forwarded_before: self.forwarded_before,
            started: self.started,
            reports: &self.followed,
            attached: &self.attached,
            carriers: &self.carriers,
            held: &held,
            dataplane: &self.dataplane,
            swept: &self.swept.borrow(),
            own: &self.own.borrow(),
            reset: *self.reset.borrow(),
            vrrp: self.vrrp.status(),
            ways: &self.part.ways,
            sync: self.sync.as_ref().map(|sync| syncing::shown(sync.view())),
        })?;
        self.status.send_replace(Arc::new(status));
        Ok(())
    }
}
