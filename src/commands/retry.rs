//! Retries after another run has committed first.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::layout::fnv1a;

/// The number of tries to commit, and to read one commit.
pub(super) const TRIES: usize = 6;
/// The delay before the first retry; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// The delays before each retry. The jitter is seeded with the run's id, so that competing runs do
/// not retry in step.
pub(super) fn delays(run_id: &str) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_times(TRIES - 1)
        .with_jitter()
        .with_jitter_seed(fnv1a(run_id.bytes()))
        .build()
}
