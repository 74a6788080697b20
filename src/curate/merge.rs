//! Merge: compares a run's winners with the versions of earlier runs.
//!
//! ```text
//! winners' keys, days, orders ─────────────┐
//! versions ─▶ of a key among the winners? ─┴▶ parts by key and day ───▶ ┬─▶ remaining winners
//!                └ no, and the file is rewritten ─▶ versions            ├─▶ tombstones of removed rows
//!                                                                       └─▶ remaining versions
//! ```
//!
//! A winner remains if its order is later than that of the version of its key and day. With
//! `keep = "latest"` a key's row moves if a winner is later than the key's last version of any day;
//! with `latest-per-day` a day's row is replaced if that day's version is. The version names the
//! partition of the replaced row.
//!
//! Versions of the winners' days are rewritten; with `latest`, or if the balance is kept, those of other
//! days are read for the winners' keys. A Bloom filter over the winners' keys keeps all other versions out of the sorter,
//! which divides keys into parts by their hash and spills if needed. Each part is then sorted and processed
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::changes::reader::{ChangesTable, numbered};
use crate::changes::row_bitmap::{RowBitmap, Winners};
use crate::changes::{ChangeColumn, Changes};
use crate::config::{OnTie, Pipeline};
use crate::curate::altered::ComparedColumns;
use crate::curate::copies::Copies;
use crate::curate::curated_sql::CuratedQuery;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::decide::Decider;
use crate::curate::merge::entries::{Entries, Files};
use crate::curate::merge::floors::SortedFloors;
use crate::curate::merge::forget::Forgetting;
use crate::curate::merge::intervals::LoadCounts;
use crate::curate::merge::standing::Standing;
use crate::curate::merge::version_reader::VersionReader;
use crate::curate::places::{ByPlace, Places};
use crate::curate::validity::RowEnds;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::fold::Fold;
use crate::state::floors::KnownFloors;
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::VersionsWriter;
use crate::store::Folder;
use crate::table::sorter::{Readers, Sorted, Sorter};

mod bloom;
#[cfg(feature = "postgres")]
pub(crate) mod changed_keys;
mod current;
mod decide;
mod deletes;
pub(crate) mod entries;
mod entry;
mod floors;
pub(crate) mod forget;
mod intervals;
pub(crate) mod rows_of_versions;
mod seen_floors;
pub(crate) mod standing;
mod version_reader;

/// A committed file of versions.
#[derive(Clone, Debug)]
pub(crate) struct CommittedVersions {
    /// The file's path relative to the state's table.
    pub path: String,
    /// The file's size.
    pub bytes: u64,
    /// The number of versions in the file.
    pub rows: u64,
    /// Whether the file is rewritten, without the versions that winners replace.
    pub rewritten: bool,
}

/// A merge: its inputs.
pub(crate) struct Merge<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The inputs.
    pub changes: &'a Arc<Changes>,
    /// The result of pass one.
    pub folded: &'a Fold,
    /// The layout of versions.
    pub layout: &'a Arc<VersionsLayout>,
    /// The layout of entries.
    pub entries: Arc<Entries>,
    /// The files of earlier runs and of this one.
    pub files: Arc<Files>,
    /// The floors.
    pub floors: KnownFloors,
    /// The keys that are forgotten.
    pub forgetting: Option<&'a Forgetting>,
    /// Where rows are compared, the rows of the winners, by the query, and the columns.
    pub compared: Option<(&'a CuratedQuery, &'a Arc<ComparedColumns>)>,
    /// The columns that the table has besides those of the query, its last ones.
    pub own_columns: &'static [&'static str],
    /// The state's table.
    pub state: &'a Folder,
    /// The committed versions to merge with.
    pub committed: Vec<CommittedVersions>,
    /// The schema of the curated table's sorters: its columns, then [`PRESENT`], true for a row and
    /// false for a tombstone, and [`PLACE`].
    pub table_schema: SchemaRef,
    /// The column of the curated table that is the day.
    pub day: Option<&'a str>,
    /// The places of the rows.
    pub places: Places,
}

/// The result of a merge.
#[derive(Debug)]
pub(crate) struct Merged {
    /// The remaining winners.
    pub winners: Arc<Winners>,
    /// Sums over all threads, without the ends of rows and their days.
    pub counts: Counts,
    /// When the rows of winners end, if they do and stay.
    pub ends: Arc<RowEnds>,
    /// The days of winners' rows that are not those of their changes.
    pub begins: Arc<ByPlace>,
    /// The number of versions in the rewritten files before.
    pub versions_before: u64,
}

/// Counts of one thread, or sums over all threads.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Remaining winners, per key and day.
    pub key_days: u64,
    /// Removed rows that floors have ended and no winner replaces; where rows end, keys that had a row without
    /// an end, and have none now.
    pub ended: u64,
    /// Where rows end, keys that had a row without an end, among those that were read.
    pub current_before: u64,
    /// Last changes of the window (per key, or per key and day) that are not later than the versions.
    pub stale: u64,
    /// Of a history, changes of the run that are not the last ones of their key and time.
    pub superseded: u64,
    /// Versions that winners replaced, or whose keys are forgotten.
    pub replaced: u64,
    /// Keys that are forgotten and had versions, and the rows of them, which are removed.
    pub forgotten: (u64, u64),
    /// The first tie between a last change and a version, decided by file or row only: the change's
    /// input and row ordinal.
    pub tie: Option<(usize, usize)>,
    /// The first tie of a last change and a floor, if these are looked for: the input and row ordinal
    /// of the one that the run has read.
    pub floor_tie: Option<(usize, usize)>,
    /// Where rows end, ties that the fold does not see: where deleted rows are kept, of an insert or update and a delete,
    /// both of this run; of a history, of changes of one key and time.
    pub ties: u64,
    /// The days of the removed rows; where rows end, those of the times of rows that come, go or change too.
    pub days: BTreeSet<i32>,
    /// The days of the floors that may end other changes than before, and of changes that are forgotten.
    pub floor_days: BTreeSet<i32>,
    /// The number of removed rows, per partition.
    pub removed: BTreeMap<String, u64>,
    /// Where rows end, the number of published rows whose end changes, per partition.
    pub ended_rows: BTreeMap<String, u64>,
    /// Where rows end, when those of winners do, in no order.
    pub ends: RowEnds,
    /// The days of winners' rows that are not those of their changes, in no order.
    pub begins: ByPlace,
    /// Of a history, what is counted of new full loads, if there is a limit of the rows that they may lack.
    pub loads: LoadCounts,
}

impl Counts {
    fn tie(&mut self, ordinal: (usize, usize)) {
        self.tie = self.tie.into_iter().chain([ordinal]).min();
    }

    fn floor_tie(&mut self, ordinal: (usize, usize)) {
        self.floor_tie = self.floor_tie.into_iter().chain([ordinal]).min();
    }

    fn add(&mut self, other: Counts) {
        self.key_days += other.key_days;
        self.ended += other.ended;
        self.current_before += other.current_before;
        self.stale += other.stale;
        self.ties += other.ties;
        self.superseded += other.superseded;
        self.replaced += other.replaced;
        self.forgotten.0 += other.forgotten.0;
        self.forgotten.1 += other.forgotten.1;
        self.tie = self.tie.into_iter().chain(other.tie).min();
        self.floor_tie = self.floor_tie.into_iter().chain(other.floor_tie).min();
        self.days.extend(other.days);
        self.floor_days.extend(other.floor_days);
        for (partition, rows) in other.removed {
            *self.removed.entry(partition).or_default() += rows;
        }
        for (partition, rows) in other.ended_rows {
            *self.ended_rows.entry(partition).or_default() += rows;
        }
        self.ends.0.add(other.ends.0);
        self.begins.add(other.begins);
        self.loads.add(&other.loads);
    }
}

/// The outputs of a thread.
pub(crate) struct Output {
    /// The curated table's sorter; the merge adds tombstones.
    pub rows: Sorter,
    /// The writer of versions.
    pub versions: VersionsWriter,
    /// The standing of keys, if the balance is kept.
    pub standing: Option<Standing>,
    /// Rows of the table that are to be copied, where they can be.
    pub copies: Option<Copies>,
}

impl Merge<'_> {
    /// Merges. Returns `outputs`, one per thread, with the rows and versions that were added to them.
    ///
    /// # Errors
    /// Data, when versions are missing or are not what was committed; storage, when they cannot
    /// be read or written.
    pub(crate) async fn run(
        mut self,
        context: &SessionContext,
        outputs: Vec<Output>,
    ) -> Result<(Merged, Vec<Output>)> {
        let threads = outputs.len();
        if self.pipeline.key.is_empty() {
            return self.rewrite_keyless(outputs).await;
        }
        // A new floor can end the row of any key; and where no versions are read, none are looked for.
        let reads_all = self.committed.is_empty() || self.floors.iter().any(|(_, is_new)| *is_new);
        let forgotten = self.forgetting.map_or(0, Forgetting::len);
        let bloom =
            if reads_all { Bloom::of_all() } else { Bloom::new(self.folded.keys + forgotten) };
        for hash in self.forgetting.map(Forgetting::hashes).transpose()?.into_iter().flatten() {
            bloom.insert(hash);
        }
        let bloom = Arc::new(bloom);
        let memory =
            MemoryConsumer::new("keys of the window").register(&context.runtime_env().memory_pool);
        let has_standing = outputs.iter().any(|output| output.standing.is_some());
        let has_ended = !self.floors.is_empty() || self.layout.has_instants;
        let bits = 2 + usize::from(has_standing) + usize::from(has_ended);
        let ordinals = self.changes.ordinal_counts().sum::<u64>() as usize;
        memory.grow(bloom.bytes() + bits * ordinals / 8);

        let shared =
            Shared { entries: Arc::clone(&self.entries), files: Arc::clone(&self.files), bloom };
        let mut sorters = self.read_winners(context, &shared, threads).await?;
        let (outputs, versions_before) =
            self.read_versions(context, &shared, outputs, &mut sorters).await?;
        let (winners, mut counts, outputs) = self.decide(&shared, sorters, outputs).await?;
        let ends = std::mem::take(&mut counts.ends).0.sorted(threads).await?;
        let begins = std::mem::take(&mut counts.begins).sorted(threads).await?;
        memory.grow(ends.bytes() + begins.bytes());
        let (ends, begins) = (Arc::new(RowEnds(ends)), Arc::new(begins));
        let merged = Merged { winners: Arc::new(winners), counts, ends, begins, versions_before };
        Ok((merged, outputs))
    }

    /// Reads keys, days and orders of the winners; returns them in a sorter per thread.
    async fn read_winners(
        &self,
        context: &SessionContext,
        shared: &Shared,
        threads: usize,
    ) -> Result<Vec<Sorter>> {
        let plan = match self.compared {
            Some((query, _)) => context.state().create_physical_plan(&query.plan).await?,
            None => {
                let winners = Arc::clone(&self.folded.winners);
                let mut columns = self.changes.fold_columns()?;
                columns.extend([ChangeColumn::Day, ChangeColumn::Position]);
                let columns = numbered(columns);
                let table = ChangesTable::pass_two(self.changes, winners, columns, threads);
                table.scan(&context.state(), None, &[], None).await?
            }
        };
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        let tasks = streams.into_iter().map(|mut rows| {
            let shared = shared.clone();
            let mut sorter = Sorter::new(Arc::clone(&shared.entries.order), context.runtime_env());
            let compared = self.compared.map(|(_, compared)| Arc::clone(compared));
            let sql_file = self.pipeline.curated.sql.file.clone();
            spawn(async move {
                let failed = |error| Error::query(&sql_file, error);
                while let Some(batch) = rows.try_next().await.map_err(failed)? {
                    let batch = match &compared {
                        Some(compared) => compared.winners(&batch)?,
                        None => batch,
                    };
                    let (batch, hashes) = shared.entries.of_winners(&batch, &shared.files)?;
                    hashes.iter().for_each(|hash| shared.bloom.insert(*hash));
                    sorter.push(&batch)?;
                }
                Ok(sorter)
            })
        });
        join_all(tasks).await
    }

    /// Reads the committed versions: those of winners' keys are added to `sorters`. Returns the outputs
    /// and the number of rows of the rewritten files.
    async fn read_versions(
        &mut self,
        context: &SessionContext,
        shared: &Shared,
        outputs: Vec<Output>,
        sorters: &mut Vec<Sorter>,
    ) -> Result<(Vec<Output>, u64)> {
        let queue = Arc::new(Work::new(std::mem::take(&mut self.committed)));
        let tasks = outputs.into_iter().map(|mut output| {
            let (shared, queue) = (shared.clone(), Arc::clone(&queue));
            let state = self.state.clone();
            let mut sorter = Sorter::new(Arc::clone(&shared.entries.order), context.runtime_env());
            spawn(async move {
                let read = async {
                    let mut before = 0;
                    while let Some(file) = queue.next() {
                        let reader = VersionReader {
                            entries: &shared.entries,
                            files: &shared.files,
                            bloom: &shared.bloom,
                            state: &state,
                        };
                        before += reader.read(&file, &mut sorter, &mut output.versions).await?;
                    }
                    Ok((output, sorter, before))
                };
                queue.run(read).await
            })
        });
        let mut outputs = Vec::new();
        let mut versions_before = 0;
        for (output, sorter, before) in join_all(tasks).await? {
            sorters.push(sorter);
            versions_before += before;
            outputs.push(output);
        }
        Ok((outputs, versions_before))
    }

    /// Compares winners and versions key by key, on all threads, one part of the keys at a time.
    async fn decide(
        &self,
        shared: &Shared,
        sorters: Vec<Sorter>,
        outputs: Vec<Output>,
    ) -> Result<(Winners, Counts, Vec<Output>)> {
        let sorted = Sorted::new(&shared.entries.order, sorters)?;
        let parts = sorted.partitions();
        // Where each change counts, the fold has marked all, and nearly all stay.
        let mut bitmap = match self.pipeline.keep {
            keep if keep.keeps_changes() => RowBitmap::of(&self.folded.winners),
            _ => RowBitmap::new(self.changes.ordinal_counts()),
        };
        if outputs.iter().any(|output| output.standing.is_some()) {
            bitmap = bitmap.with_unsettled();
        }
        if !self.floors.is_empty() || self.layout.has_instants {
            bitmap = bitmap.with_ended();
        }
        let ranked = shared.files.ranked();
        let floors = SortedFloors::new(&self.floors, &shared.entries, &shared.files, &ranked)?;
        let floor_days: BTreeSet<i32> = floors.changed_days().collect();
        let work = Arc::new((sorted, bitmap, Work::new(parts)));
        let decider = Arc::new(Decider {
            entries: Arc::clone(&shared.entries),
            files: Arc::clone(&shared.files),
            ranked,
            keep: self.pipeline.keep,
            own_columns: self.own_columns,
            partition_by: self.pipeline.curated.partition_by.clone(),
            key: self.pipeline.key.clone(),
            day: self.day.map(String::from),
            layout: Arc::clone(self.layout),
            table_schema: Arc::clone(&self.table_schema),
            floors,
            forgetting: self.forgetting.cloned(),
            finds_floor_ties: self.pipeline.raw.on_tie == OnTie::Fail,
            places: self.places.clone(),
            day_zone: self.pipeline.raw.day_zone,
            compares_all: self.pipeline.history_columns.is_empty(),
            new_loads: self.new_loads(),
        });
        let tasks = outputs.into_iter().map(|mut output| {
            let (work, decider) = (Arc::clone(&work), Arc::clone(&decider));
            spawn(async move {
                let (sorted, bitmap, parts) = &*work;
                let decide = async {
                    let mut readers = Readers::new();
                    let mut counts = Counts::default();
                    while let Some(part) = parts.next() {
                        let rows = decider.entries.sorted_part(sorted, &part, &mut readers)?;
                        let carried =
                            decider.decide_all(&rows, bitmap, &mut output, &mut counts)?;
                        output.versions.write(&carried).await?;
                    }
                    Ok((output, counts))
                };
                parts.run(decide).await
            })
        });
        let mut outputs = Vec::new();
        let mut all = Counts { floor_days, ..Counts::default() };
        for (output, counts) in join_all(tasks).await? {
            outputs.push(output);
            all.add(counts);
        }
        let (_, bitmap, _) =
            Arc::into_inner(work).ok_or_else(|| Error::internal("the merge did not end"))?;
        Ok((bitmap.finish(), all, outputs))
    }

    /// Where each change counts, the times of new full loads, ascending, if there is a limit of the rows that they may lack.
    fn new_loads(&self) -> Vec<i64> {
        let keeps_changes = self.pipeline.keep.keeps_changes();
        if !keeps_changes || self.pipeline.raw.full_loads.max_deletes.is_none() {
            return Vec::new();
        }
        let new = self.floors.iter().filter(|(floor, is_new)| *is_new && floor.is_load);
        let times: BTreeSet<i64> = new.filter_map(|(floor, _)| floor.instant).collect();
        times.into_iter().collect()
    }

    /// The merge of a table without a key: rewritten versions stay as they are, and all winners remain.
    async fn rewrite_keyless(self, mut outputs: Vec<Output>) -> Result<(Merged, Vec<Output>)> {
        let reader = VersionReader {
            entries: &self.entries,
            files: &self.files,
            bloom: &Bloom::new(0),
            state: self.state,
        };
        let mut versions_before = 0;
        for (file, thread) in self.committed.iter().zip((0..outputs.len()).cycle()) {
            let Output { rows, versions, .. } = &mut outputs[thread];
            versions_before += reader.read(file, rows, versions).await?;
        }
        let merged = Merged {
            winners: Arc::clone(&self.folded.winners),
            counts: Counts { key_days: self.folded.key_days, ..Counts::default() },
            ends: Arc::default(),
            begins: Arc::default(),
            versions_before,
        };
        Ok((merged, outputs))
    }
}

/// What all threads of a merge read.
#[derive(Clone)]
struct Shared {
    entries: Arc<Entries>,
    files: Arc<Files>,
    /// The keys of the winners.
    bloom: Arc<Bloom>,
}

/// The name of the flag of a row in the curated table's sorter. A column of the table can have this
/// name too.
pub(crate) const PRESENT: &str = "present";

/// The name of the place of a row in the order of files and rows, from 1; 0 for a tombstone. It is the
/// last column of the curated table's sorter.
pub(crate) const PLACE: &str = "place";
