//! Full loads that have a time in the order of changes: which of them a run folds.
//!
//! A load that was written again over the one that was folded is another load, at a later time, and is
//! folded like a new one. New files are taken for one load while they are written, where their names do not say of which they
//! are: a run folds none of a location's load before the newest has been there for `raw.full_load_settle`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::config::{FullLoadAt, Raw};
use crate::layout::{load_time, parent};
use crate::raw::input::{RawFile, Recorded};
use crate::store::Folder;

/// The full loads that runs have folded before.
#[derive(Clone, Copy, Debug, Default)]
pub struct EarlierLoads<'a> {
    /// Their files that have a time.
    pub files: &'a [RawFile],
    /// Whether everything is folded again: then loads get their times again.
    pub is_from_empty: bool,
}

/// Whether a file is of a full load that was written again since it was folded, and is folded again.
pub(crate) fn is_reload(raw: &Raw, folder: &Folder, folded: &RawFile, file: &RawFile) -> bool {
    let is_local = folder.location.file_path().is_some();
    raw.full_loads.at.is_time()
        && raw.is_full_load(file.location, &file.path)
        && !folded.is_same(file, is_local)
}

/// A full load: its location, and its time, if names have it.
type LoadKey = (usize, Option<DateTime<Utc>>);

/// Full loads that are still being written: of each a folder, and when the newest file was written.
#[derive(Debug, Default)]
pub(crate) struct Unsettled(BTreeMap<LoadKey, (String, DateTime<Utc>)>);

/// The full load that a file is of.
fn load_of(raw: &Raw, file: &RawFile) -> LoadKey {
    let has_time = raw.full_loads.at == FullLoadAt::Name;
    (file.location, load_time(&file.path, raw.time_zone).filter(|_| has_time))
}

impl Unsettled {
    /// Finds them among the files of a location. `now` is the time of the run.
    pub(crate) fn find(
        raw: &Raw,
        folder: &Folder,
        files: &[RawFile],
        recorded: &dyn Recorded,
        now: DateTime<Utc>,
    ) -> Self {
        let mut found = BTreeMap::new();
        if !raw.full_loads.at.is_time() {
            return Unsettled(found);
        }
        for file in files.iter().filter(|file| raw.is_full_load(file.location, &file.path)) {
            let folded = recorded.folded(file.location, &file.path);
            let is_new = folded.is_none_or(|folded| is_reload(raw, folder, folded, file));
            if is_new && file.modified > now - raw.full_loads.settle {
                let one = (parent(&file.path).to_string(), file.modified);
                let newest = found.entry(load_of(raw, file)).or_insert_with(|| one.clone());
                newest.1 = newest.1.max(one.1);
            }
        }
        Unsettled(found)
    }

    /// Removes the files that wait: those of these loads that no run has folded. Returns the location
    /// and path of those that were folded with other content.
    pub(crate) fn leave_out<'a>(
        &self,
        raw: &Raw,
        folder: &Folder,
        files: &mut Vec<RawFile>,
        recorded: &'a dyn Recorded,
    ) -> Vec<(usize, &'a str)> {
        let mut folded_before = Vec::new();
        if self.0.is_empty() {
            return folded_before;
        }
        files.retain(|file| {
            let folded = recorded.folded(file.location, &file.path);
            let is_new = folded.is_none_or(|folded| is_reload(raw, folder, folded, file));
            let is_unsettled = || self.0.contains_key(&load_of(raw, file));
            let waits = is_new && raw.is_full_load(file.location, &file.path) && is_unsettled();

            folded_before.extend(
                folded.filter(|_| waits).map(|folded| (file.location, folded.path.as_str())),
            );
            !waits
        });
        folded_before
    }

    /// Adds those of another location.
    pub(crate) fn extend(&mut self, other: Unsettled) {
        self.0.extend(other.0);
    }

    /// A remark for the user; `None` if there are none.
    pub(crate) fn describe(&self, raw: &Raw, folders: &[Folder]) -> Option<String> {
        let newest = self.0.iter().max_by_key(|(_, (_, newest))| *newest);
        let ((location, _), (folder, newest)) = newest?;
        let folder = folders[*location].describe(folder);
        let after = (*newest + raw.full_loads.settle).format("%Y-%m-%d %H:%M:%S");
        Some(format!(
            "a full load is still being written, in {folder}: runs after {after} UTC fold it, \
             if no more files are written (`raw.full_load_settle`)"
        ))
    }
}
