//! `catch-up`: late files however old, gaps between windows, and rows that no run has read.

use crate::support::{Answer, Compared, Fault, Lab, Task};

use super::{
    TABLES, builder, history, lab, lab_with_windows_of_rows, put, put_rows, run_without_lookback,
    tables,
};

#[test]
fn catching_up_folds_late_files_however_old_and_gaps_and_nothing_twice() {
    for format in ["parquet", "delta"] {
        let lab = builder().format(format).build();
        for day in [1, 2, 20, 25] {
            put(&lab, day);
        }
        run_without_lookback(&lab, 1, 2);
        run_without_lookback(&lab, 10, 12);
        run_without_lookback(&lab, 20, 21);
        // One file is in a window that was run, and one in the gap before it.
        lab.put_day(11, &[("I", 11, "late"), ("D", 101, "")]);
        lab.put_day(5, &[("U", 1, "gap")]);
        let report = lab.catch_up(&[]).expect("caught up");
        assert_eq!((report.files, report.late_files, report.rows_read), (3, 1, 5));
        let whole = builder().format(format).build();
        whole.copy_raw(&lab);
        run_without_lookback(&whole, 1, 21);
        for table in TABLES {
            assert_eq!(lab.table(table), whole.table(table), "{table}");
        }
        assert!(history(&lab).gaps.is_empty());
        let runs = history(&lab).runs.len();
        let again = lab.catch_up(&[]).expect("nothing to do");
        assert_eq!((again.files, again.rows_written), (0, 0));
        assert!(
            again
                .note
                .expect("a note")
                .contains("every input between the first and the last window was folded")
        );
        assert_eq!(history(&lab).runs.len(), runs);
        lab.assert_verified();
    }
}

#[test]
fn gaps_without_files_are_closed_and_their_days_are_in_the_running_table() {
    let lab = lab([1, 4]);
    lab.run_days(1, 2);
    lab.run_days(4, 5);
    let days = |lab: &Lab| -> Vec<String> {
        let rows = lab.table("lake/status").into_iter();
        rows.map(|row| row["dt"].clone()).collect()
    };
    assert!(!days(&lab).contains(&"2020-01-03".to_string()));
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!(report.files, 0);
    assert!(days(&lab).contains(&"2020-01-03".to_string()));
    assert!(history(&lab).gaps.is_empty());
    // A file that appears there from now on is late, and is found.
    put(&lab, 3);
    let report = lab.run("2020-01-05", "2020-01-06").expect("a run");
    assert_eq!(report.late_files, 1);
}

#[test]
fn rows_in_gaps_between_windows_of_rows_are_caught_up() {
    let lab = lab_with_windows_of_rows();
    (1..=5).for_each(|day| put(&lab, day));
    run_without_lookback(&lab, 1, 2);
    run_without_lookback(&lab, 5, 6);
    put(&lab, 6);
    assert_eq!(lab.table("lake/curated").len(), 3);
    lab.catch_up(&[]).expect("caught up");
    // No row of the file of day 6 is in the span.
    assert_eq!(lab.table("lake/curated").len(), 6);
    lab.assert_verified();
    let report = lab.run("2020-01-06", "2020-01-07").expect("a run");
    assert_eq!(report.rows_latest, 2);
}

#[test]
fn catching_up_that_was_cut_at_any_request_is_completed_by_the_next() {
    let made = |format: &str| {
        let lab = builder().format(format).build();
        for day in [1, 9] {
            put(&lab, day);
        }
        run_without_lookback(&lab, 1, 2);
        run_without_lookback(&lab, 9, 10);
        put(&lab, 4);
        lab
    };
    for format in ["parquet", "delta"] {
        let clean = made(format);
        clean.catch_up(&[]).expect("caught up");
        let expected = tables(&clean);
        // The days of the gap are in the running table.
        assert_eq!(expected[2].len(), 9);
        let mut failed = 0;
        for requests in (0..).step_by(5) {
            let lab = made(format);
            let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
            failed += usize::from(faulty.catch_up(&[]).is_err());
            lab.catch_up(&[]).expect("caught up");
            assert_eq!(tables(&lab), expected, "{format}, cut after {requests}");
            lab.assert_verified();
            if seen.left() > Some(0) {
                break;
            }
        }
        assert!(failed > 5, "{failed}");
    }
}

#[test]
fn rows_of_old_windows_in_a_file_that_came_later_are_not_taken_for_done() {
    for way in ["backfill", "catch-up"] {
        let lab = lab_with_windows_of_rows();
        put_rows(&lab, "raw/a.parquet", &[1, 2, 3, 9]);
        lab.backfill("2020-01-01", "2020-01-10").expect("done");
        put_rows(&lab, "raw/b.parquet", &[2, 10]);
        // A run does not look back so far.
        run_without_lookback(&lab, 10, 11);
        assert_eq!(lab.table("lake/curated").len(), 5);
        lab.assert_verified();
        match way {
            "backfill" => {
                put_rows(&lab, "raw/c.parquet", &[4]);
                run_without_lookback(&lab, 11, 12);
                let done = lab.backfill("2020-01-01", "2020-01-12").expect("done");
                assert_eq!((done.exit_code, done.windows_skipped), (0, 1), "{done:?}");
                let again = lab.backfill("2020-01-01", "2020-01-12").expect("done");
                assert_eq!(again.windows_skipped, 11);
            }
            _ => assert_eq!(lab.catch_up(&[]).expect("caught up").rows_latest, 1),
        }
        assert!(lab.table("lake/curated").iter().any(|row| row["v"] == "2" && row["id"] == "1002"));
        lab.assert_verified();
    }
}

#[test]
fn a_file_that_was_away_has_not_been_read_by_the_runs_meanwhile() {
    let lab = lab_with_windows_of_rows();
    put_rows(&lab, "raw/a.parquet", &[1, 2]);
    run_without_lookback(&lab, 1, 2);
    let bytes = lab.get("raw/a.parquet").to_vec();
    lab.remove("raw/a.parquet");
    put_rows(&lab, "raw/b.parquet", &[2]);
    let report = lab.run_with(Task::Run, "2020-01-02", "2020-01-03", &["raw.lookback=0d"]);
    assert!(report.expect("a run").note.expect("a note").contains("this run folds none"));
    lab.put("raw/a.parquet", bytes);
    lab.set_modified("raw/a.parquet", 5);
    lab.assert_verified();
    let explained = lab.explain(&["1002"]);
    let changes = explained.changes;
    let folded: Vec<bool> = changes.iter().map(|change| change.run_id.is_some()).collect();
    assert_eq!(folded, [false, true]);
    let report = lab.catch_up(&[]).expect("caught up");
    assert_eq!(
        (report.files, report.rows_read - report.rows_outside),
        // Only the first day of `b.parquet` was not read yet.
        (2, 1)
    );
    lab.assert_verified();
    assert!(lab.catch_up(&[]).expect("nothing").note.is_some());
}

#[test]
fn windows_of_files_after_windows_of_rows_read_files_whole() {
    let lab = lab_with_windows_of_rows();
    put_rows(&lab, "raw/20200101-100000000.parquet", &[1, 2]);
    run_without_lookback(&lab, 1, 2);
    let by_name = ["raw.window_by=name"];
    let verified = || lab.verify_with(Compared::default(), &by_name).expect("compared");
    assert!(verified().is_equal, "{}", verified().text());
    lab.catch_up(&by_name).expect("caught up");
    assert_eq!(lab.table("lake/curated").len(), 2);
    assert!(verified().is_equal, "{}", verified().text());
    assert_eq!(lab.catch_up(&by_name).expect("nothing").files, 0);
}
