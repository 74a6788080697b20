//! Rebuilding a partition: its existing rows, less removed rows, then new ones.
//!
//! The existing rows are read as a stream, in the order in which they are stored, and those whose key
//! is to be removed are left out. The keys to remove are in memory; if they are too many, a first
//! part of them is searched in the key columns alone, and the rows found are marked, before the next
//! part is read. So are rows that get another end, where rows end and stay. Every key must be found exactly once, and
//! every file must have the size and the number of rows that were published: so a table that another program
//! has changed is an error.
//!
//! New rows come in their own order. If the table is sorted, all rows of the partition are then sorted
//! together.
//!
//! With deletion vectors ([`PublishedTable::with_deletion_vectors`]) files stay, and their removed rows
//! are only marked, but for files that have lost much and for small files of which there are many: see
//! [`existing`].

use std::collections::{HashMap, HashSet};
use std::iter::Peekable;
use std::num::NonZeroU32;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringViewArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter_record_batch, take, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::stream::{BoxStream, TryStreamExt};

use crate::error::{Error, Result};
use crate::layout::parent;
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::rebuild::existing::{Existing, Kept};
use crate::table::row_end::{Cause, RowEnd};
use crate::table::sorter::{Merge, Order, Sorted, Sorter, compact};

pub(crate) mod existing;

/// The memory of a key to remove, besides its bytes.
const BYTES_PER_KEY: usize = 96;

/// The least keys of a pass over a partition, however little memory there is.
const PASS_KEYS_MIN: usize = 32_768;

/// How a table identifies and sorts its rows.
#[derive(Clone, Debug)]
pub(crate) struct TableRows {
    /// The order of new rows and of tombstones, which come before all rows of their partition. The
    /// last stored column is the flag whether the row is present: false for a tombstone.
    pub order: Arc<Order>,
    /// The columns that identify a row in its partition, as indices into the stored columns; none if
    /// no row is ever removed.
    pub key: Vec<usize>,
    /// The columns by which the rows of a partition are sorted, as indices into the stored columns;
    /// if there are none, rows stay where they are.
    pub sort_by: Vec<usize>,
    /// The columns with the end of a row, if rows can end and stay. A tombstone with an end does not remove its row:
    /// the row gets this end.
    pub ends: Option<EndColumns>,
}

/// The columns of a row that can end and stay, as indices into the stored columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndColumns {
    /// The time of its end; null if it has none.
    pub end: usize,
    /// A flag that says whether it has ended; `None` if it is a partition column: then a row without an end gets none here.
    pub flag: Option<usize>,
    /// The flag of a row that has ended.
    pub flag_of_ended: bool,
    /// The text of [`Cause`], null if it has not ended; `None` if the table does not say it.
    pub by: Option<usize>,
}

/// A published table whose partitions are rebuilt.
#[derive(Debug)]
pub(crate) struct PublishedTable {
    table: Folder,
    files: HashMap<String, Vec<TableFile>>,
    /// The number of its files.
    file_count: usize,
    /// The stored columns.
    schema: SchemaRef,
    /// The columns that identify a row.
    key: Vec<usize>,
    /// The columns with the end of a row, if rows can end and stay.
    ends: Option<EndColumns>,
    /// The order in which the rows of a partition are sorted, if they are.
    sorted: Option<Arc<Order>>,
    runtime: Arc<RuntimeEnv>,
    /// Where the memory of keys and of rows that are sorted is reserved. It is there before new rows
    /// fill the memory, so that some is left for it.
    memory: MemoryReservation,
    /// The size at which files are closed, if removed rows are marked in deletion vectors.
    vectors: Option<u64>,
}

impl PublishedTable {
    /// The table in a folder, with its files. It sets memory aside for the rebuild, so it must be there
    /// before new rows fill the memory.
    ///
    /// # Errors
    /// Internal, when a column cannot be compared.
    pub(crate) fn new<'a>(
        table: &Folder,
        listed: impl Iterator<Item = &'a TableFile>,
        rows: &TableRows,
        runtime: Arc<RuntimeEnv>,
    ) -> Result<Self> {
        let mut files: HashMap<String, Vec<TableFile>> = HashMap::new();
        for file in listed {
            let folder = parent(&file.path).to_string();
            files.entry(folder).or_default().push(file.clone());
        }
        for files in files.values_mut() {
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        let fields = rows.order.stored_schema().fields();
        let schema = Arc::new(Schema::new(fields[..fields.len() - 1].to_vec()));
        let sorted = (!rows.sort_by.is_empty()).then(|| {
            let all = (0..schema.fields().len()).collect();
            Order::new(Arc::clone(&schema), Vec::new(), rows.sort_by.clone(), all)
        });
        let memory = MemoryConsumer::new("existing rows of a table");
        let memory = memory.with_can_spill(!files.is_empty());
        Ok(PublishedTable {
            memory: memory.register(&runtime.memory_pool),
            table: table.clone(),
            file_count: files.values().map(Vec::len).sum(),
            files,
            schema,
            key: rows.key.clone(),
            ends: rows.ends,
            sorted: sorted.transpose()?.map(Arc::new),
            runtime,
            vectors: None,
        })
    }

    /// The table, whose files stay where few of their rows are removed; files are closed at `file_bytes`.
    pub(crate) fn with_deletion_vectors(self, file_bytes: u64) -> Self {
        PublishedTable { vectors: Some(file_bytes), ..self }
    }

    /// Where the memory of new deletion vectors is reserved.
    pub(crate) fn memory(&self) -> MemoryReservation {
        self.memory.new_empty()
    }

    /// The folders of its partitions, in no order.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Splits rows into the table's columns and the flag whether each row is present.
    pub(crate) fn without_flag(
        &self,
        mut rows: RecordBatch,
    ) -> Result<(RecordBatch, BooleanArray)> {
        let present = rows.remove_column(rows.num_columns() - 1).as_boolean().clone();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), rows.columns().to_vec())?;
        Ok((rows, present))
    }

    /// The names of the columns that identify a row.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().map(|column| self.schema.field(*column).name().as_str())
    }

    /// Finds existing rows of a partition by their keys, given by their columns, all of which must be there, and each
    /// once.
    ///
    /// # Errors
    /// Internal, when a key is given twice.
    pub(crate) fn find_rows<'a>(
        &'a self,
        folder: &'a str,
        keys: &[ArrayRef],
    ) -> Result<FoundRows<'a>> {
        let mut wanted = Removals::new(self)?;
        wanted.look_for(keys)?;
        let files = self.listed(folder).iter().enumerate();
        Ok(FoundRows { table: self, folder, wanted, files, reading: None })
    }

    /// Existing rows, some of which get another end.
    fn with_ends(&self, rows: RecordBatch, ended: &[Ended]) -> Result<RecordBatch> {
        let (Some(of_end), false) = (self.ends, ended.is_empty()) else {
            return Ok(rows);
        };
        let mut columns = rows.columns().to_vec();
        let before = columns[of_end.end].as_primitive::<TimestampMicrosecondType>();
        let mut ends: Vec<Option<i64>> = before.iter().collect();
        ended.iter().for_each(|(row, end)| ends[*row] = Some(end.at));
        if let Some(flag) = of_end.flag {
            let flags = ends.iter().map(|end| Some(end.is_some() == of_end.flag_of_ended));
            columns[flag] = Arc::new(flags.collect::<BooleanArray>());
        }
        let kind = self.schema.field(of_end.end).data_type().clone();
        let ends = TimestampMicrosecondArray::from(ends).with_data_type(kind);
        columns[of_end.end] = Arc::new(ends);
        if let Some(by) = of_end.by {
            let mut causes: Vec<Option<&str>> = rows.column(by).as_string_view().iter().collect();
            ended.iter().for_each(|(row, end)| causes[*row] = Some(end.by.name()));
            columns[by] = Arc::new(StringViewArray::from(causes));
        }
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    }

    fn changed(&self, folder: &str, how: &str) -> Error {
        let partition = self.table.describe(folder);
        Error::data(format!("{partition} is not as it was published: {how}"))
            .hint("another program changed the table: rebuild it with `glueless rebuild`")
    }

    /// A partition's files, in the order in which they are read.
    fn listed(&self, folder: &str) -> &[TableFile] {
        self.files.get(folder).map_or(&[], Vec::as_slice)
    }
}

/// Existing rows that are looked for.
pub(crate) struct FoundRows<'a> {
    table: &'a PublishedTable,
    folder: &'a str,
    /// The keys, which have their numbers for ends.
    wanted: Removals,
    files: std::iter::Enumerate<std::slice::Iter<'a, TableFile>>,
    /// The file that is being read, and the number of rows read.
    reading: Option<(Existing, Rows, usize)>,
}

impl FoundRows<'_> {
    /// The next rows, with the number of the key of each; `None` at the end.
    ///
    /// # Errors
    /// Data, when the partition is not as it was published; storage, when it cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Option<(RecordBatch, Vec<usize>)>> {
        loop {
            let Some((existing, rows, read)) = &mut self.reading else {
                let Some((number, listed)) = self.files.next() else { break };
                let existing = self.table.open(listed, number).await?;
                let rows = self.table.read(&existing.file, &self.table.all_columns())?;
                self.reading = Some((existing, rows, 0));
                continue;
            };
            let Some(batch) = rows.try_next().await? else {
                self.reading = None;
                continue;
            };
            let is_deleted = |row| existing.is_deleted(*read + row);
            let (table, wanted) = (self.table, &mut self.wanted);
            let (_, found) = wanted.find(table, self.folder, &batch, &table.key, is_deleted)?;
            *read += batch.num_rows();
            if !found.is_empty() {
                let rows = UInt32Array::from_iter_values(found.iter().map(|(row, _)| *row as u32));
                let numbers = found.iter().map(|(_, number)| number.at as usize).collect();
                return Ok(Some((take_record_batch(&batch, &rows)?, numbers)));
            }
        }
        self.wanted.check_all_found(self.table, self.folder)?;
        Ok(None)
    }
}

/// A stream of rows.
type Rows = BoxStream<'static, Result<RecordBatch>>;

/// The rows of one partition after the run.
pub(crate) struct Rebuilt<'a> {
    new: Merge<'a>,
    /// Not read: new rows, which have no flag, replace the whole partition.
    published: Option<Published<'a>>,
    rows_before: u64,
    kept: Vec<Kept>,
}

/// A partition of a published table.
struct Published<'a> {
    table: &'a PublishedTable,
    folder: String,
    existing: Unread,
    /// The first new rows, which were read with the last tombstones.
    first: Option<RecordBatch>,
}

/// The existing rows of a partition that were not read yet.
struct Unread {
    reading: Option<Reading>,
    files: std::vec::IntoIter<Existing>,
    /// Keys whose rows are left out, besides those that are deleted already.
    removed: Removals,
}

/// A file that is being read.
struct Reading {
    rows: Rows,
    /// The number of rows read.
    read: usize,
    /// Its deleted rows: a bit per row.
    deleted: Option<BooleanBuffer>,
    /// Rows that were found to get another end, in their order, from the next one on.
    ended: Peekable<std::vec::IntoIter<Ended>>,
}

/// A row that gets another end: its number, and the end.
type Ended = (usize, RowEnd);

/// What becomes of the row of a key. It is small: there can be many.
struct Removal {
    was_found: bool,
    /// Which of the ends the row gets; `None` if it is removed.
    end: Option<NonZeroU32>,
}

/// Keys to remove, and whether each was found.
struct Removals {
    keys: HashMap<Box<[u8]>, Removal, RandomState>,
    /// The ends that rows get, from number 1 on.
    ends: Vec<RowEnd>,
    /// Their hashes: most rows have none of them, and their keys need not be made.
    hashes: HashSet<u64, RandomState>,
    converter: RowConverter,
    memory: MemoryReservation,
    /// The memory of rows that were found to get another end.
    memory_of_ended: MemoryReservation,
}

impl<'a> Rebuilt<'a> {
    /// Takes removed rows out of a partition, and adds new ones; without `table` new rows replace the
    /// partition.
    ///
    /// # Errors
    /// Data, when a file is missing or is not the one that was published, or when a row to remove is
    /// missing.
    pub(crate) async fn new(
        mut new: Merge<'a>,
        folder: &str,
        table: Option<&'a PublishedTable>,
    ) -> Result<Self> {
        let Some(table) = table else {
            return Ok(Rebuilt { new, published: None, rows_before: 0, kept: Vec::new() });
        };
        let mut removed = Removals::new(table)?;
        let (mut tombstones, mut first) = (None, None);
        let mut is_whole = removed.fill(table, &mut new, &mut tombstones, &mut first)?;
        let listed = table.listed(folder);
        let marks = table.can_mark(listed, first.is_some());
        let is_opened = !marks || !removed.keys.is_empty();
        let mut files = Vec::new();
        for (number, file) in listed.iter().enumerate() {
            files.push(if is_opened { Some(table.open(file, number).await?) } else { None });
        }
        // Where no rows are marked, the last keys are searched while the rows are read.
        while !is_whole || (marks && !removed.keys.is_empty()) {
            removed.search(table, folder, files.iter_mut().flatten()).await?;
            removed.clear();
            if !is_whole {
                is_whole = removed.fill(table, &mut new, &mut tombstones, &mut first)?;
            }
        }
        // That there are new rows may be known only now.
        let (kept, files) = if table.can_mark(listed, first.is_some()) {
            table.divide(listed, files, first.is_some()).await?
        } else {
            (Vec::new(), files.into_iter().flatten().collect())
        };
        let existing = Unread { reading: None, files: files.into_iter(), removed };
        let published = Published { table, folder: folder.to_string(), existing, first };
        let rows_before = listed.iter().map(TableFile::live_rows).sum();
        Ok(Rebuilt { new, published: Some(published), rows_before, kept })
    }

    /// Rows that are the whole partition, instead of `rows_before` rows.
    pub(crate) fn whole(new: Merge<'a>, rows_before: u64) -> Self {
        Rebuilt { new, published: None, rows_before, kept: Vec::new() }
    }

    /// The existing files that stay. They are not among the rows.
    pub(crate) fn take_kept(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// The number of existing rows of the partition.
    pub(crate) fn rows_before(&self) -> u64 {
        self.rows_before
    }

    /// The order in which all rows of the partition are to be sorted; `None` if they are in it, or stay
    /// as they are.
    pub(crate) fn to_sort(&self) -> Option<Arc<Order>> {
        let table = self.published.as_ref()?.table;
        table.sorted.clone().filter(|_| self.rows_before > 0)
    }

    /// Sorts all rows.
    ///
    /// # Errors
    /// As [`Rebuilt::next_batch`].
    pub(crate) async fn sorted(mut self, order: &Arc<Order>) -> Result<Sorted> {
        let table = self.published.as_ref().map(|published| published.table);
        let table = table.ok_or_else(|| Error::internal("no table to sort"))?;
        let (runtime, memory) = (Arc::clone(&table.runtime), table.memory.new_empty());
        let mut sorter = Sorter::with_memory(Arc::clone(order), runtime, memory);
        while let Some(rows) = self.next_batch().await? {
            sorter.push(&compact(&rows)?)?;
        }
        Sorted::new(order, vec![sorter])
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Data, when the partition is not as it was published; storage, when rows cannot be
    /// read.
    pub(crate) async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let Some(published) = &mut self.published else {
            return self.new.next_batch();
        };
        if let Some(rows) = published.next_existing().await? {
            return Ok(Some(rows));
        }
        if let Some(rows) = published.first.take() {
            return Ok(Some(rows));
        }
        let Some(rows) = self.new.next_batch()? else {
            return Ok(None);
        };
        let (rows, present) = published.table.without_flag(rows)?;
        if present.has_false() {
            return Err(Error::internal("a tombstone comes after new rows"));
        }
        Ok(Some(rows))
    }
}

impl Published<'_> {
    /// The next existing rows that stay; `None` at the end.
    async fn next_existing(&mut self) -> Result<Option<RecordBatch>> {
        let Unread { reading, files, removed } = &mut self.existing;
        loop {
            let Some(Reading { rows, read, deleted, ended: found_before }) = reading else {
                let Some(next) = files.next() else { break };
                let rows = self.table.read(&next.file, &self.table.all_columns())?;
                let deleted = next.deleted();
                let ended = next.into_ended().into_iter().peekable();
                *reading = Some(Reading { rows, read: 0, deleted, ended });
                continue;
            };
            let Some(batch) = rows.try_next().await? else {
                *reading = None;
                continue;
            };
            let first = *read;
            *read += batch.num_rows();
            let is_deleted = |row| deleted.as_ref().is_some_and(|bits| bits.value(first + row));
            let (found, mut ended) =
                removed.find(self.table, &self.folder, &batch, &self.table.key, is_deleted)?;
            while let Some((row, end)) = found_before.next_if(|(row, _)| *row < *read) {
                ended.push((row - first, end));
            }
            let batch = self.table.with_ends(batch, &ended)?;
            let mut stays = !&found;
            if let Some(deleted) = deleted {
                stays = &stays & &!&deleted.slice(first, batch.num_rows());
            }
            match stays.count_set_bits() {
                0 => {}
                count if count == batch.num_rows() => return Ok(Some(batch)),
                _ => {
                    let stays = BooleanArray::new(stays, None);
                    return Ok(Some(filter_record_batch(&batch, &stays)?));
                }
            }
        }
        removed.check_all_found(self.table, &self.folder)?;
        Ok(None)
    }
}

impl Removals {
    fn new(table: &PublishedTable) -> Result<Self> {
        let types = table.key.iter().map(|column| table.schema.field(*column).data_type().clone());
        Ok(Removals {
            keys: HashMap::default(),
            ends: Vec::new(),
            hashes: HashSet::default(),
            converter: RowConverter::new(types.map(SortField::new).collect())?,
            memory: table.memory.new_empty(),
            memory_of_ended: table.memory.new_empty(),
        })
    }

    /// Takes the keys of the next tombstones, as many as memory allows. `rest` are tombstones that were
    /// read but not taken. Returns whether all are taken; then `first` are the new rows that were read
    /// with them.
    fn fill(
        &mut self,
        table: &PublishedTable,
        new: &mut Merge<'_>,
        rest: &mut Option<RecordBatch>,
        first: &mut Option<RecordBatch>,
    ) -> Result<bool> {
        loop {
            let tombstones = match rest.take() {
                Some(rest) => rest,
                None if first.is_some() => return Ok(true),
                None => {
                    let Some(rows) = new.next_batch()? else { return Ok(true) };
                    let (rows, present) = table.without_flag(rows)?;
                    let flags = present.iter();
                    let count = flags.take_while(|present| *present == Some(false)).count();
                    if count < rows.num_rows() {
                        *first = Some(rows.slice(count, rows.num_rows() - count));
                    }
                    rows.slice(0, count)
                }
            };
            let columns = table.key.iter().map(|column| Arc::clone(tombstones.column(*column)));
            let columns: Vec<ArrayRef> = columns.collect();
            let keys = self.keys_of(&columns, tombstones.num_rows())?;
            let of_end = if table.ends.is_none() { 0 } else { size_of::<RowEnd>() };
            let bytes = keys.iter().map(|key| key.len() + BYTES_PER_KEY + of_end).sum();
            if self.memory.try_grow(bytes).is_err() {
                if self.keys.len() >= PASS_KEYS_MIN {
                    *rest = Some(tombstones);
                    return Ok(false);
                }
                self.memory.grow(bytes);
            }
            self.hashes.extend(hashes_of(&columns, keys.len())?);
            let ends = table.ends.map(|of| tombstones.column(of.end));
            let ends = ends.map(|ends| ends.as_primitive::<TimestampMicrosecondType>());
            let causes = table.ends.and_then(|of| of.by).map(|by| tombstones.column(by));
            let causes = causes.map(|causes| causes.as_string_view());
            for (row, key) in keys.into_iter().enumerate() {
                let at = ends.filter(|ends| ends.is_valid(row)).map(|ends| ends.value(row));
                let by = match causes {
                    None => Some(Cause::Update),
                    Some(causes) => Cause::named(causes.value(row)),
                };
                let end = at.map(|at| Some(RowEnd { at, by: by? }));
                let unknown = || Error::internal("it is not known what has ended a row");
                let end = end.map(|end| end.ok_or_else(unknown)).transpose()?;
                self.ends.extend(end);
                let number = end.and_then(|_| NonZeroU32::new(self.ends.len().try_into().ok()?));
                if end.is_some() && number.is_none() {
                    return Err(Error::internal("too many rows of a partition end"));
                }
                self.keys.insert(key, Removal { was_found: false, end: number });
            }
        }
    }

    /// Takes keys that are only looked for, with their numbers for ends.
    fn look_for(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let count = columns.first().map_or(0, |column| column.len());
        let keys = self.keys_of(columns, count)?;
        let of_end = size_of::<RowEnd>();
        self.memory.grow(keys.iter().map(|key| key.len() + BYTES_PER_KEY + of_end).sum());
        self.hashes.extend(hashes_of(columns, count)?);
        for (number, key) in (0..).zip(keys) {
            self.ends.push(RowEnd { at: number, by: Cause::Update });
            let end = NonZeroU32::new(self.ends.len() as u32);
            if self.keys.insert(key, Removal { was_found: false, end }).is_some() {
                return Err(Error::internal("a row is looked for twice"));
            }
        }
        Ok(())
    }

    /// Finds the keys in the key columns of files, and marks their rows as deleted.
    async fn search(
        &mut self,
        table: &PublishedTable,
        folder: &str,
        files: impl Iterator<Item = &mut Existing>,
    ) -> Result<()> {
        let key: Vec<usize> = (0..table.key.len()).collect();
        for existing in files {
            let mut rows = table.read(&existing.file, &table.key)?;
            let mut read = 0;
            while let Some(batch) = rows.try_next().await? {
                let is_deleted = |row| existing.is_deleted(read + row);
                let (found, ended) = self.find(table, folder, &batch, &key, is_deleted)?;
                existing.delete(read, &found);
                self.memory_of_ended.grow(ended.len() * size_of::<Ended>());
                existing.end(read, &ended);
                read += batch.num_rows();
            }
        }
        self.check_all_found(table, folder)
    }

    /// Forgets the keys.
    fn clear(&mut self) {
        self.keys.clear();
        self.ends.clear();
        self.hashes.clear();
        self.memory.free();
    }

    /// Finds the keys among rows that are not deleted, whose key columns have these places. Returns which
    /// rows are removed, and which get an end.
    fn find(
        &mut self,
        table: &PublishedTable,
        folder: &str,
        rows: &RecordBatch,
        key: &[usize],
        is_deleted: impl Fn(usize) -> bool,
    ) -> Result<(BooleanBuffer, Vec<Ended>)> {
        if self.keys.is_empty() {
            return Ok((BooleanBuffer::new_unset(rows.num_rows()), Vec::new()));
        }
        let columns: Vec<ArrayRef> =
            key.iter().map(|column| Arc::clone(rows.column(*column))).collect();
        let hashes = hashes_of(&columns, rows.num_rows())?;
        let rows_to_compare: UInt32Array = (0..)
            .zip(&hashes)
            .filter(|(row, hash)| self.hashes.contains(hash) && !is_deleted(*row as usize))
            .map(|(row, _)| row)
            .collect();
        let compared = columns.iter().map(|column| take(column, &rows_to_compare, None));
        let compared = compared.collect::<Result<Vec<ArrayRef>, _>>()?;
        let keys = self.keys_of(&compared, rows_to_compare.len())?;
        let (mut found, mut ended) = (vec![false; rows.num_rows()], Vec::new());
        for (row, key) in rows_to_compare.values().iter().zip(keys) {
            if let Some(removal) = self.keys.get_mut(&key) {
                if std::mem::replace(&mut removal.was_found, true) {
                    return Err(table.changed(folder, "it has an unexpected row"));
                }
                match removal.end {
                    None => found[*row as usize] = true,
                    Some(end) => ended.push((*row as usize, self.ends[end.get() as usize - 1])),
                }
            }
        }
        Ok((BooleanBuffer::from(found), ended))
    }

    /// Checks that every key was found.
    fn check_all_found(&self, table: &PublishedTable, folder: &str) -> Result<()> {
        if self.keys.values().all(|removal| removal.was_found) {
            return Ok(());
        }
        Err(table.changed(folder, "a row is missing"))
    }

    /// The keys of rows as bytes.
    fn keys_of(&self, columns: &[ArrayRef], rows: usize) -> Result<Vec<Box<[u8]>>> {
        if columns.is_empty() {
            return Ok(vec![Box::default(); rows]);
        }
        let keys = self.converter.convert_columns(columns)?;
        Ok(keys.iter().map(|key| key.data().into()).collect())
    }
}

/// A hash of each row.
fn hashes_of(columns: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
    let mut hashes = vec![0; rows];
    if !columns.is_empty() {
        create_hashes(columns, &RandomState::default(), &mut hashes)?;
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::{Int64Array, StringViewArray, UInt64Array};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Location, Stores};
    use crate::table::deletion_vector::DeletionVector;
    use crate::table::files::{FileTable, PartitionFile};
    use crate::table::writer::TableWriter;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(work)
    }

    /// A row: key, value.
    type Row = (i64, i64);

    /// A table in a folder of its own, without partitions.
    struct Lab {
        folder: Folder,
        runtime: Arc<RuntimeEnv>,
        rows: TableRows,
        schema: SchemaRef,
        files: Vec<TableFile>,
        has_vectors: bool,
        _root: tempfile::TempDir,
    }

    impl Lab {
        fn new(memory: usize, sort_by: Vec<usize>) -> Self {
            let root = tempfile::tempdir().expect("a folder");
            let location = Location::parse("table", root.path()).expect("a location");
            let folder = Stores::new([]).open(&location).expect("a folder");
            let pool = Arc::new(GreedyMemoryPool::new(memory));
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool);
            let schema = Arc::new(Schema::new(vec![
                Field::new("k", DataType::Int64, true),
                Field::new("v", DataType::Utf8View, true),
                Field::new("present", DataType::Boolean, false),
                Field::new("place", DataType::UInt64, false),
            ]));
            let mut by = sort_by.clone();
            by.splice(0..0, (!sort_by.is_empty()).then_some(2));
            by.push(3);
            let order = Order::new(Arc::clone(&schema), vec![], by, vec![0, 1, 2]);
            let order = Arc::new(order.expect("an order"));
            Lab {
                folder,
                runtime: runtime.build_arc().expect("a runtime"),
                rows: TableRows { order, key: vec![0], sort_by, ends: None },
                schema,
                files: Vec::new(),
                has_vectors: false,
                _root: root,
            }
        }

        fn table(&self) -> Result<PublishedTable> {
            let (files, runtime) = (self.files.iter(), Arc::clone(&self.runtime));
            let table = PublishedTable::new(&self.folder, files, &self.rows, runtime)?;
            Ok(if self.has_vectors { table.with_deletion_vectors(20_000) } else { table })
        }

        /// Removes rows and adds others, which are pushed in any order: their place is their index.
        fn rebuild(&mut self, removed: &[i64], added: &[Row], name: &str) -> Result<()> {
            if removed.is_empty() && added.is_empty() {
                return Ok(());
            }
            let mut sorter = Sorter::new(Arc::clone(&self.rows.order), Arc::clone(&self.runtime));
            let places = added.iter().enumerate().rev();
            let rows = places.map(|(at, (key, value))| (*key, Some(*value), at as u64 + 1));
            let rows: Vec<_> = rows.chain(removed.iter().map(|key| (*key, None, 0))).collect();
            for rows in rows.chunks(3_000) {
                let columns: Vec<ArrayRef> = vec![
                    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
                    Arc::new(StringViewArray::from_iter(
                        rows.iter().map(|row| row.1.map(|value| value.to_string())),
                    )),
                    Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.1.is_some())))),
                    Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.2))),
                ];
                sorter.push(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
            }
            let table = self.table()?;
            let writer = TableWriter {
                staging: self.folder.clone(),
                prefix: format!("staging/{name}"),
                file_bytes: 20_000,
            };
            let sorted = Sorted::new(&self.rows.order, vec![sorter])?;
            let written = block_on(writer.write(sorted, Some(Arc::new(table)), 1))?;
            let root = self.folder.location.file_path().expect("a local folder");
            for one in written {
                let count: u64 = self.files.iter().map(TableFile::live_rows).sum();
                assert_eq!(one.rows_before, count);
                self.files.retain_mut(|file| {
                    let kept = one.kept.iter().find(|kept| kept.path == file.path);
                    if let Some(deleted) = kept.and_then(|kept| kept.deleted.clone()) {
                        let path = deleted.staged.clone().expect("in staging");
                        file.deleted = Some(DeletionVector { path, ..deleted });
                    }
                    assert!(kept.is_none_or(|kept| kept.rows == file.live_rows()));
                    kept.is_some()
                });
                for (number, staged) in one.files.iter().enumerate() {
                    let file = TableFile {
                        path: format!("{name}-{number:03}.parquet"),
                        rows: staged.rows,
                        bytes: staged.bytes,
                        staged: None,
                        deleted: None,
                    };
                    let moved = std::fs::rename(root.join(&staged.staged), root.join(&file.path));
                    moved.expect("moved");
                    self.files.push(file);
                }
            }
            Ok(())
        }

        /// The rows in their order.
        fn stored(&self) -> Vec<Row> {
            let context = SessionContext::new();
            context.register_object_store(
                &url::Url::parse("file://").expect("a URL"),
                Arc::clone(&self.folder.root_store),
            );
            let columns =
                [("k".to_string(), DataType::Int64), ("v".to_string(), DataType::Utf8View)];
            let files = self.files.iter().map(PartitionFile::of);
            let table = FileTable::of_partitions(&self.folder, files, &columns, &[]);
            let config = SessionConfig::new().with_target_partitions(1);
            let context = SessionContext::new_with_config_rt(config, context.runtime_env());
            let rows = context.read_table(Arc::new(table.expect("a table"))).expect("a table");
            let batches = block_on(rows.collect()).expect("read");
            let rows = batches.iter().flat_map(|batch| {
                let keys = batch.column(0).as_primitive::<Int64Type>().values();
                let values = batch.column(1).as_string_view().iter();
                let values = values.map(|value| value.expect("a value").parse().expect("a number"));
                keys.iter().copied().zip(values).collect::<Vec<Row>>()
            });
            rows.collect()
        }
    }

    fn message(result: Result<()>) -> String {
        result.expect_err("refused").to_string()
    }

    const KEYS: i64 = 200_000;

    #[test]
    fn more_keys_than_memory_are_removed_in_passes() {
        assert!(KEYS as usize / 2 > 3 * PASS_KEYS_MIN);
        let mut lab = Lab::new(0, vec![]);
        let rows: Vec<Row> = (0..KEYS).map(|key| (key * 7 % KEYS, key)).collect();
        lab.rebuild(&[], &rows, "first").expect("written");
        assert!(lab.files.len() > 1);
        assert_eq!(lab.stored(), rows);
        let removed: Vec<i64> = (0..KEYS).filter(|key| key % 2 == 0).collect();
        let added = [(KEYS + 1, 1), (0, 2)];
        lab.rebuild(&removed, &added, "second").expect("rebuilt");
        let stays = rows.iter().filter(|(key, _)| key % 2 == 1);
        assert_eq!(lab.stored(), stays.copied().chain(added).collect::<Vec<_>>());
        // One of many is missing: in the first of the passes, and in the last.
        for missing in [2, KEYS - 2] {
            let mut removed: Vec<i64> = (0..KEYS).filter(|key| key % 2 == 1).collect();
            let at = if missing == 2 { 0 } else { removed.len() - 1 };
            removed[at] = missing;
            let files = lab.files.clone();
            let text = message(lab.rebuild(&removed, &[], "third"));
            assert!(text.contains("a row is missing"), "{text}");
            lab.files = files;
        }
    }

    #[test]
    fn a_key_that_the_table_has_twice_is_refused_when_it_is_removed() {
        let mut lab = Lab::new(1 << 20, vec![]);
        lab.rebuild(&[], &[(1, 1), (2, 1), (1, 2)], "first").expect("written");
        let text = message(lab.rebuild(&[1], &[], "second"));
        assert!(text.contains("it has an unexpected row"), "{text}");
    }

    #[test]
    fn rows_are_marked_and_files_stay_until_they_have_lost_much() {
        for memory in [0, 1 << 20] {
            let mut lab = Lab::new(memory, vec![]);
            lab.has_vectors = true;
            let rows: Vec<Row> = (0..KEYS).map(|key| (key, key)).collect();
            lab.rebuild(&[], &rows, "first").expect("written");
            let count = lab.files.len();
            assert!(count > 20, "{count} files");
            let first = lab.files.clone();
            // Of each file a tenth; the second time some files have lost more than a quarter.
            let tenth = |rest: i64| (0..KEYS).filter(move |key| key % 10 == rest);
            let removed: Vec<i64> = tenth(0).chain(tenth(1).take(100)).collect();
            lab.rebuild(&removed, &[(0, -1)], "second").expect("rebuilt");
            let stays = |file: &&TableFile| first.iter().any(|one| one.path == file.path);
            assert_eq!(lab.files.iter().filter(stays).count(), count);
            assert!(lab.files.iter().filter(stays).all(|file| file.deleted.is_some()));
            let mut expected: BTreeSet<Row> = rows.into_iter().collect();
            expected.retain(|row| !removed.contains(&row.0));
            expected.insert((0, -1));
            assert_eq!(lab.stored().into_iter().collect::<BTreeSet<Row>>(), expected);
            // A key that was deleted and added again is found once.
            lab.rebuild(&[0], &[], "third").expect("rebuilt");
            expected.remove(&(0, -1));
            let removed: Vec<i64> =
                tenth(1).skip(100).take(1_900).chain(tenth(2).take(2_000)).collect();
            lab.rebuild(&removed, &[], "fourth").expect("rebuilt");
            expected.retain(|row| !removed.contains(&row.0));
            assert_eq!(lab.stored().into_iter().collect::<BTreeSet<Row>>(), expected);
            let stay = lab.files.iter().filter(stays).count();
            assert!(stay < count && stay > count / 2, "{stay} of {count} files stay");
            // A row that is deleted is missing.
            let text = message(lab.rebuild(&[0], &[], "fifth"));
            assert!(text.contains("a row is missing"), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_stay_where_they_are_and_new_ones_follow(
            steps in prop::collection::vec(
                (prop::collection::btree_set(0i64..100, 0..30), prop::bool::ANY), 1..14
            ),
            is_sorted in prop::bool::ANY,
            has_vectors in prop::bool::ANY,
        ) {
            let mut lab = Lab::new(1 << 20, if is_sorted { vec![1] } else { vec![] });
            lab.has_vectors = has_vectors;
            let mut expected: Vec<Row> = Vec::new();
            for (step, (keys, reverses)) in steps.iter().enumerate() {
                // Keys of the table are replaced, or only removed; others are new.
                let known: BTreeSet<i64> = expected.iter().map(|row| row.0).collect();
                let removed: Vec<i64> = keys.intersection(&known).copied().collect();
                let added = keys.iter().filter(|key| !known.contains(key) || *key % 3 > 0);
                let mut added: Vec<Row> =
                    added.map(|key| (*key, (key * 7 + step as i64) % 10)).collect();
                if *reverses {
                    added.reverse();
                }
                lab.rebuild(&removed, &added, &format!("{step}")).expect("rebuilt");
                expected.retain(|row| !removed.contains(&row.0));
                expected.extend(added);
                if is_sorted {
                    expected.sort_by_key(|row| row.1.to_string());
                }
                let mut stored = lab.stored();
                if has_vectors {
                    // Rows of a file that is written again follow those of files that stay.
                    stored.sort();
                    expected.sort();
                }
                prop_assert_eq!(stored, expected.clone());
            }
        }
    }
}
