//! Reading versions, and keeping those of other keys out of the sorter.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use futures::TryStreamExt;

use crate::curate::merge::StoredVersions;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::entries::{Entries, Files, KEPT, REWRITTEN, hash};
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result, missing_object};
use crate::parquet_io::open::{ParquetFile, conform};
use crate::state::versions_writer::VersionsWriter;
use crate::store::{Folder, parse_path};
use crate::table::sorter::Sorter;

/// Reads stored versions.
pub(super) struct LookUp<'a> {
    pub(super) entries: &'a Entries,
    pub(super) files: &'a Files,
    pub(super) bloom: &'a Bloom,
    pub(super) state: &'a Folder,
}

impl LookUp<'_> {
    /// Hands the versions of winners' keys to the sorter; the others of a file that is written
    /// again go straight to the writer. Returns the rows of such a file.
    pub(super) async fn read(
        &self,
        stored: &StoredVersions,
        sorter: &mut Sorter,
        versions: &mut VersionsWriter,
    ) -> Result<u64> {
        let layout = &self.entries.layout;
        let name = self.state.describe(&stored.path);
        let path = parse_path(&stored.path)?;
        let store = Arc::clone(&self.state.store);
        let file = ParquetFile::open(store, path, stored.bytes, name.clone())
            .await
            .map_err(|error| {
                match error.kind == Kind::Data || missing_object(&error).is_some() {
                    true => Error::data("versions that were committed cannot be read")
                        .hint("restore the file, or make the state again with `glueless rebuild`")
                        .caused_by(error),
                    false => error,
                }
            })?;
        let schema = layout.schema();
        let mut columns = schema
            .fields()
            .iter()
            .map(|field| file.schema().index_of(field.name()))
            .collect::<Result<Vec<usize>, _>>()
            .map_err(|error| {
                Error::data(format!("{name} holds no versions of this layout")).caused_by(error)
            })?;
        columns.sort_unstable();
        let keys: Vec<usize> = (0..layout.keys.len()).collect();
        let key_schema = Arc::new(schema.project(&keys)?);
        let origin = if stored.rewritten { REWRITTEN } else { KEPT };
        let mut batches = file.read(&columns, BATCH_ROWS);
        while let Some(read) = batches.try_next().await? {
            let hashes = match layout.keys.is_empty() {
                true => vec![0; read.num_rows()],
                false => hash(conform(&read, &key_schema)?.columns())?,
            };
            let met: BooleanArray = hashes
                .iter()
                .map(|hash| Some(self.bloom.may_hold(*hash)))
                .collect();
            let count = met.true_count();
            if count == 0 && !stored.rewritten {
                continue;
            }
            if count > 0 {
                let chosen = conform(&filter_record_batch(&read, &met)?, &schema)?;
                let chosen_hashes: Vec<u64> = hashes
                    .iter()
                    .zip(met.values())
                    .filter_map(|(hash, met)| met.then_some(*hash))
                    .collect();
                let batch =
                    self.entries
                        .of_versions(&chosen, &chosen_hashes, origin, self.files)?;
                sorter.push(&batch)?;
            }
            if stored.rewritten && count < read.num_rows() {
                let others = arrow::compute::not(&met)?;
                let others = filter_record_batch(&read, &others)?;
                versions
                    .write(&conform(&others, &layout.written_schema())?)
                    .await?;
            }
        }
        Ok(if stored.rewritten {
            file.row_count()
        } else {
            0
        })
    }
}
