//! Types of CSV columns, from their values in a sample.
//!
//! A type is proposed only if each value is written as one of that type would be, so that no digit is lost: `007` is text, and so
//! are numbers in a column that is named like a postal code.

use crate::survey::sample::Column;
use crate::types::times::parse_time;

/// Parts of names of columns whose digits are no numbers.
const DIGITS: [&str; 9] =
    ["zip", "post", "phone", "fax", "iban", "mobile", "account", "card", "code"];

/// The most digits of a decimal.
const DIGITS_MAX: usize = 38;
/// The digits after the point where they differ from value to value.
const SCALE: usize = 10;

/// The name of the type, as `[raw.columns]` has it; `VARCHAR` where nothing else fits.
pub(super) fn of(column: &Column) -> String {
    let values =
        || column.values.iter().flatten().map(String::as_str).filter(|value| !value.is_empty());
    let lower = column.name.to_ascii_lowercase();
    let is_of_digits = DIGITS.iter().any(|part| lower.contains(part));
    if values().next().is_none() {
        return "VARCHAR".into();
    }
    if values().all(|value| ["true", "false"].contains(&value)) {
        return "BOOLEAN".into();
    }
    if !is_of_digits && let Some(of_numbers) = number(values()) {
        return of_numbers;
    }
    let is_date = |value: &str| value.len() == 10 && parse_time(value, chrono_tz::UTC).is_some();
    if values().all(is_date) {
        return "DATE".into();
    }
    let is_time = |value: &str| value.len() > 10 && parse_time(value, chrono_tz::UTC).is_some();
    if !values().all(is_time) {
        return "VARCHAR".into();
    }
    // Behind date and clock, `2024-01-02 10:15:00`, stands a fraction, or a zone, or both.
    let rest = |value: &str| value.get(19..).unwrap_or_default().to_string();
    let is_zone = |c: char| c == 'Z' || c == '+' || c == '-';
    let has_zone = values().filter(|value| rest(value).contains(is_zone)).count();
    let digits = values().map(|value| {
        let rest = rest(value);
        rest.trim_start_matches('.').bytes().take_while(u8::is_ascii_digit).count()
    });
    let digits = if digits.max().unwrap_or(0) > 6 { 9 } else { 6 };
    match has_zone {
        0 => format!("TIMESTAMP({digits})"),
        all if all == values().count() => format!("TIMESTAMP({digits}) WITH TIME ZONE"),
        _ => "VARCHAR".into(),
    }
}

/// The type of numbers; `None` if some value is none.
fn number<'a>(values: impl Iterator<Item = &'a str>) -> Option<String> {
    let (mut whole_max, mut scales) = (0, Vec::new());
    let mut fits_integer = true;
    for value in values {
        let digits = value.strip_prefix('-').unwrap_or(value);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let has_zeros = whole.len() > 1 && whole.starts_with('0');
        let is_number = !whole.is_empty()
            && are_digits(whole)
            && are_digits(fraction)
            && !has_zeros
            && !digits.ends_with('.');
        if !is_number {
            return None;
        }
        fits_integer &= digits == whole && value.parse::<i64>().is_ok();
        whole_max = whole_max.max(whole.len());
        scales.push(fraction.len());
    }
    if fits_integer {
        return Some("BIGINT".into());
    }
    let most = scales.iter().copied().max().unwrap_or(0);
    let scale = if scales.iter().all(|scale| *scale == most) { most } else { most.max(SCALE) };
    (whole_max + scale <= DIGITS_MAX).then(|| format!("DECIMAL({DIGITS_MAX}, {scale})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::datatypes::DataType;

    fn found(name: &str, values: &[&str]) -> String {
        of(&Column {
            name: name.into(),
            data_type: DataType::Utf8View,
            other_types: Vec::new(),
            values: values.iter().map(|value| Some(value.to_string())).collect(),
            extremes: Vec::new(),
        })
    }

    #[test]
    fn a_type_is_that_of_all_values() {
        for (values, expected) in [
            (&["1", "-7", ""][..], "BIGINT"),
            (&["9223372036854775808"], "DECIMAL(38, 0)"),
            (&["1.50", "-20.00"], "DECIMAL(38, 2)"),
            (&["1.5", "2"], "DECIMAL(38, 10)"),
            (&["007", "1"], "VARCHAR"),
            (&["1.", "2"], "VARCHAR"),
            (&["1e5"], "VARCHAR"),
            (&["true", "false"], "BOOLEAN"),
            (&["2024-01-02"], "DATE"),
            (&["2024-01-02", "x"], "VARCHAR"),
            (&["2024-01-02 10:15:00", "2024-01-02 10:15:00.123456"], "TIMESTAMP(6)"),
            (&["2024-01-02 10:15:00.123456789"], "TIMESTAMP(9)"),
            (&["2024-01-02T10:15:00Z"], "TIMESTAMP(6) WITH TIME ZONE"),
            (&["2024-01-02T10:15:00Z", "2024-01-02T10:15:00"], "VARCHAR"),
            (&["2024-01-02", "2024-01-02 10:15:00"], "VARCHAR"),
            (&[], "VARCHAR"),
        ] {
            assert_eq!(found("x", values), expected, "{values:?}");
        }
        assert_eq!(found("zip", &["8001"]), "VARCHAR");
    }
}
