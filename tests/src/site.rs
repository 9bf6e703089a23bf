//! A deployment at work: its stand-ins answer, one node's xvip carries the VIPs to them, and a client makes requests.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use lb_userspace::health::State;

use crate::{
    apiserver::Apiserver,
    client::{Client, EchoReport, Failure, Load, Report},
    lab::Host,
    topology::{Deployment, Topology},
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
        self.deployment.client_of(v6)
    }

    /// See [`Deployment::load`].
    pub fn load(&self, v6: bool, load: Load) -> Result<Report> {
        self.deployment.load(v6, load)
    }

    /// See [`Deployment::map`].
    pub fn map(&self, v6: bool, sources: &[IpAddr]) -> Result<Report> {
        self.deployment.map(v6, sources)
    }

    /// See [`Deployment::load_during`].
    pub fn load_during<T>(&self, v6: bool, load: Load, scene: impl FnOnce() -> Result<T>) -> Result<(T, Report)> {
        self.deployment.load_during(v6, load, scene)
    }

    /// See [`Deployment::echo_during`].
    pub fn echo_during<T>(
        &self,
        v6: bool,
        sources: &[IpAddr],
        scene: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Result<EchoReport, Failure>>)> {
        self.deployment.echo_during(v6, sources, scene)
    }

    /// See [`Deployment::sources`].
    pub fn sources(&self, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        self.deployment.sources(v6, count)
    }

    /// See [`Deployment::sources_on`].
    pub fn sources_on(&self, node: &str, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        self.deployment.sources_on(node, v6, count)
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
