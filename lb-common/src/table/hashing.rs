//! The keyed hash that says where in a table a connection is.

use super::WAYS;
use crate::{address::Address, flow::Key};

/// Words of the secret: one for each word of the longest key, and one that the ports of a key are multiplied by.
pub const SECRET_WORDS: usize = 10;

/// What places depend on: a secret, so that nobody outside can aim at one set, and the size of the table.
///
/// It goes with the table: a table that outlives its daemon keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hashing {
    secret: [u32; SECRET_WORDS],
    /// Odd.
    factor: u64,
    sets: u32,
    reserved: u32,
}

/// Where a key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub set: u32,
    /// The way that it takes if it can.
    pub way: u32,
    /// Tells it from the other keys in its set. Never 0.
    pub tag: u32,
    /// The set that it goes to if its own is full; the same one in tables of hardly any.
    pub spare: u32,
}

impl Hashing {
    pub const fn new(secret: [u32; SECRET_WORDS], factor: u64, sets: u32) -> Self {
        Self { secret, factor: factor | 1, sets, reserved: 0 }
    }

    /// Sets of the table; 0 before it was made.
    pub const fn sets(&self) -> u32 {
        self.sets
    }

    /// The sum of products of two keyed words each is NH (Black and others, UMAC, CRYPTO 1999 §4): for any two keys that somebody
    /// may choose who does not know the secret, the chance of one sum is at most 2^-32. The rest spreads it over sets, ways and tags.
    #[inline(always)]
    pub fn place<A: Address>(&self, key: &Key<A>) -> Place {
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9] = self.secret;
        let ([a, b], [c, d]) = (key.source_port, key.destination_port);
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let products = A::products(&key.source, &key.destination, &[s0, s1, s2, s3, s4, s5, s6, s7]);
        let sum = products.wrapping_add(product(ports.wrapping_add(s8), s9));
        let spread = (sum ^ sum >> 32).wrapping_mul(self.factor);
        let low = spread as u32;
        Place {
            set: (((spread >> 32) * u64::from(self.sets)) >> 32) as u32,
            way: low >> 28 & (WAYS as u32 - 1),
            // The lowest bit has seen the least of the key.
            tag: low | 1,
            spare: ((u64::from(low) * u64::from(self.sets)) >> 32) as u32,
        }
    }
}

/// Two words multiplied in full.
#[inline(always)]
pub(crate) const fn product(one: u32, other: u32) -> u64 {
    one as u64 * other as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};
    use std::{vec, vec::Vec};

    fn hashings() -> impl Iterator<Item = Hashing> {
        // Any numbers will do; splitmix64.
        let mut state = 1_u64;
        let mut next = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ bits >> 31
        };
        (0..40).map(move |_| Hashing::new([(); SECRET_WORDS].map(|()| next() as u32), next(), 1000))
    }

    /// Keys as they are in practice differ little: by ports that follow each other, by the last byte of an address.
    fn keys<A: Address>(address: impl Fn(u32) -> A) -> impl Iterator<Item = Key<A>> {
        let destination = address(0xffff);
        (0..12_000_u32).map(move |n| Key {
            source: address(n % 60),
            destination,
            source_port: (1024 + (n / 60) as u16).to_be_bytes(),
            destination_port: 6443_u16.to_be_bytes(),
        })
    }

    fn spreads<A: Address>(address: impl Fn(u32) -> A + Copy) {
        let mut worst = 0;
        for hashing in hashings() {
            let (mut sets, mut ways, mut tags) = (vec![0_u32; 1000], vec![0_u32; WAYS], vec![]);
            for key in keys(address) {
                let place = hashing.place(&key);
                sets[place.set as usize] += 1;
                ways[place.way as usize] += 1;
                tags.push(place.tag);
            }
            // Twelve a set on average. Chance alone gives more than 30 to one set in 10^5 tables.
            worst = worst.max(*sets.iter().max().unwrap());
            assert!(ways.iter().all(|count| (500..1000).contains(count)), "{ways:?}");
            tags.sort_unstable();
            tags.dedup();
            assert!(tags.len() > 11_980, "{} tags for 12,000 keys", tags.len());
        }
        assert!(worst <= 34, "{worst} keys in one set");
    }

    #[test]
    fn keys_are_spread() {
        spreads(|n| V4((0x0a40_0000 | n).to_be_bytes()));
        spreads(|n| {
            let mut address = [0xfd, 0, 0, 0, 0, 0, 0, 0x64, 0, 0, 0, 0, 0, 0, 0, 0];
            address[12..].copy_from_slice(&n.to_be_bytes());
            V6(address)
        });
        // The same, in the upper half of the address.
        spreads(|n| {
            let mut address = [0; 16];
            address[2..6].copy_from_slice(&n.to_be_bytes());
            V6(address)
        });
    }

    /// What collides under one secret does not under another: nobody can collect such keys beforehand.
    #[test]
    fn another_secret_spreads_differently() {
        let [one, other] = [0, 1].map(|n| hashings().nth(n).unwrap());
        let address = |n: u32| V4((0x0a40_0000 | n).to_be_bytes());
        let together: Vec<_> = keys(address).filter(|key| one.place(key).set == 7).collect();
        assert!(together.len() > 3);
        let mut sets: Vec<_> = together.iter().map(|key| other.place(key).set).collect();
        sets.sort_unstable();
        sets.dedup();
        assert!(sets.len() + 2 >= together.len(), "{} sets for {} keys", sets.len(), together.len());
    }
}
