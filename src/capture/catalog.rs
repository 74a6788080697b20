//! What the source's own catalog says of its tables, and what capture needs of them.
//!
//! An update or delete of a row is in the log with what the table's *replica identity* says: its primary
//! key, another unique index, or the whole row. Three things are refused before anything is made at the
//! server, each with the statement that mends it:
//!
//! - a table without a replica identity: as soon as it is in a publication, the server refuses updates and
//!   deletes of it, to the application;
//! - a table that can have values out of line (TOAST) and whose identity is not the whole row: an update
//!   that does not change such a value does not have it in the log. Whether it can is exact: the server
//!   makes a TOAST table only if rows can become that large. Of a partitioned table it matters what the
//!   partition says, which decides what is logged, and what the table itself says, which decides what is
//!   sent;
//! - a publication that leaves out rows, columns or operations.
//!
//! A table is known by more than its name: by its number, and by that of its place in the publication, which
//! is another one after it was taken out and put back ([`crate::capture::mark`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tracing::{debug, warn};

use crate::capture::column::Kind;
use crate::capture::position::Lsn;
use crate::config::{Source, SourceTables, TargetTable};
use crate::error::{Error, Result};
use crate::postgres::refusal::failed;
use crate::postgres::{ServerName, quoted};

/// The oldest version of a server that is read, as the server numbers it.
const OLDEST_VERSION: i32 = 140_000;
/// The first version that decodes its log on a standby.
const DECODES_ON_STANDBY: i32 = 160_000;

/// A connection that asks about the source.
pub(super) struct Catalog<'a> {
    pub(super) client: &'a Client,
    pub(super) server: &'a ServerName,
}

/// A table of the source.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    /// Its number.
    pub(super) oid: u32,
    /// Its columns; without generated ones where the log is read.
    pub(super) columns: Vec<Column>,
    /// The columns of its replica identity, or of its primary key if that is the whole row.
    pub(super) key: Vec<String>,
    /// Itself, and its partitions.
    parts: Vec<Part>,
    pub(super) is_partitioned: bool,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_id: u32,
    pub(super) modifier: i32,
}

/// A table or partition.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) schema: String,
    pub(super) name: String,
    /// Its size in pages of 8 KiB, as last counted.
    pub(super) pages: u32,
    identity: Identity,
    /// Whether the index of its replica identity is there, and decides at once.
    has_key: bool,
    has_toast: bool,
    /// A partitioned table has none of its own.
    has_rows: bool,
    /// The columns of its replica identity, if that is not the whole row.
    logged: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    PrimaryKey,
    Index,
    WholeRow,
    Nothing,
}

/// What capture reads of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// Their changes, in the log: it has no unlogged tables and no generated columns.
    Log,
    /// Their rows.
    Rows,
}

/// A replication slot.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The bytes of log that the server keeps for it.
    pub(super) held_bytes: u64,
    /// Whether a process reads it.
    pub(super) is_active: bool,
    /// Everything before this position was confirmed.
    pub(super) confirmed: Lsn,
    /// Whether the server has removed log that it had not read.
    pub(super) is_lost: bool,
}

/// The types of the source that stand for others.
#[derive(Clone, Debug, Default)]
pub(super) struct Domains(HashMap<u32, (u32, i32)>);

impl Table {
    /// `schema.table`.
    pub(super) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The table as SQL has it.
    pub(super) fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// Where its rows are: itself, or its partitions.
    pub(super) fn parts_with_rows(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.has_rows)
    }

    /// The numbers of its key's columns; those of all columns if changes have the whole row and it has no
    /// primary key.
    ///
    /// # Errors
    /// Usage, when the key has a generated column, which is not in the log.
    pub(super) fn key_numbers(&self) -> Result<Vec<usize>> {
        if self.key.is_empty() {
            return Ok((0..self.columns.len()).collect());
        }
        let number = |name: &String| {
            let mut columns = self.columns.iter();
            columns.position(|column| column.name == *name).ok_or_else(|| {
                Error::usage(format!(
                    "the key of {} has the generated column `{name}`, which is not in the log",
                    self.full_name()
                ))
                .hint("leave the table out by `tables` or `exclude`, or give it another replica identity")
            })
        };
        self.key.iter().map(number).collect()
    }
}

impl Part {
    /// The part as SQL has it.
    pub(super) fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// What its changes have of a row: `None` for all.
    fn logged(&self) -> Option<&[String]> {
        (self.identity != Identity::WholeRow).then_some(&self.logged)
    }

    /// What is missing for capture, and the statement that mends it. `has_toast`: it or its partitions can
    /// have large values; `is_mixed`: they log other columns.
    fn lack(&self, has_toast: bool, is_mixed: bool) -> Option<(&'static str, String)> {
        let why = match self.identity {
            Identity::WholeRow => return None,
            Identity::Nothing => "has no replica identity",
            _ if !self.has_key => {
                "has neither a primary key, checked at once, nor another replica identity"
            }
            _ if has_toast => "can have large values that an update does not log",
            _ if is_mixed => "and its partitions have different replica identities",
            _ => return None,
        };
        Some((why, format!("ALTER TABLE {} REPLICA IDENTITY FULL;", self.sql_name())))
    }
}

impl Slot {
    /// The error if log was removed that it had not read; without a hint.
    pub(super) fn lost(&self, name: &str, server: &ServerName) -> Error {
        Error::data(format!(
            "{server} has removed log that the slot `{name}` had not read: changes are lost to it"
        ))
    }
}

impl Domains {
    /// The type of a column in files.
    pub(super) fn kind(&self, type_id: u32, modifier: i32) -> Kind {
        let (mut type_id, mut modifier) = (type_id, modifier);
        while let Some((base, of_base)) = self.0.get(&type_id) {
            (type_id, modifier) = (*base, if *of_base == -1 { modifier } else { *of_base });
        }
        Kind::of(type_id, modifier)
    }
}

impl Catalog<'_> {
    pub(super) async fn rows(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        doing: &str,
    ) -> Result<Vec<tokio_postgres::Row>> {
        let rows = self.client.query(statement, parameters).await;
        rows.map_err(|error| failed(self.server, doing, &error))
    }

    /// The first row that a statement returns.
    ///
    /// # Errors
    /// Those of the server; internal, when there is none.
    pub(super) async fn one(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        doing: &str,
    ) -> Result<tokio_postgres::Row> {
        let rows = self.rows(statement, parameters, doing).await?;
        let none = || Error::internal(format!("the server returned nothing: {doing}"));
        rows.into_iter().next().ok_or_else(none)
    }

    pub(super) async fn execute(&self, statement: &str, doing: &str) -> Result<()> {
        let executed = self.client.batch_execute(statement).await;
        executed.map_err(|error| failed(self.server, doing, &error))
    }

    /// Checks that the server is new enough.
    ///
    /// # Errors
    /// Usage, when it is not.
    pub(super) async fn check_version(&self) -> Result<()> {
        let facts =
            "SELECT current_setting('server_version_num')::int, current_setting('server_version')";
        let row = self.one(facts, &[], "read its version").await?;
        let (version, shown): (i32, String) = (row.get(0), row.get(1));
        if version < OLDEST_VERSION {
            return Err(Error::usage(format!("{} is PostgreSQL {shown}", self.server))
                .hint("capture reads PostgreSQL 14 and newer"));
        }
        Ok(())
    }

    /// Checks that the server can decode its log.
    ///
    /// # Errors
    /// Usage, with the setting to change.
    pub(super) async fn check_log(&self) -> Result<()> {
        let facts =
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
            current_setting('server_version'), pg_is_in_recovery()";
        let row = self.one(facts, &[], "read its settings").await?;
        let (version, level): (i32, String) = (row.get(0), row.get(1));
        let (shown, is_standby): (String, bool) = (row.get(2), row.get(3));
        let server = self.server;
        if is_standby && version < DECODES_ON_STANDBY {
            let standby = format!("{server} is a standby of PostgreSQL {shown}");
            return Err(Error::usage(standby).hint(
                "name the primary server in the URL: a standby decodes its log from version 16 on",
            ));
        }
        // With `--follow` the session asks rarely.
        self.execute("SET idle_session_timeout TO 0", "set up the session").await?;
        if level != "logical" {
            return Err(Error::usage(format!("{server} has wal_level = {level}")).hint(
                "ALTER SYSTEM SET wal_level = logical, then restart the server (RDS: rds.logical_replication = 1)",
            ));
        }
        Ok(())
    }

    /// Takes a lock by the name of a slot or source, so that two processes do not capture at once; returns
    /// false if another one has it. It is released with the session.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn lock(&self, of: &str) -> Result<bool> {
        let statement = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))";
        let name = format!("glueless capture {of}");
        Ok(self.one(statement, &[&name], "take the lock of captures").await?.get(0))
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn unlock(&self) -> Result<()> {
        self.execute("SELECT pg_advisory_unlock_all()", "release the lock of captures").await
    }

    /// A table, among tables that are locked, that was written anew since the transaction's snapshot: for the
    /// snapshot, it is empty.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn rewritten(
        &self,
        tables: &BTreeMap<String, Table>,
    ) -> Result<Option<String>> {
        let oids: Vec<u32> = tables.values().map(|table| table.oid).collect();
        let rewritten = "SELECT c.oid::regclass::text FROM unnest($1::oid[]) r
            LEFT JOIN LATERAL pg_partition_tree(r) t ON true
            JOIN pg_class c ON c.oid = coalesce(t.relid, r)
            WHERE c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)";
        let rows = self.rows(rewritten, &[&oids], "look for tables that were written anew").await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// The position up to which the log is durable.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn log_end(&self) -> Result<String> {
        let statement = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
            ELSE pg_current_wal_flush_lsn() END)::text";
        let rows = self.rows(statement, &[], "read the end of its log").await?;
        rows.first().map(|row| row.get(0)).ok_or_else(|| Error::internal("the log has no end"))
    }

    /// The slot of a source, if there is one.
    ///
    /// # Errors
    /// Usage, when it is a slot of something else.
    pub(super) async fn slot(&self, name: &str) -> Result<Option<Slot>> {
        let statement = "SELECT plugin::text, wal_status, database::text, current_database()::text, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
                    THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::bigint, active, confirmed_flush_lsn::text
            FROM pg_replication_slots WHERE slot_name = $1";
        let rows = self.rows(statement, &[&name], "look for the slot").await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let plugin: Option<String> = row.get(0);
        let (of, here): (Option<String>, String) = (row.get(2), row.get(3));
        if plugin.as_deref() != Some("pgoutput") {
            let message = format!("the slot `{name}` in {} is that of something else", self.server);
            return Err(Error::usage(message).hint("set `slot` to another name"));
        }
        if let Some(of) = of.filter(|of| *of != here) {
            let message =
                format!("the slot `{name}` is of the database `{of}`, and the URL names `{here}`");
            return Err(Error::usage(message).hint(
                "correct the URL; or set `slot` to another name, if this is another source",
            ));
        }
        let status: Option<String> = row.get(1);
        let held: Option<i64> = row.get(4);
        let held_bytes = held.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
        let confirmed: Option<String> = row.get(6);
        let confirmed = confirmed.and_then(|text| Lsn::parse(&text)).unwrap_or_default();
        let is_lost = status.as_deref() == Some("lost");
        Ok(Some(Slot { held_bytes, is_active: row.get(5), confirmed, is_lost }))
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn drop_slot(&self, name: &str) -> Result<()> {
        let statement = "SELECT pg_drop_replication_slot($1)";
        self.rows(statement, &[&name], "drop the slot").await.map(|_| ())
    }

    /// Makes a slot that stays, as a copy of one that does not.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn copy_slot(&self, temporary: &str, name: &str) -> Result<()> {
        let statement = "SELECT pg_copy_logical_replication_slot($1, $2, false)";
        self.rows(statement, &[&temporary, &name], "make the slot").await.map(|_| ())
    }

    /// The tables to capture, by their names.
    ///
    /// # Errors
    /// Usage, when a table that is named cannot be captured.
    pub(super) async fn tables(
        &self,
        wanted: &SourceTables,
        reads: Reads,
    ) -> Result<BTreeMap<String, Table>> {
        let schemas: BTreeSet<&str> = wanted.schemas().collect();
        let schemas: Vec<&str> = schemas.into_iter().collect();
        let statement = "SELECT n.nspname::text, c.relname::text, c.oid, c.relkind::text,
                c.relispartition, c.relpersistence::text
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = ANY($1) AND c.relkind IN ('r', 'p') ORDER BY 1, 2";
        let rows = self.rows(statement, &[&schemas], "list its tables").await?;
        let named: BTreeSet<(&str, &str)> = wanted.named().collect();
        let mut tables = BTreeMap::new();
        for row in rows {
            let (schema, name): (String, String) = (row.get(0), row.get(1));
            let (oid, kind): (u32, String) = (row.get(2), row.get(3));
            let (is_partition, persistence): (bool, String) = (row.get(4), row.get(5));
            if !wanted.include(&schema, &name) {
                continue;
            }
            let why = match persistence.as_str() {
                "p" if !is_partition => None,
                "t" => Some("is temporary"),
                _ if is_partition => Some("is a partition: name its partitioned table"),
                _ if reads == Reads::Rows => None,
                _ => Some("is not in the log: it is unlogged"),
            };
            if let Some(why) = why {
                if named.contains(&(schema.as_str(), name.as_str())) {
                    return Err(Error::usage(format!("the table `{schema}.{name}` {why}"))
                        .hint("correct `tables`"));
                }
                debug!("{schema}.{name} {why}");
                continue;
            }
            let (columns, key, parts) = (Vec::new(), Vec::new(), Vec::new());
            let is_partitioned = kind == "p";
            let table = Table { schema, name, oid, columns, key, parts, is_partitioned };
            tables.insert(oid, table);
        }
        self.add_columns(&mut tables, reads).await?;
        self.add_parts(&mut tables, reads).await?;
        Ok(tables.into_values().map(|table| (table.full_name(), table)).collect())
    }

    /// Checks the tables that are excluded: one that is not there is warned of.
    ///
    /// # Errors
    /// Usage, when a partition is excluded alone.
    pub(super) async fn check_excluded(&self, wanted: &SourceTables) -> Result<()> {
        let statement = "SELECT c.relispartition
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'f')";
        for table in wanted.excluded() {
            let names: &[&(dyn ToSql + Sync)] = &[&table.schema, &table.name];
            let rows = self.rows(statement, names, "look for tables that are excluded").await?;
            match rows.first().map(|row| row.get(0)) {
                Some(true) => {
                    return Err(Error::usage(format!(
                        "`exclude` names `{table}`, which is a partition: it is captured with its table"
                    ))
                    .hint("exclude its partitioned table, or leave the name out"));
                }
                Some(false) => {}
                None => warn!(
                    "`exclude` names `{table}`, which is no table there: names are taken as they are written"
                ),
            }
        }
        Ok(())
    }

    /// The columns of a table or view, generated ones too, none if it is not there; and whether it is a table
    /// without partitions.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn columns_of(&self, table: &TargetTable) -> Result<(Vec<Column>, bool)> {
        let statement = "SELECT a.attname::text, a.atttypid, a.atttypmod, c.relkind = 'r'
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
                AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = self.rows(statement, &[&table.schema, &table.name], "read the columns").await?;
        let is_plain = rows.first().is_some_and(|row| row.get(3));
        let columns = rows.into_iter().map(|row| Column {
            name: row.get(0),
            type_id: row.get(1),
            modifier: row.get(2),
        });
        Ok((columns.collect(), is_plain))
    }

    /// Reads the columns and keys of tables.
    async fn add_columns(&self, tables: &mut BTreeMap<u32, Table>, reads: Reads) -> Result<()> {
        let all: Vec<u32> = tables.keys().copied().collect();
        let columns = "SELECT attrelid, attname::text, atttypid, atttypmod FROM pg_attribute
            WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped AND (attgenerated = '' OR $2)
            ORDER BY attrelid, attnum";
        let with_generated = reads == Reads::Rows;
        for row in
            self.rows(columns, &[&all, &with_generated], "read the columns of its tables").await?
        {
            if let Some(table) = tables.get_mut(&row.get(0)) {
                let (name, type_id, modifier) = (row.get(1), row.get(2), row.get(3));
                table.columns.push(Column { name, type_id, modifier });
            }
        }
        // Columns behind the key's own are only stored with the index.
        let keys = "SELECT i.indrelid, a.attname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
            WHERE i.indrelid = ANY($1)
                AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
                AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
            ORDER BY i.indrelid, array_position(i.indkey::int2[], a.attnum)";
        for row in self.rows(keys, &[&all], "read the keys of its tables").await? {
            if let Some(table) = tables.get_mut(&row.get(0)) {
                table.key.push(row.get(1));
            }
        }
        Ok(())
    }

    /// Reads the partitions of tables, and the replica identities of all.
    async fn add_parts(&self, tables: &mut BTreeMap<u32, Table>, reads: Reads) -> Result<()> {
        let all: Vec<u32> = tables.keys().copied().collect();
        let parts = "SELECT p.root, n.nspname::text, c.relname::text, greatest(c.relpages, 0),
                c.relreplident::text, c.reltoastrelid <> 0, c.relkind::text, c.relpersistence::text,
                EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                    AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)),
                has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
                ARRAY(SELECT a.attname::text FROM pg_index i
                    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
                    WHERE i.indrelid = c.oid AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
                        AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
                    ORDER BY 1)
            FROM (SELECT r AS root, coalesce(t.relid, r) AS relid FROM unnest($1::oid[]) r
                LEFT JOIN LATERAL pg_partition_tree(r) t ON true) p
            JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
            ORDER BY 1, 2, 3";
        for row in self.rows(parts, &[&all], "read the partitions of its tables").await? {
            let Some(table) = tables.get_mut(&row.get(0)) else {
                continue;
            };
            let (pages, identity): (i32, String) = (row.get(3), row.get(4));
            let (kind, persistence): (String, String) = (row.get(6), row.get(7));
            let part = Part {
                schema: row.get(1),
                name: row.get(2),
                pages: pages.try_into().unwrap_or(0),
                identity: match identity.as_str() {
                    "d" => Identity::PrimaryKey,
                    "i" => Identity::Index,
                    "f" => Identity::WholeRow,
                    _ => Identity::Nothing,
                },
                has_key: row.get(8),
                has_toast: row.get(5),
                has_rows: kind != "p",
                logged: row.get(10),
            };
            let is_foreign = kind != "p" && kind != "r";
            if is_foreign || (persistence != "p" && reads == Reads::Log) {
                let (why, mend) = if is_foreign {
                    ("is a foreign table", "")
                } else {
                    ("is not in the log: it is unlogged", ", or ALTER TABLE … SET LOGGED")
                };
                let (part, table) = (format!("{}.{}", part.schema, part.name), table.full_name());
                return Err(Error::usage(format!("the partition `{part}` of {table} {why}"))
                    .hint(format!("leave the table out by `tables` or `exclude`{mend}")));
            }
            let can_read: bool = row.get(9);
            if !can_read {
                let message = format!("{} must not be read by this user", part.sql_name());
                return Err(Error::usage(message).hint(format!(
                    "GRANT USAGE ON SCHEMA {} TO …; GRANT SELECT ON {} TO …; {} lists what is needed",
                    quoted(&part.schema),
                    part.sql_name(),
                    self.server.purpose.grants
                )));
            }
            table.parts.push(part);
        }
        Ok(())
    }

    /// The domains of the source.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn domains(&self) -> Result<Domains> {
        let statement = "SELECT oid, typbasetype, typtypmod FROM pg_type WHERE typtype = 'd'";
        let rows = self.rows(statement, &[], "list its types").await?;
        let domains = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2))));
        Ok(Domains(domains.collect()))
    }

    /// Looks at the publication: what is to be made or added, and its tables that are not wanted.
    ///
    /// # Errors
    /// Usage, when it leaves changes out.
    pub(super) async fn published(
        &self,
        source: &Source,
        tables: &BTreeMap<String, Table>,
        has_slot: bool,
    ) -> Result<Published> {
        let name = source.publication.as_str();
        let statement =
            "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate,
            pubviaroot FROM pg_publication WHERE pubname = $1";
        let rows = self.rows(statement, &[&name], "look for the publication").await?;
        let Some(row) = rows.first() else {
            let listed = tables.values().map(Table::in_publication).collect::<Vec<_>>().join(", ");
            let statement = Some(format!(
                "CREATE PUBLICATION {} FOR TABLE {listed} WITH (publish_via_partition_root = true)",
                quoted(name)
            ));
            return Ok(Published { is_new: true, statement, ..Published::default() });
        };
        let (has_all, is_whole, by_root): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        // With a slot, what was left out is lost.
        let left_out = |why: String, mend: String| {
            if has_slot {
                Err(Error::data(format!("{why}: changes are lost")).hint(new_publication(name)))
            } else {
                Err(Error::usage(why).hint(mend))
            }
        };
        let wrong = |why: &str, mend: &str| {
            let mend = format!("ALTER PUBLICATION {} SET ({mend})", quoted(name));
            left_out(format!("the publication `{name}` {why}"), mend)
        };
        if !is_whole {
            let mend = "publish = 'insert, update, delete, truncate'";
            return wrong("leaves operations out", mend);
        }
        if !by_root && tables.values().any(|table| table.is_partitioned) {
            let why =
                "has publish_via_partition_root off: it names partitions instead of their table";
            return wrong(why, "publish_via_partition_root = true");
        }
        let (filtered, listed, of_schema) = self.filter_columns().await?;
        let statement = format!(
            "SELECT t.schemaname::text, t.tablename::text, coalesce({filtered}, false), coalesce({listed}, false),
                coalesce(r.oid, {of_schema}, p.oid)
            FROM pg_publication p JOIN pg_publication_tables t ON t.pubname = p.pubname
            JOIN pg_namespace n ON n.nspname = t.schemaname
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
            LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
            WHERE p.pubname = $1"
        );
        let rows = self.rows(&statement, &[&name], "list the publication's tables").await?;
        let mut published = Published::default();
        for row in rows {
            let (schema, table): (String, String) = (row.get(0), row.get(1));
            let (is_filtered, has_columns): (bool, bool) = (row.get(2), row.get(3));
            if !source.tables.include(&schema, &table) {
                published.others.push((schema, table));
                continue;
            }
            if is_filtered || has_columns {
                let what = if is_filtered { "rows" } else { "columns" };
                let why = format!("the publication `{name}` leaves {what} of {schema}.{table} out");
                let mend = "publish the whole table, or let `publication` name another one";
                return left_out(why, mend.into());
            }
            published.places.insert(format!("{schema}.{table}"), row.get(4));
        }
        let added: Vec<&Table> = tables
            .iter()
            .filter(|(name, _)| !published.places.contains_key(*name))
            .map(|(_, table)| table)
            .collect();
        if !added.is_empty() && !has_all {
            published.added = added.iter().map(|table| table.full_name()).collect();
            let listed = added.iter().map(|table| table.in_publication());
            let listed = listed.collect::<Vec<_>>().join(", ");
            published.statement =
                Some(format!("ALTER PUBLICATION {} ADD TABLE {listed}", quoted(name)));
        }
        Ok(published)
    }

    /// The expressions for whether a table of a publication is filtered, and has a list of columns, and for the
    /// number of the place of its schema.
    async fn filter_columns(&self) -> Result<(&'static str, &'static str, &'static str)> {
        let statement = "SELECT EXISTS (SELECT FROM pg_attribute
            WHERE attrelid = 'pg_catalog.pg_publication_rel'::regclass AND attname = 'prqual')";
        let has_filters = self.rows(statement, &[], "look for filters").await?;
        // Before version 15 a publication has whole tables.
        Ok(if has_filters.first().is_some_and(|row| row.get(0)) {
            (
                "r.prqual IS NOT NULL",
                "r.prattrs IS NOT NULL",
                "(SELECT oid FROM pg_publication_namespace WHERE pnpubid = p.oid AND pnnspid = n.oid)",
            )
        } else {
            ("false", "false", "NULL")
        })
    }

    /// Makes the publication, or adds tables to it.
    ///
    /// # Errors
    /// Those of the server, such as usage, when the user must not do it.
    pub(super) async fn publish(&self, published: &Published) -> Result<()> {
        let doing =
            if published.is_new { "make the publication" } else { "add tables to the publication" };
        match &published.statement {
            Some(statement) => self.execute(statement, doing).await,
            None => Ok(()),
        }
    }
}

/// The tables of a publication.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    /// Whether it is to be made.
    pub(super) is_new: bool,
    /// Tables that are to be added.
    pub(super) added: BTreeSet<String>,
    statement: Option<String>,
    /// Its tables that are not captured: schema and name.
    pub(super) others: Vec<(String, String)>,
    /// Its tables that are captured, and the numbers of their places in it.
    pub(super) places: BTreeMap<String, u32>,
}

impl Table {
    fn in_publication(&self) -> String {
        // Tables that inherit from it have rows of their own, and are tables of their own.
        let only = if self.is_partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.sql_name())
    }
}

/// Checks that the changes of all tables are whole in the log.
///
/// # Errors
/// Usage, with the tables and the statements that mend them.
pub(super) fn check_identities(tables: &BTreeMap<String, Table>) -> Result<()> {
    let parts = tables.values().flat_map(|table| {
        let has_toast = table.parts.iter().any(|part| part.has_toast);
        let is_mixed = table.parts.windows(2).any(|two| two[0].logged() != two[1].logged());
        table.parts.iter().map(move |part| (part, has_toast, is_mixed))
    });
    let lacks: Vec<_> = parts
        .filter_map(|(part, has_toast, is_mixed)| Some((part, part.lack(has_toast, is_mixed)?)))
        .collect();
    let Some((first, (why, _))) = lacks.first() else {
        return Ok(());
    };
    let others = match lacks.len() - 1 {
        0 => String::new(),
        1 => " (and another table)".into(),
        more => format!(" (and {more} other tables)"),
    };
    let statements: Vec<&str> = lacks.iter().map(|(_, (_, mend))| mend.as_str()).collect();
    Err(Error::usage(format!("the table `{}.{}` {why}{others}", first.schema, first.name))
        // All of it is SQL, for psql.
        .hint(format!("{} -- or leave it out by `tables` or `exclude`", statements.join(" "))))
}

/// The way on after changes of all tables were lost.
pub(super) fn new_snapshot() -> &'static str {
    "run the command with `--new-snapshot`: it reads all tables anew, into the same folder, and goes on from there"
}

/// The way on after a publication has left changes out. Without it, no capture goes on in silence.
fn new_publication(name: &str) -> String {
    let name = quoted(name);
    format!(
        "DROP PUBLICATION {name}, or set `publication` to another name; then {}",
        new_snapshot()
    )
}

/// The way on if new files cannot come behind the ones that are there.
pub(super) fn begin_anew(slot: &str) -> String {
    format!(
        "begin anew: SELECT pg_drop_replication_slot('{slot}') if it is still there; set `to` to a new \
         folder, and raw.url of the pipelines too; capture again; then run `glueless catch-up` and `glueless \
         rebuild --accept-missing` for the pipelines"
    )
}

/// The way on if a table is another one than that of its files, or changes of it are lost.
pub(super) fn another_table() -> &'static str {
    "run the command with `--new-snapshot` and the name of the table: it is read anew, into the same folder"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(identity: Identity, has_key: bool, has_toast: bool) -> Part {
        let (schema, name) = ("public".into(), "a\"b".into());
        Part {
            schema,
            name,
            pages: 0,
            identity,
            has_key,
            has_toast,
            has_rows: true,
            logged: Vec::new(),
        }
    }

    #[test]
    fn a_table_whose_changes_are_not_whole_is_refused() {
        use Identity::{Index, Nothing, PrimaryKey, WholeRow};
        for (identity, has_key, has_toast, is_refused) in [
            (PrimaryKey, true, false, false),
            (PrimaryKey, true, true, true),
            (PrimaryKey, false, false, true),
            (Index, true, false, false),
            (Index, false, false, true),
            (Index, true, true, true),
            (WholeRow, false, true, false),
            (Nothing, true, false, true),
        ] {
            let lack = part(identity, has_key, has_toast).lack(has_toast, false);
            assert_eq!(lack.is_some(), is_refused, "{identity:?} {has_key} {has_toast}");
            if let Some((_, mend)) = lack {
                assert_eq!(mend, "ALTER TABLE \"public\".\"a\"\"b\" REPLICA IDENTITY FULL;");
            }
        }
    }

    #[test]
    fn a_domain_is_written_as_what_it_is_of() {
        let amount = (1700, (10 << 16 | 2) + 4);
        let domains =
            Domains(HashMap::from([(70_001, amount), (70_002, (70_001, -1)), (70_003, (1043, 9))]));
        assert_eq!(domains.kind(70_002, -1), Kind::Decimal(10, 2));
        assert_eq!(domains.kind(70_003, -1), Kind::Text);
        assert_eq!(domains.kind(23, -1), Kind::Int32);
    }
}
