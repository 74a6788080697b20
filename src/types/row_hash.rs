//! Hashes of rows, by which a history knows whether a change has altered a row.
//!
//! The hash of a row is the sum, without overflow, of a hash per value that is not null: XXH64
//! (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>) of the value's bytes, with XXH64 of the column's
//! name as its seed. So it depends neither on the order of columns nor on columns that have only nulls. The bytes of
//! equal values are the same in all types of a kind, so that a column can get a wider type:
//!
//! | values | bytes |
//! |---|---|
//! | whole numbers of 64 bits, in any numeric type | 8 bytes, the least significant first |
//! | other numbers | their text, without an exponent and without zeros at the end |
//! | dates and times | microseconds since 1970, as 8 bytes; then nanoseconds beyond, as 4 bytes, if there are any |
//! | texts, binary values | their bytes |
//! | booleans | a byte |
//! | others | their text |
//!
//! Hashes are kept in the state, so none of this may change.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Float64Type, Int64Type, TimeUnit,
    TimestampNanosecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use twox_hash::XxHash64;

/// The hashes of rows, given by their columns and the names of these.
///
/// # Errors
/// An arrow error, when a type cannot be read.
pub(crate) fn row_hashes<'a>(
    columns: impl Iterator<Item = (&'a str, &'a ArrayRef)>,
    rows: usize,
) -> Result<Int64Array, ArrowError> {
    let mut hashes = vec![0_u64; rows];
    for (name, values) in columns.filter(|(_, values)| values.null_count() < values.len()) {
        let seed = XxHash64::oneshot(0, name.as_bytes());
        let nulls = values.logical_nulls();
        let is_valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        add_hashes(values, |row, bytes| {
            if is_valid(row) {
                hashes[row] = hashes[row].wrapping_add(XxHash64::oneshot(seed, bytes));
            }
        })?;
    }
    Ok(hashes.into_iter().map(|hash| hash as i64).collect::<Vec<_>>().into())
}

/// Passes the bytes of each value to `add`, with its row; those of a null have no meaning.
fn add_hashes(values: &ArrayRef, mut add: impl FnMut(usize, &[u8])) -> Result<(), ArrowError> {
    let mut whole = |values: &ArrayRef| -> Result<(), ArrowError> {
        let values = cast(values, &DataType::Int64)?;
        let values = values.as_primitive::<Int64Type>().values().iter();
        values.enumerate().for_each(|(row, value)| add(row, &value.to_le_bytes()));
        Ok(())
    };
    let utc = |unit| DataType::Timestamp(unit, None);
    match values.data_type() {
        DataType::UInt64 | DataType::Decimal32(..) | DataType::Decimal64(..) => {
            let scale = match values.data_type() {
                DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) => *scale,
                _ => 0,
            };
            return add_hashes(&cast(values, &DataType::Decimal128(38, scale))?, add);
        }
        other if other.is_integer() => whole(values)?,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let values = cast(values, &DataType::Float64)?;
            for (row, value) in values.as_primitive::<Float64Type>().values().iter().enumerate() {
                // Whole numbers of this size are exact.
                if value.fract() == 0.0 && value.abs() < 9e15 {
                    add(row, &(*value as i64).to_le_bytes());
                } else {
                    add(row, value.to_string().as_bytes());
                }
            }
        }
        DataType::Decimal128(_, scale) => {
            let values = values.as_primitive::<Decimal128Type>().values().iter().enumerate();
            values.for_each(|(row, value)| of_decimal(*value, *scale, |bytes| add(row, bytes)));
        }
        DataType::Decimal256(_, scale) => {
            for (row, value) in values.as_primitive::<Decimal256Type>().values().iter().enumerate()
            {
                match value.to_i128() {
                    Some(value) => of_decimal(value, *scale, |bytes| add(row, bytes)),
                    None => add(row, without_zeros(&value.to_string(), *scale).as_bytes()),
                }
            }
        }
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = cast(values, &utc(TimeUnit::Microsecond))?;
            whole(&cast(&times, &DataType::Int64)?)?;
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let times = cast(values, &utc(TimeUnit::Nanosecond))?;
            for (row, ns) in
                times.as_primitive::<TimestampNanosecondType>().values().iter().enumerate()
            {
                let (us, beyond) = (ns.div_euclid(1000), ns.rem_euclid(1000) as i32);
                let bytes = [&us.to_le_bytes()[..], &beyond.to_le_bytes()[..]].concat();
                add(row, &bytes[..if beyond == 0 { 8 } else { 12 }]);
            }
        }
        DataType::Timestamp(_, _) => {
            let times = cast(values, &utc(TimeUnit::Microsecond))?;
            whole(&cast(&times, &DataType::Int64)?)?;
        }
        DataType::Boolean => {
            let values = values.as_boolean();
            (0..values.len()).for_each(|row| add(row, &[u8::from(values.value(row))]));
        }
        other if other.is_string() || other.is_binary() => {
            let values = cast(values, &DataType::BinaryView)?;
            let values = values.as_binary_view();
            (0..values.len()).for_each(|row| add(row, values.value(row)));
        }
        _ => {
            let options = FormatOptions::new();
            let texts = ArrayFormatter::try_new(values, &options)?;
            for row in 0..values.len() {
                add(row, texts.value(row).try_to_string()?.as_bytes());
            }
        }
    }
    Ok(())
}

/// The bytes of a decimal, given by its digits and the number of those after the point.
fn of_decimal(mut digits: i128, mut scale: i8, add: impl FnOnce(&[u8])) {
    while scale > 0 && digits % 10 == 0 {
        digits /= 10;
        scale -= 1;
    }
    match i64::try_from(digits) {
        Ok(whole) if scale == 0 => add(&whole.to_le_bytes()),
        _ => add(without_zeros(&digits.to_string(), scale).as_bytes()),
    }
}

/// The text of a number, given by its digits and the number of those after the point.
fn without_zeros(digits: &str, scale: i8) -> String {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    if scale <= 0 {
        return format!("{sign}{digits}{}", "0".repeat(usize::from(scale.unsigned_abs())));
    }
    let scale = usize::from(scale.unsigned_abs());
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let text = format!("{sign}{whole}.{fraction}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array,
        Float64Array, Int32Array, StringArray, StringViewArray, TimestampMicrosecondArray,
        TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
    };
    use arrow::datatypes::i256;

    use super::*;

    fn hash_of(values: ArrayRef) -> i64 {
        row_hashes([("v", &values)].into_iter(), 1).expect("hashes").value(0)
    }

    fn decimal(digits: i128, scale: i8) -> i64 {
        let values = Decimal128Array::from(vec![digits]).with_precision_and_scale(38, scale);
        hash_of(Arc::new(values.expect("decimals")))
    }

    #[test]
    fn equal_values_have_one_hash_in_all_types_of_a_kind() {
        let big = Decimal256Array::from(vec![i256::from_i128(150)]);
        let big = big.with_precision_and_scale(76, 2).expect("decimals");
        let same: [&[i64]; 6] = [
            &[
                hash_of(Arc::new(Int64Array::from(vec![700]))),
                hash_of(Arc::new(Int32Array::from(vec![700]))),
                hash_of(Arc::new(UInt64Array::from(vec![700]))),
                hash_of(Arc::new(Float64Array::from(vec![700.0]))),
                decimal(700, 0),
                decimal(70_000, 2),
            ],
            &[
                hash_of(Arc::new(Float32Array::from(vec![1.5]))),
                hash_of(Arc::new(Float64Array::from(vec![1.5]))),
                decimal(15, 1),
                decimal(1500, 3),
                hash_of(Arc::new(big)),
            ],
            &[hash_of(Arc::new(Float64Array::from(vec![-0.25]))), decimal(-25, 2)],
            &[hash_of(Arc::new(Float64Array::from(vec![1e22]))), decimal(10_i128.pow(22), 0)],
            &[
                hash_of(Arc::new(Date32Array::from(vec![1]))),
                hash_of(Arc::new(TimestampMicrosecondArray::from(vec![86_400_000_000]))),
                hash_of(Arc::new(
                    TimestampMillisecondArray::from(vec![86_400_000]).with_timezone("UTC"),
                )),
                hash_of(Arc::new(TimestampNanosecondArray::from(vec![86_400_000_000_000]))),
            ],
            &[
                hash_of(Arc::new(StringArray::from(vec!["a"]))),
                hash_of(Arc::new(StringViewArray::from(vec!["a"]))),
                hash_of(Arc::new(BinaryArray::from(vec![&b"a"[..]]))),
            ],
        ];
        for (at, group) in same.iter().enumerate() {
            assert!(group.iter().all(|hash| *hash == group[0]), "{at}: {group:?}");
            let others = same.iter().enumerate().filter(|(other, _)| *other != at);
            others.for_each(|(_, other)| assert_ne!(group[0], other[0]));
        }
        let ns = |value| hash_of(Arc::new(TimestampNanosecondArray::from(vec![value])));
        assert_ne!(ns(86_400_000_000_000), ns(86_400_000_000_001));
    }

    #[test]
    fn hashes_are_those_of_earlier_versions() {
        assert_eq!(hash_of(Arc::new(Int64Array::from(vec![700]))), 4_776_034_735_266_861_206);
        assert_eq!(decimal(15, 1), 4_554_719_920_008_013_080);
        assert_eq!(hash_of(Arc::new(StringArray::from(vec!["a"]))), 8_598_600_662_027_383_403);
        assert_eq!(hash_of(Arc::new(BooleanArray::from(vec![true]))), -2_038_054_619_524_965_468);
        assert_eq!(
            hash_of(Arc::new(TimestampNanosecondArray::from(vec![1]))),
            340_895_845_196_827_276
        );
    }

    #[test]
    fn a_row_has_one_hash_whatever_the_order_of_its_columns_and_nulls_add_nothing() {
        let one: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, None]));
        let other: ArrayRef = Arc::new(StringArray::from(vec![Some("b"), Some("a"), None]));
        let none: ArrayRef = Arc::new(Int32Array::from(vec![None; 3]));
        let of = |columns: &[(&str, &ArrayRef)]| {
            row_hashes(columns.iter().copied(), 3).expect("hashes").values().to_vec()
        };
        let hashes = of(&[("x", &one), ("y", &other)]);
        assert_eq!(of(&[("y", &other), ("n", &none), ("x", &one)]), hashes);
        assert_eq!(hashes[2], 0);
        // The same values in other columns.
        assert_ne!(of(&[("y", &one), ("x", &other)])[0], hashes[0]);
        assert_ne!(of(&[("x", &other)])[1], hashes[1]);
    }
}
