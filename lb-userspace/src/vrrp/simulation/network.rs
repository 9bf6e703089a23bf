//! The network between the nodes, and what is known of the latest advertisement from each to each.

use std::time::Duration;

/// What became of the latest advertisement with a lease from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    #[default]
    NeverSent,
    /// In the network, and so it may be late.
    Underway,
    /// The network's fault.
    Lost,
    /// It arrived where nobody listened: no process, or a machine that stood still, or a full socket.
    Unheard,
    /// In the socket.
    Arrived,
    Read,
}

/// From one node to another, of one instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    pub(super) latest: u64,
    pub(super) fate: Fate,
    /// The last one read was lower than the reader.
    pub(super) was_lower: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Conditions {
    pub(super) least_delay: Duration,
    pub(super) most_delay: Duration,
    /// In a thousand.
    pub(super) loss: u32,
    pub(super) duplication: u32,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) conditions: Conditions,
    /// A storm of loss on top.
    pub(super) storm: u32,
    /// On which side of a partition each node is.
    pub(super) side: Vec<bool>,
    /// One instance's segment is cut between the sides of this, the others are not.
    pub(super) segment_cut: Option<(usize, Vec<bool>)>,
    paths: Vec<Path>,
    nodes: usize,
}

impl Network {
    pub(super) fn new(conditions: Conditions, nodes: usize, instances: usize) -> Self {
        Self {
            conditions,
            storm: 0,
            side: vec![false; nodes],
            segment_cut: None,
            paths: vec![Path::default(); nodes * nodes * instances],
            nodes,
        }
    }

    pub(super) fn path(&mut self, instance: usize, from: usize, to: usize) -> &mut Path {
        &mut self.paths[(instance * self.nodes + from) * self.nodes + to]
    }

    pub(super) fn is_cut(&self, instance: usize, from: usize, to: usize) -> bool {
        let apart = |side: &[bool]| side[from] != side[to];
        apart(&self.side) || self.segment_cut.as_ref().is_some_and(|(cut, side)| *cut == instance && apart(side))
    }

    pub(super) fn is_whole(&self) -> bool {
        self.segment_cut.is_none() && self.side.iter().all(|side| *side == self.side[0])
    }

    pub(super) fn heal(&mut self) {
        self.side.fill(false);
        self.segment_cut = None;
        self.storm = 0;
    }

    /// When each copy of one packet arrives after it was sent; none if it is lost.
    pub(super) fn copies(&self, rng: &mut fastrand::Rng) -> Vec<Duration> {
        if rng.u32(0..1000) < self.conditions.loss + self.storm {
            return Vec::new();
        }
        let copies = if rng.u32(0..1000) < self.conditions.duplication { 2 } else { 1 };
        (0..copies).map(|_| self.delay(rng)).collect()
    }

    fn delay(&self, rng: &mut fastrand::Rng) -> Duration {
        between(rng, self.conditions.least_delay, self.conditions.most_delay)
    }
}

pub(super) fn between(rng: &mut fastrand::Rng, least: Duration, most: Duration) -> Duration {
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).expect("short");
    Duration::from_nanos(rng.u64(nanoseconds(least)..=nanoseconds(most)))
}
