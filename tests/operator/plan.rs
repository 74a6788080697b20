//! `plan`: what a run would do.

use crate::support::{PLACES, assert_refused, raw_file, window};

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
