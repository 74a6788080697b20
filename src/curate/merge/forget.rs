//! Removes the rows and versions of keys that are forgotten: of a key's versions none is left, and none of its rows in
//! the table, as if the key had never been there.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::BooleanBuffer;

use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::decide::{Decided, Decider, Deciding};
use crate::curate::merge::entries::{Entries, Files, hash};
use crate::curate::merge::entry::Entry;
use crate::curate::merge::rows_of_versions::{KeyFloors, rows_of_key};
use crate::curate::merge::version_reader::VersionReader;
use crate::curate::merge::{Counts, Output};
use crate::error::Result;
use crate::layout::FileOrder;
use crate::state::versions::VersionsLayout;
use crate::store::Folder;
use crate::types::key_hash::ForgottenKeys;

/// Keys to forget.
#[derive(Clone, Debug)]
pub(crate) struct Forgetting {
    /// All forgotten keys, these among them.
    pub keys: Arc<ForgottenKeys>,
    /// The columns of the keys, in canonical types.
    pub columns: Vec<ArrayRef>,
}

impl Forgetting {
    /// The number of the keys.
    pub(super) fn len(&self) -> u64 {
        self.columns.first().map_or(0, |column| column.len()) as u64
    }

    /// The hashes of the keys, as entries have them.
    pub(super) fn hashes(&self) -> Result<Vec<u64>> {
        hash(&self.columns)
    }

    /// The number of rows of a committed file of versions, if it has versions of the keys; it may seem to have some.
    pub(crate) async fn rows_to_read(
        &self,
        state: &Folder,
        layout: &Arc<VersionsLayout>,
        path: &str,
        bytes: u64,
    ) -> Result<Option<u64>> {
        let bloom = Bloom::new(self.len());
        self.hashes()?.into_iter().for_each(|hash| bloom.insert(hash));
        let entries = Entries::new(layout, 0)?;
        let files = Files::of_earlier(FileOrder::Name);
        let reader = VersionReader { entries: &entries, files: &files, bloom: &bloom, state };
        reader.rows_with_candidates(path, bytes).await
    }

    /// Which keys of sorted entries are to be forgotten.
    pub(super) fn among(&self, rows: &RecordBatch) -> Result<BooleanBuffer> {
        Ok(self.keys.contain(&rows.columns()[..self.columns.len()])?)
    }
}

impl Decider {
    /// Removes the rows and versions of a key.
    pub(super) fn forget(
        &self,
        deciding: &Deciding<'_>,
        of_key: Range<usize>,
        decided: &mut Decided,
        output: &mut Output,
        counts: &mut Counts,
    ) {
        let Deciding { columns, floors: (_, floors), .. } = *deciding;
        let instants = deciding.instants.map(|instants| &instants.values()[..]);
        let entries: Vec<Entry> = of_key.clone().map(|at| columns.entry(at)).collect();
        let seen = &deciding.seen[1];
        let rows =
            rows_of_key(self.keep, columns, of_key, instants, KeyFloors { all: floors, seen });
        counts.replaced += entries.len() as u64;
        // The days of its changes and of what has ended them are as if there had been none.
        let ends = entries.iter().filter_map(|entry| floors.after(entry.at, &columns.orders));
        let days = entries.iter().filter_map(|entry| entry.day);
        counts.floor_days.extend(days.chain(ends.filter_map(|(_, day)| day)));
        for row in rows.iter().filter(|row| row.is_in_table) {
            let begin = instants.map(|instants| instants[row.at]);
            decided.ends.touched.extend(row.end.into_iter().chain(begin));
            decided.removed.push(row.at as u32);
            counts.forgotten += 1;
        }
        if let Some(standing) = &mut output.standing {
            standing.forget(&entries, &columns.orders, floors, &deciding.numbers);
        }
    }
}
