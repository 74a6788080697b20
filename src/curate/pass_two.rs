//! Splits the winners' rows into rows of the curated table and versions.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{and, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;

use crate::changes::{LATEST, LIVE};
use crate::config::Keep;
use crate::curate::merge::PRESENT;
use crate::engine::tasks::Work;
use crate::error::{Error, Result};
use crate::parquet_io::open::conform;
use crate::raw::discover::Input;
use crate::state::versions::{DAY, VersionsLayout};
use crate::state::versions_writer::{VersionsFile, VersionsWriter};
use crate::table::sorter::{Sorter, compact};
use crate::types::key::normalize_zeros;

/// What one stream counted; sums over all streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Last changes that become rows of the table.
    pub rows_latest: u64,
    /// Last changes that leave no row: deletes, and rows that `curated.sql` filters out.
    pub rows_deleted: u64,
    /// Last changes per key and day.
    pub key_days: u64,
    /// The days whose rows change, as days since 1970.
    pub days: BTreeSet<i32>,
}

/// Splits one stream of rows.
pub(super) struct Splitter {
    pub(super) keep: Keep,
    /// The schema of the sorter's rows.
    pub(super) schema: SchemaRef,
    pub(super) key: Vec<String>,
    pub(super) layout: Arc<VersionsLayout>,
    pub(super) inputs: Arc<Vec<Input>>,
    pub(super) sql_file: String,
}

impl Splitter {
    /// Takes the next stream, if there is one: its rows are written as versions, and live ones passed
    /// to the sorter.
    pub(super) async fn run(
        self,
        streams: &Work<SendableRecordBatchStream>,
        (mut sorter, mut versions): (Sorter, VersionsWriter),
    ) -> Result<(Counts, Vec<VersionsFile>, Sorter)> {
        let mut counts = Counts::default();
        if let Some(mut rows) = streams.next() {
            let failed = |error| Error::query(&self.sql_file, error);
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                if streams.has_failed() {
                    break;
                }
                let chosen = self.count(&batch, &mut counts)?;
                versions.write(&self.layout.versions(&batch, &self.inputs)?).await?;
                let table_rows = filter_record_batch(&batch, &chosen)?;
                if table_rows.num_rows() > 0 {
                    sorter.push(&self.table_rows(&table_rows)?)?;
                }
            }
        }
        Ok((counts, versions.finish().await?, sorter))
    }

    /// Converts rows to the sorter's schema.
    pub(super) fn table_rows(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let present: ArrayRef = Arc::new(BooleanArray::from(vec![true; rows.num_rows()]));
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            let is_key = self.key.contains(field.name());
            let column = if is_key { normalize_zeros(column) } else { Arc::clone(column) };
            fields.push(Arc::clone(field));
            columns.push(column);
        }
        fields.push(Arc::new(Field::new(PRESENT, DataType::Boolean, false)));
        columns.push(present);
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        compact(&conform(&rows, &self.schema)?)
    }

    /// Counts the rows of a batch. Returns which of them become rows of the table.
    pub(super) fn count(&self, batch: &RecordBatch, counts: &mut Counts) -> Result<BooleanArray> {
        let lost = |name: &str| Error::internal(format!("the column `{name}` was lost"));
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| lost(name));
        let live = column(LIVE)?.as_boolean();
        let latest = column(LATEST)?.as_boolean();
        let days = column(DAY)?.as_primitive::<Date32Type>();
        let mut before = None;
        for day in days.iter().flatten() {
            if before != Some(day) {
                counts.days.insert(day);
                before = Some(day);
            }
        }
        counts.key_days += batch.num_rows() as u64;
        let (chosen, candidates) = match self.keep {
            Keep::Latest => (and(live, latest)?, latest.true_count()),
            Keep::LatestPerDay => (live.clone(), batch.num_rows()),
        };
        counts.rows_latest += chosen.true_count() as u64;
        counts.rows_deleted += (candidates - chosen.true_count()) as u64;
        Ok(chosen)
    }
}
