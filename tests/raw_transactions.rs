//! Transaction files of AWS DMS: the changes of all tables of a task, of which a pipeline reads one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Lab, LabBuilder, PLACES, Place, Report, STATE, Task, assert_refused};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";
const AT: &str = "2020-01-02 10:00:00";
const FIRST: &str = "raw/cdc/CDC_TXN-20200102100000000.csv";

/// A pipeline of the table (id, level) of the table `ins.policy`.
fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.format", "csv")
        .set("raw.layout", "transactions")
        .set("raw.table", "ins.policy")
        .raw_columns(&[
            ("Op", "VARCHAR"),
            ("table", "VARCHAR"),
            ("schema", "VARCHAR"),
            ("ts", "TIMESTAMP"),
            ("id", "BIGINT"),
            ("level", "VARCHAR"),
        ])
        .partition_by(&[])
        .curated_sql("SELECT id, level FROM latest")
}

/// A lab with a full load and two files of changes; a transaction begins in one of them and ends in
/// the other.
fn lab(builder: &LabBuilder) -> Lab {
    let lab = builder.build();
    lab.put(
        "raw/ins/policy/LOAD00000001.csv",
        "2020-01-09 00:00:00,2,Basic\n2020-01-09 00:00:00,4,x\n",
    );
    lab.put(FIRST, format!(
        "B,7001,1,{AT}\nI,policy,ins,{AT},1,Gold\nI,claim,ins,{AT},10,1,99.50,\"a\nb\"\nU,policy,ins,{AT},1,Platin\nC,7001,1,{AT}\nb,7002,1,{AT}\nd,policy,ins,{AT},4,\n"
    ));
    lab.put("raw/cdc/CDC_TXN-20200103100000000.csv", format!(
        "U,policy,ins,{AT},1,Silver\nI,policy,other,{AT},9,x\nu,claim,ins,{AT},10\nc,7002,1,{AT}\n"
    ));
    lab
}

fn rows(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "level"])
}

fn run(lab: &Lab) -> Report {
    lab.run(START, END).expect("a run")
}

/// What is in quarantine: row, line, column and reason.
fn quarantined(lab: &Lab) -> Vec<String> {
    lab.lines(&format!("{STATE}/quarantine"), ["row", "line", "column", "reason"])
}

#[test]
fn the_rows_of_one_table_are_read_from_files_of_all_tables() {
    for place in PLACES {
        let whole = lab(&builder().place(place));
        let report = run(&whole);
        assert_eq!((report.files, report.rows_read, report.rows_of_other_tables), (3, 6, 3));
        assert_eq!((report.rows_latest, report.rows_deleted, report.note), (2, 1, None));
        assert!(report.schema_changes.is_empty(), "{:?}", report.schema_changes);
        assert_eq!(rows(&whole), ["1 Silver", "2 Basic"]);
        // The later day first, and all of it once more.
        let daily = lab(&builder().place(place));
        for (start, end) in
            [("2020-01-03", "2020-01-04"), ("2020-01-02", "2020-01-03"), (START, END)]
        {
            daily.run(start, end).expect("a run");
        }
        assert_eq!(rows(&daily), ["1 Silver", "2 Basic"]);
        daily.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(rows(&daily), ["1 Silver", "2 Basic"]);
        daily.assert_tidy();
    }
}

#[test]
fn windows_of_commit_times_select_rows_of_the_table() {
    let lab = lab(&builder().window_by("commit"));
    let report = run(&lab);
    assert_eq!((report.rows_read, report.rows_outside), (6, 0));
    assert_eq!(rows(&lab), ["1 Silver", "2 Basic"]);
}

#[test]
fn full_loads_have_the_operation_where_the_pipeline_says_so_and_never_the_table() {
    let lab = lab(&builder().set("raw.csv_op_in_full_load", true));
    let failed = lab.run(START, END).expect_err("a field short");
    assert_refused(failed, 65, "has 3 fields where 4 are expected", "csv_op_in_full_load");
    lab.put("raw/ins/policy/LOAD00000001.csv", "I,2020-01-09 00:00:00,2,Basic\n");
    run(&lab);
    assert_eq!(rows(&lab), ["1 Silver", "2 Basic"]);
}

#[test]
fn names_with_dots_quotes_and_cases_are_told_apart() {
    let text = format!(
        "I,\"a \"\"b\"\"\",my.schema,{AT},1,x\nI,\"A \"\"b\"\"\",my.schema,{AT},1,y\nI,b,my,{AT},1,z\n"
    );
    let lab = builder().set("raw.table", "\"my.schema\".\"a \"\"b\"\"\"").build();
    lab.put(FIRST, text);
    let report = run(&lab);
    assert_eq!((report.rows_read, report.rows_of_other_tables), (1, 2));
    assert_eq!(rows(&lab), ["1 x"]);
    // Names without quotes in another case may be a mistake.
    let lab = builder().build();
    lab.put(FIRST, format!("I,POLICY,ins,{AT},1,x\n"));
    let failed = lab.run(START, END).expect_err("another case");
    assert_refused(failed, 65, "line 1 of ", "raw.table");
    lab.run_with(Task::Run, START, END, &["raw.table=ins.POLICY"]).expect("a run");
    assert_eq!(rows(&lab), ["1 x"]);
}

#[test]
fn a_run_without_a_change_of_the_table_says_so() {
    let lab = lab(&builder().set("raw.table", "ins.policies"));
    let report = run(&lab);
    assert_eq!((report.rows_read, report.rows_of_other_tables), (2, 7));
    let note = report.note.expect("a note");
    assert!(note.contains("`ins.policies`") && note.contains("all 7 changes"), "{note}");
    // Row numbers depend on the table.
    let failed = lab.run_with(Task::Run, START, END, &["raw.table=ins.policy"]);
    assert_refused(failed.expect_err("another table"), 2, "raw.table", "rebuild");
    lab.rebuild(false, &["raw.table=ins.policy"]).expect("rebuilt");
    assert_eq!(rows(&lab), ["1 Silver", "2 Basic"]);
}

#[test]
fn bad_lines_are_bad_whatever_their_table() {
    let lab = builder().set("raw.on_bad_row", "quarantine").build();
    lab.put(FIRST, format!(
        "X,claim,ins,{AT},1\nI,policy,ins,{AT},1,a\nI\nI,policy\nX,policy,ins,{AT},2,b\nB,policy,ins,{AT},3,c\n\
         I,claim,ins,{AT},1,2,3,4,\"5\" inch\nI,Policy,ins,{AT},4,d\nI,policy,ins,{AT}\nI,policy,ins,{AT},5,e,f\n\
         I,claim,ins,{AT},1\nI,policy,ins,{AT},6,g\nU,claim,ins,{AT}"
    ));
    let report = run(&lab);
    assert_eq!(rows(&lab), ["1 a", "6 g"]);
    assert_eq!((report.rows_read, report.rows_rejected, report.rows_of_other_tables), (12, 10, 1));
    assert_eq!(
        quarantined(&lab),
        [
            "1 1 - begins with no operation, and with none of B, C",
            "10 10 - has 7 fields where 6 are expected",
            "12 13 - is cut off: the file does not end with a line feed",
            "3 3 - names no schema and table",
            "4 4 - names no schema and table",
            "5 - Op is none of I, U, D, T",
            "6 - Op is none of I, U, D, T",
            "7 7 - has an unexpected quote",
            "8 8 - names the table of `raw.table` in another case",
            "9 9 - has 4 fields where 6 are expected",
        ]
    );
    lab.catch_up(&[]).expect("caught up");
    assert_eq!(rows(&lab), ["1 a", "6 g"]);
    // A line that is bad stops the run where rows are not quarantined, and names no value.
    let lab = builder().build();
    lab.put(FIRST, "secret,claim,ins,1\n");
    let failed = lab.run(START, END).expect_err("bad");
    assert!(!failed.to_string().contains("secret"), "{failed}");
    assert_refused(failed, 65, "line 1 of", "raw.layout");
}

#[test]
fn short_lines_and_delimiters_hold_for_transaction_files() {
    let lab = builder().set("raw.csv_short_lines", "null").set("raw.csv_delimiter", "|").build();
    lab.put(FIRST, format!("B|7001|1|{AT}\nI|policy|ins|{AT}|1\nC|7001|1|{AT}\n"));
    run(&lab);
    assert_eq!(rows(&lab), ["1 -"]);
    let failed = builder().build();
    failed.put(FIRST, format!("B|7001|1|{AT}\nI|policy|ins|{AT}|1|x\n"));
    let failed = failed.run(START, END).expect_err("another delimiter");
    assert_refused(failed, 65, "line 1 of", "raw.csv_delimiter = \"|\"");
}

#[test]
fn a_file_of_transactions_without_the_layout_is_refused_with_its_key() {
    let lab = lab(&builder());
    let set = ["raw.layout=table"];
    let failed = lab.run_with(Task::Run, START, END, &set).expect_err("a table without a use");
    assert_refused(failed, 2, "`raw.table` has no effect", "raw.layout = \"transactions\"");
    lab.edit_pipeline("layout = \"transactions\"\n", "");
    lab.edit_pipeline("table = \"ins.policy\"\n", "");
    lab.remove("raw/ins/policy/LOAD00000001.csv");
    let failed = lab.run(START, END).expect_err("a line of a transaction");
    assert_refused(
        failed,
        65,
        "has 4 fields where 6 are expected",
        "raw.layout = \"transactions\"",
    );
}

#[test]
fn keys_that_contradict_the_layout_are_refused() {
    let lab = lab(&builder());
    for (set, message, hint) in [
        (&["raw.format=parquet"][..], "`raw.layout` is for CSV files", "raw.format = \"csv\""),
        (&["raw.csv_header=true"], "`raw.layout` is for files without a header", "csv_header"),
        (&["raw.table=policy"], "`raw.table` is `policy`", "schema.table"),
        (&["raw.table=a.b.c"], "`raw.table` is `a.b.c`", "double quotes"),
        (&["raw.layout=tables"], "unknown variant `tables`", ""),
        (&["raw.op=op2"], "does not begin with the operation column `op2`", "in their order"),
        (&["key=[\"table\"]"], "has `table` where table and schema of a line belong", "VARCHAR"),
        (
            &["raw.columns={Op = \"text\", ts = \"timestamp\", id = \"bigint\", level = \"text\"}"],
            "has `ts` where table and schema of a line belong",
            "VARCHAR",
        ),
        (&["raw.columns={Op = \"text\"}"], "lacks columns of transaction files", "in their order"),
    ] {
        let failed = lab.run_with(Task::Run, START, END, set).expect_err(message);
        assert_refused(failed, 2, message, hint);
    }
    lab.edit_pipeline("table = \"ins.policy\"\n", "");
    let failed = lab.run(START, END).expect_err("no table");
    assert_refused(failed, 2, "`raw.table` is missing", "schema.table");
}

/// A line of a file: of which table, the operation, key and value; or of a transaction.
#[derive(Clone, Debug)]
enum Line {
    Change { is_ours: bool, op: &'static str, key: i64, value: u32 },
    Transaction(&'static str),
}

fn line() -> impl Strategy<Value = Line> {
    let change = (any::<bool>(), prop::sample::select(vec!["I", "U", "D"]), 0..4i64, any::<u32>());
    let change =
        change.prop_map(|(is_ours, op, key, value)| Line::Change { is_ours, op, key, value });
    let transaction = prop::sample::select(vec!["B", "C"]).prop_map(Line::Transaction);
    prop_oneof![4 => change, 1 => transaction]
}

#[test]
fn any_windows_over_any_transactions_give_the_last_change_in_file_order() {
    let files = prop::collection::vec(prop::collection::vec(line(), 0..8), 1..5);
    let input = (files, prop::collection::vec((1..6i64, 1..5i64), 0..4));
    // Every change has the same commit time, so that file and line alone decide.
    let text_of = |lines: &Vec<Line>| {
        let lines = lines.iter().map(|line| match line {
            Line::Transaction(word) => format!("{word},1,1,{AT}\n"),
            Line::Change { is_ours, op, key, value } => {
                let (table, more) = if *is_ours { ("policy", "") } else { ("claim", ",1,2") };
                format!("{op},{table},ins,{AT},{key},{value}{more}\n")
            }
        });
        lines.collect::<String>()
    };
    TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() })
        .run(&input, |(files, windows)| {
            let lab = builder().place(Place::Local).build();
            let mut expected = BTreeMap::new();
            for (number, lines) in files.iter().enumerate() {
                let name = format!("raw/cdc/CDC_TXN-202001{:02}000000000.csv", number + 1);
                lab.put(&name, text_of(lines));
                for line in lines {
                    match line {
                        Line::Change { is_ours: true, op: "D", key, .. } => {
                            expected.remove(key);
                        }
                        Line::Change { is_ours: true, key, value, .. } => {
                            expected.insert(*key, *value);
                        }
                        _ => {}
                    }
                }
            }
            for (first, days) in windows {
                lab.run_days(first, first + days);
            }
            run(&lab);
            let expected: Vec<String> =
                expected.iter().map(|(key, value)| format!("{key} {value}")).collect();
            prop_assert_eq!(rows(&lab), expected);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
