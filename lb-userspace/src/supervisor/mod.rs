//! The daemon from start to end: the order in which things come up, the one loop that keeps the tables true, and the order in
//! which everything is taken away again.

mod sweeping;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use lb_common::{abi::Port, wire::Tags};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    admin::{ControlSocket, Status, metrics::MetricsServer},
    config::model::{Config, XdpMode},
    dataplane::{Dataplane, Mode, Options, Swept},
    health::{Checkers, Reports, State},
    host::{self, Announcer, Changes, Forwarding, Handle, Interface, Interfaces, Vip, forwarding::Families, preflight},
    reconcile::{Applied, Inputs, desired, plan},
};

/// How often the counters in the published status are refreshed.
const REFRESH: Duration = Duration::from_secs(1);

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
    node.stop().await;
    ended.map(drop)
}

/// What the daemon holds. The order of the fields is the order in which they end.
struct Node<'a> {
    config: &'a Config,
    started: SystemTime,
    handle: Handle,
    /// VIPs by virtual server; several virtual servers may share one.
    vips: Vec<Vip>,
    announcements: JoinSet<()>,
    servers: JoinSet<()>,
    checkers: Checkers,
    reports: watch::Receiver<Reports>,
    /// The reports that the tables follow: what is shown must not be ahead of what packets meet.
    followed: Reports,
    changes: Changes,
    dataplane: Dataplane,
    attached: BTreeMap<String, Mode>,
    carriers: Vec<String>,
    host: Interfaces,
    applied: Applied,
    swept: watch::Receiver<Swept>,
    status: watch::Sender<Arc<Status>>,
    _forwarding: Forwarding,
}

impl<'a> Node<'a> {
    /// Brings everything up. If that fails half-way, what is up goes down again; VIPs come last.
    async fn start(config: &'a Config) -> anyhow::Result<Self> {
        let parent = config.dataplane.bpffs.parent().unwrap_or(&config.dataplane.bpffs);
        preflight::check(parent)?;
        let socket = ControlSocket::bind(&config.admin.control_socket)?;
        let metrics = match config.admin.metrics {
            Some(address) => Some(MetricsServer::bind(address).await?),
            None => None,
        };

        let handle = host::connect().context("opening a netlink socket")?;
        let changes = Changes::subscribe(&handle).await?;
        let host = host::interfaces(&handle).await?;
        let carriers = carriers(config, &host)?;

        let mut dataplane = Dataplane::load(&Options {
            max_connections: config.dataplane.max_connections.get(),
            virtual_servers: u32::try_from(config.virtual_servers.len()).unwrap_or(u32::MAX),
            bpffs: Some(config.dataplane.bpffs.clone()),
        })?;
        let counts = watch::Sender::new(Swept::default());
        let sweeper = dataplane.sweeper()?;
        let checkers = Checkers::spawn(&config.virtual_servers);
        let reports = checkers.reports();
        let families = Families {
            ipv4: config.virtual_servers.iter().any(|server| server.address.is_ipv4()),
            ipv6: config.virtual_servers.iter().any(|server| server.address.is_ipv6()),
        };
        let forwarding = Forwarding::enable(carried(config, &host), families)?;

        let started = SystemTime::now();
        let mut node = Self {
            config,
            started,
            handle,
            vips: Vec::new(),
            announcements: JoinSet::new(),
            servers: JoinSet::new(),
            checkers,
            reports,
            followed: Reports::default(),
            changes,
            dataplane,
            attached: BTreeMap::new(),
            carriers,
            host,
            applied: Applied::default(),
            swept: counts.subscribe(),
            status: watch::Sender::new(Arc::new(Status::starting(started))),
            _forwarding: forwarding,
        };
        node.servers.spawn(sweeping::run(sweeper, config.dataplane.timeouts, counts));
        if let Err(error) = node.bring_up().await {
            node.stop().await;
            return Err(error);
        }

        // Answered from here on: who asks sees a node that is up.
        node.servers.spawn(socket.serve(node.status.subscribe()));
        if let Some(metrics) = metrics {
            node.servers.spawn(metrics.serve(node.status.subscribe()));
        }
        log::info!(
            "carrying {} virtual servers on {}",
            config.virtual_servers.len(),
            config.dataplane.interfaces.join(", ")
        );
        Ok(node)
    }

    /// From the programs on the interfaces to the VIPs. Until the first tables are there, the programs let everything pass: a daemon that
    /// takes over from another must not reset its connections because no backend is known yet.
    async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.servers.spawn(self.dataplane.log()?.pass_on());
        self.attach()?;
        self.await_health().await?;
        self.hold().await?;
        self.publish()
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        let wanted = match self.config.dataplane.mode {
            XdpMode::Auto => None,
            XdpMode::Native => Some(Mode::Native),
            XdpMode::Generic => Some(Mode::Generic),
        };
        for name in &self.config.dataplane.interfaces {
            let interface = self.host.named(name)?;
            let mode = self.dataplane.attach(name, interface.index, wanted, interface.xdp)?;
            self.attached.insert(name.clone(), mode);
        }
        Ok(())
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

    /// Puts the VIPs on their interfaces and announces them.
    async fn hold(&mut self) -> anyhow::Result<()> {
        for (server, carrier) in self.config.virtual_servers.iter().zip(&self.carriers) {
            let held = |vip: &Vip| vip.address() == server.address && vip.interface() == carrier;
            if self.vips.iter().any(held) {
                continue;
            }
            let interface = self.host.named(carrier)?;
            self.vips.push(Vip::hold(&self.handle, server.address, interface).await?);
            announce(&mut self.announcements, interface, server.address);
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
        self.reconcile(false)?;
        self.publish()
    }

    /// Looks at the host again: what was cached about ways is void, and a VIP may be gone.
    async fn host_changed(&mut self, lost: bool) -> anyhow::Result<()> {
        if lost {
            self.changes = Changes::subscribe(&self.handle).await?;
        }
        self.host = host::interfaces(&self.handle).await?;
        for vip in &mut self.vips {
            match vip.ensure().await {
                Ok(true) => {
                    log::warn!("VIP {} was taken from {}: put back", vip.address(), vip.interface());
                    if let Ok(interface) = self.host.named(vip.interface()) {
                        announce(&mut self.announcements, interface, vip.address());
                    }
                }
                Ok(false) => {}
                // The interface may be gone for the moment; the next change brings another try.
                Err(error) => log::warn!("VIP {}: {error}", vip.address()),
            }
        }
        self.reconcile(true)?;
        self.publish()
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
        local
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let held = self.config.virtual_servers.iter().zip(&self.carriers).map(|(server, carrier)| {
            let on = |interface: &Interface| interface.addresses.iter().any(|address| address.addr() == server.address);
            self.host.named(carrier).is_ok_and(on)
        });
        let held: Vec<bool> = held.collect();
        let status = view::status(&view::Sources {
            config: self.config,
            started: self.started,
            reports: &self.followed,
            attached: &self.attached,
            carriers: &self.carriers,
            held: &held,
            dataplane: &self.dataplane,
            swept: &self.swept.borrow(),
        })?;
        self.status.send_replace(Arc::new(status));
        Ok(())
    }

    async fn release(&mut self) {
        for vip in self.vips.drain(..) {
            let address = vip.address();
            if let Err(error) = vip.release().await {
                log::error!("removing VIP {address}: {error}");
            }
        }
    }

    /// Gives the VIPs back first: nobody should be drawn to a node that no longer forwards. The rest goes by being dropped.
    async fn stop(mut self) {
        self.announcements.shutdown().await;
        self.release().await;
        self.servers.shutdown().await;
        self.checkers.stop().await;
    }
}

/// The interface that each virtual server's VIP is put on.
pub(crate) fn carriers(config: &Config, host: &Interfaces) -> anyhow::Result<Vec<String>> {
    let carrier = |server: &crate::config::model::VirtualServer| {
        let named = server.interface.as_ref().map(std::slice::from_ref);
        let candidates = named.unwrap_or(&config.dataplane.interfaces);
        let found = host.carrier(server.address, candidates);
        let found = found.with_context(|| format!("virtual server \"{}\"", server.name))?;
        if !carried(config, host).any(|name| name == found.name) {
            bail!(
                "virtual server \"{}\": interface {} does not get the XDP program, so nothing would carry its traffic. Add {} (or, if it is a VLAN, \
                 the interface below it) to dataplane.interfaces.",
                server.name,
                found.name,
                found.name
            );
        }
        Ok(found.name.clone())
    };
    for name in &config.dataplane.interfaces {
        host.named(name)?;
    }
    config.virtual_servers.iter().map(carrier).collect()
}

/// The interfaces with the program, and the VLANs on them.
fn carried<'a>(config: &'a Config, host: &'a Interfaces) -> impl Iterator<Item = &'a str> {
    let below = config.dataplane.interfaces.iter().filter_map(|name| host.named(name).ok());
    below.flat_map(|interface| {
        let vlans = host.vlans_on(interface.index).map(|vlan| vlan.name.as_str());
        std::iter::once(interface.name.as_str()).chain(vlans)
    })
}

/// Health in the order of the configuration.
fn states(config: &Config, reports: &Reports) -> Vec<Vec<State>> {
    let of = |server: &crate::config::model::VirtualServer| {
        let state = |backend: &crate::config::model::Backend| {
            reports.get(&view::key(server, backend)).map_or(State::Down, |report| report.state)
        };
        server.backends.iter().map(state).collect()
    };
    config.virtual_servers.iter().map(of).collect()
}

/// The interfaces that the data plane may send from, and the VLANs on them.
fn ports(attached: &BTreeMap<String, Mode>, host: &Interfaces) -> BTreeMap<Port, Port> {
    let mut ports = BTreeMap::new();
    let plain = |interface: u32| Port { interface, tags: Tags(0) };
    // A driver cannot be sent to from another driver's receive path unless it has native XDP itself: the kernel sends there.
    let mixed = attached.values().any(|mode| *mode == Mode::Native);
    let reachable = attached.iter().filter(|(_, mode)| !mixed || **mode == Mode::Native);
    for interface in reachable.filter_map(|(name, _)| host.named(name).ok()) {
        ports.insert(plain(interface.index), plain(interface.index));
        for vlan in host.vlans_on(interface.index) {
            if let Some(tag) = &vlan.vlan {
                let tagged = Port { interface: interface.index, tags: Tags::single(tag.id) };
                ports.insert(tagged, plain(vlan.index));
                ports.insert(plain(vlan.index), tagged);
            }
        }
    }
    ports
}

/// Tells the segment that the VIP is here now.
fn announce(tasks: &mut JoinSet<()>, interface: &Interface, vip: std::net::IpAddr) {
    match Announcer::new(interface, vip) {
        Ok(Some(announcer)) => {
            tasks.spawn(async move { announcer.burst().await });
        }
        Ok(None) => {}
        Err(error) => log::warn!("announcing VIP {vip} on {}: {error}", interface.name),
    }
}
