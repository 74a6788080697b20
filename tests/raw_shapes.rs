//! The shapes that raw folders have: CSV, full loads beside CDC files, tables without a key, columns
//! that change from file to file and from run to run, and changes that nothing tells apart.

use std::io::Write;

use glueless::commands::Task;
use glueless::error::Result;
use glueless::report::Report;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Lab, Place, Row, assert_refused, changes, changes_of, read_with};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";

/// A pipeline of the table (id, v, note), with more settings.
fn lab(top: &str, raw: &str, curated: &str, sql: &str) -> Lab {
    let toml = format!(
        r#"
name = "shapes"
{top}
[raw]
window_by = "name"
order_by = ["ts"]
{raw}
[curated]
url = "{{base}}/lake/curated"
{curated}
"#
    );
    let daily = "SELECT event_dt AS dt, COUNT(*) AS n FROM history
        WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";
    Lab::new(
        Place::Local,
        &toml,
        &[("curated.sql", sql), ("daily.sql", daily)],
    )
}

const KEY: &str = "key = [\"id\"]";
const URL: &str = "url = \"{base}/raw\"";
const SQL: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest";
const COLUMNS: &str = r#"
format = "csv"
[raw.columns]
Op = "VARCHAR"
id = "BIGINT"
v = "BIGINT"
note = "VARCHAR"
ts = "TIMESTAMP"
"#;

fn told(lab: &Lab, columns: &[&str]) -> Vec<String> {
    let text = |row: &Row| {
        let values = columns
            .iter()
            .map(|name| row.get(*name).map_or("-", String::as_str));
        values.collect::<Vec<_>>().join(" ")
    };
    let mut told: Vec<String> = lab.table("lake/curated").iter().map(text).collect();
    told.sort();
    told
}

fn gzip(text: &str) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    writer.write_all(text.as_bytes()).expect("written");
    writer.finish().expect("written")
}

fn csv_lab(raw: &str) -> Lab {
    let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v,
        CAST(note AS VARCHAR) AS note, event_dt FROM latest";
    let partitioned = "partition_by = [\"event_dt\"]";
    let lab = lab(KEY, &format!("{URL}\n{raw}{COLUMNS}"), partitioned, sql);
    let load = "1,10,one,2020-01-09 00:00:00\n2,20,\"two, or \"\"2\"\"\",2020-01-09 00:00:00\n";
    lab.put("raw/LOAD00000001.csv", load.into());
    let first = "U,1,11,,2020-01-02 10:00:00.000001\nI,3,30,\"\",2020-01-02 10:00:00.000001\n";
    lab.put("raw/20200102-100000000.csv.gz", gzip(first));
    let second = "D,2,,,2020-01-03 10:00:00\nI,4,,\"a\nb\",2020-01-03 10:00:00\n";
    let zst = zstd::encode_all(second.as_bytes(), 3).expect("compressed");
    lab.put("raw/2020/20200103-100000000.csv.zst", zst);
    lab
}

#[test]
fn csv_files_are_folded_compressed_or_not() {
    let expected = [
        "1 11 - 2020-01-02",
        "3 30  2020-01-02",
        "4 - a\nb 2020-01-03",
    ];
    let columns = ["id", "v", "note", "event_dt"];
    let whole = csv_lab("");
    let report = whole.run(START, END).expect("a run");
    assert_eq!(
        (report.files, report.rows_read, report.rows_deleted),
        (3, 6, 1)
    );
    assert_eq!(told(&whole, &columns), expected);
    // Day by day, the last day first, and all once more.
    let daily = csv_lab("");
    for (start, end) in [
        ("2020-01-03", "2020-01-04"),
        ("2020-01-01", "2020-01-03"),
        (START, END),
    ] {
        daily.run(start, end).expect("a run");
    }
    assert_eq!(told(&daily, &columns), expected);
    let before = daily.contents("lake/curated");
    daily.run(START, END).expect("a run");
    assert_eq!(daily.contents("lake/curated"), before);
    daily.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(told(&daily, &columns), expected);
    daily.assert_tidy();
    let read = read_with("duckdb", &format!("{}/lake/curated", daily.base), None).expect("read");
    assert_eq!(read.1.len(), 3);
}

#[test]
fn csv_on_a_far_store_and_with_little_memory_gives_the_same_rows() {
    let mut text = String::new();
    for row in 0..60_000 {
        text += &format!(
            "U,{},{row},\"{}\",2020-01-02 10:00:00\n",
            row % 20_000,
            "x".repeat(row % 97)
        );
    }
    let toml = format!(
        "name = \"far\"\n{KEY}\n[raw]\nwindow_by = \"name\"\norder_by = [\"ts\"]\n{URL}{COLUMNS}\
         [curated]\nurl = \"{{base}}/lake/curated\"\n[limits]\nmemory = \"128MB\"\n"
    );
    let mut tables = Vec::new();
    for place in [Place::Local, Place::S3] {
        let lab = Lab::new(place, &toml, &[("curated.sql", SQL)]);
        for file in 0..4 {
            lab.put(&format!("raw/20200102-10000000{file}.csv.gz"), gzip(&text));
        }
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_read, report.rows_latest), (240_000, 20_000));
        tables.push(lab.table("lake/curated"));
    }
    assert_eq!(tables[0], tables[1]);
    assert!(
        tables[0]
            .iter()
            .all(|row| row["v"].parse::<i64>().expect("a number") >= 40_000)
    );
}

#[test]
fn spilled_csv_counts_as_what_is_spilled() {
    let lab = csv_lab("");
    let failed = lab.run_with(Task::Run, START, END, &["limits.spill_bytes_max=100"]);
    let failed = failed.expect_err("no room");
    assert_refused(failed, 2, "limits.spill_bytes_max", "raise it");
    assert!(lab.list("lake/curated").is_empty());
}

#[test]
fn full_loads_have_the_operation_column_where_the_pipeline_says_so() {
    let lab = csv_lab("csv_op_in_full_load = true\n");
    let failed = lab.run(START, END).expect_err("a field short");
    assert_refused(failed, 65, "line 1 of", "raw.csv_op_in_full_load");
    lab.put(
        "raw/LOAD00000001.csv",
        "I,1,10,x,2020-01-09 00:00:00\n".into(),
    );
    lab.run(START, END).expect("a run");
    assert_eq!(told(&lab, &["id"]), ["1", "3", "4"]);
}

#[test]
fn csv_with_a_header_needs_no_list_of_columns() {
    let raw = format!("{URL}\nformat = \"csv\"\ncsv_header = true\ncsv_null = \"NULL\"");
    let lab = lab(
        KEY,
        &raw,
        "",
        "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, note FROM latest",
    );
    lab.put(
        "raw/LOAD1.csv",
        "ts,id,v,note\n2020-01-01 00:00:00,1,5,\n".into(),
    );
    let text = "Op,id,v,note,ts\nI,2,NULL,\"NULL\",2020-01-02 00:00:00\nD,1,NULL,NULL,2020-01-02 00:00:00\n";
    lab.put("raw/20200102-000000000.csv", text.into());
    // Keys are text here: two of them are not the same because they are the same number.
    let failed = lab.run(START, END).expect_err("the key is computed");
    assert_refused(failed, 2, "does not pass the key column `id` through", "");
    let columns = ["raw.columns={id = \"bigint\"}"];
    lab.run_with(Task::Run, START, END, &columns)
        .expect("a run");
    assert_eq!(told(&lab, &["id", "v", "note"]), ["2 - NULL"]);
}

#[test]
fn parquet_and_csv_files_do_not_mix() {
    let lab = csv_lab("");
    lab.put(
        "raw/20200104-000000000.parquet",
        changes(&["id"], &[&["1"]]),
    );
    let failed = lab.run(START, END).expect_err("mixed");
    assert_refused(
        failed,
        2,
        "20200104-000000000.parquet is not a file of the format `csv`",
        "raw.format = \"parquet\"",
    );
    let failed = lab.run_with(Task::Run, START, END, &["raw.format=parquet"]);
    let failed = failed.expect_err("mixed");
    assert_refused(
        failed,
        2,
        "is not a file of the format `parquet`",
        "raw.format = \"csv\"",
    );
}

#[test]
fn full_loads_come_before_every_change_wherever_they_lie() {
    let raw = "url = [\"{base}/raw/full\", \"{base}/raw/cdc\"]
full_load = [\"LOAD*\", \"SEGMENT*_LOAD*\", \"*/raw/full/*\"]";
    let lab = lab(KEY, raw, "", SQL);
    // The times of transfer are later than the changes.
    let late = "2020-01-20 00:00:00";
    let load = |id: &str| changes(&["id", "v", "ts"], &[&[id, "0", late]]);
    lab.put("raw/full/part-00000.parquet", load("1"));
    lab.put("raw/full/shop/SEGMENT1_LOAD00000001.parquet", load("2"));
    lab.put("raw/cdc/LOAD0000000A.parquet", load("3"));
    let with_op = changes(&["Op", "id", "v", "ts"], &[&["I", "4", "0", late]]);
    lab.put("raw/cdc/a/b/SEGMENT12_LOAD00000010.parquet", with_op);
    let rows: Vec<[&str; 4]> = ["1", "2", "3", "4"]
        .map(|id| ["U", id, "9", "2020-01-02 00:00:00"])
        .into();
    let rows: Vec<&[&str]> = rows.iter().map(|row| &row[..]).collect();
    lab.put(
        "raw/cdc/2020/01/02/20200102-000000000.parquet",
        changes(&["Op", "id", "v", "ts"], &rows),
    );
    lab.run("2020-01-02", "2020-01-03").expect("a run");
    assert_eq!(told(&lab, &["id", "v"]), ["1 9", "2 9", "3 9", "4 9"]);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(report.files, 1, "full loads are folded once");
}

fn keyless(curated: &str) -> Lab {
    let raw = format!(
        "{URL}\nevent_time = \"event\"\non_bad_row = \"quarantine\"\n[raw.columns]\nv = \"INTEGER\""
    );
    let curated = format!(
        "partition_by = [\"event_dt\"]\n{curated}\n[[aggregate]]\nname = \"daily\"\n\
         sql = \"daily.sql\"\nurl = \"{{base}}/lake/daily\"\nday = \"dt\""
    );
    let sql = "SELECT CAST(v AS BIGINT) AS v, note, event_dt FROM latest";
    let lab = lab("key = []", &raw, &curated, sql);
    let columns = ["Op", "v", "note", "event", "ts"];
    let at = "2020-01-05 00:00:00";
    let one: [&[&str]; 3] = [
        &["I", "1", "a", at, at],
        &["I", "1", "a", at, at],
        &["I", "5000000000", "b", at, at],
    ];
    lab.put("raw/20200101-000000000.parquet", changes(&columns, &one));
    let two: [&[&str]; 2] = [&["I", "0", "z", at, at], &["U", "3", "d", at, at]];
    lab.put("raw/20200102-000000000.parquet", changes(&columns, &two));
    let load = changes(
        &["v", "note", "event", "ts"],
        &[&["7", "l", "2020-01-06 00:00:00", at]],
    );
    lab.put("raw/LOAD00000001.parquet", load);
    lab
}

#[test]
fn a_table_without_a_key_gets_each_row_once() {
    for format in ["format = \"parquet\"", "format = \"delta\""] {
        let lab = keyless(format);
        let of_day =
            |rows: &[&str]| -> Vec<String> { rows.iter().map(|row| row.to_string()).collect() };
        let columns = ["v", "note", "event_dt"];
        let first = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!(
            (first.rows_latest, first.rows_rejected, first.files),
            (3, 1, 2)
        );
        let held = ["1 a 2020-01-05", "1 a 2020-01-05", "7 l 2020-01-06"];
        assert_eq!(told(&lab, &columns), of_day(&held));
        // Again, and overlapping: nothing comes twice.
        let again = lab.run("2020-01-01", "2020-01-02").expect("a run");
        assert_eq!((again.files, again.rows_written), (0, 0));
        let second = lab.run(START, END).expect("a run");
        assert_eq!(
            (second.files, second.rows_read, second.rows_rejected),
            (1, 2, 1)
        );
        let held = [
            "0 z 2020-01-05",
            "1 a 2020-01-05",
            "1 a 2020-01-05",
            "7 l 2020-01-06",
        ];
        assert_eq!(told(&lab, &columns), of_day(&held));
        // What can be read now is added, the rest of its file is not.
        let caught_up = lab
            .catch_up(&["raw.columns={v = \"bigint\"}"])
            .expect("caught up");
        assert_eq!((caught_up.rows_latest, caught_up.rows_rejected), (1, 1));
        let held = [&held[..3], &["5000000000 b 2020-01-05", "7 l 2020-01-06"]].concat();
        assert_eq!(told(&lab, &columns), of_day(&held));
        let caught_up = lab
            .catch_up(&["raw.columns={v = \"bigint\"}"])
            .expect("caught up");
        assert_eq!((caught_up.rows_latest, caught_up.rows_rejected), (0, 1));
        assert_eq!(told(&lab, &columns), of_day(&held));
        let daily: Vec<String> = lab
            .table("lake/daily")
            .iter()
            .map(|row| format!("{} {}", row["dt"], row["n"]))
            .collect();
        assert_eq!(daily, ["2020-01-05 4", "2020-01-06 1"]);
        lab.rebuild(false, &["raw.columns={v = \"bigint\"}"])
            .expect("rebuilt");
        assert_eq!(told(&lab, &columns), of_day(&held));
        lab.assert_tidy();
    }
}

#[test]
fn catching_up_without_a_key_takes_no_row_twice() {
    let lab = keyless("");
    let at = "2020-01-05 00:00:00";
    let rows: [&[&str]; 2] = [
        &["I", "1000", "x", at, at],
        &["I", "6000000000", "y", at, at],
    ];
    let columns = ["Op", "v", "note", "event", "ts"];
    lab.put("raw/20200103-000000000.parquet", changes(&columns, &rows));
    lab.run(START, END).expect("a run");
    let before = told(&lab, &["v", "note"]);
    // Rows of the table that could not be read now are not looked at.
    for columns in [
        "raw.columns={v = \"tinyint\"}",
        "raw.columns={v = \"integer\"}",
    ] {
        lab.catch_up(&[columns]).expect("caught up");
        assert_eq!(told(&lab, &["v", "note"]), before);
    }
    let report = lab
        .catch_up(&["raw.columns={v = \"bigint\"}"])
        .expect("caught up");
    assert_eq!(report.rows_latest, 2);
    assert_eq!(told(&lab, &["v"]).len(), before.len() + 2);
    // Nothing is missed of what is not read again.
    let again = lab.run(START, END).expect("a run");
    assert_eq!(again.note.as_deref(), Some("no inputs in the window"));
}

#[test]
fn versions_of_a_table_without_a_key_are_put_together() {
    let lab = keyless("");
    let at = "2020-01-05 00:00:00";
    for hour in 0..24 {
        let rows = changes(
            &["Op", "v", "note", "event", "ts"],
            &[&["I", "1", "x", at, at]],
        );
        lab.put(&format!("raw/20200110-{hour:02}0000000.parquet"), rows);
        let start = format!("2020-01-10T{hour:02}:00:00Z");
        let end = format!("2020-01-10T{hour:02}:30:00Z");
        lab.run(&start, &end).expect("a run");
    }
    let versions = lab.list_all("lake/_glueless/shapes/versions");
    let versions = versions
        .iter()
        .filter(|path| path.starts_with("kind=version/"));
    assert!(versions.count() < 24);
    let daily: Vec<String> = lab
        .table("lake/daily")
        .iter()
        .map(|row| format!("{} {}", row["dt"], row["n"]))
        .collect();
    assert_eq!(daily, ["2020-01-05 24", "2020-01-06 1"]);
    assert_eq!(told(&lab, &["v"]).len(), 25);
}

#[test]
fn columns_that_differ_in_case_alone_are_refused() {
    let lab = lab(KEY, URL, "", SQL);
    let columns = ["id", "v", "note", "Note", "ts"];
    let file = changes(&columns, &[&["1", "1", "a", "b", "2020-01-01 00:00:00"]]);
    let failed = days(&lab, &[file], true).expect_err("refused");
    assert_refused(
        failed,
        65,
        "columns `note` and `Note` of",
        "rename one of them",
    );
}

#[test]
fn times_with_a_zone_keep_their_instant() {
    let raw = format!(
        "{URL}\ntime_zone = \"America/New_York\"\nevent_time = \"event\"\nformat = \"csv\"
[raw.columns]
id = \"BIGINT\"
v = \"BIGINT\"
event = \"TIMESTAMP WITH TIME ZONE\"
ts = \"TIMESTAMP\"
Op = \"VARCHAR\""
    );
    let sql = "SELECT CAST(id AS BIGINT) AS id, event_dt FROM latest";
    let lab = lab(KEY, &raw, "", sql);
    let text = "1,1,2020-01-01 23:30:00Z,2020-01-01 00:00:00,I
2,1,2020-01-01 23:30:00-05:00,2020-01-01 00:00:00,I
";
    lab.put("raw/20200101-000000000.csv", text.into());
    lab.run(START, END).expect("a run");
    assert_eq!(
        told(&lab, &["id", "event_dt"]),
        ["1 2020-01-01", "2 2020-01-02"]
    );
    let set = ["raw.columns.event=timestamp"];
    let failed = lab
        .run_with(Task::Run, START, END, &set)
        .expect_err("a zone is lost");
    assert_refused(
        failed,
        65,
        "column `event` is not of its type",
        "[raw.columns]",
    );
}

#[test]
fn csv_and_parquet_of_the_same_changes_give_the_same_table() {
    let text = prop::option::of("[a,\"\n ]{0,4}");
    let change = (
        "[IUD]",
        0i64..6,
        prop::option::of(any::<i64>()),
        text,
        0u32..3,
    );
    let files = prop::collection::vec(prop::collection::vec(change, 0..8), 1..5);
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&files, |files| {
            let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, note FROM latest";
            let csv = lab(KEY, &format!("{URL}{COLUMNS}"), "", sql);
            let parquet = lab(KEY, URL, "", sql);
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
                    // A file without anything in it is none.
                    text = "\n".into();
                }
                csv.put(&format!("{name}.csv"), text.into());
                let bytes = changes_of(&["Op", "id", "v", "note", "ts"], &cells);
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
    let lab = keyless("");
    for op in ["U", "D", "u"] {
        let row: &[&str] = &[op, "1", "a", "2020-01-05 00:00:00", "2020-01-05 00:00:00"];
        lab.put(
            "raw/20200102-000000000.parquet",
            changes(&["Op", "v", "note", "event", "ts"], &[row]),
        );
        let failed = lab.run_with(Task::Run, "2020-01-02", END, &["raw.on_bad_row=fail"]);
        let failed = failed.expect_err("refused");
        assert_refused(failed, 65, "row 1 of", "name the primary key in `key`");
    }
}

#[test]
fn windows_of_rows_need_a_key() {
    let lab = keyless("");
    let failed = lab.run_with(Task::Run, START, END, &["raw.window_by=commit"]);
    let failed = failed.expect_err("refused");
    assert_refused(
        failed,
        2,
        "`raw.window_by` cannot be `commit`",
        "select files",
    );
}

/// Folds these files, one per day, in one run, or one after the other.
fn days(lab: &Lab, files: &[Vec<u8>], at_once: bool) -> Result<Vec<Report>> {
    for (day, bytes) in (1..).zip(files) {
        lab.put(
            &format!("raw/202001{day:02}-000000000.parquet"),
            bytes.clone(),
        );
    }
    if at_once {
        return Ok(vec![lab.run(START, END)?]);
    }
    (1..=files.len())
        .map(|day| {
            lab.run(
                &format!("2020-01-{day:02}"),
                &format!("2020-01-{:02}", day + 1),
            )
        })
        .collect()
}

fn schema_changes(reports: &[Report]) -> Vec<String> {
    let changes = reports.iter().flat_map(|report| &report.schema_changes);
    changes
        .map(|change| {
            let text = change.to_string();
            let (what, place) = text.rsplit_once(" in ").expect("a place");
            format!("{what} in {}", place.rsplit_once('/').expect("a folder").1)
        })
        .collect()
}

#[test]
fn the_report_lists_how_columns_changed() {
    let columns = ["Op", "id", "v", "note", "ts"];
    let others = ["Op", "ID", "ts", "v", "more"];
    // The second file's ID is text: it is made a number.
    let files = [
        changes(&columns, &[&["I", "1", "1", "x", "2020-01-01 00:00:00"]]),
        changes(&others, &[&["I", "2", "2020-01-02 00:00:00", "2", "z"]]),
        changes(&columns, &[&["I", "3", "3", "x", "2020-01-03 00:00:00"]]),
    ];
    let raw = format!("{URL}\n[raw.columns]\nid = \"BIGINT\"");
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
        let lab = lab(KEY, &raw, "", SQL);
        let reports = days(&lab, &files, at_once).expect("runs");
        assert_eq!(schema_changes(&reports), expected, "{at_once}");
        assert_eq!(told(&lab, &["id", "v"]), ["1 1", "2 2", "3 3"]);
        let again = lab.run("2020-01-03", "2020-01-04").expect("a run");
        assert_eq!(schema_changes(&[again]), Vec::<String>::new());
    }
}

#[test]
fn a_column_that_vanished_is_null() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, note FROM latest";
    let files = [
        changes(
            &["id", "v", "note", "ts"],
            &[&["1", "1", "x", "2020-01-01 00:00:00"]],
        ),
        changes(&["id", "v", "ts"], &[&["2", "2", "2020-01-02 00:00:00"]]),
    ];
    for at_once in [true, false] {
        let lab = lab(KEY, URL, "", sql);
        days(&lab, &files, at_once).expect("runs");
        assert_eq!(told(&lab, &["id", "v", "note"]), ["1 1 x", "2 2 -"]);
    }
}

#[test]
fn types_that_have_nothing_in_common_stop_the_run_unless_one_is_fixed() {
    let text_v = |v: &str| changes(&["id", "V", "ts"], &[&["2", v, "2020-01-02 00:00:00"]]);
    let number = changes(&["id", "v", "ts"], &[&["1", "1", "2020-01-01 00:00:00"]]);
    let at_once = lab(KEY, URL, "", SQL);
    let failed = days(&at_once, &[number.clone(), text_v("7")], true).expect_err("refused");
    assert_refused(failed, 65, "column `V` is Int64 in", "`[raw.columns]`");
    let lab = lab(KEY, URL, "", SQL);
    let failed = days(&lab, &[number, text_v("7")], false).expect_err("refused");
    assert_refused(
        failed,
        65,
        "and was Int64 in earlier runs",
        "`[raw.columns]`",
    );
    let fixed = ["raw.columns={v = \"bigint\"}"];
    lab.run_with(Task::Run, START, END, &fixed).expect("a run");
    assert_eq!(told(&lab, &["id", "v"]), ["1 1", "2 7"]);
    // A value that is no number is found wherever it is, also where another one wins.
    lab.put("raw/20200104-000000000.parquet", text_v("seven"));
    lab.put(
        "raw/20200105-000000000.parquet",
        changes(&["id", "v", "ts"], &[&["2", "8", "2020-01-05 00:00:00"]]),
    );
    let failed = lab
        .run_with(Task::Run, START, END, &fixed)
        .expect_err("refused");
    assert_refused(
        failed,
        65,
        "column `v` does not fit Int64",
        "mend the value",
    );
    // One that is declared needs no file that has it.
    let declared = "raw.columns={v = \"varchar\", vv = \"bigint\"}";
    let sql = "SELECT CAST(id AS BIGINT) AS id, vv AS v FROM latest";
    std::fs::write(lab.pipeline.join("curated.sql"), sql).expect("written");
    let elsewhere = format!("curated.url={}/other/curated", lab.base);
    lab.run_with(Task::Run, START, END, &[declared, &elsewhere])
        .expect("a run");
    assert!(
        lab.table("other/curated")
            .iter()
            .all(|row| !row.contains_key("v"))
    );
}

#[test]
fn a_column_more_in_the_query_evolves_a_delta_table_and_needs_a_rebuild_of_others() {
    let file = |id: &str| {
        changes(
            &["id", "v", "note", "ts"],
            &[&[id, "1", "x", "2020-01-01 00:00:00"]],
        )
    };
    let more = "SELECT note, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest";
    let other = "SELECT note, CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) + 1 AS v FROM latest";
    let fewer = "SELECT note, CAST(id AS BIGINT) AS id FROM latest";
    let query = |lab: &Lab, sql: &str| {
        std::fs::write(lab.pipeline.join("curated.sql"), sql).expect("written");
    };
    for format in ["parquet", "delta"] {
        let lab = lab(KEY, URL, &format!("format = \"{format}\""), SQL);
        days(&lab, &[file("1")], true).expect("a run");
        lab.put("raw/20200102-000000000.parquet", file("2"));
        query(&lab, more);
        let grown = lab.run("2020-01-02", "2020-01-03");
        if format == "delta" {
            grown.expect("the table gets a column");
            assert_eq!(told(&lab, &["id", "v", "note"]), ["1 1 -", "2 1 x"]);
            let read = lab
                .read_with("deltalake", "lake/curated", None)
                .expect("read");
            assert_eq!(read.1.len(), 2);
            for sql in [other, fewer, SQL] {
                query(&lab, sql);
                let failed = lab.run("2020-01-02", "2020-01-03").expect_err("refused");
                assert_refused(failed, 2, "`curated.sql` changed", "glueless rebuild");
            }
            query(&lab, more);
        } else {
            assert_refused(
                grown.expect_err("refused"),
                2,
                "`curated.sql` changed",
                "glueless rebuild",
            );
        }
        lab.rebuild(false, &[]).expect("rebuilt");
        let rows = told(&lab, &["id", "v", "note"]);
        assert_eq!(rows[0], "1 1 x", "{rows:?}");
    }
}

#[test]
fn a_tie_stops_the_run_where_the_pipeline_says_so() {
    let at = "2020-01-01 00:00:00";
    let file = |v: &[&str]| {
        let rows: Vec<[&str; 3]> = v.iter().map(|v| ["1", *v, at]).collect();
        let rows: Vec<&[&str]> = rows.iter().map(|row| &row[..]).collect();
        changes(&["id", "v", "ts"], &rows)
    };
    for keep in ["latest", "latest-per-day"] {
        let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, event_dt FROM latest";
        let top = format!("{KEY}\nkeep = \"{keep}\"");
        let within = lab(&top, &format!("{URL}\non_tie = \"fail\""), "", sql);
        let failed = days(&within, &[file(&["1", "2"])], true).expect_err("a tie");
        assert_refused(
            failed,
            65,
            "20200101-000000000.parquet has the same order columns",
            "raw.order_by",
        );
        assert!(within.list("lake/curated").is_empty());
        let across = lab(&top, &format!("{URL}\non_tie = \"fail\""), "", sql);
        let failed = days(&across, &[file(&["1"]), file(&["2"])], false).expect_err("a tie");
        assert_refused(failed, 65, "row 1 of", "raw.on_tie");
        // The same rows again are no tie.
        across.run("2020-01-01", "2020-01-02").expect("a run");
        let by_row = ["raw.on_tie=row"];
        let report = across
            .run_with(Task::Run, START, END, &by_row)
            .expect("a run");
        assert_eq!(
            (report.ties, told(&across, &["v"])),
            (1, vec!["2".to_string()])
        );
    }
}

#[test]
fn text_and_numbers_order_changes_and_an_empty_sequence_comes_first() {
    let lab = lab(KEY, &format!("{URL}\ncommit_time = \"ts\""), "", SQL);
    let at = "2020-01-01 00:00:00";
    let sequence = |number: u64| format!("2020010100000000{number:019}");
    let (early, late) = (sequence(9), sequence(10));
    lab.put(
        "raw/LOAD1.parquet",
        changes(
            &["id", "v", "seq", "ts"],
            &[&["1", "0", "", "2020-01-09 00:00:00"]],
        ),
    );
    let rows: [&[&str]; 2] = [&["U", "1", "2", &late, at], &["U", "1", "1", &early, at]];
    lab.put(
        "raw/20200101-000000000.parquet",
        changes(&["Op", "id", "v", "seq", "ts"], &rows),
    );
    let set = ["raw.order_by=[\"seq\"]"];
    let report = lab.run_with(Task::Run, START, END, &set).expect("a run");
    assert_eq!(
        (told(&lab, &["v"]), report.ties),
        (vec!["2".to_string()], 0)
    );
}
