//! The fold: reduce changes to the last one per key, and per key and day.
//!
//! Pass one reads key, order, operation and event time only, runs `sql/fold.sql` in DataFusion
//! with our own grouping ([`crate::fold::key_table`], which spills when it must), and keeps of each last
//! change nothing but its place: one bit per raw row for the last change of a key and day, one for
//! the last change of a key. Pass two ([`crate::curate`]) then reads the payload of just these
//! rows.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Date32Type};
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::future::try_join_all;
use tracing::trace;

use crate::changes::pass_one::PassOne;
use crate::changes::position::Position;
use crate::changes::reader::ChangesTable;
use crate::changes::row_bitmap::{RowBitmap, Winners};
use crate::changes::{Changes, EVENT_DT, POSITION};
use crate::config::{Keep, OnTie, Pipeline};
use crate::engine::tasks::spawn;
use crate::error::{Error, Result};
use crate::fold::exec::FoldRule;
use crate::fold::key_table::keep_later;
use crate::fold::last_changes::{Keys, last_changes};
use crate::types::day_counts::DayCounts;

mod exec;
mod key_table;
mod last_changes;

const SQL: &str = include_str!("../sql/fold.sql");

/// What pass one found.
#[derive(Debug)]
pub(crate) struct Fold {
    /// Where the last changes are.
    pub winners: Arc<Winners>,
    /// What was counted while reading.
    pub pass_one: Arc<PassOne>,
    /// How many keys there are.
    pub keys: u64,
    /// How many keys and days there are.
    pub key_days: u64,
    /// Last changes per key and day, by day (days since 1970).
    pub days: DayCounts,
    /// Last changes per key that only file or row decided.
    pub ties: u64,
    /// Last changes per key and day that only file or row decided.
    pub day_ties: u64,
    /// One of the last changes per key that only file or row decided.
    pub tie: Option<(usize, usize)>,
    /// One of those per key and day.
    pub day_tie: Option<(usize, usize)>,
}

/// Runs pass one.
///
/// # Errors
/// Data, for a row that cannot be folded; usage, when the memory limit is too small.
pub(crate) async fn fold(
    context: &SessionContext,
    changes: &Arc<Changes>,
    pipeline: &Pipeline,
    partitions: usize,
) -> Result<Fold> {
    let key = &pipeline.key;
    let folded = match (changes.is_keyless(), changes.is_packed()) {
        (true, true) => every_row::<i128>(context, changes, partitions).await?,
        (true, false) => every_row::<Box<[u8]>>(context, changes, partitions).await?,
        (false, true) => fold_positions::<i128>(context, changes, key, partitions).await?,
        (false, false) => fold_positions::<Box<[u8]>>(context, changes, key, partitions).await?,
    };
    let tie = match pipeline.keep {
        Keep::Latest => folded.tie,
        Keep::LatestPerDay => folded.day_tie,
    };
    match tie.filter(|_| pipeline.raw.on_tie == OnTie::Fail) {
        Some((file, place)) => Err(tied(&changes.ordinal_name(file, place))),
        None => Ok(folded),
    }
}

/// Two changes of a key between which only file and row decide, where that is not enough.
pub(crate) fn tied(place: &str) -> Error {
    Error::data(format!(
        "{place} has the same order columns as another change of its key"
    ))
    .hint("add a column to `raw.order_by` that tells them apart, or write raw.on_tie = \"row\"")
}

/// Of a table without a key every row is a last change.
async fn every_row<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<Fold> {
    let pass_one = changes.pass_one();
    let table = ChangesTable::pass_one(changes, &pass_one, partitions);
    let schema = table.schema();
    let columns = vec![schema.index_of(EVENT_DT)?, schema.index_of(POSITION)?];
    let state = context.state();
    let plan = table.scan(&state, Some(&columns), &[], None).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let bitmap = Arc::new(RowBitmap::new(changes.ordinal_counts()));
    let tasks = streams.into_iter().map(|mut rows| {
        let bitmap = Arc::clone(&bitmap);
        spawn(async move {
            let mut counts = Counts::default();
            while let Some(batch) = rows.try_next().await? {
                let days = batch.column(0).as_primitive::<Date32Type>().iter();
                for (day, position) in days.zip(P::read(batch.column(1))) {
                    counts.mark(std::iter::once((day, &position)), &bitmap);
                }
            }
            Ok(counts)
        })
    });
    let counts = try_join_all(tasks).await?;
    Counts::sum(counts, bitmap, pass_one)
}

async fn fold_positions<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    key: &[String],
    partitions: usize,
) -> Result<Fold> {
    let pass_one = changes.pass_one();
    let table = ChangesTable::pass_one(changes, &pass_one, partitions);
    let context = fold_session(context);
    context.register_table("changes", Arc::new(table))?;
    let key_columns = key
        .iter()
        .map(|name| key_column(changes, name))
        .collect::<Result<Vec<_>>>()?;
    let sql = SQL.replace("{key}", &key_columns.join(", "));
    let plan = context.sql(&sql).await?.create_physical_plan().await?;

    let bitmap = Arc::new(RowBitmap::new(changes.ordinal_counts()));
    let streams = execute_stream_partitioned(Arc::clone(&plan), context.task_ctx())?;
    let tasks = streams.into_iter().map(|mut rows| {
        let bitmap = Arc::clone(&bitmap);
        spawn(async move {
            let mut counts = Counts::default();
            while let Some(batch) = rows.try_next().await? {
                let keys = Keys::<P>::read(batch.column(0));
                keys.iter().for_each(|key| counts.mark(key, &bitmap));
            }
            Ok(counts)
        })
    });
    let counts = try_join_all(tasks).await?;
    log_plan(plan.as_ref());
    Counts::sum(counts, bitmap, pass_one)
}

/// The session in which [`SQL`] is planned: with the function `last_changes` and the node that
/// computes it.
fn fold_session(context: &SessionContext) -> SessionContext {
    let state = context.state();
    let mut rules = state.physical_optimizers().to_vec();
    rules.insert(0, Arc::new(FoldRule));
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules);
    let context = SessionContext::new_with_state(state.build());
    context.register_udaf(last_changes());
    context
}

/// Logs a plan that was executed, as `EXPLAIN ANALYZE` shows it.
fn log_plan(plan: &dyn ExecutionPlan) {
    if tracing::enabled!(tracing::Level::TRACE) {
        let shown = DisplayableExecutionPlan::with_metrics(plan)
            .indent(false)
            .to_string();
        shown
            .lines()
            .for_each(|line| trace!("plan of pass one: {line}"));
    }
}

/// A key column in SQL. Adding zero makes one key of the two zeros of a floating-point column.
fn key_column(changes: &Changes, name: &str) -> Result<String> {
    let schema = changes.raw_schema();
    let column = changes
        .raw_column(name)
        .ok_or_else(|| Error::internal(format!("key column `{name}` was lost")))?;
    let field = schema.field(column);
    let quoted = format!("\"{}\"", field.name().replace('"', "\"\""));
    Ok(match field.data_type() {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => format!("{quoted} + 0.0"),
        _ => quoted,
    })
}

#[derive(Debug, Default)]
struct Counts {
    keys: u64,
    key_days: u64,
    ties: u64,
    day_ties: u64,
    days: DayCounts,
    tie: Option<(usize, usize)>,
    day_tie: Option<(usize, usize)>,
}

impl Counts {
    /// The sum of what all threads counted, with the winners.
    fn sum(counted: Vec<Counts>, bitmap: Arc<RowBitmap>, pass_one: Arc<PassOne>) -> Result<Fold> {
        let bitmap =
            Arc::into_inner(bitmap).ok_or_else(|| Error::internal("the fold did not end"))?;
        let mut fold = Fold {
            winners: Arc::new(bitmap.finish()),
            pass_one,
            keys: 0,
            key_days: 0,
            days: DayCounts::default(),
            ties: 0,
            day_ties: 0,
            tie: None,
            day_tie: None,
        };
        for counts in counted {
            fold.keys += counts.keys;
            fold.key_days += counts.key_days;
            fold.ties += counts.ties;
            fold.day_ties += counts.day_ties;
            fold.days.add_all(&counts.days);
            // The first one, so that the message does not depend on the threads.
            fold.tie = fold.tie.into_iter().chain(counts.tie).min();
            fold.day_tie = fold.day_tie.into_iter().chain(counts.day_tie).min();
        }
        Ok(fold)
    }

    /// RowBitmap the winners of a key.
    fn mark<'a, P: Position>(
        &mut self,
        key: impl Iterator<Item = (Option<i32>, &'a P)>,
        bitmap: &RowBitmap,
    ) {
        let mut last: Option<P> = None;
        for (day, position) in key {
            self.days.add(day, 1);
            let (file, row) = position.file_and_row();
            bitmap.set_day(file, row);
            self.key_days += 1;
            if position.is_tied() {
                self.day_ties += 1;
                self.day_tie = self.day_tie.into_iter().chain([(file, row)]).min();
            }
            match &mut last {
                None => last = Some(position.clone()),
                // Two days' last changes can tie as well.
                Some(last) => keep_later(last, position.clone()),
            }
        }
        if let Some(last) = last {
            let (file, row) = last.file_and_row();
            bitmap.set_latest(file, row);
            if last.is_tied() {
                self.ties += 1;
                self.tie = self.tie.into_iter().chain([(file, row)]).min();
            }
        }
        self.keys += 1;
    }
}
