//! Removes the rows and versions of keys that are forgotten: of a key's versions none is left, and none of its rows in
//! the table, as if the key had never been there.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::BooleanBuffer;

use crate::config::Keep;
use crate::curate::merge::CommittedVersions;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::entries::{Entries, Files, hash};
use crate::curate::merge::entry::{Entry, EntryColumns};
use crate::curate::merge::intervals::RowOf;
use crate::curate::merge::rows_of_versions::{KeyFloors, KeyRow, rows_of_key};
use crate::curate::merge::version_reader::VersionReader;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::Result;
use crate::layout::FileOrder;
use crate::state::versions::VersionsLayout;
use crate::store::Folder;
use crate::types::key_hash::ForgottenKeys;

/// What a run does with forgotten keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forgetting {
    /// All forgotten keys, whose changes are left out.
    pub keys: Arc<ForgottenKeys>,
    /// The columns, in canonical types, of those whose rows and versions are removed from the table; empty, if none is.
    pub columns: Vec<ArrayRef>,
    /// Whether keys are folded again that were forgotten before: their rows may be bad.
    pub recalls: bool,
}

impl Forgetting {
    /// Whether the rows and versions of any key are removed.
    pub(crate) fn removes(&self) -> bool {
        !self.columns.is_empty()
    }

    /// The number of the keys that are removed.
    pub(super) fn len(&self) -> u64 {
        self.columns.first().map_or(0, |column| column.len()) as u64
    }

    /// Their hashes, as entries have them.
    pub(super) fn hashes(&self) -> Result<Vec<u64>> {
        hash(&self.columns)
    }

    /// The committed files with versions of the keys, which are to be rewritten; some may only seem to have any. `committed`
    /// are the paths and sizes of all files in the state's table.
    pub(crate) async fn files(
        &self,
        state: &Folder,
        layout: &Arc<VersionsLayout>,
        committed: &[(String, u64)],
        threads: usize,
    ) -> Result<Vec<CommittedVersions>> {
        let bloom = Bloom::new(self.len());
        self.hashes()?.into_iter().for_each(|hash| bloom.insert(hash));
        let reads = Arc::new((Entries::new(layout, 0)?, Files::of_earlier(FileOrder::Name), bloom));
        let queue = Arc::new(Work::new(committed.to_vec()));
        let tasks = (0..threads).map(|_| {
            let (reads, queue, state) = (Arc::clone(&reads), Arc::clone(&queue), state.clone());
            spawn(async move {
                let (entries, files, bloom) = &*reads;
                let reader = VersionReader { entries, files, bloom, state: &state };
                let find = async {
                    let mut found = Vec::new();
                    while let Some((path, bytes)) = queue.next() {
                        let rows = reader.rows_with_candidates(&path, bytes).await?;
                        let file = |rows| CommittedVersions { path, bytes, rows, rewritten: true };
                        found.extend(rows.map(file));
                    }
                    Ok(found)
                };
                queue.run(find).await
            })
        });
        Ok(join_all(tasks).await?.into_iter().flatten().collect())
    }

    /// Which keys of sorted entries are to be forgotten.
    pub(super) fn among(&self, rows: &RecordBatch) -> Result<BooleanBuffer> {
        Ok(self.keys.contain(&rows.columns()[..self.columns.len()])?)
    }
}

/// What is there of a key that is forgotten, all of whose entries are versions.
pub(super) struct KeyToForget {
    /// The versions.
    pub(super) versions: Vec<Entry>,
    /// The rows that the table has.
    pub(super) rows: Vec<RowOf>,
    /// The days of its changes, and of the floors that have ended them.
    pub(super) days: Vec<i32>,
    /// Where rows end, when those of the table begin and end, as [`crate::changes::ChangeColumn::Instant`].
    pub(super) times: Vec<i64>,
}

impl KeyToForget {
    /// The key with these entries; `instants` are those of all entries, where rows end.
    pub(super) fn new(
        keep: Keep,
        columns: &EntryColumns<'_>,
        of_key: Range<usize>,
        instants: Option<&[i64]>,
        floors: KeyFloors<'_>,
    ) -> Self {
        let versions: Vec<Entry> = of_key.clone().map(|at| columns.entry(at)).collect();
        let all = floors.all;
        let mut rows = rows_of_key(keep, columns, of_key, instants, floors);
        rows.retain(|row| row.is_in_table);
        let begins = instants.into_iter().flat_map(|all| rows.iter().map(|row| all[row.at]));
        let times = rows.iter().filter_map(|row| Some(row.end?.at)).chain(begins).collect();
        let ends = versions.iter().filter_map(|entry| all.after(entry.at, &columns.orders));
        let days = versions.iter().filter_map(|entry| entry.day);
        let days = days.chain(ends.filter_map(|(_, day)| day)).collect();
        let row_of = |row: KeyRow| RowOf {
            version: row.partition_of,
            day: row.at,
            is_current: row.end.is_none(),
        };
        let rows = rows.into_iter().map(row_of).collect();
        KeyToForget { versions, rows, days, times }
    }
}
