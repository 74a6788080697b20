//! A Bloom filter over the keys of the winners.
//!
//! `fastbloom` needs no more CPU time than a filter of our own with as many bits, hashes and false
//! positives: 1.5 to 1.9 s for 10 million inserts and 60 million probes at 16 MiB, where ours needed
//! 1.6 to 2.6 s.

use fastbloom::AtomicBloomFilter;

/// Bits per key, before rounding up to a power of two; with [`HASHES`], at most 0.5 % of other keys
/// pass.
const BITS_PER_KEY: u64 = 16;

/// Bits per key of a filter that would be larger than [`LARGE_BITS`] otherwise; at most 3 % pass.
const BITS_PER_KEY_LARGE: u64 = 8;

/// The size of a large filter in bits.
const LARGE_BITS: u64 = 1 << 27;

/// Bits that a key sets.
const HASHES: u32 = 3;

/// A set of hashes with false positives, which several threads fill.
///
/// The upper bits of a hash decide: the engine's hashes are good enough there, also those of
/// consecutive numbers and of times (0.8 % of other keys passed at 13 bits per key).
pub(super) struct Bloom {
    filter: AtomicBloomFilter,
    has_all: bool,
}

impl Bloom {
    pub(super) fn new(keys: u64) -> Self {
        let bits = 8 * Self::bytes_for(keys);
        let filter = AtomicBloomFilter::with_num_bits(bits).hashes(HASHES);
        Bloom { filter, has_all: false }
    }

    /// The set of all hashes.
    pub(super) fn of_all() -> Self {
        Bloom { has_all: true, ..Self::new(0) }
    }

    /// The memory of a filter for some keys.
    pub(super) fn bytes_for(keys: u64) -> usize {
        let bits = |per_key: u64| (keys.max(1) * per_key).next_power_of_two().max(1024);
        let bits = match bits(BITS_PER_KEY) {
            ..=LARGE_BITS => bits(BITS_PER_KEY),
            _ => bits(BITS_PER_KEY_LARGE),
        };
        bits as usize / 8
    }

    pub(super) fn bytes(&self) -> usize {
        self.filter.num_bits() / 8
    }

    pub(super) fn insert(&self, hash: u64) {
        if !self.has_all {
            self.filter.insert_hash(hash);
        }
    }

    pub(super) fn may_contain(&self, hash: u64) -> bool {
        self.has_all || self.filter.contains_hash(hash)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;
    use crate::curate::merge::entries::hash;

    #[test]
    fn a_bloom_filter_contains_what_was_inserted_and_little_else() {
        let texts = |numbers: std::ops::Range<i64>| -> ArrayRef {
            Arc::new(StringViewArray::from_iter_values(numbers.map(|n| format!("Cust{n}"))))
        };
        let times = |numbers: std::ops::Range<i64>| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(numbers.map(|n| n * 3_600_000_000)))
        };
        let numbers = |numbers| -> ArrayRef { Arc::new(Int64Array::from_iter_values(numbers)) };
        let kinds: [&dyn Fn(std::ops::Range<i64>) -> ArrayRef; 3] = [&texts, &times, &numbers];
        for (kind, keys) in kinds.into_iter().enumerate() {
            let hashes = |range| hash(&[keys(range)]).expect("hashes");
            let bloom = Bloom::new(10_000);
            hashes(0..10_000).into_iter().for_each(|hash| bloom.insert(hash));
            assert!(hashes(0..10_000).into_iter().all(|hash| bloom.may_contain(hash)));
            let others = hashes(10_000..110_000);
            let wrong = others.iter().filter(|hash| bloom.may_contain(**hash)).count();
            assert!(wrong < 600, "{wrong} of 100,000, kind {kind}");
        }
    }
}
