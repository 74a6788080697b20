//! The inputs of a run, and their ledger records.

use tracing::warn;

use crate::commands::open_pipeline::RunContext;
use crate::commands::run::Run;
use crate::commands::task::Task;
use crate::config::{Pipeline, Raw, WindowBy};
use crate::error::{Error, Result};
use crate::raw::discover::{self, Input, RawFile, Recorded, Rediscovered};
use crate::raw::loads::{Unsettled, is_reload};
use crate::raw::reload::check_reloads;
use crate::report::one_note;
use crate::state::ledger::{Ledger, Quarantined, Record};
use crate::store::Folder;
use crate::window::{Window, WindowSet};

/// The hint where raw files are missing.
const FROM_TABLE: &str = "restore them, or make the tables from the rows of the curated table: glueless rebuild --from-table; \
                          --accept-missing rebuilds without them, and what only they had is lost";

/// The inputs of a run.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) inputs: Vec<Input>,
    /// Ledger records of inputs that are missing, or were written again with the same bytes.
    pub(crate) records: Vec<Record>,
    /// A note for the report on missing inputs.
    pub(crate) note: Option<String>,
}

impl Run<'_> {
    /// The inputs of a run.
    pub(super) async fn inputs(&self, folders: &[Folder], ledger: &Ledger) -> Result<Inputs> {
        match self.task {
            Task::Rebuild { accept_missing } => {
                self.rebuild_inputs(folders, ledger, accept_missing).await
            }
            Task::UndoTruncate(_) | Task::Recall(_) => {
                self.rebuild_inputs(folders, ledger, false).await
            }
            Task::Truncate(_) | Task::Forget(_) | Task::RebuildFromTable => Ok(Inputs::default()),
            Task::CatchUp => self.catch_up_inputs(folders, ledger).await,
            Task::Run(_) | Task::Curate(_) | Task::Aggregate(_) => {
                window_inputs(self.open.run_context, folders, ledger, &self.window).await
            }
        }
    }

    async fn rebuild_inputs(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
        accept_missing: bool,
    ) -> Result<Inputs> {
        let raw = &self.open.run_context.pipeline.raw;
        let rediscovered = discover::rediscover(folders, raw, ledger, false).await?;
        if rediscovered.inputs.is_empty() {
            return Err(Error::data(
                "all raw files that were folded are missing: there is nothing to rebuild from",
            )
            .hint(FROM_TABLE));
        }
        if raw.full_loads.at.is_time() {
            self.check_settled(folders, ledger, &rediscovered)?;
        } else {
            check_reloads(folders, raw, ledger, &rediscovered)?;
        }
        let overwritten = overwritten_loads(folders, raw, ledger, &rediscovered.inputs);
        let Rediscovered { inputs, missing: all_missing, .. } = rediscovered;
        // An input quarantined as a whole has no rows in the table to lose.
        let was_folded = |file: &&&RawFile| ledger.folded(file.location, &file.path).is_some();
        let missing: Vec<&RawFile> = all_missing.iter().filter(was_folded).copied().collect();
        let mut found = Inputs { inputs, ..Default::default() };
        if let Some(note) = describe_missing(&missing) {
            if !accept_missing {
                return Err(Error::data(note).hint(match self.task {
                    Task::UndoTruncate(_) | Task::Recall(_) => ONLY_IN_RAW,
                    _ => FROM_TABLE,
                }));
            }
            warn!("{note}: changes that only they had are lost");
            found.note = Some(note);
        }
        if let Some(note) = overwritten {
            if !accept_missing {
                return Err(Error::data(note).hint(
                    "a table of `latest-per-day`, `history` or `keep_deleted`, and aggregates over `history`, would lose \
                     what only the earlier loads said of the time before; the newest rows are right in any case: \
                     rebuild without them with --accept-missing",
                ));
            }
            warn!("{note}: what only those said is lost");
            let before = found.note.take().into_iter();
            found.note = one_note(before.chain([note]));
        }
        Ok(found)
    }
}

impl Run<'_> {
    /// Refuses to rebuild from a full load that is still being written.
    fn check_settled(
        &self,
        folders: &[Folder],
        ledger: &Ledger,
        found: &Rediscovered<'_>,
    ) -> Result<()> {
        let run_context = self.open.run_context;
        let (raw, now) = (&run_context.pipeline.raw, run_context.now);
        for (location, folder) in folders.iter().enumerate() {
            let files = found.inputs.iter().map(|input| &input.file);
            let files = files.filter(|file| file.location == location).cloned();
            let files: Vec<RawFile> = files.collect();
            let unsettled = Unsettled::find(raw, folder, &files, ledger, now);
            if let Some(which) = unsettled.describe(raw, folders) {
                return Err(Error::data(which)
                    .hint("rebuild then: a rebuild now would fold half of a full load"));
            }
        }
        Ok(())
    }
}

/// The hint for a truncate by hand, or a forgotten key, that cannot be taken back.
const ONLY_IN_RAW: &str = "nothing was changed: what it has taken out of the table is in the raw files only, so restore \
                           them as they were folded";

/// Describes the full loads with a time that were written over folded ones.
fn overwritten_loads(
    folders: &[Folder],
    raw: &Raw,
    ledger: &Ledger,
    inputs: &[Input],
) -> Option<String> {
    let is_overwritten = |input: &&Input| {
        let (file, folder) = (&input.file, &folders[input.file.location]);
        let folded = ledger.folded(file.location, &file.path);
        folded.is_some_and(|folded| is_reload(raw, folder, folded, file))
            || file.load.as_ref().is_some_and(|load| load.replaces)
    };
    let mut overwritten = inputs.iter().filter(is_overwritten);
    let first = &overwritten.next()?.file.path;
    let count = 1 + overwritten.count();
    Some(format!("{count} full loads were written over earlier ones, such as {first}"))
}

/// The inputs of a window.
pub(crate) async fn window_inputs(
    run_context: &RunContext<'_>,
    folders: &[Folder],
    ledger: &Ledger,
    window: &Window,
) -> Result<Inputs> {
    let pipeline = run_context.pipeline;
    let raw = &pipeline.raw;
    let found = discover::discover(folders, pipeline, window, ledger, run_context.now).await?;
    let mut records = renewed_records(ledger, &found.renewed);
    records.extend(absent_records(ledger, found.missing.iter().copied()));
    let notes = note_of_missing(pipeline, ledger, &found.missing).into_iter();
    let notes = notes.chain(found.unsettled.describe(raw, folders));
    let note = one_note(notes);
    if let Some(note) = &note {
        warn!("{note}");
    }
    Ok(Inputs { inputs: found.inputs, records, note })
}

/// The note of a run on missing inputs.
pub(crate) fn note_of_missing(
    pipeline: &Pipeline,
    ledger: &Ledger,
    missing: &[&RawFile],
) -> Option<String> {
    let raw = &pipeline.raw;
    let is_cdc = |file: &&RawFile| !raw.is_full_load(file.location, &file.path);
    let note = describe_missing(missing)?;
    let note = match raw.window_by {
        WindowBy::Commit if missing.iter().any(is_cdc) => {
            format!("{note}: this run folds none of their rows")
        }
        _ => format!("{note}: their changes are not lost"),
    };
    // AWS DMS removes the files of a table that it truncates.
    let is_ended = |file: &&RawFile| ledger.truncates_by_hand().any(|at| at > file.window_time());
    let mut loads = missing.iter().copied().filter(|file| !is_cdc(file) && !is_ended(file));
    let can_be_truncated = !pipeline.key.is_empty() && raw.can_begin_with_commit_time();
    Some(match loads.next().filter(|_| can_be_truncated) {
        None => note,
        Some(_) => format!(
            "{note}; a full load is among them: if the source table was emptied, say when with `glueless truncate`"
        ),
    })
}

/// Describes missing files; `None` if there are none.
pub(crate) fn describe_missing(missing: &[&RawFile]) -> Option<String> {
    let first = &missing.first()?.path;
    let count = missing.len();
    Some(format!("{count} inputs that were folded are missing, such as {first}"))
}

/// Ledger records of inputs that have the same bytes and another time or ETag.
pub(crate) fn renewed_records(ledger: &Ledger, renewed: &[RawFile]) -> Vec<Record> {
    let records = renewed.iter().filter_map(|file| {
        if let Some(before) = ledger.folded(file.location, &file.path) {
            return Some(Record::Input(written_again(before, file)));
        }
        let before = ledger.quarantined.get(&(file.location, file.path.clone()))?;
        let input = written_again(&before.input, file);
        Some(Record::Quarantined(Quarantined { input, ..before.clone() }))
    });
    records.collect()
}

/// The record of an input with the time, ETag and fingerprint that it has now.
fn written_again(before: &RawFile, now: &RawFile) -> RawFile {
    RawFile {
        commit: before.commit,
        rows: before.rows.clone(),
        is_absent: before.is_absent,
        ..now.clone()
    }
}

/// Ledger records of missing inputs: from now on, runs that select rows by commit time read none of
/// their rows.
pub(crate) fn absent_records<'a>(
    ledger: &Ledger,
    missing: impl Iterator<Item = &'a RawFile>,
) -> Vec<Record> {
    let new = missing.filter(|file| !file.is_absent);
    let records = new.filter_map(|file| {
        let rows = ledger.rows_read(file.location, &file.path)?;
        Some(Record::Input(RawFile { rows: Some(rows), is_absent: true, ..file.clone() }))
    });
    records.collect()
}

/// The ledger record of an input that a run of `window` has folded; `None` if the ledger already
/// says it. `from_empty`: as if no run had folded it before.
pub(crate) fn input_record(
    ledger: &Ledger,
    input: &Input,
    commit: u64,
    from_empty: bool,
    window: &Window,
) -> Option<Record> {
    let (location, path) = (input.file.location, &input.file.path);
    let is_other_load = |before: &&RawFile| input.full_load && before.load != input.file.load;
    let before = ledger.folded(location, path).filter(|before| !is_other_load(before));
    let Some(before) = before.filter(|_| !from_empty) else {
        return Some(Record::Input(RawFile {
            commit,
            rows: input.rows.clone(),
            ..input.file.clone()
        }));
    };
    // Inputs of earlier versions have no fingerprint.
    let is_fingerprint_new = before.fingerprint.is_none() && input.file.fingerprint.is_some();
    let known = || is_fingerprint_new.then(|| Record::Input(written_again(before, &input.file)));
    let Some(read) = ledger.rows_read(location, path) else {
        // All of its rows were already folded.
        return known();
    };
    // The run's own record covers rows of its window; only rows outside of it must be recorded.
    let is_outside = |rows: &WindowSet| rows.iter().any(|rows| !window.covers(rows));
    let is_new = before.is_absent
        || ledger.is_quarantined(location, path)
        || input.rows.as_ref().is_none_or(is_outside);
    if !is_new {
        return known();
    }
    let rows = input.rows.as_ref().map(|rows| rows.union(&read));
    Some(Record::Input(RawFile { commit: before.commit, rows, ..input.file.clone() }))
}
