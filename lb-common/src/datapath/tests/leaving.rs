//! Backends on this host: up the stack with another port, and back again on the way out.

use super::*;

both!(
    a_local_backend_sees_the_client_and_answers_as_the_vip,
    a_client_may_speak_to_the_backend_directly,
    what_else_leaves_is_left_alone,
    a_dead_local_backend_is_reset,
);

fn egress_of<A: Net>(world: &World<A>, frame: &[u8]) -> (bool, Vec<u8>)
where
    Memory: Family<A>,
{
    let mut frame = frame.to_vec();
    let turned = egress(&mut frame[..], &world.memory, world.now) == Leaving::Turned;
    (turned, frame)
}

/// The port under which the local backend sees the client.
fn port_of<A: Net>(world: &World<A>) -> u16
where
    Memory: Family<A>,
{
    let flow = world.memory.flow(&World::key(&asks::<A>(SYN))).expect("a known connection");
    u16::from_be_bytes(flow.new_source_port())
}

/// What the client's segment is up the stack.
fn passed_up<A: Net>(segment: &Segment<A>, port: u16) -> Segment<A> {
    Segment { destination: A::host(LOCAL), ports: [port, BACKEND_PORT], hops: segment.hops - 1, ..segment.clone() }
}

/// What the backend's socket sends to the client.
fn replies<A: Net>(port: u16, flags: Flags) -> Segment<A> {
    Segment {
        macs: [mac(CLIENT), mac(202)],
        source: A::host(LOCAL),
        destination: A::host(CLIENT),
        ports: [BACKEND_PORT, port],
        ..asks(flags)
    }
}

fn a_local_backend_sees_the_client_and_answers_as_the_vip<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::local();
    world.ingress(&asks::<A>(SYN).bytes());
    let port = port_of(&world);
    assert!((1024..32768).contains(&port), "{port} is below the ephemeral range");
    for tags in [std::vec![], std::vec![10]] {
        let segment = Segment { tags, payload: b"odd".to_vec(), ..asks(ACK) };
        world.expect(&segment, Verdict::Pass, &passed_up(&segment, port));

        let reply = Segment { tags: segment.tags, payload: b"answer".to_vec(), ..replies(port, SYN_ACK) };
        let (turned, frame) = egress_of(&world, &reply.bytes());
        assert!(turned);
        let becomes = Segment { source: A::host(VIP), ports: [SERVICE_PORT, CLIENT_PORT], ..reply };
        assert_eq!(frame, becomes.bytes());
    }
    assert_eq!(world.memory.lookups(), 0, "the host itself is the way");
    let traffic = world.memory.traffic_of(ID);
    assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (1, 3, 2));

    world.ingress(&asks::<A>(FIN).bytes());
    egress_of(&world, &replies::<A>(port, FIN).bytes());
    assert_eq!(world.phases(&asks(ACK)), (Phase::Closed, Phase::Closed));
}

fn a_client_may_speak_to_the_backend_directly<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::local();
    world.ingress(&asks::<A>(SYN).bytes());
    let direct = Segment { destination: A::host(LOCAL), ports: [CLIENT_PORT, BACKEND_PORT], ..asks(SYN) };
    world.expect(&direct, Verdict::Pass, &direct);
    let reply = replies::<A>(CLIENT_PORT, SYN_ACK).bytes();
    assert_eq!(egress_of(&world, &reply), (false, reply));
}

fn what_else_leaves_is_left_alone<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::local();
    world.ingress(&asks::<A>(SYN).bytes());
    let port = port_of(&world);
    let ours = replies::<A>(port, SYN_ACK);
    let other_source = Segment { source: A::host(VIP), ..ours.clone() }.bytes();
    let other_port = Segment { ports: [BACKEND_PORT, port ^ 1], ..ours.clone() }.bytes();
    let fragment = A::fragment(&ours);
    let short = ours.bytes()[..ours.bytes().len() - 1].to_vec();
    let mut protocol = ours.bytes();
    protocol[12..14].copy_from_slice(&[0x08, 0x06]);
    // The half that comes from the client is no business of egress.
    let forward = asks::<A>(ACK).bytes();
    for frame in [other_source, other_port, fragment, short, protocol, forward, Vec::new()] {
        assert_eq!(egress_of(&world, &frame), (false, frame));
    }
    let idle = Memory::default();
    let mut frame = ours.bytes();
    assert_eq!(egress(&mut frame[..], &idle, world.now), Leaving::Goes, "before the daemon has written anything");
    assert_eq!(frame, ours.bytes());
}

fn a_dead_local_backend_is_reset<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::local();
    world.ingress(&asks::<A>(SYN).bytes());
    let port = port_of(&world);
    let flags = Backend::LOCAL | Backend::DOWN;
    world.replace(Backend::new(A::host(LOCAL).mapped(), BACKEND_PORT.to_be_bytes(), flags));
    assert!(matches!(world.ingress(&asks::<A>(ACK).bytes()).0, Verdict::Answer(_)));
    assert!(!world.knows(&asks(ACK)));
    assert!(!world.knows(&replies(port, ACK)));
}
