//! Pass two: the payload of the last changes, through `curated.sql`, into staging.
//!
//! ```text
//! winners' rows ─▶ curated.sql, made total ─┬─▶ versions (every last change per key and day)
//!   (one stream per thread)                  └─▶ rows of the table ─▶ sort by partition and key ─▶ files
//! ```
//!
//! The streams of the first half feed the sort of the second through channels; the sort spills
//! when it must, so memory stays under the limit whatever the number of rows.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{SortOptions, and, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, execute_stream, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::future::{try_join, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::changes::{Changes, LATEST, LIVE};
use crate::config::{Keep, Pipeline};
use crate::curated_sql::{self, CuratedQuery, DAY};
use crate::discover::Input;
use crate::error::{Error, Result};
use crate::session::join;
use crate::state::State;
use crate::store::Folder;
use crate::table_writer::{StagedFile, TableWriter, parquet_writer, write_error};
use crate::versions::{VersionsLayout, canonical};
use crate::winners::Winners;

/// How many batches may wait between the two halves, per thread.
const WAITING_BATCHES: usize = 2;

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
    let table = changes.table(Some(winners), threads);
    let query = curated_sql::plan(context, pipeline, changes, table).await?;
    let layout = versions_layout(pipeline, changes, &query)?;
    let schema: SchemaRef = Arc::new(Schema::new(query.columns.clone()));
    let inputs: Arc<Vec<Input>> = Arc::new(changes.inputs().cloned().collect());

    let plan = context.state().create_physical_plan(&query.plan).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let mut tasks = Vec::new();
    let mut receivers: Vec<Arc<dyn PartitionStream>> = Vec::new();
    for (number, rows) in streams.into_iter().enumerate() {
        let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
        receivers.push(Arc::new(Received {
            schema: Arc::clone(&schema),
            rows: Mutex::new(Some(receiver)),
        }));
        let half = FirstHalf {
            keep: pipeline.keep,
            visible: query.columns.len(),
            layout: layout.clone(),
            inputs: Arc::clone(&inputs),
            state: places.state.clone(),
            path: State::version_path(places.run_id, number),
            sql_file: pipeline.curated.sql.file.clone(),
        };
        tasks.push(join(tokio::spawn(half.run(rows, sender))));
    }
    let sorted = sort(pipeline, &schema, receivers)?;
    let rows = execute_stream(sorted, context.task_ctx())?.map_err(Error::from);
    let writer = TableWriter {
        staging: places.staging,
        prefix: format!("{}/curated", places.run_id),
        partition_by: &pipeline.curated.partition_by,
        file_bytes: pipeline.curated.file_bytes,
    };
    let (halves, staged) = try_join(try_join_all(tasks), writer.write(&schema, rows)).await?;

    let mut counts = Counts::default();
    let mut versions = Vec::new();
    for (counted, file) in halves {
        counts.rows_latest += counted.rows_latest;
        counts.rows_deleted += counted.rows_deleted;
        counts.key_days += counted.key_days;
        counts.days.extend(counted.days);
        versions.extend(file);
    }
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
        sender: mpsc::Sender<RecordBatch>,
    ) -> Result<(Counts, Option<StagedFile>)> {
        let mut counts = Counts::default();
        let mut writer = None;
        let failed = |error| write_error(&self.state, &self.path, error);
        let visible: Vec<usize> = (0..self.visible).collect();
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
                )?),
            };
            writer.write(&versions).await.map_err(failed)?;
            let table_rows = filter_record_batch(&batch.project(&visible)?, &chosen)?;
            if table_rows.num_rows() > 0 && sender.send(compact(&table_rows)?).await.is_err() {
                // The other half failed, and says why itself.
                break;
            }
        }
        let Some(mut writer) = writer else {
            return Ok((counts, None));
        };
        let footer = writer.finish().await.map_err(failed)?;
        let file = StagedFile {
            partition: String::new(),
            rows: footer.file_metadata().num_rows().max(0) as u64,
            bytes: writer.bytes_written() as u64,
            staged: self.path.clone(),
        };
        Ok((counts, Some(file)))
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

/// Lets go of the pages that text views point into, of which most rows were not selected.
fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()) as ArrayRef,
            _ => Arc::clone(column),
        })
        .collect();
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Sorts what is received by the partition columns, nulls first, then by key.
fn sort(
    pipeline: &Pipeline,
    schema: &SchemaRef,
    receivers: Vec<Arc<dyn PartitionStream>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let received =
        StreamingTableExec::try_new(Arc::clone(schema), receivers, None, [], false, None)?;
    let mut columns: Vec<&String> = pipeline.curated.partition_by.iter().collect();
    columns.extend(
        pipeline
            .key
            .iter()
            .filter(|key| !pipeline.curated.partition_by.contains(key)),
    );
    let order = columns
        .into_iter()
        .map(|name| {
            let options = SortOptions {
                descending: false,
                nulls_first: true,
            };
            Ok(PhysicalSortExpr::new(col(name, schema)?, options))
        })
        .collect::<Result<Vec<_>>>()?;
    let order =
        LexOrdering::new(order).ok_or_else(|| Error::internal("there is no key to sort by"))?;
    let sorted = SortExec::new(order.clone(), Arc::new(received)).with_preserve_partitioning(true);
    Ok(Arc::new(SortPreservingMergeExec::new(
        order,
        Arc::new(sorted),
    )))
}

/// What one task of the first half sent.
struct Received {
    schema: SchemaRef,
    rows: Mutex<Option<mpsc::Receiver<RecordBatch>>>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rows of the table")
    }
}

impl PartitionStream for Received {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let receiver = self.rows.lock().ok().and_then(|mut rows| rows.take());
        let rows = match receiver {
            Some(receiver) => stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|batch| (Ok(batch), receiver))
            })
            .boxed(),
            None => {
                stream::once(async { Err(Error::internal("rows were asked for twice").into()) })
                    .boxed()
            }
        };
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            rows,
        ))
    }
}
