//! What two nodes say to each other about connections, lost, repeated, changed and made up: nothing that was not sent is heard, nothing is
//! heard twice, and once the wire is whole again they go on.
//!
//! The input is a sequence of: one byte that says what happens, and what that needs.

#![no_main]

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lb_common::conntrack::Phase;
use lb_userspace::{
    dataplane::Connection,
    sync::{Key, Refused, Session, peer::Peer, record},
};
use libfuzzer_sys::fuzz_target;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// From A to B, all of it, so that it may come again.
struct Sent {
    bytes: Vec<u8>,
    /// What B must make of it, where that is known.
    means: Option<Connection>,
}

struct Wire {
    a: Peer,
    b: Peer,
    /// Who has another key, and A's address.
    stranger: Peer,
    now: Instant,
    start: Instant,
    sessions: u32,
    to_b: Vec<Sent>,
    to_a: Vec<Vec<u8>>,
    /// Which of `to_b` this run of B has taken records from.
    heard: HashSet<usize>,
    hellos: u64,
}

fuzz_target!(|data: &[u8]| {
    let mut wire = Wire::new();
    let mut rest = data;
    while let Some(what) = take(&mut rest) {
        match what % 12 {
            0 => wire.made_up(&bytes(&mut rest)),
            1 => {
                let body = bytes(&mut rest);
                let datagram = wire.a.tell(&body);
                wire.keep(datagram, None);
            }
            2 | 3 => wire.tell(take(&mut rest).unwrap_or(0)),
            4 | 5 => wire.deliver(take(&mut rest).map_or(0, usize::from)),
            6 => wire.changed(
                take(&mut rest).map_or(0, usize::from),
                take(&mut rest).map_or(0, usize::from),
                take(&mut rest).unwrap_or(0),
            ),
            7 => wire.now += Duration::from_millis(u64::from(take(&mut rest).unwrap_or(0)) * 20),
            8 => {
                let session = wire.session();
                wire.a = peer(7, A, B, session, wire.now);
            }
            9 => {
                let session = wire.session();
                wire.b = peer(7, B, A, session, wire.now);
                wire.heard.clear();
            }
            10 => wire.greet(),
            _ => wire.pretend(take(&mut rest).map_or(0, usize::from)),
        }
    }
    wire.heals();
});

impl Wire {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            a: peer(7, A, B, Session::new([1; 16]), now),
            b: peer(7, B, A, Session::new([2; 16]), now),
            stranger: peer(8, A, B, Session::new([3; 16]), now),
            now,
            start: now,
            sessions: 3,
            to_b: Vec::new(),
            to_a: Vec::new(),
            heard: HashSet::new(),
            hellos: 0,
        }
    }

    fn session(&mut self) -> Session {
        self.sessions += 1;
        let mut number = [0xee; 16];
        number[..4].copy_from_slice(&self.sessions.to_be_bytes());
        Session::new(number)
    }

    fn keep(&mut self, bytes: Vec<u8>, means: Option<Connection>) {
        self.to_b.push(Sent { bytes, means });
    }

    fn tell(&mut self, number: u8) {
        let mut body = Vec::new();
        let connection = connection(number);
        record::write(&connection, &mut body);
        let datagram = self.a.tell(&body);
        self.keep(datagram, Some(connection));
        if number & 1 == 0 {
            self.deliver(self.to_b.len() - 1);
        }
    }

    /// One that was sent, for the first time or again.
    fn deliver(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.to_b.len()) else { return };
        let sent = &self.to_b[which];
        match self.b.hear(self.now, &sent.bytes) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                assert!(self.heard.insert(which), "heard twice");
                assert!(sent.means.is_none_or(|means| records == [means]));
            }
            Err(Refused::Unproven) => panic!("it was sealed for B"),
            Err(Refused::Malformed(_)) => assert!(sent.means.is_none()),
            Err(Refused::Old | Refused::Stale) => {}
        }
    }

    /// One that was sent, but for a byte.
    fn changed(&mut self, which: usize, at: usize, mask: u8) {
        let Some(which) = which.checked_rem(self.to_b.len()) else { return };
        let mut bytes = self.to_b[which].bytes.clone();
        let at = at % bytes.len();
        bytes[at] ^= mask | 1;
        assert_eq!(self.b.hear(self.now, &bytes), Err(Refused::Unproven));
        assert_eq!(self.b.hear(self.now, &bytes[..at]), Err(Refused::Unproven));
    }

    fn made_up(&mut self, bytes: &[u8]) {
        assert_eq!(self.b.hear(self.now, bytes), Err(Refused::Unproven));
        // What is in a datagram is read only after its proof, which a mistake in a key's owner could make.
        if let Ok(records) = record::read(bytes) {
            let mut again = Vec::new();
            records.iter().for_each(|one| record::write(one, &mut again));
            assert_eq!(record::read(&again).as_ref(), Ok(&records));
        }
    }

    /// With another key, or with what A itself was sent: B is not A.
    fn pretend(&mut self, which: usize) {
        let datagram = self.stranger.tell(&[]);
        assert_eq!(self.b.hear(self.now, &datagram), Err(Refused::Unproven));
        if let Some(which) = which.checked_rem(self.to_a.len()) {
            assert_eq!(self.b.hear(self.now, &self.to_a[which]), Err(Refused::Unproven));
        }
    }

    /// Hellos that are due reach the other one.
    fn greet(&mut self) {
        if let Some(hello) = self.a.greet(self.now) {
            self.hellos += 1;
            let _ = self.b.hear(self.now, &hello);
            self.keep(hello, None);
        }
        if let Some(hello) = self.b.greet(self.now) {
            let _ = self.a.hear(self.now, &hello);
            self.to_a.push(hello);
        }
        // Each run of A may say one at once, and then one each 100 ms.
        let most = self.now.duration_since(self.start).as_millis() as u64 / 100 + 1 + u64::from(self.sessions);
        assert!(self.hellos <= most, "{} hellos", self.hellos);
    }

    /// Whatever has happened: who speaks undisturbed for a while is heard, and asks for what it has missed.
    fn heals(&mut self) {
        let end = self.now + Duration::from_secs(12);
        while self.now < end {
            self.greet();
            self.now += Duration::from_millis(100);
        }
        assert!(self.a.is_connected(self.now) && self.b.is_connected(self.now));
        let before = self.heard.len();
        self.tell(0);
        assert_eq!(self.heard.len(), before + 1, "a record that follows is heard");
    }
}

fn peer(secret: u8, here: IpAddr, there: IpAddr, session: Session, now: Instant) -> Peer {
    Peer::new(Key::new(&[secret; 32]), here, there, session, now)
}

fn connection(number: u8) -> Connection {
    let v4 = |last, port| SocketAddr::from(([192, 168, 2, last], port));
    let v6 = |last: u8, port| SocketAddr::from(([0xfd00, 2, 0, 0, 0, 0, 0, u16::from(last)], port));
    let at = |last, port| if number & 2 == 0 { v4(last, port) } else { v6(last, port) };
    let is_direct = number & 16 != 0;
    let seen = match (is_direct, number & 4 == 0) {
        (true, _) => at(50, 40000),
        (false, true) => at(100, 40000),
        (false, false) => at(50, 1055),
    };
    Connection {
        client: at(50, 40000),
        vip: at(100, 16443),
        backend: at(11, 6443),
        seen,
        is_direct,
        phase: if number & 8 == 0 { Phase::Established } else { Phase::Closed },
        idle: Duration::from_millis(u64::from(number)),
        acknowledged: [number; 4],
    }
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn bytes(rest: &mut &[u8]) -> Vec<u8> {
    let length = take(rest).map_or(0, usize::from).min(rest.len());
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    bytes.to_vec()
}
