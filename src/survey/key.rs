//! The primary key of a table, from a sample of its rows.
//!
//! What says that columns are the key, the strongest first:
//!
//! 1. before images: a tool writes the values of the key before an update;
//! 2. deletes that have only some columns, although the others are never null elsewhere: those of the key;
//! 3. values that are unique and never null in the full load, or else among inserts; with a name as keys have it; and by which
//!    updates and deletes find their rows, while inserts find none.
//!
//! A table of which all changes are inserts, and in which nothing is unique, most likely has no key: each row then is one of the
//! table, so that nothing is lost if that is wrong.

use std::collections::HashSet;

use arrow::datatypes::DataType;

use crate::config::Operation;
use crate::survey::Certainty;
use crate::survey::sample::{Column, Sample, has_no_text};
use crate::types::times::parse_time;

/// The prefixes of the names of before images: first those that tools have by default.
const BEFORE_IMAGES: [&str; 6] = ["_old_", "BI_", "bi_", "before_", "old_", "BEFORE_"];
/// How many of them no column of the application has.
const OF_TOOLS: usize = 3;

/// The most columns that are listed.
const LISTED_MAX: usize = 5;

/// The rows from which on a column that is unique is not so by chance.
const MANY_ROWS: usize = 100;
/// The columns of which a key of several can consist.
const COMPOSITE_OF: usize = 8;
/// The score from which on a column may be the key, and from which on it likely is.
const SCORE_MIN: i32 = 3;
const SCORE_LIKELY: i32 = 7;

/// The score of a name that is that of the table's key.
const OF_TABLE: i32 = 5;

/// Parts of names of keys, and of columns that are none.
const LIKE_KEY: [&str; 7] = ["id", "key", "uuid", "guid", "pk", "no", "code"];
const UNLIKE_KEY: [&str; 14] = [
    "name", "note", "mail", "amount", "price", "state", "status", "desc", "title", "comment",
    "balance", "text", "url", "count",
];

/// The key that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its columns; `None` if it is not known.
    pub(super) columns: Option<Vec<String>>,
    pub(super) certainty: Certainty,
    /// What says so, or what was found instead.
    pub(super) why: String,
    /// The prefix of columns with its values before an update.
    pub(super) before_image_prefix: Option<String>,
}

/// What is known of the rows of a sample.
pub(super) struct Rows<'a> {
    pub(super) sample: &'a Sample,
    /// What each row is.
    pub(super) operations: &'a [Operation],
    /// The columns that are not the table's own: operation, order.
    pub(super) others: &'a [String],
    /// The name of the table.
    pub(super) table: &'a str,
    /// Whether the sample has all files, from the first one on.
    pub(super) is_gapless: bool,
    /// Whether rows have no operations, so that the rows of a key can come again and again.
    pub(super) is_flat: bool,
    /// Whether each file may be a copy of the table.
    pub(super) are_copies: bool,
}

/// Finds the key.
pub(super) fn find(rows: &Rows) -> Key {
    let columns: Vec<&Column> = rows.own_columns().collect();
    if let Some(key) = rows.by_before_images(&columns) {
        return key;
    }
    let mut key = rows.by_deletes(&columns).unwrap_or_else(|| rows.by_values(&columns));
    if let Some(columns) = &key.columns {
        let has_image =
            |prefix: &&str| columns.iter().any(|name| rows.image(prefix, name).is_some());
        key.before_image_prefix = BEFORE_IMAGES.into_iter().find(has_image).map(String::from);
    }
    key
}

impl<'a> Rows<'a> {
    /// The columns of the table itself that can be of a key, in their order.
    fn own_columns(&self) -> impl Iterator<Item = &'a Column> {
        let is_other = |column: &&Column| {
            let is_role = self.others.iter().any(|other| other.eq_ignore_ascii_case(&column.name));
            let mut stems = BEFORE_IMAGES.iter().filter_map(|prefix| {
                let stem = column.name.strip_prefix(prefix)?;
                self.sample.column(stem).and_then(|_| self.image(prefix, stem))
            });
            is_role || stems.next().is_some()
        };
        self.sample.columns.iter().filter(move |column| !is_other(column))
    }

    /// The column with the values of another one before an update, which only updates have.
    fn image(&self, prefix: &str, name: &str) -> Option<&'a Column> {
        let column = self.sample.column(&format!("{prefix}{name}"))?;
        let is_of_update =
            |row: usize| self.is(row, Operation::Update) || column.values[row].is_none();
        (0..self.sample.rows()).all(is_of_update).then_some(column)
    }

    fn is(&self, row: usize, operation: Operation) -> bool {
        self.operations.get(row) == Some(&operation)
    }

    fn with(&self, operation: Operation) -> impl Iterator<Item = usize> + '_ {
        (0..self.sample.rows()).filter(move |row| self.is(*row, operation))
    }

    /// The columns of which there are before images with a prefix, if they are not those of all columns.
    fn by_before_images(&self, columns: &[&Column]) -> Option<Key> {
        let (rows, _) = self.unique_rows();
        let prefix = BEFORE_IMAGES[..OF_TOOLS].iter().find_map(|prefix| {
            let has_image = |column: &&&Column| self.image(prefix, &column.name).is_some();
            let with: Vec<&Column> = columns.iter().filter(has_image).copied().collect();
            let is_key = !with.is_empty() && with.len() < columns.len() && is_unique(&with, &rows);
            let names = || with.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
            is_key.then(|| (*prefix, names()))
        });
        let (prefix, columns) = prefix?;
        Some(Key {
            why: format!("the files have their values before an update (`{prefix}…`)"),
            columns: Some(columns),
            // All columns may have them.
            certainty: if prefix == "_old_" { Certainty::Sure } else { Certainty::Likely },
            before_image_prefix: Some(prefix.into()),
        })
    }

    /// The only columns that deletes have, if others are never null elsewhere.
    fn by_deletes(&self, columns: &[&Column]) -> Option<Key> {
        let deletes: Vec<usize> = self.with(Operation::Delete).collect();
        if deletes.is_empty() {
            return None;
        }
        let is_null = |column: &Column, row: &usize| column.values[*row].is_none();
        let others: Vec<usize> =
            (0..self.sample.rows()).filter(|row| !self.is(*row, Operation::Delete)).collect();
        let (key, rest): (Vec<&Column>, Vec<&Column>) =
            columns.iter().partition(|column| deletes.iter().all(|row| !is_null(column, row)));
        let are_missing = rest.iter().all(|column| deletes.iter().all(|row| is_null(column, row)));
        let is_needed =
            |column: &&Column| others.len() > 1 && others.iter().all(|row| !is_null(column, row));
        if key.is_empty() || !are_missing || !rest.iter().any(is_needed) {
            return None;
        }
        // A time that the tool has written is in each row, too.
        let without_times: Vec<&Column> =
            key.iter().copied().filter(|column| !is_time(column)).collect();
        let has_times = without_times.len() < key.len();
        let fits = |columns: &[&Column]| {
            let found = self.found_by(columns);
            !columns.is_empty() && found.rows > 0 && found.contradictions == 0
        };
        let is_known = self.is_gapless || !has_times;
        let columns = if !self.is_gapless || fits(&key) {
            key
        } else if fits(&without_times) {
            without_times
        } else {
            return None;
        };
        let rows = deletes.len();
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let deletes = if rows == 1 {
            "the delete that was read has no".into()
        } else {
            format!("the {rows} deletes that were read have no")
        };
        if !is_known {
            let names = names.join(", ");
            return Some(unknown(format!(
                "{deletes} other columns than {names}, and one of these is a time: write the columns of the key, without the \
                 time if the tool has written it"
            )));
        }
        let certainty = if rows > 1 { Certainty::Sure } else { Certainty::Likely };
        Some(Key { certainty, ..guess(names, format!("{deletes} other columns")) })
    }

    /// The rows in which values of a key are not repeated, and what they are called.
    fn unique_rows(&self) -> (Vec<usize>, &'static str) {
        if self.are_copies
            && let Some(last) = self.sample.files.last()
        {
            return (last.rows.clone().collect(), "row of the last date");
        }
        let loads: Vec<usize> = self
            .sample
            .files
            .iter()
            .filter(|file| file.is_load)
            .flat_map(|file| file.rows.clone())
            .collect();
        if loads.len() > 1 {
            // A change can have been made while the load ran.
            return (loads, "row of full loads");
        }
        if self.are_all_inserts() {
            return ((0..self.sample.rows()).collect(), "row");
        }
        if !loads.is_empty() {
            return (loads, "row of full loads");
        }
        (self.with(Operation::Insert).collect(), "insert")
    }

    /// The column, or columns, with unique values that fit best.
    fn by_values(&self, columns: &[&Column]) -> Key {
        let (rows, what) = self.unique_rows();
        if rows.is_empty() {
            return unknown("there is no row from which it can be told".into());
        }
        let were_read = read(rows.len(), what);
        let never_null: Vec<&Column> =
            columns.iter().copied().filter(|column| self.is_complete(column)).collect();
        let single = self.unique_columns(&never_null, &rows);
        // Without an update or delete, a column can be unique by chance, such as that of another table's key.
        let is_clear =
            |name: &str| name_score(name, self.table) >= OF_TABLE || !self.are_all_inserts();
        let is_of_copy = self.are_copies
            || self.sample.files.iter().any(|file| file.is_load && !file.rows.is_empty());
        if let Some(key) = best(&single, &were_read, rows.len())
            && (is_of_copy || key.columns.iter().flatten().all(|name| is_clear(name)))
        {
            return key;
        }
        if let Some((columns, found)) = self.composite(&never_null, &rows) {
            let why = format!(
                "together they are unique and never null in {were_read}, and {} by them",
                finds(found.rows)
            );
            return guess(columns.iter().map(|column| column.name.clone()).collect(), why);
        }
        let named = |column: &&&Column| {
            can_be_key(&column.data_type) && name_score(&column.name, self.table) >= OF_TABLE
        };
        if self.is_flat
            && let Some(column) = never_null.iter().find(named)
        {
            let why = "its name says so, and it is never null; rows have no operations, so that a key can come again";
            return guess(vec![column.name.clone()], why.into());
        }
        let has_changes = self.sample.changes().any(|file| !file.rows.is_empty());
        let has_only_inserts = !self.is_flat && has_changes && self.are_all_inserts();
        let is_like_key = |column: &&Column| name_score(&column.name, self.table) >= OF_TABLE;
        let has_repeats = !is_unique(columns, &rows) && !columns.iter().any(is_like_key);
        if has_only_inserts && single.is_empty() && has_repeats {
            let why = format!(
                "whole rows come several times in {were_read}, and all changes are inserts: it looks like a table without a \
                 key, of which every row is kept"
            );
            return guess(Vec::new(), why);
        }
        unknown(if single.is_empty() {
            format!(
                "no column is unique and never null in {were_read}. Write the columns of the primary key, or [] if the table \
                 has none: then every row is kept"
            )
        } else {
            let columns: Vec<&Column> = single.iter().map(|(_, column, _)| *column).collect();
            let columns = listed(&columns);
            format!("unique in {were_read}, and nothing says which of them is the key: {columns}")
        })
    }

    /// The columns with unique values, those that fit a key best first, with how well they do.
    fn unique_columns(
        &self,
        columns: &[&'a Column],
        rows: &[usize],
    ) -> Vec<(i32, &'a Column, Found)> {
        let mut single: Vec<(i32, &Column, Found)> = columns
            .iter()
            .enumerate()
            .filter(|(_, column)| {
                can_be_key(&column.data_type) && !is_time(column) && is_unique(&[**column], rows)
            })
            .map(|(at, column)| {
                let found = self.found_by(&[*column]);
                (self.score(at, column, found, rows.len()), *column, found)
            })
            .collect();
        // Of equal ones the first.
        single.sort_by_key(|(score, ..)| std::cmp::Reverse(*score));
        single
    }

    fn are_all_inserts(&self) -> bool {
        self.operations.iter().all(|operation| *operation == Operation::Insert)
    }

    /// Whether rows do not contradict that columns are the key: they are never null, and unique where a key must be.
    pub(super) fn may_be_key(&self, names: &[String]) -> bool {
        let columns: Option<Vec<&Column>> =
            names.iter().map(|name| self.sample.column(name)).collect();
        let (rows, _) = self.unique_rows();
        columns.is_some_and(|columns| {
            let are_complete = columns.iter().all(|column| self.is_complete(column));
            are_complete && (self.is_flat && !self.are_copies || is_unique(&columns, &rows))
        })
    }

    /// Whether a column is never null.
    fn is_complete(&self, column: &Column) -> bool {
        let rows = self.sample.rows();
        rows > 0
            && (0..rows)
                .all(|row| column.values[row].is_some() || self.is(row, Operation::Truncate))
    }

    /// How well a column fits a key.
    fn score(&self, at: usize, column: &Column, found: Found, rows: usize) -> i32 {
        let mut score = name_score(&column.name, self.table);
        score += if at == 0 { 2 } else { 0 };
        score += if rows >= MANY_ROWS { 2 } else { 0 };
        score += if column.data_type.is_integer() { 1 } else { 0 };
        score += match found {
            Found { contradictions: 1.., .. } => -6,
            Found { rows: 1.., .. } => 4,
            Found { .. } => 0,
        };
        score
    }

    /// How updates and deletes find rows by a key, and what speaks against it.
    fn found_by(&self, columns: &[&Column]) -> Found {
        let mut found = Found::default();
        if !self.is_gapless || self.is_flat {
            return found;
        }
        let is_of_load = |row: usize| {
            let mut loads = self.sample.files.iter().filter(|file| file.is_load);
            loads.any(|file| file.rows.contains(&row))
        };
        let mut live: HashSet<Vec<&str>> = HashSet::new();
        for row in 0..self.sample.rows() {
            let Some(key) = key_of(columns, row) else { continue };
            let is_new = match self.operations[row] {
                Operation::Delete => !live.remove(&key),
                _ => live.insert(key),
            };
            match self.operations[row] {
                // A load says again what there is.
                Operation::Insert if !is_new && !is_of_load(row) => found.contradictions += 1,
                Operation::Update | Operation::Delete if is_new => found.contradictions += 1,
                Operation::Update | Operation::Delete => found.rows += 1,
                _ => {}
            }
        }
        found
    }

    /// Two or three columns that are unique together and by which all updates and deletes find their rows.
    fn composite(
        &self,
        columns: &[&'a Column],
        rows: &[usize],
    ) -> Option<(Vec<&'a Column>, Found)> {
        let columns: Vec<&Column> = columns
            .iter()
            .copied()
            .filter(|column| !column.data_type.is_floating() && !has_no_text(&column.data_type))
            .take(COMPOSITE_OF)
            .collect();
        let all = 0..columns.len();
        let pairs = all.clone().flat_map(|a| (a + 1..columns.len()).map(move |b| vec![a, b]));
        let triples = all.flat_map(|a| {
            let columns = columns.len();
            (a + 1..columns).flat_map(move |b| (b + 1..columns).map(move |c| vec![a, b, c]))
        });
        pairs.chain(triples).find_map(|numbers| {
            let key: Vec<&Column> = numbers.iter().map(|number| columns[*number]).collect();
            let found = self.found_by(&key);
            let fits = found.rows > 0 && found.contradictions == 0 && is_unique(&key, rows);
            fits.then_some((key, found))
        })
    }
}

/// The updates and deletes that find a row by a key, and the changes that contradict it.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    rows: usize,
    contradictions: usize,
}

/// The column that fits best, if it fits.
fn best(single: &[(i32, &Column, Found)], were_read: &str, rows: usize) -> Option<Key> {
    let (score, column, found) = single.first().filter(|(score, ..)| *score >= SCORE_MIN)?;
    let others: Vec<&Column> = single[1..].iter().map(|(_, column, _)| *column).collect();
    let mut why = format!("it is unique and never null in {were_read}");
    if found.rows > 0 && found.contradictions == 0 {
        why += &format!("; {} by it", finds(found.rows));
    }
    if !others.is_empty() {
        why += &format!("; so are {}", listed(&others));
    }
    let is_shown = rows >= MANY_ROWS || found.rows > 0 && found.contradictions == 0;
    let certainty =
        if *score >= SCORE_LIKELY && is_shown { Certainty::Likely } else { Certainty::Guess };
    Some(Key { certainty, ..guess(vec![column.name.clone()], why) })
}

fn guess(columns: Vec<String>, why: String) -> Key {
    Key { columns: Some(columns), certainty: Certainty::Guess, why, before_image_prefix: None }
}

fn listed(columns: &[&Column]) -> String {
    let names = columns.iter().take(LISTED_MAX).map(|column| format!("`{}`", column.name));
    let names = names.collect::<Vec<_>>().join(", ");
    match columns.len().saturating_sub(LISTED_MAX) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// The rows that were read, of a kind.
fn read(rows: usize, what: &str) -> String {
    match what.split_once(' ') {
        _ if rows == 1 => format!("the only {what} that was read"),
        Some((noun, rest)) => format!("the {rows} {noun}s {rest} that were read"),
        None => format!("the {rows} {what}s that were read"),
    }
}

/// The changes that find their row.
fn finds(rows: usize) -> String {
    if rows == 1 {
        "an update or delete finds its row".into()
    } else {
        format!("{rows} updates and deletes find their rows")
    }
}

/// A key that is asked.
pub(super) fn unknown(why: String) -> Key {
    Key { columns: None, certainty: Certainty::Asked, why, before_image_prefix: None }
}

/// Whether a single column of a type can be a key. Times are unique by chance.
fn can_be_key(data_type: &DataType) -> bool {
    let is_other = data_type.is_floating() || data_type.is_temporal() || has_no_text(data_type);
    !is_other && !matches!(data_type, DataType::Boolean | DataType::Null)
}

fn key_of<'a>(columns: &[&'a Column], row: usize) -> Option<Vec<&'a str>> {
    columns.iter().map(|column| column.values[row].as_deref()).collect()
}

/// Whether nearly all values of a column are times: some can be bad.
fn is_time(column: &Column) -> bool {
    let is_time = |text: &&String| parse_time(text, chrono_tz::UTC).is_some();
    let values = column.values.iter().flatten();
    let (all, times) = (values.clone().count(), values.filter(is_time).count());
    column.data_type.is_temporal() || times > 0 && times * 4 >= all * 3
}

/// Whether no two of some rows have the same values.
fn is_unique(columns: &[&Column], rows: &[usize]) -> bool {
    let mut seen = HashSet::new();
    rows.iter().all(|row| key_of(columns, *row).is_some_and(|key| seen.insert(key)))
}

/// Whether a word is a name, or its singular.
fn is_singular(word: &str, name: &str) -> bool {
    let singular = |plural: &str, ending: &str| {
        name.strip_suffix(plural).map(|stem| format!("{stem}{ending}"))
    };
    let forms =
        [singular("s", ""), singular("es", ""), singular("ies", "y"), Some(name.to_string())];
    !word.is_empty() && forms.into_iter().flatten().any(|form| form == word)
}

/// How much a name looks like that of a table's key.
fn name_score(name: &str, table: &str) -> i32 {
    let lower = name.to_ascii_lowercase();
    let table = table.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split(['_', '-', '.', ' ']).collect();
    let is_like_key =
        parts.last().is_some_and(|last| LIKE_KEY.contains(last)) || lower.ends_with("id");
    if lower == "id" {
        return 6;
    }
    if UNLIKE_KEY.iter().any(|part| lower.contains(part)) {
        return -3;
    }
    if !is_like_key {
        return 0;
    }
    let stem = parts[..parts.len() - 1].join("_");
    let stem =
        if stem.is_empty() { lower.strip_suffix("id").unwrap_or("").to_string() } else { stem };
    let last = table.rsplit(['_', '-', '.']).next().unwrap_or_default();
    let is_of_table = [table.as_str(), last].into_iter().any(|name| is_singular(&stem, name));
    if is_of_table { OF_TABLE } else { 3 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::sample::SampledFile;

    use std::ops::Range;

    use Operation::{Delete, Insert, Update};

    /// A sample of loads and of changes, of columns by their names, and its operations.
    fn sample(
        columns: &[&str],
        loads: &[&[&str]],
        changes: &[(Operation, &[&str])],
    ) -> (Sample, Vec<Operation>) {
        let value = |text: &&str| (!text.is_empty()).then(|| text.to_string());
        let rows: Vec<&[&str]> =
            loads.iter().copied().chain(changes.iter().map(|(_, row)| *row)).collect();
        let is_number = |number: usize| {
            rows.iter().all(|row| row[number].is_empty() || row[number].parse::<i64>().is_ok())
        };
        let columns = columns.iter().enumerate().map(|(number, name)| Column {
            name: name.to_string(),
            data_type: if is_number(number) { DataType::Int64 } else { DataType::Utf8View },
            other_types: Vec::new(),
            values: rows.iter().map(|row| value(&row[number])).collect(),
            extremes: Vec::new(),
        });
        let file = |is_load: bool, rows: Range<usize>| SampledFile {
            path: String::new(),
            is_load,
            time: None,
            rows,
            is_whole: true,
        };
        let files = vec![file(true, 0..loads.len()), file(false, loads.len()..rows.len())];
        let of_loads = loads.iter().map(|_| Insert);
        let operations = of_loads.chain(changes.iter().map(|(operation, _)| *operation)).collect();
        (Sample { columns: columns.collect(), files, ..Sample::default() }, operations)
    }

    fn found(
        table: &str,
        (sample, operations): &(Sample, Vec<Operation>),
    ) -> (Option<Vec<String>>, Certainty) {
        let rows = Rows {
            sample,
            operations,
            others: &[],
            table,
            is_gapless: true,
            is_flat: false,
            are_copies: false,
        };
        let key = find(&rows);
        (key.columns, key.certainty)
    }

    fn columns(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_key_is_known_by_its_name_and_its_values() {
        let orders =
            sample(&["customer_id", "order_id", "v"], &[&["7", "1", "a"], &["7", "2", "b"]], &[]);
        assert_eq!(found("orders", &orders), (columns(&["order_id"]), Certainty::Guess));
        let loyalty = sample(
            &["event_id", "cust_id"],
            &[&["1", "a"], &["2", "b"]],
            &[(Update, &["3", "a"]), (Insert, &["4", "c"]), (Delete, &["5", "b"])],
        );
        assert_eq!(found("cust_loyalty", &loyalty), (columns(&["cust_id"]), Certainty::Likely));
        // Each order has one line so far.
        let lines = sample(&["order_id", "line"], &[&["1", "1"], &["2", "1"]], &[]);
        assert_eq!(found("order_items", &lines), (columns(&["order_id"]), Certainty::Guess));
        // Inserts that the load has, too.
        let load: Vec<[String; 1]> = (0..150).map(|id| [id.to_string()]).collect();
        let load: Vec<Vec<&str>> = load.iter().map(|row| vec![row[0].as_str()]).collect();
        let load: Vec<&[&str]> = load.iter().map(Vec::as_slice).collect();
        let people = sample(&["id"], &load, &[(Insert, &["149"]), (Insert, &["150"])]);
        assert_eq!(found("people", &people).0, columns(&["id"]));
    }

    #[test]
    fn deletes_with_only_their_key_say_what_it_is() {
        let items = sample(
            &["name", "shop", "item"],
            &[&["x", "1", "1"], &["y", "1", "2"]],
            &[(Delete, &["", "1", "1"]), (Delete, &["", "1", "2"])],
        );
        assert_eq!(found("items", &items), (columns(&["shop", "item"]), Certainty::Sure));
        // What else each row has is no key: a time of the tool, a version.
        let at = ["2024-01-01 00:00:00", "2024-01-02 00:00:00", "2024-01-03 00:00:00"];
        let load: [&[&str]; 2] = [&["1", "a", at[0], "1"], &["2", "b", at[0], "1"]];
        let changes = [(Update, &["1", "c", at[1], "2"][..]), (Delete, &["2", "", at[2], "2"])];
        let times = sample(&["id", "v", "ingested_at", "version"], &load, &changes);
        assert_eq!(found("items", &times).0, columns(&["id"]));
        let load: [&[&str]; 2] = [&["1", at[0], "a"], &["1", at[1], "b"]];
        let series = sample(&["sensor", "ts", "v"], &load, &[(Delete, &["1", at[1], ""])]);
        assert_eq!(found("series", &series).0, columns(&["sensor", "ts"]));
        // A null in a row that is deleted as a whole says nothing.
        let notes = sample(&["id", "note"], &[&["1", "x"], &["2", ""]], &[(Delete, &["2", ""])]);
        assert_eq!(found("notes", &notes), (columns(&["id"]), Certainty::Likely));
    }

    #[test]
    fn a_key_of_several_columns_is_proved_by_updates() {
        let lines = sample(
            &["ord", "line", "qty"],
            &[&["1", "1", "5"], &["1", "2", "5"], &["2", "1", "5"]],
            &[(Update, &["1", "2", "7"]), (Insert, &["2", "2", "5"])],
        );
        assert_eq!(found("lines", &lines), (columns(&["ord", "line"]), Certainty::Guess));
    }

    #[test]
    fn without_evidence_it_is_asked_or_every_row_is_kept() {
        let log = sample(&["a", "b"], &[&["1", "2"], &["1", "2"]], &[(Insert, &["1", "2"])]);
        assert_eq!(found("log", &log), (Some(Vec::new()), Certainty::Guess));
        let lines = [(Insert, &["1", "1"][..]), (Insert, &["1", "2"]), (Insert, &["2", "1"])];
        let lines = sample(&["ord", "line"], &[], &lines);
        assert_eq!(found("order_lines", &lines), (None, Certainty::Asked), "no row comes twice");
        let other = sample(&["a", "b"], &[&["1", "2"], &["1", "2"]], &[(Update, &["1", "2"])]);
        assert_eq!(found("log", &other), (None, Certainty::Asked));
        // The key of another table is unique by chance.
        let inserts = [(Insert, &["7", "1"][..]), (Insert, &["8", "1"])];
        let history = sample(&["aid", "delta"], &[], &inserts);
        assert_eq!(found("history", &history), (None, Certainty::Asked));
        let names = sample(&["x_name", "y_name"], &[&["a", "b"], &["c", "d"]], &[]);
        assert_eq!(found("people", &names), (None, Certainty::Asked));
    }

    #[test]
    fn a_column_of_the_application_is_no_before_image() {
        let prices = sample(
            &["id", "old_price", "price", "BI_note", "note"],
            &[&["1", "5", "6", "x", "y"], &["2", "6", "6", "x", "y"]],
            &[(Update, &["1", "6", "7", "x", "z"])],
        );
        let rows = Rows {
            sample: &prices.0,
            operations: &prices.1,
            others: &[],
            table: "prices",
            is_gapless: true,
            is_flat: false,
            are_copies: false,
        };
        let key = find(&rows);
        assert_eq!((key.columns, key.before_image_prefix), (columns(&["id"]), None));
    }

    #[test]
    fn before_images_say_what_the_key_is() {
        let moves =
            sample(&["v", "id", "BI_id"], &[&["a", "1", ""]], &[(Update, &["b", "2", "1"])]);
        let rows = Rows {
            sample: &moves.0,
            operations: &moves.1,
            others: &[],
            table: "moves",
            is_gapless: true,
            is_flat: false,
            are_copies: false,
        };
        let key = find(&rows);
        assert_eq!(
            (key.columns, key.before_image_prefix.as_deref()),
            (columns(&["id"]), Some("BI_"))
        );
    }
}
