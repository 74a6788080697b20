//! The ledger moves the inputs of old windows to files of their own: every command answers as it did,
//! and a new window does not read them.

use crate::support::{
    COUNT_PER_DAY, FIRST_DAY_US, Lab, LabBuilder, PLACES, Place, ROWS_PER_DAY, Row, Task,
    assert_refused, day, file_of_columns, integers, texts, timestamps,
};

const STATE_TABLE: &str = "lake/_glueless/lab/versions";

/// The files of the first two days, one a minute.
const FILES: i64 = 1_100;
const MINUTE_US: i64 = 60_000_000;

/// An aggregate: the place of each key's last change among those of its day. It reads `seq` for some dates
/// only.
const IN_ORDER: &str = "WITH numbered AS (
    SELECT event_dt, id, ROW_NUMBER() OVER (PARTITION BY event_dt ORDER BY seq) AS place FROM history)
SELECT event_dt AS dt, id, place FROM numbered
WHERE event_dt >= $start_date AND event_dt < $end_date AND $start_date > DATE '2010-01-01'";

/// The ways in which windows select files by names and folders.
const WAYS: [(Place, &str); 3] =
    [(Place::Local, "name"), (Place::S3, "name"), (Place::Local, "path")];

fn builder(place: Place, window_by: &str) -> LabBuilder {
    Lab::builder()
        .place(place)
        .window_by(window_by)
        .partition_by(&["event_dt"])
        .curated_sql("SELECT id, v, event_dt FROM latest")
        .aggregate("daily", COUNT_PER_DAY)
        .aggregate("places", IN_ORDER)
}

/// The path of a file by its minute since the first day: without folders if windows go by names.
fn path(window_by: &str, minute: i64) -> String {
    let (of_day, of_hour) = (1 + minute / 1_440, minute % 1_440);
    let name = format!("202001{of_day:02}-{:02}{:02}00000.parquet", of_hour / 60, of_hour % 60);
    match window_by {
        "name" => format!("raw/{name}"),
        _ => format!("raw/2020/01/{of_day:02}/{name}"),
    }
}

/// A file with one change of a key in the minute of the file.
fn file(id: i64, v: i64, minute: i64) -> Vec<u8> {
    let at = FIRST_DAY_US + minute * MINUTE_US;
    file_of_columns(vec![
        ("Op", texts(["I"])),
        ("id", integers([id])),
        ("v", integers([v])),
        ("ts", timestamps([at])),
        ("event", timestamps([at])),
    ])
}

/// A lab with two days of many files, and days up to the thirteenth, each of one file. Its ledger has been
/// compacted.
fn aged_lab(place: Place, window_by: &str) -> Lab {
    fill(builder(place, window_by).build(), window_by)
}

fn fill(lab: Lab, window_by: &str) -> Lab {
    let early = (0..FILES).map(|number| number * 2);
    let late = (2..13).map(|day| day * 1_440);
    let files = early
        .chain(late)
        .map(|minute| (path(window_by, minute), file(minute % 300, minute, minute).into()));
    lab.put_all(files.collect());
    for first in 1..=13 {
        lab.run_days(first, first + 1);
    }
    lab
}

/// The files of old inputs.
fn old_files(lab: &Lab) -> Vec<String> {
    let files = lab.list_all(STATE_TABLE).into_iter();
    files.filter(|path| path.starts_with("kind=inputs/")).collect()
}

fn tables(lab: &Lab) -> [Vec<Row>; 3] {
    lab.tables(["lake/curated", "lake/daily", "lake/places"])
}

/// Checks that a lab has the tables of a pipeline that has folded its files in one window.
#[track_caller]
fn assert_as_from_empty(lab: &Lab, window_by: &str) {
    let fresh = builder(Place::Local, window_by).build();
    fresh.copy_raw(lab);
    fresh.run_days(1, 20);
    let expected = tables(&fresh);
    assert!(expected.iter().all(|table| !table.is_empty()));
    assert!(tables(lab) == expected, "the tables differ");
}

#[test]
fn a_new_window_does_not_read_old_inputs_and_an_old_one_does() {
    for (place, window_by) in WAYS {
        let lab = aged_lab(place, window_by);
        let [old] = &old_files(&lab)[..] else { panic!("{:?}", old_files(&lab)) };
        assert_eq!(lab.folded_inputs().len() as i64, FILES + 11);
        let hidden = format!("{STATE_TABLE}/{old}");
        let before = lab.contents("lake");
        lab.rename(&hidden, "hidden");
        lab.put(&path(window_by, 18_720), file(1, -1, 18_720));
        lab.run_with(Task::Curate, &day(14), &day(15), &[]).expect("a run");
        assert_eq!(lab.history().expect("a history").gaps.len(), 0);
        let changed = lab.contents("lake");
        for error in [
            lab.run(&day(2), &day(3)).expect_err("refused"),
            lab.plan(&day(2), &day(3), false).expect_err("refused"),
            lab.catch_up(&[]).expect_err("refused"),
            lab.verify().expect_err("refused"),
            lab.rebuild(false, &[]).expect_err("refused"),
        ] {
            assert_refused(error, 65, "a file of the ledger is missing", "restore this file");
        }
        assert!(lab.contents("lake") == changed && changed != before);
        lab.rename("hidden", &hidden);
        let planned = lab.plan(&day(1), &day(3), false).expect("a plan");
        assert_eq!((planned.files, planned.folded_files), (FILES as u64, FILES as u64));
        let report = lab.run_days(1, 3);
        assert_eq!((report.files as i64, report.rows_written), (FILES, 0));
        lab.run_days(14, 15);
        assert_as_from_empty(&lab, window_by);
        lab.assert_verified();
    }
}

#[test]
fn aggregates_read_old_inputs_only_if_they_number_changes() {
    let lab = aged_lab(Place::Local, "name");
    let [old] = &old_files(&lab)[..] else { panic!("{:?}", old_files(&lab)) };
    let hidden = format!("{STATE_TABLE}/{old}");
    lab.rename(&hidden, "hidden");
    lab.put(&path("name", 18_720), file(1, -1, 18_720));
    let error = lab.run(&day(14), &day(15)).expect_err("refused");
    assert_refused(error, 65, "a file of the ledger is missing", "restore this file");
    lab.write_file("places.sql", COUNT_PER_DAY);
    lab.run_days(14, 15);
    assert_eq!(lab.table("lake/daily"), lab.table("lake/places"));
}

/// A file with one truncate in the minute of the file.
fn truncate(minute: i64) -> Vec<u8> {
    let at = FIRST_DAY_US + minute * MINUTE_US;
    file_of_columns(vec![
        ("Op", texts(["T"])),
        ("id", integers([0])),
        ("v", integers([0])),
        ("ts", timestamps([at])),
        ("event", timestamps([at])),
    ])
}

#[test]
fn aggregates_read_old_inputs_for_the_days_of_truncates_only() {
    let builder = Lab::builder().window_by("name").partition_by(&["event_dt"]);
    let builder = builder.curated_sql("SELECT id, v, event_dt FROM latest");
    let lab = builder.aggregate("daily", COUNT_PER_DAY).build();
    lab.put(&path("name", 1_441), truncate(1_441));
    let lab = fill(lab, "name");
    let [old] = &old_files(&lab)[..] else { panic!("{:?}", old_files(&lab)) };
    let hidden = format!("{STATE_TABLE}/{old}");
    lab.rename(&hidden, "hidden");
    lab.put(&path("name", 18_720), file(1, -1, 18_720));
    lab.run_days(14, 15);
    lab.put(&path("name", 20_160), truncate(20_160));
    let error = lab.run(&day(15), &day(16)).expect_err("refused");
    assert_refused(error, 65, "a file of the ledger is missing", "restore this file");
    lab.rename("hidden", &hidden);
    lab.run_days(15, 16);
    lab.assert_verified();
}

#[test]
fn a_table_without_a_key_has_each_row_of_an_old_input_once() {
    for place in PLACES {
        let keyless = Lab::builder().place(place).set("key", Vec::<String>::new());
        let keyless = keyless.partition_by(&["event_dt"]).aggregate("daily", ROWS_PER_DAY);
        let keyless = keyless.curated_sql("SELECT id, v, event_dt FROM latest");
        let lab = fill(keyless.build(), "name");
        assert_eq!(old_files(&lab).len(), 1);
        let rows = lab.table("lake/curated").len() as i64;
        assert_eq!(rows, FILES + 11);
        assert_eq!(lab.run_days(1, 3).rows_written, 0);
        lab.put(&path("name", 1), file(1_000, 1, 1));
        assert_eq!(lab.run_days(1, 3).files, 1);
        lab.put(&path("name", 1_501), file(1_001, 2, 1_501));
        assert_eq!(lab.catch_up(&[]).expect("a run").files, 1);
        lab.backfill(&day(1), &day(15)).expect("a backfill");
        assert_eq!(lab.table("lake/curated").len() as i64, rows + 2);
        lab.assert_verified();
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(lab.table("lake/curated").len() as i64, rows + 2);
    }
}

#[test]
fn windows_that_select_otherwise_find_old_inputs() {
    let lab = aged_lab(Place::Local, "path");
    assert_eq!(old_files(&lab).len(), 1);
    let before = lab.contents("lake/curated");
    for set in [
        "raw.window_by=name",
        "raw.window_by=commit",
        "raw.full_load=[\"2020*\"]",
        "raw.lookback=30d",
    ] {
        for (first, end) in [(2, 3), (13, 14)] {
            let run = lab.run_with(Task::Curate, &day(first), &day(end), &[set]);
            let report = run.unwrap_or_else(|error| panic!("{set}: {error}"));
            assert_eq!(report.late_files, 0, "{set}");
        }
        assert!(lab.contents("lake/curated") == before, "{set}");
    }
}

#[test]
fn late_changed_and_copied_inputs_of_old_windows_are_found() {
    for (place, window_by) in WAYS {
        let lab = aged_lab(place, window_by);
        assert_eq!(old_files(&lab).len(), 1);
        // Files that are late: one for a run of its window, one for catching up.
        lab.put(&path(window_by, 1), file(1_000, 1, 1));
        lab.put(&path(window_by, 1_501), file(1_001, 2, 1_501));
        let report = lab.run_days(1, 2);
        assert_eq!((report.files as i64, report.rows_written > 0), (721, true));
        let report = lab.catch_up(&[]).expect("a run");
        assert_eq!((report.files, report.late_files), (1, 1));
        assert_as_from_empty(&lab, window_by);

        // The same bytes in a new file are the same input; the ledger learns it.
        let copied = path(window_by, 4);
        let bytes = lab.get(&copied);
        lab.remove(&copied);
        lab.put_in_parts(&copied, bytes);
        assert_eq!(lab.run_days(1, 2).rows_written, 0);
        for night in 14..=24 {
            lab.run_days(night, night + 1);
        }
        assert_eq!(old_files(&lab).len(), 1, "three inputs are too few for a file");
        lab.assert_verified();
        let explained = lab.explain(&["1001"]);
        assert_eq!(explained.changes.len(), 1);
        assert!(explained.changes[0].run_id.is_some());

        // Another file of the same name is not.
        lab.put(&copied, file(4, -4, 4));
        lab.run_days(25, 26);
        let before = lab.contents("lake");
        let error = lab.run(&day(1), &day(2)).expect_err("refused");
        assert_refused(error, 65, "has changed since", "glueless rebuild");
        assert!(lab.contents("lake") == before);
        lab.rebuild(false, &[]).expect("a rebuild");
        lab.run_days(1, 26);
        assert_as_from_empty(&lab, window_by);
    }
}

#[test]
fn a_rebuild_forgets_old_inputs_and_moves_them_again() {
    for place in PLACES {
        let lab = aged_lab(place, "name");
        let before = old_files(&lab);
        lab.remove(&path("name", 0));
        lab.rebuild(true, &[]).expect("a rebuild");
        assert_eq!(lab.folded_inputs().len() as i64, FILES + 10);
        for night in 14..=23 {
            lab.run_days(night, night + 1);
        }
        let after = old_files(&lab);
        assert_eq!(after.len(), 1);
        assert_ne!(after, before);
        assert_eq!(lab.folded_inputs().len() as i64, FILES + 10);
        assert_as_from_empty(&lab, "name");
        lab.assert_verified();
    }
}
