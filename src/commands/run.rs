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

use arrow::datatypes::Field;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::aggregate::{self, column_types};
use crate::changes::Changes;
use crate::commands::open_pipeline::{
    NO_WINDOW, OpenPipeline, RunContext, check_format, check_identity, date, nothing_folded,
    object_store_root, span_of,
};
use crate::commands::task::Task;
use crate::config::{Aggregate, Format, OnBad, Pipeline};
use crate::curate::Curated;
use crate::curate::stage::{BadInputs, Onto, Stage, Staged};
use crate::engine::session::session;
use crate::error::{Error, Kind, Result};
use crate::layout::{aggregate_run_id, attempt_name};
use crate::publish::{self, FileNames};
use crate::raw::discover::{Input, Recorded};
use crate::report::{AggregateReport, Report};
use crate::state::contract::{TableContract, write_types};
use crate::state::identity::Identity;
use crate::state::ledger::{CURATED, Command, Ledger, Record};
use crate::state::{NewVersions, NotCommitted, State};
use crate::store::listing::list_and_prune;
use crate::table::TableFile;
use crate::types::day_counts::DayCounts;
use crate::window::Window;

use inputs::input_record;

mod bad_input;
pub(super) mod inputs;
mod publishing;

/// How often a run tries to commit.
const TRIES: u32 = 6;
/// How long a run waits before it tries again; twice as long each time, more or less.
const WAIT: Duration = Duration::from_millis(200);

/// Does a run. It is boxed to be compiled here, and not again in every program that calls it.
///
/// # Errors
/// See [`crate::error::Kind`]. Nothing that was published changes unless the run was committed.
pub fn run<'a>(run_context: &'a RunContext<'_>, task: Task) -> LocalBoxFuture<'a, Result<Report>> {
    do_run(run_context, task).boxed_local()
}

async fn do_run(run_context: &RunContext<'_>, task: Task) -> Result<Report> {
    let pipeline = run_context.pipeline;
    let window = match task {
        Task::Run(window) | Task::Curate(window) | Task::Aggregate(window) => window,
        Task::CatchUp | Task::Rebuild { .. } => {
            let state = State::open(run_context.stores, pipeline).await?;
            let is_rebuild = task != Task::CatchUp;
            let what = if is_rebuild {
                "rebuild"
            } else {
                "catch up with"
            };
            if is_rebuild && state.ledger.contract.is_none() {
                return Err(nothing_folded(what));
            }
            span_of(&state, what)?
        }
    };
    let limit = run_context.resources;
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
    let open = OpenPipeline::open(run_context, Some(task), window).await?;
    let mut report = Report {
        pipeline: pipeline.name.clone(),
        run_id: run_context.run_id.to_string(),
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
        open.step(*step, &mut report).await?;
    }
    run_context.meter.measure(&mut report);
    Ok(report)
}

/// Finishes what an interrupted run of the pipeline has committed and not published.
///
/// # Errors
/// Those of publishing.
pub fn finish<'a>(run_context: &'a RunContext<'_>) -> LocalBoxFuture<'a, Result<()>> {
    async move {
        let state = State::open(run_context.stores, run_context.pipeline).await?;
        if state.last_commit() == 0 {
            return Ok(());
        }
        check_identity(&state, run_context.pipeline)?;
        let open = OpenPipeline::open(run_context, None, NO_WINDOW).await?;
        match open.is_publishing(&state).await? {
            true => open.finish_interrupted(&state).await,
            false => Ok(()),
        }
    }
    .boxed_local()
}

/// One try at a commit.
pub(super) struct Attempt {
    pub(super) state: State,
    /// The id under which the ledger knows it.
    pub(super) run_id: String,
    /// The number of its commit.
    pub(super) commit: u64,
    /// Its name, part of every path.
    pub(super) name: String,
    pub(super) report: Report,
    /// The windows whose days it aggregates, where they are not its own.
    pub(super) aggregated: Option<Vec<Window>>,
    /// What the curated table's folder holds, looked up while the run folds.
    pub(super) found: Option<JoinHandle<Result<Vec<String>>>>,
}

impl OpenPipeline<'_> {
    /// Does one step of the run, again where another run was faster.
    async fn step(&self, command: Command, report: &mut Report) -> Result<()> {
        let RunContext {
            pipeline, stores, ..
        } = self.run_context;
        let run_id = match command {
            Command::Aggregate => aggregate_run_id(&self.run_context.run_id),
            _ => self.run_context.run_id.to_string(),
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
            report.files_in_quarantine = state.ledger.quarantined.len() as u64;
            if command != Command::Rebuild {
                report.newest_commit_time = state.ledger.newest_commit_time();
            }
            let mut attempt = Attempt {
                state,
                name: attempt_name(commit, &run_id),
                run_id: run_id.clone(),
                commit,
                report: report.clone(),
                aggregated: None,
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

    async fn curate(
        &self,
        command: Command,
        attempt: &mut Attempt,
        bad: &mut BadInputs,
    ) -> Result<(), NotCommitted> {
        let pipeline = self.run_context.pipeline;
        let threads = self.run_context.resources.threads;
        let folders = self.run_context.raw()?;
        let ledger = &attempt.state.ledger;
        let report = &mut attempt.report;
        let found = self.inputs(command, &folders, ledger).await?;
        let (inputs, absent) = (found.inputs, found.absent);
        report.note = found.note;
        let is_rebuild = command == Command::Rebuild;
        let is_new = |input: &Input| {
            let folded = ledger.folded(input.file.location, &input.file.path);
            is_rebuild || folded.is_none()
        };
        if command == Command::CatchUp {
            if inputs.is_empty() {
                return self.catch_up_with_nothing(attempt, absent).await;
            }
        } else if !inputs
            .iter()
            .any(|input| !input.full_load && !input.late || is_new(input))
        {
            info!("no inputs in the window {}", self.window);
            report.note.get_or_insert("no inputs in the window".into());
            // What appears in this window from now on is late.
            return self
                .commit_and_publish(attempt, Command::Curate, absent, None, vec![], &[])
                .await;
        }
        let table = self.output(CURATED)?;
        let folder = table.folder.clone();
        let found = async move { list_and_prune(&folder).await };
        attempt.found = Some(tokio::spawn(found));
        let stage = Stage {
            pipeline,
            resources: self.run_context.resources,
            runtime: &self.runtime,
            raw: &folders,
            ledger,
            onto: match self.task {
                Some(Task::Rebuild { accept_missing }) => Onto::Empty { accept_missing },
                _ => Onto::Table,
            },
            table: &table.folder,
            staging: &table.staging,
            state: attempt.state.folder(),
            committed_versions: attempt.state.data_files("version"),
            versions: attempt.state.folder(),
            attempt: &attempt.name,
            is_dry: false,
        };
        let Staged {
            changes,
            bad_files,
            curated,
        } = stage.run(&inputs, bad, report).await?;
        let Some(curated) = curated else {
            let aside =
                self.quarantine_records(command, attempt, &changes, &inputs, &bad_files, &folders);
            let records = aside.await?;
            let note = "all inputs of the window are in quarantine";
            attempt.report.note.get_or_insert(note.into());
            return self
                .commit_and_publish(attempt, command, records, None, vec![], &[])
                .await;
        };

        if !matches!(self.task, Some(Task::Curate(_))) {
            let context = session(&self.runtime, threads);
            aggregate::check(&context, pipeline, &curated.layout, &curated.columns).await?;
        }

        let before: Vec<TableFile> = ledger.files(CURATED).cloned().collect();
        let is_rebuilt = |partition: &str| is_rebuild || curated.partitions.contains(partition);
        let names = match pipeline.curated.format {
            Format::Parquet => FileNames::Reused,
            Format::Delta => FileNames::New,
        };
        let staged = curated.staged.clone();
        let report = &mut attempt.report;
        let plan = publish::plan(staged, &before, is_rebuilt, attempt.commit, names);
        report.rows_written = plan.counts.rows_written;
        report.bytes_written = plan.counts.bytes_written;
        report.partitions_written = plan.counts.partitions_written;
        report.partitions_removed = plan.counts.partitions_removed;

        let mut records = Vec::new();
        let contract = contract(
            pipeline,
            &curated,
            &changes,
            ledger.contract.as_ref().filter(|_| !is_rebuild),
        );
        if is_rebuild || ledger.contract.as_ref() != Some(&contract) {
            records.push(Record::Contract(Box::new(contract)));
        }
        records.extend(absent);
        let commit = attempt.commit;
        let folded = changes.inputs();
        records.extend(
            folded
                .filter_map(|input| input_record(ledger, input, commit, is_rebuild, &self.window)),
        );
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
            self.quarantine_records(command, attempt, &changes, &inputs, &bad_files, &folders);
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
        let pipeline = self.run_context.pipeline;
        if pipeline.aggregates.is_empty() {
            return Ok(());
        }
        let state = &attempt.state;
        let windows = match self.task {
            Some(Task::CatchUp) => windows_to_catch_up(&state.ledger, pipeline),
            _ => vec![self.window],
        };
        let mut tables = pipeline.aggregates.iter().map(Aggregate::table);
        if windows.is_empty() && tables.all(|table| state.ledger.is_aggregated(&table)) {
            return Ok(());
        }
        if windows != [self.window] {
            attempt.aggregated = Some(windows.clone());
        }
        let context = session(&self.runtime, self.run_context.resources.threads);
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
                &windows,
                staging,
                &attempt.name,
                attempt.commit,
            )
            .await?;
            computed.log(aggregate, &windows);
            attempt.report.aggregates.push(AggregateReport {
                name: aggregate.name.clone(),
                days: computed.days.len() as u64,
                rows_removed: computed.plan.counts.rows_removed,
                rows_inserted: computed.plan.counts.rows_written,
            });
            plans.push((aggregate.table(), computed.plan));
        }
        self.commit_and_publish(attempt, Command::Aggregate, vec![], None, vec![], &plans)
            .await
    }
}

/// The windows that were folded, and for whose days an aggregate was never computed.
fn windows_to_catch_up(ledger: &Ledger, pipeline: &Pipeline) -> Vec<Window> {
    let folded = ledger.folded_windows();
    let tables = pipeline.aggregates.iter().map(Aggregate::table);
    let missing = tables.flat_map(|table| {
        let computed = Window::union(ledger.windows_aggregated(&table));
        let missing = folded.iter().flat_map(|window| window.without(&computed));
        missing.collect::<Vec<_>>()
    });
    Window::union(missing.collect())
}

/// How long to wait before the next try: about twice as long each time, and not as long as others
/// do that wait for the same.
fn wait(attempt: &str, tries: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    attempt.hash(&mut hasher);
    let spread = 0.5 + (hasher.finish() % 1000) as f64 / 1000.0;
    (WAIT * 2u32.pow(tries - 1)).mul_f64(spread)
}

fn contract(
    pipeline: &Pipeline,
    curated: &Curated,
    changes: &Changes,
    earlier: Option<&TableContract>,
) -> TableContract {
    let mut orders = earlier.map_or_else(Vec::new, |contract| contract.orders.clone());
    for (name, kind) in changes.order_kinds() {
        if !orders.iter().any(|(known, _)| *known == name) {
            orders.push((name, kind));
        }
    }
    let types = |columns: &[(String, arrow::datatypes::DataType)]| {
        write_types(columns.iter().map(|(name, kind)| (name.as_str(), kind)))
    };
    let raw_columns = changes.known_columns();
    TableContract {
        identity: Identity::of(pipeline),
        columns: column_types(&curated.columns),
        keys: types(&curated.layout.keys),
        partitions: types(&curated.layout.partitions),
        packed: curated.layout.packed,
        orders,
        raw: types(&raw_columns.all),
        grown: grown(pipeline, &curated.columns, earlier),
        newest: (
            raw_columns.newest.file.clone(),
            types(&raw_columns.newest.columns),
        ),
    }
}

/// The columns that a Delta table got when it had rows already: they are null in these.
fn grown(pipeline: &Pipeline, columns: &[Field], earlier: Option<&TableContract>) -> Vec<String> {
    let Some(earlier) = earlier.filter(|_| pipeline.curated.format == Format::Delta) else {
        return Vec::new();
    };
    let is_new = |name: &&String| !earlier.columns.iter().any(|(known, _)| known == *name);
    let new = columns.iter().map(|field| field.name()).filter(is_new);
    earlier.grown.iter().chain(new).cloned().collect()
}
