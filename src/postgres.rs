//! PostgreSQL servers: connections, what their refusals mean, and hashes of rows that they compute too. Loads,
//! captures and comparisons share them.

use std::fmt;

use tokio_postgres::error::DbError;

pub(crate) mod connect;
pub(crate) mod refusal;
pub(crate) mod row_hash;

/// What a connection is for; messages depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    /// The key that names the variable with the URL.
    pub(crate) key: &'static str,
    /// What a failure has left as it was, and that the command can be run again.
    pub(crate) unchanged: &'static str,
    /// The document that lists the permissions.
    pub(crate) grants: &'static str,
}

/// The name of a database and its server for messages.
#[derive(Clone, Debug)]
pub(crate) struct ServerName {
    /// The database and where it is.
    pub(crate) name: String,
    pub(crate) purpose: Purpose,
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A refusal of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusal {
    /// Its SQLSTATE.
    pub(crate) code: String,
    /// Its message, which can have values of rows.
    pub(crate) message: String,
    pub(crate) constraint: Option<String>,
    pub(crate) column: Option<String>,
    pub(crate) data_type: Option<String>,
}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Self {
        Refusal {
            code: error.code().code().into(),
            message: error.message().into(),
            constraint: error.constraint().map(String::from),
            column: error.column().map(String::from),
            data_type: error.datatype().map(String::from),
        }
    }
}

/// A name as SQL has it: in quotes, which it may contain.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
