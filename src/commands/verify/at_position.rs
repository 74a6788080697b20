//! Brings the published table to a position of its source's log, with which it is then compared while writers go on.
//!
//! ```text
//! lock out other captures ─▶ export a snapshot at P ─▶ capture up to P ─▶ run, catch up ─▶ compare in the snapshot
//! ```
//!
//! The files have then every transaction that the snapshot sees, and no other one, and so has the table: nobody
//! else captures until the comparison has ended.

use chrono::TimeDelta;
use tracing::info;

use crate::capture::export::Reader;
use crate::capture::{Capture, Held};
use crate::commands::capture::url_of;
use crate::commands::open_pipeline::RunContext;
use crate::commands::run::run;
use crate::commands::task::Task;
use crate::config::Source;
use crate::error::{Error, Result};
use crate::window::Window;

/// Captures a source up to a snapshot, and folds what was not folded.
pub(super) async fn captured_and_folded<'a>(
    run_context: &RunContext<'_>,
    (source, run_ids): (&Source, &[String; 2]),
    reader: Reader<'a>,
) -> Result<Held<'a>> {
    if !run_context.pipeline.raw.urls.iter().any(|raw| raw.overlaps(&source.to)) {
        return Err(Error::usage(format!(
            "the source `{}` writes to {}, and `raw.url` is elsewhere: what it captures is not folded",
            source.name, source.to
        ))
        .hint("name the source that writes the pipeline's raw files"));
    }
    let url = url_of(source, run_context.environment)?;
    let capture = Capture {
        source,
        url,
        stores: run_context.stores,
        resources: run_context.resources,
        run_id: &run_context.run_id,
        new_snapshot: None,
        progress: &|_| (),
    };
    let held = capture.run_to_snapshot(reader).await?;
    info!("captured up to {}", held.position);
    // A run extends the windows up to now; then the pipeline catches up with all that is before. Clocks differ.
    let end = held.time.max(run_context.now) + TimeDelta::minutes(1);
    let window = Window { start: held.time.min(run_context.now), end };
    for (task, run_id) in [Task::Run(window), Task::CatchUp].into_iter().zip(run_ids) {
        let context = RunContext { run_id: run_id.clone(), ..copy_of(run_context) };
        run(&context, task).await?;
    }
    Ok(held)
}

fn copy_of<'a>(run_context: &RunContext<'a>) -> RunContext<'a> {
    let RunContext { pipeline, now, stores, environment, follows, resources, meter, .. } =
        *run_context;
    RunContext {
        pipeline,
        run_id: String::new(),
        now,
        stores,
        environment,
        follows,
        resources,
        meter,
    }
}
