//! Bad rows: those of a run that cannot be folded, as far as they are put aside and not refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::error::{Error, Result};

/// The rows that a run puts aside have at most so many bytes.
const BYTES_MAX: usize = 64 << 20;

/// A row that cannot be folded.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// The row, from 0.
    pub row: u64,
    /// Of CSV, the line it begins in, from 1.
    pub line: Option<u64>,
    /// How many lines it takes; 1 where it has none.
    pub lines: u64,
    /// The column that is wrong, where it is one.
    pub column: Option<String>,
    /// What is wrong: what follows the name of the column, or of the row.
    pub reason: String,
    /// What to do.
    pub hint: &'static str,
    /// The row, as JSON; empty where it is still to be read.
    pub change: String,
}

impl BadRow {
    /// The error that stops a run.
    pub fn told(&self, file: &str) -> Error {
        let place = match self.line {
            Some(line) => format!("line {line} of {file}"),
            None => format!("row {} of {file}", self.row + 1),
        };
        let reason = &self.reason;
        Error::data(match &self.column {
            Some(column) => format!("{place}: column `{column}` {reason}"),
            None => format!("{place} {reason}"),
        })
        .hint(self.hint)
        .of_rows()
    }
}

/// A row as JSON: its fields by name, those without a value left out.
pub fn fields_json<'a>(fields: impl Iterator<Item = (Option<&'a str>, Option<String>)>) -> String {
    let fields = fields.enumerate().filter_map(|(number, (name, value))| {
        let name = name.map_or_else(|| format!("field {}", number + 1), String::from);
        let [name, value] = [name, value?].map(|text| Value::String(text).to_string());
        Some(format!("{name}:{value}"))
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// The bad rows of a run, by the number of their input.
#[derive(Debug)]
pub struct BadRows {
    max: u64,
    admitted: AtomicU64,
    bytes: AtomicUsize,
    rows: Mutex<BTreeMap<usize, Vec<BadRow>>>,
}

impl BadRows {
    /// None yet, and `max` at most.
    pub fn new(max: u64) -> Self {
        BadRows {
            max,
            admitted: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            rows: Mutex::default(),
        }
    }

    /// Those found so far, to go on with separately.
    pub fn copied(&self) -> Self {
        BadRows {
            max: self.max,
            admitted: AtomicU64::new(self.admitted.load(Ordering::Relaxed)),
            bytes: AtomicUsize::new(self.bytes.load(Ordering::Relaxed)),
            rows: Mutex::new(self.locked().clone()),
        }
    }

    /// Whether there is room for a bad row of a file of this name.
    ///
    /// # Errors
    /// Data, when there is none, or bad rows are not put aside at all.
    pub fn admit(&self, name: &str, bad: &BadRow) -> Result<()> {
        let one = bad.told(name);
        if self.max == 0 {
            return Err(one);
        }
        // A quote that is not closed makes one row of many lines.
        let lines = bad.lines;
        if self.admitted.fetch_add(lines, Ordering::Relaxed) + lines > self.max {
            let hint = "mend the files or the pipeline, or raise `raw.max_bad_rows`";
            let told = format!("more than {} rows are bad, such as", self.max);
            return Err(Error::data(told).hint(hint).caused_by(one).of_rows());
        }
        self.grow(name, bad, bad.change.len())
    }

    /// Whether there is room for more of the rows that were admitted.
    ///
    /// # Errors
    /// Data, when there is none.
    pub fn grow(&self, name: &str, bad: &BadRow, bytes: usize) -> Result<()> {
        match self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= BYTES_MAX {
            true => Ok(()),
            false => {
                let mega = BYTES_MAX >> 20;
                let told = format!("the bad rows of the run have more than {mega} MB, such as");
                let hint = "mend the files or the pipeline, or run smaller windows";
                let one = bad.told(name);
                Err(Error::data(told).hint(hint).caused_by(one).of_rows())
            }
        }
    }

    /// Takes bad rows of an input that were admitted.
    pub fn put(&self, input: usize, bad: Vec<BadRow>) {
        if !bad.is_empty() {
            self.locked().entry(input).or_default().extend(bad);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.locked().values().map(|rows| rows.len() as u64).sum()
    }

    /// All of them, by input, in the order of their rows.
    pub fn sorted(&self) -> BTreeMap<usize, Vec<BadRow>> {
        let mut rows = self.locked().clone();
        for rows in rows.values_mut() {
            rows.sort_by_key(|bad| bad.row);
        }
        rows
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<BadRow>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn bad(row: u64) -> BadRow {
        BadRow {
            row,
            line: None,
            lines: 1,
            column: Some("id".into()),
            reason: "is null".into(),
            hint: "check",
            change: String::new(),
        }
    }

    #[test]
    fn bad_rows_are_sorted_and_limited() {
        let rows = BadRows::new(3);
        for (input, row) in [(1, 7), (1, 2), (0, 5)] {
            rows.admit("a", &bad(row)).expect("room");
            rows.put(input, vec![bad(row)]);
        }
        let sorted: Vec<(usize, u64)> = rows
            .sorted()
            .into_iter()
            .flat_map(|(input, rows)| rows.into_iter().map(move |bad| (input, bad.row)))
            .collect();
        assert_eq!(sorted, [(0, 5), (1, 2), (1, 7)]);
        assert_eq!(rows.count(), 3);
        let error = rows.admit("a", &bad(6)).expect_err("one too many");
        assert_eq!((error.kind, error.is_of_rows), (Kind::Data, true));
        assert_eq!(
            error.to_string(),
            "more than 3 rows are bad, such as: row 7 of a: column `id` is null"
        );
        let error = BadRows::new(0)
            .admit("a", &bad(6))
            .expect_err("none is put aside");
        assert_eq!(error.to_string(), "row 7 of a: column `id` is null");
    }

    #[test]
    fn bad_rows_are_limited_in_bytes() {
        let rows = BadRows::new(1 << 40);
        let large = BadRow {
            change: "x".repeat(1 << 20),
            ..bad(0)
        };
        (0..64).for_each(|_| rows.admit("a", &large).expect("room"));
        let error = rows.admit("a", &large).expect_err("too much");
        assert!(error.to_string().contains("more than 64 MB"), "{error}");
    }

    #[test]
    fn a_row_is_told_by_line_where_it_has_one() {
        let told = BadRow {
            line: Some(9),
            column: None,
            reason: "has 2 fields".into(),
            ..bad(6)
        };
        assert_eq!(
            told.told("a.csv").to_string(),
            "line 9 of a.csv has 2 fields"
        );
    }
}
