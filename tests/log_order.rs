//! What orders changes where no column is their commit time, and commit times that are numbers.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array};

use crate::support::{
    Lab, LabBuilder, PLACES, Result, Task, file_of_rows, integers, optional_texts, texts,
};

const START: &str = "2020-01-01";
const END: &str = "2020-02-01";
const LOAD: &str = "raw/LOAD00000001.parquet";

/// A pipeline of the table (id, v), whose changes are ordered by file and row.
fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", Vec::<String>::new())
        .partition_by(&[])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(v AS VARCHAR) AS v FROM latest")
}

fn put(lab: &Lab, path: &str, rows: &[[&str; 3]]) {
    let cells = |at: usize| rows.iter().map(move |row| row[at]);
    let numbers = integers(cells(1).map(|id| id.parse().expect("an id")));
    let columns = vec![("Op", texts(cells(0))), ("id", numbers), ("v", texts(cells(2)))];
    lab.put_columns(path, columns);
}

fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "v"])
}

/// A full load and two files of changes, as DMS writes them with its default settings.
fn dms_without_times(lab: &Lab) {
    put(lab, LOAD, &[["I", "1", "a"], ["I", "2", "b"], ["I", "3", "c"]]);
    put(lab, "raw/20200102-101500123.parquet", &[["U", "1", "a2"], ["D", "2", "b"]]);
    let second = [["U", "1", "a3"], ["U", "1", "a4"], ["I", "2", "b2"], ["D", "3", ""]];
    put(lab, "raw/20200103-101500123.parquet", &second);
}

#[test]
fn without_order_columns_file_and_row_are_the_order() {
    for place in PLACES {
        let lab = builder().place(place).build();
        dms_without_times(&lab);
        let report = lab.run(START, END).expect("a run");
        assert_eq!(curated(&lab), ["1 a4", "2 b2"]);
        assert_eq!((report.ties, report.rows_superseded, report.rows_deleted), (0, 6, 1));
        // The last day first, then the day before it, then everything once more.
        let daily = builder().place(place).build();
        dms_without_times(&daily);
        for (start, end) in [("2020-01-03", END), (START, "2020-01-03"), (START, END)] {
            let report = daily.run(start, end).expect("a run");
            assert_eq!(report.ties, 0);
        }
        assert_eq!(curated(&daily), ["1 a4", "2 b2"]);
        daily.assert_verified();
    }
}

#[test]
fn csv_files_without_commit_times_are_read_in_the_order_of_files() {
    let lab = builder()
        .set("raw.format", "csv")
        .raw_columns(&[("Op", "VARCHAR"), ("id", "BIGINT"), ("v", "VARCHAR")])
        .build();
    lab.put("raw/LOAD00000001.csv", "1,a\n2,b\n");
    lab.put("raw/20200102-101500123.csv", "U,1,a2\nU,1,a3\nD,2,b\n");
    lab.run(START, END).expect("a run");
    assert_eq!(curated(&lab), ["1 a3"]);
}

#[test]
fn files_are_ordered_by_the_time_in_their_name_then_of_their_folder_then_by_path() {
    // By base name alone the last ones would be first.
    let lab = builder().window_by("modified").build();
    put(&lab, "raw/b/00-last.parquet", &[["I", "1", "no time, second"]]);
    put(&lab, "raw/a/99-first.parquet", &[["I", "1", "no time"], ["I", "2", "no time"]]);
    put(&lab, "raw/03/02/2020/part-9.parquet", &[["I", "3", "folder"], ["I", "2", "folder"]]);
    put(&lab, "raw/z/20200201-000000000.parquet", &[["I", "3", "name"]]);
    put(&lab, "raw/a/20200204-000000000.parquet", &[["I", "4", "name"]]);
    put(&lab, "raw/05/02/2020/part-0.parquet", &[["I", "4", "folder"]]);
    lab.run("2000-01-01", "2100-01-01").expect("a run");
    assert_eq!(curated(&lab), ["1 no time, second", "2 folder", "3 folder", "4 folder"]);
    lab.assert_verified();
}

#[test]
fn the_commit_time_of_a_change_is_that_of_its_file() {
    let lab = builder()
        .window_by("modified")
        .set("curated.partition_by", vec!["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, event_dt FROM latest")
        .build();
    put(&lab, LOAD, &[["I", "1", ""]]);
    put(&lab, "raw/20200102-235959999.parquet", &[["I", "2", ""]]);
    put(&lab, "raw/2020/01/05/part-0.parquet", &[["I", "3", ""]]);
    put(&lab, "raw/part-0.parquet", &[["I", "4", ""]]);
    for path in [LOAD, "raw/part-0.parquet"] {
        lab.set_modified(path, 1_578_700_000);
    }
    lab.run("2000-01-01", "2100-01-01").expect("a run");
    let rows = lab.lines("lake/curated", ["id", "event_dt"]);
    assert_eq!(rows, ["1 2020-01-10", "2 2020-01-02", "3 2020-01-05", "4 2020-01-10"]);
}

#[test]
fn the_day_of_a_delete_is_that_of_its_file() {
    let lab = builder()
        .set("raw.event_time", "event")
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, CAST(id AS VARCHAR) AS v FROM latest")
        .aggregate(
            "deletes",
            "SELECT event_dt AS dt, COUNT(*) AS n FROM history
             WHERE deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt",
        )
        .build();
    let rows = [["I", "1", "2020-01-01"], ["D", "1", "-"]];
    lab.put("raw/20200107-000000000.parquet", file_of_rows(&["Op", "id", "event"], &rows));
    lab.run(START, END).expect("a run");
    assert_eq!(lab.lines("lake/deletes", ["dt", "n"]), ["2020-01-07 1"]);
}

#[test]
fn settings_that_need_an_order_column_are_refused_without_one() {
    for (set, message) in [
        ("raw.on_tie=\"fail\"", "`raw.on_tie` cannot be `fail` without `raw.order_by`"),
        ("raw.window_by=\"commit\"", "`raw.window_by` cannot be `commit` without a column"),
    ] {
        let lab = builder().build();
        dms_without_times(&lab);
        let error = lab.run_with(Task::Run, START, END, &[set]).expect_err("no");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint.is_some());
    }
}

/// Changes of one key in the order of a log sequence, which is no time.
fn with_sequence(lab: &Lab, sequence: [ArrayRef; 2]) {
    for (day, column) in [2, 3].into_iter().zip(sequence) {
        let columns = vec![
            ("Op", texts(["U", "D"])),
            ("lsn", column),
            ("id", integers([1, 2])),
            ("v", texts([format!("of {day}"), String::new()])),
        ];
        lab.put_columns(&format!("raw/202001{day:02}-000000000.parquet"), columns);
    }
}

#[test]
fn where_the_order_is_no_time_the_commit_time_is_the_files() {
    let binary =
        |bytes: [[u8; 2]; 2]| -> ArrayRef { Arc::new(BinaryArray::from_iter_values(bytes)) };
    let columns: [[ArrayRef; 2]; 3] = [
        [integers([1, 2]), integers([30, 40])],
        [binary([[0, 1], [0, 2]]), binary([[0, 255], [1, 0]])],
        [texts(["0000/01", "0000/02"]), texts(["0000/0A", "0001/00"])],
    ];
    for sequence in columns {
        let lab = builder()
            .set("raw.order_by", vec!["lsn"])
            .set("curated.partition_by", vec!["event_dt"])
            .curated_sql("SELECT CAST(id AS BIGINT) AS id, v, event_dt FROM latest")
            .build();
        with_sequence(&lab, sequence);
        // The later file first.
        for (start, end) in [("2020-01-03", END), (START, END)] {
            lab.run(start, end).expect("a run");
        }
        assert_eq!(lab.lines("lake/curated", ["id", "v", "event_dt"]), ["1 of 3 2020-01-03"]);
        lab.assert_verified();
        let by_commit = lab.run_with(
            Task::Run,
            START,
            END,
            &["name=\"other\"", "curated.url=\"other\"", "raw.window_by=\"commit\""],
        );
        let message = by_commit.expect_err("refused").to_string();
        assert!(message.contains("no column of `raw.order_by` is a time"), "{message}");
    }
}

#[test]
fn a_full_load_without_the_order_column_is_before_all_changes_whatever_run_finds_it() {
    let sequence = |numbers: [i64; 2]| ("lsn", integers(numbers));
    let load = |lab: &Lab, name: &str, v: &str, has_column: bool| {
        let mut columns = vec![("id", integers([1, 2])), ("v", texts([v, v]))];
        if has_column {
            columns.push(("lsn", Arc::new(Int64Array::new_null(2))));
        }
        lab.put_columns(name, columns);
    };
    for has_column in [false, true] {
        for keep in ["latest", "latest-per-day"] {
            let lab = builder()
                .keep(keep)
                .set("raw.order_by", vec!["lsn"])
                .curated_sql("SELECT CAST(id AS BIGINT) AS id, v, event_dt FROM latest")
                .aggregate("daily", crate::support::COUNT_PER_DAY)
                .build();
            // The later full load is found first.
            load(&lab, "raw/LOAD00000002.parquet", "second load", has_column);
            lab.run(START, END).expect("a run");
            load(&lab, LOAD, "first load", has_column);
            lab.run(START, END).expect("a run");
            assert_eq!(curated(&lab), ["1 second load", "2 second load"]);
            let columns = vec![
                ("Op", texts(["U", "U"])),
                sequence([9, 8]),
                ("id", integers([1, 1])),
                ("v", texts(["last", "first"])),
            ];
            lab.put_columns("raw/20200102-000000000.parquet", columns);
            lab.run(START, END).expect("a run");
            load(&lab, "raw/LOAD00000003.parquet", "third load", has_column);
            lab.run(START, END).expect("a run");
            let rows = curated(&lab);
            assert!(rows.contains(&"1 last".into()), "{rows:?}");
            assert!(rows.contains(&"2 third load".into()), "{rows:?}");
            assert!(!rows.iter().any(|row| row.contains("first")), "{rows:?}");
            lab.assert_verified();
        }
    }
}

/// One change at a number of units since 1970, 2020-01-02 03:04:05.
fn at_number(builder: LabBuilder, number: i64) -> Result<Vec<String>> {
    let lab = builder
        .set("raw.order_by", vec!["at"])
        .set("curated.partition_by", vec!["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, v, event_dt FROM latest")
        .build();
    let columns = vec![
        ("Op", texts(["I", "U"])),
        ("at", integers([number, number - 1])),
        ("id", integers([1, 1])),
        ("v", texts(["last", "first"])),
    ];
    lab.put_columns("raw/20200105-000000000.parquet", columns);
    lab.run(START, END)?;
    Ok(lab.lines("lake/curated", ["id", "v", "event_dt"]))
}

#[test]
fn numbers_are_commit_times_in_their_unit() {
    let second = 1_577_934_245;
    for (unit, number) in [
        ("s", second),
        ("ms", second * 1_000),
        ("us", second * 1_000_000),
        ("ns", second * 1_000_000_000),
    ] {
        for explicit in [false, true] {
            let builder = builder().set("raw.commit_time_unit", unit);
            let builder = if explicit { builder.set("raw.commit_time", "at") } else { builder };
            assert_eq!(at_number(builder, number).expect("a run"), ["1 last 2020-01-02"], "{unit}");
        }
    }
    // Without a unit, and not named, it is a sequence.
    assert_eq!(at_number(builder(), second).expect("a run"), ["1 last 2020-01-05"]);
    let declared = builder().raw_columns(&[("at", "TIMESTAMP(3)")]);
    assert_eq!(at_number(declared, second * 1_000).expect("a run"), ["1 last 2020-01-02"]);
}

#[test]
fn a_number_without_a_unit_is_no_commit_time() {
    let named = || builder().set("raw.commit_time", "at");
    for builder in [
        named(),
        builder().raw_columns(&[("at", "TIMESTAMP")]),
        named().raw_columns(&[("at", "TIMESTAMP(0)")]),
    ] {
        let error = at_number(builder, 1_577_934_245_000).expect_err("refused");
        let message = error.to_string();
        assert!(
            message.contains("column `at` of ") && message.contains("is Int64: the unit"),
            "{message}"
        );
        assert!(error.hint.expect("a hint").contains("raw.commit_time_unit"));
    }
    let unknown = builder().set("raw.commit_time_unit", "m");
    let error = unknown.build().run(START, END).expect_err("refused");
    assert!(error.to_string().contains("commit_time_unit"), "{error}");
}

#[test]
fn a_unit_of_a_commit_time_that_is_no_number_is_refused() {
    let lab = builder()
        .set("raw.commit_time_unit", "ms")
        .set("raw.commit_time", "ts")
        .set("raw.order_by", vec!["ts"])
        .build();
    lab.put_day(5, &[("I", 1, "a")]);
    let error = lab.run(START, END).expect_err("refused");
    assert!(error.to_string().contains("`raw.commit_time_unit` is for integers"), "{error}");
}

#[test]
fn an_order_that_goes_backwards_from_file_to_file_is_counted() {
    let warned = |order: &str, second: [&str; 3]| {
        let lab = builder().set("raw.order_by", vec![order]).build();
        let columns = ["Op", "id", "v", "day", "n"];
        let row = |op, id, day, n| [op, id, "1", day, n];
        let first = [row("I", "1", "2019-05-01", "1"), row("I", "2", "2019-10-17", "2")];
        lab.put("raw/20200101-000000000.parquet", file_of_rows(&columns, &first));
        let rows = [
            row("U", "1", second[0], "3"),
            row("U", "2", second[1], "4"),
            row("I", "3", second[2], "5"),
        ];
        lab.put("raw/20200102-000000000.parquet", file_of_rows(&columns, &rows));
        let output = lab.program_for("run", START, END).succeed();
        let lines = output.stderr.lines();
        lines.filter(|line| line.contains("goes backwards")).map(String::from).collect::<Vec<_>>()
    };
    let business = warned("day", ["2019-05-01", "2019-10-17", "2019-10-16"]);
    assert_eq!(business.len(), 1);
    assert!(
        business[0].contains("`day` goes backwards from file to file: 2 rows, in 1 files"),
        "{}",
        business[0]
    );
    assert!(warned("day", ["2019-10-17", "2019-10-18", "2019-10-17"]).is_empty());
    // A commit time is close to that of its file, also where changes are delivered again.
    assert!(warned("day", ["2020-01-02", "2019-12-31", "2020-01-01"]).is_empty());
    // A sequence of the log never does.
    assert!(warned("n", ["2019-05-01", "2019-10-17", "2019-10-16"]).is_empty());
}

#[test]
fn explain_key_names_the_file_or_the_row_that_decides() {
    let lab = builder().build();
    dms_without_times(&lab);
    lab.run(START, END).expect("a run");
    let why = |key: &str| {
        let explained = lab.explain(&[key]);
        let won = explained.changes.iter().find(|change| change.wins).expect("a winner");
        won.why.clone().expect("a reason")
    };
    assert_eq!(why("1"), "its row comes last in the file");
    assert_eq!(why("2"), "its file comes last");
}

#[test]
fn a_state_with_an_order_column_is_not_continued_without_one() {
    let lab = builder().set("raw.order_by", vec!["v"]).set("raw.commit_time", "v").build();
    let columns = vec![
        ("Op", optional_texts([Some("I")])),
        ("id", integers([1])),
        ("v", texts(["2020-01-01 00:00:00"])),
    ];
    lab.put_columns("raw/20200102-000000000.parquet", columns);
    lab.run(START, END).expect("a run");
    lab.edit_pipeline("order_by = [\"v\"]", "order_by = []");
    let error = lab.run(START, END).expect_err("refused");
    assert!(error.to_string().contains("`raw.order_by`"), "{error}");
}
