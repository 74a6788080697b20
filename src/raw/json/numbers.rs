//! Numbers as JSON writes them: their text is the value, so that no digit is lost.

use std::borrow::Cow;

/// The most zeros that an exponent is written out with.
const ZEROS_MAX: usize = 100;
/// A number of up to so many digits is the same as a double.
const DOUBLE_DIGITS: usize = 15;

/// Whether a number has neither a fraction nor an exponent.
pub(super) fn is_whole(number: &str) -> bool {
    number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// A number without an exponent and without zeros at the end of its fraction, if it has either;
/// `1.50E+2` is `150`. An exponent that is too large is left as it is.
pub(super) fn plain(number: &str) -> Cow<'_, str> {
    if is_whole(number) {
        return Cow::Borrowed(number);
    }
    let Some(Parts { sign, digits, exponent }) = Parts::of(number) else {
        return Cow::Borrowed(number);
    };
    // The value is 0.digits times ten to the exponent.
    let Ok(zeros) = usize::try_from(exponent.unsigned_abs()) else {
        return Cow::Borrowed(number);
    };
    if zeros > digits.len() + ZEROS_MAX {
        return Cow::Borrowed(number);
    }
    if digits.is_empty() {
        return Cow::Borrowed("0");
    }
    let text = match (exponent > 0, zeros < digits.len()) {
        (false, _) => format!("{sign}0.{}{digits}", "0".repeat(zeros)),
        (true, true) => format!("{sign}{}.{}", &digits[..zeros], &digits[zeros..]),
        (true, false) => format!("{sign}{digits}{}", "0".repeat(zeros - digits.len())),
    };
    Cow::Owned(text)
}

/// Whether a double has exactly this value, or is written with these digits.
pub(super) fn is_double(number: &str) -> bool {
    if number.len() <= DOUBLE_DIGITS && !number.bytes().any(|byte| matches!(byte, b'e' | b'E')) {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else {
        return false;
    };
    // The shortest digits that stand for this double.
    double.is_finite() && Parts::of(&format!("{double:e}")) == Parts::of(number)
}

/// A number's value: 0.digits times ten to the exponent.
#[derive(PartialEq, Eq)]
struct Parts {
    sign: &'static str,
    /// Without zeros at the start and the end; empty for zero.
    digits: String,
    exponent: i64,
}

impl Parts {
    /// The parts of a number of JSON; `None` if its exponent is out of any range.
    fn of(number: &str) -> Option<Self> {
        let (sign, number) = match number.strip_prefix('-') {
            Some(rest) => ("-", rest),
            None => ("", number),
        };
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let exponent: i32 = exponent.parse().ok()?;
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let zeros = all.len() - digits.len();
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() {
            return Some(Parts { sign: "", digits: String::new(), exponent: 0 });
        }
        let exponent = i64::from(exponent) + whole.len() as i64 - zeros as i64;
        Some(Parts { sign, digits: digits.to_string(), exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponents_are_written_out() {
        for (number, expected) in [
            ("12", "12"),
            ("-7.0", "-7"),
            ("1.50", "1.5"),
            ("1E+2", "100"),
            ("-1.25e1", "-12.5"),
            ("125e-2", "1.25"),
            ("5e-3", "0.005"),
            ("0.00", "0"),
            ("-0e9", "0"),
            ("1e999", "1e999"),
            ("1e99999999999", "1e99999999999"),
        ] {
            assert_eq!(plain(number), expected, "{number}");
        }
    }

    #[test]
    fn numbers_that_a_double_has_are_known() {
        for number in [
            "0.1",
            "0.30000000000000004",
            "123456789012345.0",
            "1e300",
            "-0.0",
            "0e5",
            "9007199254740992",
            "1.7976931348623157e308",
            "5e-324",
            "100000000000000000000",
        ] {
            assert!(is_double(number), "{number}");
        }
        for number in
            ["9007199254740993", "0.10000000000000001", "1e400", "1e-400", "12345678901234567.8"]
        {
            assert!(!is_double(number), "{number}");
        }
    }

    proptest! {
        #[test]
        fn every_double_is_one(double in any::<f64>().prop_filter("finite", |double| double.is_finite())) {
            let (short, exponent) = (format!("{double}"), format!("{double:e}"));
            prop_assert!(is_double(&short), "{}", short);
            prop_assert!(is_double(&exponent), "{}", exponent);
        }

        #[test]
        fn a_plain_number_keeps_its_value(digits in "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?", exponent in -30i32..30) {
            let number = format!("{digits}e{exponent}");
            let written = plain(&number);
            prop_assert!(!written.contains(['e', 'E']), "{}", written);
            prop_assert!(Parts::of(&written) == Parts::of(&number), "{} {}", number, written);
        }
    }
}
