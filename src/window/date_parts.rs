//! The parts that dates and times in text are made of: numbers of a fixed width, dates, times of
//! day, fractions of a second and offsets from UTC.
//!
//! Who reads a text decides which parts it has, and which hours, seconds and offsets exist: the
//! dates of the command line ([`parse_instant`](super::parse_instant)), values of raw files
//! (`types::times`), and names of raw files and folders (`layout`).

use chrono::NaiveDate;

/// The number that one to nine digits stand for, and nothing else.
#[inline]
pub(crate) fn number(digits: &[u8]) -> Option<u32> {
    if !(1..=9).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum * 10 + u32::from(byte - b'0')),
        _ => None,
    })
}

/// The date `yyyy-MM-dd`.
#[inline]
pub(crate) fn date(text: &[u8; 10]) -> Option<NaiveDate> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text else {
        return None;
    };
    let year = i32::try_from(number(&[y1, y2, y3, y4])?).ok()?;
    NaiveDate::from_ymd_opt(year, number(&[m1, m2])?, number(&[d1, d2])?)
}

/// The numbers of `HH:mm:ss`, which may be too large for a time of day.
#[inline]
pub(crate) fn clock(text: &[u8; 8]) -> Option<[u32; 3]> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *text else {
        return None;
    };
    Some([number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?])
}

/// The nanoseconds of a fraction of one to nine digits: `25` is a quarter of a second.
#[inline]
pub(crate) fn nanoseconds(digits: &[u8]) -> Option<u32> {
    match leading_nanoseconds(digits) {
        Some((nanoseconds, [])) => Some(nanoseconds),
        _ => None,
    }
}

/// The nanoseconds of a fraction of one to nine digits, and the text after it.
#[inline]
fn leading_nanoseconds(text: &[u8]) -> Option<(u32, &[u8])> {
    // What a digit is worth, by its place.
    const WORTH: [u32; 9] =
        [100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];
    let (mut nanoseconds, mut width) = (0, 0);
    for (byte, worth) in text.iter().zip(WORTH) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        nanoseconds += u32::from(digit) * worth;
        width += 1;
    }
    let rest = &text[width..];
    let is_longer = rest.first().is_some_and(u8::is_ascii_digit);
    if width == 0 || is_longer { None } else { Some((nanoseconds, rest)) }
}

/// The nanoseconds of a leading `.25`, 0 without one, and the text after it.
#[inline]
pub(crate) fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let [b'.', text @ ..] = text else {
        return Some((0, text));
    };
    leading_nanoseconds(text)
}

/// An offset from UTC as it is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Offset {
    /// Whether it is west of UTC.
    pub(crate) is_negative: bool,
    /// The hours, to 99.
    pub(crate) hours: u32,
    /// The minutes, to 99.
    pub(crate) minutes: u32,
}

impl Offset {
    /// The offset in seconds; negative west of UTC.
    pub(crate) fn seconds(&self) -> i32 {
        let seconds = (self.hours * 3600 + self.minutes * 60) as i32;
        if self.is_negative { -seconds } else { seconds }
    }
}

/// An offset written as `+02:00`, `+0200` or `+02`.
pub(crate) fn offset(text: &[u8]) -> Option<Offset> {
    let [sign @ (b'+' | b'-'), h1, h2, minutes @ ..] = text else {
        return None;
    };
    let minutes = match minutes {
        [] => 0,
        [b':', m1, m2] | [m1, m2] => number(&[*m1, *m2])?,
        _ => return None,
    };
    Some(Offset { is_negative: *sign == b'-', hours: number(&[*h1, *h2])?, minutes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        assert_eq!(number(b"007"), Some(7));
        assert_eq!(number(b"999999999"), Some(999_999_999));
        for text in ["", "1234567890", "+1", " 1", "1a", "١"] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_fraction_has_one_to_nine_digits() {
        assert_eq!(fraction(b".25Z"), Some((250_000_000, &b"Z"[..])));
        assert_eq!(fraction(b".123456789"), Some((123_456_789, &b""[..])));
        assert_eq!(fraction(b"+02"), Some((0, &b"+02"[..])));
        assert_eq!((fraction(b"."), fraction(b".Z"), fraction(b".1234567890")), (None, None, None));
        assert_eq!(fraction(b".000000001 x"), Some((1, &b" x"[..])));
        let each = ["25", "000000001", "", "1a", "1234567890", "+1"]
            .map(|text| nanoseconds(text.as_bytes()));
        assert_eq!(each, [Some(250_000_000), Some(1), None, None, None, None]);
    }

    #[test]
    fn an_offset_has_a_sign_hours_and_maybe_minutes() {
        for (text, seconds) in
            [("+02", 7200), ("-0430", -16200), ("+02:00", 7200), ("-99:99", -362_340)]
        {
            assert_eq!(
                offset(text.as_bytes()).map(|offset| offset.seconds()),
                Some(seconds),
                "{text}"
            );
        }
        for text in ["", "Z", "02:00", "+2", "+02:0", "+02-00", "+020"] {
            assert_eq!(offset(text.as_bytes()), None, "{text}");
        }
    }
}
