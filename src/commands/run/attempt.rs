//! One attempt to commit a step.

use futures::future::BoxFuture;
use tracing::warn;

use crate::commands::open_pipeline::{check_forgotten, check_format, check_identity};
use crate::commands::run::Run;
use crate::curate::stage::BadInputs;
use crate::error::{Error, Kind, Result};
use crate::layout::{aggregate_run_id, attempt_name};
use crate::report::Report;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::Step;
use crate::state::{NotCommitted, State};
use crate::window::WindowSet;

/// One attempt at a commit.
pub(in crate::commands) struct Attempt {
    pub(in crate::commands) state: State,
    /// The run's id in the ledger.
    pub(super) run_id: String,
    /// The number that its commit gets.
    pub(super) commit: u64,
    /// The attempt's name, part of every path that it writes.
    pub(super) name: String,
    pub(in crate::commands) report: Report,
    /// The windows whose days it aggregates, if they differ from the run's own.
    pub(super) aggregated: Option<WindowSet>,
    /// The listing of the curated table's folder, started in the background.
    pub(super) listing: Option<BoxFuture<'static, Result<Vec<String>>>>,
}

/// How an attempt ended.
pub(super) enum Outcome {
    /// Committed; with the run's report.
    Committed(Box<Report>),
    /// Possibly committed: its files stay, and the next command finishes or discards it.
    InDoubt(Error),
    /// An input is bad and is now quarantined: the step can be retried without it.
    BadInput,
    /// Another run committed first: the step can be retried on top of it.
    Outrun(Error),
    /// Failed; a retry would fail as well.
    Failed(Error),
}

impl Run<'_> {
    /// Attempts a step once, and removes the files of an attempt that was not committed.
    pub(super) async fn try_step(
        &self,
        step: Step,
        report: &mut Report,
        bad: &mut BadInputs,
    ) -> Outcome {
        let mut state = match self.open_state(step).await {
            Ok(state) => state,
            Err(error) => return Outcome::Failed(error),
        };
        let last = state.last_commit();
        if let Err(error) = self.open.finish_interrupted(&state).await {
            // Another run may have finished it, and committed since.
            if state.refresh().await.is_ok() && state.last_commit() > last {
                return Outcome::Outrun(error);
            }
            if step != Step::Rebuild {
                return Outcome::Failed(error);
            }
            warn!(
                "an earlier run did not finish publishing; the rebuild replaces its files: {error}"
            );
        }
        report.files_in_quarantine = state.ledger.quarantined.len() as u64;
        if step != Step::Rebuild {
            report.newest_commit_time = state.ledger.newest_commit_time();
        }
        let mut attempt = self.attempt(step, state, report);
        match self.commit(step, &mut attempt, bad).await {
            Ok(()) => Outcome::Committed(Box::new(attempt.report)),
            Err(failed) if failed.in_doubt => Outcome::InDoubt(failed.error),
            Err(failed) => self.not_committed(attempt, failed.error, bad).await,
        }
    }

    async fn open_state(&self, step: Step) -> Result<State> {
        let run_context = self.open.run_context;
        let needed = match step {
            Step::Curate => NeededInputs::of(&run_context.pipeline.raw, &self.window),
            Step::Rebuild | Step::CatchUp | Step::Truncate | Step::Forget => NeededInputs::All,
            Step::Aggregate | Step::FromTable => NeededInputs::Recent,
        };
        let mut state = State::open(run_context.stores, run_context.pipeline, needed).await?;
        if step == Step::Rebuild {
            check_format(&state, run_context.pipeline)?;
            check_forgotten(&state, run_context.pipeline)?;
        } else if step == Step::FromTable {
            self.check_from_table(&state).await?;
            state.check_known()?;
        } else {
            check_identity(&state, run_context.pipeline)?;
            state.check_known()?;
        }
        self.open.check_state_exists(&mut state).await?;
        Ok(state)
    }

    fn attempt(&self, step: Step, state: State, report: &Report) -> Attempt {
        let id = &self.open.run_context.run_id;
        let run_id = if step == Step::Aggregate { aggregate_run_id(id) } else { id.clone() };
        let commit = state.next_commit();
        self.open.count_inputs(&state);
        Attempt {
            state,
            name: attempt_name(commit, &run_id),
            run_id,
            commit,
            report: report.clone(),
            aggregated: None,
            listing: None,
        }
    }

    async fn commit(
        &self,
        step: Step,
        attempt: &mut Attempt,
        bad: &mut BadInputs,
    ) -> Result<(), NotCommitted> {
        self.open.check_not_changed(step, &attempt.state).await?;
        match step {
            Step::Aggregate => self.aggregate(attempt).await,
            Step::FromTable => self.rebuild_from_table(attempt).await,
            _ => self.fold(step, attempt, bad).await,
        }
    }

    /// Removes the files of an attempt that was not committed, and returns its outcome.
    async fn not_committed(
        &self,
        mut attempt: Attempt,
        error: Error,
        bad: &mut BadInputs,
    ) -> Outcome {
        // An error after another run's commit may be caused by that commit.
        let is_behind =
            attempt.state.refresh().await.is_ok() && attempt.state.last_commit() >= attempt.commit;
        self.discard(&attempt).await;
        if is_behind {
            return Outcome::Outrun(error);
        }
        // An input can be found bad while it is folded, after the inputs had been opened.
        if bad.add(&error, &self.open.run_context.pipeline.raw) {
            return Outcome::BadInput;
        }
        match error.kind {
            Kind::Busy => Outcome::Outrun(error),
            _ => Outcome::Failed(error),
        }
    }
}
