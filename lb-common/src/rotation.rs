//! Tables for backends that take turns: slot after slot, each stands as often as its weight says, and as evenly spread as can be.

use std::{cmp::Ordering, collections::BinaryHeap, vec, vec::Vec};

use crate::{
    abi::BackendId,
    maglev::{Member, SLOTS},
};

/// A member and when it is due: the middle of its next stretch, on a scale on which a member of pull 1 has stretches of 1.
struct Due {
    /// Odd, since it counts halves of a stretch.
    halves: u64,
    pull: u64,
    index: usize,
}

impl Ord for Due {
    /// The greatest is the one that is due first; of two at the same time, the first in the table.
    fn cmp(&self, other: &Self) -> Ordering {
        let (own, others) = (self.halves * other.pull, other.halves * self.pull);
        others.cmp(&own).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

/// Fills a table of [`SLOTS`] slots in turns; all are [`BackendId::NONE`] where no member takes any. The outcome does not depend on the
/// members' order or ids.
pub fn build(members: &[Member]) -> Vec<BackendId> {
    let mut members: Vec<Member> = members.iter().copied().filter(|member| member.pull() > 0).collect();
    members.sort_by_key(|member| (member.address, member.port));
    let due = |(index, member): (usize, &Member)| Due { halves: 1, pull: member.pull().into(), index };
    let mut next: BinaryHeap<Due> = members.iter().enumerate().map(due).collect();
    let mut table = vec![BackendId::NONE; SLOTS as usize];
    for slot in &mut table {
        if let Some(mut first) = next.peek_mut() {
            *slot = members[first.index].id;
            first.halves += 2;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        address::{Address as _, V4},
        maglev::WHOLE,
    };

    fn member(last: u8, weight: u16, portion: u16) -> Member {
        let address = V4([10, 0, 0, last]).mapped();
        Member { id: BackendId(u32::from(last)), address, port: [25, 43], weight, portion }
    }

    fn turns(table: &[BackendId], count: usize) -> Vec<u32> {
        table.iter().take(count).map(|id| id.0).collect()
    }

    #[test]
    fn equals_take_turns() {
        let table = build(&[3, 1, 2].map(|last| member(last, 7, WHOLE)));
        assert_eq!(turns(&table, 7), [1, 2, 3, 1, 2, 3, 1]);
        let weighted = build(&[member(1, 1, WHOLE), member(2, 3, WHOLE), member(3, 0, WHOLE)]);
        assert_eq!(turns(&weighted, 8), [2, 1, 2, 2, 2, 1, 2, 2]);
        let half = build(&[member(1, 1, WHOLE / 2), member(2, 1, WHOLE)]);
        assert_eq!(turns(&half, 6), [2, 1, 2, 2, 1, 2]);
    }

    #[test]
    fn nobody_takes_a_turn_where_nobody_is() {
        assert!(build(&[]).iter().all(|id| *id == BackendId::NONE));
        assert!(build(&[member(1, 1, 0)]).iter().all(|id| *id == BackendId::NONE));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_stretch_of_turns_follows_the_weights(weights in prop::collection::vec(1_u16..=256, 1..9), start in 0_usize..8_000, length in 1_usize..8_000) {
            let members: Vec<Member> = weights.iter().zip(1..).map(|(weight, last)| member(last, *weight, WHOLE)).collect();
            let table = build(&members);
            let total: u32 = members.iter().map(|member| u32::from(member.weight)).sum();
            for member in &members {
                let fair = length as f64 * f64::from(member.weight) / f64::from(total);
                let got = table[start..start + length].iter().filter(|id| **id == member.id).count();
                // With a scheduler of equal stretches none is ever further off than that.
                let off = (got as f64 - fair).abs();
                prop_assert!(off <= 2.0 + weights.len() as f64 / 2.0, "{} of {} instead of {}", got, length, fair);
            }
        }
    }
}
