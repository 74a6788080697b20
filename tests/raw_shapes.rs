//! The forms that raw folders have: CSV, full loads beside CDC files, tables without a key, columns
//! that change from file to file and from run to run, and changes with equal order columns.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    COUNT_PER_DAY, Lab, LabBuilder, Report, Result, STATE, Task, assert_folds_in_little_memory,
    assert_refused, day, file_of_rows, gzip, raw_file,
};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";

/// A pipeline of the table (id, v), of Parquet files.
fn builder() -> LabBuilder {
    Lab::builder().partition_by(&[]).curated_sql(SQL)
}

/// The same, of CSV files with more columns.
fn csv_builder() -> LabBuilder {
    builder().set("raw.format", "csv").raw_columns(&[
        ("Op", "VARCHAR"),
        ("id", "BIGINT"),
        ("v", "BIGINT"),
        ("note", "VARCHAR"),
        ("ts", "TIMESTAMP"),
    ])
}

fn lab() -> Lab {
    builder().build()
}

const SQL: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest";
const SQL_WITH_NOTE: &str =
    "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, note FROM latest";

/// Columns of the curated table.
fn curated<const N: usize>(lab: &Lab, columns: [&str; N]) -> Vec<String> {
    lab.lines("lake/curated", columns)
}

/// A full load and two files of changes, compressed in different ways.
fn csv_changes() -> Lab {
    csv_changes_for(csv_builder())
}

fn csv_changes_for(builder: LabBuilder) -> Lab {
    let lab = builder
        .partition_by(&["event_dt"])
        .curated_sql(
            "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v,
             CAST(note AS VARCHAR) AS note, event_dt FROM latest",
        )
        .build();
    let load = "1,10,one,2020-01-09 00:00:00\n2,20,\"two, or \"\"2\"\"\",2020-01-09 00:00:00\n";
    lab.put("raw/LOAD00000001.csv", load);
    let first = "U,1,11,,2020-01-02 10:00:00.000001\nI,3,30,\"\",2020-01-02 10:00:00.000001\n";
    lab.put("raw/20200102-100000000.csv.gz", gzip(first));
    let second = "D,2,,,2020-01-03 10:00:00\nI,4,,\"a\nb\",2020-01-03 10:00:00\n";
    let zst = zstd::encode_all(second.as_bytes(), 3).expect("compressed");
    lab.put("raw/2020/20200103-100000000.csv.zst", zst);
    lab
}

#[test]
fn csv_files_are_folded_compressed_or_not() {
    let expected = ["1 11 - 2020-01-02", "3 30  2020-01-02", "4 - a\nb 2020-01-03"];
    let columns = ["id", "v", "note", "event_dt"];
    let whole = csv_changes();
    let report = whole.run(START, END).expect("a run");
    assert_eq!((report.files, report.rows_read, report.rows_deleted), (3, 6, 1));
    assert_eq!(curated(&whole, columns), expected);
    // Day by day with the last day first, and everything once more.
    let daily = csv_changes();
    for (start, end) in [("2020-01-03", "2020-01-04"), ("2020-01-01", "2020-01-03"), (START, END)] {
        daily.run(start, end).expect("a run");
    }
    assert_eq!(curated(&daily, columns), expected);
    let before = daily.contents("lake/curated");
    daily.run(START, END).expect("a run");
    assert_eq!(daily.contents("lake/curated"), before);
    daily.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(curated(&daily, columns), expected);
    daily.assert_tidy();
    let read = daily.read_with("duckdb", "lake/curated", None);
    assert_eq!(read.expect("read").1.len(), 3);
}

#[test]
fn csv_on_a_far_store_and_with_little_memory_gives_the_same_rows() {
    let mut text = String::new();
    for row in 0..60_000 {
        text +=
            &format!("U,{},{row},\"{}\",2020-01-02 10:00:00\n", row % 20_000, "x".repeat(row % 97));
    }
    assert_folds_in_little_memory(&csv_builder(), "csv.gz", &text);
}

#[test]
fn spilled_csv_counts_as_what_is_spilled() {
    let lab = csv_changes();
    let failed =
        lab.run_with(Task::Run, START, END, &["limits.spill_bytes_max=100"]).expect_err("no room");
    assert_refused(failed, 2, "limits.spill_bytes_max", "raise it");
    assert!(lab.list("lake/curated").is_empty());
}

#[test]
fn full_loads_have_the_operation_column_where_the_pipeline_says_so() {
    let lab = csv_changes_for(csv_builder().set("raw.csv_op_in_full_load", true));
    let failed = lab.run(START, END).expect_err("a field short");
    assert_refused(failed, 65, "line 1 of", "raw.csv_op_in_full_load");
    let load = "I,1,10,x,2020-01-09 00:00:00\n";
    lab.put("raw/LOAD00000001.csv", load);
    lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab, ["id"]), ["1", "3", "4"]);
}

#[test]
fn csv_with_a_header_needs_no_list_of_columns() {
    let lab = builder()
        .set("raw.format", "csv")
        .set("raw.csv_header", true)
        .set("raw.csv_null", "NULL")
        .curated_sql(SQL_WITH_NOTE)
        .build();
    let load = "ts,id,v,note\n2020-01-01 00:00:00,1,5,\n";
    lab.put("raw/LOAD1.csv", load);
    let text = "Op,id,v,note,ts\nI,2,NULL,\"NULL\",2020-01-02 00:00:00\nD,1,NULL,NULL,2020-01-02 00:00:00\n";
    lab.put("raw/20200102-000000000.csv", text);
    // Keys are text here, and two texts may be the same number.
    let failed = lab.run(START, END).expect_err("the key is computed");
    assert_refused(failed, 2, "does not return the key column `id` unchanged", "");
    let columns = ["raw.columns={id = \"bigint\"}"];
    lab.run_with(Task::Run, START, END, &columns).expect("a run");
    assert_eq!(curated(&lab, ["id", "v", "note"]), ["2 - NULL"]);
}

#[test]
fn parquet_and_csv_files_do_not_mix() {
    let lab = csv_changes();
    lab.put(&raw_file(4), file_of_rows(&["id"], &[["1"]]));
    let failed = lab.run(START, END).expect_err("mixed");
    assert_refused(
        failed,
        2,
        "20200104-000000000.parquet is not a file of the format `csv`",
        "raw.format = \"parquet\"",
    );
    let failed = lab.run_with(Task::Run, START, END, &["raw.format=parquet"]).expect_err("mixed");
    assert_refused(failed, 2, "is not a file of the format `parquet`", "raw.format = \"csv\"");
}

#[test]
fn full_loads_come_before_every_change_wherever_they_lie() {
    let lab = builder()
        .set("raw.url", vec!["{base}/raw/full", "{base}/raw/cdc"])
        .set("raw.full_load", vec!["LOAD*", "SEGMENT*_LOAD*", "*/raw/full/*"])
        .build();
    // The full loads have later times than the changes.
    let late = "2020-01-20 00:00:00";
    let load = |id: &str| file_of_rows(&["id", "v", "ts"], &[[id, "0", late]]);
    lab.put("raw/full/part-00000.parquet", load("1"));
    lab.put("raw/full/shop/SEGMENT1_LOAD00000001.parquet", load("2"));
    lab.put("raw/cdc/LOAD0000000A.parquet", load("3"));
    let with_op = file_of_rows(&["Op", "id", "v", "ts"], &[["I", "4", "0", late]]);
    lab.put("raw/cdc/a/b/SEGMENT12_LOAD00000010.parquet", with_op);
    let rows = ["1", "2", "3", "4"].map(|id| ["U", id, "9", "2020-01-02 00:00:00"]);
    lab.put(
        "raw/cdc/2020/01/02/20200102-000000000.parquet",
        file_of_rows(&["Op", "id", "v", "ts"], &rows),
    );
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    assert_eq!(curated(&lab, ["id", "v"]), ["1 9", "2 9", "3 9", "4 9"]);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(report.files, 1, "full loads are folded once");
}

/// Changes of a table without a key, one of them bad.
fn keyless(format: &str) -> Lab {
    let lab = Lab::builder()
        .set("key", Vec::<&str>::new())
        .set("raw.event_time", "event")
        .set("raw.on_bad_row", "quarantine")
        .raw_columns(&[("v", "INTEGER")])
        .partition_by(&["event_dt"])
        .format(format)
        .curated_sql("SELECT CAST(v AS BIGINT) AS v, note, event_dt FROM latest")
        .aggregate("daily", COUNT_PER_DAY)
        .build();
    let columns = ["Op", "v", "note", "event", "ts"];
    let at = "2020-01-05 00:00:00";
    let one = [["I", "1", "a", at, at], ["I", "1", "a", at, at], ["I", "5000000000", "b", at, at]];
    lab.put(&raw_file(1), file_of_rows(&columns, &one));
    let two = [["I", "0", "z", at, at], ["U", "3", "d", at, at]];
    lab.put(&raw_file(2), file_of_rows(&columns, &two));
    let load =
        file_of_rows(&["v", "note", "event", "ts"], &[["7", "l", "2020-01-06 00:00:00", at]]);
    lab.put("raw/LOAD00000001.parquet", load);
    lab
}

#[test]
fn a_table_without_a_key_gets_each_row_once() {
    for format in ["parquet", "delta"] {
        let lab = keyless(format);
        let columns = ["v", "note", "event_dt"];
        let first = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!((first.rows_latest, first.rows_rejected, first.files), (3, 1, 2));
        let expected = ["1 a 2020-01-05", "1 a 2020-01-05", "7 l 2020-01-06"];
        assert_eq!(curated(&lab, columns), expected);
        // The same window again, and one that overlaps: no row comes twice.
        let again = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!((again.files, again.rows_written), (0, 0));
        let second = lab.run(START, END).expect("a run");
        assert_eq!((second.files, second.rows_read, second.rows_rejected), (1, 2, 1));
        let expected = ["0 z 2020-01-05", "1 a 2020-01-05", "1 a 2020-01-05", "7 l 2020-01-06"];
        assert_eq!(curated(&lab, columns), expected);
        // The row that can be read now is added; the rest of its file is not added again.
        let caught_up = lab.catch_up(&["raw.columns={v = \"bigint\"}"]).expect("caught up");
        assert_eq!((caught_up.rows_latest, caught_up.rows_rejected), (1, 1));
        let expected = [&expected[..3], &["5000000000 b 2020-01-05", "7 l 2020-01-06"]].concat();
        assert_eq!(curated(&lab, columns), expected);
        let caught_up = lab.catch_up(&["raw.columns={v = \"bigint\"}"]).expect("caught up");
        assert_eq!((caught_up.rows_latest, caught_up.rows_rejected), (0, 1));
        assert_eq!(curated(&lab, columns), expected);
        let daily = lab.lines("lake/daily", ["dt", "n"]);
        assert_eq!(daily, ["2020-01-05 4", "2020-01-06 1"]);
        lab.rebuild(false, &["raw.columns={v = \"bigint\"}"]).expect("rebuilt");
        assert_eq!(curated(&lab, columns), expected);
        lab.assert_tidy();
    }
}

#[test]
fn catching_up_without_a_key_takes_no_row_twice() {
    let lab = keyless("parquet");
    let at = "2020-01-05 00:00:00";
    let rows = [["I", "1000", "x", at, at], ["I", "6000000000", "y", at, at]];
    let columns = ["Op", "v", "note", "event", "ts"];
    lab.put(&raw_file(3), file_of_rows(&columns, &rows));
    lab.run(START, END).expect("a run");
    let before = curated(&lab, ["v", "note"]);
    // Rows that are in the table are not read again, so that they need not fit these types.
    for columns in ["raw.columns={v = \"tinyint\"}", "raw.columns={v = \"integer\"}"] {
        lab.catch_up(&[columns]).expect("caught up");
        assert_eq!(curated(&lab, ["v", "note"]), before);
    }
    let report = lab.catch_up(&["raw.columns={v = \"bigint\"}"]).expect("caught up");
    assert_eq!(report.rows_latest, 2);
    assert_eq!(curated(&lab, ["v"]).len(), before.len() + 2);
    // The files are still known as folded.
    let again = lab.run(START, END).expect("a run");
    assert_eq!(again.note.as_deref(), Some("no inputs in the window"));
}

#[test]
fn versions_of_a_table_without_a_key_are_put_together() {
    let lab = keyless("parquet");
    let at = "2020-01-05 00:00:00";
    for hour in 0..24 {
        let rows = file_of_rows(&["Op", "v", "note", "event", "ts"], &[["I", "1", "x", at, at]]);
        lab.put(&format!("raw/20200110-{hour:02}0000000.parquet"), rows);
        let start = format!("2020-01-10T{hour:02}:00:00Z");
        let end = format!("2020-01-10T{hour:02}:30:00Z");
        lab.run(&start, &end).expect("a run");
    }
    let state_files = lab.list_all(&format!("{STATE}/versions"));
    let versions = state_files.iter().filter(|path| path.starts_with("kind=version/"));
    assert!(versions.count() < 24);
    let daily = lab.lines("lake/daily", ["dt", "n"]);
    assert_eq!(daily, ["2020-01-05 24", "2020-01-06 1"]);
    assert_eq!(curated(&lab, ["v"]).len(), 25);
}

#[test]
fn columns_that_differ_in_case_alone_are_refused_if_they_are_used() {
    let lab = builder().curated_sql(SQL_WITH_NOTE).build();
    let columns = ["id", "v", "note", "Note", "ts"];
    let file = file_of_rows(&columns, &[["1", "1", "a", "b", "2020-01-01 00:00:00"]]);
    let failed = days(&lab, &[file], true).expect_err("refused");
    assert_refused(failed, 65, "columns `note` and `Note` of", "rename one of them");
}

#[test]
fn times_with_a_zone_keep_their_instant() {
    let lab = builder()
        .set("raw.time_zone", "America/New_York")
        .set("raw.event_time", "event")
        .set("raw.format", "csv")
        .raw_columns(&[
            ("id", "BIGINT"),
            ("v", "BIGINT"),
            ("event", "TIMESTAMP WITH TIME ZONE"),
            ("ts", "TIMESTAMP"),
            ("Op", "VARCHAR"),
        ])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, event_dt FROM latest")
        .build();
    let text = "1,1,2020-01-01 23:30:00Z,2020-01-01 00:00:00,I
2,1,2020-01-01 23:30:00-05:00,2020-01-01 00:00:00,I
";
    lab.put("raw/20200101-000000000.csv", text);
    lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab, ["id", "event_dt"]), ["1 2020-01-01", "2 2020-01-02"]);
    let set = ["raw.columns.event=timestamp"];
    let failed = lab.run_with(Task::Run, START, END, &set).expect_err("a zone is lost");
    assert_refused(failed, 65, "column `event` does not fit its type", "[raw.columns]");
}

#[test]
fn csv_and_parquet_of_the_same_changes_give_the_same_table() {
    let text = prop::option::of("[a,\"\n ]{0,4}");
    let change = ("[IUD]", 0i64..6, prop::option::of(any::<i64>()), text, 0u32..3);
    let files = prop::collection::vec(prop::collection::vec(change, 0..8), 1..5);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&files, |files| {
            let csv = csv_builder().curated_sql(SQL_WITH_NOTE).build();
            let parquet = builder().curated_sql(SQL_WITH_NOTE).build();
            for (number, rows) in files.iter().enumerate() {
                let name = format!("raw/20200101-00000000{number}");
                let cells: Vec<[String; 5]> = rows
                    .iter()
                    .map(|(op, id, v, note, second)| {
                        let v = v.map_or("-".into(), |v| v.to_string());
                        let note = note.clone().unwrap_or("-".into());
                        let ts = format!("2020-01-01 00:00:0{second}");
                        [op.clone(), id.to_string(), v, note, ts]
                    })
                    .collect();
                let quoted = |cell: &String| match cell.as_str() {
                    "-" => String::new(),
                    text => format!("\"{}\"", text.replace('"', "\"\"")),
                };
                let lines = cells
                    .iter()
                    .map(|row| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n");
                let mut text: String = lines.collect();
                if text.is_empty() {
                    // An empty file would be refused.
                    text = "\n".into();
                }
                csv.put(&format!("{name}.csv"), text);
                let bytes = file_of_rows(&["Op", "id", "v", "note", "ts"], &cells);
                parquet.put(&format!("{name}.parquet"), bytes);
            }
            let reports = [&csv, &parquet].map(|lab| lab.run(START, END).expect("a run"));
            prop_assert_eq!(reports[0].rows_read, reports[1].rows_read);
            prop_assert_eq!(csv.table("lake/curated"), parquet.table("lake/curated"));
            Ok(())
        })
        .expect("the tables are the same");
}

#[test]
fn updates_and_deletes_of_a_table_without_a_key_are_refused() {
    let lab = keyless("parquet");
    for op in ["U", "D", "u"] {
        let row: &[&str] = &[op, "1", "a", "2020-01-05 00:00:00", "2020-01-05 00:00:00"];
        lab.put(&raw_file(2), file_of_rows(&["Op", "v", "note", "event", "ts"], &[row]));
        let failed = lab
            .run_with(Task::Run, "2020-01-02", END, &["raw.on_bad_row=fail"])
            .expect_err("refused");
        assert_refused(failed, 65, "row 1 of", "name the primary key in `key`");
    }
}

#[test]
fn windows_of_rows_need_a_key() {
    let lab = keyless("parquet");
    let failed =
        lab.run_with(Task::Run, START, END, &["raw.window_by=commit"]).expect_err("refused");
    assert_refused(failed, 2, "`raw.window_by` cannot be `commit`", "select files");
}

/// Folds these files, one for each day, in one run or in a run for each day.
fn days(lab: &Lab, files: &[Vec<u8>], at_once: bool) -> Result<Vec<Report>> {
    for (day, bytes) in (1..).zip(files) {
        lab.put(&raw_file(day), bytes.clone());
    }
    if at_once {
        return Ok(vec![lab.run(START, END)?]);
    }
    let days = 1..=files.len() as i64;
    days.map(|first| lab.run(&day(first), &day(first + 1))).collect()
}

fn schema_changes(reports: &[Report]) -> Vec<String> {
    let changes = reports.iter().flat_map(|report| &report.schema_changes);
    changes
        .map(|change| {
            let text = change.to_string();
            let (what, path) = text.rsplit_once(" in ").expect("a path");
            format!("{what} in {}", path.rsplit_once('/').expect("a folder").1)
        })
        .collect()
}

#[test]
fn the_report_lists_how_columns_changed() {
    let columns = ["Op", "id", "v", "note", "ts"];
    let others = ["Op", "ID", "ts", "v", "more"];
    // The ID of the second file is text, which is read as a number.
    let files = [
        file_of_rows(&columns, &[["I", "1", "1", "x", "2020-01-01 00:00:00"]]),
        file_of_rows(&others, &[["I", "2", "2020-01-02 00:00:00", "2", "z"]]),
        file_of_rows(&columns, &[["I", "3", "3", "x", "2020-01-03 00:00:00"]]),
    ];
    let expected = [
        "`ID` renamed from id to ID in 20200102-000000000.parquet",
        "`ID` retyped from Int64 to Utf8View in 20200102-000000000.parquet",
        "`v` moved in 20200102-000000000.parquet",
        "`more` added in 20200102-000000000.parquet",
        "`note` dropped in 20200102-000000000.parquet",
        "`id` renamed from ID to id in 20200103-000000000.parquet",
        "`id` retyped from Utf8View to Int64 in 20200103-000000000.parquet",
        "`note` added in 20200103-000000000.parquet",
        "`ts` moved in 20200103-000000000.parquet",
        "`more` dropped in 20200103-000000000.parquet",
    ];
    for at_once in [true, false] {
        let lab = builder().raw_columns(&[("id", "BIGINT")]).build();
        let reports = days(&lab, &files, at_once).expect("runs");
        assert_eq!(schema_changes(&reports), expected, "{at_once}");
        assert_eq!(curated(&lab, ["id", "v"]), ["1 1", "2 2", "3 3"]);
        let again = lab.run("2020-01-03", "2020-01-04").expect("a run");
        assert_eq!(schema_changes(&[again]), Vec::<String>::new());
    }
}

#[test]
fn a_column_that_vanished_is_null() {
    let files = [
        file_of_rows(&["id", "v", "note", "ts"], &[["1", "1", "x", "2020-01-01 00:00:00"]]),
        file_of_rows(&["id", "v", "ts"], &[["2", "2", "2020-01-02 00:00:00"]]),
    ];
    for at_once in [true, false] {
        let lab = builder().curated_sql(SQL_WITH_NOTE).build();
        days(&lab, &files, at_once).expect("runs");
        assert_eq!(curated(&lab, ["id", "v", "note"]), ["1 1 x", "2 2 -"]);
    }
}

#[test]
fn types_that_have_nothing_in_common_stop_the_run_unless_one_is_fixed() {
    let text_v = |v: &str| file_of_rows(&["id", "V", "ts"], &[["2", v, "2020-01-02 00:00:00"]]);
    let number = file_of_rows(&["id", "v", "ts"], &[["1", "1", "2020-01-01 00:00:00"]]);
    let at_once = lab();
    let failed = days(&at_once, &[number.clone(), text_v("7")], true).expect_err("refused");
    assert_refused(failed, 65, "column `V` is Int64 in", "`[raw.columns]`");
    let lab = lab();
    let failed = days(&lab, &[number, text_v("7")], false).expect_err("refused");
    assert_refused(failed, 65, "and was Int64 in earlier runs", "`[raw.columns]`");
    let fixed = ["raw.columns={v = \"bigint\"}"];
    lab.run_with(Task::Run, START, END, &fixed).expect("a run");
    assert_eq!(curated(&lab, ["id", "v"]), ["1 1", "2 7"]);
    // A value that is no number is found even in a change that does not win.
    lab.put(&raw_file(4), text_v("seven"));
    lab.put(&raw_file(5), file_of_rows(&["id", "v", "ts"], &[["2", "8", "2020-01-05 00:00:00"]]));
    let failed = lab.run_with(Task::Run, START, END, &fixed).expect_err("refused");
    assert_refused(failed, 65, "column `v` does not fit Int64", "correct the value");
    // A declared column needs no file that has it.
    let declared = "raw.columns={v = \"varchar\", vv = \"bigint\"}";
    let sql = "SELECT CAST(id AS BIGINT) AS id, vv AS v FROM latest";
    lab.write_file("curated.sql", sql);
    let elsewhere = format!("curated.url={}/other/curated", lab.base);
    lab.run_with(Task::Run, START, END, &[declared, &elsewhere]).expect("a run");
    assert!(lab.table("other/curated").iter().all(|row| !row.contains_key("v")));
}

#[test]
fn a_column_more_in_the_query_evolves_a_delta_table_and_needs_a_rebuild_of_others() {
    let file = |id: &str| {
        file_of_rows(&["id", "v", "note", "ts"], &[[id, "1", "x", "2020-01-01 00:00:00"]])
    };
    let more = "SELECT note, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest";
    let other = "SELECT note, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) + 1 AS v FROM latest";
    let fewer = "SELECT note, CAST(id AS BIGINT) AS id FROM latest";
    for format in ["parquet", "delta"] {
        let lab = builder().format(format).build();
        days(&lab, &[file("1")], true).expect("a run");
        lab.put(&raw_file(2), file("2"));
        lab.write_file("curated.sql", more);
        let grown = lab.run("2020-01-02", "2020-01-03");
        if format == "delta" {
            grown.expect("the table gets a column");
            assert_eq!(curated(&lab, ["id", "v", "note"]), ["1 1 -", "2 1 x"]);
            let read = lab.read_with("deltalake", "lake/curated", None).expect("read");
            assert_eq!(read.1.len(), 2);
            for sql in [other, fewer, SQL] {
                lab.write_file("curated.sql", sql);
                let failed = lab.run("2020-01-02", "2020-01-03").expect_err("refused");
                assert_refused(failed, 2, "`curated.sql` changed", "glueless rebuild");
            }
            lab.write_file("curated.sql", more);
        } else {
            assert_refused(
                grown.expect_err("refused"),
                2,
                "`curated.sql` changed",
                "glueless rebuild",
            );
        }
        lab.rebuild(false, &[]).expect("rebuilt");
        let rows = curated(&lab, ["id", "v", "note"]);
        assert_eq!(rows[0], "1 1 x", "{rows:?}");
    }
}

#[test]
fn a_tie_stops_the_run_where_the_pipeline_says_so() {
    let at = "2020-01-01 00:00:00";
    let file = |v: &[&str]| {
        let rows: Vec<[&str; 3]> = v.iter().map(|v| ["1", *v, at]).collect();
        file_of_rows(&["id", "v", "ts"], &rows)
    };
    for keep in ["latest", "latest-per-day"] {
        let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest";
        let builder = builder().keep(keep).set("raw.on_tie", "fail").curated_sql(sql);
        let within = builder.build();
        let failed = days(&within, &[file(&["1", "2"])], true).expect_err("a tie");
        assert_refused(
            failed,
            65,
            "20200101-000000000.parquet has the same order columns",
            "raw.order_by",
        );
        assert!(within.list("lake/curated").is_empty());
        let across = builder.build();
        let failed = days(&across, &[file(&["1"]), file(&["2"])], false).expect_err("a tie");
        assert_refused(failed, 65, "row 1 of", "raw.on_tie");
        // The same rows, read again, are no tie.
        across.run("2020-01-01", "2020-01-02").expect("a run");
        let by_row = ["raw.on_tie=row"];
        let report = across.run_with(Task::Run, START, END, &by_row).expect("a run");
        assert_eq!((report.ties, curated(&across, ["v"])), (1, vec!["2".to_string()]));
    }
}

#[test]
fn text_and_numbers_order_changes_and_an_empty_sequence_comes_first() {
    let lab = builder().set("raw.commit_time", "ts").build();
    let at = "2020-01-01 00:00:00";
    let sequence = |number: u64| format!("2020010100000000{number:019}");
    let (early, late) = (sequence(9), sequence(10));
    lab.put(
        "raw/LOAD1.parquet",
        file_of_rows(&["id", "v", "seq", "ts"], &[["1", "0", "", "2020-01-09 00:00:00"]]),
    );
    let rows = [["U", "1", "2", &late, at], ["U", "1", "1", &early, at]];
    lab.put(&raw_file(1), file_of_rows(&["Op", "id", "v", "seq", "ts"], &rows));
    let set = ["raw.order_by=[\"seq\"]"];
    let report = lab.run_with(Task::Run, START, END, &set).expect("a run");
    assert_eq!((curated(&lab, ["v"]), report.ties), (vec!["2".to_string()], 0));
}
