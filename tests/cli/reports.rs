//! What is printed on stdout: the reports of runs, and the answers to questions.

use std::path::Path;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Program, glueless, integers, python, texts, timestamps};

use super::{
    FIRST_DAY_US, NOTE, REPOSITORY, assert_unchanged, builder, changes, contents, failure,
    lab_after_a_good_run, other_pipeline, run, run_fixtures,
};

#[test]
fn a_window_without_inputs_is_done_and_says_so() {
    let lab = lab_after_a_good_run();
    let lake = lab.folder.path().join("lake");
    let published = || {
        let mut found = contents(&lake);
        found.retain(|name, _| !name.starts_with("_glueless"));
        found
    };
    let before = published();
    let output = run(&lab, lab.program_for("run", "2030-01-01", "2030-01-02"));
    output.assert_success();
    let report = output.json();
    assert_eq!(report["note"], "no inputs in the window");
    let numbers = report.as_object().expect("an object").iter();
    for (name, number) in numbers.filter(|(_, value)| value.is_number()) {
        if name != "seconds" && name != "peak_memory_bytes" {
            assert_eq!(*number, 0, "{name}");
        }
    }
    assert_eq!(report["aggregates"][0]["rows_removed"], 0);
    assert_eq!(report["aggregates"][0]["rows_inserted"], 0);
    assert_unchanged(&before, &published());
}

#[test]
fn a_first_window_without_inputs_makes_no_table() {
    let lab = lab_after_a_good_run();
    // The state records that the window was run; nothing else is written.
    let tables = || {
        let mut files = contents(&lab.folder.path().join("lake"));
        files.retain(|path, _| !path.starts_with("_glueless/others/"));
        files
    };
    let before = tables();
    let output = run(&lab, other_pipeline(&lab, "2018-01-01", "2018-01-02"));
    output.assert_success();
    let report = output.json();
    assert_eq!(report["note"], "no inputs in the window");
    assert_unchanged(&before, &tables());
}

#[test]
fn the_report_is_one_line_of_json_with_every_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty", folder.path(), &["--output", "json"]);
    assert_eq!(output.stdout.lines().count(), 1);
    assert!(output.stdout.ends_with("}\n"));
    let mut report = output.json();
    assert!(report["seconds"].as_f64().expect("a number") > 0.0);
    assert!(report["peak_memory_bytes"].as_u64().expect("a number") > 1_000_000);
    let raw = Path::new(REPOSITORY).join("fixtures/raw/cust_loyalty");
    assert_eq!(report["bytes"], bytes_of(&raw));
    assert_eq!(report["bytes_written"], bytes_of(&folder.path().join("curated")));
    assert_eq!(report["bytes_changed"], report["bytes_written"]);
    let varying = ["seconds", "peak_memory_bytes", "bytes", "bytes_written", "bytes_changed"];
    for name in varying {
        report[name] = Value::Null;
    }
    assert_snapshot!(serde_json::to_string_pretty(&report).expect("JSON"), @r#"
    {
      "aggregates": [
        {
          "days": 7,
          "name": "cust_loyalty_daily",
          "rows_inserted": 6,
          "rows_removed": 0
        },
        {
          "days": 7,
          "name": "cust_loyalty_status",
          "rows_inserted": 7,
          "rows_removed": 0
        }
      ],
      "bytes": null,
      "bytes_changed": null,
      "bytes_written": null,
      "end": "2019-12-16T00:00:00Z",
      "files": 8,
      "files_rejected": 0,
      "key_moves": 0,
      "late_files": 0,
      "newest_commit_time": "2019-12-15T23:15:00Z",
      "partitions_removed": 0,
      "partitions_written": 10,
      "peak_memory_bytes": null,
      "pipeline": "cust_loyalty",
      "rows_deleted": 2,
      "rows_latest": 12,
      "rows_outside": 0,
      "rows_read": 36,
      "rows_rejected": 0,
      "rows_stale": 0,
      "rows_superseded": 22,
      "rows_written": 12,
      "run_id": "[run]",
      "seconds": null,
      "start": "2019-12-12T00:00:00Z",
      "ties": 2
    }
    "#);
}

/// The size of all Parquet files below a folder.
fn bytes_of(folder: &Path) -> u64 {
    let files = contents(folder).into_iter().filter(|(name, _)| name.ends_with(".parquet"));
    files.map(|(_, bytes)| bytes.len() as u64).sum()
}

#[test]
fn the_report_is_json_where_stdout_is_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty_by_day", folder.path(), &[]);
    assert_eq!(output.stdout.lines().count(), 1);
    let report = output.json();
    let numbers = ["rows_read", "rows_latest", "rows_superseded", "rows_deleted", "ties"]
        .map(|name| report[name].as_u64().expect("a number"));
    assert_eq!(numbers, [36, 22, 11, 3, 4]);
    assert_eq!(report["partitions_written"], 16);
}

#[test]
fn the_report_is_a_short_table_where_text_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_fixtures("cust_loyalty", folder.path(), &["--output", "text"]);
    let (table, took) = output.stdout.split_once("  took ").expect("a last line");
    let masked: String = took.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert!(masked.contains(" s, "), "{took}");
    assert!(masked.ends_with(" peak\n"), "{took}");
    assert_snapshot!(table, @"
    cust_loyalty  2019-12-12 00:00 to 2019-12-16 00:00
      files      8 (0 late), 10 kB
      rows read  36: 12 latest, 22 superseded, 2 deleted, 0 rejected, 0 outside
      ties       2
      curated    12 rows in 10 partitions, 0 removed, 13 kB (13 kB changed)
      aggregate  cust_loyalty_daily: 7 days, 0 rows removed, 6 rows inserted
      aggregate  cust_loyalty_status: 7 days, 0 rows removed, 7 rows inserted
    ");
}

#[test]
fn ten_thousand_partitions_need_few_open_files_and_little_memory() {
    let lab = builder().build();
    let partitions = 10_000;
    for day in 0..2 {
        // Each partition gets two rows; on the second day one of them changes.
        let ids = || (0..2 * partitions).filter(move |id| day == 0 || id % 2 == 0);
        let second = 12 + day;
        let times = ids().map(|id| format!("2019-12-{second} 12:00:00.{id:06}"));
        let categories = ids().map(|id| format!("category {:05}", id / 2));
        let ops = ids().map(|_| if day == 0 { "I" } else { "U" });
        let columns = vec![
            ("Op", texts(ops)),
            ("ts", texts(times)),
            ("event", timestamps(ids().map(|_| FIRST_DAY_US))),
            ("id", integers(ids())),
            ("category", texts(categories)),
            ("note", texts(ids().map(|_| NOTE))),
        ];
        lab.put_columns(&format!("raw/201912{second}-120000000.parquet"), columns);
        let [start, end] = [12 + day, 13 + day].map(|day| format!("2019-12-{day}"));
        let program =
            lab.program_for("run", &start, &end).set(&["limits.threads=2", "limits.memory=500MB"]);
        let shell = Program::shell(r#"ulimit -n 64; exec "$0" "$@""#).arg(glueless());
        let output = run(&lab, shell.arguments_of(&program));
        output.assert_success();
        let report = output.json();
        assert_eq!(report["partitions_written"], partitions, "{report}");
        assert_eq!(report["rows_written"], 2 * partitions, "{report}");
        let peak = report["peak_memory_bytes"].as_u64().expect("a number");
        assert!(peak < 500_000_000, "{peak} bytes");
    }
}

#[test]
fn the_peak_memory_is_not_that_of_the_program_that_started_the_run() {
    let lab = lab_after_a_good_run();
    let program = lab.program_for("run", "2030-01-01", "2030-01-02");
    let starter =
        "import os, sys; held = b'x' * 1_000_000_000; os.execv(sys.argv[1], sys.argv[1:])";
    let starter = Program::new(&python()).args(["-c", starter]).arg(glueless());
    let output = run(&lab, starter.arguments_of(&program));
    output.assert_success();
    let peak = output.json()["peak_memory_bytes"].as_u64().expect("a number");
    assert!((1_000_000..500_000_000).contains(&peak), "{peak} bytes");
}

#[test]
fn questions_before_the_first_run_are_answered_plainly() {
    let lab = builder().build();
    lab.put_columns("raw/20191212-120000000.parquet", changes(0, 0));
    let ask = |command: &str, arguments: &[&str]| {
        run(&lab, lab.program(command).args(arguments).arg("-q"))
    };
    let runs = ask("runs", &["--output", "text"]);
    assert_eq!(
        (runs.code, runs.stdout.as_str()),
        (0, "customers: no run has committed anything yet\n")
    );
    assert_snapshot!(failure(&ask("verify", &[])), @"
    exit 2
    error: there is nothing to verify: no run has folded anything yet
    hint: fold a window first with `glueless run`
    ");
    assert_snapshot!(failure(&ask("explain-key", &["1"])), @"
    exit 2
    error: there is nothing to explain: no run has folded anything yet
    hint: fold a window first with `glueless run`
    ");
    assert_snapshot!(failure(&ask("catch-up", &[])), @"
    exit 2
    error: there is nothing to catch up with: no run has folded anything yet
    hint: fold a window first with `glueless run`
    ");
    assert!(lab.list_all("lake").is_empty());
}

#[test]
fn keys_that_are_none_are_refused_and_unknown_ones_are_told() {
    let lab = lab_after_a_good_run();
    let ask = |key: &[&str]| run(&lab, lab.program("explain-key").args(key));
    assert_snapshot!(failure(&ask(&["1", "2"])), @"
    exit 2
    error: the key has 1 columns, and 2 values were given
    hint: give a value for each of: id (after --, if a value begins with a dash)
    ");
    assert_snapshot!(failure(&ask(&["one"])), @"
    exit 2
    error: `one` is not a value of the key column `id`
    hint: its type is Int64
    ");
    let unknown = ask(&["-7", "--output", "text"]);
    assert_snapshot!(unknown.stdout, @"
    customers  id -7: 0 changes among 6 rows of 2 files
    no change has this key
    ");
    assert_eq!(unknown.code, 0);
}
