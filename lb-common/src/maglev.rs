//! Selection tables after Maglev (Eisenbud et al., NSDI 2016, §3.4), with weights, and with the least possible
//! disruption when a backend dies.
//!
//! The paper builds a new table from the live backends, which moves a few slots of those that stay. Here a table is
//! built from *all* configured backends first and only the slots of dead ones are then given to the live ones, each in the
//! order of its own preference: the death of one backend moves its own slots only, its return brings back exactly
//! those, all at once or in portions, and two nodes that see the same health have the same table without talking.

/// Slots of a table: a prime, so that every step walks over all of them. With 100 backends the shares are even to 1 %, and
/// a table is 64 KiB, which keeps the time to fill a new one below what a health check takes.
pub const SLOTS: u32 = 16_381;

/// The slot of a hash.
#[inline(always)]
pub const fn slot(hash: u32) -> u32 {
    hash % SLOTS
}

#[cfg(any(test, feature = "user"))]
pub use build::{Member, WHOLE, build};

#[cfg(any(test, feature = "user"))]
mod build {
    use std::{vec, vec::Vec};

    use super::SLOTS;
    use crate::{abi::BackendId, flow::mix};

    /// A backend as a candidate for slots.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Member {
        pub id: BackendId,
        pub address: [u8; 16],
        pub port: [u8; 2],
        /// Share of the slots, relative to the others'; 0 gets none.
        pub weight: u16,
        /// How much of its share it takes now, of [`WHOLE`]: nothing while it gets no new connections, and ever more while it comes back.
        pub portion: u16,
    }

    /// A whole share.
    pub const WHOLE: u16 = 32;

    impl Member {
        /// Its weight against that of the others at this moment.
        pub const fn pull(&self) -> u32 {
            self.weight as u32 * self.portion as u32
        }
    }

    /// A member's own order of all slots.
    struct Preference {
        next: u32,
        skip: u32,
    }

    impl Preference {
        fn new(member: &Member) -> Self {
            let hash = |seed: u32| {
                let bytes = member.address.iter().chain(&member.port);
                mix(bytes.fold(seed, |hash, byte| mix(hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)))
            };
            Self { next: hash(0x811c_9dc5) % SLOTS, skip: hash(0x5bd1_e995) % (SLOTS - 1) + 1 }
        }

        fn advance(&mut self) -> usize {
            let slot = self.next;
            self.next = (self.next + self.skip) % SLOTS;
            slot as usize
        }
    }

    /// Fills a table of [`SLOTS`] slots; all are [`BackendId::NONE`] where no member takes any.
    ///
    /// The outcome depends on the members' addresses, ports, weights and portions, not on their order or ids. Where nobody has a whole share,
    /// the largest portion counts as one.
    pub fn build(members: &[Member]) -> Vec<BackendId> {
        let mut members: Vec<Member> = members.iter().copied().filter(|member| member.weight > 0).collect();
        members.sort_by_key(|member| (member.address, member.port));
        let largest = members.iter().map(|member| member.portion).max().unwrap_or_default();

        let mut owners: Vec<Option<usize>> = vec![None; SLOTS as usize];
        let everyone: Vec<usize> = (0..members.len()).collect();
        let own = distribute(&members, &everyone, &mut owners);

        let (whole, partial): (Vec<usize>, Vec<usize>) =
            everyone.into_iter().partition(|index| members[*index].portion == largest && largest > 0);
        if !partial.is_empty() {
            for owner in &mut owners {
                owner.take_if(|index| members[*index].portion < largest || largest == 0);
            }
            distribute(&members, &whole, &mut owners);
            for index in partial.into_iter().filter(|_| largest > 0) {
                let taken = own[index].len() * usize::from(members[index].portion) / usize::from(largest);
                own[index][..taken].iter().for_each(|slot| owners[*slot] = Some(index));
            }
        }
        owners.into_iter().map(|owner| owner.map_or(BackendId::NONE, |index| members[index].id)).collect()
    }

    /// Gives every free slot to one of `takers`, in turns whose frequency follows their weights. Which ones each member got, in the order of
    /// its preference.
    fn distribute(members: &[Member], takers: &[usize], owners: &mut [Option<usize>]) -> Vec<Vec<usize>> {
        let mut got = vec![Vec::new(); members.len()];
        let mut free = owners.iter().filter(|owner| owner.is_none()).count();
        let Some(heaviest) = takers.iter().map(|index| u32::from(members[*index].weight)).max() else {
            return got;
        };
        let mut order: Vec<(usize, Preference, u32)> =
            takers.iter().map(|index| (*index, Preference::new(&members[*index]), 0)).collect();
        while free > 0 {
            for (index, preference, credit) in &mut order {
                *credit += u32::from(members[*index].weight);
                if *credit < heaviest || free == 0 {
                    continue;
                }
                *credit -= heaviest;
                loop {
                    let slot = preference.advance();
                    if owners[slot].is_none() {
                        owners[slot] = Some(*index);
                        got[*index].push(slot);
                        break;
                    }
                }
                free -= 1;
            }
        }
        got
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::BackendId,
        address::{Address as _, V4},
    };

    fn member(last: u8, weight: u16, live: bool) -> Member {
        let portion = if live { WHOLE } else { 0 };
        Member {
            id: BackendId(u32::from(last)),
            address: V4([10, 0, 0, last]).mapped(),
            port: [25, 43],
            weight,
            portion,
        }
    }

    fn share(table: &[BackendId], last: u8) -> usize {
        table.iter().filter(|id| id.0 == u32::from(last)).count()
    }

    #[test]
    fn slots_is_prime() {
        assert!(
            (2..SLOTS).take_while(|divisor| divisor * divisor <= SLOTS).all(|divisor| !SLOTS.is_multiple_of(divisor))
        );
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        let table = build(&[member(1, 1, true), member(2, 1, true), member(3, 1, true)]);
        let shares: Vec<_> = (1..=3).map(|last| share(&table, last)).collect();
        assert_eq!(shares.iter().sum::<usize>(), SLOTS as usize);
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    }

    #[test]
    fn weights_are_honoured() {
        let table = build(&[member(1, 1, true), member(2, 3, true), member(3, 0, true)]);
        assert_eq!(share(&table, 3), 0);
        let ratio = share(&table, 2) as f64 / share(&table, 1) as f64;
        assert!((2.99..3.01).contains(&ratio), "{ratio}");
    }

    #[test]
    fn nobody_live_means_nobody_chosen() {
        assert!(build(&[]).iter().all(|id| *id == BackendId::NONE));
        assert!(build(&[member(1, 1, false)]).iter().all(|id| *id == BackendId::NONE));
        assert_eq!(build(&[]).len(), SLOTS as usize);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_death_moves_only_its_own_slots_and_spreads_them(weights in prop::collection::vec(1_u16..=4, 2..8), dead: prop::sample::Index) {
            let all: Vec<Member> =
                weights.iter().zip(1..).map(|(weight, last)| member(last, *weight, true)).collect();
            let dead = dead.index(all.len());
            let mut fewer = all.clone();
            fewer[dead].portion = 0;
            let mut shuffled = fewer.clone();
            shuffled.reverse();
            let (before, after) = (build(&all), build(&fewer));
            prop_assert_eq!(&build(&shuffled), &after);
            for (old, new) in before.iter().zip(&after) {
                prop_assert_eq!(*old != *new, *old == all[dead].id);
                prop_assert_ne!(*new, all[dead].id);
            }
            let total: u32 = fewer.iter().filter(|m| m.portion > 0).map(|m| u32::from(m.weight)).sum();
            for member in fewer.iter().filter(|m| m.portion > 0) {
                let fair = f64::from(SLOTS) * f64::from(member.weight) / f64::from(total);
                let got = share(&after, member.id.0 as u8) as f64;
                prop_assert!((got / fair - 1.0).abs() < 0.05, "{} of a fair {}", got, fair);
            }
        }
    }
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn who_comes_back_in_portions_takes_its_own_slots_one_after_another(
            weights in prop::collection::vec(1_u16..=4, 2..6),
            back: prop::sample::Index,
        ) {
            let mut members: Vec<Member> =
                weights.iter().zip(1..).map(|(weight, last)| member(last, *weight, true)).collect();
            let all = build(&members);
            let back = back.index(members.len());
            let id = members[back].id;
            let own = all.iter().filter(|owner| **owner == id).count();
            members[back].portion = 0;
            let mut before = build(&members);
            for portion in 1..=WHOLE {
                members[back].portion = portion;
                let now = build(&members);
                for (slot, (old, new)) in before.iter().zip(&now).enumerate() {
                    prop_assert!(old == new || (*new == id && all[slot] == id), "slot {} went from {:?} to {:?}", slot, old, new);
                }
                let share = now.iter().filter(|owner| **owner == id).count();
                prop_assert_eq!(share, own * usize::from(portion) / usize::from(WHOLE));
                before = now;
            }
            prop_assert_eq!(before, all);
        }
    }

    #[test]
    fn where_nobody_has_a_whole_share_the_largest_portion_is_one() {
        let with = |portion, other| {
            let members = [member(1, 1, true), member(2, 1, true), member(3, 1, false)];
            build(&[Member { portion, ..members[0] }, Member { portion: other, ..members[1] }, members[2]])
        };
        assert_eq!(with(1, 1), with(WHOLE, WHOLE));
        assert_eq!(with(3, 6), with(WHOLE / 2, WHOLE));
        assert_eq!(share(&with(1, 0), 1), SLOTS as usize);
    }
}
