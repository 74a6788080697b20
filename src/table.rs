//! Files of published tables: naming, reading, writing and rebuilding them.

use serde::{Deserialize, Serialize};

pub(crate) mod delta_log;
pub(crate) mod digest;
pub(crate) mod files;
pub(crate) mod partition_names;
pub(crate) mod rebuild;
pub(crate) mod sorter;
pub(crate) mod writer;

/// A published file, as the ledger lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFile {
    /// Its path relative to the table's URL.
    pub path: String,
    /// The number of its rows.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its path in staging, until the commit that wrote it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
}
