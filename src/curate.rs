//! Pass two: the payload of the last changes, through `curated.sql`, into staging.
//!
//! ```text
//! winners ─▶ merge with versions ─▶ winners that hold ─▶ curated.sql, made total ─┬─▶ versions
//!                  │                    (one stream per thread)                   └─▶ rows ─┐
//!                  └─▶ rows that go (tombstones) ─────────────────────────────────▶ sorter ─┤
//!                                                                                           ▼
//!                                                published partitions ─▶ rebuild ─▶ files in staging
//! ```
//!
//! Each thread has a sorter of its own, which spills when it must, so memory stays under the
//! limit whatever the number of rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;

use crate::changes::Changes;
use crate::changes::reader::ChangesTable;
use crate::config::{OnTie, Pipeline};
use crate::curate::conservation::{adds_up, check_versions, check_written};
use crate::curate::merge::{Merge, Outputs};
use crate::curate::pass_two::{Counts, FirstHalf};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::fold::{Fold, tied};
use crate::raw::discover::Input;
use crate::state::State;
use crate::state::ledger::{CURATED, Ledger};
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::{VersionsFile, VersionsWriter, day_ranges};
use crate::store::Folder;
use crate::table::rebuild::PublishedTable;
use crate::table::sorter::{Sorted, Sorter};
use crate::table::writer::{StagedFile, TableWriter};

pub mod conservation;
pub mod curated_sql;
pub mod merge;
pub mod pass_two;
pub mod stage;
pub mod table_layout;

/// What pass two made.
#[derive(Debug)]
pub struct Curated {
    /// The table's files, in staging.
    pub staged: Vec<StagedFile>,
    /// The partitions that were written, or left without rows.
    pub partitions: BTreeSet<String>,
    /// The versions' files, in the state folder and not yet committed.
    pub versions: Vec<VersionsFile>,
    /// The files with versions that these replace.
    pub replaced_versions: Vec<String>,
    /// The versions' layout.
    pub layout: Arc<VersionsLayout>,
    /// The table's columns.
    pub columns: Vec<Field>,
    /// What was counted on the way.
    pub counts: Counts,
    /// Last changes of the window not later than what versions hold.
    pub stale: u64,
    /// Of the bytes of the table's files the part of the new rows, by their number.
    pub bytes_changed: u64,
}

/// What pass two is made of.
#[derive(Debug)]
pub struct Curate<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The inputs.
    pub changes: &'a Arc<Changes>,
    /// Pass one's result.
    pub folded: &'a Fold,
    /// What earlier runs left; `None` to begin anew, and to replace all versions.
    pub earlier: Option<&'a Ledger>,
    /// The curated table.
    pub table: &'a Folder,
    /// The staging folder of the curated table.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The committed files with versions, and their sizes.
    pub stored: Vec<(String, u64)>,
    /// The folder that new files with versions are written to.
    pub versions: &'a Folder,
    /// The attempt's name, part of every path.
    pub attempt: &'a str,
    /// How many threads.
    pub threads: usize,
}

impl Curate<'_> {
    /// Runs pass two.
    ///
    /// # Errors
    /// Usage, when `curated.sql` is refused; data, when a row cannot be cast, or the table or the
    /// versions are not as they were left; storage, when staging or state cannot be written.
    pub async fn run(&self, context: &SessionContext) -> Result<Curated> {
        let winners = Arc::clone(&self.folded.winners);
        let table = ChangesTable::pass_two(self.changes, winners, self.threads);
        let query = curated_sql::plan(context, self.pipeline, self.changes, table).await?;
        let contract = self.earlier.and_then(|ledger| ledger.contract.as_ref());
        let columns = self.columns(&query, contract)?;
        let layout = Arc::new(self.versions_layout(&columns, contract)?);
        let (order, schema) = self.order(&columns)?;

        let stored = self.stored_versions();
        let mut days = self.folded.days.clone();
        for file in stored.iter().filter(|file| file.rewritten) {
            if let Some(counts) = self
                .earlier
                .and_then(|ledger| ledger.versions.get(&file.path))
            {
                days.add_all(counts);
            }
        }
        let starts = Arc::new(day_ranges(&days));
        let outputs: Outputs = (0..self.threads)
            .map(|thread| {
                let prefix = format!("{}-{thread:02}", State::versions_prefix(self.attempt));
                let sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
                let versions = VersionsWriter::new(self.versions, &layout, prefix, &starts);
                (sorter, versions)
            })
            .collect();
        let replaced_versions = match self.earlier {
            Some(_) => {
                let rewritten = stored.iter().filter(|file| file.rewritten);
                rewritten.map(|file| file.path.clone()).collect()
            }
            None => self.stored.iter().map(|(path, _)| path.clone()).collect(),
        };
        let (query, merged, outputs) = match (stored.is_empty(), self.earlier) {
            (false, Some(ledger)) => {
                let merge = Merge {
                    pipeline: self.pipeline,
                    changes: self.changes,
                    folded: self.folded,
                    layout: &layout,
                    state: self.state,
                    stored,
                    folded_inputs: ledger.inputs.keys().cloned().collect(),
                    table_schema: Arc::clone(&schema),
                };
                let (merged, outputs) = merge.run(context, outputs).await?;
                let fails = self.pipeline.raw.on_tie == OnTie::Fail;
                if let Some((file, place)) = merged.counts.tie.filter(|_| fails) {
                    return Err(tied(&self.changes.ordinal_name(file, place)));
                }
                let winners = Arc::clone(&merged.winners);
                let table = ChangesTable::pass_two(self.changes, winners, self.threads);
                let query = curated_sql::plan(context, self.pipeline, self.changes, table).await?;
                (query, Some(merged), outputs)
            }
            // Nothing that was there is touched.
            _ => (query, None, outputs),
        };

        let inputs: Arc<Vec<Input>> = Arc::new(self.changes.inputs().cloned().collect());
        let plan = context.state().create_physical_plan(&query.plan).await?;
        let streams = execute_stream_partitioned(plan, context.task_ctx())?;
        if streams.len() > self.threads {
            return Err(Error::internal("there are more streams than threads"));
        }
        let streams = Arc::new(Work::new(streams));
        let halves = outputs.into_iter().map(|outputs| {
            let half = FirstHalf {
                keep: self.pipeline.keep,
                schema: Arc::clone(&schema),
                key: self.pipeline.key.clone(),
                layout: Arc::clone(&layout),
                inputs: Arc::clone(&inputs),
                sql_file: self.pipeline.curated.sql.file.clone(),
            };
            let streams = Arc::clone(&streams);
            spawn(async move { streams.run(half.run(&streams, outputs)).await })
        });
        let halves = join_all(halves).await?;

        let mut counts = Counts::default();
        let mut versions = Vec::new();
        let mut sorters = Vec::new();
        for (counted, files, sorter) in halves {
            sorters.push(sorter);
            counts.rows_latest += counted.rows_latest;
            counts.rows_deleted += counted.rows_deleted;
            counts.key_days += counted.key_days;
            counts.days.extend(counted.days);
            versions.extend(files);
        }
        let writer = TableWriter {
            staging: self.staging.clone(),
            prefix: format!("{}/curated", self.attempt),
            file_bytes: self.pipeline.curated.file_bytes,
        };
        let files = self
            .earlier
            .into_iter()
            .flat_map(|ledger| ledger.files(CURATED));
        let is_keyless = self.changes.is_keyless();
        let earlier = Arc::new(PublishedTable::new(self.table, files, &order, is_keyless)?);
        let sorted = Sorted::new(&order, sorters);
        let given = sorted.counts().clone();
        let written = writer.write(sorted, Some(earlier), self.threads).await?;

        let merged = merged.as_ref();
        counts
            .days
            .extend(merged.iter().flat_map(|merged| &merged.counts.days));
        let bytes_changed = check_written(&written, &given, merged)?;
        check_versions(&versions, &counts, merged)?;
        if let Some(merged) = merged
            && merged.counts.key_days != counts.key_days
        {
            return Err(adds_up(
                "winners that hold",
                merged.counts.key_days,
                counts.key_days,
            ));
        }
        Ok(Curated {
            partitions: written.iter().map(|one| one.partition.clone()).collect(),
            staged: written.into_iter().flat_map(|one| one.files).collect(),
            versions,
            replaced_versions,
            layout,
            columns,
            stale: merged.map_or(0, |merged| merged.counts.stale),
            bytes_changed,
            counts,
        })
    }
}
