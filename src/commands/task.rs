//! What a run is to do.

use crate::state::ledger::Step;
use crate::window::Window;

/// What a run is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Curate a window, then aggregate.
    Run(Window),
    /// The curated table only.
    Curate(Window),
    /// The aggregates only.
    Aggregate(Window),
    /// What was never folded: late inputs, what lies between windows, and what was put aside.
    CatchUp,
    /// Everything again, from the raw files that were folded so far.
    Rebuild {
        /// Whether to go on without those that are not there any more.
        accept_missing: bool,
    },
}

impl Task {
    /// Its window, where it is about one.
    pub(super) fn window(self) -> Option<Window> {
        match self {
            Task::Run(window) | Task::Curate(window) | Task::Aggregate(window) => Some(window),
            Task::CatchUp | Task::Rebuild { .. } => None,
        }
    }

    /// Its commits, as the ledger records them, in their order.
    pub(super) fn steps(self) -> &'static [Step] {
        match self {
            Task::Run(_) => &[Step::Curate, Step::Aggregate],
            Task::Curate(_) => &[Step::Curate],
            Task::Aggregate(_) => &[Step::Aggregate],
            Task::CatchUp => &[Step::CatchUp, Step::Aggregate],
            Task::Rebuild { .. } => &[Step::Rebuild, Step::Aggregate],
        }
    }

    /// Whether it computes the aggregates.
    pub(super) fn aggregates(self) -> bool {
        self.steps().contains(&Step::Aggregate)
    }
}
