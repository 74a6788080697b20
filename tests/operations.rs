//! Operations: the values of other tools, rows that are no change, deletes by a condition, and the
//! dialects that set them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, FixedSizeBinaryArray};

use crate::support::{
    Lab, LabBuilder, PLACES, Task, file_of_rows, integers, optional_texts, texts,
};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";
const FILE: &str = "raw/20200102-000000000.parquet";

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", Vec::<String>::new())
        .partition_by(&[])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest")
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v"])
}

fn list(values: &[&str]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[test]
fn operations_have_the_values_that_the_pipeline_names() {
    for place in PLACES {
        let lab = builder()
            .place(place)
            .set("raw.op", "kind")
            .set("raw.op_values.insert", list(&["c", "r"]))
            .build();
        let rows = [
            ["r", "1", "10"],
            ["R", "2", "20"],
            ["c", "3", "30"],
            ["u", "1", "11"],
            ["d", "2", "-"],
        ];
        lab.put(FILE, file_of_rows(&["kind", "id", "v"], &rows));
        lab.run(START, END).expect("a run");
        assert_eq!(curated(&lab), ["1 11", "3 30"]);
        lab.assert_verified();
    }
}

#[test]
fn rows_that_are_no_change_are_counted_and_not_folded() {
    let lab = builder()
        .set("raw.op_values.ignore", list(&["B"]))
        .set("raw.before_image_prefix", "old_")
        .aggregate("daily", crate::support::COUNT_PER_DAY)
        .build();
    // The ignored rows have a null key, a value that is not read, and a key that nobody has.
    let rows = [
        ["I", "1", "10"],
        ["B", "1", "10"],
        ["U", "1", "11"],
        ["B", "-", "-"],
        ["B", "9", "9"],
        ["D", "2", "-"],
    ];
    lab.put(FILE, file_of_rows(&["Op", "id", "v"], &rows));
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.rows_read, report.rows_ignored, report.rows_latest), (6, 3, 1));
    assert_eq!(curated(&lab), ["1 11"]);
    assert_eq!(lab.explain(&["1"]).changes.len(), 2);
    lab.assert_verified();
}

#[test]
fn ignored_rows_are_not_in_windows_of_rows() {
    let lab = builder()
        .set("raw.order_by", vec!["at"])
        .set("raw.op_values.ignore", list(&["B"]))
        .window_by("commit")
        .build();
    let rows = [
        ["I", "1", "10", "2020-01-01 00:00:00"],
        ["B", "1", "10", "2020-01-03 00:00:00"],
        ["U", "1", "11", "2020-01-03 00:00:00"],
    ];
    lab.put(FILE, file_of_rows(&["Op", "id", "v", "at"], &rows));
    for (start, end) in [("2020-01-03", END), (START, "2020-01-03"), (START, END)] {
        lab.run(start, end).expect("a run");
    }
    assert_eq!(curated(&lab), ["1 11"]);
    lab.assert_verified();
}

#[test]
fn a_value_that_is_no_operation_names_the_values_that_are() {
    let lab = builder().set("raw.op_values.delete", list(&["x"])).build();
    lab.put(FILE, file_of_rows(&["Op", "id", "v"], &[["I", "1", "1"], ["D", "1", "-"]]));
    let error = lab.run(START, END).expect_err("refused");
    assert!(error.to_string().ends_with("column `Op` is none of I, U, x, T"), "{error}");
    let hint = error.hint.expect("a hint");
    assert!(hint.contains("[raw.op_values]") && hint.contains("raw.dialect"), "{hint}");
    // The other row is folded if bad rows are quarantined.
    let lab = builder()
        .set("raw.op_values.delete", list(&["x"]))
        .set("raw.on_bad_row", "quarantine")
        .build();
    lab.put(FILE, file_of_rows(&["Op", "id", "v"], &[["I", "1", "1"], ["D", "1", "-"]]));
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.rows_rejected, curated(&lab)), (1, vec!["1 1".to_string()]));
}

#[test]
fn wrong_values_of_the_keys_are_refused() {
    for (set, message) in [
        ("raw.op_values.delete=[\"i\"]", ""),
        ("raw.op_values.delete=[\"x\", \"X\"]", "`raw.op_values.delete` lists `X` twice"),
        ("raw.op_values.remove=[\"x\"]", "unknown key `raw.op_values.remove`"),
        ("raw.op=\"\"", "`raw.op` is empty"),
        ("raw.delete_when=\" \"", "`raw.delete_when` is empty"),
        ("raw.delete_when=\"v >\"", "`raw.delete_when` cannot be planned"),
        ("raw.delete_when=\"nothing = 1\"", "`raw.delete_when` cannot be planned"),
        ("raw.delete_when=\"v\"", "`raw.delete_when` is Int64, not true or false"),
        (
            "raw.delete_when=\"v > random()\"",
            "`raw.delete_when` has `random`, which is not immutable",
        ),
        (
            "raw.delete_when=\"v > 1 AND now() IS NOT NULL\"",
            "`raw.delete_when` has `now`, which is not immutable",
        ),
        ("raw.delete_when=\"max(v) > 1\"", "`raw.delete_when` has an aggregate"),
        ("raw.delete_when=\"v > $1\"", "`raw.delete_when` has the parameter $1"),
        ("raw.dialect=\"oracle\"", "raw.dialect"),
    ] {
        let lab = builder().build();
        lab.put(FILE, file_of_rows(&["Op", "id", "v"], &[["I", "1", "1"]]));
        let result = lab.run_with(Task::Run, START, END, &[set]);
        if message.is_empty() {
            // A list takes a value from a default.
            result.expect("a run");
            assert!(curated(&lab).is_empty());
            continue;
        }
        let error = result.expect_err(set);
        assert!(error.to_string().contains(message), "{set}: {error}");
        assert!(lab.list_all("lake").is_empty(), "{set}");
    }
    let lab = builder().set("raw.dialect", "flat").build();
    let set = ["raw.op_values.delete=[\"x\"]"];
    let error = lab.run_with(Task::Run, START, END, &set).expect_err("refused");
    assert!(error.to_string().contains("`raw.op_values` has no effect"), "{error}");
}

#[test]
fn a_condition_makes_deletes_with_the_day_of_their_commit_time() {
    for place in PLACES {
        let lab = builder()
            .place(place)
            .set("raw.dialect", "flat")
            .set("raw.order_by", vec!["at"])
            .set("raw.event_time", "created")
            .set("raw.delete_when", "deleted_at IS NOT NULL OR v < 0")
            .aggregate(
                "deletes",
                "SELECT event_dt AS dt, COUNT(*) AS n FROM history
                 WHERE deleted AND event_dt >= $start_date AND event_dt < $end_date
                 GROUP BY event_dt",
            )
            .build();
        let row = |id, v, at, deleted| [id, v, at, "2020-01-01", deleted];
        let rows = [
            row("1", "1", "2020-01-02 00:00:00", "-"),
            row("2", "2", "2020-01-02 00:00:00", "-"),
            row("2", "2", "2020-01-03 00:00:00", "2020-01-03"),
            row("3", "-1", "2020-01-04 00:00:00", "-"),
            // A null condition is no delete.
            row("4", "-", "2020-01-04 00:00:00", "-"),
        ];
        lab.put(FILE, file_of_rows(&["id", "v", "at", "created", "deleted_at"], &rows));
        let report = lab.run(START, END).expect("a run");
        assert_eq!(curated(&lab), ["1 1", "4 -"]);
        assert_eq!(report.rows_deleted, 2);
        let deletes = lab.lines("lake/deletes", ["dt", "n"]);
        assert_eq!(deletes, ["2020-01-03 1", "2020-01-04 1"]);
        lab.assert_verified();
    }
}

#[test]
fn a_row_whose_condition_cannot_be_computed_is_bad() {
    let flat =
        || builder().set("raw.dialect", "flat").set("raw.delete_when", "CAST(state AS BIGINT) = 1");
    let rows = [["1", "1", "0"], ["2", "2", "x"], ["3", "3", "1"]];
    let file = || file_of_rows(&["id", "v", "state"], &rows);
    let lab = flat().build();
    lab.put(FILE, file());
    let error = lab.run(START, END).expect_err("refused");
    assert!(error.to_string().contains("row 2 of "), "{error}");
    assert!(error.to_string().contains("`raw.delete_when`"), "{error}");
    let lab = flat().set("raw.on_bad_row", "quarantine").build();
    lab.put(FILE, file());
    assert_eq!(lab.run(START, END).expect("a run").rows_rejected, 1);
    assert_eq!(curated(&lab), ["1 1"]);
}

#[test]
fn flat_changes_need_no_operation_even_if_a_column_is_called_like_one() {
    let lab = builder().set("raw.dialect", "flat").build();
    let rows = [["c", "1", "1"], ["u", "1", "2"], ["I", "2", "3"]];
    lab.put(FILE, file_of_rows(&["op", "id", "v"], &rows));
    lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["1 2", "2 3"]);
}

#[test]
fn change_tables_of_sql_server_are_read_by_their_dialect() {
    let lab = Lab::builder()
        .set("raw.dialect", "sql-server-cdc")
        .partition_by(&[])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest");
    let lab = lab.unset("raw.order_by").build();
    let binary = |bytes: &[u8]| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(bytes.iter().map(|last| [0, 0, *last])))
    };
    // Out of order: the last row of key 1 is in the middle.
    let columns = vec![
        ("__$start_lsn", binary(&[1, 3, 3, 2, 2])),
        ("__$seqval", binary(&[1, 9, 9, 7, 8])),
        ("__$operation", integers([2, 3, 4, 2, 1])),
        ("id", integers([1, 1, 1, 2, 2])),
        ("v", integers([10, 10, 11, 20, 20])),
    ];
    lab.put_columns(FILE, columns);
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.rows_ignored, report.ties), (1, 0));
    assert_eq!(curated(&lab), ["1 11"]);
}

#[test]
fn header_columns_of_qlik_are_read_by_their_dialect() {
    let lab = Lab::builder()
        .set("raw.dialect", "qlik")
        .partition_by(&[])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest");
    let lab = lab.unset("raw.order_by").build();
    let columns = vec![
        (
            "header__change_seq",
            texts([
                "20200102000000000000000000000000001",
                "20200102000000000000000000000000002",
                "20200102000000000000000000000000003",
            ]),
        ),
        ("header__change_oper", optional_texts([Some("I"), Some("B"), Some("U")])),
        (
            "header__timestamp",
            texts([
                "2020-01-02 00:00:00.000",
                "2020-01-02 00:00:01.000",
                "2020-01-02 00:00:01.000",
            ]),
        ),
        ("id", integers([1, 1, 1])),
        ("v", integers([10, 10, 11])),
    ];
    lab.put_columns(FILE, columns);
    let report = lab.run(START, END).expect("a run");
    assert_eq!((report.rows_ignored, curated(&lab)), (1, vec!["1 11".to_string()]));
}

#[test]
fn a_row_before_an_update_may_be_a_delete_of_its_key() {
    let lsn = |lasts: &[u8]| -> ArrayRef {
        let values = lasts.iter().map(|last| [0, *last]);
        Arc::new(FixedSizeBinaryArray::try_from_iter(values).expect("two bytes each"))
    };
    type Case<'a> = (&'a str, [&'a str; 2], Vec<(&'a str, ArrayRef)>);
    let cases: [Case<'_>; 2] = [
        (
            "sql-server-cdc",
            ["1", "3"],
            vec![
                ("__$start_lsn", lsn(&[1, 2, 2, 3, 3])),
                ("__$seqval", lsn(&[1, 1, 1, 1, 1])),
                ("__$operation", integers([2, 4, 3, 3, 4])),
            ],
        ),
        (
            "qlik",
            ["D", "B"],
            vec![
                ("header__change_seq", texts(["1", "3", "2", "4", "5"])),
                ("header__change_oper", texts(["I", "U", "B", "B", "U"])),
                ("header__timestamp", texts(["2020-01-02 00:00:00"; 5])),
            ],
        ),
    ];
    for (dialect, delete, mut columns) in cases {
        let lab = Lab::builder()
            .set("raw.dialect", dialect)
            .set("raw.op_values.delete", list(&delete))
            .partition_by(&[])
            .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS BIGINT) AS v FROM latest")
            .unset("raw.order_by")
            .build();
        // Key 1 becomes key 2, which is then updated.
        columns.push(("id", integers([1, 2, 1, 2, 2])));
        columns.push(("v", integers([10, 10, 10, 10, 11])));
        lab.put_columns(FILE, columns);
        let report = lab.run(START, END).expect("a run");
        assert_eq!((report.rows_ignored, curated(&lab)), (0, list(&["2 11"])), "{dialect}");
    }
}

#[test]
fn other_meanings_of_operations_are_not_continued() {
    let lab = builder().build();
    lab.put(FILE, file_of_rows(&["Op", "id", "v"], &[["I", "1", "1"]]));
    lab.run(START, END).expect("a run");
    for (set, key) in [
        ("raw.op_values.ignore=[\"X\"]", "`raw.op_values`"),
        ("raw.delete_when=\"v = 1\"", "`raw.delete_when`"),
        ("raw.op=\"v\"", "`raw.op`"),
        ("raw.dialect=\"flat\"", "`raw.op_values`"),
        ("raw.commit_time_unit=\"ms\"", "`raw.commit_time_unit`"),
    ] {
        let error = lab.run_with(Task::Run, START, END, &[set]).expect_err(set);
        assert!(error.to_string().contains(key), "{set}: {error}");
    }
}
