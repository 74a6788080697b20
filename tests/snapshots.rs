//! Snapshots: complete copies of a table, of which each is a full load at its time. A row keeps its day as long as it does
//! not change.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;

use crate::load_times::{curated, history, lab, run};
use crate::support::{
    COUNT_PER_DAY, Lab, LabBuilder, Task, assert_refused, file_of_rows, now, test_times,
};

/// A pipeline of snapshots.
pub fn snapshots() -> LabBuilder {
    Lab::builder()
        .unset("raw.order_by")
        .set("raw.kind", "snapshot")
        .partition_by(&["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, name, event_dt FROM latest")
        .aggregate("daily", COUNT_PER_DAY)
}

const DAYS: [&[[&str; 2]]; 3] =
    [&[["1", "a"], ["2", "b"]], &[["1", "a2"], ["3", "c"]], &[["3", "c"], ["2", "b3"]]];

#[test]
fn a_history_of_snapshots_has_a_row_where_they_differ() {
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let lab = lab(&snapshots().keep("history").set("curated.format", "delta"));
        for day in order {
            let path = format!("raw/dt=2024-01-0{}/part-0.parquet", day + 1);
            lab.put(&path, file_of_rows(&["id", "name"], DAYS[day]));
            run(&lab);
        }
        let rows = lab.table("lake/curated").into_iter().map(|row| {
            let end = row.get("valid_to").map_or("-", |end| &end[..10]);
            let by = row.get("ended_by").map_or("-", String::as_str);
            format!("{} {} {} {end} {by}", row["id"], row["name"], &row["valid_from"][..10])
        });
        let mut rows: Vec<String> = rows.collect();
        rows.sort();
        let expected = [
            "1 a 2024-01-01 2024-01-02 update",
            "1 a2 2024-01-02 2024-01-03 load",
            "2 b 2024-01-01 2024-01-02 load",
            "2 b3 2024-01-03 - -",
            "3 c 2024-01-02 - -",
        ];
        assert_eq!(rows, expected, "{order:?}");
        lab.assert_verified();
    }
}

#[test]
fn snapshots_have_the_date_in_their_names() {
    let lab = lab(&snapshots());
    for (day, rows) in DAYS.iter().enumerate() {
        let path = format!("raw/customers_2024-01-0{}.parquet", day + 1);
        lab.put(&path, file_of_rows(&["id", "name"], rows));
    }
    run(&lab);
    assert_eq!(curated(&lab), ["2 b3 2024-01-03", "3 c 2024-01-02"]);
    lab.assert_verified();
    lab.put("raw/customers.parquet", file_of_rows(&["id", "name"], DAYS[0]));
    let error = lab.run("2024-01-01", "2024-02-01").expect_err("no date");
    assert_refused(
        error,
        65,
        "has no date in its name or folders",
        "write the date into the name or a folder",
    );
}

#[test]
fn a_snapshot_without_rows_ends_nothing_and_is_told() {
    let lab = lab(&snapshots());
    lab.put("raw/dt=2024-01-01/a.parquet", file_of_rows(&["id", "name"], DAYS[0]));
    // An empty part of a snapshot that has rows is none of its own.
    lab.put("raw/dt=2024-01-01/b.parquet", file_of_rows::<[&str; 2], _>(&["id", "name"], &[]));
    assert_eq!(run(&lab).note, None);
    lab.put("raw/dt=2024-01-02/a.parquet", file_of_rows::<[&str; 2], _>(&["id", "name"], &[]));
    let note = run(&lab).note.expect("a note");
    assert!(note.contains("1 files of full loads have no rows, such as "), "{note}");
    assert!(note.contains("dt=2024-01-02/a.parquet: they end nothing"), "{note}");
    assert_eq!(curated(&lab), ["1 a 2024-01-01", "2 b 2024-01-01"]);
    lab.assert_verified();
}

#[test]
fn no_file_of_a_load_at_its_time_is_quarantined() {
    let lab = lab(&snapshots().set("raw.on_bad_file", "quarantine"));
    lab.put("raw/dt=2024-01-01/a.parquet", file_of_rows(&["id", "name"], DAYS[0]));
    run(&lab);
    let before = curated(&lab);
    for (name, content) in
        [("b.parquet", b"hello".to_vec()), ("b.parquet", file_of_rows(&["name"], &[["x"]]))]
    {
        lab.put("raw/dt=2024-01-02/a.parquet", file_of_rows(&["id", "name"], &DAYS[0][..1]));
        lab.put(&format!("raw/dt=2024-01-02/{name}"), content);
        let error = lab.run("2024-01-01", "2024-02-01").expect_err("half a load");
        assert_refused(
            error,
            65,
            "a file of a full load cannot be read",
            "no file of it can be quarantined",
        );
        assert_eq!(curated(&lab), before);
    }
    lab.put("raw/dt=2024-01-02/b.parquet", file_of_rows(&["id", "name"], &DAYS[0][1..]));
    run(&lab);
    assert_eq!(curated(&lab), ["1 a 2024-01-01", "2 b 2024-01-01"]);
    lab.assert_verified();
}

#[test]
fn a_load_that_is_being_written_holds_up_no_other() {
    let mut lab = snapshots().build();
    lab.put("raw/dt=2024-01-01/a.parquet", file_of_rows(&["id", "name"], DAYS[0]));
    lab.now = now() + TimeDelta::hours(3);
    lab.put("raw/dt=2024-01-02/a.parquet", file_of_rows(&["id", "name"], DAYS[1]));
    lab.set_modified("raw/dt=2024-01-02/a.parquet", lab.now.timestamp() - 60);
    let report = run(&lab);
    assert_eq!(curated(&lab), ["1 a 2024-01-01", "2 b 2024-01-01"]);
    let note = report.note.expect("a note");
    assert!(note.contains("dt=2024-01-02") && note.contains("is still being written"), "{note}");
    lab.now += TimeDelta::hours(1);
    run(&lab);
    assert_eq!(curated(&lab), ["1 a2 2024-01-02", "3 c 2024-01-02"]);
    lab.assert_verified();
}

#[test]
fn what_snapshots_cannot_have_is_refused() {
    let lab = lab(&snapshots());
    for (key, value, why) in [
        ("raw.full_load", "LOAD*", "every file belongs to one"),
        ("raw.full_load_at", "before", "by `name` or `column`"),
        ("raw.dialect", "debezium", "have no operations"),
        ("raw.op", "Op", "have no operations"),
        ("raw.op_values.delete", "['D']", "have no operations"),
    ] {
        let set = format!("{key}={value}");
        let error = lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &[&set]).expect_err("no");
        let key = key.trim_end_matches(".delete");
        let message = format!("`{key}` cannot be set for snapshots: ");
        assert!(error.to_string().contains(why), "{error}");
        assert_refused(error, 2, &message, "leave it out");
    }
    let set = ["raw.full_load_at=column"];
    let error = lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &set).expect_err("no column");
    assert_refused(error, 2, "no column is named", "`raw.commit_time`");
    let error = lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &["key=[]"]).expect_err("no");
    assert_refused(error, 2, "`raw.kind` cannot be `snapshot` for a table without a key", "`key`");
}

#[test]
fn snapshots_in_dated_folders_are_full_loads_in_any_order() {
    let days = DAYS;
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let lab = lab(&snapshots());
        for day in order {
            let path = format!("raw/2024/01/0{}/part-0.parquet", day + 1);
            lab.put(&path, file_of_rows(&["id", "name"], days[day]));
            run(&lab);
        }
        assert_eq!(curated(&lab), ["2 b3 2024-01-03", "3 c 2024-01-02"], "{order:?}");
        let of_history = [
            "1 2024-01-01 false",
            "1 2024-01-02 false",
            "1 2024-01-03 true",
            "2 2024-01-01 false",
            "2 2024-01-02 true",
            "2 2024-01-03 false",
            "3 2024-01-02 false",
            "3 2024-01-03 false",
        ];
        assert_eq!(history(&lab), of_history, "{order:?}");
        lab.assert_verified();
    }
}

/// What happens to a pipeline of snapshots.
#[derive(Clone, Debug)]
enum Step {
    /// A part of the copy of a day is written, if it was not folded before: the value of each key that it has.
    Write(u32, u32, BTreeMap<i64, &'static str>),
    /// What was written is folded.
    Run,
    /// The table is emptied at noon of a day.
    Truncate(u32),
    /// A key is forgotten.
    Forget(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let rows = prop::collection::btree_map(1..5i64, prop::sample::select(vec!["a", "b"]), 1..5);
    prop_oneof![
        6 => (1..5u32, 0..2u32, rows).prop_map(|(day, part, rows)| Step::Write(day, part, rows)),
        4 => Just(Step::Run),
        1 => (1..5u32).prop_map(Step::Truncate),
        1 => (1..5i64).prop_map(Step::Forget),
    ]
}

/// The parts of copies, by their days and numbers. Of a key that several parts of a day have, the last one counts.
type Copies = BTreeMap<(u32, u32), BTreeMap<i64, &'static str>>;

/// The rows of the table, as [`curated`] has them: of each key the value of the last copy, since the day on which it became
/// that. Given are copies, the days at whose noon the table was emptied, and keys that are forgotten.
fn rows_of(copies: &Copies, emptied: &[u32], forgotten: &[i64]) -> Vec<String> {
    let mut rows: BTreeMap<i64, (&str, u32)> = BTreeMap::new();
    for day in 1..5 {
        let parts = copies.range((day, 0)..(day + 1, 0));
        let copy: BTreeMap<i64, &str> = parts.flat_map(|(_, part)| part.clone()).collect();
        if !copy.is_empty() {
            rows.retain(|id, _| copy.contains_key(id));
        }
        for (id, value) in copy {
            if rows.get(&id).is_none_or(|(before, _)| *before != value) {
                rows.insert(id, (value, day));
            }
        }
        if emptied.contains(&day) {
            rows.clear();
        }
    }
    rows.retain(|id, _| !forgotten.contains(id));
    rows.into_iter().map(|(id, (value, day))| format!("{id} {value} 2024-01-0{day}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24 * test_times(), max_shrink_iters: 60, ..ProptestConfig::default() })]

    /// Copies and their parts come in any order, several at once.
    #[test]
    fn a_row_has_the_day_on_which_it_became_as_it_is(
        steps in prop::collection::vec(step(), 5..16),
        partition_by in prop::sample::select(vec![&["event_dt"][..], &["event_dt", "name"], &["name"]]),
        (is_delta, marks_deleted) in any::<(bool, bool)>(),
    ) {
        let mut builder = snapshots().partition_by(partition_by);
        if is_delta {
            builder = builder.set("curated.format", "delta").set("curated.deletion_vectors", marks_deleted);
        }
        let lab = lab(&builder);
        let (mut written, mut copies) = (Copies::new(), Copies::new());
        let (mut emptied, mut forgotten) = (Vec::new(), Vec::new());
        for step in steps.into_iter().chain([Step::Run]) {
            match step {
                Step::Write(day, part, _) if copies.contains_key(&(day, part)) => {}
                Step::Write(day, part, rows) => {
                    let values: Vec<[String; 2]> =
                        rows.iter().map(|(id, value)| [id.to_string(), value.to_string()]).collect();
                    let path = format!("raw/dt=2024-01-0{day}/part-{part}.parquet");
                    lab.put(&path, file_of_rows(&["id", "name"], &values));
                    written.insert((day, part), rows);
                }
                Step::Run => {
                    run(&lab);
                    copies.clone_from(&written);
                }
                Step::Truncate(day) => {
                    // One after all that was read is refused.
                    let at = format!("2024-01-0{day}T12:00:00Z");
                    if copies.range((day + 1, 0)..).next().is_some() && lab.truncate(&at, false).is_ok() {
                        emptied.push(day);
                    }
                }
                Step::Forget(id) => {
                    if !copies.is_empty() && !forgotten.contains(&id) {
                        lab.forget(&[&id.to_string()], false).expect("forgotten");
                        forgotten.push(id);
                    }
                }
            }
            if !copies.is_empty() {
                prop_assert_eq!(curated(&lab), rows_of(&copies, &emptied, &forgotten));
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        lab.assert_verified();
        let before = lab.list("lake/curated");
        run(&lab);
        prop_assert_eq!(lab.list("lake/curated"), before);
        for id in 1..5 {
            let explained = lab.explain(&[&id.to_string()]);
            let row = curated(&lab).into_iter().find(|row| row.starts_with(&format!("{id} ")));
            let day = explained.rows_now.iter().map(|row| row.day.expect("a day").to_string());
            prop_assert_eq!(day.collect::<Vec<_>>(), row.map_or(vec![], |row| vec![row[row.len() - 10..].to_string()]));
        }
    }
}

#[test]
fn a_row_of_a_part_that_comes_late_has_its_day_of_before() {
    let lab = lab(&snapshots());
    let put = |path: &str, rows: &[[&str; 2]]| {
        lab.put(&format!("raw/dt=2024-01-{path}.parquet"), file_of_rows(&["id", "name"], rows));
        run(&lab);
    };
    put("01/part-0", &[["1", "a"], ["2", "b"]]);
    put("02/part-0", &[["1", "a"]]);
    assert_eq!(curated(&lab), ["1 a 2024-01-01"]);
    put("02/part-1", &[["2", "b"], ["3", "c"]]);
    assert_eq!(curated(&lab), ["1 a 2024-01-01", "2 b 2024-01-01", "3 c 2024-01-02"]);
    lab.assert_verified();
}
