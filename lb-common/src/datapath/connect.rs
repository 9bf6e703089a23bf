//! Connections that are not known yet.

use core::hint::black_box;

use super::{
    Draft, Family, Refused, Stop, passive,
    selection::{self, Asker, Kind},
};
use crate::{
    abi::{Backend, BackendId, Counter, ServiceKey, source_hash},
    address::Address,
    conntrack::Phase,
    flow::{Flow, Key, Ports, Role},
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
    let Draft { arrival, half: forward, other: reply, arrives, .. } = draft;
    let key = &arrival.segment.key;
    let Some(service) = tables.service(&ServiceKey::new(key.destination.mapped(), key.destination_port)) else {
        // Up the stack, the reply to a connection whose entry was lost would be answered with a reset, and the connection with it.
        let reply = tables.service(&ServiceKey::new(key.source.mapped(), key.source_port));
        return Err(if reply.is_some() { Stop::drop(Counter::Orphan) } else { Stop::pass(Counter::NoService) });
    };
    if tables.denies(service, &key.source.mapped()) {
        return Err(Stop::drop(Counter::Denied));
    }
    if arrival.segment.flags.any(Flags::RST) {
        return Err(Stop::drop(Counter::Stray));
    }
    // A handshake that goes on takes no turn: it has had one.
    let former = if forward.is_half_open() { forward.backend() } else { BackendId::NONE };
    let is_new = arrival.segment.flags.opens() && former == BackendId::NONE;
    let kind = if is_new { Kind::New } else { Kind::Lost };
    let (source, port) = (source_hash(&key.source), u16::from_be_bytes(key.source_port).into());
    let wanted = tables.select(service, &Asker { source, port, kind, former });
    let chosen = passive::choose(tables, service, arrival, forward, wanted);
    let backend =
        tables.backend(chosen).filter(|backend| backend.is(Backend::PRESENT)).ok_or(Stop::reset(Counter::NoBackend))?;

    let opens = arrival.segment.flags.opens();
    let phase = if opens { Phase::SynSent } else { Phase::Established };
    let local = backend.is(Backend::LOCAL);

    // How the backend will see the connection, turned round: that is how its replies arrive.
    arrives.source = backend.address();
    arrives.source_port = backend.port();
    arrives.destination = if local { key.source.copied() } else { key.destination.copied() };
    arrives.destination_port = [0; 2];
    let role = if local { Role::LOCAL_REPLY } else { Role::REPLY };
    reply.start(arrives, key, role, chosen, phase, arrival.now);
    reserve(tables, key, arrives, reply).map_err(Stop::drop)?;

    // Read back rather than remembered: the verifier followed the search above for each case, and forgets them here.
    let sent = if forward.is_unanswered() { forward.packets() } else { 0 };
    forward.start(key, arrives, reply.role.opposite(), reply.backend(), reply.phase(), arrival.now);
    forward.count_from(sent);
    tables.count(if reply.phase() == Phase::SynSent { Counter::Connected } else { Counter::Rebuilt });
    tables.connected(reply.backend());
    selection::began(tables, reply.backend());
    Ok(())
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
