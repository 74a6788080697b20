//! Delta tables with deletion vectors: files stay when rows are removed, other engines leave these rows
//! out, and files that have lost much are written again.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde_json::Value;

use crate::support::{
    DELETION_VECTORS, Fault, Lab, LabBuilder, PLACES, Place, ROWS_PER_DAY, STATE, Task,
    assert_refused, now, rows_of,
};

fn builder() -> LabBuilder {
    Lab::builder().format(DELETION_VECTORS)
}

/// Day 1 has 20 rows of each of two values of the partition column.
fn first_day(lab: &Lab) {
    let rows: Vec<(&str, i64, &str)> =
        (1..=40).map(|id| ("I", id, if id <= 20 { "a" } else { "b" })).collect();
    lab.put_day(1, &rows);
    lab.run_days(1, 2);
}

/// Day 2 deletes a row of `a`, moves one to `b`, changes one of `b`, and adds one to `c`.
fn second_day(lab: &Lab) {
    lab.put_day(2, &[("D", 3, "a"), ("U", 4, "b"), ("U", 30, "b"), ("I", 50, "c")]);
}

/// The rows that the table has by its log and files.
fn rows(lab: &Lab) -> Vec<String> {
    let mut rows: Vec<String> = lab
        .table("lake/curated")
        .iter()
        .map(|row| format!("{} {} {} {}", row["id"], row["cat"], row["v"], row["event_dt"]))
        .collect();
    rows.sort();
    rows
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

fn actions(lab: &Lab, version: usize, action: &str) -> Vec<Value> {
    let commits = lab.commits("lake/curated");
    commits[version].iter().filter_map(|line| line.get(action).cloned()).collect()
}

/// The files of deletion vectors in the table's folder.
fn vectors(lab: &Lab) -> BTreeSet<String> {
    let files = lab.list_all("lake/curated").into_iter();
    files.filter(|path| path.contains("deletion_vector_")).collect()
}

#[test]
fn files_stay_and_other_engines_leave_their_removed_rows_out() {
    for place in PLACES {
        let lab = builder().place(place).aggregate("daily", ROWS_PER_DAY).build();
        first_day(&lab);
        let before = rows(&lab);
        let files: BTreeSet<String> = lab.list("lake/curated").into_iter().collect();
        second_day(&lab);
        let planned = lab.plan("2020-01-02", "2020-01-03", true).expect("planned");
        let folded = planned.fold.expect("a fold");
        let report = lab.run_days(2, 3);
        let counts = (report.rows_written, report.partitions_written, report.partitions_removed);
        assert_eq!(counts, (3, 3, 0));
        assert_eq!((folded.rows_written, folded.partitions_written.len()), (3, 3));

        let after = rows(&lab);
        assert_eq!(after.len(), 40);
        assert_eq!(sorted(lab.read_delta(None)), after);
        assert_eq!(sorted(lab.read_delta(Some(1))), before);
        let now: BTreeSet<String> = lab.list("lake/curated").into_iter().collect();
        assert!(now.is_superset(&files), "{now:?}");
        assert_eq!(vectors(&lab).len(), 1);

        let deleted = |action: &Value| action["deletionVector"]["cardinality"].as_u64();
        let added: Vec<Option<u64>> = actions(&lab, 2, "add").iter().map(deleted).collect();
        assert_eq!(added.iter().flatten().collect::<Vec<_>>(), [&2, &1]);
        assert_eq!(added.len(), 4);
        assert_eq!(actions(&lab, 2, "remove").len(), 2);
        // The statistics count deleted rows too.
        let stats: Vec<Value> =
            actions(&lab, 2, "add").iter().map(|add| add["stats"].clone()).collect();
        assert_eq!(stats.iter().filter(|stats| **stats == r#"{"numRecords":20}"#).count(), 2);
        let protocol = &actions(&lab, 0, "protocol")[0];
        assert_eq!(protocol["readerFeatures"], serde_json::json!(["deletionVectors"]));

        assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-01 37", "2020-01-02 3"]);
        lab.assert_verified();
        lab.assert_tidy();
        // Its first row stays where it was, deleted.
        let explained = lab.explain(&["30"]);
        let place = explained.rows_now[0].place.clone();
        let file = "cat=b/part-c00000003-00000.snappy.parquet".to_string();
        assert_eq!(place, Some((file, 2)));

        // What is removed again is marked with what was before; the old file of vectors is kept.
        lab.put_day(3, &[("D", 5, "a"), ("D", 50, "c"), ("I", 3, "a")]);
        lab.run_days(3, 4);
        let later = rows(&lab);
        assert_eq!(sorted(lab.read_delta(None)), later);
        assert_eq!(sorted(lab.read_delta(Some(2))), after);
        assert!(later.contains(&"3 a 3 2020-01-03".to_string()), "{later:?}");
        assert_eq!(vectors(&lab).len(), 2);
        lab.assert_verified();
        // A table that is rebuilt has no deleted rows.
        lab.rebuild(false, &[]).expect("rebuilt");
        assert_eq!(rows(&lab), later);
        assert_eq!(sorted(lab.read_delta(None)), later);
        let last = lab.commits("lake/curated").len() - 1;
        assert!(actions(&lab, last, "add").iter().all(|add| add.get("deletionVector").is_none()));
        lab.assert_tidy();
    }
}

#[test]
fn a_large_vector_is_in_a_file_and_small_ones_of_any_number_of_files_are_in_the_log() {
    let lab = builder().build();
    lab.put_day(1, &(0..12_000).map(|id| ("I", id, "big")).collect::<Vec<_>>());
    lab.run_days(1, 2);
    let removed =
        |rest: i64| (0..12_000).filter(move |id| id % 5 == rest).map(|id| ("D", id, "big"));
    lab.put_day(2, &removed(0).collect::<Vec<_>>());
    lab.run_days(2, 3);
    let described = |lab: &Lab| -> Vec<String> {
        let last = lab.commits("lake/curated").len() - 1;
        let added = actions(lab, last, "add").into_iter();
        added.map(|add| add["deletionVector"]["storageType"].to_string()).collect()
    };
    assert_eq!(described(&lab), ["\"u\""]);
    assert_eq!(vectors(&lab).len(), 1);
    assert_eq!(lab.read_delta(None).len(), 9_600);
    lab.assert_verified();

    // More files than some readers can read the vectors of.
    let cats: Vec<String> = (0..600).map(|cat| format!("c{cat}")).collect();
    let ids = |cat: usize| (0..5).map(move |at| 20_000 + 5 * cat as i64 + at);
    let added = cats.iter().enumerate().flat_map(|(at, cat)| ids(at).map(move |id| (id, cat)));
    let added = added.map(|(id, cat)| ("I", id, cat.as_str()));
    lab.put_day(3, &added.collect::<Vec<_>>());
    lab.run_days(3, 4);
    let one_each = cats.iter().enumerate().map(|(at, cat)| ("D", 20_002 + 5 * at as i64, &**cat));
    lab.put_day(4, &one_each.chain(removed(1).take(10)).collect::<Vec<_>>());
    let report = lab.run_days(4, 5);
    // The file with the large vector is written again.
    assert_eq!(report.rows_written, 9_590);
    let described = described(&lab);
    assert_eq!(described.iter().filter(|kind| *kind == "\"i\"").count(), 600);
    assert_eq!(described.iter().filter(|kind| *kind == "null").count(), 1);
    let after = rows(&lab);
    assert_eq!(after.len(), 9_590 + 2_400);
    assert_eq!(sorted(lab.read_delta(None)), after);
    lab.assert_verified();
    lab.assert_tidy();
}

#[test]
fn a_file_that_has_lost_a_quarter_of_its_rows_is_written_again() {
    let lab = builder().build();
    first_day(&lab);
    lab.put_day(2, &(1..=4).map(|id| ("D", id, "a")).collect::<Vec<_>>());
    lab.run_days(2, 3);
    assert_eq!(vectors(&lab).len(), 1);
    let report = lab.run_days(2, 3);
    assert_eq!(report.rows_written, 0);
    lab.put_day(3, &[("D", 5, "a")]);
    assert_eq!(lab.run_days(3, 4).rows_written, 15);
    assert!(lab.list("lake/curated").iter().any(|path| path.starts_with("cat=a/part-c00000004")));
    assert_eq!(rows(&lab).len(), 35);
    assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
    // A partition whose last rows are deleted is removed.
    lab.put_day(4, &(6..=20).map(|id| ("D", id, "a")).collect::<Vec<_>>());
    let report = lab.run_days(4, 5);
    assert_eq!((report.rows_written, report.partitions_removed), (0, 1));
    assert_eq!(rows(&lab).len(), 20);
    lab.assert_verified();
    lab.assert_tidy();
}

#[test]
fn small_files_are_written_again_as_one() {
    let lab = builder().build();
    first_day(&lab);
    for day in 2..30 {
        lab.put_day(day, &[("I", 100 + day, "a"), ("U", 21 + day % 3, "b")]);
        lab.run_days(day, day + 1);
        let files = lab.list("lake/curated");
        let of_a = files.iter().filter(|path| path.starts_with("cat=a/")).count();
        assert!(of_a <= 8, "{of_a} files after day {day}");
    }
    assert_eq!(rows(&lab).len(), 68);
    assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
    lab.assert_verified();
}

#[test]
fn partitions_with_special_characters_are_written_again() {
    // Polars ignores the deletion vectors of files whose path is escaped in the log.
    for cat in ["New York", "Zürich", "a+b", "50%"] {
        let lab = builder().build();
        lab.put_day(1, &(1..=20).map(|id| ("I", id, cat)).collect::<Vec<_>>());
        lab.run_days(1, 2);
        lab.put_day(2, &[("D", 3, cat), ("U", 4, "plain")]);
        lab.run_days(2, 3);
        assert!(vectors(&lab).is_empty());
        assert_eq!(rows(&lab).len(), 19);
        assert_eq!(sorted(lab.read_delta(None)), rows(&lab), "{cat}");
    }
}

#[test]
fn a_table_gets_the_feature_with_its_first_vector_whoever_publishes_it() {
    let lab = builder().build();
    let off = ["curated.deletion_vectors=false"];
    lab.put_day(1, &(1..=20).map(|id| ("I", id, "a")).collect::<Vec<_>>());
    lab.run_days_with(1, 2, &off);
    lab.put_day(2, &[("D", 3, "a")]);
    let interrupted = lab.with_fault(Fault::NoPublishing);
    interrupted.run("2020-01-02", "2020-01-03").expect_err("interrupted");
    lab.put_day(3, &[("I", 30, "b")]);
    lab.run_days_with(3, 4, &off);
    let protocol = &actions(&lab, 2, "protocol")[0];
    assert_eq!(protocol["readerFeatures"], serde_json::json!(["deletionVectors"]));
    // What the older version implied is listed.
    let writers = serde_json::json!(["appendOnly", "invariants", "deletionVectors"]);
    assert_eq!(protocol["writerFeatures"], writers);
    assert_eq!(rows(&lab).len(), 20);
    assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
}

#[test]
fn an_aggregate_over_a_table_whose_vectors_are_missing_says_so() {
    let lab = builder().aggregate("daily", ROWS_PER_DAY).build();
    first_day(&lab);
    second_day(&lab);
    lab.run_days(2, 3);
    let name = vectors(&lab).into_iter().next().expect("a file");
    lab.put(&format!("lake/curated/{name}"), Vec::new());
    lab.put_day(3, &[("I", 60, "z")]);
    let error = lab.run("2020-01-01", "2020-01-04").expect_err("refused");
    let message = format!("{}/lake/curated/{name} is not the file that was published", lab.base);
    assert_refused(error, 65, &message, "restore it from a backup");
}

#[test]
fn deletion_vectors_can_begin_and_end_with_any_run() {
    for place in PLACES {
        let lab = builder().place(place).build();
        let off = ["curated.deletion_vectors=false"];
        lab.put_day(1, &(1..=40).map(|id| ("I", id, "a")).collect::<Vec<_>>());
        lab.run_days_with(1, 2, &off);
        assert!(actions(&lab, 0, "protocol")[0].get("readerFeatures").is_none());
        lab.put_day(2, &[("D", 3, "a"), ("D", 5, "a"), ("I", 3, "b")]);
        lab.run_days(2, 3);
        assert_eq!(vectors(&lab).len(), 1);
        let after = rows(&lab);
        assert_eq!(after.len(), 39);
        assert_eq!(sorted(lab.read_delta(None)), after);
        // Files with deleted rows stay so until they change.
        lab.put_day(3, &[("U", 3, "b")]);
        lab.run_days_with(3, 4, &off);
        assert_eq!(rows(&lab).len(), 39);
        assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
        let last = lab.commits("lake/curated").len() - 1;
        let property = &actions(&lab, last, "metaData")[0]["configuration"];
        assert_eq!(property["delta.enableDeletionVectors"], "false");
        lab.put_day(4, &[("D", 7, "a")]);
        lab.run_days_with(4, 5, &off);
        assert_eq!(rows(&lab).len(), 38);
        assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
        let files = lab.list("lake/curated");
        assert!(!files.iter().any(|path| path.starts_with("cat=a/part-c00000001")), "{files:?}");
        lab.put_day(5, &[("D", 8, "a")]);
        lab.run_days(5, 6);
        assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
        lab.assert_verified();
        lab.assert_tidy();
    }
}

#[test]
fn a_sorted_partition_stays_sorted() {
    let lab = builder().set("curated.sort_by", vec!["v", "id"]).build();
    first_day(&lab);
    second_day(&lab);
    lab.run_days(2, 3);
    // A partition with new rows is written again; one that only lost rows is not.
    let files = lab.list("lake/curated");
    let of = |cat: &str| files.iter().filter(|path| path.starts_with(cat)).collect::<Vec<_>>();
    assert_eq!(of("cat=a/"), ["cat=a/part-c00000001-00000.snappy.parquet"]);
    assert_eq!(of("cat=b/"), ["cat=b/part-c00000002-00000.snappy.parquet"]);
    assert_eq!(rows(&lab).len(), 40);
    assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
}

#[test]
fn unused_files_of_vectors_stay_for_the_retention_and_go_then() {
    for place in PLACES {
        let mut lab = builder().place(place).build();
        first_day(&lab);
        second_day(&lab);
        lab.run_days(2, 3);
        let before = rows(&lab);
        let first = vectors(&lab);
        // Both vectors are replaced, by runs of different times; many runs compact the ledger.
        lab.put_day(3, &[("D", 5, "a")]);
        lab.run_days(3, 4);
        for day in 4..14 {
            lab.now = now() + TimeDelta::minutes(day);
            lab.put_day(day, &[("U", 40, "b")]);
            lab.run_days(day, day + 1);
        }
        assert!(vectors(&lab).is_superset(&first));
        assert_eq!(sorted(lab.read_delta(Some(2))), before);
        for (days, stays) in [(6, true), (8, false)] {
            lab.now = now() + TimeDelta::days(days);
            lab.put_day(20 + days, &[("U", 39, "b")]);
            lab.run_days(20 + days, 21 + days);
            assert_eq!(vectors(&lab).is_superset(&first), stays, "after {days} days");
        }
        assert!(vectors(&lab).is_disjoint(&first));
        assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
        lab.assert_verified();
        lab.assert_tidy();
    }
}

#[test]
fn vectors_that_others_removed_or_changed_are_found() {
    let lab = builder().build();
    first_day(&lab);
    second_day(&lab);
    lab.run_days(2, 3);
    let name = vectors(&lab).into_iter().next().expect("a file");
    let path = format!("lake/curated/{name}");
    let whole = lab.get(&path);
    let mut damaged = whole.to_vec();
    damaged[30] ^= 1;
    lab.put_day(3, &[("D", 6, "a")]);
    for damaged in [None, Some(damaged)] {
        lab.remove(&path);
        if let Some(bytes) = damaged {
            lab.put(&path, bytes);
        }
        let before = lab.list_all("lake");
        let error = lab.run("2020-01-03", "2020-01-04").expect_err("refused");
        assert_refused(error, 65, "is not the file that was published", "restore it from a backup");
        assert_eq!(lab.list_all("lake"), before);
        let verified = lab.verify().expect("verified");
        let found = [verified.files_missing.clone(), verified.files_damaged.clone()].concat();
        assert_eq!(found, std::slice::from_ref(&name));
        assert!(verified.rows_found < verified.rows_expected, "{verified:?}");
        lab.put(&path, whole.clone());
    }
    lab.run_days(3, 4);
    assert_eq!(rows(&lab).len(), 39);
    // Another program brings deleted rows back.
    lab.put_day(4, &[("D", 7, "a")]);
    let add = serde_json::json!({ "add": actions(&lab, 1, "add")[0] });
    let removed = actions(&lab, 3, "add")[0]["deletionVector"].clone();
    let mut remove = actions(&lab, 3, "remove")[0].clone();
    remove["deletionVector"] = removed;
    let remove = serde_json::json!({ "remove": remove });
    let version = lab.commits("lake/curated").len();
    let commit = format!("lake/curated/_delta_log/{version:020}.json");
    for (action, message) in [
        (format!("{remove}\n{add}"), "rows were deleted from cat=a/part-c00000001"),
        (add.to_string(), "its log lists a file twice"),
    ] {
        lab.put(&commit, action.into_bytes());
        let error = lab.run("2020-01-04", "2020-01-05").expect_err("refused");
        assert_refused(error, 65, message, "glueless rebuild");
    }
    lab.rebuild(false, &[]).expect("rebuilt");
    let rows: Vec<_> = lab.verify().expect("verified").partitions_different;
    assert_eq!(rows, []);
}

#[test]
fn a_run_that_committed_is_published_by_the_next_one_with_its_vectors() {
    let lab = builder().build();
    first_day(&lab);
    second_day(&lab);
    let before = rows(&lab);
    let interrupted = lab.with_fault(Fault::NoPublishing);
    interrupted.run("2020-01-02", "2020-01-03").expect_err("interrupted");
    assert_eq!(rows(&lab), before);
    // Even if the table has none from then on.
    let off = ["curated.deletion_vectors=false"];
    lab.run_with(Task::Curate, "2020-01-02", "2020-01-03", &off).expect("a run");
    assert_eq!(rows(&lab).len(), 40);
    assert_eq!(sorted(lab.read_delta(None)), rows(&lab));
    lab.assert_verified();
    lab.assert_tidy();
}

#[test]
fn an_older_version_refuses_the_state_as_long_as_the_table_has_vectors() {
    let lab = builder().place(Place::Local).build();
    let formats = |lab: &Lab| -> Vec<String> {
        let folder = format!("{STATE}/versions");
        let files = lab.list_all(&folder).into_iter();
        let ledger = files.filter(|path| path.starts_with("kind=ledger/"));
        let first = |path| rows_of(lab.get(&format!("{folder}/{path}")))[0]["record"].clone();
        ledger.map(first).collect()
    };
    first_day(&lab);
    assert_eq!(formats(&lab), [r#"{"format":1}"#]);
    second_day(&lab);
    lab.run_days(2, 3);
    assert_eq!(formats(&lab).last().map(String::as_str), Some(r#"{"format":4}"#));
    // Compacted, the ledger still says so.
    for day in 3..12 {
        lab.put_day(day, &[("I", 100 + day, "d")]);
        lab.run_days(day, day + 1);
    }
    let compacted = formats(&lab);
    assert!(compacted.len() < 9 && compacted[0] == r#"{"format":4}"#, "{compacted:?}");
    // Without vectors, and after the retention of those that there were, it does not.
    lab.rebuild(false, &["curated.deletion_vectors=false"]).expect("rebuilt");
    let mut lab = lab;
    for day in 12..31 {
        lab.now += TimeDelta::days(1);
        lab.put_day(day, &[("I", 100 + day, "d")]);
        lab.run_days(day, day + 1);
    }
    let compacted = formats(&lab);
    assert!(compacted.iter().all(|format| format == r#"{"format":1}"#), "{compacted:?}");
    assert!(vectors(&lab).is_empty());
}

#[test]
fn a_filter_that_fails_for_partitions_which_another_excludes_is_no_fault() {
    let sql = "SELECT event_dt AS dt, COUNT(*) AS n FROM curated
WHERE id < 100 AND CAST(cat AS INT) > 5 AND event_dt >= $start_date AND event_dt < $end_date
GROUP BY event_dt";
    let lab = builder().aggregate("daily", sql).build();
    let mut rows: Vec<(&str, i64, &str)> = (1..=20).map(|id| ("I", id, "7")).collect();
    rows.extend([("I", 21, "3"), ("I", 100, "x")]);
    lab.put_day(1, &rows);
    lab.run_days(1, 2);
    lab.put_day(2, &[("D", 2, "7")]);
    lab.run_days(2, 3);
    assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-01 19"]);
}

#[test]
fn unused_vectors_count_from_the_next_run_that_folds() {
    // The aggregates' step of a run begins when the run does.
    let mut lab = builder().aggregate("daily", ROWS_PER_DAY).build();
    first_day(&lab);
    second_day(&lab);
    lab.run_days(2, 3);
    let first = vectors(&lab);
    lab.put_day(3, &[("D", 5, "a"), ("U", 40, "b")]);
    lab.run_days(3, 4);
    for (days, stays) in [(8, true), (14, true), (16, false)] {
        lab.now = now() + TimeDelta::days(days);
        lab.put_day(days, &[("I", 100 + days, "c")]);
        lab.run_days(days, days + 1);
        assert_eq!(vectors(&lab).is_superset(&first), stays, "after {days} days");
    }
}

#[test]
fn a_parquet_table_has_no_deletion_vectors() {
    let lab = Lab::builder().set("curated.deletion_vectors", true).build();
    lab.put_day(1, &[("I", 1, "a")]);
    let error = lab.run("2020-01-01", "2020-01-02").expect_err("refused");
    assert_refused(error, 2, "`curated.deletion_vectors` is for Delta tables", "delta");
}
