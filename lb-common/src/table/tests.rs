//! What fits into a table, who gives way in it, and what becomes of it in a flood.

use std::{boxed::Box, collections::HashSet, vec::Vec};

use super::*;
use crate::{
    abi::BackendId,
    address::{V4, V6},
    conntrack::Phase,
    flow::{Hop, Role},
};

/// A table in plain memory.
struct Table<A> {
    hashing: Hashing,
    sets: Box<[Set<A>]>,
}

impl<A: Address> Sets<A> for Table<A> {
    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.hashing)
    }

    fn set(&self, number: u32) -> Option<&Set<A>> {
        self.sets.get(number as usize)
    }
}

impl<A: Address> Table<A> {
    fn new(sets: u32) -> Self {
        let secret = core::array::from_fn(|number| random(number as u64 + 77) as u32);
        Self { hashing: Hashing::new(secret, random(5), sets), sets: (0..sets).map(|_| Set::default()).collect() }
    }

    fn put(&self, key: &Key<A>, phase: Phase, now: u32) -> Inserted {
        let mut flow = Flow::default();
        flow.start(key, &twin(key), Role::FORWARD, BackendId(3), phase, u64::from(now));
        Inserted::from_raw(insert(self, key, &flow, Existing::Kept))
    }

    fn has(&self, key: &Key<A>) -> bool {
        find(self, key).is_some_and(|flow| flow.other == twin(key))
    }

    /// Entries that are in use, and those that are half-open.
    fn count(&self) -> (usize, usize) {
        let entries = || self.sets.iter().flat_map(Set::entries);
        (entries().count(), entries().filter(|(_, slot)| slot.flow().is_half_open()).count())
    }
}

/// Any number, the same each time (splitmix64).
fn random(number: u64) -> u64 {
    let bits = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Clients of one VIP, each a different one.
trait Client: Address {
    fn number(number: u32) -> Self;
}

impl Client for V4 {
    fn number(number: u32) -> Self {
        Self(number.to_be_bytes())
    }
}

impl Client for V6 {
    fn number(number: u32) -> Self {
        let mut address = [0xfd; 16];
        address[12..].copy_from_slice(&number.to_be_bytes());
        Self(address)
    }
}

fn key<A: Client>(number: u32) -> Key<A> {
    let random = random(u64::from(number));
    Key {
        source: A::number(number),
        destination: A::number(u32::MAX),
        source_port: (random as u16).to_be_bytes(),
        destination_port: [0x19, 0x2b],
    }
}

/// The key of the other half.
fn twin<A: Copy>(key: &Key<A>) -> Key<A> {
    let [a, b] = key.source_port;
    Key {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: [b, a],
    }
}

fn fits<A: Client>() {
    for connections in [256, 5_000, 40_000] {
        let table = Table::<A>::new(sets_for(connections));
        let whole = (0..connections).filter(|number| {
            let key = key::<A>(*number);
            let halves = [key, twin(&key)].map(|key| table.put(&key, Phase::Established, 1));
            assert!(halves.iter().all(|half| matches!(half, Inserted::Free | Inserted::Full)), "{halves:?}");
            halves == [Inserted::Free; 2]
        });
        let whole = whole.count();
        assert!(whole * 100 >= connections as usize * 98, "{whole} of {connections}");
        let kept = (0..connections).filter(|number| table.has(&key(*number))).count();
        assert!(kept >= whole, "what was taken in is there");
    }
}

#[test]
fn what_is_configured_fits() {
    fits::<V4>();
    fits::<V6>();
}

/// Long before the table is full nobody is turned away.
#[test]
fn half_fits_without_exception() {
    let table = Table::<V4>::new(sets_for(100_000));
    let refused = (0..75_000).filter(|number| {
        let key = key(*number);
        let halves = [key, twin(&key)].map(|key| table.put(&key, Phase::Established, 1));
        assert_eq!(halves, [key, twin(&key)].map(|key| if table.has(&key) { Inserted::Free } else { Inserted::Full }));
        assert!(*number >= 50_000 || halves == [Inserted::Free; 2], "{number}");
        halves != [Inserted::Free; 2]
    });
    let refused = refused.count();
    assert!(refused < 75, "{refused} of 75,000");
    let spilled = table.sets.iter().filter(|set| set.spilled.load() != 0).count();
    assert!((1..table.sets.len() / 10).contains(&spilled), "{spilled} of {} sets", table.sets.len());
    (0..75_000).for_each(|number| remove(&table, &key(number), 1));
    assert!((0..75_000).all(|number| !table.has(&key(number))));
    let left = (0..75_000).filter(|number| table.has(&twin(&key(*number)))).count();
    assert!(left > 74_900 && left == table.count().0, "{left}");
}

/// At a fifth of what fits, as in the benchmark, hardly any packet has to look further than two slots.
#[test]
fn nearly_all_are_at_home() {
    let table = Table::<V4>::new(sets_for(100_000));
    for key in (0..25_000).map(key).flat_map(|key| [key, twin(&key)]) {
        table.put(&key, Phase::Established, 1);
    }
    let at_home = (0..25_000).filter(|number| home(&table, &key(*number)).is_ok_and(|flow| flow.is_some())).count();
    assert!(at_home > 24_500, "{at_home} of 25,000");
}

/// Connections that are alive stay, whoever sends how many SYNs; and a real client finds its handshake again after as many of them as come
/// while it takes.
fn flood<A: Client>(syns: u32) {
    const ALIVE: u32 = 20_000;
    let table = Table::<A>::new(sets_for(ALIVE));
    let alive: Vec<Key<A>> =
        (0..ALIVE).map(key).filter(|key| table.put(key, Phase::Established, 1) == Inserted::Free).collect();
    assert!(alive.len() as u32 >= ALIVE * 99 / 100, "half of what fits");
    // They have been silent, but not for quite long enough.
    let now = 1 + QUIET - 1;
    let (mut clients, mut survived) = (0, 0);
    let mut waiting: Option<Key<A>> = None;
    for number in 0..syns {
        let _ = table.put(&key(ALIVE + number), Phase::SynSent, now);
        if number % 1_000 == 0 {
            if let Some(client) = waiting {
                clients += 1;
                survived += u32::from(table.has(&client));
            }
            let client = key(u32::MAX - 1 - number);
            waiting = (table.put(&client, Phase::SynSent, now) != Inserted::Full).then_some(client);
        }
    }
    assert!(alive.iter().all(|key| table.has(key)));
    let (_, half_open) = table.count();
    assert!(half_open <= table.sets.len() * HALF_OPEN_WAYS as usize, "{half_open} half-open");
    assert!(clients > 100 && survived * 100 >= clients * 99, "{survived} of {clients} handshakes");
}

#[test]
fn a_flood_of_syns_moves_no_living_connection() {
    flood::<V4>(1_000_000);
    flood::<V6>(300_000);
}

/// A table with one set, whose ways are all taken by entries of one phase that were last seen at 1000, 1001 and so on.
fn full(phase: Phase) -> Table<V4> {
    let table = Table::new(1);
    for number in 0..WAYS as u32 {
        assert_eq!(table.put(&key(number), phase, 1_000 + number), Inserted::Free, "{number}");
    }
    table
}

#[test]
fn who_gives_way() {
    use Phase::{ClientClosing, Closed, Established, SynReceived, SynSent};
    let long = 2_000 + QUIET;
    // In a full set: what is there, the new one, when it comes, and what becomes of it.
    let cases = [
        (Established, SynSent, 2_000, Inserted::Full),
        (Established, Established, 2_000, Inserted::Full),
        (Established, SynSent, long, Inserted::Idle),
        (Established, Established, long, Inserted::Idle),
        (ClientClosing, SynSent, 2_000, Inserted::Closing),
        (Closed, Established, 2_000, Inserted::Closing),
    ];
    for (old, new, now, expected) in cases {
        let table = full(old);
        assert_eq!(table.put(&key(99), new, now), expected, "{old:?} {new:?} {now}");
        let refused = expected == Inserted::Full;
        assert_eq!(table.has(&key(99)), !refused);
        assert_eq!(table.has(&key(0)), refused, "the one that was silent longest");
        assert!((1..16).all(|number| table.has(&key(number))), "all others stay");
    }

    // Half-open ones displace the oldest of themselves, from the fifth on.
    let table = Table::<V4>::new(1);
    let inserted: Vec<_> = (0..6).map(|number| table.put(&key(number), SynSent, 7)).collect();
    use Inserted::{Free, HalfOpen};
    assert_eq!(inserted, [Free, Free, Free, Free, HalfOpen, HalfOpen]);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|number| table.has(&key(number))), [false, false, true, true, true, true]);
    // One whose handshake is complete is not one of them any more, and does not go.
    for number in [2, 3] {
        let (key, leader) = (key(number), Flow::default());
        leader.set_phase(if number == 2 { Established } else { SynReceived });
        advance(&table, &key, &twin(&key), &leader);
    }
    assert_eq!(table.put(&key(6), SynSent, 7), Free, "there were three half-open ones");
    assert_eq!(table.put(&key(7), SynSent, 7), HalfOpen);
    assert_eq!([2, 3, 4, 5, 6, 7].map(|number| table.has(&key(number))), [true, false, true, true, true, true]);

    // An established one takes a free slot first, then that of a half-open one.
    for number in 10..21 {
        assert_eq!(table.put(&key(number), Established, 8), Free, "{number}");
    }
    assert_eq!(table.put(&key(21), Established, 8), HalfOpen);
    assert!(!table.has(&key(4)) && table.has(&key(2)));

    // One that is closing goes before one that was silent for long.
    let table = full(Established);
    let leader = Flow::default();
    leader.set_phase(Closed);
    advance(&table, &key(9), &twin(&key(9)), &leader);
    assert_eq!(table.put(&key(99), SynSent, long), Inserted::Closing);
    assert!(!table.has(&key(9)) && table.has(&key(0)));
}

#[test]
fn what_is_under_a_key_is_replaced_or_kept() {
    let table = Table::<V6>::new(4);
    let (one, another) = (key::<V6>(1), key::<V6>(2));
    let entry = |other: &Key<V6>, phase, interface| {
        let mut flow = Flow::default();
        flow.start(&one, other, Role::REPLY, BackendId(3), phase, 9);
        flow.set_way(&Hop { interface, ..Hop::default() }, 1);
        flow
    };
    let put = |flow: &Flow<V6>, existing| Inserted::from_raw(insert(&table, &one, flow, existing));
    let interface = || find(&table, &one).map(|flow| flow.hop.interface);
    assert_eq!(put(&entry(&another, Phase::Established, 1), Existing::Kept), Inserted::Free);
    assert_eq!(put(&entry(&one, Phase::Established, 2), Existing::Kept), Inserted::Exists);
    assert_eq!(interface(), Some(1));
    assert_eq!(put(&entry(&another, Phase::SynSent, 3), Existing::Kept), Inserted::Free, "the same connection's");
    assert_eq!(put(&entry(&one, Phase::Established, 4), Existing::Kept), Inserted::HalfOpen);
    assert_eq!(put(&entry(&another, Phase::Established, 5), Existing::Replaced), Inserted::Free);
    assert_eq!(interface(), Some(5));
    assert_eq!(table.count(), (1, 0));
    remove(&table, &one, 9);
    assert_eq!((interface(), table.count()), (None, (0, 0)));
}

#[test]
fn an_advance_is_for_one_connection_only() {
    let table = Table::<V4>::new(4);
    table.put(&key(1), Phase::SynSent, 9);
    let leader = Flow::default();
    leader.set_phase(Phase::Closed);
    advance(&table, &key(1), &key(2), &leader);
    assert_eq!(find(&table, &key(1)).map(Flow::phase), Some(Phase::SynSent));
    advance(&table, &key(1), &twin(&key(1)), &leader);
    assert_eq!(find(&table, &key(1)).map(Flow::phase), Some(Phase::Closed));
}

/// Two CPUs that want the same port at the same time: one gets it.
#[test]
fn a_key_is_given_to_one_of_many() {
    const KEYS: u32 = 20_000;
    let table = Table::<V4>::new(sets_for(2 * KEYS));
    let winners = |thread: u32| {
        let won = (0..KEYS).filter(|number| {
            let (key, owner) = (key(*number), key(KEYS + thread));
            let mut flow = Flow::default();
            flow.start(&key, &owner, Role::REPLY, BackendId(3), Phase::Established, 9);
            // Where the other one has the lock, a packet would be lost and come again.
            loop {
                match Inserted::from_raw(insert(&table, &key, &flow, Existing::Kept)) {
                    Inserted::Full => {}
                    inserted => return inserted == Inserted::Free,
                }
            }
        });
        won.collect::<HashSet<_>>()
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| winners(0));
        let other = winners(1);
        (one.join().expect("no panic"), other)
    });
    assert!(one.is_disjoint(&other));
    assert_eq!(one.len() + other.len(), KEYS as usize);
    assert_eq!(table.count().0, KEYS as usize);
    for number in 0..KEYS {
        let owner = key(KEYS + u32::from(other.contains(&number)));
        assert_eq!(find(&table, &key(number)).map(|flow| flow.other), Some(owner), "{number}");
    }
}

/// A daemon that was killed while it held a set's lock, with the slot half cleared.
#[test]
fn what_a_dead_daemon_left_is_put_right() {
    let table = Table::<V4>::new(1);
    table.put(&key(1), Phase::Established, 9);
    assert!(table.sets[0].lock.take(9));
    assert_eq!(table.put(&key(2), Phase::Established, 10), Inserted::Full);
    assert_eq!(table.put(&key(2), Phase::Established, 5_000), Inserted::Full, "the last to be turned away");
    assert_eq!(table.put(&key(2), Phase::Established, 5_000), Inserted::Free);
    let place = table.hashing.place(&key::<V4>(1));
    let way = table.sets[0].find(&place, &key(1)).expect("there");
    table.sets[0].slot(way).forget();
    assert!(!table.has(&key(1)));
    assert_eq!(table.put(&key(1), Phase::Established, 5_001), Inserted::Free);
    assert!(table.has(&key(1)));
    assert_eq!(table.count().0, 2);
}
