//! `pipeline.toml`: read, checked and turned into values, before any input or output.
//!
//! Unknown keys are refused with the nearest known one. `--set key=value` overrides any key
//! before the checks. Every key is documented at its field below: meaning, unit, default.

use std::fmt;
use std::path::{Path, PathBuf};

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::layout::fnv1a;
use crate::store::Location;
use crate::window::parse_duration;

pub use raw::{CsvForm, OnBad, OnTie, OpColumn, Raw, RawFormat, WindowBy};

mod raw;

/// A pipeline: a folder of SQL and its `pipeline.toml`, checked.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// `name`: the pipeline's own name, which also names its state folder.
    pub name: String,
    /// `key`: the primary-key columns of the source table; none where it has no key, and every
    /// change is a row of its own.
    pub key: Vec<String>,
    /// `keep`: what the curated table holds; default `latest`.
    pub keep: Keep,
    /// `[raw]`: where the change files are and what their columns mean.
    pub raw: Raw,
    /// `[curated]`: the published table.
    pub curated: Curated,
    /// `[[aggregate]]`: the tables per day.
    pub aggregates: Vec<Aggregate>,
    /// `state.url`: where versions, ledger and staging are kept; default
    /// `<curated.url>/../_glueless/<name>`.
    pub state: Location,
    /// `[limits]`: what a run may use.
    pub limits: Limits,
}

/// What the curated table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// One row per live key: its last change.
    Latest,
    /// One row per key and day: the last change of that day.
    LatestPerDay,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keep::Latest => "latest",
            Keep::LatestPerDay => "latest-per-day",
        })
    }
}

/// The curated table.
#[derive(Clone, Debug)]
pub struct Curated {
    /// `curated.url`: the folder of the table.
    pub url: Location,
    /// `curated.partition_by`: its Hive partition columns, outermost first; default none.
    pub partition_by: Vec<String>,
    /// `curated.format`: `parquet` (default) or `delta`.
    pub format: Format,
    /// `curated.retention`: how long a Delta table keeps files that were replaced, for those who
    /// read an earlier version of it; default `7d`.
    pub retention: chrono::Duration,
    /// `curated.file_bytes`: the size from which a partition gets another file, in bytes or with
    /// a unit; default `256MB`.
    pub file_bytes: u64,
    /// The text of `curated.sql`.
    pub sql: Sql,
}

/// What the curated table is to its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Parquet files in Hive folders.
    Parquet,
    /// A Delta table: a run's changes to all partitions are seen at once.
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

/// One table per day.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// `name`: for messages, the report and `--set aggregate.<name>.url=…`.
    pub name: String,
    /// `sql`: the file with its query, in the pipeline's folder.
    pub sql: Sql,
    /// `url`: the folder of the table.
    pub url: Location,
    /// `day`: its DATE column, the partition column.
    pub day: String,
    /// `running`: whether a day depends on all days before it; default false.
    pub running: bool,
}

impl Aggregate {
    /// The ledger's name for the table: another place, day column or query makes it another
    /// table, all of whose days are computed.
    pub fn table(&self) -> String {
        let query = self.sql.fingerprint();
        format!("{} by {} in {}, {query}", self.name, self.day, self.url)
    }
}

impl Sql {
    /// The names in the query, as the engine takes them: as they are in quotes, otherwise in lower
    /// case.
    pub fn names(&self) -> Vec<String> {
        let tokens = Tokenizer::new(&GenericDialect {}, &self.text).tokenize();
        let name = |token| match token {
            Token::Word(word) if word.quote_style.is_some() => Some(word.value),
            Token::Word(word) => Some(word.value.to_lowercase()),
            _ => None,
        };
        // One that cannot be taken apart is refused when it is planned.
        tokens
            .unwrap_or_default()
            .into_iter()
            .filter_map(name)
            .collect()
    }

    /// A hash of the query with its comments and white space folded, so that a remark does not
    /// change a pipeline.
    pub fn fingerprint(&self) -> String {
        let lines = self.text.lines();
        let code = lines.map(|line| line.split("--").next().unwrap_or_default());
        let words = code.flat_map(str::split_whitespace);
        let bytes = words.flat_map(|word| word.bytes().chain([b' ']));
        format!("{:016x}", fnv1a(bytes))
    }
}

/// A query and the file it was read from.
#[derive(Clone, Debug)]
pub struct Sql {
    /// The file's path as the user would name it.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// What a run may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `limits.memory`: bytes, or with a unit (`900MB`, `4GiB`), at least 128 MB; default 60 % of the machine's
    /// or container's memory.
    pub memory_bytes: Option<u64>,
    /// `limits.spill_dir`: the folder for spilled data; default the system's temporary folder.
    pub spill_dir: Option<PathBuf>,
    /// `limits.spill_bytes_max`: how much spilled data there may be at a time, as `limits.memory`
    /// is written; default as much as the disk holds.
    pub spill_bytes_max: Option<u64>,
    /// `limits.threads`: default the number of cores.
    pub threads: Option<usize>,
}

#[derive(Deserialize)]
struct PipelineToml {
    name: String,
    key: Vec<String>,
    #[serde(default = "latest")]
    keep: Keep,
    raw: raw::RawToml,
    curated: CuratedToml,
    #[serde(default)]
    aggregate: Vec<AggregateToml>,
    #[serde(default)]
    state: StateToml,
    #[serde(default)]
    limits: LimitsToml,
}

fn latest() -> Keep {
    Keep::Latest
}

#[derive(Deserialize)]
struct CuratedToml {
    url: String,
    #[serde(default)]
    partition_by: Vec<String>,
    format: Option<Format>,
    retention: Option<String>,
    file_bytes: Option<Value>,
}

#[derive(Deserialize)]
struct AggregateToml {
    name: String,
    sql: String,
    url: String,
    day: String,
    #[serde(default)]
    running: bool,
}

#[derive(Default, Deserialize)]
struct StateToml {
    url: Option<String>,
}

#[derive(Default, Deserialize)]
struct LimitsToml {
    memory: Option<Value>,
    spill_dir: Option<PathBuf>,
    spill_bytes_max: Option<Value>,
    threads: Option<usize>,
}

/// A run cannot do with less memory.
pub const MEMORY_BYTES_MIN: u64 = 128_000_000;

/// Every key of a pipeline, `*` standing for an aggregate's name or place.
const KNOWN_KEYS: &[&str] = &[
    "name",
    "key",
    "keep",
    "raw.url",
    "raw.format",
    "raw.window_by",
    "raw.lookback",
    "raw.op",
    "raw.order_by",
    "raw.commit_time",
    "raw.event_time",
    "raw.time_zone",
    "raw.full_load",
    "raw.columns",
    "raw.csv_header",
    "raw.csv_null",
    "raw.csv_quoted",
    "raw.csv_op_in_full_load",
    "raw.before_image_prefix",
    "raw.on_tie",
    "raw.on_bad_row",
    "raw.on_bad_file",
    "raw.max_bad_rows",
    "curated.url",
    "curated.partition_by",
    "curated.format",
    "curated.retention",
    "curated.file_bytes",
    "aggregate.name",
    "aggregate.sql",
    "aggregate.url",
    "aggregate.day",
    "aggregate.running",
    "state.url",
    "limits.memory",
    "limits.spill_dir",
    "limits.spill_bytes_max",
    "limits.threads",
];

/// The hint where one of them is missing.
const NEEDED_KEYS: &str = "a pipeline has at least name, key, raw.url, raw.order_by and \
                           curated.url; an aggregate name, sql, url and day";

impl Pipeline {
    /// Reads a pipeline's folder or toml file, with `--set` overrides (`key=value`) applied.
    ///
    /// # Errors
    /// Usage: no such pipeline, an unknown, missing or wrong key, a missing SQL file, places
    /// that overlap.
    pub fn read(place: &Path, overrides: &[String]) -> Result<Self> {
        let file = if place.is_dir() {
            place.join("pipeline.toml")
        } else {
            place.to_path_buf()
        };
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Error::usage(format!("no such pipeline: {}", file.display()))
                .hint("name the folder that holds pipeline.toml, or the toml file itself")
                .caused_by(error)
        })?;
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().matches('\n').count() + 1;
            Error::usage(format!(
                "{} is not valid TOML: line {line}: {}",
                file.display(),
                error.message().replace('\n', " ")
            ))
        })?;
        for text in overrides {
            set(&mut table, text)?;
        }
        refuse_unknown_keys(&table, &file)?;
        let read: PipelineToml = serde_path_to_error::deserialize(Value::Table(table))
            .map_err(|error| wrong_key(&file, &error))?;
        let folder = std::path::absolute(&file)
            .map_err(|error| Error::usage("cannot find the current folder").caused_by(error))?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        check(read, folder, &file)
    }

    /// Every location the pipeline writes, with the key that names it.
    fn outputs(&self) -> Vec<(String, &Location)> {
        let mut outputs = vec![
            ("curated.url".to_string(), &self.curated.url),
            ("state.url".into(), &self.state),
        ];
        for aggregate in &self.aggregates {
            outputs.push((format!("aggregate.{}.url", aggregate.name), &aggregate.url));
        }
        outputs
    }
}

/// A key that is missing or has a value it cannot have.
fn wrong_key(file: &Path, error: &serde_path_to_error::Error<toml::de::Error>) -> Error {
    let told = error.inner().message().replace('\n', " ");
    let path = error.path().to_string();
    let missing = told.strip_prefix("missing field `");
    let (section, shown) = (path.trim_start_matches('.'), file.display());
    match missing.and_then(|rest| rest.strip_suffix('`')) {
        Some(key) if section.is_empty() => Error::usage(format!("{shown}: `{key}` is missing")),
        Some(key) => Error::usage(format!("{shown}: `{section}.{key}` is missing")),
        None => {
            let wrong = Error::usage(format!("{shown}: `{section}`: {told}"));
            return match told.contains("expected a sequence") {
                true => wrong.hint("write a list: [\"a\", \"b\"]"),
                false => wrong,
            };
        }
    }
    .hint(NEEDED_KEYS)
}

fn check(read: PipelineToml, folder: &Path, file: &Path) -> Result<Pipeline> {
    let shown = file.display();
    let wrong = |key: &str, why: String| Error::usage(format!("{shown}: `{key}` {why}"));
    let shown_folder = file.parent().unwrap_or(Path::new(""));

    if read.name.is_empty() || read.name.contains(['/', '\\', '%']) || read.name.starts_with('.') {
        return Err(wrong("name", format!("is `{}`", read.name))
            .hint("use letters, digits, `_` and `-`: it names a folder"));
    }
    no_repeats(&read.key).map_err(|name| wrong("key", format!("names `{name}` twice")))?;
    no_repeats(&read.curated.partition_by)
        .map_err(|name| wrong("curated.partition_by", format!("names `{name}` twice")))?;
    let format = read.curated.format.unwrap_or(Format::Parquet);
    if read.curated.retention.is_some() && format != Format::Delta {
        let unused = "is for Delta tables: in others, replaced files go at once";
        return Err(wrong("curated.retention", unused.into())
            .hint("leave it out, or write curated.format = \"delta\""));
    }

    let raw = read.raw.check(&read.key, folder, &wrong)?;

    let curated = Curated {
        url: Location::parse(&read.curated.url, folder)?,
        partition_by: read.curated.partition_by,
        format,
        retention: parse_duration(read.curated.retention.as_deref().unwrap_or("7d")).map_err(
            |why| wrong("curated.retention", why).hint("write a duration such as 7d or 6h"),
        )?,
        file_bytes: match read.curated.file_bytes {
            None => 256 << 20,
            Some(value) => bytes(&value)
                .filter(|bytes| *bytes > 0)
                .ok_or_else(|| wrong("curated.file_bytes", format!("is `{value}`")))?,
        },
        sql: read_sql(shown_folder, "curated.sql")?,
    };
    let mut aggregates = Vec::new();
    for aggregate in read.aggregate {
        aggregates.push(Aggregate {
            sql: read_sql(shown_folder, &aggregate.sql)?,
            url: Location::parse(&aggregate.url, folder)?,
            name: aggregate.name,
            day: aggregate.day,
            running: aggregate.running,
        });
    }
    let names: Vec<String> = aggregates
        .iter()
        .map(|aggregate| aggregate.name.clone())
        .collect();
    no_repeats(&names).map_err(|name| wrong("aggregate.name", format!("`{name}` stands twice")))?;

    let state = match read.state.url {
        Some(url) => Location::parse(&url, folder)?,
        None => curated
            .url
            .sibling("_glueless")
            .map(|beside| beside.join(&read.name))
            .ok_or_else(|| {
                wrong(
                    "state.url",
                    format!("is missing, and {} is a root", curated.url),
                )
                .hint("say where the state may be kept")
            })?,
    };
    if state.url().path().contains("%25") {
        return Err(
            wrong("state.url", format!("({state}) has a `%` in its path"))
                .hint("Delta tables cannot be kept there: set `state.url`"),
        );
    }
    let size = |key: &str, value: Option<Value>, least: u64, hint: &str| {
        let read = |value: Value| {
            let found = bytes(&value).filter(|bytes| *bytes >= least);
            found.ok_or_else(|| wrong(key, format!("is `{value}`")).hint(hint))
        };
        value.map(read).transpose()
    };
    let limits = Limits {
        memory_bytes: size(
            "limits.memory",
            read.limits.memory,
            MEMORY_BYTES_MIN,
            "write 900MB or 4GiB; at least 128MB",
        )?,
        spill_dir: read.limits.spill_dir.map(|dir| folder.join(dir)),
        spill_bytes_max: size(
            "limits.spill_bytes_max",
            read.limits.spill_bytes_max,
            0,
            "write 900MB or 40GiB",
        )?,
        threads: match read.limits.threads {
            Some(0) => return Err(wrong("limits.threads", "is 0".into())),
            threads => threads,
        },
    };
    let pipeline = Pipeline {
        name: read.name,
        key: read.key,
        keep: read.keep,
        raw,
        curated,
        aggregates,
        state,
        limits,
    };
    let outputs = pipeline.outputs();
    for (position, (key, place)) in outputs.iter().enumerate() {
        let raw = pipeline.raw.urls.iter().map(|url| ("raw.url", url));
        let earlier = outputs[..position]
            .iter()
            .map(|(key, place)| (key.as_str(), *place));
        if let Some((other, at)) = raw.chain(earlier).find(|(_, at)| at.overlaps(place)) {
            return Err(wrong(key, format!("({place}) overlaps `{other}` ({at})"))
                .hint("give each its own folder, none inside another"));
        }
    }
    Ok(pipeline)
}

fn no_repeats(names: &[String]) -> Result<(), String> {
    match names
        .iter()
        .enumerate()
        .find(|(place, name)| names[..*place].contains(name))
    {
        Some((_, name)) => Err(name.clone()),
        None => Ok(()),
    }
}

fn read_sql(folder: &Path, name: &str) -> Result<Sql> {
    let file = folder.join(name);
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Error::usage(format!("cannot read {}", file.display())).caused_by(error)
    })?;
    Ok(Sql {
        file: file.display().to_string(),
        text,
    })
}

/// A number of bytes: an integer, or text with a unit, decimal (`kB`, `MB`, `GB`, `TB`) or
/// binary (`KiB`, `MiB`, `GiB`, `TiB`).
fn bytes(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Integer(number) => return u64::try_from(*number).ok(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Applies one `key=value`. A value that is not TOML is taken as text.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Error::usage(format!("`--set {text}` has no `=`")).hint("write --set key=value")
    })?;
    let key = key.trim();
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed
            .remove("v")
            .unwrap_or_else(|| Value::String(value.into())),
        Err(_) => Value::String(value.into()),
    };
    let parts: Vec<&str> = key.split('.').collect();
    let unknown = |name: &str| {
        Error::usage(format!(
            "`--set {key}`: there is no aggregate named `{name}`"
        ))
    };
    match parts.as_slice() {
        ["aggregate", name, last] => {
            let aggregates = table.get_mut("aggregate").and_then(Value::as_array_mut);
            let found = aggregates
                .into_iter()
                .flatten()
                .filter_map(Value::as_table_mut)
                .find(|one| one.get("name").and_then(Value::as_str) == Some(name))
                .ok_or_else(|| unknown(name))?;
            found.insert((*last).into(), value);
        }
        ["raw", "columns", column] => {
            let mut inner = table;
            for name in ["raw", "columns"] {
                let entry = inner.entry(name);
                let entry = entry.or_insert_with(|| Value::Table(Table::new()));
                let wrong = || unknown_key(key, "--set");
                inner = entry.as_table_mut().ok_or_else(wrong)?;
            }
            inner.insert((*column).into(), value);
        }
        [section, last] => {
            let entry = table
                .entry(*section)
                .or_insert_with(|| Value::Table(Table::new()));
            match entry.as_table_mut() {
                Some(section) => section.insert((*last).into(), value),
                None => return Err(unknown_key(key, "--set")),
            };
        }
        [last] => {
            table.insert((*last).into(), value);
        }
        _ => return Err(unknown_key(key, "--set")),
    }
    Ok(())
}

fn refuse_unknown_keys(table: &Table, file: &Path) -> Result<()> {
    fn walk(prefix: &str, table: &Table, place: &str) -> Result<()> {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            let is_section = KNOWN_KEYS.iter().any(|known| {
                known
                    .strip_prefix(key.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
            });
            match value {
                // Its keys are columns.
                Value::Table(_) if key == "raw.columns" => {}
                Value::Table(inner) if is_section => walk(&key, inner, place)?,
                Value::Array(many) if is_section => {
                    for inner in many.iter().filter_map(Value::as_table) {
                        walk(&key, inner, place)?;
                    }
                }
                _ if KNOWN_KEYS.contains(&key.as_str()) || is_section => {}
                _ => return Err(unknown_key(&key, place)),
            }
        }
        Ok(())
    }
    walk("", table, &file.display().to_string())
}

fn unknown_key(key: &str, place: &str) -> Error {
    let nearest = KNOWN_KEYS
        .iter()
        .chain(["raw", "curated", "aggregate", "state", "limits"].iter())
        .min_by_key(|known| strsim::damerau_levenshtein(known, key))
        .copied()
        .unwrap_or_default();
    Error::usage(format!("{place}: unknown key `{key}`")).hint(format!("did you mean `{nearest}`?"))
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
        let told = text
            .rsplit_once("pipeline.toml: ")
            .map_or(text.clone(), |(_, told)| told.into());
        format!("{told} / {}", error.hint.unwrap_or_default())
    }

    #[test]
    fn a_remark_does_not_change_a_pipeline_and_code_does() {
        let fingerprint = |text: &str| {
            let (file, text) = ("a.sql".into(), text.into());
            Sql { file, text }.fingerprint()
        };
        let plain = fingerprint("SELECT a\nFROM latest");
        assert_eq!(
            plain,
            fingerprint("-- a remark\nSELECT a   FROM latest -- another\n")
        );
        assert_ne!(plain, fingerprint("SELECT b FROM latest"));
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let pipeline = read(GOOD, &[]).expect("good");
        assert_eq!(pipeline.keep, Keep::Latest);
        assert_eq!(pipeline.raw.window_by, WindowBy::Modified);
        assert_eq!(pipeline.raw.lookback, chrono::Duration::days(2));
        assert_eq!(
            (pipeline.raw.op.name.as_str(), pipeline.raw.op.required),
            ("Op", false)
        );
        assert_eq!(
            (
                pipeline.raw.commit_time.as_str(),
                pipeline.raw.event_time.as_str()
            ),
            ("ts", "ts")
        );
        let is_full_load = |path: &str| pipeline.raw.is_full_load(0, path);
        assert!(is_full_load("LOAD00000001.parquet"));
        assert!(is_full_load("part/SEGMENT1_LOAD0000000A.parquet"));
        assert!(!is_full_load("LOAD/20200101-000000000.parquet"));
        assert_eq!(pipeline.curated.file_bytes, 256 << 20);
        assert!(
            pipeline.state.to_string().ends_with("/lake/_glueless/p"),
            "{}",
            pipeline.state
        );
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
        let toml = GOOD.replace("order_by = [\"ts\"]", "");
        assert!(
            refusal(&toml, &[]).contains("`raw.order_by` is missing"),
            "{}",
            refusal(&toml, &[])
        );
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
        let set = [
            "raw.url=[\"a/full\", \"a/cdc\"]",
            "raw.full_load=[\"LOAD*\", \"*/full/*\"]",
        ];
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
    fn places_must_not_overlap() {
        assert!(refusal(GOOD, &["curated.url=raw/x"]).contains("overlaps `raw.url`"));
        assert!(
            refusal(GOOD, &["aggregate.daily.url=lake/curated"]).contains("overlaps `curated.url`")
        );
        assert!(refusal(GOOD, &["state.url=lake/curated/s"]).contains("overlaps `curated.url`"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (set, told) in [
            ("key=[\"a\", \"a\"]", "`key` names `a` twice"),
            ("raw.time_zone=Mars", "`raw.time_zone` is `Mars`"),
            ("raw.lookback=soon", "`raw.lookback`"),
            ("limits.memory=lots", "`limits.memory` is"),
            ("limits.threads=0", "`limits.threads` is 0"),
            ("limits.spill_bytes_max=all", "`limits.spill_bytes_max` is"),
            ("raw.window_by=day", "unknown variant `day`"),
            ("raw.format=xml", "unknown variant `xml`"),
            ("raw.format=csv", "`raw.columns` is missing"),
            ("raw.csv_null=NULL", "`raw.csv_null` is for CSV"),
            (
                "raw.columns={id = \"bigint\", x = \"money\"}",
                "`raw.columns.x` is `money`",
            ),
            ("raw.max_bad_rows=5", "`raw.max_bad_rows` has no use"),
            ("raw.on_bad_row=drop", "unknown variant `drop`"),
            (
                "raw.before_image_prefix=",
                "`raw.before_image_prefix` is empty",
            ),
            ("curated.file_bytes=0", "`curated.file_bytes` is"),
        ] {
            let said = refusal(GOOD, &[set]);
            assert!(said.contains(told), "{set}: {said}");
        }
    }

    #[test]
    fn a_bucket_root_needs_a_state_url() {
        assert!(refusal(GOOD, &["curated.url=s3://bucket"]).contains("`state.url` is missing"));
    }
}
