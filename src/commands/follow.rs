//! Brings followers to the newest commit: at the end of a run, and by `glueless load`.
//!
//! Publishing never waits for a follower: one that fails leaves the tables published, and the next
//! load applies what it lacks.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tracing::info;

use crate::commands::open_pipeline::{RunContext, nothing_folded};
#[cfg(not(feature = "postgres"))]
use crate::config::Load;
use crate::error::{Error, Result};
use crate::report::{Followed, FollowerReport};
use crate::window::Window;

/// The name of the followers of `[load]`, before their tables are known.
const DATABASE: &str = "postgres";

/// Brings the followers to the newest commit, after a run of a window. What fails is in their reports.
pub async fn follow(run_context: &RunContext<'_>, window: Option<Window>) -> Vec<FollowerReport> {
    let Some(settings) = &run_context.pipeline.load else {
        return Vec::new();
    };
    match load_tables(run_context, settings, window, false).await {
        Ok(Some(reports)) => reports,
        Ok(None) => Vec::new(),
        Err(error) => vec![FollowerReport::failed(DATABASE.into(), &error)],
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
        let pipeline = run_context.pipeline;
        let settings = pipeline.load.as_ref().ok_or_else(|| {
            Error::usage(format!("the pipeline `{}` has no [load]", pipeline.name))
                .hint("add [load] with `url_env` and `table`")
        })?;
        let loaded = load_tables(run_context, settings, None, full).await?;
        let followers = loaded.ok_or_else(|| nothing_folded("load"))?;
        let is_done =
            |report: &FollowerReport| report.from_commit == Some(report.to_commit) && !full;
        let note = followers.iter().all(is_done).then(|| {
            info!("nothing to load: the database has the newest commit");
            "the database has the newest commit".into()
        });
        Ok(Followed {
            pipeline: pipeline.name.clone(),
            followers,
            seconds: run_context.meter.seconds(),
            peak_memory_bytes: (run_context.meter.peak_memory_bytes)(),
            note,
        })
    }
    .boxed_local()
}

#[cfg(not(feature = "postgres"))]
async fn load_tables(
    _: &RunContext<'_>,
    _: &Load,
    _: Option<Window>,
    _: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    Err(Error::usage("this program was built without the feature `postgres`")
        .hint("build it with its default features, or remove [load]"))
}

#[cfg(feature = "postgres")]
use postgres::load_tables;

#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field};
    use tracing::warn;

    use crate::aggregate;
    use crate::commands::one_commit::{Reads, of_one_commit};
    use crate::commands::open_pipeline::{OpenPipeline, RunContext, object_store_root};
    use crate::config::{Aggregate, Load};
    use crate::engine::session::session;
    use crate::error::{Error, Result};
    use crate::follow::postgres::{LoadedTable, Loader};
    use crate::report::FollowerReport;
    use crate::state::State;
    use crate::state::contract::{TableContract, read_types};
    use crate::state::inputs::NeededInputs;
    use crate::state::ledger::CURATED;
    use crate::window::Window;

    /// Loads the tables; `None` if there are none yet.
    pub(super) async fn load_tables(
        run_context: &RunContext<'_>,
        settings: &Load,
        window: Option<Window>,
        full: bool,
    ) -> Result<Option<Vec<FollowerReport>>> {
        let variable = &settings.url_env;
        let url = run_context.environment.get(variable).filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| {
            Error::usage(format!("the environment has no variable {variable} (`load.url_env`)"))
                .hint("set it to postgresql://user:password@host:5432/database")
        })?;
        let reads = (Reads::LogOnly, NeededInputs::Recent);
        of_one_commit(run_context, reads, async |open, state| {
            let Some(contract) = &state.ledger.contract else {
                return Ok(None);
            };
            if open.is_publishing(state).await? {
                open.finish_interrupted(state).await?;
            }
            let context = session(&open.runtime, run_context.resources.threads);
            let tables = tables(open, settings, contract).await?;
            for table in &tables {
                let store = object_store_root(table.folder);
                context.register_object_store(&store, Arc::clone(&table.folder.root_store));
            }
            let loader = Loader {
                pipeline: run_context.pipeline,
                load: settings,
                url,
                window,
                full,
                state,
                tables,
                context: &context,
                runtime: &open.runtime,
                threads: run_context.resources.threads,
            };
            let check_current = async || check_current(run_context, state).await;
            loader.load(check_current).await.map(Some)
        })
        .await
    }

    /// Refuses to continue if the state has a newer commit.
    async fn check_current(run_context: &RunContext<'_>, state: &State) -> Result<()> {
        let newest = State::newest_commit(run_context.stores, run_context.pipeline).await?;
        if newest == state.last_commit() {
            return Ok(());
        }
        warn!("another run committed while its tables were read for the load");
        Err(Error::busy("another run of this pipeline committed meanwhile")
            .hint("nothing was loaded: run `glueless load`"))
    }

    /// The tables that are loaded, the curated one first.
    async fn tables<'a>(
        open: &'a OpenPipeline<'_>,
        settings: &'a Load,
        contract: &TableContract,
    ) -> Result<Vec<LoadedTable<'a>>> {
        let pipeline = open.run_context.pipeline;
        let columns = read_types(&contract.columns)?;
        let mut tables = Vec::new();
        if let Some(target) = &settings.table {
            tables.push(LoadedTable {
                name: CURATED.into(),
                folder: &open.output(CURATED)?.folder,
                columns: columns.clone(),
                partition_by: pipeline.curated.partition_by.clone(),
                day: None,
                target,
            });
        }
        let of_aggregates = aggregate_columns(open, contract, columns).await?;
        for (aggregate, columns) in pipeline.aggregates.iter().zip(of_aggregates) {
            let Some(target) = &aggregate.load_table else {
                continue;
            };
            tables.push(LoadedTable {
                name: aggregate.table(),
                folder: &open.output(&aggregate.table())?.folder,
                columns,
                partition_by: vec![aggregate.day.clone()],
                day: Some(&aggregate.day),
                target,
            });
        }
        Ok(tables)
    }

    /// The columns of each aggregate: name and type.
    async fn aggregate_columns(
        open: &OpenPipeline<'_>,
        contract: &TableContract,
        columns: Vec<(String, DataType)>,
    ) -> Result<Vec<Vec<(String, DataType)>>> {
        let pipeline = open.run_context.pipeline;
        let is_loaded = |aggregate: &Aggregate| aggregate.load_table.is_some();
        if !pipeline.aggregates.iter().any(is_loaded) {
            return Ok(vec![Vec::new(); pipeline.aggregates.len()]);
        }
        let context = session(&open.runtime, 1);
        let fields = columns.into_iter().map(|(name, kind)| Field::new(name, kind, true));
        let fields: Vec<Field> = fields.collect();
        aggregate::check(&context, pipeline, &contract.layout()?, &fields).await?;
        let mut all = Vec::new();
        for aggregate in &pipeline.aggregates {
            all.push(aggregate::columns(&context, aggregate).await?);
        }
        Ok(all)
    }
}
