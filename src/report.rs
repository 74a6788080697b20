//! The run report: one line of JSON for programs, a short table for people.

use std::fmt::Write;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::{Error, Result, worst};
use crate::raw::schema_changes::SchemaChange;
use crate::report::text_table::Table;

pub mod examined;
pub mod text_table;

/// Measures a run: wall time and the process's memory.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// When the run began.
    pub started: Instant,
    /// Returns the process's peak resident memory so far.
    pub peak_memory_bytes: fn() -> u64,
}

impl Meter {
    /// The wall time so far.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Writes the measurements into a report.
    pub fn measure(&self, report: &mut Report) {
        report.seconds = self.seconds();
        report.peak_memory_bytes = (self.peak_memory_bytes)();
    }
}

/// The report of a run. Field names and meanings are part of the program's public interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The run's id.
    pub run_id: String,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end, exclusive.
    pub end: DateTime<Utc>,
    /// Inputs read.
    pub files: u64,
    /// Inputs read that appeared after their own window was run.
    pub late_files: u64,
    /// Size of the inputs.
    pub bytes: u64,
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Key changes that were split into a delete and an insert.
    pub key_moves: u64,
    /// Last changes that are rows of the curated table.
    pub rows_latest: u64,
    /// Changes that a later change of the same key (and day, under `latest-per-day`) replaced.
    pub rows_superseded: u64,
    /// Last changes that leave no row, or whose row a truncate has ended.
    pub rows_deleted: u64,
    /// Rows that were quarantined.
    pub rows_rejected: u64,
    /// Inputs that were quarantined.
    pub files_rejected: u64,
    /// Rows outside of the window, with `window_by = "commit"`.
    pub rows_outside: u64,
    /// Rows that are no change: by `raw.op_values.ignore`, and tombstones in envelopes.
    #[serde(skip_serializing_if = "is_zero")]
    pub rows_ignored: u64,
    /// Rows that are changes of keys that were forgotten (`glueless forget`).
    #[serde(skip_serializing_if = "is_zero")]
    pub rows_forgotten: u64,
    /// Rows that are truncates (`raw.op_values.truncate`).
    #[serde(skip_serializing_if = "is_zero")]
    pub truncates: u64,
    /// Last changes of the window that are not later than the committed versions.
    pub rows_stale: u64,
    /// Last changes that were decided by file or row only.
    pub ties: u64,
    /// Rows written to the curated table.
    pub rows_written: u64,
    /// Curated partitions written.
    pub partitions_written: u64,
    /// Curated partitions that were left without rows.
    pub partitions_removed: u64,
    /// Bytes written to the curated table: partitions in which rows changed, as a whole.
    pub bytes_written: u64,
    /// The share of these bytes that is rows of this run, estimated by the number of rows; the rest
    /// was there before.
    pub bytes_changed: u64,
    /// The aggregates, in the pipeline's order.
    pub aggregates: Vec<AggregateReport>,
    /// The followers, in the pipeline's order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<FollowerReport>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The process's peak resident memory.
    pub peak_memory_bytes: u64,
    /// The newest commit time of all changes folded so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_commit_time: Option<DateTime<Utc>>,
    /// Raw files with rows in quarantine, or in quarantine as a whole, after the run.
    #[serde(skip_serializing_if = "is_zero")]
    pub files_in_quarantine: u64,
    /// Changes of other tables in the inputs, which are not counted as rows.
    #[serde(skip_serializing_if = "is_zero")]
    pub rows_of_other_tables: u64,
    /// How raw columns changed: from file to file, and since earlier runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schema_changes: Vec<SchemaChange>,
    /// The folder of the quarantined rows and inputs, if there are any. Their changes are missing in
    /// the table: a key that one of them deletes is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// A remark on the run, such as why there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The report of a run on one aggregate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AggregateReport {
    /// The aggregate's name.
    pub name: String,
    /// Days that were computed.
    pub days: u64,
    /// Rows that were removed.
    pub rows_removed: u64,
    /// Rows that were inserted.
    pub rows_inserted: u64,
}

/// The report of a follower.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FollowerReport {
    /// What follows: `postgres:` or `glue:`, and the table.
    pub name: String,
    /// The commit that it had before; `None` if it had none.
    pub from_commit: Option<u64>,
    /// The commit that it has now; 0 if it failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub to_commit: u64,
    /// Rows that were inserted or updated.
    pub rows_upserted: u64,
    /// Rows that were deleted.
    pub rows_deleted: u64,
    /// Days that were replaced, of an aggregate.
    pub days_replaced: u64,
    /// Partitions that were added to a catalog or updated in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub partitions_written: u64,
    /// Partitions that were removed from a catalog.
    #[serde(skip_serializing_if = "is_zero")]
    pub partitions_removed: u64,
    /// Wall time in seconds, from the connection on.
    pub seconds: f64,
    /// Whether it had the newest commit before, so that nothing was to do.
    #[serde(skip)]
    pub is_current: bool,
    /// The exit code of its failure; 0 if it did not fail.
    #[serde(skip_serializing_if = "is_success")]
    pub exit_code: u8,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The hint of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl FollowerReport {
    /// The report of a follower that failed.
    pub fn failed(name: String, error: &Error) -> Self {
        FollowerReport {
            name,
            exit_code: error.kind.exit_code(),
            error: Some(error.to_string()),
            hint: error.hint.clone(),
            ..Default::default()
        }
    }

    /// Its failure, if it has failed.
    pub fn failure(&self) -> Option<Error> {
        let text = self.error.as_ref()?;
        let failure = match self.exit_code {
            2 => Error::usage(text),
            65 => Error::data(text),
            69 => Error::storage(text),
            75 => Error::busy(text),
            _ => Error::internal(text),
        };
        Some(match &self.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }

    /// Its line in the text of a report.
    pub(crate) fn line(&self) -> String {
        if let Some(error) = &self.error {
            return format!("{} failed: {error}", self.name);
        }
        let from = self.from_commit.map_or("none".into(), |commit| commit.to_string());
        let counts = [
            (self.rows_upserted, "rows upserted"),
            (self.rows_deleted, "rows deleted"),
            (self.days_replaced, "days replaced"),
            (self.partitions_written, "partitions written"),
            (self.partitions_removed, "partitions removed"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: String = counts.map(|(count, of)| format!(", {count} {of}")).collect();
        format!("{}: commit {from} to {}{counts}", self.name, self.to_commit)
    }
}

fn is_success(exit_code: &u8) -> bool {
    *exit_code == 0
}

pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The result of a command, which is printed to stdout.
pub trait Answer: Serialize {
    /// The result as a short table for a terminal.
    fn text(&self) -> String;

    /// The exit code of a command with this result.
    fn exit_code(&self) -> u8 {
        0
    }

    /// The result as one line of JSON.
    ///
    /// # Errors
    /// None in practice: every field can be serialized.
    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// The end of a list of counts: rows of forgotten keys, if there are any.
pub(crate) fn of_forgotten_keys(rows: u64) -> String {
    if rows == 0 { String::new() } else { format!(", {rows} of forgotten keys") }
}

/// Notes as one; `None` without any.
pub(crate) fn one_note(notes: impl IntoIterator<Item = String>) -> Option<String> {
    notes.into_iter().reduce(|first, second| format!("{first}; {second}"))
}

impl Report {
    /// The part of a report that the ledger stores: its counts by name, without zeros, as JSON.
    pub fn counts(&self) -> String {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|_, value| value.as_u64().is_some_and(|count| count > 0));
        }
        fields.to_string()
    }

    /// The lines of the text with the counts of files, rows and partitions: name and value.
    fn count_lines(&self) -> [(&'static str, String); 4] {
        [
            ("files", format!("{} ({} late), {}", self.files, self.late_files, size(self.bytes))),
            (
                "rows read",
                format!(
                    "{}: {} latest, {} superseded, {} deleted, {} rejected, {} outside{}",
                    self.rows_read,
                    self.rows_latest,
                    self.rows_superseded,
                    self.rows_deleted,
                    self.rows_rejected,
                    self.rows_outside,
                    of_forgotten_keys(self.rows_forgotten)
                ),
            ),
            ("ties", self.ties.to_string()),
            (
                "curated",
                format!(
                    "{} rows in {} partitions, {} removed, {} ({} changed)",
                    self.rows_written,
                    self.partitions_written,
                    self.partitions_removed,
                    size(self.bytes_written),
                    size(self.bytes_changed)
                ),
            ),
        ]
    }
}

impl Answer for Report {
    fn text(&self) -> String {
        let mut text = format!(
            "{}  {} to {}\n",
            self.pipeline,
            self.start.format("%Y-%m-%d %H:%M"),
            self.end.format("%Y-%m-%d %H:%M")
        );
        if let Some(note) = &self.note {
            let _ = writeln!(text, "  {note}");
        }
        for (name, value) in self.count_lines() {
            let _ = writeln!(text, "  {name:<10} {value}");
        }
        if self.rows_of_other_tables > 0 {
            let _ = writeln!(
                text,
                "  {:<10} {} changes of other tables",
                "not read", self.rows_of_other_tables
            );
        }
        for change in &self.schema_changes {
            let _ = writeln!(text, "  {:<10} {change}", "schema");
        }
        if let Some(quarantine) = &self.quarantine {
            let _ = writeln!(
                text,
                "  {:<10} {} rows and {} files in {quarantine}",
                "quarantine", self.rows_rejected, self.files_rejected
            );
            let _ = writeln!(
                text,
                "  {:<10} their changes are missing in the table: a key that one of them deletes is still there",
                ""
            );
        }
        for aggregate in &self.aggregates {
            let _ = writeln!(
                text,
                "  {:<10} {}: {} days, {} rows removed, {} rows inserted",
                "aggregate",
                aggregate.name,
                aggregate.days,
                aggregate.rows_removed,
                aggregate.rows_inserted
            );
        }
        for follower in &self.followers {
            let _ = writeln!(text, "  {:<10} {}", "follower", follower.line());
        }
        text + &took(self.seconds, self.peak_memory_bytes)
    }

    /// That of its followers: the tables themselves are published.
    fn exit_code(&self) -> u8 {
        worst(self.followers.iter().map(|follower| follower.exit_code))
    }
}

/// The result of bringing followers to the newest commit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Followed {
    /// The pipeline's name.
    pub pipeline: String,
    /// The followers, in the pipeline's order.
    pub followers: Vec<FollowerReport>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The process's peak resident memory.
    pub peak_memory_bytes: u64,
    /// A remark, such as why there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Answer for Followed {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.pipeline);
        let note = self.note.iter().cloned();
        let lines = note.chain(self.followers.iter().map(FollowerReport::line));
        lines.for_each(|line| text.push_str(&format!("  {line}\n")));
        text + &took(self.seconds, self.peak_memory_bytes)
    }
}

/// The results of several pipelines.
#[derive(Clone, Debug, Serialize)]
pub struct Results<R> {
    /// The worst exit code of all pipelines.
    pub exit_code: u8,
    /// The result of each pipeline, in order.
    pub results: Vec<PipelineResult<R>>,
}

/// The result of one of several pipelines.
#[derive(Clone, Debug, Serialize)]
pub struct PipelineResult<R> {
    /// The pipeline's folder.
    pub pipeline: String,
    /// The pipeline's exit code.
    pub exit_code: u8,
    /// Why the pipeline failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The hint of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The pipeline's report, if it did not fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<R>,
}

impl<R: Answer> PipelineResult<R> {
    /// The result of a pipeline, from its report or its error.
    pub fn new(pipeline: String, ended: Result<R>) -> Self {
        let failed = ended.as_ref().err();
        PipelineResult {
            pipeline,
            exit_code: match &ended {
                Ok(answer) => answer.exit_code(),
                Err(error) => error.kind.exit_code(),
            },
            error: failed.map(ToString::to_string),
            hint: failed.and_then(|error| error.hint.clone()),
            report: ended.ok(),
        }
    }
}

impl<R> Results<R> {
    /// The results of several pipelines.
    pub fn new(results: Vec<PipelineResult<R>>) -> Self {
        Results { exit_code: worst(results.iter().map(|result| result.exit_code)), results }
    }
}

impl<R: Answer> Answer for Results<R> {
    /// The report of each pipeline, then a table with one row per pipeline.
    fn text(&self) -> String {
        let mut table = Table::new(&["pipeline", "exit code", "error"]);
        let mut texts = String::new();
        for result in &self.results {
            table.row([
                result.pipeline.clone(),
                result.exit_code.to_string(),
                result.error.clone().unwrap_or_default(),
            ]);
            if let Some(report) = &result.report {
                texts.push_str(&report.text());
                texts.push('\n');
            }
        }
        texts + &table.text()
    }

    fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

/// The last line of a report: wall time in seconds, and the peak of memory.
pub(crate) fn took(seconds: f64, peak_memory_bytes: u64) -> String {
    format!("  {:<10} {seconds:.2} s, {} peak\n", "took", size(peak_memory_bytes))
}

/// A size in a readable unit.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
