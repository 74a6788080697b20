//! `[catalog]`: the catalog in which the tables are registered.

use serde::Deserialize;

/// The catalog in which the tables are registered.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// `catalog.glue`: the database in the AWS Glue catalog.
    pub database: String,
    /// `catalog.table`: the name of the curated table in it; default the pipeline's name. Aggregates are
    /// named by `aggregate.catalog.table`; default the aggregate's name.
    pub table: Option<String>,
    /// `catalog.mode`: how readers find partitions; default `partitions`.
    pub mode: CatalogMode,
}

impl Catalog {
    /// The name of the curated table of a pipeline.
    pub fn table_of_curated(&self, pipeline: &str) -> String {
        self.table.clone().unwrap_or_else(|| pipeline.to_lowercase())
    }
}

/// How readers of a table find its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatalogMode {
    /// The catalog lists them.
    #[default]
    Partitions,
    /// Athena computes them from properties of the table.
    Projection,
}

/// The name of a table in Glue, which stores names in lower case; `None` if it cannot be one.
pub(super) fn table_name(name: &str) -> Option<String> {
    let is_name = (1..=255).contains(&name.len()) && !name.contains(['/', '.', '`', '"', '\'']);
    is_name.then(|| name.to_lowercase())
}
