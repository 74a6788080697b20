//! The columns that order the changes of a sample: when a change was committed, and a sequence of the log.
//!
//! A date of the table itself, such as when a row was created, looks much like a commit time, and ordering by it would let an
//! older change win. So a column is proposed only if its name says that the tool has written it and its values do not go back
//! from row to row; or if they say so themselves: they are near the times in the files' names, and those of a full load
//! are all of one moment. Without such a column, changes are ordered by file and row, which is right for tools that write
//! them in their order.

use std::collections::BTreeSet;
use std::ops::Range;

use arrow::datatypes::DataType;

use crate::survey::Certainty;
use crate::survey::sample::{Column, Sample, SampledFile};
use crate::types::times::{DAY_NS, instant_ns, parse_time};

/// The names that tools give the time of a commit, in lower case.
pub(super) const TIMES: [&str; 24] = [
    "timestamp",
    "dms_timestamp",
    "dms_ts",
    "dms_commit_timestamp",
    "cdc_timestamp",
    "cdc_ts",
    "cdc_timestamp_utc",
    "transact_ts",
    "transact_time",
    "transaction_ts",
    "transaction_timestamp",
    "commit_ts",
    "commit_time",
    "commit_timestamp",
    "_commit_timestamp",
    "_commit_time",
    "source_commit_ts",
    "replication_timestamp",
    "change_timestamp",
    "ar_h_timestamp",
    "ar_h_commit_timestamp",
    "__ts_ms",
    "__source_ts_ms",
    "ts",
];

/// The names that tools give a position in the log, in lower case, the best first.
pub(super) const SEQUENCES: [&str; 9] = [
    "_lsn",
    "ar_h_change_seq",
    "change_seq",
    "change_sequence",
    "dms_change_seq",
    "ar_h_stream_position",
    "__lsn",
    "_commit_version",
    "seq",
];

/// Parts of the names of times that the application writes.
const OF_APPLICATION: [&str; 14] = [
    "update", "modif", "creat", "insert", "event", "order", "birth", "due", "expir", "_at", "_on",
    "date", "start", "valid",
];

/// Names that columns of the application have too.
const UNCLEAR: [&str; 5] = ["timestamp", "ts", "seq", "change_seq", "change_sequence"];
/// The least rows from which it is told that values are in an order.
const ROWS_MIN: usize = 3;
/// The least digits of a sequence that is text: shorter ones grow by a digit, and `10` is before `9`.
const DIGITS_MIN: usize = 15;

/// How long before the time in a file's name its changes are at most.
const BEFORE_FILE_NS: i128 = 2 * DAY_NS;
/// How long after it: some tools name a file by its first change.
const AFTER_FILE_NS: i128 = DAY_NS;
/// The time within which a table is loaded, mostly.
const LOAD_NS: i128 = DAY_NS / 4;

/// The order of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// The columns; none where files and rows order the changes.
    pub(super) columns: Vec<String>,
    /// The column with the commit time, where that is not the first of them.
    pub(super) commit_time: Option<String>,
    /// Its unit, if it is a number.
    pub(super) unit: Option<&'static str>,
    pub(super) certainty: Certainty,
    pub(super) why: String,
    /// What speaks against a column whose name says that it is one.
    pub(super) note: Option<String>,
}

/// Finds the order.
pub(super) fn find(sample: &Sample) -> Order {
    let (time, note) = match time(sample) {
        Ok(time) => (time, None),
        Err(note) => (None, Some(note)),
    };
    let is_sequence = |name: &&str, column: &&Column| {
        is_in_order_of(sample, column, time.as_ref())
            && (!UNCLEAR.contains(name) || is_telling(sample, column))
    };
    let sequence = SEQUENCES
        .iter()
        .find_map(|name| sample.column(name).filter(|column| is_sequence(name, column)));
    let unit = time.as_ref().and_then(|time| time.unit);
    let of_time = time.as_ref().map(|time| time.column.name.clone());
    match (sequence, time) {
        (Some(sequence), _) => Order {
            columns: vec![sequence.name.clone()],
            commit_time: of_time,
            unit,
            certainty: Certainty::Likely,
            why: "its name says that it is a position in the log, and its values are in the order of the changes".into(),
            note,
        },
        (None, Some(time)) => {
            let column = time.column.name.clone();
            // The first column of the order that is a time is the commit time; a number needs its unit.
            let commit_time = unit.map(|_| column.clone());
            let (certainty, why) = (time.certainty, time.why.into());
            Order { columns: vec![column], commit_time, unit, certainty, why, note }
        }
        (None, None) => Order {
            certainty: Certainty::Likely,
            why: "no column is known to be a commit time: changes are ordered by file and row".into(),
            note,
            ..Order::default()
        },
    }
}

struct Time<'a> {
    column: &'a Column,
    /// Its times in nanoseconds, per row.
    times: Vec<Option<i128>>,
    unit: Option<&'static str>,
    certainty: Certainty,
    why: &'static str,
}

/// The column with the commit time.
///
/// # Errors
/// What speaks against one whose name says that it is.
fn time(sample: &Sample) -> Result<Option<Time<'_>>, String> {
    if sample.changes().all(|file| file.rows.is_empty()) {
        return Ok(None);
    }
    let mut against = None;
    for name in TIMES {
        let Some(column) = sample.column(name) else { continue };
        let Some((times, unit)) = times(sample, column) else { continue };
        if goes_back(sample, &times) {
            against = Some(format!(
                "`{}` is named like a commit time, but goes back from row to row: it is not in raw.order_by",
                column.name
            ));
            continue;
        }
        let is_proved = has_times_of_files(sample, &times);
        let is_against =
            sample.changes().any(|file| file.time.is_some()) && UNCLEAR.contains(&name);
        if !is_proved && is_against {
            against = Some(format!(
                "`{}` is named like a commit time, but its times are not those of the files: it is not in raw.order_by",
                column.name
            ));
            continue;
        }
        let (certainty, why) = if is_proved && !UNCLEAR.contains(&name) {
            (Certainty::Sure, "its name says so, and its times are those of the files")
        } else {
            (Certainty::Likely, "its name says so, and it does not go back from row to row")
        };
        return Ok(Some(Time { column, times, unit, certainty, why }));
    }
    let by_values = sample.columns.iter().find_map(|column| {
        let lower = column.name.to_ascii_lowercase();
        let is_of_application = OF_APPLICATION.iter().any(|part| lower.contains(part));
        let is_date = |text: &String| text.len() <= 10;
        let is_time = !is_of_application
            && column.data_type != DataType::Date32
            && !column.values.iter().flatten().any(is_date);
        let (times, unit) = times(sample, column).filter(|_| is_time)?;
        let is_proved = unit.is_none()
            && has_times_of_files(sample, &times)
            && !goes_back(sample, &times)
            && is_one_moment(sample, &times)
            && grows(sample, &times);
        let why = "its times are near those in the names of files, those of full loads are of one moment, and it does not go \
                   back from row to row";
        is_proved.then_some(Time { column, times, unit: None, certainty: Certainty::Guess, why })
    });
    match (by_values, against) {
        (Some(time), _) => Ok(Some(time)),
        (None, Some(against)) => Err(against),
        (None, None) => Ok(None),
    }
}

/// The times of a column in nanoseconds, and their unit if they are numbers; `None` if a value in a file of changes is none.
fn times(sample: &Sample, column: &Column) -> Option<(Vec<Option<i128>>, Option<&'static str>)> {
    let is_number = column.data_type.is_integer();
    let unit = if is_number { Some(unit_of(column)?) } else { None };
    let parse = |text: &String| match unit {
        None => parse_time(text, chrono_tz::UTC),
        Some((_, factor)) => text.parse::<i128>().ok()?.checked_mul(factor),
    };
    let times: Vec<Option<i128>> =
        column.values.iter().map(|value| value.as_ref().and_then(parse)).collect();
    let mut of_changes = sample.changes().flat_map(|file| times[file.rows.clone()].iter());
    let is_whole = of_changes.all(Option::is_some);
    is_whole.then_some((times, unit.map(|(name, _)| name)))
}

/// The unit of numbers that are times since 1970, by their size.
fn unit_of(column: &Column) -> Option<(&'static str, i128)> {
    let first: i128 = column.values.iter().flatten().next()?.parse().ok()?;
    // From 2001 to 2286 in each of them.
    [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)].into_iter().find(
        |(_, factor)| {
            (1_000_000_000_000_000_000..10_000_000_000_000_000_000).contains(&(first * factor))
        },
    )
}

/// Whether times go back from row to row, within a file of changes or from one to the next.
fn goes_back(sample: &Sample, times: &[Option<i128>]) -> bool {
    let all: Vec<i128> = sample
        .changes()
        .flat_map(|file| times[file.rows.clone()].iter().flatten())
        .copied()
        .collect();
    all.windows(2).any(|two| two[1] < two[0])
}

/// Whether there are several different times, so that their order says something.
fn grows(sample: &Sample, times: &[Option<i128>]) -> bool {
    let rows = sample.files.iter().flat_map(|file| file.rows.clone());
    let all: Vec<i128> = rows.filter_map(|row| times[row]).collect();
    all.len() >= ROWS_MIN && all.iter().any(|time| *time != all[0])
}

/// Whether the times of changes are near those in the names of their files, of which there must be some.
fn has_times_of_files(sample: &Sample, times: &[Option<i128>]) -> bool {
    let named: Vec<(i128, &SampledFile)> =
        sample.changes().filter_map(|file| Some((instant_ns(file.time?), file))).collect();
    let are_near = |(of_file, file): &(i128, &SampledFile)| {
        let mut of_rows = times[file.rows.clone()].iter().flatten();
        of_rows.all(|time| (of_file - BEFORE_FILE_NS..=of_file + AFTER_FILE_NS).contains(time))
    };
    !named.is_empty() && named.iter().all(are_near)
}

/// Whether the rows of full loads are of one moment, or have no time.
fn is_one_moment(sample: &Sample, times: &[Option<i128>]) -> bool {
    let loads = sample.files.iter().filter(|file| file.is_load);
    let of_load = |rows: Range<usize>| {
        let (least, greatest) =
            times[rows].iter().flatten().fold((i128::MAX, i128::MIN), |(least, greatest), time| {
                (least.min(*time), greatest.max(*time))
            });
        greatest.saturating_sub(least) <= LOAD_NS
    };
    loads.map(|file| file.rows.clone()).all(of_load)
}

/// Whether the values of a column of an unclear name are those of a sequence: all different, and enough of them, or long.
fn is_telling(sample: &Sample, column: &Column) -> bool {
    let rows = sample.changes().flat_map(|file| file.rows.clone());
    let values: Vec<&String> = rows.filter_map(|row| column.values[row].as_ref()).collect();
    let distinct: BTreeSet<&&String> = values.iter().collect();
    let are_long = values.iter().all(|value| value.len() >= DIGITS_MIN);
    let has_files = sample.changes().filter(|file| !file.rows.is_empty()).count() > 1;
    distinct.len() == values.len() && (values.len() >= ROWS_MIN && has_files || are_long)
}

/// Whether the values of a column, which each row of the files of changes must have, are in the order of commit times, or without
/// these in that of the rows: as numbers, or as texts of one length.
fn is_in_order_of(sample: &Sample, column: &Column, time: Option<&Time>) -> bool {
    let rows: Vec<usize> = sample.changes().flat_map(|file| file.rows.clone()).collect();
    let texts: Option<Vec<&String>> = rows.iter().map(|row| column.values[*row].as_ref()).collect();
    let Some(texts) = texts.filter(|texts| !texts.is_empty()) else { return false };
    let number =
        |text: &String| if column.data_type.is_numeric() { text.parse().ok() } else { None };
    let places: Vec<(Option<i128>, usize, &String)> =
        texts.iter().map(|text| (number(text), text.len(), *text)).collect();
    let is_padded = |text: &str| {
        text.len() >= DIGITS_MIN
            || text.starts_with('0')
            || text.bytes().any(|byte| !byte.is_ascii_digit())
    };
    let is_comparable = places.iter().all(|(number, length, text)| {
        number.is_some() || *length == places[0].1 && is_padded(text)
    });
    let of_rows = |row: &usize| time.and_then(|time| time.times[*row]);
    let mut sorted: Vec<_> = places.iter().zip(rows.iter().map(of_rows)).collect();
    sorted.sort_by_key(|(place, _)| *place);
    let are_in_order = match time {
        Some(_) => sorted.windows(2).all(|two| two[0].1 <= two[1].1),
        None => places.is_sorted(),
    };
    is_comparable && are_in_order
}

#[cfg(test)]
mod tests {
    use super::*;

    use chrono::{DateTime, Utc};

    /// A sample of one file of changes of 2024-01-02 10:15, with these columns and rows.
    fn sample(columns: &[&str], rows: &[&[&str]]) -> Sample {
        let time: DateTime<Utc> = "2024-01-02T10:15:00Z".parse().expect("a time");
        let file = SampledFile {
            path: "20240102-101500123.parquet".into(),
            is_load: false,
            time: Some(time),
            rows: 0..rows.len(),
            is_whole: true,
        };
        let column = |(number, name): (usize, &&str)| Column {
            name: name.to_string(),
            data_type: DataType::Utf8View,
            other_types: Vec::new(),
            values: rows.iter().map(|row| Some(row[number].to_string())).collect(),
            extremes: Vec::new(),
        };
        let columns = columns.iter().enumerate().map(column).collect();
        Sample { columns, files: vec![file], ..Sample::default() }
    }

    fn found(columns: &[&str], rows: &[&[&str]]) -> (Vec<String>, Option<String>) {
        let order = find(&sample(columns, rows));
        (order.columns, order.commit_time)
    }

    #[test]
    fn a_commit_time_is_known_by_its_name_unless_it_goes_back() {
        let rows: [&[&str]; 2] = [&["2024-01-02 10:00:00"], &["2024-01-02 10:00:01"]];
        assert_eq!(found(&["TIMESTAMP"], &rows).0, ["TIMESTAMP"]);
        assert_eq!(found(&["x"], &rows).0, Vec::<String>::new(), "two rows say nothing");
        let more: [&[&str]; 3] = [rows[0], rows[0], rows[1]];
        assert_eq!(found(&["x"], &more).0, ["x"], "near the time of the file");
        assert_eq!(found(&["updated_at"], &rows).0, Vec::<String>::new(), "of the application");
        let old: [&[&str]; 2] = [&["2019-01-02 10:00:00"], &["2019-01-02 10:00:01"]];
        assert_eq!(found(&["ts"], &old).0, Vec::<String>::new(), "not of the time of the file");
        let back: [&[&str]; 2] = [rows[1], rows[0]];
        let order = find(&sample(&["TIMESTAMP"], &back));
        assert!(
            order.columns.is_empty() && order.note.is_some_and(|note| note.contains("goes back"))
        );
    }

    #[test]
    fn a_sequence_is_in_the_order_of_commit_times() {
        let time = "2024-01-02 10:00:00";
        let rows: [&[&str]; 3] =
            [&["000000000000002", time], &["000000000000001", time], &["000000000000003", time]];
        assert_eq!(
            found(&["seq", "ts"], &rows),
            (vec!["seq".into()], Some("ts".into())),
            "of one transaction"
        );
        let later: [&[&str]; 3] = [
            &["000000000000002", time],
            &["000000000000001", "2024-01-02 10:00:01"],
            &["000000000000003", "2024-01-02 10:00:02"],
        ];
        assert_eq!(found(&["seq", "ts"], &later).0, ["ts"]);
        let longer: [&[&str]; 3] = [&["7", time], &["8", time], &["9", time]];
        assert_eq!(
            found(&["seq", "ts"], &longer).0,
            ["ts"],
            "letter by letter a 10 would be before them"
        );
    }
}
