//! Masks: what stands in place of values that nobody is to read.
//!
//! A mask is a function of one value. It depends on nothing else but a secret, so that equal values stay equal, in every
//! file, run and table. Null stays null.
//!
//! | mask | of a value |
//! |---|---|
//! | `hmac` | the HMAC-SHA-256 (RFC 2104) of its text by the secret key, in 64 hexadecimal digits |
//! | `sha256` | the SHA-256 of the secret salt and its text after it, in 64 hexadecimal digits |
//! | `redact` | `***` |
//! | `last4` | `****` and the last four characters of its text; nothing of a text of fewer than eight |
//! | `year` | the year of a date or time, in UTC |
//! | `null` | null |
//!
//! The text of a value is the same in all types that a column can widen to: numbers are decimal without needless zeros
//! (`1.50` and `1.5` are `1.5`, `1.0` is `1`), dates are `2019-04-01`, times `2019-04-01 10:10:00.25` in UTC without
//! needless zeros, and without the time at midnight, truth values `true` and `false`. Bytes are taken as they are, and
//! shown in hexadecimal digits.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, StringViewBuilder, new_null_array,
};
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit};
use chrono::{DateTime, Datelike, Timelike};
use chrono_tz::Tz;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::types::column_type::cast_values;
use crate::types::key::normalize_zeros;
use crate::types::times::{nanoseconds, times_ns};

/// What stands in place of a text that cannot be masked otherwise.
pub(crate) const REDACTED: &str = "***";
/// What stands in place of the characters of a text that are not shown.
const HIDDEN: &str = "****";
/// The number of characters that `last4` shows.
const SHOWN: usize = 4;
/// The number of digits of a hash.
const DIGITS: usize = 64;

/// A mask, with its secret.
#[derive(Clone)]
pub(crate) enum Mask {
    /// `hmac`.
    Hmac(Box<Hmac<Sha256>>),
    /// `sha256`: the hash of the salt so far.
    Sha256(Box<Sha256>),
    /// `null`.
    Null,
    /// `redact`.
    Redact,
    /// `last4`.
    Last4,
    /// `year`.
    Year,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mask::Hmac(_) => "hmac",
            Mask::Sha256(_) => "sha256",
            Mask::Null => "null",
            Mask::Redact => "redact",
            Mask::Last4 => "last4",
            Mask::Year => "year",
        })
    }
}

impl Mask {
    /// The mask `hmac` by a key.
    pub(crate) fn hmac(key: &[u8]) -> Option<Self> {
        Hmac::new_from_slice(key).ok().map(|hmac| Mask::Hmac(Box::new(hmac)))
    }

    /// The mask `sha256` by a salt.
    pub(crate) fn sha256(salt: &[u8]) -> Self {
        Mask::Sha256(Box::new(Sha256::new_with_prefix(salt)))
    }

    /// Whether it is `hmac` or `sha256`.
    pub(crate) fn is_hash(&self) -> bool {
        matches!(self, Mask::Hmac(_) | Mask::Sha256(_))
    }

    /// The type of masked values; `None` if values of a type cannot be masked. A column of nulls keeps its type.
    pub(crate) fn masked_type(&self, of: &DataType) -> Option<DataType> {
        match self {
            _ if of.is_null() => Some(DataType::Null),
            Mask::Null => Some(of.clone()),
            Mask::Redact => Some(DataType::Utf8View),
            Mask::Year => has_year(of).then_some(DataType::Int32),
            Mask::Hmac(_) | Mask::Sha256(_) | Mask::Last4 => {
                has_text(of).then_some(DataType::Utf8View)
            }
        }
    }

    /// The type of all masked values, of whatever type they are; `None` if they keep it.
    pub(crate) fn fixed_type(&self) -> Option<DataType> {
        match self {
            Mask::Null => None,
            Mask::Year => Some(DataType::Int32),
            Mask::Hmac(_) | Mask::Sha256(_) | Mask::Last4 | Mask::Redact => {
                Some(DataType::Utf8View)
            }
        }
    }

    /// Whether some values of a type that can be masked cannot.
    pub(crate) fn may_fail(&self, of: &DataType) -> bool {
        matches!(self, Mask::Year) && of.is_string()
    }

    /// Masks values.
    ///
    /// # Errors
    /// The index of the first value that cannot be masked, or 0 if values of this type cannot.
    pub(crate) fn apply(&self, values: &ArrayRef) -> Result<ArrayRef, usize> {
        if values.data_type().is_null() {
            return Ok(Arc::clone(values));
        }
        match self {
            Mask::Null => Ok(new_null_array(values.data_type(), values.len())),
            Mask::Redact => {
                let mut masked = StringViewBuilder::with_capacity(values.len());
                let rows = 0..values.len();
                rows.for_each(|row| masked.append_option(values.is_valid(row).then_some(REDACTED)));
                Ok(Arc::new(masked.finish()))
            }
            Mask::Hmac(hmac) => each(values, |bytes, masked| {
                let hash = hmac.as_ref().clone().chain_update(bytes).finalize();
                write_digits(&hash.into_bytes(), masked);
            }),
            Mask::Sha256(salted) => each(values, |bytes, masked| {
                write_digits(&salted.as_ref().clone().chain_update(bytes).finalize(), masked);
            }),
            Mask::Last4 => {
                let is_binary = values.data_type().is_binary();
                each(values, |bytes, masked| {
                    let mut digits = String::new();
                    if is_binary {
                        write_digits(bytes, &mut digits);
                    }
                    let text = std::str::from_utf8(bytes).unwrap_or_default();
                    masked.push_str(HIDDEN);
                    masked.push_str(last_characters(if is_binary { &digits } else { text }));
                })
            }
            Mask::Year => years(values),
        }
    }

    /// Masks the values that can be masked. Returns the indices of the others too, in whose place is null.
    pub(crate) fn apply_to_fit(&self, values: &ArrayRef) -> (ArrayRef, Vec<usize>) {
        if let Ok(masked) = self.apply(values) {
            return (masked, Vec::new());
        }
        let is_unfit = |row: &usize| self.apply(&values.slice(*row, 1)).is_err();
        let unfit: Vec<usize> = (0..values.len()).filter(is_unfit).collect();
        let mut are_unfit = vec![false; values.len()];
        unfit.iter().for_each(|row| are_unfit[*row] = true);
        let fit = nullif(values, &BooleanArray::from(are_unfit)).ok();
        let masked = fit.and_then(|fit| self.apply(&fit).ok());
        let none = || {
            let data_type = self.masked_type(values.data_type()).unwrap_or(DataType::Utf8View);
            new_null_array(&data_type, values.len())
        };
        (masked.unwrap_or_else(none), unfit)
    }

    /// The text of what stands in place of a value of a type, given by its text; `None` for null, and `***` if the text is
    /// no value.
    pub(crate) fn of_text(&self, text: &str, data_type: &DataType) -> Option<String> {
        let given: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![text]));
        let data_type = if data_type.is_null() { &DataType::Utf8View } else { data_type };
        let value = cast_values(&given, data_type).ok();
        match value.and_then(|value| self.apply(&value).ok()) {
            Some(masked) if masked.is_null(0) => None,
            Some(masked) => {
                let text = cast(&masked, &DataType::Utf8View).ok()?;
                Some(text.as_string_view().value(0).to_string())
            }
            None => Some(REDACTED.into()),
        }
    }
}

/// Whether a text is of the form of a hash by which values are masked.
pub(crate) fn is_hash(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == DIGITS && text.bytes().all(is_digit)
}

/// Whether values of a type have a text.
fn has_text(data_type: &DataType) -> bool {
    data_type.is_string()
        || data_type.is_binary()
        || data_type.is_numeric()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::FixedSizeBinary(_)
                | DataType::Date32
                | DataType::Timestamp(_, _)
                | DataType::Time32(_)
                | DataType::Time64(_)
        )
}

/// Whether values of a type have a year.
fn has_year(data_type: &DataType) -> bool {
    data_type.is_string() || matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _))
}

/// Makes a text of the text of each value that is not null.
fn each(values: &ArrayRef, mut mask: impl FnMut(&[u8], &mut String)) -> Result<ArrayRef, usize> {
    let mut masked = StringViewBuilder::with_capacity(values.len());
    let mut text = String::new();
    let mut append = |value: Option<&[u8]>| match value {
        None => masked.append_null(),
        Some(bytes) => {
            text.clear();
            mask(bytes, &mut text);
            masked.append_value(&text);
        }
    };
    match values.data_type() {
        of if of.is_string() => {
            let texts = cast(values, &DataType::Utf8View).map_err(|_| 0usize)?;
            texts.as_string_view().iter().for_each(|text| append(text.map(str::as_bytes)));
        }
        of if of.is_binary() || matches!(of, DataType::FixedSizeBinary(_)) => {
            let binaries = cast(values, &DataType::BinaryView).map_err(|_| 0usize)?;
            binaries.as_binary_view().iter().for_each(append);
        }
        _ => {
            let texts = texts(values).ok_or(0usize)?;
            texts.iter().for_each(|text| append(text.as_ref().map(String::as_bytes)));
        }
    }
    Ok(Arc::new(masked.finish()))
}

/// The texts of values that are neither texts nor bytes; `None` if their type has none.
fn texts(values: &ArrayRef) -> Option<Vec<Option<String>>> {
    let to = |to: &DataType| cast(values, to).ok();
    Some(match values.data_type() {
        DataType::UInt64 => {
            let numbers = to(&DataType::Decimal128(20, 0))?;
            numbers
                .as_primitive::<Decimal128Type>()
                .iter()
                .map(|it| Some(it?.to_string()))
                .collect()
        }
        of if of.is_integer() => {
            let numbers = to(&DataType::Int64)?;
            numbers.as_primitive::<Int64Type>().iter().map(|it| Some(it?.to_string())).collect()
        }
        of if of.is_floating() => {
            let numbers = normalize_zeros(&to(&DataType::Float64)?);
            numbers.as_primitive::<Float64Type>().iter().map(|it| Some(it?.to_string())).collect()
        }
        of if of.is_numeric() => {
            let numbers = to(&DataType::Utf8View)?;
            numbers.as_string_view().iter().map(|it| Some(without_zeros(it?).to_string())).collect()
        }
        DataType::Boolean => values.as_boolean().iter().map(|it| Some(it?.to_string())).collect(),
        DataType::Date32 => {
            let days = values.as_primitive::<Date32Type>();
            days.iter().map(|it| Some(Date32Type::to_naive_date_opt(it?)?.to_string())).collect()
        }
        DataType::Timestamp(unit, _) => {
            let numbers = to(&DataType::Int64)?;
            let numbers = numbers.as_primitive::<Int64Type>().iter();
            numbers.map(|it| time_text(it?, *unit)).collect()
        }
        DataType::Time32(_) | DataType::Time64(_) => {
            let times = to(&DataType::Utf8View)?;
            times.as_string_view().iter().map(|it| Some(without_zeros(it?).to_string())).collect()
        }
        _ => return None,
    })
}

/// The text of a time. One that the calendar does not have is its number.
fn time_text(time: i64, unit: TimeUnit) -> Option<String> {
    let ns = nanoseconds(time, unit);
    let second = i128::from(NS_PER_SECOND);
    let whole = i64::try_from(ns.div_euclid(second)).ok();
    let time = whole
        .and_then(|seconds| DateTime::from_timestamp(seconds, ns.rem_euclid(second) as u32))
        .map(|time| time.naive_utc());
    Some(match time {
        None => ns.to_string(),
        Some(time) if time.num_seconds_from_midnight() == 0 && time.nanosecond() == 0 => {
            time.date().to_string()
        }
        Some(time) => without_zeros(&time.format("%Y-%m-%d %H:%M:%S%.9f").to_string()).to_string(),
    })
}

const NS_PER_SECOND: i64 = 1_000_000_000;

/// The text of a number or time without zeros at the end of its fraction.
fn without_zeros(number: &str) -> &str {
    let shorter = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    if shorter == "-0" { "0" } else { shorter }
}

/// The last characters of a text that are shown: none of a short text.
fn last_characters(text: &str) -> &str {
    let mut starts = text.char_indices().rev().map(|(start, _)| start);
    let shown = starts.nth(SHOWN - 1).unwrap_or_default();
    let is_long = starts.nth(SHOWN - 1).is_some();
    if is_long { &text[shown..] } else { "" }
}

/// The years of dates and times.
fn years(values: &ArrayRef) -> Result<ArrayRef, usize> {
    if !has_year(values.data_type()) {
        return Err(0);
    }
    let times = times_ns(values, Tz::UTC)?;
    let year = |(at, ns): (usize, Option<i128>)| {
        let Some(ns) = ns else { return Ok(None) };
        let seconds = i64::try_from(ns.div_euclid(NS_PER_SECOND.into())).map_err(|_| at)?;
        let time = DateTime::from_timestamp(seconds, 0).ok_or(at)?;
        Ok(Some(time.year()))
    };
    let years = times.into_iter().enumerate().map(year).collect::<Result<Int32Array, usize>>()?;
    Ok(Arc::new(years))
}

/// Appends bytes as lower-case hexadecimal digits.
fn write_digits(bytes: &[u8], to: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        to.push(HEX[usize::from(byte >> 4)].into());
        to.push(HEX[usize::from(byte & 15)].into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BinaryArray, Date32Array, Decimal128Array, Float32Array, Int8Array, Int64Array,
        StringArray, TimestampMicrosecondArray, TimestampMillisecondArray, UInt64Array,
    };

    fn shown(mask: &Mask, values: ArrayRef) -> Vec<Option<String>> {
        let masked = mask.apply(&values).expect("masked");
        assert_eq!(mask.masked_type(values.data_type()).as_ref(), Some(masked.data_type()));
        let texts = cast(&masked, &DataType::Utf8View).expect("texts");
        texts.as_string_view().iter().map(|text| text.map(String::from)).collect()
    }

    fn text(mask: &Mask, values: ArrayRef) -> String {
        shown(mask, values).remove(0).expect("a value")
    }

    fn texts_of(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    #[test]
    fn hashes_are_those_of_the_standards() {
        // RFC 4231, test case 2.
        let hmac = Mask::hmac(b"Jefe").expect("a key");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(text(&hmac, texts_of(&["what do ya want for nothing?"])), expected);
        // FIPS 180-2, "abc", in two parts.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text(&Mask::sha256(b"ab"), texts_of(&["c"])), expected);
        assert!(is_hash(expected) && !is_hash(&expected.to_uppercase()) && !is_hash("ba78"));
    }

    #[test]
    fn a_value_has_one_hash_in_all_types_that_it_can_have() {
        let hmac = Mask::hmac(b"a key of the test").expect("a key");
        let of = |values: ArrayRef| text(&hmac, values);
        let one = of(texts_of(&["1"]));
        let decimal = |value: i128, scale: i8| -> ArrayRef {
            let values = Decimal128Array::from(vec![value]);
            Arc::new(values.with_precision_and_scale(20, scale).expect("a decimal"))
        };
        for same in [
            Arc::new(Int8Array::from(vec![1])) as ArrayRef,
            Arc::new(Int64Array::from(vec![1])),
            Arc::new(UInt64Array::from(vec![1])),
            Arc::new(Float32Array::from(vec![1.0])),
            decimal(1, 0),
            decimal(100, 2),
            Arc::new(BinaryArray::from(vec![&b"1"[..]])),
        ] {
            assert_eq!(of(Arc::clone(&same)), one, "{same:?}");
        }
        assert_eq!(of(decimal(-150, 2)), of(texts_of(&["-1.5"])));
        assert_eq!(of(decimal(0, 2)), of(texts_of(&["0"])));
        assert_eq!(of(Arc::new(Float32Array::from(vec![-0.0]))), of(texts_of(&["0"])));
        assert_eq!(of(decimal(1000, 0)), of(texts_of(&["1000"])));
        assert_eq!(
            of(Arc::new(UInt64Array::from(vec![u64::MAX]))),
            of(texts_of(&["18446744073709551615"]))
        );
        let day = of(texts_of(&["2019-04-01"]));
        let us = 1_554_076_800_000_000;
        assert_eq!(of(Arc::new(Date32Array::from(vec![17_987]))), day);
        assert_eq!(of(Arc::new(TimestampMicrosecondArray::from(vec![us]))), day);
        let time = of(texts_of(&["2019-04-01 10:10:00.25"]));
        let us = us + 36_600_250_000;
        assert_eq!(of(Arc::new(TimestampMicrosecondArray::from(vec![us]))), time);
        let zoned = TimestampMillisecondArray::from(vec![us / 1000]).with_timezone("+05:00");
        assert_eq!(of(Arc::new(zoned)), time);
    }

    #[test]
    fn the_other_masks_show_what_they_say() {
        let values = || -> ArrayRef {
            Arc::new(StringArray::from(vec![
                Some("4111111111111111"),
                Some("1234567"),
                Some("12345678"),
                Some("äöüßäöüß"),
                Some(""),
                None,
            ]))
        };
        let some = |text: &str| Some(text.to_string());
        let last4 = ["****1111", "****", "****5678", "****äöüß", "****"];
        let mut expected: Vec<Option<String>> = last4.map(some).to_vec();
        expected.push(None);
        assert_eq!(shown(&Mask::Last4, values()), expected);
        let mut expected = vec![some("***"); 5];
        expected.push(None);
        assert_eq!(shown(&Mask::Redact, values()), expected);
        assert_eq!(shown(&Mask::Null, values()), vec![None; 6]);
        let number = Arc::new(Int64Array::from(vec![123_456_789]));
        assert_eq!(text(&Mask::Last4, number), "****6789");
        let bytes = Arc::new(BinaryArray::from(vec![&[0xab, 0xcd, 0xef, 0x01][..]]));
        assert_eq!(text(&Mask::Last4, bytes), "****ef01");
        let dates = texts_of(&["1970-12-31", "2019-04-01 23:59:59", "1815-12-10"]);
        assert_eq!(shown(&Mask::Year, dates), ["1970", "2019", "1815"].map(some));
        let days = Arc::new(Date32Array::from(vec![Some(17_987), Some(-1), None]));
        assert_eq!(shown(&Mask::Year, days), [some("2019"), some("1969"), None]);
        let wrong = texts_of(&["1970-12-31", "soon", "2019-04-01", "later"]);
        assert_eq!(Mask::Year.apply(&wrong).expect_err("no date"), 1);
        let (years, unfit) = Mask::Year.apply_to_fit(&wrong);
        assert_eq!((years.null_count(), unfit), (2, vec![1, 3]));
        assert_eq!(Mask::Year.masked_type(&DataType::Int64), None);
    }

    #[test]
    fn a_text_is_masked_as_the_value_that_it_is() {
        let hmac = Mask::hmac(b"a key of the test").expect("a key");
        let of = |text: &str, data_type: DataType| hmac.of_text(text, &data_type);
        assert_eq!(of("007", DataType::Int32), of("7", DataType::Null));
        assert_ne!(of("007", DataType::Utf8View), of("7", DataType::Utf8View));
        assert_eq!(of("x", DataType::Int32).as_deref(), Some("***"));
        assert_eq!(Mask::Null.of_text("x", &DataType::Utf8View), None);
    }
}
