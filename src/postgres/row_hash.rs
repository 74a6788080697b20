//! Hashes of rows, as a PostgreSQL server computes them too.
//!
//! A row's text is what the server writes for `ROW(a, b)::text`: values as `COPY` writes them, in parentheses
//! and between commas, a null as nothing, and in double quotes if they are empty or have one of `"\(),` or white
//! space, with `"` and `\` twice. Floating-point numbers are written as their bytes, because there are many ways
//! to write a number. The hash is the first eight bytes of the MD5 of the text in UTF-8, and its first two are the bucket.
//!
//! Where the server writes a value in another way, the hashes differ although the rows do not: then rows are read
//! that would not have to be. Rows that differ have different texts.

use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, DecimalType, Float32Type, Float64Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use chrono::{DateTime, Datelike, NaiveDateTime, NaiveTime, Timelike};
use md5::{Digest, Md5};

use crate::error::{Error, Result};

/// The number of buckets.
pub(crate) const BUCKETS: usize = 1 << 16;

/// The rows of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) rows: u64,
    /// The sum of their hashes.
    pub(crate) sum: i128,
}

/// The bucket of a hash.
pub(crate) fn bucket_of(hash: i64) -> usize {
    (hash >> 48) as usize & (BUCKETS - 1)
}

/// The hash of rows with these values, in SQL.
pub(crate) fn hash_in_sql(values: &[String]) -> String {
    let text = format!("pg_catalog.convert_to(ROW({})::text, 'UTF8')", values.join(", "));
    format!("('x' || pg_catalog.left(pg_catalog.md5({text}), 16))::bit(64)::bigint")
}

/// The bucket of a hash, in SQL.
pub(crate) fn bucket_in_sql(hash: &str) -> String {
    format!("({hash} >> 48 & {})::int", BUCKETS - 1)
}

/// The hashes of rows, given by their columns.
///
/// # Errors
/// Internal, for a type that is not hashed here.
pub(crate) fn hashes(columns: &[ArrayRef]) -> Result<Vec<i64>> {
    let rows = columns.first().map_or(0, |column| column.len());
    let columns = columns.iter().map(written_type).collect::<Result<Vec<_>>>()?;
    let (mut text, mut value) = (String::new(), String::new());
    let hash = |row| {
        text.clear();
        for (at, column) in columns.iter().enumerate() {
            text.push(if at == 0 { '(' } else { ',' });
            if column.is_null(row) {
                continue;
            }
            value.clear();
            write_value(column, row, &mut value)?;
            add_quoted(&value, &mut text);
        }
        text.push(')');
        let digest = Md5::digest(text.as_bytes());
        let first: [u8; 8] = std::array::from_fn(|at| digest[at]);
        Ok(i64::from_be_bytes(first))
    };
    (0..rows).map(hash).collect()
}

/// A column in a type that [`write_value`] writes.
fn written_type(column: &ArrayRef) -> Result<ArrayRef> {
    let kind = match column.data_type() {
        kind if kind.is_integer() => DataType::Int64,
        kind if kind.is_string() => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::BinaryView,
        kind => kind.clone(),
    };
    Ok(cast(column, &kind)?)
}

/// Writes a value as the server does; one that the server cannot have, in a way of its own.
fn write_value(column: &ArrayRef, row: usize, text: &mut String) -> Result<()> {
    let written = match column.data_type() {
        DataType::Boolean => {
            text.push(if column.as_boolean().value(row) { 't' } else { 'f' });
            Ok(())
        }
        DataType::Int64 => write!(text, "{}", column.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => {
            let value = column.as_primitive::<Float32Type>().value(row);
            write_hex(text, &value.to_be_bytes())
        }
        DataType::Float64 => {
            let value = column.as_primitive::<Float64Type>().value(row);
            write_hex(text, &value.to_be_bytes())
        }
        DataType::Decimal128(precision, scale) => {
            let value = column.as_primitive::<Decimal128Type>().value(row);
            text.push_str(&Decimal128Type::format_decimal(value, *precision, *scale));
            Ok(())
        }
        DataType::Utf8View => {
            text.push_str(column.as_string_view().value(row));
            Ok(())
        }
        DataType::BinaryView => {
            text.push_str("\\x");
            write_hex(text, column.as_binary_view().value(row))
        }
        DataType::Date32 => {
            let days = column.as_primitive::<Date32Type>().value(row);
            Date32Type::to_naive_date_opt(days).map_or(Ok(()), |day| write_day(text, day))
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            let time = column.as_primitive::<Time64MicrosecondType>().value(row);
            write_time(text, arrow::temporal_conversions::time64us_to_time(time))
        }
        DataType::Timestamp(unit, zone) => {
            let time = match unit {
                TimeUnit::Second => DateTime::from_timestamp(
                    column.as_primitive::<TimestampSecondType>().value(row),
                    0,
                ),
                TimeUnit::Millisecond => DateTime::from_timestamp_millis(
                    column.as_primitive::<TimestampMillisecondType>().value(row),
                ),
                TimeUnit::Microsecond => DateTime::from_timestamp_micros(
                    column.as_primitive::<TimestampMicrosecondType>().value(row),
                ),
                TimeUnit::Nanosecond => Some(DateTime::from_timestamp_nanos(
                    column.as_primitive::<TimestampNanosecondType>().value(row),
                )),
            };
            let zone = if zone.is_some() { "+00" } else { "" };
            time.map_or(Ok(()), |time| write_timestamp(text, time.naive_utc(), zone))
        }
        kind => return Err(Error::internal(format!("no text for a value of type {kind}"))),
    };
    written.map_err(|error| Error::internal("cannot write a value").caused_by(error))
}

fn write_hex(text: &mut String, bytes: &[u8]) -> std::fmt::Result {
    bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}"))
}

fn write_day(text: &mut String, day: impl Datelike) -> std::fmt::Result {
    write!(text, "{:04}-{:02}-{:02}", day.year(), day.month(), day.day())
}

fn write_timestamp(text: &mut String, time: NaiveDateTime, zone: &str) -> std::fmt::Result {
    write_day(text, time)?;
    text.push(' ');
    write_time(text, Some(time.time()))?;
    text.push_str(zone);
    Ok(())
}

/// Writes a time with the digits of its fraction up to the last one that is not 0.
fn write_time(text: &mut String, time: Option<NaiveTime>) -> std::fmt::Result {
    let Some(time) = time else {
        return Ok(());
    };
    write!(text, "{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())?;
    if time.nanosecond() > 0 {
        let fraction = format!(".{:09}", time.nanosecond());
        text.push_str(fraction.trim_end_matches('0'));
    }
    Ok(())
}

/// Adds a value to the text of a row.
fn add_quoted(value: &str, text: &mut String) {
    let is_special =
        |byte: u8| matches!(byte, b'"' | b'\\' | b'(' | b')' | b',' | b' ' | b'\t'..=b'\r');
    if !value.is_empty() && !value.bytes().any(is_special) {
        text.push_str(value);
        return;
    }
    text.push('"');
    for part in value.split_inclusive(['"', '\\']) {
        text.push_str(part);
        if let Some(last @ ('"' | '\\')) = part.chars().next_back() {
            text.push(last);
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Int32Array, StringArray, TimestampMicrosecondArray, TimestampMillisecondArray,
        TimestampNanosecondArray, TimestampSecondArray,
    };

    use super::*;

    #[test]
    fn values_are_quoted_as_in_a_row_of_the_server() {
        let quoted = |value: &str| {
            let mut text = String::new();
            add_quoted(value, &mut text);
            text
        };
        for (value, expected) in [
            ("a", "a"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a,\"b\\", "\"a,\"\"b\\\\\""),
            ("(\n)", "\"(\n)\""),
            ("é-'x'", "é-'x'"),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }

    #[test]
    fn times_of_all_units_have_one_text_and_none_is_cut_off() {
        let hash = |column: ArrayRef| hashes(&[column]).expect("hashed")[0];
        let micros = hash(Arc::new(TimestampMicrosecondArray::from(vec![3_000_000])));
        assert_eq!(hash(Arc::new(TimestampSecondArray::from(vec![3]))), micros);
        assert_eq!(hash(Arc::new(TimestampMillisecondArray::from(vec![3_000]))), micros);
        assert_eq!(hash(Arc::new(TimestampNanosecondArray::from(vec![3_000_000_000]))), micros);
        assert_ne!(hash(Arc::new(TimestampNanosecondArray::from(vec![3_000_000_007]))), micros);
        let null = hash(Arc::new(TimestampSecondArray::from(vec![None])));
        assert_ne!(hash(Arc::new(TimestampSecondArray::from(vec![i64::MAX]))), null);
    }

    #[test]
    fn a_hash_is_the_begin_of_the_md5_of_the_text() {
        let columns: [ArrayRef; 2] = [
            Arc::new(Int32Array::from(vec![Some(1), None])),
            Arc::new(StringArray::from(vec![Some("a b"), None])),
        ];
        // SELECT left(md5('(1,"a b")'), 16), left(md5('(,)'), 16)
        let expected = [0xc030_e74c_1c72_c0d7_u64, 0xe126_6d71_c305_ae37].map(|hash| hash as i64);
        assert_eq!(hashes(&columns).expect("hashed"), expected);
        assert_eq!(bucket_of(-1), BUCKETS - 1);
    }
}
