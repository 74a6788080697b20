//! `raw.kind`: whether raw files have changes, or are complete copies of the table.

use serde::Deserialize;

/// `raw.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Changes, and full loads.
    #[default]
    Changes,
    /// Complete copies of the table, one after the other: each is a full load at its time.
    Snapshot,
}

/// The order column of snapshots where none is named: no file needs to have it, since all rows of a snapshot have the
/// snapshot's time.
pub(super) const SNAPSHOT_ORDER: &str = "_glueless_snapshot";
