//! `[compact]`: where the small files of changes are kept as few larger ones.

use std::path::Path;

use serde::Deserialize;
use toml::Value;

use crate::config::values::bytes;
use crate::error::{Error, Result};
use crate::store::Location;

/// The keys as they are written in `pipeline.toml`.
#[derive(Default, Deserialize)]
pub(super) struct CompactToml {
    url: Option<String>,
    file_bytes: Option<Value>,
}

/// Where compacted files go.
#[derive(Clone, Debug)]
pub struct Compact {
    /// `compact.url`: the folder of the compacted days; none by default.
    pub url: Option<Location>,
    /// `compact.file_bytes`: the most bytes of a file; default `200MB`.
    pub file_bytes: u64,
}

impl CompactToml {
    /// Checks the section; `wrong` makes the error for a key.
    pub(super) fn check(
        self,
        folder: &Path,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<Compact> {
        const FILE_BYTES: &str = "compact.file_bytes";
        // The most that S3 copies at once, when a file is moved to its day.
        const MOST: u64 = 5_000_000_000;
        Ok(Compact {
            url: self.url.map(|url| Location::parse(&url, folder)).transpose()?,
            file_bytes: match self.file_bytes {
                None => 200_000_000,
                Some(value) => {
                    bytes(&value).filter(|bytes| (1..=MOST).contains(bytes)).ok_or_else(|| {
                        wrong(FILE_BYTES, format!("is `{value}`"))
                            .hint("write 200MB, or at most 5GB")
                    })?
                }
            },
        })
    }
}
