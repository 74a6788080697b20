//! One Parquet object: its footer read once, its rows read as often as needed.
//!
//! A small object is fetched whole, in one request; of a larger one only the footer and the
//! needed column chunks are. Arrow types are taken from the Parquet schema alone, with text as
//! views and INT96 as microseconds (nanoseconds would turn the year 9999 into 1816).

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use futures::{FutureExt, TryFutureExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::arrow::{ProjectionMask, RowNumber};
use parquet::basic::Type as PhysicalType;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::error::{Error, Kind, Result};

/// Objects up to this size are fetched whole.
pub const SMALL_BYTES_MAX: u64 = 1 << 20;
/// How much of an object's end is fetched in the hope that it holds the whole footer.
const FOOTER_BYTES_HINT: usize = 64 << 10;

/// A Parquet object whose footer was read.
#[derive(Clone, Debug)]
pub struct ParquetFile {
    reader: ObjectReader,
    /// The name for messages.
    pub name: String,
    size: u64,
    metadata: ArrowReaderMetadata,
    /// The whole object, if it is small.
    bytes: Option<Bytes>,
}

/// Which rows of a file to read.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The row groups, ascending; `None` for all.
    pub row_groups: Option<Vec<usize>>,
    /// Which rows of these row groups; `None` for all.
    pub selection: Option<RowSelection>,
}

impl ParquetFile {
    /// Reads the footer.
    ///
    /// # Errors
    /// Data, when it is not a whole Parquet file; storage, when it cannot be fetched.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        path: Path,
        size: u64,
        name: String,
    ) -> Result<Self> {
        if size == 0 {
            return Err(Error::data(format!("{name} is empty"))
                .hint("restore it from its source, or take it away"));
        }
        let mut reader = ObjectReader { store, path };
        let failed = |error| read_error(&name, error);
        let (metadata, bytes) = if size <= SMALL_BYTES_MAX {
            let bytes = reader.get_bytes(0..size).await.map_err(failed)?;
            let metadata = ParquetMetaDataReader::new()
                .parse_and_finish(&bytes)
                .map_err(failed)?;
            (metadata, Some(bytes))
        } else {
            let metadata = ParquetMetaDataReader::new()
                .with_prefetch_hint(Some(FOOTER_BYTES_HINT))
                .load_and_finish(&mut reader, size)
                .await
                .map_err(failed)?;
            (metadata, None)
        };
        let metadata = arrow_metadata(Arc::new(metadata)).map_err(failed)?;
        Ok(ParquetFile {
            reader,
            name,
            size,
            metadata,
            bytes,
        })
    }

    /// Forgets the bytes of a small file, to be fetched again when rows are read.
    pub fn without_bytes(mut self) -> Self {
        self.bytes = None;
        self
    }

    /// How many bytes of the file are kept.
    pub fn kept_bytes(&self) -> usize {
        self.bytes.as_ref().map_or(0, Bytes::len)
    }

    /// The file's columns; the last field is the row number.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// The Parquet footer.
    pub fn metadata(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    /// How many rows the file has.
    pub fn row_count(&self) -> u64 {
        self.metadata().file_metadata().num_rows().max(0) as u64
    }

    /// Reads the given columns (indices into [`ParquetFile::schema`], ascending) of the given
    /// rows, in file order; the row number comes last.
    pub fn read(
        &self,
        columns: &[usize],
        rows: Rows,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), columns.iter().copied());
        let metadata = self.metadata.clone();
        let name = self.name.clone();
        let mut reader = self.reader.clone();
        let small = self.size <= SMALL_BYTES_MAX;
        let kept = self.bytes.clone();
        let batches = async move {
            let bytes = match kept {
                None if small => Some(reader.get_whole().await?),
                kept => kept,
            };
            let batches: BoxStream<'static, ParquetResult<RecordBatch>> = match bytes {
                Some(bytes) => {
                    let mut builder =
                        ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
                            .with_projection(mask)
                            .with_batch_size(batch_rows);
                    if let Some(row_groups) = rows.row_groups {
                        builder = builder.with_row_groups(row_groups);
                    }
                    if let Some(selection) = rows.selection {
                        builder = builder.with_row_selection(selection);
                    }
                    stream::iter(builder.build()?)
                        .map_err(ParquetError::from)
                        .boxed()
                }
                None => {
                    let mut builder =
                        ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
                            .with_projection(mask)
                            .with_batch_size(batch_rows);
                    if let Some(row_groups) = rows.row_groups {
                        builder = builder.with_row_groups(row_groups);
                    }
                    if let Some(selection) = rows.selection {
                        builder = builder.with_row_selection(selection);
                    }
                    builder.build()?.boxed()
                }
            };
            Ok::<_, ParquetError>(batches)
        };
        batches
            .try_flatten_stream()
            .map_err(move |error| read_error(&name, error))
            .boxed()
    }
}

/// A batch with the columns and types of a schema; null where it lacks a column.
///
/// # Errors
/// Data, when a value does not fit.
pub fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| {
        Ok(match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
            Some(column) => cast_exactly(column, field.data_type()).ok_or_else(|| {
                let (name, data_type) = (field.name(), field.data_type());
                Error::data(format!(
                    "a value of the column `{name}` does not fit {data_type}"
                ))
                .hint("cast it in curated.sql")
            })?,
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Casts, where every value keeps its meaning: a time without a zone is one of UTC.
fn cast_exactly(column: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    use DataType::Timestamp;
    let strict = CastOptions {
        safe: false,
        ..Default::default()
    };
    let cast = |column: &ArrayRef, to: &DataType| cast_with_options(column, to, &strict).ok();
    match (column.data_type(), to) {
        (Timestamp(from, None), Timestamp(unit, Some(_))) if from != unit => {
            // The engine's own way to a zone goes through dates, which not every time has.
            cast_exactly(&cast_exactly(column, &Timestamp(*unit, None))?, to)
        }
        (Timestamp(TimeUnit::Microsecond, None), Timestamp(_, Some(zone))) => {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            Some(Arc::new(times.clone().with_timezone(Arc::clone(zone))))
        }
        (Timestamp(TimeUnit::Nanosecond, _), Timestamp(unit, _))
            if *unit != TimeUnit::Nanosecond =>
        {
            let times = cast(column, to)?;
            let again = cast(&times, column.data_type())?;
            (again.to_data() == column.to_data()).then_some(times)
        }
        _ => cast(column, to),
    }
}

/// A file that cannot be read: storage trouble, or not (any more) a Parquet file.
fn read_error(name: &str, error: ParquetError) -> Error {
    let damaged = Error::data(format!("{name} is not a readable Parquet file"))
        .hint("it may be truncated or damaged: restore it from its source, or take it away");
    if !matches!(error, ParquetError::External(_)) {
        return damaged.caused_by(error);
    }
    let error = Error::from(error);
    if error.kind == Kind::Storage || error.kind == Kind::Data {
        return Error::storage(format!("cannot read {name}")).caused_by(error);
    }
    damaged.caused_by(error)
}

/// Arrow types for a file: text and binary as views, INT96 in µs, and the row number.
fn arrow_metadata(metadata: Arc<ParquetMetaData>) -> ParquetResult<ArrowReaderMetadata> {
    let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let inferred = ArrowReaderMetadata::try_new(Arc::clone(&metadata), plain.clone())?;
    let descriptor = metadata.file_metadata().schema_descr();
    let fields: Vec<Field> = inferred
        .schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(root, field)| {
            let is_int96 = descriptor.root_schema().get_fields()[root].is_primitive()
                && descriptor.root_schema().get_fields()[root].get_physical_type()
                    == PhysicalType::INT96;
            let data_type = match field.data_type() {
                DataType::Timestamp(_, zone) if is_int96 => {
                    DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
                }
                DataType::Utf8 => DataType::Utf8View,
                DataType::Binary => DataType::BinaryView,
                other => other.clone(),
            };
            Field::new(field.name(), data_type, field.is_nullable())
        })
        .collect();
    let row_number =
        Field::new("row number", DataType::Int64, false).with_extension_type(RowNumber);
    let options = plain
        .with_schema(Arc::new(Schema::new(fields)))
        .with_virtual_columns(vec![Arc::new(row_number)])?;
    ArrowReaderMetadata::try_new(metadata, options)
}

/// Fetches ranges of one object.
#[derive(Clone, Debug)]
struct ObjectReader {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl ObjectReader {
    async fn get_whole(&mut self) -> ParquetResult<Bytes> {
        let found = self.store.get(&self.path).await?;
        Ok(found.bytes().await?)
    }
}

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.store
            .get_range(&self.path, range)
            .map_err(ParquetError::from)
            .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move { Ok(self.store.get_ranges(&self.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        // The footer is always handed over by `ParquetFile`.
        async { Err(ParquetError::General("the footer was not read".into())) }.boxed()
    }
}
