//! Recognizes the changes of keys that were forgotten ([`crate::types::key_hash`]), which are left out.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde_json::{Map, Value};

use crate::config::Pipeline;
use crate::raw::columns::find_column;
use crate::types::column_type::cast_values;
use crate::types::key::{canonical, normalize_zeros};
use crate::types::key_hash::ForgottenKeys;

/// The key columns of raw: how keys are read from texts.
#[derive(Clone, Debug)]
pub(crate) struct KeyColumns {
    /// Per key column its name, and its type in raw.
    columns: Vec<(String, DataType)>,
    /// What the names of columns with the key before an update begin with.
    before_image: Option<String>,
}

/// What is known of the keys in the text of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyInText {
    /// One of them was forgotten.
    Forgotten,
    /// None of them was.
    Other,
    /// There is no key that can be read.
    Unreadable,
}

impl KeyColumns {
    /// The key columns of a pipeline, among raw columns of these names and types. A column that is not among them is
    /// text.
    pub(crate) fn new<'a>(
        pipeline: &Pipeline,
        raw: impl Iterator<Item = (&'a str, &'a DataType)> + Clone,
    ) -> Self {
        let column = |name: &String| {
            let at = find_column(raw.clone().map(|(name, _)| name), name);
            let found = at.and_then(|at| raw.clone().nth(at));
            let data_type = found.map_or(DataType::Utf8View, |(_, data_type)| data_type.clone());
            (name.clone(), data_type)
        };
        KeyColumns {
            columns: pipeline.key.iter().map(column).collect(),
            before_image: pipeline.raw.before_image_prefix.clone(),
        }
    }

    /// The columns of keys, given by their texts, in canonical types.
    ///
    /// # Errors
    /// The number of the first key that has a text which is no value of its column, and which column that is.
    pub(crate) fn of_texts<'a>(
        &self,
        keys: impl Iterator<Item = &'a [String]> + Clone,
    ) -> Result<Vec<ArrayRef>, (usize, usize)> {
        let columns = self.columns.iter().enumerate();
        let columns = columns.map(|(number, (_, data_type))| {
            let texts = keys.clone().map(|key| key.get(number).map(String::as_str));
            let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
            let values = cast_values(&texts, data_type).map_err(|at| (at, number))?;
            canonical_values(&values).map_err(|_| (0, number))
        });
        columns.collect()
    }

    /// The name of a column, and its type in raw.
    pub(crate) fn column(&self, number: usize) -> &(String, DataType) {
        &self.columns[number]
    }

    /// Which keys were forgotten, given by their columns in raw types.
    pub(crate) fn forgotten(
        keys: &ForgottenKeys,
        columns: &[ArrayRef],
    ) -> Result<BooleanBuffer, ArrowError> {
        let columns: Vec<ArrayRef> =
            columns.iter().map(canonical_values).collect::<Result<_, _>>()?;
        keys.contain(&columns)
    }

    /// What is known of the keys in the text of a row, as quarantine has it: a JSON object of its fields. A field may
    /// have an object, or the text of one; or its name has dots in place of that.
    pub(crate) fn in_text(&self, keys: &ForgottenKeys, row: &str) -> KeyInText {
        let Ok(Value::Object(fields)) = serde_json::from_str(row) else {
            return KeyInText::Unreadable;
        };
        self.in_fields(keys, &fields)
    }

    fn in_fields(&self, keys: &ForgottenKeys, fields: &Map<String, Value>) -> KeyInText {
        let mut found = KeyInText::Unreadable;
        let Some((first, _)) = self.columns.first() else { return found };
        for (name, value) in fields {
            let known = match value {
                Value::Object(nested) => self.in_fields(keys, nested),
                Value::String(text) if text.starts_with('{') => self.in_text(keys, text),
                _ => KeyInText::Unreadable,
            };
            // A field of the first key column: the other columns are beside it.
            let begin = name.len().checked_sub(first.len()).filter(|at| name.is_char_boundary(*at));
            let is_first = begin.is_some_and(|at| name[at..].eq_ignore_ascii_case(first));
            let prefix = begin.filter(|_| is_first).map(|at| &name[..at]);
            let known = [Some(known), prefix.map(|prefix| self.with_prefix(keys, fields, prefix))];
            for known in known.into_iter().flatten() {
                match known {
                    KeyInText::Forgotten => return known,
                    KeyInText::Other => found = known,
                    KeyInText::Unreadable => {}
                }
            }
        }
        found
    }

    /// What is known of the key whose columns have names with this prefix.
    fn with_prefix(
        &self,
        keys: &ForgottenKeys,
        fields: &Map<String, Value>,
        prefix: &str,
    ) -> KeyInText {
        let is_image = self.before_image.as_deref() == Some(prefix);
        if !(prefix.is_empty() || prefix.ends_with('.') || is_image) {
            return KeyInText::Unreadable;
        }
        let text = |(name, _): &(String, DataType)| {
            let name = format!("{prefix}{name}");
            let mut named = fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(&name));
            match named.next()?.1 {
                Value::String(text) => Some(text.clone()),
                Value::Null => None,
                other => Some(other.to_string()),
            }
        };
        let key: Option<Vec<String>> = self.columns.iter().map(text).collect();
        let columns = key.and_then(|key| self.of_texts(std::iter::once(&key[..])).ok());
        let is_forgotten = columns.and_then(|columns| keys.contain(&columns).ok());
        match is_forgotten.map(|found| found.value(0)) {
            Some(true) => KeyInText::Forgotten,
            Some(false) => KeyInText::Other,
            None => KeyInText::Unreadable,
        }
    }
}

/// Values in their canonical type. Times that are finer than that are cut off: no key that was forgotten is.
fn canonical_values(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(normalize_zeros(&cast(values, &canonical(values.data_type()))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::key_hash::key_hashes;

    fn columns(columns: &[(&str, DataType)]) -> KeyColumns {
        let columns = columns.iter().map(|(name, kind)| (name.to_string(), kind.clone()));
        KeyColumns { columns: columns.collect(), before_image: Some("BI_".into()) }
    }

    fn forgotten(columns: &KeyColumns, key: &[&str]) -> ForgottenKeys {
        let key: Vec<String> = key.iter().map(|text| text.to_string()).collect();
        let key = columns.of_texts(std::iter::once(&key[..])).expect("a key");
        ForgottenKeys::new("salt", key_hashes("salt", &key).expect("hashes"))
    }

    #[test]
    fn the_key_in_the_text_of_a_row_is_found_wherever_it_is() {
        let of_id = columns(&[("id", DataType::Int32)]);
        let keys = forgotten(&of_id, &["7"]);
        for (row, expected) in [
            (r#"{"id":"7","v":"x"}"#, KeyInText::Forgotten),
            (r#"{"ID":"07"}"#, KeyInText::Forgotten),
            (r#"{"id":7}"#, KeyInText::Forgotten),
            (r#"{"BI_id":"7","id":"8"}"#, KeyInText::Forgotten),
            (r#"{"op":"u","after.id":"7"}"#, KeyInText::Forgotten),
            (r#"{"after":{"id":7}}"#, KeyInText::Forgotten),
            (r#"{"after":"{\"id\":7}","before":null}"#, KeyInText::Forgotten),
            (r#"{"id":"8","cust_id":"7","éid":"7"}"#, KeyInText::Other),
            (r#"{"id":"x"}"#, KeyInText::Unreadable),
            (r#"{"line":"7,x"}"#, KeyInText::Unreadable),
            ("{", KeyInText::Unreadable),
        ] {
            assert_eq!(of_id.in_text(&keys, row), expected, "{row}");
        }
        let of_two = columns(&[("tenant", DataType::Utf8View), ("id", DataType::Int64)]);
        let keys = forgotten(&of_two, &["a", "7"]);
        for (row, expected) in [
            (r#"{"tenant":"a","id":"7"}"#, KeyInText::Forgotten),
            (r#"{"before.tenant":"a","before.id":"7"}"#, KeyInText::Forgotten),
            (r#"{"tenant":"b","id":"7"}"#, KeyInText::Other),
            (r#"{"tenant":"a"}"#, KeyInText::Unreadable),
        ] {
            assert_eq!(of_two.in_text(&keys, row), expected, "{row}");
        }
    }

    #[test]
    fn a_key_of_texts_names_the_one_that_is_no_value() {
        let columns = columns(&[("tenant", DataType::Utf8View), ("id", DataType::Int64)]);
        let keys = [["a", "7"], ["b", "x"]].map(|key| key.map(String::from).to_vec());
        let refused = columns.of_texts(keys.iter().map(Vec::as_slice)).expect_err("refused");
        assert_eq!(refused, (1, 1));
    }
}
