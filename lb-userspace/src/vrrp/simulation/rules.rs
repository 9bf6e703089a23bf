//! What must hold in every run: who claims the VIPs, for how long two may, and when neighbours are told.

use std::time::Duration;

use super::{
    network::Fate,
    plan::Plan,
    world::{Node, World},
};
use crate::vrrp::{InstanceId, Moment, State};

#[derive(Debug)]
pub(super) struct Rules {
    nodes: usize,
    least_gap: Duration,
    /// By instance and node: when neighbours were last answered by it.
    last_claim: Vec<Vec<Moment>>,
    /// By instance and pair: since when both claim.
    both_since: Vec<Vec<Option<Moment>>>,
    /// By instance and node: someone else claimed until then, and the neighbours must hear from this one.
    owed: Vec<Vec<Option<Moment>>>,
    /// By instance and node: whose advertisement was read last, and its priority.
    last_read: Vec<Vec<Option<(usize, u8)>>>,
}

impl Rules {
    pub(super) fn new(plan: &Plan) -> Self {
        let (nodes, instances) = (plan.nodes.len(), plan.nodes[0].len());
        Self {
            nodes,
            least_gap: plan.gap(false),
            last_claim: vec![vec![Moment::default(); nodes]; instances],
            both_since: vec![vec![None; nodes * nodes]; instances],
            owed: vec![vec![None; nodes]; instances],
            last_read: vec![vec![None; nodes]; instances],
        }
    }

    pub(super) fn last_read(&mut self, instance: usize, reader: usize, from: usize, priority: u8) {
        self.last_read[instance][reader] = Some((from, priority));
    }

    pub(super) fn announced(&mut self, instance: usize, node: usize) {
        self.owed[instance][node] = None;
    }
}

impl World {
    /// Nothing has happened since `changed` but that time has passed.
    pub(super) fn judge(&mut self, until: Moment) -> Result<(), String> {
        if self.network.segment_cut.is_some() {
            // Members of one group may hear each other here and not there: only what each node does is judged.
            self.quiet_since = until;
        }
        for instance in 0..self.nodes[0].settings.len() {
            self.judge_overlaps(instance, until)?;
            self.judge_gap(instance, until)?;
            self.judge_announcements(instance, until)?;
        }
        Ok(())
    }

    /// Always one owner within the bound.
    fn judge_gap(&mut self, instance: usize, until: Moment) -> Result<(), String> {
        let mut latest = Moment::default();
        for (node, last) in self.nodes.iter().zip(&mut self.rules.last_claim[instance]) {
            let kernel = &node.kernels[instance];
            if let Some(lease) = kernel.lease.filter(|_| kernel.holds && node.has_link) {
                *last = (*last).max(lease.min(until));
            }
            latest = latest.max(*last);
        }
        // Most calls end here, and this is called often.
        let excused = if self.network.is_whole() { latest.max(self.quiet_since) } else { self.quiet_since };
        if until - excused <= self.rules.least_gap {
            return Ok(());
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_fit()) {
            let reachable = (0..self.nodes.len()).filter(|other| !self.network.is_cut(instance, index, *other));
            let claimed = reachable.map(|other| self.rules.last_claim[instance][other]).max().expect("itself");
            let gap = until - claimed.max(node.fit_since).max(self.quiet_since);
            if gap > self.plan.gap(node.is_released()) {
                return Err(format!("no owner of {instance} for {gap:?}, though {index} is fit to be"));
            }
        }
        Ok(())
    }

    /// No two owners longer than the bound.
    fn judge_overlaps(&mut self, instance: usize, until: Moment) -> Result<(), String> {
        if self.nodes.iter().filter(|node| node.kernels[instance].holds).count() < 2
            && self.rules.both_since[instance].iter().all(Option::is_none)
        {
            return Ok(());
        }
        let bound = self.plan.overlap();
        let count = self.rules.nodes;
        for one in 0..count {
            for other in one + 1..count {
                let both = self.nodes[one].claims(instance, until)
                    && self.nodes[other].claims(instance, until)
                    && !self.network.is_cut(instance, one, other);
                let since = &mut self.rules.both_since[instance][one * count + other];
                if !both {
                    if let Some(since) = since.take() {
                        self.overlap_ends(instance, one, other, since, until);
                        self.overlap_ends(instance, other, one, since, until);
                    }
                    continue;
                }
                if since.is_none() {
                    self.tally.overlaps += 1;
                }
                let since = *since.get_or_insert(self.changed);
                let (a, b) = (&self.nodes[one], &self.nodes[other]);
                let from = since.max(self.quiet_since).max(a.fit_since).max(b.fit_since);
                if a.is_fit() && b.is_fit() && until - from > bound {
                    return Err(format!("{one} and {other} both own {instance} since {since:?}"));
                }
            }
        }
        Ok(())
    }

    fn overlap_ends(&mut self, instance: usize, loser: usize, winner: usize, since: Moment, until: Moment) {
        // Who was killed has no last words.
        let well = |node: usize| self.nodes[node].is_fit() && self.nodes[node].fit_since <= since;
        let lost = !self.nodes[loser].kernels[instance].holds;
        if lost && well(loser) && well(winner) && self.nodes[winner].claims(instance, until) {
            self.rules.owed[instance][winner] = Some(self.changed);
            self.tally.owed_announcements += 1;
        }
    }

    /// The owner announces again after any overlap.
    fn judge_announcements(&mut self, instance: usize, until: Moment) -> Result<(), String> {
        // The loser's last words arrive and are read; then the spacing of announcements.
        let bound = self.plan.reaction() + Duration::from_millis(10) + self.plan.latency;
        for (index, node) in self.nodes.iter().enumerate() {
            let owed = &mut self.rules.owed[instance][index];
            let Some(since) = *owed else { continue };
            if self.quiet_since >= since || !node.is_fit() || !node.claims(instance, until) {
                *owed = None;
            } else if until - since > bound {
                return Err(format!("{index} has not announced {instance} since another claimed it, at {since:?}"));
            }
        }
        Ok(())
    }

    /// The theorem of leases: who takes over from a master whose last word it has heard does so after that one's lease,
    /// because `received + factor × interval + skew > sent + factor × interval`. What else may happen is listed here.
    pub(super) fn judge_promotion(&mut self, instance: usize, new: usize) -> Result<(), String> {
        for old in (0..self.nodes.len()).filter(|old| *old != new) {
            if !self.nodes[old].claims(instance, self.now) {
                continue;
            }
            self.tally.judged_leases += 1;
            if let Some(wrong) = self.wrong_in_taking_over(instance, old, new) {
                return Err(format!("{new} takes {instance} over from {old}, whose lease runs: {wrong}"));
            }
        }
        Ok(())
    }

    fn wrong_in_taking_over(&mut self, instance: usize, old: usize, new: usize) -> Option<&'static str> {
        let (path, is_cut) = (self.network.path(instance, old, new).clone(), self.network.is_cut(instance, old, new));
        let (from, to) = (&self.nodes[old], &self.nodes[new]);
        let settings = &to.settings[instance];
        if settings.priority == 255 || to.has_inherited || is_cut {
            return None;
        }
        let delay_is_over = to.lower_since[instance].is_some_and(|since| self.now - since >= settings.preempt_delay);
        if path.was_lower && settings.preempt && !to.has_released && delay_is_over {
            return None;
        }
        // It has not heard of the old one, and is not as patient.
        if self.plan.mixed && to.follows[instance] != from.settings[instance].source {
            return None;
        }
        match path.fate {
            Fate::NeverSent | Fate::Underway | Fate::Lost => None,
            // An old one that is well would have been heard by listening; a nap after two lost ones is not noticed.
            Fate::Unheard => {
                let well_since = self.quiet_since.max(from.fit_since);
                (from.is_fit() && !to.is_drowsy && self.now - well_since > self.plan.down)
                    .then_some("it did not listen")
            }
            Fate::Arrived => Some("it did not read what had arrived"),
            Fate::Read => {
                // Another master was followed since, or the old one's resignation was overtaken by its return.
                let excuse = |(from, priority)| from != old || priority == 0;
                (!self.rules.last_read[instance][new].is_some_and(excuse)).then_some("it heard it")
            }
        }
    }

    /// A group is master together or not at all.
    pub(super) fn judge_group(&self, index: usize) -> Result<(), String> {
        let Some(router) = &self.nodes[index].router else { return Ok(()) };
        let of = self.nodes[index].settings.len();
        let masters = (0..of).filter(|id| router.view(InstanceId(*id)).state == State::Master).count();
        if masters == 0 || masters == of { Ok(()) } else { Err(format!("{index} is master of {masters} of its group")) }
    }

    /// Long after the last fault.
    pub(super) fn judge_the_end(&mut self) -> Result<(), String> {
        if self.now - self.last_promotion < self.plan.down {
            return Err("there is no peace".to_owned());
        }
        for instance in 0..self.nodes[0].settings.len() {
            let owners: Vec<usize> =
                (0..self.nodes.len()).filter(|node| self.nodes[*node].claims(instance, self.now)).collect();
            let [owner] = owners[..] else {
                return Err(format!("owners of {instance} at the end: {owners:?}"));
            };
            let best = self.nodes.iter().map(|node| node.priority(instance)).max().expect("there are nodes");
            let preempts = |node: &Node| node.settings[instance].preempt && !node.is_released();
            if self.nodes.iter().all(preempts) && self.nodes[owner].priority(instance) < best {
                return Err(format!("{owner} owns {instance} at the end, and a better one waits"));
            }
        }
        Ok(())
    }
}
