//! Up to what can be committed: inputs are opened, folded and curated into staged files, and the
//! result must add up. Nothing that was published changes, and nothing is remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::runtime_env::RuntimeEnv;
use tracing::{debug, info, warn};

use crate::changes::Changes;
use crate::changes::key_moves::key_swaps;
use crate::config::{Keep, OnBad, Pipeline};
use crate::curate::{Curate, Curated, adds_up};
use crate::engine::resources::Resources;
use crate::engine::session::{BATCH_ROWS, session};
use crate::error::{Error, Result};
use crate::fold::{Fold, fold};
use crate::raw::bad_rows::{BadRow, BadRows};
use crate::raw::discover::{Input, Recorded};
use crate::raw::open::Opening;
use crate::raw::schema_changes::KnownColumns;
use crate::report::Report;
use crate::state::ledger::Ledger;
use crate::store::Folder;

/// Inputs that cannot be read, by raw location and path, and why.
pub type BadInputs = BTreeMap<(usize, String), String>;

/// What inputs are folded onto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// What earlier runs left.
    Table,
    /// Nothing: a table beside it begins anew.
    Empty {
        /// Whether to go on without what was folded and cannot be read any more.
        accept_missing: bool,
    },
}

/// What staging is made of.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// What it may use.
    pub resources: &'a Resources,
    /// Its memory and disk.
    pub runtime: &'a Arc<RuntimeEnv>,
    /// The raw folders.
    pub raw: &'a [Folder],
    /// What earlier runs left.
    pub ledger: &'a Ledger,
    /// Whether inputs are folded onto that.
    pub onto: Onto,
    /// The curated table.
    pub table: &'a Folder,
    /// Where the curated table's new files go.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The committed files with versions there, and their sizes.
    pub stored: Vec<(String, u64)>,
    /// Where new versions go.
    pub versions: &'a Folder,
    /// A name for all that is written, part of every path.
    pub attempt: &'a str,
    /// Whether nothing of it will be committed: any number of rows may then be bad.
    pub is_dry: bool,
}

/// What was staged.
#[derive(Debug)]
pub struct Staged {
    /// The inputs that could be opened.
    pub changes: Arc<Changes>,
    /// The others, and why.
    pub bad_files: Vec<(Input, String)>,
    /// The files; `None` where no input could be opened.
    pub curated: Option<Curated>,
}

impl Stage<'_> {
    fn is_from_empty(&self) -> bool {
        self.onto != Onto::Table
    }

    fn accepts_missing(&self) -> bool {
        let accepts = Onto::Empty {
            accept_missing: true,
        };
        self.onto == accepts
    }

    /// Stages the inputs, and counts in the report. `bad` are inputs that turned out to be bad when
    /// others had been folded already.
    ///
    /// # Errors
    /// Those of the steps; with [`Error::input`] where a single input is to blame, which another try
    /// can leave out.
    pub async fn run(
        &self,
        inputs: &[Input],
        bad: &mut BadInputs,
        report: &mut Report,
    ) -> Result<Staged> {
        let pipeline = self.pipeline;
        let threads = self.resources.threads;
        report.files = inputs.len() as u64;
        report.late_files = inputs.iter().filter(|input| input.late).count() as u64;
        report.bytes = inputs.iter().map(|input| input.file.size).sum();
        info!(
            "{} files, {} of them late, {} bytes",
            report.files, report.late_files, report.bytes
        );
        for Input { file, late, .. } in inputs {
            debug!(
                "reads {}: {} bytes{}",
                self.raw[file.location].describe(&file.path),
                file.size,
                if *late { ", late" } else { "" }
            );
        }
        let known = match self
            .ledger
            .contract
            .as_ref()
            .filter(|_| !self.is_from_empty())
        {
            Some(contract) => contract.known_columns()?,
            None => KnownColumns::default(),
        };
        let (changes, bad_files) = self.open(inputs, &known, bad).await?;
        self.check_readable(&bad_files)?;
        report.schema_changes = changes.schema_changes().to_vec();
        for change in &report.schema_changes {
            info!("schema change: {change}");
        }
        for told in changes.missing_columns() {
            warn!("{told}");
        }
        if let Some(column) = changes.missing_before_image() {
            let told =
                format!("no CDC file has the column `{column}`: updates of the key cannot be seen");
            warn!("{told}");
            report.note.get_or_insert(told);
        }
        if changes.is_empty() && self.is_from_empty() {
            let told = "no input can be read any more";
            return Err(Error::data(format!("{told}, such as {}", bad_files[0].1))
                .hint("nothing was changed: mend the raw files"));
        }
        if changes.is_empty() {
            return Ok(Staged {
                changes,
                bad_files,
                curated: None,
            });
        }
        let kept = MemoryConsumer::new("inputs").register(&self.runtime.memory_pool);
        kept.grow(changes.cached_bytes());
        report.rows_read = changes.row_counts().sum();
        let context = session(self.runtime, threads);
        if !changes.before_images().is_empty() {
            changes.set_key_swaps(key_swaps(&context, &changes, threads).await?);
        }
        let folded = fold(&context, &changes, pipeline, threads).await?;
        if !self.accepts_missing() {
            self.check_still_read(&changes)?;
        }
        info!(
            "pass one: {} rows, {} keys, {} keys and days",
            report.rows_read, folded.keys, folded.key_days
        );
        let curate = Curate {
            pipeline,
            changes: &changes,
            folded: &folded,
            earlier: (!self.is_from_empty()).then_some(self.ledger),
            table: self.table,
            staging: self.staging,
            state: self.state,
            stored: self.stored.clone(),
            versions: self.versions,
            attempt: self.attempt,
            threads,
        };
        let curated = curate.run(&context).await?;
        debug!(
            "pass two: {} files of {} partitions staged, {} files with versions",
            curated.staged.len(),
            curated.partitions.len(),
            curated.versions.len()
        );
        fill_in(report, pipeline.keep, &folded, &changes, &curated);
        check_conservation(report, &changes)?;
        Ok(Staged {
            changes,
            bad_files,
            curated: Some(curated),
        })
    }

    /// Opens inputs; returns also those that cannot be read, and why.
    async fn open(
        &self,
        inputs: &[Input],
        known: &KnownColumns,
        bad: &mut BadInputs,
    ) -> Result<(Arc<Changes>, Vec<(Input, String)>)> {
        let (pipeline, resources) = (self.pipeline, self.resources);
        loop {
            let bad_rows = Arc::new(BadRows::new(match (pipeline.raw.on_bad_row, self.is_dry) {
                (OnBad::Fail, _) => 0,
                (OnBad::Quarantine, true) => u64::MAX,
                (OnBad::Quarantine, false) => pipeline.raw.max_bad_rows + self.known_bad(inputs),
            }));
            let opening = Opening::new(self.raw, &pipeline.raw, resources, self.runtime, &bad_rows);
            let (mut good, mut bad_files) = (Vec::new(), Vec::new());
            for input in inputs {
                match bad.get(&(input.file.location, input.file.path.clone())) {
                    Some(reason) => bad_files.push((input.clone(), reason.clone())),
                    None => good.push(input.clone()),
                }
            }
            let opened = Changes::open(good, opening, pipeline, known, BATCH_ROWS).await?;
            let (changes, unopened) = opened;
            let changes = Arc::new(changes);
            let unopened = unopened.into_iter();
            bad_files.extend(unopened.map(|(input, error)| (input, error.to_string())));
            if bad.is_empty() {
                return Ok((changes, bad_files));
            }
            // Where one was damaged, others may be: they are found together.
            let mut damaged = changes.find_damaged(resources.threads).await?;
            // One that was folded may be so where it is not needed.
            damaged.retain(|(input, _)| self.ledger.folded(input.location, &input.path).is_none());
            if damaged.is_empty() {
                return Ok((changes, bad_files));
            }
            for (input, error) in damaged {
                bad.insert((input.location, input.path), error.to_string());
            }
        }
    }

    /// How many rows of some inputs are in quarantine already: they count as bad no more than once.
    fn known_bad(&self, inputs: &[Input]) -> u64 {
        let aside = inputs.iter().filter_map(|input| {
            let name = (input.file.location, input.file.path.clone());
            self.ledger.quarantined.get(&name)?.rows.as_ref()
        });
        aside.map(|rows| rows.len() as u64).sum()
    }

    /// Refuses to go on without an input that was folded.
    fn check_readable(&self, bad_files: &[(Input, String)]) -> Result<()> {
        let was_folded = |(input, _): &&(Input, String)| {
            let folded = self.ledger.folded(input.file.location, &input.file.path);
            // Windows of rows may have left out what is bad of it.
            let is_whole = self.is_from_empty() || input.rows.is_none();
            folded.is_some() && !self.accepts_missing() && is_whole
        };
        match bad_files.iter().find(was_folded) {
            None => Ok(()),
            Some((_, reason)) => {
                let told = "an input that was folded cannot be read any more";
                Err(lost(format!("{told}: {reason}"), self.is_from_empty()))
            }
        }
    }

    /// Refuses rows as bad that an earlier run has folded: they would stay in the table, or be lost
    /// by a rebuild.
    fn check_still_read(&self, changes: &Changes) -> Result<()> {
        let ledger = self.ledger;
        let bad_rows = changes.bad_rows().sorted();
        for (number, input) in changes.inputs().enumerate() {
            // Windows of rows leave rows out that can be bad.
            let is_whole = input.rows.is_none() && input.only.is_none();
            let Some(bad) = bad_rows.get(&number).filter(|_| is_whole) else {
                continue;
            };
            let (location, path) = (input.file.location, &input.file.path);
            let is_here = self.raw[location].location.file_path().is_some();
            let folded = ledger.folded(location, path);
            if !folded.is_some_and(|folded| folded.is_same(&input.file, is_here)) {
                continue;
            }
            let aside = ledger.quarantined.get(&(location, path.clone()));
            let known = aside.and_then(|aside| aside.rows.as_deref());
            let is_new = |bad: &&BadRow| known.is_none_or(|known| !known.contains(&bad.row));
            if let Some(first) = bad.iter().find(is_new) {
                let why = first.told(&self.raw[location].describe(path));
                let told = format!("a row that was folded cannot be read any more: {why}");
                let lost = lost(told, self.is_from_empty());
                let hint = lost.hint.clone().unwrap_or_default();
                return Err(lost.hint(format!("{}; or {hint}", first.hint)));
            }
        }
        Ok(())
    }
}

/// What an earlier run has folded, and this one cannot.
fn lost(told: String, is_from_empty: bool) -> Error {
    Error::data(told).hint(match is_from_empty {
        true => {
            "undo the change of the file or of the pipeline, or go on without it: \
             glueless rebuild --accept-missing"
        }
        false => {
            "undo the change of the file or of the pipeline; `glueless rebuild --accept-missing` \
             makes the tables again without it"
        }
    })
}

fn fill_in(report: &mut Report, keep: Keep, folded: &Fold, changes: &Changes, curated: &Curated) {
    let (winners, ties) = match keep {
        Keep::Latest => (folded.keys, folded.ties),
        Keep::LatestPerDay => (folded.key_days, folded.day_ties),
    };
    report.rows_outside = changes.rows_outside();
    report.rows_stale = curated.stale;
    report.rows_superseded = changes.rows_folded().saturating_sub(winners) + curated.stale;
    report.rows_latest = curated.counts.rows_latest;
    report.rows_deleted = curated.counts.rows_deleted;
    report.rows_rejected = changes.bad_rows().count();
    report.key_moves = changes.key_moves();
    report.ties = ties;
    report.bytes_changed = curated.bytes_changed;
    report.newest_commit_time = report.newest_commit_time.max(changes.newest_commit_time());
}

/// The run must add up before anything is published: every row that was read went somewhere. That
/// what was written adds up, too, is checked where it is written ([`Curate::run`]).
fn check_conservation(report: &Report, changes: &Changes) -> Result<()> {
    let went = report.rows_latest
        + report.rows_superseded
        + report.rows_deleted
        + report.rows_rejected
        + report.rows_outside;
    let sums = [
        ("rows read", report.rows_read + report.key_moves, went),
        (
            "rows folded",
            report.rows_read + report.key_moves,
            changes.rows_folded() + report.rows_outside + report.rows_rejected,
        ),
    ];
    match sums.into_iter().find(|(_, one, other)| one != other) {
        None => Ok(()),
        Some((what, one, other)) => Err(adds_up(what, one, other)),
    }
}
