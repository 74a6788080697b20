//! The rows of a day, in the order of changes, with the raw file and row that each comes from.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringViewBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::col;
use futures::TryStreamExt;
use parquet::basic::{Compression, ZstdLevel};

use crate::changes::position::Position;
use crate::changes::reader::{ChangesTable, numbered};
use crate::changes::row_bitmap::RowBitmap;
use crate::changes::{ChangeColumn, Changes, commit_time};
use crate::commands::compact::CompactedFile;
use crate::engine::session::session;
use crate::error::{Error, Result};
use crate::store::Folder;
use crate::table::writer::{OpenFile, parquet_properties};

/// The columns that a compacted file has besides those of raw: the raw file, the row in it from 1, and the time of the file.
const OWN_COLUMNS: [&str; 3] = ["_raw_file", "_raw_row", "_raw_time"];

/// How full a file may become before it is closed, in percent: a slice of rows follows.
const FULL_PERCENT: u64 = 95;
/// The number of rows after each of which a file may be closed.
const SLICE_ROWS: usize = 1_024;

/// Where files are written.
pub(super) struct Written<'a> {
    pub(super) folder: &'a Folder,
    /// The folder in it.
    pub(super) prefix: &'a str,
    /// The name of a file, by its number from 1.
    pub(super) name: &'a dyn Fn(usize) -> String,
    pub(super) file_bytes: u64,
}

/// Writes all rows of some inputs.
///
/// # Errors
/// Data, when a row has no place in the order of changes; storage, when files cannot be written.
pub(super) async fn write_day(
    changes: &Arc<Changes>,
    raw: &[Folder],
    written: &Written<'_>,
    (runtime, threads): (&Arc<RuntimeEnv>, usize),
) -> Result<Vec<CompactedFile>> {
    let columns = Columns::of(changes, raw);
    let all = RowBitmap::new(changes.ordinal_counts());
    for (file, rows) in changes.ordinal_counts().enumerate() {
        (0..rows as usize).for_each(|row| all.set_day(file, row));
    }
    let wanted = columns.raw.iter().map(|column| ChangeColumn::Raw(*column));
    let wanted = numbered([ChangeColumn::Position].into_iter().chain(wanted));
    let table = ChangesTable::pass_two(changes, Arc::new(all.finish()), wanted, threads);
    let context = session(runtime, threads);
    let sorted = context.read_table(Arc::new(table))?.sort(vec![col("\"0\"").sort(true, false)])?;
    let mut rows = sorted.execute_stream().await?;
    let (mut files, mut open): (Vec<CompactedFile>, Option<OpenFile>) = (Vec::new(), None);
    while let Some(batch) = rows.try_next().await? {
        let batch = columns.batch(changes, &batch)?;
        for start in (0..batch.num_rows()).step_by(SLICE_ROWS) {
            let slice = batch.slice(start, SLICE_ROWS.min(batch.num_rows() - start));
            let file = match &mut open {
                Some(file) => file,
                None => open.insert(new_file(written, files.len() + 1, &columns.schema)?),
            };
            file.write(written.folder, &slice).await?;
            if file.bytes() >= written.file_bytes / 100 * FULL_PERCENT
                && let Some(full) = open.take()
            {
                files.push(closed(full, written, files.len() + 1).await?);
            }
        }
    }
    if let Some(last) = open {
        files.push(closed(last, written, files.len() + 1).await?);
    }
    Ok(files)
}

fn new_file(written: &Written<'_>, number: usize, schema: &SchemaRef) -> Result<OpenFile> {
    let name = (written.name)(number);
    let level = ZstdLevel::try_new(1)?;
    let properties = parquet_properties(&name, &[]).set_compression(Compression::ZSTD(level));
    OpenFile::new(
        written.folder,
        format!("{}/{name}", written.prefix),
        Arc::clone(schema),
        properties,
    )
}

async fn closed(file: OpenFile, written: &Written<'_>, number: usize) -> Result<CompactedFile> {
    let staged = file.close(written.folder).await?;
    Ok(CompactedFile { name: (written.name)(number), rows: staged.rows, bytes: staged.bytes })
}

/// The columns of the files of a day.
struct Columns {
    /// The raw columns, by their numbers; those that have only nulls are left out, because their type is not known.
    raw: Vec<usize>,
    schema: SchemaRef,
    /// Whether the raw files have the columns of this module already, because they were compacted before.
    has_own: bool,
    /// The name and the time of each input.
    inputs: Vec<(String, i64)>,
}

impl Columns {
    fn of(changes: &Changes, raw: &[Folder]) -> Self {
        let fields = changes.raw_schema().fields();
        let has_own = OWN_COLUMNS.iter().all(|own| fields.find(own).is_some());
        let has_values = |number: &usize| *fields[*number].data_type() != DataType::Null;
        let numbers: Vec<usize> = (0..fields.len()).filter(has_values).collect();
        let mut named: Vec<Field> =
            numbers.iter().map(|number| fields[*number].as_ref().clone()).collect();
        if !has_own {
            let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
            let types = [DataType::Utf8View, DataType::Int64, time];
            let own = OWN_COLUMNS.iter().zip(types);
            named.extend(own.map(|(name, data_type)| Field::new(*name, data_type, true)));
        }
        let inputs = changes.inputs().map(|input| {
            let zone = changes.time_zone();
            let time = commit_time::time_of_file(&input.file, zone).div_euclid(1_000);
            let name = raw[input.file.location].describe(&input.file.path);
            (name, i64::try_from(time).unwrap_or(i64::MAX))
        });
        Columns {
            raw: numbers,
            schema: Arc::new(Schema::new(named)),
            has_own,
            inputs: inputs.collect(),
        }
    }

    /// A batch of positions and raw columns as one of the files.
    fn batch(&self, changes: &Changes, read: &RecordBatch) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = read.columns()[1..].to_vec();
        if !self.has_own {
            let places = places(changes, read.column(0));
            let mut files =
                StringViewBuilder::with_capacity(places.len()).with_deduplicate_strings();
            for (file, _) in &places {
                files.append_value(&self.inputs[*file].0);
            }
            let rows: Int64Array = places.iter().map(|(_, row)| Some(*row as i64 + 1)).collect();
            let times: TimestampMicrosecondArray =
                places.iter().map(|(file, _)| Some(self.inputs[*file].1)).collect();
            columns.push(Arc::new(files.finish()));
            columns.push(Arc::new(rows));
            columns.push(Arc::new(times.with_timezone("UTC")));
        }
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| Error::internal("rows lost a column").caused_by(error))
    }
}

/// The input and the row of each position.
fn places(changes: &Changes, positions: &ArrayRef) -> Vec<(usize, usize)> {
    if changes.is_packed() {
        <i128>::read(positions).iter().map(Position::file_and_row).collect()
    } else {
        <Box<[u8]>>::read(positions).iter().map(Position::file_and_row).collect()
    }
}
