//! Backfills: window after window, resumed, interrupted and failing; and several pipelines in one
//! call.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Lab, Place, glueless};

const TOML: &str = r#"
name = "back"
key = ["id"]
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
event_time = "event"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const DAILY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// A lab with a file for each of some days.
fn lab(days: impl Iterator<Item = i64>) -> Lab {
    let sql = [
        ("curated.sql", "SELECT id, v, event_dt, cat FROM latest"),
        ("daily.sql", DAILY),
    ];
    let lab = Lab::new(Place::Local, TOML, &sql);
    days.for_each(|day| lab.put_day(day, &[("I", day, "a"), ("U", 0, "b")]));
    lab
}

fn command(lab: &Lab, verb: &str, start: &str, end: &str, more: &[&str]) -> Command {
    let mut command = Command::new(glueless());
    command
        .arg(verb)
        .arg(&lab.pipeline)
        .args(["--start-date", start, "--end-date", end]);
    command.args(more).env_clear();
    command
}

fn backfill(lab: &Lab, end: &str, more: &[&str]) -> (i32, Value, String) {
    told(
        command(lab, "backfill", "2020-01-01", end, more)
            .output()
            .expect("it starts"),
    )
}

/// Exit code, answer and log.
fn told(output: Output) -> (i32, Value, String) {
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("an exit code"), answer, log)
}

fn statuses(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().expect("results").iter();
    results
        .map(|result| result["status"].as_str().expect("a status").to_string())
        .collect()
}

#[test]
fn windows_that_are_done_are_skipped_until_a_file_appears_in_them() {
    let lab = lab(1..=3);
    let (code, answer, log) = backfill(&lab, "2020-01-04", &[]);
    assert_eq!(
        (code, statuses(&answer)),
        (0, vec!["done".into(); 3]),
        "{log}"
    );
    assert_eq!(answer["rows_read"], 6);
    assert_eq!(lab.table("lake/curated").len(), 4);
    let (code, answer, _) = backfill(&lab, "2020-01-04", &["--resume"]);
    assert_eq!((code, statuses(&answer)), (0, vec!["skipped".into(); 3]));
    lab.put(
        "raw/20200102-120000000.parquet",
        lab.get("raw/20200102-000000000.parquet").to_vec(),
    );
    let (code, answer, _) = backfill(&lab, "2020-01-05", &[]);
    let expected = ["skipped", "done", "skipped", "done"].map(String::from);
    assert_eq!((code, statuses(&answer)), (0, expected.to_vec()));
    let (code, answer, _) = backfill(&lab, "2020-01-04", &["--redo", "--step", "36h"]);
    assert_eq!((code, statuses(&answer)), (0, vec!["done".into(); 2]));
    assert_eq!(answer["results"][1]["end"], "2020-01-04T00:00:00Z");
}

#[test]
fn windows_that_were_only_curated_are_run() {
    let lab = lab(1..=2);
    let curated = command(&lab, "curate", "2020-01-01", "2020-01-03", &[])
        .output()
        .expect("it starts");
    assert!(curated.status.success());
    let (_, answer, _) = backfill(&lab, "2020-01-03", &[]);
    assert_eq!(statuses(&answer), ["done", "done"]);
    assert_eq!(lab.table("lake/daily").len(), 1);
    let (_, answer, _) = backfill(&lab, "2020-01-03", &[]);
    assert_eq!(statuses(&answer), ["skipped", "skipped"]);
}

#[test]
fn a_new_full_load_is_taken_by_the_first_window() {
    let lab = lab(1..=2);
    backfill(&lab, "2020-01-03", &[]);
    lab.put(
        "raw/LOAD00000001.parquet",
        lab.get("raw/20200102-000000000.parquet").to_vec(),
    );
    let (_, answer, _) = backfill(&lab, "2020-01-03", &[]);
    assert_eq!(statuses(&answer), ["done", "skipped"]);
}

#[test]
fn a_window_that_fails_keeps_no_other_from_being_run() {
    let lab = lab([1, 3, 4].into_iter());
    lab.put("raw/20200102-000000000.parquet", b"not Parquet".to_vec());
    let (code, answer, log) = backfill(&lab, "2020-01-05", &[]);
    let expected = ["done", "failed", "done", "done"].map(String::from);
    assert_eq!((code, statuses(&answer)), (65, expected.to_vec()));
    assert_eq!(answer["windows_failed"], 1);
    let error = answer["results"][1]["error"].as_str().expect("an error");
    assert!(error.contains("20200102-000000000.parquet"), "{error}");
    assert!(
        log.contains("error: ") && log.contains("20200102-000000000.parquet"),
        "{log}"
    );
    assert_eq!(lab.table("lake/curated").len(), 4);
    // Mended, only that window is left.
    lab.put_day(2, &[("I", 2, "a")]);
    let (code, answer, _) = backfill(&lab, "2020-01-05", &[]);
    let expected = ["skipped", "done", "skipped", "skipped"].map(String::from);
    assert_eq!((code, statuses(&answer)), (0, expected.to_vec()));
}

#[test]
fn it_stops_at_the_first_failure_where_that_is_asked_for_or_every_window_would_fail() {
    let lab = lab([1, 3].into_iter());
    lab.put("raw/20200102-000000000.parquet", b"not Parquet".to_vec());
    let (code, answer, _) = backfill(&lab, "2020-01-04", &["--fail-fast"]);
    let expected = ["done", "failed", "left"].map(String::from);
    assert_eq!((code, statuses(&answer)), (65, expected.to_vec()));
    let (code, answer, _) = backfill(
        &lab,
        "2020-01-04",
        &["--redo", "--set", "raw.order_by=[\"v\"]"],
    );
    let expected = ["failed", "left", "left"].map(String::from);
    assert_eq!((code, statuses(&answer)), (2, expected.to_vec()));
}

#[test]
fn a_step_must_lead_somewhere() {
    let lab = lab(1..=1);
    for step in ["0", "soon", "1s"] {
        let (code, _, log) = backfill(&lab, "2020-02-01", &["--step", step]);
        assert_eq!(code, 2, "{step}: {log}");
    }
    assert!(lab.list_all("lake").is_empty());
}

#[test]
fn an_interrupted_backfill_ends_with_its_window_and_goes_on_where_it_was() {
    let lab = lab(1..=9);
    let mut child = command(
        &lab,
        "backfill",
        "2020-01-01",
        "2020-01-10",
        &["--step", "1h"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("it starts");
    let mut log = BufReader::new(child.stderr.take().expect("stderr"));
    let mut line = String::new();
    // Some windows are done by the time the second day is reached.
    while !line.contains("[2020-01-02T00:00:00Z") {
        line.clear();
        assert!(
            log.read_line(&mut line).expect("a line") > 0,
            "it ended before"
        );
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("it starts").success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("the rest");
    let (code, answer, _) = told(child.wait_with_output().expect("it ends"));
    assert_eq!(code, 130, "{rest}");
    assert!(rest.contains("stopping after this window"), "{rest}");
    let done = answer["windows_done"].as_u64().expect("a count");
    assert!((24..216).contains(&done), "{done}");
    assert_eq!(answer["windows_left"], 216 - done);
    let (code, answer, _) = told(
        command(
            &lab,
            "backfill",
            "2020-01-01",
            "2020-01-10",
            &["--step", "1h"],
        )
        .output()
        .expect("it starts"),
    );
    assert_eq!((code, answer["windows_skipped"].as_u64()), (0, Some(done)));
    assert_eq!(lab.table("lake/curated").len(), 10);
    lab.assert_tidy();
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
        let toml = TOML.replace("\"back\"", &format!("\"{name}\""));
        let toml = toml
            .replace("{base}/lake", &format!("{{base}}/lake/{name}"))
            .replace("{base}", &lab.base);
        let toml = if name == "b" {
            toml.replace("\"ts\"", "\"nope\"")
        } else {
            toml
        };
        std::fs::write(folder.join("pipeline.toml"), toml).expect("written");
    }
    std::fs::write(pipelines.join("fold.sql"), "SELECT 1").expect("written");
    std::fs::create_dir(pipelines.join("notes")).expect("a folder");
    let line = "\"$0\" run \"$1\"/* --start-date 2020-01-01 --end-date 2020-01-03 --metrics-file \"$1/m.prom\" \"$2\" \"$3\"";
    let run = |output: [&str; 2]| {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .arg(glueless())
            .arg(&pipelines)
            .args(output);
        command.output().expect("it starts")
    };
    let (code, answer, log) = told(run(["--output", "json"]));
    assert_eq!(code, 2, "{log}");
    let results = answer["results"].as_array().expect("results");
    let codes: Vec<(&str, u64)> = results
        .iter()
        .map(|result| {
            (
                result["pipeline"].as_str().expect("a name"),
                result["exit_code"].as_u64().expect("a code"),
            )
        })
        .collect();
    assert_eq!(codes, [("a", 0), ("b", 2), ("c", 0)]);
    assert!(
        results[1]["error"]
            .as_str()
            .expect("an error")
            .contains("nope")
    );
    assert_eq!(results[2]["report"]["rows_read"], 4);
    for name in ["a", "c"] {
        assert_eq!(lab.table(&format!("lake/{name}/curated")).len(), 3);
    }
    let metrics = String::from_utf8(lab.get("pipelines/m.prom").to_vec()).expect("text");
    for line in [
        "glueless_last_run_exit_code{pipeline=\"a\"} 0",
        "glueless_last_run_exit_code{pipeline=\"b\"} 2",
        "glueless_rows_read{pipeline=\"c\"} 4",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    let text = run(["--output", "text"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("pipeline  exit code  error"), "{text}");
}

#[test]
fn a_path_that_does_not_exist_is_no_pipeline_that_is_left_out() {
    let lab = lab(1..=1);
    let missing = lab.folder.path().join("missing");
    let mut run = command(&lab, "run", "2020-01-01", "2020-01-02", &[]);
    let (code, answer, log) = told(run.arg(&missing).output().expect("it starts"));
    assert_eq!(code, 2, "{log}");
    let codes: Vec<u64> = answer["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|one| one["exit_code"].as_u64().expect("a code"))
        .collect();
    assert_eq!(codes, [0, 2]);
    assert!(log.contains("error: missing: "), "{log}");
}

#[test]
fn credentials_in_urls_are_refused_and_not_repeated() {
    let lab = lab(1..=1);
    for (set, variable) in [
        ("raw.url=s3://somebody:hunter2@bucket/x", None),
        (
            "raw.url=s3://bucket/x",
            Some("http://somebody:hunter2@127.0.0.1:1"),
        ),
    ] {
        let mut run = command(
            &lab,
            "run",
            "2020-01-01",
            "2020-01-02",
            &["--set", set, "-v"],
        );
        run.envs(variable.map(|value| ("AWS_ENDPOINT_URL", value)));
        let (code, _, log) = told(run.output().expect("it starts"));
        assert_eq!(code, 2, "{log}");
        assert!(
            log.contains("holds credentials") && !log.contains("hunter2"),
            "{log}"
        );
    }
}
