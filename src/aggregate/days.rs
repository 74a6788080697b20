//! The days for which an aggregate is computed.

use std::collections::BTreeSet;

use chrono::{Days, NaiveDate};

use crate::config::Aggregate;
use crate::layout::{parent, parse_partition_segment};
use crate::state::ledger::{Ledger, Relations, Run};
use crate::types::times::days_in_window;
use crate::window::WindowSet;

/// Days no further apart than this are computed by one query.
pub(super) const GAP_DAYS_MAX: i64 = 366;

/// The windows' days, the days that changed since the table was last aggregated, and of those computed
/// before all from the first day on that may have changed with others: for a running table the
/// earliest changed day; for one over the balance the earliest day that changed in a run that did not
/// keep it. Days change in the relations that the query reads: a row that moves to another day leaves
/// the history as it was.
pub(super) fn days_to_compute<'a>(
    ledger: &'a Ledger,
    aggregate: &Aggregate,
    windows: &WindowSet,
) -> BTreeSet<NaiveDate> {
    let zone = ledger.day_zone();
    let table = aggregate.table();
    let last = ledger.runs.iter().rposition(|run| run.tables.contains(&table));
    let since = &ledger.runs[last.map_or(0, |last| last + 1)..];
    let relations = Relations::read_by(&aggregate.sql);
    let changed_by = |run: &'a Run| run.changed.of(relations);
    let changed: BTreeSet<NaiveDate> = since.iter().flat_map(changed_by).collect();
    let mut days: BTreeSet<NaiveDate> =
        windows.iter().flat_map(|window| days_in_window(window, zone)).collect();
    let unknown = since.iter().filter_map(|run| run.changed.unknown_from(relations));
    let earliest = changed.first().copied().filter(|_| aggregate.running);
    if let Some(earliest) = unknown.chain(earliest).min() {
        let published = ledger.files(&table).filter_map(|file| {
            parse_partition_segment(parent(&file.path)).and_then(|(_, day)| day?.parse().ok())
        });
        // A day whose result was empty is not published, and may have rows now.
        let computed = ledger.windows_aggregated(&table);
        let changed_before = ledger.runs.iter().flat_map(changed_by);
        let all = published
            .chain(computed.iter().flat_map(|window| days_in_window(window, zone)))
            .chain(changed_before);
        days.extend(all.filter(|day: &NaiveDate| *day >= earliest));
    }
    days.extend(changed);
    days
}

/// Groups days into ranges, with an exclusive end, without gaps above [`GAP_DAYS_MAX`].
pub(super) fn ranges(days: &BTreeSet<NaiveDate>) -> Vec<(NaiveDate, NaiveDate)> {
    let mut ranges: Vec<(NaiveDate, NaiveDate)> = Vec::new();
    for day in days {
        match ranges.last_mut() {
            Some((_, last)) if (*day - *last).num_days() <= GAP_DAYS_MAX => *last = *day,
            _ => ranges.push((*day, *day)),
        }
    }
    let end = |last: NaiveDate| last.checked_add_days(Days::new(1)).unwrap_or(NaiveDate::MAX);
    ranges.into_iter().map(|(first, last)| (first, end(last))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_far_apart_are_in_different_ranges() {
        let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
        let days = ["2018-01-01", "2019-01-01", "2019-01-05", "2021-01-01"].map(day).into();
        assert_eq!(
            ranges(&days),
            [(day("2018-01-01"), day("2019-01-06")), (day("2021-01-01"), day("2021-01-02"))]
        );
    }
}
