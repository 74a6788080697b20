//! Aggregates: tables per day, computed by SQL and replaced per day.
//!
//! A run recomputes the window's days and every day that changed since the table was last
//! aggregated; a running table, where a day depends on all days before it, also every day that was
//! computed before, from its earliest changed day on. The queries read two relations:
//!
//! | relation | columns |
//! |---|---|
//! | `history` | key columns, `event_dt`, partition columns, `deleted`, `seq`; see `sql/history.sql` |
//! | `curated` | the columns of the curated table, from the committed file list |
//!
//! and two parameters: `$start_date` and `$end_date` (DATE, the end excluded).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use async_trait::async_trait;
use chrono::{Days, NaiveDate};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result as DataFusionResult, ScalarValue};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::{StreamExt, TryStreamExt};
use tracing::info;

use crate::config::{Aggregate, Pipeline};
use crate::curated_sql::first_line;
use crate::error::{Error, Result};
use crate::file_numbers::FileNumbers;
use crate::file_table::{FileTable, PartitionFile};
use crate::layout::{parent, parse_partition_segment, partition_segment};
use crate::ledger::{CURATED, Ledger, read_types, write_types};
use crate::position::{PACKED_TYPE, packed_array};
use crate::publish::{self, Names, Plan, TableFile};
use crate::sorter::{Order, Readers, Sorted, Sorter};
use crate::state::State;
use crate::store::Folder;
use crate::table_writer::{TableWriter, check_columns};
use crate::versions::{ORDER_BYTES, SEQ, VersionsLayout, seq_function};
use crate::window::Window;

/// Days closer than this are computed by one query.
const GAP_DAYS_MAX: i64 = 366;
/// The files of a day are small; one file each.
const FILE_BYTES: u64 = 256 << 20;

/// How one aggregate changes.
#[derive(Debug)]
pub struct Computed {
    /// What is to be published.
    pub plan: Plan,
    /// The days that were computed.
    pub days: BTreeSet<NaiveDate>,
}

impl Computed {
    /// Tells of it in the log.
    pub fn tell(&self, aggregate: &Aggregate, windows: &[Window]) {
        let shown = |day: Option<&NaiveDate>| day.map(NaiveDate::to_string).unwrap_or_default();
        info!(
            "aggregate {}: {}, qualifying dates {} ({} to {}), rows deleted {}, rows inserted {}",
            aggregate.name,
            match windows {
                [] => "days that changed".into(),
                [window] => format!("window {window}"),
                gaps => format!("{} gaps", gaps.len()),
            },
            self.days.len(),
            shown(self.days.first()),
            shown(self.days.last()),
            self.plan.counts.rows_removed,
            self.plan.counts.rows_written
        );
    }
}

/// Registers `history` and `curated`, as last committed. Returns whether there are any.
///
/// # Errors
/// Internal, when the ledger cannot be understood.
pub async fn register(
    context: &SessionContext,
    state: &State,
    pipeline: &Pipeline,
    curated: &Folder,
) -> Result<bool> {
    let ledger = &state.ledger;
    let (Some((versions, layout)), Some(record)) = (state.versions()?, &ledger.shape) else {
        return Ok(false);
    };
    let numbers = FileNumbers::new(ledger.inputs.keys().cloned());
    let columns = read_types(&record.columns)?;
    let files = ledger.files(CURATED);
    let files = files.map(|file| PartitionFile::new(&file.path, file.bytes));
    let partition_by = &pipeline.curated.partition_by;
    let table = FileTable::of_partitions(curated, files, &columns, partition_by)?;
    register_tables(context, versions, &layout, numbers, table).await?;
    Ok(true)
}

/// Registers `history` over versions, and `curated`.
///
/// # Errors
/// The engine's.
pub async fn register_tables(
    context: &SessionContext,
    versions: FileTable,
    layout: &VersionsLayout,
    numbers: FileNumbers,
    curated: FileTable,
) -> Result<()> {
    register_history(context, Arc::new(versions), layout, numbers).await?;
    context.register_table(CURATED, Arc::new(curated))?;
    Ok(())
}

/// The columns of an aggregate: name and type.
///
/// # Errors
/// Usage, when its query does not plan.
pub async fn columns(
    context: &SessionContext,
    aggregate: &Aggregate,
) -> Result<Vec<(String, DataType)>> {
    let (first, end) = (NaiveDate::default(), NaiveDate::default() + Days::new(1));
    let frame = planned(context, aggregate, first, end).await?;
    let fields = frame.schema().fields().iter();
    Ok(fields
        .map(|field| (field.name().clone(), field.data_type().clone()))
        .collect())
}

/// Registers `history` over versions.
async fn register_history(
    context: &SessionContext,
    versions: Arc<dyn TableProvider>,
    layout: &VersionsLayout,
    files: FileNumbers,
) -> Result<()> {
    context.register_udf(seq_function(files));
    context.register_table("versions", versions)?;
    let history = context.sql(&layout.history_sql()).await?;
    let history: Arc<dyn TableProvider> = match layout.packed {
        true => history.into_view(),
        false => Arc::new(Numbered::new(&history)?),
    };
    context.register_table("history", history)?;
    Ok(())
}

/// A history that is ordered by bytes: it is sorted, and its rows are numbered.
#[derive(Debug)]
struct Numbered {
    rows: LogicalPlan,
    order: Arc<Order>,
    schema: SchemaRef,
}

impl Numbered {
    fn new(history: &DataFrame) -> Result<Self> {
        let unsorted = Arc::clone(history.schema().inner());
        let by = [unsorted.index_of(ORDER_BYTES)?, unsorted.index_of(SEQ)?];
        let stored = (0..unsorted.fields().len()).filter(|column| !by.contains(column));
        let stored: Vec<usize> = stored.collect();
        let mut fields = unsorted.project(&stored)?.fields.to_vec();
        fields.push(Arc::new(Field::new(SEQ, PACKED_TYPE, false)));
        Ok(Numbered {
            rows: history.logical_plan().clone(),
            order: Arc::new(Order::new(unsorted, vec![], by.to_vec(), stored)?),
            schema: Arc::new(Schema::new(fields)),
        })
    }
}

#[async_trait]
impl TableProvider for Numbered {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let rows = Arc::new(NumberedRows {
            rows: state.create_physical_plan(&self.rows).await?,
            order: Arc::clone(&self.order),
            schema: Arc::clone(&self.schema),
        });
        let schema = Arc::clone(&self.schema);
        let plan = StreamingTableExec::try_new(schema, vec![rows], projection, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

#[derive(Debug)]
struct NumberedRows {
    rows: Arc<dyn ExecutionPlan>,
    order: Arc<Order>,
    schema: SchemaRef,
}

impl PartitionStream for NumberedRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, order) = (Arc::clone(&self.schema), Arc::clone(&self.order));
        let plan = Arc::clone(&self.rows);
        let mut numbered = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), 2);
        let sender = numbered.tx();
        numbered.spawn(async move {
            let mut sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
            let mut rows = execute_stream(plan, context)?;
            while let Some(batch) = rows.try_next().await? {
                sorter.push(&batch)?;
            }
            let sorted = Sorted::new(&order, vec![sorter]);
            let mut readers = Readers::new();
            let mut merge = sorted.rows("", &mut readers)?;
            let mut next = 0;
            while let Some(batch) = merge.next_batch()? {
                let end = next + batch.num_rows() as i128;
                let mut columns = batch.columns().to_vec();
                columns.push(packed_array((next..end).collect()));
                next = end;
                let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
                if sender.send(Ok(batch)).await.is_err() {
                    // Nobody wants the rest.
                    break;
                }
            }
            Ok(())
        });
        numbered.build()
    }
}

/// Computes one aggregate's days into staging and plans their replacement.
///
/// # Errors
/// Usage, when the query does not plan, or its result is not one row set per day.
pub async fn compute(
    context: &SessionContext,
    ledger: &Ledger,
    aggregate: &Aggregate,
    windows: &[Window],
    staging: &Folder,
    attempt: &str,
    commit: u64,
) -> Result<Computed> {
    let before: Vec<TableFile> = ledger.files(&aggregate.table()).cloned().collect();
    let days = days_to_compute(ledger, aggregate, windows);
    let mut staged = Vec::new();
    for (number, (first, last)) in ranges(&days).into_iter().enumerate() {
        let end = last
            .checked_add_days(Days::new(1))
            .unwrap_or(NaiveDate::MAX);
        let sorted = query(context, aggregate, first, end, &days).await?;
        let writer = TableWriter {
            staging: staging.clone(),
            prefix: format!("{attempt}/{}-{number}", aggregate.name),
            file_bytes: FILE_BYTES,
        };
        let written = writer.write(sorted, None, 1).await?;
        staged.extend(written.into_iter().flat_map(|written| written.files));
    }
    let folders: BTreeSet<String> = days
        .iter()
        .map(|day| partition_segment(&aggregate.day, Some(&day.to_string())))
        .collect();
    let is_replaced = |folder: &str| folders.contains(folder);
    let plan = publish::plan(staged, &before, is_replaced, commit, Names::Kept);
    Ok(Computed { plan, days })
}

/// The windows' days, those that changed since the table was last aggregated, and for a running
/// table all that were computed before, from the earliest of these on.
fn days_to_compute(
    ledger: &Ledger,
    aggregate: &Aggregate,
    windows: &[Window],
) -> BTreeSet<NaiveDate> {
    let last = ledger
        .runs
        .iter()
        .rposition(|run| run.tables.contains(&aggregate.table()));
    let since = ledger.runs.iter().skip(last.map_or(0, |last| last + 1));
    let changed: BTreeSet<NaiveDate> = since.flat_map(|run| run.days.iter().copied()).collect();
    let mut days: BTreeSet<NaiveDate> = windows.iter().flat_map(Window::days).collect();
    let table = aggregate.table();
    if aggregate.running
        && let Some(earliest) = changed.first()
    {
        let published = ledger.files(&table).filter_map(|file| {
            parse_partition_segment(parent(&file.path)).and_then(|(_, day)| day?.parse().ok())
        });
        // A day that came out empty is not published, and may not be empty any more.
        let computed = ledger.windows_aggregated(&table).into_iter();
        let computed = computed.flat_map(|window| window.days());
        let met = ledger.runs.iter().flat_map(|run| run.days.iter().copied());
        let all = published.chain(computed).chain(met);
        days.extend(all.filter(|day: &NaiveDate| day >= earliest));
    }
    days.extend(changed);
    days
}

/// Ranges of days, first and last, in which no gap is wide.
fn ranges(days: &BTreeSet<NaiveDate>) -> Vec<(NaiveDate, NaiveDate)> {
    let mut ranges: Vec<(NaiveDate, NaiveDate)> = Vec::new();
    for day in days {
        match ranges.last_mut() {
            Some((_, last)) if (*day - *last).num_days() <= GAP_DAYS_MAX => *last = *day,
            _ => ranges.push((*day, *day)),
        }
    }
    ranges
}

/// Plans every aggregate's query over tables of these shapes, without any rows, so that a query
/// that cannot work is refused before anything is published.
///
/// # Errors
/// Usage, when a query does not plan, or its day column is missing or no DATE.
pub async fn check(
    context: &SessionContext,
    pipeline: &Pipeline,
    layout: &VersionsLayout,
    columns: &[Field],
) -> Result<()> {
    let versions = EmptyTable::new(layout.schema());
    register_history(context, Arc::new(versions), layout, FileNumbers::default()).await?;
    let curated = EmptyTable::new(Arc::new(Schema::new(columns.to_vec())));
    context.register_table(CURATED, Arc::new(curated))?;
    for aggregate in &pipeline.aggregates {
        let (first, end) = (NaiveDate::default(), NaiveDate::default() + Days::new(1));
        let frame = planned(context, aggregate, first, end).await?;
        let refused = |error| refused(&aggregate.sql.file, &error);
        frame.create_physical_plan().await.map_err(refused)?;
    }
    Ok(())
}

/// Plans the query over `[first, end)`.
async fn planned(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
) -> Result<DataFrame> {
    let file = &aggregate.sql.file;
    let refused = |error| refused(file, &error);
    let date = |day: NaiveDate| ScalarValue::Date32(Some(Date32Type::from_naive_date(day)));
    let parameters = vec![("start_date", date(first)), ("end_date", date(end))];
    let frame = context.sql(&aggregate.sql.text).await.map_err(refused)?;
    let frame = frame.with_param_values(parameters).map_err(refused)?;
    let names: Vec<String> = frame
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    let day = frame
        .schema()
        .field_with_unqualified_name(&aggregate.day)
        .map_err(|_| {
            Error::usage(format!("{file} lacks the day column `{}`", aggregate.day)).hint(format!(
                "select it, or mend `aggregate.day`; its columns: {}",
                names.join(", ")
            ))
        })?;
    if *day.data_type() != DataType::Date32 {
        return Err(Error::usage(format!(
            "{file}: the day column `{}` is {}, not DATE",
            aggregate.day,
            day.data_type()
        ))
        .hint(format!("write CAST({} AS DATE)", aggregate.day)));
    }
    let columns = frame.schema().fields().iter().map(Arc::as_ref);
    check_columns(file, columns, std::slice::from_ref(&aggregate.day))?;
    Ok(frame)
}

fn refused(file: &str, error: &DataFusionError) -> Error {
    Error::usage(format!("{file} does not plan"))
        .hint("it reads `history` and `curated`, with $start_date and $end_date")
        .caused_by(first_line(error))
}

/// What the engine's repartitioning panics with, when what comes before it runs out of memory.
pub const STARVED: &str = "partition not used yet";

/// Runs the query over `[first, end)`; only its rows of `days` are kept.
async fn query(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
    days: &BTreeSet<NaiveDate>,
) -> Result<Sorted> {
    match try_query(context, aggregate, first, end, days).await {
        Err(error) if error.to_string().contains(STARVED) => {
            // One thread needs less memory than several, and repartitions nothing.
            info!("aggregate {}: again, by one thread", aggregate.name);
            let several = set_partitions(context, 1);
            let queried = try_query(context, aggregate, first, end, days).await;
            set_partitions(context, several);
            queried
        }
        queried => queried,
    }
}

/// Sets how many partitions plans have from now on; returns how many they had.
fn set_partitions(context: &SessionContext, partitions: usize) -> usize {
    let state = context.state_ref();
    let mut state = state.write();
    let execution = &mut state.config_mut().options_mut().execution;
    std::mem::replace(&mut execution.target_partitions, partitions)
}

async fn try_query(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
    days: &BTreeSet<NaiveDate>,
) -> Result<Sorted> {
    let file = &aggregate.sql.file;
    let frame = planned(context, aggregate, first, end).await?;
    let mut rows = frame
        .execute_stream()
        .await
        .map_err(|error| refused(file, &error))?;
    let schema = rows.schema();
    let at = schema.index_of(&aggregate.day)?;
    let stored = (0..schema.fields().len()).filter(|column| *column != at);
    let order = Order::new(Arc::clone(&schema), vec![at], vec![], stored.collect())?;
    let order = Arc::new(order);
    let mut sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
    let wanted: BTreeSet<i32> = days
        .iter()
        .map(|day| Date32Type::from_naive_date(*day))
        .collect();
    let span = Date32Type::from_naive_date(first)..Date32Type::from_naive_date(end);
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(|error| Error::query(file, error))?;
        let days = batch.column(at).as_primitive::<Date32Type>();
        if days
            .iter()
            .any(|day| day.is_none_or(|day| !span.contains(&day)))
        {
            let outside = format!("{file} returns a day outside of [$start_date, $end_date)");
            return Err(Error::usage(outside).hint("restrict its days to the parameters"));
        }
        let chosen: BooleanArray = days
            .values()
            .iter()
            .map(|day| Some(wanted.contains(day)))
            .collect();
        sorter.push(&filter_record_batch(&batch, &chosen)?)?;
    }
    Ok(Sorted::new(&order, vec![sorter]))
}

/// A schema's columns, as the ledger keeps them.
pub fn column_types(columns: &[Field]) -> Vec<(String, String)> {
    write_types(
        columns
            .iter()
            .map(|field| (field.name().as_str(), field.data_type())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_far_apart_are_computed_apart() {
        let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
        let days = ["2018-01-01", "2019-01-01", "2019-01-05", "2021-01-01"]
            .map(day)
            .into();
        assert_eq!(
            ranges(&days),
            [
                (day("2018-01-01"), day("2019-01-05")),
                (day("2021-01-01"), day("2021-01-01"))
            ]
        );
    }
}
