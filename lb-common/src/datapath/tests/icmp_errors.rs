//! ICMP errors about packets that were sent on, and what their senders hear.

use super::{segments::Error, *};

both!(
    a_router_before_the_backend_is_heard_by_the_client,
    a_router_before_the_client_is_heard_by_the_backend,
    a_backend_on_this_host_hears_of_its_replies,
    only_eight_bytes_are_quoted_and_that_is_enough,
    what_is_quoted_is_inside_the_message,
    what_is_cached_of_the_way_may_be_out_of_date,
    what_is_not_an_error_about_a_connection_is_the_hosts,
    the_last_hop_ends_it,
);

/// A host between the data plane and either end.
const ROUTER: u8 = 77;

/// What is quoted of a packet: the IP header with a whole TCP header, with half of one, or all.
const QUOTED: [usize; 3] = [20, 8, usize::MAX];

/// From the router to the VIP.
fn error<A: Net>(about: &Segment<A>, quoted: usize) -> Error<A> {
    Error {
        macs: [mac(202), mac(ROUTER)],
        source: A::host(ROUTER),
        destination: A::host(VIP),
        hops: 60,
        kind: A::TOO_BIG.0,
        code: A::TOO_BIG.1,
        rest: [0, 0, 5, 100],
        about: about.clone(),
        quoted,
    }
}

/// A world in which the client's connection is established, and its first data.
fn established<A: Net>(world: &World<A>) -> Segment<A>
where
    Memory: Family<A>,
{
    world.ingress(&asks::<A>(SYN).bytes());
    world.ingress(&answers::<A>(CLIENT_PORT, SYN_ACK).bytes());
    let data = Segment { payload: std::vec![0xa5; 64], ..asks::<A>(ACK) };
    world.ingress(&data.bytes());
    data
}

fn a_router_before_the_backend_is_heard_by_the_client<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let data = established(&world);
    // As the router saw it, one hop later.
    let about = Segment { hops: 62, ..sent_on(&data) };
    for quoted in QUOTED {
        let heard = Error {
            macs: [mac(CLIENT), mac(200 + INTERFACE as u8)],
            source: A::host(VIP),
            destination: A::host(CLIENT),
            hops: 59,
            about: Segment { hops: 62, ..data.clone() },
            ..error(&about, quoted)
        };
        let (verdict, frame) = world.ingress(&error(&about, quoted).bytes());
        assert_eq!(verdict, Verdict::Transmit);
        assert_eq!(frame, heard.bytes(), "{quoted} bytes of TCP");
    }
    assert_eq!(world.memory.counter(Counter::IcmpError), QUOTED.len() as u64);
}

fn a_router_before_the_client_is_heard_by_the_backend<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    established(&world);
    let reply = Segment { payload: std::vec![0x5a; 64], ..answers::<A>(CLIENT_PORT, ACK) };
    let about = Segment { hops: 61, ..sent_back(&reply) };
    for quoted in QUOTED {
        let heard = Error {
            macs: [mac(BACKEND), mac(200 + OUTER as u8)],
            source: A::host(VIP),
            destination: A::host(BACKEND),
            hops: 59,
            about: Segment { hops: 61, ..reply.clone() },
            ..error(&about, quoted)
        };
        let (verdict, frame) = world.ingress(&error(&about, quoted).bytes());
        assert_eq!(verdict, Verdict::Redirect(OUTER));
        assert_eq!(frame, heard.bytes(), "{quoted} bytes of TCP");
    }
}

fn a_backend_on_this_host_hears_of_its_replies<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::local();
    let syn = asks::<A>(SYN);
    world.ingress(&syn.bytes());
    let port = u16::from_be_bytes(world.memory.flow(&World::key(&syn)).expect("known").new_source_port());
    let turned = Segment { ports: [SERVICE_PORT, CLIENT_PORT], ..sent_back(&answers::<A>(CLIENT_PORT, ACK)) };
    let sent =
        Segment { source: A::host(LOCAL), destination: A::host(CLIENT), ports: [BACKEND_PORT, port], ..turned.clone() };
    for quoted in QUOTED {
        let heard = Error {
            source: A::host(CLIENT),
            destination: A::host(LOCAL),
            hops: 59,
            about: sent.clone(),
            ..error(&turned, quoted)
        };
        let (verdict, frame) = world.ingress(&error(&turned, quoted).bytes());
        assert_eq!((verdict, frame), (Verdict::Pass, heard.bytes()), "{quoted} bytes of TCP");
    }
}

fn only_eight_bytes_are_quoted_and_that_is_enough<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let about = sent_on(&established(&world));
    let frame = error(&about, 8).bytes();
    assert_eq!(world.ingress(&frame).0, Verdict::Transmit);
    let cut = frame[..frame.len() - 1].to_vec();
    assert_eq!(world.ingress(&cut), (Verdict::Pass, cut.clone()), "seven are not");
    assert_eq!(world.memory.counter(Counter::Malformed), 1);
}

fn what_is_quoted_is_inside_the_message<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let whole = error(&sent_on(&established(&world)), 20).bytes();
    let is_v4 = A::ETHER_TYPE == wire::IPV4;
    let at = if is_v4 { 16 } else { 18 };
    let length = u16::from_be_bytes([whole[at], whole[at + 1]]);
    let claims = |length: u16| {
        let mut frame = whole.clone();
        frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
        frame
    };
    // That it was whole once, and quoted before it was cut, is what the quoted header's own length says.
    assert_eq!(world.ingress(&claims(length - 12)).0, Verdict::Transmit, "the rest is no part of it");
    let mut malformed = std::vec![claims(length + 1), claims(length - 13), claims(8), claims(0)];
    if is_v4 {
        let mut options = whole.clone();
        options[14 + 20 + 8] = 0x4f;
        malformed.push(options);
    }
    for (number, frame) in (1..).zip(malformed) {
        assert_eq!(world.ingress(&frame), (Verdict::Pass, frame.clone()), "number {number}");
        assert_eq!(world.memory.counter(Counter::Malformed), number);
    }
}

fn what_is_cached_of_the_way_may_be_out_of_date<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let data = established(&world);
    world.generation(9);
    let lookups = world.memory.lookups();
    assert_eq!(world.ingress(&error(&sent_on(&data), 8).bytes()).0, Verdict::Transmit);
    assert_eq!(world.memory.lookups(), lookups + 1);
    world.route(CLIENT, Route::Kernel(INTERFACE));
    assert_eq!(world.ingress(&error(&sent_on(&data), 8).bytes()).0, Verdict::Kernel(INTERFACE));
    world.route(CLIENT, Route::None);
    assert_eq!(world.ingress(&error(&sent_on(&data), 8).bytes()).0, Verdict::Drop);
    assert_eq!(world.memory.counter(Counter::NoRoute), 1);
}

fn what_is_not_an_error_about_a_connection_is_the_hosts<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let about = sent_on(&established(&world));
    let echo = Error { kind: A::ECHO, code: 0, ..error(&about, 20) };
    let nobody = error(&Segment { ports: [CLIENT_PORT + 1, BACKEND_PORT], ..about.clone() }, 20);
    let forged = error(&Segment { source: A::host(CLIENT), ..about.clone() }, 20);
    for (message, counted) in [(echo, 0), (forged, 0), (nobody, 1)] {
        let frame = message.bytes();
        assert_eq!(world.ingress(&frame), (Verdict::Pass, frame.clone()), "{message:?}");
        assert_eq!(world.memory.counter(Counter::IcmpStranger), counted);
    }
}

fn the_last_hop_ends_it<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let about = sent_on(&established(&world));
    let frame = Error { hops: 1, ..error(&about, 20) }.bytes();
    assert_eq!(world.ingress(&frame).0, Verdict::Drop);
    assert_eq!(world.memory.counter(Counter::Expired), 1);
}
