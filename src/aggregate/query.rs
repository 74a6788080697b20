//! Runs an aggregate's query over a range of days.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Date32Type};
use chrono::NaiveDate;
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::stream::StreamExt;
use tracing::info;

use crate::config::Aggregate;
use crate::engine::session::first_line;
use crate::error::library_texts::OUT_OF_MEMORY_PANIC;
use crate::error::{Error, Result, find_ours};
use crate::table::sorter::{Order, Sorted, Sorter};
use crate::table::writer::check_columns;

/// Plans the query over `[first, end)`.
pub(super) async fn planned(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
) -> Result<DataFrame> {
    let file = &aggregate.sql.file;
    let refused = |error| refused(file, &error);
    let date = |day: NaiveDate| ScalarValue::Date32(Some(Date32Type::from_naive_date(day)));
    let parameters = vec![("start_date", date(first)), ("end_date", date(end))];
    let frame = context
        .sql(&aggregate.sql.text)
        .await
        .map_err(refused)?
        .with_param_values(parameters)
        .map_err(refused)?;
    let names: Vec<String> =
        frame.schema().fields().iter().map(|field| field.name().clone()).collect();
    let day = frame.schema().field_with_unqualified_name(&aggregate.day).map_err(|_| {
        Error::usage(format!("{file} lacks the day column `{}`", aggregate.day)).hint(format!(
            "select it, or correct `aggregate.day`; columns of the query: {}",
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

/// The error for a query that cannot be planned.
pub(super) fn refused(file: &str, error: &DataFusionError) -> Error {
    // A file of the table that cannot be read is no fault of the query.
    if let Some(ours) = find_ours(error) {
        return ours;
    }
    Error::usage(format!("cannot plan {file}"))
        .hint("the query can read `history`, `balance` and `curated`, and use $start_date and $end_date")
        .caused_by(first_line(error))
}

/// Runs the query over `[first, end)` and returns its rows of `days`.
pub(super) async fn query(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
    days: &BTreeSet<NaiveDate>,
) -> Result<Sorted> {
    let reserved = context.runtime_env().memory_pool.reserved();
    match try_query(context, aggregate, first, end, days).await {
        Err(error)
            if error.is_out_of_memory() || error.to_string().contains(OUT_OF_MEMORY_PANIC) =>
        {
            // One thread needs less memory than several, and repartitions nothing.
            info!("aggregate {}: out of memory, retrying with one thread", aggregate.name);
            freed(context.runtime_env().memory_pool.as_ref(), reserved).await;
            let several = set_partitions(context, 1);
            let queried = try_query(context, aggregate, first, end, days).await;
            set_partitions(context, several);
            queried
        }
        queried => queried,
    }
}

/// Waits until no more than `reserved` bytes of a pool are reserved: the tasks of a query that failed
/// end, and free what they hold, a moment after it.
async fn freed(pool: &dyn MemoryPool, reserved: usize) {
    const INTERVAL: Duration = Duration::from_millis(10);
    let mut intervals_left = 1_000;
    while pool.reserved() > reserved && intervals_left > 0 {
        tokio::time::sleep(INTERVAL).await;
        intervals_left -= 1;
    }
}

/// Sets the number of partitions of plans from now on; returns the number before.
pub(super) fn set_partitions(context: &SessionContext, partitions: usize) -> usize {
    let shared = context.state_ref();
    let mut state = shared.write();
    let execution = &mut state.config_mut().options_mut().execution;
    std::mem::replace(&mut execution.target_partitions, partitions)
}

pub(super) async fn try_query(
    context: &SessionContext,
    aggregate: &Aggregate,
    first: NaiveDate,
    end: NaiveDate,
    days: &BTreeSet<NaiveDate>,
) -> Result<Sorted> {
    let file = &aggregate.sql.file;
    let frame = planned(context, aggregate, first, end).await?;
    let mut rows = frame.execute_stream().await.map_err(|error| refused(file, &error))?;
    let schema = rows.schema();
    let at = schema.index_of(&aggregate.day)?;
    let stored = (0..schema.fields().len()).filter(|column| *column != at);
    let order = Arc::new(Order::new(Arc::clone(&schema), vec![at], vec![], stored.collect())?);
    let mut sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
    let wanted: BTreeSet<i32> = days.iter().map(|day| Date32Type::from_naive_date(*day)).collect();
    let span = Date32Type::from_naive_date(first)..Date32Type::from_naive_date(end);
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(|error| Error::query(file, error))?;
        let days = batch.column(at).as_primitive::<Date32Type>();
        if days.iter().any(|day| day.is_none_or(|day| !span.contains(&day))) {
            let outside = format!("{file} returns a day outside of [$start_date, $end_date)");
            return Err(
                Error::usage(outside).hint("filter its days: >= $start_date and < $end_date")
            );
        }
        let chosen: BooleanArray =
            days.values().iter().map(|day| Some(wanted.contains(day))).collect();
        sorter.push(&filter_record_batch(&batch, &chosen)?)?;
    }
    Sorted::new(&order, vec![sorter])
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::MemoryConsumer;

    use super::*;
    use crate::engine::memory_pool::FloorPool;

    #[tokio::test]
    async fn what_a_failed_query_holds_is_waited_for() {
        let pool: Arc<dyn MemoryPool> = Arc::new(FloorPool::new(1_000));
        let kept = MemoryConsumer::new("the run's").register(&pool);
        kept.grow(100);
        let ending = MemoryConsumer::new("a task that ends").register(&pool);
        ending.grow(900);
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(ending);
        });
        freed(pool.as_ref(), 100).await;
        assert_eq!(pool.reserved(), 100);
        task.await.expect("a task that ended");
    }
}
