//! The rows of a key in the curated table, found through the key's versions.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, RecordBatch, Scalar,
    TimestampMicrosecondArray,
};

use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Date32Type, Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::{EndedRow, EqualChange, Explained, OpenPipeline, RowNow};
use crate::commands::open_pipeline::date;
use crate::config::{Keep, Pipeline, VALID_FROM};
use crate::curate::merge::rows_of_versions::{EndedBy, VersionRow, rows_of_versions};
use crate::curate::validity::valid_times;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result, missing_object};
use crate::layout::parent;
use crate::parquet_io::open::ParquetFile;
use crate::state::State;
use crate::state::contract::read_types;
use crate::state::floors::Floor;
use crate::state::ledger::CURATED;
use crate::state::versions::VersionsLayout;
use crate::store::{Folder, parse_path};
use crate::table::files::register_store;
use crate::table::partition_names::partition_folder;
use crate::types::key::canonical_column;

/// The most rows of the table that are looked for.
pub(super) const ROWS_MAX: usize = 100;

/// Finds the key's rows in the curated table.
pub(super) async fn rows_now(
    open: &OpenPipeline<'_>,
    state: &State,
    context: &SessionContext,
    folders: &[Folder],
    key: &[ArrayRef],
    explained: &mut Explained,
) -> Result<()> {
    let pipeline = open.run_context.pipeline;
    let (Some((versions, layout)), Some(contract)) = (state.versions()?, &state.ledger.contract)
    else {
        return Ok(());
    };
    register_store(context, state.folder());
    let mut rows = context.read_table(Arc::new(versions))?;
    for (number, (value, (name, kind))) in key.iter().zip(&layout.keys).enumerate() {
        let value = ScalarValue::try_from_array(&canonical_column(value, name, kind)?, 0)?;
        rows = rows.filter(ident(format!("key_{number}")).eq(lit(value)))?;
    }
    let columns = read_types(&contract.columns)?;
    let floors = state.ledger.all_floors();
    let layout = Arc::new(layout);
    let key_versions =
        KeyVersions { pipeline, layout: &layout, floors: &floors, columns: &columns, folders };
    let schema = Arc::new(rows.schema().as_arrow().clone());
    let batch = concat_batches(&schema, &rows.collect().await?)?;
    key_versions.add_rows(&batch, explained)?;
    explained.rows_now.sort_by_key(|row| (row.valid_from, row.day));
    if explained.rows_now.len() > ROWS_MAX {
        let earlier = explained.rows_now.len() - ROWS_MAX;
        explained.rows_now.drain(..earlier);
        explained.notes.push(format!("{earlier} earlier rows of the table are not listed"));
    }
    explained.ended.sort_by_key(|row| row.day);
    for row in &mut explained.rows_now {
        row.place = find_row(open, state, key, row).await?;
        if row.place.is_none() {
            explained.notes.push(format!(
                "the row that should be in {} was not found there: check the table with \
                 `glueless verify`",
                row.partition
            ));
        }
    }
    Ok(())
}

/// What says which versions of a key have a row in the table, and where.
struct KeyVersions<'a> {
    pipeline: &'a Pipeline,
    layout: &'a Arc<VersionsLayout>,
    floors: &'a [Floor],
    /// The columns of the table.
    columns: &'a [(String, DataType)],
    folders: &'a [Folder],
}

impl KeyVersions<'_> {
    /// Adds the rows of the key's versions, without their places; those that truncates have ended; and changes that
    /// left the row as it was.
    fn add_rows(&self, batch: &RecordBatch, explained: &mut Explained) -> Result<()> {
        let column =
            |name: &str| Ok::<_, Error>(batch.column(batch.schema().index_of(name)?).clone());
        let (event_dt, locations) = (column("event_dt")?, column("location")?);
        let (days, locations) =
            (event_dt.as_primitive::<Date32Type>(), locations.as_primitive::<Int32Type>().values());
        let key_count = self.layout.key_count();
        let instants = self.layout.has_instants.then(|| column(&format!("key_{key_count}")));
        let instants = instants.transpose()?.map(|instants| valid_times(instants.as_primitive()));
        let (files, row_numbers) = (cast(&column("file")?, &DataType::Utf8)?, column("row")?);
        let (files, row_numbers) =
            (files.as_string::<i32>(), row_numbers.as_primitive::<Int64Type>().values());
        let change_of = |at: usize| {
            let file = self.name(locations[at] as usize, files.value(at));
            (file, self.row(row_numbers[at] as u64))
        };
        let names: Vec<&str> =
            self.layout.partitions.iter().map(|(name, _)| name.as_str()).collect();
        let (order, keep) = (self.pipeline.raw.file_order(), self.pipeline.keep);
        let found = rows_of_versions(batch, self.layout, self.floors, order, keep)?;
        let parts = self.partition_values(batch, &found)?;
        let parts_of = |at: usize, of: usize| -> Vec<ArrayRef> {
            let numbered = parts.iter().enumerate();
            let row = |number: usize| if Some(number) == self.layout.day { at } else { of };
            numbered.map(|(number, part)| part.slice(row(number), 1)).collect()
        };
        for (at, row) in found.into_iter().enumerate().filter_map(|(at, row)| Some((at, row?))) {
            let (change_file, change_row) = change_of(at);
            if let Some(of) = row.equals {
                let (row_file, row_row) = change_of(of);
                let equal = EqualChange { change_file, change_row, row_file, row_row };
                explained.equal.push(equal);
                continue;
            }
            let day = days.is_valid(at).then(|| days.value(at)).and_then(date);
            let is_kept = row.end.is_some() || row.ended_by.is_none();
            if let (Some(EndedBy::Floor(floor)), false) = (&row.ended_by, is_kept) {
                explained.ended.push(self.ended_row((day, change_file, change_row), floor));
                continue;
            }
            let end = row.end.and_then(|end| DateTime::from_timestamp_micros(end.at));
            let cause = row.end.filter(|_| keep == Keep::History).map(|end| end.by.name());
            explained.rows_now.push(RowNow {
                day,
                valid_from: instants.as_ref().and_then(|instants| time_at(instants, at)),
                valid_to: end.filter(|_| keep == Keep::History),
                ended_by: cause,
                deleted_at: end.filter(|_| keep == Keep::LatestAndDeleted),
                deleted_by: row.ended_by.map(|by| match by {
                    EndedBy::Delete(at) => {
                        let (file, row) = change_of(at);
                        format!("row {row} of {file}")
                    }
                    EndedBy::Floor(floor) => self.describe_floor(&floor),
                }),
                partition: partition_folder(&names, &parts_of(at, row.partition_of), 0)?,
                place: None,
                change_file,
                change_row,
            });
        }
        Ok(())
    }

    /// The name of a raw file.
    fn name(&self, location: usize, path: &str) -> String {
        let folder = self.folders.get(location);
        folder.map_or(path.to_string(), |folder| folder.describe(path))
    }

    /// The row of a row ordinal, from 1.
    fn row(&self, ordinal: u64) -> u64 {
        ordinal / (1 + u64::from(self.pipeline.raw.before_image_prefix.is_some())) + 1
    }

    /// A row that a floor has taken out of the table: its day, the file of its change and the row there.
    fn ended_row(
        &self,
        (day, change_file, change_row): (Option<NaiveDate>, String, u64),
        floor: &Floor,
    ) -> EndedRow {
        let has_file = floor.by_hand.is_none();
        let file = has_file.then(|| self.name(floor.location, &floor.path));
        EndedRow {
            day,
            change_file,
            change_row,
            truncate_at: floor.by_hand,
            truncate_file: file.unwrap_or_default(),
            truncate_row: (has_file && !floor.is_load).then(|| self.row(floor.row)),
        }
    }

    fn describe_floor(&self, floor: &Floor) -> String {
        let file = || self.name(floor.location, &floor.path);
        match floor.by_hand {
            Some(at) => format!("a truncate, which was set by hand at {at}"),
            None if floor.is_load => format!("a full load, {}", file()),
            None => format!("a truncate, row {} of {}", self.row(floor.row), file()),
        }
    }

    /// The partition columns of a batch, with the types of the table, and what is known of the rows.
    fn partition_values(
        &self,
        batch: &RecordBatch,
        rows: &[Option<VersionRow>],
    ) -> Result<Vec<ArrayRef>> {
        let mut parts: Vec<ArrayRef> = Vec::new();
        for (number, (name, _)) in self.layout.partitions.iter().enumerate() {
            if self.pipeline.keep.is_own(name) {
                let current = rows.iter().map(|row| row.as_ref().map(|row| row.end.is_none()));
                parts.push(Arc::new(current.collect::<BooleanArray>()));
                continue;
            }
            let (_, kind) =
                self.columns.iter().find(|(column, _)| column == name).ok_or_else(|| {
                    Error::internal(format!("the column `{name}` is missing in the ledger"))
                })?;
            let part = batch.column(batch.schema().index_of(&format!("part_{number}"))?);
            parts.push(cast(part, kind)?);
        }
        Ok(parts)
    }
}

/// The time in a row of a column of times.
fn time_at(times: &ArrayRef, at: usize) -> Option<DateTime<Utc>> {
    let times = times.as_primitive::<TimestampMicrosecondType>();
    times.is_valid(at).then(|| times.value(at)).and_then(DateTime::from_timestamp_micros)
}

/// The file of a partition, and the row in it, where the key's row is.
async fn find_row(
    open: &OpenPipeline<'_>,
    state: &State,
    key: &[ArrayRef],
    wanted: &RowNow,
) -> Result<Option<(String, u64)>> {
    let pipeline = open.run_context.pipeline;
    let folder = &open.output(CURATED)?.folder;
    let files = state.ledger.files(CURATED);
    for listed in files.filter(|file| parent(&file.path) == wanted.partition) {
        let path = parse_path(&listed.path)?;
        let name = folder.describe(&listed.path);
        let opened = ParquetFile::open(Arc::clone(&folder.store), path, listed.bytes, name).await;
        let file = match opened {
            // A missing file is reported as a row that was not found.
            Err(error) if missing_object(&error).is_some() => continue,
            opened => opened?,
        };
        let column_index = |name: &str| file.schema().index_of(name).ok();
        let mut columns: Vec<(usize, ArrayRef)> = Vec::new();
        for (name, value) in pipeline.key.iter().zip(key) {
            columns.extend(column_index(name).map(|column| (column, value.clone())));
        }
        let per_day = pipeline.keep == Keep::LatestPerDay;
        let day = state.ledger.contract.as_ref().and_then(|contract| contract.day());
        if let (Some(column), true) = (day.and_then(column_index), per_day) {
            let day: ArrayRef =
                Arc::new(Date32Array::from(vec![wanted.day.map(Date32Type::from_naive_date)]));
            columns.push((column, day));
        }
        if let (Some(column), Keep::History) = (column_index(VALID_FROM), pipeline.keep) {
            let time = wanted.valid_from.map(|time| time.timestamp_micros());
            columns.push((column, Arc::new(TimestampMicrosecondArray::from(vec![time]))));
        }
        columns.sort_by_key(|(column, _)| *column);
        columns.dedup_by_key(|(column, _)| *column);
        let read: Vec<usize> = columns.iter().map(|(column, _)| *column).collect();
        let deleted = listed.read_deleted(folder).await?;
        let mut batches = file.read(&read, BATCH_ROWS);
        while let Some(batch) = batches.try_next().await? {
            let mut is_match = vec![true; batch.num_rows()];
            for (at, (_, value)) in columns.iter().enumerate() {
                let value = Scalar::new(cast(value, batch.column(at).data_type())?);
                let same = not_distinct(batch.column(at), &value)?;
                let each = is_match.iter_mut().zip(same.values());
                each.for_each(|(is_match, same)| *is_match &= same);
            }
            let rows = batch.column(batch.num_columns() - 1).as_primitive::<Int64Type>();
            let is_live =
                |row: &i64| deleted.as_ref().is_none_or(|bits| !bits.value(*row as usize));
            let mut rows = is_match.iter().zip(rows.values());
            let found = rows.find(|(is_match, row)| **is_match && is_live(row));
            if let Some((_, row)) = found {
                return Ok(Some((listed.path.clone(), *row as u64 + 1)));
            }
        }
    }
    Ok(None)
}
