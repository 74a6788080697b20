//! The run report: one line of JSON for machines, a short table for people.

use std::fmt::Write;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::{Result, worst};
use crate::raw::schema_changes::SchemaChange;
use crate::report::text_table::Table;

pub mod text_table;

/// What measures a run: its clock, and the process's memory.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// When it began.
    pub started: Instant,
    /// The process's greatest resident memory so far.
    pub peak_memory_bytes: fn() -> u64,
}

impl Meter {
    /// How long it has taken so far.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Fills in what was measured.
    pub fn measure(&self, report: &mut Report) {
        report.seconds = self.seconds();
        report.peak_memory_bytes = (self.peak_memory_bytes)();
    }
}

/// What a run did. Field names and meanings are part of the program's surface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The run's id.
    pub run_id: String,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end, excluded.
    pub end: DateTime<Utc>,
    /// Inputs read.
    pub files: u64,
    /// Inputs among them that appeared after their own window was run.
    pub late_files: u64,
    /// The inputs' size.
    pub bytes: u64,
    /// Rows in the inputs.
    pub rows_read: u64,
    /// Key changes that were split into a delete and an insert.
    pub key_moves: u64,
    /// Last changes that are rows of the curated table.
    pub rows_latest: u64,
    /// Changes that a later one of the same key (and day, under `latest-per-day`) replaced.
    pub rows_superseded: u64,
    /// Last changes that leave no row.
    pub rows_deleted: u64,
    /// Rows that were put aside.
    pub rows_rejected: u64,
    /// Inputs that were put aside.
    pub files_rejected: u64,
    /// Rows outside of a window of rows.
    pub rows_outside: u64,
    /// Last changes of the window not later than what versions hold.
    pub rows_stale: u64,
    /// Last changes that only file or row decided.
    pub ties: u64,
    /// Rows written to the curated table.
    pub rows_written: u64,
    /// Curated partitions written.
    pub partitions_written: u64,
    /// Curated partitions that were left without rows.
    pub partitions_removed: u64,
    /// Bytes written to the curated table: all of the partitions in which rows changed.
    pub bytes_written: u64,
    /// The part of these bytes that is rows of this run, by the number of rows; the rest was there
    /// before.
    pub bytes_changed: u64,
    /// The aggregates, in the pipeline's order.
    pub aggregates: Vec<AggregateReport>,
    /// Wall time.
    pub seconds: f64,
    /// The process's greatest resident memory.
    pub peak_memory_bytes: u64,
    /// The newest commit time among all changes that were folded so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_commit_time: Option<DateTime<Utc>>,
    /// Raw files of which something is in quarantine after the run.
    #[serde(skip_serializing_if = "is_none")]
    pub files_in_quarantine: u64,
    /// How raw columns changed, from file to file and from what earlier runs met.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schema_changes: Vec<SchemaChange>,
    /// Where the rows and inputs are that were put aside, where some were. What they say is missing
    /// in the table: a delete among them leaves its key alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// Why there was nothing to do, where there was nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a run did to one aggregate.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AggregateReport {
    /// Its name.
    pub name: String,
    /// Days computed.
    pub days: u64,
    /// Rows that went.
    pub rows_removed: u64,
    /// Rows that came.
    pub rows_inserted: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What a command answers on stdout.
pub trait Answer: Serialize {
    /// A short table for a terminal.
    fn text(&self) -> String;

    /// The exit code of a command that has its answer.
    fn exit_code(&self) -> u8 {
        0
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// None that happen: every field can be written.
    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

impl Report {
    /// What the ledger keeps of a report: its numbers but 0, by their names, as JSON.
    pub fn counts(&self) -> String {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|_, value| value.as_u64().is_some_and(|count| count > 0));
        }
        fields.to_string()
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
        let lines = [
            (
                "files",
                format!(
                    "{} ({} late), {}",
                    self.files,
                    self.late_files,
                    size(self.bytes)
                ),
            ),
            (
                "rows read",
                format!(
                    "{}: {} latest, {} superseded, {} deleted, {} rejected, {} outside",
                    self.rows_read,
                    self.rows_latest,
                    self.rows_superseded,
                    self.rows_deleted,
                    self.rows_rejected,
                    self.rows_outside
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
        ];
        for (name, value) in lines {
            let _ = writeln!(text, "  {name:<10} {value}");
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
                "  {:<10} what they say is missing in the table: a delete among them leaves its key alive",
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
        let _ = writeln!(
            text,
            "  {:<10} {:.2} s, {} peak",
            "took",
            self.seconds,
            size(self.peak_memory_bytes)
        );
        text
    }
}

/// What became of several pipelines.
#[derive(Clone, Debug, Serialize)]
pub struct Results<R> {
    /// The worst exit code.
    pub exit_code: u8,
    /// Each pipeline's, in their order.
    pub results: Vec<PipelineResult<R>>,
}

/// What became of one of several pipelines.
#[derive(Clone, Debug, Serialize)]
pub struct PipelineResult<R> {
    /// The pipeline's folder.
    pub pipeline: String,
    /// Its exit code.
    pub exit_code: u8,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Its report, if it did not fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<R>,
}

impl<R: Answer> PipelineResult<R> {
    /// What became of a pipeline.
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
        Results {
            exit_code: worst(results.iter().map(|result| result.exit_code)),
            results,
        }
    }
}

impl<R: Answer> Answer for Results<R> {
    /// A line for each pipeline, and what each of them says.
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

/// A size as people read it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
