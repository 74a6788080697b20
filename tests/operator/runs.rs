//! `runs`, and runs after other runs: the history, interrupted runs, and running aggregates.

use chrono::{DateTime, Utc};

use crate::support::{
    Answer, COUNT_PER_DAY, Change, DAY_US, Fault, Lab, ROWS_PER_DAY, Task, assert_refused,
    count_of_each_day_so_far, raw_file,
};

use super::{
    builder, history, lab, lab_with_windows_of_rows, put, put_rows, run_without_lookback, tables,
};

#[test]
fn the_history_tells_of_every_run_and_of_gaps_between_them() {
    let mut lab = lab(1..=6);
    let none = history(&lab);
    assert!(none.runs.is_empty() && none.gaps.is_empty());
    assert!(none.text().contains("no run has committed anything yet"));
    lab.now = "2020-02-03T04:05:06Z".parse::<DateTime<Utc>>().expect("a time");
    lab.run_days(1, 3);
    lab.run_with(Task::Curate, "2020-01-04", "2020-01-05", &[]).expect("a run");
    lab.run_with(Task::Aggregate, "2020-01-04", "2020-01-05", &[]).expect("a run");
    lab.run_days(6, 7);
    lab.rebuild(false, &[]).expect("rebuilt");
    let found = history(&lab);
    let runs: Vec<(&str, String, u64, u64)> = found
        .runs
        .iter()
        .map(|run| (run.command, run.start.format("%d").to_string(), run.files, run.rows_read))
        .collect();
    let expected = [
        ("run", "01", 2, 4),
        ("curate", "04", 1, 2),
        ("aggregate", "04", 0, 0),
        ("run", "06", 1, 2),
        ("rebuild", "01", 4, 8),
    ];
    assert_eq!(
        runs,
        expected.map(|(command, day, files, rows)| (command, day.to_string(), files, rows))
    );
    assert!(
        found.runs.iter().all(|run| run.at == lab.now && run.seconds > 0.0 && run.status == "done")
    );
    let gaps: Vec<String> = found
        .gaps
        .iter()
        .map(|gap| format!("{} {}", gap.start.format("%d"), gap.end.format("%d")))
        .collect();
    assert_eq!(gaps, ["03 04", "05 06"]);
    let text = found.text();
    assert!(text.contains("gap: 2020-01-03 to 2020-01-04 was never run"), "{text}");
    assert!(text.contains("2020-02-03T04:05:06Z"), "{text}");
}

#[test]
fn a_running_day_that_was_empty_is_computed_again_when_an_earlier_one_changes() {
    let lab = builder().build();
    lab.put_day(1, &[("I", 1, "a"), ("D", 1, "a")]);
    lab.run_days(1, 4);
    assert!(lab.table("lake/status").is_empty());
    // A second file of the first day, with another key.
    put(&lab, 9);
    lab.rename(&raw_file(9), "raw/20200101-120000000.parquet");
    lab.run_days_with(5, 6, &["raw.lookback=9d"]);
    let rows = lab.table("lake/status").into_iter();
    let days: Vec<String> = rows.map(|row| row["dt"][8..].to_string()).collect();
    assert_eq!(days, ["01", "02", "03", "05"]);
    lab.assert_verified();
}

#[test]
fn an_aggregate_is_computed_for_the_days_that_changed_in_what_it_reads() {
    for keep in ["latest", "latest-per-day"] {
        let lab = Lab::builder()
            .keep(keep)
            .aggregate("daily", COUNT_PER_DAY)
            .running_aggregate("status", count_of_each_day_so_far("id"))
            .aggregate("rows", ROWS_PER_DAY)
            .build();
        (1..=4).for_each(|day| put(&lab, day));
        lab.run_days(1, 4);
        // On day 4, key 1 leaves day 3 in the curated table, and stays there in the history.
        let report = lab.run_days(4, 5);
        let days: Vec<(&str, u64)> =
            report.aggregates.iter().map(|table| (table.name.as_str(), table.days)).collect();
        let left = u64::from(keep == "latest");
        assert_eq!(days, [("daily", 1), ("status", 1), ("rows", 1 + left)], "{keep}");
        let rows = lab.lines("lake/rows", ["dt", "n"]);
        let of_day_3 = format!("2020-01-03 {}", 2 - left);
        assert_eq!((rows.len(), &rows[2]), (4, &of_day_3), "{keep}");
        lab.assert_verified();
        // An aggregate that is computed for the first time has nothing to catch up with.
        let report = lab.run_days(4, 5);
        assert!(report.aggregates.iter().all(|table| table.days == 1), "{keep}: {report:?}");
    }
}

#[test]
fn a_backfill_after_a_run_that_was_cut_at_any_request_ends_with_its_window_published() {
    for format in ["parquet", "delta"] {
        let made = || {
            let lab = builder().format(format).build();
            (1..=3).for_each(|day| put(&lab, day));
            lab.run_days(1, 2);
            lab
        };
        let clean = made();
        clean.run_days(2, 3);
        let expected = tables(&clean);
        for requests in (0..).step_by(7) {
            let lab = made();
            let (faulty, seen) = lab.failing_after(requests, Fault::AllDead);
            let failed = faulty.run("2020-01-02", "2020-01-03").is_err();
            // Until then a plan does not advise a rebuild.
            let planned = lab.plan("2020-01-02", "2020-01-03", false).expect("a plan");
            assert!(planned.estimate.is_some());
            let done = lab.backfill("2020-01-01", "2020-01-03").expect("done");
            assert_eq!(done.exit_code, 0);
            assert_eq!(tables(&lab), expected, "{format}, cut after {requests}");
            lab.assert_tidy();
            if !failed && seen.left() > Some(0) {
                break;
            }
        }
    }
}

#[test]
fn an_interrupted_run_is_told_by_questions() {
    let lab = builder().format("delta").build();
    (1..=2).for_each(|day| put(&lab, day));
    lab.run_days(1, 2);
    let stuck = lab.with_fault(Fault::NoPublishing);
    stuck.run("2020-01-02", "2020-01-03").expect_err("nothing is published");
    let planned = lab.plan("2020-01-02", "2020-01-03", false).expect("a plan");
    assert!(planned.notes[0].contains("was interrupted"), "{:?}", planned.notes);
    assert_eq!(history(&lab).runs[1].status, "publishing");
    assert_refused(lab.verify().expect_err("busy"), 75, "was interrupted", "verify again");
    let explained = lab.explain(&["102"]);
    let notes = explained.notes;
    assert!(notes.iter().any(|note| note.contains("was interrupted")), "{notes:?}");
}

#[test]
fn a_run_looks_back_for_rows_that_no_run_has_read_in_files_it_knows() {
    let lab = lab_with_windows_of_rows();
    put_rows(&lab, "raw/a.parquet", &[1, 2, 3, 4]);
    lab.backfill("2020-01-01", "2020-01-04").expect("done");
    put_rows(&lab, "raw/b.parquet", &[2, 3, 9]);
    // A later window reads the file first.
    run_without_lookback(&lab, 9, 10);
    assert_eq!(lab.table("lake/curated").len(), 4);
    lab.run_days_with(4, 5, &["raw.lookback=2d"]);
    let values = |id: &str| lab.table("lake/curated").iter().filter(|row| row["id"] == id).count();
    assert_eq!((values("1002"), values("1003"), values("1004")), (1, 1, 1));
    lab.assert_verified();
    let folded = lab.catch_up(&[]).expect("caught up");
    assert_eq!(folded.rows_latest, 0, "only what lies between the windows was left");
    lab.assert_verified();
}

#[test]
fn a_running_aggregate_that_several_threads_have_no_memory_for_is_computed_by_one() {
    let status = include_str!("../../fixtures/states/0.1.0/pipelines/latest/status.sql")
        .replace("cust_id", "id")
        .replace("cust_loyalty_category", "cat");
    let lab = Lab::builder()
        .set("raw.event_time", "event")
        .set("limits.memory", "128MB")
        .aggregate("daily", COUNT_PER_DAY)
        .running_aggregate("status", status)
        .build();
    const KEYS: i64 = 60_000;
    for day in 1..=12 {
        let rows = (0..KEYS).map(|id| Change {
            op: "U",
            id,
            cat: if id % 2 == 0 { "Basic" } else { "Gold" },
            v: day,
            us: id,
            event_us: (day - 1) * DAY_US,
        });
        lab.put_changes(&raw_file(day), day, &rows.collect::<Vec<_>>());
    }
    lab.run("2020-01-01", "2020-01-13").expect("a run");
    let rows = lab.table("lake/status");
    assert_eq!(rows.len(), 12);
    let half = (KEYS / 2).to_string();
    assert!(rows.iter().all(|row| row["basic"] == half && row["gold"] == half));
}
