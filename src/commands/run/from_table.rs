//! The step that makes the curated table again from its own rows ([`crate::curate::from_table`]).

use std::collections::BTreeSet;

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
use crate::layout::{parent, partition_values};
use crate::publish::PartitionFiles;
use crate::report::one_note;
use crate::state::balance::{BALANCE, NewBalance};
use crate::state::contract::TableContract;
use crate::state::identity::Identity;
use crate::state::ledger::{CURATED, ChangedDays, Record, Step};
use crate::state::{NewVersions, NotCommitted, State};
use crate::store::Location;
use crate::table::TableFile;

impl Run<'_> {
    /// Checks that the pipeline differs from the one that wrote its table only in what can be made from the table's rows.
    pub(super) async fn check_from_table(&self, state: &State) -> Result<()> {
        let pipeline = self.open.run_context.pipeline;
        let Some(contract) = &state.ledger.contract else { return Err(nothing_folded("rebuild")) };
        check_format(state, pipeline)?;
        let now = Identity::of(pipeline);
        let mut differences = contract.differences(&now);
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
        let location = Location::of_text(url)?;
        let made = self.made(attempt, &contract, &location).await?;
        let context = session(&self.open.runtime, run_context.resources.threads);
        let checked = aggregate::check(&context, pipeline, &made.layout, &made.columns).await;
        checked.map_err(|error| {
            let divides = |name: &&String| !made.layout.partitions.iter().any(|(part, _)| part == *name);
            let undivided = contract.identity.partition_by().iter().filter(divides);
            let lost: Vec<&str> =
                undivided.chain(&made.layout.unrecorded).map(String::as_str).collect();
            match &lost[..] {
                [] => error,
                lost => error.hint(format!(
                    "`history` and `balance` have the partition columns whose values are known of all changes, and so not \
                     `{}`: leave those of before in `curated.partition_by`, read `curated`, or leave the aggregate out",
                    lost.join("`, `")
                )),
            }
        })?;
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
        let mut notes = notes(&contract, &after, attempt.state.ledger.files(CURATED));
        if location.to_string() != pipeline.curated.url.to_string() {
            let note = format!("the table is still in {location} as well");
            notes.push(note);
        }
        attempt.report.note = one_note(notes);
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

/// What of the table is not in the new one.
fn notes<'a>(
    before: &TableContract,
    after: &TableContract,
    mut files: impl Iterator<Item = &'a TableFile>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let names = |contract: &TableContract| -> Vec<String> {
        contract.columns.iter().map(|(name, _)| name.clone()).collect()
    };
    let (had, has) = (names(before), names(after));
    let gone: Vec<&String> = had.iter().filter(|name| !has.contains(name)).collect();
    if !gone.is_empty() {
        let gone: Vec<&str> = gone.into_iter().map(String::as_str).collect();
        notes.push(format!("the table has these columns no more: `{}`", gone.join("`, `")));
    }
    let is_text = |name: &String| {
        let kind = before.columns.iter().find(|(column, _)| column == name);
        kind.is_some_and(|(_, kind)| kind.starts_with("Utf8") || kind == "LargeUtf8")
    };
    let divides = |name: &&String| after.identity.partition_by().contains(name);
    let before = before.identity.partition_by().iter();
    let undivided: Vec<&String> = before.filter(|name| is_text(name) && !divides(name)).collect();
    let has_null = |file: &TableFile| {
        let mut values = partition_values(parent(&file.path));
        values.any(|(name, value)| value.is_none() && undivided.iter().any(|one| **one == name))
    };
    if files.any(has_null) {
        notes.push(
            "a text that is empty had the partition of null, and is null now, as readers have seen it".into(),
        );
    }
    notes
}
