//! From what an advertisement means to its bytes, with the checksum and the proof of who sent it.

use std::{net::IpAddr, time::Duration};

use lb_common::checksum::{fold, sum};
use thiserror::Error;

use super::{
    Advertisement, Family, Password,
    hmac::{Key, Stamp},
    pseudo_header,
};
use crate::vrrp::{Version, Vrid};

/// What the checksum of version 3 over IPv4 covers. In version 2 there is never a pseudo-header, over IPv6 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumForm {
    /// Message and pseudo-header, as keepalived and FRR do unless told otherwise.
    #[default]
    PseudoHeader,
    /// The message only, as RFC 9568 §5.2.8 says.
    Message,
}

/// What shows the receiver that the sender belongs to the virtual router.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    None,
    /// Version 2 only.
    Password(&'a Password),
    Hmac(&'a Key, Stamp),
}

/// What a packet needs besides its meaning.
#[derive(Clone, Copy, Debug)]
pub struct Seal<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub checksum: ChecksumForm,
    pub proof: Proof<'a>,
}

/// Why an advertisement cannot be put into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsendable {
    #[error("the VRID 0 does not exist")]
    Vrid,
    #[error("version {0} cannot express an interval of {1:?}")]
    Interval(Version, Duration),
    #[error("{0} addresses do not fit into one packet, at most 255")]
    Addresses(usize),
    #[error("source, destination and addresses are not all of one family")]
    Families,
    #[error("version 2 is for IPv4 only")]
    Ipv6InVersion2,
    #[error("version 3 has no passwords")]
    PasswordInVersion3,
}

impl Advertisement {
    /// Writes the packet (what follows the IP header) into `out`, in place of what was there.
    ///
    /// # Errors
    /// What the version cannot express; `out` is then of no use.
    pub fn emit(&self, out: &mut Vec<u8>, seal: &Seal<'_>) -> Result<(), Unsendable> {
        let family = Family::of(seal.source);
        let all = self.addresses.iter().copied().chain([seal.destination]);
        if all.map(Family::of).any(|other| other != family) {
            return Err(Unsendable::Families);
        }
        if self.vrid == Vrid(0) {
            return Err(Unsendable::Vrid);
        }
        if self.version == Version::V2 && family == Family::V6 {
            return Err(Unsendable::Ipv6InVersion2);
        }
        let count = u8::try_from(self.addresses.len()).map_err(|_| Unsendable::Addresses(self.addresses.len()))?;

        let [auth_type, interval] = self.timing(seal.proof)?;
        out.clear();
        out.extend([self.version.number() << 4 | 1, self.vrid.0, self.priority, count, auth_type, interval, 0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
        if self.version == Version::V2 {
            out.extend(match seal.proof {
                Proof::Password(password) => *password.bytes(),
                Proof::None | Proof::Hmac(..) => [0; Password::LEN],
            });
        }
        self.finish(out, seal, family);
        Ok(())
    }

    /// The two bytes that say how often, and in version 2 how it is authenticated.
    fn timing(&self, proof: Proof<'_>) -> Result<[u8; 2], Unsendable> {
        let unsendable = Unsendable::Interval(self.version, self.interval);
        match self.version {
            Version::V2 => {
                let seconds = u8::try_from(self.interval.as_secs()).map_err(|_| unsendable)?;
                if seconds == 0 || self.interval.subsec_nanos() != 0 {
                    return Err(unsendable);
                }
                Ok([u8::from(matches!(proof, Proof::Password(_))), seconds])
            }
            Version::V3 if matches!(proof, Proof::Password(_)) => Err(Unsendable::PasswordInVersion3),
            Version::V3 => {
                const CENTISECOND: u128 = 10_000_000;
                let nanos = self.interval.as_nanos();
                match u16::try_from(nanos / CENTISECOND) {
                    Ok(centiseconds @ 1..=0xfff) if nanos.is_multiple_of(CENTISECOND) => Ok(centiseconds.to_be_bytes()),
                    _ => Err(unsendable),
                }
            }
        }
    }

    /// Checksum and trailer. The HMAC takes the checksum as zero and does not cover it, so either may come first; over
    /// IPv6 the checksum covers the trailer, since there the kernels of others compute it.
    fn finish(&self, out: &mut Vec<u8>, seal: &Seal<'_>, family: Family) {
        let message = out.len();
        if let Proof::Hmac(key, stamp) = seal.proof {
            let trailer = key.seal(out, seal.source, stamp);
            out.extend(trailer);
        }
        let covered = if family == Family::V6 { out.len() } else { message };
        let pseudo = match (self.version, family, seal.checksum) {
            (Version::V2, ..) | (Version::V3, Family::V4, ChecksumForm::Message) => 0,
            _ => pseudo_header(seal.source, seal.destination, covered),
        };
        let checksum = !fold(sum(&out[..covered]) + pseudo);
        out[6..8].copy_from_slice(&checksum.to_ne_bytes());
    }
}
