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
mod sweeping;
mod syncing;
mod view;
mod vips;
mod vrrp;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use lb_common::abi::{Backend, BackendId, MAX_SERVICES};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use self::{
    attaching::families,
    callers::Caller,
    closing::Closer,
    placement::{carried, moves, ports},
    resetting::Resetter,
    vips::Vips,
    vrrp::{Seen, Vrrp},
};
pub(crate) use self::{
    attaching::hooked,
    leaving::{macs, vips},
    placement::carriers,
};
use crate::{
    admin::{ControlSocket, Status, metrics::MetricsServer, probes::ProbeServer, socket::Command, status},
    config::{
        hints,
        model::{self, Config, VirtualServer},
    },
    dataplane::{Change, Dataplane, Mode, Options, Swept},
    health::{BackendKey, Checkers, Reports, State},
    host::{self, Changes, Forwarding, Handle, Interface, Interfaces, preflight},
    reconcile::{Applied, Inputs, Numbers, Orders, desired, plan, service},
    sync::Sync,
};

/// How often the counters in the published status are refreshed.
const REFRESH: Duration = Duration::from_secs(1);
/// Requests that wait for the loop, which takes them at once; who finds no room is told to try again.
const COMMANDS: usize = 4;

/// Connections that are alive, by backend.
type Alive = BTreeMap<BackendId, u64>;

/// What the checks say: of configured backends in the order of the configuration, and of removed ones by number.
type Health = (Vec<Vec<State>>, BTreeMap<BackendId, State>);

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
        error = node.serve() => Err(error),
    };
    match &ended {
        Ok(signal) => log::info!("{signal}: leaving"),
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
struct Node<'a> {
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
    vrrp: Vrrp<'a>,
    /// `None` where connections stay on this node.
    sync: Option<Sync>,
    commands: mpsc::Receiver<Command>,
    servers: JoinSet<()>,
    checkers: Checkers,
    reports: watch::Receiver<Reports>,
    /// The reports that the tables follow: what is shown must not be ahead of what packets meet.
    followed: Reports,
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
    /// Virtual servers that there is room for.
    room: usize,
    /// Packets of backends that are gone.
    forwarded_before: u64,
    timeouts: watch::Sender<model::Timeouts>,
    swept: watch::Receiver<Swept>,
    /// The same of this host's own sockets.
    own: watch::Receiver<Alive>,
    /// Who is told one by one when a VIP comes here.
    callers: watch::Receiver<Arc<Vec<Caller>>>,
    closer: Closer,
    /// Clients that were told that their backend is down.
    reset: watch::Receiver<u64>,
    resetter: Resetter,
    status: watch::Sender<Arc<Status>>,
    forwarding: Vec<Forwarding>,
}

impl<'a> Node<'a> {
    /// Brings everything up. If that fails half-way, what is up goes down again; VIPs come last.
    async fn start(config: &'a Config, file: &Path, hangup: Signal) -> anyhow::Result<Self> {
        hints(config).iter().for_each(|hint| log::warn!("{hint}"));
        let parent = config.dataplane.bpffs.parent().unwrap_or(&config.dataplane.bpffs);
        preflight::check(parent)?;
        let socket = ControlSocket::bind(&config.admin.control_socket)?;
        let metrics = match config.admin.metrics {
            Some(address) => Some(MetricsServer::bind(address).await?),
            None => None,
        };
        let probes = match config.admin.healthz {
            Some(address) => Some(ProbeServer::bind(address).await?),
            None => None,
        };

        let handle = host::connect().context("opening a netlink socket")?;
        let changes = Changes::subscribe(&handle).await?;
        let host = host::interfaces(&handle).await?;
        let carriers = carriers(config, &host)?;

        let room = (config.virtual_servers.len() + reload::SPARE).min(MAX_SERVICES);
        let mut dataplane = Dataplane::load(&Options {
            max_connections: tracked(config),
            virtual_servers: u32::try_from(room).unwrap_or(u32::MAX),
            bpffs: Some(config.dataplane.bpffs.clone()),
        })?;
        let counts = watch::Sender::new(Swept::default());
        let sweeper = dataplane.sweeper()?;
        let (told, callers) = watch::channel(Arc::default());
        let own = watch::Sender::new(Alive::new());
        let own_counts = own.subscribe();
        let closer = Closer::start(dataplane.locals()?, own).context("starting a thread")?;
        let resets = watch::Sender::new(0);
        let reset = resets.subscribe();
        let resetter = Resetter::start(dataplane.ender()?, resets).context("starting a thread")?;
        let checkers = Checkers::spawn(&config.virtual_servers);
        let reports = checkers.reports();
        let forwarding = Forwarding::enable(carried(config, &host), families(config))?;

        // The tables are empty, but the connections may be those of a former daemon, with what they looked up then.
        let applied = Applied { generation: dataplane.former_generation(), ..Applied::default() };
        let mut numbers = Numbers::of_former(dataplane.former_backends(), Duration::ZERO);
        numbers.follow(&[], &config.virtual_servers, Duration::ZERO)?;
        let timeouts = watch::Sender::new(config.dataplane.timeouts);
        let told = (!config.vrrp.is_empty()).then(|| (handle.clone(), told));
        let sweeping = sweeping::run(sweeper, timeouts.subscribe(), counts.clone(), told);
        let started = SystemTime::now();
        let (ask, commands) = mpsc::channel(COMMANDS);
        let mut node = Self {
            file: file.to_owned(),
            config: Arc::new(config.clone()),
            loaded: started,
            last_reload: None,
            hangup,
            started,
            vips: Vips::new(handle.clone()),
            handle,
            vrrp: Vrrp::new(&config.vrrp),
            sync: None,
            commands,
            servers: JoinSet::new(),
            checkers,
            reports,
            followed: Reports::default(),
            changes,
            dataplane,
            attached: BTreeMap::new(),
            program: None,
            carriers,
            host,
            applied,
            numbers,
            begun: Instant::now(),
            orders: ordering::lasting(config),
            room,
            forwarded_before: 0,
            timeouts,
            swept: counts.subscribe(),
            callers,
            own: own_counts,
            closer,
            reset,
            resetter,
            status: watch::Sender::new(Arc::new(Status::starting(started, file))),
            forwarding: vec![forwarding],
        };
        node.servers.spawn(sweeping);
        if let Err(error) = node.bring_up().await {
            node.stop().await;
            return Err(error);
        }

        // Answered from here on: who asks sees a node that is up.
        node.servers.spawn(socket.serve(node.status.subscribe(), ask));
        if let Some(metrics) = metrics {
            node.servers.spawn(metrics.serve(node.status.subscribe()));
        }
        if let Some(probes) = probes {
            node.servers.spawn(probes.serve(node.status.subscribe()));
        }
        let interfaces = match &config.dataplane.interfaces[..] {
            [] => "no interface".to_owned(),
            names => names.join(", "),
        };
        log::info!("carrying {} virtual servers on {interfaces}", config.virtual_servers.len());
        Ok(node)
    }

    /// From the programs on the interfaces to the VIPs. Until the first tables are there, a former daemon's programs go on with the old
    /// ones, and where there are none, everything passes: connections must not be reset because no backend is known yet.
    async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.servers.spawn(self.dataplane.log()?.pass_on());
        self.attach()?;
        self.attach_hooks()?;
        self.await_health().await?;
        self.dataplane.take_over()?;
        self.sync = syncing::start(self.config.sync.as_ref(), &mut self.dataplane)?;
        self.hold().await?;
        self.vrrp.settle().await;
        let broken = self.broken();
        let (states, _) = self.health(&self.followed);
        let seen = Seen { servers: &self.config.virtual_servers, states: &states, broken: &broken };
        self.vrrp.start(&seen, &mut self.dataplane)?;
        self.publish()
    }

    /// Waits until each backend was checked once, so that the VIP is not held by a node that knows of nobody to send to. A check that
    /// takes longer than it may is not waited for.
    async fn await_health(&mut self) -> anyhow::Result<()> {
        let longest = self.config.virtual_servers.iter().map(|server| server.check.timeout).max().unwrap_or_default();
        let known = |reports: &Reports| reports.values().all(|report| report.last_check.is_some());
        if let Ok(Err(_)) = timeout(longest, self.reports.wait_for(known)).await {
            anyhow::bail!("the health checks have ended unexpectedly");
        }
        self.reconcile(false)
    }

    /// Puts the VIPs that do not move on their interfaces and announces them.
    async fn hold(&mut self) -> anyhow::Result<()> {
        let config = Arc::clone(&self.config);
        let stays = |server: &VirtualServer| !server.address.is_loopback() && !moves(&config, server);
        let all = config.virtual_servers.iter().zip(&self.carriers);
        for (server, carrier) in all.filter(|(server, _)| stays(server)) {
            self.vips.hold(server.address, self.host.named(carrier)?).await?;
        }
        // What a former daemon has left for connections that go on.
        for (endpoint, _) in self.numbers.removed() {
            let has = |interface: &&Interface| interface.addresses.iter().any(|net| net.addr() == endpoint.vip());
            let named = config.virtual_servers.iter().any(|server| server.address == endpoint.vip());
            if let Some(interface) = self.host.iter().find(has).filter(|_| !named && !endpoint.vip().is_loopback()) {
                self.vips.hold(endpoint.vip(), interface).await?;
            }
        }
        self.host = host::interfaces(&self.handle).await?;
        Ok(())
    }

    /// Keeps the tables true until something fails. Cancel-safe between changes: each is applied without awaiting.
    async fn serve(&mut self) -> anyhow::Error {
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                changed = self.reports.changed() => match changed {
                    Ok(()) => self.health_changed(),
                    Err(_) => Err(anyhow::anyhow!("the health checks have ended unexpectedly")),
                },
                error = self.checkers.died() => Err(anyhow::Error::from(error).context("a health check has ended unexpectedly")),
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
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Follows the checks. Most of them change nothing but their own counts, which the next refresh shows.
    fn health_changed(&mut self) -> anyhow::Result<()> {
        let reports = self.reports.borrow_and_update().clone();
        let now = self.health(&reports);
        if now == self.health(&self.followed) {
            self.followed = reports;
            return Ok(());
        }
        let broken = self.broken();
        self.vrrp.warn(&Seen { servers: &self.config.virtual_servers, states: &now.0, broken: &broken });
        self.reconcile(false)?;
        self.follow()
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
        self.reconcile(true)?;
        self.follow()
    }

    /// Brings the tables to what configuration, health and host ask for.
    fn reconcile(&mut self, moved: bool) -> anyhow::Result<()> {
        let servers = &self.orders.weighted(&self.config.virtual_servers);
        let reports = self.reports.borrow_and_update().clone();
        let (states, removed) = self.health(&reports);
        let takes = |(backend, state): (&model::Backend, &State)| *state == State::Up && backend.weight > 0;
        let served =
            servers.iter().zip(&states).filter(|(server, states)| server.backends.iter().zip(*states).any(takes));
        let served: BTreeSet<_> = served.map(|(server, _)| service(server)).collect();
        self.numbers.relieve(|service| served.contains(service));
        let (local, macs) = (self.host_addresses(), &self.host.macs() | &macs(&self.config));
        let ports = ports(&self.attached, &self.host);
        let numbers = &self.numbers;
        let wanted = desired(&Inputs {
            servers,
            states: &states,
            numbers,
            removed: &removed,
            local: &local,
            macs: &macs,
            ports: &ports,
        });
        let (changes, applied) = plan(&wanted, &self.applied, moved);
        self.dataplane.apply(&changes)?;
        let lost: BTreeSet<BackendId> = changes.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            self.closer.close(lost);
        }
        let down: BTreeMap<BackendId, Backend> = changes.iter().filter_map(down).collect();
        if !down.is_empty() {
            self.resetter.reset(down, self.host.local_addresses());
        }
        self.applied = applied;
        self.followed = reports;
        Ok(())
    }

    /// The host's addresses without the VIPs: a backend cannot listen on one.
    fn host_addresses(&self) -> BTreeSet<std::net::IpAddr> {
        let mut local = self.host.local_addresses();
        for server in &self.config.virtual_servers {
            local.remove(&server.address);
        }
        for net in self.config.vrrp.iter().flat_map(|instance| &instance.addresses) {
            local.remove(&net.addr());
        }
        for (endpoint, _) in self.numbers.removed() {
            local.remove(&endpoint.vip());
        }
        local
    }

    fn health(&self, reports: &Reports) -> Health {
        let state = |server: &VirtualServer, backend: &model::Backend| {
            let report = reports.get(&BackendKey::of(server, backend))?;
            report.last_check.is_some().then_some(report.state)
        };
        // Of what was not checked yet nobody knows whether it lives: it gets nothing new, and keeps what it has.
        let of = |server: &VirtualServer| {
            let ordered = |backend: &model::Backend| {
                self.orders.state(server, backend, state(server, backend).unwrap_or(State::Draining))
            };
            server.backends.iter().map(ordered).collect()
        };
        let removed = self.numbers.removed().filter_map(|(_, removed)| {
            let server = removed.was.as_ref()?;
            Some((removed.id, state(server, server.backends.first()?)?))
        });
        (self.config.virtual_servers.iter().map(of).collect(), removed.collect())
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let held = self.config.virtual_servers.iter().zip(&self.carriers).map(|(server, carrier)| {
            let on = |interface: &Interface| interface.addresses.iter().any(|address| address.addr() == server.address);
            server.address.is_loopback() || self.host.named(carrier).is_ok_and(on)
        });
        let held: Vec<bool> = held.collect();
        if let Some(sync) = &self.sync {
            let servers = &self.config.virtual_servers;
            sync.follow(syncing::backends(servers, &self.numbers, &self.host_addresses(), &held));
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
            sync: self.sync.as_ref().map(|sync| syncing::shown(sync.view())),
        })?;
        self.status.send_replace(Arc::new(status));
        Ok(())
    }
}

/// A backend whose connections are lost by a change.
fn lost(change: &Change) -> Option<BackendId> {
    match change {
        Change::Backend(id, backend) if backend.is(Backend::DOWN) || !backend.is(Backend::PRESENT) => Some(*id),
        _ => None,
    }
}

/// A backend whose clients are told that it is down. One that was taken out of the configuration keeps those that go by the VIP.
fn down(change: &Change) -> Option<(BackendId, Backend)> {
    match change {
        Change::Backend(id, backend) if backend.is(Backend::DOWN) => Some((*id, *backend)),
        _ => None,
    }
}

/// Connections to keep track of: none of packets where no packet is seen.
fn tracked(config: &Config) -> u32 {
    if config.dataplane.interfaces.is_empty() { 1 } else { config.dataplane.max_connections.get() }
}
