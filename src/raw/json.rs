//! JSON files: an object a line, read once, checked, and converted to Parquet in the spill folder,
//! as CSV files are.
//!
//! A column has the type that `[raw.columns]` declares, or the one that its values in the file have
//! ([`columns`]). Types are known when the whole file is read; up to [`PENDING_BYTES`] of text are
//! kept in memory until then. The types of a larger file are those of its first part. If a later part
//! has other columns or kinds of values, the file is read to its end for its types, and then once
//! more for its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use serde::de::IgnoredAny;

use crate::config::{Masks, OpValues, Operation, Raw};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result};
use crate::raw::bad_rows::{BadRow, BadRows, fields_json};
use crate::raw::csv::spill_failed;
use crate::raw::envelope::{Unavailable, as_times, time_type, time_unit};
use crate::raw::json::columns::Columns;
use crate::raw::json::events::{Events, Line};
use crate::raw::json::lines::Lines;
use crate::raw::json::numbers::is_double;
use crate::raw::json::rows::{LineFault, Rows, cut_off};
use crate::raw::typed::{Fault, FileRows, TypedColumns, spill_writer, typed};

mod columns;
mod events;
mod lines;
mod numbers;
pub(crate) mod rows;

/// The text that is converted to columns at once, unless a batch of rows is full before.
const BATCH_BYTES: usize = 4 << 20;
/// The text of a file's start that is kept until the types of its columns are known.
const PENDING_BYTES: usize = 8 << 20;

/// The format of a pipeline's JSON files.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// The columns whose types are declared.
    columns: Vec<(String, DataType)>,
    /// How events in envelopes are read; `None` if lines are rows.
    events: Option<Events>,
    /// The operation's column; that of a file without columns, which carries its rows.
    op: String,
    op_values: OpValues,
    /// The key columns, which truncates lack where lines are rows.
    key: Vec<String>,
}

impl Form {
    /// The format that the pipeline declares.
    pub(crate) fn of(raw: &Raw, key: &[String], marks: Option<&Unavailable>) -> Self {
        Form {
            columns: raw.columns.clone(),
            events: raw.envelope.as_ref().zip(marks).map(Events::of),
            op: raw.op.name.clone().unwrap_or_else(|| "Op".into()),
            op_values: raw.op.values.clone(),
            key: key.to_vec(),
        }
    }

    /// Whether the row that is being read is a truncate.
    fn is_truncate(&self, columns: &Columns) -> bool {
        let op = columns.in_any_case(&self.op).and_then(|column| columns.text(column));
        op.is_some_and(|op| self.op_values.operation(Some(op)) == Some(Operation::Truncate))
    }
}

/// Whether a file has truncates, and other rows.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    truncates: bool,
    others: bool,
}

/// What became of a file.
pub(crate) enum Converted {
    /// It was written.
    Whole(Unfolded),
    /// Its types were not known when rows were written: it has to be converted again.
    Again(Found),
}

/// The rows of a converted file that are not folded: rows of nulls stand for them.
#[derive(Debug, Default)]
pub(crate) struct Unfolded {
    /// Those that are bad.
    pub bad: Vec<BadRow>,
    /// The numbers of those that are no changes, ascending.
    pub ignored: Vec<u64>,
    /// The columns of the file before they were masked.
    pub source: Option<SchemaRef>,
}

/// What is known of a file that was read to its end.
#[derive(Default)]
pub(crate) struct Found {
    columns: Columns,
    /// Whether all its columns are known.
    is_complete: bool,
    /// The bad rows that are counted as such.
    admitted: BTreeSet<u64>,
    kinds: Kinds,
}

/// Converts a JSON file to a Parquet file, whose values are masked. Bad rows are quarantined until `bad_rows` is full; the
/// next one is an error.
///
/// # Errors
/// Data, naming the line and, if known, the column; storage, when input or output fails.
pub(crate) fn to_parquet(
    name: &str,
    input: impl Read,
    (form, masks): (&Form, &Masks),
    found: Found,
    bad_rows: &BadRows,
    output: impl Write + Send,
) -> Result<Converted> {
    let mut lines = Lines::new(name, input);
    let mut file = Conversion {
        name,
        form,
        masks,
        rows: Rows::new(
            found.columns,
            &form.columns,
            form.events.as_ref().map(|events| &events.unavailable),
        ),
        lines: Vec::new(),
        rows_before: 0,
        pending: Vec::new(),
        pending_bytes: 0,
        output: Some(output),
        written: None,
        is_outdated: false,
        unfolded: Unfolded::default(),
        admitted: found.admitted,
        kinds: found.kinds,
        bad_rows,
        is_last: found.is_complete,
    };
    if found.is_complete {
        file.fix()?;
    }
    while let Some(line) = lines.next_line()? {
        file.push(lines.line(), line, lines.is_cut_off)?;
    }
    file.finish()
}

/// A file that is being converted.
struct Conversion<'a, W: Write + Send> {
    name: &'a str,
    form: &'a Form,
    masks: &'a Masks,
    rows: Rows<'a>,
    /// The lines of the batch's rows.
    lines: Vec<u64>,
    /// The number of rows before the batch.
    rows_before: u64,
    /// The batches that are kept until the types are known.
    pending: Vec<Batch>,
    pending_bytes: usize,
    output: Option<W>,
    written: Option<Written<W>>,
    /// Whether rows were written with other types than the file has.
    is_outdated: bool,
    unfolded: Unfolded,
    admitted: BTreeSet<u64>,
    kinds: Kinds,
    bad_rows: &'a BadRows,
    /// Whether the types were known before.
    is_last: bool,
}

/// Rows as columns of text.
struct Batch {
    first: u64,
    lines: Vec<u64>,
    texts: Vec<ArrayRef>,
}

/// The output, with fixed columns.
struct Written<W: Write + Send> {
    writer: ArrowWriter<W>,
    /// The columns that text is converted to.
    schema: SchemaRef,
    /// The same once they are masked.
    masked: SchemaRef,
    /// The columns that are written: some numbers are times.
    stored: SchemaRef,
    /// Per column of the schema its index; `None` for one that stands for no column.
    sources: Vec<Option<usize>>,
    /// The types of the columns, by index.
    types: Vec<Option<DataType>>,
}

impl<W: Write + Send> Conversion<'_, W> {
    fn push(&mut self, bytes: &[u8], line: u64, is_cut_off: bool) -> Result<()> {
        let read = match std::str::from_utf8(bytes) {
            Ok(text) => match &self.form.events {
                Some(events) => events.read(&mut self.rows, text),
                None => self.rows.read(text).map(|()| Line::Row),
            },
            Err(error) => {
                self.rows.begin();
                let reason = format!("is not UTF-8 at byte {}", error.valid_up_to() + 1);
                Err(LineFault::of_line(reason, "fix the file: text must be UTF-8"))
            }
        };
        let row = self.rows_before + self.lines.len() as u64;
        self.lines.push(line);
        match read {
            Ok(Line::Row) => {
                if !self.kinds.others {
                    let is_truncate = self.form.is_truncate(&self.rows.columns);
                    self.kinds.truncates |= is_truncate;
                    self.kinds.others = !is_truncate;
                }
                self.rows.columns.keep(line);
            }
            Ok(Line::Ignored) => {
                self.rows.columns.drop_row();
                self.unfolded.ignored.push(row);
            }
            Err(fault) => {
                self.rows.columns.drop_row();
                let fault = if is_cut_off { cut_off(fault) } else { fault };
                self.quarantine(BadRow {
                    row,
                    line: Some(line),
                    lines: 1,
                    column: fault.column,
                    reason: fault.reason,
                    hint: fault.hint,
                    // A value may be that of any column.
                    change: if self.masks.is_empty() {
                        line_json(bytes)
                    } else {
                        fields_json(std::iter::empty())
                    },
                })?;
            }
        }
        if self.lines.len() == BATCH_ROWS || self.rows.columns.batch_bytes() >= BATCH_BYTES {
            self.end_batch()?;
        }
        Ok(())
    }

    fn quarantine(&mut self, bad: BadRow) -> Result<()> {
        quarantine(self.bad_rows, self.name, &mut self.admitted, &mut self.unfolded.bad, bad)
    }

    fn end_batch(&mut self) -> Result<()> {
        let bytes = self.rows.columns.batch_bytes();
        let batch = Batch {
            first: self.rows_before,
            lines: std::mem::take(&mut self.lines),
            texts: self.rows.columns.finish(),
        };
        self.rows_before += batch.lines.len() as u64;
        match &self.written {
            None => {
                self.pending.push(batch);
                self.pending_bytes += bytes;
                if self.pending_bytes >= PENDING_BYTES {
                    self.fix()?;
                }
            }
            Some(written) => {
                let types = self.rows.types(self.name)?;
                // A column that no row has kept changes nothing.
                let (known, new) = types.split_at(written.types.len().min(types.len()));
                self.is_outdated |= known != written.types || new.iter().any(Option::is_some);
                if !self.is_outdated {
                    self.write(batch)?;
                }
            }
        }
        Ok(())
    }

    /// Fixes the types of the columns, and writes the rows that waited for them.
    fn fix(&mut self) -> Result<()> {
        let columns = &self.rows.columns;
        let types = self.rows.types(self.name)?;
        let (mut fields, mut sources) = (Vec::new(), Vec::new());
        for (name, column) in columns.sorted() {
            if let Some(data_type) = &types[column] {
                fields.push(Field::new(name, data_type.clone(), true));
                sources.push(Some(column));
            }
        }
        let mut absent = Vec::new();
        if fields.is_empty() {
            absent.push(&self.form.op);
        } else if self.form.events.is_none() && self.kinds.truncates && !self.kinds.others {
            // A file of nothing but truncates has the key, too.
            let key = self.form.key.iter();
            absent.extend(key.filter(|name| columns.in_any_case(name).is_none()));
        }
        for name in absent {
            fields.push(Field::new(name, DataType::Null, true));
            sources.push(None);
        }
        let schema = Arc::new(Schema::new(fields));
        let masked = self.masks.schema(&schema);
        let each = schema.fields().iter().zip(masked.fields()).zip(&sources);
        let stored = each.map(|((field, masked), source)| {
            let is_found = source.is_some_and(|column| columns.declared(column).is_none());
            let unit = time_unit(field.name()).filter(|_| self.form.events.is_some() && is_found);
            match unit.filter(|_| *masked.data_type() == DataType::Int64) {
                Some(unit) => Field::new(field.name(), time_type(unit), true),
                None => masked.as_ref().clone(),
            }
        });
        let stored = Arc::new(Schema::new(stored.collect::<Vec<_>>()));
        let lost = || Error::internal("the output of a JSON file was lost");
        let output = self.output.take().ok_or_else(lost)?;
        let writer = spill_writer(output, &stored).map_err(|error| self.failed(error))?;
        self.written = Some(Written { writer, schema, masked, stored, sources, types });
        for batch in std::mem::take(&mut self.pending) {
            self.write(batch)?;
        }
        Ok(())
    }

    fn failed(&self, error: ParquetError) -> Error {
        spill_failed(&format!("the rows of {}", self.name), error)
    }

    fn write(&mut self, batch: Batch) -> Result<()> {
        let Some(written) = &mut self.written else {
            return Err(Error::internal("the types of a JSON file are not known"));
        };
        let rows = batch.lines.len();
        let nulls = || Arc::new(StringArray::new_null(rows)) as ArrayRef;
        let sources = written.sources.iter();
        let texts: Vec<ArrayRef> = sources
            .map(|source| {
                source.and_then(|column| batch.texts.get(column).cloned()).unwrap_or_else(nulls)
            })
            .collect();
        let mut wrong = BTreeMap::new();
        for (column, texts) in texts.iter().enumerate() {
            let is_found = written.sources[column]
                .is_some_and(|column| self.rows.columns.declared(column).is_none());
            if is_found && *written.schema.field(column).data_type() == DataType::Float64 {
                for row in not_doubles(texts) {
                    wrong.entry(row).or_insert_with(|| Fault {
                        column,
                        reason: "has a number with more digits than a DOUBLE".into(),
                        hint: "set the column's type in `[raw.columns]`: VARCHAR, or a DECIMAL that is \
                               wide enough, keeps all digits",
                    });
                }
            }
        }
        let file_rows = FileRows { first: batch.first, lines: &batch.lines };
        let (bad_rows, name, admitted, bad) =
            (self.bad_rows, self.name, &mut self.admitted, &mut self.unfolded.bad);
        let (schema, masked) = (&written.schema, &written.masked);
        let columns = TypedColumns { schema, masks: self.masks, masked };
        let typed = typed(columns, texts, file_rows, wrong, &mut |row| {
            quarantine(bad_rows, name, admitted, bad, row)
        })?;
        let columns = typed.columns().iter().zip(written.stored.fields());
        let columns = columns.map(|(column, field)| match field.data_type() {
            DataType::Timestamp(unit, _) if *column.data_type() == DataType::Int64 => {
                as_times(column, *unit)
            }
            _ => Arc::clone(column),
        });
        let stored = RecordBatch::try_new(Arc::clone(&written.stored), columns.collect())?;
        let wrote = written.writer.write(&stored);
        wrote.map_err(|error| self.failed(error))
    }

    fn finish(mut self) -> Result<Converted> {
        if !self.lines.is_empty() {
            self.end_batch()?;
        }
        if self.is_outdated && self.is_last {
            let message = format!("{} changed while it was read", self.name);
            return Err(Error::storage(message).hint("run again when it is complete"));
        }
        if self.is_outdated {
            let mut columns = self.rows.columns;
            columns.restart();
            return Ok(Converted::Again(Found {
                columns,
                is_complete: true,
                admitted: self.admitted,
                kinds: self.kinds,
            }));
        }
        if self.written.is_none() {
            self.fix()?;
        }
        if let Some(written) = self.written.take() {
            let each = written.schema.fields().iter().zip(written.stored.fields());
            let source = each.map(|(field, stored)| match self.masks.of(field.name()) {
                Some(_) => Arc::clone(field),
                None => Arc::clone(stored),
            });
            self.unfolded.source = Some(Arc::new(Schema::new(source.collect::<Vec<_>>())));
            let closed = written.writer.close();
            closed.map_err(|error| self.failed(error))?;
        }
        Ok(Converted::Whole(self.unfolded))
    }
}

fn quarantine(
    bad_rows: &BadRows,
    name: &str,
    admitted: &mut BTreeSet<u64>,
    bad: &mut Vec<BadRow>,
    row: BadRow,
) -> Result<()> {
    if admitted.insert(row.row) {
        bad_rows.admit(name, &row)?;
    }
    bad.push(row);
    Ok(())
}

/// The rows with a number that is not a double.
fn not_doubles(texts: &ArrayRef) -> Vec<usize> {
    let numbers = texts.as_string::<i32>().iter().enumerate();
    let wrong = numbers.filter(|(_, number)| number.is_some_and(|number| !is_double(number)));
    wrong.map(|(row, _)| row).collect()
}

/// A bad line as JSON.
fn line_json(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => text.into_owned(),
        Err(_) => fields_json(std::iter::once((Some("line"), Some(text.into_owned())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::types::column_type::parse_type;
    use arrow::array::Array;
    use arrow::util::display::{ArrayFormatter, FormatOptions};
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use proptest::prelude::*;

    /// Rows as text, `column=value` for each value.
    type Read = (Vec<String>, Vec<BadRow>, Vec<String>);

    fn form(columns: &[(&str, &str)]) -> Form {
        let typed = |(name, text): &(&str, &str)| {
            let data_type = parse_type(text).expect("a type");
            (name.to_string(), data_type)
        };
        let columns = columns.iter().map(typed).collect();
        let op_values = OpValues::default();
        Form { columns, events: None, op: "Op".into(), op_values, key: vec!["id".into()] }
    }

    fn read_from(text: &[u8], form: &Form, bad_max: u64) -> Result<Read> {
        let bad_rows = BadRows::new(bad_max);
        let mut found = Found::default();
        let (bytes, bad) = loop {
            let mut bytes = Vec::new();
            match to_parquet(
                "a.json",
                text,
                (form, &Masks::default()),
                found,
                &bad_rows,
                &mut bytes,
            )? {
                Converted::Whole(unfolded) => break (bytes, unfolded.bad),
                Converted::Again(known) => found = known,
            }
        };
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).expect("Parquet");
        let fields = reader.schema().fields().iter();
        let types = fields.map(|field| format!("{} {}", field.name(), field.data_type()));
        let types = types.collect();
        let mut rows = Vec::new();
        for batch in reader.build().expect("a reader") {
            let batch = batch.expect("a batch");
            for row in 0..batch.num_rows() {
                let schema = batch.schema();
                let values = batch.columns().iter().zip(schema.fields());
                let values = values.filter(|(column, _)| {
                    *column.data_type() != DataType::Null && column.is_valid(row)
                });
                let values = values.map(|(column, field)| {
                    let shown = ArrayFormatter::try_new(column, &FormatOptions::default());
                    format!("{}={}", field.name(), shown.expect("a format").value(row))
                });
                rows.push(values.collect::<Vec<_>>().join(" "));
            }
        }
        Ok((rows, bad, types))
    }

    fn read(text: &str, form: &Form) -> Vec<String> {
        read_from(text.as_bytes(), form, 0).expect("rows").0
    }

    fn types(text: &str) -> Vec<String> {
        read_from(text.as_bytes(), &form(&[]), 0).expect("rows").2
    }

    fn refused(text: &[u8], form: &Form) -> String {
        let error = read_from(text, form, 0).expect_err("bad");
        assert_eq!(error.kind, Kind::Data);
        assert!(error.hint.is_some());
        error.to_string()
    }

    #[test]
    fn an_object_a_line_is_a_row() {
        let text = r#"{"id":1,"v":"a \"b\"\n\u00e4","on":true,"x":null}
            {"v":"c","id":2}"#;
        let rows = read(text, &form(&[]));
        assert_eq!(rows, ["id=1 on=true v=a \"b\"\nä", "id=2 v=c"]);
        assert_eq!(types(text), ["id Int64", "on Boolean", "v Utf8", "x Null"]);
    }

    #[test]
    fn line_ends_of_both_kinds_blank_lines_and_a_byte_order_mark_are_read() {
        let rows = ["a=1", "a=2"];
        for text in [
            "{\"a\":1}\n{\"a\":2}\n",
            "{\"a\":1}\n{\"a\":2}",
            "{\"a\":1}\r\n{\"a\":2}\r\n",
            "\u{feff}{\"a\":1}  \n\n \t \n  { \"a\" : 2 }\n\n",
        ] {
            assert_eq!(read(text, &form(&[])), rows, "{text:?}");
        }
        for text in ["", "\n\n", "\u{feff}"] {
            assert_eq!(read(text, &form(&[])).len(), 0, "{text:?}");
        }
    }

    #[test]
    fn objects_in_fields_have_names_with_dots_and_arrays_are_text() {
        let text = r#"{"a":{"b":{"c":1},"d":[1, {"x":2}]},"e":{}}
            {"a":null,"a.b.c":2}"#;
        assert_eq!(read(text, &form(&[])), [r#"a.b.c=1 a.d=[1, {"x":2}]"#, "a.b.c=2"]);
        assert_eq!(types(text), ["a.b.c Int64", "a.d Utf8"]);
        let declared = form(&[("A", "VARCHAR")]);
        assert_eq!(read(text, &declared), [r#"a={"b":{"c":1},"d":[1, {"x":2}]}"#, "a.b.c=2"]);
    }

    #[test]
    fn a_column_has_the_type_of_its_values() {
        for (values, expected) in [
            (&["1", "-9223372036854775808", "9223372036854775807"][..], "Int64"),
            (&["1", "9223372036854775808"], "Decimal128(38, 0)"),
            (&["1", "1.0"], "Float64"),
            (&["1e2", "-0"], "Float64"),
            (&["true", "false", "null"], "Boolean"),
            (&["\"1\"", "null", "[1]"], "Utf8"),
            (&["null"], "Null"),
        ] {
            let text = values.iter().map(|value| format!("{{\"a\":{value}}}\n"));
            assert_eq!(types(&text.collect::<String>()), [format!("a {expected}")], "{values:?}");
        }
        for (values, message) in [
            (["1", "\"x\""], "column `a` is a number in line 1 of a.json, and a text in line 2"),
            (
                ["true", "0"],
                "column `a` is true or false in line 1 of a.json, and a number in line 2",
            ),
            (["[]", "0"], "column `a` is an array in line 1 of a.json, and a number in line 2"),
        ] {
            let text = values.map(|value| format!("{{\"a\":{value}}}\n")).concat();
            assert_eq!(refused(text.as_bytes(), &form(&[])), message);
            let as_text = form(&[("a", "VARCHAR")]);
            assert_eq!(
                read(&text, &as_text),
                values.map(|value| { format!("a={}", value.trim_matches('"')) })
            );
        }
    }

    #[test]
    fn no_digit_of_a_number_is_lost() {
        let text = "{\"a\":9007199254740993,\"d\":12345678901234567890.123456789,\"t\":1.50,\"i\":7.0}\n\
                    {\"a\":1e3,\"d\":1E+2,\"t\":-0,\"i\":\"8\"}\n";
        let declared =
            form(&[("a", "BIGINT"), ("d", "DECIMAL(38, 9)"), ("t", "VARCHAR"), ("i", "INTEGER")]);
        assert_eq!(
            read(text, &declared),
            [
                "a=9007199254740993 d=12345678901234567890.123456789 i=7 t=1.50",
                "a=1000 d=100.000000000 i=8 t=-0",
            ]
        );
        assert_eq!(
            read("{\"a\":0.1}\n{\"a\":9007199254740992}", &form(&[])),
            ["a=0.1", "a=9007199254740992.0"]
        );
        for (value, message) in [
            ("0.1234567890123456789", "has a number with more digits than a DOUBLE"),
            ("1e400", "has a number with more digits than a DOUBLE"),
            (
                "123456789012345678901234567890123456789",
                "has a whole number with more than 38 digits",
            ),
        ] {
            let text = format!("{{\"a\":1}}\n{{\"a\":{value}}}");
            let message = format!("line 2 of a.json: column `a` {message}");
            assert_eq!(refused(text.as_bytes(), &form(&[])), message);
            assert_eq!(read(&text, &form(&[("a", "VARCHAR")]))[1], format!("a={value}"));
        }
        assert_eq!(
            refused(b"{\"a\":9007199254740993}\n{\"a\":0.5}\n", &form(&[])),
            "line 1 of a.json: column `a` has a number with more digits than a DOUBLE"
        );
    }

    #[test]
    fn values_take_the_declared_types() {
        let declared = form(&[
            ("ts", "TIMESTAMP"),
            ("day", "DATE"),
            ("n", "TINYINT"),
            ("x", "DOUBLE"),
            ("on", "BOOLEAN"),
        ]);
        let text =
            r#"{"ts":"2024-01-02T10:00:00.123456","day":"2024-01-02","n":-1,"x":1,"on":true}"#;
        let row = "day=2024-01-02 n=-1 on=true ts=2024-01-02T10:00:00.123456 x=1.0";
        assert_eq!(read(text, &declared), [row]);
        for (value, column) in [
            (r#""n":128"#, "n` does not fit its type, Int8"),
            (r#""n":1.5"#, "n` does not fit its type, Int8"),
            (r#""n":"""#, "n` does not fit its type, Int8"),
            (r#""ts":1704190500123"#, "ts` does not fit its type, Timestamp(µs)"),
            (r#""on":{"a":1}"#, "on` does not fit its type, Boolean"),
        ] {
            let text = format!("{{\"day\":null}}\n\n{{{value}}}\n");
            assert_eq!(
                refused(text.as_bytes(), &declared),
                format!("line 3 of a.json: column `{column}")
            );
        }
    }

    #[test]
    fn errors_name_the_line_and_the_column() {
        for (line, message) in [
            ("[1]", "line 2 of a.json is an array, not an object"),
            ("7", "line 2 of a.json is not a JSON object"),
            ("null", "line 2 of a.json is not a JSON object"),
            ("\"a\"", "line 2 of a.json is not a JSON object"),
            ("{", "line 2 of a.json is cut off: the file ends inside of an object"),
            ("{\"a\":\"x", "line 2 of a.json is cut off: the file ends inside of an object"),
            ("{\"a\":1", "line 2 of a.json is cut off: the file ends inside of an object"),
            ("{\n", "line 2 of a.json ends inside of its object"),
            ("{\"a\":\"x\n", "line 2 of a.json ends inside of its object"),
            ("{\"a\":1}{\"a\":2}", "line 2 of a.json has more than its object"),
            ("{\"a\":1},", "line 2 of a.json has more than its object"),
            (
                "{\"a\":1,}",
                "line 2 of a.json is not valid JSON at character 8: expected a name in quotes",
            ),
            (
                "{'a':1}",
                "line 2 of a.json is not valid JSON at character 2: expected a name in quotes",
            ),
            (
                "{\"ä\":01}",
                "line 2 of a.json: column `ä` is not valid JSON at character 7: invalid number",
            ),
            (
                "{\"a\":NaN}",
                "line 2 of a.json: column `a` is not valid JSON at character 6: expected value",
            ),
            (
                "{\"a\":-Infinity}",
                "line 2 of a.json: column `a` is not valid JSON at character 7: invalid number",
            ),
            ("{\"a\":1,\"a\":1}", "line 2 of a.json: column `a` is in its object twice"),
            ("{\"o\":{\"b\":1},\"o\":{}}", "line 2 of a.json: column `o` is in its object twice"),
            (
                "{\"o\":{\"b\":1},\"o.b\":1}",
                "line 2 of a.json: column `o.b` is in its object twice",
            ),
            ("{\"\":1}", "line 2 of a.json has a field without a name"),
            (
                "{\"a\":\"\\ud800\"}",
                "line 2 of a.json: column `a` is not valid JSON: unexpected end of hex escape",
            ),
        ] {
            let text = format!("{{\"a\":null}}\n{line}");
            assert_eq!(refused(text.as_bytes(), &form(&[])), message, "{line}");
        }
        let message = refused(b"{\"a\":1}\n{\"a\":\"\xFF\"}\n", &form(&[]));
        assert_eq!(message, "line 2 of a.json is not UTF-8 at byte 7");
        let deep = format!("{}1{}", "{\"a\":".repeat(40), "}".repeat(40));
        assert!(
            refused(deep.as_bytes(), &form(&[])).contains("more than 32 objects in each other")
        );
        let array = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&array, &form(&[])).len(), 1, "an array is text, however deep");
    }

    #[test]
    fn a_line_of_many_fields_or_without_an_end_does_not_fill_the_memory() {
        let fields = (0..20_000).map(|number| format!("\"f{number}\":1"));
        let line = format!("{{{}}}", fields.collect::<Vec<_>>().join(","));
        assert!(refused(line.as_bytes(), &form(&[])).contains("has more columns than the 10000"));
        let long = vec![b' '; 33 << 20];
        assert!(refused(&long, &form(&[])).contains("line 1 of a.json has more than 32 MB"));
    }

    #[test]
    fn rows_keep_their_numbers_when_bad_ones_are_quarantined() {
        let form = form(&[("id", "INTEGER")]);
        let text = "{\"id\":1,\"v\":\"a\"}\n{\"id\":\"x\",\"v\":\"b\"}\nno\n\n{\"id\":4,\"v\":\"d\"}\n\
                    {\"id\":5,\"id\":6,\"w\":[]}\n{\"id\":99999999999}\n{\"id\":7";
        let (rows, bad, types) = read_from(text.as_bytes(), &form, 10).expect("rows");
        assert_eq!(rows, ["id=1 v=a", "", "", "id=4 v=d", "", "", ""]);
        assert_eq!(types, ["id Int32", "v Utf8"]);
        let mut reported: Vec<(u64, Option<u64>, &str)> =
            bad.iter().map(|bad| (bad.row, bad.line, bad.change.as_str())).collect();
        reported.sort();
        assert_eq!(
            reported,
            [
                (1, Some(2), r#"{"id":"x","v":"b"}"#),
                (2, Some(3), r#"{"line":"no"}"#),
                (4, Some(6), r#"{"id":5,"id":6,"w":[]}"#),
                (5, Some(7), r#"{"id":"99999999999"}"#),
                (6, Some(8), r#"{"line":"{\"id\":7"}"#),
            ]
        );
        assert!(read_from(text.as_bytes(), &form, 4).is_err(), "one too many");
    }

    #[test]
    fn a_file_of_bad_rows_only_has_their_number() {
        let (rows, bad, types) = read_from(b"no\n[]\n", &form(&[]), 10).expect("rows");
        assert_eq!((rows.len(), bad.len()), (2, 2));
        assert_eq!(types, ["Op Null"]);
    }

    /// Lines that are more than what is kept until the types are known.
    fn large(lines: impl Iterator<Item = String>) -> String {
        let filler = "x".repeat(20_000);
        let lines = lines.map(|line| format!("{{\"f\":\"{filler}\",{line}}}\n"));
        lines.collect()
    }

    #[test]
    fn what_appears_late_in_a_large_file_counts_for_all_of_it() {
        let rows = 2 * PENDING_BYTES / 20_000;
        let text = large((0..rows).map(|row| match row {
            0 => "\"a\":\"no\",\"a\":0,\"n\":1".into(),
            row if row < rows - 3 => "\"n\":1".into(),
            row if row == rows - 3 => "\"n\":1,\"late\":true".into(),
            row if row == rows - 2 => "\"n\":0.5".into(),
            _ => "\"n\":12345678901234567890123".into(),
        }));
        let (found, bad, types) = read_from(text.as_bytes(), &form(&[]), 2).expect("rows");
        assert_eq!(types, ["f Utf8", "late Boolean", "n Float64"]);
        assert_eq!(found.len(), rows);
        assert!(found[1].ends_with("n=1.0") && found[rows - 2].ends_with("n=0.5"));
        assert!(found[rows - 3].contains("late=true"));
        let numbers: Vec<u64> = bad.iter().map(|bad| bad.row).collect();
        assert_eq!(numbers, [0, rows as u64 - 1], "each is counted once");
        let mixed = large((0..rows).map(|row| match row {
            row if row < rows - 1 => "\"n\":1".into(),
            _ => "\"n\":\"x\"".into(),
        }));
        let message = refused(mixed.as_bytes(), &form(&[]));
        let expected = "column `n` is a number in line 1 of a.json, and a text in line";
        assert!(message.contains(expected), "{message}");
    }

    /// A JSON value, and how a row shows it.
    fn value() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![Just(serde_json::Value::Null), any::<i64>().prop_map(serde_json::Value::from),]
    }

    proptest! {
        #[test]
        fn written_rows_are_read_back(
            rows in prop::collection::vec((value(), value(), prop::option::of(".{0,8}")), 1..20),
        ) {
            let lines = rows.iter().map(|(a, b, t)| {
                format!("{}\n", serde_json::json!({"a": a, "o": {"b": b, "t": t}}))
            });
            let text: String = lines.collect();
            let expected: Vec<String> = rows.iter().map(|(a, b, t)| {
                let shown = |name: &str, value: &serde_json::Value| {
                    (!value.is_null()).then(|| format!("{name}={value}"))
                };
                let text = t.as_ref().map(|text| format!("o.t={text}"));
                let values = [shown("a", a), shown("o.b", b), text];
                values.into_iter().flatten().collect::<Vec<_>>().join(" ")
            }).collect();
            prop_assert_eq!(read(&text, &form(&[])), expected);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            bytes in prop::collection::vec(
                prop::sample::select(b"{{}}\"\"aab:,,[]\n\n\\u1e.-\xFF \r".to_vec()),
                0..60,
            ),
        ) {
            let form = form(&[("a", "BIGINT")]);
            if let Ok((rows, bad, _)) = read_from(&bytes, &form, 100) {
                let lines = bytes.split(|byte| *byte == b'\n');
                let count = lines.filter(|line| !line.trim_ascii().is_empty()).count();
                prop_assert_eq!(rows.len(), count);
                let numbers: BTreeSet<u64> = bad.iter().map(|bad| bad.row).collect();
                prop_assert_eq!(numbers.len(), bad.len(), "each row is bad once");
            }
        }
    }
}
