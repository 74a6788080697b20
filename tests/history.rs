//! `keep = "history"`: a row per key and commit time, with the times from which and up to which it holds. Tables that
//! can be checked by hand; the model has random ones.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Answer, FLOWS, Lab, LabBuilder, ORDERS, Place, Program, Task, assert_refused,
    count_of_each_day_so_far, file_of_rows, python, test_times,
};

fn builder() -> LabBuilder {
    Lab::builder()
        .keep("history")
        .set("raw.order_by", vec!["ts"])
        .partition_by(&["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, tier, event_dt FROM latest")
}

/// Writes a file of rows: operation, time of January 2020, key and value.
fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put_january(name, "tier", rows);
}

fn run(lab: &Lab) {
    lab.run("2020-01-01", "2020-02-01").expect("a run");
}

/// The rows: key, value, and from when to when they hold.
fn history(lab: &Lab) -> Vec<String> {
    let short = |time: Option<&String>| match time {
        Some(time) => time[8..16].replace('T', " "),
        None => "-".into(),
    };
    let rows = lab.table("lake/curated").into_iter().map(|row| {
        let [from, to] = ["valid_from", "valid_to"].map(|name| short(row.get(name)));
        assert_eq!(row["is_current"], (to == "-").to_string());
        format!("{} {} {from} to {to}", row["id"], row["tier"])
    });
    let mut rows: Vec<String> = rows.collect();
    rows.sort();
    rows
}

const LIFE: [(&str, &[[&str; 4]]); 3] = [
    (
        "20200102-000000000",
        &[
            ["I", "02 10:00", "1", "blue"],
            ["I", "02 11:00", "2", "red"],
            ["I", "02 12:00", "3", "x"],
        ],
    ),
    ("20200103-000000000", &[["U", "03 10:00", "1", "gold"], ["D", "03 11:00", "2", "-"]]),
    // Late: between the changes of key 1, before the delete of key 2, and the birth of key 2 again.
    (
        "20200104-000000000",
        &[
            ["U", "02 20:00", "1", "silver"],
            ["U", "03 10:30", "2", "pink"],
            ["I", "04 09:00", "2", "new"],
        ],
    ),
];

const LIVES: [&str; 7] = [
    "1 blue 02 10:00 to 02 20:00",
    "1 gold 03 10:00 to -",
    "1 silver 02 20:00 to 03 10:00",
    "2 new 04 09:00 to -",
    "2 pink 03 10:30 to 03 11:00",
    "2 red 02 11:00 to 03 10:30",
    "3 x 02 12:00 to -",
];

#[test]
fn changes_in_any_order_come_to_one_history() {
    builder().assert_in_any_order(("tier", LIFE), &ORDERS, history, &LIVES);
}

#[test]
fn other_engines_read_a_history_at_any_time() {
    let [parquet, delta] = ["parquet", "delta"].map(|format| {
        let lab = builder().format(format).build();
        for (name, rows) in LIFE {
            put(&lab, name, rows);
            run(&lab);
        }
        lab
    });
    let script = r#"
import sys, duckdb, polars
at = "TIMESTAMPTZ '2020-01-03 10:45:00+00'"
rows = duckdb.read_parquet(sys.argv[1] + '/*/*.parquet', hive_partitioning=True)
print(duckdb.sql(f"SELECT id, tier FROM rows WHERE valid_from <= {at} AND (valid_to > {at} OR valid_to IS NULL) ORDER BY id").fetchall())
print(polars.read_delta(sys.argv[2]).filter(polars.col('is_current')).sort('id').select('id', 'tier').rows())
"#;
    let folders = [&parquet, &delta].map(|lab| lab.folder.path().join("lake/curated"));
    let read = Program::new(&python()).args(["-c", script]).args(folders).succeed();
    let expected = "[(1, 'gold'), (2, 'pink'), (3, 'x')]\n[(1, 'gold'), (2, 'new'), (3, 'x')]\n";
    assert_eq!(read.stdout, expected);
}

#[test]
fn aggregates_by_the_days_of_begin_and_end_follow_changes_that_come_late() {
    let per_day = |column: &str| {
        format!(
            "SELECT CAST({column} AS DATE) AS dt, COUNT(*) AS n FROM curated
             WHERE {column} >= $start_date AND {column} < $end_date GROUP BY 1"
        )
    };
    // The day of a row is another one than that of its begin.
    let builder = builder().set("raw.event_time", "tier").set("raw.commit_time", "ts");
    let builder = builder.aggregate("begins", per_day("valid_from"));
    let lab = builder.aggregate("ends", per_day("valid_to")).build();
    let files: [(&str, &str, &[[&str; 4]]); 3] = [
        ("02", "20200102-000000000", &[["I", "02 10:00", "1", "2020-01-20"]]),
        ("06", "20200106-000000000", &[["U", "05 10:00", "1", "2020-01-21"]]),
        ("08", "20200108-000000000", &[["U", "03 10:00", "1", "2020-01-22"]]),
    ];
    for (day, name, rows) in files {
        put(&lab, name, rows);
        let next = day.parse::<i64>().expect("a day") + 1;
        lab.run(&format!("2020-01-{day}"), &format!("2020-01-{next:02}")).expect("a run");
    }
    let begins = ["2020-01-02 1", "2020-01-03 1", "2020-01-05 1"];
    assert_eq!(lab.lines("lake/begins", ["dt", "n"]), begins);
    assert_eq!(lab.lines("lake/ends", ["dt", "n"]), ["2020-01-03 1", "2020-01-05 1"]);
    // The row of the 3rd goes, and with it the end of the row before.
    put(&lab, "20200109-000000000", &[["T", "02 12:00", "-", "-"]]);
    lab.run("2020-01-09", "2020-01-10").expect("a run");
    assert_eq!(lab.lines("lake/ends", ["dt", "n"]), ["2020-01-02 1", "2020-01-05 1"]);
    lab.assert_verified();
}

#[test]
fn only_partitions_of_rows_that_end_otherwise_are_written_again() {
    let lab = builder().build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 10:00", "2", "a"]]);
    put(&lab, "20200103-000000000", &[["U", "03 10:00", "1", "b"]]);
    put(&lab, "20200104-000000000", &[["U", "04 10:00", "1", "c"]]);
    run(&lab);
    put(&lab, "20200105-000000000", &[["U", "05 10:00", "2", "b"]]);
    let report = lab.run("2020-01-05", "2020-01-06").expect("a run");
    // The row of key 2 of the 2nd ends, and one of the 5th is new; the row of key 1 is copied.
    assert_eq!((report.partitions_written, report.rows_written), (2, 3));
    assert_eq!((report.rows_latest, report.rows_deleted), (1, 0));
    lab.assert_verified();
}

/// Changes that alter nothing, and late ones between them: of a key that is equal from the 2nd on, one that is silver in
/// between, one that is deleted in between and stays equal, and one whose later state came first.
const EQUAL: [(&str, &[[&str; 4]]); 3] = [
    (
        "20200102-000000000",
        &[
            ["I", "02 10:00", "1", "blue"],
            ["I", "02 10:00", "2", "blue"],
            ["I", "02 10:00", "3", "blue"],
            ["U", "04 09:00", "4", "red"],
        ],
    ),
    (
        "20200103-000000000",
        &[
            ["U", "02 11:00", "1", "blue"],
            ["U", "03 10:00", "1", "blue"],
            ["U", "03 10:00", "2", "blue"],
            ["U", "04 10:00", "2", "blue"],
            ["U", "03 10:00", "3", "blue"],
        ],
    ),
    (
        "20200104-000000000",
        &[
            ["U", "04 12:00", "1", "blue"],
            ["U", "03 09:00", "2", "silver"],
            ["D", "03 09:00", "3", "-"],
            ["I", "04 08:00", "4", "red"],
        ],
    ),
];

const EQUAL_ROWS: [&str; 7] = [
    "1 blue 02 10:00 to -",
    "2 blue 02 10:00 to 03 09:00",
    "2 blue 03 10:00 to -",
    "2 silver 03 09:00 to 03 10:00",
    "3 blue 02 10:00 to 03 09:00",
    "3 blue 03 10:00 to -",
    "4 red 04 08:00 to -",
];

#[test]
fn changes_that_alter_nothing_make_no_row_in_any_order() {
    builder().assert_in_any_order(("tier", EQUAL), &ORDERS, history, &EQUAL_ROWS);
}

#[test]
fn a_change_that_alters_nothing_writes_nothing() {
    let lab = builder().aggregate("rows", crate::support::ROWS_PER_DAY).build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "blue"]]);
    run(&lab);
    let files = lab.list("lake/curated");
    put(&lab, "20200103-000000000", &[["U", "03 10:00", "1", "blue"]]);
    let report = lab.run("2020-01-03", "2020-01-04").expect("a run");
    assert_eq!((report.rows_latest, report.rows_deleted, report.rows_written), (0, 1, 0));
    assert_eq!(lab.list("lake/curated"), files);
    let explained = lab.explain(&["1"]).text();
    assert!(explained.contains("it leaves the row as it was"), "{explained}");
    // A change between both: the later one gets the row of the day when it was.
    put(&lab, "20200104-000000000", &[["U", "02 20:00", "1", "gold"]]);
    run(&lab);
    let rows =
        ["1 blue 02 10:00 to 02 20:00", "1 blue 03 10:00 to -", "1 gold 02 20:00 to 03 10:00"];
    assert_eq!(history(&lab), rows);
    assert_eq!(
        lab.lines("lake/curated", ["tier", "event_dt"]),
        ["blue 2020-01-02", "blue 2020-01-03", "gold 2020-01-02"]
    );
    assert_eq!(lab.lines("lake/rows", ["dt", "n"]), ["2020-01-02 2", "2020-01-03 1"]);
    // The change between is hidden by one at its time: one row again.
    put(&lab, "20200105-000000000", &[["U", "02 20:00", "1", "blue"]]);
    run(&lab);
    assert_eq!(history(&lab), ["1 blue 02 10:00 to -"]);
    assert_eq!(lab.lines("lake/rows", ["dt", "n"]), ["2020-01-02 1"]);
    lab.assert_verified();
}

#[test]
fn changes_that_are_delivered_again_in_another_file_write_nothing() {
    let lab = builder().build();
    let rows: &[[&str; 4]] = &[["I", "02 10:00", "1", "a"], ["U", "03 10:00", "1", "b"]];
    put(&lab, "20200103-000000000", rows);
    run(&lab);
    put(&lab, "20200104-000000000", rows);
    let report = lab.run("2020-01-04", "2020-01-05").expect("a run");
    assert_eq!((report.rows_read, report.rows_written), (2, 0));
    assert_eq!(history(&lab), ["1 a 02 10:00 to 03 10:00", "1 b 03 10:00 to -"]);
    put(&lab, "20200105-000000000", &[["D", "03 12:00", "1", "-"]]);
    run(&lab);
    assert_eq!(history(&lab), ["1 a 02 10:00 to 03 10:00", "1 b 03 10:00 to 03 12:00"]);
    lab.assert_verified();
}

#[test]
fn a_table_of_keys_alone_says_when_each_was_there() {
    for sql in ["SELECT id FROM latest", "SELECT id, event_dt FROM latest"] {
        let lab = builder().partition_by(&[]).curated_sql(sql).build();
        for (name, rows) in EQUAL {
            put(&lab, name, rows);
            run(&lab);
        }
        let times = |row: &crate::support::Row| {
            let end = row.get("valid_to").map_or("-", |end| &end[8..16]);
            format!("{} {} {end}", row["id"], &row["valid_from"][8..16])
        };
        let mut rows: Vec<String> = lab.table("lake/curated").iter().map(times).collect();
        rows.sort();
        let expected = ["1 02T10:00 -", "2 02T10:00 -", "3 02T10:00 03T09:00", "3 03T10:00 -"];
        assert_eq!(rows[..4], expected, "{sql}");
        assert_eq!(rows[4..], ["4 04T08:00 -"], "{sql}");
        lab.assert_verified();
    }
}

#[test]
fn a_query_with_another_column_needs_a_rebuild_since_rows_are_compared_by_it() {
    let lab = builder().format("delta").build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"], ["U", "02 11:00", "1", "a"]]);
    run(&lab);
    let more = "SELECT CAST(id AS BIGINT) AS id, tier, event_dt, ts FROM latest";
    lab.write_file("curated.sql", more);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(error, 2, "`curated.sql`", "glueless rebuild");
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(history(&lab), ["1 a 02 10:00 to 02 11:00", "1 a 02 11:00 to -"]);
    lab.assert_verified();
}

/// Changes of the tier, by which rows are compared, and of the email, which is as it was when the row began.
fn put_mails(lab: &Lab, name: &str, rows: &[[&str; 5]]) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|[op, time, id, tier, mail]| {
            [*op, &format!("2020-01-{time}:00"), *id, *tier, *mail].map(String::from).to_vec()
        })
        .collect();
    let rows = file_of_rows(&["Op", "ts", "id", "tier", "mail"], &rows);
    lab.put(&format!("raw/{name}.parquet"), rows);
}

fn mails(lab: &Lab) -> Vec<String> {
    let row = |row: crate::support::Row| {
        let end = row.get("valid_to").map_or("-", |end| &end[8..16]).replace('T', " ");
        let begin = row["valid_from"][8..16].replace('T', " ");
        format!("{} {} {} {begin} to {end}", row["id"], row["tier"], row["mail"])
    };
    let mut rows: Vec<String> = lab.table("lake/curated").into_iter().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn rows_are_made_by_the_named_columns_and_others_are_read_from_raw_again() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, tier, mail, event_dt FROM latest";
    let builder = builder().curated_sql(sql).set("history_columns", vec!["tier"]);
    for (format, place) in [("parquet", Place::Local), ("delta", Place::S3)] {
        let lab = builder.clone().format(format).place(place).build();
        let first = [["I", "02 10:00", "1", "blue", "a"], ["U", "02 12:00", "1", "blue", "b"]];
        put_mails(&lab, "20200102-000000000", &first);
        put_mails(&lab, "20200103-000000000", &[["U", "03 10:00", "1", "blue", "c"]]);
        run(&lab);
        assert_eq!(mails(&lab), ["1 blue a 02 10:00 to -"], "{format}");
        put_mails(&lab, "20200104-000000000", &[["U", "02 11:00", "1", "gold", "d"]]);
        let report = lab.run("2020-01-04", "2020-01-05").expect("a run");
        assert_eq!((report.rows_latest, report.note), (1, None));
        let rows = [
            "1 blue a 02 10:00 to 02 11:00",
            "1 blue b 02 12:00 to -",
            "1 gold d 02 11:00 to 02 12:00",
        ];
        assert_eq!(mails(&lab), rows, "{format}");
        // Delivered again with another value of a column by which rows are not compared.
        put_mails(&lab, "20200105-000000000", &[["U", "02 12:00", "1", "blue", "e"]]);
        lab.run("2020-01-05", "2020-01-06").expect("a run");
        let rows = [rows[0], "1 blue e 02 12:00 to -", rows[2]];
        assert_eq!(mails(&lab), rows, "{format}");
        lab.assert_verified();
        let changed = ["history_columns=[\"mail\"]"];
        let error = lab.run_with(Task::Run, "2020-01-05", "2020-01-06", &changed);
        assert_refused(error.expect_err("refused"), 2, "`history_columns`", "glueless rebuild");
        // The file of the change that gets a row of its own is gone: its row is that of before, and the report says so.
        lab.remove("raw/20200103-000000000.parquet");
        put_mails(&lab, "20200106-000000000", &[["U", "02 23:00", "1", "red", "f"]]);
        let note = lab.run("2020-01-06", "2020-01-07").expect("a run").note.expect("a note");
        assert!(
            note.contains("1 raw files are missing, or were written over")
                && note.contains("20200103"),
            "{note}"
        );
        let rows = [
            rows[0],
            "1 blue e 02 12:00 to 02 23:00",
            "1 blue e 03 10:00 to -",
            rows[2],
            "1 red f 02 23:00 to 03 10:00",
        ];
        assert_eq!(mails(&lab), rows, "{format}");
    }
}

#[test]
fn a_load_that_was_written_over_is_missing_where_its_rows_are_read_again() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, tier, mail, event_dt FROM latest";
    let builder = builder().curated_sql(sql).set("history_columns", vec!["tier"]);
    let builder = builder.set("raw.commit_time", "ts").set("raw.full_load_at", "column");
    let load = |lab: &Lab, rows: &[[&str; 4]]| {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|[time, id, tier, mail]| {
                [&format!("2020-01-{time}:00"), *id, *tier, *mail].map(String::from).to_vec()
            })
            .collect();
        lab.put("raw/LOAD00000001.parquet", file_of_rows(&["ts", "id", "tier", "mail"], &rows));
    };
    for second in [
        &[["06 10:00", "2", "x", "Z2"], ["06 10:00", "1", "x", "Z1"]][..],
        &[["06 10:00", "1", "x", "Z1"], ["06 10:00", "2", "x", "Z2"]],
        &[["06 10:00", "1", "y", "Z1"]],
        &[["06 10:00", "2", "x", "Z2"]],
    ] {
        let mut lab = builder.build();
        lab.now = crate::support::now() + chrono::TimeDelta::days(1);
        let first = [["I", "02 10:00", "1", "x", "a"], ["I", "02 10:00", "2", "x", "p"]];
        put_mails(&lab, "20200102-000000000", &first);
        run(&lab);
        load(&lab, &[["04 10:00", "1", "x", "L1"], ["04 10:00", "2", "x", "L2"]]);
        run(&lab);
        lab.now += chrono::TimeDelta::days(1);
        load(&lab, second);
        run(&lab);
        put_mails(&lab, "20200107-000000000", &[["U", "03 10:00", "1", "y", "n"]]);
        let note = lab.run("2020-01-01", "2020-02-01").expect("a run").note.expect("a note");
        assert!(note.contains("LOAD00000001"), "{note}");
        let rows = mails(&lab);
        assert!(rows.iter().any(|row| row.starts_with("1 x a 04 10:00")), "{rows:?}");
    }
}

#[test]
fn a_file_that_is_read_again_must_be_the_one_that_was_folded() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, tier, mail, event_dt FROM latest";
    let builder = builder().curated_sql(sql).set("history_columns", vec!["tier"]);
    let lab = builder.window_by("path").set("raw.lookback", "0d").build();
    let put = |day: &str, rows: &[[&str; 5]]| put_mails(&lab, &format!("2020/01/{day}/x"), rows);
    put("02", &[["I", "02 10:00", "1", "blue", "a"]]);
    put("03", &[["U", "03 10:00", "1", "blue", "b"]]);
    lab.run("2020-01-02", "2020-01-04").expect("a run");
    for rows in [&[["U", "03 10:00", "1", "green", "b"]][..], &[]] {
        put("03", rows);
        put("05", &[["U", "02 12:00", "1", "red", "c"]]);
        let before = lab.contents("lake/curated");
        let error = lab.run("2020-01-05", "2020-01-06").expect_err("refused");
        assert_refused(error, 65, "row 1 of", "restore the file");
        assert_eq!(lab.contents("lake/curated"), before);
    }
    put("03", &[["U", "03 10:00", "1", "blue", "b"]]);
    lab.run("2020-01-05", "2020-01-06").expect("a run");
    let rows =
        ["1 blue a 02 10:00 to 02 12:00", "1 blue b 03 10:00 to -", "1 red c 02 12:00 to 03 10:00"];
    assert_eq!(mails(&lab), rows);
}

/// The file of a change, its time in hours, its key, which operation, and whether its tier is blue.
type OfMails = (usize, u32, u32, u32, bool);

#[test]
fn random_changes_of_other_columns_come_to_the_history_of_one_run_over_all() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, tier, mail, event_dt FROM latest";
    let change = (0..4usize, 0..40u32, 1..3u32, 0..12u32, prop::bool::weighted(0.75));
    let changes = prop::collection::vec(change, 10..40);
    let cases = (changes, Just(vec![0, 1, 2, 3]).prop_shuffle(), 0..4usize);
    let checked = |(changes, order, kind): (Vec<OfMails>, Vec<usize>, usize)| {
        let partition_by =
            [&["event_dt"][..], &["is_current", "event_dt"], &["tier"], &["mail"]][kind];
        let format = ["parquet", "delta"][changes.len() % 2];
        let builder = builder().format(format).curated_sql(sql).partition_by(partition_by);
        let builder = builder.set("history_columns", vec!["tier"]);
        let files: Vec<Vec<[String; 5]>> = (0..4)
            .map(|file| {
                let of_file = changes.iter().enumerate().filter(|(_, change)| change.0 == file);
                let rows = of_file.map(|(number, (_, time, key, op, is_blue))| {
                    let op = ["D", "T"].get(*op as usize).unwrap_or(&"U");
                    let id = if *op == "T" { "-".into() } else { key.to_string() };
                    let tier = if *is_blue { "blue" } else { "gold" };
                    let time = format!("{:02} {:02}:00", 2 + time / 20, time % 20);
                    [op.to_string(), time, id, tier.into(), number.to_string()]
                });
                rows.collect()
            })
            .collect();
        let put = |lab: &Lab, file: usize| {
            let rows: Vec<[&str; 5]> = files[file]
                .iter()
                .map(|row| [0, 1, 2, 3, 4].map(|column| row[column].as_str()))
                .collect();
            put_mails(lab, &format!("2020010{}-000000000", file + 2), &rows);
        };
        let [one_by_one, at_once] = [builder.build(), builder.build()];
        for file in order.iter().copied().filter(|file| !files[*file].is_empty()) {
            put(&one_by_one, file);
            run(&one_by_one);
            put(&at_once, file);
        }
        run(&at_once);
        prop_assert_eq!(mails(&one_by_one), mails(&at_once));
        let verified = one_by_one.verify().expect("compared");
        prop_assert_eq!(verified.exit_code(), 0, "{}", verified.text());
        Ok(())
    };
    let mut runner = TestRunner::new(Config { cases: 40 * test_times(), ..Config::default() });
    runner.run(&cases, checked).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn named_columns_must_be_there_and_are_for_histories() {
    let refusal = |builder: LabBuilder| {
        let lab = builder.build();
        put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"]]);
        let output = lab.program_for("run", "2020-01-01", "2020-02-01").run();
        assert_eq!(output.code, 2, "{}", output.stderr);
        output.stderr
    };
    let named = |columns: &[&str]| builder().set("history_columns", columns.to_vec());
    assert!(refusal(named(&["tiers"])).contains("lacks the column `tiers`, by which rows are"));
    assert!(refusal(named(&["tier", "tier"])).contains("names `tier` twice"));
    assert!(refusal(named(&["valid_to"])).contains("`history_columns` names `valid_to`"));
    assert!(refusal(named(&[])).contains("`history_columns` is empty"));
    assert!(refusal(named(&["tier"]).keep("latest")).contains("is for keep = \"history\""));
}

#[test]
fn rows_that_end_leave_the_partition_of_current_ones() {
    for format in ["parquet", "delta"] {
        let builder = builder().format(format).partition_by(&["is_current", "event_dt"]);
        let lab = builder.aggregate("rows", crate::support::ROWS_PER_DAY).build();
        put(
            &lab,
            "20200102-000000000",
            &[["I", "02 10:00", "1", "a"], ["I", "02 10:00", "2", "a"]],
        );
        put(
            &lab,
            "20200103-000000000",
            &[["U", "03 10:00", "1", "b"], ["D", "03 10:00", "2", "-"]],
        );
        for (start, end) in [("2020-01-02", "2020-01-03"), ("2020-01-03", "2020-01-04")] {
            lab.run(start, end).expect("a run");
        }
        let rows = ["1 a 02 10:00 to 03 10:00", "1 b 03 10:00 to -", "2 a 02 10:00 to 03 10:00"];
        assert_eq!(history(&lab), rows, "{format}");
        let folders: std::collections::BTreeSet<String> = lab
            .list("lake/curated")
            .into_iter()
            .filter_map(|path| Some(path.rsplit_once('/')?.0.to_string()))
            .filter(|folder| folder.contains('='))
            .collect();
        let expected =
            ["is_current=false/event_dt=2020-01-02", "is_current=true/event_dt=2020-01-03"];
        if format == "parquet" {
            assert!(folders.iter().map(String::as_str).eq(expected), "{folders:?}");
        }
        assert_eq!(lab.lines("lake/rows", ["dt", "n"]), ["2020-01-02 2", "2020-01-03 1"]);
        let explained = lab.explain(&["1"]);
        let partitions: Vec<&str> =
            explained.rows_now.iter().map(|row| row.partition.as_str()).collect();
        assert_eq!(partitions, expected, "{format}");
        assert!(explained.rows_now.iter().all(|row| row.place.is_some()), "{format}");
        // A late change ends the first row earlier, and a delete of a key that came back is taken away by a later change.
        put(
            &lab,
            "20200105-000000000",
            &[["U", "02 12:00", "1", "c"], ["U", "03 10:00", "2", "a"]],
        );
        lab.run("2020-01-05", "2020-01-06").expect("a run");
        let rows = [
            "1 a 02 10:00 to 02 12:00",
            "1 b 03 10:00 to -",
            "1 c 02 12:00 to 03 10:00",
            "2 a 02 10:00 to -",
        ];
        assert_eq!(history(&lab), rows, "{format}");
        lab.assert_verified();
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(history(&lab), rows, "{format}");
    }
}

#[test]
fn many_equal_rows_are_split_by_a_truncate_in_little_memory() {
    let lab = builder().set("limits.memory", "128MB").build();
    let keys = 0..150_000;
    let rows = |day: &str, op: &str| -> Vec<[String; 4]> {
        let time = format!("2020-01-{day} 10:00:00");
        let row = |key: i32| [op.to_string(), time.clone(), key.to_string(), "blue".to_string()];
        keys.clone().map(row).collect()
    };
    for (day, op) in [("02", "I"), ("04", "U"), ("06", "U")] {
        let rows = file_of_rows(&["Op", "ts", "id", "tier"], &rows(day, op));
        lab.put(&format!("raw/202001{day}-000000000.parquet"), rows);
    }
    run(&lab);
    assert_eq!(lab.table("lake/curated").len(), 150_000);
    put(&lab, "20200107-000000000", &[["T", "03 12:00", "-", "-"]]);
    run(&lab);
    let count = |from: &str| {
        let rows = lab.table("lake/curated").into_iter();
        rows.filter(|row| row["valid_from"].starts_with(from)).count()
    };
    assert_eq!(
        (count("2020-01-02"), count("2020-01-04"), count("2020-01-06")),
        (150_000, 150_000, 0)
    );
    lab.assert_verified();
}

#[test]
fn truncates_and_loads_at_their_time_end_rows() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts");
    let files: [(&str, &[[&str; 4]]); 4] = [
        ("20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 11:00", "2", "a"]]),
        (
            "20200103-000000000",
            &[
                ["T", "03 10:00", "-", "-"],
                ["I", "03 10:00", "1", "b"],
                ["I", "03 11:00", "4", "x"],
                ["I", "03 11:00", "5", "x"],
                ["D", "03 12:00", "5", "-"],
            ],
        ),
        (
            "full/20200104-000000000",
            &[["I", "04 00:00", "1", "loaded"], ["I", "04 00:00", "3", "loaded"]],
        ),
        ("20200105-000000000", &[["U", "02 23:00", "2", "late"], ["U", "05 10:00", "3", "c"]]),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut lab = builder.build();
        lab.now = crate::support::now() + chrono::TimeDelta::days(1);
        for number in order {
            let (name, rows) = files[number];
            put(&lab, name, rows);
            run(&lab);
        }
        let expected = [
            "1 a 02 10:00 to 03 10:00",
            "1 b 03 10:00 to 04 00:00",
            "1 loaded 04 00:00 to -",
            "2 a 02 11:00 to 02 23:00",
            "2 late 02 23:00 to 03 10:00",
            "3 c 05 10:00 to -",
            "3 loaded 04 00:00 to 05 10:00",
            "4 x 03 11:00 to 04 00:00",
            "5 x 03 11:00 to 03 12:00",
        ];
        assert_eq!(history(&lab), expected, "{order:?}");
        let causes = lab.table("lake/curated").into_iter().map(|row| {
            let by = row.get("ended_by").map_or("-", String::as_str);
            format!("{} {} {by}", row["id"], row["tier"])
        });
        assert_eq!(
            causes.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            [
                "1 a update",
                "1 b update",
                "1 loaded -",
                "2 a update",
                "2 late truncate",
                "3 c -",
                "3 loaded update",
                "4 x load",
                "5 x delete",
            ],
            "{order:?}"
        );
        lab.assert_verified();
    }
}

#[test]
fn a_full_load_holds_since_ever_and_its_key_moves() {
    let builder = builder().set("raw.before_image_prefix", "BI_").set("raw.commit_time", "ts");
    let lab = builder.build();
    let load = [["-", "2020-01-01 00:00:00", "1", "a", "-"]];
    let columns = ["Op", "ts", "id", "tier", "BI_id"];
    lab.put(
        "raw/LOAD00000001.parquet",
        file_of_rows(&columns[1..], &load.map(|row| row[1..].to_vec())),
    );
    let moved = [["U", "2020-01-02 10:00:00", "7", "b", "1"]];
    lab.put("raw/20200102-000000000.parquet", file_of_rows(&columns, &moved));
    run(&lab);
    assert_eq!(history(&lab), ["1 a - to 02 10:00", "7 b 02 10:00 to -"]);
    lab.assert_verified();
}

#[test]
fn a_change_that_is_before_an_older_one_in_the_order_is_never_seen() {
    // The sequence of the log decides, and the clock went back.
    let lab = builder().set("raw.order_by", vec!["seq"]).set("raw.commit_time", "ts").build();
    let rows = |rows: &[[&str; 5]]| file_of_rows(&["Op", "ts", "id", "tier", "seq"], rows);
    let first =
        [["I", "2020-01-02 10:00:00", "1", "a", "1"], ["U", "2020-01-02 12:00:00", "1", "b", "3"]];
    lab.put("raw/20200102-000000000.parquet", rows(&first));
    run(&lab);
    let second = [
        ["U", "2020-01-02 13:00:00", "1", "unseen", "2"],
        ["U", "2020-01-02 11:00:00", "1", "c", "4"],
    ];
    lab.put("raw/20200102-000000001.parquet", rows(&second));
    run(&lab);
    assert_eq!(history(&lab), ["1 a 02 10:00 to 02 11:00", "1 c 02 11:00 to -"]);
    lab.assert_verified();
    let explained = lab.explain(&["1"]);
    assert_eq!(explained.rows_now.len(), 2);
    assert!(explained.rows_now.iter().all(|row| row.place.is_some()), "{}", explained.text());
    assert!(explained.text().contains("has no row: an older change"), "{}", explained.text());
}

#[test]
fn columns_are_added_before_those_that_say_when_a_row_holds() {
    for format in ["parquet", "delta"] {
        let lab = builder().format(format).curated_sql("SELECT * FROM latest").build();
        put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"]]);
        run(&lab);
        let rows = [["U", "2020-01-03 10:00:00", "1", "b", "more"]];
        lab.put(
            "raw/20200103-000000000.parquet",
            file_of_rows(&["Op", "ts", "id", "tier", "w"], &rows),
        );
        run(&lab);
        put(&lab, "20200104-000000000", &[["U", "04 10:00", "1", "c"]]);
        run(&lab);
        let expected =
            ["1 a 02 10:00 to 03 10:00", "1 b 03 10:00 to 04 10:00", "1 c 04 10:00 to -"];
        assert_eq!(history(&lab), expected, "{format}");
        let more: Vec<_> =
            lab.table("lake/curated").into_iter().filter_map(|row| row.get("w").cloned()).collect();
        assert_eq!(more, ["more"], "{format}");
        lab.assert_verified();
    }
}

#[test]
fn a_row_that_ends_and_is_not_there_stops_the_run() {
    let lab = builder().build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"], ["I", "02 10:00", "2", "a"]]);
    run(&lab);
    let file = lab.list_all("lake/curated").into_iter().find(|name| name.ends_with(".parquet"));
    let file = format!("lake/curated/{}", file.expect("a file"));
    let other = builder().build();
    put(&other, "20200102-000000000", &[["I", "02 10:00", "8", "a"], ["I", "02 10:00", "9", "a"]]);
    run(&other);
    lab.put(&file, other.get(&file));
    put(&lab, "20200103-000000000", &[["U", "03 10:00", "1", "b"]]);
    let refused = lab.run("2020-01-03", "2020-01-04").expect_err("refused");
    assert!(refused.to_string().contains("not as it was published"), "{refused}");
}

#[test]
fn many_rows_end_in_little_memory() {
    let lab = builder().set("limits.memory", "128MB").build();
    let rows = |op: &str, day: &str| {
        let row =
            |id: usize| [op.to_string(), format!("{day} 10:00"), id.to_string(), op.repeat(20)];
        (0..150_000).map(row).collect::<Vec<_>>()
    };
    for (name, op, day) in [("20200102-000000000", "I", "02"), ("20200103-000000000", "U", "03")] {
        let rows = rows(op, day);
        let rows: Vec<[&str; 4]> =
            rows.iter().map(|row| [0, 1, 2, 3].map(|at| row[at].as_str())).collect();
        put(&lab, name, &rows);
        run(&lab);
    }
    let table = lab.table("lake/curated");
    assert_eq!(table.len(), 300_000);
    let current = table.iter().filter(|row| row["is_current"] == "true");
    assert!(current.clone().all(|row| row["event_dt"] == "2020-01-03"));
    assert_eq!(current.count(), 150_000);
    lab.assert_verified();
}

#[test]
fn what_a_history_cannot_have_is_refused() {
    let named = "SELECT CAST(id AS BIGINT) AS id, tier AS valid_to, event_dt FROM latest";
    let lab = builder().curated_sql(named).build();
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"]]);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(error, 2, "returns the column `valid_to`", "another name");
    for (key, value, message) in [
        ("key", toml::Value::from(Vec::<String>::new()), "`key` is missing"),
        (
            "curated.partition_by",
            vec!["is_current", "valid_to"].into(),
            "`curated.partition_by` names `valid_to`",
        ),
    ] {
        let lab = builder().set(key, value).build();
        let output = lab.program_for("run", "2020-01-01", "2020-02-01").run();
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(message), "{}", output.stderr);
    }
    let lab = builder().aggregate("a", FLOWS).build();
    let output = lab.program_for("run", "2020-01-01", "2020-02-01").run();
    assert!(output.stderr.contains("reads `balance`, with keep"), "{}", output.stderr);
    let lab = builder().build();
    let keep = ["keep=latest"];
    put(&lab, "20200102-000000000", &[["I", "02 10:00", "1", "a"]]);
    run(&lab);
    let changed = lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &keep).expect_err("refused");
    assert!(changed.to_string().contains("`keep`"), "{changed}");
    lab.rebuild(false, &keep).expect("rebuilt");
    assert!(!lab.table("lake/curated")[0].contains_key("valid_from"));
}

#[test]
fn a_load_is_refused_by_the_current_rows_that_it_lacks() {
    let builder = builder().set("raw.full_load_at", "name").set("raw.full_load", "*/full/*");
    let builder = builder.set("raw.commit_time", "ts").set("raw.full_load_max_deletes", "50%");
    let load = |lab: &Lab, day: &str, ids: &[&str]| {
        let time = format!("{day} 00:00");
        let rows: Vec<[&str; 4]> = ids.iter().map(|id| ["I", time.as_str(), id, "x"]).collect();
        put(lab, &format!("full/202001{day}-000000000"), &rows);
    };
    let new = || {
        let mut lab = builder.build();
        lab.now = crate::support::now() + chrono::TimeDelta::days(1);
        load(&lab, "02", &["1", "2", "3", "4"]);
        // Rows that have ended do not count.
        put(
            &lab,
            "20200103-000000000",
            &[["U", "03 10:00", "1", "a"], ["U", "03 11:00", "1", "b"]],
        );
        run(&lab);
        lab
    };
    let lab = new();
    load(&lab, "04", &["1", "2", "3", "4"]);
    run(&lab);
    assert_eq!(
        lab.table("lake/curated").iter().filter(|row| row["is_current"] == "true").count(),
        4
    );
    let lab = new();
    load(&lab, "04", &["1"]);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    let of_load = "the full load of 2020-01-04 00:00:00 came, which lacks 3 of them";
    let message = format!("the table had 4 rows when {of_load}, more than 50%");
    assert_refused(refused, 65, &message, "full_load_max_deletes=100%");
    // Also if another load has them again, whether it comes with it or came before.
    load(&lab, "05", &["1", "2", "3", "4"]);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(refused, 65, &message, "full_load_max_deletes=100%");
    let lab = new();
    load(&lab, "05", &["1", "2", "3", "4"]);
    run(&lab);
    load(&lab, "04", &["1"]);
    let refused = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(refused, 65, &message, "full_load_max_deletes=100%");
    let accepted = ["raw.full_load_max_deletes=100%"];
    lab.run_with(Task::Run, "2020-01-01", "2020-02-01", &accepted).expect("accepted");
    // What was accepted is.
    lab.rebuild(false, &[]).expect("rebuilt");
    lab.assert_verified();
}

#[test]
fn changes_of_different_times_with_one_place_in_the_order_are_a_tie() {
    let rows = |rows: &[[&str; 5]]| file_of_rows(&["Op", "ts", "id", "tier", "seq"], rows);
    let first = ["I", "2020-01-02 10:00:00", "1", "a", "5"];
    let second = ["U", "2020-01-02 11:00:00", "1", "b", "5"];
    let builder = builder().set("raw.order_by", vec!["seq"]).set("raw.commit_time", "ts");
    for files in [vec![vec![first, second]], vec![vec![first], vec![second]]] {
        let lab = builder.clone().set("raw.on_tie", "fail").build();
        let last = files.len() - 1;
        for (number, file) in files.iter().enumerate() {
            lab.put(&format!("raw/20200102-00000000{number}.parquet"), rows(file));
            let run = lab.run("2020-01-01", "2020-02-01");
            if number == last {
                let tied = run.expect_err("refused");
                assert_refused(
                    tied,
                    65,
                    "the same order columns as another change",
                    "raw.order_by",
                );
            }
        }
    }
}

#[test]
fn rows_can_be_sorted_by_their_times_and_changes_without_times_are_told() {
    let sorted = builder().set("curated.sort_by", vec!["id", "valid_from"]).build();
    for (name, rows) in LIFE {
        put(&sorted, name, rows);
        run(&sorted);
    }
    assert_eq!(history(&sorted), LIVES);
    let ddl = sorted.program("ddl").args(["--dialect", "postgres"]).succeed();
    assert!(!ddl.stdout.contains("PRIMARY KEY"), "{}", ddl.stdout);
    let explained = sorted.explain(&["2"]);
    let held: Vec<_> = explained.rows_now.iter().map(|row| row.valid_to.is_some()).collect();
    assert_eq!(held, [true, true, false]);
    assert!(
        explained.text().contains("holds from 2020-01-04 09:00:00 up to now"),
        "{}",
        explained.text()
    );
    let lab = Lab::builder().keep("history").set("raw.order_by", Vec::<String>::new());
    let lab = lab.curated_sql("SELECT CAST(id AS BIGINT) AS id, tier, event_dt FROM latest");
    let lab = lab.partition_by(&["event_dt"]).build();
    put(&lab, LIFE[0].0, LIFE[0].1);
    let report = lab.run("2020-01-01", "2020-02-01").expect("a run");
    let note = report.note.expect("a note");
    assert!(note.contains("no commit time but that of their file"), "{note}");
    let named = "SELECT CAST(id AS BIGINT) AS id, tier AS \"Valid_To\", event_dt FROM latest";
    let lab = builder().curated_sql(named).build();
    put(&lab, LIFE[0].0, LIFE[0].1);
    let error = lab.run("2020-01-01", "2020-02-01").expect_err("refused");
    assert_refused(error, 2, "returns the column `Valid_To`", "another name");
}

/// A change: the file it is in, the day and key, what it does, and the day it happened before that.
type Drawn = (usize, u32, usize, usize, u32);

#[test]
fn aggregates_over_history_are_those_of_a_table_of_latest() {
    let columns = ["Op", "ts", "id", "tier", "happened"];
    let of = |keep: &str, order_by: &[&str]| {
        let builder = Lab::builder()
            .set("raw.order_by", order_by.to_vec())
            .set("raw.event_time", "happened")
            .partition_by(&["event_dt", "tier"])
            .curated_sql(
                "SELECT CAST(id AS BIGINT) AS id, tier, event_dt FROM latest WHERE tier <> 'none'",
            );
        let per_tier = "SELECT event_dt AS dt, tier, deleted, COUNT(*) AS n FROM history
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, tier, deleted";
        let builder = builder
            .aggregate("tiers", per_tier)
            .running_aggregate("so_far", count_of_each_day_so_far("id"));
        match keep {
            "deleted" => builder.set("keep_deleted", true),
            keep => builder.keep(keep),
        }
    };
    let put_and_run = |lab: &Lab, changes: &[Drawn], order: &[usize]| {
        for file in order {
            let numbered = changes.iter().enumerate().filter(|(_, change)| change.0 == *file);
            let rows = numbered.map(|(number, (_, day, key, kind, before))| {
                let op = ["I", "U", "U", "D", "T"][*kind];
                let id = if op == "T" { "-".to_string() } else { key.to_string() };
                let happened = format!("2020-01-{:02}", day.saturating_sub(*before).max(1));
                let time = format!("2020-01-{day:02} 10:00:{:02}", number / 2);
                let tier = ["red", "blue", "none"][number % 3];
                [op.to_string(), time, id, tier.to_string(), happened]
            });
            let rows: Vec<[String; 5]> = rows.collect();
            if !rows.is_empty() {
                lab.put(
                    &format!("raw/2020010{file}-000000000.parquet"),
                    file_of_rows(&columns, &rows),
                );
                // Days outside of the window are computed only if they have changed.
                let days = (format!("2020-01-0{file}"), format!("2020-01-0{}", file + 1));
                lab.run(&days.0, &days.1).expect("a run");
            }
        }
    };
    let changes =
        prop::collection::vec((1..4usize, 1..15u32, 0..4usize, 0..5usize, 0..10u32), 1..40);
    let orders = (Just(vec![1, 2, 3]).prop_shuffle(), Just(vec![1, 2, 3]).prop_shuffle());
    let config = Config { cases: 12 * test_times(), ..Config::default() };
    let checked = |(changes, orders): (Vec<Drawn>, (Vec<usize>, Vec<usize>))| {
        let order_by = if changes.len() % 2 == 0 { &["ts"][..] } else { &["ts", "happened"] };
        let latest = of("latest", order_by).build();
        put_and_run(&latest, &changes, &orders.0);
        for keep in ["history", "deleted"] {
            let lab = of(keep, order_by).build();
            put_and_run(&lab, &changes, &orders.1);
            for table in ["lake/tiers", "lake/so_far"] {
                prop_assert_eq!(lab.table(table), latest.table(table), "{}: {}", keep, table);
            }
            let verified = lab.verify().expect("compared");
            prop_assert_eq!(verified.exit_code(), 0, "{}", verified.text());
        }
        Ok(())
    };
    // A key is deleted by a truncate, until a later change of the same day comes: then the truncate has ended nothing.
    let given = vec![(1, 1, 0, 0, 0), (2, 5, 0, 4, 0), (3, 6, 1, 0, 0), (3, 6, 0, 1, 5)];
    checked((given, (vec![1, 2, 3], vec![1, 2, 3]))).unwrap_or_else(|error| panic!("{error}"));
    let mut runner = TestRunner::new(config);
    runner.run(&(changes, orders), checked).unwrap_or_else(|error| panic!("{error}"));
}
