//! Connections that are not known yet.

use super::{Arrival, Family, Refused, Stop};
use crate::{
    abi::{Backend, BackendId, Counter, ServiceKey, source_hash},
    address::Address,
    conntrack::Phase,
    flow::{Draft, Ports, Role},
    maglev,
    wire::Flags,
};

/// Gives the connection a backend: makes both halves, inserts the one for replies and leaves the other in the draft. Neither has
/// a way yet: the first packet of each looks it up.
///
/// A segment that is no SYN belongs to a connection whose entry was lost, or that another node carried before: the choice
/// depends on the client's address only, and the first port tried is the client's own, so the entry comes out as it was. If
/// it was another connection after all, its backend answers with a reset.
#[inline(always)]
pub(super) fn open<A, T>(tables: &T, arrival: &Arrival<A>, draft: &mut Draft<A>) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    let key = &arrival.segment.key;
    let Some(service) = tables.service(&ServiceKey::new(key.destination.mapped(), key.destination_port)) else {
        // Up the stack, the reply to a connection whose entry was lost would be answered with a reset, and the connection with it.
        let reply = tables.service(&ServiceKey::new(key.source.mapped(), key.source_port));
        return Err(if reply.is_some() { Stop::drop(Counter::Orphan) } else { Stop::pass(Counter::NoService) });
    };
    if arrival.segment.flags.any(Flags::RST) {
        return Err(Stop::drop(Counter::Stray));
    }
    let chosen = tables.slot(service, maglev::slot(source_hash(&key.source))).unwrap_or(BackendId::NONE);
    let backend =
        tables.backend(chosen).filter(|backend| backend.is(Backend::PRESENT)).ok_or(Stop::reset(Counter::NoBackend))?;

    let opens = arrival.segment.flags.opens();
    let phase = if opens { Phase::SynSent } else { Phase::Established };
    let local = backend.is(Backend::LOCAL);

    // How the backend will see the connection, turned round: that is how its replies arrive.
    draft.arrives.source = backend.address();
    draft.arrives.source_port = backend.port();
    draft.arrives.destination = if local { key.source } else { key.destination };
    draft.arrives.destination_port = [0; 2];
    let role = if local { Role::LOCAL_REPLY } else { Role::REPLY };
    draft.reply.start(&draft.arrives, key, role, chosen, phase, arrival.now);
    reserve(tables, arrival, draft).map_err(Stop::drop)?;

    // Read back rather than remembered: the verifier followed the search above for each case, and forgets them here.
    let Draft { forward, reply, arrives, .. } = draft;
    forward.start(key, arrives, reply.role.opposite(), reply.backend, reply.phase(), arrival.now);
    tables.count(if reply.phase() == Phase::SynSent { Counter::Connected } else { Counter::Rebuilt });
    tables.connected(reply.backend);
    Ok(())
}

/// Finds a source port under which the backend's replies can be told from all others', by inserting their half.
#[inline(always)]
fn reserve<A, T>(tables: &T, arrival: &Arrival<A>, draft: &mut Draft<A>) -> Result<(), Counter>
where
    A: Address,
    T: Family<A>,
{
    let key = &arrival.segment.key;
    let ports = Ports::new(key.source_port, key.source.digest(), draft.reply.role.is_local());
    let unported = draft.reply.segment_delta;
    for attempt in 0..Ports::TRIES {
        draft.arrives.destination_port = ports.candidate(attempt);
        // An idle connection's port is not taken here: the daemon removes what is idle.
        let replace = match tables.flow(&draft.arrives) {
            Some(taken) if taken.other.same(&draft.reply.other) => true,
            Some(_) => continue,
            None => false,
        };
        draft.reply.set_arrival_port(unported, draft.arrives.destination_port);
        match tables.insert(&draft.arrives, &draft.reply, replace) {
            Ok(()) => return Ok(()),
            Err(Refused::Full) => return Err(Counter::TableFull),
            // Another CPU took it in between.
            Err(Refused::Exists) => {}
        }
    }
    Err(Counter::NoPort)
}
