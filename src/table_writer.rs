//! The partition writer: a sorted stream of rows becomes Parquet files, one partition at a time.
//!
//! Because the rows come sorted by partition, one file is open at a time, whatever the number of
//! partitions: memory and file handles stay flat. The files go to staging; nothing a reader
//! would see changes here.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::partition;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::{Stream, StreamExt};
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};
use crate::layout::partition_segment;
use crate::store::Folder;

/// A file in staging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedFile {
    /// The partition it belongs to, as a relative folder; empty for an unpartitioned table.
    pub partition: String,
    /// Its path relative to the staging folder.
    pub staged: String,
    /// Its rows, from its footer.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// What to write and where.
#[derive(Debug)]
pub struct TableWriter<'a> {
    /// The staging folder.
    pub staging: &'a Folder,
    /// The files' folder in staging.
    pub prefix: String,
    /// The partition columns, outermost first; they are not stored in the files.
    pub partition_by: &'a [String],
    /// A partition gets another file once one has this size.
    pub file_bytes: u64,
}

impl TableWriter<'_> {
    /// Writes a stream whose rows are sorted by the partition columns.
    ///
    /// # Errors
    /// Those of the stream; storage, when staging cannot be written.
    pub async fn write(
        &self,
        schema: &SchemaRef,
        mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<Vec<StagedFile>> {
        let keys = self
            .partition_by
            .iter()
            .map(|name| Ok(schema.index_of(name)?))
            .collect::<Result<Vec<usize>>>()?;
        let stored: Vec<usize> = (0..schema.fields().len())
            .filter(|column| !keys.contains(column))
            .collect();
        let file_schema = Arc::new(Schema::new(
            schema
                .project(&stored)?
                .fields()
                .iter()
                .map(|field| field.as_ref().clone())
                .collect::<Vec<_>>(),
        ));
        let mut files = Vec::new();
        let mut open: Option<OpenFile> = None;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let columns: Vec<ArrayRef> = keys
                .iter()
                .map(|key| Arc::clone(batch.column(*key)))
                .collect();
            let names: Vec<&str> = self.partition_by.iter().map(String::as_str).collect();
            let payload = batch.project(&stored)?;
            let whole = 0..batch.num_rows();
            let ranges = match columns.is_empty() {
                true => Vec::from([whole]),
                false => partition(&columns)?.ranges(),
            };
            for range in ranges {
                let folder = partition_folder(&names, &columns, range.start)?;
                if let Some(other) = open.take_if(|file| file.partition != folder) {
                    files.push(other.close(self.staging).await?);
                }
                let file = match &mut open {
                    Some(file) => file,
                    None => open.insert(self.open(folder, files.len(), &file_schema)?),
                };
                file.write(self.staging, &payload.slice(range.start, range.len()))
                    .await?;
                if file.bytes() >= self.file_bytes
                    && let Some(full) = open.take()
                {
                    files.push(full.close(self.staging).await?);
                }
            }
        }
        if let Some(last) = open {
            files.push(last.close(self.staging).await?);
        }
        Ok(files)
    }

    fn open(&self, partition: String, number: usize, schema: &SchemaRef) -> Result<OpenFile> {
        let staged = format!("{}/{number:06}.parquet", self.prefix);
        let writer = parquet_writer(self.staging, &staged, Arc::clone(schema))?;
        Ok(OpenFile {
            partition,
            staged,
            writer,
        })
    }
}

/// A Parquet writer to an object of a folder: Snappy, no Arrow schema in the footer (readers
/// then see plain Parquet types).
///
/// # Errors
/// Internal, when a type cannot be written.
pub fn parquet_writer(
    folder: &Folder,
    path: &str,
    schema: SchemaRef,
) -> Result<AsyncArrowWriter<BufWriter>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let options = ArrowWriterOptions::new()
        .with_properties(properties)
        .with_skip_arrow_metadata(true);
    let output = BufWriter::new(Arc::clone(&folder.store), crate::store::parse_path(path)?);
    Ok(AsyncArrowWriter::try_new_with_options(
        output, schema, options,
    )?)
}

/// A failed write of an object, with its name.
pub fn write_error(folder: &Folder, path: &str, error: parquet::errors::ParquetError) -> Error {
    let cause = Error::from(error);
    let failed = Error::storage(format!("cannot write {}", folder.describe(path)));
    let hint = cause
        .hint
        .clone()
        .unwrap_or_else(|| "check its permissions and free space".into());
    failed.hint(hint).caused_by(cause)
}

struct OpenFile {
    partition: String,
    staged: String,
    writer: AsyncArrowWriter<BufWriter>,
}

impl OpenFile {
    async fn write(&mut self, staging: &Folder, rows: &RecordBatch) -> Result<()> {
        self.writer
            .write(rows)
            .await
            .map_err(|error| write_error(staging, &self.staged, error))
    }

    fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    async fn close(mut self, staging: &Folder) -> Result<StagedFile> {
        let footer = self
            .writer
            .finish()
            .await
            .map_err(|error| write_error(staging, &self.staged, error))?;
        Ok(StagedFile {
            rows: footer.file_metadata().num_rows().max(0) as u64,
            bytes: self.writer.bytes_written() as u64,
            partition: self.partition,
            staged: self.staged,
        })
    }
}

/// The Hive folder of a row: `event_dt=2019-04-01/cust_loyalty_category=Basic`.
fn partition_folder(names: &[&str], columns: &[ArrayRef], row: usize) -> Result<String> {
    let segments = names
        .iter()
        .zip(columns)
        .map(|(name, column)| {
            Ok(partition_segment(
                name,
                partition_value(column, row)?.as_deref(),
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(segments.join("/"))
}

/// A value as Hive writes it in a folder name, before escaping: timestamps with a space between
/// date and time, in UTC and without a zone.
fn partition_value(column: &ArrayRef, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let column = match column.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            arrow::compute::cast(column, &DataType::Timestamp(*unit, None))?
        }
        _ => Arc::clone(column),
    };
    let format = FormatOptions::new().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    Ok(Some(
        ArrayFormatter::try_new(&column, &format)?
            .value(row)
            .try_to_string()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, Int64Array, StringViewArray,
        TimestampMicrosecondArray,
    };

    #[test]
    fn every_partition_type_has_its_hive_folder_and_null_has_the_default_one() {
        let decimals = Decimal128Array::from(vec![Some(-150), None]).with_precision_and_scale(9, 2);
        let columns: Vec<(ArrayRef, &str)> = vec![
            (
                Arc::new(StringViewArray::from(vec![Some("A/B: c%d="), None])),
                "A%2FB%3A c%25d%3D",
            ),
            (Arc::new(Int64Array::from(vec![Some(-7), None])), "-7"),
            (Arc::new(BooleanArray::from(vec![Some(true), None])), "true"),
            (Arc::new(decimals.expect("decimals")), "-1.50"),
            (
                Arc::new(Date32Array::from(vec![Some(-1), None])),
                "1969-12-31",
            ),
            (
                Arc::new(TimestampMicrosecondArray::from(vec![Some(1_500_000), None])),
                "1970-01-01 00%3A00%3A01.500",
            ),
            (
                Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None]).with_timezone("UTC")),
                "1970-01-01 00%3A00%3A00",
            ),
        ];
        for (column, folder) in columns {
            let folder_of =
                |row| partition_folder(&["p"], &[Arc::clone(&column)], row).expect("named");
            assert_eq!(folder_of(0), format!("p={folder}"));
            assert_eq!(folder_of(1), "p=__HIVE_DEFAULT_PARTITION__");
        }
    }
}
