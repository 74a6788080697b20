//! Recomputes the aggregates from the refolded table, for all days they were ever computed for.

use std::sync::Arc;

use arrow::datatypes::DataType;
use chrono::{NaiveDate, NaiveTime};
use datafusion::prelude::SessionContext;

use super::files::Files;
use super::{
    OpenPipeline, PartitionDifference, Refolded, VerifiedAggregate, partition_differences,
};
use crate::aggregate::{self, HistoryOrder};
use crate::config::Aggregate;
use crate::engine::session::session;
use crate::error::Result;
use crate::layout::{attempt_name, parent, parse_partition_segment};
use crate::state::balance::BALANCE;
use crate::state::ledger::{HISTORY, Ledger, Step};
use crate::state::{State, table_of};
use crate::store::Folder;
use crate::table::digest::{DigestColumns, Digests, digest};
use crate::table::files::{FileTable, PartitionFile, register_store};
use crate::window::Window;

impl VerifiedAggregate {
    /// Whether no difference was found.
    pub fn is_equal(&self) -> bool {
        let files = [&self.files_missing, &self.files_damaged, &self.files_unknown];
        self.days_different.is_empty() && files.iter().all(|files| files.is_empty())
    }
}

impl OpenPipeline<'_> {
    /// Compares the pipeline's aggregates, on some days or on all.
    pub(super) async fn verify_aggregates(
        &self,
        state: &State,
        folded: &Refolded,
        days: Option<Window>,
    ) -> Result<Vec<VerifiedAggregate>> {
        let pipeline = self.run_context.pipeline;
        if pipeline.aggregates.is_empty() {
            return Ok(Vec::new());
        }
        let context = session(&self.runtime, self.run_context.resources.threads);
        for folder in [&folded.staging, &folded.versions] {
            register_store(&context, folder);
        }
        let layout = &folded.curated.layout;
        let versions = folded.curated.versions.iter();
        let versions: Vec<_> = versions.map(|file| (file.path.clone(), file.bytes)).collect();
        let versions = table_of(&folded.versions, &versions, layout.schema())?;
        let balance = folded.curated.balance.file.as_slice();
        let balance = table_of(&folded.versions, balance, layout.balance_schema())?;
        let order = HistoryOrder {
            files: aggregate::numbers(&state.ledger.inputs),
            order: pipeline.raw.file_order(),
            floors: folded.curated.floors.clone(),
        };
        let curated = folded.table(pipeline)?;
        aggregate::register_tables(&context, (versions, balance), layout, order, curated).await?;
        let mut verified = Vec::new();
        for aggregate_config in &pipeline.aggregates {
            let compared = self.verify_aggregate(&context, state, folded, aggregate_config, days);
            verified.push(compared.await?);
        }
        Ok(verified)
    }

    async fn verify_aggregate(
        &self,
        context: &SessionContext,
        state: &State,
        folded: &Refolded,
        aggregate_config: &Aggregate,
        days: Option<Window>,
    ) -> Result<VerifiedAggregate> {
        let ledger = &state.ledger;
        let table = aggregate_config.table();
        let mut verified =
            VerifiedAggregate { name: aggregate_config.name.clone(), ..Default::default() };
        if !ledger.is_aggregated(&table) {
            let why =
                "not compared: the last changes are not in it yet; run `glueless aggregate` first";
            verified.note = Some(why.into());
            return Ok(verified);
        }
        let reads_past = [HISTORY, BALANCE].iter().any(|name| aggregate_config.sql.reads(name));
        if reads_past && !ledger.replacing_loads().is_empty() {
            let why = "not compared: full loads were written over, and raw lacks what they said";
            verified.note = Some(why.into());
            return Ok(verified);
        }
        verified.is_compared = true;
        let columns = aggregate::columns(context, aggregate_config).await?;
        let expected =
            self.digest_again(context, state, &folded.staging, aggregate_config, &columns).await?;

        let folder = &self.output(&table)?.folder;
        let is_in_days = |folder: &str| {
            let day = parse_partition_segment(folder).and_then(|(_, day)| day?.parse().ok());
            let instant = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
            let is_in = |days: Window| day.is_some_and(|day| days.contains(instant(day)));
            days.is_none_or(is_in)
        };
        let is_file_in_days = |path: &str| is_in_days(parent(path));
        let mut files = Files::find(folder, ledger.files(&table), is_file_in_days).await?;
        let day = &aggregate_config.day;
        let found = match digest_files(context, folder, files.readable(), &columns, day).await {
            Ok(found) => found,
            Err(error) if !files.exclude_damaged().await? => return Err(error),
            Err(_) => digest_files(context, folder, files.readable(), &columns, day).await?,
        };
        verified.files_missing = files.missing;
        verified.files_damaged = files.damaged;
        verified.files_unknown = files.unknown;
        let differences = partition_differences(&expected, &found).into_iter();
        let is_compared = |difference: &PartitionDifference| is_in_days(&difference.partition);
        verified.days_different = differences.filter(is_compared).collect();
        let days = expected.partitions.keys();
        verified.days = days.filter(|day| is_in_days(day)).count() as u64;
        verified.note = note_on_floats(&columns);
        Ok(verified)
    }

    /// Computes an aggregate again into a staging folder, for all days that it was computed for.
    /// Returns the digests of the result.
    async fn digest_again(
        &self,
        context: &SessionContext,
        state: &State,
        staging: &Folder,
        aggregate_config: &Aggregate,
        columns: &[(String, DataType)],
    ) -> Result<Digests> {
        let windows = state.ledger.windows_aggregated(&aggregate_config.table());
        // A ledger without aggregate runs: all days are computed.
        let mut ledger_without_aggregates = Ledger::clone(&state.ledger);
        ledger_without_aggregates.runs.retain(|run| run.command != Step::Aggregate);
        let commit = state.next_commit();
        let name = attempt_name(commit, &self.run_context.run_id);
        let computed = aggregate::compute(
            context,
            &ledger_without_aggregates,
            aggregate_config,
            &windows,
            staging,
            &name,
            commit,
        )
        .await?;
        let staged = computed.plan.added().filter_map(|file| {
            Some(PartitionFile {
                path: file.staged.as_deref()?,
                partition: parent(&file.path),
                bytes: file.bytes,
                deleted: None,
            })
        });
        digest_files(context, staging, staged, columns, &aggregate_config.day).await
    }
}

/// The note that floating-point columns were not compared, if there are any.
fn note_on_floats(columns: &[(String, DataType)]) -> Option<String> {
    let floats: Vec<String> = columns
        .iter()
        .filter(|(_, kind)| kind.is_floating())
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    (!floats.is_empty()).then(|| {
        format!(
            "not compared: {}, because sums of floats depend on the order of rows",
            floats.join(", ")
        )
    })
}

/// The digests of an aggregate's files, without floating-point columns.
async fn digest_files<'a>(
    context: &SessionContext,
    folder: &Folder,
    files: impl Iterator<Item = PartitionFile<'a>>,
    columns: &[(String, DataType)],
    day: &str,
) -> Result<Digests> {
    register_store(context, folder);
    let exact: Vec<(String, DataType)> =
        columns.iter().filter(|(_, kind)| !kind.is_floating()).cloned().collect();
    let table = FileTable::of_partitions(folder, files, &exact, &[day.to_string()])?;
    let rows = context.read_table(Arc::new(table))?;
    let fields = rows.schema().fields().iter();
    let exact_types = fields.map(|field| field.data_type().clone()).collect();
    let parts = DigestColumns {
        // The partition column comes last.
        partition_by: vec![exact.len() - 1],
        day: None,
        types: exact_types,
    };
    digest(rows.execute_stream_partitioned().await?, &parts).await
}
