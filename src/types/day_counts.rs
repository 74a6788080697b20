//! Row counts by day.

use std::collections::BTreeMap;

/// The number of rows of each day (as days since 1970; `None` for rows without a day).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DayCounts(BTreeMap<Option<i32>, u64>);

impl DayCounts {
    /// Adds rows of one day.
    #[inline]
    pub fn add(&mut self, day: Option<i32>, rows: u64) {
        *self.0.entry(day).or_default() += rows;
    }

    /// Adds other counts.
    pub fn add_all(&mut self, other: &DayCounts) {
        other.iter().for_each(|(day, rows)| self.add(day, rows));
    }

    /// The days and their row counts, ascending, rows without a day first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<i32>, u64)> {
        self.0.iter().map(|(day, rows)| (*day, *rows))
    }

    /// The total number of rows.
    pub fn rows(&self) -> u64 {
        self.0.values().sum()
    }

    /// Whether the two have a day in common.
    pub fn overlaps(&self, other: &DayCounts) -> bool {
        let (few, many) = if self.0.len() < other.0.len() { (self, other) } else { (other, self) };
        few.0.keys().any(|day| many.0.contains_key(day))
    }
}

impl FromIterator<(Option<i32>, u64)> for DayCounts {
    fn from_iter<I: IntoIterator<Item = (Option<i32>, u64)>>(days: I) -> Self {
        let mut counts = DayCounts::default();
        days.into_iter().for_each(|(day, rows)| counts.add(day, rows));
        counts
    }
}
