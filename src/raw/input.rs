//! Raw files as inputs: how one is known again, and the record of earlier runs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::raw::fingerprint::Fingerprint;
use crate::window::{Window, WindowSet};

/// A raw file, as listed and as recorded in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFile {
    /// The index of the pipeline's raw URL that it is under.
    pub location: usize,
    /// Its path relative to that URL.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: DateTime<Utc>,
    /// Its ETag, if the store has one.
    pub e_tag: Option<String>,
    /// The fingerprint of its bytes, once a run has read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// When the file that a run first read was last written, if that is not `modified`: the same
    /// bytes were written again, as by a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_modified: Option<DateTime<Utc>>,
    /// The full load that it is a file of, if full loads have a time ([`crate::changes::load_times`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Box<LoadTime>>,
    /// The number of the commit that folded it; 0 if none has.
    #[serde(default, skip_serializing_if = "is_none")]
    pub commit: u64,
    /// The windows that selected its rows in that commit; `None` for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<WindowSet>,
    /// Whether it was missing when a run last looked, so that later runs have read none of its
    /// rows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_absent: bool,
}

/// The time of a full load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTime {
    /// When it began, which is its place in the order of changes.
    pub at: DateTime<Utc>,
    /// When this file of it ended.
    pub until: DateTime<Utc>,
    /// Whether it was written over a file of an earlier load, which a run had folded: raw does not have
    /// everything any more that is in the tables.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replaces: bool,
}

fn is_none(commit: &u64) -> bool {
    *commit == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// One raw file that a run reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// The file.
    pub file: RawFile,
    /// Whether it is a full load, whose rows come before every change of a CDC file.
    pub full_load: bool,
    /// Whether it is before the window and was missing when its own window was run.
    pub late: bool,
    /// The windows that select its rows by their commit time; `None` for all rows.
    pub rows: Option<WindowSet>,
    /// The numbers of the rows to fold, from 0 and ascending; `None` for all rows.
    pub only: Option<Vec<u64>>,
}

impl RawFile {
    /// About how much memory it needs.
    pub(crate) fn memory_bytes(&self) -> usize {
        let tag = self.e_tag.as_ref().map_or(0, String::len);
        let rows = self.rows.as_ref().map_or(0, |rows| rows.len() * size_of::<Window>());
        size_of::<Self>() + self.path.len() + tag + rows
    }

    pub(crate) fn new(location: usize, path: String, object: ObjectMeta) -> Self {
        RawFile {
            location,
            path,
            size: object.size,
            modified: object.last_modified,
            e_tag: object.e_tag,
            fingerprint: None,
            first_modified: None,
            load: None,
            commit: 0,
            rows: None,
            is_absent: false,
        }
    }

    /// Whether a file is still the one that was folded: of the same size, and of the same ETag (in a
    /// local folder, where the ETag changes with a copy: modified time), or else of the same bytes,
    /// if both fingerprints are known.
    pub(crate) fn is_same(&self, found: &RawFile, is_local: bool) -> bool {
        let has_same_bytes = self.fingerprint.is_some() && self.fingerprint == found.fingerprint;
        self.size == found.size && (self.has_same_stamp(found, is_local) || has_same_bytes)
    }

    /// Whether the store says that a file was not written again.
    pub(crate) fn has_same_stamp(&self, found: &RawFile, is_local: bool) -> bool {
        match (&self.e_tag, &found.e_tag) {
            (Some(folded), Some(found)) if !is_local => folded == found,
            _ => self.modified == found.modified,
        }
    }

    /// The modified time by which windows select it: that of the file that a run first read.
    pub(crate) fn window_time(&self) -> DateTime<Utc> {
        self.first_modified.unwrap_or(self.modified)
    }

    /// Takes over what an earlier run knew of this file, if it is the same; see
    /// [`RawFile::is_same`].
    pub(crate) fn adopt(&mut self, before: &RawFile, is_local: bool) {
        if !before.is_same(self, is_local) {
            return;
        }
        self.fingerprint = before.fingerprint.or(self.fingerprint);
        self.load.clone_from(&before.load);
        self.first_modified = Some(before.window_time()).filter(|first| *first != self.modified);
    }
}

/// The record of earlier runs, as discovery needs it.
pub(crate) trait Recorded {
    /// The input of this path, if an earlier run folded it.
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// All folded inputs that were read, and those quarantined as a whole.
    fn inputs(&self) -> Vec<&RawFile>;
    /// Whether some folded inputs of a location were not read.
    fn has_unread(&self, location: usize) -> bool;
    /// Whether an input of this path, if a run folded it, was not read: no command asks for it then.
    fn is_unread(&self, path: &str) -> bool;
    /// The folders of a location, and about how many folded inputs each has.
    fn folders(&self, location: usize) -> BTreeMap<&str, u64>;
    /// The input of this path, if an earlier run quarantined it as a whole.
    fn quarantined(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// Whether an input or any of its rows is quarantined.
    fn is_quarantined(&self, location: usize, path: &str) -> bool;
    /// The windows of earlier runs.
    fn windows(&self) -> WindowSet;
    /// The windows whose rows of an input were folded; `None` if all rows were.
    fn rows_read(&self, location: usize, path: &str) -> Option<WindowSet>;
}
