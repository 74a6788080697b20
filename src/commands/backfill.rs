//! Backfill: runs a span of time window by window.
//!
//! Any windows in any order give the same tables, so the other windows still run after one fails,
//! and an interrupted backfill resumes when it is started again: windows that are in the ledger,
//! and that have no new files, are skipped.

use std::fmt::Write;

use chrono::{DateTime, Duration, Utc};
use serde::Serialize;
use tracing::warn;

use crate::commands::follow::follow;
use crate::commands::open_pipeline::RunContext;
use crate::commands::run::{finish, run};
use crate::commands::task::Task;
use crate::config::{Aggregate, Pipeline};
use crate::error::{Error, INTERRUPTED, Kind, Result, worst};
use crate::raw::discover;
use crate::report::text_table::{Table, day_or_instant};
use crate::report::{Answer, FollowerReport, Report};
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::window::{Window, WindowSet};

/// The options of a backfill.
#[derive(Clone, Copy, Debug)]
pub struct Backfill {
    /// The span.
    pub span: Window,
    /// The length of a window; the last window ends with the span.
    pub step: Duration,
    /// Whether to run windows that were already run.
    pub redo: bool,
    /// Whether to stop at the first window that fails.
    pub fail_fast: bool,
    /// Whether followers are brought to the commit of each window too, not only at the end.
    pub follows_each: bool,
}

/// Creates the context of each run and observes its result.
pub trait Watch<'a> {
    /// The context of the run that starts now, after `done` of `all` windows.
    fn begin(&self, window: &Window, done: usize, all: usize) -> RunContext<'a>;
    /// Called when a run has ended.
    fn end(&self, run_context: &RunContext<'a>, ended: &Result<Report>);
    /// Called when followers were brought to the newest commit at the end; whether a window has failed.
    fn followed(
        &self,
        run_context: &RunContext<'a>,
        followers: &[FollowerReport],
        has_failed: bool,
    );
    /// Whether to start no further run.
    fn is_stopped(&self) -> bool;
}

/// The result of a backfill.
#[derive(Clone, Debug, Serialize)]
pub struct Backfilled {
    /// The pipeline's name.
    pub pipeline: String,
    /// The span's start.
    pub start: DateTime<Utc>,
    /// The span's end, excluded.
    pub end: DateTime<Utc>,
    /// The number of windows in the span.
    pub windows: u64,
    /// Windows that were run.
    pub windows_done: u64,
    /// Windows skipped, because they were already run.
    pub windows_skipped: u64,
    /// Windows that failed.
    pub windows_failed: u64,
    /// Windows not started.
    pub windows_left: u64,
    /// Inputs read.
    pub files: u64,
    /// Inputs among them that appeared after their own window was run.
    pub late_files: u64,
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Rows written to the curated table.
    pub rows_written: u64,
    /// Rows that were quarantined.
    pub rows_rejected: u64,
    /// Inputs that were quarantined as a whole.
    pub files_rejected: u64,
    /// Wall time of the runs.
    pub seconds: f64,
    /// The worst exit code of the windows and of the followers.
    pub exit_code: u8,
    /// The followers, if they were brought to the newest commit at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<FollowerReport>,
    /// The result of each window, in order.
    pub results: Vec<WindowResult>,
}

/// The result of a window.
#[derive(Clone, Debug, Serialize)]
pub struct WindowResult {
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end, excluded.
    pub end: DateTime<Utc>,
    /// `done`, `skipped`, `failed`, or `left` if it was not started.
    pub status: &'static str,
    /// The id of its run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Inputs read.
    pub files: u64,
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Rows written to the curated table.
    pub rows_written: u64,
    /// Wall time.
    pub seconds: f64,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The error's hint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Backfill {
    /// The windows of the span, in order.
    ///
    /// # Errors
    /// Usage, when the step is not positive, or there are too many windows.
    pub fn windows(&self) -> Result<Vec<Window>> {
        const WINDOWS_MAX: i64 = 100_000;
        if self.step <= Duration::zero() {
            return Err(Error::usage("the step must be positive").hint("write --step 1d"));
        }
        let length = self.span.end - self.span.start;
        if length.num_seconds() / self.step.num_seconds().max(1) > WINDOWS_MAX {
            return Err(Error::usage(format!("the span has more than {WINDOWS_MAX} windows"))
                .hint("use a longer --step"));
        }
        let mut windows = Vec::new();
        let mut start = self.span.start;
        while start < self.span.end {
            let end = start.checked_add_signed(self.step);
            let end = end.map_or(self.span.end, |end| end.min(self.span.end));
            windows.push(Window { start, end });
            start = end;
        }
        Ok(windows)
    }
}

/// Runs the windows of a span.
///
/// # Errors
/// Usage, as [`Backfill::windows`]. The error of a window is part of the result.
pub async fn backfill<'a>(
    options: &Backfill,
    pipeline: &Pipeline,
    watch: &dyn Watch<'a>,
) -> Result<Backfilled> {
    let windows = options.windows()?;
    let mut all = Backfilled::new(options, pipeline, windows.len());
    let mut is_done = vec![false; windows.len()];
    let mut is_over = false;
    for (number, window) in windows.iter().enumerate() {
        if watch.is_stopped() && !is_over {
            is_over = true;
            all.exit_code = worst([all.exit_code, INTERRUPTED]);
        }
        if is_over {
            all.windows_left += 1;
            all.results.push(WindowResult::new(window, "left"));
            continue;
        }
        let mut run_context = watch.begin(window, number, windows.len());
        run_context.follows = options.follows_each;
        if number == 0 && !options.redo {
            is_done = done_windows(&run_context, &windows).await;
        }
        if is_done[number] {
            all.windows_skipped += 1;
            all.results.push(WindowResult::new(window, "skipped"));
            continue;
        }
        let ended = run(&run_context, Task::Run(*window)).await;
        watch.end(&run_context, &ended);
        all.add(window, &run_context, &ended);
        // An error in the pipeline fails every window.
        is_over = ended.is_err_and(|error| options.fail_fast || error.kind == Kind::Usage);
    }
    if watch.is_stopped() {
        all.exit_code = worst([all.exit_code, INTERRUPTED]);
    }
    // Also if all windows are skipped, or each was followed: an earlier follower may have failed.
    let has_commit = all.windows_done + all.windows_skipped > 0;
    if let Some(last) = windows.last().filter(|_| has_commit && !watch.is_stopped()) {
        let run_context = watch.begin(last, windows.len(), windows.len());
        all.followers = follow(&run_context, options.span).await;
        watch.followed(&run_context, &all.followers, all.windows_failed > 0);
        let codes = all.followers.iter().map(|follower| follower.exit_code);
        all.exit_code = worst(codes.chain([all.exit_code]));
    }
    Ok(all)
}

impl Backfilled {
    /// A backfill of so many windows before the first one.
    fn new(options: &Backfill, pipeline: &Pipeline, windows: usize) -> Self {
        Backfilled {
            pipeline: pipeline.name.clone(),
            start: options.span.start,
            end: options.span.end,
            windows: windows as u64,
            windows_done: 0,
            windows_skipped: 0,
            windows_failed: 0,
            windows_left: 0,
            files: 0,
            late_files: 0,
            rows_read: 0,
            rows_written: 0,
            rows_rejected: 0,
            files_rejected: 0,
            seconds: 0.0,
            exit_code: 0,
            followers: Vec::new(),
            results: Vec::with_capacity(windows),
        }
    }

    /// Adds the result of a window that was run.
    fn add(&mut self, window: &Window, run_context: &RunContext<'_>, ended: &Result<Report>) {
        let mut result = WindowResult::new(window, "done");
        result.run_id = Some(run_context.run_id.clone());
        result.seconds = run_context.meter.seconds();
        self.seconds += result.seconds;
        match ended {
            Ok(report) => {
                result.files = report.files;
                result.rows_read = report.rows_read;
                result.rows_written = report.rows_written;
                self.windows_done += 1;
                self.files += report.files;
                self.late_files += report.late_files;
                self.rows_read += report.rows_read;
                self.rows_written += report.rows_written;
                self.rows_rejected += report.rows_rejected;
                self.files_rejected += report.files_rejected;
            }
            Err(error) => {
                result.status = "failed";
                result.error = Some(error.to_string());
                result.hint.clone_from(&error.hint);
                self.windows_failed += 1;
                self.exit_code = worst([self.exit_code, error.kind.exit_code()]);
            }
        }
        self.results.push(result);
    }
}

impl WindowResult {
    /// The result of a window of which nothing was read.
    fn new(window: &Window, status: &'static str) -> Self {
        WindowResult {
            start: window.start,
            end: window.end,
            status,
            run_id: None,
            files: 0,
            rows_read: 0,
            rows_written: 0,
            seconds: 0.0,
            error: None,
            hint: None,
        }
    }
}

/// Which windows can be skipped: they were run, and no new file has appeared in them since. If that
/// cannot be determined, all windows are run, and their own errors say why.
async fn done_windows(run_context: &RunContext<'_>, windows: &[Window]) -> Vec<bool> {
    match find_done(run_context, windows).await {
        Ok(done) => done,
        Err(error) => {
            warn!("running all windows, because those already done cannot be determined: {error}");
            vec![false; windows.len()]
        }
    }
}

async fn find_done(run_context: &RunContext<'_>, windows: &[Window]) -> Result<Vec<bool>> {
    let pipeline = run_context.pipeline;
    // A window is done only once its committed run is also published.
    finish(run_context).await?;
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
        return Ok(Vec::new());
    };
    let span = first.span(last);
    let needed = NeededInputs::of(&pipeline.raw, &span);
    let state = State::open(run_context.stores, pipeline, needed).await?;
    let ledger = &state.ledger;
    let tables: Vec<String> = pipeline.aggregates.iter().map(Aggregate::table).collect();
    let aggregated = tables.iter().map(|table| ledger.windows_aggregated(table));
    let all: Vec<WindowSet> = aggregated.chain([ledger.folded_windows()]).collect();
    let was_run = |window: &Window| all.iter().all(|runs| runs.covers(window));
    let mut done: Vec<bool> = windows.iter().map(was_run).collect();
    if !done.contains(&true) {
        return Ok(done);
    }
    let folders = run_context.raw()?;
    for span in discover::new_spans(&folders, pipeline, &span, ledger, run_context.now).await? {
        match span {
            Some(span) => {
                let each = windows.iter().zip(&mut done);
                each.for_each(|(window, done)| *done &= !window.overlaps(&span));
            }
            // A file without a known time may have rows of any window.
            None => done.fill(false),
        }
    }
    // Any run brings aggregates up to date.
    let is_behind = tables.iter().any(|table| !ledger.is_aggregated(table));
    if is_behind && done.iter().all(|done| *done) {
        done[windows.len() - 1] = false;
    }
    Ok(done)
}

impl Answer for Backfilled {
    fn text(&self) -> String {
        let mut text = format!(
            "{}  {} to {}: {} windows, {} done, {} skipped, {} failed, {} left\n",
            self.pipeline,
            day_or_instant(self.start),
            day_or_instant(self.end),
            self.windows,
            self.windows_done,
            self.windows_skipped,
            self.windows_failed,
            self.windows_left
        );
        let mut table = Table::new(&[
            "start",
            "end",
            "status",
            "files",
            "rows read",
            "rows written",
            "seconds",
        ]);
        for result in &self.results {
            table.row([
                day_or_instant(result.start),
                day_or_instant(result.end),
                result.status.into(),
                result.files.to_string(),
                result.rows_read.to_string(),
                result.rows_written.to_string(),
                format!("{:.1}", result.seconds),
            ]);
        }
        text.push_str(&table.text());
        for follower in &self.followers {
            let _ = writeln!(text, "follower {}", follower.line());
        }
        for result in &self.results {
            if let Some(error) = &result.error {
                let _ = writeln!(text, "{}: {error}", day_or_instant(result.start));
            }
        }
        if self.windows_left > 0 {
            text.push_str(
                "run the same command again to continue: windows that are done are skipped\n",
            );
        }
        text
    }

    fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::parse_instant;

    fn options(start: &str, end: &str, step: Duration) -> Backfill {
        let date = |text| parse_instant(text).expect("a date");
        Backfill {
            span: Window::new(date(start), date(end)).expect("a window"),
            step,
            redo: false,
            fail_fast: false,
            follows_each: false,
        }
    }

    #[test]
    fn the_last_window_ends_with_the_span() {
        let windows = options("2020-01-01", "2020-01-02T12:00:00Z", Duration::days(1));
        let windows = windows.windows().expect("windows");
        let shown: Vec<String> = windows.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "[2020-01-01T00:00:00Z, 2020-01-02T00:00:00Z)",
                "[2020-01-02T00:00:00Z, 2020-01-02T12:00:00Z)"
            ]
        );
    }

    #[test]
    fn steps_that_lead_nowhere_are_refused() {
        let none = options("2020-01-01", "2020-01-02", Duration::zero());
        assert!(none.windows().is_err());
        let seconds = options("2000-01-01", "2020-01-02", Duration::seconds(1));
        assert!(seconds.windows().is_err());
    }
}
