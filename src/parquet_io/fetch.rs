//! Fetch units of Parquet files: the rows and columns that are fetched together, ahead of decoding.
//!
//! ```text
//! columns, rows ─▶ fetch units ─▶ fetch (concurrent, within a limit of bytes) ─▶ decode
//! ```
//!
//! A fetch unit is a small file, or some row groups of a larger one. While one is decoded, the next
//! ones are fetched.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::Fields;
use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::OBJECT_STORE_COALESCE_DEFAULT;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::tasks::spawn;
use crate::error::{Error, Result};
use crate::parquet_io::open::{ParquetFile, catch_panics, read_error};
use crate::parquet_io::texts::{has_unchecked_texts, with_texts_as_bytes, with_valid_texts};

/// The size up to which row groups are fetched together.
const FETCH_UNIT_BYTES_MAX: u64 = 4 << 20;
/// The limit of bytes fetched ahead.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// The limit of fetch units fetched ahead.
pub(crate) const AHEAD_UNITS_MAX: usize = 16;

/// A row group to read, and a bitmap of its rows; `None` for all rows.
pub(crate) type SelectedRows = (usize, Option<BooleanBuffer>);

impl ParquetFile {
    /// Splits the given columns (indices into [`ParquetFile::schema`], ascending) of row groups,
    /// also ascending, into fetch units.
    pub fn fetch_units(
        &self,
        columns: &[usize],
        selected: impl Iterator<Item = SelectedRows>,
    ) -> Vec<FetchUnit> {
        let columns: Arc<[usize]> = columns.into();
        let mut units: Vec<FetchUnit> = Vec::new();
        for (number, mask) in selected {
            if self.row_groups()[number].rows == 0 {
                continue;
            }
            let ranges = self.ranges(number, &columns);
            if let Some(unit) = units.last_mut() {
                let joined = [&unit.ranges[..], &ranges].concat();
                if fetched_bytes(&joined) <= FETCH_UNIT_BYTES_MAX {
                    unit.row_groups.push((number, mask));
                    unit.ranges = joined;
                    continue;
                }
            }
            units.push(FetchUnit {
                file: self.clone(),
                columns: Arc::clone(&columns),
                row_groups: vec![(number, mask)],
                ranges,
            });
        }
        units
    }

    /// The byte ranges of columns of a row group; none for a small file, which is fetched whole.
    fn ranges(&self, row_group: usize, columns: &[usize]) -> Vec<Range<u64>> {
        let Some(metadata) = self.metadata().filter(|_| !self.is_small()) else {
            return Vec::new();
        };
        let schema = metadata.file_metadata().schema_descr();
        let chunks = metadata
            .row_group(row_group)
            .columns()
            .iter()
            .enumerate()
            .filter(|(leaf, _)| columns.contains(&schema.get_column_root_idx(*leaf)));
        let range = |(start, length): (u64, u64)| start..start + length;
        chunks.map(|(_, chunk)| range(chunk.byte_range())).collect()
    }

    /// Reads the given columns of all rows, in file order; the last column is the row number.
    pub fn read(
        &self,
        columns: &[usize],
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let all = (0..self.row_groups().len()).map(|number| (number, None));
        self.read_selected(columns, all, batch_rows)
    }

    /// Reads the given columns of row groups or of some of their rows, in the order that
    /// [`ParquetFile::fetch_units`] requires; the last column is the row number.
    pub fn read_selected(
        &self,
        columns: &[usize],
        selected: impl Iterator<Item = SelectedRows>,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        self.read_as(Texts::Checked, columns, selected, batch_rows)
    }

    /// As [`ParquetFile::read_selected`], with texts that are not UTF-8 as bytes
    /// ([`crate::parquet_io::texts`]).
    pub(crate) fn read_selected_raw(
        &self,
        columns: &[usize],
        selected: impl Iterator<Item = SelectedRows>,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        self.read_as(Texts::OrBytes, columns, selected, batch_rows)
    }

    fn read_as(
        &self,
        texts: Texts,
        columns: &[usize],
        selected: impl Iterator<Item = SelectedRows>,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let units = self.fetch_units(columns, selected).into_iter();
        let fetched = fetch_ahead(units.map(|unit| (unit, ())), AHEAD_UNITS_MAX);
        let batches = fetched.map(move |fetched| {
            let (fetched, ()) = fetched.map_err(|(error, ())| error)?;
            Ok::<_, Error>(stream::iter(fetched.rows(texts, batch_rows)?))
        });
        batches.try_flatten().boxed()
    }
}

/// The number of bytes that fetching ranges transfers: remote stores also fetch small gaps between
/// them.
fn fetched_bytes(ranges: &[Range<u64>]) -> u64 {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.start);
    let (mut bytes, mut end) = (0, None);
    for range in sorted {
        let from = match end {
            Some(end) if range.start <= end + OBJECT_STORE_COALESCE_DEFAULT => end,
            _ => range.start,
        };
        bytes += range.end.saturating_sub(from);
        end = end.max(Some(range.end));
    }
    bytes
}

/// Rows and columns of a file that are fetched together.
#[derive(Debug)]
pub struct FetchUnit {
    file: ParquetFile,
    columns: Arc<[usize]>,
    row_groups: Vec<SelectedRows>,
    /// The byte ranges of the columns.
    ranges: Vec<Range<u64>>,
}

impl FetchUnit {
    /// The number of bytes to fetch.
    fn bytes(&self) -> u64 {
        match (&self.file.bytes, self.file.is_small()) {
            (Some(_), _) => 0,
            (None, true) => self.file.size,
            (None, false) => fetched_bytes(&self.ranges),
        }
    }

    /// Fetches the unit; `room` is released once its rows have been read.
    async fn fetch(self, room: Option<OwnedSemaphorePermit>) -> Result<Fetched> {
        let reader = &self.file.reader;
        let failed = |error| read_error(&self.file.name, error);
        let chunks = if let Some(bytes) = &self.file.bytes {
            vec![(0, bytes.clone())]
        } else if self.file.is_small() {
            let whole = reader.range(0..self.file.size).await;
            vec![(0, whole.map_err(ParquetError::from).map_err(failed)?)]
        } else {
            let fetched = reader.ranges(&self.ranges).await;
            let chunks = fetched.map_err(ParquetError::from).map_err(failed)?;
            let starts = self.ranges.iter().map(|range| range.start);
            starts.zip(chunks).collect()
        };
        let chunks = Chunks { file_bytes: self.file.size, chunks: chunks.into() };
        Ok(Fetched { unit: self, chunks, _room: room })
    }

    /// Its columns as the file has them, and the row number.
    fn fields(&self) -> Fields {
        let fields = self.file.schema().fields();
        let columns = self.columns.iter().copied().chain([fields.len() - 1]);
        columns.map(|column| Arc::clone(&fields[column])).collect()
    }

    /// A reader of the rows; with `as_bytes` texts are decoded as bytes.
    fn reader(
        &self,
        chunks: Chunks,
        batch_rows: usize,
        as_bytes: bool,
    ) -> ParquetResult<ParquetRecordBatchReader> {
        let mut footer = match &self.file.footer {
            Some(footer) => footer.clone(),
            None => self.file.decoded_footer(&chunks.from(0)?)?,
        };
        if as_bytes {
            footer = with_texts_as_bytes(&footer)?;
        }
        let mask = ProjectionMask::roots(footer.parquet_schema(), self.columns.iter().copied());
        let groups = self.row_groups.iter().map(|(group, _)| *group);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer)
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .with_row_groups(groups.collect());
        if self.row_groups.iter().all(|(_, mask)| mask.is_none()) {
            return builder.build();
        }
        let rows = |group: usize| self.file.row_groups()[group].rows;
        let masks = self.row_groups.iter().map(|(group, mask)| {
            let mask = mask.clone().unwrap_or_else(|| BooleanBuffer::new_set(rows(*group)));
            RowSelection::from_boolean_buffer(mask)
        });
        builder.with_row_selection(masks.collect()).build()
    }
}

/// Fetches units ahead of their reader, so many at most, and returns them in order, each with its
/// attached value.
pub(crate) fn fetch_ahead<T: Send + 'static>(
    units: impl Iterator<Item = (FetchUnit, T)> + Send + 'static,
    ahead: usize,
) -> BoxStream<'static, Result<(Fetched, T), (Error, T)>> {
    let room = Arc::new(Semaphore::new(AHEAD_BYTES_MAX as usize));
    // In order: a large unit waits until the units before it have been read.
    let with_room = stream::iter(units).then(move |(unit, with)| {
        let room = Arc::clone(&room);
        async move {
            let bytes = unit.bytes().min(AHEAD_BYTES_MAX) as u32;
            (unit, with, room.acquire_many_owned(bytes).await.ok())
        }
    });
    let fetched = with_room.map(|(unit, with, room)| async move {
        let fetched = match unit.file.bytes {
            Some(_) => unit.fetch(room).await,
            None => spawn(unit.fetch(room)).await,
        };
        match fetched {
            Ok(fetched) => Ok((fetched, with)),
            Err(error) => Err((error, with)),
        }
    });
    fetched.buffered(ahead).boxed()
}

/// A fetched unit.
pub(crate) struct Fetched {
    unit: FetchUnit,
    chunks: Chunks,
    _room: Option<OwnedSemaphorePermit>,
}

impl Fetched {
    /// Its columns, as given to [`ParquetFile::fetch_units`].
    pub(crate) fn columns(&self) -> &Arc<[usize]> {
        &self.unit.columns
    }

    /// Decodes the rows of a raw file, in file order; the last column is the row number. Texts that
    /// are not UTF-8 are bytes ([`crate::parquet_io::texts`]).
    ///
    /// # Errors
    /// Data, when it cannot be decoded.
    pub(crate) fn read_raw(
        self,
        batch_rows: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send> {
        self.rows(Texts::OrBytes, batch_rows)
    }

    fn rows(self, texts: Texts, batch_rows: usize) -> Result<Rows> {
        let file = &self.unit.file;
        let as_bytes = match texts {
            Texts::Checked => false,
            Texts::OrBytes => has_unchecked_texts(file.descriptor(), &self.unit.columns),
        };
        let reader = || self.unit.reader(self.chunks.clone(), batch_rows, as_bytes);
        let reader = catch_panics(reader).map_err(|error| read_error(&file.name, error));
        Ok(Rows { reader: Some(reader?), fetched: self, texts, as_bytes, batch_rows, count: 0 })
    }
}

/// How texts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Texts {
    /// A text that is not UTF-8 is an error.
    Checked,
    /// The texts of a batch's column are bytes, where one is not UTF-8.
    OrBytes,
}

/// The rows of a fetched unit.
struct Rows {
    /// `None` after an error.
    reader: Option<ParquetRecordBatchReader>,
    /// Keeps the room for its bytes until all rows are read.
    fetched: Fetched,
    texts: Texts,
    /// Whether the reader decodes texts as bytes.
    as_bytes: bool,
    batch_rows: usize,
    /// The number of batches read.
    count: usize,
}

impl Rows {
    fn next_batch(&mut self) -> ParquetResult<Option<RecordBatch>> {
        let Some(reader) = &mut self.reader else {
            return Ok(None);
        };
        let batch = match decode(reader) {
            Err(error) => {
                self.reader = None;
                if self.as_bytes || self.texts == Texts::Checked {
                    return Err(error);
                }
                // If texts are not the reason, this fails too.
                self.next_as_bytes().map_err(|_| error)?
            }
            Ok(batch) => batch,
        };
        self.count += 1;
        match batch {
            Some(batch) if self.as_bytes => {
                with_valid_texts(batch, &self.fetched.unit.fields()).map(Some)
            }
            batch => Ok(batch),
        }
    }

    /// Continues with the same batch, whose texts are decoded as bytes.
    fn next_as_bytes(&mut self) -> ParquetResult<Option<RecordBatch>> {
        let (unit, chunks) = (&self.fetched.unit, self.fetched.chunks.clone());
        let mut reader = catch_panics(|| unit.reader(chunks, self.batch_rows, true))?;
        for _ in 0..self.count {
            decode(&mut reader)?;
        }
        let batch = decode(&mut reader)?;
        self.as_bytes = true;
        self.reader = Some(reader);
        Ok(batch)
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.next_batch();
        batch.map_err(|error| read_error(&self.fetched.unit.file.name, error)).transpose()
    }
}

/// The next batch of a reader.
fn decode(reader: &mut ParquetRecordBatchReader) -> ParquetResult<Option<RecordBatch>> {
    catch_panics(|| reader.next().transpose().map_err(ParquetError::from))
}

/// The fetched bytes of an object, with their offsets.
#[derive(Clone, Debug)]
struct Chunks {
    file_bytes: u64,
    chunks: Arc<[(u64, Bytes)]>,
}

impl Chunks {
    /// The fetched bytes from the offset `start` on.
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let contains =
            |(first, bytes): &&(u64, Bytes)| (*first..*first + bytes.len() as u64).contains(&start);
        let (first, bytes) = self.chunks.iter().find(contains).ok_or_else(|| {
            ParquetError::EOF(format!("byte {start} is outside the needed columns"))
        })?;
        Ok(bytes.slice((start - first) as usize..))
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Chunks {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} reach beyond their column"
            )));
        }
        Ok(bytes.slice(..length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;
    use futures::FutureExt;
    use futures::executor::block_on;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use proptest::prelude::*;

    /// The bytes of a file with row groups of these sizes: `pad` makes it large or small, `n`
    /// counts.
    fn contents(groups: &[usize], pad_bytes: usize) -> Vec<u8> {
        let batch = |first: usize, rows: usize| {
            let numbers = first..first + rows;
            let pad = numbers.clone().map(|n| format!("{n:0pad_bytes$}"));
            let columns: [(&str, ArrayRef); 2] = [
                ("pad", Arc::new(StringArray::from_iter_values(pad))),
                ("n", Arc::new(Int64Array::from_iter_values(numbers.map(|n| n as i64)))),
            ];
            RecordBatch::try_from_iter(columns).expect("a batch")
        };
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_compression(Compression::UNCOMPRESSED);
        let mut bytes = Vec::new();
        let schema = batch(0, 0).schema();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, schema, Some(properties.build())).expect("a writer");
        let mut first = 0;
        for rows in groups {
            writer.write(&batch(first, *rows)).expect("written");
            writer.flush().expect("written");
            first += rows;
        }
        writer.close().expect("written");
        bytes
    }

    fn put(store: &Arc<dyn ObjectStore>, bytes: Vec<u8>) {
        block_on(store.put(&Path::from("a.parquet"), PutPayload::from(bytes))).expect("put");
    }

    /// A file of these contents.
    fn file(groups: &[usize], pad_bytes: usize) -> ParquetFile {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let bytes = contents(groups, pad_bytes);
        let (path, size) = (Path::from("a.parquet"), bytes.len() as u64);
        put(&store, bytes);
        block_on(ParquetFile::open(store, path, size, "a.parquet".into())).expect("opened")
    }

    /// The values of `n` and of the row number of the selected rows.
    fn read(file: &ParquetFile, selected: Vec<SelectedRows>) -> Result<Vec<(i64, i64)>> {
        let read = file.read_selected(&[1], selected.into_iter(), 7);
        let batches: Result<Vec<RecordBatch>> = runtime().block_on(read.try_collect());
        let values = |batch: RecordBatch| {
            let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().clone();
            let (n, row) = (column(0), column(1));
            (0..batch.num_rows()).map(|at| (n.value(at), row.value(at))).collect::<Vec<_>>()
        };
        Ok(batches?.into_iter().flat_map(values).collect())
    }

    fn runtime() -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_selected_rows_are_read_of_small_and_large_files(
            groups in prop::collection::vec(1usize..60, 1..6),
            is_large in any::<bool>(),
            forgets in (any::<bool>(), any::<bool>()),
            selected in prop::collection::vec(prop::option::of(prop::option::of(any::<u64>())), 6),
        ) {
            let mut opened = file(&groups, if is_large { 40_000 } else { 10 });
            // A few rows of the padding do not make a large file.
            let rows: usize = groups.iter().sum();
            prop_assert_eq!(opened.is_small(), !is_large || rows * 40_000 < 1 << 20);
            if forgets.0 {
                opened = opened.without_footer(&mut None);
            }
            if forgets.1 {
                opened = opened.without_bytes();
            }
            let (mut wanted, mut expected, mut first) = (Vec::new(), Vec::new(), 0);
            for (number, (rows, choice)) in groups.iter().zip(&selected).enumerate() {
                if let Some(seed) = choice {
                    let is_chosen = |row: usize| seed.is_none_or(|seed| seed >> (row % 64) & 1 == 1);
                    let mask = BooleanBuffer::collect_bool(*rows, is_chosen);
                    wanted.push((number, seed.map(|_| mask.clone())));
                    let rows = (0..*rows).filter(|row| mask.value(*row));
                    expected.extend(rows.map(|row| ((first + row) as i64, (first + row) as i64)));
                }
                first += rows;
            }
            prop_assert_eq!(read(&opened, wanted).expect("rows"), expected);
        }
    }

    #[test]
    fn a_small_file_that_changed_since_it_was_opened_is_refused() {
        let opened = file(&[6, 4], 10).without_footer(&mut None).without_bytes();
        // Of the same size, columns and number of rows, in other row groups.
        let other = contents(&[4, 6], 10);
        assert_eq!(other.len() as u64, opened.size);
        put(&opened.reader.store, other);
        let refused = read(&opened, vec![(0, None), (1, None)]).expect_err("it changed");
        assert_eq!(refused.kind, Kind::Data);
        let message = refused.to_string();
        assert!(
            message.contains("a.parquet") && message.contains("changed during the run"),
            "{message}"
        );
    }

    #[test]
    fn no_more_is_fetched_ahead_than_the_limit() {
        let large = file(&[100; 8], 40_000);
        let all = (0..8).map(|number| (number, None));
        let units = large.fetch_units(&[0, 1], all);
        assert_eq!(units.len(), 8);
        runtime().block_on(async {
            let units = units.into_iter().map(|unit| (unit, ()));
            let mut fetched = fetch_ahead(units, AHEAD_UNITS_MAX);
            let (mut fetched_units, mut idle) = (Vec::new(), 0);
            while idle < 100 {
                match fetched.next().now_or_never() {
                    Some(unit) => fetched_units.push(unit.expect("a unit").expect("fetched").0),
                    None => idle += 1,
                }
                tokio::task::yield_now().await;
            }
            let bytes: u64 = fetched_units.iter().map(|fetched| fetched.unit.bytes()).sum();
            assert!(bytes <= AHEAD_BYTES_MAX && fetched_units.len() == 4, "{bytes}");
            fetched_units.clear();
            assert_eq!(fetched.count().await, 4, "there is room for the rest");
        });
    }

    #[test]
    fn gaps_between_ranges_count_if_they_are_fetched() {
        let gap = OBJECT_STORE_COALESCE_DEFAULT;
        assert_eq!(fetched_bytes(&[]), 0);
        assert_eq!(fetched_bytes(&[10..20, 0..10]), 20);
        assert_eq!(fetched_bytes(&[0..10, 10 + gap..20 + gap]), 20 + gap);
        assert_eq!(fetched_bytes(&[0..10, 11 + gap..21 + gap]), 20);
    }

    #[test]
    fn row_groups_are_fetched_together_up_to_a_size() {
        let large = file(&[30, 30, 30, 30, 30, 30], 40_000);
        let sizes = |columns: &[usize]| -> Vec<usize> {
            let all = (0..6).map(|number| (number, None));
            let units = large.fetch_units(columns, all);
            units.iter().map(|unit| unit.row_groups.len()).collect()
        };
        // 1.2 MB of padding in each group: the gap between two of them is not fetched.
        assert_eq!(sizes(&[0, 1]), [3, 3]);
        assert_eq!(sizes(&[1]), [6]);
    }
}
