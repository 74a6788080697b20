//! Floors: places in the order of changes at which every key ended that was there, as by a TRUNCATE, or
//! by a full load that has a time ([`crate::changes::load_times`]).
//!
//! A floor acts as a delete of each key that has a row before it. It is no change of a key, and no
//! version: what it does is computed from the floors and the versions, whenever either is read, so that
//! it does not depend on which came first.
//!
//! With *F* the floors and *V* the versions (of each key and day the last change), in the order of
//! changes:
//!
//! * `keep = "latest"`: a key has a row if its last change leaves one, and no floor is later.
//! * `keep = "latest-per-day"`: a key and day has a row if its last change leaves one, and no floor of
//!   that day is later.
//! * `keep = "history"`: a floor removes no row. A row holds up to the next change of its key, or up to the first
//!   floor after it if that is earlier.
//! * `keep_deleted`: a floor removes no row. A key was deleted at the least commit time of the floors and deletes after
//!   its last insert or update.
//! * `history`: besides *V*, as deleted on the day of a floor, each key whose last change before it
//!   leaves a row, if it is the first floor after that change; and each key that has a row of that day
//!   before it. Of several entries of a key and day, the last counts.
//!
//! The day of a floor is that of its commit time, as of a delete.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Int32Array, Int64Array,
    RecordBatch, StringArray,
};
use arrow::datatypes::{Int32Type, Int64Type};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::changes::pass_one::{FloorOf, FoundFloors};
use crate::error::{Error, Result};
use crate::raw::discover::Input;
use crate::state::versions::{ORDER_BYTES, VersionsLayout};

/// A floor: the row of a raw file that it is, its place in the order of changes, and its day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The raw location of its file.
    pub location: usize,
    /// The path of its file.
    pub path: String,
    /// The row ordinal in the file.
    pub row: u64,
    /// Its day, as days since 1970; `None` if it has no commit time.
    pub day: Option<i32>,
    /// Whether it is after all full loads that have no time.
    pub cdc: bool,
    /// The time at which it was set by hand, as a truncate; then it has no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<DateTime<Utc>>,
    /// Whether it is the begin of a full load, whose rows come right after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_load: bool,
    /// The commit time as the order, in microseconds since 1970, and nanoseconds beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<(i64, i32)>,
    /// Orders other than the commit time alone: the column `order_bytes` of versions, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    /// Where rows end and stay, its commit time in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instant: Option<i64>,
}

/// The location, path and row ordinal of a truncate, or the place in the order of a full load.
pub(crate) type FloorId<'a> = (usize, &'a str, u64, (Option<(i64, i32)>, Option<&'a str>));

/// The floors of a run, each with whether the run has found it.
pub(crate) type KnownFloors = Arc<Vec<(Floor, bool)>>;

impl Floor {
    /// The floors that pass one has found in inputs.
    pub(crate) fn found(
        found: &[FoundFloors],
        layout: &VersionsLayout,
        inputs: &[&Input],
    ) -> Vec<Floor> {
        let mut floors = Vec::new();
        for FoundFloors { positions, days, instants, of } in found {
            let [cdc, time_us, time_ns, order] = layout.order_columns(positions);
            let (cdc, order) = (cdc.as_boolean(), order.as_binary::<i32>());
            let time_us = time_us.as_primitive::<Int64Type>();
            let time_ns = time_ns.as_primitive::<Int32Type>();
            for (at, (file, row)) in layout.ordinals(positions).into_iter().enumerate() {
                let by_hand = match of {
                    FloorOf::Hand(time) => Some(*time),
                    FloorOf::Truncate | FloorOf::Load => None,
                };
                let (location, path) = match by_hand {
                    None => (inputs[file].file.location, inputs[file].file.path.clone()),
                    Some(_) => (0, String::new()),
                };
                floors.push(Floor {
                    location,
                    path,
                    row: row as u64,
                    by_hand,
                    day: days.is_valid(at).then(|| days.value(at)),
                    cdc: cdc.value(at),
                    is_load: *of == FloorOf::Load,
                    time: time_us.is_valid(at).then(|| (time_us.value(at), time_ns.value(at))),
                    order: order.is_valid(at).then(|| STANDARD.encode(order.value(at))),
                    instant: layout.has_instants.then(|| instants.value(at)),
                });
            }
        }
        floors
    }

    /// What makes it that floor: a truncate the row of its file; a full load its place in the order, since
    /// its files can be found later, or be written over, and loads of one time are one; a truncate by hand its
    /// place, too.
    pub(crate) fn id(&self) -> FloorId<'_> {
        let order = (self.time, self.order.as_deref());
        match (self.is_load, self.by_hand) {
            (true, _) => (0, "", 0, order),
            (false, Some(_)) => (0, "", 1, order),
            (false, None) => (self.location, &self.path, self.row, (None, None)),
        }
    }

    /// Floors in the columns of versions that they have, a row each: the day, the order, and the source.
    ///
    /// # Errors
    /// Data, when the state is damaged.
    pub(crate) fn columns<'a>(
        floors: impl Iterator<Item = &'a Floor> + Clone,
    ) -> Result<RecordBatch> {
        let bytes = floors.clone().map(Floor::order_bytes).collect::<Result<Vec<_>>>()?;
        let days = floors.clone().map(|floor| floor.day);
        let cdc = floors.clone().map(|floor| Some(floor.cdc));
        let time_us = floors.clone().map(|floor| floor.time.map(|time| time.0));
        let time_ns = floors.clone().map(|floor| floor.time.map(|time| time.1));
        let locations = floors.clone().map(|floor| floor.location as i32);
        let paths = floors.clone().map(|floor| &floor.path);
        let rows = floors.map(|floor| floor.row as i64);
        let columns: [(&str, ArrayRef); 8] = [
            ("event_dt", Arc::new(days.collect::<Date32Array>())),
            ("cdc", Arc::new(cdc.collect::<BooleanArray>())),
            ("time_us", Arc::new(time_us.collect::<Int64Array>())),
            ("time_ns", Arc::new(time_ns.collect::<Int32Array>())),
            (ORDER_BYTES, Arc::new(BinaryArray::from_iter(bytes))),
            ("location", Arc::new(Int32Array::from_iter_values(locations))),
            ("file", Arc::new(StringArray::from_iter_values(paths))),
            ("row", Arc::new(Int64Array::from_iter_values(rows))),
        ];
        let nullable = columns.into_iter().map(|(name, column)| (name, column, true));
        Ok(RecordBatch::try_from_iter_with_nullable(nullable)?)
    }

    /// Floors of earlier runs alone.
    pub(crate) fn of_earlier(floors: impl IntoIterator<Item = Floor>) -> KnownFloors {
        Arc::new(floors.into_iter().map(|floor| (floor, false)).collect())
    }

    /// The value of the column `order_bytes` of versions.
    fn order_bytes(&self) -> Result<Option<Vec<u8>>> {
        let decoded = self.order.as_ref().map(|order| STANDARD.decode(order)).transpose();
        decoded.map_err(|error| {
            Error::data("the order of a floor in the ledger cannot be read")
                .hint("the state is damaged: rebuild it with `glueless rebuild`")
                .caused_by(error)
        })
    }
}

/// Floors by their day, of each day in the order of changes.
#[derive(Debug)]
pub(crate) struct FloorsOfDays(HashMap<Option<i32>, Vec<usize>>);

impl FloorsOfDays {
    /// Of floors given in the order of changes, each by its index and day.
    pub(crate) fn new(floors: impl Iterator<Item = (usize, Option<i32>)>) -> Self {
        let mut of_days: HashMap<Option<i32>, Vec<usize>> = HashMap::new();
        floors.for_each(|(at, day)| of_days.entry(day).or_default().push(at));
        FloorsOfDays(of_days)
    }

    /// The first floor of a day after a place; `is_after` says whether a floor is after it.
    pub(crate) fn first_after(
        &self,
        day: Option<i32>,
        is_after: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let of_day = self.0.get(&day)?;
        of_day.get(of_day.partition_point(|at| !is_after(*at))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_floor_of_a_day_is_that_of_a_search_through_all() {
        // Floors of an hour each, the days of which do not follow the order of changes alone.
        let day = |at: usize| (!at.is_multiple_of(13)).then_some((at / 24 + at % 3) as i32);
        let days: Vec<Option<i32>> = (0..3_000).map(day).collect();
        let sorted = FloorsOfDays::new(days.iter().copied().enumerate());
        let asked = (-1..130).map(Some).chain([None]);
        for (day, place) in asked.flat_map(|day| (0..3_010).step_by(7).map(move |at| (day, at))) {
            let naive = (place..days.len()).find(|at| days[*at] == day);
            assert_eq!(sorted.first_after(day, |at| at >= place), naive, "{day:?} {place}");
        }
    }
}
