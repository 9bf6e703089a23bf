//! Sets of addresses that answer "surely not" at once.

use crate::address::Address;

/// Words of [`Filter`].
const FILTER_WORDS: usize = 64;

/// A set of addresses that answers "surely not" with one load: 4096 bits, one for each hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Filter([u64; FILTER_WORDS]);

impl Default for Filter {
    fn default() -> Self {
        Self::empty()
    }
}

impl Filter {
    pub const fn empty() -> Self {
        Self([0; FILTER_WORDS])
    }

    /// Says of nothing that it surely is not there.
    pub const fn full() -> Self {
        Self([u64::MAX; FILTER_WORDS])
    }

    pub fn insert<A: Address>(&mut self, address: A) {
        let (word, bit) = Self::place(address);
        self.0[word] |= bit;
    }

    #[inline(always)]
    pub fn may_hold<A: Address>(&self, address: A) -> bool {
        let (word, bit) = Self::place(address);
        self.0[word] & bit != 0
    }

    pub fn insert_mac(&mut self, mac: [u8; 6]) {
        let (word, bit) = Self::place_of(Self::digest(mac));
        self.0[word] |= bit;
    }

    #[inline(always)]
    pub fn may_hold_mac(&self, mac: [u8; 6]) -> bool {
        let (word, bit) = Self::place_of(Self::digest(mac));
        self.0[word] & bit != 0
    }

    #[inline(always)]
    fn digest([a, b, c, d, e, f]: [u8; 6]) -> u32 {
        u32::from_ne_bytes([c, d, e, f]) ^ u32::from(u16::from_ne_bytes([a, b]))
    }

    #[inline(always)]
    fn place<A: Address>(address: A) -> (usize, u64) {
        Self::place_of(address.digest())
    }

    #[inline(always)]
    fn place_of(digest: u32) -> (usize, u64) {
        // Fibonacci hashing: the upper 12 bits.
        let hash = digest.wrapping_mul(0x9e37_79b1) >> 20;
        ((hash >> 6) as usize & (FILTER_WORDS - 1), 1 << (hash & 63))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn a_filter_knows_what_was_put_in_and_little_else() {
        let mut filter = Filter::empty();
        let vip = V4([192, 168, 2, 100]);
        assert!(!filter.may_hold(vip));
        filter.insert(vip);
        filter.insert(V6([0xfd; 16]));
        assert!(filter.may_hold(vip));
        assert!(filter.may_hold(V6([0xfd; 16])));
        let others = (0..=255).filter(|last| *last != 100 && filter.may_hold(V4([192, 168, 2, *last]))).count();
        assert!(others <= 2, "{others} neighbours of the VIP share its bit");
    }
}
