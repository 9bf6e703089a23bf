//! What can go wrong in the simulated world, and how it ends.

use std::{cmp::Ordering, time::Duration};

use super::{
    agenda::{Happening, Relief},
    kernel::Kernel,
    network::{Fate, between},
    plan::Fault,
    world::{Node, Standstill, Violation, World},
};
use crate::vrrp::Router;

impl World {
    pub(super) fn strike(&mut self) -> Result<(), Violation> {
        self.strikes_left = self.strikes_left.saturating_sub(1);
        let fault = *self.rng.choice(&self.plan.faults).expect("some");
        let node = self.rng.usize(0..self.nodes.len());
        let lasts = self.some_time();
        self.note(|_| format!("{fault:?} strikes {node} for {lasts:?}"));
        let running = self.nodes[node].router.is_some() && self.nodes[node].standstill.is_none();
        let relief = match fault {
            Fault::Pause | Fault::Suspend if running => {
                let whole = fault == Fault::Suspend;
                self.nodes[node].standstill = Some(if whole { Standstill::Machine } else { Standstill::Process });
                Some(Relief::Resume(node))
            }
            Fault::Kill | Fault::PowerOff | Fault::Shutdown if running => {
                if fault == Fault::Shutdown {
                    self.nodes[node].router.as_mut().expect("runs").on_shutdown(self.now);
                    self.act(node)?;
                }
                if fault == Fault::PowerOff {
                    self.nodes[node].kernels.fill(Kernel::default());
                }
                self.nodes[node].router = None;
                // With the process its socket is gone, and what was in there.
                for letter in std::mem::take(&mut self.nodes[node].inbox) {
                    let path = self.network.path(letter.instance, letter.from, node);
                    if path.latest == letter.number && path.fate == Fate::Arrived {
                        path.fate = Fate::Unheard;
                    }
                }
                Some(Relief::Start(node))
            }
            Fault::Release if running => {
                self.nodes[node].router.as_mut().expect("runs").on_release(self.now);
                self.act(node)?;
                self.nodes[node].fit_since = self.now;
                self.wake_within(node, self.now);
                None
            }
            Fault::LinkDown if self.nodes[node].has_link => {
                self.nodes[node].has_link = false;
                self.tell(node);
                Some(Relief::Link(node))
            }
            Fault::Forbidden if !self.nodes[node].condition.fault => {
                self.nodes[node].condition.fault = true;
                self.tell(node);
                Some(Relief::Permit(node))
            }
            Fault::Weight if self.nodes[node].condition.adjustment == 0 => {
                let adjustment = *self.rng.choice(&[-253, -50, -10, 10, 50]).expect("some");
                self.nodes[node].condition.adjustment = adjustment;
                self.tell(node);
                Some(Relief::Weight(node))
            }
            Fault::Clock if self.nodes[node].clock_error.is_none() => {
                let ahead = if self.rng.bool() { Ordering::Greater } else { Ordering::Less };
                self.nodes[node].clock_error = Some((ahead, self.some_time()));
                Some(Relief::Clock(node))
            }
            Fault::Partition => {
                let side = (0..self.nodes.len()).map(|_| self.rng.bool()).collect();
                self.network.side = side;
                Some(Relief::Network)
            }
            Fault::SegmentCut if self.plan.is_grouped() => {
                let side = (0..self.nodes.len()).map(|_| self.rng.bool()).collect();
                self.network.segment_cut = Some((self.rng.usize(0..2), side));
                Some(Relief::Network)
            }
            Fault::Storm => {
                self.network.storm = *self.rng.choice(&[100, 400, 1000]).expect("some");
                Some(Relief::Network)
            }
            _ => None,
        };
        // A change of priority excuses nothing: it must neither make a gap nor two owners.
        if fault != Fault::Weight {
            self.quiet_since = self.now;
        }
        if let Some(relief) = relief {
            self.schedule(lasts, Happening::Relief(relief));
        }
        let gap = self.some_time();
        self.schedule(gap, Happening::Strike);
        Ok(())
    }

    /// From much less than an interval to more than a takeover.
    fn some_time(&mut self) -> Duration {
        let (interval, down) = (self.plan.interval, self.plan.down);
        let most = *self.rng.choice(&[interval / 4, interval * 2, down, down, down * 4]).expect("some");
        between(&mut self.rng, Duration::ZERO, most)
    }

    pub(super) fn relieve_all(&mut self) -> Result<(), Violation> {
        self.note(|_| "the faults are over".to_owned());
        for node in 0..self.nodes.len() {
            for relief in [Relief::Resume, Relief::Start, Relief::Link, Relief::Permit, Relief::Weight, Relief::Clock] {
                self.relieve(relief(node))?;
            }
        }
        self.relieve(Relief::Network)?;
        self.network.conditions.loss = 0;
        self.agenda = std::mem::take(&mut self.agenda)
            .into_iter()
            .filter(|planned| !matches!(planned.happening, Happening::Strike | Happening::Relief(_)))
            .collect();
        Ok(())
    }

    pub(super) fn relieve(&mut self, relief: Relief) -> Result<(), Violation> {
        self.note(|_| format!("{relief:?}"));
        let was_fit: Vec<bool> = self.nodes.iter().map(Node::is_fit).collect();
        match relief {
            Relief::Resume(node) => {
                if self.nodes[node].standstill.take().is_some() {
                    self.nodes[node].is_drowsy = self.now - self.nodes[node].resumed < self.plan.down * 2;
                    self.nodes[node].resumed = self.now;
                    self.wake_within(node, self.now);
                }
            }
            Relief::Start(node) => {
                if self.nodes[node].router.is_none() {
                    self.start(node)?;
                }
            }
            Relief::Link(node) => {
                self.nodes[node].has_link = true;
                self.tell(node);
            }
            Relief::Permit(node) => {
                self.nodes[node].condition.fault = false;
                self.tell(node);
            }
            Relief::Weight(node) => {
                self.nodes[node].condition.adjustment = 0;
                self.tell(node);
            }
            Relief::Clock(node) => self.nodes[node].clock_error = None,
            Relief::Network => {
                self.network.heal();
                self.quiet_since = self.now;
            }
        }
        for (node, was_fit) in self.nodes.iter_mut().zip(was_fit) {
            if !was_fit && node.is_fit() {
                node.fit_since = self.now;
            }
        }
        Ok(())
    }

    /// A new process goes on where the old one was while its lease runs, or takes away what that one left.
    fn start(&mut self, index: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[index];
        let inherits = self.rng.bool() && node.kernels.iter().all(|kernel| kernel.claims(self.now));
        let mut instances = node.settings.clone();
        for (settings, kernel) in instances.iter_mut().zip(&mut node.kernels) {
            if inherits {
                settings.lease = kernel.lease;
                kernel.inherit();
            } else {
                *kernel = Kernel::default();
            }
            settings.condition = node.condition;
            settings.source = settings.source.filter(|_| node.has_link);
        }
        node.lower_since.fill(None);
        node.has_inherited = inherits;
        node.has_released = false;
        node.standstill = None;
        node.router = Some(Router::new(instances, self.now));
        self.act(index)?;
        self.nodes[index].has_inherited = false;
        self.nodes[index].kernels.iter_mut().for_each(Kernel::clean_up);
        self.wake_within(index, self.now);
        Ok(())
    }
}
