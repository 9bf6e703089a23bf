//! What one seed plays: the nodes, their network, and which faults may strike them.

use std::{net::IpAddr, time::Duration};

use super::network::{Conditions, between};
use crate::vrrp::{Settings, Version};

/// Room for what a node can miss while its process stands still.
pub(super) const SOCKET: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process stands still (SIGSTOP, starved): packets wait in its socket.
    Pause,
    /// The whole machine stands still: packets are lost.
    Suspend,
    /// Killed without a word, and started again: with what it left, or without.
    Kill,
    PowerOff,
    Shutdown,
    Release,
    LinkDown,
    /// Something forbids mastership.
    Forbidden,
    /// A weight moves the priority.
    Weight,
    /// Packets are stamped by a clock that was set.
    Clock,
    Partition,
    /// One instance's segment only.
    SegmentCut,
    Storm,
}

const ALL: [Fault; 13] = [
    Fault::Pause,
    Fault::Suspend,
    Fault::Kill,
    Fault::PowerOff,
    Fault::Shutdown,
    Fault::Release,
    Fault::LinkDown,
    Fault::Forbidden,
    Fault::Weight,
    Fault::Clock,
    Fault::Partition,
    Fault::SegmentCut,
    Fault::Storm,
];

#[derive(Debug)]
pub(super) struct Plan {
    /// By node, then by instance.
    pub(super) nodes: Vec<Vec<Settings>>,
    pub(super) network: Conditions,
    /// The most that a process wakes up late while it is well.
    pub(super) latency: Duration,
    pub(super) faults: Vec<Fault>,
    pub(super) strikes: u32,
    /// Nodes advertise at different intervals.
    pub(super) mixed: bool,
    /// The longest interval, and the longest that a backup waits.
    pub(super) interval: Duration,
    pub(super) down: Duration,
}

impl Plan {
    pub(super) fn random(rng: &mut fastrand::Rng) -> Self {
        let version = if rng.u8(0..4) == 0 { Version::V2 } else { Version::V3 };
        let base = Duration::from_millis(match version {
            Version::V2 => 1000,
            Version::V3 => *rng.choice(&[10, 50, 100, 1000]).expect("some"),
        });
        let nodes = *rng.choice(&[2, 2, 3, 3, 4, 5]).expect("some");
        let grouped = rng.u8(0..4) == 0;
        let crosswise = rng.bool();
        let mixed = version == Version::V3 && rng.u8(0..4) == 0;
        let equal = rng.u8(0..3) == 0;
        let owner = rng.u8(0..6) == 0;
        let template = Settings {
            version,
            down_factor: *rng.choice(&[3, 3, 3, 5]).expect("some"),
            preempt: rng.u8(0..4) > 0,
            preempt_delay: if rng.u8(0..5) == 0 { base * 4 } else { Duration::ZERO },
            sync_group: grouped.then(|| "both".to_owned()),
            ..Settings::example(100, [192, 0, 2, 1].into())
        };
        let nodes: Vec<Vec<Settings>> = (0..nodes)
            .map(|node| {
                let priority = match (owner && node == 0, equal) {
                    (true, _) => 255,
                    (false, true) => 100,
                    (false, false) => rng.u8(1..=254),
                };
                let interval = if mixed { base * *rng.choice(&[1, 1, 2, 5]).expect("some") } else { base };
                (0..if grouped { 2 } else { 1 })
                    .map(|instance| {
                        let source = Some(address(instance, node, crosswise));
                        Settings { priority, interval, source, ..template.clone() }
                    })
                    .collect()
            })
            .collect();

        let interval = nodes.iter().map(|node| node[0].interval).max().expect("there are nodes");
        let skew = if version == Version::V2 { Duration::from_secs(1) } else { interval };
        let most_delay = between(rng, Duration::from_micros(20), base / 5);
        let network = Conditions {
            least_delay: most_delay.min(Duration::from_micros(20)),
            most_delay,
            loss: *rng.choice(&[0, 0, 0, 20, 200]).expect("some"),
            duplication: *rng.choice(&[0, 0, 50, 300]).expect("some"),
        };
        let faults = if rng.u8(0..3) == 0 { vec![*rng.choice(&ALL).expect("some")] } else { ALL.to_vec() };
        Self {
            network,
            latency: between(rng, Duration::from_micros(1), base / 20),
            faults,
            strikes: rng.u32(2..10),
            mixed,
            interval,
            down: interval * u32::from(template.down_factor) + skew,
            nodes,
        }
    }

    /// One way and the time to react to it.
    pub(super) fn reaction(&self) -> Duration {
        self.network.most_delay + self.latency
    }

    /// For how long there may be no owner while a node is fit to be one. In a group the loser stays away for twice the
    /// down interval, and may first have to find out that it lost.
    pub(super) fn gap(&self, stays_away: bool) -> Duration {
        let downs = match (self.is_grouped(), stays_away) {
            (true, _) => 4,
            (false, true) => 2,
            (false, false) => 1,
        };
        self.down * downs + self.reaction() * 2
    }

    /// For how long two nodes that hear each other may both claim: until the better one's next advertisement has
    /// arrived.
    pub(super) fn overlap(&self) -> Duration {
        self.interval + self.reaction() * 2
    }

    /// After the last fault: who should be owner is, and stays.
    pub(super) fn settling(&self) -> Duration {
        self.gap(true) + self.nodes[0][0].preempt_delay + self.down * 2 + self.interval
    }

    pub(super) fn is_grouped(&self) -> bool {
        self.nodes[0].len() > 1
    }
}

/// Crosswise, the node with the higher address in one instance has the lower one in the other.
fn address(instance: usize, node: usize, crosswise: bool) -> IpAddr {
    let node = u8::try_from(node).expect("few nodes");
    if instance == 0 {
        [192, 0, 2, 10 + node].into()
    } else {
        let last = u16::from(if crosswise { 90 - node } else { 10 + node });
        [0xfe80, 0, 0, 0, 0, 0, 0, last].into()
    }
}
