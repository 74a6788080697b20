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

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::execution::SpillFile;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result};
use crate::table::partition_names::partition_folder;

mod merge;

pub use merge::{Merge, Sorted};

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

/// The runs on disk as one thread reads them; each is opened once.
pub type Readers = HashMap<usize, FileReader<BufReader<File>>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::resources::Resources;
    use crate::engine::session::runtime;
    use crate::engine::spill::SpillFolder;
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
