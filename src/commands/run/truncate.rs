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
use crate::report::Report;
use crate::state::ledger::Ledger;

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
