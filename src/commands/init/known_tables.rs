//! What the catalog of the source says of its tables.

use crate::commands::init::InitContext;
use crate::error::Result;
use crate::survey::KnownTable;

/// The tables of the source, if the user has named it.
///
/// # Errors
/// Usage, when the variable has no URL of a database; storage, when that cannot be reached.
#[cfg(feature = "postgres")]
pub(super) async fn of_source(context: &InitContext<'_>) -> Result<Vec<KnownTable>> {
    use crate::capture::described::{Described, described};
    use crate::error::Error;
    use crate::types::column_type::name_of;

    let Some(variable) = context.source_url_env else { return Ok(Vec::new()) };
    let url = context.environment.get(variable).filter(|url| !url.is_empty()).ok_or_else(|| {
        Error::usage(format!("the environment has no variable {variable} (`--source-url-env`)"))
            .hint("set it to postgresql://user:password@host:5432/database")
    })?;
    let known = |table: Described| KnownTable {
        schema: table.schema,
        table: table.name,
        key: table.key,
        columns: table
            .columns
            .into_iter()
            .map(|(column, data_type)| (column, name_of(&data_type)))
            .collect(),
    };
    Ok(described(url, variable).await?.into_iter().map(known).collect())
}

/// Refuses a source: this program reads none.
///
/// # Errors
/// Usage, when the user has named one.
#[cfg(not(feature = "postgres"))]
pub(super) async fn of_source(context: &InitContext<'_>) -> Result<Vec<KnownTable>> {
    use crate::error::Error;

    match context.source_url_env {
        None => Ok(Vec::new()),
        Some(_) => Err(Error::usage("this glueless was built without PostgreSQL")
            .hint("build it with the feature `postgres`, which is on by default")),
    }
}
