//! New connections beyond a virtual server's rate: told from a flood of SYNs with invented sources, which never come again.
//!
//! ```text
//!   SYN of a new connection: within the rate -----------------------> admitted
//!                            beyond it, has come a moment ago ------> admitted, if repeated ones are
//!                                       comes for the first time ---> noted; dropped or refused
//! ```
//! A client repeats its SYN after a second, and then after two and four (RFC 6298 §2), so beyond the rate it is a second late, or more if its SYNs are lost on the
//! way. What has come is noted in a sieve of fixed size: nothing that a flood sends can push a client's note out, it can only let some of the flood through.

use super::{Stop, Tables};
use crate::{
    abi::{Counter, Excess, ServiceId},
    flow::mix,
};

/// Whether the SYN of a new connection may go on. `seed` is what tells it apart from others of the virtual server; `now` is in ticks.
#[inline(always)]
pub(super) fn admit<T: Tables + ?Sized>(tables: &T, service: ServiceId, seed: u32, now: u64) -> Result<(), Stop> {
    let policy = tables.policy(service).unwrap_or_default();
    let (Some(rate), Some(inflow)) = (policy.rate(), tables.inflow(service)) else {
        return Ok(());
    };
    let second = tables.ticks_per_second();
    if inflow.admits(rate, second, now as u32) {
        return Ok(());
    }
    if policy.excess() == Excess::Challenge && has_come(tables, service, seed, second, now) {
        tables.count(Counter::OverRateRepeated);
        return Ok(());
    }
    Err(match policy.excess() {
        Excess::Reset => Stop::reset(Counter::OverRateRefused),
        Excess::Challenge | Excess::Drop => Stop::drop(Counter::OverRate),
    })
}

/// Whether that SYN has come a moment ago; from now on it has.
#[inline(always)]
fn has_come<T: Tables + ?Sized>(tables: &T, service: ServiceId, seed: u32, second: u32, now: u64) -> bool {
    let place = mix(seed ^ mix(service.0));
    let Some(sieve) = tables.sieve(place) else {
        return false;
    };
    sieve.notes(mix(place ^ seed), now, second)
}

#[cfg(test)]
mod tests;
