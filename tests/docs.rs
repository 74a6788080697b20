//! The documents: every link leads somewhere, the README stays short, every key of `pipeline.toml`
//! is described, and excerpts of examples are what the tests run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const README_LINES_MAX: usize = 200;

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn document(name: &str) -> String {
    text_of(&Path::new(REPOSITORY).join(name))
}

/// Every file of the repository with this ending, sorted; hidden folders and what is built or
/// written by runs are left out.
fn files_with(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            if path.is_dir() {
                let is_left_out = name.starts_with('.') || name == "target" || name == "lake";
                if !is_left_out {
                    walk(&path, ending, found);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(REPOSITORY), ending, &mut found);
    found.sort();
    found
}

/// The lines of a document outside of fenced code, or those inside.
fn lines(text: &str, fenced: bool) -> Vec<&str> {
    let mut is_inside = false;
    let chosen = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_inside ^= is_fence;
        !is_fence && is_inside == fenced
    });
    chosen.collect()
}

/// The targets of a document's inline links and images, those to other sites left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in lines(text, false) {
        // Code between single backticks holds no links.
        let prose: String = line.split('`').step_by(2).collect();
        let targets = prose.split("](").skip(1).map(|rest| {
            let end = rest.find(')').unwrap_or_else(|| panic!("no `)`: {line}"));
            rest[..end].to_string()
        });
        found.extend(targets.filter(|target| !target.contains("://")));
    }
    found
}

/// The anchors of a document's headings, as GitHub makes them: letters, digits, `-` and `_` in lower
/// case, spaces as dashes, and a number behind one that was there before.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let headings = lines(text, false).into_iter().filter_map(|line| {
        let title = line.trim_start_matches('#').strip_prefix(' ')?;
        line.starts_with('#').then_some(title.trim())
    });
    let anchors = headings.map(|title| {
        let kept = title.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        });
        let anchor = kept.collect::<String>().to_lowercase();
        let count = seen.entry(anchor.clone()).or_insert(0);
        *count += 1;
        match *count {
            1 => anchor,
            more => format!("{anchor}-{}", more - 1),
        }
    });
    anchors.collect()
}

/// What is wrong with a link, if something is.
fn fault(document: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => document.to_path_buf(),
        path => document.parent().expect("a folder").join(path),
    };
    let shown = || format!("{}: {target}", document.display());
    if !file.exists() {
        return Some(format!("{}: there is no such file", shown()));
    }
    let leads = anchor.is_empty() || anchors(&text_of(&file)).contains(anchor);
    (!leads).then(|| format!("{}: there is no such heading", shown()))
}

#[test]
fn every_link_leads_somewhere() {
    let (mut count, mut faults) = (0, Vec::new());
    for document in files_with(".md") {
        for target in links(&text_of(&document)) {
            count += 1;
            faults.extend(fault(&document, &target));
        }
    }
    assert!(count > 50, "only {count} links were found");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn links_and_headings_are_found_as_github_finds_them() {
    let text = "# A `key.name`, or two…\n[a](b.md#c), ![d](e_f.svg) and `[no](link)`\n\
                ```\n# no heading\n[no](link)\n```\n## Same\n## Same\n[x](https://example.org)\n";
    assert_eq!(links(text), ["b.md#c", "e_f.svg"]);
    let expected = ["a-keyname-or-two", "same", "same-1"].map(String::from);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    let readme = Path::new(REPOSITORY).join("README.md");
    for broken in ["docs/no-such-file.md", "#no-such-heading", "docs/raw.md#no"] {
        assert!(fault(&readme, broken).is_some(), "{broken}");
    }
    assert_eq!(fault(&readme, "docs/raw.md#csv"), None);
}

#[test]
fn the_readme_is_short() {
    let count = document("README.md").lines().count();
    assert!(count <= README_LINES_MAX, "README.md has {count} lines");
}

/// The program's own list of keys, by its name, as its source has it.
fn known_keys(name: &str) -> BTreeSet<String> {
    let begin = format!("const {name}: &[&str] = &[\n");
    let sources = files_with(".rs").into_iter();
    let mut lists: Vec<BTreeSet<String>> = sources
        .filter_map(|file| {
            let text = text_of(&file);
            let (_, list) = text.split_once(&begin)?;
            let (list, _) = list.split_once("];")?;
            Some(list.split('"').skip(1).step_by(2).map(String::from).collect())
        })
        .collect();
    assert_eq!(lists.len(), 1, "where is the list of known keys?");
    lists.remove(0)
}

#[test]
fn every_key_of_a_pipeline_and_of_a_source_is_described() {
    for (file, keys) in [("docs/pipeline.md", "PIPELINE_KEYS"), ("docs/capture.md", "SOURCE_KEYS")]
    {
        assert_described(file, &known_keys(keys));
    }
}

/// Checks that the tables of a document have each key once.
#[track_caller]
fn assert_described(file: &str, keys: &BTreeSet<String>) {
    let text = document(file);
    let mut described = Vec::new();
    let mut is_of_keys = false;
    for line in text.lines() {
        is_of_keys = line.starts_with("| key |") || (is_of_keys && line.starts_with('|'));
        let name = line.strip_prefix("| `").and_then(|rest| rest.split_once('`'));
        if let (true, Some((name, _))) = (is_of_keys, name) {
            described.push(name.to_string());
        }
    }
    let distinct: BTreeSet<String> = described.iter().cloned().collect();
    assert_eq!(distinct.len(), described.len(), "a key is described twice");
    assert_eq!(distinct, *keys);
}

#[test]
fn excerpts_of_schedules_are_those_that_are_tested() {
    let tested = document("examples/cron/crontab") + &document("examples/airflow/cust_loyalty.py");
    let tested: BTreeSet<&str> = tested.lines().map(str::trim).collect();
    let text = document("docs/scheduling.md");
    let excerpts = lines(&text, true);
    assert!(excerpts.len() >= 5, "{excerpts:#?}");
    for line in excerpts {
        assert!(tested.contains(line.trim()), "{line}");
    }
}
