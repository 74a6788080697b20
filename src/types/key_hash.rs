//! Hashes of keys that were forgotten: they recognize a key, and do not contain it.
//!
//! The hash of a key is the first 16 bytes of the keyed BLAKE3 hash of the values of its columns, in their canonical
//! types ([`crate::types::key`]) as text, binary as it is: of each its length, as 8 bytes, the least significant first,
//! and its bytes. The hash's key is derived from a salt, which is kept beside the hashes, so that the hashes of one
//! table do not recognize the keys of another. Whoever has the salt can still find out by trial whether a given key was
//! forgotten.

use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::DataType;
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
        let digits = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes = digits.collect::<Option<Vec<u8>>>().and_then(|bytes| bytes.try_into().ok());
        bytes.map(KeyHash).ok_or_else(|| "is no hash of a key".into())
    }
}

/// The keys that were forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForgottenKeys {
    salt: String,
    hashes: HashSet<KeyHash>,
}

impl ForgottenKeys {
    /// The keys with these hashes, which were made with the salt.
    pub(crate) fn new(salt: &str, hashes: impl IntoIterator<Item = KeyHash>) -> Self {
        ForgottenKeys { salt: salt.into(), hashes: hashes.into_iter().collect() }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
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
    let columns = keys.iter().map(|column| match column.data_type() {
        DataType::Binary | DataType::FixedSizeBinary(_) => cast(column, &DataType::LargeBinary),
        _ => cast(&cast(column, &DataType::LargeUtf8)?, &DataType::LargeBinary),
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn texts(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    #[test]
    fn a_key_is_recognized_by_its_values_and_the_salt() {
        // Stored hashes must still be recognized by later versions.
        let key: ArrayRef = Arc::new(Int64Array::from(vec![17, 18]));
        let hashes = key_hashes("salt", std::slice::from_ref(&key)).expect("hashes");
        assert_eq!(String::from(hashes[0]), "b78b4f1f68a3541f43eec094db10bf10");
        assert_eq!(KeyHash::try_from(String::from(hashes[0])), Ok(hashes[0]));
        for text in ["12", "x", "", "é", &"0".repeat(31), &"0".repeat(34)] {
            KeyHash::try_from(text.to_string()).expect_err("no hash");
        }
        let forgotten = ForgottenKeys::new("salt", [hashes[0]]);
        let found = forgotten.contain(std::slice::from_ref(&key)).expect("found");
        assert_eq!(found.iter().collect::<Vec<_>>(), [true, false]);
        let other = ForgottenKeys::new("other", [hashes[0]]);
        assert_eq!(other.contain(&[key]).expect("found").count_set_bits(), 0);
        // Where one column ends and the next begins makes a difference.
        let of = |one: &str, other: &str| {
            key_hashes("salt", &[texts(&[one]), texts(&[other])]).expect("hashes")[0]
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_eq!(of("ab", "c"), of("ab", "c"));
    }
}
