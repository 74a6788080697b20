//! A shard of the key table: the keys whose hashes have the same low bits.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;

use crate::changes::position::Position;
use crate::error::{Error, Result};
use crate::fold::key_table::days::{LastChange, LaterDays};
use crate::fold::key_table::key_bytes::{hash, length_of, long_bytes, long_view};
use crate::fold::key_table::spill::{BUFFER_BYTES, Spilled, spill_failed};

/// The number of shards.
pub(super) const SHARDS: usize = 64;

/// The number of hash bits that select the shard.
pub(super) const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// The number of rows looked up together, so that their cache misses overlap.
pub(super) const LOOKUP_BATCH_ROWS: usize = 64;

pub(super) struct Row<P> {
    pub(super) hash: u64,
    pub(super) day: Option<i32>,
    /// See [`view_of`](super::key_bytes::view_of); for a long key, the prefix is followed by its
    /// offset in `long`.
    pub(super) view: u128,
    pub(super) position: P,
}

pub(super) fn shard_of(hash: u64) -> usize {
    (hash & (SHARDS as u64 - 1)) as usize
}

/// The keys of one shard, numbered in the order of insertion.
pub(super) struct Shard<P> {
    /// Open addressing: the upper half of a key's hash, then its number plus one; 0 is free.
    pub(super) slots: Vec<u64>,
    pub(super) keys: Vec<Key<P>>,
    /// The bytes of keys that are too long to be inlined in a view.
    pub(super) long: Vec<u8>,
    pub(super) later: LaterDays<P>,
    pub(super) heap_bytes: usize,
    /// The memory reserved for the shard, in bytes.
    pub(super) reserved: usize,
    pub(super) spilled: Option<Spilled>,
}

pub(super) struct Key<P> {
    /// See [`view_of`](super::key_bytes::view_of); for a long key, the prefix is followed by its
    /// offset in `long`.
    pub(super) view: u128,
    pub(super) last: LastChange<P>,
}

impl<P: Position> Shard<P> {
    pub(super) fn new() -> Self {
        Shard {
            slots: Vec::new(),
            keys: Vec::new(),
            long: Vec::new(),
            later: LaterDays::default(),
            heap_bytes: 0,
            reserved: 0,
            spilled: None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
            + self.keys.capacity() * size_of::<Key<P>>()
            + self.long.capacity()
            + self.heap_bytes
            + self.later.bytes()
    }

    /// Inserts some rows; `long` has the bytes of long keys.
    pub(super) fn add(&mut self, rows: &mut [Row<P>], long: &[u8]) -> Result<()> {
        self.reserve(rows.len());
        // Each step loads the memory of all rows before the next step uses it.
        let mut numbers = [0; LOOKUP_BATCH_ROWS];
        for (number, row) in numbers.iter_mut().zip(rows.iter()) {
            *number = self.slots[self.slot(row.hash)] as u32;
        }
        let mut fetched = 0;
        for number in numbers {
            // 0 is a free slot, and wraps to an index that no key has.
            if let Some(key) = self.keys.get((number as usize).wrapping_sub(1)) {
                fetched ^= key.view as u64 ^ key.last.prefetch();
            }
        }
        std::hint::black_box(fetched);
        for row in rows {
            let position = std::mem::take(&mut row.position);
            let long = long_bytes(row.view, long);
            self.insert_change(row.hash, row.view, long, row.day, position)?;
        }
        Ok(())
    }

    #[inline]
    pub(super) fn slot(&self, hash: u64) -> usize {
        (hash >> SHARD_BITS) as usize & (self.slots.len() - 1)
    }

    /// Reserves capacity for `new` more keys.
    pub(super) fn reserve(&mut self, new: usize) {
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
            // All shards grow at the same time: doubling would leave half of the memory unused.
            self.keys.reserve_exact(new.max(self.keys.len() / 4));
        }
    }

    /// Inserts a change of a key, which may be new; its capacity must be
    /// [reserved](Shard::reserve).
    #[inline]
    pub(super) fn insert_change(
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

    /// Appends all keys to the shard's spill file, and empties the shard. Returns the numbers of
    /// bytes and keys appended.
    pub(super) fn spill(&mut self, runtime: &RuntimeEnv) -> Result<(usize, usize)> {
        let mut spilled = match self.spilled.take() {
            Some(spilled) => spilled,
            None => Spilled {
                file: runtime.disk_manager.create_tmp_file("last changes")?,
                bytes: 0,
                keys: 0,
                later: 0,
            },
        };
        let spill_file = Arc::clone(&spilled.file);
        let failed = |error| spill_failed("write", &spill_file, error);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, spill_file.open_writer()?);
        let mut changes = Vec::new();
        let (mut appended, keys) = (0, self.keys.len());
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
                appended += bytes.len();
            }
        }
        file.flush().map_err(failed)?;
        spilled.bytes += appended as u64;
        spilled.keys += keys as u64;
        spilled.later += self.later.count() as u64;
        *self = Shard { reserved: self.reserved, spilled: Some(spilled), ..Shard::new() };
        Ok((appended, keys))
    }
}

pub(super) fn slot_value(hash: u64, number: usize) -> u64 {
    hash >> 32 << 32 | (number as u64 + 1)
}
