//! Connections that begin on this host, decided at the call that begins them: no packet of theirs is ever translated.
//!
//! ```text
//!  connect():      not to a virtual server ------------> as it is
//!                  a backend takes new connections ----> straight to it, noted under the socket's cookie
//!                  none does --------------------------> refused
//!  getpeername():  noted, and still connected there ---> the virtual server that was asked for
//!  close():        the note goes
//! ```

use super::{
    Tables,
    selection::{Asker, Kind},
};
use crate::{
    abi::{Backend, BackendId, Counter, Local, ServiceId, ServiceKey, socket_hash, source_hash},
    address::{Address as _, V4, V6},
    flow::mix,
};

/// The tables and the notes about this host's connections, by the cookie of the socket.
pub trait Locals: Tables {
    fn local(&self, cookie: u64) -> Option<Local>;
    fn remember(&self, cookie: u64, local: &Local);
    fn forget(&self, cookie: u64);
}

/// A TCP socket about to connect. Addresses are mapped: IPv4 is `::ffff:a.b.c.d`, from whichever kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub cookie: u64,
    /// Number of its network namespace.
    pub netns: u64,
    /// Address that it is bound to, unspecified if it is not.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub port: [u8; 2],
}

/// What becomes of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It goes where it was meant to go.
    Leave,
    To {
        address: [u8; 16],
        port: [u8; 2],
    },
    /// It fails at once, as it would where nobody listens.
    Refuse,
}

/// Chooses the destination of a socket. `home` is the namespace whose loopback addresses are this host's: in every other one they
/// are somebody else's.
#[inline(always)]
pub fn connect<T: Locals>(tables: &T, socket: &Socket, home: u64) -> Choice {
    let key = if is_loopback(&socket.destination) {
        if socket.netns != home {
            return Choice::Leave;
        }
        ServiceKey::on_host(socket.destination, socket.port)
    } else {
        ServiceKey::new(socket.destination, socket.port)
    };
    let Some(service) = tables.service(&key) else {
        return Choice::Leave;
    };
    if service == ServiceId::BACKEND {
        // The same socket may have tried a virtual server before: now it means the backend itself.
        closed(tables, socket.cookie);
        return Choice::Leave;
    }
    // A socket whose attempt has failed may try again.
    closed(tables, socket.cookie);
    let Some((chosen, backend)) = choose(tables, service, socket) else {
        tables.count(Counter::LocalRefused);
        return Choice::Refuse;
    };
    let (address, port) = (backend.mapped(), backend.port());
    let local = Local {
        netns: socket.netns,
        backend: chosen,
        asked_port: socket.port,
        port,
        asked: socket.destination,
        address,
    };
    tables.remember(socket.cookie, &local);
    tables.count(Counter::Local);
    tables.connected(chosen);
    count(tables, chosen, 1);
    Choice::To { address, port }
}

/// Takes note that a socket is closed, or begins something else.
#[inline(always)]
pub fn closed<T: Locals>(tables: &T, cookie: u64) {
    if let Some(local) = tables.local(cookie) {
        count(tables, local.backend, -1);
        tables.forget(cookie);
    }
}

#[inline(always)]
fn count<T: Tables>(tables: &T, backend: BackendId, change: i64) {
    if let Some(load) = tables.load(backend) {
        load.own.add(change);
    }
}

/// The backend that the policy says. One that is down already stands in the table until the daemon has put the next one in place:
/// then another slot is tried, for as long as that is likely to help.
#[inline(always)]
fn choose<'a, T: Tables>(tables: &'a T, service: ServiceId, socket: &Socket) -> Option<(BackendId, &'a Backend)> {
    // No port is known yet. Each socket is a connection.
    let (mut source, port) = (spread(socket), socket_hash(socket.cookie));
    let mut found = None;
    for _ in 0..TRIES {
        let chosen = tables.select(service, &Asker { source, port, kind: Kind::Own, former: BackendId::NONE });
        found = tables.backend(chosen).filter(|backend| backend.is(Backend::PRESENT)).map(|backend| (chosen, backend));
        if found.is_none_or(|(_, backend)| !backend.is(Backend::DOWN)) {
            break;
        }
        source = mix(source.wrapping_add(1));
    }
    found
}

const TRIES: u32 = 4;

/// What to show to a socket that asks who is at the other end: address and port of the virtual server, if it asked for one and
/// got this peer for it.
#[inline(always)]
pub fn peer<T: Locals>(tables: &T, cookie: u64, address: [u8; 16], port: [u8; 2]) -> Option<([u8; 16], [u8; 2])> {
    let local = tables.local(cookie)?;
    let same = V6(local.address).difference(&V6(address)) == 0 && local.port == port;
    same.then_some((local.asked, local.asked_port))
}

/// By its address, if the socket has one: then the backend is the one that the same client gets through the VIP. Most sockets have
/// none before they connect, and are spread one by one: a node's own processes would otherwise all be one client.
#[inline(always)]
fn spread(socket: &Socket) -> u32 {
    match V6(socket.source).words() {
        [0, 0, 0, 0] | [0, 0, MAPPED, 0] => socket_hash(socket.cookie),
        [0, 0, MAPPED, _] => source_hash(&V4::from_mapped(&socket.source)),
        _ => source_hash(&V6(socket.source)),
    }
}

/// The third word of an IPv4 address inside an IPv6 one.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

#[inline(always)]
fn is_loopback(address: &[u8; 16]) -> bool {
    match V6(*address).words() {
        // Not `address[12]`: the compiler would cut the address into odd pieces on the stack, which the verifier refuses.
        [0, 0, MAPPED, last] => last.to_ne_bytes()[0] == 127,
        [0, 0, 0, last] => last == u32::from_ne_bytes([0, 0, 0, 1]),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
