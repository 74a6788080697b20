//! CSV as AWS DMS writes it under each of its settings: other delimiters, quotes and row ends.

use crate::support::{Lab, LabBuilder, PLACES, Report, STATE, Task, assert_refused};

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
