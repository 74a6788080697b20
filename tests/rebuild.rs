//! What runs leave to each other: what they touch, what they refuse, and `rebuild`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Int32Array, Int64Array, StringArray, Time64MicrosecondArray,
};
use glueless::commands::Task;

use crate::support::{Lab, Place, Row, assert_refused, batch};

const PLACES: [Place; 2] = [Place::Local, Place::S3];

const TOML: &str = r#"
name = "left"
key = ["id"]
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt"]
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const DAILY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

fn lab(place: Place, keep: &str) -> Lab {
    let sql = [
        ("curated.sql", "SELECT id, v, event_dt FROM latest"),
        ("daily.sql", DAILY),
    ];
    Lab::new(place, &TOML.replace("{keep}", keep), &sql)
}

/// A file in whose name is a day: changes of ids, each with the day of its commit.
fn put(lab: &Lab, day: u32, changes: &[(&str, i64, u32)]) {
    put_ids(lab, day, changes, |ids| Arc::new(Int64Array::from(ids)));
}

fn put_ids(lab: &Lab, day: u32, changes: &[(&str, i64, u32)], ids: impl Fn(Vec<i64>) -> ArrayRef) {
    let ops = changes.iter().map(|change| change.0);
    let times = changes
        .iter()
        .map(|change| format!("2020-01-{:02} 12:00:00", change.2));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("Op", Arc::new(StringArray::from_iter_values(ops))),
        ("id", ids(changes.iter().map(|change| change.1).collect())),
        (
            "v",
            Arc::new(Int64Array::from(vec![i64::from(day); changes.len()])),
        ),
        ("ts", Arc::new(StringArray::from_iter_values(times))),
    ];
    lab.put_raw(
        &format!("202001{day:02}-000000000.parquet"),
        &batch(columns),
    );
}

fn day(day: u32) -> String {
    format!("2020-01-{day:02}")
}

type Tables = (Vec<Row>, Vec<Row>);

fn tables(lab: &Lab) -> Tables {
    (lab.table("lake/curated"), lab.table("lake/daily"))
}

/// Three days, one after the other.
fn three_days(lab: &Lab) {
    put(lab, 1, &[("I", 1, 1), ("I", 2, 1), ("I", 3, 1)]);
    put(lab, 2, &[("U", 1, 2), ("I", 4, 2)]);
    put(lab, 3, &[("U", 4, 3), ("D", 2, 3)]);
    for first in 1..4 {
        lab.run(&day(first), &day(first + 1)).expect("a run");
    }
}

#[test]
fn a_late_change_into_one_old_day_rewrites_that_day_only() {
    for place in PLACES {
        let lab = lab(place, "latest-per-day");
        three_days(&lab);
        let before = lab.contents("lake");
        // Delivered on the fourth day, of the second.
        put(&lab, 4, &[("U", 4, 2), ("I", 9, 2)]);
        let report = lab.run(&day(4), &day(5)).expect("a run");
        assert_eq!((report.rows_written, report.partitions_written), (3, 1));
        assert_eq!((report.rows_latest, report.rows_stale), (2, 0));
        let after = lab.contents("lake");
        let is_changed = |name: &&String| before.get(*name) != after.get(*name);
        let curated = |names: Vec<&String>| -> Vec<String> {
            let curated = names
                .into_iter()
                .filter(|name| name.starts_with("curated/"));
            curated.cloned().collect()
        };
        let changed = curated(after.keys().filter(is_changed).collect());
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed[0].starts_with("curated/event_dt=2020-01-02/"));
        assert_eq!(
            curated(before.keys().collect()),
            curated(after.keys().collect())
        );
        let ids: Vec<(String, String)> = lab
            .table("lake/curated")
            .iter()
            .filter(|row| row["event_dt"] == day(2))
            .map(|row| (row["id"].clone(), row["v"].clone()))
            .collect();
        let expected = [("1", "2"), ("4", "4"), ("9", "4")];
        assert_eq!(ids, expected.map(|(id, v)| (id.into(), v.into())));
        // The other days' versions stay where they are.
        let versions = |contents: &BTreeMap<String, bytes::Bytes>| {
            let names = contents.keys().filter(|name| name.contains("kind=version"));
            names.cloned().collect::<Vec<_>>()
        };
        let kept = versions(&before)
            .into_iter()
            .filter(|name| after.contains_key(name));
        assert!(kept.count() >= 2);
    }
}

#[test]
fn a_key_that_widens_from_int_to_bigint_stays_one_key() {
    for place in PLACES {
        for keep in ["latest", "latest-per-day"] {
            let lab = lab(place, keep);
            let narrow = |ids: Vec<i64>| -> ArrayRef {
                Arc::new(Int32Array::from_iter_values(
                    ids.iter().map(|id| *id as i32),
                ))
            };
            put_ids(&lab, 1, &[("I", 1, 1), ("I", 2, 1)], narrow);
            lab.run(&day(1), &day(2)).expect("a run");
            put(&lab, 2, &[("U", 1, 1), ("D", 2, 1), ("I", 1 << 40, 1)]);
            lab.run(&day(2), &day(3)).expect("a run");
            // Narrow again.
            put_ids(&lab, 3, &[("U", 1, 1)], narrow);
            lab.run(&day(3), &day(4)).expect("a run");
            let ids: Vec<(String, String)> = lab
                .table("lake/curated")
                .iter()
                .map(|row| (row["id"].clone(), row["v"].clone()))
                .collect();
            let wide = (1i64 << 40).to_string();
            assert_eq!(ids, [("1".into(), "3".into()), (wide, "2".into())]);
        }
    }
}

#[test]
fn a_key_of_another_kind_is_refused_and_nothing_changes() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    let text = |ids: Vec<i64>| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            ids.iter().map(i64::to_string),
        ))
    };
    put_ids(&lab, 4, &[("U", 1, 4)], text);
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
        let file = lab
            .list("lake/curated")
            .into_iter()
            .find(|name| name.contains("2020-01-01"));
        let file = file.expect("a file");
        let other = lab.list("lake/curated").into_iter().next_back();
        let other = lab.get(&format!("lake/curated/{}", other.expect("a file")));
        // It holds key 3, which changes now.
        put(&lab, 4, &[("U", 3, 4)]);
        for replace in [true, false] {
            match replace {
                true => lab.put(&format!("lake/curated/{file}"), other.to_vec()),
                false => lab.remove(&format!("lake/curated/{file}")),
            }
            let before = lab.contents("lake");
            let error = lab.run(&day(4), &day(5)).expect_err("refused");
            let partition = "lake/curated/event_dt=2020-01-01";
            assert_refused(error, 65, partition, "glueless rebuild");
            assert_eq!(lab.contents("lake"), before);
        }
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(tables(&lab), right);
        lab.run(&day(4), &day(5)).expect("a run");
        assert_ne!(tables(&lab), right);
    }
}

#[test]
fn versions_that_someone_removed_are_missed_and_a_rebuild_makes_them_again() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let right = tables(&lab);
        let versions = lab.list_all("lake/_glueless/left/versions");
        let versions = versions
            .into_iter()
            .find(|name| name.starts_with("kind=version"));
        let path = format!("lake/_glueless/left/versions/{}", versions.expect("a file"));
        lab.remove(&path);
        put(&lab, 4, &[("U", 3, 4), ("U", 1, 4), ("U", 4, 4)]);
        let before = lab.contents("lake");
        let error = lab.run(&day(4), &day(5)).expect_err("refused");
        assert_refused(error, 65, "versions", "glueless rebuild");
        assert_eq!(lab.contents("lake"), before);
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(tables(&lab), right);
        lab.run(&day(4), &day(5)).expect("a run");
    }
}

#[test]
fn a_missing_part_of_the_ledger_is_named() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let versions = lab.list_all("lake/_glueless/left/versions");
        let mut ledger = versions
            .into_iter()
            .filter(|name| name.starts_with("kind=ledger"));
        let path = format!(
            "lake/_glueless/left/versions/{}",
            ledger.next().expect("a file")
        );
        lab.remove(&path);
        let error = lab.run(&day(1), &day(2)).expect_err("refused");
        assert_refused(error, 65, "ledger", "restore the state's folder");
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
            // A file of a window that was never run is none of its business.
            put(&lab, 9, &[("U", 1, 9)]);
            let right = tables(&lab);
            let files = |lab: &Lab| lab.list("lake/curated").len();
            let before = files(&lab);
            let report = lab.rebuild(false, &[]).expect("a rebuild");
            assert_eq!((report.files, report.rows_read), (3, 7));
            assert_eq!((tables(&lab), files(&lab)), (right.clone(), before));
            // And runs go on from there.
            let again = lab.run(&day(1), &day(4)).expect("a run");
            assert_eq!(again.rows_written, 0);
            lab.run(&day(9), &day(10)).expect("a run");
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
        let ids = |lab: &Lab| -> Vec<String> {
            let mut ids: Vec<String> = lab
                .table("lake/curated")
                .iter()
                .map(|row| row["id"].clone())
                .collect();
            ids.sort();
            ids
        };
        assert_eq!(ids(&lab), ["1", "3", "4", "5"]);
        lab.run(&day(2), &day(3)).expect("a run");

        let sql = lab.pipeline.join("curated.sql");
        let query = "SELECT id, v, v * 2 AS twice, event_dt FROM latest WHERE id <> 5";
        std::fs::write(sql, query).expect("written");
        let error = lab.run(&day(1), &day(2)).expect_err("refused");
        assert_refused(error, 2, "`curated.sql` changed", "glueless rebuild");
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(ids(&lab), ["1", "3", "4"]);
        assert_eq!(lab.table("lake/curated")[0]["twice"], "2");
        lab.run(&day(1), &day(2)).expect("a run");
    }
}

#[test]
fn a_rebuild_without_an_input_is_refused_unless_that_is_accepted() {
    for place in PLACES {
        let lab = lab(place, "latest");
        three_days(&lab);
        let right = tables(&lab);
        lab.remove("raw/20200102-000000000.parquet");
        let before = lab.contents("lake");
        let error = lab.rebuild(false, &[]).expect_err("refused");
        assert_refused(error, 65, "20200102-000000000.parquet", "--accept-missing");
        assert_eq!(lab.contents("lake"), before);
        let report = lab.rebuild(true, &[]).expect("a rebuild");
        let note = report.note.expect("a note");
        assert!(note.contains("20200102-000000000.parquet"), "{note}");
        let ids: Vec<String> = lab
            .table("lake/curated")
            .iter()
            .map(|row| row["id"].clone())
            .collect();
        assert_eq!(ids, ["1", "3", "4"]);
        assert_ne!(tables(&lab), right);
    }
}

#[test]
fn many_runs_leave_few_files_of_state() {
    let lab = lab(Place::Local, "latest-per-day");
    for hour in 0..80u32 {
        let name = format!("202001{:02}-{:02}0000000.parquet", 1 + hour / 24, hour % 24);
        let time = format!("2020-01-{:02} {:02}:00:00", 1 + hour / 24, hour % 24);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("Op", Arc::new(StringArray::from(vec!["U"; 3]))),
            (
                "id",
                Arc::new(Int64Array::from_iter_values(
                    (0..3).map(|n| i64::from(hour % 7) + n),
                )),
            ),
            ("v", Arc::new(Int64Array::from(vec![i64::from(hour); 3]))),
            ("ts", Arc::new(StringArray::from(vec![time; 3]))),
        ];
        lab.put_raw(&name, &batch(columns));
        let at = |hour: u32| format!("2020-01-{:02}T{:02}:00:00Z", 1 + hour / 24, hour % 24);
        lab.run_with(Task::Curate, &at(hour), &at(hour + 1), &[])
            .expect("a run");
    }
    let state = lab.list_all("lake/_glueless/left/versions");
    let count = |part: &str| state.iter().filter(|name| name.contains(part)).count();
    assert!(count("kind=version/") <= 40, "{state:?}");
    assert!(count("kind=ledger/") <= 66, "{state:?}");
    assert_eq!(lab.list("lake/curated").len(), 4);
    let fresh = self::lab(Place::Local, "latest-per-day");
    for name in lab.list_all("raw") {
        fresh.put(
            &format!("raw/{name}"),
            lab.get(&format!("raw/{name}")).to_vec(),
        );
    }
    fresh.run(&day(1), &day(5)).expect("a run");
    assert_eq!(lab.table("lake/curated"), fresh.table("lake/curated"));
}

#[test]
fn an_order_column_of_another_kind_is_refused_between_runs() {
    let lab = lab(Place::Local, "latest");
    let put = |day: u32, s: ArrayRef| {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("Op", Arc::new(StringArray::from(vec!["U"]))),
            ("id", Arc::new(Int64Array::from(vec![1]))),
            ("v", Arc::new(Int64Array::from(vec![i64::from(day)]))),
            (
                "ts",
                Arc::new(StringArray::from(vec!["2020-01-01 00:00:00"])),
            ),
            ("s", s),
        ];
        lab.put_raw(
            &format!("202001{day:02}-000000000.parquet"),
            &batch(columns),
        );
    };
    let decimal = |value: i128| -> ArrayRef {
        let decimals = Decimal128Array::from(vec![value]);
        Arc::new(decimals.with_precision_and_scale(10, 2).expect("a decimal"))
    };
    let run = |first: u32| {
        let set = ["raw.order_by=[\"ts\", \"s\"]", "raw.commit_time=ts"];
        lab.run_with(Task::Run, &day(first), &day(first + 1), &set)
    };
    put(1, Arc::new(Int32Array::from(vec![5])));
    put(2, Arc::new(Int64Array::from(vec![4])));
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
        for name in lab.list_all("lake/_glueless") {
            lab.remove(&format!("lake/_glueless/{name}"));
        }
        let before = lab.contents("lake");
        for result in [lab.run(&day(3), &day(4)), lab.run(&day(1), &day(4))] {
            assert_refused(
                result.expect_err("refused"),
                2,
                "its state",
                "restore the state",
            );
            assert_eq!(lab.contents("lake"), before);
        }
        for table in ["curated", "daily"] {
            for name in lab.list_all(&format!("lake/{table}")) {
                lab.remove(&format!("lake/{table}/{name}"));
            }
        }
        lab.run(&day(1), &day(4)).expect("a new beginning");
        assert_eq!(lab.table("lake/curated").len(), 3);
    }
}

#[test]
fn a_partition_value_too_long_for_a_folder_is_refused_before_the_commit() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    let set = [
        "curated.url={base}/lake/other",
        "curated.partition_by=[\"note\"]",
        "aggregate.daily.url={base}/lake/other_daily",
    ];
    let set = set.map(|text| text.replace("{base}", &lab.base));
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let sql = "SELECT id, v, event_dt, repeat('é', CASE WHEN id = 4 THEN 200 ELSE 2 END) AS note FROM latest";
    std::fs::write(lab.pipeline.join("curated.sql"), sql).expect("written");
    // The state of this table lies elsewhere as well.
    let state = format!("state.url={}/lake/other_state", lab.base);
    let set: Vec<&str> = set.into_iter().chain([state.as_str()]).collect();
    lab.run_with(Task::Run, &day(1), &day(2), &set)
        .expect("a run");
    let before = lab.contents("lake");
    let error = lab
        .run_with(Task::Run, &day(2), &day(3), &set)
        .expect_err("refused");
    assert_refused(error, 65, "`note`", "shorten it");
    assert_eq!(lab.contents("lake"), before);
}

#[test]
fn an_aggregate_that_moved_or_changed_is_computed_for_all_days() {
    let lab = lab(Place::Local, "latest");
    three_days(&lab);
    let right = lab.table("lake/daily");
    let set = format!("aggregate.daily.url={}/lake/moved", lab.base);
    lab.run_with(Task::Aggregate, &day(3), &day(4), &[&set])
        .expect("a run");
    assert_eq!(lab.table("lake/moved"), right);
    let doubled = DAILY.replace("COUNT(*)", "2 * COUNT(*)");
    std::fs::write(lab.pipeline.join("daily.sql"), doubled).expect("written");
    lab.run_with(Task::Aggregate, &day(3), &day(4), &[&set])
        .expect("a run");
    let moved = lab.table("lake/moved");
    assert_eq!(moved.len(), right.len());
    for (row, before) in moved.iter().zip(&right) {
        let n = |row: &Row| row["n"].parse::<u64>().expect("a count");
        assert_eq!((n(row), &row["dt"]), (2 * n(before), &before["dt"]));
    }
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
    put_ids(&lab, 1, &[("I", 1, 1)], |ids| {
        Arc::new(Time64MicrosecondArray::from(ids))
    });
    let error = lab.run(&day(1), &day(2)).expect_err("refused");
    assert_refused(error, 2, "cannot be a key", "a date or a timestamp");
}
