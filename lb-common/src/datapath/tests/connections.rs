//! Connections that come, live and find their way.

use super::*;
use crate::{flow::Ports, table::QUIET};

both!(
    a_connection_there_and_back,
    two_clients_with_one_port_are_told_apart,
    no_port_left,
    a_full_table_drops,
    a_lost_half_is_made_again,
    a_new_generation_restores_a_lost_half,
    a_handshake_gives_its_port_before_a_client_is_turned_away,
    a_new_generation_asks_for_the_route_once_more,
    a_segment_without_its_syn_makes_the_same_entry,
    a_syn_starts_anew_only_where_the_old_connection_is_over,
    a_client_is_answered_by_the_way_to_it,
    the_kernel_sends_where_the_neighbour_is_unknown,
    without_a_route_it_is_dropped,
);

const TRANSMIT: Verdict = Verdict::Transmit;
const REDIRECT: Verdict = Verdict::Redirect(OUTER);

fn a_connection_there_and_back<A: Net>()
where
    Memory: Family<A>,
{
    use Phase::*;
    let world = World::<A>::remote();
    let mut bytes = [0, 0];
    let steps = [
        (true, SYN, SynSent),
        (false, SYN_ACK, SynReceived),
        (true, ACK, Established),
        (false, ACK, Established),
        (true, FIN, ClientClosing),
        (false, FIN, Closed),
    ];
    for (number, (from_client, flags, after)) in steps.into_iter().enumerate() {
        let payload = std::vec![number as u8; number];
        if from_client {
            let segment = Segment { payload, ..asks(flags) };
            world.expect(&segment, REDIRECT, &sent_on(&segment));
            bytes[0] += segment.bytes().len() as u64;
        } else {
            let segment = Segment { payload, ..answers(CLIENT_PORT, flags) };
            world.expect(&segment, TRANSMIT, &sent_back(&segment));
            bytes[1] += segment.bytes().len() as u64;
        }
        assert_eq!(world.phases(&asks(ACK)), (after, after), "after step {number}");
    }
    assert_eq!(world.memory.counters(), [(Counter::Connected, 1)].into());
    let traffic = world.memory.traffic_of(ID);
    assert_eq!((traffic.connections, traffic.packets_in, traffic.packets_out), (1, 3, 3));
    assert_eq!([traffic.bytes_in, traffic.bytes_out], bytes);
    assert_eq!(world.memory.lookups(), 2, "one route each way");
}

/// The port under which the backend sees the client of `segment`.
fn port_of<A: Net>(world: &World<A>, segment: &Segment<A>) -> u16
where
    Memory: Family<A>,
{
    let flow = world.memory.flow(&World::key(segment)).expect("a known connection");
    u16::from_be_bytes(flow.new_source_port())
}

fn two_clients_with_one_port_are_told_apart<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let first = asks(SYN);
    let second = Segment { source: A::host(OTHER_CLIENT), ..asks(SYN) };
    world.expect(&first, REDIRECT, &sent_on(&first));
    assert_eq!(world.ingress(&second.bytes()).0, REDIRECT);
    let port = port_of(&world, &second);
    assert_ne!(port, CLIENT_PORT);
    let mut becomes = sent_on(&second);
    becomes.ports[0] = port;
    let data = Segment { flags: ACK, ..second.clone() };
    world.expect(&data, REDIRECT, &Segment { flags: ACK, ..becomes });

    let reply = answers(CLIENT_PORT, SYN_ACK);
    world.expect(&reply, TRANSMIT, &sent_back(&reply));
    let reply = answers(port, SYN_ACK);
    let back = Segment { macs: [mac(OTHER_CLIENT), mac(202)], destination: A::host(OTHER_CLIENT), ..sent_back(&reply) };
    world.expect(&reply, TRANSMIT, &back);
}

/// The reply half of a stranger's connection that holds `port`.
fn take<A: Net>(world: &World<A>, port: [u8; 2], phase: Phase)
where
    Memory: Family<A>,
{
    let key = Key {
        source: A::host(BACKEND),
        destination: A::host(VIP),
        source_port: BACKEND_PORT.to_be_bytes(),
        destination_port: port,
    };
    let stranger = Key { source: A::host(99), ..World::<A>::key(&asks(SYN)) };
    let mut flow = Flow::default();
    flow.start(&key, &stranger, Role::REPLY, ID, phase, world.now);
    world.memory.insert(&key, &flow, Existing::Kept).expect("room");
}

fn no_port_left<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let ports = Ports::new(CLIENT_PORT.to_be_bytes(), A::host(CLIENT).digest(), false);
    for attempt in 0..Ports::TRIES - 1 {
        take(&world, ports.candidate(attempt), Phase::Established);
    }
    world.ingress(&asks::<A>(SYN).bytes());
    let last = u16::from_be_bytes(ports.candidate(Ports::TRIES - 1));
    assert_eq!(port_of(&world, &asks(SYN)), last, "the last candidate was free");

    let world = World::<A>::remote();
    (0..Ports::TRIES).for_each(|attempt| take(&world, ports.candidate(attempt), Phase::Established));
    world.dropped(&asks(SYN), Counter::NoPort);
    assert!(!world.knows(&asks(SYN)));
    assert_eq!(world.memory.counter(Counter::Connected), 0);
}

fn a_handshake_gives_its_port_before_a_client_is_turned_away<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let ports = Ports::new(CLIENT_PORT.to_be_bytes(), A::host(CLIENT).digest(), false);
    (0..Ports::TRIES).for_each(|attempt| take(&world, ports.candidate(attempt), Phase::SynReceived));
    world.ingress(&asks::<A>(SYN).bytes());
    assert_eq!(port_of(&world, &asks(SYN)).to_be_bytes(), ports.candidate(Ports::TRIES - 1));
    assert_eq!(world.memory.counters(), [(Counter::Connected, 1), (Counter::EvictedHalfOpen, 1)].into());
}

fn a_full_table_drops<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    // Strangers' established connections, one more than the table has room for in each of its sets.
    for number in 0..20_000_u32 {
        let [_, _, a, b] = number.to_be_bytes();
        let key = Key { source: A::host(200), destination: A::host(201), source_port: [a, b], ..Key::default() };
        let mut flow = Flow::default();
        flow.start(&key, &key, Role::REPLY, ID, Phase::Established, world.now);
        let _ = world.memory.insert(&key, &flow, Existing::Kept);
    }
    world.dropped(&asks(SYN), Counter::TableFull);
    assert!(!world.knows(&asks(SYN)));
}

fn a_lost_half_is_made_again<A: Net>()
where
    Memory: Family<A>,
{
    for lost_is_the_clients in [true, false] {
        let mut world = World::<A>::remote();
        for frame in [asks::<A>(SYN).bytes(), answers::<A>(CLIENT_PORT, SYN_ACK).bytes(), asks::<A>(ACK).bytes()] {
            world.ingress(&frame);
        }
        let (ask, answer) = (asks(ACK), answers(CLIENT_PORT, ACK));
        let (lost, kept) = if lost_is_the_clients { (&ask, &answer) } else { (&answer, &ask) };
        world.memory.remove(&World::key(lost), world.now);
        // In the middle of traffic nobody looks…
        world.ingress(&kept.bytes());
        assert!(!world.knows(lost));
        // … but entries give way only after a long silence, and then the next packet does.
        world.now += u64::from(QUIET);
        world.ingress(&kept.bytes());
        assert!(world.knows(lost), "the client's: {lost_is_the_clients}");
        assert_eq!(world.phases(&asks(ACK)), (Phase::Established, Phase::Established));
        world.expect(&asks(ACK), REDIRECT, &sent_on(&asks(ACK)));
        world.expect(&answers(CLIENT_PORT, ACK), TRANSMIT, &sent_back(&answers(CLIENT_PORT, ACK)));
        assert_eq!(world.memory.counters(), [(Counter::Connected, 1)].into(), "as it was, not anew");
    }
}

fn a_new_generation_restores_a_lost_half<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    world.memory.remove(&World::key(&answers::<A>(CLIENT_PORT, ACK)), world.now);
    world.generation(2);
    world.expect(&asks(ACK), REDIRECT, &sent_on(&asks(ACK)));
    world.expect(&answers(CLIENT_PORT, ACK), TRANSMIT, &sent_back(&answers(CLIENT_PORT, ACK)));
}

fn a_new_generation_asks_for_the_route_once_more<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    world.ingress(&answers::<A>(CLIENT_PORT, SYN_ACK).bytes());
    world.ingress(&asks::<A>(ACK).bytes());
    let before = world.memory.lookups();

    world.route(BACKEND, Route::Hop(hop(4, 77)));
    world.expect(&asks(ACK), REDIRECT, &sent_on(&asks(ACK)));
    assert_eq!(world.memory.lookups(), before, "nobody has said that a route changed");

    world.generation(2);
    let moved = Segment { macs: [mac(77), mac(204)], ..sent_on(&asks(ACK)) };
    for _ in 0..3 {
        world.expect(&asks(ACK), Verdict::Redirect(4), &moved);
        let reply = answers(CLIENT_PORT, ACK);
        world.expect(&reply, TRANSMIT, &sent_back(&reply));
    }
    assert_eq!(world.memory.lookups(), before + 2, "one more each way");
    assert_eq!(world.phases(&asks(ACK)), (Phase::Established, Phase::Established));
    let flow = world.memory.flow(&World::key(&asks::<A>(ACK))).expect("a known connection");
    assert_eq!(flow.packets(), 6, "the entry's own count goes on");
}

fn a_segment_without_its_syn_makes_the_same_entry<A: Net>()
where
    Memory: Family<A>,
{
    let before = World::<A>::remote();
    before.ingress(&asks::<A>(SYN).bytes());
    let after = World::<A>::remote();
    let data = Segment { payload: b"still here".to_vec(), ..asks(ACK) };
    after.expect(&data, REDIRECT, &sent_on(&data));
    let key = World::<A>::key(&data);
    let (one, other) = (before.memory.flow(&key).unwrap(), after.memory.flow(&key).unwrap());
    assert_eq!((one.other, one.backend(), one.hop), (other.other, other.backend(), other.hop));
    assert_eq!(after.phases(&data), (Phase::Established, Phase::Established));
    assert_eq!(after.memory.counters(), [(Counter::Rebuilt, 1)].into());
    let reply = answers(CLIENT_PORT, ACK);
    after.expect(&reply, TRANSMIT, &sent_back(&reply));
}

fn a_syn_starts_anew_only_where_the_old_connection_is_over<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let exchange = |flags: &[(bool, Flags)]| {
        for (from_client, flags) in flags {
            let frame =
                if *from_client { asks::<A>(*flags).bytes() } else { answers::<A>(CLIENT_PORT, *flags).bytes() };
            world.ingress(&frame);
        }
    };
    exchange(&[(true, SYN), (false, SYN_ACK), (true, ACK), (true, SYN)]);
    assert_eq!(world.memory.counter(Counter::Connected), 1, "the backend answers a SYN in a living connection");
    assert_eq!(world.phases(&asks(SYN)).0, Phase::Established);
    exchange(&[(false, RST), (true, SYN)]);
    assert_eq!(world.memory.counter(Counter::Connected), 2);
    assert_eq!(world.phases(&asks(SYN)), (Phase::SynSent, Phase::SynSent));
    assert_eq!(port_of(&world, &asks(SYN)), CLIENT_PORT);
    // A backend never opens: its SYN does not start anything.
    exchange(&[(false, RST), (false, SYN)]);
    assert_eq!(world.memory.counter(Counter::Connected), 2);
}

fn a_client_is_answered_by_the_way_to_it<A: Net>()
where
    Memory: Family<A>,
{
    // Whoever brought the packet has no say: answers go by the routing table, as all that this host sends.
    for (route, verdict) in [(Route::None, Verdict::Drop), (Route::Kernel(OUTER), Verdict::Kernel(OUTER))] {
        let mut world = World::<A>::remote();
        world.route(CLIENT, route);
        let syn = Segment { macs: [mac(202), mac(254)], ..asks::<A>(SYN) };
        assert_eq!(world.ingress(&syn.bytes()).0, REDIRECT);
        assert_eq!(world.ingress(&answers::<A>(CLIENT_PORT, SYN_ACK).bytes()).0, verdict);
    }
}

fn the_kernel_sends_where_the_neighbour_is_unknown<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.route(BACKEND, Route::Kernel(OUTER));
    let untouched = |segment: Segment<A>| Segment { macs: segment.macs, ..sent_on(&segment) };
    world.expect(&asks(SYN), Verdict::Kernel(OUTER), &untouched(asks(SYN)));
    world.expect(&asks(ACK), Verdict::Kernel(OUTER), &untouched(asks(ACK)));
    assert_eq!(world.memory.counter(Counter::Unresolved), 2);
    // Known by now, and looked up without a new generation.
    world.route(BACKEND, Route::Hop(hop(OUTER, BACKEND)));
    world.expect(&asks(ACK), REDIRECT, &sent_on(&asks(ACK)));
}

fn without_a_route_it_is_dropped<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.route(BACKEND, Route::None);
    world.dropped(&asks(SYN), Counter::NoRoute);
    world.route(BACKEND, Route::Hop(hop(OUTER, BACKEND)));
    world.expect(&asks(SYN), REDIRECT, &sent_on(&asks(SYN)));
    world.route(CLIENT, Route::None);
    world.generation(2);
    world.dropped(&answers(CLIENT_PORT, SYN_ACK), Counter::NoRoute);
}
