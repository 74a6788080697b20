//! Writes versions as files of contiguous days, so that a late change affects few files.
//! The days of a run are split into ranges ([`day_ranges`]) of at least [`ROWS_PER_FILE`] rows.
//! Each thread writes one file per range, and the memory of its rows that are not yet encoded is
//! bounded.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Date32Array, RecordBatch};
use arrow::compute::filter_record_batch;
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::Encoding;
use parquet::file::properties::EnabledStatistics;

use crate::error::{Error, Result};
use crate::state::versions::VersionsLayout;
use crate::store::Folder;
use crate::table::writer::{parquet_properties, parquet_writer, write_error};
use crate::types::day_counts::DayCounts;

/// The number of rows from which a file gets no further day.
pub const ROWS_PER_FILE: u64 = 100_000;
/// The limit of ranges in a run, because each range has an open file.
const RANGES_MAX: u64 = 16;
/// The limit of buffered bytes, above which the largest buffer is written as a row group.
const BUFFERED_BYTES_MAX: usize = 24 << 20;

/// The days of a batch of versions.
fn days_of(versions: &RecordBatch) -> Result<&Date32Array> {
    let days = versions
        .column_by_name("event_dt")
        .ok_or_else(|| Error::internal("versions lack the column `event_dt`"))?;
    Ok(days.as_primitive())
}

/// The first day of each range of days.
pub fn day_ranges(days: &DayCounts) -> Vec<Option<i32>> {
    let rows_min = ROWS_PER_FILE.max(days.rows().div_ceil(RANGES_MAX));
    let mut starts = Vec::new();
    let mut in_range = rows_min;
    for (day, rows) in days.iter() {
        if in_range >= rows_min {
            starts.push(day);
            in_range = 0;
        }
        in_range += rows;
    }
    starts
}

/// A versions file, not yet committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionsFile {
    /// Its path relative to the state's table.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its rows, from its footer.
    pub rows: u64,
    /// Its rows by day.
    pub days: DayCounts,
}

/// One thread's writer.
pub struct VersionsWriter {
    state: Folder,
    layout: Arc<VersionsLayout>,
    prefix: String,
    starts: Arc<Vec<Option<i32>>>,
    open: Vec<Option<OpenFile>>,
}

struct OpenFile {
    path: String,
    writer: AsyncArrowWriter<BufWriter>,
    days: DayCounts,
}

impl VersionsWriter {
    /// A writer of files `<prefix>-<range>.parquet`, for ranges that begin at `starts`.
    pub fn new(
        state: &Folder,
        layout: &Arc<VersionsLayout>,
        prefix: String,
        starts: &Arc<Vec<Option<i32>>>,
    ) -> Self {
        VersionsWriter {
            state: state.clone(),
            layout: Arc::clone(layout),
            prefix,
            open: starts.iter().map(|_| None).collect(),
            starts: Arc::clone(starts),
        }
    }

    /// Writes rows of [`VersionsLayout::written_schema`].
    ///
    /// # Errors
    /// Storage, when a file cannot be written.
    pub async fn write(&mut self, versions: &RecordBatch) -> Result<()> {
        if versions.num_rows() == 0 {
            return Ok(());
        }
        if self.starts.len() == 1 {
            return self.write_range(0, versions).await;
        }
        let days: Vec<Option<i32>> = days_of(versions)?.iter().collect();
        let mut ranges = Vec::with_capacity(days.len());
        let mut distinct = BTreeSet::new();
        // Rows of a day mostly follow one another.
        for of_day in days.chunk_by(|a, b| a == b) {
            let after = self.starts.partition_point(|start| *start <= of_day[0]);
            let range = after
                .checked_sub(1)
                .ok_or_else(|| Error::internal("a version has a day before all planned ranges"))?;
            distinct.insert(range);
            ranges.extend(std::iter::repeat_n(range, of_day.len()));
        }
        if distinct.len() == 1 {
            return self.write_range(ranges[0], versions).await;
        }
        for range in distinct {
            let inside: BooleanArray = ranges.iter().map(|of| Some(*of == range)).collect();
            self.write_range(range, &filter_record_batch(versions, &inside)?).await?;
        }
        Ok(())
    }

    async fn write_range(&mut self, range: usize, versions: &RecordBatch) -> Result<()> {
        let file = match &mut self.open[range] {
            Some(file) => file,
            none => {
                let path = format!("{}-{range:02}.parquet", self.prefix);
                let schema = self.layout.written_schema();
                let mut properties = parquet_properties(&path, &VersionsLayout::RARELY_REPEATED)
                    // Only days are filtered on.
                    .set_statistics_enabled(EnabledStatistics::None)
                    .set_column_statistics_enabled("event_dt".into(), EnabledStatistics::Chunk);
                for column in VersionsLayout::ASCENDING {
                    properties = properties
                        .set_column_encoding(column.into(), Encoding::DELTA_BINARY_PACKED);
                }
                none.insert(OpenFile {
                    writer: parquet_writer(&self.state, &path, schema, properties)?,
                    path,
                    days: DayCounts::default(),
                })
            }
        };
        let days: Vec<Option<i32>> = days_of(versions)?.iter().collect();
        for of_day in days.chunk_by(|a, b| a == b) {
            file.days.add(of_day[0], of_day.len() as u64);
        }
        let failed = |error| write_error(&self.state, &file.path, error);
        file.writer.write(versions).await.map_err(failed)?;
        if self.buffered_bytes() > BUFFERED_BYTES_MAX
            && let Some(largest) =
                self.open.iter_mut().flatten().max_by_key(|file| file.writer.memory_size())
        {
            let failed = |error| write_error(&self.state, &largest.path, error);
            largest.writer.flush().await.map_err(failed)?;
        }
        Ok(())
    }

    fn buffered_bytes(&self) -> usize {
        let files = self.open.iter().flatten();
        files.map(|file| file.writer.memory_size()).sum()
    }

    /// Finishes all files.
    ///
    /// # Errors
    /// Storage, when a file cannot be written.
    pub async fn finish(self) -> Result<Vec<VersionsFile>> {
        let mut files = Vec::new();
        for mut file in self.open.into_iter().flatten() {
            let failed = |error| write_error(&self.state, &file.path, error);
            let footer = file.writer.finish().await.map_err(failed)?;
            files.push(VersionsFile {
                rows: footer.file_metadata().num_rows().max(0) as u64,
                bytes: file.writer.bytes_written() as u64,
                path: file.path,
                days: file.days,
            });
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_split_into_ranges_of_enough_rows_and_no_more_than_files_can_be_open() {
        let ranges = |days: &[(i32, u64)]| {
            let days: DayCounts = days.iter().map(|(day, rows)| (Some(*day), *rows)).collect();
            day_ranges(&days)
        };
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[(1, 1), (2, 1)]), [Some(1)]);
        assert_eq!(
            ranges(&[(1, 99_999), (2, 1), (3, 200_000), (4, 1)]),
            [Some(1), Some(3), Some(4)]
        );
        let year: Vec<(i32, u64)> = (0..365).map(|day| (day, 137_000)).collect();
        assert_eq!(ranges(&year).len(), 16);
    }

    #[test]
    fn days_overlap_when_they_share_one() {
        let days =
            |days: &[Option<i32>]| -> DayCounts { days.iter().map(|day| (*day, 1)).collect() };
        assert!(days(&[None, Some(3)]).overlaps(&days(&[Some(3), Some(4), Some(5)])));
        assert!(days(&[None, Some(3)]).overlaps(&days(&[None])));
        assert!(!days(&[None, Some(3)]).overlaps(&days(&[Some(4)])));
    }
}
