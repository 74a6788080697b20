//! Pieces of Parquet files: the rows and columns that are fetched at once, and ahead of what
//! decodes them.
//!
//! ```text
//! columns, rows ─▶ pieces ─▶ fetch (several at once, as many bytes as there is room for) ─▶ decode
//! ```
//!
//! A piece is a small file, or row groups of a larger one. While one is decoded, the next ones come.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;
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
use crate::parquet_io::open::{ParquetFile, guarded, read_error};

/// Row groups are fetched together up to so many bytes.
const PIECE_BYTES: u64 = 4 << 20;
/// So many bytes are fetched ahead, ...
const AHEAD_BYTES: u64 = 16 << 20;
/// ... and so many pieces.
const AHEAD_PIECES: usize = 16;

/// A row group to be read, and which of its rows; `None` for all.
pub type Chosen = (usize, Option<BooleanBuffer>);

impl ParquetFile {
    /// Cuts the given columns (indices into [`ParquetFile::schema`], ascending) of row groups,
    /// which ascend as well, into pieces.
    pub fn fetch_units(
        &self,
        columns: &[usize],
        chosen: impl Iterator<Item = Chosen>,
    ) -> Vec<FetchUnit> {
        let columns: Arc<[usize]> = columns.into();
        let mut pieces: Vec<FetchUnit> = Vec::new();
        for (number, mask) in chosen {
            if self.row_groups()[number].rows == 0 {
                continue;
            }
            let ranges = self.ranges(number, &columns);
            if let Some(piece) = pieces.last_mut() {
                let joined = [&piece.ranges[..], &ranges].concat();
                if fetched_bytes(&joined) <= PIECE_BYTES {
                    piece.row_groups.push((number, mask));
                    piece.ranges = joined;
                    continue;
                }
            }
            pieces.push(FetchUnit {
                file: self.clone(),
                columns: Arc::clone(&columns),
                row_groups: vec![(number, mask)],
                ranges,
            });
        }
        pieces
    }

    /// Where columns of a row group lie; nowhere by themselves in a small file, which is fetched
    /// whole.
    fn ranges(&self, row_group: usize, columns: &[usize]) -> Vec<Range<u64>> {
        let Some(metadata) = self.metadata().filter(|_| !self.is_small()) else {
            return Vec::new();
        };
        let schema = metadata.file_metadata().schema_descr();
        let chunks = metadata.row_group(row_group).columns().iter().enumerate();
        let chunks =
            chunks.filter(|(leaf, _)| columns.contains(&schema.get_column_root_idx(*leaf)));
        let range = |(start, length): (u64, u64)| start..start + length;
        chunks.map(|(_, chunk)| range(chunk.byte_range())).collect()
    }

    /// Reads the given columns of all rows, in file order; the row number comes last.
    pub fn read(
        &self,
        columns: &[usize],
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let all = (0..self.row_groups().len()).map(|number| (number, None));
        self.read_chosen(columns, all, batch_rows)
    }

    /// Reads the given columns of row groups, or of some of their rows, as [`ParquetFile::pieces`]
    /// takes them; the row number comes last.
    pub fn read_chosen(
        &self,
        columns: &[usize],
        chosen: impl Iterator<Item = Chosen>,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let pieces = self.fetch_units(columns, chosen).into_iter();
        let fetched = fetched_ahead(pieces.map(|piece| (piece, ())));
        let batches = fetched.map(move |fetched| {
            let (fetched, ()) = fetched.map_err(|(error, ())| error)?;
            Ok::<_, Error>(stream::iter(fetched.read(batch_rows)?))
        });
        batches.try_flatten().boxed()
    }
}

/// How many bytes fetching ranges takes: far stores are asked for what lies between them as well,
/// where that is little.
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

/// Rows of a file that are fetched at once.
#[derive(Debug)]
pub struct FetchUnit {
    file: ParquetFile,
    columns: Arc<[usize]>,
    row_groups: Vec<Chosen>,
    /// Where the columns are.
    ranges: Vec<Range<u64>>,
}

impl FetchUnit {
    /// How many bytes fetching it takes.
    fn bytes(&self) -> u64 {
        match (&self.file.bytes, self.file.is_small()) {
            (Some(_), _) => 0,
            (None, true) => self.file.size,
            (None, false) => fetched_bytes(&self.ranges),
        }
    }

    /// Fetches it into some room, which is free again once it was read.
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
            let fetched = fetched.map_err(ParquetError::from).map_err(failed)?;
            let starts = self.ranges.iter().map(|range| range.start);
            starts.zip(fetched).collect()
        };
        let chunks = Chunks {
            file_bytes: self.file.size,
            chunks: chunks.into(),
        };
        Ok(Fetched {
            piece: self,
            chunks,
            room,
        })
    }

    fn reader(self, chunks: Chunks, batch_rows: usize) -> ParquetResult<ParquetRecordBatchReader> {
        let footer = match &self.file.footer {
            Some(footer) => footer.clone(),
            None => self.file.decoded_footer(&chunks.from(0)?)?,
        };
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
        let masks = self.row_groups.into_iter().map(|(group, mask)| {
            let mask = mask.unwrap_or_else(|| BooleanBuffer::new_set(rows(group)));
            RowSelection::from_boolean_buffer(mask)
        });
        builder.with_row_selection(masks.collect()).build()
    }
}

/// Fetches pieces ahead of what reads them, and hands them out in their order, each with what came
/// with it.
pub fn fetched_ahead<T: Send + 'static>(
    pieces: impl Iterator<Item = (FetchUnit, T)> + Send + 'static,
) -> BoxStream<'static, Result<(Fetched, T), (Error, T)>> {
    let room = Arc::new(Semaphore::new(AHEAD_BYTES as usize));
    // One after the other: a large piece waits until those before it were read.
    let with_room = stream::iter(pieces).then(move |(piece, with)| {
        let room = Arc::clone(&room);
        async move {
            let bytes = piece.bytes().min(AHEAD_BYTES) as u32;
            (piece, with, room.acquire_many_owned(bytes).await.ok())
        }
    });
    let fetched = with_room.map(|(piece, with, room)| async move {
        let fetched = match piece.file.bytes {
            Some(_) => piece.fetch(room).await,
            None => spawn(piece.fetch(room)).await,
        };
        match fetched {
            Ok(fetched) => Ok((fetched, with)),
            Err(error) => Err((error, with)),
        }
    });
    fetched.buffered(AHEAD_PIECES).boxed()
}

/// A piece, fetched.
pub struct Fetched {
    piece: FetchUnit,
    chunks: Chunks,
    room: Option<OwnedSemaphorePermit>,
}

impl Fetched {
    /// The columns that it has, as [`ParquetFile::pieces`] was given them.
    pub fn columns(&self) -> &Arc<[usize]> {
        &self.piece.columns
    }

    /// Its rows, in file order, with the row number last.
    ///
    /// # Errors
    /// Data, when it cannot be decoded.
    pub fn read(
        self,
        batch_rows: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send> {
        let name = self.piece.file.name.clone();
        let reader = guarded(|| self.piece.reader(self.chunks, batch_rows));
        let mut reader = Some(reader.map_err(|error| read_error(&name, error))?);
        let room = self.room;
        Ok(std::iter::from_fn(move || {
            let _held = &room;
            let next = reader.as_mut()?;
            let batch = guarded(|| next.next().transpose().map_err(ParquetError::from));
            if batch.is_err() {
                reader = None;
            }
            batch.map_err(|error| read_error(&name, error)).transpose()
        }))
    }
}

/// What was fetched of an object, and where it lies in it.
#[derive(Clone, Debug)]
struct Chunks {
    file_bytes: u64,
    chunks: Arc<[(u64, Bytes)]>,
}

impl Chunks {
    /// What was fetched from a place on.
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let holds =
            |(first, bytes): &&(u64, Bytes)| (*first..*first + bytes.len() as u64).contains(&start);
        let (first, bytes) = self.chunks.iter().find(holds).ok_or_else(|| {
            ParquetError::EOF(format!("byte {start} lies outside of the needed columns"))
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
        match bytes.len() < length {
            true => Err(ParquetError::EOF(format!(
                "{length} bytes at {start} reach beyond their column"
            ))),
            false => Ok(bytes.slice(..length)),
        }
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

    /// Row groups of so many rows: `pad` makes the file large or small, `n` counts.
    fn contents(groups: &[usize], pad_bytes: usize) -> Vec<u8> {
        let batch = |first: usize, rows: usize| {
            let numbers = first..first + rows;
            let pad = numbers.clone().map(|n| format!("{n:0pad_bytes$}"));
            let columns: [(&str, ArrayRef); 2] = [
                ("pad", Arc::new(StringArray::from_iter_values(pad))),
                (
                    "n",
                    Arc::new(Int64Array::from_iter_values(numbers.map(|n| n as i64))),
                ),
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

    /// What `n` and the row number of the chosen rows are.
    fn read(file: &ParquetFile, chosen: Vec<Chosen>) -> Result<Vec<(i64, i64)>> {
        let batches = file.read_chosen(&[1], chosen.into_iter(), 7);
        let batches: Result<Vec<RecordBatch>> = runtime().block_on(batches.try_collect());
        let values = |batch: RecordBatch| {
            let column = |place: usize| batch.column(place).as_primitive::<Int64Type>().clone();
            let (n, row) = (column(0), column(1));
            (0..batch.num_rows())
                .map(|at| (n.value(at), row.value(at)))
                .collect::<Vec<_>>()
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
        fn the_chosen_rows_are_read_of_small_and_large_files(
            groups in prop::collection::vec(1usize..60, 1..6),
            is_large in any::<bool>(),
            forgets in (any::<bool>(), any::<bool>()),
            chosen in prop::collection::vec(prop::option::of(prop::option::of(any::<u64>())), 6),
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
            for (number, (rows, choice)) in groups.iter().zip(&chosen).enumerate() {
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
        let told = refused.to_string();
        assert!(
            told.contains("a.parquet") && told.contains("changed during the run"),
            "{told}"
        );
    }

    #[test]
    fn no_more_is_fetched_than_there_is_room_for() {
        let large = file(&[100; 8], 40_000);
        let all = (0..8).map(|number| (number, None));
        let pieces = large.fetch_units(&[0, 1], all);
        assert_eq!(pieces.len(), 8);
        runtime().block_on(async {
            let mut fetched = fetched_ahead(pieces.into_iter().map(|piece| (piece, ())));
            let (mut held, mut idle) = (Vec::new(), 0);
            while idle < 100 {
                match fetched.next().now_or_never() {
                    Some(piece) => held.push(piece.expect("a piece").expect("fetched").0),
                    None => idle += 1,
                }
                tokio::task::yield_now().await;
            }
            let bytes: u64 = held.iter().map(|held| held.piece.bytes()).sum();
            assert!(bytes <= AHEAD_BYTES && held.len() == 4, "{bytes}");
            held.clear();
            assert_eq!(fetched.count().await, 4, "there is room for the rest");
        });
    }

    #[test]
    fn what_lies_between_ranges_counts_where_it_is_fetched_too() {
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
            let pieces = large.fetch_units(columns, all);
            pieces.iter().map(|piece| piece.row_groups.len()).collect()
        };
        // 1.2 MB of padding in each group: what lies between two of them is not fetched.
        assert_eq!(sizes(&[0, 1]), [3, 3]);
        assert_eq!(sizes(&[1]), [6]);
    }
}
