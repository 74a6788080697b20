//! The structure of `pipeline.toml`, before it is checked.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value;

use crate::config::compact::CompactToml;
use crate::config::{CatalogMode, Format, Keep, VerifyMethod, raw};
use crate::error::Error;
use crate::error::library_texts::{FIELD_MISSING, LIST_EXPECTED};

#[derive(Deserialize)]
pub(super) struct PipelineToml {
    pub(super) name: String,
    pub(super) key: Vec<String>,
    #[serde(default = "latest")]
    pub(super) keep: Keep,
    #[serde(default)]
    pub(super) keep_deleted: bool,
    pub(super) history_columns: Option<Vec<String>>,
    pub(super) raw: raw::RawToml,
    #[serde(default)]
    pub(super) mask: toml::Table,
    pub(super) curated: CuratedToml,
    #[serde(default)]
    pub(super) aggregate: Vec<AggregateToml>,
    #[serde(default)]
    pub(super) state: StateToml,
    pub(super) load: Option<LoadToml>,
    pub(super) catalog: Option<CatalogToml>,
    pub(super) verify: Option<VerifyToml>,
    #[serde(default)]
    pub(super) compact: CompactToml,
    #[serde(default)]
    pub(super) limits: LimitsToml,
}

pub(super) fn latest() -> Keep {
    Keep::Latest
}

#[derive(Deserialize)]
pub(super) struct CuratedToml {
    pub(super) url: String,
    #[serde(default)]
    pub(super) partition_by: Vec<String>,
    #[serde(default)]
    pub(super) sort_by: Vec<String>,
    pub(super) format: Option<Format>,
    #[serde(default)]
    pub(super) deletion_vectors: bool,
    pub(super) retention: Option<String>,
    pub(super) file_bytes: Option<Value>,
}

#[derive(Deserialize)]
pub(super) struct AggregateToml {
    pub(super) name: String,
    pub(super) sql: String,
    pub(super) url: String,
    pub(super) day: String,
    #[serde(default)]
    pub(super) running: bool,
    #[serde(default)]
    pub(super) load: AggregateTableToml,
    #[serde(default)]
    pub(super) catalog: AggregateTableToml,
}

#[derive(Deserialize)]
pub(super) struct LoadToml {
    pub(super) url_env: String,
    pub(super) table: Option<String>,
    pub(super) after_sql: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct CatalogToml {
    pub(super) glue: String,
    pub(super) table: Option<String>,
    #[serde(default)]
    pub(super) mode: CatalogMode,
}

/// Where a follower has an aggregate.
#[derive(Default, Deserialize)]
pub(super) struct AggregateTableToml {
    pub(super) table: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct StateToml {
    pub(super) url: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct VerifyToml {
    pub(super) url_env: String,
    pub(super) table: String,
    #[serde(default)]
    pub(super) method: VerifyMethod,
}

#[derive(Default, Deserialize)]
pub(super) struct LimitsToml {
    pub(super) memory: Option<Value>,
    pub(super) spill_dir: Option<PathBuf>,
    pub(super) spill_bytes_max: Option<Value>,
    pub(super) threads: Option<usize>,
}

/// The hint for a missing key.
pub(super) const NEEDED_KEYS: &str = "a pipeline needs at least name, key, raw.url and curated.url; an \
                           aggregate needs name, sql, url and day; [load] needs url_env; [verify] needs url_env and table; [catalog] needs \
                           glue";

/// The error for a key that is missing or has a value of a wrong type.
pub(super) fn wrong_key(
    file: &Path,
    error: &serde_path_to_error::Error<toml::de::Error>,
    needed: &str,
) -> Error {
    let message = error.inner().message().replace('\n', " ");
    let path = error.path().to_string();
    let missing = message.strip_prefix(FIELD_MISSING);
    let (section, shown) = (path.trim_start_matches('.'), file.display());
    match missing.and_then(|rest| rest.strip_suffix('`')) {
        Some(key) if section.is_empty() => Error::usage(format!("{shown}: `{key}` is missing")),
        Some(key) => Error::usage(format!("{shown}: `{section}.{key}` is missing")),
        None => {
            let wrong = Error::usage(format!("{shown}: `{section}`: {message}"));
            return if message.contains(LIST_EXPECTED) {
                wrong.hint("write a list: [\"a\", \"b\"]")
            } else {
                wrong
            };
        }
    }
    .hint(needed)
}
