//! The partition writer: writes sorted partitions to Parquet files in staging.
//!
//! Each thread writes one partition, and one file, at a time, so that memory and file handles do
//! not grow with the number of partitions. Nothing that readers see is changed here.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::row::{RowConverter, SortField};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

use crate::engine::session::BATCH_ROWS;
use crate::engine::tasks::{Work, join_all, spawn, spawn_blocking};
use crate::error::{Error, Result};
use crate::store::{Folder, parse_path};
use crate::table::deletion_vector::{DeletionVector, VectorsFile};
use crate::table::rebuild::existing::Kept;
use crate::table::rebuild::{PublishedTable, Rebuilt};
use crate::table::sorter::{Readers, Sorted};

/// The size limit of a row group, which is in memory until it is complete.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// The size of the parts of an upload, one of which is buffered: the smallest that S3 accepts.
const UPLOAD_BYTES: usize = 5 << 20;

/// The size from which on a local file is synced to the disk as soon as it is complete.
const SYNCED_EARLY_BYTES: u64 = 8 << 20;

/// The size at which a file of deletion vectors is closed.
const VECTORS_BYTES: u64 = 64 << 20;

/// The share of distinct values in a batch from which on a column has too many for a dictionary.
const DISTINCT_PERCENT: usize = 97;
/// The most batches of a partition in which a full one of rows is searched.
const LOOKED_AT_MAX: usize = 8;

/// A file in staging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StagedFile {
    /// The partition it belongs to, as a relative folder; empty for an unpartitioned table.
    pub partition: String,
    /// Its path relative to the staging folder.
    pub staged: String,
    /// The number of its rows, from its footer.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Writes the files of a table to staging.
#[derive(Clone, Debug)]
pub(crate) struct TableWriter {
    /// The staging folder.
    pub staging: Folder,
    /// The folder of the files in staging.
    pub prefix: String,
    /// The size at which a file is closed and the partition's next one is started.
    pub file_bytes: u64,
}

/// A written partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The partition, as a relative folder.
    pub partition: String,
    /// The number of its rows before the run, from the footers of its files.
    pub rows_before: u64,
    /// Its new files; none if it has no new rows and all others stay where they are.
    pub files: Vec<StagedFile>,
    /// Its files that stay.
    pub kept: Vec<KeptFile>,
}

/// A published file that stays when its partition changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptFile {
    /// Its path in the table.
    pub path: String,
    /// The number of its rows that readers see now.
    pub rows: u64,
    /// Its deletion vector, if it has a new one, whose path is not decided yet.
    pub deleted: Option<DeletionVector>,
}

/// A partition that was written, but for its deletion vectors.
struct PartitionWritten {
    number: usize,
    partition: String,
    rows_before: u64,
    files: Vec<StagedFile>,
    kept: Vec<Kept>,
    /// Large files that are written to the disk now.
    syncing: Vec<BoxFuture<'static, Result<()>>>,
}

impl TableWriter {
    /// Writes every partition: the rows that stay of its existing ones in `table`, if given, and new rows.
    /// The result is sorted by partition.
    ///
    /// # Errors
    /// Storage, when staging cannot be written or rows cannot be read; data, when the partition
    /// is not what was published.
    pub(crate) async fn write(
        &self,
        sorted: Sorted,
        table: Option<Arc<PublishedTable>>,
        threads: usize,
    ) -> Result<Vec<Written>> {
        let mut partitions: Vec<(usize, String)> =
            sorted.partitions().into_iter().enumerate().collect();
        // Those with the fewest new rows come last, so that threads end at about the same time.
        partitions.sort_by_key(|(_, folder)| Reverse(sorted.counts().get(folder).copied()));
        let plain = hardly_repeated_columns(&sorted, table.as_deref()).await?;
        let shared = Arc::new((sorted, Work::new(partitions), plain));
        let vectors = table.as_ref().map(|table| Arc::new(table.memory()));
        let tasks = (0..threads).map(|_| {
            let (writer, shared) = (self.clone(), Arc::clone(&shared));
            let (table, vectors) = (table.clone(), vectors.clone());
            spawn(async move {
                let (sorted, partitions, plain) = &*shared;
                let write = async {
                    let (mut readers, mut written) = (Readers::new(), Vec::new());
                    let mut syncing = Vec::new();
                    while let Some((number, folder)) = partitions.next() {
                        let new = sorted.rows(&folder, &mut readers)?;
                        let rows = Rebuilt::new(new, &folder, table.as_deref()).await?;
                        let mut one = writer.write_sorted(number, &folder, rows, plain).await?;
                        // So many as are written meanwhile, and no more.
                        let before =
                            std::mem::replace(&mut syncing, std::mem::take(&mut one.syncing));
                        join_all(before.into_iter()).await?;
                        let vectors_bytes: usize = one.kept.iter().map(Kept::bytes).sum();
                        // Later in a file of vectors too.
                        vectors.iter().for_each(|vectors| vectors.grow(2 * vectors_bytes));
                        written.push(one);
                    }
                    join_all(syncing.into_iter()).await?;
                    Ok(written)
                };
                partitions.run(write).await
            })
        });
        let mut written: Vec<PartitionWritten> =
            join_all(tasks).await?.into_iter().flatten().collect();
        written.sort_by_key(|written| written.number);
        self.write_vectors(written).await
    }

    /// Writes the deletion vectors of all partitions to a file, or to more if it becomes too large.
    async fn write_vectors(&self, written: Vec<PartitionWritten>) -> Result<Vec<Written>> {
        // Each with whether its vectors will be in the log.
        let mut vectors: Vec<(bool, VectorsFile)> = Vec::new();
        let mut all = Vec::new();
        for one in written {
            let mut kept = Vec::new();
            for Kept { path, rows, deleted } in one.kept {
                let deleted = deleted.map(|deleted| {
                    let is_inline = deleted.fits_inline();
                    let is_open = |(inline, file): &(bool, VectorsFile)| {
                        *inline == is_inline && file.bytes() < VECTORS_BYTES
                    };
                    let open = vectors.iter().position(is_open).unwrap_or_else(|| {
                        let staged = format!("{}/vectors-{:05}.bin", self.prefix, vectors.len());
                        vectors.push((is_inline, VectorsFile::new(staged)));
                        vectors.len() - 1
                    });
                    vectors[open].1.add(&deleted)
                });
                kept.push(KeptFile { path, rows, deleted });
            }
            let PartitionWritten { partition, rows_before, files, .. } = one;
            all.push(Written { partition, rows_before, files, kept });
        }
        let sizes: HashMap<String, u64> =
            vectors.iter().map(|(_, file)| (file.staged().to_string(), file.bytes())).collect();
        let vectors_kept = all.iter_mut().flat_map(|one| &mut one.kept);
        for deleted in vectors_kept.filter_map(|kept| kept.deleted.as_mut()) {
            let size = deleted.staged.as_ref().and_then(|staged| sizes.get(staged));
            deleted.file_bytes = size.copied().unwrap_or_default();
        }
        for (_, file) in vectors {
            let staged = file.staged().to_string();
            let path = parse_path(&staged)?;
            let put = self.staging.store.put(&path, file.into_bytes().into()).await;
            put.map_err(|error| {
                Error::store(format!("write {}", self.staging.describe(&staged)), error)
            })?;
        }
        Ok(all)
    }

    /// Writes a partition, after sorting all of its rows if they are to be sorted.
    async fn write_sorted(
        &self,
        number: usize,
        folder: &str,
        mut rows: Rebuilt<'_>,
        plain: &[String],
    ) -> Result<PartitionWritten> {
        let Some(order) = rows.to_sort() else {
            return self.write_partition(number, folder, rows, plain).await;
        };
        let (rows_before, kept) = (rows.rows_before(), rows.take_kept());
        let sorted = rows.sorted(&order).await?;
        let mut readers = Readers::new();
        let rows = Rebuilt::whole(sorted.rows("", &mut readers)?, rows_before);
        let written = self.write_partition(number, folder, rows, plain).await?;
        Ok(PartitionWritten { kept, ..written })
    }

    /// Begins to sync a file if it is large, while others are made; small ones are cheaper to sync
    /// together, before the commit.
    fn begin_sync(&self, file: &StagedFile) -> Option<BoxFuture<'static, Result<()>>> {
        let (staging, staged) = (self.staging.clone(), [file.staged.clone()]);
        let is_large = file.bytes >= SYNCED_EARLY_BYTES;
        is_large.then(|| spawn_blocking(move || staging.sync(&staged)).boxed())
    }

    async fn write_partition(
        &self,
        number: usize,
        folder: &str,
        mut rows: Rebuilt<'_>,
        plain: &[String],
    ) -> Result<PartitionWritten> {
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        let (mut files, mut syncing) = (Vec::new(), Vec::new());
        let mut open: Option<OpenFile> = None;
        while let Some(batch) = rows.next_batch().await? {
            let file = match &mut open {
                Some(file) => file,
                None => {
                    let staged = format!("{}/{number:06}-{:05}.parquet", self.prefix, files.len());
                    let written = parquet_properties(&staged, &plain);
                    open.insert(OpenFile {
                        partition: folder.to_string(),
                        writer: parquet_writer(&self.staging, &staged, batch.schema(), written)?,
                        staged,
                    })
                }
            };
            file.write(&self.staging, &batch).await?;
            if file.bytes() >= self.file_bytes
                && let Some(full) = open.take()
            {
                let full = full.close(&self.staging).await?;
                syncing.extend(self.begin_sync(&full));
                files.push(full);
            }
        }
        if let Some(last) = open {
            let last = last.close(&self.staging).await?;
            syncing.extend(self.begin_sync(&last));
            files.push(last);
        }
        Ok(PartitionWritten {
            syncing,
            number,
            partition: folder.to_string(),
            rows_before: rows.rows_before(),
            files,
            kept: rows.take_kept(),
        })
    }
}

/// The columns whose values hardly repeat, so that the writer would build a dictionary only to
/// abandon it: in a full batch of new rows of the first partition that has so many, or else of existing
/// rows.
async fn hardly_repeated_columns(
    sorted: &Sorted,
    table: Option<&PublishedTable>,
) -> Result<Vec<String>> {
    let mut readers = Readers::new();
    let is_large = |(_, rows): &(&String, &u64)| **rows >= BATCH_ROWS as u64;
    if let Some((folder, _)) = sorted.counts().iter().find(is_large) {
        let mut rows = sorted.rows(folder, &mut readers)?;
        // Tombstones come first.
        for _ in 0..LOOKED_AT_MAX {
            let Some(batch) = rows.next_batch()? else { break };
            let batch = match table {
                None => batch,
                Some(table) => {
                    let (rows, present) = table.without_flag(batch)?;
                    filter_record_batch(&rows, &present)?
                }
            };
            if batch.num_rows() == BATCH_ROWS {
                return hardly_repeated_in(&batch);
            }
        }
    }
    for folder in sorted.partitions() {
        if let Some(table) = table
            && let Some(batch) = table.full_batch(&folder).await?
        {
            return hardly_repeated_in(&batch);
        }
    }
    Ok(Vec::new())
}

fn hardly_repeated_in(batch: &RecordBatch) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    for (field, column) in columns.filter(|(field, _)| !field.data_type().is_nested()) {
        let converter = RowConverter::new(vec![SortField::new(field.data_type().clone())])?;
        let values = converter.convert_columns(&[Arc::clone(column)])?;
        let distinct: HashSet<&[u8]> = values.iter().map(|row| row.data()).collect();
        if distinct.len() * 100 >= batch.num_rows() * DISTINCT_PERCENT {
            found.push(field.name().clone());
        }
    }
    Ok(found)
}

/// The properties of a Parquet object: Snappy compression, and no dictionary for the columns
/// `hardly_repeated`.
pub(crate) fn parquet_properties(path: &str, hardly_repeated: &[&str]) -> WriterPropertiesBuilder {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        // So that no two files are equal, even with equal rows: see `crate::publish`.
        .set_key_value_metadata(Some(vec![KeyValue::new("glueless".into(), path.to_string())]))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
    for column in hardly_repeated {
        properties = properties.set_column_dictionary_enabled((*column).into(), false);
    }
    properties
}

/// A Parquet writer to an object of a folder, without an Arrow schema in the footer, so that
/// readers see plain Parquet types.
///
/// # Errors
/// Internal, when a type cannot be written.
pub(crate) fn parquet_writer(
    folder: &Folder,
    path: &str,
    schema: SchemaRef,
    properties: WriterPropertiesBuilder,
) -> Result<AsyncArrowWriter<BufWriter>> {
    let options = ArrowWriterOptions::new()
        .with_properties(properties.build())
        .with_skip_arrow_metadata(true);
    let path = crate::store::parse_path(path)?;
    let output = BufWriter::with_capacity(Arc::clone(&folder.store), path, UPLOAD_BYTES);
    Ok(AsyncArrowWriter::try_new_with_options(output, schema, options)?)
}

/// Checks that a table with these columns can be written.
///
/// # Errors
/// Usage, naming `file` and the column that cannot be stored.
pub(crate) fn check_columns<'a>(
    file: &str,
    columns: impl Iterator<Item = &'a Field>,
    partition_by: &[String],
) -> Result<()> {
    let mut stored = 0;
    for column in columns {
        stored += usize::from(!partition_by.contains(column.name()));
        if matches!(
            column.data_type(),
            DataType::Null | DataType::Interval(_) | DataType::Duration(_) | DataType::Union(_, _)
        ) {
            return Err(Error::usage(format!(
                "{file}: the column `{}` has a type that Parquet tables do not support",
                column.name()
            ))
            .hint("cast it: CAST(… AS …)"));
        }
    }
    match stored {
        0 => Err(Error::usage(format!("{file} has only partition columns"))),
        _ => Ok(()),
    }
}

/// The error for a failed write of an object.
pub(crate) fn write_error(
    folder: &Folder,
    path: &str,
    error: parquet::errors::ParquetError,
) -> Error {
    let cause = Error::from(error);
    let failed = Error::storage(format!("cannot write {}", folder.describe(path)));
    let hint = cause.hint.clone().unwrap_or_else(|| "check its permissions and free space".into());
    failed.hint(hint).caused_by(cause)
}

/// A file that is being written.
pub(crate) struct OpenFile {
    partition: String,
    staged: String,
    writer: AsyncArrowWriter<BufWriter>,
}

impl OpenFile {
    /// A file of a folder, which belongs to no partition.
    ///
    /// # Errors
    /// Internal, when a type cannot be written.
    pub(crate) fn new(
        folder: &Folder,
        path: String,
        schema: SchemaRef,
        properties: WriterPropertiesBuilder,
    ) -> Result<Self> {
        let writer = parquet_writer(folder, &path, schema, properties)?;
        Ok(OpenFile { partition: String::new(), staged: path, writer })
    }

    /// Writes rows.
    ///
    /// # Errors
    /// Storage, when the file cannot be written.
    pub(crate) async fn write(&mut self, staging: &Folder, rows: &RecordBatch) -> Result<()> {
        self.writer.write(rows).await.map_err(|error| write_error(staging, &self.staged, error))
    }

    /// Its size so far, with what is still to be compressed.
    pub(crate) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Ends it.
    ///
    /// # Errors
    /// Storage, when it cannot be written.
    pub(crate) async fn close(mut self, staging: &Folder) -> Result<StagedFile> {
        let footer = self
            .writer
            .finish()
            .await
            .map_err(|error| write_error(staging, &self.staged, error))?;
        Ok(StagedFile {
            rows: footer.file_metadata().num_rows().max(0) as u64,
            bytes: self.writer.bytes_written() as u64,
            partition: self.partition,
            staged: self.staged,
        })
    }
}
