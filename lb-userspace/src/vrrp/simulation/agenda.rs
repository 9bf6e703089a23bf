//! What will happen in the simulated world, in its order.

use std::cmp::Ordering;

use crate::vrrp::{Heard, Moment};

#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) instance: usize,
    pub(super) from: usize,
    pub(super) number: u64,
    pub(super) heard: Heard,
}

#[derive(Debug)]
pub(super) enum Happening {
    Arrival { to: usize, letter: Letter },
    Wake(usize),
    Strike,
    Relief(Relief),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Relief {
    Resume(usize),
    Start(usize),
    Link(usize),
    Permit(usize),
    Weight(usize),
    Clock(usize),
    Network,
}

#[derive(Debug)]
pub(super) struct Scheduled {
    pub(super) at: Moment,
    /// Of two at the same time, the one that was planned first.
    pub(super) number: u64,
    pub(super) happening: Happening,
}

impl Ord for Scheduled {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}
