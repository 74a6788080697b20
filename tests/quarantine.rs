//! Bad rows and bad files: quarantined where the pipeline says so, and folded later, once they can
//! be read.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Lab, LabBuilder, PLACES, Place, Report, Row, STATE, Task, assert_refused, file_of_rows,
    raw_file, texts,
};

const SQL: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(n AS BIGINT) AS n, event_dt FROM latest";
const COLUMNS: [&str; 5] = ["Op", "id", "n", "event", "ts"];
const START: &str = "2020-01-01";
const END: &str = "2020-02-01";
const AT: &str = "2020-01-01 00:00:00";

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.op", "Op")
        .set("raw.event_time", "event")
        .set("raw.on_bad_row", "quarantine")
        .set("raw.on_bad_file", "quarantine")
        .raw_columns(&[("n", "INTEGER")])
        .partition_by(&["event_dt"])
        .curated_sql(SQL)
}

/// The pipeline over CSV files of the same columns.
fn csv_builder() -> LabBuilder {
    let types = ["TEXT", "BIGINT", "INTEGER", "TEXT", "TEXT"];
    let columns: Vec<(&str, &str)> = COLUMNS.into_iter().zip(types).collect();
    builder().set("raw.format", "csv").raw_columns(&columns)
}

fn lab() -> Lab {
    builder().build()
}

/// The table's rows: key and number.
fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "n"])
}

fn quarantine_folder() -> String {
    format!("{STATE}/quarantine")
}

/// What is in quarantine: file, row, column, reason and change.
fn quarantined(lab: &Lab, report: &Report) -> Vec<[String; 5]> {
    let folder = report.quarantine.as_ref().expect("a folder");
    assert!(folder.ends_with("/lake/_glueless/lab/quarantine"), "{folder}");
    let text = |row: &Row, name: &str| row.get(name).cloned().unwrap_or_default();
    let mut found: Vec<[String; 5]> = lab
        .table(&quarantine_folder())
        .into_iter()
        .map(|row| {
            let file = text(&row, "file").rsplit_once('/').expect("a folder").1.to_string();
            let [row_number, column, reason, change] =
                ["row", "column", "reason", "change"].map(|name| text(&row, name));
            [file, row_number, column, reason, change]
        })
        .collect();
    found.sort_by_key(|line| (line[0].clone(), line[1].parse::<u64>().unwrap_or_default()));
    found
}

/// A bad row of every kind, among good ones.
fn bad_rows() -> Vec<u8> {
    file_of_rows(
        &COLUMNS,
        &[
            ["I", "1", "1", AT, AT],
            ["I", "-", "2", AT, AT],
            ["X", "3", "3", AT, AT],
            ["I", "4", "4", AT, "-"],
            ["I", "5", "5", AT, "soon"],
            ["I", "6", "6", "never", AT],
            ["I", "7", "5000000000", AT, AT],
            ["I", "8", "8", AT, AT],
            ["D", "1", "-", "never", "2020-01-02 00:00:00"],
        ],
    )
}

#[test]
fn bad_rows_are_put_aside_with_place_and_reason() {
    for place in PLACES {
        let lab = builder().place(place).build();
        lab.put(&raw_file(1), bad_rows());
        let report = lab.run(START, END).expect("a run");
        assert_eq!(curated(&lab), ["1 1", "8 8"], "the bad delete leaves its key alive");
        let sum = report.rows_latest + report.rows_superseded + report.rows_deleted;
        assert_eq!((report.rows_rejected, report.rows_read), (7, sum + 7));
        let rows = quarantined(&lab, &report);
        let found: Vec<[&str; 4]> = rows
            .iter()
            .map(|[_, row, column, reason, _]| [row, column, reason].map(String::as_str))
            .map(|[row, column, reason]| ["20200101-000000000.parquet", row, column, reason])
            .collect();
        let file = "20200101-000000000.parquet";
        assert_eq!(
            found,
            [
                [file, "2", "id", "is null"],
                [file, "3", "Op", "is none of I, U, D, T"],
                [file, "4", "ts", "is null"],
                [file, "5", "ts", "is not a time"],
                [file, "6", "event", "is not a time"],
                [file, "7", "n", "does not fit Int32, its type"],
                [file, "9", "event", "is not a time"],
            ]
        );
        assert_eq!(
            quarantined(&lab, &report)[5][4],
            r#"{"Op":"I","id":"7","n":"5000000000","event":"2020-01-01 00:00:00","ts":"2020-01-01 00:00:00"}"#
        );
        // A second run adds nothing.
        let again = lab.run(START, END).expect("a run");
        assert_eq!(quarantined(&lab, &again).len(), 7);
        assert_eq!(lab.list_all(&quarantine_folder()).len(), 1);
        lab.assert_tidy();
        if place == Place::Local {
            let read = lab.read_with("duckdb", &quarantine_folder(), None);
            assert_eq!(read.expect("read").1.len(), 7);
        }
    }
}

#[test]
fn catching_up_folds_what_can_be_read_now() {
    for window_by in ["name", "commit"] {
        let lab = builder().window_by(window_by).build();
        lab.put(&raw_file(1), bad_rows());
        let later = file_of_rows(&COLUMNS, &[["U", "8", "80", AT, "2020-01-03 00:00:00"]]);
        lab.put(&raw_file(3), later);
        lab.run(START, END).expect("a run");
        let wider = ["raw.columns={n = \"bigint\"}", "raw.event_time=ts"];
        let failed = lab.catch_up(&wider).expect_err("another table");
        assert_refused(failed, 2, "`raw.event_time` changed", "rebuild");
        let report = lab.catch_up(&wider[..1]).expect("caught up");
        assert_eq!(curated(&lab), ["1 1", "7 5000000000", "8 80"], "{window_by}");
        assert_eq!((report.files, report.rows_rejected), (1, 6));
        let report = lab.rebuild(false, &wider).expect("rebuilt");
        assert_eq!(curated(&lab), ["6 6", "7 5000000000", "8 80"]);
        assert_eq!(report.rows_rejected, 4);
    }
}

#[test]
fn nothing_in_quarantine_is_said() {
    let lab = lab();
    let failed = lab.catch_up(&[]).expect_err("no run yet");
    assert_refused(failed, 2, "nothing to catch up with", "glueless run");
    lab.put(&raw_file(1), file_of_rows(&COLUMNS, &[["I", "1", "1", AT, AT]]));
    lab.run(START, END).expect("a run");
    let report = lab.catch_up(&[]).expect("nothing to do");
    let note = report.note.expect("a note");
    assert!(note.ends_with("nothing is in quarantine"), "{note}");
    assert!(report.quarantine.is_none());
}

#[test]
fn too_many_bad_rows_stop_the_run() {
    let lab = lab();
    lab.put(&raw_file(1), bad_rows());
    let failed = lab.run_with(Task::Run, START, END, &["raw.max_bad_rows=6"]);
    assert_refused(
        failed.expect_err("refused"),
        65,
        "more than 6 rows are bad, such as: row ",
        "raw.max_bad_rows",
    );
    assert!(lab.list("lake/curated").is_empty());
    lab.run_with(Task::Run, START, END, &["raw.max_bad_rows=7"]).expect("a run");
    // These settings do not belong to the identity of the table.
    let failed = lab.run_with(Task::Run, START, END, &["raw.on_bad_row=fail"]);
    assert_refused(failed.expect_err("refused"), 65, "row 2 of", "a key column must not be null");
}

#[test]
fn many_bad_rows_of_large_batches_are_found() {
    let lab = lab();
    let rows: Vec<[String; 5]> = (0..30_000)
        .map(|row| {
            let n = if row % 17 == 3 { "5000000000".into() } else { row.to_string() };
            ["I".into(), row.to_string(), n, AT.into(), AT.into()]
        })
        .collect();
    lab.put(&raw_file(1), file_of_rows(&COLUMNS, &rows));
    let set = ["raw.max_bad_rows=100000"];
    let report = lab.run_with(Task::Run, START, END, &set).expect("a run");
    let bad = (0..30_000).filter(|row| row % 17 == 3).count();
    assert_eq!((report.rows_rejected as usize, report.rows_latest as usize), (bad, 30_000 - bad));
    let found = quarantined(&lab, &report);
    assert_eq!((found.len(), found[1][1].as_str()), (bad, "21"));
}

fn good(id: &str, n: &str) -> Vec<u8> {
    file_of_rows(&COLUMNS, &[["I", id, n, AT, AT]])
}

#[test]
fn files_that_cannot_be_read_are_put_aside_and_may_be_mended() {
    let lab = lab();
    lab.put(&raw_file(1), good("1", "1"));
    lab.put(&raw_file(2), good("2", "2")[..100].to_vec());
    lab.put(&raw_file(3), "");
    let no_key = file_of_rows(&["Op", "n", "event", "ts"], &[["I", "1", AT, AT]]);
    lab.put(&raw_file(4), no_key);
    // Its footer is good and its pages are damaged, which is found after the other files were folded.
    let mut pages = good("5", "5");
    pages[4..40].fill(0xFF);
    lab.put(&raw_file(5), pages);
    lab.put(&raw_file(6), good("6", "6"));
    let report = lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["1 1", "6 6"]);
    assert_eq!((report.files_rejected, report.rows_rejected, report.files), (4, 0, 6));
    let found = quarantined(&lab, &report);
    let names: Vec<&str> = found.iter().map(|line| line[0].as_str()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(found.iter().all(|line| line[1].is_empty() && !line[3].is_empty()), "{found:?}");
    let failed = lab.run_with(Task::Run, START, END, &["raw.on_bad_file=fail"]);
    assert_refused(failed.expect_err("refused"), 65, "20200102-000000000.parquet", "");
    // Nothing of them was folded: once a file is repaired, the next run that finds it folds it.
    lab.put(&raw_file(2), good("2", "2"));
    let report = lab.run("2020-01-07", "2020-01-08").expect("a run");
    assert_eq!(report.late_files, 0, "more than two days back");
    let report = lab.run_with(Task::Run, "2020-01-07", "2020-01-08", &["raw.lookback=30d"]);
    assert_eq!(report.expect("a run").late_files, 1);
    lab.put(&raw_file(5), good("5", "5"));
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!((report.files_rejected, report.rows_latest), (2, 1));
    assert_eq!(curated(&lab), ["1 1", "2 2", "5 5", "6 6"]);
    let report = lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!((report.files_rejected, curated(&lab).len()), (2, 4));
    lab.assert_tidy();
}

#[test]
fn a_run_of_nothing_but_bad_files_remembers_them() {
    let lab = lab();
    lab.put(&raw_file(1), vec![1_u8; 100]);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(report.files_rejected, 1);
    assert!(report.note.expect("a note").contains("in quarantine"));
    lab.put(&raw_file(1), good("1", "1"));
    lab.catch_up(&[]).expect("caught up");
    assert_eq!(curated(&lab), ["1 1"]);
}

#[test]
fn a_file_that_was_folded_in_part_needs_a_rebuild_when_it_changes() {
    let lab = lab();
    lab.put(&raw_file(1), bad_rows());
    lab.run(START, END).expect("a run");
    lab.put(&raw_file(1), good("1", "7"));
    let failed = lab.catch_up(&[]).expect_err("changed");
    assert_refused(failed, 65, "has changed since", "glueless rebuild");
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(curated(&lab), ["1 7"]);
    assert!(lab.list_all(&quarantine_folder()).is_empty());
}

#[test]
fn a_failed_run_leaves_nothing_in_quarantine() {
    let lab = lab();
    lab.put(&raw_file(1), bad_rows());
    let sql =
        "SELECT CAST(id AS BIGINT) AS id, CAST('x' || id AS BIGINT) AS n, event_dt FROM latest";
    lab.write_file("curated.sql", sql);
    lab.run(START, END).expect_err("a cast fails");
    assert!(lab.list_all("lake").is_empty(), "{:?}", lab.list_all("lake"));
}

#[test]
fn bad_lines_of_csv_are_put_aside_with_their_number() {
    let lab = csv_builder().build();
    let text = format!(
        "I,1,1,{AT},{AT}\nI,2,x,{AT},{AT}\nI,3\nX,4,4,{AT},{AT}\n\"I\"x,5,5,{AT},{AT}\nI,6,6,{AT},{AT}\nI,7"
    );
    lab.put("raw/20200101-000000000.csv", text);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["1 1", "6 6"]);
    assert_eq!((report.rows_read, report.rows_rejected), (7, 5));
    let lines = quarantined(&lab, &report);
    let found: Vec<[&str; 3]> =
        lines.iter().map(|line| [&line[1], &line[2], &line[3]].map(String::as_str)).collect();
    assert_eq!(
        found,
        [
            ["2", "n", "does not fit its type, Int32"],
            ["3", "", "has 2 fields where 5 are expected"],
            ["4", "Op", "is none of I, U, D, T"],
            ["5", "Op", "has an unexpected quote"],
            ["7", "", "is cut off: the file does not end with a line feed"],
        ]
    );
    lab.put("raw/20200102-000000000.csv.gz", vec![0x1f_u8, 0x8b, 8, 0, 0, 0]);
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.files_rejected, report.rows_latest), (1, 0));
}

/// A run of one day of January.
fn run_day(lab: &Lab, day: i64, set: &[&str]) -> Report {
    lab.run_days_with(day, day + 1, set)
}

#[test]
fn windows_of_rows_release_nothing_that_they_did_not_fold() {
    let wider = ["raw.columns={n = \"bigint\"}"];
    let days = |n: &str| {
        let third = "2020-01-03 00:00:00";
        file_of_rows(
            &COLUMNS,
            &[["I", "1", n, AT, AT], ["I", "2", "2", AT, AT], ["I", "3", "3", third, third]],
        )
    };
    let rows = builder().window_by("commit").build();
    rows.put("raw/a.parquet", days("5000000000"));
    assert_eq!(run_day(&rows, 1, &[]).rows_rejected, 1);
    // The bad row is on another day, and stays in quarantine.
    assert_eq!(run_day(&rows, 3, &[]).rows_rejected, 1);
    assert_eq!(quarantined(&rows, &run_day(&rows, 4, &[])).len(), 1);
    // Once it can be read, any run over the file folds it.
    run_day(&rows, 20, &wider);
    assert_eq!(curated(&rows), ["1 5000000000", "2 2", "3 3"]);
    assert!(rows.list_all(&quarantine_folder()).is_empty());

    // A whole file was bad, and is repaired.
    let whole = builder().window_by("commit").build();
    whole.put("raw/a.parquet", days("1")[..200].to_vec());
    assert_eq!(run_day(&whole, 1, &[]).files_rejected, 1);
    whole.put("raw/a.parquet", days("1"));
    run_day(&whole, 20, &[]);
    assert_eq!(curated(&whole), ["1 1", "2 2"], "the days that were run");
}

#[test]
fn a_rebuild_from_nothing_but_bad_files_changes_nothing() {
    let lab = lab();
    lab.put(&raw_file(1), good("1", "1"));
    lab.run(START, END).expect("a run");
    let before = lab.contents("lake");
    lab.put(&raw_file(1), vec![1_u8; 50]);
    let failed = lab.rebuild(false, &[]).expect_err("refused");
    assert_refused(
        failed,
        65,
        "an input that was folded cannot be read any more",
        "--accept-missing",
    );
    let failed = lab.rebuild(true, &[]).expect_err("refused");
    assert_refused(failed, 65, "no input can be read any more", "nothing was changed");
    assert_eq!(lab.contents("lake"), before);
}

#[test]
fn an_input_that_was_folded_does_not_become_a_bad_file() {
    let lab = csv_builder().build();
    let text = format!("I,1,x,{AT},{AT}\nI,2,2,{AT},{AT}\n");
    lab.put("raw/20200101-000000000.csv", text);
    lab.run(START, END).expect("a run");
    let other = ["raw.csv_header=true"];
    let failed = lab.run_with(Task::Run, START, END, &other).expect_err("refused");
    assert_refused(failed, 65, "an input that was folded cannot be read any more", "rebuild");
}

#[test]
fn rows_that_were_folded_do_not_become_bad_rows() {
    let lab = lab();
    lab.put(&raw_file(1), bad_rows());
    lab.put(&raw_file(2), good("2", "1000"));
    lab.run(START, END).expect("a run");
    let before = lab.contents("lake");
    let narrower = ["raw.columns.n=tinyint"];
    let message = "a row that was folded cannot be read any more: row 1 of";
    let failed = lab.run_with(Task::Run, START, END, &narrower);
    assert_refused(failed.expect_err("refused"), 65, message, "undo the change");
    let failed = lab.rebuild(false, &narrower).expect_err("refused");
    assert_refused(failed, 65, message, "--accept-missing");
    assert_eq!(lab.contents("lake"), before);
    let report = lab.rebuild(true, &narrower).expect("rebuilt");
    assert_eq!((report.rows_rejected, report.rows_latest), (8, 2));
}

#[test]
fn a_bad_file_may_be_taken_away() {
    let lab = lab();
    lab.put(&raw_file(1), good("1", "1"));
    lab.put(&raw_file(2), vec![1_u8; 50]);
    lab.put(&raw_file(3), vec![1_u8; 50]);
    lab.run(START, END).expect("a run");
    lab.remove(&raw_file(2));
    let report = lab.rebuild(false, &[]).expect("nothing of it was folded");
    assert_eq!((report.files_rejected, curated(&lab).len()), (1, 1));
    lab.remove(&raw_file(3));
    let report = lab.catch_up(&[]).expect("caught up");
    assert!(report.note.expect("a note").contains("are missing"));
    let report = lab.catch_up(&[]).expect("caught up");
    let note = report.note.expect("a note");
    assert!(note.ends_with("nothing is in quarantine"), "{note}");
    assert!(lab.list_all(&quarantine_folder()).is_empty());
}

#[test]
fn bad_rows_are_no_bad_files() {
    let lab = csv_builder().build();
    let text = format!("I,1,x,{AT},{AT}\nI,2,y,{AT},{AT}\n");
    lab.put("raw/20200101-000000000.csv", text);
    let failed = lab.run_with(Task::Run, START, END, &["raw.on_bad_row=fail"]);
    assert_refused(failed.expect_err("refused"), 65, "line 1 of", "correct the value");
    let failed = lab.run_with(Task::Run, START, END, &["raw.max_bad_rows=1"]);
    assert_refused(failed.expect_err("refused"), 65, "more than 1 rows are bad", "max_bad_rows");
}

#[test]
fn damage_that_is_not_needed_is_no_damage() {
    let lab = lab();
    // A column that curated.sql does not select is damaged.
    let columns = ["Op", "id", "n", "event", "ts", "other"];
    let mut unneeded =
        file_of_rows(&columns, &[["I", "1", "1", AT, AT, "some long text to damage"]]);
    let place = unneeded.windows(9).position(|bytes| bytes == b"some long").expect("the text");
    // This is the end of its page's header, before the length of the text.
    unneeded[place - 12..place - 4].fill(0xFF);
    lab.put(&raw_file(1), unneeded);
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    assert_eq!(curated(&lab), ["1 1"]);
    let mut needed = good("2", "2");
    needed[4..40].fill(0xFF);
    lab.put(&raw_file(2), needed);
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.files_rejected, curated(&lab)), (1, vec!["1 1".to_string()]));
    // A query that selects the column finds the damage.
    let sql = "SELECT CAST(id AS BIGINT) AS id, other, event_dt FROM latest";
    lab.write_file("curated.sql", sql);
    let elsewhere = format!("curated.url={}/elsewhere/curated", lab.base);
    let set = [elsewhere.as_str(), "raw.on_bad_file=fail"];
    let failed = lab.run_with(Task::Run, "2020-01-01", "2020-01-02", &set);
    assert_refused(failed.expect_err("damaged"), 65, "20200101-000000000.parquet", "");
}

#[test]
fn many_files_with_damaged_pages_are_found_together() {
    let lab = lab();
    for day in 1..=20 {
        let mut bytes = good(&day.to_string(), "1");
        if day % 2 == 0 {
            bytes[4..40].fill(0xFF);
        }
        lab.put(&raw_file(day), bytes);
    }
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.files_rejected, report.rows_latest), (10, 10));
}

#[test]
fn a_file_read_again_leaves_nothing_of_itself_behind() {
    let lab = lab();
    lab.put(&raw_file(1), bad_rows());
    lab.put(&raw_file(2), bad_rows());
    assert_eq!(run_day(&lab, 1, &[]).rows_rejected, 7);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(quarantined(&lab, &report).len(), 14);
    let report = run_day(&lab, 2, &[]);
    assert_eq!((report.rows_rejected, quarantined(&lab, &report).len()), (7, 14));
}

/// How the bytes of a file are changed. Positions are fractions of its length.
#[derive(Clone, Debug)]
struct Damage {
    length: f64,
    flips: Vec<(f64, u8)>,
    /// Where a part of another file is inserted; and where that part starts and ends there.
    splice: Option<[f64; 3]>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = 0.0..1.0;
    let damage = (
        prop_oneof![3 => Just(1.0), 1 => place.clone()],
        prop::collection::vec((place.clone(), any::<u8>()), 0..6),
        prop::option::of(prop::array::uniform3(place)),
    );
    damage.prop_map(|(length, flips, splice)| Damage { length, flips, splice })
}

fn damaged(good: &[u8], other: &[u8], damage: &Damage) -> Vec<u8> {
    let place = |part: f64, bytes: &[u8]| (part * bytes.len() as f64) as usize;
    let mut bytes = good.to_vec();
    if let Some([at, from, to]) = &damage.splice {
        let (from, to) = (place(from.min(*to), other), place(from.max(*to), other));
        let at = place(*at, &bytes);
        bytes.splice(at..(at + to - from).min(bytes.len()), other[from..to].iter().copied());
    }
    for (at, byte) in &damage.flips {
        let at = place(*at, &bytes);
        if let Some(byte_there) = bytes.get_mut(at) {
            *byte_there = *byte;
        }
    }
    bytes.truncate(place(damage.length, &bytes));
    bytes
}

#[test]
fn no_bytes_of_a_raw_file_make_a_run_stumble() {
    let many = |step: usize| {
        let rows: Vec<[String; 5]> = (0..400)
            .map(|row| {
                let n = (row * step % 97).to_string();
                [
                    "U".into(),
                    (row % 50).to_string(),
                    n,
                    AT.into(),
                    format!("2020-01-01 00:00:{:02}", row % 60),
                ]
            })
            .collect();
        file_of_rows(&COLUMNS, &rows)
    };
    let parquets = [many(7), many(31)];
    let csv = |files: [&str; 2]| files.map(|text| text.as_bytes().to_vec());
    let csvs = csv([
        "I,1,1,2020-01-01 00:00:00,2020-01-01 00:00:00\nU,2,\"2\",,2020-01-01 00:00:00\nD,1,,,2020-01-02 00:00:00\n",
        "I,\"3\",3,2020-01-01 00:00:00,2020-01-01 00:00:00\n\"U\",2,\"2\n\",,2020-01-01 00:00:00\n",
    ]);
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let input = (damage(), any::<bool>(), any::<bool>());
    TestRunner::new(config)
        .run(&input, |(damage, is_csv, is_quarantined)| {
            let (files, builder, ending) = if is_csv {
                (&csvs, csv_builder(), "csv")
            } else {
                (&parquets, builder(), "parquet")
            };
            let lab = builder.build();
            let bytes = damaged(&files[0], &files[1], &damage);
            lab.put(&format!("raw/20200101-000000000.{ending}"), bytes.clone());
            let policy = if is_quarantined { "quarantine" } else { "fail" };
            let on_bad_file = format!("raw.on_bad_file={policy}");
            let on_bad_row = format!("raw.on_bad_row={policy}");
            let set = [on_bad_file.as_str(), on_bad_row.as_str()];
            match lab.run_with(Task::Curate, START, END, &set) {
                Ok(report) => {
                    if bytes == files[0] {
                        prop_assert_eq!(report.rows_rejected + report.files_rejected, 0);
                    }
                }
                Err(error) => {
                    // Where the damage changes the columns, the error is one of usage.
                    let code = error.kind.exit_code();
                    prop_assert!(code == 65 || code == 2, "{}: {}", code, error);
                    prop_assert!(bytes != files[0], "{}", error);
                    prop_assert!(lab.list("lake/curated").is_empty());
                }
            }
            Ok(())
        })
        .expect("no run stumbles");
}

#[test]
fn unusual_columns_are_shown_in_quarantine() {
    let lab = lab();
    let columns = vec![
        ("Op", texts(["I"])),
        ("id", Arc::new(Int64Array::new_null(1)) as ArrayRef),
        ("n", texts(["1"])),
        ("raw", Arc::new(BinaryArray::from(vec![&b"\xFF\x00"[..]]))),
        ("event", texts([AT])),
        ("ts", texts([AT])),
    ];
    lab.put_columns(&raw_file(1), columns);
    let report = lab.run(START, END).expect("a run");
    assert!(quarantined(&lab, &report)[0][4].contains(r#""raw":"ff00""#));
}
