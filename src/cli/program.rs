//! The program: passes the parsed command line, the environment and the clock to the library, and
//! prints the result, or the error and its hint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::future::LocalBoxFuture;
use indicatif::ProgressBar;

use crate::cli::args::{self, Command, Common, Dates, Logging, Many, One, Output};
use crate::cli::keys::keys;
use crate::cli::logging::Log;
use crate::cli::metrics::{MetricsFile, Outcome};
use crate::cli::resources::{environment, now, peak_memory_bytes, resources};
use crate::commands::runs::history;
use crate::commands::{
    Compared, RunContext, Task, catalog, ddl, explain_key, load, plan, run, verify,
};
use crate::config::{Pipeline, Source, file_of, full_path, name_of, pipelines_of};
use crate::engine::heaps::share_heaps;
use crate::engine::resources::Resources;
use crate::error::library_texts::OUT_OF_MEMORY_PANIC;
use crate::error::{Error, Result};
use crate::follow::ddl::Dialect;
use crate::parquet_io::open::is_decoding;
use crate::report::{Answer, Followed, Meter, PipelineResult, Report, Results};
use crate::store::Stores;
use crate::window::{ACCEPTED_DATES, Window, parse_duration, parse_instant};

#[cfg(feature = "postgres")]
mod capture;
mod progress;

/// Keeps panics that are handled from being printed: that of a decoder becomes an error, which is
/// reported, and one of the engine is tried again.
pub fn hide_expected_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let out_of_memory = panic.payload_as_str() == Some(OUT_OF_MEMORY_PANIC);
        if !is_decoding() && !out_of_memory {
            print(panic);
        }
    }));
}

/// The state of the program's process.
pub struct Program {
    log: Log,
    bar: ProgressBar,
    stores: Stores,
    environment: BTreeMap<String, String>,
}

impl Program {
    /// Starts the log.
    pub fn start(logging: &Logging) -> Self {
        let bar = ProgressBar::hidden();
        let environment = environment();
        let stores = Stores::new(environment.clone());
        Program { log: Log::start(logging, bar.clone()), bar, stores, environment }
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
            Command::Truncate(arguments) => {
                let at = date(&arguments.at)?;
                let task = if arguments.undo { Task::UndoTruncate(at) } else { Task::Truncate(at) };
                self.run(&arguments.many, task)
            }
            Command::Forget(arguments) => self.forget(arguments),
            Command::Load(arguments) => {
                let full = arguments.full;
                self.run_each(&arguments.many, |path| {
                    self.follow_one(path, &arguments.many, |run_context| load(run_context, full))
                })
            }
            Command::Catalog(many) => {
                self.run_each(many, |path| self.follow_one(path, many, catalog))
            }
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

    fn forget(&self, arguments: &args::Forget) -> Result<u8> {
        let One { pipeline: path, common } = &arguments.one;
        let pipeline = self.pipeline(path, &common.set)?;
        let keys = keys(&pipeline.key, &arguments.keys, arguments.keys_file.as_deref())?.into();
        let task = if arguments.undo { Task::Recall(keys) } else { Task::Forget(keys) };
        let report = self.run_one(path, &common.set, task, None)?;
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
        let run_id = || uuid::Uuid::now_v7().to_string();
        let source = source.map(|source| (source, [run_id(), run_id()]));
        self.run_read_only(&arguments.one, |run_context| {
            verify(run_context, Compared { days, against, lag, source })
        })
    }

    /// Runs a read-only command on one pipeline.
    fn run_read_only<A: Answer>(
        &self,
        one: &One,
        command: impl for<'a> FnOnce(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<A>>,
    ) -> Result<u8> {
        let started = Instant::now();
        let pipeline = self.pipeline(&one.pipeline, &one.common.set)?;
        let resources = resources(&pipeline.limits);
        let run_context = self.run_context(&pipeline, &resources, started);
        let answer = runtime(&resources)?.block_on(command(&run_context))?;
        print(&answer, one.common.output)?;
        Ok(answer.exit_code())
    }

    /// Runs a task for one pipeline, or for several one after the other.
    fn run(&self, many: &Many, task: Task) -> Result<u8> {
        let metrics = metrics_file(many)?;
        let run =
            |path: &Path| self.run_one(path, &many.common.set, task.clone(), metrics.as_ref());
        self.run_each(many, run)
    }

    /// Applies `run` to one pipeline, or to several one after the other, and prints their results.
    fn run_each<A: Answer>(&self, many: &Many, run: impl Fn(&Path) -> Result<A>) -> Result<u8> {
        let output = many.common.output;
        if let [path] = &many.pipelines[..]
            && pipelines_of(path)?.is_none()
        {
            let answer = run(path)?;
            print(&answer, output)?;
            return Ok(answer.exit_code());
        }
        let mut each = Vec::new();
        for path in pipelines(many)? {
            let (name, ended) = (name_of(&path), run(&path));
            if let Err(error) = &ended {
                self.log.failed_of(&name, error);
            }
            each.push(PipelineResult::new(name, ended));
        }
        let results = Results::new(each);
        print(&results, output)?;
        Ok(results.exit_code())
    }

    fn run_one(
        &self,
        path: &Path,
        set: &[String],
        task: Task,
        metrics: Option<&MetricsFile>,
    ) -> Result<Report> {
        let (started, began) = (Instant::now(), now());
        let alias = name_of(path);
        let mut name = alias.clone();
        self.log.begin("", &alias);
        let ended = self.pipeline(path, set).and_then(|pipeline| {
            name.clone_from(&pipeline.name);
            let resources = resources(&pipeline.limits);
            let run_context = self.run_context(&pipeline, &resources, started);
            runtime(&resources)?.block_on(run(&run_context, task))
        });
        if let Ok(report) = &ended {
            self.log.failed_followers(&report.followers);
        }
        write_metrics(metrics, [&name, &alias], began, ended.as_ref().map(Some));
        ended
    }

    /// Brings a pipeline's followers to the newest commit.
    fn follow_one(
        &self,
        path: &Path,
        many: &Many,
        follow: impl for<'a> FnOnce(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<Followed>>,
    ) -> Result<Followed> {
        let (started, began) = (Instant::now(), now());
        let metrics = metrics_file(many)?;
        let alias = name_of(path);
        let mut name = alias.clone();
        self.log.begin("", &alias);
        let ended = self.pipeline(path, &many.common.set).and_then(|pipeline| {
            name.clone_from(&pipeline.name);
            let resources = resources(&pipeline.limits);
            let run_context = self.run_context(&pipeline, &resources, started);
            runtime(&resources)?.block_on(follow(&run_context))
        });
        write_metrics(metrics.as_ref(), [&name, &alias], began, ended.as_ref().map(|_| None));
        ended
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
        share_heaps(resources.threads.max(2));
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

/// The pipelines among several paths, and in folders of projects.
fn pipelines(many: &Many) -> Result<Vec<PathBuf>> {
    let (mut named, mut known) = (Vec::new(), BTreeSet::new());
    for path in &many.pipelines {
        let of_project = pipelines_of(path)?.filter(|found| !found.is_empty());
        for one in of_project.unwrap_or_else(|| vec![path.clone()]) {
            // However it is named.
            if known.insert(full_path(&file_of(&one))?) {
                named.push(one);
            }
        }
    }
    // A path that does not exist is a mistake: it is kept, and reported when it is read.
    let is_skipped = |path: &PathBuf| {
        if path.is_dir() {
            !file_of(path).exists()
        } else {
            let is_toml = path.extension().is_some_and(|extension| extension == "toml");
            path.exists() && (!is_toml || path.ends_with("glueless.toml"))
        }
    };
    let (skipped, paths): (Vec<PathBuf>, Vec<PathBuf>) = named.into_iter().partition(is_skipped);
    for path in skipped {
        tracing::warn!("{} is not a pipeline, skipped", path.display());
    }
    if paths.is_empty() {
        return Err(Error::usage("none of the paths is a pipeline")
            .hint("name folders with a pipeline.toml each"));
    }
    Ok(paths)
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

fn runtime(resources: &Resources) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(resources.threads)
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the runtime").caused_by(error))
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
