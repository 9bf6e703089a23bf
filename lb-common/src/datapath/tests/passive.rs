//! Backends that leave a SYN unanswered or refuse it, and where the client's next SYN goes.

use super::*;
use crate::abi::SUSPICION_REST;

both!(
    a_refusal_is_kept_from_the_client_whose_next_syn_goes_elsewhere,
    a_refusal_goes_through_where_nobody_else_is,
    a_refusal_by_all_finds_the_one_that_does_not_refuse,
    a_refusal_goes_through_where_the_others_are_failing_too,
    the_fourth_refusal_goes_through,
    a_repeated_syn_is_told_and_the_second_repetition_goes_elsewhere,
    a_backend_that_has_answered_is_not_suspected,
    a_late_answer_of_the_backend_before_is_not_shown_to_the_client,
    an_answer_after_a_refusal_is_one,
    the_daemon_is_told_once_in_a_while,
    a_local_backends_refusal_is_kept_from_the_client,
    refused_connections_are_counted_among_the_half_open,
);

/// Backends beside [`ID`], and the last bytes of their addresses.
const SPARE: BackendId = BackendId(8);
const THIRD: BackendId = BackendId(9);
const SPARES: [(BackendId, u8); 2] = [(SPARE, 12), (THIRD, 13)];

/// A world whose client's slot leads to [`ID`], and all others to these in turn.
fn with_spares<A: Net>(mut world: World<A>, spares: &[(BackendId, u8)]) -> World<A>
where
    Memory: Family<A>,
{
    let mut slots: Vec<BackendId> = spares.iter().map(|(id, _)| *id).chain([ID]).collect();
    slots = slots.iter().copied().cycle().take(SLOTS as usize).collect();
    slots[crate::maglev::slot(crate::abi::source_hash(&A::host(CLIENT))) as usize] = ID;
    world.memory.tables.insert(ServiceId(3), slots);
    for (id, last) in spares {
        let backend = Backend::new(A::host(*last).mapped(), BACKEND_PORT.to_be_bytes(), 0);
        world.memory.backends.insert(*id, backend);
        world.route(*last, Route::Hop(hop(OUTER, *last)));
    }
    world
}

fn pair<A: Net>() -> World<A>
where
    Memory: Family<A>,
{
    with_spares(World::remote(), &SPARES[..1])
}

fn from<A: Net>(last: u8, flags: Flags) -> Segment<A> {
    Segment { source: A::host(last), macs: [mac(203), mac(last)], ..answers(CLIENT_PORT, flags) }
}

/// Sends the client's SYN in, and tells which backend it goes on to.
fn tried<A: Net>(world: &World<A>) -> u8
where
    Memory: Family<A>,
{
    let syn = asks::<A>(SYN);
    let (verdict, frame) = world.ingress(&syn.bytes());
    assert_eq!(verdict, Verdict::Redirect(OUTER));
    let goes_to = |last: u8| {
        let there =
            Segment { macs: [mac(last), mac(200 + OUTER as u8)], destination: A::host(last), ..sent_on::<A>(&syn) };
        there.bytes() == frame
    };
    [BACKEND, 12, 13].into_iter().find(|last| goes_to(*last)).expect("one of the backends")
}

fn a_refusal_is_kept_from_the_client_whose_next_syn_goes_elsewhere<A: Net>()
where
    Memory: Family<A>,
{
    let world = pair::<A>();
    assert_eq!(tried(&world), BACKEND);
    for flags in [RST.with(ACK), RST] {
        world.dropped(&from(BACKEND, flags), Counter::Refused);
        assert_eq!(world.phases(&asks(SYN)), (Phase::Refused, Phase::Refused));
    }
    assert_eq!(world.memory.suspicions.borrow()[..], [ID]);
    assert_eq!(tried(&world), 12);
    assert_eq!(world.phases(&asks(SYN)), (Phase::SynSent, Phase::SynSent));
    let answer = from::<A>(12, SYN_ACK);
    world.expect(&answer, Verdict::Transmit, &sent_back(&answer));
    assert_eq!(world.memory.counter(Counter::Retried), 1);
    assert_eq!(world.memory.counter(Counter::Unanswered), 0, "it has answered");
    let counts = [ID, SPARE].map(|id| world.memory.traffic_of(id));
    assert_eq!(counts.map(|traffic| (traffic.packets_in, traffic.packets_out)), [(1, 0), (1, 1)]);
}

fn a_refusal_goes_through_where_nobody_else_is<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    assert_eq!(tried(&world), BACKEND);
    let refusal = from::<A>(BACKEND, RST.with(ACK));
    world.expect(&refusal, Verdict::Transmit, &sent_back(&refusal));
    assert_eq!(world.phases(&asks(SYN)), (Phase::Closed, Phase::Closed));
    assert_eq!(world.memory.suspicions.borrow()[..], [ID], "it is told all the same");
    assert_eq!(tried(&world), BACKEND);
    assert_eq!(world.memory.counters(), [(Counter::Connected, 2)].into());
}

fn a_refusal_by_all_finds_the_one_that_does_not_refuse<A: Net>()
where
    Memory: Family<A>,
{
    let world = with_spares(World::<A>::remote(), &SPARES);
    let mut last = tried(&world);
    let mut asked = std::vec![last];
    while last != 13 {
        assert!(asked.len() < 4, "{asked:?}");
        world.dropped(&from(last, RST.with(ACK)), Counter::Refused);
        let next = tried(&world);
        assert_ne!(next, last);
        last = next;
        asked.push(next);
    }
}

fn a_refusal_goes_through_where_the_others_are_failing_too<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = pair::<A>();
    let failing = Backend::new(A::host(12).mapped(), BACKEND_PORT.to_be_bytes(), Backend::FAILING);
    world.memory.backends.insert(SPARE, failing);
    assert_eq!(tried(&world), BACKEND);
    let refusal = from::<A>(BACKEND, RST.with(ACK));
    world.expect(&refusal, Verdict::Transmit, &sent_back(&refusal));
    assert_eq!(world.memory.counter(Counter::Refused), 0);
    // A SYN without an answer is another matter.
    assert_eq!([(); 3].map(|()| tried(&world)), [BACKEND, BACKEND, 12]);
}

fn the_fourth_refusal_goes_through<A: Net>()
where
    Memory: Family<A>,
{
    let world = pair::<A>();
    for _ in 0..3 {
        let tried = tried(&world);
        world.dropped(&from(tried, RST.with(ACK)), Counter::Refused);
    }
    let refusal = from::<A>(tried(&world), RST.with(ACK));
    world.expect(&refusal, Verdict::Transmit, &sent_back(&refusal));
    assert_eq!(world.phases(&asks(SYN)), (Phase::Closed, Phase::Closed));
    // Who comes anew has another three.
    let again = tried(&world);
    world.dropped(&from(again, RST.with(ACK)), Counter::Refused);
}

fn a_repeated_syn_is_told_and_the_second_repetition_goes_elsewhere<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = pair::<A>();
    let mut goes = |ticks: u64| {
        world.now += ticks;
        tried(&world)
    };
    assert_eq!([0, 1000, 2000, 4000, 8000].map(&mut goes), [BACKEND, BACKEND, 12, 12, BACKEND]);
    assert_eq!(world.memory.suspicions.borrow()[..], [ID, ID, SPARE, SPARE]);
    assert_eq!(world.memory.counter(Counter::Unanswered), 4);
    assert_eq!(world.memory.counter(Counter::Retried), 2);
    // One that is known to be down is not waited for.
    let dead = Backend::new(A::host(BACKEND).mapped(), BACKEND_PORT.to_be_bytes(), Backend::DOWN);
    world.memory.backends.insert(ID, dead);
    world.memory.tables.insert(ServiceId(3), std::vec![SPARE; SLOTS as usize]);
    assert_eq!(tried(&world), 12);
}

fn a_backend_that_has_answered_is_not_suspected<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = pair::<A>();
    tried(&world);
    world.ingress(&from::<A>(BACKEND, SYN_ACK).bytes());
    // The answer was lost behind us.
    for _ in 0..4 {
        world.memory.tables.insert(ServiceId(3), std::vec![SPARE; SLOTS as usize]);
        assert_eq!(tried(&world), BACKEND);
        world.ingress(&from::<A>(BACKEND, SYN_ACK).bytes());
    }
    world.ingress(&asks::<A>(ACK).bytes());
    let end = from::<A>(BACKEND, RST.with(ACK));
    world.expect(&end, Verdict::Transmit, &sent_back(&end));
    assert!(world.memory.suspicions.borrow().is_empty());
    assert_eq!(world.memory.counters(), [(Counter::Connected, 5)].into());
}

fn a_late_answer_of_the_backend_before_is_not_shown_to_the_client<A: Net>()
where
    Memory: Family<A>,
{
    let world = pair::<A>();
    assert_eq!([(); 3].map(|()| tried(&world)), [BACKEND, BACKEND, 12]);
    let (verdict, _) = world.ingress(&from::<A>(BACKEND, SYN_ACK).bytes());
    assert_eq!(verdict, Verdict::Pass, "it belongs to nobody");
    let answer = from::<A>(12, SYN_ACK);
    world.expect(&answer, Verdict::Transmit, &sent_back(&answer));
}

fn an_answer_after_a_refusal_is_one<A: Net>()
where
    Memory: Family<A>,
{
    let world = pair::<A>();
    tried(&world);
    world.dropped(&from(BACKEND, RST), Counter::Refused);
    let answer = from::<A>(BACKEND, SYN_ACK);
    world.expect(&answer, Verdict::Transmit, &sent_back(&answer));
    world.ingress(&asks::<A>(ACK).bytes());
    assert_eq!(world.phases(&asks(ACK)), (Phase::Established, Phase::Established));
}

fn the_daemon_is_told_once_in_a_while<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    for told in 1..4 {
        for _ in 0..SUSPICION_REST {
            tried(&world);
            world.ingress(&from::<A>(BACKEND, RST).bytes());
            assert_eq!(world.memory.suspicions.borrow().len(), told);
            world.now += 1;
        }
    }
}

fn a_local_backends_refusal_is_kept_from_the_client<A: Net>()
where
    Memory: Family<A>,
{
    let world = with_spares(World::<A>::local(), &SPARES[..1]);
    assert_eq!(world.ingress(&asks::<A>(SYN).bytes()).0, Verdict::Pass);
    let flow = world.memory.flow(&World::key(&asks::<A>(SYN))).expect("a known connection");
    let refusal = Segment {
        macs: [mac(CLIENT), mac(202)],
        source: A::host(LOCAL),
        destination: A::host(CLIENT),
        ports: [BACKEND_PORT, u16::from_be_bytes(flow.new_source_port())],
        ..asks::<A>(RST.with(ACK))
    };
    let mut frame = refusal.bytes();
    assert_eq!(egress(&mut frame[..], &world.memory, world.now), Leaving::Withheld);
    assert_eq!(frame, refusal.bytes());
    assert_eq!(world.memory.counter(Counter::Refused), 1);
    assert_eq!(tried(&world), 12);
    assert_eq!(world.memory.suspicions.borrow()[..], [ID]);

    let alone = World::<A>::local();
    alone.ingress(&asks::<A>(SYN).bytes());
    let mut frame = refusal.bytes();
    assert_eq!(egress(&mut frame[..], &alone.memory, alone.now), Leaving::Turned);
}

fn refused_connections_are_counted_among_the_half_open<A: Net>()
where
    Memory: Family<A>,
{
    let world = pair::<A>();
    tried(&world);
    world.ingress(&from::<A>(BACKEND, RST).bytes());
    let flow = world.memory.flow(&World::key(&asks::<A>(SYN))).expect("a known connection");
    assert!(flow.is_half_open());
}
