//! Rebuilding a partition: its existing rows, minus removed rows, plus new ones.
//!
//! Both sides are sorted by the same columns, so they are merged as streams: the existing rows are
//! read once, batch by batch, whatever the partition's size. A tombstone must match an existing
//! row, and a new row must not: so a table that another program has changed is an error.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, Rows as RowKeys, SortField};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::layout::parent;
use crate::parquet_io::open::{ParquetFile, conform};
use crate::store::{Folder, parse_path};
use crate::table::TableFile;
use crate::table::sorter::{Merge, Order};

/// The size of the last part of a sorted key: the flag whether the row is present.
const FLAG_BYTES: usize = 2;

/// A published table whose partitions are rebuilt.
#[derive(Debug)]
pub(crate) struct PublishedTable {
    table: Folder,
    files: HashMap<String, Vec<TableFile>>,
    /// The stored columns.
    schema: SchemaRef,
    /// The indices of the stored columns that rows are sorted by.
    sorted_by: Vec<usize>,
    /// The index of the flag whether a row is present.
    present: usize,
    /// Whether rows can be equal in all columns that they are sorted by.
    is_keyless: bool,
}

impl PublishedTable {
    /// The table in a folder, with its files. The last stored column of new rows, also the last
    /// that they are sorted by, is the flag whether the row is present. Rows of a table without a
    /// key can be equal.
    ///
    /// # Errors
    /// Internal, when rows are not sorted by their stored columns.
    pub(crate) fn new<'a>(
        table: &Folder,
        listed: impl Iterator<Item = &'a TableFile>,
        order: &Order,
        is_keyless: bool,
    ) -> Result<Self> {
        let mut files: HashMap<String, Vec<TableFile>> = HashMap::new();
        for file in listed {
            let folder = parent(&file.path).to_string();
            files.entry(folder).or_default().push(file.clone());
        }
        for files in files.values_mut() {
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        let mut sorted_by = order.sorted_by()?;
        let present =
            sorted_by.pop().ok_or_else(|| Error::internal("rows of a table are not sorted"))?;
        let fields = order.stored_schema().fields();
        let stored: Vec<usize> = (0..fields.len()).filter(|field| *field != present).collect();
        Ok(PublishedTable {
            table: table.clone(),
            files,
            schema: Arc::new(Schema::new(order.stored_schema().project(&stored)?.fields)),
            sorted_by,
            present,
            is_keyless,
        })
    }

    /// The folders of its partitions, in no order.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Splits sorted rows into the table's columns and the flag whether each row is present.
    fn without_flag(&self, mut rows: RecordBatch) -> Result<(RecordBatch, BooleanArray)> {
        let present = rows.remove_column(self.present).as_boolean().clone();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), rows.columns().to_vec())?;
        Ok((rows, present))
    }

    fn changed(&self, folder: &str, how: &str) -> Error {
        let partition = self.table.describe(folder);
        Error::data(format!("{partition} is not as it was published: {how}"))
            .hint("another program changed the table: rebuild it with `glueless rebuild`")
    }

    /// Opens a partition's files: the number of their rows, and the rows.
    async fn open(&self, folder: &str) -> Result<(u64, BoxStream<'static, Result<RecordBatch>>)> {
        let mut rows = 0;
        let mut opened = Vec::new();
        for listed in self.files.get(folder).into_iter().flatten() {
            let name = self.table.describe(&listed.path);
            let changed = || {
                Error::data(format!("{name} is not the file that was published"))
                    .hint("another program changed the table: rebuild it with `glueless rebuild`")
            };
            let store = Arc::clone(&self.table.store);
            let file =
                ParquetFile::open(store, parse_path(&listed.path)?, listed.bytes, name.clone())
                    .await
                    .map_err(|error| {
                        if error.kind == Kind::Data || missing_object(&error).is_some() {
                            changed().caused_by(error)
                        } else {
                            error
                        }
                    })?;
            if file.row_count() != listed.rows {
                return Err(changed());
            }
            rows += file.row_count();
            opened.push(file.without_bytes());
        }
        let schema = Arc::clone(&self.schema);
        let batches = stream::iter(opened).flat_map(move |file| {
            let fields = file.schema().fields();
            let columns: Vec<usize> = (0..fields.len() - 1).collect();
            let schema = Arc::clone(&schema);
            file.read(&columns, BATCH_ROWS).map(move |batch| conform(&batch?, &schema)).boxed()
        });
        Ok((rows, batches.boxed()))
    }
}

/// The rows of one partition after the run, sorted.
pub(crate) struct Rebuilt<'a> {
    new: Merge<'a>,
    existing: Existing<'a>,
    rows_before: u64,
}

/// The existing rows of a partition.
enum Existing<'a> {
    /// Not read: new rows, which have no flag, replace the whole partition.
    Replaced,
    /// The partition is not in the table: all rows must be new.
    NoPartition(&'a PublishedTable, String),
    Rows(Box<MergeState<'a>>),
}

/// The existing rows of a partition and the rows to merge with them.
struct MergeState<'a> {
    table: &'a PublishedTable,
    folder: String,
    converter: RowConverter,
    batches: BoxStream<'static, Result<RecordBatch>>,
    old: Option<Old>,
    incoming: Option<Incoming>,
    /// The last key of the previous batch.
    last_key: Option<Vec<u8>>,
}

/// A batch of existing rows, merged up to `at`.
struct Old {
    rows: RecordBatch,
    keys: RowKeys,
    at: usize,
}

/// A batch of new rows and tombstones, merged up to `at`.
struct Incoming {
    rows: RecordBatch,
    present: BooleanArray,
    keys: BinaryArray,
    at: usize,
}

impl Incoming {
    fn key(&self) -> &[u8] {
        let key = self.keys.value(self.at);
        &key[..key.len() - FLAG_BYTES]
    }
}

impl<'a> Rebuilt<'a> {
    /// Merges new rows with the existing rows of a partition, if there are any; without `table` new
    /// rows replace the partition.
    ///
    /// # Errors
    /// Data, when a file is missing or is not the one that was published.
    pub(crate) async fn new(
        new: Merge<'a>,
        folder: &str,
        table: Option<&'a PublishedTable>,
    ) -> Result<Self> {
        let Some(table) = table else {
            return Ok(Rebuilt { new, existing: Existing::Replaced, rows_before: 0 });
        };
        if !table.files.contains_key(folder) {
            return Ok(Rebuilt {
                new,
                existing: Existing::NoPartition(table, folder.to_string()),
                rows_before: 0,
            });
        }
        let (rows_before, batches) = table.open(folder).await?;
        let fields = table
            .sorted_by
            .iter()
            .map(|column| SortField::new(table.schema.field(*column).data_type().clone()));
        Ok(Rebuilt {
            new: new.with_keys(),
            rows_before,
            existing: Existing::Rows(Box::new(MergeState {
                folder: folder.to_string(),
                converter: RowConverter::new(fields.collect())?,
                batches,
                old: None,
                incoming: None,
                last_key: None,
                table,
            })),
        })
    }

    /// The number of existing rows of the partition.
    pub(crate) fn rows_before(&self) -> u64 {
        self.rows_before
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Data, when the partition is not as it was published; storage, when rows cannot be
    /// read.
    pub(crate) async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let merge = match &mut self.existing {
            Existing::Replaced => return self.new.next_batch(),
            Existing::NoPartition(table, folder) => {
                let Some(rows) = self.new.next_batch()? else {
                    return Ok(None);
                };
                let (rows, present) = table.without_flag(rows)?;
                if present.true_count() < rows.num_rows() {
                    return Err(table.changed(folder, "a row is missing"));
                }
                return Ok(Some(rows));
            }
            Existing::Rows(merge) => merge,
        };
        loop {
            merge.fill(&mut self.new).await?;
            if merge.old.is_none() && merge.incoming.is_none() {
                return Ok(None);
            }
            if let Some(rows) = merge.merge()? {
                return Ok(Some(rows));
            }
        }
    }
}

impl MergeState<'_> {
    /// Reads the next batch of each side whose batch is used up.
    async fn fill(&mut self, new: &mut Merge<'_>) -> Result<()> {
        if self.incoming.is_none()
            && let Some(mut rows) = new.next_batch()?
        {
            let keys = rows.remove_column(rows.num_columns() - 1);
            let (rows, present) = self.table.without_flag(rows)?;
            self.incoming = Some(Incoming { keys: keys.as_binary().clone(), present, rows, at: 0 });
        }
        while self.old.is_none()
            && let Some(rows) = self.batches.try_next().await?
        {
            if rows.num_rows() == 0 {
                continue;
            }
            let columns: Vec<ArrayRef> = self
                .table
                .sorted_by
                .iter()
                .map(|column| Arc::clone(rows.column(*column)))
                .collect();
            let keys = if columns.is_empty() {
                self.converter.empty_rows(0, 0)
            } else {
                self.converter.convert_columns(&columns)?
            };
            let old = Old { rows, keys, at: 0 };
            self.check_sorted(&old)?;
            self.last_key = Some(old.key(old.rows.num_rows() - 1).to_vec());
            self.old = Some(old);
        }
        Ok(())
    }

    /// Checks that existing rows are sorted as they were written, without duplicate keys.
    fn check_sorted(&self, old: &Old) -> Result<()> {
        let is_keyless = self.table.is_keyless;
        let follows = |a: &[u8], b: &[u8]| a < b || (is_keyless && a == b);
        let last = self.last_key.as_deref();
        let first = last.is_none_or(|last| follows(last, old.key(0)));
        let rest = (1..old.rows.num_rows()).all(|row| follows(old.key(row - 1), old.key(row)));
        if !(first && rest) {
            return Err(self.changed("its rows are not in the order they were written in"));
        }
        Ok(())
    }

    fn changed(&self, how: &str) -> Error {
        self.table.changed(&self.folder, how)
    }

    /// Merges until the output batch is full or a side's batch is used up.
    fn merge(&mut self) -> Result<Option<RecordBatch>> {
        let mut picked: Vec<(usize, usize)> = Vec::with_capacity(BATCH_ROWS);
        let (mut old, mut incoming) = (self.old.take(), self.incoming.take());
        while picked.len() < BATCH_ROWS {
            let side = match (&old, &incoming) {
                (Some(old), _) if old.at == old.rows.num_rows() => break,
                (_, Some(new)) if new.at == new.rows.num_rows() => break,
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => match old.key(old.at).cmp(new.key()) {
                    // No row is removed: existing rows come first.
                    Ordering::Equal if self.table.is_keyless => Ordering::Less,
                    side => side,
                },
            };
            match (side, &mut old, &mut incoming) {
                (Ordering::Less, Some(old), _) => {
                    picked.push((0, old.at));
                    old.at += 1;
                }
                (Ordering::Equal, Some(old), Some(new)) if !new.present.value(new.at) => {
                    old.at += 1;
                    new.at += 1;
                }
                (Ordering::Greater, _, Some(new)) if new.present.value(new.at) => {
                    picked.push((1, new.at));
                    new.at += 1;
                }
                (Ordering::Equal, _, _) => {
                    return Err(self.changed("it has an unexpected row"));
                }
                _ => return Err(self.changed("a row is missing")),
            }
        }
        let sides: Vec<&RecordBatch> = match (&old, &incoming) {
            (Some(old), Some(new)) => vec![&old.rows, &new.rows],
            (Some(old), None) => vec![&old.rows],
            // The side of new rows has number 1.
            (None, Some(new)) => vec![&new.rows, &new.rows],
            (None, None) => vec![],
        };
        let rows =
            if picked.is_empty() { None } else { Some(interleave_record_batch(&sides, &picked)?) };
        self.old = old.filter(|old| old.at < old.rows.num_rows());
        self.incoming = incoming.filter(|new| new.at < new.rows.num_rows());
        Ok(rows)
    }
}

impl Old {
    fn key(&self, row: usize) -> &[u8] {
        match self.keys.num_rows() {
            // Rows are sorted by no column.
            0 => &[],
            _ => self.keys.row(row).data(),
        }
    }
}
