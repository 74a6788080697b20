//! What a run is to do.

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
