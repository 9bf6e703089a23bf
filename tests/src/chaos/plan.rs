//! What is to happen, made from a seed alone: the same seed gives the same faults in the same order.

use std::{fmt, time::Duration};

use fastrand::Rng;

use crate::pair::{A, NODES};

/// Something that befalls the appliances, the backends or what is between them. It ends after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL of a daemon; another one is started later.
    Kill(&'static str),
    /// SIGSTOP; it goes on later.
    Stop(&'static str),
    /// SIGTERM; another one is started later.
    Terminate(&'static str),
    /// SIGKILL, and the next one at once.
    Restart(&'static str),
    /// `xvip upgrade`.
    Upgrade(&'static str),
    /// The holder is asked to hand the VIPs over.
    Release,
    /// The cable of an appliance is pulled.
    Carrier(&'static str),
    /// Nobody hears an appliance, which sees no difference.
    Cut(&'static str),
    /// The appliances do not hear each other, and everybody hears both.
    Part,
    /// An appliance forgets all of its neighbours.
    Forget(&'static str),
    /// SIGKILL of a backend; it is started again later.
    BackendKilled(u8),
    /// SIGSTOP of a backend.
    BackendStopped(u8),
    /// Nobody hears a backend.
    BackendCut(u8),
    /// A backend gets another MAC address and says so.
    BackendMoved(u8),
    /// A configuration without a backend is followed by both appliances, and later the one before.
    Drain(u8),
    /// More connections are begun than there is room for.
    Flood,
}

/// A fault with the time for which it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) fault: Fault,
    pub(super) hold: Duration,
}

/// Steps without end, in which each kind of fault comes once before any comes again.
#[derive(Debug)]
pub(super) struct Plan {
    random: Rng,
    /// Kinds that are still to come in this turn.
    deck: Vec<Kind>,
}

type Kind = fn(&mut Rng) -> Fault;

const KINDS: [Kind; 16] = [
    |random| Fault::Kill(node(random)),
    |random| Fault::Stop(node(random)),
    |random| Fault::Terminate(node(random)),
    |random| Fault::Restart(node(random)),
    |random| Fault::Upgrade(node(random)),
    |_| Fault::Release,
    |random| Fault::Carrier(node(random)),
    |random| Fault::Cut(node(random)),
    |_| Fault::Part,
    |random| Fault::Forget(node(random)),
    |random| Fault::BackendKilled(backend(random)),
    |random| Fault::BackendStopped(backend(random)),
    |random| Fault::BackendCut(backend(random)),
    |random| Fault::BackendMoved(backend(random)),
    |random| Fault::Drain(backend(random)),
    |_| Fault::Flood,
];

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), deck: Vec::new() }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = KINDS.to_vec();
            self.random.shuffle(&mut self.deck);
        }
        let fault = self.deck.pop()?(&mut self.random);
        Some(Step { fault, hold: Duration::from_millis(self.random.u64(500..4000)) })
    }
}

/// Mostly the one that holds the VIPs, of which there is more to be seen.
fn node(random: &mut Rng) -> &'static str {
    if random.u8(..4) > 0 { A } else { NODES[1] }
}

fn backend(random: &mut Rng) -> u8 {
    random.u8(1..=3)
}

impl Fault {
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Terminate(_) => "terminate",
            Self::Restart(_) => "restart",
            Self::Upgrade(_) => "upgrade",
            Self::Release => "release",
            Self::Carrier(_) => "carrier",
            Self::Cut(_) => "cut",
            Self::Part => "part",
            Self::Forget(_) => "forget",
            Self::BackendKilled(_) => "backend-killed",
            Self::BackendStopped(_) => "backend-stopped",
            Self::BackendCut(_) => "backend-cut",
            Self::BackendMoved(_) => "backend-moved",
            Self::Drain(_) => "drain",
            Self::Flood => "flood",
        }
    }

    /// Whether connections with this backend may end by it.
    pub(super) fn may_end(self, backend: &str) -> bool {
        match self {
            Self::BackendKilled(n) | Self::BackendStopped(n) | Self::BackendCut(n) => backend == master(n),
            _ => false,
        }
    }

    /// Whether the appliances do not hear each other while it lasts, so that neither is told of what ends at the other.
    pub(super) fn parts(self) -> bool {
        match self {
            Self::Kill(_) | Self::Stop(_) | Self::Terminate(_) | Self::Restart(_) | Self::Upgrade(_) => true,
            Self::Carrier(_) | Self::Cut(_) | Self::Part => true,
            Self::Release | Self::Forget(_) | Self::Drain(_) | Self::Flood => false,
            Self::BackendKilled(_) | Self::BackendStopped(_) | Self::BackendCut(_) | Self::BackendMoved(_) => false,
        }
    }
}

/// The name of a backend.
pub(super) fn master(number: u8) -> String {
    format!("master-{number}")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fault.kind())?;
        match self.fault {
            Fault::Kill(node)
            | Fault::Stop(node)
            | Fault::Terminate(node)
            | Fault::Restart(node)
            | Fault::Upgrade(node)
            | Fault::Carrier(node)
            | Fault::Cut(node)
            | Fault::Forget(node) => write!(f, " {node}")?,
            Fault::BackendKilled(n)
            | Fault::BackendStopped(n)
            | Fault::BackendCut(n)
            | Fault::BackendMoved(n)
            | Fault::Drain(n) => write!(f, " {}", master(n))?,
            Fault::Release | Fault::Part | Fault::Flood => {}
        }
        write!(f, " for {} ms", self.hold.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| Plan::new(seed).take(100).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn each_kind_comes_once_in_a_turn() {
        let steps: Vec<Step> = Plan::new(1).take(2 * KINDS.len()).collect();
        for turn in steps.chunks(KINDS.len()) {
            let kinds: BTreeSet<&str> = turn.iter().map(|step| step.fault.kind()).collect();
            assert_eq!(kinds.len(), KINDS.len(), "{turn:?}");
        }
    }
}
