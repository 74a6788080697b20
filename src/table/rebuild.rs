//! Rebuilding a partition: its existing rows, less removed rows, then new ones.
//!
//! The existing rows are read as a stream, in the order in which they are stored, and those whose key
//! is to be removed are left out. The keys to remove are in memory; if they are too many, a first
//! part of them is searched in the key columns alone, and the rows found are marked, before the next
//! part is read. Every key must be found exactly once, and every file must have the size and the
//! number of rows that were published: so a table that another program has changed is an error.
//!
//! New rows come in their own order. If the table is sorted, all rows of the partition are then sorted
//! together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch, UInt32Array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::layout::parent;
use crate::parquet_io::open::{ParquetFile, conform};
use crate::store::{Folder, parse_path};
use crate::table::TableFile;
use crate::table::sorter::{Merge, Order, Sorted, Sorter, compact};

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
}

/// A published table whose partitions are rebuilt.
#[derive(Debug)]
pub(crate) struct PublishedTable {
    table: Folder,
    files: HashMap<String, Vec<TableFile>>,
    /// The stored columns.
    schema: SchemaRef,
    /// The columns that identify a row.
    key: Vec<usize>,
    /// The order in which the rows of a partition are sorted, if they are.
    sorted: Option<Arc<Order>>,
    runtime: Arc<RuntimeEnv>,
    /// Where the memory of keys and of rows that are sorted is reserved. It is there before new rows
    /// fill the memory, so that some is left for it.
    memory: MemoryReservation,
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
            files,
            schema,
            key: rows.key.clone(),
            sorted: sorted.transpose()?.map(Arc::new),
            runtime,
        })
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

    fn changed(&self, folder: &str, how: &str) -> Error {
        let partition = self.table.describe(folder);
        Error::data(format!("{partition} is not as it was published: {how}"))
            .hint("another program changed the table: rebuild it with `glueless rebuild`")
    }

    /// Opens a partition's files.
    async fn open(&self, folder: &str) -> Result<Vec<ParquetFile>> {
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
            opened.push(file.without_bytes());
        }
        Ok(opened)
    }

    /// A full batch of a partition's existing rows, if it has so many in a file.
    pub(crate) async fn full_batch(&self, folder: &str) -> Result<Option<RecordBatch>> {
        let is_large = |file: &TableFile| file.rows >= BATCH_ROWS as u64;
        if !self.files.get(folder).is_some_and(|files| files.first().is_some_and(is_large)) {
            return Ok(None);
        }
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        self.read(self.open(folder).await?, &all)?.try_next().await
    }

    /// Reads columns of a partition's files, given as indices into the stored columns.
    fn read(&self, files: Vec<ParquetFile>, columns: &[usize]) -> Result<Rows> {
        let schema = Arc::new(self.schema.project(columns)?);
        let batches = stream::iter(files).flat_map(move |file| {
            let schema = Arc::clone(&schema);
            // The table can have columns that the file does not have yet.
            let names = schema.fields().iter().map(|field| field.name());
            let columns: Vec<usize> =
                names.filter_map(|name| file.schema().index_of(name).ok()).collect();
            file.read(&columns, BATCH_ROWS).map(move |batch| conform(&batch?, &schema)).boxed()
        });
        Ok(batches.boxed())
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
}

/// A partition of a published table.
struct Published<'a> {
    table: &'a PublishedTable,
    folder: String,
    existing: Existing,
    /// The first new rows, which were read with the last tombstones.
    first: Option<RecordBatch>,
}

/// The existing rows of a partition that were not read yet.
struct Existing {
    rows: Rows,
    /// The number of rows read.
    read: usize,
    /// Rows that are left out, besides those of the keys to remove.
    marked: Option<BooleanBuffer>,
    removed: Removals,
}

/// Keys to remove, and whether each was found.
struct Removals {
    keys: HashMap<Box<[u8]>, bool>,
    /// Their hashes: most rows have none of them, and their keys need not be made.
    hashes: HashSet<u64>,
    converter: RowConverter,
    memory: MemoryReservation,
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
            return Ok(Rebuilt { new, published: None, rows_before: 0 });
        };
        let files = table.open(folder).await?;
        let rows_before = files.iter().map(ParquetFile::row_count).sum();
        let mut removed = Removals::new(table)?;
        let (mut tombstones, mut first) = (None, None);
        let mut marks: Option<BooleanBufferBuilder> = None;
        loop {
            let is_whole = removed.fill(table, &mut new, &mut tombstones, &mut first)?;
            if is_whole {
                break;
            }
            let marks = marks.get_or_insert_with(|| {
                let mut marks = BooleanBufferBuilder::new(rows_before as usize);
                marks.append_n(rows_before as usize, false);
                marks
            });
            let mut rows = table.read(files.clone(), &table.key)?;
            let mut at = 0;
            let key: Vec<usize> = (0..table.key.len()).collect();
            while let Some(batch) = rows.try_next().await? {
                let found = removed.find(table, folder, &batch, &key)?;
                found.set_indices().for_each(|row| marks.set_bit(at + row, true));
                at += batch.num_rows();
            }
            removed.check_all_found(table, folder)?;
        }
        let all: Vec<usize> = (0..table.schema.fields().len()).collect();
        let existing = Existing {
            rows: table.read(files, &all)?,
            read: 0,
            marked: marks.map(BooleanBuffer::from),
            removed,
        };
        let published = Published { table, folder: folder.to_string(), existing, first };
        Ok(Rebuilt { new, published: Some(published), rows_before })
    }

    /// Rows that are the whole partition, instead of `rows_before` rows.
    pub(crate) fn whole(new: Merge<'a>, rows_before: u64) -> Self {
        Rebuilt { new, published: None, rows_before }
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
        Ok(Sorted::new(order, vec![sorter]))
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
        let existing = &mut self.existing;
        while let Some(rows) = existing.rows.try_next().await? {
            let found = existing.removed.find(self.table, &self.folder, &rows, &self.table.key)?;
            let mut stays = !&found;
            if let Some(marked) = &existing.marked {
                stays = &stays & &!&marked.slice(existing.read, rows.num_rows());
            }
            existing.read += rows.num_rows();
            match stays.count_set_bits() {
                0 => {}
                count if count == rows.num_rows() => return Ok(Some(rows)),
                _ => {
                    let stays = BooleanArray::new(stays, None);
                    return Ok(Some(filter_record_batch(&rows, &stays)?));
                }
            }
        }
        existing.removed.check_all_found(self.table, &self.folder)?;
        Ok(None)
    }
}

impl Removals {
    fn new(table: &PublishedTable) -> Result<Self> {
        let types = table.key.iter().map(|column| table.schema.field(*column).data_type().clone());
        Ok(Removals {
            keys: HashMap::new(),
            hashes: HashSet::new(),
            converter: RowConverter::new(types.map(SortField::new).collect())?,
            memory: table.memory.new_empty(),
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
        self.keys.clear();
        self.hashes.clear();
        self.memory.free();
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
            let bytes = keys.iter().map(|key| key.len() + BYTES_PER_KEY).sum();
            if self.memory.try_grow(bytes).is_err() {
                if self.keys.len() >= PASS_KEYS_MIN {
                    *rest = Some(tombstones);
                    return Ok(false);
                }
                self.memory.grow(bytes);
            }
            self.hashes.extend(hashes_of(&columns, keys.len())?);
            self.keys.extend(keys.into_iter().map(|key| (key, false)));
        }
    }

    /// Finds the keys among rows, whose key columns have these places. Returns which rows have them.
    fn find(
        &mut self,
        table: &PublishedTable,
        folder: &str,
        rows: &RecordBatch,
        key: &[usize],
    ) -> Result<BooleanBuffer> {
        if self.keys.is_empty() {
            return Ok(BooleanBuffer::new_unset(rows.num_rows()));
        }
        let columns: Vec<ArrayRef> =
            key.iter().map(|column| Arc::clone(rows.column(*column))).collect();
        let hashes = hashes_of(&columns, rows.num_rows())?;
        let rows_to_compare: UInt32Array = (0..)
            .zip(&hashes)
            .filter_map(|(row, hash)| self.hashes.contains(hash).then_some(row))
            .collect();
        let compared = columns.iter().map(|column| take(column, &rows_to_compare, None));
        let compared = compared.collect::<Result<Vec<ArrayRef>, _>>()?;
        let keys = self.keys_of(&compared, rows_to_compare.len())?;
        let mut found = vec![false; rows.num_rows()];
        for (row, key) in rows_to_compare.values().iter().zip(keys) {
            if let Some(was_found) = self.keys.get_mut(&key) {
                if std::mem::replace(was_found, true) {
                    return Err(table.changed(folder, "it has an unexpected row"));
                }
                found[*row as usize] = true;
            }
        }
        Ok(BooleanBuffer::from(found))
    }

    /// Checks that every key was found.
    fn check_all_found(&self, table: &PublishedTable, folder: &str) -> Result<()> {
        if self.keys.values().all(|was_found| *was_found) {
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
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Location, Stores};
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
                rows: TableRows { order, key: vec![0], sort_by },
                schema,
                files: Vec::new(),
                _root: root,
            }
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
            let files = self.files.iter();
            let runtime = Arc::clone(&self.runtime);
            let table = PublishedTable::new(&self.folder, files, &self.rows, runtime)?;
            let writer = TableWriter {
                staging: self.folder.clone(),
                prefix: format!("staging/{name}"),
                file_bytes: 20_000,
            };
            let sorted = Sorted::new(&self.rows.order, vec![sorter]);
            let written = block_on(writer.write(sorted, Some(Arc::new(table)), 1))?;
            let files = written.into_iter().flat_map(|written| written.files);
            self.files = Vec::new();
            for (number, staged) in files.enumerate() {
                let file = TableFile {
                    path: format!("{name}-{number:03}.parquet"),
                    rows: staged.rows,
                    bytes: staged.bytes,
                    staged: None,
                };
                let root = self.folder.location.file_path().expect("a local folder");
                std::fs::rename(root.join(&staged.staged), root.join(&file.path)).expect("moved");
                self.files.push(file);
            }
            Ok(())
        }

        /// The rows in their order.
        fn stored(&self) -> Vec<Row> {
            let runtime = Arc::clone(&self.runtime);
            let table = PublishedTable::new(&self.folder, self.files.iter(), &self.rows, runtime);
            let table = table.expect("a table");
            let read = async {
                let files = table.open("").await?;
                table.read(files, &[0, 1])?.try_collect::<Vec<RecordBatch>>().await
            };
            let batches = block_on(read).expect("read");
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_stay_where_they_are_and_new_ones_follow(
            steps in prop::collection::vec(
                (prop::collection::btree_set(0i64..40, 0..30), prop::bool::ANY), 1..5
            ),
            is_sorted in prop::bool::ANY,
        ) {
            let mut lab = Lab::new(1 << 20, if is_sorted { vec![1] } else { vec![] });
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
                prop_assert_eq!(lab.stored(), expected.clone());
            }
        }
    }
}
