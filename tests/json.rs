//! Raw files in JSON: an object a line.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Event, EventRow, Lab, LabBuilder, PLACES, Place, Task, assert_folds_in_little_memory,
    assert_refused, events_json, events_parquet, file_of_rows, gzip, raw_file,
};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";

const SQL: &str =
    "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, CAST(note AS VARCHAR) AS note,
    event_dt FROM latest";

fn builder() -> LabBuilder {
    Lab::builder().set("raw.format", "json").partition_by(&["event_dt"]).curated_sql(SQL)
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v", "note", "event_dt"])
}

/// A full load and two files of changes, compressed in different ways.
fn put_changes(lab: &Lab) {
    let load = r#"{"id":1,"v":10,"note":"one","ts":"2020-01-09 00:00:00"}
        {"id":2,"v":20,"note":"two","ts":"2020-01-09 00:00:00"}"#;
    lab.put("raw/LOAD00000001.json", load);
    let first = r#"{"Op":"U","id":1,"v":11,"ts":"2020-01-02 10:00:00.000001"}
        {"Op":"I","id":3,"v":30,"note":"","ts":"2020-01-02T10:00:00.000001Z"}"#;
    lab.put("raw/20200102-100000000.jsonl.gz", gzip(first));
    let second = r#"{"Op":"D","id":2,"ts":"2020-01-03 10:00:00"}
        {"Op":"I","id":4,"v":null,"note":"a\nb","ts":"2020-01-03 10:00:00"}"#;
    let zst = zstd::encode_all(second.as_bytes(), 3).expect("compressed");
    lab.put("raw/2020/20200103-100000000.ndjson.zst", zst);
    // Empty files are empty.
    lab.put("raw/20200104-100000000.json", "");
    lab.put("raw/20200105-100000000.json.gz", gzip("\n"));
}

#[test]
fn json_files_are_folded_compressed_or_not_in_any_windows() {
    let expected = ["1 11 - 2020-01-02", "3 30  2020-01-02", "4 - a\nb 2020-01-03"];
    for place in PLACES {
        let whole = builder().place(place).build();
        put_changes(&whole);
        let report = whole.run(START, END).expect("a run");
        assert_eq!((report.files, report.rows_read, report.rows_deleted), (5, 6, 1));
        assert_eq!(curated(&whole), expected);
        assert!(report.schema_changes.is_empty(), "{:?}", report.schema_changes);
        // Day by day with the last days first, and everything once more.
        let daily = builder().place(place).build();
        put_changes(&daily);
        for day in [5, 4, 3, 2, 1] {
            daily.run_days(day, day + 1);
        }
        daily.run(START, END).expect("a run");
        assert_eq!(curated(&daily), expected);
        daily.assert_verified();
        daily.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(curated(&daily), expected);
        daily.assert_tidy();
    }
}

#[test]
fn a_window_of_empty_files_only_changes_nothing_and_is_recorded() {
    let lab = builder().build();
    lab.put("raw/20200104-100000000.json", "");
    lab.put("raw/20200104-110000000.json", "\n\n");
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.files, report.rows_read), (2, 0));
    assert_eq!(report.note.as_deref(), Some("the inputs of the window have no rows"));
    assert_eq!(lab.folded_inputs().len(), 2);
    let planned = lab.plan(START, END, true).expect("a plan");
    assert_eq!(planned.fold.expect("a fold").rows_read, 0);
    let line = r#"{"id":1,"v":1,"note":"a","ts":"2020-01-05"}"#;
    lab.put("raw/20200105-000000000.json", line);
    lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["1 1 a 2020-01-05"]);
    lab.assert_verified();
}

#[test]
fn json_on_a_far_store_and_with_little_memory_gives_the_same_rows() {
    let mut text = String::new();
    for row in 0..60_000 {
        let (id, note) = (row % 20_000, "x".repeat(row % 97));
        let late = if row == 59_999 { ",\"late\":true" } else { "" };
        text += &format!(
            "{{\"Op\":\"U\",\"id\":{id},\"v\":{row},\"note\":\"{note}\",\"ts\":\"2020-01-02 10:00:00\"{late}}}\n"
        );
    }
    assert_folds_in_little_memory(&builder(), "json.gz", &text);
}

#[test]
fn types_of_files_widen_or_stop_the_run_in_any_order() {
    let line = |id: i64, v: &str| {
        format!("{{\"id\":{id},\"v\":{v},\"note\":null,\"ts\":\"2020-01-02 10:00:00\"}}")
    };
    for (first, second, is_refused) in [
        ("1", "9223372036854775808", false),
        ("1", "null", false),
        ("1", "\"x\"", true),
        ("1", "1.5", true),
    ] {
        let sql = SQL.replace("CAST(v AS BIGINT)", "CAST(v AS VARCHAR)");
        let lab = || {
            let lab = builder().curated_sql(&sql).build();
            lab.put("raw/20200102-000000000.json", line(1, first));
            lab.put("raw/20200103-000000000.json", line(2, second));
            lab
        };
        let days = |lab: &Lab, days: [i64; 2]| {
            days.map(|day| {
                let (start, end) = (format!("2020-01-{day:02}"), format!("2020-01-{:02}", day + 1));
                lab.run(&start, &end)
            })
        };
        let whole = lab();
        let run = whole.run(START, END);
        assert_eq!(run.is_err(), is_refused, "{second}");
        if let Err(error) = run {
            assert_refused(error, 65, "column `v` is ", "[raw.columns]");
        }
        for order in [[2, 3], [3, 2]] {
            let lab = lab();
            let [one, two] = days(&lab, order);
            one.expect("a run");
            match two {
                Ok(_) => assert_eq!(curated(&lab), curated(&whole)),
                Err(error) => assert_refused(error, 65, "column `v` is ", "glueless rebuild"),
            }
        }
    }
}

#[test]
fn bad_lines_are_refused_or_put_aside_with_their_number() {
    let at = "2020-01-02 10:00:00";
    let text = format!(
        r#"{{"Op":"I","id":1,"v":1,"ts":"{at}"}}
{{"Op":"I","id":2,"v":"x","ts":"{at}"}}
["I",3]

{{"Op":"X","id":4,"ts":"{at}"}}
{{"Op":"I","id":5,"v":NaN,"ts":"{at}"}}
{{}}
{{"Op":"I","id":6,"v":6,"ts":"{at}"}}
{{"Op":"I","id":7"#
    );
    for place in PLACES {
        let lab =
            builder().place(place).raw_columns(&[("v", "BIGINT"), ("note", "VARCHAR")]).build();
        lab.put("raw/20200102-000000000.json", text.clone());
        let error = lab.run(START, END).expect_err("bad");
        assert_refused(error, 65, "line 3 of", "jq -c");
        lab.edit_pipeline("[raw]", "[raw]\non_bad_row = \"quarantine\"");
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_read, report.rows_rejected), (8, 6));
        assert_eq!(curated(&lab), ["1 1 - 2020-01-02", "6 6 - 2020-01-02"]);
        let folder = report.quarantine.expect("a folder");
        let path = folder.rsplit_once("/lake/").expect("below the lake").1;
        let mut found =
            lab.lines(&format!("lake/{path}"), ["row", "line", "column", "reason", "change"]);
        found.sort();
        assert_eq!(
            found,
            [
                format!("2 2 v does not fit its type, Int64 {{\"Op\":\"I\",\"id\":\"2\",\"ts\":\"{at}\",\"v\":\"x\"}}"),
                r#"3 3 - is an array, not an object ["I",3]"#.to_string(),
                format!("4 - Op is none of I, U, D, T {{\"Op\":\"X\",\"id\":\"4\",\"ts\":\"{at}\"}}"),
                format!(
                    "5 6 v is not valid JSON at character 22: expected value {{\"line\":\"{{\\\"Op\\\":\\\"I\\\",\\\"id\\\":5,\\\"v\\\":NaN,\\\"ts\\\":\\\"{at}\\\"}}\"}}"
                ),
                "6 - ts is null {}".to_string(),
                "8 9 - is cut off: the file ends inside of an object {\"line\":\"{\\\"Op\\\":\\\"I\\\",\\\"id\\\":7\"}".to_string(),
            ]
        );
    }
}

#[test]
fn a_file_of_bad_lines_only_is_put_aside_line_by_line() {
    let lab = builder().set("raw.on_bad_row", "quarantine").build();
    lab.put("raw/20200102-000000000.json", "[\n]\n");
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.rows_read, report.rows_rejected), (2, 2));
    put_changes(&lab);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(report.rows_rejected, 2);
    assert_eq!(curated(&lab).len(), 3);
}

#[test]
fn a_column_without_one_type_makes_a_bad_file() {
    let lab = builder().set("raw.on_bad_file", "quarantine").build();
    put_changes(&lab);
    let text =
        "{\"id\":8,\"v\":1,\"ts\":\"2020-01-06\"}\n{\"id\":9,\"v\":\"x\",\"ts\":\"2020-01-06\"}\n";
    lab.put("raw/20200106-000000000.json", text);
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.files_rejected, report.rows_latest), (1, 3));
    let columns = ["raw.columns={v = \"VARCHAR\"}"];
    lab.catch_up(&columns).expect_err("`x` is no number, and the table's `v` is one");
}

#[test]
fn a_folder_of_other_files_is_refused_and_an_empty_one_is_not() {
    for place in PLACES {
        let lab = builder().place(place).set("raw.window_by", "name").build();
        lab.put("raw/_SUCCESS", "");
        lab.run(START, END).expect("an empty window");
        lab.put("raw/2020/01/02/20200102-000000000.avro", "x");
        let error = lab.run(START, END).expect_err("other files");
        assert_refused(
            error,
            2,
            "has only files that are not named as Parquet, CSV or JSON files",
            "raw.format",
        );
        // Of another month than the window.
        lab.put("raw/2020/03/02/20200302-000000000.csv", "x");
        for window in [(START, END), ("2020-03-01", "2020-04-01")] {
            let error = lab.run(window.0, window.1).expect_err("CSV files");
            assert_refused(error, 2, "is not a file of the format `json`", "raw.format = \"csv\"");
        }
        lab.remove("raw/2020/03/02/20200302-000000000.csv");
        lab.put("raw/2020/03/02/20200302-000000000.json", "");
        lab.run(START, END).expect("an empty window");
    }
}

#[test]
fn a_format_that_no_file_has_is_refused_after_a_run_too() {
    let lab = builder().build();
    put_changes(&lab);
    lab.run(START, END).expect("a run");
    let failed = lab.run_with(Task::Run, START, END, &["raw.format=parquet"]);
    let failed = failed.expect_err("another format");
    assert_refused(failed, 2, "is not a file of the format `parquet`", "raw.format = \"json\"");
}

#[test]
fn json_and_other_files_do_not_mix() {
    let lab = builder().build();
    put_changes(&lab);
    lab.put(&raw_file(4), file_of_rows(&["id"], &[["1"]]));
    let failed = lab.run(START, END).expect_err("mixed");
    assert_refused(failed, 2, "is not a file of the format `json`", "raw.format = \"parquet\"");
    // JSON files may be about other files; alone they are changes.
    lab.run_with(Task::Run, START, END, &["raw.format=parquet"]).expect_err("no `ts`");
    lab.remove(&raw_file(4));
    let failed = lab.run_with(Task::Run, START, END, &["raw.format=parquet"]);
    assert_refused(
        failed.expect_err("JSON"),
        2,
        "of the format `parquet`",
        "raw.format = \"json\"",
    );
    let failed = lab.run_with(Task::Run, START, END, &["raw.csv_null=x"]).expect_err("no CSV");
    assert_refused(failed, 2, "`raw.csv_null` is for CSV files", "raw.format = \"csv\"");
}

/// Changes: operation, key, value, and a text.
type Change = (char, i64, Option<i64>, Option<String>);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let op = prop::sample::select(vec!['I', 'U', 'D']);
    let text = prop::option::of("[a\"\\\\,\n{}ä: ]{0,6}");
    prop::collection::vec((op, 0i64..6, prop::option::of(any::<i64>()), text), 1..30)
}

/// The raw file with the given number, in a format, plain or of envelopes.
fn file_in((format, is_debezium): (&str, bool), number: usize, rows: &[Change]) -> Vec<u8> {
    let at = |row: usize| format!("2020-01-{:02} 10:00:{:02}", number + 1, row / 2);
    let rows = rows.iter().enumerate();
    if is_debezium {
        let events: Vec<Event> = rows
            .map(|(row, (op, id, v, note))| {
                let day_ms = 1_577_836_800_000 + number as i64 * 86_400_000;
                let ts_ms = day_ms + 36_000_000 + (row / 2) as i64 * 1000;
                let values: EventRow = (*id, *v, note.clone());
                match op {
                    'D' => (Some("d"), Some((*id, None, None)), None, ts_ms),
                    'U' => (Some("u"), None, Some(values), ts_ms),
                    _ if row % 2 == 0 => (Some("r"), None, Some(values), ts_ms),
                    _ => (Some("c"), None, Some(values), ts_ms),
                }
            })
            .collect();
        return match format {
            "json" => events_json(&events).into_bytes(),
            _ => events_parquet(&events),
        };
    }
    match format {
        "parquet" => {
            let rows: Vec<[String; 5]> = rows
                .map(|(row, (op, id, v, note))| {
                    let v = v.map_or("-".into(), |v| v.to_string());
                    let note = note.clone().unwrap_or("-".into());
                    [op.to_string(), id.to_string(), v, note, at(row)]
                })
                .collect();
            file_of_rows(&["Op", "id", "v", "note", "ts"], &rows)
        }
        "csv" => {
            let lines = rows.map(|(row, (op, id, v, note))| {
                let v = v.map_or(String::new(), |v| v.to_string());
                let quoted = |note: &String| format!("\"{}\"", note.replace('"', "\"\""));
                let note = note.as_ref().map_or(String::new(), quoted);
                format!("{op},{id},{v},{note},{}\n", at(row))
            });
            lines.collect::<String>().into_bytes()
        }
        _ => {
            let lines = rows.map(|(row, (op, id, v, note))| {
                let line = serde_json::json!({
                    "Op": op.to_string(), "id": id, "v": v, "note": note, "ts": at(row)
                });
                format!("{line}\n")
            });
            lines.collect::<String>().into_bytes()
        }
    }
}

#[test]
fn the_same_changes_in_every_format_give_the_same_table() {
    let config = Config { cases: 6, ..Default::default() };
    let mut runner = TestRunner::new(config);
    let run = |changes: Vec<Change>| {
        let files: Vec<&[_]> = changes.chunks(7).collect();
        let mut tables = Vec::new();
        let forms = [
            ("parquet", false),
            ("csv", false),
            ("json", false),
            ("json", true),
            ("parquet", true),
        ];
        for form in forms {
            let (format, is_debezium) = form;
            let mut builder = builder().set("raw.format", format).place(Place::Local);
            if is_debezium {
                builder = builder.set("raw.dialect", "debezium").set("raw.order_by", vec!["ts_ms"]);
            }
            if format == "csv" {
                builder = builder.raw_columns(&[
                    ("Op", "VARCHAR"),
                    ("id", "BIGINT"),
                    ("v", "BIGINT"),
                    ("note", "VARCHAR"),
                    ("ts", "TIMESTAMP"),
                ]);
            }
            let lab = builder.build();
            for (number, rows) in files.iter().enumerate() {
                let path = format!("raw/202001{:02}-000000000.{format}", number + 1);
                lab.put(&path, file_in(form, number, rows));
            }
            // The later half first.
            lab.run_days(3, 10);
            lab.run_days(1, 3);
            lab.assert_verified();
            tables.push(lab.table("lake/curated"));
        }
        for (table, form) in tables.iter().zip(forms) {
            assert_eq!(tables[0], *table, "{form:?}");
        }
        Ok(())
    };
    runner.run(&changes(), run).expect("equal tables");
}

#[test]
fn a_field_that_is_an_object_and_another_value_is_refused_and_may_be_declared() {
    let cases = [(["{\"a\":1}", "\"x\""], ["1 {\"a\":1}", "2 x"]), (["7", "{}"], ["1 7", "2 {}"])];
    for (values, expected) in cases {
        let lab = Lab::builder()
            .set("raw.format", "json")
            .partition_by(&[])
            .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS VARCHAR) AS v FROM latest")
            .build();
        let lines = (1..).zip(values).map(|(id, value)| {
            format!("{{\"id\":{id},\"v\":{value},\"ts\":\"2020-01-01 00:00:00\"}}\n")
        });
        lab.put("raw/20200101-100000000.json", lines.collect::<String>());
        let error = lab.run(START, END).expect_err("two kinds");
        assert_refused(error, 65, "column `v` is an object in a line of", "VARCHAR");
        let set = ["raw.columns={v = \"VARCHAR\"}"];
        lab.run_with(Task::Run, START, END, &set).expect("a run");
        assert_eq!(lab.lines("lake/curated", ["id", "v"]), expected);
    }
}
