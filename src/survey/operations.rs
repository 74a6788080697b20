//! The operation column of a sample, and what its values mean.

use std::collections::BTreeSet;

use crate::config::Operation;
use crate::survey::sample::{Column, Sample};

/// The names of columns with an operation, in lower case.
const NAMES: [&str; 14] = [
    "op",
    "_op",
    "__op",
    "cdc_op",
    "op_type",
    "optype",
    "operation",
    "cdc_operation",
    "operation_type",
    "change_type",
    "_change_type",
    "dml_type",
    "dml",
    "action",
];

/// The values of such columns, in lower case.
const VALUES: [(&str, Operation); 22] = [
    ("i", Operation::Insert),
    ("c", Operation::Insert),
    ("r", Operation::Insert),
    ("insert", Operation::Insert),
    ("inserted", Operation::Insert),
    ("create", Operation::Insert),
    ("read", Operation::Insert),
    ("u", Operation::Update),
    ("update", Operation::Update),
    ("updated", Operation::Update),
    ("upsert", Operation::Update),
    ("update_postimage", Operation::Update),
    ("update_after", Operation::Update),
    ("d", Operation::Delete),
    ("delete", Operation::Delete),
    ("deleted", Operation::Delete),
    ("b", Operation::Ignore),
    ("m", Operation::Ignore),
    ("update_preimage", Operation::Ignore),
    ("update_before", Operation::Ignore),
    ("t", Operation::Truncate),
    ("truncate", Operation::Truncate),
];

/// The values that mean what they mean without a setting.
const DEFAULTS: [(&str, Operation); 4] = [
    ("i", Operation::Insert),
    ("u", Operation::Update),
    ("d", Operation::Delete),
    ("t", Operation::Truncate),
];

/// The operation column of files of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operations {
    pub(super) column: String,
    /// The values of each operation, as they are written, where they are not those of AWS DMS.
    pub(super) values: Vec<(&'static str, Vec<String>)>,
}

/// Finds the column; `None` if files of changes have none.
pub(super) fn find(sample: &Sample) -> Option<Operations> {
    let named = |name: &&str| sample.column(name).filter(|column| has_operations(sample, column));
    let column = NAMES.iter().find_map(named)?;
    let seen = seen(sample, column);
    let of = |wanted: Operation| {
        let values = seen.iter().filter(|value| meaning(value) == Some(wanted));
        let mut values: Vec<String> = values.cloned().collect();
        // What a snapshot or a later change has, which the sample may not have.
        let others = match wanted {
            Operation::Insert if seen.iter().any(|value| ["c", "r"].contains(&value.as_str())) => {
                &["c", "r"][..]
            }
            _ => &[],
        };
        let missing = others.iter().filter(|other| !values.iter().any(|value| value == *other));
        let missing: Vec<String> = missing.map(ToString::to_string).collect();
        values.extend(missing);
        values.sort();
        values
    };
    let is_word = seen.iter().any(|value| value.len() > 1);
    let lists = [
        ("insert", Operation::Insert, "insert"),
        ("update", Operation::Update, "update"),
        ("delete", Operation::Delete, "delete"),
        ("ignore", Operation::Ignore, ""),
        ("truncate", Operation::Truncate, ""),
    ];
    let values = lists.into_iter().filter_map(|(key, operation, word)| {
        let mut values = of(operation);
        if values.is_empty() && is_word && !word.is_empty() {
            values.push(word.into());
        }
        let is_default =
            |value: &String| DEFAULTS.contains(&(value.to_ascii_lowercase().as_str(), operation));
        let differs = !values.is_empty() && !values.iter().all(is_default);
        differs.then_some((key, values))
    });
    Some(Operations { column: column.name.clone(), values: values.collect() })
}

/// Whether files of changes have operations in a column, in each row.
fn has_operations(sample: &Sample, column: &Column) -> bool {
    let rows = || sample.changes().flat_map(|file| column.values[file.rows.clone()].iter());
    let mut all = rows().peekable();
    all.peek().is_some() && all.all(|value| value.as_deref().and_then(meaning).is_some())
}

/// The different values in files of changes, as they are written.
fn seen(sample: &Sample, column: &Column) -> BTreeSet<String> {
    let rows = sample.changes().flat_map(|file| column.values[file.rows.clone()].iter());
    rows.flatten().cloned().collect()
}

/// What a value means, if it is one of an operation.
fn meaning(value: &str) -> Option<Operation> {
    let lower = value.to_ascii_lowercase();
    VALUES.iter().find(|(known, _)| *known == lower).map(|(_, operation)| *operation)
}
