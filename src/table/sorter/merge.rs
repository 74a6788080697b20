//! Sorted rows of several sorters, merged partition by partition.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, btree_map};
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{AsArray, BinaryArray, BinaryBuilder, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileReader;
use datafusion::execution::memory_pool::MemoryReservation;

use crate::engine::session::BATCH_ROWS;
use crate::engine::spill::read_spilled;
use crate::error::{Error, Result};
use crate::table::sorter::{Held, Order, Place, Readers, Run, Sorter, run_schema, sort};

/// What several sorters took, to be handed out by partition.
pub struct Sorted {
    pub(super) held: Vec<Held>,
    pub(super) places: BTreeMap<String, Vec<Place>>,
    pub(super) counts: BTreeMap<String, u64>,
    pub(super) runs: Vec<Run>,
    pub(super) stored: SchemaRef,
    /// Memory is held as long as the rows are.
    pub(super) _reservations: Vec<MemoryReservation>,
}

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
pub(super) struct Block {
    pub(super) rows: RecordBatch,
    pub(super) keys: BinaryArray,
    pub(super) slot: u32,
}

impl Block {
    pub(super) fn read(reader: &mut FileReader<BufReader<File>>, number: usize) -> Result<Self> {
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
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Sorted rows, and how far they are merged.
pub(super) enum Cursor<'a> {
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
    pub(super) fn key(&self) -> &[u8] {
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
    pub(super) readers: &'a mut Readers,
    pub(super) cursors: Vec<Cursor<'a>>,
    /// The cursors with rows left; the one with the least key comes first.
    pub(super) heap: Vec<usize>,
    /// The batches of the picked rows.
    pub(super) slots: Vec<RecordBatch>,
    /// Rows to be handed on: slot and row.
    pub(super) picked: Vec<(usize, usize)>,
    /// Their keys, where they are asked for.
    pub(super) keys: Option<BinaryBuilder>,
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
    pub(super) fn pick(&mut self, cursor: usize) -> Result<bool> {
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

    pub(super) fn sift_down(&mut self, mut at: usize) {
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
