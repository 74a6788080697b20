//! The fold: reduce changes to the last one per key, and per key and day.
//!
//! Pass one reads key, order, operation and event time only, runs `sql/fold.sql` in DataFusion
//! (which spills when it must), and keeps of each last change nothing but its place: one bit per
//! raw row for the last change of a key and day, one for the last change of a key. Pass two
//! ([`crate::curate`]) then reads the payload of just these rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, BinaryArray};
use arrow::datatypes::DataType;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::future::try_join_all;

use crate::change_reader::ChangesTable;
use crate::changes::Changes;
use crate::error::{Error, Result};
use crate::last_changes::{entries, keep_later, last_changes};
use crate::position::Position;
use crate::session::join;
use crate::versions_writer::DayCounts;
use crate::winners::{Marks, Winners};

const SQL: &str = include_str!("../sql/fold.sql");

/// What pass one found.
#[derive(Debug)]
pub struct Fold {
    /// Where the last changes are.
    pub winners: Arc<Winners>,
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
}

/// Runs pass one.
///
/// # Errors
/// Data, for a row that cannot be folded; usage, when the memory limit is too small.
pub async fn fold(
    context: &SessionContext,
    changes: &Arc<Changes>,
    key: &[String],
    partitions: usize,
) -> Result<Fold> {
    if changes.is_packed() {
        fold_positions::<i128>(context, changes, key, partitions).await
    } else {
        fold_positions::<Box<[u8]>>(context, changes, key, partitions).await
    }
}

async fn fold_positions<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    key: &[String],
    partitions: usize,
) -> Result<Fold> {
    context.register_udaf(last_changes::<P>());
    context.deregister_table("changes")?;
    context.register_table(
        "changes",
        Arc::new(ChangesTable::new(changes, None, partitions)),
    )?;
    let key_columns = key
        .iter()
        .map(|name| key_column(changes, name))
        .collect::<Result<Vec<_>>>()?;
    let sql = SQL.replace("{key}", &key_columns.join(", "));
    let plan = context.sql(&sql).await?.create_physical_plan().await?;
    let shared = Arc::new((Marks::new(changes.row_counts()), Counts::default()));
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let tasks = streams.into_iter().map(|mut lists| {
        let shared = Arc::clone(&shared);
        join(tokio::spawn(async move {
            let mut days = DayCounts::default();
            while let Some(batch) = lists.try_next().await? {
                let (marks, counts) = &*shared;
                mark::<P>(batch.column(0).as_binary(), marks, counts, &mut days);
            }
            Ok(days)
        }))
    });
    let mut days = DayCounts::default();
    for counted in try_join_all(tasks).await? {
        days.add_all(&counted);
    }
    context.deregister_table("changes")?;

    let (marks, counts) =
        Arc::into_inner(shared).ok_or_else(|| Error::internal("the fold did not end"))?;
    Ok(Fold {
        winners: Arc::new(marks.finish()),
        keys: counts.keys.into_inner(),
        key_days: counts.key_days.into_inner(),
        days,
        ties: counts.ties.into_inner(),
        day_ties: counts.day_ties.into_inner(),
    })
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
    keys: AtomicU64,
    key_days: AtomicU64,
    ties: AtomicU64,
    day_ties: AtomicU64,
}

/// Marks the winners of a batch of keys.
fn mark<P: Position>(keys: &BinaryArray, marks: &Marks, counts: &Counts, days: &mut DayCounts) {
    let (mut key_days, mut ties, mut day_ties) = (0, 0, 0);
    for key in keys.iter().flatten() {
        let mut last: Option<P> = None;
        for (day, position) in entries::<P>(key) {
            days.add(day, 1);
            let (file, row) = position.file_and_row();
            marks.mark_day(file, row);
            key_days += 1;
            day_ties += u64::from(position.is_tied());
            match &mut last {
                None => last = Some(position),
                // Two days' last changes can tie as well.
                Some(last) => keep_later(last, position),
            }
        }
        if let Some(last) = last {
            let (file, row) = last.file_and_row();
            marks.mark_latest(file, row);
            ties += u64::from(last.is_tied());
        }
    }
    counts.keys.fetch_add(keys.len() as u64, Ordering::Relaxed);
    counts.key_days.fetch_add(key_days, Ordering::Relaxed);
    counts.ties.fetch_add(ties, Ordering::Relaxed);
    counts.day_ties.fetch_add(day_ties, Ordering::Relaxed);
}
