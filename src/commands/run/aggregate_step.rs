//! The step that computes the aggregates.

use std::sync::Arc;

use arrow::datatypes::Field;
use datafusion::prelude::SessionContext;
use tracing::{debug, info, warn};

use crate::aggregate;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::task::Task;
use crate::config::{Aggregate, Pipeline};
use crate::curate::merge::standing::CommittedState;
use crate::engine::session::session;
use crate::error::{Kind, Result};
use crate::report::AggregateReport;
use crate::state::balance::{BALANCE, Balance, NewBalance};
use crate::state::contract::{TableContract, read_types};
use crate::state::ledger::{CURATED, ChangedDays, HISTORY, Ledger, Step};
use crate::state::versions::VersionsLayout;
use crate::state::{NewVersions, NotCommitted, State};
use crate::table::files::register_store;
use crate::types::day_counts::DayCounts;
use crate::window::WindowSet;

impl Run<'_> {
    /// Computes the aggregates for the days of the windows, and for days that changed.
    pub(super) async fn aggregate(&self, attempt: &mut Attempt) -> Result<(), NotCommitted> {
        let pipeline = self.open.run_context.pipeline;
        if pipeline.aggregates.is_empty() {
            return Ok(());
        }
        let state = &attempt.state;
        let windows = match self.task {
            Task::CatchUp => windows_to_catch_up(&state.ledger, pipeline),
            Task::Truncate(_) | Task::Forget(_) => WindowSet::default(),
            _ => self.window.into(),
        };
        let mut tables = pipeline.aggregates.iter().map(Aggregate::table);
        if windows.is_empty() && tables.all(|table| state.ledger.is_aggregated(&table)) {
            return Ok(());
        }
        if windows != WindowSet::from(self.window) {
            attempt.aggregated = Some(windows.clone());
        }
        self.read_needed_inputs(&mut attempt.state, &windows).await?;
        let context = session(&self.open.runtime, self.open.run_context.resources.threads);
        let balance = self.missing_balance(attempt).await?;
        let state = &attempt.state;
        let curated = self.open.output(CURATED)?;
        register_store(&context, &curated.folder);
        register_store(&context, state.folder());
        let files = match &balance.file {
            Some(new) => vec![new.clone()],
            None => state.data_files(BALANCE),
        };
        if !aggregate::register(&context, state, pipeline, &curated.folder, &files).await? {
            info!("the curated table does not exist yet: no aggregates");
            let note = &mut attempt.report.note;
            note.get_or_insert("the curated table does not exist yet".into());
            return Ok(());
        }
        let mut plans = Vec::new();
        for aggregate in &pipeline.aggregates {
            let staging = &self.open.output(&aggregate.table())?.staging;
            let computed = aggregate::compute(
                &context,
                &state.ledger,
                aggregate,
                &windows,
                staging,
                &attempt.name,
                attempt.commit,
            )
            .await?;
            computed.log(aggregate, &windows);
            attempt.report.aggregates.push(AggregateReport {
                name: aggregate.name.clone(),
                days: computed.days.len() as u64,
                rows_removed: computed.plan.counts.rows_removed,
                rows_inserted: computed.plan.counts.rows_written,
            });
            plans.push((aggregate.table(), computed.plan));
        }
        let contract = attempt.state.ledger.contract.as_ref();
        let layout = contract.map(TableContract::layout).transpose()?.unwrap_or_default();
        let balance = balance.file.is_some().then_some(NewVersions {
            layout: &layout,
            files: &[],
            replaced: &[],
            balance: &balance,
        });
        let changed = ChangedDays::default();
        self.commit_and_publish(attempt, Step::Aggregate, vec![], balance, changed, &plans).await
    }

    /// Reads all inputs, if an aggregate reads what is decided by their order.
    async fn read_needed_inputs(&self, state: &mut State, windows: &WindowSet) -> Result<()> {
        let ledger = &state.ledger;
        let has_unread = ledger.inputs.unread().next().is_some();
        let Some(contract) = ledger.contract.as_ref().filter(|_| has_unread) else {
            return Ok(());
        };
        let pipeline = self.open.run_context.pipeline;
        if !pipeline.aggregates_read(HISTORY) {
            return Ok(());
        }
        let (context, layout, columns) = self.planning(contract)?;
        if aggregate::needs_all_inputs(&context, ledger, pipeline, windows, &layout, &columns)
            .await?
        {
            state.read_all_inputs().await?;
            self.open.count_inputs(state);
        }
        Ok(())
    }

    /// A session to plan queries in, the layout of the versions and the columns of the curated table.
    fn planning(
        &self,
        contract: &TableContract,
    ) -> Result<(SessionContext, VersionsLayout, Vec<Field>)> {
        let columns = read_types(&contract.columns)?.into_iter();
        let columns = columns.map(|(name, kind)| Field::new(name, kind, true)).collect();
        let context = session(&self.open.runtime, self.open.run_context.resources.threads);
        Ok((context, contract.layout()?, columns))
    }

    /// Writes the balance of the committed versions, if an aggregate reads it, and it was not kept or is
    /// damaged.
    async fn missing_balance(&self, attempt: &Attempt) -> Result<NewBalance> {
        let state = &attempt.state;
        let pipeline = self.open.run_context.pipeline;
        let mut new = NewBalance::default();
        let Some(contract) = &state.ledger.contract else {
            return Ok(new);
        };
        if !pipeline.aggregates_read(BALANCE) {
            return Ok(new);
        }
        let committed = state.data_files(BALANCE);
        match Balance::check(state.folder(), &committed).await {
            Ok(()) if !committed.is_empty() => return Ok(new),
            Err(error) if error.kind == Kind::Data => {
                warn!("the balance is computed anew: {error}");
                new.replaces_all(&committed);
            }
            checked => checked?,
        }
        // Before the work: a query that cannot be planned stops it.
        let (context, layout, columns) = self.planning(contract)?;
        aggregate::check(&context, pipeline, &layout, &columns).await?;
        debug!("the balance is computed from the versions");
        let layout = Arc::new(layout);
        let versions = CommittedState {
            folder: state.folder(),
            layout: &layout,
            files: state.data_files("version"),
            rows: state.ledger.versions.values().map(DayCounts::rows).sum(),
            order: pipeline.raw.file_order(),
            floors: state.ledger.all_floors(),
        };
        let threads = self.open.run_context.resources.threads;
        let balance = versions.balance(&self.open.runtime, threads).await?;
        new.file = Some(balance.write(state.folder(), &attempt.name).await?);
        Ok(new)
    }
}

/// The folded windows for whose days an aggregate was never computed.
fn windows_to_catch_up(ledger: &Ledger, pipeline: &Pipeline) -> WindowSet {
    let folded = ledger.folded_windows();
    let tables = pipeline.aggregates.iter().map(Aggregate::table);
    let missing = tables.map(|table| folded.subtracting(&ledger.windows_aggregated(&table)));
    missing.fold(WindowSet::default(), |all, missing| all.union(&missing))
}
