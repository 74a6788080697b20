//! The table contract: columns and types of a pipeline's tables, as recorded in the ledger.

use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};

use crate::changes::EVENT_DT;
use crate::config::{ENDED_BY, Keep};
use crate::error::{Error, Result};
use crate::raw::schema_changes::{KnownColumns, Newest};
use crate::state::identity::Identity;
use crate::state::versions::VersionsLayout;

/// The columns and types of a pipeline's tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContract {
    /// The pipeline's identity.
    pub identity: Identity,
    /// The curated columns: name and Arrow type.
    pub columns: Vec<(String, String)>,
    /// The key columns in versions: name and Arrow type.
    pub keys: Vec<(String, String)>,
    /// The partition columns in versions: name and Arrow type.
    pub partitions: Vec<(String, String)>,
    /// Whether the only order column is the commit time.
    pub packed: bool,
    /// The order columns seen so far, and the kinds of their values.
    pub orders: Vec<(String, String)>,
    /// The raw columns seen so far: name and Arrow type.
    #[serde(default)]
    pub raw: Vec<(String, String)>,
    /// The curated columns added to a table that already had rows, which have null in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grown: Vec<String>,
    /// The partition columns of which versions without a row of the table do not have the values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unrecorded: Vec<String>,
    /// The curated columns that are text only because their raw columns have only nulls so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untyped: Vec<String>,
    /// The curated column that is the day, if its name is not `event_dt`; the empty text, if the column
    /// `event_dt` is another one and none is the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// The newest CDC file, and its raw columns.
    #[serde(default)]
    pub newest: ((usize, String), Vec<(String, String)>),
}

impl TableContract {
    /// The layout of versions.
    ///
    /// # Errors
    /// Internal, when a type cannot be read.
    pub fn layout(&self) -> Result<VersionsLayout> {
        Ok(VersionsLayout {
            keys: read_types(&self.keys)?,
            partitions: read_types(&self.partitions)?,
            day: self.partitions.iter().position(|(name, _)| Some(name.as_str()) == self.day()),
            packed: self.packed,
            has_instants: self.identity.keeps_times(),
            has_row_hashes: self.compares_rows(),
            unrecorded: self.unrecorded.clone(),
        })
    }

    /// The settings in which a pipeline differs from the one that wrote the tables.
    pub fn differences(&self, pipeline: &Identity) -> Vec<&'static str> {
        self.identity.differences(pipeline, self.raw.iter().map(|(name, _)| name.as_str()))
    }

    /// Whether only changes that alter the row make one, in a history.
    pub fn compares_rows(&self) -> bool {
        self.identity.compares_rows()
    }

    /// Whether the rows of a history say what has ended them.
    pub fn says_cause(&self) -> bool {
        self.compares_rows() && self.columns.last().is_some_and(|(name, _)| name == ENDED_BY)
    }

    /// The columns that the table of a pipeline has besides those of `curated.sql`, in their order: its last ones.
    pub(crate) fn own_columns(&self, keep: Keep) -> &'static [&'static str] {
        let own = keep.own_columns();
        match own.split_last() {
            Some((&ENDED_BY, others)) if !self.says_cause() => others,
            _ => own,
        }
    }

    /// The curated column that is the day; `None` if there is none.
    pub fn day(&self) -> Option<&str> {
        match &self.day {
            Some(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
            None => {
                self.columns.iter().map(|(name, _)| name.as_str()).find(|name| *name == EVENT_DT)
            }
        }
    }

    /// How [`TableContract::day`] is stored.
    pub fn stored_day(columns: &[Field], day: Option<&str>) -> Option<String> {
        let has_name = columns.iter().any(|column| column.name() == EVENT_DT);
        match day {
            Some(EVENT_DT) => None,
            None if !has_name => None,
            other => Some(other.unwrap_or_default().into()),
        }
    }

    /// The raw columns seen so far. One without a type of its own has the type Null.
    ///
    /// # Errors
    /// Internal, when a type cannot be read.
    pub fn known_columns(&self) -> Result<KnownColumns> {
        Ok(KnownColumns {
            all: read_types(&self.raw)?,
            orders: self.orders.clone(),
            newest: Newest { file: self.newest.0.clone(), columns: read_types(&self.newest.1)? },
        })
    }

    /// Whether a raw column had only nulls in all runs so far.
    pub fn is_untyped(&self, raw_column: &str) -> bool {
        let mut known = self.raw.iter();
        let is_column = |(name, _): &&(String, String)| name.eq_ignore_ascii_case(raw_column);
        known.find(is_column).is_some_and(|(_, text)| *text == DataType::Null.to_string())
    }
}

/// Writes names and types for the ledger.
pub fn write_types<'a>(
    types: impl Iterator<Item = (&'a str, &'a DataType)>,
) -> Vec<(String, String)> {
    types.map(|(name, data_type)| (name.to_string(), data_type.to_string())).collect()
}

/// Columns as they are in a contract: names and types.
pub fn column_types(columns: &[Field]) -> Vec<(String, String)> {
    write_types(columns.iter().map(|field| (field.name().as_str(), field.data_type())))
}

/// Reads names and types from the ledger.
///
/// # Errors
/// Internal, when a type cannot be read.
pub fn read_types(types: &[(String, String)]) -> Result<Vec<(String, DataType)>> {
    types
        .iter()
        .map(|(name, text)| {
            let data_type = text.parse().map_err(|error: arrow::error::ArrowError| {
                Error::internal(format!("the ledger has the unknown type `{text}`"))
                    .caused_by(error)
            })?;
            Ok((name.clone(), data_type))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VALIDITY;

    /// The own columns of a history, whose table has these columns, and whose identity says by which rows are compared.
    fn own_columns(columns: &[&str], compared: Option<&str>) -> &'static [&'static str] {
        let columns: Vec<(&str, &str)> = columns.iter().map(|name| (*name, "Utf8View")).collect();
        let contract = serde_json::json!({
            "identity": {
                "curated": "/c", "key": ["id"], "keep": "history", "order_by": ["ts"], "commit_time": "ts",
                "event_time": "ts", "time_zone": "UTC", "partition_by": [], "op": "Op", "curated_sql": "x",
                "history_columns": compared,
            },
            "columns": columns, "keys": [], "partitions": [], "packed": true, "orders": [],
        });
        let contract: TableContract = serde_json::from_value(contract).expect("a contract");
        contract.own_columns(Keep::History)
    }

    #[test]
    fn a_history_that_was_begun_before_it_said_what_ends_a_row_goes_on_like_that() {
        let before = &["id", "valid_from", "valid_to", "is_current"];
        let now = &["id", "valid_from", "valid_to", "is_current", "ended_by"];
        let named = &["id", "ended_by", "valid_from", "valid_to", "is_current"];
        assert_eq!(own_columns(now, Some("")), VALIDITY);
        assert_eq!(own_columns(before, Some("")), &VALIDITY[..3]);
        assert_eq!(own_columns(before, None), &VALIDITY[..3]);
        assert_eq!(own_columns(named, Some("")), &VALIDITY[..3]);
    }
}
