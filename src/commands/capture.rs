//! Captures the changes of a database into raw files.

use std::collections::BTreeMap;
use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use crate::capture::CaptureMode;
use crate::capture::{Capture, Captured};
use crate::config::Source;
use crate::engine::resources::Resources;
use crate::error::{Error, Result};
use crate::report::{Answer, Meter, size, took};
use crate::store::Stores;

/// What a capture gets from the program.
pub struct CaptureContext<'a> {
    /// The source.
    pub source: &'a Source,
    /// The id of this capture, which is in the names of full loads.
    pub run_id: String,
    /// The tables to read anew, `schema.table`; all of them if it is empty.
    pub new_snapshot: Option<Vec<String>>,
    /// Where files are written.
    pub stores: &'a Stores,
    /// The environment, which has the URL of the database.
    pub environment: &'a BTreeMap<String, String>,
    /// Memory and threads.
    pub resources: &'a Resources,
    /// Measures the capture.
    pub meter: Meter,
    /// Gets what was captured so far, each time when it is durable, while the capture goes on.
    pub progress: &'a dyn Fn(&CaptureReport),
}

/// The report of a capture. Field names and meanings are part of the program's public interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CaptureReport {
    /// The source's name.
    pub source: String,
    /// What was read: `log`, or the tables by a column with the time of a row's last change (`audit`).
    pub mode: &'static str,
    /// The replication slot; this and all that is optional is of a log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Every change before this position of the log is in files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// The tables that got files, by their names.
    pub tables: Vec<CapturedTableReport>,
    /// Transactions that were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions: Option<u64>,
    /// The newest commit that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_commit_time: Option<DateTime<Utc>>,
    /// The bytes of log that the slot held at the server when the capture began; with `--follow`, when files
    /// were last written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
    /// What the reader should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The process's peak resident memory.
    pub peak_memory_bytes: u64,
}

/// What was written of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CapturedTableReport {
    /// The table, `schema.table`.
    pub table: String,
    /// Rows of its full load, or of a new snapshot.
    pub rows_loaded: u64,
    /// Inserts.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
    /// Truncations of the whole table.
    pub truncates: u64,
    /// Files.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// Infinite dates and times, which were written as the last or the first one that files can have.
    pub infinite_values: u64,
    /// Rows without a time in the column that extracts read by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_without_time: Option<u64>,
}

/// What extracts cannot see.
const DELETES: &str = "deletes are not seen: rows that were deleted at the source stay; `glueless verify <pipeline> \
                       --against postgres` finds them";

impl Answer for CaptureReport {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.source);
        for table in &self.tables {
            let _ = write!(text, "  {}: ", table.table);
            if table.rows_loaded > 0 {
                let _ = write!(text, "{} rows loaded, ", table.rows_loaded);
            }
            if table.truncates > 0 {
                let _ = write!(text, "{} truncates, ", table.truncates);
            }
            let _ = writeln!(
                text,
                "{} inserts, {} updates, {} deletes in {} files, {}",
                table.inserts,
                table.updates,
                table.deletes,
                table.files,
                size(table.bytes)
            );
        }
        if let (Some(position), Some(slot)) = (&self.position, &self.slot) {
            let _ = writeln!(text, "  captured   all before {position} of the slot {slot}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "  note       {note}");
        }
        text + &took(self.seconds, self.peak_memory_bytes)
    }
}

/// The URL of a source.
pub(super) fn url_of<'a>(
    source: &Source,
    environment: &'a BTreeMap<String, String>,
) -> Result<&'a str> {
    let url = environment.get(&source.url_env).ok_or_else(|| {
        Error::usage(format!("the variable {} (`url_env`) is not set", source.url_env))
            .hint("set it to postgresql://user:password@host:5432/database")
    });
    url.map(String::as_str)
}

/// Captures the changes of a source since the last capture; at first its tables.
///
/// # Errors
/// Usage, when the source cannot be captured as it is; data, when changes are lost or not whole in the log;
/// storage, when the database or the store cannot be reached; busy, when another process captures.
pub async fn capture(context: &CaptureContext<'_>, mode: CaptureMode) -> Result<CaptureReport> {
    let source = context.source;
    let url = url_of(source, context.environment)?;
    let capture = Capture {
        source,
        url,
        stores: context.stores,
        resources: context.resources,
        run_id: &context.run_id,
        new_snapshot: context.new_snapshot.as_deref(),
        progress: &|captured| (context.progress)(&report_of(context, captured)),
    };
    Ok(report_of(context, capture.run(mode).await?))
}

fn report_of(context: &CaptureContext<'_>, captured: Captured) -> CaptureReport {
    let source = context.source;
    let tables = captured.tables.into_iter().filter(|(_, table)| table.files > 0);
    let reads_log = source.audit.is_none();
    CaptureReport {
        source: source.name.clone(),
        mode: if reads_log { "log" } else { "audit" },
        slot: reads_log.then(|| source.slot.clone()),
        position: reads_log.then_some(captured.position),
        tables: tables
            .map(|(name, table)| CapturedTableReport {
                table: name,
                rows_loaded: table.rows_loaded,
                inserts: table.inserts,
                updates: table.updates,
                deletes: table.deletes,
                truncates: table.truncates,
                files: table.files,
                bytes: table.bytes,
                infinite_values: table.infinite,
                rows_without_time: (!reads_log).then_some(table.rows_without_time),
            })
            .collect(),
        transactions: reads_log.then_some(captured.transactions),
        newest_commit_time: captured.newest_commit,
        held_bytes: reads_log.then_some(captured.held_bytes),
        notes: if reads_log { Vec::new() } else { vec![DELETES.into()] },
        seconds: context.meter.seconds(),
        peak_memory_bytes: (context.meter.peak_memory_bytes)(),
    }
}
