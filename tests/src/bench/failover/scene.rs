//! Two holders of a VIP, the ways in which one of them can be lost, and who watches: deployment C, one system on both holders.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{Cell, Event, Options, Profile, System};
use crate::{
    apiserver::Apiserver,
    lab::{Host, Mac, Process},
    peer::{Keepalived, Proxy, script},
    site::quick,
    topology::{Deployment, Topology},
    wait,
    watch::{self, Claim, Echo, PERIOD, Prober, between},
    xvip::Xvip,
};

/// The node that holds the VIP at first, by its higher priority.
const MASTER: &str = "ha-lb-a";
const BACKUP: &str = "ha-lb-b";
/// Whose neighbour table nobody measures.
const PROBER: &str = "worker-1";
const PRIORITIES: [(&str, u8); 2] = [(MASTER, 100), (BACKUP, 98)];
const SERVICE_PORT: u16 = 16443;

/// For both daemons to come up and the master to hold the VIP.
const START_LIMIT: Duration = Duration::from_secs(30);
/// For another node to answer, or the client to be answered again.
pub(super) const LIMIT: Duration = Duration::from_secs(90);
/// Nothing has changed for this long: steady.
const STEADY: Duration = Duration::from_millis(300);
/// What was announced this long after the first announcement belongs to the first burst.
const BURST: Duration = Duration::from_millis(100);
const STALL: Duration = Duration::from_millis(30);
/// From the transition until owners are counted, and for how long they are.
const GRACE: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_secs(1);

/// What one run gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) time: Duration,
    pub(super) owners: usize,
}

/// A daemon that holds the VIP or waits for it.
#[derive(Debug)]
enum Daemon {
    Keepalived { daemon: Keepalived, _proxy: Option<Proxy> },
    Xvip(Xvip),
}

/// Hosts for one system. What runs is the run's.
#[derive(Debug)]
pub(super) struct Scene {
    client: Echo,
    prober: Prober,
    system: System,
    _apiservers: Vec<Apiserver>,
    deployment: Deployment,
}

impl Scene {
    pub(super) fn build(system: System) -> Result<Self> {
        let deployment = Topology::C.build("failover")?;
        let vip = deployment.vip();
        let apiservers = deployment.start_apiservers()?;
        let prober = Prober::start(deployment.host(PROBER)?, deployment.node(PROBER)?.v4, vip)?;
        let client = Echo::start(deployment.client_host(), vip)?;
        Ok(Self { client, prober, system, _apiservers: apiservers, deployment })
    }

    /// One run from two stopped daemons to two stopped daemons.
    pub(super) fn run(&self, cell: &Cell, options: &Options) -> Result<Sample> {
        let sample = self.play(cell, options);
        self.restore().and(sample)
    }

    fn play(&self, cell: &Cell, options: &Options) -> Result<Sample> {
        self.prober.forget();
        self.client.forget();
        let [master, _backup] = self.start(cell)?;
        self.settle()?;
        // Advertisements come at some time of their interval.
        thread::sleep(cell.interval().mul_f64(fastrand::f64()));
        let (host, mac) = (self.host(MASTER)?, self.mac(MASTER)?);
        let begin = SystemTime::now();
        match cell.event {
            Event::PowerOff => {
                host.unplug()?;
                let end = self.other(mac, begin)?;
                // Unplugging takes a while, and the last answer says when it was done.
                let answers = self.prober.since(begin);
                let last = answers.iter().rev().find(|claim| claim.mac == mac).map_or(begin, |claim| claim.at);
                self.took(last, end, end)
            }
            Event::OrderlyStop => {
                master.process().signal(Signal::SIGTERM)?;
                let end = self.other(mac, begin)?;
                self.took(begin, end, end)
            }
            Event::Kill => {
                master.process().signal_group(Signal::SIGKILL)?;
                let end = self.other(mac, begin)?;
                self.outage(begin, end, WINDOW)
            }
            Event::Heal => {
                host.unplug()?;
                self.other(mac, begin)?;
                thread::sleep(options.partition.saturating_sub(between(begin, SystemTime::now())));
                let healed = SystemTime::now();
                host.plug()?;
                // The next advertisements are to be over.
                self.outage(healed, healed, WINDOW + 4 * cell.interval())
            }
            Event::GarpLost => {
                let client = self.deployment.client_host();
                client.hear_broadcasts(false)?;
                host.unplug()?;
                let announced = |claim: &Claim| claim.announced && claim.mac != mac;
                let lost = wait::until("an announcement", LIMIT, || {
                    self.prober.since(begin).into_iter().find(announced).map(|claim| claim.at)
                })?;
                thread::sleep(BURST.saturating_sub(between(lost, SystemTime::now())));
                client.hear_broadcasts(true)?;
                let answered = || self.client.answered_since(lost);
                let end = wait::until("the client to be answered again", LIMIT, answered)?;
                self.took(lost, end, end)
            }
            Event::ServiceDeath => {
                for node in self.deployment.nodes().iter().filter(|node| node.runs_apiserver) {
                    host.ip(&format!("route add unreachable {}", node.v4))?;
                }
                let end = self.other(mac, begin)?;
                self.took(begin, end, end)
            }
            Event::Stall => {
                master.process().signal_group(Signal::SIGSTOP)?;
                thread::sleep(STALL);
                master.process().signal_group(Signal::SIGCONT)?;
                self.watch(mac, begin, WINDOW + 4 * cell.interval())
            }
            Event::Busy => {
                let over = AtomicBool::new(false);
                thread::scope(|scope| {
                    // Twice as many as there are CPUs, so that none of them is ever idle.
                    for _ in 0..2 * thread::available_parallelism().map_or(1, usize::from) {
                        scope.spawn(|| {
                            while !over.load(Ordering::Relaxed) {
                                std::hint::spin_loop();
                            }
                        });
                    }
                    let sample = self.watch(mac, begin, options.busy);
                    over.store(true, Ordering::Relaxed);
                    sample
                })
            }
        }
    }

    /// From the first to the last answer of others than the master, who is in no trouble that should end its reign.
    fn watch(&self, master: Mac, begin: SystemTime, length: Duration) -> Result<Sample> {
        thread::sleep(length.saturating_sub(between(begin, SystemTime::now())));
        let answers = self.prober.since(begin).into_iter();
        let others: Vec<SystemTime> =
            answers.filter(|claim| !claim.announced && claim.mac != master).map(|claim| claim.at).collect();
        let time = (others.first().zip(others.last()))
            .map_or(Duration::ZERO, |(first, last)| between(*first, *last).max(PERIOD));
        Ok(Sample { time, owners: self.prober.owners(begin, length).len() })
    }

    /// A time from one moment to another, and the owners after the transition.
    fn took(&self, from: SystemTime, to: SystemTime, transition: SystemTime) -> Result<Sample> {
        Ok(Sample { time: between(from, to), owners: self.owners(transition) })
    }

    /// What the client has waited since a moment, once it is served again for good.
    fn outage(&self, begin: SystemTime, transition: SystemTime, watch: Duration) -> Result<Sample> {
        let owners = self.owners(transition);
        thread::sleep((watch + STEADY).saturating_sub(between(transition, SystemTime::now())));
        wait::until("the client to be served again", LIMIT, || self.served().then_some(()))?;
        Ok(Sample { time: self.client.longest_wait(begin, SystemTime::now() - STEADY / 2), owners })
    }

    /// How many nodes answer in the window that begins soon after a transition.
    fn owners(&self, transition: SystemTime) -> usize {
        let from = transition + GRACE;
        thread::sleep((GRACE + WINDOW).saturating_sub(between(transition, SystemTime::now())));
        self.prober.at_once(from, WINDOW)
    }

    /// When somebody else than the master answered first.
    fn other(&self, master: Mac, since: SystemTime) -> Result<SystemTime> {
        Ok(wait::until("another node to answer for the VIP", LIMIT, || self.prober.other(master, since))?)
    }

    /// The master alone answers, and the client has learnt of it just now.
    fn settle(&self) -> Result<()> {
        let mac = self.mac(MASTER)?;
        let alone = || {
            let owners = self.prober.owners(SystemTime::now() - STEADY, STEADY);
            (owners.len() == 1 && owners.contains(&mac) && self.served()).then_some(())
        };
        wait::until("the VIP to be held by the master alone", START_LIMIT, alone)?;
        // How old the client's knowledge is decides how soon its kernel doubts it: as young as this it is the same in each run.
        let learnt = SystemTime::now();
        self.deployment.client_host().ip(&format!("neigh flush dev eth0 to {}", self.deployment.vip()))?;
        wait::until("the client to learn of the master", START_LIMIT, || {
            self.client.answered_since(learnt).and_then(|_| alone())
        })?;
        Ok(())
    }

    /// Every recent request has been answered soon.
    fn served(&self) -> bool {
        let now = SystemTime::now();
        let recent = now - STEADY;
        self.client.answered_since(recent).is_some() && self.client.longest_wait(recent, now) < STEADY / 3
    }

    fn host(&self, node: &str) -> Result<&Host> {
        self.deployment.host(node)
    }

    fn mac(&self, node: &str) -> Result<Mac> {
        watch::mac(self.host(node)?)
    }

    /// The master's daemon and the backup's.
    fn start(&self, cell: &Cell) -> Result<[Daemon; 2]> {
        let mut started = PRIORITIES.into_iter().map(|(node, priority)| match self.system {
            System::Keepalived => self.keepalived(cell, node, priority),
            System::Xvip => self.xvip(cell, node, priority),
        });
        let mut next = || started.next().context("two nodes are to be started")?;
        Ok([next()?, next()?])
    }

    fn keepalived(&self, cell: &Cell, node: &str, priority: u8) -> Result<Daemon> {
        let host = self.host(node)?;
        let checked = cell.event == Event::ServiceDeath;
        let check = host.directory().join("check.sh");
        let proxy = match checked {
            true => {
                script(
                    &check,
                    &format!("#!/bin/sh\nexec curl -fsk -m 2 https://localhost:{SERVICE_PORT}/healthz -o /dev/null\n"),
                )?;
                Some(self.deployment.start_proxy(node)?)
            }
            false => None,
        };
        let text = keepalived_config(cell.profile, node, priority, self.deployment.vip(), checked.then_some(&check));
        Ok(Daemon::Keepalived { daemon: Keepalived::start(host, &text)?, _proxy: proxy })
    }

    fn xvip(&self, cell: &Cell, node: &str, priority: u8) -> Result<Daemon> {
        let (interval, factor) = match cell.profile {
            Profile::Default => ("100ms", 3),
            Profile::Fast => ("10ms", 5),
        };
        let servers = quick(&self.deployment.xvip_config_of(node, false)?).replace("fall = 3", "fall = 2\njitter = 0");
        let text = format!(
            "{servers}\n[[vrrp]]\nname = \"apiserver\"\ninterface = \"eth0\"\nvrid = 51\nversion = 3\npriority = {priority}\ninterval = \"{interval}\"\ndown_factor = {factor}\naddresses = [\"{}\"]\n",
            self.deployment.vip(),
        );
        Ok(Daemon::Xvip(Xvip::start_with(&self.deployment, node, &text)?))
    }

    /// As if nothing had run: links, routes and addresses. The daemons were dropped, and killed by that.
    fn restore(&self) -> Result<()> {
        self.deployment.client_host().hear_broadcasts(true)?;
        let vip = self.deployment.vip();
        for (node, _) in PRIORITIES {
            let host = self.host(node)?;
            host.plug()?;
            for backend in self.deployment.nodes().iter().filter(|node| node.runs_apiserver) {
                // Nearly always absent.
                let _ = host.ip(&format!("route del unreachable {}", backend.v4));
            }
            // A killed keepalived leaves it; the next xvip takes away what the last one left.
            if self.system == System::Keepalived {
                let _ = host.ip(&format!("addr del {vip}/32 dev eth0"));
            }
        }
        Ok(())
    }
}

impl Daemon {
    fn process(&self) -> &Process {
        match self {
            Self::Keepalived { daemon, .. } => daemon.process(),
            Self::Xvip(xvip) => xvip.process(),
        }
    }
}

/// `default` is deployment C's: version 2, one second. Its script, which as written never moves the VIP, has the weight that it
/// needs. `fast` is the fastest that keepalived has.
fn keepalived_config(profile: Profile, node: &str, priority: u8, vip: Ipv4Addr, check: Option<&Path>) -> String {
    let (version, interval, auth, script) = match profile {
        Profile::Default => (
            2,
            "1",
            "    authentication {\n        auth_type PASS\n        auth_pass 1111\n    }\n",
            "    interval 3\n    fall 3\n    rise 2\n",
        ),
        Profile::Fast => (3, "0.01", "", "    interval 1\n    fall 1\n    rise 1\n"),
    };
    let state = if node == MASTER { "MASTER" } else { "BACKUP" };
    let (declared, tracked) = check.map_or_else(Default::default, |check| {
        let declared =
            format!("vrrp_script check {{\n    script \"{}\"\n    weight -30\n{script}}}\n", check.display());
        (declared, "    track_script {\n        check\n    }\n")
    });
    format!(
        "global_defs {{\n    router_id {node}\n    vrrp_version {version}\n    script_user root\n    enable_script_security\n}}\n{declared}vrrp_instance VI_1 {{\n    state {state}\n    interface eth0\n    virtual_router_id 51\n    priority {priority}\n    advert_int {interval}\n{auth}    virtual_ipaddress {{\n        {vip}\n    }}\n{tracked}}}\n"
    )
}
