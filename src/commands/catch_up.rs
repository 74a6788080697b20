//! Catching up: folds everything that the ledger does not list as folded, however old.
//! These are inputs that appeared after their window was run, earlier than a run's lookback; inputs
//! in gaps between windows; and quarantined inputs and rows. The run is recorded with the whole
//! span from the first window to the last, which closes the gaps.

use tracing::{info, warn};

use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::run::inputs::{Inputs, absent_records, note_of_missing, renewed_records};
use crate::error::Result;
use crate::raw::discover::{self, Input};
use crate::report::one_note;
use crate::state::NotCommitted;
use crate::state::ledger::{ChangedDays, Ledger, Record, Step};
use crate::store::Folder;

impl Run<'_> {
    /// The inputs that were never folded.
    pub(super) async fn catch_up_inputs(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
    ) -> Result<Inputs> {
        let pipeline = self.open.run_context.pipeline;
        let quarantined = ledger.quarantined.values().map(|quarantined| &quarantined.input);
        let now = self.open.run_context.now;
        let found =
            discover::catch_up(folders, pipeline, ledger, quarantined.collect(), now).await?;
        let missing = found.missing_quarantined.first().map(|first| {
            format!(
                "{} inputs in quarantine are missing, such as {}",
                found.missing_quarantined.len(),
                first.path
            )
        });
        let notes = missing.into_iter();
        let notes = notes.chain(note_of_missing(pipeline, ledger, &found.missing_folded));
        let notes = notes.chain(found.unsettled.describe(&pipeline.raw, folders));
        let note = one_note(notes);
        if let Some(note) = &note {
            warn!("{note}");
        }
        let mut inputs = found.inputs;
        for input in inputs.iter_mut().filter(|_| pipeline.key.is_empty()) {
            let name = (input.file.location, input.file.path.clone());
            let quarantined = ledger.quarantined.get(&name);
            // The table already has the rows that are not quarantined.
            input.only = quarantined.and_then(|quarantined| quarantined.rows.clone());
        }
        let mut records = renewed_records(ledger, &found.renewed);
        records.extend(absent_records(ledger, found.missing_folded.into_iter()));
        Ok(Inputs { inputs, records, note })
    }

    /// Commits that nothing was found in gaps and quarantine, if the ledger lists any of them.
    pub(super) async fn commit_empty_catch_up(
        &self,
        attempt: &mut Attempt,
        known: Vec<Record>,
    ) -> Result<(), NotCommitted> {
        let ledger = &attempt.state.ledger;
        let mut note = "every input between the first and the last window was folded".to_string();
        if ledger.quarantined.is_empty() {
            note += ", and nothing is in quarantine";
        }
        info!("nothing to catch up with: {note}");
        attempt.report.note.get_or_insert(note);
        let released = released(ledger, &[]);
        if released.is_empty() && ledger.gaps().is_empty() {
            return Ok(());
        }
        let records = known.into_iter().chain(released).collect();
        self.commit_and_publish(attempt, Step::CatchUp, records, None, ChangedDays::default(), &[])
            .await
    }
}

/// Ledger records that release inputs from quarantine: those quarantined as a whole that are no
/// longer among the inputs `found`.
pub(super) fn released(ledger: &Ledger, found: &[Input]) -> Vec<Record> {
    let quarantined = ledger.quarantined.values();
    let whole = quarantined.filter(|quarantined| quarantined.rows.is_none());
    let missing = discover::missing_files(whole.map(|whole| &whole.input), found);
    missing
        .map(|file| Record::Released { location: file.location, path: file.path.clone() })
        .collect()
}
