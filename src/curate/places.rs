//! The places of rows among the rows of all inputs: the order of files and rows as one number.

use std::sync::Arc;

use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::Result;

/// Per input the number of rows before it.
#[derive(Clone, Debug)]
pub(crate) struct Places(Vec<u64>);

impl Places {
    /// The places in inputs of so many row ordinals.
    pub(crate) fn new(ordinals: impl Iterator<Item = u64>) -> Self {
        let before = ordinals.scan(0, |next, count| {
            let first = *next;
            *next += count;
            Some(first)
        });
        Places(before.collect())
    }

    /// The place of an input's row ordinal, from 1.
    pub(crate) fn of(&self, file: usize, ordinal: usize) -> u64 {
        self.0[file] + ordinal as u64 + 1
    }
}

/// The places of a bucket of [`ByPlace`].
const BUCKET_PLACES: u64 = 1 << 18;

/// Numbers of rows by their places, each with a tag from 0 to 3.
#[derive(Debug, Default)]
pub(crate) struct ByPlace {
    /// Per so many places those of rows that have a number, four times as large, plus the tag; and the number.
    buckets: Vec<Vec<(u64, i64)>>,
}

impl ByPlace {
    /// Adds the number of the row at a place, and its tag.
    pub(super) fn push(&mut self, place: u64, (number, tag): (i64, u8)) {
        let bucket = (place / BUCKET_PLACES) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize_with(bucket + 1, Vec::new);
        }
        self.buckets[bucket].push((place * 4 + u64::from(tag), number));
    }

    pub(super) fn add(&mut self, other: ByPlace) {
        if other.buckets.len() > self.buckets.len() {
            self.buckets.resize_with(other.buckets.len(), Vec::new);
        }
        for (all, numbers) in self.buckets.iter_mut().zip(other.buckets) {
            if all.is_empty() {
                *all = numbers;
            } else {
                all.reserve_exact(numbers.len());
                all.extend(numbers);
            }
        }
    }

    /// Their memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.iter().map(|numbers| numbers.capacity() * size_of::<(u64, i64)>()).sum()
    }

    /// The same, sorted to be looked up.
    pub(super) async fn sorted(self, threads: usize) -> Result<Self> {
        let buckets = self.buckets.into_iter().enumerate().collect();
        let buckets = Arc::new(Work::new(buckets));
        let tasks = (0..threads).map(|_| {
            let buckets = Arc::clone(&buckets);
            spawn(async move {
                let mut sorted = Vec::new();
                while let Some((at, mut numbers)) = buckets.next() {
                    numbers.sort_unstable();
                    numbers.shrink_to_fit();
                    sorted.push((at, numbers));
                }
                Ok(sorted)
            })
        });
        let mut sorted: Vec<_> = join_all(tasks).await?.into_iter().flatten().collect();
        sorted.sort_unstable_by_key(|(at, _)| *at);
        Ok(ByPlace { buckets: sorted.into_iter().map(|(_, numbers)| numbers).collect() })
    }

    /// Whether no row has a number.
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.iter().all(Vec::is_empty)
    }

    /// The number of the row at a place, and its tag. Rows mostly come in the order of their places: the search begins at
    /// `from`, near that of the row before.
    pub(super) fn of(&self, place: u64, from: &mut usize) -> Option<(i64, u8)> {
        let numbers = self.buckets.get((place / BUCKET_PLACES) as usize)?;
        let is_before = |(of, _): &(u64, i64)| of / 4 < place;
        if *from > numbers.len() || *from > 0 && !is_before(&numbers[*from - 1]) {
            *from = 0;
        }
        let rest = &numbers[*from..];
        let mut near = 1;
        while rest.get(near).is_some_and(is_before) {
            near *= 2;
        }
        *from += rest[..rest.len().min(near)].partition_point(is_before);
        let (of, number) = numbers.get(*from).filter(|(of, _)| of / 4 == place)?;
        Some((*number, (of % 4) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_those_of_a_search_through_all(
            of in prop::collection::btree_map(0..200u64, 0..4u8, 0..100),
            spread in prop::sample::select(vec![1, BUCKET_PLACES / 3, 5 * BUCKET_PLACES]),
            places in prop::collection::vec(0..210u64, 0..100),
            is_sorted in any::<bool>(),
        ) {
            let number = |place: u64| of.get(&place).map(|tag| (place as i64 * 7 - 3, *tag));
            let mut parts = [ByPlace::default(), ByPlace::default()];
            for place in of.keys().rev() {
                let number = number(*place).expect("a number");
                parts[(*place % 2) as usize].push(place * spread, number);
            }
            let [mut numbers, other] = parts;
            numbers.add(other);
            prop_assert_eq!(numbers.is_empty(), of.is_empty());
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let numbers = runtime.block_on(numbers.sorted(2)).expect("sorted");
            let mut places = places;
            if is_sorted {
                places.sort_unstable();
            }
            let mut from = 0;
            for place in places {
                prop_assert_eq!(numbers.of(place * spread, &mut from), number(place));
            }
        }
    }
}
