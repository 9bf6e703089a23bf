//! The start of the daemon: the order of not lying. VIPs come last.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, mpsc as threads},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use lb_common::abi::MAX_SERVICES;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    Alive, COMMANDS, Node,
    attaching::families,
    closing::Closer,
    ordering,
    placement::{carried, carriers, stays},
    reload,
    resetting::Resetter,
    sweeping, syncing,
    vips::Vips,
    vrrp::{Seen, Vrrp},
};
use crate::{
    admin::{ControlSocket, Status, metrics::MetricsServer, probes::ProbeServer},
    config::{
        hints,
        model::{Config, VirtualServer},
    },
    dataplane::{Connection, Dataplane, Options, Swept},
    health::{Checkers, Reports},
    host::{self, Changes, Forwarding, Interface, preflight},
    reconcile::{Applied, Numbers, Part, Returns},
};

/// Connections that were ended and wait until other nodes are told: more than they are told of at once.
const ENDED: usize = 4096;

impl Node {
    /// Brings everything up. If that fails half-way, what is up goes down again; VIPs come last.
    pub(super) async fn start(config: &Config, file: &Path, hangup: Signal) -> anyhow::Result<Self> {
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

        let mut dataplane = Dataplane::load(&options(config))?;
        let counts = watch::Sender::new(Swept::default());
        let sweeper = dataplane.sweeper()?;
        let (told, callers) = watch::channel(Arc::default());
        let own = watch::Sender::new(Alive::new());
        let own_counts = own.subscribe();
        let closer = Closer::start(dataplane.locals()?, own).context("starting a thread")?;
        let resets = watch::Sender::new(0);
        let reset = resets.subscribe();
        let (over, ended) = threads::sync_channel(ENDED);
        let resetter = Resetter::start(dataplane.ender()?, resets, over).context("starting a thread")?;
        let suspicions = dataplane.suspicions()?;
        let checkers = Checkers::spawn(&config.virtual_servers);
        let reports = checkers.reports();
        let forwarding = Forwarding::enable(carried(config, &host), families(config))?;

        // The tables are empty, but the connections may be those of a former daemon, with what they looked up then.
        let applied = Applied { generation: dataplane.former_generation(), ..Applied::default() };
        let mut numbers = Numbers::of_former(dataplane.former_backends(), Duration::ZERO);
        numbers.follow(&[], &config.virtual_servers, Duration::ZERO)?;
        let timeouts = watch::Sender::new(config.dataplane.timeouts);
        let told = (!config.dataplane.interfaces.is_empty()).then(|| (handle.clone(), told));
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
            vrrp: Vrrp::new(config.vrrp.clone()),
            sync: None,
            commands,
            servers: JoinSet::new(),
            checkers,
            reports,
            followed: Reports::default(),
            suspicions,
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
            returns: Returns::default(),
            room: room(config),
            hands_over: false,
            forwarded_before: 0,
            timeouts,
            swept: counts.subscribe(),
            callers,
            own: own_counts,
            closer,
            part: Part::default(),
            macs: BTreeMap::new(),
            leaves: false,
            held: BTreeSet::new(),
            reset,
            resetter,
            status: watch::Sender::new(Arc::new(Status::starting(started, file))),
            forwarding: vec![forwarding],
        };
        node.servers.spawn(sweeping);
        if let Err(error) = node.bring_up(ended).await {
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
    async fn bring_up(&mut self, ended: threads::Receiver<Connection>) -> anyhow::Result<()> {
        self.servers.spawn(self.dataplane.log()?.pass_on());
        self.attach()?;
        self.attach_hooks()?;
        self.await_health().await?;
        let inherits = self.forward_on_loopback(&Arc::clone(&self.config));
        self.dataplane.take_over(inherits)?;
        self.sync = syncing::start(self.config.sync.as_ref(), &mut self.dataplane, ended)?;
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
        self.meet().await;
        self.reconcile(false)
    }

    /// Puts the VIPs that do not move on their interfaces and announces them.
    pub(super) async fn hold(&mut self) -> anyhow::Result<()> {
        let config = Arc::clone(&self.config);
        let stays = |server: &VirtualServer| stays(&config, server);
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
}

/// What the data plane of a configuration is like.
pub(crate) fn options(config: &Config) -> Options {
    Options {
        max_connections: tracked(config),
        virtual_servers: u32::try_from(room(config)).unwrap_or(u32::MAX),
        bpffs: Some(config.dataplane.bpffs.clone()),
    }
}

/// Virtual servers that there is room for.
fn room(config: &Config) -> usize {
    (config.virtual_servers.len() + reload::SPARE).min(MAX_SERVICES)
}

/// Connections to keep track of: none of packets where no packet is seen.
fn tracked(config: &Config) -> u32 {
    if config.dataplane.interfaces.is_empty() { 1 } else { config.dataplane.max_connections.get() }
}
