//! Plays a plan on a pair of appliances, and notes what there is to judge.

use std::{
    collections::BTreeMap,
    env, fs,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use lb_userspace::{
    admin::{Status, vrrp::State},
    health,
};
use nix::sys::signal::Signal;

use super::{
    Options, Report, flood,
    judge::{self, Moment, Played},
    leaks::{self, Sizes},
    plan::{Fault, Plan, Step, master},
    requests::Requests,
};
use crate::{
    client::Streams,
    pair::{A, B, NODES, Pair, Setup},
    topology::Topology,
    traces::Traces,
    watch::Prober,
    xvip,
};

/// Whose neighbour table nobody needs.
const PROBER: &str = "worker-1";
/// From where connections are begun that never come to anything.
const FLOODER: &str = "worker-2";
/// Between two lines of a stream.
const PACE: Duration = Duration::from_millis(100);
/// For all streams to go on after a fault: more than the patience of the lost ones.
const LIMIT: Duration = Duration::from_secs(40);
const END_LIMIT: Duration = Duration::from_secs(15);
/// Lines of each stream that are to come back before the next fault.
const LINES: u64 = 3;
/// Requests that may be under way when the appliances stop hearing each other: those of half a second. Who is not told that one has ended keeps
/// it until it times out.
const UNTOLD: u64 = 10;
/// What closes is forgotten soon, and there is room for few enough connections to run out of it.
const DATAPLANE: &str = "max_connections = 16384\ntimeouts.closing = \"1s\"\ntimeouts.syn = \"5s\"\n";

/// The order of the fields is the order in which they end.
#[derive(Debug)]
pub(super) struct Stage {
    streams: Streams,
    requests: Requests,
    /// One of each family.
    probers: [Prober; 2],
    pair: Pair,
    played: Vec<Played>,
    sizes: Sizes,
    before: Vec<Traces>,
    slowest: Duration,
    /// That a step came to no good end.
    broken: Option<String>,
}

impl Stage {
    /// Everything runs, and all is well.
    pub(super) fn set(options: &Options) -> Result<Self> {
        let deployment = Topology::C.build("chaos")?;
        let mut pair = Pair::of(deployment, Setup { synced: true, dataplane: DATAPLANE, ..Setup::default() })?;
        for node in NODES {
            // A killed daemon cannot put it back, and the next one takes it for the administrator's.
            for family in ["ipv4", "ipv6"] {
                pair.host(node).sysctl(&format!("net/{family}/conf/eth0/forwarding"), "1")?;
            }
        }
        for number in 1..=3 {
            let host = pair.host(&master(number));
            // A new MAC address is announced, as by whoever moves a virtual machine.
            host.sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
            host.sysctl("net/ipv6/conf/eth0/ndisc_notify", "1")?;
        }
        let before = leaks::traces(&pair)?;
        NODES.into_iter().try_for_each(|node| pair.start(node))?;
        let [four, six] = pair.deployment.node(PROBER)?.addresses();
        let probe = |own: IpAddr, v6| Prober::start(pair.host(PROBER), own, pair.deployment.topology.endpoint(v6).ip());
        let probers = [probe(four, false)?, probe(six, true)?];
        let streams = pair.deployment.streams(options.streams, PACE)?;
        let requests = Requests::start(&pair.deployment, options.streams)?;
        let (played, sizes) = (Vec::new(), Sizes::default());
        let mut stage =
            Self { streams, requests, probers, pair, played, sizes, before, slowest: Duration::ZERO, broken: None };
        stage.settle()?;
        stage.probers.iter().for_each(Prober::forget);
        Ok(stage)
    }

    /// Plays until time is over, or a step comes to no good end.
    pub(super) fn play(&mut self, options: &Options) {
        let start = Instant::now();
        let is_wanted = |kind: &str| options.only.is_empty() || options.only.iter().any(|only| only == kind);
        for (number, step) in Plan::new(options.seed).enumerate().filter(|(_, step)| is_wanted(step.fault.kind())) {
            if start.elapsed() >= options.time || self.broken.is_some() {
                break;
            }
            if options.verbose {
                eprintln!("{:>7.1} s  step {number}: {step}", start.elapsed().as_secs_f64());
            }
            if let Err(error) = self.step(step) {
                self.broken = Some(format!("step {number}: {step}: {error:#}"));
            }
        }
    }

    fn step(&mut self, step: Step) -> Result<()> {
        let begun = Moment::now();
        self.begin(step)?;
        thread::sleep(step.hold.saturating_sub(begun.monotonic.elapsed()));
        self.heal(step.fault)?;
        let healed = Moment::now();
        let settled = self.settle();
        // Also where it has not settled: what was lost meanwhile is judged by it.
        self.played.push(Played { step, begun, healed, settled: Moment::now() });
        self.slowest = self.slowest.max(healed.monotonic.elapsed());
        settled
    }

    fn begin(&mut self, step: Step) -> Result<()> {
        let pair = &mut self.pair;
        match step.fault {
            Fault::Kill(node) => pair.xvip(node).process().kill(),
            Fault::Stop(node) => pair.xvip(node).process().signal(Signal::SIGSTOP)?,
            Fault::Terminate(node) => pair.xvip(node).process().signal(Signal::SIGTERM)?,
            Fault::Restart(node) => pair.start(node)?,
            Fault::Upgrade(node) => {
                let configuration = pair.configuration(node)?;
                let next = pair.take(node)?.upgrade(&xvip::binary()?, &configuration)?;
                pair.daemons.insert(node, next);
            }
            Fault::Release => release(pair, A)?,
            Fault::Carrier(node) => pair.host(node).carrier_down()?,
            Fault::Cut(node) => pair.host(node).unplug()?,
            Fault::Part => isolate(pair, true)?,
            Fault::Forget(node) => {
                for family in ["-4", "-6"] {
                    pair.host(node).exec(&["ip", family, "neighbour", "flush", "dev", "eth0"])?;
                }
            }
            Fault::BackendKilled(number) => pair.apiservers[&master(number)].kill(),
            Fault::BackendStopped(number) => pair.apiservers[&master(number)].freeze()?,
            Fault::BackendCut(number) => pair.host(&master(number)).unplug()?,
            Fault::BackendMoved(number) => {
                let played = self.played.len();
                let mac = format!("02:78:76:{number:02x}:{:02x}:{:02x}", played >> 8 & 0xff, played & 0xff);
                pair.host(&master(number)).ip(&format!("link set dev eth0 address {mac}"))?;
            }
            Fault::Drain(number) => {
                for node in NODES {
                    let without = without(&pair.configuration(node)?, &master(number));
                    pair.xvip(node).reload(&without)?;
                }
            }
            Fault::Flood => flood::flood(&pair.deployment, FLOODER, A, step.hold)?,
        }
        Ok(())
    }

    fn heal(&mut self, fault: Fault) -> Result<()> {
        let pair = &mut self.pair;
        match fault {
            Fault::Kill(node) => pair.start(node)?,
            Fault::Stop(node) => pair.xvip(node).process().signal(Signal::SIGCONT)?,
            Fault::Terminate(node) => {
                let ended = pair.take(node)?;
                let status = ended.process().wait(END_LIMIT)?;
                if !status.success() {
                    bail!("xvip ended with {status}:\n{}", ended.log());
                }
                pair.start(node)?;
            }
            Fault::Release => release(pair, B)?,
            Fault::Carrier(node) => pair.host(node).carrier_up()?,
            Fault::Cut(node) => pair.host(node).plug()?,
            Fault::Part => isolate(pair, false)?,
            Fault::BackendKilled(number) => {
                let name = master(number);
                let started = pair.deployment.start_apiserver(&name)?;
                pair.apiservers.insert(name, started);
            }
            Fault::BackendStopped(number) => pair.apiservers[&master(number)].thaw()?,
            Fault::BackendCut(number) => pair.host(&master(number)).plug()?,
            Fault::Drain(_) => {
                for node in NODES {
                    pair.xvip(node).reload(&pair.configuration(node)?)?;
                }
            }
            Fault::Restart(_) | Fault::Upgrade(_) | Fault::Forget(_) | Fault::BackendMoved(_) | Fault::Flood => {}
        }
        Ok(())
    }

    /// Waits until all is as it was at first.
    fn settle(&mut self) -> Result<()> {
        self.pair.wait_for(A, State::Master)?;
        self.pair.wait_for(B, State::Backup)?;
        for node in NODES {
            (1..=3).try_for_each(|number| self.pair.wait_for_backend(node, &master(number), health::State::Up))?;
        }
        self.pair.wait_for_peers()?;
        self.streams.wait_for_lines(LINES, LIMIT)?;
        self.sizes.look(&self.pair)
    }

    /// Ends everything in order, and judges.
    pub(super) fn finish(self, options: &Options) -> Result<Report> {
        let Self { streams, requests, probers, mut pair, played, sizes, before, slowest, broken } = self;
        let end = Moment::now();
        let outcomes = requests.finish()?;
        let episodes = streams.finish()?;
        let claims = probers.map(|prober| prober.since(UNIX_EPOCH));

        let mut violations: Vec<String> = broken.iter().cloned().collect();
        violations.extend(judge::streams(&episodes, &played));
        violations.extend(judge::requests(&outcomes, &played));
        for (claims, family) in claims.iter().zip(["IPv4", "IPv6"]) {
            let found = judge::holders(claims, &played, end.wall);
            violations.extend(found.into_iter().map(|violation| format!("{family}: {violation}")));
        }
        violations.extend(sizes.grown());
        violations.extend(pair.deployment.lab.checksum_errors()?);
        // A node that a broken step has left in whatever state says nothing about leaks.
        if broken.is_none() {
            let parted = played.iter().filter(|played| played.step.fault.parts()).count();
            violations.extend(tracked(&pair, UNTOLD * parted as u64));
            for node in NODES {
                let status = pair.take(node)?.stop()?;
                if !status.success() {
                    violations.push(format!("{node}: xvip ended with {status}"));
                }
            }
            violations.extend(leaks::left(&pair, &before)?);
        }
        let logs = if violations.is_empty() { None } else { Some(keep_logs(&pair, options.seed)?) };
        let client = pair.deployment.client_host().netns().to_owned();
        let lab = client.strip_suffix("client").context("the name of a namespace ends with its host's")?.to_owned();
        drop(pair);
        let namespaces = fs::read_dir("/run/netns")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        violations.extend(namespaces.filter(|name| name.starts_with(&lab)).map(|name| format!("{name} is left")));

        let mut faults = BTreeMap::new();
        for fault in &played {
            *faults.entry(fault.step.fault.kind()).or_default() += 1;
        }
        Ok(Report {
            seed: options.seed,
            steps: played.iter().map(|played| played.step.to_string()).collect(),
            faults,
            streams: options.streams as usize,
            episodes: episodes.len(),
            lost: episodes.iter().filter(|episode| episode.end.is_some()).count(),
            lines: episodes.iter().map(|episode| episode.echoed).sum(),
            longest: episodes.iter().filter(|e| e.end.is_none()).map(|e| e.longest()).max().unwrap_or_default(),
            requests: outcomes.len(),
            failed: outcomes.iter().filter(|outcome| outcome.result.is_err()).count(),
            slowest,
            violations,
            logs,
        })
    }
}

/// Connections that are tracked still, when no client has any, beyond those of whose end a node may not have been told.
fn tracked(pair: &Pair, untold: u64) -> Vec<String> {
    let none = |status: &Status| status.connections.tracked <= untold;
    let left = |node: &&str| {
        pair.xvip(node).wait_for("no connection to be tracked", LIMIT, none).err()?;
        let connections = pair.xvip(node).status().ok()?.connections;
        Some(format!("{node} tracks connections that nobody has any more: {connections:?}"))
    };
    NODES.iter().filter_map(left).collect()
}

/// Saves what the daemons have said, which goes with their hosts. Where it is then.
fn keep_logs(pair: &Pair, seed: u64) -> Result<PathBuf> {
    let kept = env::temp_dir().join(format!("xvip-chaos-{seed}"));
    fs::create_dir_all(&kept)?;
    for node in NODES {
        for entry in fs::read_dir(pair.host(node).directory())? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if name.contains("xvip.err") && entry.metadata()?.len() > 0 {
                fs::copy(entry.path(), kept.join(format!("{node}-{name}")))?;
            }
        }
    }
    Ok(kept)
}

/// Has a node hand the VIPs over.
fn release(pair: &Pair, node: &str) -> Result<()> {
    let output = pair.xvip(node).command(&["vrrp", "release"])?;
    if !output.status.success() {
        bail!("xvip vrrp release: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn isolate(pair: &Pair, on: bool) -> Result<()> {
    NODES.iter().try_for_each(|node| pair.host(node).isolate(on))?;
    Ok(())
}

/// A configuration without one backend.
fn without(text: &str, name: &str) -> String {
    let name = format!("[[virtual_server.backend]]\nname = \"{name}\"");
    text.split("\n\n").filter(|part| !part.starts_with(&name)).collect::<Vec<_>>().join("\n\n")
}
