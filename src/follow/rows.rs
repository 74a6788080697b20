//! The rows that a follower applies, read from published files.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::logical_expr::ident;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::curate::merge::changed_keys::ChangedKeys;
use crate::error::Result;
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::files::{FileTable, PartitionFile};

/// Published files of a table.
pub(crate) struct PublishedRows<'a> {
    /// The table's folder, whose store the session knows.
    pub folder: &'a Folder,
    /// The files.
    pub files: Vec<&'a TableFile>,
    /// The columns of the table: name and type.
    pub columns: &'a [(String, DataType)],
    /// Its partition columns.
    pub partition_by: &'a [String],
}

impl PublishedRows<'_> {
    /// Passes the rows to `take`, batch by batch, with the columns `read`: all rows, or those whose keys
    /// may have changed.
    ///
    /// # Errors
    /// Those of reading and of `take`.
    pub(crate) async fn for_each(
        &self,
        context: &SessionContext,
        read: &[String],
        changed: Option<(&ChangedKeys, &[String])>,
        mut take: impl AsyncFnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let files = self.files.iter().map(|file| PartitionFile::of(file));
        let table = FileTable::of_partitions(self.folder, files, self.columns, self.partition_by)?;
        let rows = context.read_table(Arc::new(table))?;
        let mut rows = rows.select(read.iter().map(ident))?.execute_stream().await?;
        while let Some(batch) = rows.try_next().await? {
            let chosen = match changed {
                None => batch,
                Some((changed, keys)) => {
                    let at = indices(&batch.schema(), keys)?;
                    filter_record_batch(&batch, &changed.select(&batch.project(&at)?)?)?
                }
            };
            if chosen.num_rows() > 0 {
                take(chosen).await?;
            }
        }
        Ok(())
    }
}

/// The indices of columns by their names.
fn indices(schema: &SchemaRef, names: &[String]) -> Result<Vec<usize>> {
    Ok(names.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?)
}
