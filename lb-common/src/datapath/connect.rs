//! Connections that are not known yet.

use core::hint::black_box;

use super::{
    Arrival, Draft, Family, Refused, Stop, admission, fence, passive,
    selection::{self, Asker, Kind},
};
use crate::{
    abi::{Backend, BackendId, Counter, ServiceKey, flow_hash, source_hash},
    address::Address,
    conntrack::Phase,
    flow::{Flow, Key, Ports, Role},
    shared::is_zero,
    table::Existing,
    wire::Flags,
};

/// Gives the connection a backend: makes both halves, inserts the one for replies and leaves the other in the draft. Neither has
/// a way yet: the first packet of each looks it up.
///
/// A segment that is no SYN belongs to a connection whose entry was lost, or that another node carried before: unless backends take turns, the
/// choice depends on the client's address and port only, and the first port tried is the client's own, so the entry comes out as it was. If
/// it was another connection after all, its backend answers with a reset.
#[inline(always)]
pub(super) fn open<A, T>(tables: &T, draft: &mut Draft<A>) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    choose(tables, draft)?;
    // From here on what was chosen is read from the draft: the verifier would follow the rest for each way that led here.
    let Draft { arrival, half: forward, other: reply, arrives, chosen, kept, .. } = black_box(draft);
    let key = &arrival.segment.key;
    // What passes here of a direct connection is the client's only.
    let begun = if kept.is_direct() { Phase::SynReceived } else { Phase::SynSent };
    let phase = if arrival.segment.flags.opens() { begun } else { Phase::Established };
    if kept.is_direct() {
        arrives.destination = key.source.copied();
        arrives.destination_port = key.source_port;
        forward.start(key, arrives, *kept, *chosen, phase, arrival.now);
    } else {
        arrives.destination = if kept.is_local() { key.source.copied() } else { key.destination.copied() };
        arrives.destination_port = [0; 2];
        reply.start(arrives, key, kept.opposite(), *chosen, phase, arrival.now);
        reserve(tables, key, arrives, reply).map_err(Stop::drop)?;
        // Read back rather than remembered: the verifier followed the search above for each case, and forgets them here.
        let sent = if forward.is_unanswered() { forward.packets() } else { 0 };
        forward.start(key, arrives, reply.role.opposite(), reply.backend(), reply.phase(), arrival.now);
        forward.count_from(sent);
    }
    tables.count(if forward.is_half_open() { Counter::Connected } else { Counter::Rebuilt });
    tables.connected(forward.backend());
    selection::began(tables, forward.backend());
    Ok(())
}

/// Leaves in the draft which backend it is, the role of the client's half, and from where the backend's replies arrive.
#[inline(always)]
fn choose<A, T>(tables: &T, draft: &mut Draft<A>) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    let Draft { arrival, half, arrives, sender, asked, chosen, kept, .. } = draft;
    let key = &arrival.segment.key;
    *asked = ServiceKey::new(key.destination.mapped(), key.destination_port);
    let Some(service) = tables.service(asked) else {
        return Err(stranger(tables, arrival, asked));
    };
    *chosen = tables.turned(key, *sender);
    let turns = 1 - is_zero(u64::from(chosen.0 ^ BackendId::NONE.0));
    if turns == 0 {
        fence::carries(tables, arrival)?;
    }
    if tables.denies(service, &key.source.mapped()) {
        return Err(Stop::drop(Counter::Denied));
    }
    if turns == 0 {
        // A handshake that goes on takes no turn: it has had one.
        let former = if half.is_half_open() { half.backend() } else { BackendId::NONE };
        let is_new = arrival.segment.flags.opens() && former == BackendId::NONE;
        let kind = if is_new { Kind::New } else { Kind::Lost };
        let (source, port) = (source_hash(&key.source), u16::from_be_bytes(key.source_port).into());
        if is_new {
            admission::admit(tables, service, flow_hash(source, port), arrival.now)?;
        }
        let wanted = tables.select(service, &Asker { source, port, kind, former });
        *chosen = passive::choose(tables, service, arrival, half, wanted);
    }
    let resets = arrival.segment.flags.any(Flags::RST);
    let none = if resets { Stop::drop(Counter::Stray) } else { Stop::reset(Counter::NoBackend) };
    let backend = tables.backend(*chosen).filter(|backend| backend.is(Backend::PRESENT)).ok_or(none)?;
    // How the backend will see the connection, turned round: that is how its replies arrive.
    arrives.source = backend.address();
    arrives.source_port = backend.port();
    let direct = turns | backend.has(Backend::DIRECT);
    if turns & backend.has(Backend::DOWN) != 0 {
        return Err(Stop::reset(Counter::BackendDown));
    }
    // Without an entry nobody here knows whether there is such a connection. The backend's own node does.
    if resets && direct == 0 {
        return Err(Stop::drop(Counter::Stray));
    }
    // A backend's node does not take packets from its own address that come by the link.
    let itself = is_zero(arrives.source.difference(&key.source).into());
    *kept = Role::forward(backend.has(Backend::LOCAL), direct, itself);
    Ok(())
}

/// What becomes of a segment that no virtual server asks for. There is room for what is looked up.
#[inline(always)]
pub(super) fn stranger<A, T>(tables: &T, arrival: &Arrival<A>, asked: &mut ServiceKey) -> Stop
where
    A: Address,
    T: Family<A>,
{
    if let Err(stop) = fence::carries(tables, arrival) {
        return stop;
    }
    // Up the stack, the reply to a connection whose entry was lost would be answered with a reset, and the connection with it. But what a backend
    // says to this host itself is the host's, also where the filter cannot tell its address from a VIP.
    let key = &arrival.segment.key;
    *asked = ServiceKey::new(key.source.mapped(), key.source_port);
    if tables.service(asked).is_none() {
        return Stop::pass(Counter::NoService);
    }
    *asked = ServiceKey::vip(key.destination.mapped());
    if tables.service(asked).is_some() { Stop::drop(Counter::Orphan) } else { Stop::pass(Counter::NoService) }
}

/// Finds a source port under which the backend's replies can be told from all others', and inserts their half.
#[inline(always)]
fn reserve<A, T>(tables: &T, key: &Key<A>, arrives: &mut Key<A>, reply: &mut Flow<A>) -> Result<(), Counter>
where
    A: Address,
    T: Family<A>,
{
    let ports = Ports::new(key.source_port, key.source.digest(), reply.role.is_local());
    let mut found = false;
    // The key is read again for each: kept on the stack, it would be too much for that.
    for attempt in 0..Ports::TRIES {
        arrives.destination_port = ports.candidate(attempt);
        found = match tables.flow(arrives) {
            // An idle connection's port is not taken here: the daemon removes what is idle. Before a client is turned away, a
            // handshake that goes on is: in a flood of SYNs, hardly one of those is anything else.
            Some(taken) => {
                taken.other.same(black_box(&reply.other)) || (attempt + 1 == Ports::TRIES && taken.is_half_open())
            }
            None => true,
        };
        if found {
            break;
        }
    }
    if !found {
        return Err(Counter::NoPort);
    }
    reply.set_arrival_port(reply.segment_delta, arrives.destination_port);
    match tables.insert(arrives, reply, Existing::Kept) {
        Ok(()) => Ok(()),
        Err(Refused::Full) => Err(Counter::TableFull),
        // Another CPU took it in between.
        Err(Refused::Exists) => Err(Counter::NoPort),
    }
}
