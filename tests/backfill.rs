//! Backfills: one window after the other, resumed, interrupted and failing; and several pipelines in
//! one command.

use std::io::{BufRead, BufReader, Read};

use serde_json::Value;

use crate::support::{COUNT_PER_DAY, Lab, Output, Program, glueless, raw_file, send_signal};

/// A lab with a file for each of some days.
fn lab(days: impl IntoIterator<Item = i64>) -> Lab {
    let lab =
        Lab::builder().set("raw.event_time", "event").aggregate("daily", COUNT_PER_DAY).build();
    for day in days {
        lab.put_day(day, &[("I", day, "a"), ("U", 0, "b")]);
    }
    lab
}

fn backfill(lab: &Lab, end: &str, options: &[&str]) -> Output {
    let program = lab.program_for("backfill", "2020-01-01", end);
    program.args(options).run()
}

/// A backfill's exit code, and the status of each of its windows.
fn exit_code_and_statuses(output: &Output) -> (i32, Vec<String>) {
    let answer = output.json();
    let results = answer["results"].as_array().expect("results").iter();
    let statuses = results.map(|result| result["status"].as_str().expect("a status").to_string());
    (output.code, statuses.collect())
}

#[track_caller]
fn assert_statuses<const N: usize>(output: &Output, code: i32, statuses: [&str; N]) {
    let expected = (code, statuses.map(String::from).to_vec());
    assert_eq!(exit_code_and_statuses(output), expected, "{}", output.stderr);
}

#[test]
fn windows_that_are_done_are_skipped_until_a_file_appears_in_them() {
    let lab = lab(1..=3);
    let output = backfill(&lab, "2020-01-04", &[]);
    assert_statuses(&output, 0, ["done"; 3]);
    assert_eq!(output.json()["rows_read"], 6);
    assert_eq!(lab.table("lake/curated").len(), 4);
    let output = backfill(&lab, "2020-01-04", &["--resume"]);
    assert_statuses(&output, 0, ["skipped"; 3]);
    lab.copy(&raw_file(2), "raw/20200102-120000000.parquet");
    let output = backfill(&lab, "2020-01-05", &[]);
    assert_statuses(&output, 0, ["skipped", "done", "skipped", "done"]);
    let output = backfill(&lab, "2020-01-04", &["--redo", "--step", "36h"]);
    assert_statuses(&output, 0, ["done"; 2]);
    assert_eq!(output.json()["results"][1]["end"], "2020-01-04T00:00:00Z");
}

#[test]
fn windows_that_were_only_curated_are_run() {
    let lab = lab(1..=2);
    lab.program_for("curate", "2020-01-01", "2020-01-03").succeed();
    assert_statuses(&backfill(&lab, "2020-01-03", &[]), 0, ["done"; 2]);
    assert_eq!(lab.table("lake/daily").len(), 1);
    assert_statuses(&backfill(&lab, "2020-01-03", &[]), 0, ["skipped"; 2]);
}

#[test]
fn a_new_full_load_is_taken_by_the_first_window() {
    let lab = lab(1..=2);
    backfill(&lab, "2020-01-03", &[]);
    lab.copy(&raw_file(2), "raw/LOAD00000001.parquet");
    let output = backfill(&lab, "2020-01-03", &[]);
    assert_statuses(&output, 0, ["done", "skipped"]);
}

#[test]
fn a_window_that_fails_keeps_no_other_from_being_run() {
    let lab = lab([1, 3, 4]);
    lab.put(&raw_file(2), "not Parquet");
    let output = backfill(&lab, "2020-01-05", &[]);
    assert_statuses(&output, 65, ["done", "failed", "done", "done"]);
    let answer = output.json();
    assert_eq!(answer["windows_failed"], 1);
    let error = answer["results"][1]["error"].as_str().expect("an error");
    assert!(error.contains("20200102-000000000.parquet"), "{error}");
    let log = output.stderr;
    assert!(log.contains("error: ") && log.contains("20200102-000000000.parquet"), "{log}");
    assert_eq!(lab.table("lake/curated").len(), 4);
    // Once the file is repaired, only its window is left.
    lab.put_day(2, &[("I", 2, "a")]);
    let output = backfill(&lab, "2020-01-05", &[]);
    assert_statuses(&output, 0, ["skipped", "done", "skipped", "skipped"]);
}

#[test]
fn it_stops_at_the_first_failure_where_that_is_asked_for_or_every_window_would_fail() {
    let lab = lab([1, 3]);
    lab.put(&raw_file(2), "not Parquet");
    let output = backfill(&lab, "2020-01-04", &["--fail-fast"]);
    assert_statuses(&output, 65, ["done", "failed", "left"]);
    let other_order = ["--redo", "--set", "raw.order_by=[\"v\"]"];
    let output = backfill(&lab, "2020-01-04", &other_order);
    assert_statuses(&output, 2, ["failed", "left", "left"]);
}

#[test]
fn a_step_must_lead_somewhere() {
    let lab = lab(1..=1);
    for step in ["0", "soon", "1s"] {
        let output = backfill(&lab, "2020-02-01", &["--step", step]);
        assert_eq!(output.code, 2, "{step}: {}", output.stderr);
    }
    assert!(lab.list_all("lake").is_empty());
}

#[test]
fn an_interrupted_backfill_ends_with_its_window_and_goes_on_where_it_was() {
    let lab = lab(1..=9);
    let hourly = || {
        let program = lab.program_for("backfill", "2020-01-01", "2020-01-10");
        program.args(["--step", "1h"])
    };
    let mut process = hourly().start();
    let mut log = BufReader::new(process.stderr.take().expect("stderr"));
    let mut line = String::new();
    // Some windows are done by the time the second day is reached.
    while !line.contains("[2020-01-02T00:00:00Z") {
        line.clear();
        assert!(log.read_line(&mut line).expect("a line") > 0, "it ended before");
    }
    send_signal(&process, "-INT");
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("the rest");
    let output = Output::from(process.wait_with_output().expect("it ends"));
    assert_eq!(output.code, 130, "{rest}");
    assert!(rest.contains("stopping after this window"), "{rest}");
    let answer = output.json();
    let done = answer["windows_done"].as_u64().expect("a count");
    assert!((24..216).contains(&done), "{done}");
    assert_eq!(answer["windows_left"], 216 - done);
    assert_eq!(hourly().succeed().json()["windows_skipped"], done);
    assert_eq!(lab.table("lake/curated").len(), 10);
    lab.assert_tidy();
}

/// The exit code of each pipeline.
fn exit_codes(answer: &Value) -> Vec<u64> {
    let results = answer["results"].as_array().expect("results").iter();
    results.map(|result| result["exit_code"].as_u64().expect("a code")).collect()
}

#[test]
fn several_pipelines_are_run_whatever_becomes_of_each() {
    let lab = lab(1..=2);
    let pipelines = lab.folder.path().join("pipelines");
    for name in ["a", "b", "c"] {
        let folder = pipelines.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for file in ["curated.sql", "daily.sql"] {
            std::fs::copy(lab.pipeline.join(file), folder.join(file)).expect("copied");
        }
        let toml = lab
            .get_text("pipeline/pipeline.toml")
            .replace("\"lab\"", &format!("\"{name}\""))
            .replace("/lake/", &format!("/lake/{name}/"));
        let toml = if name == "b" { toml.replace("\"ts\"", "\"nope\"") } else { toml };
        std::fs::write(folder.join("pipeline.toml"), toml).expect("written");
    }
    std::fs::write(pipelines.join("fold.sql"), "SELECT 1").expect("written");
    std::fs::create_dir(pipelines.join("notes")).expect("a folder");
    let line = "\"$0\" run \"$1\"/* --start-date 2020-01-01 --end-date 2020-01-03 --metrics-file \"$1/m.prom\" --output \"$2\"";
    let run = |format: &str| {
        let shell = Program::shell(line).arg(glueless());
        shell.arg(&pipelines).arg(format).run()
    };
    let output = run("json");
    assert_eq!(output.code, 2, "{}", output.stderr);
    let answer = output.json();
    let results = answer["results"].as_array().expect("results");
    let names: Vec<&Value> = results.iter().map(|result| &result["pipeline"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(exit_codes(&answer), [0, 2, 0]);
    let error = results[1]["error"].as_str().expect("an error");
    assert!(error.contains("nope"), "{error}");
    assert_eq!(results[2]["report"]["rows_read"], 4);
    for name in ["a", "c"] {
        assert_eq!(lab.table(&format!("lake/{name}/curated")).len(), 3);
    }
    let metrics = lab.get_text("pipelines/m.prom");
    for line in [
        "glueless_last_run_exit_code{pipeline=\"a\"} 0",
        "glueless_last_run_exit_code{pipeline=\"b\"} 2",
        "glueless_rows_read{pipeline=\"c\"} 4",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    let text = run("text").stdout;
    assert!(text.contains("pipeline  exit code  error"), "{text}");
}

#[test]
fn a_path_that_does_not_exist_is_no_pipeline_that_is_left_out() {
    let lab = lab(1..=1);
    let missing = lab.folder.path().join("missing");
    let program = lab.program_for("run", "2020-01-01", "2020-01-02");
    let output = program.arg(&missing).run();
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert_eq!(exit_codes(&output.json()), [0, 2]);
    let log = output.stderr;
    assert!(log.contains("error: missing: "), "{log}");
}

#[test]
fn credentials_in_urls_are_refused_and_not_repeated() {
    let lab = lab(1..=1);
    for (set, variable) in [
        ("raw.url=s3://somebody:hunter2@bucket/x", None),
        ("raw.url=s3://bucket/x", Some("http://somebody:hunter2@127.0.0.1:1")),
    ] {
        let program = lab.program_for("run", "2020-01-01", "2020-01-02").set(&[set]).arg("-v");
        let output = program.envs(variable.map(|value| ("AWS_ENDPOINT_URL", value))).run();
        assert_eq!(output.code, 2, "{}", output.stderr);
        let log = output.stderr;
        assert!(log.contains("holds credentials") && !log.contains("hunter2"), "{log}");
    }
}
