//! Lists the runs in the ledger of a pipeline, and the gaps between their windows.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::commands::open_pipeline::{RunContext, check_state_exists};
use crate::error::Result;
use crate::layout::{attempt_name, run_id_of_aggregate};
use crate::report::Answer;
use crate::report::text_table::{Table, day_or_instant};
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{Ledger, Run, Step};
use crate::store::listing::list;
use crate::window::WindowSet;

/// The runs of a pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct History {
    /// The pipeline's name.
    pub pipeline: String,
    /// Its runs, in commit order.
    pub runs: Vec<PastRun>,
    /// Gaps between the windows that were run, ascending.
    pub gaps: WindowSet,
    /// Raw files in quarantine, as a whole or some of their rows.
    pub files_in_quarantine: u64,
}

/// A committed run.
#[derive(Clone, Debug, Serialize)]
pub struct PastRun {
    /// The run's id.
    pub run_id: String,
    /// The command: `run`, `curate`, `aggregate`, `rebuild`, `catch-up`.
    pub command: &'static str,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end, excluded.
    pub end: DateTime<Utc>,
    /// The run's start time.
    pub at: DateTime<Utc>,
    /// Wall time until its last commit.
    pub seconds: f64,
    /// Inputs read.
    pub files: u64,
    /// Inputs among them that appeared after their own window was run.
    pub late_files: u64,
    /// The inputs' size.
    pub bytes: u64,
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Rows written to the curated table.
    pub rows_written: u64,
    /// Rows that were quarantined.
    pub rows_rejected: u64,
    /// Curated partitions written or removed.
    pub partitions: u64,
    /// Peak resident memory of the process until its last commit.
    pub peak_memory_bytes: u64,
    /// Days whose rows changed.
    pub days: u64,
    /// `done`, or `publishing` while its files are not all published: it is still publishing, or
    /// was interrupted and the next run finishes it.
    pub status: &'static str,
}

/// Reads the history; changes nothing.
///
/// # Errors
/// Usage, when the state was written by a newer version; storage, when it cannot be read.
pub async fn history(run_context: &RunContext<'_>) -> Result<History> {
    let pipeline = run_context.pipeline;
    let mut state = State::open(run_context.stores, pipeline, NeededInputs::Recent).await?;
    if state.ledger.runs.is_empty() {
        check_state_exists(run_context, &mut state).await?;
    }
    let announced = run_context.stores.open(&pipeline.state.join("publishing"))?;
    let open = list(&announced).await?;
    let is_open = |run: &Run| open.contains(&attempt_name(run.commit, &run.run_id));
    Ok(History {
        pipeline: pipeline.name.clone(),
        runs: past_runs(&state.ledger, is_open),
        gaps: state.ledger.gaps(),
        files_in_quarantine: state.ledger.quarantined.len() as u64,
    })
}

/// The runs of a ledger; the curate and aggregate commits of one run are merged.
fn past_runs(ledger: &Ledger, is_open: impl Fn(&Run) -> bool) -> Vec<PastRun> {
    let mut past: Vec<PastRun> = Vec::new();
    for run in &ledger.runs {
        let status = if is_open(run) { "publishing" } else { "done" };
        let curate_id = run_id_of_aggregate(&run.run_id);
        let is_same_run = |past: &&mut PastRun| Some(past.run_id.as_str()) == curate_id;
        let first = curate_id.and_then(|_| past.iter_mut().rev().find(is_same_run));
        if let Some(first) = first {
            first.seconds = run.seconds;
            first.peak_memory_bytes = first.peak_memory_bytes.max(run.count("peak_memory_bytes"));
            if first.command == "curate" {
                first.command = "run";
            }
            if status != "done" {
                first.status = status;
            }
            continue;
        }
        past.push(PastRun {
            run_id: curate_id.unwrap_or(&run.run_id).to_string(),
            command: match run.command {
                Step::Curate => "curate",
                Step::Rebuild => "rebuild",
                Step::Aggregate => "aggregate",
                Step::CatchUp => "catch-up",
                Step::Truncate => "truncate",
                Step::Forget => "forget",
                Step::FromTable => "rebuild --from-table",
            },
            start: run.start,
            end: run.end,
            at: run.at,
            seconds: run.seconds,
            files: run.count("files"),
            late_files: run.count("late_files"),
            bytes: run.count("bytes"),
            rows_read: run.count("rows_read"),
            rows_written: run.count("rows_written"),
            rows_rejected: run.count("rows_rejected"),
            partitions: run.count("partitions_written") + run.count("partitions_removed"),
            peak_memory_bytes: run.count("peak_memory_bytes"),
            days: run.changed.days.len() as u64,
            status,
        });
    }
    past
}

impl Answer for History {
    fn text(&self) -> String {
        if self.runs.is_empty() {
            return format!("{}: no run has committed anything yet\n", self.pipeline);
        }
        let mut table = Table::new(&[
            "start",
            "end",
            "command",
            "when",
            "files",
            "late",
            "rows read",
            "rejected",
            "rows written",
            "partitions",
            "seconds",
            "status",
            "run",
        ]);
        for run in &self.runs {
            table.row([
                day_or_instant(run.start),
                day_or_instant(run.end),
                run.command.into(),
                run.at.to_rfc3339_opts(SecondsFormat::Secs, true),
                run.files.to_string(),
                run.late_files.to_string(),
                run.rows_read.to_string(),
                run.rows_rejected.to_string(),
                run.rows_written.to_string(),
                run.partitions.to_string(),
                format!("{:.1}", run.seconds),
                run.status.into(),
                run.run_id.clone(),
            ]);
        }
        let mut text = table.text();
        for gap in &self.gaps {
            let _ = writeln!(
                text,
                "gap: {} to {} was never run; `glueless catch-up` folds its files",
                day_or_instant(gap.start),
                day_or_instant(gap.end)
            );
        }
        if self.files_in_quarantine > 0 {
            let _ = writeln!(
                text,
                "in quarantine: {} files, as a whole or some of their rows",
                self.files_in_quarantine
            );
        }
        text
    }
}
