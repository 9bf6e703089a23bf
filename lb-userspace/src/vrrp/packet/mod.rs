//! Advertisements as bytes: a checked view of what came, and what an advertisement means, which is also what is sent.
//!
//! ```text
//!  version 2 (RFC 3768 §5.1)                        version 3 (RFC 9568 §5.1)
//!  0       4       8       16      24     31        0       4       8       16      24     31
//! +-------+-------+-------+-------+-------+        +-------+-------+-------+-------+-------+
//! |   2   | type 1| VRID  |priority|count  |        |   3   | type 1| VRID  |priority|count  |
//! +-------+-------+-------+-------+-------+        +-------+-------+-------+-------+-------+
//! |   auth type   |seconds|   checksum    |        |   0   |  centiseconds |   checksum    |
//! +---------------+-------+---------------+        +-------+---------------+---------------+
//! |  addresses, 4 bytes each              |        |  addresses, 4 or 16 bytes each        |
//! +---------------------------------------+        +---------------------------------------+
//! |  password, 8 bytes even without one   |        |  trailer of `hmac`, where configured  |
//! +---------------------------------------+        +---------------------------------------+
//! ```

mod emit;
pub mod hmac;
mod password;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::checksum::{fold, sum};

use super::{Version, Vrid};
pub use emit::{ChecksumForm, Proof, Seal, Unsendable};
pub use password::Password;
pub use view::{AuthType, Malformed, Packet};

/// Number of the protocol in IP headers.
pub const PROTOCOL: u8 = 112;
/// Where advertisements go unless peers are given.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// TTL or hop limit of every advertisement: one that has been forwarded has less.
pub const TTL: u8 = 255;
/// Type of service, or traffic class: network control.
pub const SERVICE_CLASS: u8 = 0xc0;

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The multicast group of this family.
    pub const fn group(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(GROUP_V4),
            Self::V6 => IpAddr::V6(GROUP_V6),
        }
    }

    /// The MAC address of a virtual router (RFC 9568, 7.3).
    pub const fn virtual_mac(self, vrid: Vrid) -> [u8; 6] {
        let kind = match self {
            Self::V4 => 1,
            Self::V6 => 2,
        };
        [0, 0, 0x5e, 0, kind, vrid.0]
    }

    /// Bytes of an address.
    const fn address_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// What a router says of a virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub version: Version,
    pub vrid: Vrid,
    /// 255 owns the addresses, 0 resigns.
    pub priority: u8,
    /// Time to the sender's next advertisement.
    pub interval: Duration,
    pub addresses: Vec<IpAddr>,
}

impl Advertisement {
    pub fn parse(packet: &Packet<'_>) -> Self {
        Self {
            version: packet.version(),
            vrid: packet.vrid(),
            priority: packet.priority(),
            interval: packet.interval(),
            addresses: packet.addresses().collect(),
        }
    }
}

/// The virtual router that a payload speaks of, before anything else is known of it: whom to ask about it.
pub fn vrid(payload: &[u8]) -> Option<Vrid> {
    payload.get(1).copied().map(Vrid)
}

/// Sum of the pseudo-header of RFC 9293 §3.1 and RFC 8200 §8.1; the two families differ only in zeros.
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u32 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    // An IP payload is shorter than 65,536 bytes.
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    address(source) + address(destination) + sum(&length.to_be_bytes()) + sum(&[0, PROTOCOL])
}

/// Whether a sum that includes the checksum field is that of an intact packet.
fn is_intact(sum: u32) -> bool {
    fold(sum) == 0xffff
}
