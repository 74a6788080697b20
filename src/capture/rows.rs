//! Rows of a source table on their way into a file.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `Op` | text | no | `I`, `U`, `D` or `T`; `I` in full loads |
//! | `_commit_time` | timestamp, UTC | no | when the transaction committed; of snapshots, when they were made |
//! | `_lsn` | text | no | the change's [`Position`], of a fixed width: it decides which change is later |
//! | `_xid` | int64 | of snapshots | the transaction |
//! | `_old_` and a key column's name | as the key column | if it is not a change of the key | its value before |
//! | the table's columns | see [`crate::capture::column`] | yes | the row; of a delete the key alone, or the row before it |
//!
//! Files of extracts ([`crate::capture::audit`]) have `_extract`, the position of the extract, in the place of
//! `_lsn`, and neither `_xid` nor `_old_` columns. Their `_commit_time` is when the extract's snapshot was made.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::capture::column::{Kind, Values, Written};
use crate::capture::position::Position;
use crate::error::{Error, Result};

/// The columns before those of the table.
const OP: &str = "Op";
const COMMIT_TIME: &str = "_commit_time";
pub(super) const LSN: &str = "_lsn";
const XID: &str = "_xid";
/// The column of the position in files of extracts.
const EXTRACT: &str = "_extract";
/// The prefix of a key column's value before an update.
pub(super) const OLD_PREFIX: &str = "_old_";

/// The rows that are encoded together.
const BATCH_ROWS: usize = 4096;
/// The bytes of values that are encoded together, although they are fewer rows.
const BATCH_BYTES: usize = 4 << 20;

/// The shape of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// The table, `schema.table`, for messages.
    pub(super) table: String,
    /// Its columns, in the order of the server.
    pub(super) columns: Vec<(String, Kind)>,
    /// The columns of its key, by their numbers.
    pub(super) key: Vec<usize>,
    schema: SchemaRef,
}

impl Shape {
    /// The shape of a table with these columns.
    ///
    /// # Errors
    /// Usage, when a column has the name of one of ours.
    pub(super) fn new(
        table: String,
        columns: Vec<(String, Kind)>,
        key: Vec<usize>,
    ) -> Result<Self> {
        let mut fields = head_fields(LSN);
        fields.push(Field::new(XID, DataType::Int64, true));
        for at in &key {
            let (name, kind) = &columns[*at];
            fields.push(kind.field(&format!("{OLD_PREFIX}{name}")));
        }
        Shape::with_head(table, fields, columns, key)
    }

    /// The shape of a table whose rows are read by extracts.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub(super) fn of_extracts(table: String, columns: Vec<(String, Kind)>) -> Result<Self> {
        Shape::with_head(table, head_fields(EXTRACT), columns, Vec::new())
    }

    fn with_head(
        table: String,
        mut fields: Vec<Field>,
        columns: Vec<(String, Kind)>,
        key: Vec<usize>,
    ) -> Result<Self> {
        for (name, kind) in &columns {
            if let Some(taken) = fields.iter().find(|field| field.name().eq_ignore_ascii_case(name))
            {
                return Err(Error::usage(format!(
                    "{table}: its column `{name}` has the name of `{}`, which capture writes, or of \
                     another column",
                    taken.name()
                ))
                .hint("leave the table out by `tables` or `exclude`, or rename the column at the source"));
            }
            fields.push(kind.field(name));
        }
        Ok(Shape { table, columns, key, schema: Arc::new(Schema::new(fields)) })
    }

    /// The column that has the positions of changes.
    fn position_column(&self) -> &str {
        self.schema.field(2).name()
    }
}

/// The columns before those of a table that all files have.
fn head_fields(position: &str) -> Vec<Field> {
    let zone = Some("UTC".into());
    vec![
        Field::new(OP, DataType::Utf8, false),
        Field::new(COMMIT_TIME, DataType::Timestamp(TimeUnit::Microsecond, zone), false),
        Field::new(position, DataType::Utf8, false),
    ]
}

/// What stands before the columns of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) op: &'static str,
    /// Microseconds since 1970.
    pub(super) commit_time: i64,
    pub(super) position: Position,
    pub(super) xid: Option<u32>,
}

/// An encoded Parquet file that grows by rows.
#[derive(Debug)]
pub(super) struct RowFile {
    shape: Arc<Shape>,
    writer: ArrowWriter<Vec<u8>>,
    op: StringBuilder,
    commit_time: TimestampMicrosecondBuilder,
    lsn: StringBuilder,
    xid: Int64Builder,
    old: Vec<Values>,
    values: Vec<Values>,
    /// The rows and bytes that are not encoded yet.
    pending: (usize, usize),
    /// The head of its first row.
    pub(super) first: Option<Head>,
    /// The rows of the file.
    pub(super) rows: u64,
    /// The values that were infinite.
    pub(super) infinite: u64,
}

impl RowFile {
    /// # Errors
    /// Internal, when the schema cannot be written.
    pub(super) fn new(shape: &Arc<Shape>, compression: Compression) -> Result<Self> {
        let lsn = ColumnPath::from(shape.position_column());
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_column_dictionary_enabled(lsn.clone(), false)
            // Positions have long prefixes in common.
            .set_column_encoding(lsn, Encoding::DELTA_BYTE_ARRAY);
        let schema = Arc::clone(&shape.schema);
        let of = |at: &usize| Values::new(shape.columns[*at].1);
        Ok(RowFile {
            writer: ArrowWriter::try_new(Vec::new(), schema, Some(properties.build()))?,
            op: StringBuilder::new(),
            commit_time: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            lsn: StringBuilder::new(),
            xid: Int64Builder::new(),
            old: shape.key.iter().map(of).collect(),
            values: shape.columns.iter().map(|(_, kind)| Values::new(*kind)).collect(),
            shape: Arc::clone(shape),
            pending: (0, 0),
            first: None,
            rows: 0,
            infinite: 0,
        })
    }

    /// Appends a row: its values before, of the key, and its values; each `None` for null.
    ///
    /// # Errors
    /// Data, for a value that its column cannot have in files.
    pub(super) fn append<'v>(
        &mut self,
        head: Head,
        old: impl Iterator<Item = Option<&'v [u8]>>,
        row: impl Iterator<Item = Option<&'v [u8]>>,
    ) -> Result<()> {
        self.first.get_or_insert(head);
        self.op.append_value(head.op);
        self.commit_time.append_value(head.commit_time);
        let _ = write!(self.lsn, "{}", head.position);
        self.lsn.append_value("");
        self.xid.append_option(head.xid.map(i64::from));
        for (number, (values, text)) in self.old.iter_mut().zip(old).enumerate() {
            let shape = &self.shape;
            // It is counted where it is the row's own value.
            values.append(text).map_err(|why| unfit(shape, shape.key[number], head, why))?;
        }
        let mut bytes = 40;
        for (number, (values, text)) in self.values.iter_mut().zip(row).enumerate() {
            let written = values.append(text);
            if written.map_err(|why| unfit(&self.shape, number, head, why))? == Written::AsLimit {
                self.infinite += 1;
            }
            bytes += text.map_or(1, <[u8]>::len);
        }
        self.rows += 1;
        self.pending = (self.pending.0 + 1, self.pending.1 + bytes);
        if self.pending.0 >= BATCH_ROWS || self.pending.1 >= BATCH_BYTES {
            self.encode()?;
        }
        Ok(())
    }

    /// Encodes the pending rows.
    fn encode(&mut self) -> Result<()> {
        if self.pending.0 == 0 {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.op.finish()),
            Arc::new(self.commit_time.finish()),
            Arc::new(self.lsn.finish()),
        ];
        let xid = self.xid.finish();
        if self.shape.position_column() == LSN {
            columns.push(Arc::new(xid));
        }
        columns.extend(self.old.iter_mut().chain(&mut self.values).map(Values::finish));
        self.pending = (0, 0);
        let batch = RecordBatch::try_new(Arc::clone(&self.shape.schema), columns);
        let batch = batch.map_err(|error| {
            let message = format!("{}: a row lacks a column", self.shape.table);
            Error::internal(message).caused_by(error)
        })?;
        Ok(self.writer.write(&batch)?)
    }

    /// Appends rows that another file of this shape has.
    ///
    /// # Errors
    /// Internal, when they do not fit.
    pub(super) fn append_batch(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        Ok(self.writer.write(batch)?)
    }

    /// About the size of the file so far, and the memory that it takes.
    pub(super) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size() + self.pending.1) as u64
    }

    /// The whole file, with notes in its footer.
    ///
    /// # Errors
    /// Internal, when it cannot be encoded.
    pub(super) fn finish(mut self, notes: Vec<KeyValue>) -> Result<Vec<u8>> {
        self.encode()?;
        notes.into_iter().for_each(|note| self.writer.append_key_value_metadata(note));
        Ok(self.writer.into_inner()?)
    }
}

/// The error for a value that its column cannot have in files.
fn unfit(shape: &Shape, column: usize, head: Head, why: &str) -> Error {
    let (table, name) = (&shape.table, &shape.columns[column].0);
    let at = match head.xid {
        Some(_) => format!(" in the change at {}", head.position),
        None => String::new(),
    };
    let unfit = Error::data(format!("{table}: a value of `{name}`{at} {why}"));
    if shape.columns[column].1 == Kind::Text {
        return unfit.hint("correct it at the source: texts in files are UTF-8");
    }
    unfit.hint(format!(
        "add \"{table}.{name}\" to `text_columns`: the column is then written as text, as the server has it"
    ))
}
