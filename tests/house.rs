//! Where code lives: imports between the rooms of `src` run one way, from the top to the ground.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms from the top to the ground. A room imports from rooms below it, and none of its own
/// floor.
const FLOORS: [&[&str]; 13] = [
    &["main"],
    &["cli"],
    &["commands"],
    &["aggregate", "follow"],
    &["curate", "publish"],
    &["fold", "state", "survey"],
    &["changes", "report"],
    &["capture", "raw", "table"],
    &["config", "parquet_io"],
    &["store"],
    &["engine", "layout", "postgres", "types"],
    &["window"],
    &["error"],
];

/// The modules of `src` with their texts, without comments and unit tests: `curate::merge`.
fn modules() -> BTreeMap<String, String> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{name}::"), found);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a file");
            let (code, _) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((&text, ""));
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.insert(format!("{prefix}{name}"), lines.collect::<Vec<_>>().join("\n"));
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    found
}

/// The paths that a text names below this crate, as far as they are modules.
fn imports(text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::", "glueless::"] {
        for (at, _) in text.match_indices(root) {
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let rest = &text[at + root.len()..];
            let path = &rest[..rest.find(|c| !is_path(c)).unwrap_or(rest.len())];
            let mut module = path.trim_end_matches(':');
            while !modules.contains_key(module) {
                let Some((parent, _)) = module.rsplit_once("::") else {
                    break;
                };
                module = parent;
            }
            if modules.contains_key(module) {
                found.insert(module.to_string());
            }
        }
    }
    found
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The imports that run up, or to a room of the same floor.
fn upward(modules: &BTreeMap<String, String>) -> Vec<String> {
    let mut upward = Vec::new();
    for (module, text) in modules.iter().filter(|(module, _)| *module != "lib") {
        let from = floor(room(module)).unwrap_or_else(|| panic!("{module} stands in no room"));
        for import in imports(text, modules) {
            let to = floor(room(&import));
            if room(&import) != room(module) && to.is_none_or(|to| to <= from) {
                upward.push(format!("{module} imports {import}"));
            }
        }
    }
    upward
}

#[test]
fn imports_run_from_the_top_to_the_ground() {
    let mut modules = modules();
    assert_eq!(upward(&modules), Vec::<String>::new());
    modules.insert("store::wrong".into(), "use crate::commands::run;".into());
    assert_eq!(upward(&modules), ["store::wrong imports commands::run"]);
}

/// Files that import each other, but for a parent and its own child.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = modules();
    let is_own = |a: &str, b: &str| {
        a.strip_prefix(b).is_some_and(|rest| rest.starts_with("::"))
            || b.strip_prefix(a).is_some_and(|rest| rest.starts_with("::"))
    };
    let mut edges: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (module, text) in &modules {
        let imports = imports(text, &modules).into_iter();
        let others = imports.filter(|import| import != module && !is_own(import, module));
        edges.insert(module, others.collect());
    }
    for start in modules.keys() {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = edges[start.as_str()].iter().map(String::as_str).collect();
        while let Some(module) = next.pop() {
            assert_ne!(module, start, "{start} imports itself, through {seen:?}");
            if seen.insert(module) {
                next.extend(edges[module].iter().map(String::as_str));
            }
        }
    }
}
