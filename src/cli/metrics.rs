//! Metrics of the last run of each pipeline, and of the last capture of each source: a file for the
//! textfile collector of Prometheus' node exporter.
//!
//! The format is Prometheus' text format (version 0.0.4). The file is replaced atomically, by a
//! rename, as the collector requires. A run that fails sets its exit code and leaves the numbers of
//! the last successful run as they are; lines of other pipelines stay.
//!
//! Why no library of metrics: they write what one process has counted. Here each run is a process that
//! ends, and many of them share one file: its text is read, the lines of one pipeline are replaced, and
//! it is written again, all under a lock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};

#[cfg(feature = "postgres")]
use crate::commands::CaptureReport;
use crate::error::{Error, Result};
use crate::report::Report;

/// The metric by which pipelines that take long are known.
const DURATION: &str = "glueless_duration_seconds";

/// The metrics, all of them gauges: name and help. Each has the label `pipeline`, or, of captures, `source`.
const METRICS: [(&str, &str); 24] = [
    ("glueless_last_run_timestamp_seconds", "When the last run began."),
    ("glueless_last_run_exit_code", "Exit code of the last run; 0 for success."),
    ("glueless_last_success_timestamp_seconds", "When the last successful run began."),
    (DURATION, "Wall time of the last successful run."),
    ("glueless_peak_memory_bytes", "Greatest resident memory of the last successful run."),
    ("glueless_files", "Raw files that the last successful run read."),
    (
        "glueless_late_files",
        "Raw files of the last successful run that appeared after their own window was run.",
    ),
    ("glueless_rows_read", "Changes that the last successful run read."),
    ("glueless_rows_written", "Rows that the last successful run wrote to the curated table."),
    ("glueless_rejected_rows", "Rows that the last successful run put into quarantine."),
    ("glueless_rejected_files", "Files that the last successful run put into quarantine."),
    (
        "glueless_quarantined_files",
        "Raw files with rows in quarantine, or in quarantine as a whole, after the last successful run.",
    ),
    (
        "glueless_newest_commit_timestamp_seconds",
        "Newest commit time of all changes folded so far.",
    ),
    (
        "glueless_lag_seconds",
        "Time from the newest commit time to the end of the last successful run.",
    ),
    (
        "glueless_capture_last_run_timestamp_seconds",
        "When the last capture began, or, with --follow, was last known to go on.",
    ),
    ("glueless_capture_last_run_exit_code", "Exit code of the last capture; 0 for success."),
    (
        "glueless_capture_last_success_timestamp_seconds",
        "When the last successful capture began, or, with --follow, last made its files durable.",
    ),
    ("glueless_capture_duration_seconds", "Wall time of the last successful capture."),
    (
        "glueless_capture_peak_memory_bytes",
        "Greatest resident memory of the last successful capture.",
    ),
    ("glueless_capture_files", "Files that the last successful capture wrote."),
    ("glueless_capture_rows", "Rows and changes that the last successful capture wrote."),
    ("glueless_capture_truncates", "Truncations that the last successful capture wrote."),
    (
        "glueless_capture_held_bytes",
        "Log that the slot held at the server when the last successful capture began, or, with --follow, last \
         made its files durable.",
    ),
    (
        "glueless_capture_newest_commit_timestamp_seconds",
        "Newest commit that the last successful capture with changes read.",
    ),
];

/// How a run ended.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The pipeline's name, or `alias` if the pipeline cannot be read.
    pub pipeline: &'a str,
    /// The name of the pipeline's folder: its lines are replaced once the name can be read.
    pub alias: &'a str,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// When the run ended.
    pub ended: DateTime<Utc>,
    /// The run's exit code.
    pub exit_code: u8,
    /// The run's report, if it succeeded.
    pub report: Option<&'a Report>,
}

/// A metrics file.
#[derive(Clone, Debug)]
pub struct MetricsFile {
    path: PathBuf,
    /// A file in the same folder, which no collector reads.
    temporary: PathBuf,
}

/// The number of files that were opened so far: several threads can write one.
static OPENED: AtomicUsize = AtomicUsize::new(0);

impl MetricsFile {
    /// Checks that the file can be written, by creating a temporary file beside it.
    ///
    /// # Errors
    /// Usage, when its folder cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{number}.new", std::process::id()));
        let file = MetricsFile { path: path.into(), temporary: path.with_file_name(name) };
        if path.is_dir() {
            return Err(Error::usage(format!("{} is a folder", path.display()))
                .hint("name a file: --metrics-file FOLDER/glueless.prom"));
        }
        let temporary = &file.temporary;
        let tried = File::create(temporary).and_then(|_| std::fs::remove_file(temporary));
        tried.map_err(|error| {
            Error::usage(format!("cannot write {}", path.display()))
                .hint("name a file in a folder that can be written: --metrics-file")
                .caused_by(error)
        })?;
        Ok(file)
    }

    /// How long the last successful run of each pipeline took, in seconds; empty if that cannot be read.
    pub fn seconds(&self) -> BTreeMap<String, f64> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let seconds = values_of(&text).into_iter().filter_map(|((metric, labels), value)| {
            let name = labels.strip_prefix("pipeline=\"")?.strip_suffix('"')?;
            let name = name.replace("\\n", "\n").replace("\\\"", "\"").replace("\\\\", "\\");
            Some((name, value.parse().ok()?)).filter(|_| metric == DURATION)
        });
        seconds.collect()
    }

    /// Writes the metrics of a run.
    ///
    /// # Errors
    /// Storage, when the file cannot be read or replaced.
    pub fn write(&self, outcome: &Outcome<'_>) -> Result<()> {
        self.replace(|before| render(before, outcome))
    }

    /// Writes the metrics of a capture, given when it began or was last known to go on, its exit code, and
    /// its report if it succeeded.
    ///
    /// # Errors
    /// Storage, when the file cannot be read or replaced.
    #[cfg(feature = "postgres")]
    pub fn write_capture(
        &self,
        source: &str,
        began: DateTime<Utc>,
        exit_code: u8,
        report: Option<&CaptureReport>,
    ) -> Result<()> {
        self.replace(|before| render_capture(before, source, began, exit_code, report))
    }

    fn replace(&self, render: impl Fn(&str) -> String) -> Result<()> {
        self.try_replace(render).map_err(|error| {
            let _ = std::fs::remove_file(&self.temporary);
            Error::storage(format!("cannot write {}", self.path.display())).caused_by(error)
        })
    }

    fn try_replace(&self, render: impl Fn(&str) -> String) -> io::Result<()> {
        // Other processes write their lines into the same file.
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(".lock");
        let lock = File::create(self.path.with_file_name(name))?;
        lock.lock()?;
        let before = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            before => before?,
        };
        let mut file = File::create(&self.temporary)?;
        file.write_all(render(&before).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)
    }
}

/// The values of a file, by metric and labels.
type Values = BTreeMap<(&'static str, String), String>;

/// Reads the values of a file's text.
fn values_of(text: &str) -> Values {
    let known = text.lines().filter_map(|line| {
        METRICS.iter().find_map(|(name, _)| {
            let rest = line.strip_prefix(name)?.strip_prefix('{')?;
            let (labels, value) = rest.rsplit_once("} ")?;
            Some(((*name, labels.to_string()), value.to_string()))
        })
    });
    known.collect()
}

/// The text of a file with these values.
fn text_of(values: &Values) -> String {
    let mut text = String::new();
    for (name, help) in METRICS {
        let mut lines = values.iter().filter(|((known, _), _)| *known == name).peekable();
        if lines.peek().is_some() {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        }
        for ((_, labels), value) in lines {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
    text
}

/// The text of the file after a capture, from its text before.
#[cfg(feature = "postgres")]
fn render_capture(
    before: &str,
    source: &str,
    began: DateTime<Utc>,
    exit_code: u8,
    report: Option<&CaptureReport>,
) -> String {
    let mut values = values_of(before);
    let labels = format!("source=\"{}\"", escaped(source));
    let mut set = |name, value: f64| {
        values.insert((name, labels.clone()), value.to_string());
    };
    set("glueless_capture_last_run_timestamp_seconds", seconds(began));
    set("glueless_capture_last_run_exit_code", exit_code.into());
    if let Some(report) = report {
        let tables = report.tables.iter();
        let rows = tables
            .clone()
            .map(|it| it.rows_loaded + it.inserts + it.updates + it.deletes + it.truncates);
        set("glueless_capture_last_success_timestamp_seconds", seconds(began));
        set("glueless_capture_duration_seconds", report.seconds);
        set("glueless_capture_peak_memory_bytes", report.peak_memory_bytes as f64);
        set("glueless_capture_rows", rows.sum::<u64>() as f64);
        let truncates = tables.clone().map(|table| table.truncates).sum::<u64>();
        set("glueless_capture_truncates", truncates as f64);
        let files = tables.map(|table| table.files).sum::<u64>();
        set("glueless_capture_files", files as f64);
        if let Some(held_bytes) = report.held_bytes {
            set("glueless_capture_held_bytes", held_bytes as f64);
        }
        if let Some(newest) = report.newest_commit_time {
            set("glueless_capture_newest_commit_timestamp_seconds", seconds(newest));
        }
    }
    text_of(&values)
}

/// The text of the file after a run, from its text before.
fn render(before: &str, outcome: &Outcome<'_>) -> String {
    let mut values = values_of(before);
    let labels = format!("pipeline=\"{}\"", escaped(outcome.pipeline));
    if outcome.alias != outcome.pipeline {
        let alias = format!("pipeline=\"{}\"", escaped(outcome.alias));
        values.retain(|(_, labels), _| *labels != alias);
    }
    let mut set = |name, value: f64| {
        values.insert((name, labels.clone()), value.to_string());
    };
    let started = seconds(outcome.started);
    set("glueless_last_run_timestamp_seconds", started);
    set("glueless_last_run_exit_code", outcome.exit_code.into());
    if let Some(report) = outcome.report {
        set("glueless_last_success_timestamp_seconds", started);
        set(DURATION, report.seconds);
        for (name, count) in [
            ("glueless_peak_memory_bytes", report.peak_memory_bytes),
            ("glueless_files", report.files),
            ("glueless_late_files", report.late_files),
            ("glueless_rows_read", report.rows_read),
            ("glueless_rows_written", report.rows_written),
            ("glueless_rejected_rows", report.rows_rejected),
            ("glueless_rejected_files", report.files_rejected),
            ("glueless_quarantined_files", report.files_in_quarantine),
        ] {
            set(name, count as f64);
        }
        if let Some(newest) = report.newest_commit_time {
            set("glueless_newest_commit_timestamp_seconds", seconds(newest));
            let lag = seconds(outcome.ended) - seconds(newest);
            set("glueless_lag_seconds", (lag * 1000.0).round() / 1000.0);
        }
    }
    text_of(&values)
}

fn seconds(instant: DateTime<Utc>) -> f64 {
    instant.timestamp_millis() as f64 / 1000.0
}

/// A label's value, escaped as the format asks for.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome<'a>(pipeline: &'a str, report: Option<&'a Report>) -> Outcome<'a> {
        Outcome {
            pipeline,
            alias: "folder",
            started: DateTime::from_timestamp(1_000, 0).expect("a time"),
            ended: DateTime::from_timestamp(1_010, 500_000_000).expect("a time"),
            exit_code: if report.is_some() { 0 } else { 69 },
            report,
        }
    }

    #[test]
    fn a_failed_run_keeps_the_metrics_of_the_last_success() {
        let report = Report {
            rows_read: 36,
            seconds: 1.5,
            newest_commit_time: DateTime::from_timestamp(950, 0),
            ..Default::default()
        };
        let first = render("", &outcome("a", Some(&report)));
        assert!(first.contains("glueless_rows_read{pipeline=\"a\"} 36\n"), "{first}");
        assert!(first.contains("glueless_lag_seconds{pipeline=\"a\"} 60.5\n"), "{first}");
        let failed = render(&first, &outcome("a", None));
        assert!(failed.contains("glueless_last_run_exit_code{pipeline=\"a\"} 69\n"), "{failed}");
        let kept: Vec<&str> = first.lines().filter(|line| line.contains("success")).collect();
        assert!(kept.iter().all(|line| failed.contains(line)), "{failed}");
        assert!(failed.contains("glueless_rows_read{pipeline=\"a\"} 36\n"), "{failed}");
    }

    #[test]
    fn a_pipeline_whose_name_can_be_read_again_has_one_set_of_lines() {
        let unread = render("", &outcome("folder", None));
        assert!(unread.contains("pipeline=\"folder\""), "{unread}");
        let read = render(&unread, &outcome("name", Some(&Report::default())));
        assert!(!read.contains("folder") && read.contains("pipeline=\"name\""), "{read}");
    }

    #[test]
    fn lines_written_concurrently_are_all_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = MetricsFile::open(&folder.path().join("m.prom")).expect("a file");
        let report = Report::default();
        let names: Vec<String> = (0..8).map(|number| format!("pipeline {number}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let (file, report) = (&file, &report);
                scope.spawn(move || file.write(&outcome(name, Some(report))).expect("written"));
            }
        });
        let text = std::fs::read_to_string(folder.path().join("m.prom")).expect("read");
        let lines = text.lines().filter(|line| line.starts_with("glueless_files{"));
        assert_eq!(lines.count(), names.len(), "{text}");
        // A file that cannot be read is not overwritten.
        std::fs::write(folder.path().join("m.prom"), [0xff]).expect("written");
        assert!(file.write(&outcome("a", Some(&report))).is_err());
    }

    #[test]
    fn pipelines_share_a_file_and_each_metric_is_described_once() {
        let report = Report::default();
        let one = render("", &outcome("a \"b\" \\ c", Some(&report)));
        let both = render(&one, &outcome("z", Some(&report)));
        let help = both.matches("# HELP glueless_rows_read ").count();
        assert_eq!(help, 1, "{both}");
        assert!(both.contains("glueless_files{pipeline=\"a \\\"b\\\" \\\\ c\"} 0\n"), "{both}");
        assert!(both.contains("glueless_files{pipeline=\"z\"} 0\n"), "{both}");
        assert_eq!(render(&both, &outcome("z", Some(&report))), both);
    }
}
