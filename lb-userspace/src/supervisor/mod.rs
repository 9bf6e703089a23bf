//! The daemon from start to end: the order in which things come up, the one loop that keeps the tables true, and the order in
//! which everything is taken away again.

mod attaching;
mod callers;
mod closing;
mod leaving;
mod placement;
mod sweeping;
mod view;
mod vips;
mod vrrp;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use lb_common::abi::{Backend, BackendId};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use self::{
    attaching::families,
    callers::Caller,
    closing::Closer,
    placement::{carried, moves, ports},
    vips::Vips,
    vrrp::{Seen, Vrrp},
};
pub(crate) use self::{attaching::hooked, leaving::vips, placement::carriers};
use crate::{
    admin::{ControlSocket, Status, metrics::MetricsServer, probes::ProbeServer, socket::Command},
    config::{
        hints,
        model::{Config, VirtualServer},
    },
    dataplane::{Change, Dataplane, Mode, Options, Swept},
    health::{Checkers, Reports, State},
    host::{self, Changes, Forwarding, Handle, Interface, Interfaces, preflight},
    reconcile::{Applied, Inputs, desired, plan},
};

/// How often the counters in the published status are refreshed.
const REFRESH: Duration = Duration::from_secs(1);
/// Requests that wait for the loop, which takes them at once; who finds no room is told to try again.
const COMMANDS: usize = 4;

/// Connections that are alive, by backend.
type Alive = BTreeMap<BackendId, u64>;

/// Runs until SIGTERM or SIGINT. Whatever was added to the host is removed before it returns, on failure too.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    // Before anything is touched: a signal during the start must not end the process half-way.
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut node = Node::start(config).await?;
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
    config: &'a Config,
    started: SystemTime,
    handle: Handle,
    /// Those that do not move.
    vips: Vips,
    vrrp: Vrrp<'a>,
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
    swept: watch::Receiver<Swept>,
    /// The same of this host's own sockets.
    own: watch::Receiver<Alive>,
    /// Who is told one by one when a VIP comes here.
    callers: watch::Receiver<Arc<Vec<Caller>>>,
    closer: Closer,
    status: watch::Sender<Arc<Status>>,
    forwarding: Vec<Forwarding>,
}

impl<'a> Node<'a> {
    /// Brings everything up. If that fails half-way, what is up goes down again; VIPs come last.
    async fn start(config: &'a Config) -> anyhow::Result<Self> {
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

        let mut dataplane = Dataplane::load(&Options {
            max_connections: tracked(config),
            virtual_servers: u32::try_from(config.virtual_servers.len()).unwrap_or(u32::MAX),
            bpffs: Some(config.dataplane.bpffs.clone()),
        })?;
        let counts = watch::Sender::new(Swept::default());
        let sweeper = dataplane.sweeper()?;
        let (told, callers) = watch::channel(Arc::default());
        let own = watch::Sender::new(Alive::new());
        let own_counts = own.subscribe();
        let closer = Closer::start(dataplane.locals()?, own).context("starting a thread")?;
        let checkers = Checkers::spawn(&config.virtual_servers);
        let reports = checkers.reports();
        let forwarding = Forwarding::enable(carried(config, &host), families(config))?;

        // The tables are empty, but the connections may be those of a former daemon, with what they looked up then.
        let applied = Applied { generation: dataplane.former_generation(), ..Applied::default() };
        let started = SystemTime::now();
        let (ask, commands) = mpsc::channel(COMMANDS);
        let mut node = Self {
            config,
            started,
            vips: Vips::new(handle.clone()),
            handle: handle.clone(),
            vrrp: Vrrp::new(&config.vrrp),
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
            swept: counts.subscribe(),
            callers,
            own: own_counts,
            closer,
            status: watch::Sender::new(Arc::new(Status::starting(started))),
            forwarding: vec![forwarding],
        };
        let told = (!config.vrrp.is_empty()).then_some((handle, told));
        node.servers.spawn(sweeping::run(sweeper, config.dataplane.timeouts, counts, told));
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
        self.hold().await?;
        self.vrrp.settle().await;
        let broken = self.broken();
        let states = states(self.config, &self.followed);
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
        let config = self.config;
        let stays = |server: &VirtualServer| !server.address.is_loopback() && !moves(config, server);
        let all = config.virtual_servers.iter().zip(&self.carriers);
        for (server, carrier) in all.filter(|(server, _)| stays(server)) {
            self.vips.hold(server.address, self.host.named(carrier)?).await?;
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
                Some(Command::Release(name)) = self.commands.recv() => {
                    self.vrrp.release(name.as_deref());
                    Ok(())
                }
                _ = refresh.tick() => self.publish(),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Follows the checks. Most of them change nothing but their own counts, which the next refresh shows.
    fn health_changed(&mut self) -> anyhow::Result<()> {
        let now = states(self.config, &self.reports.borrow_and_update());
        if now == states(self.config, &self.followed) {
            return Ok(());
        }
        let broken = self.broken();
        self.vrrp.warn(&Seen { servers: &self.config.virtual_servers, states: &now, broken: &broken });
        self.reconcile(false)?;
        self.follow()
    }

    /// Tells VRRP what its conditions depend on, and everybody what it says.
    fn follow(&mut self) -> anyhow::Result<()> {
        let broken = self.broken();
        let states = states(self.config, &self.followed);
        self.vrrp.follow(&Seen { servers: &self.config.virtual_servers, states: &states, broken: &broken });
        self.publish()
    }

    /// Interfaces that have lost the program, and so carry nothing.
    fn broken(&self) -> BTreeMap<String, String> {
        let lost = |name: &String| {
            let why = match self.host.named(name) {
                Err(_) => "the interface is gone",
                Ok(interface) if interface.xdp.is_none() => "the XDP program is gone from it",
                Ok(interface) if interface.xdp != self.program => "another XDP program has taken its place",
                Ok(_) => return None,
            };
            Some((name.clone(), why.to_owned()))
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
        let config = self.config;
        let reports = self.reports.borrow_and_update().clone();
        let states = states(config, &reports);
        let local = self.host_addresses();
        let ports = ports(&self.attached, &self.host);
        let wanted =
            desired(&Inputs { servers: &config.virtual_servers, states: &states, local: &local, ports: &ports })?;
        let (changes, applied) = plan(&wanted, &self.applied, moved);
        self.dataplane.apply(&changes)?;
        let lost: BTreeSet<BackendId> = changes.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            self.closer.close(lost);
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
        local
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let held = self.config.virtual_servers.iter().zip(&self.carriers).map(|(server, carrier)| {
            let on = |interface: &Interface| interface.addresses.iter().any(|address| address.addr() == server.address);
            server.address.is_loopback() || self.host.named(carrier).is_ok_and(on)
        });
        let held: Vec<bool> = held.collect();
        let status = view::status(view::Sources {
            config: self.config,
            started: self.started,
            reports: &self.followed,
            attached: &self.attached,
            carriers: &self.carriers,
            held: &held,
            dataplane: &self.dataplane,
            swept: &self.swept.borrow(),
            own: &self.own.borrow(),
            vrrp: self.vrrp.status(),
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

/// Connections to keep track of: none of packets where no packet is seen.
fn tracked(config: &Config) -> u32 {
    if config.dataplane.interfaces.is_empty() { 1 } else { config.dataplane.max_connections.get() }
}

/// Health in the order of the configuration.
fn states(config: &Config, reports: &Reports) -> Vec<Vec<State>> {
    let of = |server: &VirtualServer| {
        let state = |backend: &crate::config::model::Backend| {
            reports.get(&view::key(server, backend)).map_or(State::Down, |report| report.state)
        };
        server.backends.iter().map(state).collect()
    };
    config.virtual_servers.iter().map(of).collect()
}
