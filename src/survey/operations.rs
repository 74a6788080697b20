//! The operation column of a sample, and what its values mean.

use std::collections::BTreeSet;

use crate::config::Operation;
use crate::survey::sample::{Column, Sample};

/// The names of columns with an operation, in lower case.
const NAMES: [&str; 10] = [
    "op",
    "_op",
    "__op",
    "cdc_op",
    "op_type",
    "optype",
    "_op_type",
    "cdc_operation",
    "operation_type",
    "_change_type",
];
/// Names that columns of the application have too.
const UNCLEAR: [&str; 5] = ["operation", "change_type", "action", "dml_type", "dml"];

/// The share of rows, in percent, that must have a known value: a few can be bad.
const KNOWN_PERCENT: usize = 95;

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
    /// Whether a column of the application can have this name.
    pub(super) is_unclear: bool,
    /// The values of each operation, as they are written, where they are not those of AWS DMS.
    pub(super) values: Vec<(&'static str, Vec<String>)>,
}

/// Finds the column; `None` if files of changes have none.
pub(super) fn find(sample: &Sample) -> Option<Operations> {
    let named =
        |name: &&'static str| sample.column(name).filter(|column| has_operations(sample, column));
    let by_name = |names: &[&'static str]| names.iter().find_map(named);
    let clear = by_name(&NAMES);
    let column = clear.or_else(|| by_name(&UNCLEAR))?;
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
    Some(Operations {
        column: column.name.clone(),
        is_unclear: clear.is_none(),
        values: values.collect(),
    })
}

/// Whether files of changes have operations in a column.
fn has_operations(sample: &Sample, column: &Column) -> bool {
    let rows = sample.changes().flat_map(|file| column.values[file.rows.clone()].iter());
    are_operations(rows.map(Option::as_deref))
}

/// Whether nearly all values are operations, and not only such as are no changes.
pub(super) fn are_operations<'a>(values: impl Iterator<Item = Option<&'a str>>) -> bool {
    let meanings: Vec<Option<Operation>> = values.map(|value| value.and_then(meaning)).collect();
    let count = |is: fn(&Operation) -> bool| meanings.iter().flatten().filter(|it| is(it)).count();
    let known = count(|_| true);
    let changes =
        count(|it| matches!(it, Operation::Insert | Operation::Update | Operation::Delete));
    changes * 2 > known && known * 100 >= meanings.len() * KNOWN_PERCENT
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
