//! Loads the tables into the database of `[load]`.

use tracing::warn;

use super::{aggregate_columns, is_computed};
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{OpenPipeline, RunContext};
use crate::config::{Aggregate, Load, TargetTable};
use crate::engine::session::session;
use crate::error::{Error, Result};
use crate::follow::postgres::{LoadedTable, Loader, missing_in_database};
use crate::report::FollowerReport;
use crate::state::State;
use crate::state::contract::{TableContract, read_types};
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{CURATED, Ledger};
use crate::table::files::register_store;
use crate::window::Window;

/// Loads the tables; `None` if there are none yet.
pub(super) async fn load_tables(
    run_context: &RunContext<'_>,
    settings: &Load,
    window: Option<Window>,
    full: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    let url = url_of(run_context, settings)?;
    // The loader itself looks for a newer commit before it commits.
    let reads = (Reads::LogOnly, NeededInputs::Recent);
    of_one_commit(run_context, reads, async |open, state| {
        let Some(contract) = &state.ledger.contract else {
            return Ok(None);
        };
        if open.is_publishing(state).await? {
            open.finish_interrupted(state).await?;
        }
        let context = session(&open.runtime, run_context.resources.threads);
        let tables = tables((open, &state.ledger), settings, contract).await?;
        for table in &tables {
            register_store(&context, table.folder);
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

/// The URL of the database.
fn url_of<'a>(run_context: &RunContext<'a>, settings: &Load) -> Result<&'a String> {
    let variable = &settings.url_env;
    let url = run_context.environment.get(variable).filter(|url| !url.is_empty());
    url.ok_or_else(|| {
        Error::usage(format!("the environment has no variable {variable} (`load.url_env`)"))
            .hint("set it to postgresql://user:password@host:5432/database")
    })
}

/// Connects to the database. Returns what is missing to load the tables.
pub(super) async fn examine(
    run_context: &RunContext<'_>,
    settings: &Load,
    targets: &[&TargetTable],
) -> Result<Vec<String>> {
    missing_in_database(url_of(run_context, settings)?, settings, targets).await
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
    (open, ledger): (&'a OpenPipeline<'_>, &Ledger),
    settings: &'a Load,
    contract: &TableContract,
) -> Result<Vec<LoadedTable<'a>>> {
    let pipeline = open.run_context.pipeline;
    let columns = read_types(&contract.columns)?;
    let is_loaded = |aggregate: &Aggregate| aggregate.load_table.is_some();
    let of_aggregates = if pipeline.aggregates.iter().any(is_loaded) {
        aggregate_columns(open, contract, &columns).await?
    } else {
        Vec::new()
    };
    let mut tables = Vec::new();
    if let Some(target) = &settings.table {
        tables.push(LoadedTable {
            name: CURATED.into(),
            folder: &open.output(CURATED)?.folder,
            columns,
            partition_by: pipeline.curated.partition_by.clone(),
            day: None,
            target,
        });
    }
    for (aggregate, columns) in pipeline.aggregates.iter().zip(of_aggregates) {
        let Some(target) = aggregate.load_table.as_ref().filter(|_| is_computed(ledger, aggregate))
        else {
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
