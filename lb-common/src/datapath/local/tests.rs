//! Who gets which backend, who is left alone and who is refused, for both families.

use std::{collections::HashMap, vec, vec::Vec};

use super::*;
use crate::{
    host::Memory,
    maglev::{self, Member, SLOTS, WHOLE, build},
};

const HOME: u64 = 1;
const POD: u64 = 2;
const PORT: [u8; 2] = 16443_u16.to_be_bytes();
const BACKEND_PORT: [u8; 2] = 6443_u16.to_be_bytes();

/// An address by its last byte.
type Family = fn(u8) -> [u8; 16];
const FAMILIES: [Family; 2] =
    [|last| V4([192, 168, 2, last]).mapped(), |last| [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]];
const VIP: u8 = 100;

/// A virtual server with backends of these weights, which are `.11` and on.
fn tables(of: Family, key: ServiceKey, weights: &[u16]) -> Memory {
    let mut memory = Memory::default();
    memory.services.insert(key, ServiceId(0));
    let mut members = Vec::new();
    for (index, weight) in weights.iter().enumerate() {
        let (id, address) = (BackendId(index as u32), of(11 + index as u8));
        memory.backends.insert(id, Backend::new(address, BACKEND_PORT, 0));
        memory.services.insert(ServiceKey::new(address, BACKEND_PORT), ServiceId::BACKEND);
        members.push(Member { id, address, port: BACKEND_PORT, weight: *weight, portion: WHOLE });
    }
    memory.tables.insert(ServiceId(0), build(&members));
    memory
}

fn vip(of: Family) -> ServiceKey {
    ServiceKey::new(of(VIP), PORT)
}

fn socket(cookie: u64, destination: [u8; 16]) -> Socket {
    Socket { cookie, netns: HOME, source: [0; 16], destination, port: PORT }
}

#[test]
fn sockets_are_spread_by_weight() {
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[3, 1, 0]);
        let mut shares = HashMap::new();
        // Cookies are handed out in a row to each CPU (kernel: `gen_cookie_next`).
        for cookie in (0..4000).chain(1 << 40..(1 << 40) + 4000) {
            let choice = connect(&memory, &socket(cookie, of(VIP)), HOME);
            let Choice::To { address, port: BACKEND_PORT } = choice else { panic!("{choice:?}") };
            *shares.entry(address).or_insert(0) += 1;
        }
        let share = |last| shares.get(&of(last)).copied().unwrap_or(0);
        assert!((5800..=6200).contains(&share(11)), "{shares:?}");
        assert_eq!(share(11) + share(12), 8000);
        assert_eq!(memory.counter(Counter::Local), 8000);
        assert_eq!(memory.traffic_of(BackendId(0)).connections, share(11));
    }
}

#[test]
fn a_socket_with_an_address_gets_what_that_client_gets_through_the_vip() {
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[1, 1, 1]);
        for last in 1..50 {
            let slot = match of(last)[0] {
                0 => source_hash(&V4([192, 168, 2, last])),
                _ => source_hash(&V6(of(last))),
            };
            let expected = memory.tables[&ServiceId(0)][maglev::slot(slot) as usize];
            let address = memory.backends[&expected].mapped();
            for cookie in 0..3 {
                let bound = Socket { source: of(last), ..socket(cookie, of(VIP)) };
                assert_eq!(connect(&memory, &bound, HOME), Choice::To { address, port: BACKEND_PORT });
            }
        }
    }
}

#[test]
fn sockets_bound_to_any_address_are_not_all_one_client() {
    for (of, any) in [(FAMILIES[0], V4([0; 4]).mapped()), (FAMILIES[0], [0; 16]), (FAMILIES[1], [0; 16])] {
        let memory = tables(of, vip(of), &[1, 1, 1]);
        let mut choices: Vec<_> = (0..50)
            .map(|cookie| match connect(&memory, &Socket { source: any, ..socket(cookie, of(VIP)) }, HOME) {
                Choice::To { address, .. } => address,
                other => panic!("{other:?}"),
            })
            .collect();
        choices.sort_unstable();
        choices.dedup();
        assert_eq!(choices.len(), 3);
    }
}

#[test]
fn other_destinations_are_left_alone() {
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[1]);
        let elsewhere = [
            socket(1, of(VIP + 1)),
            Socket { port: BACKEND_PORT, ..socket(1, of(VIP)) },
            Socket { port: BACKEND_PORT, ..socket(1, of(11)) },
        ];
        for socket in elsewhere {
            assert_eq!(connect(&memory, &socket, HOME), Choice::Leave, "{socket:?}");
        }
        assert_eq!(memory.local(1), None);
        assert!(memory.counters().is_empty());
    }
}

#[test]
fn pods_reach_a_vip_but_not_the_hosts_loopback() {
    let loopbacks = [V4([127, 0, 0, 1]).mapped(), V4([127, 0, 0, 53]).mapped(), *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"];
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[1]);
        let pod = Socket { netns: POD, ..socket(1, of(VIP)) };
        assert!(matches!(connect(&memory, &pod, HOME), Choice::To { .. }));
        assert_eq!(memory.local(1).map(|local| local.netns), Some(POD));
        for loopback in loopbacks {
            let memory = tables(of, ServiceKey::on_host(loopback, PORT), &[1]);
            let host = socket(1, loopback);
            assert!(matches!(connect(&memory, &host, HOME), Choice::To { .. }), "{loopback:?}");
            assert_eq!(connect(&memory, &Socket { netns: POD, ..host }, HOME), Choice::Leave, "{loopback:?}");
        }
    }
}

#[test]
fn a_loopback_address_is_no_service_for_packets() {
    let loopback = V4([127, 0, 0, 1]).mapped();
    let memory = tables(FAMILIES[0], ServiceKey::on_host(loopback, PORT), &[1]);
    assert_eq!(memory.service(&ServiceKey::new(loopback, PORT)), None);
}

#[test]
fn a_backend_that_is_down_is_avoided_while_its_table_stands() {
    for of in FAMILIES {
        let mut memory = tables(of, vip(of), &[1, 1, 1]);
        memory.backends.insert(BackendId(1), Backend::new(of(12), BACKEND_PORT, Backend::DOWN));
        let dead = (0..3000).filter(|cookie| {
            let choice = connect(&memory, &socket(*cookie, of(VIP)), HOME);
            matches!(choice, Choice::To { address, .. } if address == of(12))
        });
        // One of 3 to the fourth power.
        assert!((1..100).contains(&dead.count()));
    }
}

#[test]
fn without_a_backend_a_connect_is_refused() {
    for of in FAMILIES {
        let mut memory = tables(of, vip(of), &[1]);
        memory.tables.insert(ServiceId(0), vec![BackendId::NONE; SLOTS as usize]);
        assert_eq!(connect(&memory, &socket(1, of(VIP)), HOME), Choice::Refuse);
        memory.tables.insert(ServiceId(0), vec![BackendId(9); SLOTS as usize]);
        memory.backends.insert(BackendId(9), Backend::absent());
        assert_eq!(connect(&memory, &socket(1, of(VIP)), HOME), Choice::Refuse);
        assert_eq!(memory.counter(Counter::LocalRefused), 2);
        assert_eq!(memory.local(1), None);
    }
}

#[test]
fn the_peer_of_a_translated_socket_is_the_virtual_server() {
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[1]);
        assert_eq!(peer(&memory, 1, of(11), BACKEND_PORT), None);
        connect(&memory, &socket(1, of(VIP)), HOME);
        assert_eq!(peer(&memory, 1, of(11), BACKEND_PORT), Some((of(VIP), PORT)));
        assert_eq!(peer(&memory, 2, of(11), BACKEND_PORT), None, "another socket");
        // After a failure the socket may be connected anew, to something else.
        assert_eq!(peer(&memory, 1, of(12), BACKEND_PORT), None);
        assert_eq!(peer(&memory, 1, of(11), PORT), None);
        connect(&memory, &Socket { port: BACKEND_PORT, ..socket(1, of(11)) }, HOME);
        assert_eq!(peer(&memory, 1, of(11), BACKEND_PORT), None, "it means the backend itself now");
    }
}

#[test]
fn a_socket_is_counted_as_open_until_it_is_closed_or_means_something_else() {
    for of in FAMILIES {
        let memory = tables(of, vip(of), &[1]);
        let is_open = |count| assert_eq!(memory.loads[0].open(), count);
        connect(&memory, &socket(1, of(VIP)), HOME);
        connect(&memory, &socket(2, of(VIP)), HOME);
        is_open(2);
        connect(&memory, &socket(1, of(VIP)), HOME);
        is_open(2);
        closed(&memory, 1);
        closed(&memory, 1);
        closed(&memory, 3);
        is_open(1);
        assert_eq!((memory.local(1), memory.local(2).is_some()), (None, true));
        connect(&memory, &Socket { port: BACKEND_PORT, ..socket(2, of(11)) }, HOME);
        is_open(0);
    }
}
