//! Known connections whose entry is from an earlier generation, or whose last packet is long ago.

use super::{Draft, Family, Stop};
use crate::{
    abi::{Backend, Counter, ServiceKey},
    address::Address,
    conntrack::Phase,
    table::Existing,
};

/// Ends the connection if its backend is down, or its client denied meanwhile. One whose backend was taken out of the configuration goes on.
#[inline(always)]
pub(super) fn check<A, T>(tables: &T, draft: &mut Draft<A>) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    let Draft { arrival, half, asked, .. } = &mut *draft;
    let key = &arrival.segment.key;
    let from_client = half.role.from_client();
    *asked = ServiceKey::new(key.destination.mapped(), key.destination_port);
    if from_client
        && let Some(service) = tables.service(asked)
        && tables.denies(service, &key.source.mapped())
    {
        forget(tables, draft);
        return Err(Stop::drop(Counter::Denied));
    }
    let (address, port) = if from_client {
        (half.new_destination(), half.new_destination_port())
    } else {
        (&key.source, key.source_port)
    };
    match tables.backend(half.backend()) {
        Some(backend) if backend.is(Backend::DOWN) && backend.answers(address, port) => {}
        _ => return Ok(()),
    }
    forget(tables, draft);
    Err(if from_client { Stop::reset(Counter::BackendDown) } else { Stop::drop(Counter::BackendDown) })
}

/// Removes both halves, which counts as the connection's end.
#[inline(always)]
fn forget<A, T>(tables: &T, draft: &Draft<A>)
where
    A: Address,
    T: Family<A>,
{
    draft.half.set_phase(Phase::Closed);
    tables.tell(&draft.arrival.segment.key, &draft.half);
    tables.remove(&draft.arrival.segment.key, draft.arrival.now);
    tables.remove(&draft.half.other, draft.arrival.now);
}

/// Makes the connection's other half again if that has given way to another connection. If there is no room, so be it.
#[inline(always)]
pub(super) fn restore<A, T>(tables: &T, draft: &mut Draft<A>)
where
    A: Address,
    T: Family<A>,
{
    let Draft { arrival, half, other, .. } = draft;
    if half.role.is_direct() {
        return;
    }
    if tables.flow(&half.other).is_none() {
        let (role, phase) = (half.role.opposite(), half.phase());
        other.start(&half.other, &arrival.segment.key, role, half.backend(), phase, arrival.now);
        let _ = tables.insert(&half.other, other, Existing::Kept);
    }
}
