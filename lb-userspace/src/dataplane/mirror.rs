//! The tables of connections as other nodes see them: what is carried here is told, what is carried there is taken in.
//!
//! What was taken in is a *copy* until a packet of it passes here: it has counted none. Copies are not told on.

mod copies;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    ptr,
    sync::Arc,
    time::Duration,
};

use aya::maps::{MapData, MapError, RingBuf};
use lb_common::{
    abi::{BackendId, names},
    address::{Address, V4, V6},
    conntrack::Phase,
    flow::News,
    table::Set,
};

pub(super) use self::copies::connection;
use self::copies::{Ticks, client_key};
use super::{Dataplane, LoadError, flows::Flows, run::Ticker};

/// A copy that is told again sooner after it was written is not written again. It is told about every 70 s, and written before it counts as
/// quiet, see `lb_common::table`.
const FRESH: Duration = Duration::from_secs(100);

/// A connection that a node carries, in nobody's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub backend: SocketAddr,
    /// Where the backend sees the client: at the VIP, or at the client's own address if the backend is on the node that carries it.
    pub seen: SocketAddr,
    /// Its packets are sent on as they are, to the backend's own node, which turns them.
    pub is_direct: bool,
    /// [`Phase::Established`] or later.
    pub phase: Phase,
    /// Since its last packet.
    pub idle: Duration,
    /// The last number that the client acknowledged, as on the wire; 0 if none is known.
    pub acknowledged: [u8; 4],
}

impl Connection {
    /// Whether its backend knows the client by the VIP.
    pub fn is_seen_by_vip(&self) -> bool {
        !self.is_direct && self.seen.ip() == self.vip.ip()
    }
}

/// What became of a connection that another node told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is a copy here now.
    In,
    /// It was a copy here, and is over.
    Out,
    /// Nothing: its last packet passed here, or there was nothing to end.
    Known,
    /// There is no room for it, or another connection has its place.
    Refused,
}

/// A hand on the tables for whoever tells other nodes.
pub struct Mirror {
    news: RingBuf<MapData>,
    flows4: Arc<Flows<V4>>,
    flows6: Arc<Flows<V6>>,
    ticker: Ticker,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Takes the mirror; there is one.
    pub fn mirror(&mut self) -> Result<Mirror, LoadError> {
        let (flows4, flows6) = self.flows()?;
        let failed = |source| LoadError::Map { name: names::NEWS, source };
        let news = self.ebpf.take_map(names::NEWS).ok_or_else(|| failed(MapError::KeyNotFound))?;
        Ok(Mirror { news: news.try_into().map_err(failed)?, flows4, flows6, ticker: self.ticker()? })
    }
}

impl Mirror {
    /// The next connection that has been established here or has ended.
    pub fn news(&mut self) -> Option<Connection> {
        loop {
            let item = self.news.next()?;
            let told = decoded::<V4>(&item).or_else(|| decoded::<V6>(&item));
            if told.is_some() {
                return told;
            }
        }
    }

    /// Goes through `sets` sets of the tables from the one numbered `from` on, and tells each connection that is open and carried here. Where
    /// to go on; `None` at the end.
    pub fn walk(&self, from: usize, sets: usize, mut each: impl FnMut(Connection)) -> Option<usize> {
        let to = from + sets;
        let (first, second) = (self.flows4.len(), self.flows6.len());
        self.flows4.walk(from..to, |sets| self.tell(sets, &mut each));
        self.flows6.walk(from.saturating_sub(first)..to.saturating_sub(first), |sets| self.tell(sets, &mut each));
        (to < first + second).then_some(to)
    }

    /// Takes in what another node has told, for the backend with that number; `is_here` says whether that is on this host.
    pub fn take(&self, connection: &Connection, backend: BackendId, is_here: bool) -> Taken {
        match connection.client {
            SocketAddr::V4(_) => self.take_as(&self.flows4, connection, backend, is_here),
            SocketAddr::V6(_) => self.take_as(&self.flows6, connection, backend, is_here),
        }
    }

    /// Makes the copies of connections to these VIPs this node's own, as if their last packet had just passed.
    pub fn own(&self, vips: &BTreeSet<IpAddr>) {
        self.own_as(&self.flows4, vips);
        self.own_as(&self.flows6, vips);
    }

    fn tell<A: Address>(&self, sets: &[Set<A>], each: &mut impl FnMut(Connection)) {
        copies::tell(sets, self.ticker.now() as u32, |ticks| self.ticker.time(ticks), each);
    }

    fn take_as<A: Address>(&self, flows: &Flows<A>, told: &Connection, backend: BackendId, is_here: bool) -> Taken {
        let Self { ticker, .. } = self;
        let ticks = Ticks { now: ticker.now(), idle: ticker.count(told.idle), fresh: ticker.count(FRESH) };
        copies::take(&flows.near(), flows.peek(&client_key(told)), told, (backend, is_here), &ticks)
    }

    fn own_as<A: Address>(&self, flows: &Flows<A>, vips: &BTreeSet<IpAddr>) {
        let now = self.ticker.now();
        flows.walk(0..flows.len(), |sets| copies::own(sets, vips, now));
    }
}

/// What an item of the ring says, if it is of that family.
fn decoded<A: Address>(item: &[u8]) -> Option<Connection> {
    // The ring gives eight bytes at a time.
    if item.len() != size_of::<News<A>>() {
        return None;
    }
    // SAFETY: as long as the value, whose every bit pattern is valid.
    let news = unsafe { ptr::read_unaligned(item.as_ptr().cast::<News<A>>()) };
    Some(connection((&news.key, &news.other), news.role, news.phase(), Duration::ZERO, news.acknowledged))
}
