//! What the server says of a table's column with the times of changes, in the snapshot of an extract.
//!
//! Times are microseconds since 1970; those without a zone are taken as they are written.

use chrono::DateTime;

use crate::capture::catalog::{Catalog, Table};
use crate::capture::column::Kind;
use crate::capture::extract::Rows;
use crate::error::{Error, Result};
use crate::postgres::quoted;

/// The times that SQL can be given: those of the years 1 to 9999.
const FIRST_TIME: i64 = -62_135_596_800_000_000;
const LAST_TIME: i64 = 253_402_300_799_999_999;

/// The column of a table.
#[derive(Clone, Debug)]
pub(super) struct Stamps {
    /// The table, for messages, and as SQL reads it.
    table: String,
    relation: String,
    /// The columns of the table, as SQL has them.
    columns: String,
    /// The column, as SQL has it, and its type.
    column: String,
    pub(super) column_type: &'static str,
}

/// The server's clock when a snapshot was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) utc: i64,
    /// What a clock in the server's zone shows.
    pub(super) local: i64,
}

/// What a snapshot has from a time on.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The rows from the time on, and those without one.
    pub(super) rows: Rows,
    pub(super) rows_without_time: Rows,
    /// How many of them have a time that is yet to come.
    pub(super) ahead: i64,
}

/// Which rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Those with a time: from one on, or all.
    pub(super) rows: Option<Option<i64>>,
    pub(super) rows_without_time: bool,
}

impl Stamps {
    /// The column of a table.
    ///
    /// # Errors
    /// Usage, when it is not there, or of another type.
    pub(super) fn new(
        table: &Table,
        column: &str,
        kind_of: impl Fn(u32, i32) -> Kind,
    ) -> Result<Self> {
        let full = table.full_name();
        let found = table.columns.iter().find(|it| it.name == column);
        let found = found.ok_or_else(|| {
            let hint = "correct `column`, or leave the table out by `tables` or `exclude` and capture it by another source";
            Error::usage(format!("{full} has no column `{column}`")).hint(hint)
        })?;
        let column_type = match kind_of(found.type_id, found.modifier) {
            Kind::TimestampUtc => "timestamptz",
            Kind::Timestamp => "timestamp",
            Kind::Date => "date",
            _ => {
                let message = format!(
                    "{full}: its column `{column}` has no times: extracts read by a date or timestamp"
                );
                return Err(Error::usage(message).hint(
                    "let `column` name one of type timestamptz, timestamp or date, or leave the table out by `tables` or `exclude`",
                ));
            }
        };
        let names: Vec<String> = table.columns.iter().map(|it| quoted(&it.name)).collect();
        // Tables that inherit from it have rows of their own.
        let only = if table.is_partitioned { "" } else { "ONLY " };
        Ok(Stamps {
            relation: format!("{only}{}", table.sql_name()),
            columns: names.join(", "),
            column: quoted(column),
            column_type,
            table: full,
        })
    }

    /// What a clock shows in the terms of the column.
    pub(super) fn now(&self, clock: Clock) -> i64 {
        if self.column_type == "timestamptz" { clock.utc } else { clock.utc.max(clock.local) }
    }

    /// A time as SQL has it.
    fn literal(&self, time: i64) -> String {
        let time = DateTime::from_timestamp_micros(time.clamp(FIRST_TIME, LAST_TIME));
        let text = time.unwrap_or_default().format("%Y-%m-%d %H:%M:%S%.6f");
        let zone = if self.column_type == "timestamptz" { "+00" } else { "" };
        format!("'{text}{zone}'::{}", self.column_type)
    }

    /// The condition for rows with a time.
    fn from(&self, from: Option<i64>) -> String {
        match from.filter(|from| *from > FIRST_TIME) {
            Some(from) => format!("{} >= {}", self.column, self.literal(from)),
            None => format!("{} IS NOT NULL", self.column),
        }
    }

    /// The newest time that is not yet to come.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn newest(&self, catalog: &Catalog<'_>, now: i64) -> Result<Option<i64>> {
        let (column, relation, now) = (&self.column, &self.relation, self.literal(now));
        let statement = format!(
            "SELECT (extract(epoch FROM max({column})) * 1000000)::bigint FROM {relation}
            WHERE {column} <= {now} AND {column} > '-infinity'"
        );
        let doing = format!("read the newest time of {}", self.table);
        Ok(catalog.one(&statement, &[], &doing).await?.get(0))
    }

    /// The rows from a time on, and those without one.
    ///
    /// # Errors
    /// Those of the server.
    pub(super) async fn rows(
        &self,
        catalog: &Catalog<'_>,
        from: Option<i64>,
        now: i64,
    ) -> Result<Found> {
        let (column, columns, relation) = (&self.column, &self.columns, &self.relation);
        let (from, now) = (self.from(from), self.literal(now));
        let statement = format!(
            "SELECT count(stamp), coalesce(sum(hash) FILTER (WHERE stamp IS NOT NULL), 0)::text,
                count(*) - count(stamp), coalesce(sum(hash) FILTER (WHERE stamp IS NULL), 0)::text,
                count(*) FILTER (WHERE stamp > {now})
            FROM (SELECT {column} AS stamp, hashtextextended(ROW({columns})::text, 0)::numeric AS hash
                FROM {relation} WHERE {from} OR {column} IS NULL) found"
        );
        let doing = format!("look for changes of {}", self.table);
        let row = catalog.one(&statement, &[], &doing).await?;
        Ok(Found {
            rows: Rows { count: row.get(0), sum: row.get(1) },
            rows_without_time: Rows { count: row.get(2), sum: row.get(3) },
            ahead: row.get(4),
        })
    }

    /// The statement that reads rows.
    pub(super) fn copy_statement(&self, wanted: Wanted) -> String {
        let dated = wanted.rows.map(|from| self.from(from));
        let undated = wanted.rows_without_time.then(|| format!("{} IS NULL", self.column));
        let conditions: Vec<String> = dated.into_iter().chain(undated).collect();
        let (columns, relation) = (&self.columns, &self.relation);
        let conditions = conditions.join(" OR ");
        format!("COPY (SELECT {columns} FROM {relation} WHERE {conditions}) TO STDOUT")
    }
}
