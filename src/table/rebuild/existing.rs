//! The existing files of a partition: which stay, and which are written again.
//!
//! A table without deletion vectors writes all files of a changed partition again. With them a file
//! stays, and its removed rows are marked, unless a share of its rows is deleted by then. New rows go to
//! a new file; where a partition has many small files, the smallest are written again with it. If the
//! table is sorted, new rows are sorted together with all of the partition. A partition whose path has
//! special characters is written again as a whole.

use std::sync::Arc;

use arrow::array::{BooleanBufferBuilder, RecordBatch};
use arrow::buffer::BooleanBuffer;
use futures::stream::{StreamExt, TryStreamExt};

use super::{Ended, PublishedTable, Rows};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::parquet_io::open::{ParquetFile, conform};
use crate::store::parse_path;
use crate::table::TableFile;
use crate::table::deletion_vector::NewVector;

/// The most files of a partition whose bytes are cached while they are searched.
const CACHED_FILES_MAX: usize = 16;

/// A file is written again without its deleted rows when at least one of so many rows is deleted.
const DELETED_SHARE: u64 = 4;

/// The number of small files of a partition from which on new rows are written together with some of
/// them.
const SMALL_FILES_MAX: usize = 8;

/// How many of them are at least written again.
const MERGED_FILES_MIN: usize = 4;

/// The most files of a table whose deletion vectors are in files: delta-rs and Polars do not end reading
/// tables with more than some 500 (<https://github.com/monoscope-tech/timefusion/pull/224>). In a table of
/// more files, a file with a vector that is too large for the log is written again.
const MARKED_FILES_MAX: usize = 400;

/// An existing file of a partition.
pub(super) struct Existing {
    pub(super) file: ParquetFile,
    /// The rows that are deleted: a bit per row, if there are some.
    deleted: Option<BooleanBufferBuilder>,
    deleted_rows: u64,
    /// Rows that get another end, in no order.
    ended: Vec<Ended>,
}

impl Existing {
    pub(super) fn is_deleted(&self, row: usize) -> bool {
        self.deleted.as_ref().is_some_and(|bits| bits.get_bit(row))
    }

    /// Marks rows from `start` on, given as a bit per row, as deleted. None of them was before.
    pub(super) fn delete(&mut self, start: usize, found: &BooleanBuffer) {
        for row in found.set_indices() {
            let bits = self.deleted.get_or_insert_with(|| unset(self.file.row_count() as usize));
            bits.set_bit(start + row, true);
            self.deleted_rows += 1;
        }
    }

    /// Notes rows from `start` on that get another end.
    pub(super) fn end(&mut self, start: usize, ended: &[Ended]) {
        self.ended.extend(ended.iter().map(|(row, end)| (start + row, *end)));
    }

    /// The rows that get another end, in their order.
    pub(super) fn into_ended(mut self) -> Vec<Ended> {
        self.ended.sort_unstable_by_key(|(row, _)| *row);
        self.ended
    }

    /// The deleted rows: a bit per row, if there are some.
    pub(super) fn deleted(&self) -> Option<BooleanBuffer> {
        self.deleted.as_ref().map(BooleanBufferBuilder::finish_cloned)
    }
}

fn unset(rows: usize) -> BooleanBufferBuilder {
    let mut bits = BooleanBufferBuilder::new(rows);
    bits.append_n(rows, false);
    bits
}

/// An existing file that stays.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Its path.
    pub path: String,
    /// The number of its rows that readers see now.
    pub rows: u64,
    /// Its deletion vector, if it has a new one.
    pub deleted: Option<NewVector>,
}

impl Kept {
    /// The size of its new deletion vector, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.deleted.as_ref().map_or(0, NewVector::bytes)
    }
}

impl PublishedTable {
    /// Opens a file of a partition, given with its number among these.
    pub(super) async fn open(&self, listed: &TableFile, number: usize) -> Result<Existing> {
        let name = self.table.describe(&listed.path);
        let changed = || {
            Error::data(format!("{name} is not the file that was published"))
                .hint("another program changed the table: rebuild it with `glueless rebuild`")
        };
        let (store, path) = (Arc::clone(&self.table.store), parse_path(&listed.path)?);
        let file = ParquetFile::open(store, path, listed.bytes, name.clone()).await;
        let file = file.map_err(|error| {
            if error.kind == Kind::Data || missing_object(&error).is_some() {
                changed().caused_by(error)
            } else {
                error
            }
        })?;
        if file.row_count() != listed.rows {
            return Err(changed());
        }
        let deleted = listed.read_deleted(&self.table).await?.map(|deleted| {
            let mut bits = BooleanBufferBuilder::new(deleted.len());
            bits.append_buffer(&deleted);
            bits
        });
        let is_cached = self.vectors.is_some() && number < CACHED_FILES_MAX;
        Ok(Existing {
            file: if is_cached { file } else { file.without_bytes() },
            deleted,
            deleted_rows: listed.deleted_rows(),
            ended: Vec::new(),
        })
    }

    /// Reads columns of a file, given as indices into the stored columns, with its deleted rows.
    pub(super) fn read(&self, file: &ParquetFile, columns: &[usize]) -> Result<Rows> {
        let schema = Arc::new(self.schema.project(columns)?);
        // The table can have columns that the file does not have yet.
        let names = schema.fields().iter().map(|field| field.name());
        let columns: Vec<usize> =
            names.filter_map(|name| file.schema().index_of(name).ok()).collect();
        let batches = file.read(&columns, BATCH_ROWS);
        Ok(batches.map(move |batch| conform(&batch?, &schema)).boxed())
    }

    /// A full batch of a partition's existing rows, if it has so many in a file.
    pub(crate) async fn full_batch(&self, folder: &str) -> Result<Option<RecordBatch>> {
        match self.listed(folder).first() {
            Some(first) if first.rows >= BATCH_ROWS as u64 => {
                let file = self.open(first, 0).await?.file;
                self.read(&file, &self.all_columns())?.try_next().await
            }
            _ => Ok(None),
        }
    }

    pub(super) fn all_columns(&self) -> Vec<usize> {
        (0..self.schema.fields().len()).collect()
    }

    /// Whether removed rows of a partition's files can be marked, and these files stay.
    pub(super) fn can_mark(&self, listed: &[TableFile], has_new: bool) -> bool {
        let is_sorted_again = has_new && self.sorted.is_some();
        let is_plain = || listed.iter().all(|file| is_plain(&file.path));
        self.vectors.is_some() && !is_sorted_again && is_plain()
    }

    /// Divides the files of a partition into those that stay, and those that are written again. `files`
    /// are the listed ones, as far as they are opened.
    pub(super) async fn divide(
        &self,
        listed: &[TableFile],
        files: Vec<Option<Existing>>,
        has_new: bool,
    ) -> Result<(Vec<Kept>, Vec<Existing>)> {
        let opened = files.iter().map(Option::as_ref);
        let deleted: Vec<u64> = listed
            .iter()
            .zip(opened)
            .map(|(file, opened)| opened.map_or(file.deleted_rows(), |file| file.deleted_rows))
            .collect();
        let stays = which_stay(listed, &deleted, has_new, self.vectors.unwrap_or_default());
        let (mut kept, mut others) = (Vec::new(), Vec::new());
        let each = listed.iter().zip(files).zip(deleted.into_iter().zip(stays));
        for (number, ((listed, file), (deleted, stays))) in each.enumerate() {
            let mut vector = None;
            if stays && deleted > listed.deleted_rows() {
                let bits = file.as_ref().and_then(Existing::deleted);
                vector = bits.map(|bits| NewVector::new(&bits)).transpose()?;
            }
            let has_room = self.file_count <= MARKED_FILES_MAX;
            if stays && (has_room || vector.as_ref().is_none_or(NewVector::fits_inline)) {
                let rows = vector
                    .as_ref()
                    .map_or(listed.live_rows(), |vector| listed.rows - vector.rows());
                kept.push(Kept { path: listed.path.clone(), rows, deleted: vector });
            } else {
                others.push(match file {
                    Some(file) => file,
                    None => self.open(listed, number).await?,
                });
            }
        }
        Ok((kept, others))
    }
}

/// Whether a Delta log has a path as it is, without escapes: Polars 2.1 ignores the deletion vectors of
/// other files, and returns their deleted rows.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=/._-".contains(&byte))
}

/// Which files of a partition stay, by the number of their deleted rows; with `has_new` new rows go to
/// another file, which is closed at `file_bytes`.
fn which_stay(files: &[TableFile], deleted: &[u64], has_new: bool, file_bytes: u64) -> Vec<bool> {
    let each = files.iter().zip(deleted);
    let mut stays: Vec<bool> =
        each.map(|(file, deleted)| deleted * DELETED_SHARE < file.rows.max(1)).collect();
    let is_small = |at: &usize| stays[*at] && files[*at].bytes < file_bytes / 2;
    let mut small: Vec<usize> = (0..files.len()).filter(is_small).collect();
    if has_new && small.len() >= SMALL_FILES_MAX {
        small.sort_by_key(|at| (files[*at].bytes, *at));
        // A file much larger than all smaller ones together is not worth it.
        let mut bytes = 0;
        for (merged, at) in small.into_iter().enumerate() {
            if merged >= MERGED_FILES_MIN && files[at].bytes > 2 * bytes {
                break;
            }
            bytes += files[at].bytes;
            stays[at] = false;
        }
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_stay(sizes: &[u64], deleted: &[u64], has_new: bool, expected: &[usize]) {
        let files: Vec<TableFile> = sizes
            .iter()
            .map(|bytes| TableFile {
                path: String::new(),
                rows: 10,
                bytes: *bytes,
                staged: None,
                deleted: None,
            })
            .collect();
        let stays = which_stay(&files, deleted, has_new, 1_000);
        let found: Vec<usize> = (0..files.len()).filter(|at| stays[*at]).collect();
        assert_eq!(found, expected, "{sizes:?} {deleted:?}");
    }

    #[test]
    fn a_path_without_special_characters_is_plain() {
        for path in ["part-c0.parquet", "event_dt=2020-01-02/cat=A_b.1/part-c0.parquet"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["cat=New York/p", "at=2020-01-01 00%3A00%3A00/p", "cat=Zürich/p", "cat=a+b/p"]
        {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn files_with_many_deleted_rows_and_many_small_files_are_written_again() {
        assert_stay(&[9, 9, 9, 9], &[0, 2, 3, 10], true, &[0, 1]);
        assert_stay(&[9; 7], &[0; 7], true, &[0, 1, 2, 3, 4, 5, 6]);
        assert_stay(&[9; 8], &[0; 8], true, &[]);
        assert_stay(&[9; 8], &[0; 8], false, &[0, 1, 2, 3, 4, 5, 6, 7]);
        // Large files are not counted, and stay.
        assert_stay(&[9, 9, 9, 9, 500, 9, 9, 9], &[0; 8], true, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_stay(&[9, 9, 9, 9, 500, 9, 9, 9, 9], &[0; 9], true, &[4]);
        // The smallest are merged, of which there are always four.
        assert_stay(&[400, 9, 9, 9, 9, 9, 9, 9], &[0; 8], true, &[0]);
        assert_stay(&[1, 10, 100, 200, 300, 310, 320, 499], &[0; 8], true, &[]);
        assert_stay(&[1, 2, 4, 9, 40, 100, 300, 499], &[0; 8], true, &[4, 5, 6, 7]);
    }
}
