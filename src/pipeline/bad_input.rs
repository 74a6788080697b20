//! Bad input in a run: opened around, put aside, and taken up again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::warn;

use super::{Attempt, Job, Request, lost};
use crate::bad_rows::{BadRow, BadRows};
use crate::changes::Changes;
use crate::config::OnBad;
use crate::discover::{self, Input, Recorded};
use crate::error::Result;
use crate::layout::attempt_commit;
use crate::ledger::{self, Command, Ledger, Record};
use crate::opening::Opening;
use crate::publish;
use crate::quarantine::PutAside;
use crate::schema_changes::KnownColumns;
use crate::session::BATCH_ROWS;
use crate::store::Folder;

/// Inputs that cannot be read, by raw location and path, and why.
pub(super) type BadInputs = BTreeMap<(usize, String), String>;

impl Job<'_> {
    /// The inputs of which something was put aside; with a note of those that are gone.
    pub(super) async fn put_aside(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
        note: &mut Option<String>,
    ) -> Result<Vec<Input>> {
        let Request { pipeline, .. } = self.request;
        let aside = ledger
            .put_aside
            .values()
            .map(|aside| &aside.input)
            .collect();
        let found = discover::catch_up(folders, &pipeline.raw, ledger, aside);
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

    /// Refuses rows as bad that an earlier run has folded: they would stay in the table, or be lost
    /// by a rebuild.
    pub(super) fn check_still_read(
        &self,
        changes: &Changes,
        ledger: &Ledger,
        folders: &[Folder],
        is_rebuild: bool,
    ) -> Result<()> {
        let bad_rows = changes.bad_rows().sorted();
        for (number, input) in changes.inputs().enumerate() {
            // Windows of rows leave rows out that can be bad.
            let is_whole = input.rows.is_none() && input.only.is_none();
            let Some(bad) = bad_rows.get(&number).filter(|_| is_whole) else {
                continue;
            };
            let (location, path) = (input.file.location, &input.file.path);
            let is_here = folders[location].location.file_path().is_some();
            let folded = ledger.folded(location, path);
            if !folded.is_some_and(|folded| folded.is_same(&input.file, is_here)) {
                continue;
            }
            let aside = ledger.put_aside.get(&(location, path.clone()));
            let known = aside.and_then(|aside| aside.rows.as_deref());
            let is_new = |bad: &&BadRow| known.is_none_or(|known| !known.contains(&bad.row));
            if let Some(first) = bad.iter().find(is_new) {
                let why = first.told(&folders[location].describe(path));
                let told = format!("a row that was folded cannot be read any more: {why}");
                let lost = lost(told, is_rebuild);
                let hint = lost.hint.clone().unwrap_or_default();
                return Err(lost.hint(format!("{}; or {hint}", first.hint)));
            }
        }
        Ok(())
    }

    /// Opens inputs; returns also those that cannot be read, and why. `bad` are those that turned
    /// out so when others had been folded already.
    pub(super) async fn open(
        &self,
        inputs: &[Input],
        folders: &[Folder],
        known: &KnownColumns,
        ledger: &Ledger,
        bad: &mut BadInputs,
    ) -> Result<(Arc<Changes>, Vec<(Input, String)>)> {
        let pipeline = self.request.pipeline;
        let resources = self.request.resources;
        loop {
            let bad_rows = Arc::new(BadRows::new(match pipeline.raw.on_bad_row {
                OnBad::Fail => 0,
                OnBad::Quarantine => pipeline.raw.max_bad_rows,
            }));
            let opening = Opening {
                folders,
                raw: &pipeline.raw,
                kept_bytes_max: (resources.memory_bytes / 8) as usize,
                runtime: &self.runtime,
                threads: resources.threads,
                bad_rows: &bad_rows,
            };
            let (mut good, mut bad_files) = (Vec::new(), Vec::new());
            for input in inputs {
                match bad.get(&(input.file.location, input.file.path.clone())) {
                    Some(reason) => bad_files.push((input.clone(), reason.clone())),
                    None => good.push(input.clone()),
                }
            }
            let opened = Changes::open(good, opening, pipeline, known, BATCH_ROWS).await?;
            let (changes, unopened) = opened;
            let changes = Arc::new(changes);
            let unopened = unopened.into_iter();
            bad_files.extend(unopened.map(|(input, error)| (input, error.to_string())));
            if bad.is_empty() {
                return Ok((changes, bad_files));
            }
            // Where one was damaged, others may be: they are found together.
            let mut damaged = changes.damaged(resources.threads).await?;
            // One that was folded may be so where it is not needed.
            damaged.retain(|(input, _)| ledger.folded(input.location, &input.path).is_none());
            if damaged.is_empty() {
                return Ok((changes, bad_files));
            }
            for (input, error) in damaged {
                bad.insert((input.location, input.path), error.to_string());
            }
        }
    }

    /// Puts aside what could not be folded; returns what the ledger is to know of it, and of inputs
    /// that are whole now.
    pub(super) async fn put_aside_records(
        &self,
        command: Command,
        attempt: &mut Attempt,
        changes: &Changes,
        inputs: &[Input],
        bad_files: &[(Input, String)],
        folders: &[Folder],
    ) -> Result<Vec<Record>> {
        let mut bad_rows = changes.bad_rows().sorted();
        let mut records = match command {
            Command::CatchUp => released(&attempt.state.ledger, inputs),
            _ => Vec::new(),
        };
        let aside = PutAside {
            changes,
            folder: &self.quarantine,
            run_id: &attempt.run_id,
        };
        let mut files = 0;
        let mut next_file = || {
            files += 1;
            format!("{}-{files:05}.parquet", attempt.name)
        };
        for (number, input) in changes.inputs().enumerate() {
            let (location, path) = (input.file.location, input.file.path.clone());
            if let Some(bad) = bad_rows.remove(&number) {
                let file = next_file();
                records.push(Record::PutAside(ledger::PutAside {
                    input: input.file.clone(),
                    rows: Some(bad.iter().map(|bad| bad.row).collect()),
                    file: file.clone(),
                }));
                aside.rows(&file, number, bad).await?;
            } else if attempt.state.ledger.is_put_aside(location, &path) {
                records.push(Record::Released { location, path });
            }
        }
        for (input, reason) in bad_files {
            let name = folders[input.file.location].describe(&input.file.path);
            warn!("in quarantine: {name}: {reason}");
            let file = next_file();
            aside.file(&file, &name, reason).await?;
            records.push(Record::PutAside(ledger::PutAside {
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
        report.rows_rejected = changes.bad_rows().count();
        report.quarantine = Some(self.quarantine.location.to_string());
        warn!(
            "{} rows and {} files of this run went to quarantine: {}; what they say is missing in the \
             table, and a delete among them leaves its key alive",
            report.rows_rejected, report.files_rejected, self.quarantine.location
        );
        Ok(records)
    }

    /// Removes what was put aside by earlier runs, and is not any more.
    pub(super) async fn tidy_quarantine(&self, ledger: &Ledger) -> Result<()> {
        if ledger.put_aside.is_empty() && ledger.runs.len() <= 1 {
            return Ok(());
        }
        let used: BTreeSet<&String> = ledger.put_aside.values().map(|aside| &aside.file).collect();
        let found = publish::list(&self.quarantine).await?.into_iter();
        let last = ledger.runs.last().map_or(0, |run| run.commit);
        let is_unused = |path: &String| {
            let is_done = attempt_commit(path).is_some_and(|commit| commit <= last);
            is_done && !used.contains(path)
        };
        publish::remove(&self.quarantine, found.filter(is_unused).collect()).await
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
