//! A Parquet object: its footer, and its rows, which can be read several times.
//!
//! A small object is fetched whole, in one request; of a larger one only the footer and the needed
//! column chunks ([`crate::parquet_io::fetch`]). Arrow types come from the Parquet schema alone,
//! with text as views and INT96 as microseconds (nanoseconds would turn the year 9999 into 1816).

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::RowNumber;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::basic::Type as PhysicalType;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{
    ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy,
};
use parquet::schema::types::SchemaDescPtr;

use crate::error::{Error, Kind, Result};

/// Objects up to this size are fetched whole.
pub(crate) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// The size of the first fetch at an object's end, which usually contains the whole footer.
pub(crate) const FOOTER_BYTES_HINT: usize = 64 << 10;

/// A Parquet object whose footer has been read.
#[derive(Clone, Debug)]
pub struct ParquetFile {
    pub(crate) reader: ObjectReader,
    /// The name for messages.
    pub name: String,
    pub(crate) size: u64,
    columns: Columns,
    row_groups: Arc<[RowGroup]>,
    /// The footer; `None` if it is decoded each time rows are read.
    pub(crate) footer: Option<ArrowReaderMetadata>,
    /// The whole object, if it is small and cached.
    pub(crate) bytes: Option<Bytes>,
}

/// The columns of a file, in Arrow types and as in the footer.
#[derive(Clone, Debug)]
pub struct Columns {
    schema: SchemaRef,
    descriptor: SchemaDescPtr,
}

impl PartialEq for Columns {
    fn eq(&self, other: &Self) -> bool {
        self.schema == other.schema
            && self.descriptor.root_schema() == other.descriptor.root_schema()
    }
}

/// The size of a row group.
#[derive(Clone, Copy, Debug)]
pub struct RowGroup {
    /// The number of its rows.
    pub rows: usize,
    /// Its compressed size in bytes.
    pub bytes: u64,
}

impl ParquetFile {
    /// Opens an object and reads its footer.
    ///
    /// # Errors
    /// Data, when it is not a complete Parquet file; storage, when it cannot be fetched.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        path: Path,
        size: u64,
        name: String,
    ) -> Result<Self> {
        let start = 0;
        Self::open_in(ObjectReader { store, path, start }, size, name, &mut Vec::new()).await
    }

    /// Opens a file that is a part of an object, and reads its footer. Adds what was fetched for that
    /// to `fetched`: the whole of a small file, else its end.
    ///
    /// # Errors
    /// As [`ParquetFile::open`].
    pub(crate) async fn open_in(
        reader: ObjectReader,
        size: u64,
        name: String,
        fetched: &mut Vec<FetchedPart>,
    ) -> Result<Self> {
        if size == 0 {
            return Err(empty_file(&name));
        }
        let failed = |error| read_error(&name, error);
        let (metadata, bytes) = if size <= SMALL_BYTES_MAX {
            let bytes = reader.range(0..size).await.map_err(ParquetError::from).map_err(failed)?;
            fetched.push((0, bytes.clone()));
            let parse = || ParquetMetaDataReader::new().parse_and_finish(&bytes);
            (catch_panics(parse).map_err(failed)?, Some(bytes))
        } else {
            let load = ParquetMetaDataReader::new()
                .with_prefetch_hint(Some(FOOTER_BYTES_HINT))
                .load_and_finish(Recording { reader: &reader, fetched }, size);
            let loaded = AssertUnwindSafe(load).catch_unwind().await;
            let metadata = loaded.unwrap_or_else(|_| Err(undecodable()));
            (metadata.map_err(failed)?, None)
        };
        check_footer(&metadata, size).map_err(failed)?;
        let footer = catch_panics(|| arrow_metadata(Arc::new(metadata), None)).map_err(failed)?;
        let metadata = footer.metadata();
        let row_groups = metadata.row_groups().iter().map(|group| RowGroup {
            rows: group.num_rows() as usize,
            bytes: group.compressed_size().max(1) as u64,
        });
        Ok(ParquetFile {
            reader,
            name,
            size,
            columns: Columns {
                schema: Arc::clone(footer.schema()),
                descriptor: metadata.file_metadata().schema_descr_ptr(),
            },
            row_groups: row_groups.collect(),
            footer: Some(footer),
            bytes,
        })
    }

    /// Drops the cached bytes of a small file, which are fetched again when rows are read.
    pub fn without_bytes(mut self) -> Self {
        self.bytes = None;
        self
    }

    /// Drops the footer of a small file, which takes more memory than the file; it is decoded again
    /// when rows are read. Adjacent files of equal columns share them: `known` are the columns seen
    /// last.
    pub fn without_footer(mut self, known: &mut Option<Columns>) -> Self {
        if !self.is_small() {
            return self;
        }
        match known {
            Some(known) if *known == self.columns => self.columns = known.clone(),
            _ => *known = Some(self.columns.clone()),
        }
        self.footer = None;
        self
    }

    /// Decodes the footer from the whole file.
    pub(crate) fn decoded_footer(&self, whole: &Bytes) -> ParquetResult<ArrowReaderMetadata> {
        let mut options = ParquetMetaDataOptions::new()
            .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll);
        if self.bytes.is_some() {
            options.set_schema(Arc::clone(&self.columns.descriptor));
        }
        let reader = ParquetMetaDataReader::new().with_metadata_options(Some(options));
        let metadata = catch_panics(|| reader.parse_and_finish(whole))?;
        check_footer(&metadata, self.size)?;
        let groups = metadata.row_groups().iter();
        let rows = groups.map(|group| group.num_rows() as usize);
        if !rows.eq(self.row_groups.iter().map(|group| group.rows)) {
            return Err(ParquetError::General("it changed during the run".into()));
        }
        arrow_metadata(Arc::new(metadata), Some(&self.columns.schema))
    }

    /// The number of cached bytes of the file.
    pub fn cached_bytes(&self) -> usize {
        self.bytes.as_ref().map_or(0, Bytes::len)
    }

    /// The file's columns; the last field is the row number.
    pub fn schema(&self) -> &SchemaRef {
        &self.columns.schema
    }

    /// The file's columns as in the footer.
    pub(crate) fn descriptor(&self) -> &SchemaDescPtr {
        &self.columns.descriptor
    }

    /// The Parquet footer, if it is cached.
    pub fn metadata(&self) -> Option<&Arc<ParquetMetaData>> {
        self.footer.as_ref().map(ArrowReaderMetadata::metadata)
    }

    /// The Parquet footer, decoded from the cached file if only that is cached.
    pub fn decoded_metadata(&self) -> Option<Arc<ParquetMetaData>> {
        let decode = || {
            let bytes = self.bytes.as_ref()?;
            catch_panics(|| ParquetMetaDataReader::new().parse_and_finish(bytes)).ok()
        };
        self.metadata().cloned().or_else(|| decode().map(Arc::new))
    }

    /// The row groups, in file order.
    pub fn row_groups(&self) -> &[RowGroup] {
        &self.row_groups
    }

    /// The number of rows of the file.
    pub fn row_count(&self) -> u64 {
        self.row_groups.iter().map(|group| group.rows as u64).sum()
    }

    /// Whether the file is fetched whole.
    pub(crate) fn is_small(&self) -> bool {
        self.size <= SMALL_BYTES_MAX
    }
}

/// The first leaf of a column, by the indices in the file; a column that is not nested has one.
pub(crate) fn first_leaf(metadata: &ParquetMetaData, column: usize) -> Option<usize> {
    let schema = metadata.file_metadata().schema_descr();
    (0..schema.num_columns()).find(|leaf| schema.get_column_root_idx(*leaf) == column)
}

thread_local! {
    static IS_DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is decoding bytes that may be damaged: the decoders report most damage as
/// errors, and panic at some.
pub(crate) fn is_decoding() -> bool {
    IS_DECODING.get()
}

/// Runs a decoder and turns its panics into errors.
///
/// # Errors
/// Those of the decoder.
pub(crate) fn catch_panics<T>(decode: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    IS_DECODING.set(true);
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    IS_DECODING.set(false);
    decoded.unwrap_or_else(|_| Err(undecodable()))
}

fn undecodable() -> ParquetError {
    ParquetError::General("the decoder cannot read its bytes".into())
}

/// The error for an empty file.
pub(crate) fn empty_file(name: &str) -> Error {
    Error::data(format!("{name} is empty")).hint(
        "restore it from its source, or, if it is a raw file that cannot be restored, put it in \
             quarantine with `raw.on_bad_file`: its changes are then missing",
    )
}

/// Checks that the row counts of a footer add up and that its columns are inside the object.
fn check_footer(metadata: &ParquetMetaData, size: u64) -> ParquetResult<()> {
    let mut groups = metadata.row_groups().iter().map(|group| group.num_rows());
    let rows = groups.try_fold(0i64, |sum, rows| match rows {
        0.. => sum.checked_add(rows),
        _ => None,
    });
    if rows != Some(metadata.file_metadata().num_rows()) {
        return Err(ParquetError::General("its footer has wrong row counts".into()));
    }
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    for chunk in chunks {
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size());
        let is_inside =
            start >= 0 && chunk.compressed_size() >= 0 && end.is_some_and(|end| end as u64 <= size);
        if !is_inside {
            return Err(ParquetError::General(
                "its footer places a column outside the file".into(),
            ));
        }
    }
    Ok(())
}

/// Converts a batch to the columns and types of a schema; missing columns are null.
///
/// # Errors
/// Data, when a value does not fit.
pub(crate) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            Ok(match batch.column_by_name(field.name()) {
                Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
                Some(column) if column.logical_null_count() == column.len() => {
                    new_null_array(field.data_type(), batch.num_rows())
                }
                Some(column) => cast_exactly(column, field.data_type()).ok_or_else(|| {
                    let (name, data_type) = (field.name(), field.data_type());
                    Error::data(format!("a value of the column `{name}` does not fit {data_type}"))
                        .hint("cast it in curated.sql")
                })?,
                None => new_null_array(field.data_type(), batch.num_rows()),
            })
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Casts a column if every value keeps its meaning: a time without a zone is one of UTC.
fn cast_exactly(column: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    use DataType::Timestamp;
    let strict = CastOptions { safe: false, ..Default::default() };
    let cast = |column: &ArrayRef, to: &DataType| cast_with_options(column, to, &strict).ok();
    match (column.data_type(), to) {
        (Timestamp(from, None), Timestamp(unit, Some(_))) if from != unit => {
            // The engine's cast to a zone goes through dates, which not every time has.
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
            let back = cast(&times, column.data_type())?;
            (back.to_data() == column.to_data()).then_some(times)
        }
        _ => cast(column, to),
    }
}

/// The error for a file that cannot be read: a storage failure, or not (or no longer) a Parquet
/// file.
pub(crate) fn read_error(name: &str, error: ParquetError) -> Error {
    let damaged = Error::data(format!("{name} is not a readable Parquet file")).hint(
        "it may be truncated or damaged: restore it from its source, or, if it is a raw file that \
             cannot be restored, put it in quarantine with `raw.on_bad_file`: its changes are then \
             missing",
    );
    if !matches!(error, ParquetError::External(_)) {
        return damaged.caused_by(error);
    }
    let error = Error::from(error);
    if error.kind == Kind::Storage || error.kind == Kind::Data {
        return Error::storage(format!("cannot read {name}")).caused_by(error);
    }
    damaged.caused_by(error)
}

/// The Arrow types of a file: text and binary as views, INT96 in µs, and the row number; `known` if
/// they were derived before.
pub(super) fn arrow_metadata(
    metadata: Arc<ParquetMetaData>,
    known: Option<&SchemaRef>,
) -> ParquetResult<ArrowReaderMetadata> {
    let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let fields: Vec<Arc<Field>> = match known {
        Some(known) => known.fields()[..known.fields().len() - 1].to_vec(),
        None => {
            let inferred = ArrowReaderMetadata::try_new(Arc::clone(&metadata), plain.clone())?;
            let descriptor = metadata.file_metadata().schema_descr();
            let columns = descriptor.root_schema().get_fields().iter();
            let fields = inferred.schema().fields().iter().zip(columns).map(|(field, column)| {
                let is_int96 =
                    column.is_primitive() && column.get_physical_type() == PhysicalType::INT96;
                let data_type = match field.data_type() {
                    DataType::Timestamp(_, zone) if is_int96 => {
                        DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
                    }
                    DataType::Utf8 => DataType::Utf8View,
                    DataType::Binary => DataType::BinaryView,
                    other => other.clone(),
                };
                Arc::new(Field::new(field.name(), data_type, field.is_nullable()))
            });
            fields.collect()
        }
    };
    let mut name = "row number".to_string();
    while fields.iter().any(|field| *field.name() == name) {
        name.push('_');
    }
    let row_number = Field::new(name, DataType::Int64, false).with_extension_type(RowNumber);
    let options = plain
        .with_schema(Arc::new(Schema::new(fields)))
        .with_virtual_columns(vec![Arc::new(row_number)])?;
    ArrowReaderMetadata::try_new(metadata, options)
}

/// Fetches ranges of one object, or of a part of it.
#[derive(Clone, Debug)]
pub(crate) struct ObjectReader {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) path: Path,
    /// The offset of the part in the object.
    pub(crate) start: u64,
}

impl ObjectReader {
    fn absolute(&self, range: &Range<u64>) -> Range<u64> {
        self.start + range.start..self.start + range.end
    }

    pub(crate) async fn range(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        self.store.get_range(&self.path, self.absolute(&range)).await
    }

    pub(crate) async fn ranges(&self, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let ranges: Vec<Range<u64>> = ranges.iter().map(|range| self.absolute(range)).collect();
        self.store.get_ranges(&self.path, &ranges).await
    }
}

/// A part of a file: its offset and its bytes.
pub(crate) type FetchedPart = (u64, Bytes);

/// Fetches a footer, and keeps what was fetched.
struct Recording<'a> {
    reader: &'a ObjectReader,
    fetched: &'a mut Vec<FetchedPart>,
}

impl MetadataFetch for Recording<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let fetch = async move {
            let bytes = self.reader.range(range.clone()).await?;
            self.fetched.push((range.start, bytes.clone()));
            Ok(bytes)
        };
        fetch.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int64Array;
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::FileMetaData;

    #[test]
    fn a_footer_with_wrong_counts_or_offsets_is_refused() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("a", column)]).expect("a batch");
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("written");
        let (size, bytes) = (bytes.len() as u64, Bytes::from(bytes));
        let reader = ParquetMetaDataReader::new();
        let footer = reader.parse_and_finish(&bytes).expect("a footer");
        let checked = |footer: &ParquetMetaData, size| {
            check_footer(footer, size).map_err(|error| error.to_string())
        };
        assert_eq!(checked(&footer, size), Ok(()));
        let outside = checked(&footer, 10).expect_err("the column is longer");
        assert!(outside.contains("outside the file"), "{outside}");
        let known = footer.file_metadata();
        let counted =
            FileMetaData::new(known.version(), 0, None, None, known.schema_descr_ptr(), None);
        let groups = footer.row_groups().to_vec();
        let wrong = checked(&ParquetMetaData::new(counted, groups), size).expect_err("3 are not 0");
        assert!(wrong.contains("wrong row counts"), "{wrong}");
    }
}
