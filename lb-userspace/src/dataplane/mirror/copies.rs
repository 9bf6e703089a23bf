//! What is told of connections, and what becomes of those that another node has told of: the same on the maps and on plain memory.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::BackendId,
    address::Address,
    conntrack::Phase,
    flow::{Flow, Key, Role},
    table::{Existing, Inserted, Set, Sets, advance},
};

use super::{Connection, Taken};
use crate::dataplane::fence;

/// The clock as entries have it, in kernel ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    pub(super) now: u64,
    /// What was told is that old.
    pub(super) idle: u64,
    /// For so long a copy need not be written again.
    pub(super) fresh: u64,
}

/// Tells each connection that is open and carried here; `time` says how long so many ticks are.
pub(super) fn tell<A: Address>(
    sets: &[Set<A>],
    now: u32,
    time: impl Fn(u32) -> Duration,
    mut each: impl FnMut(Connection),
) {
    for (_, slot) in sets.iter().flat_map(Set::entries) {
        let (key, flow) = (slot.key(), slot.flow());
        if flow.role.from_client() && flow.phase() == Phase::Established && !flow.is_copy() {
            let idle = time(flow.idle(now));
            each(connection((key, &flow.other), flow.role, flow.phase(), idle, flow.acknowledged()));
        }
    }
}

/// Takes in what another node has told, for a backend that may be on this host. `known` is what is under its [`client_key`].
pub(super) fn take<A: Address>(
    sets: &impl Sets<A>,
    known: Option<Flow<A>>,
    told: &Connection,
    (backend, is_here): (BackendId, bool),
    ticks: &Ticks,
) -> Taken {
    let Connection { backend: server, seen, is_direct, phase, acknowledged, .. } = told;
    let (key, other) = (client_key(told), key(*server, *seen));
    let Ticks { now, idle, fresh } = *ticks;
    if *is_direct && *phase != Phase::Established && known.as_ref().is_some_and(|flow| flow.role.is_direct()) {
        // What the client sends yet goes there as before; made anew by that, it would count as open.
        let mut leader = Flow::default();
        leader.start(&key, &other, Role::DIRECT, backend, Phase::Closed, now);
        advance(sets, &key, &other, &leader);
        return Taken::Out;
    }
    let seen_here = |flow: &Flow<A>| u64::from(flow.idle(now as u32));
    if known.as_ref().is_some_and(|flow| !flow.is_copy() && seen_here(flow) <= idle) {
        return Taken::Known;
    }
    if *phase != Phase::Established {
        let Some(flow) = known else { return Taken::Known };
        sets.remove_at(&flow.other, now as u32);
        sets.remove_at(&key, now as u32);
        return Taken::Out;
    }
    let is_told_again = |flow: &Flow<A>| {
        flow.is_copy()
            && flow.other == other
            && flow.backend() == backend
            && flow.acknowledged() == *acknowledged
            && seen_here(flow) < fresh
    };
    if known.as_ref().is_some_and(is_told_again) {
        return Taken::Known;
    }
    let half = |key: &Key<A>, other: &Key<A>, role| {
        let mut flow = Flow::default();
        flow.start(key, other, role, backend, *phase, now);
        flow.set_acknowledged(*acknowledged);
        flow
    };
    let insert = |key, flow: &Flow<A>, existing| match Inserted::from_raw(sets.insert_as(key, flow, existing)) {
        Inserted::Exists | Inserted::Full => false,
        Inserted::Free | Inserted::HalfOpen | Inserted::Closing | Inserted::Idle => true,
    };
    if *is_direct {
        // Where it is carried and where it is turned, both tell of it.
        if known.is_some_and(|flow| !flow.is_copy() && flow.role.is_direct() && flow.other == other) {
            return Taken::Known;
        }
        let alone = insert(&key, &half(&key, &other, Role::DIRECT), Existing::Replaced);
        return if alone { Taken::In } else { Taken::Refused };
    }
    let forward = if is_here { Role::INHERITED_FORWARD } else { Role::FORWARD };
    let whole = insert(&other, &half(&other, &key, forward.opposite()), Existing::Kept)
        && insert(&key, &half(&key, &other, forward), Existing::Replaced);
    if whole { Taken::In } else { Taken::Refused }
}

/// Makes the copies of connections to these VIPs this node's own.
pub(super) fn own<A: Address>(sets: &[Set<A>], vips: &BTreeSet<IpAddr>, now: u64) {
    for (_, slot) in sets.iter().flat_map(Set::entries) {
        let (key, flow) = (slot.key(), slot.flow());
        if flow.role.from_client() && flow.is_copy() && vips.contains(&canonical(key.destination)) {
            flow.touch(now, 0, flow.acknowledged());
        }
    }
}

/// A connection in nobody's numbering, by the keys of its two directions.
pub(in crate::dataplane) fn connection<A: Address>(
    (key, other): (&Key<A>, &Key<A>),
    role: Role,
    phase: Phase,
    idle: Duration,
    acknowledged: [u8; 4],
) -> Connection {
    let socket = |address: A, port| SocketAddr::new(canonical(address), u16::from_be_bytes(port));
    // Under which port a backend's node shows it the client is that node's own affair.
    let is_direct = role.is_direct() || role.is_turned();
    let seen =
        if is_direct { *key } else { Key { source: other.destination, source_port: other.destination_port, ..*key } };
    Connection {
        client: socket(key.source, key.source_port),
        vip: socket(key.destination, key.destination_port),
        backend: socket(other.source, other.source_port),
        seen: socket(seen.source, seen.source_port),
        is_direct,
        phase,
        idle,
        acknowledged,
    }
}

/// The key by which the client's packets arrive.
pub(super) fn client_key<A: Address>(told: &Connection) -> Key<A> {
    key(told.client, told.vip)
}

fn canonical<A: Address>(address: A) -> IpAddr {
    Ipv6Addr::from(address.mapped()).to_canonical()
}

fn key<A: Address>(source: SocketAddr, destination: SocketAddr) -> Key<A> {
    let address = |ip| A::from_mapped(&fence::mapped(ip));
    Key {
        source: address(source.ip()),
        destination: address(destination.ip()),
        source_port: source.port().to_be_bytes(),
        destination_port: destination.port().to_be_bytes(),
    }
}

#[cfg(test)]
mod tests;
