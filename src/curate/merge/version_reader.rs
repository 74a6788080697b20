//! Reads versions; those of keys without winners bypass the sorter.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use futures::TryStreamExt;

use crate::curate::merge::CommittedVersions;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, REWRITTEN, hash};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::parquet_io::open::{ParquetFile, conform};
use crate::state::versions::VersionsLayout;
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
        let schema = layout.schema();
        let keys: Vec<usize> = (0..layout.keys.len()).collect();
        let key_schema = Arc::new(schema.project(&keys)?);
        let origin = if committed.rewritten { REWRITTEN } else { LOOKED_UP };
        let mut batches = file.read(&columns, BATCH_ROWS);
        while let Some(read) = batches.try_next().await? {
            let hashes = if layout.keys.is_empty() {
                vec![0; read.num_rows()]
            } else {
                hash(conform(&read, &key_schema)?.columns())?
            };
            let is_candidate: BooleanArray =
                hashes.iter().map(|hash| Some(self.bloom.may_contain(*hash))).collect();
            let count = is_candidate.true_count();
            if count == 0 && !committed.rewritten {
                continue;
            }
            if count > 0 {
                let candidates = conform(&filter_record_batch(&read, &is_candidate)?, &schema)?;
                let candidate_hashes: Vec<u64> = hashes
                    .iter()
                    .zip(is_candidate.values())
                    .filter_map(|(hash, is_candidate)| is_candidate.then_some(*hash))
                    .collect();
                let files = self.files.of_versions(&candidates)?;
                let batch =
                    self.entries.of_versions(&candidates, &candidate_hashes, origin, &files)?;
                sorter.push(&batch)?;
            }
            if committed.rewritten && count < read.num_rows() {
                let is_other = arrow::compute::not(&is_candidate)?;
                let others = filter_record_batch(&read, &is_other)?;
                versions.write(&conform(&others, &layout.written_schema())?).await?;
            }
        }
        Ok(if committed.rewritten { file.row_count() } else { 0 })
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
    let fields = schema.fields().iter();
    let columns = fields.map(|field| file.schema().index_of(field.name()));
    let mut columns = columns.collect::<Result<Vec<usize>, _>>().map_err(|error| {
        Error::data(format!("{name} has no versions of this layout")).caused_by(error)
    })?;
    columns.sort_unstable();
    Ok((file, columns))
}
