//! `plan`: what a run would do.

use crate::support::{Fault, PLACES, assert_refused, raw_file, window};

use super::{builder, lab, put};

#[test]
fn a_plan_names_late_files_and_what_was_run_and_touches_nothing() {
    for place in PLACES {
        let lab = builder().place(place).build();
        for day in [1, 2, 3] {
            put(&lab, day);
        }
        let first = lab.plan("2020-01-01", "2020-01-03", true).expect("a plan");
        assert_eq!((first.files, first.late_files, first.folded_files), (2, 0, 0));
        assert_eq!(first.estimate, None);
        assert!(lab.list_all("lake").is_empty(), "{:?}", lab.list_all("lake"));
        lab.run_days(1, 2);
        lab.run_days(3, 4);
        lab.copy(&raw_file(1), "raw/20200101-120000000.parquet");
        let before = lab.contents("lake");
        let planned = lab.plan("2020-01-02", "2020-01-04", true).expect("a plan");
        assert_eq!(lab.contents("lake"), before);
        assert_eq!((planned.files, planned.late_files, planned.folded_files), (3, 1, 1));
        assert_eq!(planned.late, ["20200101-120000000.parquet"]);
        let windows: Vec<_> =
            planned.windows_run.iter().map(|part| (part.start, part.end)).collect();
        let third = window("2020-01-03", "2020-01-04");
        assert_eq!(windows, [(third.start, third.end)]);
        let estimate = planned.estimate.expect("an estimate");
        assert!(estimate.seconds > 0.0 && estimate.bytes > 0);
        let fold = planned.fold.expect("folded");
        let report = lab.run("2020-01-02", "2020-01-04").expect("a run");
        assert_eq!(
            (
                fold.rows_read,
                fold.rows_latest,
                fold.rows_superseded,
                fold.rows_written,
                fold.bytes_written
            ),
            (
                report.rows_read,
                report.rows_latest,
                report.rows_superseded,
                report.rows_written,
                report.bytes_written
            )
        );
    }
}

#[test]
fn a_plan_is_refused_where_the_run_would_be() {
    let lab = lab([1]);
    lab.run_days(1, 2);
    let error = lab
        .plan_with("2020-01-01", "2020-01-02", false, &["raw.order_by=[\"v\"]"])
        .expect_err("another pipeline");
    assert_refused(error, 2, "differs from the one that wrote its tables", "glueless rebuild");
    // Another value in the same places.
    lab.put_day(1, &[("I", 101, "c"), ("U", 1, "b")]);
    lab.set_modified(&raw_file(1), 1);
    let error = lab.plan("2020-01-01", "2020-01-02", false).expect_err("changed");
    assert_refused(error, 65, "has changed since", "glueless rebuild");
}

/// The error of the plan itself is shown, whether or not the log can be read again after it.
#[test]
fn a_plan_that_fails_and_then_cannot_read_the_log_says_why_it_failed() {
    let lab = lab([1]);
    lab.run_days(1, 2);
    // Another value in the same places.
    lab.put_day(1, &[("I", 101, "c"), ("U", 1, "b")]);
    lab.set_modified(&raw_file(1), 1);
    let (recorded, requests) = lab.recorded();
    recorded.plan("2020-01-01", "2020-01-02", false).expect_err("changed");
    let (cut, _) = lab.failing_after(requests.seen().len() - 1, Fault::AllDead);
    let error = cut.plan("2020-01-01", "2020-01-02", false).expect_err("changed");
    assert_refused(error, 65, "has changed since", "glueless rebuild");
}

/// Only a plan that folds reads files after the log that a run may remove meanwhile.
#[test]
fn a_plan_that_folds_nothing_reads_the_log_once() {
    let lab = lab([1]);
    lab.run_days(1, 2);
    let reads = |folds: bool| {
        let (recorded, requests) = lab.recorded();
        recorded.plan("2020-01-01", "2020-01-02", folds).expect("a plan");
        requests.seen().iter().filter(|(_, path)| path.contains("_delta_log")).count()
    };
    let (recorded, requests) = lab.recorded();
    recorded.history().expect("the runs");
    let once = requests.seen().iter().filter(|(_, path)| path.contains("_delta_log")).count();
    assert_eq!(reads(false), once);
    assert!(reads(true) > once);
}
