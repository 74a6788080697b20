//! Questions in a pipeline's file: values that `glueless init` could not know, and that its user writes.

use std::path::Path;

use toml::{Table, Value};

use crate::error::{Error, Result};

/// What stands for a value that is to be written.
pub(crate) const UNANSWERED: &str = "???";
/// The keys that can be asked.
const ASKED: [&str; 5] = ["key", "raw.kind", "raw.op", "raw.full_load_at", "raw.csv_header"];

/// Refuses a file with a question that nobody has answered.
///
/// # Errors
/// Usage, naming the key.
pub(super) fn refuse_questions(file: &Path, table: &Table) -> Result<()> {
    match first_question(table) {
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

/// The key of the first question.
fn first_question(table: &Table) -> Option<&'static str> {
    let is_open = |value: &Value| value.as_str() == Some(UNANSWERED);
    ASKED.into_iter().find(|key| {
        let found = match key.split_once('.') {
            None => table.get(*key),
            Some((section, name)) => table.get(section).and_then(|section| section.get(name)),
        };
        found.is_some_and(|value| match value {
            Value::Array(many) => many.iter().any(is_open),
            value => is_open(value),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_found_in_the_keys_that_are_asked() {
        let first = |text: &str| first_question(&text.parse::<Table>().expect("TOML"));
        assert_eq!(first("key = ['???']"), Some("key"));
        assert_eq!(first("key = ['id']\n[raw]\nkind = '???'"), Some("raw.kind"));
        assert_eq!(first("key = ['id']\n[raw]\ncsv_null = '???'\nfull_load = ['???']"), None);
        assert_eq!(first("name = 'a ??? b'"), None);
    }
}
