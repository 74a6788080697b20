//! Marks: the file `_LOAD.parquet` of a table, which says that its full load is complete. Pipelines and other
//! readers do not read files whose names begin with `_`.
//!
//! It is empty, and its footer says of which table it is, and from where on the table's changes belong to its
//! files. Changes before that position are in the full load, and are left out: behind a load they would win.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;

use crate::capture::position::Lsn;
use crate::error::{Error, Result};
use crate::store::{Folder, parse_path};

/// The name of the file.
pub(super) const COMPLETE: &str = "_LOAD.parquet";
/// What the names of full loads begin with; names of changes begin with digits, and come before it.
pub(super) const LOAD: &str = "LOAD-";

/// The notes in the footers of files.
pub(super) const SLOT: &str = "glueless.slot";
const FROM: &str = "glueless.from";
const TABLE: &str = "glueless.table";
const PLACE: &str = "glueless.place";

/// What a table's mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The position of its oldest full load; changes before it are left out.
    pub(super) from: Lsn,
    /// The table's number at the server.
    pub(super) table: u32,
    /// The number of its place in the publication.
    pub(super) place: u32,
}

/// The name of a file of a full load.
pub(super) fn load_name(position: Lsn, run_id: &str, piece: usize, file: usize) -> String {
    format!("{LOAD}{:016X}-{run_id}-{piece:06}-{file:04}.parquet", position.0)
}

/// A note in a footer.
pub(super) fn note(name: &str, value: impl ToString) -> KeyValue {
    KeyValue::new(name.to_string(), value.to_string())
}

/// Reads the notes of a file; `None` if it is not a whole Parquet file.
pub(super) fn notes_of(bytes: Bytes) -> Option<impl Fn(&str) -> Option<String>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).ok()?;
    let notes = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    Some(move |name: &str| notes.iter().find(|note| note.key == name)?.value.clone())
}

impl Mark {
    /// Reads the mark in a table's folder; `None` if its full load is not complete.
    ///
    /// # Errors
    /// Storage, when it cannot be read; usage, when it is not one of the slot.
    pub(super) async fn read(folder: &Folder, slot: &str) -> Result<Option<Self>> {
        let Some(bytes) = folder.read(COMPLETE).await? else {
            return Ok(None);
        };
        let foreign = || {
            Error::usage(format!("{} is not of the slot `{slot}`", folder.describe(COMPLETE)))
                .hint("let each slot write into a folder of its own: `to`")
        };
        let notes = notes_of(bytes).ok_or_else(foreign)?;
        if notes(SLOT).as_deref() != Some(slot) {
            return Err(foreign());
        }
        let number =
            |name: &str| notes(name).and_then(|text| text.parse().ok()).ok_or_else(foreign);
        let from = notes(FROM).and_then(|text| Lsn::parse(&text)).ok_or_else(foreign)?;
        Ok(Some(Mark { from, table: number(TABLE)?, place: number(PLACE)? }))
    }

    /// What the footer says.
    pub(super) fn notes(&self, slot: &str) -> Vec<KeyValue> {
        let Mark { from, table, place } = self;
        vec![note(SLOT, slot), note(FROM, from), note(TABLE, table), note(PLACE, place)]
    }
}

/// Writes the mark, given as an encoded file. If there is one, another process has completed the load.
///
/// # Errors
/// Storage, when it cannot be written.
pub(super) async fn complete(folder: &Folder, bytes: Bytes) -> Result<()> {
    create(folder, COMPLETE, bytes).await.map(|_| ())
}

/// Writes the mark, given as an encoded file, in the place of one that is there.
///
/// # Errors
/// Storage, when it cannot be written.
pub(super) async fn replace(folder: &Folder, bytes: Bytes) -> Result<()> {
    let put = folder.store.put(&parse_path(COMPLETE)?, bytes.into()).await;
    put.map_err(|error| Error::store(format!("write {}", folder.describe(COMPLETE)), error))?;
    folder.sync(&[COMPLETE.to_string()])
}

/// Creates a file, durably; returns false if there is one of that name.
///
/// # Errors
/// Storage, when it cannot be written.
pub(super) async fn create(folder: &Folder, name: &str, bytes: Bytes) -> Result<bool> {
    let options = PutOptions::from(PutMode::Create);
    match folder.store.put_opts(&parse_path(name)?, bytes.into(), options).await {
        Ok(_) => {
            folder.sync(&[name.to_string()])?;
            Ok(true)
        }
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(Error::store(format!("write {}", folder.describe(name)), error)),
    }
}

/// The position of the oldest full load in a folder, complete or not.
///
/// # Errors
/// Storage, when the folder cannot be listed.
pub(super) async fn oldest_load(folder: &Folder) -> Result<Option<Lsn>> {
    let names = folder.store.list_with_offset(None, &Path::from(LOAD));
    let positions = names
        .try_filter_map(|object| async move { Ok(load_position_in(object.location.as_ref())) });
    let positions: Vec<Lsn> = positions
        .try_collect()
        .await
        .map_err(|error| Error::store(format!("list {}", folder.location), error))?;
    Ok(positions.into_iter().min())
}

/// The position in the name of a file of a full load.
pub(super) fn load_position_in(name: &str) -> Option<Lsn> {
    let digits = name.strip_prefix(LOAD)?.get(..16)?;
    u64::from_str_radix(digits, 16).ok().map(Lsn)
}

/// Whether a folder has files.
///
/// # Errors
/// Storage, when it cannot be listed.
pub(super) async fn has_files(folder: &Folder) -> Result<bool> {
    let first = folder.store.list(None).try_next().await;
    match first {
        Ok(first) => Ok(first.is_some()),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(Error::store(format!("list {}", folder.location), error)),
    }
}
