//! A node that has reached no backend and reaches one again does not know of the others yet: were it to take the VIPs at once, it would
//! end connections to backends that are well. So it waits until each had the checks that it takes.

use std::{collections::BTreeMap, future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::Seen;
use crate::{
    config::model::{self, VirtualServer},
    health::State,
    vrrp::tracking::{BACKENDS, Tracked},
};

/// When each instance that waits may count on its backends again, by its place in the configuration.
#[derive(Debug, Default)]
pub(super) struct Regaining(BTreeMap<usize, Instant>);

impl Regaining {
    /// Leaves backends that were not good before and are good `now` as they were, until the others are known.
    pub(super) fn hold_back(
        &mut self,
        instances: &[model::Vrrp],
        seen: &Seen<'_>,
        before: &[Vec<Tracked>],
        tracked: &mut [Vec<Tracked>],
        now: Instant,
    ) {
        for (index, (instance, (before, tracked))) in instances.iter().zip(before.iter().zip(tracked)).enumerate() {
            let is_it = |tracked: &&Tracked| tracked.what == BACKENDS;
            let was_bad = before.iter().find(is_it).is_some_and(|before| !before.good);
            let Some(backends) = tracked.iter_mut().find(|tracked| tracked.what == BACKENDS) else { continue };
            let here = seen.servers.iter().zip(seen.states).filter(|(server, _)| is_on(instance, server));
            let (servers, states): (Vec<_>, Vec<_>) = here.unzip();
            if !was_bad || !backends.good || states.into_iter().flatten().all(|state| *state == State::Up) {
                self.0.remove(&index);
                continue;
            }
            let longest = servers.into_iter().map(round).max().unwrap_or_default();
            if now < *self.0.entry(index).or_insert(now + longest) {
                backends.good = false;
                backends.text += "; the others are being checked";
            } else {
                self.0.remove(&index);
            }
        }
    }

    /// Waits until an instance may count on its backends again. Cancel-safe.
    pub(super) async fn due(&self) {
        match self.0.values().min() {
            Some(due) => sleep_until(*due).await,
            None => pending().await,
        }
    }
}

fn is_on(instance: &model::Vrrp, server: &VirtualServer) -> bool {
    instance.addresses.iter().any(|net| net.addr() == server.address)
}

/// The longest that a backend takes to be known as up.
fn round(server: &VirtualServer) -> Duration {
    let model::Check { interval, rise, jitter_percent, .. } = &server.check;
    *interval * rise.get() * (100 + u32::from(*jitter_percent)) / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::parse, vrrp::tracking};

    const TEXT: &str = r#"
[dataplane]
interfaces = ["eth0"]
[[virtual_server]]
name = "v"
address = "192.168.2.100"
port = 6443
[virtual_server.check]
type = "tcp"
interval = "2s"
rise = 2
jitter = 10
[[virtual_server.backend]]
name = "a"
address = "192.168.2.11"
[[virtual_server.backend]]
name = "b"
address = "192.168.2.12"
[[vrrp]]
name = "vip"
interface = "eth0"
vrid = 51
addresses = ["192.168.2.100"]
"#;

    #[test]
    fn who_regains_one_backend_waits_for_the_others() {
        let config = parse(TEXT, "test").expect("a configuration");
        let nothing = BTreeMap::new();
        let mut regaining = Regaining::default();
        let mut before: Vec<Vec<Tracked>> = Vec::new();
        let start = Instant::now();
        let mut good = |seconds: f64, states: [State; 2]| {
            let states = [states.to_vec()];
            let seen = Seen { servers: &config.virtual_servers, states: &states, broken: &nothing };
            let inputs =
                tracking::Inputs { servers: seen.servers, states: seen.states, broken: &nothing, scripts: &Vec::new() };
            let mut now = vec![tracking::tracked(&config.vrrp[0], 0, &inputs)];
            regaining.hold_back(&config.vrrp, &seen, &before, &mut now, start + Duration::from_secs_f64(seconds));
            before = now;
            before[0].iter().find(|tracked| tracked.what == BACKENDS).expect("backends").good
        };
        const UP: State = State::Up;
        const DOWN: State = State::Down;
        assert!(good(0.0, [UP, DOWN]), "what was never bad need not be regained");
        assert!(!good(1.0, [DOWN, DOWN]), "bad is bad at once");
        assert!(!good(2.0, [UP, DOWN]));
        assert!(!good(6.3, [UP, DOWN]));
        assert!(good(6.4, [UP, DOWN]), "two checks, 2.2 s apart at the most");
        assert!(!good(7.0, [DOWN, DOWN]));
        assert!(!good(8.0, [UP, DOWN]));
        assert!(good(8.1, [UP, UP]), "there is nobody left to wait for");
        assert!(!good(9.0, [DOWN, DOWN]));
        assert!(!good(10.0, [UP, DOWN]));
        assert!(!good(11.0, [DOWN, DOWN]));
        assert!(!good(14.0, [DOWN, UP]), "counted from the last time on");
        assert!(good(18.5, [DOWN, UP]));
    }
}
