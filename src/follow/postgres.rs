//! Loads the curated table and aggregates into PostgreSQL, or what speaks its protocol.
//!
//! ```text
//! connect ─▶ lock markers ─▶ difference ─▶ stages (COPY) ─▶ no commit since? ─▶ delete, upsert ─▶ after_sql ─▶ markers, COMMIT
//! ```
//! All tables of a pipeline are loaded in one transaction, so that a reader sees one state. What is
//! applied:
//!
//! | table | what changes |
//! |---|---|
//! | with a key | rows of keys that changed: deleted where there is no row any more, else inserted, or updated where they differ |
//! | without a key | the rows of partitions that changed, deleted and inserted |
//! | aggregate | the rows of days that were computed, deleted and inserted; other days that it does not have are deleted |
//!
//! Without a marker that the ledger knows, everything is applied in the same way: rows of other keys and
//! days are deleted. A table is never emptied first, and grants, indexes and views stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::DataType;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::config::{Load, Pipeline, Sql, TargetTable};
use crate::curate::merge::changed_keys::{ChangedKeys, VersionsSince};
use crate::error::{Error, Result};
use crate::follow::Marker;
use crate::follow::ddl::key_of;
use crate::follow::difference::Difference;
use crate::follow::postgres::column::Column;
use crate::follow::postgres::copy::RowCopy;
use crate::follow::postgres::marker::{Markers, markers_of};
use crate::follow::postgres::table::{StageTable, Table};
use crate::follow::rows::PublishedRows;
use crate::layout::{parent, partition_values};
use crate::postgres::Purpose;
use crate::postgres::connect::Server;
use crate::postgres::refusal::{failed, is_in_doubt, of_rows_with};
use crate::report::FollowerReport;
use crate::state::State;
use crate::state::ledger::CURATED;
use crate::state::versions::quoted;
use crate::store::Folder;
use crate::table::TableFile;
use crate::window::Window;

mod column;
mod copy;
mod marker;
mod table;

/// What the connections of loads are for.
const LOAD: Purpose = Purpose {
    key: "load.url_env",
    unchanged: "nothing was loaded by this command: run it again",
    grants: "docs/followers.md",
};

/// Begins the transaction. A loader that is suspended holds no lock forever, and none waits for it forever.
const BEGIN: &str = "BEGIN; SET LOCAL client_min_messages TO warning;
    SET LOCAL row_security TO off; SET LOCAL lock_timeout TO '10min'; SET LOCAL idle_in_transaction_session_timeout TO '60min'";

/// What is loaded, and into which tables.
pub(crate) struct Loader<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// Its settings of the load.
    pub load: &'a Load,
    /// The URL of the database.
    pub url: &'a str,
    /// The window of the run that is followed, for the log.
    pub window: Option<Window>,
    /// Whether everything is loaded, whatever the markers say.
    pub full: bool,
    /// The committed state.
    pub state: &'a State,
    /// The tables.
    pub tables: Vec<LoadedTable<'a>>,
    /// A session that knows the stores of the tables.
    pub context: &'a SessionContext,
    /// The engine's memory pool and disk.
    pub runtime: &'a Arc<RuntimeEnv>,
    /// The number of threads.
    pub threads: usize,
}

/// A table that is loaded.
pub(crate) struct LoadedTable<'a> {
    /// The ledger's name for it.
    pub name: String,
    /// Its folder.
    pub folder: &'a Folder,
    /// Its columns: name and type.
    pub columns: Vec<(String, DataType)>,
    /// Its partition columns.
    pub partition_by: Vec<String>,
    /// The day column, if it is an aggregate.
    pub day: Option<&'a str>,
    /// Where it is loaded.
    pub target: &'a TargetTable,
}

/// How a load failed.
struct Failed {
    error: Error,
    /// What was loaded, if the transaction may have been committed.
    in_doubt: Option<Vec<FollowerReport>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed { error, in_doubt: None }
    }
}

/// Connects to a database. Returns what is missing to load tables. Those that do not exist are made by the first load.
///
/// # Errors
/// Storage, when the server cannot be reached; usage, when it refuses the user.
pub(crate) async fn missing_in_database(
    url: &str,
    load: &Load,
    targets: &[&TargetTable],
) -> Result<Vec<String>> {
    const RIGHTS: &str = "SELECT to_regclass($1) IS NOT NULL,
        coalesce((SELECT bool_and(has_table_privilege(to_regclass($1), p))
            FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p), false),
        coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $2), false),
        has_database_privilege(current_database(), 'TEMPORARY')";
    let server = Server::parse(url, &load.url_env, LOAD)?;
    let client = server.connect("glueless doctor").await?;
    let mut missing = Vec::new();
    for target in targets {
        let name = format!("{}.{}", quoted(&target.schema), quoted(&target.name));
        for name in [name, markers_of(target)] {
            let row = client.query_one(RIGHTS, &[&name, &target.schema]).await;
            let row = row.map_err(|error| failed(&server.name, "look at the tables", &error))?;
            let [exists, is_writable, can_create, is_temporary] =
                [0, 1, 2, 3].map(|at| row.get(at));
            let what = match (exists, is_writable, can_create) {
                (true, false, _) => {
                    format!("{name} in {} cannot be written by this user", server.name)
                }
                (false, _, false) => format!(
                    "{name} does not exist in {}, and this user cannot make it in the schema `{}`",
                    server.name, target.schema
                ),
                _ if !is_temporary => {
                    format!("this user cannot make temporary tables in {}", server.name)
                }
                _ => continue,
            };
            if !missing.contains(&what) {
                missing.push(what);
            }
        }
    }
    Ok(missing)
}

/// A connection with an open transaction, which is rolled back when it is dropped.
struct Session<'a> {
    client: Client,
    server: &'a Server,
}

impl Loader<'_> {
    /// Loads the tables. `check_current` fails if the state has a newer commit: then the files that were
    /// read may be of several commits, and nothing is loaded.
    ///
    /// # Errors
    /// Data, when a row is refused; storage, when the server cannot be reached; usage, when a table does
    /// not fit or something is not permitted. In all cases nothing of this load is in the database, but
    /// for an error that says it may be.
    pub(crate) async fn load(
        &self,
        check_current: impl AsyncFn() -> Result<()>,
    ) -> Result<Vec<FollowerReport>> {
        let server = Server::parse(self.url, &self.load.url_env, LOAD)?;
        let failed = match self.try_load(&server, &check_current).await {
            Ok(reports) => return Ok(reports),
            Err(failed) => failed,
        };
        let Some(loaded) = failed.in_doubt else {
            return Err(failed.error);
        };
        // The markers say whether the transaction was committed.
        warn!("the reply to COMMIT was lost: looking whether it was committed");
        let again = self.try_load(&server, &check_current).await.map_err(|again| {
            let text = format!("{}; whether it was loaded is not known", failed.error.message);
            Error::storage(text)
                .hint("run `glueless load` when the server is there: it looks, and loads what is missing")
                .caused_by(again.error)
        })?;
        let was_committed = again.iter().all(|report| report.is_current);
        Ok(if was_committed { loaded } else { again })
    }

    async fn try_load(
        &self,
        server: &Server,
        check_current: &impl AsyncFn() -> Result<()>,
    ) -> Result<Vec<FollowerReport>, Failed> {
        let started = Instant::now();
        let application = format!("glueless {}", self.pipeline.name);
        let client = server.connect(&application).await?;
        let session = Session { client, server };
        let markers = Markers {
            client: &session.client,
            server: &server.name,
            pipeline: &self.pipeline.name,
            state: self.pipeline.state.to_string(),
        };
        for table in &self.tables {
            markers.prepare(table.target).await?;
        }
        session.execute("begin a transaction", BEGIN).await?;
        let mut differences = Vec::new();
        for table in &self.tables {
            let marker = markers.lock(table.target).await?;
            let difference = self.difference(marker.as_ref(), table);
            differences.push((marker, difference));
        }
        // A load that held the locks may have been of a newer commit than this one's.
        check_current().await?;
        let newest = self.newest()?;
        let mut reports = Vec::new();
        let is_done =
            |(_, difference): &(Option<Marker>, Difference)| *difference == Difference::Nothing;
        let nothing_to_do = differences.iter().all(is_done);
        for (number, (table, (marker, difference))) in
            self.tables.iter().zip(&differences).enumerate()
        {
            let mut report = FollowerReport {
                name: format!("postgres:{}", table.target),
                from_commit: marker.as_ref().map(|marker| marker.commit),
                to_commit: newest.commit,
                is_current: *difference == Difference::Nothing,
                ..Default::default()
            };
            if *difference != Difference::Nothing {
                self.apply(&session, number, table, *difference, marker.is_some(), &mut report)
                    .await?;
            }
            report.seconds = started.elapsed().as_secs_f64();
            reports.push(report);
        }
        if nothing_to_do {
            debug!("the database has commit {} already", newest.commit);
            return Ok(reports);
        }
        check_current().await?;
        if let Some(after) = &self.load.after_sql {
            session.run_after(after).await?;
        }
        for table in &self.tables {
            let marker = Marker { source: self.source(table), ..newest.clone() };
            markers.set(table.target, &marker).await?;
        }
        let committed = session.client.batch_execute("COMMIT").await;
        for report in &mut reports {
            report.seconds = started.elapsed().as_secs_f64();
        }
        match committed {
            Ok(()) => Ok(reports),
            Err(error) => Err(Failed {
                in_doubt: is_in_doubt(&error).then_some(reports),
                error: failed(&server.name, "commit", &error),
            }),
        }
    }

    fn difference(&self, marker: Option<&Marker>, table: &LoadedTable<'_>) -> Difference {
        if self.full {
            return Difference::Everything;
        }
        let difference = Difference::between(marker, &self.state.ledger, &self.source(table));
        if difference == Difference::Everything {
            let why = match marker {
                None => "it has no marker",
                Some(_) => "what its marker says is not in the ledger, or was rebuilt since",
            };
            info!("load {}: {why}, so everything is loaded", table.target);
        }
        difference
    }

    /// What is loaded, for the marker: the table and its columns. With other columns it is loaded as a
    /// whole: the column of the database may have had other values before.
    fn source(&self, table: &LoadedTable<'_>) -> String {
        let columns = self.typed_columns(table).map(|(name, _)| name.as_str());
        format!("{}: {}", table.name, columns.collect::<Vec<_>>().join(", "))
    }

    /// The columns that are loaded: all that have a type.
    fn typed_columns<'b>(
        &'b self,
        table: &'b LoadedTable<'_>,
    ) -> impl Iterator<Item = &'b (String, DataType)> {
        let contract = self.state.ledger.contract.as_ref();
        let untyped = contract.map_or(&[][..], |contract| &contract.untyped);
        let columns = table.columns.iter();
        columns.filter(move |(name, _)| table.name != CURATED || !untyped.contains(name))
    }

    /// The newest commit.
    fn newest(&self) -> Result<Marker> {
        let last = self.state.ledger.runs.last();
        let last = last.ok_or_else(|| Error::internal("there is no commit to load"))?;
        let source = String::new();
        Ok(Marker { commit: last.commit, run_id: last.run_id.clone(), source })
    }

    /// Applies a difference to a table.
    async fn apply(
        &self,
        session: &Session<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        difference: Difference,
        is_ours: bool,
        report: &mut FollowerReport,
    ) -> Result<()> {
        let key = self.key(table);
        // What decides which rows are the same must not lose anything.
        let exact = match (table.day, &key[..]) {
            (None, []) => &table.partition_by,
            _ => &key,
        };
        let mut target = Table::new(
            (&session.client, &session.server.name),
            table.target,
            self.columns(table)?,
            (key.clone(), exact.clone()),
        );
        let is_empty = target.prepare(is_ours).await?;
        // A column that was dropped has no values in any row, and where a partition column has no type
        // yet, the table does not tell partitions apart.
        let has_partitions =
            table.partition_by.iter().all(|name| target.columns.iter().any(|it| it.name == *name));
        let difference = if target.lacks_columns() || (key.is_empty() && !has_partitions) {
            Difference::Everything
        } else {
            difference
        };
        let apply = async {
            match table.day {
                Some(day) => {
                    let difference = if is_empty { Difference::Everything } else { difference };
                    self.apply_days(&target, number, table, difference, day, report).await
                }
                None if is_empty => self.fill(&target, number, table, report).await,
                None if key.is_empty() => {
                    self.apply_partitions(&target, number, table, difference, report).await
                }
                None => self.apply_keys(&target, number, table, difference, report).await,
            }
        };
        of_rows_with(&key, &target.name, apply.await)?;
        self.log(table, report);
        Ok(())
    }

    fn columns(&self, table: &LoadedTable<'_>) -> Result<Vec<Column>> {
        let file = &self.pipeline.curated.sql.file;
        let columns = self.typed_columns(table);
        columns.map(|(name, kind)| Column::new(file, name, kind)).collect()
    }

    /// The columns that identify a row.
    fn key(&self, table: &LoadedTable<'_>) -> Vec<String> {
        let contract = self.state.ledger.contract.as_ref();
        match table.day {
            Some(_) => Vec::new(),
            None => key_of(self.pipeline, contract.and_then(|contract| contract.day())),
        }
    }

    /// Fills a table that has no rows.
    async fn fill(
        &self,
        target: &Table<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        report: &mut FollowerReport,
    ) -> Result<()> {
        target.check_key().await?;
        target.add_columns().await?;
        let files = Difference::Everything.files(&self.state.ledger, &table.name);
        let rows = if target.takes_copies() {
            let rows = files.iter().map(|file| file.live_rows()).sum();
            let mut copy = target.copy_in().await?;
            self.copy_rows(&mut copy, table, files, None).await?;
            report.rows_upserted = copy.finish().await?;
            rows
        } else {
            let stage = target.stage(number, "rows", target.columns.clone()).await?;
            let mut copy = target.copy_to(&stage).await?;
            self.copy_rows(&mut copy, table, files, None).await?;
            let rows = copy.finish().await?;
            target.check_exact(&stage).await?;
            report.rows_upserted = target.insert(&stage).await?;
            rows
        };
        target.check_written(report.rows_upserted, rows)?;
        target.make_key().await
    }

    /// Applies the keys that changed.
    async fn apply_keys(
        &self,
        target: &Table<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        difference: Difference,
        report: &mut FollowerReport,
    ) -> Result<()> {
        target.check_key().await?;
        let (changed, difference) = match difference {
            Difference::Since(since) => {
                let versions = self.versions_since(since, table)?;
                let changed = ChangedKeys::read(versions, self.runtime, self.threads).await?;
                // Too many to be remembered: all rows are compared.
                let is_known = changed.is_some();
                (changed, if is_known { difference } else { Difference::Everything })
            }
            _ => (None, difference),
        };
        let files = difference.files(&self.state.ledger, &table.name);
        let chosen = changed.as_ref().map(|changed| (changed, &self.pipeline.key[..]));
        let stage = self.staged(target, number, table, files, chosen).await?;
        report.rows_deleted = match &changed {
            None => target.delete_other_keys(&stage).await?,
            Some(changed) => {
                let without = target.stage(number, "keys", target.key_columns()).await?;
                let mut copy = target.copy_to(&without).await?.skipping();
                let send = async |keys| copy.send(&keys).await;
                changed.without_row(self.runtime, self.threads, send).await?;
                if copy.finish().await? > 0 {
                    target.analyze(&without).await?;
                    target.delete_keys(&without).await?
                } else {
                    0
                }
            }
        };
        report.rows_upserted = target.upsert(&stage).await?;
        Ok(())
    }

    fn versions_since(&self, since: u64, table: &LoadedTable<'_>) -> Result<VersionsSince> {
        let lost = || Error::internal("the table has no contract");
        let contract = self.state.ledger.contract.as_ref().ok_or_else(lost)?;
        let rows = &self.state.ledger.versions;
        let files = self.state.data_files("version").into_iter();
        let files = files.map(|(path, bytes)| {
            let count = rows.get(&path).map_or(0, |days| days.rows());
            (path, bytes, count)
        });
        let key_types = self.pipeline.key.iter().map(|key| {
            let column = table.columns.iter().find(|(name, _)| name == key);
            column.map(|(_, kind)| kind.clone()).ok_or_else(lost)
        });
        Ok(VersionsSince {
            folder: self.state.folder().clone(),
            layout: Arc::new(contract.layout()?),
            files: files.collect(),
            order: self.pipeline.raw.file_order(),
            keep: self.pipeline.keep,
            key_types: key_types.collect::<Result<_>>()?,
            since,
        })
    }

    /// Replaces the rows of partitions that changed.
    async fn apply_partitions(
        &self,
        target: &Table<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        difference: Difference,
        report: &mut FollowerReport,
    ) -> Result<()> {
        let ledger = &self.state.ledger;
        let partitions = difference.partitions(ledger, &table.name);
        let of_partition = |path: &str| partitions.contains(parent(path));
        let files = ledger.files(&table.name).filter(|file| of_partition(&file.path));
        let stage = self.staged(target, number, table, files.collect(), None).await?;
        let by = match difference {
            Difference::Since(_) => &table.partition_by[..],
            _ => &[],
        };
        if !partitions.is_empty() || difference == Difference::Everything {
            report.rows_deleted = target.delete_like(&stage, by).await?;
            report.rows_upserted = target.insert(&stage).await?;
        }
        Ok(())
    }

    /// Replaces the days of an aggregate that were computed.
    async fn apply_days(
        &self,
        target: &Table<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        difference: Difference,
        day: &str,
        report: &mut FollowerReport,
    ) -> Result<()> {
        let ledger = &self.state.ledger;
        let day_of = |folder: &str| partition_values(folder).next().and_then(|(_, day)| day);
        let days: BTreeSet<String> =
            ledger.files(&table.name).filter_map(|file| day_of(parent(&file.path))).collect();
        let days: Vec<String> = days.into_iter().collect();
        let files = difference.files(ledger, &table.name);
        let stage = self.staged(target, number, table, files, None).await?;
        let (others, days_removed) = target.delete_other_days(day, &days).await?;
        let replaced = target.delete_like(&stage, &[day.to_string()]).await?;
        report.rows_deleted = others + replaced;
        report.rows_upserted = target.insert(&stage).await?;
        let computed = difference.partitions(ledger, &table.name).len() as u64;
        report.days_replaced = computed + days_removed;
        Ok(())
    }

    /// Stages rows of published files, and makes the table ready to take them.
    async fn staged(
        &self,
        target: &Table<'_>,
        number: usize,
        table: &LoadedTable<'_>,
        files: Vec<&TableFile>,
        changed: Option<(&ChangedKeys, &[String])>,
    ) -> Result<StageTable> {
        let stage = target.stage(number, "rows", target.columns.clone()).await?;
        let mut copy = target.copy_to(&stage).await?;
        self.copy_rows(&mut copy, table, files, changed).await?;
        copy.finish().await?;
        target.analyze(&stage).await?;
        target.check_exact(&stage).await?;
        target.add_columns().await?;
        Ok(stage)
    }

    /// Copies rows of published files: all, or those whose keys may have changed.
    async fn copy_rows(
        &self,
        copy: &mut RowCopy<'_>,
        table: &LoadedTable<'_>,
        files: Vec<&TableFile>,
        changed: Option<(&ChangedKeys, &[String])>,
    ) -> Result<()> {
        let published = PublishedRows {
            folder: table.folder,
            files,
            columns: &table.columns,
            partition_by: &table.partition_by,
        };
        let read = copy.column_names();
        published.for_each(self.context, &read, changed, async |rows| copy.send(&rows).await).await
    }

    fn log(&self, table: &LoadedTable<'_>, report: &FollowerReport) {
        let window = self.window.map(|window| {
            format!(
                "startDate {}, endDate {}, ",
                window.start.date_naive(),
                window.end.date_naive()
            )
        });
        let window = window.unwrap_or_default();
        let (deleted, inserted) = (report.rows_deleted, report.rows_upserted);
        let days = match table.day {
            Some(_) => format!("qualifying dates {}, ", report.days_replaced),
            None => String::new(),
        };
        info!(
            "load {}: {window}{days}rows deleted {deleted}, rows inserted {inserted}",
            table.target
        );
    }
}

impl Session<'_> {
    async fn execute(&self, doing: &str, statement: &str) -> Result<()> {
        let executed = self.client.batch_execute(statement).await;
        executed.map_err(|error| failed(&self.server.name, doing, &error))
    }

    /// Runs the statements that follow a load; they must not end its transaction.
    async fn run_after(&self, after: &Sql) -> Result<()> {
        let doing = format!("run {}", after.file);
        let before = self.transaction(&doing).await?;
        self.execute(&doing, &after.text).await?;
        if self.transaction(&doing).await? == before {
            return Ok(());
        }
        Err(Error::usage(format!(
            "{} ends the transaction of the load: what was loaded may be committed without its marker",
            after.file
        ))
        .hint(
            "leave COMMIT, ROLLBACK and what cannot run in a transaction out; then run `glueless load`, \
             which loads it again",
        ))
    }

    /// The number of the transaction.
    async fn transaction(&self, doing: &str) -> Result<i64> {
        let row = self.client.query_one("SELECT txid_current()", &[]).await;
        Ok(row.map_err(|error| failed(&self.server.name, doing, &error))?.get(0))
    }
}
