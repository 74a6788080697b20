//! Files of published tables: naming, reading, writing and rebuilding them.

use serde::{Deserialize, Serialize};

pub mod delta_log;
pub mod digest;
pub mod files;
pub mod partition_names;
pub mod rebuild;
pub mod sorter;
pub mod writer;

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
