//! A source: a database that `capture` reads, in a toml file of its own.

use std::path::Path;

use chrono::Duration;
use serde::Deserialize;
use toml::Value;

use crate::config::check::Checks;
use crate::config::file::{LimitsToml, wrong_key};
use crate::config::known_keys::SOURCE_KEYS;
use crate::config::{Limits, Origins, TargetTable, parse};
use crate::error::{Error, Result};
use crate::store::Location;
use crate::window::parse_duration;

/// The size of files by default.
const FILE_BYTES: u64 = 32_000_000;
/// The overlap of extracts by default.
const OVERLAP: &str = "15m";

/// A source, checked.
#[derive(Clone, Debug)]
pub struct Source {
    /// `name`: the source's own name.
    pub name: String,
    /// `url_env`: the environment variable with the URL of the PostgreSQL database.
    pub url_env: String,
    /// `tables`: the tables to capture, without those of `exclude`.
    pub tables: SourceTables,
    /// `to`: the folder below which `schema/table/` get the files.
    pub to: Location,
    /// `slot`: the replication slot; default `glueless_<name>`. The first capture makes it. Empty with
    /// `mode = "audit"`.
    pub slot: String,
    /// `publication`: the publication; default the slot's name. It is made if it is missing. Empty with
    /// `mode = "audit"`.
    pub publication: String,
    /// What `mode = "audit"` reads by; `None` with `mode = "log"`, the default.
    pub audit: Option<Audit>,
    /// How files are written.
    pub files: SourceFiles,
    /// `text_columns`: columns to write as text, `schema.table.column`; default none.
    pub text_columns: Vec<String>,
    /// `limits.memory` and `limits.threads`, as those of a pipeline.
    pub limits: Limits,
}

/// The column by which extracts find the rows that have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// `column`: the column with the time at which a row was last changed.
    pub column: String,
    /// `overlap`: how far before the newest time an extract begins to read; default `15m`.
    pub overlap: Duration,
}

/// How the files of a source are written.
#[derive(Clone, Copy, Debug)]
pub struct SourceFiles {
    /// `file_bytes`: the size at which a table's next file begins, in bytes or with a unit; default
    /// `32MB`.
    pub file_bytes: u64,
    /// `compression`: `zstd` (default) or `snappy`.
    pub is_zstd: bool,
}

/// The tables of a source: `schema.table`, or `schema.*` for all of a schema but for those that are excluded.
/// Names are taken as they are written.
#[derive(Clone, Debug)]
pub struct SourceTables {
    wanted: Vec<TargetTable>,
    excluded: Vec<TargetTable>,
}

/// The name that stands for all tables of a schema.
const ALL: &str = "*";

impl SourceTables {
    /// Whether a table is one of them.
    pub fn include(&self, schema: &str, table: &str) -> bool {
        let is_it = |one: &TargetTable| one.schema == schema && one.name == table;
        let is_wanted = |one: &TargetTable| is_it(one) || (one.schema == schema && one.name == ALL);
        self.wanted.iter().any(is_wanted) && !self.excluded.iter().any(is_it)
    }

    /// Those that are excluded.
    pub fn excluded(&self) -> &[TargetTable] {
        &self.excluded
    }

    /// Those that are named one by one: schema and name.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = self.wanted.iter().filter(|one| one.name != ALL);
        named.map(|one| (one.schema.as_str(), one.name.as_str()))
    }

    /// Their schemas; one can be repeated.
    pub fn schemas(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().map(|one| one.schema.as_str())
    }
}

#[derive(Deserialize)]
struct SourceToml {
    name: String,
    url_env: String,
    tables: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    to: String,
    #[serde(default)]
    mode: Mode,
    column: Option<String>,
    overlap: Option<String>,
    slot: Option<String>,
    publication: Option<String>,
    file_bytes: Option<Value>,
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    text_columns: Vec<String>,
    #[serde(default)]
    limits: LimitsToml,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Compression {
    #[default]
    Zstd,
    Snappy,
}

/// What the changes of tables are read from.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// The log of the database.
    #[default]
    Log,
    /// The tables, by a column with the time of the last change.
    Audit,
}

/// The hint for a missing key.
const NEEDED_KEYS: &str = "a source needs name, url_env, tables and to";

impl Source {
    /// Reads a source's toml file, with `--set` overrides (`key=value`) applied.
    ///
    /// # Errors
    /// Usage: no such file, an unknown, missing or wrong key.
    pub fn read(file: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::usage(format!("no such source: {}", file.display()))
                .hint("name the toml file of a source: docs/capture.md")
                .caused_by(error)
        })?;
        let table = parse(file, &text, overrides, SOURCE_KEYS)?;
        let parsed: SourceToml = serde_path_to_error::deserialize(Value::Table(table))
            .map_err(|error| wrong_key(file, &error, NEEDED_KEYS))?;
        let path = std::path::absolute(file)
            .map_err(|error| Error::usage("cannot find the current folder").caused_by(error))?;
        let origins = Origins { file: file.to_path_buf(), of_project: None };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let checks = Checks { folder, origins: &origins };
        parsed.check(&checks)
    }
}

impl SourceToml {
    /// The slot and the publication of `mode = "log"`.
    fn check_log(&self, checks: &Checks<'_>) -> Result<(String, String)> {
        for (key, value) in [("column", &self.column), ("overlap", &self.overlap)] {
            if value.is_some() {
                let hint = "write mode = \"audit\" to read tables by a column, or leave it out";
                return Err(checks.wrong(key, "is for mode = \"audit\"".into()).hint(hint));
            }
        }
        let is_slot = |name: &str| {
            let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            (1..=54).contains(&name.len()) && name.chars().all(is_known)
        };
        let slot = self.slot.clone().unwrap_or_else(|| format!("glueless_{}", self.name));
        if !is_slot(&slot) {
            let why = format!("is `{slot}`");
            let hint = "use at most 54 lower-case letters, digits and `_`; by default it is made of `name`";
            return Err(checks.wrong("slot", why).hint(hint));
        }
        let publication = self.publication.clone().unwrap_or_else(|| slot.clone());
        if publication.is_empty()
            || publication.len() > 63
            || publication.contains(['\0', ',', '"'])
        {
            return Err(checks.wrong("publication", format!("is `{publication}`")));
        }
        Ok((slot, publication))
    }

    /// What `mode = "audit"` reads by.
    fn check_audit(&self, checks: &Checks<'_>) -> Result<Audit> {
        for (key, value) in [("slot", &self.slot), ("publication", &self.publication)] {
            if value.is_some() {
                let why = "is for mode = \"log\": extracts need none";
                return Err(checks.wrong(key, why.into()).hint("leave it out"));
            }
        }
        let column = self.column.clone().filter(|column| !column.is_empty()).ok_or_else(|| {
            let hint = "name the column that has the time of a row's last change: column = \"last_modified\"";
            checks.wrong("column", "is missing: mode = \"audit\" reads by it".into()).hint(hint)
        })?;
        let overlap =
            parse_duration(self.overlap.as_deref().unwrap_or(OVERLAP)).map_err(|why| {
                checks.wrong("overlap", why).hint("write a duration such as 15m or 2h")
            })?;
        Ok(Audit { column, overlap })
    }

    fn check_tables(&self, checks: &Checks<'_>) -> Result<SourceTables> {
        let hint = "write schema.table, or schema.* for all tables of a schema; names have at most 63 \
                    bytes, no dot and no quotation mark";
        let parse = |key, names: &[String]| -> Result<Vec<TargetTable>> {
            let mut tables = Vec::new();
            for text in names {
                let table = TargetTable::parse(text).filter(|table| table.schema != ALL);
                let table =
                    table.ok_or_else(|| checks.wrong(key, format!("names `{text}`")).hint(hint))?;
                if tables.contains(&table) {
                    return Err(checks.wrong(key, format!("names `{table}` twice")));
                }
                tables.push(table);
            }
            Ok(tables)
        };
        let wanted = parse("tables", &self.tables)?;
        if wanted.is_empty() {
            return Err(checks.wrong("tables", "is empty".into()).hint(hint));
        }
        let excluded = parse("exclude", &self.exclude)?;
        for table in &excluded {
            let all = |one: &TargetTable| one.schema == table.schema && one.name == ALL;
            if table.name == ALL || wanted.contains(table) || !wanted.iter().any(all) {
                let hint =
                    "name single tables, schema.table, of a schema that `tables` has as schema.*";
                return Err(checks.wrong("exclude", format!("names `{table}`")).hint(hint));
            }
        }
        Ok(SourceTables { wanted, excluded })
    }

    fn check(self, checks: &Checks<'_>) -> Result<Source> {
        let (slot, publication, audit) = match self.mode {
            Mode::Log => {
                let (slot, publication) = self.check_log(checks)?;
                (slot, publication, None)
            }
            Mode::Audit => (String::new(), String::new(), Some(self.check_audit(checks)?)),
        };
        let tables = self.check_tables(checks)?;
        for column in &self.text_columns {
            if column.split('.').count() < 3 {
                let wrong = checks.wrong("text_columns", format!("names `{column}`"));
                return Err(wrong.hint("write schema.table.column"));
            }
        }
        let file_bytes = checks.size("file_bytes", self.file_bytes, 1, "write 32MB")?;
        Ok(Source {
            to: Location::parse(&self.to, checks.folder)?,
            files: SourceFiles {
                file_bytes: file_bytes.unwrap_or(FILE_BYTES),
                is_zstd: self.compression == Compression::Zstd,
            },
            limits: checks.limits(self.limits)?,
            name: self.name,
            url_env: checks.url_env("url_env", self.url_env)?,
            tables,
            slot,
            publication,
            audit,
            text_columns: self.text_columns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "shop"
        url_env = "SOURCE_URL"
        tables = ["public.orders", "crm.*", "loyalty"]
        to = "raw"
    "#;

    fn read(toml: &str, overrides: &[&str]) -> Result<Source> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shop.toml");
        std::fs::write(&file, toml).expect("written");
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Source::read(&file, &overrides)
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let source = read(GOOD, &[]).expect("good");
        assert_eq!(
            (source.slot.as_str(), source.publication.as_str()),
            ("glueless_shop", "glueless_shop")
        );
        assert_eq!((source.files.file_bytes, source.files.is_zstd), (32_000_000, true));
        let tables = &source.tables;
        assert!(tables.include("crm", "any") && tables.include("public", "loyalty"));
        assert!(!tables.include("public", "others") && !tables.include("other", "orders"));
        let without = read(GOOD, &["exclude=[\"crm.log\"]"]).expect("good").tables;
        assert!(without.include("crm", "any") && !without.include("crm", "log"));
        assert_eq!(
            tables.named().collect::<Vec<_>>(),
            [("public", "orders"), ("public", "loyalty")]
        );
    }

    #[test]
    fn the_keys_of_a_mode_are_not_taken_by_the_other() {
        let audit = ["mode=audit", "column=at"];
        let source = read(GOOD, &audit).expect("good");
        let expected = Audit { column: "at".into(), overlap: Duration::minutes(15) };
        assert_eq!((source.audit, source.slot.as_str()), (Some(expected), ""));
        for (set, expected) in [
            ("slot=a", "`slot` is for mode = \"log\""),
            ("publication=a", "`publication` is for mode = \"log\""),
            ("overlap=soon", "`overlap` `soon` is not a duration"),
        ] {
            let error = read(GOOD, &[&audit[..], &[set]].concat()).expect_err(set);
            assert!(error.to_string().contains(expected) && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (set, expected) in [
            ("slot=Shop", "`slot` is `Shop`"),
            ("name=my shop", "`slot` is `glueless_my shop`"),
            ("tables=[]", "`tables` is empty"),
            ("tables=[\"*.*\"]", "`tables` names `*.*`"),
            ("tables=[\"a.b\", \"a.b\"]", "`tables` names `a.b` twice"),
            ("exclude=[\"crm.*\"]", "`exclude` names `crm.*`"),
            ("exclude=[\"orders\"]", "`exclude` names `public.orders`"),
            ("exclude=[\"other.log\"]", "`exclude` names `other.log`"),
            ("tables=[\"orders\", \"public.orders\"]", "`tables` names `public.orders` twice"),
            ("exclude=[\"crm.a\", \"crm.a\"]", "`exclude` names `crm.a` twice"),
            ("text_columns=[\"a.b\"]", "`text_columns` names `a.b`"),
            ("compression=lz4", "unknown variant `lz4`"),
            ("file_bytes=0", "`file_bytes` is"),
            ("limits.memory=lots", "`limits.memory` is"),
            ("table=[]", "unknown key `table`"),
            ("column=at", "`column` is for mode = \"audit\""),
            ("overlap=1h", "`overlap` is for mode = \"audit\""),
            ("mode=audit", "`column` is missing"),
            ("mode=trigger", "unknown variant `trigger`"),
            ("limits.spill_dir=x", "unknown key `limits.spill_dir`"),
            ("to=gs://b", "unknown scheme"),
            ("url_env=postgresql://u:secret@h/d", "`url_env` is not the name of"),
        ] {
            let error = read(GOOD, &[set]).expect_err(set);
            assert_eq!(error.kind, crate::error::Kind::Usage);
            assert!(error.to_string().contains(expected), "{set}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let error = read(&GOOD.replace("to = \"raw\"", ""), &[]).expect_err("incomplete");
        assert!(error.to_string().contains("`to` is missing"), "{error}");
    }
}
