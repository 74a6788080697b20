//! The day of a row: which column has it, and how many partitions it would make.

use crate::survey::sample::{Column, Sample};
use crate::types::times::{DAY_NS, parse_time};

/// The least size of a partition that is worth one.
const PARTITION_BYTES_MIN: u64 = 32_000_000;

/// Parts of names of times at which something happened to a row once, the best first.
const ONCE: [&str; 13] = [
    "event",
    "occurred",
    "created",
    "create",
    "order",
    "sale",
    "sold",
    "posted",
    "registered",
    "inserted",
    "booked",
    "issued",
    "date",
];
/// Parts of names of times that change, or are not when something happened.
const NOT_ONCE: [&str; 14] = [
    "update", "modif", "chang", "expir", "birth", "dob", "due", "valid", "end", "until", "deliver",
    "ship", "delete", "last",
];

/// A column whose day can be that of its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Days {
    pub(super) column: String,
    /// About how many days it has.
    pub(super) days: u64,
    /// About how large the partition of a day would be.
    pub(super) bytes: u64,
}

impl Days {
    /// Whether partitions would be of a size that is worth it.
    pub(super) fn are_worth_it(&self) -> bool {
        self.bytes >= PARTITION_BYTES_MIN && self.days > 1
    }
}

/// Finds the column, among those that are not `others`, of a table of a size; `rows` are those that have all columns.
pub(super) fn find(sample: &Sample, others: &[String], rows: &[usize], bytes: u64) -> Option<Days> {
    let fits = |column: &&Column| {
        let is_other = others.iter().any(|other| other.eq_ignore_ascii_case(&column.name));
        let lower = column.name.to_ascii_lowercase();
        !is_other && !NOT_ONCE.iter().any(|part| lower.contains(part))
    };
    let named = ONCE.iter().find_map(|part| {
        let is_named = |column: &&Column| column.name.to_ascii_lowercase().contains(part);
        sample
            .columns
            .iter()
            .filter(fits)
            .filter(is_named)
            .find_map(|column| days_of(column, rows).map(|days| (column, days)))
    });
    let (column, days) = named?;
    Some(Days { column: column.name.clone(), days, bytes: bytes / days.max(1) })
}

/// The number of days from the first to the last of a column that is a time in each of some rows.
fn days_of(column: &Column, rows: &[usize]) -> Option<u64> {
    let may_be_time = column.data_type.is_temporal() || column.data_type.is_string();
    if rows.is_empty() || !may_be_time {
        return None;
    }
    let time = |text: &String| parse_time(text, chrono_tz::UTC);
    let of_rows = rows.iter().map(|row| column.values[*row].as_ref().and_then(time));
    let mut times: Vec<i128> = of_rows.collect::<Option<_>>()?;
    times.extend(column.extremes.iter().filter_map(time));
    let (first, last) = (times.iter().min()?, times.iter().max()?);
    u64::try_from(last.div_euclid(DAY_NS) - first.div_euclid(DAY_NS) + 1).ok()
}
