//! The step that folds inputs into the curated table.

use std::collections::BTreeSet;

use chrono::NaiveDate;
use futures::FutureExt;
use tracing::info;

use crate::aggregate;
use crate::changes::Changes;
use crate::commands::open_pipeline::date;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::run::contract::contract;
use crate::commands::run::inputs::{Inputs, input_record};
use crate::commands::task::Task;
use crate::config::Format;
use crate::curate::Curated;
use crate::curate::stage::{BadInputs, Onto, Stage};
use crate::engine::session::session;
use crate::engine::tasks::spawn;
use crate::publish::{self, FileNames, PartitionFiles, Plan};
use crate::raw::discover::{Input, RawFile, Recorded};
use crate::state::ledger::{CURATED, ChangedDays, Ledger, Record, Step};
use crate::state::{NewVersions, NotCommitted};
use crate::store::listing::list_and_prune;
use crate::table::TableFile;
use crate::types::day_counts::DayCounts;
use crate::types::times::day_of_us;

impl Run<'_> {
    /// The target that the inputs are folded onto.
    fn onto(&self) -> Onto {
        match self.task {
            Task::Rebuild { accept_missing } => Onto::Empty { accept_missing },
            Task::UndoTruncate(_) | Task::Recall(_) => Onto::Empty { accept_missing: false },
            _ => Onto::Table,
        }
    }

    /// Folds inputs into the curated table.
    pub(super) async fn fold(
        &self,
        step: Step,
        attempt: &mut Attempt,
        bad: &mut BadInputs,
    ) -> Result<(), NotCommitted> {
        let pipeline = self.open.run_context.pipeline;
        let folders = self.open.run_context.raw()?;
        let ledger = &attempt.state.ledger;
        let report = &mut attempt.report;
        let Some(truncates) = self.truncates_by_hand(ledger, report)? else { return Ok(()) };
        let Some(forgets) = self.forgets(ledger, attempt.commit, report)? else { return Ok(()) };
        let Inputs { inputs, records: known, note } = self.inputs(&folders, ledger).await?;
        self.check_loads(ledger, &inputs, &truncates, &folders)?;
        report.note = note;
        if step == Step::CatchUp {
            if inputs.is_empty() {
                return self.commit_empty_catch_up(attempt, known).await;
            }
        } else if !has_inputs_to_fold(step, ledger, &inputs) {
            info!("no inputs in the window {}", self.window);
            report.note.get_or_insert("no inputs in the window".into());
            // Record the window: files that appear in it from now on are late.
            return self
                .commit_and_publish(attempt, Step::Curate, known, None, ChangedDays::default(), &[])
                .await;
        }
        let table = self.open.output(CURATED)?;
        let folder = table.folder.clone();
        attempt.listing = Some(spawn(async move { list_and_prune(&folder).await }).boxed());
        let stage = Stage {
            pipeline,
            resources: self.open.run_context.resources,
            runtime: &self.open.runtime,
            raw: &folders,
            ledger,
            onto: self.onto(),
            table: &table.folder,
            staging: &table.staging,
            state: attempt.state.folder(),
            committed_versions: attempt.state.data_files("version"),
            committed_balance: attempt.state.data_files("balance"),
            versions: attempt.state.folder(),
            attempt: &attempt.name,
            truncates: &truncates,
            forgetting: &forgets.forgetting,
            is_dry: false,
        };
        let mut staged = stage.run(&inputs, bad, report).await?;
        let mut records = known;
        records.extend(self.quarantine_records(step, attempt, &staged, &inputs, &folders).await?);
        records.extend(self.finish_forgetting(attempt, forgets, staged.curated.as_ref()).await?);
        let Some(curated) = staged.curated.take() else {
            let note = match staged.bad_rows.count() {
                0 if staged.bad_files.is_empty() => "the inputs of the window have no rows",
                _ => "all inputs of the window are in quarantine",
            };
            attempt.report.note.get_or_insert(note.into());
            records.extend(self.input_records(step, attempt, &staged.changes));
            return self
                .commit_and_publish(attempt, step, records, None, ChangedDays::default(), &[])
                .await;
        };
        if self.task.aggregates() {
            let context = session(&self.open.runtime, self.open.run_context.resources.threads);
            aggregate::check(&context, pipeline, &curated.layout, &curated.columns).await?;
        }
        self.note_truncate(&mut attempt.report, &curated);
        records.extend(self.fold_records(step, attempt, &staged.changes, &curated));
        let versions = NewVersions {
            layout: &curated.layout,
            files: &curated.versions,
            replaced: &curated.replaced_versions,
            balance: &curated.balance,
        };
        let changed = changed_days(step, &attempt.state.ledger, &curated);
        let files = PartitionFiles { staged: &curated.staged, kept: &curated.kept };
        let plan = [self.plan_curated(step, attempt, files, &curated.partitions)];
        self.commit_and_publish(attempt, step, records, Some(versions), changed, &plan).await?;
        let report = &attempt.report;
        info!(
            "published {} rows in {} partitions, {} partitions removed",
            report.rows_written, report.partitions_written, report.partitions_removed
        );
        Ok(())
    }

    /// Plans the files of the curated table, and counts them in the report.
    pub(super) fn plan_curated(
        &self,
        step: Step,
        attempt: &mut Attempt,
        files: PartitionFiles<'_>,
        partitions: &BTreeSet<String>,
    ) -> (String, Plan) {
        let before: Vec<TableFile> = attempt.state.ledger.files(CURATED).cloned().collect();
        let is_rebuilt = |partition: &str| step.replaces_table() || partitions.contains(partition);
        let names = match self.open.run_context.pipeline.curated.format {
            Format::Parquet => FileNames::Reused,
            Format::Delta => FileNames::New,
        };
        let plan = publish::plan(files, &before, is_rebuilt, attempt.commit, names);
        let report = &mut attempt.report;
        report.rows_written = plan.counts.rows_written;
        report.bytes_written = plan.counts.bytes_written;
        report.partitions_written = plan.counts.partitions_written;
        report.partitions_removed = plan.counts.partitions_removed;
        (CURATED.to_string(), plan)
    }

    /// The ledger records of a fold: the contract if it changed, known inputs, folded inputs.
    fn fold_records(
        &self,
        step: Step,
        attempt: &Attempt,
        changes: &Changes,
        curated: &Curated,
    ) -> Vec<Record> {
        let ledger = &attempt.state.ledger;
        let is_rebuild = step == Step::Rebuild;
        let mut records = Vec::new();
        let contract = contract(
            self.open.run_context.pipeline,
            curated,
            changes,
            ledger.contract.as_ref().filter(|_| !is_rebuild),
        );
        if is_rebuild || ledger.contract.as_ref() != Some(&contract) {
            records.push(Record::Contract(Box::new(contract)));
        }
        records.extend(self.input_records(step, attempt, changes));
        let floors = curated.floors.iter().cloned();
        records.extend(floors.map(|floor| Record::Floor { floor, commit: attempt.commit }));
        records
    }

    /// The ledger records of folded inputs.
    fn input_records(&self, step: Step, attempt: &Attempt, changes: &Changes) -> Vec<Record> {
        let is_rebuild = step == Step::Rebuild;
        let records = changes.inputs().filter_map(|input| {
            let ledger = &attempt.state.ledger;
            input_record(ledger, input, attempt.commit, is_rebuild, &self.window)
        });
        records.collect()
    }
}

/// Whether a window or a rebuild has inputs to fold: any but full loads and late inputs that were
/// already folded. Other steps go on without any.
fn has_inputs_to_fold(step: Step, ledger: &Ledger, inputs: &[Input]) -> bool {
    if matches!(step, Step::Truncate | Step::Forget) {
        return true;
    }
    let is_new = |input: &Input| {
        let folded = ledger.folded(input.file.location, &input.file.path);
        let is_other_load = |folded: &RawFile| input.full_load && folded.load != input.file.load;
        step == Step::Rebuild || folded.is_none_or(is_other_load)
    };
    inputs.iter().any(|input| !input.full_load && !input.late || is_new(input))
}

/// The days whose rows changed; for a rebuild, also all days that had versions or floors
/// before.
fn changed_days(step: Step, ledger: &Ledger, curated: &Curated) -> ChangedDays {
    let mut history = curated.counts.days.clone();
    if step == Step::Rebuild {
        history.extend(all_days(ledger));
    }
    // The balance changes on days of versions only.
    let of_balance = |days| if step == Step::Rebuild { &history } else { days };
    let balance = curated.balance_days.as_ref().map(|days| dates(of_balance(days)));
    ChangedDays::new(&dates(&history), &dates(&curated.days_left), balance)
}

/// The days of all versions and floors.
pub(super) fn all_days(ledger: &Ledger) -> impl Iterator<Item = i32> {
    let versions = ledger.versions.values().flat_map(DayCounts::iter);
    let floors = || ledger.floors.iter().map(|(floor, _)| floor);
    // Rows can have ended then, and their days are in UTC too.
    let ends = floors().filter_map(|floor| floor.instant).map(day_of_us);
    let days = versions.filter_map(|(day, _)| day);
    days.chain(floors().filter_map(|floor| floor.day)).chain(ends)
}

/// Days since 1970 as dates.
pub(super) fn dates(days: &BTreeSet<i32>) -> BTreeSet<NaiveDate> {
    days.iter().filter_map(|day| date(*day)).collect()
}
