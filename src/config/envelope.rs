//! Envelopes: a change as the row before and after it, its operation, and where it comes from, as
//! Debezium writes it.

use crate::config::dialect::Dialect;
use crate::config::operations::OpValues;
use crate::error::{Error, Result};

/// How the rows of a pipeline stand in envelopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The primary-key columns of the rows.
    pub key: Vec<String>,
    /// The operations.
    pub op_values: OpValues,
    /// `raw.unavailable_value`: the text that stands for a value that the source's log lacks; default
    /// `__debezium_unavailable_value`.
    pub unavailable_value: String,
}

/// The start of the names of columns that are fields of envelopes, such as `__op` and
/// `__source.lsn`. So they are not the columns of a row.
pub const ENVELOPE_PREFIX: &str = "__";
/// The start of the names of columns with the key before a change.
pub const BEFORE_PREFIX: &str = "__before.";
/// The default of `raw.unavailable_value`.
const UNAVAILABLE_VALUE: &str = "__debezium_unavailable_value";

/// The column that a setting names: a field of the envelope, or a column of the row, which may also
/// be written as `after.name`.
pub(super) fn column_of(name: String) -> String {
    let is_field = ["op", "ts_ms", "ts_us", "ts_ns"].contains(&name.as_str())
        || name.starts_with("source.")
        || name.starts_with("transaction.");
    if is_field {
        return format!("{ENVELOPE_PREFIX}{name}");
    }
    name.strip_prefix("after.").map_or(name.clone(), String::from)
}

/// The keys that have to do with envelopes.
pub(super) struct EnvelopeKeys<'a> {
    pub(super) dialect: Dialect,
    pub(super) unavailable_value: Option<String>,
    pub(super) key: &'a [String],
    pub(super) op_values: &'a OpValues,
    pub(super) has_before_images: bool,
    pub(super) is_csv: bool,
}

impl EnvelopeKeys<'_> {
    /// The envelopes of the dialect, if it has any; refuses keys that do not go with it.
    pub(super) fn check(self, wrong: &dyn Fn(&str, String) -> Error) -> Result<Option<Envelope>> {
        let refused = |key: &str, why: &str, hint: &str| Err(wrong(key, why.into()).hint(hint));
        if self.dialect != Dialect::Debezium {
            if self.unavailable_value.is_some() {
                let hint = "leave it out, or write raw.dialect = \"debezium\"";
                return refused("raw.unavailable_value", "is for envelopes", hint);
            }
            return Ok(None);
        }
        if self.unavailable_value.as_deref() == Some("") {
            let hint = "write the connector's `unavailable.value.placeholder`";
            return refused("raw.unavailable_value", "is empty", hint);
        }
        if self.is_csv {
            let why = "is `debezium`, and raw.format is `csv`";
            let hint = "envelopes are in Parquet files, or in raw.format = \"json\"";
            return refused("raw.dialect", why, hint);
        }
        if self.has_before_images {
            let hint = "leave it out: the key before an update is in the envelope's `before`";
            return refused("raw.before_image_prefix", "is for rows without envelopes", hint);
        }
        Ok(Some(Envelope {
            key: self.key.to_vec(),
            op_values: self.op_values.clone(),
            unavailable_value: self.unavailable_value.unwrap_or_else(|| UNAVAILABLE_VALUE.into()),
        }))
    }
}
