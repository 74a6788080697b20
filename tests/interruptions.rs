//! Interruptions of a run at its n-th request, for every n. The n-th request and all later ones fail,
//! as if the process had been killed; or the n-th request alone fails; or it is done, but its reply
//! is lost, or says that somebody else has done it.
//!
//! Before its commit, nothing of the run may be visible; after the next command, all of it must be
//! visible or nothing; and when the run is repeated, the tables must be those of a run without a
//! fault.

use crate::support::{DELETION_VECTORS, Fault, Lab, Place, Row, STATE, Task, attempt_name};

/// The rows of a day, and what has entered and exited on it.
const DAILY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n, 0 AS exited FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat
UNION ALL SELECT event_dt, cat, entered, exited FROM balance
WHERE event_dt >= $start_date AND event_dt < $end_date";

/// The rows of a day, for tables whose rows end and stay.
const ROWS_OF_DAY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n, 0 AS exited FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat";

/// `keep = "latest"` with `keep_deleted`.
const DELETED: &str = "latest-and-deleted";

fn lab(place: Place, format: &str, keep: &str) -> Lab {
    let lab = Lab::builder()
        .place(place)
        .format(format)
        .set("raw.on_bad_row", "quarantine")
        .set("raw.on_bad_file", "quarantine");
    match keep {
        DELETED => lab.set("keep_deleted", true).aggregate("daily", ROWS_OF_DAY).build(),
        "history" => lab.keep(keep).aggregate("daily", ROWS_OF_DAY).build(),
        _ => lab.keep(keep).aggregate("daily", DAILY).build(),
    }
}

fn first_day(lab: &Lab) {
    let mut rows = vec![("I", 1, "a"), ("I", 2, "a"), ("X", 2, "b"), ("I", 3, "b"), ("I", 4, "c")];
    rows.extend((10..16).map(|id| ("I", id, "a")));
    lab.put_day(1, &rows);
}

/// One row moves to another partition, one is deleted and leaves its partition empty, one is new,
/// one is bad; and one file is bad.
fn second_day(lab: &Lab) {
    let changes = [("U", 1, "b"), ("D", 4, "c"), ("Y", 4, "c"), ("I", 5, "d")];
    lab.put_day(2, &changes);
    lab.put("raw/20200102-120000000.parquet", "cut off");
}

/// The tables' rows and files, and what is in quarantine.
type Tables = (Vec<Row>, Vec<String>, Vec<Row>, Vec<String>, Vec<Row>);

fn tables(lab: &Lab) -> Tables {
    // After a fault the number of the commit in a name may be another one.
    let files = |table: &str| -> Vec<String> {
        let names = lab.list(table).into_iter().map(|name| match name.split_once("part-c") {
            Some((before, after)) => format!("{before}part-{}", &after[9..]),
            None => name,
        });
        names.collect()
    };
    (
        lab.table("lake/curated"),
        files("lake/curated"),
        lab.table("lake/daily"),
        files("lake/daily"),
        in_quarantine(lab),
    )
}

/// All that is in quarantine, without the run and the lab that it came from.
fn in_quarantine(lab: &Lab) -> Vec<Row> {
    let mut rows = lab.table(&format!("{STATE}/quarantine"));
    for row in &mut rows {
        row.remove("run_id");
        row.retain(|_, value| !value.contains(&lab.base));
    }
    rows.sort();
    rows
}

/// Checks that each partition, which here has one file at most, has its old rows or its new ones; a
/// Delta table must have its old rows or its new ones as a whole.
fn assert_old_or_new(lab: &Lab, format: &str, before: &[Row], after: &[Row]) {
    let found = lab.table("lake/curated");
    if format != "parquet" {
        assert!(found == before || found == after, "{found:?}");
        return;
    }
    let partition = |row: &Row| (row.get("event_dt").cloned(), row.get("cat").cloned());
    let of = |rows: &[Row], wanted: &Row| -> Vec<Row> {
        let rows = rows.iter().filter(|row| partition(row) == partition(wanted));
        rows.cloned().collect()
    };
    for row in before.iter().chain(after).chain(&found) {
        let now = of(&found, row);
        assert!(now == of(before, row) || now == of(after, row), "{now:?}");
    }
}

fn check(place: Place, format: &str, step: usize, fault: Fault) {
    check_keeping("latest", place, format, step, fault);
}

fn check_keeping(keep: &str, place: Place, format: &str, step: usize, fault: Fault) {
    let clean = lab(place, format, keep);
    first_day(&clean);
    clean.run_days(1, 2);
    let before = tables(&clean);
    second_day(&clean);
    clean.run_days(2, 3);
    let after = tables(&clean);
    assert_ne!(before, after);

    let (mut published, mut failed) = (0, 0);
    for requests in (0..).step_by(step) {
        let lab = lab(place, format, keep);
        first_day(&lab);
        lab.run_days(1, 2);
        second_day(&lab);
        let (faulty, seen) = lab.failing_after(requests, fault);
        let faulty_run = faulty.run("2020-01-02", "2020-01-03");
        if let Err(error) = &faulty_run {
            let code = error.kind.exit_code();
            assert!([69, 75].contains(&code), "after {requests} requests: {error}");
        }
        assert_old_or_new(&lab, format, &before.0, &after.0);
        let enough = faulty_run.is_ok() && seen.left().is_some_and(|left| left > 0);

        // The next command finishes or undoes the run, whatever command it is.
        lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[])
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        let curated = |tables: Tables| (tables.0, tables.1);
        let found = curated(tables(&lab));
        let is_published = found == curated(after.clone());
        assert!(
            is_published || found == curated(before.clone()),
            "after {requests} requests: {found:?}"
        );
        published += usize::from(is_published);
        lab.run("2020-01-02", "2020-01-03")
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        assert_eq!(tables(&lab), after, "after {requests} requests");
        lab.assert_tidy();
        if enough {
            break;
        }
        failed += usize::from(faulty_run.is_err());
    }
    // A run may succeed although a reply was lost.
    let lost = matches!(fault, Fault::ReplyLost | Fault::ReplyExists);
    assert!(lost || failed > 10 / step, "{failed} runs failed");
    assert!(published > 1, "some failed after their commit");
}

#[test]
fn a_run_that_ends_rows_is_finished_or_undone() {
    for keep in [DELETED, "history"] {
        check_keeping(keep, Place::Local, "parquet", 4, Fault::AllDead);
        check_keeping(keep, Place::Local, "delta", 7, Fault::AllDead);
    }
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_in_a_local_folder() {
    check(Place::Local, "parquet", 1, Fault::AllDead);
}

#[test]
fn a_run_with_one_failed_request_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::OneDead);
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_on_an_s3_server() {
    check(Place::S3, "parquet", 5, Fault::AllDead);
}

#[test]
fn a_run_that_loses_a_reply_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::ReplyLost);
    check(Place::S3, "parquet", 11, Fault::ReplyLost);
}

#[test]
fn a_run_that_takes_its_own_work_for_anothers_is_finished_or_undone() {
    check(Place::Local, "parquet", 1, Fault::ReplyExists);
    check(Place::S3, "parquet", 11, Fault::ReplyExists);
}

#[test]
fn a_run_onto_a_delta_table_is_finished_or_undone() {
    for fault in [Fault::AllDead, Fault::OneDead, Fault::ReplyLost, Fault::ReplyExists] {
        check(Place::Local, "delta", 2, fault);
        check(Place::S3, "delta", 23, fault);
        check(Place::Local, DELETION_VECTORS, 2, fault);
        check(Place::S3, DELETION_VECTORS, 29, fault);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_harms_nothing() {
    for format in ["parquet", "delta", DELETION_VECTORS] {
        let clean = lab(Place::Local, format, "latest");
        let lab = lab(Place::Local, format, "latest");
        let faulty = lab.with_fault(Fault::NoCheckpoint);
        for day in 1..13 {
            for lab in [&clean, &faulty] {
                lab.put_day(day, &[("U", day % 3, "a"), ("I", day, "b")]);
                lab.run_days(day, day + 1);
            }
        }
        assert_eq!(tables(&lab), tables(&clean));
        let has_checkpoint = |lab: &Lab| {
            let left = lab.list_all("lake").into_iter();
            left.filter(|path| path.contains("checkpoint")).count() > 0
        };
        assert!(has_checkpoint(&clean) && !has_checkpoint(&lab));
    }
}

#[test]
fn an_aggregate_that_is_gone_does_not_hold_up_what_was_interrupted() {
    let lab = lab(Place::Local, "parquet", "latest");
    first_day(&lab);
    let report = lab.run_days(1, 2);
    let announced = attempt_name(2, &format!("{}-aggregate", report.run_id));
    let announced = format!("{STATE}/publishing/{announced}");
    lab.put(&announced, "");
    // The pipeline without its aggregate.
    let toml = lab.get_text("pipeline/pipeline.toml");
    let (toml, _) = toml.split_once("[[aggregate]]").expect("an aggregate");
    lab.write_file("pipeline.toml", toml);
    lab.run_days(1, 2);
    let left = lab.list_all(&format!("{STATE}/publishing"));
    assert!(left.is_empty(), "{left:?}");
}
