//! Time columns: text or timestamps of any unit are converted to nanoseconds since 1970 UTC.
//!
//! Nanoseconds have 128 bits, because the year 9999 does not fit into 64.

use arrow::array::{Array, ArrayRef, AsArray, Date32Array};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};

use crate::window::{Window, date_parts};

/// Nanoseconds in a day.
pub(crate) const DAY_NS: i128 = 86_400_000_000_000;

/// A timestamp's value in nanoseconds.
#[inline]
pub(crate) fn nanoseconds(value: i64, unit: TimeUnit) -> i128 {
    let factor = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    i128::from(value) * factor
}

/// The day of an instant, as Arrow's `Date32`: days since 1970, UTC.
#[inline]
pub(crate) fn day_of(time_ns: i128) -> i32 {
    // A division of 64 bits is many times as fast as one of 128; 64 bits reach from 1677 to 2262.
    match i64::try_from(time_ns) {
        Ok(ns) => ns.div_euclid(DAY_NS as i64) as i32,
        Err(_) => time_ns.div_euclid(DAY_NS) as i32,
    }
}

/// The day of an instant in microseconds since 1970, as [`day_of`].
pub(crate) fn day_of_us(instant: i64) -> i32 {
    day_of(i128::from(instant) * 1000)
}

/// The day of an instant in a zone, as [`day_of`].
pub(crate) fn day_in(time_ns: i128, zone: Tz) -> i32 {
    let seconds = i64::try_from(time_ns.div_euclid(1_000_000_000)).ok();
    let instant = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    match instant {
        Some(instant) if zone != Tz::UTC => {
            let offset = zone.offset_from_utc_datetime(&instant.naive_utc()).fix();
            day_of(time_ns + i128::from(offset.local_minus_utc()) * 1_000_000_000)
        }
        _ => day_of(time_ns),
    }
}

/// The window of a day in a zone: from its first to its last instant. `None` if the zone has no
/// such day, as when its clocks were set forward by a day.
pub(crate) fn day_window(day: NaiveDate, zone: Tz) -> Option<Window> {
    if zone == Tz::UTC {
        return Some(Window::day(day));
    }
    let midnight = |day: NaiveDate| day.and_time(NaiveTime::MIN);
    let start = resolve_local(midnight(day), zone)?.to_utc();
    let next = midnight(day.succ_opt()?);
    // Where clocks are set back over midnight, the day ends at the second one.
    let end = zone.from_local_datetime(&next).latest().or_else(|| resolve_local(next, zone))?;
    Window::new(start, end.to_utc()).ok()
}

/// Every day of a zone with an instant in a window, ascending.
pub(crate) fn days_in_window(window: &Window, zone: Tz) -> Vec<NaiveDate> {
    if zone == Tz::UTC {
        return window.days().collect();
    }
    // No zone is a day and a half from UTC.
    let days = window.widened_by(Duration::hours(36)).days();
    let is_in =
        |day: &NaiveDate| day_window(*day, zone).is_some_and(|of_day| of_day.overlaps(window));
    days.filter(is_in).collect()
}

/// Whether a column of this type can be read as times.
pub(crate) fn is_time_type(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Timestamp(_, _)
            | DataType::Date32
            | DataType::Date64
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
    )
}

/// Whether values of a column can be dates without a time.
pub(crate) fn may_be_dates(column: &ArrayRef) -> bool {
    use DataType::{Date32, LargeUtf8, Utf8, Utf8View};
    matches!(column.data_type(), Date32 | Utf8 | LargeUtf8 | Utf8View)
}

/// Converts a column to nanoseconds since 1970 UTC; nulls stay null. A time without a zone is local
/// time of `zone`.
///
/// # Errors
/// The index of the first value that is not a time.
pub(crate) fn times_ns(column: &ArrayRef, zone: Tz) -> Result<Vec<Option<i128>>, usize> {
    macro_rules! plain {
        ($kind:ty, $to_ns:expr) => {{
            let array = column.as_primitive::<$kind>();
            let to_ns = $to_ns;
            if array.null_count() == 0 {
                array.values().iter().map(|value| Some(to_ns(*value))).collect()
            } else {
                array.iter().map(|value| value.map(to_ns)).collect()
            }
        }};
    }
    let (times, zoned): (Vec<Option<i128>>, bool) = match column.data_type() {
        DataType::Timestamp(unit, stored_zone) => {
            let unit = *unit;
            let to_ns = move |value| nanoseconds(value, unit);
            let times = match unit {
                TimeUnit::Second => plain!(TimestampSecondType, to_ns),
                TimeUnit::Millisecond => plain!(TimestampMillisecondType, to_ns),
                TimeUnit::Microsecond => plain!(TimestampMicrosecondType, to_ns),
                TimeUnit::Nanosecond => plain!(TimestampNanosecondType, to_ns),
            };
            (times, stored_zone.is_some())
        }
        // A date is the same date in every zone.
        DataType::Date32 => (plain!(Date32Type, |day: i32| i128::from(day) * DAY_NS), true),
        DataType::Date64 => {
            (plain!(Date64Type, |ms| nanoseconds(ms, TimeUnit::Millisecond)), false)
        }
        DataType::Utf8 => return texts_ns(column.as_string::<i32>().iter(), zone),
        DataType::LargeUtf8 => return texts_ns(column.as_string::<i64>().iter(), zone),
        DataType::Utf8View => return texts_ns(column.as_string_view().iter(), zone),
        _ => return Err(0),
    };
    if zoned || zone == Tz::UTC {
        return Ok(times);
    }
    times
        .into_iter()
        .enumerate()
        .map(|(index, time)| time.map(|ns| local_to_utc(ns, zone).ok_or(index)).transpose())
        .collect()
}

/// An instant in nanoseconds.
pub(crate) fn instant_ns(instant: DateTime<Utc>) -> i128 {
    nanoseconds(instant.timestamp(), TimeUnit::Second)
        + i128::from(instant.timestamp_subsec_nanos())
}

/// Converts a column of instants to nanoseconds since 1970 UTC; nulls stay null. With `unit_ns` they
/// are integers, each a number of units of so many nanoseconds; without it they are UTC.
///
/// # Errors
/// The index of the first value that is not a time, or out of range.
pub(crate) fn instants_ns(
    column: &ArrayRef,
    unit_ns: Option<i128>,
) -> Result<Vec<Option<i128>>, usize> {
    let Some(unit_ns) = unit_ns else {
        return times_ns(column, Tz::UTC);
    };
    let numbers = cast(column, &DataType::Decimal128(38, 0)).map_err(|_| 0usize)?;
    let numbers = numbers.as_primitive::<Decimal128Type>().iter().enumerate();
    numbers
        .map(|(index, number)| number.map(|n| n.checked_mul(unit_ns).ok_or(index)).transpose())
        .collect()
}

fn texts_ns<'a>(
    texts: impl ExactSizeIterator<Item = Option<&'a str>>,
    zone: Tz,
) -> Result<Vec<Option<i128>>, usize> {
    let mut parser = TimeParser::new(zone);
    let mut times = Vec::with_capacity(texts.len());
    for (index, text) in texts.enumerate() {
        times.push(match text {
            None => None,
            Some(text) => Some(parser.parse(text).ok_or(index)?),
        });
    }
    Ok(times)
}

/// The days of a column of times in `day_zone`; a date without a time is that day in every zone. A
/// time without a zone is local time of `zone`.
///
/// # Errors
/// As [`times_ns`].
pub(crate) fn days_of(column: &ArrayRef, zone: Tz, day_zone: Tz) -> Result<Date32Array, usize> {
    if day_zone != Tz::UTC {
        return match column.data_type() {
            DataType::Date32 => Ok(column.as_primitive::<Date32Type>().clone()),
            DataType::Utf8 => text_days(column.as_string::<i32>().iter(), zone, day_zone),
            DataType::LargeUtf8 => text_days(column.as_string::<i64>().iter(), zone, day_zone),
            DataType::Utf8View => text_days(column.as_string_view().iter(), zone, day_zone),
            _ => {
                let times = times_ns(column, zone)?.into_iter();
                Ok(times.map(|time| time.map(|ns| day_in(ns, day_zone))).collect())
            }
        };
    }
    // These need no conversion to nanoseconds.
    macro_rules! by_unit {
        ($kind:ty, $per_day:expr) => {
            Ok(column.as_primitive::<$kind>().unary(|value| value.div_euclid($per_day) as i32))
        };
    }
    match column.data_type() {
        DataType::Timestamp(unit, stored_zone) if stored_zone.is_some() || zone == Tz::UTC => {
            match unit {
                TimeUnit::Second => by_unit!(TimestampSecondType, 86_400),
                TimeUnit::Millisecond => by_unit!(TimestampMillisecondType, 86_400_000),
                TimeUnit::Microsecond => by_unit!(TimestampMicrosecondType, 86_400_000_000),
                TimeUnit::Nanosecond => by_unit!(TimestampNanosecondType, 86_400_000_000_000),
            }
        }
        _ => {
            let times = times_ns(column, zone)?;
            Ok(times.into_iter().map(|time| time.map(day_of)).collect())
        }
    }
}

fn text_days<'a>(
    texts: impl Iterator<Item = Option<&'a str>>,
    zone: Tz,
    day_zone: Tz,
) -> Result<Date32Array, usize> {
    let mut parser = TimeParser::new(zone);
    let day = |(index, text): (usize, Option<&str>)| {
        let Some(text) = text else {
            return Ok(None);
        };
        let time = parser.parse(text).ok_or(index)?;
        let is_date = text.trim_ascii().len() == DATE_BYTES;
        Ok(Some(if is_date { day_of(time) } else { day_in(time, day_zone) }))
    };
    texts.enumerate().map(day).collect()
}

/// The length of a date without a time.
const DATE_BYTES: usize = 10;

/// Parses a time: `yyyy-MM-dd HH:mm:ss`, with up to nine digits of fraction, with `T` instead of
/// the space, with a zone (`Z`, `+02`, `+02:00`) or without; or a date alone. A time without a zone
/// is local time of `zone`. Returns nanoseconds since 1970 UTC.
pub(crate) fn parse_time(text: &str, zone: Tz) -> Option<i128> {
    TimeParser::new(zone).parse(text)
}

/// Parses times and caches the last second, which adjacent rows mostly share.
struct TimeParser {
    zone: Tz,
    /// The cached second, `yyyy-MM-dd HH:mm:ss`.
    second: [u8; 19],
    second_ns: i128,
}

impl TimeParser {
    fn new(zone: Tz) -> Self {
        TimeParser { zone, second: [b' '; 19], second_ns: 0 }
    }

    fn parse(&mut self, text: &str) -> Option<i128> {
        let bytes = text.trim_ascii().as_bytes();
        if bytes.first_chunk() != Some(&self.second) {
            if bytes.len() == DATE_BYTES {
                // A date is the same date in every zone.
                return date_ns(bytes.first_chunk()?);
            }
            let Some(second) = bytes.first_chunk() else {
                // A date with a zone.
                return self.in_zone(date_ns(bytes.first_chunk()?)?, &bytes[10..]);
            };
            match second_ns(second) {
                Some(ns) => (self.second, self.second_ns) = (*second, ns),
                None => return self.in_zone(date_ns(bytes.first_chunk()?)?, &bytes[10..]),
            }
        }
        let (nanos, zone) = date_parts::fraction(&bytes[19..])?;
        self.in_zone(self.second_ns + i128::from(nanos), zone)
    }

    /// Converts a local time in the zone written in `rest` to UTC.
    fn in_zone(&self, local: i128, rest: &[u8]) -> Option<i128> {
        match rest {
            [] if self.zone == Tz::UTC => Some(local),
            [] => local_to_utc(local, self.zone),
            [b'Z'] => Some(local),
            written => {
                Some(local - i128::from(date_parts::offset(written)?.seconds()) * 1_000_000_000)
            }
        }
    }
}

/// The start of a date, `yyyy-MM-dd`, in nanoseconds since 1970.
fn date_ns(date: &[u8; 10]) -> Option<i128> {
    let midnight = date_parts::date(date)?.and_time(NaiveTime::MIN).and_utc();
    Some(i128::from(midnight.timestamp()) * 1_000_000_000)
}

/// The start of a second, `yyyy-MM-dd HH:mm:ss`, in nanoseconds since 1970.
fn second_ns(second: &[u8; 19]) -> Option<i128> {
    let (date, time) = second.split_first_chunk()?;
    let [b' ' | b'T', clock @ ..] = time else {
        return None;
    };
    let [hour, minute, second] = date_parts::clock(clock.first_chunk()?)?;
    // A second of 60 is a leap second, read as the first second of the next minute.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = i128::from(hour * 3600 + minute * 60 + second);
    Some(date_ns(date)? + seconds * 1_000_000_000)
}

/// Converts a local time, in nanoseconds since 1970 on the local clock, to UTC. An ambiguous time
/// is the earlier instant; a time in a gap is moved forward by the gap.
fn local_to_utc(local_ns: i128, zone: Tz) -> Option<i128> {
    let seconds = i64::try_from(local_ns.div_euclid(1_000_000_000)).ok()?;
    let fraction = local_ns.rem_euclid(1_000_000_000);
    let local = DateTime::from_timestamp(seconds, 0)?.naive_utc();
    let utc = resolve_local(local, zone)?;
    Some(i128::from(utc.timestamp()) * 1_000_000_000 + fraction)
}

/// A local time as an instant; see [`TimeZone::from_local_datetime`] for what can go wrong.
fn resolve_local(local: NaiveDateTime, zone: Tz) -> Option<DateTime<Tz>> {
    match zone.from_local_datetime(&local).earliest() {
        Some(found) => Some(found),
        None => {
            // In a gap: use the offset before it.
            let (_, before) = GapInfo::new(&local, &zone)?.begin?;
            Some(zone.from_utc_datetime(&(local - before.fix())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        StringViewArray, TimestampMicrosecondArray, TimestampMillisecondArray,
        TimestampNanosecondArray,
    };
    use proptest::prelude::*;
    use std::sync::Arc;

    fn utc(text: &str) -> Option<i128> {
        parse_time(text, Tz::UTC)
    }

    #[test]
    fn text_is_read_in_every_accepted_form() {
        let noon = Some(1_554_120_600 * 1_000_000_000);
        for text in [
            "2019-04-01 12:10:00",
            "2019-04-01T12:10:00",
            "2019-04-01 12:10:00.000000",
            "2019-04-01T12:10:00Z",
            "2019-04-01 14:10:00+02",
            "2019-04-01 14:10:00+02:00",
            "2019-04-01 07:40:00-0430",
        ] {
            assert_eq!(utc(text), noon, "{text}");
        }
        assert_eq!(utc("2019-04-01 12:10:00.5"), noon.map(|ns| ns + 500_000_000));
        assert_eq!(utc("2019-04-01 12:10:00.123456789"), noon.map(|ns| ns + 123_456_789));
        assert_eq!(utc("1970-01-02"), Some(DAY_NS));
    }

    #[test]
    fn text_that_is_not_a_time_is_refused() {
        for text in [
            "",
            "2019",
            "2019-04-01 ",
            "2019-4-1 12:10:00",
            "2019-02-30 00:00:00",
            "2019-04-01 24:00:00",
            "2019-04-01 12:60:00",
            "2019-04-01 12:10",
            "2019-04-01 12:10:00.",
            "2019-04-01 12:10:00.1234567890",
            "2019-04-01 12:10:00 x",
            "20190401 121000",
            "2019-04-01 12:10:00+2",
            "٢٠١٩-04-01",
        ] {
            // a trailing space is trimmed: a date alone
            assert_eq!(
                utc(text),
                (text == "2019-04-01 ").then_some(1_554_076_800_000_000_000),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_first_and_last_years_are_exact() {
        assert_eq!(utc("9999-12-31 23:59:59.999999"), Some(253_402_300_799_999_999_000));
        assert_eq!(utc("1969-12-31 23:59:59"), Some(-1_000_000_000));
        assert_eq!(utc("0001-01-01 00:00:00"), Some(-62_135_596_800_000_000_000));
        assert_eq!(day_of(-1), -1);
        assert_eq!(day_of(utc("9999-12-31").expect("a time")), 2_932_896);
    }

    #[test]
    fn a_zone_is_applied_to_times_without_one_only() {
        let berlin: Tz = "Europe/Berlin".parse().expect("a zone");
        assert_eq!(parse_time("2021-07-01 02:00:00", berlin), utc("2021-07-01 00:00:00"));
        assert_eq!(parse_time("2021-07-01 02:00:00Z", berlin), utc("2021-07-01 02:00:00"));
        // 02:30 occurs twice on the day summer time ends, and not at all on the day it begins
        assert_eq!(parse_time("2021-10-31 02:30:00", berlin), utc("2021-10-31 00:30:00"));
        assert_eq!(parse_time("2021-03-28 02:30:00", berlin), utc("2021-03-28 01:30:00"));
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]));
        assert_eq!(times_ns(&column, berlin), Ok(vec![Some(-3_600_000_000_000)]));
        let column: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC"));
        assert_eq!(times_ns(&column, berlin), Ok(vec![Some(0)]));
    }

    #[test]
    fn all_units_agree() {
        let ms: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(-1), None]));
        let us: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(-1000), None]));
        let ns: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![Some(-1_000_000), None]));
        for column in [ms, us, ns] {
            assert_eq!(times_ns(&column, Tz::UTC), Ok(vec![Some(-1_000_000), None]));
        }
    }

    #[test]
    fn the_error_is_the_index_of_the_first_bad_value() {
        let column: ArrayRef = Arc::new(StringViewArray::from(vec![
            Some("2019-04-01"),
            None,
            Some("soon"),
            Some("x"),
        ]));
        assert_eq!(times_ns(&column, Tz::UTC), Err(2));
    }

    #[test]
    fn days_are_those_of_the_times() {
        let zones: [Tz; 2] = [Tz::UTC, "Asia/Tokyo".parse().expect("a zone")];
        let day_us = 86_400_000_000i64;
        let times = vec![Some(-1), Some(0), None, Some(day_us - 1), Some(day_us)];
        let us: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times));
        for unit in
            [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond]
        {
            for stored in [None, Some("UTC".into())] {
                let kind = DataType::Timestamp(unit, stored);
                let column = arrow::compute::cast(&us, &kind).expect("cast");
                for (zone, day_zone) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (zone, day_zone) = (zones[zone], zones[day_zone]);
                    let times = times_ns(&column, zone).expect("times").into_iter();
                    let day = |ns| day_in(ns, day_zone);
                    let days: Date32Array = times.map(|time| time.map(day)).collect();
                    let found = days_of(&column, zone, day_zone);
                    assert_eq!(found, Ok(days), "{kind} in {zone}, {day_zone}");
                }
            }
        }
    }

    #[test]
    fn a_date_is_the_same_day_in_every_zone() {
        let tokyo: Tz = "Asia/Tokyo".parse().expect("a zone");
        let york: Tz = "America/New_York".parse().expect("a zone");
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![
            Some("1970-01-02"),
            Some(" 1970-01-02 "),
            Some("1970-01-02 00:00:00"),
            None,
        ]));
        let days = |zone, day_zone| days_of(&texts, zone, day_zone).expect("days");
        let expected = |last| Date32Array::from(vec![Some(1), Some(1), Some(last), None]);
        assert_eq!(days(Tz::UTC, york), expected(0));
        assert_eq!(days(york, york), expected(1));
        assert_eq!(days(tokyo, york), expected(0));
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![Some(7), None]));
        for day_zone in [Tz::UTC, tokyo, york] {
            let found = days_of(&dates, tokyo, day_zone).expect("days");
            assert_eq!(found, Date32Array::from(vec![Some(7), None]));
        }
    }

    #[test]
    fn the_window_of_a_day_is_as_long_as_the_day() {
        let hours = |day: &str, zone: &str| {
            let zone = zone.parse().expect("a zone");
            let window = day_window(day.parse().expect("a day"), zone)?;
            Some((window.end - window.start).num_minutes())
        };
        assert_eq!(hours("2021-03-28", "Europe/Berlin"), Some(23 * 60));
        assert_eq!(hours("2021-10-31", "Europe/Berlin"), Some(25 * 60));
        assert_eq!(hours("2021-10-31", "UTC"), Some(24 * 60));
        // Midnight does not exist, or comes twice; a day does not exist.
        assert_eq!(hours("2018-11-04", "America/Sao_Paulo"), Some(23 * 60));
        assert_eq!(hours("2018-02-17", "America/Sao_Paulo"), Some(25 * 60));
        assert_eq!(hours("2006-10-28", "America/St_Johns"), Some(25 * 60));
        assert_eq!(hours("2011-12-30", "Pacific/Apia"), None);
        assert_eq!(hours("2011-12-31", "Pacific/Apia"), Some(24 * 60));
    }

    /// Zones whose clocks are set at night, at midnight, just after it, by half an hour, by a day.
    const ZONES: [&str; 7] = [
        "UTC",
        "Europe/Berlin",
        "America/Sao_Paulo",
        "America/St_Johns",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "America/Nuuk",
    ];

    proptest! {
        #[test]
        fn an_instant_is_in_the_window_of_its_day(
            zone in prop::sample::select(&ZONES[..]),
            seconds in 0i64..2_000_000_000,
            length in 1i64..200_000,
        ) {
            let zone: Tz = zone.parse().expect("a zone");
            let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("in range");
            let window = Window::new(at(seconds), at(seconds + length)).expect("a window");
            let days = days_in_window(&window, zone);
            prop_assert!(days.is_sorted());
            for second in [seconds, seconds + length / 2, seconds + length - 1] {
                let day = day_in(i128::from(second) * 1_000_000_000, zone);
                let local = zone.from_utc_datetime(&at(second).naive_utc()).date_naive();
                prop_assert_eq!(i64::from(day), (local - NaiveDate::default()).num_days());
                prop_assert!(day_window(local, zone).expect("a day").contains(at(second)));
                prop_assert!(days.contains(&local));
            }
        }

        #[test]
        fn every_local_time_is_an_instant(
            zone in prop::sample::select(&ZONES[..]),
            seconds in 0i64..2_000_000_000,
        ) {
            let zone: Tz = zone.parse().expect("a zone");
            let local = DateTime::from_timestamp(seconds, 0).expect("in range").naive_utc();
            let found = resolve_local(local, zone).expect("an instant").naive_local();
            prop_assert!(found == local || zone.from_local_datetime(&local).earliest().is_none());
        }

        #[test]
        fn text_is_read_as_chrono_reads_it(seconds in -62_135_596_800i64..253_402_300_800, us in 0u32..1_000_000) {
            let time = DateTime::from_timestamp(seconds, us * 1000).expect("in range");
            let text = time.format("%Y-%m-%d %H:%M:%S%.6f").to_string();
            prop_assert_eq!(utc(&text), Some(i128::from(seconds) * 1_000_000_000 + i128::from(us) * 1000));
        }
    }
}
