//! Backends that come back, and how much of their share they have by now. Pure.
//!
//! ```text
//!                takes new connections            for as long as `slow_start`
//!   Out ------------------------------> Back ------------------------------> Whole
//!    ^   alone in that: Whole at once     |                                    |
//!    +------------------------------------+------------------------------------+
//!                          takes none any more
//! ```

use std::{collections::BTreeMap, time::Duration};

use lb_common::maglev::WHOLE;

use super::Endpoint;
use crate::{
    config::model::{Backend, VirtualServer},
    health::State,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Out,
    /// Since that moment, counted as `now` is.
    Back(Duration),
    Whole,
}

/// How it stands with each backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// `None` before the first look, at which nobody comes back: all come up together.
    standings: Option<BTreeMap<Endpoint, Standing>>,
}

impl Returns {
    /// Takes in how it is `now`. What is missing in `states` is down.
    pub fn follow(&mut self, servers: &[VirtualServer], states: &[Vec<State>], now: Duration) {
        let before = self.standings.take();
        let mut standings = BTreeMap::new();
        for (index, server) in servers.iter().enumerate() {
            let takes = |position: usize, backend: &Backend| {
                let state = states.get(index).and_then(|states| states.get(position));
                state == Some(&State::Up) && backend.weight > 0
            };
            for backups in [false, true] {
                let members = server.backends.iter().enumerate().filter(|(_, backend)| backend.backup == backups);
                let mut group: Vec<(Endpoint, Standing)> = members
                    .map(|(position, backend)| {
                        let endpoint = Endpoint::of(server, backend);
                        let former = before.as_ref().map(|before| before.get(&endpoint).copied());
                        (endpoint, after(former, takes(position, backend), server.slow_start, now))
                    })
                    .collect();
                // Gradually instead of whom? Whoever is there takes all.
                if !group.iter().any(|(_, standing)| *standing == Standing::Whole) {
                    let back = group.iter_mut().filter(|(_, standing)| *standing != Standing::Out);
                    back.for_each(|(_, standing)| *standing = Standing::Whole);
                }
                standings.extend(group);
            }
        }
        self.standings = Some(standings);
    }

    /// How much of its share a backend has if it takes new connections, of [`WHOLE`].
    pub fn portion(&self, server: &VirtualServer, backend: &Backend, now: Duration) -> u16 {
        match self.standings.as_ref().and_then(|standings| standings.get(&Endpoint::of(server, backend))) {
            Some(Standing::Back(since)) => grown(now.saturating_sub(*since), server.slow_start),
            _ => WHOLE,
        }
    }

    /// Whether anybody's portion still grows.
    pub fn is_under_way(&self) -> bool {
        let grows = |standing: &Standing| matches!(standing, Standing::Back(_));
        self.standings.iter().flat_map(BTreeMap::values).any(grows)
    }
}

/// `former` is `None` at the first look, and `Some(None)` for a backend that is new.
fn after(former: Option<Option<Standing>>, takes: bool, slow_start: Duration, now: Duration) -> Standing {
    if !takes {
        return Standing::Out;
    }
    match former {
        _ if slow_start.is_zero() => Standing::Whole,
        None | Some(Some(Standing::Whole)) => Standing::Whole,
        Some(Some(Standing::Back(since))) if now.saturating_sub(since) >= slow_start => Standing::Whole,
        Some(Some(Standing::Back(since))) => Standing::Back(since),
        Some(Some(Standing::Out) | None) => Standing::Back(now),
    }
}

/// Never nothing: who takes new connections gets some.
fn grown(age: Duration, slow_start: Duration) -> u16 {
    let steps = u128::from(WHOLE - 1);
    let grown = age.as_nanos().saturating_mul(steps).checked_div(slow_start.as_nanos()).unwrap_or(steps);
    1 + u16::try_from(grown.min(steps)).unwrap_or(WHOLE - 1)
}

#[cfg(test)]
mod tests {
    use State::{Down, Draining, Up};

    use super::*;
    use crate::reconcile::desired::tests::server;

    const SLOW: Duration = Duration::from_secs(31);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    fn slow(backends: u8) -> [VirtualServer; 1] {
        [VirtualServer { slow_start: SLOW, ..server("a", 100, backends) }]
    }

    fn portions(returns: &Returns, servers: &[VirtualServer], now: Duration) -> Vec<u16> {
        let of = |server: &VirtualServer| -> Vec<u16> {
            server.backends.iter().map(|backend| returns.portion(server, backend, now)).collect()
        };
        servers.iter().flat_map(of).collect()
    }

    #[test]
    fn a_share_grows_step_by_step_and_only_after_an_absence() {
        let servers = slow(3);
        let mut returns = Returns::default();
        returns.follow(&servers, &[vec![Up, Down, Draining]], at(0));
        assert_eq!(portions(&returns, &servers, at(0))[0], WHOLE, "all come up together");
        assert!(!returns.is_under_way());
        returns.follow(&servers, &[vec![Up, Up, Draining]], at(5));
        for (now, portion) in [(5, 1), (6, 2), (20, 16), (35, 31), (36, WHOLE), (500, WHOLE)] {
            assert_eq!(portions(&returns, &servers, at(now))[..2], [WHOLE, portion], "{now}");
        }
        assert!(returns.is_under_way());
        returns.follow(&servers, &[vec![Up, Up, Up]], at(20));
        assert_eq!(portions(&returns, &servers, at(20)), [WHOLE, 16, 1], "each by itself");
        returns.follow(&servers, &[vec![Up, Down, Up]], at(25));
        returns.follow(&servers, &[vec![Up, Up, Up]], at(30));
        assert_eq!(portions(&returns, &servers, at(30)), [WHOLE, 1, 11], "from the beginning again");
        returns.follow(&servers, &[vec![Up, Up, Up]], at(61));
        assert_eq!(portions(&returns, &servers, at(61)), [WHOLE; 3]);
        assert!(!returns.is_under_way());
    }

    #[test]
    fn who_is_alone_has_it_all() {
        let servers = slow(3);
        let mut returns = Returns::default();
        returns.follow(&servers, &[vec![Up, Up, Up]], at(0));
        returns.follow(&servers, &[vec![Down, Down, Down]], at(1));
        returns.follow(&servers, &[vec![Up, Down, Down]], at(2));
        assert_eq!(portions(&returns, &servers, at(2))[0], WHOLE);
        returns.follow(&servers, &[vec![Up, Up, Up]], at(3));
        assert_eq!(portions(&returns, &servers, at(3)), [WHOLE, 1, 1]);
        returns.follow(&servers, &[vec![Down, Up, Up]], at(4));
        assert_eq!(portions(&returns, &servers, at(4))[1..], [WHOLE, WHOLE], "whom else should they wait for?");

        let mut backup = slow(2);
        backup[0].backends[1].backup = true;
        let mut returns = Returns::default();
        returns.follow(&backup, &[vec![Down, Up]], at(0));
        returns.follow(&backup, &[vec![Up, Up]], at(1));
        assert_eq!(portions(&returns, &backup, at(1)), [WHOLE, WHOLE], "a backup is no company");
    }

    #[test]
    fn what_is_new_or_without_weight_was_absent_too() {
        let mut servers = slow(2);
        let mut returns = Returns::default();
        returns.follow(&slow(1), &[vec![Up]], at(0));
        returns.follow(&servers, &[vec![Up, Up]], at(1));
        assert_eq!(portions(&returns, &servers, at(1)), [WHOLE, 1]);
        servers[0].backends[0].weight = 0;
        returns.follow(&servers, &[vec![Up, Up]], at(2));
        servers[0].backends[0].weight = 1;
        returns.follow(&servers, &[vec![Up, Up]], at(3));
        assert_eq!(portions(&returns, &servers, at(3)), [1, WHOLE], "the other one had nobody beside it for a while");
        servers[0].slow_start = Duration::ZERO;
        returns.follow(&servers, &[vec![Up, Up]], at(4));
        assert_eq!(portions(&returns, &servers, at(4)), [WHOLE, WHOLE]);
    }
}
