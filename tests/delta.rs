//! Curated tables of `format = "delta"`: what other engines read of them, what each run commits,
//! how long replaced files stay, and what happens where other programs write to them.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Decimal128Array, Float32Array, Int32Array,
    TimestampMillisecondArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::TimeDelta;
use serde_json::Value;

use crate::support::{
    DAY_US, FIRST_DAY_US, Fault, Lab, LabBuilder, PLACES, Place, STATE, Task, assert_refused,
    batches_of, integers, now, optional_texts, raw_file, row_as_text, texts, timestamps,
};

fn delta() -> LabBuilder {
    Lab::builder().format("delta")
}

fn lab(place: Place) -> Lab {
    delta().place(place).build()
}

/// Two runs. The second one moves a row, deletes one, adds one, and leaves the others where they are.
fn two_days(lab: &Lab) {
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "a"), ("I", 3, "b"), ("I", 4, "c")]);
    lab.run_days(1, 2);
    lab.put_day(2, &[("U", 1, "b"), ("D", 4, "c"), ("I", 5, "d")]);
    lab.run_days(2, 3);
}

const FIRST: [&str; 4] =
    ["1 a 1 2020-01-01", "2 a 1 2020-01-01", "3 b 1 2020-01-01", "4 c 1 2020-01-01"];
const SECOND: [&str; 4] =
    ["1 b 2 2020-01-02", "2 a 1 2020-01-01", "3 b 1 2020-01-01", "5 d 2 2020-01-02"];

/// The paths that a commit adds, or removes.
fn paths(commit: &[Value], action: &str) -> Vec<String> {
    let actions = commit.iter().filter_map(|line| line.get(action));
    let paths = actions.map(|action| action["path"].as_str().expect("a path").to_string());
    paths.collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn a_run_is_one_commit_that_other_readers_see_and_touches_changed_partitions_only() {
    for place in PLACES {
        let lab = lab(place);
        two_days(&lab);
        assert_eq!(lab.read_delta(None), SECOND);
        assert_eq!(lab.read_delta(Some(1)), FIRST);

        let commits = lab.commits("lake/curated");
        assert_eq!(commits.len(), 3, "the table itself, and two runs");
        assert_eq!(
            paths(&commits[2], "remove"),
            [
                "event_dt=2020-01-01/cat=a/part-c00000001-00000.snappy.parquet",
                "event_dt=2020-01-01/cat=c/part-c00000001-00000.snappy.parquet"
            ]
        );
        assert_eq!(
            paths(&commits[2], "add"),
            [
                "event_dt=2020-01-01/cat=a/part-c00000002-00000.snappy.parquet",
                "event_dt=2020-01-02/cat=b/part-c00000002-00000.snappy.parquet",
                "event_dt=2020-01-02/cat=d/part-c00000002-00000.snappy.parquet"
            ]
        );
        // Where nothing changed, nothing is committed.
        let again = lab.run("2020-01-01", "2020-01-03").expect("a run");
        assert_eq!(again.rows_written, 0);
        assert_eq!(lab.commits("lake/curated").len(), 3);
        lab.assert_tidy();
    }
}

#[test]
fn a_commit_names_its_run_and_tells_readers_how_many_rows_files_have() {
    let lab = lab(Place::Local);
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "a")]);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    let commits = lab.commits("lake/curated");
    let found = |action: &str| {
        let mut actions = commits[1].iter();
        actions.find_map(|line| line.get(action)).expect(action)
    };
    assert_eq!(found("commitInfo")["glueless.run_id"], report.run_id.as_str());
    assert_eq!(found("add")["stats"], r#"{"numRecords":2}"#);
}

#[test]
fn every_type_and_partition_value_reads_the_same_in_other_engines() {
    let sql = "SELECT id, cat, at, small, large, amount, bytes, real, plain, event_dt FROM latest";
    for place in PLACES {
        let lab = delta().place(place).partition_by(&["cat", "at"]).curated_sql(sql).build();
        let cats = [Some("A/B: c%d=é"), None, Some("%41"), Some("+ &")];
        let at = [Some(1_500_000_000), None, Some(0), Some(-1_000)];
        let amounts = Decimal128Array::from(vec![-150; 4]).with_precision_and_scale(9, 2);
        let amounts = Arc::new(amounts.expect("decimals"));
        let columns = |op: &str, time_us: i64| -> Vec<(&str, ArrayRef)> {
            vec![
                ("Op", texts([op; 4])),
                ("id", integers([1, 2, 3, 4])),
                ("cat", optional_texts(cats)),
                ("at", Arc::new(TimestampNanosecondArray::from(at.to_vec()))),
                ("small", Arc::new(UInt32Array::from(vec![u32::MAX; 4]))),
                ("large", Arc::new(UInt64Array::from(vec![u64::MAX; 4]))),
                ("amount", Arc::clone(&amounts) as ArrayRef),
                ("bytes", Arc::new(BinaryArray::from(vec![b"\x00\xff".as_slice(); 4]))),
                ("real", Arc::new(Float32Array::from(vec![0.5; 4]))),
                ("plain", timestamps([1_000_001; 4])),
                ("ts", timestamps([time_us; 4])),
            ]
        };
        lab.put_columns(&raw_file(1), columns("I", FIRST_DAY_US));
        lab.run_days(1, 2);
        // On S3, Polars does not find files whose partition value has a space.
        let engines = match place {
            Place::Local => vec!["deltalake", "polars-delta"],
            Place::S3 => vec!["deltalake"],
        };
        for engine in engines {
            let (columns, rows) = lab.read_with(engine, "lake/curated", None).expect("read");
            if engine == "deltalake" {
                let types: Vec<String> =
                    columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
                assert_eq!(
                    types.join(", "),
                    "id long, cat string, at timestamp, small long, large decimal(20,0), amount decimal(9,2), bytes binary, real float, plain timestamp, event_dt date"
                );
            }
            let rows: Vec<String> = rows.iter().map(|row| row_as_text(row, " | ")).collect();
            let rest = "4294967295 | 18446744073709551615 | -1.50 | 00ff | 0.5 | 1970-01-01 00:00:01.000001+00 | 2020-01-01";
            let expected = [
                "1 | A/B: c%d=é | 1970-01-01 00:00:01.5+00",
                "2 | null | null",
                "3 | %41 | 1970-01-01 00:00:00+00",
                "4 | + & | 1969-12-31 23:59:59.999999+00",
            ];
            assert_eq!(rows, expected.map(|row| format!("{row} | {rest}")), "{engine}");
        }
        // The same values are found again when the partitions are rebuilt.
        let later_us = FIRST_DAY_US + 100_000_000;
        lab.put_columns(&raw_file(2), columns("D", later_us));
        lab.run_days(2, 3);
        assert_eq!(lab.table("lake/curated"), []);
    }
}

#[test]
fn replaced_files_stay_for_the_retention_and_go_then() {
    for place in PLACES {
        let mut lab = lab(place);
        two_days(&lab);
        let old = "event_dt=2020-01-01/cat=a/part-c00000001-00000.snappy.parquet".to_string();
        let has_old = |lab: &Lab| lab.list_all("lake/curated").contains(&old);
        for (days, stays) in [(6, true), (8, false)] {
            lab.now = now() + TimeDelta::days(days);
            lab.put_day(10 + days, &[("I", 5, "d")]);
            lab.run_days(10 + days, 11 + days);
            assert_eq!(has_old(&lab), stays, "after {days} days");
            if stays {
                assert_eq!(lab.read_delta(Some(1)), FIRST);
            }
        }
        assert!(lab.read_with("deltalake", "lake/curated", Some(1)).is_err());
        lab.assert_tidy();
    }
}

/// Writes a commit as another program would.
fn commit(lab: &Lab, version: usize, action: &str) {
    let path = format!("lake/curated/_delta_log/{version:020}.json");
    lab.put(&path, action.as_bytes().to_vec());
}

/// Checks that runs are refused with a message, change nothing, and succeed after a rebuild.
#[track_caller]
fn assert_refused_until_rebuilt(lab: &Lab, message: &str) {
    let before = (lab.list_all("lake"), lab.commits("lake/curated"));
    lab.put_day(3, &[("I", 9, "a")]);
    let refused = |error| assert_refused(error, 65, message, "glueless rebuild");
    refused(lab.run("2020-01-03", "2020-01-04").expect_err("refused"));
    refused(lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-04", &[]).expect_err("refused"));
    assert_eq!((lab.list_all("lake"), lab.commits("lake/curated")), before);
    lab.rebuild(false, &[]).expect("rebuilt");
    assert_eq!(lab.read_delta(None), SECOND);
    lab.run_days(3, 4);
    assert_eq!(lab.read_delta(None).len(), 5);
}

#[test]
fn what_others_wrote_to_the_table_is_found_and_a_rebuild_mends_it() {
    let removed = r#"{"remove":{"path":"event_dt=2020-01-01/cat=b/part-c00000001-00000.snappy.parquet","dataChange":true,"deletionTimestamp":0}}"#;
    let lab = lab(Place::Local);
    two_days(&lab);
    commit(&lab, 3, removed);
    assert_refused_until_rebuilt(
        &lab,
        "its log does not list event_dt=2020-01-01/cat=b/part-c00000001",
    );

    let added = r#"{"add":{"path":"part-0.parquet","partitionValues":{"event_dt":"2020-01-01","cat":"b"},"size":9,"modificationTime":0,"dataChange":true}}"#;
    let lab = self::lab(Place::Local);
    two_days(&lab);
    commit(&lab, 3, added);
    assert_refused_until_rebuilt(&lab, "its log lists part-0.parquet");
}

#[test]
fn a_log_that_is_gone_is_found_and_a_rebuild_makes_it_again() {
    let lab = lab(Place::Local);
    two_days(&lab);
    std::fs::remove_dir_all(lab.folder.path().join("lake/curated/_delta_log")).expect("removed");
    assert_refused_until_rebuilt(&lab, "its log is missing");
}

#[test]
fn a_log_that_knows_more_than_the_state_is_found() {
    let lab = lab(Place::Local);
    lab.put_day(1, &[("I", 1, "a")]);
    lab.run_days(1, 2);
    let lake = lab.folder.path().join("lake");
    let (state, saved) = (lake.join("_glueless"), lab.folder.path().join("saved"));
    let copied = Command::new("cp").arg("-a").args([&state, &saved]).status();
    assert!(copied.expect("copied").success());
    lab.put_day(2, &[("I", 2, "a")]);
    lab.run_days(2, 3);
    let before = lab.table("lake/curated");
    std::fs::remove_dir_all(&state).expect("removed");
    std::fs::rename(&saved, &state).expect("restored");
    for error in [
        lab.run("2020-01-02", "2020-01-03").expect_err("refused"),
        lab.rebuild(false, &[]).expect_err("refused"),
    ] {
        assert_eq!(error.kind.exit_code(), 65);
        let message = error.to_string();
        assert!(message.contains("has later runs than the pipeline's state"), "{message}");
    }
    assert_eq!(lab.table("lake/curated"), before);
    // The hint says to do this.
    std::fs::remove_dir_all(lake.join("curated/_delta_log")).expect("removed");
    lab.rebuild(false, &[]).expect("rebuilt");
    lab.run_days(2, 3);
    assert_eq!(lab.table("lake/curated"), before);
}

#[test]
fn a_table_that_others_made_unwritable_is_refused_before_the_commit() {
    let lab = lab(Place::Local);
    two_days(&lab);
    let mut metadata = lab.commits("lake/curated")[0].clone();
    metadata.retain(|action| action.get("metaData").is_some());
    let appends = metadata[0]
        .to_string()
        .replace("\"configuration\":{", "\"configuration\":{\"delta.appendOnly\":\"true\",");
    commit(&lab, 3, &appends);
    lab.put_day(3, &[("I", 9, "a")]);
    let state = lab.list_all("lake/_glueless");
    for error in [
        lab.run("2020-01-03", "2020-01-04").expect_err("refused"),
        lab.rebuild(false, &[]).expect_err("refused"),
    ] {
        assert_eq!(error.kind.exit_code(), 65, "{error}");
        assert!(error.to_string().contains("cannot write to"), "{error}");
    }
    assert_eq!(lab.list_all("lake/_glueless"), state);
}

#[test]
fn a_rebuild_with_other_partitions_finishes_what_was_interrupted_as_it_was_begun() {
    let lab = lab(Place::Local);
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b")]);
    lab.run_days(1, 2);
    lab.put_day(2, &[("U", 1, "b")]);
    // The run commits its state, and nothing after that.
    let interrupted = lab.with_fault(Fault::NoPublishing);
    interrupted.run("2020-01-02", "2020-01-03").expect_err("interrupted");
    lab.rebuild(false, &["curated.partition_by=[\"cat\"]"]).expect("rebuilt");
    let rows = ["1 b 2 2020-01-02", "2 b 1 2020-01-01"];
    assert_eq!(lab.read_delta(None), rows);
    assert!(lab.list("lake/curated").iter().all(|path| path.starts_with("cat=b/")));
    assert_eq!(lab.read_delta(Some(1)), ["1 a 1 2020-01-01", "2 b 1 2020-01-01"]);
}

#[test]
fn a_time_that_would_lose_its_value_is_refused() {
    let fine = TimestampNanosecondArray::from(vec![-1]);
    let wide = TimestampMillisecondArray::from(vec![i64::MAX]);
    let times: [(ArrayRef, Option<&str>); 3] = [
        (timestamps([i64::MAX]), None),
        (Arc::new(fine), Some("does not fit")),
        (Arc::new(wide), Some("does not fit")),
    ];
    for (at, refused) in times {
        let lab = delta().partition_by(&[]).curated_sql("SELECT id, at FROM latest").build();
        let columns = vec![("id", integers([1])), ("at", at), ("ts", timestamps([FIRST_DAY_US]))];
        lab.put_columns(&raw_file(1), columns);
        let done = lab.run("2020-01-01", "2020-01-02");
        match refused {
            None => {
                done.expect("a run");
                let files = lab.list("lake/curated");
                let file = lab.get(&format!("lake/curated/{}", files[0]));
                let batches = batches_of(file);
                let at = batches[0]
                    .column_by_name("at")
                    .expect("a column")
                    .as_primitive::<TimestampMicrosecondType>();
                assert_eq!(at.iter().collect::<Vec<_>>(), [Some(i64::MAX)]);
            }
            Some(message) => assert_refused(done.expect_err("refused"), 65, message, ""),
        }
    }
}

#[test]
fn a_column_that_widens_is_refused_because_old_files_stay() {
    let lab = delta().partition_by(&[]).curated_sql("SELECT id, v, event_dt FROM latest").build();
    let put = |value: ArrayRef, day: i64| {
        let time_us = FIRST_DAY_US + (day - 1) * DAY_US;
        let columns = vec![("id", integers([day])), ("v", value), ("ts", timestamps([time_us]))];
        lab.put_columns(&raw_file(day), columns);
    };
    put(Arc::new(Int32Array::from(vec![1])), 1);
    lab.run_days(1, 2);
    put(integers([2]), 2);
    let error = lab.run("2020-01-02", "2020-01-03").expect_err("refused");
    let message = "was published as Int32 and is Int64 now";
    assert_refused(error, 65, message, "");
}

#[test]
fn a_commit_of_others_that_changes_no_file_does_no_harm() {
    let lab = lab(Place::Local);
    two_days(&lab);
    let info = r#"{"commitInfo":{"timestamp":0,"operation":"OPTIMIZE"}}"#;
    commit(&lab, 3, info);
    lab.put_day(3, &[("I", 9, "a")]);
    lab.run_days(3, 4);
    assert_eq!(lab.read_delta(None).len(), 5);
}

#[test]
fn a_table_does_not_change_its_format_in_place() {
    let lab = lab(Place::Local);
    two_days(&lab);
    let set = ["curated.format=parquet"];
    let error = lab.run_with(Task::Run, "2020-01-01", "2020-01-03", &set).expect_err("refused");
    assert_refused(error, 2, "`curated.format` changed", "set another `curated.url` as well");
    let error = lab.rebuild(false, &set).expect_err("refused");
    assert_eq!(error.kind.exit_code(), 2);
    assert_eq!(error.hint.as_deref(), Some("set another `curated.url` as well"));
    let other = format!("curated.url={}/lake/other", lab.base);
    let state = format!("state.url={}/{STATE}", lab.base);
    lab.rebuild(false, &[set[0], &other, &state]).expect("rebuilt");
    assert_eq!(lab.table("lake/other"), lab.table("lake/curated"));
}

#[test]
fn what_a_delta_table_cannot_hold_is_refused_before_anything_is_written() {
    for (sql, message) in [
        (
            "SELECT id, CAST('12:00:00' AS TIME) AS clock FROM latest",
            "the column `clock` is Time64(ns), which cannot be stored in a Delta table",
        ),
        (
            "SELECT id, v, upper(cat) AS \"V\" FROM latest",
            "two columns are named `V` except for case",
        ),
        (
            "SELECT id, v AS \"my value\" FROM latest",
            "the column `my value` has a space or one of ,;{}()= in its name",
        ),
    ] {
        let lab = delta().partition_by(&[]).curated_sql(sql).build();
        lab.put_day(1, &[("I", 1, "a")]);
        let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
        assert_refused(error, 2, message, "");
        assert!(lab.list_all("lake").is_empty());
    }
}
