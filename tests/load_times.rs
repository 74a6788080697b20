//! Full loads at their time: a table that is loaded again ends the rows of the load before, and what
//! came between them, in whatever order they are read. Tables that can be checked by hand; the model has
//! random ones.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array};
use chrono::TimeDelta;

use crate::support::{
    COUNT_PER_DAY, Compared, Lab, LabBuilder, PLACES, Place, Report, Row, Task, assert_refused,
    file_of_rows, integers, now, texts,
};

const LOAD: &str = "LOAD00000001";

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.order_by", vec!["ts"])
        .set("raw.full_load_at", "column")
        .partition_by(&["event_dt"])
        .curated_sql("SELECT CAST(id AS BIGINT) AS id, name, event_dt FROM latest")
        .aggregate("daily", COUNT_PER_DAY)
}

/// A lab some hours from now, so that the files that it writes have settled.
pub fn lab(builder: &LabBuilder) -> Lab {
    let mut lab = builder.build();
    lab.now = now() + TimeDelta::hours(3);
    lab
}

/// Writes a full load of rows: time, key and value.
fn put_load(lab: &Lab, name: &str, rows: &[[&str; 3]]) {
    lab.put(&format!("raw/{name}.parquet"), file_of_rows(&["ts", "id", "name"], rows));
}

/// Writes a CDC file of rows: operation, time, key and value.
fn put(lab: &Lab, name: &str, rows: &[[&str; 4]]) {
    lab.put(&format!("raw/{name}.parquet"), file_of_rows(&["Op", "ts", "id", "name"], rows));
}

pub fn run(lab: &Lab) -> Report {
    lab.run("2024-01-01", "2024-02-01").expect("a run")
}

pub fn curated(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "name", "event_dt"])
}

/// `history`: key, day and whether it is deleted.
pub fn history(lab: &Lab) -> Vec<String> {
    let text = |row: Row| format!("{} {} {}", row["id"], row["event_dt"], row["deleted"]);
    let mut lines: Vec<String> = lab.history_relation().into_iter().map(text).collect();
    lines.sort();
    lines
}

const FIRST: &[[&str; 3]] = &[
    ["2024-01-01 00:00:00.5", "1", "a"],
    ["2024-01-01 00:00:00", "2", "b"],
    ["2024-01-01 00:00:01", "3", "c"],
];
const SECOND: &[[&str; 3]] =
    &[["2024-01-03 12:00:00", "1", "a9"], ["2024-01-03 12:00:02", "2", "b"]];

#[test]
fn a_reload_over_the_load_before_is_folded_by_the_next_run() {
    let orders = [vec!["ts"], vec!["ts", "id"]];
    for (place, order) in PLACES.into_iter().flat_map(|place| orders.clone().map(|by| (place, by)))
    {
        let lab = lab(&builder().place(place).set("raw.order_by", order));
        put_load(&lab, LOAD, FIRST);
        put(&lab, "20240102-101500123", &[["U", "2024-01-02 10:00:00", "1", "a2"]]);
        run(&lab);
        assert_eq!(curated(&lab), ["1 a2 2024-01-02", "2 b 2024-01-01", "3 c 2024-01-01"]);
        put_load(&lab, LOAD, SECOND);
        put(&lab, "20240104-120000123", &[["U", "2024-01-04 12:00:00", "2", "b4"]]);
        let planned = lab.plan("2024-01-04", "2024-01-05", true).expect("a plan");
        assert_eq!(planned.files, 2);
        let report = lab.run("2024-01-04", "2024-01-05").expect("a run");
        assert_eq!((report.files, report.rows_read, report.truncates), (2, 3, 0));
        let expected = ["1 a9 2024-01-03", "2 b4 2024-01-04"];
        assert_eq!(curated(&lab), expected);
        // Key 3, which the reload does not have, ended with it.
        let of_history = [
            "1 2024-01-01 false",
            "1 2024-01-02 false",
            "1 2024-01-03 false",
            "2 2024-01-01 false",
            "2 2024-01-03 false",
            "2 2024-01-04 false",
            "3 2024-01-01 false",
            "3 2024-01-03 true",
        ];
        assert_eq!(history(&lab), of_history);
        // A change from before the reload that comes late, and one of the time of its rows.
        put(
            &lab,
            "20240104-130000000",
            &[
                ["U", "2024-01-03 11:59:59", "1", "dead"],
                ["I", "2024-01-03 11:59:59", "5", "dead"],
                ["U", "2024-01-03 12:00:00", "2", "older"],
                ["I", "2024-01-03 12:00:00", "6", "f"],
            ],
        );
        run(&lab);
        let expected = ["1 a9 2024-01-03", "2 b4 2024-01-04", "6 f 2024-01-03"];
        assert_eq!(curated(&lab), expected);
        let again = run(&lab);
        assert_eq!((again.rows_written, again.partitions_removed), (0, 0));
        // The first load is gone, and with it the past: what can be compared is equal.
        let verified = lab.assert_verified();
        assert!(verified.notes[0].contains("LOAD00000001.parquet"), "{:?}", verified.notes);
        assert!(!verified.aggregates[0].is_compared);
        let error = lab.rebuild(false, &[]).expect_err("the past is lost");
        assert_refused(error, 65, "1 full loads were written over", "--accept-missing");
        lab.rebuild(true, &[]).expect("rebuilt");
        assert_eq!(curated(&lab), expected);
        lab.assert_verified();
    }
}

#[test]
fn loads_and_changes_come_to_one_table_in_any_order() {
    let files: [(&str, bool, &[[&str; 4]]); 4] = [
        (
            "LOAD00000001",
            true,
            &[["", "2024-01-01 00:00:00", "1", "a"], ["", "2024-01-01 00:00:01", "2", "b"]],
        ),
        (
            "20240102-000000000",
            false,
            &[["U", "2024-01-02 00:00:00", "1", "a2"], ["I", "2024-01-02 00:00:00", "3", "c"]],
        ),
        (
            "LOAD00000002",
            true,
            &[["", "2024-01-03 00:00:00", "1", "a3"], ["", "2024-01-03 00:00:01", "4", "d"]],
        ),
        (
            "20240104-000000000",
            false,
            &[["D", "2024-01-04 00:00:00", "4", ""], ["I", "2024-01-04 00:00:00", "5", "e"]],
        ),
    ];
    let orders = (0..24).map(|number| {
        let (mut left, mut number) = (vec![0, 1, 2, 3], number);
        (1..=4)
            .rev()
            .map(|count| {
                let at = number % count;
                number /= count;
                left.remove(at)
            })
            .collect::<Vec<usize>>()
    });
    let mut histories = Vec::new();
    for order in orders {
        let lab = lab(&builder());
        for number in &order {
            let (name, is_load, rows) = files[*number];
            let columns: Vec<[&str; 3]> = rows.iter().map(|row| [row[1], row[2], row[3]]).collect();
            if is_load {
                put_load(&lab, name, &columns)
            } else {
                put(&lab, name, rows)
            }
            run(&lab);
        }
        assert_eq!(curated(&lab), ["1 a3 2024-01-03", "5 e 2024-01-04"], "{order:?}");
        lab.assert_verified();
        histories.push(history(&lab));
    }
    histories.dedup();
    assert_eq!(histories.len(), 1);
}

#[test]
fn files_that_are_near_in_time_are_one_load() {
    let lab = lab(&builder());
    put_load(&lab, LOAD, &[["2024-01-03 12:00:00", "1", "a"], ["2024-01-03 12:10:00", "2", "b"]]);
    put_load(&lab, "LOAD00000002", &[["2024-01-03 12:24:00", "3", "c"]]);
    run(&lab);
    let expected = ["1 a 2024-01-03", "2 b 2024-01-03", "3 c 2024-01-03"];
    assert_eq!(curated(&lab), expected);
    // Its last file, in another folder, and a change that was made while the load ran.
    put_load(&lab, "part/LOAD00000003", &[["2024-01-03 12:38:00", "4", "d"]]);
    put(&lab, "20240103-120100000", &[["U", "2024-01-03 12:01:00", "3", "c2"]]);
    run(&lab);
    let expected = ["1 a 2024-01-03", "2 b 2024-01-03", "3 c2 2024-01-03", "4 d 2024-01-03"];
    assert_eq!(curated(&lab), expected);
    lab.assert_verified();
    // One that belongs to it, and would change its time.
    put_load(&lab, "LOAD00000000", &[["2024-01-03 11:50:00", "5", "e"]]);
    let before = lab.contents("lake");
    let error = lab.run("2024-01-01", "2024-02-01").expect_err("contradicts");
    assert_refused(error, 65, "LOAD00000000.parquet is a full load that begins earlier", "rebuild");
    assert_eq!(lab.contents("lake"), before);
    // After the pause it is another load.
    put_load(&lab, "LOAD00000000", &[["2024-01-03 12:54:00", "5", "e"]]);
    run(&lab);
    assert_eq!(curated(&lab), ["5 e 2024-01-03"]);
    lab.assert_verified();
}

#[test]
fn a_load_that_is_still_being_written_is_waited_for() {
    let mut lab = builder().build();
    lab.now = now();
    put_load(&lab, LOAD, FIRST);
    put(&lab, "20240102-101500123", &[["U", "2024-01-02 10:00:00", "1", "a2"]]);
    let planned = lab.plan("2024-01-01", "2024-02-01", false).expect("a plan");
    assert_eq!(planned.files, 1);
    let report = run(&lab);
    assert_eq!(report.files, 1);
    let note = report.note.unwrap_or_default();
    assert!(note.contains("a full load is still being written"), "{note}");
    assert_eq!(curated(&lab), ["1 a2 2024-01-02"]);
    assert_eq!(lab.catch_up(&[]).expect("caught up").files, 0);
    lab.now += TimeDelta::minutes(16);
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!((report.files, report.late_files), (1, 0));
    assert_eq!(curated(&lab), ["1 a2 2024-01-02", "2 b 2024-01-01", "3 c 2024-01-01"]);
    // A reload is waited for as well: the table stays, and nothing is said to be missing.
    put_load(&lab, LOAD, SECOND);
    lab.now = now();
    let report = run(&lab);
    let note = report.note.unwrap_or_default();
    assert!(note.contains("still being written") && !note.contains("missing"), "{note}");
    let error = lab.verify().expect_err("a new load");
    assert_refused(error, 65, "LOAD00000001.parquet is a new full load", "run the pipeline");
    let error = lab.rebuild(false, &[]).expect_err("half a load");
    assert_refused(error, 65, "still being written", "half of a full load");
    assert_eq!(curated(&lab).len(), 3);
    lab.now += TimeDelta::minutes(16);
    run(&lab);
    assert_eq!(curated(&lab), ["1 a9 2024-01-03", "2 b 2024-01-03"]);
    lab.assert_verified();
}

#[test]
fn a_load_that_has_changed_and_is_not_later_is_refused() {
    let lab = lab(&builder());
    put_load(&lab, LOAD, FIRST);
    run(&lab);
    put_load(&lab, LOAD, &[["2024-01-01 00:00:00", "1", "changed"]]);
    let before = lab.contents("lake");
    for answer in [
        lab.run("2024-01-01", "2024-02-01").map(|_| ()),
        lab.catch_up(&[]).map(|_| ()),
        lab.plan("2024-01-01", "2024-02-01", true).map(|_| ()),
    ] {
        let error = answer.expect_err("not later");
        assert_refused(
            error,
            65,
            "LOAD00000001.parquet is a full load that has changed",
            "rebuild",
        );
    }
    assert_eq!(lab.contents("lake"), before);
    lab.rebuild(true, &[]).expect("what is there now is right");
    assert_eq!(curated(&lab), ["1 changed 2024-01-01"]);
}

#[test]
fn a_load_can_be_at_the_time_of_its_name() {
    let without_times = |lab: &Lab, path: &str, rows: &[[&str; 2]]| {
        lab.put(&format!("raw/{path}.parquet"), file_of_rows(&["id", "name"], rows));
    };
    let by = lab(&builder().set("raw.full_load_at", "name").set("raw.full_load", "full-*"));
    without_times(&by, "2024/01/01/full-a", &[["1", "a"], ["2", "b"]]);
    without_times(&by, "2024/01/01/full-b", &[["3", "c"]]);
    without_times(&by, "2024/01/03/full-a", &[["1", "a3"]]);
    without_times(&by, "2024/01/03/full-b", &[["4", "d"]]);
    put(&by, "20240102-000000000", &[["I", "2024-01-02 10:00:00", "5", "e"]]);
    put(&by, "20240104-000000000", &[["I", "2024-01-04 10:00:00", "6", "f"]]);
    run(&by);
    assert_eq!(curated(&by), ["1 a3 2024-01-03", "4 d 2024-01-03", "6 f 2024-01-04"]);
    by.assert_verified();
    without_times(&by, "full-c", &[["9", "z"]]);
    let error = by.run("2024-01-01", "2024-02-01").expect_err("no time");
    assert_refused(
        error,
        65,
        "full-c.parquet has no date in its name or folders",
        "write the date into the name or a folder",
    );
}

#[test]
fn an_explained_key_names_the_load_that_ended_its_row() {
    let lab = lab(&builder());
    put_load(&lab, LOAD, FIRST);
    run(&lab);
    put_load(&lab, "LOAD00000002", SECOND);
    put(&lab, "20240102-000000000", &[["U", "2024-01-02 10:00:00", "1", "a2"]]);
    run(&lab);
    let explained = lab.explain(&["1"]);
    assert_eq!((explained.changes.len(), explained.rows_now.len()), (3, 1));
    let last = &explained.changes[2];
    assert!(last.wins && last.full_load && last.load_at.is_some());
    assert_eq!(
        last.why.as_deref(),
        Some("it comes last: a full load is at its time among the changes")
    );
    let explained = lab.explain(&["3"]);
    let ended = explained.ended.first().expect("ended");
    assert!(ended.truncate_file.ends_with("LOAD00000002.parquet") && ended.truncate_row.is_none());
    assert!(explained.notes.is_empty(), "{:?}", explained.notes);
}

#[test]
fn a_load_without_a_time_and_keys_that_do_not_fit_are_refused() {
    let lab = lab(&builder());
    put(&lab, "20240102-000000000", &[["U", "2024-01-02 10:00:00", "1", "a2"]]);
    lab.put(&format!("raw/{LOAD}.parquet"), file_of_rows(&["id", "name"], &[["1", "a"]]));
    let error = lab.run("2024-01-01", "2024-02-01").expect_err("no time");
    assert_refused(error, 65, "LOAD00000001.parquet is a full load without commit times", "name");
    assert!(lab.list("lake/curated").is_empty());
    let run = |set: &[&str]| lab.run_with(Task::Run, "2024-01-01", "2024-02-01", set);
    for (set, message) in [
        ("raw.order_by=[]", "cannot be `column` unless `raw.order_by` begins with the commit time"),
        ("raw.commit_time=\"name\"", "unless `raw.order_by` begins with the commit time"),
        ("key=[]", "cannot be `column` for a table without a key"),
        ("raw.full_load_settle=\"soon\"", "raw.full_load_settle"),
    ] {
        assert_refused(run(&[set]).expect_err(set), 2, message, "");
    }
    let error = run(&["raw.order_by=[\"name\"]"]).expect_err("texts");
    assert_refused(
        error,
        2,
        "the first column of `raw.order_by` is not the commit time",
        "order by",
    );
    let error = run(&["raw.full_load_at=before", "raw.full_load_settle=1m"]).expect_err("unused");
    assert_refused(error, 2, "raw.full_load_settle", "set `raw.full_load_at`");
}

#[test]
fn a_pipeline_whose_table_was_reloaded_is_rebuilt_with_loads_at_their_time() {
    let lab = lab(&builder().place(Place::Local).set("raw.full_load_at", "before"));
    put_load(&lab, LOAD, FIRST);
    put(&lab, "20240102-101500123", &[["U", "2024-01-02 10:00:00", "1", "a2"]]);
    run(&lab);
    put_load(&lab, LOAD, SECOND);
    let error = lab.run("2024-01-04", "2024-01-05").expect_err("a reload");
    assert_refused(error, 65, "LOAD00000001.parquet was folded", "set `raw.full_load_at`");
    lab.edit_pipeline("full_load_at = \"before\"", "full_load_at = \"column\"");
    let error = lab.run("2024-01-04", "2024-01-05").expect_err("another meaning");
    assert_refused(error, 2, "`raw.full_load_at` changed", "rebuild");
    lab.rebuild(true, &[]).expect("rebuilt");
    assert_eq!(curated(&lab), ["1 a9 2024-01-03", "2 b 2024-01-03"]);
    put(&lab, "20240104-120000123", &[["U", "2024-01-04 12:00:00", "2", "b4"]]);
    lab.run("2024-01-04", "2024-01-05").expect("a run");
    assert_eq!(curated(&lab), ["1 a9 2024-01-03", "2 b4 2024-01-04"]);
    lab.assert_verified();
}

#[test]
fn a_reload_in_csv_takes_what_was_in_quarantine_of_the_load_before_with_it() {
    let columns = [("Op", "VARCHAR"), ("ts", "TIMESTAMP"), ("id", "BIGINT"), ("name", "VARCHAR")];
    let lab = lab(&builder()
        .set("raw.format", "csv")
        .set("raw.on_bad_row", "quarantine")
        .raw_columns(&columns));
    lab.put(
        "raw/LOAD00000001.csv",
        "2024-01-01 00:00:00,1,a\n2024-01-01 00:00:01,x,b\nnever,3,c\n",
    );
    lab.put("raw/20240102-000000000.csv", "U,2024-01-02 00:00:00,1,a2\n");
    let report = run(&lab);
    assert_eq!(report.rows_rejected, 2);
    assert_eq!(curated(&lab), ["1 a2 2024-01-02"]);
    lab.put("raw/LOAD00000001.csv", "2024-01-03 00:00:00,2,b\n2024-01-03 00:00:00,y,b\n");
    let report = run(&lab);
    assert_eq!((report.rows_rejected, report.files_in_quarantine), (1, 1));
    assert_eq!(curated(&lab), ["2 b 2024-01-03"]);
    lab.put("raw/LOAD00000001.csv", "2024-01-04 00:00:00,2,b\n2024-01-04 00:00:00,3,c\n");
    assert_eq!(run(&lab).rows_rejected, 0);
    assert_eq!(curated(&lab), ["2 b 2024-01-04", "3 c 2024-01-04"]);
    assert_eq!(run(&lab).files_in_quarantine, 0);
    assert_eq!(lab.catch_up(&[]).expect("caught up").files, 0);
}

#[test]
fn keys_that_moved_before_a_load_are_those_of_the_load() {
    let lab = lab(&builder().keep("latest-per-day").set("raw.before_image_prefix", "BI_"));
    let put = |name: &str, rows: &[[&str; 5]]| {
        let columns = ["Op", "ts", "BI_id", "id", "name"];
        lab.put(&format!("raw/{name}.parquet"), file_of_rows(&columns, rows));
    };
    put_load(&lab, LOAD, FIRST);
    put("20240103-000000000", &[["U", "2024-01-03 10:00:00", "1", "7", "a7"]]);
    run(&lab);
    // The rows of its own day end, as by a truncate; those of other days stay.
    put_load(&lab, "LOAD00000002", SECOND);
    put("20240103-130000000", &[["U", "2024-01-03 13:00:00", "2", "8", "b8"]]);
    run(&lab);
    let expected = [
        "1 a 2024-01-01",
        "1 a9 2024-01-03",
        "2 b 2024-01-01",
        "3 c 2024-01-01",
        "8 b8 2024-01-03",
    ];
    assert_eq!(curated(&lab), expected);
    lab.assert_verified();
    let explained = lab.explain(&["7"]);
    assert_eq!(explained.ended.len(), 1);
}

#[test]
fn a_load_that_lacks_too_many_rows_stops_the_run() {
    for keep in ["latest", "latest-per-day"] {
        let lab = lab(&builder().keep(keep).set("raw.full_load_max_deletes", "40%"));
        // The first load ends nothing.
        put_load(&lab, LOAD, FIRST);
        run(&lab);
        // One of three rows is missing, and then two.
        put_load(
            &lab,
            "LOAD00000002",
            &[["2024-01-01 01:00:00", "1", "x"], ["2024-01-01 01:00:00", "3", "x"]],
        );
        run(&lab);
        assert_eq!(curated(&lab), ["1 x 2024-01-01", "3 x 2024-01-01"]);
        put_load(&lab, "LOAD00000003", &[["2024-01-01 02:00:00", "9", "y"]]);
        let before = lab.contents("lake");
        let error = lab.run("2024-01-01", "2024-02-01").expect_err("half a load");
        let message = "the table has 2 rows, and the full loads of this run would end 2 of them";
        assert_refused(error, 65, message, "--set raw.full_load_max_deletes=100%");
        assert_eq!(lab.contents("lake"), before);
        let set = ["raw.full_load_max_deletes=100%"];
        lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &set).expect("by word");
        assert_eq!(curated(&lab), ["9 y 2024-01-01"]);
        lab.assert_verified();
        let set = ["raw.full_load_max_deletes=some"];
        let error =
            lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &set).expect_err("no share");
        assert_refused(error, 2, "`raw.full_load_max_deletes` is `some`", "10%");
    }
}

#[test]
fn the_day_of_a_load_is_a_day_of_the_zone_and_a_date_that_date() {
    let zone = builder().set("raw.day_zone", "America/New_York");
    let of_times = lab(&zone);
    put_load(&of_times, LOAD, &[["2024-01-03 02:00:00", "1", "a"]]);
    run(&of_times);
    assert_eq!(curated(&of_times), ["1 a 2024-01-02"]);
    of_times.assert_verified();
    let of_dates = lab(&zone);
    let dates = Date32Array::from(vec![19_725]);
    let columns: Vec<(&str, ArrayRef)> =
        vec![("ts", Arc::new(dates)), ("id", integers([1])), ("name", texts(["a"]))];
    of_dates.put_columns(&format!("raw/{LOAD}.parquet"), columns);
    run(&of_dates);
    assert_eq!(curated(&of_dates), ["1 a 2024-01-03"]);
    of_dates.assert_verified();
}

#[test]
fn several_new_loads_by_their_rows_are_refused() {
    let lab = lab(&builder());
    // Times of the source, and not of the transfer.
    put_load(&lab, LOAD, &[["2020-05-01 00:00:00", "1", "a"]]);
    put_load(&lab, "segment/LOAD00000001", &[["2021-05-01 00:00:00", "2", "b"]]);
    let error = lab.run("2024-01-01", "2024-02-01").expect_err("each ends the one before");
    assert_refused(error, 65, "the full loads have 2 times", "give each a run of its own");
    assert!(lab.list("lake/curated").is_empty());
    let set = ["raw.full_load_settle=400d"];
    lab.run_with(Task::Run, "2024-01-01", "2024-02-01", &set).expect("waits");
    assert!(lab.list("lake/curated").is_empty());
    // One after the other, as they came.
    lab.rename("raw/segment/LOAD00000001.parquet", "away");
    run(&lab);
    lab.rename("away", "raw/segment/LOAD00000001.parquet");
    run(&lab);
    assert_eq!(curated(&lab), ["2 b 2021-05-01"]);
    lab.assert_verified();
    lab.rebuild(false, &[]).expect("they were two before");
    assert_eq!(curated(&lab), ["2 b 2021-05-01"]);
    let error = lab.verify_with(Compared::default(), &["raw.full_load_settle=0s"]);
    error.expect("as many as before");
}

#[test]
fn a_file_of_the_same_first_time_that_is_found_later_is_of_the_same_load() {
    let lab = lab(&builder());
    put_load(&lab, "b/LOAD00000002", &[["2024-01-03 12:00:00", "1", "a"]]);
    run(&lab);
    put_load(&lab, "a/LOAD00000001", &[["2024-01-03 12:00:00", "2", "b"]]);
    run(&lab);
    assert_eq!(curated(&lab), ["1 a 2024-01-03", "2 b 2024-01-03"]);
    lab.assert_verified();
}

#[test]
fn a_reload_of_fewer_files_is_no_part_of_the_load_before() {
    let lab = lab(&builder());
    put_load(&lab, LOAD, &[["2024-01-01 10:00:00", "1", "a"], ["2024-01-01 10:00:00", "2", "b"]]);
    put_load(&lab, "LOAD00000002", &[["2024-01-01 10:05:00", "4", "d"]]);
    put(&lab, "20240101-100600000", &[["U", "2024-01-01 10:06:00", "1", "a2"]]);
    run(&lab);
    put_load(&lab, LOAD, &[["2024-01-01 10:12:00", "1", "a3"]]);
    run(&lab);
    assert_eq!(curated(&lab), ["1 a3 2024-01-01"]);
    // The second file of the new load.
    put_load(&lab, "LOAD00000002", &[["2024-01-01 10:14:00", "5", "e"]]);
    run(&lab);
    assert_eq!(curated(&lab), ["1 a3 2024-01-01", "5 e 2024-01-01"]);
    lab.assert_verified();
    // Without rows it says nothing.
    put_load(&lab, LOAD, &[]);
    let error = lab.run("2024-01-01", "2024-02-01").expect_err("emptied");
    assert_refused(error, 65, "a full load without rows, written over one", "a truncate can say");
    assert_eq!(curated(&lab).len(), 2);
}

#[test]
fn a_rebuild_folds_all_files_of_a_new_load_or_none() {
    let mut lab = lab(&builder());
    put_load(&lab, LOAD, &[["2024-01-01 10:00:00", "1", "a"], ["2024-01-01 10:00:00", "2", "b"]]);
    run(&lab);
    put_load(&lab, LOAD, &[["2024-01-02 10:00:00", "1", "a2"]]);
    put_load(&lab, "LOAD00000002", &[["2024-01-02 10:01:00", "2", "b2"]]);
    let later = lab.now;
    lab.now = now();
    let error = lab.rebuild(true, &[]).expect_err("still being written");
    assert_refused(error, 65, "still being written", "half of a full load");
    lab.now = later;
    lab.rebuild(true, &[]).expect("rebuilt");
    assert_eq!(curated(&lab), ["1 a2 2024-01-02", "2 b2 2024-01-02"]);
    assert_eq!(run(&lab).files, 0);
    lab.assert_verified();
}
