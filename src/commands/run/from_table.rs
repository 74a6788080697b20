//! The step that makes the curated table again from its own rows ([`crate::curate::from_table`]).

use std::collections::BTreeSet;
use std::path::Path;

use crate::aggregate;
use crate::commands::open_pipeline::{OF_TABLE, check_format, nothing_folded};
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::run::fold_step::{all_days, dates};
use crate::curate::from_table::FromTable;
use crate::curate::merge::forget::Forgetting;
use crate::curate::stage::{Onto, Stage};
use crate::engine::session::session;
use crate::error::{Error, Result};
use crate::publish::PartitionFiles;
use crate::state::balance::{BALANCE, NewBalance};
use crate::state::contract::TableContract;
use crate::state::identity::Identity;
use crate::state::ledger::{CURATED, ChangedDays, Record, Step};
use crate::state::{NewVersions, NotCommitted, State};
use crate::store::Location;

impl Run<'_> {
    /// Checks that the pipeline differs from the one that wrote its table only in what can be made from the table's rows.
    pub(super) async fn check_from_table(&self, state: &State) -> Result<()> {
        let pipeline = self.open.run_context.pipeline;
        let Some(contract) = &state.ledger.contract else { return Err(nothing_folded("rebuild")) };
        check_format(state, pipeline)?;
        let now = Identity::of(pipeline);
        let mut differences = contract.identity.differences(&now);
        differences.retain(|name| !OF_TABLE.contains(name));
        if !differences.is_empty() {
            return Err(Error::usage(format!(
                "`{}` changed, which cannot be made from the rows of the table",
                differences.join("`, `")
            ))
            .hint("undo this change, or rebuild from raw: glueless rebuild"));
        }
        // A run publishes the table where its own pipeline has it.
        if contract.identity.table() != now.table() && self.open.is_publishing(state).await? {
            return Err(Error::usage("an earlier run has not finished publishing the table")
                .hint("undo the change, run the pipeline once, and make the change again"));
        }
        Ok(())
    }

    /// Makes the curated table again from its own rows.
    pub(super) async fn rebuild_from_table(
        &self,
        attempt: &mut Attempt,
    ) -> Result<(), NotCommitted> {
        let run_context = self.open.run_context;
        let pipeline = run_context.pipeline;
        let contract = attempt.state.ledger.contract.clone();
        let contract = contract.ok_or_else(|| nothing_folded("rebuild"))?;
        let (url, _) = contract.identity.table();
        let location = Location::parse(url, Path::new("/"))?;
        let made = self.made(attempt, &contract, &location).await?;
        let context = session(&self.open.runtime, run_context.resources.threads);
        aggregate::check(&context, pipeline, &made.layout, &made.columns).await?;
        let identity = Identity::of(pipeline).of_table(Some(&contract.identity));
        let after = TableContract { identity, ..made.contract };
        let replaced: Vec<String> =
            attempt.state.data_files("version").into_iter().map(|(path, _)| path).collect();
        // It is made again from the versions, if an aggregate reads it.
        let mut balance = NewBalance::default();
        balance.replaces_all(&attempt.state.data_files(BALANCE));
        let versions = NewVersions {
            layout: &made.layout,
            files: &made.versions,
            replaced: &replaced,
            balance: &balance,
        };
        let days: BTreeSet<i32> = all_days(&attempt.state.ledger).collect();
        let changed = ChangedDays::new(&dates(&days), &BTreeSet::new(), None);
        let files = PartitionFiles { staged: &made.staged, kept: &[] };
        let plan = self.plan_curated(Step::FromTable, attempt, files, &BTreeSet::new());
        if location != pipeline.curated.url {
            let note = format!(
                "the table is still in {location} as well: remove it once nothing reads it"
            );
            attempt.report.note = Some(note);
        }
        let records = vec![Record::Contract(Box::new(after))];
        self.commit_and_publish(attempt, Step::FromTable, records, Some(versions), changed, &[plan])
            .await
    }

    /// The table in staging, made from the rows of the one at a location.
    async fn made(
        &self,
        attempt: &Attempt,
        contract: &TableContract,
        location: &Location,
    ) -> Result<FromTable> {
        let run_context = self.open.run_context;
        let table = self.open.output(CURATED)?;
        let published = run_context.stores.open(location)?;
        let stage = Stage {
            pipeline: run_context.pipeline,
            resources: run_context.resources,
            runtime: &self.open.runtime,
            raw: &run_context.raw()?,
            ledger: &attempt.state.ledger,
            onto: Onto::Table,
            table: &table.folder,
            staging: &table.staging,
            state: attempt.state.folder(),
            committed_versions: attempt.state.data_files("version"),
            committed_balance: Vec::new(),
            versions: attempt.state.folder(),
            attempt: &attempt.name,
            truncates: &[],
            forgetting: &Forgetting::default(),
            is_dry: false,
        };
        stage.remake(&published, contract).await
    }
}
