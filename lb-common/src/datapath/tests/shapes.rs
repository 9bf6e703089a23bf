//! Frames of every shape: what is not ours leaves as it came, and what is ours may have tags, options and extensions.

use super::*;

both!(
    what_is_not_ours_leaves_as_it_came,
    options_and_extensions_are_carried,
    tags_are_carried_where_they_are_the_same,
    tags_that_differ_are_the_kernels,
    fragments_are_the_hosts,
    lengths_that_contradict_each_other_are_the_hosts,
    trailing_bytes_are_carried,
);

/// Sends a frame in that must leave as it came.
fn passes<A: Net>(world: &World<A>, frame: &[u8], what: &str)
where
    Memory: Family<A>,
{
    assert_eq!(world.ingress(frame), (Verdict::Pass, frame.to_vec()), "{what}");
}

fn what_is_not_ours_leaves_as_it_came<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let frame = asks::<A>(SYN).bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = frame.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let protocol = if A::ETHER_TYPE == wire::IPV4 { 14 + 9 } else { 14 + 6 };
    passes(&world, &with(0, &mac(9)), "to another host's MAC");
    passes(&world, &with(0, &[0xff; 6]), "to everybody's");
    passes(&world, &with(12, &[0x08, 0x06]), "ARP");
    passes(&world, &with(12, &[0x81, 0x00]), "a tag that is not one");
    passes(&world, &with(protocol, &[17]), "UDP");
    passes(&world, &with(protocol, &[1]), "ICMP");
    passes(&world, &with(protocol, &[58]), "ICMPv6");
    passes(&world, &Segment { destination: A::host(VIP + 1), ..asks::<A>(SYN) }.bytes(), "another address");
    passes(&world, &Segment { tags: std::vec![1, 2, 3], ..asks::<A>(SYN) }.bytes(), "three tags");
    for length in 0..=frame.len() - 20 {
        passes(&world, &frame[..length], "cut before TCP");
    }
    assert_eq!(world.memory.counters().keys().copied().collect::<Vec<_>>(), [Counter::Malformed]);

    let idle = World::<A> { memory: Memory::default(), ..World::remote() };
    passes(&idle, &frame, "before the daemon has written anything");
}

fn options_and_extensions_are_carried<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let segment = Segment { extra: A::EXTRA.to_vec(), options: [3, 3, 7, 0].to_vec(), ..asks(SYN) };
    world.expect(&segment, Verdict::Redirect(OUTER), &sent_on(&segment));
    let segment = Segment { extra: Vec::new(), flags: ACK, ..segment };
    world.expect(&segment, Verdict::Redirect(OUTER), &sent_on(&segment));
    let segment = Segment { extra: A::EXTRA.to_vec(), ..answers(CLIENT_PORT, SYN_ACK) };
    world.expect(&segment, Verdict::Transmit, &sent_back(&segment));
    assert_eq!(world.memory.counter(Counter::Connected), 1);
}

fn tags_are_carried_where_they_are_the_same<A: Net>()
where
    Memory: Family<A>,
{
    for (tags, word) in [(std::vec![10], 0x800a), (std::vec![0xe00a, 20], 0x800a_8014)] {
        let mut world = World::<A>::remote();
        let way = |last| Route::Hop(Hop { tags: Tags(word), ..hop(INTERFACE, last) });
        world.route(BACKEND, way(BACKEND));
        world.route(CLIENT, way(CLIENT));
        let syn = Segment { tags: tags.clone(), ..asks(SYN) };
        world.expect(&syn, Verdict::Transmit, &Segment { macs: [mac(BACKEND), mac(202)], ..sent_on(&syn) });
        let reply = Segment { tags, ..answers(CLIENT_PORT, SYN_ACK) };
        world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
    }
}

fn tags_that_differ_are_the_kernels<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let syn = Segment { tags: std::vec![10], ..asks(SYN) };
    world.expect(&syn, Verdict::Kernel(OUTER), &Segment { macs: syn.macs, ..sent_on(&syn) });
    assert_eq!(world.memory.counter(Counter::Unresolved), 1);
    // A way that was found for one tag does not serve another: it is looked up again.
    world.route(BACKEND, Route::Hop(Hop { tags: Tags(0x800a), ..hop(OUTER, BACKEND) }));
    let tagged = Segment { tags: std::vec![10], ..asks(ACK) };
    world.expect(&tagged, Verdict::Redirect(OUTER), &sent_on(&tagged));
    let plain = Segment { tags: std::vec![], ..asks(ACK) };
    world.expect(&plain, Verdict::Kernel(OUTER), &Segment { macs: plain.macs, ..sent_on(&plain) });
}

fn fragments_are_the_hosts<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    passes(&world, &A::fragment(&asks(ACK)), "the first fragment");
    passes(&world, &A::fragment(&Segment { tags: std::vec![10], ..asks(ACK) }), "with a tag");
    assert_eq!(world.memory.counter(Counter::Fragment), 2);
}

fn lengths_that_contradict_each_other_are_the_hosts<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let whole = Segment { payload: b"0123456789".to_vec(), ..asks::<A>(ACK) }.bytes();
    let transport = whole.len() - 30;
    for length in transport..whole.len() {
        passes(&world, &whole[..length], "cut");
    }
    for offset in (0..5).chain(8..16) {
        let mut frame = whole.clone();
        frame[transport + 12] = offset << 4;
        passes(&world, &frame, "data offset");
    }
    let (at, version) = if A::ETHER_TYPE == wire::IPV4 { (16, 0x65) } else { (18, 0x45) };
    let cut = usize::from(u16::from_be_bytes([whole[at], whole[at + 1]])) - 30;
    for length in (0..cut + 20).chain(cut + 31..cut + 40).chain([0xffff]) {
        let mut frame = whole.clone();
        frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        passes(&world, &frame, "IP length");
    }
    let mut frame = whole.clone();
    frame[14] = version;
    passes(&world, &frame, "version");
    if A::ETHER_TYPE == wire::IPV4 {
        for words in 0..5 {
            frame[14] = 0x40 | words;
            passes(&world, &frame, "header length");
        }
    }
    assert_eq!(world.memory.counters().keys().copied().collect::<Vec<_>>(), [Counter::Malformed]);
}

fn trailing_bytes_are_carried<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let padded = |segment: &Segment<A>| [segment.bytes(), std::vec![0xee; 6]].concat();
    let (verdict, frame) = world.ingress(&padded(&asks(SYN)));
    assert_eq!((verdict, frame), (Verdict::Redirect(OUTER), padded(&sent_on(&asks(SYN)))));
}
