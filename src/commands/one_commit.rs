//! Reads that must see one commit.
//!
//! A run that commits meanwhile removes files that are being read, or replaces them. A read may
//! then mix two commits, and is repeated.

use tracing::info;

use crate::commands::open_pipeline::{OpenPipeline, RunContext};
use crate::commands::retry::{TRIES, delays};
use crate::error::{Error, Result};
use crate::state::State;
use crate::state::inputs::NeededInputs;

/// What a query reads after the log and the ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// No file that a commit can remove: its answer is that of the commit. Only an error may come
    /// from a commit meanwhile.
    LogOnly,
    /// Files of the state or of the table.
    Files,
}

/// Runs `query` against the newest commit, and repeats it if a run commits meanwhile.
///
/// # Errors
/// Those of `query`; busy, when runs committed during every try.
pub(super) async fn of_one_commit<'a, A>(
    run_context: &'a RunContext<'a>,
    (reads, needed): (Reads, NeededInputs),
    query: impl AsyncFn(&OpenPipeline<'a>, &State) -> Result<A>,
) -> Result<A> {
    let mut delays = delays(&run_context.run_id);
    loop {
        let (open, mut state) = OpenPipeline::open_read_only(run_context, needed).await?;
        let commit = state.last_commit();
        let answer = query(&open, &state).await;
        if reads == Reads::LogOnly && answer.is_ok() {
            return answer;
        }
        if let Err(unread) = state.refresh().await {
            // The query's own error may come from a commit meanwhile, but says more than this one.
            return Err(answer.err().unwrap_or(unread));
        }
        if state.last_commit() == commit {
            return answer;
        }
        let Some(delay) = delays.next() else {
            let busy = Error::busy(format!(
                "other runs of this pipeline committed during each of {TRIES} tries"
            ))
            .hint("run the command again later");
            return Err(match answer {
                Ok(_) => busy,
                Err(error) => busy.caused_by(error),
            });
        };
        info!("another run committed meanwhile: repeating the read");
        tokio::time::sleep(delay).await;
    }
}
