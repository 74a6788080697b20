//! Statements that make the tables known elsewhere: printed, not run.
//!
//! | dialect | what is printed |
//! |---|---|
//! | `athena`, `hive`, `spark` | external tables over the files, and how their partitions are found |
//! | `duckdb` | views over the files |
//! | `postgres` | the tables that `load` makes |
//! | `redshift` | an external schema over the Glue catalog, tables, and procedures that load them |

use std::fmt::Write;

use arrow::datatypes::DataType;

use crate::config::{Catalog, Format, Keep, Pipeline};
use crate::error::{Error, Result};
use crate::follow::hive_type::hive_type;
use crate::follow::sql_type::sql_type;
use crate::state::versions::quoted;
use crate::store::Location;

/// The dialect of statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Amazon Athena.
    Athena,
    /// Apache Hive.
    Hive,
    /// Apache Spark.
    Spark,
    /// DuckDB.
    DuckDb,
    /// PostgreSQL.
    Postgres,
    /// Amazon Redshift.
    Redshift,
}

/// A table that is described.
#[derive(Debug)]
pub(crate) struct Described<'a> {
    /// Its name.
    pub name: String,
    /// Its schema in a database, if it is known.
    pub schema: Option<String>,
    /// Where it is.
    pub location: &'a Location,
    /// Its format.
    pub format: Format,
    /// Its columns: name and type.
    pub columns: Vec<(String, DataType)>,
    /// Its partition columns.
    pub partition_by: Vec<String>,
    /// The columns that identify a row; none for an aggregate and a table without a key.
    pub key: Vec<String>,
    /// The day column, if it is an aggregate.
    pub day: Option<&'a str>,
}

/// The columns that identify a row of the curated table, whose day is the column `day`; none for a history.
pub(crate) fn key_of(pipeline: &Pipeline, day: Option<&str>) -> Vec<String> {
    let mut key = pipeline.key.clone();
    if let Some(day) = day.filter(|_| pipeline.keep == Keep::LatestPerDay && !key.is_empty()) {
        key.retain(|name| name != day);
        key.push(day.to_string());
    }
    // A row of a full load has no begin, and a primary key no null.
    if pipeline.keep == Keep::History { Vec::new() } else { key }
}

/// The statements for some tables.
///
/// # Errors
/// Usage, when a column has a type that the dialect has not.
pub(crate) fn statements(
    dialect: Dialect,
    catalog: Option<&Catalog>,
    tables: &[Described<'_>],
) -> Result<String> {
    let mut text = String::new();
    let database = catalog.map_or("lake", |catalog| catalog.database.as_str());
    if dialect == Dialect::Redshift {
        let _ = writeln!(
            text,
            "CREATE EXTERNAL SCHEMA IF NOT EXISTS {schema}\nFROM DATA CATALOG DATABASE '{database}'\nIAM_ROLE default;\n",
            schema = quoted(EXTERNAL),
        );
    }
    for table in tables {
        text.push_str(&match dialect {
            Dialect::Athena | Dialect::Hive | Dialect::Spark => hive(dialect, database, table)?,
            Dialect::DuckDb => duckdb(table)?,
            Dialect::Postgres => table.made(sql_type)?,
            Dialect::Redshift => redshift(table)?,
        });
        text.push('\n');
    }
    Ok(text)
}

/// The schema of Redshift over the catalog.
const EXTERNAL: &str = "lake";

impl Described<'_> {
    fn no_type(&self, name: &str, data_type: &DataType) -> Error {
        Error::usage(format!(
            "the column `{name}` of {} is {data_type}, which has no type there",
            self.name
        ))
        .hint("cast it in the query, such as to text, or select its parts")
    }

    /// Columns with their types, one per line.
    fn typed(
        &self,
        columns: &[String],
        write: impl Fn(&DataType) -> Option<String>,
        quote: impl Fn(&str) -> String,
    ) -> Result<String> {
        let lines = columns.iter().map(|name| {
            let found = self.columns.iter().find(|(column, _)| column == name);
            let (_, data_type) =
                found.ok_or_else(|| Error::internal(format!("the column `{name}` was lost")))?;
            let kind = write(data_type).ok_or_else(|| self.no_type(name, data_type))?;
            Ok(format!("    {} {kind}", quote(name)))
        });
        Ok(lines.collect::<Result<Vec<_>>>()?.join(",\n"))
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The statement that makes the table in a database.
    fn made(&self, write: impl Fn(&DataType) -> Option<String>) -> Result<String> {
        let mut columns = self.typed(&self.names(), write, quoted)?;
        if !self.key.is_empty() {
            let _ = write!(columns, ",\n    PRIMARY KEY ({})", list(&self.key, quoted));
        }
        let schema = self.schema.as_ref().map(|schema| format!("{}.", quoted(schema)));
        let name = schema.unwrap_or_default() + &quoted(&self.name);
        Ok(format!("CREATE TABLE IF NOT EXISTS {name} (\n{columns}\n);\n"))
    }
}

/// Names or texts, with commas between them.
fn list(names: &[String], each: impl Fn(&str) -> String) -> String {
    names.iter().map(|name| each(name)).collect::<Vec<_>>().join(", ")
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn hive(dialect: Dialect, database: &str, table: &Described<'_>) -> Result<String> {
    let quote = |name: &str| format!("`{}`", name.to_lowercase().replace('`', "``"));
    let name = format!("{}.{}", quote(database), quote(&table.name));
    // Hive's texts have escapes of their own.
    let place = table.location.folder().replace('\\', "\\\\").replace('\'', "\\'");
    let place = format!("'{place}'");
    if table.format == Format::Delta {
        return Ok(match dialect {
            Dialect::Spark => {
                format!("CREATE TABLE IF NOT EXISTS {name}\nUSING DELTA\nLOCATION {place};\n")
            }
            Dialect::Athena => format!(
                "CREATE EXTERNAL TABLE {name}\nLOCATION {place}\nTBLPROPERTIES ('table_type' = 'DELTA');\n"
            ),
            _ => {
                return Err(Error::usage(format!(
                    "Hive itself cannot read the Delta table {}",
                    table.name
                ))
                .hint("use --dialect spark or athena"));
            }
        });
    }
    let is_stored = |name: &String| !table.partition_by.contains(name);
    let stored: Vec<String> = table.names().into_iter().filter(is_stored).collect();
    let columns = table.typed(&stored, hive_type, quote)?;
    let mut made = format!("CREATE EXTERNAL TABLE IF NOT EXISTS {name} (\n{columns}\n)\n");
    if !table.partition_by.is_empty() {
        let partitions = table.typed(&table.partition_by, hive_type, quote)?;
        let _ = writeln!(made, "PARTITIONED BY (\n{partitions}\n)");
    }
    let _ = write!(made, "STORED AS PARQUET\nLOCATION {place};\n");
    if !table.partition_by.is_empty() {
        let _ = write!(
            made,
            "-- Finds new partitions; run it after each run, or let `glueless catalog` keep them.\nMSCK REPAIR TABLE {name}{};\n",
            // Athena removes none.
            if dialect == Dialect::Athena { "" } else { " SYNC PARTITIONS" }
        );
    }
    Ok(made)
}

fn duckdb(table: &Described<'_>) -> Result<String> {
    let place = table.location.folder();
    let name = quoted(&table.name);
    if table.format == Format::Delta {
        let place = text(place.trim_end_matches('/'));
        return Ok(format!(
            "CREATE OR REPLACE VIEW {name} AS\nSELECT * FROM delta_scan({place});\n"
        ));
    }
    let columns = list(&table.names(), quoted);
    let files = text(&format!("{place}**/*.parquet"));
    // Older files can lack columns that were added later.
    let mut options = ", union_by_name = true".to_string();
    if !table.partition_by.is_empty() {
        let types = table.partition_by.iter().map(|name| {
            let found = table.columns.iter().find(|(column, _)| column == name);
            let data_type = found.map_or(&DataType::Null, |(_, data_type)| data_type);
            let kind = sql_type(data_type).ok_or_else(|| table.no_type(name, data_type))?;
            // A type of one word.
            let kind = match kind.as_str() {
                "timestamp without time zone" => "timestamp",
                "timestamp with time zone" => "timestamptz",
                "double precision" => "double",
                kind => kind,
            };
            Ok(format!("{}: {kind}", text(name)))
        });
        let types = types.collect::<Result<Vec<_>>>()?.join(", ");
        let _ = write!(options, ", hive_partitioning = true, hive_types = {{{types}}}");
    }
    Ok(format!(
        "CREATE OR REPLACE VIEW {name} AS\nSELECT {columns}\nFROM read_parquet({files}{options});\n"
    ))
}

/// The type in Redshift.
fn redshift_type(data_type: &DataType) -> Option<String> {
    let kind = sql_type(data_type)?;
    Some(match kind.as_str() {
        "text" => "varchar(65535)".into(),
        "bytea" => "varbyte".into(),
        // A nested column is read in another way; numbers have at most 38 digits.
        array if array.ends_with("[]") => return None,
        _ if matches!(data_type, DataType::Decimal256(_, _)) => return None,
        _ => kind,
    })
}

fn redshift(table: &Described<'_>) -> Result<String> {
    if table.format == Format::Delta {
        return Err(Error::usage(format!("Redshift reads no Delta table such as {}", table.name))
            .hint("write curated.format = \"parquet\" into a pipeline of its own, or use `glueless load`"));
    }
    let made = table.made(redshift_type)?;
    Ok(match table.day {
        Some(day) => made + &days_procedure(table, day),
        None if table.key.is_empty() => made + &refill_procedure(table),
        None => made + &merge_procedure(table),
    })
}

/// A procedure that replaces the days of an aggregate.
fn days_procedure(table: &Described<'_>, day: &str) -> String {
    let (name, day) = (quoted(&table.name), quoted(day));
    let columns = list(&table.names(), quoted);
    let external = format!("{}.{name}", quoted(EXTERNAL));
    let procedure = quoted(&format!("load_{}", table.name));
    format!(
        "
-- Replaces the days [start_date, end_date), in one transaction.
CREATE OR REPLACE PROCEDURE {procedure}(start_date date, end_date date)
AS $$
DECLARE
    qualifying integer;
    deleted integer;
    inserted integer;
BEGIN
    SELECT INTO qualifying count(DISTINCT {day}) FROM {external}
    WHERE {day} >= start_date AND {day} < end_date;
    DELETE FROM {name} WHERE {day} >= start_date AND {day} < end_date;
    GET DIAGNOSTICS deleted := ROW_COUNT;
    INSERT INTO {name} ({columns})
    SELECT {columns} FROM {external}
    WHERE {day} >= start_date AND {day} < end_date;
    GET DIAGNOSTICS inserted := ROW_COUNT;
    RAISE INFO 'startDate %, endDate %, qualifying dates %, rows deleted %, rows inserted %',
        start_date, end_date, qualifying, deleted, inserted;
END;
$$ LANGUAGE plpgsql;
"
    )
}

/// A procedure that brings a table to the rows of the published one, by its key.
fn merge_procedure(table: &Described<'_>) -> String {
    let name = quoted(&table.name);
    let columns = list(&table.names(), quoted);
    let external = format!("{}.{name}", quoted(EXTERNAL));
    let procedure = quoted(&format!("merge_{}", table.name));
    let same = |a: &str, b: &str| {
        let each = table.key.iter().map(|key| format!("{a}.{key} = {b}.{key}", key = quoted(key)));
        each.collect::<Vec<_>>().join(" AND ")
    };
    let others = table.names().into_iter().filter(|name| !table.key.contains(name));
    let differs: Vec<String> = others
        .map(|column| {
            let (old, new) = (format!("{name}.{}", quoted(&column)), format!("s.{}", quoted(&column)));
            format!(
                "{old} <> {new} OR ({old} IS NULL AND {new} IS NOT NULL) OR ({old} IS NOT NULL AND {new} IS NULL)"
            )
        })
        .collect();
    let differs = if differs.is_empty() { "false".into() } else { differs.join("\n        OR ") };
    format!(
        "
-- Deletes the keys that have no row any more, and writes the rows that differ, in one transaction. The
-- published table has no deleted rows: what is not in it is deleted.
CREATE OR REPLACE PROCEDURE {procedure}()
AS $$
DECLARE
    deleted integer;
    changed integer;
    inserted integer;
BEGIN
    CREATE TEMPORARY TABLE glueless_stage AS SELECT {columns} FROM {external};
    DELETE FROM {name}
    WHERE NOT EXISTS (SELECT 1 FROM glueless_stage s WHERE {of_stage});
    GET DIAGNOSTICS deleted := ROW_COUNT;
    DELETE FROM {name} USING glueless_stage s
    WHERE {of_stage} AND (
        {differs}
    );
    GET DIAGNOSTICS changed := ROW_COUNT;
    INSERT INTO {name} ({columns})
    SELECT {columns} FROM glueless_stage s
    WHERE NOT EXISTS (SELECT 1 FROM {name} t WHERE {of_table});
    GET DIAGNOSTICS inserted := ROW_COUNT;
    DROP TABLE glueless_stage;
    RAISE INFO 'rows deleted %, rows changed %, rows inserted %', deleted, changed, inserted - changed;
END;
$$ LANGUAGE plpgsql;
",
        of_stage = same("s", &name),
        of_table = same("t", "s"),
    )
}

/// A procedure that fills a table without a key again.
fn refill_procedure(table: &Described<'_>) -> String {
    let name = quoted(&table.name);
    let columns = list(&table.names(), quoted);
    let external = format!("{}.{name}", quoted(EXTERNAL));
    let procedure = quoted(&format!("refill_{}", table.name));
    format!(
        "
-- The table has no key: its rows are deleted and inserted, in one transaction.
CREATE OR REPLACE PROCEDURE {procedure}()
AS $$
BEGIN
    DELETE FROM {name};
    INSERT INTO {name} ({columns}) SELECT {columns} FROM {external};
END;
$$ LANGUAGE plpgsql;
"
    )
}
