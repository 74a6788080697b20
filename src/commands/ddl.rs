//! Prints statements that make the tables known elsewhere.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use crate::commands::follow::aggregate_columns;
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{RunContext, nothing_folded};
use crate::config::Format;
use crate::error::Result;
use crate::follow::ddl::{Described, Dialect, key_of, statements};
use crate::report::Answer;
use crate::state::contract::read_types;
use crate::state::inputs::NeededInputs;

/// Statements for a pipeline's tables.
#[derive(Clone, Debug, Serialize)]
pub struct Statements {
    /// The pipeline's name.
    pub pipeline: String,
    /// The statements, each with a semicolon at its end.
    pub sql: String,
}

/// Writes the statements for the tables of a pipeline.
///
/// # Errors
/// Usage, when nothing was folded yet, or a column has a type that the dialect has not.
pub fn ddl<'a>(
    run_context: &'a RunContext<'_>,
    dialect: Dialect,
) -> LocalBoxFuture<'a, Result<Statements>> {
    async move {
        let pipeline = run_context.pipeline;
        let reads = (Reads::LogOnly, NeededInputs::Recent);
        of_one_commit(run_context, reads, async |open, state| {
            let contract =
                state.ledger.contract.as_ref().ok_or_else(|| nothing_folded("describe"))?;
            let mut columns = read_types(&contract.columns)?;
            let of_aggregates = aggregate_columns(open, contract, &columns).await?;
            let catalog = pipeline.catalog.as_ref();
            let curated = catalog
                .map_or(pipeline.name.clone(), |catalog| catalog.table_of_curated(&pipeline.name));
            let load = pipeline.load.as_ref().filter(|_| dialect == Dialect::Postgres);
            let mut tables = vec![Described {
                name: curated,
                schema: None,
                location: &pipeline.curated.url,
                format: pipeline.curated.format,
                // A column without a type is not loaded.
                columns: match dialect {
                    Dialect::Postgres => {
                        columns.retain(|(name, _)| !contract.untyped.contains(name));
                        columns
                    }
                    _ => columns,
                },
                partition_by: pipeline.curated.partition_by.clone(),
                key: key_of(pipeline, contract.day()),
                day: None,
            }];
            for (aggregate, columns) in pipeline.aggregates.iter().zip(of_aggregates) {
                tables.push(Described {
                    name: match catalog {
                        Some(_) => aggregate.catalog_table.clone(),
                        None => aggregate.name.clone(),
                    },
                    schema: None,
                    location: &aggregate.url,
                    format: Format::Parquet,
                    columns,
                    partition_by: vec![aggregate.day.clone()],
                    key: Vec::new(),
                    day: Some(&aggregate.day),
                });
            }
            if let Some(load) = load {
                let of_aggregates = pipeline.aggregates.iter().map(|it| it.load_table.as_ref());
                let targets = std::iter::once(load.table.as_ref()).chain(of_aggregates);
                let targeted = tables.into_iter().zip(targets).filter_map(|(table, target)| {
                    let target = target?;
                    let schema = Some(target.schema.clone());
                    Some(Described { name: target.name.clone(), schema, ..table })
                });
                tables = targeted.collect();
            }
            let sql = statements(dialect, catalog, &tables)?;
            Ok(Statements { pipeline: pipeline.name.clone(), sql })
        })
        .await
    }
    .boxed_local()
}

impl Answer for Statements {
    fn text(&self) -> String {
        self.sql.clone()
    }
}
