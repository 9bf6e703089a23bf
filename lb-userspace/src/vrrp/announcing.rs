//! When the owner of a VIP tells its neighbours: a burst that outlasts a lost packet or a learning switch, then slowly
//! for ever, so that no neighbour keeps a wrong entry for long.

use std::time::Duration;

use super::Moment;
use crate::host::announce::BURST;

/// After the burst.
const SLOW: Duration = Duration::from_secs(10);

/// Between two announcements, however often a burst begins again: a rival that advertises without end must not make us
/// flood the network.
const SPACING: Duration = Duration::from_millis(10);

/// The announcements of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announcing {
    /// When the burst began.
    begun: Moment,
    next: Moment,
    /// Not before this, whatever happens.
    earliest: Moment,
}

impl Announcing {
    /// The first is due at once.
    pub(super) fn begin(now: Moment) -> Self {
        Self { begun: now, next: now, earliest: now }
    }

    /// Neighbours may have been told otherwise: the burst begins again.
    pub(super) fn again(&mut self, now: Moment) {
        self.begun = now;
        self.next = self.earliest.max(now);
    }

    pub(super) fn deadline(&self) -> Moment {
        self.next
    }

    /// Whether to announce now. What a late caller missed is not made up for: one announcement says it all.
    pub(super) fn take(&mut self, now: Moment) -> bool {
        if now < self.next {
            return false;
        }
        self.earliest = now + SPACING;
        let ahead = BURST.iter().map(|offset| self.begun + *offset).find(|planned| *planned > now);
        self.next = ahead.map_or(now + SLOW, |planned| planned.max(self.earliest));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment(Duration::from_millis(milliseconds))
    }

    /// The next `count` announcements of a caller who is always in time.
    fn next(announcing: &mut Announcing, count: usize) -> Vec<u64> {
        let mut made = Vec::new();
        while made.len() < count {
            let deadline = announcing.deadline();
            assert!(announcing.take(deadline));
            made.push(u64::try_from(deadline.0.as_millis()).unwrap());
        }
        made
    }

    #[test]
    fn a_burst_then_slowly() {
        let mut announcing = Announcing::begin(at(7));
        let offsets = [0, 10, 50, 200, 500, 1000, 2000, 5000, 15_000, 25_000, 35_000];
        assert_eq!(next(&mut announcing, 11), offsets.map(|offset| offset + 7));
    }

    #[test]
    fn not_before_it_is_due() {
        let mut announcing = Announcing::begin(at(0));
        assert!(announcing.take(at(0)));
        assert!(!announcing.take(at(0)));
        assert!(!announcing.take(at(9)));
        assert!(announcing.take(at(10)));
    }

    #[test]
    fn missed_ones_are_one() {
        let mut announcing = Announcing::begin(at(0));
        assert!(announcing.take(at(700)));
        assert_eq!(next(&mut announcing, 3), [1000, 2000, 5000]);
    }

    #[test]
    fn the_burst_begins_again() {
        let mut announcing = Announcing::begin(at(0));
        next(&mut announcing, 9);
        announcing.again(at(20_000));
        assert_eq!(next(&mut announcing, 4), [20_000, 20_010, 20_050, 20_200]);
    }

    #[test]
    fn a_rival_without_end_gets_one_in_10_ms() {
        let mut announcing = Announcing::begin(at(0));
        let made = (0..1000)
            .filter(|millisecond| {
                announcing.again(at(*millisecond));
                announcing.take(at(*millisecond))
            })
            .count();
        assert_eq!(made, 100);
    }
}
