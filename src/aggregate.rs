//! Aggregates: tables per day, computed by SQL and replaced per day.
//!
//! A run recomputes the window's days and every day that changed since the table was last
//! aggregated. For a running table, where a day depends on all days before it, a run also recomputes
//! every day that was computed before, from the earliest changed day on. The queries read three
//! relations:
//!
//! | relation | columns |
//! |---|---|
//! | `history` | key columns, `event_dt`, partition columns, `deleted`, `seq`; see `sql/history.sql` |
//! | `balance` | `event_dt`, partition columns, `entered`, `exited`; see [`crate::state::balance`] |
//! | `curated` | the columns of the curated table, from the committed file list |
//!
//! and two parameters: `$start_date` and `$end_date` (DATE; the end is exclusive).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use chrono::{Days, NaiveDate};
use datafusion::datasource::empty::EmptyTable;
use datafusion::prelude::SessionContext;
use tracing::info;

use crate::aggregate::days::{days_to_compute, ranges};
pub use crate::aggregate::history::HistoryOrder;
use crate::aggregate::history::{has_seq, reads_ended, register_balance, register_history};
use crate::aggregate::placed_floors::Day;
use crate::aggregate::query::{planned, query, refused};
use crate::changes::file_order::FileNumbers;
use crate::config::{Aggregate, Pipeline};
use crate::error::Result;
use crate::layout::{FileOrder, partition_segment};
use crate::publish::{self, FileNames, PartitionFiles, Plan};
use crate::state::contract::read_types;
use crate::state::floors::Floor;
use crate::state::inputs::Inputs;
use crate::state::ledger::{CURATED, HISTORY, Ledger};
use crate::state::versions::VersionsLayout;
use crate::state::{State, table_of};
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::files::{FileTable, PartitionFile};
use crate::table::writer::TableWriter;
use crate::window::WindowSet;

mod days;
mod floors;
mod history;
mod placed_floors;
mod query;

/// The size at which a day's next file begins; days are small, so that each has one file.
const FILE_BYTES: u64 = 256 << 20;

/// The computed days of one aggregate.
#[derive(Debug)]
pub struct Computed {
    /// The changes to be published.
    pub plan: Plan,
    /// The days that were computed.
    pub days: BTreeSet<NaiveDate>,
}

impl Computed {
    /// Logs the days and rows that were computed.
    pub fn log(&self, aggregate: &Aggregate, windows: &WindowSet) {
        let shown = |day: Option<&NaiveDate>| day.map(NaiveDate::to_string).unwrap_or_default();
        info!(
            "aggregate {}: {}, qualifying dates {} ({} to {}), rows deleted {}, rows inserted {}",
            aggregate.name,
            match (windows.len(), windows.span()) {
                (_, None) => "days that changed".into(),
                (1, Some(window)) => format!("window {window}"),
                (gaps, _) => format!("{gaps} gaps"),
            },
            self.days.len(),
            shown(self.days.first()),
            shown(self.days.last()),
            self.plan.counts.rows_removed,
            self.plan.counts.rows_written
        );
    }
}

/// Registers `history` and `curated` as last committed, and `balance` over its files, given by path
/// and size. Returns whether anything is committed. Queries can read `seq`, and what floors ended, if
/// all inputs of the ledger were read.
///
/// # Errors
/// Internal, when the ledger cannot be read.
pub async fn register(
    context: &SessionContext,
    state: &State,
    pipeline: &Pipeline,
    curated: &Folder,
    balance: &[(String, u64)],
) -> Result<bool> {
    let ledger = &state.ledger;
    let (Some((versions, layout)), Some(record)) = (state.versions()?, &ledger.contract) else {
        return Ok(false);
    };
    let balance = table_of(state.folder(), balance, layout.balance_schema())?;
    let order = HistoryOrder {
        files: numbers(&ledger.inputs),
        order: pipeline.raw.file_order(),
        floors: ledger.all_floors(),
    };
    let columns = read_types(&record.columns)?;
    let files = ledger.files(CURATED).map(PartitionFile::of);
    let partition_by = &pipeline.curated.partition_by;
    let table = FileTable::of_partitions(curated, files, &columns, partition_by)?;
    register_tables(context, (versions, balance), &layout, order, table).await?;
    Ok(true)
}

/// Registers `history` over versions, `balance` over its files, and `curated`.
///
/// # Errors
/// Those of the engine.
pub async fn register_tables(
    context: &SessionContext,
    (versions, balance): (FileTable, FileTable),
    layout: &VersionsLayout,
    order: HistoryOrder,
    curated: FileTable,
) -> Result<()> {
    register_history(context, Arc::new(versions), layout, order).await?;
    register_balance(context, Arc::new(balance), layout).await?;
    context.register_table(CURATED, Arc::new(curated))?;
    Ok(())
}

/// The numbers of inputs.
pub fn numbers(inputs: &Inputs) -> FileNumbers {
    let numbers = FileNumbers::default();
    for input in inputs.iter() {
        numbers.number(input.location, &input.path);
    }
    numbers
}

/// The columns of an aggregate: name and type.
///
/// # Errors
/// Usage, when its query cannot be planned.
pub async fn columns(
    context: &SessionContext,
    aggregate: &Aggregate,
) -> Result<Vec<(String, DataType)>> {
    let (first, end) = (NaiveDate::default(), NaiveDate::default() + Days::new(1));
    let frame = planned(context, aggregate, first, end).await?;
    let fields = frame.schema().fields().iter();
    Ok(fields.map(|field| (field.name().clone(), field.data_type().clone())).collect())
}

/// The columns of each aggregate of a pipeline, planned over empty tables with these columns.
///
/// # Errors
/// As [`columns`].
pub async fn columns_of_all(
    context: &SessionContext,
    pipeline: &Pipeline,
    layout: &VersionsLayout,
    curated: &[Field],
) -> Result<Vec<Vec<(String, DataType)>>> {
    register_empty(context, layout, curated, Vec::new()).await?;
    let mut all = Vec::new();
    for aggregate in &pipeline.aggregates {
        all.push(columns(context, aggregate).await?);
    }
    Ok(all)
}

/// Computes one aggregate's days into staging and plans their replacement.
///
/// # Errors
/// Usage, when the query cannot be planned, or returns a day outside of its parameters.
pub async fn compute(
    context: &SessionContext,
    ledger: &Ledger,
    aggregate: &Aggregate,
    windows: &WindowSet,
    staging: &Folder,
    attempt: &str,
    commit: u64,
) -> Result<Computed> {
    let before: Vec<TableFile> = ledger.files(&aggregate.table()).cloned().collect();
    let days = days_to_compute(ledger, aggregate, windows);
    let mut staged = Vec::new();
    for (number, (first, end)) in ranges(&days).into_iter().enumerate() {
        let sorted = query(context, aggregate, first, end, &days).await?;
        let writer = TableWriter {
            staging: staging.clone(),
            prefix: format!("{attempt}/{}-{number}", aggregate.name),
            file_bytes: FILE_BYTES,
        };
        let written = writer.write(sorted, None, 1).await?;
        staged.extend(written.into_iter().flat_map(|written| written.files));
    }
    let folders: BTreeSet<String> =
        days.iter().map(|day| partition_segment(&aggregate.day, Some(&day.to_string()))).collect();
    let is_replaced = |folder: &str| folders.contains(folder);
    let files = PartitionFiles { staged: &staged, kept: &[] };
    let plan = publish::plan(files, &before, is_replaced, commit, FileNames::Reused);
    Ok(Computed { plan, days })
}

/// Plans every aggregate's query over empty tables with these columns, so that a query that cannot
/// work is refused before anything is published.
///
/// # Errors
/// Usage, when a query cannot be planned, or its day column is missing or not a DATE.
pub async fn check(
    context: &SessionContext,
    pipeline: &Pipeline,
    layout: &VersionsLayout,
    columns: &[Field],
) -> Result<()> {
    register_empty(context, layout, columns, Vec::new()).await?;
    for aggregate in &pipeline.aggregates {
        let (first, end) = (NaiveDate::default(), NaiveDate::default() + Days::new(1));
        let frame = planned(context, aggregate, first, end).await?;
        let refused = |error| refused(&aggregate.sql.file, &error);
        frame.create_physical_plan().await.map_err(refused)?;
    }
    Ok(())
}

/// Whether an aggregate's query needs the order of all inputs: it reads `seq`, for any dates, or what
/// floors ended, for the days of the windows and those that changed, or the history of a table whose rows end.
///
/// # Errors
/// Usage, when a query cannot be planned.
pub async fn needs_all_inputs(
    context: &SessionContext,
    ledger: &Ledger,
    pipeline: &Pipeline,
    windows: &WindowSet,
    layout: &VersionsLayout,
    columns: &[Field],
) -> Result<bool> {
    register_empty(context, layout, columns, ledger.all_floors()).await?;
    let floor_days: BTreeSet<Day> = ledger.floors.iter().map(|(floor, _)| floor.day).collect();
    for aggregate in &pipeline.aggregates {
        let refused = |error| refused(&aggregate.sql.file, &error);
        // Which version is the last of a day is decided by the order.
        if layout.has_instants && aggregate.sql.reads(HISTORY) {
            return Ok(true);
        }
        // What is read can depend on the dates: without them no branch is left out.
        let any_dates = context.sql(&aggregate.sql.text).await.map_err(refused)?;
        if any_dates.into_optimized_plan().map_or(Ok(true), |plan| has_seq(&plan))? {
            return Ok(true);
        }
        if floor_days.is_empty() {
            continue;
        }
        for (first, end) in ranges(&days_to_compute(ledger, aggregate, windows)) {
            let of_days = planned(context, aggregate, first, end).await?;
            let plan = of_days.into_optimized_plan().map_err(refused)?;
            if reads_ended(&context.state(), &plan, &floor_days)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Registers the relations without rows.
async fn register_empty(
    context: &SessionContext,
    layout: &VersionsLayout,
    columns: &[Field],
    floors: Vec<Floor>,
) -> Result<()> {
    let versions = EmptyTable::new(layout.schema());
    let order = HistoryOrder { files: FileNumbers::default(), order: FileOrder::Name, floors };
    register_history(context, Arc::new(versions), layout, order).await?;
    let balance = EmptyTable::new(layout.balance_schema());
    register_balance(context, Arc::new(balance), layout).await?;
    let curated = EmptyTable::new(Arc::new(Schema::new(columns.to_vec())));
    context.register_table(CURATED, Arc::new(curated))?;
    Ok(())
}
