//! `[load]`: the database that the tables are loaded into.

use std::fmt;

use serde::Deserialize;

use crate::config::Sql;

/// The database that the tables are loaded into.
#[derive(Clone, Debug)]
pub struct Load {
    /// `load.url_env`: the environment variable with the URL of the PostgreSQL database.
    pub url_env: String,
    /// `load.table`: the table that follows the curated table; none by default.
    pub table: Option<TargetTable>,
    /// `load.after_sql`: a file with statements that run in the same transaction, after the tables
    /// were loaded.
    pub after_sql: Option<Sql>,
}

/// The table that the curated table is compared with.
#[derive(Clone, Debug)]
pub struct VerifySource {
    /// `verify.url_env`: the environment variable with the URL of the PostgreSQL database.
    pub url_env: String,
    /// `verify.table`: the table, or a view.
    pub table: TargetTable,
    /// `verify.method`: how it is compared.
    pub method: VerifyMethod,
}

/// How a table is compared with one of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyMethod {
    /// All of its rows are read.
    #[default]
    Rows,
    /// The server hashes its rows, and those of buckets that differ are read.
    Hashes,
}

/// A table in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl TargetTable {
    /// Reads `schema.table`, or `table` in the schema `public`. Names are taken as they are written.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        // PostgreSQL cuts longer names.
        let is_name =
            |name: &str| (1..=63).contains(&name.len()) && !name.contains(['.', '"', '\0']);
        (is_name(schema) && is_name(name))
            .then(|| TargetTable { schema: schema.into(), name: name.into() })
    }
}

impl fmt::Display for TargetTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}
