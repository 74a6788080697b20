//! Schema changes: how raw columns change from file to file, and from run to run.
//!
//! CDC files are compared with each other in their order, and the first of them with the newest of
//! earlier runs; full loads with each other. A change that several files show is told once, with
//! the first of them.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use serde::Serialize;

use crate::layout::file_order;
use crate::parquet_io::open::ParquetFile;
use crate::raw::columns::find_column;
use crate::raw::discover::Input;

/// What earlier runs know of the raw columns.
#[derive(Clone, Debug, Default)]
pub struct KnownColumns {
    /// All that they met, in the types they brought them to.
    pub all: Vec<(String, DataType)>,
    /// The newest CDC file.
    pub newest: Newest,
}

/// The last CDC file in the order of files.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// Its raw location and path; nothing before there was one.
    pub file: (usize, String),
    /// Its columns.
    pub columns: Vec<(String, DataType)>,
}

/// How a column changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SchemaChange {
    /// The column, as the file has it.
    pub column: String,
    /// `added`, `dropped`, `moved` to another place, `renamed` in its case or `retyped`.
    pub change: &'static str,
    /// What it was, of a type or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is, of a type or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The file that shows it.
    pub file: String,
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SchemaChange {
            column,
            change,
            from,
            to,
            file,
        } = self;
        write!(f, "`{column}` {change}")?;
        if let (Some(from), Some(to)) = (from, to) {
            write!(f, " from {from} to {to}")?;
        }
        write!(f, " in {file}")
    }
}

type Columns = Vec<(String, DataType)>;

/// Compares files, one after the other.
pub struct SchemaChanges {
    /// The changes met so far.
    pub met: Vec<SchemaChange>,
    /// The newest CDC file that was met, of all runs, and its columns.
    pub newest: Newest,
    /// The last CDC file's columns.
    cdc: Columns,
    full_load: Columns,
    /// The last file's columns, of CDC files and of full loads.
    last: [Option<SchemaRef>; 2],
}

impl SchemaChanges {
    /// Begins with what earlier runs met.
    pub fn new(known: &KnownColumns) -> Self {
        SchemaChanges {
            met: Vec::new(),
            newest: known.newest.clone(),
            cdc: Vec::new(),
            full_load: Vec::new(),
            last: [None, None],
        }
    }

    /// The next file, in the order of files.
    pub fn meet(&mut self, file: &ParquetFile, input: &Input) {
        let (schema, full_load) = (file.schema(), input.full_load);
        let place = file_order(input.file.location, &input.file.path);
        let (known_location, known_path) = &self.newest.file;
        let is_newest = place >= file_order(*known_location, known_path);
        let is_first = self.last[0].is_none();
        if !full_load && is_newest {
            if is_first {
                // It comes behind what earlier runs met.
                self.cdc = self.newest.columns.clone();
            }
            self.newest.file = (input.file.location, input.file.path.clone());
        }
        let last = &mut self.last[usize::from(full_load)];
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, schema)) {
            if !full_load && is_newest {
                self.newest.columns.clone_from(&self.cdc);
            }
            return;
        }
        *last = Some(Arc::clone(schema));
        let fields = schema.fields();
        let fields = fields[..fields.len() - 1].iter();
        let columns = fields.map(|field| (field.name().clone(), field.data_type().clone()));
        let columns: Columns = columns.collect();
        let before = match full_load {
            true => &mut self.full_load,
            false => &mut self.cdc,
        };
        for change in changes(before, &columns, &file.name) {
            let is_same = |known: &SchemaChange| {
                let told = (&known.column, known.change, &known.from, &known.to);
                told == (&change.column, change.change, &change.from, &change.to)
            };
            if !self.met.iter().any(is_same) {
                self.met.push(change);
            }
        }
        *before = columns;
        if !full_load && is_newest {
            self.newest.columns.clone_from(&self.cdc);
        }
    }
}

fn changes(before: &Columns, after: &Columns, file: &str) -> Vec<SchemaChange> {
    let mut found = Vec::new();
    if before.is_empty() {
        return found;
    }
    let mut tell = |column: &str, change, from: Option<String>, to: Option<String>| {
        found.push(SchemaChange {
            column: column.into(),
            change,
            from,
            to,
            file: file.into(),
        });
    };
    let place = |columns: &Columns, name: &str| {
        find_column(columns.iter().map(|(name, _)| name.as_str()), name)
    };
    let mut last_place = None;
    for (name, data_type) in after {
        let Some(at) = place(before, name) else {
            tell(name, "added", None, None);
            continue;
        };
        let (known, known_type) = &before[at];
        if known != name {
            tell(name, "renamed", Some(known.clone()), Some(name.clone()));
        }
        if known_type != data_type {
            let (from, to) = (known_type.to_string(), data_type.to_string());
            tell(name, "retyped", Some(from), Some(to));
        }
        match last_place > Some(at) {
            true => tell(name, "moved", None, None),
            false => last_place = Some(at),
        }
    }
    for (name, _) in before {
        if place(after, name).is_none() {
            tell(name, "dropped", None, None);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_told() {
        let columns = |columns: &[(&str, DataType)]| -> Columns {
            let owned = columns.iter().cloned();
            owned
                .map(|(name, data_type)| (name.into(), data_type))
                .collect()
        };
        let before = columns(&[
            ("id", DataType::Int32),
            ("a", DataType::Utf8View),
            ("b", DataType::Utf8View),
            ("gone", DataType::Utf8View),
        ]);
        let after = columns(&[
            ("ID", DataType::Int64),
            ("b", DataType::Utf8View),
            ("a", DataType::Utf8View),
            ("new", DataType::Date32),
        ]);
        let told = changes(&before, &after, "f");
        let told: Vec<String> = told.iter().map(SchemaChange::to_string).collect();
        assert_eq!(
            told,
            [
                "`ID` renamed from id to ID in f",
                "`ID` retyped from Int32 to Int64 in f",
                "`a` moved in f",
                "`new` added in f",
                "`gone` dropped in f",
            ]
        );
        assert_eq!(changes(&after, &after, "f"), []);
        assert_eq!(
            changes(&Vec::new(), &after, "f"),
            [],
            "there was nothing before"
        );
    }
}
