//! The library's commands, run in this process.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::prelude::SessionContext;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use glueless::aggregate;
use glueless::commands::backfill::{Backfill, Backfilled, Watch, backfill};
use glueless::commands::runs::{History, history};
use glueless::commands::{
    Compacted, Compared, Explained, Planned, RunContext, Task, Verified, catalog, compact,
    explain_key, load, plan, run, verify,
};
use glueless::config::Pipeline;
use glueless::engine::resources::Resources;
use glueless::error::Result;
use glueless::report::{Answer, Followed, FollowerReport, Meter, Report};
use glueless::state::State;
use glueless::state::inputs::NeededInputs;
use glueless::window::{Window, parse_instant};

use super::lab::Lab;
use super::raw::day;
use super::tables::{Row, rows};
use super::{RUNTIME, window};

/// A command's result that is being computed.
type Pending<'a, T> = LocalBoxFuture<'a, Result<T>>;

impl Lab {
    /// Folds a window and computes its aggregates.
    pub fn run(&self, start: &str, end: &str) -> Result<Report> {
        self.run_with(Task::Run, start, end, &[])
    }

    /// A run of some days of January 2020, which must succeed. The end is not part of them.
    #[track_caller]
    pub fn run_days(&self, first: i64, end: i64) -> Report {
        self.run_days_with(first, end, &[])
    }

    /// A run of some days of January 2020 with overrides, which must succeed.
    #[track_caller]
    pub fn run_days_with(&self, first: i64, end: i64, set: &[&str]) -> Report {
        self.run_with(Task::Run, &day(first), &day(end), set)
            .unwrap_or_else(|error| panic!("days {first} to {end}: {error}: {:?}", error.hint))
    }

    /// Does a task for a window, with overrides of the pipeline's keys.
    pub fn run_with(
        &self,
        task: fn(Window) -> Task,
        start: &str,
        end: &str,
        set: &[&str],
    ) -> Result<Report> {
        self.do_task(task(window(start, end)), set, std::env::temp_dir())
    }

    /// A run with a folder of its own to spill to.
    pub fn run_spilling_to(
        &self,
        spill_dir: PathBuf,
        start: &str,
        end: &str,
        set: &[&str],
    ) -> Result<Report> {
        self.do_task(Task::Run(window(start, end)), set, spill_dir)
    }

    /// Makes the tables and the state from raw, as if for the first time.
    pub fn rebuild(&self, accept_missing: bool, set: &[&str]) -> Result<Report> {
        self.do_task(Task::Rebuild { accept_missing }, set, std::env::temp_dir())
    }

    /// Makes all tables again from the rows of the curated table.
    pub fn rebuild_from_table(&self) -> Result<Report> {
        self.do_task(Task::RebuildFromTable, &[], std::env::temp_dir())
    }

    /// Sets a truncate by hand, or takes it back.
    pub fn truncate(&self, at: &str, undo: bool) -> Result<Report> {
        let at = parse_instant(at).expect("a time");
        let task = if undo { Task::UndoTruncate(at) } else { Task::Truncate(at) };
        self.do_task(task, &[], std::env::temp_dir())
    }

    /// Forgets keys, or folds them again; of several columns the values are separated by commas.
    pub fn forget(&self, keys: &[&str], undo: bool) -> Result<Report> {
        let keys = keys.iter().map(|key| key.split(',').map(String::from).collect()).collect();
        let task = if undo { Task::Recall(keys) } else { Task::Forget(keys) };
        self.do_task(task, &[], std::env::temp_dir())
    }

    /// Folds what no run has folded: late files, gaps between windows, and what is in quarantine.
    pub fn catch_up(&self, set: &[&str]) -> Result<Report> {
        self.do_task(Task::CatchUp, set, std::env::temp_dir())
    }

    fn do_task(&self, task: Task, set: &[&str], spill_dir: PathBuf) -> Result<Report> {
        self.with_context(set, spill_dir, |context| run(context, task))
    }

    /// Loads what the database lacks, or everything.
    pub fn load(&self, full: bool) -> Result<Followed> {
        self.with_context(&[], std::env::temp_dir(), |context| load(context, full))
    }

    /// Registers the tables in the catalog.
    pub fn catalog(&self) -> Result<Followed> {
        self.with_context(&[], std::env::temp_dir(), |context| catalog(context))
    }

    /// Runs a span day by day.
    pub fn backfill(&self, start: &str, end: &str) -> Result<Backfilled> {
        let spill_dir = tempfile::tempdir().expect("a folder");
        let pipeline = self.checked_pipeline(&[])?;
        let resources = resources(&pipeline, spill_dir.path().to_path_buf());
        let watcher = Unwatched { lab: self, pipeline: &pipeline, resources: &resources };
        let options = Backfill {
            span: window(start, end),
            step: chrono::Duration::days(1),
            redo: false,
            fail_fast: false,
            follows_each: false,
        };
        RUNTIME.block_on(backfill(&options, &pipeline, &watcher))
    }

    /// What a run of a window would do; with `folds`, also what its fold would come to.
    pub fn plan(&self, start: &str, end: &str, folds: bool) -> Result<Planned> {
        self.plan_with(start, end, folds, &[])
    }

    /// What a run of a window would do, with overrides.
    pub fn plan_with(&self, start: &str, end: &str, folds: bool, set: &[&str]) -> Result<Planned> {
        self.question(set, |context| plan(context, window(start, end), folds))
    }

    /// The runs that were committed.
    pub fn history(&self) -> Result<History> {
        self.question(&[], |context| history(context).boxed_local())
    }

    /// Compares the curated table with raw.
    pub fn verify(&self) -> Result<Verified> {
        self.verify_with(Compared::default(), &[])
    }

    /// Compares some days, or another table, with overrides.
    pub fn verify_with(&self, compared: Compared, set: &[&str]) -> Result<Verified> {
        self.question(set, |context| verify(context, compared))
    }

    /// Checks that the curated table is what raw comes to.
    #[track_caller]
    pub fn assert_verified(&self) -> Verified {
        let found = self.verify().expect("compared");
        assert!(found.is_equal, "{}", found.text());
        found
    }

    /// The changes of a key, and where its row is.
    #[track_caller]
    pub fn explain(&self, key: &[&str]) -> Explained {
        self.try_explain(key).expect("explained")
    }

    /// The changes of a key, and where its row is, if it can be answered.
    pub fn try_explain(&self, key: &[&str]) -> Result<Explained> {
        let key = key.iter().map(ToString::to_string).collect();
        self.question(&[], |context| explain_key(context, key))
    }

    /// Compacts raw files of days into the folder `compacted`.
    pub fn compact(&self, start: &str, end: &str) -> Result<Compacted> {
        let window = window(start, end);
        let to = format!("compact.url={}/compacted", self.base);
        self.question(&[&to], |context| compact(context, window))
    }

    /// Runs a command that only reads: nothing may be left in the folder to spill to.
    fn question<T>(
        &self,
        set: &[&str],
        command: impl for<'a> FnOnce(&'a RunContext<'_>) -> Pending<'a, T>,
    ) -> Result<T> {
        let spill_dir = tempfile::tempdir().expect("a folder");
        let answer = self.with_context(set, spill_dir.path().to_path_buf(), command);
        let left = std::fs::read_dir(spill_dir.path()).expect("listed");
        assert_eq!(left.count(), 0, "something is left in the folder to spill to");
        answer
    }

    fn with_context<T>(
        &self,
        set: &[&str],
        spill_dir: PathBuf,
        command: impl for<'a> FnOnce(&'a RunContext<'_>) -> Pending<'a, T>,
    ) -> Result<T> {
        let pipeline = self.checked_pipeline(set)?;
        let resources = resources(&pipeline, spill_dir);
        let context = self.context(&pipeline, &resources);
        RUNTIME.block_on(command(&context))
    }

    /// The pipeline, with overrides.
    fn checked_pipeline(&self, set: &[&str]) -> Result<Pipeline> {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let mut pipeline = Pipeline::read(&self.pipeline, &set)?;
        pipeline.unlock(&self.environment)?;
        Ok(pipeline)
    }

    fn context<'a>(&'a self, pipeline: &'a Pipeline, resources: &'a Resources) -> RunContext<'a> {
        RunContext {
            pipeline,
            run_id: uuid::Uuid::now_v7().to_string(),
            now: self.now,
            stores: &self.stores,
            environment: &self.environment,
            follows: true,
            resources,
            meter: Meter { started: std::time::Instant::now(), peak_memory_bytes: || 0 },
        }
    }

    /// The paths of the inputs that the ledger lists.
    pub fn folded_inputs(&self) -> BTreeSet<String> {
        let pipeline = self.checked_pipeline(&[]).expect("a pipeline");
        let state = RUNTIME.block_on(State::open(&self.stores, &pipeline, NeededInputs::All));
        let inputs = state.expect("a state").ledger.inputs;
        inputs.iter().map(|input| input.path.clone()).collect()
    }

    /// The relation `history` that aggregates read.
    pub fn history_relation(&self) -> Vec<Row> {
        let pipeline = self.checked_pipeline(&[]).expect("a pipeline");
        let read: Pending<Vec<Row>> = Box::pin(async {
            let state = State::open(&self.stores, &pipeline, NeededInputs::All).await?;
            let curated = self.stores.open(&pipeline.curated.url)?;
            let context = SessionContext::new();
            let mut root = curated.location.url().clone();
            root.set_path("");
            context.register_object_store(&root, Arc::clone(&curated.root_store));
            if !aggregate::register(&context, &state, &pipeline, &curated, &[]).await? {
                return Ok(Vec::new());
            }
            let history = context.sql("SELECT * FROM history").await?;
            let batches = history.collect().await?;
            Ok(batches.iter().flat_map(rows).collect())
        });
        RUNTIME.block_on(read).expect("history")
    }
}

fn resources(pipeline: &Pipeline, spill_dir: PathBuf) -> Resources {
    Resources {
        memory_bytes: pipeline.limits.memory_bytes.unwrap_or(1 << 30),
        spill_dir,
        spill_bytes_max: pipeline.limits.spill_bytes_max.unwrap_or(u64::MAX),
        threads: pipeline.limits.threads.unwrap_or(2),
    }
}

/// A backfill whose progress nobody looks at.
struct Unwatched<'a> {
    lab: &'a Lab,
    pipeline: &'a Pipeline,
    resources: &'a Resources,
}

impl<'a> Watch<'a> for Unwatched<'a> {
    fn begin(&self, _window: &Window, _done: usize, _all: usize) -> RunContext<'a> {
        self.lab.context(self.pipeline, self.resources)
    }

    fn end(&self, _context: &RunContext<'a>, _ended: &Result<Report>) {}

    fn followed(&self, _: &RunContext<'a>, _: &[FollowerReport], _: bool) {}

    fn is_stopped(&self) -> bool {
        false
    }
}
