//! Registers the tables in the catalog of `[catalog]`.

use super::{aggregate_columns, is_computed};
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{OpenPipeline, RunContext};
use crate::config::{Catalog, Format};
use crate::error::{Error, Result};
use crate::follow::Marker;
use crate::follow::glue::{RegisteredTable, Registrar, check_database};
use crate::report::FollowerReport;
use crate::state::contract::{TableContract, read_types};
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{CURATED, Ledger};

/// Registers the tables; `None` if there are none yet. `repairs`: those too that have the newest commit.
pub(super) async fn register_tables(
    run_context: &RunContext<'_>,
    settings: &Catalog,
    repairs: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    let pipeline = run_context.pipeline;
    let aggregates = pipeline.aggregates.iter().map(|aggregate| &aggregate.url);
    for url in aggregates.chain([&pipeline.curated.url]) {
        if url.file_path().is_some() {
            return Err(Error::usage(format!(
                "the tables of a Glue catalog must be in S3, and {url} is not"
            ))
            .hint("remove [catalog], or set s3:// URLs"));
        }
    }
    // Of two that register at once, the one with the older commit does it again.
    let reads = (Reads::Files, NeededInputs::Recent);
    of_one_commit(run_context, reads, async |open, state| {
        let (Some(contract), Some(last)) = (&state.ledger.contract, state.ledger.runs.last())
        else {
            return Ok(None);
        };
        if open.is_publishing(state).await? {
            open.finish_interrupted(state).await?;
        }
        let registrar = Registrar {
            pipeline: &pipeline.name,
            catalog: settings,
            environment: run_context.environment,
            ledger: &state.ledger,
            newest: Marker {
                commit: last.commit,
                run_id: last.run_id.clone(),
                source: String::new(),
            },
            now: run_context.now,
            repairs,
            tables: tables((open, &state.ledger), settings, contract).await?,
        };
        registrar.register().await.map(Some)
    })
    .await
}

/// Checks that the database of the catalog can be read.
pub(super) async fn examine(run_context: &RunContext<'_>, settings: &Catalog) -> Result<()> {
    check_database(run_context.environment, settings).await
}

/// The tables, the curated one first.
async fn tables<'a>(
    (open, ledger): (&'a OpenPipeline<'_>, &Ledger),
    settings: &Catalog,
    contract: &TableContract,
) -> Result<Vec<RegisteredTable<'a>>> {
    let pipeline = open.run_context.pipeline;
    let columns = read_types(&contract.columns)?;
    let of_aggregates = aggregate_columns(open, contract, &columns).await?;
    let mut tables = vec![RegisteredTable {
        source: CURATED.into(),
        name: settings.table_of_curated(&pipeline.name),
        location: &pipeline.curated.url,
        format: pipeline.curated.format,
        columns,
        partition_by: pipeline.curated.partition_by.clone(),
    }];
    for (aggregate, columns) in pipeline.aggregates.iter().zip(of_aggregates) {
        if !is_computed(ledger, aggregate) {
            continue;
        }
        tables.push(RegisteredTable {
            source: aggregate.table(),
            name: aggregate.catalog_table.clone(),
            location: &aggregate.url,
            format: Format::Parquet,
            columns,
            partition_by: vec![aggregate.day.clone()],
        });
    }
    Ok(tables)
}
