//! Typed rows: the rows of a text file are read as columns of text, converted to the columns' types,
//! and written as Parquet to the spill folder, so that later steps read Parquet only.
//!
//! A row with a value that does not fit its type is bad. Bad rows do not change the numbers of the
//! rows after them: a quarantined row is replaced by a row of nulls, which is not folded.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, NullArray, RecordBatch, new_null_array,
};
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::errors::Result as ParquetResult;
use parquet::file::properties::WriterProperties;

use crate::config::Masks;
use crate::error::{Error, Result};
use crate::raw::bad_rows::{BadRow, fields_json};
use crate::types::column_type::cast_values;
use crate::types::mask::Mask;

/// The size limit of a row group, which is in memory until it is complete.
const ROW_GROUP_BYTES: usize = 4 << 20;

/// What is wrong with a row of a batch.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The index of the faulty column.
    pub column: usize,
    /// As in [`BadRow`].
    pub reason: String,
    /// As in [`BadRow`].
    pub hint: &'static str,
}

/// The rows of a batch in their file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileRows<'a> {
    /// The number of the first row, from 0.
    pub first: u64,
    /// The line of each row, from 1.
    pub lines: &'a [u64],
}

/// A writer of Parquet for the spill folder.
///
/// # Errors
/// Those of the output.
pub(crate) fn spill_writer<W: Write + Send>(
    output: W,
    schema: &SchemaRef,
) -> ParquetResult<ArrowWriter<W>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
    let options = ArrowWriterOptions::new()
        .with_properties(properties.build())
        .with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(output, Arc::clone(schema), options)
}

/// The columns that text is converted to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TypedColumns<'a> {
    /// The columns, before they are masked.
    pub schema: &'a SchemaRef,
    /// The masks of some of them.
    pub masks: &'a Masks,
    /// The columns once they are masked.
    pub masked: &'a SchemaRef,
}

/// Converts columns of text to columns of other types, which are masked. Rows that are `wrong`, by their index in the
/// batch, and those with a value that does not fit its type or cannot be masked are passed to `quarantine` and become
/// null.
///
/// # Errors
/// Those of `quarantine`.
pub(crate) fn typed(
    columns: TypedColumns<'_>,
    mut texts: Vec<ArrayRef>,
    rows: FileRows<'_>,
    mut wrong: BTreeMap<usize, Fault>,
    quarantine: &mut dyn FnMut(BadRow) -> Result<()>,
) -> Result<RecordBatch> {
    let TypedColumns { schema, masks, masked } = columns;
    let fields = schema.fields();
    for (column, (texts, field)) in texts.iter().zip(fields).enumerate() {
        for row in unfit_rows(texts, field.data_type(), 0) {
            wrong.entry(row).or_insert_with(|| Fault {
                column,
                reason: does_not_fit(field.data_type()),
                hint: UNFIT,
            });
        }
        let mask = masks.of(field.name()).filter(|mask| mask.may_fail(field.data_type()));
        if let Some(mask) = mask {
            for row in mask.apply_to_fit(texts).1 {
                let reason = unmasked(mask);
                wrong.entry(row).or_insert_with(|| Fault { column, reason, hint: UNMASKED });
            }
        }
    }
    let is_wrong: Option<BooleanArray> = (!wrong.is_empty())
        .then(|| (0..rows.lines.len()).map(|row| Some(wrong.contains_key(&row))).collect());
    for (row, fault) in wrong {
        let values = texts.iter().zip(fields).map(|(texts, field)| {
            let text = cast(&texts.slice(row, 1), &DataType::Utf8View).ok()?;
            let text = text.is_valid(0).then(|| text.as_string_view().value(0).to_string())?;
            match masks.of(field.name()) {
                Some(mask) => mask.of_text(&text, field.data_type()),
                None => Some(text),
            }
        });
        let names = fields.iter().map(|field| Some(field.name().as_str()));
        quarantine(BadRow {
            row: rows.first + row as u64,
            line: Some(rows.lines[row]),
            lines: 1,
            column: Some(fields[fault.column].name().clone()),
            reason: fault.reason,
            hint: fault.hint,
            change: fields_json(names.zip(values)),
        })?;
    }
    if let Some(is_wrong) = is_wrong {
        for texts in &mut texts {
            *texts = nullif(texts, &is_wrong)?;
        }
    }
    let casts = texts.iter().zip(fields).map(|(texts, field)| {
        let cast = cast_to(texts, field.data_type());
        cast.map_err(|_| Error::internal("a value that fits its type cannot be cast"))
    });
    let rows = RecordBatch::try_new(Arc::clone(schema), casts.collect::<Result<_>>()?)?;
    if masks.is_empty() { Ok(rows) } else { masks.apply(&rows, masked) }
}

/// Casts the values that fit a type. Returns the rows of the others too, in whose place is null.
pub(crate) fn cast_to_fit(values: &ArrayRef, to: &DataType) -> (ArrayRef, Vec<usize>) {
    let unfit = unfit_rows(values, to, 0);
    let mut are_unfit = vec![false; values.len()];
    unfit.iter().for_each(|row| are_unfit[*row] = true);
    let fit = nullif(values, &BooleanArray::from(are_unfit)).ok();
    let cast = fit.and_then(|fit| cast_to(&fit, to).ok());
    (cast.unwrap_or_else(|| new_null_array(to, values.len())), unfit)
}

/// Why a value that does not fit its type is bad.
pub(crate) fn does_not_fit(data_type: &DataType) -> String {
    format!("does not fit its type, {data_type}")
}

/// The hint for it.
pub(crate) const UNFIT: &str = "correct the value, or the column's type in `[raw.columns]`";

/// Why a value that cannot be masked is bad.
pub(crate) fn unmasked(mask: &Mask) -> String {
    format!("cannot be masked by `{mask:?}`: it is not a date")
}

/// The hint for it.
pub(crate) const UNMASKED: &str =
    "correct the value, or mask the column by `hmac`, `redact` or `null`";

fn cast_to(texts: &ArrayRef, to: &DataType) -> Result<ArrayRef, usize> {
    match to {
        DataType::Null => Ok(Arc::new(NullArray::new(texts.len()))),
        _ => cast_values(texts, to),
    }
}

/// The rows of a column whose values do not fit a type; its first row has the number `first`. The
/// search is binary: halves without such a value are cast once.
fn unfit_rows(values: &ArrayRef, to: &DataType, first: usize) -> Vec<usize> {
    if cast_to(values, to).is_ok() {
        return Vec::new();
    }
    if values.len() == 1 {
        return vec![first];
    }
    let middle = values.len() / 2;
    let mut found = unfit_rows(&values.slice(0, middle), to, first);
    let rest = values.slice(middle, values.len() - middle);
    found.append(&mut unfit_rows(&rest, to, first + middle));
    found
}
