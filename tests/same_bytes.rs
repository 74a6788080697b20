//! The same bytes are the same input: raw files that were copied, restored from an archive, touched
//! or copied to another bucket have other times or ETags, and every command answers as before.

use std::collections::BTreeMap;

use arrow::array::ArrayRef;
use bytes::Bytes;
use chrono::{DateTime, Duration, SubsecRound, Utc};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Answer, COUNT_PER_DAY, Change, FIRST_DAY_US, Fault, Lab, LabBuilder, PLACES, Place, Report,
    Row, assert_refused, batch, day, integers, parquet, raw_file, texts, timestamps,
};

const WAYS: [&str; 4] = ["name", "path", "modified", "commit"];

/// What wrote the raw files again.
#[derive(Clone, Copy, Debug)]
enum Copied {
    /// An archive that keeps whole seconds only.
    Archive,
    /// A copy without the times.
    Now,
    /// The same times, other ETags (S3), or new files (local).
    Parts,
}

const COPIES: [Copied; 3] = [Copied::Archive, Copied::Now, Copied::Parts];

fn builder(place: Place, window_by: &str) -> LabBuilder {
    Lab::builder().place(place).window_by(window_by).aggregate("daily", COUNT_PER_DAY)
}

/// A file: the day on which it was written, its path, and its changes.
type DayFile<'a> = (i64, &'a str, &'a [(&'a str, i64, &'a str)]);

/// Files of four days and a full load, each written on its day.
fn put_files(lab: &Lab) {
    let days: [DayFile<'_>; 5] = [
        (1, "raw/LOAD00000001.parquet", &[("I", 1, "a"), ("I", 2, "a")]),
        (1, "raw/2020/01/01/20200101-000000000.parquet", &[("U", 1, "b")]),
        (2, "raw/2020/01/02/20200102-000000000.parquet", &[("I", 3, "a"), ("D", 2, "")]),
        (3, "raw/2020/01/03/20200103-000000000.parquet", &[("U", 1, "c")]),
        (4, "raw/2020/01/04/20200104-000000000.parquet", &[("I", 4, "a")]),
    ];
    for (day, path, rows) in days {
        let changes = (1..).zip(rows).map(|(us, (op, id, cat))| Change {
            op,
            id: *id,
            cat,
            v: day,
            us,
            event_us: 0,
        });
        lab.put_changes(path, day, &changes.collect::<Vec<_>>());
        set_written(lab, path, day);
    }
}

/// Sets when a local file was written, with a fraction of a second.
fn set_written(lab: &Lab, path: &str, day: i64) {
    if !lab.base.starts_with("s3:") {
        let first: DateTime<Utc> = "2020-01-01T10:00:00.123456789Z".parse().expect("a time");
        lab.set_modified_at(path, first + Duration::days(day - 1));
    }
}

/// The paths of the raw files.
fn raw_paths(lab: &Lab) -> Vec<String> {
    lab.list_all("raw").into_iter().map(|path| format!("raw/{path}")).collect()
}

/// Writes an object again.
fn copy(lab: &Lab, path: &str, copied: Copied) {
    let modified = lab.objects("raw").into_iter();
    let modified =
        modified.map(|object| (format!("raw/{}", object.location), object.last_modified));
    let before = modified.collect::<BTreeMap<_, _>>()[path];
    let bytes = lab.get(path);
    if lab.base.starts_with("s3:") {
        return lab.put_in_parts(path, bytes);
    }
    lab.remove(path);
    lab.put(path, bytes);
    match copied {
        Copied::Archive => lab.set_modified_at(path, before.trunc_subsecs(0)),
        Copied::Parts => lab.set_modified_at(path, before),
        Copied::Now => {}
    }
}

fn tables(lab: &Lab) -> [Vec<Row>; 2] {
    lab.tables(["lake/curated", "lake/daily"])
}

/// The files of the curated table, which are not written again, and the names of the aggregate's.
fn table_files(lab: &Lab) -> (BTreeMap<String, Bytes>, Vec<String>) {
    (lab.contents("lake/curated"), lab.list_all("lake/daily"))
}

/// Windows of the place's files: on S3, all were written just now.
fn windows(lab: &Lab, window_by: &str) -> Vec<(String, String)> {
    if window_by == "modified" && lab.base.starts_with("s3:") {
        let written = lab.objects("raw").into_iter().map(|object| object.last_modified).max();
        let today = written.expect("a raw file").date_naive();
        let around = [today - Duration::days(1), today + Duration::days(2)];
        let [start, end] = around.map(|day| day.to_string());
        return vec![(start, end)];
    }
    (1..=4).map(|first| (day(first), day(first + 1))).collect()
}

#[test]
fn every_command_answers_as_before_after_raw_was_copied() {
    let ways = [
        (Place::Local, "name", Copied::Archive),
        (Place::Local, "path", Copied::Now),
        (Place::Local, "modified", Copied::Parts),
        (Place::Local, "modified", Copied::Now),
        (Place::Local, "commit", Copied::Archive),
        (Place::Local, "name", Copied::Parts),
        (Place::S3, "path", Copied::Parts),
        (Place::S3, "modified", Copied::Parts),
        (Place::S3, "commit", Copied::Parts),
    ];
    for (place, window_by, copied) in ways {
        let lab = builder(place, window_by).build();
        put_files(&lab);
        let windows = windows(&lab, window_by);
        for (start, end) in &windows {
            lab.run(start, end).expect("a run");
        }
        let right = (tables(&lab), table_files(&lab));
        let again: Vec<_> =
            windows.iter().map(|(start, end)| lab.run(start, end).expect("again")).collect();
        raw_paths(&lab).iter().for_each(|path| copy(&lab, path, copied));
        let context = format!("{place:?}, {window_by}, {copied:?}");

        lab.assert_verified();
        for (start, end) in &windows {
            let planned = lab.plan(start, end, true).expect("a plan");
            assert_eq!((planned.late_files, planned.notes.len()), (0, 0), "{context}");
        }
        let caught_up = lab.catch_up(&[]).expect("caught up");
        assert_eq!(caught_up.files, 0, "{context}");
        for ((start, end), before) in windows.iter().zip(&again) {
            let report = lab.run(start, end).expect("a run");
            let counts = |report: &Report| {
                (report.files, report.late_files, report.rows_read, report.note.clone())
            };
            assert_eq!(counts(&report), counts(before), "{context}, {start}");
        }
        assert!((tables(&lab), table_files(&lab)) == right, "{context}");
        let explained = lab.explain(&["1"]);
        assert_eq!(explained.notes, [""; 0], "{context}");
        assert!(explained.changes.iter().all(|change| change.run_id.is_some()));
        if window_by != "modified" {
            let done = lab.backfill(&day(1), &day(5)).expect("done");
            assert_eq!((done.windows_skipped, done.windows_failed), (4, 0), "{context}");
        }
        lab.rebuild(false, &[]).expect("a rebuild");
        assert_eq!(tables(&lab), right.0, "{context}");
        for (start, end) in &windows {
            lab.run(start, end).expect("a run after the rebuild");
        }
        assert_eq!(tables(&lab), right.0, "{context}");
        lab.assert_verified();
    }
}

#[test]
fn rows_of_a_table_without_a_key_stay_as_many_after_a_copy() {
    for window_by in ["name", "modified"] {
        for format in ["parquet", "csv"] {
            let builder = Lab::builder()
                .set("key", Vec::<String>::new())
                .window_by(window_by)
                .partition_by(&[])
                .curated_sql("SELECT n FROM latest");
            let lab = match format {
                "csv" => builder
                    .set("raw.format", "csv")
                    .raw_columns(&[("Op", "varchar"), ("n", "bigint"), ("ts", "timestamp")])
                    .build(),
                _ => builder.build(),
            };
            for number in 1..=3 {
                let (path, time) = (raw_file(number), format!("{} 00:00:00", day(number)));
                if format == "csv" {
                    let path = path.replace("parquet", "csv");
                    lab.put(&path, format!("I,{number},{time}\n"));
                    set_written(&lab, &path, number);
                    continue;
                }
                let columns = vec![("n", integers([number])), ("ts", texts([time]))];
                lab.put_columns(&path, columns);
                set_written(&lab, &path, number);
            }
            lab.run_days(1, 4);
            raw_paths(&lab).iter().for_each(|path| copy(&lab, path, Copied::Now));
            // The copies are of today, and belong to the window of the files that were folded.
            let today = lab.run("2020-01-04", "2100-01-01").expect("a run");
            assert_eq!((today.files, today.late_files), (0, 0), "{window_by}");
            let report = lab.run_days(1, 4);
            assert_eq!(report.files, 0, "{window_by}, {format}: {report:?}");
            assert_eq!(report.note.as_deref(), Some("no inputs in the window"));
            assert_eq!(lab.lines("lake/curated", ["n"]), ["1", "2", "3"]);
            lab.assert_verified();
        }
    }
}

#[test]
fn a_copy_is_looked_at_once_and_the_next_run_knows_it() {
    for place in PLACES {
        let lab = builder(place, "name").build();
        put_files(&lab);
        lab.run_days(1, 5);
        let copied = if place == Place::Local { Copied::Archive } else { Copied::Parts };
        raw_paths(&lab).iter().for_each(|path| copy(&lab, path, copied));
        let looks = |first| {
            let (recorded, requests) = lab.recorded();
            recorded.run_days(first, first + 1);
            let seen = requests.seen();
            seen.iter().filter(|(verb, path)| *verb == "GET" && path.contains("/raw/")).count()
        };
        // A window without files, in whose listing are all but the first day's; and again.
        assert_eq!((looks(5), looks(5)), (4, 0), "{place:?}");
        lab.assert_verified();
    }
}

#[test]
fn the_time_at_which_a_file_was_written_is_that_of_its_first_copy() {
    for keep in ["latest", "latest-per-day"] {
        let lab = Lab::builder()
            .keep(keep)
            .window_by("modified")
            .set("raw.order_by", Vec::<String>::new())
            .partition_by(&["event_dt"])
            .curated_sql("SELECT id, event_dt FROM latest")
            .build();
        for (name, written) in [("a", 1), ("b", 2)] {
            let path = format!("raw/{name}.parquet");
            lab.put_columns(&path, vec![("Op", texts(["I"])), ("id", integers([written]))]);
            set_written(&lab, &path, written);
        }
        lab.run_days(1, 3);
        let right = ["1 2020-01-01", "2 2020-01-02"];
        let rows = || lab.lines("lake/curated", ["id", "event_dt"]);
        assert_eq!(rows(), right);
        raw_paths(&lab).iter().for_each(|path| copy(&lab, path, Copied::Now));
        lab.assert_verified();
        lab.run_days(1, 3);
        for _ in 0..2 {
            lab.rebuild(false, &[]).expect("a rebuild");
            assert_eq!(rows(), right);
            raw_paths(&lab).iter().for_each(|path| copy(&lab, path, Copied::Now));
        }
        lab.assert_verified();
    }
}

/// A Parquet file of more than 1 MiB in two row groups, whose values are told by a seed.
fn large_file(first: i64, seed: i64) -> Vec<u8> {
    let ids = || first..first + 200_000;
    let value =
        |id: i64| (id.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed << 40)) >> 8;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", integers(ids())),
        ("v", integers(ids().map(value))),
        ("ts", timestamps(ids().map(|_| FIRST_DAY_US))),
    ];
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_max_row_group_row_count(Some(100_000))
        .build();
    parquet(&batch(columns), Some(properties))
}

fn large_lab(place: Place) -> Lab {
    Lab::builder().place(place).partition_by(&[]).curated_sql("SELECT id, v FROM latest").build()
}

#[test]
fn a_large_file_is_told_by_its_head_and_its_footer() {
    for place in PLACES {
        let lab = large_lab(place);
        let bytes = large_file(0, 1);
        assert!(bytes.len() > 2 << 20);
        lab.put(&raw_file(1), bytes.clone());
        lab.run_days(1, 2);
        lab.put_in_parts(&raw_file(1), bytes.clone());
        lab.run_days(1, 2);
        // Other values, of the same length.
        let other = large_file(0, 2);
        assert_eq!(other.len(), bytes.len());
        let mut head = bytes.clone();
        head[100] ^= 1;
        for changed in [other, head] {
            lab.put_in_parts(&raw_file(1), changed);
            let error = lab.run(&day(1), &day(2)).expect_err("changed");
            assert_refused(error, 65, "has changed since", "glueless rebuild");
        }
    }
}

#[test]
fn a_fingerprint_costs_one_small_request_for_a_new_large_file_and_none_for_others() {
    let lab = large_lab(Place::S3);
    let requests = |lab: &Lab, command: &dyn Fn(&Lab)| {
        let (recorded, requests) = lab.recorded();
        command(&recorded);
        let seen = requests.seen();
        seen.iter().filter(|(verb, path)| *verb == "GET" && path.contains("/raw/")).count()
    };
    let run = |first: i64| move |lab: &Lab| drop(lab.run_days(first, first + 1));
    let rebuild = |lab: &Lab| drop(lab.rebuild(false, &[]).expect("a rebuild"));
    lab.put(&raw_file(1), large_file(0, 1));
    lab.put_columns(
        &raw_file(2),
        vec![("id", integers([1])), ("v", integers([1])), ("ts", timestamps([FIRST_DAY_US]))],
    );
    let new = requests(&lab, &run(1));
    // A rebuild reads the same, and knows the fingerprint.
    assert_eq!(new, requests(&lab, &rebuild) + 1);
    assert_eq!((requests(&lab, &run(2)), requests(&lab, &run(2))), (1, 1));
}

#[test]
fn a_quarantined_file_that_was_copied_is_not_late_again() {
    for window_by in ["name", "modified"] {
        let lab = builder(Place::Local, window_by).set("raw.on_bad_file", "quarantine").build();
        put_files(&lab);
        let bad = "raw/2020/01/02/20200102-120000000.parquet";
        lab.put(bad, "not a Parquet file");
        set_written(&lab, bad, 2);
        for first in 1..=4 {
            lab.run_days(first, first + 1);
        }
        let before = lab.list_all("lake");
        copy(&lab, bad, Copied::Now);
        let report = lab.run_days(4, 5);
        assert_eq!((report.late_files, report.files_in_quarantine), (0, 1), "{window_by}");
        let report = lab.run_days(2, 3);
        assert_eq!((report.files, report.files_rejected), (2, 1), "{window_by}");
        let is_table = |path: &&String| !path.starts_with("_glueless");
        let after = lab.list_all("lake");
        assert!(before.iter().filter(is_table).eq(after.iter().filter(is_table)));
        // Another file in its place is.
        lab.put(bad, "not a Parquet file either");
        set_written(&lab, bad, 2);
        assert_eq!(lab.run_days(4, 5).late_files, 1, "{window_by}");
    }
}

#[test]
fn a_run_that_remembers_new_times_can_be_cut_at_any_request() {
    let clean = builder(Place::Local, "name").build();
    put_files(&clean);
    clean.run_days(1, 5);
    let right = tables(&clean);
    for requests in (0..).step_by(9) {
        let lab = builder(Place::Local, "name").build();
        put_files(&lab);
        lab.run_days(1, 4);
        raw_paths(&lab).iter().for_each(|path| copy(&lab, path, Copied::Archive));
        let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
        let failed = faulty.run(&day(4), &day(5)).is_err();
        lab.run_days(4, 5);
        assert_eq!(tables(&lab), right, "cut after {requests}");
        lab.assert_verified();
        if !failed && seen.left() > Some(0) {
            break;
        }
    }
}

/// What may happen to a file.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Copied(usize),
    Changed,
}

#[test]
fn random_copies_change_nothing_and_random_changes_are_refused() {
    let event = prop_oneof![
        2 => Just(Event::Nothing),
        4 => (0..COPIES.len()).prop_map(Event::Copied),
        1 => Just(Event::Changed),
    ];
    let events = prop::collection::vec(event, 4);
    let rounds = prop::collection::vec(events, 1..4);
    let inputs = (0..WAYS.len() - 1, prop::bool::ANY, rounds);
    let mut runner = TestRunner::new(Config::with_cases(12));
    let tested = runner.run(&inputs, |(way, on_s3, rounds)| {
        let place = if on_s3 { Place::S3 } else { Place::Local };
        let window_by = if on_s3 { "name" } else { ["name", "modified", "commit"][way] };
        let lab = builder(place, window_by).build();
        for number in 1..=4 {
            lab.put_day(number, &[("I", number, "a"), ("U", 9, "b")]);
            set_written(&lab, &raw_file(number), number);
        }
        lab.run_days(1, 5);
        let right = (tables(&lab), table_files(&lab));
        for events in rounds {
            let mut changed = None;
            for (number, event) in (1..).zip(events) {
                let path = raw_file(number);
                match event {
                    Event::Nothing => {}
                    Event::Copied(copied) => copy(&lab, &path, COPIES[copied]),
                    Event::Changed => {
                        lab.put_day(number, &[("I", number, "c"), ("U", 9, "b")]);
                        changed = Some(number);
                    }
                }
            }
            let answers = [
                lab.run(&day(1), &day(5)).map(|_| ()),
                lab.verify().map(|found| assert!(found.is_equal, "{}", found.text())),
                lab.plan(&day(1), &day(5), false).map(|_| ()),
            ];
            for answer in answers {
                match (answer, changed) {
                    (Ok(()), None) => {}
                    (Err(error), Some(_)) => {
                        assert_refused(error, 65, "has changed since", "rebuild");
                    }
                    (answer, changed) => panic!("{answer:?}, changed: {changed:?}"),
                }
            }
            assert!((tables(&lab), table_files(&lab)) == right, "other tables or files");
            for number in 1..=4 {
                if changed.is_some() {
                    // What was there comes back, at another time.
                    lab.put_day(number, &[("I", number, "a"), ("U", 9, "b")]);
                }
            }
        }
        Ok(())
    });
    tested.unwrap_or_else(|failed| panic!("{failed}"));
}
