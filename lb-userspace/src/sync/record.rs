//! Connections as they stand in datagrams.
//!
//! ```text
//!  0       1       2       3       4              8              12
//! +-------+-------+-------+-------+--------------+--------------+
//! |4 or 6 | phase | form  |   0   | milliseconds | acknowledged |
//! |       |       |       |       | since last   | by the client|
//! +-------+-------+-------+-------+--------------+--------------+
//! | client, VIP, backend: 4 or 16 bytes each                    |
//! +-------------------------------------------------------------+
//! | ports of client, VIP and backend, and the one that the      |
//! | backend sees the client by: 2 bytes each                    |
//! +-------------------------------------------------------------+
//! ```
//! All in network order. The form says which address the backend sees the client by: 0 the VIP's, 1 the client's own, 2 the client's own too, and
//! its node is sent the packets as they are.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::conntrack::Phase;
use thiserror::Error;

use crate::dataplane::Connection;

/// Bytes before the addresses.
const HEAD: usize = 12;
const SEEN_AS_VIP: u8 = 0;
const SEEN_AS_CLIENT: u8 = 1;
const DIRECT: u8 = 2;
/// The longest record: of IPv6.
pub(super) const LONGEST: usize = HEAD + 3 * 16 + 4 * 2;

/// What is not a record. Between nodes of the same version and key it does not occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    #[error("a record is cut short")]
    Short,
    #[error("a record is of no address family")]
    Family,
    #[error("a record has no phase of an established connection")]
    Phase,
    #[error("a record does not say how the backend sees its client")]
    Form,
}

/// Appends a record. The addresses are of one family, and the backend sees the client by the VIP's or by its own.
pub fn write(connection: &Connection, to: &mut Vec<u8>) {
    let Connection { client, vip, backend, seen, is_direct, phase, idle, acknowledged } = connection;
    let form = match seen.ip() == client.ip() {
        _ if *is_direct => DIRECT,
        true => SEEN_AS_CLIENT,
        false => SEEN_AS_VIP,
    };
    to.extend([if client.is_ipv4() { 4 } else { 6 }, *phase as u8, form, 0]);
    to.extend(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(acknowledged);
    for address in [client, vip, backend] {
        match address.ip() {
            IpAddr::V4(v4) => to.extend(v4.octets()),
            IpAddr::V6(v6) => to.extend(v6.octets()),
        }
    }
    for address in [client, vip, backend, seen] {
        to.extend(address.port().to_be_bytes());
    }
}

/// All records of a datagram's body.
pub fn read(mut body: &[u8]) -> Result<Vec<Connection>, Malformed> {
    let mut connections = Vec::new();
    while !body.is_empty() {
        connections.push(next(&mut body)?);
    }
    Ok(connections)
}

fn next(body: &mut &[u8]) -> Result<Connection, Malformed> {
    let [family, phase, form, _] = take(body)?;
    let phase = match Phase::from_raw(phase) {
        known if known as u8 == phase && known as u8 >= Phase::Established as u8 => known,
        _ => return Err(Malformed::Phase),
    };
    let idle = Duration::from_millis(u32::from_be_bytes(take(body)?).into());
    let acknowledged = take(body)?;
    let [client, vip, backend] = match family {
        4 => [v4(body)?, v4(body)?, v4(body)?],
        6 => [v6(body)?, v6(body)?, v6(body)?],
        _ => return Err(Malformed::Family),
    };
    let seen = match form {
        SEEN_AS_VIP => vip,
        SEEN_AS_CLIENT | DIRECT => client,
        _ => return Err(Malformed::Form),
    };
    let [client, vip, backend, seen] = [
        SocketAddr::new(client, port(body)?),
        SocketAddr::new(vip, port(body)?),
        SocketAddr::new(backend, port(body)?),
        SocketAddr::new(seen, port(body)?),
    ];
    Ok(Connection { client, vip, backend, seen, is_direct: form == DIRECT, phase, idle, acknowledged })
}

fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (first, rest) = body.split_first_chunk().ok_or(Malformed::Short)?;
    *body = rest;
    Ok(*first)
}

fn v4(body: &mut &[u8]) -> Result<IpAddr, Malformed> {
    take::<4>(body).map(IpAddr::from)
}

fn v6(body: &mut &[u8]) -> Result<IpAddr, Malformed> {
    take::<16>(body).map(IpAddr::from)
}

fn port(body: &mut &[u8]) -> Result<u16, Malformed> {
    take(body).map(u16::from_be_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes: an answer, and what is read is written the same.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), family in prop_oneof![Just(4), Just(6)]) {
            let _ = read(&bytes);
            let mut likely = vec![family, 2, 0, 0];
            likely.extend(&bytes);
            let length = if family == 4 { HEAD + 20 } else { LONGEST };
            likely.truncate(length);
            let Ok(connections) = read(&likely) else { return Ok(()) };
            let mut written = Vec::new();
            connections.iter().for_each(|connection| write(connection, &mut written));
            prop_assert_eq!(read(&written), Ok(connections));
        }
    }

    pub(in crate::sync) fn connection(number: u16) -> Connection {
        let socket = |last, port| SocketAddr::from(([192, 168, 2, last], port));
        Connection {
            client: socket(50, number),
            vip: socket(100, 16443),
            backend: socket(11, 6443),
            seen: socket(100, number),
            is_direct: false,
            phase: Phase::Established,
            idle: Duration::from_millis(258),
            acknowledged: [0xde, 0xad, 0xbe, 0xef],
        }
    }

    fn v6(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([0xfd00, 2, 0, 0, 0, 0, 0, u16::from(last)], port))
    }

    #[test]
    fn a_record_is_these_bytes() {
        let mut bytes = Vec::new();
        write(&connection(40000), &mut bytes);
        let literal = [
            4, 2, 0, 0, 0, 0, 1, 2, 0xde, 0xad, 0xbe, 0xef, 192, 168, 2, 50, 192, 168, 2, 100, 192, 168, 2, 11, 0x9c,
            0x40, 0x40, 0x3b, 0x19, 0x2b, 0x9c, 0x40,
        ];
        assert_eq!(bytes, literal);
        assert_eq!(read(&bytes), Ok(vec![connection(40000)]));
    }

    #[test]
    fn both_families_and_forms_come_back() {
        let local = Connection { seen: SocketAddr::from(([192, 168, 2, 50], 1055)), ..connection(7) };
        let direct = Connection { seen: connection(7).client, is_direct: true, ..connection(7) };
        let six = Connection {
            client: v6(50, 40000),
            vip: v6(100, 16443),
            backend: v6(11, 6443),
            seen: v6(100, 41000),
            phase: Phase::Closed,
            ..connection(0)
        };
        let all = vec![connection(1), six, local, direct];
        let mut bytes = Vec::new();
        all.iter().for_each(|one| write(one, &mut bytes));
        assert_eq!(read(&bytes), Ok(all));
        let mut longest = Vec::new();
        write(&six, &mut longest);
        assert_eq!(longest.len(), LONGEST);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let mut good = Vec::new();
        write(&connection(40000), &mut good);
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert_eq!(with(0, 5), Err(Malformed::Family));
        assert_eq!(with(1, 1), Err(Malformed::Phase), "half-open ones are not told");
        assert_eq!(with(1, 6), Err(Malformed::Phase));
        assert_eq!(with(2, 3), Err(Malformed::Form));
        for length in 1..good.len() {
            assert_eq!(read(&good[..length]), Err(Malformed::Short), "{length} bytes");
        }
    }
}
