//! CSV as AWS DMS writes it under each of its settings: other delimiters, quotes and row ends.

use crate::support::{
    Lab, LabBuilder, PLACES, Report, STATE, Task, assert_refused, file_of_rows, gzip, raw_file,
};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";
const CDC: &str = "raw/20200102-100000000.csv";
const LOAD: &str = "raw/LOAD00000001.csv";

/// A pipeline of the table (id, v, note).
fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.format", "csv")
        .raw_columns(&[
            ("Op", "VARCHAR"),
            ("ts", "TIMESTAMP"),
            ("id", "BIGINT"),
            ("v", "BIGINT"),
            ("note", "VARCHAR"),
        ])
        .partition_by(&[])
        .curated_sql("SELECT id, v, note FROM latest")
}

fn quarantining(builder: LabBuilder) -> LabBuilder {
    builder.set("raw.on_bad_row", "quarantine").set("raw.on_bad_file", "quarantine")
}

fn rows(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v", "note"])
}

fn run(lab: &Lab) -> Report {
    lab.run(START, END).expect("a run")
}

/// What is in quarantine: line, column and reason.
fn quarantined(lab: &Lab) -> Vec<String> {
    lab.lines(&format!("{STATE}/quarantine"), ["line", "column", "reason"])
}

#[test]
fn every_character_of_csv_can_be_another_one() {
    let forms: [(&[(&str, &str)], &str); 4] = [
        (
            &[("raw.csv_delimiter", "|")],
            "U|2020-01-02 10:00:00|1|7|\"a|b \"\"c\"\"\"\nI|2020-01-02 10:00:00|2||x,y\n",
        ),
        (
            &[("raw.csv_delimiter", "\t"), ("raw.csv_quote", "'")],
            "U\t2020-01-02 10:00:00\t1\t7\t'a|b \"c\"'\nI\t2020-01-02 10:00:00\t2\t\tx,y\n",
        ),
        (
            &[("raw.csv_escape", "\\")],
            "U,2020-01-02 10:00:00,1,7,\"a|b \\\"c\\\"\"\r\nI,2020-01-02 10:00:00,2,,\"x,y\"\r\n",
        ),
        (
            &[("raw.csv_delimiter", "\u{1}"), ("raw.csv_row_delimiter", "\u{1e}")],
            "U\u{1}2020-01-02 10:00:00\u{1}1\u{1}7\u{1}\"a|b \"\"c\"\"\"\u{1e}I\u{1}2020-01-02 10:00:00\u{1}2\u{1}\u{1}x,y\u{1e}",
        ),
    ];
    for place in PLACES {
        for (keys, text) in &forms {
            let with_key = |builder: LabBuilder, (key, value): &(&str, &str)| {
                builder.set(key, value.to_string())
            };
            let lab = keys.iter().fold(builder(), with_key).place(place).build();
            lab.put(CDC, *text);
            let report = run(&lab);
            assert_eq!((report.rows_read, report.rows_latest), (2, 2), "{keys:?}");
            assert_eq!(rows(&lab), ["1 7 a|b \"c\"", "2 - x,y"], "{keys:?}");
        }
    }
}

#[test]
fn a_row_in_the_place_of_a_header_is_not_shown() {
    let lab = Lab::builder()
        .set("raw.format", "csv")
        .set("raw.csv_header", true)
        .curated_sql("SELECT id FROM latest")
        .partition_by(&[])
        .build();
    lab.put("raw/20200101-100000000.csv", "I,1,2020-01-01 00:00:00,secret\n");
    let error = lab.run(START, END).expect_err("no header");
    let shown = format!("{error} {:?}", error.hint);
    assert!(shown.contains("leave raw.csv_header out") && !shown.contains("secret"), "{shown}");
    // One file without a header among others.
    lab.put("raw/20200101-100000000.csv", "Op,id,ts,v\nI,1,2020-01-01 00:00:00,a\n");
    lab.put("raw/20200101-110000000.csv", "I,1,2020-01-01 00:00:00,secret\n");
    let error = lab.run(START, END).expect_err("no header");
    let shown = format!("{error} {:?}", error.hint);
    assert!(shown.contains("check the first line") && !shown.contains("secret"), "{shown}");
}

#[test]
fn the_command_line_sets_a_delimiter_by_its_escape() {
    let lab = builder().build();
    lab.put(CDC, "I\t2020-01-02 10:00:00\t1\t2\tx\n");
    let failed = lab.run(START, END).expect_err("no comma");
    assert_refused(failed, 65, "line 1 of", "set raw.csv_delimiter = \"\\t\"");
    lab.run_with(Task::Run, START, END, &["raw.csv_delimiter=\\t"]).expect("a run");
    assert_eq!(rows(&lab), ["1 2 x"]);
}

#[test]
fn wrong_and_contradicting_keys_are_refused_with_their_name() {
    let lab = builder().build();
    lab.put(CDC, "I,2020-01-02 10:00:00,1,2,x\n");
    for (set, message, hint) in [
        (&["raw.csv_delimiter=||"][..], "`raw.csv_delimiter` is `||`", "one ASCII character"),
        (&["raw.csv_delimiter=x"], "`raw.csv_delimiter` is `x`", "one ASCII character"),
        (&["raw.csv_quote=,"], "`raw.csv_quote` is the character of `raw.csv_delimiter`", "own"),
        (&["raw.csv_row_delimiter=ab"], "`raw.csv_row_delimiter` is `ab`", "\\n"),
        (&["raw.csv_escape=é"], "`raw.csv_escape` is `é`", "one ASCII character"),
        (
            &["raw.csv_quoted=false", "raw.csv_quote='"],
            "`raw.csv_quote` has no effect",
            "leave one",
        ),
        (&["raw.format=parquet", "raw.csv_delimiter=|"], "`raw.csv_delimiter` is for CSV", "csv"),
    ] {
        let failed = lab.run_with(Task::Run, START, END, set).expect_err(message);
        assert_refused(failed, 2, message, hint);
    }
}

#[test]
fn bad_lines_of_other_forms_are_quarantined_with_their_number() {
    let lab = quarantining(builder())
        .set("raw.csv_delimiter", "|")
        .set("raw.csv_escape", "\\")
        .set("raw.csv_row_delimiter", ";")
        .build();
    let at = "2020-01-02 10:00:00";
    let text = format!(
        "I|{at}|1|1|\"a;b\";I|{at}|2|2|\"c:\\d\";I,{at},3,3,x;I|{at}|4|4|\"e\"\"f\";I|{at}|5|5|g;I|{at}|6"
    );
    lab.put(CDC, text);
    let report = run(&lab);
    assert_eq!((report.rows_read, report.rows_rejected), (6, 4));
    assert_eq!(rows(&lab), ["1 1 a;b", "5 5 g"]);
    let stray = "has an escape character before neither a quote nor an escape character";
    assert_eq!(
        quarantined(&lab),
        [
            // The first row holds a row delimiter.
            format!("3 note {stray}"),
            "4 - has 1 fields where 5 are expected".into(),
            "5 note has an unexpected quote".into(),
            "7 - is cut off: the file does not end with the row delimiter".into(),
        ]
    );
}

#[test]
fn a_header_with_another_delimiter_is_a_bad_file() {
    let lab = builder().set("raw.csv_header", true).build();
    lab.put(LOAD, "ts;id;v;note\n2020-01-02 10:00:00;1;2;x\n");
    let failed = lab.run(START, END).expect_err("one name");
    assert_refused(
        failed,
        65,
        "LOAD00000001.csv has a header of one name",
        "csv_delimiter = \";\"",
    );
    let lab = quarantining(builder()).set("raw.csv_header", true).build();
    lab.put(LOAD, "ts;id;v;note\n2020-01-02 10:00:00;1;2;x\n");
    lab.put(CDC, "Op,ts,id,v,note\nI,2020-01-02 10:00:00,2,3,y\n");
    assert_eq!(run(&lab).files_rejected, 1);
    lab.catch_up(&["raw.csv_delimiter=;"]).expect("caught up");
    assert_eq!(rows(&lab), ["1 2 x", "2 3 y"]);
}

#[test]
fn columns_that_were_added_are_null_in_older_lines() {
    let old = "U,2020-01-02 10:00:00,1,10\n";
    let new = "U,2020-01-03 10:00:00,1,11,new\nI,2020-01-03 10:00:00,3,30,new\n";
    let load = "2020-01-01 00:00:00,1,1\n2020-01-01 00:00:00,2,2\n";
    for place in PLACES {
        let lab = builder().place(place).set("raw.csv_short_lines", "null").build();
        lab.put_all(vec![
            (LOAD.into(), load.into()),
            (CDC.into(), old.into()),
            ("raw/20200103-100000000.csv".into(), new.into()),
        ]);
        // The later day first, then all of it.
        lab.run("2020-01-03", "2020-01-04").expect("a run");
        run(&lab);
        assert_eq!(rows(&lab), ["1 11 new", "2 2 -", "3 30 new"]);
    }
    let lab = builder().build();
    lab.put(CDC, old);
    let failed = lab.run(START, END).expect_err("a short line");
    assert_refused(failed, 65, "has 4 fields where 5 are expected", "raw.csv_short_lines");
}

#[test]
fn short_lines_that_lack_what_a_change_needs_are_bad() {
    let lab = quarantining(builder()).set("raw.csv_short_lines", "null").build();
    let at = "2020-01-02 10:00:00";
    lab.put(CDC, format!("I\nI,{at}\nI,{at},1\nI,{at},2,3,4,5\n"));
    let report = run(&lab);
    assert_eq!((report.rows_read, report.rows_rejected), (4, 3));
    assert_eq!(rows(&lab), ["1 - -"]);
    assert_eq!(
        quarantined(&lab),
        [
            "- id is null",
            "1 - has 1 fields where 2 to 5 are expected",
            "4 - has 6 fields where 2 to 5 are expected",
        ]
    );
    let failed = lab.run_with(Task::Run, START, END, &["raw.csv_header=true"]);
    let failed = failed.expect_err("a header names the columns");
    assert_refused(failed, 2, "`raw.csv_short_lines` is for files without a header", "header");
    let failed = lab.run_with(Task::Run, START, END, &["raw.csv_short_lines=empty"]);
    assert_refused(failed.expect_err("unknown"), 2, "unknown variant `empty`", "");
}

#[test]
fn a_value_that_the_log_lacks_is_quarantined_and_a_delete_is_folded() {
    let at = "2020-01-02 10:00:00";
    for place in PLACES {
        let lab = quarantining(builder().place(place)).set("raw.csv_no_sup_value", "NOSUP").build();
        let text = format!(
            "I,{at},1,1,a\nI,{at},2,2,b\nI,{at},3,3,c\nU,{at},1,NOSUP,d\nU,{at},2,4,\"NOSUP\"\nD,{at},3,NOSUP,NOSUP\nD,{at},NOSUP,1,x\n"
        );
        lab.put(CDC, text);
        let report = run(&lab);
        assert_eq!((report.rows_rejected, report.rows_deleted), (3, 1));
        assert_eq!(rows(&lab), ["1 1 a", "2 2 b"]);
        let why = "has a value that the source's log lacks (`raw.csv_no_sup_value`)";
        let expected = ["- id is null".into(), format!("4 v {why}"), format!("5 note {why}")];
        assert_eq!(quarantined(&lab), expected);
    }
    let lab = builder().set("raw.csv_no_sup_value", "NOSUP").build();
    lab.put(CDC, format!("U,{at},1,NOSUP,secret\n"));
    let failed = lab.run(START, END).expect_err("a value is missing");
    assert!(!failed.to_string().contains("secret"));
    assert_refused(
        failed,
        65,
        "column `v` has a value that the source's log lacks",
        "supplemental",
    );
    for (set, message) in [
        ("raw.csv_no_sup_value=", "`raw.csv_no_sup_value` is empty"),
        ("raw.csv_null=NOSUP", "`raw.csv_no_sup_value` is the text of `raw.csv_null`"),
    ] {
        let failed = lab.run_with(Task::Run, START, END, &[set]).expect_err(message);
        assert_refused(failed, 2, message, "CsvNoSupValue");
    }
}

/// Files without a row, in every form.
fn empty_files() -> Vec<(&'static str, Vec<u8>)> {
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).expect("compressed");
    vec![
        ("csv", Vec::new()),
        ("csv", b"\n".to_vec()),
        ("csv", b"\r\n\n".to_vec()),
        ("csv", b"\xEF\xBB\xBF".to_vec()),
        ("csv", b"\xEF\xBB\xBF\n".to_vec()),
        ("csv.gz", Vec::new()),
        ("csv.gz", gzip("")),
        ("csv.gz", gzip("\n")),
        ("csv.zst", Vec::new()),
        ("csv.zst", zstd("")),
    ]
}

#[test]
fn files_without_a_row_are_empty_in_every_form() {
    for has_header in [false, true] {
        for place in PLACES {
            let lab = builder().place(place).set("raw.csv_header", has_header).build();
            for (number, (ending, bytes)) in empty_files().into_iter().enumerate() {
                lab.put(&format!("raw/20200102-00000000{number}.{ending}"), bytes.clone());
                lab.put(&format!("raw/LOAD0000000{number}.{ending}"), bytes);
            }
            // Alone.
            let report = run(&lab);
            assert_eq!((report.files, report.rows_read, report.rows_latest), (20, 0, 0));
            assert!(lab.list("lake/curated").is_empty());
            lab.plan(START, END, true).expect("a plan");
            assert!(lab.explain(&["1"]).changes.is_empty());
            lab.catch_up(&[]).expect("caught up");
            // With others.
            let header =
                |names: &str| if has_header { format!("{names}\n") } else { String::new() };
            let text = header("Op,ts,id,v,note") + "I,2020-01-03 00:00:00,1,2,x\n";
            lab.put("raw/20200103-000000000.csv", text);
            lab.put("raw/LOAD10000000.csv", header("ts,id,v,note"));
            let report = run(&lab);
            assert_eq!((report.rows_read, report.rows_latest), (1, 1));
            assert!(report.schema_changes.is_empty(), "{:?}", report.schema_changes);
            assert_eq!(rows(&lab), ["1 2 x"]);
            run(&lab);
            lab.rebuild(false, &[]).expect("rebuilt");
            assert_eq!(rows(&lab), ["1 2 x"]);
            lab.assert_tidy();
        }
    }
}

#[test]
fn a_number_out_of_range_is_a_bad_row_and_never_infinity() {
    let at = "2020-01-02 10:00:00";
    let types = [("d", "DOUBLE"), ("r", "REAL"), ("n", "DECIMAL(38, 2)"), ("i", "INTEGER")];
    let columns =
        [&[("Op", "VARCHAR"), ("ts", "TIMESTAMP"), ("id", "BIGINT")][..], &types].concat();
    let sql = "SELECT id, d, r, n, i FROM latest";
    let values = [
        ["1e308", "3e38", "1.25", "7"],
        ["1e400", "1", "1", "1"],
        ["-1e400", "1", "1", "1"],
        ["1e-400", "1", "1", "1"],
        ["1", "1e39", "1", "1"],
        ["1", "1", "9999999999999999999999999999999999999999999", "1"],
        ["1", "1", "1", "2147483648"],
        ["Infinity", "NaN", "0", "0"],
    ];
    let numbered = values.iter().enumerate();
    let csv: String =
        numbered.clone().map(|(id, row)| format!("I,{at},{id},{}\n", row.join(","))).collect();
    let names = ["Op", "ts", "id", "d", "r", "n", "i"];
    let ids: Vec<String> = numbered.clone().map(|(id, _)| id.to_string()).collect();
    let texts: Vec<[&str; 7]> = numbered
        .map(|(id, row)| ["I", at, ids[id].as_str(), row[0], row[1], row[2], row[3]])
        .collect();
    let rejected =
        ["d", "d", "d", "r", "n", "i"].iter().map(|column| column.to_string()).collect::<Vec<_>>();
    for format in ["csv", "parquet"] {
        let lab = quarantining(builder()).set("raw.format", format).raw_columns(&columns);
        let lab = lab.curated_sql(sql).build();
        match format {
            "csv" => lab.put(CDC, csv.clone()),
            _ => lab.put(&raw_file(2), file_of_rows(&names, &texts)),
        }
        let report = run(&lab);
        assert_eq!((report.rows_read, report.rows_rejected), (8, 6), "{format}");
        let found = lab.lines("lake/curated", ["id", "d", "r", "n", "i"]);
        assert_eq!(found, ["0 1e308 3e38 1.25 7", "7 inf NaN 0.00 0"], "{format}");
        let mut table = lab.table(&format!("{STATE}/quarantine"));
        table.sort_by_key(|row| row["row"].clone());
        let columns: Vec<String> = table.iter().map(|row| row["column"].clone()).collect();
        assert_eq!(columns, rejected, "{format}");
        let failed = lab.run_with(Task::Run, START, END, &["raw.on_bad_row=fail"]);
        let message = failed.expect_err("out of range").to_string();
        assert!(message.contains("2 of ") && message.contains("`d` does not fit"), "{message}");
    }
}

#[test]
fn a_file_without_even_a_header_needs_no_declared_columns() {
    for dialect in ["dms", "flat"] {
        let lab = builder()
            .set("raw.dialect", dialect)
            .set("raw.csv_header", true)
            .unset("raw.columns")
            .curated_sql("SELECT * EXCLUDE (ts) FROM latest")
            .build();
        for (number, (ending, bytes)) in empty_files().into_iter().enumerate() {
            lab.put(&format!("raw/20200103-{number:02}0000000.{ending}"), bytes);
        }
        run(&lab);
        lab.put(CDC, "id,v,ts\n1,2,2020-01-02 09:00:00\n".as_bytes().to_vec());
        run(&lab);
        let rows = lab.table("lake/curated");
        let names: Vec<&str> = rows[0].keys().map(String::as_str).collect();
        assert_eq!((rows.len(), &rows[0]["id"]), (1, &"1".to_string()), "{dialect}: {names:?}");
        assert!(!names.contains(&"") && !names.contains(&"Op"), "{names:?}");
        lab.assert_verified();
    }
}
