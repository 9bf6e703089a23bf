//! The Internet checksum, whole (RFC 1071) and by difference (RFC 1624, equation 3).
//!
//! Words are taken in the byte order of the host: ones-complement addition does not care, as long as the checksum
//! field itself is read and written the same way.

/// What a change of header fields does to the checksum that covers them: the folded sum of `~old + new` over all
/// changed 16-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const fn new() -> Self {
        Self(0)
    }

    /// A change that was folded before.
    #[inline(always)]
    pub const fn resume(folded: u16) -> Self {
        Self(folded as u64)
    }

    /// Adds the change of one 16-bit word.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new)))
    }

    /// Adds the change of two 16-bit words that stand side by side: their carries are folded in at the end (RFC 1071 §2).
    #[inline(always)]
    #[must_use]
    pub const fn pair(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Adds another change.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The change as one word, to be kept and applied to many packets.
    #[inline(always)]
    pub fn folded(self) -> u16 {
        // 33 bits, then 18, then 16 and hardly ever one more, which `fold` deals with.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        fold(((sum & 0xffff) + (sum >> 16)) as u32)
    }
}

/// Applies a folded [`Delta`] to a checksum field: `HC' = ~(~HC + ~m + m')`.
#[inline(always)]
#[must_use]
pub fn adjust(checksum: [u8; 2], delta: u16) -> [u8; 2] {
    let sum = u32::from(!u16::from_ne_bytes(checksum)) + u32::from(delta);
    // Two 16-bit numbers carry once at most.
    (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_ne_bytes()
}

/// Brings a sum of fewer than 65,536 words into 16 bits.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sum of the 16-bit words that stand side by side in at most a thousand longer ones, unfolded.
#[inline(always)]
pub fn sum_pairs<const N: usize>(pairs: [u32; N]) -> u32 {
    let sum = pairs.into_iter().fold(0, |sum, pair| sum + u64::from(pair));
    (sum & 0xffff) as u32 + (sum >> 16) as u32
}

/// Sum of the 16-bit words of `bytes`, unfolded; an odd last byte is padded with zero (RFC 1071 §4.1).
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for pair in bytes.chunks(2) {
        let word = match *pair {
            [first, second] => [first, second],
            [last] => [last, 0],
            _ => [0, 0],
        };
        sum += u32::from(u16::from_ne_bytes(word));
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::{Address as _, V6};

    fn checksum(bytes: &[u8]) -> [u8; 2] {
        (!fold(sum(bytes))).to_ne_bytes()
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn pairs_are_summed_as_their_words_are() {
        for words in [[0; 4], [u32::MAX; 4], [0x0001_f203, 0xf4f5_f6f7, 1 << 31, 7]] {
            let bytes: std::vec::Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(fold(sum_pairs(words)), fold(sum(&bytes)), "{words:x?}");
        }
    }

    #[test]
    fn rfc_1624_section_4_example() {
        // The case in which RFC 1141's equation fails: 0xdd2f, 0x5555 becoming 0x3285, gives 0x0000.
        let delta = Delta::new().word([0x55, 0x55], [0x32, 0x85]).folded();
        assert_eq!(adjust([0xdd, 0x2f], delta), [0x00, 0x00]);
    }

    #[test]
    fn an_ipv4_header_loses_a_hop() {
        let mut header = [
            0x45, 0xc0, 0x00, 0x28, 0x00, 0x02, 0x00, 0x00, 0xff, 0x70, 0x17, 0xdf, 0xc0, 0xa8, 0x02, 0x0a, 0xe0, 0x00,
            0x00, 0x12,
        ];
        assert_eq!(fold(sum(&header)), 0xffff);
        let delta = Delta::new().word([0xff, 0x70], [0xfe, 0x70]).folded();
        header[8] = 0xfe;
        let changed = adjust([header[10], header[11]], delta);
        header[10..12].copy_from_slice(&changed);
        assert_eq!(fold(sum(&header)), 0xffff);
    }

    proptest! {
        #[test]
        fn a_delta_equals_a_new_checksum(old: [u8; 16], new: [u8; 16], rest in prop::collection::vec(any::<u8>(), 1..64)) {
            let message = |address: &[u8]| [address, &rest].concat();
            let adjusted = adjust(checksum(&message(&old)), V6(old).delta(Delta::new(), &V6(new)).folded());
            let fresh = checksum(&message(&new));
            // Both zeros mean the same (RFC 1624 §3), and only an all-zero message has the one that is not 0xffff.
            let same = |bytes: [u8; 2]| if bytes == [0xff, 0xff] { [0, 0] } else { bytes };
            prop_assert_eq!(same(adjusted), same(fresh));
        }
    }
}
