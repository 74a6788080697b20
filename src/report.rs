//! The run report: one line of JSON for machines, a short table for people.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::schema_changes::SchemaChange;

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

impl Report {
    /// One line of JSON.
    ///
    /// # Errors
    /// None that happen: every field can be written.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// What the ledger keeps of a report: its numbers but 0, by their names, as JSON.
    pub fn counts(&self) -> String {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|_, value| value.as_u64().is_some_and(|count| count > 0));
        }
        fields.to_string()
    }

    /// A short table for a terminal.
    pub fn text(&self) -> String {
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

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
