//! Connections that are refused or cut short, and the exact answer to each.

use super::*;

both!(
    a_reset_is_as_the_rfc_says,
    a_reset_is_never_answered,
    a_reply_to_a_lost_connection_is_not_shown_to_the_host,
    a_dead_backends_connection_is_reset_and_forgotten,
    a_dead_backends_own_segment_ends_the_connection_too,
    a_backend_that_is_gone_keeps_its_connections,
    nobody_asks_for_that_port,
    a_slot_that_leads_nowhere_is_no_backend,
    a_connection_is_counted_as_open_from_its_syn_to_its_end,
);

/// The reset to a segment from the client (RFC 9293 §3.10.7.1).
fn reset<A: Net>(to: &Segment<A>, sequence: u32, acknowledgement: u32, flags: Flags) -> Segment<A> {
    Segment {
        macs: [to.macs[1], to.macs[0]],
        source: to.destination,
        destination: to.source,
        ports: [to.ports[1], to.ports[0]],
        hops: 64,
        sequence,
        acknowledgement,
        flags,
        window: 0,
        options: Vec::new(),
        payload: Vec::new(),
        ..to.clone()
    }
}

/// Sends a segment in and demands that reset, which short frames carry with the rest of themselves as padding.
fn refused<A: Net>(world: &World<A>, segment: &Segment<A>, reset: &Segment<A>)
where
    Memory: Family<A>,
{
    let (arrived, wanted) = (segment.bytes(), reset.bytes());
    let (verdict, frame) = world.ingress(&arrived);
    let length = wanted.len().max(60);
    assert_eq!(verdict, Verdict::Answer(length), "{segment:?}");
    assert_eq!(frame.len(), length.min(arrived.len()));
    assert_eq!(frame[..wanted.len()], wanted, "{segment:?}");
}

fn a_reset_is_as_the_rfc_says<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.replace(Backend::absent());
    let sequence = asks::<A>(SYN).sequence;
    let acknowledgement = asks::<A>(SYN).acknowledgement;
    let mut asked = 0;
    for options in [std::vec![], [2, 4, 5, 180, 1, 1, 4, 2].to_vec()] {
        for payload in [std::vec![], b"hello".to_vec(), std::vec![7; 1400]] {
            for (extra, tags) in [(A::EXTRA, std::vec![]), (&[][..], std::vec![10, 20]), (&[][..], std::vec![])] {
                for flags in [SYN, ACK, FIN, Flags(0), Flags::FIN, SYN_ACK] {
                    let segment = Segment {
                        options: options.clone(),
                        payload: payload.clone(),
                        extra: extra.to_vec(),
                        tags: tags.clone(),
                        hops: 2,
                        ..asks(flags)
                    };
                    let answer = if flags.any(ACK) {
                        reset(&segment, acknowledgement, 0, RST)
                    } else {
                        let controls = u32::from(flags.any(SYN)) + u32::from(flags.any(Flags::FIN));
                        let next = sequence.wrapping_add(payload.len() as u32 + controls);
                        reset(&segment, 0, next, RST.with(ACK))
                    };
                    refused(&world, &segment, &answer);
                    asked += 1;
                }
            }
        }
    }
    let wrapping = Segment { sequence: u32::MAX, ..asks(SYN) };
    refused(&world, &wrapping, &reset(&wrapping, 0, 0, RST.with(ACK)));
    assert_eq!(world.memory.counters(), [(Counter::NoBackend, asked + 1)].into());
    assert!(!world.knows(&asks(SYN)));
}

fn a_reset_is_never_answered<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.dropped(&asks(RST), Counter::Stray);
    world.dropped(&asks(RST.with(ACK)), Counter::Stray);
    world.ingress(&asks::<A>(SYN).bytes());
    world.down();
    world.dropped(&asks(RST), Counter::BackendDown);
    assert!(!world.knows(&asks(RST)));
}

fn a_reply_to_a_lost_connection_is_not_shown_to_the_host<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let reply = answers::<A>(CLIENT_PORT, ACK);
    assert_eq!(world.ingress(&reply.bytes()), (Verdict::Pass, reply.bytes()), "a stranger's may be the host's own");
    let backend = ServiceKey::new(A::host(BACKEND).mapped(), BACKEND_PORT.to_be_bytes());
    world.memory.services.insert(backend, ServiceId::BACKEND);
    world.dropped(&reply, Counter::Orphan);
    // What the filter cannot tell from a VIP is this host itself.
    world.memory.settings.as_mut().expect("a generation").vips = Filter::full();
    let own = Segment { destination: A::host(LOCAL), ..reply.clone() };
    assert_eq!(world.ingress(&own.bytes()), (Verdict::Pass, own.bytes()));
    world.dropped(&reply, Counter::Orphan);
    // The client's next packet makes the entry again, and then the reply finds its way.
    assert_eq!(world.ingress(&asks::<A>(ACK).bytes()).0, Verdict::Redirect(OUTER));
    world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
}

/// How many connections the daemon was told to be over.
fn told<A: Net>(world: &World<A>) -> usize {
    let Memory { news4, news6, .. } = &world.memory;
    let four = news4.borrow().iter().filter(|news| news.phase() == Phase::Closed).count();
    four + news6.borrow().iter().filter(|news| news.phase() == Phase::Closed).count()
}

fn a_dead_backends_connection_is_reset_and_forgotten<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    world.ingress(&answers::<A>(CLIENT_PORT, SYN_ACK).bytes());
    world.down();
    let data = Segment { payload: b"are you there".to_vec(), ..asks(ACK) };
    refused(&world, &data, &reset(&data, data.acknowledgement, 0, RST));
    assert_eq!((world.memory.counter(Counter::BackendDown), told(&world)), (1, 1));
    assert!(!world.knows(&data));
    assert!(!world.knows(&answers(CLIENT_PORT, ACK)));
}

fn a_dead_backends_own_segment_ends_the_connection_too<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    world.down();
    world.dropped(&answers(CLIENT_PORT, SYN_ACK), Counter::BackendDown);
    assert_eq!(told(&world), 1);
    assert!(!world.knows(&asks(SYN)));
    assert!(!world.knows(&answers(CLIENT_PORT, SYN_ACK)));
}

fn a_backend_that_is_gone_keeps_its_connections<A: Net>()
where
    Memory: Family<A>,
{
    let stranger = Backend::new(A::host(12).mapped(), BACKEND_PORT.to_be_bytes(), Backend::DOWN);
    let port = Backend::new(A::host(BACKEND).mapped(), 1_u16.to_be_bytes(), Backend::DOWN);
    for successor in [Backend::absent(), stranger, port] {
        let mut world = World::<A>::remote();
        world.ingress(&asks::<A>(SYN).bytes());
        world.replace(successor);
        let reply = answers(CLIENT_PORT, SYN_ACK);
        world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
        world.expect(&asks(ACK), Verdict::Redirect(OUTER), &sent_on(&asks(ACK)));
    }
}

fn nobody_asks_for_that_port<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let elsewhere = Segment { ports: [CLIENT_PORT, 22], ..asks(SYN) };
    world.expect(&elsewhere, Verdict::Pass, &elsewhere);
    // What a backend sends to a connection that nobody knows is the host's to refuse.
    let late = answers(CLIENT_PORT, ACK);
    world.expect(&late, Verdict::Pass, &late);
    assert_eq!(world.memory.counters(), [(Counter::NoService, 2)].into());
}

fn a_slot_that_leads_nowhere_is_no_backend<A: Net>()
where
    Memory: Family<A>,
{
    for table in [None, Some(std::vec![BackendId::NONE; SLOTS as usize])] {
        let mut world = World::<A>::remote();
        match table {
            Some(slots) => world.memory.tables.insert(ServiceId(3), slots),
            None => world.memory.tables.remove(&ServiceId(3)),
        };
        let syn = asks(SYN);
        refused(&world, &syn, &reset(&syn, 0, syn.sequence + 1, RST.with(ACK)));
        assert_eq!(world.memory.counter(Counter::NoBackend), 1);
    }
}

fn a_connection_is_counted_as_open_from_its_syn_to_its_end<A: Net>()
where
    Memory: Family<A>,
{
    let world = World::<A>::remote();
    let passes = |segment: Segment<A>, open: u64| {
        world.ingress(&segment.bytes());
        assert_eq!(world.memory.loads[ID.0 as usize].open(), open, "after {segment:?}");
    };
    let (client, backend) = (|flags| asks::<A>(flags), |flags| answers::<A>(CLIENT_PORT, flags));
    for _ in 0..2 {
        // Sent again, it is the same connection.
        passes(client(SYN), 1);
        passes(client(SYN), 1);
        passes(backend(SYN_ACK), 1);
        passes(client(ACK), 1);
        passes(backend(FIN), 1);
        passes(client(FIN), 0);
        passes(backend(ACK), 0);
        passes(client(RST), 0);
    }
    passes(client(SYN), 1);
    passes(backend(RST), 0);
    passes(client(SYN), 1);
    let other = Segment { ports: [CLIENT_PORT + 1, SERVICE_PORT], ..client(ACK) };
    passes(other.clone(), 2);
    passes(Segment { flags: RST, ..other }, 1);
}
