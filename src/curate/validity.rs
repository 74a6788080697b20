//! The columns of a table whose rows can end and stay ([`Keep::own_columns`]): the last ones of the table. They say
//! when a row holds and what has ended it (`keep = "history"`), or whether and when its key was deleted (`keep_deleted`).

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, TimeUnit};

use crate::changes::BEFORE_ALL;
use crate::config::{DELETED, DELETED_AT, ENDED_BY, IS_CURRENT, VALID_TO};
use crate::curate::places::ByPlace;
use crate::table::row_end::{Cause, RowEnd};

/// When rows end, by their places among the rows of all inputs, and what ends them. A row without an entry has no end yet.
#[derive(Debug, Default)]
pub(crate) struct RowEnds(pub(super) ByPlace);

impl RowEnds {
    /// Adds the end of the row at a place.
    pub(super) fn push(&mut self, place: u64, end: RowEnd) {
        self.0.push(place, (end.at, end.by as u8));
    }

    /// The end of the row at a place, near the one before, as [`ByPlace::of`] has it.
    fn end_of(&self, place: u64, from: &mut usize) -> Option<RowEnd> {
        let (at, by) = self.0.of(place, from)?;
        Some(RowEnd { at, by: Cause::ALL[usize::from(by)] })
    }
}

/// The own columns that say when and how a row has ended.
#[derive(Clone, Copy)]
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
