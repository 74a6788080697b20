//! The columns of a table whose rows can end and stay ([`Keep::own_columns`]): the last ones of the table. They say
//! when a row holds and what has ended it (`keep = "history"`), or whether and when its key was deleted (`keep_deleted`).

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, TimeUnit};

use crate::changes::BEFORE_ALL;
use crate::config::{DELETED, DELETED_AT, ENDED_BY, IS_CURRENT, VALID_TO};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::Result;
use crate::table::row_end::{Cause, RowEnd};

/// The places of a bucket of [`RowEnds`].
const BUCKET_PLACES: u64 = 1 << 18;

/// When rows end, by their places among the rows of all inputs. A row without an entry has no end yet.
#[derive(Debug, Default)]
pub(crate) struct RowEnds {
    /// Per so many places those of rows that end, four times as large, plus the number of the cause; and when.
    buckets: Vec<Vec<(u64, i64)>>,
}

impl RowEnds {
    /// Adds the end of the row at a place.
    pub(super) fn push(&mut self, place: u64, end: RowEnd) {
        let bucket = (place / BUCKET_PLACES) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize_with(bucket + 1, Vec::new);
        }
        self.buckets[bucket].push((place * 4 + end.by as u64, end.at));
    }

    pub(super) fn add(&mut self, other: RowEnds) {
        if other.buckets.len() > self.buckets.len() {
            self.buckets.resize_with(other.buckets.len(), Vec::new);
        }
        for (all, ends) in self.buckets.iter_mut().zip(other.buckets) {
            if all.is_empty() {
                *all = ends;
            } else {
                all.reserve_exact(ends.len());
                all.extend(ends);
            }
        }
    }

    /// Their memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.iter().map(|ends| ends.capacity() * size_of::<(u64, i64)>()).sum()
    }

    /// The same, sorted to be looked up.
    pub(super) async fn sorted(self, threads: usize) -> Result<Self> {
        let buckets = self.buckets.into_iter().enumerate().collect();
        let buckets = Arc::new(Work::new(buckets));
        let tasks = (0..threads).map(|_| {
            let buckets = Arc::clone(&buckets);
            spawn(async move {
                let mut sorted = Vec::new();
                while let Some((number, mut ends)) = buckets.next() {
                    ends.sort_unstable();
                    ends.shrink_to_fit();
                    sorted.push((number, ends));
                }
                Ok(sorted)
            })
        });
        let mut sorted: Vec<_> = join_all(tasks).await?.into_iter().flatten().collect();
        sorted.sort_unstable_by_key(|(number, _)| *number);
        Ok(RowEnds { buckets: sorted.into_iter().map(|(_, ends)| ends).collect() })
    }

    /// The end of the row at a place. Rows mostly come in the order of their places: the search begins at `from`, near the
    /// end of the row before.
    fn end_of(&self, place: u64, from: &mut usize) -> Option<RowEnd> {
        let ends = self.buckets.get((place / BUCKET_PLACES) as usize)?;
        let is_before = |(of, _): &(u64, i64)| of / 4 < place;
        if *from > ends.len() || *from > 0 && !is_before(&ends[*from - 1]) {
            *from = 0;
        }
        let rest = &ends[*from..];
        let mut near = 1;
        while rest.get(near).is_some_and(is_before) {
            near *= 2;
        }
        *from += rest[..rest.len().min(near)].partition_point(is_before);
        let (of, at) = ends.get(*from).filter(|(of, _)| of / 4 == place)?;
        Some(RowEnd { at: *at, by: Cause::ALL[(of % 4) as usize] })
    }
}

/// The own columns that say when and how a row has ended.
pub(crate) struct EndNames {
    /// The one with the time.
    pub end: &'static str,
    /// The one with a flag.
    pub flag: &'static str,
    /// The flag of a row that has ended.
    pub flag_of_ended: bool,
    /// The one that says what has ended it, if the table has it.
    pub by: Option<&'static str>,
}

/// Those among the own columns of a table; `None` if rows do not end.
pub(crate) fn end_columns(own: &[&'static str]) -> Option<EndNames> {
    let by = own.contains(&ENDED_BY).then_some(ENDED_BY);
    Some(match own.first()? {
        &DELETED => EndNames { end: DELETED_AT, flag: DELETED, flag_of_ended: true, by },
        _ => EndNames { end: VALID_TO, flag: IS_CURRENT, flag_of_ended: false, by },
    })
}

/// The fields of own columns.
pub(crate) fn fields(own: &[&'static str]) -> Vec<Field> {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let of = |name: &&str| {
        let data_type = match *name {
            DELETED | IS_CURRENT => DataType::Boolean,
            ENDED_BY => DataType::Utf8View,
            _ => time.clone(),
        };
        Field::new(*name, data_type, true)
    };
    own.iter().map(of).collect()
}

/// Times as values of the columns: a change without a time holds since ever.
pub(crate) fn valid_times(instants: &Int64Array) -> ArrayRef {
    let times = instants.iter().map(|instant| instant.filter(|instant| *instant != BEFORE_ALL));
    Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

/// The values of the columns with the ends of rows, and what has ended them.
pub(crate) fn end_values(ends: &[Option<RowEnd>]) -> (ArrayRef, ArrayRef) {
    let times = ends.iter().map(|end| end.map(|end| end.at)).collect();
    let causes = ends.iter().map(|end| end.map(|end| end.by.name()));
    (valid_times(&times), Arc::new(causes.collect::<StringViewArray>()))
}

/// The own columns of rows, which begin at `instants`, and are at these places.
pub(crate) fn columns(
    own: &[&'static str],
    instants: &Int64Array,
    places: &[u64],
    ends: &RowEnds,
) -> Vec<ArrayRef> {
    let Some(names) = end_columns(own) else { return Vec::new() };
    let mut from = 0;
    let end = |place: &u64| ends.end_of(*place, &mut from);
    let ends: Vec<Option<RowEnd>> = places.iter().map(end).collect();
    let (times, causes) = end_values(&ends);
    let of = |name: &&'static str| -> ArrayRef {
        if *name == names.end {
            Arc::clone(&times)
        } else if *name == names.flag {
            let flags = ends.iter().map(|end| Some(end.is_some() == names.flag_of_ended));
            Arc::new(flags.collect::<BooleanArray>())
        } else if *name == ENDED_BY {
            Arc::clone(&causes)
        } else {
            valid_times(instants)
        }
    };
    own.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ends_are_those_of_a_search_through_all(
            of in prop::collection::btree_map(0..200u64, 0..4usize, 0..100),
            spread in prop::sample::select(vec![1, BUCKET_PLACES / 3, 5 * BUCKET_PLACES]),
            places in prop::collection::vec(0..210u64, 0..100),
            is_sorted in any::<bool>(),
        ) {
            let end = |place: u64| {
                of.get(&place).map(|by| RowEnd { at: place as i64 * 7 - 3, by: Cause::ALL[*by] })
            };
            let mut parts = [RowEnds::default(), RowEnds::default()];
            for place in of.keys().rev() {
                let end = end(*place).expect("an end");
                parts[(*place % 2) as usize].push(place * spread, end);
            }
            let [mut ends, other] = parts;
            ends.add(other);
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let ends = runtime.block_on(ends.sorted(2)).expect("sorted");
            let mut places = places;
            if is_sorted {
                places.sort_unstable();
            }
            let mut from = 0;
            for place in places {
                prop_assert_eq!(ends.end_of(place * spread, &mut from), end(place));
            }
        }
    }
}
