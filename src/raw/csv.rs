//! CSV files: read once, checked, and converted to Parquet in the spill folder, so that later steps
//! read Parquet only.
//!
//! An empty unquoted field is null; where `raw.csv_null` is set, an unquoted field of that text is
//! null instead. Unless `raw.csv_null` is set, an empty field of a type other than text is null
//! whether quoted or not.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io::{Read, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringViewBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use flate2::read::MultiGzDecoder;
use parquet::errors::ParquetError;

use crate::config::{CsvForm, Masks, OpValues, Operation, Raw, SourceTable};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result, spilled_too_much};
use crate::raw::bad_rows::{BadRow, BadRows, fields_json};
use crate::raw::csv::fault::Fault;
use crate::raw::csv::records::{HEADER_FIELDS_MAX, Records, unreadable};
use crate::raw::csv::transactions::Line;
use crate::raw::typed::{FileRows, TypedColumns, spill_writer, typed};

mod fault;
mod other_delimiter;
pub(crate) mod records;
mod transactions;

/// The text that is converted to columns at once, unless a batch of rows is full before.
const BATCH_BYTES: usize = 4 << 20;

/// The format of a pipeline's CSV files.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// All columns in order; for files with a header, the columns whose types are declared.
    columns: Vec<(String, DataType)>,
    csv: CsvForm,
    /// The name of the operation column.
    op: String,
    op_values: OpValues,
    /// The names of the columns that order changes.
    order: Vec<String>,
    full_load: bool,
    /// The table whose changes are read, if the file has those of other tables too.
    table: Option<SourceTable>,
}

impl Form {
    /// The format of CDC files, or of full loads, which lack the operation column unless the
    /// pipeline says that they have it.
    pub(crate) fn of(raw: &Raw, full_load: bool) -> Self {
        let lacks_op = full_load && !raw.csv.header && !raw.csv.op_in_full_load;
        let is_present = |(number, (name, _)): &(usize, &(String, DataType))| {
            let is_op = lacks_op && raw.op.is(name);
            let is_table = full_load && raw.is_of_transactions(*number);
            !is_table && !is_op
        };
        let columns = raw.columns.iter().enumerate().filter(is_present);
        Form {
            columns: columns.map(|(_, column)| column.clone()).collect(),
            csv: raw.csv.clone(),
            op: raw.op.name.clone().unwrap_or_default(),
            op_values: raw.op.values.clone(),
            order: raw.order_by.iter().chain(&raw.commit_time).cloned().collect(),
            full_load,
            table: raw.table.clone().filter(|_| !full_load),
        }
    }

    /// Whether a column orders changes.
    fn is_order(&self, column: &str) -> bool {
        self.order.iter().any(|name| name.eq_ignore_ascii_case(column))
    }

    /// Whether every line has a column, however short it is.
    fn is_needed(&self, column: &str) -> bool {
        column.eq_ignore_ascii_case(&self.op) || (!self.full_load && self.is_order(column))
    }
}

/// A reader of an object's content, decompressed as the extension of its name says.
///
/// # Errors
/// Storage, when the decoder cannot be created.
pub(crate) fn decompressed<'a>(name: &str, bytes: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let lower = name.to_ascii_lowercase();
    Ok(if lower.ends_with(".gz") {
        Box::new(MultiGzDecoder::new(bytes))
    } else if lower.ends_with(".zst") {
        let decoder = zstd::Decoder::new(bytes);
        Box::new(decoder.map_err(|error| unreadable(name, error))?)
    } else {
        Box::new(bytes)
    })
}

/// What became of a CSV file, apart from its Parquet file.
pub(crate) struct Converted {
    /// The rows that are placeholders in the Parquet file.
    pub(crate) bad: Vec<BadRow>,
    /// Whether the file has not even the header that it should have: its columns are not known.
    pub(crate) is_blank: bool,
    /// The number of changes of other tables.
    pub(crate) other_rows: u64,
    /// The columns before they were masked.
    pub(crate) source: SchemaRef,
}

/// Converts a CSV file to a Parquet file, whose values are masked. Bad rows are quarantined until `bad_rows` is full; the
/// next one is an error.
///
/// # Errors
/// Data, naming the line and, if known, the column; storage, when input or output fails.
pub(crate) fn to_parquet(
    name: &str,
    input: impl Read,
    (form, masks): (&Form, &Masks),
    bad_rows: &BadRows,
    output: impl Write + Send,
) -> Result<Converted> {
    let mut records = Records::new(name, input, &form.csv);
    let types = |column: &str| {
        let mut types = form.columns.iter();
        types.find(|(known, _)| known.eq_ignore_ascii_case(column))
    };
    let header = if form.csv.header { records.header()? } else { None };
    let is_blank = form.csv.header && header.is_none();
    let mut columns: Vec<(String, DataType)> = if let Some(header) = header {
        let declared_or_text = |column: String| {
            let declared = types(&column).map(|(_, data_type)| data_type.clone());
            (column, declared.unwrap_or(DataType::Utf8View))
        };
        header.into_iter().map(declared_or_text).collect()
    } else {
        form.columns.clone()
    };
    if columns.is_empty() {
        // A file has a column, and one of which nothing is known has no rows.
        columns.push((form.op.clone(), DataType::Null));
    }
    let fields =
        columns.iter().map(|(column, data_type)| Field::new(column, data_type.clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    // Quotes are checked in lines of other tables too, which may have more columns.
    let has_others = form.table.is_some();
    records.fields_max = if has_others { HEADER_FIELDS_MAX } else { columns.len() };
    let mut batch = Batch::new(name, schema, (form, masks), bad_rows);
    let failed = |error: ParquetError| spill_failed(&format!("the rows of {name}"), error);
    let mut writer = spill_writer(output, &batch.masked).map_err(failed)?;
    while let Some(line) = records.next_record()? {
        batch.push(&mut records, line)?;
        if batch.rows == BATCH_ROWS || batch.bytes >= BATCH_BYTES {
            writer.write(&batch.finish()?).map_err(failed)?;
        }
    }
    writer.write(&batch.finish()?).map_err(failed)?;
    writer.close().map_err(failed)?;
    let Batch { bad, other_rows, schema: source, .. } = batch;
    Ok(Converted { bad, is_blank, other_rows, source })
}

/// Rows that are being converted from text to columns.
struct Batch<'a> {
    name: &'a str,
    schema: SchemaRef,
    form: &'a Form,
    masks: &'a Masks,
    /// The columns once they are masked.
    masked: SchemaRef,
    /// The number of the operation column.
    op: Option<usize>,
    /// The number of fields that even a short line has.
    least_fields: usize,
    texts: Vec<StringViewBuilder>,
    /// The line of each row.
    lines: Vec<u64>,
    rows: usize,
    bytes: usize,
    rows_before: u64,
    bad: Vec<BadRow>,
    bad_rows: &'a BadRows,
    /// The number of changes of other tables so far.
    other_rows: u64,
}

impl<'a> Batch<'a> {
    fn new(
        name: &'a str,
        schema: SchemaRef,
        (form, masks): (&'a Form, &'a Masks),
        bad_rows: &'a BadRows,
    ) -> Self {
        let texts = schema.fields().iter().map(|_| StringViewBuilder::new());
        let names = || schema.fields().iter().map(|field| field.name());
        let is_needed = |name: &String| form.is_needed(name);
        Batch {
            name,
            masks,
            masked: masks.schema(&schema),
            texts: texts.collect(),
            op: names().position(|name| name.eq_ignore_ascii_case(&form.op)),
            least_fields: names().rposition(is_needed).map_or(1, |last| last + 1),
            schema,
            form,
            lines: Vec::new(),
            rows: 0,
            bytes: 0,
            rows_before: 0,
            bad: Vec::new(),
            bad_rows,
            other_rows: 0,
        }
    }

    fn push(&mut self, record: &mut Records<impl Read>, line: u64) -> Result<()> {
        let table = self.form.table.as_ref();
        let expected = self.schema.fields().len();
        let fault = match table
            .map(|table| transactions::classify(record, table, &self.form.op_values, expected))
        {
            Some(Ok(Line::Transaction)) => return Ok(()),
            Some(Ok(Line::OtherChange)) => {
                self.other_rows += 1;
                return Ok(());
            }
            Some(Err(fault)) => Some(fault),
            None | Some(Ok(Line::Change)) => self.find_fault(record),
        };
        let row = self.rows_before + self.rows as u64;
        self.lines.push(line);
        self.rows += 1;
        self.bytes += record.text_bytes();
        if let Some(Fault { column, mut reason, hint }) = fault {
            let column = column.map(|number| self.schema.field(number).name().clone());
            if record.last_line > line && (!record.is_cut_off || record.is_open()) {
                reason = format!("{reason} (it ends in line {})", record.last_line);
            }
            for texts in &mut self.texts {
                texts.append_null();
            }
            let texts = record.lossy_texts();
            let names = self
                .schema
                .fields()
                .iter()
                .map(|field| Some(field.name().as_str()))
                .chain(std::iter::repeat(None));
            let change = fields_json(names.zip(texts));
            return self.quarantine(BadRow {
                row,
                line: Some(line),
                lines: record.last_line.max(line) - line + 1,
                column,
                reason,
                hint,
                change,
            });
        }
        let csv = &self.form.csv;
        for (number, texts) in self.texts.iter_mut().enumerate() {
            let Some(field) = record.fields.get(number) else {
                // A line from before the column was added.
                texts.append_null();
                continue;
            };
            let text = record.text(number).unwrap_or_default();
            let is_text = self.schema.field(number).data_type().is_string();
            let is_null = match &csv.null {
                Some(null) => !field.is_quoted && text == null,
                None => text.is_empty() && (!field.is_quoted || !is_text),
            };
            let is_missing = csv.no_sup_value.as_deref() == Some(text);
            if is_null || is_missing {
                texts.append_null();
            } else {
                texts.append_value(text);
            }
        }
        Ok(())
    }

    /// The fault of a record before its values are cast.
    fn find_fault(&self, record: &Records<'_, impl Read>) -> Option<Fault> {
        let csv = &self.form.csv;
        let expected = self.schema.fields().len();
        let least = if csv.null_in_short_lines { self.least_fields } else { expected };
        fault::of_record(record, csv, least, expected).or_else(|| {
            // A delete needs nothing but its key and its place in the order, a truncate only the latter.
            let op = self.op.and_then(|op| record.text(op));
            let operation = op.and_then(|op| self.form.op_values.operation(Some(op)));
            let is_row = !matches!(operation, Some(Operation::Delete | Operation::Truncate));
            fault::of_missing_values(record, csv, |column| {
                is_row || self.form.is_order(self.schema.field(column).name())
            })
        })
    }

    fn quarantine(&mut self, mut bad: BadRow) -> Result<()> {
        if !self.masks.is_empty() {
            // Its fields may be those of other columns.
            bad.change = fields_json(std::iter::empty());
        }
        self.bad_rows.admit(self.name, &bad)?;
        self.bad.push(bad);
        Ok(())
    }

    /// The rows read so far, in the columns' types; a row with a value that does not fit its type
    /// is quarantined.
    fn finish(&mut self) -> Result<RecordBatch> {
        let texts = self.texts.iter_mut();
        let texts: Vec<ArrayRef> = texts.map(|texts| Arc::new(texts.finish()) as _).collect();
        let lines = std::mem::take(&mut self.lines);
        let rows = FileRows { first: self.rows_before, lines: &lines };
        self.rows_before += self.rows as u64;
        (self.rows, self.bytes) = (0, 0);
        let (schema, masked) = (Arc::clone(&self.schema), Arc::clone(&self.masked));
        let columns = TypedColumns { schema: &schema, masks: self.masks, masked: &masked };
        typed(columns, texts, rows, BTreeMap::new(), &mut |bad| self.quarantine(bad))
    }
}

/// The error for rows that cannot be written to the spill folder.
pub(crate) fn spill_failed(what: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    spilled_too_much(&error).unwrap_or_else(|| {
        Error::storage(format!("cannot spill {what}"))
            .hint("check `limits.spill_dir` and its free space")
            .caused_by(error)
    })
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

    type Rows = Vec<Vec<Option<String>>>;

    fn form(columns: &[(&str, &str)], csv: CsvForm) -> Form {
        let typed = |(name, text): &(&str, &str)| {
            let data_type = parse_type(text).expect("a type");
            (name.to_string(), data_type)
        };
        Form {
            columns: columns.iter().map(typed).collect(),
            csv,
            op: "op".into(),
            op_values: OpValues::default(),
            order: vec!["ts".into()],
            full_load: false,
            table: None,
        }
    }

    fn with(csv: CsvForm) -> Form {
        Form { csv, ..texts(2) }
    }

    fn texts(form_columns: usize) -> Form {
        let names: Vec<String> = (0..form_columns).map(|number| format!("c{number}")).collect();
        let columns: Vec<(&str, &str)> =
            names.iter().map(|name| (name.as_str(), "VARCHAR")).collect();
        form(&columns, CsvForm::default())
    }

    /// A reader that returns a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let bytes = self.1.min(self.0.len()).min(buffer.len());
            buffer[..bytes].copy_from_slice(&self.0[..bytes]);
            self.0 = &self.0[bytes..];
            Ok(bytes)
        }
    }

    fn read_from(input: impl Read, form: &Form, bad_max: u64) -> Result<(Rows, Vec<BadRow>)> {
        let mut bytes = Vec::new();
        let bad = to_parquet(
            "a.csv",
            input,
            (form, &Masks::default()),
            &BadRows::new(bad_max),
            &mut bytes,
        )?
        .bad;
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes));
        let mut rows = Rows::new();
        for batch in reader.expect("Parquet").build().expect("a reader") {
            let batch = batch.expect("a batch");
            for row in 0..batch.num_rows() {
                let columns = batch.columns().iter();
                let values = columns.map(|column| {
                    let shown = ArrayFormatter::try_new(column, &FormatOptions::default())
                        .expect("a format");
                    column.is_valid(row).then(|| shown.value(row).to_string())
                });
                rows.push(values.collect());
            }
        }
        Ok((rows, bad))
    }

    fn read(text: &str, form: &Form) -> Rows {
        read_from(text.as_bytes(), form, 0).expect("rows").0
    }

    fn refused(text: &[u8], form: &Form) -> String {
        let error = read_from(text, form, 0).expect_err("bad");
        assert_eq!(error.kind, Kind::Data);
        assert!(error.hint.is_some());
        error.to_string()
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        let null = |value: &&str| (*value != "-").then(|| value.to_string());
        values.iter().map(null).collect()
    }

    #[test]
    fn an_empty_field_is_null_and_a_quoted_one_is_text() {
        let rows = read("a,,\"\"\n\"x,\"\"y\"\"\n z\",b,\n", &texts(3));
        assert_eq!(rows, [some(&["a", "-", ""]), some(&["x,\"y\"\n z", "b", "-"])]);
        let typed = form(&[("n", "BIGINT"), ("t", "VARCHAR")], CsvForm::default());
        assert_eq!(read("\"7\",\n\"\",x\n", &typed), [some(&["7", "-"]), some(&["-", "x"])]);
    }

    #[test]
    fn a_text_for_null_leaves_empty_text_as_it_is() {
        let mut form = texts(3);
        form.csv.null = Some("NULL".into());
        assert_eq!(read("NULL,,\"NULL\"\n", &form), [some(&["-", "", "NULL"])]);
    }

    #[test]
    fn values_take_the_types_of_their_columns() {
        let columns = [
            ("op", "VARCHAR"),
            ("id", "BIGINT"),
            ("amount", "DECIMAL(10, 2)"),
            ("day", "DATE"),
            ("ts", "TIMESTAMP"),
            ("on", "BOOLEAN"),
        ];
        let form = form(&columns, CsvForm::default());
        let rows = read("I,7,1.5,2020-02-29,2020-02-29 12:00:00.123456,true\n", &form);
        let expected = ["I", "7", "1.50", "2020-02-29", "2020-02-29T12:00:00.123456", "true"];
        assert_eq!(rows, [some(&expected)]);
        assert_eq!(
            refused(b"I,7,1.5,2020-02-29,2020-02-29 12:00:00,true\nI,8,1.234,x,,\n", &form),
            "line 2 of a.csv: column `amount` does not fit its type, Decimal128(10, 2)"
        );
    }

    #[test]
    fn line_ends_of_both_kinds_empty_lines_and_a_byte_order_mark_are_read() {
        let rows = [some(&["a", "b"]), some(&["c", "-"])];
        for text in
            ["a,b\nc,\n", "a,b\r\nc,\r\n", "\u{feff}a,b\n\n\nc,\n", "\"a\",\"b\"\r\n\"c\",\r\n"]
        {
            assert_eq!(read(text, &texts(2)), rows, "{text:?}");
            let slow = read_from(Slow(text.as_bytes(), 1), &texts(2), 0).expect("rows");
            assert_eq!(slow.0, rows, "{text:?}");
        }
        assert_eq!(read("", &texts(2)), Rows::new());
    }

    #[test]
    fn errors_name_the_line() {
        let form = texts(2);
        assert_eq!(
            refused(b"a,\"b\n\nb\"\nc\n", &form),
            "line 4 of a.csv has 1 fields where 2 are expected"
        );
        assert_eq!(
            refused(b"a,b\n\nc,d,e\n", &form),
            "line 3 of a.csv has 3 fields where 2 are expected"
        );
        let cut_off = "is cut off: the file does not end with a line feed";
        for text in ["a,b\nc,d", "a,b\nc", "a,b\nc,", "a,b\nc,\"d\""] {
            assert_eq!(refused(text.as_bytes(), &form), format!("line 2 of a.csv {cut_off}"));
        }
        assert_eq!(
            refused(b"a,b\nc,\"d\n\n", &form),
            "line 2 of a.csv has a quote that is not closed (it ends in line 3)"
        );
        for text in ["a,b\n\"c\"x,d\n", "a,b\n\"c\" ,d\n", "a,b\n\"c\"d\"e\",d\n"] {
            assert_eq!(
                refused(text.as_bytes(), &form),
                "line 2 of a.csv: column `c0` has an unexpected quote",
                "{text:?}"
            );
        }
        assert_eq!(refused(b"a,b\nc,\xFF\n", &form), "line 2 of a.csv: column `c1` is not UTF-8");
        assert_eq!(read("a\"b,c\n", &form), [some(&["a\"b", "c"])]);
    }

    #[test]
    fn rows_keep_their_numbers_when_bad_ones_are_quarantined() {
        let form = form(&[("id", "INTEGER"), ("v", "VARCHAR")], CsvForm::default());
        let text = "1,a\nx,b\n3\n\n4,d\n5,e,f\n99999999999,g\n";
        let (rows, bad) = read_from(text.as_bytes(), &form, 10).expect("rows");
        let null = some(&["-", "-"]);
        let expected =
            [some(&["1", "a"]), null.clone(), null.clone(), some(&["4", "d"]), null.clone(), null];
        assert_eq!(rows, expected);
        let mut reported: Vec<(u64, Option<u64>, &str)> =
            bad.iter().map(|bad| (bad.row, bad.line, bad.change.as_str())).collect();
        reported.sort();
        assert_eq!(
            reported,
            [
                (1, Some(2), r#"{"id":"x","v":"b"}"#),
                (2, Some(3), r#"{"id":"3"}"#),
                (4, Some(6), r#"{"id":"5","v":"e","field 3":"f"}"#),
                (5, Some(7), r#"{"id":"99999999999","v":"g"}"#),
            ]
        );
        assert!(read_from(text.as_bytes(), &form, 3).is_err(), "one too many");
    }

    #[test]
    fn a_header_names_the_columns_and_some_have_types() {
        let csv = CsvForm { header: true, ..Default::default() };
        let form = form(&[("ID", "BIGINT")], csv);
        assert_eq!(read("v,id\nx,7\n", &form), [some(&["x", "7"])]);
        assert_eq!(read("v,id\n", &form), Rows::new());
        for empty in ["", "\n\r\n", "\u{feff}"] {
            assert_eq!(read(empty, &form), Rows::new());
        }
        for (text, message) in [
            ("v,id", "a.csv has a header that is cut off"),
            ("v,V\n", "a.csv has a header with an empty or duplicate name"),
            ("v,\n", "a.csv has a header with an empty or duplicate name"),
        ] {
            assert_eq!(refused(text.as_bytes(), &form), message);
        }
    }

    #[test]
    fn a_carriage_return_is_text_but_at_the_end_of_a_line() {
        let rows = read("a\rb,\"c\r\nd\"\r\n\r,e\r\n\r\n", &texts(2));
        assert_eq!(rows, [some(&["a\rb", "c\r\nd"]), some(&["\r", "e"])]);
    }

    #[test]
    fn quotes_are_text_where_the_pipeline_says_so() {
        let mut form = texts(2);
        form.csv.unquoted = true;
        assert_eq!(
            read("\"a\" b,\"\n5\" x,\n", &form),
            [some(&["\"a\" b", "\""]), some(&["5\" x", "-"])]
        );
    }

    /// Forms that differ in every character.
    fn forms() -> Vec<CsvForm> {
        let plain = CsvForm::default();
        vec![
            plain.clone(),
            CsvForm { delimiter: b'|', ..plain.clone() },
            CsvForm { delimiter: b'\t', quote: b'\'', ..plain.clone() },
            CsvForm { escape: Some(b'\\'), ..plain.clone() },
            CsvForm { delimiter: 1, row_delimiter: 0x1e, ..plain.clone() },
            CsvForm { row_delimiter: b'|', escape: Some(b','), delimiter: b'\n', ..plain },
        ]
    }

    #[test]
    fn an_escape_character_escapes_quotes_and_itself_inside_of_quotes() {
        let form = with(CsvForm { escape: Some(b'\\'), ..Default::default() });
        let text = r#""a \"b\", \\","\\"
c:\d,"\\\""
"#;
        assert_eq!(read(text, &form), [some(&["a \"b\", \\", "\\"]), some(&["c:\\d", "\\\""])]);
        let stray =
            "column `c1` has an escape character before neither a quote nor an escape character";
        assert_eq!(refused(b"a,\"c:\\d\"\n", &form), format!("line 1 of a.csv: {stray}"));
        for text in ["a,\"b\"\"c\"\n", "a,\"b\"c\n", "a,\"b\" \n"] {
            let message = "line 1 of a.csv: column `c1` has an unexpected quote";
            assert_eq!(refused(text.as_bytes(), &form), message, "{text:?}");
        }
        let open = "line 1 of a.csv has a quote that is not closed";
        assert_eq!(refused(b"a,\"b\\\"\n", &form), open);
    }

    #[test]
    fn rows_end_in_the_row_delimiter_only() {
        let form = with(CsvForm { row_delimiter: 0x1e, ..Default::default() });
        let rows = [some(&["a\n", "b"]), some(&["c", "\r\n"])];
        assert_eq!(read("a\n,b\x1e\x1ec,\r\n\x1e", &form), rows);
        let cut_off = "is cut off: the file does not end with the row delimiter";
        assert_eq!(refused(b"a,b\x1ec,d", &form), format!("line 2 of a.csv {cut_off}"));
        assert_eq!(
            refused(b"a,b\x1ec\x1e", &form),
            "line 2 of a.csv has 1 fields where 2 are expected"
        );
    }

    #[test]
    fn a_line_with_another_delimiter_is_refused_with_its_name() {
        let hint = |text: &str, form: &Form| {
            let error = read_from(text.as_bytes(), form, 0).expect_err("refused");
            error.hint.expect("a hint")
        };
        assert!(hint("I|1\n", &texts(2)).contains("raw.csv_delimiter = \"|\""));
        assert!(hint("I\t1\n", &texts(2)).contains("raw.csv_delimiter = \"\\t\""));
        assert!(hint("I\n", &texts(2)).contains("raw.columns"));
        assert!(hint("I,1|2,3\n", &texts(2)).contains("raw.columns"));
        let pipes = with(CsvForm { delimiter: b'|', ..Default::default() });
        assert!(hint("I,1\n", &pipes).contains("raw.csv_delimiter = \",\""));
        let header = with(CsvForm { header: true, ..Default::default() });
        assert_eq!(refused(b"Op|id\n", &header), "a.csv has a header of one name");
        assert!(hint("Op|id\n", &header).contains("raw.csv_delimiter = \"|\""));
        assert_eq!(read("id\n1\n", &header), [some(&["1"])]);
    }

    #[test]
    fn a_short_line_is_null_where_columns_were_added() {
        let csv = CsvForm { null_in_short_lines: true, ..Default::default() };
        let mut form = form(&[("op", "TEXT"), ("ts", "TEXT"), ("v", "TEXT"), ("w", "TEXT")], csv);
        let rows =
            [some(&["I", "t", "1", "2"]), some(&["I", "t", "1", "-"]), some(&["I", "t", "-", "-"])];
        assert_eq!(read("I,t,1,2\nI,t,1\nI,t\n", &form), rows);
        let expected =
            |found| format!("line 1 of a.csv has {found} fields where 2 to 4 are expected");
        assert_eq!(refused(b"I\n", &form), expected(1));
        assert_eq!(refused(b"I,t,1,2,3\n", &form), expected(5));
        assert_eq!(refused(b"I,t,\"1\n", &form), "line 1 of a.csv has a quote that is not closed");
        assert_eq!(
            refused(b"I,t", &form),
            "line 1 of a.csv is cut off: the file does not end with a line feed"
        );
        form.full_load = true;
        assert_eq!(read("I\n", &form), [some(&["I", "-", "-", "-"])]);
    }

    #[test]
    fn a_value_that_the_log_lacks_is_bad_and_never_text() {
        let csv = CsvForm { no_sup_value: Some("n/a".into()), ..Default::default() };
        let form = form(&[("op", "TEXT"), ("ts", "TEXT"), ("v", "TEXT"), ("n", "BIGINT")], csv);
        let why = "has a value that the source's log lacks (`raw.csv_no_sup_value`)";
        for (text, column) in [("U,t,n/a,1\n", "v"), ("U,t,\"n/a\",1\n", "v"), ("U,t,x,n/a\n", "n")]
        {
            assert_eq!(
                refused(text.as_bytes(), &form),
                format!("line 1 of a.csv: column `{column}` {why}")
            );
        }
        // A delete needs its key only; but its place in the order.
        assert_eq!(read("D,t,n/a,n/a\n", &form), [some(&["D", "t", "-", "-"])]);
        assert_eq!(refused(b"D,n/a,1,1\n", &form), format!("line 1 of a.csv: column `ts` {why}"));
        assert_eq!(read("U,t,n/a ,1\n", &form), [some(&["U", "t", "n/a ", "1"])]);
    }

    #[test]
    fn an_error_of_a_multi_line_row_names_its_last_line() {
        let message = refused(b"1,\"5 inch\n2,x\n3,\"y\n", &texts(2));
        assert_eq!(
            message,
            "line 1 of a.csv: column `c1` has an unexpected quote (it ends in line 3)"
        );
    }

    #[test]
    fn a_bad_row_counts_once_per_line() {
        let text = b"1,\"open\n2,x\n3,y\n";
        assert!(read_from(&text[..], &texts(2), 2).is_err());
        let (rows, bad) = read_from(&text[..], &texts(2), 3).expect("rows");
        assert_eq!((rows.len(), bad[0].lines), (1, 3));
    }

    #[test]
    fn a_line_of_many_fields_does_not_fill_the_memory() {
        let commas = std::io::repeat(b',').take(20 << 20).chain(&b"\n1,2\n"[..]);
        let (rows, bad) = read_from(commas, &texts(2), 10).expect("rows");
        assert_eq!(rows[1], some(&["1", "2"]));
        assert!(bad[0].reason.contains("has 20971521 fields"), "{}", bad[0].reason);
        assert!(bad[0].change.len() < 100);
    }

    #[test]
    fn a_record_without_an_end_does_not_fill_the_memory() {
        let endless = b"a,\"".chain(std::io::repeat(b'x').take(1 << 40));
        let error = read_from(endless, &texts(2), 10).expect_err("too long");
        assert!(error.to_string().starts_with("line 1 of a.csv has more than 32 MB"), "{error}");
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        writer.write_all(bytes).expect("written");
        writer.finish().expect("written")
    }

    #[test]
    fn compressed_files_are_read_and_cut_off_ones_refused() {
        let text = (0..5000)
            .map(|row| format!("{row},{}\n", row * 7919 % 104_729))
            .collect::<String>()
            .into_bytes();
        let halves = text.split_at(text.len() / 2);
        let many = [gzipped(halves.0), gzipped(halves.1)].concat();
        let zst = zstd::encode_all(&text[..], 1).expect("compressed");
        let rows = read_from(&text[..], &texts(2), 0).expect("rows").0;
        assert_eq!(rows.len(), 5000);
        for (name, bytes) in [("a.csv", text), ("a.csv.GZ", many), ("a.csv.zst", zst)] {
            let whole = decompressed(name, &bytes[..]).expect("a decoder");
            assert_eq!(read_from(whole, &texts(2), 0).expect("rows").0, rows, "{name}");
            for length in [bytes.len() - 1, bytes.len() / 2 + 3, 5] {
                let part = decompressed(name, &bytes[..length]).expect("a decoder");
                let error = read_from(part, &texts(2), 0).expect_err("cut off");
                assert_eq!(error.kind, Kind::Data, "{name} {length}: {error}");
            }
        }
    }

    fn field() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[a,\"\n\rä |'\\\\\u{1}\u{1e}]{0,6}")
    }

    proptest! {
        #[test]
        fn written_rows_are_read_back(
            rows in prop::collection::vec(prop::collection::vec(field(), 3), 0..20),
            step in 1usize..9,
            crlf in any::<bool>(),
            csv in prop::sample::select(forms()),
        ) {
            let quote = char::from(csv.quote).to_string();
            let escape = csv.escape.map_or(quote.clone(), |escape| char::from(escape).into());
            let written = |field: &Option<String>| match field {
                None => String::new(),
                Some(text) => {
                    let escaped = text.replace(&escape, &escape.repeat(2));
                    let escaped = match csv.escape {
                        Some(_) => escaped.replace(&quote, &format!("{escape}{quote}")),
                        None => escaped,
                    };
                    format!("{quote}{escaped}{quote}")
                }
            };
            let mut end = char::from(csv.row_delimiter).to_string();
            if crlf && end == "\n" {
                end = "\r\n".into();
            }
            let delimiter = char::from(csv.delimiter).to_string();
            let lines = rows.iter().map(|row| {
                row.iter().map(written).collect::<Vec<_>>().join(&delimiter) + &end
            });
            let text: String = lines.collect();
            let read = read_from(Slow(text.as_bytes(), step), &Form { csv, ..texts(3) }, 0);
            prop_assert_eq!(read.expect("rows").0, rows);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            bytes in prop::collection::vec(prop::sample::select(b"a,\"\"\n\n\r\xFF1|'\\".to_vec()), 0..60),
            step in 1usize..9,
            csv in prop::sample::select(forms()),
        ) {
            let form = form(&[("a", "BIGINT"), ("b", "VARCHAR")], csv);
            let whole = read_from(&bytes[..], &form, 100).expect("rows");
            let slow = read_from(Slow(&bytes, step), &form, 100).expect("rows");
            prop_assert_eq!(&whole.0, &slow.0);
            let rows = whole.1.iter().map(|bad| bad.row).collect::<std::collections::BTreeSet<_>>();
            prop_assert_eq!(rows.len(), whole.1.len(), "each row is bad once");
            for name in ["a.csv.gz", "a.csv.zst"] {
                let _ = read_from(decompressed(name, &bytes[..]).expect("a decoder"), &form, 100);
            }
        }
    }
}
