//! Captures: until the end of the log, or until Ctrl-C.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Program, print};
use crate::cli::args;
use crate::cli::logging::Log;
use crate::cli::metrics::MetricsFile;
use crate::cli::resources::{now, peak_memory_bytes, resources};
use crate::commands::{CaptureContext, CaptureMode, CaptureReport, capture};
use crate::config::Source;
use crate::error::{Error, INTERRUPTED, Result};
use crate::report::Meter;
use crate::window::parse_duration;

impl Program {
    pub(super) fn capture(&self, arguments: &args::Capture) -> Result<u8> {
        let (started, began) = (Instant::now(), now());
        let every = parse_duration(&arguments.every).ok().and_then(|every| every.to_std().ok());
        let every = every.filter(|every| !every.is_zero()).ok_or_else(|| {
            Error::usage(format!("--every: `{}` is no duration", arguments.every))
                .hint("write --every 60s")
        })?;
        let metrics = arguments.metrics_file.as_deref().map(MetricsFile::open).transpose()?;
        let alias = arguments.source.file_stem().unwrap_or_default().to_string_lossy();
        self.log.begin("", &alias);
        let source = Source::read(&arguments.source, &arguments.common.set)?;
        let follows = arguments.follow.then_some(every);
        let new_snapshot = arguments.new_snapshot.clone();
        let write = |exit_code, report: Option<&CaptureReport>| {
            // One that goes on is looked at while it does.
            let time = if arguments.follow { now() } else { began };
            let written = metrics
                .as_ref()
                .map(|metrics| metrics.write_capture(&source.name, time, exit_code, report));
            if let Some(Err(error)) = written {
                tracing::warn!("{error}");
            }
        };
        let progress = |report: &CaptureReport| {
            if arguments.follow {
                write(0, Some(report));
            }
        };
        let ended = self.capture_source(&source, (follows, new_snapshot), started, &progress);
        let exit_code = ended.as_ref().map_or_else(|error| error.kind.exit_code(), |_| 0);
        write(exit_code, ended.as_ref().ok());
        print(&ended?, arguments.common.output)?;
        Ok(0)
    }

    fn capture_source(
        &self,
        source: &Source,
        (follows, new_snapshot): (Option<Duration>, Option<Vec<String>>),
        started: Instant,
        progress: &dyn Fn(&CaptureReport),
    ) -> Result<CaptureReport> {
        let run_id = uuid::Uuid::now_v7().to_string();
        self.log.begin(&run_id, &source.name);
        let resources = resources(&source.limits);
        let context = CaptureContext {
            source,
            run_id,
            new_snapshot,
            stores: &self.stores,
            environment: &self.environment,
            resources: &resources,
            meter: Meter { started, peak_memory_bytes },
            progress,
        };
        let runtime = self.runtime(&resources)?;
        let mode = match follows {
            None => CaptureMode::CatchUp,
            Some(every) => {
                let (sender, receiver) = watch::channel(false);
                runtime.spawn(stop_on_interrupt(sender, self.log.clone()));
                CaptureMode::Follow(every, receiver)
            }
        };
        runtime.block_on(capture(&context, mode))
    }
}

/// Stops at the end of the current transaction on the first Ctrl-C or SIGTERM, and at once on the second,
/// which is safe: what was not confirmed is sent again.
async fn stop_on_interrupt(stop: watch::Sender<bool>, log: Log) {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else {
        return;
    };
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => if interrupted.is_err() {
                return;
            },
            _ = terminated.recv() => {}
        }
        if stop.send_replace(true) {
            std::process::exit(INTERRUPTED.into());
        }
        log.notify("stopping after the current transaction; press Ctrl-C again to stop at once");
    }
}
