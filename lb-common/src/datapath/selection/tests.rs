//! Which backend the policies give, and how many each has in the end.

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Policy, ServiceId},
    address::{Address as _, V4},
    host::Memory,
    maglev::{Member, WHOLE, build},
    rotation,
};

const SERVICE: ServiceId = ServiceId(0);
const FIRST: Asker = Asker { source: 1, port: 2, kind: Kind::New, former: BackendId::NONE };

fn address(index: usize) -> [u8; 16] {
    V4([10, 0, 0, 11 + index as u8]).mapped()
}

/// A virtual server with backends of these weights, numbered from 0.
fn tables(balance: Balance, weights: &[u16]) -> Memory {
    let mut memory = Memory::default();
    let mut members = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let id = BackendId(index as u32);
        memory.backends.insert(id, Backend::new(address(index), [25, 43], 0));
        memory.loads[index].weight.store((*weight).into());
        members.push(Member { id, address: address(index), port: [25, 43], weight: *weight, portion: WHOLE });
    }
    let table = if balance.takes_turns() { rotation::build(&members) } else { build(&members) };
    memory.tables.insert(SERVICE, table);
    memory.policies.insert(SERVICE, Policy::new(balance));
    memory
}

fn chosen(memory: &Memory, asker: &Asker) -> u32 {
    memory.select(SERVICE, asker).0
}

fn opened(memory: &Memory) -> u32 {
    let id = memory.select(SERVICE, &FIRST);
    began(memory, id);
    id.0
}

#[test]
fn a_hash_looks_at_the_address_alone_or_at_the_port_too() {
    for (balance, by_flow) in [(Balance::SourceHash, false), (Balance::FlowHash, true)] {
        let memory = tables(balance, &[1, 1, 1]);
        for kind in [Kind::New, Kind::Lost, Kind::Own] {
            let asker = |number: u32| {
                let hash = crate::flow::mix(number);
                if by_flow { Asker { port: number, kind, ..FIRST } } else { Asker { source: hash, kind, ..FIRST } }
            };
            let mut shares = [0; 3];
            for asker in (0..999).map(asker) {
                shares[chosen(&memory, &asker) as usize] += 1;
                let again = Asker { port: asker.port ^ u32::from(!by_flow), ..asker };
                assert_eq!(chosen(&memory, &again), chosen(&memory, &asker), "{balance:?}, {kind:?}");
            }
            assert!(shares.iter().all(|share| (280..390).contains(share)), "{balance:?}, {kind:?}: {shares:?}");
        }
    }
}

#[test]
fn turns_are_taken_and_given_to_new_connections_only() {
    let memory = tables(Balance::RoundRobin, &[1, 2, 1]);
    let turns: Vec<_> = (0..8).map(|_| chosen(&memory, &FIRST)).collect();
    assert_eq!(turns, [1, 0, 2, 1, 1, 0, 2, 1]);
    let lost = Asker { kind: Kind::Lost, ..FIRST };
    assert_eq!(chosen(&memory, &lost), chosen(&memory, &lost), "all packets of one go to one");
    assert_eq!(chosen(&memory, &Asker { kind: Kind::Own, ..FIRST }), 1, "the turn after the eighth");
}

#[test]
fn a_handshake_that_begins_anew_is_not_counted_twice() {
    for balance in Balance::ALL {
        let memory = tables(balance, &[1, 1, 1]);
        let first = opened(&memory);
        for kind in [Kind::Lost, Kind::New] {
            chosen(&memory, &Asker { kind, former: BackendId(first), ..FIRST });
            assert_eq!(memory.loads[first as usize].open(), 0, "{balance:?}");
            began(&memory, BackendId(first));
        }
    }
}

#[test]
fn the_fewest_connections_for_the_weight_win() {
    let memory = tables(Balance::LeastConnections, &[1, 1, 2]);
    memory.loads[0].carried.add(5);
    memory.loads[1].own.add(6);
    memory.loads[2].carried.add(9);
    // 6, 7 and 5 for each unit of weight, if it got the next one.
    assert_eq!(opened(&memory), 2);
    assert_eq!(opened(&memory), 2, "5.5 is less than 6");
    ended(&memory, BackendId(1));
    memory.loads[1].own.add(-2);
    assert_eq!(opened(&memory), 1);
    for _ in 0..40 {
        opened(&memory);
    }
    let open: Vec<u64> = memory.loads.iter().take(3).map(Load::open).collect();
    assert_eq!(open.iter().sum::<u64>(), 5 + 6 + 9 + 2 - 3 + 1 + 40);
    assert!(open[0].abs_diff(open[1]) <= 1 && open[2].abs_diff(2 * open[0]) <= 2, "{open:?}");
}

#[test]
fn without_a_backend_nobody_is_chosen() {
    for balance in [Balance::SourceHash, Balance::FlowHash, Balance::RoundRobin, Balance::LeastConnections] {
        let mut memory = tables(balance, &[]);
        assert_eq!(memory.select(SERVICE, &FIRST), BackendId::NONE);
        memory.tables.clear();
        assert_eq!(memory.select(SERVICE, &FIRST), BackendId::NONE);
    }
}

#[test]
fn own_processes_get_the_preferred_backend_while_it_lives_and_nobody_else_does() {
    let mut memory = tables(Balance::RoundRobin, &[1, 1, 1]);
    memory.policies.insert(SERVICE, Policy::new(Balance::RoundRobin).preferring(BackendId(2)));
    let own = Asker { kind: Kind::Own, ..FIRST };
    let shares = |memory: &Memory, asker: &Asker| {
        let mut shares = vec![0; 3];
        (0..30).for_each(|_| shares[chosen(memory, asker) as usize] += 1);
        shares
    };
    assert_eq!(shares(&memory, &own), [0, 0, 30]);
    assert_eq!(shares(&memory, &FIRST), [10, 10, 10]);
    memory.backends.insert(BackendId(2), Backend::new(address(2), [25, 43], Backend::DOWN));
    assert_eq!(shares(&memory, &own), [10, 10, 10], "the table is the daemon's to change");
    assert_eq!(Policy::default().own(), BackendId::NONE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Connections of every length come and go; after each, nobody has many more for its weight than anybody else could take.
    #[test]
    fn connections_stay_spread_by_weight(
        weights in prop::collection::vec(1_u16..=3, 2..7),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 300..600),
    ) {
        let memory = tables(Balance::LeastConnections, &weights);
        let mut open = Vec::new();
        let (mut alone, total) = (0, weights.iter().sum::<u16>());
        for (number, end) in ends.iter().enumerate() {
            open.push(opened(&memory));
            // Whoever ends is of a backend that the weather chooses, so the others are behind for a while.
            if number % 3 == 2 {
                ended(&memory, BackendId(open.swap_remove(end.index(open.len()))));
                alone = number;
            }
        }
        prop_assert!(alone > 0);
        let counted: Vec<u64> = memory.loads.iter().take(weights.len()).map(Load::open).collect();
        for (index, weight) in weights.iter().enumerate() {
            prop_assert_eq!(counted[index], open.iter().filter(|id| **id == index as u32).count() as u64);
            let fair = open.len() as f64 * f64::from(*weight) / f64::from(total);
            let off = (counted[index] as f64 - fair).abs();
            prop_assert!(off <= 4.0, "{:?} for weights {:?}", counted, weights);
        }
    }
}
