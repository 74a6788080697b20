//! The run, top to bottom.
//!
//! ```text
//! window ─▶ discover ─▶ open ─▶ fold ─▶ curate ─▶ check ─▶ commit ─▶ publish ─▶ aggregate ─▶ report
//! ```
//!
//! Up to the commit nothing that was published changes: files go to staging and to the state
//! folder under the attempt's own name, and a failed attempt takes them away again. The commit
//! remembers the run; publishing then swaps exactly the planned partitions. An attempt announces
//! itself before its commit, so that the next command finishes the publishing of one that was
//! interrupted.
//!
//! Where another run commits first, the attempt is dead: it is taken away, and the run folds
//! again on top of what the other one left, a few times.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::aggregate::{self, column_types};
use crate::changes::Changes;
use crate::config::{Format, Keep, OnBad, Pipeline};
use crate::curate::{Curate, Curated, adds_up};
use crate::delta_log::LOG_FOLDER;
use crate::delta_table::{self, Committed, CuratedLog};
use crate::discover::{self, Input, RawFile, Recorded};
use crate::error::{Error, Kind, Result};
use crate::fold::{Fold, fold};
use crate::key_moves::exchanges;
use crate::layout::{attempt_commit, attempt_name, base_name, part_file_commit, staging_name};
use crate::ledger::{CURATED, Command, Identity, Ledger, Record, Run, Shape, write_types};
use crate::publish::{self, Names, Owner, Plan, TableFile};
use crate::report::{AggregateReport, Report};
use crate::schema_changes::KnownColumns;
use crate::session::{Resources, SpillFolder, join, runtime, session};
use crate::state::{NewVersions, NotCommitted, State};
use crate::store::{Folder, Stores};
use crate::versions_writer::DayCounts;
use crate::window::Window;
use bad_input::{BadInputs, released};

mod bad_input;

/// How often a run tries to commit.
const TRIES: u32 = 6;
/// How long a run waits before it tries again; twice as long each time, more or less.
const WAIT: Duration = Duration::from_millis(200);

/// What a run is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Curate a window, then aggregate.
    Run(Window),
    /// The curated table only.
    Curate(Window),
    /// The aggregates only.
    Aggregate(Window),
    /// The inputs of which something was put aside.
    CatchUp,
    /// Everything again, from the raw files that were folded so far.
    Rebuild {
        /// Whether to go on without those that are not there any more.
        accept_missing: bool,
    },
}

/// One run: everything it needs is handed to it.
#[derive(Debug)]
pub struct Request<'a> {
    /// What to do.
    pub task: Task,
    /// The checked pipeline.
    pub pipeline: &'a Pipeline,
    /// Unique, and growing with time.
    pub run_id: &'a str,
    /// The time of the run, for file times.
    pub now: DateTime<Utc>,
    /// Opens locations.
    pub stores: &'a Stores,
    /// What the run may use.
    pub resources: &'a Resources,
}

/// A table that the pipeline writes.
struct Output {
    name: String,
    setting: String,
    folder: Folder,
    staging: Folder,
    owner: Owner,
    is_marked: bool,
}

/// Does the run. It is boxed to be compiled here, and not again in every program that calls it.
///
/// # Errors
/// See [`crate::error::Kind`]. Nothing that was published changes unless the run was committed.
pub fn run<'a>(request: &'a Request<'_>) -> LocalBoxFuture<'a, Result<Report>> {
    do_run(request).boxed_local()
}

async fn do_run(request: &Request<'_>) -> Result<Report> {
    let Request { pipeline, task, .. } = request;
    let limit = request.resources;
    let window = match task {
        Task::Run(window) | Task::Curate(window) | Task::Aggregate(window) => *window,
        Task::CatchUp | Task::Rebuild { .. } => {
            let state = State::open(request.stores, pipeline).await?;
            let windows = state.ledger.folded_windows().into_iter();
            let hull = windows.reduce(|hull, window| hull.hull(&window));
            let (what, has_any) = match task {
                Task::CatchUp => ("catch up with", true),
                _ => ("rebuild", state.ledger.shape.is_some()),
            };
            hull.filter(|_| has_any).ok_or_else(|| {
                Error::usage(format!(
                    "there is nothing to {what}: no run has folded anything yet"
                ))
                .hint("fold a window first: glueless run")
            })?
        }
    };
    let spill_max = match limit.spill_bytes_max {
        u64::MAX => String::new(),
        bytes => format!(", at most {bytes} bytes"),
    };
    info!(
        "pipeline {}: window {window}, memory limit {} MB, {} threads, spill to {}{spill_max}",
        pipeline.name,
        limit.memory_bytes / 1_000_000,
        limit.threads,
        limit.spill_dir.display()
    );
    // Dropped after what spills to it.
    let spill = SpillFolder::create(&limit.spill_dir, request.run_id)?;
    let job = Job {
        request,
        window,
        runtime: runtime(limit, &spill)?,
        outputs: open_outputs(request).await?,
        announced: request.stores.open(&pipeline.state.join("publishing"))?,
        quarantine: request.stores.open(&pipeline.state.join("quarantine"))?,
    };
    let mut report = Report {
        pipeline: pipeline.name.clone(),
        run_id: request.run_id.to_string(),
        start: window.start,
        end: window.end,
        ..Default::default()
    };
    let steps: &[Command] = match task {
        Task::Run(_) => &[Command::Curate, Command::Aggregate],
        Task::Curate(_) => &[Command::Curate],
        Task::Aggregate(_) => &[Command::Aggregate],
        Task::CatchUp => &[Command::CatchUp, Command::Aggregate],
        Task::Rebuild { .. } => &[Command::Rebuild, Command::Aggregate],
    };
    for step in steps {
        let has_nothing = matches!(task, Task::CatchUp) && report.files == 0;
        if *step != Command::Aggregate || !has_nothing {
            job.step(*step, &mut report).await?;
        }
    }
    Ok(report)
}

/// A run, opened.
struct Job<'a> {
    request: &'a Request<'a>,
    window: Window,
    runtime: Arc<RuntimeEnv>,
    outputs: Vec<Output>,
    announced: Folder,
    /// Where rows and files are put aside.
    quarantine: Folder,
}

/// One try at a commit.
struct Attempt {
    state: State,
    /// The id under which the ledger knows it.
    run_id: String,
    /// The number of its commit.
    commit: u64,
    /// Its name, part of every path.
    name: String,
    report: Report,
    /// What the curated table's folder holds, looked up while the run folds.
    found: Option<JoinHandle<Result<Vec<String>>>>,
}

impl Job<'_> {
    /// Does one step of the run, again where another run was faster.
    async fn step(&self, command: Command, report: &mut Report) -> Result<()> {
        let Request {
            pipeline, stores, ..
        } = self.request;
        let run_id = match command {
            Command::Aggregate => format!("{}-aggregate", self.request.run_id),
            _ => self.request.run_id.to_string(),
        };
        let mut tries = 1;
        let mut bad = BadInputs::new();
        loop {
            let mut state = State::open(stores, pipeline).await?;
            match command {
                Command::Rebuild => check_format(&state, pipeline)?,
                _ => {
                    check_identity(&state, pipeline)?;
                    state.check_known()?;
                }
            }
            self.check_not_lost(&mut state).await?;
            let last = state.last_commit();
            if let Err(error) = self.finish_interrupted(&state).await {
                // Another run may have finished it, and gone on.
                let is_behind = state.refresh().await.is_ok() && state.last_commit() > last;
                if is_behind && tries < TRIES {
                    tries += 1;
                    continue;
                }
                if command != Command::Rebuild {
                    return Err(error);
                }
                warn!("what an earlier run has not published is made again: {error}");
            }
            let commit = state.next_commit();
            let mut attempt = Attempt {
                state,
                name: attempt_name(commit, &run_id),
                run_id: run_id.clone(),
                commit,
                report: report.clone(),
                found: None,
            };
            let done = match self.check_not_changed(command, &attempt.state).await {
                Err(error) => Err(error.into()),
                Ok(()) if command == Command::Aggregate => self.aggregate(&mut attempt).await,
                Ok(()) => self.curate(command, &mut attempt, &mut bad).await,
            };
            let failed = match done {
                Ok(()) => {
                    *report = attempt.report;
                    return Ok(());
                }
                Err(failed) if failed.in_doubt => return Err(failed.error),
                Err(failed) => failed.error,
            };
            // What fails after another run's commit may fail because of it.
            let refreshed = attempt.state.refresh().await;
            let is_behind = refreshed.is_ok() && attempt.state.last_commit() >= commit;
            self.discard(&attempt).await;
            let puts_aside = pipeline.raw.on_bad_file == OnBad::Quarantine;
            if let Some(input) = failed.input.clone().filter(|_| puts_aside && !is_behind) {
                // It was found to be bad when others had been folded already.
                if bad.insert(*input, failed.to_string()).is_none() {
                    continue;
                }
                return Err(Error::internal("an input that was put aside was read"));
            }
            if !is_behind && failed.kind != Kind::Busy {
                return Err(failed);
            }
            if tries == TRIES {
                let busy = format!("other runs of this pipeline were faster {TRIES} times");
                return Err(Error::busy(busy)
                    .hint("nothing was changed: run again")
                    .caused_by(failed));
            }
            info!("another run was faster: folding again on top of it");
            std::thread::sleep(wait(&attempt.name, tries));
            tries += 1;
        }
    }

    /// Refuses to begin anew where tables of this pipeline are, whose state is gone: nothing would
    /// be known of their rows.
    async fn check_not_lost(&self, state: &mut State) -> Result<()> {
        if state.last_commit() > 0 {
            return Ok(());
        }
        for output in self.outputs.iter().filter(|output| output.name != "state") {
            let files = publish::list(&output.folder).await?;
            let is_ours = |path: &String| {
                path.starts_with(LOG_FOLDER) || part_file_commit(base_name(path)).is_some()
            };
            if !output.is_marked || !files.iter().any(is_ours) {
                continue;
            }
            // A first run may just have ended.
            state.refresh().await?;
            if state.last_commit() == 0 {
                return Err(Error::usage(format!(
                    "{} holds files of this pipeline, but its state {} is gone",
                    output.folder.location, self.request.pipeline.state
                ))
                .hint("restore the state, or empty the folder to begin anew"));
            }
        }
        Ok(())
    }

    /// Refuses to go on where someone else wrote to the curated table's own log.
    async fn check_not_changed(&self, command: Command, state: &State) -> Result<()> {
        if self.request.pipeline.curated.format != Format::Delta {
            return Ok(());
        }
        let table = &self.output(CURATED)?.folder;
        let log = delta_table::open(table, state.last_commit()).await?;
        match self.curated_log(state) {
            Some(curated) if command != Command::Rebuild => curated.check(&log),
            _ => Ok(()),
        }
    }

    /// Takes away what a dead attempt wrote.
    async fn discard(&self, attempt: &Attempt) {
        let mut discarded = vec![attempt.state.discard(&attempt.name).await];
        for output in self.outputs.iter().filter(|output| output.name != "state") {
            discarded.push(publish::discard(&output.staging, &attempt.name).await);
        }
        for folder in [&self.announced, &self.quarantine] {
            discarded.push(publish::discard(folder, &attempt.name).await);
        }
        for left in discarded.into_iter().filter_map(Result::err) {
            warn!("what the failed attempt wrote is left behind: {left}");
        }
    }

    /// Finishes what interrupted runs had committed and not yet published.
    async fn finish_interrupted(&self, state: &State) -> Result<()> {
        let open = publish::list(&self.announced).await?;
        let last = state.last_commit();
        for name in &open {
            let runs = state.ledger.runs.iter();
            let mut runs = runs.filter(|run| attempt_name(run.commit, &run.run_id) == *name);
            let Some(run) = runs.next() else {
                continue;
            };
            warn!("an earlier run has not published all that it made yet: doing that first");
            self.publish(state, run, None).await?;
        }
        // The others cannot commit any more, or have not yet.
        let is_done = |name: &String| attempt_commit(name).is_some_and(|commit| commit <= last);
        publish::remove(&self.announced, open.into_iter().filter(is_done).collect()).await
    }

    fn output(&self, name: &str) -> Result<&Output> {
        let mut outputs = self.outputs.iter();
        outputs
            .find(|output| output.name == name)
            .ok_or_else(|| Error::internal(format!("the table `{name}` was not opened")))
    }

    /// Marks the folders a commit is about to write as this pipeline's.
    async fn claim(&self, plans: &[(String, Plan)]) -> Result<()> {
        for output in &self.outputs {
            let is_written = plans.iter().any(|(name, _)| *name == output.name);
            if !output.is_marked && (output.name == "state" || is_written) {
                output.owner.claim(&output.folder, &output.setting).await?;
            }
        }
        Ok(())
    }

    /// The inputs of the window; with a note of those that are gone.
    async fn inputs(
        &self,
        command: Command,
        folders: &[Folder],
        ledger: &Ledger,
        note: &mut Option<String>,
    ) -> Result<Vec<Input>> {
        let raw = &self.request.pipeline.raw;
        if let Task::Rebuild { accept_missing } = self.request.task
            && command == Command::Rebuild
        {
            let (inputs, gone) = discover::again(folders, raw, ledger).await?;
            if inputs.is_empty() {
                return Err(
                    Error::data("no input is left to rebuild from").hint("put the raw files back")
                );
            }
            // Of one that was put aside as a whole, nothing is lost.
            let was_folded = |file: &&&RawFile| ledger.folded(file.location, &file.path).is_some();
            let gone: Vec<&RawFile> = gone.iter().filter(was_folded).copied().collect();
            let Some(first) = gone.first() else {
                return Ok(inputs);
            };
            let told = format!(
                "{} inputs that were folded are gone, such as {}",
                gone.len(),
                first.path
            );
            if !accept_missing {
                return Err(Error::data(told)
                    .hint("put them back, or rebuild without them: --accept-missing"));
            }
            warn!("{told}: what only they said is lost");
            *note = Some(told);
            return Ok(inputs);
        }
        if command == Command::CatchUp {
            return self.put_aside(folders, ledger, note).await;
        }
        let inputs =
            discover::discover(folders, self.request.pipeline, &self.window, ledger).await?;
        let mut gone = discover::vanished(raw, &self.window, ledger.inputs.values(), &inputs);
        if self.request.pipeline.key.is_empty() {
            // What was folded is not read again, and not missed.
            gone.clear();
        }
        if let Some(first) = gone.first() {
            let told = format!(
                "{} inputs of the window that were folded earlier are gone, such as {}: nothing of them is lost",
                gone.len(),
                first.path
            );
            warn!("{told}");
            *note = Some(told);
        }
        Ok(inputs)
    }

    async fn curate(
        &self,
        command: Command,
        attempt: &mut Attempt,
        bad: &mut BadInputs,
    ) -> Result<(), NotCommitted> {
        let pipeline = self.request.pipeline;
        let threads = self.request.resources.threads;
        let folders = pipeline
            .raw
            .urls
            .iter()
            .map(|url| self.request.stores.open(url))
            .collect::<Result<Vec<_>>>()?;
        let ledger = &attempt.state.ledger;
        let report = &mut attempt.report;
        let inputs = self
            .inputs(command, &folders, ledger, &mut report.note)
            .await?;
        let is_rebuild = command == Command::Rebuild;
        let is_new = |input: &Input| {
            is_rebuild
                || command == Command::CatchUp
                || ledger
                    .folded(input.file.location, &input.file.path)
                    .is_none()
        };
        if !inputs
            .iter()
            .any(|input| !input.full_load && !input.late || is_new(input))
        {
            if command == Command::CatchUp {
                report.note.get_or_insert("nothing is in quarantine".into());
                let released = released(ledger, &inputs);
                if released.is_empty() {
                    return Ok(());
                }
                return self
                    .commit_and_publish(attempt, command, released, None, vec![], &[])
                    .await;
            }
            info!("no inputs in the window {}", self.window);
            report.note.get_or_insert("no inputs in the window".into());
            // What appears in this window from now on is late.
            return self
                .commit_and_publish(attempt, Command::Curate, vec![], None, vec![], &[])
                .await;
        }
        report.files = inputs.len() as u64;
        report.late_files = inputs.iter().filter(|input| input.late).count() as u64;
        report.bytes = inputs.iter().map(|input| input.file.size).sum();
        info!(
            "{} files, {} of them late, {} bytes",
            report.files, report.late_files, report.bytes
        );

        let table = self.output(CURATED)?;
        let folder = table.folder.clone();
        let found = async move { publish::list_tidied(&folder).await };
        attempt.found = Some(tokio::spawn(found));

        let known = match ledger.shape.as_ref().filter(|_| !is_rebuild) {
            Some(shape) => shape.known_columns()?,
            None => KnownColumns::default(),
        };
        let (changes, bad_files) = self.open(&inputs, &folders, &known, ledger, bad).await?;
        let accepts_missing = is_rebuild
            && self.request.task
                == (Task::Rebuild {
                    accept_missing: true,
                });
        let was_folded = |(input, _): &&(Input, String)| {
            let folded = ledger.folded(input.file.location, &input.file.path);
            // Windows of rows may have left out what is bad of it.
            folded.is_some() && !accepts_missing && (is_rebuild || input.rows.is_none())
        };
        if let Some((_, reason)) = bad_files.iter().find(was_folded) {
            let told = "an input that was folded cannot be read any more";
            return Err(lost(format!("{told}: {reason}"), is_rebuild).into());
        }
        report.schema_changes = changes.schema_changes().to_vec();
        for change in &report.schema_changes {
            info!("schema change: {change}");
        }
        for told in changes.missing() {
            warn!("{told}");
        }
        if let Some(column) = changes.missing_before_image() {
            let told =
                format!("no CDC file has the column `{column}`: updates of the key cannot be seen");
            warn!("{told}");
            report.note.get_or_insert(told);
        }
        if changes.is_empty() && is_rebuild {
            let told = "no input can be read any more";
            return Err(Error::data(format!("{told}, such as {}", bad_files[0].1))
                .hint("nothing was changed: mend the raw files")
                .into());
        }
        if changes.is_empty() {
            let aside =
                self.put_aside_records(command, attempt, &changes, &inputs, &bad_files, &folders);
            let records = aside.await?;
            let note = "all inputs of the window are in quarantine";
            attempt.report.note.get_or_insert(note.into());
            return self
                .commit_and_publish(attempt, command, records, None, vec![], &[])
                .await;
        }
        let kept = MemoryConsumer::new("inputs").register(&self.runtime.memory_pool);
        kept.grow(changes.kept_bytes());
        report.rows_read = changes.row_counts().sum();
        let context = session(&self.runtime, threads);
        if !changes.before_images().is_empty() {
            changes.set_exchanges(exchanges(&context, &changes, threads).await?);
        }
        let folded = fold(&context, &changes, pipeline, threads).await?;
        if !accepts_missing {
            self.check_still_read(&changes, ledger, &folders, is_rebuild)?;
        }
        info!(
            "pass one: {} rows, {} keys, {} keys and days",
            report.rows_read, folded.keys, folded.key_days
        );

        let curate = Curate {
            pipeline,
            changes: &changes,
            folded: &folded,
            earlier: (!is_rebuild).then_some(ledger),
            table: &table.folder,
            staging: &table.staging,
            state: attempt.state.folder(),
            stored: attempt.state.data_files("version"),
            attempt: &attempt.name,
            threads,
        };
        let curated = curate.run(&context).await?;
        fill_in(
            &mut attempt.report,
            pipeline.keep,
            &folded,
            &changes,
            &curated,
        );
        check_conservation(&attempt.report, &changes)?;

        if !matches!(self.request.task, Task::Curate(_)) {
            let context = session(&self.runtime, threads);
            aggregate::check(&context, pipeline, &curated.layout, &curated.columns).await?;
        }

        let before: Vec<TableFile> = ledger.files(CURATED).cloned().collect();
        let is_rebuilt = |partition: &str| is_rebuild || curated.partitions.contains(partition);
        let names = match pipeline.curated.format {
            Format::Parquet => Names::Kept,
            Format::Delta => Names::New,
        };
        let staged = curated.staged.clone();
        let report = &mut attempt.report;
        let plan = publish::plan(staged, &before, is_rebuilt, attempt.commit, names);
        report.rows_written = plan.counts.rows_written;
        report.bytes_written = plan.counts.bytes_written;
        report.bytes_changed = curated.bytes_changed;
        report.partitions_written = plan.counts.partitions_written;
        report.partitions_removed = plan.counts.partitions_removed;

        let mut records = Vec::new();
        let shape = shape(
            pipeline,
            &curated,
            &changes,
            ledger.shape.as_ref().filter(|_| !is_rebuild),
        );
        if is_rebuild || ledger.shape.as_ref() != Some(&shape) {
            records.push(Record::Shape(Box::new(shape)));
        }
        let new = changes.inputs().filter(|input| is_new(input));
        records.extend(new.map(|input| Record::Input(input.file.clone())));
        let versions = NewVersions {
            layout: &curated.layout,
            files: &curated.versions,
            replaced: &curated.replaced_versions,
        };
        let mut days: BTreeSet<i32> = curated.counts.days.clone();
        if is_rebuild {
            let before = ledger.versions.values().flat_map(DayCounts::iter);
            days.extend(before.filter_map(|(day, _)| day));
        }
        let days = days.iter().filter_map(|day| date(*day)).collect();
        let aside =
            self.put_aside_records(command, attempt, &changes, &inputs, &bad_files, &folders);
        records.extend(aside.await?);
        let plans = [(CURATED.to_string(), plan)];
        self.commit_and_publish(attempt, command, records, Some(versions), days, &plans)
            .await?;
        let report = &attempt.report;
        info!(
            "published {} rows in {} partitions, {} partitions removed",
            report.rows_written, report.partitions_written, report.partitions_removed
        );
        Ok(())
    }

    async fn aggregate(&self, attempt: &mut Attempt) -> Result<(), NotCommitted> {
        let pipeline = self.request.pipeline;
        // Of all windows that there were, only what has changed is of interest.
        let window = Some(&self.window).filter(|_| self.request.task != Task::CatchUp);
        if pipeline.aggregates.is_empty() {
            return Ok(());
        }
        let state = &attempt.state;
        let context = session(&self.runtime, self.request.resources.threads);
        let curated = self.output(CURATED)?;
        let store_url = object_store_root(&curated.folder);
        context.register_object_store(&store_url, Arc::clone(&curated.folder.root_store));
        let state_url = object_store_root(state.folder());
        context.register_object_store(&state_url, Arc::clone(&state.folder().root_store));
        if !aggregate::register(&context, state, pipeline, &curated.folder).await? {
            info!("nothing was curated yet: no aggregates");
            let note = &mut attempt.report.note;
            note.get_or_insert("nothing was curated yet".into());
            return Ok(());
        }
        let mut plans = Vec::new();
        for aggregate in &pipeline.aggregates {
            let staging = &self.output(&aggregate.table())?.staging;
            let computed = aggregate::compute(
                &context,
                &state.ledger,
                aggregate,
                window,
                staging,
                &attempt.name,
                attempt.commit,
            )
            .await?;
            attempt.report.aggregates.push(AggregateReport {
                name: aggregate.name.clone(),
                days: computed.days,
                rows_removed: computed.plan.counts.rows_removed,
                rows_inserted: computed.plan.counts.rows_written,
            });
            plans.push((aggregate.table(), computed.plan));
        }
        self.commit_and_publish(attempt, Command::Aggregate, vec![], None, vec![], &plans)
            .await
    }

    /// Announces an attempt, commits it, and carries out the plans of its tables.
    async fn commit_and_publish(
        &self,
        attempt: &mut Attempt,
        command: Command,
        mut records: Vec<Record>,
        versions: Option<NewVersions<'_>>,
        days: Vec<NaiveDate>,
        plans: &[(String, Plan)],
    ) -> Result<(), NotCommitted> {
        let run = Run {
            commit: attempt.commit,
            run_id: attempt.run_id.clone(),
            command,
            start: self.window.start,
            end: self.window.end,
            tables: plans.iter().map(|(name, _)| name.clone()).collect(),
            days,
            counts: attempt.report.counts(),
        };
        records.insert(0, Record::Run(Box::new(run)));
        for (name, plan) in plans {
            records.extend(plan.removes.iter().map(|path| Record::Gone {
                table: name.clone(),
                path: path.clone(),
            }));
            records.extend(plan.added().map(|file| Record::File {
                table: name.clone(),
                file: file.clone(),
            }));
            let staged = plan.added().filter_map(|file| file.staged.clone());
            let staged: Vec<String> = staged.collect();
            self.output(name)?.staging.sync(&staged)?;
        }
        self.claim(plans).await?;
        let found = match attempt.found.take() {
            Some(found) => Some(join(found).await?),
            None => None,
        };
        publish::announce(&self.announced, &attempt.name).await?;
        let state = &mut attempt.state;
        state
            .commit(&attempt.run_id, records, versions, self.request.now)
            .await?;
        let state = &attempt.state;
        if command != Command::Aggregate
            && let Err(error) = self.tidy_quarantine(&state.ledger).await
        {
            warn!("files in quarantine that are no longer used are left behind: {error}");
        }
        let published = match state.ledger.run(&attempt.run_id) {
            Some(run) => self.publish(state, run, found).await,
            None => Err(Error::internal("the run is not in the ledger")),
        };
        let published = match published {
            Ok(()) => publish::clear(&self.announced, attempt.commit).await,
            failed => failed,
        };
        let Err(error) = published else {
            return Ok(());
        };
        // A run that slept finds that another one has published for it, and more since.
        let state = &mut attempt.state;
        if state.refresh().await.is_ok() && state.last_commit() > attempt.commit {
            warn!("another run has published this one's files and gone on: {error}");
            return Ok(());
        }
        Err(NotCommitted {
            error,
            in_doubt: true,
        })
    }

    /// Makes visible what a committed run made. `found` is what the curated table's folder held
    /// before, where that was looked up.
    async fn publish(
        &self,
        state: &State,
        run: &Run,
        mut found: Option<Vec<String>>,
    ) -> Result<()> {
        let attempt = format!("{}/", attempt_name(run.commit, &run.run_id));
        let is_its = |file: &&&TableFile| {
            let staged = file.staged.as_ref();
            staged.is_some_and(|staged| staged.starts_with(&attempt))
        };
        let now = Identity::of(self.request.pipeline);
        let mut stagings = Vec::new();
        for name in &run.tables {
            let Ok(Output {
                folder, staging, ..
            }) = self.output(name)
            else {
                warn!("a run has not published `{name}`, which is gone from the pipeline");
                continue;
            };
            let shape = state.ledger.shape.as_ref();
            let made = shape.map(|shape| shape.identity.table());
            if name == CURATED && made != Some(now.table()) {
                warn!("a run has not published the curated table where it was before");
                continue;
            }
            let files: Vec<&TableFile> = state.ledger.files(name).collect();
            let added: Vec<&TableFile> = files.iter().filter(is_its).copied().collect();
            let found = match found.take_if(|_| name == CURATED) {
                Some(found) => found,
                None => publish::list_tidied(folder).await?,
            };
            match self.curated_log(state).filter(|_| name == CURATED) {
                None => {
                    publish::publish(folder, staging, &added, &files, run.commit, found).await?;
                }
                Some(log) => {
                    let committed = Committed {
                        run_id: &run.run_id,
                        number: run.commit,
                        anew: run.command == Command::Rebuild,
                    };
                    log.publish(staging, &added, committed, found).await?;
                }
            }
            stagings.push(staging);
        }
        // Tables beside each other share their staging folder.
        for staging in stagings {
            publish::clear(staging, run.commit).await?;
        }
        Ok(())
    }

    /// The curated table's own log, where it has one.
    fn curated_log<'a>(&'a self, state: &'a State) -> Option<CuratedLog<'a>> {
        let curated = &self.request.pipeline.curated;
        Some(CuratedLog {
            table: &self.output(CURATED).ok()?.folder,
            shape: state.ledger.shape.as_ref()?,
            files: state.ledger.files(CURATED).collect(),
            retention: curated.retention,
            now: self.request.now,
        })
        .filter(|_| curated.format == Format::Delta)
    }
}

/// What an earlier run has folded, and this one cannot.
fn lost(told: String, is_rebuild: bool) -> Error {
    Error::data(told).hint(match is_rebuild {
        true => {
            "undo the change of the file or of the pipeline, or go on without it: --accept-missing"
        }
        false => {
            "undo the change of the file or of the pipeline; `glueless rebuild --accept-missing` \
             makes the tables again without it"
        }
    })
}

/// How long to wait before the next try: about twice as long each time, and not as long as others
/// do that wait for the same.
fn wait(attempt: &str, tries: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    attempt.hash(&mut hasher);
    let spread = 0.5 + (hasher.finish() % 1000) as f64 / 1000.0;
    (WAIT * 2u32.pow(tries - 1)).mul_f64(spread)
}

/// Refuses a pipeline that is no longer what made its tables.
fn check_identity(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(shape) = &state.ledger.shape else {
        return Ok(());
    };
    let differences = shape.identity.differences(&Identity::of(pipeline));
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the pipeline `{}` is no longer what made its tables: `{}` changed",
        pipeline.name,
        differences.join("`, `")
    ))
    .hint(format!(
        "undo the change, make the tables again with `glueless rebuild`, or use another `name` and \
         `curated.url`; the state is in {}",
        pipeline.state
    )))
}

/// Refuses to make a table again in another format beside what it was.
fn check_format(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(shape) = &state.ledger.shape else {
        return Ok(());
    };
    let now = Identity::of(pipeline);
    let ((url, format), (now_url, now_format)) = (shape.identity.table(), now.table());
    match url == now_url && format != now_format {
        false => Ok(()),
        true => Err(Error::usage(format!(
            "{} cannot become a table of the format `{}`",
            pipeline.curated.url, pipeline.curated.format
        ))
        .hint("give it another `curated.url` as well")),
    }
}

fn shape(
    pipeline: &Pipeline,
    curated: &Curated,
    changes: &Changes,
    earlier: Option<&Shape>,
) -> Shape {
    let mut orders = earlier.map_or_else(Vec::new, |shape| shape.orders.clone());
    for (name, kind) in changes.order_kinds() {
        if !orders.iter().any(|(known, _)| *known == name) {
            orders.push((name, kind));
        }
    }
    let types = |columns: &[(String, arrow::datatypes::DataType)]| {
        write_types(columns.iter().map(|(name, kind)| (name.as_str(), kind)))
    };
    let raw_columns = changes.known_columns();
    Shape {
        identity: Identity::of(pipeline),
        columns: column_types(&curated.columns),
        keys: types(&curated.layout.keys),
        partitions: types(&curated.layout.partitions),
        packed: curated.layout.packed,
        orders,
        raw: types(&raw_columns.all),
        newest: (
            raw_columns.newest.file.clone(),
            types(&raw_columns.newest.columns),
        ),
    }
}

/// Opens the folders of all tables and checks that they are this pipeline's, or free.
async fn open_outputs(request: &Request<'_>) -> Result<Vec<Output>> {
    let Request {
        pipeline, stores, ..
    } = request;
    let mut tables = vec![(
        CURATED.to_string(),
        CURATED.to_string(),
        "curated.url".to_string(),
        &pipeline.curated.url,
    )];
    for aggregate in &pipeline.aggregates {
        let setting = format!("aggregate.{}.url", aggregate.name);
        let name = aggregate.name.clone();
        tables.push((aggregate.table(), name, setting, &aggregate.url));
    }
    let mut outputs = Vec::new();
    for (name, owned_as, setting, location) in tables {
        // Files are renamed or copied from staging, which neither crosses a store.
        let beside = location
            .sibling("_glueless")
            .unwrap_or_else(|| location.join("_glueless"));
        // Pipelines of one name can lie side by side with a state each.
        let own = staging_name(&pipeline.state.to_string());
        let staging = beside.join(&pipeline.name).join("staging").join(&own);
        let staging = stores.open(&staging)?;
        let owner = Owner {
            pipeline: pipeline.name.clone(),
            table: owned_as,
            state: pipeline.state.to_string(),
        };
        let folder = stores.open(location)?;
        let is_marked = owner.check(&folder, &setting).await?;
        outputs.push(Output {
            name,
            setting,
            folder,
            staging,
            owner,
            is_marked,
        });
    }
    // The state folder is owned as well: two pipelines that share it would mix their memories.
    let folder = stores.open(&pipeline.state)?;
    let owner = Owner {
        pipeline: pipeline.name.clone(),
        table: "state".into(),
        state: pipeline.state.to_string(),
    };
    let is_marked = owner.check_marker(&folder, "state.url").await?;
    let staging = folder.clone();
    outputs.push(Output {
        name: "state".into(),
        setting: "state.url".into(),
        folder,
        staging,
        owner,
        is_marked,
    });
    Ok(outputs)
}

fn date(day: i32) -> Option<NaiveDate> {
    NaiveDate::from_ymd_opt(1970, 1, 1)?.checked_add_signed(TimeDelta::days(day.into()))
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

/// The URL under which the engine finds a folder's store.
fn object_store_root(folder: &Folder) -> url::Url {
    let mut url = folder.location.url().clone();
    url.set_path("");
    url
}
