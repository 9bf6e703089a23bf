//! A received packet whose length has been checked against its own address count, field by field.

use std::{net::IpAddr, time::Duration};

use lb_common::checksum::sum;
use thiserror::Error;

use super::{ChecksumForm, Family, hmac::TRAILER, is_intact, pseudo_header};
use crate::vrrp::{Version, Vrid};

/// Bytes before the addresses.
pub(super) const HEADER: usize = 8;
/// Bytes after the addresses in version 2, whether or not there is a password.
pub(super) const PASSWORD: usize = 8;

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    #[error("{0} bytes are too few for what the header announces")]
    Truncated(usize),
    #[error("there is no version {0}")]
    Version(u8),
}

/// How a packet of version 2 is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthType {
    None,
    Password,
    /// IPsec authentication header, which RFC 3768 took out.
    Ah,
    Other(u8),
}

/// A packet that is as long as it says, and of a version that exists.
///
/// More bytes than that are allowed: the padding of a short Ethernet frame, or a trailer.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Header, addresses and in version 2 the password.
    message: &'a [u8],
    rest: &'a [u8],
    version: Version,
    family: Family,
}

impl<'a> Packet<'a> {
    /// Looks at the payload of an IP packet.
    ///
    /// # Errors
    /// [`Malformed::Truncated`] before [`Malformed::Version`].
    pub fn new(payload: &'a [u8], family: Family) -> Result<Self, Malformed> {
        let truncated = Malformed::Truncated(payload.len());
        let header = payload.get(..HEADER).ok_or(truncated)?;
        let version = match header[0] >> 4 {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(Malformed::Version(other)),
        };
        let password = if version == Version::V2 { PASSWORD } else { 0 };
        let length = HEADER + usize::from(header[3]) * family.address_len() + password;
        let (message, rest) = payload.split_at_checked(length).ok_or(truncated)?;
        Ok(Self { message, rest, version, family })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// 1 is an advertisement, and nothing else was ever defined.
    pub fn packet_type(&self) -> u8 {
        self.message[0] & 15
    }

    pub fn vrid(&self) -> Vrid {
        Vrid(self.message[1])
    }

    pub fn priority(&self) -> u8 {
        self.message[2]
    }

    /// Time to the next advertisement; zero makes no sense but can be sent.
    pub fn interval(&self) -> Duration {
        match self.version {
            Version::V2 => Duration::from_secs(self.message[5].into()),
            Version::V3 => {
                let centiseconds = u16::from_be_bytes([self.message[4] & 15, self.message[5]]);
                Duration::from_millis(u64::from(centiseconds) * 10)
            }
        }
    }

    /// `None` in version 3, which has no such field.
    pub fn auth_type(&self) -> Option<AuthType> {
        (self.version == Version::V2).then(|| match self.message[4] {
            0 => AuthType::None,
            1 => AuthType::Password,
            2 => AuthType::Ah,
            other => AuthType::Other(other),
        })
    }

    /// The bytes where version 2 has its password.
    pub fn password(&self) -> Option<[u8; PASSWORD]> {
        (self.version == Version::V2).then(|| *self.message.last_chunk().expect("version 2 ends with it"))
    }

    pub fn addresses(&self) -> impl ExactSizeIterator<Item = IpAddr> + use<'a> {
        let length = self.family.address_len();
        let end = HEADER + usize::from(self.message[3]) * length;
        self.message[HEADER..end].chunks_exact(length).map(|bytes| match *bytes {
            [a, b, c, d] => IpAddr::from([a, b, c, d]),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("chunks are of 4 or 16 bytes")),
        })
    }

    /// What the checksum of version 2 and the HMAC cover.
    pub fn message(&self) -> &'a [u8] {
        self.message
    }

    /// What follows the message.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Which way the checksum is right, if any.
    ///
    /// Over IPv4 keepalived and FRR include a pseudo-header in version 3; RFC 9568 §5.2.8 does not. Over IPv6 the
    /// sending kernel writes the checksum of all that it sends, and so covers a trailer too.
    pub fn checksum(&self, source: IpAddr, destination: IpAddr) -> Option<ChecksumForm> {
        let message = sum(self.message);
        let with_pseudo_header = || is_intact(message + pseudo_header(source, destination, self.message.len()));
        let with_trailer = || {
            let length = self.message.len() + TRAILER;
            let trailer = self.rest.get(..TRAILER);
            trailer
                .is_some_and(|trailer| is_intact(message + sum(trailer) + pseudo_header(source, destination, length)))
        };
        match (self.version, self.family) {
            (Version::V2, _) => is_intact(message).then_some(ChecksumForm::Message),
            (Version::V3, Family::V4) if is_intact(message) => Some(ChecksumForm::Message),
            (Version::V3, Family::V4) => with_pseudo_header().then_some(ChecksumForm::PseudoHeader),
            (Version::V3, Family::V6) => (with_pseudo_header() || with_trailer()).then_some(ChecksumForm::PseudoHeader),
        }
    }
}
