//! Quarantines bad inputs of a run, and releases those that could be folded.

use std::collections::BTreeSet;

use tracing::warn;

use crate::commands::catch_up::released;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::curate::stage::Staged;
use crate::error::Result;
use crate::layout::attempt_commit;
use crate::raw::discover::{Input, Recorded};
use crate::raw::fingerprint;
use crate::state::ledger::{self, Ledger, Record, Step};
use crate::state::quarantine::QuarantineWriter;
use crate::store::Folder;
use crate::store::listing::list;
use crate::store::remove::remove;

impl Run<'_> {
    /// Writes inputs and rows that could not be folded to quarantine; returns the ledger records of
    /// these, and of inputs released from quarantine.
    pub(crate) async fn quarantine_records(
        &self,
        step: Step,
        attempt: &mut Attempt,
        staged: &Staged,
        inputs: &[Input],
        folders: &[Folder],
    ) -> Result<Vec<Record>> {
        let Staged { changes, bad_files, bad_rows, .. } = staged;
        let mut bad_rows_of = bad_rows.sorted();
        let mut records = match step {
            Step::CatchUp => released(&attempt.state.ledger, inputs),
            _ => Vec::new(),
        };
        let writer = QuarantineWriter {
            changes,
            bad_rows,
            folder: &self.open.quarantine,
            run_id: &attempt.run_id,
        };
        let mut files = 0;
        let mut next_file = || {
            files += 1;
            format!("{}-{files:05}.parquet", attempt.name)
        };
        for (number, input) in changes.inputs().enumerate() {
            let (location, path) = (input.file.location, input.file.path.clone());
            if let Some(bad) = bad_rows_of.remove(&number) {
                let file = next_file();
                records.push(Record::Quarantined(ledger::Quarantined {
                    input: input.file.clone(),
                    rows: Some(bad.iter().map(|bad| bad.row).collect()),
                    file: file.clone(),
                }));
                writer.rows(&file, number, bad).await?;
            } else if attempt.state.ledger.is_quarantined(location, &path) {
                records.push(Record::Released { location, path });
            }
        }
        for (input, reason) in bad_files {
            let folder = &folders[input.file.location];
            let name = folder.describe(&input.file.path);
            let mut bad = input.file.clone();
            if bad.fingerprint.is_none() {
                bad.fingerprint = Some(fingerprint::read(folder, &bad.path, bad.size).await?);
            }
            warn!("in quarantine: {name}: {reason}");
            let file = next_file();
            writer.file(&file, &name, reason).await?;
            records.push(Record::Quarantined(ledger::Quarantined { input: bad, rows: None, file }));
        }
        if files == 0 {
            return Ok(records);
        }
        let report = &mut attempt.report;
        report.files_rejected = bad_files.len() as u64;
        report.rows_rejected = bad_rows.count();
        report.quarantine = Some(self.open.quarantine.location.to_string());
        warn!(
            "{} rows and {} files of this run were quarantined: {}; their changes are missing \
             in the table, and the key of a quarantined delete keeps its row",
            report.rows_rejected, report.files_rejected, self.open.quarantine.location
        );
        Ok(records)
    }

    /// Removes quarantine files of earlier runs that the ledger no longer lists.
    pub(crate) async fn prune_quarantine(&self, ledger: &Ledger) -> Result<()> {
        if ledger.quarantined.is_empty() && ledger.runs.len() <= 1 {
            return Ok(());
        }
        let used: BTreeSet<&String> =
            ledger.quarantined.values().map(|quarantined| &quarantined.file).collect();
        let found = list(&self.open.quarantine).await?.into_iter();
        let last = ledger.runs.last().map_or(0, |run| run.commit);
        let is_unused = |path: &String| {
            let is_done = attempt_commit(path).is_some_and(|commit| commit <= last);
            is_done && !used.contains(path)
        };
        remove(&self.open.quarantine, found.filter(is_unused).collect()).await
    }
}
