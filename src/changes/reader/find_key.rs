//! Finds the changes of one key. Reads the key columns only.

use std::sync::Arc;

use arrow::array::{ArrayRef, Scalar};
use arrow::compute::kernels::cmp::not_distinct;
use futures::TryStreamExt;

use super::batch::{Batch, BatchError};
use super::{ChangeReader, Pass, numbered, schema_of};
use crate::changes::row_bitmap::{RowBitmap, Winners};
use crate::changes::{Changes, ReadUnit};
use crate::config::Operation;
use crate::engine::tasks::{join_all, spawn};
use crate::error::{Error, Result};
use crate::parquet_io::fetch::{AHEAD_UNITS_MAX, fetch_ahead};
use crate::types::key::normalize_zeros;

/// Finds the row ordinals of a key's changes: rows with the key, and updates of rows that had it
/// before. `key` is one value per key column, in the column's type. Rows whose key cannot be read are
/// skipped.
///
/// # Errors
/// Data, when an input is damaged; storage, when one cannot be read.
pub(crate) async fn find_key(
    changes: &Arc<Changes>,
    key: &[ArrayRef],
    threads: usize,
) -> Result<Winners> {
    let columns = changes.key_columns()?;
    let schema = schema_of(changes, &numbered(columns.clone()));
    let reader = ChangeReader::new(Arc::clone(changes), Pass::Find, schema, columns);
    let finder = Arc::new(Finder {
        reader,
        key: key.iter().map(normalize_zeros).map(Scalar::new).collect(),
        bitmap: RowBitmap::new(changes.ordinal_counts()),
    });
    let tasks = changes.distribute(threads, None).into_iter().map(|units| {
        let finder = Arc::clone(&finder);
        spawn(async move { finder.find(units).await })
    });
    join_all(tasks).await?;
    Arc::into_inner(finder)
        .map(|finder| finder.bitmap.finish())
        .ok_or_else(|| Error::internal("a task still searches for a key"))
}

struct Finder {
    reader: ChangeReader,
    key: Vec<Scalar<ArrayRef>>,
    bitmap: RowBitmap,
}

impl Finder {
    async fn find(&self, units: Vec<ReadUnit>) -> Result<()> {
        let fetch_units: Vec<_> =
            units.into_iter().flat_map(|unit| self.reader.fetch_units(&unit)).collect();
        let mut fetched = std::pin::pin!(fetch_ahead(fetch_units.into_iter(), AHEAD_UNITS_MAX));
        let of_input = |file: usize, error| self.reader.of_input(file, error);
        let rows = self.reader.changes.batch_rows();
        while let Some(one) =
            fetched.try_next().await.map_err(|(error, file)| of_input(file, error))?
        {
            let (fetched, file) = one;
            let columns = Arc::clone(fetched.columns());
            for read in fetched.read_raw(rows).map_err(|error| of_input(file, error))? {
                let read = read.map_err(|error| of_input(file, error))?;
                let batch = Batch::new(&self.reader, file, &columns, read);
                let batch = batch.without_placeholders()?.without_ignored()?;
                self.mark(&batch.without(Operation::Truncate)?)?;
            }
        }
        Ok(())
    }

    /// Marks the rows of a batch that have the key.
    fn mark(&self, batch: &Batch<'_>) -> Result<()> {
        let count = batch.read.num_rows();
        match self.try_mark(batch) {
            Ok(()) => Ok(()),
            Err(BatchError::Other(error)) => Err(error),
            Err(BatchError::Row(_) | BatchError::Truncates) if count <= 1 => Ok(()),
            Err(BatchError::Row(_) | BatchError::Truncates) => {
                self.mark(&batch.slice(0..count / 2))?;
                self.mark(&batch.slice(count / 2..count))
            }
        }
    }

    fn try_mark(&self, batch: &Batch<'_>) -> Result<(), BatchError> {
        let changes = &self.reader.changes;
        let per_row = changes.ordinals_per_row();
        let has_key = |columns: &[ArrayRef]| -> Result<Vec<bool>, BatchError> {
            let mut all = vec![true; batch.read.num_rows()];
            for (column, wanted) in columns.iter().zip(&self.key) {
                let same = not_distinct(&normalize_zeros(column), wanted)?;
                let each = all.iter_mut().zip(same.values());
                each.for_each(|(all, same)| *all &= same);
            }
            Ok(all)
        };
        let columns = self.reader.roles.key.iter().map(|column| batch.raw(*column));
        let now = has_key(&columns.collect::<Result<Vec<_>, _>>()?)?;
        let rows = batch.row_numbers();
        let mark = |at: usize, half: usize| {
            self.bitmap.set_day(batch.file, rows[at] as usize * per_row + half);
        };
        (0..now.len()).filter(|at| now[*at]).for_each(|at| mark(at, per_row - 1));
        if !changes.before_images().is_empty() {
            let (moved, before) = batch.moved(changes.before_images())?;
            let before = has_key(&before)?;
            let left = |at: &usize| {
                let is_key_swap = changes.is_key_swap(batch.file, rows[*at] as u64);
                moved[*at] && before[*at] && !is_key_swap
            };
            (0..now.len()).filter(left).for_each(|at| mark(at, 0));
        }
        Ok(())
    }
}
