//! Clients that may not use a virtual server.

use super::*;
use crate::abi::{Access, Range};

both!(the_most_specific_range_counts, a_denied_client_loses_its_connection, a_denied_client_is_told_nothing);

fn rule<A: Net>(world: &mut World<A>, range: Range, access: Access) {
    world.memory.ranges.insert(range, access);
}

fn around<A: Net>(client: u8, free: u32) -> Range {
    let length = 8 * size_of::<A>() as u32 - free;
    let first = u32::from(client) >> free << free;
    Range::new(ServiceId(3), A::host(first as u8), length)
}

fn the_most_specific_range_counts<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    let others = Segment { source: A::host(OTHER_CLIENT), ports: [CLIENT_PORT + 1, SERVICE_PORT], ..asks(SYN) };
    rule(&mut world, Range::everybody(ServiceId(3)), Access::DENIED);
    world.dropped(&asks(SYN), Counter::Denied);
    rule(&mut world, around::<A>(CLIENT, 4), Access::ALLOWED);
    rule(&mut world, around::<A>(CLIENT, 0), Access::DENIED);
    world.dropped(&asks(SYN), Counter::Denied);
    world.expect(&others, Verdict::Redirect(OUTER), &sent_on(&others));
    // Another virtual server's lists are its own.
    world.memory.ranges.clear();
    rule(&mut world, Range::everybody(ServiceId(4)), Access::DENIED);
    world.expect(&asks(SYN), Verdict::Redirect(OUTER), &sent_on(&asks(SYN)));
}

fn a_denied_client_loses_its_connection<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.ingress(&asks::<A>(SYN).bytes());
    world.ingress(&answers::<A>(CLIENT_PORT, SYN_ACK).bytes());
    world.ingress(&asks::<A>(ACK).bytes());
    rule(&mut world, around::<A>(CLIENT, 0), Access::DENIED);
    // Asked when the way is looked up, and not for every packet.
    world.expect(&asks(ACK), Verdict::Redirect(OUTER), &sent_on(&asks(ACK)));
    world.generation(2);
    let reply = answers(CLIENT_PORT, ACK);
    world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
    world.dropped(&asks(ACK), Counter::Denied);
    assert!(!world.knows(&asks(ACK)) && !world.knows(&reply));
    world.dropped(&asks(ACK), Counter::Denied);
    world.memory.ranges.clear();
    world.expect(&asks(ACK), Verdict::Redirect(OUTER), &sent_on(&asks(ACK)));
}

fn a_denied_client_is_told_nothing<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::remote();
    world.replace(Backend::absent());
    rule(&mut world, around::<A>(CLIENT, 7), Access::DENIED);
    for flags in [SYN, ACK, FIN, RST] {
        world.dropped(&asks(flags), Counter::Denied);
    }
    assert_eq!(world.memory.counters(), [(Counter::Denied, 4)].into());
}
