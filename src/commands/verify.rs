//! Verifies the curated table and the aggregates against raw, or the curated table against another
//! table or one of a database. Changes nothing, unless a source is to be captured and folded before.
//! All inputs that were folded so far are refolded from empty into the spill folder; then both
//! tables are read, and their counts and hashes compared by partition. The rows of the first
//! partition that differs are joined by key, to name the first key that differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Date32Type};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, ident, lit, try_cast};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use tracing::{info, warn};

use crate::changes::EVENT_DT;
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{OpenPipeline, RunContext, date, span_of};
use crate::config::{Format, Keep, Pipeline, Source};
use crate::engine::session::sorting_session;
use crate::error::{Error, Result};
use crate::layout::{parent, partition_values};
use crate::raw::columns::find_column;
use crate::state::State;
use crate::state::balance::BALANCE;
use crate::state::contract::read_types;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{CURATED, Step};
use crate::store::Folder;
use crate::store::listing::sizes;
use crate::table::digest::{Digest, DigestColumns, Digests, digest};
use crate::table::files::{FileTable, register_store};
use crate::window::Window;

#[cfg(feature = "postgres")]
use database::against_database;
use files::Files;
use from_empty::{Refolded, refold, refolded_side};
use keys::Keys;
use other_table::other_table;

mod aggregates;
mod answer;
#[cfg(feature = "postgres")]
mod at_position;
#[cfg(feature = "postgres")]
mod buckets;
#[cfg(feature = "postgres")]
mod database;
mod files;
mod from_empty;
mod keys;
mod other_table;

/// The options of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Compare only these days.
    pub days: Option<Window>,
    /// Compare with this table, a path or URL, instead of raw; `postgres` is the table of `[verify]`.
    pub against: Option<String>,
    /// Compare with a database again after this time, if keys differ.
    pub lag: Option<Duration>,
    /// Capture this source up to a snapshot, run the pipeline, and compare with that snapshot; with the ids of
    /// two runs.
    pub source: Option<(Source, [String; 2])>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// The pipeline's name.
    pub pipeline: String,
    /// What the table was compared with: `raw`, or the other table.
    pub against: String,
    /// The days that were compared; `None` for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<Window>,
    /// Whether no difference was found.
    pub is_equal: bool,
    /// Inputs that were refolded.
    pub files: u64,
    /// Rows in them.
    pub rows_read: u64,
    /// Rows that the table should have: those of the refold, or of the other table.
    pub rows_expected: u64,
    /// Rows that the table has.
    pub rows_found: u64,
    /// Partitions that were compared.
    pub partitions: u64,
    /// Partitions that differ, sorted.
    pub partitions_different: Vec<PartitionDifference>,
    /// Days that differ in the number of rows.
    pub days_different: Vec<DayDifference>,
    /// Days that differ between state and raw in the number of keys.
    pub state_days_different: Vec<DayDifference>,
    /// Days on which the balance of the state is not that of raw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub balance_days_different: Vec<NaiveDate>,
    /// Truncates that differ between state and raw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncates_different: Vec<TruncateDifference>,
    /// Published files that are missing.
    pub files_missing: Vec<String>,
    /// Published files that cannot be read.
    pub files_damaged: Vec<String>,
    /// Files of versions or of the balance that are missing or damaged: the next run may be refused.
    pub state_files_damaged: Vec<String>,
    /// Files in the table's folder that no run of this pipeline wrote.
    pub files_unknown: Vec<String>,
    /// Columns of the table that the other side lacks, and new columns of the refold.
    pub columns_missing: Vec<String>,
    /// Columns with values that do not fit the table's types.
    pub columns_unfit: Vec<String>,
    /// The aggregates, in the pipeline's order; empty when compared with another table.
    pub aggregates: Vec<VerifiedAggregate>,
    /// Keys that differ from those of a database; of a table without a key, rows.
    #[serde(skip_serializing_if = "is_zero")]
    pub keys_different: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_differences: Vec<KeyDifference>,
    /// The first key that differs, in the first partition that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<KeyDifference>,
    /// Further notes for the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub peak_memory_bytes: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A partition that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionDifference {
    /// Its folder; empty for an unpartitioned table.
    pub partition: String,
    /// Rows it should have.
    pub rows_expected: u64,
    /// Rows it has.
    pub rows_found: u64,
    /// The hash it should have.
    pub hash_expected: String,
    /// The hash it has.
    pub hash_found: String,
}

/// The result of comparing an aggregate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifiedAggregate {
    /// Its name.
    pub name: String,
    /// The number of days that were compared.
    pub days: u64,
    /// Days that differ, as folders.
    pub days_different: Vec<PartitionDifference>,
    /// Published files that are missing.
    pub files_missing: Vec<String>,
    /// Published files that cannot be read.
    pub files_damaged: Vec<String>,
    /// Files in its folder that no run of this pipeline wrote.
    pub files_unknown: Vec<String>,
    /// Whether it was compared: not while it lacks the last changes.
    pub is_compared: bool,
    /// Why it was not compared, or only in part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A day that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DayDifference {
    /// The day; `None` for rows without a day.
    pub day: Option<NaiveDate>,
    /// Rows it should have.
    pub rows_expected: u64,
    /// Rows it has.
    pub rows_found: u64,
}

/// A truncate that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TruncateDifference {
    /// Its raw file.
    pub file: String,
    /// Its row, from 1; 0 for one that was set by hand.
    pub row: u64,
    /// How it differs.
    pub why: String,
}

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    /// The partition.
    pub partition: String,
    /// The key columns, and their values as text.
    pub key: Vec<(String, String)>,
    /// How its row differs.
    pub why: String,
}

/// Compares the curated table and the aggregates.
///
/// # Errors
/// Usage, when nothing was folded yet, or the other table cannot be compared; data, when an input
/// that was folded is missing or has changed; busy, when another run is publishing.
pub fn verify<'a>(
    run_context: &'a RunContext<'_>,
    compared: Compared,
) -> LocalBoxFuture<'a, Result<Verified>> {
    async move {
        if compared.against.as_deref() == Some(POSTGRES) {
            return against_database(run_context, &compared).await;
        }
        if compared.source.is_some() {
            return Err(Error::usage("--source is for --against postgres").hint("leave it out"));
        }
        if compared.lag.is_some() {
            return Err(Error::usage("--lag is for --against postgres").hint("leave it out"));
        }
        do_verify(run_context, &compared).await
    }
    .boxed_local()
}

/// What `--against` names the database by.
const POSTGRES: &str = "postgres";

#[cfg(not(feature = "postgres"))]
async fn against_database(_: &RunContext<'_>, _: &Compared) -> Result<Verified> {
    Err(Error::usage("this program was built without the feature `postgres`")
        .hint("build it with its default features"))
}

/// One of the two tables.
struct Side {
    /// Its rows, with the columns of the published table.
    rows: DataFrame,
    /// Columns of the published table that it lacks.
    missing: Vec<String>,
}

async fn do_verify(run_context: &RunContext<'_>, compared: &Compared) -> Result<Verified> {
    let mut verified =
        of_one_commit(run_context, (Reads::Files, NeededInputs::All), async |open, state| {
            span_of(state, "verify")?;
            open.check_verifiable(state).await?;
            open.verify(state, compared).await
        })
        .await?;
    verified.is_equal = verified.partitions_different.is_empty()
        && verified.days_different.is_empty()
        && verified.state_days_different.is_empty()
        && verified.balance_days_different.is_empty()
        && verified.truncates_different.is_empty()
        && verified.files_missing.is_empty()
        && verified.files_damaged.is_empty()
        && verified.state_files_damaged.is_empty()
        && verified.files_unknown.is_empty()
        && verified.columns_missing.is_empty()
        && verified.columns_unfit.is_empty()
        && verified.aggregates.iter().all(VerifiedAggregate::is_equal);
    verified.seconds = run_context.meter.seconds();
    verified.peak_memory_bytes = (run_context.meter.peak_memory_bytes)();
    if verified.is_equal {
        info!("no difference in {} partitions", verified.partitions);
    } else {
        let aggregates = verified.aggregates.iter().filter(|aggregate| !aggregate.is_equal());
        warn!(
            "there are differences: {} of {} partitions and {} aggregates differ; see the report",
            verified.partitions_different.len(),
            verified.partitions,
            aggregates.count()
        );
    }
    Ok(verified)
}

impl OpenPipeline<'_> {
    /// Checks that the published table is that of the state, and of this pipeline.
    async fn check_verifiable(&self, state: &State) -> Result<()> {
        if self.is_publishing(state).await? {
            return Err(Error::busy("a run is publishing, or was interrupted").hint(
                "verify again after it has finished; any run of the pipeline finishes an interrupted one",
            ));
        }
        self.check_not_changed(Step::Curate, state).await
    }

    async fn verify(&self, state: &State, compared: &Compared) -> Result<Verified> {
        let pipeline = self.run_context.pipeline;
        let mut verified = Verified {
            pipeline: pipeline.name.clone(),
            against: compared.against.clone().unwrap_or_else(|| "raw".into()),
            days: compared.days,
            ..Default::default()
        };
        let Some(contract) = &state.ledger.contract else {
            verified.notes.push("no run has found an input yet: the table does not exist".into());
            return Ok(verified);
        };
        let mut columns = read_types(&contract.columns)?;
        if compared.against.is_none() && !contract.grown.is_empty() {
            columns.retain(|(name, _)| !contract.grown.contains(name));
            verified.notes.push(format!(
                "not compared: `{}`, because rows of earlier runs lack these columns",
                contract.grown.join("`, `")
            ));
        }
        let is_parquet = pipeline.curated.format == Format::Parquet;
        // Readers of a Delta table see only the files in its log.
        let day = contract.day();
        let is_compared = |path: &str| is_parquet && may_have_days(path, day, compared.days);
        let folder = &self.output(CURATED)?.folder;
        let mut files = Files::find(folder, state.ledger.files(CURATED), is_compared).await?;
        verified.state_files_damaged = damaged_versions(state).await?;
        let context = sorting_session(&self.runtime, self.run_context.resources.threads);
        let expected = match &compared.against {
            Some(against) => other_table(self, &context, against, &columns, &mut verified).await?,
            None => {
                check_comparable(state, pipeline, &mut verified)?;
                let folded = refold(self, state, &mut verified).await?;
                if verified.state_files_damaged.is_empty() {
                    self.verify_balance(state, &folded, &mut verified).await?;
                }
                let days = compared.days;
                verified.aggregates = self.verify_aggregates(state, &folded, days).await?;
                let grown = &contract.grown;
                refolded_side(self, &context, &columns, grown, &folded, &mut verified)?
            }
        };
        verified.columns_missing.extend(expected.missing.iter().cloned());
        let comparison = Comparison {
            context: &context,
            pipeline,
            columns: &columns,
            day,
            days: compared.days,
            expected: &expected,
        };
        let partition_by = &pipeline.curated.partition_by;
        let found = |files: &Files<'_>| {
            let table = FileTable::of_partitions(folder, files.readable(), &columns, partition_by)?;
            side(&context, folder, Arc::new(table), &columns)
        };
        if let Err(error) = comparison.compare(&found(&files)?, &mut verified).await {
            if !files.exclude_damaged().await? {
                return Err(error);
            }
            comparison.compare(&found(&files)?, &mut verified).await?;
        }
        verified.files_missing = files.missing;
        verified.files_damaged = files.damaged;
        verified.files_unknown = files.unknown;
        verified.notes.extend(quarantine_note(state));
        if compared.days.is_some() && verified.partitions == 0 {
            let note = "neither table has rows of these days: nothing was compared";
            verified.notes.push(note.into());
        }
        Ok(verified)
    }
}

/// What a report says of quarantined files.
fn quarantine_note(state: &State) -> Option<String> {
    let count = state.ledger.quarantined.len();
    (count > 0).then(|| {
        format!(
            "{count} files, as a whole or some of their rows, are in quarantine: their changes are in neither \
             table"
        )
    })
}

/// The files of versions and of the balance that are missing, or differ in size from the committed
/// ones.
async fn damaged_versions(state: &State) -> Result<Vec<String>> {
    let found = sizes(state.folder()).await?;
    let committed = state.data_files("version").into_iter().chain(state.data_files(BALANCE));
    let damaged = committed.filter(|(path, bytes)| found.get(path) != Some(bytes));
    Ok(damaged.map(|(path, _)| path).collect())
}

/// Whether a file may have rows of some days, by the day in its path if it has one.
fn may_have_days(path: &str, day: Option<&str>, days: Option<Window>) -> bool {
    let mut values = partition_values(parent(path));
    let value = values.find(|(name, _)| Some(name.as_str()) == day);
    let day = value.and_then(|(_, value)| value?.parse::<NaiveDate>().ok());
    match (day, days) {
        (Some(day), Some(days)) => days.contains(day.and_time(NaiveTime::MIN).and_utc()),
        _ => true,
    }
}

/// A table in a folder as a side, with the columns of the published table.
fn side(
    context: &SessionContext,
    folder: &Folder,
    table: Arc<FileTable>,
    columns: &[(String, DataType)],
) -> Result<Side> {
    register_store(context, folder);
    aligned(context.read_table(table)?, columns)
}

/// Rows with the columns of the published table, in their own types; missing columns are null.
fn aligned(rows: DataFrame, columns: &[(String, DataType)]) -> Result<Side> {
    let mut missing = Vec::new();
    let mut selected: Vec<Expr> = Vec::new();
    for (name, kind) in columns {
        let fields = rows.schema().fields().iter().map(|field| field.name());
        let index = find_column(fields.clone().map(String::as_str), name);
        let column = match index.and_then(|at| fields.clone().nth(at)) {
            Some(found) => ident(found),
            None => {
                missing.push(name.clone());
                lit(ScalarValue::try_from(kind)?)
            }
        };
        selected.push(column.alias(name));
    }
    Ok(Side { rows: rows.select(selected)?, missing })
}

/// Compares two tables by their digests.
struct Comparison<'a> {
    context: &'a SessionContext,
    pipeline: &'a Pipeline,
    columns: &'a [(String, DataType)],
    /// The column that is the day.
    day: Option<&'a str>,
    days: Option<Window>,
    expected: &'a Side,
}

impl Comparison<'_> {
    /// Compares with the published table, and finds the first key that differs.
    async fn compare(&self, found: &Side, verified: &mut Verified) -> Result<()> {
        let column_index = |name: &str| self.columns.iter().position(|(column, _)| column == name);
        let has_days = |at: &usize| self.columns[*at].1 == DataType::Date32;
        let partition_by = self.pipeline.curated.partition_by.iter();
        let parts = DigestColumns {
            partition_by: partition_by.filter_map(|name| column_index(name)).collect(),
            day: self.day.and_then(column_index).filter(has_days),
            types: self.columns.iter().map(|(_, kind)| kind.clone()).collect(),
        };
        if self.days.is_some() && parts.day.is_none() {
            return Err(Error::usage(format!(
                "the table has no DATE column `{}`: days cannot be selected",
                self.day.unwrap_or(EVENT_DT)
            ))
            .hint("compare the whole table: omit the dates"));
        }
        let (expected, found) = (self.selected(self.expected)?, self.selected(found)?);
        let one = digest(expected.clone().execute_stream_partitioned().await?, &parts).await?;
        let other = digest(found.clone().execute_stream_partitioned().await?, &parts).await?;
        let rows = |digests: &Digests| digests.partitions.values().map(|digest| digest.rows).sum();
        verified.rows_expected = rows(&one);
        verified.rows_found = rows(&other);
        let names = one.partitions.keys().chain(other.partitions.keys());
        verified.partitions = names.collect::<BTreeSet<_>>().len() as u64;
        verified.partitions_different = partition_differences(&one, &other);
        verified.days_different = day_differences(&one.days, &other.days);
        let unfit = one.unfit.union(&other.unfit);
        verified.columns_unfit = unfit.map(|at| self.columns[*at].0.clone()).collect();
        if let Some(first) = verified.partitions_different.first() {
            let partition = first.partition.clone();
            let keys = Keys {
                pipeline: self.pipeline,
                columns: self.columns,
                day: self.day,
                partition: &partition,
            };
            match keys.first_difference(self.context, expected, found).await {
                Ok(difference) => verified.first_difference = difference,
                Err(error) => verified
                    .notes
                    .push(format!("the first key that differs could not be determined: {error}")),
            }
        }
        Ok(())
    }

    /// The rows of the compared days.
    fn selected(&self, side: &Side) -> Result<DataFrame> {
        let rows = side.rows.clone();
        let Some(days) = self.days else {
            return Ok(rows);
        };
        let date = |instant: DateTime<Utc>| {
            let day = Date32Type::from_naive_date(instant.date_naive());
            lit(ScalarValue::Date32(Some(day)))
        };
        let name = self.day.unwrap_or(EVENT_DT);
        let kind = rows.schema().field_with_unqualified_name(name)?.data_type();
        let day = match kind {
            DataType::Date32 => ident(name),
            _ => try_cast(ident(name), DataType::Date32),
        };
        let is_in = day.clone().gt_eq(date(days.start)).and(day.lt(date(days.end)));
        Ok(rows.filter(is_in)?)
    }
}

/// The partitions that differ, sorted.
fn partition_differences(expected: &Digests, found: &Digests) -> Vec<PartitionDifference> {
    let all = expected.partitions.keys().chain(found.partitions.keys());
    let names: BTreeSet<&String> = all.collect();
    let mut differences = Vec::new();
    for name in names {
        let of = |digests: &Digests| -> Digest {
            digests.partitions.get(name).copied().unwrap_or_default()
        };
        let (expected, found) = (of(expected), of(found));
        if expected != found {
            differences.push(PartitionDifference {
                partition: name.clone(),
                rows_expected: expected.rows,
                rows_found: found.rows,
                hash_expected: format!("{:016x}", expected.hash),
                hash_found: format!("{:016x}", found.hash),
            });
        }
    }
    differences
}

fn day_differences(
    expected: &BTreeMap<Option<i32>, u64>,
    found: &BTreeMap<Option<i32>, u64>,
) -> Vec<DayDifference> {
    let days: BTreeSet<&Option<i32>> = expected.keys().chain(found.keys()).collect();
    let rows = |counts: &BTreeMap<Option<i32>, u64>, day| counts.get(day).copied().unwrap_or(0);
    let each = days.into_iter().map(|day| DayDifference {
        day: day.and_then(date),
        rows_expected: rows(expected, day),
        rows_found: rows(found, day),
    });
    each.filter(|day| day.rows_expected != day.rows_found).collect()
}

/// Notes what cannot be compared with raw, because full loads were written over earlier ones.
///
/// # Errors
/// Data, for a table of days or a history: its rows of before are in raw no more.
fn check_comparable(state: &State, pipeline: &Pipeline, verified: &mut Verified) -> Result<()> {
    let replacing = state.ledger.replacing_loads();
    let Some(first) = replacing.first() else { return Ok(()) };
    let what = format!(
        "{} full loads were written over earlier ones, such as {}: raw lacks what those said",
        replacing.len(),
        first.path
    );
    if pipeline.keep != Keep::Latest {
        return Err(Error::data(format!("{what}, and the rows that came of it"))
            .hint("compare the table with a copy of it, by --against"));
    }
    verified.notes.push(format!("{what}; the state was not compared, only the rows"));
    Ok(())
}
