//! Commits an attempt and publishes its files; also finishes publishing for interrupted runs.

use std::collections::BTreeSet;

use tracing::{debug, warn};

use crate::commands::open_pipeline::{OpenPipeline, Output};
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::config::{Format, WindowBy};
use crate::error::{Error, Result};
use crate::layout::{attempt_commit, attempt_name};
use crate::publish::announcement::announce;
use crate::publish::delta::{self, Committed, CuratedLog};
use crate::publish::{self, Plan};
use crate::state::identity::Identity;
use crate::state::ledger::{self, CURATED, ChangedDays, Record, Step};
use crate::state::{NewVersions, NotCommitted, State};
use crate::store::listing::{list, list_and_prune};
use crate::store::remove::remove;
use crate::table::TableFile;

impl Run<'_> {
    /// Removes the files of a failed attempt.
    pub(crate) async fn discard(&self, attempt: &Attempt) {
        let mut discarded = vec![attempt.state.discard(&attempt.name).await];
        let tables = self.open.outputs.iter();
        for output in tables.filter(|output| output.name != "state") {
            discarded.push(publish::discard(&output.staging, &attempt.name).await);
        }
        for folder in [&self.open.announced, &self.open.quarantine] {
            discarded.push(publish::discard(folder, &attempt.name).await);
        }
        for error in discarded.into_iter().filter_map(Result::err) {
            warn!("cannot remove the files of the failed attempt: {error}");
        }
    }

    /// Announces an attempt, commits it, and carries out the plans of its tables.
    pub(crate) async fn commit_and_publish(
        &self,
        attempt: &mut Attempt,
        step: Step,
        mut records: Vec<Record>,
        versions: Option<NewVersions<'_>>,
        changed: ChangedDays,
        plans: &[(String, Plan)],
    ) -> Result<(), NotCommitted> {
        self.open.run_context.meter.measure(&mut attempt.report);
        let run = self.run_record(attempt, step, changed, plans);
        records.insert(0, Record::Run(Box::new(run)));
        let run_context = &self.open.run_context;
        let retention = run_context.pipeline.curated.retention;
        if let Some(time) = run_context.now.checked_sub_signed(retention) {
            let unused = attempt.state.ledger.vectors_unused_since(time);
            records.extend(unused.map(|path| Record::VectorsRemoved { path: path.clone() }));
        }
        for (name, plan) in plans {
            records.extend(file_records(name, plan));
            let staged: BTreeSet<&str> =
                plan.added().flat_map(TableFile::to_move).map(|staged| staged.from).collect();
            let staged: Vec<String> = staged.into_iter().map(String::from).collect();
            self.open.output(name)?.staging.sync(&staged)?;
        }
        self.open.claim(plans).await?;
        let listing = match attempt.listing.take() {
            Some(listing) => Some(listing.await?),
            None => None,
        };
        announce(&self.open.announced, &attempt.name).await?;
        let state = &mut attempt.state;
        state.commit(&attempt.run_id, records, versions, self.open.run_context.now).await?;
        debug!("committed as {}", attempt.commit);
        let state = &attempt.state;
        attempt.report.files_in_quarantine = state.ledger.quarantined.len() as u64;
        if step != Step::Aggregate
            && let Err(error) = self.prune_quarantine(&state.ledger).await
        {
            warn!("cannot remove unused files in quarantine: {error}");
        }
        self.publish_committed(attempt, listing).await
    }

    /// The ledger's record of a run.
    fn run_record(
        &self,
        attempt: &mut Attempt,
        step: Step,
        changed: ChangedDays,
        plans: &[(String, Plan)],
    ) -> ledger::Run {
        let newest = attempt.report.newest_commit_time;
        ledger::Run {
            commit: attempt.commit,
            run_id: attempt.run_id.clone(),
            command: step,
            start: self.window.start,
            end: self.window.end,
            tables: plans.iter().map(|(name, _)| name.clone()).collect(),
            changed,
            by_rows: self.open.run_context.pipeline.raw.window_by == WindowBy::Commit,
            aggregated: attempt.aggregated.take(),
            at: self.open.run_context.now,
            seconds: attempt.report.seconds,
            newest_us: newest.map(|newest| newest.timestamp_micros()),
            counts: attempt.report.counts(),
        }
    }

    /// Publishes a committed attempt, and removes its announcement.
    async fn publish_committed(
        &self,
        attempt: &mut Attempt,
        listing: Option<Vec<String>>,
    ) -> Result<(), NotCommitted> {
        let state = &attempt.state;
        let switched = match state.ledger.run(&attempt.run_id) {
            Some(run) => self.open.publish(state, run, listing).await,
            None => Err(Error::internal("the run is not in the ledger")),
        };
        let published = match switched {
            Ok(_) => publish::clear(&self.open.announced, attempt.commit).await,
            Err(error) => Err(error),
        };
        let Err(error) = published else {
            return Ok(());
        };
        // While this process was suspended, another run may have published for it and committed
        // since.
        let state = &mut attempt.state;
        if state.refresh().await.is_ok() && state.last_commit() > attempt.commit {
            warn!("another run has published the files of this run, and committed since: {error}");
            return Ok(());
        }
        Err(NotCommitted { error, in_doubt: true })
    }
}

/// The ledger records of the files that a plan removes and adds.
fn file_records(table: &str, plan: &Plan) -> Vec<Record> {
    let removed =
        plan.removes.iter().map(|path| Record::Removed { table: table.into(), path: path.clone() });
    let added = plan.added().map(|file| Record::File { table: table.into(), file: file.clone() });
    removed.chain(added).collect()
}

impl OpenPipeline<'_> {
    /// Refuses to continue if anyone else wrote to the Delta log of the curated table.
    pub(crate) async fn check_not_changed(&self, command: Step, state: &State) -> Result<()> {
        if self.run_context.pipeline.curated.format != Format::Delta {
            return Ok(());
        }
        let table = &self.output(CURATED)?.folder;
        let log = delta::open(table, state.last_commit()).await?;
        let now = Identity::of(self.run_context.pipeline);
        let contract = state.ledger.contract.as_ref();
        let is_there = contract.is_some_and(|contract| contract.identity.table() == now.table());
        let is_read = match command {
            Step::Rebuild => false,
            Step::FromTable => is_there,
            _ => true,
        };
        match self.curated_log(state).filter(|_| is_read) {
            Some(curated) => curated.check(&log),
            None => Ok(()),
        }
    }

    /// Finishes publishing for interrupted runs that had committed.
    pub(crate) async fn finish_interrupted(&self, state: &State) -> Result<()> {
        let open = list(&self.announced).await?;
        let last = state.last_commit();
        let mut unfinished = BTreeSet::new();
        for name in &open {
            let mut runs = state
                .ledger
                .runs
                .iter()
                .filter(|run| attempt_name(run.commit, &run.run_id) == *name);
            let Some(run) = runs.next() else {
                continue;
            };
            warn!("an earlier run has not finished publishing: finishing it first");
            if !self.publish(state, run, None).await? {
                unfinished.insert(name.clone());
            }
        }
        // Attempts with a later number may still commit: their announcements stay.
        let is_done = |name: &String| {
            let is_before = attempt_commit(name).is_some_and(|commit| commit <= last);
            is_before && !unfinished.contains(name)
        };
        remove(&self.announced, open.into_iter().filter(is_done).collect()).await
    }

    /// Whether a committed run is not fully published.
    pub(crate) async fn is_publishing(&self, state: &State) -> Result<bool> {
        let open = list(&self.announced).await?;
        let last = state.last_commit();
        let mut commits = open.iter().filter_map(|name| attempt_commit(name));
        Ok(commits.any(|commit| commit <= last))
    }

    /// Marks the folders that a commit is about to write as owned by this pipeline.
    pub(crate) async fn claim(&self, plans: &[(String, Plan)]) -> Result<()> {
        for output in &self.outputs {
            let is_written = plans.iter().any(|(name, _)| *name == output.name);
            if !output.is_marked && (output.name == "state" || is_written) {
                output.owner.claim(&output.folder, &output.setting).await?;
            }
        }
        Ok(())
    }

    /// Publishes the files of a committed run. Returns whether the curated table was published, if it is among its tables: not
    /// where the pipeline has it at another location now. `found` is the listing of the curated table's
    /// folder, if it was already made.
    pub(crate) async fn publish(
        &self,
        state: &State,
        run: &ledger::Run,
        mut found: Option<Vec<String>>,
    ) -> Result<bool> {
        let attempt = format!("{}/", attempt_name(run.commit, &run.run_id));
        let is_of_run =
            |file: &&&TableFile| file.to_move().any(|staged| staged.from.starts_with(&attempt));
        let now = Identity::of(self.run_context.pipeline);
        let (mut stagings, mut is_whole) = (Vec::new(), true);
        // A later run has replaced all of its files.
        let replaces = |later: &ledger::Run| {
            let is_of_table = later.tables.iter().any(|name| name == CURATED);
            later.commit > run.commit && later.command.replaces_table() && is_of_table
        };
        let is_replaced = state.ledger.runs.iter().any(replaces);
        for name in &run.tables {
            let Ok(Output { folder, staging, .. }) = self.output(name) else {
                warn!(
                    "an earlier run has not finished publishing `{name}`, which is no longer in \
                     the pipeline"
                );
                continue;
            };
            if name == CURATED && is_replaced {
                continue;
            }
            let contract = state.ledger.contract.as_ref();
            let committed = contract.map(|contract| contract.identity.table());
            if name == CURATED && committed != Some(now.table()) {
                warn!(
                    "an earlier run has not finished publishing the curated table at its \
                     earlier location"
                );
                is_whole = false;
                continue;
            }
            let files: Vec<&TableFile> = state.ledger.files(name).collect();
            let added: Vec<&TableFile> = files.iter().filter(is_of_run).copied().collect();
            let found = match found.take_if(|_| name == CURATED) {
                Some(found) => found,
                None => list_and_prune(folder).await?,
            };
            match self.curated_log(state).filter(|_| name == CURATED) {
                None => {
                    publish::publish(folder, staging, &added, &files, run.commit, found).await?;
                }
                Some(log) => {
                    let committed = Committed {
                        run_id: &run.run_id,
                        number: run.commit,
                        from_empty: run.command.replaces_table(),
                    };
                    log.publish(staging, &added, committed, found).await?;
                }
            }
            stagings.push(staging);
        }
        // Tables in the same folder share their staging folder.
        for staging in stagings {
            publish::clear(staging, run.commit).await?;
        }
        Ok(is_whole)
    }

    /// The Delta log of the curated table; `None` for another format.
    fn curated_log<'a>(&'a self, state: &'a State) -> Option<CuratedLog<'a>> {
        let curated = &self.run_context.pipeline.curated;
        Some(CuratedLog {
            table: &self.output(CURATED).ok()?.folder,
            contract: state.ledger.contract.as_ref()?,
            files: state.ledger.files(CURATED).collect(),
            vectors_unused: state.ledger.vectors_unused().collect(),
            has_vectors: curated.deletion_vectors,
            retention: curated.retention,
            now: self.run_context.now,
        })
        .filter(|_| curated.format == Format::Delta)
    }
}
