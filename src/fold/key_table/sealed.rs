//! A shard of a sealed table: iterates over its keys.

use std::sync::Arc;

use datafusion::execution::SpillFile;

use crate::changes::position::Position;
use crate::error::Result;
use crate::fold::key_table::days::{LastChange, entries};
use crate::fold::key_table::key_bytes::{hash, view_of};
use crate::fold::key_table::shard::{Key, LOOKUP_BATCH_ROWS, Shard};
use crate::fold::key_table::spill::{Records, Spilled};
use crate::fold::key_table::{KeyTable, PendingRows};

/// The memory of a key besides its bytes: its entry, and its slots at the lowest load factor.
const fn bytes_per_key<P>() -> usize {
    size_of::<Key<P>>() * 5 / 4 + 4 * size_of::<u64>()
}

/// The keys of one shard, in memory or read pass by pass from its spill file.
pub(in crate::fold) struct SealedShard<P: Position> {
    table: Arc<KeyTable<P>>,
    /// The keys of this pass.
    shard: Shard<P>,
    /// The index of the next key to return.
    next_key: usize,
    /// The passes over the spill file, if the shard was spilled.
    passes: Option<Passes>,
    /// The reserved memory, in bytes.
    reserved: usize,
}

struct Passes {
    file: Arc<dyn SpillFile>,
    keys: u64,
    count: u64,
    next: u64,
}

impl<P: Position> SealedShard<P> {
    pub(super) fn new(table: Arc<KeyTable<P>>, mut shard: Shard<P>, share: usize) -> Self {
        let Some(spilled) = shard.spilled.take() else {
            let reserved = shard.reserved;
            return SealedShard { table, shard, next_key: 0, passes: None, reserved };
        };
        let Spilled { file, bytes, keys, later } = spilled;
        // The list of further days grows by doubling.
        let needed = bytes
            + keys * bytes_per_key::<P>() as u64
            + later * 2 * size_of::<LastChange<P>>() as u64;
        let count = needed.div_ceil(share as u64).max(1);
        let reserved = (needed / count) as usize;
        table.reserve(reserved);
        let passes = Some(Passes { file, keys, count, next: 0 });
        SealedShard { table, shard: Shard::new(), next_key: 0, passes, reserved }
    }

    /// Passes up to `max` keys to `each`, each as the last changes of its days, in no order.
    /// Returns whether there may be more.
    ///
    /// # Errors
    /// Storage, when the spill file cannot be read.
    pub(in crate::fold) fn next_keys(
        &mut self,
        max: usize,
        mut each: impl FnMut(&mut dyn Iterator<Item = (Option<i32>, &P)>),
    ) -> Result<bool> {
        while self.next_key == self.shard.keys.len() {
            if !self.read_pass()? {
                self.shard = Shard::new();
                self.table.release(std::mem::take(&mut self.reserved));
                return Ok(false);
            }
        }
        let end = self.shard.keys.len().min(self.next_key + max);
        for key in &self.shard.keys[self.next_key..end] {
            each(&mut self.shard.later.of(&key.last));
        }
        self.next_key = end;
        Ok(true)
    }

    /// Reads the keys of the next pass from the shard's file. Returns whether there was a pass.
    fn read_pass(&mut self) -> Result<bool> {
        let Some(passes) = self.passes.as_mut().filter(|passes| passes.next < passes.count) else {
            return Ok(false);
        };
        let (pass, count) = (passes.next, passes.count);
        passes.next += 1;
        self.shard = Shard::new();
        self.next_key = 0;
        self.shard.reserve((passes.keys / count) as usize);
        let mut records = Records::open(&passes.file)?;
        let mut pending = PendingRows::new();
        while records.next()? {
            let (view, long) = view_of(&records.key);
            let hash = hash(view, long);
            // These bits are used neither for the shard nor for the slot.
            if (hash >> 40) % count != pass {
                continue;
            }
            for (day, position) in entries(&records.changes) {
                pending.push(hash, (view, long), day, position);
            }
            if pending.rows.len() >= LOOKUP_BATCH_ROWS {
                pending.move_to(&mut self.shard)?;
            }
        }
        pending.move_to(&mut self.shard)?;
        Ok(true)
    }
}
