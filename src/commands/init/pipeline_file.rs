//! The text of a pipeline's file: the settings that its project does not give it, each with how sure it is, and why.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use toml::{Table, Value};

use crate::commands::init::InitContext;
use crate::commands::init::files::{basic, is_relative, rendered, written};
use crate::config::{LOADS_OF_DMS, defaults_for, full_path};
use crate::error::Result;
use crate::store::Location;
use crate::survey::{Certainty, Proposal, Setting};

/// The length of a line of a comment.
const LINE: usize = 110;

/// The values that settings have where neither the pipeline nor its project has them.
fn built_in() -> Vec<(&'static str, Value)> {
    vec![
        ("raw.format", "parquet".into()),
        ("raw.kind", "changes".into()),
        ("raw.path_columns", Value::Array(Vec::new())),
        ("raw.dialect", "dms".into()),
        ("raw.window_by", "modified".into()),
        ("raw.order_by", Value::Array(Vec::new())),
        ("raw.full_load", LOADS_OF_DMS.map(Value::from).to_vec().into()),
        ("raw.full_load_at", "before".into()),
        ("raw.layout", "table".into()),
        ("raw.csv_header", false.into()),
        ("raw.csv_op_in_full_load", false.into()),
        ("raw.csv_quoted", true.into()),
        ("raw.csv_delimiter", ",".into()),
    ]
}

/// Settings of a project that a pipeline cannot take back.
const KEPT: [&str; 6] = [
    "raw.commit_time",
    "raw.event_time",
    "raw.op",
    "raw.csv_null",
    "raw.before_image_prefix",
    "raw.delete_when",
];

/// A pipeline that is written.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    /// Its file.
    pub(super) file: &'a Path,
    /// The folder of the project.
    pub(super) out: &'a Path,
    /// Its raw locations.
    pub(super) urls: &'a [Location],
    pub(super) proposal: &'a Proposal,
    /// The folder of the table, if the project says another one, or none.
    pub(super) curated: Option<String>,
}

impl Writing<'_> {
    /// The text.
    ///
    /// # Errors
    /// Usage, when the project's file cannot be read.
    pub(super) fn text(&self, context: &InitContext<'_>) -> Result<String> {
        let file = full_path(self.file)?;
        let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
        let urls: Vec<Value> = self
            .urls
            .iter()
            .map(|url| written(url, &folder, is_relative(context.url)).into())
            .collect();
        let url = if let [one] = urls.as_slice() { one.clone() } else { Value::Array(urls) };
        let (defaults, name) = self.defaults(&url)?;
        let mut settings = Vec::new();
        if name.is_none() {
            settings.push(sure("name", self.unique_name()?.into()));
        }
        settings
            .extend(self.proposal.settings.iter().filter(|setting| setting.key == "key").cloned());
        let given: Vec<Location> = self.given_urls(&defaults);
        if given != self.urls {
            settings.push(sure("raw.url", url));
        }
        let others = self.proposal.settings.iter().filter(|setting| setting.key != "key");
        settings.extend(
            others.filter(|setting| find(&defaults, &setting.key) != Some(&setting.value)).cloned(),
        );
        // What the project says, and is not so here.
        let set: BTreeSet<&str> =
            self.proposal.settings.iter().map(|setting| setting.key.as_str()).collect();
        for (key, value) in built_in() {
            let of_project = find(&defaults, key).filter(|_| !set.contains(key));
            if of_project.is_some_and(|of_project| *of_project != value) {
                settings.push(sure(key, value));
            }
        }
        if let Some(curated) = &self.curated {
            settings.push(sure("curated.url", curated.clone().into()));
        }
        let mut notes = self.proposal.notes.clone();
        let kept =
            KEPT.into_iter().filter(|key| !set.contains(key) && find(&defaults, key).is_some());
        notes.extend(kept.map(|key| {
            format!("the project has `{key}`: write what it is for this table, if it is another")
        }));
        Ok(self.render(&settings, &notes))
    }

    /// A name for a pipeline whose folders give it none: these, with dots between them.
    fn unique_name(&self) -> Result<String> {
        let folder = full_path(self.file)?;
        let out = full_path(self.out)?;
        let below = folder.parent().and_then(|folder| folder.strip_prefix(out).ok());
        let names = below.into_iter().flatten().map(|name| name.to_string_lossy().into_owned());
        Ok(names.collect::<Vec<_>>().join("."))
    }

    /// What the project gives, and the pipeline's name by it. A placeholder that has no value here is as if it were not there.
    fn defaults(&self, url: &Value) -> Result<(Table, Option<String>)> {
        let own = |with_table: bool| {
            let mut own = Table::new();
            own.insert("raw".into(), Table::from_iter([("url".to_string(), url.clone())]).into());
            if with_table {
                own.insert(
                    "curated".into(),
                    Table::from_iter([("url".to_string(), url.clone())]).into(),
                );
            }
            own
        };
        defaults_for(self.file, &Table::new())
            .or_else(|_| defaults_for(self.file, &own(false)))
            .or_else(|_| defaults_for(self.file, &own(true)))
    }

    /// The folder of the table that the project gives.
    ///
    /// # Errors
    /// Usage, when the project's file cannot be read.
    pub(super) fn curated_of_project(&self) -> Result<Option<Location>> {
        let (defaults, _) = self.defaults(&Value::from("."))?;
        let url = find(&defaults, "curated.url").and_then(Value::as_str);
        url.map(|url| Location::parse(url, Path::new("/"))).transpose()
    }

    fn given_urls(&self, defaults: &Table) -> Vec<Location> {
        let texts = match find(defaults, "raw.url") {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(texts)) => {
                texts.iter().filter_map(|text| text.as_str().map(String::from)).collect()
            }
            _ => Vec::new(),
        };
        texts.iter().filter_map(|text| Location::parse(text, Path::new("/")).ok()).collect()
    }

    fn render(&self, settings: &[Setting], notes: &[String]) -> String {
        let proposal = self.proposal;
        let mut text = String::new();
        let described = format!(
            "{} in {} files, of which {} rows were looked at by `glueless init`",
            proposal.format.name(),
            proposal.files,
            proposal.rows
        );
        comment(&mut text, &described);
        for note in notes {
            comment(&mut text, &format!("Note: {note}."));
        }
        let mut section = String::new();
        let mut last_why = String::new();
        let mut sorted: Vec<&Setting> = settings.iter().collect();
        // The keys of a section stand together, and those of the file itself come first.
        let order = ["", "raw", "raw.op_values", "raw.columns", "curated"];
        let place =
            |setting: &&Setting| order.iter().position(|known| *known == split(&setting.key).0);
        sorted.sort_by_key(place);
        for setting in sorted {
            let (of, name) = split(&setting.key);
            if of != section {
                let _ = writeln!(text, "\n[{of}]");
                section = of.into();
                last_why.clear();
            }
            let asked = setting.certainty == Certainty::Asked;
            if !setting.why.is_empty() && setting.why != last_why {
                if text.ends_with('\n') && !text.ends_with("]\n") && asked {
                    text.push('\n');
                }
                comment(&mut text, &format!("{}: {}", setting.certainty.name(), setting.why));
            }
            last_why.clone_from(&setting.why);
            let _ = writeln!(text, "{} = {}", quoted(name), rendered(&setting.value));
        }
        if !proposal.personal.is_empty() {
            text.push('\n');
            comment(
                &mut text,
                "These columns look personal. Masks need a secret: docs/many-tables.md.",
            );
            text.push_str("# [mask]\n");
            for personal in &proposal.personal {
                let _ = writeln!(text, "# {} = \"{}\"", quoted(&personal.column), personal.mask);
            }
        }
        text
    }
}

fn sure(key: &str, value: Value) -> Setting {
    Setting { key: key.into(), value, certainty: Certainty::Sure, why: String::new() }
}

/// The section of a key, and its name in it: a column's name can have dots.
fn split(key: &str) -> (&str, &str) {
    for section in ["raw.columns", "raw.op_values", "raw", "curated"] {
        if let Some(name) = key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
            return (section, name);
        }
    }
    ("", key)
}

/// A name as a key of TOML.
fn quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) { name.into() } else { basic(name) }
}

/// The value of a key in a table.
fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, name) = split(key);
    let mut inner = table;
    for part in section.split('.').filter(|part| !part.is_empty()) {
        inner = inner.get(part)?.as_table()?;
    }
    inner.get(name)
}

/// Adds a comment, in lines of a length that is easily read.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() + word.len() >= LINE {
            let _ = writeln!(text, "{line}");
            line = "#".into();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
