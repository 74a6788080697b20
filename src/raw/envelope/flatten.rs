//! Parquet files of envelopes: `before`, `after` and `source` are structs, which are flattened to
//! columns in a Parquet file in the spill folder.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringViewArray, new_null_array,
};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, is_null, not, nullif};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::{Stream, StreamExt};
use parquet::errors::ParquetError;

use crate::config::{BEFORE_PREFIX, ENVELOPE_PREFIX, Envelope, Masks, OpValues, Operation};
use crate::error::{Error, Result};
use crate::parquet_io::open::ParquetFile;
use crate::raw::bad_rows::{BadRow, BadRows, fields_json};
use crate::raw::columns::find_column;
use crate::raw::csv::spill_failed;
use crate::raw::envelope::{
    EnvelopeFault, NO_AFTER, NO_BEFORE, NO_ENVELOPE, UNAVAILABLE, Unavailable, as_times, operation,
    time_type, time_unit,
};
use crate::raw::json::Unfolded;
use crate::raw::typed::{UNFIT, UNMASKED, cast_to_fit, does_not_fit, spill_writer, unmasked};

/// What a pipeline says of the columns.
pub(crate) struct Declared<'a> {
    /// `[raw.columns]`.
    pub(crate) columns: &'a [(String, DataType)],
    /// `[mask]`.
    pub(crate) masks: &'a Masks,
}

impl Declared<'_> {
    /// The type that a column with a mask is to have before it is masked, if the pipeline says it.
    fn type_before_mask(&self, column: &str) -> Option<&DataType> {
        self.masks.of(column)?;
        // The key before an update has the type of the key.
        let column = column.strip_prefix(BEFORE_PREFIX).unwrap_or(column);
        let mut columns = self.columns.iter();
        let found = columns.find(|(name, _)| name.eq_ignore_ascii_case(column));
        found.map(|(_, data_type)| data_type)
    }
}

/// The columns of a file of envelopes.
pub(crate) struct Layout {
    op: usize,
    before: Option<usize>,
    after: Option<usize>,
    /// The other columns.
    others: Vec<usize>,
    op_values: OpValues,
    /// The columns of the rows: names and types.
    row: Vec<(String, DataType)>,
    /// The key columns, by their index in the row; not those that have only nulls.
    key: Vec<usize>,
    schema: SchemaRef,
    masks: Masks,
    /// The columns once they are masked.
    masked: SchemaRef,
}

impl Layout {
    /// The columns of a file, some of which have masks.
    ///
    /// # Errors
    /// Data, when its columns are not those of envelopes, or cannot be masked.
    pub(crate) fn of(file: &ParquetFile, envelope: &Envelope, raw: &Declared<'_>) -> Result<Self> {
        let fields = file.schema().fields();
        // The row number is the last.
        let fields: Fields = fields[..fields.len() - 1].iter().cloned().collect();
        let find = |name: &str| fields.iter().position(|field| field.name() == name);
        let (before, after) = (find("before"), find("after"));
        let Some(op) = find("op").filter(|_| before.is_some() || after.is_some()) else {
            let names = fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>();
            let message = format!("the rows of {} are not envelopes", file.name);
            return Err(Error::data(message).hint(format!(
                "{}; found: {}",
                NO_ENVELOPE.1,
                names.join(", ")
            )));
        };
        let parts = [after, before].into_iter().flatten().map(|part| &fields[part]);
        let row = row_columns(parts, &file.name)?;
        let others: Vec<usize> = (0..fields.len())
            .filter(|index| ![Some(op), before, after].contains(&Some(*index)))
            .collect();
        let key = envelope.key.iter().filter_map(|name| {
            let found = find_column(row.iter().map(|(name, _)| name.as_str()), name)?;
            (!row[found].1.is_null()).then_some((name, found))
        });
        let key: Vec<(&String, usize)> = key.collect();
        let mut all = row.clone();
        all.push((format!("{ENVELOPE_PREFIX}op"), DataType::Utf8View));
        for other in &others {
            let one: Fields = std::iter::once(Arc::clone(&fields[*other])).collect();
            all.extend(flat_fields(ENVELOPE_PREFIX, &one).into_iter().map(|(name, data_type)| {
                let unit = time_unit(&name).filter(|_| data_type == DataType::Int64);
                (name, unit.map_or(data_type, time_type))
            }));
        }
        all.extend(
            key.iter()
                .map(|(name, found)| (format!("{BEFORE_PREFIX}{name}"), row[*found].1.clone())),
        );
        let all = all.into_iter().map(|(name, found)| {
            let data_type = raw.type_before_mask(&name).cloned().unwrap_or(found);
            Field::new(name, data_type, true)
        });
        let masks = raw.masks;
        let schema = Arc::new(Schema::new(all.collect::<Vec<_>>()));
        Ok(Layout {
            masks: masks.clone(),
            masked: masks.schema(&schema),
            op,
            before,
            after,
            others,
            op_values: envelope.op_values.clone(),
            row,
            key: key.into_iter().map(|(_, found)| found).collect(),
            schema,
        })
    }

    /// The columns of `before` or `after`, in the order and the types of the row.
    fn part(&self, batch: &RecordBatch, part: Option<usize>) -> Result<Vec<ArrayRef>> {
        let part = part.map(|part| batch.column(part)).filter(|part| !part.data_type().is_null());
        let flat = part.map_or_else(|| Ok(Vec::new()), |part| flat("", "", part))?;
        let columns = self.row.iter().map(|(name, data_type)| {
            let found = flat.iter().find(|(known, _)| known == name).map(|(_, column)| column);
            let found = found.filter(|column| column.data_type() == data_type);
            found.map_or_else(|| new_null_array(data_type, batch.num_rows()), Arc::clone)
        });
        Ok(columns.collect())
    }

    /// Tells what the rows of a batch are.
    fn sort_out(
        &self,
        batch: &RecordBatch,
        ops: &StringViewArray,
        others: &[(String, ArrayRef)],
    ) -> Sorted {
        let has = |part: Option<usize>, row: usize| {
            part.is_some_and(|part| {
                !batch.column(part).is_null(row) && !batch.column(part).data_type().is_null()
            })
        };
        let (mut ignored, mut bad) = (Vec::new(), Vec::new());
        let mut deletes = vec![false; batch.num_rows()];
        let mut updates = deletes.clone();
        for row in 0..batch.num_rows() {
            let (has_before, has_after) = (has(self.before, row), has(self.after, row));
            if ops.is_null(row) {
                if has_before || has_after || others.iter().any(|(_, other)| other.is_valid(row)) {
                    bad.push(BadAt {
                        row,
                        column: None,
                        reason: NO_ENVELOPE.0.into(),
                        hint: NO_ENVELOPE.1,
                    });
                } else {
                    ignored.push(row);
                }
                continue;
            }
            let fault = match operation(ops.value(row), &self.op_values) {
                Ok(Operation::Ignore) => {
                    ignored.push(row);
                    None
                }
                Ok(Operation::Truncate) => None,
                Ok(Operation::Delete) => {
                    deletes[row] = true;
                    (!has_before).then_some(NO_BEFORE)
                }
                Ok(operation) => {
                    updates[row] = operation == Operation::Update;
                    (!has_after).then_some(NO_AFTER)
                }
                Err(fault) => Some(fault),
            };
            bad.extend(fault.map(|fault| BadAt::of(row, fault)));
        }
        Sorted { deletes: deletes.into(), updates: updates.into(), ignored, bad }
    }

    /// Flattens a batch.
    fn flatten(
        &self,
        batch: &RecordBatch,
        unavailable: &Unavailable,
    ) -> Result<(RecordBatch, Vec<usize>, Vec<BadAt>)> {
        let ops = cast(batch.column(self.op), &DataType::Utf8View)?;
        let ops: &StringViewArray = ops.as_string_view();
        let mut others: Vec<(String, ArrayRef)> = Vec::new();
        for other in &self.others {
            let field = batch.schema_ref().field(*other);
            others.extend(flat(ENVELOPE_PREFIX, field.name(), batch.column(*other))?);
        }
        let Sorted { deletes, updates, ignored, mut bad } = self.sort_out(batch, ops, &others);
        let (mut before, after) = (self.part(batch, self.before)?, self.part(batch, self.after)?);
        for before in &mut before {
            *before = without_marks(Arc::clone(before), unavailable)?;
        }
        let needs_value = |row: &usize| !deletes.value(*row) && ignored.binary_search(row).is_err();
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for ((name, _), (before, after)) in self.row.iter().zip(before.iter().zip(&after)) {
            if unavailable.matters_in(name) {
                let marks = marks(after, unavailable).into_iter();
                bad.extend(marks.filter(needs_value).map(|row| {
                    let (reason, hint) = UNAVAILABLE;
                    BadAt { row, column: Some(name.clone()), reason: reason.into(), hint }
                }));
            }
            columns.push(if deletes.has_true() {
                zip(&deletes, before, after)?
            } else {
                Arc::clone(after)
            });
        }
        columns.push(Arc::new(ops.clone()) as ArrayRef);
        for (name, array) in others {
            let unit = time_unit(&name).filter(|_| *array.data_type() == DataType::Int64);
            columns.push(unit.map_or(Arc::clone(&array), |unit| as_times(&array, unit)));
        }
        // Whether an update changes the key is found when the rows are read.
        let is_no_update = not(&updates)?;
        for key in &self.key {
            columns.push(nullif(&before[*key], &is_no_update)?);
        }
        for (column, field) in columns.iter_mut().zip(self.schema.fields()) {
            let Some(mask) = self.masks.of(field.name()) else { continue };
            let name = || Some(field.name().clone());
            let (typed, unfit) = cast_to_fit(column, field.data_type());
            bad.extend(unfit.into_iter().filter(needs_value).map(|row| {
                let reason = does_not_fit(field.data_type()).into();
                BadAt { row, column: name(), reason, hint: UNFIT }
            }));
            let (masked, unfit) = self.masks.apply_to_fit(mask, &typed);
            *column = masked;
            bad.extend(unfit.into_iter().filter(needs_value).map(|row| BadAt {
                row,
                column: name(),
                reason: unmasked(mask).into(),
                hint: UNMASKED,
            }));
        }
        bad.sort_by_key(|bad| bad.row);
        bad.dedup_by_key(|bad| bad.row);
        let mut nulls = vec![false; batch.num_rows()];
        ignored.iter().for_each(|row| nulls[*row] = true);
        bad.iter().for_each(|bad| nulls[bad.row] = true);
        let nulls = BooleanArray::from(nulls);
        if nulls.has_true() {
            for column in &mut columns {
                *column = nullif(column, &nulls)?;
            }
        }
        Ok((RecordBatch::try_new(Arc::clone(&self.masked), columns)?, ignored, bad))
    }
}

/// What the rows of a batch are.
struct Sorted {
    deletes: BooleanArray,
    updates: BooleanArray,
    /// The rows that are no changes, ascending.
    ignored: Vec<usize>,
    bad: Vec<BadAt>,
}

/// The columns of the rows in `before` and `after` of the file `file`.
fn row_columns<'a>(
    parts: impl Iterator<Item = &'a FieldRef>,
    file: &str,
) -> Result<Vec<(String, DataType)>> {
    let mut row: Vec<(String, DataType)> = Vec::new();
    for field in parts {
        let DataType::Struct(inner) = field.data_type() else {
            if field.data_type().is_null() {
                continue;
            }
            return Err(Error::data(format!(
                "column `{}` of {file} is {}, not a struct",
                field.name(),
                field.data_type()
            ))
            .hint(
                "rows that are text, as those of MongoDB, need the transform \
                 ExtractNewDocumentState",
            ));
        };
        for (name, data_type) in flat_fields("", inner) {
            match row.iter_mut().find(|(known, _)| *known == name) {
                None => row.push((name, data_type)),
                Some((_, known)) if *known == data_type || data_type.is_null() => {}
                Some((_, known)) if known.is_null() => *known = data_type,
                Some((_, known)) => {
                    return Err(Error::data(format!(
                        "column `{name}` of {file} is {known} in `after` and {data_type} in \
                         `before`"
                    ))
                    .hint("fix the file: both are the same row"));
                }
            }
        }
    }
    Ok(row)
}

/// A bad row of a batch.
struct BadAt {
    row: usize,
    column: Option<String>,
    reason: Cow<'static, str>,
    hint: &'static str,
}

impl BadAt {
    fn of(row: usize, (column, reason, hint): EnvelopeFault) -> Self {
        BadAt { row, column: Some(column.into()), reason, hint }
    }
}

/// Converts the batches of a file of envelopes to a flat Parquet file. Bad rows are quarantined until
/// `bad_rows` is full; the next one is an error.
///
/// # Errors
/// Data, naming the row and, if known, the column; storage, when input or output fails.
pub(crate) async fn to_parquet(
    name: &str,
    layout: &Layout,
    unavailable: &Unavailable,
    mut batches: impl Stream<Item = Result<RecordBatch>> + Unpin,
    bad_rows: &BadRows,
    output: impl Write + Send,
) -> Result<Unfolded> {
    let failed = |error: ParquetError| spill_failed(&format!("the rows of {name}"), error);
    let mut writer = spill_writer(output, &layout.masked).map_err(failed)?;
    let (mut unfolded, mut rows_before) = (Unfolded::default(), 0);
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let (flat, ignored, bad) = layout.flatten(&batch, unavailable)?;
        writer.write(&flat).map_err(failed)?;
        unfolded.ignored.extend(ignored.into_iter().map(|row| rows_before + row as u64));
        for bad in bad {
            let row = BadRow {
                row: rows_before + bad.row as u64,
                line: None,
                lines: 1,
                column: bad.column,
                reason: bad.reason.into_owned(),
                hint: bad.hint,
                change: if layout.masks.is_empty() {
                    row_json(&batch, bad.row)?
                } else {
                    fields_json(std::iter::empty())
                },
            };
            bad_rows.admit(name, &row)?;
            unfolded.bad.push(row);
        }
        rows_before += batch.num_rows() as u64;
    }
    writer.close().map_err(failed)?;
    unfolded.source = Some(Arc::clone(&layout.schema));
    Ok(unfolded)
}

/// The names and types of fields, with the fields of structs.
fn flat_fields(prefix: &str, fields: &Fields) -> Vec<(String, DataType)> {
    let mut found = Vec::new();
    for field in fields {
        let name = format!("{prefix}{}", field.name());
        match field.data_type() {
            DataType::Struct(inner) => found.extend(flat_fields(&format!("{name}."), inner)),
            other => found.push((name, other.clone())),
        }
    }
    found
}

/// A column, or the columns of a struct, whose nulls are those of all its fields.
fn flat(prefix: &str, name: &str, array: &ArrayRef) -> Result<Vec<(String, ArrayRef)>> {
    let path = format!("{prefix}{name}");
    let Some(inner) = array.as_struct_opt() else {
        return Ok(vec![(path, Arc::clone(array))]);
    };
    let prefix = if path.is_empty() { path } else { format!("{path}.") };
    let mut found = Vec::new();
    for (field, column) in inner.fields().iter().zip(inner.columns()) {
        let column = if inner.null_count() == 0 || column.data_type().is_null() {
            Arc::clone(column)
        } else {
            nullif(column, &is_null(array)?)?
        };
        found.extend(flat(&prefix, field.name(), &column)?);
    }
    Ok(found)
}

/// The rows of a column that have the mark for a value that the source's log lacks.
fn marks(column: &ArrayRef, unavailable: &Unavailable) -> Vec<usize> {
    let rows = 0..column.len();
    let of_rows = |is_mark: &dyn Fn(usize) -> bool| -> Vec<usize> {
        rows.clone().filter(|row| column.is_valid(*row) && is_mark(*row)).collect()
    };
    let of_texts = |texts: &ArrayRef| -> Vec<usize> {
        let Ok(texts) = cast(texts, &DataType::Utf8View) else {
            return Vec::new();
        };
        let texts = texts.as_string_view().iter().enumerate();
        let texts = texts.filter(|(_, text)| text.is_some_and(|text| unavailable.is_text(text)));
        texts.map(|(row, _)| row).collect()
    };
    match column.data_type() {
        other if other.is_string() => of_texts(column),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let Ok(bytes) = cast(column, &DataType::BinaryView) else {
                return Vec::new();
            };
            let bytes = bytes.as_binary_view();
            of_rows(&|row| unavailable.is_bytes(bytes.value(row)))
        }
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            of_rows(&|row| is_mark_list(&lists.value(row), unavailable))
        }
        DataType::LargeList(_) => {
            let lists = column.as_list::<i64>();
            of_rows(&|row| is_mark_list(&lists.value(row), unavailable))
        }
        DataType::Map(_, _) => {
            let maps = column.as_map();
            of_rows(&|row| {
                let entries = maps.value(row);
                entries.len() == 1 && !marks(entries.column(1), unavailable).is_empty()
            })
        }
        _ => Vec::new(),
    }
}

/// Whether the elements of a list are the mark.
fn is_mark_list(elements: &ArrayRef, unavailable: &Unavailable) -> bool {
    let data_type = elements.data_type();
    if data_type.is_integer() {
        let Ok(numbers) = cast(elements, &DataType::Utf8View) else {
            return false;
        };
        let numbers: Vec<&str> = numbers.as_string_view().iter().flatten().collect();
        return !numbers.is_empty() && unavailable.is_json(&format!("[{}]", numbers.join(",")));
    }
    if elements.len() != 1 || elements.is_null(0) {
        return false;
    }
    match cast(elements, &DataType::Utf8View) {
        Ok(texts) if elements.data_type().is_string() => {
            unavailable.is_element(texts.as_string_view().value(0))
        }
        _ => !marks(elements, unavailable).is_empty(),
    }
}

/// A column in which the mark is null: a delete needs no value.
fn without_marks(column: ArrayRef, unavailable: &Unavailable) -> Result<ArrayRef> {
    let marks = marks(&column, unavailable);
    if marks.is_empty() {
        return Ok(column);
    }
    let mut is_mark = vec![false; column.len()];
    marks.into_iter().for_each(|row| is_mark[row] = true);
    Ok(nullif(&column, &BooleanArray::from(is_mark))?)
}

/// A row of a file as JSON: the fields of structs have names with dots.
fn row_json(batch: &RecordBatch, row: usize) -> Result<String> {
    let row = batch.slice(row, 1);
    let mut fields = Vec::new();
    let named = row.columns().iter().zip(row.schema_ref().fields());
    // The row number is the last.
    for (column, field) in named.take(row.num_columns() - 1) {
        for (name, array) in flat("", field.name(), column)? {
            let options = FormatOptions::default();
            let shown = ArrayFormatter::try_new(&array, &options);
            let text =
                shown.ok().filter(|_| array.is_valid(0)).map(|shown| shown.value(0).to_string());
            fields.push((name, text));
        }
    }
    Ok(fields_json(fields.iter().map(|(name, text)| (Some(name.as_str()), text.clone()))))
}
