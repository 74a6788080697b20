//! Catching up: what the ledger says was never folded, however long ago.
//!
//! These are inputs that appeared after their window was run, beyond what a run looks back; what
//! lies between the windows that were run; and what was put aside. The run counts as one of the
//! whole span from the first window to the last, so that nothing of it is a gap any more.

use tracing::{info, warn};

use super::{Attempt, Job};
use crate::discover::{self, Input};
use crate::error::Result;
use crate::ledger::{Command, Ledger, Record};
use crate::state::NotCommitted;
use crate::store::Folder;

impl Job<'_> {
    /// The inputs that were never folded; with a note of those in quarantine that are gone.
    pub(super) async fn catch_up_inputs(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
        note: &mut Option<String>,
    ) -> Result<Vec<Input>> {
        let pipeline = self.request.pipeline;
        let put_aside = ledger.put_aside.values().map(|aside| &aside.input);
        let found = discover::catch_up(folders, pipeline, ledger, put_aside.collect());
        let (mut inputs, gone) = found.await?;
        if let Some(first) = gone.first() {
            let told = format!(
                "{} inputs in quarantine are gone, such as {}",
                gone.len(),
                first.path
            );
            warn!("{told}");
            *note = Some(told);
        }
        for input in inputs.iter_mut().filter(|_| pipeline.key.is_empty()) {
            let name = (input.file.location, input.file.path.clone());
            let aside = ledger.put_aside.get(&name);
            // The others are rows of the table.
            input.only = aside.and_then(|aside| aside.rows.clone());
        }
        Ok(inputs)
    }

    /// Remembers that there is nothing in gaps and quarantine any more, where there was something.
    pub(super) async fn catch_up_with_nothing(
        &self,
        attempt: &mut Attempt,
    ) -> Result<(), NotCommitted> {
        let ledger = &attempt.state.ledger;
        let told = "every input was folded, and nothing is in quarantine";
        info!("nothing to catch up with: {told}");
        attempt.report.note.get_or_insert(told.into());
        let records = released(ledger, &[]);
        if records.is_empty() && ledger.gaps().is_empty() {
            return Ok(());
        }
        self.commit_and_publish(attempt, Command::CatchUp, records, None, vec![], &[])
            .await
    }
}

/// What the ledger is to know of files that were put aside as a whole, and were taken away: those
/// that are not among the inputs found.
pub(super) fn released(ledger: &Ledger, found: &[Input]) -> Vec<Record> {
    let whole = ledger.put_aside.values();
    let whole = whole.filter(|aside| aside.rows.is_none());
    let gone = discover::gone(whole.map(|aside| &aside.input), found);
    gone.map(|file| Record::Released {
        location: file.location,
        path: file.path.clone(),
    })
    .collect()
}
