//! The thread that speaks with the peers: one UDP socket, a tick every 20 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_common::abi::BackendId;
use socket2::SockRef;
use thiserror::Error;

use super::{
    datagram::{self, Key, Session},
    peer::{Peer, Refused},
    record,
};
use crate::{
    dataplane::{Connection, Mirror, Taken},
    reconcile::Turned,
};

/// News is told this often.
const TICK: Duration = Duration::from_millis(20);
/// Sets of the tables that are gone through in a tick: 16 slots each.
const SETS: usize = 2048;
/// Sets that are gone through at once. They hold 512 connections at the most.
const STRIDE: usize = 64;
/// Connections that are told in a tick beside the news, and as many as a stride has: 100,000 a second, 3 MB/s of IPv4.
const MOST: usize = 2000;
/// From the end of one way through the tables to the start of the next, unless a peer asks.
const REST: Duration = Duration::from_secs(60);
/// Room in the socket for what peers send while this thread sleeps.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Where and with whom to speak.
#[derive(Clone, Debug)]
pub struct Options {
    /// Not unspecified: peers know this node by it.
    pub listen: SocketAddr,
    pub peers: Vec<SocketAddr>,
    pub key: Key,
}

/// What the thread needs to know of this node; it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// By virtual server and address.
    pub known: BTreeMap<(SocketAddr, SocketAddr), Known>,
    /// VIPs that this node holds.
    pub held: BTreeSet<IpAddr>,
    /// What it turns for nodes that send packets on as they are.
    pub turns: BTreeSet<Turned>,
}

/// A backend whose connections can go on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub id: BackendId,
    /// Whether it is on this host. Then those go on that it knows by the VIP: of the others it knows already, or they pass the holder by.
    pub is_here: bool,
}

/// What the thread could not start with.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(
        "binding {address}/udp: {source}. `listen` of [sync] is an address of this node and a port that nothing else uses."
    )]
    Bind { address: SocketAddr, source: io::Error },
    #[error("reading /dev/urandom: {0}")]
    Session(io::Error),
    #[error("starting a thread: {0}")]
    Thread(io::Error),
}

/// Counts since the start, and who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub peers: Vec<PeerView>,
    /// What the peers turn that are there.
    pub turned: BTreeSet<Turned>,
    /// Connections taken in from peers.
    pub taken: u64,
    /// Copies that ended with their connection.
    pub ended: u64,
    /// Connections not taken in: there was no room, or another one in their place.
    pub refused: u64,
    /// Connections not taken in because no backend here is theirs.
    pub foreign: u64,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    pub address: SocketAddr,
    pub is_connected: bool,
    /// Since it was heard last; `None` if it never was.
    pub silent: Option<Duration>,
    /// Connections told, each time counted, and heard.
    pub told: u64,
    pub heard: u64,
    /// Datagrams that were not heard.
    pub refused: u64,
    /// Why the last of them was not.
    pub reason: Option<Refused>,
}

/// The running thread, which ends with this.
#[derive(Debug)]
pub struct Sync {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    backends: Mutex<Arc<Backends>>,
    view: Mutex<View>,
}

impl Sync {
    /// Binds the socket and starts. `over` are connections that have ended by no packet of theirs.
    pub fn start(options: Options, mirror: Mirror, over: Receiver<Connection>) -> Result<Self, StartError> {
        let failed = |source| StartError::Bind { address: options.listen, source };
        let socket = UdpSocket::bind(options.listen).map_err(failed)?;
        // Beyond what the system allows by itself, if this process may; a smaller one only loses more.
        let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
        let session = session().map_err(StartError::Session)?;
        let now = Instant::now();
        let here = options.listen.ip();
        let peer = |address: &SocketAddr| Conversation {
            peer: Peer::new(options.key.clone(), here, address.ip(), session, now),
            view: PeerView {
                address: *address,
                is_connected: false,
                silent: None,
                told: 0,
                heard: 0,
                refused: 0,
                reason: None,
            },
        };
        let shared = Arc::new(Shared::default());
        let speaker = Speaker {
            socket,
            mirror,
            over,
            peers: options.peers.iter().map(peer).collect(),
            shared: Arc::clone(&shared),
            view: View::default(),
            backends: Arc::default(),
            walk: Walk::Resting { until: now + REST },
            again: false,
        };
        let thread = thread::Builder::new().name("xvip-sync".to_owned()).spawn(move || speaker.run());
        Ok(Self { shared, thread: Some(thread.map_err(StartError::Thread)?) })
    }

    /// From now on these are this node's backends and VIPs.
    pub fn follow(&self, backends: Backends) {
        *lock(&self.shared.backends) = Arc::new(backends);
    }

    /// How things stood at most a tick ago.
    pub fn view(&self) -> View {
        lock(&self.shared.view).clone()
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to give back, and what it panicked about was printed.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Speaker {
    socket: UdpSocket,
    mirror: Mirror,
    over: Receiver<Connection>,
    peers: Vec<Conversation>,
    shared: Arc<Shared>,
    view: View,
    backends: Arc<Backends>,
    walk: Walk,
    /// A peer has asked for all connections since this way through the tables began.
    again: bool,
}

struct Conversation {
    peer: Peer,
    view: PeerView,
}

/// The way through the tables.
#[derive(Clone, Copy, Debug)]
enum Walk {
    Resting { until: Instant },
    At(usize),
}

impl Speaker {
    fn run(mut self) {
        let mut next = Instant::now();
        let mut bytes = [0; datagram::LONGEST + 1];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= next {
                self.tick(now);
                next = now + TICK;
            }
            // Zero would mean for ever.
            let patience = next.saturating_duration_since(now).max(Duration::from_micros(100));
            let received =
                self.socket.set_read_timeout(Some(patience)).and_then(|()| self.socket.recv_from(&mut bytes));
            if let Ok((length, from)) = received {
                self.hear(Instant::now(), from, &bytes[..length]);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.look(now);
        let mut told = Told::default();
        while let Some(connection) = self.mirror.news() {
            told.add(&connection);
        }
        self.over.try_iter().take(MOST).for_each(|connection| told.add(&connection));
        self.go_on(now, &mut told);
        for body in told.bodies {
            for conversation in self.peers.iter_mut().filter(|each| each.peer.is_connected(now)) {
                conversation.view.told += body.records;
                let datagram = conversation.peer.tell(&body.bytes);
                send(&self.socket, &datagram, conversation.view.address);
            }
        }
        for conversation in &mut self.peers {
            if let Some(hello) = conversation.peer.greet(now) {
                send(&self.socket, &hello, conversation.view.address);
            }
        }
    }

    /// Takes over what is new on this node, and publishes how things stand.
    fn look(&mut self, now: Instant) {
        let backends = Arc::clone(&lock(&self.shared.backends));
        if backends.held != self.backends.held {
            self.mirror.own(&backends.held);
        }
        self.backends = backends;
        for Conversation { peer, view } in &mut self.peers {
            peer.turn(now, &self.backends.turns);
            let is_connected = peer.is_connected(now);
            if is_connected != view.is_connected {
                match is_connected {
                    true => log::info!("sync: {} is there", view.address),
                    false => {
                        log::warn!("sync: {} is silent: after a failover, its new connections may be cut", view.address)
                    }
                }
            }
            view.is_connected = is_connected;
            view.silent = peer.heard().map(|heard| now.duration_since(heard));
        }
        self.view.turned = self.peers.iter().flat_map(|each| each.peer.turns(now)).copied().collect();
        self.view.peers = self.peers.iter().map(|each| each.view.clone()).collect();
        lock(&self.shared.view).clone_from(&self.view);
    }

    /// Goes on through the tables, if it is time.
    fn go_on(&mut self, now: Instant, told: &mut Told) {
        for conversation in &mut self.peers {
            self.again |= conversation.peer.take_wish();
        }
        let mut at = match self.walk {
            Walk::Resting { until } if now < until && !self.again => return,
            Walk::Resting { .. } => {
                self.again = false;
                0
            }
            Walk::At(at) => at,
        };
        let (end, before) = (at + SETS, told.records);
        while at < end && told.records - before < MOST as u64 {
            match self.mirror.walk(at, STRIDE, |connection| told.add(&connection)) {
                Some(next) => at = next,
                None => {
                    self.walk = Walk::Resting { until: now + REST };
                    return;
                }
            }
        }
        self.walk = Walk::At(at);
    }

    fn hear(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let Some(conversation) = self.peers.iter_mut().find(|each| each.view.address == from) else {
            return;
        };
        let connections = match conversation.peer.hear(now, bytes) {
            Ok(connections) => connections,
            Err(reason) => {
                if conversation.view.reason != Some(reason) {
                    log::warn!("sync: a datagram from {from} is not heard: {reason}");
                }
                conversation.view.refused += 1;
                conversation.view.reason = Some(reason);
                return;
            }
        };
        conversation.view.heard += connections.len() as u64;
        for connection in connections {
            self.take(&connection);
        }
    }

    fn take(&mut self, connection: &Connection) {
        let known = self.backends.known.get(&(connection.vip, connection.backend));
        let Some(Known { id, is_here }) = known.filter(|known| !known.is_here || connection.is_seen_by_vip()) else {
            self.view.foreign += 1;
            return;
        };
        match self.mirror.take(connection, *id, *is_here) {
            Taken::In => self.view.taken += 1,
            Taken::Out => self.view.ended += 1,
            Taken::Refused => self.view.refused += 1,
            Taken::Known => {}
        }
    }
}

/// Records, cut into bodies of datagrams.
#[derive(Default)]
struct Told {
    bodies: Vec<Body>,
    records: u64,
}

#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    records: u64,
}

impl Told {
    fn add(&mut self, connection: &Connection) {
        if self.bodies.last().is_none_or(|body| body.bytes.len() + record::LONGEST > datagram::ROOM) {
            self.bodies.push(Body::default());
        }
        if let Some(body) = self.bodies.last_mut() {
            record::write(connection, &mut body.bytes);
            body.records += 1;
            self.records += 1;
        }
    }
}

/// What cannot be sent now is lost, and told again on the next way through the tables.
fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) {
    let _ = SockRef::from(socket).send_to_with_flags(datagram, &to.into(), libc::MSG_DONTWAIT);
}

fn session() -> io::Result<Session> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Session::new(bytes))
}

/// Nothing is left half-done in these, whoever panics.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::record::tests::connection;

    #[test]
    fn records_fill_datagrams_and_none_is_cut() {
        let mut told = Told::default();
        (0..100).for_each(|number| told.add(&connection(number)));
        assert!(told.bodies.len() <= 4, "{} bodies", told.bodies.len());
        let read: Vec<_> =
            told.bodies.iter().flat_map(|body| record::read(&body.bytes).expect("whole records")).collect();
        assert_eq!(read, (0..100).map(connection).collect::<Vec<_>>());
        assert!(told.bodies.iter().all(|body| body.bytes.len() <= datagram::ROOM));
        assert_eq!(told.bodies.iter().map(|body| body.records).sum::<u64>(), told.records);
    }
}
