//! The fold's table: of each key, its last changes per day.
//!
//! The engine's own grouping would meet every key at least twice (once per thread, and again where
//! the threads' results come together) and take each through Arrow arrays in between. This table
//! meets it once, in parts by the key's hash that all threads fill:
//!
//! ```text
//! batch ─▶ hash ─▶ rows of part 0 ─▶ part 0 ─▶ slots ─▶ keys, last changes ─┐
//!                  rows of part 1    part 1                                 ├─▶ finish, part by part
//!                     ⋮ (a thread's)   ⋮       memory refused ─▶ file ──────┘
//! ```
//!
//! A thread hands rows over by the thousand, so that what a part needs is in the processor's caches
//! for most of them.
//!
//! A part that gets no more memory goes to a file of its own and begins anew. When all changes
//! are in, such a part is read again, in as many passes as its keys need memory; passes and parts
//! are cut by the same hash, so that a key is whole in one of them.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Date32Type};
use arrow::row::{RowConverter, SortField};
use datafusion::execution::SpillFile;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::error::{Error, Result, spilled_too_much};
use crate::last_changes::{LastChange, LaterDays, entries};
use crate::position::Position;
use crate::session::read_spilled;

/// How many parts there are.
const PARTS: usize = 64;
/// The bits of a hash that tell the part.
const PART_BITS: u32 = PARTS.trailing_zeros();
/// So many rows are looked up together: what they wait for is fetched at the same time.
const TOGETHER: usize = 64;
/// At most so many rows of a thread wait for a part until it takes them.
const WAITING_ROWS_MAX: usize = 4096;
/// All rows that wait take at most this part of the memory.
const WAITING_PART: usize = 16;
/// A key of so many bytes is kept inside its view.
const INLINE_BYTES: usize = 12;
/// What a key takes in memory beside its bytes: its entry, and its slots at the emptiest.
const fn bytes_per_key<P>() -> usize {
    size_of::<Key<P>>() * 5 / 4 + 4 * size_of::<u64>()
}
/// Spilled data is read and written in pieces of this size.
const BUFFER_BYTES: usize = 256 << 10;
/// A pass over what was spilled takes at least so much memory.
const PASS_BYTES_MIN: usize = 256;

/// Keys and their last changes, filled by several threads at once.
pub struct KeyTable<P> {
    parts: Vec<Mutex<Part<P>>>,
    memory: MemoryReservation,
    runtime: Arc<RuntimeEnv>,
    /// So many rows of a thread wait for a part until it takes them.
    waiting_rows: usize,
    /// The memory that all may take.
    limit: usize,
    threads: usize,
}

/// What one thread adds to a table.
pub struct Adder<P> {
    table: Arc<KeyTable<P>>,
    /// Per part the rows that wait for it.
    waiting: Vec<Waiting<P>>,
    /// Their memory.
    _reserved: MemoryReservation,
}

struct Waiting<P> {
    rows: Vec<Row<P>>,
    /// The bytes of keys that are longer than what a view holds.
    long: Vec<u8>,
    /// What the positions hold outside of themselves.
    heap_bytes: usize,
}

struct Row<P> {
    hash: u64,
    day: Option<i32>,
    /// Of a long key, its place in `long` is behind the prefix.
    view: u128,
    position: P,
}

impl<P: Position> Waiting<P> {
    fn new() -> Self {
        Waiting {
            rows: Vec::new(),
            long: Vec::new(),
            heap_bytes: 0,
        }
    }

    /// Takes a row; its key as [`view_of`] tells it.
    #[inline]
    fn push(&mut self, hash: u64, (mut view, long): (u128, &[u8]), day: Option<i32>, position: P) {
        if !long.is_empty() {
            view = long_view(view, self.long.len());
            self.long.extend_from_slice(long);
        }
        self.heap_bytes += position.heap_bytes();
        self.rows.push(Row {
            hash,
            day,
            view,
            position,
        });
    }

    /// Hands the rows over to a part.
    fn hand_over(&mut self, part: &mut Part<P>) -> Result<()> {
        for rows in self.rows.chunks_mut(TOGETHER) {
            part.add(rows, &self.long)?;
        }
        self.rows.clear();
        self.long.clear();
        self.heap_bytes = 0;
        Ok(())
    }
}

impl<P: Position> Adder<P> {
    /// Adds nothing yet.
    pub fn new(table: &Arc<KeyTable<P>>) -> Self {
        let reserved = MemoryConsumer::new("changes on their way");
        let reserved = reserved.register(&table.runtime.memory_pool);
        // Rows take one half of it, their bytes outside of them the other.
        reserved.grow(2 * PARTS * table.waiting_bytes());
        Adder {
            table: Arc::clone(table),
            _reserved: reserved,
            waiting: std::iter::repeat_with(Waiting::new).take(PARTS).collect(),
        }
    }

    /// Adds changes: their keys, none of them null, days and positions.
    ///
    /// # Errors
    /// Storage, when the disk to spill to cannot be used; internal, when the columns cannot be
    /// keys.
    pub fn add(
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
                self.add_rows(|row| (views[row], long(row)), days, positions)
            }
            Keys::Fixed { width, bytes } => {
                let key = |row| view_of(&bytes[row * width..(row + 1) * width]);
                self.add_rows(key, days, positions)
            }
            Keys::Encoded { ends, bytes } => {
                let key = |row| {
                    let start = if row == 0 { 0 } else { ends[row - 1] };
                    view_of(&bytes[start..ends[row]])
                };
                self.add_rows(key, days, positions)
            }
        }
    }

    /// Adds rows; `key` tells a row's view, and its bytes where that does not hold them.
    fn add_rows<'a>(
        &mut self,
        key: impl Fn(usize) -> (u128, &'a [u8]),
        days: &PrimitiveArray<Date32Type>,
        positions: Vec<P>,
    ) -> Result<()> {
        for (row, position) in positions.into_iter().enumerate() {
            let (view, long) = key(row);
            let hash = hash(view, long);
            let number = part_of(hash);
            let waiting = &mut self.waiting[number];
            let day = days.is_valid(row).then(|| days.value(row));
            waiting.push(hash, (view, long), day, position);
            let is_full = waiting.rows.len() == self.table.waiting_rows
                || waiting.long.len() + waiting.heap_bytes >= self.table.waiting_bytes();
            if is_full {
                self.table.take(number, waiting)?;
            }
        }
        Ok(())
    }

    /// Adds what still waits.
    ///
    /// # Errors
    /// As [`Adder::add`].
    pub fn finish(mut self) -> Result<()> {
        for (number, waiting) in self.waiting.iter_mut().enumerate() {
            self.table.take(number, waiting)?;
        }
        Ok(())
    }
}

impl<P: Position> KeyTable<P> {
    /// An empty table that takes memory from the pool of `runtime`, and disk from it, for so many
    /// threads that add to it.
    pub fn new(runtime: Arc<RuntimeEnv>, threads: usize) -> Self {
        let limit = match runtime.memory_pool.memory_limit() {
            MemoryLimit::Finite(bytes) => bytes,
            _ => usize::MAX,
        };
        let row_bytes = threads
            .max(1)
            .saturating_mul(2 * PARTS * size_of::<Row<P>>());
        let waiting_rows = limit / WAITING_PART / row_bytes;
        let memory = MemoryConsumer::new("last changes")
            .with_can_spill(true)
            .register(&runtime.memory_pool);
        KeyTable {
            parts: (0..PARTS).map(|_| Mutex::new(Part::new())).collect(),
            memory,
            runtime,
            waiting_rows: waiting_rows.clamp(TOGETHER, WAITING_ROWS_MAX),
            limit,
            threads,
        }
    }

    /// What the rows that wait for a part take.
    fn waiting_bytes(&self) -> usize {
        self.waiting_rows * size_of::<Row<P>>()
    }

    /// Ends the adding. Returns the parts, each to be finished once and in this order, and how
    /// much memory one of them may take.
    ///
    /// # Errors
    /// Storage, when the disk to spill to cannot be used.
    pub fn settle(&self) -> Result<(Vec<usize>, usize)> {
        let (mut held, mut spilled) = (Vec::new(), Vec::new());
        for number in 0..PARTS {
            let mut part = self.part(number);
            if part.spilled.is_none() {
                held.push(number);
                continue;
            }
            self.spill(&mut part)?;
            spilled.push(number);
        }
        let free = self
            .limit
            .saturating_sub(self.runtime.memory_pool.reserved());
        let share = free.max(self.limit / 8) / self.threads.max(1) / 2;
        // What is in memory goes first, and leaves more for the others.
        held.append(&mut spilled);
        Ok((held, share.max(PASS_BYTES_MIN)))
    }

    fn part(&self, number: usize) -> MutexGuard<'_, Part<P>> {
        let part = &self.parts[number];
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the rows that wait for a part.
    fn take(&self, number: usize, waiting: &mut Waiting<P>) -> Result<()> {
        let mut part = self.part(number);
        waiting.hand_over(&mut part)?;
        self.account(&mut part)
    }

    /// Takes the memory that a part has grown by, or brings it to disk.
    fn account(&self, part: &mut Part<P>) -> Result<()> {
        let bytes = part.bytes();
        if bytes <= part.reserved {
            return Ok(());
        }
        if self.memory.try_grow(bytes - part.reserved).is_ok() {
            part.reserved = bytes;
            return Ok(());
        }
        self.spill(part)
    }

    /// Brings a part to disk, and gives its memory back.
    fn spill(&self, part: &mut Part<P>) -> Result<()> {
        part.spill(&self.runtime)?;
        self.memory.shrink(part.reserved);
        part.reserved = 0;
        Ok(())
    }

    /// Hands out the last changes of each key of a part, one per day and in no order, and lets go
    /// of them. A part that was spilled is read in as many passes as keep each to `share` bytes.
    ///
    /// # Errors
    /// Storage, when what was spilled cannot be read.
    pub fn finish(
        &self,
        number: usize,
        share: usize,
        mut each: impl FnMut(&mut dyn Iterator<Item = (Option<i32>, &P)>),
    ) -> Result<()> {
        let mut part = std::mem::replace(&mut *self.part(number), Part::new());
        let Some(Spilled {
            file,
            bytes,
            keys,
            later,
        }) = part.spilled.take()
        else {
            part.each(&mut each);
            self.memory.shrink(part.reserved);
            return Ok(());
        };
        // Lists of further days grow to twice their size.
        let needed = bytes
            + keys * bytes_per_key::<P>() as u64
            + later * 2 * size_of::<LastChange<P>>() as u64;
        let passes = needed.div_ceil(share as u64).max(1);
        let reserved = (needed / passes) as usize;
        self.memory.grow(reserved);
        for pass in 0..passes {
            let mut part = Part::<P>::new();
            part.reserve((keys / passes) as usize);
            let mut records = Records::open(&file)?;
            let mut waiting = Waiting::new();
            while records.next()? {
                let (view, long) = view_of(&records.key);
                let hash = hash(view, long);
                // Neither the part's bits nor those that find a slot.
                if (hash >> 40) % passes != pass {
                    continue;
                }
                for (day, position) in entries(&records.changes) {
                    waiting.push(hash, (view, long), day, position);
                }
                if waiting.rows.len() >= TOGETHER {
                    waiting.hand_over(&mut part)?;
                }
            }
            waiting.hand_over(&mut part)?;
            part.each(&mut each);
        }
        self.memory.shrink(reserved);
        Ok(())
    }
}

fn part_of(hash: u64) -> usize {
    (hash & (PARTS as u64 - 1)) as usize
}

/// The keys of one part, numbered as they come.
struct Part<P> {
    /// Open addressing: the upper half of a key's hash and, lower, its number plus one; 0 is free.
    slots: Vec<u64>,
    keys: Vec<Key<P>>,
    /// The bytes of keys that are longer than what a view holds.
    long: Vec<u8>,
    later: LaterDays<P>,
    heap_bytes: usize,
    /// How much memory was taken for it.
    reserved: usize,
    spilled: Option<Spilled>,
}

struct Key<P> {
    /// See [`view_of`]; of a long key, its place in `long` is behind the prefix.
    view: u128,
    last: LastChange<P>,
}

/// The earlier contents of a part.
struct Spilled {
    file: Arc<dyn SpillFile>,
    bytes: u64,
    keys: u64,
    /// Changes of keys' further days.
    later: u64,
}

impl<P: Position> Part<P> {
    fn new() -> Self {
        Part {
            slots: Vec::new(),
            keys: Vec::new(),
            long: Vec::new(),
            later: LaterDays::default(),
            heap_bytes: 0,
            reserved: 0,
            spilled: None,
        }
    }

    fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
            + self.keys.capacity() * size_of::<Key<P>>()
            + self.long.capacity()
            + self.heap_bytes
            + self.later.bytes()
    }

    /// Adds some rows; `long` has the bytes of long keys.
    fn add(&mut self, rows: &mut [Row<P>], long: &[u8]) -> Result<()> {
        self.reserve(rows.len());
        // The memory that the rows need is fetched for all of them at once, step by step.
        let mut numbers = [0; TOGETHER];
        for (number, row) in numbers.iter_mut().zip(rows.iter()) {
            *number = self.slots[self.slot(row.hash)] as u32;
        }
        let mut fetched = 0;
        for number in numbers {
            // The number of none is 0, and no key has the greatest.
            if let Some(key) = self.keys.get((number as usize).wrapping_sub(1)) {
                fetched ^= key.view as u64 ^ key.last.fetch();
            }
        }
        std::hint::black_box(fetched);
        for row in rows {
            let position = std::mem::take(&mut row.position);
            let long = long_bytes(row.view, long);
            self.change(row.hash, row.view, long, row.day, position)?;
        }
        Ok(())
    }

    #[inline]
    fn slot(&self, hash: u64) -> usize {
        (hash >> PART_BITS) as usize & (self.slots.len() - 1)
    }

    /// Makes room for so many new keys.
    fn reserve(&mut self, new: usize) {
        let needed = self.keys.len() + new;
        if needed * 10 > self.slots.len() * 7 {
            let slots = (needed * 2).next_power_of_two();
            self.slots = Vec::new();
            self.slots.resize(slots, 0);
            for (number, key) in self.keys.iter().enumerate() {
                let hash = hash(key.view, long_bytes(key.view, &self.long));
                let mut at = self.slot(hash);
                while self.slots[at] != 0 {
                    at = (at + 1) & (self.slots.len() - 1);
                }
                self.slots[at] = slot_value(hash, number);
            }
        }
        if self.keys.capacity() < needed {
            // All parts grow at the same time: twice the size would be half idle.
            self.keys.reserve_exact(new.max(self.keys.len() / 4));
        }
    }

    /// Adds a change of a key, which may be new; there is [room](Part::reserve) for it.
    #[inline]
    fn change(
        &mut self,
        hash: u64,
        view: u128,
        long: &[u8],
        day: Option<i32>,
        position: P,
    ) -> Result<()> {
        let mut at = self.slot(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            if slot >> 32 == hash >> 32 {
                let key = &mut self.keys[slot as u32 as usize - 1];
                let is_same = match long {
                    [] => key.view == view,
                    _ => key.view as u64 == view as u64 && long_bytes(key.view, &self.long) == long,
                };
                if is_same {
                    return self.later.add(&mut key.last, day, position);
                }
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        let number = self.keys.len();
        if number >= u32::MAX as usize {
            return Err(Error::usage("too many keys for one run").hint("run smaller windows"));
        }
        self.slots[at] = slot_value(hash, number);
        self.heap_bytes += position.heap_bytes();
        self.keys.push(Key {
            view: match long {
                [] => view,
                _ => long_view(view, self.long.len()),
            },
            last: LastChange::first(day, position),
        });
        self.long.extend_from_slice(long);
        Ok(())
    }

    fn each(&self, mut each: impl FnMut(&mut dyn Iterator<Item = (Option<i32>, &P)>)) {
        for key in &self.keys {
            each(&mut self.later.of(&key.last));
        }
    }

    /// Appends all keys to the part's file and begins anew.
    fn spill(&mut self, runtime: &RuntimeEnv) -> Result<()> {
        let mut spilled = match self.spilled.take() {
            Some(spilled) => spilled,
            None => Spilled {
                file: runtime.disk_manager.create_tmp_file("last changes")?,
                bytes: 0,
                keys: 0,
                later: 0,
            },
        };
        let whole = Arc::clone(&spilled.file);
        let failed = |error| spill_failed("write", &whole, error);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, whole.open_writer()?);
        let mut changes = Vec::new();
        for key in &self.keys {
            let view = key.view.to_le_bytes();
            let bytes = match long_bytes(key.view, &self.long) {
                [] => &view[4..4 + length_of(key.view)],
                long => long,
            };
            changes.clear();
            self.later.push(&key.last, &mut changes);
            for bytes in [bytes, &changes[..]] {
                file.write_all(&(bytes.len() as u32).to_le_bytes())
                    .and_then(|()| file.write_all(bytes))
                    .map_err(failed)?;
                spilled.bytes += bytes.len() as u64;
            }
        }
        file.flush().map_err(failed)?;
        spilled.keys += self.keys.len() as u64;
        spilled.later += self.later.count() as u64;
        *self = Part {
            reserved: self.reserved,
            spilled: Some(spilled),
            ..Part::new()
        };
        Ok(())
    }
}

fn slot_value(hash: u64, number: usize) -> u64 {
    hash >> 32 << 32 | (number as u64 + 1)
}

/// Reads what parts wrote.
struct Records {
    whole: Arc<dyn SpillFile>,
    file: BufReader<File>,
    key: Vec<u8>,
    changes: Vec<u8>,
}

impl Records {
    fn open(file: &Arc<dyn SpillFile>) -> Result<Self> {
        Ok(Records {
            whole: Arc::clone(file),
            file: BufReader::with_capacity(BUFFER_BYTES, read_spilled(file)?),
            key: Vec::new(),
            changes: Vec::new(),
        })
    }

    /// Reads the next record; `false` at the end.
    fn next(&mut self) -> Result<bool> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read.map_err(|error| spill_failed("read", &self.whole, error))?,
        }
        let mut read = || {
            self.key.resize(u32::from_le_bytes(length) as usize, 0);
            self.file.read_exact(&mut self.key)?;
            self.file.read_exact(&mut length)?;
            self.changes.resize(u32::from_le_bytes(length) as usize, 0);
            self.file.read_exact(&mut self.changes)
        };
        read().map_err(|error| spill_failed("read", &self.whole, error))?;
        Ok(true)
    }
}

fn spill_failed(doing: &str, file: &Arc<dyn SpillFile>, error: std::io::Error) -> Error {
    if let Some(too_much) = spilled_too_much(&error) {
        return too_much;
    }
    let path = file.path().unwrap_or(Path::new("")).display();
    Error::storage(format!("cannot {doing} the spilled data {path}"))
        .hint("free some space, or set `limits.spill_dir` to another disk")
        .caused_by(error)
}

/// The keys of a batch, as bytes: two are equal where all their columns are.
enum Keys {
    /// One column of text or binary, as Arrow's views.
    Views(ScalarBuffer<u128>, ArrayRef),
    /// One column of values of so many bytes.
    Fixed { width: usize, bytes: Buffer },
    /// Any others: where each one's bytes end.
    Encoded { ends: Vec<usize>, bytes: Vec<u8> },
}

impl Keys {
    fn new(columns: &[ArrayRef]) -> Result<Self> {
        if let [only] = columns {
            if let Some(texts) = only.as_string_view_opt() {
                return Ok(Keys::Views(texts.views().clone(), Arc::clone(only)));
            }
            if let Some(binaries) = only.as_binary_view_opt() {
                return Ok(Keys::Views(binaries.views().clone(), Arc::clone(only)));
            }
            if let Some(width) = only.data_type().primitive_width() {
                let data = only.to_data();
                let bytes = data.buffers()[0].slice(data.offset() * width);
                return Ok(Keys::Fixed { width, bytes });
            }
        }
        let rows = columns.first().map_or(0, |column| column.len());
        let is_plain = |column: &ArrayRef| {
            column.data_type().primitive_width().is_some()
                || matches!(column.data_type(), DataType::Utf8View)
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(rows);
        if !columns.iter().all(is_plain) {
            let fields = columns.iter();
            let fields = fields.map(|column| SortField::new(column.data_type().clone()));
            let converted = RowConverter::new(fields.collect())?.convert_columns(columns)?;
            for row in &converted {
                bytes.extend_from_slice(row.data());
                ends.push(bytes.len());
            }
            return Ok(Keys::Encoded { ends, bytes });
        }
        let data: Vec<_> = columns.iter().map(|column| column.to_data()).collect();
        for row in 0..rows {
            for (column, data) in columns.iter().zip(&data) {
                match column.data_type().primitive_width() {
                    Some(width) => {
                        let start = (data.offset() + row) * width;
                        bytes.extend_from_slice(&data.buffers()[0][start..start + width]);
                    }
                    None => {
                        let text = column.as_string_view().value(row);
                        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
                        bytes.extend_from_slice(text.as_bytes());
                    }
                }
            }
            ends.push(bytes.len());
        }
        Ok(Keys::Encoded { ends, bytes })
    }
}

/// A key's view, as Arrow has them: its length, then its bytes, or of a longer one the first four.
/// With it the key's bytes, where the view does not hold them.
/// <https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout>
#[inline]
fn view_of(key: &[u8]) -> (u128, &[u8]) {
    let mut view = [0; 16];
    view[..4].copy_from_slice(&(key.len() as u32).to_le_bytes());
    let (kept, long): (_, &[u8]) = match key.len() {
        0..=INLINE_BYTES => (key, &[]),
        _ => (&key[..4], key),
    };
    view[4..4 + kept.len()].copy_from_slice(kept);
    (u128::from_le_bytes(view), long)
}

fn length_of(view: u128) -> usize {
    view as u32 as usize
}

/// The view of a long key whose bytes begin at a place.
fn long_view(view: u128, start: usize) -> u128 {
    u128::from(view as u64) | (start as u128) << 64
}

/// The bytes of a key that its view does not hold.
#[inline]
fn long_bytes(view: u128, long: &[u8]) -> &[u8] {
    let length = length_of(view);
    if length <= INLINE_BYTES {
        return &[];
    }
    let start = (view >> 64) as usize;
    &long[start..start + length]
}

/// Multiplies 64 bits by 64 and folds the product.
#[inline]
fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

/// Odd numbers with bits all over: the fractions of the square roots of 2, 3 and 5.
const SEEDS: [u64; 3] = [
    0x6a09_e667_f3bc_c909,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
];

/// The hash of a key: of its view where that holds all of it, of its bytes otherwise.
#[inline]
fn hash(view: u128, long: &[u8]) -> u64 {
    let (mut low, mut high) = (view as u64, (view >> 64) as u64);
    if !long.is_empty() {
        (low, high) = (long.len() as u64, 0);
        for chunk in long.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            high = mix(high ^ SEEDS[2], u64::from_le_bytes(bytes) ^ SEEDS[1]);
        }
    }
    mix(mix(low ^ SEEDS[0], high ^ SEEDS[1]), SEEDS[2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FloorPool;
    use crate::position::pack;
    use arrow::array::{
        BooleanArray, Date32Array, Float64Array, Int32Array, StringArray, StringViewArray,
    };
    use arrow::compute::cast;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A change: the number of its key, its day and its time. Its place is its row.
    type Row = (u32, Option<i32>, i64);
    /// Per day the time of the last change, its row, and whether another one had its time.
    type Days = BTreeMap<Option<i32>, (i64, usize, bool)>;
    /// Per key its entries: day, row that won, whether another one had its time.
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

    /// What a table of so much memory makes of the rows, taken in batches by two threads.
    fn found(
        rows: &[Row],
        batch: usize,
        memory: usize,
        key: impl Fn(u32) -> Vec<ArrayRef> + Sync,
    ) -> Found {
        let pool = Arc::new(FloorPool::new(memory));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let runtime = runtime.build_arc().expect("a runtime");
        let table = Arc::new(KeyTable::<i128>::new(Arc::clone(&runtime), 2));
        let batches: Vec<(usize, &[Row])> = rows.chunks(batch).enumerate().collect();
        let add = |every: usize| {
            let mut adder = Adder::new(&table);
            for (number, rows) in batches.iter().skip(every).step_by(2) {
                let columns: Vec<Vec<ArrayRef>> = rows.iter().map(|row| key(row.0)).collect();
                let keys: Vec<ArrayRef> = (0..columns[0].len())
                    .map(|place| {
                        let values: Vec<&dyn Array> =
                            columns.iter().map(|row| row[place].as_ref()).collect();
                        arrow::compute::concat(&values).expect("a column")
                    })
                    .collect();
                let days = Date32Array::from_iter(rows.iter().map(|row| row.1));
                let positions = rows.iter().enumerate().map(|(at, row)| {
                    let place = (number * batch + at) as u64;
                    pack(true, Some(row.2.into()), 0, place).expect("packs")
                });
                adder.add(&keys, &days, positions.collect()).expect("added");
            }
            adder.finish().expect("added");
        };
        std::thread::scope(|scope| {
            scope.spawn(|| add(0));
            scope.spawn(|| add(1));
        });
        let mut found = Found::new();
        let (parts, share) = table.settle().expect("settled");
        for part in parts {
            let each = |key: &mut dyn Iterator<Item = (Option<i32>, &i128)>| {
                let told =
                    key.map(|(day, position)| (day, position.file_and_row().1, position.is_tied()));
                let mut told: Vec<_> = told.collect();
                told.sort();
                found.push(told);
            };
            table.finish(part, share, each).expect("finished");
        }
        assert_eq!(
            runtime.memory_pool.reserved(),
            0,
            "all memory is given back"
        );
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
            // Around the bytes that a view holds, alike at their beginning.
            1 => vec![text(format!("{}{key}", "k".repeat(key as usize % 24)))],
            2 => vec![
                cast(&text(format!("a key of text {key}")), &DataType::BinaryView).expect("cast"),
            ],
            3 => vec![Arc::new(Int32Array::from(vec![key as i32 - 5]))],
            4 => vec![Arc::new(Float64Array::from(vec![f64::from(key) / 7.0]))],
            // Columns that together are alike: "1" and "23", "12" and "3".
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
