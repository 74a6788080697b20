//! Schema changes: how raw columns change from file to file, and from run to run.
//!
//! CDC files are compared in the order of files, the first with the newest CDC file of earlier
//! runs; full loads are compared with each other. A change seen in several files is reported once,
//! for the first of them. A column that has nothing but nulls in a file (its type there is Null) keeps
//! the type that it had.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use serde::Serialize;

use crate::config::{BEFORE_PREFIX, Raw};
use crate::layout::FileOrder;
use crate::parquet_io::open::ParquetFile;
use crate::raw::columns::find_column;
use crate::raw::discover::Input;

/// The raw columns of earlier runs.
#[derive(Clone, Debug, Default)]
pub struct KnownColumns {
    /// All columns seen, in the types they were widened to.
    pub all: Vec<(String, DataType)>,
    /// The order columns seen, and the kinds of their values
    /// ([`Changes::order_kinds`](crate::changes::Changes::order_kinds)).
    pub orders: Vec<(String, String)>,
    /// The newest CDC file.
    pub newest: Newest,
}

/// The last CDC file in the order of files.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// Its raw location and path; an empty path if there is none yet.
    pub file: (usize, String),
    /// Its columns.
    pub columns: Vec<(String, DataType)>,
}

/// How a column changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SchemaChange {
    /// The column, as the file has it.
    pub column: String,
    /// `added`, `dropped`, `moved` to another position, `renamed` in its case, or `retyped`.
    pub change: &'static str,
    /// The type or name before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The type or name after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The first file with the change.
    pub file: String,
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SchemaChange { column, change, from, to, file } = self;
        write!(f, "`{column}` {change}")?;
        if let (Some(from), Some(to)) = (from, to) {
            write!(f, " from {from} to {to}")?;
        }
        write!(f, " in {file}")
    }
}

type Columns = Vec<(String, DataType)>;

/// Compares the columns of files, one after the other.
pub(crate) struct SchemaChanges {
    order: FileOrder,
    has_envelopes: bool,
    /// The changes observed so far.
    pub seen: Vec<SchemaChange>,
    /// The newest CDC file of all runs, and its columns.
    pub newest: Newest,
    /// The columns of the last CDC file.
    cdc: Columns,
    /// The columns of the last full load.
    full_load: Columns,
    /// The schema of the last CDC file and of the last full load.
    last_schemas: [Option<SchemaRef>; 2],
}

impl SchemaChanges {
    /// Starts from the columns of earlier runs.
    pub(crate) fn new(known: &KnownColumns, raw: &Raw) -> Self {
        SchemaChanges {
            order: raw.file_order(),
            has_envelopes: raw.envelope.is_some(),
            seen: Vec::new(),
            newest: known.newest.clone(),
            cdc: Vec::new(),
            full_load: Vec::new(),
            last_schemas: [None, None],
        }
    }

    /// Compares the next file, in the order of files.
    pub(crate) fn observe(&mut self, file: &ParquetFile, input: &Input) {
        let (schema, full_load) = (file.schema(), input.full_load);
        let (known_location, known_path) = &self.newest.file;
        let (found, known) = (
            (input.file.location, input.file.path.as_str()),
            (*known_location, known_path.as_str()),
        );
        let is_newest = !full_load && self.order.is_from(found, known);
        let is_first = self.last_schemas[0].is_none();
        if !full_load && is_newest {
            if is_first {
                // It follows the newest file of earlier runs.
                self.cdc = self.newest.columns.clone();
            }
            self.newest.file = (input.file.location, input.file.path.clone());
        }
        let last = &mut self.last_schemas[usize::from(full_load)];
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, schema)) {
            if !full_load && is_newest {
                self.newest.columns.clone_from(&self.cdc);
            }
            return;
        }
        *last = Some(Arc::clone(schema));
        let fields = schema.fields();
        let before = if full_load { &mut self.full_load } else { &mut self.cdc };
        // The key before a change is not a column of its own.
        let is_column =
            |field: &&FieldRef| !(self.has_envelopes && field.name().starts_with(BEFORE_PREFIX));
        let columns: Columns = fields[..fields.len() - 1]
            .iter()
            .filter(is_column)
            .map(|field| (field.name().clone(), type_after(before, field)))
            .collect();
        for change in changes(before, &columns, &file.name) {
            let is_same = |known: &SchemaChange| {
                let known_change = (&known.column, known.change, &known.from, &known.to);
                known_change == (&change.column, change.change, &change.from, &change.to)
            };
            if !self.seen.iter().any(is_same) {
                self.seen.push(change);
            }
        }
        *before = columns;
        if !full_load && is_newest {
            self.newest.columns.clone_from(&self.cdc);
        }
    }
}

/// The type of a file's column, or the one before, if it has nothing but nulls in the file.
fn type_after(before: &Columns, field: &Field) -> DataType {
    let known = || find_column(before.iter().map(|(name, _)| name.as_str()), field.name());
    match field.data_type() {
        DataType::Null => known().map_or(DataType::Null, |at| before[at].1.clone()),
        other => other.clone(),
    }
}

fn changes(before: &Columns, after: &Columns, file: &str) -> Vec<SchemaChange> {
    let mut found = Vec::new();
    if before.is_empty() {
        return found;
    }
    let mut report = |column: &str, change, from: Option<String>, to: Option<String>| {
        found.push(SchemaChange { column: column.into(), change, from, to, file: file.into() });
    };
    let find = |columns: &Columns, name: &str| {
        find_column(columns.iter().map(|(name, _)| name.as_str()), name)
    };
    let mut last_position = None;
    for (name, data_type) in after {
        let Some(at) = find(before, name) else {
            report(name, "added", None, None);
            continue;
        };
        let (known, known_type) = &before[at];
        if known != name {
            report(name, "renamed", Some(known.clone()), Some(name.clone()));
        }
        if known_type != data_type && *known_type != DataType::Null {
            let (from, to) = (known_type.to_string(), data_type.to_string());
            report(name, "retyped", Some(from), Some(to));
        }
        if last_position > Some(at) {
            report(name, "moved", None, None);
        } else {
            last_position = Some(at);
        }
    }
    for (name, _) in before {
        if find(after, name).is_none() {
            report(name, "dropped", None, None);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_reported() {
        let columns = |columns: &[(&str, DataType)]| -> Columns {
            let owned = columns.iter().cloned();
            owned.map(|(name, data_type)| (name.into(), data_type)).collect()
        };
        let before = columns(&[
            ("id", DataType::Int32),
            ("a", DataType::Utf8View),
            ("b", DataType::Utf8View),
            ("gone", DataType::Utf8View),
            ("nulls", DataType::Null),
        ]);
        let after = columns(&[
            ("ID", DataType::Int64),
            ("b", DataType::Utf8View),
            ("a", DataType::Utf8View),
            ("new", DataType::Date32),
            ("nulls", DataType::Int32),
        ]);
        let found = changes(&before, &after, "f");
        let texts: Vec<String> = found.iter().map(SchemaChange::to_string).collect();
        assert_eq!(
            texts,
            [
                "`ID` renamed from id to ID in f",
                "`ID` retyped from Int32 to Int64 in f",
                "`a` moved in f",
                "`new` added in f",
                "`gone` dropped in f",
            ]
        );
        assert_eq!(changes(&after, &after, "f"), []);
        assert_eq!(changes(&Vec::new(), &after, "f"), [], "no columns before");
    }
}
