//! One loaded table: it is made or checked, and gets rows from a stage.
//!
//! A stage is a temporary table, gone with the transaction. All changes of the table come from stages,
//! by a few statements, so that the table is locked for a short time and readers see the state before or
//! after the transaction.

use tokio_postgres::Client;

use crate::config::TargetTable;
use crate::error::{Error, Result};
use crate::follow::postgres::column::{Column, Existing};
use crate::follow::postgres::copy::{RowCopy, is_sent_as_text};
use crate::postgres::ServerName;
use crate::postgres::refusal::failed;
use crate::state::versions::quoted;

/// A table that is loaded.
pub(super) struct Table<'a> {
    pub(super) client: &'a Client,
    pub(super) server: &'a ServerName,
    /// The table, as it is named in messages.
    pub(super) name: String,
    /// The table, as SQL names it.
    pub(super) sql_name: String,
    pub(super) columns: Vec<Column>,
    /// The columns that identify a row; none for a table without a key.
    pub(super) key: Vec<String>,
    /// The columns whose values must be there exactly as here, because rows are found by them.
    exact: Vec<String>,
    /// The columns that the table gets.
    missing: Vec<Column>,
    /// The columns that it has, in the order of `columns`.
    existing: Vec<Existing>,
    /// Whether this load has made it.
    is_new: bool,
    /// The table without those that inherit from it, as SQL names it; a partitioned one with its parts.
    only: String,
}

/// A temporary table, gone with the transaction.
pub(super) struct StageTable {
    name: String,
    columns: Vec<Column>,
}

impl<'a> Table<'a> {
    /// A table with these columns, those of its key, and those by which rows are found.
    pub(super) fn new(
        (client, server): (&'a Client, &'a ServerName),
        target: &TargetTable,
        columns: Vec<Column>,
        (key, exact): (Vec<String>, Vec<String>),
    ) -> Self {
        Table {
            client,
            server,
            name: target.to_string(),
            sql_name: format!("{}.{}", quoted(&target.schema), quoted(&target.name)),
            columns,
            key,
            exact,
            missing: Vec::new(),
            existing: Vec::new(),
            is_new: false,
            only: String::new(),
        }
    }

    async fn execute(&self, doing: &str, statement: &str) -> Result<u64> {
        let executed = self.client.execute(statement, &[]).await;
        executed.map_err(|error| failed(self.server, &format!("{doing} {}", self.name), &error))
    }

    /// Makes the table if it is missing, and checks its columns and its key otherwise. `is_ours`: it was
    /// loaded before, and columns that it lacks are added. Returns whether it has no rows.
    ///
    /// # Errors
    /// Usage, when columns or key do not fit; those of the server.
    pub(super) async fn prepare(&mut self, is_ours: bool) -> Result<bool> {
        self.check_kind().await?;
        let mut found = self.read_columns().await?;
        if found.is_empty() {
            let columns = self.columns.iter();
            let columns = columns.map(|column| format!("{} {}", column.quoted(), column.sql_type));
            let columns = columns.collect::<Vec<_>>().join(", ");
            self.execute("make", &format!("CREATE TABLE {} ({columns})", self.sql_name)).await?;
            found = self.read_columns().await?;
            self.is_new = true;
        } else {
            let is_missing = |column: &&Column| !found.iter().any(|it| it.name == column.name);
            if is_ours {
                self.missing = self.columns.iter().filter(is_missing).cloned().collect();
                found.extend(self.missing.iter().map(Existing::new));
            }
        }
        self.check_columns(&found)?;
        let of_column = |column: &Column| found.iter().find(|it| it.name == column.name).cloned();
        self.existing = self.columns.iter().filter_map(of_column).collect();
        let probe = format!("SELECT FROM {} LIMIT 1", self.only);
        Ok(self.execute("read", &probe).await? == 0)
    }

    /// Refuses what is no table, and a table with rules, which do other things than they are told.
    async fn check_kind(&mut self) -> Result<()> {
        let query = "
            SELECT relkind::text, EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid)
            FROM pg_class c WHERE c.oid = to_regclass($1)";
        let row = self.client.query_opt(query, &[&self.sql_name]).await;
        let row = row.map_err(|error| {
            failed(self.server, &format!("read the kind of {}", self.name), &error)
        })?;
        let (kind, has_rules): (String, bool) = match &row {
            Some(row) => (row.get(0), row.get(1)),
            None => ("r".into(), false),
        };
        self.only = match kind.as_str() {
            "p" => self.sql_name.clone(),
            _ => format!("ONLY {}", self.sql_name),
        };
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(Error::usage(format!("{} is no table", self.name))
                .hint("name a table; a view over it can be made in `load.after_sql`"));
        }
        if has_rules {
            return Err(Error::usage(format!(
                "{} has rules, which change what is written",
                self.name
            ))
            .hint("drop the rules (\\d shows them), or load into another table"));
        }
        Ok(())
    }

    /// Whether it lacks columns that it gets.
    pub(super) fn lacks_columns(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Refuses that rows are left out, as by a trigger.
    pub(super) fn check_written(&self, written: u64, rows: u64) -> Result<()> {
        if written == rows {
            return Ok(());
        }
        Err(Error::usage(format!(
            "{} has taken {written} of {rows} rows: a trigger leaves rows out",
            self.name
        ))
        .hint("drop the trigger, or load into another table"))
    }

    /// Adds the columns that are missing. It locks the table: the rows are staged before.
    pub(super) async fn add_columns(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let added = self.missing.iter();
        let added =
            added.map(|column| format!("ADD COLUMN {} {}", column.quoted(), column.sql_type));
        let added = added.collect::<Vec<_>>().join(", ");
        let alter = format!("ALTER TABLE {} {added}", self.sql_name);
        self.execute("add columns to", &alter).await.map_err(|error| {
            if error.kind == crate::error::Kind::Usage {
                error
                    .hint(format!("let the table's owner do it, then run `glueless load`: {alter}"))
            } else {
                error
            }
        })?;
        Ok(())
    }

    async fn read_columns(&self) -> Result<Vec<Existing>> {
        let query = "
            SELECT
                a.attname::text,
                coalesce(b.typname, t.typname)::text,
                coalesce(b.typtype, t.typtype) = 'e',
                format_type(a.atttypid, a.atttypmod),
                CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END,
                coalesce(c.collisdeterministic, true)
            FROM pg_attribute a
            JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
            LEFT JOIN pg_collation c ON c.oid = a.attcollation
            WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum";
        let rows = self.client.query(query, &[&self.sql_name]).await;
        let rows = rows.map_err(|error| {
            failed(self.server, &format!("read the columns of {}", self.name), &error)
        })?;
        let columns = rows.iter().map(|row| Existing {
            name: row.get(0),
            base: row.get(1),
            is_enum: row.get(2),
            sql_type: row.get(3),
            modifier: row.get(4),
            is_deterministic: row.get(5),
        });
        Ok(columns.collect())
    }

    /// Checks that each column is there with a type that fits.
    fn check_columns(&self, found: &[Existing]) -> Result<()> {
        let fits = |column: &Column| {
            let is_exact = self.exact.contains(&column.name);
            let is_fit = |it: &Existing| column.fits(it) && (it.is_deterministic || !is_exact);
            found.iter().any(|it| it.name == column.name && is_fit(it))
        };
        if self.columns.iter().all(fits) {
            return Ok(());
        }
        let ours = self.columns.iter().map(|column| format!("{} {}", column.name, column.sql_type));
        let theirs = found.iter().map(|column| format!("{} {}", column.name, column.sql_type));
        let wrong = self.columns.iter().filter(|column| !fits(column));
        let wrong: Vec<String> = wrong.map(|column| format!("`{}`", column.name)).collect();
        Err(Error::usage(format!(
            "{} does not fit: {}; the rows have {}; the table has {}",
            self.name,
            wrong.join(", "),
            ours.collect::<Vec<_>>().join(", "),
            theirs.collect::<Vec<_>>().join(", "),
        ))
        .hint("change the table's columns, cast them in the query, or load into another table"))
    }

    /// The columns of the key.
    pub(super) fn key_columns(&self) -> Vec<Column> {
        let key = self.key.iter();
        let columns =
            key.filter_map(|name| self.columns.iter().find(|column| column.name == *name));
        columns.cloned().collect()
    }

    fn add_key(&self) -> String {
        let names = self.key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        format!("ALTER TABLE {} ADD PRIMARY KEY ({names})", self.sql_name)
    }

    /// Makes the key the primary key of a new table, which has been filled.
    ///
    /// # Errors
    /// Data, when a key has nulls or is there twice.
    pub(super) async fn make_key(&self) -> Result<()> {
        if self.is_new && !self.key.is_empty() {
            self.execute("make the primary key of", &self.add_key()).await?;
        }
        Ok(())
    }

    /// Checks that a table that was there has a unique index of the key.
    ///
    /// # Errors
    /// Usage, when it has none.
    pub(super) async fn check_key(&self) -> Result<()> {
        if self.is_new || self.key.is_empty() || self.has_key().await? {
            return Ok(());
        }
        let names = self.key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let add = self.add_key();
        Err(Error::usage(format!(
            "{} has no unique index of its key {names}, without nulls",
            self.name
        ))
        .hint(format!("add it: {add}")))
    }

    async fn has_key(&self) -> Result<bool> {
        let query = "
            SELECT EXISTS (
                SELECT FROM pg_index i
                WHERE i.indrelid = to_regclass($1) AND i.indnkeyatts = cardinality($2::text[])
                    AND i.indisunique AND i.indisvalid AND i.indimmediate
                    AND i.indpred IS NULL AND i.indexprs IS NULL
                    AND ARRAY(
                        SELECT a.attname::text FROM pg_attribute a
                        WHERE a.attrelid = i.indrelid
                            AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                            AND a.attnotnull
                        ORDER BY 1
                    ) = $2
            )";
        let mut key = self.key.clone();
        key.sort();
        let row = self.client.query_one(query, &[&self.sql_name, &key]).await;
        let row = row.map_err(|error| {
            failed(self.server, &format!("read the indexes of {}", self.name), &error)
        })?;
        Ok(row.get(0))
    }

    /// Whether rows can be copied into the table itself: it has the types of a stage.
    pub(super) fn takes_copies(&self) -> bool {
        let is_same = |(column, existing): (&Column, &Existing)| {
            let is_sent = !is_sent_as_text(&column.data_type);
            is_sent && Existing::of_new(column).is_some_and(|base| base == existing.base)
        };
        self.columns.iter().zip(&self.existing).all(is_same)
    }

    /// Begins to copy rows into the table itself.
    pub(super) async fn copy_in(&self) -> Result<RowCopy<'_>> {
        let relation = (self.sql_name.as_str(), self.name.as_str());
        RowCopy::begin(self.client, self.server, relation, &self.columns).await
    }

    /// Makes a stage for some columns; number and `of` make its name.
    pub(super) async fn stage(
        &self,
        number: usize,
        of: &str,
        columns: Vec<Column>,
    ) -> Result<StageTable> {
        let name = format!("glueless_{number}_{of}");
        let fields = columns.iter().map(|column| {
            let text = is_sent_as_text(&column.data_type);
            format!("{} {}", column.quoted(), if text { "text" } else { &column.sql_type })
        });
        let fields = fields.collect::<Vec<_>>().join(", ");
        let make = format!("CREATE TEMPORARY TABLE {name} ({fields}) ON COMMIT DROP");
        self.execute("make a stage for", &make).await?;
        Ok(StageTable { name: format!("pg_temp.{name}"), columns })
    }

    /// Begins to copy rows into a stage.
    pub(super) async fn copy_to(&self, stage: &StageTable) -> Result<RowCopy<'_>> {
        let relation = (stage.name.as_str(), self.name.as_str());
        RowCopy::begin(self.client, self.server, relation, &stage.columns).await
    }

    /// Lets the server look at a stage that is full, so that it plans well.
    pub(super) async fn analyze(&self, stage: &StageTable) -> Result<()> {
        self.execute("load", &format!("ANALYZE {}", stage.name)).await?;
        Ok(())
    }

    fn existing(&self, column: &Column) -> Option<&Existing> {
        self.existing.iter().find(|it| it.name == column.name)
    }

    /// Refuses rows of a stage whose values would be others in the columns by which rows are found, such as
    /// a text with blanks at its end, or a UUID in capitals.
    pub(super) async fn check_exact(&self, stage: &StageTable) -> Result<()> {
        for column in stage.columns.iter().filter(|column| self.exact.contains(&column.name)) {
            let Some(existing) = self.existing(column).filter(|it| column.is_changed_by(it)) else {
                continue;
            };
            let name = column.quoted();
            let there = existing.as_text(&format!("CAST(s.{name} AS {})", existing.sql_type));
            let probe = format!("SELECT FROM {} s WHERE {there} <> s.{name} LIMIT 1", stage.name);
            if self.execute("load", &probe).await? > 0 {
                return Err(Error::data(format!(
                    "cannot load {}: a value of the key column `{}` would be another one as {}",
                    self.name, column.name, existing.sql_type
                )));
            }
        }
        Ok(())
    }

    /// A condition that rows of the table, `t`, and of a stage, `s`, agree in some columns.
    fn agree<'b>(&self, columns: impl Iterator<Item = &'b Column>, comparison: &str) -> String {
        let each = columns.map(|column| match self.existing(column) {
            // As text, because not every value can be converted.
            Some(existing) if column.is_changed_by(existing) || existing.is_enum => {
                let name = column.quoted();
                format!("{} {comparison} s.{name}", existing.as_text(&format!("t.{name}")))
            }
            _ => format!("t.{} {comparison} {}", column.quoted(), self.converted(column)),
        });
        each.collect::<Vec<_>>().join(" AND ")
    }

    /// A column of a stage in the type of the table.
    fn converted(&self, column: &Column) -> String {
        if is_sent_as_text(&column.data_type) {
            return format!("CAST(s.{} AS numeric)", column.quoted());
        }
        column.converted("s", self.existing(column))
    }

    /// Deletes the rows whose keys are in a stage. Returns their number.
    pub(super) async fn delete_keys(&self, stage: &StageTable) -> Result<u64> {
        let key = self.key_columns();
        let same_key = self.agree(key.iter(), "=");
        let delete = format!("DELETE FROM {} t USING {} s WHERE {same_key}", self.only, stage.name);
        self.execute("delete from", &delete).await
    }

    /// Deletes the rows whose keys are not in a stage. Returns their number.
    pub(super) async fn delete_other_keys(&self, stage: &StageTable) -> Result<u64> {
        let key = self.key_columns();
        let same_key = self.agree(key.iter(), "=");
        let delete = format!(
            "DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM {} s WHERE {same_key})",
            self.only, stage.name
        );
        self.execute("delete from", &delete).await
    }

    /// Inserts the rows of a stage. Returns their number.
    pub(super) async fn insert(&self, stage: &StageTable) -> Result<u64> {
        self.execute("load", &self.insert_sql(stage)).await
    }

    fn insert_sql(&self, stage: &StageTable) -> String {
        let names: Vec<String> = self.columns.iter().map(Column::quoted).collect();
        let values: Vec<String> =
            self.columns.iter().map(|column| self.converted(column)).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        format!(
            "INSERT INTO {} AS t ({names}) SELECT {values} FROM {} s",
            self.sql_name, stage.name
        )
    }

    /// Inserts the rows of a stage, and updates those of the same key that differ. Returns their number.
    pub(super) async fn upsert(&self, stage: &StageTable) -> Result<u64> {
        let key = self.key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let others = self.columns.iter().filter(|column| !self.key.contains(&column.name));
        let others: Vec<String> = others.map(Column::quoted).collect();
        let update = if others.is_empty() {
            "NOTHING".to_string()
        } else {
            let set: Vec<String> =
                others.iter().map(|name| format!("{name} = EXCLUDED.{name}")).collect();
            // Some collations take different texts for the same.
            let compared = |row: &str| {
                let others = self.columns.iter().filter(|it| !self.key.contains(&it.name));
                let each = others.map(|column| match self.existing(column) {
                    Some(existing) if !existing.is_deterministic => {
                        format!("{row}.{} COLLATE \"C\"", column.quoted())
                    }
                    _ => format!("{row}.{}", column.quoted()),
                });
                each.collect::<Vec<_>>().join(", ")
            };
            let (before, after) = (compared("t"), compared("EXCLUDED"));
            format!("UPDATE SET {} WHERE ({}) IS DISTINCT FROM ({})", set.join(", "), before, after)
        };
        // In the order of the index, pages are read and written once.
        let insert = self.insert_sql(stage);
        let upsert = format!("{insert} ORDER BY {key} ON CONFLICT ({key}) DO {update}");
        self.execute("load", &upsert).await
    }

    /// Deletes the rows that agree with some row of a stage in some columns, null or not. Returns their
    /// number.
    pub(super) async fn delete_like(&self, stage: &StageTable, columns: &[String]) -> Result<u64> {
        if columns.is_empty() {
            return self.execute("delete from", &format!("DELETE FROM {}", self.only)).await;
        }
        let named = || self.columns.iter().filter(|column| columns.contains(&column.name));
        let names = named().map(Column::quoted).collect::<Vec<_>>().join(", ");
        let nulls = named().map(|column| format!("{} IS NULL", column.quoted()));
        let nulls = nulls.collect::<Vec<_>>().join(" OR ");
        let mut deleted = 0;
        // Nulls apart: an index or a hash finds equal values alone.
        for (comparison, rows) in [("=", format!("NOT ({nulls})")), ("IS NOT DISTINCT FROM", nulls)]
        {
            let same = self.agree(named(), comparison);
            let delete = format!(
                "DELETE FROM {} t USING (SELECT DISTINCT {names} FROM {} WHERE {rows}) s WHERE {same}",
                self.only, stage.name
            );
            deleted += self.execute("delete from", &delete).await?;
        }
        Ok(deleted)
    }

    /// Deletes the rows of all days but some. Returns the number of rows and of days.
    pub(super) async fn delete_other_days(&self, day: &str, days: &[String]) -> Result<(u64, u64)> {
        let statement = format!(
            "WITH deleted AS (
                DELETE FROM {table} t WHERE t.{day} IS NULL OR t.{day} IN (
                    SELECT {day} FROM {table} EXCEPT SELECT unnest(($1::text[])::date[])
                )
                RETURNING t.{day} AS day
            )
            SELECT count(*), count(DISTINCT day) FROM deleted",
            table = self.only,
            day = quoted(day)
        );
        let row = self.client.query_one(&statement, &[&days]).await;
        let row = row
            .map_err(|error| failed(self.server, &format!("delete from {}", self.name), &error))?;
        let (rows, days): (i64, i64) = (row.get(0), row.get(1));
        Ok((rows.max(0) as u64, days.max(0) as u64))
    }
}
