//! Updates that change a key: a delete of the old one and the row under the new one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Lab, LabBuilder, Report, Task, assert_refused, cells, day, file_of_rows, raw_file,
};

const SQL: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest";
const COLUMNS: [&str; 5] = ["Op", "id", "BI_id", "v", "ts"];

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.before_image_prefix", "BI_")
        .partition_by(&["event_dt"])
        .curated_sql(SQL)
}

fn lab() -> Lab {
    builder().build()
}

fn rows(lab: &Lab) -> Vec<(i64, i64)> {
    let number = |text: &String| text.parse().expect("a number");
    let mut rows: Vec<(i64, i64)> = lab
        .table("lake/curated")
        .into_iter()
        .map(|row| (number(&row["id"]), number(&row["v"])))
        .collect();
    rows.sort();
    rows
}

/// Folds files of changes, all in one run or each in a run of its own.
fn fold(files: &[&[[&str; 5]]], at_once: bool) -> (Lab, Vec<Report>) {
    let lab = lab();
    for (day, rows) in (1..).zip(files) {
        lab.put(&raw_file(day), file_of_rows(&COLUMNS, rows));
    }
    let reports = if at_once {
        vec![lab.run("2020-01-01", "2020-02-01").expect("a run")]
    } else {
        let days = 1..=files.len() as i64;
        days.map(|day| lab.run_days(day, day + 1)).collect()
    };
    (lab, reports)
}

const T1: &str = "2020-01-01 00:00:00";
const T2: &str = "2020-01-02 00:00:00";
const T3: &str = "2020-01-03 00:00:00";

#[test]
fn a_row_that_gets_another_key_leaves_the_old_one() {
    let first: &[[&str; 5]] = &[["I", "1", "-", "10", T1], ["I", "2", "-", "20", T1]];
    // An update that keeps its key has it in both columns, or null in `BI_id`.
    let second: &[[&str; 5]] =
        &[["U", "3", "1", "11", T2], ["U", "2", "2", "21", T2], ["U", "2", "-", "22", T2]];
    for at_once in [true, false] {
        let (lab, reports) = fold(&[first, second], at_once);
        assert_eq!(rows(&lab), [(2, 22), (3, 11)]);
        let last = reports.last().expect("a report");
        assert_eq!(last.key_moves, 1);
        let read = last.rows_read + last.key_moves;
        assert_eq!(read, last.rows_latest + last.rows_superseded + last.rows_deleted);
        let before = lab.contents("lake/curated");
        lab.run("2020-01-01", "2020-02-01").expect("a run");
        assert_eq!(lab.contents("lake/curated"), before);
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(rows(&lab), [(2, 22), (3, 11)]);
    }
}

#[test]
fn the_old_key_can_be_used_again() {
    let first: &[[&str; 5]] = &[["I", "1", "-", "10", T1]];
    let second: &[[&str; 5]] = &[["U", "2", "1", "11", T2]];
    let third: &[[&str; 5]] = &[["I", "1", "-", "30", T3]];
    for at_once in [true, false] {
        let (lab, _) = fold(&[first, second, third], at_once);
        assert_eq!(rows(&lab), [(1, 30), (2, 11)]);
    }
    let lab = fold(&[first, second, third], false).0;
    // Another run of an old window does not delete it.
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    assert_eq!(rows(&lab), [(1, 30), (2, 11)]);
}

#[test]
fn chains_and_swaps_in_one_transaction_end_where_the_database_did() {
    let two: &[[&str; 5]] = &[["I", "1", "-", "10", T1], ["I", "2", "-", "20", T1]];
    let one: &[[&str; 5]] = &[["I", "1", "-", "10", T1]];
    let three: &[[&str; 5]] =
        &[["I", "1", "-", "10", T1], ["I", "2", "-", "20", T1], ["I", "3", "-", "30", T1]];
    let chain: &[[&str; 5]] = &[["U", "2", "1", "11", T2], ["U", "3", "2", "12", T2]];
    let shift: &[[&str; 5]] = &[["U", "3", "2", "21", T2], ["U", "2", "1", "11", T2]];
    let by_way: &[[&str; 5]] =
        &[["U", "9", "1", "11", T2], ["U", "1", "2", "21", T2], ["U", "2", "9", "12", T2]];
    let swap: &[[&str; 5]] = &[["U", "2", "1", "11", T2], ["U", "1", "2", "21", T2]];
    let round: &[[&str; 5]] =
        &[["U", "2", "1", "11", T2], ["U", "3", "2", "21", T2], ["U", "1", "3", "31", T2]];
    let deleted: &[[&str; 5]] = &[["U", "2", "1", "11", T2], ["D", "2", "-", "-", T2]];
    for (name, before, moves, expected, count) in [
        ("a chain", one, chain, vec![(3, 12)], 2),
        ("a shift", two, shift, vec![(2, 11), (3, 21)], 2),
        ("a swap by way of a third key", two, by_way, vec![(1, 21), (2, 12)], 3),
        ("a swap", two, swap, vec![(1, 21), (2, 11)], 2),
        ("three that change places", three, round, vec![(1, 31), (2, 11), (3, 21)], 3),
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
    let swap: &[[&str; 6]] = &[
        ["I", "1", "-", "10", "1", T1],
        ["I", "2", "-", "20", "2", T1],
        // The file has the second half of the swap before the first.
        ["U", "1", "2", "21", "4", T2],
        ["U", "2", "1", "11", "3", T2],
    ];
    let chain: &[[&str; 6]] = &[
        ["I", "1", "-", "10", "1", T1],
        ["U", "3", "2", "12", "4", T2],
        ["U", "2", "1", "11", "3", T2],
    ];
    for order in ["[\"seq\"]", "[\"ts\", \"seq\"]"] {
        for (log, expected) in [(swap, vec![(1, 21), (2, 11)]), (chain, vec![(3, 12)])] {
            let lab = lab();
            lab.put(&raw_file(1), file_of_rows(&columns, log));
            let order_by = format!("raw.order_by={order}");
            let set = [order_by.as_str(), "raw.commit_time=ts"];
            let (start, end) = ("2020-01-01", "2020-02-01");
            lab.run_with(Task::Curate, start, end, &set).expect("a run");
            assert_eq!(rows(&lab), expected, "{order}");
        }
    }
}

#[test]
fn days_keep_the_rows_of_keys_that_moved_later() {
    let first: &[[&str; 5]] = &[["I", "1", "-", "10", T1], ["I", "2", "-", "20", T1]];
    let second: &[[&str; 5]] = &[["U", "3", "1", "11", T2], ["U", "2", "2", "21", T2]];
    let backwards = [("2020-01-02", "2020-02-01"), ("2020-01-01", "2020-01-02")];
    for windows in [&[("2020-01-01", "2020-02-01")][..], &backwards] {
        let lab = builder().keep("latest-per-day").build();
        lab.put(&raw_file(1), file_of_rows(&COLUMNS, first));
        lab.put(&raw_file(2), file_of_rows(&COLUMNS, second));
        for (start, end) in windows {
            lab.run(start, end).expect("a run");
        }
        let expected = [
            ["2020-01-01", "1", "10"],
            ["2020-01-01", "2", "20"],
            ["2020-01-02", "2", "21"],
            ["2020-01-02", "3", "11"],
        ];
        let rows = lab.table("lake/curated");
        assert_eq!(cells(&rows, ["event_dt", "id", "v"]), expected);
    }
}

#[test]
fn files_without_the_key_before_are_folded_and_told() {
    let lab = lab();
    let load = file_of_rows(&["id", "v", "ts"], &[["1", "0", T3]]);
    lab.put("raw/LOAD1.parquet", load);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert_eq!(report.note, None, "full loads have no key before");
    let without = file_of_rows(&["Op", "id", "v", "ts"], &[["U", "1", "1", T1]]);
    lab.put(&raw_file(1), without);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert!(report.note.expect("a note").contains("`BI_id`"));
    let moves = file_of_rows(&COLUMNS, &[["U", "2", "1", "2", T2]]);
    lab.put(&raw_file(2), moves);
    let report = lab.run("2020-01-01", "2020-01-03").expect("a run");
    assert_eq!(report.note, None);
    assert_eq!(rows(&lab), [(2, 2)]);
    // The setting belongs to the identity of the table.
    lab.edit_pipeline("before_image_prefix = \"BI_\"", "");
    let failed = lab.run("2020-01-01", "2020-01-03").expect_err("refused");
    assert_refused(failed, 2, "`raw.before_image_prefix` changed", "glueless rebuild");
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(rows(&lab), [(1, 1), (2, 2)]);
}

#[test]
fn before_images_of_the_key_columns_that_can_change_are_enough() {
    for (images, expected, is_noted) in [(vec!["BI_product"], 1, false), (vec![], 2, true)] {
        let lab = builder()
            .set("key", vec!["id", "product"])
            .partition_by(&[])
            .curated_sql("SELECT id, product, v FROM latest")
            .build();
        let columns = [vec!["Op", "id", "product", "v", "ts"], images.clone()].concat();
        let row = |op, product, v, before| {
            let values = vec![op, "1", product, v, if op == "I" { T1 } else { T2 }];
            [values, vec![before; images.len()]].concat()
        };
        let rows = [row("I", "11", "1", "-"), row("U", "77", "2", "11")];
        lab.put(&raw_file(1), file_of_rows(&columns, &rows));
        let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!(lab.table("lake/curated").len(), expected);
        let is_found = report.note.is_some_and(|note| note.contains("key updates"));
        assert_eq!(is_found, is_noted);
    }
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

/// Plays the steps on a database: its rows at the end, and its log as one list of changes for each
/// transaction.
fn play(steps: &[Vec<Step>]) -> (BTreeMap<i64, i64>, Vec<Raw>) {
    let (mut table, mut log, mut next) = (BTreeMap::new(), Vec::new(), 0);
    for (number, steps) in steps.iter().enumerate() {
        let ts = format!("2020-01-{:02} 00:00:{:02}", 1 + number / 3, number % 3);
        let mut changes = Raw::new();
        // In a transaction with a swap nothing else happens.
        let swaps = steps.iter().any(|step| matches!(step, Step::Swap(..)));
        for step in &steps[..if swaps { 1 } else { steps.len() }] {
            let mut record = |op: &str, id: i64, before: Option<i64>, v: i64| {
                let before = before.map_or("-".into(), |before: i64| before.to_string());
                changes.push([op.into(), id.to_string(), before, v.to_string(), ts.clone()]);
            };
            next += 1;
            match *step {
                Step::Upsert(id) => {
                    let op = if table.insert(id, next).is_some() { "U" } else { "I" };
                    record(op, id, None, next);
                }
                Step::Delete(id) if table.remove(&id).is_some() => record("D", id, None, 0),
                // The database refuses a move to a key that exists.
                Step::Move(from, to)
                    if !table.contains_key(&to) && table.remove(&from).is_some() =>
                {
                    table.insert(to, next);
                    record("U", to, Some(from), next);
                }
                Step::Swap(a, b) if a != b && table.contains_key(&a) && table.contains_key(&b) => {
                    table.insert(b, next);
                    record("U", b, Some(a), next);
                    next += 1;
                    table.insert(a, next);
                    record("U", a, Some(b), next);
                }
                _ => {}
            }
        }
        // A row that returns to its first key looks like several rows that swap their keys.
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

/// The table after a log, where each swap is a transaction of its own.
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
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let input = (steps, windows, any::<bool>(), any::<bool>());
    TestRunner::new(config)
        .run(&input, |(steps, windows, by_row, per_file)| {
            let (table, log) = play(&steps);
            let lab = builder().window_by(if by_row { "commit" } else { "name" }).build();
            // A file holds one transaction, or all transactions of a day.
            let mut files: BTreeMap<String, Raw> = BTreeMap::new();
            for (number, changes) in log.into_iter().enumerate() {
                let second = if per_file { number % 3 } else { 0 };
                let name = format!("202001{:02}-00000{second}000", 1 + number / 3);
                files.entry(name).or_default().extend(changes);
            }
            for (name, rows) in &files {
                lab.put(&format!("raw/{name}.parquet"), file_of_rows(&COLUMNS, rows));
            }
            for (first, days) in windows {
                lab.run_with(Task::Curate, &day(first), &day(first + days), &[]).expect("a run");
            }
            lab.run_with(Task::Curate, "2020-01-01", "2020-02-01", &[]).expect("a run");
            prop_assert_eq!(rows(&lab), table.into_iter().collect::<Vec<_>>());
            Ok(())
        })
        .expect("the tables are the same");
}
