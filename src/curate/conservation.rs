//! What was written must add up: rows and versions before, those that are removed, and winners.

use std::collections::{BTreeMap, BTreeSet};

use crate::curate::merge::Merged;
use crate::curate::pass_two::Counts;
use crate::error::{Error, Result};
use crate::state::versions_writer::VersionsFile;
use crate::table::writer::Written;

/// A run that does not add up.
pub fn adds_up(what: &str, one: u64, other: u64) -> Error {
    Error::internal(format!(
        "the run does not add up: {what} {one}, but {other}"
    ))
    .hint("nothing was published; did an input change during the run?")
}

/// For every partition: rows staged (by the footers) = rows before (by the footers) - rows that
/// go (by the versions) + winners. Returns the winners' part of the bytes.
pub(super) fn check_written(
    written: &[Written],
    given: &BTreeMap<String, u64>,
    merged: Option<&Merged>,
) -> Result<u64> {
    let mut bytes_changed = 0;
    for one in written {
        let gone = merged.and_then(|merged| merged.counts.gone.get(&one.partition));
        let gone = gone.copied().unwrap_or_default();
        let given = given.get(&one.partition).copied().unwrap_or_default();
        let staged: u64 = one.files.iter().map(|file| file.rows).sum();
        // Tombstones were given to the sorter as well.
        if staged + 2 * gone != one.rows_before + given {
            let expected = (one.rows_before + given).saturating_sub(2 * gone);
            let what = format!("rows of the partition `{}`", one.partition);
            return Err(adds_up(&what, staged, expected));
        }
        let bytes: u64 = one.files.iter().map(|file| file.bytes).sum();
        let part = u128::from(bytes) * u128::from(given - gone) / u128::from(staged.max(1));
        bytes_changed += part as u64;
    }
    let written: BTreeSet<&String> = written.iter().map(|one| &one.partition).collect();
    let gone = merged
        .into_iter()
        .flat_map(|merged| merged.counts.gone.keys());
    match gone
        .into_iter()
        .find(|partition| !written.contains(partition))
    {
        Some(partition) => Err(adds_up(&format!("rows that go from `{partition}`"), 1, 0)),
        None => Ok(bytes_changed),
    }
}

/// Versions written (by the footers) = those of rewritten files (by the footers) - replaced ones
/// + winners.
pub(super) fn check_versions(
    versions: &[VersionsFile],
    counts: &Counts,
    merged: Option<&Merged>,
) -> Result<()> {
    let written: u64 = versions.iter().map(|file| file.rows).sum();
    let (before, replaced) = merged.map_or((0, 0), |merged| {
        (merged.versions_before, merged.counts.replaced)
    });
    match written + replaced == before + counts.key_days {
        true => Ok(()),
        false => {
            let expected = (before + counts.key_days).saturating_sub(replaced);
            Err(adds_up("versions written", written, expected))
        }
    }
}
