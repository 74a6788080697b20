//! Errors of the server, without the values that its messages repeat.

use std::error::Error as StdError;

use tokio_postgres::Error as ServerError;

use crate::error::{Error, Result};
use crate::postgres::{Refusal, ServerName};

/// The error of a connection that cannot be made.
pub(crate) fn connecting(server: &ServerName, error: &ServerError) -> Error {
    if let Some(refusal) = error.as_db_error() {
        return refused(server, &Refusal::from(refusal), "open a session");
    }
    if let Some(refused) = refused_tls(server, error) {
        return refused;
    }
    let text = describe(error);
    if text.contains("server does not support TLS") {
        return no_tls_offered(server);
    }
    if text.contains("password missing") {
        return no_password(server);
    }
    unreachable(server, &text)
}

/// The error of a connection whose TLS cannot begin.
pub(crate) fn no_tls(server: &ServerName, error: &std::io::Error) -> Error {
    refused_tls(server, error).unwrap_or_else(|| unreachable(server, &error.to_string()))
}

fn unreachable(server: &ServerName, why: &str) -> Error {
    Error::storage(format!("cannot reach {server}: {why}"))
        .hint("start it or check host and port, then run the command again")
}

/// The error for a certificate that is not trusted, if that is the cause.
fn refused_tls(server: &ServerName, error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>()
            && !matches!(tls, rustls::Error::AlertReceived(_) | rustls::Error::PeerMisbehaved(_))
        {
            let failed = format!("cannot connect to {server}: TLS failed: {tls}");
            return Some(Error::usage(failed).hint(
                "name the certificate of the server's authority by sslrootcert=FILE in the URL",
            ));
        }
        next = match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

/// The error for a server without TLS.
pub(crate) fn no_tls_offered(server: &ServerName) -> Error {
    Error::usage(format!("cannot connect to {server}: it does not offer TLS")).hint(
        "turn TLS on at the server, or write sslmode=disable into the URL if the network is safe",
    )
}

/// The error for a server that asks for a password.
pub(crate) fn no_password(server: &ServerName) -> Error {
    Error::usage(format!("cannot connect to {server}: it asks for a password"))
        .hint("write the password into the URL")
}

/// The error of a statement that failed; `doing` names the action and the table.
pub(crate) fn failed(server: &ServerName, doing: &str, error: &ServerError) -> Error {
    match error.as_db_error() {
        Some(refusal) => refused(server, &Refusal::from(refusal), doing),
        None => lost(server, doing, error),
    }
}

/// The error of a connection that was lost.
fn lost(server: &ServerName, doing: &str, error: &ServerError) -> Error {
    Error::storage(format!("cannot {doing} in {server}: {}", describe(error)))
        .hint(format!("{} when the server is there", server.purpose.unchanged))
}

/// The message of an error that is none of the server's, with its causes.
fn describe(error: &ServerError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// Whether the server may have carried out what it was asked for.
pub(crate) fn is_in_doubt(error: &ServerError) -> bool {
    // 57P01 to 57P03: the server is stopped while it works.
    error.as_db_error().is_none_or(|refusal| refusal.code().code().starts_with("57P"))
}

/// The error for a refusal of the server.
pub(crate) fn refused(server: &ServerName, refusal: &Refusal, doing: &str) -> Error {
    let code = refusal.code.as_str();
    match code.get(..2).unwrap_or_default() {
        // Data exceptions and integrity constraints: the message can have values of the row.
        "21" | "22" | "23" | "44" | "54" | "P0" => of_a_row(refusal, doing),
        // A state that does not change by itself, such as a setting of the server.
        _ if code == "55000" => {
            Error::usage(format!("cannot {doing} in {server}: {}", refusal.message))
        }
        // Out of shared memory: its store of locks is full, or the whole of it.
        _ if code == "53200" => {
            Error::storage(format!("cannot {doing} in {server}: {}", refusal.message)).hint(format!(
                "{} later; each table that is read or written takes a lock, in which case the server needs a \
                 greater `max_locks_per_transaction`",
                server.purpose.unchanged
            ))
        }
        // Connections, resources, stops, conflicts: later it may work.
        "08" | "53" | "55" | "57" | "58" | "40" => {
            Error::storage(format!("cannot {doing} in {server}: {}", refusal.message))
                .hint(format!("{} later", server.purpose.unchanged))
        }
        // Idle in a transaction, as after a process was suspended.
        _ if code == "25P03" => {
            Error::storage(format!("cannot {doing} in {server}: {}", refusal.message))
                .hint(server.purpose.unchanged)
        }
        "25" if code == "25001" => of_transaction(server, refusal, doing),
        "2D" => of_transaction(server, refusal, doing),
        "25" => Error::usage(format!("cannot {doing} in {server}: {}", refusal.message))
            .hint("name the primary server in the URL: this one takes no changes"),
        "28" | "3D" => Error::usage(format!("cannot {doing} in {server}: {}", refusal.message))
            .hint("check user, password and database in the URL"),
        _ if code == "42501" => {
            let is_of_rows = refusal.message.contains("row-level security");
            let hint = if is_of_rows {
                "it must see all rows: ALTER ROLE … BYPASSRLS".to_string()
            } else {
                format!("grant it; {} lists what is needed", server.purpose.grants)
            };
            Error::usage(format!("cannot {doing} in {server}: {}", refusal.message)).hint(hint)
        }
        "42" | "0A" | "2B" | "3F" => {
            Error::usage(format!("cannot {doing} in {server}: {}", refusal.message))
        }
        // Its own errors, which name no values of rows.
        "XX" => Error::storage(format!("cannot {doing} in {server}: {}", refusal.message)).hint(
            format!(
                "this is an error inside of the server, whose log may say more; {} later",
                server.purpose.unchanged
            ),
        ),
        _ => Error::internal(format!("cannot {doing} in {server}: SQLSTATE {code}")),
    }
}

/// The error for a statement that cannot run in a transaction, or ends it.
fn of_transaction(server: &ServerName, refusal: &Refusal, doing: &str) -> Error {
    Error::usage(format!("cannot {doing} in {server}: {}", refusal.message)).hint(
        "leave COMMIT, ROLLBACK and what cannot run in a transaction out of `load.after_sql`; then run \
         `glueless load`",
    )
}

/// The error for a row that the target refuses.
fn of_a_row(refusal: &Refusal, doing: &str) -> Error {
    let what = match refusal.code.as_str() {
        "23502" => "a value is missing",
        "23503" => "a foreign key is not met",
        "23505" => "a unique constraint has the value already",
        "23514" => "a check constraint is not met",
        "23P01" => "an exclusion constraint is not met",
        "22001" => "a text is too long",
        "22003" => "a number is out of range",
        "22008" | "22007" => "a date or time is out of range",
        "22P02" | "22P03" => "a value is none of the column's type",
        "21000" => "two rows have the same key there",
        "54000" => "a value is too large, such as for an index",
        "22P05" => "a text has a character that the encoding of the database lacks",
        "22021" => "a text has a character that the database cannot store",
        _ => "a value is refused",
    };
    let mut named = Vec::new();
    for (kind, name) in [
        ("constraint", &refusal.constraint),
        ("column", &refusal.column),
        ("type", &refusal.data_type),
    ] {
        named.extend(name.as_ref().map(|name| format!("{kind} `{name}`")));
    }
    let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    Error::data(format!("cannot {doing}: {what}{named}; SQLSTATE {}", refusal.code.as_str()))
}

/// Adds to the error of a refused row by which columns its key can be found.
pub(crate) fn of_rows_with<T>(key: &[String], table: &str, loaded: Result<T>) -> Result<T> {
    loaded.map_err(|error| {
        if error.kind != crate::error::Kind::Data || error.hint.is_some() {
            return error;
        }
        let rows = match key {
            [] => "rows".to_string(),
            key => format!("rows, by their key `{}`,", key.join("`, `")),
        };
        error.hint(format!(
            "nothing was loaded: look for such {rows} in the published table, and correct them in \
             curated.sql or at their source, or change {table}; then run `glueless load`"
        ))
    })
}
