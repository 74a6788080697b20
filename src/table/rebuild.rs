//! Rebuilding a partition: the rows it had, less those that go, plus those that come.
//!
//! Both sides come sorted by the same columns, so they are merged as streams: what a partition
//! holds is read once, batch by batch, whatever its size. A tombstone must meet its row and a new
//! row must not meet one: a table that someone else changed is found out, and not papered over.

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

/// How a sorted key ends: the flag of a row that is there takes two bytes.
const FLAG_BYTES: usize = 2;

/// A published table, for the partitions that are rebuilt.
#[derive(Debug)]
pub struct Earlier {
    table: Folder,
    files: HashMap<String, Vec<TableFile>>,
    /// The stored columns.
    schema: SchemaRef,
    /// Those of them that rows are sorted by.
    sorted_by: Vec<usize>,
    present: usize,
    /// Whether rows can be equal in all that they are sorted by.
    is_keyless: bool,
}

impl Earlier {
    /// The table in a folder, whose files are listed. New rows come in an order whose last column,
    /// kept and sorted by last, is the flag of a row that is there. Those of a table without a key
    /// can be equal.
    ///
    /// # Errors
    /// Internal, when rows are not sorted by their stored columns.
    pub fn new<'a>(
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
        let present = sorted_by
            .pop()
            .ok_or_else(|| Error::internal("rows of a table are not sorted"))?;
        let fields = order.stored_schema().fields();
        let stored: Vec<usize> = (0..fields.len())
            .filter(|field| *field != present)
            .collect();
        Ok(Earlier {
            table: table.clone(),
            files,
            schema: Arc::new(Schema::new(order.stored_schema().project(&stored)?.fields)),
            sorted_by,
            present,
            is_keyless,
        })
    }

    /// The table's columns of sorted rows, and the flag of those that are there.
    fn without_flag(&self, mut rows: RecordBatch) -> Result<(RecordBatch, BooleanArray)> {
        let present = rows.remove_column(self.present).as_boolean().clone();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), rows.columns().to_vec())?;
        Ok((rows, present))
    }

    fn changed(&self, folder: &str, how: &str) -> Error {
        let partition = self.table.describe(folder);
        Error::data(format!("{partition} is not as it was published: {how}"))
            .hint("someone else changed the table: make it again with `glueless rebuild`")
    }

    /// Opens a partition's files.
    async fn open(&self, folder: &str) -> Result<(u64, BoxStream<'static, Result<RecordBatch>>)> {
        let mut rows = 0;
        let mut opened = Vec::new();
        for listed in self.files.get(folder).into_iter().flatten() {
            let name = self.table.describe(&listed.path);
            let changed = || {
                Error::data(format!("{name} is not the file that was published"))
                    .hint("someone else changed the table: make it again with `glueless rebuild`")
            };
            let store = Arc::clone(&self.table.store);
            let file =
                ParquetFile::open(store, parse_path(&listed.path)?, listed.bytes, name.clone())
                    .await
                    .map_err(|error| {
                        match error.kind == Kind::Data || missing_object(&error).is_some() {
                            true => changed().caused_by(error),
                            false => error,
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
            file.read(&columns, BATCH_ROWS)
                .map(move |batch| conform(&batch?, &schema))
                .boxed()
        });
        Ok((rows, batches.boxed()))
    }
}

/// The rows of one partition after the run, sorted.
pub struct Rebuilt<'a> {
    new: Merge<'a>,
    before: Held<'a>,
    rows_before: u64,
}

/// What a partition held.
enum Held<'a> {
    /// Nothing, and its rows have no flag.
    Unknown,
    /// Nothing: all rows are new.
    Nothing(&'a Earlier, String),
    Rows(Box<Before<'a>>),
}

/// What a partition held, and what is merged with it.
struct Before<'a> {
    earlier: &'a Earlier,
    folder: String,
    converter: RowConverter,
    batches: BoxStream<'static, Result<RecordBatch>>,
    old: Option<Old>,
    incoming: Option<Incoming>,
    /// The last key of the batch before.
    last_key: Option<Vec<u8>>,
}

/// Rows that were there, and how far they are merged.
struct Old {
    rows: RecordBatch,
    keys: RowKeys,
    at: usize,
}

/// Rows that come, and tombstones.
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
    /// Merges new rows with those that a partition held, if it held any.
    ///
    /// # Errors
    /// Data, when a file is missing or is not the one that was published.
    pub async fn new(new: Merge<'a>, folder: &str, earlier: Option<&'a Earlier>) -> Result<Self> {
        let Some(earlier) = earlier else {
            return Ok(Rebuilt {
                new,
                before: Held::Unknown,
                rows_before: 0,
            });
        };
        if !earlier.files.contains_key(folder) {
            return Ok(Rebuilt {
                new,
                before: Held::Nothing(earlier, folder.to_string()),
                rows_before: 0,
            });
        }
        let (rows_before, batches) = earlier.open(folder).await?;
        let fields = earlier
            .sorted_by
            .iter()
            .map(|column| SortField::new(earlier.schema.field(*column).data_type().clone()));
        Ok(Rebuilt {
            new: new.with_keys(),
            rows_before,
            before: Held::Rows(Box::new(Before {
                folder: folder.to_string(),
                converter: RowConverter::new(fields.collect())?,
                batches,
                old: None,
                incoming: None,
                last_key: None,
                earlier,
            })),
        })
    }

    /// How many rows the partition held.
    pub fn rows_before(&self) -> u64 {
        self.rows_before
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Data, when the partition does not hold what was published; storage, when rows cannot be
    /// read.
    pub async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let before = match &mut self.before {
            Held::Unknown => return self.new.next_batch(),
            Held::Nothing(earlier, folder) => {
                let Some(rows) = self.new.next_batch()? else {
                    return Ok(None);
                };
                let (rows, present) = earlier.without_flag(rows)?;
                return match present.true_count() == rows.num_rows() {
                    true => Ok(Some(rows)),
                    false => Err(earlier.changed(folder, "a row is missing")),
                };
            }
            Held::Rows(before) => before,
        };
        loop {
            before.fill(&mut self.new).await?;
            if before.old.is_none() && before.incoming.is_none() {
                return Ok(None);
            }
            if let Some(rows) = before.merge()? {
                return Ok(Some(rows));
            }
        }
    }
}

impl Before<'_> {
    /// Gets the next batch of each side that has none.
    async fn fill(&mut self, new: &mut Merge<'_>) -> Result<()> {
        if self.incoming.is_none()
            && let Some(mut rows) = new.next_batch()?
        {
            let keys = rows.remove_column(rows.num_columns() - 1);
            let (rows, present) = self.earlier.without_flag(rows)?;
            self.incoming = Some(Incoming {
                keys: keys.as_binary().clone(),
                present,
                rows,
                at: 0,
            });
        }
        while self.old.is_none()
            && let Some(rows) = self.batches.try_next().await?
        {
            if rows.num_rows() == 0 {
                continue;
            }
            let columns: Vec<ArrayRef> = self
                .earlier
                .sorted_by
                .iter()
                .map(|column| Arc::clone(rows.column(*column)))
                .collect();
            let keys = match columns.is_empty() {
                true => self.converter.empty_rows(0, 0),
                false => self.converter.convert_columns(&columns)?,
            };
            let old = Old { rows, keys, at: 0 };
            self.check_sorted(&old)?;
            self.last_key = Some(old.key(old.rows.num_rows() - 1).to_vec());
            self.old = Some(old);
        }
        Ok(())
    }

    /// The rows of the table were written sorted, and no key twice.
    fn check_sorted(&self, old: &Old) -> Result<()> {
        let is_keyless = self.earlier.is_keyless;
        let follows = |a: &[u8], b: &[u8]| a < b || (is_keyless && a == b);
        let last = self.last_key.as_deref();
        let first = last.is_none_or(|last| follows(last, old.key(0)));
        let rest = (1..old.rows.num_rows()).all(|row| follows(old.key(row - 1), old.key(row)));
        match first && rest {
            true => Ok(()),
            false => Err(self.changed("its rows are not in the order they were written in")),
        }
    }

    fn changed(&self, how: &str) -> Error {
        self.earlier.changed(&self.folder, how)
    }

    /// Merges until a batch is full or a side's batch has ended.
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
                    // No row goes: what was there comes first.
                    Ordering::Equal if self.earlier.is_keyless => Ordering::Less,
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
                    return Err(self.changed("it holds a row that should not be there"));
                }
                _ => return Err(self.changed("a row is missing")),
            }
        }
        let sides: Vec<&RecordBatch> = match (&old, &incoming) {
            (Some(old), Some(new)) => vec![&old.rows, &new.rows],
            (Some(old), None) => vec![&old.rows],
            // The only side has number 1.
            (None, Some(new)) => vec![&new.rows, &new.rows],
            (None, None) => vec![],
        };
        let rows = match picked.is_empty() {
            true => None,
            false => Some(interleave_record_batch(&sides, &picked)?),
        };
        self.old = old.filter(|old| old.at < old.rows.num_rows());
        self.incoming = incoming.filter(|new| new.at < new.rows.num_rows());
        Ok(rows)
    }
}

impl Old {
    fn key(&self, row: usize) -> &[u8] {
        match self.keys.num_rows() {
            // A partition of one key.
            0 => &[],
            _ => self.keys.row(row).data(),
        }
    }
}
