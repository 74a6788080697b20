//! Raw files of Debezium: envelopes as lines of JSON, and as structs in Parquet.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, ListBuilder, MapBuilder, StringBuilder, StructArray,
};
use arrow::datatypes::Field;
use toml::Table;

use crate::support::{
    Event, EventRow, Lab, LabBuilder, PLACES, Report, Task, assert_refused, events_json,
    events_parquet, file_of_columns, integers, texts,
};

const START: &str = "2024-01-01";
const END: &str = "2024-02-01";
const MARK: &str = "__debezium_unavailable_value";
const FORMATS: [&str; 2] = ["json", "parquet"];

const SQL: &str =
    "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v, CAST(note AS VARCHAR) AS note,
    event_dt FROM latest";

fn builder(format: &str) -> LabBuilder {
    Lab::builder()
        .set("raw.format", format)
        .set("raw.dialect", "debezium")
        .set("raw.order_by", vec!["ts_ms"])
        .partition_by(&["event_dt"])
        .curated_sql(SQL)
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v", "note", "event_dt"])
}

/// A time of January 2024, in milliseconds since 1970.
fn at(day: i64, ms: i64) -> i64 {
    1_704_067_200_000 + (day - 1) * 86_400_000 + ms
}

fn row(id: i64, v: i64, note: &str) -> Option<EventRow> {
    Some((id, Some(v), Some(note.to_string())))
}

fn key(id: i64) -> Option<EventRow> {
    Some((id, None, None))
}

fn put(lab: &Lab, format: &str, day: i64, events: &[Event]) {
    let bytes = match format {
        "json" => events_json(events).into_bytes(),
        _ => events_parquet(events),
    };
    lab.put(&format!("raw/202401{day:02}-100000000.{format}"), bytes);
}

/// A snapshot, changes with tombstones and a message, and another snapshot.
fn put_changes(lab: &Lab, format: &str) {
    put(
        lab,
        format,
        2,
        &[
            (Some("r"), None, row(1, 10, "a"), at(2, 0)),
            (Some("r"), None, row(2, 20, "b"), at(2, 0)),
            (Some("c"), None, row(3, 30, "c"), at(2, 5)),
            (Some("u"), row(3, 30, "c"), row(3, 31, "c"), at(2, 5)),
            (Some("m"), None, None, at(2, 6)),
        ],
    );
    put(
        lab,
        format,
        3,
        &[
            (Some("d"), key(2), None, at(3, 0)),
            (None, None, None, 0),
            (Some("u"), key(1), row(9, 11, "a moved"), at(3, 1)),
            (Some("c"), None, row(4, 40, "d"), at(3, 2)),
        ],
    );
    // A snapshot that was taken again: what the connector has missed comes with it.
    put(lab, format, 4, &[(Some("r"), None, row(4, 44, "d again"), at(4, 0))]);
}

const EXPECTED: [&str; 3] =
    ["3 31 c 2024-01-02", "4 44 d again 2024-01-04", "9 11 a moved 2024-01-03"];

#[test]
fn envelopes_are_folded_in_any_windows() {
    for place in PLACES {
        for format in FORMATS {
            let whole = builder(format).place(place).build();
            put_changes(&whole, format);
            let report = whole.run(START, END).expect("a run");
            assert_eq!(curated(&whole), EXPECTED, "{format}");
            let counts =
                (report.rows_read, report.rows_ignored, report.rows_deleted, report.key_moves);
            assert_eq!(counts, (10, 2, 2, 1), "{format}");
            assert_eq!(report.note, None, "no warning that key updates cannot be seen");
            let daily = builder(format).place(place).build();
            put_changes(&daily, format);
            for day in [4, 3, 2] {
                let (start, end) = (format!("2024-01-{day:02}"), format!("2024-01-{:02}", day + 1));
                daily.run(&start, &end).expect("a run");
            }
            assert_eq!(curated(&daily), EXPECTED, "{format}");
            let before = daily.contents("lake/curated");
            daily.run(START, END).expect("a run");
            assert_eq!(daily.contents("lake/curated"), before);
            daily.assert_verified();
            daily.rebuild(false, &[]).expect("rebuilt");
            assert_eq!(curated(&daily), EXPECTED, "{format}");
            daily.assert_tidy();
        }
    }
}

#[test]
fn windows_may_select_changes_by_their_time() {
    for format in FORMATS {
        let lab = builder(format).window_by("commit").build();
        put_changes(&lab, format);
        for day in [3, 4, 2] {
            let (start, end) = (format!("2024-01-{day:02}"), format!("2024-01-{:02}", day + 1));
            lab.run(&start, &end).expect("a run");
        }
        assert_eq!(curated(&lab), EXPECTED, "{format}");
        lab.assert_verified();
    }
}

#[test]
fn a_payload_beside_its_schema_is_the_envelope() {
    let lab = builder("json").build();
    let schema = r#"{"type":"struct","fields":[{"field":"op","type":"string"}]}"#;
    let text = format!(
        "{{\"schema\":{schema},\"payload\":{{\"before\":null,\"after\":{{\"id\":1,\"v\":1,\"note\":\"a\"}},\"op\":\"c\",\"ts_ms\":{}}}}}
{{\"payload\":{{\"op\":\"d\",\"before\":{{\"id\":1}},\"ts_ms\":{}}},\"schema\":{schema}}}
{{\"schema\":null,\"payload\":null}}
{{\"payload\":{{}}}}
{{}}

null
{{\"schema\":{schema},\"payload\":{{\"after\":{{\"id\":2,\"v\":2,\"note\":\"b\"}},\"op\":\"r\",\"ts_ms\":{}}}}}",
        at(2, 0),
        at(2, 1),
        at(2, 2)
    );
    lab.put("raw/20240102-100000000.json", text);
    let report = lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["2 2 b 2024-01-02"]);
    assert_eq!((report.rows_read, report.rows_ignored, report.rows_deleted), (7, 4, 1));
}

#[test]
fn the_fields_of_an_envelope_are_columns() {
    for format in FORMATS {
        let lab = builder(format)
            .partition_by(&[])
            .curated_sql(
                "SELECT CAST(id AS BIGINT) AS id, op, \"source.connector\" AS connector,
                 CAST(ts_ms AS TIMESTAMP(3)) AS at, CAST(\"__source.ts_ms\" AS TIMESTAMP(3)) AS committed
                 FROM latest",
            )
            .set("raw.commit_time", "source.ts_ms")
            .build();
        put_changes(&lab, format);
        lab.run(START, END).expect("a run");
        let found = lab.lines("lake/curated", ["id", "op", "connector", "at", "committed"]);
        assert_eq!(
            found,
            [
                "3 u postgresql 2024-01-02 00:00:00.005 2024-01-02 00:00:00",
                "4 r postgresql 2024-01-04 00:00:00 2024-01-03 23:59:59.995",
                "9 u postgresql 2024-01-03 00:00:00.001 2024-01-02 23:59:59.996",
            ],
            "{format}"
        );
    }
}

#[test]
fn columns_of_a_row_keep_their_names_beside_those_of_the_envelope() {
    let event = |id: i64, ms: i64| {
        format!(
            "{{\"after\":{{\"id\":{id},\"op\":\"theirs\",\"ts_ms\":\"x\",\"source\":\"y\",\"before\":{{\"a\":1}}}},\"op\":\"c\",\"ts_ms\":{},\"source\":{{\"lsn\":5}}}}\n",
            at(2, ms)
        )
    };
    let lab = builder("json")
        .partition_by(&[])
        .curated_sql(
            "SELECT CAST(id AS BIGINT) AS id, op, ts_ms, source, \"before.a\" AS before_a, __op AS what,
             \"source.lsn\" AS lsn FROM latest",
        )
        .build();
    lab.put("raw/20240102-100000000.json", event(1, 0) + &event(1, 1));
    lab.run(START, END).expect("a run");
    let found =
        lab.lines("lake/curated", ["id", "op", "ts_ms", "source", "before_a", "what", "lsn"]);
    assert_eq!(found, ["1 theirs x y 1 c 5"]);
}

#[test]
fn a_column_that_takes_the_name_of_an_envelopes_field_is_reported() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(op AS VARCHAR) AS op FROM latest";
    let lab = builder("json").partition_by(&[]).curated_sql(sql).build();
    let event = |row: &str, day: i64| {
        format!("{{\"after\":{row},\"op\":\"c\",\"ts_ms\":{}}}\n", at(day, 0))
    };
    lab.put("raw/20240102-100000000.json", event("{\"id\":1}", 2));
    lab.run(START, END).expect("a run");
    assert_eq!(lab.lines("lake/curated", ["id", "op"]), ["1 c"]);
    lab.put("raw/20240103-100000000.json", event("{\"id\":2,\"op\":\"theirs\"}", 3));
    let error = lab.run(START, END).expect_err("another `op`");
    assert_refused(error, 65, "the rows have a column `op` now", "\"__op\"");
    for (name, expected) in [("after.op", ["1 -", "2 theirs"]), ("__op", ["1 c", "2 c"])] {
        lab.write_file("curated.sql", &sql.replace("(op AS", &format!("(\"{name}\" AS")));
        // The first file has no such column of the rows.
        lab.rebuild(false, &["raw.columns={\"after.op\" = \"VARCHAR\"}"]).expect("rebuilt");
        lab.run(START, END).expect("a run");
        assert_eq!(lab.lines("lake/curated", ["id", "op"]), expected);
    }
}

#[test]
fn the_type_of_an_envelopes_field_is_declared_by_its_name() {
    for format in FORMATS {
        let lab = builder(format)
            .partition_by(&[])
            .curated_sql(
                "SELECT CAST(id AS BIGINT) AS id, \"source.connector\" AS connector FROM latest",
            )
            .set("raw.columns", {
                let mut columns = Table::new();
                columns.insert("source.connector".into(), "VARCHAR".into());
                columns
            })
            .build();
        put(&lab, format, 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
        lab.run(START, END).expect("a run");
        assert_eq!(lab.lines("lake/curated", ["connector"]), ["postgresql"], "{format}");
    }
}

#[test]
fn a_key_may_be_selected_by_its_part_of_the_envelope() {
    let sql = "SELECT \"after.id\" AS id FROM latest";
    let lab = builder("parquet").partition_by(&[]).curated_sql(sql).build();
    put(&lab, "parquet", 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
    lab.run(START, END).expect("a run");
    assert_eq!(lab.lines("lake/curated", ["id"]), ["1"]);
}

#[test]
fn a_large_parquet_file_of_envelopes_is_read_in_parts() {
    // Notes that do not compress, so that the file is not kept in memory.
    let mut seed = 1_u64;
    let mut note = || -> String {
        let letters = (0..100).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + (seed >> 60) as u8)
        });
        letters.collect()
    };
    let notes: Vec<String> = (0..60_000).map(|_| note()).collect();
    let events: Vec<Event> = (0..)
        .zip(&notes)
        .map(|(id, note)| (Some("c"), None, row(id % 50_000, id, note), at(2, id / 100)))
        .collect();
    for place in PLACES {
        let lab = builder("parquet").place(place).build();
        put(&lab, "parquet", 2, &events);
        let report = lab.run(START, END).expect("a run");
        assert!(report.bytes > 2 << 20, "{} bytes", report.bytes);
        assert_eq!((report.rows_read, report.rows_written), (60_000, 50_000));
    }
}

#[test]
fn a_mark_in_a_column_that_is_not_used_is_no_fault() {
    for format in FORMATS {
        let sql = "SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest";
        let lab = builder(format).partition_by(&[]).curated_sql(sql).build();
        put(&lab, format, 2, &[(Some("u"), row(1, 1, MARK), row(1, 2, MARK), at(2, 1))]);
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_rejected, report.rows_ignored), (0, 0), "{format}");
        assert_eq!(lab.lines("lake/curated", ["id", "v"]), ["1 2"], "{format}");
    }
}

#[test]
fn an_operation_to_ignore_is_not_looked_at() {
    for format in FORMATS {
        let lab = builder(format).set("raw.op_values.ignore", vec!["u", "m"]).build();
        let lab_file = [
            (Some("c"), None, row(1, 1, "a"), at(2, 0)),
            (Some("u"), row(1, 1, "a"), row(1, 2, MARK), at(2, 1)),
            (Some("u"), None, None, at(2, 1)),
        ];
        put(&lab, format, 2, &lab_file);
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_rejected, report.rows_ignored), (0, 2), "{format}");
        assert_eq!(curated(&lab), ["1 1 a 2024-01-02"], "{format}");
    }
}

#[test]
fn a_row_with_a_column_payload_is_no_tombstone() {
    for payload in ["null", "{}", "{\"op\":\"c\"}"] {
        let lab = builder("json").build();
        let text = format!("{{\"id\":1,\"payload\":{payload}}}\n");
        lab.put("raw/20240102-100000000.json", text);
        let error = lab.run(START, END).expect_err("no envelope");
        assert_refused(error, 65, "is not an envelope", "raw.dialect");
    }
}

#[test]
fn a_time_of_an_envelope_that_is_none_is_a_bad_row() {
    for time in ["99999999999999999999", "1.5", "\"x\"", "true"] {
        let lab = builder("json").set("raw.on_bad_row", "quarantine").build();
        let event = |id: i64, time: &str| {
            format!(
                "{{\"op\":\"c\",\"after\":{{\"id\":{id},\"v\":1,\"note\":\"a\"}},\"ts_ms\":{time}}}\n"
            )
        };
        let text = event(1, &at(2, 0).to_string()) + &event(2, time);
        lab.put("raw/20240102-100000000.json", text);
        let report = lab.run(START, END).expect("a run");
        assert_eq!(reasons(&lab, &report), ["2 __ts_ms is not a time"], "{time}");
        assert_eq!(curated(&lab), ["1 1 a 2024-01-02"], "{time}");
    }
}

#[test]
fn files_of_tombstones_only_change_nothing() {
    for format in FORMATS {
        let lab = builder(format).build();
        put(&lab, format, 2, &[(None, None, None, 0), (Some("m"), None, None, at(2, 0))]);
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_read, report.rows_ignored), (2, 2), "{format}");
        put(&lab, format, 3, &[(Some("c"), None, row(1, 1, "a"), at(3, 0))]);
        let report = lab.run(START, END).expect("a run");
        assert!(report.schema_changes.is_empty(), "{format}: {:?}", report.schema_changes);
        assert_eq!(curated(&lab), ["1 1 a 2024-01-03"], "{format}");
    }
}

#[test]
fn a_delete_without_its_place_in_the_order_is_a_bad_row() {
    for format in FORMATS {
        let lab = builder(format).set("raw.order_by", vec!["v"]).build();
        put(&lab, format, 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
        put(&lab, format, 3, &[(Some("d"), key(1), None, at(3, 0))]);
        let error = lab.run(START, END).expect_err("a delete that loses");
        assert_refused(error, 65, "column `v` is null in a delete", "ts_ms");
        put(&lab, format, 3, &[(Some("d"), row(1, 2, "a"), None, at(3, 0))]);
        lab.run(START, END).expect("a delete that wins");
        assert!(curated(&lab).is_empty(), "{format}");
    }
}

#[test]
fn updates_of_keys_in_the_same_millisecond_follow_one_another() {
    for format in FORMATS {
        let lab = builder(format).build();
        let events = [
            (Some("c"), None, row(4, 1, "a"), at(2, 0)),
            (Some("u"), row(4, 1, "a"), row(1, 2, "a"), at(2, 1)),
            (Some("u"), row(1, 2, "a"), row(4, 3, "a"), at(2, 1)),
            (Some("c"), None, row(5, 1, "b"), at(2, 1)),
            (Some("u"), row(5, 1, "b"), row(6, 2, "b"), at(2, 1)),
            (Some("u"), row(6, 2, "b"), row(5, 3, "b"), at(2, 1)),
            (Some("d"), key(5), None, at(2, 1)),
        ];
        put(&lab, format, 2, &events);
        lab.run(START, END).expect("a run");
        assert_eq!(curated(&lab), ["4 3 a 2024-01-02"], "{format}");
        let explained = lab.explain(&["4"]);
        assert!(explained.notes.is_empty(), "{format}: {:?}", explained.notes);
    }
}

/// The reasons for which lines are quarantined, by row.
fn reasons(lab: &Lab, report: &Report) -> Vec<String> {
    let folder = report.quarantine.as_ref().expect("a folder");
    let path = folder.rsplit_once("/lake/").expect("below the lake").1;
    let mut found = lab.lines(&format!("lake/{path}"), ["row", "column", "reason"]);
    found.sort();
    found
}

#[test]
fn a_truncate_ends_the_rows_that_were_before_it() {
    for place in PLACES {
        for format in FORMATS {
            let lab = builder(format).place(place).build();
            put_changes(&lab, format);
            let truncate = (Some("t"), None, None, at(4, 1));
            put(&lab, format, 5, &[truncate, (Some("c"), None, row(3, 1, "new"), at(5, 0))]);
            let report = lab.run(START, END).expect("a run");
            assert_eq!((report.truncates, report.rows_deleted), (1, 4), "{format}");
            assert_eq!(curated(&lab), ["3 1 new 2024-01-05"], "{format}");
            // Alone in its file.
            put(&lab, format, 6, &[(Some("t"), None, None, at(6, 0))]);
            let report = lab.run(START, END).expect("a run");
            assert_eq!((report.truncates, curated(&lab).len()), (2, 0), "{format}");
            assert!(lab.verify().expect("verified").is_equal);
        }
    }
}

#[test]
fn what_is_no_envelope_is_a_bad_row() {
    let lines = [
        r#"{"id":1,"v":2}"#,
        r#"{"op":"c","ts_ms":1}"#,
        r#"{"op":"u","before":{"id":1},"after":null,"ts_ms":1}"#,
        r#"{"op":"d","before":null,"after":null,"ts_ms":1}"#,
        r#"{"op":"x","after":{"id":1},"ts_ms":1}"#,
        r#"{"op":"c","after":"{\"id\":1}","ts_ms":1}"#,
        r#"{"op":"c","after":{"id":1,"id":2},"ts_ms":1}"#,
        r#"{"op":"c","op":"d","after":{"id":1},"ts_ms":1}"#,
        r#"{"payload":"x"}"#,
        r#"{"after":{"id":1},"op":null,"ts_ms":1}"#,
        r#"{"after":{"id":1,"v":1,"note":"good"},"op":"c","ts_ms":1704153600000}"#,
    ];
    let reasons_expected = [
        "1 - is not an envelope: it has no `op`",
        "10 - is not an envelope: it has no `op`",
        "2 after is missing in a change that is not a delete",
        "3 after is missing in a change that is not a delete",
        "4 before is missing in a delete, so that its key is unknown",
        "5 op is none of c, r, u, d, m, t",
        "6 after is not an object",
        "7 id is in its object twice",
        "8 op is in its object twice",
        "9 payload is not an object",
    ];
    for place in PLACES {
        let lab = builder("json").place(place).build();
        lab.put("raw/20240102-100000000.json", lines.join("\n"));
        let error = lab.run(START, END).expect_err("bad");
        assert_refused(error, 65, "line 1 of", "raw.dialect");
        lab.edit_pipeline("[raw]", "[raw]\non_bad_row = \"quarantine\"");
        let report = lab.run(START, END).expect("a run");
        assert_eq!(reasons(&lab, &report), reasons_expected);
        assert_eq!(curated(&lab), ["1 1 good 2024-01-02"]);
        let again = lab.catch_up(&[]).expect("caught up");
        assert_eq!(again.rows_rejected, 10);
        assert_eq!(curated(&lab), ["1 1 good 2024-01-02"]);
    }
    let lab = builder("parquet").set("raw.on_bad_row", "quarantine").build();
    put(
        &lab,
        "parquet",
        2,
        &[
            (Some("c"), key(1), None, at(2, 0)),
            (Some("d"), None, key(1), at(2, 0)),
            (Some("x"), None, key(1), at(2, 0)),
            (None, None, key(1), at(2, 0)),
            (Some("c"), None, row(1, 1, "good"), at(2, 0)),
        ],
    );
    let report = lab.run(START, END).expect("a run");
    assert_eq!(
        reasons(&lab, &report),
        [
            "1 after is missing in a change that is not a delete",
            "2 before is missing in a delete, so that its key is unknown",
            "3 op is none of c, r, u, d, m, t",
            "4 - is not an envelope: it has no `op`",
        ]
    );
    assert_eq!(curated(&lab), ["1 1 good 2024-01-02"]);
    lab.edit_pipeline("on_bad_row = \"quarantine\"", "");
    lab.remove_all("lake");
    let error = lab.run(START, END).expect_err("bad");
    assert_refused(error, 65, "row 1 of", "connector");
}

#[test]
fn a_mark_for_a_missing_value_is_a_bad_row_and_no_text() {
    for format in FORMATS {
        let lab = builder(format).build();
        let events = [
            (Some("c"), None, row(1, 1, "a"), at(2, 0)),
            // A delete needs its key only.
            (Some("d"), row(2, 1, MARK), None, at(2, 0)),
            (Some("u"), row(1, 1, MARK), row(1, 2, MARK), at(2, 1)),
        ];
        put(&lab, format, 2, &events);
        let error = lab.run(START, END).expect_err("no value");
        assert_refused(error, 65, "column `note` is the mark for a value", "REPLICA IDENTITY FULL");
        let set = ["raw.unavailable_value=none"];
        lab.run_with(Task::Run, START, END, &set).expect("a text like others");
        assert_eq!(curated(&lab), [format!("1 2 {MARK} 2024-01-02")]);
    }
    let lab = builder("json").set("raw.unavailable_value", "gone").build();
    for value in ["\"gone\"", "\"Z29uZQ==\"", "\"676f6e65\"", "[\"gone\"]", "[103, 111, 110, 101]"]
    {
        let line = format!(
            "{{\"op\":\"u\",\"after\":{{\"id\":1,\"v\":1,\"note\":{value}}},\"ts_ms\":{}}}\n",
            at(2, 0)
        );
        lab.put("raw/20240102-100000000.json", line);
        let error = lab.run(START, END).expect_err("no value");
        assert_refused(error, 65, "column `note` is the mark for a value", "");
    }
}

#[test]
fn rows_without_envelopes_are_named_as_such() {
    let lab = builder("parquet").build();
    let rows =
        crate::support::file_of_rows(&["id", "v", "ts"], &[["1", "1", "2024-01-02 00:00:00"]]);
    lab.put("raw/20240102-100000000.parquet", rows);
    let error = lab.run(START, END).expect_err("no envelopes");
    assert_refused(error, 65, "are not envelopes", "raw.dialect");
    for format in FORMATS {
        let lab = builder(format).set("raw.dialect", "dms").build();
        put(&lab, format, 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
        let error = lab.run(START, END).expect_err("envelopes");
        assert_refused(error, 2, "no raw file has the column `id`", "raw.dialect = \"debezium\"");
    }
    let lab = builder("json").set("raw.dialect", "dms").set("key", vec!["after.id"]).build();
    put(&lab, "json", 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
    let error = lab.run_with(Task::Run, START, END, &["raw.op=op"]).expect_err("envelopes");
    assert_refused(error, 65, "column `op` is none of I, U, D, T", "raw.dialect = \"debezium\"");
}

#[test]
fn a_column_of_the_row_that_is_written_with_its_part_is_named() {
    for format in FORMATS {
        let lab = builder(format).set("key", vec!["after.id"]).build();
        put(&lab, format, 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
        let error = lab.run(START, END).expect_err("no such column");
        assert_refused(error, 2, "has the column `after.id`, which `key`", "did you mean `id`?");
        let sql = "SELECT after.id FROM latest";
        let lab = builder(format).partition_by(&[]).curated_sql(sql).build();
        put(&lab, format, 2, &[(Some("c"), None, row(1, 1, "a"), at(2, 0))]);
        let error = lab.run(START, END).expect_err("no such column");
        assert_refused(error, 2, "cannot plan", "as x, or as \"after.x\" in quotes");
    }
}

#[test]
fn keys_that_do_not_go_with_envelopes_are_refused() {
    let lab = builder("json").build();
    for (set, message) in [
        ("raw.dialect=maxwell", "unknown variant `maxwell`"),
        ("raw.format=csv", "`raw.dialect` is `debezium`, and raw.format is `csv`"),
        ("raw.before_image_prefix=BI_", "`raw.before_image_prefix` is for rows without envelopes"),
        ("raw.unavailable_value=", "`raw.unavailable_value` is empty"),
        ("raw.columns={id = \"BIGINT\", \"after.id\" = \"VARCHAR\"}", "names `id` twice"),
    ] {
        let error = lab.run_with(Task::Run, START, END, &[set]).expect_err("refused");
        assert_eq!(error.kind.exit_code(), 2);
        assert!(error.to_string().contains(message), "{error}");
    }
    let set = ["raw.dialect=dms", "raw.unavailable_value=x"];
    let error = lab.run_with(Task::Run, START, END, &set).expect_err("refused");
    assert_refused(error, 2, "`raw.unavailable_value` is for envelopes", "debezium");
}

/// A struct column; null where `valid` is false.
fn parts(fields: Vec<(&str, ArrayRef)>, valid: &[bool]) -> ArrayRef {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = fields
        .into_iter()
        .map(|(name, array)| (Field::new(name, array.data_type().clone(), true), array))
        .unzip();
    Arc::new(StructArray::new(fields.into(), arrays, Some(valid.to_vec().into())))
}

/// A row with a column of each nested type, in which `mark` marks a missing value.
fn nested(column: &str, mark: &str) -> Vec<(&'static str, ArrayRef)> {
    let of =
        |name: &str, plain: &'static str| if name == column { mark } else { plain }.to_string();
    let mut tags = ListBuilder::new(StringBuilder::new());
    tags.values().append_value(of("tags", "x"));
    tags.append(true);
    let mut attrs = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    attrs.keys().append_value(of("attrs", "k"));
    attrs.values().append_value(of("attrs", "v"));
    attrs.append(true).expect("an entry");
    let doc = of("doc", "bytes");
    vec![
        ("id", integers([1])),
        ("doc", Arc::new(BinaryArray::from_iter_values([doc.as_bytes()]))),
        ("tags", Arc::new(tags.finish())),
        ("attrs", Arc::new(attrs.finish())),
        ("inner", parts(vec![("a", texts([of("inner.a", "deep")]))], &[true])),
    ]
}

/// A file with one update, whose row before has only the key, of 9 without a change of its own.
fn nested_file(after: Vec<(&'static str, ArrayRef)>) -> Vec<u8> {
    file_of_columns(vec![
        ("op", texts(["u"])),
        ("ts_ms", integers([at(2, 0)])),
        ("before", parts(vec![("id", integers([9]))], &[true])),
        ("after", parts(after, &[true])),
    ])
}

#[test]
fn rows_with_nested_columns_are_flattened_and_marks_in_them_are_found() {
    let sql = "SELECT CAST(id AS BIGINT) AS id, doc, tags[1] AS tag, map_values(attrs)[1] AS attr,
        \"inner.a\" AS deep FROM latest";
    let lab = || builder("parquet").partition_by(&[]).curated_sql(sql).build();
    let path = "raw/20240102-100000000.parquet";
    let whole = lab();
    let put_key_9 = |lab: &Lab| {
        put(lab, "parquet", 1, &[(Some("c"), None, row(9, 1, "a"), at(1, 0))]);
    };
    put_key_9(&whole);
    whole.put(path, nested_file(nested("", "")));
    let report = whole.run(START, END).expect("a run");
    assert_eq!((report.key_moves, report.rows_written), (1, 1));
    assert_eq!(whole.lines("lake/curated", ["id", "tag", "attr", "deep"]), ["1 x v deep"]);
    whole.assert_verified();
    let uuid = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";
    for (column, mark) in
        [("doc", MARK), ("tags", MARK), ("tags", uuid), ("attrs", MARK), ("inner.a", MARK)]
    {
        let lab = lab();
        put_key_9(&lab);
        lab.put(path, nested_file(nested(column, mark)));
        let error = lab.run(START, END).expect_err("a missing value");
        let message = format!("column `{column}` is the mark for a value");
        assert_refused(error, 65, &message, "REPLICA IDENTITY FULL");
    }
    // A file without rows.
    put(&whole, "parquet", 3, &[]);
    let report = whole.run(START, END).expect("a run");
    assert_eq!((report.files, report.rows_ignored), (3, 0));
}
