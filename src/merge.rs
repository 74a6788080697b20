//! Merge: a run's last changes meet what earlier runs remember.
//!
//! ```text
//! winners' keys, days, orders ─────────────┐
//! versions ─▶ of a key among the winners? ─┴▶ sorter, by key and day ─▶ ┬─▶ winners that hold
//!                └ no, and the file is written again ─▶ versions        ├─▶ rows that go (tombstones)
//!                                                                       └─▶ versions that stay
//! ```
//!
//! A winner holds when its order is later than that of the version of its key and day. Under
//! `keep = "latest"` a key's row moves when a winner is later than the key's last version of any
//! day; under `latest-per-day` a day's row is replaced when that day's version is. The version
//! says where the replaced row is.
//!
//! Versions of the days that the winners touch are written again; under `latest` those of other
//! days are read for the winners' keys. A Bloom filter over the winners' keys keeps all other
//! versions out of the sorter, which parts keys by their hash, spills when it must, and is worked
//! off part by part.

use std::cmp::Ordering as Compared;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, Int8Array, Int32Array,
    Int64Array, RecordBatch, StringArray, UInt16Array, UInt32Array, new_null_array,
};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{
    DataType, Date32Type, Field, Int8Type, Int32Type, Schema, SchemaRef, UInt32Type,
};
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::TableProvider;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::change_reader::ChangesTable;
use crate::changes::{Changes, EVENT_DT, POSITION};
use crate::config::{Keep, Pipeline};
use crate::error::{Error, Kind, Result, missing_object};
use crate::file_numbers::FileNumbers;
use crate::fold::Fold;
use crate::parquet_file::{ParquetFile, conform};
use crate::partition_name::partition_folder;
use crate::session::{BATCH_ROWS, Work, join, join_all};
use crate::sorter::{Order, Readers, Sorted, Sorter};
use crate::store::{Folder, parse_path};
use crate::versions::{ORDER_BYTES, VersionsLayout, canonical_column};
use crate::versions_writer::VersionsWriter;
use crate::winners::{Marks, Winners};

/// A part of the keys has about this many rows.
const ROWS_PER_PART: u64 = 50_000;
const PARTS_MAX: u64 = 4096;
/// Bits of the Bloom filter per key, before rounding up to a power of two.
const BLOOM_BITS: u64 = 8;

/// Where a row of the sorter comes from.
const WINNER: i8 = 0;
/// A version that is only looked up: its file stays.
const KEPT: i8 = 1;
/// A version whose file is written again.
const REWRITTEN: i8 = 2;

/// A committed file with versions.
#[derive(Clone, Debug)]
pub struct StoredVersions {
    /// Its path relative to the state's table.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Whether it is written again, without the versions that winners replace.
    pub rewritten: bool,
}

/// What a merge is made of.
#[derive(Debug)]
pub struct Merge<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The inputs.
    pub changes: &'a Arc<Changes>,
    /// Pass one's result.
    pub folded: &'a Fold,
    /// The layout of versions.
    pub layout: &'a Arc<VersionsLayout>,
    /// The state's table.
    pub state: &'a Folder,
    /// The versions to be met.
    pub stored: Vec<StoredVersions>,
    /// The inputs of earlier runs: location and path.
    pub folded_inputs: Vec<(usize, String)>,
    /// The schema of the rows that the curated table's sorters take.
    pub table_schema: SchemaRef,
}

/// What a merge found.
#[derive(Debug)]
pub struct Merged {
    /// The winners that hold.
    pub winners: Arc<Winners>,
    /// What was counted on the way.
    pub counts: Counts,
    /// Rows of the rewritten files before.
    pub versions_before: u64,
}

/// What one thread counted; sums over all threads.
#[derive(Debug, Default)]
pub struct Counts {
    /// The winners that hold, per key and day.
    pub key_days: u64,
    /// Last changes of the window (per key, or per key and day) not later than what versions hold.
    pub stale: u64,
    /// Versions that winners replaced.
    pub replaced: u64,
    /// The first of the last changes between which, and what versions hold, only file or row
    /// decided: its input and place.
    pub tie: Option<(usize, usize)>,
    /// The days of the rows that go.
    pub days: BTreeSet<i32>,
    /// How many rows go, per partition.
    pub gone: BTreeMap<String, u64>,
}

impl Counts {
    fn tie(&mut self, place: (usize, usize)) {
        self.tie = self.tie.into_iter().chain([place]).min();
    }

    fn add(&mut self, other: Counts) {
        self.key_days += other.key_days;
        self.stale += other.stale;
        self.replaced += other.replaced;
        self.tie = self.tie.into_iter().chain(other.tie).min();
        self.days.extend(other.days);
        for (partition, rows) in other.gone {
            *self.gone.entry(partition).or_default() += rows;
        }
    }
}

/// Each thread's outputs: the curated table's sorter, which takes tombstones, and the versions.
pub type Outputs = Vec<(Sorter, VersionsWriter)>;

impl Merge<'_> {
    /// Merges. `outputs` are handed back, one per thread.
    ///
    /// # Errors
    /// Data, when versions are missing or are not what was committed; storage, when they cannot
    /// be read or written.
    pub async fn run(
        mut self,
        context: &SessionContext,
        outputs: Outputs,
    ) -> Result<(Merged, Outputs)> {
        let threads = outputs.len();
        let files = Arc::new(Files::new(
            std::mem::take(&mut self.folded_inputs),
            self.changes,
        )?);
        let stored_rows: u64 = self.stored.iter().map(|file| file.rows).sum();
        let parts = (self.folded.key_days + stored_rows).div_ceil(ROWS_PER_PART);
        let entries = Arc::new(Entries::new(self.layout, parts.clamp(1, PARTS_MAX) as u16)?);
        if self.pipeline.key.is_empty() {
            return self.put_together(&files, &entries, outputs).await;
        }
        let bloom = Arc::new(Bloom::new(self.folded.keys));
        let memory =
            MemoryConsumer::new("keys of the window").register(&context.runtime_env().memory_pool);
        memory.grow(bloom.bytes() + self.changes.place_counts().sum::<u64>() as usize / 4);

        // The winners.
        let winners = Some(Arc::clone(&self.folded.winners));
        let table = ChangesTable::new(self.changes, winners, threads);
        let schema = table.schema();
        let mut projection = Vec::new();
        for name in &self.pipeline.key {
            let lost = || Error::internal(format!("key column `{name}` was lost"));
            projection.push(self.changes.raw_column(name).ok_or_else(lost)?);
        }
        projection.push(schema.index_of(EVENT_DT)?);
        projection.push(schema.index_of(POSITION)?);
        let plan = table
            .scan(&context.state(), Some(&projection), &[], None)
            .await?;
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        let tasks = streams.into_iter().map(|mut rows| {
            let (entries, files) = (Arc::clone(&entries), Arc::clone(&files));
            let bloom = Arc::clone(&bloom);
            let mut sorter = Sorter::new(Arc::clone(&entries.order), context.runtime_env());
            join(tokio::spawn(async move {
                while let Some(batch) = rows.try_next().await? {
                    let (batch, hashes) = entries.of_winners(&batch, &files)?;
                    hashes.iter().for_each(|hash| bloom.insert(*hash));
                    sorter.push(&batch)?;
                }
                Ok(sorter)
            }))
        });
        let mut sorters = join_all(tasks).await?;

        // The versions.
        let queue = Arc::new(Work::new(self.stored));
        let tasks = outputs.into_iter().map(|(table_rows, mut versions)| {
            let (entries, files) = (Arc::clone(&entries), Arc::clone(&files));
            let (bloom, queue) = (Arc::clone(&bloom), Arc::clone(&queue));
            let state = self.state.clone();
            let mut sorter = Sorter::new(Arc::clone(&entries.order), context.runtime_env());
            join(tokio::spawn(async move {
                let look_up = async {
                    let mut before = 0;
                    while let Some(file) = queue.next() {
                        let look_up = LookUp {
                            entries: &entries,
                            files: &files,
                            bloom: &bloom,
                            state: &state,
                        };
                        before += look_up.read(&file, &mut sorter, &mut versions).await?;
                    }
                    Ok((table_rows, versions, sorter, before))
                };
                queue.part(look_up).await
            }))
        });
        let mut outputs = Outputs::new();
        let mut versions_before = 0;
        for (table_rows, versions, sorter, before) in join_all(tasks).await? {
            sorters.push(sorter);
            versions_before += before;
            outputs.push((table_rows, versions));
        }

        // Both, key by key.
        let sorted = Sorted::new(&entries.order, sorters);
        let parts = sorted.partitions();
        let marks = Marks::new(self.changes.place_counts());
        let shared = Arc::new((sorted, marks, Work::new(parts)));
        let job = Arc::new(Job {
            entries: Arc::clone(&entries),
            files,
            keep: self.pipeline.keep,
            partition_by: self.pipeline.curated.partition_by.clone(),
            key: self.pipeline.key.clone(),
            layout: Arc::clone(self.layout),
            table_schema: Arc::clone(&self.table_schema),
        });
        let tasks = outputs.into_iter().map(|(mut table_rows, mut versions)| {
            let (shared, job) = (Arc::clone(&shared), Arc::clone(&job));
            join(tokio::spawn(async move {
                let (sorted, marks, parts) = &*shared;
                let decide = async {
                    let mut readers = Readers::new();
                    let mut counts = Counts::default();
                    while let Some(part) = parts.next() {
                        let mut batches = Vec::new();
                        let mut merge = sorted.rows(&part, &mut readers)?;
                        while let Some(batch) = merge.next_batch()? {
                            batches.push(batch);
                        }
                        drop(merge);
                        let rows = concat_batches(sorted.schema(), &batches)?;
                        let carried = job.decide(&rows, marks, &mut table_rows, &mut counts)?;
                        versions.write(&carried).await?;
                    }
                    Ok((table_rows, versions, counts))
                };
                parts.part(decide).await
            }))
        });
        let mut outputs = Outputs::new();
        let mut all = Counts::default();
        for (table_rows, versions, counts) in join_all(tasks).await? {
            outputs.push((table_rows, versions));
            all.add(counts);
        }
        let (_, marks, _) =
            Arc::into_inner(shared).ok_or_else(|| Error::internal("the merge did not end"))?;
        let merged = Merged {
            winners: Arc::new(marks.finish()),
            counts: all,
            versions_before,
        };
        Ok((merged, outputs))
    }
}

impl Merge<'_> {
    /// Without a key, versions that are written again stay as they are, and every winner holds.
    async fn put_together(
        self,
        files: &Files,
        entries: &Entries,
        mut outputs: Outputs,
    ) -> Result<(Merged, Outputs)> {
        let look_up = LookUp {
            entries,
            files,
            bloom: &Bloom::new(0),
            state: self.state,
        };
        let mut versions_before = 0;
        for (file, place) in self.stored.iter().zip((0..outputs.len()).cycle()) {
            let (table_rows, versions) = &mut outputs[place];
            versions_before += look_up.read(file, table_rows, versions).await?;
        }
        let merged = Merged {
            winners: Arc::clone(&self.folded.winners),
            counts: Counts {
                key_days: self.folded.key_days,
                ..Counts::default()
            },
            versions_before,
        };
        Ok((merged, outputs))
    }
}

/// The numbers of the files of earlier runs and of this one.
struct Files {
    numbers: FileNumbers,
    /// Per input of the run its number.
    of_run: Vec<u32>,
    /// Per number the input of the run.
    in_run: HashMap<u32, usize>,
}

impl Files {
    fn new(earlier: Vec<(usize, String)>, changes: &Changes) -> Result<Self> {
        let inputs = || changes.inputs().map(|input| &input.file);
        let of_run = inputs().map(|file| (file.location, file.path.clone()));
        let numbers = FileNumbers::new(earlier.into_iter().chain(of_run));
        let of_run: Vec<u32> = inputs()
            .map(|file| numbers.number(file.location as i32, &file.path))
            .collect::<Result<_>>()?;
        let in_run = of_run.iter().copied().zip(0..).collect();
        Ok(Files {
            numbers,
            of_run,
            in_run,
        })
    }
}

/// The rows that are sorted: versions, with their file by its number, and where they come from.
struct Entries {
    layout: Arc<VersionsLayout>,
    order: Arc<Order>,
    schema: SchemaRef,
    keys: usize,
    parts: u16,
}

impl Entries {
    fn new(layout: &Arc<VersionsLayout>, parts: u16) -> Result<Self> {
        let mut fields: Vec<Field> = Vec::new();
        for field in layout.schema().fields() {
            match field.name().as_str() {
                "location" => {}
                "file" => fields.push(Field::new("file", DataType::UInt32, true)),
                _ => fields.push(field.as_ref().clone()),
            }
        }
        fields.push(Field::new("origin", DataType::Int8, false));
        fields.push(Field::new("part", DataType::UInt16, false));
        let part = fields.len() - 1;
        let schema = Arc::new(Schema::new(fields));
        let keys = layout.keys.len();
        // By key, then by day.
        let sort_by = (0..=keys).collect();
        let order = Order::new(
            Arc::clone(&schema),
            vec![part],
            sort_by,
            (0..part).collect(),
        )?;
        Ok(Entries {
            layout: Arc::clone(layout),
            order: Arc::new(order),
            schema,
            keys,
            parts,
        })
    }

    fn parts_of(&self, hashes: &[u64]) -> ArrayRef {
        // Another half of the hash than the Bloom filter's first probe.
        let part = |hash: &u64| ((hash >> 40) % u64::from(self.parts)) as u16;
        Arc::new(UInt16Array::from_iter_values(hashes.iter().map(part)))
    }

    /// The entries of a batch of winners (key columns, day, position), and their keys' hashes.
    fn of_winners(&self, batch: &RecordBatch, files: &Files) -> Result<(RecordBatch, Vec<u64>)> {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (number, (name, data_type)) in self.layout.keys.iter().enumerate() {
            columns.push(canonical_column(batch.column(number), name, data_type)?);
        }
        let hashes = hash(&columns)?;
        columns.push(Arc::clone(batch.column(self.keys)));
        for (_, data_type) in &self.layout.partitions {
            columns.push(new_null_array(data_type, rows));
        }
        columns.push(new_null_array(&DataType::Boolean, rows));
        let positions = batch.column(self.keys + 1);
        columns.extend(self.layout.order_columns(positions));
        let places = self.layout.places(positions);
        let numbers = places.iter().map(|(file, _)| files.of_run[*file]);
        columns.push(Arc::new(UInt32Array::from_iter_values(numbers)));
        let in_file = places.iter().map(|(_, row)| *row as i64);
        columns.push(Arc::new(Int64Array::from_iter_values(in_file)));
        columns.push(Arc::new(Int8Array::from(vec![WINNER; rows])));
        columns.push(self.parts_of(&hashes));
        Ok((
            RecordBatch::try_new(Arc::clone(&self.schema), columns)?,
            hashes,
        ))
    }

    /// The entries of a batch of versions.
    fn of_versions(
        &self,
        batch: &RecordBatch,
        hashes: &[u64],
        origin: i8,
        files: &Files,
    ) -> Result<RecordBatch> {
        let column = |name: &str| {
            let lost = || Error::internal(format!("versions without `{name}`"));
            batch.column_by_name(name).ok_or_else(lost)
        };
        let locations = column("location")?.as_primitive::<Int32Type>();
        let files = files
            .numbers
            .numbers(locations, column("file")?.as_string())?;
        let mut columns: Vec<ArrayRef> = Vec::new();
        for field in &self.schema.fields()[..self.schema.fields().len() - 2] {
            columns.push(match field.name().as_str() {
                "file" => Arc::new(files.clone()),
                name => Arc::clone(column(name)?),
            });
        }
        columns.push(Arc::new(Int8Array::from(vec![origin; batch.num_rows()])));
        columns.push(self.parts_of(hashes));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

fn hash(keys: &[ArrayRef]) -> Result<Vec<u64>> {
    let mut hashes = vec![0; keys[0].len()];
    create_hashes(keys, &RandomState::default(), &mut hashes)?;
    Ok(hashes)
}

/// A set of hashes that may take one for another.
struct Bloom {
    words: Vec<AtomicU64>,
}

impl Bloom {
    fn new(keys: u64) -> Self {
        let bits = (keys.max(1) * BLOOM_BITS).next_power_of_two().max(1024);
        Bloom {
            words: (0..bits / 64).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    fn probes(&self, hash: u64) -> [(usize, u64); 3] {
        let bits = self.words.len() as u64 * 64 - 1;
        // The hash may be weak in some of its bits: they are mixed first (splitmix64).
        let mut mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let step = (mixed >> 32) | 1;
        [0, 1, 2].map(|probe| {
            let bit = mixed.wrapping_add(step.wrapping_mul(probe)) & bits;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn insert(&self, hash: u64) {
        for (word, bit) in self.probes(hash) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn may_hold(&self, hash: u64) -> bool {
        let holds = |(word, bit): (usize, u64)| self.words[word].load(Ordering::Relaxed) & bit != 0;
        self.probes(hash).into_iter().all(holds)
    }
}

/// Reads stored versions.
struct LookUp<'a> {
    entries: &'a Entries,
    files: &'a Files,
    bloom: &'a Bloom,
    state: &'a Folder,
}

impl LookUp<'_> {
    /// Hands the versions of winners' keys to the sorter; the others of a file that is written
    /// again go straight to the writer. Returns the rows of such a file.
    async fn read(
        &self,
        stored: &StoredVersions,
        sorter: &mut Sorter,
        versions: &mut VersionsWriter,
    ) -> Result<u64> {
        let layout = &self.entries.layout;
        let name = self.state.describe(&stored.path);
        let path = parse_path(&stored.path)?;
        let store = Arc::clone(&self.state.store);
        let file = ParquetFile::open(store, path, stored.bytes, name.clone())
            .await
            .map_err(|error| {
                match error.kind == Kind::Data || missing_object(&error).is_some() {
                    true => Error::data("versions that were committed cannot be read")
                        .hint("restore the file, or make the state again with `glueless rebuild`")
                        .caused_by(error),
                    false => error,
                }
            })?;
        let schema = layout.schema();
        let mut columns = schema
            .fields()
            .iter()
            .map(|field| file.schema().index_of(field.name()))
            .collect::<Result<Vec<usize>, _>>()
            .map_err(|error| {
                Error::data(format!("{name} holds no versions of this layout")).caused_by(error)
            })?;
        columns.sort_unstable();
        let keys: Vec<usize> = (0..layout.keys.len()).collect();
        let key_schema = Arc::new(schema.project(&keys)?);
        let origin = if stored.rewritten { REWRITTEN } else { KEPT };
        let mut batches = file.read(&columns, BATCH_ROWS);
        while let Some(read) = batches.try_next().await? {
            let hashes = match layout.keys.is_empty() {
                true => vec![0; read.num_rows()],
                false => hash(conform(&read, &key_schema)?.columns())?,
            };
            let met: BooleanArray = hashes
                .iter()
                .map(|hash| Some(self.bloom.may_hold(*hash)))
                .collect();
            let count = met.true_count();
            if count == 0 && !stored.rewritten {
                continue;
            }
            if count > 0 {
                let chosen = conform(&filter_record_batch(&read, &met)?, &schema)?;
                let chosen_hashes: Vec<u64> = hashes
                    .iter()
                    .zip(met.values())
                    .filter_map(|(hash, met)| met.then_some(*hash))
                    .collect();
                let batch =
                    self.entries
                        .of_versions(&chosen, &chosen_hashes, origin, self.files)?;
                sorter.push(&batch)?;
            }
            if stored.rewritten && count < read.num_rows() {
                let others = arrow::compute::not(&met)?;
                let others = filter_record_batch(&read, &others)?;
                versions
                    .write(&conform(&others, &layout.written_schema())?)
                    .await?;
            }
        }
        Ok(if stored.rewritten {
            file.row_count()
        } else {
            0
        })
    }
}

/// What the threads need to decide about keys.
struct Job {
    entries: Arc<Entries>,
    files: Arc<Files>,
    keep: Keep,
    partition_by: Vec<String>,
    key: Vec<String>,
    layout: Arc<VersionsLayout>,
    table_schema: SchemaRef,
}

/// The columns of entries that orders are compared by.
struct Orders<'a> {
    cdc: &'a BooleanArray,
    time_us: &'a Int64Array,
    time_ns: &'a Int32Array,
    bytes: &'a BinaryArray,
    file: &'a UInt32Array,
    row: &'a Int64Array,
}

impl Orders<'_> {
    /// What the order columns say.
    fn order(&self, at: usize) -> (bool, Option<i128>, Option<&[u8]>) {
        let ns = |at: usize| {
            i128::from(self.time_us.value(at)) * 1000 + i128::from(self.time_ns.value(at))
        };
        let time = self.time_us.is_valid(at).then(|| ns(at));
        let bytes = self.bytes.is_valid(at).then(|| self.bytes.value(at));
        (self.cdc.value(at), time, bytes)
    }

    fn place(&self, at: usize) -> (u32, i64) {
        (self.file.value(at), self.row.value(at))
    }

    /// The order of two changes; equal only for one and the same.
    fn compare(&self, a: usize, b: usize) -> Compared {
        let key = |at: usize| (self.order(at), self.place(at));
        key(a).cmp(&key(b))
    }

    /// Whether only file or row decide between two changes.
    fn is_tie(&self, a: usize, b: usize) -> bool {
        self.order(a) == self.order(b) && self.place(a) != self.place(b)
    }
}

impl Job {
    /// Decides about all keys of a part; returns the versions that are written again.
    fn decide(
        &self,
        rows: &RecordBatch,
        marks: &Marks,
        table_rows: &mut Sorter,
        counts: &mut Counts,
    ) -> Result<RecordBatch> {
        let column = |name: &str| {
            let lost = || Error::internal(format!("entries without `{name}`"));
            rows.column_by_name(name).ok_or_else(lost)
        };
        let orders = Orders {
            cdc: column("cdc")?.as_boolean(),
            time_us: column("time_us")?.as_primitive(),
            time_ns: column("time_ns")?.as_primitive(),
            bytes: column(ORDER_BYTES)?.as_binary(),
            file: column("file")?.as_primitive(),
            row: column("row")?.as_primitive(),
        };
        let origin = column("origin")?.as_primitive::<Int8Type>();
        let deleted = column("deleted")?.as_boolean();
        let days = column("event_dt")?.as_primitive::<Date32Type>();
        let keys = &rows.columns()[..self.entries.keys];
        let fields = keys
            .iter()
            .map(|key| SortField::new(key.data_type().clone()));
        let keys = RowConverter::new(fields.collect())?.convert_columns(keys)?;

        let is_winner = |at: usize| origin.value(at) == WINNER;
        let is_row = |at: usize| deleted.is_valid(at) && !deleted.value(at);
        let day = |at: usize| days.is_valid(at).then(|| days.value(at));
        let later = |a: Option<usize>, b: usize| match a {
            Some(a) if orders.compare(a, b).is_ge() => Some(a),
            _ => Some(b),
        };
        let place = |at: usize| -> Result<(usize, usize)> {
            let file = self.files.in_run.get(&orders.file.value(at));
            let lost = || Error::internal("a winner of no input");
            Ok((*file.ok_or_else(lost)?, orders.row.value(at) as usize))
        };
        let mut carried: Vec<u32> = Vec::new();
        let mut gone: Vec<u32> = Vec::new();
        let mut at = 0;
        while at < rows.num_rows() {
            let first = at;
            let (mut last_stored, mut last_winner, mut winners) = (None, None, 0);
            // Of all winners of the key, those that do not hold included.
            let mut latest = None;
            while at < rows.num_rows() && keys.row(at) == keys.row(first) {
                // The entries of one day: one winner at most, one version at most.
                let of_day = day(at);
                let (mut winner, mut stored) = (None, None);
                while at < rows.num_rows() && keys.row(at) == keys.row(first) && day(at) == of_day {
                    let slot = if is_winner(at) {
                        &mut winner
                    } else {
                        &mut stored
                    };
                    if slot.replace(at).is_some() {
                        return Err(Error::data("versions hold a key and day twice")
                            .hint("the state is damaged: make it again with `glueless rebuild`"));
                    }
                    at += 1;
                }
                winners += u64::from(winner.is_some());
                if let Some(winner) = winner {
                    latest = later(latest, winner);
                }
                if let (Some(winner), Some(stored), Keep::LatestPerDay) =
                    (winner, stored, self.keep)
                    && orders.is_tie(winner, stored)
                {
                    counts.tie(place(winner)?);
                }
                if let Some(stored) = stored {
                    last_stored = later(last_stored, stored);
                }
                let holds = winner.filter(|winner| {
                    stored.is_none_or(|stored| orders.compare(*winner, stored).is_gt())
                });
                match (holds, stored) {
                    (Some(_), Some(stored)) => {
                        counts.replaced += 1;
                        if self.keep == Keep::LatestPerDay && is_row(stored) {
                            gone.push(stored as u32);
                        }
                    }
                    (None, Some(stored)) if origin.value(stored) == REWRITTEN => {
                        carried.push(stored as u32);
                    }
                    _ => {}
                }
                if let Some(winner) = holds {
                    let (file, row) = place(winner)?;
                    marks.mark_day(file, row);
                    counts.key_days += 1;
                    last_winner = later(last_winner, winner);
                } else if winner.is_some() && self.keep == Keep::LatestPerDay {
                    counts.stale += 1;
                }
            }
            if let (Some(winner), Some(stored), Keep::Latest) = (latest, last_stored, self.keep)
                && orders.is_tie(winner, stored)
            {
                counts.tie(place(winner)?);
            }
            let moved = last_winner.filter(|winner| {
                last_stored.is_none_or(|stored| orders.compare(*winner, stored).is_gt())
            });
            match moved {
                Some(winner) => {
                    let (file, row) = place(winner)?;
                    marks.mark_latest(file, row);
                    if self.keep == Keep::Latest
                        && let Some(stored) = last_stored.filter(|stored| is_row(*stored))
                    {
                        gone.push(stored as u32);
                    }
                }
                None if winners > 0 && self.keep == Keep::Latest => counts.stale += 1,
                None => {}
            }
        }
        if !gone.is_empty() {
            let gone = take_record_batch(rows, &UInt32Array::from(gone))?;
            self.push_gone(&gone, table_rows, counts)?;
        }
        self.carried(&take_record_batch(rows, &UInt32Array::from(carried))?)
    }

    /// Hands the rows that go to the table's sorter, as tombstones: keys, day and partition, and
    /// null for the rest, which includes the flag that a row is there.
    fn push_gone(
        &self,
        gone: &RecordBatch,
        table_rows: &mut Sorter,
        counts: &mut Counts,
    ) -> Result<()> {
        let keys = self.entries.keys;
        let mut columns = Vec::new();
        for field in self.table_schema.fields() {
            let is = |name: &String| name == field.name();
            let place = match (
                self.key.iter().position(is),
                self.partition_by.iter().position(is),
            ) {
                (Some(key), _) => Some(key),
                (None, Some(partition)) => Some(keys + 1 + partition),
                (None, None) if field.name() == EVENT_DT => Some(keys),
                (None, None) => None,
            };
            columns.push(match place {
                Some(place) => cast(gone.column(place), field.data_type())?,
                None if field.name() == PRESENT => {
                    Arc::new(BooleanArray::from(vec![false; gone.num_rows()]))
                }
                None => new_null_array(field.data_type(), gone.num_rows()),
            });
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.table_schema), columns)?;
        let names: Vec<&str> = self.partition_by.iter().map(String::as_str).collect();
        let parts = names
            .iter()
            .map(|name| Ok(Arc::clone(batch.column(self.table_schema.index_of(name)?))))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..batch.num_rows() {
            let folder = partition_folder(&names, &parts, row)?;
            *counts.gone.entry(folder).or_default() += 1;
        }
        let days = gone.column(keys).as_primitive::<Date32Type>();
        counts.days.extend(days.iter().flatten());
        table_rows.push(&batch)
    }

    /// The versions that stay, as they are written.
    fn carried(&self, carried: &RecordBatch) -> Result<RecordBatch> {
        let schema = self.layout.written_schema();
        let numbers = carried
            .column_by_name("file")
            .ok_or_else(|| Error::internal("entries without a file"))?
            .as_primitive::<UInt32Type>();
        let mut distinct: BTreeMap<u32, u32> = BTreeMap::new();
        for number in numbers.values() {
            let next = distinct.len() as u32;
            distinct.entry(*number).or_insert(next);
        }
        let mut names = vec![""; distinct.len()];
        for (number, place) in &distinct {
            names[*place as usize] = self.files.numbers.file(*number).1;
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        for field in schema.fields() {
            columns.push(match field.name().as_str() {
                "file" => {
                    let places = numbers.values().iter().map(|number| distinct[number]);
                    Arc::new(DictionaryArray::<UInt32Type>::try_new(
                        UInt32Array::from_iter_values(places),
                        Arc::new(StringArray::from(names.clone())),
                    )?)
                }
                "location" => {
                    let locations = numbers
                        .values()
                        .iter()
                        .map(|number| self.files.numbers.file(*number).0 as i32);
                    Arc::new(Int32Array::from_iter_values(locations))
                }
                name => Arc::clone(
                    carried
                        .column_by_name(name)
                        .ok_or_else(|| Error::internal(format!("entries without `{name}`")))?,
                ),
            });
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

/// The flag of a row for the curated table's sorter: true for a row, false for a tombstone.
pub const PRESENT: &str = "__present";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bloom_filter_holds_what_was_put_in_and_little_else() {
        let bloom = Bloom::new(10_000);
        let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..10_000).for_each(|number| bloom.insert(hash(number)));
        assert!((0..10_000).all(|number| bloom.may_hold(hash(number))));
        let wrong = (10_000..20_000).filter(|number| bloom.may_hold(hash(*number)));
        assert!(wrong.count() < 1_500);
    }
}
