//! Whoever carries a deployment's VIP on a node: its keepalived and its proxy as they were written up, or xvip in their place.

use std::{
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    client::Outcome,
    lab::Process,
    peer::{Keepalived, Proxy},
    site::quick,
    topology::Deployment,
    wait,
    xvip::Xvip,
};

/// Between two looks at who has the VIP.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// As the write-up has it.
    Written,
    Xvip,
}

/// What runs on one node. It is killed with this.
#[derive(Debug)]
pub enum Carrier {
    Written { keepalived: Keepalived, proxy: Proxy },
    Xvip(Xvip),
}

impl Carrier {
    pub fn start(deployment: &Deployment, node: &str, by: By) -> Result<Self> {
        Ok(match by {
            By::Written => {
                let proxy = deployment.start_proxy(node)?;
                let configuration = deployment.keepalived_config(node)?;
                Self::Written { keepalived: Keepalived::start(deployment.host(node)?, &configuration)?, proxy }
            }
            By::Xvip => {
                let configuration = quick(&deployment.xvip_failover_config(node)?);
                Self::Xvip(Xvip::start_with(deployment, node, &configuration)?)
            }
        })
    }

    pub fn by(&self) -> By {
        match self {
            Self::Written { .. } => By::Written,
            Self::Xvip(_) => By::Xvip,
        }
    }

    /// Who sends the advertisements.
    pub fn process(&self) -> &Process {
        match self {
            Self::Written { keepalived, .. } => keepalived.process(),
            Self::Xvip(xvip) => xvip.process(),
        }
    }

    /// Ends it in order.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Written { keepalived, proxy } => {
                keepalived.stop()?;
                proxy.stop()
            }
            Self::Xvip(xvip) => {
                let status = xvip.stop()?;
                if !status.success() {
                    bail!("xvip ended with {status}");
                }
                Ok(())
            }
        }
    }
}

/// The nodes that have the VIP on an interface just now.
pub fn holders(deployment: &Deployment) -> Result<Vec<String>> {
    let vip = IpAddr::V4(deployment.vip());
    let mut holders = Vec::new();
    for node in deployment.holders() {
        if deployment.host(&node.name)?.addresses()?.contains(&vip) {
            holders.push(node.name.clone());
        }
    }
    Ok(holders)
}

/// Waits until one node alone has held the VIP for `steady`, and gives its name.
pub fn wait_for_holder(deployment: &Deployment, steady: Duration, limit: Duration) -> Result<String> {
    let mut held: Option<(String, Instant)> = None;
    let mut failure = None;
    let found = wait::until("one node to hold the VIP", limit, || {
        let now = match holders(deployment) {
            Ok(now) => now,
            Err(error) => {
                failure = Some(error);
                return Some(String::new());
            }
        };
        match (now.as_slice(), &held) {
            ([one], Some((before, since))) if one == before => (since.elapsed() >= steady).then(|| one.clone()),
            ([one], _) => {
                held = Some((one.clone(), Instant::now()));
                None
            }
            _ => {
                held = None;
                None
            }
        }
    })?;
    failure.map_or(Ok(found), Err)
}

/// Who had the VIP from when on.
#[derive(Debug, Default)]
pub struct History {
    changes: Vec<(Instant, Vec<String>)>,
}

impl History {
    /// Watches a deployment while `scene` plays.
    pub fn during<T>(deployment: &Deployment, scene: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let over = AtomicBool::new(false);
        let history = Mutex::new(Self::default());
        thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<()> {
                while !over.load(Ordering::Relaxed) {
                    let now = holders(deployment)?;
                    let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
                    if history.changes.last().is_none_or(|(_, last)| *last != now) {
                        history.changes.push((Instant::now(), now));
                    }
                    drop(history);
                    thread::sleep(LOOK);
                }
                Ok(())
            });
            let played = scene();
            over.store(true, Ordering::Relaxed);
            watcher.join().expect("the watcher does not panic")?;
            played
        })
        .map(|played| (played, history.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The holders in their order, each once for each time that it held the VIP.
    pub fn holders(&self) -> Vec<String> {
        self.changes.iter().map(|(_, holders)| holders.join("+")).collect()
    }

    /// What happened, in the order of time: who held the VIP from when on, and the requests that failed, in milliseconds of the watch.
    pub fn told(&self, outcomes: &[Outcome]) -> String {
        let start = self.changes.first().map_or_else(Instant::now, |(at, _)| *at);
        let held = self.changes.iter().map(|(at, holders)| (*at, format!("held by [{}]", holders.join(", "))));
        let failed = outcomes.iter().filter_map(|outcome| {
            let failure = outcome.result.as_ref().err()?;
            Some((outcome.started, format!("failed after {} ms: {failure:?}", outcome.latency.as_millis())))
        });
        let mut lines: Vec<_> = held.chain(failed).collect();
        lines.sort_by_key(|(at, _)| *at);
        lines.iter().fold(String::new(), |told, (at, what)| {
            format!("{told}{:8} {what}\n", at.saturating_duration_since(start).as_millis())
        })
    }

    /// Failed requests that no change excuses: none was within its slack of them, which is told from when it was and who holds the
    /// VIP since.
    pub fn unexcused<'a>(
        &self,
        outcomes: &'a [Outcome],
        slack: impl Fn(Instant, &[String]) -> Duration,
    ) -> Vec<&'a Outcome> {
        let excused = |outcome: &Outcome| {
            // The first entry is the beginning of the watch.
            self.changes.iter().skip(1).any(|(at, holders)| {
                let slack = slack(*at, holders);
                outcome.started <= *at + slack && *at <= outcome.ended() + slack
            })
        };
        outcomes.iter().filter(|outcome| outcome.result.is_err() && !excused(outcome)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Failure;

    #[test]
    fn a_change_excuses_what_fails_around_it() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let history =
            History { changes: vec![(at(0), vec!["a".into()]), (at(1000), vec![]), (at(1500), vec!["b".into()])] };
        let request = |started, latency, fails| Outcome {
            started: at(started),
            latency: Duration::from_millis(latency),
            source: None,
            result: if fails { Err(Failure::Other("lost".into())) } else { Ok("a".into()) },
        };
        let all = [
            request(100, 10, true),
            request(100, 850, true),
            request(1200, 10, true),
            request(1590, 10, true),
            request(1700, 10, true),
            request(1800, 10, false),
        ];
        let bad: Vec<Instant> =
            history.unexcused(&all, |_, _| Duration::from_millis(100)).iter().map(|outcome| outcome.started).collect();
        assert_eq!(bad, [at(100), at(1200), at(1700)]);
        // Who takes over by and by is given longer.
        let slow = |_, holders: &[String]| Duration::from_millis(if holders == ["b"] { 250 } else { 100 });
        assert_eq!(history.unexcused(&all, slow).len(), 2);
        assert_eq!(history.holders(), ["a", "", "b"]);
        let told = history.told(&all[4..]);
        assert_eq!(
            told,
            "       0 held by [a]\n    1000 held by []\n    1500 held by [b]\n    1700 failed after 10 ms: Other(\"lost\")\n"
        );
    }
}
