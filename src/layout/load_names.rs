//! The times of full loads, by their paths.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::date_folders::instant;
use super::{base_name, cdc_file_time, folder_span, parent};

/// The time of a full load: that in its name as CDC files have it, else the date of its folders, else the one date in its
/// name (`customers_2024-01-08.csv`, `20240108.parquet`), with the time of day if that follows as `T101500`; `None` if there
/// is no date, or several, or digits after it that may be a time of day or a number of the file. In a folder of a month or
/// a year, the date in the name counts. Local times are of `zone`.
///
/// ```
/// # use glueless::layout::load_time;
/// let time = |path| load_time(path, chrono_tz::UTC).map(|time| time.to_rfc3339());
/// assert_eq!(time("export/customers_2024-01-08.csv").as_deref(), Some("2024-01-08T00:00:00+00:00"));
/// assert_eq!(time("export/customers-20240108T101500.csv").as_deref(), Some("2024-01-08T10:15:00+00:00"));
/// assert_eq!(time("export/customers_20240108_20240109.csv"), None);
/// assert_eq!(time("export/customers_20240108_000001.csv"), None);
/// assert_eq!(time("dt=2024-01-08/part-0.csv").as_deref(), Some("2024-01-08T00:00:00+00:00"));
/// ```
pub fn load_time(path: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let name = base_name(path);
    if let Some(time) = cdc_file_time(name, zone) {
        return Some(time);
    }
    let in_name = || {
        let mut dates = dates(name.as_bytes());
        let only = dates.next().filter(|_| dates.next().is_none())??;
        instant(only, zone)
    };
    match folder_span(parent(path), zone) {
        // A day can have 25 hours.
        Some(folder) if folder.end - folder.start < TimeDelta::days(2) => Some(folder.start),
        Some(folder) => in_name().filter(|time| folder.contains(*time)).or(Some(folder.start)),
        None => in_name(),
    }
}

/// The dates in a name, before which there is no digit; `None` for one that other digits follow, of which it is not known
/// what they mean.
fn dates(name: &[u8]) -> impl Iterator<Item = Option<NaiveDateTime>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < name.len() {
            let run = digits(&name[at..]);
            let found = if run == 0 { None } else { date(&name[at..]) };
            at += found.map_or(run.max(1), |(_, length)| length);
            if let Some((date, _)) = found {
                return Some(date);
            }
        }
        None
    })
}

/// The number of digits that a text begins with.
fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// The number of so many digits that a text begins with, and the rest after them.
fn number(text: &[u8], count: usize) -> Option<(u32, &[u8])> {
    let (of, rest) = text.split_at_checked(count)?;
    let of = std::str::from_utf8(of).ok().filter(|_| digits(of) == count)?;
    Some((of.parse().ok()?, rest))
}

/// The date that a text begins with, a digit, if it is known what follows it; and its length, with the time of day.
fn date(text: &[u8]) -> Option<(Option<NaiveDateTime>, usize)> {
    let (year, rest) = number(text, 4)?;
    let dash = |text: &[u8]| text.first() == Some(&b'-');
    let has_dashes = dash(rest);
    let skip = usize::from(has_dashes);
    let (month, rest) = number(&rest[skip..], 2)?;
    if has_dashes && !dash(rest) {
        return None;
    }
    let (day, rest) = number(&rest[skip..], 2)?;
    let day = NaiveDate::from_ymd_opt(year as i32, month, day)
        .filter(|_| (1900..2200).contains(&year))?;
    if let Some((time, rest)) = rest.strip_prefix(b"T").and_then(clock) {
        return Some((Some(day.and_time(time)), text.len() - rest.len()));
    }
    // More digits of the same number: it is no date.
    if digits(rest) > 0 {
        return None;
    }
    let is_followed =
        rest.split_first().is_some_and(|(separator, rest)| *separator != b'.' && digits(rest) > 0);
    let date = (!is_followed).then(|| day.and_time(NaiveTime::MIN));
    Some((date, text.len() - rest.len()))
}

/// The time of day that a text begins with: six digits, and no more.
fn clock(text: &[u8]) -> Option<(NaiveTime, &[u8])> {
    if digits(text) != 6 {
        return None;
    }
    let (hour, rest) = number(text, 2)?;
    let (minute, rest) = number(rest, 2)?;
    let (second, rest) = number(rest, 2)?;
    Some((NaiveTime::from_hms_opt(hour, minute, second)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_has_the_one_date_in_its_name() {
        let time = |path| {
            let time = load_time(path, chrono_tz::Europe::Berlin)?;
            Some(time.format("%Y-%m-%dT%H:%M:%S").to_string())
        };
        for (path, expected) in [
            ("customers_2024-01-08.csv", Some("2024-01-07T23:00:00")),
            ("20240108.parquet", Some("2024-01-07T23:00:00")),
            ("x/2024-01-08T101500-part.json.gz", Some("2024-01-08T09:15:00")),
            ("20240108-101500000.csv", Some("2024-01-08T09:15:00")),
            ("v3_2024-01-08_full.csv", Some("2024-01-07T23:00:00")),
            // The date of a folder comes first, unless it is of a month.
            ("dt=2024-01-09/customers_2024-01-08.csv", Some("2024-01-08T23:00:00")),
            ("dt=2024-01-09/20240109T101500.csv", Some("2024-01-08T23:00:00")),
            ("2024/01/customers_2024-01-08.csv", Some("2024-01-07T23:00:00")),
            ("2024/01/customers_2024-02-08.csv", Some("2023-12-31T23:00:00")),
            ("2024/01/customers.csv", Some("2023-12-31T23:00:00")),
            // What may be a time of day, or the number of a part.
            ("customers_20240108_000001.csv", None),
            ("customers_20240108-1.csv", None),
            ("customers_2024-01-08_10-15-00.csv", None),
            ("customers_20240108_1015.csv", None),
            ("customers_20240108-101500123.csv", None),
            ("customers_20240108T1015.csv", None),
            ("20240108101500.csv", None),
            // No other number is a date.
            ("2024-01-08_v20249999.csv", Some("2024-01-07T23:00:00")),
            ("part-00000-123456789.parquet", None),
            ("1202401080.csv", None),
            ("2024-13-01.csv", None),
            ("2024-0108.csv", None),
            ("2024-01-08-2024-01-09.csv", None),
            ("LOAD00000001.csv", None),
        ] {
            assert_eq!(time(path).as_deref(), expected, "{path}");
        }
    }
}
