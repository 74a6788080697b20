//! Plans a run of a window: what it would read and replace. Changes nothing.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use chrono::{DateTime, NaiveDate, Utc};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{OpenPipeline, RunContext, date};
use crate::commands::run::inputs::window_inputs;
use crate::commands::run::truncate::check_new_loads;
use crate::curate::stage::Onto;
use crate::error::Result;
use crate::layout::{aggregate_run_id, parent};
use crate::publish::{self, FileNames, PartitionFiles};
use crate::raw::discover::Recorded;
use crate::report::text_table::day_or_instant;
use crate::report::{Answer, Report, is_zero, of_forgotten_keys, size};
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{CURATED, Ledger, Step};
use crate::table::TableFile;
use crate::types::times::day_window;
use crate::window::{Window, WindowSet};

/// The plan of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Planned {
    /// The pipeline's name.
    pub pipeline: String,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end, excluded.
    pub end: DateTime<Utc>,
    /// Inputs it would read.
    pub files: u64,
    /// Inputs among them that appeared after their own window was run.
    pub late_files: u64,
    /// Inputs among them that earlier runs have folded, and that change nothing.
    pub folded_files: u64,
    /// The inputs' size.
    pub bytes: u64,
    /// The late inputs, in file order.
    pub late: Vec<String>,
    /// The parts of the window that were already run.
    pub windows_run: WindowSet,
    /// The days of the window that have versions in the state, of published or deleted rows.
    pub days_published: Vec<NaiveDate>,
    /// The estimated cost, if an earlier run can be compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// The result of folding the inputs, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fold: Option<PlannedFold>,
    /// Further notes for the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The estimated cost of a run, from the earlier run with the closest input size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Wall time: that run's, scaled up if there are more bytes.
    pub seconds: f64,
    /// Memory: that run's, bounded by its limit.
    pub peak_memory_bytes: u64,
    /// The id of that run.
    pub run_id: String,
    /// The bytes that it read.
    pub bytes: u64,
}

/// The result of folding the inputs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlannedFold {
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Last changes that would be rows of the curated table.
    pub rows_latest: u64,
    /// Changes that a later one replaces.
    pub rows_superseded: u64,
    /// Last changes that leave no row, such as deletes.
    pub rows_deleted: u64,
    /// Rows that would be quarantined.
    pub rows_rejected: u64,
    /// Rows of keys that were forgotten.
    #[serde(skip_serializing_if = "is_zero")]
    pub rows_forgotten: u64,
    /// Inputs that would be quarantined as a whole.
    pub files_rejected: u64,
    /// Last changes not later than the versions of earlier runs.
    pub rows_stale: u64,
    /// Rows that would be written, including those only copied.
    pub rows_written: u64,
    /// The size of these rows.
    pub bytes_written: u64,
    /// The days whose rows would change.
    pub days: Vec<NaiveDate>,
    /// The partitions that would be written, as folders; an empty name is the whole table.
    pub partitions_written: Vec<String>,
    /// The partitions that would be removed.
    pub partitions_removed: Vec<String>,
}

/// Plans a run of a window; with `folds`, also folds the inputs into the spill folder.
///
/// # Errors
/// Those of the run, as far as it is planned.
pub fn plan<'a>(
    run_context: &'a RunContext<'_>,
    window: Window,
    folds: bool,
) -> LocalBoxFuture<'a, Result<Planned>> {
    let reads = if folds { Reads::Files } else { Reads::LogOnly };
    let needed = NeededInputs::of(&run_context.pipeline.raw, &window);
    of_one_commit(run_context, (reads, needed), async move |open, state| {
        plan_window(open, state, window, folds).await
    })
    .boxed_local()
}

async fn plan_window(
    open: &OpenPipeline<'_>,
    state: &State,
    window: Window,
    folds: bool,
) -> Result<Planned> {
    let run_context = open.run_context;
    let is_publishing = open.is_publishing(state).await?;
    if !is_publishing {
        open.check_not_changed(Step::Curate, state).await?;
    }
    let ledger = &state.ledger;
    let folders = run_context.raw()?;
    let found = window_inputs(run_context, &folders, ledger, &window).await?;
    let inputs = found.inputs;
    check_new_loads(&run_context.pipeline.raw, ledger, &inputs, &folders)?;
    let mut planned = Planned {
        pipeline: run_context.pipeline.name.clone(),
        start: window.start,
        end: window.end,
        files: inputs.len() as u64,
        bytes: inputs.iter().map(|input| input.file.size).sum(),
        windows_run: ledger.folded_windows().within(&window),
        days_published: days_with_rows(ledger, &window),
        notes: found.note.into_iter().collect(),
        ..Default::default()
    };
    for input in &inputs {
        let (location, path) = (input.file.location, &input.file.path);
        planned.folded_files += u64::from(ledger.folded(location, path).is_some());
        if input.late {
            planned.late_files += 1;
            planned.late.push(path.clone());
        }
    }
    planned.estimate = estimate(ledger, planned.bytes);
    if is_publishing {
        planned.notes.push(
            "another run is publishing, or was interrupted: this run would finish it first".into(),
        );
    }
    if folds && !inputs.is_empty() {
        planned.fold = Some(plan_fold(open, state, &inputs).await?);
    }
    Ok(planned)
}

async fn plan_fold(
    open: &OpenPipeline<'_>,
    state: &State,
    inputs: &[crate::raw::discover::Input],
) -> Result<PlannedFold> {
    let mut report = Report::default();
    let folded = open.dry_fold(state, inputs, Onto::Table, &mut report);
    let staged = folded.await?.staged;
    let mut planned = PlannedFold {
        rows_read: report.rows_read,
        rows_latest: report.rows_latest,
        rows_superseded: report.rows_superseded,
        rows_deleted: report.rows_deleted,
        rows_rejected: report.rows_rejected,
        rows_forgotten: report.rows_forgotten,
        files_rejected: staged.bad_files.len() as u64,
        rows_stale: report.rows_stale,
        ..Default::default()
    };
    let Some(curated) = staged.curated else {
        return Ok(planned);
    };
    let before: Vec<TableFile> = state.ledger.files(CURATED).cloned().collect();
    let had_rows: BTreeSet<&str> = before.iter().map(|file| parent(&file.path)).collect();
    let staged = curated.staged.iter().map(|file| file.partition.as_str());
    let of_kept = curated.kept.iter().map(|file| parent(&file.path));
    let left: BTreeSet<&str> = staged.chain(of_kept).collect();
    let partitions = curated.partitions.iter().cloned();
    let (written, emptied): (Vec<String>, Vec<String>) =
        partitions.partition(|partition| left.contains(partition.as_str()));
    let is_emptied = |partition: &String| had_rows.contains(partition.as_str());
    planned.partitions_removed = emptied.into_iter().filter(is_emptied).collect();
    planned.partitions_written = written;
    planned.days =
        curated.counts.days.union(&curated.days_left).filter_map(|day| date(*day)).collect();
    let replaced = |partition: &str| curated.partitions.contains(partition);
    let commit = state.next_commit();
    let files = PartitionFiles { staged: &curated.staged, kept: &curated.kept };
    let plan = publish::plan(files, &before, replaced, commit, FileNames::Reused);
    planned.rows_written = plan.counts.rows_written;
    planned.bytes_written = plan.counts.bytes_written;
    Ok(planned)
}

fn days_with_rows(ledger: &Ledger, window: &Window) -> Vec<NaiveDate> {
    let counts = ledger.versions.values().flat_map(|counts| counts.iter());
    let days: BTreeSet<NaiveDate> = counts.filter_map(|(day, _)| date(day?)).collect();
    let is_in = |day: &NaiveDate| {
        let of_day = day_window(*day, ledger.day_zone());
        of_day.is_some_and(|of_day| window.overlaps(&of_day))
    };
    days.into_iter().filter(is_in).collect()
}

/// Estimates from the run with the closest input size; from the newest of several.
fn estimate(ledger: &Ledger, bytes: u64) -> Option<Estimate> {
    let folds = ledger.runs.iter().rev();
    let sized = folds
        .filter(|run| run.command != Step::Aggregate)
        .map(|run| (run, run.count("bytes")))
        .filter(|(_, read)| *read > 0 && bytes > 0);
    let distance = |read: u64| (read as f64 / bytes as f64).ln().abs();
    let (run, read) = sized.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)))?;
    let aggregated = ledger.run(&aggregate_run_id(&run.run_id));
    let seconds = aggregated.map_or(run.seconds, |aggregated| aggregated.seconds);
    let scale = (bytes as f64 / read as f64).max(1.0);
    Some(Estimate {
        seconds: seconds * scale,
        peak_memory_bytes: run.count("peak_memory_bytes"),
        run_id: run.run_id.clone(),
        bytes: read,
    })
}

/// The number of paths, days and partitions that a plan's text lists of each kind.
const SHOWN: usize = 10;

/// Appends a line of a plan's text.
fn line(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "  {name:<10} {value}");
}

impl Answer for Planned {
    fn text(&self) -> String {
        let mut text = format!(
            "{}  {} to {}\n",
            self.pipeline,
            day_or_instant(self.start),
            day_or_instant(self.end)
        );
        self.describe_inputs(&mut text);
        self.describe_estimate(&mut text);
        if let Some(fold) = &self.fold {
            fold.describe(&mut text);
        }
        for note in &self.notes {
            line(&mut text, "note", note);
        }
        text
    }
}

impl Planned {
    fn describe_inputs(&self, text: &mut String) {
        let read = format!(
            "{} files, {}; {} of them late, {} folded before",
            self.files,
            size(self.bytes),
            self.late_files,
            self.folded_files
        );
        line(text, "would read", read);
        for path in self.late.iter().take(SHOWN) {
            line(text, "late", path);
        }
        if self.late.len() > SHOWN {
            line(text, "late", format_args!("and {} more", self.late.len() - SHOWN));
        }
        for part in &self.windows_run {
            let (start, end) = (day_or_instant(part.start), day_or_instant(part.end));
            line(text, "run before", format_args!("{start} to {end}"));
        }
        line(text, "published", listed(&self.days_published, SHOWN, "none of the window's days"));
    }

    fn describe_estimate(&self, text: &mut String) {
        let estimated = match &self.estimate {
            Some(estimate) => format!(
                "{:.1} s, {}, from run {}, which read {}",
                estimate.seconds,
                size(estimate.peak_memory_bytes),
                estimate.run_id,
                size(estimate.bytes)
            ),
            None if self.bytes == 0 => "none: there is nothing to read".into(),
            None => "none: no earlier run read anything".into(),
        };
        line(text, "estimate", estimated);
    }
}

impl PlannedFold {
    fn describe(&self, text: &mut String) {
        let rows = format!(
            "{} rows: {} latest, {} superseded ({} of them stale), {} deleted, {} rejected{}",
            self.rows_read,
            self.rows_latest,
            self.rows_superseded,
            self.rows_stale,
            self.rows_deleted,
            self.rows_rejected,
            of_forgotten_keys(self.rows_forgotten)
        );
        line(text, "fold", rows);
        let written = format!(
            "{} rows in {} partitions, {}; {} partitions would be removed",
            self.rows_written,
            self.partitions_written.len(),
            size(self.bytes_written),
            self.partitions_removed.len()
        );
        line(text, "would write", written);
        line(text, "days", listed(&self.days, SHOWN, "none"));
        for partition in self.partitions_written.iter().take(SHOWN) {
            line(text, "replace", partition);
        }
        if self.partitions_written.len() > SHOWN {
            let more = self.partitions_written.len() - SHOWN;
            line(text, "replace", format_args!("and {more} more"));
        }
        for partition in self.partitions_removed.iter().take(SHOWN) {
            line(text, "remove", partition);
        }
    }
}

/// The first `shown` days, and the number of the rest.
fn listed(days: &[NaiveDate], shown: usize, none: &str) -> String {
    if days.is_empty() {
        return none.into();
    }
    let shown_days: Vec<String> = days.iter().take(shown).map(NaiveDate::to_string).collect();
    let first = shown_days.join(", ");
    if days.len() > shown { format!("{first} and {} more", days.len() - shown) } else { first }
}
