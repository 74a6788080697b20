//! A Bloom filter over the keys of the winners.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the Bloom filter per key, before rounding up to a power of two.
pub(super) const BLOOM_BITS: u64 = 8;

/// A set of hashes with false positives.
pub(super) struct Bloom {
    pub(super) words: Vec<AtomicU64>,
}

impl Bloom {
    pub(super) fn new(keys: u64) -> Self {
        let bits = (keys.max(1) * BLOOM_BITS).next_power_of_two().max(1024);
        Bloom { words: (0..bits / 64).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    pub(super) fn probes(&self, hash: u64) -> [(usize, u64); 3] {
        let bits = self.words.len() as u64 * 64 - 1;
        // Some bits of the hash may be weak: it is mixed first (splitmix64).
        let mut mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let step = (mixed >> 32) | 1;
        [0, 1, 2].map(|probe| {
            let bit = mixed.wrapping_add(step.wrapping_mul(probe)) & bits;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    pub(super) fn insert(&self, hash: u64) {
        for (word, bit) in self.probes(hash) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let holds = |(word, bit): (usize, u64)| self.words[word].load(Ordering::Relaxed) & bit != 0;
        self.probes(hash).into_iter().all(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bloom_filter_contains_what_was_inserted_and_little_else() {
        let bloom = Bloom::new(10_000);
        let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..10_000).for_each(|number| bloom.insert(hash(number)));
        assert!((0..10_000).all(|number| bloom.may_contain(hash(number))));
        let wrong = (10_000..20_000).filter(|number| bloom.may_contain(hash(*number)));
        assert!(wrong.count() < 1_500);
    }
}
