//! Another configuration for a daemon that runs: judged whole, then followed whole, or refused.

use std::{collections::BTreeSet, mem, net::IpAddr, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::{
    Node,
    attaching::families,
    leaving::macs,
    placement::{carried, carriers, stays},
    vrrp::Seen,
};
use crate::{
    admin::{
        reload::{Outcome, Verdict},
        socket::Command,
        status,
    },
    config::{self, Difference, Effect, hints, model::Config},
    host::{Forwarding, unicast},
    reconcile::TooMany,
};

/// Virtual servers that can be added to those of the start; each takes 128 KiB of the kernel's memory.
pub(super) const SPARE: usize = 16;

/// Why a configuration cannot be followed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "{0} can change only with a restart of xvip (systemctl restart xvip), which keeps connections where dataplane.on_stop is \"keep\". \
         Nothing was changed."
    )]
    Restart(String),
    #[error(
        "{wanted} virtual servers are configured, and this daemon has made room for {room} when it started. Restart xvip (systemctl restart \
         xvip), which keeps connections where dataplane.on_stop is \"keep\". Nothing was changed."
    )]
    Room { wanted: usize, room: usize },
    #[error(
        "a virtual server on loopback needs dataplane.cgroup, which could not be had when xvip started (its log says why). Restart xvip when \
         that is mended. Nothing was changed."
    )]
    Hooks,
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// It does not fit this host.
    #[error("{0:#}")]
    Host(anyhow::Error),
}

impl Node {
    /// Does what was asked for. An error is of the daemon, not of a configuration.
    pub(super) async fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Release(name) => self.vrrp.release(name.as_deref()),
            Command::Reload(judgement) => judgement.tell(&self.reload().await?),
            Command::Compare { text, judgement } => {
                let outcome = match config::check(&text, "the configuration, as the daemon sees it") {
                    Ok(then) => self.judge(&then).0,
                    Err(report) => mistaken(&report),
                };
                judgement.tell(&outcome);
            }
            Command::Order { request, judgement } => self.order(&request, judgement)?,
            Command::HandOver(judgement) => {
                judgement.done("the data plane goes on for the next daemon\n".to_owned());
                self.hands_over = true;
            }
        }
        Ok(())
    }

    /// Reads the file again and follows it, or says why not. An error means that not even the configuration before holds any more.
    pub(super) async fn reload(&mut self) -> anyhow::Result<Outcome> {
        let file = self.file.clone();
        let read = spawn_blocking(move || config::load(&file)).await.context("reading the configuration")?;
        let (outcome, error) = match read {
            Ok(then) => {
                let outcome = self.follow_if_possible(then).await?;
                let error = outcome.problem.clone();
                (outcome, error)
            }
            Err(report) => (mistaken(&report), Some(report.first())),
        };
        let at = SystemTime::now();
        match &error {
            None => {
                log::info!("configuration {} reloaded: {} differences", self.file.display(), outcome.differences.len());
                self.loaded = at;
            }
            Some(error) => log::error!("reload refused, the configuration before goes on: {error}"),
        }
        self.last_reload = Some(status::Reload { at, error });
        self.follow()?;
        Ok(outcome)
    }

    async fn follow_if_possible(&mut self, then: Config) -> anyhow::Result<Outcome> {
        let (mut outcome, refusal) = self.judge(&then);
        if refusal.is_some() {
            return Ok(outcome);
        }
        hints(&then).iter().for_each(|hint| log::warn!("{hint}"));
        let before = Arc::clone(&self.config);
        if let Err(error) = self.switch(Arc::new(then)).await {
            self.switch(before).await.context("going back to the configuration before")?;
            outcome.verdict = Verdict::Failed;
            outcome.problem = Some(format!("{error:#}. The configuration before goes on."));
            return Ok(outcome);
        }
        self.forget_orders();
        outcome.verdict = Verdict::Applied;
        Ok(outcome)
    }

    /// Whether a configuration could be followed, and what would change. Changes nothing.
    fn judge(&self, then: &Config) -> (Outcome, Option<Refusal>) {
        let differences = config::differences(&self.config, then);
        let refusal = self.refuse(then, &differences).err();
        let verdict = if refusal.is_some() { Verdict::Refused } else { Verdict::Possible };
        let problem = refusal.as_ref().map(ToString::to_string);
        (Outcome { verdict, differences, problem }, refusal)
    }

    fn refuse(&self, then: &Config, differences: &[Difference]) -> Result<(), Refusal> {
        let fixed = differences.iter().filter(|difference| difference.effect == Effect::Restart);
        let fixed: Vec<&str> = fixed.map(|difference| difference.setting.as_str()).collect();
        if !fixed.is_empty() {
            return Err(Refusal::Restart(fixed.join(", ")));
        }
        let servers = &then.virtual_servers;
        if servers.len() > self.room {
            return Err(Refusal::Room { wanted: servers.len(), room: self.room });
        }
        if servers.iter().any(|server| server.address.is_loopback()) && !self.dataplane.is_hooked() {
            return Err(Refusal::Hooks);
        }
        self.numbers.clone().follow(&self.config.virtual_servers, servers, self.begun.elapsed())?;
        carriers(then, &self.host).map(drop).map_err(Refusal::Host)
    }

    /// Follows a configuration that was judged. The tables come before the VIPs, so that nobody is drawn to a node that does not serve
    /// yet; what was taken out goes on in them until nobody needs it.
    async fn switch(&mut self, then: Arc<Config>) -> anyhow::Result<()> {
        let carriers = carriers(&then, &self.host)?;
        if families(&then) != families(&self.config) {
            self.forwarding.push(Forwarding::enable(carried(&then, &self.host), families(&then))?);
            self.forward_on_loopback(&then);
        }
        self.numbers.follow(&self.config.virtual_servers, &then.virtual_servers, self.begun.elapsed())?;
        let before = mem::replace(&mut self.config, then);
        self.carriers = carriers;
        if before.dataplane.timeouts != self.config.dataplane.timeouts {
            self.timeouts.send_replace(self.config.dataplane.timeouts);
        }
        self.check_all();
        self.meet().await;
        self.reconcile(false)?;
        // A VIP that moves from now on is no longer held, and one that does not is off the virtual router before it is.
        self.give_back().await;
        let (broken, config) = (self.broken(), Arc::clone(&self.config));
        let (states, _) = self.health(&self.followed);
        let seen = Seen { servers: &config.virtual_servers, states: &states, broken: &broken };
        self.vrrp.replace(&config.vrrp, &seen, &mut self.dataplane).await?;
        unicast::remove(&self.handle, &(&macs(&before) - &macs(&config))).await?;
        self.hold().await
    }

    /// Has the backends checked that are configured, and those that drain: one that dies meanwhile must not keep its clients waiting.
    fn check_all(&mut self) {
        let removed = self.numbers.removed().filter_map(|(_, removed)| removed.was.as_ref());
        self.checkers.follow(self.config.virtual_servers.iter().chain(removed));
    }

    /// Looks after what comes back, whose share grows, and what was removed: its time passes, and its connections end.
    pub(super) async fn tend(&mut self) -> anyhow::Result<()> {
        if self.returns.is_under_way() {
            self.reconcile(false)?;
        }
        self.heed()?;
        if self.numbers.removed().next().is_none() {
            return Ok(());
        }
        let mut changed = self.numbers.expire(self.begun.elapsed());
        if changed {
            log::info!("the drain time of removed backends is over: connections that they still have are reset");
        }
        if self.swept.has_changed().unwrap_or_default() {
            let freed = {
                let (swept, own) = (self.swept.borrow_and_update(), self.own.borrow());
                let count = |id| [&swept.alive, &*own].into_iter().filter_map(|counts| counts.get(&id)).sum();
                self.numbers.swept(count)
            };
            for id in &freed {
                // What has passed stays counted.
                self.forwarded_before +=
                    self.dataplane.traffic(*id).map(|traffic| traffic.packets_in + traffic.packets_out)?;
                log::info!("a removed backend has no connections any more");
            }
            changed |= !freed.is_empty();
        }
        if changed {
            self.check_all();
            self.reconcile(false)?;
            self.give_back().await;
        }
        Ok(())
    }

    /// Takes the VIPs away that nobody needs any more.
    async fn give_back(&mut self) {
        let config = &self.config;
        let of = |(server, carrier): (_, &String)| {
            let server: &config::model::VirtualServer = server;
            stays(config, server).then(|| (server.address, carrier.clone()))
        };
        let wanted: BTreeSet<(IpAddr, String)> =
            config.virtual_servers.iter().zip(&self.carriers).filter_map(of).collect();
        let named: BTreeSet<IpAddr> = wanted.iter().map(|(vip, _)| *vip).collect();
        let drained: BTreeSet<IpAddr> = self.numbers.removed().map(|(endpoint, _)| endpoint.vip()).collect();
        let stays = |vip: IpAddr, interface: &str| match named.contains(&vip) {
            true => wanted.contains(&(vip, interface.to_owned())),
            false => drained.contains(&vip),
        };
        self.vips.retain(stays).await;
    }
}

fn mistaken(report: &config::Report) -> Outcome {
    Outcome { verdict: Verdict::Refused, differences: Vec::new(), problem: Some(report.to_string()) }
}
