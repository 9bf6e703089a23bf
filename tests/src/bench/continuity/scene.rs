//! Streams, what happens to them, and what is noted of it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use lb_userspace::admin::vrrp::State;
use nix::sys::signal::Signal;

use super::{Event, Mode, Options};
use crate::{
    client::{Episode, Failure, Streams},
    edition::{self, Attached},
    lab::Host,
    pair::{A, B, Pair, Setup},
    site::{Site, quick},
    topology::{Deployment, Topology},
    xvip::{self, Xvip},
};

/// For all streams to go on: longer than a client has patience, so that the lost ones are back.
const LIMIT: Duration = Duration::from_secs(40);
const END_LIMIT: Duration = Duration::from_secs(10);
/// Lines of each stream after an event that belong to it.
const AFTER: u64 = 5;
/// As many as pass during a restart.
const QUIET: u64 = 10;

/// What was noted, by mode and event.
pub(super) type Samples = BTreeMap<(Mode, Event), Sample>;

#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) rounds: usize,
    /// Of each stream in each round.
    pub(super) gaps: Vec<Duration>,
    /// Streams that ended, and why.
    pub(super) lost: Vec<Failure>,
    pub(super) retransmitted: u64,
    pub(super) spurious: u64,
}

/// Rounds of events under the streams of one deployment.
struct Stage {
    streams: Streams,
    /// The client's, and those of the backends.
    hosts: Vec<Host>,
    /// By epoch.
    events: BTreeMap<usize, (Event, Retransmissions)>,
}

/// Of the client and the backends together.
#[derive(Clone, Copy, Debug, Default)]
struct Retransmissions {
    all: u64,
    spurious: u64,
}

/// One daemon is restarted and reloaded; its VIPs stay.
pub(super) fn appliance(options: &Options, samples: &mut Samples) -> Result<()> {
    let keep = |text: String| text.replace("[dataplane]", "[dataplane]\non_stop = \"keep\"");
    let site = Site::up_with(Topology::C, "continuity", A, keep)?;
    let Site { xvip, apiservers: _apiservers, deployment } = site;
    let host = deployment.host(A)?;
    let editions = [edition::another(host.directory())?, xvip::binary()?];
    let mut next = Some(xvip);
    let whole = keep(quick(&deployment.xvip_config(A)?));
    let mut stage = Stage::begin(&deployment, options)?;
    for round in 0..options.restarts {
        stage.play(Event::Quiet, |streams| streams.wait_for_lines(QUIET, LIMIT))?;
        stage.play(Event::Restart, |_| {
            let former = next.take().context("a daemon runs")?;
            if round % 2 == 0 {
                former.process().kill();
            } else {
                former.process().signal(Signal::SIGTERM)?;
                let status = former.process().wait(END_LIMIT)?;
                if !status.success() {
                    bail!("xvip ended with {status}:\n{}", former.log());
                }
            }
            next = Some(Xvip::start_with(&deployment, A, &whole)?);
            Ok(())
        })?;
        for edition in &editions {
            let before = Attached::of(host)?;
            stage.play(Event::Upgrade, |_| {
                let former = next.take().context("a daemon runs")?;
                next = Some(former.upgrade(edition, &whole)?);
                Ok(())
            })?;
            let after = Attached::of(host)?;
            if after.link != before.link || after.tag == before.tag {
                bail!("another program by the same link was to be there: {before:?}, then {after:?}");
            }
        }
        for text in [without_one(&whole, round), whole.clone()] {
            stage.play(Event::Reload, |_| next.as_ref().context("a daemon runs")?.reload(&text))?;
        }
    }
    stage.finish(Mode::Nat, samples)
}

/// Both appliances hold the VIPs and share their connections; the holder is lost.
pub(super) fn pair(options: &Options, mode: Mode, samples: &mut Samples) -> Result<()> {
    let setup = Setup { synced: true, direct: mode == Mode::Dsr, ..Setup::USUAL };
    let mut pair = Pair::up(&format!("continuity-{}", mode.name()), setup)?;
    let mut stage = Stage::begin(&pair.deployment, options)?;
    for _ in 0..options.failovers {
        for (event, back) in [(Event::Kill, Event::Return), (Event::LinkLoss, Event::Heal)] {
            pair.wait_for_peers()?;
            stage.streams.wait_for_lines(2 * AFTER, LIMIT)?;
            stage.play(event, |_| {
                match event {
                    Event::Kill => drop(pair.take(A)?),
                    _ => pair.host(A).unplug()?,
                }
                pair.wait_for(B, State::Master)?;
                Ok(())
            })?;
            stage.play(back, |_| {
                match event {
                    Event::Kill => pair.start(A)?,
                    _ => pair.host(A).plug()?,
                }
                pair.wait_for(A, State::Master)?;
                pair.wait_for(B, State::Backup)?;
                Ok(())
            })?;
        }
    }
    stage.finish(mode, samples)
}

impl Stage {
    fn begin(deployment: &Deployment, options: &Options) -> Result<Self> {
        let mut hosts = vec![deployment.client_host().clone()];
        for master in deployment.nodes().iter().filter(|node| node.runs_apiserver) {
            hosts.push(deployment.host(&master.name)?.clone());
        }
        let streams = deployment.streams(options.streams, options.pace)?;
        streams.wait_for_lines(AFTER, LIMIT)?;
        Ok(Self { streams, hosts, events: BTreeMap::new() })
    }

    /// An event, and what follows of it.
    fn play(&mut self, event: Event, scene: impl FnOnce(&Streams) -> Result<()>) -> Result<()> {
        let before = self.retransmissions()?;
        let epoch = self.streams.next_epoch();
        scene(&self.streams)?;
        self.streams.wait_for_lines(AFTER, LIMIT)?;
        let after = self.retransmissions()?;
        let more = Retransmissions { all: after.all - before.all, spurious: after.spurious - before.spurious };
        self.events.insert(epoch, (event, more));
        Ok(())
    }

    fn retransmissions(&self) -> Result<Retransmissions> {
        let mut sum = Retransmissions::default();
        for host in &self.hosts {
            let netstat = host.netstat()?;
            sum.all += netstat.value("TcpRetransSegs");
            sum.spurious += netstat.value("TcpExtTCPDSACKRecv");
        }
        Ok(sum)
    }

    fn finish(self, mode: Mode, samples: &mut Samples) -> Result<()> {
        let episodes = self.streams.finish()?;
        for (epoch, (event, retransmissions)) in self.events {
            let sample = samples.entry((mode, event)).or_default();
            sample.rounds += 1;
            sample.retransmitted += retransmissions.all;
            sample.spurious += retransmissions.spurious;
            sample.gaps.extend(gaps(&episodes, epoch).into_values());
            let lost = episodes.iter().filter_map(lost_in).filter(|(lost, _)| *lost == epoch);
            sample.lost.extend(lost.map(|(_, failure)| failure.clone()));
        }
        Ok(())
    }
}

/// In which epoch a stream was lost, if it was: silence began with what broke it, and anything else is the answer to what has just happened.
fn lost_in(episode: &Episode) -> Option<(usize, &Failure)> {
    let end = episode.end.as_ref()?;
    let last = episode.gaps.len().saturating_sub(1);
    let epoch = if matches!(end.failure, Failure::Timeout(_)) { end.epoch } else { last };
    Some((epoch, &end.failure))
}

/// The longest wait of each stream in an epoch, over all of its connections.
fn gaps(episodes: &[Episode], epoch: usize) -> BTreeMap<usize, Duration> {
    let mut gaps = BTreeMap::new();
    for episode in episodes {
        if let Some(gap) = episode.gaps.get(epoch).filter(|gap| !gap.is_zero()) {
            let longest: &mut Duration = gaps.entry(episode.stream).or_default();
            *longest = (*longest).max(*gap);
        }
    }
    gaps
}

/// The configuration without a backend, another one each time.
fn without_one(text: &str, round: usize) -> String {
    let name = format!("[[virtual_server.backend]]\nname = \"master-{}\"", round % 3 + 1);
    text.split("\n\n").filter(|part| !part.starts_with(&name)).collect::<Vec<_>>().join("\n\n") + "\n"
}
