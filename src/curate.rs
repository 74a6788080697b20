//! Pass two: reads the payload of the last changes through `curated.sql` and writes it to staging.
//!
//! ```text
//! winners ─▶ merge with versions ─▶ remaining winners ─▶ curated.sql, made total ─┬─▶ versions
//!                  │                    (one stream per thread)                   └─▶ rows ─┐
//!                  └─▶ tombstones of removed rows ────────────────────────────────▶ sorter ─┤
//!                                                                                           ▼
//!                                                published partitions ─▶ rebuild ─▶ files in staging
//! ```
//!
//! Each thread has its own sorter, which spills if needed, so that memory stays under the limit for
//! any number of rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, SchemaRef};
use chrono::DateTime;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;

use crate::changes::Changes;
use crate::changes::row_bitmap::Winners;
use crate::config::{Keep, OnTie, Pipeline};
use crate::curate::altered::ComparedColumns;
use crate::curate::conservation::{check_versions, check_written};
use crate::curate::copies::{CopiedColumns, Copies};
use crate::curate::curated_sql::CuratedQuery;
use crate::curate::merge::entries::{Entries, Files};
use crate::curate::merge::forget::Forgetting;
use crate::curate::merge::standing::{Standing, Unsettled, settle};
use crate::curate::merge::{CommittedVersions, Merge, Merged, Output};
use crate::curate::pass_two::{Counts, RowTimes, Splitter};
use crate::curate::places::Places;
use crate::curate::raw_copies::{RawCopies, ReopenRaw};
use crate::curate::table_layout::TableColumns;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::fold::{Fold, tied, tied_with_truncate};
use crate::layout::{attempt_commit, parent};
use crate::raw::discover::Input;
use crate::state::State;
use crate::state::balance::NewBalance;
use crate::state::floors::{Floor, KnownFloors};
use crate::state::ledger::{CURATED, Ledger};
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::{VersionsFile, VersionsWriter, day_ranges};
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::rebuild::{PublishedTable, TableRows};
use crate::table::sorter::{Order, Sorted, Sorter};
use crate::table::writer::{KeptFile, StagedFile, TableWriter, Written};

pub(crate) mod altered;
mod balance;
pub(crate) mod conservation;
pub(crate) mod copies;
pub(crate) mod curated_sql;
pub(crate) mod from_table;
pub(crate) mod merge;
pub(crate) mod pass_two;
mod places;
pub(crate) mod raw_copies;
pub(crate) mod stage;
pub(crate) mod table_layout;
pub(crate) mod validity;

/// The result of pass two.
#[derive(Debug)]
pub(crate) struct Curated {
    /// The table's files, in staging.
    pub staged: Vec<StagedFile>,
    /// The published files of the written partitions that stay.
    pub kept: Vec<KeptFile>,
    /// The partitions that were written, or left without rows.
    pub partitions: BTreeSet<String>,
    /// The files of versions, in the state's folder and not yet committed.
    pub versions: Vec<VersionsFile>,
    /// The committed files of versions that these replace.
    pub replaced_versions: Vec<String>,
    /// What becomes of the balance.
    pub balance: NewBalance,
    /// The days on which the balance changed, as days since 1970; `None` if it is not kept.
    pub balance_days: Option<BTreeSet<i32>>,
    /// The floors that are new.
    pub floors: Vec<Floor>,
    /// The versions' layout.
    pub layout: Arc<VersionsLayout>,
    /// The table's columns.
    pub columns: Vec<Field>,
    /// The columns that are text only because their raw columns have only nulls so far.
    pub untyped: Vec<String>,
    /// The columns that were such, and have a type now.
    pub retyped: Vec<String>,
    /// The column that is the day.
    pub day: Option<String>,
    /// Rows and days that pass two counted.
    pub counts: Counts,
    /// The days that rows of the table have left, as days since 1970.
    pub days_left: BTreeSet<i32>,
    /// Last changes of the window that are not later than the committed versions.
    pub stale: u64,
    /// Of a history, changes of the window that are not the last ones of their key and time.
    pub superseded: u64,
    /// Keys that had a row, and have none now, or one that has ended, because of floors.
    pub ended: u64,
    /// Of the keys that are forgotten, how many had versions, and the rows of them, which were removed.
    pub forgotten: (u64, u64),
    /// Ties that were seen only when keys were decided about.
    pub ties: u64,
    /// Raw files, by location and path, that are missing, though changes of them got rows of their own: these have the values
    /// of an earlier change in the columns by which rows are not compared.
    pub not_read: BTreeSet<(usize, String)>,
    /// The share of the table files' bytes that is new rows, estimated by the number of rows.
    pub bytes_changed: u64,
}

/// Pass two: its inputs and outputs.
#[derive(Debug)]
pub(crate) struct Curate<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The inputs.
    pub changes: &'a Arc<Changes>,
    /// The result of pass one.
    pub folded: &'a Fold,
    /// The ledger of earlier runs; `None` to begin from empty and replace all versions.
    pub earlier: Option<&'a Ledger>,
    /// Whether only changes that alter the row make one, in a history.
    pub compares_rows: bool,
    /// The columns that the table has besides those of the query, its last ones.
    pub own_columns: &'static [&'static str],
    /// The partition columns of which versions without a row of the table do not have the values.
    pub unrecorded: &'a [String],
    /// What opens raw files again.
    pub raw: &'a dyn ReopenRaw,
    /// The curated table.
    pub table: &'a Folder,
    /// The staging folder of the curated table.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The committed files of versions, and their sizes.
    pub committed_versions: Vec<(String, u64)>,
    /// The committed files of the balance, and their sizes.
    pub committed_balance: Vec<(String, u64)>,
    /// The keys that are forgotten by this run.
    pub forgetting: Option<&'a Forgetting>,
    /// The folder to which new files of versions and the balance are written.
    pub versions: &'a Folder,
    /// The attempt's name, part of every path.
    pub attempt: &'a str,
    /// The number of threads.
    pub threads: usize,
}

/// How the rows of a history are compared and copied.
struct Compared {
    columns: Arc<ComparedColumns>,
    copied: Arc<CopiedColumns>,
}

/// The winners' rows, sorted by threads for the table, and their versions.
struct Split {
    sorters: Vec<Sorter>,
    versions: Vec<VersionsFile>,
    standings: Vec<Standing>,
    counts: Counts,
}

/// The hint for a full load that lacks too many rows of the table.
const LACKS_ROWS: &str = "see whether files of the load are missing; if the table is as the load says, run once \
                          with --set raw.full_load_max_deletes=100%";

impl Curate<'_> {
    /// Runs pass two.
    ///
    /// # Errors
    /// Usage, when `curated.sql` is refused; data, when a row cannot be cast, or the table or the
    /// versions are not as they were committed; storage, when staging or state cannot be written.
    pub(crate) async fn run(&self, context: &SessionContext) -> Result<Curated> {
        let query = self.query(context, &self.folded.winners).await?;
        let contract = self.earlier.and_then(|ledger| ledger.contract.as_ref());
        let TableColumns { columns, untyped, retyped } = self.columns(&query, contract)?;
        let day = query.day.clone();
        let layout = Arc::new(self.versions_layout(&columns, day.as_deref(), contract)?);
        let (rows, schema) = self.rows(&columns, day.as_deref())?;

        let rewrites_all = !retyped.is_empty();
        let earlier = Arc::new(self.published_table(&rows, rewrites_all, context)?);

        let floors = self.floors(&layout);
        let new_floors = floors.iter().filter(|(_, is_new)| *is_new);
        let new_floors: Vec<Floor> = new_floors.map(|(floor, _)| floor.clone()).collect();
        let to_merge = match self.forgetting {
            None => self.versions_to_merge(!new_floors.is_empty()),
            Some(forgetting) => {
                let committed = &self.committed_versions;
                forgetting.files(self.state, &layout, committed, self.threads).await?
            }
        };
        let replaced_versions = self.replaced_versions(&to_merge);
        let compared = self.compared(&query, &columns, &schema, day.as_deref())?;
        let order = (&rows.order, compared.as_ref());
        let outputs = self.outputs(context, &to_merge, &layout, order);
        let compared = compared.map(|compared| compared.columns);
        let of_rows = compared.as_ref().map(|columns| (&query, columns));
        let of_table = (&layout, &schema, day.as_deref());
        let (merged, mut outputs) =
            self.merge(context, to_merge, outputs, floors, of_table, of_rows).await?;
        let merged = merged.as_ref();
        self.check_deletes(&new_floors, merged)?;
        let copies = (compared.as_ref(), &*layout, &*earlier);
        let not_read = self.make_copies(context, copies, &mut outputs).await?;
        let query = match merged {
            Some(merged) => self.query(context, &merged.winners).await?,
            None => query,
        };
        let unsettled = self.unsettled(merged);
        let ended = merged.map(|merged| &merged.winners).filter(|winners| winners.has_ended());
        let times = RowTimes {
            day: day.clone(),
            ends: merged.map(|merged| Arc::clone(&merged.ends)).unwrap_or_default(),
            begins: merged.map(|merged| Arc::clone(&merged.begins)).unwrap_or_default(),
        };
        let marks = (unsettled, ended.cloned(), times);
        let split =
            self.split(context, &query, outputs, (&layout, compared), &schema, marks).await?;
        let mut counts = split.counts;
        counts.days.extend(merged.iter().flat_map(|merged| &merged.counts.floor_days));
        let (written, given) =
            self.write_table(split.sorters, &rows, earlier, rewrites_all).await?;
        // Now that the rows of the table have left the memory.
        let (balance, balance_days) = self.write_balance(settle(split.standings).await?).await?;

        let bytes_changed = check_written(&written, &given, merged)?;
        check_versions(&split.versions, &counts, merged)?;
        Ok(Curated {
            partitions: written.iter().map(|one| one.partition.clone()).collect(),
            kept: written.iter().flat_map(|one| one.kept.clone()).collect(),
            staged: written.into_iter().flat_map(|one| one.files).collect(),
            versions: split.versions,
            replaced_versions,
            balance,
            balance_days,
            floors: new_floors,
            layout,
            columns,
            untyped,
            retyped,
            day,
            stale: merged.map_or(0, |merged| merged.counts.stale),
            superseded: merged.map_or(0, |merged| merged.counts.superseded),
            ended: merged.map_or(0, |merged| merged.counts.ended),
            forgotten: merged.map_or((0, 0), |merged| merged.counts.forgotten),
            ties: merged.map_or(0, |merged| merged.counts.ties),
            bytes_changed,
            not_read,
            counts,
            days_left: merged.map_or(BTreeSet::new(), |merged| merged.counts.days.clone()),
        })
    }

    /// Merges the winners with earlier versions, if any can change a winner.
    async fn merge(
        &self,
        context: &SessionContext,
        to_merge: Vec<CommittedVersions>,
        mut outputs: Vec<Output>,
        floors: KnownFloors,
        (layout, schema, day): (&Arc<VersionsLayout>, &SchemaRef, Option<&str>),
        compared: Option<(&CuratedQuery, &Arc<ComparedColumns>)>,
    ) -> Result<(Option<Merged>, Vec<Output>)> {
        let keeps_balance = self.keeps_balance();
        // Where times are kept, the changes of one key depend on each other.
        let keeps_times = self.pipeline.keep.keeps_times();
        let is_alone = to_merge.is_empty() && floors.is_empty() && !keeps_times;
        if is_alone && !keeps_balance {
            return Ok((None, outputs));
        }
        let committed_rows: u64 = to_merge.iter().map(|file| file.rows).sum();
        let entries = Arc::new(Entries::new(layout, self.folded.key_days + committed_rows)?);
        let files = Arc::new(Files::new(self.changes).with_floors(&floors));
        if keeps_balance {
            for output in &mut outputs {
                output.standing =
                    Some(Standing::new(&entries, &files, &floors, &context.runtime_env())?);
            }
        }
        if is_alone {
            return Ok((None, outputs));
        }
        let merge = Merge {
            pipeline: self.pipeline,
            changes: self.changes,
            folded: self.folded,
            layout,
            entries,
            files,
            floors,
            forgetting: self.forgetting,
            compared,
            own_columns: self.own_columns,
            state: self.state,
            committed: to_merge,
            table_schema: Arc::clone(schema),
            day,
            places: Places::new(self.changes.ordinal_counts()),
        };
        let (merged, outputs) = merge.run(context, outputs).await?;
        let name = |(file, ordinal)| self.changes.ordinal_name(file, ordinal);
        match (merged.counts.tie, merged.counts.floor_tie) {
            (Some(tie), _) if self.pipeline.raw.on_tie == OnTie::Fail => Err(tied(&name(tie))),
            (_, Some(tie)) => Err(tied_with_truncate(&name(tie))),
            _ => Ok((Some(merged), outputs)),
        }
    }

    /// Refuses full loads that lack too many rows of the table: a load that is not complete may be why.
    fn check_deletes(&self, new_floors: &[Floor], merged: Option<&Merged>) -> Result<()> {
        let max = self.pipeline.raw.full_loads.max_deletes;
        let is_load = new_floors.iter().any(|floor| floor.is_load);
        let (Some(max), Some(merged), true) = (max, merged, is_load) else { return Ok(()) };
        if self.pipeline.keep.keeps_changes() {
            return self.check_deletes_at_loads(max, merged);
        }
        let files = self.earlier.into_iter().flat_map(|ledger| ledger.files(CURATED));
        let rows: u64 = match self.pipeline.keep {
            // A new floor lets all keys be read.
            Keep::LatestAndDeleted => merged.counts.current_before,
            _ => files.map(TableFile::live_rows).sum(),
        };
        let ended = merged.counts.ended;
        if ended as f64 * 100.0 <= rows as f64 * max {
            return Ok(());
        }
        Err(Error::data(format!(
            "the table has {rows} rows, and the full loads of this run would end {ended} of them, more \
             than {max}% (raw.full_load_max_deletes)"
        ))
        .hint(LACKS_ROWS))
    }

    /// The same where each change counts, for each full load by itself: rows that it lacks end, and may begin again with the
    /// next. A rebuild takes the loads that there were.
    fn check_deletes_at_loads(&self, max: f64, merged: &Merged) -> Result<()> {
        let mut loads = merged.counts.loads.of_loads().filter(|_| self.earlier.is_some());
        let too_many = loads.find(|(_, rows, lacks)| *lacks as f64 * 100.0 > *rows as f64 * max);
        let Some((time, rows, lacks)) = too_many else { return Ok(()) };
        let time = DateTime::from_timestamp_micros(time).unwrap_or_default();
        Err(Error::data(format!(
            "the table had {rows} rows when the full load of {} came, which lacks {lacks} of them, more than \
             {max}% (raw.full_load_max_deletes)",
            time.format("%Y-%m-%d %H:%M:%S%.f")
        ))
        .hint(LACKS_ROWS))
    }

    /// The floors of earlier runs, and those that this run has found.
    fn floors(&self, layout: &VersionsLayout) -> KnownFloors {
        let earlier = self.earlier.iter().flat_map(|ledger| &ledger.floors);
        let mut all: Vec<(Floor, bool)> =
            earlier.map(|(floor, _)| (floor.clone(), false)).collect();
        let known = all.len();
        let inputs: Vec<&Input> = self.changes.inputs().collect();
        let mut found = Floor::found(&self.folded.pass_one.floors(), layout, &inputs);
        found.retain(|floor| !all[..known].iter().any(|(known, _)| known.id() == floor.id()));
        all.extend(found.into_iter().map(|floor| (floor, true)));
        Arc::new(all)
    }

    /// `curated.sql` over the rows of winners.
    async fn query(
        &self,
        context: &SessionContext,
        winners: &Arc<Winners>,
    ) -> Result<CuratedQuery> {
        curated_sql::plan(context, self.pipeline, self.changes, winners, self.threads).await
    }

    /// The published table, whose partitions are rebuilt; with `rewrites_all` all of them.
    fn published_table(
        &self,
        rows: &TableRows,
        rewrites_all: bool,
        context: &SessionContext,
    ) -> Result<PublishedTable> {
        let files = self.earlier.into_iter().flat_map(|ledger| ledger.files(CURATED));
        let table = PublishedTable::new(self.table, files, rows, context.runtime_env())?;
        let curated = &self.pipeline.curated;
        // A row that is only marked as deleted would still be in its file.
        let has_vectors = curated.deletion_vectors && !rewrites_all && self.forgetting.is_none();
        Ok(if has_vectors { table.with_deletion_vectors(curated.file_bytes) } else { table })
    }

    /// The columns by which rows are compared, and those that copies have of their own, if rows are compared.
    fn compared(
        &self,
        query: &CuratedQuery,
        columns: &[Field],
        schema: &SchemaRef,
        day: Option<&str>,
    ) -> Result<Option<Compared>> {
        if !self.compares_rows {
            return Ok(None);
        }
        let Pipeline { key, curated, .. } = self.pipeline;
        let of_query = &columns[..columns.len() - self.own_columns.len()];
        let named = (&key[..], day, &self.pipeline.history_columns[..]);
        let compared = ComparedColumns::new(of_query, named, query.columns.len());
        let names = (&key[..], &curated.partition_by[..], day);
        let copied = CopiedColumns::new(schema, self.own_columns, names)?;
        Ok(Some(Compared { columns: Arc::new(compared), copied: Arc::new(copied) }))
    }

    /// Makes the copies of rows that a merge has asked for, and adds them to the new rows. Returns raw files that are missing,
    /// for whose rows others were copied.
    async fn make_copies(
        &self,
        context: &SessionContext,
        (compared, layout, table): (
            Option<&Arc<ComparedColumns>>,
            &VersionsLayout,
            &PublishedTable,
        ),
        outputs: &mut [Output],
    ) -> Result<BTreeSet<(usize, String)>> {
        let mut missing = BTreeSet::new();
        let copies = outputs.iter_mut().filter_map(|output| output.copies.take());
        let (mut published, mut from_raw, mut columns) = (Vec::new(), Vec::new(), None);
        for one in copies {
            published.push(one.published);
            from_raw.extend(one.from_raw);
            columns = Some(one.columns);
        }
        let (Some(copied), Some(compared), Some(output)) = (columns, compared, outputs.first_mut())
        else {
            return Ok(missing);
        };
        if let Some(lost) = published.first_mut() {
            let (pipeline, raw) = (self.pipeline, self.raw);
            let copies = RawCopies { pipeline, raw, layout, compared, copied: &copied, context };
            missing = copies.make(from_raw, &mut output.rows, lost).await?;
        }
        copied.make(published, table, &mut output.rows).await?;
        Ok(missing)
    }

    /// A sorter for the table and a writer of versions per thread.
    fn outputs(
        &self,
        context: &SessionContext,
        to_merge: &[CommittedVersions],
        layout: &Arc<VersionsLayout>,
        (order, compared): (&Arc<Order>, Option<&Compared>),
    ) -> Vec<Output> {
        let mut days = self.folded.days.clone();
        let rewritten = to_merge.iter().filter(|file| file.rewritten);
        let counts = rewritten.filter_map(|file| self.earlier?.versions.get(&file.path));
        counts.for_each(|counts| days.add_all(counts));
        let starts = Arc::new(day_ranges(&days));
        let threads = 0..self.threads;
        threads
            .map(|thread| {
                let prefix = format!("{}-{thread:02}", State::versions_prefix(self.attempt));
                Output {
                    rows: Sorter::new(Arc::clone(order), context.runtime_env()),
                    versions: VersionsWriter::new(self.versions, layout, prefix, &starts),
                    standing: None,
                    copies: compared.map(|Compared { copied, .. }| {
                        let reads_raw = !self.pipeline.history_columns.is_empty();
                        Copies::new(copied, reads_raw, &context.runtime_env())
                    }),
                }
            })
            .collect()
    }

    /// The committed files of versions that the new ones replace: rewritten ones, or all of them if
    /// the table begins from empty.
    fn replaced_versions(&self, to_merge: &[CommittedVersions]) -> Vec<String> {
        if self.earlier.is_none() {
            let all = self.committed_versions.iter();
            return all.map(|(path, _)| path.clone()).collect();
        }
        let rewritten = to_merge.iter().filter(|file| file.rewritten);
        rewritten.map(|file| file.path.clone()).collect()
    }

    /// Runs the query and splits its rows into versions and rows of the table, on all threads.
    async fn split(
        &self,
        context: &SessionContext,
        query: &CuratedQuery,
        outputs: Vec<Output>,
        (layout, compared): (&Arc<VersionsLayout>, Option<Arc<ComparedColumns>>),
        schema: &SchemaRef,
        (unsettled, ended, times): (Unsettled, Option<Arc<Winners>>, RowTimes),
    ) -> Result<Split> {
        let inputs: Arc<Vec<Input>> = Arc::new(self.changes.inputs().cloned().collect());
        let places = Arc::new(Places::new(self.changes.ordinal_counts()));
        let plan = context.state().create_physical_plan(&query.plan).await?;
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        if streams.len() > self.threads {
            return Err(Error::internal("there are more streams than threads"));
        }
        let commit = attempt_commit(self.attempt)
            .ok_or_else(|| Error::internal("an attempt has no number"))?;
        let streams = Arc::new(Work::new(streams));
        let tasks = outputs.into_iter().map(|outputs| {
            let splitter = Splitter {
                keep: self.pipeline.keep,
                own_columns: self.own_columns,
                schema: Arc::clone(schema),
                key: self.pipeline.key.clone(),
                columns: query.columns.len(),
                layout: Arc::clone(layout),
                compared: compared.clone(),
                inputs: Arc::clone(&inputs),
                commit,
                places: Arc::clone(&places),
                unsettled: unsettled.clone(),
                ended: ended.clone(),
                times: times.clone(),
                sql_file: self.pipeline.curated.sql.file.clone(),
            };
            let streams = Arc::clone(&streams);
            spawn(async move { streams.run(splitter.run(&streams, outputs)).await })
        });
        let mut split = Split {
            sorters: Vec::new(),
            versions: Vec::new(),
            standings: Vec::new(),
            counts: Counts::default(),
        };
        for (counts, files, sorter, standing) in join_all(tasks).await? {
            split.sorters.push(sorter);
            split.standings.extend(standing);
            split.counts.rows_latest += counts.rows_latest;
            split.counts.rows_deleted += counts.rows_deleted;
            split.counts.key_days += counts.key_days;
            split.counts.days.extend(counts.days);
            split.versions.extend(files);
        }
        Ok(split)
    }

    /// The partitions of files with rows that are marked as deleted, among which may be rows of keys that are
    /// forgotten; none if no key is.
    fn with_deleted_rows(&self) -> impl Iterator<Item = &str> {
        let ledger = self.earlier.filter(|_| self.forgetting.is_some());
        let files = ledger.into_iter().flat_map(|ledger| ledger.files(CURATED));
        files.filter(|file| file.deleted.is_some()).map(|file| parent(&file.path))
    }

    /// Rebuilds the published partitions with new rows and tombstones, and writes them to staging; with
    /// `rewrites_all` partitions without any too, and those that may have marked rows of forgotten keys. Returns the
    /// written partitions, and the number of new rows and tombstones of each.
    async fn write_table(
        &self,
        sorters: Vec<Sorter>,
        rows: &TableRows,
        earlier: Arc<PublishedTable>,
        rewrites_all: bool,
    ) -> Result<(Vec<Written>, BTreeMap<String, u64>)> {
        let writer = TableWriter {
            staging: self.staging.clone(),
            prefix: format!("{}/curated", self.attempt),
            file_bytes: self.pipeline.curated.file_bytes,
        };
        let mut sorted = Sorted::new(&rows.order, sorters)?;
        if rewrites_all {
            earlier.folders().for_each(|folder| sorted.include(folder));
        }
        self.with_deleted_rows().for_each(|folder| sorted.include(folder));
        let given = sorted.counts().clone();
        let written = writer.write(sorted, Some(earlier), self.threads).await?;
        Ok((written, given))
    }
}
