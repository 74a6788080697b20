//! Bad input in a run: put aside, and let go of when it is whole again.

use std::collections::BTreeSet;

use tracing::warn;

use crate::commands::catch_up::released;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::curate::stage::Staged;
use crate::error::Result;
use crate::layout::attempt_commit;
use crate::raw::discover::{Input, Recorded};
use crate::state::ledger::{self, Ledger, Record, Step};
use crate::state::quarantine::QuarantineWriter;
use crate::store::Folder;
use crate::store::listing::list;
use crate::store::remove::remove;

impl Run<'_> {
    /// Puts aside what could not be folded; returns what the ledger is to know of it, and of inputs
    /// that are whole now.
    pub(crate) async fn quarantine_records(
        &self,
        step: Step,
        attempt: &mut Attempt,
        staged: &Staged,
        inputs: &[Input],
        folders: &[Folder],
    ) -> Result<Vec<Record>> {
        let Staged {
            changes,
            bad_files,
            bad_rows,
            ..
        } = staged;
        let mut bad_rows_of = bad_rows.sorted();
        let mut records = match step {
            Step::CatchUp => released(&attempt.state.ledger, inputs),
            _ => Vec::new(),
        };
        let aside = QuarantineWriter {
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
                aside.rows(&file, number, bad).await?;
            } else if attempt.state.ledger.is_quarantined(location, &path) {
                records.push(Record::Released { location, path });
            }
        }
        for (input, reason) in bad_files {
            let name = folders[input.file.location].describe(&input.file.path);
            warn!("in quarantine: {name}: {reason}");
            let file = next_file();
            aside.file(&file, &name, reason).await?;
            records.push(Record::Quarantined(ledger::Quarantined {
                input: input.file.clone(),
                rows: None,
                file,
            }));
        }
        if files == 0 {
            return Ok(records);
        }
        let report = &mut attempt.report;
        report.files_rejected = bad_files.len() as u64;
        report.rows_rejected = bad_rows.count();
        report.quarantine = Some(self.open.quarantine.location.to_string());
        warn!(
            "{} rows and {} files of this run went to quarantine: {}; what they say is missing in the \
             table, and a delete among them leaves its key alive",
            report.rows_rejected, report.files_rejected, self.open.quarantine.location
        );
        Ok(records)
    }

    /// Removes what was put aside by earlier runs, and is not any more.
    pub(crate) async fn prune_quarantine(&self, ledger: &Ledger) -> Result<()> {
        if ledger.quarantined.is_empty() && ledger.runs.len() <= 1 {
            return Ok(());
        }
        let used: BTreeSet<&String> = ledger
            .quarantined
            .values()
            .map(|aside| &aside.file)
            .collect();
        let found = list(&self.open.quarantine).await?.into_iter();
        let last = ledger.runs.last().map_or(0, |run| run.commit);
        let is_unused = |path: &String| {
            let is_done = attempt_commit(path).is_some_and(|commit| commit <= last);
            is_done && !used.contains(path)
        };
        remove(&self.open.quarantine, found.filter(is_unused).collect()).await
    }
}
