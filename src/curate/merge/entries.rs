//! Entries: the rows that a merge sorts, winners and versions in one layout.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int8Array, Int64Array, RecordBatch, UInt16Array, UInt32Array, new_null_array,
};
use arrow::compute::not;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::common::hash_utils::{RandomState, create_hashes};

use crate::changes::Changes;
use crate::changes::file_order::{FileNumbers, RankedFiles};
use crate::error::{Error, Result};
use crate::layout::FileOrder;
use crate::state::floors::{Floor, KnownFloors};
use crate::state::versions::VersionsLayout;
use crate::table::sorter::{Order, Readers, Sorted, sort_rows};
use crate::types::key::canonical_column;

/// The number of rows per part of the keys, about.
const ROWS_PER_PART: u64 = 50_000;
/// The most parts of the keys.
const PARTS_MAX: u64 = 4096;

/// The origin of an entry: a winner.
pub(super) const WINNER: i8 = 0;

/// The origin of an entry: a version that is only looked up, whose file stays.
pub(super) const LOOKED_UP: i8 = 1;

/// The origin of an entry: a version whose file is rewritten.
pub(super) const REWRITTEN: i8 = 2;

/// The raw files of earlier runs and of this one, numbered as they are met.
pub(crate) struct Files {
    order: FileOrder,
    numbers: FileNumbers,
    /// Per input of this run its number.
    pub(super) of_run: Vec<u32>,
    /// Per number the input of this run, if it is one.
    in_run: Vec<Option<usize>>,
}

impl Files {
    /// The files of a run's inputs, to begin with.
    pub(crate) fn new(changes: &Changes) -> Self {
        let mut files = Files::of_earlier(changes.file_order());
        let inputs = changes.inputs().map(|input| &input.file);
        files.of_run = inputs.map(|file| files.numbers.number(file.location, &file.path)).collect();
        let count = files.of_run.iter().max().map_or(0, |last| *last as usize + 1);
        files.in_run = vec![None; count];
        files
            .of_run
            .iter()
            .zip(0..)
            .for_each(|(of, input)| files.in_run[*of as usize] = Some(input));
        files
    }

    /// The input of this run with this number.
    pub(super) fn in_run(&self, number: u32) -> Option<usize> {
        self.in_run.get(number as usize).copied().flatten()
    }

    /// The files of earlier runs alone.
    pub(super) fn of_earlier(order: FileOrder) -> Self {
        Files { order, numbers: FileNumbers::default(), of_run: Vec::new(), in_run: Vec::new() }
    }

    /// The same, with the files of floors.
    pub(crate) fn with_floors(self, floors: &KnownFloors) -> Self {
        floors.iter().for_each(|(floor, _)| {
            self.of_floor(floor);
        });
        self
    }

    /// The number of a floor's file.
    pub(super) fn of_floor(&self, floor: &Floor) -> u32 {
        self.numbers.number(floor.location, &floor.path)
    }

    /// The numbers of the files of a batch of versions.
    pub(super) fn of_versions(&self, batch: &RecordBatch) -> Result<UInt32Array> {
        let locations = column(batch, "location")?.as_primitive::<Int32Type>();
        Ok(self.numbers.numbers(locations, column(batch, "file")?.as_string()))
    }

    /// The files met so far, in the order of files.
    pub(super) fn ranked(&self) -> RankedFiles {
        self.numbers.ranked(self.order)
    }
}

/// The layout of entries: the columns of versions, with the file as a number, the origin, and the
/// part of the keys, by which the merge is divided.
pub(crate) struct Entries {
    pub(super) layout: Arc<VersionsLayout>,
    pub(super) order: Arc<Order>,
    pub(super) schema: SchemaRef,
    pub(super) keys: usize,
    pub(super) parts: u16,
}

impl Entries {
    /// The layout for merging this number of entries, about.
    pub(crate) fn new(layout: &Arc<VersionsLayout>, rows: u64) -> Result<Self> {
        let parts = rows.div_ceil(ROWS_PER_PART).clamp(1, PARTS_MAX) as u16;
        let mut fields: Vec<Field> = Vec::new();
        for field in layout.schema().fields() {
            match field.name().as_str() {
                "location" => {}
                "file" => fields.push(Field::new("file", DataType::UInt32, true)),
                _ => fields.push(field.as_ref().clone()),
            }
        }
        fields.push(Field::new("origin", DataType::Int8, false));
        fields.push(Field::new("part", DataType::UInt16, false));
        let part = fields.len() - 1;
        let schema = Arc::new(Schema::new(fields));
        let keys = layout.keys.len();
        let stored = (0..part).collect();
        let order = Order::new(Arc::clone(&schema), vec![part], Vec::new(), stored)?;
        Ok(Entries { layout: Arc::clone(layout), order: Arc::new(order), schema, keys, parts })
    }

    /// The entries of a part, sorted by key, then by day.
    ///
    /// Parts are small: to sort them when they are read is cheaper than to keep them sorted before, where
    /// the bytes to sort by are written to disk too.
    pub(super) fn sorted_part(
        &self,
        sorted: &Sorted,
        part: &str,
        readers: &mut Readers,
    ) -> Result<RecordBatch> {
        let by: Vec<usize> = (0..=self.keys).collect();
        sort_rows(&sorted.batches(part, readers)?, &by)
    }

    /// The part of each key, by its hash.
    pub(super) fn parts_of(&self, hashes: &[u64]) -> ArrayRef {
        // The lower half of the hash: the Bloom filter goes by the upper bits.
        let part = |hash: &u64| (*hash as u32 % u32::from(self.parts)) as u16;
        Arc::new(UInt16Array::from_iter_values(hashes.iter().map(part)))
    }

    /// The entries of a batch of winners (key columns, day, position; where versions have hashes of rows, whether the
    /// change leaves one, and its hash), and the hashes of their keys.
    pub(super) fn of_winners(
        &self,
        batch: &RecordBatch,
        files: &Files,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (number, (name, data_type)) in self.layout.keys.iter().enumerate() {
            columns.push(canonical_column(batch.column(number), name, data_type)?);
        }
        // All entries of the pipeline's key are in one part.
        let hashes = hash(&columns[..self.layout.key_count()])?;
        columns.push(Arc::clone(batch.column(self.keys)));
        for (_, data_type) in &self.layout.partitions {
            columns.push(new_null_array(data_type, rows));
        }
        let row = self.layout.has_row_hashes.then(|| &batch.columns()[self.keys + 2..]);
        let unknown = || new_null_array(&DataType::Boolean, rows);
        let deleted = row.map(|row| not(row[0].as_boolean())).transpose()?;
        columns.push(deleted.map_or_else(unknown, |deleted| Arc::new(deleted)));
        let positions = batch.column(self.keys + 1);
        columns.extend(self.layout.order_columns(positions));
        let ordinals = self.layout.ordinals(positions);
        let numbers = ordinals.iter().map(|(file, _)| files.of_run[*file]);
        columns.push(Arc::new(UInt32Array::from_iter_values(numbers)));
        let in_file = ordinals.iter().map(|(_, row)| *row as i64);
        columns.push(Arc::new(Int64Array::from_iter_values(in_file)));
        columns.push(new_null_array(&DataType::Int64, rows));
        columns.extend(row.map(|row| Arc::clone(&row[1])));
        columns.push(Arc::new(Int8Array::from(vec![WINNER; rows])));
        columns.push(self.parts_of(&hashes));
        Ok((RecordBatch::try_new(Arc::clone(&self.schema), columns)?, hashes))
    }

    /// The entries of a batch of versions, whose files have the numbers `files`.
    pub(super) fn of_versions(
        &self,
        batch: &RecordBatch,
        hashes: &[u64],
        origin: i8,
        files: &UInt32Array,
    ) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for field in &self.schema.fields()[..self.schema.fields().len() - 2] {
            columns.push(match field.name().as_str() {
                "file" => Arc::new(files.clone()),
                name => Arc::clone(column(batch, name)?),
            });
        }
        columns.push(Arc::new(Int8Array::from(vec![origin; batch.num_rows()])));
        columns.push(self.parts_of(hashes));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// A column of entries or versions.
pub(super) fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    let lost = || Error::internal(format!("entries lack the column `{name}`"));
    rows.column_by_name(name).ok_or_else(lost)
}

/// A hash per row of key columns.
pub(super) fn hash(keys: &[ArrayRef]) -> Result<Vec<u64>> {
    let mut hashes = vec![0; keys[0].len()];
    create_hashes(keys, &RandomState::default(), &mut hashes)?;
    Ok(hashes)
}
