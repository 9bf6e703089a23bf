//! A VIP at a virtual MAC: what the host says of it, and what it hears.

use super::*;
use crate::abi::Lease;

both!(
    what_the_host_says_of_its_vip_names_the_virtual_mac,
    frames_to_the_virtual_mac_are_the_hosts_while_its_lease_lasts
);

const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];
const CARRIED: u64 = 9_000;

/// A world whose VIP is at the virtual MAC.
fn world<A: Net>() -> World<A>
where
    Memory: Family<A>,
{
    let mut world = World::remote();
    let lease = Lease::new(5_000, CARRIED);
    world.memory.leases.insert(A::host(VIP).mapped(), lease.at(VIRTUAL));
    world.memory.leases.insert(Lease::key_of(VIRTUAL), lease);
    world
}

/// What a frame that leaves the host becomes.
fn left<A: Net>(world: &World<A>, frame: &[u8]) -> Vec<u8>
where
    Memory: Family<A>,
    Memory: Family<V4> + Family<V6>,
{
    let mut frame = frame.to_vec();
    egress(&mut frame[..], &world.memory, world.now);
    frame
}

/// `sender` asks for somebody's MAC, or answers `CLIENT`, as its own kernel would write it.
fn said<A: Net>(sender: u8, answers: bool) -> Vec<u8> {
    let mut frame = A::solicitation(sender, if answers { sender } else { CLIENT }, &[]);
    if frame.len() == 42 {
        frame[21] = if answers { 2 } else { 1 };
    } else {
        frame[54] = if answers { 136 } else { 135 };
        let option = [if answers { 2 } else { 1 }, 1, 2, 0, 0, 0, 0, sender];
        frame.truncate(78);
        frame.extend(option);
        frame[56..58].fill(0);
        let sum = icmp_sum(&frame);
        frame[56..58].copy_from_slice(&(!sum).to_be_bytes());
    }
    frame
}

/// Over the pseudo-header and the message of 32 bytes: all ones where the checksum is right (RFC 4443 §2.3).
fn icmp_sum(frame: &[u8]) -> u16 {
    let words = frame[22..].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + 58 + 32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where the sender's MAC stands beside the Ethernet header.
const fn place(frame: &[u8]) -> usize {
    if frame.len() == 42 { 22 } else { 80 }
}

fn what_the_host_says_of_its_vip_names_the_virtual_mac<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = world::<A>();
    for answers in [false, true] {
        let of_the_vip = said::<A>(VIP, answers);
        let mut expected = of_the_vip.clone();
        let at = place(&expected);
        expected[6..12].copy_from_slice(&VIRTUAL);
        expected[at..at + 6].copy_from_slice(&VIRTUAL);
        let left_as = left(&world, &of_the_vip);
        if of_the_vip.len() > 42 {
            assert_eq!((icmp_sum(&of_the_vip), icmp_sum(&left_as)), (0xffff, 0xffff), "answers: {answers}");
            expected[56..58].copy_from_slice(&left_as[56..58]);
        }
        assert_eq!(left_as, expected, "answers: {answers}");
        assert_eq!(left(&world, &left_as), expected, "a second time");

        let of_the_node = said::<A>(LOCAL, answers);
        assert_eq!(left(&world, &of_the_node), of_the_node);
        for length in 14..of_the_vip.len() {
            let cut = &of_the_vip[..length];
            assert_eq!(left(&world, cut), cut, "{length} bytes");
        }
    }
    world.memory.leases.insert(A::host(VIP).mapped(), Lease::new(5_000, CARRIED));
    let without = said::<A>(VIP, true);
    assert_eq!(left(&world, &without), without);
}

fn frames_to_the_virtual_mac_are_the_hosts_while_its_lease_lasts<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = world::<A>();
    let to = |mac: [u8; 6]| {
        let mut frame = said::<A>(CLIENT, false);
        frame[..6].copy_from_slice(&mac);
        frame
    };
    for (uptime, wanted) in [(0, true), (CARRIED, true), (CARRIED + 1, false)] {
        world.memory.uptime = uptime;
        assert_eq!(accepts(&to(VIRTUAL)[..], &world.memory), wanted, "{uptime}");
        for other in [[0, 0, 0x5e, 0, 1, 52], [0, 0, 0x5e, 0, 2, 51], [2, 0, 0x5e, 0, 1, 51], mac(VIP)] {
            assert!(!accepts(&to(other)[..], &world.memory), "{other:x?}");
        }
    }
    assert!(!accepts(&to(VIRTUAL)[..13], &world.memory));
}

#[test]
fn other_messages_about_neighbours_are_left_alone() {
    let world = world::<V6>();
    // The option of an answer in a question, and the other way round.
    for (at, value) in [(54, 134), (54, 137), (78, 1), (78, 3), (79, 2), (20, 6)] {
        let mut frame = said::<V6>(VIP, true);
        frame[at] = value;
        assert_eq!(left(&world, &frame), frame, "{value} at {at}");
    }
}
