//! Quarantine: records rows and files that cannot be folded, if the pipeline allows it.
//! For each raw file, a run writes one Parquet file below the state folder, before the commit that
//! lists it:
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | `file` | Utf8 | no | the raw file, as a URL |
//! | `row` | Int64 | yes | the row in it, from 1; null for the whole file |
//! | `line` | Int64 | yes | of CSV, the line the row begins in, from 1 |
//! | `column` | Utf8 | yes | the column that is wrong, where it is one |
//! | `reason` | Utf8 | no | what is wrong |
//! | `change` | Utf8 | yes | the row, as JSON: columns by name, values as text, null left out; null if one of its keys was forgotten |
//! | `run_id` | Utf8 | no | the run that quarantined it |
//! When a raw file is read again, its new quarantine file replaces the earlier one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;

use crate::changes::Changes;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result};
use crate::parquet_io::fetch::SelectedRows;
use crate::parquet_io::open::ParquetFile;
use crate::parquet_io::texts::escaped_text;
use crate::raw::bad_rows::{BadRow, BadRows, fields_json};
use crate::store::{Folder, parse_path};
use crate::table::writer::{parquet_properties, parquet_writer, write_error};
use crate::types::column_type::cast_values;
use crate::types::mask::{Mask, REDACTED};

/// Writes the quarantine files of a run.
pub struct QuarantineWriter<'a> {
    /// The opened inputs.
    pub changes: &'a Changes,
    /// Their bad rows.
    pub bad_rows: &'a BadRows,
    /// The folder of quarantine files.
    pub folder: &'a Folder,
    /// The run's id.
    pub run_id: &'a str,
}

/// Writes a file of quarantine again, as `to`, without the texts of rows that are to be forgotten: of each the file, the
/// row and the reason stay. `is_forgotten` is given a text, and whether a single column of the row is wrong. Returns
/// whether there is such a row; else nothing is written.
///
/// # Errors
/// Storage, when a file cannot be read or written; data, when one is damaged.
pub(crate) async fn forget(
    folder: &Folder,
    from: &str,
    to: &str,
    mut is_forgotten: impl FnMut(&str, bool) -> bool,
) -> Result<bool> {
    let path = parse_path(from)?;
    let name = folder.describe(from);
    let bytes = match folder.store.head(&path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(false),
        found => found.map_err(|error| Error::store(format!("read {name}"), error))?.size,
    };
    let file = ParquetFile::open(Arc::clone(&folder.store), path, bytes, name).await?;
    // The number of the row comes last.
    let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
    let (column, at) = (file.schema().index_of("column")?, file.schema().index_of("change")?);
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut read = file.read(&columns, BATCH_ROWS);
    let mut has_any = false;
    while let Some(batch) = read.try_next().await? {
        let texts = cast(batch.column(at), &DataType::Utf8)?;
        let is_of_column = |row: usize| batch.column(column).is_valid(row);
        let texts = texts.as_string::<i32>().iter().enumerate();
        let kept: Vec<Option<&str>> = texts
            .map(|(row, text)| text.filter(|text| !is_forgotten(text, is_of_column(row))))
            .collect();
        has_any |=
            kept.iter().filter(|text| text.is_none()).count() > batch.column(at).null_count();
        let kept: ArrayRef = cast(&StringArray::from(kept), batch.column(at).data_type())?;
        let mut columns = batch.columns().to_vec();
        columns[at] = kept;
        batches.push(RecordBatch::try_new(batch.schema(), columns)?);
    }
    if let Some(first) = batches.first().filter(|_| has_any) {
        write_batches(folder, to, &first.schema(), &batches).await?;
    }
    Ok(has_any)
}

/// Writes a file of quarantine.
async fn write_batches(
    folder: &Folder,
    path: &str,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<()> {
    let properties = parquet_properties(path, &[]);
    let mut writer = parquet_writer(folder, path, Arc::clone(schema), properties)?;
    let written = async {
        for batch in batches {
            writer.write(batch).await?;
        }
        writer.finish().await
    };
    written.await.map_err(|error| write_error(folder, path, error))?;
    folder.sync(&[path.to_string()])
}

/// The text of a masked value; `***` where it cannot be masked, such as a text that is not UTF-8.
fn masked_text(
    mask: &Mask,
    (column, row): (&ArrayRef, usize),
    source: Option<&DataType>,
) -> Option<String> {
    if column.is_null(row) || column.data_type().is_null() {
        return None;
    }
    let value = column.slice(row, 1);
    let typed = source.map_or(Ok(Arc::clone(&value)), |source| cast_values(&value, source));
    let Ok(masked) = typed.and_then(|value| mask.apply(&value)) else {
        return Some(REDACTED.into());
    };
    let format = FormatOptions::default();
    let shown = ArrayFormatter::try_new(&masked, &format).ok();
    shown.filter(|_| masked.is_valid(0)).map(|shown| shown.value(0).to_string())
}

impl QuarantineWriter<'_> {
    /// Writes the bad rows of an input to a file.
    ///
    /// # Errors
    /// Data, when the limit of bad rows is exceeded; storage, when the rows cannot be read or the
    /// file cannot be written.
    pub async fn rows(&self, path: &str, input: usize, mut bad: Vec<BadRow>) -> Result<()> {
        let known: usize = bad.iter().map(|bad| bad.change.len()).sum();
        self.read(input, &mut bad).await?;
        let forgotten = bad.iter_mut().filter(|bad| self.changes.may_be_forgotten(bad));
        forgotten.for_each(|bad| bad.change.clear());
        let name = &self.changes.file(input).file.name;
        let bytes: usize = bad.iter().map(|bad| bad.change.len()).sum();
        self.bad_rows.grow(name, &bad[0], bytes.saturating_sub(known))?;
        self.write(path, name, bad.iter().map(Some), None).await
    }

    /// Writes a file for the input `name`, which cannot be read for `reason`.
    ///
    /// # Errors
    /// Storage, when the file cannot be written.
    pub async fn file(&self, path: &str, name: &str, reason: &str) -> Result<()> {
        self.write(path, name, std::iter::once(None), Some(reason)).await
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
            ("change", text(|bad| Some(&*bad.change).filter(|text| !text.is_empty())), true),
            ("run_id", same(self.run_id), false),
        ];
        let fields = columns.iter().map(|(name, column, nullable)| {
            Field::new(*name, column.data_type().clone(), *nullable)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = columns.into_iter().map(|(_, column, _)| column).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        write_batches(self.folder, path, &schema, &[batch]).await
    }

    /// Reads all columns of an input's bad rows.
    async fn read(&self, input: usize, bad: &mut [BadRow]) -> Result<()> {
        let file = &self.changes.file(input).file;
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, bad) in bad.iter().enumerate() {
            if bad.change.is_empty() {
                wanted.insert(bad.row, index);
            }
        }
        let mut first = 0u64;
        let mut selected = Vec::new();
        for (number, group) in file.row_groups().iter().enumerate() {
            let rows = first..first + group.rows as u64;
            if wanted.range(rows.clone()).next().is_some() {
                let is_wanted = |row: usize| wanted.contains_key(&(first + row as u64));
                let mask = BooleanBuffer::collect_bool(group.rows, is_wanted);
                selected.push((number, Some(mask)));
            }
            first = rows.end;
        }
        let all: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
        let used = self.changes.used_of(input);
        let batches = match self.read_rows(input, &all, &selected).await {
            // Columns that the pipeline does not use may be damaged.
            Err(error) if error.kind == Kind::Data => {
                self.read_rows(input, &used, &selected).await?
            }
            batches => batches?,
        };
        let is_text = |name: &str| {
            let field = file.schema().field_with_name(name);
            field.is_ok_and(|field| field.data_type().is_string())
        };
        let mut indices = wanted.values();
        let format = FormatOptions::default();
        for batch in batches {
            let columns = &batch.columns()[..batch.num_columns() - 1];
            let schema = batch.schema();
            let formatters = columns
                .iter()
                .map(|column| Ok((column, ArrayFormatter::try_new(column, &format)?)))
                .collect::<Result<Vec<_>>>()?;
            for (row, index) in (0..batch.num_rows()).zip(&mut indices) {
                let named = schema.fields().iter().zip(&formatters);
                let fields = named.map(|(field, (column, formatter))| {
                    let name = Some(field.name().as_str());
                    if let Some(mask) = self.changes.mask_of(input, field.name()) {
                        let source = self.changes.raw_column(field.name());
                        let source = source.map(|column| self.changes.source_type(column));
                        return (name, masked_text(mask, (column, row), source));
                    }
                    let text =
                        || is_text(field.name()).then(|| escaped_text(column, row)).flatten();
                    let value = || text().unwrap_or_else(|| formatter.value(row).to_string());
                    let is_null = column.is_null(row) || column.data_type().is_null();
                    (name, (!is_null).then(value))
                });
                let constants = self.changes.constants_of(input);
                bad[*index].change = fields_json(fields.chain(constants));
            }
        }
        Ok(())
    }

    /// Some rows of an input.
    async fn read_rows(
        &self,
        input: usize,
        columns: &[usize],
        selected: &[SelectedRows],
    ) -> Result<Vec<RecordBatch>> {
        let file = &self.changes.file(input).file;
        let selected = selected.iter().cloned();
        file.read_selected_raw(columns, selected, BATCH_ROWS).try_collect().await
    }
}
