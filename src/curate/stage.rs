//! Staging: opens, folds and curates inputs into staged files, which must add up and can then be
//! committed. Changes neither published tables nor the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use tracing::{debug, info, warn};

use crate::changes::Changes;
use crate::changes::key_moves::key_swaps;
use crate::changes::pass_one::PassOne;
use crate::changes::reader::{Backwards, count_backwards};
use crate::config::{Format, Keep, OnBad, Pipeline, Raw};
use crate::curate::conservation::does_not_add_up;
use crate::curate::from_table::FromTable;
use crate::curate::merge::forget::Forgetting;
use crate::curate::raw_copies::ReopenRaw;
use crate::curate::{Curate, Curated};
use crate::engine::resources::Resources;
use crate::engine::session::{BATCH_ROWS, session};
use crate::error::{Error, Result};
use crate::fold::{Fold, fold};
use crate::layout::parent;
use crate::raw::bad_rows::{BadRow, BadRows, NOT_UTF8};
use crate::raw::discover::{Input, RawFile, Recorded};
use crate::raw::loads::EarlierLoads;
use crate::raw::open::Opening;
use crate::raw::schema_changes::KnownColumns;
use crate::report::{Report, one_note};
use crate::state::contract::TableContract;
use crate::state::ledger::Ledger;
use crate::store::{Folder, parse_path};

/// What is bad in the inputs, as failed attempts to fold them have found.
#[derive(Clone, Debug, Default)]
pub(crate) struct BadInputs {
    /// The inputs that cannot be read, by raw location and path, and why.
    pub files: BTreeMap<(usize, String), String>,
    /// Whether a text that is not UTF-8 was found among rows that had been folded, so that texts are
    /// read and checked before.
    pub checks_texts: bool,
}

impl BadInputs {
    /// Adds what made a fold fail. Returns whether it can be tried again without it.
    pub(crate) fn add(&mut self, error: &Error, raw: &Raw) -> bool {
        if error.is_of_unchecked_text && raw.on_bad_row == OnBad::Quarantine {
            return !std::mem::replace(&mut self.checks_texts, true);
        }
        match error.input.as_deref().filter(|_| raw.on_bad_file == OnBad::Quarantine) {
            Some(input) => self.files.insert(input.clone(), error.to_string()).is_none(),
            None => false,
        }
    }
}

/// The table that inputs are folded onto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onto {
    /// The committed table of earlier runs.
    Table,
    /// An empty table beside the committed one.
    Empty {
        /// Whether to continue without inputs that were folded and cannot be read any more.
        accept_missing: bool,
    },
}

/// Staging: its inputs and folders.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The limits of memory, disk and threads.
    pub resources: &'a Resources,
    /// The engine's memory pool and disk.
    pub runtime: &'a Arc<RuntimeEnv>,
    /// The raw folders.
    pub raw: &'a [Folder],
    /// The ledger of earlier runs.
    pub ledger: &'a Ledger,
    /// The table that inputs are folded onto.
    pub onto: Onto,
    /// The curated table.
    pub table: &'a Folder,
    /// The folder for the curated table's new files.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The committed files of versions in it, and their sizes.
    pub committed_versions: Vec<(String, u64)>,
    /// The committed files of the balance in it, and their sizes.
    pub committed_balance: Vec<(String, u64)>,
    /// The folder for new files of versions.
    pub versions: &'a Folder,
    /// The attempt's name, part of every path that is written.
    pub attempt: &'a str,
    /// Truncates by hand that the table has no account of yet; from empty, all of them.
    pub truncates: &'a [DateTime<Utc>],
    /// What is done with forgotten keys.
    pub forgetting: &'a Forgetting,
    /// Whether the result will not be committed; then `raw.max_bad_rows` does not apply.
    pub is_dry: bool,
}

/// The result of staging.
#[derive(Debug)]
pub(crate) struct Staged {
    /// The inputs that could be opened.
    pub changes: Arc<Changes>,
    /// The inputs that could not be opened, and why.
    pub bad_files: Vec<(Input, String)>,
    /// The rows that could not be folded.
    pub bad_rows: Arc<BadRows>,
    /// The staged files; `None` if no input could be opened.
    pub curated: Option<Curated>,
}

impl Stage<'_> {
    fn is_from_empty(&self) -> bool {
        self.onto != Onto::Table
    }

    /// The contract by which the table was begun, up to its rebuild.
    fn begun(&self) -> Option<&TableContract> {
        self.ledger.contract.as_ref().filter(|_| !self.is_from_empty() || self.is_dry)
    }

    /// Whether only changes that alter the row count: not in a history that was begun when each change made a row.
    fn compares_rows(&self) -> bool {
        let keeps_changes = self.pipeline.keep.keeps_changes();
        keeps_changes && self.begun().is_none_or(TableContract::compares_rows)
    }

    /// The columns that the table has besides those of the query.
    fn own_columns(&self) -> &'static [&'static str] {
        let keep = self.pipeline.keep;
        self.begun().map_or(keep.own_columns(), |contract| contract.own_columns(keep))
    }

    fn accepts_missing(&self) -> bool {
        let accepts = Onto::Empty { accept_missing: true };
        self.onto == accepts
    }

    /// Stages the inputs and fills in the report. `bad` are inputs that were found to be bad after
    /// others had been folded.
    ///
    /// # Errors
    /// Those of the steps; with [`Error::input`] if a single input is the cause, which a retry can
    /// leave out.
    pub(crate) async fn run(
        &self,
        inputs: &[Input],
        bad: &mut BadInputs,
        report: &mut Report,
    ) -> Result<Staged> {
        self.log_inputs(inputs, report);
        let known = match &self.ledger.contract {
            Some(contract) if !self.is_from_empty() => contract.known_columns()?,
            _ => KnownColumns::default(),
        };
        let (changes, bad_files) = self.open(inputs, &known, bad).await?;
        self.check_readable(&bad_files)?;
        report.rows_of_other_tables = changes.other_rows();
        if !changes.is_blank() {
            log_columns(&changes, report);
        }
        if let Some(remark) = changes.missing_table() {
            info!("{remark}");
            report.note.get_or_insert(remark);
        }
        self.note_empty_loads(&changes, report);
        if self.is_from_empty() {
            check_not_empty(&changes, &bad_files)?;
        }
        report.rows_read = changes.row_counts().sum();
        report.rows_ignored = changes.rows_ignored();
        let has_changes =
            !changes.is_empty() || !self.truncates.is_empty() || self.forgetting.removes();
        if !has_changes || changes.is_blank() {
            let bad_rows = changes.bad_rows();
            report.rows_forgotten = changes.bad_rows_forgotten();
            report.rows_rejected = bad_rows.count();
            return Ok(Staged { changes, bad_files, bad_rows, curated: None });
        }
        let (bad_rows, curated) = self.fold(&changes, report).await?;
        Ok(Staged { changes, bad_files, bad_rows, curated: Some(curated) })
    }

    /// Folds changes, and stages the files of the table and the versions. Returns the rows that could
    /// not be folded too.
    async fn fold(
        &self,
        changes: &Arc<Changes>,
        report: &mut Report,
    ) -> Result<(Arc<BadRows>, Curated)> {
        let pipeline = self.pipeline;
        let threads = self.resources.threads;
        let cached = MemoryConsumer::new("inputs").register(&self.runtime.memory_pool);
        cached.grow(changes.cached_bytes() + self.forgetting.keys.bytes());
        let context = session(self.runtime, threads);
        if changes.has_transactions() {
            changes.set_key_swaps(key_swaps(&context, changes, threads).await?);
        }
        let folded = fold(&context, changes, pipeline, threads).await?;
        if !self.accepts_missing() && !self.forgetting.recalls {
            self.check_still_readable(changes, &folded.pass_one)?;
        }
        let backwards = count_backwards(changes, &folded.pass_one, threads).await?;
        if backwards.rows > 0 {
            warn!("{}", describe_backwards(pipeline, backwards));
        }
        info!(
            "pass one: {} rows, {} keys, {} keys and days",
            report.rows_read, folded.keys, folded.key_days
        );
        let curated = self.curate(changes, &folded).run(&context).await?;
        self.note_not_read(&curated, report);
        note_types(&curated, report);
        note_hidden_folders(pipeline, report);
        debug!(
            "pass two: {} files of {} partitions staged, {} files with versions",
            curated.staged.len(),
            curated.partitions.len(),
            curated.versions.len()
        );
        fill_in(report, pipeline, &folded, &curated);
        check_conservation(report, &folded.pass_one)?;
        Ok((Arc::clone(folded.pass_one.bad_rows()), curated))
    }

    /// Makes the table again from its own rows, which are in a folder.
    ///
    /// # Errors
    /// Those of [`Curate::remake`].
    pub(crate) async fn remake(
        &self,
        published: &Folder,
        contract: &TableContract,
    ) -> Result<FromTable> {
        let threads = self.resources.threads;
        let known = contract.known_columns()?;
        let (changes, _) = self.open(&[], &known, &mut BadInputs::default()).await?;
        let context = session(self.runtime, threads);
        let folded = fold(&context, &changes, self.pipeline, threads).await?;
        self.curate(&changes, &folded).remake(&context, published, contract).await
    }

    /// Pass two of changes.
    fn curate<'a>(&'a self, changes: &'a Arc<Changes>, folded: &'a Fold) -> Curate<'a> {
        Curate {
            pipeline: self.pipeline,
            changes,
            folded,
            earlier: (!self.is_from_empty()).then_some(self.ledger),
            compares_rows: self.compares_rows(),
            own_columns: self.own_columns(),
            unrecorded: self.begun().map_or(&[], |contract| &contract.unrecorded),
            raw: self,
            table: self.table,
            staging: self.staging,
            state: self.state,
            committed_versions: self.committed_versions.clone(),
            committed_balance: self.committed_balance.clone(),
            forgetting: Some(self.forgetting).filter(|forgetting| forgetting.removes()),
            versions: self.versions,
            attempt: self.attempt,
            threads: self.resources.threads,
        }
    }

    /// Notes full loads without rows, which have no time and end nothing. Files beside one that has rows are of that load.
    fn note_empty_loads(&self, changes: &Changes, report: &mut Report) {
        if !self.pipeline.raw.full_loads.at.is_time() {
            return;
        }
        let folder = |input: &Input| (input.file.location, parent(&input.file.path).to_string());
        let loads = || changes.inputs().filter(|input| input.full_load);
        let with_rows: BTreeSet<_> =
            loads().filter(|input| input.file.load.is_some()).map(folder).collect();
        let mut empty = loads().filter(|input| !with_rows.contains(&folder(input)));
        let Some(first) = empty.next() else { return };
        let note = format!(
            "{} files of full loads have no rows, such as {}: they end nothing",
            1 + empty.count(),
            self.raw[first.file.location].describe(&first.file.path)
        );
        report.note = one_note(report.note.take().into_iter().chain([note]));
    }

    /// Notes raw files that were to be read again, and are missing.
    fn note_not_read(&self, curated: &Curated, report: &mut Report) {
        let mut files = curated.not_read.iter();
        let Some((location, path)) = files.next() else { return };
        let note = format!(
            "{} raw files are missing, or were written over, such as {}: changes of them got rows of their own, which have the values \
             of an earlier change in the columns that `history_columns` does not name",
            curated.not_read.len(),
            self.raw[*location].describe(path)
        );
        warn!("{note}");
        report.note.get_or_insert(note);
    }

    /// Opens raw files that earlier runs have folded, without those that are missing.
    async fn open_again(&self, files: Vec<(usize, String)>) -> Result<Arc<Changes>> {
        let loads = self.ledger.timed_loads();
        let mut inputs = Vec::new();
        for (location, path) in files {
            let folder = &self.raw[location];
            let object = match folder.store.head(&parse_path(&path)?).await {
                Err(object_store::Error::NotFound { .. }) => continue,
                object => object.map_err(|error| {
                    Error::store(format!("read {}", folder.describe(&path)), error)
                })?,
            };
            let is_file = |load: &&RawFile| (load.location, &load.path) == (location, &path);
            let load = loads.iter().find(is_file).and_then(|file| file.load.clone());
            let full_load = self.pipeline.raw.is_full_load(location, &path);
            let file = RawFile { load, ..RawFile::new(location, path, object) };
            inputs.push(Input { file, full_load, late: false, rows: None, only: None });
        }
        let known = match &self.ledger.contract {
            Some(contract) => contract.known_columns()?,
            None => KnownColumns::default(),
        };
        let bad_rows = Arc::new(BadRows::new(u64::MAX));
        let opening = Opening {
            loads: EarlierLoads { files: &loads, is_from_empty: false },
            ..Opening::new(self.raw, &self.pipeline.raw, self.resources, self.runtime, &bad_rows)
        };
        let (changes, unopened) =
            Changes::open(inputs, opening, self.pipeline, &known, BATCH_ROWS).await?;
        match unopened.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(Arc::new(changes)),
        }
    }

    /// Counts the inputs in the report, and logs them.
    fn log_inputs(&self, inputs: &[Input], report: &mut Report) {
        report.files = inputs.len() as u64;
        report.late_files = inputs.iter().filter(|input| input.late).count() as u64;
        report.bytes = inputs.iter().map(|input| input.file.size).sum();
        info!("{} files, {} of them late, {} bytes", report.files, report.late_files, report.bytes);
        for Input { file, late, .. } in inputs {
            debug!(
                "reading {}: {} bytes{}",
                self.raw[file.location].describe(&file.path),
                file.size,
                if *late { ", late" } else { "" }
            );
        }
    }

    /// Opens inputs. Returns those that cannot be read too, and why.
    async fn open(
        &self,
        inputs: &[Input],
        known: &KnownColumns,
        bad: &mut BadInputs,
    ) -> Result<(Arc<Changes>, Vec<(Input, String)>)> {
        let (pipeline, resources) = (self.pipeline, self.resources);
        let has_times = pipeline.raw.full_loads.at.is_time();
        let loads = if has_times { self.ledger.timed_loads() } else { Vec::new() };
        loop {
            let bad_rows = Arc::new(BadRows::new(match (pipeline.raw.on_bad_row, self.is_dry) {
                (OnBad::Fail, _) => 0,
                (OnBad::Quarantine, true) => u64::MAX,
                (OnBad::Quarantine, false) => pipeline.raw.max_bad_rows + self.known_bad(inputs),
            }));
            let opening = Opening {
                checks_texts: bad.checks_texts,
                loads: EarlierLoads { files: &loads, is_from_empty: self.is_from_empty() },
                ..Opening::new(self.raw, &pipeline.raw, resources, self.runtime, &bad_rows)
            };
            let (mut good, mut bad_files) = (Vec::new(), Vec::new());
            for input in inputs {
                match bad.files.get(&(input.file.location, input.file.path.clone())) {
                    Some(reason) => bad_files.push((input.clone(), reason.clone())),
                    None => good.push(self.known(input)),
                }
            }
            let (mut changes, unopened) =
                Changes::open(good, opening, pipeline, known, BATCH_ROWS).await?;
            if !changes.is_blank() {
                changes.add_truncates_by_hand(self.truncates)?;
            }
            changes.leave_out(&self.forgetting.keys, pipeline)?;
            let changes = Arc::new(changes);
            bad_files.extend(unopened.into_iter().map(|(input, error)| (input, error.to_string())));
            if bad.files.is_empty() {
                return Ok((changes, bad_files));
            }
            // If one input is damaged, others may be too: all of them are found at once.
            let mut damaged = changes.find_damaged(resources.threads).await?;
            // A folded input may be damaged in columns that are not read.
            damaged.retain(|(input, _)| self.ledger.folded(input.location, &input.path).is_none());
            if damaged.is_empty() {
                return Ok((changes, bad_files));
            }
            for (input, error) in damaged {
                bad.files.insert((input.location, input.path), error.to_string());
            }
        }
    }

    /// An input as it is opened: from empty, full loads are given their times again.
    fn known(&self, input: &Input) -> Input {
        let mut input = input.clone();
        input.file.load = input.file.load.take().filter(|_| !self.is_from_empty());
        input
    }

    /// The number of these inputs' rows that are in quarantine already, which are not counted as bad
    /// again.
    fn known_bad(&self, inputs: &[Input]) -> u64 {
        let quarantined = inputs.iter().filter_map(|input| {
            let name = (input.file.location, input.file.path.clone());
            self.ledger.quarantined.get(&name)?.rows.as_ref()
        });
        quarantined.map(|rows| rows.len() as u64).sum()
    }

    /// Refuses to continue without an input that was folded, or a file of a full load that has a time: its rows would end.
    /// What earlier versions have put into quarantine stays there.
    fn check_readable(&self, bad_files: &[(Input, String)]) -> Result<()> {
        let has_times = self.pipeline.raw.full_loads.at.is_time();
        let is_new_load = |(input, _): &&(Input, String)| {
            let file = &input.file;
            let is_known = self.ledger.is_quarantined(file.location, &file.path);
            has_times && input.full_load && !is_known
        };
        if let Some((_, reason)) = bad_files.iter().find(is_new_load) {
            let message = format!("a file of a full load cannot be read: {reason}");
            return Err(Error::data(message).hint(
                "a full load that has a time ends the rows that it lacks, so no file of it can be quarantined: mend the \
                 file, or write the load again",
            ));
        }
        let was_folded = |(input, _): &&(Input, String)| {
            let folded = self.ledger.folded(input.file.location, &input.file.path);
            // A window of rows may have excluded the bad rows.
            let is_whole = self.is_from_empty() || input.rows.is_none();
            folded.is_some() && !self.accepts_missing() && is_whole
        };
        match bad_files.iter().find(was_folded) {
            None => Ok(()),
            Some((_, reason)) => {
                let message = "an input that was folded cannot be read any more";
                Err(lost(format!("{message}: {reason}"), self.is_from_empty()))
            }
        }
    }

    /// Refuses bad rows that an earlier run folded: they would stay in the table, or be lost by a
    /// rebuild.
    fn check_still_readable(&self, changes: &Changes, pass_one: &PassOne) -> Result<()> {
        let ledger = self.ledger;
        let bad_rows = pass_one.bad_rows().sorted();
        for (number, input) in changes.inputs().enumerate() {
            // A window of rows may have excluded the bad rows.
            let is_whole = input.rows.is_none() && input.only.is_none();
            let Some(bad) = bad_rows.get(&number).filter(|_| is_whole) else {
                continue;
            };
            let (location, path) = (input.file.location, &input.file.path);
            let is_local = self.raw[location].location.file_path().is_some();
            let folded = ledger.folded(location, path);
            if !folded.is_some_and(|folded| folded.is_same(&input.file, is_local)) {
                continue;
            }
            let quarantined = ledger.quarantined.get(&(location, path.clone()));
            let known = quarantined.and_then(|input| input.rows.as_deref());
            // A text that had not been read belonged to a row that is not the last of its key.
            let is_new = |bad: &&BadRow| {
                bad.reason != NOT_UTF8 && known.is_none_or(|known| !known.contains(&bad.row))
            };
            if let Some(first) = bad.iter().find(is_new) {
                let why = first.to_error(&self.raw[location].describe(path));
                let message = format!("a row that was folded cannot be read any more: {why}");
                let lost = lost(message, self.is_from_empty());
                let hint = lost.hint.clone().unwrap_or_default();
                return Err(lost.hint(format!("{}; or {hint}", first.hint)));
            }
        }
        Ok(())
    }
}

/// Logs how columns changed and which are missing, and notes it in the report.
/// Checks that inputs that are folded onto an empty table have rows: a table is not emptied because
/// its raw files were damaged.
fn check_not_empty(changes: &Changes, bad_files: &[(Input, String)]) -> Result<()> {
    if changes.is_empty() {
        let why = match bad_files.first() {
            Some((_, first)) => format!("no input can be read any more; the first: {first}"),
            None => "all inputs are empty".into(),
        };
        return Err(Error::data(why).hint("nothing was changed: repair the raw files"));
    }
    if changes.is_blank() {
        return Err(Error::data("no input has a row that can be read")
            .hint("nothing was changed: there is nothing to fold, or the raw files are damaged"));
    }
    Ok(())
}

fn log_columns(changes: &Changes, report: &mut Report) {
    report.schema_changes = changes.schema_changes().to_vec();
    for change in &report.schema_changes {
        info!("schema change: {change}");
    }
    for warning in changes.missing_columns() {
        warn!("{warning}");
    }
    if changes.has_times_of_files() {
        let warning = "the changes have no commit time but that of their file: of the changes of a key in a file, only \
                       the last one has a row of the history; name a column in `raw.commit_time`";
        warn!("{warning}");
        report.note.get_or_insert(warning.into());
    }
    if let Some(column) = changes.missing_before_image() {
        let warning =
            format!("no CDC file has the column `{column}`: key updates cannot be detected");
        warn!("{warning}");
        report.note.get_or_insert(warning);
    }
}

/// Warns of columns that have only nulls so far, and of those that have a type now, and notes it in
/// the report.
fn note_types(curated: &Curated, report: &mut Report) {
    let quoted = |names: &[String]| format!("`{}`", names.join("`, `"));
    let mut notes = Vec::new();
    if !curated.untyped.is_empty() {
        notes.push(format!(
            "columns with only nulls so far, stored as text until they have values: {}; to decide \
             their types now, set them in `[raw.columns]`",
            quoted(&curated.untyped)
        ));
    }
    if !curated.retyped.is_empty() {
        notes.push(format!(
            "columns with only nulls before, stored as text, that have another type from now on: \
             {}; all files of the table are written again",
            quoted(&curated.retyped)
        ));
    }
    for note in notes {
        warn!("{note}");
        report.note.get_or_insert(note);
    }
}

/// Warns of a partition column whose folders some readers ignore.
fn note_hidden_folders(pipeline: &Pipeline, report: &mut Report) {
    let mut partitions = pipeline.curated.partition_by.iter();
    if pipeline.curated.format == Format::Parquet
        && let Some(name) = partitions.find(|name| name.starts_with(['_', '.']))
    {
        let note = format!(
            "the folders of the partition column `{name}` begin like hidden ones, which Hive and \
             Athena ignore: give it another name in curated.sql"
        );
        warn!("{note}");
        report.note.get_or_insert(note);
    }
}

impl ReopenRaw for Stage<'_> {
    fn reopen(&self, files: Vec<(usize, String)>) -> BoxFuture<'_, Result<Arc<Changes>>> {
        self.open_again(files).boxed()
    }
}

/// The error for an input or row that an earlier run folded and this run cannot read.
fn lost(message: String, is_from_empty: bool) -> Error {
    let hint = if is_from_empty {
        "undo the change of the file or the pipeline, or continue without it: \
         glueless rebuild --accept-missing"
    } else {
        "undo the change of the file or the pipeline; `glueless rebuild --accept-missing` \
         rebuilds the tables without it"
    };
    Error::data(message).hint(hint)
}

/// The warning about changes that go backwards.
fn describe_backwards(pipeline: &Pipeline, backwards: Backwards) -> String {
    let Backwards { rows, files } = backwards;
    let columns: Vec<String> =
        pipeline.raw.order_by.iter().map(|name| format!("`{name}`")).collect();
    let columns = columns.join(", ");
    format!(
        "{columns} goes backwards from file to file: {rows} rows, in {files} files, are before rows of \
         older files; if it is not the commit time or a sequence of the log, leave `raw.order_by` out: \
         changes are then ordered by file and row"
    )
}

/// Fills in the report's counts.
fn fill_in(report: &mut Report, pipeline: &Pipeline, folded: &Fold, curated: &Curated) {
    let is_ordered_by_files = pipeline.raw.is_ordered_by_files();
    let pass_one = &folded.pass_one;
    let (winners, ties) = match pipeline.keep {
        Keep::LatestPerDay => (folded.key_days, folded.day_ties),
        Keep::Latest | Keep::LatestAndDeleted | Keep::LatestAltered | Keep::History => {
            (folded.keys, folded.ties)
        }
    };
    report.rows_outside = pass_one.rows_outside();
    report.rows_stale = curated.stale;
    let superseded = pass_one.rows_folded().saturating_sub(winners) + curated.superseded;
    report.rows_superseded = superseded + curated.stale;
    report.rows_latest = curated.counts.rows_latest;
    report.rows_deleted = curated.counts.rows_deleted;
    report.rows_rejected = pass_one.bad_rows().count();
    report.key_moves = pass_one.key_moves();
    report.rows_ignored += pass_one.rows_ignored();
    report.rows_forgotten = pass_one.rows_forgotten();
    report.truncates = pass_one.truncates();
    // Where file and row are the order, they decide no tie.
    report.ties = if is_ordered_by_files { 0 } else { ties + curated.ties };
    report.bytes_changed = curated.bytes_changed;
    report.newest_commit_time = report.newest_commit_time.max(pass_one.newest_commit_time());
}

/// Checks that the run adds up before anything is published: every row that was read is counted once.
/// What was written is checked in [`Curate::run`].
fn check_conservation(report: &Report, pass_one: &PassOne) -> Result<()> {
    let counted = report.rows_latest
        + report.rows_superseded
        + report.rows_deleted
        + report.rows_rejected
        + report.rows_outside
        + report.rows_ignored
        + report.rows_forgotten
        + report.truncates;
    let sums = [
        ("rows read", report.rows_read + report.key_moves, counted),
        (
            "rows folded",
            report.rows_read + report.key_moves,
            pass_one.rows_folded()
                + report.rows_outside
                + report.rows_rejected
                + report.rows_ignored
                + report.rows_forgotten
                + report.truncates,
        ),
    ];
    match sums.into_iter().find(|(_, one, other)| one != other) {
        None => Ok(()),
        Some((what, one, other)) => Err(does_not_add_up(what, one, other)),
    }
}
