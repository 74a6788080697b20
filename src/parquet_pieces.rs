//! Pieces of Parquet files: the rows and columns that are fetched at once, and ahead of what
//! decodes them.
//!
//! ```text
//! columns, rows ─▶ pieces ─▶ fetch (several at once, as many bytes as there is room for) ─▶ decode
//! ```
//!
//! A piece is a small file, or row groups of a larger one. What decodes a piece does not wait for
//! storage as long as the next ones come in the meantime.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanBufferBuilder, RecordBatch};
use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Result;
use crate::parquet_file::{ObjectReader, ParquetFile, read_error};
use crate::session::join;

/// Row groups are fetched together up to so many bytes.
const PIECE_BYTES: u64 = 4 << 20;
/// So many bytes are fetched ahead, ...
const AHEAD_BYTES: u64 = 16 << 20;
/// ... and so many pieces.
const AHEAD_PIECES: usize = 16;

/// Which rows of a file to read.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The row groups, ascending; `None` for all.
    pub row_groups: Option<Vec<usize>>,
    /// Which rows of these row groups; `None` for all.
    pub selection: Option<RowSelection>,
}

impl ParquetFile {
    /// Cuts the given columns (indices into [`ParquetFile::schema`], ascending) of the given rows
    /// into pieces, in file order.
    pub fn pieces(&self, columns: &[usize], rows: Rows) -> Vec<Piece> {
        let columns: Arc<[usize]> = columns.into();
        let groups = self.row_groups();
        let chosen = rows.row_groups.unwrap_or((0..groups.len()).collect());
        let mut selection = rows.selection;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut in_piece = 0;
        for number in chosen {
            let ranges = self.ranges(number, &columns);
            let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            let selected = selection.as_mut();
            let selected = selected.map(|rest| rest.split_off(groups[number].rows));
            match pieces.last_mut() {
                Some(piece) if self.is_small() || in_piece + bytes <= PIECE_BYTES => {
                    piece.row_groups.push(number);
                    piece.ranges.extend(ranges);
                    piece.selections.extend(selected);
                    in_piece += bytes;
                }
                _ => {
                    in_piece = bytes;
                    pieces.push(Piece {
                        file: self.clone(),
                        columns: Arc::clone(&columns),
                        row_groups: vec![number],
                        selections: selected.into_iter().collect(),
                        ranges,
                    });
                }
            }
        }
        pieces
    }

    /// Where columns of a row group lie in a file that is not small.
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

    /// Reads the given columns of the given rows, as [`ParquetFile::pieces`] takes them; the row
    /// number comes last.
    pub fn read(
        &self,
        columns: &[usize],
        rows: Rows,
        batch_rows: usize,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let pieces = self.pieces(columns, rows).into_iter();
        let fetched = fetched_ahead(pieces.map(|piece| (piece, ())));
        let batches = fetched.map_ok(move |(fetched, ())| stream::iter(fetched.read(batch_rows)));
        batches.try_flatten().boxed()
    }
}

/// Rows of a file that are fetched at once.
#[derive(Debug)]
pub struct Piece {
    file: ParquetFile,
    columns: Arc<[usize]>,
    row_groups: Vec<usize>,
    /// Which rows of each row group; empty for all.
    selections: Vec<RowSelection>,
    /// Where the columns are.
    ranges: Vec<Range<u64>>,
}

impl Piece {
    /// How many bytes fetching it takes.
    fn bytes(&self) -> u64 {
        match self.file.is_small() {
            true => self.file.size,
            false => self
                .ranges
                .iter()
                .map(|range| range.end - range.start)
                .sum(),
        }
    }

    async fn fetch(self) -> Result<Fetched> {
        let ObjectReader { store, path } = &self.file.reader;
        let failed = |error| read_error(&self.file.name, error);
        let chunks = if let Some(bytes) = &self.file.bytes {
            vec![(0, bytes.clone())]
        } else if self.file.is_small() {
            let whole = async { store.get(path).await?.bytes().await };
            vec![(0, whole.await.map_err(ParquetError::from).map_err(failed)?)]
        } else {
            let fetched = store.get_ranges(path, &self.ranges).await;
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
            _room: None,
        })
    }
}

impl Piece {
    fn reader(self, chunks: Chunks, batch_rows: usize) -> ParquetResult<ParquetRecordBatchReader> {
        let footer = match &self.file.footer {
            Some(footer) => footer.clone(),
            None => self.file.decoded_footer(&chunks.from(0)?)?,
        };
        let mask = ProjectionMask::roots(footer.parquet_schema(), self.columns.iter().copied());
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer)
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .with_row_groups(self.row_groups);
        match concat(self.selections) {
            Some(selection) => builder.with_row_selection(selection).build(),
            None => builder.build(),
        }
    }
}

/// Fetches pieces ahead of what reads them, and hands them out in their order.
pub fn fetched_ahead<T: Send + 'static>(
    pieces: impl Iterator<Item = (Piece, T)> + Send + 'static,
) -> BoxStream<'static, Result<(Fetched, T)>> {
    let room = Arc::new(Semaphore::new(AHEAD_BYTES as usize));
    let fetched = stream::iter(pieces).map(move |(piece, with)| {
        let room = Arc::clone(&room);
        async move {
            if piece.file.bytes.is_some() {
                return Ok((piece.fetch().await?, with));
            }
            // Who asks first gets it first: a large piece waits until all before it were read.
            let bytes = piece.bytes().clamp(1, AHEAD_BYTES) as u32;
            let held = room.acquire_many_owned(bytes).await;
            let mut fetched = join(tokio::spawn(piece.fetch())).await?;
            fetched._room = held.ok();
            Ok((fetched, with))
        }
    });
    fetched.buffered(AHEAD_PIECES).boxed()
}

/// A piece, fetched.
pub struct Fetched {
    piece: Piece,
    chunks: Chunks,
    /// Makes room when it was read.
    _room: Option<OwnedSemaphorePermit>,
}

impl Fetched {
    /// Its rows, in file order, with the row number last.
    pub fn read(self, batch_rows: usize) -> impl Iterator<Item = Result<RecordBatch>> + Send {
        let Fetched {
            piece,
            chunks,
            _room: room,
        } = self;
        let name = piece.file.name.clone();
        let (reader, failed) = match piece.reader(chunks, batch_rows) {
            Ok(reader) => (Some(reader), None),
            Err(error) => (None, Some(Err(error))),
        };
        let batches = reader.into_iter().flatten();
        let batches = batches.map(|batch| batch.map_err(ParquetError::from));
        failed.into_iter().chain(batches).map(move |batch| {
            let _held = &room;
            batch.map_err(|error| read_error(&name, error))
        })
    }
}

/// The rows that several selections select, one after the other; `None` for all.
fn concat(selections: Vec<RowSelection>) -> Option<RowSelection> {
    match <[_; 1]>::try_from(selections) {
        Ok([only]) => Some(only),
        Err(selections) if selections.is_empty() => None,
        Err(selections) => {
            let mut all = BooleanBufferBuilder::new(0);
            for selection in &selections {
                match selection.as_mask() {
                    Some(mask) => all.append_buffer(mask),
                    None => selection
                        .iter()
                        .for_each(|run| all.append_n(run.row_count, !run.skip)),
                }
            }
            Some(RowSelection::from_boolean_buffer(all.finish()))
        }
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
        let bytes = self.from(start)?;
        match bytes.len() < length {
            true => Err(ParquetError::EOF(format!(
                "{length} bytes at {start} reach beyond their column"
            ))),
            false => Ok(bytes.slice(..length)),
        }
    }
}
