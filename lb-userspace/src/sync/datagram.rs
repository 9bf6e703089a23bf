//! Datagrams between nodes: who sends to whom, in which order, and the proof of it.
//!
//! ```text
//!  0               4       5       6               8
//! +---------------+-------+-------+---------------+
//! | "xvip"        |   1   | kind  |       0       |
//! +---------------+-------+-------+---------------+
//! | the sender's session                          | 16
//! | the receiver's session, as the sender knows it| 16
//! | number of the datagram                        |  8
//! | body                                          |
//! | first 16 bytes of an HMAC-SHA256              |
//! +-----------------------------------------------+
//! ```
//! The HMAC is made over the addresses of sender and receiver, 16 bytes each, and all that comes before it: so what one node was sent
//! cannot be shown to another.

use std::{fmt, net::IpAddr};

use ring::hmac;
use subtle::ConstantTimeEq as _;

const MAGIC: [u8; 4] = *b"xvip";
const VERSION: u8 = 1;
const HEAD: usize = 48;
const TAG: usize = 16;
/// Bytes of the longest datagram: with its UDP and IPv6 headers it fits into every IPv6 packet.
pub(super) const LONGEST: usize = 1232;
/// Bytes that a body has at the most.
pub(super) const ROOM: usize = LONGEST - HEAD - TAG;

/// A secret that the nodes share.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl Key {
    /// From a secret of 32 bytes at least, as the configuration asks for.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// One run of one node's daemon, by a number that nobody can foresee.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session(pub(super) [u8; 16]);

impl Session {
    /// Nobody's: the sender does not know the receiver yet.
    pub(super) const UNKNOWN: Self = Self([0; 16]);

    pub const fn new(number: [u8; 16]) -> Self {
        Self(number)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:08x}…)", u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }
}

/// From whom to whom a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// "I am here". In its body, how often all connections were asked for, and what the sender turns.
    Hello = 1,
    /// Records.
    Records = 2,
}

/// What a datagram says, once its proof holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened<'a> {
    pub(super) kind: Kind,
    pub(super) sender: Session,
    pub(super) receiver: Session,
    pub(super) number: u64,
    pub(super) body: &'a [u8],
}

/// The bytes of a datagram.
pub(super) fn seal(key: &Key, route: Route, head: &Opened<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + head.body.len() + TAG);
    bytes.extend(MAGIC);
    bytes.extend([VERSION, head.kind as u8, 0, 0]);
    bytes.extend(head.sender.0);
    bytes.extend(head.receiver.0);
    bytes.extend(head.number.to_be_bytes());
    bytes.extend(head.body);
    let tag = tag(key, route, &bytes);
    bytes.extend(tag);
    bytes
}

/// What a datagram says; `None` if it is none, or was not made with this key for this route.
pub(super) fn open<'a>(key: &Key, route: Route, bytes: &'a [u8]) -> Option<Opened<'a>> {
    let (message, proof) = bytes.split_last_chunk::<TAG>()?;
    let (head, body) = message.split_first_chunk::<HEAD>()?;
    let proven: bool = tag(key, route, message).ct_eq(proof).into();
    let kind = match head[5] {
        1 => Kind::Hello,
        2 => Kind::Records,
        _ => return None,
    };
    let session = |at: usize| Session(std::array::from_fn(|byte| head[at + byte]));
    let opened = Opened {
        kind,
        sender: session(8),
        receiver: session(24),
        number: u64::from_be_bytes(std::array::from_fn(|byte| head[40 + byte])),
        body,
    };
    (proven && head[..4] == MAGIC && head[4] == VERSION).then_some(opened)
}

fn tag(key: &Key, route: Route, message: &[u8]) -> [u8; TAG] {
    let mut context = hmac::Context::with_key(&key.0);
    for address in [route.from, route.to] {
        let mapped = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        context.update(&mapped.octets());
    }
    context.update(message);
    let whole = context.sign();
    std::array::from_fn(|byte| whole.as_ref()[byte])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route =
        Route { from: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), to: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST) };

    fn head() -> Opened<'static> {
        Opened {
            kind: Kind::Records,
            sender: Session([1; 16]),
            receiver: Session([2; 16]),
            number: 0x0102_0304,
            body: b"body",
        }
    }

    #[test]
    fn a_datagram_is_these_bytes() {
        let sealed = seal(&Key::new(&[7; 32]), ROUTE, &head());
        let mut literal = b"xvip\x01\x02\0\0".to_vec();
        literal.extend([1; 16]);
        literal.extend([2; 16]);
        literal.extend([0, 0, 0, 0, 1, 2, 3, 4]);
        literal.extend(b"body");
        // Python: hmac.new(bytes([7] * 32), ip_address("::ffff:10.0.0.1").packed + ip_address("::1").packed + message, "sha256").digest()[:16]
        literal.extend(PROOF);
        assert_eq!(sealed, literal);
    }

    const PROOF: [u8; 16] =
        [0xd, 0x3e, 0x9a, 0x9f, 0x39, 0xc4, 0x5d, 0x82, 0x9d, 0x19, 0xd, 0x17, 0xd4, 0xc7, 0x55, 0x28];

    #[test]
    fn only_the_receiver_opens_it_and_only_whole() {
        let key = Key::new(&[7; 32]);
        let sealed = seal(&key, ROUTE, &head());
        assert_eq!(open(&key, ROUTE, &sealed), Some(head()));
        assert_eq!(open(&Key::new(&[8; 32]), ROUTE, &sealed), None);
        assert_eq!(open(&key, Route { from: ROUTE.to, to: ROUTE.from }, &sealed), None);
        for at in 0..sealed.len() {
            assert_eq!(open(&key, ROUTE, &sealed[..at]), None, "cut to {at}");
            let mut changed = sealed.clone();
            changed[at] ^= 0x40;
            assert_eq!(open(&key, ROUTE, &changed), None, "byte {at} changed");
        }
    }
}
