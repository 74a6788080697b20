//! Reads versions; those of keys without winners bypass the sorter.

use std::sync::Arc;

use arrow::array::{BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::Field;
use futures::TryStreamExt;
use futures::stream::BoxStream;

use crate::curate::merge::CommittedVersions;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, REWRITTEN, hash};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::parquet_io::fetch::SelectedRows;
use crate::parquet_io::open::{ParquetFile, conform};
use crate::state::versions::{COMMIT, VersionsLayout};
use crate::state::versions_writer::VersionsWriter;
use crate::store::{Folder, parse_path};
use crate::table::sorter::Sorter;

/// Reads committed versions.
pub(super) struct VersionReader<'a> {
    pub(super) entries: &'a Entries,
    pub(super) files: &'a Files,
    pub(super) bloom: &'a Bloom,
    pub(super) state: &'a Folder,
}

impl VersionReader<'_> {
    /// Passes the versions of winners' keys to the sorter, and the other versions of a rewritten file
    /// to the writer. Returns the number of rows of a rewritten file, 0 for others.
    pub(super) async fn read(
        &self,
        committed: &CommittedVersions,
        sorter: &mut Sorter,
        versions: &mut VersionsWriter,
    ) -> Result<u64> {
        let layout = &self.entries.layout;
        let (file, columns) =
            open_versions(self.state, layout, &committed.path, committed.bytes).await?;
        if !committed.rewritten {
            self.pass_on_candidates(&file, &columns, sorter).await?;
            return Ok(0);
        }
        self.pass_on(file.read(&columns, BATCH_ROWS), sorter, Some(versions)).await?;
        Ok(file.row_count())
    }

    /// Passes the versions of a file that may be of wanted keys to the sorter.
    #[cfg(feature = "postgres")]
    pub(super) async fn look_up(&self, path: &str, bytes: u64, sorter: &mut Sorter) -> Result<()> {
        let (file, columns) = open_versions(self.state, &self.entries.layout, path, bytes).await?;
        self.pass_on_candidates(&file, &columns, sorter).await
    }

    /// The number of rows of a file, if any may be of wanted keys.
    pub(super) async fn rows_with_candidates(&self, path: &str, bytes: u64) -> Result<Option<u64>> {
        let (file, _) = open_versions(self.state, &self.entries.layout, path, bytes).await?;
        let has_any = !self.groups_with_candidates(&file).await?.is_empty();
        Ok(has_any.then(|| file.row_count()))
    }

    async fn pass_on_candidates(
        &self,
        file: &ParquetFile,
        columns: &[usize],
        sorter: &mut Sorter,
    ) -> Result<()> {
        let groups = self.groups_with_candidates(file).await?;
        let chosen = file.read_selected(columns, groups.into_iter(), BATCH_ROWS);
        self.pass_on(chosen, sorter, None).await
    }

    /// Passes candidates to the sorter, and others to the writer of a rewritten file.
    async fn pass_on(
        &self,
        mut batches: BoxStream<'static, Result<RecordBatch>>,
        sorter: &mut Sorter,
        mut versions: Option<&mut VersionsWriter>,
    ) -> Result<()> {
        let layout = &self.entries.layout;
        let origin = if versions.is_some() { REWRITTEN } else { LOOKED_UP };
        while let Some(read) = batches.try_next().await? {
            let hashes = self.hashes(&read)?;
            let is_candidate = BooleanArray::new(self.candidates(&hashes), None);
            let count = is_candidate.true_count();
            if count > 0 {
                let hashes: Vec<u64> =
                    is_candidate.values().set_indices().map(|row| hashes[row]).collect();
                let candidates = filter_record_batch(&read, &is_candidate)?;
                let candidates = conform(&candidates, &layout.schema())?;
                let files = self.files.of_versions(&candidates)?;
                sorter.push(&self.entries.of_versions(&candidates, &hashes, origin, &files)?)?;
            }
            if let Some(versions) = &mut versions
                && count < read.num_rows()
            {
                let is_other = arrow::compute::not(&is_candidate)?;
                let others = filter_record_batch(&read, &is_other)?;
                versions.write(&conform(&others, &layout.written_schema())?).await?;
            }
        }
        Ok(())
    }

    /// The row groups that have candidates, and which rows these are, found by the key columns alone. They
    /// are few in most runs: the other columns are decoded for them alone.
    async fn groups_with_candidates(&self, file: &ParquetFile) -> Result<Vec<SelectedRows>> {
        let keys = 0..self.entries.layout.key_count();
        let keys = keys.map(|number| file.schema().index_of(&format!("key_{number}")));
        let mut keys = keys.collect::<Result<Vec<usize>, _>>()?;
        keys.sort_unstable();
        let mut is_candidate = BooleanBufferBuilder::new(file.row_count() as usize);
        let mut batches = file.read(&keys, BATCH_ROWS);
        while let Some(read) = batches.try_next().await? {
            is_candidate.append_buffer(&self.candidates(&self.hashes(&read)?));
        }
        let is_candidate = is_candidate.finish();
        let mut first = 0;
        let groups = file.row_groups().iter().enumerate().filter_map(|(number, group)| {
            let of_group = is_candidate.slice(first, group.rows);
            first += group.rows;
            match of_group.count_set_bits() {
                0 => None,
                // It is not worth the choosing.
                count if count > group.rows / 2 => Some((number, None)),
                _ => Some((number, Some(of_group))),
            }
        });
        Ok(groups.collect())
    }

    /// The hashes of the keys of versions.
    fn hashes(&self, read: &RecordBatch) -> Result<Vec<u64>> {
        let layout = &self.entries.layout;
        if layout.key_count() == 0 {
            return Ok(vec![0; read.num_rows()]);
        }
        let keys: Vec<usize> = (0..layout.key_count()).collect();
        hash(conform(read, &Arc::new(layout.schema().project(&keys)?))?.columns())
    }

    /// Which keys may have winners, given by their hashes.
    fn candidates(&self, hashes: &[u64]) -> BooleanBuffer {
        BooleanBuffer::collect_bool(hashes.len(), |row| self.bloom.may_contain(hashes[row]))
    }
}

/// Opens a committed file of versions. Returns the columns of the layout too, by their index.
pub(super) async fn open_versions(
    state: &Folder,
    layout: &VersionsLayout,
    path: &str,
    bytes: u64,
) -> Result<(ParquetFile, Vec<usize>)> {
    let name = state.describe(path);
    let store = Arc::clone(&state.store);
    let opened = ParquetFile::open(store, parse_path(path)?, bytes, name.clone()).await;
    let file = opened.map_err(|error| {
        if error.kind == Kind::Data || missing_object(&error).is_some() {
            Error::data("committed versions cannot be read")
                .hint("restore the file, or rebuild the state with `glueless rebuild`")
                .caused_by(error)
        } else {
            error
        }
    })?;
    let schema = layout.schema();
    // Older programs did not write the commit.
    let is_there = |field: &&Arc<Field>| {
        field.name() != COMMIT || file.schema().column_with_name(COMMIT).is_some()
    };
    let fields = schema.fields().iter().filter(is_there);
    let columns = fields.map(|field| file.schema().index_of(field.name()));
    let mut columns = columns.collect::<Result<Vec<usize>, _>>().map_err(|error| {
        Error::data(format!("{name} has no versions of this layout")).caused_by(error)
    })?;
    columns.sort_unstable();
    Ok((file, columns))
}
