//! What a node turns for the others, as it stands in its hellos.
//!
//! ```text
//! +--------------------------------------+
//! | VIP, IPv4 as ::ffff:a.b.c.d          | 16
//! | its port                             | 2
//! | the backend there, in the same way   | 18
//! +--------------------------------------+ and so on
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use super::{datagram::ROOM, record::Malformed};
use crate::reconcile::Turned;

const ENDPOINT: usize = 18;
/// So many fit behind the rest of a hello.
const MOST: usize = (ROOM - size_of::<u64>()) / (2 * ENDPOINT);

/// Appends the first that fit.
pub(super) fn write(turned: &BTreeSet<Turned>, to: &mut Vec<u8>) {
    for endpoint in turned.iter().take(MOST).flat_map(|(vip, backend)| [vip, backend]) {
        let mapped = match endpoint.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        to.extend(mapped.octets());
        to.extend(endpoint.port().to_be_bytes());
    }
}

pub(super) fn read(body: &[u8]) -> Result<BTreeSet<Turned>, Malformed> {
    let (pairs, rest) = body.as_chunks::<{ 2 * ENDPOINT }>();
    if !rest.is_empty() {
        return Err(Malformed::Short);
    }
    let half = |bytes: &[u8]| {
        let address: [u8; 16] = std::array::from_fn(|at| bytes[at]);
        SocketAddr::new(Ipv6Addr::from(address).to_canonical(), u16::from_be_bytes([bytes[16], bytes[17]]))
    };
    Ok(pairs.iter().map(|pair| (half(&pair[..ENDPOINT]), half(&pair[ENDPOINT..]))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(port: u16) -> Turned {
        (SocketAddr::from(([10, 0, 0, 100], port)), SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 11], 6443)))
    }

    #[test]
    fn what_is_turned_is_these_bytes() {
        let mut bytes = Vec::new();
        write(&BTreeSet::from([turned(0x403b)]), &mut bytes);
        let mut literal = vec![0; 10];
        literal.extend([0xff, 0xff, 10, 0, 0, 100, 0x40, 0x3b, 0xfd, 0]);
        literal.extend([0; 13]);
        literal.extend([11, 0x19, 0x2b]);
        assert_eq!(bytes, literal);
        assert_eq!(read(&bytes), Ok(BTreeSet::from([turned(0x403b)])));
        assert_eq!(read(&bytes[..35]), Err(Malformed::Short));
    }

    #[test]
    fn a_hello_has_room_for_so_many() {
        let all: BTreeSet<Turned> = (0..100).map(turned).collect();
        let mut bytes = vec![0; 8];
        write(&all, &mut bytes);
        assert!(bytes.len() <= ROOM && bytes.len() + 2 * ENDPOINT > ROOM);
        assert_eq!(read(&bytes[8..]).map(|read| read.len()), Ok(MOST));
    }
}
