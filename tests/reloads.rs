//! Full loads that were folded and are gone, or were written again: every run says so, and no rebuild
//! puts older changes after a newer load.

use crate::support::{
    Error, Lab, LabBuilder, PLACES, Place, Result, assert_refused, day, raw_file,
};

const LOAD: &str = "raw/LOAD00000001.parquet";
/// 2020-01-01, in seconds since 1970.
const FIRST_DAY: i64 = 1_577_836_800;

fn builder(place: Place) -> LabBuilder {
    Lab::builder().place(place).partition_by(&[]).curated_sql("SELECT id, cat FROM latest")
}

/// Writes a full load of some rows, on a day of January 2020 if the folder is local.
fn put_load(lab: &Lab, path: &str, written: i64, rows: &[(i64, &str)]) {
    let changes = rows.iter().map(|(id, cat)| crate::support::Change {
        op: "I",
        id: *id,
        cat,
        v: 0,
        us: 0,
        event_us: 0,
    });
    lab.put_changes(path, 1, &changes.collect::<Vec<_>>());
    set_written(lab, path, written);
}

fn set_written(lab: &Lab, path: &str, day: i64) {
    if !lab.base.starts_with("s3:") {
        // Noon of the day.
        lab.set_modified(path, FIRST_DAY + (day - 1) * 86_400 + 43_200);
    }
}

fn put_day(lab: &Lab, day: i64, changes: &[(&str, i64, &str)]) {
    lab.put_day(day, changes);
    set_written(lab, &raw_file(day), day);
}

fn rows(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "cat"])
}

/// A table with a full load and a CDC file of the second day; then the table is reloaded on the
/// third day, and changes on the fourth.
fn reloaded(place: Place) -> Lab {
    let lab = builder(place).build();
    put_load(&lab, LOAD, 1, &[(1, "a"), (2, "b"), (3, "c")]);
    put_day(&lab, 2, &[("U", 1, "a2")]);
    lab.run_days(1, 3);
    put_load(&lab, LOAD, 3, &[(1, "a9"), (2, "b")]);
    put_day(&lab, 4, &[("U", 2, "b4")]);
    lab
}

#[track_caller]
fn assert_reload_is_refused<T: std::fmt::Debug>(lab: &Lab, answer: Result<T>) {
    let before = lab.contents("lake");
    let error = answer.expect_err("refused");
    assert!(error.to_string().contains("LOAD00000001.parquet"), "{error}");
    assert_refused(error, 65, "", "glueless rebuild --accept-missing");
    assert_eq!(lab.contents("lake"), before);
}

#[test]
fn a_reload_is_folded_once_the_changes_from_before_it_are_taken_away() {
    for place in PLACES {
        let lab = reloaded(place);
        assert_reload_is_refused(&lab, lab.run(&day(4), &day(5)));
        assert_reload_is_refused(&lab, lab.plan(&day(4), &day(5), false));
        assert_reload_is_refused(&lab, lab.catch_up(&[]));
        assert_reload_is_refused(&lab, lab.verify());
        for accept_missing in [false, true] {
            let error = lab.rebuild(accept_missing, &[]).expect_err("refused");
            assert!(error.to_string().contains(&raw_file(2)), "{error}");
            assert_reload_is_refused::<()>(&lab, Err(error));
        }
        lab.rename(&raw_file(2), "before/20200102-000000000.parquet");
        lab.rebuild(true, &[]).expect("a rebuild");
        assert_eq!(rows(&lab), ["1 a9", "2 b"]);
        lab.run_days(4, 5);
        assert_eq!(rows(&lab), ["1 a9", "2 b4"]);
        lab.assert_verified();
        lab.rebuild(false, &[]).expect("a rebuild like any other");
        assert_eq!(rows(&lab), ["1 a9", "2 b4"]);
    }
}

#[test]
fn a_change_from_before_a_reload_that_no_run_has_folded_is_refused_too() {
    let lab = builder(Place::Local).build();
    put_load(&lab, LOAD, 1, &[(1, "a"), (2, "b")]);
    lab.run_days(1, 2);
    put_day(&lab, 2, &[("U", 1, "a2")]);
    put_load(&lab, LOAD, 3, &[(1, "a9"), (2, "b9")]);
    let error: Error = lab.rebuild(false, &[]).expect_err("refused");
    assert_refused(error, 65, "20200102-000000000.parquet", "--accept-missing");
    lab.remove(&raw_file(2));
    lab.rebuild(false, &[]).expect("nothing is missing");
    assert_eq!(rows(&lab), ["1 a9", "2 b9"]);
}

#[test]
fn no_other_full_load_is_taken_for_a_reload() {
    // A load that took until the third day, and a copy of everything at another time.
    let lab = builder(Place::Local).build();
    put_load(&lab, LOAD, 3, &[(1, "a"), (2, "b")]);
    put_day(&lab, 2, &[("U", 1, "a2")]);
    lab.run_days(1, 3);
    lab.rebuild(false, &[]).expect("a rebuild");
    for written in [9, 20] {
        set_written(&lab, LOAD, written);
        lab.rebuild(false, &[]).expect("a touched load");
        set_written(&lab, &raw_file(2), written);
        lab.rebuild(false, &[]).expect("a copy");
    }
    // A load that was corrected, and says when it is of.
    put_load(&lab, LOAD, 1, &[(1, "a"), (2, "B")]);
    lab.rebuild(false, &[]).expect("a corrected load");
    assert_eq!(rows(&lab), ["1 a2", "2 B"]);
    // A changed CDC file beside an unchanged load.
    put_day(&lab, 2, &[("U", 1, "a3")]);
    lab.rebuild(false, &[]).expect("a corrected change");
    assert_eq!(rows(&lab), ["1 a3", "2 B"]);
    let on_s3 = builder(Place::S3).build();
    put_day(&on_s3, 2, &[("U", 1, "a2")]);
    put_load(&on_s3, LOAD, 3, &[(1, "a"), (2, "b")]);
    on_s3.run_days(1, 3);
    on_s3.rebuild(false, &[]).expect("a rebuild");
    on_s3.put_in_parts(LOAD, on_s3.get(LOAD));
    on_s3.rebuild(false, &[]).expect("a copy");
    assert_eq!(rows(&on_s3), ["1 a2", "2 b"]);
}

#[test]
fn the_time_of_a_change_is_that_of_its_name_or_folder_or_when_it_was_written() {
    for (path, window_by, written, is_older) in [
        ("raw/2020/01/02/a.parquet", "path", 2, true),
        ("raw/2020/01/02/a.parquet", "path", 20, true),
        ("raw/2020/01/05/a.parquet", "path", 5, false),
        ("raw/a.parquet", "modified", 2, true),
        ("raw/a.parquet", "modified", 5, false),
        ("raw/20200105-000000000.parquet", "modified", 2, false),
    ] {
        let lab = builder(Place::Local).window_by(window_by).build();
        put_load(&lab, LOAD, 1, &[(1, "a")]);
        lab.put_day(2, &[("U", 1, "a2")]);
        lab.rename(&raw_file(2), path);
        set_written(&lab, path, written);
        lab.run_days(1, 30);
        put_load(&lab, LOAD, 3, &[(1, "a9"), (2, "b")]);
        let answer = lab.rebuild(false, &[]);
        assert_eq!(answer.is_err(), is_older, "{path}, {written}: {answer:?}");
    }
}

#[test]
fn a_full_load_that_is_gone_is_reported_by_every_run() {
    for place in PLACES {
        for (window_by, load) in [
            ("name", LOAD),
            ("name", "raw/2020/01/01/LOAD00000001.parquet"),
            ("path", LOAD),
            ("path", "raw/2020/01/01/LOAD00000001.parquet"),
            ("commit", LOAD),
        ] {
            let lab = builder(place).window_by(window_by).build();
            put_load(&lab, load, 1, &[(1, "a"), (2, "b")]);
            let cdc = "raw/2020/01/02/20200102-000000000.parquet";
            lab.put_day(2, &[("U", 1, "a2")]);
            lab.rename(&raw_file(2), cdc);
            lab.run_days(1, 3);
            let planned = lab.plan(&day(20), &day(21), false).expect("a plan");
            assert_eq!(planned.notes, [""; 0], "{place:?}, {window_by}, {load}");
            lab.remove(load);
            for window in [1, 2, 20] {
                let note = lab.run_days(window, window + 1).note.expect("a note");
                let expected = "1 inputs that were folded are missing, such as";
                assert!(note.starts_with(expected) && note.contains("LOAD0"), "{note}");
                let truncate = "their changes are not lost; a full load is among them: if the source table was emptied";
                assert!(note.contains(truncate), "{note}");
                let planned = lab.plan(&day(window), &day(window + 1), false).expect("a plan");
                assert!(planned.notes[0].starts_with(expected), "{:?}", planned.notes);
            }
            let note = lab.catch_up(&[]).expect("caught up").note.expect("a note");
            assert!(note.contains("LOAD0"), "{note}");
            assert_eq!(rows(&lab), ["1 a2", "2 b"]);
            let error = lab.rebuild(false, &[]).expect_err("refused");
            assert_refused(error, 65, "are missing, such as", "--accept-missing");
            lab.rebuild(true, &[]).expect("a rebuild");
            assert!(lab.run_days(1, 2).note.is_none_or(|note| note == "no inputs in the window"));
            assert_eq!(rows(&lab), ["1 a2"]);
        }
    }
}

#[test]
fn inputs_of_a_table_without_a_key_that_are_gone_are_reported() {
    let lab = builder(Place::Local).set("key", Vec::<String>::new()).build();
    put_load(&lab, LOAD, 1, &[(1, "a")]);
    put_day(&lab, 2, &[("I", 2, "b")]);
    lab.run_days(1, 3);
    assert_eq!(lab.run_days(1, 3).note.as_deref(), Some("no inputs in the window"));
    lab.remove(&raw_file(2));
    let note = lab.run_days(1, 3).note.expect("a note");
    assert!(note.contains("20200102-000000000.parquet: their changes are not lost"), "{note}");
    assert_eq!(lab.run_days(4, 5).note.as_deref(), Some("no inputs in the window"));
    lab.remove(LOAD);
    let note = lab.run_days(4, 5).note.expect("a note");
    assert!(note.contains("LOAD00000001.parquet"), "{note}");
    assert_eq!(rows(&lab), ["1 a", "2 b"]);
}
