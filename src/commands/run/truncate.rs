//! Truncates that are set by hand: floors without a raw file ([`crate::state::floors`]).
//!
//! For sources whose tool writes no truncates into files. Each is in the ledger, and so a run from empty, such as a
//! rebuild, has those of before.

use chrono::{DateTime, Utc};

use crate::commands::open_pipeline::nothing_folded;
use crate::commands::run::Run;
use crate::commands::task::Task;
use crate::curate::Curated;
use crate::error::{Error, Result};
use crate::raw::discover::{Input, RawFile, Recorded};
use crate::report::Report;
use crate::state::ledger::Ledger;
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
                    return Err(not_set(at, known()));
                }
                Some(known().filter(|known| *known != at).collect())
            }
            Task::Rebuild { .. } => Some(known().collect()),
            _ => Some(Vec::new()),
        })
    }

    /// Refuses to let a truncate by hand end a full load that was written after it: a load without a time is before
    /// all changes, and so before every truncate. `truncates` are those of the fold.
    pub(super) fn check_loads(
        &self,
        ledger: &Ledger,
        inputs: &[Input],
        truncates: &[DateTime<Utc>],
        folders: &[Folder],
    ) -> Result<()> {
        let raw = &self.open.run_context.pipeline.raw;
        let is_load = |file: &&RawFile| raw.is_full_load(file.location, &file.path);
        let is_new = |file: &&RawFile| {
            let is_local = folders[file.location].location.file_path().is_some();
            let folded = ledger.folded(file.location, &file.path);
            folded.is_none_or(|folded| !folded.is_same(file, is_local))
        };
        let truncates: Vec<DateTime<Utc>> = match self.task {
            Task::Run(_) | Task::Curate(_) | Task::CatchUp => ledger.truncates_by_hand().collect(),
            _ => truncates.to_vec(),
        };
        if truncates.is_empty() || raw.full_loads.at.is_time() {
            return Ok(());
        }
        let files: Vec<&RawFile> = match self.task {
            Task::Truncate(_) => ledger.inputs.iter().filter(is_load).collect(),
            _ => inputs.iter().map(|input| &input.file).filter(is_load).filter(is_new).collect(),
        };
        let ended = files.into_iter().find_map(|file| {
            let at = truncates.iter().find(|at| **at <= file.modified)?;
            Some((folders[file.location].describe(&file.path), file.modified, at))
        });
        match ended {
            None => Ok(()),
            Some((name, modified, at)) => Err(Error::data(format!(
                "{name} is a full load without a time, and comes before every truncate: that at {at} would end its \
                 rows, although the file is of {modified}"
            ))
            .hint(
                "nothing was changed: give full loads a time with `raw.full_load_at`, and rebuild the tables: glueless \
                 rebuild",
            )),
        }
    }

    /// Notes what a truncate by hand has ended.
    pub(super) fn note_truncate(&self, report: &mut Report, curated: &Curated) {
        if let Task::Truncate(at) = self.task {
            report.note = Some(format!("the truncate at {at} has ended {} rows", curated.ended));
        }
    }

    /// Checks that the table can have a truncate at a time.
    fn check_truncate(&self, ledger: &Ledger, at: DateTime<Utc>) -> Result<()> {
        let run_context = self.open.run_context;
        if ledger.contract.is_none() {
            return Err(nothing_folded("truncate"));
        }
        if run_context.pipeline.key.is_empty() {
            return Err(Error::usage(
                "a table without a key accepts inserts only, and no truncate",
            )
            .hint("name the primary key in `key`"));
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
