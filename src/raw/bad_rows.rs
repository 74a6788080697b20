//! Bad rows: the rows of a run that cannot be folded and are quarantined instead of refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::error::{Error, Result};

/// The size limit of all rows that a run quarantines.
const BYTES_MAX: usize = 64 << 20;

/// The reason of a row with a text that is not UTF-8.
pub(crate) const NOT_UTF8: &str = "is not UTF-8 text";

/// A row that cannot be folded.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// The row's number in its file, from 0.
    pub row: u64,
    /// The line it begins in, from 1; for CSV and JSON only.
    pub line: Option<u64>,
    /// The number of lines it spans; 1 for formats without lines.
    pub lines: u64,
    /// The faulty column, if a single column is at fault.
    pub column: Option<String>,
    /// What is wrong, as the rest of a sentence that begins with the column or the row.
    pub reason: String,
    /// The next step for the user.
    pub hint: &'static str,
    /// The row as JSON; empty until it has been read.
    pub change: String,
}

impl BadRow {
    /// The error that stops a run at this row.
    pub fn to_error(&self, file: &str) -> Error {
        let row = match self.line {
            Some(line) => format!("line {line} of {file}"),
            None => format!("row {} of {file}", self.row + 1),
        };
        let reason = &self.reason;
        Error::data(match &self.column {
            Some(column) => format!("{row}: column `{column}` {reason}"),
            None => format!("{row} {reason}"),
        })
        .hint(self.hint)
        .of_rows()
    }
}

/// A row as a JSON object of its fields by name, without the null ones.
pub(crate) fn fields_json<'a>(
    fields: impl Iterator<Item = (Option<&'a str>, Option<String>)>,
) -> String {
    let fields = fields.enumerate().filter_map(|(number, (name, value))| {
        let name = name.map_or_else(|| format!("field {}", number + 1), String::from);
        let [name, value] = [name, value?].map(|text| Value::String(text).to_string());
        Some(format!("{name}:{value}"))
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// A row as [`fields_json`] has made it, with more fields behind its own.
pub(crate) fn with_fields<'a>(
    row: &str,
    more: impl Iterator<Item = (Option<&'a str>, Option<String>)>,
) -> String {
    let more = fields_json(more);
    match (row.strip_suffix('}'), more.strip_prefix('{')) {
        (Some("{"), Some(_)) => more,
        (Some(row), Some(rest)) if rest.len() > 1 => format!("{row},{rest}"),
        _ => row.to_string(),
    }
}

/// The bad rows of a run, by the index of their input.
#[derive(Debug)]
pub struct BadRows {
    max: u64,
    admitted: AtomicU64,
    bytes: AtomicUsize,
    rows: Mutex<BTreeMap<usize, Vec<BadRow>>>,
}

impl BadRows {
    /// An empty collection of at most `max` rows.
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

    /// Reserves room for a bad row of the file `name`.
    ///
    /// # Errors
    /// Data, when a limit is reached, or when the pipeline does not quarantine rows.
    pub fn admit(&self, name: &str, bad: &BadRow) -> Result<()> {
        let error = bad.to_error(name);
        if self.max == 0 {
            return Err(error);
        }
        // An unclosed quote turns many lines into one row.
        let lines = bad.lines;
        if self.admitted.fetch_add(lines, Ordering::Relaxed) + lines > self.max {
            let hint = "fix the files or the pipeline, or raise `raw.max_bad_rows`";
            let message = format!("more than {} rows are bad, such as", self.max);
            return Err(Error::data(message).hint(hint).caused_by(error).of_rows());
        }
        self.grow(name, bad, bad.change.len())
    }

    /// Reserves `bytes` more for a row that was admitted.
    ///
    /// # Errors
    /// Data, when the size limit is reached.
    pub fn grow(&self, name: &str, bad: &BadRow, bytes: usize) -> Result<()> {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= BYTES_MAX {
            return Ok(());
        }
        let mega = BYTES_MAX >> 20;
        let message = format!("the bad rows of the run have more than {mega} MB, such as");
        let hint = "fix the files or the pipeline, or run smaller windows";
        let first = bad.to_error(name);
        Err(Error::data(message).hint(hint).caused_by(first).of_rows())
    }

    /// Adds admitted bad rows of an input.
    pub fn put(&self, input: usize, bad: Vec<BadRow>) {
        if !bad.is_empty() {
            self.locked().entry(input).or_default().extend(bad);
        }
    }

    /// Keeps only some of the rows. Returns the number of the others.
    pub(crate) fn retain(&self, is_kept: impl Fn(&BadRow) -> bool) -> u64 {
        let mut inputs = self.locked();
        let count =
            |rows: &BTreeMap<usize, Vec<BadRow>>| rows.values().map(Vec::len).sum::<usize>();
        let before = count(&inputs);
        inputs.values_mut().for_each(|rows| rows.retain(&is_kept));
        inputs.retain(|_, rows| !rows.is_empty());
        (before - count(&inputs)) as u64
    }

    /// The number of bad rows.
    pub fn count(&self) -> u64 {
        self.locked().values().map(|rows| rows.len() as u64).sum()
    }

    /// All bad rows by input, sorted by row number.
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
        let error = BadRows::new(0).admit("a", &bad(6)).expect_err("rows are not quarantined");
        assert_eq!(error.to_string(), "row 7 of a: column `id` is null");
    }

    #[test]
    fn bad_rows_are_limited_in_bytes() {
        let rows = BadRows::new(1 << 40);
        let large = BadRow { change: "x".repeat(1 << 20), ..bad(0) };
        (0..64).for_each(|_| rows.admit("a", &large).expect("room"));
        let error = rows.admit("a", &large).expect_err("too much");
        assert!(error.to_string().contains("more than 64 MB"), "{error}");
    }

    #[test]
    fn an_error_names_the_line_of_a_csv_row() {
        let row = BadRow { line: Some(9), column: None, reason: "has 2 fields".into(), ..bad(6) };
        assert_eq!(row.to_error("a.csv").to_string(), "line 9 of a.csv has 2 fields");
    }
}
