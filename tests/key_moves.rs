//! Updates that change a key: a delete of the old one and the row under the new one.

use std::collections::BTreeMap;

use glueless::commands::Task;
use glueless::report::Report;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Lab, Place, assert_refused, changes, changes_of};

const TOML: &str = r#"
name = "moves"
key = ["id"]
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "{window_by}"
order_by = ["ts"]
before_image_prefix = "BI_"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt"]
"#;

const SQL: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest";
const COLUMNS: [&str; 5] = ["Op", "id", "BI_id", "v", "ts"];

fn lab(keep: &str, window_by: &str) -> Lab {
    let toml = TOML
        .replace("{keep}", keep)
        .replace("{window_by}", window_by);
    Lab::new(Place::Local, &toml, &[("curated.sql", SQL)])
}

fn rows(lab: &Lab) -> Vec<(i64, i64)> {
    let number = |text: &String| text.parse().expect("a number");
    let rows = lab.table("lake/curated").into_iter();
    let mut rows: Vec<(i64, i64)> = rows
        .map(|row| (number(&row["id"]), number(&row["v"])))
        .collect();
    rows.sort();
    rows
}

/// Folds files of changes, in one run or each in its own.
fn fold(files: &[&[&[&str]]], at_once: bool) -> (Lab, Vec<Report>) {
    let lab = lab("latest", "name");
    for (day, rows) in (1..).zip(files) {
        lab.put(
            &format!("raw/202001{day:02}-000000000.parquet"),
            changes(&COLUMNS, rows),
        );
    }
    let reports = match at_once {
        true => vec![lab.run("2020-01-01", "2020-02-01").expect("a run")],
        false => (1..=files.len())
            .map(|day| {
                let (start, end) = (
                    format!("2020-01-{day:02}"),
                    format!("2020-01-{:02}", day + 1),
                );
                lab.run(&start, &end).expect("a run")
            })
            .collect(),
    };
    (lab, reports)
}

const T1: &str = "2020-01-01 00:00:00";
const T2: &str = "2020-01-02 00:00:00";
const T3: &str = "2020-01-03 00:00:00";

#[test]
fn a_row_that_gets_another_key_leaves_the_old_one() {
    let first: &[&[&str]] = &[&["I", "1", "-", "10", T1], &["I", "2", "-", "20", T1]];
    // An update that keeps its key has it in both columns, or nothing in the one before.
    let second: &[&[&str]] = &[
        &["U", "3", "1", "11", T2],
        &["U", "2", "2", "21", T2],
        &["U", "2", "-", "22", T2],
    ];
    for at_once in [true, false] {
        let (lab, reports) = fold(&[first, second], at_once);
        assert_eq!(rows(&lab), [(2, 22), (3, 11)]);
        let last = reports.last().expect("a report");
        assert_eq!(last.key_moves, 1);
        let read = last.rows_read + last.key_moves;
        assert_eq!(
            read,
            last.rows_latest + last.rows_superseded + last.rows_deleted
        );
        let before = lab.contents("lake/curated");
        lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!(lab.contents("lake/curated"), before);
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(rows(&lab), [(2, 22), (3, 11)]);
    }
}

#[test]
fn the_old_key_can_be_used_again() {
    let first: &[&[&str]] = &[&["I", "1", "-", "10", T1]];
    let second: &[&[&str]] = &[&["U", "2", "1", "11", T2]];
    let third: &[&[&str]] = &[&["I", "1", "-", "30", T3]];
    for at_once in [true, false] {
        let (lab, _) = fold(&[first, second, third], at_once);
        assert_eq!(rows(&lab), [(1, 30), (2, 11)]);
    }
    let lab = fold(&[first, second, third], false).0;
    // An old window once more does not delete it.
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    assert_eq!(rows(&lab), [(1, 30), (2, 11)]);
}

#[test]
fn chains_and_swaps_in_one_transaction_end_where_the_database_did() {
    let two: &[&[&str]] = &[&["I", "1", "-", "10", T1], &["I", "2", "-", "20", T1]];
    let one: &[&[&str]] = &[&["I", "1", "-", "10", T1]];
    let three: &[&[&str]] = &[
        &["I", "1", "-", "10", T1],
        &["I", "2", "-", "20", T1],
        &["I", "3", "-", "30", T1],
    ];
    let chain: &[&[&str]] = &[&["U", "2", "1", "11", T2], &["U", "3", "2", "12", T2]];
    let shift: &[&[&str]] = &[&["U", "3", "2", "21", T2], &["U", "2", "1", "11", T2]];
    let by_way: &[&[&str]] = &[
        &["U", "9", "1", "11", T2],
        &["U", "1", "2", "21", T2],
        &["U", "2", "9", "12", T2],
    ];
    let swap: &[&[&str]] = &[&["U", "2", "1", "11", T2], &["U", "1", "2", "21", T2]];
    let round: &[&[&str]] = &[
        &["U", "2", "1", "11", T2],
        &["U", "3", "2", "21", T2],
        &["U", "1", "3", "31", T2],
    ];
    let deleted: &[&[&str]] = &[&["U", "2", "1", "11", T2], &["D", "2", "-", "-", T2]];
    for (name, before, moves, expected, count) in [
        ("a chain", one, chain, vec![(3, 12)], 2),
        ("a shift", two, shift, vec![(2, 11), (3, 21)], 2),
        (
            "a swap by way of a third key",
            two,
            by_way,
            vec![(1, 21), (2, 12)],
            3,
        ),
        ("a swap", two, swap, vec![(1, 21), (2, 11)], 2),
        (
            "three that change places",
            three,
            round,
            vec![(1, 31), (2, 11), (3, 21)],
            3,
        ),
        ("a row that moves and goes", one, deleted, vec![], 1),
    ] {
        for at_once in [true, false] {
            let (lab, reports) = fold(&[before, moves], at_once);
            assert_eq!(rows(&lab), expected, "{name}, at once: {at_once}");
            let moved: u64 = reports.iter().map(|report| report.key_moves).sum();
            assert_eq!(moved, count, "{name}");
        }
    }
}

#[test]
fn a_sequence_orders_the_moves_of_a_transaction_and_the_commit_time_tells_it() {
    let columns = ["Op", "id", "BI_id", "v", "seq", "ts"];
    let swap: &[&[&str]] = &[
        &["I", "1", "-", "10", "1", T1],
        &["I", "2", "-", "20", "2", T1],
        // In the file the second half of the swap comes first.
        &["U", "1", "2", "21", "4", T2],
        &["U", "2", "1", "11", "3", T2],
    ];
    let chain: &[&[&str]] = &[
        &["I", "1", "-", "10", "1", T1],
        &["U", "3", "2", "12", "4", T2],
        &["U", "2", "1", "11", "3", T2],
    ];
    for order in ["[\"seq\"]", "[\"ts\", \"seq\"]"] {
        for (log, expected) in [(swap, vec![(1, 21), (2, 11)]), (chain, vec![(3, 12)])] {
            let lab = lab("latest", "name");
            lab.put("raw/20200101-000000000.parquet", changes(&columns, log));
            let set = [format!("raw.order_by={order}"), "raw.commit_time=ts".into()];
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            let (start, end) = ("2020-01-01", "2020-02-01");
            lab.run_with(Task::Curate, start, end, &set).expect("a run");
            assert_eq!(rows(&lab), expected, "{order}");
        }
    }
}

#[test]
fn days_keep_the_rows_of_keys_that_moved_later() {
    let first: &[&[&str]] = &[&["I", "1", "-", "10", T1], &["I", "2", "-", "20", T1]];
    let second: &[&[&str]] = &[&["U", "3", "1", "11", T2], &["U", "2", "2", "21", T2]];
    let backwards = [("2020-01-02", "2020-02-01"), ("2020-01-01", "2020-01-02")];
    for windows in [&[("2020-01-01", "2020-02-01")][..], &backwards] {
        let lab = lab("latest-per-day", "name");
        lab.put("raw/20200101-000000000.parquet", changes(&COLUMNS, first));
        lab.put("raw/20200102-000000000.parquet", changes(&COLUMNS, second));
        for (start, end) in windows {
            lab.run(start, end).expect("a run");
        }
        let rows = lab.table("lake/curated");
        let mut told: Vec<[&str; 3]> = rows
            .iter()
            .map(|row| ["event_dt", "id", "v"].map(|name| row[name].as_str()))
            .collect();
        told.sort();
        let expected = [
            ["2020-01-01", "1", "10"],
            ["2020-01-01", "2", "20"],
            ["2020-01-02", "2", "21"],
            ["2020-01-02", "3", "11"],
        ];
        assert_eq!(told, expected);
    }
}

#[test]
fn files_without_the_key_before_are_folded_and_told() {
    let lab = lab("latest", "name");
    let load = changes(&["id", "v", "ts"], &[&["1", "0", T3]]);
    lab.put("raw/LOAD1.parquet", load);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert_eq!(report.note, None, "full loads have no key before");
    let without = changes(&["Op", "id", "v", "ts"], &[&["U", "1", "1", T1]]);
    lab.put("raw/20200101-000000000.parquet", without);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert!(report.note.expect("a note").contains("`BI_id`"));
    let moves = changes(&COLUMNS, &[&["U", "2", "1", "2", T2]]);
    lab.put("raw/20200102-000000000.parquet", moves);
    let report = lab.run("2020-01-01", "2020-01-03").expect("a run");
    assert_eq!(report.note, None);
    assert_eq!(rows(&lab), [(2, 2)]);
    // The setting is part of what the table is.
    let toml = lab.pipeline.join("pipeline.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    std::fs::write(toml, text.replace("before_image_prefix = \"BI_\"", "")).expect("written");
    let failed = lab.run("2020-01-01", "2020-01-03").expect_err("refused");
    assert_refused(
        failed,
        2,
        "`raw.before_image_prefix` changed",
        "glueless rebuild",
    );
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(rows(&lab), [(1, 1), (2, 2)]);
}

/// What happens to a small table, one transaction after the other.
#[derive(Clone, Debug)]
enum Step {
    Upsert(i64),
    Delete(i64),
    Move(i64, i64),
    Swap(i64, i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0i64..5).prop_map(Step::Upsert),
        (0i64..5).prop_map(Step::Delete),
        ((0i64..5), (0i64..5)).prop_map(|(from, to)| Step::Move(from, to)),
        ((0i64..5), (0i64..5)).prop_map(|(a, b)| Step::Swap(a, b)),
    ]
}

type Raw = Vec<[String; 5]>;

/// The database: its rows, and its log as one list of changes per transaction.
fn play(steps: &[Vec<Step>]) -> (BTreeMap<i64, i64>, Vec<Raw>) {
    let (mut table, mut log, mut next) = (BTreeMap::new(), Vec::new(), 0);
    for (number, steps) in steps.iter().enumerate() {
        let ts = format!("2020-01-{:02} 00:00:{:02}", 1 + number / 3, number % 3);
        let mut changes = Raw::new();
        // One that changes places with another is moved by nothing else in its transaction.
        let swaps = steps.iter().any(|step| matches!(step, Step::Swap(..)));
        for step in &steps[..if swaps { 1 } else { steps.len() }] {
            let mut tell = |op: &str, id: i64, before: Option<i64>, v: i64| {
                let before = before.map_or("-".into(), |before: i64| before.to_string());
                changes.push([op.into(), id.to_string(), before, v.to_string(), ts.clone()]);
            };
            next += 1;
            match *step {
                Step::Upsert(id) => {
                    let op = if table.insert(id, next).is_some() {
                        "U"
                    } else {
                        "I"
                    };
                    tell(op, id, None, next);
                }
                Step::Delete(id) if table.remove(&id).is_some() => tell("D", id, None, 0),
                // Keys are checked at once: a move goes where nothing is.
                Step::Move(from, to)
                    if !table.contains_key(&to) && table.remove(&from).is_some() =>
                {
                    table.insert(to, next);
                    tell("U", to, Some(from), next);
                }
                Step::Swap(a, b) if a != b && table.contains_key(&a) && table.contains_key(&b) => {
                    table.insert(b, next);
                    tell("U", b, Some(a), next);
                    next += 1;
                    table.insert(a, next);
                    tell("U", a, Some(b), next);
                }
                _ => {}
            }
        }
        // A row that comes back to the key it left would be taken for several that change places.
        if comes_back(&changes) && !swaps {
            return (table_before(&log), log);
        }
        log.push(changes);
    }
    (table, log)
}

fn comes_back(changes: &Raw) -> bool {
    let mut starts: BTreeMap<&str, &str> = BTreeMap::new();
    for [op, id, before, ..] in changes {
        if op == "U" && before != "-" {
            let start = starts.remove(before.as_str()).unwrap_or(before);
            if start == id {
                return true;
            }
            starts.insert(id, start);
        }
    }
    false
}

/// The table after a log whose swaps stand alone.
fn table_before(log: &[Raw]) -> BTreeMap<i64, i64> {
    let mut table = BTreeMap::new();
    for changes in log {
        let number = |text: &String| text.parse::<i64>().expect("a number");
        let swap =
            changes.len() == 2 && changes[0][1] == changes[1][2] && changes[0][2] == changes[1][1];
        for [op, id, before, v, _] in changes {
            if before != "-" && !swap {
                table.remove(&number(before));
            }
            match op.as_str() {
                "D" => table.remove(&number(id)),
                _ => table.insert(number(id), number(v)),
            };
        }
    }
    table
}

#[test]
fn any_windows_end_in_the_table_of_the_database() {
    let steps = prop::collection::vec(prop::collection::vec(step(), 1..4), 1..12);
    let windows = prop::collection::vec((1i64..5, 1i64..4), 0..4);
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let input = (steps, windows, any::<bool>(), any::<bool>());
    TestRunner::new(config)
        .run(&input, |(steps, windows, by_row, per_file)| {
            let (table, log) = play(&steps);
            let lab = lab("latest", if by_row { "commit" } else { "name" });
            // A file holds one transaction, or those of a day.
            let mut files: BTreeMap<String, Raw> = BTreeMap::new();
            for (number, changes) in log.into_iter().enumerate() {
                let second = if per_file { number % 3 } else { 0 };
                let name = format!("202001{:02}-00000{second}000", 1 + number / 3);
                files.entry(name).or_default().extend(changes);
            }
            for (name, rows) in &files {
                lab.put(&format!("raw/{name}.parquet"), changes_of(&COLUMNS, rows));
            }
            for (day, days) in windows {
                let (start, end) = (
                    format!("2020-01-{day:02}"),
                    format!("2020-01-{:02}", day + days),
                );
                lab.run_with(Task::Curate, &start, &end, &[])
                    .expect("a run");
            }
            lab.run_with(Task::Curate, "2020-01-01", "2020-02-01", &[])
                .expect("a run");
            prop_assert_eq!(rows(&lab), table.into_iter().collect::<Vec<_>>());
            Ok(())
        })
        .expect("the tables are the same");
}
