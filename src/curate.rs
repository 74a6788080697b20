//! Pass two: the payload of the last changes, through `curated.sql`, into staging.
//!
//! ```text
//! winners' rows ─▶ curated.sql, made total ─┬─▶ versions (every last change per key and day)
//!   (one stream per thread)                  └─▶ rows of the table ─▶ sorter ─▶ files
//! ```
//!
//! Each thread has a sorter of its own, which spills when it must, so memory stays under the
//! limit whatever the number of rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{and, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, Field, Schema};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::future::try_join_all;

use crate::change_reader::ChangesTable;
use crate::changes::{Changes, LATEST, LIVE};
use crate::config::{Keep, Pipeline};
use crate::curated_sql::{self, CuratedQuery, DAY};
use crate::discover::Input;
use crate::error::{Error, Result};
use crate::session::join;
use crate::sorter::{Order, Sorted, Sorter, compact};
use crate::state::State;
use crate::store::Folder;
use crate::table_writer::{StagedFile, TableWriter, parquet_writer, write_error};
use crate::versions::{VersionsLayout, canonical};
use crate::winners::Winners;

/// What pass two made.
#[derive(Debug)]
pub struct Curated {
    /// The table's files, in staging.
    pub staged: Vec<StagedFile>,
    /// The versions' files, in the state folder and not yet committed.
    pub versions: Vec<StagedFile>,
    /// The versions' layout.
    pub layout: VersionsLayout,
    /// The table's columns.
    pub columns: Vec<Field>,
    /// What was counted on the way.
    pub counts: Counts,
}

/// What one stream counted; sums over all streams.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Last changes that are rows of the table.
    pub rows_latest: u64,
    /// Last changes that leave no row: deletes, and rows that `curated.sql` filters out.
    pub rows_deleted: u64,
    /// Last changes per key and day.
    pub key_days: u64,
    /// The days with changes, as days since 1970.
    pub days: BTreeSet<i32>,
}

/// Where pass two writes to.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The staging folder of the curated table.
    pub staging: &'a Folder,
    /// The folder of the state's Delta table.
    pub state: &'a Folder,
    /// The run's id, part of every name.
    pub run_id: &'a str,
}

/// Runs pass two.
///
/// # Errors
/// Usage, when `curated.sql` is refused; data, when a row cannot be cast; storage, when staging
/// or state cannot be written.
pub async fn curate(
    context: &SessionContext,
    pipeline: &Pipeline,
    changes: &Arc<Changes>,
    winners: Arc<Winners>,
    places: Places<'_>,
    threads: usize,
) -> Result<Curated> {
    let table = ChangesTable::new(changes, Some(winners), threads);
    let query = curated_sql::plan(context, pipeline, changes, table).await?;
    let layout = versions_layout(pipeline, changes, &query)?;
    let schema = Schema::new(query.columns.clone());
    let inputs: Arc<Vec<Input>> = Arc::new(changes.inputs().cloned().collect());

    let order = Arc::new(order(pipeline, &schema)?);
    let plan = context.state().create_physical_plan(&query.plan).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let halves = streams.into_iter().enumerate().map(|(number, rows)| {
        let half = FirstHalf {
            keep: pipeline.keep,
            visible: query.columns.len(),
            layout: layout.clone(),
            inputs: Arc::clone(&inputs),
            state: places.state.clone(),
            path: State::version_path(places.run_id, number),
            sql_file: pipeline.curated.sql.file.clone(),
        };
        let sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
        join(tokio::spawn(half.run(rows, sorter)))
    });
    let halves = try_join_all(halves).await?;

    let mut counts = Counts::default();
    let mut versions = Vec::new();
    let mut sorters = Vec::new();
    for (counted, file, sorter) in halves {
        sorters.push(sorter);
        counts.rows_latest += counted.rows_latest;
        counts.rows_deleted += counted.rows_deleted;
        counts.key_days += counted.key_days;
        counts.days.extend(counted.days);
        versions.extend(file);
    }
    let writer = TableWriter {
        staging: places.staging.clone(),
        prefix: format!("{}/curated", places.run_id),
        file_bytes: pipeline.curated.file_bytes,
    };
    let staged = writer.write(Sorted::new(&order, sorters), threads).await?;
    Ok(Curated {
        staged,
        versions,
        layout,
        columns: query.columns,
        counts,
    })
}

fn versions_layout(
    pipeline: &Pipeline,
    changes: &Changes,
    query: &CuratedQuery,
) -> Result<VersionsLayout> {
    let lost = |name: &String| Error::internal(format!("the column `{name}` was lost"));
    let raw = changes.raw_schema();
    let keys = pipeline.key.iter().map(|name| {
        let column = changes.raw_column(name).ok_or_else(|| lost(name))?;
        Ok((name.clone(), canonical(raw.field(column).data_type())))
    });
    let partitions = pipeline.curated.partition_by.iter().map(|name| {
        let field = query.columns.iter().find(|field| field.name() == name);
        Ok((
            name.clone(),
            canonical(field.ok_or_else(|| lost(name))?.data_type()),
        ))
    });
    Ok(VersionsLayout {
        keys: keys.collect::<Result<_>>()?,
        partitions: partitions.collect::<Result<_>>()?,
        packed: changes.is_packed(),
    })
}

/// One stream of the first half.
struct FirstHalf {
    keep: Keep,
    visible: usize,
    layout: VersionsLayout,
    inputs: Arc<Vec<Input>>,
    state: Folder,
    path: String,
    sql_file: String,
}

impl FirstHalf {
    async fn run(
        self,
        mut rows: SendableRecordBatchStream,
        mut sorter: Sorter,
    ) -> Result<(Counts, Option<StagedFile>, Sorter)> {
        let mut counts = Counts::default();
        let mut writer = None;
        let failed = |error| write_error(&self.state, &self.path, error);
        while let Some(batch) = rows
            .try_next()
            .await
            .map_err(|error| Error::query(&self.sql_file, error))?
        {
            let chosen = self.count(&batch, &mut counts)?;
            let versions = self.layout.versions(&batch, &self.inputs)?;
            let writer = match &mut writer {
                Some(writer) => writer,
                none => none.insert(parquet_writer(
                    &self.state,
                    &self.path,
                    self.layout.written_schema(),
                    &VersionsLayout::HARDLY_REPEATED,
                )?),
            };
            writer.write(&versions).await.map_err(failed)?;
            let day = batch.schema().index_of(DAY)?;
            let columns: Vec<usize> = (0..self.visible).chain([day]).collect();
            let table_rows = filter_record_batch(&batch.project(&columns)?, &chosen)?;
            if table_rows.num_rows() > 0 {
                sorter.push(&compact(&table_rows)?)?;
            }
        }
        let Some(mut writer) = writer else {
            return Ok((counts, None, sorter));
        };
        let footer = writer.finish().await.map_err(failed)?;
        let file = StagedFile {
            partition: String::new(),
            rows: footer.file_metadata().num_rows().max(0) as u64,
            bytes: writer.bytes_written() as u64,
            staged: self.path.clone(),
        };
        Ok((counts, Some(file), sorter))
    }

    /// Counts a batch; returns which of its rows the table holds.
    fn count(&self, batch: &RecordBatch, counts: &mut Counts) -> Result<BooleanArray> {
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

/// The table's rows by partition and key; a key with rows of several days in one partition has
/// them in the order of days.
fn order(pipeline: &Pipeline, schema: &Schema) -> Result<Order> {
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new(DAY, DataType::Date32, true)));
    let place = |name: &String| Ok(schema.index_of(name)?);
    let parts = &pipeline.curated.partition_by;
    let partition_by = parts.iter().map(place).collect::<Result<Vec<_>>>()?;
    let keys = pipeline.key.iter().filter(|key| !parts.contains(key));
    let mut sort_by = keys.map(place).collect::<Result<Vec<_>>>()?;
    sort_by.push(fields.len() - 1);
    let stored = (0..schema.fields().len())
        .filter(|column| !partition_by.contains(column))
        .collect();
    Order::new(Arc::new(Schema::new(fields)), partition_by, sort_by, stored)
}
