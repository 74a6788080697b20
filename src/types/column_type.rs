//! The type names of `[raw.columns]`, widening of types, and lossless casts.
//!
//! | names | Arrow type |
//! |---|---|
//! | `BOOLEAN` | Boolean |
//! | `TINYINT`, `SMALLINT`, `INTEGER`, `BIGINT`, each also `UNSIGNED` | Int8 … Int64, UInt8 … UInt64 |
//! | `REAL`, `DOUBLE` | Float32, Float64 |
//! | `DECIMAL(p, s)`, up to 38 digits | Decimal128 |
//! | `VARCHAR` | Utf8View |
//! | `DATE` | Date32 |
//! | `TIMESTAMP(n)`, n digits of a second, 6 where it is left out | Timestamp without a zone: ms, µs or ns |
//! | `TIMESTAMP(n) WITH TIME ZONE` | the same in UTC |
//!
//! The types of several files widen to one without loss ([`widen`]). A value is cast only if it
//! stays the same: no digit, no fraction of a second and no time of day is dropped, and nothing
//! becomes null. The type Null, of a column that has nothing but nulls in a file, widens to any
//! other type.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, PrimitiveArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, new_null_array,
};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    ArrowPrimitiveType, ArrowTimestampType, DataType, Field, FieldRef, Fields, Float64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use chrono_tz::Tz;

use crate::types::times::{DAY_NS, times_ns};

/// The type names, for hints.
pub(crate) const NAMES: &str = "BOOLEAN, TINYINT, SMALLINT, INTEGER, BIGINT (each also UNSIGNED), REAL, \
                         DOUBLE, DECIMAL(p, s), VARCHAR, DATE, TIMESTAMP(n) or TIMESTAMP(n) WITH \
                         TIME ZONE";

/// Parses a type name, case-insensitively; `None` if it is unknown.
pub(crate) fn parse_type(text: &str) -> Option<DataType> {
    let upper = text.trim().to_ascii_uppercase();
    if let Some(plain) = upper.strip_suffix("WITH TIME ZONE") {
        let DataType::Timestamp(unit, None) = parse_type(plain)? else {
            return None;
        };
        return Some(DataType::Timestamp(unit, Some("UTC".into())));
    }
    let (name, parameters) = match upper.split_once('(') {
        None => (upper.as_str(), vec![]),
        Some((name, rest)) => {
            let numbers = rest.strip_suffix(')')?.split(',');
            let parsed: Result<Vec<u8>, _> = numbers.map(|one| one.trim().parse()).collect();
            (name.trim_end(), parsed.ok()?)
        }
    };
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(match (name.as_str(), &parameters[..]) {
        ("BOOLEAN" | "BOOL", []) => DataType::Boolean,
        ("TINYINT", []) => DataType::Int8,
        ("SMALLINT", []) => DataType::Int16,
        ("INTEGER" | "INT", []) => DataType::Int32,
        ("BIGINT", []) => DataType::Int64,
        ("TINYINT UNSIGNED", []) => DataType::UInt8,
        ("SMALLINT UNSIGNED", []) => DataType::UInt16,
        ("INTEGER UNSIGNED" | "INT UNSIGNED", []) => DataType::UInt32,
        ("BIGINT UNSIGNED", []) => DataType::UInt64,
        ("REAL", []) => DataType::Float32,
        ("DOUBLE" | "DOUBLE PRECISION", []) => DataType::Float64,
        ("DECIMAL" | "NUMERIC", [precision @ 1..=38]) => DataType::Decimal128(*precision, 0),
        ("DECIMAL" | "NUMERIC", [precision @ 1..=38, scale]) if scale <= precision => {
            DataType::Decimal128(*precision, *scale as i8)
        }
        ("VARCHAR" | "TEXT" | "CHAR" | "STRING", [] | [_]) => DataType::Utf8View,
        ("DATE", []) => DataType::Date32,
        ("TIMESTAMP", []) => DataType::Timestamp(TimeUnit::Microsecond, None),
        ("TIMESTAMP", [0..=3]) => DataType::Timestamp(TimeUnit::Millisecond, None),
        ("TIMESTAMP", [4..=6]) => DataType::Timestamp(TimeUnit::Microsecond, None),
        ("TIMESTAMP", [7..=9]) => DataType::Timestamp(TimeUnit::Nanosecond, None),
        _ => return None,
    })
}

/// The name of a type; `None` for one that `[raw.columns]` does not have, such as text of times and bytes.
#[cfg(feature = "postgres")]
pub(crate) fn name_of(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INTEGER".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP(6)".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP(6) WITH TIME ZONE".into(),
        _ => return None,
    })
}

/// The narrowest type that represents all values of both; `None` if there is none.
pub(crate) fn widen(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::*;
    fn integer(data_type: &DataType) -> Option<(bool, u8)> {
        Some(match data_type {
            Int8 => (true, 8),
            Int16 => (true, 16),
            Int32 => (true, 32),
            Int64 => (true, 64),
            UInt8 => (false, 8),
            UInt16 => (false, 16),
            UInt32 => (false, 32),
            UInt64 => (false, 64),
            _ => return None,
        })
    }
    fn decimal(data_type: &DataType) -> Option<(u8, i8)> {
        match data_type {
            Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) => Some((*p, *s)),
            other => match integer(other)? {
                (_, 8) => Some((3, 0)),
                (_, 16) => Some((5, 0)),
                (_, 32) => Some((10, 0)),
                (true, _) => Some((19, 0)),
                (false, _) => Some((20, 0)),
            },
        }
    }
    if a == b {
        return Some(a.clone());
    }
    if let (Some((a_signed, a_bits)), Some((b_signed, b_bits))) = (integer(a), integer(b)) {
        if a_signed == b_signed {
            return Some(if a_bits > b_bits { a.clone() } else { b.clone() });
        }
        let (signed, unsigned) = if a_signed { (a_bits, b_bits) } else { (b_bits, a_bits) };
        return Some(match signed.max(unsigned.saturating_mul(2)) {
            16 => Int16,
            32 => Int32,
            64 => Int64,
            _ => Decimal128(20, 0),
        });
    }
    match (a, b) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (List(a), List(b)) => Some(List(widen_nested(a, b)?)),
        (Struct(a), Struct(b)) if a.len() == b.len() => {
            let fields = a.iter().zip(b).map(|(a, b)| {
                let has_name = a.name() == b.name();
                has_name.then(|| widen_nested(a, b)).flatten()
            });
            Some(Struct(fields.collect::<Option<Fields>>()?))
        }
        (Float32, Float64) | (Float64, Float32) => Some(Float64),
        (Date32, Timestamp(unit, zone)) | (Timestamp(unit, zone), Date32) => {
            Some(Timestamp(*unit, zone.clone()))
        }
        (Timestamp(a_unit, a_zone), Timestamp(b_unit, b_zone)) => {
            let rank = |unit: &TimeUnit| *unit as u8;
            let unit = if rank(a_unit) > rank(b_unit) { a_unit } else { b_unit };
            (a_zone == b_zone).then(|| Timestamp(*unit, a_zone.clone()))
        }
        _ => {
            let ((a_precision, a_scale), (b_precision, b_scale)) = (decimal(a)?, decimal(b)?);
            let scale = a_scale.max(b_scale);
            let whole = (a_precision as i8 - a_scale).max(b_precision as i8 - b_scale);
            let precision = u8::try_from(whole + scale).ok()?;
            (precision <= 38).then_some(Decimal128(precision, scale))
        }
    }
}

/// Widens fields of nested types. The name of a list's items has no meaning.
fn widen_nested(a: &FieldRef, b: &FieldRef) -> Option<FieldRef> {
    let widened = widen(a.data_type(), b.data_type())?;
    // Values in nested types are not checked one by one.
    let fits = [a, b].iter().all(|field| always_fits(field.data_type(), &widened));
    fits.then(|| Arc::new(Field::new(a.name(), widened, a.is_nullable() || b.is_nullable())))
}

/// Whether every value of `from` fits `to`, so that no value needs to be checked.
pub(crate) fn always_fits(from: &DataType, to: &DataType) -> bool {
    let is_number = |data_type: &DataType| {
        data_type.is_integer() || matches!(data_type, DataType::Decimal128(_, _))
    };
    match (from, to) {
        (DataType::Null, _) => return true,
        (DataType::List(from), DataType::List(to)) => {
            return always_fits(from.data_type(), to.data_type());
        }
        (DataType::Struct(from), DataType::Struct(to)) => {
            let mut fields = from.iter().zip(to);
            return from.len() == to.len()
                && fields.all(|(a, b)| always_fits(a.data_type(), b.data_type()));
        }
        _ => {}
    }
    from == to
        || (from.is_string() && to.is_string())
        || matches!((from, to), (DataType::Float32, DataType::Float64))
        // Widening loses nothing.
        || (is_number(from)
            && is_number(to)
            && widen(from, to).as_ref() == Some(to))
}

/// Whether values of a type have text.
pub(crate) fn has_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) | DataType::Map(field, _) => has_text(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_text(field.data_type())),
        other => other.is_string(),
    }
}

/// Casts values to another type without loss. An empty text is not a number.
///
/// # Errors
/// The index of the first value that does not fit.
pub(crate) fn cast_values(values: &ArrayRef, to: &DataType) -> Result<ArrayRef, usize> {
    let from = values.data_type();
    if from == to {
        return Ok(Arc::clone(values));
    }
    if *from == DataType::Null {
        return Ok(new_null_array(to, values.len()));
    }
    match to {
        DataType::Timestamp(_, _) | DataType::Date32 if from.is_string() => {
            let times = times_ns(values, Tz::UTC)?;
            if !matches!(to, DataType::Timestamp(_, Some(_))) {
                let text = cast_values(values, &DataType::Utf8View)?;
                let mut texts = text.as_string_view().iter();
                // A type without a zone would lose it.
                if let Some(at) = texts.position(|text| text.is_some_and(has_zone)) {
                    return Err(at);
                }
            }
            return times_of(&times, to);
        }
        DataType::Decimal128(_, scale) if from.is_string() => {
            let text = cast_values(values, &DataType::Utf8View)?;
            let texts = text.as_string_view().iter();
            let fits = |text: Option<&str>| text.is_none_or(|text| is_decimal(text, *scale));
            if let Some(at) = texts.clone().position(|text| !fits(text)) {
                return Err(at);
            }
        }
        _ => {}
    }
    if from.is_nested() && to.is_nested() {
        let strict = CastOptions { safe: false, ..Default::default() };
        return cast_with_options(values, to, &strict).map_err(|_| first_value(values));
    }
    let lenient = CastOptions::default();
    let cast = cast_with_options(values, to, &lenient).map_err(|_| first_value(values))?;
    if cast.null_count() != values.null_count() {
        let mut rows = 0..values.len();
        return Err(rows
            .find(|row| cast.is_null(*row) != values.is_null(*row))
            .unwrap_or_default());
    }
    if from.is_string() && to.is_floating() {
        check_floats(values, &cast)?;
    }
    if from.is_string() || to.is_string() || always_fits(from, to) {
        return Ok(cast);
    }
    let back = cast_with_options(&cast, from, &lenient).map_err(|_| first_value(values))?;
    let differs = distinct(&back, values).map_err(|_| first_value(values))?;
    match differs.values().set_indices().next() {
        Some(at) => Err(at),
        None => Ok(cast),
    }
}

/// Checks that no number in a text became infinity or zero because it is out of range.
///
/// # Errors
/// The index of the first one that did.
fn check_floats(texts: &ArrayRef, floats: &ArrayRef) -> Result<(), usize> {
    // Casting these types to a double loses nothing.
    let doubles = cast_with_options(floats, &DataType::Float64, &CastOptions::default());
    let doubles = doubles.map_err(|_| first_value(floats))?;
    let doubles = doubles.as_primitive::<Float64Type>();
    if doubles.iter().flatten().all(|double| double.is_finite() && double != 0.0) {
        return Ok(());
    }
    let texts = cast_values(texts, &DataType::Utf8View)?;
    let fits = |(double, text): (Option<f64>, Option<&str>)| match (double, text) {
        (Some(double), Some(text)) if double.is_infinite() => is_infinity(text),
        (Some(0.0), Some(text)) => is_zero(text),
        _ => true,
    };
    match doubles.iter().zip(texts.as_string_view()).position(|pair| !fits(pair)) {
        Some(at) => Err(at),
        None => Ok(()),
    }
}

/// Whether a text that is a number means infinity.
fn is_infinity(text: &str) -> bool {
    text.trim_ascii().trim_start_matches(['+', '-']).starts_with(['i', 'I'])
}

/// Whether a text that is a number means zero.
fn is_zero(text: &str) -> bool {
    let digits = text.split(['e', 'E']).next().unwrap_or_default();
    !digits.contains(|digit: char| ('1'..='9').contains(&digit))
}

fn first_value(values: &ArrayRef) -> usize {
    let mut rows = 0..values.len();
    rows.find(|row| values.is_valid(*row)).unwrap_or_default()
}

/// Whether a time as text has a zone.
fn has_zone(text: &str) -> bool {
    let after_date = text.trim_ascii().get(10..).unwrap_or_default();
    after_date.contains(['Z', '+', '-'])
}

/// Whether text is a plain decimal number with no more fraction digits than `scale`.
fn is_decimal(text: &str, scale: i8) -> bool {
    let number = text.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    text.len() - number.len() <= 1
        && !(whole.is_empty() && fraction.is_empty())
        && are_digits(whole)
        && are_digits(fraction)
        && fraction.trim_end_matches('0').len() <= usize::try_from(scale).unwrap_or_default()
}

/// Converts times, in nanoseconds since 1970, to a column of timestamps or dates.
fn times_of(times: &[Option<i128>], to: &DataType) -> Result<ArrayRef, usize> {
    fn units<T: ArrowPrimitiveType>(
        times: &[Option<i128>],
        unit_ns: i128,
    ) -> Result<PrimitiveArray<T>, usize>
    where
        T::Native: TryFrom<i128>,
    {
        let one = |(at, time): (usize, &Option<i128>)| match time {
            None => Ok(None),
            Some(ns) if ns % unit_ns != 0 => Err(at),
            Some(ns) => T::Native::try_from(ns / unit_ns).map(Some).map_err(|_| at),
        };
        times.iter().enumerate().map(one).collect()
    }
    if let DataType::Timestamp(unit, Some(zone)) = to {
        let plain = times_of(times, &DataType::Timestamp(*unit, None))?;
        return match unit {
            TimeUnit::Nanosecond => Ok(with_zone::<TimestampNanosecondType>(&plain, zone)),
            TimeUnit::Microsecond => Ok(with_zone::<TimestampMicrosecondType>(&plain, zone)),
            _ => Ok(with_zone::<TimestampMillisecondType>(&plain, zone)),
        };
    }
    Ok(match to {
        DataType::Date32 => Arc::new(Date32Array::from(units(times, DAY_NS)?)),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Arc::new(TimestampNanosecondArray::from(units(times, 1)?))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Arc::new(TimestampMicrosecondArray::from(units(times, 1_000)?))
        }
        _ => Arc::new(TimestampMillisecondArray::from(units(times, 1_000_000)?)),
    })
}

fn with_zone<T: ArrowTimestampType>(times: &ArrayRef, zone: &Arc<str>) -> ArrayRef {
    let times = times.as_primitive::<T>().clone();
    Arc::new(times.with_timezone(Arc::clone(zone)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray, UInt64Array};
    use arrow::compute::cast;

    #[test]
    fn types_are_read_as_sql_writes_them() {
        for (text, data_type) in [
            ("bigint", DataType::Int64),
            ("Int  Unsigned", DataType::UInt32),
            ("decimal(12,2)", DataType::Decimal128(12, 2)),
            ("NUMERIC ( 38 )", DataType::Decimal128(38, 0)),
            ("varchar(20)", DataType::Utf8View),
            ("timestamp", DataType::Timestamp(TimeUnit::Microsecond, None)),
            ("TIMESTAMP(3)", DataType::Timestamp(TimeUnit::Millisecond, None)),
        ] {
            assert_eq!(parse_type(text), Some(data_type), "{text}");
        }
        for text in ["", "decimal", "decimal(39, 0)", "decimal(3, 4)", "float", "date(3)", "int)"] {
            assert_eq!(parse_type(text), None, "{text}");
        }
    }

    fn of_text(texts: &[Option<&str>], name: &str) -> Result<ArrayRef, usize> {
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        cast_values(&texts, &parse_type(name).expect("a type"))
    }

    #[test]
    fn text_is_cast_without_loss_or_refused() {
        for (good, bad, name) in [
            ("-12", "1.5", "INTEGER"),
            ("7", "", "BIGINT"),
            ("255", "256", "TINYINT UNSIGNED"),
            ("-1.50", "1.505", "DECIMAL(10, 2)"),
            ("12.3", "1e3", "DECIMAL(10, 2)"),
            ("99999999.99", "100000000", "DECIMAL(10, 2)"),
            ("1e3", "x", "DOUBLE"),
            ("2020-02-29", "2021-02-29", "DATE"),
            ("2020-02-29 00:00:00", "2020-02-29 00:00:01", "DATE"),
            ("9999-12-31 23:59:59.999999", "2020-01-01 00:00:00.0000001", "TIMESTAMP"),
            ("2020-01-01T00:00:00", "2020-01-01T00:00:00Z", "TIMESTAMP"),
            ("2020-01-01", "2020-01-01 00:00:00-05", "TIMESTAMP(3)"),
            ("2020-01-01T00:00:00-05:00", "1", "timestamp (9) with time zone"),
            ("true", "2", "BOOLEAN"),
            ("1e308", "1e400", "DOUBLE"),
            ("-1e-307", "-1e400", "DOUBLE"),
            ("0.00e-999", "1e-400", "DOUBLE"),
            ("-Infinity", "-1.8e308", "DOUBLE"),
            ("inf", "0.0001e-330", "DOUBLE"),
            ("3e38", "4e38", "REAL"),
            ("-0", "1e-50", "REAL"),
            ("NaN", "1e309", "REAL"),
            ("9223372036854775807", "9223372036854775808", "BIGINT"),
            ("-128", "-129", "TINYINT"),
            (
                "99999999999999999999999999999999999999",
                "100000000000000000000000000000000000000",
                "DECIMAL(38)",
            ),
            (
                "1",
                "1000000000000000000000000000000000000000000000000000000000000",
                "DECIMAL(38, 2)",
            ),
            ("1677-09-22 00:00:00", "1677-09-20 00:00:00", "TIMESTAMP(9)"),
            ("2262-04-11 00:00:00", "2262-04-12 00:00:00", "TIMESTAMP(9)"),
            ("0001-01-01", "99999999-01-01", "DATE"),
        ] {
            let cast = of_text(&[Some(good), None], name).unwrap_or_else(|_| panic!("{good}"));
            assert!(cast.is_valid(0) && cast.is_null(1), "{good} as {name}");
            assert_eq!(of_text(&[None, Some(good), Some(bad)], name).err(), Some(2), "{bad}");
        }
    }

    #[test]
    fn numbers_and_times_keep_their_value_or_are_refused() {
        let of = |values: ArrayRef, name: &str| {
            cast_values(&values, &parse_type(name).expect("a type")).map(|cast| cast.len())
        };
        assert_eq!(of(Arc::new(Float64Array::from(vec![1.0, 1.5])), "BIGINT"), Err(1));
        assert_eq!(of(Arc::new(Float64Array::from(vec![1.0, f64::NAN])), "DOUBLE"), Ok(2));
        assert_eq!(of(Arc::new(Int64Array::from(vec![1, 1 << 40])), "INTEGER"), Err(1));
        assert_eq!(of(Arc::new(UInt64Array::from(vec![u64::MAX])), "BIGINT"), Err(0));
        assert_eq!(of(Arc::new(UInt64Array::from(vec![u64::MAX])), "DECIMAL(20)"), Ok(1));
        let us: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 1]));
        assert_eq!(of(Arc::clone(&us), "DATE"), Err(1));
        assert_eq!(of(Arc::clone(&us), "TIMESTAMP(3)"), Err(1));
        assert_eq!(of(us, "TIMESTAMP(9)"), Ok(2));
        let late: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![253_402_300_799_000_000]));
        assert_eq!(of(late, "TIMESTAMP(9)"), Err(0), "the year 9999 has no nanoseconds");
        assert_eq!(of(Arc::new(Int64Array::from(vec![12])), "VARCHAR"), Ok(1));
        assert_eq!(of(Arc::new(Float64Array::from(vec![1e300])), "REAL"), Err(0));
        assert_eq!(of(Arc::new(Float64Array::from(vec![1e-300])), "REAL"), Err(0));
        assert_eq!(of(Arc::new(Float64Array::from(vec![f64::INFINITY])), "REAL"), Ok(1));
        assert_eq!(of(Arc::new(Float64Array::from(vec![1e300])), "BIGINT"), Err(0));
        assert_eq!(of(Arc::new(Float64Array::from(vec![1e300])), "DECIMAL(38)"), Err(0));
        let days: ArrayRef = Arc::new(Date32Array::from(vec![0, 2_932_896]));
        assert_eq!(of(days, "TIMESTAMP(9)"), Err(1), "the year 9999 has no nanoseconds");
    }

    #[test]
    fn types_that_always_fit_are_known() {
        let small: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX]));
        let wide = DataType::Decimal128(21, 2);
        assert!(always_fits(&DataType::Int64, &wide));
        assert_eq!(
            cast_values(&small, &wide).expect("fits").as_ref(),
            cast(&small, &wide).expect("fits").as_ref()
        );
        assert!(!always_fits(&DataType::Int64, &DataType::Int32));
        assert!(!always_fits(&DataType::Int64, &DataType::Decimal128(20, 2)));
        assert!(!always_fits(&DataType::Utf8View, &DataType::Int64));
    }

    #[test]
    fn types_widen_without_loss_or_not_at_all() {
        use DataType::*;
        let utc = || Some("UTC".into());
        for (a, b, both) in [
            (Int32, Int64, Some(Int64)),
            (UInt8, Int8, Some(Int16)),
            (UInt32, Int8, Some(Int64)),
            (UInt64, Int8, Some(Decimal128(20, 0))),
            (Float32, Float64, Some(Float64)),
            (Decimal128(10, 2), Decimal128(12, 4), Some(Decimal128(12, 4))),
            (Decimal128(10, 2), Decimal128(9, 4), Some(Decimal128(12, 4))),
            (Decimal128(10, 2), Int64, Some(Decimal128(21, 2))),
            (Decimal128(38, 0), Decimal128(38, 10), None),
            (
                Date32,
                Timestamp(TimeUnit::Millisecond, None),
                Some(Timestamp(TimeUnit::Millisecond, None)),
            ),
            (
                Timestamp(TimeUnit::Millisecond, utc()),
                Timestamp(TimeUnit::Microsecond, utc()),
                Some(Timestamp(TimeUnit::Microsecond, utc())),
            ),
            (Timestamp(TimeUnit::Millisecond, utc()), Timestamp(TimeUnit::Millisecond, None), None),
            (Utf8View, Int64, None),
            (Float64, Int64, None),
        ] {
            assert_eq!(widen(&a, &b), both, "{a} and {b}");
            assert_eq!(widen(&b, &a), both, "{b} and {a}");
        }
    }
}
