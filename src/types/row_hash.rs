//! Hashes of rows, by which a history knows whether a change has altered a row.
//!
//! The hash of a row is the sum, without overflow, of a hash per value that is not null: XXH64
//! (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>) of the value's bytes, with XXH64 of the column's
//! name as its seed. So it depends neither on the order of columns nor on columns that have only nulls. The bytes of
//! equal values are the same in all types of a kind, so that a column can get a wider type:
//!
//! | values | bytes |
//! |---|---|
//! | whole numbers of 64 bits; floats only below 9e15, and not -0.0 | 8 bytes, the least significant first |
//! | other numbers | their text, without an exponent and without zeros at the end; of NaN `NaN` and its bits |
//! | dates and times | microseconds since 1970, as 8 bytes, or 16 if they do not fit; then nanoseconds beyond, as 4 bytes, if there are any |
//! | texts, binary values | their bytes |
//! | booleans | a byte |
//! | lists, maps | of each element the number of its bytes, as 8 bytes, and these; 8 bytes of 255 for null |
//! | structs | of each field that is not null its name and its bytes, each after their number |
//! | others | their text |
//!
//! Hashes are kept in the state, so none of this may change.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, OffsetSizeTrait, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Fields, Float64Type, Int64Type, TimeUnit,
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
    match values.data_type() {
        DataType::UInt64 | DataType::Decimal32(..) | DataType::Decimal64(..) => {
            let scale = match values.data_type() {
                DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) => *scale,
                _ => 0,
            };
            return add_hashes(&cast(values, &DataType::Decimal128(38, scale))?, add);
        }
        other if other.is_integer() => {
            let values = cast(values, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>().values().iter();
            values.enumerate().for_each(|(row, value)| add(row, &value.to_le_bytes()));
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            add_floats(&cast(values, &DataType::Float64)?, add);
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
        DataType::Date32 => add_times(&cast(values, &DataType::Int32)?, 86_400_000_000, add)?,
        DataType::Date64 => add_times(values, 1000, add)?,
        DataType::Timestamp(TimeUnit::Second, _) => add_times(values, 1_000_000, add)?,
        DataType::Timestamp(TimeUnit::Millisecond, _) => add_times(values, 1000, add)?,
        DataType::Timestamp(TimeUnit::Microsecond, _) => add_times(values, 1, add)?,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let values = cast(values, &DataType::Int64)?;
            for (row, ns) in values.as_primitive::<Int64Type>().values().iter().enumerate() {
                let (us, beyond) = (ns.div_euclid(1000), ns.rem_euclid(1000) as i32);
                let bytes = [&us.to_le_bytes()[..], &beyond.to_le_bytes()[..]].concat();
                add(row, &bytes[..if beyond == 0 { 8 } else { 12 }]);
            }
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
        DataType::Dictionary(_, of) => return add_hashes(&cast(values, of)?, add),
        DataType::List(_) | DataType::Map(..) => add_lists::<i32>(values, add)?,
        DataType::LargeList(_) => add_lists::<i64>(values, add)?,
        DataType::FixedSizeList(of, _) => {
            return add_hashes(&cast(values, &DataType::LargeList(Arc::clone(of)))?, add);
        }
        DataType::Struct(fields) => {
            add_structs(fields, values.as_struct(), add)?;
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

/// Passes the bytes of each float to `add`.
fn add_floats(values: &ArrayRef, mut add: impl FnMut(usize, &[u8])) {
    for (row, value) in values.as_primitive::<Float64Type>().values().iter().enumerate() {
        // Whole numbers of this size are exact. The table keeps the sign of zero, and the bits of NaN.
        let is_zero_below = *value == 0.0 && value.is_sign_negative();
        if value.fract() == 0.0 && value.abs() < 9e15 && !is_zero_below {
            add(row, &(*value as i64).to_le_bytes());
        } else if value.is_nan() {
            add(row, &[b"NaN", &value.to_bits().to_le_bytes()[..]].concat());
        } else {
            add(row, value.to_string().as_bytes());
        }
    }
}

/// Passes the bytes of each struct to `add`.
fn add_structs(
    fields: &Fields,
    values: &StructArray,
    mut add: impl FnMut(usize, &[u8]),
) -> Result<(), ArrowError> {
    let columns = values.columns().iter().map(bytes_of);
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    for row in 0..values.len() {
        let mut bytes = Vec::new();
        for (field, column) in fields.iter().zip(&columns) {
            if let Some(value) = &column[row] {
                push(&mut bytes, field.name().as_bytes());
                push(&mut bytes, value);
            }
        }
        add(row, &bytes);
    }
    Ok(())
}

/// Passes the bytes of each time to `add`, given in units of so many microseconds.
fn add_times(
    values: &ArrayRef,
    unit_us: i128,
    mut add: impl FnMut(usize, &[u8]),
) -> Result<(), ArrowError> {
    let values = cast(values, &DataType::Int64)?;
    for (row, value) in values.as_primitive::<Int64Type>().values().iter().enumerate() {
        let us = i128::from(*value) * unit_us;
        match i64::try_from(us) {
            Ok(us) => add(row, &us.to_le_bytes()),
            Err(_) => add(row, &us.to_le_bytes()),
        }
    }
    Ok(())
}

/// Passes the bytes of each list or map to `add`.
fn add_lists<O: OffsetSizeTrait>(
    values: &ArrayRef,
    mut add: impl FnMut(usize, &[u8]),
) -> Result<(), ArrowError> {
    let (elements, offsets): (ArrayRef, Vec<usize>) = match values.as_map_opt() {
        Some(maps) => {
            let offsets = maps.offsets().iter().map(|offset| *offset as usize);
            (Arc::new(maps.entries().clone()), offsets.collect())
        }
        None => {
            let lists = values.as_list::<O>();
            (Arc::clone(lists.values()), lists.offsets().iter().map(|at| at.as_usize()).collect())
        }
    };
    let elements = bytes_of(&elements)?;
    for row in 0..values.len() {
        let mut bytes = Vec::new();
        for element in &elements[offsets[row]..offsets[row + 1]] {
            match element {
                Some(element) => push(&mut bytes, element),
                None => bytes.extend([u8::MAX; 8]),
            }
        }
        add(row, &bytes);
    }
    Ok(())
}

/// The bytes of each value inside of another; `None` of a null.
fn bytes_of(values: &ArrayRef) -> Result<Vec<Option<Vec<u8>>>, ArrowError> {
    let mut all = vec![Some(Vec::new()); values.len()];
    // A type without values has no bytes.
    if *values.data_type() != DataType::Null {
        inside(values, &mut |row, bytes| all[row] = Some(bytes.to_vec()))?;
    }
    if let Some(nulls) = values.logical_nulls() {
        all.iter_mut()
            .zip(nulls.iter())
            .filter(|(_, valid)| !valid)
            .for_each(|(one, _)| *one = None);
    }
    Ok(all)
}

/// As [`add_hashes`], for values inside of others. Its type is the same at all depths, so that the compiler ends.
fn inside(values: &ArrayRef, add: &mut dyn FnMut(usize, &[u8])) -> Result<(), ArrowError> {
    add_hashes(values, add)
}

/// Adds a value after the number of its bytes.
fn push(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(value);
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
    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array,
        Float64Array, Int32Array, ListArray, ListBuilder, StringArray, StringBuilder,
        StringViewArray, StructArray, TimestampMicrosecondArray, TimestampMillisecondArray,
        TimestampNanosecondArray, UInt64Array,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Field, i256};

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
    fn values_that_the_table_tells_apart_have_other_hashes() {
        let double = |value| hash_of(Arc::new(Float64Array::from(vec![value])));
        assert_ne!(double(0.0), double(-0.0));
        assert_ne!(double(f64::NAN), double(-f64::NAN));
        let date = |days| hash_of(Arc::new(Date32Array::from(vec![days])));
        assert_ne!(date(i32::MAX), date(i32::MAX - 1));
        assert_ne!(date(200_000_000), date(0));
        let ms = |ms| hash_of(Arc::new(TimestampMillisecondArray::from(vec![ms])));
        assert_ne!(ms(i64::MAX), ms(i64::MAX - 1));
        let lists: [&[Option<&str>]; 7] = [
            &[Some("a, b")],
            &[Some("a"), Some("b")],
            &[],
            &[None],
            &[Some("")],
            &[None, Some("a")],
            &[Some(""), Some("a")],
        ];
        let list = |values: &[Option<&str>]| {
            let mut list = ListBuilder::new(StringBuilder::new());
            list.append_value(values.iter().copied());
            hash_of(Arc::new(list.finish()))
        };
        let hashes: std::collections::BTreeSet<i64> = lists.iter().map(|one| list(one)).collect();
        assert_eq!(hashes.len(), lists.len());
        let pair = |a: Option<&str>, b: Option<&str>| {
            let column = |value| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
            let of = |name| Arc::new(Field::new(name, DataType::Utf8, true));
            hash_of(Arc::new(StructArray::from(vec![(of("a"), column(a)), (of("b"), column(b))])))
        };
        let pairs = [
            pair(Some("x"), None),
            pair(Some("x"), Some("")),
            pair(None, Some("x")),
            pair(Some("x, b: y"), None),
        ];
        assert_eq!(pairs.iter().collect::<std::collections::BTreeSet<_>>().len(), pairs.len());
        // Elements of a wider type are equal.
        let of = |values: ArrayRef| {
            let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([values.len()]);
            hash_of(Arc::new(ListArray::new(field, offsets, values, None)))
        };
        let cents = Decimal128Array::from(vec![100]).with_precision_and_scale(12, 2);
        assert_eq!(of(Arc::new(Int32Array::from(vec![1]))), of(Arc::new(cents.expect("decimals"))));
        assert_eq!(
            of(Arc::new(Float32Array::from(vec![0.1]))),
            of(Arc::new(Float64Array::from(vec![f64::from(0.1_f32)])))
        );
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
