//! The columns of a table whose rows can end and stay ([`Keep::own_columns`]): the last ones of the table. They say
//! when a row holds (`keep = "history"`), or whether and when its key was deleted (`keep_deleted`).

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, TimeUnit};

use crate::changes::BEFORE_ALL;
use crate::config::{DELETED, DELETED_AT, IS_CURRENT, Keep, VALID_TO};

/// When rows end: their places among the rows of all inputs, ascending, with the time in microseconds since
/// 1970. A row without an entry has no end yet.
pub(crate) type RowEnds = Vec<(u64, i64)>;

/// The column with the end of a row, the one with a flag, and the flag of a row that has ended; `None` if rows do not
/// end.
pub(crate) fn end_columns(keep: Keep) -> Option<(&'static str, &'static str, bool)> {
    match keep {
        Keep::Latest | Keep::LatestPerDay => None,
        Keep::LatestAndDeleted => Some((DELETED_AT, DELETED, true)),
        Keep::History => Some((VALID_TO, IS_CURRENT, false)),
    }
}

/// The columns.
pub(crate) fn fields(keep: Keep) -> Vec<Field> {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let of = |name: &&str| {
        let is_flag = end_columns(keep).is_some_and(|(_, flag, _)| flag == *name);
        let data_type = if is_flag { DataType::Boolean } else { time.clone() };
        Field::new(*name, data_type, true)
    };
    keep.own_columns().iter().map(of).collect()
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
    keep: Keep,
    instants: &Int64Array,
    places: &[u64],
    ends: &RowEnds,
) -> Vec<ArrayRef> {
    let Some((end_column, flag, flag_of_ended)) = end_columns(keep) else { return Vec::new() };
    let mut from = 0;
    let end = |place: &u64| end_of(*place, ends, &mut from);
    let ends: Int64Array = places.iter().map(end).collect();
    let of = |name: &&str| -> ArrayRef {
        if *name == end_column {
            valid_times(&ends)
        } else if *name == flag {
            let flags = ends.iter().map(|end| Some(end.is_some() == flag_of_ended));
            Arc::new(flags.collect::<BooleanArray>())
        } else {
            valid_times(instants)
        }
    };
    keep.own_columns().iter().map(of).collect()
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
