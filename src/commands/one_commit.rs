//! Questions about one commit.
//!
//! A run that commits while a question is answered removes files that are being read, or swaps
//! them for newer ones. What was read may then be of two commits; it is read again.

use tracing::info;

use crate::commands::open_pipeline::{OpenPipeline, RunContext};
use crate::commands::retry::{TRIES, delays};
use crate::error::{Error, Result};
use crate::state::State;

/// Answers a question of the newest commit, and again where a run commits meanwhile.
///
/// # Errors
/// Those of the question; busy, when runs committed during every try.
pub(super) async fn of_one_commit<'a, A>(
    run_context: &'a RunContext<'a>,
    question: impl AsyncFn(&OpenPipeline<'a>, &State) -> Result<A>,
) -> Result<A> {
    let mut delays = delays(&run_context.run_id);
    loop {
        let (open, mut state) = OpenPipeline::open_read_only(run_context).await?;
        let commit = state.last_commit();
        let answer = question(&open, &state).await;
        state.refresh().await?;
        if state.last_commit() == commit {
            return answer;
        }
        let Some(delay) = delays.next() else {
            let busy = format!("other runs of this pipeline committed during all of {TRIES} tries");
            let busy = Error::busy(busy).hint("ask again");
            return Err(match answer {
                Ok(_) => busy,
                Err(error) => busy.caused_by(error),
            });
        };
        info!("a run committed meanwhile: reading again");
        tokio::time::sleep(delay).await;
    }
}
