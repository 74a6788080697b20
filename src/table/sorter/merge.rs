//! Merging the sorted rows of several sorters, partition by partition.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileReader;
use datafusion::execution::memory_pool::MemoryReservation;

use crate::engine::session::BATCH_ROWS;
use crate::engine::spill::read_spilled;
use crate::error::{Error, Result};
use crate::table::sorter::{
    BufferedBatch, Gatherer, Key, Keys, Order, Readers, RowRef, Run, Sorter, sort,
};

/// The rows of several sorters, to be read by partition.
pub(crate) struct Sorted {
    pub(super) buffered: Vec<BufferedBatch>,
    /// Per partition the buffered rows of each sorter that has some.
    pub(super) row_refs: BTreeMap<String, Vec<Vec<RowRef>>>,
    pub(super) counts: BTreeMap<String, u64>,
    pub(super) runs: Vec<Run>,
    pub(super) stored: SchemaRef,
    pub(super) is_sorted: bool,
    /// The memory reservations, freed with the rows.
    pub(super) _reservations: Vec<MemoryReservation>,
}

impl Sorted {
    /// Combines the rows of sorters of one order.
    ///
    /// # Errors
    /// Storage, when the spill disk cannot be used.
    pub(crate) fn new(order: &Order, sorters: Vec<Sorter>) -> Result<Self> {
        let mut sorted = Sorted {
            buffered: Vec::new(),
            row_refs: BTreeMap::new(),
            counts: BTreeMap::new(),
            runs: Vec::new(),
            stored: Arc::clone(&order.stored_schema),
            is_sorted: order.is_sorted(),
            _reservations: Vec::new(),
        };
        for mut sorter in sorters {
            sorter.buffer_small()?;
            let offset = sorted.buffered.len() as u32;
            for (folder, number) in &sorter.folders {
                *sorted.counts.entry(folder.clone()).or_default() += sorter.counts[*number];
            }
            for (folder, mut row_refs) in sorter.take_row_refs() {
                for row_ref in &mut row_refs {
                    row_ref.batch += offset;
                }
                sorted.row_refs.entry(folder).or_default().push(row_refs);
            }
            sorted.buffered.append(&mut sorter.buffered);
            sorted.runs.append(&mut sorter.runs);
            sorted._reservations.push(sorter.reservation);
        }
        Ok(sorted)
    }

    /// The number of rows of each partition, by folder, ascending.
    pub(crate) fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// The folders of the partitions, ascending.
    pub(crate) fn partitions(&self) -> Vec<String> {
        self.counts.keys().cloned().collect()
    }

    /// Adds a partition, if it has no rows.
    pub(crate) fn include(&mut self, folder: &str) {
        if !self.counts.contains_key(folder) {
            self.counts.insert(folder.into(), 0);
        }
    }

    /// The rows of one partition, in batches of which there is at least one, sorted if the order has columns to sort by.
    ///
    /// # Errors
    /// As [`Sorted::rows`].
    pub(crate) fn batches(&self, folder: &str, readers: &mut Readers) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        let mut merge = self.rows(folder, readers)?;
        while let Some(batch) = merge.next_batch()? {
            batches.push(batch);
        }
        if batches.is_empty() {
            batches.push(RecordBatch::new_empty(Arc::clone(&self.stored)));
        }
        Ok(batches)
    }

    /// The rows of one partition, sorted if the order has columns to sort by.
    ///
    /// # Errors
    /// Storage, when spilled rows cannot be read.
    pub(crate) fn rows<'a>(&'a self, folder: &str, readers: &'a mut Readers) -> Result<Merge<'a>> {
        let mut cursors = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            if let Some(blocks) = run.blocks.get(folder) {
                let reader = match readers.entry(number) {
                    Entry::Occupied(reader) => reader.into_mut(),
                    Entry::Vacant(none) => {
                        none.insert(FileReader::try_new_buffered(read_spilled(&run.file)?, None)?)
                    }
                };
                let block = Block::read(reader, blocks.start, self.is_sorted)?;
                cursors.push(Cursor::Run {
                    number,
                    rest: blocks.start + 1..blocks.end,
                    block,
                    at: 0,
                });
            }
        }
        for row_refs in self.row_refs.get(folder).into_iter().flatten() {
            cursors.push(Cursor::Memory {
                buffered: &self.buffered,
                slots: vec![NO_SLOT; self.buffered.len()],
                row_refs: sort(&self.buffered, row_refs.clone()),
                at: 0,
            });
        }
        let mut merge = Merge {
            heap: (0..cursors.len()).collect(),
            is_sorted: self.is_sorted,
            cursors,
            readers,
            slots: Vec::new(),
            picked: Vec::with_capacity(BATCH_ROWS),
        };
        for at in (0..merge.heap.len()).rev() {
            merge.sift_down(at);
        }
        Ok(merge)
    }
}

/// A block of a run.
pub(super) struct Block {
    rows: RecordBatch,
    keys: Keys,
    slot: u32,
}

impl Block {
    pub(super) fn read(
        reader: &mut FileReader<BufReader<File>>,
        number: usize,
        is_sorted: bool,
    ) -> Result<Self> {
        reader.set_index(number)?;
        let mut rows =
            reader.next().ok_or_else(|| Error::internal("spilled rows are missing"))??;
        let keys = if is_sorted {
            Keys::stored(&rows.remove_column(rows.num_columns() - 1))
        } else {
            Keys::None
        };
        Ok(Block { keys, rows, slot: NO_SLOT })
    }
}

/// The slot of a batch without picked rows.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Sorted rows, merged up to `at`.
pub(super) enum Cursor<'a> {
    Memory {
        buffered: &'a [BufferedBatch],
        row_refs: Vec<RowRef>,
        at: usize,
        /// The slot of each batch.
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
    fn key(&self) -> Key<'_> {
        match self {
            Cursor::Memory { buffered, row_refs, at, .. } => {
                let row_ref = row_refs[*at];
                buffered[row_ref.batch as usize].key(row_ref.row)
            }
            Cursor::Run { block, at, .. } => block.keys.key(*at),
        }
    }
}

/// The rows of one partition, merged in order, batch by batch.
pub(crate) struct Merge<'a> {
    pub(super) readers: &'a mut Readers,
    pub(super) cursors: Vec<Cursor<'a>>,
    is_sorted: bool,
    /// A heap of the cursors with rows left; the one with the least key is first.
    pub(super) heap: Vec<usize>,
    /// The batches that picked rows are from.
    pub(super) slots: Vec<RecordBatch>,
    /// The picked rows, by slot.
    pub(super) picked: Vec<RowRef>,
}

impl Merge<'_> {
    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// Storage, when spilled rows cannot be read.
    pub(crate) fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if !self.is_sorted
            && let Some(top) = self.heap.first().copied()
            && let Cursor::Run { block, at, .. } = &mut self.cursors[top]
        {
            let rows = block.rows.clone();
            *at = rows.num_rows() - 1;
            if !self.advance(top)? {
                self.heap.swap_remove(0);
                self.sift_down(0);
            }
            return Ok(Some(rows));
        }
        while self.picked.len() < BATCH_ROWS
            && let Some(top) = self.heap.first().copied()
        {
            if !self.pick(top)? {
                self.heap.swap_remove(0);
            }
            self.sift_down(0);
        }
        if self.picked.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.slots.iter().collect();
        let rows = Gatherer::new(&batches).rows(&self.picked)?;
        self.picked.clear();
        self.slots.clear();
        for cursor in &mut self.cursors {
            match cursor {
                Cursor::Memory { slots, .. } => slots.fill(NO_SLOT),
                Cursor::Run { block, .. } => block.slot = NO_SLOT,
            }
        }
        Ok(Some(rows))
    }

    /// Picks a cursor's next row and advances the cursor. Returns whether it has more rows.
    pub(super) fn pick(&mut self, cursor: usize) -> Result<bool> {
        match &mut self.cursors[cursor] {
            Cursor::Memory { buffered, row_refs, at, slots } => {
                let row_ref = row_refs[*at];
                let slot = &mut slots[row_ref.batch as usize];
                if *slot == NO_SLOT {
                    *slot = self.slots.len() as u32;
                    self.slots.push(buffered[row_ref.batch as usize].rows.clone());
                }
                self.picked.push(RowRef { batch: *slot, row: row_ref.row });
            }
            Cursor::Run { block, at, .. } => {
                if block.slot == NO_SLOT {
                    block.slot = self.slots.len() as u32;
                    self.slots.push(block.rows.clone());
                }
                self.picked.push(RowRef { batch: block.slot, row: *at as u32 });
            }
        }
        self.advance(cursor)
    }

    /// Advances a cursor. Returns whether it has more rows.
    fn advance(&mut self, cursor: usize) -> Result<bool> {
        match &mut self.cursors[cursor] {
            Cursor::Memory { row_refs, at, .. } => {
                *at += 1;
                Ok(*at < row_refs.len())
            }
            Cursor::Run { number, block, at, rest } => {
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
                *block = Block::read(reader, next, self.is_sorted)?;
                *at = 0;
                Ok(true)
            }
        }
    }

    pub(super) fn sift_down(&mut self, mut at: usize) {
        let before = |a: usize, b: usize| {
            let (x, y) = (self.cursors[a].key(), self.cursors[b].key());
            x.cmp(&y).then(a.cmp(&b)) == Ordering::Less
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
