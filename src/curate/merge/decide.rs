//! What becomes of each key: which winners hold, which rows are removed, which versions stay.

use std::cmp::Ordering as Compared;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, Int32Array, Int64Array,
    RecordBatch, StringArray, UInt32Array, new_null_array,
};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{Date32Type, Int8Type, SchemaRef, UInt32Type};
use arrow::row::{RowConverter, SortField};

use crate::changes::EVENT_DT;
use crate::changes::row_bitmap::RowBitmap;
use crate::config::Keep;
use crate::curate::merge::entries::{Entries, Files, REWRITTEN, WINNER};
use crate::curate::merge::{Counts, PRESENT};
use crate::error::{Error, Result};
use crate::state::versions::{ORDER_BYTES, VersionsLayout};
use crate::table::partition_names::partition_folder;
use crate::table::sorter::Sorter;

/// What the threads need to decide about keys.
pub(super) struct Decider {
    pub(super) entries: Arc<Entries>,
    pub(super) files: Arc<Files>,
    pub(super) keep: Keep,
    pub(super) partition_by: Vec<String>,
    pub(super) key: Vec<String>,
    pub(super) layout: Arc<VersionsLayout>,
    pub(super) table_schema: SchemaRef,
}

/// The columns of entries that orders are compared by.
pub(super) struct Orders<'a> {
    pub(super) cdc: &'a BooleanArray,
    pub(super) time_us: &'a Int64Array,
    pub(super) time_ns: &'a Int32Array,
    pub(super) bytes: &'a BinaryArray,
    pub(super) file: &'a UInt32Array,
    pub(super) row: &'a Int64Array,
}

impl Orders<'_> {
    /// What the order columns say.
    pub(super) fn order(&self, at: usize) -> (bool, Option<i128>, Option<&[u8]>) {
        let ns = |at: usize| {
            i128::from(self.time_us.value(at)) * 1000 + i128::from(self.time_ns.value(at))
        };
        let time = self.time_us.is_valid(at).then(|| ns(at));
        let bytes = self.bytes.is_valid(at).then(|| self.bytes.value(at));
        (self.cdc.value(at), time, bytes)
    }

    pub(super) fn place(&self, at: usize) -> (u32, i64) {
        (self.file.value(at), self.row.value(at))
    }

    /// The order of two changes; equal only for one and the same.
    pub(super) fn compare(&self, a: usize, b: usize) -> Compared {
        let key = |at: usize| (self.order(at), self.place(at));
        key(a).cmp(&key(b))
    }

    /// Whether only file or row decide between two changes.
    pub(super) fn is_tie(&self, a: usize, b: usize) -> bool {
        self.order(a) == self.order(b) && self.place(a) != self.place(b)
    }
}

impl Decider {
    /// Decides about all keys of a part; returns the versions that are written again.
    pub(super) fn decide(
        &self,
        rows: &RecordBatch,
        bitmap: &RowBitmap,
        table_rows: &mut Sorter,
        counts: &mut Counts,
    ) -> Result<RecordBatch> {
        let column = |name: &str| {
            let lost = || Error::internal(format!("entries without `{name}`"));
            rows.column_by_name(name).ok_or_else(lost)
        };
        let orders = Orders {
            cdc: column("cdc")?.as_boolean(),
            time_us: column("time_us")?.as_primitive(),
            time_ns: column("time_ns")?.as_primitive(),
            bytes: column(ORDER_BYTES)?.as_binary(),
            file: column("file")?.as_primitive(),
            row: column("row")?.as_primitive(),
        };
        let origin = column("origin")?.as_primitive::<Int8Type>();
        let deleted = column("deleted")?.as_boolean();
        let days = column("event_dt")?.as_primitive::<Date32Type>();
        let keys = &rows.columns()[..self.entries.keys];
        let fields = keys
            .iter()
            .map(|key| SortField::new(key.data_type().clone()));
        let keys = RowConverter::new(fields.collect())?.convert_columns(keys)?;

        let is_winner = |at: usize| origin.value(at) == WINNER;
        let is_row = |at: usize| deleted.is_valid(at) && !deleted.value(at);
        let day = |at: usize| days.is_valid(at).then(|| days.value(at));
        let later = |a: Option<usize>, b: usize| match a {
            Some(a) if orders.compare(a, b).is_ge() => Some(a),
            _ => Some(b),
        };
        let place = |at: usize| -> Result<(usize, usize)> {
            let file = self.files.in_run.get(&orders.file.value(at));
            let lost = || Error::internal("a winner of no input");
            Ok((*file.ok_or_else(lost)?, orders.row.value(at) as usize))
        };
        let mut carried: Vec<u32> = Vec::new();
        let mut gone: Vec<u32> = Vec::new();
        let mut at = 0;
        while at < rows.num_rows() {
            let first = at;
            let (mut last_stored, mut last_winner, mut winners) = (None, None, 0);
            // Of all winners of the key, those that do not hold included.
            let mut latest = None;
            while at < rows.num_rows() && keys.row(at) == keys.row(first) {
                // The entries of one day: one winner at most, one version at most.
                let of_day = day(at);
                let (mut winner, mut stored) = (None, None);
                while at < rows.num_rows() && keys.row(at) == keys.row(first) && day(at) == of_day {
                    let slot = if is_winner(at) {
                        &mut winner
                    } else {
                        &mut stored
                    };
                    if slot.replace(at).is_some() {
                        return Err(Error::data("versions hold a key and day twice")
                            .hint("the state is damaged: make it again with `glueless rebuild`"));
                    }
                    at += 1;
                }
                winners += u64::from(winner.is_some());
                if let Some(winner) = winner {
                    latest = later(latest, winner);
                }
                if let (Some(winner), Some(stored), Keep::LatestPerDay) =
                    (winner, stored, self.keep)
                    && orders.is_tie(winner, stored)
                {
                    counts.tie(place(winner)?);
                }
                if let Some(stored) = stored {
                    last_stored = later(last_stored, stored);
                }
                let holds = winner.filter(|winner| {
                    stored.is_none_or(|stored| orders.compare(*winner, stored).is_gt())
                });
                match (holds, stored) {
                    (Some(_), Some(stored)) => {
                        counts.replaced += 1;
                        if self.keep == Keep::LatestPerDay && is_row(stored) {
                            gone.push(stored as u32);
                        }
                    }
                    (None, Some(stored)) if origin.value(stored) == REWRITTEN => {
                        carried.push(stored as u32);
                    }
                    _ => {}
                }
                if let Some(winner) = holds {
                    let (file, row) = place(winner)?;
                    bitmap.set_day(file, row);
                    counts.key_days += 1;
                    last_winner = later(last_winner, winner);
                } else if winner.is_some() && self.keep == Keep::LatestPerDay {
                    counts.stale += 1;
                }
            }
            if let (Some(winner), Some(stored), Keep::Latest) = (latest, last_stored, self.keep)
                && orders.is_tie(winner, stored)
            {
                counts.tie(place(winner)?);
            }
            let moved = last_winner.filter(|winner| {
                last_stored.is_none_or(|stored| orders.compare(*winner, stored).is_gt())
            });
            match moved {
                Some(winner) => {
                    let (file, row) = place(winner)?;
                    bitmap.set_latest(file, row);
                    if self.keep == Keep::Latest
                        && let Some(stored) = last_stored.filter(|stored| is_row(*stored))
                    {
                        gone.push(stored as u32);
                    }
                }
                None if winners > 0 && self.keep == Keep::Latest => counts.stale += 1,
                None => {}
            }
        }
        if !gone.is_empty() {
            let gone = take_record_batch(rows, &UInt32Array::from(gone))?;
            self.push_gone(&gone, table_rows, counts)?;
        }
        self.carried(&take_record_batch(rows, &UInt32Array::from(carried))?)
    }

    /// Hands the rows that go to the table's sorter, as tombstones: keys, day and partition, and
    /// null for the rest, which includes the flag that a row is there.
    pub(super) fn push_gone(
        &self,
        gone: &RecordBatch,
        table_rows: &mut Sorter,
        counts: &mut Counts,
    ) -> Result<()> {
        let keys = self.entries.keys;
        let mut columns = Vec::new();
        for field in self.table_schema.fields() {
            let is = |name: &String| name == field.name();
            let place = match (
                self.key.iter().position(is),
                self.partition_by.iter().position(is),
            ) {
                (Some(key), _) => Some(key),
                (None, Some(partition)) => Some(keys + 1 + partition),
                (None, None) if field.name() == EVENT_DT => Some(keys),
                (None, None) => None,
            };
            columns.push(match place {
                Some(place) => cast(gone.column(place), field.data_type())?,
                None if field.name() == PRESENT => {
                    Arc::new(BooleanArray::from(vec![false; gone.num_rows()]))
                }
                None => new_null_array(field.data_type(), gone.num_rows()),
            });
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.table_schema), columns)?;
        let names: Vec<&str> = self.partition_by.iter().map(String::as_str).collect();
        let parts = names
            .iter()
            .map(|name| Ok(Arc::clone(batch.column(self.table_schema.index_of(name)?))))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..batch.num_rows() {
            let folder = partition_folder(&names, &parts, row)?;
            *counts.gone.entry(folder).or_default() += 1;
        }
        let days = gone.column(keys).as_primitive::<Date32Type>();
        counts.days.extend(days.iter().flatten());
        table_rows.push(&batch)
    }

    /// The versions that stay, as they are written.
    pub(super) fn carried(&self, carried: &RecordBatch) -> Result<RecordBatch> {
        let schema = self.layout.written_schema();
        let numbers = carried
            .column_by_name("file")
            .ok_or_else(|| Error::internal("entries without a file"))?
            .as_primitive::<UInt32Type>();
        let mut distinct: BTreeMap<u32, u32> = BTreeMap::new();
        for number in numbers.values() {
            let next = distinct.len() as u32;
            distinct.entry(*number).or_insert(next);
        }
        let mut names = vec![""; distinct.len()];
        for (number, place) in &distinct {
            names[*place as usize] = self.files.numbers.file(*number).1;
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        for field in schema.fields() {
            columns.push(match field.name().as_str() {
                "file" => {
                    let places = numbers.values().iter().map(|number| distinct[number]);
                    Arc::new(DictionaryArray::<UInt32Type>::try_new(
                        UInt32Array::from_iter_values(places),
                        Arc::new(StringArray::from(names.clone())),
                    )?)
                }
                "location" => {
                    let locations = numbers
                        .values()
                        .iter()
                        .map(|number| self.files.numbers.file(*number).0 as i32);
                    Arc::new(Int32Array::from_iter_values(locations))
                }
                name => Arc::clone(
                    carried
                        .column_by_name(name)
                        .ok_or_else(|| Error::internal(format!("entries without `{name}`")))?,
                ),
            });
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}
