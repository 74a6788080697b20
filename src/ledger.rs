//! The ledger: what all committed runs did, as records that are replayed in order.
//!
//! Each commit appends records: the run, the inputs it folded for the first time, and how the
//! files of tables and of versions changed. Replayed, they give a [`Ledger`]; written out again
//! ([`Ledger::records`]), a ledger is as short as what it says.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::sql::sqlparser::ast::{SetExpr, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use serde::{Deserialize, Serialize};

use crate::config::{Format, Pipeline};
use crate::discover::{RawFile, Recorded};
use crate::error::{Error, Result};
use crate::publish::TableFile;
use crate::schema_changes::{KnownColumns, Newest};
use crate::versions::VersionsLayout;
use crate::versions_writer::DayCounts;
use crate::window::Window;

/// The number of the ledger's form. A version of this program reads those up to its own.
pub const FORMAT: u32 = 1;

/// The ledger's name for the curated table.
pub const CURATED: &str = "curated";

/// What must not change while a pipeline keeps its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    curated: String,
    #[serde(default = "parquet")]
    format: String,
    key: Vec<String>,
    keep: String,
    order_by: Vec<String>,
    commit_time: String,
    event_time: String,
    time_zone: String,
    partition_by: Vec<String>,
    #[serde(default)]
    before_image_prefix: Option<String>,
    curated_sql: String,
    /// The columns of the query, and the rest of it.
    #[serde(default)]
    query: Query,
}

/// The only format there was at first.
fn parquet() -> String {
    Format::Parquet.to_string()
}

impl Identity {
    /// Where the curated table is, and its format.
    pub fn table(&self) -> (&str, &str) {
        (&self.curated, &self.format)
    }

    /// The identity of a pipeline as it is configured now.
    pub fn of(pipeline: &Pipeline) -> Self {
        Identity {
            curated: pipeline.curated.url.to_string(),
            format: pipeline.curated.format.to_string(),
            key: pipeline.key.clone(),
            keep: pipeline.keep.to_string(),
            order_by: pipeline.raw.order_by.clone(),
            commit_time: pipeline.raw.commit_time.clone(),
            event_time: pipeline.raw.event_time.clone(),
            time_zone: pipeline.raw.time_zone.to_string(),
            partition_by: pipeline.curated.partition_by.clone(),
            before_image_prefix: pipeline.raw.before_image_prefix.clone(),
            curated_sql: pipeline.curated.sql.fingerprint(),
            query: Query::of(&pipeline.curated.sql.text),
        }
    }

    /// The settings in which two identities differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("curated.url", self.curated != other.curated),
            ("curated.format", self.format != other.format),
            ("key", self.key != other.key),
            ("keep", self.keep != other.keep),
            ("raw.order_by", self.order_by != other.order_by),
            ("raw.commit_time", self.commit_time != other.commit_time),
            ("raw.event_time", self.event_time != other.event_time),
            ("raw.time_zone", self.time_zone != other.time_zone),
            (
                "curated.partition_by",
                self.partition_by != other.partition_by,
            ),
            (
                "raw.before_image_prefix",
                self.before_image_prefix != other.before_image_prefix,
            ),
            ("curated.sql", self.is_other_query(other)),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

impl Identity {
    /// Whether the rows that are there are none of the other one's query. A Delta table can get
    /// columns: they are null in rows that were there before.
    fn is_other_query(&self, other: &Self) -> bool {
        let is_grown =
            other.format == Format::Delta.to_string() && other.query.adds_to(&self.query);
        self.curated_sql != other.curated_sql && !is_grown
    }
}

/// A query, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Query {
    /// What it selects.
    columns: Vec<String>,
    /// The rest of it; empty where it could not be taken apart.
    rest: String,
}

impl Query {
    fn of(sql: &str) -> Self {
        let parsed = Parser::parse_sql(&GenericDialect {}, sql);
        let Ok([Statement::Query(query)]) = parsed.as_deref() else {
            return Query::default();
        };
        let mut query = query.clone();
        let SetExpr::Select(select) = query.body.as_mut() else {
            return Query::default();
        };
        let columns = std::mem::take(&mut select.projection);
        Query {
            columns: columns.iter().map(ToString::to_string).collect(),
            rest: query.to_string(),
        }
    }

    /// Whether it is another one with more columns.
    fn adds_to(&self, other: &Self) -> bool {
        let has = |column: &String| self.columns.contains(column);
        !self.rest.is_empty() && self.rest == other.rest && other.columns.iter().all(has)
    }
}

/// A row of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The form of the records that follow; each file begins with it.
    Format(u32),
    /// A run that was committed.
    Run(Box<Run>),
    /// What the pipeline's tables look like from here on.
    Shape(Box<Shape>),
    /// An input that a run folded.
    Input(RawFile),
    /// An input of which something was put aside, in the place of what was before.
    PutAside(PutAside),
    /// An input of which nothing is put aside any more.
    Released {
        /// Its raw location.
        location: usize,
        /// Its path.
        path: String,
    },
    /// A file that a table has from here on, in the place of one of its path.
    File {
        /// The table: [`CURATED`], or an aggregate's name.
        table: String,
        /// The file.
        file: TableFile,
    },
    /// A file that a table had.
    Gone {
        /// The table.
        table: String,
        /// The file's path.
        path: String,
    },
    /// A file with versions.
    Versions {
        /// Its path relative to the state's table.
        path: String,
        /// Its rows per day, as days since 1970.
        days: Vec<(Option<i32>, u64)>,
    },
}

/// A run, as the ledger keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The number of its commit.
    pub commit: u64,
    /// Unique, and growing with time.
    pub run_id: String,
    /// What was done.
    pub command: Command,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end.
    pub end: DateTime<Utc>,
    /// The tables that this commit changes.
    pub tables: Vec<String>,
    /// The days whose rows changed, ascending.
    pub days: Vec<NaiveDate>,
    /// Whether its window selected rows, of all inputs that were there.
    #[serde(default)]
    pub by_rows: bool,
    /// The windows whose days it aggregated, changed or not, where it is not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregated: Option<Vec<Window>>,
    /// When it began.
    pub at: DateTime<Utc>,
    /// How long it took until its commit, in seconds.
    pub seconds: f64,
    /// The newest commit time among all changes folded so far, in microseconds since 1970.
    pub newest_us: Option<i64>,
    /// What was counted: [`Report::counts`](crate::report::Report::counts), not read until asked for,
    /// because there are as many as there were runs.
    pub counts: String,
}

impl Run {
    /// Its window.
    pub fn window(&self) -> Window {
        let (start, end) = (self.start, self.end);
        Window { start, end }
    }

    /// What it counted under a name of the report.
    pub fn count(&self, name: &str) -> u64 {
        let counts: serde_json::Value = serde_json::from_str(&self.counts).unwrap_or_default();
        counts[name].as_u64().unwrap_or_default()
    }

    /// The window whose changes it folded, if it is one that folds a window's.
    pub fn folded(&self) -> Option<Window> {
        let is_of_window = matches!(self.command, Command::Curate | Command::CatchUp);
        is_of_window.then_some(self.window())
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// It folded changes into the curated table.
    Curate,
    /// It made everything again from raw.
    Rebuild,
    /// It computed aggregates.
    Aggregate,
    /// It folded what had never been folded: what was late, between windows, or put aside.
    CatchUp,
}

/// What was put aside of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAside {
    /// The input.
    pub input: RawFile,
    /// The rows, from 0; `None` for the whole input.
    pub rows: Option<Vec<u64>>,
    /// The file that tells of them, in the state's folder for these.
    pub file: String,
}

/// What a pipeline's tables look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The pipeline's identity.
    pub identity: Identity,
    /// The curated columns: name and Arrow type.
    pub columns: Vec<(String, String)>,
    /// The key columns in versions: name and Arrow type.
    pub keys: Vec<(String, String)>,
    /// The partition columns in versions: name and Arrow type.
    pub partitions: Vec<(String, String)>,
    /// Whether the only order column is the commit time.
    pub packed: bool,
    /// The order columns that were met so far, and the kinds of their values.
    pub orders: Vec<(String, String)>,
    /// The raw columns that were met so far: name and Arrow type.
    #[serde(default)]
    pub raw: Vec<(String, String)>,
    /// The curated columns that came when there were rows already: they are null in these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grown: Vec<String>,
    /// The newest CDC file, and its raw columns.
    #[serde(default)]
    pub newest: ((usize, String), Vec<(String, String)>),
}

impl Shape {
    /// The layout of versions.
    ///
    /// # Errors
    /// Internal, when a type cannot be read.
    pub fn layout(&self) -> Result<VersionsLayout> {
        Ok(VersionsLayout {
            keys: read_types(&self.keys)?,
            partitions: read_types(&self.partitions)?,
            packed: self.packed,
        })
    }

    /// The raw columns that were met so far.
    ///
    /// # Errors
    /// Internal, when a type cannot be read.
    pub fn known_columns(&self) -> Result<KnownColumns> {
        Ok(KnownColumns {
            all: read_types(&self.raw)?,
            newest: Newest {
                file: self.newest.0.clone(),
                columns: read_types(&self.newest.1)?,
            },
        })
    }
}

/// What all committed runs left.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The runs, in the order of their commits.
    pub runs: Vec<Run>,
    /// What the tables look like; `None` before the first run.
    pub shape: Option<Shape>,
    /// The inputs folded so far.
    pub inputs: BTreeMap<(usize, String), RawFile>,
    /// The inputs of which something is put aside.
    pub put_aside: BTreeMap<(usize, String), PutAside>,
    /// The files of versions, and their rows per day.
    pub versions: BTreeMap<String, DayCounts>,
    tables: BTreeMap<String, BTreeMap<String, TableFile>>,
}

impl Ledger {
    /// Takes the next record.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Format(_) => {}
            Record::Run(run) => {
                if run.command == Command::Rebuild {
                    self.inputs.clear();
                    self.put_aside.clear();
                    self.versions.clear();
                }
                self.runs.push(*run);
            }
            Record::Shape(shape) => self.shape = Some(*shape),
            Record::Input(input) => {
                let name = (input.location, input.path.clone());
                self.inputs.insert(name, input);
            }
            Record::PutAside(aside) => {
                let name = (aside.input.location, aside.input.path.clone());
                self.put_aside.insert(name, aside);
            }
            Record::Released { location, path } => {
                self.put_aside.remove(&(location, path));
            }
            Record::File { table, file } => {
                let files = self.tables.entry(table).or_default();
                files.insert(file.path.clone(), file);
            }
            Record::Gone { table, path } => {
                if let Some(files) = self.tables.get_mut(&table) {
                    files.remove(&path);
                }
            }
            Record::Versions { path, days } => {
                self.versions.insert(path, days.into_iter().collect());
            }
        }
    }

    /// The records that, replayed, give this ledger.
    pub fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        records.extend(
            self.runs
                .iter()
                .cloned()
                .map(|run| Record::Run(Box::new(run))),
        );
        let shape = self.shape.iter().cloned();
        records.extend(shape.map(|shape| Record::Shape(Box::new(shape))));
        records.extend(self.inputs.values().cloned().map(Record::Input));
        records.extend(self.put_aside.values().cloned().map(Record::PutAside));
        for (table, files) in &self.tables {
            records.extend(files.values().map(|file| Record::File {
                table: table.clone(),
                file: file.clone(),
            }));
        }
        records.extend(self.versions.iter().map(|(path, days)| Record::Versions {
            path: path.clone(),
            days: days.iter().collect(),
        }));
        records
    }

    /// A table's files, as last committed, sorted by path.
    pub fn files(&self, table: &str) -> impl Iterator<Item = &TableFile> {
        self.tables
            .get(table)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// The run of an id, if it was committed.
    pub fn run(&self, run_id: &str) -> Option<&Run> {
        self.runs.iter().rev().find(|run| run.run_id == run_id)
    }

    /// The spans whose changes were folded, ascending; windows that touch are one.
    pub fn folded_windows(&self) -> Vec<Window> {
        Window::union(self.runs.iter().filter_map(Run::folded).collect())
    }
}

impl Ledger {
    /// The newest commit time among the changes that were folded.
    pub fn newest_commit_time(&self) -> Option<DateTime<Utc>> {
        let last = self.runs.last()?.newest_us?;
        DateTime::from_timestamp_micros(last)
    }

    /// The windows for whose days an aggregate was computed, by its table.
    pub fn windows_aggregated(&self, table: &String) -> Vec<Window> {
        let runs = self.runs.iter().filter(|run| run.tables.contains(table));
        let windows = runs.flat_map(|run| match &run.aggregated {
            Some(windows) => windows.clone(),
            None => vec![run.window()],
        });
        windows.collect()
    }

    /// Whether an aggregate was computed since the last change, by its table.
    pub fn is_aggregated(&self, table: &String) -> bool {
        let mut runs = self.runs.iter().rev();
        let last = runs.find(|run| run.tables.contains(table) || !run.days.is_empty());
        last.is_some_and(|run| run.tables.contains(table))
    }

    /// What lies between the spans whose changes were folded, ascending.
    pub fn gaps(&self) -> Vec<Window> {
        Window::gaps(&self.folded_windows())
    }
}

impl Recorded for Ledger {
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile> {
        self.inputs.get(&(location, path.to_string()))
    }

    fn inputs(&self) -> Vec<&RawFile> {
        let whole = self.put_aside.values().filter(|aside| aside.rows.is_none());
        let whole = whole.map(|aside| &aside.input);
        self.inputs.values().chain(whole).collect()
    }

    fn put_aside(&self, location: usize, path: &str) -> Option<&RawFile> {
        let aside = self.put_aside.get(&(location, path.to_string()))?;
        aside.rows.is_none().then_some(&aside.input)
    }

    fn is_put_aside(&self, location: usize, path: &str) -> bool {
        self.put_aside.contains_key(&(location, path.to_string()))
    }

    fn windows(&self) -> Vec<Window> {
        self.folded_windows()
    }

    fn rows_read(&self, location: usize, path: &str) -> Option<Vec<Window>> {
        let file = self.folded(location, path)?;
        let first = file.rows.as_ref()?;
        let later = self.runs.iter().filter(|run| run.commit > file.commit);
        let later = later.filter(|run| run.by_rows && !file.is_absent);
        let later = later.filter_map(Run::folded);
        Some(Window::union(first.iter().copied().chain(later).collect()))
    }
}

/// Names and types, as the ledger keeps them.
pub fn write_types<'a>(
    types: impl Iterator<Item = (&'a str, &'a DataType)>,
) -> Vec<(String, String)> {
    types
        .map(|(name, data_type)| (name.to_string(), data_type.to_string()))
        .collect()
}

/// Names and types, as the ledger kept them.
///
/// # Errors
/// Internal, when a type cannot be read.
pub fn read_types(types: &[(String, String)]) -> Result<Vec<(String, DataType)>> {
    types
        .iter()
        .map(|(name, text)| {
            let data_type = text.parse().map_err(|error: arrow::error::ArrowError| {
                Error::internal(format!("the ledger names the type `{text}`")).caused_by(error)
            })?;
            Ok((name.clone(), data_type))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_written_out_again_says_the_same() {
        let file = |path: &str, rows| TableFile {
            path: path.into(),
            rows,
            bytes: 1,
            staged: None,
        };
        let in_table = |path, rows| Record::File {
            table: CURATED.into(),
            file: file(path, rows),
        };
        let mut ledger = Ledger::default();
        for record in [
            in_table("a", 1),
            in_table("b", 2),
            in_table("a", 3),
            Record::Gone {
                table: CURATED.into(),
                path: "b".into(),
            },
            Record::Versions {
                path: "v".into(),
                days: vec![(None, 1), (Some(2), 3)],
            },
        ] {
            ledger.replay(record);
        }
        let mut again = Ledger::default();
        for record in ledger.records() {
            let text = serde_json::to_string(&record).expect("written");
            again.replay(serde_json::from_str(&text).expect("read"));
        }
        let files: Vec<&TableFile> = again.files(CURATED).collect();
        assert_eq!(files, [&file("a", 3)]);
        assert_eq!(again.versions, ledger.versions);
        assert_eq!(again.files("other").count(), 0);
    }
}
