//! The log on stderr: its lines, its formats, and what it must not show.

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Output, Program, glueless, json_lines, texts};

use super::{
    FIRST_ID, NOTE, SECRET, both_windows, changes, fixtures_program, lab_after_a_good_run, run,
    run_fixtures, run_in, with,
};

#[test]
fn nothing_follows_the_report_on_either_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = fixtures_program("cust_loyalty", folder.path(), "2019-12-12", "2019-12-16");
    let shell = Program::shell("exec \"$@\" 2>&1").arg("sh").arg(glueless());
    let output = run_in("no folder", shell.arguments_of(&program));
    let (logs, report) = output.stdout.trim_end().rsplit_once('\n').expect("lines");
    serde_json::from_str::<Value>(report).expect("JSON");
    assert!(output.stdout.ends_with("}\n"));
    assert!(logs.lines().count() > 3);
    assert!(logs.lines().all(|line| line.contains(" INFO ")), "{logs}");
}

#[test]
fn logs_go_to_stderr_and_say_what_each_aggregate_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let aggregates = |output: &Output| {
        assert!(!output.stdout.contains("INFO"));
        let lines = output.stderr.lines().filter_map(|line| {
            let start = line.find("aggregate ")?;
            Some(line[start..].to_string())
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let first = run_fixtures("cust_loyalty", folder.path(), &[]);
    assert_snapshot!(aggregates(&first), @"
    aggregate cust_loyalty_daily: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 7 (2019-04-01 to 2019-12-15), rows deleted 0, rows inserted 6
    aggregate cust_loyalty_status: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 7 (2019-04-01 to 2019-12-15), rows deleted 0, rows inserted 7
    ");
    let second = run_fixtures("cust_loyalty", folder.path(), &[]);
    assert_snapshot!(aggregates(&second), @"
    aggregate cust_loyalty_daily: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 4 (2019-12-12 to 2019-12-15), rows deleted 3, rows inserted 3
    aggregate cust_loyalty_status: window [2019-12-12T00:00:00Z, 2019-12-16T00:00:00Z), qualifying dates 4 (2019-12-12 to 2019-12-15), rows deleted 4, rows inserted 4
    ");
}

#[test]
fn the_plan_of_the_fold_is_logged_with_its_metrics() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = |flag: &str| {
        let program =
            fixtures_program("cust_loyalty", folder.path(), "2019-12-12", "2019-12-16").arg(flag);
        let output = program.succeed();
        let lines = output.stderr.lines().filter(|line| line.contains("plan of pass one"));
        lines.map(String::from).collect::<Vec<_>>()
    };
    assert!(plan("-v").is_empty());
    let lines = plan("-vv");
    let node = lines.iter().find(|line| line.contains("FoldExec: key=[key_0@")).expect("a node");
    for metric in ["input_rows=29", "output_rows=13", "spilled_bytes=0", "peak_mem_used="] {
        assert!(node.contains(metric), "{metric} in {node}");
    }
    let is_grouping =
        |line: &String| line.contains("AggregateExec") || line.contains("Repartition");
    assert!(!lines.iter().any(is_grouping), "{lines:?}");
}

#[test]
fn every_line_of_a_log_names_its_run() {
    let lab = lab_after_a_good_run();
    let output = both_windows(&lab).args(["-v", "--log-format", "json"]).run();
    let report = output.json();
    let log = output.stderr;
    let lines = json_lines(&log);
    assert!(lines.len() > 5, "{log}");
    for line in &lines {
        assert_eq!(line["run_id"], report["run_id"]);
        assert_eq!(line["pipeline"], "customers");
        assert!(line["time"].as_str().expect("a time").ends_with('Z'));
        assert!(!line["message"].as_str().expect("a message").is_empty());
    }
    let levels: Vec<&str> = lines.iter().filter_map(|line| line["level"].as_str()).collect();
    assert!(levels.contains(&"INFO") && levels.contains(&"DEBUG"), "{levels:?}");

    let text = run(&lab, both_windows(&lab)).stderr;
    assert!(text.lines().all(|line| line.contains("INFO [run] ")), "{text}");
}

#[test]
fn a_failure_is_a_line_of_json_too() {
    let lab = lab_after_a_good_run();
    let bad = with(changes(2, 5), "Op", texts(["I", "X", "I"]));
    lab.put_columns("raw/20191213-130000000.parquet", bad);
    let output = run(&lab, both_windows(&lab).args(["--log-format", "json"]));
    let lines = json_lines(&output.stderr);
    let last = lines.last().expect("a line");
    assert_eq!((output.code, last["level"].as_str()), (65, Some("ERROR")));
    assert_eq!((last["run_id"].as_str(), last["exit_code"].as_u64()), (Some("[run]"), Some(65)));
    let message = last["message"].as_str().expect("a message");
    assert!(message.contains("20191213-130000000.parquet"), "{message}");
    assert!(last["hint"].is_string());
}

#[test]
fn a_quiet_run_says_nothing_but_why_it_failed() {
    let lab = lab_after_a_good_run();
    let output = run(&lab, both_windows(&lab).args(["--quiet"]));
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let output = run(&lab, both_windows(&lab).set(&["raw.op=nope"]).arg("-q"));
    assert_eq!(output.code, 2);
    assert!(
        output.stderr.starts_with("error: ") && output.stderr.lines().count() == 2,
        "{}",
        output.stderr
    );
}

#[test]
fn the_longest_log_holds_no_secret_and_no_value_of_a_row() {
    let lab = lab_after_a_good_run();
    let bad = with(changes(1, 5), "Op", texts(["I", NOTE, "I"]));
    lab.put_columns("raw/20191213-130000000.parquet", bad);
    let key = (FIRST_ID + 1).to_string();
    let policies = ["raw.on_bad_row=quarantine", "raw.on_bad_file=quarantine"];
    let program = |command: &str| match command {
        "run" => both_windows(&lab),
        "explain-key" => lab.program(command).arg(&key),
        _ => lab.program(command),
    };
    for command in ["run", "verify", "explain-key"] {
        for format in ["text", "json"] {
            let program = program(command).set(&policies);
            let output = run(&lab, program.args(["-vv", "--log-format", format]));
            output.assert_success();
            assert!(!output.stderr.contains(SECRET) && !output.stderr.contains(NOTE));
            // The values of a key are in the answer, where they were asked for, and in no log.
            assert!(!output.stderr.contains(&FIRST_ID.to_string()), "{}", output.stderr);
        }
    }
}
