//! Tasks of a run.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::state::ledger::Step;
use crate::window::Window;

/// The task of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Curate a window, then aggregate.
    Run(Window),
    /// Update the curated table only.
    Curate(Window),
    /// Compute the aggregates only.
    Aggregate(Window),
    /// Fold what was never folded: late inputs, gaps between windows, and quarantined inputs.
    CatchUp,
    /// Rebuild all tables from the raw files folded so far.
    Rebuild {
        /// Whether to continue without raw files that are missing.
        accept_missing: bool,
    },
    /// Make all tables again from the rows of the curated table.
    RebuildFromTable,
    /// Set a truncate by hand: it ends the changes from before this time.
    Truncate(DateTime<Utc>),
    /// Take such a truncate back, and rebuild all tables.
    UndoTruncate(DateTime<Utc>),
    /// Forget keys, given by the texts of their columns: remove what the tables and the state have of them, and leave
    /// their changes out from now on.
    Forget(Arc<[Vec<String>]>),
    /// Fold the changes of forgotten keys again, and rebuild all tables.
    Recall(Arc<[Vec<String>]>),
}

impl Task {
    /// Its window, if it has one.
    pub(super) fn window(&self) -> Option<Window> {
        match self {
            Task::Run(window) | Task::Curate(window) | Task::Aggregate(window) => Some(*window),
            Task::Truncate(at) => Some(Window::instant(*at)),
            Task::CatchUp
            | Task::Rebuild { .. }
            | Task::RebuildFromTable
            | Task::UndoTruncate(_)
            | Task::Forget(_)
            | Task::Recall(_) => None,
        }
    }

    /// Its steps, in order; each is one commit.
    pub(super) fn steps(&self) -> &'static [Step] {
        match self {
            Task::Run(_) => &[Step::Curate, Step::Aggregate],
            Task::Curate(_) => &[Step::Curate],
            Task::Aggregate(_) => &[Step::Aggregate],
            Task::CatchUp => &[Step::CatchUp, Step::Aggregate],
            Task::Truncate(_) => &[Step::Truncate, Step::Aggregate],
            Task::Forget(_) => &[Step::Forget, Step::Aggregate],
            Task::RebuildFromTable => &[Step::FromTable, Step::Aggregate],
            Task::Rebuild { .. } | Task::UndoTruncate(_) | Task::Recall(_) => {
                &[Step::Rebuild, Step::Aggregate]
            }
        }
    }

    /// Whether followers are brought to its commit: it changes all tables.
    pub(super) fn is_followed(&self) -> bool {
        self.steps().len() > 1
    }

    /// Whether it computes the aggregates.
    pub(super) fn aggregates(&self) -> bool {
        self.steps().contains(&Step::Aggregate)
    }
}
