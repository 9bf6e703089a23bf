//! A deployment at work: its stand-ins answer, one node's xvip carries the VIPs to them, and a client makes requests.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_userspace::health::State;
use tokio::sync::watch;

use crate::{
    apiserver::Apiserver,
    client::{self, Client, EchoPlan, EchoReport, Failure, Load, Report, addresses},
    lab::Host,
    topology::{CLIENT, Deployment, Topology},
    xvip::{Xvip, backends},
};

/// Time between two checks of a site, for tests that wait for one.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Failed checks that take a backend out.
pub const FALL: u32 = 3;
/// From the death of a backend to the last request that may fail for it.
pub const DETECTION: Duration = Duration::from_millis(INTERVAL.as_millis() as u64 * FALL as u64 + 1000);
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// What runs ends before the hosts do.
#[derive(Debug)]
pub struct Site {
    pub xvip: Xvip,
    pub apiservers: BTreeMap<String, Apiserver>,
    pub deployment: Deployment,
}

impl Site {
    /// Builds a deployment and carries it on `node`, with quick checks.
    pub fn up(topology: Topology, name: &str, node: &str) -> Result<Self> {
        Self::up_with(topology, name, node, |configuration| configuration)
    }

    /// The same with a configuration that `edit` has changed.
    pub fn up_with(topology: Topology, name: &str, node: &str, edit: impl FnOnce(String) -> String) -> Result<Self> {
        let deployment = topology.build(name)?;
        let configuration = edit(quick(&deployment.xvip_config(node)?));
        Self::of(deployment, node, &configuration)
    }

    /// Starts everything on hosts that are there already.
    pub fn of(deployment: Deployment, node: &str, configuration: &str) -> Result<Self> {
        let mut apiservers = BTreeMap::new();
        for master in deployment.nodes().iter().filter(|node| node.runs_apiserver) {
            apiservers.insert(master.name.clone(), deployment.start_apiserver(&master.name)?);
        }
        let xvip = Xvip::start_with(&deployment, node, configuration)?;
        let site = Self { xvip, apiservers, deployment };
        site.wait_for_states(State::Up)?;
        Ok(site)
    }

    pub fn client(&self, v6: bool) -> Result<Client> {
        let topology = self.deployment.topology;
        self.deployment.client(topology.endpoint(v6))
    }

    /// Requests to the VIP from the client's host.
    pub fn load(&self, v6: bool, load: Load) -> Result<Report> {
        let client = self.client(v6)?;
        let host = self.deployment.client_host();
        Ok(host.run(|| client::run(&client, load))?)
    }

    /// Who answers each source, by one request from each.
    pub fn map(&self, v6: bool, sources: &[IpAddr]) -> Result<Report> {
        self.load(v6, Load { concurrency: 20, sources: sources.to_vec(), ..Load::sequential(sources.len()) })
    }

    /// Makes requests for as long as `scene` plays.
    pub fn load_during<T>(&self, v6: bool, load: Load, scene: impl FnOnce() -> Result<T>) -> Result<(T, Report)> {
        let (stop, stopped) = watch::channel(false);
        let load = Load { stop: Some(stopped), ..load };
        during(|| self.load(v6, load), stop, scene)
    }

    /// Streams from each of these sources for as long as `scene` plays.
    pub fn echo_during<T>(
        &self,
        v6: bool,
        sources: &[IpAddr],
        scene: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Result<EchoReport, Failure>>)> {
        let (stop, stopped) = watch::channel(false);
        let mut client = self.client(v6)?;
        // Many handshakes at once are seconds of work, and the last one is done when all are.
        client.timeout = Duration::from_secs(60);
        let stream = |source: &IpAddr| {
            let plan = EchoPlan {
                lines: u64::MAX,
                pause: Duration::from_millis(50),
                patience: Duration::from_secs(15),
                source: Some(SocketAddr::new(*source, 0)),
                stop: Some(stopped.clone()),
            };
            client::echo(&client, plan)
        };
        let streams = || {
            let host = self.deployment.client_host();
            let all = || futures_util::future::join_all(sources.iter().map(stream));
            Ok(host.run(all)?)
        };
        during(streams, stop, scene)
    }

    /// Gives the client `count` addresses more, behind its own as behind a router's.
    pub fn sources(&self, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        self.sources_on(CLIENT, v6, count)
    }

    /// The same for another host than the client.
    pub fn sources_on(&self, node: &str, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        let node = self.deployment.node(node)?;
        // Unlike those of other nodes: the last number of this one's address is in them.
        let [.., number] = node.v4.octets();
        let (network, first) = match v6 {
            false => (format!("10.{number}.0.0/16"), IpAddr::from([10, number, 1, 0])),
            true => (format!("fd99:{number}::/64"), format!("fd99:{number}::100").parse()?),
        };
        let [v4_address, v6_address] = node.addresses();
        let router = if v6 { v6_address } else { v4_address };
        // IPv6 lets nobody bind to an address that is local by a route only.
        (self.host(&node.name)).sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        for host in self.deployment.lab.hosts() {
            let line = match host.name() == node.name {
                true => format!("route replace local {network} dev lo"),
                false => format!("route replace {network} via {router}"),
            };
            host.ip(&line)?;
        }
        Ok(addresses(first, count))
    }

    /// Waits until every backend is in this state.
    pub fn wait_for_states(&self, state: State) -> Result<()> {
        let what = format!("every backend to be {state:?}");
        self.xvip.wait_for(&what, SETTLE_LIMIT, |status| {
            let mut all = (status.virtual_servers.iter()).flat_map(|server| &server.backends);
            all.all(|backend| backend.state == state)
        })?;
        Ok(())
    }

    /// Waits until one backend is in this state in every virtual server.
    pub fn wait_for_state(&self, name: &str, state: State) -> Result<()> {
        let what = format!("{name} to be {state:?}");
        self.xvip.wait_for(&what, SETTLE_LIMIT, |status| {
            (backends(status, name).iter()).all(|backend| backend.state == state)
        })?;
        Ok(())
    }

    pub fn apiserver(&self, name: &str) -> Result<&Apiserver> {
        (self.apiservers.get(name)).with_context(|| format!("no apiserver on {name}"))
    }

    /// Starts an apiserver again that was killed.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let started = self.deployment.start_apiserver(name)?;
        self.apiservers.insert(name.to_owned(), started);
        Ok(())
    }

    pub fn host(&self, name: &str) -> &Host {
        (self.deployment.host(name)).expect("a host of this deployment")
    }

    /// One of the data path's counters of events.
    pub fn event(&self, name: &str) -> Result<u64> {
        let status = self.xvip.status()?;
        (status.counters.events.get(name).copied()).with_context(|| format!("no counter {name}"))
    }
}

/// The checks of a configuration at this module's pace.
pub fn quick(configuration: &str) -> String {
    configuration
        .replace("interval = \"2s\"", &format!("interval = \"{}ms\"", INTERVAL.as_millis()))
        .replace("timeout = \"3s\"", "timeout = \"1s\"")
}

/// Runs `work` on a thread of its own until `scene` has ended, and tells it to stop then.
fn during<T, W: Send>(
    work: impl FnOnce() -> Result<W> + Send,
    stop: watch::Sender<bool>,
    scene: impl FnOnce() -> Result<T>,
) -> Result<(T, W)> {
    thread::scope(|scope| {
        let work = scope.spawn(work);
        let stop = Stop(stop);
        let played = scene();
        drop(stop);
        let done = work.join().expect("the work does not panic")?;
        Ok((played?, done))
    })
}

/// Ends the work with the scene, also where that has panicked: its thread is waited for.
struct Stop(watch::Sender<bool>);

impl Drop for Stop {
    fn drop(&mut self) {
        // The work may have ended by itself.
        let _ = self.0.send(true);
    }
}
