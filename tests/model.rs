//! Random change logs against a small model: curated rows, `history` and aggregates, in both
//! keep modes, for keys of several types, on a local folder and on an S3 server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::prelude::SessionContext;
use glueless::aggregate;
use glueless::pipeline::Task;
use glueless::state::State;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Lab, Place, RUNTIME, Row, batch, rows};

const TOML: &str = r#"
name = "model"
key = {key}
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = {order}
commit_time = "ts"
event_time = "event"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
[[aggregate]]
name = "status"
sql = "status.sql"
url = "{base}/lake/status"
day = "dt"
running = true
"#;

const DAILY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat";

const STATUS: &str = "WITH days AS (SELECT UNNEST(RANGE(CAST($start_date AS DATE), CAST($end_date AS DATE), INTERVAL '1 day')) AS day),
seen AS (SELECT CAST(days.day AS DATE) AS dt, h.*, ROW_NUMBER() OVER (PARTITION BY days.day, {key} ORDER BY seq DESC) AS place
         FROM days JOIN history h ON h.event_dt <= days.day)
SELECT dt, COUNT(*) AS n FROM seen WHERE place = 1 AND NOT deleted GROUP BY dt";

/// The days of the tests: 2020-01-01 is day 0.
const FIRST_DAY: i64 = 18_262;
const DAY_US: i64 = 86_400_000_000;

#[derive(Clone, Debug)]
struct Change {
    key: i64,
    op: Option<&'static str>,
    time: i64,
    event_day: Option<i64>,
    cat: Option<&'static str>,
}

/// A file: whether it is a full load, the day in its name, and its changes.
type File = (bool, i64, Vec<Change>);

fn change() -> impl Strategy<Value = Change> {
    let op = prop::sample::select(vec![
        Some("I"),
        Some("U"),
        Some("u"),
        Some("D"),
        Some("d"),
        None,
    ]);
    let cat = prop::sample::select(vec![Some("a"), Some("B/c: %=é"), None]);
    (
        0..4i64,
        op,
        0..5i64,
        prop::option::weighted(0.9, 0..4i64),
        cat,
    )
        .prop_map(|(key, op, time, event_day, cat)| Change {
            key,
            op,
            time,
            event_day,
            cat,
        })
}

fn files() -> impl Strategy<Value = Vec<File>> {
    let file = (
        prop::bool::weighted(0.2),
        0..3i64,
        prop::collection::vec(change(), 0..8),
    );
    prop::collection::vec(file, 1..5)
}

fn name(number: usize, (full_load, day, _): &File) -> String {
    match full_load {
        true => format!("LOAD{number:08X}.parquet"),
        false => format!("202001{:02}-00000000{number}.parquet", day + 1),
    }
}

/// The types a key can have: each gives the columns of key number n.
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
            Keys::Integer => Arc::new(Int32Array::from_iter_values(
                keys.iter().map(|n| *n as i32 - 1),
            )),
            Keys::Text => Arc::new(StringArray::from_iter_values(keys.iter().map(text))),
            Keys::Decimal => Arc::new(
                Decimal128Array::from_iter_values(keys.iter().map(|n| i128::from(*n) * 50 - 50))
                    .with_precision_and_scale(28, 2)
                    .expect("a decimal"),
            ),
            // Key 0 is written as either zero.
            Keys::Float => Arc::new(Float64Array::from_iter_values(keys.iter().enumerate().map(
                |(row, n)| {
                    if *n == 0 && row % 2 == 1 {
                        -0.0
                    } else {
                        *n as f64 / 2.0
                    }
                },
            ))),
            Keys::Composite => {
                let first = Int64Array::from_iter_values(keys.iter().map(|n| n % 2));
                let second =
                    StringArray::from_iter_values(keys.iter().map(|n| format!("{}", n / 2)));
                return vec![("k1", Arc::new(first)), ("k2", Arc::new(second))];
            }
        };
        vec![("k1", column)]
    }

    /// Which key number a row of the table has.
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

/// Writes a file; with several order columns the second one, `zero`, is always null.
fn put(lab: &Lab, keys: Keys, several_orders: bool, number: usize, file: &File) {
    let (full_load, _, changes) = file;
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    if !full_load {
        columns.push((
            "Op",
            Arc::new(StringArray::from_iter(changes.iter().map(|c| c.op))),
        ));
    }
    let times = changes
        .iter()
        .map(|c| format!("2020-01-01 00:00:{:02}.000000", c.time));
    columns.push(("ts", Arc::new(StringArray::from_iter_values(times))));
    let days = changes
        .iter()
        .map(|c| Some((FIRST_DAY + c.event_day?) * DAY_US));
    columns.push((
        "event",
        Arc::new(TimestampMicrosecondArray::from_iter(days).with_timezone("UTC")),
    ));
    columns.extend(keys.columns(&changes.iter().map(|c| c.key).collect::<Vec<_>>()));
    columns.push((
        "cat",
        Arc::new(StringArray::from_iter(changes.iter().map(|c| c.cat))),
    ));
    let ids = (0..changes.len()).map(|row| (number * 100 + row) as i64);
    columns.push(("id", Arc::new(Int64Array::from_iter_values(ids))));
    if several_orders {
        columns.push(("zero", Arc::new(Int64Array::new_null(changes.len()))));
    }
    lab.put_raw(&name(number, file), &batch(columns));
}

/// What the fold must come to: the last change per key and day, and per key. A change is its
/// order, whether it lives, its category and id.
type Order = (bool, i64, String, usize);
type Last = (Order, bool, Option<&'static str>, i64);

struct Model {
    days: BTreeMap<(i64, Option<i64>), Last>,
    latest: BTreeMap<i64, (Option<i64>, Last)>,
}

fn model(files: &[File]) -> Model {
    let mut model = Model {
        days: BTreeMap::new(),
        latest: BTreeMap::new(),
    };
    for (number, file) in files.iter().enumerate() {
        for (row, change) in file.2.iter().enumerate() {
            let live = file.0 || !matches!(change.op, Some("D" | "d"));
            let day = if live { change.event_day } else { Some(0) };
            let order = (!file.0, change.time, name(number, file), row);
            let last: Last = (order, live, change.cat, (number * 100 + row) as i64);
            let slot = model
                .days
                .entry((change.key, day))
                .or_insert_with(|| last.clone());
            *slot = slot.clone().max(last.clone());
            let slot = model
                .latest
                .entry(change.key)
                .or_insert_with(|| (day, last.clone()));
            if slot.1 <= last {
                *slot = (day, last);
            }
        }
    }
    model
}

fn day_text(day: i64) -> String {
    format!("2020-01-{:02}", day + 1)
}

/// A row as key, day, category and id.
type Told = (i64, Option<String>, Option<String>, String);

fn tell(keys: Keys, row: &Row) -> Told {
    (
        keys.number(row),
        row.get("event_dt").cloned(),
        row.get("cat").cloned(),
        row["id"].clone(),
    )
}

fn check(place: Place, keep: &str, keys: Keys, several_orders: bool, files: &[File]) {
    let names: Vec<String> = keys
        .names()
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect();
    let toml = TOML
        .replace("{keep}", keep)
        .replace("{key}", &format!("[{}]", names.join(", ")))
        .replace(
            "{order}",
            if several_orders {
                r#"["ts", "zero"]"#
            } else {
                r#"["ts"]"#
            },
        );
    let key_list = keys.names().join(", ");
    let curated = format!("SELECT {key_list}, id, event_dt, cat FROM latest");
    let status = STATUS.replace("{key}", &key_list);
    let sql = [
        ("curated.sql", curated.as_str()),
        ("daily.sql", DAILY),
        ("status.sql", status.as_str()),
    ];
    let lab = Lab::new(place, &toml, &sql);
    for (number, file) in files.iter().enumerate() {
        put(&lab, keys, several_orders, number, file);
    }
    let (start, end) = ("2020-01-01", "2020-01-05");
    let report = lab.run(start, end).expect("a run");
    let model = model(files);

    let rows_read: usize = files.iter().map(|file| file.2.len()).sum();
    assert_eq!(report.rows_read, rows_read as u64);
    assert_eq!(
        report.rows_read,
        report.rows_latest + report.rows_superseded + report.rows_deleted
    );

    // The curated table.
    let category = |last: &Last| last.2.map(str::to_string);
    let expected: BTreeSet<Told> = match keep {
        "latest" => model
            .latest
            .iter()
            .filter(|(_, (_, last))| last.1)
            .map(|(key, (day, last))| (*key, day.map(day_text), category(last), last.3.to_string()))
            .collect(),
        _ => model
            .days
            .iter()
            .filter(|(_, last)| last.1)
            .map(|((key, day), last)| (*key, day.map(day_text), category(last), last.3.to_string()))
            .collect(),
    };
    let table = lab.table("lake/curated");
    let told: BTreeSet<Told> = table.iter().map(|row| tell(keys, row)).collect();
    assert_eq!(told.len(), table.len(), "a row stands twice");
    assert_eq!(told, expected);

    // History: one entry per key and day, and the order of `seq` is the fold's.
    let history = history(&lab);
    if rows_read > 0 {
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
                (
                    *key,
                    day.map(day_text),
                    category(last).filter(|_| last.1),
                    !last.1,
                )
            })
            .collect();
        assert_eq!(history.len(), entries.len());
        assert_eq!(entries, expected);
        let mut by_seq: Vec<(i128, &Last)> = history
            .iter()
            .map(|row| {
                let day = row
                    .get("event_dt")
                    .map(|day| day[8..].parse::<i64>().expect("a day") - 1);
                (
                    row["seq"].parse().expect("an integer"),
                    &model.days[&(keys.number(row), day)],
                )
            })
            .collect();
        by_seq.sort();
        assert!(
            by_seq
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1.0 < pair[1].1.0)
        );
    }

    // The aggregates.
    let mut daily: BTreeMap<(String, Option<String>), u64> = BTreeMap::new();
    for ((_, day), last) in &model.days {
        if let (Some(day), true) = (day, last.1) {
            *daily.entry((day_text(*day), category(last))).or_default() += 1;
        }
    }
    let told: BTreeMap<(String, Option<String>), u64> = lab
        .table("lake/daily")
        .iter()
        .map(|row| {
            (
                (row["dt"].clone(), row.get("cat").cloned()),
                row["n"].parse().expect("a count"),
            )
        })
        .collect();
    assert_eq!(told, daily);
    let mut status: BTreeMap<String, u64> = BTreeMap::new();
    for day in 0..4 {
        let mut last: BTreeMap<i64, &Last> = BTreeMap::new();
        for ((key, event_day), change) in &model.days {
            if event_day.is_some_and(|event_day| event_day <= day) {
                let slot = last.entry(*key).or_insert(change);
                *slot = (*slot).max(change);
            }
        }
        let live = last.values().filter(|change| change.1).count() as u64;
        if live > 0 {
            status.insert(day_text(day), live);
        }
    }
    let told: BTreeMap<String, u64> = lab
        .table("lake/status")
        .iter()
        .map(|row| (row["dt"].clone(), row["n"].parse().expect("a count")))
        .collect();
    if rows_read > 0 {
        assert_eq!(told, status);
    }

    // Again: the same tables, no extra files.
    let files_before = (
        lab.list("lake/curated"),
        lab.list("lake/daily"),
        lab.list("lake/status"),
    );
    lab.run(start, end).expect("a second run");
    assert_eq!(lab.table("lake/curated"), table);
    let files_after = (
        lab.list("lake/curated"),
        lab.list("lake/daily"),
        lab.list("lake/status"),
    );
    assert_eq!(files_after, files_before);
}

fn history(lab: &Lab) -> Vec<Row> {
    let pipeline = lab.read(&[]).expect("a pipeline");
    let read = async {
        let state = State::open(&lab.stores, &pipeline).await?;
        let curated = lab.stores.open(&pipeline.curated.url)?;
        let context = SessionContext::new();
        let mut root = curated.location.url().clone();
        root.set_path("");
        context.register_object_store(&root, Arc::clone(&curated.root_store));
        if !aggregate::register(&context, &state, &pipeline, &curated).await? {
            return Ok(Vec::new());
        }
        let batches = context
            .sql("SELECT * FROM history")
            .await?
            .collect()
            .await?;
        Ok::<_, glueless::error::Error>(batches.iter().flat_map(rows).collect())
    };
    RUNTIME.block_on(read).expect("history")
}

fn cases(place: Place, count: u32, several_orders: bool) {
    let keep = prop::sample::select(vec!["latest", "latest-per-day"]);
    let keys = prop::sample::select(vec![
        Keys::Integer,
        Keys::Text,
        Keys::Decimal,
        Keys::Float,
        Keys::Composite,
    ]);
    let mut runner = TestRunner::new(Config {
        cases: count,
        ..Config::default()
    });
    runner
        .run(&(keep, keys, files()), |(keep, keys, files)| {
            check(place, keep, keys, several_orders, &files);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn random_change_logs_fold_as_the_model_does_in_a_local_folder() {
    cases(Place::Local, 150, false);
}

#[test]
fn random_change_logs_fold_as_the_model_does_on_an_s3_server() {
    cases(Place::S3, 12, false);
}

#[test]
fn several_order_columns_fold_as_the_model_does() {
    cases(Place::Local, 50, true);
}

#[test]
fn a_wider_window_ends_where_one_run_over_everything_ends() {
    let files: Vec<File> = (0..3)
        .map(|day| {
            let changes = (0..4).map(|key| Change {
                key,
                op: Some("U"),
                time: day,
                event_day: Some(day),
                cat: Some("a"),
            });
            (false, day, changes.collect())
        })
        .collect();
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{key}", "[\"k1\"]")
        .replace("{order}", "[\"ts\"]");
    let status = STATUS.replace("{key}", "k1");
    let sql = [
        ("curated.sql", "SELECT k1, id, event_dt, cat FROM latest"),
        ("daily.sql", DAILY),
        ("status.sql", status.as_str()),
    ];
    let stepwise = Lab::new(Place::Local, &toml, &sql);
    let at_once = Lab::new(Place::Local, &toml, &sql);
    for (number, file) in files.iter().enumerate() {
        put(&stepwise, Keys::Integer, false, number, file);
        put(&at_once, Keys::Integer, false, number, file);
    }
    for end in ["2020-01-02", "2020-01-03", "2020-01-04"] {
        stepwise.run("2020-01-01", end).expect("a run");
    }
    at_once.run("2020-01-01", "2020-01-04").expect("a run");
    for table in ["lake/curated", "lake/daily", "lake/status"] {
        assert_eq!(stepwise.table(table), at_once.table(table), "{table}");
        assert_eq!(stepwise.list(table), at_once.list(table), "{table}");
    }
    // The window of the last day alone would lose the others: it is refused and changes nothing.
    let error = stepwise
        .run_with(Task::Run, "2020-01-03", "2020-01-04", &[])
        .expect_err("refused");
    assert_eq!(error.kind.exit_code(), 65);
    assert_eq!(
        stepwise.table("lake/curated"),
        at_once.table("lake/curated")
    );
}
