//! Runs after runs: what a later run changes, what it refuses, and `rebuild`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int32Array, Time64MicrosecondArray};
use bytes::Bytes;

use crate::support::{
    Compared, Lab, PLACES, Place, Row, STATE, Task, assert_refused, day, integers, raw_file, texts,
};

const DAILY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

fn lab(place: Place, keep: &str) -> Lab {
    Lab::builder()
        .place(place)
        .keep(keep)
        .partition_by(&["event_dt"])
        .curated_sql("SELECT id, v, event_dt FROM latest")
        .aggregate("daily", DAILY)
        .build()
}

/// A change: operation, key, and the day of its commit.
type Change<'a> = (&'a str, i64, i64);

/// Writes the file of one day, with changes of any day.
fn put(lab: &Lab, file_day: i64, changes: &[Change]) {
    put_ids(lab, file_day, changes, |ids| integers(ids));
}

/// The same, with keys of any type.
fn put_ids(lab: &Lab, file_day: i64, changes: &[Change], ids: impl Fn(Vec<i64>) -> ArrayRef) {
    let changes = || changes.iter();
    let columns = vec![
        ("Op", texts(changes().map(|change| change.0))),
        ("id", ids(changes().map(|change| change.1).collect())),
        ("v", integers(changes().map(|_| file_day))),
        ("ts", texts(changes().map(|change| format!("{} 12:00:00", day(change.2))))),
    ];
    lab.put_columns(&raw_file(file_day), columns);
}

fn tables(lab: &Lab) -> [Vec<Row>; 2] {
    lab.tables(["lake/curated", "lake/daily"])
}

/// Writes and runs three days, one after the other.
fn three_days(lab: &Lab) {
    put(lab, 1, &[("I", 1, 1), ("I", 2, 1), ("I", 3, 1)]);
    put(lab, 2, &[("U", 1, 2), ("I", 4, 2)]);
    put(lab, 3, &[("U", 4, 3), ("D", 2, 3)]);
    for first in 1..4 {
        lab.run_days(first, first + 1);
    }
}

#[test]
fn a_late_change_into_one_old_day_rewrites_that_day_only() {
    for place in PLACES {
        let lab = lab(place, "latest-per-day");
        three_days(&lab);
        let before = lab.contents("lake");
        // A file of the fourth day with changes of the second.
        put(&lab, 4, &[("U", 4, 2), ("I", 9, 2)]);
        let report = lab.run_days(4, 5);
        assert_eq!((report.rows_written, report.partitions_written), (3, 1));
        assert_eq!((report.rows_latest, report.rows_stale), (2, 0));
        let after = lab.contents("lake");
        let is_changed = |name: &&String| before.get(*name) != after.get(*name);
        let curated = |names: Vec<&String>| -> Vec<String> {
            let curated = names.into_iter().filter(|name| name.starts_with("curated/"));
            curated.cloned().collect()
        };
        let changed = curated(after.keys().filter(is_changed).collect());
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed[0].starts_with("curated/event_dt=2020-01-02/"));
        assert_eq!(curated(before.keys().collect()), curated(after.keys().collect()));
        let mut rows = lab.lines("lake/curated", ["event_dt", "id", "v"]);
        rows.retain(|row| row.starts_with(&day(2)));
        assert_eq!(rows, ["1 2", "4 4", "9 4"].map(|row| format!("{} {row}", day(2))));
        // The files with the other days' versions are not rewritten.
        let versions = |contents: &BTreeMap<String, Bytes>| {
            let names = contents.keys().filter(|name| name.contains("kind=version"));
            names.cloned().collect::<Vec<_>>()
        };
        let unchanged = versions(&before).into_iter().filter(|name| after.contains_key(name));
        assert!(unchanged.count() >= 2);
    }
}

#[test]
fn a_key_that_widens_from_int_to_bigint_stays_one_key() {
    for place in PLACES {
        for keep in ["latest", "latest-per-day"] {
            let lab = lab(place, keep);
            let narrow = |ids: Vec<i64>| -> ArrayRef {
                Arc::new(Int32Array::from_iter_values(ids.iter().map(|id| *id as i32)))
            };
            put_ids(&lab, 1, &[("I", 1, 1), ("I", 2, 1)], narrow);
            lab.run_days(1, 2);
            put(&lab, 2, &[("U", 1, 1), ("D", 2, 1), ("I", 1 << 40, 1)]);
            lab.run_days(2, 3);
            // The narrow type comes once more.
            put_ids(&lab, 3, &[("U", 1, 1)], narrow);
            lab.run_days(3, 4);
            let wide = format!("{} 2", 1_i64 << 40);
            let expected = ["1 3".to_string(), wide];
            assert_eq!(lab.lines("lake/curated", ["id", "v"]), expected);
        }
    }
}

#[test]
fn a_key_of_another_kind_is_refused_and_nothing_changes() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    put_ids(&lab, 4, &[("U", 1, 4)], |ids| texts(ids.iter().map(i64::to_string)));
    let before = lab.contents("lake");
    let error = lab.run(&day(4), &day(5)).expect_err("refused");
    assert_refused(error, 65, "`id`", "glueless rebuild");
    assert_eq!(lab.contents("lake"), before);
}

#[test]
fn a_curated_file_that_someone_removed_or_replaced_is_found_and_named() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let right = tables(&lab);
        let file = lab.list("lake/curated").into_iter().find(|name| name.contains("2020-01-01"));
        let file = file.expect("a file");
        let other = lab.list("lake/curated").into_iter().next_back();
        let other = lab.get(&format!("lake/curated/{}", other.expect("a file")));
        // The missing or replaced file holds key 3, which changes now.
        put(&lab, 4, &[("U", 3, 4)]);
        for replace in [true, false] {
            let path = format!("lake/curated/{file}");
            if replace {
                lab.put(&path, other.clone());
            } else {
                lab.remove(&path);
            }
            let before = lab.contents("lake");
            let error = lab.run(&day(4), &day(5)).expect_err("refused");
            let partition = "lake/curated/event_dt=2020-01-01";
            assert_refused(error, 65, partition, "glueless rebuild");
            assert_eq!(lab.contents("lake"), before);
        }
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(tables(&lab), right);
        lab.run_days(4, 5);
        assert_ne!(tables(&lab), right);
    }
}

#[test]
fn versions_that_someone_removed_are_missed_and_a_rebuild_makes_them_again() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let right = tables(&lab);
        let versions = lab
            .list_all(&format!("{STATE}/versions"))
            .into_iter()
            .find(|name| name.starts_with("kind=version"));
        let path = format!("{STATE}/versions/{}", versions.expect("a file"));
        lab.remove(&path);
        put(&lab, 4, &[("U", 3, 4), ("U", 1, 4), ("U", 4, 4)]);
        let before = lab.contents("lake");
        let error = lab.run(&day(4), &day(5)).expect_err("refused");
        assert_refused(error, 65, "versions", "glueless rebuild");
        assert_eq!(lab.contents("lake"), before);
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(tables(&lab), right);
        lab.run_days(4, 5);
    }
}

#[test]
fn a_missing_part_of_the_ledger_is_named() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let versions = lab.list_all(&format!("{STATE}/versions"));
        let mut ledger = versions.into_iter().filter(|name| name.starts_with("kind=ledger"));
        let path = format!("{STATE}/versions/{}", ledger.next().expect("a file"));
        lab.remove(&path);
        let error = lab.run(&day(1), &day(2)).expect_err("refused");
        assert_refused(error, 65, "a file of the ledger is missing", "restore this file");
    }
}

#[test]
fn a_rebuild_gives_the_same_tables_and_no_extra_files() {
    for place in PLACES {
        for keep in ["latest", "latest-per-day"] {
            let lab = lab(place, keep);
            let error = lab.rebuild(false, &[]).expect_err("refused");
            assert_refused(error, 2, "nothing to rebuild", "glueless run");
            three_days(&lab);
            // The rebuild ignores a file of a window that was never run.
            put(&lab, 9, &[("U", 1, 9)]);
            let right = tables(&lab);
            let files = |lab: &Lab| lab.list("lake/curated").len();
            let before = files(&lab);
            let report = lab.rebuild(false, &[]).expect("a rebuild");
            assert_eq!((report.files, report.rows_read), (3, 7));
            assert_eq!((tables(&lab), files(&lab)), (right.clone(), before));
            // Later runs continue from there.
            let again = lab.run_days(1, 4);
            assert_eq!(again.rows_written, 0);
            lab.run_days(9, 10);
            assert_ne!(tables(&lab), right);
        }
    }
}

#[test]
fn a_rebuild_takes_changed_inputs_and_a_changed_query() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        put(&lab, 2, &[("U", 1, 2), ("I", 4, 2), ("I", 5, 2)]);
        let error = lab.run(&day(2), &day(3)).expect_err("refused");
        assert_refused(error, 65, "has changed since", "glueless rebuild");
        lab.rebuild(false, &[]).expect("a rebuild");
        let ids = |lab: &Lab| lab.lines("lake/curated", ["id"]);
        assert_eq!(ids(&lab), ["1", "3", "4", "5"]);
        lab.run_days(2, 3);

        let query = "SELECT id, v, v * 2 AS twice, event_dt FROM latest WHERE id <> 5";
        lab.write_file("curated.sql", query);
        let error = lab.run(&day(1), &day(2)).expect_err("refused");
        assert_refused(error, 2, "`curated.sql` changed", "glueless rebuild");
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(ids(&lab), ["1", "3", "4"]);
        assert_eq!(lab.table("lake/curated")[0]["twice"], "2");
        lab.run_days(1, 2);
    }
}

#[test]
fn a_rebuild_without_an_input_is_refused_unless_that_is_accepted() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let right = tables(&lab);
        lab.remove(&raw_file(2));
        let before = lab.contents("lake");
        let error = lab.rebuild(false, &[]).expect_err("refused");
        assert_refused(error, 65, "20200102-000000000.parquet", "--accept-missing");
        assert_eq!(lab.contents("lake"), before);
        let report = lab.rebuild(true, &[]).expect("a rebuild");
        let note = report.note.expect("a note");
        assert!(note.contains("20200102-000000000.parquet"), "{note}");
        assert_eq!(lab.lines("lake/curated", ["id"]), ["1", "3", "4"]);
        assert_ne!(tables(&lab), right);
    }
}

#[test]
fn many_runs_leave_few_files_of_state() {
    let lab = lab(Place::Local, "latest-per-day");
    let at = |hour: i64| format!("{}T{:02}:00:00Z", day(1 + hour / 24), hour % 24);
    for hour in 0..80 {
        let name = format!("202001{:02}-{:02}0000000.parquet", 1 + hour / 24, hour % 24);
        let time = format!("{} {:02}:00:00", day(1 + hour / 24), hour % 24);
        let columns = vec![
            ("Op", texts(["U"; 3])),
            ("id", integers((0..3).map(|n| hour % 7 + n))),
            ("v", integers([hour; 3])),
            ("ts", texts([&time; 3])),
        ];
        lab.put_columns(&format!("raw/{name}"), columns);
        lab.run_with(Task::Curate, &at(hour), &at(hour + 1), &[]).expect("a run");
    }
    let state = lab.list_all(&format!("{STATE}/versions"));
    let count = |part: &str| state.iter().filter(|name| name.contains(part)).count();
    assert!(count("kind=version/") <= 40, "{state:?}");
    assert!(count("kind=ledger/") <= 66, "{state:?}");
    assert_eq!(lab.list("lake/curated").len(), 4);
    let fresh = self::lab(Place::Local, "latest-per-day");
    fresh.copy_raw(&lab);
    fresh.run_days(1, 5);
    assert_eq!(lab.table("lake/curated"), fresh.table("lake/curated"));
}

#[test]
fn an_order_column_of_another_kind_is_refused_between_runs() {
    let lab = lab(Place::Local, "latest");
    let put = |day: i64, s: ArrayRef| {
        let columns = vec![
            ("Op", texts(["U"])),
            ("id", integers([1])),
            ("v", integers([day])),
            ("ts", texts(["2020-01-01 00:00:00"])),
            ("s", s),
        ];
        lab.put_columns(&raw_file(day), columns);
    };
    let decimal = |value: i128| -> ArrayRef {
        let decimals = Decimal128Array::from(vec![value]);
        Arc::new(decimals.with_precision_and_scale(10, 2).expect("a decimal"))
    };
    let run = |first: i64| {
        let set = ["raw.order_by=[\"ts\", \"s\"]", "raw.commit_time=ts"];
        lab.run_with(Task::Run, &day(first), &day(first + 1), &set)
    };
    put(1, Arc::new(Int32Array::from(vec![5])));
    put(2, integers([4]));
    put(3, decimal(450));
    run(1).expect("a run");
    run(2).expect("a wider integer is an integer");
    let before = lab.contents("lake");
    assert_refused(run(3).expect_err("refused"), 65, "`s`", "glueless rebuild");
    assert_eq!(lab.contents("lake"), before);
    assert_eq!(lab.table("lake/curated")[0]["v"], "1");
}

#[test]
fn tables_whose_state_is_gone_are_not_begun_anew() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        lab.remove_all("lake/_glueless");
        let before = lab.contents("lake");
        for result in [lab.run(&day(3), &day(4)), lab.run(&day(1), &day(4))] {
            assert_refused(result.expect_err("refused"), 2, "its state", "restore the state");
            assert_eq!(lab.contents("lake"), before);
        }
        for table in ["curated", "daily"] {
            lab.remove_all(&format!("lake/{table}"));
        }
        lab.run_days(1, 4);
        assert_eq!(lab.table("lake/curated").len(), 3);
    }
}

#[test]
fn a_partition_value_too_long_for_a_folder_is_refused_before_the_commit() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    // This table has a state of its own.
    let settings = [
        "curated.url={base}/lake/other",
        "curated.partition_by=[\"note\"]",
        "aggregate.daily.url={base}/lake/other_daily",
        "state.url={base}/lake/other_state",
    ]
    .map(|text| text.replace("{base}", &lab.base));
    let set: Vec<&str> = settings.iter().map(String::as_str).collect();
    let sql = "SELECT id, v, event_dt, repeat('é', CASE WHEN id = 4 THEN 200 ELSE 2 END) AS note FROM latest";
    lab.write_file("curated.sql", sql);
    lab.run_days_with(1, 2, &set);
    let before = lab.contents("lake");
    let error = lab.run_with(Task::Run, &day(2), &day(3), &set).expect_err("refused");
    assert_refused(error, 65, "`note`", "shorten it");
    assert_eq!(lab.contents("lake"), before);
}

#[test]
fn an_aggregate_that_moved_or_changed_is_computed_for_all_days() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    let right = lab.table("lake/daily");
    let set = format!("aggregate.daily.url={}/lake/moved", lab.base);
    lab.run_with(Task::Aggregate, &day(3), &day(4), &[&set]).expect("a run");
    assert_eq!(lab.table("lake/moved"), right);
    let doubled = DAILY.replace("COUNT(*)", "2 * COUNT(*)");
    lab.write_file("daily.sql", &doubled);
    lab.run_with(Task::Aggregate, &day(3), &day(4), &[&set]).expect("a run");
    let moved = lab.table("lake/moved");
    assert_eq!(moved.len(), right.len());
    for (row, before) in moved.iter().zip(&right) {
        let n = |row: &Row| row["n"].parse::<u64>().expect("a count");
        assert_eq!((n(row), &row["dt"]), (2 * n(before), &before["dt"]));
    }
    // The query as it was before.
    lab.write_file("daily.sql", DAILY);
    lab.run_with(Task::Aggregate, &day(3), &day(4), &[&set]).expect("a run");
    assert_eq!(lab.table("lake/moved"), right);
    let verified = lab.verify_with(Compared::default(), &[&set]).expect("compared");
    assert!(verified.is_equal, "{verified:?}");
}

#[test]
fn a_changed_input_is_found_by_a_run_that_only_looks_back_over_it() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        put(&lab, 2, &[("U", 1, 2), ("I", 4, 2), ("I", 5, 2)]);
        let error = lab.run(&day(3), &day(4)).expect_err("refused");
        assert_refused(error, 65, "has changed since", "glueless rebuild");
    }
}

#[test]
fn a_key_that_is_a_time_of_day_is_refused() {
    let lab = lab(Place::Local, "latest");
    put_ids(&lab, 1, &[("I", 1, 1)], |ids| Arc::new(Time64MicrosecondArray::from(ids)));
    let error = lab.run(&day(1), &day(2)).expect_err("refused");
    assert_refused(error, 2, "cannot be a key", "a date or a timestamp");
}
