//! The partition sorter: rows that come in any order leave partition by partition, sorted by key.
//!
//! ```text
//! push ─▶ buffer (rows, keys as bytes, places per partition) ─▶ sort, per partition ─┐
//!            └─ memory refused ─▶ sorted run on disk ───────────────────────────────┴─▶ merge
//! ```
//!
//! Every thread fills a sorter of its own; [`Sorted`] brings them together. Partitions are
//! independent of each other from then on, so that threads can sort and write different ones at
//! the same time. A sorter takes its memory from the engine's pool and writes what it holds to
//! disk, as a sorted run, when the pool has no more. Merging holds one block per run and thread.
//!
//! Equal keys keep the order in which one sorter got them.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, btree_map};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, BinaryBuilder, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::execution::SpillFile;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::error::{Error, Result};
use crate::partition_name::partition_folder;
use crate::session::{BATCH_ROWS, read_spilled};

/// Blocks of a run on disk are about this large.
const BLOCK_BYTES: usize = 256 << 10;
/// What sorting needs per row beside the row itself: its place, twice, and the start of its key.
const BYTES_PER_ROW: usize = 24;

/// What a sorter sorts, and by what; columns are places in `schema`.
#[derive(Debug)]
pub struct Order {
    schema: SchemaRef,
    partition_by: Vec<usize>,
    sort_by: Vec<usize>,
    stored: Vec<usize>,
    stored_schema: SchemaRef,
    partitions: RowConverter,
    keys: RowConverter,
}

impl Order {
    /// Rows of `schema`, apart by the columns `partition_by`, sorted by `sort_by` (ascending,
    /// nulls first). Of each row the columns `stored` are kept.
    ///
    /// # Errors
    /// Internal, when a column cannot be compared.
    pub fn new(
        schema: SchemaRef,
        partition_by: Vec<usize>,
        sort_by: Vec<usize>,
        stored: Vec<usize>,
    ) -> Result<Self> {
        let converter = |columns: &[usize]| {
            let fields = columns
                .iter()
                .map(|column| SortField::new(schema.field(*column).data_type().clone()));
            RowConverter::new(fields.collect())
        };
        Ok(Order {
            partitions: converter(&partition_by)?,
            keys: converter(&sort_by)?,
            stored_schema: Arc::new(Schema::new(schema.project(&stored)?.fields)),
            schema,
            partition_by,
            sort_by,
            stored,
        })
    }

    /// The columns of a row that are kept.
    pub fn stored_schema(&self) -> &SchemaRef {
        &self.stored_schema
    }

    /// The kept columns by which rows are sorted, as places in [`Order::stored_schema`].
    ///
    /// # Errors
    /// Internal, when one of them is not kept.
    pub fn sorted_by(&self) -> Result<Vec<usize>> {
        let place = |column: &usize| self.stored.iter().position(|stored| stored == column);
        let places = self.sort_by.iter().map(place).collect::<Option<Vec<_>>>();
        places.ok_or_else(|| Error::internal("rows are sorted by what is not kept"))
    }

    fn columns(batch: &RecordBatch, columns: &[usize]) -> Vec<ArrayRef> {
        columns
            .iter()
            .map(|column| Arc::clone(batch.column(*column)))
            .collect()
    }

    fn rows(
        converter: &RowConverter,
        batch: &RecordBatch,
        columns: &[usize],
    ) -> Result<Option<Rows>> {
        if columns.is_empty() {
            return Ok(None);
        }
        Ok(Some(
            converter.convert_columns(&Self::columns(batch, columns))?,
        ))
    }
}

/// A batch of rows in memory, and their keys.
#[derive(Debug)]
struct Held {
    rows: RecordBatch,
    keys: Option<Rows>,
}

impl Held {
    #[inline]
    fn key(&self, row: u32) -> &[u8] {
        match &self.keys {
            Some(keys) => keys.row(row as usize).data(),
            None => &[],
        }
    }
}

/// A row in memory: its batch, and its row there.
#[derive(Clone, Copy, Debug)]
struct Place {
    batch: u32,
    row: u32,
}

/// One thread's sorter.
pub struct Sorter {
    order: Arc<Order>,
    runtime: Arc<RuntimeEnv>,
    reservation: MemoryReservation,
    /// Partition values, as bytes, and the partition they belong to.
    numbers: HashMap<Box<[u8]>, usize>,
    /// The folders of the partitions, and their numbers.
    folders: BTreeMap<String, usize>,
    held: Vec<Held>,
    /// Per partition its rows.
    places: Vec<Vec<Place>>,
    /// Per partition how many rows were taken.
    counts: Vec<u64>,
    runs: Vec<Run>,
}

/// A sorted run on disk, in blocks.
struct Run {
    file: Arc<dyn SpillFile>,
    /// Per partition its blocks.
    blocks: BTreeMap<String, Range<usize>>,
}

impl Sorter {
    /// An empty sorter that takes memory from the pool of `runtime`, and disk from it.
    pub fn new(order: Arc<Order>, runtime: Arc<RuntimeEnv>) -> Self {
        let reservation = MemoryConsumer::new("rows of a table")
            .with_can_spill(true)
            .register(&runtime.memory_pool);
        Sorter {
            order,
            runtime,
            reservation,
            numbers: HashMap::new(),
            folders: BTreeMap::new(),
            held: Vec::new(),
            places: Vec::new(),
            counts: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Takes rows.
    ///
    /// # Errors
    /// Storage, when the disk to spill to cannot be used.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let keys = Order::rows(&self.order.keys, batch, &self.order.sort_by)?;
        let columns = Order::columns(batch, &self.order.stored);
        let rows = RecordBatch::try_new(Arc::clone(&self.order.stored_schema), columns)?;
        let bytes = rows.get_array_memory_size()
            + keys.as_ref().map_or(0, Rows::size)
            + batch.num_rows() * BYTES_PER_ROW;
        if self.reservation.try_grow(bytes).is_err() {
            self.spill()?;
            self.reservation.grow(bytes);
        }
        let partitions = Order::rows(&self.order.partitions, batch, &self.order.partition_by)?;
        let number = self.held.len() as u32;
        match partitions {
            None if batch.num_rows() > 0 => {
                let only = self.partition(String::new());
                let places = (0..batch.num_rows() as u32).map(|row| Place { batch: number, row });
                self.places[only].extend(places);
                self.counts[only] += batch.num_rows() as u64;
            }
            None => {}
            Some(partitions) => self.part(batch, &partitions, number)?,
        }
        self.held.push(Held { rows, keys });
        Ok(())
    }

    /// Finds the partition of each row of a batch.
    fn part(&mut self, batch: &RecordBatch, partitions: &Rows, number: u32) -> Result<()> {
        let order = Arc::clone(&self.order);
        let mut last: Option<(&[u8], usize)> = None;
        for row in 0..batch.num_rows() {
            let values = partitions.row(row).data();
            let partition = match last {
                Some((same, partition)) if same == values => partition,
                _ => match self.numbers.get(values) {
                    Some(partition) => *partition,
                    None => {
                        let names = order.partition_by.iter();
                        let names: Vec<&str> = names
                            .map(|column| order.schema.field(*column).name().as_str())
                            .collect();
                        let columns = Order::columns(batch, &order.partition_by);
                        let partition = self.partition(partition_folder(&names, &columns, row)?);
                        self.numbers.insert(values.into(), partition);
                        partition
                    }
                },
            };
            last = Some((values, partition));
            let row = row as u32;
            self.places[partition].push(Place { batch: number, row });
            self.counts[partition] += 1;
        }
        Ok(())
    }

    /// The number of a partition. Several values can have one folder: null and the empty text.
    fn partition(&mut self, folder: String) -> usize {
        let new = self.places.len();
        let number = *self.folders.entry(folder).or_insert(new);
        if number == new {
            self.places.push(Vec::new());
            self.counts.push(0);
        }
        number
    }

    /// Takes the places of what is held, per partition.
    fn take_places(&mut self) -> BTreeMap<String, Vec<Place>> {
        let mut taken = BTreeMap::new();
        for (folder, number) in &self.folders {
            let places = std::mem::take(&mut self.places[*number]);
            if !places.is_empty() {
                taken.insert(folder.clone(), places);
            }
        }
        taken
    }

    /// Writes what is held to disk.
    fn spill(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let places = self.take_places();
        let file = self
            .runtime
            .disk_manager
            .create_tmp_file("rows of a table")?;
        let schema = run_schema(&self.order.stored_schema);
        let mut writer = FileWriter::try_new(BufWriter::new(file.open_writer()?), &schema)?;
        let rows: usize = places.values().map(Vec::len).sum();
        let rows_per_block =
            (BLOCK_BYTES * rows / self.reservation.size().max(1)).clamp(16, BATCH_ROWS);
        let batches: Vec<&RecordBatch> = self.held.iter().map(|held| &held.rows).collect();
        let mut blocks = BTreeMap::new();
        let mut count = 0;
        for (folder, places) in places {
            let first = count;
            for part in sort(&self.held, places).chunks(rows_per_block) {
                let chosen: Vec<(usize, usize)> = part
                    .iter()
                    .map(|place| (place.batch as usize, place.row as usize))
                    .collect();
                let rows = compact(&interleave_record_batch(&batches, &chosen)?)?;
                let keys = part
                    .iter()
                    .map(|place| Some(self.held[place.batch as usize].key(place.row)));
                let mut columns = rows.columns().to_vec();
                columns.push(Arc::new(keys.collect::<BinaryArray>()));
                writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
                count += 1;
            }
            blocks.insert(folder, first..count);
        }
        writer.finish()?;
        self.runs.push(Run { file, blocks });
        self.held.clear();
        self.reservation.free();
        Ok(())
    }
}

/// Sorts rows by their keys: by eight bytes behind what all of them begin with, then by the rest.
fn sort(held: &[Held], places: Vec<Place>) -> Vec<Place> {
    let key = |place: &Place| held[place.batch as usize].key(place.row);
    let Some(first) = places.first().map(key) else {
        return places;
    };
    let mut common = first.len();
    for place in &places {
        let same = key(place).iter().zip(&first[..common]);
        common = same.take_while(|(a, b)| a == b).count();
    }
    let start = |place: &Place| {
        let mut bytes = [0; 8];
        let rest = &key(place)[common..];
        let length = rest.len().min(8);
        bytes[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(bytes)
    };
    let mut starts: Vec<(u64, Place)> = places.iter().map(|place| (start(place), *place)).collect();
    drop(places);
    starts.sort_unstable_by(|(a, x), (b, y)| {
        a.cmp(b)
            .then_with(|| key(x)[common..].cmp(&key(y)[common..]))
            .then_with(|| (x.batch, x.row).cmp(&(y.batch, y.row)))
    });
    starts.into_iter().map(|(_, place)| place).collect()
}

/// Lets go of the buffers that text views share with other rows.
pub fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()) as ArrayRef,
            _ => Arc::clone(column),
        })
        .collect();
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Rows on disk have their key in a column behind theirs.
fn run_schema(stored: &Schema) -> SchemaRef {
    let mut fields = stored.fields().to_vec();
    fields.push(Arc::new(Field::new("key", DataType::Binary, false)));
    Arc::new(Schema::new(fields))
}

/// What several sorters took, to be handed out by partition.
pub struct Sorted {
    held: Vec<Held>,
    places: BTreeMap<String, Vec<Place>>,
    counts: BTreeMap<String, u64>,
    runs: Vec<Run>,
    stored: SchemaRef,
    /// Memory is held as long as the rows are.
    _reservations: Vec<MemoryReservation>,
}

/// The runs on disk as one thread reads them; each is opened once.
pub type Readers = HashMap<usize, FileReader<BufReader<File>>>;

impl Sorted {
    /// Brings the rows of sorters of one order together.
    pub fn new(order: &Order, sorters: Vec<Sorter>) -> Self {
        let mut sorted = Sorted {
            held: Vec::new(),
            places: BTreeMap::new(),
            counts: BTreeMap::new(),
            runs: Vec::new(),
            stored: Arc::clone(&order.stored_schema),
            _reservations: Vec::new(),
        };
        for mut sorter in sorters {
            let offset = sorted.held.len() as u32;
            for (folder, number) in &sorter.folders {
                *sorted.counts.entry(folder.clone()).or_default() += sorter.counts[*number];
            }
            for (folder, mut places) in sorter.take_places() {
                for place in &mut places {
                    place.batch += offset;
                }
                match sorted.places.entry(folder) {
                    btree_map::Entry::Vacant(none) => {
                        none.insert(places);
                    }
                    btree_map::Entry::Occupied(some) => some.into_mut().append(&mut places),
                }
            }
            sorted.held.append(&mut sorter.held);
            sorted.runs.append(&mut sorter.runs);
            sorted._reservations.push(sorter.reservation);
        }
        sorted
    }

    /// The columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.stored
    }

    /// The folders of the partitions, ascending, and how many rows each was given.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// The folders of the partitions, ascending.
    pub fn partitions(&self) -> Vec<String> {
        self.counts.keys().cloned().collect()
    }

    /// The rows of one partition, sorted.
    ///
    /// # Errors
    /// Storage, when spilled rows cannot be read.
    pub fn rows<'a>(&'a self, folder: &str, readers: &'a mut Readers) -> Result<Merge<'a>> {
        let mut cursors = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            if let Some(blocks) = run.blocks.get(folder) {
                let reader = match readers.entry(number) {
                    Entry::Occupied(reader) => reader.into_mut(),
                    Entry::Vacant(none) => none.insert(FileReader::try_new_buffered(
                        read_spilled(&run.file)?,
                        None,
                    )?),
                };
                let block = Block::read(reader, blocks.start)?;
                cursors.push(Cursor::Run {
                    number,
                    rest: blocks.start + 1..blocks.end,
                    block,
                    at: 0,
                });
            }
        }
        if let Some(places) = self.places.get(folder) {
            cursors.push(Cursor::Memory {
                held: &self.held,
                slots: vec![NO_SLOT; self.held.len()],
                places: sort(&self.held, places.clone()),
                at: 0,
            });
        }
        let mut merge = Merge {
            heap: (0..cursors.len()).collect(),
            cursors,
            readers,
            slots: Vec::new(),
            picked: Vec::with_capacity(BATCH_ROWS),
            keys: None,
        };
        for at in (0..merge.heap.len()).rev() {
            merge.sift_down(at);
        }
        Ok(merge)
    }
}

/// A block of a run.
struct Block {
    rows: RecordBatch,
    keys: BinaryArray,
    slot: u32,
}

impl Block {
    fn read(reader: &mut FileReader<BufReader<File>>, number: usize) -> Result<Self> {
        reader.set_index(number)?;
        let mut rows = reader
            .next()
            .ok_or_else(|| Error::internal("spilled rows are missing"))??;
        let keys = rows.remove_column(rows.num_columns() - 1);
        Ok(Block {
            keys: keys.as_binary().clone(),
            rows,
            slot: NO_SLOT,
        })
    }
}

/// A batch that no picked row is of.
const NO_SLOT: u32 = u32::MAX;

/// Sorted rows, and how far they are merged.
enum Cursor<'a> {
    Memory {
        held: &'a [Held],
        places: Vec<Place>,
        at: usize,
        /// Per batch its slot.
        slots: Vec<u32>,
    },
    Run {
        number: usize,
        block: Block,
        at: usize,
        rest: Range<usize>,
    },
}

impl Cursor<'_> {
    #[inline]
    fn key(&self) -> &[u8] {
        match self {
            Cursor::Memory {
                held, places, at, ..
            } => {
                let place = places[*at];
                held[place.batch as usize].key(place.row)
            }
            Cursor::Run { block, at, .. } => block.keys.value(*at),
        }
    }
}

/// The rows of one partition, merged in order, batch by batch.
pub struct Merge<'a> {
    readers: &'a mut Readers,
    cursors: Vec<Cursor<'a>>,
    /// The cursors with rows left; the one with the least key comes first.
    heap: Vec<usize>,
    /// The batches of the picked rows.
    slots: Vec<RecordBatch>,
    /// Rows to be handed on: slot and row.
    picked: Vec<(usize, usize)>,
    /// Their keys, where they are asked for.
    keys: Option<BinaryBuilder>,
}

impl Merge<'_> {
    /// Hands the keys on as well: bytes that compare as the rows do, in a last column.
    pub fn with_keys(mut self) -> Self {
        self.keys = Some(BinaryBuilder::new());
        self
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Storage, when spilled rows cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        while self.picked.len() < BATCH_ROWS
            && let Some(top) = self.heap.first().copied()
        {
            if let Some(keys) = &mut self.keys {
                keys.append_value(self.cursors[top].key());
            }
            if !self.pick(top)? {
                self.heap.swap_remove(0);
            }
            self.sift_down(0);
        }
        if self.picked.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.slots.iter().collect();
        let rows = interleave_record_batch(&batches, &self.picked)?;
        self.picked.clear();
        self.slots.clear();
        for cursor in &mut self.cursors {
            match cursor {
                Cursor::Memory { slots, .. } => slots.fill(NO_SLOT),
                Cursor::Run { block, .. } => block.slot = NO_SLOT,
            }
        }
        let Some(keys) = &mut self.keys else {
            return Ok(Some(rows));
        };
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(keys.finish()));
        Ok(Some(RecordBatch::try_new(
            run_schema(&rows.schema()),
            columns,
        )?))
    }

    /// Picks a cursor's first row and moves it on. Returns whether it has more.
    fn pick(&mut self, cursor: usize) -> Result<bool> {
        match &mut self.cursors[cursor] {
            Cursor::Memory {
                held,
                places,
                at,
                slots,
            } => {
                let place = places[*at];
                let slot = &mut slots[place.batch as usize];
                if *slot == NO_SLOT {
                    *slot = self.slots.len() as u32;
                    self.slots.push(held[place.batch as usize].rows.clone());
                }
                self.picked.push((*slot as usize, place.row as usize));
                *at += 1;
                Ok(*at < places.len())
            }
            Cursor::Run {
                number,
                block,
                at,
                rest,
            } => {
                if block.slot == NO_SLOT {
                    block.slot = self.slots.len() as u32;
                    self.slots.push(block.rows.clone());
                }
                self.picked.push((block.slot as usize, *at));
                *at += 1;
                if *at < block.rows.num_rows() {
                    return Ok(true);
                }
                let Some(next) = rest.next() else {
                    return Ok(false);
                };
                let reader = self
                    .readers
                    .get_mut(number)
                    .ok_or_else(|| Error::internal("spilled rows were closed"))?;
                *block = Block::read(reader, next)?;
                *at = 0;
                Ok(true)
            }
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        let before = |a: usize, b: usize| {
            let (x, y) = (self.cursors[a].key(), self.cursors[b].key());
            x.cmp(y).then(a.cmp(&b)) == Ordering::Less
        };
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && before(self.heap[child], self.heap[least]) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Resources, SpillFolder, runtime};
    use arrow::array::{Int64Array, StringViewArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    type Row = (Option<String>, String, i64);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (
            prop::option::of("[ab]{0,1}"),
            prop::sample::select(vec!["", "a", "customer-0000001", "customer-0000002", "z"]),
        );
        prop::collection::vec(row, 0..60).prop_map(|rows| {
            let numbered = rows.into_iter().zip(0..);
            numbered.map(|((p, k), n)| (p, k.to_string(), n)).collect()
        })
    }

    fn batch(rows: &[Row]) -> RecordBatch {
        let parts = StringViewArray::from_iter(rows.iter().map(|row| row.0.clone()));
        let keys = StringViewArray::from_iter_values(rows.iter().map(|row| row.1.clone()));
        let numbers = Int64Array::from_iter_values(rows.iter().map(|row| row.2));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("p", Arc::new(parts)),
            ("k", Arc::new(keys)),
            ("n", Arc::new(numbers)),
        ];
        RecordBatch::try_from_iter_with_nullable(
            columns
                .into_iter()
                .map(|(name, column)| (name, column, true)),
        )
        .expect("a batch")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_leave_by_partition_and_key_whatever_was_spilled(
            parts in prop::collection::vec((rows(), 1..20usize), 1..4),
            spills in any::<bool>(),
        ) {
            let spill = tempfile::tempdir().expect("a folder");
            let memory_bytes = if spills { 1_000 } else { 1 << 30 };
            let folder = SpillFolder::create(spill.path(), "sorter").expect("a folder");
            let resources = Resources {
                memory_bytes,
                spill_dir: spill.path().into(),
                spill_bytes_max: u64::MAX,
                threads: 1,
            };
            let runtime = runtime(&resources, &folder).expect("a runtime");
            let order = Order::new(batch(&[]).schema(), vec![0], vec![1], vec![1, 2]);
            let order = Arc::new(order.expect("an order"));
            let mut expected: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
            let mut sorters = Vec::new();
            for (rows, size) in &parts {
                let mut sorter = Sorter::new(Arc::clone(&order), Arc::clone(&runtime));
                for part in rows.chunks(*size) {
                    sorter.push(&batch(part)).expect("taken");
                }
                prop_assert_eq!(!sorter.runs.is_empty(), spills && rows.len() > *size);
                for (part, key, number) in rows {
                    let part = part.as_deref().filter(|part| !part.is_empty());
                    let folder = format!("p={}", part.unwrap_or("__HIVE_DEFAULT_PARTITION__"));
                    expected.entry(folder).or_default().push((key.clone(), *number));
                }
                sorters.push(sorter);
            }
            let sorted = Sorted::new(&order, sorters);
            let mut readers = Readers::new();
            let mut found: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
            for folder in sorted.partitions() {
                let mut merge = sorted.rows(&folder, &mut readers).expect("rows");
                let list = found.entry(folder).or_default();
                while let Some(batch) = merge.next_batch().expect("merged") {
                    let keys = batch.column(0).as_string_view();
                    let numbers = batch.column(1).as_primitive::<Int64Type>();
                    for row in 0..batch.num_rows() {
                        list.push((keys.value(row).to_string(), numbers.value(row)));
                    }
                }
            }
            for rows in expected.values_mut() {
                rows.sort_by(|a, b| a.0.cmp(&b.0));
            }
            if parts.len() > 1 {
                // Rows with one key from several sorters have no order among them.
                for rows in expected.values_mut().chain(found.values_mut()) {
                    rows.sort();
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
