//! Operations: what the values of the operation column mean.

use serde::Deserialize;
use toml::Value;

use crate::error::{Error, Result};

/// What a raw row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new row.
    Insert,
    /// A row as it is after an update.
    Update,
    /// A row that was deleted.
    Delete,
    /// No change, such as a row as it was before an update.
    Ignore,
    /// The end of all rows that were there before: a floor in the order of changes.
    Truncate,
}

impl Operation {
    /// Every operation, with its key in `[raw.op_values]`.
    const ALL: [(Operation, &'static str); 5] = [
        (Operation::Insert, "insert"),
        (Operation::Update, "update"),
        (Operation::Delete, "delete"),
        (Operation::Ignore, "ignore"),
        (Operation::Truncate, "truncate"),
    ];
}

/// `[raw.op_values]`: the values of the operation column, per operation, compared in upper or lower
/// case; null is an insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpValues {
    values: Vec<(String, Operation)>,
    /// Whether they are I, U, D and T: the usual case has a faster check.
    is_default: bool,
}

/// The values of AWS DMS, and those of `glueless capture`, which also has truncates.
const DEFAULT: [&[&str]; 5] = [&["I"], &["U"], &["D"], &[], &["T"]];

impl Default for OpValues {
    fn default() -> Self {
        OpValues::new(DEFAULT)
    }
}

impl OpValues {
    /// The values of inserts, updates, deletes, of rows that are ignored, and of truncates.
    pub(super) fn new(lists: [&[&str]; 5]) -> Self {
        let each = lists.into_iter().zip(Operation::ALL);
        let values = each.flat_map(|(list, (operation, _))| {
            list.iter().map(move |value| (value.to_string(), operation))
        });
        OpValues { values: values.collect(), is_default: lists == DEFAULT }
    }

    /// The operation of a value of the operation column; `None` if it is none.
    #[inline]
    pub fn operation(&self, value: Option<&str>) -> Option<Operation> {
        let Some(value) = value else {
            return Some(Operation::Insert);
        };
        if self.is_default {
            return match value {
                "I" | "i" => Some(Operation::Insert),
                "U" | "u" => Some(Operation::Update),
                "D" | "d" => Some(Operation::Delete),
                "T" | "t" => Some(Operation::Truncate),
                _ => None,
            };
        }
        let mut values = self.values.iter();
        let found = values.find(|(known, _)| known.eq_ignore_ascii_case(value));
        found.map(|(_, operation)| *operation)
    }

    /// The operations of the values that are one byte of ASCII, by this byte.
    pub fn by_byte(&self) -> [Option<Operation>; 128] {
        std::array::from_fn(|byte| {
            let mut text = [0; 4];
            self.operation(Some((byte as u8 as char).encode_utf8(&mut text)))
        })
    }

    /// Whether some value means this operation.
    pub fn has(&self, operation: Operation) -> bool {
        self.values.iter().any(|(_, known)| *known == operation)
    }

    /// The values as text for messages: `I, U, D`.
    pub fn listed(&self) -> String {
        let values: Vec<&str> = self.values.iter().map(|(value, _)| value.as_str()).collect();
        values.join(", ")
    }

    /// The values and what they mean, for the pipeline's identity; `None` for I, U and D.
    pub fn identity(&self) -> Option<String> {
        let is_of_keys = |(_, operation): &&(String, Operation)| *operation != Operation::Truncate;
        let default = OpValues::default();
        let of_default = default.values.iter().filter(is_of_keys);
        if self.values.iter().filter(is_of_keys).eq(of_default) {
            return None;
        }
        let text = |(operation, name): &(Operation, &str)| {
            let values = self.values.iter().filter(|(_, of)| of == operation);
            let mut values: Vec<String> =
                values.map(|(value, _)| value.to_ascii_uppercase()).collect();
            values.sort();
            // States from before there were truncates do not name them. No value of theirs was another
            // operation: it was refused.
            (*operation != Operation::Truncate).then(|| format!("{name}={}", values.join(",")))
        };
        let all: Vec<String> = Operation::ALL.iter().filter_map(text).collect();
        Some(all.join(" "))
    }

    /// The keys of `[raw.op_values]` with these values, as they stand in a toml file.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let key = |(operation, name): &(Operation, &str)| {
            let values = self.values.iter().filter(|(_, of)| of == operation);
            let values: Vec<String> = values.map(|(value, _)| format!("\"{value}\"")).collect();
            let shown = format!("[{}]", values.join(", "));
            (!values.is_empty()).then(|| (format!("raw.op_values.{name}"), shown))
        };
        Operation::ALL.iter().filter_map(key).collect()
    }
}

/// `[raw.op_values]` as written; a list that is missing has its default.
#[derive(Default, Deserialize)]
pub(super) struct OpValuesToml {
    insert: Option<Vec<Value>>,
    update: Option<Vec<Value>>,
    delete: Option<Vec<Value>>,
    ignore: Option<Vec<Value>>,
    truncate: Option<Vec<Value>>,
}

impl OpValuesToml {
    /// Whether no list is given.
    pub(super) fn is_empty(&self) -> bool {
        let OpValuesToml { insert, update, delete, ignore, truncate } = self;
        [insert, update, delete, ignore, truncate].into_iter().all(Option::is_none)
    }

    /// Replaces the lists of `defaults` by those that are given.
    pub(super) fn check(
        self,
        defaults: &OpValues,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<OpValues> {
        let given = [self.insert, self.update, self.delete, self.ignore, self.truncate];
        let mut values: Vec<(String, Operation)> = Vec::new();
        for ((operation, name), list) in Operation::ALL.into_iter().zip(&given) {
            let key = format!("raw.op_values.{name}");
            for value in list.iter().flatten() {
                let text = match value {
                    Value::String(text) if !text.is_empty() => text.clone(),
                    Value::Integer(number) => number.to_string(),
                    other => {
                        return Err(wrong(&key, format!("has the value `{other}`")).hint(
                            "list the values of the operation column as text: [\"c\", \"r\"]",
                        ));
                    }
                };
                let is_same = |(known, _): &&(String, Operation)| known.eq_ignore_ascii_case(&text);
                if let Some((_, other)) = values.iter().find(is_same) {
                    let why = if *other == operation {
                        format!("lists `{text}` twice")
                    } else {
                        format!("lists `{text}`, as another list does")
                    };
                    return Err(wrong(&key, why).hint("upper and lower case are the same value"));
                }
                values.push((text, operation));
            }
        }
        let mut lists: [Vec<&str>; 5] = Default::default();
        for (((operation, _), list), given) in
            Operation::ALL.into_iter().zip(&mut lists).zip(&given)
        {
            // A default gives way to a list that names its value.
            let is_free = |(value, _): &&(String, Operation)| {
                !values.iter().any(|(known, _)| known.eq_ignore_ascii_case(value))
            };
            let of_operation = match given {
                Some(_) => values.iter().collect::<Vec<_>>(),
                None => defaults.values.iter().filter(is_free).collect(),
            };
            let of_operation = of_operation.into_iter().filter(|(_, of)| *of == operation);
            list.extend(of_operation.map(|(value, _)| value.as_str()));
        }
        Ok(OpValues::new([&lists[0], &lists[1], &lists[2], &lists[3], &lists[4]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(toml: &str, defaults: &OpValues) -> Result<OpValues> {
        let parsed: OpValuesToml = toml::from_str(toml).expect("toml");
        parsed.check(defaults, &|key, why| Error::usage(format!("`{key}` {why}")))
    }

    #[test]
    fn the_default_is_i_u_and_d_in_either_case_and_null_is_an_insert() {
        let values = OpValues::default();
        assert!(values.is_default && values.identity().is_none());
        let operations = [Some("I"), Some("u"), Some("D"), Some("d"), None, Some("X"), Some("")];
        assert_eq!(
            operations.map(|value| values.operation(value)),
            [
                Some(Operation::Insert),
                Some(Operation::Update),
                Some(Operation::Delete),
                Some(Operation::Delete),
                Some(Operation::Insert),
                None,
                None
            ]
        );
    }

    #[test]
    fn a_list_replaces_its_default_only() {
        let values = parsed("insert = [\"c\", \"r\"]\nignore = [3]", &OpValues::default());
        let values = values.expect("values");
        let operation = |value| values.operation(Some(value));
        assert_eq!(operation("R"), Some(Operation::Insert));
        assert_eq!(operation("I"), None);
        assert_eq!(operation("u"), Some(Operation::Update));
        assert_eq!(operation("3"), Some(Operation::Ignore));
        let by_byte = values.by_byte();
        let each = [b'R', b'r', b'I', b'3'].map(|byte| by_byte[usize::from(byte)]);
        assert_eq!(each, ["R", "r", "I", "3"].map(operation));
        assert_eq!(values.identity().as_deref(), Some("insert=C,R update=U delete=D ignore=3"));
    }

    #[test]
    fn a_list_takes_a_value_from_a_default() {
        let values = parsed("delete = [\"U\"]", &OpValues::default()).expect("values");
        assert_eq!(values.operation(Some("U")), Some(Operation::Delete));
        assert_eq!(values.operation(Some("D")), None);
    }

    #[test]
    fn truncates_do_not_change_the_identity() {
        for toml in ["truncate = [\"TR\"]", "truncate = []"] {
            let values = parsed(toml, &OpValues::default()).expect("values");
            assert!(!values.is_default && values.identity().is_none(), "{toml}");
            assert_eq!(values.operation(Some("T")), None, "{toml}");
        }
    }

    #[test]
    fn equal_values_in_two_lists_and_other_types_are_refused() {
        for (toml, message) in [
            (
                "insert = [\"c\"]\ndelete = [\"C\"]",
                "`raw.op_values.delete` lists `C`, as another list does",
            ),
            ("update = [1, \"1\"]", "`raw.op_values.update` lists `1` twice"),
            ("delete = [\"\"]", "`raw.op_values.delete` has the value `\"\"`"),
            ("delete = [true]", "`raw.op_values.delete` has the value `true`"),
        ] {
            let error = parsed(toml, &OpValues::default()).expect_err("refused");
            assert_eq!(error.to_string(), message);
        }
    }
}
