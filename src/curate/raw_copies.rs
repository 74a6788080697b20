//! Rows of a history that are read from raw again.
//!
//! With `history_columns` a change that alters none of these columns has no row, and its other columns are nowhere but in
//! raw. If a change that comes late gives it a row ([`crate::curate::copies`]), it is read again, by the file and row
//! that its version names. That it is the same change is told by its key, its time and the hash of its row. A full load
//! that has a time can be written over an earlier one, which is then missing.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{and, filter_record_batch, take, take_record_batch};
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::future::BoxFuture;

use crate::changes::Changes;
use crate::changes::row_bitmap::RowBitmap;
use crate::config::{Pipeline, VALID_FROM};
use crate::curate::altered::ComparedColumns;
use crate::curate::copies::{CopiedColumns, next_copies};
use crate::curate::curated_sql::{self, CuratedRows};
use crate::curate::validity::valid_times;
use crate::error::{Error, Result};
use crate::parquet_io::open::conform;
use crate::state::versions::VersionsLayout;
use crate::table::sorter::{Readers, Sorted, Sorter, compact};
use crate::types::key::normalize_zeros;

/// What opens raw files again that earlier runs have folded.
pub(crate) trait ReopenRaw: Debug + Sync {
    /// Opens files, given by their raw locations and paths; those that are missing are left out.
    ///
    /// # Errors
    /// Data, when a file cannot be read; storage, when it cannot be reached.
    fn reopen(&self, files: Vec<(usize, String)>) -> BoxFuture<'_, Result<Arc<Changes>>>;
}

/// Reads rows from raw again.
pub(super) struct RawCopies<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) raw: &'a dyn ReopenRaw,
    pub(super) layout: &'a VersionsLayout,
    pub(super) compared: &'a ComparedColumns,
    pub(super) copied: &'a CopiedColumns,
    pub(super) context: &'a SessionContext,
}

/// The rows that are wanted of a batch, by input and row ordinal, and their numbers in it.
type Wanted = HashMap<(usize, usize), u32>;

impl RawCopies<'_> {
    /// Adds the rows that are asked for to the sorter of new rows; those whose files are missing are added to `published`, to
    /// be copied from the table. Returns these files.
    ///
    /// # Errors
    /// Data, when a file cannot be read, or has changed; storage, when it cannot be reached.
    pub(super) async fn make(
        &self,
        asked: Vec<Sorter>,
        rows: &mut Sorter,
        published: &mut Sorter,
    ) -> Result<BTreeSet<(usize, String)>> {
        let sorted = Sorted::new(&self.copied.raw_order, asked)?;
        let mut missing = BTreeSet::new();
        let mut readers = Readers::new();
        for folder in sorted.partitions() {
            let mut merge = sorted.rows(&folder, &mut readers)?;
            while let Some(batch) = next_copies(&mut merge, &self.copied.raw_order)? {
                missing.extend(self.make_some(&batch, rows, published).await?);
            }
        }
        Ok(missing)
    }

    async fn make_some(
        &self,
        asked: &RecordBatch,
        rows: &mut Sorter,
        published: &mut Sorter,
    ) -> Result<BTreeSet<(usize, String)>> {
        let sources = &asked.columns()[asked.num_columns() - 4..];
        let locations = sources[0].as_primitive::<Int32Type>();
        let (paths, numbers) =
            (sources[1].as_string::<i32>(), sources[2].as_primitive::<Int64Type>());
        let file = |at: usize| (locations.value(at) as usize, paths.value(at).to_string());
        let files: BTreeSet<(usize, String)> = (0..asked.num_rows()).map(file).collect();
        let changes = self.raw.reopen(files.iter().cloned().collect()).await?;
        let inputs = changes.inputs().enumerate();
        let inputs: HashMap<(usize, String), usize> = inputs
            .map(|(number, input)| ((input.file.location, input.file.path.clone()), number))
            .collect();
        let bitmap = RowBitmap::new(changes.ordinal_counts());
        let ordinals: Vec<u64> = changes.ordinal_counts().collect();
        let (mut wanted, mut lost) = (Wanted::new(), Vec::new());
        for at in 0..asked.num_rows() {
            let Some(input) = inputs.get(&file(at)) else {
                lost.push(at as u32);
                continue;
            };
            let row = numbers.value(at) as usize;
            if row as u64 >= ordinals[*input] {
                self.check_reload(&changes, (*input, row))?;
                lost.push(at as u32);
                continue;
            }
            bitmap.set_day(*input, row);
            bitmap.set_latest(*input, row);
            wanted.insert((*input, row), at as u32);
        }
        if !wanted.is_empty() {
            lost.extend(self.read(&changes, bitmap, (asked, wanted), rows).await?);
        }
        let missing = lost.iter().map(|at| file(*at as usize)).collect();
        if !lost.is_empty() {
            let pairs = asked.project(&(0..asked.num_columns() - 4).collect::<Vec<_>>())?;
            published.push(&take_record_batch(&pairs, &UInt32Array::from(lost))?)?;
        }
        Ok(missing)
    }

    /// Reads the rows that are wanted of changes. Returns those that are not there any more.
    async fn read(
        &self,
        changes: &Arc<Changes>,
        bitmap: RowBitmap,
        (asked, mut wanted): (&RecordBatch, Wanted),
        rows: &mut Sorter,
    ) -> Result<Vec<u32>> {
        let winners = Arc::new(bitmap.finish());
        let query = curated_sql::plan(self.context, self.pipeline, changes, &winners, 1).await?;
        let plan = self.context.state().create_physical_plan(&query.plan).await?;
        let layout = VersionsLayout { packed: changes.is_packed(), ..self.layout.clone() };
        let compared = self.compared.with_count(query.columns.len());
        let hashes = asked.column(asked.num_columns() - 1).as_primitive::<Int64Type>();
        let failed = |error| Error::query(&self.pipeline.curated.sql.file, error);
        let mut lost = Vec::new();
        for mut batches in execute_stream_partitioned(plan, self.context.task_ctx())? {
            while let Some(batch) = batches.try_next().await.map_err(failed)? {
                let of_batch = CuratedRows::of(&batch, query.columns.len());
                let positions = of_batch.positions();
                let instants = of_batch.keys().last();
                let found = compared.hashes(&batch)?;
                let found = found.as_primitive::<Int64Type>();
                let (mut of_batch, mut of_asked, mut ordinals) =
                    (Vec::new(), Vec::new(), Vec::new());
                for (row, ordinal) in layout.ordinals(positions).into_iter().enumerate() {
                    let Some(at) = wanted.remove(&ordinal) else { continue };
                    if found.is_null(row) || found.value(row) != hashes.value(at as usize) {
                        self.check_reload(changes, ordinal)?;
                        lost.push(at);
                        continue;
                    }
                    of_batch.push(row as u32);
                    of_asked.push(at);
                    ordinals.push(ordinal);
                }
                let (of_batch, at) = (UInt32Array::from(of_batch), UInt32Array::from(of_asked));
                let instants =
                    instants.map(|instants| take(instants, &of_batch, None)).transpose()?;
                let of_batch = take_record_batch(&batch, &of_batch)?;
                let of_query: Vec<usize> = (0..query.columns.len()).collect();
                let read = of_batch.project(&of_query)?;
                let to = self.copied.copies_of(&take_record_batch(asked, &at)?)?;
                let is_same = self.is_same(&read, instants.as_ref(), &to)?;
                for other in (0..at.len()).filter(|row| !is_same.value(*row)) {
                    self.check_reload(changes, ordinals[other])?;
                    lost.push(at.value(other));
                }
                let read = conform(&read, &self.copied.other_columns())?;
                let read = filter_record_batch(&read, &is_same)?;
                let to = filter_record_batch(&to, &is_same)?;
                rows.push(&compact(&self.copied.copies(&read, &to)?)?)?;
            }
        }
        match wanted.keys().next() {
            Some(ordinal) => Err(changed(changes, *ordinal)),
            None => Ok(lost),
        }
    }

    /// Which rows of the query, with these instants, have the keys and times of the copies.
    fn is_same(
        &self,
        read: &RecordBatch,
        instants: Option<&ArrayRef>,
        to: &RecordBatch,
    ) -> Result<BooleanArray> {
        let mut is_same = BooleanArray::from(vec![true; to.num_rows()]);
        let keys = conform(read, &to.schema())?;
        for name in &self.pipeline.key {
            let columns = (keys.column_by_name(name), to.column_by_name(name));
            let (Some(one), Some(other)) = columns else { continue };
            is_same = and(&is_same, &not_distinct(&normalize_zeros(one), other)?)?;
        }
        if let (Some(instants), Some(begins)) = (instants, to.column_by_name(VALID_FROM)) {
            let times = valid_times(instants.as_primitive());
            is_same = and(&is_same, &not_distinct(&times, begins)?)?;
        }
        Ok(is_same)
    }

    /// Refuses a row that is not the one that was folded, unless another full load was written over its file.
    fn check_reload(&self, changes: &Changes, ordinal: (usize, usize)) -> Result<()> {
        let is_load = changes.inputs().nth(ordinal.0).is_some_and(|input| input.full_load);
        if is_load && self.pipeline.raw.full_loads.at.is_time() {
            return Ok(());
        }
        Err(changed(changes, ordinal))
    }
}

/// The error for a row that is not the one that was folded.
fn changed(changes: &Changes, (input, row): (usize, usize)) -> Error {
    let name = changes.ordinal_name(input, row);
    Error::data(format!("{name} is not as it was when it was folded, and is to be read again"))
        .hint("restore the file, or rebuild the tables: glueless rebuild")
}
