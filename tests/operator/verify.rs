//! `verify`: the table compared with raw, or with another table.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int32Array, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema};
use glueless::state::ledger::NEWEST_FORMAT;

use crate::support::{
    Answer, Change, Compared, DAY_US, Lab, PLACES, Result, STATE, Task, Verified, assert_refused,
    day, integers, parquet, raw_file, texts, window,
};

use super::{builder, lab, lab_with_five_rows, put, rewrite, with_column};

fn key_and_why(found: &Verified) -> (String, String) {
    let first =
        found.first_difference.as_ref().unwrap_or_else(|| panic!("no key: {:?}", found.notes));
    let key: Vec<String> =
        first.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
    (key.join(","), first.why.clone())
}

#[test]
fn verify_names_the_first_key_that_differs_and_why() {
    let values = |batch: &RecordBatch, name: &str, values: Vec<i64>| {
        with_column(batch, name, integers(values))
    };
    type Tamper = Box<dyn Fn(RecordBatch) -> RecordBatch>;
    let cases: Vec<(Tamper, u64, &str, &str)> = vec![
        (
            Box::new(move |batch| values(&batch, "v", vec![1, 1, 7, 1])),
            5,
            "id=3",
            "its row differs in `v`",
        ),
        (Box::new(|batch| batch.slice(1, 3)), 4, "id=1", "its row is missing"),
        (
            Box::new(|batch| {
                concat_batches(&batch.schema(), &[batch.clone(), batch.slice(1, 1)]).expect("one")
            }),
            6,
            "id=2",
            "it has 2 rows, and 1 are expected",
        ),
        (
            Box::new(move |batch| values(&batch, "id", vec![0, 2, 3, 4])),
            5,
            "id=0",
            "it has a row that is not expected",
        ),
    ];
    for (tamper, rows_found, key, why) in cases {
        let (lab, path) = lab_with_five_rows();
        rewrite(&lab, &path, tamper);
        let before = lab.contents("lake");
        let found = lab.verify().expect("compared");
        assert_eq!(lab.contents("lake"), before);
        assert!(!found.is_equal && found.exit_code() == 1);
        assert_eq!((found.rows_expected, found.rows_found), (5, rows_found));
        assert_eq!(found.partitions_different.len(), 1);
        let partition = &found.partitions_different[0];
        assert_eq!(partition.partition, "event_dt=2020-01-01/cat=a");
        assert_ne!(partition.hash_expected, partition.hash_found);
        assert_eq!(key_and_why(&found), (key.to_string(), why.to_string()));
        assert_eq!(found.days_different.len(), usize::from(rows_found != 5));
        let text = found.text();
        assert!(text.contains("DIFFERENT") && text.contains(why), "{text}");
    }
}

#[test]
fn verify_sees_files_that_are_gone_and_files_that_nobody_published() {
    let (lab, path) = lab_with_five_rows();
    let bytes = lab.get(&path).to_vec();
    lab.remove(&path);
    let found = lab.verify().expect("compared");
    assert_eq!(
        found.files_missing,
        ["event_dt=2020-01-01/cat=a/part-c00000001-00000.snappy.parquet"]
    );
    assert_eq!((found.rows_expected, found.rows_found), (5, 1));
    assert!(!found.is_equal);
    lab.put(&path, bytes.clone());
    lab.assert_verified();
    lab.put("lake/curated/event_dt=2020-01-01/cat=a/more.parquet", bytes);
    let found = lab.verify().expect("compared");
    assert_eq!(found.files_unknown, ["event_dt=2020-01-01/cat=a/more.parquet"]);
    assert_eq!(found.exit_code(), 1);
}

#[test]
fn verify_refuses_where_raw_is_not_what_was_folded() {
    let (lab, _) = lab_with_five_rows();
    let raw = &raw_file(1);
    let bytes = lab.get(raw).to_vec();
    lab.remove(raw);
    assert_refused(
        lab.verify().expect_err("gone"),
        65,
        "1 inputs that were folded are missing",
        "restore them",
    );
    lab.put(raw, bytes);
    lab.set_modified(raw, 7);
    lab.assert_verified();
    let rows = (1..=4).map(|id| ("I", id, "c"));
    lab.put_day(1, &rows.collect::<Vec<_>>());
    assert_refused(
        lab.verify().expect_err("changed"),
        65,
        "20200101-000000000.parquet was folded by an earlier run and has changed since",
        "restore it",
    );
    let fresh = builder().build();
    assert_refused(fresh.verify().expect_err("nothing"), 2, "nothing to verify", "glueless run");
}

#[test]
fn verify_waits_for_what_is_being_published() {
    let (lab, _) = lab_with_five_rows();
    lab.put(&format!("{STATE}/publishing/00000000000000000002-x"), "");
    assert_refused(
        lab.verify().expect_err("busy"),
        75,
        "is publishing, or was interrupted",
        "verify again",
    );
    // Any run finishes or removes it.
    lab.run_days(1, 3);
    lab.assert_verified();
    // A run that has not committed yet has changed nothing.
    lab.put(&format!("{STATE}/publishing/00000000000000000099-x"), "");
    lab.assert_verified();
}

#[test]
fn verify_compares_only_some_days_where_that_is_asked_for() {
    let lab = builder().keep("latest-per-day").build();
    for day in 1..=3 {
        let at = (day - 1) * DAY_US;
        lab.put_changes(
            &raw_file(day),
            day,
            &[Change { op: "I", id: day, cat: "a", v: day, us: 0, event_us: at }],
        );
    }
    lab.run_days(1, 4);
    let path = lab.list("lake/curated").into_iter().find(|path| path.contains("2020-01-02"));
    lab.remove(&format!("lake/curated/{}", path.expect("a file")));
    let some = |first: i64, end: i64| {
        let compared = Compared {
            days: Some(window(&day(first), &day(end))),
            against: None,
            lag: None,
            source: None,
        };
        lab.verify_with(compared, &[]).expect("compared")
    };
    let found = some(1, 2);
    assert_eq!(
        (found.rows_expected, found.rows_found, found.partitions_different.len()),
        (1, 1, 0)
    );
    let found = some(2, 3);
    assert_eq!((found.rows_expected, found.rows_found), (1, 0));
    assert_eq!(found.days_different[0].day.expect("a day").to_string(), "2020-01-02");
}

fn against(lab: &Lab, url: &str) -> Result<Verified> {
    let compared = Compared { days: None, against: Some(url.to_string()), lag: None, source: None };
    lab.verify_with(compared, &[])
}

#[test]
fn another_table_is_compared_by_its_values_wherever_its_files_lie() {
    let (lab, path) = lab_with_five_rows();
    // A copy in one file, with another order of rows and columns, and other types.
    let ids = [9, 4, 3, 2, 1];
    let schema = Schema::new(vec![
        Field::new("cat", DataType::LargeUtf8, true),
        Field::new("event_dt", DataType::Utf8, true),
        Field::new("extra", DataType::Int32, true),
        Field::new("id", DataType::Int32, true),
        Field::new("v", DataType::Int64, true),
    ]);
    let cats = cast(&texts(ids.map(|id| if id == 9 { "b" } else { "a" })), &DataType::LargeUtf8)
        .expect("cast");
    let columns: Vec<ArrayRef> = vec![
        cats,
        texts(["2020-01-01"; 5]),
        Arc::new(Int32Array::from(vec![0; 5])),
        Arc::new(Int32Array::from(ids.to_vec())),
        integers(ids.map(|id| if id == 9 { 2 } else { 1 })),
    ];
    let copy = RecordBatch::try_new(Arc::new(schema), columns).expect("a batch");
    lab.put("copy/all.parquet", parquet(&copy, None));
    let copy = format!("{}/copy", lab.base);
    let found = against(&lab, &copy).expect("compared");
    assert!(found.is_equal, "{}", found.text());
    assert_eq!((found.rows_expected, found.rows_found, found.partitions), (5, 5, 2));
    // A copy in Hive folders, first the same and then with a row less.
    let hive = format!("{}/hive", lab.base);
    for file in lab.list("lake/curated") {
        lab.copy(&format!("lake/curated/{file}"), &format!("hive/{file}"));
    }
    assert!(against(&lab, &hive).expect("compared").is_equal);
    let in_hive = path.replace("lake/curated", "hive");
    rewrite(&lab, &in_hive, |batch| batch.slice(0, 3));
    let found = against(&lab, &hive).expect("compared");
    assert_eq!((found.rows_expected, found.rows_found), (4, 5));
    assert_eq!(key_and_why(&found), ("id=4".into(), "it has a row that is not expected".into()));
    // A copy with a column less.
    rewrite(&lab, "copy/all.parquet", |batch| batch.project(&[0, 1, 2, 3]).expect("projected"));
    let found = against(&lab, &copy).expect("compared");
    assert_eq!(found.columns_missing, ["v"]);
    assert_eq!(found.exit_code(), 1);
    let error = against(&lab, &format!("{}/nowhere", lab.base)).expect_err("nothing there");
    assert_refused(error, 2, "it is not a folder", "--against takes a Delta table");
}

#[test]
fn a_delta_table_is_compared_with_a_parquet_table() {
    for place in PLACES {
        let [one, other] = ["parquet", "delta"].map(|format| {
            let lab = builder().place(place).format(format).build();
            (1..=3).for_each(|day| put(&lab, day));
            lab.run_days(1, 4);
            lab
        });
        let found = against(&one, &format!("{}/lake/curated", other.base)).expect("compared");
        assert!(found.is_equal, "{}", found.text());
        assert_eq!(found.rows_expected, 4);
        let found = against(&other, &format!("{}/lake/curated", one.base)).expect("compared");
        assert!(found.is_equal, "{}", found.text());
        other.put_day(4, &[("U", 102, "c")]);
        other.run_days(4, 5);
        let found = against(&one, &format!("{}/lake/curated", other.base)).expect("compared");
        assert_eq!(found.partitions_different.len(), 2);
    }
}

#[test]
fn a_state_of_a_newer_version_is_refused() {
    let (lab, _) = lab_with_five_rows();
    let state = format!("{STATE}/versions");
    let ledgers = lab.list_all(&state).into_iter();
    let ledger = ledgers.filter(|path| path.starts_with("kind=ledger")).min().expect("a ledger");
    let path = format!("{state}/{ledger}");
    let size = lab.get(&path).len();
    rewrite(&lab, &path, |batch| {
        let column = batch.schema().index_of("record").expect("records");
        let mut lines: Vec<String> = {
            let records = cast(batch.column(column), &DataType::Utf8).expect("text");
            records.as_string::<i32>().iter().flatten().map(String::from).collect()
        };
        assert_eq!(lines[0], r#"{"format":1}"#);
        lines[0] = format!("{{\"format\":{}}}", NEWEST_FORMAT + 1);
        // A kind of record that this version does not know.
        lines[1] = r#"{"sealed":{"by":"somebody"}}"#.into();
        with_column(&batch, "record", texts(lines))
    });
    // The log holds the size of the file.
    let log = format!("{state}/_delta_log/00000000000000000001.json");
    let text = String::from_utf8(lab.get(&log).to_vec()).expect("text");
    let (old, new) = [size, lab.get(&path).len()].map(|size| format!("\"size\":{size},")).into();
    assert!(text.contains(&old), "{text}");
    lab.put(&log, text.replace(&old, &new).into_bytes());
    for error in [
        lab.verify().expect_err("newer"),
        lab.run("2020-01-03", "2020-01-04").expect_err("newer"),
        lab.plan("2020-01-03", "2020-01-04", false).expect_err("newer"),
    ] {
        assert_refused(error, 2, "was written by a newer version of glueless", "use that version");
    }
}

#[test]
fn verify_compares_the_aggregates_too() {
    let (lab, _) = lab_with_five_rows();
    let found = lab.verify().expect("compared");
    let aggregates: Vec<(&str, u64, usize)> = found
        .aggregates
        .iter()
        .map(|one| (one.name.as_str(), one.days, one.days_different.len()))
        .collect();
    assert_eq!(aggregates, [("daily", 1, 0), ("status", 2, 0)]);
    let path = lab.list("lake/status").into_iter().find(|path| path.contains("2020-01-02"));
    let path = format!("lake/status/{}", path.expect("a file"));
    let bytes = lab.get(&path).to_vec();
    rewrite(&lab, &path, |batch| with_column(&batch, "n", integers([7])));
    let found = lab.verify().expect("compared");
    assert!(!found.is_equal && found.partitions_different.is_empty());
    let differs = &found.aggregates[1].days_different;
    assert_eq!((differs.len(), differs[0].partition.as_str()), (1, "dt=2020-01-02"));
    assert!(found.text().contains("status: 2 days, 1 of them differ, such as dt=2020-01-02"));
    lab.remove(&path);
    let found = lab.verify().expect("compared");
    assert_eq!((found.is_equal, found.aggregates[1].files_missing.len()), (false, 1));
    lab.put(&path, bytes);
    // Aggregates that do not have the last changes yet are not compared.
    lab.put_day(3, &[("I", 7, "a")]);
    lab.run_with(Task::Curate, "2020-01-03", "2020-01-04", &[]).expect("a run");
    let found = lab.assert_verified();
    let note = found.aggregates[0].note.as_ref().expect("a note");
    assert!(note.contains("the last changes are not in it yet"), "{note}");
    // Once they have them, everything is compared again.
    lab.run_with(Task::Aggregate, "2020-01-03", "2020-01-04", &[]).expect("a run");
    let found = lab.verify().expect("compared");
    assert!(found.is_equal && found.aggregates[1].days == 3, "{}", found.text());
}

#[test]
fn days_without_rows_are_said_to_have_none() {
    let (lab, _) = lab_with_five_rows();
    let compared = Compared {
        days: Some(window("2021-01-01", "2021-01-02")),
        against: None,
        lag: None,
        source: None,
    };
    let found = lab.verify_with(compared, &[]).expect("compared");
    assert!(found.is_equal);
    assert_eq!(found.notes, ["neither table has rows of these days: nothing was compared"]);
}

#[test]
fn a_table_without_a_key_is_compared_row_by_row() {
    let lab = Lab::builder().set("key", Vec::<&str>::new()).set("raw.event_time", "event").build();
    lab.put_day(1, &[("I", 1, "a"), ("I", 1, "a"), ("I", 2, "a")]);
    lab.put_day(2, &[("I", 1, "a")]);
    lab.run_days(1, 2);
    lab.run_days(2, 3);
    let found = lab.assert_verified();
    assert_eq!(found.rows_found, 4);
    let path = format!("lake/curated/{}", lab.list("lake/curated")[0]);
    rewrite(&lab, &path, |batch| batch.slice(1, batch.num_rows() - 1));
    let found = lab.verify().expect("compared");
    let (key, why) = key_and_why(&found);
    assert_eq!((key.as_str(), why.as_str()), ("", "it has 1 rows, and 2 are expected"));
}

#[test]
fn a_table_whose_windows_became_windows_of_rows_is_still_the_same() {
    let lab = lab(1..=3);
    lab.run_days(1, 3);
    let by_rows = ["raw.window_by=commit"];
    let found = lab.verify_with(Compared::default(), &by_rows).expect("compared");
    assert!(found.is_equal, "{}", found.text());
    lab.run_with(Task::Run, "2020-01-03", "2020-01-04", &by_rows).expect("a run");
    let found = lab.verify_with(Compared::default(), &by_rows).expect("compared");
    assert!(found.is_equal && found.rows_found == 4, "{}", found.text());
}

#[test]
fn values_that_do_not_fit_are_a_difference_and_more_columns_are_a_note() {
    let (lab, _) = lab_with_five_rows();
    let ids = [1.0, 2.0, 3.0, 4.0, 9.0];
    let numbers = |more: f64| -> ArrayRef {
        Arc::new(Float64Array::from(
            ids.map(|id| if id == 9.0 { 2.0 } else { 1.0 } + more).to_vec(),
        ))
    };
    let copy = |v: ArrayRef| {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Float64Array::from(ids.to_vec()))),
            ("v", v),
            ("event_dt", texts(["2020-01-01"; 5])),
            ("cat", texts(ids.map(|id| if id == 9.0 { "b" } else { "a" }))),
            ("more", texts(["x"; 5])),
        ];
        lab.put_columns("copy/a.parquet", columns);
        against(&lab, &format!("{}/copy", lab.base)).expect("compared")
    };
    let found = copy(numbers(0.0));
    assert!(found.is_equal, "{}", found.text());
    assert_eq!(found.notes, ["columns only in the other table, not compared: `more`"]);
    let found = copy(numbers(0.5));
    assert!(!found.is_equal);
    assert_eq!(found.columns_unfit, ["v"]);
    let found = copy(texts(["x2"; 5]));
    assert_eq!(found.columns_unfit, ["v"]);
    assert!(found.text().contains("unfit"), "{}", found.text());
}

#[test]
fn a_file_that_was_damaged_in_place_is_named() {
    let (lab, path) = lab_with_five_rows();
    let mut bytes = lab.get(&path).to_vec();
    bytes[4..60].fill(0xff);
    lab.put(&path, bytes);
    let found = lab.verify().expect("compared");
    assert_eq!(found.files_damaged.len(), 1, "{}", found.text());
    assert_eq!((found.exit_code(), found.rows_found), (1, 1));
    // A truncated file has another size.
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.exit_code(), found.files_damaged.len()), (1, 1));
}

#[test]
fn a_foreign_file_of_an_aggregate_is_a_difference() {
    let (lab, _) = lab_with_five_rows();
    let path = lab.list("lake/daily")[0].clone();
    let copy = path.replace("part-", "other-");
    lab.copy(&format!("lake/daily/{path}"), &format!("lake/daily/{copy}"));
    let found = lab.verify().expect("compared");
    assert!(!found.is_equal);
    assert_eq!(found.aggregates[0].files_unknown, [copy]);
}

#[test]
fn columns_that_a_delta_table_got_later_are_not_compared() {
    let lab = builder().format("delta").build();
    put(&lab, 1);
    lab.run_days(1, 2);
    let sql = "SELECT id, cat, v, event_dt, v + 1 AS w FROM latest";
    lab.write_file("curated.sql", sql);
    put(&lab, 2);
    lab.run_days(2, 3);
    let found = lab.assert_verified();
    assert!(found.notes[0].contains("not compared: `w`"), "{:?}", found.notes);
    lab.rebuild(false, &[]).expect("rebuilt");
    let found = lab.verify().expect("compared");
    assert!(found.is_equal && found.notes.is_empty(), "{}", found.text());
}

#[test]
fn rows_in_quarantine_do_not_count_as_bad_again() {
    let lab = builder().set("raw.on_bad_row", "quarantine").set("raw.max_bad_rows", 2).build();
    lab.put_day(1, &[("I", 1, "a"), ("X", 2, "a"), ("X", 3, "a")]);
    lab.put_day(2, &[("I", 4, "a"), ("X", 5, "a")]);
    lab.run_days(1, 2);
    lab.run_days(2, 3);
    lab.assert_verified();
    let planned = lab.plan("2020-01-01", "2020-01-03", true).expect("a plan");
    assert_eq!(planned.fold.expect("folded").rows_rejected, 3);
    // The same rows again are the same file.
    lab.remove(&raw_file(1));
    lab.put_day(1, &[("I", 1, "a"), ("X", 2, "a"), ("X", 3, "a")]);
    assert_eq!(lab.catch_up(&[]).expect("the same").rows_rejected, 3);
    lab.put_day(1, &[("I", 1, "b"), ("X", 2, "a"), ("X", 3, "a")]);
    let error = lab.catch_up(&[]).expect_err("another file");
    assert_refused(error, 65, "has changed since", "rebuild");
}

#[test]
fn a_state_that_is_gone_or_damaged_is_told() {
    let (lab, _) = lab_with_five_rows();
    let state = format!("{STATE}/versions");
    let versions = lab.list_all(&state).into_iter().find(|path| path.starts_with("kind=version"));
    let path = format!("{state}/{}", versions.expect("versions"));
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.exit_code(), found.state_files_damaged.len()), (1, 1));
    lab.put(&path, bytes);
    lab.assert_verified();
    lab.remove_all("lake/_glueless");
    assert_refused(lab.verify().expect_err("gone"), 2, "its state", "restore the state");
    let gone = lab.history().expect_err("gone");
    assert_refused(gone, 2, "its state", "restore the state");
}

#[test]
fn a_pipeline_that_has_met_no_input_yet_has_the_right_table() {
    let lab = lab([5]);
    lab.run_days(1, 2);
    let found = lab.assert_verified();
    assert_eq!(found.notes, ["no run has found an input yet: the table does not exist"]);
}

#[test]
fn a_damaged_file_of_an_aggregate_is_named() {
    let (lab, _) = lab_with_five_rows();
    let path = format!("lake/daily/{}", lab.list("lake/daily")[0]);
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.exit_code(), found.aggregates[0].files_damaged.len()), (1, 1));
}
