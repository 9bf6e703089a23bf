//! The last second of the traffic, and who answers whom.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::client::Outcome;

const WINDOW: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Live {
    recent: VecDeque<Event>,
    owners: BTreeMap<IpAddr, String>,
    failed: usize,
    total: usize,
}

#[derive(Debug)]
struct Event {
    at: Instant,
    /// Who answered, or for a failure who answered that source last.
    backend: String,
    good: bool,
}

/// Requests that ended within the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recent {
    pub(super) answered: usize,
    pub(super) failed: usize,
}

impl Live {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.total += 1;
        let good = outcome.result.is_ok();
        if let (Ok(name), Some(source)) = (&outcome.result, outcome.source) {
            self.owners.insert(source, name.clone());
        }
        self.failed += usize::from(!good);
        let known = outcome.source.and_then(|source| self.owners.get(&source));
        self.recent.push_back(Event { at: outcome.ended(), backend: known.cloned().unwrap_or_default(), good });
    }

    /// Lets go of what is older than a second.
    pub(super) fn forget(&mut self, now: Instant) {
        self.recent.retain(|event| now.saturating_duration_since(event.at) < WINDOW);
    }

    pub(super) fn of(&self, backend: &str) -> Recent {
        let of = self.recent.iter().filter(|event| event.backend == backend);
        of.fold(Recent::default(), |sum, event| match event.good {
            true => Recent { answered: sum.answered + 1, ..sum },
            false => Recent { failed: sum.failed + 1, ..sum },
        })
    }

    /// Failures since the beginning.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Requests since the beginning.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Who answered each source last.
    pub(super) fn owners(&self) -> &BTreeMap<IpAddr, String> {
        &self.owners
    }

    /// The first so many sources that a backend answers.
    pub(super) fn sources_of(&self, backend: &str, count: usize) -> Vec<IpAddr> {
        let of = self.owners.iter().filter(|(_, owner)| *owner == backend);
        of.map(|(source, _)| *source).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Failure;

    #[test]
    fn a_failure_belongs_to_the_backend_that_answered_that_source_last() {
        let start = Instant::now();
        let outcome = |millis, number, result: Result<&str, Failure>| Outcome {
            started: start + Duration::from_millis(millis),
            latency: Duration::ZERO,
            source: Some(IpAddr::from([10, 0, 0, number])),
            result: result.map(str::to_owned),
        };
        let mut live = Live::default();
        live.add(&outcome(0, 1, Ok("a")));
        live.add(&outcome(600, 2, Ok("b")));
        live.add(&outcome(700, 1, Err(Failure::Status(500))));
        live.forget(start + Duration::from_millis(900));
        assert_eq!(live.of("a"), Recent { answered: 1, failed: 1 });
        assert_eq!(live.of("b"), Recent { answered: 1, failed: 0 });
        live.forget(start + Duration::from_millis(1500));
        assert_eq!(live.of("a"), Recent { answered: 0, failed: 1 });
        assert_eq!((live.total(), live.failed()), (3, 1));
        assert_eq!(live.sources_of("b", 5), [IpAddr::from([10, 0, 0, 2])]);
    }
}
