//! Truncates that are set by hand: floors without a raw file ([`crate::state::floors`]).
//!
//! For sources whose tool writes no truncates into files. Each is in the ledger, and so a run from empty, such as a
//! rebuild, has those of before.

use chrono::{DateTime, Utc};

use crate::commands::open_pipeline::nothing_folded;
use crate::commands::run::Run;
use crate::commands::task::Task;
use crate::config::Raw;
use crate::curate::Curated;
use crate::error::{Error, Result};
use crate::raw::discover::{Input, RawFile, Recorded};
use crate::report::{Report, one_note};
use crate::state::ledger::{self, Ledger, Step};
use crate::store::Folder;

impl Run<'_> {
    /// The truncates by hand that the fold is to take account of; `None` if the one to set is there already.
    pub(super) fn truncates_by_hand(
        &self,
        ledger: &Ledger,
        report: &mut Report,
    ) -> Result<Option<Vec<DateTime<Utc>>>> {
        let known = || ledger.truncates_by_hand();
        Ok(match self.task {
            Task::Truncate(at) if known().any(|known| known == at) => {
                report.note = Some(format!("a truncate at {at} was set before: nothing to do"));
                None
            }
            Task::Truncate(at) => {
                self.check_truncate(ledger, at)?;
                Some(vec![at])
            }
            Task::UndoTruncate(at) => {
                if !known().any(|known| known == at) {
                    let is_of =
                        |run: &ledger::Run| run.command == Step::Truncate && run.start == at;
                    if !ledger.runs.iter().any(is_of) {
                        return Err(not_set(at, known()));
                    }
                    report.note = Some(format!("the truncate at {at} was taken back before"));
                    return Ok(None);
                }
                Some(known().filter(|known| *known != at).collect())
            }
            Task::Rebuild { .. } | Task::Recall(_) => Some(known().collect()),
            _ => Some(Vec::new()),
        })
    }

    /// Checks that no truncate by hand ends a full load that was written after it. `truncates` are those of the fold.
    pub(super) fn check_loads(
        &self,
        ledger: &Ledger,
        inputs: &[Input],
        truncates: &[DateTime<Utc>],
        folders: &[Folder],
    ) -> Result<()> {
        let raw = &self.open.run_context.pipeline.raw;
        match self.task {
            Task::Truncate(_) => refuse_ended_loads(raw, ledger.inputs.iter(), truncates, folders),
            // From empty, what was folded with loads at their time may have none now.
            Task::Rebuild { .. } | Task::UndoTruncate(_) | Task::Recall(_) => {
                let files = inputs.iter().map(|input| &input.file);
                refuse_ended_loads(raw, files, truncates, folders)
            }
            _ => check_new_loads(raw, ledger, inputs, folders),
        }
    }

    /// Notes what a truncate by hand has ended.
    pub(super) fn note_truncate(&self, report: &mut Report, curated: &Curated) {
        if let Task::Truncate(at) = self.task {
            let ended = format!("the truncate at {at} has ended {} rows", curated.ended);
            report.note = one_note([ended].into_iter().chain(report.note.take()));
        }
    }

    /// Checks that the table can have a truncate at a time.
    fn check_truncate(&self, ledger: &Ledger, at: DateTime<Utc>) -> Result<()> {
        let run_context = self.open.run_context;
        if ledger.contract.is_none() {
            return Err(nothing_folded("truncate"));
        }
        if !run_context.pipeline.raw.constants.is_empty() {
            return Err(Error::usage(
                "a truncate ends the rows of all sources and folders (`raw.source`, `raw.path_columns`)",
            )
            .hint("give each tenant a pipeline of its own, if one of them is to be emptied"));
        }
        if at > run_context.now {
            return Err(Error::usage(format!("the time {at} has not come yet")).hint(
                "it would end changes that are still to come: give the time of the truncate",
            ));
        }
        Ok(())
    }
}

fn not_set(at: DateTime<Utc>, known: impl Iterator<Item = DateTime<Utc>>) -> Error {
    let known: Vec<String> = known.map(|known| known.to_string()).collect();
    Error::usage(format!("no truncate was set by hand at {at}")).hint(if known.is_empty() {
        "none was set at any time".to_string()
    } else {
        format!("those that were set are at {}", known.join(", "))
    })
}

/// Refuses new full loads that a truncate by hand would end.
///
/// # Errors
/// Data: such a load.
pub(crate) fn check_new_loads(
    raw: &Raw,
    ledger: &Ledger,
    inputs: &[Input],
    folders: &[Folder],
) -> Result<()> {
    let truncates: Vec<DateTime<Utc>> = ledger.truncates_by_hand().collect();
    if truncates.is_empty() {
        return Ok(());
    }
    let is_new = |file: &&RawFile| {
        let is_local = folders[file.location].location.file_path().is_some();
        let folded = ledger.folded(file.location, &file.path);
        folded.is_none_or(|folded| !folded.is_same(file, is_local))
    };
    let files = inputs.iter().map(|input| &input.file).filter(is_new);
    refuse_ended_loads(raw, files, &truncates, folders)
}

/// Refuses to let a truncate by hand end a full load that was written after it: a load without a time is before all
/// changes, and so before every truncate.
fn refuse_ended_loads<'a>(
    raw: &Raw,
    files: impl Iterator<Item = &'a RawFile>,
    truncates: &[DateTime<Utc>],
    folders: &[Folder],
) -> Result<()> {
    if truncates.is_empty() || raw.full_loads.at.is_time() {
        return Ok(());
    }
    let mut loads = files.filter(|file| raw.is_full_load(file.location, &file.path));
    let ended = loads.find_map(|file| {
        let at = truncates.iter().find(|at| **at <= file.window_time())?;
        Some((file, at))
    });
    let Some((file, at)) = ended else { return Ok(()) };
    let folder = folders.get(file.location);
    let name = folder.map_or(file.path.clone(), |folder| folder.describe(&file.path));
    Err(Error::data(format!(
        "{name} is a full load without a time, which comes before every truncate: the truncate at {at} would end its \
         rows, although the file was written at {}",
        file.window_time()
    ))
    .hint(
        "nothing was changed: give full loads a time with `raw.full_load_at`, and rebuild the tables: glueless rebuild",
    ))
}
