//! Copies rows into a table of the server, in the binary form of `COPY`.

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::{Bytes, BytesMut};
use futures::SinkExt;
use pgpq::ArrowToPostgresBinaryEncoder;
use tokio_postgres::{Client, CopyInSink};

use crate::error::{Error, Result};
use crate::follow::postgres::column::Column;
use crate::postgres::ServerName;
use crate::postgres::refusal;

/// Encoded bytes that are sent together.
const CHUNK_BYTES: usize = 1 << 20;

/// Rows on their way into a table.
pub(super) struct RowCopy<'a> {
    server: &'a ServerName,
    table: &'a str,
    schema: SchemaRef,
    encoder: ArrowToPostgresBinaryEncoder,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    buffer: BytesMut,
    /// Whether rows with a text that PostgreSQL cannot store are left out.
    skips: bool,
}

impl<'a> RowCopy<'a> {
    /// Begins to copy into a relation, given as SQL; `table` names the table in errors.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn begin(
        client: &Client,
        server: &'a ServerName,
        (relation, table): (&str, &'a str),
        columns: &[Column],
    ) -> Result<Self> {
        let names: Vec<String> = columns.iter().map(Column::quoted).collect();
        let statement =
            format!("COPY {relation} ({}) FROM STDIN (FORMAT binary)", names.join(", "));
        let sink = client.copy_in(&statement).await;
        let sink =
            sink.map_err(|error| refusal::failed(server, &format!("load {table}"), &error))?;
        let fields = columns.iter();
        let fields = fields.map(|column| Field::new(&column.name, sent(&column.data_type), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut encoder = ArrowToPostgresBinaryEncoder::try_new(&schema).map_err(cannot_encode)?;
        let mut buffer = BytesMut::new();
        encoder.write_header(&mut buffer).map_err(cannot_encode)?;
        Ok(RowCopy { server, table, schema, encoder, sink: Box::pin(sink), buffer, skips: false })
    }

    /// Leaves out rows with a text that PostgreSQL cannot store: what is to be deleted cannot be there.
    pub(super) fn skipping(mut self) -> Self {
        self.skips = true;
        self
    }

    /// The names of the columns, in their order.
    pub(super) fn column_names(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Sends rows, in the order of the columns.
    ///
    /// # Errors
    /// Data, when PostgreSQL cannot store a value; those of the server.
    pub(super) async fn send(&mut self, rows: &RecordBatch) -> Result<()> {
        if self.skips && rows.columns().iter().any(has_nul) {
            let is_storable = (0..rows.num_rows())
                .map(|row| Some(!rows.columns().iter().any(|it| has_nul(&it.slice(row, 1)))));
            let storable = filter_record_batch(rows, &is_storable.collect::<BooleanArray>())?;
            return Box::pin(self.send(&storable)).await;
        }
        let columns = rows.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(values, field)| self.converted(values, field));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.encoder.write_batch(&rows, &mut self.buffer).map_err(|error| match error {
            pgpq::error::ErrorKind::Encode { .. } => Error::data(format!(
                "cannot load {}: a date or time is out of PostgreSQL's range",
                self.table
            )),
            other => cannot_encode(other),
        })?;
        if self.buffer.len() >= CHUNK_BYTES {
            let chunk = self.buffer.split().freeze();
            let sent = self.sink.send(chunk).await;
            sent.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Ends the copy; returns the number of rows.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn finish(mut self) -> Result<u64> {
        self.encoder.write_footer(&mut self.buffer).map_err(cannot_encode)?;
        let last = self.buffer.split().freeze();
        if let Err(error) = self.sink.send(last).await {
            return Err(self.failed(&error));
        }
        let ended = self.sink.as_mut().finish().await;
        ended.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &tokio_postgres::Error) -> Error {
        refusal::failed(self.server, &format!("load {}", self.table), error)
    }

    /// Values in the type that is sent.
    fn converted(&self, values: &ArrayRef, field: &Field) -> Result<ArrayRef> {
        let (from, to) = (values.data_type(), field.data_type());
        let converted = if from == to { Arc::clone(values) } else { cast(values, to)? };
        let is_finer = match from {
            DataType::Timestamp(TimeUnit::Nanosecond, _)
            | DataType::Time64(TimeUnit::Nanosecond) => {
                cast(&converted, from)?.as_ref() != values.as_ref()
            }
            _ => false,
        };
        let why = if is_finer {
            "has a time finer than a microsecond"
        } else if has_nul(&converted) {
            "has a text with the character NUL"
        } else {
            return Ok(converted);
        };
        let (name, table) = (field.name(), self.table);
        Err(Error::data(format!(
            "cannot load {table}: the column `{name}` {why}, which PostgreSQL cannot store"
        )))
    }
}

/// The type in which a type is sent.
fn sent(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => sent(values),
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::BinaryView => DataType::LargeBinary,
        // The library has no numeric of this size: it is read from text.
        DataType::Decimal256(_, _) => DataType::Utf8,
        other => other.clone(),
    }
}

/// The type of a column of the stage, where it differs from that of the table.
pub(super) fn is_sent_as_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Decimal256(_, _))
}

/// Whether a text has the character NUL.
fn has_nul(values: &ArrayRef) -> bool {
    match values.data_type() {
        DataType::Utf8 => {
            values.as_string::<i32>().iter().flatten().any(|text| text.contains('\0'))
        }
        DataType::LargeUtf8 => {
            values.as_string::<i64>().iter().flatten().any(|text| text.contains('\0'))
        }
        DataType::Utf8View => {
            values.as_string_view().iter().flatten().any(|text| text.contains('\0'))
        }
        DataType::List(_) => has_nul(values.as_list::<i32>().values()),
        DataType::LargeList(_) => has_nul(values.as_list::<i64>().values()),
        _ => false,
    }
}

/// The error of the encoder: which columns it gets is known before.
fn cannot_encode(error: pgpq::error::ErrorKind) -> Error {
    Error::internal("rows cannot be encoded for PostgreSQL").caused_by(error)
}
