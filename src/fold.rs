//! The fold: reduces changes to the last one per key, and per key and day.
//! Pass one reads only key, order, operation and event time, and runs `sql/fold.sql` in DataFusion
//! with our own grouping ([`crate::fold::key_table`], which can spill). Its result is a bitmap with
//! two bits per raw row: one for the last change of a key and day, one for the last change of a
//! key. Pass two ([`crate::curate`]) then reads the payload of only these rows.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Date32Type, FieldRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::future::try_join_all;
use tracing::trace;

use crate::changes::Changes;
use crate::changes::pass_one::PassOne;
use crate::changes::position::Position;
use crate::changes::reader::ChangesTable;
use crate::changes::row_bitmap::{RowBitmap, Winners};
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

/// The result of pass one.
#[derive(Debug)]
pub(crate) struct Fold {
    /// The rows of the last changes.
    pub winners: Arc<Winners>,
    /// The counts of the read.
    pub pass_one: Arc<PassOne>,
    /// The number of keys; where every row is marked, of these.
    pub keys: u64,
    /// The number of pairs of key and day.
    pub key_days: u64,
    /// Last changes per key and day, by day (days since 1970).
    pub days: DayCounts,
    /// Ties: last changes per key decided only by file or row.
    pub ties: u64,
    /// Ties per key and day.
    pub day_ties: u64,
    /// The first tie per key, as file and row ordinal.
    pub tie: Option<(usize, usize)>,
    /// The first tie per key and day, as file and row ordinal.
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
    // Nearly every change is then the only one of its key and time: the merge, which sorts them all, finds those that
    // are not.
    let marks_all = changes.is_keyless() || pipeline.keep.keeps_changes();
    let folded = match (marks_all, changes.is_packed()) {
        (true, true) => every_row::<i128>(context, changes, partitions).await?,
        (true, false) => every_row::<Box<[u8]>>(context, changes, partitions).await?,
        (false, true) => fold_positions::<i128>(context, changes, partitions).await?,
        (false, false) => fold_positions::<Box<[u8]>>(context, changes, partitions).await?,
    };
    let tie = match pipeline.keep {
        Keep::LatestPerDay => folded.day_tie,
        Keep::Latest | Keep::LatestAndDeleted | Keep::LatestAltered | Keep::History => folded.tie,
    };
    match tie.filter(|_| pipeline.raw.on_tie == OnTie::Fail) {
        Some((file, ordinal)) => Err(tied(&changes.ordinal_name(file, ordinal))),
        None => Ok(folded),
    }
}

/// The error of a tie under `raw.on_tie = "fail"`; `row` names the change.
pub(crate) fn tied(row: &str) -> Error {
    Error::data(format!("{row} has the same order columns as another change of its key"))
        .hint("add a column that orders them to `raw.order_by`, or set raw.on_tie = \"row\"")
}

/// The error of a tie of a change and a truncate; `row` names one of them.
pub(crate) fn tied_with_truncate(row: &str) -> Error {
    Error::data(format!("{row}: a truncate and a change have the same order columns"))
        .hint("add a column that orders them to `raw.order_by`, or set raw.on_tie = \"row\"")
}

/// Marks every row: without a key, each row is a last change; of a history, it may be one.
async fn every_row<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<Fold> {
    let pass_one = changes.pass_one();
    let table = ChangesTable::pass_one(changes, &pass_one, partitions)?;
    let day = changes.fold_count();
    let plan = table.scan(&context.state(), None, &[], None).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let bitmap = Arc::new(RowBitmap::new(changes.ordinal_counts()));
    let tasks = streams.into_iter().map(|mut rows| {
        let bitmap = Arc::clone(&bitmap);
        spawn(async move {
            let mut counts = Counts::default();
            while let Some(batch) = rows.try_next().await? {
                let days = batch.column(day).as_primitive::<Date32Type>().iter();
                for (day, position) in days.zip(P::read(batch.column(day + 1))) {
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
    partitions: usize,
) -> Result<Fold> {
    let pass_one = changes.pass_one();
    let table = ChangesTable::pass_one(changes, &pass_one, partitions)?;
    let schema = table.schema();
    let keys = schema.fields().iter().take(changes.fold_count()).map(key_column);
    let sql = SQL.replace("{key}", &keys.collect::<Vec<_>>().join(", "));
    let context = fold_session(context);
    context.register_table("changes", Arc::new(table))?;
    let plan = context.sql(&sql).await?.create_physical_plan().await?;
    // Sessions share their tables, and `curated.sql` must not see this one.
    context.deregister_table("changes")?;

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

/// The session that plans [`SQL`]: with the function `last_changes` and the rule that plans its
/// node.
fn fold_session(context: &SessionContext) -> SessionContext {
    let state = context.state();
    let mut rules = state.physical_optimizers().to_vec();
    rules.insert(0, Arc::new(FoldRule));
    let state = SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules);
    let context = SessionContext::new_with_state(state.build());
    context.register_udaf(last_changes());
    context
}

/// Logs an executed plan, as `EXPLAIN ANALYZE` shows it.
fn log_plan(plan: &dyn ExecutionPlan) {
    if tracing::enabled!(tracing::Level::TRACE) {
        let text = DisplayableExecutionPlan::with_metrics(plan).indent(false).to_string();
        text.lines().for_each(|line| trace!("plan of pass one: {line}"));
    }
}

/// A key column in SQL. Adding zero turns the -0.0 of a floating-point column into 0.0: one key.
fn key_column(field: &FieldRef) -> String {
    match field.data_type() {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            format!("{} + 0.0", field.name())
        }
        _ => field.name().clone(),
    }
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
    /// Sums the counts of all threads, and adds the winners.
    fn sum(counted: Vec<Counts>, bitmap: Arc<RowBitmap>, pass_one: Arc<PassOne>) -> Result<Fold> {
        let bitmap = Arc::into_inner(bitmap)
            .ok_or_else(|| Error::internal("a task of the fold has not ended"))?;
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
            // The first tie, so that the message does not depend on the threads.
            fold.tie = fold.tie.into_iter().chain(counts.tie).min();
            fold.day_tie = fold.day_tie.into_iter().chain(counts.day_tie).min();
        }
        Ok(fold)
    }

    /// Marks the winners of a key.
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
                // The last changes of two days can tie as well.
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use chrono::DateTime;
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::engine::resources::Resources;
    use crate::engine::session::{BATCH_ROWS, runtime, session};
    use crate::engine::spill::SpillFolder;
    use crate::raw::bad_rows::BadRows;
    use crate::raw::discover::discover_all;
    use crate::raw::open::Opening;
    use crate::raw::schema_changes::KnownColumns;
    use crate::store::Stores;

    const PIPELINE: &str = r#"
name = "twice"
key = ["id"]
[raw]
url = "raw"
order_by = ["ts"]
on_bad_row = "quarantine"
[curated]
url = "lake"
"#;

    /// A file whose fourth row is bad.
    fn write_raw(folder: &Path) {
        let ids = Int64Array::from(vec![1, 2, 1, 3, 2]);
        let times = ["01", "02", "03", "04", "05"].map(|day| format!("2020-01-{day} 00:00:00"));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("Op", Arc::new(StringArray::from(vec!["I", "I", "U", "X", "D"]))),
            ("id", Arc::new(ids)),
            ("ts", Arc::new(StringArray::from(times.to_vec()))),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("a batch");
        let file = std::fs::File::create(folder.join("20200101-000000000.parquet"));
        let mut writer =
            ArrowWriter::try_new(file.expect("a file"), batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("closed");
    }

    #[tokio::test]
    async fn a_relation_that_is_scanned_twice_counts_each_scan_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("raw")).expect("a folder");
        write_raw(&folder.path().join("raw"));
        std::fs::write(folder.path().join("pipeline.toml"), PIPELINE).expect("written");
        std::fs::write(folder.path().join("curated.sql"), "SELECT id FROM latest")
            .expect("written");
        let pipeline = Pipeline::read(folder.path(), &[]).expect("a pipeline");
        let resources = Resources {
            memory_bytes: 200_000_000,
            spill_dir: folder.path().join("spill"),
            spill_bytes_max: u64::MAX,
            threads: 2,
        };
        let spill = SpillFolder::create(&resources.spill_dir, "run").expect("a folder");
        let runtime = runtime(&resources, &spill).expect("a runtime");
        let raw = [Stores::default().open(&pipeline.raw.urls[0]).expect("a folder")];
        let inputs = discover_all(&raw, &pipeline.raw).await.expect("inputs");
        let bad_rows = Arc::new(BadRows::new(10));
        let opening = Opening::new(&raw, &pipeline.raw, &resources, &runtime, &bad_rows);
        let known = KnownColumns::default();
        let opened = Changes::open(inputs, opening, &pipeline, &known, BATCH_ROWS).await;
        let changes = Arc::new(opened.expect("opened").0);
        let context = session(&runtime, 2);
        for scan in ["first", "second"] {
            let folded = fold(&context, &changes, &pipeline, 2).await.expect("folded");
            let counts = &folded.pass_one;
            assert_eq!((folded.keys, folded.key_days), (2, 4), "{scan}");
            assert_eq!((counts.rows_folded(), counts.bad_rows().count()), (4, 1), "{scan}");
            assert_eq!(counts.rows_outside(), 0, "{scan}");
            let newest = DateTime::parse_from_rfc3339("2020-01-05T00:00:00Z").expect("a time");
            assert_eq!(counts.newest_commit_time(), Some(newest.to_utc()), "{scan}");
        }
    }
}
