//! Conservation checks: rows and versions written must equal those before, less the removed ones,
//! plus the winners.

use std::collections::{BTreeMap, BTreeSet};

use crate::curate::merge::Merged;
use crate::curate::pass_two::Counts;
use crate::error::{Error, Result};
use crate::state::versions_writer::VersionsFile;
use crate::table::writer::Written;

/// The error for a run that does not add up.
pub(crate) fn does_not_add_up(what: &str, one: u64, other: u64) -> Error {
    Error::internal(format!("the run does not add up: {what} {one}, but {other}"))
        .hint("nothing was published; did an input change during the run?")
}

/// Checks for every partition: rows staged (by the footers) and rows of files that stay (by their
/// deletion vectors) = rows before (by the ledger, which is compared with the footers of files that are
/// read) - rows removed (by the versions) + winners. Returns the winners' share of the bytes.
pub(super) fn check_written(
    written: &[Written],
    given: &BTreeMap<String, u64>,
    merged: Option<&Merged>,
) -> Result<u64> {
    let mut bytes_changed = 0;
    for one in written {
        let removed = merged
            .and_then(|merged| merged.counts.removed.get(&one.partition))
            .copied()
            .unwrap_or_default();
        let ended = merged.and_then(|merged| merged.counts.ended_rows.get(&one.partition));
        // A row that ends is given too, and stays.
        let given = given.get(&one.partition).copied().unwrap_or_default();
        let given = given.saturating_sub(ended.copied().unwrap_or_default());
        let staged: u64 = one.files.iter().map(|file| file.rows).sum();
        let rows = staged + one.kept.iter().map(|file| file.rows).sum::<u64>();
        // The sorter's rows (`given`) include a tombstone per removed row.
        if rows + 2 * removed != one.rows_before + given {
            let expected = (one.rows_before + given).saturating_sub(2 * removed);
            let what = format!("rows of the partition `{}`", one.partition);
            return Err(does_not_add_up(&what, rows, expected));
        }
        let bytes: u64 = one.files.iter().map(|file| file.bytes).sum();
        let part = u128::from(bytes) * u128::from(given - removed) / u128::from(staged.max(1));
        bytes_changed += part as u64;
    }
    let written: BTreeSet<&String> = written.iter().map(|one| &one.partition).collect();
    let mut removed_from = merged.into_iter().flat_map(|merged| merged.counts.removed.keys());
    match removed_from.find(|partition| !written.contains(partition)) {
        Some(partition) => {
            Err(does_not_add_up(&format!("rows to be removed from `{partition}`"), 1, 0))
        }
        None => Ok(bytes_changed),
    }
}

/// Checks: versions written (by the footers) = versions of rewritten files (by the footers) -
/// replaced versions + winners, of which there are as many as the merge has left.
pub(super) fn check_versions(
    versions: &[VersionsFile],
    counts: &Counts,
    merged: Option<&Merged>,
) -> Result<()> {
    let written: u64 = versions.iter().map(|file| file.rows).sum();
    let (before, replaced) =
        merged.map_or((0, 0), |merged| (merged.versions_before, merged.counts.replaced));
    if written + replaced != before + counts.key_days {
        let expected = (before + counts.key_days).saturating_sub(replaced);
        return Err(does_not_add_up("versions written", written, expected));
    }
    let merged = merged.map_or(counts.key_days, |merged| merged.counts.key_days);
    if merged != counts.key_days {
        return Err(does_not_add_up("winners after the merge", merged, counts.key_days));
    }
    Ok(())
}
