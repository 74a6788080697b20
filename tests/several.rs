//! Several pipelines in one command, one after the other or several at once.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Lab, Output, PLACES, Place, Program, Row, environment_of, integers, json_lines, pause,
    send_signal, texts,
};

/// The pipelines of a project.
const TABLES: usize = 9;

/// A lab with a project of tables, each with the changes of some days.
fn project(place: Place, days: u32) -> Lab {
    let lab = Lab::new(place, "", &[]);
    let project = format!(
        "key = ['id']\n[raw]\nurl = '{base}/raw/{{table}}'\norder_by = ['ts']\nwindow_by = 'name'\n\
         [curated]\nurl = '{base}/lake/{{table}}'\npartition_by = ['event_dt']\n\
         [state]\nurl = '{base}/state/{{table}}'\n",
        base = lab.base
    );
    write(&lab, "glueless.toml", &project);
    for table in 0..TABLES {
        write(&lab, &format!("t{table}/pipeline.toml"), "");
        for day in 1..=days {
            let rows = 0..20 + table as i64;
            let columns = vec![
                ("Op", texts(rows.clone().map(|_| "I"))),
                ("id", integers(rows.clone())),
                ("table", integers(rows.clone().map(|_| table as i64))),
                ("ts", texts(rows.map(|row| format!("2020-01-{day:02} 12:00:{row:02}")))),
            ];
            lab.put_columns(&format!("raw/t{table}/202001{day:02}-000000000.parquet"), columns);
        }
    }
    lab
}

/// Writes a file of the project.
fn write(lab: &Lab, name: &str, text: &str) {
    let path = lab.folder.path().join("sql").join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, text).expect("written");
}

fn program(lab: &Lab, command: &str) -> Program {
    Program::glueless()
        .envs(environment_of(&lab.base))
        .args(["--log-format", "json", command])
        .arg(lab.folder.path().join("sql"))
}

fn with_dates(program: Program) -> Program {
    program.args(["--start-date", "2020-01-01", "--end-date", "2020-02-01"])
}

fn tables(lab: &Lab) -> Vec<Vec<Row>> {
    (0..TABLES).map(|table| lab.table(&format!("lake/t{table}"))).collect()
}

fn names(output: &Output) -> Vec<String> {
    let results = output.json();
    let results = results["results"].as_array().expect("results").iter();
    results.map(|result| result["pipeline"].as_str().expect("a name").to_string()).collect()
}

/// Checks that each log line has the label of the pipeline whose run it is of.
#[track_caller]
fn assert_labels(output: &Output) {
    let mut of_runs: BTreeMap<String, String> = BTreeMap::new();
    for line in json_lines(&output.stderr) {
        let text = |name: &str| line.get(name).and_then(Value::as_str).map(String::from);
        let (Some(run), Some(pipeline)) = (text("run_id"), text("pipeline")) else { continue };
        let known = of_runs.entry(run).or_insert_with(|| pipeline.clone());
        assert_eq!(*known, pipeline, "{line}");
        if let Some((_, table)) = text("message").expect("a message").split_once("/raw/t") {
            assert_eq!(&table[..1], &pipeline[1..], "{line}");
        }
    }
    assert_eq!(of_runs.len(), TABLES);
}

#[test]
fn pipelines_at_once_do_what_they_do_one_after_the_other() {
    for place in PLACES {
        let (one, many) = (project(place, 2), project(place, 2));
        with_dates(program(&one, "run")).succeed();
        let output = with_dates(program(&many, "run")).args(["--jobs", "4", "-v"]).succeed();
        assert_eq!(tables(&many), tables(&one));
        let expected: Vec<String> = (0..TABLES).map(|table| format!("t{table}")).collect();
        assert_eq!(names(&output), expected);
        assert_labels(&output);
        // Each command over many pipelines can do it.
        let verified = program(&many, "verify").args(["--jobs", "3"]).succeed();
        assert_eq!(names(&verified), expected);
        let backfill =
            with_dates(program(&many, "backfill")).args(["--jobs", "3", "--step", "7d", "--redo"]);
        assert_eq!(names(&backfill.succeed()), expected);
        program(&many, "catch-up").args(["--jobs", "20"]).succeed();
        program(&many, "rebuild").args(["--jobs", "3"]).succeed();
        assert_eq!(tables(&many), tables(&one));
    }
}

#[test]
fn a_pipeline_that_fails_or_hangs_holds_up_no_other() {
    // It accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    for jobs in ["1", "3"] {
        let lab = project(Place::Local, 1);
        write(&lab, "t2/pipeline.toml", "[raw]\nurl = 's3://silent/raw'");
        write(&lab, "t4/pipeline.toml", "[raw]\nno_such_key = 1");
        let environment = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("AWS_REGION", "us-east-1"),
        ];
        let started = Instant::now();
        let command = with_dates(program(&lab, "run").envs(environment));
        let output = command.args(["--jobs", jobs, "--timeout", "3s", "--metrics-file"]);
        let output = output.arg(lab.folder.path().join("runs.prom")).run();
        assert!(started.elapsed() < Duration::from_secs(60), "it waits for a pipeline that hangs");
        // What is wrong with a pipeline counts more than what may be over the next time.
        assert_eq!(output.code, 2, "{}", output.stderr);
        let results = output.json();
        let codes: Vec<i64> = results["results"]
            .as_array()
            .expect("results")
            .iter()
            .map(|result| result["exit_code"].as_i64().expect("a code"))
            .collect();
        assert_eq!(codes, [0, 0, 69, 0, 2, 0, 0, 0, 0]);
        let error = results["results"][2]["error"].as_str().expect("an error");
        assert_eq!(error, "it has not ended within 3 s, and was given up");
        assert_eq!(lab.table("lake/t8").len(), 28);
        let metrics =
            std::fs::read_to_string(lab.folder.path().join("runs.prom")).expect("metrics");
        let of = |name: &str, code: u8| {
            let line = format!("glueless_last_run_exit_code{{pipeline=\"{name}\"}} {code}\n");
            assert!(metrics.contains(&line), "{line}{metrics}");
        };
        [("t0", 0), ("t2", 69), ("t4", 2), ("t8", 0)]
            .into_iter()
            .for_each(|(name, code)| of(name, code));
        // Nothing but the file itself, and its lock, is left beside it.
        let beside = std::fs::read_dir(lab.folder.path()).expect("listed").flatten();
        assert_eq!(
            beside.filter(|file| file.file_name().to_string_lossy().contains(".new")).count(),
            0
        );
    }
}

#[test]
fn pipelines_at_once_need_memory_for_each() {
    let lab = project(Place::Local, 1);
    let command = with_dates(program(&lab, "run"));
    let output = command.args(["--jobs", "3", "--set", "limits.memory=256MB"]).run();
    assert_eq!(output.code, 2);
    let hint = "write --jobs 2, or raise `limits.memory`";
    assert_eq!(output.stderr.matches(hint).count(), 1, "{}", output.stderr);
    assert!(!Path::new(&lab.base).join("lake").exists());
    for refused in [["--jobs", "0"], ["--timeout", "soon"]] {
        assert_eq!(with_dates(program(&lab, "run")).args(refused).run().code, 2, "{refused:?}");
    }
}

#[test]
fn one_interrupt_stops_all_backfills_after_their_windows() {
    let lab = project(Place::Local, 28);
    // Nobody reads what it logs.
    let started = with_dates(program(&lab, "backfill")).args(["--jobs", "2", "--quiet"]).start();
    while !Path::new(&lab.base).join("lake").exists() {
        pause(Duration::from_millis(5));
    }
    send_signal(&started, "-INT");
    let output: Output = started.wait_with_output().expect("ended").into();
    assert_eq!(output.code, 130, "{}", output.stderr);
    let results = output.json();
    let left = results["results"].as_array().expect("results").iter();
    let left: u64 = left.map(|one| one["report"]["windows_left"].as_u64().expect("a number")).sum();
    assert!(left > 0, "{results}");
    with_dates(program(&lab, "backfill")).args(["--jobs", "2"]).succeed();
    assert_eq!(lab.table("lake/t8").len(), 28);
}

#[test]
fn what_is_of_one_pipeline_is_refused_for_several() {
    let lab = project(Place::Local, 1);
    with_dates(program(&lab, "run")).args(["--jobs", "2"]).succeed();
    let other = format!("{}/lake/t0", lab.base);
    let output = program(&lab, "verify").args(["--against", &other]).run();
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("are of one pipeline"), "{}", output.stderr);
}

#[test]
fn pipelines_of_one_state_are_refused_before_anything_is_done() {
    let lab = project(Place::Local, 1);
    write(&lab, "t3/pipeline.toml", "name = 't1'\n[state]\nurl = '../state/t1'");
    write(&lab, "t1/pipeline.toml", "[state]\nurl = '../state/t1'");
    let state = lab.folder.path().join("sql/state/t1").display().to_string();
    for jobs in ["1", "4"] {
        let output = with_dates(program(&lab, "run")).args(["--jobs", jobs]).run();
        assert_eq!(output.code, 2);
        assert!(output.stderr.contains("have one state"), "{state}: {}", output.stderr);
        assert!(!Path::new(&lab.base).join("lake").exists());
    }
}
