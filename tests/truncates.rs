//! Truncates: they end the rows that are before them in the order of changes, whenever they are read.
//! Tables that can be checked by hand; the model has random ones.

use arrow::array::Int64Array;
use std::sync::Arc;

use crate::support::{
    Answer, COUNT_PER_DAY, Database, Lab, LabBuilder, PLACES, Row, Task, assert_refused,
    file_of_rows, optional_texts, texts,
};

/// Two days of rows of the commit time, which is also the day.
const DAYS: [&str; 2] = ["2020-01-02 10:00:00", "2020-01-03 10:00:00"];

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", vec!["ts"])
        .partition_by(&["event_dt"])
        .curated_sql(
            "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest",
        )
        .aggregate("daily", COUNT_PER_DAY)
}

/// Writes a file of rows: operation, time, key and value.
fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put(&format!("raw/{name}.parquet"), file_of_rows(&["Op", "ts", "id", "v"], rows));
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v", "event_dt"])
}

/// `history`: key, day and whether it is deleted.
fn history(lab: &Lab) -> Vec<String> {
    let rows = lab.history_relation().into_iter();
    let text = |row: Row| format!("{} {} {}", row["id"], row["event_dt"], row["deleted"]);
    let mut lines: Vec<String> = rows.map(text).collect();
    lines.sort();
    lines
}

#[test]
fn a_truncate_and_late_changes_come_to_one_table_in_any_order() {
    let first: &[[&str; 4]] = &[["I", DAYS[0], "1", "10"], ["I", DAYS[0], "2", "20"]];
    let truncate: &[[&str; 4]] =
        &[["T", "2020-01-03 12:00:00", "-", "-"], ["I", "2020-01-03 13:00:00", "2", "21"]];
    // Before the truncate, and after it.
    let late: &[[&str; 4]] = &[["I", DAYS[1], "3", "30"], ["U", "2020-01-03 14:00:00", "4", "40"]];
    let files = [("20200102-000000000", first), ("20200103-000000001", truncate)];
    let files = [files[0], files[1], ("20200103-000000002", late)];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (place, order) in PLACES.into_iter().flat_map(|place| orders.map(|order| (place, order))) {
        let lab = builder().place(place).build();
        for number in order {
            put(&lab, files[number].0, files[number].1);
            lab.run("2020-01-01", "2020-02-01").expect("a run");
        }
        assert_eq!(curated(&lab), ["2 21 2020-01-03", "4 40 2020-01-03"], "{order:?}");
        assert_eq!(
            history(&lab),
            [
                "1 2020-01-02 false",
                "1 2020-01-03 true",
                "2 2020-01-02 false",
                "2 2020-01-03 false",
                "3 2020-01-03 true",
                "4 2020-01-03 false",
            ],
            "{order:?}"
        );
        lab.assert_verified();
        // What is known of the truncate is in the state.
        lab.remove_all("raw");
        put(&lab, "20200104-000000000", &[["U", "2020-01-03 11:00:00", "1", "11"]]);
        let report = lab.run("2020-01-04", "2020-01-05").expect("a run");
        assert_eq!((report.truncates, report.rows_deleted), (0, 1));
        assert_eq!(curated(&lab), ["2 21 2020-01-03", "4 40 2020-01-03"], "{order:?}");
    }
}

#[test]
fn a_truncate_removes_the_rows_of_its_own_day_from_a_table_by_days() {
    let lab = builder().keep("latest-per-day").build();
    put(
        &lab,
        "20200102-000000000",
        &[
            ["I", DAYS[0], "1", "10"],
            ["U", DAYS[1], "1", "11"],
            ["I", DAYS[1], "2", "20"],
            ["T", "2020-01-03 12:00:00", "-", "-"],
            ["I", "2020-01-03 13:00:00", "2", "21"],
        ],
    );
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    assert_eq!(curated(&lab), ["1 10 2020-01-02", "2 21 2020-01-03"]);
    lab.assert_verified();
}

#[test]
fn a_truncate_of_everything_leaves_an_empty_table_here_and_in_a_database() {
    let database = Database::new();
    let lab = builder().loaded().build().follow(&database);
    put(&lab, "20200102-000000000", &[["I", DAYS[0], "1", "10"], ["I", DAYS[0], "2", "20"]]);
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    lab.assert_followed(&database, &["curated", "daily"]);
    put(&lab, "20200103-000000000", &[["T", DAYS[1], "-", "-"]]);
    let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
    assert_eq!((report.truncates, report.partitions_removed), (1, 1));
    assert!(curated(&lab).is_empty());
    lab.assert_followed(&database, &["curated", "daily"]);
    // A late row that is dead, and a new one.
    put(&lab, "20200103-000000001", &[["U", DAYS[0], "2", "22"], ["I", DAYS[1], "3", "30"]]);
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    assert_eq!(curated(&lab), ["3 30 2020-01-03"]);
    lab.assert_followed(&database, &["curated", "daily"]);
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(curated(&lab), ["3 30 2020-01-03"]);
    lab.assert_followed(&database, &["curated", "daily"]);
}

#[test]
fn changes_after_a_truncate_leave_its_day_as_it_is() {
    let lab = builder().build();
    let rows = [
        ["I", DAYS[0], "1", "10"],
        ["I", DAYS[0], "2", "20"],
        ["T", DAYS[1], "-", "-"],
        ["I", "2020-01-04 10:00:00", "1", "11"],
    ];
    put(&lab, "20200102-000000000", &rows);
    lab.run("2020-01-01", "2020-01-05").expect("a run");
    put(&lab, "20200106-000000000", &[["U", "2020-01-06 10:00:00", "1", "12"]]);
    let report = lab.run("2020-01-06", "2020-01-07").expect("a run");
    assert_eq!(report.aggregates[0].days, 1);
    // One before it changes the day, and so does one that takes the place of such a change.
    put(&lab, "20200107-000000000", &[["D", "2020-01-02 11:00:00", "2", "-"]]);
    let report = lab.run("2020-01-07", "2020-01-08").expect("a run");
    assert_eq!(report.aggregates[0].days, 3);
    assert_eq!(
        history(&lab),
        [
            "1 2020-01-02 false",
            "1 2020-01-03 true",
            "1 2020-01-04 false",
            "1 2020-01-06 false",
            "2 2020-01-02 true",
        ]
    );
    lab.assert_verified();
}

#[test]
fn a_follower_looks_up_no_key_for_an_old_truncate() {
    const STATE_TABLE: &str = "lake/_glueless/lab/versions";
    let database = Database::new();
    let lab = builder().loaded().build().follow(&database);
    put(&lab, "20200102-000000000", &[["I", DAYS[0], "1", "10"], ["T", DAYS[0], "-", "-"]]);
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    let old = lab.list_all(STATE_TABLE);
    put(&lab, "20200104-000000000", &[["I", "2020-01-04 10:00:00", "2", "20"]]);
    lab.run_with(Task::Curate, "2020-01-04", "2020-01-05", &[]).expect("a run");
    let of_versions = |path: &&String| path.starts_with("kind=version/");
    let stayed = lab.list_all(STATE_TABLE).into_iter().filter(|path| old.contains(path));
    let stayed: Vec<String> = stayed.filter(|path| of_versions(&path)).collect();
    assert!(!stayed.is_empty());
    for path in &stayed {
        lab.rename(&format!("{STATE_TABLE}/{path}"), &format!("hidden/{path}"));
    }
    lab.load(false).expect("loaded without the other versions");
    for path in &stayed {
        lab.rename(&format!("hidden/{path}"), &format!("{STATE_TABLE}/{path}"));
    }
    lab.assert_followed(&database, &["curated"]);
}

#[test]
fn an_explained_key_names_the_truncate_that_ended_its_row() {
    let lab = builder().build();
    let rows = [["I", DAYS[0], "1", "10"], ["T", DAYS[1], "1", "-"], ["I", DAYS[1], "2", "20"]];
    put(&lab, "20200102-000000000", &rows);
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    let explained = lab.explain(&["1"]);
    assert_eq!((explained.changes.len(), explained.rows_now.len()), (1, 0));
    let ended = explained.ended.iter().map(|row| (row.change_row, row.truncate_row));
    assert_eq!(ended.collect::<Vec<_>>(), [(1, Some(2))]);
    assert!(explained.notes.is_empty(), "{:?}", explained.notes);
    assert!(lab.explain(&["2"]).ended.is_empty());
}

#[test]
fn a_truncate_without_a_place_stops_the_run_even_with_a_quarantine() {
    let lab = builder().set("raw.on_bad_row", "quarantine").set("raw.order_by", vec!["n"]).build();
    let columns = vec![
        ("Op", optional_texts([Some("I"), Some("T"), Some("X")])),
        ("ts", texts(["2020-01-02 10:00:00"; 3])),
        ("id", texts(["1", "2", "3"])),
        ("v", texts(["1", "2", "3"])),
        ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])) as _),
    ];
    lab.put_columns("raw/20200102-000000000.parquet", columns);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("no place");
    assert_refused(error, 65, "column `n` is null in a truncate", "a sequence of the log");
    assert!(lab.list("lake/curated").is_empty());
}

#[test]
fn bad_rows_beside_truncates_are_put_aside_alone() {
    let lab = builder().set("raw.on_bad_row", "quarantine").build();
    put(
        &lab,
        "20200102-000000000",
        &[
            ["I", DAYS[0], "1", "10"],
            ["X", DAYS[0], "2", "20"],
            ["T", DAYS[1], "-", "-"],
            ["U", "-", "3", "30"],
            ["I", DAYS[1], "4", "40"],
        ],
    );
    let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
    assert_eq!((report.truncates, report.rows_rejected), (1, 2));
    assert_eq!(curated(&lab), ["4 40 2020-01-03"]);
}

#[test]
fn a_table_without_a_key_takes_no_truncate() {
    let lab = builder().set("key", Vec::<String>::new()).unset("raw.order_by").build();
    put(&lab, "20200102-000000000", &[["I", DAYS[0], "1", "10"], ["T", DAYS[1], "-", "-"]]);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(error, 65, "is a truncate, in a table without a key", "name the primary key");
}

#[test]
fn a_json_file_of_truncates_alone_needs_no_key() {
    const ROWS: &str = r#"{"Op":"I","ts":"2020-01-02 10:00:00","id":1,"v":10}
        {"Op":"I","ts":"2020-01-03 13:00:00","id":2,"v":20}"#;
    const TRUNCATES: &str = r#"{"Op":"T","ts":"2020-01-02 09:00:00"}
        {"Op":"T","ts":"2020-01-03 12:00:00"}"#;
    for order in [
        [("20200102", ROWS), ("20200103", TRUNCATES)],
        [("20200103", TRUNCATES), ("20200102", ROWS)],
    ] {
        let lab = builder().set("raw.format", "json").build();
        let first = r#"{"Op":"I","ts":"2020-01-01 10:00:00","id":3,"v":30}"#;
        lab.put("raw/20200101-000000000.json", first);
        lab.run("2020-01-01", "2020-02-01").expect("a run");
        for (day, text) in order {
            lab.put(&format!("raw/{day}-000000000.json"), text);
            lab.run("2020-01-01", "2020-02-01").expect("a run");
        }
        assert_eq!(curated(&lab), ["2 20 2020-01-03"]);
        lab.assert_verified();
    }
    // Any other row needs the key.
    let lab = builder().set("raw.format", "json").build();
    lab.put("raw/20200102-000000000.json", ROWS);
    let wrong = r#"{"Op":"T","ts":"2020-01-03 12:00:00"}
        {"Op":"D","ts":"2020-01-03 12:00:00"}"#;
    lab.put("raw/20200103-000000000.json", wrong);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("no key");
    assert_refused(error, 65, "column `id` missing in", "other files have it");
}

#[test]
fn verify_finds_truncates_that_are_in_raw_or_in_the_state_alone() {
    // Before all rows, so that it ends none.
    let text = |op: &str| {
        format!(
            "{{\"Op\":\"{op}\",\"ts\":\"2020-01-01 10:00:00\",\"id\":null,\"v\":null}}
            {{\"Op\":\"I\",\"ts\":\"2020-01-02 10:00:00\",\"id\":1,\"v\":10}}"
        )
    };
    for (folded, raw, why) in [("X", "T", "is missing in the state"), ("T", "X", "is not in raw")] {
        let lab =
            builder().set("raw.format", "json").set("raw.op_values.ignore", vec!["X"]).build();
        const FILE: &str = "raw/20200102-000000000.json";
        lab.put(FILE, text(folded));
        lab.set_modified(FILE, 1_577_960_000);
        lab.run("2020-01-01", "2020-02-01").expect("a run");
        lab.assert_verified();
        lab.put(FILE, text(raw));
        lab.set_modified(FILE, 1_577_960_000);
        let verified = lab.verify().expect("compared");
        assert!(!verified.is_equal && verified.partitions_different.is_empty());
        let [truncate] = &verified.truncates_different[..] else { panic!("{verified:?}") };
        assert_eq!((truncate.row, &*truncate.why), (1, why));
        assert!(verified.text().contains(&format!("20200102-000000000.json {why}")));
    }
}

#[test]
fn a_change_and_a_truncate_of_one_place_are_a_tie() {
    let at = |op, id| [op, DAYS[1], id, "1"];
    let cases: [&[&[[&str; 4]]]; 5] = [
        &[&[at("I", "1"), at("T", "-")]],
        &[&[at("T", "-"), at("I", "1")]],
        &[&[at("I", "1")], &[at("T", "-")]],
        &[&[at("T", "-")], &[at("D", "1")]],
        &[
            &[["T", DAYS[0], "-", "-"], at("I", "1")],
            &[at("T", "-"), ["T", "2020-01-04 10:00:00", "-", "-"]],
        ],
    ];
    let ways = [
        ("latest", "fail"),
        ("latest", "row"),
        ("latest-per-day", "fail"),
        ("latest-per-day", "row"),
    ];
    for (files, (keep, on_tie)) in cases.into_iter().flat_map(|case| ways.map(|way| (case, way))) {
        let lab = builder().keep(keep).set("raw.on_tie", on_tie).build();
        let (last, earlier) = files.split_last().expect("a file");
        for rows in earlier {
            put(&lab, "20200103-000000000", rows);
            lab.run("2020-01-01", "2020-02-01").expect("a run without a tie");
        }
        put(&lab, "20200103-000000001", last);
        match lab.run("2020-01-01", "2020-02-01") {
            Ok(_) => assert_eq!(on_tie, "row", "{files:?}"),
            Err(error) => {
                assert_eq!(on_tie, "fail", "{error}");
                let why = "a truncate and a change have the same order columns";
                assert_refused(error, 65, why, "raw.order_by");
            }
        }
    }
    // Other changes, just before and after a truncate, are no ties.
    let lab = builder().set("raw.on_tie", "fail").build();
    let rows = [["I", DAYS[0], "1", "10"], ["T", "2020-01-02 10:00:01", "-", "-"]];
    put(&lab, "20200102-000000000", &[rows[0], rows[1], ["I", "2020-01-02 10:00:02", "1", "11"]]);
    lab.run("2020-01-01", "2020-02-01").expect("a run");
    lab.run("2020-01-01", "2020-02-01").expect("the same run");
}
