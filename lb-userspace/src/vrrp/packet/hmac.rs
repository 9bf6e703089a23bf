//! `auth_hmac`, as in keepalived from 2.4.2: a trailer that proves who sent a packet, and when.
//!
//! ```text
//!  0       8       16      24     31
//! +-------+-------+-------+-------+
//! |type 1 |key id |       0       |
//! +-------+-------+-------+-------+
//! |  seconds since 1970           |
//! +---------------+---------------+
//! | 1/65536 second|    counter    |
//! +---------------+---------------+
//! |  first 16 bytes of an         |
//! |  HMAC-SHA256                  |
//! +-------------------------------+
//! ```
//! The HMAC is made over the family (4 or 6), the version, the VRID, 0 and the source padded to 16 bytes, then the
//! message with its checksum taken as zero, the first 12 bytes of the trailer, and 16 bytes of zero.

use std::{fmt, net::IpAddr, time::Duration};

use ring::hmac;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

/// Where the checksum is in every packet.
const CHECKSUM: std::ops::Range<usize> = 6..8;
/// Bytes of a trailer.
pub const TRAILER: usize = 28;
const HMAC_TYPE: u8 = 1;
/// Bytes of a trailer before the HMAC.
const PREFIX: usize = 12;

/// A shared secret, and the number by which a trailer names it.
#[derive(Clone)]
pub struct Key {
    id: u8,
    key: hmac::Key,
}

/// The secret is too short to be one, or longer than keepalived takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a key has {min} to {max} bytes, this one {0}", min = Key::MIN, max = Key::MAX)]
pub struct KeyLength(pub usize);

impl Key {
    pub const MIN: usize = 32;
    pub const MAX: usize = 64;

    pub fn new(id: u8, secret: &[u8]) -> Result<Self, KeyLength> {
        if !(Self::MIN..=Self::MAX).contains(&secret.len()) {
            return Err(KeyLength(secret.len()));
        }
        Ok(Self { id, key: hmac::Key::new(hmac::HMAC_SHA256, secret) })
    }

    pub fn id(&self) -> u8 {
        self.id
    }

    /// The trailer for a message, which may hold any checksum.
    pub(super) fn seal(&self, message: &[u8], source: IpAddr, stamp: Stamp) -> [u8; TRAILER] {
        let mut trailer = [0; TRAILER];
        trailer[0] = HMAC_TYPE;
        trailer[1] = self.id;
        trailer[4..PREFIX].copy_from_slice(&stamp.0.to_be_bytes());
        let tag = self.tag(message, source, &trailer[..PREFIX]);
        trailer[PREFIX..].copy_from_slice(&tag);
        trailer
    }

    /// Whether the trailer was made with this key for this message of this source.
    pub fn verifies(&self, message: &[u8], source: IpAddr, trailer: &Trailer<'_>) -> bool {
        let tag = self.tag(message, source, &trailer.0[..PREFIX]);
        tag.ct_eq(&trailer.0[PREFIX..]).into()
    }

    fn tag(&self, message: &[u8], source: IpAddr, prefix: &[u8]) -> [u8; TRAILER - PREFIX] {
        let (family, address) = match source {
            IpAddr::V4(address) => (4, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (6, address.to_bits()),
        };
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[family, message[0] >> 4, message[1], 0]);
        context.update(&address.to_be_bytes());
        context.update(&message[..CHECKSUM.start]);
        context.update(&[0; CHECKSUM.end - CHECKSUM.start]);
        context.update(&message[CHECKSUM.end..]);
        context.update(prefix);
        context.update(&[0; TRAILER - PREFIX]);
        let whole = context.sign();
        *whole.as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({}, …)", self.id)
    }
}

/// What follows a message that its sender has sealed.
#[derive(Clone, Copy, Debug)]
pub struct Trailer<'a>(&'a [u8; TRAILER]);

/// Bytes after a message that are neither a trailer nor padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("what follows the message is no trailer of a kind that is known")]
pub struct UnknownTrailer;

impl<'a> Trailer<'a> {
    /// Looks at what follows a message: nothing or padding, a trailer, or neither.
    pub fn find(rest: &'a [u8]) -> Result<Option<Self>, UnknownTrailer> {
        match rest.first_chunk::<TRAILER>() {
            Some(trailer @ [HMAC_TYPE, _, 0, 0, ..]) => Ok(Some(Self(trailer))),
            _ if rest.iter().all(|byte| *byte == 0) => Ok(None),
            _ => Err(UnknownTrailer),
        }
    }

    pub fn key_id(&self) -> u8 {
        self.0[1]
    }

    pub fn stamp(&self) -> Stamp {
        Stamp(u64::from_be_bytes(*self.0[4..].first_chunk().expect("a trailer is longer than that")))
    }
}

/// When a packet was sealed, in 1/65536 seconds since 1970 and a counter; ordered as serial numbers (RFC 1982), so that
/// it may wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// `subseconds` are 65536ths of a second.
    pub fn new(seconds: u32, subseconds: u16, counter: u16) -> Self {
        Self(u64::from(seconds) << 32 | u64::from(subseconds) << 16 | u64::from(counter))
    }

    /// The first stamp of a moment, given as the time since 1970.
    pub fn at(wall: Duration) -> Self {
        let subseconds = (u64::from(wall.subsec_nanos()) << 16) / 1_000_000_000;
        // Wraps in 2106, as the field does.
        Self(wall.as_secs() << 32 | subseconds << 16)
    }

    pub fn is_after(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() > 0
    }

    /// By how many seconds this is ahead of a moment; negative if it is behind.
    pub fn ahead_of(self, wall: Duration) -> i32 {
        ((self.0 >> 32) as u32).wrapping_sub(wall.as_secs() as u32).cast_signed()
    }
}

/// The stamps of one sender: each after the one before, though the clock may stand still or step back a little.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    last: Option<Stamp>,
}

impl Sequence {
    /// The stamp of the next packet, given the time since 1970 and how far a receiver lets stamps be off.
    ///
    /// A clock that has stepped back further than that is followed: receivers would refuse the old count anyway.
    pub fn next(&mut self, wall: Duration, window: Duration) -> Stamp {
        let now = Stamp::at(wall);
        let stamp = match self.last {
            Some(last) if !now.is_after(last) && !is_beyond(last, wall, window) => Stamp(last.0.wrapping_add(1)),
            _ => now,
        };
        self.last = Some(stamp);
        stamp
    }
}

/// How far a stamp may be off: as long as it takes to believe a master dead, but no less than clocks may differ.
pub fn window(interval: Duration) -> Duration {
    (interval * 3).max(Duration::from_secs(5))
}

/// Whether a stamp is further off than `window`, in whole seconds as keepalived counts.
pub fn is_beyond(stamp: Stamp, wall: Duration, window: Duration) -> bool {
    u64::from(stamp.ahead_of(wall).unsigned_abs()) > window.as_secs()
}
