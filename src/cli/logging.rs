//! Log lines: written to stderr as text or JSON, each with the id of its run.
//!
//! ```text
//! 2026-11-26T00:01:00.123456Z  INFO 01a1fa60-25aa-7463-a1e3-6498377c6a36 8 files, 0 of them late
//! {"time":"2026-11-26T00:01:00.123456Z","level":"INFO","run_id":"01a1fa60-…","pipeline":"cust_loyalty","message":"8 files, 0 of them late"}
//! ```
//!
//! Of libraries only errors are logged: what matters of their warnings, glueless logs itself.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use indicatif::MultiProgress;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::args::{LogFormat, Logging};
use crate::error::Error;
use crate::report::FollowerReport;

/// The labels of a run's log lines.
#[derive(Clone, Debug, Default)]
struct LineLabels {
    run_id: String,
    pipeline: String,
    /// Whether lines of other pipelines can be between them.
    is_one_of_several: bool,
}

/// The labels of the lines that a thread logs.
#[derive(Clone, Debug, Default)]
pub struct Labels(Arc<RwLock<LineLabels>>);

thread_local! {
    /// The labels of this thread; those of the process, if it has none.
    static OF_THREAD: RefCell<Option<Labels>> = const { RefCell::new(None) };
}

impl Labels {
    /// Makes them those of this thread.
    pub fn adopt(&self) {
        OF_THREAD.set(Some(self.clone()));
    }

    fn read(&self) -> RwLockReadGuard<'_, LineLabels> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log of a process. A process may run several pipelines, each in threads of its own.
#[derive(Clone, Debug)]
pub struct Log {
    labels: Labels,
    format: LogFormat,
    /// Progress bars that log lines must not break; hidden while a line is written.
    bars: MultiProgress,
}

impl Log {
    /// Installs the log of this process.
    pub fn start(logging: &Logging, bars: MultiProgress) -> Self {
        let log = Log { labels: Labels::default(), format: logging.log_format, bars };
        let level = match (logging.quiet, logging.verbose) {
            (true, _) => LevelFilter::OFF,
            (false, 0) => LevelFilter::INFO,
            (false, 1) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        let ours = Targets::new()
            .with_target("glueless", level)
            .with_default(level.min(LevelFilter::ERROR));
        let writer = log.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .event_format(log.clone());
        tracing_subscriber::registry().with(lines).with(ours).init();
        log
    }

    /// Gives this thread, and those that it starts, labels of its own. `is_one_of_several` says whether other threads are at work
    /// on other pipelines.
    pub fn separate(&self, is_one_of_several: bool) {
        let labels = LineLabels { is_one_of_several, ..LineLabels::default() };
        Labels(Arc::new(RwLock::new(labels))).adopt();
    }

    /// The labels of the lines that this thread logs.
    pub fn labels(&self) -> Labels {
        OF_THREAD.with_borrow(|labels| labels.clone().unwrap_or_else(|| self.labels.clone()))
    }

    /// Sets the labels of the lines that follow.
    pub fn begin(&self, run_id: &str, pipeline: &str) {
        let labels = self.labels();
        let mut labels = labels.0.write().unwrap_or_else(PoisonError::into_inner);
        labels.run_id = run_id.into();
        labels.pipeline = pipeline.into();
    }

    /// Writes why a command failed: `error: …` and `hint: …`, or a line of JSON.
    pub fn failed(&self, error: &Error) {
        self.write_error(&error.to_string(), error.hint.as_deref(), error.kind.exit_code());
    }

    /// Writes why a command failed for one of several pipelines.
    pub fn failed_of(&self, pipeline: &str, error: &Error) {
        let message = match self.format {
            LogFormat::Text => format!("{pipeline}: {error}"),
            LogFormat::Json => error.to_string(),
        };
        self.write_error(&message, error.hint.as_deref(), error.kind.exit_code());
    }

    /// Writes which followers failed after a run, and why.
    pub fn failed_followers(&self, followers: &[FollowerReport]) {
        for follower in followers {
            if let Some(error) = &follower.error {
                let message =
                    format!("the tables are published, but {} failed: {error}", follower.name);
                self.write_error(&message, follower.hint.as_deref(), follower.exit_code);
            }
        }
    }

    fn write_error(&self, error: &str, hint: Option<&str>, exit_code: u8) {
        let message = match (self.format, hint) {
            (LogFormat::Text, None) => format!("error: {error}\n"),
            (LogFormat::Text, Some(hint)) => format!("error: {error}\nhint: {hint}\n"),
            (LogFormat::Json, hint) => {
                let mut fields = vec![("message", Value::from(error))];
                fields.extend(hint.map(|hint| ("hint", Value::from(hint))));
                fields.push(("exit_code", Value::from(exit_code)));
                self.json("ERROR", fields.into_iter())
            }
        };
        // Without stderr there is still the exit code.
        let _ = self.clone().write_all(message.as_bytes());
    }

    /// Logs a message to the user, unless `--quiet` is given.
    pub fn notify(&self, message: &str) {
        tracing::warn!("{message}");
    }

    fn json<'a>(&self, level: &str, fields: impl Iterator<Item = (&'a str, Value)>) -> String {
        let mut time = String::new();
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let labels = self.labels();
        let labels = labels.read();
        let own = [
            ("time", time.as_str()),
            ("level", level),
            ("run_id", &labels.run_id),
            ("pipeline", &labels.pipeline),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name, Value::from(value)));
        let object: Map<String, Value> =
            own.chain(fields).map(|(name, value)| (name.to_string(), value)).collect();
        Value::Object(object).to_string() + "\n"
    }
}

impl Write for Log {
    /// Writes a line above the progress bar.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<S, N> FormatEvent<S, N> for Log
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        let level = event.metadata().level();
        if self.format == LogFormat::Json {
            let fields = std::iter::once(("message", Value::from(message.0)));
            return line.write_str(&self.json(level.as_str(), fields));
        }
        SystemTime.format_time(&mut line)?;
        let labels = self.labels();
        let labels = labels.read();
        if labels.is_one_of_several {
            return writeln!(
                line,
                " {level:>5} {} {}: {}",
                labels.run_id, labels.pipeline, message.0
            );
        }
        writeln!(line, " {level:>5} {} {}", labels.run_id, message.0)
    }
}

/// An event's message: events of glueless have no other fields.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
