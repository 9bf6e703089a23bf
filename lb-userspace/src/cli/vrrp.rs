//! `xvip vrrp release`: asks, and stays to tell what came of it.

use std::time::Duration;

use tokio::{
    runtime,
    time::{Instant, sleep},
};

use super::{Daemon, Failure};
use crate::admin::{
    Status, client,
    vrrp::{Instance, Master, State},
};

/// A takeover takes less than this, except at intervals of several seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the status.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Hand VIPs over to another node, and do not take them back while it is there
    Release {
        /// Only those of the `[[vrrp]]` of this name, and of its sync group
        instance: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    let Verb::Release { instance, daemon } = verb;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (text, done) = runtime.block_on(release(daemon, instance.as_deref()))?;
    super::print(&text)?;
    match done {
        true => Ok(()),
        false => Err(anyhow::anyhow!("not every VIP is with another node; xvip status tells more").into()),
    }
}

/// What came of it, line by line, and whether every VIP has gone to another node.
async fn release(daemon: &Daemon, wanted: Option<&str>) -> anyhow::Result<(String, bool)> {
    let before = client::status(&daemon.socket).await?;
    client::release(&daemon.socket, wanted).await?;
    let held = held(&before, wanted);
    if held.is_empty() {
        let of = wanted.map_or("VRRP".to_owned(), |name| format!("`{name}`"));
        return Ok((format!("this node holds no VIP of {of}\n"), true));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = client::status(&daemon.socket).await?;
        let outcomes: Vec<_> = held.iter().map(|instance| Outcome::of(instance, &now)).collect();
        if !outcomes.contains(&Outcome::Open) || Instant::now() > deadline {
            let lines = held.iter().zip(&outcomes).map(|(instance, outcome)| outcome.line(&instance.name));
            return Ok((lines.collect(), outcomes.iter().all(|outcome| matches!(outcome, Outcome::Gone(_)))));
        }
        sleep(LOOK).await;
    }
}

/// The instances that are to go: masters, all or the wanted one with its sync group.
fn held<'a>(status: &'a Status, wanted: Option<&str>) -> Vec<&'a Instance> {
    let named = status.vrrp.iter().find(|instance| Some(&*instance.name) == wanted);
    let group = named.and_then(|instance| instance.sync_group.as_deref());
    let is_wanted = |instance: &Instance| {
        wanted.is_none_or(|name| instance.name == name) || group.is_some() && instance.sync_group.as_deref() == group
    };
    status.vrrp.iter().filter(|instance| instance.state == State::Master && is_wanted(instance)).collect()
}

/// What became of an instance that was master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// To this master.
    Gone(Master),
    /// Nobody took it.
    Back,
    Open,
}

impl Outcome {
    fn of(before: &Instance, status: &Status) -> Self {
        let same = |instance: &&Instance| instance.name == before.name;
        match status.vrrp.iter().find(same) {
            Some(now) if now.transitions == before.transitions => Self::Open,
            Some(Instance { state: State::Master, .. }) => Self::Back,
            Some(Instance { master: Some(master), .. }) => Self::Gone(*master),
            _ => Self::Open,
        }
    }

    fn line(self, name: &str) -> String {
        match self {
            Self::Gone(Master { address, priority }) => {
                format!("{name}: {address} holds the VIPs now (priority {priority})\n")
            }
            Self::Back => format!("{name}: no other node took over, so this one holds the VIPs again\n"),
            Self::Open => format!("{name}: no other node has said within {PATIENCE:?} that it holds the VIPs\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::SystemTime};

    use super::*;
    use crate::admin::vrrp::Advertisements;

    fn instance(state: State, transitions: u64, master: Option<&str>) -> Instance {
        Instance {
            name: "v".to_owned(),
            interface: "eth0".to_owned(),
            vrid: 1,
            version: 3,
            state,
            since: SystemTime::UNIX_EPOCH,
            priority: 100,
            configured_priority: 100,
            master: master.map(|address| Master { address: address.parse().unwrap(), priority: 90 }),
            transitions,
            vips: Vec::new(),
            sync_group: None,
            released: false,
            tracked: Vec::new(),
            advertisements: Advertisements::default(),
            reports: Vec::new(),
        }
    }

    #[test]
    fn what_goes_with_the_one_that_is_named() {
        let of = |name: &str, state, group: Option<&str>| Instance {
            name: name.to_owned(),
            sync_group: group.map(str::to_owned),
            ..instance(state, 1, None)
        };
        let (backup, master) = (State::Backup, State::Master);
        let vrrp = vec![
            of("a", master, Some("both")),
            of("b", master, None),
            of("c", backup, None),
            of("d", master, Some("both")),
            of("e", master, None),
        ];
        let status = Status { vrrp, ..Status::starting(SystemTime::UNIX_EPOCH, Path::new("xvip.toml")) };
        for (wanted, expected) in
            [(None, "a b d e"), (Some("a"), "a d"), (Some("d"), "a d"), (Some("b"), "b"), (Some("c"), "")]
        {
            let names: Vec<&str> = held(&status, wanted).iter().map(|instance| &*instance.name).collect();
            assert_eq!(names.join(" "), expected, "{wanted:?}");
        }
    }

    #[test]
    fn what_became_of_a_master() {
        let before = instance(State::Master, 4, None);
        let other = Master { address: [10, 0, 0, 2].into(), priority: 90 };
        for (now, expected) in [
            (instance(State::Master, 4, None), Outcome::Open),
            (instance(State::Backup, 5, None), Outcome::Open),
            (instance(State::Backup, 5, Some("10.0.0.2")), Outcome::Gone(other)),
            (instance(State::Master, 6, None), Outcome::Back),
        ] {
            let status =
                Status { vrrp: vec![now.clone()], ..Status::starting(SystemTime::UNIX_EPOCH, Path::new("xvip.toml")) };
            assert_eq!(Outcome::of(&before, &status), expected, "{now:?}");
        }
    }
}
