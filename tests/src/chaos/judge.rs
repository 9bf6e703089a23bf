//! What must hold whatever happens, decided from what was noted.

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use super::plan::{Fault, Step};
use crate::{
    client::{Episode, Failure, Outcome},
    watch::{Claim, at_once, between},
};

/// From a fault or its end until one node answers for the VIPs again: three advertisements that did not come, a lease, and the load of
/// the machine.
pub(super) const BOUND: Duration = Duration::from_secs(2);
/// From the death of a backend whose host is silent until no new connection goes there: three checks that get no answer.
const SILENT: Duration = Duration::from_secs(6);
/// In which who gives the VIPs back in order has heard of it, on a machine that is busy with everything at once.
const HANDOVER: Duration = Duration::from_millis(200);
/// In which somebody asks for the VIP a thousand times.
const UNANSWERED: Duration = Duration::from_secs(1);

/// A fault that was played.
#[derive(Clone, Copy, Debug)]
pub(super) struct Played {
    pub(super) step: Step,
    pub(super) begun: Moment,
    /// The fault was taken back.
    pub(super) healed: Moment,
    /// All is as before.
    pub(super) settled: Moment,
}

/// By both clocks that things are noted by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) monotonic: Instant,
    pub(super) wall: SystemTime,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

impl Played {
    /// When new requests may fail: for how long from the beginning, and for how long from the end.
    fn windows(&self) -> [(Instant, Instant); 2] {
        let (begun, healed) = (self.begun.monotonic, self.healed.monotonic);
        let first = match self.step.fault {
            // Both answer, or nobody has room: for as long as it lasts.
            Fault::Part | Fault::Flood => healed.duration_since(begun) + BOUND,
            Fault::BackendStopped(_) | Fault::BackendCut(_) => SILENT,
            Fault::BackendKilled(_) => SILENT / 2,
            _ => BOUND,
        };
        [(begun, begun + first), (healed, healed + BOUND)]
    }

    /// When one node alone answers for the VIPs.
    fn reigns(&self, next: SystemTime) -> Vec<(SystemTime, SystemTime)> {
        let during = (self.begun.wall + BOUND, self.healed.wall);
        let after = (self.healed.wall + BOUND, next);
        let all = if self.step.fault == Fault::Part { vec![after] } else { vec![during, after] };
        all.into_iter().filter(|(from, to)| from < to).collect()
    }
}

/// Streams that nothing excuses.
pub(super) fn streams(episodes: &[Episode], played: &[Played]) -> Vec<String> {
    let mut violations = Vec::new();
    for episode in episodes {
        let Some(end) = &episode.end else { continue };
        let touches = |fault: &&Played| {
            fault.step.fault.may_end(&episode.backend)
                && fault.begun.monotonic <= end.at
                && end.waited_since <= fault.settled.monotonic
        };
        let foreign = matches!(end.failure, Failure::Foreign(_));
        if foreign || !played.iter().any(|fault| touches(&fault)) {
            violations.push(format!(
                "stream {} of {} with {} was lost {}: {}",
                episode.stream,
                episode.source,
                episode.backend,
                place(end.at, played),
                end.failure
            ));
        }
    }
    violations
}

/// Requests that failed and that nothing excuses.
pub(super) fn requests(outcomes: &[Outcome], played: &[Played]) -> Vec<String> {
    let excused = |outcome: &Outcome| {
        let mut windows = played.iter().flat_map(Played::windows);
        windows.any(|(from, to)| outcome.started <= to && from <= outcome.ended())
    };
    let failed = outcomes.iter().filter_map(|outcome| Some((outcome, outcome.result.as_ref().err()?)));
    let bad = failed.filter(|(outcome, failure)| matches!(failure, Failure::Foreign(_)) || !excused(outcome));
    bad.map(|(outcome, failure)| {
        let source = outcome.source.map_or_else(String::new, |source: IpAddr| format!(" from {source}"));
        format!("a request{source} failed {}: {failure}", place(outcome.started, played))
    })
    .collect()
}

/// Times at which nobody answered for the VIP, or more than one node.
pub(super) fn holders(claims: &[Claim], played: &[Played], end: SystemTime) -> Vec<String> {
    let mut violations = Vec::new();
    for (number, fault) in played.iter().enumerate() {
        let next = played.get(number + 1).map_or(end, |next| next.begun.wall);
        for (from, to) in fault.reigns(next) {
            let answers: Vec<_> = (claims.iter())
                .filter(|claim| !claim.announced && (from..=to).contains(&claim.at))
                .map(|claim| (claim.mac, claim.at))
                .collect();
            let most = at_once(&answers, HANDOVER);
            if most > 1 {
                violations.push(format!("{most} nodes answered at once, {}", named(number, fault)));
            }
            let times = std::iter::once(from).chain(answers.iter().map(|(_, at)| *at)).chain([to]);
            let silence = times.clone().zip(times.skip(1)).map(|(one, next)| between(one, next)).max();
            if let Some(silence) = silence.filter(|silence| *silence > UNANSWERED) {
                violations.push(format!("nobody answered for {silence:?}, {}", named(number, fault)));
            }
        }
    }
    violations
}

fn named(number: usize, fault: &Played) -> String {
    format!("step {number}: {}", fault.step)
}

/// The latest fault before a moment, and how long before.
fn place(at: Instant, played: &[Played]) -> String {
    match played.iter().enumerate().rev().find(|(_, fault)| fault.begun.monotonic <= at) {
        None => "before any fault".to_owned(),
        Some((number, fault)) => {
            let later = at.duration_since(fault.begun.monotonic);
            format!("{} ms into {}", later.as_millis(), named(number, fault))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::client::{End, Stage};

    struct Scene {
        start: Instant,
        played: Vec<Played>,
    }

    /// A backend is stopped from 10 s to 13 s, and all is well at 16 s.
    fn scene() -> Scene {
        let start = Instant::now();
        let moment = |seconds| Moment {
            monotonic: start + Duration::from_secs(seconds),
            wall: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let step = Step { fault: Fault::BackendStopped(1), hold: Duration::from_secs(3) };
        Scene { start, played: vec![Played { step, begun: moment(10), healed: moment(13), settled: moment(16) }] }
    }

    #[test]
    fn a_stream_may_end_with_its_backend_only() {
        let Scene { start, played } = scene();
        let ended = |backend: &str, waited: u64, at: u64, failure: Failure| Episode {
            stream: 3,
            source: IpAddr::from([10, 50, 1, 3]),
            backend: backend.to_owned(),
            began: start,
            echoed: 9,
            gaps: Vec::new(),
            end: Some(End {
                waited_since: start + Duration::from_secs(waited),
                epoch: 0,
                at: start + Duration::from_secs(at),
                failure,
            }),
        };
        let reset = || Failure::Reset(Stage::Answer);
        let good = |episode| streams(&[episode], &played).is_empty();
        assert!(good(ended("master-1", 11, 14, reset())));
        assert!(good(ended("master-1", 5, 20, reset())), "it waited through the fault");
        assert!(!good(ended("master-2", 11, 14, reset())));
        assert!(!good(ended("master-1", 17, 18, reset())));
        assert!(!good(ended("master-1", 8, 9, reset())));
        assert!(!good(ended("master-1", 11, 14, Failure::Foreign("another's".into()))));
        assert!(good(Episode { end: None, ..ended("master-2", 0, 0, reset()) }));
    }

    #[test]
    fn a_request_may_fail_within_the_windows_only() {
        let Scene { start, played } = scene();
        let failed = |started: u64, took: u64| Outcome {
            started: start + Duration::from_secs(started),
            latency: Duration::from_secs(took),
            source: None,
            result: Err(Failure::Timeout(Stage::Connect)),
        };
        let good = |outcome: Outcome| requests(&[outcome], &played).is_empty();
        assert!(good(failed(8, 3)));
        assert!(good(failed(15, 1)));
        assert!(good(failed(16, 5)), "stopped hosts are noticed after 6 s");
        assert!(!good(failed(8, 1)));
        assert!(!good(failed(17, 1)));
        assert!(good(Outcome { result: Ok("master-2".into()), ..failed(17, 1) }));
    }

    #[test]
    fn one_node_answers_from_the_bound_on() {
        let Scene { mut played, .. } = scene();
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        let claims = |mac: u8, from: u64, to: u64| {
            (from..to).step_by(10).map(move |ms| Claim { at: at(ms), mac: [mac; 6], announced: false })
        };
        let judged = |claims: Vec<Claim>, played: &[Played]| holders(&claims, played, at(20_000)).len();
        let mut one: Vec<Claim> = claims(1, 10_000, 20_000).collect();
        assert_eq!(judged(one.clone(), &played), 0);
        assert_eq!(judged(claims(1, 10_000, 18_000).collect(), &played), 1, "nobody in the end");
        one.extend(claims(2, 12_500, 12_900));
        one.sort_by_key(|claim| claim.at);
        assert_eq!(judged(one.clone(), &played), 1);
        // That is what such a partition means.
        played[0].step.fault = Fault::Part;
        assert_eq!(judged(one, &played), 0);
    }
}
