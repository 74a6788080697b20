//! Brings followers to the newest commit: at the end of a run, and by `glueless load` and
//! `glueless catalog`.
//!
//! Publishing never waits for a follower: one that fails leaves the tables published, and the next
//! run, or the command by hand, applies what it lacks.

use arrow::datatypes::{DataType, Field};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tracing::info;

use crate::aggregate;
use crate::commands::open_pipeline::{OpenPipeline, RunContext, nothing_folded};
use crate::config::{Aggregate, Pipeline, TargetTable};
use crate::engine::session::session;
use crate::error::{Error, Result};
use crate::report::examined::Examined;
use crate::report::{Followed, FollowerReport};
use crate::state::contract::TableContract;
use crate::state::ledger::Ledger;
use crate::window::Window;

#[cfg(feature = "glue")]
mod catalog;
#[cfg(not(feature = "glue"))]
#[path = "follow/no_catalog.rs"]
mod catalog;
#[cfg(feature = "postgres")]
mod load;
#[cfg(not(feature = "postgres"))]
#[path = "follow/no_load.rs"]
mod load;

/// Brings the followers to the newest commit, after a run of a window. What fails is in their reports.
pub(super) async fn follow(run_context: &RunContext<'_>, window: Window) -> Vec<FollowerReport> {
    let mut reports = Vec::new();
    if let Some(settings) = &run_context.pipeline.load {
        let loaded = load::load_tables(run_context, settings, Some(window), false).await;
        reports.extend(reports_of("postgres", loaded));
    }
    if let Some(settings) = &run_context.pipeline.catalog {
        let registered = catalog::register_tables(run_context, settings, false).await;
        reports.extend(reports_of("glue", registered));
    }
    reports
}

/// Examines the targets of followers.
pub(super) async fn examine(run_context: &RunContext<'_>, examined: &mut Examined) {
    let pipeline = run_context.pipeline;
    if let Some(settings) = &pipeline.load {
        let aggregates = pipeline.aggregates.iter().filter_map(|it| it.load_table.as_ref());
        let targets: Vec<&TargetTable> = settings.table.iter().chain(aggregates).collect();
        match load::examine(run_context, settings, &targets).await {
            Err(error) => examined.failed("load", &error),
            Ok(missing) if missing.is_empty() => {
                examined.ok("load", "the database can be reached, and its tables written");
            }
            Ok(missing) => {
                for missing in missing {
                    let next = "grant it: docs/followers.md lists what is needed";
                    examined.error("load", missing, next);
                }
            }
        }
    }
    if let Some(settings) = &pipeline.catalog {
        match catalog::examine(run_context, settings).await {
            Err(error) => examined.failed("catalog", &error),
            Ok(()) => {
                let message =
                    format!("the database `{}` of the catalog can be read", settings.database);
                examined.ok("catalog", message);
            }
        }
    }
}

/// The reports of followers of one kind; a failure is one of them.
fn reports_of(name: &str, followed: Result<Option<Vec<FollowerReport>>>) -> Vec<FollowerReport> {
    match followed {
        Ok(reports) => reports.unwrap_or_default(),
        Err(error) => vec![FollowerReport::failed(name.into(), &error)],
    }
}

/// Loads the tables of a pipeline into its database: what has changed since the last load, or, if
/// `full`, everything.
///
/// # Errors
/// Usage, when the pipeline has no `[load]`, nothing was folded yet, or a table does not fit; data,
/// when a row is refused; storage, when the database cannot be reached.
pub fn load<'a>(
    run_context: &'a RunContext<'_>,
    full: bool,
) -> LocalBoxFuture<'a, Result<Followed>> {
    async move {
        let settings = run_context.pipeline.load.as_ref();
        let settings = settings.ok_or_else(|| {
            missing(run_context.pipeline, "load").hint("add [load] with `url_env` and `table`")
        })?;
        let loaded = load::load_tables(run_context, settings, None, full).await?;
        let followers = loaded.ok_or_else(|| nothing_folded("load"))?;
        let is_current = followers.iter().all(|report| report.is_current);
        let note = is_current.then(|| {
            info!("nothing to load: the database has the newest commit");
            "the database has the newest commit".to_string()
        });
        Ok(followed(run_context, followers, note))
    }
    .boxed_local()
}

/// Registers the tables of a pipeline in its catalog, and mends what others have changed there.
///
/// # Errors
/// Usage, when the pipeline has no `[catalog]`, nothing was folded yet, a table of the catalog is that
/// of someone else, or a call is not permitted; storage, when the catalog cannot be reached.
pub fn catalog<'a>(run_context: &'a RunContext<'_>) -> LocalBoxFuture<'a, Result<Followed>> {
    async move {
        let settings = run_context.pipeline.catalog.as_ref();
        let settings = settings.ok_or_else(|| {
            missing(run_context.pipeline, "catalog").hint("add [catalog] with `glue`, the database")
        })?;
        let registered = catalog::register_tables(run_context, settings, true).await?;
        let followers = registered.ok_or_else(|| nothing_folded("register"))?;
        Ok(followed(run_context, followers, None))
    }
    .boxed_local()
}

fn missing(pipeline: &Pipeline, section: &str) -> Error {
    Error::usage(format!("the pipeline `{}` has no [{section}]", pipeline.name))
}

fn followed(
    run_context: &RunContext<'_>,
    followers: Vec<FollowerReport>,
    note: Option<String>,
) -> Followed {
    Followed {
        pipeline: run_context.pipeline.name.clone(),
        followers,
        seconds: run_context.meter.seconds(),
        peak_memory_bytes: (run_context.meter.peak_memory_bytes)(),
        note,
    }
}

/// Whether a run has computed an aggregate as it is now. One that is new, or has another query, is
/// computed by the next run; until then it has no rows to follow.
#[cfg_attr(
    not(any(feature = "glue", feature = "postgres")),
    expect(dead_code, reason = "without followers nothing asks")
)]
pub(super) fn is_computed(ledger: &Ledger, aggregate: &Aggregate) -> bool {
    let table = aggregate.table();
    let is_computed = ledger.runs.iter().any(|run| run.tables.contains(&table));
    if !is_computed {
        info!("aggregate {}: not computed yet: the next run does it", aggregate.name);
    }
    is_computed
}

/// The columns of a table: name and type.
type Columns = Vec<(String, DataType)>;

/// The columns of each aggregate, given those of the curated table.
pub(super) async fn aggregate_columns(
    open: &OpenPipeline<'_>,
    contract: &TableContract,
    columns: &Columns,
) -> Result<Vec<Columns>> {
    let pipeline = open.run_context.pipeline;
    let context = session(&open.runtime, 1);
    let fields = columns.iter().map(|(name, kind)| Field::new(name, kind.clone(), true));
    let fields: Vec<Field> = fields.collect();
    aggregate::columns_of_all(&context, pipeline, &contract.layout()?, &fields).await
}
