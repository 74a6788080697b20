//! Questions in a pipeline's file: values that `glueless init` could not know, and that its user writes.

use std::path::Path;

use toml::{Table, Value};

use crate::error::{Error, Result};

/// What stands for a value that is to be written.
pub(crate) const UNANSWERED: &str = "???";

/// Refuses a file with a question that nobody has answered.
///
/// # Errors
/// Usage, naming the key.
pub(super) fn refuse_questions(file: &Path, table: &Table) -> Result<()> {
    match first_question("", table) {
        None => Ok(()),
        Some(key) => Err(Error::usage(format!(
            "{}: `{key}` is a question that is not answered",
            file.display()
        ))
        .hint(format!(
            "write its value in place of `{UNANSWERED}`; the comment above it says what `glueless init` has found"
        ))),
    }
}

/// The key of the first question. A text of CSV files may be anything.
fn first_question(prefix: &str, table: &Table) -> Option<String> {
    let is_open = |value: &Value| value.as_str() == Some(UNANSWERED);
    table.iter().find_map(|(name, value)| {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => first_question(&key, inner),
            Value::Array(many) => many.iter().any(is_open).then_some(key),
            value => (is_open(value) && !name.starts_with("csv_")).then_some(key),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_found_wherever_it_stands() {
        let first = |text: &str| first_question("", &text.parse::<Table>().expect("TOML"));
        assert_eq!(first("key = ['???']").as_deref(), Some("key"));
        assert_eq!(first("key = ['id']\n[raw]\nkind = '???'").as_deref(), Some("raw.kind"));
        assert_eq!(first("[raw.columns]\nid = '???'").as_deref(), Some("raw.columns.id"));
        assert_eq!(first("key = ['id']\n[raw]\ncsv_null = '???'"), None);
        assert_eq!(first("name = 'a ??? b'"), None);
    }
}
