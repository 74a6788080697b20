//! Files of published tables: naming, reading, writing and rebuilding them.

use arrow::buffer::BooleanBuffer;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::store::Folder;
use crate::table::deletion_vector::DeletionVector;

pub(crate) mod deletion_vector;
pub(crate) mod delta_log;
pub(crate) mod digest;
pub(crate) mod files;
pub(crate) mod partition_names;
pub(crate) mod rebuild;
pub(crate) mod row_end;
pub(crate) mod sorter;
pub(crate) mod writer;

/// A published file, as the ledger lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFile {
    /// Its path relative to the table's URL.
    pub path: String,
    /// The number of its rows, deleted ones included.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its path in staging, until the commit that wrote it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
    /// The rows that were deleted from it, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<DeletionVector>,
}

impl TableFile {
    /// The number of its rows that readers see.
    pub(crate) fn live_rows(&self) -> u64 {
        self.rows - self.deleted_rows()
    }

    /// The number of its deleted rows.
    pub(crate) fn deleted_rows(&self) -> u64 {
        self.deleted.as_ref().map_or(0, |deleted| deleted.rows)
    }

    /// Its deleted rows: a bit per row, if there are some.
    ///
    /// # Errors
    /// As [`DeletionVector::read_in`].
    pub(crate) async fn read_deleted(&self, table: &Folder) -> Result<Option<BooleanBuffer>> {
        match &self.deleted {
            Some(vector) => Ok(Some(vector.read_in(table, self.rows).await?)),
            None => Ok(None),
        }
    }

    /// The file as it is once it is published.
    pub(crate) fn published(&self) -> Self {
        let published = |vector: &DeletionVector| DeletionVector { staged: None, ..vector.clone() };
        TableFile { staged: None, deleted: self.deleted.as_ref().map(published), ..self.clone() }
    }

    /// The paths in staging of what a commit adds: of the file, and of the file of its deletion vector.
    pub(crate) fn to_move(&self) -> impl Iterator<Item = Staged<'_>> {
        let file =
            self.staged.as_deref().map(|from| Staged { from, path: &self.path, bytes: self.bytes });
        let vectors = self.deleted.as_ref().and_then(|deleted| {
            let from = deleted.staged.as_deref()?;
            Some(Staged { from, path: &deleted.path, bytes: deleted.file_bytes })
        });
        file.into_iter().chain(vectors)
    }
}

/// A file in staging that belongs to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Staged<'a> {
    /// Its path in the table.
    pub path: &'a str,
    /// Its path in staging.
    pub from: &'a str,
    /// Its size in bytes.
    pub bytes: u64,
}
