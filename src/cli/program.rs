//! The program: hands a parsed command line, the environment and the clock to the library, and
//! prints the answer or the error and its hint.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::future::LocalBoxFuture;
use indicatif::ProgressBar;

use crate::cli::args::{Command, Dates, Logging, Many, One, Output};
use crate::cli::logging::Log;
use crate::cli::metrics::{MetricsFile, Outcome};
use crate::cli::resources::{now, peak_memory_bytes, resources, stores};
use crate::commands::runs::history;
use crate::commands::{Compared, RunContext, Task, explain_key, plan, run, verify};
use crate::config::Pipeline;
use crate::engine::heaps::share_heaps;
use crate::engine::resources::Resources;
use crate::engine::workarounds::OUT_OF_MEMORY_PANIC;
use crate::error::{Error, Result};
use crate::parquet_io::open::is_decoding;
use crate::report::{Answer, Meter, PipelineResult, Report, Results};
use crate::store::Stores;
use crate::window::{ACCEPTED_DATES, Window, parse_instant};

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

/// The program of one process.
pub struct Program {
    log: Log,
    bar: ProgressBar,
    stores: Stores,
}

impl Program {
    /// Starts to log.
    pub fn start(logging: &Logging) -> Self {
        let bar = ProgressBar::hidden();
        Program {
            log: Log::start(logging, bar.clone()),
            bar,
            stores: stores(),
        }
    }

    /// Does what was asked for, and prints the answer, or why it failed. Returns the exit code.
    pub fn execute(&self, command: &Command) -> u8 {
        self.answer(command).unwrap_or_else(|error| {
            self.log.failed(&error);
            error.kind.exit_code()
        })
    }

    fn answer(&self, command: &Command) -> Result<u8> {
        match command {
            Command::Run(asked) => self.run(&asked.many, Task::Run(window(&asked.dates)?)),
            Command::Curate(asked) => self.run(&asked.many, Task::Curate(window(&asked.dates)?)),
            Command::Aggregate(asked) => {
                self.run(&asked.many, Task::Aggregate(window(&asked.dates)?))
            }
            Command::CatchUp(many) => self.run(many, Task::CatchUp),
            Command::Rebuild(asked) => {
                let accept_missing = asked.accept_missing;
                self.run(&asked.many, Task::Rebuild { accept_missing })
            }
            Command::Backfill(asked) => self.backfill(asked),
            Command::Plan(asked) => {
                let window = window(&asked.dates)?;
                self.ask(&asked.one, |run_context| {
                    plan(run_context, window, asked.fold)
                })
            }
            Command::Runs(one) => self.ask(one, |run_context| Box::pin(history(run_context))),
            Command::Verify(asked) => {
                let days = days(asked.start_date.as_deref(), asked.end_date.as_deref())?;
                let against = asked.against.as_deref().map(absolute).transpose()?;
                self.ask(&asked.one, |run_context| {
                    verify(run_context, Compared { days, against })
                })
            }
            Command::ExplainKey(asked) => {
                let key = asked.key.clone();
                self.ask(&asked.one, |run_context| explain_key(run_context, key))
            }
        }
    }

    /// Asks a question about one pipeline.
    fn ask<A: Answer>(
        &self,
        one: &One,
        question: impl for<'a> FnOnce(&'a RunContext<'_>) -> LocalBoxFuture<'a, Result<A>>,
    ) -> Result<u8> {
        let started = Instant::now();
        let pipeline = Pipeline::read(&one.pipeline, &one.common.set)?;
        let resources = resources(&pipeline.limits);
        let run_context = self.run_context(&pipeline, &resources, started);
        let answer = runtime(&resources)?.block_on(question(&run_context))?;
        print(&answer, one.common.output)?;
        Ok(answer.exit_code())
    }

    /// Runs one pipeline, or several one after the other.
    fn run(&self, many: &Many, task: Task) -> Result<u8> {
        let metrics = metrics_file(many)?;
        let run = |path: &Path| self.run_one(path, &many.common.set, task, metrics.as_ref());
        self.each(many, run)
    }

    /// Does the same with one pipeline, or with several one after the other, and prints what became
    /// of them.
    fn each<A: Answer>(&self, many: &Many, ask: impl Fn(&Path) -> Result<A>) -> Result<u8> {
        let output = many.common.output;
        if let [path] = &many.pipelines[..] {
            let answer = ask(path)?;
            print(&answer, output)?;
            return Ok(answer.exit_code());
        }
        let mut results = Vec::new();
        for path in pipelines(many)? {
            let (name, ended) = (base_name(path), ask(path));
            if let Err(error) = &ended {
                self.log.failed_of(&name, error);
            }
            results.push(PipelineResult::new(name, ended));
        }
        let results = Results::new(results);
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
        let alias = base_name(path);
        let mut name = alias.clone();
        self.log.begin("", &alias);
        let ended = Pipeline::read(path, set).and_then(|pipeline| {
            name.clone_from(&pipeline.name);
            let resources = resources(&pipeline.limits);
            let run_context = self.run_context(&pipeline, &resources, started);
            runtime(&resources)?.block_on(run(&run_context, task))
        });
        tell(metrics, [&name, &alias], began, ended.as_ref());
        ended
    }

    /// What a run that begins now is handed.
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
            resources,
            meter: Meter {
                started,
                peak_memory_bytes,
            },
        }
    }
}

fn window(dates: &Dates) -> Result<Window> {
    let window = Window::new(date(&dates.start_date)?, date(&dates.end_date)?);
    window.map_err(|why| {
        Error::usage(why)
            .hint("the end is not part of the window: 2019-04-01 to 2019-04-02 is one day")
    })
}

fn date(text: &str) -> Result<DateTime<Utc>> {
    parse_instant(text).map_err(|why| Error::usage(why).hint(ACCEPTED_DATES))
}

/// Whole days; `None` for all.
fn days(start: Option<&str>, end: Option<&str>) -> Result<Option<Window>> {
    if (start, end) == (None, None) {
        return Ok(None);
    }
    let ends = [start, end].map(|text| text.map(date).transpose());
    let [start, end] = ends;
    let (start, end) = (start?, end?);
    let is_day = |instant: &DateTime<Utc>| instant.time() == chrono::NaiveTime::MIN;
    if !start.iter().chain(&end).all(is_day) {
        return Err(Error::usage("only whole days can be compared").hint("write 2019-04-01"));
    }
    let first = start.unwrap_or(DateTime::<Utc>::MIN_UTC);
    let window = Window::new(first, end.unwrap_or(DateTime::<Utc>::MAX_UTC));
    window.map(Some).map_err(Error::usage)
}

/// A URL as it is, and a path from the folder that the program was started in.
fn absolute(text: &str) -> Result<String> {
    if text.contains("://") {
        return Ok(text.into());
    }
    let path = std::path::absolute(text)
        .map_err(|error| Error::usage(format!("`{text}` is not a path")).caused_by(error))?;
    Ok(path.to_string_lossy().into_owned())
}

/// The pipelines among several paths.
fn pipelines(many: &Many) -> Result<Vec<&Path>> {
    // A path that does not exist is a slip, and told.
    let is_none = |path: &&Path| match path.is_dir() {
        true => !path.join("pipeline.toml").exists(),
        false => path.exists() && path.extension().is_none_or(|extension| extension != "toml"),
    };
    let paths = many.pipelines.iter().map(PathBuf::as_path);
    let (others, paths): (Vec<&Path>, Vec<&Path>) = paths.partition(is_none);
    for other in others {
        tracing::warn!("{} is no pipeline, and was left out", other.display());
    }
    match paths.is_empty() {
        false => Ok(paths),
        true => Err(Error::usage("none of the paths is a pipeline")
            .hint("name folders that hold a pipeline.toml each")),
    }
}

/// A pipeline's name, as far as its path tells it.
fn base_name(path: &Path) -> String {
    let folder = match path.extension() {
        Some(extension) if extension == "toml" => path.parent().unwrap_or(path),
        _ => path,
    };
    let name = folder.file_name().unwrap_or(folder.as_os_str());
    name.to_string_lossy().into_owned()
}

fn metrics_file(many: &Many) -> Result<Option<MetricsFile>> {
    many.metrics_file
        .as_deref()
        .map(MetricsFile::open)
        .transpose()
}

fn tell(
    metrics: Option<&MetricsFile>,
    [pipeline, alias]: [&str; 2],
    started: DateTime<Utc>,
    ended: Result<&Report, &Error>,
) {
    let Some(metrics) = metrics else {
        return;
    };
    let told = metrics.tell(&Outcome {
        pipeline,
        alias,
        started,
        ended: now(),
        exit_code: ended.map_or_else(|error| error.kind.exit_code(), |_| 0),
        report: ended.ok(),
    });
    if let Err(error) = told {
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
    let text = output == Some(Output::Text) || (output.is_none() && stdout.is_terminal());
    let answer = match text {
        true => answer.text(),
        false => answer
            .json()
            .map(|line| line + "\n")
            .map_err(|error| Error::internal("cannot write the answer").caused_by(error))?,
    };
    stdout
        .write_all(answer.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::storage("cannot write the answer to stdout").caused_by(error))
}
