//! Tables of an unknown folder of raw files, by the names of its objects alone.
//!
//! The folder of a table is what is before the first date in a path: `shop/orders` of `shop/orders/2021/11/23/…`. Two more
//! things are known of how tools write:
//!
//! - full loads and changes can be in folders of their own, below the table's or above it (`orders/full` and `orders/cdc`,
//!   `full/shop/orders` and `cdc/shop/orders`);
//! - a load that was written in parallel can be in numbered folders below the table's.
//!
//! Only a few objects of each table are remembered, so that a bucket with millions of them can be listed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use object_store::ObjectMeta;

use crate::config::{LOADS_OF_DMS, RawFormat};
use crate::layout::{
    base_name, cdc_file_time, file_time, folder_span, folders_before_dates, is_hidden,
    is_transaction_file, own_file_commit, parent, parse_partition_segment,
};

/// The objects that are remembered of each end of the order of files.
const SAMPLED: usize = 2;

/// So many folders whose names differ only in digits are parts of one table.
const BATCHES_MIN: usize = 3;

/// The names of folders that have the full loads of a table, or of all tables.
const LOADS: [&str; 8] =
    ["full", "full_load", "fullload", "full-load", "initial", "initial_load", "load", "snapshot"];
/// The names of folders that have the changes.
const CHANGES: [&str; 7] =
    ["cdc", "changes", "change", "incremental", "ongoing", "delta", "deltas"];
/// Those of both that are hardly names of tables.
const NO_TABLES: [&str; 6] = ["full", "full_load", "fullload", "full-load", "initial_load", "cdc"];

/// How the name of the folder of changes ends that is beside the table's.
const CHANGE_TABLE: &str = "__ct";

/// The tables that AWS DMS keeps for itself.
const CONTROL_TABLES: &str = "awsdms_";
/// The folder of states and of staged files.
const OWN_FOLDER: &str = "_glueless";
/// The folder of the log of a Delta table.
const DELTA_LOG: &str = "_delta_log";

/// What a listing says of full loads, or of files of changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// The number of files.
    pub(crate) files: u64,
    /// Their size.
    pub(crate) bytes: u64,
    /// The first and the last of them in the order of files, with their paths; some may be in both.
    first: Vec<Sampled>,
    last: Vec<Sampled>,
}

/// A file that may be read.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    /// Its path, relative to the folder that was listed.
    pub(crate) path: String,
    /// Its object.
    pub(crate) object: ObjectMeta,
}

impl Sampled {
    fn order(&self) -> (Option<DateTime<Utc>>, &str) {
        (file_time(&self.path, chrono_tz::UTC), &self.path)
    }
}

impl Group {
    fn add(&mut self, path: &str, object: &ObjectMeta) {
        self.files += 1;
        self.bytes += object.size;
        if object.size > 0 {
            let sampled = Sampled { path: path.into(), object: object.clone() };
            self.remember(sampled);
        }
    }

    fn remember(&mut self, sampled: Sampled) {
        let is_new = |known: &[Sampled]| known.iter().all(|other| other.path != sampled.path);
        let (of_first, of_last) = (is_new(&self.first), is_new(&self.last));
        let at = self.first.partition_point(|other| other.order() < sampled.order());
        if of_first && at < SAMPLED {
            self.first.insert(at, sampled.clone());
            self.first.truncate(SAMPLED);
        }
        let at = self.last.partition_point(|other| other.order() < sampled.order());
        if of_last && (at > 0 || self.last.len() < SAMPLED) {
            self.last.insert(at, sampled);
            self.last.drain(..self.last.len().saturating_sub(SAMPLED));
        }
    }

    fn merge(&mut self, other: Group) {
        self.files += other.files;
        self.bytes += other.bytes;
        other.first.into_iter().chain(other.last).for_each(|sampled| self.remember(sampled));
    }

    /// The files to read, in the order of files.
    pub(crate) fn sampled(&self) -> Vec<&Sampled> {
        let mut all: Vec<&Sampled> = self.first.iter().chain(&self.last).collect();
        all.sort_by(|a, b| a.order().cmp(&b.order()));
        all.dedup_by(|a, b| a.path == b.path);
        all
    }
}

/// What a listing says of a folder of files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    /// The number of files of each format.
    pub(crate) formats: BTreeMap<&'static str, u64>,
    /// Those that are full loads by their names or their folder.
    pub(crate) loads: Group,
    /// All others.
    pub(crate) changes: Group,
    /// How many of the others have a time in their names.
    pub(crate) named: u64,
    /// How many of the others are in date folders.
    pub(crate) dated: u64,
    /// How many of the others have the changes of all tables.
    pub(crate) of_transactions: u64,
    /// Whether full loads have the names that AWS DMS gives them.
    pub(crate) has_named_loads: bool,
    /// The columns that folders name, such as `tenant` in `tenant=acme`, but for dates.
    pub(crate) path_columns: BTreeSet<String>,
}

impl Files {
    pub(crate) fn merge(&mut self, other: Files) {
        for (format, files) in other.formats {
            *self.formats.entry(format).or_default() += files;
        }
        self.loads.merge(other.loads);
        self.changes.merge(other.changes);
        self.named += other.named;
        self.dated += other.dated;
        self.of_transactions += other.of_transactions;
        self.has_named_loads |= other.has_named_loads;
        self.path_columns.extend(other.path_columns);
    }

    /// The same, all of whose files are full loads.
    fn into_loads(mut self) -> Self {
        let changes = std::mem::take(&mut self.changes);
        self.loads.merge(changes);
        (self.named, self.dated) = (0, 0);
        self
    }

    /// The number of all of them.
    pub(crate) fn count(&self) -> u64 {
        self.loads.files + self.changes.files
    }

    /// The size of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.loads.bytes + self.changes.bytes
    }

    fn is_of_loads(&self) -> bool {
        self.changes.files == 0
    }

    /// The format of most files.
    pub(crate) fn format(&self) -> RawFormat {
        let most = self.formats.iter().max_by_key(|(_, files)| **files);
        let most = most.map_or("", |(name, _)| name);
        let all = [RawFormat::Parquet, RawFormat::Csv, RawFormat::Json];
        all.into_iter().find(|format| format.name() == most).unwrap_or_default()
    }

    /// Whether it has Parquet and CSV files, which no pipeline reads together.
    pub(crate) fn is_mixed(&self) -> bool {
        self.formats.contains_key("parquet") && self.formats.contains_key("csv")
    }
}

/// A table that was found.
#[derive(Clone, Debug)]
pub(crate) struct FoundTable {
    /// Its folder, relative to the one that was listed, without parts that say what is in it; empty if it is that one
    /// itself.
    pub(crate) folder: String,
    /// The folders with its files, none inside another.
    pub(crate) raw: Vec<String>,
    /// The folders whose files are full loads, whatever their names.
    pub(crate) loads_in: Vec<String>,
    /// Its files.
    pub(crate) files: Files,
}

/// Files that belong to no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Their folder, relative to the one that was listed.
    pub(crate) folder: String,
    /// How many there are.
    pub(crate) files: u64,
    /// Why.
    pub(crate) why: &'static str,
}

const OF_DELTA: &str = "it is a Delta table, not changes";
const OF_GLUELESS: &str = "glueless has written it: it is a table, not changes";
const OF_DMS: &str = "it is a table that AWS DMS keeps for itself";
const HIDDEN: &str = "names that begin with `_` or `.` are not read, as in Hive";
const OTHER_FORMAT: &str =
    "they are of another format than most of the folder: a pipeline reads one";
const BESIDE: &str =
    "they are beside the folders of tables; a pipeline over them would read these tables, too";

/// The objects of a folder, as they are listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// The files of each folder and format.
    roots: BTreeMap<(String, &'static str), Files>,
    delta_tables: Vec<String>,
    /// Folders whose names begin with `_` or `.`, and the number of files in them.
    hidden: BTreeMap<String, u64>,
    /// Objects whose names say no format.
    pub(crate) other_files: u64,
    /// One of them.
    pub(crate) other_example: Option<String>,
}

impl Listing {
    /// Adds an object, with its path relative to the folder that is listed.
    pub(crate) fn add(&mut self, path: &str, object: &ObjectMeta) {
        let folder = parent(path);
        if let Some((table, _)) = format!("/{folder}/").split_once(&format!("/{DELTA_LOG}/")) {
            let table = table.trim_start_matches('/').to_string();
            if self.delta_tables.last() != Some(&table) {
                self.delta_tables.push(table);
            }
        }
        if is_hidden(path) {
            let hidden = folder.split('/').position(|name| name.starts_with(['_', '.']));
            let is_ours = path.contains(OWN_FOLDER) || path.contains(DELTA_LOG);
            if let Some(at) = hidden.filter(|_| !is_ours && RawFormat::of(path).is_some()) {
                let folders: Vec<&str> = folder.split('/').take(at + 1).collect();
                *self.hidden.entry(folders.join("/")).or_default() += 1;
            }
            return;
        }
        let Some(format) = RawFormat::of(path) else {
            self.other_files += 1;
            let example = self.other_example.get_or_insert_with(|| path.into());
            if path < example.as_str() {
                *example = path.into();
            }
            return;
        };
        let before = folders_before_dates(folder);
        let segments: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        let root = segments[..before].join("/");
        let files = self.roots.entry((root, format.name())).or_default();
        *files.formats.entry(format.name()).or_default() += 1;
        for segment in segments[before..].iter().filter(|segment| !is_date(segment)) {
            if let Some((column, _)) = parse_partition_segment(segment)
                && !files.path_columns.contains(&column)
            {
                files.path_columns.insert(column);
            }
        }
        let name = base_name(path);
        if is_named_load(name) {
            files.has_named_loads = true;
            files.loads.add(path, object);
            return;
        }
        files.changes.add(path, object);
        files.named += u64::from(cdc_file_time(name, chrono_tz::UTC).is_some());
        files.dated += u64::from(folder_span(folder, chrono_tz::UTC).is_some());
        files.of_transactions += u64::from(is_transaction_file(name));
    }

    /// The tables, and what belongs to none.
    pub(crate) fn tables(mut self) -> (Vec<FoundTable>, Vec<LeftOut>) {
        let (roots, mut left_out) = self.by_folder();
        let hidden = std::mem::take(&mut self.hidden).into_iter();
        left_out.extend(hidden.map(|(folder, files)| LeftOut { folder, files, why: HIDDEN }));
        let mut kept = BTreeMap::new();
        for (root, files) in roots {
            match self.no_raw(&root, &files) {
                Some(why) => {
                    left_out.push(LeftOut { folder: root, files: files.count(), why });
                }
                None => {
                    kept.insert(root, files);
                }
            }
        }
        let mut tables = with_batches(with_twins(with_parallel_loads(kept)));
        let roots: BTreeSet<String> = tables.iter().flat_map(|table| table.raw.clone()).collect();
        let has_below = |root: &String| {
            let inside = if root.is_empty() { String::new() } else { format!("{root}/") };
            let mut below = roots.range(inside.clone()..).filter(|other| *other != root);
            below.next().is_some_and(|other| other.starts_with(&inside))
        };
        tables.retain(|table| {
            let is_beside = table.raw.iter().any(has_below);
            if is_beside {
                let files = table.files.count();
                left_out.push(LeftOut { folder: table.folder.clone(), files, why: BESIDE });
            }
            !is_beside
        });
        (tables, left_out)
    }

    /// The files of each folder, in the format of most of its bytes, and those of other formats.
    fn by_folder(&mut self) -> (BTreeMap<String, Files>, Vec<LeftOut>) {
        let mut roots: BTreeMap<String, Vec<(&'static str, Files)>> = BTreeMap::new();
        for ((root, format), files) in std::mem::take(&mut self.roots) {
            roots.entry(root).or_default().push((format, files));
        }
        let mut left_out = Vec::new();
        let kept = roots.into_iter().map(|(root, mut formats)| {
            formats.sort_by_key(|(_, files)| files.bytes());
            let (_, most) = formats.pop().unwrap_or_default();
            for (_, files) in formats {
                let files = files.count();
                left_out.push(LeftOut { folder: root.clone(), files, why: OTHER_FORMAT });
            }
            (root, most)
        });
        let kept = kept.collect();
        (kept, left_out)
    }

    /// Why files of a folder are not raw, if they are not.
    fn no_raw(&self, root: &str, files: &Files) -> Option<&'static str> {
        if self.delta_tables.iter().any(|table| root == table || is_below(root, table)) {
            return Some(OF_DELTA);
        }
        if base_name(root).starts_with(CONTROL_TABLES) {
            return Some(OF_DMS);
        }
        let mut sampled = files.changes.sampled().into_iter();
        let is_own = |sampled: &Sampled| own_file_commit(base_name(&sampled.path)).is_some();
        sampled.any(is_own).then_some(OF_GLUELESS)
    }
}

/// Whether a folder is a date, or a part of one.
fn is_date(segment: &str) -> bool {
    const PARTS: [&str; 12] =
        ["year", "yyyy", "y", "month", "mm", "m", "day", "dd", "d", "hour", "hh", "h"];
    let column = segment.split('=').next().unwrap_or_default().to_ascii_lowercase();
    PARTS.contains(&column.as_str()) || folder_span(segment, chrono_tz::UTC).is_some()
}

/// Whether a file is a full load by the name that AWS DMS gives it.
fn is_named_load(name: &str) -> bool {
    static PATTERNS: LazyLock<Vec<glob::Pattern>> = LazyLock::new(|| {
        LOADS_OF_DMS.iter().filter_map(|pattern| glob::Pattern::new(pattern).ok()).collect()
    });
    PATTERNS.iter().any(|pattern| pattern.matches(name))
}

/// Whether a folder is inside another one.
fn is_below(folder: &str, other: &str) -> bool {
    other.is_empty() && !folder.is_empty()
        || folder.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
}

/// Adds the files of loads in numbered folders to the table that these are in.
fn with_parallel_loads(roots: BTreeMap<String, Files>) -> BTreeMap<String, Files> {
    let mut merged: BTreeMap<String, Files> = BTreeMap::new();
    for (root, files) in roots {
        let is_number = base_name(&root).bytes().all(|byte| byte.is_ascii_digit());
        let is_part = !root.is_empty() && is_number && files.is_of_loads();
        let of = if is_part { parent(&root).to_string() } else { root };
        merged.entry(of).or_default().merge(files);
    }
    merged
}

/// Puts folders together whose names differ only in their digits, such as `batch_0001`, where there are no others beside them, and no
/// full loads in them: they are parts of the table that they are in.
fn with_batches(tables: Vec<FoundTable>) -> Vec<FoundTable> {
    let mut of_parents: BTreeMap<String, Vec<FoundTable>> = BTreeMap::new();
    for table in tables {
        of_parents.entry(parent(&table.folder).to_string()).or_default().push(table);
    }
    let shape = |table: &FoundTable| -> String {
        base_name(&table.folder).chars().filter(|c| !c.is_ascii_digit()).collect()
    };
    let mut all = Vec::new();
    for (folder, siblings) in of_parents {
        let is_batch = |table: &FoundTable| {
            table.files.loads.files == 0
                && table.raw == [table.folder.clone()]
                && base_name(&table.folder).bytes().any(|byte| byte.is_ascii_digit())
                && shape(table) == shape(&siblings[0])
        };
        if folder.is_empty() || siblings.len() < BATCHES_MIN || !siblings.iter().all(is_batch) {
            all.extend(siblings);
            continue;
        }
        let mut files = Files::default();
        siblings.into_iter().for_each(|table| files.merge(table.files));
        all.push(FoundTable { raw: vec![folder.clone()], folder, loads_in: Vec::new(), files });
    }
    all.sort_by(|a, b| a.folder.cmp(&b.folder));
    all
}

/// What a folder's name says of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Loads,
    Changes,
    Both,
}

/// The folder of a table without the first part of it that says what it holds, whether that part can hardly be the name of a
/// table, and what it holds.
fn canonical(root: &str) -> (String, bool, Holds) {
    // Qlik Replicate names the table of changes so.
    if let Some(table) = root.strip_suffix(CHANGE_TABLE) {
        return (table.to_string(), false, Holds::Changes);
    }
    let segments: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
    let found = segments.iter().enumerate().find_map(|(at, name)| {
        let name = name.to_ascii_lowercase();
        let holds = if LOADS.contains(&name.as_str()) {
            Holds::Loads
        } else if CHANGES.contains(&name.as_str()) {
            Holds::Changes
        } else {
            return None;
        };
        Some((at, NO_TABLES.contains(&name.as_str()), holds))
    });
    let Some((at, is_clear, holds)) = found else { return (root.to_string(), false, Holds::Both) };
    let others = segments.iter().enumerate().filter(|(number, _)| *number != at);
    let others: Vec<&str> = others.map(|(_, name)| *name).collect();
    (others.join("/"), is_clear, holds)
}

/// Puts folders of loads and of changes together that are of one table.
fn with_twins(roots: BTreeMap<String, Files>) -> Vec<FoundTable> {
    let mut twins: BTreeMap<String, Vec<(String, bool, Holds, Files)>> = BTreeMap::new();
    for (root, files) in roots {
        let (folder, is_clear, holds) = match files.of_transactions {
            0 => canonical(&root),
            // It has the changes of all tables.
            _ => (root.clone(), false, Holds::Both),
        };
        twins.entry(folder).or_default().push((root, is_clear, holds, files));
    }
    let mut tables = Vec::new();
    for (folder, members) in twins {
        let is_pair = members.len() > 1;
        if !is_pair && !members.iter().all(|(_, is_clear, ..)| *is_clear) {
            for (root, _, _, files) in members {
                tables.push(FoundTable {
                    folder: root.clone(),
                    raw: vec![root],
                    loads_in: Vec::new(),
                    files,
                });
            }
            continue;
        }
        let mut table =
            FoundTable { folder, raw: Vec::new(), loads_in: Vec::new(), files: Files::default() };
        for (root, _, holds, files) in members {
            let is_of_loads = holds == Holds::Loads;
            table.files.merge(if is_of_loads { files.into_loads() } else { files });
            if is_of_loads {
                table.loads_in.push(root.clone());
            }
            table.raw.push(root);
        }
        let folder = &table.folder;
        let is_inside =
            |root: &String| root == folder || is_below(root, folder) && !folder.is_empty();
        // The folder of the table has them all; or each is one of `raw.url`.
        if is_pair && table.raw.iter().all(is_inside) {
            table.raw = vec![folder.clone()];
        }
        tables.push(table);
    }
    tables.sort_by(|a, b| a.folder.cmp(&b.folder));
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    use object_store::path::Path;

    fn listed(paths: &[&str]) -> (Vec<FoundTable>, Vec<LeftOut>) {
        let mut listing = Listing::default();
        for path in paths {
            let object = ObjectMeta {
                location: Path::from(*path),
                last_modified: DateTime::UNIX_EPOCH,
                size: 10,
                e_tag: None,
                version: None,
            };
            listing.add(path, &object);
        }
        listing.tables()
    }

    /// Of each table its folder, those of its files and of its loads, and the number of loads and of others.
    fn shown(paths: &[&str]) -> Vec<String> {
        let (tables, left_out) = listed(paths);
        let shown = tables.iter().map(|table| {
            let FoundTable { folder, raw, loads_in, files } = table;
            let (loads, changes) = (files.loads.files, files.changes.files);
            format!("{folder}: {}; {}; {loads}+{changes}", raw.join(","), loads_in.join(","))
        });
        let left_out = left_out.iter().map(|left| format!("not {}", left.folder));
        shown.chain(left_out).collect()
    }

    #[test]
    fn a_table_is_what_is_before_the_dates() {
        let found = shown(&[
            "shop/orders/LOAD00000001.parquet",
            "shop/orders/2021/11/23/20211123-101500123.parquet",
            "shop/orders/2021/11/24/20211124-101500123.parquet",
            "shop/items/LOAD00000001.csv.gz",
            "crm/people/dt=2021-11-23/part-0.json",
        ]);
        assert_eq!(
            found,
            [
                "crm/people: crm/people; ; 0+1",
                "shop/items: shop/items; ; 1+0",
                "shop/orders: shop/orders; ; 1+2"
            ]
        );
        assert_eq!(shown(&["20211123-101500123.parquet", "LOAD00000001.parquet"]), [": ; ; 1+1"]);
    }

    #[test]
    fn folders_of_loads_and_of_changes_are_one_table() {
        let above =
            ["full/shop/orders/LOAD00000001.parquet", "cdc/shop/orders/20211123-101500123.parquet"];
        assert_eq!(
            shown(&above),
            ["shop/orders: cdc/shop/orders,full/shop/orders; full/shop/orders; 1+1"]
        );
        let below = ["orders/full/part-0.parquet", "orders/cdc/20211123-101500123.parquet"];
        assert_eq!(shown(&below), ["orders: orders; orders/full; 1+1"]);
        let beside =
            ["orders/full/20210101-000000000.parquet", "orders/20211123-101500123.parquet"];
        assert_eq!(shown(&beside), ["orders: orders; orders/full; 1+1"]);
        let parallel =
            ["orders/1/SEGMENT1_LOAD00000001.parquet", "orders/20211123-101500123.parquet"];
        assert_eq!(shown(&parallel), ["orders: orders; ; 1+1"]);
        let qlik = ["dbo/orders/LOAD00000001.csv", "dbo/orders__ct/20211123-101500123.csv"];
        assert_eq!(shown(&qlik), ["dbo/orders: dbo/orders,dbo/orders__ct; ; 1+1"]);
        // Tables with such names.
        assert_eq!(shown(&["shop/load/a.parquet"]), ["shop/load: shop/load; ; 0+1"]);
        assert_eq!(shown(&["shop/full/a.parquet"]), ["shop: shop/full; shop/full; 1+0"]);
    }

    #[test]
    fn folders_that_differ_in_digits_are_parts_of_a_table() {
        let batches =
            ["orders/batch_1/a.parquet", "orders/batch_2/a.parquet", "orders/batch_10/a.parquet"];
        assert_eq!(shown(&batches), ["orders: orders; ; 0+3"]);
        let tables = ["shop/t1/LOAD1.parquet", "shop/t2/LOAD1.parquet", "shop/t3/LOAD1.parquet"];
        assert_eq!(shown(&tables).len(), 3, "each has a full load");
        let other = [batches[0], batches[1], batches[2], "orders/items/a.parquet"];
        assert_eq!(shown(&other).len(), 4);
    }

    #[test]
    fn files_of_another_format_are_left_out() {
        let mut listing = Listing::default();
        for (path, size) in [("t/data.json", 1000), ("t/columns.csv", 10)] {
            let object = ObjectMeta {
                location: Path::from(path),
                last_modified: DateTime::UNIX_EPOCH,
                size,
                e_tag: None,
                version: None,
            };
            listing.add(path, &object);
        }
        let (tables, left_out) = listing.tables();
        assert_eq!(tables[0].files.format(), RawFormat::Json);
        assert_eq!(left_out, [LeftOut { folder: "t".into(), files: 1, why: OTHER_FORMAT }]);
    }

    #[test]
    fn what_is_no_table_of_changes_is_left_out() {
        let found = shown(&[
            "raw/orders/LOAD00000001.parquet",
            "raw/manifest.json",
            "raw/awsdms_status/LOAD00000001.parquet",
            "lake/orders/_delta_log/00000000000000000000.json",
            "lake/orders/part-0.parquet",
            "raw/_migrations/LOAD00000001.parquet",
            "raw/orders/_LOAD.parquet",
            "notes.txt",
        ]);
        let expected = [
            "raw/orders: raw/orders; ; 1+0",
            "not raw/_migrations",
            "not lake/orders",
            "not raw/awsdms_status",
            "not raw",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_few_files_of_each_end_are_remembered() {
        let days: Vec<String> =
            (1..=9).map(|day| format!("t/2021010{day}-000000000.parquet")).collect();
        let paths: Vec<&str> = days.iter().rev().map(String::as_str).collect();
        let (tables, _) = listed(&paths);
        let files = &tables[0].files;
        let few =
            listed(&["t/1/LOAD00000001.csv", "t/2/LOAD00000001.csv", "t/3/LOAD00000001.csv"]).0;
        assert_eq!(few[0].files.loads.sampled().len(), 3, "each once");
        let sampled = files.changes.sampled();
        let sampled: Vec<&str> = sampled.iter().map(|sampled| sampled.path.as_str()).collect();
        assert_eq!(sampled, [&days[0], &days[1], &days[7], &days[8]]);
        assert_eq!((files.changes.files, files.named, files.dated), (9, 9, 0));
    }
}
