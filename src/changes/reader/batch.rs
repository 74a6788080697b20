//! One batch of a raw file: checks its rows and converts them to the relation's columns.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Int64Array, RecordBatch,
    StringViewArray, UInt32Array, new_null_array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::kernels::boolean::{and, and_not};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, concat_batches, filter, filter_record_batch, is_not_null, take};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatchOptions;
use chrono_tz::Tz;

use super::{ChangeReader, Pass};
use crate::changes::forgotten::KeyColumns;
use crate::changes::load_times::{TO_ROWS, positions_at};
use crate::changes::pass_one::{FloorOf, FoundFloors};
use crate::changes::position::{OrderEncoder, OrderSpan, order_span, pack_column};
use crate::changes::{BEFORE_ALL, ChangeColumn, OpenInput, instant_of};
use crate::config::{OpValues, Operation};
use crate::error::{Error, Result};
use crate::parquet_io::texts::first_bad_text;
use crate::raw::bad_rows::{BadRow, NOT_UTF8};
use crate::raw::envelope::{ENVELOPES_MEANT, look_like_envelopes};
use crate::raw::typed::{UNMASKED, unmasked};
use crate::types::column_type::cast_values;
use crate::types::key::normalize_zeros;
use crate::types::mask::Mask;
use crate::types::times::{day_in, day_of, days_of, instants_ns, may_be_dates};

/// Why a delete is bad where deleted rows are kept.
const AT_NO_TIME: &str = "is a delete or truncate in a full load, at no time";
/// The hint for it.
const GIVE_A_TIME: &str = "a deleted row is kept with the time of its delete: give full loads a time \
                           (`raw.full_load_at`), or leave `keep_deleted` out";

/// A converted batch.
pub(super) struct Converted {
    /// The output columns.
    pub(super) rows: RecordBatch,
    /// Rows of the batch inside of the window of rows; all rows, if there is none.
    pub(super) inside: usize,
    /// Rows of the batch outside of the window of rows.
    pub(super) outside: usize,
    /// Rows inside that are left out, because their keys were forgotten.
    pub(super) forgotten: usize,
    /// Key moves among the rows inside.
    pub(super) key_moves: usize,
    /// The newest commit time of CDC changes among the rows inside, in nanoseconds since 1970.
    pub(super) newest: Option<i128>,
    /// The least and the greatest order of CDC changes.
    pub(super) orders: Option<OrderSpan>,
}

/// Why a batch cannot be converted.
pub(super) enum BatchError {
    /// One row is bad.
    Row(Box<BadRowAt>),
    /// Some rows are truncates.
    Truncates,
    /// Any other error.
    Other(Error),
}

/// A bad row, and its index in the batch.
pub(super) struct BadRowAt {
    pub(super) at: usize,
    pub(super) row: BadRow,
}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        BatchError::Other(error)
    }
}

impl From<ArrowError> for BatchError {
    fn from(error: ArrowError) -> Self {
        BatchError::Other(error.into())
    }
}

/// One batch of a file, as it was read.
pub(super) struct Batch<'a> {
    pub(super) reader: &'a ChangeReader,
    /// The number of the file.
    pub(super) file: usize,
    /// The columns of the file that were read; the row number follows them.
    pub(super) columns: &'a [usize],
    pub(super) read: RecordBatch,
    /// The columns that were masked so far, by their numbers.
    masked: RefCell<BTreeMap<usize, ArrayRef>>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        reader: &'a ChangeReader,
        file: usize,
        columns: &'a [usize],
        read: RecordBatch,
    ) -> Self {
        Batch { reader, file, columns, read, masked: RefCell::default() }
    }
}

impl Batch<'_> {
    pub(super) fn open(&self) -> &OpenInput {
        self.reader.changes.file(self.file)
    }

    /// The error for the user.
    pub(super) fn error_of(&self, fault: BatchError) -> Error {
        match fault {
            BatchError::Row(bad) => bad.row.to_error(&self.open().file.name),
            BatchError::Truncates => Error::internal("a truncate was read as a change"),
            BatchError::Other(error) => error,
        }
    }

    /// The same batch with other rows.
    fn with_rows(&self, read: RecordBatch) -> Self {
        Batch { read, masked: RefCell::default(), ..*self }
    }

    pub(super) fn filtered(&self, selected: &BooleanArray) -> Result<Self> {
        Ok(self.with_rows(filter_record_batch(&self.read, selected)?))
    }

    /// Keeps the rows that the run selects (`only`).
    pub(super) fn only_selected(self) -> Result<Self> {
        let Some(only) = &self.open().input.only else {
            return Ok(self);
        };
        let rows = self.row_numbers().iter();
        let is_selected = |row: &i64| Some(only.binary_search(&(*row as u64)).is_ok());
        let selected: BooleanArray = rows.map(is_selected).collect();
        self.filtered(&selected)
    }

    /// Drops placeholders of bad rows, which were reported when the file was opened.
    pub(super) fn without_placeholders(self) -> Result<Self> {
        let placeholders = &self.open().placeholders;
        if placeholders.is_empty() {
            return Ok(self);
        }
        let is_row = |row: &i64| Some(placeholders.binary_search(&(*row as u64)).is_err());
        let rows: BooleanArray = self.row_numbers().iter().map(is_row).collect();
        self.filtered(&rows)
    }

    /// Drops rows that are no change.
    pub(super) fn without_ignored(self) -> Result<Self> {
        if self.reader.ignores_rows { self.without(Operation::Ignore) } else { Ok(self) }
    }

    /// Drops rows of which nothing is to be remembered: those of forgotten keys that had no other key before.
    /// Truncates stay, whatever they have in the key columns.
    pub(super) fn without_forgotten(self) -> Result<Self> {
        if self.reader.changes.forgotten_keys().is_none()
            || !matches!(self.reader.pass, Pass::One(_))
        {
            return Ok(self);
        }
        let mut dropped = Vec::with_capacity(self.read.num_rows());
        self.find_forgotten(&mut dropped)?;
        if dropped.iter().any(|dropped| *dropped) {
            return self.filtered(&dropped.iter().map(|dropped| Some(!dropped)).collect());
        }
        Ok(self)
    }

    /// Appends for each row whether it is dropped as [`Batch::without_forgotten`] says. A row whose key cannot be read
    /// is none.
    fn find_forgotten(&self, dropped: &mut Vec<bool>) -> Result<()> {
        let count = self.read.num_rows();
        match self.try_find_forgotten() {
            Ok(found) => dropped.extend(found),
            Err(BatchError::Other(error)) => return Err(error),
            Err(BatchError::Row(_) | BatchError::Truncates) if count <= 1 => {
                dropped.extend(vec![false; count]);
            }
            Err(BatchError::Row(_) | BatchError::Truncates) => {
                self.slice(0..count / 2).find_forgotten(dropped)?;
                self.slice(count / 2..count).find_forgotten(dropped)?;
            }
        }
        Ok(())
    }

    fn try_find_forgotten(&self) -> Result<Vec<bool>, BatchError> {
        let changes = &self.reader.changes;
        let keys = self.reader.roles.key.iter().map(|column| self.raw(*column));
        let now = self.forgotten(&keys.collect::<Result<Vec<_>, _>>()?)?;
        let mut dropped: Vec<bool> = now.iter().collect();
        if !dropped.contains(&true) {
            return Ok(dropped);
        }
        if !changes.before_images().is_empty() {
            let (moved, before) = self.moved(changes.before_images())?;
            let before = self.forgotten(&before)?;
            let of_other = |at: usize| moved[at] && !before.value(at);
            dropped.iter_mut().enumerate().for_each(|(at, dropped)| *dropped &= !of_other(at));
        }
        if let Some(op) = self.reader.roles.op
            && changes.op_values().has(Operation::Truncate)
        {
            let operations = operations(&self.raw(op)?, changes.op_values()).into_iter();
            let each = dropped.iter_mut().zip(operations);
            each.for_each(|(dropped, operation)| {
                *dropped &= operation != Some(Operation::Truncate)
            });
        }
        Ok(dropped)
    }

    /// Which rows have keys that were forgotten.
    fn forgotten(&self, keys: &[ArrayRef]) -> Result<BooleanBuffer, BatchError> {
        match self.reader.changes.forgotten_keys() {
            Some(forgotten) => Ok(KeyColumns::forgotten(forgotten, keys)?),
            None => Ok(BooleanBuffer::new_unset(self.read.num_rows())),
        }
    }

    /// Drops rows of an operation.
    pub(super) fn without(self, operation: Operation) -> Result<Self> {
        let Some(op) = self.reader.roles.op else {
            return Ok(self);
        };
        let Ok(ops) = self.raw(op) else {
            // It is found to be bad when the batch is converted.
            return Ok(self);
        };
        let values = self.reader.changes.op_values();
        let operations = operations(&ops, values);
        let changes = operations.iter().map(|known| Some(*known != Some(operation)));
        self.filtered(&changes.collect())
    }

    /// Its truncates, and its other rows.
    pub(super) fn divided_by_truncates(&self) -> Result<(Self, Self)> {
        let ops = match self.reader.roles.op {
            Some(op) => self.raw(op).map_err(|error| self.error_of(error))?,
            None => return Err(Error::internal("truncates have no operation")),
        };
        let operations = operations(&ops, self.reader.changes.op_values()).into_iter();
        let is_truncate: BooleanArray =
            operations.map(|known| Some(known == Some(Operation::Truncate))).collect();
        let is_other = arrow::compute::not(&is_truncate)?;
        Ok((self.filtered(&is_truncate)?, self.filtered(&is_other)?))
    }

    /// The floors that its rows are, all of which are truncates, but for those outside of the window of
    /// rows; the number of these; and the newest commit time of the others.
    pub(super) fn floors(&self) -> Result<(FoundFloors, usize, Option<i128>), BatchError> {
        let times = self.commit_times()?;
        if let Some(column) = self.reader.roles.order.iter().flatten().next() {
            let values = self.raw(*column)?;
            if let Some(at) = (0..values.len()).find(|at| values.is_null(*at)) {
                let why = "is null in a truncate, which would come before all other changes";
                let hint = "order by columns that all rows have, such as the commit time, or a \
                            sequence of the log";
                return Err(self.bad(at, Some(*column), why, hint));
            }
        }
        let own = self.reader.changes.ordinals_per_row() as u64 - 1;
        let instants = self.instants(&times);
        if self.reader.changes.keeps_times_of_deletes()
            && let Some(at) = instants.values().iter().position(|instant| *instant == BEFORE_ALL)
        {
            return Err(self.bad(at, self.reader.roles.op, AT_NO_TIME, GIVE_A_TIME));
        }
        let floors = FoundFloors {
            positions: self.positions(&times, own)?,
            days: self.commit_days(&times)?,
            instants,
            of: FloorOf::Truncate,
        };
        let Some(inside) = self.inside(&times) else {
            return Ok((floors, 0, newest(&times, None)));
        };
        let floors = FoundFloors {
            positions: filter(&floors.positions, &inside)?,
            days: filter(&floors.days, &inside)?.as_primitive().clone(),
            instants: filter(&floors.instants, &inside)?.as_primitive().clone(),
            of: FloorOf::Truncate,
        };
        let outside = times.len() - inside.true_count();
        Ok((floors, outside, newest(&times, Some(&inside))))
    }

    /// Finds the bad rows in a range with at least one, in their order, by halving it.
    pub(super) fn find_bad(&self, rows: Range<usize>, bad: &mut Vec<BadRowAt>) -> Result<()> {
        match self.slice(rows.clone()).convert() {
            Ok(_) => Ok(()),
            Err(BatchError::Other(error)) => Err(error),
            Err(BatchError::Row(mut found)) if rows.len() == 1 => {
                found.at = rows.start;
                bad.push(*found);
                Ok(())
            }
            Err(BatchError::Truncates) if rows.len() == 1 => Ok(()),
            Err(BatchError::Row(_) | BatchError::Truncates) => {
                let middle = rows.start + rows.len() / 2;
                self.find_bad(rows.start..middle, bad)?;
                self.find_bad(middle..rows.end, bad)
            }
        }
    }

    /// A range of its rows.
    pub(super) fn slice(&self, rows: Range<usize>) -> Self {
        self.with_rows(self.read.slice(rows.start, rows.len()))
    }

    /// The number of each row in its file.
    pub(super) fn row_numbers(&self) -> &[i64] {
        self.read.column(self.columns.len()).as_primitive::<Int64Type>().values()
    }

    /// Converts the batch to the output columns.
    pub(super) fn convert(&self) -> Result<Converted, BatchError> {
        let reader = self.reader;
        let live = self.live()?;
        let times = if reader.needs_times { self.commit_times()? } else { Vec::new() };
        if let Pass::One(_) = &reader.pass {
            for column in &self.open().to_check {
                self.raw(*column)?;
            }
        }
        // A row's own change is the last of its ordinals.
        let own = reader.changes.ordinals_per_row() as u64 - 1;
        let arrays = reader
            .sources
            .iter()
            .map(|source| match source {
                ChangeColumn::Raw(column) => self.raw(*column),
                ChangeColumn::Day => self.event_days(&live, &times),
                ChangeColumn::Position => {
                    self.check_key()?;
                    self.check_order_of_deletes(&live)?;
                    self.positions(&times, own)
                }
                ChangeColumn::Instant => self.instants_of(&live, &times),
                ChangeColumn::Live => Ok(Arc::new(live.clone()) as ArrayRef),
                ChangeColumn::Latest => Ok(self.latest(own)),
            })
            .collect::<Result<Vec<_>, BatchError>>()?;
        let count = self.read.num_rows();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&reader.schema), arrays, &options)?;
        let moved = match reader.changes.before_images() {
            [] => None,
            images => Some(self.moved(images)?),
        };
        let inside = self.inside(&times);
        let inside_count = inside.as_ref().map_or(count, BooleanArray::true_count);
        let newest = match &reader.pass {
            Pass::One(_) if !self.open().input.full_load => newest(&times, inside.as_ref()),
            _ => None,
        };
        let orders = match &reader.pass {
            Pass::One(_) if !self.open().input.full_load => self.orders(&rows),
            _ => None,
        };
        let converted = |rows, key_moves, forgotten| Converted {
            rows,
            inside: inside_count - forgotten,
            outside: count - inside_count,
            forgotten,
            key_moves,
            newest,
            orders,
        };
        let Some((moved, before)) = moved else {
            let rows = match inside {
                None => rows,
                Some(inside) => filter_record_batch(&rows, &inside)?,
            };
            return Ok(converted(rows, 0, 0));
        };
        let (mut as_rows, mut as_deletes) = self.rows_and_deletes(&moved, inside.as_ref());
        let (mut moves, mut forgotten) = (0, 0);
        if let Pass::One(_) = &reader.pass {
            let mut moved = and(&moved.into(), &inside.unwrap_or(vec![true; count].into()))?;
            if let Some([now, then]) = self.forgotten_halves(&before)? {
                forgotten = and(&as_rows, &now)?.true_count();
                as_rows = and_not(&as_rows, &now)?;
                [as_deletes, moved] = [and_not(&as_deletes, &then)?, and_not(&moved, &then)?];
            }
            moves = moved.true_count();
        }
        let rows = filter_record_batch(&rows, &as_rows)?;
        if as_deletes.true_count() == 0 {
            return Ok(converted(rows, moves, forgotten));
        }
        let with_deletes = self.filtered(&as_deletes)?;
        let before = before
            .iter()
            .map(|column| filter(column, &as_deletes))
            .collect::<Result<Vec<_>, _>>()?;
        let deletes = with_deletes.as_deletes(&before)?;
        Ok(converted(concat_batches(&reader.schema, &[deletes, rows])?, moves, forgotten))
    }

    /// Which rows have keys that were forgotten, and which had such keys before, given by `before`; `None` if no key was
    /// forgotten.
    fn forgotten_halves(
        &self,
        before: &[ArrayRef],
    ) -> Result<Option<[BooleanArray; 2]>, BatchError> {
        if self.reader.changes.forgotten_keys().is_none() {
            return Ok(None);
        }
        let keys = self.reader.roles.key.iter().map(|column| self.raw(*column));
        let now = self.forgotten(&keys.collect::<Result<Vec<_>, _>>()?)?;
        let then = self.forgotten(before)?;
        Ok(Some([now, then].map(|of| BooleanArray::new(of, None))))
    }

    /// The least and the greatest order of converted rows; `None` where file and row are the order.
    fn orders(&self, rows: &RecordBatch) -> Option<OrderSpan> {
        let is_position = |source: &ChangeColumn| *source == ChangeColumn::Position;
        let position = self.reader.sources.iter().position(is_position)?;
        let is_by_file = self.reader.changes.is_ordered_by_files();
        if is_by_file { None } else { order_span(rows.column(position)) }
    }

    /// Which rows are passed on as themselves, and which as deletes of the key before. `inside` as in
    /// [`Batch::inside`].
    fn rows_and_deletes(
        &self,
        moved: &[bool],
        inside: Option<&BooleanArray>,
    ) -> (BooleanArray, BooleanArray) {
        let numbers = self.row_numbers();
        let is_inside = |at: usize| inside.is_none_or(|inside| inside.value(at));
        let all = 0..moved.len();
        let changes = &self.reader.changes;
        match &self.reader.pass {
            Pass::One(_) => {
                let deletes = all
                    .clone()
                    .map(|at| {
                        let row = numbers[at] as u64;
                        moved[at] && is_inside(at) && !changes.is_key_swap(self.file, row)
                    })
                    .map(Some)
                    .collect();
                (all.map(|at| Some(is_inside(at))).collect(), deletes)
            }
            Pass::Order => (
                all.clone().map(|at| Some(is_inside(at))).collect(),
                vec![false; moved.len()].into(),
            ),
            Pass::KeyMoves | Pass::Find => {
                let moved: BooleanArray = moved.iter().map(|moved| Some(*moved)).collect();
                (moved.clone(), moved)
            }
            Pass::Two(winners) => {
                let won = |at: usize, half: usize| {
                    Some(winners.is_day(self.file, numbers[at] as usize * 2 + half))
                };
                let deletes = all.clone().map(|at| won(at, 0)).collect();
                (all.map(|at| won(at, 1)).collect(), deletes)
            }
        }
    }

    /// Which rows are inside of the window of rows; `None` if there is none.
    fn inside(&self, times: &[Option<i128>]) -> Option<BooleanArray> {
        let open = self.open();
        let windows = self.reader.row_windows(open)?;
        let is_inside = |time: &Option<i128>| {
            let holds =
                |(low, high): &(i128, i128)| time.is_some_and(|time| (*low..*high).contains(&time));
            Some(windows.iter().any(holds))
        };
        Some(times.iter().map(is_inside).collect())
    }

    /// Which rows are updates that change the key, and the keys before the updates.
    pub(super) fn moved(
        &self,
        images: &[Option<usize>],
    ) -> Result<(Vec<bool>, Vec<ArrayRef>), BatchError> {
        let mut moved = vec![false; self.read.num_rows()];
        let mut before = Vec::new();
        for (key, image) in self.reader.roles.key.iter().zip(images) {
            let now = self.raw(*key)?;
            let read = match image {
                None => Arc::clone(&now),
                Some(image) => {
                    let found = self.raw(*image)?;
                    let cast = cast_values(&found, now.data_type());
                    cast.map_err(|at| {
                        let why = format!("does not fit {}, the key's type", now.data_type());
                        let hint = if self.reader.changes.has_envelopes() {
                            "check the file: both are the same column"
                        } else {
                            "check `raw.before_image_prefix`"
                        };
                        self.bad(at, Some(*image), &why, hint)
                    })?
                }
            };
            // Null means that the key column is unchanged.
            let image = zip(&is_not_null(&read)?, &read, &now)?;
            let differs = distinct(&normalize_zeros(&image), &normalize_zeros(&now))?;
            for (moved, differs) in moved.iter_mut().zip(differs.values()) {
                *moved |= differs;
            }
            before.push(image);
        }
        let updates = match self.reader.roles.op {
            Some(op) => update_rows(&self.raw(op)?, self.reader.changes.op_values()),
            None => vec![false; moved.len()],
        };
        let each = moved.iter_mut().zip(updates);
        each.for_each(|(moved, is_update)| *moved &= is_update);
        Ok((moved, before))
    }

    /// The rows as deletes of the keys before, at the ordinals before their own.
    fn as_deletes(&self, before: &[ArrayRef]) -> Result<RecordBatch, BatchError> {
        let reader = self.reader;
        let count = self.read.num_rows();
        let times = self.commit_times()?;
        let arrays = reader
            .sources
            .iter()
            .map(|source| {
                Ok(match source {
                    ChangeColumn::Raw(column) => {
                        match reader.roles.key.iter().position(|key| key == column) {
                            Some(key) => Arc::clone(&before[key]),
                            None => self.raw(*column)?,
                        }
                    }
                    ChangeColumn::Day => Arc::new(self.commit_days(&times)?),
                    ChangeColumn::Position => self.positions(&times, 0)?,
                    ChangeColumn::Instant => {
                        self.instants_of(&BooleanArray::from(vec![false; count]), &times)?
                    }
                    ChangeColumn::Live => Arc::new(BooleanArray::from(vec![false; count])),
                    ChangeColumn::Latest => self.latest(0),
                })
            })
            .collect::<Result<Vec<ArrayRef>, BatchError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let schema = Arc::clone(&reader.schema);
        Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
    }

    /// A raw column, cast to its type over all inputs; null if the file lacks it.
    pub(super) fn raw(&self, column: usize) -> Result<ArrayRef, BatchError> {
        let wanted = self.reader.changes.raw_schema().field(column).data_type();
        let open = self.open();
        if let Some(constant) = open.constant(column) {
            return self.constant(column, constant, wanted);
        }
        let index = open.columns[column].and_then(|index| self.columns.binary_search(&index).ok());
        let Some(index) = index else {
            return Ok(new_null_array(wanted, self.read.num_rows()));
        };
        let name = self.reader.changes.raw_schema().field(column).name();
        match self.reader.changes.mask_of(self.file, name) {
            None => self.cast(&self.text(column, index)?, column, wanted),
            Some(mask) => self.masked(mask, column, index, wanted),
        }
    }

    /// A raw column of which the whole file has one value.
    fn constant(
        &self,
        column: usize,
        value: Option<&str>,
        wanted: &DataType,
    ) -> Result<ArrayRef, BatchError> {
        let rows = self.read.num_rows();
        let values: ArrayRef =
            Arc::new(StringViewArray::from_iter(std::iter::repeat_n(value, rows)));
        self.cast(&values, column, wanted)
    }

    /// Values of a raw column, cast to a type.
    fn cast(
        &self,
        values: &ArrayRef,
        column: usize,
        wanted: &DataType,
    ) -> Result<ArrayRef, BatchError> {
        cast_values(values, wanted).map_err(|at| {
            let why = format!("does not fit {wanted}, its type");
            let hint = "correct the value, or the column's type in `[raw.columns]`";
            self.bad(at, Some(column), &why, hint)
        })
    }

    /// A raw column with a mask: its values are masked in the type that they have over all inputs.
    fn masked(
        &self,
        mask: &Mask,
        column: usize,
        index: usize,
        wanted: &DataType,
    ) -> Result<ArrayRef, BatchError> {
        if let Some(masked) = self.masked.borrow().get(&column) {
            return Ok(Arc::clone(masked));
        }
        let values = self.text(column, index)?;
        let values = self.cast(&values, column, self.reader.changes.source_type(column))?;
        let masked = mask
            .apply(&values)
            .map_err(|at| self.bad(at, Some(column), &unmasked(mask), UNMASKED))?;
        let masked = self.cast(&masked, column, wanted)?;
        self.masked.borrow_mut().insert(column, Arc::clone(&masked));
        Ok(masked)
    }

    /// A column as it was read, in its type in the file: texts can have been read as bytes.
    fn text(&self, column: usize, index: usize) -> Result<ArrayRef, BatchError> {
        let array = self.read.column(index);
        let data_type = self.open().file.schema().field(self.columns[index]).data_type();
        if array.data_type() == data_type {
            return Ok(Arc::clone(array));
        }
        let bad_text = |at: usize| {
            let hint = "texts of Parquet files are UTF-8: correct the file where it is written";
            self.bad(at, Some(column), NOT_UTF8, hint)
        };
        if let Some(at) = first_bad_text(array) {
            return Err(bad_text(at));
        }
        // A list in a part of a batch still has the items of all rows.
        let rows = UInt32Array::from_iter_values(0..array.len() as u32);
        cast_values(&take(array, &rows, None)?, data_type).map_err(bad_text)
    }

    fn bad(&self, at: usize, column: Option<usize>, why: &str, hint: &'static str) -> BatchError {
        let schema = self.reader.changes.raw_schema();
        BatchError::Row(Box::new(BadRowAt {
            at,
            row: BadRow {
                row: self.row_numbers()[at] as u64,
                line: None,
                lines: 1,
                column: column.map(|column| schema.field(column).name().clone()),
                reason: why.into(),
                hint,
                change: String::new(),
            },
        }))
    }

    /// Whether each row leaves its key alive.
    fn live(&self) -> Result<BooleanArray, BatchError> {
        let live = self.live_by_operation()?;
        let Some(condition) = self.reader.changes.delete_when() else {
            return Ok(live);
        };
        let columns = condition.columns().iter().map(|column| self.raw(*column));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        // The row is found by halving the batch.
        let deleted = condition.rows(live.len(), columns).map_err(|_| {
            let why = "has values for which `raw.delete_when` cannot be computed";
            self.bad(0, None, why, "check `raw.delete_when` and the row")
        })?;
        Ok(and_not(&live, &deleted)?)
    }

    /// Checks that deletes in envelopes have the columns that order them: the row of a delete may have
    /// only its key, and nulls come before all other values.
    fn check_order_of_deletes(&self, live: &BooleanArray) -> Result<(), BatchError> {
        if !self.reader.changes.has_envelopes() {
            return Ok(());
        }
        for column in self.reader.roles.order.iter().flatten() {
            let values = self.raw(*column)?;
            let mut rows = 0..values.len();
            if let Some(at) = rows.find(|at| values.is_null(*at) && !live.value(*at)) {
                let why = "is null in a delete, which would come before all other changes";
                let hint = "order by fields that all events have, such as ts_ms or source.lsn";
                return Err(self.bad(at, Some(*column), why, hint));
            }
        }
        Ok(())
    }

    fn live_by_operation(&self) -> Result<BooleanArray, BatchError> {
        let Some(op) = self.reader.roles.op else {
            return Ok(BooleanArray::from(vec![true; self.read.num_rows()]));
        };
        let ops = self.raw(op)?;
        let values = self.reader.changes.op_values();
        let is_keyless = self.reader.changes.is_keyless();
        let live = live_rows(&ops, values).map_err(|fault| {
            let at = match fault {
                NotLive::Truncate(at) if is_keyless => {
                    let why = "is a truncate, in a table without a key";
                    let hint = "name the primary key in `key`: a table without a key accepts \
                                inserts only";
                    return self.bad(at, Some(op), why, hint);
                }
                NotLive::Truncate(at) if self.reader.changes.has_constants() => {
                    let why = "is a truncate, in a pipeline with columns of sources or folders";
                    let hint = "it would end the rows of all tenants: give each tenant a pipeline of its own";
                    // Not even in quarantine: its rows would stay.
                    return BatchError::Other(self.error_of(self.bad(at, Some(op), why, hint)));
                }
                NotLive::Truncate(_) => return BatchError::Truncates,
                NotLive::Unknown(at) => at,
            };
            let why = format!("is none of {}", values.listed());
            let columns = self.reader.changes.raw_schema().fields().iter();
            let hint = if look_like_envelopes(columns.map(|field| field.name().as_str())) {
                ENVELOPES_MEANT
            } else {
                "name the values in `[raw.op_values]`, or the operation column in `raw.op`; only if \
                 no column says which rows are deletes, write raw.dialect = \"flat\""
            };
            self.bad(at, Some(op), &why, hint)
        })?;
        if is_keyless && matches!(self.reader.pass, Pass::One(_)) {
            let updates = update_rows(&ops, values);
            if let Some(at) = (0..live.len()).find(|at| updates[*at] || !live.value(*at)) {
                let why = "is not I, in a table without a key";
                let hint =
                    "name the primary key in `key`: a table without a key accepts inserts only";
                return Err(self.bad(at, Some(op), why, hint));
            }
        }
        Ok(live)
    }

    /// The commit times in nanoseconds since 1970; a null is an error in CDC files.
    fn commit_times(&self) -> Result<Vec<Option<i128>>, BatchError> {
        let role = self.reader.roles.commit_time;
        if let Some(time) = self.open().commit_time {
            return Ok(vec![Some(time); self.read.num_rows()]);
        }
        let unit_ns = self.reader.changes.commit_unit_ns();
        let hint = match unit_ns {
            None => "a commit time is yyyy-MM-dd HH:mm:ss[.ffffff] or a timestamp",
            Some(_) => "check `raw.commit_time` and `raw.commit_time_unit`",
        };
        let times = match role {
            None => vec![None; self.read.num_rows()],
            Some(column) => instants_ns(&self.raw(column)?, unit_ns)
                .map_err(|row| self.bad(row, role, "is not a time", hint))?,
        };
        match times.iter().position(Option::is_none) {
            Some(row) if !self.open().input.full_load => {
                let hint = "every change needs a commit time: check `raw.order_by`";
                Err(self.bad(row, role, "is null", hint))
            }
            _ => Ok(times),
        }
    }

    /// The instants of rows, given by their commit times. A full load that is before all changes has none:
    /// its time is that of the transfer.
    fn instants(&self, times: &[Option<i128>]) -> Int64Array {
        let open = self.open();
        let is_before_all = open.input.full_load && open.load_at().is_none();
        let times = times.iter().map(|time| instant_of(time.filter(|_| !is_before_all)));
        Int64Array::from_iter_values(times)
    }

    /// The instants by which rows are folded.
    fn instants_of(
        &self,
        live: &BooleanArray,
        times: &[Option<i128>],
    ) -> Result<ArrayRef, BatchError> {
        let instants = self.instants(times);
        if !self.reader.changes.keeps_times_of_deletes() {
            return Ok(Arc::new(instants));
        }
        let of_deletes = (0..live.len()).map(|at| match (live.value(at), instants.value(at)) {
            (true, _) => Ok(BEFORE_ALL),
            (false, BEFORE_ALL) => Err(self.bad(at, self.reader.roles.op, AT_NO_TIME, GIVE_A_TIME)),
            (false, instant) => Ok(instant),
        });
        Ok(Arc::new(of_deletes.collect::<Result<Int64Array, BatchError>>()?))
    }

    fn event_days(
        &self,
        live: &BooleanArray,
        commit_times: &[Option<i128>],
    ) -> Result<ArrayRef, BatchError> {
        let roles = &self.reader.roles;
        let is_other = |column: &usize| roles.commit_time != Some(*column);
        let Some(column) = roles.event_time.filter(is_other) else {
            return Ok(Arc::new(self.commit_days(commit_times)?));
        };
        let changes = &self.reader.changes;
        let (zone, day_zone) = (changes.time_zone(), changes.day_zone());
        let events = days_of(&self.raw(column)?, zone, day_zone).map_err(|row| {
            let hint = "an event time is yyyy-MM-dd HH:mm:ss[.ffffff], a date or a timestamp";
            self.bad(row, Some(column), "is not a time", hint)
        })?;
        if live.true_count() == live.len() {
            return Ok(Arc::new(events));
        }
        let commits = self.commit_days(commit_times)?;
        let of = |row: usize| if live.value(row) { &events } else { &commits };
        let days: Vec<i32> = (0..live.len()).map(|row| of(row).value(row)).collect();
        let known = BooleanBuffer::collect_bool(live.len(), |row| of(row).is_valid(row));
        Ok(Arc::new(Date32Array::new(days.into(), nulls(known))))
    }

    /// The days of the commit times.
    fn commit_days(&self, times: &[Option<i128>]) -> Result<Date32Array, BatchError> {
        let zone = self.reader.changes.day_zone();
        if let Some(at) = self.open().load_at() {
            let day = self.reader.changes.day_of_load(at);
            return Ok(times.iter().map(|_| Some(day)).collect());
        }
        if zone == Tz::UTC {
            let days = times.iter().map(|time| time.map_or(0, day_of)).collect::<Vec<_>>();
            let known = BooleanBuffer::collect_bool(times.len(), |row| times[row].is_some());
            return Ok(Date32Array::new(days.into(), nulls(known)));
        }
        // A date without a time is that day in every zone; its time does not tell it.
        let column = self.reader.roles.commit_time.map(|column| self.raw(column)).transpose()?;
        let days =
            column.filter(may_be_dates).and_then(|column| days_of(&column, Tz::UTC, zone).ok());
        let in_zone = || times.iter().map(|time| time.map(|time| day_in(time, zone))).collect();
        Ok(days.unwrap_or_else(in_zone))
    }

    /// The positions of the rows. `half` is 0 for the first ordinal of each row, 1 for the second.
    fn positions(&self, commit_times: &[Option<i128>], half: u64) -> Result<ArrayRef, BatchError> {
        let roles = &self.reader.roles;
        let cdc = !self.open().input.full_load;
        let file = self.file as u32;
        let per_row = self.reader.changes.ordinals_per_row() as u64;
        let numbers = self.row_numbers().iter();
        let ordinals = numbers.map(|row| *row as u64 * per_row + half);
        if let Some(at) = self.open().load_at() {
            let order = (self.reader.changes.is_packed(), roles.order.len());
            return Ok(positions_at(at + TO_ROWS, order, self.file, ordinals)?);
        }
        if self.reader.changes.is_packed() {
            let is_by_file = self.reader.changes.is_ordered_by_files();
            let times = commit_times.iter().map(|time| time.filter(|_| !is_by_file));
            return pack_column(cdc, times, file, ordinals).map_err(|row| {
                self.bad(row, roles.commit_time, "is a time out of range", "check the file")
            });
        }
        let columns = roles
            .order
            .iter()
            .flatten()
            .map(|column| {
                if Some(*column) == roles.commit_time {
                    // Compared as times: one time can be written in several ways.
                    Ok(Arc::new(Decimal128Array::from(commit_times.to_vec())) as ArrayRef)
                } else {
                    self.raw(*column)
                }
            })
            .collect::<Result<Vec<_>, BatchError>>()?;
        Ok(OrderEncoder::encode(cdc, &columns, file, ordinals)?)
    }

    fn check_key(&self) -> Result<(), BatchError> {
        for column in &self.reader.roles.key {
            let array = self.raw(*column)?;
            let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0);
            if let Some(row) = nulls.and_then(|nulls| nulls.iter().position(|valid| !valid)) {
                let hint = "a key column must not be null: check `key` and the file";
                return Err(self.bad(row, Some(*column), "is null", hint));
            }
        }
        Ok(())
    }

    /// Whether each row is its key's last change; `half` as in [`Batch::positions`].
    fn latest(&self, half: u64) -> ArrayRef {
        let winners = self.reader.pass.winners();
        let per_row = self.reader.changes.ordinals_per_row();
        let is_latest = |row: &i64| {
            let ordinal = *row as usize * per_row + half as usize;
            winners.is_some_and(|winners| winners.is_latest(self.file, ordinal))
        };
        let latest = self.row_numbers().iter().map(|row| Some(is_latest(row)));
        Arc::new(latest.collect::<BooleanArray>())
    }
}

/// The nulls of a column; `None` if there is none.
fn nulls(known: BooleanBuffer) -> Option<NullBuffer> {
    Some(NullBuffer::new(known)).filter(|nulls| nulls.null_count() > 0)
}

/// The newest of the times; with `inside`, of those inside.
fn newest(times: &[Option<i128>], inside: Option<&BooleanArray>) -> Option<i128> {
    match inside {
        None => times.iter().copied().max().flatten(),
        Some(inside) => {
            let selected = times.iter().zip(inside.values()).filter(|(_, inside)| *inside);
            selected.map(|(time, _)| *time).max().flatten()
        }
    }
}

/// Why operations do not say whether keys live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotLive {
    /// The index of the first truncate.
    Truncate(usize),
    /// The index of the first value that is no operation, where there is no truncate.
    Unknown(usize),
}

/// Whether each operation leaves its key alive.
fn live_rows(ops: &ArrayRef, values: &OpValues) -> Result<BooleanArray, NotLive> {
    let ops = match ops.data_type() {
        DataType::Utf8View => Arc::clone(ops),
        _ => cast(ops, &DataType::Utf8View).map_err(|_| NotLive::Unknown(0))?,
    };
    let texts = ops.as_string_view();
    let has_nulls = texts.null_count() > 0;
    let by_byte = values.by_byte();
    let (mut truncate, mut unknown) = (None, None);
    let live = BooleanBuffer::collect_bool(texts.len(), |index| {
        let view = texts.views()[index];
        let operation = match ((view as u32), (view >> 32) as u8) {
            _ if has_nulls && texts.is_null(index) => values.operation(None),
            // Nearly all values are one letter, which is in the view.
            (1, byte @ ..0x80) => by_byte[usize::from(byte)],
            _ => values.operation(Some(texts.value(index))),
        };
        match operation {
            Some(Operation::Truncate) => truncate = truncate.or(Some(index)),
            None => unknown = unknown.or(Some(index)),
            Some(_) => {}
        }
        operation != Some(Operation::Delete)
    });
    match (truncate, unknown) {
        (Some(index), _) => Err(NotLive::Truncate(index)),
        (None, Some(index)) => Err(NotLive::Unknown(index)),
        (None, None) => Ok(BooleanArray::new(live, None)),
    }
}

/// Whether each operation is an update.
fn update_rows(ops: &ArrayRef, values: &OpValues) -> Vec<bool> {
    let operations = operations(ops, values).into_iter();
    operations.map(|operation| operation == Some(Operation::Update)).collect()
}

/// The operations of a column; `None` for a value that is none.
fn operations(ops: &ArrayRef, values: &OpValues) -> Vec<Option<Operation>> {
    let Ok(ops) = cast(ops, &DataType::Utf8View) else {
        return vec![None; ops.len()];
    };
    ops.as_string_view().iter().map(|op| values.operation(op)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    #[test]
    fn operations_are_read_in_either_case_and_null_is_an_insert() {
        let ops: ArrayRef =
            Arc::new(StringArray::from(vec![Some("I"), Some("u"), Some("D"), Some("d"), None]));
        let live = live_rows(&ops, &OpValues::default()).expect("operations");
        assert_eq!(live, BooleanArray::from(vec![true, true, false, false, true]));
        let ops: ArrayRef = Arc::new(StringArray::from(vec!["I", "X"]));
        assert_eq!(live_rows(&ops, &OpValues::default()), Err(NotLive::Unknown(1)));
        let ops: ArrayRef = Arc::new(StringArray::from(vec!["X", "I", "t"]));
        assert_eq!(live_rows(&ops, &OpValues::default()), Err(NotLive::Truncate(2)));
    }
}
