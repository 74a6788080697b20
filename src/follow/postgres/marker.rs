//! Markers: the table `glueless_loads` in the schema of the loaded tables, with a row for each of them.
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `pipeline`, `table` | text | the pipeline, and the table that it loads, `schema.table` |
//! | `state` | text | the pipeline's state: two of the same name are two |
//! | `source` | text | what is loaded into it: the table as the ledger names it, and its columns |
//! | `commit`, `run_id` | bigint, text | the last commit that was applied, and the run that made it |
//! | `at` | timestamp with time zone | when it was applied |
//!
//! A load locks the rows of its tables first, and holds them to its end: a second load waits.

use tokio_postgres::Client;
use tracing::info;

use crate::config::TargetTable;
use crate::error::{Error, Result};
use crate::follow::Marker;
use crate::postgres::ServerName;
use crate::postgres::refusal::failed;
use crate::state::versions::quoted;

/// The name of the table of markers.
const MARKERS: &str = "glueless_loads";

/// The markers of a table's schema.
pub(super) struct Markers<'a> {
    pub(super) client: &'a Client,
    pub(super) server: &'a ServerName,
    pub(super) pipeline: &'a str,
    /// The URL of its state.
    pub(super) state: String,
}

impl Markers<'_> {
    /// Makes the table of markers in a schema, if it is missing; outside of a transaction.
    pub(super) async fn prepare(&self, target: &TargetTable) -> Result<()> {
        let markers = markers_of(target);
        let doing = format!("make {markers}");
        let exists = "SELECT to_regclass($1) IS NOT NULL";
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {markers} (
                pipeline text NOT NULL,
                \"table\" text NOT NULL,
                state text NOT NULL,
                source text NOT NULL,
                commit bigint,
                run_id text,
                at timestamp with time zone NOT NULL,
                PRIMARY KEY (pipeline, \"table\")
            )"
        );
        // Two that make it at once: one of them fails, and finds it then.
        for is_last in [false, true] {
            let row = self.client.query_one(exists, &[&markers]).await;
            let row = row.map_err(|error| failed(self.server, &doing, &error))?;
            if row.get(0) {
                return Ok(());
            }
            let made = self.client.batch_execute(&create).await;
            if let Err(error) = made
                && is_last
            {
                return Err(failed(self.server, &doing, &error));
            }
        }
        Ok(())
    }

    /// Locks the marker of a table until the transaction ends, and reads it; `None` if nothing was
    /// loaded into the table.
    ///
    /// # Errors
    /// Usage, when another pipeline loads this table; those of the server.
    pub(super) async fn lock(&self, target: &TargetTable) -> Result<Option<Marker>> {
        let (markers, table) = (markers_of(target), target.to_string());
        let doing = format!("read the marker of {table}");
        let refused = |error| failed(self.server, &doing, &error);
        let others = format!(
            "SELECT pipeline FROM {markers}
            WHERE \"table\" = $1 AND pipeline <> $2 AND commit IS NOT NULL LIMIT 1"
        );
        let others = self.client.query_opt(&others, &[&table, &self.pipeline]).await;
        if let Some(other) = others.map_err(refused)? {
            let other: String = other.get(0);
            return Err(Error::usage(format!("the pipeline `{other}` loads {table} too")).hint(
                format!(
                    "give each pipeline its own table; if `{other}` does not load it any more, \
                     delete its row from {markers}"
                ),
            ));
        }
        let insert = format!(
            "INSERT INTO {markers} (pipeline, \"table\", state, source, at)
            VALUES ($1, $2, $3, '', now()) ON CONFLICT DO NOTHING"
        );
        let key: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.pipeline, &table];
        let named: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&self.pipeline, &table, &self.state];
        self.client.execute(&insert, &named).await.map_err(refused)?;
        let lock = format!(
            "SELECT commit, run_id, source, state FROM {markers}
            WHERE pipeline = $1 AND \"table\" = $2 FOR UPDATE"
        );
        let free = self.client.query_opt(&format!("{lock} SKIP LOCKED"), &key).await;
        let row = match free.map_err(refused)? {
            Some(row) => row,
            None => {
                info!("another load of {table} is running: waiting for its end");
                self.client.query_one(&lock, &key).await.map_err(refused)?
            }
        };
        let (commit, run_id): (Option<i64>, Option<String>) = (row.get(0), row.get(1));
        let state: String = row.get(3);
        if commit.is_some() && state != self.state {
            return Err(Error::usage(format!(
                "{table} is loaded by another pipeline `{}`, whose state is {state}",
                self.pipeline
            ))
            .hint(format!(
                "give each pipeline its own table; if the state has moved, or that pipeline is not \
                 used any more, delete its row from {markers}"
            )));
        }
        let marker = commit.zip(run_id).map(|(commit, run_id)| Marker {
            commit: commit.max(0) as u64,
            run_id,
            source: row.get(2),
        });
        Ok(marker)
    }

    /// Writes the marker of a table.
    pub(super) async fn set(&self, target: &TargetTable, marker: &Marker) -> Result<()> {
        let (markers, table) = (markers_of(target), target.to_string());
        let update = format!(
            "UPDATE {markers} SET source = $3, commit = $4, run_id = $5, state = $6, at = now()
            WHERE pipeline = $1 AND \"table\" = $2"
        );
        let commit = marker.commit as i64;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&self.pipeline, &table, &marker.source, &commit, &marker.run_id, &self.state];
        let doing = format!("write the marker of {table}");
        let rows = self.client.execute(&update, &values).await;
        match rows.map_err(|error| failed(self.server, &doing, &error))? {
            1 => Ok(()),
            _ => Err(Error::usage(format!(
                "the marker of {table} is gone: {markers} has no row of it"
            ))
            .hint("leave the markers alone in `load.after_sql`, then run `glueless load`")),
        }
    }
}

/// The table of markers for a table, as SQL names it.
pub(super) fn markers_of(target: &TargetTable) -> String {
    format!("{}.{MARKERS}", quoted(&target.schema))
}
