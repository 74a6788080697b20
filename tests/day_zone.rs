//! `raw.day_zone`: the zone whose days `event_dt` means.

use arrow::array::{ArrayRef, Date32Array};
use std::sync::Arc;

use crate::support::{
    COUNT_PER_DAY, Lab, LabBuilder, assert_refused, count_of_each_day_so_far, day, file_of_rows,
    integers, optional_texts, raw_file, texts,
};

const ZONE: &str = "America/New_York";

fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.event_time", "event")
        .set("raw.day_zone", ZONE)
        .partition_by(&["event_dt"])
        .curated_sql("SELECT id, event_dt FROM latest")
}

/// Writes a file of rows: operation, key, commit time and event time.
fn put(lab: &Lab, day: i64, rows: &[[&str; 4]]) {
    lab.put(&raw_file(day), file_of_rows(&["Op", "id", "ts", "event"], rows));
}

fn days(lab: &Lab) -> Vec<String> {
    lab.lines("lake/curated", ["id", "event_dt"])
}

#[test]
fn the_day_of_a_local_time_is_the_local_day_however_the_clocks_are_set() {
    let events = [
        // Twice on the day that summer time ends, and never on the day that it begins.
        ("2024-11-03 01:30:00", "2024-11-03"),
        ("2024-03-10 02:30:00", "2024-03-10"),
        ("2024-11-02 23:30:00", "2024-11-02"),
        ("2024-11-03 00:10:00", "2024-11-03"),
        // With a zone, and a date without a time.
        ("2024-11-03T03:59:59Z", "2024-11-02"),
        ("2024-11-03", "2024-11-03"),
    ];
    let lab = builder().set("raw.time_zone", ZONE).build();
    let rows: Vec<[String; 4]> = (1..)
        .zip(events)
        .map(|(id, (event, _))| ["I", &id.to_string(), "2020-01-01", event].map(String::from))
        .collect();
    lab.put(&raw_file(1), file_of_rows(&["Op", "id", "ts", "event"], &rows));
    lab.run_days(1, 2);
    let expected: Vec<String> =
        (1..).zip(events).map(|(id, (_, day))| format!("{id} {day}")).collect();
    assert_eq!(days(&lab), expected);
    lab.assert_verified();
}

#[test]
fn a_delete_has_the_day_of_its_commit_time_in_the_zone() {
    let lab = builder().keep("latest-per-day").build();
    put(
        &lab,
        1,
        &[
            ["I", "1", "2020-01-02 03:00:00", "2020-01-02 03:00:00"],
            ["I", "2", "2020-01-02 06:00:00", "2020-01-02 06:00:00"],
        ],
    );
    lab.run_days(1, 2);
    assert_eq!(days(&lab), ["1 2020-01-01", "2 2020-01-02"]);
    // Both deletes are of the first of January in New York.
    put(&lab, 2, &[["D", "1", "2020-01-02 04:59:59", "-"], ["D", "2", "2020-01-02 04:59:59", "-"]]);
    lab.run_days(2, 3);
    assert_eq!(days(&lab), ["2 2020-01-02"]);
    lab.assert_verified();
}

#[test]
fn dates_are_the_same_day_in_every_zone() {
    let date: ArrayRef = Arc::new(Date32Array::from(vec![18_262, 18_263]));
    let as_text = texts(["2020-01-01", "2020-01-02"]);
    for commit in [&date, &as_text] {
        for event in [Some(&date), Some(&as_text), None] {
            let lab = match event {
                Some(_) => builder().build(),
                None => builder().set("raw.event_time", "ts").build(),
            };
            let mut columns = vec![("Op", texts(["I", "I"])), ("id", integers([1, 2]))];
            columns.push(("ts", commit.clone()));
            columns.extend(event.map(|event| ("event", event.clone())));
            lab.put_columns(&raw_file(1), columns);
            lab.run_days(1, 2);
            assert_eq!(days(&lab), ["1 2020-01-01", "2 2020-01-02"]);
        }
    }
}

#[test]
fn an_update_that_moves_a_key_deletes_it_on_the_day_of_the_zone() {
    let lab = builder().set("raw.before_image_prefix", "BI_").keep("latest-per-day").build();
    let columns = ["Op", "id", "BI_id", "ts", "event"];
    let at = "2020-01-02 03:00:00";
    lab.put(
        &raw_file(1),
        file_of_rows(&columns, &[["I", "1", "-", at, at], ["U", "2", "1", at, at]]),
    );
    lab.run_days(1, 2);
    assert_eq!(days(&lab), ["2 2020-01-01"]);
}

#[test]
fn aggregates_are_computed_for_the_days_of_the_zone_that_a_window_covers() {
    let lab = builder()
        .aggregate("daily", COUNT_PER_DAY)
        .running_aggregate("status", count_of_each_day_so_far("id"))
        .build();
    // On the evening of the first of January.
    put(&lab, 2, &[["I", "1", "2020-01-02 02:00:00", "2020-01-02 02:00:00"]]);
    lab.run_days(2, 3);
    assert_eq!(lab.lines("lake/daily", ["dt", "n"]), ["2020-01-01 1"]);
    // The window from midnight to midnight UTC covers parts of two days.
    assert_eq!(lab.lines("lake/status", ["dt", "n"]), ["2020-01-01 1", "2020-01-02 1"]);
    let planned = lab.plan(&day(2), &day(3), false).expect("a plan");
    assert_eq!(planned.days_published.len(), 1);
    let planned = lab.plan(&day(1), &day(2), false).expect("a plan");
    assert_eq!(planned.days_published.len(), 1, "its end is in the first of January there");
    let planned = lab.plan(&day(3), &day(4), false).expect("a plan");
    assert_eq!(planned.days_published.len(), 0);
    lab.assert_verified();
    lab.rebuild(false, &[]).expect("a rebuild");
    assert_eq!(lab.lines("lake/status", ["dt", "n"]), ["2020-01-01 1", "2020-01-02 1"]);
}

#[test]
fn another_day_zone_needs_a_rebuild() {
    let lab = builder().build();
    put(&lab, 1, &[["I", "1", "2020-01-02 03:00:00", "2020-01-02 03:00:00"]]);
    lab.run_days(1, 2);
    lab.edit_pipeline(&format!("day_zone = \"{ZONE}\""), "");
    let error = lab.run(&day(1), &day(2)).expect_err("refused");
    assert_refused(error, 2, "`raw.day_zone` changed", "glueless rebuild");
    lab.rebuild(false, &[]).expect("a rebuild");
    assert_eq!(days(&lab), ["1 2020-01-02"]);
}

#[test]
fn a_time_on_a_day_that_a_zone_left_out_is_folded() {
    let lab =
        builder().set("raw.time_zone", "Pacific/Apia").set("raw.day_zone", "Pacific/Apia").build();
    put(
        &lab,
        1,
        &[
            ["I", "1", "2020-01-01 00:00:00", "2011-12-29 12:00:00"],
            ["I", "2", "2020-01-01 00:00:00", "2011-12-30 12:00:00"],
            ["I", "3", "2020-01-01 00:00:00", "2011-12-31 12:00:00"],
        ],
    );
    lab.put_columns(
        &raw_file(2),
        vec![
            ("Op", texts(["I"])),
            ("id", integers([4])),
            ("ts", texts(["2020-01-01 00:00:00"])),
            ("event", optional_texts(Vec::<Option<&str>>::from([None]))),
        ],
    );
    // The names of the files are in the zone, too.
    lab.run("2019-12-30", "2020-01-03").expect("a run");
    assert_eq!(days(&lab), ["1 2011-12-29", "2 2011-12-31", "3 2011-12-31", "4 -"]);
}
