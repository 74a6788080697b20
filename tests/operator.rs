//! What a person on call asks: what will happen, what happened, is the table right, and what was
//! never folded.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, Utc};
use futures::FutureExt;
use glueless::commands::runs::{History, history};
use glueless::commands::{Compared, Task, Verified, explain_key, verify};
use glueless::report::Answer;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::faults::{Cut, Fault};
use crate::support::{Lab, Place, assert_refused, parquet, window};

const TOML: &str = r#"
name = "many"
key = ["id"]
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
event_time = "event"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
format = "{format}"
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
[[aggregate]]
name = "status"
sql = "status.sql"
url = "{base}/lake/status"
day = "dt"
running = true
"#;

const CURATED: &str = "SELECT id, v, event_dt, cat FROM latest";

const DAILY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

const STATUS: &str = "WITH days AS (SELECT UNNEST(RANGE(CAST($start_date AS DATE), CAST($end_date AS DATE), INTERVAL '1 day')) AS day),
seen AS (SELECT CAST(days.day AS DATE) AS dt, h.*, ROW_NUMBER() OVER (PARTITION BY days.day, id ORDER BY seq DESC) AS place
         FROM days JOIN history h ON h.event_dt <= days.day)
SELECT dt, COUNT(*) AS n FROM seen WHERE place = 1 AND NOT deleted GROUP BY dt";

const SQL: [(&str, &str); 3] = [
    ("curated.sql", CURATED),
    ("daily.sql", DAILY),
    ("status.sql", STATUS),
];

const TABLES: [&str; 3] = ["lake/curated", "lake/daily", "lake/status"];

fn lab_of(place: Place, keep: &str, format: &str) -> Lab {
    Lab::new(
        place,
        &TOML.replace("{keep}", keep).replace("{format}", format),
        &SQL,
    )
}

/// A lab with a file for each of some days: a key of its own, and one that all days change.
fn lab(days: impl Iterator<Item = i64>) -> Lab {
    let lab = lab_of(Place::Local, "latest", "parquet");
    days.for_each(|day| put(&lab, day));
    lab
}

fn put(lab: &Lab, day: i64) {
    lab.put_day(day, &[("I", 100 + day, "a"), ("U", 1, "b")]);
}

fn day(day: i64) -> String {
    format!("2020-01-{day:02}")
}

fn run_days(lab: &Lab, first: i64, end: i64) {
    lab.run(&day(first), &day(end)).expect("a run");
}

fn past(lab: &Lab) -> History {
    lab.ask(&[], |request| history(request).boxed_local())
        .expect("a history")
}

#[test]
fn a_plan_names_late_files_and_what_was_run_and_touches_nothing() {
    for place in [Place::Local, Place::S3] {
        let lab = lab_of(place, "latest", "parquet");
        for day in [1, 2, 3] {
            put(&lab, day);
        }
        let first = lab.plan("2020-01-01", "2020-01-03", true).expect("a plan");
        assert_eq!(
            (first.files, first.late_files, first.folded_files),
            (2, 0, 0)
        );
        assert_eq!(first.estimate, None);
        assert!(
            lab.list_all("lake").is_empty(),
            "{:?}",
            lab.list_all("lake")
        );
        run_days(&lab, 1, 2);
        run_days(&lab, 3, 4);
        lab.put(
            "raw/20200101-120000000.parquet",
            lab.get("raw/20200101-000000000.parquet").to_vec(),
        );
        let before = lab.contents("lake");
        let planned = lab.plan("2020-01-02", "2020-01-04", true).expect("a plan");
        assert_eq!(lab.contents("lake"), before);
        assert_eq!(
            (planned.files, planned.late_files, planned.folded_files),
            (3, 1, 1)
        );
        assert_eq!(planned.late, ["20200101-120000000.parquet"]);
        let windows: Vec<_> = planned
            .windows_run
            .iter()
            .map(|part| (part.start, part.end))
            .collect();
        let third = window("2020-01-03", "2020-01-04");
        assert_eq!(windows, [(third.start, third.end)]);
        let estimate = planned.estimate.expect("an estimate");
        assert!(estimate.seconds > 0.0 && estimate.bytes > 0);
        let fold = planned.fold.expect("folded");
        let report = lab.run("2020-01-02", "2020-01-04").expect("a run");
        assert_eq!(
            (
                fold.rows_read,
                fold.rows_latest,
                fold.rows_superseded,
                fold.rows_written,
                fold.bytes_written
            ),
            (
                report.rows_read,
                report.rows_latest,
                report.rows_superseded,
                report.rows_written,
                report.bytes_written
            )
        );
    }
}

#[test]
fn a_plan_is_refused_where_the_run_would_be() {
    let lab = lab([1].into_iter());
    run_days(&lab, 1, 2);
    let error = lab
        .ask(&["raw.order_by=[\"v\"]"], |request| {
            glueless::commands::plan(request, window("2020-01-01", "2020-01-02"), false)
        })
        .expect_err("another pipeline");
    assert_refused(
        error,
        2,
        "no longer what made its tables",
        "glueless rebuild",
    );
    put(&lab, 1);
    lab.set_modified("raw/20200101-000000000.parquet", 1);
    let error = lab
        .plan("2020-01-01", "2020-01-02", false)
        .expect_err("changed");
    assert_refused(error, 65, "has changed since", "glueless rebuild");
}

#[test]
fn the_history_tells_of_every_run_and_of_gaps_between_them() {
    let mut lab = lab(1..=6);
    let none = past(&lab);
    assert!(none.runs.is_empty() && none.gaps.is_empty());
    assert!(none.text().contains("no run has committed anything yet"));
    lab.now = "2020-02-03T04:05:06Z"
        .parse::<DateTime<Utc>>()
        .expect("a time");
    run_days(&lab, 1, 3);
    lab.run_with(Task::Curate, "2020-01-04", "2020-01-05", &[])
        .expect("a run");
    lab.run_with(Task::Aggregate, "2020-01-04", "2020-01-05", &[])
        .expect("a run");
    run_days(&lab, 6, 7);
    lab.rebuild(false, &[]).expect("rebuilt");
    let told = past(&lab);
    let runs: Vec<(&str, String, u64, u64)> = told
        .runs
        .iter()
        .map(|run| {
            (
                run.command,
                run.start.format("%d").to_string(),
                run.files,
                run.rows_read,
            )
        })
        .collect();
    let expected = [
        ("run", "01", 2, 4),
        ("curate", "04", 1, 2),
        ("aggregate", "04", 0, 0),
        ("run", "06", 1, 2),
        ("rebuild", "01", 4, 8),
    ];
    assert_eq!(
        runs,
        expected.map(|(command, day, files, rows)| (command, day.to_string(), files, rows))
    );
    assert!(
        told.runs
            .iter()
            .all(|run| run.at == lab.now && run.seconds > 0.0 && run.status == "done")
    );
    let gaps: Vec<String> = told
        .gaps
        .iter()
        .map(|gap| format!("{} {}", gap.start.format("%d"), gap.end.format("%d")))
        .collect();
    assert_eq!(gaps, ["03 04", "05 06"]);
    let text = told.text();
    assert!(
        text.contains("gap: 2020-01-03 to 2020-01-04 was never run"),
        "{text}"
    );
    assert!(text.contains("2020-02-03T04:05:06Z"), "{text}");
}

/// Runs with nothing looked for before the window.
fn run_short(lab: &Lab, first: i64, end: i64) {
    let set = ["raw.lookback=0d"];
    lab.run_with(Task::Run, &day(first), &day(end), &set)
        .expect("a run");
}

#[test]
fn catching_up_folds_late_files_however_old_and_gaps_and_nothing_twice() {
    for format in ["parquet", "delta"] {
        let lab = lab_of(Place::Local, "latest", format);
        for day in [1, 2, 20, 25] {
            put(&lab, day);
        }
        run_short(&lab, 1, 2);
        run_short(&lab, 10, 12);
        run_short(&lab, 20, 21);
        // In a window that was run, in the gap before it, and after all windows.
        lab.put_day(11, &[("I", 11, "late"), ("D", 101, "")]);
        lab.put_day(5, &[("U", 1, "gap")]);
        let report = lab.catch_up(&[]).expect("caught up");
        assert_eq!(
            (report.files, report.late_files, report.rows_read),
            (3, 1, 5)
        );
        let whole = lab_of(Place::Local, "latest", format);
        for path in lab.list_all("raw") {
            whole.put(
                &format!("raw/{path}"),
                lab.get(&format!("raw/{path}")).to_vec(),
            );
        }
        run_short(&whole, 1, 21);
        for table in TABLES {
            assert_eq!(lab.table(table), whole.table(table), "{table}");
        }
        assert!(past(&lab).gaps.is_empty());
        let runs = past(&lab).runs.len();
        let again = lab.catch_up(&[]).expect("nothing to do");
        assert_eq!((again.files, again.rows_written), (0, 0));
        assert!(
            again
                .note
                .expect("a note")
                .contains("every input was folded")
        );
        assert_eq!(past(&lab).runs.len(), runs);
        assert!(lab.verify().expect("compared").is_equal);
    }
}

#[test]
fn gaps_without_files_are_closed_and_their_days_are_in_the_running_table() {
    let lab = lab([1, 4].into_iter());
    run_days(&lab, 1, 2);
    run_days(&lab, 4, 5);
    let days = |lab: &Lab| -> Vec<String> {
        let rows = lab.table("lake/status").into_iter();
        rows.map(|row| row["dt"].clone()).collect()
    };
    assert!(!days(&lab).contains(&"2020-01-03".to_string()));
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!(report.files, 0);
    assert!(days(&lab).contains(&"2020-01-03".to_string()));
    assert!(past(&lab).gaps.is_empty());
    // What appears there from now on is late, and found.
    put(&lab, 3);
    let report = lab.run("2020-01-05", "2020-01-06").expect("a run");
    assert_eq!(report.late_files, 1);
}

#[test]
fn rows_in_gaps_between_windows_of_rows_are_caught_up() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace(r#"window_by = "name""#, r#"window_by = "commit""#);
    let lab = Lab::new(Place::Local, &toml, &SQL);
    (1..=5).for_each(|day| put(&lab, day));
    run_short(&lab, 1, 2);
    run_short(&lab, 5, 6);
    put(&lab, 6);
    assert_eq!(lab.table("lake/curated").len(), 3);
    lab.catch_up(&[]).expect("caught up");
    // Of the file of day 6 no row is in the span.
    assert_eq!(lab.table("lake/curated").len(), 6);
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    let report = lab.run("2020-01-06", "2020-01-07").expect("a run");
    assert_eq!(report.rows_latest, 2);
}

/// Reads an object, changes its rows, and writes it again.
fn rewrite(lab: &Lab, path: &str, change: impl Fn(RecordBatch) -> RecordBatch) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(lab.get(path)).expect("a file");
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader
        .build()
        .expect("a reader")
        .map(|batch| batch.expect("rows"))
        .collect();
    let whole = concat_batches(&schema, &batches).expect("one");
    lab.put(path, parquet(&change(whole), None));
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).expect("a column");
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    RecordBatch::try_new(batch.schema(), columns).expect("a batch")
}

fn key_and_why(found: &Verified) -> (String, String) {
    let first = found.first_difference.as_ref();
    let first = first.unwrap_or_else(|| panic!("no key: {:?}", found.notes));
    let key: Vec<String> = first
        .key
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    (key.join(","), first.why.clone())
}

/// A partition with four rows, of keys 1 to 4.
fn lab_to_tamper_with() -> (Lab, String) {
    let lab = lab_of(Place::Local, "latest", "parquet");
    let rows: Vec<(&str, i64, &str)> = (1..=4).map(|id| ("I", id, "a")).collect();
    lab.put_day(1, &rows);
    lab.put_day(2, &[("I", 9, "b")]);
    run_days(&lab, 1, 3);
    let files = lab.list("lake/curated");
    let path = files
        .iter()
        .find(|path| path.contains("cat=a"))
        .expect("a file");
    let path = format!("lake/curated/{path}");
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    assert_eq!(
        (
            found.files,
            found.rows_read,
            found.rows_expected,
            found.partitions
        ),
        (2, 5, 5, 2)
    );
    assert_eq!(found.exit_code(), 0);
    (lab, path)
}

#[test]
fn verify_names_the_first_key_that_differs_and_why() {
    let values = |batch: &RecordBatch, name: &str, values: Vec<i64>| {
        with_column(batch, name, Arc::new(Int64Array::from(values)))
    };
    type Tamper = Box<dyn Fn(RecordBatch) -> RecordBatch>;
    let cases: Vec<(Tamper, u64, &str, &str)> = vec![
        (
            Box::new(move |batch| values(&batch, "v", vec![1, 1, 7, 1])),
            5,
            "id=3",
            "its row differs in `v`",
        ),
        (
            Box::new(|batch| batch.slice(1, 3)),
            4,
            "id=1",
            "its row is missing",
        ),
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
        let (lab, path) = lab_to_tamper_with();
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
    let (lab, path) = lab_to_tamper_with();
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
    assert!(lab.verify().expect("compared").is_equal);
    lab.put("lake/curated/event_dt=2020-01-01/cat=a/more.parquet", bytes);
    let found = lab.verify().expect("compared");
    assert_eq!(
        found.files_unknown,
        ["event_dt=2020-01-01/cat=a/more.parquet"]
    );
    assert_eq!(found.exit_code(), 1);
}

#[test]
fn verify_refuses_where_raw_is_not_what_was_folded() {
    let (lab, _) = lab_to_tamper_with();
    let raw = "raw/20200101-000000000.parquet";
    let bytes = lab.get(raw).to_vec();
    lab.remove(raw);
    assert_refused(
        lab.verify().expect_err("gone"),
        65,
        "1 inputs that were folded are gone",
        "put them back",
    );
    lab.put(raw, bytes);
    lab.set_modified(raw, 7);
    assert_refused(
        lab.verify().expect_err("changed"),
        65,
        "20200101-000000000.parquet was folded by an earlier run and has changed since",
        "restore it",
    );
    let fresh = lab_of(Place::Local, "latest", "parquet");
    assert_refused(
        fresh.verify().expect_err("nothing"),
        2,
        "nothing to verify",
        "glueless run",
    );
}

#[test]
fn verify_waits_for_what_is_being_published() {
    let (lab, _) = lab_to_tamper_with();
    lab.put(
        "lake/_glueless/many/publishing/00000000000000000002-x",
        b"".to_vec(),
    );
    assert_refused(
        lab.verify().expect_err("busy"),
        75,
        "is publishing, or was interrupted",
        "verify again",
    );
    // Any run clears it up.
    run_days(&lab, 1, 3);
    assert!(lab.verify().expect("compared").is_equal);
    // One that has not committed yet has changed nothing.
    lab.put(
        "lake/_glueless/many/publishing/00000000000000000099-x",
        b"".to_vec(),
    );
    assert!(lab.verify().expect("compared").is_equal);
}

#[test]
fn verify_compares_only_some_days_where_that_is_asked_for() {
    let lab = lab_of(Place::Local, "latest-per-day", "parquet");
    for day in 1..=3 {
        let at = (day - 1) * crate::support::DAY_US;
        lab.put_changes(
            day,
            &[crate::support::Change {
                op: "I",
                id: day,
                cat: "a",
                v: day,
                us: 0,
                event_us: at,
            }],
        );
    }
    run_days(&lab, 1, 4);
    let path = lab
        .list("lake/curated")
        .into_iter()
        .find(|path| path.contains("2020-01-02"));
    lab.remove(&format!("lake/curated/{}", path.expect("a file")));
    let some = |first: i64, end: i64| {
        let compared = Compared {
            days: Some(window(&day(first), &day(end))),
            against: None,
        };
        lab.ask(&[], |request| verify(request, compared))
            .expect("compared")
    };
    let found = some(1, 2);
    assert_eq!(
        (
            found.rows_expected,
            found.rows_found,
            found.partitions_different.len()
        ),
        (1, 1, 0)
    );
    let found = some(2, 3);
    assert_eq!((found.rows_expected, found.rows_found), (1, 0));
    assert_eq!(
        found.days_different[0].day.expect("a day").to_string(),
        "2020-01-02"
    );
}

fn against(lab: &Lab, url: &str) -> glueless::error::Result<Verified> {
    let compared = Compared {
        days: None,
        against: Some(url.to_string()),
    };
    lab.ask(&[], |request| verify(request, compared))
}

#[test]
fn another_table_is_compared_by_its_values_wherever_its_files_lie() {
    let (lab, path) = lab_to_tamper_with();
    // All in one file, in another order of rows and columns, with other types.
    let ids = [9, 4, 3, 2, 1];
    let schema = Schema::new(vec![
        Field::new("cat", DataType::LargeUtf8, true),
        Field::new("event_dt", DataType::Utf8, true),
        Field::new("extra", DataType::Int32, true),
        Field::new("id", DataType::Int32, true),
        Field::new("v", DataType::Int64, true),
    ]);
    let texts = |of: fn(i32) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(ids.map(of)))
    };
    let numbers =
        |of: fn(i32) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(ids.map(of))) };
    let cats = cast(
        &texts(|id| if id == 9 { "b" } else { "a" }),
        &DataType::LargeUtf8,
    )
    .expect("cast");
    let columns: Vec<ArrayRef> = vec![
        cats,
        texts(|_| "2020-01-01"),
        Arc::new(Int32Array::from(vec![0; 5])),
        Arc::new(Int32Array::from(ids.to_vec())),
        numbers(|id| if id == 9 { 2 } else { 1 }),
    ];
    let copy = RecordBatch::try_new(Arc::new(schema), columns).expect("a batch");
    lab.put("copy/all.parquet", parquet(&copy, None));
    let copy = format!("{}/copy", lab.base);
    let found = against(&lab, &copy).expect("compared");
    assert!(found.is_equal, "{}", found.text());
    assert_eq!(
        (found.rows_expected, found.rows_found, found.partitions),
        (5, 5, 2)
    );
    // Hive folders, and a row less.
    let hive = format!("{}/hive", lab.base);
    for file in lab.list("lake/curated") {
        lab.put(
            &format!("hive/{file}"),
            lab.get(&format!("lake/curated/{file}")).to_vec(),
        );
    }
    assert!(against(&lab, &hive).expect("compared").is_equal);
    let in_hive = path.replace("lake/curated", "hive");
    rewrite(&lab, &in_hive, |batch| batch.slice(0, 3));
    let found = against(&lab, &hive).expect("compared");
    assert_eq!((found.rows_expected, found.rows_found), (4, 5));
    assert_eq!(
        key_and_why(&found),
        ("id=4".into(), "it has a row that is not expected".into())
    );
    // A column less.
    rewrite(&lab, "copy/all.parquet", |batch| {
        batch.project(&[0, 1, 2, 3]).expect("projected")
    });
    let found = against(&lab, &copy).expect("compared");
    assert_eq!(found.columns_missing, ["v"]);
    assert_eq!(found.exit_code(), 1);
    let error = against(&lab, &format!("{}/nowhere", lab.base)).expect_err("nothing there");
    assert_refused(error, 2, "it is no folder", "--against names a Delta table");
}

#[test]
fn a_delta_table_is_compared_with_a_parquet_table() {
    for place in [Place::Local, Place::S3] {
        let [one, other] = ["parquet", "delta"].map(|format| {
            let lab = lab_of(place, "latest", format);
            (1..=3).for_each(|day| put(&lab, day));
            run_days(&lab, 1, 4);
            lab
        });
        let found = against(&one, &format!("{}/lake/curated", other.base)).expect("compared");
        assert!(found.is_equal, "{}", found.text());
        assert_eq!(found.rows_expected, 4);
        let found = against(&other, &format!("{}/lake/curated", one.base)).expect("compared");
        assert!(found.is_equal, "{}", found.text());
        other.put_day(4, &[("U", 102, "c")]);
        run_days(&other, 4, 5);
        let found = against(&one, &format!("{}/lake/curated", other.base)).expect("compared");
        assert_eq!(found.partitions_different.len(), 2);
    }
}

#[test]
fn a_state_of_a_newer_version_is_refused() {
    let (lab, _) = lab_to_tamper_with();
    let state = "lake/_glueless/many/versions";
    let ledgers = lab.list_all(state).into_iter();
    let ledger = ledgers
        .filter(|path| path.starts_with("kind=ledger"))
        .min()
        .expect("a ledger");
    let path = format!("{state}/{ledger}");
    let size = lab.get(&path).len();
    rewrite(&lab, &path, |batch| {
        let column = batch.schema().index_of("record").expect("records");
        let mut texts: Vec<String> = {
            let records = cast(batch.column(column), &DataType::Utf8).expect("text");
            let records = arrow::array::AsArray::as_string::<i32>(&records);
            records.iter().flatten().map(String::from).collect()
        };
        assert_eq!(texts[0], r#"{"format":1}"#);
        texts[0] = r#"{"format":2}"#.into();
        // A kind of record that this version does not know.
        texts[1] = r#"{"sealed":{"by":"somebody"}}"#.into();
        let array: ArrayRef = Arc::new(StringArray::from(texts));
        with_column(&batch, "record", array)
    });
    // The log lists it by its size.
    let log = format!("{state}/_delta_log/00000000000000000001.json");
    let text = String::from_utf8(lab.get(&log).to_vec()).expect("text");
    let (old, new) = [size, lab.get(&path).len()]
        .map(|size| format!("\"size\":{size},"))
        .into();
    assert!(text.contains(&old), "{text}");
    lab.put(&log, text.replace(&old, &new).into_bytes());
    for error in [
        lab.verify().expect_err("newer"),
        lab.run("2020-01-03", "2020-01-04").expect_err("newer"),
        lab.plan("2020-01-03", "2020-01-04", false)
            .expect_err("newer"),
    ] {
        assert_refused(
            error,
            2,
            "was written by a newer version of glueless",
            "use that version",
        );
    }
}

#[test]
fn verify_compares_the_aggregates_too() {
    let (lab, _) = lab_to_tamper_with();
    let found = lab.verify().expect("compared");
    let told: Vec<(&str, u64, usize)> = found
        .aggregates
        .iter()
        .map(|one| (one.name.as_str(), one.days, one.days_different.len()))
        .collect();
    assert_eq!(told, [("daily", 1, 0), ("status", 2, 0)]);
    let path = lab
        .list("lake/status")
        .into_iter()
        .find(|path| path.contains("2020-01-02"));
    let path = format!("lake/status/{}", path.expect("a file"));
    let bytes = lab.get(&path).to_vec();
    rewrite(&lab, &path, |batch| {
        with_column(&batch, "n", Arc::new(Int64Array::from(vec![7])))
    });
    let found = lab.verify().expect("compared");
    assert!(!found.is_equal && found.partitions_different.is_empty());
    let differs = &found.aggregates[1].days_different;
    assert_eq!(
        (differs.len(), differs[0].partition.as_str()),
        (1, "dt=2020-01-02")
    );
    assert!(
        found
            .text()
            .contains("status: 2 days, 1 of them differ, such as dt=2020-01-02")
    );
    lab.remove(&path);
    let found = lab.verify().expect("compared");
    assert_eq!(
        (found.is_equal, found.aggregates[1].files_missing.len()),
        (false, 1)
    );
    lab.put(&path, bytes);
    // Where the last changes are not in them yet, they are not compared.
    lab.put_day(3, &[("I", 7, "a")]);
    lab.run_with(Task::Curate, "2020-01-03", "2020-01-04", &[])
        .expect("a run");
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    let note = found.aggregates[0].note.as_ref().expect("a note");
    assert!(
        note.contains("the last changes are not in it yet"),
        "{note}"
    );
    // Once they are, everything is compared again.
    lab.run_with(Task::Aggregate, "2020-01-03", "2020-01-04", &[])
        .expect("a run");
    let found = lab.verify().expect("compared");
    assert!(
        found.is_equal && found.aggregates[1].days == 3,
        "{}",
        found.text()
    );
}

#[test]
fn days_without_rows_are_said_to_have_none() {
    let (lab, _) = lab_to_tamper_with();
    let compared = Compared {
        days: Some(window("2021-01-01", "2021-01-02")),
        against: None,
    };
    let found = lab
        .ask(&[], |request| verify(request, compared))
        .expect("compared");
    assert!(found.is_equal);
    assert_eq!(
        found.notes,
        ["neither has rows of these days: nothing was compared"]
    );
}

#[test]
fn a_table_without_a_key_is_compared_row_by_row() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace(r#"key = ["id"]"#, "key = []");
    let toml = &toml[..toml.find("[[aggregate]]").expect("aggregates")];
    let lab = Lab::new(Place::Local, toml, &SQL[..1]);
    lab.put_day(1, &[("I", 1, "a"), ("I", 1, "a"), ("I", 2, "a")]);
    lab.put_day(2, &[("I", 1, "a")]);
    run_days(&lab, 1, 2);
    run_days(&lab, 2, 3);
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    assert_eq!(found.rows_found, 4);
    let path = format!("lake/curated/{}", lab.list("lake/curated")[0]);
    rewrite(&lab, &path, |batch| batch.slice(1, batch.num_rows() - 1));
    let found = lab.verify().expect("compared");
    let (key, why) = key_and_why(&found);
    assert_eq!(
        (key.as_str(), why.as_str()),
        ("", "it has 1 rows, and 2 are expected")
    );
}

#[test]
fn a_running_day_that_was_empty_is_computed_again_when_an_earlier_one_changes() {
    let lab = lab_of(Place::Local, "latest", "parquet");
    lab.put_day(1, &[("I", 1, "a"), ("D", 1, "a")]);
    run_days(&lab, 1, 4);
    assert!(lab.table("lake/status").is_empty());
    // A file of the first day, with another key.
    put(&lab, 9);
    let bytes = lab.get("raw/20200109-000000000.parquet").to_vec();
    lab.remove("raw/20200109-000000000.parquet");
    lab.put("raw/20200101-120000000.parquet", bytes);
    let set = ["raw.lookback=9d"];
    lab.run_with(Task::Run, "2020-01-05", "2020-01-06", &set)
        .expect("a run");
    let rows = lab.table("lake/status").into_iter();
    let days: Vec<String> = rows.map(|row| row["dt"][8..].to_string()).collect();
    assert_eq!(days, ["01", "02", "03", "05"]);
    assert!(lab.verify().expect("compared").is_equal);
}

#[test]
fn a_table_whose_windows_became_windows_of_rows_is_still_the_same() {
    let lab = lab(1..=3);
    run_days(&lab, 1, 3);
    let by_rows = ["raw.window_by=commit"];
    let found = lab
        .ask(&by_rows, |request| verify(request, Compared::default()))
        .expect("compared");
    assert!(found.is_equal, "{}", found.text());
    lab.run_with(Task::Run, "2020-01-03", "2020-01-04", &by_rows)
        .expect("a run");
    let found = lab
        .ask(&by_rows, |request| verify(request, Compared::default()))
        .expect("compared");
    assert!(found.is_equal && found.rows_found == 4, "{}", found.text());
}

/// The lab, whose requests fail from some number on; and how many it had left at the end.
fn cut(lab: &Lab, requests: usize) -> (Lab, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(requests));
    let shared = Arc::clone(&left);
    let cut = lab.through(move |inner| {
        let left = Arc::clone(&shared);
        Arc::new(Cut {
            left,
            ..Cut::new(inner, Fault::AllDead)
        })
    });
    (cut, left)
}

fn tables_of(lab: &Lab) -> Vec<Vec<crate::support::Row>> {
    TABLES.iter().map(|table| lab.table(table)).collect()
}

#[test]
fn catching_up_that_was_cut_at_any_request_is_completed_by_the_next() {
    let made = |format: &str| {
        let lab = lab_of(Place::Local, "latest", format);
        for day in [1, 9] {
            put(&lab, day);
        }
        run_short(&lab, 1, 2);
        run_short(&lab, 9, 10);
        put(&lab, 4);
        lab
    };
    for format in ["parquet", "delta"] {
        let clean = made(format);
        clean.catch_up(&[]).expect("caught up");
        let expected = tables_of(&clean);
        // The days of the gap are in the running table.
        assert_eq!(expected[2].len(), 9);
        let mut failed = 0;
        for requests in (0..).step_by(5) {
            let lab = made(format);
            let (cut, left) = cut(&lab, requests);
            failed += usize::from(cut.catch_up(&[]).is_err());
            lab.catch_up(&[]).expect("caught up");
            assert_eq!(tables_of(&lab), expected, "{format}, cut after {requests}");
            assert!(lab.verify().expect("compared").is_equal);
            if left.load(std::sync::atomic::Ordering::SeqCst) > 0 {
                break;
            }
        }
        assert!(failed > 5, "{failed}");
    }
}

#[test]
fn a_backfill_after_a_run_that_was_cut_at_any_request_ends_with_its_window_published() {
    for format in ["parquet", "delta"] {
        let made = || {
            let lab = lab_of(Place::Local, "latest", format);
            (1..=3).for_each(|day| put(&lab, day));
            run_days(&lab, 1, 2);
            lab
        };
        let clean = made();
        run_days(&clean, 2, 3);
        let expected = tables_of(&clean);
        for requests in (0..).step_by(7) {
            let lab = made();
            let (cut, left) = cut(&lab, requests);
            let failed = cut.run("2020-01-02", "2020-01-03").is_err();
            // Questions do not send anybody into a rebuild.
            let planned = lab.plan("2020-01-02", "2020-01-03", false).expect("a plan");
            assert!(planned.estimate.is_some());
            let done = lab.backfill("2020-01-01", "2020-01-03").expect("done");
            assert_eq!(done.exit_code, 0);
            assert_eq!(tables_of(&lab), expected, "{format}, cut after {requests}");
            lab.assert_tidy();
            if !failed && left.load(std::sync::atomic::Ordering::SeqCst) > 0 {
                break;
            }
        }
    }
}

#[test]
fn an_interrupted_run_is_told_by_questions() {
    let lab = lab_of(Place::Local, "latest", "delta");
    (1..=2).for_each(|day| put(&lab, day));
    run_days(&lab, 1, 2);
    let stuck = lab.through(|inner| Arc::new(Cut::new(inner, Fault::NoPublishing)));
    stuck
        .run("2020-01-02", "2020-01-03")
        .expect_err("nothing is published");
    let planned = lab.plan("2020-01-02", "2020-01-03", false).expect("a plan");
    assert!(
        planned.notes[0].contains("was interrupted"),
        "{:?}",
        planned.notes
    );
    assert_eq!(past(&lab).runs[1].status, "publishing");
    assert_refused(
        lab.verify().expect_err("busy"),
        75,
        "was interrupted",
        "verify again",
    );
    let explained = lab.ask(&[], |request| explain_key(request, vec!["102".into()]));
    let notes = explained.expect("explained").notes;
    assert!(
        notes.iter().any(|note| note.contains("was interrupted")),
        "{notes:?}"
    );
}

/// Windows of rows, and a file of some rows: their days.
fn lab_of_rows() -> Lab {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace(r#"window_by = "name""#, r#"window_by = "commit""#);
    Lab::new(Place::Local, &toml, &SQL)
}

fn put_rows(lab: &Lab, name: &str, days: &[i64]) {
    let rows = days.iter().map(|day| crate::support::Change {
        op: "I",
        id: 1000 + day,
        cat: "a",
        v: *day,
        us: (day - 1) * crate::support::DAY_US,
        event_us: 0,
    });
    lab.put_changes(1, &rows.collect::<Vec<_>>());
    let bytes = lab.get("raw/20200101-000000000.parquet").to_vec();
    lab.remove("raw/20200101-000000000.parquet");
    lab.put(&format!("raw/{name}.parquet"), bytes);
    lab.set_modified(&format!("raw/{name}.parquet"), 5);
}

#[test]
fn rows_of_old_windows_in_a_file_that_came_later_are_not_taken_for_done() {
    for way in ["backfill", "catch-up"] {
        let lab = lab_of_rows();
        put_rows(&lab, "a", &[1, 2, 3, 9]);
        lab.backfill("2020-01-01", "2020-01-10").expect("done");
        put_rows(&lab, "b", &[2, 10]);
        // What lies so far back, a run does not look for.
        run_short(&lab, 10, 11);
        assert_eq!(lab.table("lake/curated").len(), 5);
        assert!(lab.verify().expect("compared").is_equal);
        match way {
            "backfill" => {
                put_rows(&lab, "c", &[4]);
                run_short(&lab, 11, 12);
                let done = lab.backfill("2020-01-01", "2020-01-12").expect("done");
                assert_eq!((done.exit_code, done.windows_skipped), (0, 1), "{done:?}");
                let again = lab.backfill("2020-01-01", "2020-01-12").expect("done");
                assert_eq!(again.windows_skipped, 11);
            }
            _ => assert_eq!(lab.catch_up(&[]).expect("caught up").rows_latest, 1),
        }
        assert!(
            lab.table("lake/curated")
                .iter()
                .any(|row| row["v"] == "2" && row["id"] == "1002")
        );
        assert!(lab.verify().expect("compared").is_equal);
    }
}

#[test]
fn a_file_that_was_away_has_not_been_read_by_the_runs_meanwhile() {
    let lab = lab_of_rows();
    put_rows(&lab, "a", &[1, 2]);
    run_short(&lab, 1, 2);
    let bytes = lab.get("raw/a.parquet").to_vec();
    lab.remove("raw/a.parquet");
    put_rows(&lab, "b", &[2]);
    let report = lab.run_with(Task::Run, "2020-01-02", "2020-01-03", &["raw.lookback=0d"]);
    assert!(
        report
            .expect("a run")
            .note
            .expect("a note")
            .contains("this run folds none")
    );
    lab.put("raw/a.parquet", bytes);
    lab.set_modified("raw/a.parquet", 5);
    assert!(lab.verify().expect("compared").is_equal);
    let explained = lab.ask(&[], |request| explain_key(request, vec!["1002".into()]));
    let changes = explained.expect("explained").changes;
    let folded: Vec<bool> = changes
        .iter()
        .map(|change| change.run_id.is_some())
        .collect();
    assert_eq!(folded, [false, true]);
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!(
        (report.files, report.rows_read - report.rows_outside),
        // Of the other one, the first day was not read yet.
        (2, 1)
    );
    assert!(lab.verify().expect("compared").is_equal);
    assert!(lab.catch_up(&[]).expect("nothing").note.is_some());
}

#[test]
fn windows_of_files_after_windows_of_rows_read_files_whole() {
    let lab = lab_of_rows();
    put_rows(&lab, "20200101-100000000", &[1, 2]);
    run_short(&lab, 1, 2);
    let by_name = ["raw.window_by=name"];
    let verified = || {
        lab.ask(&by_name, |request| verify(request, Compared::default()))
            .expect("compared")
    };
    assert!(verified().is_equal, "{}", verified().text());
    lab.catch_up(&by_name).expect("caught up");
    assert_eq!(lab.table("lake/curated").len(), 2);
    assert!(verified().is_equal, "{}", verified().text());
    assert_eq!(lab.catch_up(&by_name).expect("nothing").files, 0);
}

#[test]
fn values_that_do_not_fit_are_a_difference_and_more_columns_are_a_note() {
    let (lab, _) = lab_to_tamper_with();
    let ids = [1.0, 2.0, 3.0, 4.0, 9.0];
    let numbers = |more: f64| -> ArrayRef {
        Arc::new(Float64Array::from(
            ids.map(|id| if id == 9.0 { 2.0 } else { 1.0 } + more)
                .to_vec(),
        ))
    };
    let texts = |of: fn(f64) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(ids.map(of)))
    };
    let copy = |v: ArrayRef| {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Float64Array::from(ids.to_vec()))),
            ("v", v),
            ("event_dt", texts(|_| "2020-01-01")),
            ("cat", texts(|id| if id == 9.0 { "b" } else { "a" })),
            ("more", texts(|_| "x")),
        ];
        lab.put(
            "copy/a.parquet",
            parquet(&crate::support::batch(columns), None),
        );
        against(&lab, &format!("{}/copy", lab.base)).expect("compared")
    };
    let found = copy(numbers(0.0));
    assert!(found.is_equal, "{}", found.text());
    assert_eq!(found.notes, ["only there, and not compared: `more`"]);
    let found = copy(numbers(0.5));
    assert!(!found.is_equal);
    assert_eq!(found.columns_unfit, ["v"]);
    let found = copy(texts(|_| "x2"));
    assert_eq!(found.columns_unfit, ["v"]);
    assert!(found.text().contains("unfit"), "{}", found.text());
}

#[test]
fn a_file_that_was_damaged_in_place_is_named() {
    let (lab, path) = lab_to_tamper_with();
    let mut bytes = lab.get(&path).to_vec();
    bytes[4..60].fill(0xff);
    lab.put(&path, bytes);
    let found = lab.verify().expect("compared");
    assert_eq!(found.files_damaged.len(), 1, "{}", found.text());
    assert_eq!((found.exit_code(), found.rows_found), (1, 1));
    // Cut short, it has another size.
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.exit_code(), found.files_damaged.len()), (1, 1));
}

#[test]
fn a_foreign_file_of_an_aggregate_is_a_difference() {
    let (lab, _) = lab_to_tamper_with();
    let path = lab.list("lake/daily")[0].clone();
    let copy = path.replace("part-", "other-");
    lab.put(
        &format!("lake/daily/{copy}"),
        lab.get(&format!("lake/daily/{path}")).to_vec(),
    );
    let found = lab.verify().expect("compared");
    assert!(!found.is_equal);
    assert_eq!(found.aggregates[0].files_unknown, [copy]);
}

#[test]
fn columns_that_a_delta_table_got_later_are_not_compared() {
    let lab = lab_of(Place::Local, "latest", "delta");
    put(&lab, 1);
    run_days(&lab, 1, 2);
    let sql = "SELECT id, v, event_dt, cat, v + 1 AS w FROM latest";
    std::fs::write(lab.pipeline.join("curated.sql"), sql).expect("written");
    put(&lab, 2);
    run_days(&lab, 2, 3);
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    assert!(
        found.notes[0].contains("not compared: `w`"),
        "{:?}",
        found.notes
    );
    lab.rebuild(false, &[]).expect("rebuilt");
    let found = lab.verify().expect("compared");
    assert!(found.is_equal && found.notes.is_empty(), "{}", found.text());
}

#[test]
fn rows_in_quarantine_do_not_count_as_bad_again() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace(
        "[curated]",
        "on_bad_row = \"quarantine\"\nmax_bad_rows = 2\n[curated]",
    );
    let lab = Lab::new(Place::Local, &toml, &SQL);
    lab.put_day(1, &[("I", 1, "a"), ("X", 2, "a"), ("X", 3, "a")]);
    lab.put_day(2, &[("I", 4, "a"), ("X", 5, "a")]);
    run_days(&lab, 1, 2);
    run_days(&lab, 2, 3);
    assert!(lab.verify().expect("compared").is_equal);
    let planned = lab.plan("2020-01-01", "2020-01-03", true).expect("a plan");
    assert_eq!(planned.fold.expect("folded").rows_rejected, 3);
    put(&lab, 1);
    lab.remove("raw/20200101-000000000.parquet");
    lab.put_day(1, &[("I", 1, "a"), ("X", 2, "a"), ("X", 3, "a")]);
    let error = lab.catch_up(&[]).expect_err("another file");
    assert_refused(error, 65, "has changed since", "rebuild");
}

#[test]
fn a_row_in_quarantine_wins_nothing_and_one_that_cannot_be_read_is_told() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace("[curated]", "on_bad_row = \"quarantine\"\n[curated]");
    let lab = Lab::new(Place::Local, &toml, &SQL);
    lab.put_day(1, &[("I", 1, "a"), ("X", 1, "b"), ("I", 2, "a")]);
    run_days(&lab, 1, 2);
    let explained = lab
        .ask(&[], |request| explain_key(request, vec!["1".into()]))
        .expect("explained");
    assert_eq!(
        (explained.changes.len(), explained.changes[0].wins),
        (1, true)
    );
    assert!(
        explained.notes[0].contains("1 changes of this key cannot be read"),
        "{:?}",
        explained.notes
    );
}

#[test]
fn a_run_looks_back_for_rows_that_no_run_has_read_in_files_it_knows() {
    let lab = lab_of_rows();
    put_rows(&lab, "a", &[1, 2, 3, 4]);
    lab.backfill("2020-01-01", "2020-01-04").expect("done");
    put_rows(&lab, "b", &[2, 3, 9]);
    // Another window meets the file first.
    run_short(&lab, 9, 10);
    assert_eq!(lab.table("lake/curated").len(), 4);
    lab.run_with(Task::Run, "2020-01-04", "2020-01-05", &["raw.lookback=2d"])
        .expect("a run");
    let values = |id: &str| {
        lab.table("lake/curated")
            .iter()
            .filter(|row| row["id"] == id)
            .count()
    };
    assert_eq!((values("1002"), values("1003"), values("1004")), (1, 1, 1));
    let found = lab.verify().expect("compared");
    assert!(found.is_equal, "{}", found.text());
    let folded = lab.catch_up(&[]).expect("caught up");
    assert_eq!(
        folded.rows_latest, 0,
        "only what lies between the windows was left"
    );
    assert!(lab.verify().expect("compared").is_equal);
}

#[test]
fn a_folded_file_that_is_gone_is_told_by_explain_key() {
    let lab = lab(1..=2);
    run_days(&lab, 1, 3);
    lab.remove("raw/20200102-000000000.parquet");
    let explained = lab
        .ask(&[], |request| explain_key(request, vec!["1".into()]))
        .expect("explained");
    assert!(
        explained.notes[0].contains("1 inputs that were folded are gone"),
        "{:?}",
        explained.notes
    );
}

#[test]
fn a_state_that_is_gone_or_damaged_is_told() {
    let (lab, _) = lab_to_tamper_with();
    let state = "lake/_glueless/many/versions";
    let versions = lab
        .list_all(state)
        .into_iter()
        .find(|path| path.starts_with("kind=version"));
    let path = format!("{state}/{}", versions.expect("versions"));
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!((found.exit_code(), found.state_files_damaged.len()), (1, 1));
    lab.put(&path, bytes);
    assert!(lab.verify().expect("compared").is_equal);
    for path in lab.list_all("lake/_glueless") {
        lab.remove(&format!("lake/_glueless/{path}"));
    }
    assert_refused(
        lab.verify().expect_err("gone"),
        2,
        "its state",
        "restore the state",
    );
    let gone = lab
        .ask(&[], |request| history(request).boxed_local())
        .expect_err("gone");
    assert_refused(gone, 2, "its state", "restore the state");
}

#[test]
fn a_pipeline_that_has_met_no_input_yet_has_the_right_table() {
    let lab = lab([5].into_iter());
    run_days(&lab, 1, 2);
    let found = lab.verify().expect("compared");
    assert!(found.is_equal);
    assert_eq!(
        found.notes,
        ["no run has found an input yet: there is no table"]
    );
}

#[test]
fn a_damaged_file_of_an_aggregate_is_named() {
    let (lab, _) = lab_to_tamper_with();
    let path = format!("lake/daily/{}", lab.list("lake/daily")[0]);
    let bytes = lab.get(&path).to_vec();
    lab.put(&path, bytes[..bytes.len() / 2].to_vec());
    let found = lab.verify().expect("compared");
    assert_eq!(
        (found.exit_code(), found.aggregates[0].files_damaged.len()),
        (1, 1)
    );
}

#[test]
fn a_running_aggregate_that_several_threads_have_no_memory_for_is_computed_by_one() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("{format}", "parquet");
    let toml = toml.replace("[curated]", "[limits]\nmemory = \"128MB\"\n[curated]");
    let status = include_str!("../sql/cust_loyalty/status.sql");
    let status = status
        .replace("cust_id", "id")
        .replace("cust_loyalty_category", "cat");
    let sql = [SQL[0], SQL[1], ("status.sql", status.as_str())];
    let lab = Lab::new(Place::Local, &toml, &sql);
    const KEYS: i64 = 60_000;
    for day in 1..=12 {
        let rows = (0..KEYS).map(|id| crate::support::Change {
            op: "U",
            id,
            cat: if id % 2 == 0 { "Basic" } else { "Gold" },
            v: day,
            us: id,
            event_us: (day - 1) * crate::support::DAY_US,
        });
        lab.put_changes(day, &rows.collect::<Vec<_>>());
    }
    lab.run("2020-01-01", "2020-01-13").expect("a run");
    let rows = lab.table("lake/status");
    assert_eq!(rows.len(), 12);
    let half = (KEYS / 2).to_string();
    assert!(
        rows.iter()
            .all(|row| row["basic"] == half && row["gold"] == half)
    );
}
