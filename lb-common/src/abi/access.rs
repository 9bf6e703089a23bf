//! Who may use which virtual server.

use super::ServiceId;
use crate::address::Address;

/// Who asks for a virtual server, or a range of them: the data of a key in a trie of prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Source {
    /// The virtual server's number, as the daemon counts.
    service: u32,
    /// IPv4 as `::ffff:a.b.c.d`.
    address: [u8; 16],
}

impl Source {
    /// Bits of a key whose every bit counts.
    pub const BITS: u32 = 8 * size_of::<Self>() as u32;
    /// Those of the virtual server alone.
    pub const SERVICE_BITS: u32 = u32::BITS;

    #[inline(always)]
    pub const fn new(service: ServiceId, address: [u8; 16]) -> Self {
        Self { service: service.0, address }
    }
}

/// A prefix of [`Source`]: a virtual server and, unless it is about everybody, a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    bits: u32,
    source: Source,
}

impl Range {
    /// Everybody who asks for the virtual server and is in no other range.
    pub const fn everybody(service: ServiceId) -> Self {
        Self { bits: Source::SERVICE_BITS, source: Source::new(service, [0; 16]) }
    }

    /// Addresses that have the first `length` bits of this one; the others are zero. Bits of an IPv4 address are counted from its own
    /// first one.
    pub fn new<A: Address>(service: ServiceId, network: A, length: u32) -> Self {
        let skipped = u8::BITS * (16 - size_of::<A>() as u32);
        Self { bits: Source::SERVICE_BITS + skipped + length, source: Source::new(service, network.mapped()) }
    }

    pub const fn bits(&self) -> u32 {
        self.bits
    }

    pub const fn source(&self) -> Source {
        self.source
    }

    /// Whether a source is in it.
    pub fn holds(&self, source: &Source) -> bool {
        let differing = u128::from_be_bytes(self.source.address) ^ u128::from_be_bytes(source.address);
        self.source.service == source.service && differing.leading_zeros() + Source::SERVICE_BITS >= self.bits
    }
}

/// Whether a range of sources may use a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Access(u32);

impl Access {
    pub const ALLOWED: Self = Self(0);
    pub const DENIED: Self = Self(1);

    #[inline(always)]
    pub const fn is_denied(self) -> bool {
        self.0 == Self::DENIED.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn a_range_holds_what_begins_as_it_does() {
        let source = |service, address| Source::new(ServiceId(service), address);
        let [a, b] = [V4([10, 1, 255, 255]).mapped(), V4([10, 2, 0, 0]).mapped()];
        let range = Range::new(ServiceId(3), V4([10, 1, 0, 0]), 16);
        assert_eq!(
            (range.holds(&source(3, a)), range.holds(&source(3, b)), range.holds(&source(4, a))),
            (true, false, false)
        );
        assert!(Range::new(ServiceId(3), V4([10, 0, 0, 0]), 14).holds(&source(3, b)));
        let whole = Range::new(ServiceId(3), V4([0; 4]), 0);
        assert!(whole.holds(&source(3, b)) && !whole.holds(&source(3, [0xfd; 16])) && !whole.holds(&source(4, b)));
        let one = Range::new(ServiceId(3), V6([0xfd; 16]), 128);
        assert_eq!(one.bits(), Source::BITS);
        assert!(one.holds(&source(3, [0xfd; 16])) && !one.holds(&source(3, [0xfc; 16])));
        let everybody = Range::everybody(ServiceId(3));
        assert!(everybody.bits() < whole.bits());
        assert!(
            everybody.holds(&source(3, a))
                && everybody.holds(&source(3, [0xfd; 16]))
                && !everybody.holds(&source(4, a))
        );
    }
}
