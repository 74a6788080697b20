//! Quarantine: rows and files that cannot be folded, put aside where the pipeline says so.
//!
//! What a run puts aside of a raw file is one Parquet file below the state folder, written before
//! the commit that names it:
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | `file` | Utf8 | no | the raw file, as a URL |
//! | `row` | Int64 | yes | the row in it, from 1; null for the whole file |
//! | `line` | Int64 | yes | of CSV, the line the row begins in, from 1 |
//! | `column` | Utf8 | yes | the column that is wrong, where it is one |
//! | `reason` | Utf8 | no | what is wrong |
//! | `change` | Utf8 | yes | the row, as JSON: columns by name, values as text, null left out |
//! | `run_id` | Utf8 | no | the run that put it aside |
//!
//! What is put aside of a raw file that is read again takes the place of what was before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;

use crate::changes::Changes;
use crate::error::{Error, Result};
use crate::parquet_pieces::fetched_ahead;
use crate::session::BATCH_ROWS;
use crate::store::Folder;
use crate::table_writer::{parquet_properties, parquet_writer, write_error};

/// The rows that a run puts aside have at most so many bytes.
const BYTES_MAX: usize = 64 << 20;

/// A row that cannot be folded.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// The row, from 0.
    pub row: u64,
    /// Of CSV, the line it begins in, from 1.
    pub line: Option<u64>,
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

    /// Whether there is room for a bad row of a file of this name.
    ///
    /// # Errors
    /// Data, when there is none, or bad rows are not put aside at all.
    pub fn admit(&self, name: &str, bad: &BadRow) -> Result<()> {
        let one = bad.told(name);
        if self.max == 0 {
            return Err(one);
        }
        if self.admitted.fetch_add(1, Ordering::Relaxed) >= self.max {
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

/// What a run puts aside.
pub struct PutAside<'a> {
    /// The opened inputs, and their bad rows.
    pub changes: &'a Changes,
    /// Where it goes.
    pub folder: &'a Folder,
    /// The run.
    pub run_id: &'a str,
}

impl PutAside<'_> {
    /// Writes the bad rows of an input to a file.
    ///
    /// # Errors
    /// Data, when they are too much; storage, when they cannot be read or the file be written.
    pub async fn rows(&self, path: &str, input: usize, mut bad: Vec<BadRow>) -> Result<()> {
        let known: usize = bad.iter().map(|bad| bad.change.len()).sum();
        self.read(input, &mut bad).await?;
        let name = &self.changes.file(input).file.name;
        let bytes: usize = bad.iter().map(|bad| bad.change.len()).sum();
        self.changes.bad_rows().grow(name, &bad[0], bytes - known)?;
        self.write(path, name, bad.iter().map(Some), None).await
    }

    /// Writes to a file that an input of this name cannot be read, and why.
    ///
    /// # Errors
    /// Storage, when the file cannot be written.
    pub async fn file(&self, path: &str, name: &str, reason: &str) -> Result<()> {
        self.write(path, name, std::iter::once(None), Some(reason))
            .await
    }

    async fn write<'b>(
        &self,
        path: &str,
        name: &str,
        bad: impl Iterator<Item = Option<&'b BadRow>>,
        reason: Option<&str>,
    ) -> Result<()> {
        let bad: Vec<Option<&BadRow>> = bad.collect();
        let text = |of: fn(&BadRow) -> Option<&str>| -> ArrayRef {
            let texts = bad.iter().map(|bad| bad.and_then(of));
            Arc::new(texts.collect::<StringArray>())
        };
        let number = |of: fn(&BadRow) -> Option<u64>| -> ArrayRef {
            let numbers = bad.iter().map(|bad| Some(bad.and_then(of)? as i64));
            Arc::new(numbers.collect::<Int64Array>())
        };
        let same =
            |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; bad.len()])) };
        let reasons = match reason {
            Some(reason) => same(reason),
            None => text(|bad| Some(&bad.reason)),
        };
        let columns = [
            ("file", same(name), false),
            ("row", number(|bad| Some(bad.row + 1)), true),
            ("line", number(|bad| bad.line), true),
            ("column", text(|bad| bad.column.as_deref()), true),
            ("reason", reasons, false),
            ("change", text(|bad| Some(&bad.change)), true),
            ("run_id", same(self.run_id), false),
        ];
        let fields = columns.iter().map(|(name, column, nullable)| {
            Field::new(*name, column.data_type().clone(), *nullable)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = columns.into_iter().map(|(_, column, _)| column).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let properties = parquet_properties(path, &[]);
        let mut writer = parquet_writer(self.folder, path, schema, properties)?;
        let written = async {
            writer.write(&batch).await?;
            writer.finish().await
        };
        let failed = |error| write_error(self.folder, path, error);
        written.await.map_err(failed)?;
        self.folder.sync(&[path.to_string()])
    }

    /// Reads the bad rows of an input whole.
    async fn read(&self, input: usize, bad: &mut [BadRow]) -> Result<()> {
        let file = &self.changes.file(input).file;
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for (place, bad) in bad.iter().enumerate() {
            if bad.change.is_empty() {
                wanted.insert(bad.row, place);
            }
        }
        let mut first = 0u64;
        let mut chosen = Vec::new();
        for (number, group) in file.row_groups().iter().enumerate() {
            let rows = first..first + group.rows as u64;
            if wanted.range(rows.clone()).next().is_some() {
                let is_wanted = |row: usize| wanted.contains_key(&(first + row as u64));
                let mask = BooleanBuffer::collect_bool(group.rows, is_wanted);
                chosen.push((number, Some(mask)));
            }
            first = rows.end;
        }
        let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
        let pieces = file.pieces(&columns, chosen.into_iter()).into_iter();
        let fetched = fetched_ahead(pieces.map(|piece| (piece, ())));
        let batches = fetched.map(|fetched| {
            let (fetched, ()) = fetched.map_err(|(error, ())| error)?;
            Ok::<_, Error>(stream::iter(fetched.read(BATCH_ROWS)?))
        });
        let mut batches = std::pin::pin!(batches.try_flatten());
        let mut places = wanted.values();
        let format = FormatOptions::default();
        while let Some(batch) = batches.try_next().await? {
            let columns = &batch.columns()[..batch.num_columns() - 1];
            let schema = batch.schema();
            let shown = columns.iter().map(|column| -> Result<_> {
                let shown = ArrayFormatter::try_new(column, &format)?;
                Ok((column, shown))
            });
            let shown = shown.collect::<Result<Vec<_>>>()?;
            for (row, place) in (0..batch.num_rows()).zip(&mut places) {
                let fields = schema.fields().iter().zip(&shown);
                let fields = fields.map(|(field, (column, shown))| {
                    let value = column.is_valid(row).then(|| shown.value(row).to_string());
                    (Some(field.name().as_str()), value)
                });
                bad[*place].change = fields_json(fields);
            }
        }
        Ok(())
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
