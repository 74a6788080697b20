//! Locks tables while they are read in a snapshot.
//!
//! A statement that truncates a table or writes it anew leaves nothing in it for older snapshots, so the tables are
//! locked against it until they are read. Each session locks what it reads itself, and none reads before all
//! have: such a statement waits for the lock of one session, whoever asks later for the same table waits behind
//! it, and if that were another session of ours, all would wait for each other for ever. The server does not
//! see that, because it does not know that the first session waits for the second one. The same holds for
//! indexes, which a query locks when it is planned, and which can be rebuilt beside it. A `COPY` of a table is not
//! planned.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::postgres::ServerName;
use crate::postgres::refusal::failed;

/// How often tables are tried to be locked, and the time between two tries.
const TRIES: usize = 600;
const PAUSE: Duration = Duration::from_secs(1);

/// A session in the transaction of a snapshot, with what it reads, as SQL names it, and whether that is planned.
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) server: &'a ServerName,
    pub(super) names: Vec<(String, bool)>,
}

/// Locks what sessions read, with its partitions, for all of them or for none.
///
/// # Errors
/// Storage, when a table was dropped meanwhile, or another statement has it locked for ten minutes; usage, when a
/// user must not lock it.
pub(super) async fn hold(sessions: &[Session<'_>]) -> Result<()> {
    for session in sessions {
        session.execute("SAVEPOINT held").await?;
    }
    for number in 1.. {
        let Some((session, error)) = lock(sessions).await else {
            break;
        };
        match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE && number < TRIES => {
                for session in sessions {
                    session.execute("ROLLBACK TO held").await?;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Some(code) if *code == SqlState::UNDEFINED_TABLE => {
                return Err(was_changed("a table", session.server));
            }
            _ => return Err(failed(session.server, "lock its tables for reading", &error)),
        }
    }
    Ok(())
}

/// Locks, or returns the session that could not.
async fn lock<'a, 'b>(
    sessions: &'a [Session<'b>],
) -> Option<(&'a Session<'b>, tokio_postgres::Error)> {
    for session in sessions.iter().filter(|session| !session.names.is_empty()) {
        // Not longer than the time after which the server looks for deadlocks: it would end a statement of the
        // application.
        let planned = session.names.iter().filter(|(_, is_planned)| *is_planned);
        let explained = planned.map(|(name, _)| format!("; EXPLAIN SELECT FROM {name}"));
        let names: Vec<&str> = session.names.iter().map(|(name, _)| name.as_str()).collect();
        let statement = format!(
            "SET LOCAL lock_timeout TO '500ms'; LOCK TABLE {} IN ACCESS SHARE MODE{}; \
             SET LOCAL lock_timeout TO 0",
            names.join(", "),
            // A plan locks the indexes.
            explained.collect::<String>(),
        );
        if let Err(error) = session.client.batch_execute(&statement).await {
            return Some((session, error));
        }
    }
    None
}

/// A table is not what it was in the snapshot.
pub(super) fn was_changed(table: &str, server: &ServerName) -> Error {
    Error::storage(format!("{table} was changed while its load began"))
        .hint(server.purpose.unchanged)
}

impl Session<'_> {
    async fn execute(&self, statement: &str) -> Result<()> {
        let done = self.client.batch_execute(statement).await;
        done.map_err(|error| failed(self.server, "lock its tables for reading", &error))
    }
}
