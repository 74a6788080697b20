//! The columns of a history (`keep = "history"`) that say when a row holds: the last ones of its table.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, TimeUnit};

use crate::changes::BEFORE_ALL;
use crate::config::{IS_CURRENT, VALID_FROM, VALID_TO, VALIDITY};

/// When rows end: their places among the rows of all inputs, ascending, with the time in microseconds since
/// 1970. A row without an entry has no end yet.
pub(crate) type RowEnds = Vec<(u64, i64)>;

/// The columns.
pub(crate) fn fields() -> [Field; VALIDITY.len()] {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    [
        Field::new(VALID_FROM, time(), true),
        Field::new(VALID_TO, time(), true),
        Field::new(IS_CURRENT, DataType::Boolean, true),
    ]
}

/// Times as values of the columns: a change without a time holds since ever.
pub(crate) fn valid_times(instants: &Int64Array) -> ArrayRef {
    let times = instants.iter().map(|instant| instant.filter(|instant| *instant != BEFORE_ALL));
    Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

/// The end of the row at a place. Rows mostly come in the order of their places: the search begins at
/// `from`, near the end of the row before.
fn end_of(place: u64, ends: &RowEnds, from: &mut usize) -> Option<i64> {
    let is_before = |(of, _): &(u64, i64)| *of < place;
    if *from > 0 && !is_before(&ends[*from - 1]) {
        *from = 0;
    }
    let rest = &ends[*from..];
    let mut near = 1;
    while rest.get(near).is_some_and(is_before) {
        near *= 2;
    }
    *from += rest[..rest.len().min(near)].partition_point(is_before);
    ends.get(*from).filter(|(of, _)| *of == place).map(|(_, end)| *end)
}

/// The columns of rows, which begin at `instants`, and are at these places.
pub(crate) fn columns(
    instants: &Int64Array,
    places: &[u64],
    ends: &RowEnds,
) -> [ArrayRef; VALIDITY.len()] {
    let mut from = 0;
    let end = |place: &u64| end_of(*place, ends, &mut from);
    let ends: Int64Array = places.iter().map(end).collect();
    let is_current: BooleanArray = ends.iter().map(|end| Some(end.is_none())).collect();
    [valid_times(instants), valid_times(&ends), Arc::new(is_current)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ends_are_those_of_a_search_through_all(
            of in prop::collection::btree_set(0..200u64, 0..100),
            places in prop::collection::vec(0..210u64, 0..100),
            is_sorted in any::<bool>(),
        ) {
            let ends: RowEnds = of.iter().map(|place| (*place, *place as i64 * 7)).collect();
            let mut places = places;
            if is_sorted {
                places.sort_unstable();
            }
            let mut from = 0;
            for place in places {
                let found = end_of(place, &ends, &mut from);
                prop_assert_eq!(found, of.contains(&place).then_some(place as i64 * 7));
            }
        }
    }
}
