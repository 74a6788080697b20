//! `glueless.toml`: defaults for the pipelines in the folders under it.
//!
//! It has keys of `pipeline.toml`, which a pipeline overrides. Texts can have placeholders, so that one default fits all
//! pipelines:
//!
//! | placeholder | stands for |
//! |---|---|
//! | `{name}` | the pipeline's name |
//! | `{table}` | the name of its folder |
//! | `{schema}` | the name of the folder that this one is in, which is below the project's |
//!
//! Relative URLs start from the folder of `glueless.toml`.

use std::path::{Component, Path, PathBuf};

use toml::{Table, Value};

use crate::config::known_keys::{PIPELINE_KEYS, refuse_unknown_keys};
use crate::error::{Error, Result};
use crate::store::{Location, clean};

/// The name of the file.
pub(crate) const PROJECT_FILE: &str = "glueless.toml";

/// The name of a pipeline's file.
pub(crate) const PIPELINE_FILE: &str = "pipeline.toml";

/// What is between the folders in the name of a pipeline.
const BETWEEN: &str = "__";

/// The keys that are of one pipeline alone.
const OF_PIPELINE: [&str; 2] = ["name", "aggregate"];

/// The keys whose values are URLs, or lists of them.
const URLS: [[&str; 2]; 4] =
    [["raw", "url"], ["curated", "url"], ["state", "url"], ["compact", "url"]];

/// The project that a pipeline belongs to.
#[derive(Debug)]
pub(super) struct Project {
    /// Its file, as the user would name it.
    pub(super) file: PathBuf,
    /// Its folder.
    folder: PathBuf,
    table: Table,
}

impl Project {
    /// The project of a pipeline, given by its file as the user named it, and in full; `None` if it belongs to none.
    ///
    /// # Errors
    /// Usage: the project's file cannot be read, or has an unknown key.
    pub(super) fn of(named: &Path, file: &Path) -> Result<Option<Self>> {
        let folders = file.parent().into_iter().flat_map(Path::ancestors);
        let Some(folder) = folders.into_iter().find(|folder| folder.join(PROJECT_FILE).is_file())
        else {
            return Ok(None);
        };
        let file = shown(named, file, folder);
        let text = std::fs::read_to_string(folder.join(PROJECT_FILE)).map_err(|error| {
            Error::usage(format!("cannot read {}", file.display())).caused_by(error)
        })?;
        let table = super::table_of(&file, &text)?;
        if let Some(key) = OF_PIPELINE.into_iter().find(|key| table.contains_key(*key)) {
            return Err(Error::usage(format!("{}: `{key}` is of one pipeline", file.display()))
                .hint("write it into the pipeline.toml of that pipeline"));
        }
        refuse_unknown_keys(&table, &file, PIPELINE_KEYS)?;
        Ok(Some(Project { file, folder: folder.to_path_buf(), table }))
    }

    /// The names of the folders between the project's and the one of a pipeline, and that one.
    fn folders_of(&self, pipeline: &Path) -> Vec<String> {
        let folder = pipeline.parent().unwrap_or(Path::new("/"));
        let below = folder.strip_prefix(&self.folder).unwrap_or(Path::new(""));
        below.iter().map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// The name of a pipeline, given by its file in full, that does not have one: the names of its folders. `None` for a file
    /// of another name, and where another pipeline could get the same.
    pub(super) fn name_of(&self, pipeline: &Path) -> Option<String> {
        let folders = self.folders_of(pipeline);
        let is_clear = |name: &String| {
            !name.contains(BETWEEN) && !name.starts_with('_') && !name.ends_with('_')
        };
        let is_clear = folders.len() == 1 || folders.iter().all(is_clear);
        let is_named = pipeline.ends_with(PIPELINE_FILE) && !folders.is_empty();
        (is_named && is_clear).then(|| folders.join(BETWEEN))
    }

    /// The defaults for a pipeline, given by its file in full, its name, and its own keys, which have none.
    ///
    /// # Errors
    /// Usage: a placeholder has no value, or a text is no URL.
    pub(super) fn defaults(&self, pipeline: &Path, name: &str, own: &Table) -> Result<Table> {
        let folders = self.folders_of(pipeline);
        let mut names = folders.iter().rev().map(String::as_str);
        let values =
            [("{name}", Some(name)), ("{table}", names.next()), ("{schema}", names.next())];
        let mut table = self.table.clone();
        leave_out(&mut table, own);
        // A pipeline has the one or the other.
        let has = |name: &str| has_key(own, &format!("raw.{name}"));
        let without = [("url", has("source")), ("source", has("url"))];
        for (name, _) in without.into_iter().filter(|(_, is_out)| *is_out) {
            table.get_mut("raw").and_then(Value::as_table_mut).map(|raw| raw.remove(name));
        }
        for (key, value) in &mut table {
            self.fill_in(key, value, &values)?;
        }
        let sources = table.get_mut("raw").and_then(|raw| raw.get_mut("source")?.as_array_mut());
        for source in sources.into_iter().flatten() {
            source.get_mut("url").map_or(Ok(()), |url| self.resolve(url))?;
        }
        for [section, name] in URLS {
            let section_of = table.get_mut(section).and_then(Value::as_table_mut);
            match section_of.and_then(|section| section.get_mut(name)) {
                Some(Value::Array(urls)) => {
                    urls.iter_mut().try_for_each(|url| self.resolve(url))?;
                }
                Some(url) => self.resolve(url)?,
                None => {}
            }
        }
        Ok(table)
    }

    /// Replaces the placeholders in a value.
    fn fill_in(&self, key: &str, value: &mut Value, values: &[(&str, Option<&str>)]) -> Result<()> {
        match value {
            Value::String(text) => {
                for (placeholder, value) in values {
                    if !text.contains(placeholder) {
                        continue;
                    }
                    let value = value.ok_or_else(|| {
                        Error::usage(format!(
                            "{}: `{key}` has `{placeholder}`, and the pipeline is in no folder of that",
                            self.file.display()
                        ))
                        .hint(
                            "the folder of a pipeline is named like its table, and is in a folder that is named like \
                             its schema, below that of glueless.toml; or set the key in pipeline.toml",
                        )
                    })?;
                    *text = text.replace(placeholder, value);
                }
                match unknown_placeholder(text).filter(|_| key.ends_with("url")) {
                    None => Ok(()),
                    Some(unknown) => Err(Error::usage(format!(
                        "{}: `{key}` has the unknown placeholder `{unknown}`",
                        self.file.display()
                    ))
                    .hint("there are `{name}`, `{table}` and `{schema}`")),
                }
            }
            Value::Array(many) => {
                many.iter_mut().try_for_each(|value| self.fill_in(key, value, values))
            }
            Value::Table(table) => table.iter_mut().try_for_each(|(name, value)| {
                self.fill_in(&format!("{key}.{name}"), value, values)
            }),
            _ => Ok(()),
        }
    }

    /// Makes a URL that starts from the project's folder a full one.
    fn resolve(&self, url: &mut Value) -> Result<()> {
        if let Value::String(text) = url
            && !text.contains("://")
        {
            *text = Location::parse(text, &self.folder)?.to_string();
        }
        Ok(())
    }
}

/// The defaults that a pipeline, given by its file, gets from its project where it has none of the keys `own`, and the name
/// that it gets if that has none; nothing if it belongs to no project.
///
/// # Errors
/// Usage: the project's file cannot be read, has an unknown key, or a placeholder without a value.
pub(crate) fn defaults_for(file: &Path, own: &Table) -> Result<(Table, Option<String>)> {
    let path = full_path(file)?;
    let Some(project) = Project::of(file, &path)? else { return Ok((Table::new(), None)) };
    let given = project.name_of(&path);
    let name = own.get("name").and_then(Value::as_str).map(String::from).or(given.clone());
    let defaults = project.defaults(&path, name.as_deref().unwrap_or_default(), own)?;
    Ok((defaults, given))
}

/// Where a pipeline reads and writes, as far as its file says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// `raw.url`.
    pub(crate) raw: Vec<Location>,
    /// `raw.table`.
    pub(crate) table: Option<String>,
    /// `curated.url`.
    pub(crate) curated: Option<Location>,
}

/// Where a pipeline reads and writes, given by its file, whatever else in it is wrong.
///
/// # Errors
/// Usage, when it cannot be read, or its places cannot be told.
pub(crate) fn places_of(file: &Path) -> Result<Places> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Error::usage(format!("cannot read {}", file.display())).caused_by(error)
    })?;
    let own = super::table_of(file, &text)?;
    let (defaults, _) = defaults_for(file, &own)?;
    let mut table = own;
    add_defaults(&mut table, &defaults);
    let folder = full_path(file)?.parent().unwrap_or(Path::new("/")).to_path_buf();
    let value =
        |section: &str, name: &str| table.get(section).and_then(|section| section.get(name));
    let urls: Vec<&str> = match value("raw", "url") {
        Some(Value::Array(urls)) => urls.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(url)) => vec![url.as_str()],
        _ => {
            let sources = table.get("raw").and_then(|raw| raw.get("source")?.as_array());
            let urls =
                sources.into_iter().flatten().filter_map(|source| source.get("url")?.as_str());
            urls.collect()
        }
    };
    let curated = value("curated", "url").and_then(Value::as_str);
    Ok(Places {
        raw: urls.into_iter().map(|url| Location::parse(url, &folder)).collect::<Result<_>>()?,
        table: value("raw", "table").and_then(Value::as_str).map(String::from),
        curated: curated.map(|url| Location::parse(url, &folder)).transpose()?,
    })
}

/// The project's file that is nearest above a folder, which is given in full.
fn project_file(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join(PROJECT_FILE)).find(|file| file.is_file())
}

/// The project of a folder, and the pipelines in it, sorted, as the user would name them: whether there is a project, or not.
///
/// # Errors
/// Usage, when a folder cannot be read.
pub(crate) fn pipelines_under(folder: &Path) -> Result<(Option<PathBuf>, Vec<PathBuf>)> {
    let full = full_path(folder)?;
    let project = project_file(&full);
    let mut found = Vec::new();
    if folder.is_dir() {
        if folder.join(PIPELINE_FILE).exists() {
            found.push(folder.to_path_buf());
        }
        find_pipelines(folder, DEPTH_MAX, &mut found)?;
    }
    found.sort();
    Ok((project, found))
}

/// The pipelines in a folder of a project, sorted, as the user would name them; `None` for a path that is a pipeline, or is in no
/// project.
///
/// # Errors
/// Usage, when a folder cannot be read.
pub fn pipelines_of(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let folder = match path.file_name() {
        Some(name) if name == PROJECT_FILE => path.parent().unwrap_or(Path::new("")),
        _ => path,
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.is_dir() || folder.join(PIPELINE_FILE).exists() {
        return Ok(None);
    }
    let full = full_path(folder)?;
    if project_file(&full).is_none() {
        return Ok(None);
    }
    let mut found = Vec::new();
    find_pipelines(folder, DEPTH_MAX, &mut found)?;
    found.sort();
    Ok(Some(found))
}

/// How many folders deep pipelines are looked for: links can lead back.
const DEPTH_MAX: usize = 12;

/// Adds the folders under one that have a pipeline.
fn find_pipelines(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |error| {
        Error::usage(format!("cannot read the folder {}", folder.display())).caused_by(error)
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        let path = entry.path();
        if is_hidden || !path.is_dir() {
            continue;
        }
        if path.join(PIPELINE_FILE).exists() {
            found.push(path);
        } else if depth > 1 {
            find_pipelines(&path, depth - 1, found)?;
        }
    }
    Ok(())
}

/// The first part of a text that looks like a placeholder.
fn unknown_placeholder(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('{')?;
    let (name, _) = rest.split_once('}')?;
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let from = text.len() - rest.len() - 1;
    if is_word { Some(&text[from..from + name.len() + 2]) } else { unknown_placeholder(rest) }
}

/// The file of a pipeline, given by its folder or the file itself.
pub fn file_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(PIPELINE_FILE) } else { path.to_path_buf() }
}

/// The name that a pipeline has for the user before it is read: that which its project gives it, or that of its folder.
pub fn name_of(path: &Path) -> String {
    let file = file_of(path);
    let of_project = full_path(&file).ok().and_then(|full| {
        let project = Project::of(&file, &full).ok().flatten()?;
        project.name_of(&full)
    });
    of_project.unwrap_or_else(|| {
        let folder = match path.extension() {
            Some(extension) if extension == "toml" => path.parent().unwrap_or(path),
            _ => path,
        };
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        name.to_string_lossy().into_owned()
    })
}

/// The name that stands in a pipeline's file, else [`name_of`] it.
pub fn written_name(path: &Path) -> String {
    let text = std::fs::read_to_string(file_of(path)).unwrap_or_default();
    let table = text.parse::<Table>().unwrap_or_default();
    let name = table.get("name").and_then(Value::as_str);
    name.map_or_else(|| name_of(path), String::from)
}

/// A path from the root, without `.` and `..`.
///
/// # Errors
/// Usage, when the current folder cannot be found.
pub fn full_path(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)
        .map_err(|error| Error::usage("cannot find the current folder").caused_by(error))?;
    Ok(clean(&path))
}

/// A project's file as the user would name it, who has named a pipeline's file so.
fn shown(named: &Path, file: &Path, folder: &Path) -> PathBuf {
    let below = file.strip_prefix(folder).map_or(0, |below| below.components().count());
    let named =
        if named.components().any(|part| part == Component::ParentDir) { file } else { named };
    let of_user = named.ancestors().nth(below).filter(|_| named.components().count() >= below);
    of_user.map_or_else(|| folder.join(PROJECT_FILE), |of_user| of_user.join(PROJECT_FILE))
}

/// Leaves out the defaults of keys that a pipeline has.
fn leave_out(defaults: &mut Table, own: &Table) {
    defaults.retain(|key, value| match (value, own.get(key)) {
        (Value::Table(defaults), Some(Value::Table(own))) => {
            leave_out(defaults, own);
            true
        }
        (_, own) => own.is_none(),
    });
}

/// Adds defaults to a pipeline's keys, which have none of them.
pub(super) fn add_defaults(table: &mut Table, defaults: &Table) {
    for (key, value) in defaults {
        match (table.get_mut(key), value) {
            (None, value) => {
                table.insert(key.clone(), value.clone());
            }
            (Some(Value::Table(own)), Value::Table(value)) => add_defaults(own, value),
            (Some(_), _) => {}
        }
    }
}

/// Whether a table has a key, written with dots.
pub(super) fn has_key(table: &Table, key: &str) -> bool {
    match key.split_once('.') {
        None => table.contains_key(key),
        Some((section, rest)) => match table.get(section) {
            Some(Value::Table(inner)) => has_key(inner, rest),
            other => other.is_some(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_named_as_the_user_would() {
        let of = |named: &str, file: &str, folder: &str| {
            shown(Path::new(named), Path::new(file), Path::new(folder)).display().to_string()
        };
        assert_eq!(
            of("sql/orders/pipeline.toml", "/a/sql/orders/pipeline.toml", "/a/sql"),
            "sql/glueless.toml"
        );
        assert_eq!(
            of("sql/s/t/pipeline.toml", "/a/sql/s/t/pipeline.toml", "/a/sql"),
            "sql/glueless.toml"
        );
        assert_eq!(
            of("orders/pipeline.toml", "/a/sql/orders/pipeline.toml", "/a/sql"),
            "glueless.toml"
        );
        assert_eq!(
            of("pipeline.toml", "/a/sql/orders/pipeline.toml", "/a/sql"),
            "/a/sql/glueless.toml"
        );
    }

    #[test]
    fn defaults_are_added_to_what_a_pipeline_has() {
        let table = |text: &str| text.parse::<Table>().expect("TOML");
        let mut own = table("keep = 'history'\n[raw]\nurl = 'a'\n[raw.columns]\nx = 'date'");
        let defaults = "keep = 'latest'\nkey = ['id']\n[raw]\nurl = 'b'\ndialect = 'flat'\n[raw.columns]\ny = 'int'";
        let mut left = table(defaults);
        leave_out(&mut left, &own);
        add_defaults(&mut own, &left);
        let expected = "keep = 'history'\nkey = ['id']\n[raw]\nurl = 'a'\ndialect = 'flat'\n[raw.columns]\nx = 'date'\ny = 'int'";
        assert_eq!(own, table(expected));
        assert!(has_key(&own, "raw.columns.y") && has_key(&own, "keep"));
        assert!(!has_key(&own, "raw.lookback") && !has_key(&own, "state.url"));
    }
}
