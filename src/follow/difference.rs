//! What is between a target's marker and the newest commit.

use std::collections::BTreeSet;

use crate::layout::{attempt_commit, base_name, parent, part_file_commit};
use crate::state::ledger::{Ledger, Run, Step};
use crate::table::TableFile;

use crate::follow::Marker;

/// What a follower applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The target has the newest commit.
    Nothing,
    /// What has changed since a commit.
    Since(u64),
    /// The whole table.
    Everything,
}

impl Difference {
    /// What is between a marker and the newest commit of the ledger.
    pub(crate) fn between(marker: Option<&Marker>, ledger: &Ledger, source: &str) -> Self {
        let Some(marker) = marker.filter(|marker| marker.source == source) else {
            return Difference::Everything;
        };
        let is_marked = |run: &&Run| run.commit == marker.commit;
        let known = ledger.runs.iter().find(is_marked);
        if known.is_none_or(|run| run.run_id != marker.run_id) {
            return Difference::Everything;
        }
        let later: Vec<&Run> =
            ledger.runs.iter().filter(|run| run.commit > marker.commit).collect();
        if later.is_empty() {
            return Difference::Nothing;
        }
        // A floor ends the rows of keys that have no new version.
        if ledger.floors.iter().any(|(_, commit)| *commit > marker.commit) {
            return Difference::Everything;
        }
        // A rebuild drops keys without saying which; of forgotten keys nothing says which they were.
        let drops_keys = |run: &&Run| run.command.replaces_table() || run.command == Step::Forget;
        let is_rebuilt = later.iter().any(drops_keys);
        if is_rebuilt { Difference::Everything } else { Difference::Since(marker.commit) }
    }

    /// The files of a table that have all rows which are to be applied, and others.
    pub(crate) fn files<'a>(self, ledger: &'a Ledger, table: &str) -> Vec<&'a TableFile> {
        let files = ledger.files(table);
        files.filter(|file| self.includes(written_by(file))).collect()
    }

    /// The partitions with such files.
    pub(crate) fn partitions(self, ledger: &Ledger, table: &str) -> BTreeSet<String> {
        let files = self.files(ledger, table).into_iter();
        files.map(|file| parent(&file.path).to_string()).collect()
    }

    fn includes(self, commit: Option<u64>) -> bool {
        match self {
            Difference::Nothing => false,
            Difference::Since(since) => commit.is_none_or(|commit| commit > since),
            Difference::Everything => true,
        }
    }
}

/// The commit that wrote a file. A file that keeps the name of the one that it replaces is known by its
/// place in staging.
fn written_by(file: &TableFile) -> Option<u64> {
    let attempt = file.staged.as_deref().and_then(attempt_commit);
    attempt.or_else(|| part_file_commit(base_name(&file.path)))
}
