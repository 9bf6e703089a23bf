//! One peer, without its socket: which run of it is spoken with, what of it was heard already, and what it is to be sent.
//!
//! ```text
//!   here                                     there
//!    |-- hello, to nobody I know -------------->|     "this is my session"
//!    |<------------- hello, to that session ----|     there is alive now: it has answered what nobody could foresee
//!    |-- hello, to there's session ------------>|     and so is here
//!    |<=============== records ================>|     numbered; whoever misses one asks for all connections
//! ```
//! A datagram is heard once: its number is above all that were heard of its session before. One of a former run that was late on its way is
//! heard, too, and the present run again when it speaks next.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    datagram::{self, Key, Kind, Opened, Route, Session},
    greeting,
    record::{self, Malformed},
};
use crate::{dataplane::Connection, reconcile::Turned};

/// How often a peer hears that this node is here.
const HELLO: Duration = Duration::from_secs(1);
/// Hellos that answer something are no closer together.
const PAUSE: Duration = Duration::from_millis(100);
/// A peer that was silent for longer is sent nothing but hellos.
pub(super) const LOST: Duration = Duration::from_secs(4);

/// Why a datagram was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    #[error("it has no proof that it is from the peer: the keys differ, or somebody else has sent it")]
    Unproven,
    #[error("it was heard before, or comes after a later one")]
    Old,
    #[error("it is to an earlier run of this daemon")]
    Stale,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What is known of a peer.
#[derive(Debug)]
pub struct Peer {
    key: Key,
    here: IpAddr,
    there: IpAddr,
    mine: Session,
    /// The run that has shown to be alive.
    theirs: Option<Session>,
    /// The run that said hello last, to which the next hello is addressed; it may be somebody's recording.
    claimed: Session,
    /// Runs that another has followed, each with the number of the last datagram that was heard of it.
    former: HashMap<Session, u64>,
    heard: Option<Instant>,
    /// The number of the last datagram that was sent, and of the last that was heard.
    sent: u64,
    highest: u64,
    /// How often all connections were asked for in this session of the peer's, and how often it has asked.
    asked: u64,
    answered: u64,
    /// What it says that it turns.
    turns: BTreeSet<Turned>,
    /// What it is told that this node turns.
    told: BTreeSet<Turned>,
    /// It wants all connections.
    wants_all: bool,
    /// When the next hello is due, and the last one was sent.
    hello: Instant,
    greeted: Option<Instant>,
}

impl Peer {
    pub fn new(key: Key, here: IpAddr, there: IpAddr, mine: Session, now: Instant) -> Self {
        Self {
            key,
            here,
            there,
            mine,
            theirs: None,
            claimed: Session::UNKNOWN,
            former: HashMap::new(),
            heard: None,
            sent: 0,
            highest: 0,
            asked: 0,
            answered: 0,
            turns: BTreeSet::new(),
            told: BTreeSet::new(),
            wants_all: false,
            hello: now,
            greeted: None,
        }
    }

    /// Whether it is there and hears what it is sent.
    pub fn is_connected(&self, now: Instant) -> bool {
        self.theirs.is_some() && self.heard.is_some_and(|heard| now.duration_since(heard) < LOST)
    }

    /// When it was heard last.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether it wants all connections; asked once.
    pub fn take_wish(&mut self) -> bool {
        std::mem::take(&mut self.wants_all)
    }

    /// What it turns, as far as is known now.
    pub(super) fn turns(&self, now: Instant) -> impl Iterator<Item = &Turned> {
        self.turns.iter().filter(move |_| self.is_connected(now))
    }

    /// From now on it is told that this node turns these; the first ones if they do not fit into a hello.
    pub(super) fn turn(&mut self, now: Instant, these: &BTreeSet<Turned>) {
        if self.told != *these {
            self.told.clone_from(these);
            self.greet_soon(now);
        }
    }

    /// Hears a datagram that came from its address. Gives the records in it.
    pub fn hear(&mut self, now: Instant, bytes: &[u8]) -> Result<Vec<Connection>, Refused> {
        let route = Route { from: self.there, to: self.here };
        let opened = datagram::open(&self.key, route, bytes).ok_or(Refused::Unproven)?;
        if self.former.get(&opened.sender).is_some_and(|highest| opened.number <= *highest) {
            return Err(Refused::Old);
        }
        if opened.receiver != self.mine {
            return self.meet(now, &opened);
        }
        if self.theirs == Some(opened.sender) {
            self.follow(now, opened.number)?;
        } else {
            self.welcome(now, &opened);
        }
        self.heard = Some(now);
        match opened.kind {
            Kind::Records => Ok(record::read(opened.body)?),
            Kind::Hello => {
                let (wish, turns) = opened.body.split_first_chunk().ok_or(Malformed::Short)?;
                let wish = u64::from_be_bytes(*wish);
                self.turns = greeting::read(turns)?;
                if wish > self.answered {
                    self.answered = wish;
                    self.wants_all = true;
                }
                Ok(Vec::new())
            }
        }
    }

    /// A hello, if one is due.
    pub fn greet(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.hello {
            return None;
        }
        self.hello = now + HELLO;
        self.greeted = Some(now);
        let mut body = self.asked.to_be_bytes().to_vec();
        greeting::write(&self.told, &mut body);
        let hello = self.seal(Kind::Hello, self.claimed, &body);
        // Whoever was greeted answers, or was a recording: who is known to be alive is not to miss more than this.
        if let Some(theirs) = self.theirs.filter(|theirs| *theirs != self.claimed && self.is_connected(now)) {
            self.claimed = theirs;
            self.hello = now + PAUSE;
        }
        Some(hello)
    }

    /// A datagram of records for it.
    pub fn tell(&mut self, records: &[u8]) -> Vec<u8> {
        self.seal(Kind::Records, self.theirs.unwrap_or(self.claimed), records)
    }

    fn seal(&mut self, kind: Kind, receiver: Session, body: &[u8]) -> Vec<u8> {
        self.sent += 1;
        let route = Route { from: self.here, to: self.there };
        let head = Opened { kind, sender: self.mine, receiver, number: self.sent, body };
        datagram::seal(&self.key, route, &head)
    }

    /// Somebody who does not know this run yet: it is told at once, and believed when it answers.
    fn meet(&mut self, now: Instant, opened: &Opened<'_>) -> Result<Vec<Connection>, Refused> {
        if opened.kind != Kind::Hello {
            return Err(Refused::Stale);
        }
        // A peer that goes on in its session knows this run: that hello is from before.
        if self.theirs == Some(opened.sender) && self.is_connected(now) {
            return Err(Refused::Old);
        }
        self.claimed = opened.sender;
        self.greet_soon(now);
        Ok(Vec::new())
    }

    /// A new run of the peer, which has just answered this one.
    fn welcome(&mut self, now: Instant, opened: &Opened<'_>) {
        let former = self.theirs.replace(opened.sender);
        self.former.extend(former.map(|session| (session, self.highest)));
        self.former.remove(&opened.sender);
        self.claimed = opened.sender;
        self.highest = opened.number;
        (self.asked, self.answered) = (1, 0);
        // It has nothing yet; that it asks may get lost.
        self.wants_all = true;
        self.greet_soon(now);
    }

    fn follow(&mut self, now: Instant, number: u64) -> Result<(), Refused> {
        if number <= self.highest {
            return Err(Refused::Old);
        }
        let missed = number - self.highest > 1;
        self.highest = number;
        // Silence that was longer means that it was not sent anything.
        self.wants_all |= !self.is_connected(now);
        if missed {
            self.asked += 1;
            self.greet_soon(now);
        }
        Ok(())
    }

    fn greet_soon(&mut self, now: Instant) {
        let earliest = self.greeted.map_or(now, |greeted| greeted + PAUSE);
        self.hello = self.hello.min(earliest.max(now));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::sync::record::tests::connection;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    /// Two peers, a clock, and all that was ever sent.
    struct Wire {
        a: Peer,
        b: Peer,
        now: Instant,
        to_a: Vec<Vec<u8>>,
        to_b: Vec<Vec<u8>>,
    }

    fn key() -> Key {
        Key::new(&[7; 32])
    }

    fn session(number: u8) -> Session {
        Session([number; 16])
    }

    impl Wire {
        fn new() -> Self {
            let now = Instant::now();
            let a = Peer::new(key(), A, B, session(1), now);
            let b = Peer::new(key(), B, A, session(2), now);
            Self { a, b, now, to_a: Vec::new(), to_b: Vec::new() }
        }

        /// Hellos go to and fro for a while.
        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                if let Some(hello) = self.a.greet(self.now) {
                    assert!(hello.len() <= datagram::LONGEST);
                    let _ = self.b.hear(self.now, &hello);
                    self.to_b.push(hello);
                }
                if let Some(hello) = self.b.greet(self.now) {
                    let _ = self.a.hear(self.now, &hello);
                    self.to_a.push(hello);
                }
                self.now += Duration::from_millis(20);
            }
        }

        fn connected() -> Self {
            let mut wire = Self::new();
            wire.pass(Duration::from_millis(500));
            assert!(wire.a.is_connected(wire.now) && wire.b.is_connected(wire.now));
            assert!(wire.a.take_wish() && wire.b.take_wish(), "who has just met wants all");
            assert!(!wire.a.take_wish());
            wire
        }

        fn tell_a(&mut self, number: u16) -> Vec<u8> {
            let mut body = Vec::new();
            record::write(&connection(number), &mut body);
            self.b.tell(&body)
        }

        fn tell_b(&mut self, number: u16) -> Vec<u8> {
            let mut body = Vec::new();
            record::write(&connection(number), &mut body);
            let datagram = self.a.tell(&body);
            self.to_b.push(datagram.clone());
            datagram
        }
    }

    #[test]
    fn two_that_have_just_started_hear_each_other_at_once() {
        let mut wire = Wire::connected();
        let told = wire.tell_b(40000);
        assert_eq!(wire.b.hear(wire.now, &told), Ok(vec![connection(40000)]));
    }

    #[test]
    fn hellos_are_few() {
        let mut wire = Wire::connected();
        let before = wire.to_a.len() + wire.to_b.len();
        wire.pass(Duration::from_secs(10));
        assert!((20..=22).contains(&(wire.to_a.len() + wire.to_b.len() - before)));
        assert!(before <= 8, "{before} to meet");
    }

    #[test]
    fn nothing_is_heard_twice() {
        let mut wire = Wire::connected();
        let (one, two) = (wire.tell_b(1), wire.tell_b(2));
        assert!(wire.b.hear(wire.now, &one).is_ok() && wire.b.hear(wire.now, &two).is_ok());
        wire.pass(Duration::from_secs(3));
        for old in wire.to_b.clone() {
            assert_eq!(wire.b.hear(wire.now, &old), Err(Refused::Old));
        }
    }

    #[test]
    fn what_was_missed_is_asked_for_until_it_is_heard() {
        let mut wire = Wire::connected();
        let (_lost, heard) = (wire.tell_b(1), wire.tell_b(2));
        assert!(wire.b.hear(wire.now, &heard).is_ok());
        wire.now += PAUSE;
        let lost = wire.b.greet(wire.now);
        assert!(lost.is_some(), "the request is not put off");
        wire.pass(HELLO * 2);
        assert!(wire.a.take_wish(), "it was asked for again");
        wire.pass(HELLO * 3);
        assert!(!wire.a.take_wish(), "but answered once");
    }

    #[test]
    fn a_peer_that_starts_again_is_met_anew_and_its_former_run_is_dead() {
        let mut wire = Wire::connected();
        wire.pass(Duration::from_secs(2));
        let recorded = wire.to_b.clone();
        wire.a = Peer::new(key(), A, B, session(3), wire.now);
        wire.pass(Duration::from_secs(2));
        assert!(wire.b.take_wish() && wire.a.take_wish());
        let told = wire.tell_b(5);
        assert_eq!(wire.b.hear(wire.now, &told), Ok(vec![connection(5)]));
        for old in recorded {
            assert_eq!(wire.b.hear(wire.now, &old), Err(Refused::Old));
        }
        let told = wire.tell_b(6);
        assert!(wire.b.hear(wire.now, &told).is_ok(), "the replay has changed nothing");
    }

    /// B starts again, and hears all that A has ever sent before A itself speaks.
    #[test]
    fn a_recording_convinces_nobody_who_has_just_started() {
        let mut wire = Wire::connected();
        let told = wire.tell_b(1);
        assert!(wire.b.hear(wire.now, &told).is_ok());
        wire.b = Peer::new(key(), B, A, session(4), wire.now);
        for old in wire.to_b.clone() {
            let heard = wire.b.hear(wire.now, &old);
            assert!(
                matches!(heard, Ok(ref records) if records.is_empty()) || heard == Err(Refused::Stale),
                "{heard:?}"
            );
        }
        assert!(!wire.b.is_connected(wire.now));
        wire.pass(LOST + HELLO * 2);
        assert!(wire.b.is_connected(wire.now), "but the peer itself does");
    }

    /// What a former run has sent comes when B has not heard of that run before, and knows the next one already.
    #[test]
    fn a_late_word_of_a_former_run_does_not_silence_the_present_one() {
        let mut wire = Wire::new();
        let hello = wire.b.greet(wire.now).expect("a hello");
        assert_eq!(wire.a.hear(wire.now, &hello), Ok(vec![]));
        let late = wire.tell_b(1);
        wire.a = Peer::new(key(), A, B, session(3), wire.now);
        wire.pass(Duration::from_secs(2));
        assert_eq!(wire.b.hear(wire.now, &late), Ok(vec![connection(1)]));
        wire.pass(Duration::from_secs(2));
        assert!(wire.a.is_connected(wire.now) && wire.b.is_connected(wire.now));
        let told = wire.tell_b(2);
        assert_eq!(wire.b.hear(wire.now, &told), Ok(vec![connection(2)]));
        assert_eq!(wire.b.hear(wire.now, &late), Err(Refused::Old));
    }

    /// Somebody replays the hello of a run that B has never spoken with.
    #[test]
    fn a_recording_of_a_run_that_nobody_met_does_not_part_two_that_are_connected() {
        let mut wire = Wire::new();
        let recorded = Peer::new(key(), A, B, session(9), wire.now).greet(wire.now).expect("a hello");
        wire.pass(Duration::from_millis(500));
        for _ in 0..20 {
            let _ = wire.b.hear(wire.now, &recorded);
            let told = wire.tell_a(7);
            assert_eq!(wire.a.hear(wire.now, &told), Ok(vec![connection(7)]));
            wire.pass(Duration::from_millis(500));
            assert!(wire.a.is_connected(wire.now) && wire.b.is_connected(wire.now));
        }
    }

    /// On which it depends whether packets are sent on to it as they are.
    #[test]
    fn what_a_peer_turns_is_known_at_once_and_for_as_long_as_it_is_there() {
        let turned = |last: u8| -> Turned { ((A, 16443).into(), (IpAddr::from([10, 0, 0, last]), 6443).into()) };
        let known = |wire: &Wire| wire.a.turns(wire.now).copied().collect::<Vec<_>>();
        let mut wire = Wire::connected();
        assert_eq!(known(&wire), []);
        for (now, these) in [(1, vec![turned(11), turned(12)]), (2, vec![turned(12)]), (3, vec![])] {
            wire.pass(HELLO * now);
            wire.b.turn(wire.now, &these.iter().copied().collect());
            wire.pass(PAUSE + Duration::from_millis(20));
            assert_eq!(known(&wire), these, "it waits for no hello that is due anyway");
            let before = wire.to_a.len();
            wire.b.turn(wire.now, &these.iter().copied().collect());
            wire.pass(PAUSE + Duration::from_millis(20));
            assert_eq!(wire.to_a.len(), before, "and says nothing where nothing changes");
        }
        wire.b.turn(wire.now, &BTreeSet::from([turned(13)]));
        wire.pass(PAUSE * 2);
        wire.now += LOST;
        assert_eq!(known(&wire), [], "who is silent turns nothing");
        wire.pass(HELLO * 2);
        assert_eq!(known(&wire), [turned(13)]);
        // It starts again and has not said yet what it turns.
        wire.b = Peer::new(key(), B, A, session(5), wire.now);
        wire.pass(HELLO * 2);
        assert_eq!(known(&wire), []);
    }

    #[test]
    fn silence_ends_the_conversation_and_a_word_resumes_it() {
        let mut wire = Wire::connected();
        wire.now += LOST;
        assert!(!wire.a.is_connected(wire.now));
        wire.pass(HELLO * 2);
        assert!(wire.a.is_connected(wire.now) && wire.a.take_wish() && wire.b.take_wish());
    }

    #[test]
    fn who_has_another_key_is_not_heard() {
        let mut wire = Wire::new();
        wire.a = Peer::new(Key::new(&[8; 32]), A, B, session(1), wire.now);
        let hello = wire.a.greet(wire.now).expect("a hello");
        assert_eq!(wire.b.hear(wire.now, &hello), Err(Refused::Unproven));
    }
}
