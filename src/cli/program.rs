//! The program: passes the parsed command line, the environment and the clock to the library, and
//! prints the result, or the error and its hint.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::future::LocalBoxFuture;
use indicatif::MultiProgress;

use crate::cli::args::{self, Command, Common, Dates, Logging, Many, One, Output};
use crate::cli::keys::keys;
use crate::cli::logging::Log;
use crate::cli::metrics::{MetricsFile, Outcome};
use crate::cli::resources::{cores, environment, machine, now, peak_memory_bytes};
use crate::commands::runs::history;
use crate::commands::{
    Compared, RunContext, Task, catalog, compact, ddl, doctor, explain_key, load, plan, run, verify,
};
use crate::config::{Pipeline, Source, name_of};
use crate::engine::heaps::share_heaps;
use crate::engine::resources::Resources;
use crate::error::library_texts::{OUT_OF_MEMORY_PANIC, RUNTIME_ENDED_PANIC};
use crate::error::{Error, Result};
use crate::follow::ddl::Dialect;
use crate::parquet_io::open::is_decoding;
use crate::report::examined::Examined;
use crate::report::{Answer, Followed, Meter, Report};
use crate::store::Stores;
use crate::window::{ACCEPTED_DATES, Window, parse_duration, parse_instant};

#[cfg(feature = "postgres")]
mod capture;
mod init;
mod progress;
mod several;

use several::Share;

/// Keeps panics that are handled from being printed: that of a decoder becomes an error, which is
/// reported, one of the engine is tried again, and nobody waits for one of a run that was given up.
pub fn hide_expected_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let out_of_memory = panic.payload_as_str() == Some(OUT_OF_MEMORY_PANIC);
        // The run was given up.
        let runtime_ended =
            panic.payload_as_str().is_some_and(|text| text.starts_with(RUNTIME_ENDED_PANIC));
        if !is_decoding() && !out_of_memory && !runtime_ended {
            print(panic);
        }
    }));
}

/// The most requests to object storage that are in flight at once.
const REQUESTS_MAX: usize = 256;

/// The state of the program's process.
pub struct Program {
    log: Log,
    bars: MultiProgress,
    stores: Stores,
    environment: BTreeMap<String, String>,
}

impl Program {
    /// Starts the log.
    pub fn start(logging: &Logging) -> Self {
        share_heaps(cores().max(2));
        let bars = MultiProgress::new();
        let environment = environment();
        let stores = Stores::new(environment.clone()).limited(REQUESTS_MAX);
        Program { log: Log::start(logging, bars.clone()), bars, stores, environment }
    }

    /// Runs a command and prints its result, or its error. Returns the exit code.
    pub fn execute(&self, command: &Command) -> u8 {
        self.try_execute(command).unwrap_or_else(|error| {
            self.log.failed(&error);
            error.kind.exit_code()
        })
    }

    fn try_execute(&self, command: &Command) -> Result<u8> {
        match command {
            Command::Run(arguments) => {
                self.run(&arguments.many, Task::Run(window(&arguments.dates)?))
            }
            Command::Curate(arguments) => {
                self.run(&arguments.many, Task::Curate(window(&arguments.dates)?))
            }
            Command::Aggregate(arguments) => {
                self.run(&arguments.many, Task::Aggregate(window(&arguments.dates)?))
            }
            Command::CatchUp(many) => self.run(many, Task::CatchUp),
            Command::Rebuild(arguments) => {
                let accept_missing = arguments.accept_missing;
                let task = if arguments.from_table {
                    Task::RebuildFromTable
                } else {
                    Task::Rebuild { accept_missing }
                };
                self.run(&arguments.many, task)
            }
            Command::Compact(arguments) => self.compact(arguments),
            Command::Truncate(arguments) => {
                let at = date(&arguments.at)?;
                let task = if arguments.undo { Task::UndoTruncate(at) } else { Task::Truncate(at) };
                self.run(&arguments.many, task)
            }
            Command::Forget(arguments) => self.forget(arguments),
            Command::Load(arguments) => {
                let full = arguments.full;
                self.follow(&arguments.many, |run_context| load(run_context, full))
            }
            Command::Catalog(many) => self.follow(many, catalog),
            Command::Backfill(arguments) => self.backfill(arguments),
            #[cfg(feature = "postgres")]
            Command::Capture(arguments) => self.capture(arguments),
            #[cfg(not(feature = "postgres"))]
            Command::Capture(_) => Err(Error::usage("this glueless was built without PostgreSQL")
                .hint("build it with the feature `postgres`, which is on by default")),
            Command::Plan(arguments) => {
                let window = window(&arguments.dates)?;
                self.run_read_only(&arguments.one, |run_context| {
                    plan(run_context, window, arguments.fold)
                })
            }
            Command::Init(arguments) => self.init(arguments),
            Command::Doctor(arguments) => self.doctor(arguments),
            Command::Ddl(arguments) => {
                let dialect = match arguments.dialect {
                    args::Dialect::Athena => Dialect::Athena,
                    args::Dialect::Hive => Dialect::Hive,
                    args::Dialect::Spark => Dialect::Spark,
                    args::Dialect::Duckdb => Dialect::DuckDb,
                    args::Dialect::Postgres => Dialect::Postgres,
                    args::Dialect::Redshift => Dialect::Redshift,
                };
                // Statements are for another program as they are.
                let output = arguments.one.common.output.unwrap_or(Output::Text);
                let one = One {
                    pipeline: arguments.one.pipeline.clone(),
                    common: Common { set: arguments.one.common.set.clone(), output: Some(output) },
                };
                self.run_read_only(&one, |run_context| ddl(run_context, dialect))
            }
            Command::Runs(one) => {
                self.run_read_only(one, |run_context| Box::pin(history(run_context)))
            }
            Command::Verify(arguments) => self.verify(arguments),
            Command::ExplainKey(arguments) => {
                let key = arguments.key.clone();
                self.run_read_only(&arguments.one, |run_context| explain_key(run_context, key))
            }
        }
    }

    fn doctor(&self, arguments: &args::Doctor) -> Result<u8> {
        let many = (&arguments.pipelines[..], &arguments.at_once);
        self.run_each(many, None, |path, share| {
            let started = Instant::now();
            let pipeline = match self.pipeline(path, share.set) {
                Ok(pipeline) => pipeline,
                Err(error) => return Ok(Examined::unreadable(&name_of(path), &error)),
            };
            // It is about a run by itself, and works with nearly nothing.
            let resources = Share::whole(share.set).resources(&pipeline.limits)?;
            let run_context = self.run_context(&pipeline, &resources, started);
            self.block_on(share, &resources, doctor(&run_context, machine(&resources)))
        })
    }

    fn compact(&self, arguments: &args::Compact) -> Result<u8> {
        let window = window(&arguments.dates)?;
        let is_day = |time: DateTime<Utc>| time.time() == chrono::NaiveTime::MIN;
        if !is_day(window.start) || !is_day(window.end) {
            return Err(Error::usage("only whole days can be compacted").hint("write 2019-04-01"));
        }
        let to = arguments.to.as_deref().map(absolute).transpose()?;
        let to = to.map(|url| format!("compact.url={url}"));
        self.run_each(arguments.several.both(), None, |path, share| {
            if share.is_of_several && to.is_some() {
                return Err(Error::usage("--to is of one pipeline").hint(
                    "write compact.url into pipeline.toml, or with {schema} and {table} into glueless.toml",
                ));
            }
            let set: Vec<String> = share.set.iter().chain(&to).cloned().collect();
            self.ask(path, &share.with(&set), |run_context| compact(run_context, window))
        })
    }

    fn forget(&self, arguments: &args::Forget) -> Result<u8> {
        let One { pipeline: path, common } = &arguments.one;
        let pipeline = self.pipeline(path, &common.set)?;
        let keys = keys(&pipeline.key, &arguments.keys, arguments.keys_file.as_deref())?.into();
        let task = if arguments.undo { Task::Recall(keys) } else { Task::Forget(keys) };
        let report = self.run_one(path, &Share::whole(&common.set), task, None)?;
        print(&report, common.output)?;
        Ok(report.exit_code())
    }

    fn verify(&self, arguments: &args::Verify) -> Result<u8> {
        let days = days(arguments.start_date.as_deref(), arguments.end_date.as_deref())?;
        let lag = arguments.lag.as_deref().map(lag).transpose()?;
        let against = match arguments.against.as_deref() {
            Some("postgres") => Some("postgres".into()),
            against => against.map(absolute).transpose()?,
        };
        let source = arguments.source.as_deref().map(|path| Source::read(path, &[])).transpose()?;
        let is_of_one = source.is_some() || against.as_ref().is_some_and(|url| url != "postgres");
        self.run_each(arguments.several.both(), None, |path, share| {
            if is_of_one && share.is_of_several {
                return Err(Error::usage(
                    "--source, and another table with --against, are of one pipeline",
                )
                .hint("verify each pipeline by itself"));
            }
            let run_id = || uuid::Uuid::now_v7().to_string();
            let source = source.clone().map(|source| (source, [run_id(), run_id()]));
            let against = against.clone();
            self.ask(path, share, |run_context| {
                verify(run_context, Compared { days, against, lag, source })
            })
        })
    }

    /// Runs a read-only command on one pipeline.
    fn run_read_only<A: Answer>(
        &self,
        one: &One,
        command: impl for<'a> FnOnce(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<A>>,
    ) -> Result<u8> {
        let answer = self.ask(&one.pipeline, &Share::whole(&one.common.set), command)?;
        print(&answer, one.common.output)?;
        Ok(answer.exit_code())
    }

    /// The answer of a read-only command on one pipeline.
    fn ask<A>(
        &self,
        path: &Path,
        share: &Share<'_>,
        command: impl for<'a> FnOnce(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<A>>,
    ) -> Result<A> {
        let started = Instant::now();
        let pipeline = self.pipeline(path, share.set)?;
        let resources = share.resources(&pipeline.limits)?;
        let run_context = self.run_context(&pipeline, &resources, started);
        self.block_on(share, &resources, command(&run_context))
    }

    /// Runs a task for one pipeline, or for several.
    fn run(&self, many: &Many, task: Task) -> Result<u8> {
        let metrics = metrics_file(many)?;
        self.run_each(many.several.both(), metrics.as_ref(), |path, share| {
            self.run_one(path, share, task.clone(), metrics.as_ref())
        })
    }

    fn run_one(
        &self,
        path: &Path,
        share: &Share<'_>,
        task: Task,
        metrics: Option<&MetricsFile>,
    ) -> Result<Report> {
        let (started, began) = (Instant::now(), now());
        let alias = name_of(path);
        let mut name = alias.clone();
        self.log.begin("", &alias);
        let ended = self.pipeline(path, share.set).and_then(|pipeline| {
            name.clone_from(&pipeline.name);
            let resources = share.resources(&pipeline.limits)?;
            let run_context = self.run_context(&pipeline, &resources, started);
            self.block_on(share, &resources, run(&run_context, task))
        });
        if let Ok(report) = &ended {
            self.log.failed_followers(&report.followers);
        }
        write_metrics(metrics, [&name, &alias], began, ended.as_ref().map(Some));
        ended
    }

    /// Brings followers of pipelines to their newest commits.
    fn follow(
        &self,
        many: &Many,
        follow: impl for<'a> Fn(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<Followed>> + Sync,
    ) -> Result<u8> {
        let metrics = metrics_file(many)?;
        self.run_each(many.several.both(), metrics.as_ref(), |path, share| {
            let (started, began) = (Instant::now(), now());
            let alias = name_of(path);
            let mut name = alias.clone();
            self.log.begin("", &alias);
            let ended = self.pipeline(path, share.set).and_then(|pipeline| {
                name.clone_from(&pipeline.name);
                let resources = share.resources(&pipeline.limits)?;
                let run_context = self.run_context(&pipeline, &resources, started);
                self.block_on(share, &resources, follow(&run_context))
            });
            let outcome = ended.as_ref().map(|_| None);
            write_metrics(metrics.as_ref(), [&name, &alias], began, outcome);
            ended
        })
    }

    /// Reads a pipeline, with the secrets of its masks.
    fn pipeline(&self, path: &Path, set: &[String]) -> Result<Pipeline> {
        let mut pipeline = Pipeline::read(path, set)?;
        pipeline.unlock(&self.environment)?;
        Ok(pipeline)
    }

    /// The context of a run that begins now.
    fn run_context<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        resources: &'a Resources,
        started: Instant,
    ) -> RunContext<'a> {
        let run_id = uuid::Uuid::now_v7().to_string();
        self.log.begin(&run_id, &pipeline.name);
        RunContext {
            pipeline,
            run_id,
            now: now(),
            stores: &self.stores,
            environment: &self.environment,
            follows: true,
            resources,
            meter: Meter { started, peak_memory_bytes },
        }
    }
}

fn window(dates: &Dates) -> Result<Window> {
    let window = Window::new(date(&dates.start_date)?, date(&dates.end_date)?);
    window.map_err(|why| {
        Error::usage(why).hint("the end is exclusive: 2019-04-01 to 2019-04-02 is one day")
    })
}

fn date(text: &str) -> Result<DateTime<Utc>> {
    parse_instant(text).map_err(|why| Error::usage(why).hint(ACCEPTED_DATES))
}

fn lag(text: &str) -> Result<std::time::Duration> {
    let parsed = parse_duration(text).map_err(|why| Error::usage(format!("--lag: {why}")))?;
    Ok(parsed.to_std().unwrap_or_default())
}

/// Parses a span of whole days; `None` for all days.
fn days(start: Option<&str>, end: Option<&str>) -> Result<Option<Window>> {
    if (start, end) == (None, None) {
        return Ok(None);
    }
    let start = start.map(date).transpose()?;
    let end = end.map(date).transpose()?;
    let is_day = |instant: &DateTime<Utc>| instant.time() == chrono::NaiveTime::MIN;
    if !start.iter().chain(&end).all(is_day) {
        return Err(Error::usage("only whole days can be compared").hint("write 2019-04-01"));
    }
    let first = start.unwrap_or(DateTime::<Utc>::MIN_UTC);
    let window = Window::new(first, end.unwrap_or(DateTime::<Utc>::MAX_UTC));
    window.map(Some).map_err(Error::usage)
}

/// Returns a URL unchanged, and a path made absolute from the current folder.
fn absolute(text: &str) -> Result<String> {
    if text.contains("://") {
        return Ok(text.into());
    }
    let path = std::path::absolute(text)
        .map_err(|error| Error::usage(format!("`{text}` is not a path")).caused_by(error))?;
    Ok(path.to_string_lossy().into_owned())
}

fn metrics_file(many: &Many) -> Result<Option<MetricsFile>> {
    many.metrics_file.as_deref().map(MetricsFile::open).transpose()
}

fn write_metrics(
    metrics: Option<&MetricsFile>,
    [pipeline, alias]: [&str; 2],
    started: DateTime<Utc>,
    ended: Result<Option<&Report>, &Error>,
) {
    let Some(metrics) = metrics else {
        return;
    };
    let written = metrics.write(&Outcome {
        pipeline,
        alias,
        started,
        ended: now(),
        exit_code: match ended {
            Ok(report) => report.map_or(0, Answer::exit_code),
            Err(error) => error.kind.exit_code(),
        },
        report: ended.ok().flatten().filter(|report| report.exit_code() == 0),
    });
    if let Err(error) = written {
        tracing::warn!("{error}");
    }
}

fn print(answer: &impl Answer, output: Option<Output>) -> Result<()> {
    let mut stdout = std::io::stdout();
    let is_text = output == Some(Output::Text) || (output.is_none() && stdout.is_terminal());
    let answer = if is_text {
        answer.text()
    } else {
        answer
            .json()
            .map(|line| line + "\n")
            .map_err(|error| Error::internal("cannot serialize the result").caused_by(error))?
    };
    stdout
        .write_all(answer.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::storage("cannot write the result to stdout").caused_by(error))
}
