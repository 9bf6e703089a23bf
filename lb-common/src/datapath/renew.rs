//! Known connections whose entry is from an earlier generation.

use super::{Arrival, Family, Stop};
use crate::{
    abi::{Backend, Counter},
    address::Address,
    flow::Flow,
};

/// Ends the connection if its backend is down. One whose backend was taken out of the configuration goes on.
#[inline(always)]
pub(super) fn check<A, T>(tables: &T, arrival: &Arrival<A>, flow: &Flow<A>) -> Result<(), Stop>
where
    A: Address,
    T: Family<A>,
{
    let key = &arrival.segment.key;
    let from_client = flow.role.from_client();
    let (address, port) = if from_client {
        (flow.new_destination(), flow.new_destination_port())
    } else {
        (&key.source, key.source_port)
    };
    match tables.backend(flow.backend) {
        Some(backend) if backend.is(Backend::DOWN) && backend.answers(address, port) => {}
        _ => return Ok(()),
    }
    tables.remove(key);
    tables.remove(&flow.other);
    Err(if from_client { Stop::reset(Counter::BackendDown) } else { Stop::drop(Counter::BackendDown) })
}
