//! Names of raw files and their date folders, as AWS DMS and similar tools write them.
//!
//! DMS writes one of five sequences with one of four delimiters (user guide, "Using date-based
//! folder partitioning"; settings `DatePartitionSequence` and `DatePartitionDelimiter`):
//!
//! | sequence | `SLASH` | `UNDERSCORE`, `DASH` | `NONE` |
//! |---|---|---|---|
//! | `YYYYMMDD` | `2021/11/23` | `2021_11_23` | `20211123` |
//! | `YYYYMMDDHH` | `2021/11/23/01` | `2021_11_23_01` | `2021112301` |
//! | `YYYYMM` | `2021/11` | `2021_11` | `202111` |
//! | `MMYYYYDD` | `11/2021/23` | `11_2021_23` | `11202123` |
//! | `DDMMYYYY` | `23/11/2021` | `23_11_2021` | `23112021` |
//!
//! The sequence need not be configured, because years from 1900 to 2199 identify it. With a
//! delimiter the position of the four digits distinguishes the sequences. Without one, 6 digits can
//! only be `YYYYMM` and 10 only `YYYYMMDDHH`. Of the sequences with 8 digits, let `c` be a century
//! (19, 20 or 21, none of them a month): `YYYYMMDD` has a `c` in digits 1–2, `MMYYYYDD` a month
//! there and a `c` in 3–4, `DDMMYYYY` a month in 3–4 and a `c` in 5–6, where `YYYYMMDD` has a
//! month. So no text matches two of them; a test below tries every date.
//!
//! Hive folders count too: a whole date under any name (`dt=2021-11-23`), an `hour=01` below it,
//! and `year=2021/month=11/day=23` with or without leading zeros.
//!
//! A path is read from its top; at each folder the longest date that starts there is used. A date
//! further down counts only if it narrows the one above it (`2021/11/20211123`); otherwise it is
//! just a number (`2021/11/23/store=190001`). So the span that [`folder_may_hold`] returns for a
//! folder holds for every folder below it, and a listing pruned by it misses nothing. The drawback:
//! a folder above the dates whose name looks like part of a date is read as one (a table named
//! `2021`, or one named `11` directly above a year).

use std::ops::RangeInclusive;

use chrono::{
    DateTime, Days, Duration, Months, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Utc,
};
use chrono_tz::{GapInfo, Tz};

use crate::layout::is_leftover;
use crate::window::Window;
use crate::window::date_parts::{nanoseconds, number};

/// The part of a date that some digits stand for, coarsest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Day,
    Hour,
}

use Unit::{Day, Hour, Month, Year};

/// The sequences of DMS's date folders; a prefix of another sequence comes after it.
const SEQUENCES: [&[Unit]; 5] = [
    &[Year, Month, Day, Hour],
    &[Year, Month, Day],
    &[Month, Year, Day],
    &[Day, Month, Year],
    &[Year, Month],
];

/// The years that a date can have.
pub(super) const YEARS: RangeInclusive<i32> = 1900..=2199;

/// What the names of transaction files begin with.
pub(super) const TRANSACTION_FILE: &str = "CDC_TXN-";

/// The incomplete sequences that already determine a span.
const PREFIXES: [&[Unit]; 2] = [&[Month, Year], &[Year]];

impl Unit {
    /// The width of the unit in a date folder, in digits.
    fn width(self) -> usize {
        if self == Year { 4 } else { 2 }
    }

    /// The names of Hive partition columns of this unit alone.
    fn column_names(self) -> &'static [&'static str] {
        match self {
            Year => &["year", "yyyy", "y"],
            Month => &["month", "mm", "m"],
            Day => &["day", "dd", "d"],
            Hour => &["hour", "hh", "h"],
        }
    }
}

/// A folder of a path, or a part of a folder's name: `2021`, or `year=2021` split at the `=`.
struct Folder<'a> {
    column: Option<&'a str>,
    text: &'a str,
}

impl<'a> Folder<'a> {
    fn new(segment: &'a str) -> Self {
        match segment.split_once('=') {
            Some((column, text)) => Folder { column: Some(column), text },
            None => Folder::plain(segment),
        }
    }

    fn plain(text: &'a str) -> Self {
        Folder { column: None, text }
    }

    /// The number in the folder, if it can be a `unit`: as wide as in DMS, or, under the unit's
    /// column name, also without leading zeros, as engines write integers.
    fn value(&self, unit: Unit) -> Option<u32> {
        let has_width = match self.column {
            None => self.text.len() == unit.width(),
            Some(column) => {
                let mut names = unit.column_names().iter();
                names.any(|name| name.eq_ignore_ascii_case(column))
                    && self.text.len() <= unit.width()
            }
        };
        has_width.then(|| number(self.text.as_bytes())).flatten()
    }

    /// The date, if this folder's name alone is a complete one.
    fn date(&self) -> Option<LocalSpan> {
        let separator = ['-', '_'].into_iter().find(|&separator| self.text.contains(separator));
        let Some(separator) = separator else {
            return SEQUENCES.iter().find_map(|units| undelimited(self.text, units));
        };
        let pieces: Vec<_> = self.text.split(separator).map(Folder::plain).collect();
        let (date, taken) = longest(&pieces, &SEQUENCES)?;
        (taken == pieces.len()).then_some(date)
    }
}

/// A span of local time `[start, end)`: a year, month, day or hour.
#[derive(Clone, Copy)]
struct LocalSpan {
    start: NaiveDateTime,
    end: NaiveDateTime,
}

impl LocalSpan {
    /// The span of the finest of `units`, whose numbers are `values`.
    fn new(units: &[Unit], values: &[u32]) -> Option<Self> {
        let value = |unit| {
            let index = units.iter().position(|&other| other == unit)?;
            values.get(index).copied()
        };
        let year = i32::try_from(value(Year)?).ok()?;
        if !YEARS.contains(&year) {
            return None;
        }
        let first_day =
            NaiveDate::from_ymd_opt(year, value(Month).unwrap_or(1), value(Day).unwrap_or(1))?;
        let start = first_day.and_hms_opt(value(Hour).unwrap_or(0), 0, 0)?;
        let end = match units.iter().max()? {
            Year => start.checked_add_months(Months::new(12)),
            Month => start.checked_add_months(Months::new(1)),
            Day => start.checked_add_days(Days::new(1)),
            Hour => start.checked_add_signed(Duration::hours(1)),
        };
        end.map(|end| LocalSpan { start, end })
    }

    fn covers(&self, other: &LocalSpan) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The span of an hour of this span, if it is a day.
    fn hour(&self, hour: u32) -> Option<Self> {
        if self.end - self.start != Duration::days(1) {
            return None;
        }
        let start = self.start.date().and_hms_opt(hour, 0, 0)?;
        let end = start + Duration::hours(1);
        Some(LocalSpan { start, end })
    }

    /// The smallest window of all instants whose local time in `zone` is in the span. A span that
    /// lies wholly in a gap of the local time moves forward by the gap, like the times of files
    /// named in it ([`cdc_file_time`]).
    fn in_zone(self, zone: Tz) -> Option<Window> {
        let tick = Duration::nanoseconds(1);
        let start = match zone.from_local_datetime(&self.start).earliest() {
            Some(start) => start.to_utc(),
            None => end_of_gap(self.start, zone)?,
        };
        // Not the first instant at `self.end`: if clocks are set back at exactly that time, the
        // span occurs twice and ends the second time.
        let last = self.end - tick;
        let end = match zone.from_local_datetime(&last).latest() {
            Some(last) => last.to_utc() + tick,
            None => end_of_gap(last, zone)?,
        };
        if start < end {
            return Window::new(start, end).ok();
        }
        let start = instant(self.start, zone)?;
        Window::new(start, start + (self.end - self.start)).ok()
    }
}

/// The instant of a local time in `zone`: the earlier of two, and in a gap moved forward by the
/// gap.
pub(super) fn instant(local: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    if let Some(instant) = zone.from_local_datetime(&local).earliest() {
        return Some(instant.to_utc());
    }
    let (_, before) = GapInfo::new(&local, &zone)?.begin?;
    Some((local - before.fix()).and_utc())
}

/// The end of the gap in the local time of `zone` that `local` is in.
fn end_of_gap(local: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    Some(GapInfo::new(&local, &zone)?.end?.to_utc())
}

/// The date that starts with the first of `folders`, by the first of `sequences` that matches, and
/// the number of folders it uses. Plain and Hive folders are not mixed in one date.
fn longest(folders: &[Folder], sequences: &[&[Unit]]) -> Option<(LocalSpan, usize)> {
    sequences.iter().find_map(|units| {
        let run = folders.get(..units.len())?;
        let hive = run.iter().filter(|folder| folder.column.is_some()).count();
        if hive != 0 && hive != run.len() {
            return None;
        }
        let values: Option<Vec<u32>> =
            run.iter().zip(*units).map(|(folder, &unit)| folder.value(unit)).collect();
        Some((LocalSpan::new(units, &values?)?, units.len()))
    })
}

/// The date in `text`, if it is exactly the digits of `units`.
fn undelimited(text: &str, units: &[Unit]) -> Option<LocalSpan> {
    let mut rest = text;
    let mut values = Vec::with_capacity(units.len());
    for unit in units {
        let (digits, remaining) = rest.split_at_checked(unit.width())?;
        values.push(number(digits.as_bytes())?);
        rest = remaining;
    }
    rest.is_empty().then(|| LocalSpan::new(units, &values))?
}

/// The dates in a path from its top down, without overlaps; each with a flag whether it is a
/// complete date folder of DMS or only a prefix of one.
fn dates(relative_dir: &str) -> Vec<(LocalSpan, bool)> {
    let folders = folders(relative_dir);
    let mut dates = Vec::new();
    let mut rest = folders.as_slice();
    while !rest.is_empty() {
        let found = first_date(rest);
        dates.extend(found.map(|(date, whole, _)| (date, whole)));
        let taken = found.map_or(1, |(_, _, taken)| taken);
        rest = rest.get(taken..).unwrap_or_default();
    }
    dates
}

/// The folders of a relative directory path.
fn folders(relative_dir: &str) -> Vec<Folder<'_>> {
    relative_dir.split('/').filter(|segment| !segment.is_empty()).map(Folder::new).collect()
}

/// The date that begins with the first of some folders, whether it is complete, and the number of folders it takes.
fn first_date(folders: &[Folder]) -> Option<(LocalSpan, bool, usize)> {
    let (first, below) = folders.split_first()?;
    if let Some(date) = first.date() {
        let hive_folder = below.first().filter(|folder| folder.column.is_some());
        let hour =
            hive_folder.and_then(|folder| folder.value(Hour)).and_then(|hour| date.hour(hour));
        return Some((hour.unwrap_or(date), true, 1 + usize::from(hour.is_some())));
    }
    let whole = longest(folders, &SEQUENCES).map(|(date, taken)| (date, true, taken));
    whole.or_else(|| longest(folders, &PREFIXES).map(|(date, taken)| (date, false, taken)))
}

/// The number of folders of a relative directory path before the first that is a date, or the begin of one, or a Hive
/// partition: those that name the table.
///
/// ```
/// # use glueless::layout::folders_before_dates;
/// assert_eq!(folders_before_dates("shop/orders/2021/11/23"), 2);
/// assert_eq!(folders_before_dates("shop/orders/region=eu/dt=2021-11-23"), 2);
/// assert_eq!(folders_before_dates("shop/orders"), 2);
/// ```
pub fn folders_before_dates(relative_dir: &str) -> usize {
    let folders = folders(relative_dir);
    let is_table =
        |at: &usize| folders[*at].column.is_none() && first_date(&folders[*at..]).is_none();
    (0..folders.len()).take_while(is_table).count()
}

/// The last of `dates` that is within those before it.
fn narrowest(dates: impl Iterator<Item = LocalSpan>) -> Option<LocalSpan> {
    dates.reduce(|last, next| if last.covers(&next) { next } else { last })
}

/// The span of the deepest date folder in a relative directory path: a day, month or hour in the
/// local time of `zone`, so that a day can have 23 or 25 hours. None if no folder is a date.
///
/// The [module docs](self) list the formats and the rules for several dates.
///
/// ```
/// # use glueless::layout::folder_span;
/// let day = folder_span("shop/orders/2021/11/23", chrono_tz::UTC).unwrap();
/// assert_eq!(day.to_string(), "[2021-11-23T00:00:00Z, 2021-11-24T00:00:00Z)");
/// assert_eq!(folder_span("shop/orders/20211123", chrono_tz::UTC), Some(day));
/// assert_eq!(folder_span("shop/orders/2021/13/23", chrono_tz::UTC), None);
/// ```
pub fn folder_span(relative_dir: &str, zone: Tz) -> Option<Window> {
    let whole = dates(relative_dir).into_iter().filter(|(_, whole)| *whole);
    narrowest(whole.map(|(date, _)| date))?.in_zone(zone)
}

/// The widest span of objects under a relative directory path, for pruning a listing on the way
/// down: as [`folder_span`], and for an incomplete date its year or month. None if the path
/// determines no span: do not prune.
///
/// ```
/// # use glueless::layout::folder_may_hold;
/// let may_hold = |dir| folder_may_hold(dir, chrono_tz::UTC).map(|window| window.to_string());
/// let year = "[2021-01-01T00:00:00Z, 2022-01-01T00:00:00Z)";
/// assert_eq!(may_hold("shop/orders/2021").as_deref(), Some(year));
/// assert_eq!(may_hold("shop/orders/23/11"), None);
/// ```
pub fn folder_may_hold(relative_dir: &str, zone: Tz) -> Option<Window> {
    let dates = dates(relative_dir).into_iter();
    narrowest(dates.map(|(date, _)| date))?.in_zone(zone)
}

/// Whether a file has the changes of all tables of a task, by the name that DMS gives it.
pub fn is_transaction_file(base_name: &str) -> bool {
    base_name.starts_with(TRANSACTION_FILE)
}

/// The time in the name of a CDC file, UTC: `yyyyMMdd-HHmmssSSS` and any extension
/// (`20211017-194324349.csv.gz`), with a fraction of three or four digits, or of three after a
/// second dash (`20240115-101530-001.parquet`). Transaction files of DMS are named
/// `CDC_TXN-yyyyMMddHHmmssSSS` (user guide, "Capturing data changes (CDC) including transaction order
/// on the S3 target").
///
/// The name is in the local time of `zone`: a time that occurs twice when clocks are set back is
/// the earlier instant, a time in a gap is moved forward by the gap. Names can therefore go
/// backwards at the end of summer time, as they do in DMS.
///
/// None for every other name: full-load files, leftovers of a crash, dates that do not exist, years
/// outside 1900 to 2199.
///
/// ```
/// # use glueless::layout::cdc_file_time;
/// let time = cdc_file_time("20211017-194324349.csv", chrono_tz::UTC).unwrap();
/// assert_eq!(time.to_rfc3339(), "2021-10-17T19:43:24.349+00:00");
/// assert_eq!(cdc_file_time("LOAD00000001.csv", chrono_tz::UTC), None);
/// ```
pub fn cdc_file_time(base_name: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let (stem, extension) = base_name.split_once('.')?;
    if extension.is_empty() || is_leftover(base_name) {
        return None;
    }
    let (date, time) = match stem.strip_prefix(TRANSACTION_FILE) {
        Some(time) => time.split_at_checked(8)?,
        None => stem.split_once('-')?,
    };
    let day = undelimited(date, &[Year, Month, Day])?.start.date();
    let (clock, fraction) = match time.split_once('-') {
        Some((clock, fraction)) if fraction.len() == 3 => (clock, fraction),
        Some(_) => return None,
        None => time.split_at_checked(6)?,
    };
    let [h1, h2, m1, m2, s1, s2] = *clock.as_bytes() else {
        return None;
    };
    if !(3..=4).contains(&fraction.len()) {
        return None;
    }
    let time_of_day = NaiveTime::from_hms_nano_opt(
        number(&[h1, h2])?,
        number(&[m1, m2])?,
        number(&[s1, s2])?,
        nanoseconds(fraction.as_bytes())?,
    )?;
    instant(day.and_time(time_of_day), zone)
}

#[cfg(test)]
mod tests {
    use chrono::Datelike;
    use chrono_tz::{
        America::{Havana, New_York, Sao_Paulo, St_Johns, Toronto},
        Antarctica::Troll,
        Australia::Lord_Howe,
        Europe::Berlin,
        Pacific::Apia,
        UTC,
    };

    use super::*;

    fn span(dir: &str, zone: Tz) -> Option<String> {
        folder_span(dir, zone).map(|window| window.to_string())
    }

    fn may_hold(dir: &str) -> Option<String> {
        folder_may_hold(dir, UTC).map(|window| window.to_string())
    }

    fn time(name: &str, zone: Tz) -> Option<String> {
        cdc_file_time(name, zone).map(|time| time.to_rfc3339())
    }

    fn hours(dir: &str, zone: Tz) -> i64 {
        let window = folder_span(dir, zone).unwrap();
        (window.end - window.start).num_hours()
    }

    const HOUR: &str = "[2021-11-23T01:00:00Z, 2021-11-23T02:00:00Z)";
    const DAY: &str = "[2021-11-23T00:00:00Z, 2021-11-24T00:00:00Z)";
    const MONTH: &str = "[2021-11-01T00:00:00Z, 2021-12-01T00:00:00Z)";
    const YEAR: &str = "[2021-01-01T00:00:00Z, 2022-01-01T00:00:00Z)";

    /// Every format of DMS's date folders, with its span.
    const FORMS: [(&str, &str); 20] = [
        ("2021/11/23", DAY),
        ("2021_11_23", DAY),
        ("2021-11-23", DAY),
        ("20211123", DAY),
        ("2021/11/23/01", HOUR),
        ("2021_11_23_01", HOUR),
        ("2021-11-23-01", HOUR),
        ("2021112301", HOUR),
        ("2021/11", MONTH),
        ("2021_11", MONTH),
        ("2021-11", MONTH),
        ("202111", MONTH),
        ("11/2021/23", DAY),
        ("11_2021_23", DAY),
        ("11-2021-23", DAY),
        ("11202123", DAY),
        ("23/11/2021", DAY),
        ("23_11_2021", DAY),
        ("23-11-2021", DAY),
        ("23112021", DAY),
    ];

    const HIVE_FORMS: [(&str, &str); 11] = [
        ("dt=2021-11-23", DAY),
        ("event_date=20211123", DAY),
        ("month=2021-11", MONTH),
        ("day=2021_11_23", DAY),
        ("year=2021/month=11", MONTH),
        ("year=2021/month=11/day=23", DAY),
        ("year=2021/month=11/day=23/hour=1", HOUR),
        ("YEAR=2021/Month=11/DAY=23/hour=01", HOUR),
        ("y=2021/m=11/d=23/h=01", HOUR),
        ("dt=2021-11-23/hour=01", HOUR),
        ("2021-11-23/hh=1", HOUR),
    ];

    const ABOVE: [&str; 7] = ["", "orders/", "a/b/", "LOAD/", "v2=x/", "77/", "13/45/"];
    const BELOW: [&str; 6] = ["", "/SEGMENT1", "/orders", "/x=1", "/99", "/store=190001"];

    #[test]
    fn every_date_folder_is_read_wherever_it_stands() {
        for (form, meant) in FORMS.into_iter().chain(HIVE_FORMS) {
            for above in ABOVE {
                for below in BELOW {
                    let dir = format!("{above}{form}{below}");
                    assert_eq!(span(&dir, UTC).as_deref(), Some(meant), "{dir}");
                }
            }
        }
    }

    #[test]
    fn every_prefix_of_a_path_covers_the_span_of_the_path() {
        for (form, meant) in FORMS.into_iter().chain(HIVE_FORMS) {
            for above in ABOVE {
                for below in BELOW {
                    let dir = format!("{above}{form}{below}");
                    let span = folder_span(&dir, Berlin).unwrap();
                    for (end, _) in format!("{dir}/").match_indices('/') {
                        let prefix = &dir[..end];
                        let prefix_span = folder_may_hold(prefix, Berlin);
                        assert!(
                            prefix_span.is_none_or(|prefix_span| prefix_span.covers(&span)),
                            "{prefix} of {dir}"
                        );
                    }
                    assert_eq!(may_hold(&dir).as_deref(), Some(meant), "{dir}");
                }
            }
        }
    }

    #[test]
    fn a_date_folder_without_delimiters_never_reads_two_ways() {
        let forms: [&[Unit]; 3] = [&[Year, Month, Day], &[Month, Year, Day], &[Day, Month, Year]];
        let first = NaiveDate::from_ymd_opt(1900, 1, 1).unwrap();
        let mut count = 0;
        for date in first.iter_days().take_while(|date| date.year() < 2200) {
            let (y, m, d) = (date.year(), date.month(), date.day());
            for text in
                [format!("{y}{m:02}{d:02}"), format!("{m:02}{y}{d:02}"), format!("{d:02}{m:02}{y}")]
            {
                let readings: Vec<_> = forms
                    .iter()
                    .filter_map(|units| undelimited(&text, units))
                    .map(|span| span.start)
                    .collect();
                assert_eq!(readings, [date.and_time(NaiveTime::MIN)], "{text}");
                count += 1;
            }
        }
        assert_eq!(count, 3 * 109_573);
    }

    #[test]
    fn folders_that_are_no_date_have_no_span() {
        for dir in [
            "",
            "/",
            "orders",
            "shop/orders",
            "2021",
            "year=2021",
            "11/2021",
            "23",
            "23/11",
            "2021/13",
            "2021/00/10",
            "2021/1/5",
            "20211323",
            "20210229",
            "2021022924",
            "2021112324",
            "1899/12/31",
            "2200-01-01",
            "2021-11-23_01",
            "2021-11_23",
            "2021-11-23-",
            "x2021-11-23",
            "2021-11-23T01",
            "2021-1-5",
            "+021-11-23",
            "2021112",
            "20211123011",
            "month=11/day=23",
            "store=2021/shelf=11/slot=23",
            "year=2021/region=eu/month=11",
            "year=2021/11/23",
            "2021/month=11",
            "year=/month=/day=",
            "ä021/11",
        ] {
            assert_eq!(span(dir, UTC), None, "{dir}");
        }
    }

    #[test]
    fn slashes_at_the_ends_or_doubled_do_not_matter() {
        assert_eq!(span("/2021//11/23/", UTC).as_deref(), Some(DAY));
    }

    #[test]
    fn a_deeper_date_counts_only_where_it_narrows_the_one_above() {
        assert_eq!(span("2021/11/20211123", UTC).as_deref(), Some(DAY));
        assert_eq!(span("2021/2021-11/23112021/2021112301", UTC).as_deref(), Some(HOUR));
        assert_eq!(span("2021/11/23/1999-01-01", UTC).as_deref(), Some(DAY));
        assert_eq!(span("2021/11/23/2021", UTC).as_deref(), Some(DAY));
        assert_eq!(span("2021-11-23/2021-11", UTC).as_deref(), Some(DAY));
        assert_eq!(span("month=2021-11/hour=01", UTC).as_deref(), Some(MONTH));
    }

    #[test]
    fn an_hour_below_a_whole_date_needs_its_name() {
        assert_eq!(span("2021-11-23/01", UTC).as_deref(), Some(DAY));
        assert_eq!(span("2021-11-23/hour=24", UTC).as_deref(), Some(DAY));
        assert_eq!(span("2021-11-23/bucket=01", UTC).as_deref(), Some(DAY));
    }

    #[test]
    fn a_partial_date_prunes_as_soon_as_it_determines_a_span() {
        for (dir, expected) in [
            ("2021", Some(YEAR)),
            ("year=2021", Some(YEAR)),
            ("shop/orders/2021", Some(YEAR)),
            ("2021/orders", Some(YEAR)),
            ("2021/13", Some(YEAR)),
            ("2021/11", Some(MONTH)),
            ("11/2021", Some(MONTH)),
            ("month=11/year=2021", Some(MONTH)),
            ("orders/11/2021", Some(MONTH)),
            ("13/2021", Some(YEAR)),
            ("", None),
            ("23", None),
            ("11", None),
            ("23/11", None),
            ("month=11", None),
            ("orders/2", None),
            ("shop", None),
            ("1899", None),
            ("2200", None),
            ("02021", None),
        ] {
            assert_eq!(may_hold(dir).as_deref(), expected, "{dir}");
        }
    }

    #[test]
    fn months_and_years_end_where_the_next_begin() {
        assert_eq!(
            span("2020/02", UTC).as_deref(),
            Some("[2020-02-01T00:00:00Z, 2020-03-01T00:00:00Z)")
        );
        assert_eq!(
            span("202112", UTC).as_deref(),
            Some("[2021-12-01T00:00:00Z, 2022-01-01T00:00:00Z)")
        );
        assert_eq!(
            span("2021/12/31/23", UTC).as_deref(),
            Some("[2021-12-31T23:00:00Z, 2022-01-01T00:00:00Z)")
        );
        assert_eq!(
            span("2199-12-31", UTC).as_deref(),
            Some("[2199-12-31T00:00:00Z, 2200-01-01T00:00:00Z)")
        );
        assert!(span("2020/02/29", UTC).is_some());
        assert!(span("1900/01/01", UTC).is_some());
    }

    #[test]
    fn a_day_runs_from_local_midnight_to_local_midnight() {
        assert_eq!(
            span("2021/11/23", Berlin).as_deref(),
            Some("[2021-11-22T23:00:00Z, 2021-11-23T23:00:00Z)")
        );
        assert_eq!(hours("2021/03/28", Berlin), 23);
        assert_eq!(hours("2021/10/31", Berlin), 25);
        assert_eq!(hours("2021/03", Berlin), 31 * 24 - 1);
        // Lord Howe's clocks move by half an hour.
        let window = folder_span("2021/04/04", Lord_Howe).unwrap();
        assert_eq!((window.end - window.start).num_minutes(), 24 * 60 + 30);
    }

    #[test]
    fn an_hour_that_occurs_twice_spans_both() {
        assert_eq!(
            span("2021/11/07/01", New_York).as_deref(),
            Some("[2021-11-07T05:00:00Z, 2021-11-07T07:00:00Z)")
        );
        assert_eq!(hours("2021/11/07/00", New_York), 1);
        assert_eq!(hours("2021/11/07/02", New_York), 1);
        // Troll's clocks are set back by two hours, from 03:00 to 01:00.
        assert_eq!(hours("2021/10/31/01", Troll), 3);
        assert_eq!(hours("2021/10/31/02", Troll), 3);
        assert_eq!(hours("2021/10/31/03", Troll), 1);
    }

    #[test]
    fn a_day_begins_at_the_first_of_two_midnights() {
        assert_eq!(
            span("2021/11/07", Havana).as_deref(),
            Some("[2021-11-07T04:00:00Z, 2021-11-08T05:00:00Z)")
        );
        assert_eq!(hours("2021/11/06", Havana), 24);
        // St John's clocks went from 00:01 back to 23:01: the day before continued for 59 minutes.
        assert_eq!(
            span("2006/10/28", St_Johns).as_deref(),
            Some("[2006-10-28T02:30:00Z, 2006-10-29T03:30:00Z)")
        );
        assert_eq!(
            span("2006/10/29", St_Johns).as_deref(),
            Some("[2006-10-29T02:30:00Z, 2006-10-30T03:30:00Z)")
        );
    }

    #[test]
    fn a_day_whose_midnight_is_in_a_gap_begins_at_the_gap() {
        assert_eq!(
            span("2018/11/04", Sao_Paulo).as_deref(),
            Some("[2018-11-04T03:00:00Z, 2018-11-05T02:00:00Z)")
        );
        assert_eq!(hours("2018/11/03", Sao_Paulo), 24);
        // Toronto's clocks jumped from 23:30 to 00:30.
        assert_eq!(
            span("1919/03/30", Toronto).as_deref(),
            Some("[1919-03-30T05:00:00Z, 1919-03-31T04:30:00Z)")
        );
        assert_eq!(
            span("1919/03/31", Toronto).as_deref(),
            Some("[1919-03-31T04:30:00Z, 1919-04-01T04:00:00Z)")
        );
    }

    #[test]
    fn a_span_in_a_gap_covers_the_files_named_in_it() {
        let hour = folder_span("2021/03/28/02", Berlin).unwrap();
        assert_eq!(hour.to_string(), "[2021-03-28T01:00:00Z, 2021-03-28T02:00:00Z)");
        for name in ["20210328-020000000.csv", "20210328-025959999.csv"] {
            assert!(hour.contains(cdc_file_time(name, Berlin).unwrap()), "{name}");
        }
        // Samoa left out a day.
        let day = folder_span("2011/12/30", Apia).unwrap();
        assert_eq!(day.to_string(), "[2011-12-30T10:00:00Z, 2011-12-31T10:00:00Z)");
        assert!(day.contains(cdc_file_time("20111230-120000000.csv", Apia).unwrap()));
    }

    #[test]
    fn a_year_of_files_is_in_the_folders_named_for_their_time() {
        for (zone, year) in [
            (Berlin, 2021),
            (New_York, 2021),
            (Havana, 2021),
            (Lord_Howe, 2021),
            (Troll, 2021),
            (Sao_Paulo, 2018),
            (Apia, 2011),
        ] {
            let first = NaiveDate::from_ymd_opt(year, 1, 1).unwrap();
            for date in first.iter_days().take_while(|date| date.year() == year) {
                let day_dir = date.format("%Y/%m/%d").to_string();
                let day = folder_span(&day_dir, zone).unwrap();
                for hour in 0..24 {
                    let hour_span = folder_span(&format!("{day_dir}/{hour:02}"), zone).unwrap();
                    assert!(day.covers(&hour_span), "{zone} {day_dir}/{hour:02}");
                    for clock in ["0000000", "3000000", "5959999"] {
                        let name = format!("{}-{hour:02}{clock}.csv", date.format("%Y%m%d"));
                        let time = cdc_file_time(&name, zone).unwrap();
                        assert!(hour_span.contains(time), "{zone} {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_time_of_a_cdc_file_is_read_in_all_its_forms() {
        for (name, meant) in [
            ("20211017-194324349.csv", "2021-10-17T19:43:24.349+00:00"),
            ("20211017-194324349.csv.gz", "2021-10-17T19:43:24.349+00:00"),
            ("20211017-194324349.parquet", "2021-10-17T19:43:24.349+00:00"),
            ("20211017-1943243491.parquet", "2021-10-17T19:43:24.349100+00:00"),
            ("20240115-101530-001.parquet", "2024-01-15T10:15:30.001+00:00"),
            ("20240115-101530-001.csv.gz", "2024-01-15T10:15:30.001+00:00"),
            ("CDC_TXN-20201117153046033.csv", "2020-11-17T15:30:46.033+00:00"),
            ("CDC_TXN-20201117153046033.csv.gz", "2020-11-17T15:30:46.033+00:00"),
            ("20190401-000000000.parquet", "2019-04-01T00:00:00+00:00"),
            ("20190401-0000000000.parquet", "2019-04-01T00:00:00+00:00"),
            ("20190331-235959999.parquet", "2019-03-31T23:59:59.999+00:00"),
            ("20190331-2359599999.parquet", "2019-03-31T23:59:59.999900+00:00"),
            ("20200229-120000000.x", "2020-02-29T12:00:00+00:00"),
        ] {
            assert_eq!(time(name, UTC).as_deref(), Some(meant), "{name}");
        }
    }

    #[test]
    fn every_other_name_has_no_time() {
        for name in [
            "",
            "LOAD00000001.parquet",
            "LOAD0000000A.csv.gz",
            "SEGMENT1_LOAD00000001.csv",
            "20211017-194324349",
            "20211017-194324349.",
            "20211017-194324349.csv#1",
            "20211017-19432434.csv",
            "20211017-19432434912.csv",
            "20211017-194324.csv",
            "20211017-194324-34.csv",
            "20211017-194324-3491.csv",
            "20211017-1943-24349.csv",
            "20211017-19432-349.csv",
            "20211017-1943024-349.csv",
            "20211017-194324-349-1.csv",
            "20211017--194324349.csv",
            "20211017_194324349.csv",
            "20211017194324349.csv",
            "2021-10-17-194324349.csv",
            "20210229-194324349.csv",
            "20211317-194324349.csv",
            "20211017-240000000.csv",
            "20211017-196024349.csv",
            "20211017-194360349.csv",
            "20211017-+94324349.csv",
            "20211017-19432434x.csv",
            "18991017-194324349.csv",
            "x20211017-194324349.csv",
            "20211017-1943é4349.csv",
            ".csv",
        ] {
            assert_eq!(time(name, UTC), None, "{name}");
        }
    }

    #[test]
    fn the_time_of_a_cdc_file_is_local() {
        for (name, zone, meant) in [
            ("20211123-003000000.csv", Berlin, "2021-11-22T23:30:00+00:00"),
            // 02:30 occurs twice: the earlier instant.
            ("20211031-023000000.csv", Berlin, "2021-10-31T00:30:00+00:00"),
            ("20211031-015959999.csv", Berlin, "2021-10-30T23:59:59.999+00:00"),
            ("20211031-030000000.csv", Berlin, "2021-10-31T02:00:00+00:00"),
            // 02:30 does not exist: 03:30.
            ("20210328-015959999.csv", Berlin, "2021-03-28T00:59:59.999+00:00"),
            ("20210328-020000000.csv", Berlin, "2021-03-28T01:00:00+00:00"),
            ("20210328-023000000.csv", Berlin, "2021-03-28T01:30:00+00:00"),
            ("20210328-030000000.csv", Berlin, "2021-03-28T01:00:00+00:00"),
            ("20211003-021500000.csv", Lord_Howe, "2021-10-02T15:45:00+00:00"),
            ("20111230-120000000.csv", Apia, "2011-12-30T22:00:00+00:00"),
        ] {
            assert_eq!(time(name, zone).as_deref(), Some(meant), "{name}");
        }
    }
}
