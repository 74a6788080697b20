//! Random change logs against a small model. The curated rows, `history` and the aggregates must be
//! those of the model, in all keep modes, for keys of several types, in a local folder and on an S3
//! server, whatever is delivered late, and whatever windows fold it: of every kind, shuffled,
//! overlapping and repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int32Array, Int64Array, TimestampMicrosecondArray,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Answer, DAY_US, DELETION_VECTORS, Database, FLOWS, Lab, Place, ROWS_PER_DAY, Report, Row, Task,
    count_of_each_day_so_far, integers, now, optional_texts, test_times, texts,
};

const DAILY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat";

/// How many rows of each day hold still.
const OPEN_PER_DAY: &str =
    "SELECT event_dt AS dt, COUNT(*) FILTER (WHERE is_current) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// How many rows of each day have a key that lives.
const LIVE_PER_DAY: &str =
    "SELECT event_dt AS dt, COUNT(*) FILTER (WHERE NOT _deleted) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// The days of the tests: 2020-01-01 is day 0.
const FIRST_DAY: i64 = 18_262;

#[derive(Clone, Debug)]
struct Change {
    key: i64,
    /// `T` is a truncate, and a change of no key.
    op: Option<&'static str>,
    time: i64,
    event_day: Option<i64>,
    cat: Option<&'static str>,
}

/// A file: whether it is a full load, the day in its name, and its changes.
type File = (bool, i64, Vec<Change>);

fn change() -> impl Strategy<Value = Change> {
    let ops = [Some("I"), Some("U"), Some("u"), Some("D"), Some("d"), None, Some("T")];
    let op = prop::sample::select(ops.to_vec());
    let cat = prop::sample::select(vec![Some("a"), Some("B/c: %=é"), None]);
    (0..4i64, op, 0..5i64, prop::option::weighted(0.9, 0..4i64), cat)
        .prop_map(|(key, op, time, event_day, cat)| Change { key, op, time, event_day, cat })
}

fn file() -> impl Strategy<Value = File> {
    (prop::bool::weighted(0.2), 0..3i64, prop::collection::vec(change(), 0..8))
}

fn files() -> impl Strategy<Value = Vec<File>> {
    prop::collection::vec(file(), 1..5)
}

/// The name of a file; a full load with a time has it in its name.
fn name(number: usize, (full_load, day, changes): &File, has_time: bool) -> String {
    if *full_load && has_time {
        let second = changes.iter().map(|change| change.time).min().unwrap_or_default();
        format!("20200101-0000{second:02}{number:03}.parquet")
    } else if *full_load {
        format!("LOAD{number:08X}.parquet")
    } else {
        format!("202001{:02}-00000000{number}.parquet", day + 1)
    }
}

/// The types that a key can have.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Integer,
    Text,
    Decimal,
    Float,
    Composite,
}

impl Keys {
    fn names(self) -> &'static [&'static str] {
        match self {
            Keys::Composite => &["k1", "k2"],
            _ => &["k1"],
        }
    }

    fn columns(self, keys: &[i64]) -> Vec<(&'static str, ArrayRef)> {
        let text = |n: &i64| ["", "a", "a key longer than twelve bytes", "é"][*n as usize];
        let column: ArrayRef = match self {
            Keys::Integer => {
                Arc::new(Int32Array::from_iter_values(keys.iter().map(|n| *n as i32 - 1)))
            }
            Keys::Text => texts(keys.iter().map(text)),
            Keys::Decimal => Arc::new(
                Decimal128Array::from_iter_values(keys.iter().map(|n| i128::from(*n) * 50 - 50))
                    .with_precision_and_scale(28, 2)
                    .expect("a decimal"),
            ),
            // Key 0 is written as 0.0 or as -0.0.
            Keys::Float => Arc::new(Float64Array::from_iter_values(keys.iter().enumerate().map(
                |(row, n)| {
                    if *n == 0 && row % 2 == 1 { -0.0 } else { *n as f64 / 2.0 }
                },
            ))),
            Keys::Composite => {
                let first = integers(keys.iter().map(|n| n % 2));
                let second = texts(keys.iter().map(|n| format!("{}", n / 2)));
                return vec![("k1", first), ("k2", second)];
            }
        };
        vec![("k1", column)]
    }

    /// The values of a key, as text.
    fn values(self, key: i64) -> Vec<String> {
        let columns = self.columns(&[key]).into_iter();
        let format = FormatOptions::default();
        let text = |(_, column): (&str, ArrayRef)| {
            let shown = ArrayFormatter::try_new(&column, &format).expect("shown");
            shown.value(0).to_string()
        };
        columns.map(text).collect()
    }

    /// The number of the key of a row.
    fn number(self, row: &Row) -> i64 {
        let text = |name: &str| row.get(name).cloned().unwrap_or_default();
        match self {
            Keys::Integer => text("k1").parse::<i64>().expect("a key") + 1,
            Keys::Text => ["", "a", "a key longer than twelve bytes", "é"]
                .iter()
                .position(|k| *k == text("k1"))
                .expect("a key") as i64,
            Keys::Decimal => (text("k1").parse::<f64>().expect("a key") * 2.0) as i64 + 1,
            Keys::Float => (text("k1").parse::<f64>().expect("a key") * 2.0) as i64,
            Keys::Composite => {
                text("k1").parse::<i64>().expect("a key")
                    + 2 * text("k2").parse::<i64>().expect("a key")
            }
        }
    }
}

/// What orders the changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Orders {
    /// The commit time.
    Time,
    /// The commit time and a column that is always null, `zero`.
    Several,
    /// A number: the commit time of a change is its file's.
    Number,
    /// File and row.
    Files,
}

impl Orders {
    fn columns(self) -> &'static [&'static str] {
        match self {
            Orders::Time => &["ts"],
            Orders::Several => &["ts", "zero"],
            Orders::Number => &["n"],
            Orders::Files => &[],
        }
    }

    fn has_commit_time(self) -> bool {
        matches!(self, Orders::Time | Orders::Several)
    }
}

/// What windows select.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Name,
    Path,
    Modified,
    Commit,
}

impl By {
    fn setting(self) -> &'static str {
        match self {
            By::Name => "name",
            By::Path => "path",
            By::Modified => "modified",
            By::Commit => "commit",
        }
    }

    /// The start or end of a window: a number of days, or of seconds of the first day.
    fn instant(self, at: i64) -> String {
        match self {
            By::Commit => format!("2020-01-01T00:00:{at:02}Z"),
            _ => format!("2020-01-{:02}", at + 1),
        }
    }

    /// The path of a file; `loads` are the full loads that have a time, each in a folder of its own.
    fn path(self, number: usize, file: &File, has_time: bool) -> String {
        match self {
            _ if file.0 && has_time => format!("full/{}", name(number, file, true)),
            By::Path if !file.0 => {
                format!("2020/01/{:02}/{}", file.1 + 1, name(number, file, false))
            }
            _ => name(number, file, false),
        }
    }
}

fn put(lab: &Lab, case: &Case, number: usize, file: &File) {
    let Case { by, keys, orders, .. } = *case;
    let (full_load, day, changes) = file;
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    if !full_load {
        columns.push(("Op", optional_texts(changes.iter().map(|c| c.op))));
    }
    let times = changes.iter().map(|c| format!("2020-01-01 00:00:{:02}.000000", c.time));
    columns.push(("ts", texts(times)));
    let days = changes.iter().map(|c| Some((FIRST_DAY + c.event_day?) * DAY_US));
    columns
        .push(("event", Arc::new(TimestampMicrosecondArray::from_iter(days).with_timezone("UTC"))));
    columns.extend(keys.columns(&changes.iter().map(|c| c.key).collect::<Vec<_>>()));
    columns.push(("cat", optional_texts(changes.iter().map(|c| c.cat))));
    let ids = (0..changes.len()).map(|row| (number * 100 + row) as i64);
    columns.push(("id", integers(ids)));
    match orders {
        Orders::Several => columns.push(("zero", Arc::new(Int64Array::new_null(changes.len())))),
        Orders::Number => columns.push(("n", integers(changes.iter().map(|c| c.time)))),
        Orders::Time | Orders::Files => {}
    }
    let path = format!("raw/{}", by.path(number, file, case.loads_have_time));
    lab.put_columns(&path, columns);
    if by == By::Modified {
        lab.set_modified(&path, (FIRST_DAY + day) * 86_400);
    }
}

/// The result that the fold must have: the last change of each key and day, and of each key. A
/// change is its order, in tenths of milliseconds, whether its row is alive, its category and its id.
type Order = (bool, i64, String, usize);
type Last = (Order, bool, Option<&'static str>, i64);

struct Model {
    /// Those of `history`: the last change of each key and day, and what floors ended, which have no
    /// id.
    days: BTreeMap<(i64, Option<i64>), Last>,
    latest: BTreeMap<i64, (Option<i64>, Last)>,
    /// All changes, by key, with their commit times in microseconds since 1970 and days; and floors with their
    /// commit times, and what they are.
    changes: BTreeMap<i64, Vec<(i64, Last, Option<i64>)>>,
    floors: Vec<(i64, Order, &'static str)>,
    /// Whether rows of a history are equal if their categories are.
    has_equal_rows: bool,
}

/// A row of a history: its change, its day, and from when to when it holds, and what has ended it.
type HistoryRow<'a> = (&'a Last, Option<i64>, i64, Option<(i64, &'static str)>);

impl Model {
    /// The history of a key: at each time, the row of the last change up to then.
    fn history(&self, key: i64) -> Vec<HistoryRow<'_>> {
        let changes = self.changes.get(&key).map_or(&[][..], Vec::as_slice);
        let floors = self.floors.iter().map(|(time, ..)| *time);
        let times: BTreeSet<i64> = changes.iter().map(|change| change.0).chain(floors).collect();
        let mut rows: Vec<HistoryRow<'_>> = Vec::new();
        for time in times {
            let last =
                changes.iter().filter(|change| change.0 <= time).max_by_key(|change| &change.1);
            let floors = self.floors.iter().filter(|floor| floor.0 <= time);
            let lives = |last: &Last| last.1 && floors.clone().all(|floor| floor.1 < last.0);
            // What ends a row at this time if no other begins: a floor, or a delete that no floor follows.
            let is_delete = last.is_some_and(|(at, last, _)| {
                *at == time && !last.1 && floors.clone().all(|floor| floor.1 < last.0)
            });
            let floor = |row: &Last| {
                let after = floors.clone().filter(|floor| floor.0 == time && floor.1 > row.0);
                after.max_by_key(|floor| &floor.1).map_or("nothing", |floor| floor.2)
            };
            let last = last.filter(|(_, last, _)| lives(last));
            let open = rows.last_mut().filter(|row| row.3.is_none());
            match (open, last) {
                (Some(open), Some((_, last, _)))
                    if open.0 == last || (self.has_equal_rows && open.0.2 == last.2) =>
                {
                    continue;
                }
                (Some(open), Some(_)) => open.3 = Some((time, "update")),
                (Some(open), None) if is_delete => open.3 = Some((time, "delete")),
                (Some(open), None) => open.3 = Some((time, floor(open.0))),
                (None, _) => {}
            }
            rows.extend(last.map(|(_, last, day)| (last, *day, time, None)));
        }
        rows
    }
}

impl Model {
    /// The row of a key where deleted rows are kept: that of its last insert or update, its day, and the least time of a
    /// delete or floor after it.
    fn kept(&self, key: i64) -> Option<(&Last, Option<i64>, Option<i64>)> {
        let changes = self.changes.get(&key).map_or(&[][..], Vec::as_slice);
        let (_, row, day) = changes.iter().filter(|change| change.1.1).max_by_key(|one| &one.1)?;
        let deletes = changes.iter().filter(|change| !change.1.1);
        let deletes = deletes.map(|(time, delete, _)| (&delete.0, *time));
        let ends = deletes.chain(self.floors.iter().map(|(time, order, _)| (order, *time)));
        let first = ends.filter(|end| *end.0 > row.0).map(|(_, time)| time).min();
        Some((row, *day, first))
    }
}

/// The id of what a floor ended.
const ENDED: i64 = -1;

/// Folds those changes for which `is_folded` holds: it gets the number of the file and the time of
/// the change.
fn model(case: &Case, is_folded: &dyn Fn(usize, i64) -> bool) -> Model {
    let Case { orders, ref files, .. } = *case;
    let mut model = Model {
        days: BTreeMap::new(),
        latest: BTreeMap::new(),
        changes: BTreeMap::new(),
        floors: Vec::new(),
        has_equal_rows: case.keep == EQUAL,
    };
    let mut floors: BTreeSet<(Order, Option<i64>)> = BTreeSet::new();
    for (number, file) in files.iter().enumerate() {
        let times = file.2.iter().filter(|change| is_folded(number, change.time));
        let begin = times.map(|change| change.time).min();
        // A full load with a time is a floor, and rows right after it.
        let begin = begin.filter(|_| file.0 && case.loads_have_time);
        if let Some(time) = begin {
            let at = time * 10_000 + number as i64 * 10;
            let order = (true, at - 2, name(number, file, true), 0);
            model.floors.push((load_instant(time, number), order.clone(), "load"));
            floors.insert((order, Some(0)));
        }
        for (row, change) in file.2.iter().enumerate() {
            if !is_folded(number, change.time) {
                continue;
            }
            let live = file.0 || !matches!(change.op, Some("D" | "d"));
            let commit_day = if orders.has_commit_time() { 0 } else { file.1 };
            let day = if live { change.event_day } else { Some(commit_day) };
            let time = if orders == Orders::Files { 0 } else { change.time * 10_000 };
            let at = |second: i64| second * 10_000 + number as i64 * 10 - 1;
            let time = begin.map_or(time, at);
            let file_name = name(number, file, case.loads_have_time);
            let order = (!file.0 || begin.is_some(), time, file_name, row);
            let instant = match begin {
                Some(begin) => load_instant(begin, number),
                None if file.0 => i64::MIN,
                None if orders.has_commit_time() => FIRST_DAY * DAY_US + change.time * 1_000_000,
                None => (FIRST_DAY + file.1) * DAY_US + number as i64 * 1_000,
            };
            if !file.0 && change.op == Some("T") {
                model.floors.push((instant, order.clone(), "truncate"));
                floors.insert((order, Some(commit_day)));
                continue;
            }
            let last: Last = (order, live, change.cat, (number * 100 + row) as i64);
            model.changes.entry(change.key).or_default().push((instant, last.clone(), day));
            let slot = model.days.entry((change.key, day)).or_insert_with(|| last.clone());
            *slot = slot.clone().max(last.clone());
            let slot = model.latest.entry(change.key).or_insert_with(|| (day, last.clone()));
            if slot.1 <= last {
                *slot = (day, last);
            }
        }
    }
    let keys: Vec<i64> = model.latest.keys().copied().collect();
    for key in keys {
        let changes = model.days.iter().filter(|((of, _), _)| *of == key);
        let mut changes: Vec<Last> = changes.map(|(_, last)| last.clone()).collect();
        for (order, day) in &floors {
            let before = changes.iter().filter(|change| change.0 < *order).max();
            let of_day = model.days.get(&(key, *day)).filter(|change| change.0 < *order);
            if before.into_iter().chain(of_day).any(|change| change.1) {
                let ended: Last = (order.clone(), false, None, ENDED);
                let slot = model.days.entry((key, *day)).or_insert_with(|| ended.clone());
                *slot = slot.clone().max(ended.clone());
                changes.push(ended);
            }
        }
        let last = changes.into_iter().max();
        if let Some(ended) = last.filter(|last| last.3 == ENDED) {
            model.latest.insert(key, (None, ended));
        }
    }
    model
}

/// The time of a full load in its name, whose earliest change is of this second.
fn load_instant(second: i64, number: usize) -> i64 {
    FIRST_DAY * DAY_US + second * 1_000_000 + number as i64 * 1_000
}

fn day_text(day: i64) -> String {
    format!("2020-01-{:02}", day + 1)
}

/// A row as key, day, category and id; the empty text, if the table has no ids.
type CuratedRow = (i64, Option<String>, Option<String>, String);

fn curated_row(keys: Keys, row: &Row) -> CuratedRow {
    let id = row.get("id").cloned().unwrap_or_default();
    (keys.number(row), row.get("event_dt").cloned(), row.get("cat").cloned(), id)
}

/// A change log, and how it is delivered and folded.
#[derive(Clone, Debug)]
struct Case {
    keep: &'static str,
    format: &'static str,
    keys: Keys,
    orders: Orders,
    by: By,
    files: Vec<File>,
    /// For each file, the window before which it is delivered.
    deliveries: Vec<usize>,
    windows: Vec<(i64, i64)>,
    /// Whether full loads are among the changes, at the time of their names.
    loads_have_time: bool,
    /// Whether the tables are loaded into a database after each run.
    is_loaded: bool,
}

/// A window over everything.
const EVERYTHING: (i64, i64) = (0, 6);

impl Case {
    fn lab(&self, place: Place) -> Lab {
        let key = self.keys.names();
        let key_list = key.join(", ");
        let id = if self.keep == EQUAL && !self.names_columns() { "" } else { ", id" };
        let lab = Lab::builder();
        let lab =
            if self.orders.has_commit_time() { lab.set("raw.commit_time", "ts") } else { lab };
        let lab = lab
            .place(place)
            .set("key", key.to_vec())
            .keep(match self.keep {
                DELETED => "latest",
                EQUAL => HISTORY,
                keep => keep,
            })
            .window_by(self.by.setting())
            .set("raw.order_by", self.orders.columns().to_vec())
            .set("raw.event_time", "event")
            .format(self.format)
            .curated_sql(format!("SELECT {key_list}{id}, event_dt, cat FROM latest"))
            .aggregate("rows", ROWS_PER_DAY);
        // Rows that end then move to another partition.
        let is_divided = self.keep == EQUAL && self.files.len().is_multiple_of(2);
        let lab = if is_divided { lab.partition_by(&["is_current", "event_dt"]) } else { lab };
        let lab = if self.names_columns() { lab.set("history_columns", vec!["cat"]) } else { lab };
        let lab = if is_history(self.keep) {
            lab.aggregate("open", OPEN_PER_DAY)
        } else if self.keep == DELETED {
            lab.set("keep_deleted", true).aggregate("open", LIVE_PER_DAY)
        } else {
            lab.aggregate("daily", DAILY)
                .running_aggregate("status", count_of_each_day_so_far(&key_list))
                .aggregate("flows", FLOWS)
        };
        let lab = if self.loads_have_time {
            lab.set("raw.full_load", "*/full/*").set("raw.full_load_at", "name")
        } else {
            lab
        };
        let mut lab = if self.is_loaded { lab.loaded().build() } else { lab.build() };
        lab.now = now() + TimeDelta::days(1);
        lab
    }

    /// Whether rows are compared by the category alone, and have ids.
    fn names_columns(&self) -> bool {
        self.keep == EQUAL && self.files.len() % 3 < 2
    }

    fn run(&self, lab: &Lab, (start, end): (i64, i64)) -> Report {
        let report = lab.run(&self.by.instant(start), &self.by.instant(end));
        report.expect("a run")
    }

    /// Delivers and folds, and compares with the model after each window.
    fn check(&self, place: Place) {
        let database = self.is_loaded.then(Database::new);
        let lab = match &database {
            Some(database) => self.lab(place).follow(database),
            None => self.lab(place),
        };
        // For each file, the windows of rows in which it was read.
        let mut read: Vec<Vec<(i64, i64)>> = vec![Vec::new(); self.files.len()];
        let last = (self.windows.len(), EVERYTHING);
        let windows = self.windows.iter().copied().enumerate().chain([last]);
        for (step, window) in windows {
            self.deliver(&lab, step, last.0);
            if step % 3 == 1 {
                // A fold that does not keep the balance.
                let (start, end) = (self.by.instant(window.0), self.by.instant(window.1));
                lab.run_with(Task::Curate, &start, &end, &["aggregate=[]"]).expect("a run");
            }
            let report = self.run(&lab, window);
            assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
            if let Some(database) = &database {
                let tables: &[&str] = match self.keep {
                    DELETED => &["curated", "rows", "open"],
                    _ => &["curated", "daily", "rows", "status", "flows"],
                };
                lab.assert_followed(database, tables);
            }
            let folded = lab.folded_inputs();
            for (number, file) in self.files.iter().enumerate() {
                if !folded.contains(&self.by.path(number, file, self.loads_have_time)) {
                    continue;
                }
                if self.by != By::Commit || file.0 {
                    read[number].push(EVERYTHING);
                    continue;
                }
                // A run looks back: to rows of the windows that were run before, whenever the file
                // came, and whichever runs have read others of its rows.
                let before = self.windows[..step].iter().filter(|before| before.0 < window.0);
                read[number].extend(before.map(|(start, end)| (*start, *end.min(&window.0))));
                read[number].push(window);
            }
            let is_folded = |number: usize, time: i64| {
                let mut read = read[number].iter();
                read.any(|(start, end)| (*start..*end).contains(&time))
            };
            self.compare(&lab, &model(self, &is_folded));
        }
        // Runs that are repeated change no table and no file, not even those of an old window. (A
        // running table has a day without changes once a window with it was aggregated, so that
        // all windows are run before.)
        for window in &self.windows {
            self.run(&lab, *window);
        }
        let tables = ["lake/curated", "lake/rows", "lake/daily", "lake/status", "lake/flows"];
        let with_ends = ["lake/curated", "lake/rows", "lake/open"];
        let tables = if has_ends(self.keep) { &with_ends[..] } else { &tables[..] };
        let contents = || {
            let contents = tables.iter().map(|name| (lab.table(name), lab.list(name)));
            contents.collect::<Vec<_>>()
        };
        let before = contents();
        for window in self.windows.first().into_iter().chain([&EVERYTHING]) {
            let report = self.run(&lab, *window);
            assert_eq!((report.rows_written, report.partitions_removed), (0, 0));
            assert_eq!(contents(), before);
        }
    }

    /// Delivers the files that are due at a step.
    fn deliver(&self, lab: &Lab, step: usize, steps: usize) {
        for (number, file) in self.files.iter().enumerate() {
            let due = self.deliveries.get(number).map_or(0, |at| at % (steps + 1));
            if due == step {
                put(lab, self, number, file);
            }
        }
    }

    /// Folds some windows, without looking for late files, and catches up: the result must be that
    /// of one run over the whole span.
    fn check_catch_up(&self, place: Place) {
        let lab = self.lab(place);
        let steps = self.windows.len();
        let short = ["raw.lookback=0d"];
        for (step, (start, end)) in self.windows.iter().enumerate() {
            self.deliver(&lab, step, steps);
            let (start, end) = (self.by.instant(*start), self.by.instant(*end));
            lab.run_with(Task::Run, &start, &end, &short).expect("a run");
        }
        self.deliver(&lab, steps, steps);
        lab.catch_up(&[]).expect("caught up");
        let starts = self.windows.iter().map(|window| window.0).min();
        let ends = self.windows.iter().map(|window| window.1).max();
        let span = starts.unwrap_or(0)..ends.unwrap_or(0);
        let is_folded = |number: usize, time: i64| {
            let (full_load, day, _) = &self.files[number];
            let at = if self.by == By::Commit { time } else { *day };
            *full_load || span.contains(&at)
        };
        self.compare(&lab, &model(self, &is_folded));
        let again = lab.catch_up(&[]).expect("nothing to do");
        assert_eq!((again.files, again.rows_written), (0, 0));
        self.check_verified(&lab);
    }

    /// Plans each run, and afterwards verifies the table and explains its keys.
    fn check_questions(&self, place: Place) {
        let lab = self.lab(place);
        let steps = self.windows.len();
        for (step, (start, end)) in self.windows.iter().chain([&EVERYTHING]).enumerate() {
            self.deliver(&lab, step, steps);
            let before = lab.contents("lake");
            let (start, end) = (self.by.instant(*start), self.by.instant(*end));
            let planned = lab.plan(&start, &end, true).expect("a plan");
            assert_eq!(lab.contents("lake"), before, "a plan touches nothing");
            let report = lab.run(&start, &end).expect("a run");
            assert_eq!(
                (planned.files, planned.late_files, planned.bytes),
                (report.files, report.late_files, report.bytes)
            );
            let Some(fold) = planned.fold else {
                assert_eq!(report.files, 0);
                continue;
            };
            assert_eq!(
                [fold.rows_read, fold.rows_latest, fold.rows_superseded, fold.rows_deleted],
                [report.rows_read, report.rows_latest, report.rows_superseded, report.rows_deleted]
            );
            assert_eq!(
                [
                    fold.rows_written,
                    fold.partitions_written.len() as u64,
                    fold.partitions_removed.len() as u64
                ],
                [report.rows_written, report.partitions_written, report.partitions_removed]
            );
        }
        self.check_verified(&lab);
        let model = model(self, &|_, _| true);
        for key in 0..4 {
            self.check_explained(&lab, &model, key);
        }
    }

    fn check_verified(&self, lab: &Lab) {
        match lab.verify() {
            Ok(found) => assert!(found.is_equal, "{}", found.text()),
            // Where all windows were empty there is nothing to compare.
            Err(error) => assert!(error.to_string().contains("nothing to verify"), "{error}"),
        }
    }

    fn check_explained(&self, lab: &Lab, model: &Model, key: i64) {
        let values = self.keys.values(key);
        let explained = lab.explain(&values.iter().map(String::as_str).collect::<Vec<_>>());
        let all = self.files.iter().flat_map(|file| file.2.iter().map(|change| (file.0, change)));
        // Full loads have no operation.
        let is_truncate =
            |(full_load, change): &(bool, &Change)| !full_load && change.op == Some("T");
        let count = all.filter(|one| one.1.key == key && !is_truncate(one)).count();
        assert_eq!(explained.changes.len(), count);
        let place = |file: &str, row: u64| {
            let name = file.rsplit('/').next().unwrap_or_default().to_string();
            (name, row as usize - 1)
        };
        let wins: BTreeSet<_> = explained
            .changes
            .iter()
            .filter(|change| change.wins)
            .map(|change| place(&change.file, change.row))
            .collect();
        let rows: BTreeSet<_> = explained
            .rows_now
            .iter()
            .map(|row| {
                assert!(row.place.is_some(), "the row is in the table");
                place(&row.change_file, row.change_row)
            })
            .collect();
        let last: Vec<&Last> = match self.keep {
            "latest" | DELETED => {
                model.latest.get(&key).map(|(_, last)| last).into_iter().collect()
            }
            HISTORY | EQUAL => model.history(key).into_iter().map(|row| row.0).collect(),
            _ => {
                let days = model.days.iter().filter(|((one, _), _)| *one == key);
                days.map(|(_, last)| last).collect()
            }
        };
        let place = |last: &&Last| (last.0.2.clone(), last.0.3);
        // A floor is no change of the key.
        let changes = last.iter().filter(|last| last.3 != ENDED);
        assert!(changes.map(place).all(|change| wins.contains(&change)));
        let live: Vec<&Last> = match self.keep {
            DELETED => model.kept(key).map(|(last, ..)| last).into_iter().collect(),
            _ => last.into_iter().filter(|last| last.1).collect(),
        };
        assert_eq!(rows, live.iter().map(place).collect());
    }

    fn compare(&self, lab: &Lab, model: &Model) {
        compare_rows_per_day(lab, "lake/rows", |_| true);
        if is_history(self.keep) {
            compare_rows_per_day(lab, "lake/open", |row| row["is_current"] == "true");
            return self.compare_table_of_history(lab, model);
        }
        if self.keep == DELETED {
            compare_rows_per_day(lab, "lake/open", |row| row["_deleted"] == "false");
            return self.compare_with_deleted(lab, model);
        }
        self.compare_curated(lab, model);
        self.compare_history(lab, model);
        compare_aggregates(lab, model);
    }

    /// The table of `keep = "history"`, each row with the times from which and up to which it holds, and what has ended
    /// it.
    fn compare_table_of_history(&self, lab: &Lab, model: &Model) {
        let table = lab.table("lake/curated");
        type Found = (CuratedRow, Option<i64>, Option<i64>, bool, Option<String>);
        let found: BTreeSet<Found> = table
            .iter()
            .map(|row| {
                let [from, to] =
                    ["valid_from", "valid_to"].map(|name| row.get(name).map(|time| instant(time)));
                let by = row.get("ended_by").cloned();
                (curated_row(self.keys, row), from, to, row["is_current"] == "true", by)
            })
            .collect();
        let rows_of = |key: i64| {
            model.history(key).into_iter().map(move |(last, day, from, to)| {
                let row = (key, day.map(day_text), category(last), self.id(last));
                let from = Some(from).filter(|from| *from != i64::MIN);
                let by = to.map(|(_, by)| by.to_string());
                (row, from, to.map(|(to, _)| to), to.is_none(), by)
            })
        };
        let expected: BTreeSet<_> = (0..4).flat_map(rows_of).collect();
        assert_eq!(found.len(), table.len(), "a row stands twice");
        assert_eq!(found, expected);
        let latest = model.latest.iter().filter(|(_, (_, last))| last.1);
        // Where rows are compared by the category, the id can be that of an earlier change.
        let id = |id: String| if self.names_columns() { String::new() } else { id };
        let latest: BTreeSet<_> =
            latest.map(|(key, (_, last))| (*key, category(last), id(self.id(last)))).collect();
        let current = found.into_iter().filter(|row| row.3);
        let current = current.map(|((key, _, category, of), ..)| (key, category, id(of)));
        assert_eq!(current.collect::<BTreeSet<_>>(), latest, "current rows are the latest ones");
    }

    /// The id of a change's row; the empty text, if the table has none.
    fn id(&self, last: &Last) -> String {
        let has_id = self.keep != EQUAL || self.names_columns();
        if has_id { last.3.to_string() } else { String::new() }
    }

    /// The table with the rows of deleted keys.
    fn compare_with_deleted(&self, lab: &Lab, model: &Model) {
        let table = lab.table("lake/curated");
        let found: BTreeSet<(CuratedRow, bool, Option<i64>)> = table
            .iter()
            .map(|row| {
                let at = row.get("_deleted_at").map(|time| instant(time));
                (curated_row(self.keys, row), row["_deleted"] == "true", at)
            })
            .collect();
        let expected = (0..4).filter_map(|key| {
            let (last, day, deleted_at) = model.kept(key)?;
            let row = (key, day.map(day_text), category(last), last.3.to_string());
            Some((row, deleted_at.is_some(), deleted_at))
        });
        assert_eq!(found.len(), table.len(), "a row stands twice");
        assert_eq!(found, expected.collect());
        let latest = model.latest.values().filter(|(_, last)| last.1);
        let latest: BTreeSet<String> = latest.map(|(_, last)| last.3.to_string()).collect();
        let live = found.into_iter().filter(|row| !row.1).map(|row| row.0.3);
        assert_eq!(live.collect::<BTreeSet<_>>(), latest, "live rows are the latest ones");
    }

    fn compare_curated(&self, lab: &Lab, model: &Model) {
        let keys = self.keys;
        let expected_row = |key: &i64, day: Option<i64>, last: &Last| {
            (*key, day.map(day_text), category(last), last.3.to_string())
        };
        let expected: BTreeSet<CuratedRow> = match self.keep {
            "latest" => model
                .latest
                .iter()
                .filter(|(_, (_, last))| last.1)
                .map(|(key, (day, last))| expected_row(key, *day, last))
                .collect(),
            _ => model
                .days
                .iter()
                .filter(|(_, last)| last.1)
                .map(|((key, day), last)| expected_row(key, *day, last))
                .collect(),
        };
        let table = lab.table("lake/curated");
        let found: BTreeSet<CuratedRow> = table.iter().map(|row| curated_row(keys, row)).collect();
        assert_eq!(found.len(), table.len(), "a row stands twice");
        assert_eq!(found, expected);
    }

    /// History has one entry for each key and day, and `seq` orders them as the fold does.
    fn compare_history(&self, lab: &Lab, model: &Model) {
        let keys = self.keys;
        let history = lab.history_relation();
        let entries: BTreeSet<(i64, Option<String>, Option<String>, bool)> = history
            .iter()
            .map(|row| {
                (
                    keys.number(row),
                    row.get("event_dt").cloned(),
                    row.get("cat").cloned(),
                    row["deleted"] == "true",
                )
            })
            .collect();
        let expected: BTreeSet<_> = model
            .days
            .iter()
            .map(|((key, day), last)| {
                (*key, day.map(day_text), category(last).filter(|_| last.1), !last.1)
            })
            .collect();
        assert_eq!(history.len(), entries.len());
        assert_eq!(entries, expected);
        let mut by_seq: Vec<(i128, &Last)> = history
            .iter()
            .map(|row| {
                let day =
                    row.get("event_dt").map(|day| day[8..].parse::<i64>().expect("a day") - 1);
                (row["seq"].parse().expect("an integer"), &model.days[&(keys.number(row), day)])
            })
            .collect();
        by_seq.sort();
        let ascends = |pair: &[(i128, &Last)]| {
            // What one floor ended has one place in the order.
            let is_of_one_floor = pair[0].1.0 == pair[1].1.0 && pair[0].1.3 == ENDED;
            is_of_one_floor || (pair[0].0 < pair[1].0 && pair[0].1.0 < pair[1].1.0)
        };
        assert!(by_seq.windows(2).all(ascends));
    }
}

/// A time in microseconds since 1970.
fn instant(text: &str) -> i64 {
    let time = chrono::DateTime::parse_from_rfc3339(text).expect("a time");
    time.timestamp_micros()
}

fn category(last: &Last) -> Option<String> {
    last.2.map(str::to_string)
}

/// A key's status at the end of a day is its last change up to then. Its category is entered on the
/// first day of that status, and exited on the day of the next.
fn compare_flows(lab: &Lab, model: &Model) {
    let mut flows: BTreeMap<(String, Option<String>), [u64; 2]> = BTreeMap::new();
    let keys: BTreeSet<i64> = model.days.keys().map(|(key, _)| *key).collect();
    for key in keys {
        let mut status: Option<&Last> = None;
        for ((of, day), last) in &model.days {
            let Some(day) = day.filter(|_| *of == key) else { continue };
            if status.is_some_and(|status| status > last) {
                continue;
            }
            if let Some(before) = status.replace(last).filter(|before| before.1) {
                flows.entry((day_text(day), category(before))).or_default()[1] += 1;
            }
            if last.1 {
                flows.entry((day_text(day), category(last))).or_default()[0] += 1;
            }
        }
    }
    let found = lab.table("lake/flows").into_iter().map(|row| {
        let counts = ["entered", "exited"].map(|name| row[name].parse().expect("a count"));
        ((row["dt"].clone(), row.get("cat").cloned()), counts)
    });
    assert_eq!(found.collect::<BTreeMap<_, _>>(), flows);
}

/// Compares a table of counts with the rows of the curated table of each day.
fn compare_rows_per_day(lab: &Lab, table: &str, counts: impl Fn(&Row) -> bool) {
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    for row in lab.table("lake/curated") {
        if let Some(day) = row.get("event_dt") {
            *rows.entry(day.clone()).or_default() += u64::from(counts(&row));
        }
    }
    let found = lab.table(table).into_iter();
    let found = found.map(|row| (row["dt"].clone(), row["n"].parse().expect("a count")));
    assert_eq!(found.collect::<BTreeMap<String, u64>>(), rows);
}

fn compare_aggregates(lab: &Lab, model: &Model) {
    let mut daily: BTreeMap<(String, Option<String>), u64> = BTreeMap::new();
    for ((_, day), last) in &model.days {
        if let (Some(day), true) = (day, last.1) {
            *daily.entry((day_text(*day), category(last))).or_default() += 1;
        }
    }
    let found: BTreeMap<(String, Option<String>), u64> = lab
        .table("lake/daily")
        .iter()
        .map(|row| {
            ((row["dt"].clone(), row.get("cat").cloned()), row["n"].parse().expect("a count"))
        })
        .collect();
    assert_eq!(found, daily);
    compare_flows(lab, model);
    // The running table has the days of the windows, and those after a change.
    for row in lab.table("lake/status") {
        let at: i64 = row["dt"][8..].parse::<i64>().expect("a day") - 1;
        let mut last: BTreeMap<i64, &Last> = BTreeMap::new();
        for ((key, event_day), change) in &model.days {
            if event_day.is_some_and(|event_day| event_day <= at) {
                let slot = last.entry(*key).or_insert(change);
                *slot = (*slot).max(change);
            }
        }
        let live = last.values().filter(|change| change.1).count();
        assert_eq!(row["n"], live.to_string(), "{}", row["dt"]);
    }
}

fn keeps() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["latest", "latest-per-day", DELETED, HISTORY, EQUAL])
}

const HISTORY: &str = "history";

/// `keep = "history"` of a table whose rows are equal if their categories are: most changes alter nothing.
const EQUAL: &str = "history-of-equal-rows";

fn is_history(keep: &str) -> bool {
    [HISTORY, EQUAL].contains(&keep)
}

/// `keep = "latest"` with `keep_deleted`.
const DELETED: &str = "latest-and-deleted";

fn has_ends(keep: &str) -> bool {
    is_history(keep) || keep == DELETED
}

/// The format of a table: where rows can end there are no deletion vectors.
fn format_of(keep: &str, format: &'static str) -> &'static str {
    if has_ends(keep) && format == DELETION_VECTORS { "delta" } else { format }
}

fn formats() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["parquet", "delta", DELETION_VECTORS])
}

fn all_keys() -> impl Strategy<Value = Keys> {
    prop::sample::select(vec![
        Keys::Integer,
        Keys::Text,
        Keys::Decimal,
        Keys::Float,
        Keys::Composite,
    ])
}

fn all_orders() -> impl Strategy<Value = Orders> {
    prop::sample::select(vec![Orders::Time, Orders::Several, Orders::Number, Orders::Files])
}

fn run_cases(place: Place, count: u32, cases: impl Strategy<Value = Case>) {
    check_cases(count, cases, |case| case.check(place));
}

fn check_cases(count: u32, cases: impl Strategy<Value = Case>, check: impl Fn(&Case)) {
    let mut runner = TestRunner::new(Config { cases: cases_of(count), ..Config::default() });
    runner
        .run(&cases, |case| {
            check(&case);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// The number of cases, which `make test-long` multiplies.
fn cases_of(count: u32) -> u32 {
    count * test_times()
}

fn at_once(orders: Orders) -> impl Strategy<Value = Case> {
    (keeps(), formats(), all_keys(), files(), prop::bool::ANY).prop_map(
        move |(keep, format, keys, files, have_time)| Case {
            keep,
            format: format_of(keep, format),
            keys,
            orders,
            by: By::Name,
            files,
            deliveries: vec![],
            windows: vec![],
            loads_have_time: have_time && orders.has_commit_time(),
            is_loaded: false,
        },
    )
}

fn by_windows(kinds: Vec<By>) -> impl Strategy<Value = Case> {
    let window = (0..5i64, 1..4i64).prop_map(|(start, length)| (start, start + length));
    let kinds = (prop::sample::select(kinds), prop::bool::ANY);
    (
        (keeps(), formats(), all_keys(), all_orders(), kinds),
        prop::collection::vec(file(), 2..6),
        prop::collection::vec(0..4usize, 6),
        prop::collection::vec(window, 1..4),
    )
        .prop_map(|((keep, format, keys, orders, kinds), files, deliveries, windows)| {
            let (by, have_time) = kinds;
            // Windows of rows need a column of commit times.
            let by = if by == By::Commit && !orders.has_commit_time() { By::Name } else { by };
            Case {
                keep,
                format: format_of(keep, format),
                keys,
                orders,
                by,
                files,
                deliveries,
                windows,
                loads_have_time: have_time && orders.has_commit_time(),
                is_loaded: false,
            }
        })
}

/// Cases whose tables are loaded. Under `latest-per-day` the day is part of the primary key, which has
/// no null.
fn loaded(mut case: Case) -> Case {
    case.is_loaded = true;
    if is_history(case.keep) {
        case.keep = "latest";
    }
    if case.keep == "latest-per-day" {
        let changes = case.files.iter_mut().flat_map(|file| &mut file.2);
        changes.for_each(|change| change.event_day = change.event_day.or(Some(0)));
    }
    case
}

#[test]
fn random_change_logs_fold_as_the_model_does_in_a_local_folder() {
    run_cases(Place::Local, 50, at_once(Orders::Time));
}

#[test]
fn random_change_logs_fold_as_the_model_does_on_an_s3_server() {
    run_cases(Place::S3, 6, at_once(Orders::Time));
}

#[test]
fn several_order_columns_fold_as_the_model_does() {
    run_cases(Place::Local, 20, at_once(Orders::Several));
}

#[test]
fn changes_without_commit_times_fold_by_file_and_row_as_the_model_does() {
    run_cases(Place::Local, 20, at_once(Orders::Files));
    run_cases(Place::S3, 4, at_once(Orders::Files));
}

#[test]
fn changes_in_the_order_of_a_number_fold_as_the_model_does() {
    run_cases(Place::Local, 20, at_once(Orders::Number));
}

#[test]
fn any_windows_in_any_order_fold_as_the_model_does_in_a_local_folder() {
    let kinds = vec![By::Name, By::Path, By::Modified, By::Commit];
    run_cases(Place::Local, 60, by_windows(kinds));
}

#[test]
fn a_database_has_what_is_published_after_any_windows_in_any_order() {
    let kinds = vec![By::Name, By::Path, By::Modified, By::Commit];
    run_cases(Place::Local, 12, by_windows(kinds).prop_map(loaded));
    let kinds = vec![By::Name, By::Path, By::Commit];
    run_cases(Place::S3, 2, by_windows(kinds).prop_map(loaded));
}

#[test]
fn catching_up_comes_to_one_run_over_the_span_of_all_windows() {
    let kinds = vec![By::Name, By::Path, By::Modified, By::Commit];
    let check = |case: &Case| case.check_catch_up(Place::Local);
    check_cases(25, by_windows(kinds), check);
    let check = |case: &Case| case.check_catch_up(Place::S3);
    check_cases(2, by_windows(vec![By::Name, By::Path, By::Commit]), check);
}

#[test]
fn plans_come_true_and_questions_are_answered_as_the_model_answers_them() {
    let kinds = vec![By::Name, By::Path, By::Modified, By::Commit];
    let check = |case: &Case| case.check_questions(Place::Local);
    check_cases(25, by_windows(kinds), check);
    let check = |case: &Case| case.check_questions(Place::S3);
    check_cases(2, by_windows(vec![By::Name, By::Path, By::Commit]), check);
}

#[test]
fn any_windows_in_any_order_fold_as_the_model_does_on_an_s3_server() {
    // The server sets the times of its objects itself.
    let kinds = vec![By::Name, By::Path, By::Commit];
    run_cases(Place::S3, 4, by_windows(kinds));
}
