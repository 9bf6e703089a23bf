//! Backends on this host that know their client by the VIP: by way of the loopback interface, there and back.

use super::{segments::Error, *};

both!(
    what_another_node_carried_goes_on_by_the_loopback_interface,
    what_else_the_host_sends_to_itself_is_left_alone,
    by_a_link_its_replies_leave_as_they_are,
    a_reply_without_a_way_is_dropped,
    an_error_about_a_reply_comes_by_the_loopback_interface_too,
    a_dead_backends_client_is_reset,
);

/// The port that the node before has chosen at the VIP.
const PORT: u16 = 51_000;
/// What the backend's socket sends: to an address of this host, so there are no MAC addresses.
fn says<A: Net>(flags: Flags) -> Segment<A> {
    Segment {
        macs: [[0; 6]; 2],
        source: A::host(LOCAL),
        destination: A::host(VIP),
        ports: [BACKEND_PORT, PORT],
        ..asks(flags)
    }
}

/// A world that was told of the client's connection.
fn told<A: Net>() -> World<A>
where
    Memory: Family<A>,
{
    let world = World::<A>::local();
    let (key, other) = (World::key(&asks::<A>(ACK)), World::key(&says::<A>(ACK)));
    for (key, other, role) in [(&key, &other, Role::INHERITED_FORWARD), (&other, &key, Role::INHERITED_REPLY)] {
        let mut flow = Flow::default();
        flow.start(key, other, role, ID, Phase::Established, world.now);
        world.memory.insert(key, &flow, Existing::Kept).expect("room");
    }
    world
}

fn looped<A: Net>(world: &World<A>, frame: &[u8]) -> (Verdict, Vec<u8>)
where
    Memory: Family<A>,
{
    let mut frame = frame.to_vec();
    let verdict = loopback(&mut frame[..], &world.memory, world.now);
    (verdict, frame)
}

fn what_another_node_carried_goes_on_by_the_loopback_interface<A: Net>()
where
    Memory: Family<A>,
{
    let world = told::<A>();
    // The first brings the entry up to date, the second finds it so.
    for tags in [std::vec![], std::vec![], std::vec![10]] {
        let data = Segment { tags, payload: b"odd".to_vec(), ..asks(ACK) };
        let becomes = Segment {
            source: A::host(VIP),
            destination: A::host(LOCAL),
            ports: [PORT, BACKEND_PORT],
            hops: data.hops - 1,
            ..data.clone()
        };
        world.expect(&data, Verdict::Kernel(LOOPBACK), &becomes);
    }
    assert_eq!(world.memory.lookups(), 0, "the host itself is the way");

    let answer = Segment { payload: b"answer".to_vec(), ..says(ACK) };
    let becomes = Segment {
        source: A::host(VIP),
        destination: A::host(CLIENT),
        ports: [SERVICE_PORT, CLIENT_PORT],
        ..answer.clone()
    };
    assert_eq!(looped(&world, &answer.bytes()), (Verdict::Kernel(INTERFACE), becomes.bytes()));
    let traffic = world.memory.traffic_of(ID);
    assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (0, 3, 1));

    world.ingress(&asks::<A>(FIN).bytes());
    looped(&world, &says::<A>(FIN).bytes());
    assert_eq!(world.phases(&asks(ACK)), (Phase::Closed, Phase::Closed));
}

fn what_else_the_host_sends_to_itself_is_left_alone<A: Net>()
where
    Memory: Family<A>,
{
    let world = told::<A>();
    let ours = says::<A>(ACK);
    // The host's own client of the VIP, and what it is answered.
    let own = Segment { source: A::host(VIP), ports: [CLIENT_PORT, SERVICE_PORT], ..ours.clone() }.bytes();
    let answered = Segment { source: A::host(VIP), ports: [SERVICE_PORT, CLIENT_PORT], ..ours.clone() }.bytes();
    let other_port = Segment { ports: [BACKEND_PORT, PORT ^ 1], ..ours.clone() }.bytes();
    let other_source = Segment { source: A::host(BACKEND), ..ours.clone() }.bytes();
    // What was passed up, on its way to the socket.
    let up = Segment { source: A::host(VIP), destination: A::host(LOCAL), ports: [PORT, BACKEND_PORT], ..ours.clone() };
    let fragment = A::fragment(&ours);
    let short = ours.bytes()[..ours.bytes().len() - 1].to_vec();
    for frame in [own, answered, other_port, other_source, up.bytes(), fragment, short, Vec::new()] {
        assert_eq!(looped(&world, &frame), (Verdict::Pass, frame));
    }
    // Of the client's own half, and of a connection that began here.
    let forward = asks::<A>(ACK).bytes();
    assert_eq!(looped(&world, &forward), (Verdict::Pass, forward));
    let begun = World::<A>::remote();
    begun.ingress(&asks::<A>(SYN).bytes());
    let reply = answers::<A>(CLIENT_PORT, SYN_ACK).bytes();
    assert_eq!(looped(&begun, &reply), (Verdict::Pass, reply));
    let idle = Memory::default();
    let mut frame = ours.bytes();
    assert_eq!(loopback(&mut frame[..], &idle, world.now), Verdict::Pass, "before the daemon has written anything");
    assert_eq!(frame, ours.bytes());
}

fn by_a_link_its_replies_leave_as_they_are<A: Net>()
where
    Memory: Family<A>,
{
    // The VIP is with another node again, which turns them.
    let world = told::<A>();
    let mut frame = says::<A>(ACK).bytes();
    assert_eq!(egress(&mut frame[..], &world.memory, world.now), Leaving::Goes);
    assert_eq!(frame, says::<A>(ACK).bytes());
}

fn a_reply_without_a_way_is_dropped<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = told::<A>();
    for way in [Route::None, Route::Kernel(LOOPBACK)] {
        world.route(CLIENT, way);
        assert_eq!(looped(&world, &says::<A>(ACK).bytes()), (Verdict::Drop, says::<A>(ACK).bytes()));
    }
    assert_eq!(world.memory.counter(Counter::NoRoute), 2);
    world.route(CLIENT, Route::Kernel(9));
    assert_eq!(looped(&world, &says::<A>(ACK).bytes()).0, Verdict::Kernel(9));
}

fn an_error_about_a_reply_comes_by_the_loopback_interface_too<A: Net>()
where
    Memory: Family<A>,
{
    let world = told::<A>();
    let reply = says::<A>(ACK);
    let sent = Segment {
        source: A::host(VIP),
        destination: A::host(CLIENT),
        ports: [SERVICE_PORT, CLIENT_PORT],
        ..reply.clone()
    };
    let error = Error {
        macs: [mac(202), mac(77)],
        source: A::host(77),
        destination: A::host(VIP),
        hops: 60,
        kind: A::TOO_BIG.0,
        code: A::TOO_BIG.1,
        rest: [0, 0, 5, 100],
        about: sent,
        quoted: 20,
    };
    let heard = Error { destination: A::host(LOCAL), source: A::host(VIP), hops: 59, about: reply, ..error.clone() };
    let (verdict, frame) = world.ingress(&error.bytes());
    assert_eq!((verdict, frame), (Verdict::Kernel(LOOPBACK), heard.bytes()));
}

fn a_dead_backends_client_is_reset<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = told::<A>();
    let flags = Backend::LOCAL | Backend::DOWN;
    world.replace(Backend::new(A::host(LOCAL).mapped(), BACKEND_PORT.to_be_bytes(), flags));
    assert!(matches!(world.ingress(&asks::<A>(ACK).bytes()).0, Verdict::Answer(_)));
    assert!(!world.knows(&asks(ACK)) && !world.knows(&says(ACK)));
}
