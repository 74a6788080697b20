//! Backfills at a terminal: a progress bar, and Ctrl-C.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::several::Share;
use super::{Program, metrics_file, window, write_metrics};
use crate::cli::args;
use crate::cli::logging::Log;
use crate::cli::metrics::MetricsFile;
use crate::cli::resources::now;
use crate::commands::RunContext;
use crate::commands::backfill::{Backfill, Backfilled, Watch, backfill};
use crate::config::{Pipeline, name_of};
use crate::engine::resources::Resources;
use crate::error::{Error, INTERRUPTED, Result};
use crate::report::{FollowerReport, Report};
use crate::window::{Window, parse_duration};

impl Program {
    pub(super) fn backfill(&self, arguments: &args::Backfill) -> Result<u8> {
        let step = parse_duration(&arguments.step)
            .map_err(|why| Error::usage(format!("--step: {why}")).hint("write --step 1d"))?;
        let backfill = Backfill {
            span: window(&arguments.dates)?,
            step,
            redo: arguments.redo,
            fail_fast: arguments.fail_fast,
            follows_each: arguments.follow == args::Follow::Each,
        };
        backfill.windows()?;
        let metrics = metrics_file(&arguments.many)?;
        let stop = Arc::new(AtomicBool::new(false));
        stop_on_interrupt(Arc::clone(&stop), self.log.clone())?;
        self.run_each(arguments.many.several.both(), metrics.as_ref(), |path, share| {
            self.backfill_one(path, share, &backfill, metrics.as_ref(), &stop)
        })
    }

    fn backfill_one(
        &self,
        path: &Path,
        share: &Share<'_>,
        options: &Backfill,
        metrics: Option<&MetricsFile>,
        stop: &AtomicBool,
    ) -> Result<Backfilled> {
        let alias = name_of(path);
        self.log.begin("", &alias);
        let pipeline = self.pipeline(path, share.set).inspect_err(|error| {
            write_metrics(metrics, [&alias, &alias], now(), Err(error));
        })?;
        let resources = share.resources(&pipeline.limits)?;
        let bar = self.bars.add(ProgressBar::no_length());
        let style = "{bar:30} {pos} of {len} windows, {msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let watcher = Watcher {
            program: self,
            pipeline: &pipeline,
            resources: &resources,
            metrics,
            alias: &alias,
            stop,
            bar: bar.clone(),
            rows: Cell::new(0),
            started: Instant::now(),
        };
        let answer =
            self.block_on(share, &resources, Box::pin(backfill(options, &pipeline, &watcher)));
        bar.finish_and_clear();
        self.bars.remove(&bar);
        answer
    }
}

/// Follows a backfill: shows its progress, writes metrics, and passes on Ctrl-C.
struct Watcher<'a> {
    program: &'a Program,
    pipeline: &'a Pipeline,
    resources: &'a Resources,
    metrics: Option<&'a MetricsFile>,
    alias: &'a str,
    stop: &'a AtomicBool,
    bar: ProgressBar,
    /// Rows read so far.
    rows: Cell<u64>,
    started: Instant,
}

impl<'a> Watch<'a> for Watcher<'a> {
    fn begin(&self, window: &Window, done: usize, all: usize) -> RunContext<'a> {
        let bar = &self.bar;
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rows_per_second = self.rows.get() as f64 / seconds;
        let start = window.start.format("%Y-%m-%d %H:%M");
        bar.set_message(format!("at {start}, {rows_per_second:.0} rows/s"));
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if done == 0 && !bar.is_hidden() {
            // Keeps the remaining time counting down within a window.
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        let program = self.program;
        program.run_context(self.pipeline, self.resources, Instant::now())
    }

    fn end(&self, run_context: &RunContext<'a>, ended: &Result<Report>) {
        match ended {
            Ok(report) => {
                self.rows.set(self.rows.get() + report.rows_read);
                self.program.log.failed_followers(&report.followers);
            }
            Err(error) => self.program.log.failed(error),
        }
        let names = [self.pipeline.name.as_str(), self.alias];
        write_metrics(self.metrics, names, run_context.now, ended.as_ref().map(Some));
    }

    fn followed(
        &self,
        run_context: &RunContext<'a>,
        followers: &[FollowerReport],
        has_failed: bool,
    ) {
        self.program.log.failed_followers(followers);
        let failure = followers.iter().find_map(FollowerReport::failure);
        if failure.is_some() || (!has_failed && !followers.is_empty()) {
            let names = [self.pipeline.name.as_str(), self.alias];
            let ended = failure.as_ref().map_or(Ok(None), Err);
            write_metrics(self.metrics, names, run_context.now, ended);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Stops backfills after their current windows on the first Ctrl-C, and at once on the second, which
/// is safe: the next command finishes or undoes an interrupted publish.
fn stop_on_interrupt(stop: Arc<AtomicBool>, log: Log) -> Result<()> {
    let failed = |error| Error::internal("cannot wait for signals").caused_by(error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let wait = move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED.into());
                }
                log.notify("stopping after this window; press Ctrl-C again to stop at once");
            }
        });
    };
    std::thread::Builder::new().spawn(wait).map(|_| ()).map_err(failed)
}
