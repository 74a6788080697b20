//! The program: reads the command line, the environment and the clock, calls the library, prints
//! the report or the error and its hint.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use glueless::args::{Arguments, Command, Common, Output, Window as WindowArguments};
use glueless::config::{Limits, MEMORY_BYTES_MIN, Pipeline};
use glueless::error::{Error, Result};
use glueless::memory::share_heaps;
use glueless::parquet_file::is_decoding;
use glueless::pipeline::{Request, Task, run};
use glueless::report::Report;
use glueless::session::Resources;
use glueless::store::Stores;
use glueless::window::{ACCEPTED_DATES, Window, parse_instant};
use nix::sys::resource::{UsageWho, getrusage};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The part of the machine's or container's memory that a run may use by default.
const MEMORY_PERCENT: u64 = 60;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // That of a decoder becomes an error, which is told.
        if !is_decoding() {
            told(panic);
        }
    }));
    // What the libraries have to say below an error is said by us, in our words.
    let ours = Targets::new()
        .with_target("glueless", LevelFilter::INFO)
        .with_default(LevelFilter::ERROR);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(ours).init();
    let common = match &arguments.command {
        Command::Run(window) | Command::Curate(window) | Command::Aggregate(window) => {
            &window.common
        }
        Command::Rebuild(rebuild) => &rebuild.common,
        Command::CatchUp(common) => common,
    };
    let done = task(&arguments.command)
        .and_then(|task| execute(task, common))
        .and_then(|report| print(&report, common.output));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = &error.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn task(command: &Command) -> Result<Task> {
    Ok(match command {
        Command::Run(arguments) => Task::Run(window(arguments)?),
        Command::Curate(arguments) => Task::Curate(window(arguments)?),
        Command::Aggregate(arguments) => Task::Aggregate(window(arguments)?),
        Command::Rebuild(arguments) => Task::Rebuild {
            accept_missing: arguments.accept_missing,
        },
        Command::CatchUp(_) => Task::CatchUp,
    })
}

fn window(arguments: &WindowArguments) -> Result<Window> {
    let date =
        |text: &str| parse_instant(text).map_err(|why| Error::usage(why).hint(ACCEPTED_DATES));
    let (start, end) = (date(&arguments.start_date)?, date(&arguments.end_date)?);
    Window::new(start, end).map_err(|why| {
        Error::usage(why)
            .hint("the end is not part of the window: 2019-04-01 to 2019-04-02 is one day")
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clock is read here and handed on"
)]
fn execute(task: Task, arguments: &Common) -> Result<Report> {
    let started = Instant::now();
    let now = chrono::Utc::now();
    let pipeline = Pipeline::read(&arguments.pipeline, &arguments.set)?;
    let resources = resources(&pipeline.limits);
    share_heaps(resources.threads.max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(resources.threads)
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the runtime").caused_by(error))?;
    let request = Request {
        task,
        pipeline: &pipeline,
        run_id: &uuid::Uuid::now_v7().to_string(),
        now,
        stores: &Stores::new(std::env::vars()),
        resources: &resources,
    };
    let mut report = runtime.block_on(run(&request))?;
    report.seconds = started.elapsed().as_secs_f64();
    report.peak_memory_bytes = peak_memory_bytes();
    Ok(report)
}

fn print(report: &Report, output: Option<Output>) -> Result<()> {
    let mut stdout = std::io::stdout();
    let text = output == Some(Output::Text) || (output.is_none() && stdout.is_terminal());
    let report = match text {
        true => report.text(),
        false => report
            .json()
            .map(|line| line + "\n")
            .map_err(|error| Error::internal("cannot write the report").caused_by(error))?,
    };
    stdout
        .write_all(report.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::storage("cannot write the report to stdout").caused_by(error))
}

/// What the pipeline allows, and otherwise what the machine or container has.
fn resources(limits: &Limits) -> Resources {
    let memory = || {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let container = system
            .cgroup_limits()
            .map_or(u64::MAX, |limits| limits.total_memory);
        system.total_memory().min(container) / 100 * MEMORY_PERCENT
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Resources {
        memory_bytes: limits
            .memory_bytes
            .unwrap_or_else(|| memory().max(MEMORY_BYTES_MIN)),
        spill_dir: limits.spill_dir.clone().unwrap_or_else(std::env::temp_dir),
        spill_bytes_max: limits.spill_bytes_max.unwrap_or(u64::MAX),
        threads: limits.threads.unwrap_or_else(cores),
    }
}

/// The greatest resident memory of this process so far.
fn peak_memory_bytes() -> u64 {
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss().max(0) as u64 * unit)
}
