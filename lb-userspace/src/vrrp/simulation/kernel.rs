//! What the driver and the kernel make of the actions for one instance, and the order in which they may come.

use crate::vrrp::{Action, Moment, State};

#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) holds: bool,
    pub(crate) lease: Option<Moment>,
    last: Option<Action>,
    /// Held by the process before this one, which was killed.
    is_left_over: bool,
}

impl Kernel {
    /// Whether neighbours who ask for the VIPs are answered.
    pub(crate) fn claims(&self, now: Moment) -> bool {
        self.holds && self.lease.is_some_and(|until| now <= until)
    }

    /// A new process finds what the old one left.
    pub(crate) fn inherit(&mut self) {
        self.last = None;
        self.is_left_over = self.holds;
    }

    /// What nobody took on is taken off.
    pub(crate) fn clean_up(&mut self) {
        if self.is_left_over {
            *self = Self::default();
        }
    }

    pub(crate) fn carry_out(&mut self, action: Action, now: Moment) -> Result<(), String> {
        let last = self.last.replace(action);
        let allowed = match action {
            Action::Advertise { priority, lease: Some(until) } => {
                let in_time = !self.holds || self.lease.is_none_or(|lease| now <= lease);
                let allowed = priority > 0 && until > now && in_time;
                self.lease = Some(until);
                allowed
            }
            Action::Advertise { priority, lease: None } => {
                self.lease = None;
                if self.holds { priority == 0 } else { last == Some(Action::Yield) }
            }
            Action::Hold => {
                let allowed = matches!(last, Some(Action::Advertise { lease: Some(_), .. }));
                let allowed = allowed && self.holds == self.is_left_over;
                (self.holds, self.is_left_over) = (true, false);
                allowed
            }
            Action::Announce => self.claims(now),
            Action::Yield => {
                let resigned = matches!(last, Some(Action::Advertise { priority: 0, lease: None }));
                let allowed = self.holds && (resigned || self.lease.is_some());
                (self.holds, self.lease) = (false, None);
                allowed
            }
            Action::Became(state) => self.is_left_over || self.holds == (state == State::Master),
        };
        if allowed { Ok(()) } else { Err(format!("{action:?} after {last:?}, with {self:?}")) }
    }
}
