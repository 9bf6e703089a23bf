//! Both appliances of deployment C at work: each runs an xvip, and they hold the VIPs of both families among themselves. In direct server
//! return the masters run one too.

use std::{collections::BTreeMap, fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use lb_userspace::{
    admin::{Status, vrrp::State},
    health,
};

use crate::{
    apiserver::Apiserver,
    client::Load,
    lab::Host,
    site::quick,
    topology::{Deployment, Node, Topology},
    xvip::Xvip,
};

/// The one with the higher priority.
pub const A: &str = "ha-lb-a";
pub const B: &str = "ha-lb-b";
pub const NODES: [&str; 2] = [A, B];
/// The VIPs, by the numbers of their virtual routers.
pub const VIPS: [(u8, &str); 2] = [(51, "192.168.2.100"), (52, "fd00:2::100")];
/// A takeover takes less than half a second; a machine that is busy with other tests may take its time.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Where each tells the other of its connections.
const SYNC_PORT: u16 = 9096;

/// What differs from pair to pair.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Lines more in each `[[vrrp]]` of a node.
    pub instance: fn(&Host) -> String,
    /// Lines more in `[dataplane]`.
    pub dataplane: &'static str,
    /// Whether they tell each other of their connections.
    pub synced: bool,
    /// Whether they send packets on as they are, and the masters turn them.
    pub direct: bool,
}

/// What runs ends before the hosts do.
#[derive(Debug)]
pub struct Pair {
    pub daemons: BTreeMap<&'static str, Xvip>,
    /// The masters' own daemons, where packets are sent on as they are.
    pub turning: BTreeMap<String, Xvip>,
    pub apiservers: BTreeMap<String, Apiserver>,
    pub deployment: Deployment,
    setup: Setup,
}

impl Setup {
    /// The VIPs move together.
    pub const USUAL: Self =
        Self { instance: |_| "sync_group = \"both\"\n".to_owned(), dataplane: "", synced: false, direct: false };
}

impl Default for Setup {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Pair {
    /// The VIPs are at A when this returns, and where connections are shared, both know each other.
    pub fn up(name: &str, setup: Setup) -> Result<Self> {
        let runs_xvip = |node: &Node| node.runs_xvip || (setup.direct && node.runs_apiserver);
        let mut pair = Self::of(Topology::C.build_where(name, runs_xvip)?, setup)?;
        for node in NODES {
            pair.start(node)?;
        }
        pair.wait_for(A, State::Master)?;
        pair.wait_for(B, State::Backup)?;
        if setup.synced {
            pair.wait_for_peers()?;
        }
        Ok(pair)
    }

    /// The backends answer; no daemon is started yet.
    pub fn of(deployment: Deployment, setup: Setup) -> Result<Self> {
        let mut apiservers = BTreeMap::new();
        for master in deployment.nodes().iter().filter(|node| node.runs_apiserver) {
            apiservers.insert(master.name.clone(), deployment.start_apiserver(&master.name)?);
        }
        let mut pair = Self { daemons: BTreeMap::new(), turning: BTreeMap::new(), apiservers, deployment, setup };
        if setup.direct {
            for master in pair.apiservers.keys() {
                let configuration = pair.servers(master, "elsewhere = true\n")?;
                pair.turning.insert(master.clone(), Xvip::start_with(&pair.deployment, master, &configuration)?);
            }
        }
        Ok(pair)
    }

    /// The whole file of a node, with quick checks.
    pub fn configuration(&self, node: &str) -> Result<String> {
        let priority = if node == A { 100 } else { 98 };
        let more = (self.setup.instance)(self.host(node));
        let section = |(vrid, vip): (u8, &str)| {
            format!(
                "\n[[vrrp]]\nname = \"vip{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {priority}\naddresses = [\"{vip}\"]\n{more}"
            )
        };
        let sync = if self.setup.synced { self.sync(node)? } else { String::new() };
        Ok(self.servers(node, "")? + &VIPS.map(section).concat() + &sync)
    }

    /// What is not the pair's alone, with lines more in each virtual server.
    fn servers(&self, node: &str, more: &str) -> Result<String> {
        let Setup { dataplane, direct, .. } = self.setup;
        let mode = if direct { "mode = \"dsr\"\n" } else { "" };
        let section = "[[virtual_server]]\n";
        let text = quick(&self.deployment.xvip_config(node)?)
            .replace("[dataplane]\n", &format!("[dataplane]\n{dataplane}"))
            .replace(section, &format!("{section}{mode}{more}"));
        Ok(text)
    }

    fn sync(&self, node: &str) -> Result<String> {
        let key = self.host(node).directory().join("sync.key");
        fs::write(&key, "5a".repeat(32))?;
        let address = |node| anyhow::Ok(self.deployment.node(node)?.v4);
        let (own, other) = (address(node)?, address(other(node))?);
        Ok(format!("\n[sync]\nlisten = \"{own}:{SYNC_PORT}\"\npeers = [\"{other}:{SYNC_PORT}\"]\nkey_file = {key:?}\n"))
    }

    /// Starts a node's daemon, for the first time or again.
    pub fn start(&mut self, node: &'static str) -> Result<()> {
        self.start_as(node, &self.configuration(node)?)
    }

    /// The same with a file of one's own.
    pub fn start_as(&mut self, node: &'static str, configuration: &str) -> Result<()> {
        // Two of them would fight over the control socket.
        self.daemons.remove(node);
        self.daemons.insert(node, Xvip::start_with(&self.deployment, node, configuration)?);
        Ok(())
    }

    /// Takes a node's daemon out, to end it in whatever way: dropped, it is killed.
    pub fn take(&mut self, node: &str) -> Result<Xvip> {
        self.daemons.remove(node).with_context(|| format!("no daemon runs on {node}"))
    }

    pub fn xvip(&self, node: &str) -> &Xvip {
        &self.daemons[node]
    }

    pub fn host(&self, node: &str) -> &Host {
        (self.deployment.host(node)).expect("a host of this deployment")
    }

    /// Waits until a node has this part in all instances, and the addresses where that says.
    pub fn wait_for(&self, node: &str, state: State) -> Result<Status> {
        self.xvip(node).wait_for(&format!("{node} to be {state:?}"), LIMIT, |status| is(status, state))
    }

    /// Waits until a backend is in this state on a node, in every virtual server.
    pub fn wait_for_backend(&self, node: &str, name: &str, state: health::State) -> Result<()> {
        let all = |status: &Status| {
            let mut backends = status.virtual_servers.iter().flat_map(|server| &server.backends);
            backends.all(|backend| backend.name != name || backend.state == state)
        };
        self.xvip(node).wait_for(&format!("{name} to be {state:?}"), LIMIT, all)?;
        Ok(())
    }

    /// Waits until each hears the other's connections.
    pub fn wait_for_peers(&self) -> Result<()> {
        for xvip in self.daemons.values() {
            let connected = |status: &Status| {
                (status.sync.as_ref()).is_some_and(|sync| sync.peers.iter().all(|peer| peer.connected))
            };
            xvip.wait_for("the peer to be there", LIMIT, connected)?;
        }
        Ok(())
    }

    /// Panics where a client is not served in one of the families.
    pub fn assert_serves(&self) {
        for v6 in [false, true] {
            let report = self.deployment.load(v6, Load::sequential(10)).expect("requests can be made");
            assert_eq!(report.good(), 10, "IPv6: {v6}: {report}");
        }
    }

    /// Whether an address is on the host, whatever the daemon says.
    pub fn has(&self, node: &str, vip: &str) -> Result<bool> {
        Ok(self.host(node).addresses()?.contains(&vip.parse::<IpAddr>()?))
    }
}

/// The other one of two nodes.
pub fn other(node: &str) -> &'static str {
    if node == A { B } else { A }
}

/// Whether a status is that of a node in this part.
pub fn is(status: &Status, state: State) -> bool {
    status.vrrp.len() == VIPS.len()
        && status.vrrp.iter().all(|instance| instance.state == state)
        && status.virtual_servers.iter().all(|server| server.held == (state == State::Master))
}
