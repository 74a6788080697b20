//! Runs: window, fold, commit, publish.
//!
//! ```text
//! window ─▶ discover ─▶ open ─▶ fold ─▶ curate ─▶ check ─▶ commit ─▶ publish ─▶ aggregate ─▶
//! report
//! ```
//! Until the commit, nothing that is published changes: files are written to staging and to the
//! state's folder under the attempt's own name, and a failed attempt removes them. The commit
//! records the run; publishing then replaces exactly the planned partitions. An attempt is
//! announced before its commit, so that the next command can finish publishing after an
//! interruption.
//! A [`Task`] has one or two steps, and each step is one commit. When another run commits first,
//! the attempt is discarded, and the step is retried on top of the other run's commit, up to
//! [`TRIES`] times. An [`Outcome`] says how each attempt ended.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tracing::info;

use crate::commands::follow::follow;
use crate::commands::open_pipeline::{
    OpenPipeline, RunContext, check_identity, nothing_folded, span_of,
};
use crate::commands::retry::{TRIES, delays};
use crate::commands::run::attempt::Outcome;
use crate::commands::task::Task;
use crate::curate::stage::BadInputs;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::Step;
use crate::window::Window;

mod aggregate_step;
pub(super) mod attempt;
mod contract;
mod fold_step;
pub(super) mod forget;
mod from_table;
pub(super) mod inputs;
mod publishing;
mod quarantine;
pub(super) mod truncate;

/// A task with its open pipeline and its window.
pub(super) struct Run<'a> {
    pub(super) open: OpenPipeline<'a>,
    task: Task,
    window: Window,
}

/// Runs a task. The future is boxed so that it is compiled in this crate, not in each program that
/// calls it.
///
/// # Errors
/// See [`crate::error::Kind`]. Published tables change only if the run was committed.
pub fn run<'a>(run_context: &'a RunContext<'_>, task: Task) -> LocalBoxFuture<'a, Result<Report>> {
    do_run(run_context, task).boxed_local()
}

async fn do_run(run_context: &RunContext<'_>, task: Task) -> Result<Report> {
    let window = window_of(run_context, &task).await?;
    log_limits(run_context, &window);
    let run = Run { open: OpenPipeline::open(run_context).await?, task, window };
    let mut report = Report {
        pipeline: run_context.pipeline.name.clone(),
        run_id: run_context.run_id.to_string(),
        start: window.start,
        end: window.end,
        ..Default::default()
    };
    let has_aggregates = !run_context.pipeline.aggregates.is_empty();
    for step in run.task.steps() {
        // Without aggregates it would read the state once more, for nothing.
        if *step == Step::Aggregate && !has_aggregates && run.task.steps().len() > 1 {
            continue;
        }
        run.step(*step, &mut report).await?;
        if *step == Step::Forget {
            run.remove_forgotten().await?;
        }
    }
    let is_followed = run.task.is_followed();
    drop(run);
    if run_context.follows && is_followed {
        report.followers = follow(run_context, window).await;
    }
    run_context.meter.measure(&mut report);
    Ok(report)
}

/// The task's own window, or the span of all windows that were folded.
async fn window_of(run_context: &RunContext<'_>, task: &Task) -> Result<Window> {
    if let Some(window) = task.window() {
        return Ok(window);
    }
    let state = State::open(run_context.stores, run_context.pipeline, NeededInputs::Recent).await?;
    if *task == Task::CatchUp {
        return span_of(&state, "catch up with");
    }
    let verb = match task {
        Task::Forget(_) | Task::Recall(_) => "forget",
        _ => "rebuild",
    };
    if state.ledger.contract.is_none() {
        return Err(nothing_folded(verb));
    }
    span_of(&state, verb)
}

fn log_limits(run_context: &RunContext<'_>, window: &Window) {
    let limit = run_context.resources;
    let spill_max = match limit.spill_bytes_max {
        u64::MAX => String::new(),
        bytes => format!(", at most {bytes} bytes"),
    };
    info!(
        "pipeline {}: window {window}, memory limit {} MB, {} threads, spill to {}{spill_max}",
        run_context.pipeline.name,
        limit.memory_bytes / 1_000_000,
        limit.threads,
        limit.spill_dir.display()
    );
}

/// Finishes publishing for an interrupted run of the pipeline that has committed.
///
/// # Errors
/// Those of publishing.
pub fn finish<'a>(run_context: &'a RunContext<'_>) -> LocalBoxFuture<'a, Result<()>> {
    async move {
        let state =
            State::open(run_context.stores, run_context.pipeline, NeededInputs::Recent).await?;
        if state.last_commit() == 0 {
            return Ok(());
        }
        check_identity(&state, run_context.pipeline)?;
        let open = OpenPipeline::open(run_context).await?;
        if open.is_publishing(&state).await? {
            open.finish_interrupted(&state).await?;
        }
        Ok(())
    }
    .boxed_local()
}

impl Run<'_> {
    /// Runs one step, and retries it when another run commits first.
    async fn step(&self, step: Step, report: &mut Report) -> Result<()> {
        let mut delays = delays(&self.open.run_context.run_id);
        let mut bad = BadInputs::default();
        loop {
            let outrun = match self.try_step(step, report, &mut bad).await {
                Outcome::Committed(committed) => {
                    *report = *committed;
                    return Ok(());
                }
                Outcome::InDoubt(error) | Outcome::Failed(error) => return Err(error),
                Outcome::BadInput => continue,
                Outcome::Outrun(error) => error,
            };
            let Some(delay) = delays.next() else {
                return Err(Error::busy(format!(
                    "other runs of this pipeline committed first {TRIES} times"
                ))
                .hint("nothing was changed: run the command again")
                .caused_by(outrun));
            };
            info!("another run committed first: retrying on top of its commit");
            tokio::time::sleep(delay).await;
        }
    }
}
