//! Reads and checks `pipeline.toml`, before any input or output.
//!
//! Unknown keys are refused with the nearest known one. `--set key=value` overrides any key
//! before the checks. Every key is documented at its field below: meaning, unit, default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::config::check::check;
use crate::config::file::{NEEDED_KEYS, PipelineToml, wrong_key};
use crate::config::known_keys::{PIPELINE_KEYS, refuse_unknown_keys};
use crate::config::overrides::set;
use crate::config::project::{Project, add_defaults, has_key};
use crate::config::questions::refuse_questions;
use crate::error::{Error, Result};
use crate::layout::fnv1a;
use crate::store::Location;

mod catalog;
mod check;
mod compact;
mod constants;
mod csv;
mod dialect;
mod envelope;
mod file;
mod full_loads;
mod kind;
mod known_keys;
mod load;
mod masks;
mod operations;
mod overrides;
mod project;
mod query_columns;
mod questions;
mod raw;
mod source;
mod source_table;
mod time_unit;
mod values;

pub use catalog::{Catalog, CatalogMode};
pub use compact::Compact;
pub use constants::Constants;
pub use csv::CsvForm;
pub use dialect::Dialect;
pub use envelope::{BEFORE_PREFIX, ENVELOPE_PREFIX, Envelope};
pub use full_loads::{FullLoadAt, FullLoads};
pub use kind::Kind;
pub use load::{Load, TargetTable, VerifyMethod, VerifySource};
pub use masks::Masks;
pub(crate) use masks::{covers, unfit};
pub use operations::{OpValues, Operation};
pub(crate) use project::{
    PIPELINE_FILE, PROJECT_FILE, Places, defaults_for, pipelines_under, places_of,
};
pub use project::{file_of, full_path, name_of, pipelines_of, written_name};
pub use query_columns::QueryColumns;
use query_columns::reads;
pub(crate) use questions::UNANSWERED;
pub(crate) use raw::LOADS_OF_DMS;
pub use raw::{OnBad, OnTie, OpColumn, Raw, RawFormat, WindowBy};
pub use source::{Audit, Source, SourceFiles, SourceTables};
pub(crate) use source_table::LINE_COLUMNS;
pub use source_table::{Named, SourceTable};
pub use time_unit::TimeUnit;

/// A pipeline: a folder of SQL and its `pipeline.toml`, checked.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// `name`: the pipeline's own name, which also names its state folder.
    pub name: String,
    /// `key`: the primary-key columns of the source table; empty if it has no key and every change
    /// is a row of its own.
    pub key: Vec<String>,
    /// `keep`, with `keep_deleted`: which rows the curated table holds; default `latest`.
    pub keep: Keep,
    /// `history_columns`, with `keep = "history"`: the columns of `curated.sql` that a change must alter to make a row;
    /// default all.
    pub history_columns: Vec<String>,
    /// `[raw]`: where the change files are and what their columns mean.
    pub raw: Raw,
    /// `[curated]`: the published table.
    pub curated: Curated,
    /// `[[aggregate]]`: the tables per day.
    pub aggregates: Vec<Aggregate>,
    /// `state.url`: the folder of versions, ledger and staging; default
    /// `<curated.url>/../_glueless/<name>`.
    pub state: Location,
    /// `[load]`: the database that the tables are loaded into; none by default.
    pub load: Option<Load>,
    /// `[verify]`: the table of a database that `verify --against postgres` compares with; none by default.
    pub verify: Option<VerifySource>,
    /// `[catalog]`: the catalog in which the tables are registered; none by default.
    pub catalog: Option<Catalog>,
    /// `[compact]`: where the small files of changes are kept as few larger ones.
    pub compact: Compact,
    /// `[limits]`: limits of memory, disk and threads.
    pub limits: Limits,
}

/// The name of the relation that `curated.sql` reads.
pub const LATEST_RELATION: &str = "latest";

/// The query of a pipeline that has none: all columns of [`LATEST_RELATION`].
pub(crate) const ALL_COLUMNS: &str = "SELECT latest.* FROM latest";

/// Which rows the curated table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// One row per live key: its last change.
    Latest,
    /// `keep = "latest"` with `keep_deleted = true`: one row per key, its last insert or update, and whether and
    /// when the key was deleted after it.
    #[serde(skip)]
    LatestAndDeleted,
    /// `keep = "latest"` with `raw.kind = "snapshot"` and no `raw.event_time`: one row per live key, with the day on which
    /// it became as it is.
    #[serde(skip)]
    LatestAltered,
    /// One row per key and day: the last change of that day.
    LatestPerDay,
    /// One row per change that alters the row, with the time at which it begins and the one at which it ends.
    History,
}

/// The column of a history with the time at which a row begins.
pub(crate) const VALID_FROM: &str = "valid_from";
/// The column of a history with the time at which a row ends; null if it has not ended.
pub(crate) const VALID_TO: &str = "valid_to";
/// The column of a history that says whether a row has not ended.
pub(crate) const IS_CURRENT: &str = "is_current";
/// The column of a history that says what has ended a row; null if it has not ended.
pub(crate) const ENDED_BY: &str = "ended_by";
/// The columns of a history that say when a row holds, in their order: the last ones of its table. One that was begun before
/// there was the last does not have it.
pub(crate) const VALIDITY: [&str; 4] = [VALID_FROM, VALID_TO, IS_CURRENT, ENDED_BY];

/// The column of a table with deleted rows that says whether the key of a row is deleted.
pub(crate) const DELETED: &str = "_deleted";
/// The column of a table with deleted rows with the time at which a key was deleted; null if it is not.
pub(crate) const DELETED_AT: &str = "_deleted_at";
/// The columns of a table with deleted rows that say so, in their order: the last ones of the table.
pub(crate) const DELETION: [&str; 2] = [DELETED, DELETED_AT];

impl Keep {
    /// All of them.
    pub(crate) const ALL: [Keep; 5] = [
        Keep::Latest,
        Keep::LatestAndDeleted,
        Keep::LatestAltered,
        Keep::LatestPerDay,
        Keep::History,
    ];

    /// The columns that the table has besides those of `curated.sql`, in their order: its last ones.
    pub(crate) fn own_columns(self) -> &'static [&'static str] {
        match self {
            Keep::Latest | Keep::LatestAltered | Keep::LatestPerDay => &[],
            Keep::LatestAndDeleted => &DELETION,
            Keep::History => &VALIDITY,
        }
    }

    /// Whether a name is that of a column that the table has besides those of `curated.sql`, in any case.
    pub(crate) fn is_own(self, name: &str) -> bool {
        self.own_columns().iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Whether changes of a key are folded apart by their times.
    pub(crate) fn keeps_times(self) -> bool {
        self.keeps_changes() || self == Keep::LatestAndDeleted
    }

    /// Whether each change that alters the row of its key counts, also if it is not the last one.
    pub(crate) fn keeps_changes(self) -> bool {
        matches!(self, Keep::LatestAltered | Keep::History)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keep::Latest => "latest",
            Keep::LatestAndDeleted => "latest-and-deleted",
            Keep::LatestAltered => "latest-altered",
            Keep::LatestPerDay => "latest-per-day",
            Keep::History => "history",
        })
    }
}

/// Settings of the curated table.
#[derive(Clone, Debug)]
pub struct Curated {
    /// `curated.url`: the folder of the table.
    pub url: Location,
    /// `curated.partition_by`: its Hive partition columns, outermost first; default none.
    pub partition_by: Vec<String>,
    /// `curated.sort_by`: the columns by which the rows of a partition are sorted; default none, and
    /// rows are in the order in which changes were folded.
    pub sort_by: Vec<String>,
    /// `curated.format`: `parquet` (default) or `delta`.
    pub format: Format,
    /// `curated.deletion_vectors`: whether removed rows of a Delta table are marked in deletion vectors,
    /// instead of writing their files again; default false.
    pub deletion_vectors: bool,
    /// `curated.retention`: how long a Delta table keeps replaced files, for readers of its earlier
    /// versions; default `7d`.
    pub retention: chrono::Duration,
    /// `curated.file_bytes`: the size at which a partition's next file begins, in bytes or with a
    /// unit; default `256MB`.
    pub file_bytes: u64,
    /// The text of `curated.sql`.
    pub sql: Sql,
}

/// The format of the curated table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Parquet files in Hive folders.
    Parquet,
    /// A Delta table: all changes of a run become visible at once.
    Delta,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Parquet => "parquet",
            Format::Delta => "delta",
        })
    }
}

/// One aggregate: a table computed per day.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// `name`: for messages, the report and `--set aggregate.<name>.url=…`.
    pub name: String,
    /// `sql`: the file with its query, in the pipeline's folder.
    pub sql: Sql,
    /// `url`: the folder of the table.
    pub url: Location,
    /// `day`: its DATE column, which is its partition column.
    pub day: String,
    /// `running`: whether a day depends on all days before it; default false.
    pub running: bool,
    /// `load.table`: the table of the database `[load]` that follows it; none by default.
    pub load_table: Option<TargetTable>,
    /// `catalog.table`: its name in the catalog; default its name, in lower case.
    pub catalog_table: String,
}

impl Aggregate {
    /// The ledger's name for the table. With another URL, day column or query it is another table,
    /// and all of its days are computed.
    pub fn table(&self) -> String {
        let query = self.sql.fingerprint();
        format!("{} by {} in {}, {query}", self.name, self.day, self.url)
    }
}

impl Sql {
    /// The columns of `relation` that the query names.
    pub fn columns_of(&self, relation: &str) -> QueryColumns {
        QueryColumns::of(&self.text, relation)
    }

    /// Whether the query may read a relation.
    pub fn reads(&self, relation: &str) -> bool {
        reads(&self.text, relation)
    }

    /// A hash of the query without comments and repeated white space, so that a comment does not
    /// change the table.
    pub fn fingerprint(&self) -> String {
        let lines = self.text.lines();
        let code = lines.map(|line| line.split("--").next().unwrap_or_default());
        let words = code.flat_map(str::split_whitespace);
        let bytes = words.flat_map(|word| word.bytes().chain([b' ']));
        // A query in a file takes other columns than none.
        let bytes = bytes.chain(self.is_default.then_some(0));
        format!("{:016x}", fnv1a(bytes))
    }
}

/// A query and the file it was read from.
#[derive(Clone, Debug)]
pub struct Sql {
    /// The file's path as the user would name it.
    pub file: String,
    /// The text of the query.
    pub text: String,
    /// Whether there is no such file, and the query takes all columns.
    pub is_default: bool,
}

/// Limits of a run's memory, disk and threads.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `limits.memory`: bytes, or with a unit (`900MB`, `4GiB`), at least 128 MB; default 60 % of the machine's
    /// or container's memory.
    pub memory_bytes: Option<u64>,
    /// `limits.spill_dir`: the folder for spilled data; default the system's temporary folder.
    pub spill_dir: Option<PathBuf>,
    /// `limits.spill_bytes_max`: the most spilled data at a time, in the units of `limits.memory`;
    /// default all of the disk.
    pub spill_bytes_max: Option<u64>,
    /// `limits.threads`: default the number of cores.
    pub threads: Option<usize>,
}

/// The least memory that a run can work with.
pub const MEMORY_BYTES_MIN: u64 = 128_000_000;

impl Pipeline {
    /// Whether an aggregate may read a relation.
    pub fn aggregates_read(&self, relation: &str) -> bool {
        self.aggregates.iter().any(|aggregate| aggregate.sql.reads(relation))
    }

    /// Reads a pipeline's folder or toml file, with the defaults of its project ([`Project`]) and `--set` overrides
    /// (`key=value`) applied.
    ///
    /// # Errors
    /// Usage: no such pipeline, an unknown, missing or wrong key, a missing SQL file, overlapping
    /// URLs.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let file = file_of(path);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Error::usage(format!("no such pipeline: {}", file.display()))
                .hint("name the folder with the pipeline.toml, or the toml file itself")
                .caused_by(error)
        })?;
        Self::of_text(file, &text, overrides)
    }

    /// As [`Pipeline::read`], of the text that a file has, or is to have.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn of_text(file: PathBuf, text: &str, overrides: &[String]) -> Result<Self> {
        let path = full_path(&file)?;
        let table = table_of(&file, text)?;
        refuse_unknown_keys(&table, &file, PIPELINE_KEYS)?;
        let own = overridden(&file, table, overrides, PIPELINE_KEYS)?;
        refuse_questions(&file, &own)?;
        let mut origins = Origins { file, of_project: None };
        let mut table = own.clone();
        if let Some(project) = Project::of(&origins.file, &path)? {
            let name = own.get("name").and_then(Value::as_str).map(String::from);
            if let Some(name) = name.or_else(|| project.name_of(&path)) {
                let defaults = project.defaults(&path, &name, &own)?;
                table.entry("name").or_insert(Value::String(name));
                add_defaults(&mut table, &defaults);
                origins.of_project = Some((project.file, defaults, own));
            }
        }
        let parsed: PipelineToml =
            serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
                let key = error.path().to_string();
                wrong_key(origins.file_of(&key), &error, NEEDED_KEYS)
            })?;
        check(parsed, path.parent().unwrap_or(Path::new("/")), &origins)
    }

    /// Takes the secrets of masks from the environment. Where one is missing, no raw file can be read.
    ///
    /// # Errors
    /// Usage, when a secret is too short.
    pub fn unlock(&mut self, environment: &BTreeMap<String, String>) -> Result<()> {
        self.raw.masks.unlock(environment)
    }

    /// Every location the pipeline writes, with the key that names it.
    pub(crate) fn outputs(&self) -> Vec<(String, &Location)> {
        let mut outputs =
            vec![("curated.url".to_string(), &self.curated.url), ("state.url".into(), &self.state)];
        for aggregate in &self.aggregates {
            outputs.push((format!("aggregate.{}.url", aggregate.name), &aggregate.url));
        }
        outputs
    }
}

/// Where the keys of a pipeline come from.
struct Origins {
    /// The pipeline's file, as the user named it.
    file: PathBuf,
    /// The project's file, its defaults for the pipeline, and the keys that the pipeline or the command line has; `None` if
    /// it belongs to none.
    of_project: Option<(PathBuf, Table, Table)>,
}

impl Origins {
    /// Whether the pipeline's own file, or the command line, has a key of a section.
    fn is_own(&self, section: &str, name: &str) -> bool {
        let Some((_, _, own)) = &self.of_project else { return true };
        own.get(section).and_then(Value::as_table).is_some_and(|own| own.contains_key(name))
    }

    /// The file that a key stands in.
    fn file_of(&self, key: &str) -> &Path {
        // Of a list, the whole key.
        let key = key.split('[').next().unwrap_or(key);
        match &self.of_project {
            Some((project, defaults, own)) if has_key(defaults, key) && !has_key(own, key) => {
                project
            }
            _ => &self.file,
        }
    }
}

/// Parses a toml file's text, applies overrides, and refuses keys that are not among the known ones.
fn parse(
    file: &Path,
    text: &str,
    overrides: &[String],
    known: &'static [&'static str],
) -> Result<Table> {
    overridden(file, table_of(file, text)?, overrides, known)
}

/// Applies overrides to keys, and refuses those that are not among the known ones.
fn overridden(
    file: &Path,
    mut table: Table,
    overrides: &[String],
    known: &'static [&'static str],
) -> Result<Table> {
    for text in overrides {
        set(&mut table, text, known)?;
    }
    refuse_unknown_keys(&table, file, known)?;
    Ok(table)
}

/// Parses a toml file's text.
fn table_of(file: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        Error::usage(format!(
            "{} is not valid TOML: line {line}: {}",
            file.display(),
            error.message().replace('\n', " ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "p"
        key = ["id"]
        [raw]
        url = "raw"
        order_by = ["ts"]
        [curated]
        url = "lake/curated"
        partition_by = ["event_dt"]
        [[aggregate]]
        name = "daily"
        sql = "daily.sql"
        url = "lake/daily"
        day = "dt"
    "#;

    fn read(toml: &str, overrides: &[&str]) -> Result<Pipeline> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("pipeline.toml"), toml).expect("written");
        std::fs::write(folder.path().join("curated.sql"), "SELECT 1").expect("written");
        std::fs::write(folder.path().join("daily.sql"), "SELECT 1").expect("written");
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        Pipeline::read(folder.path(), &overrides)
    }

    fn refusal(toml: &str, overrides: &[&str]) -> String {
        let error = read(toml, overrides).expect_err("refused");
        assert_eq!(error.kind, crate::error::Kind::Usage);
        let text = error.to_string();
        let message =
            text.rsplit_once("pipeline.toml: ").map_or(text.clone(), |(_, message)| message.into());
        format!("{message} / {}", error.hint.unwrap_or_default())
    }

    #[test]
    fn a_comment_does_not_change_a_fingerprint_and_code_does() {
        let fingerprint = |text: &str| {
            let (file, text) = ("a.sql".into(), text.into());
            Sql { file, text, is_default: false }.fingerprint()
        };
        let plain = fingerprint("SELECT a\nFROM latest");
        assert_eq!(plain, fingerprint("-- a comment\nSELECT a   FROM latest -- another\n"));
        assert_ne!(plain, fingerprint("SELECT b FROM latest"));
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let pipeline = read(GOOD, &[]).expect("good");
        assert_eq!(pipeline.keep, Keep::Latest);
        assert_eq!(pipeline.raw.window_by, WindowBy::Modified);
        assert_eq!(pipeline.raw.lookback, chrono::Duration::days(2));
        assert_eq!(
            (pipeline.raw.op.name.as_deref(), pipeline.raw.op.required),
            (Some("Op"), false)
        );
        assert_eq!((&pipeline.raw.commit_time, &pipeline.raw.event_time), (&None, &None));
        let is_full_load = |path: &str| pipeline.raw.is_full_load(0, path);
        assert!(is_full_load("LOAD00000001.parquet"));
        assert!(is_full_load("part/SEGMENT1_LOAD0000000A.parquet"));
        assert!(!is_full_load("LOAD/20200101-000000000.parquet"));
        assert_eq!(pipeline.curated.file_bytes, 256 << 20);
        assert!(pipeline.state.to_string().ends_with("/lake/_glueless/p"), "{}", pipeline.state);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let toml = GOOD.replace("order_by", "window_bi = \"name\"\norder_by");
        assert_eq!(
            refusal(&toml, &[]),
            "unknown key `raw.window_bi` / did you mean `raw.window_by`?"
        );
        assert_eq!(
            refusal(GOOD, &["curatd.url=x"]),
            "unknown key `curatd` / did you mean `curated`?"
        );
        let toml = GOOD.replace("day = ", "dai = ");
        assert_eq!(
            refusal(&toml, &[]),
            "unknown key `aggregate.dai` / did you mean `aggregate.day`?"
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let toml = GOOD.replace("url = \"raw\"", "");
        assert!(refusal(&toml, &[]).contains("`raw.url` is missing"), "{}", refusal(&toml, &[]));
    }

    #[test]
    fn set_overrides_any_key() {
        let pipeline = read(
            GOOD,
            &[
                "raw.url=s3://b/raw",
                "key=[\"a\", \"b\"]",
                "limits.memory=900MB",
                "aggregate.daily.url=/d",
                "raw.columns.v=bigint",
                "keep=latest-per-day",
            ],
        )
        .expect("good");
        assert_eq!(pipeline.raw.urls[0].to_string(), "s3://b/raw");
        assert_eq!(pipeline.key, ["a", "b"]);
        assert_eq!(pipeline.limits.memory_bytes, Some(900_000_000));
        assert_eq!(pipeline.aggregates[0].url.to_string(), "/d");
        assert_eq!(pipeline.keep, Keep::LatestPerDay);
        assert_eq!(pipeline.raw.columns[0].0, "v");
    }

    #[test]
    fn a_pattern_with_a_slash_is_matched_with_the_whole_url() {
        let set = ["raw.url=[\"a/full\", \"a/cdc\"]", "raw.full_load=[\"LOAD*\", \"*/full/*\"]"];
        let raw = read(GOOD, &set).expect("good").raw;
        assert!(raw.is_full_load(0, "x/part-0.parquet") && raw.is_full_load(1, "LOAD1.parquet"));
        assert!(!raw.is_full_load(1, "part-0.parquet"));
    }

    #[test]
    fn columns_keep_their_order() {
        let columns = "raw.columns={z = \"bigint\", a = \"decimal(10, 2)\", m = \"text\"}";
        let raw = read(GOOD, &["raw.format=csv", columns]).expect("good").raw;
        let names: Vec<&str> = raw.columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["z", "a", "m"]);
    }

    #[test]
    fn urls_must_not_overlap() {
        assert!(refusal(GOOD, &["curated.url=raw/x"]).contains("overlaps `raw.url`"));
        assert!(
            refusal(GOOD, &["aggregate.daily.url=lake/curated"]).contains("overlaps `curated.url`")
        );
        assert!(refusal(GOOD, &["state.url=lake/curated/s"]).contains("overlaps `curated.url`"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (set, expected) in [
            ("key=[\"a\", \"a\"]", "`key` names `a` twice"),
            ("raw.time_zone=Mars", "`raw.time_zone` is `Mars`"),
            ("raw.day_zone=+02:00", "`raw.day_zone` is `+02:00`"),
            ("raw.lookback=soon", "`raw.lookback`"),
            ("limits.memory=lots", "`limits.memory` is"),
            ("limits.threads=0", "`limits.threads` is 0"),
            ("limits.spill_bytes_max=all", "`limits.spill_bytes_max` is"),
            ("raw.window_by=day", "unknown variant `day`"),
            ("raw.format=xml", "unknown variant `xml`"),
            ("raw.format=csv", "`raw.columns` is missing"),
            ("raw.csv_null=NULL", "`raw.csv_null` is for CSV"),
            ("raw.columns={id = \"bigint\", x = \"money\"}", "`raw.columns.x` is `money`"),
            ("raw.max_bad_rows=5", "`raw.max_bad_rows` has no effect"),
            ("raw.on_bad_row=drop", "unknown variant `drop`"),
            ("raw.before_image_prefix=", "`raw.before_image_prefix` is empty"),
            ("curated.file_bytes=0", "`curated.file_bytes` is"),
        ] {
            let message = refusal(GOOD, &[set]);
            assert!(message.contains(expected), "{set}: {message}");
        }
    }

    #[test]
    fn a_bucket_root_needs_a_state_url() {
        assert!(refusal(GOOD, &["curated.url=s3://bucket"]).contains("`state.url` is missing"));
    }
}
