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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::changes::reader::ChangesTable;
use crate::changes::row_bitmap::{RowBitmap, Winners};
use crate::changes::{Changes, EVENT_DT, POSITION};
use crate::config::Pipeline;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::decide::Decider;
use crate::curate::merge::entries::{Entries, Files};
use crate::curate::merge::version_reader::LookUp;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::VersionsWriter;
use crate::store::Folder;
use crate::table::sorter::{Readers, Sorted, Sorter};

mod bloom;
mod decide;
mod entries;
mod version_reader;

/// A part of the keys has about this many rows.
const ROWS_PER_PART: u64 = 50_000;
const PARTS_MAX: u64 = 4096;

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
        memory.grow(bloom.bytes() + self.changes.ordinal_counts().sum::<u64>() as usize / 4);

        // The winners.
        let winners = Arc::clone(&self.folded.winners);
        let table = ChangesTable::pass_two(self.changes, winners, threads);
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
            spawn(async move {
                while let Some(batch) = rows.try_next().await? {
                    let (batch, hashes) = entries.of_winners(&batch, &files)?;
                    hashes.iter().for_each(|hash| bloom.insert(*hash));
                    sorter.push(&batch)?;
                }
                Ok(sorter)
            })
        });
        let mut sorters = join_all(tasks).await?;

        // The versions.
        let queue = Arc::new(Work::new(self.stored));
        let tasks = outputs.into_iter().map(|(table_rows, mut versions)| {
            let (entries, files) = (Arc::clone(&entries), Arc::clone(&files));
            let (bloom, queue) = (Arc::clone(&bloom), Arc::clone(&queue));
            let state = self.state.clone();
            let mut sorter = Sorter::new(Arc::clone(&entries.order), context.runtime_env());
            spawn(async move {
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
                queue.run(look_up).await
            })
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
        let bitmap = RowBitmap::new(self.changes.ordinal_counts());
        let shared = Arc::new((sorted, bitmap, Work::new(parts)));
        let decider = Arc::new(Decider {
            entries: Arc::clone(&entries),
            files,
            keep: self.pipeline.keep,
            partition_by: self.pipeline.curated.partition_by.clone(),
            key: self.pipeline.key.clone(),
            layout: Arc::clone(self.layout),
            table_schema: Arc::clone(&self.table_schema),
        });
        let tasks = outputs.into_iter().map(|(mut table_rows, mut versions)| {
            let (shared, decider) = (Arc::clone(&shared), Arc::clone(&decider));
            spawn(async move {
                let (sorted, bitmap, parts) = &*shared;
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
                        let carried =
                            decider.decide_all(&rows, bitmap, &mut table_rows, &mut counts)?;
                        versions.write(&carried).await?;
                    }
                    Ok((table_rows, versions, counts))
                };
                parts.run(decide).await
            })
        });
        let mut outputs = Outputs::new();
        let mut all = Counts::default();
        for (table_rows, versions, counts) in join_all(tasks).await? {
            outputs.push((table_rows, versions));
            all.add(counts);
        }
        let (_, bitmap, _) =
            Arc::into_inner(shared).ok_or_else(|| Error::internal("the merge did not end"))?;
        let merged = Merged {
            winners: Arc::new(bitmap.finish()),
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

/// The flag of a row for the curated table's sorter: true for a row, false for a tombstone.
pub const PRESENT: &str = "__present";
