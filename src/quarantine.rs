//! Quarantine: rows and files that cannot be folded, put aside where the pipeline says so.
//!
//! What a run puts aside is one Parquet file below the state folder, written before the commit that
//! names it:
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
//! A raw file that is read again takes the place of what was put aside of it before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;

use crate::changes::Changes;
use crate::discover::Input;
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
    count: AtomicU64,
    rows: Mutex<BTreeMap<usize, Vec<BadRow>>>,
}

impl BadRows {
    /// None yet, and `max` at most.
    pub fn new(max: u64) -> Self {
        BadRows {
            max,
            count: AtomicU64::new(0),
            rows: Mutex::default(),
        }
    }

    /// Takes bad rows of an input of this name.
    ///
    /// # Errors
    /// Data, when there are too many.
    pub fn put(&self, input: usize, name: &str, bad: Vec<BadRow>) -> Result<()> {
        let Some(first) = bad.first() else {
            return Ok(());
        };
        let before = self.count.fetch_add(bad.len() as u64, Ordering::Relaxed);
        if before + bad.len() as u64 > self.max {
            let one = first.told(name);
            let hint = "mend the files or the pipeline, or raise `raw.max_bad_rows`";
            return Err(
                Error::data(format!("more than {} rows are bad, such as", self.max))
                    .hint(hint)
                    .caused_by(one),
            );
        }
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.entry(input).or_default().extend(bad);
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All of them, by input, in the order of their rows.
    pub fn sorted(&self) -> BTreeMap<usize, Vec<BadRow>> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = rows.clone();
        for rows in rows.values_mut() {
            rows.sort_by_key(|bad| bad.row);
        }
        rows
    }
}

/// A line of the file: the raw file, the row unless it is the whole file, and the reason.
type Line = (String, Option<BadRow>, String);

/// What a run puts aside.
pub struct PutAside<'a> {
    /// The opened inputs, and their bad rows.
    pub changes: &'a Changes,
    /// The files that cannot be read at all, and why.
    pub files: &'a [(Input, String)],
    /// The raw folders.
    pub folders: &'a [Folder],
    /// The run.
    pub run_id: &'a str,
}

impl PutAside<'_> {
    /// Writes what is put aside to a file.
    ///
    /// # Errors
    /// Data, when it is too much; storage, when it cannot be read or written.
    pub async fn write(&self, folder: &Folder, path: &str) -> Result<()> {
        let mut rows: Vec<Line> = Vec::new();
        for (input, reason) in self.files {
            let name = self.folders[input.file.location].describe(&input.file.path);
            rows.push((name, None, reason.clone()));
        }
        let mut bytes = 0;
        for (input, mut bad) in self.changes.bad_rows().sorted() {
            self.read(input, &mut bad).await?;
            bytes += bad.iter().map(|bad| bad.change.len()).sum::<usize>();
            if bytes > BYTES_MAX {
                let mega = BYTES_MAX >> 20;
                return Err(Error::data(format!(
                    "the bad rows of the run have more than {mega} MB, such as"
                ))
                .hint("mend the files, or run smaller windows")
                .caused_by(bad[0].told(&self.changes.file(input).file.name)));
            }
            let name = &self.changes.file(input).file.name;
            let told = |bad: BadRow| (name.clone(), Some(bad.clone()), bad.reason);
            rows.extend(bad.into_iter().map(told));
        }
        let text = |of: fn(&Line) -> Option<String>| -> ArrayRef {
            Arc::new(rows.iter().map(of).collect::<StringArray>())
        };
        let number = |of: fn(&BadRow) -> Option<u64>| -> ArrayRef {
            let numbers = rows.iter().map(|(_, bad, _)| bad.as_ref().and_then(of));
            let numbers = numbers.map(|number| number.map(|number| number as i64));
            Arc::new(numbers.collect::<Int64Array>())
        };
        let run_ids = rows.iter().map(|_| Some(self.run_id));
        let columns = vec![
            ("file", text(|row| Some(row.0.clone()))),
            ("row", number(|bad| Some(bad.row + 1))),
            ("line", number(|bad| bad.line)),
            ("column", text(|row| row.1.as_ref()?.column.clone())),
            ("reason", text(|row| Some(row.2.clone()))),
            ("change", text(|row| Some(row.1.as_ref()?.change.clone()))),
            ("run_id", Arc::new(run_ids.collect::<StringArray>())),
        ];
        let fields = columns
            .iter()
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let mut writer = parquet_writer(folder, path, schema, parquet_properties(path, &[]))?;
        let written = async {
            writer.write(&batch).await?;
            writer.finish().await
        };
        let failed = |error| write_error(folder, path, error);
        written.await.map_err(failed)?;
        folder.sync(&[path.to_string()])
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
        rows.put(1, "b", vec![bad(7)]).expect("room");
        rows.put(1, "b", vec![bad(2)]).expect("room");
        rows.put(0, "a", vec![bad(5)]).expect("room");
        let sorted: Vec<(usize, u64)> = rows
            .sorted()
            .into_iter()
            .flat_map(|(input, rows)| rows.into_iter().map(move |bad| (input, bad.row)))
            .collect();
        assert_eq!(sorted, [(0, 5), (1, 2), (1, 7)]);
        let error = rows.put(0, "a", vec![bad(6)]).expect_err("one too many");
        assert_eq!(error.kind, Kind::Data);
        assert_eq!(
            error.to_string(),
            "more than 3 rows are bad, such as: row 7 of a: column `id` is null"
        );
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
