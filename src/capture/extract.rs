//! What the files of extracts say of the table that they are of.
//!
//! ```text
//! LOAD-0006472F1A2B3C4D-<run>-000000-0001.parquet              the first extract, in files
//! _LOAD.parquet                                                it is complete
//! 20260102-101500123.0006472F1A5E8800-<run>-0001.parquet       a later extract, in files
//! 20260102-101500123.0006472F1A5E8800-<run>-0002-last.parquet  it is complete
//! └ its time ──────┘ └ its number
//! ```
//!
//! An extract's number is the microseconds since 1970 on the server's clock, or one more than that of the
//! newest file if the clock went back: a later extract has a greater number. The footer of its last file, which is
//! written when all others are durable, has where the next extract begins. What an interrupted extract has
//! written stays; the next one begins where that one did, and wins.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::ObjectMeta;
use object_store::path::Path;
use parquet::file::metadata::KeyValue;
use serde::{Deserialize, Serialize};

use crate::capture::mark::{self, COMPLETE, LOAD, note};
use crate::error::{Error, Result};
use crate::parquet_io::open::ParquetFile;
use crate::store::Folder;

/// The notes in the footers of files: the source in all of them, an extract in its last one.
const SOURCE: &str = "glueless.source";
const EXTRACT: &str = "glueless.extract";

/// What an extract has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extract {
    /// The table's number at the server.
    pub(super) table: u32,
    /// The column that it was read by, and its type.
    pub(super) column: String,
    pub(super) column_type: String,
    /// A hash of the table's columns.
    pub(super) columns: u64,
    /// The newest time in the column, in microseconds since 1970; `None` if there was none.
    pub(super) mark: Option<i64>,
    /// For how many microseconds a transaction had been open.
    pub(super) open: i64,
    /// The next extract reads times from here on; all of them if there is no mark.
    pub(super) from: Option<i64>,
    /// The rows from there on, and those without a time.
    pub(super) rows: Rows,
    pub(super) rows_without_time: Rows,
}

/// Rows of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub(super) count: i64,
    /// The sum of the hashes of their texts.
    pub(super) sum: String,
}

/// What is in a table's folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The number of the newest file.
    pub(super) newest: Option<u64>,
    /// The newest extract that is complete.
    pub(super) last: Option<Extract>,
}

/// The notes of every file of a source.
pub(super) fn notes_of_files(source: &str) -> Vec<KeyValue> {
    vec![note(SOURCE, source)]
}

impl Extract {
    /// The notes of its last file.
    ///
    /// # Errors
    /// Internal, when it cannot be written as JSON.
    pub(super) fn notes(&self, source: &str) -> Result<Vec<KeyValue>> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::internal("cannot write an extract's notes").caused_by(error))?;
        Ok(vec![note(SOURCE, source), note(EXTRACT, text)])
    }
}

/// The end of the name of an extract's last file.
const LAST: &str = "-last.parquet";

/// The name of a file of an extract.
pub(super) fn file_name(
    time: DateTime<Utc>,
    number: u64,
    run_id: &str,
    (file, is_last): (u64, bool),
) -> String {
    let end = if is_last { LAST } else { ".parquet" };
    format!("{}.{number:016X}-{run_id}-{file:04}{end}", time.format("%Y%m%d-%H%M%S%3f"))
}

/// The number of the extract in the name of a file.
fn number_of(name: &str) -> Option<u64> {
    let digits = match name.strip_prefix(LOAD) {
        Some(rest) => rest,
        None => name.strip_suffix(".parquet")?.split_once('.')?.1,
    };
    digits.get(16..)?.starts_with('-').then_some(())?;
    u64::from_str_radix(digits.get(..16)?, 16).ok()
}

impl Known {
    /// Looks into a table's folder: first at the files since a time, by their names, then at all. One footer is
    /// read.
    ///
    /// # Errors
    /// Storage, when it cannot be read; usage, when it has files of something else.
    pub(super) async fn read(folder: &Folder, source: &str, since: DateTime<Utc>) -> Result<Self> {
        let looks = Look { folder, source };
        let recent = since.format("%Y%m%d").to_string();
        let mut files = looks.files(Some(&recent)).await?;
        if files.last.is_none() {
            files = looks.files(None).await?;
        }
        let newest = files.newest.as_ref().map(|(number, _)| *number);
        let mut last = None;
        if files.last.is_none() {
            last = looks.first().await?;
        }
        // Without a complete one, the files are those of a first extract that was interrupted.
        if let (None, Some((_, file))) = (&last, files.last.or(files.newest)) {
            last = looks.notes(file).await?;
        }
        Ok(Known { newest, last })
    }
}

/// The files of a table.
#[derive(Default)]
struct Files {
    /// The newest one, and the last one of the newest complete extract but the first, with their numbers.
    newest: Option<(u64, ObjectMeta)>,
    last: Option<(u64, ObjectMeta)>,
}

/// Looks into the folder of a table.
struct Look<'a> {
    folder: &'a Folder,
    source: &'a str,
}

impl Look<'_> {
    /// The files whose names are behind one.
    async fn files(&self, behind: Option<&str>) -> Result<Files> {
        let mut listed = match behind {
            Some(name) => self.folder.store.list_with_offset(None, &Path::from(name)),
            None => self.folder.store.list(None),
        };
        let mut files = Files::default();
        loop {
            let object = match listed.try_next().await {
                Ok(Some(object)) => object,
                Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(files),
                Err(error) => {
                    return Err(Error::store(format!("list {}", self.folder.location), error));
                }
            };
            let name = object.location.as_ref();
            if name == COMPLETE {
                continue;
            }
            let number = number_of(name).ok_or_else(|| self.foreign(name))?;
            let is_newer = |known: &Option<(u64, ObjectMeta)>| {
                known.as_ref().is_none_or(|(known, _)| number >= *known)
            };
            if name.ends_with(LAST) && is_newer(&files.last) {
                files.last = Some((number, object.clone()));
            }
            if is_newer(&files.newest) {
                files.newest = Some((number, object));
            }
        }
    }

    /// The first extract, if it is complete.
    async fn first(&self) -> Result<Option<Extract>> {
        let Some(bytes) = self.folder.read(COMPLETE).await? else {
            return Ok(None);
        };
        let notes = mark::notes_of(bytes).ok_or_else(|| self.foreign(COMPLETE))?;
        self.extract(COMPLETE, notes(SOURCE), notes(EXTRACT))
    }

    async fn notes(&self, object: ObjectMeta) -> Result<Option<Extract>> {
        let name = object.location.to_string();
        let shown = self.folder.describe(&name);
        let store = Arc::clone(&self.folder.store);
        let file = ParquetFile::open(store, object.location, object.size, shown).await?;
        let notes = file.metadata().and_then(|it| it.file_metadata().key_value_metadata());
        let value = |key: &str| notes?.iter().find(|note| note.key == key)?.value.clone();
        self.extract(&name, value(SOURCE), value(EXTRACT))
    }

    fn extract(
        &self,
        name: &str,
        source: Option<String>,
        extract: Option<String>,
    ) -> Result<Option<Extract>> {
        if source.as_deref() != Some(self.source) {
            return Err(self.foreign(name));
        }
        let parsed = extract.map(|text| serde_json::from_str(&text)).transpose();
        parsed.map_err(|error| self.foreign(name).caused_by(error))
    }

    fn foreign(&self, name: &str) -> Error {
        let name = self.folder.describe(name);
        Error::usage(format!("{name} is no file of extracts of the source `{}`", self.source)).hint(
            "set `to` to a new folder, or move that one away: old files and new ones would be mixed",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::cdc_file_time;

    #[test]
    fn names_have_the_number_and_the_time_that_windows_select_by() {
        let time = DateTime::from_timestamp_micros(1_767_348_900_123_456).expect("a time");
        let name = file_name(time, 0x16_B374, "01a2158f-31df-7030", (3, true));
        assert_eq!(
            name,
            "20260102-101500123.000000000016B374-01a2158f-31df-7030-0003-last.parquet"
        );
        let found = cdc_file_time(&name, chrono_tz::UTC).expect("a time");
        assert_eq!(found.timestamp_millis(), 1_767_348_900_123);
        assert_eq!(number_of(&name), Some(0x16_B374));
        assert_eq!(number_of("LOAD-000000000016B374-a-000000-0001.parquet"), Some(0x16_B374));
        for other in ["LOAD00000001.parquet", "20260102-101500123.parquet", "a.parquet", "x", ""] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }
}
