//! Columns of a source table: their types in files, and their values read from texts of the server.
//!
//! | type of PostgreSQL | type in files |
//! |---|---|
//! | `boolean` | boolean |
//! | `smallint`, `integer`, `bigint` | int16, int32, int64 |
//! | `oid` | int64 |
//! | `real`, `double precision` | float32, float64 |
//! | `numeric(p, s)` with `0 <= s <= p <= 38` | decimal(p, s) |
//! | `date` | date |
//! | `time` | time of microseconds |
//! | `timestamp` | timestamp of microseconds without a zone |
//! | `timestamptz` | timestamp of microseconds, UTC |
//! | `bytea` | binary |
//! | a domain | as the type that it is of |
//! | all others | text, as the server writes it |
//!
//! `infinity` as a date or time is written as the last one of the year 9999, and `-infinity` as the first
//! one of the year 1, and both are counted.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder,
    Float64Builder, Int16Builder, Int32Builder, Int64Builder, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, TimeUnit};
use chrono::NaiveDate;

/// The zone of `timestamptz` in files.
const UTC: &str = "UTC";
/// The last and the first date, in days since 1970, and the last and the first time, in microseconds.
const LAST_DAY: i32 = 2_932_896;
const FIRST_DAY: i32 = -719_162;
const LAST_TIME: i64 = 253_402_300_799_999_999;
const FIRST_TIME: i64 = -62_135_596_800_000_000;

/// The type of a column in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    Decimal(u8, i8),
    Date,
    Time,
    Timestamp,
    TimestampUtc,
    Binary,
    Text,
}

impl Kind {
    /// The type for a type of the server, by its number in `pg_type`, and its modifier.
    pub(super) fn of(type_id: u32, modifier: i32) -> Self {
        match type_id {
            16 => Kind::Boolean,
            17 => Kind::Binary,
            20 | 26 => Kind::Int64,
            21 => Kind::Int16,
            23 => Kind::Int32,
            700 => Kind::Float32,
            701 => Kind::Float64,
            1082 => Kind::Date,
            1083 => Kind::Time,
            1114 => Kind::Timestamp,
            1184 => Kind::TimestampUtc,
            1700 => decimal(modifier),
            _ => Kind::Text,
        }
    }

    pub(super) fn data_type(self) -> DataType {
        match self {
            Kind::Boolean => DataType::Boolean,
            Kind::Int16 => DataType::Int16,
            Kind::Int32 => DataType::Int32,
            Kind::Int64 => DataType::Int64,
            Kind::Float32 => DataType::Float32,
            Kind::Float64 => DataType::Float64,
            Kind::Decimal(precision, scale) => DataType::Decimal128(precision, scale),
            Kind::Date => DataType::Date32,
            Kind::Time => DataType::Time64(TimeUnit::Microsecond),
            Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Kind::TimestampUtc => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Kind::Binary => DataType::Binary,
            Kind::Text => DataType::Utf8,
        }
    }

    /// The column of this type in files.
    pub(super) fn field(self, name: &str) -> Field {
        Field::new(name, self.data_type(), true)
    }
}

/// The type for `numeric`: its modifier has the precision, and in 11 bits with a sign the scale.
fn decimal(modifier: i32) -> Kind {
    let modifier = modifier - 4;
    let (precision, scale) = (modifier >> 16 & 0xFFFF, ((modifier & 0x7FF) ^ 0x400) - 0x400);
    if modifier >= 0 && precision <= 38 && (0..=precision).contains(&scale) {
        Kind::Decimal(precision as u8, scale as i8)
    } else {
        Kind::Text
    }
}

/// The values of a column that a file is to get.
#[derive(Debug)]
pub(super) enum Values {
    Boolean(BooleanBuilder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder, (u8, i8)),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Binary(BinaryBuilder),
    Text(StringBuilder),
}

/// What is wrong with a value.
pub(super) type Unfit = &'static str;

const NOT_OF_TYPE: Unfit = "is not what the type of its column allows";

/// Whether a value was written as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    AsItIs,
    /// It was infinite.
    AsLimit,
}

impl Values {
    pub(super) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Boolean => Values::Boolean(BooleanBuilder::new()),
            Kind::Int16 => Values::Int16(Int16Builder::new()),
            Kind::Int32 => Values::Int32(Int32Builder::new()),
            Kind::Int64 => Values::Int64(Int64Builder::new()),
            Kind::Float32 => Values::Float32(Float32Builder::new()),
            Kind::Float64 => Values::Float64(Float64Builder::new()),
            Kind::Decimal(precision, scale) => {
                let builder = Decimal128Builder::new().with_data_type(kind.data_type());
                Values::Decimal(builder, (precision, scale))
            }
            Kind::Date => Values::Date(Date32Builder::new()),
            Kind::Time => Values::Time(Time64MicrosecondBuilder::new()),
            Kind::Timestamp => Values::Timestamp(TimestampMicrosecondBuilder::new()),
            Kind::TimestampUtc => {
                Values::Timestamp(TimestampMicrosecondBuilder::new().with_timezone(UTC))
            }
            Kind::Binary => Values::Binary(BinaryBuilder::new()),
            Kind::Text => Values::Text(StringBuilder::new()),
        }
    }

    /// Appends a value as the server writes it, `None` for null.
    ///
    /// # Errors
    /// What is wrong, without the value.
    pub(super) fn append(&mut self, text: Option<&[u8]>) -> Result<Written, Unfit> {
        let Some(text) = text else {
            self.append_null();
            return Ok(Written::AsItIs);
        };
        match self {
            Values::Boolean(values) => values.append_value(text == b"t"),
            Values::Int16(values) => values.append_value(number(text)?),
            Values::Int32(values) => values.append_value(number(text)?),
            Values::Int64(values) => values.append_value(number(text)?),
            Values::Float32(values) => values.append_value(number(text)?),
            Values::Float64(values) => values.append_value(number(text)?),
            Values::Decimal(values, (precision, scale)) => {
                let value = unscaled(text, *scale)?;
                if value.unsigned_abs() >= 10_u128.pow((*precision).into()) {
                    return Err(NOT_OF_TYPE);
                }
                values.append_value(value);
            }
            Values::Date(values) => {
                let (day, written) = match infinite(text) {
                    Some(true) => (LAST_DAY, Written::AsLimit),
                    Some(false) => (FIRST_DAY, Written::AsLimit),
                    None => (day(text)?, Written::AsItIs),
                };
                values.append_value(day);
                return Ok(written);
            }
            Values::Time(values) => values.append_value(time_of_day(text)?),
            Values::Timestamp(values) => {
                let (time, written) = match infinite(text) {
                    Some(true) => (LAST_TIME, Written::AsLimit),
                    Some(false) => (FIRST_TIME, Written::AsLimit),
                    None => (timestamp(text)?, Written::AsItIs),
                };
                values.append_value(time);
                return Ok(written);
            }
            Values::Binary(values) => values.append_value(bytes_of_hex(text)?),
            Values::Text(values) => {
                values.append_value(std::str::from_utf8(text).map_err(|_| "is not UTF-8")?);
            }
        }
        Ok(Written::AsItIs)
    }

    fn append_null(&mut self) {
        match self {
            Values::Boolean(values) => values.append_null(),
            Values::Int16(values) => values.append_null(),
            Values::Int32(values) => values.append_null(),
            Values::Int64(values) => values.append_null(),
            Values::Float32(values) => values.append_null(),
            Values::Float64(values) => values.append_null(),
            Values::Decimal(values, _) => values.append_null(),
            Values::Date(values) => values.append_null(),
            Values::Time(values) => values.append_null(),
            Values::Timestamp(values) => values.append_null(),
            Values::Binary(values) => values.append_null(),
            Values::Text(values) => values.append_null(),
        }
    }

    /// Takes the values out.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Values::Boolean(values) => Arc::new(values.finish()),
            Values::Int16(values) => Arc::new(values.finish()),
            Values::Int32(values) => Arc::new(values.finish()),
            Values::Int64(values) => Arc::new(values.finish()),
            Values::Float32(values) => Arc::new(values.finish()),
            Values::Float64(values) => Arc::new(values.finish()),
            Values::Decimal(values, _) => Arc::new(values.finish()),
            Values::Date(values) => Arc::new(values.finish()),
            Values::Time(values) => Arc::new(values.finish()),
            Values::Timestamp(values) => Arc::new(values.finish()),
            Values::Binary(values) => Arc::new(values.finish()),
            Values::Text(values) => Arc::new(values.finish()),
        }
    }
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Result<N, Unfit> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(NOT_OF_TYPE)
}

/// The value of a decimal number without its point. The server writes all digits of the scale.
fn unscaled(text: &[u8], scale: i8) -> Result<i128, Unfit> {
    if text == b"NaN" {
        return Err("is NaN, which a decimal number cannot be");
    }
    let (digits, is_negative) = match text {
        [b'-', digits @ ..] => (digits, true),
        digits => (digits, false),
    };
    if digits.is_empty() {
        return Err(NOT_OF_TYPE);
    }
    let mut value = 0_i128;
    let mut fraction = None;
    for byte in digits {
        match byte {
            b'.' if fraction.is_none() => fraction = Some(0_i8),
            b'0'..=b'9' => {
                value = value * 10 + i128::from(byte - b'0');
                fraction = fraction.map(|count| count + 1);
            }
            _ => return Err(NOT_OF_TYPE),
        }
        if value >= 10_i128.pow(38) {
            return Err(NOT_OF_TYPE);
        }
    }
    // A column that had another scale before has values of that one.
    for _ in fraction.unwrap_or(0)..scale {
        value = value.checked_mul(10).ok_or(NOT_OF_TYPE)?;
    }
    if fraction.unwrap_or(0) > scale {
        return Err(NOT_OF_TYPE);
    }
    Ok(if is_negative { -value } else { value })
}

/// Whether a date or time is infinite: `Some(true)` in the future, `Some(false)` in the past.
fn infinite(text: &[u8]) -> Option<bool> {
    match text {
        b"infinity" => Some(true),
        b"-infinity" => Some(false),
        _ => None,
    }
}

/// Days since 1970 of `2024-01-31` or `0044-03-15 BC`. Years can have more than four digits.
fn day(text: &[u8]) -> Result<i32, Unfit> {
    let (text, is_before_christ) = match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let [year @ .., b'-', m1, m2, b'-', d1, d2] = text else {
        return Err(NOT_OF_TYPE);
    };
    let year: i32 = number(year)?;
    let (month, date) = (number(&[*m1, *m2])?, number(&[*d1, *d2])?);
    let year = if is_before_christ { 1 - year } else { year };
    let date = NaiveDate::from_ymd_opt(year, month, date).ok_or("is out of range")?;
    Ok(date.to_epoch_days())
}

/// Microseconds since midnight of `23:59:59.123456`; also of `24:00:00`.
fn time_of_day(text: &[u8]) -> Result<i64, Unfit> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, fraction @ ..] = text else {
        return Err(NOT_OF_TYPE);
    };
    let of = |a: &u8, b: &u8| number::<i64>(&[*a, *b]);
    let seconds = (of(h1, h2)? * 60 + of(m1, m2)?) * 60 + of(s1, s2)?;
    let mut micros = 0;
    if let [b'.', digits @ ..] = fraction {
        if digits.is_empty() || digits.len() > 6 {
            return Err(NOT_OF_TYPE);
        }
        micros = number::<i64>(digits)? * 10_i64.pow(6 - digits.len() as u32);
    } else if !fraction.is_empty() {
        return Err(NOT_OF_TYPE);
    }
    Ok(seconds * 1_000_000 + micros)
}

/// Microseconds since 1970 of `2024-01-31 23:59:59.123456`, also with ` BC` or, in UTC, `+00`.
pub(super) fn timestamp(text: &[u8]) -> Result<i64, Unfit> {
    let (text, is_before_christ) = match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let text = text.strip_suffix(b"+00").unwrap_or(text);
    let space = text.iter().position(|byte| *byte == b' ').ok_or(NOT_OF_TYPE)?;
    let date = if is_before_christ {
        day(&[&text[..space], b" BC"].concat())?
    } else {
        day(&text[..space])?
    };
    let of_day = time_of_day(&text[space + 1..])?;
    let midnight = i64::from(date).checked_mul(86_400_000_000).ok_or("is out of range")?;
    midnight.checked_add(of_day).ok_or("is out of range")
}

/// The bytes of `\x00ff`.
fn bytes_of_hex(text: &[u8]) -> Result<Vec<u8>, Unfit> {
    let digits = text.strip_prefix(b"\\x").ok_or(NOT_OF_TYPE)?;
    let value = |digit: &u8| (*digit as char).to_digit(16).ok_or(NOT_OF_TYPE);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Ok((value(high)? << 4 | value(low)?) as u8),
        _ => Err(NOT_OF_TYPE),
    };
    digits.chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Decimal128Type;
    use chrono::DateTime;

    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().expect("a time").timestamp_micros()
    }

    #[test]
    fn times_are_read_as_the_server_writes_them() {
        for (text, expected) in [
            ("2024-02-29 23:59:59.5", "2024-02-29T23:59:59.5Z"),
            ("2024-02-29 23:59:59.123456+00", "2024-02-29T23:59:59.123456Z"),
            ("1969-12-31 23:59:59.999999", "1969-12-31T23:59:59.999999Z"),
            ("0001-01-01 00:00:00", "0001-01-01T00:00:00Z"),
            ("0044-03-15 12:00:00 BC", "-0043-03-15T12:00:00Z"),
            ("0044-03-15 12:00:00+00 BC", "-0043-03-15T12:00:00Z"),
            ("12024-01-01 00:00:00", "+12024-01-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(text.as_bytes()), Ok(micros(expected)), "{text}");
        }
        assert_eq!(LAST_TIME, micros("9999-12-31T23:59:59.999999Z"));
        assert_eq!(FIRST_TIME, micros("0001-01-01T00:00:00Z"));
        assert_eq!(day(b"9999-12-31"), Ok(LAST_DAY));
        assert_eq!(day(b"0001-01-01"), Ok(FIRST_DAY));
        assert_eq!(time_of_day(b"24:00:00"), Ok(86_400_000_000));
        for text in ["2024-02-30 00:00:00", "2024-02-28", "2024-02-28 1:00:00", "x", ""] {
            assert!(timestamp(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn decimals_have_their_scale() {
        assert_eq!(Kind::of(1700, (10 << 16 | 2) + 4), Kind::Decimal(10, 2));
        assert_eq!(Kind::of(1700, (38 << 16 | 38) + 4), Kind::Decimal(38, 38));
        assert_eq!(Kind::of(1700, -1), Kind::Text);
        assert_eq!(Kind::of(1700, (39 << 16) + 4), Kind::Text);
        // A scale of -2, and one of more digits than the number has.
        assert_eq!(Kind::of(1700, (5 << 16 | (-2 & 0x7FF)) + 4), Kind::Text);
        assert_eq!(Kind::of(1700, (2 << 16 | 5) + 4), Kind::Text);
        for (text, scale, expected) in [
            ("12.50", 2, 1250),
            ("-0.05", 2, -5),
            ("7", 0, 7),
            ("7", 2, 700),
            ("99999999999999999999999999999999999999", 0, 10_i128.pow(38) - 1),
        ] {
            assert_eq!(unscaled(text.as_bytes(), scale), Ok(expected), "{text}");
        }
        for text in ["NaN", "1.234", "1e5", "", "100000000000000000000000000000000000000"] {
            assert!(unscaled(text.as_bytes(), 2).is_err(), "{text}");
        }
    }

    #[test]
    fn infinite_times_become_the_last_and_the_first() {
        let mut values = Values::new(Kind::TimestampUtc);
        assert_eq!(values.append(Some(b"infinity")), Ok(Written::AsLimit));
        assert_eq!(values.append(Some(b"-infinity")), Ok(Written::AsLimit));
        assert_eq!(values.append(None), Ok(Written::AsItIs));
        assert_eq!(values.finish().len(), 3);
    }

    #[test]
    fn bytes_and_numbers_are_read() {
        assert_eq!(bytes_of_hex(b"\\x00ffA0"), Ok(vec![0, 255, 160]));
        assert!(bytes_of_hex(b"\\x0").is_err() && bytes_of_hex(b"00").is_err());
        let mut values = Values::new(Kind::Decimal(5, 1));
        values.append(Some(b"-1.5")).expect("a number");
        assert_eq!(values.finish().as_primitive::<Decimal128Type>().value(0), -15);
        let mut values = Values::new(Kind::Float64);
        for text in ["NaN", "Infinity", "-Infinity", "1e-300"] {
            values.append(Some(text.as_bytes())).expect("a number");
        }
        assert!(Values::new(Kind::Int16).append(Some(b"40000")).is_err());
    }
}
