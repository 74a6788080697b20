//! Recognizes the changes of keys that were forgotten ([`crate::types::key_hash`]), which are left out.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use serde_json::{Map, Value};

use crate::config::Pipeline;
use crate::error::{Error, Result};
use crate::raw::columns::find_column;
use crate::types::column_type::cast_values;
use crate::types::key::{canonical, normalize_zeros};
use crate::types::key_hash::{ForgottenKeys, KeyKind, bytes_of_digits};
use crate::types::mask::Mask;

/// The hint where forgotten keys would not be recognized.
pub(crate) const KEEP_FORGOTTEN: &str = "nothing was changed: leave the key as it was; or take them back by `glueless forget --undo` before the change, and \
     forget them again by the new key after it";

/// The key columns of raw: how keys are read from texts.
#[derive(Clone, Debug)]
pub(crate) struct KeyColumns {
    /// Per key column its name, and its type in raw; masked, if it has a mask.
    columns: Vec<(String, DataType)>,
    /// Per key column its mask, and its type before it is masked.
    masks: Vec<Option<(Mask, DataType)>>,
    /// Per key column whether its value is said by where a file is: a row has it once, beside its fields.
    are_constants: Vec<bool>,
    /// What the names of columns with the key before an update begin with.
    before_image: Option<String>,
}

/// What is known of the keys in the text of a row: it can have the key before an update too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeysInText {
    /// Whether one of them was forgotten.
    pub(crate) has_forgotten: bool,
    /// Whether one of them was not.
    pub(crate) has_other: bool,
}

impl KeysInText {
    /// Whether there is no key that can be read.
    pub(crate) fn is_unreadable(self) -> bool {
        self == KeysInText::default()
    }

    fn add(&mut self, other: Self) {
        self.has_forgotten |= other.has_forgotten;
        self.has_other |= other.has_other;
    }
}

impl KeyColumns {
    /// The key columns of a pipeline, among raw columns of these names and types, before they are masked. A column that is not
    /// among them is of the type Null, and read as text.
    pub(crate) fn new<'a>(
        pipeline: &Pipeline,
        raw: impl Iterator<Item = (&'a str, &'a DataType)> + Clone,
    ) -> Self {
        let column = |name: &String| {
            let at = find_column(raw.clone().map(|(name, _)| name), name);
            let found = at.and_then(|at| raw.clone().nth(at));
            let data_type = found.map_or(DataType::Null, |(_, data_type)| data_type.clone());
            (name.clone(), data_type)
        };
        let columns: Vec<(String, DataType)> = pipeline.key.iter().map(column).collect();
        let masks = columns.iter().map(|(name, data_type)| {
            pipeline.raw.masks.of(name).map(|mask| (mask.clone(), data_type.clone()))
        });
        let masks: Vec<Option<(Mask, DataType)>> = masks.collect();
        let of_changes = columns.into_iter().zip(&masks).map(|((name, data_type), mask)| {
            let masked = mask.as_ref().and_then(|(mask, _)| mask.fixed_type());
            (name, masked.unwrap_or(data_type))
        });
        let constants = &pipeline.raw.constants;
        KeyColumns {
            columns: of_changes.collect(),
            masks,
            are_constants: pipeline.key.iter().map(|name| constants.has(name)).collect(),
            before_image: pipeline.raw.before_image_prefix.clone(),
        }
    }

    /// The columns of keys, given by their texts in the source, in canonical types. Binary values are given in hexadecimal
    /// digits.
    ///
    /// # Errors
    /// The number of the first key that has a text which is no value of its column, and which column that is.
    pub(crate) fn of_texts<'a>(
        &self,
        keys: impl Iterator<Item = &'a [String]> + Clone,
    ) -> Result<Vec<ArrayRef>, (usize, usize)> {
        self.values(keys, false)
    }

    /// The same; `are_masked` says whether the texts are those of masked values, where a column has a mask.
    fn values<'a>(
        &self,
        keys: impl Iterator<Item = &'a [String]> + Clone,
        are_masked: bool,
    ) -> Result<Vec<ArrayRef>, (usize, usize)> {
        let columns = self.columns.iter().zip(&self.masks).enumerate();
        let columns = columns.map(|(number, ((_, data_type), mask))| {
            let mask = mask.as_ref().filter(|_| !are_masked);
            let data_type = mask.map_or(data_type, |(_, source)| source);
            let texts = keys.clone().map(|key| key.get(number).map(String::as_str));
            let values = if data_type.is_binary() {
                let values = texts.map(|text| bytes_of_digits(text.unwrap_or_default()));
                let values: Vec<Option<Vec<u8>>> = values.collect();
                if let Some(at) = values.iter().position(Option::is_none) {
                    return Err((at, number));
                }
                Arc::new(values.into_iter().collect::<BinaryArray>())
            } else {
                let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
                let is_known = *data_type != DataType::Null;
                let data_type = if is_known { data_type } else { &DataType::Utf8View };
                cast_values(&texts, data_type).map_err(|at| (at, number))?
            };
            let values = match mask {
                Some((mask, _)) => mask.apply(&values).map_err(|at| (at, number))?,
                None => values,
            };
            canonical_values(&values).map_err(|_| (0, number))
        });
        columns.collect()
    }

    /// The names of the columns, and the kinds of their types, before they are masked: values of other kinds have other hashes.
    pub(crate) fn kinds(&self) -> Vec<(String, KeyKind)> {
        let columns = (0..self.columns.len()).map(|number| self.column(number));
        let kinds = columns.map(|(name, data_type)| {
            (name.clone(), KeyKind::of(data_type).unwrap_or(KeyKind::Text))
        });
        kinds.collect()
    }

    /// Refuses columns in which forgotten keys would not be recognized.
    ///
    /// # Errors
    /// Usage, if the columns have other names, or a value of another kind.
    pub(crate) fn check(&self, forgotten: &ForgottenKeys) -> Result<()> {
        if forgotten.is_empty() {
            return Ok(());
        }
        let known = &forgotten.columns;
        let is_same =
            |((name, data_type), (known, kind)): ((&String, &DataType), &(String, KeyKind))| {
                let found = KeyKind::of(data_type);
                name.eq_ignore_ascii_case(known) && found.is_none_or(|found| found == *kind)
            };
        let columns = (0..self.columns.len()).map(|number| self.column(number));
        if self.columns.len() == known.len() && columns.zip(known).all(is_same) {
            return Ok(());
        }
        let known: Vec<String> = known
            .iter()
            .map(|(name, kind)| format!("`{name}` ({kind:?})").to_lowercase())
            .collect();
        Err(Error::usage(format!(
            "keys were forgotten by {}, and would come back with this key, by which they are not recognized",
            known.join(", ")
        ))
        .hint(KEEP_FORGOTTEN))
    }

    /// The name of a column, and its type in raw, before it is masked.
    pub(crate) fn column(&self, number: usize) -> (&String, &DataType) {
        let (name, data_type) = &self.columns[number];
        let source = self.masks[number].as_ref().map(|(_, source)| source);
        (name, source.unwrap_or(data_type))
    }

    /// Which keys were forgotten, given by their columns in raw types.
    pub(crate) fn forgotten(
        keys: &ForgottenKeys,
        columns: &[ArrayRef],
    ) -> Result<BooleanBuffer, ArrowError> {
        let canonical = columns.iter().map(canonical_values);
        let canonical: Vec<ArrayRef> = canonical.collect::<Result<_, _>>()?;
        let mut found = keys.contain(&canonical)?;
        for (column, canonical) in columns.iter().zip(&canonical) {
            if let DataType::Timestamp(TimeUnit::Nanosecond, _) = column.data_type() {
                let same = not_distinct(&cast(canonical, column.data_type())?, column)?;
                found = &found & same.values();
            }
        }
        Ok(found)
    }

    /// What is known of the keys in the text of a row, as quarantine has it: a JSON object of its fields. Of an envelope
    /// the rows before and after are objects in it, or the names of their fields have dots.
    pub(crate) fn in_text(&self, keys: &ForgottenKeys, row: &str) -> KeysInText {
        match serde_json::from_str(row) {
            Ok(Value::Object(fields)) => self.in_fields(keys, &fields, &fields),
            _ => KeysInText::default(),
        }
    }

    /// `row` are the outermost fields.
    fn in_fields(
        &self,
        keys: &ForgottenKeys,
        row: &Map<String, Value>,
        fields: &Map<String, Value>,
    ) -> KeysInText {
        let mut found = KeysInText::default();
        let image = self.before_image.iter().map(String::as_str);
        for prefix in
            ["", "before.", "after.", "payload.before.", "payload.after."].into_iter().chain(image)
        {
            found.add(self.with_prefix(keys, row, fields, prefix));
        }
        for name in ["before", "after", "payload"] {
            match fields.get(name) {
                Some(Value::Object(nested)) => found.add(self.in_fields(keys, row, nested)),
                Some(Value::String(text)) => {
                    if let Ok(Value::Object(nested)) = serde_json::from_str(text) {
                        found.add(self.in_fields(keys, row, &nested));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// What is known of the key whose columns have names with this prefix.
    fn with_prefix(
        &self,
        keys: &ForgottenKeys,
        row: &Map<String, Value>,
        fields: &Map<String, Value>,
        prefix: &str,
    ) -> KeysInText {
        let text = |((name, _), is_constant): (&(String, DataType), &bool)| {
            let (fields, prefix) = if *is_constant { (row, "") } else { (fields, prefix) };
            let name = format!("{prefix}{name}");
            let mut named = fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(&name));
            text_of(named.next()?.1)
        };
        let key: Option<Vec<String>> =
            self.columns.iter().zip(&self.are_constants).map(text).collect();
        key.map_or(KeysInText::default(), |key| self.of_key(keys, &key))
    }

    fn of_key(&self, keys: &ForgottenKeys, key: &[String]) -> KeysInText {
        // Quarantine has masked values.
        let columns = self.values(std::iter::once(key), true).ok();
        let found = columns.and_then(|columns| keys.contain(&columns).ok());
        match found.map(|found| found.value(0)) {
            Some(is_forgotten) => {
                KeysInText { has_forgotten: is_forgotten, has_other: !is_forgotten }
            }
            None => KeysInText::default(),
        }
    }

    /// The same of a bad row. Unless a single column of it is wrong, its fields may have wrong names, because there are too
    /// few or too many: a key of one column is looked for in all of them.
    pub(crate) fn in_bad_row(
        &self,
        keys: &ForgottenKeys,
        row: &str,
        is_of_column: bool,
    ) -> KeysInText {
        let found = self.in_text(keys, row);
        if is_of_column || found.has_forgotten { found } else { self.in_any_field(keys, row) }
    }

    fn in_any_field(&self, keys: &ForgottenKeys, row: &str) -> KeysInText {
        let Ok(Value::Object(fields)) = serde_json::from_str(row) else {
            return KeysInText::default();
        };
        let mut texts = fields.values().filter_map(text_of).filter(|_| self.columns.len() == 1);
        let has_forgotten = texts.any(|text| self.of_key(keys, &[text]).has_forgotten);
        KeysInText { has_forgotten, has_other: false }
    }
}

/// The text of a value; `None` of null.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// Values in their canonical type. Times that are finer than that are cut off.
fn canonical_values(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(normalize_zeros(&cast(values, &canonical(values.data_type()))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::key_hash::key_hashes;

    fn columns(columns: &[(&str, DataType)]) -> KeyColumns {
        let columns = columns.iter().map(|(name, kind)| (name.to_string(), kind.clone()));
        let columns: Vec<(String, DataType)> = columns.collect();
        KeyColumns {
            masks: vec![None; columns.len()],
            are_constants: vec![false; columns.len()],
            columns,
            before_image: Some("BI_".into()),
        }
    }

    fn forgotten(columns: &KeyColumns, key: &[&str]) -> ForgottenKeys {
        let key: Vec<String> = key.iter().map(|text| text.to_string()).collect();
        let key = columns.of_texts(std::iter::once(&key[..])).expect("a key");
        let hashes = key_hashes("salt", &key).expect("hashes");
        ForgottenKeys::new("salt", &columns.kinds(), hashes)
    }

    const FORGOTTEN: KeysInText = KeysInText { has_forgotten: true, has_other: false };
    const OTHER: KeysInText = KeysInText { has_forgotten: false, has_other: true };
    const BOTH: KeysInText = KeysInText { has_forgotten: true, has_other: true };
    const NONE: KeysInText = KeysInText { has_forgotten: false, has_other: false };

    #[test]
    fn a_column_of_sources_is_beside_the_fields_before_and_after() {
        let mut of_tenant = columns(&[("tenant", DataType::Utf8), ("id", DataType::Int32)]);
        of_tenant.are_constants = vec![true, false];
        let keys = forgotten(&of_tenant, &["acme", "7"]);
        for (row, expected) in [
            (r#"{"id":"7","tenant":"acme"}"#, FORGOTTEN),
            (r#"{"id":"7","tenant":"beta"}"#, OTHER),
            (r#"{"BI_id":"7","id":"8","tenant":"acme"}"#, BOTH),
            (r#"{"payload":{"after":{"id":7},"before":{"id":8}},"tenant":"acme"}"#, BOTH),
            (r#"{"after":"{\"id\":7}","before":null,"tenant":"acme"}"#, FORGOTTEN),
            (r#"{"after.id":"7","tenant":"beta"}"#, OTHER),
        ] {
            assert_eq!(of_tenant.in_text(&keys, row), expected, "{row}");
        }
    }

    #[test]
    fn the_keys_in_the_text_of_a_row_are_found_where_they_can_be() {
        let of_id = columns(&[("id", DataType::Int32)]);
        let keys = forgotten(&of_id, &["7"]);
        for (row, expected) in [
            (r#"{"id":"7","v":"x"}"#, FORGOTTEN),
            (r#"{"ID":"07"}"#, FORGOTTEN),
            (r#"{"id":7}"#, FORGOTTEN),
            (r#"{"BI_id":"7","id":"8"}"#, BOTH),
            (r#"{"BI_id":"7","id":"7"}"#, FORGOTTEN),
            (r#"{"op":"u","after.id":"7"}"#, FORGOTTEN),
            (r#"{"payload":{"after":{"id":7},"before":{"id":8}}}"#, BOTH),
            (r#"{"after":"{\"id\":7}","before":null}"#, FORGOTTEN),
            (r#"{"id":"8","cust_id":"7","source.id":"7","customer":{"id":7}}"#, OTHER),
            (r#"{"id":"x"}"#, NONE),
            (r#"{"line":"7,x"}"#, NONE),
            ("{", NONE),
        ] {
            assert_eq!(of_id.in_text(&keys, row), expected, "{row}");
        }
        assert_eq!(of_id.in_any_field(&keys, r#"{"v":"7","id":"x"}"#), FORGOTTEN);
        assert!(of_id.in_any_field(&keys, r#"{"v":"8"}"#).is_unreadable());
        let of_two = columns(&[("tenant", DataType::Utf8View), ("id", DataType::Int64)]);
        let keys = forgotten(&of_two, &["a", "7"]);
        for (row, expected) in [
            (r#"{"tenant":"a","id":"7"}"#, FORGOTTEN),
            (r#"{"before.tenant":"a","before.id":"7"}"#, FORGOTTEN),
            (r#"{"tenant":"b","id":"7"}"#, OTHER),
            (r#"{"tenant":"a"}"#, NONE),
        ] {
            assert_eq!(of_two.in_text(&keys, row), expected, "{row}");
        }
    }

    #[test]
    fn a_key_of_texts_names_the_one_that_is_no_value() {
        let columns = columns(&[("tenant", DataType::Utf8View), ("id", DataType::Binary)]);
        let of = |keys: [[&str; 2]; 2]| {
            let keys = keys.map(|key| key.map(String::from).to_vec());
            columns.of_texts(keys.iter().map(Vec::as_slice)).map(|columns| columns.len())
        };
        assert_eq!(of([["a", "7f00"], ["b", ""]]), Ok(2));
        for wrong in ["x", "7", "7g", "é"] {
            assert_eq!(of([["a", "7f"], ["b", wrong]]), Err((1, 1)), "{wrong}");
        }
    }

    #[test]
    fn other_columns_in_which_keys_would_not_be_recognized_are_refused() {
        let known = columns(&[("id", DataType::Int32)]);
        let keys = forgotten(&known, &["7"]);
        for same in [("ID", DataType::Decimal128(10, 2)), ("id", DataType::Null)] {
            columns(&[same]).check(&keys).expect("the same");
        }
        for other in [&[("id", DataType::Utf8View)][..], &[("no", DataType::Int32)], &[]] {
            let refused = columns(other).check(&keys).expect_err("refused").to_string();
            assert!(refused.starts_with("keys were forgotten by `id` (number)"), "{refused}");
        }
    }
}
