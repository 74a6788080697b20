//! Trying again where another run was faster.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::layout::fnv1a;

/// How often a run tries to commit, and a question is asked of one commit.
pub(super) const TRIES: usize = 6;
/// How long a run waits before it tries again the first time; twice as long each further time.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// How long to wait before each further try. The run's id decides how much longer than the least,
/// so that runs that wait for each other do not do so in step.
pub(super) fn delays(run_id: &str) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_times(TRIES - 1)
        .with_jitter()
        .with_jitter_seed(fnv1a(run_id.bytes()))
        .build()
}
