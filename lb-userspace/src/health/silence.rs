//! Whose silence it is when nothing comes back from a backend: a node that is cut off hears nobody, and its backends live. Pure.
//!
//! ```text
//!   a backend   x-------x-------x-----     x  a check begins that nothing comes back to
//!   another         o                      o  one that is answered
//! ```
//! Once another backend of the same virtual server has answered a check that began within the silence, this node is heard and hears. What begins
//! after that and is left without an answer as well, as the second check here, shows that the backend is silent by itself, if it ends long enough
//! after the other one's answer: back on the network, a node may have to ask for a neighbour's link-layer address once more. With the third one
//! the backend is down, and its connections are lost.
//!
//! Where all have fallen silent together and none has refused anything, it is more likely this node than all of them. New connections find nobody, and
//! those that are there are left alone until one of them answers. It says by itself what has become of its own, and by that the
//! others are judged.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    State,
    checker::{BackendKey, Report, Reports},
    counter::Outcome,
};

/// The kernel asks for a neighbour once a second (RFC 4861, 10: RETRANS_TIMER; for ARP too), and what is sent meanwhile waits for the answer.
const RESOLVED: Duration = Duration::from_millis(1100);

/// What speaks for and against the death of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// When the latest check began and ended to which something came back.
    answered: Option<(Instant, Instant)>,
    /// TCP was refused since it was accepted last.
    refused: bool,
    /// When the first one began of those in a row to which nothing came back.
    silent: Option<Instant>,
    /// Another backend was the first to answer since.
    heard: Option<Instant>,
    /// That is not for want of a way.
    alone: bool,
}

impl Evidence {
    /// Takes in a check, from its beginning to its end. Another backend was `heard` by the time it began, or `nobody` can tell.
    pub(super) fn record(
        &mut self,
        outcome: Outcome,
        (begun, ended): (Instant, Instant),
        heard: Option<Instant>,
        nobody: impl FnOnce() -> bool,
    ) {
        if outcome != Outcome::Silent {
            *self = Self { answered: Some((begun, ended)), refused: outcome == Outcome::Dead, ..Self::default() };
            return;
        }
        self.silent.get_or_insert(begun);
        self.heard = self.heard.or(heard);
        let resolved = self.heard.is_some_and(|heard| ended.duration_since(heard) >= RESOLVED);
        self.alone = self.alone || resolved || nobody();
    }

    /// It is the backend that is dead, if it is down.
    pub(super) fn is_enough(&self) -> bool {
        self.refused || self.alone
    }

    fn has_answered_after(&self, moment: Instant) -> bool {
        self.answered.is_some_and(|(begun, _)| begun > moment)
    }
}

/// Since when this node is known to reach another backend while this one is silent. `is_own` says which addresses are this host's, which it
/// reaches in any case.
pub(super) fn heard(all: &Reports, key: &BackendKey, is_own: impl Fn(IpAddr) -> bool) -> Option<Instant> {
    let since = all.get(key)?.evidence.silent?;
    let heard =
        others(all, key).filter(|(key, other)| other.evidence.has_answered_after(since) && !is_own(key.address.ip()));
    heard.filter_map(|(_, other)| Some(other.evidence.answered?.1)).min()
}

/// Whether there is nobody who could tell. Whoever was silent by himself before cannot; who was not asked yet may.
pub(super) fn has_no_witness(all: &Reports, key: &BackendKey, is_own: impl Fn(IpAddr) -> bool) -> bool {
    let tells = |(key, other): (&BackendKey, &Report)| {
        let Evidence { answered, silent, alone, .. } = other.evidence;
        let may_answer = answered.is_some() || silent.is_some() || other.last_check.is_none();
        may_answer && !alone && !is_own(key.address.ip())
    };
    is_own(key.address.ip()) || !others(all, key).any(tells)
}

/// Who is to be checked at once, so that it is soon known who is silent by himself.
pub(super) fn to_ask<'a>(all: &'a Reports, is_own: &impl Fn(IpAddr) -> bool) -> Vec<&'a BackendKey> {
    let mut asked = Vec::new();
    for (key, report) in all.iter().filter(|(_, report)| !report.evidence.is_enough()) {
        let Some(since) = report.evidence.silent else { continue };
        let knows = |other: &Report| other.evidence.silent.is_some() || other.evidence.has_answered_after(since);
        asked.extend(others(all, key).filter(|(_, other)| !knows(other)).map(|(key, _)| key));
        if report.state == State::Down && heard(all, key, is_own).is_some() {
            asked.push(key);
        }
    }
    asked
}

/// The other hosts' backends of the same virtual server.
fn others<'a>(all: &'a Reports, key: &BackendKey) -> impl Iterator<Item = (&'a BackendKey, &'a Report)> {
    all.iter()
        .filter(move |(other, _)| other.virtual_server == key.virtual_server && other.address.ip() != key.address.ip())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

    use Outcome::{Dead, Healthy, Refused, Silent};

    use super::*;

    /// Reports of backends of one virtual server at 10.0.0.1 and so on, whose checks had these outcomes and began at these moments.
    struct Scene {
        start: Instant,
        all: Reports,
    }

    fn key(server: &str, last: u8) -> BackendKey {
        let address = SocketAddr::from(([10, 0, 0, last], 6443));
        BackendKey { virtual_server: server.to_owned(), backend: format!("b{last}"), address }
    }

    impl Scene {
        fn new() -> Self {
            Self { start: Instant::now(), all: Arc::default() }
        }

        /// The outcome of a check of a backend that began at a moment, as the checker would take it in.
        fn check(&mut self, last: u8, outcome: Outcome, at: u64) {
            self.long_check(last, outcome, at, 0);
        }

        fn long_check(&mut self, last: u8, outcome: Outcome, at: u64, took: u64) {
            let key = key("api", last);
            let (heard, nobody) = (heard(&self.all, &key, is_own), has_no_witness(&self.all, &key, is_own));
            let begun = self.start + Duration::from_millis(at);
            let ended = begun + Duration::from_millis(took);
            let all: &mut BTreeMap<_, _> = Arc::make_mut(&mut self.all);
            let report = all.entry(key).or_insert_with(Report::unknown);
            report.evidence.record(outcome, (begun, ended), heard, || nobody);
            report.state = if outcome == Healthy { State::Up } else { State::Down };
        }

        fn dead(&self) -> Vec<u8> {
            let dead = self.all.iter().filter(|(_, report)| report.evidence.is_enough());
            dead.map(|(key, _)| last(key)).collect()
        }

        fn asked(&self) -> Vec<u8> {
            let mut asked: Vec<u8> = to_ask(&self.all, &is_own).into_iter().map(last).collect();
            asked.sort_unstable();
            asked.dedup();
            asked
        }
    }

    fn is_own(address: IpAddr) -> bool {
        address == IpAddr::from([10, 0, 0, 9])
    }

    fn last(key: &BackendKey) -> u8 {
        match key.address.ip() {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        }
    }

    /// Backends with these numbers were well.
    fn well(backends: &[u8]) -> Scene {
        let mut scene = Scene::new();
        backends.iter().for_each(|last| scene.check(*last, Healthy, u64::from(*last)));
        scene
    }

    #[test]
    fn one_that_is_silent_among_others_is_dead_by_its_next_check() {
        let mut scene = well(&[1, 2, 3]);
        scene.check(1, Silent, 100);
        assert_eq!((scene.dead(), scene.asked()), (vec![], vec![2, 3]), "what they said before says nothing");
        scene.check(2, Healthy, 99);
        assert_eq!(scene.asked(), [2, 3], "that check began before the silence did");
        scene.check(2, Healthy, 110);
        assert_eq!((scene.dead(), scene.asked()), (vec![], vec![1, 3]));
        scene.long_check(1, Silent, 120, 1000);
        scene.check(2, Healthy, 1150);
        assert!(scene.dead().is_empty(), "a neighbour may have to be asked for once more");
        scene.long_check(1, Silent, 1180, 30);
        assert_eq!((scene.dead(), scene.asked()), (vec![1], vec![]));
        scene.check(1, Healthy, 3000);
        assert!(scene.dead().is_empty());
    }

    /// A daemon may begin while its node is cut off, with the connections of the one before.
    #[test]
    fn whoever_was_not_checked_yet_may_tell() {
        let mut scene = Scene::new();
        let unknown = [1, 2, 3].map(|last| (key("api", last), Report::unknown()));
        scene.all = Arc::new(unknown.into());
        for at in [10, 20, 30].into_iter().chain([2010, 2020, 2030]).chain([4010, 4020, 4030]) {
            scene.check((at / 10 % 10) as u8, Silent, at);
        }
        assert!(scene.dead().is_empty());
        scene.check(1, Healthy, 5000);
        scene.check(2, Healthy, 5010);
        scene.check(3, Silent, 6500);
        assert_eq!(scene.dead(), [3]);
    }

    #[test]
    fn any_answer_of_another_counts_and_this_hosts_own_does_not() {
        for (other, outcome, dead) in
            [(2, Refused, &[1][..]), (2, Dead, &[1, 2]), (2, Silent, &[]), (9, Healthy, &[]), (9, Dead, &[9])]
        {
            let mut scene = well(&[1, 2, 9]);
            scene.check(1, Silent, 100);
            scene.check(other, outcome, 110);
            scene.check(1, Silent, 2000);
            assert_eq!(scene.dead(), dead, "{other}: {outcome:?}");
        }
        let mut scene = well(&[1, 2, 9]);
        scene.check(9, Silent, 100);
        assert_eq!(scene.dead(), [9], "this host reaches itself");
    }

    #[test]
    fn who_hears_nobody_blames_nobody_however_long() {
        let mut scene = well(&[1, 2, 3]);
        for round in 1..100 {
            (1..=3).for_each(|last| scene.check(last, Silent, round * 100 + u64::from(last)));
            assert_eq!((scene.dead(), scene.asked()), (vec![], vec![]));
        }
        scene.check(2, Healthy, 10_000);
        assert_eq!((scene.dead(), scene.asked()), (vec![], vec![1, 3]), "the others are asked at once");
        scene.check(1, Healthy, 10_010);
        scene.check(3, Silent, 10_010);
        assert!(scene.dead().is_empty());
        scene.check(3, Silent, 11_100);
        assert_eq!(scene.dead(), [3]);
    }

    #[test]
    fn a_refusal_needs_no_witness() {
        let mut scene = well(&[1, 2]);
        (1..=2).for_each(|last| scene.check(last, Dead, 100));
        assert_eq!((scene.dead(), scene.asked()), (vec![1, 2], vec![]));
        scene.check(1, Silent, 200);
        assert_eq!(scene.dead(), [1, 2], "what was dead does not live by being silent");
        scene.check(1, Refused, 300);
        assert_eq!(scene.dead(), [2]);
    }

    #[test]
    fn the_last_one_dies_at_once() {
        let mut scene = well(&[1]);
        scene.check(1, Silent, 100);
        assert_eq!(scene.dead(), [1], "there is nobody to ask");

        let mut scene = well(&[1, 2]);
        scene.check(1, Silent, 100);
        scene.check(2, Healthy, 110);
        scene.check(1, Silent, 2000);
        scene.check(2, Silent, 2010);
        assert_eq!(scene.dead(), [1, 2], "who was dead before cannot tell");
    }

    #[test]
    fn other_virtual_servers_may_go_other_ways() {
        let mut scene = well(&[1, 2]);
        scene.check(1, Silent, 100);
        let mut elsewhere = Report::unknown();
        let at = scene.start + Duration::from_millis(110);
        elsewhere.evidence.record(Healthy, (at, at), None, || unreachable!());
        Arc::make_mut(&mut scene.all).insert(key("other", 3), elsewhere);
        scene.check(1, Silent, 2000);
        assert!(scene.dead().is_empty());
    }
}
