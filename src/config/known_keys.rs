//! The known keys of `pipeline.toml` and of a source; others are refused.

use std::path::Path;

use toml::{Table, Value};

use crate::error::{Error, Result};

/// Every key of a pipeline.
pub(super) const PIPELINE_KEYS: &[&str] = &[
    "name",
    "key",
    "keep",
    "keep_deleted",
    "history_columns",
    "raw.url",
    "raw.source.url",
    "raw.source.columns",
    "raw.path_columns",
    "raw.format",
    "raw.unavailable_value",
    "raw.window_by",
    "raw.lookback",
    "raw.kind",
    "raw.dialect",
    "raw.op",
    "raw.op_values.insert",
    "raw.op_values.update",
    "raw.op_values.delete",
    "raw.op_values.ignore",
    "raw.op_values.truncate",
    "raw.delete_when",
    "raw.order_by",
    "raw.commit_time",
    "raw.commit_time_unit",
    "raw.event_time",
    "raw.time_zone",
    "raw.day_zone",
    "raw.full_load",
    "raw.full_load_at",
    "raw.full_load_settle",
    "raw.full_load_max_deletes",
    "raw.columns",
    "raw.csv_header",
    "raw.csv_null",
    "raw.csv_quoted",
    "raw.csv_op_in_full_load",
    "raw.csv_delimiter",
    "raw.csv_row_delimiter",
    "raw.csv_quote",
    "raw.csv_escape",
    "raw.csv_no_sup_value",
    "raw.csv_short_lines",
    "raw.layout",
    "raw.table",
    "raw.before_image_prefix",
    "raw.on_tie",
    "raw.on_bad_row",
    "raw.on_bad_file",
    "raw.max_bad_rows",
    "mask.key_env",
    "mask.salt_env",
    "curated.url",
    "curated.partition_by",
    "curated.sort_by",
    "curated.format",
    "curated.deletion_vectors",
    "curated.retention",
    "curated.file_bytes",
    "aggregate.name",
    "aggregate.sql",
    "aggregate.url",
    "aggregate.day",
    "aggregate.running",
    "aggregate.load.table",
    "aggregate.catalog.table",
    "state.url",
    "load.url_env",
    "load.table",
    "load.after_sql",
    "verify.url_env",
    "verify.table",
    "verify.method",
    "catalog.glue",
    "catalog.table",
    "catalog.mode",
    "compact.url",
    "compact.file_bytes",
    "limits.memory",
    "limits.spill_dir",
    "limits.spill_bytes_max",
    "limits.threads",
];

/// Every key of a source.
pub(super) const SOURCE_KEYS: &[&str] = &[
    "name",
    "url_env",
    "tables",
    "exclude",
    "to",
    "mode",
    "slot",
    "publication",
    "column",
    "overlap",
    "file_bytes",
    "compression",
    "text_columns",
    "limits.memory",
    "limits.threads",
];

/// The keys whose values are tables by the names of columns.
const OF_COLUMNS: [&str; 3] = ["raw.columns", "raw.source.columns", "mask"];

/// Refuses a key that is none of the `known` ones.
pub(super) fn refuse_unknown_keys(
    table: &Table,
    file: &Path,
    known: &'static [&'static str],
) -> Result<()> {
    fn walk(prefix: &str, table: &Table, source: &str, all: &'static [&'static str]) -> Result<()> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let is_section = all.iter().any(|known| {
                known.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.'))
            });
            match value {
                // Their keys are column names.
                Value::Table(_) if OF_COLUMNS.contains(&key.as_str()) => {}
                Value::Table(inner) if is_section => walk(&key, inner, source, all)?,
                Value::Array(many) if is_section => {
                    for inner in many.iter().filter_map(Value::as_table) {
                        walk(&key, inner, source, all)?;
                    }
                }
                _ if all.contains(&key.as_str()) || is_section => {}
                _ => return Err(unknown_key(&key, source, all)),
            }
        }
        Ok(())
    }
    walk("", table, &file.display().to_string(), known)
}

/// The error for a key that is none of the `known` ones.
pub(super) fn unknown_key(key: &str, source: &str, known: &'static [&'static str]) -> Error {
    let sections = known.iter().filter_map(|known| known.split_once('.').map(|(first, _)| first));
    let nearest = known
        .iter()
        .copied()
        .chain(sections)
        .min_by_key(|known| strsim::damerau_levenshtein(known, key))
        .unwrap_or_default();
    Error::usage(format!("{source}: unknown key `{key}`"))
        .hint(format!("did you mean `{nearest}`?"))
}
