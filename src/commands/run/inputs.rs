//! The inputs of a run, and what the ledger is to know of them.

use tracing::warn;

use crate::commands::open_pipeline::RunContext;
use crate::commands::run::Run;
use crate::commands::task::Task;
use crate::config::WindowBy;
use crate::error::{Error, Result};
use crate::raw::discover::{self, Input, RawFile, Recorded};
use crate::state::ledger::{Ledger, Record};
use crate::store::Folder;
use crate::window::Window;

/// The inputs of a run.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) inputs: Vec<Input>,
    /// What the ledger is to know of those that are not there.
    pub(crate) absent: Vec<Record>,
    /// What the report is to say of these.
    pub(crate) note: Option<String>,
}

impl Run<'_> {
    /// The inputs of a run.
    pub(super) async fn inputs(&self, folders: &[Folder], ledger: &Ledger) -> Result<Inputs> {
        match self.task {
            Task::Rebuild { accept_missing } => {
                self.rebuild_inputs(folders, ledger, accept_missing).await
            }
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
        let (inputs, gone) = discover::rediscover(folders, raw, ledger, false).await?;
        if inputs.is_empty() {
            return Err(
                Error::data("no input is left to rebuild from").hint("put the raw files back")
            );
        }
        // Of one that was put aside as a whole, nothing is lost.
        let was_folded = |file: &&&RawFile| ledger.folded(file.location, &file.path).is_some();
        let gone: Vec<&RawFile> = gone.iter().filter(was_folded).copied().collect();
        let mut found = Inputs {
            inputs,
            ..Default::default()
        };
        if let Some(told) = told(&gone) {
            if !accept_missing {
                return Err(Error::data(told)
                    .hint("put them back, or rebuild without them: --accept-missing"));
            }
            warn!("{told}: what only they said is lost");
            found.note = Some(told);
        }
        Ok(found)
    }
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
    let inputs = discover::discover(folders, pipeline, window, ledger).await?;
    let mut gone = discover::missing_in_window(raw, window, ledger.inputs.values(), &inputs);
    if pipeline.key.is_empty() {
        // What was folded is not read again, and not missed.
        gone.clear();
    }
    let absent = absent_records(ledger, gone.iter().copied());
    let note = told(&gone).map(|told| match raw.window_by {
        WindowBy::Commit => format!("{told}: of their rows, this run folds none"),
        _ => format!("{told}: nothing of them is lost"),
    });
    if let Some(note) = &note {
        warn!("{note}");
    }
    Ok(Inputs {
        inputs,
        absent,
        note,
    })
}

/// Names files that are gone, where some are.
pub(crate) fn told(gone: &[&RawFile]) -> Option<String> {
    let first = &gone.first()?.path;
    let count = gone.len();
    Some(format!(
        "{count} inputs that were folded are gone, such as {first}"
    ))
}

/// What the ledger is to know of inputs that are not there: runs of rows from now on read none of
/// theirs.
pub(crate) fn absent_records<'a>(
    ledger: &Ledger,
    gone: impl Iterator<Item = &'a RawFile>,
) -> Vec<Record> {
    let gone = gone.filter(|file| !file.is_absent);
    let records = gone.filter_map(|file| {
        let rows = ledger.rows_read(file.location, &file.path)?;
        Some(Record::Input(RawFile {
            rows: Some(rows),
            is_absent: true,
            ..file.clone()
        }))
    });
    records.collect()
}

/// What the ledger is to know of an input that a run has folded, if it does not know it yet.
/// `window` is the run's.
pub(crate) fn input_record(
    ledger: &Ledger,
    input: &Input,
    commit: u64,
    anew: bool,
    window: &Window,
) -> Option<Record> {
    let (location, path) = (input.file.location, &input.file.path);
    let Some(before) = ledger.folded(location, path).filter(|_| !anew) else {
        return Some(Record::Input(RawFile {
            commit,
            rows: input.rows.clone(),
            ..input.file.clone()
        }));
    };
    // All of its rows were folded.
    let read = ledger.rows_read(location, path)?;
    // Those of the run's window are known by the run, but for what it read beside its window.
    let is_beside = |rows: &Vec<Window>| rows.iter().any(|rows| !window.covers(rows));
    let is_more = before.is_absent
        || ledger.is_quarantined(location, path)
        || input.rows.as_ref().is_none_or(is_beside);
    let rows = input
        .rows
        .as_ref()
        .map(|rows| Window::union(read.into_iter().chain(rows.iter().copied()).collect()));
    is_more.then(|| {
        Record::Input(RawFile {
            commit: before.commit,
            rows,
            ..input.file.clone()
        })
    })
}
