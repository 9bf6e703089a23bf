//! Segments that have no hop left, and what their senders hear.

use super::{
    segments::{Error, sums_up},
    *,
};
use crate::{
    abi::{Access, Range},
    shared::Allowance,
};

both!(
    the_sender_hears_it_from_the_vip,
    tags_and_options_stay_as_they_were,
    as_much_is_quoted_as_fits,
    nothing_is_made_of_it,
    what_is_not_for_a_virtual_server_is_the_hosts,
    some_are_told_nothing,
    not_too_many_are_told,
);

/// The error about a segment, as its sender receives it.
fn heard<A: Net>(about: &Segment<A>, quoted: usize) -> Vec<u8> {
    let [to, from] = about.macs;
    let error = Error {
        macs: [from, to],
        source: about.destination,
        destination: about.source,
        hops: 64,
        kind: A::TIME_EXCEEDED,
        code: 0,
        rest: [0; 4],
        about: about.clone(),
        quoted,
    };
    let mut frame = error.bytes();
    A::as_our_own(&mut frame[14..]);
    let tags = about.tags.iter().flat_map(|tag| [[0x81, 0x00], tag.to_be_bytes()].concat());
    frame.splice(12..12, tags.collect::<Vec<_>>());
    frame
}

fn last_hop<A: Net>(hops: u8, segment: Segment<A>) -> Segment<A> {
    Segment { hops, ..segment }
}

fn is_told<A: Net>(world: &World<A>, segment: &Segment<A>)
where
    Memory: Family<A>,
{
    let frame = heard(segment, usize::MAX);
    assert_eq!(world.ingress(&segment.bytes()), (Verdict::Answer(frame.len()), frame), "{segment:?}");
}

fn the_sender_hears_it_from_the_vip<A: Net>()
where
    Memory: Family<A>,
{
    for world in [World::<A>::remote(), World::local()] {
        for hops in [0, 1] {
            is_told(&world, &last_hop(hops, asks(SYN)));
        }
        assert_eq!(world.memory.counter(Counter::Expired), 2);
    }
    let world = World::<A>::remote();
    let syn = last_hop(2, asks(SYN));
    world.expect(&syn, Verdict::Redirect(OUTER), &sent_on(&syn));
    // Of a known connection, and of its other half.
    is_told(&world, &last_hop(1, asks(ACK)));
    is_told(&world, &last_hop(1, answers(CLIENT_PORT, SYN_ACK)));
}

fn tags_and_options_stay_as_they_were<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    for tags in [std::vec![], std::vec![7], std::vec![7, 8]] {
        for extra in [&[][..], A::EXTRA] {
            let options = std::vec![1; 8];
            is_told(&world, &Segment { tags: tags.clone(), extra: extra.to_vec(), options, ..last_hop(1, asks(SYN)) });
        }
    }
}

fn as_much_is_quoted_as_fits<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    for length in [1, 2, 3, 4, 5] {
        let segment = Segment { payload: std::vec![0xa5; length], ..last_hop(1, asks(ACK)) };
        is_told(&world, &segment);
        // What comes after the packet in its frame is no part of it.
        let mut padded = segment.bytes();
        padded.extend([0x77; 9]);
        assert_eq!(world.ingress(&padded).1, heard(&segment, usize::MAX));
    }
    let room = A::LONGEST_ERROR - 2 * size_of::<A::Header>() - 8;
    for beyond in [-1, 0, 1, 2, 800] {
        let payload = (0..(room as i32 - 20 + beyond) as usize).map(|byte| byte as u8).collect();
        let segment = Segment { payload, ..last_hop(1, asks::<A>(ACK)) };
        let (verdict, frame) = world.ingress(&segment.bytes());
        assert_eq!((verdict, &frame), (Verdict::Answer(frame.len()), &heard(&segment, room)));
        assert_eq!(frame.len() - 14, A::LONGEST_ERROR - usize::from(beyond == -1), "{beyond}");
        assert!(sums_up::<A>(&frame));
    }
}

fn nothing_is_made_of_it<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let syn = last_hop(1, asks::<A>(SYN));
    world.ingress(&syn.bytes());
    assert!(!world.knows(&syn));
    assert_eq!(world.memory.counter(Counter::Connected), 0);
    world.ingress(&asks::<A>(SYN).bytes());
    let packets = world.memory.traffic_of(ID);
    world.ingress(&syn.bytes());
    assert_eq!(world.memory.traffic_of(ID), packets);
}

fn what_is_not_for_a_virtual_server_is_the_hosts<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let frame = Segment { ports: [CLIENT_PORT, 22], ..last_hop(1, asks::<A>(SYN)) }.bytes();
    assert_eq!(world.ingress(&frame), (Verdict::Pass, frame.clone()));
    assert_eq!((world.memory.counter(Counter::NoService), world.memory.counter(Counter::Expired)), (1, 0));
}

fn some_are_told_nothing<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let syn = last_hop(1, asks::<A>(SYN));
    for nobody in A::NOBODY {
        world.dropped(&Segment { source: *nobody, ..syn.clone() }, Counter::Expired);
    }
    // It came to a group of hosts.
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let mut macs = Filter::empty();
    macs.insert_mac(group);
    macs.insert_mac(syn.macs[0]);
    let (mut vips, locals) = (Filter::empty(), Filter::empty());
    vips.insert(A::host(VIP));
    world.memory.settings = Some(Settings::new(1, vips, locals, macs));
    world.dropped(&Segment { macs: [group, mac(CLIENT)], ..syn.clone() }, Counter::Expired);
    world.memory.ranges.insert(Range::everybody(ServiceId(3)), Access::DENIED);
    world.dropped(&syn, Counter::Denied);
    world.memory.ranges.clear();
    world.memory.leases.insert(A::host(VIP).mapped(), Lease::new(1, 1));
    (world.memory.uptime, world.memory.fence) = (2, Fence::after(1));
    world.dropped(&syn, Counter::Overdue);
    world.memory.leases.clear();
    is_told(&world, &syn);
}

fn not_too_many_are_told<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let syn = last_hop(1, asks::<A>(SYN));
    let told = |world: &World<A>| (0..100).filter(|_| world.ingress(&syn.bytes()).0 != Verdict::Drop).count();
    assert_eq!(told(&world), Allowance::MOST as usize);
    world.now += 3;
    assert_eq!(told(&world), 3);
    assert_eq!(world.memory.counter(Counter::Expired), 200);
}
