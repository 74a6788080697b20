//! The run, top to bottom.
//!
//! ```text
//! window ─▶ discover ─▶ open ─▶ fold ─▶ curate ─▶ check ─▶ commit ─▶ publish ─▶ aggregate ─▶ report
//! ```
//!
//! Up to the commit nothing that was published changes: files go to staging and to the state
//! folder under the run's own id, and a failed run takes them away again. The commit remembers
//! the run; publishing then swaps exactly the planned partitions. A run announces itself before
//! its commit, so that the next command finishes the publishing of one that was interrupted.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tracing::{info, warn};

use crate::aggregate::{self, column_types};
use crate::changes::Changes;
use crate::config::{Keep, Pipeline, WindowBy};
use crate::curate::{self, Curated, Places};
use crate::discover::{Input, Recorded, discover};
use crate::error::{Error, Result};
use crate::fold::{Fold, fold};
use crate::publish::{self, Owner, Plan};
use crate::report::{AggregateReport, Report};
use crate::session::{BATCH_ROWS, Resources, SpillFolder, runtime, session};
use crate::state::{self, CURATED, Curate, Identity, Record, Run, State, write_types};
use crate::store::{Folder, Stores};
use crate::window::Window;

/// What a run is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Curate, then aggregate.
    Run,
    /// The curated table only.
    Curate,
    /// The aggregates only.
    Aggregate,
}

/// One run: everything it needs is handed to it.
#[derive(Debug)]
pub struct Request<'a> {
    /// What to do.
    pub task: Task,
    /// The checked pipeline.
    pub pipeline: &'a Pipeline,
    /// The window.
    pub window: Window,
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
    let Request {
        pipeline, window, ..
    } = request;
    let limit = request.resources;
    info!(
        "pipeline {}: window {window}, memory limit {} MB, {} threads, spill to {}",
        pipeline.name,
        limit.memory_bytes / 1_000_000,
        limit.threads,
        limit.spill_dir.display()
    );
    // Dropped after what spills to it.
    let spill = SpillFolder::create(&limit.spill_dir, request.run_id)?;
    let runtime = runtime(limit, &spill)?;
    let outputs = open_outputs(request).await?;
    let mut state = State::open(request.stores, pipeline).await?;
    let announced = request.stores.open(&pipeline.state.join("publishing"))?;
    finish_interrupted(&announced, &outputs, &state).await?;
    let mut report = Report {
        pipeline: pipeline.name.clone(),
        run_id: request.run_id.to_string(),
        start: window.start,
        end: window.end,
        ..Default::default()
    };
    let done = async {
        if request.task != Task::Aggregate {
            curate_table(
                request,
                &runtime,
                &outputs,
                &announced,
                &mut state,
                &mut report,
            )
            .await?;
        }
        if request.task != Task::Curate {
            aggregate_tables(
                request,
                &runtime,
                &outputs,
                &announced,
                &mut state,
                &mut report,
            )
            .await?;
        }
        Ok(())
    }
    .await;
    if let Err(error) = done {
        let cleaned = clean_up(request.run_id, &announced, &outputs, &mut state).await;
        for left in cleaned.into_iter().filter_map(Result::err) {
            warn!("what the failed run wrote is left behind: {left}");
        }
        return Err(error);
    }
    Ok(report)
}

/// Takes away what a failed run wrote, except what it committed: the next command publishes that.
async fn clean_up(
    run_id: &str,
    announced: &Folder,
    outputs: &[Output],
    state: &mut State,
) -> Vec<Result<()>> {
    let mut cleaned = vec![state.discard_versions(run_id).await];
    let is_mine = |run: &Run| run.run_id.starts_with(run_id);
    let committed: BTreeSet<&str> = match cleaned[0] {
        // The ledger was read again.
        Ok(()) => state.ledger.staged_paths().collect(),
        // Whether the commit landed is not known.
        Err(_) => return cleaned,
    };
    for output in outputs.iter().filter(|output| output.name != "state") {
        cleaned.push(state::discard(&output.staging, run_id, &committed).await);
    }
    if !state.ledger.runs.iter().any(is_mine) {
        cleaned.push(state::discard(announced, run_id, &BTreeSet::new()).await);
    }
    cleaned
}

/// Finishes what interrupted runs had committed and not yet published.
async fn finish_interrupted(announced: &Folder, outputs: &[Output], state: &State) -> Result<()> {
    let open = publish::list(announced).await?;
    let is_open = |run: &&Run| open.contains(&run.run_id);
    let runs: Vec<&Run> = state.ledger.runs.iter().filter(is_open).collect();
    for name in runs.iter().flat_map(|run| &run.tables) {
        let Some(table) = outputs.iter().find(|output| output.name == *name) else {
            warn!("an interrupted run had not published `{name}`, which is gone from the pipeline");
            continue;
        };
        warn!("an interrupted run had not published `{name}` yet: done now");
        publish::finish(&table.folder, &table.staging, state.ledger.files(name)).await?;
    }
    let done = runs.iter().map(|run| run.run_id.clone()).collect();
    publish::remove(announced, done).await
}

/// Opens the folders of all tables and checks that they are this pipeline's, or free.
async fn open_outputs(request: &Request<'_>) -> Result<Vec<Output>> {
    let Request {
        pipeline, stores, ..
    } = request;
    let mut tables = vec![(
        CURATED.to_string(),
        "curated.url".to_string(),
        &pipeline.curated.url,
    )];
    for aggregate in &pipeline.aggregates {
        let setting = format!("aggregate.{}.url", aggregate.name);
        tables.push((aggregate.name.clone(), setting, &aggregate.url));
    }
    let mut outputs = Vec::new();
    for (name, setting, location) in tables {
        // Files are renamed or copied from staging, which neither crosses a store.
        let beside = location
            .sibling("_glueless")
            .unwrap_or_else(|| location.join("_glueless"));
        let staging = stores.open(&beside.join(&pipeline.name).join("staging"))?;
        let owner = Owner {
            pipeline: pipeline.name.clone(),
            table: name.clone(),
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

fn output<'a>(outputs: &'a [Output], name: &str) -> Result<&'a Output> {
    outputs
        .iter()
        .find(|output| output.name == name)
        .ok_or_else(|| Error::internal(format!("the table `{name}` was not opened")))
}

/// Marks the folders a commit is about to write as this pipeline's.
async fn claim(outputs: &[Output], plans: &[(String, Plan)]) -> Result<()> {
    for output in outputs {
        let is_written = plans.iter().any(|(name, _)| *name == output.name);
        if !output.is_marked && (output.name == "state" || is_written) {
            output.owner.claim(&output.folder, &output.setting).await?;
        }
    }
    Ok(())
}

async fn curate_table(
    request: &Request<'_>,
    runtime: &Arc<RuntimeEnv>,
    outputs: &[Output],
    announced: &Folder,
    state: &mut State,
    report: &mut Report,
) -> Result<()> {
    let Request {
        pipeline,
        window,
        run_id,
        ..
    } = request;
    let threads = request.resources.threads;
    let folders = pipeline
        .raw
        .urls
        .iter()
        .map(|url| request.stores.open(url))
        .collect::<Result<Vec<_>>>()?;
    let inputs = discover(&folders, &pipeline.raw, window, &state.ledger).await?;
    let is_new = |input: &Input| !state.ledger.is_folded(input.location, &input.path);
    if !inputs
        .iter()
        .any(|input| !input.full_load && !input.late || is_new(input))
    {
        // An empty window is fine, one that lost all the inputs it had is not.
        state.ledger.check_not_lost(&inputs, window)?;
        info!("no inputs in the window {window}");
        report.note = Some("no inputs in the window".into());
        return Ok(());
    }
    let by_rows = pipeline.raw.window_by == WindowBy::Commit;
    state.ledger.check_complete(&inputs, window, by_rows)?;
    report.files = inputs.len() as u64;
    report.late_files = inputs.iter().filter(|input| input.late).count() as u64;
    report.bytes = inputs.iter().map(|input| input.size).sum();
    info!(
        "{} files, {} of them late, {} bytes",
        report.files, report.late_files, report.bytes
    );

    let kept_bytes_max = (request.resources.memory_bytes / 8) as usize;
    let changes = Changes::open(
        inputs,
        &folders,
        pipeline,
        window,
        kept_bytes_max,
        BATCH_ROWS,
    )
    .await?;
    let changes = Arc::new(changes);
    let kept = MemoryConsumer::new("inputs").register(&runtime.memory_pool);
    kept.grow(changes.kept_bytes());
    report.rows_read = changes.row_counts().sum();
    let context = session(runtime, threads);
    let folded = fold(&context, &changes, &pipeline.key, threads).await?;
    info!(
        "pass one: {} rows, {} keys, {} keys and days",
        report.rows_read, folded.keys, folded.key_days
    );

    let table = output(outputs, CURATED)?;
    let places = Places {
        staging: &table.staging,
        state: &state.folder,
        run_id,
    };
    let winners = Arc::clone(&folded.winners);
    let curated = curate::curate(&context, pipeline, &changes, winners, places, threads).await?;
    fill_in(report, pipeline.keep, &folded, &changes, &curated);
    check_conservation(report, &folded, &changes, &curated)?;

    if request.task == Task::Run {
        let context = session(runtime, threads);
        aggregate::check(&context, pipeline, &curated.layout, &curated.columns).await?;
    }

    let before = state.ledger.files(CURATED).to_vec();
    // Until runs are merged with what earlier runs left, all partitions are rebuilt.
    let plan = publish::plan(
        curated.staged.clone(),
        &before,
        |_| true,
        state.next_commit(),
    );
    report.rows_written = plan.counts.rows_written;
    report.bytes_written = plan.counts.bytes_written;
    report.partitions_written = plan.counts.partitions_written;
    report.partitions_removed = plan.counts.partitions_removed;

    let record = Curate {
        identity: Identity::of(pipeline),
        columns: column_types(&curated.columns),
        keys: write_types(
            curated
                .layout
                .keys
                .iter()
                .map(|(name, kind)| (name.as_str(), kind)),
        ),
        partitions: write_types(
            curated
                .layout
                .partitions
                .iter()
                .map(|(name, kind)| (name.as_str(), kind)),
        ),
        packed: curated.layout.packed,
        days: curated
            .counts
            .days
            .iter()
            .filter_map(|day| date(*day))
            .collect(),
    };
    let mut records = vec![Record::Run(Box::new(Run {
        run_id: run_id.to_string(),
        command: "curate".into(),
        start: window.start,
        end: window.end,
        tables: vec![CURATED.into()],
        curate: Some(record),
    }))];
    records.extend(changes.inputs().map(|input| Record::Input(input.into())));
    records.extend(plan.files.iter().map(|file| Record::File {
        table: CURATED.into(),
        file: file.clone(),
    }));
    let versions = Some((&curated.layout, curated.versions.as_slice()));
    let plans = [(CURATED.to_string(), plan)];
    let commit = state.commit(run_id, &records, versions, request.now);
    commit_and_publish(outputs, announced, run_id, &plans, commit).await?;
    info!(
        "published {} rows in {} partitions, {} partitions removed",
        report.rows_written, report.partitions_written, report.partitions_removed
    );
    Ok(())
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
    report.rows_superseded = changes.rows_folded().saturating_sub(winners);
    report.rows_latest = curated.counts.rows_latest;
    report.rows_deleted = curated.counts.rows_deleted;
    report.ties = ties;
}

/// The run must add up before anything is published: every row that was read went somewhere, and
/// what the files' footers say was written is what was counted.
fn check_conservation(
    report: &Report,
    folded: &Fold,
    changes: &Changes,
    curated: &Curated,
) -> Result<()> {
    let went = report.rows_latest
        + report.rows_superseded
        + report.rows_deleted
        + report.rows_rejected
        + report.rows_outside;
    let staged: u64 = curated.staged.iter().map(|file| file.rows).sum();
    let remembered: u64 = curated.versions.iter().map(|file| file.rows).sum();
    let sums = [
        ("rows read", report.rows_read + report.key_moves, went),
        (
            "rows folded",
            report.rows_read - report.rows_outside,
            changes.rows_folded(),
        ),
        ("rows staged", staged, report.rows_latest),
        ("versions written", remembered, folded.key_days),
        ("keys and days", curated.counts.key_days, folded.key_days),
    ];
    match sums.into_iter().find(|(_, one, other)| one != other) {
        None => Ok(()),
        Some((what, one, other)) => Err(Error::internal(format!(
            "the run does not add up: {what} {one}, but {other}"
        ))
        .hint("nothing was published; did an input change during the run?")),
    }
}

async fn aggregate_tables(
    request: &Request<'_>,
    runtime: &Arc<RuntimeEnv>,
    outputs: &[Output],
    announced: &Folder,
    state: &mut State,
    report: &mut Report,
) -> Result<()> {
    let Request {
        pipeline,
        window,
        run_id,
        ..
    } = request;
    if pipeline.aggregates.is_empty() {
        return Ok(());
    }
    let context = session(runtime, request.resources.threads);
    let curated = output(outputs, CURATED)?;
    let store_url = object_store_root(&curated.folder);
    context.register_object_store(&store_url, Arc::clone(&curated.folder.root_store));
    let state_url = object_store_root(&state.folder);
    context.register_object_store(&state_url, Arc::clone(&state.folder.root_store));
    if !aggregate::register(&context, state, pipeline, &curated.folder).await? {
        info!("nothing was curated yet: no aggregates");
        report.note.get_or_insert("nothing was curated yet".into());
        return Ok(());
    }
    let commit = state.next_commit();
    let mut plans = Vec::new();
    for aggregate in &pipeline.aggregates {
        let staging = &output(outputs, &aggregate.name)?.staging;
        let ledger = &state.ledger;
        let computed =
            aggregate::compute(&context, ledger, aggregate, window, staging, run_id, commit)
                .await?;
        report.aggregates.push(AggregateReport {
            name: aggregate.name.clone(),
            days: computed.days,
            rows_removed: computed.plan.counts.rows_removed,
            rows_inserted: computed.plan.counts.rows_written,
        });
        plans.push((aggregate.name.clone(), computed.plan));
    }
    let names: Vec<String> = plans.iter().map(|(name, _)| name.clone()).collect();
    let mut records = vec![Record::Run(Box::new(Run {
        run_id: format!("{run_id}-aggregate"),
        command: "aggregate".into(),
        start: window.start,
        end: window.end,
        tables: names.clone(),
        curate: None,
    }))];
    for (name, plan) in &plans {
        let listed = plan.files.iter().cloned();
        records.extend(listed.map(|file| Record::File {
            table: name.clone(),
            file,
        }));
    }
    let run_id = format!("{run_id}-aggregate");
    let commit = state.commit(&run_id, &records, None, request.now);
    commit_and_publish(outputs, announced, &run_id, &plans, commit).await
}

/// Announces a run, commits it, and carries out the plans of its tables.
async fn commit_and_publish(
    outputs: &[Output],
    announced: &Folder,
    run_id: &str,
    plans: &[(String, Plan)],
    commit: impl Future<Output = Result<()>>,
) -> Result<()> {
    claim(outputs, plans).await?;
    publish::announce(announced, run_id).await?;
    commit.await?;
    for (name, plan) in plans {
        let table = output(outputs, name)?;
        publish::carry_out(&table.folder, &table.staging, plan).await?;
        publish::sweep(&table.folder, &plan.files).await?;
    }
    // Tables beside each other share their staging folder.
    for (name, _) in plans {
        publish::clear(&output(outputs, name)?.staging).await?;
    }
    publish::clear(announced).await
}

/// The URL under which the engine finds a folder's store.
fn object_store_root(folder: &Folder) -> url::Url {
    let mut url = folder.location.url().clone();
    url.set_path("");
    url
}
