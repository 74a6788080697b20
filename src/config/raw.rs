//! `[raw]`: where the change files are, and what their columns mean.

use std::path::Path;

use arrow::datatypes::DataType;
use chrono_tz::Tz;
use serde::Deserialize;

use crate::config::LATEST_RELATION;
use crate::config::constants::{Constants, SourceToml};
use crate::config::csv::{CsvForm, CsvKeys, ShortLines};
use crate::config::dialect::{Defaults, Dialect};
use crate::config::envelope::{self, BEFORE_PREFIX, Envelope, EnvelopeKeys};
use crate::config::full_loads::{FullLoadAt, FullLoadKeys, FullLoads, begins_with_commit_time};
use crate::config::kind::{Kind, SNAPSHOT_ORDER};
use crate::config::masks::Masks;
use crate::config::operations::{OpValues, OpValuesToml};
use crate::config::query_columns::QueryColumns;
use crate::config::source_table::{self, LINE_COLUMNS, Layout, Others, SourceTable};
use crate::config::time_unit::TimeUnit;
use crate::config::values::no_repeats;
use crate::error::{Error, Result};
use crate::layout::{FileOrder, base_name};
use crate::store::Location;
use crate::types::column_type::{NAMES, parse_type};
use crate::window::parse_duration;

/// How a window selects inputs or rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowBy {
    /// The object's LastModified.
    Modified,
    /// The time in the CDC file's name.
    Name,
    /// The date in the folders of the object's path.
    Path,
    /// The commit time of each row.
    Commit,
}

/// The format of the change files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RawFormat {
    /// `*.parquet`.
    #[default]
    Parquet,
    /// `*.csv`, `*.csv.gz` and `*.csv.zst`.
    Csv,
    /// `*.json`, `*.jsonl` and `*.ndjson`, each also with `.gz` or `.zst`: an object a line.
    Json,
}

impl RawFormat {
    /// The format of a file with this name, in upper or lower case.
    pub fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst"].iter().find_map(|ending| name.strip_suffix(ending));
        let plain = plain.unwrap_or(&name);
        if name.ends_with(".parquet") {
            Some(RawFormat::Parquet)
        } else if plain.ends_with(".csv") {
            Some(RawFormat::Csv)
        } else {
            let is_json = [".json", ".jsonl", ".ndjson"].iter().any(|end| plain.ends_with(end));
            is_json.then_some(RawFormat::Json)
        }
    }

    /// The name of the format in `raw.format`.
    pub fn name(self) -> &'static str {
        match self {
            RawFormat::Parquet => "parquet",
            RawFormat::Csv => "csv",
            RawFormat::Json => "json",
        }
    }
}

/// What a run does with bad input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    /// Stops.
    #[default]
    Fail,
    /// Quarantines and counts it.
    Quarantine,
}

/// What a run does with a tie: changes with equal order columns, decided by file and row only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTie {
    /// Lets the later row win.
    #[default]
    Row,
    /// Stops.
    Fail,
}

/// The raw change files.
#[derive(Clone, Debug)]
pub struct Raw {
    /// `raw.kind`: `changes` (default) or `snapshot`.
    pub kind: Kind,
    /// `raw.url`: a path relative to the toml file, `file://` or `s3://`; or a list of them; or those of `[[raw.source]]`.
    pub urls: Vec<Location>,
    /// `raw.format`: `parquet` (default), `csv` or `json`.
    pub format: RawFormat,
    /// `[raw.columns]`: columns and their types ([`crate::types::column_type`]). For Parquet and JSON,
    /// those whose type differs from the one in the files; for CSV without a header all, in their
    /// order.
    pub columns: Vec<(String, DataType)>,
    /// How CSV files are written.
    pub csv: CsvForm,
    /// `raw.layout`: `table` (default): a CDC file has the changes of one table. `transactions`: it
    /// has those of all tables of a task in commit order, and its lines begin with operation, table
    /// and schema; then `raw.table` is `schema.table`, the table whose changes are read.
    pub table: Option<SourceTable>,
    /// `raw.window_by`: `modified` (default), `name`, `path` or `commit`.
    pub window_by: WindowBy,
    /// `raw.lookback`: how far before the window a run looks for late inputs; default `2d`.
    pub lookback: chrono::Duration,
    /// `raw.dialect`: the tool that wrote the files, `dms` (default), `debezium`, `qlik`,
    /// `sql-server-cdc` or `flat`; a table of defaults for other keys.
    pub dialect: Dialect,
    /// The envelopes that the rows are in; `None` if they are in none.
    pub envelope: Option<Envelope>,
    /// `raw.op`: the column with the operation; default `Op`. When the key is set, a CDC input
    /// without the column is refused; when it is not, such an input holds inserts.
    pub op: OpColumn,
    /// `raw.delete_when`: a condition in SQL over the raw columns of one row; where it is true, the
    /// change is a delete. Default none.
    pub delete_when: Option<String>,
    /// `raw.order_by`: the columns that order the changes, before file and row. Default none: the
    /// changes are ordered by file ([`FileOrder::Time`]) and row.
    pub order_by: Vec<String>,
    /// `raw.on_tie`: what a run does when these are equal; default `row`.
    pub on_tie: OnTie,
    /// `raw.commit_time`: the column with the commit time; default the first column of `order_by`
    /// that is a time. If there is none, the commit time of a change is its file's: the time in the
    /// name, else that of its folder, else when the file was written.
    pub commit_time: Option<String>,
    /// `raw.commit_time_unit`: the unit of a commit time that is a number, `s`, `ms`, `us` or `ns`,
    /// since 1970.
    pub commit_time_unit: Option<TimeUnit>,
    /// `raw.event_time`: the column that gives a change its day; default the commit time.
    pub event_time: Option<String>,
    /// `raw.time_zone`: the zone of times without one in names, folders and `event_time`;
    /// default `UTC`.
    pub time_zone: Tz,
    /// `raw.day_zone`: the zone whose days the days of changes are (`event_dt`); default `UTC`.
    pub day_zone: Tz,
    /// `raw.full_load`: which files are full loads, `*` and `?` allowed, one or a list; default
    /// `LOAD*` and `SEGMENT*_LOAD*`. See [`Raw::is_full_load`].
    pub full_load: Vec<glob::Pattern>,
    /// How full loads are folded: `raw.full_load_at`, and what belongs to it.
    pub full_loads: FullLoads,
    /// `raw.before_image_prefix`: the prefix to a key column's name that gives the name of the column
    /// with its value before an update; default none.
    pub before_image_prefix: Option<String>,
    /// `raw.on_bad_row`: `fail` (default) or `quarantine`.
    pub on_bad_row: OnBad,
    /// `raw.on_bad_file`: `fail` (default) or `quarantine`.
    pub on_bad_file: OnBad,
    /// `raw.max_bad_rows`: the most bad rows that a run quarantines before it stops; default 1000.
    pub max_bad_rows: u64,
    /// `[mask]`: the columns whose values are not to be stored.
    pub masks: Masks,
    /// `[[raw.source]]` and `raw.path_columns`: columns that are said by where files are.
    pub constants: Constants,
    /// The columns that `[raw.columns]` declares as `TIMESTAMP` with other digits than 3, 6 or 9.
    unitless: Vec<String>,
}

/// The operation column.
#[derive(Clone, Debug)]
pub struct OpColumn {
    /// Its name; `None` if changes have no operation, so that each is an insert.
    pub name: Option<String>,
    /// Whether the pipeline sets it, so that every CDC file must have it.
    pub required: bool,
    /// `[raw.op_values]`: its values.
    pub values: OpValues,
}

impl OpColumn {
    /// Whether a column is the operation column, by its name in any case.
    pub fn is(&self, column: &str) -> bool {
        self.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(column))
    }
}

impl Raw {
    /// The settings of a `[raw]` section by itself, for a table of which the key is not known.
    ///
    /// # Errors
    /// Usage, naming the key that is wrong.
    pub(crate) fn of_section(section: toml::Table) -> Result<Self> {
        let wrong = |key: &str, why: String| Error::usage(format!("`{key}` {why}"));
        let parsed: RawToml = toml::Value::Table(section)
            .try_into()
            .map_err(|error: toml::de::Error| wrong("raw", error.message().to_string()))?;
        parsed.check(&[], Path::new("/"), &wrong)
    }

    /// Whether a file, given by the index of its raw URL and its path below that, is a full load. A
    /// pattern is matched with the file's name; a pattern with a slash with its whole URL.
    pub fn is_full_load(&self, location: usize, path: &str) -> bool {
        let url = || format!("{}/{path}", self.urls[location]);
        let matches = |pattern: &glob::Pattern| {
            if pattern.as_str().contains('/') {
                pattern.matches(&url())
            } else {
                pattern.matches(base_name(path))
            }
        };
        self.full_load.iter().any(matches)
    }

    /// Whether no full load can have the name of a CDC file with a time: each pattern is of file names,
    /// and begins with a letter that such a name does not begin with.
    pub fn full_loads_have_other_names(&self) -> bool {
        let begins_otherwise = |pattern: &glob::Pattern| {
            let first = pattern.as_str().chars().next();
            first.is_some_and(|first| first.is_ascii_alphabetic() && first != 'C')
        };
        self.full_load
            .iter()
            .all(|pattern| !pattern.as_str().contains('/') && begins_otherwise(pattern))
    }

    /// Whether a column of `[raw.columns]`, by its number, is the table or the schema in the lines of
    /// transaction files, which full loads do not have.
    pub fn is_of_transactions(&self, number: usize) -> bool {
        self.table.is_some() && (1..LINE_COLUMNS).contains(&number)
    }

    /// The type that `[raw.columns]` gives a column, by its name in any case.
    pub fn fixed_type(&self, column: &str) -> Option<&DataType> {
        let mut columns = self.columns.iter();
        let found = columns.find(|(name, _)| name.eq_ignore_ascii_case(column));
        found.map(|(_, data_type)| data_type)
    }

    /// The column that a setting names.
    pub(super) fn column_named(&self, name: String) -> String {
        column_named(self.dialect, name)
    }

    /// Whether changes can be in the order of their commit times first.
    pub(crate) fn can_begin_with_commit_time(&self) -> bool {
        begins_with_commit_time(&self.order_by, self.commit_time.as_deref())
    }

    /// The columns that `raw.delete_when` names.
    pub fn delete_when_columns(&self) -> QueryColumns {
        let query =
            |condition: &String| format!("SELECT 1 FROM {LATEST_RELATION} WHERE {condition}");
        let query = self.delete_when.as_ref().map(query);
        query.map_or_else(QueryColumns::default, |sql| QueryColumns::of(&sql, LATEST_RELATION))
    }

    /// Whether changes are ordered by their files and rows alone.
    pub fn is_ordered_by_files(&self) -> bool {
        self.order_by.is_empty()
    }

    /// The order of files.
    pub fn file_order(&self) -> FileOrder {
        if self.is_ordered_by_files() { FileOrder::Time(self.time_zone) } else { FileOrder::Name }
    }

    /// Whether a declared type does not say in which unit a number is: neither `TIMESTAMP(3)` nor 6
    /// or 9 digits.
    pub fn lacks_unit(&self, column: &str) -> bool {
        self.unitless.iter().any(|name| name.eq_ignore_ascii_case(column))
    }

    /// The columns with the key before an update, in the key's order; empty without a prefix.
    pub fn before_images(&self, key: &[String]) -> Vec<String> {
        let named = |prefix: &String| key.iter().map(|name| format!("{prefix}{name}")).collect();
        self.before_image_prefix.as_ref().map_or_else(Vec::new, named)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct RawToml {
    url: Option<OneOrMany>,
    #[serde(default)]
    source: Vec<SourceToml>,
    #[serde(default)]
    path_columns: Vec<String>,
    #[serde(default)]
    format: RawFormat,
    #[serde(default)]
    columns: toml::Table,
    csv_header: Option<bool>,
    csv_null: Option<String>,
    csv_quoted: Option<bool>,
    csv_op_in_full_load: Option<bool>,
    csv_delimiter: Option<String>,
    csv_row_delimiter: Option<String>,
    csv_quote: Option<String>,
    csv_escape: Option<String>,
    csv_no_sup_value: Option<String>,
    csv_short_lines: Option<ShortLines>,
    #[serde(default)]
    layout: Layout,
    table: Option<String>,
    window_by: Option<WindowBy>,
    lookback: Option<String>,
    #[serde(default)]
    kind: Kind,
    dialect: Option<Dialect>,
    unavailable_value: Option<String>,
    op: Option<String>,
    #[serde(default)]
    op_values: OpValuesToml,
    delete_when: Option<String>,
    order_by: Option<Vec<String>>,
    #[serde(default)]
    on_tie: OnTie,
    commit_time: Option<String>,
    commit_time_unit: Option<TimeUnit>,
    event_time: Option<String>,
    time_zone: Option<String>,
    day_zone: Option<String>,
    full_load: Option<OneOrMany>,
    full_load_at: Option<FullLoadAt>,
    full_load_settle: Option<String>,
    full_load_max_deletes: Option<String>,
    before_image_prefix: Option<String>,
    #[serde(default)]
    on_bad_row: OnBad,
    #[serde(default)]
    on_bad_file: OnBad,
    max_bad_rows: Option<u64>,
}

impl RawToml {
    /// Checks the section; `wrong` makes the error for a key.
    pub(super) fn check(
        mut self,
        key: &[String],
        folder: &Path,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<Raw> {
        let keys = self.take_csv_keys();
        self.be_snapshots(wrong)?;
        let (constants, urls) = self.places(folder, wrong)?;
        let dialect = self.dialect.unwrap_or_default();
        let defaults = dialect.defaults();
        let column = |name: String| column_named(dialect, name);
        let order_by = self.order_by.take().unwrap_or_else(|| defaults.order());
        let order_by: Vec<String> = order_by.into_iter().map(column).collect();
        no_repeats(&order_by)
            .map_err(|name| wrong("raw.order_by", format!("names `{name}` twice")))?;
        let commit_time =
            self.commit_time.take().or_else(|| defaults.commit_time.map(String::from)).map(column);
        let event_time = self.event_time.take().map(column);
        let full_loads = self.full_loads(key, &order_by, commit_time.as_deref(), wrong)?;
        let windows = (self.on_tie, self.window_by);
        check_order_of_files(windows, &order_by, commit_time.as_deref(), wrong)?;
        let mut op = op_column(dialect, self.op, self.op_values, &defaults, wrong)?;
        op.name = op.name.map(column);
        let envelope = EnvelopeKeys {
            dialect,
            unavailable_value: self.unavailable_value,
            key,
            op_values: &op.values,
            has_before_images: self.before_image_prefix.is_some(),
            is_csv: self.format == RawFormat::Csv,
        }
        .check(wrong)?;
        let before_image_prefix = match &envelope {
            Some(_) => (!key.is_empty()).then(|| BEFORE_PREFIX.to_string()),
            None => self.before_image_prefix,
        };
        let condition = self.delete_when.as_ref();
        condition.map_or(Ok(()), |condition| check_delete_when(condition, key, wrong))?;
        let roles = (commit_time.as_deref(), op.name.as_deref());
        check_constants(&constants, roles, &full_loads, wrong)?;
        check_dependent_keys(key, self.window_by, before_image_prefix.as_deref(), wrong)?;
        let max_bad_rows = max_bad_rows(self.max_bad_rows, self.on_bad_row, wrong)?;
        let declared = by_column(self.columns, column, wrong)?;
        let columns = column_types(&declared, wrong)?;
        let csv = keys.check(self.format == RawFormat::Csv, wrong)?;
        check_csv_columns(self.format, &csv, &columns, wrong)?;
        let used = key.iter().chain(&order_by).chain(&commit_time);
        let others = Others {
            is_csv: self.format == RawFormat::Csv,
            has_header: csv.header,
            columns: &columns,
            op: op.name.as_deref().unwrap_or_default(),
            used: used.chain(&event_time).collect(),
        };
        let table = source_table::check(self.layout, self.table.as_deref(), &others, wrong)?;
        Ok(Raw {
            kind: self.kind,
            urls,
            format: self.format,
            columns,
            csv,
            table,
            window_by: self.window_by.unwrap_or(WindowBy::Modified),
            lookback: lookback(self.lookback.as_deref(), wrong)?,
            dialect,
            envelope,
            op,
            delete_when: self.delete_when,
            event_time,
            commit_time,
            commit_time_unit: self.commit_time_unit.or(defaults.commit_time_unit),
            order_by,
            on_tie: self.on_tie,
            time_zone: zone("raw.time_zone", self.time_zone, wrong)?,
            day_zone: zone("raw.day_zone", self.day_zone, wrong)?,
            full_load: full_load_patterns(self.full_load, wrong)?,
            full_loads,
            before_image_prefix,
            on_bad_row: self.on_bad_row,
            on_bad_file: self.on_bad_file,
            max_bad_rows,
            masks: Masks::default(),
            constants,
            unitless: unitless(&declared),
        })
    }

    /// The raw locations, and the columns that are said by where files are.
    fn places(
        &mut self,
        folder: &Path,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<(Constants, Vec<Location>)> {
        let (sources, of_paths) =
            (std::mem::take(&mut self.source), std::mem::take(&mut self.path_columns));
        let (constants, urls) = Constants::check(sources, of_paths, folder, wrong)?;
        Ok((constants, locations(self.url.take(), urls, folder, wrong)?))
    }

    /// With `raw.kind = "snapshot"`, sets the keys that say that every file is a full load at its time, and its rows have no
    /// operations.
    fn be_snapshots(&mut self, wrong: &dyn Fn(&str, String) -> Error) -> Result<()> {
        if self.kind == Kind::Changes {
            return Ok(());
        }
        let refused = |key: &str, why: &str| {
            wrong(key, format!("cannot be set for snapshots: {why}")).hint("leave it out")
        };
        if self.full_load.is_some() {
            return Err(refused("raw.full_load", "every file belongs to one"));
        }
        if self.full_load_at == Some(FullLoadAt::Before) {
            return Err(refused("raw.full_load_at", "each has its time, by `name` or `column`"));
        }
        if self.dialect.is_some_and(|dialect| dialect != Dialect::Flat) {
            return Err(refused("raw.dialect", "their rows have no operations"));
        }
        if self.op.is_some() {
            return Err(refused("raw.op", "their rows have no operations"));
        }
        if !self.op_values.is_empty() {
            return Err(refused("raw.op_values", "their rows have no operations"));
        }
        self.full_load = Some(OneOrMany::One("*".into()));
        self.full_load_at.get_or_insert(FullLoadAt::Name);
        self.dialect = Some(Dialect::Flat);
        let commit_time = self.commit_time.clone();
        if self.full_load_at == Some(FullLoadAt::Column)
            && commit_time.is_none()
            && self.order_by.is_none()
        {
            return Err(wrong("raw.full_load_at", "is `column`, and no column is named".into())
                .hint("name the column with the time of the snapshot in `raw.commit_time`"));
        }
        self.order_by
            .get_or_insert_with(|| vec![commit_time.unwrap_or_else(|| SNAPSHOT_ORDER.into())]);
        Ok(())
    }

    /// The keys of full loads that have a time.
    fn full_loads(
        &self,
        key: &[String],
        order_by: &[String],
        commit_time: Option<&str>,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<FullLoads> {
        let at = self.full_load_at.unwrap_or_default();
        let keys = FullLoadKeys {
            at,
            said_by: match self.kind {
                Kind::Changes => ("raw.full_load_at", at.name()),
                Kind::Snapshot => ("raw.kind", "snapshot"),
            },
            settle: self.full_load_settle.as_deref(),
            max_deletes: self.full_load_max_deletes.as_deref(),
            key,
            order_by,
            commit_time,
        };
        keys.check(wrong)
    }

    /// The keys of CSV files.
    fn take_csv_keys(&mut self) -> CsvKeys {
        CsvKeys {
            header: self.csv_header.take(),
            null: self.csv_null.take(),
            quoted: self.csv_quoted.take(),
            op_in_full_load: self.csv_op_in_full_load.take(),
            delimiter: self.csv_delimiter.take(),
            row_delimiter: self.csv_row_delimiter.take(),
            quote: self.csv_quote.take(),
            escape: self.csv_escape.take(),
            no_sup_value: self.csv_no_sup_value.take(),
            short_lines: self.csv_short_lines.take(),
        }
    }
}

/// The column that a setting names, where a tool writes the files.
fn column_named(dialect: Dialect, name: String) -> String {
    match dialect {
        Dialect::Debezium => envelope::column_of(name),
        _ => name,
    }
}

/// How far before the window a run looks for late inputs.
fn lookback(
    configured: Option<&str>,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<chrono::Duration> {
    parse_duration(configured.unwrap_or("2d"))
        .map_err(|why| wrong("raw.lookback", why).hint("write a duration such as 2d or 6h"))
}

/// How many bad rows one run quarantines.
fn max_bad_rows(
    configured: Option<u64>,
    on_bad_row: OnBad,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<u64> {
    if configured.is_some() && on_bad_row == OnBad::Fail {
        let unused = "has no effect: the first bad row stops the run";
        return Err(wrong("raw.max_bad_rows", unused.into())
            .hint("leave it out, or write raw.on_bad_row = \"quarantine\""));
    }
    Ok(configured.unwrap_or(1000))
}

/// The raw folders, at least one.
fn locations(
    url: Option<OneOrMany>,
    sources: Vec<Location>,
    folder: &Path,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<Vec<Location>> {
    let urls = match (url, sources.is_empty()) {
        (Some(_), false) => {
            return Err(wrong("raw.url", "is set, and there are sources".into())
                .hint("make it a source, with the columns that the others have: [[raw.source]]"));
        }
        (None, false) => return Ok(sources),
        (None, true) => {
            return Err(
                wrong("raw.url", "is missing".into()).hint(crate::config::file::NEEDED_KEYS)
            );
        }
        (Some(url), true) => url.all(),
    };
    if urls.is_empty() {
        return Err(wrong("raw.url", "is empty".into()));
    }
    urls.iter().map(|url| Location::parse(url, folder)).collect()
}

/// Checks what goes with columns that are said by where files are.
fn check_constants(
    constants: &Constants,
    (commit_time, op): (Option<&str>, Option<&str>),
    full_loads: &FullLoads,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<()> {
    if constants.is_empty() {
        return Ok(());
    }
    for (key, column) in [("raw.commit_time", commit_time), ("raw.op", op)] {
        if let Some(column) = column.filter(|column| constants.has(column)) {
            let why = format!("is `{column}`, which each file has only one of");
            return Err(wrong(key, why).hint("name a column of the rows"));
        }
    }
    if full_loads.at.is_time() {
        let why = "ends the rows of before, and those of other tenants with them";
        return Err(wrong("raw.full_load_at", why.into()).hint(
            "leave it out, or give each tenant a pipeline of its own: with columns of sources and folders, full loads are before \
             all changes",
        ));
    }
    Ok(())
}

/// `[raw.columns]` by the columns that its names mean.
fn by_column(
    declared: toml::Table,
    column: impl Fn(String) -> String,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<toml::Table> {
    let mut by_column = toml::Table::new();
    for (name, value) in declared {
        let column = column(name);
        if by_column.insert(column.clone(), value).is_some() {
            return Err(wrong("raw.columns", format!("names `{column}` twice"))
                .hint("write the column once, with `after.` or `__` before it or without"));
        }
    }
    Ok(by_column)
}

/// Checks the condition of deletes.
fn check_delete_when(
    condition: &str,
    key: &[String],
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<()> {
    if condition.trim().is_empty() {
        return Err(wrong("raw.delete_when", "is empty".into())
            .hint("write a condition such as deleted_at IS NOT NULL"));
    }
    if key.is_empty() {
        return Err(wrong("raw.delete_when", "is for tables with a key".into()));
    }
    Ok(())
}

/// The zone of a key; UTC if it is not set.
fn zone(key: &str, zone: Option<String>, wrong: &dyn Fn(&str, String) -> Error) -> Result<Tz> {
    let Some(zone) = zone else {
        return Ok(Tz::UTC);
    };
    zone.parse().map_err(|_| {
        wrong(key, format!("is `{zone}`"))
            .hint("use a name of the IANA time zone database, such as Europe/Berlin")
    })
}

/// The operation column, as the pipeline or the dialect names it.
fn op_column(
    dialect: Dialect,
    name: Option<String>,
    values: OpValuesToml,
    defaults: &Defaults,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<OpColumn> {
    let values = values.check(&defaults.op_values, wrong)?;
    if name.as_deref() == Some("") {
        return Err(wrong("raw.op", "is empty".into())
            .hint("if changes have no operation, write raw.dialect = \"flat\""));
    }
    let has_operations = name.is_some() || dialect.has_operations();
    if !has_operations && values != defaults.op_values {
        let why = "has no effect: changes of the dialect `flat` have no operation";
        return Err(wrong("raw.op_values", why.into()).hint("name their column in `raw.op`"));
    }
    let name = name.or_else(|| defaults.op.map(String::from));
    Ok(OpColumn {
        required: name.is_some(),
        name: name.or_else(|| has_operations.then(|| "Op".into())),
        values,
    })
}

/// Checks the keys that need a column in `raw.order_by`.
fn check_order_of_files(
    (on_tie, window_by): (OnTie, Option<WindowBy>),
    order_by: &[String],
    commit_time: Option<&str>,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<()> {
    if !order_by.is_empty() {
        return Ok(());
    }
    if on_tie == OnTie::Fail {
        let why = "cannot be `fail` without `raw.order_by`: changes are ordered by file and row";
        return Err(wrong("raw.on_tie", why.into()).hint("name columns in `raw.order_by`"));
    }
    if window_by == Some(WindowBy::Commit) && commit_time.is_none() {
        let why = "cannot be `commit` without a column of commit times";
        return Err(wrong("raw.window_by", why.into())
            .hint("set `raw.commit_time`, or use `modified`, `name` or `path`"));
    }
    Ok(())
}

/// The columns that are declared as `TIMESTAMP` with other digits than 3, 6 or 9.
fn unitless(columns: &toml::Table) -> Vec<String> {
    let is_unitless = |value: &toml::Value| {
        let text: String = value.as_str().unwrap_or_default().split_whitespace().collect();
        let is_time = text.to_ascii_uppercase().starts_with("TIMESTAMP");
        is_time && !["(3)", "(6)", "(9)"].iter().any(|digits| text.contains(digits))
    };
    let columns = columns.iter().filter(|(_, value)| is_unitless(value));
    columns.map(|(name, _)| name.clone()).collect()
}

/// Checks the keys that are not allowed, or limited, for a table without a key.
fn check_dependent_keys(
    key: &[String],
    window_by: Option<WindowBy>,
    before_image_prefix: Option<&str>,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<()> {
    if key.is_empty() && window_by == Some(WindowBy::Commit) {
        let why = "cannot be `commit` for a table without a key";
        return Err(wrong("raw.window_by", why.into()).hint(
            "its rows are identified by their file: use `modified`, `name` or `path`, which \
             select files",
        ));
    }
    let why = match before_image_prefix {
        Some(_) if key.is_empty() => "is for tables with a key",
        Some("") => "is empty",
        _ => return Ok(()),
    };
    Err(wrong("raw.before_image_prefix", why.into()))
}

/// The columns of `[raw.columns]` and their types.
fn column_types(
    columns: &toml::Table,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<Vec<(String, DataType)>> {
    let typed = columns.iter().map(|(name, value)| {
        let text = value.as_str().unwrap_or_default();
        let unknown = || {
            let shown = value.as_str().map_or(value.to_string(), String::from);
            wrong(&format!("raw.columns.{name}"), format!("is `{shown}`"))
                .hint(format!("write {NAMES}"))
        };
        Ok((name.clone(), parse_type(text).ok_or_else(unknown)?))
    });
    typed.collect()
}

/// Checks that the columns of CSV files are known.
fn check_csv_columns(
    format: RawFormat,
    csv: &CsvForm,
    columns: &[(String, DataType)],
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<()> {
    if format != RawFormat::Csv || csv.header || !columns.is_empty() {
        return Ok(());
    }
    Err(wrong("raw.columns", "is missing".into()).hint(
        "list the columns of the CSV files in their order, each with its type; or write \
         raw.csv_header = true",
    ))
}

/// The patterns of the names that AWS DMS gives full loads.
pub(crate) const LOADS_OF_DMS: [&str; 2] = ["LOAD*", "SEGMENT*_LOAD*"];

/// The patterns of full loads; by default those of AWS DMS.
fn full_load_patterns(
    patterns: Option<OneOrMany>,
    wrong: &dyn Fn(&str, String) -> Error,
) -> Result<Vec<glob::Pattern>> {
    let patterns = patterns.map_or_else(|| LOADS_OF_DMS.map(String::from).to_vec(), OneOrMany::all);
    let parsed = patterns.iter().map(|pattern| {
        glob::Pattern::new(pattern)
            .map_err(|error| wrong("raw.full_load", format!("is `{pattern}`")).caused_by(error))
    });
    parsed.collect()
}
