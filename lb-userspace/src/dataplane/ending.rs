//! Connections whose backend is down: ended in the table, with the reset that each client believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, hint,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use aya::maps::{HashMap, MapData};
use lb_common::{
    abi::{Backend, BackendId, Lease, names},
    address::{Address, V4, V6},
    conntrack::Phase,
    flow::{Flow, Key},
    table::{Set, Slot, advance},
};

use super::{
    Dataplane, LoadError, fence,
    flows::Flows,
    mirror::{Connection, connection},
    run::Ticker,
};
use crate::host::Reset;

/// How often a set is tried again that somebody writes, who is done after some hundred instructions.
const TRIES: u32 = 10_000;

/// A connection that was ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub backend: BackendId,
    /// What tells the client.
    pub reset: Reset,
    /// What tells other nodes.
    pub connection: Connection,
}

/// Ends connections in the tables. On its own, as the sweeper is.
pub struct Ender {
    flows4: Arc<Flows<V4>>,
    flows6: Arc<Flows<V6>>,
    leases: HashMap<MapData, [u8; 16], Lease>,
    ticker: Ticker,
}

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ender").finish_non_exhaustive()
    }
}

impl Dataplane {
    /// A hand on the tables that ends connections.
    pub fn ender(&mut self) -> Result<Ender, LoadError> {
        let (flows4, flows6) = self.flows()?;
        Ok(Ender { flows4, flows6, leases: self.another(names::LEASES)?, ticker: self.ticker()? })
    }
}

impl Ender {
    /// Ends the connections of clients to these backends. They stay in the table as closed for a while: what
    /// a client sends nevertheless is answered by the data path, and its next SYN from the same port finds another backend.
    ///
    /// A handshake that is not complete is left alone, since the client's next SYN goes elsewhere. So is a connection of which no number
    /// is known, until its next packet, and every one through an address that is not of `local` or that this node has no right to speak for at this moment:
    /// another node may carry it.
    pub fn end(&self, down: &BTreeMap<BackendId, Backend>, local: &BTreeSet<IpAddr>) -> Vec<Ended> {
        let vips = local.iter().filter(|vip| self.may_claim(**vip)).map(|vip| fence::mapped(*vip)).collect();
        let lost = Lost { down, vips };
        let mut ended = Vec::new();
        let has = |v4: bool| down.values().any(|backend| ip(backend.mapped()).is_ipv4() == v4);
        if has(true) {
            self.walk(&self.flows4, &lost, &mut ended);
        }
        if has(false) {
            self.walk(&self.flows6, &lost, &mut ended);
        }
        ended
    }

    /// Whether the lease of a VIP, if it has one, lets this node speak for it.
    pub fn may_claim(&self, vip: IpAddr) -> bool {
        self.leases.get(&fence::mapped(vip), 0).map_or(true, |lease| lease.claimed_until() > fence::now())
    }

    fn walk<A: Address>(&self, flows: &Flows<A>, lost: &Lost<'_>, ended: &mut Vec<Ended>) {
        flows.walk(0..flows.len(), |sets| {
            for set in sets {
                for (way, slot) in set.entries().filter(|(_, slot)| lost.includes(slot)) {
                    if let Some((key, flow)) = self.close(set, way, slot, lost) {
                        advance(&flows.near(), &flow.other, &key, &flow);
                        let idle = self.ticker.time(flow.idle(self.ticker.now() as u32));
                        let keys = (&key, &flow.other);
                        ended.push(Ended {
                            backend: flow.backend(),
                            reset: reset(&key, &flow),
                            connection: connection(keys, flow.role, flow.phase(), idle, flow.acknowledged()),
                        });
                    }
                }
            }
        });
    }

    /// Marks an entry as closed if it is lost still, with nobody writing beside it. What it was.
    fn close<A: Address>(&self, set: &Set<A>, way: u32, slot: &Slot<A>, lost: &Lost<'_>) -> Option<(Key<A>, Flow<A>)> {
        for _ in 0..TRIES {
            let closed = set.hold(way, self.ticker.now() as u32, |slot| {
                lost.includes(slot).then(|| {
                    slot.flow().set_phase(Phase::Closed);
                    (*slot.key(), slot.flow().clone())
                })
            });
            match closed {
                Some(closed) => return closed,
                None if lost.includes(slot) => hint::spin_loop(),
                None => return None,
            }
        }
        None
    }
}

/// Which connections end.
struct Lost<'a> {
    down: &'a BTreeMap<BackendId, Backend>,
    vips: BTreeSet<[u8; 16]>,
}

impl Lost<'_> {
    fn includes<A: Address>(&self, slot: &Slot<A>) -> bool {
        let (key, flow) = (slot.key(), slot.flow());
        flow.role.from_client()
            && matches!(flow.phase(), Phase::Established | Phase::ClientClosing | Phase::BackendClosing)
            && flow.acknowledged() != [0; 4]
            && (self.down.get(&flow.backend()))
                .is_some_and(|backend| backend.answers(flow.new_destination(), flow.new_destination_port()))
            && self.vips.contains(&key.destination.mapped())
    }
}

/// What ends a connection for the client: it starts where the client waits for the next byte, so it is believed at once (RFC 5961 §3.2).
fn reset<A: Address>(key: &Key<A>, flow: &Flow<A>) -> Reset {
    let socket = |address: A, port| SocketAddr::new(ip(address.mapped()), u16::from_be_bytes(port));
    Reset {
        from: socket(key.destination, key.destination_port),
        to: socket(key.source, key.source_port),
        sequence: flow.acknowledged(),
    }
}

fn ip(mapped: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(mapped).to_canonical()
}
