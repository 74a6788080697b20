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

/// The columns of rows, which begin at `instants`, and are at these places.
pub(crate) fn columns(
    instants: &Int64Array,
    places: &[u64],
    ends: &RowEnds,
) -> [ArrayRef; VALIDITY.len()] {
    let end = |place: &u64| {
        let at = ends.binary_search_by_key(place, |(place, _)| *place).ok()?;
        Some(ends[at].1)
    };
    let ends: Int64Array = places.iter().map(end).collect();
    let is_current: BooleanArray = ends.iter().map(|end| Some(end.is_none())).collect();
    [valid_times(instants), valid_times(&ends), Arc::new(is_current)]
}
