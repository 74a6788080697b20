//! Hashes of keys that were forgotten: they recognize a key, and do not contain it.
//!
//! The hash of a key is the first 16 bytes of the keyed BLAKE3 hash of the values of its columns, in their canonical
//! types ([`crate::types::key`]): of each the length of its text, as 8 bytes, the least significant first, and the text,
//! which is the same for equal values of all types of a kind ([`KeyKind`]): of numbers it has no zeros at the end, and
//! midnight is the date. The hash's key is derived from a salt, which is kept beside the hashes, so that the hashes of
//! one table do not recognize the keys of another. Whoever has the salt can still find out by trial whether a given key
//! was forgotten.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeBinaryArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use serde::{Deserialize, Serialize};

/// What the keys of these hashes are derived for.
const CONTEXT: &str = "glueless 2026 forgotten keys";

/// The hash of a key; as text, in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 16]);

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for KeyHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = bytes_of_digits(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(KeyHash).ok_or_else(|| "is no hash of a key".into())
    }
}

/// The bytes that a text of hexadecimal digits stands for; `None` if it is no such text.
pub(crate) fn bytes_of_digits(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect()
}

/// The kind of a key column: values of different kinds are never equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Whole numbers, decimals, floats.
    Number,
    /// Dates and times.
    Time,
    /// Texts.
    Text,
    /// Binary values.
    Binary,
    /// All others.
    Other,
}

impl KeyKind {
    /// The kind of a type; `None` of the type Null.
    pub(crate) fn of(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Null => return None,
            other if other.is_numeric() => KeyKind::Number,
            DataType::Date32 | DataType::Timestamp(_, _) => KeyKind::Time,
            other if other.is_string() => KeyKind::Text,
            other if other.is_binary() => KeyKind::Binary,
            _ => KeyKind::Other,
        })
    }
}

/// The keys that were forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForgottenKeys {
    salt: String,
    /// The key columns: their names and kinds.
    pub(crate) columns: Vec<(String, KeyKind)>,
    hashes: HashSet<KeyHash>,
}

impl ForgottenKeys {
    /// The keys with these hashes, which were made with the salt, of columns of these names and kinds.
    pub(crate) fn new(
        salt: &str,
        columns: &[(String, KeyKind)],
        hashes: impl IntoIterator<Item = KeyHash>,
    ) -> Self {
        let (salt, columns) = (salt.into(), columns.to_vec());
        ForgottenKeys { salt, columns, hashes: hashes.into_iter().collect() }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The memory that the hashes take, about.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.hashes.len() * size_of::<KeyHash>()
    }

    /// Which keys were forgotten, given by their columns in canonical types. One with a null is none of them.
    pub(crate) fn contain(&self, keys: &[ArrayRef]) -> Result<BooleanBuffer, ArrowError> {
        let rows = keys.first().map_or(0, |column| column.len());
        if self.is_empty() {
            return Ok(BooleanBuffer::new_unset(rows));
        }
        let hashes = key_hashes(&self.salt, keys)?;
        let is_known = |row| keys.iter().all(|column| column.is_valid(row));
        Ok(BooleanBuffer::collect_bool(rows, |row| {
            is_known(row) && self.hashes.contains(&hashes[row])
        }))
    }
}

/// The hashes of keys, given by their columns in canonical types.
pub(crate) fn key_hashes(salt: &str, keys: &[ArrayRef]) -> Result<Vec<KeyHash>, ArrowError> {
    let rows = keys.first().map_or(0, |column| column.len());
    let columns = keys.iter().map(texts_of).collect::<Result<Vec<ArrayRef>, _>>()?;
    let salted = blake3::Hasher::new_keyed(&blake3::derive_key(CONTEXT, salt.as_bytes()));
    let hash = |row: usize| {
        let mut hasher = salted.clone();
        for column in &columns {
            let value = column.as_binary::<i64>().value(row);
            hasher.update(&(value.len() as u64).to_le_bytes());
            hasher.update(value);
        }
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        KeyHash(hash)
    };
    Ok((0..rows).map(hash).collect())
}

/// The texts of the values of a column, as bytes.
fn texts_of(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let kind = KeyKind::of(column.data_type());
    if kind == Some(KeyKind::Binary) {
        return cast(column, &DataType::LargeBinary);
    }
    if let Some(floats) = column.as_primitive_opt::<Float64Type>() {
        // Without an exponent, as whole numbers and decimals are written.
        let texts = floats.iter().map(|value| value.map(|value| value.to_string().into_bytes()));
        return Ok(Arc::new(texts.collect::<LargeBinaryArray>()));
    }
    let texts = cast(column, &DataType::LargeUtf8)?;
    let shorten = |text| match kind {
        Some(KeyKind::Number) => without_zeros(text),
        Some(KeyKind::Time) => text.strip_suffix("T00:00:00Z").unwrap_or(text),
        _ => text,
    };
    let texts = texts.as_string::<i64>().iter().map(|text| text.map(shorten));
    Ok(Arc::new(texts.map(|text| text.map(str::as_bytes)).collect::<LargeBinaryArray>()))
}

/// The text of a number without zeros at the end of its fraction.
fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray,
        TimestampMicrosecondArray,
    };

    use super::*;

    fn texts(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn hash_of(key: ArrayRef) -> String {
        String::from(key_hashes("salt", &[key]).expect("hashes")[0])
    }

    #[test]
    fn a_key_is_recognized_by_its_values_and_the_salt() {
        let key: ArrayRef = Arc::new(Int64Array::from(vec![Some(17), Some(18), None]));
        let hashes = key_hashes("salt", std::slice::from_ref(&key)).expect("hashes");
        assert_eq!(KeyHash::try_from(String::from(hashes[0])), Ok(hashes[0]));
        for text in ["12", "x", "", "é", &"0".repeat(31), &"0".repeat(34)] {
            KeyHash::try_from(text.to_string()).expect_err("no hash");
        }
        let forgotten = |salt: &str| ForgottenKeys::new(salt, &[], [hashes[0], hashes[2]]);
        let found = forgotten("salt").contain(std::slice::from_ref(&key)).expect("found");
        assert_eq!(found.iter().collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(forgotten("other").contain(&[key]).expect("found").count_set_bits(), 0);
        // Where one column ends and the next begins makes a difference.
        let of = |one: &str, other: &str| {
            key_hashes("salt", &[texts(&[one]), texts(&[other])]).expect("hashes")[0]
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_eq!(of("ab", "c"), of("ab", "c"));
    }

    #[test]
    fn hashes_are_those_of_earlier_versions_and_do_not_depend_on_the_type() {
        let decimals = |value: i128, scale| -> ArrayRef {
            let values = Decimal128Array::from(vec![value]).with_precision_and_scale(38, scale);
            Arc::new(values.expect("decimals"))
        };
        let times = |value| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(vec![value]).with_timezone("UTC"))
        };
        let whole: ArrayRef = Arc::new(Int64Array::from(vec![700]));
        assert_eq!(hash_of(Arc::clone(&whole)), "0d83de1b45bb2ea718ddfe97b350fd88");
        for same in
            [decimals(700, 0), decimals(70_000, 2), Arc::new(Float64Array::from(vec![700.0]))]
        {
            assert_eq!(hash_of(same), hash_of(Arc::clone(&whole)));
        }
        assert_eq!(hash_of(decimals(70_050, 2)), "22673490802b1a0416a871e54d8fcb09");
        assert_eq!(hash_of(Arc::new(Float64Array::from(vec![700.5]))), hash_of(decimals(7005, 1)));
        for (float, whole) in
            [(1e16, 10_000_000_000_000_000), (-1e22, -10_000_000_000_000_000_000_000)]
        {
            let float: ArrayRef = Arc::new(Float64Array::from(vec![float]));
            assert_eq!(hash_of(float), hash_of(decimals(whole, 0)));
        }
        let small: ArrayRef = Arc::new(Float64Array::from(vec![1.5e-7]));
        assert_eq!(hash_of(small), hash_of(decimals(15, 8)));
        assert_eq!(hash_of(times(86_400_000_000)), "e936703f84a2d7dc5ab485b7b945b334");
        assert_eq!(hash_of(Arc::new(Date32Array::from(vec![1]))), hash_of(times(86_400_000_000)));
        assert_eq!(hash_of(times(86_400_000_001)), "667d634c7d000afa581604a0211a129f");
        assert_eq!(hash_of(texts(&["700"])), hash_of(whole));
        assert_eq!(hash_of(texts(&["700.0"])), "fbcb6c336b7a8df690824593aeddf624");
        assert_eq!(
            hash_of(Arc::new(BinaryArray::from(vec![&b"\xff"[..]]))),
            "9cedcb27b34ae264a55e051754d60d7a"
        );
    }
}
