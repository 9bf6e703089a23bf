//! A client of the VIP whose neighbour table is the kernel's own: an ICMP echo each millisecond from an ordinary socket.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Ipv4HeaderSlice};
use socket2::{Domain, Protocol, SockAddr, Type};

use super::pace::{Pair, between};
use crate::lab::{Host, receive, stamp};

#[derive(Debug)]
pub struct Echo {
    record: Arc<Mutex<Record>>,
    _threads: Pair,
}

/// Requests by their numbers.
#[derive(Debug, Default)]
struct Record {
    /// The number of the first one that is remembered.
    first: u32,
    sent: Vec<SystemTime>,
    /// In the order of their arrival.
    answers: Vec<(u32, SystemTime)>,
}

impl Echo {
    /// Asks until it is dropped.
    pub fn start(host: &Host, vip: Ipv4Addr) -> Result<Self> {
        let socket = Arc::new(host.socket(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?);
        stamp(&socket)?;
        let id = fastrand::u16(..);
        let record: Arc<Mutex<Record>> = Arc::default();
        let (asking, sending) = (Arc::clone(&socket), Arc::clone(&record));
        let target = SockAddr::from(SocketAddr::new(vip.into(), 0));
        let ask = move || {
            let number = lock(&sending).send(SystemTime::now());
            // A send error (nobody answers ARP) is a request without an answer.
            drop(asking.send_to(&request(id, number), &target));
        };
        let noted = Arc::clone(&record);
        let mut packet = [0; 256];
        let hear = move || {
            if let Some((length, at)) = receive(&socket, &mut packet)?
                && let Some(number) = answer(&packet[..length], id)
            {
                lock(&noted).answers.push((number, at));
            }
            Ok(())
        };
        Ok(Self { record, _threads: Pair::start(ask, hear) })
    }

    /// Begins anew.
    pub fn forget(&self) {
        lock(&self.record).forget();
    }

    /// When the first answer came to a request sent from a moment on.
    pub fn answered_since(&self, moment: SystemTime) -> Option<SystemTime> {
        lock(&self.record).answered_since(moment)
    }

    /// The longest time that the client has waited for any sign of life, of all that it has asked since a moment: from a request
    /// to the first answer to it or to a later one. A client that was kept from asking has not waited.
    pub fn longest_wait(&self, since: SystemTime, now: SystemTime) -> Duration {
        lock(&self.record).longest_wait(since, now)
    }
}

impl Record {
    fn send(&mut self, now: SystemTime) -> u32 {
        self.sent.push(now);
        self.first.wrapping_add(self.sent.len() as u32 - 1)
    }

    fn forget(&mut self) {
        self.first = self.first.wrapping_add(self.sent.len() as u32);
        self.sent.clear();
        self.answers.clear();
    }

    /// When each remembered request was sent and its answer came.
    fn answered(&self) -> impl Iterator<Item = (usize, SystemTime)> {
        // Answers to forgotten requests have numbers far beyond.
        let place = |number: u32| Some(number.wrapping_sub(self.first) as usize).filter(|&n| n < self.sent.len());
        self.answers.iter().filter_map(move |&(number, at)| Some((place(number)?, at)))
    }

    fn answered_since(&self, moment: SystemTime) -> Option<SystemTime> {
        self.answered().find(|&(place, _)| self.sent[place] >= moment).map(|(_, at)| at)
    }

    fn longest_wait(&self, since: SystemTime, now: SystemTime) -> Duration {
        let mut first_sign = vec![now; self.sent.len()];
        for (place, at) in self.answered() {
            first_sign[place] = first_sign[place].min(at);
        }
        let mut sign = now;
        let mut longest = Duration::ZERO;
        for (sent, own) in self.sent.iter().zip(first_sign).rev().take_while(|(sent, _)| **sent >= since) {
            sign = sign.min(own);
            longest = longest.max(between(*sent, sign));
        }
        longest
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// ICMP's own sequence number has 16 bits and would wrap within a minute: the number is in the data.
fn request(id: u16, number: u32) -> Vec<u8> {
    let data = number.to_be_bytes();
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 0 }), &data);
    [&header.to_bytes()[..], &data].concat()
}

/// The number in an echo reply to this client, in a packet with its IP header.
fn answer(packet: &[u8], id: u16) -> Option<u32> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let (icmp, data) = Icmpv4Header::from_slice(&packet[ip.slice().len()..]).ok()?;
    let own = matches!(icmp.icmp_type, Icmpv4Type::EchoReply(echo) if echo.id == id);
    let number = data.get(..4).filter(|_| own)?.try_into().ok()?;
    Some(u32::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_wait_ends_with_the_first_answer_to_it_or_a_later_one() {
        let mut record = Record::default();
        // Asked each 10 ms; 20 and 30 are lost, 40 is answered late, after 50.
        for sent in [10, 20, 30, 40, 50] {
            record.send(at(sent));
        }
        record.answers = vec![(0, at(11)), (4, at(51)), (3, at(60))];
        assert_eq!(record.longest_wait(at(0), at(70)), ms(31));
        assert_eq!(record.longest_wait(at(25), at(70)), ms(21));
        assert_eq!(record.longest_wait(at(45), at(70)), ms(1));
        assert_eq!(record.answered_since(at(15)), Some(at(51)));
        // What has no answer yet has been waited for until now.
        record.send(at(65));
        assert_eq!(record.longest_wait(at(55), at(70)), ms(5));
        assert_eq!(record.answered_since(at(55)), None);

        record.forget();
        let number = record.send(at(100));
        record.answers = vec![(3, at(99)), (number, at(103))];
        assert_eq!(record.longest_wait(at(0), at(110)), ms(3));
    }

    #[test]
    fn an_answer_has_the_number_of_its_request() {
        let mut reply = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0, 192, 168, 2, 100, 192, 168, 2, 50];
        reply.extend(request(7, 0x1234_5678));
        reply[20] = 0;
        assert_eq!(answer(&reply, 7), Some(0x1234_5678));
        assert_eq!(answer(&reply, 8), None);
        assert_eq!(answer(&reply[..30], 7), None);
    }
}
