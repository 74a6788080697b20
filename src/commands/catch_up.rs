//! Catching up: what the ledger says was never folded, however long ago.
//!
//! These are inputs that appeared after their window was run, beyond what a run looks back; what
//! lies between the windows that were run; and what was put aside. The run counts as one of the
//! whole span from the first window to the last, so that nothing of it is a gap any more.

use tracing::{info, warn};

use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::run::inputs::{Inputs, absent_records};
use crate::error::Result;
use crate::raw::discover::{self, Input};
use crate::state::NotCommitted;
use crate::state::ledger::{Ledger, Record, Step};
use crate::store::Folder;

impl Run<'_> {
    /// The inputs that were never folded.
    pub(super) async fn catch_up_inputs(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
    ) -> Result<Inputs> {
        let pipeline = self.open.run_context.pipeline;
        let quarantined = ledger.quarantined.values().map(|aside| &aside.input);
        let found = discover::catch_up(folders, pipeline, ledger, quarantined.collect()).await?;
        let note = found.missing_quarantined.first().map(|first| {
            format!(
                "{} inputs in quarantine are gone, such as {}",
                found.missing_quarantined.len(),
                first.path
            )
        });
        if let Some(note) = &note {
            warn!("{note}");
        }
        let mut inputs = found.inputs;
        for input in inputs.iter_mut().filter(|_| pipeline.key.is_empty()) {
            let name = (input.file.location, input.file.path.clone());
            let aside = ledger.quarantined.get(&name);
            // The others are rows of the table.
            input.only = aside.and_then(|aside| aside.rows.clone());
        }
        Ok(Inputs {
            inputs,
            absent: absent_records(ledger, found.missing_folded.into_iter()),
            note,
        })
    }

    /// Remembers that there is nothing in gaps and quarantine any more, where there was something.
    pub(super) async fn catch_up_with_nothing(
        &self,
        attempt: &mut Attempt,
        absent: Vec<Record>,
    ) -> Result<(), NotCommitted> {
        let ledger = &attempt.state.ledger;
        let mut told = "every input was folded".to_string();
        if ledger.quarantined.is_empty() {
            told += ", and nothing is in quarantine";
        }
        info!("nothing to catch up with: {told}");
        attempt.report.note.get_or_insert(told);
        let mut records = released(ledger, &[]);
        if records.is_empty() && ledger.gaps().is_empty() {
            return Ok(());
        }
        records.extend(absent);
        self.commit_and_publish(attempt, Step::CatchUp, records, None, vec![], &[])
            .await
    }
}

/// What the ledger is to know of files that were put aside as a whole, and were taken away: those
/// that are not among the inputs found.
pub(super) fn released(ledger: &Ledger, found: &[Input]) -> Vec<Record> {
    let whole = ledger.quarantined.values();
    let whole = whole.filter(|aside| aside.rows.is_none());
    let gone = discover::missing_files(whole.map(|aside| &aside.input), found);
    gone.map(|file| Record::Released {
        location: file.location,
        path: file.path.clone(),
    })
    .collect()
}
