//! Half-open windows of time, and parsing of dates and durations.
//!
//! A window `[start, end)` contains its start but not its end, so adjacent windows neither overlap
//! nor leave a gap: a year of daily windows covers exactly the year. Everything here is UTC; local
//! times are converted where they are read ([`crate::layout`] and the event time of a pipeline).
//!
//! Pure: no clock, no environment, no I/O.

pub(crate) mod date_parts;
mod set;

use std::fmt;

use chrono::{DateTime, Duration, NaiveDate, NaiveTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

pub use set::WindowSet;

/// The formats that [`parse_instant`] accepts, as a hint for its error.
pub const ACCEPTED_DATES: &str = "write 2019-04-01, 2019-04-01T06:00:00Z or '2019-04-01 06:00:00' (all UTC), or name an offset: 2019-04-01T06:00:00+02:00";

/// The instants from `start` to just before `end`, UTC.
///
/// Windows from [`Window::new`] contain at least one instant, and every method preserves that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The first instant in the window.
    pub start: DateTime<Utc>,
    /// The first instant past the window.
    pub end: DateTime<Utc>,
}

impl Window {
    /// The window `[start, end)`.
    ///
    /// # Errors
    ///
    /// One line naming both ends if `start >= end`: such a window is empty.
    ///
    /// ```
    /// # use glueless::window::{Window, parse_instant};
    /// let day = parse_instant("2019-04-01")?;
    /// let refused = Window::new(day, day).unwrap_err();
    /// assert!(refused.contains("the end is exclusive"));
    /// # Ok::<(), String>(())
    /// ```
    pub fn new(start: DateTime<Utc>, end: DateTime<Utc>) -> Result<Window, String> {
        if start < end {
            return Ok(Window { start, end });
        }
        Err(format!(
            "start {} is not before end {}: the end is exclusive, so the window is empty",
            rfc3339(start),
            rfc3339(end)
        ))
    }

    /// Whether `instant` is in the window; `start` is, `end` is not.
    pub fn contains(&self, instant: DateTime<Utc>) -> bool {
        self.start <= instant && instant < self.end
    }

    /// Whether some instant is in both windows. Adjacent windows do not overlap.
    pub fn overlaps(&self, other: &Window) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether every instant of `other` is in this window.
    pub fn covers(&self, other: &Window) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The window extended by `duration` on both sides, up to chrono's first and last instant. A
    /// negative duration adds nothing: a window never shrinks.
    pub fn widened_by(&self, duration: Duration) -> Window {
        let duration = duration.max(Duration::zero());
        Window {
            start: self.start.checked_sub_signed(duration).unwrap_or(DateTime::<Utc>::MIN_UTC),
            end: self.end.checked_add_signed(duration).unwrap_or(DateTime::<Utc>::MAX_UTC),
        }
    }

    /// The window that contains one instant only.
    pub fn instant(at: DateTime<Utc>) -> Window {
        Window { start: at, end: at + Duration::nanoseconds(1) }
    }

    /// The window with a look-back before its start, from chrono's first instant on.
    pub fn with_lookback(&self, lookback: Duration) -> Window {
        let start = self.start.checked_sub_signed(lookback).unwrap_or(DateTime::<Utc>::MIN_UTC);
        Window { start, end: self.end }
    }

    /// The window of a day, UTC.
    pub fn day(day: NaiveDate) -> Window {
        let start = day.and_time(NaiveTime::MIN).and_utc();
        Window { start, end: start + Duration::days(1) }
    }

    /// Every UTC day with an instant in the window, ascending. If the window ends at midnight, the
    /// day that begins there is not included.
    pub fn days(&self) -> impl Iterator<Item = NaiveDate> + use<> {
        let end = self.end;
        self.start
            .date_naive()
            .iter_days()
            .take_while(move |day| day.and_time(NaiveTime::MIN).and_utc() < end)
    }

    /// The intersection of two windows, if they overlap.
    pub fn intersection(&self, other: &Window) -> Option<Window> {
        let common = Window { start: self.start.max(other.start), end: self.end.min(other.end) };
        self.overlaps(other).then_some(common)
    }

    /// The smallest window that covers both.
    pub fn span(&self, other: &Window) -> Window {
        Window { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// Formats as `[2019-04-01T00:00:00Z, 2019-04-02T00:00:00Z)`, with a fraction only if it is not
/// zero.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", rfc3339(self.start), rfc3339(self.end))
    }
}

/// An instant in RFC 3339: `2019-04-01T06:00:00Z`.
fn rfc3339(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Parses a date or a time: `2019-04-01` (its midnight), `2019-04-01T06:00:00` or
/// `2019-04-01 06:00:00`, with an optional fraction of up to nine digits and an optional `Z` or
/// offset such as `+02:00`. Without an offset it is UTC.
///
/// Every field must have its full width: chrono alone would take `19-04-01` for the year 19.
///
/// # Errors
///
/// One lower-case line that names `text`; [`ACCEPTED_DATES`] is the hint for it.
///
/// ```
/// # use glueless::window::parse_instant;
/// assert_eq!(
///     parse_instant("2019-04-01 06:00:00+02:00"),
///     parse_instant("2019-04-01T04:00:00Z"),
/// );
/// assert_eq!(parse_instant("2019-13-01"), Err("`2019-13-01` is not a date".to_owned()));
/// ```
pub fn parse_instant(text: &str) -> Result<DateTime<Utc>, String> {
    instant(text).ok_or_else(|| format!("`{text}` is not a date"))
}

fn instant(text: &str) -> Option<DateTime<Utc>> {
    let (date, rest) = text.as_bytes().split_first_chunk()?;
    let day = date_parts::date(date)?;
    let [b'T' | b't' | b' ', time @ ..] = rest else {
        return rest.is_empty().then(|| day.and_time(NaiveTime::MIN).and_utc());
    };
    let (clock, rest) = time.split_first_chunk()?;
    let [hour, minute, second] = date_parts::clock(clock)?;
    let (nanos, zone) = date_parts::fraction(rest)?;
    let local = day.and_hms_nano_opt(hour, minute, second, nanos)?;
    let offset_seconds = match zone {
        b"" | b"Z" | b"z" => 0,
        _ => {
            let exists = |offset: &date_parts::Offset| offset.hours < 24 && offset.minutes < 60;
            date_parts::offset(zone).filter(exists)?.seconds()
        }
    };
    Some(local.checked_sub_signed(Duration::seconds(offset_seconds.into()))?.and_utc())
}

/// Parses a duration: a whole number and `w`, `d`, `h`, `m` (minutes) or `s`, such as `2d`; also a
/// plain `0`. Days are 24 hours.
///
/// # Errors
///
/// One lower-case line that names `text`: not a duration (with the accepted format), negative, or
/// too long for chrono.
///
/// ```
/// # use glueless::window::parse_duration;
/// assert_eq!(parse_duration("2d"), parse_duration("48h"));
/// assert!(parse_duration("2 days").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::zero());
    }
    if text.starts_with('-') {
        return Err(format!("`{text}` is negative: a duration is 0 or more"));
    }
    let width = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(width);
    let unit_seconds = match unit {
        "w" => 7 * 86_400,
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => 0,
    };
    if count.is_empty() || unit_seconds == 0 {
        return Err(format!(
            "`{text}` is not a duration: write a whole number and w, d, h, m or s, such as 2d"
        ));
    }
    count
        .parse::<i64>()
        .ok()
        .and_then(|count| count.checked_mul(unit_seconds))
        .and_then(Duration::try_seconds)
        .ok_or_else(|| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        parse_instant(text).unwrap()
    }

    fn window(start: &str, end: &str) -> Window {
        Window::new(at(start), at(end)).unwrap()
    }

    fn days(start: &str, end: &str) -> Vec<String> {
        let days = window(start, end).days();
        days.map(|day| day.to_string()).collect()
    }

    #[test]
    fn a_window_is_written_half_open_and_in_utc() {
        let day = window("2019-04-01", "2019-04-02");
        assert_eq!(day.to_string(), "[2019-04-01T00:00:00Z, 2019-04-02T00:00:00Z)");
        let part = window("2019-04-01T00:00:00.25Z", "2019-04-01T02:00:00.000001Z");
        assert_eq!(part.to_string(), "[2019-04-01T00:00:00.250Z, 2019-04-01T02:00:00.000001Z)");
    }

    #[test]
    fn an_empty_window_is_refused_with_both_ends() {
        let (first, second) = (at("2019-04-01"), at("2019-04-02"));
        assert_eq!(
            Window::new(second, first).unwrap_err(),
            "start 2019-04-02T00:00:00Z is not before end 2019-04-01T00:00:00Z: \
             the end is exclusive, so the window is empty"
        );
        assert!(Window::new(first, first).is_err());
        assert!(Window::new(first, first + Duration::nanoseconds(1)).is_ok());
    }

    #[test]
    fn the_start_is_in_and_the_end_is_out() {
        let day = window("2019-04-01", "2019-04-02");
        assert!(day.contains(at("2019-04-01")));
        assert!(day.contains(at("2019-04-01T23:59:59.999999999Z")));
        assert!(!day.contains(at("2019-04-02")));
        assert!(!day.contains(at("2019-03-31T23:59:59.999999999Z")));
    }

    #[test]
    fn adjacent_windows_do_not_overlap() {
        let day = window("2019-04-01", "2019-04-02");
        assert!(!day.overlaps(&window("2019-04-02", "2019-04-03")));
        assert!(!day.overlaps(&window("2019-03-31", "2019-04-01")));
        assert!(day.overlaps(&window("2019-04-01T23:59:59Z", "2019-04-03")));
        assert!(day.overlaps(&window("2019-03-01", "2019-05-01")));
        assert!(day.overlaps(&window("2019-04-01T01:00:00Z", "2019-04-01T02:00:00Z")));
    }

    #[test]
    fn a_window_covers_itself_and_its_parts_only() {
        let day = window("2019-04-01", "2019-04-02");
        assert!(day.covers(&day));
        assert!(day.covers(&window("2019-04-01", "2019-04-01T01:00:00Z")));
        assert!(day.covers(&window("2019-04-01T23:00:00Z", "2019-04-02")));
        assert!(!day.covers(&window("2019-04-01T23:00:00Z", "2019-04-02T00:00:01Z")));
        assert!(!day.covers(&window("2019-03-31T23:59:59Z", "2019-04-02")));
    }

    #[test]
    fn widening_adds_to_both_sides_and_never_shrinks() {
        let day = window("2019-04-01", "2019-04-02");
        assert_eq!(day.widened_by(Duration::days(2)), window("2019-03-30", "2019-04-04"));
        assert_eq!(day.widened_by(Duration::zero()), day);
        assert_eq!(day.widened_by(Duration::days(-9)), day);
    }

    #[test]
    fn widening_stops_at_the_ends_of_time_and_can_still_be_printed() {
        let all = window("2019-04-01", "2019-04-02").widened_by(Duration::MAX);
        assert_eq!(all.start, DateTime::<Utc>::MIN_UTC);
        assert_eq!(all.end, DateTime::<Utc>::MAX_UTC);
        assert!(all.to_string().starts_with("[-262143-01-01T00:00:00Z, "));
        assert_eq!(all.days().next(), Some(all.start.date_naive()));
    }

    #[test]
    fn an_end_at_midnight_does_not_touch_that_day() {
        assert_eq!(days("2019-04-01", "2019-04-02"), ["2019-04-01"]);
        assert_eq!(
            days("2019-04-01", "2019-04-02T00:00:00.000000001Z"),
            ["2019-04-01", "2019-04-02"]
        );
    }

    #[test]
    fn days_are_ascending_and_cross_months_and_leap_days() {
        assert_eq!(
            days("2020-02-28T23:59:59Z", "2020-03-01T00:00:01Z"),
            ["2020-02-28", "2020-02-29", "2020-03-01"]
        );
        assert_eq!(days("2019-04-01T05:00:00Z", "2019-04-01T06:00:00Z"), ["2019-04-01"]);
        assert_eq!(days("2019-01-01", "2020-01-01").len(), 365);
        assert_eq!(days("1969-12-31T23:00:00Z", "1970-01-01T01:00:00Z").len(), 2);
    }

    #[test]
    fn a_span_covers_the_gap_between_two_windows() {
        let (early, late) =
            (window("2019-04-01", "2019-04-02"), window("2019-04-05", "2019-04-06"));
        let both = window("2019-04-01", "2019-04-06");
        assert_eq!(early.span(&late), both);
        assert_eq!(late.span(&early), both);
        assert_eq!(both.span(&early), both);
    }

    #[test]
    fn every_accepted_form_of_a_date_is_read() {
        let midnight = "2019-04-01T00:00:00+00:00";
        let six = "2019-04-01T06:00:00+00:00";
        for (text, meant) in [
            ("2019-04-01", midnight),
            ("2019-04-01T00:00:00Z", midnight),
            ("2019-04-01T06:00:00Z", six),
            ("2019-04-01T06:00:00", six),
            ("2019-04-01 06:00:00", six),
            ("2019-04-01 06:00:00Z", six),
            ("2019-04-01t06:00:00z", six),
            ("2019-04-01T06:00:00.000Z", six),
            ("2019-04-01T08:00:00+02:00", six),
            ("2019-04-01 08:00:00+0200", six),
            ("2019-04-01 08:00:00+02", six),
            ("2019-04-01T00:30:00-05:30", six),
            ("2019-04-01T06:00:00-00:00", six),
            ("2019-03-31T22:00:00-02:00", midnight),
            ("2019-04-01 06:00:00.123456", "2019-04-01T06:00:00.123456+00:00"),
            ("2019-04-01T06:00:00.5+00:00", "2019-04-01T06:00:00.500+00:00"),
            ("2019-04-01T06:00:00.000000001Z", "2019-04-01T06:00:00.000000001+00:00"),
            ("2020-02-29", "2020-02-29T00:00:00+00:00"),
        ] {
            assert_eq!(at(text).to_rfc3339(), meant, "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_a_date_and_is_named() {
        for text in [
            "",
            "today",
            "2019-13-01",
            "2019-02-29",
            "2019-04-31",
            "2019-04-00",
            "2019-4-1",
            "2019-4-001",
            "19-04-01",
            "+019-04-01",
            "2019-04",
            "20190401",
            "2019/04/01",
            "2019-04-01T",
            "2019-04-01T06",
            "2019-04-01T06:00",
            "2019-04-01T6:00:00",
            "2019-04-01T24:00:00Z",
            "2019-04-01T06:60:00Z",
            "2019-04-01T06:00:60Z",
            "2019-04-01T06:00:00.Z",
            "2019-04-01T06:00:00.0123456789Z",
            "2019-04-01T06:00:00Z ",
            " 2019-04-01",
            "2019-04-01Z",
            "2019-04-01_06:00:00",
            "2019-04-01T06:00:00+24:00",
            "2019-04-01T06:00:00+02:60",
            "2019-04-01T06:00:00+2",
            "2019-04-01T06:00:00+02:",
            "2019-04-01T06:00:00+02:00:00",
            "2019-04-01T06:00:00+02:00Z",
            "2019-04-01T06:00:00 Europe/Berlin",
            "2019-04-0é",
            "２０１９-04-01",
        ] {
            assert_eq!(parse_instant(text), Err(format!("`{text}` is not a date")), "{text}");
        }
    }

    #[test]
    fn the_dates_in_the_hint_are_accepted() {
        let dates = ACCEPTED_DATES
            .split(['\'', '(', ')', ' '])
            .map(|word| word.trim_end_matches(','))
            .filter(|word| word.starts_with("2019"));
        let mut count = 0;
        for date in dates {
            assert!(parse_instant(date).is_ok(), "{date}");
            count += 1;
        }
        assert_eq!(count, 4);
        assert!(ACCEPTED_DATES.contains("'2019-04-01 06:00:00'"));
    }

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, seconds) in [
            ("0", 0),
            ("0d", 0),
            ("90s", 90),
            ("30m", 1_800),
            ("6h", 21_600),
            ("2d", 172_800),
            ("1w", 604_800),
            ("007d", 604_800),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::seconds(seconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_a_duration_and_is_named() {
        for text in ["", "d", "2", "2 d", "2D", "2days", "+2d", "1.5h", "2d6h", "P2D", "２d", "00"]
        {
            let error = parse_duration(text).unwrap_err();
            assert!(error.starts_with(&format!("`{text}` is not a duration: ")), "{error}");
        }
        assert_eq!(
            parse_duration("-2d"),
            Err("`-2d` is negative: a duration is 0 or more".to_owned())
        );
        // Unchecked, the last one would wrap around to a week.
        for text in ["99999999999999999999s", "99999999999999999w", "30500568904944w"] {
            assert_eq!(parse_duration(text), Err(format!("`{text}` is too long")));
        }
    }
}
