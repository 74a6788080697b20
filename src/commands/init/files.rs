//! The files of a project: their names, the text of `glueless.toml`, and writing without changing what is there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Component, Path};

use toml::Value;

use crate::commands::init::InitContext;
use crate::error::{Error, Result};
use crate::store::Location;
use crate::survey::{Certainty, Proposal};

/// The keys whose values all tables can share: a table that comes later can take each of them back.
const SHARED: [&str; 5] =
    ["raw.format", "raw.dialect", "raw.window_by", "raw.order_by", "raw.csv_header"];

/// The folders of pipelines.
#[derive(Debug)]
pub(super) struct Names {
    /// The folder of each table's pipeline, below the project's.
    pub(super) folders: Vec<String>,
    /// What all folders of raw files begin with, below the one that was looked at, without those that become the schema and the
    /// table.
    prefix: Option<String>,
    /// The number of folders of each pipeline, if it is the same for all.
    depth: Option<usize>,
}

impl Names {
    /// Names the pipelines of tables in a folder.
    pub(super) fn of(proposals: &[Proposal], location: &Location) -> Self {
        let paths: Vec<Vec<String>> = proposals
            .iter()
            .map(|proposal| {
                let path: Vec<String> = proposal
                    .folder
                    .split('/')
                    .filter(|part| !part.is_empty())
                    .map(String::from)
                    .collect();
                // The table is the folder itself.
                if path.is_empty() { vec![last_folder(location)] } else { path }
            })
            .collect();
        let shared = shared_folders(&paths);
        let mut taken = BTreeSet::new();
        let folders = paths.iter().map(|path| {
            let named: Vec<String> = path[shared..].iter().map(|part| clean(part)).collect();
            let name = named.join("/");
            // Names that differ only in signs that are not kept.
            let numbered = |_: &String, number| format!("{name}_{number}");
            first_free(name.clone(), numbered, |name| !taken.insert(name.to_lowercase()))
        });
        let folders = without_nested(folders.collect());
        let depths: BTreeSet<usize> =
            folders.iter().map(|folder| folder.split('/').count()).collect();
        let depth = depths.first().copied().filter(|_| depths.len() == 1);
        let is_itself = proposals.iter().any(|proposal| proposal.folder.is_empty());
        let prefix = (!is_itself)
            .then(|| paths.first().map_or(String::new(), |path| path[..shared].join("/")));
        Names { folders, prefix, depth }
    }

    /// The placeholders that stand for the folders of a pipeline.
    fn placeholders(&self) -> Option<&'static str> {
        match self.depth? {
            1 => Some("{table}"),
            2 => Some("{schema}/{table}"),
            _ => None,
        }
    }
}

/// The first that is free: what is wanted, or what is `numbered` from 2 on, given by the one before.
pub(super) fn first_free<T>(
    wanted: T,
    numbered: impl Fn(&T, usize) -> T,
    mut is_taken: impl FnMut(&T) -> bool,
) -> T {
    let mut free = wanted;
    for number in 2.. {
        if !is_taken(&free) {
            break;
        }
        free = numbered(&free, number);
    }
    free
}

/// The same names, none of which is a folder around another one: a pipeline is not looked for below another.
fn without_nested(names: Vec<String>) -> Vec<String> {
    let all: BTreeSet<String> = names.iter().cloned().collect();
    let renamed = names.into_iter().map(|name| {
        let inside = format!("{name}/");
        let has_below = |name: &str| {
            all.range(name.to_string()..).next().is_some_and(|other| other.starts_with(name))
        };
        let mut free = name.clone();
        while has_below(&inside) && (free == name || all.contains(&free)) {
            free.push('_');
        }
        free
    });
    renamed.collect()
}

/// The number of folders that all paths begin with, and that name neither the schema nor the table.
fn shared_folders(paths: &[Vec<String>]) -> usize {
    let least = paths.iter().map(Vec::len).min().unwrap_or(0);
    let is_shared = |at: &usize| paths.iter().all(|path| path[*at] == paths[0][*at]);
    (0..least.saturating_sub(2)).take_while(is_shared).count()
}

/// The name of the last folder of a location.
fn last_folder(location: &Location) -> String {
    let folder = location.folder();
    let name = folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if name.is_empty() { "table".into() } else { name.into() }
}

/// A folder's name with the signs that a name of a pipeline can have.
fn clean(name: &str) -> String {
    let is_kept = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let clean: String = name.chars().map(|c| if is_kept(c) { c } else { '_' }).collect();
    clean.trim_start_matches('.').to_string()
}

/// The folder below a location; the location itself if it is empty.
pub(super) fn below(location: &Location, folder: &str) -> Location {
    if folder.is_empty() { location.clone() } else { location.join(folder) }
}

/// A location as it is written in a file of a folder: a path that begins there, where the user named one that does not begin at
/// the root.
pub(super) fn written(location: &Location, from: &Path, was_relative: bool) -> String {
    let plain = || location.folder().trim_end_matches('/').to_string();
    match location.file_path().filter(|_| was_relative) {
        None => plain(),
        Some(path) => relative_path(&path, from),
    }
}

/// Whether a location is named by a path from the current folder.
pub(super) fn is_relative(url: &str) -> bool {
    !url.contains("://") && Path::new(url).is_relative()
}

/// A path from the root as one from a folder.
fn relative_path(path: &Path, from: &Path) -> String {
    let (path, from): (Vec<Component>, Vec<Component>) =
        (path.components().collect(), from.components().collect());
    let shared = path.iter().zip(&from).take_while(|(a, b)| a == b).count();
    let up = from[shared..].iter().map(|_| "..".to_string());
    let down = path[shared..].iter().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let path = up.chain(down).collect::<Vec<_>>().join("/");
    if path.is_empty() { ".".into() } else { path }
}

/// The text of `glueless.toml`.
///
/// # Errors
/// Usage, when the folder for tables is no location.
pub(super) fn project_text(
    context: &InitContext<'_>,
    location: &Location,
    proposals: &[Proposal],
    names: &Names,
) -> Result<String> {
    let out = crate::config::full_path(context.out)?;
    let lake = context.lake.unwrap_or(DEFAULT_LAKE);
    let lake_from = if context.lake.is_some() { context.current } else { &out };
    let lake_at = Location::parse(lake, lake_from)?;
    if lake_at.overlaps(location) {
        return Err(Error::usage(format!(
            "the tables' folder {lake_at} and the raw files' {location} overlap"
        ))
        .hint("name a folder of its own for the tables: --lake s3://bucket/lake"));
    }
    let project = Location::parse(&out.to_string_lossy(), &out)?;
    if let Some(inside) = [&lake_at, location].into_iter().find(|other| other.overlaps(&project)) {
        return Err(Error::usage(format!(
            "the project's folder {} and {inside} overlap",
            context.out.display()
        ))
        .hint("name a folder of its own for the project: --out sql"));
    }
    let mut text = String::from(
        "# The project: what stands here holds for all pipelines below it, unless one has it itself. It was written by\n\
         # `glueless init`, which does not change it again: it is yours.\n",
    );
    let mut raw = String::new();
    if let (Some(placeholders), Some(prefix)) = (names.placeholders(), &names.prefix) {
        let base = below(location, prefix);
        let base = written(&base, &out, is_relative(context.url));
        let _ = writeln!(raw, "url = {}", basic(&format!("{base}/{placeholders}")));
    }
    for (key, value, certainty) in shared(proposals) {
        if certainty != Certainty::Sure {
            let _ = writeln!(raw, "# {}: as each table says by itself", certainty.name());
        }
        let _ = writeln!(raw, "{} = {}", key.trim_start_matches("raw."), rendered(value));
    }
    if !raw.is_empty() {
        let _ = write!(text, "\n[raw]\n{raw}");
    }
    let lake = written(&lake_at, &out, is_relative(lake));
    let placeholders = names.placeholders().unwrap_or("{name}");
    let _ = writeln!(
        text,
        "\n[curated]\n# where the tables go: a folder, or s3://bucket/prefix\nurl = {}",
        basic(&format!("{lake}/{placeholders}"))
    );
    Ok(text)
}

/// Where tables go if nothing else is said, from the project's folder.
const DEFAULT_LAKE: &str = "../lake";

/// The settings that are the same for all of several tables, with the least that one of them is sure of.
fn shared(proposals: &[Proposal]) -> Vec<(&'static str, &Value, Certainty)> {
    let [first, _, ..] = proposals else { return Vec::new() };
    let of = |table: &Proposal, key: &str| {
        let mut settings = table.settings.iter();
        let found = settings.find(|setting| setting.key == key)?;
        (found.certainty != Certainty::Asked).then(|| (found.value.clone(), found.certainty))
    };
    let same = |key: &'static str| {
        let all: Option<Vec<(Value, Certainty)>> =
            proposals.iter().map(|table| of(table, key)).collect();
        let all = all.filter(|all| all.iter().all(|(value, _)| *value == all[0].0))?;
        let value = &first.settings.iter().find(|setting| setting.key == key)?.value;
        let weakest = all.into_iter().map(|(_, certainty)| certainty).max();
        Some((key, value, weakest.unwrap_or_default()))
    };
    SHARED.into_iter().filter_map(same).collect()
}

/// A text as TOML has it, in one line.
pub(super) fn basic(text: &str) -> String {
    // The escapes of JSON are some of those of TOML.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A value as TOML has it, in one line.
pub(super) fn rendered(value: &Value) -> String {
    match value {
        Value::String(text) => basic(text),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(rendered).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Writes a file, and the folders that it is in, if there is none; returns whether there was none. It is there as a whole, or not
/// at all.
///
/// # Errors
/// Usage, when that is not possible.
pub(super) fn create(file: &Path, text: &str) -> Result<bool> {
    let failed = |error: std::io::Error| {
        Error::usage(format!("cannot write {}", file.display()))
            .hint("name a folder for the project that can be written: --out sql")
            .caused_by(error)
    };
    if file.exists() {
        return Ok(false);
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<bool> {
        let mut new = std::fs::File::create(&temporary)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        match std::fs::hard_link(&temporary, file) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            // Some file systems have no links.
            Err(_) => {
                let mut new = std::fs::File::create_new(file)?;
                new.write_all(text.as_bytes())?;
                new.sync_all().map(|()| true)
            }
            Ok(()) => Ok(true),
        }
    };
    let written = write();
    let _ = std::fs::remove_file(&temporary);
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_from_a_folder() {
        let relative = |path: &str, from: &str| relative_path(Path::new(path), Path::new(from));
        assert_eq!(relative("/a/raw/x", "/a/sql"), "../raw/x");
        assert_eq!(relative("/a/sql/x", "/a/sql"), "x");
        assert_eq!(relative("/b", "/a/sql"), "../../b");
        assert_eq!(relative("/a/sql", "/a/sql"), ".");
    }

    #[test]
    fn a_file_that_exists_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a/b/pipeline.toml");
        assert!(create(&file, "one").expect("written"));
        assert!(!create(&file, "two").expect("left"));
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "one");
        assert_eq!(
            std::fs::read_dir(file.parent().expect("its folder")).expect("listed").count(),
            1
        );
    }

    #[test]
    fn a_text_is_in_one_line() {
        for text in ["it's \"x\"", "a\nb", "\u{7f}\t\\", "ä"] {
            let line = format!("x = {}", basic(text));
            assert!(!line.contains('\n'), "{line}");
            let table: toml::Table = line.parse().expect("TOML");
            assert_eq!(table["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn no_pipeline_is_below_another() {
        let names =
            |names: &[&str]| without_nested(names.iter().map(ToString::to_string).collect());
        assert_eq!(
            names(&["shop", "shop/orders", "shopping"]),
            ["shop_", "shop/orders", "shopping"]
        );
        assert_eq!(names(&["a", "a_", "a/b"]), ["a__", "a_", "a/b"]);
    }

    #[test]
    fn names_have_no_signs_that_a_pipeline_cannot_have() {
        assert_eq!(clean("my table%2F?"), "my_table_2F_");
        assert_eq!(clean(".hidden"), "hidden");
    }
}
