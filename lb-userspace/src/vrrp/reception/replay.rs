//! The latest stamp of each sender: what is not after it was sent before.

use std::{net::IpAddr, time::Duration};

use crate::vrrp::packet::hmac::{Stamp, is_beyond};

/// Senders remembered over multicast, where nobody says who they are. More than one speak only while they contend.
const SENDERS: usize = 4;

/// One mark a sender, those heard most recently last.
#[derive(Debug)]
pub(super) struct Marks {
    marks: Vec<(IpAddr, Stamp)>,
    capacity: usize,
}

impl Marks {
    /// Each peer keeps its mark.
    pub(super) fn new(peers: usize) -> Self {
        Self { marks: Vec::new(), capacity: peers.max(SENDERS) }
    }

    /// Whether the stamp is after all that was heard of the sender.
    ///
    /// A mark too far in the future to be accepted again came from a clock that has been put right since.
    pub(super) fn is_new(&self, sender: IpAddr, stamp: Stamp, wall: Duration, window: Duration) -> bool {
        let mark = self.marks.iter().find(|(other, _)| *other == sender);
        mark.is_none_or(|(_, mark)| stamp.is_after(*mark) || is_beyond(*mark, wall, window))
    }

    pub(super) fn raise(&mut self, sender: IpAddr, stamp: Stamp) {
        if let Some(index) = self.marks.iter().position(|(other, _)| *other == sender) {
            self.marks.remove(index);
        } else if self.marks.len() == self.capacity {
            self.marks.remove(0);
        }
        self.marks.push((sender, stamp));
    }
}
