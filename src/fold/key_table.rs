//! The hash table of the fold: the last change per day of each key.
//! The engine's own grouping would look up each key at least twice (once per thread, and again to
//! combine the threads' results), with Arrow arrays in between. This table looks it up once, in
//! shards by the key's hash that all threads fill:
//!
//! ```text
//! batch ─▶ hash ─▶ rows of shard 0 ─▶ shard 0 ─▶ slots ─▶ keys, last changes ─┐
//!                  rows of shard 1    shard 1                                 ├─▶ finish, shard by
//! shard
//!                     ⋮ (a thread's)   ⋮       memory refused ─▶ file ──────┘
//! ```
//! A thread inserts thousands of rows into a shard at once, so that for most of them the shard's
//! memory is in the CPU caches.
//! A shard that gets no more memory is spilled to its own file, and continues from empty. After all
//! changes are inserted, a spilled shard is read back in as many passes as its memory limit
//! requires. Passes and shards are split by the same hash, so all changes of a key are in one pass.
//!
//! Why no `hashbrown` map per shard: it looks up one key at a time, so that the cache misses of several
//! lookups cannot overlap, and it grows by doubling. For 20 million changes of 8.6 million keys in as
//! many shards, maps need 2.5 to 3.2 s of CPU time and 837 MB, this table 1.4 to 1.9 s and 564 MB (one
//! thread; for 100,000 keys 0.9 s and 0.7 s). And it spills: its keys are in one vector.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::Date32Type;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, Gauge, MetricBuilder};

use crate::changes::position::Position;
use crate::engine::session::memory_limit;
use crate::error::Result;
use crate::fold::key_table::key_bytes::{INLINE_BYTES, Keys, hash, length_of, long_view, view_of};
use crate::fold::key_table::shard::{LOOKUP_BATCH_ROWS, Row, SHARDS, Shard, shard_of};

mod days;
mod key_bytes;
mod sealed;
mod shard;
mod spill;

pub(super) use days::keep_later;
pub(super) use sealed::SealedShard;

/// The upper limit of [`KeyTable::pending_rows`].
const PENDING_ROWS_MAX: usize = 4096;
/// The rows pending in all threads use at most one part in this many of the memory.
const PENDING_DIVISOR: usize = 16;
/// The least memory of a pass over a spilled shard.
const PASS_BYTES_MIN: usize = 256;

/// Keys and their last changes, filled by several threads concurrently.
pub(super) struct KeyTable<P> {
    shards: Vec<Mutex<Shard<P>>>,
    memory: MemoryReservation,
    runtime: Arc<RuntimeEnv>,
    metrics: Metrics,
    /// The number of rows that a thread buffers per shard before it inserts them.
    pending_rows: usize,
    /// The limit of the memory pool, in bytes.
    limit: usize,
    threads: usize,
}

/// The metrics of a table that a plan shows.
struct Metrics {
    spilled_bytes: Count,
    /// Spilled keys.
    spilled_rows: Count,
    peak_mem_used: Gauge,
}

/// Inserts the changes of one thread into a table.
pub(super) struct Inserter<P> {
    table: Arc<KeyTable<P>>,
    /// The rows pending per shard.
    pending: Vec<PendingRows<P>>,
    /// The memory of pending rows.
    _reserved: MemoryReservation,
}

struct PendingRows<P> {
    rows: Vec<Row<P>>,
    /// The bytes of keys that are too long to be inlined in a view.
    long: Vec<u8>,
    /// The heap memory of the positions.
    heap_bytes: usize,
}

impl<P: Position> PendingRows<P> {
    fn new() -> Self {
        PendingRows { rows: Vec::new(), long: Vec::new(), heap_bytes: 0 }
    }

    /// Adds a row, with its key as [`view_of`] returns it.
    #[inline]
    fn push(&mut self, hash: u64, (mut view, long): (u128, &[u8]), day: Option<i32>, position: P) {
        if !long.is_empty() {
            view = long_view(view, self.long.len());
            self.long.extend_from_slice(long);
        }
        self.heap_bytes += position.heap_bytes();
        self.rows.push(Row { hash, day, view, position });
    }

    /// Moves the rows to a shard.
    fn move_to(&mut self, shard: &mut Shard<P>) -> Result<()> {
        for rows in self.rows.chunks_mut(LOOKUP_BATCH_ROWS) {
            shard.add(rows, &self.long)?;
        }
        self.rows.clear();
        self.long.clear();
        self.heap_bytes = 0;
        Ok(())
    }
}

impl<P: Position> Inserter<P> {
    /// An inserter without pending rows.
    pub(super) fn new(table: &Arc<KeyTable<P>>) -> Self {
        let reserved = MemoryConsumer::new("pending changes").register(&table.runtime.memory_pool);
        // One half for the rows, the other for their long keys and heap memory.
        reserved.grow(2 * SHARDS * table.pending_bytes());
        Inserter {
            table: Arc::clone(table),
            _reserved: reserved,
            pending: std::iter::repeat_with(PendingRows::new).take(SHARDS).collect(),
        }
    }

    /// Inserts changes: their non-null keys, days and positions.
    ///
    /// # Errors
    /// Storage, when the spill folder cannot be used; internal, when the columns cannot be keys.
    pub(super) fn insert(
        &mut self,
        keys: &[ArrayRef],
        days: &PrimitiveArray<Date32Type>,
        positions: Vec<P>,
    ) -> Result<()> {
        match Keys::new(keys)? {
            Keys::Views(views, array) => {
                let long = |row| match length_of(views[row]) {
                    0..=INLINE_BYTES => &[],
                    _ => match array.as_string_view_opt() {
                        Some(texts) => texts.value(row).as_bytes(),
                        None => array.as_binary_view().value(row),
                    },
                };
                self.insert_rows(|row| (views[row], long(row)), days, positions)
            }
            Keys::Fixed { width, bytes } => {
                let key = |row| view_of(&bytes[row * width..(row + 1) * width]);
                self.insert_rows(key, days, positions)
            }
            Keys::Encoded { ends, bytes } => {
                let key = |row| {
                    let start = if row == 0 { 0 } else { ends[row - 1] };
                    view_of(&bytes[start..ends[row]])
                };
                self.insert_rows(key, days, positions)
            }
        }
    }

    /// Inserts rows; `key` returns a row's view, and the key's bytes if the view does not inline
    /// them.
    fn insert_rows<'a>(
        &mut self,
        key: impl Fn(usize) -> (u128, &'a [u8]),
        days: &PrimitiveArray<Date32Type>,
        positions: Vec<P>,
    ) -> Result<()> {
        for (row, position) in positions.into_iter().enumerate() {
            let (view, long) = key(row);
            let hash = hash(view, long);
            let number = shard_of(hash);
            let pending = &mut self.pending[number];
            let day = days.is_valid(row).then(|| days.value(row));
            pending.push(hash, (view, long), day, position);
            let is_full = pending.rows.len() == self.table.pending_rows
                || pending.long.len() + pending.heap_bytes >= self.table.pending_bytes();
            if is_full {
                self.table.insert_pending(number, pending)?;
            }
        }
        Ok(())
    }

    /// Inserts the rows still pending.
    ///
    /// # Errors
    /// As [`Inserter::insert`].
    pub(super) fn finish(mut self) -> Result<()> {
        for (number, pending) in self.pending.iter_mut().enumerate() {
            self.table.insert_pending(number, pending)?;
        }
        Ok(())
    }
}

impl<P: Position> KeyTable<P> {
    /// An empty table for `threads` inserting threads, with the memory pool and the disk of
    /// `runtime`.
    pub(super) fn new(
        runtime: Arc<RuntimeEnv>,
        threads: usize,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Self {
        let limit = memory_limit(&runtime);
        let row_bytes = threads.max(1).saturating_mul(2 * SHARDS * size_of::<Row<P>>());
        let pending_rows = limit / PENDING_DIVISOR / row_bytes;
        let memory =
            MemoryConsumer::new("last changes").with_can_spill(true).register(&runtime.memory_pool);
        KeyTable {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect(),
            memory,
            runtime,
            metrics: Metrics {
                spilled_bytes: MetricBuilder::new(metrics).global_counter("spilled_bytes"),
                spilled_rows: MetricBuilder::new(metrics).global_counter("spilled_rows"),
                peak_mem_used: MetricBuilder::new(metrics).global_gauge("peak_mem_used"),
            },
            pending_rows: pending_rows.clamp(LOOKUP_BATCH_ROWS, PENDING_ROWS_MAX),
            limit,
            threads,
        }
    }

    /// The memory of the rows pending for a shard, in bytes.
    fn pending_bytes(&self) -> usize {
        self.pending_rows * size_of::<Row<P>>()
    }

    /// Ends the inserts. Returns the shards, each to be opened once and in this order, and the
    /// memory limit of one shard in bytes.
    ///
    /// # Errors
    /// Storage, when the spill folder cannot be used.
    pub(super) fn seal(&self) -> Result<(Vec<usize>, usize)> {
        let (mut in_memory, mut spilled) = (Vec::new(), Vec::new());
        for number in 0..SHARDS {
            let mut shard = self.shard(number);
            if shard.spilled.is_none() {
                in_memory.push(number);
                continue;
            }
            self.spill(&mut shard)?;
            spilled.push(number);
        }
        let free = self.limit.saturating_sub(self.runtime.memory_pool.reserved());
        let share = free.max(self.limit / 8) / self.threads.max(1) / 2;
        // Shards in memory come first: they free memory for the spilled ones.
        in_memory.append(&mut spilled);
        Ok((in_memory, share.max(PASS_BYTES_MIN)))
    }

    fn shard(&self, number: usize) -> MutexGuard<'_, Shard<P>> {
        let shard = &self.shards[number];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inserts the rows pending for a shard.
    fn insert_pending(&self, number: usize, pending: &mut PendingRows<P>) -> Result<()> {
        let mut shard = self.shard(number);
        pending.move_to(&mut shard)?;
        self.account(&mut shard)
    }

    /// Reserves the memory that a shard has grown by, or spills the shard.
    fn account(&self, shard: &mut Shard<P>) -> Result<()> {
        let bytes = shard.bytes();
        if bytes <= shard.reserved {
            return Ok(());
        }
        if self.memory.try_grow(bytes - shard.reserved).is_ok() {
            shard.reserved = bytes;
            self.metrics.peak_mem_used.set_max(self.memory.size());
            return Ok(());
        }
        self.spill(shard)
    }

    /// Spills a shard to disk, and releases its memory.
    fn spill(&self, shard: &mut Shard<P>) -> Result<()> {
        let (bytes, keys) = shard.spill(&self.runtime)?;
        self.metrics.spilled_bytes.add(bytes);
        self.metrics.spilled_rows.add(keys);
        self.memory.shrink(shard.reserved);
        shard.reserved = 0;
        Ok(())
    }

    /// Reserves memory even beyond the pool's limit.
    fn reserve(&self, bytes: usize) {
        self.memory.grow(bytes);
        self.metrics.peak_mem_used.set_max(self.memory.size());
    }

    fn release(&self, bytes: usize) {
        self.memory.shrink(bytes);
    }

    /// Opens a shard of a sealed table, to be read once. A spilled shard is read in as many passes
    /// as keep each within `share` bytes.
    pub(super) fn open(self: &Arc<Self>, number: usize, share: usize) -> SealedShard<P> {
        let shard = std::mem::replace(&mut *self.shard(number), Shard::new());
        SealedShard::new(Arc::clone(self), shard, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::position::pack;
    use crate::engine::memory_pool::FloorPool;
    use arrow::array::{
        BooleanArray, Date32Array, Float64Array, Int32Array, StringArray, StringViewArray,
    };
    use arrow::compute::cast;
    use arrow::datatypes::DataType;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A change: the number of its key, its day and its time. Its row is its index.
    type Row = (u32, Option<i32>, i64);
    /// Per day the time of the last change, its row, and whether it is tied.
    type Days = BTreeMap<Option<i32>, (i64, usize, bool)>;
    /// Per key its entries: day, row of the last change, whether it is tied.
    type Found = Vec<Vec<(Option<i32>, usize, bool)>>;

    fn model(rows: &[Row]) -> Found {
        let mut keys: BTreeMap<u32, Days> = BTreeMap::new();
        for (row, (key, day, time)) in rows.iter().enumerate() {
            let best = keys.entry(*key).or_default().entry(*day);
            best.and_modify(|best| {
                *best = match time.cmp(&best.0) {
                    std::cmp::Ordering::Less => *best,
                    std::cmp::Ordering::Equal => (*time, row, true),
                    std::cmp::Ordering::Greater => (*time, row, false),
                }
            })
            .or_insert((*time, row, false));
        }
        let days = |days: Days| {
            let days = days.into_iter();
            days.map(|(day, (_, row, tied))| (day, row, tied)).collect()
        };
        let mut found: Found = keys.into_values().map(days).collect();
        found.sort();
        found
    }

    /// The result of a table with `memory` bytes for the rows, inserted in batches by two threads.
    fn found(
        rows: &[Row],
        batch: usize,
        memory: usize,
        key: impl Fn(u32) -> Vec<ArrayRef> + Sync,
    ) -> Found {
        let pool = Arc::new(FloorPool::new(memory));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let runtime = runtime.build_arc().expect("a runtime");
        let table = Arc::new(KeyTable::<i128>::new(Arc::clone(&runtime), 2, &Default::default()));
        let batches: Vec<(usize, &[Row])> = rows.chunks(batch).enumerate().collect();
        let add = |every: usize| {
            let mut inserter = Inserter::new(&table);
            for (number, rows) in batches.iter().skip(every).step_by(2) {
                let columns: Vec<Vec<ArrayRef>> = rows.iter().map(|row| key(row.0)).collect();
                let keys: Vec<ArrayRef> = (0..columns[0].len())
                    .map(|column| {
                        let values: Vec<&dyn Array> =
                            columns.iter().map(|row| row[column].as_ref()).collect();
                        arrow::compute::concat(&values).expect("a column")
                    })
                    .collect();
                let days = Date32Array::from_iter(rows.iter().map(|row| row.1));
                let positions = rows.iter().enumerate().map(|(at, row)| {
                    let ordinal = (number * batch + at) as u64;
                    pack(true, Some(row.2.into()), 0, ordinal).expect("packs")
                });
                inserter.insert(&keys, &days, positions.collect()).expect("added");
            }
            inserter.finish().expect("added");
        };
        std::thread::scope(|scope| {
            scope.spawn(|| add(0));
            scope.spawn(|| add(1));
        });
        let mut found = Found::new();
        let (shards, share) = table.seal().expect("sealed");
        for shard in shards {
            let mut each = |key: &mut dyn Iterator<Item = (Option<i32>, &i128)>| {
                let mut entries: Vec<_> = key
                    .map(|(day, position)| (day, position.file_and_row().1, position.is_tied()))
                    .collect();
                entries.sort();
                found.push(entries);
            };
            let mut shard = table.open(shard, share);
            while shard.next_keys(3, &mut each).expect("read") {}
        }
        assert_eq!(runtime.memory_pool.reserved(), 0, "all memory is released");
        found.sort();
        found
    }

    fn rows(keys: u32, count: usize) -> impl Strategy<Value = Vec<Row>> {
        let row = (0..keys, prop::option::of(0..3i32), 0..3i64);
        prop::collection::vec(row, 1..count)
    }

    /// Keys as text of up to 12 bytes and of more, as number, and as several columns.
    fn key_of_kind(kind: usize, key: u32) -> Vec<ArrayRef> {
        let text = |text: String| Arc::new(StringViewArray::from(vec![text])) as ArrayRef;
        match kind {
            0 => vec![text(format!("{key}"))],
            // Lengths around the inline limit of a view, with a common prefix.
            1 => vec![text(format!("{}{key}", "k".repeat(key as usize % 24)))],
            2 => vec![
                cast(&text(format!("a key of text {key}")), &DataType::BinaryView).expect("cast"),
            ],
            3 => vec![Arc::new(Int32Array::from(vec![key as i32 - 5]))],
            4 => vec![Arc::new(Float64Array::from(vec![f64::from(key) / 7.0]))],
            // Columns whose concatenations are alike: "1" and "23", "12" and "3".
            5 => vec![
                text(format!("{}", key / 10)),
                text(format!("{}", key % 10)),
                Arc::new(Int32Array::from(vec![(key % 3) as i32])),
            ],
            _ => vec![
                Arc::new(BooleanArray::from(vec![key.is_multiple_of(2)])),
                Arc::new(StringArray::from(vec![format!("{}", key / 2)])),
            ],
        }
    }

    proptest! {
        #[test]
        fn winners_and_ties_are_the_models(rows in rows(40, 300), kind in 0..7usize, batch in 1..100usize) {
            let found = found(&rows, batch, 1 << 30, |key| key_of_kind(kind, key));
            prop_assert_eq!(found, model(&rows));
        }

        #[test]
        fn winners_and_ties_are_the_models_when_all_is_spilled(rows in rows(400, 1000), kind in 0..3usize, memory in 0..200_000usize) {
            let found = found(&rows, 50, memory, |key| key_of_kind(kind, key));
            prop_assert_eq!(found, model(&rows));
        }
    }
}
