//! The program as a process: exit codes, messages, reports and logs, and that what it refuses
//! changes nothing. One file per subject; this one has what they share.

mod errors;
mod fixtures;
mod help;
mod logs;
mod reports;
mod storage;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arrow::array::ArrayRef;

use crate::support::{
    Columns, DAY_US, Lab, LabBuilder, Output, Program, integers, texts, timestamps,
};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

const CURATED: &str = "SELECT CAST(id AS BIGINT) AS id, CAST(note AS VARCHAR) AS note,
    CAST(category AS VARCHAR) AS category, CAST(event_dt AS DATE) AS event_dt FROM latest";

const DAILY: &str = "SELECT CAST(event_dt AS DATE) AS dt, COUNT(*) AS customers FROM history
    WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

/// A value in the environment of every run, which no message may show.
const SECRET: &str = "hunter2hunter2hunter2";
/// A value in every row of every raw file, which no message may show.
const NOTE: &str = "confidential";
/// The first key; no message may show one.
const FIRST_ID: i64 = 90_010_000;

/// 2019-12-12 in microseconds since 1970.
const FIRST_DAY_US: i64 = 1_576_108_800_000_000;

/// Three changes of one day: keys 0, 1 and 2 counted from `first_id`.
fn changes(day: i64, first_id: i64) -> Columns {
    let times = (0..3).map(|row| format!("2019-12-{:02} 12:00:0{row}.000000", 12 + day));
    vec![
        ("Op", texts(["I", "U", "I"])),
        ("ts", texts(times)),
        ("event", timestamps([FIRST_DAY_US + day * DAY_US; 3])),
        ("id", integers((0..3).map(|number| FIRST_ID + first_id + number))),
        ("category", texts(["Gold", "Silver", "Gold"])),
        ("note", texts([NOTE; 3])),
    ]
}

/// The columns with one of them replaced, or added.
fn with(mut columns: Columns, name: &'static str, array: ArrayRef) -> Columns {
    match columns.iter_mut().find(|column| column.0 == name) {
        Some(column) => column.1 = array,
        None => columns.push((name, array)),
    }
    columns
}

fn builder() -> LabBuilder {
    Lab::builder()
        .set("name", "customers")
        .set("raw.op", "Op")
        .set("raw.event_time", "event")
        .partition_by(&["event_dt", "category"])
        .curated_sql(CURATED)
        .aggregate("daily", DAILY)
}

/// A lab with one good run behind it, and a raw file that the next run would fold.
fn lab_after_a_good_run() -> Lab {
    let lab = builder().build();
    lab.put_columns("raw/20191212-120000000.parquet", changes(0, 0));
    run(&lab, lab.program_for("run", "2019-12-12", "2019-12-13")).assert_success();
    assert_eq!(lab.table("lake/curated").len(), 3);
    assert_eq!(lab.table("lake/daily").len(), 1);
    lab.put_columns("raw/20191213-120000000.parquet", changes(1, 1));
    lab
}

/// A run that folds both files.
fn both_windows(lab: &Lab) -> Program {
    lab.program_for("run", "2019-12-12", "2019-12-14")
}

/// A run of a second pipeline in the same lake. It has no state yet, so that any SQL is accepted.
fn other_pipeline(lab: &Lab, start: &str, end: &str) -> Program {
    let base = &lab.base;
    lab.program_for("run", start, end).set(&[
        "name=others",
        &format!("curated.url={base}/lake/others"),
        &format!("aggregate.daily.url={base}/lake/others_daily"),
    ])
}

/// A run of the second pipeline that folds both files.
fn both_windows_elsewhere(lab: &Lab) -> Program {
    other_pipeline(lab, "2019-12-12", "2019-12-14")
}

/// Runs a program with a secret in its environment. The lab's folder is masked in its output, and
/// so are the ids of runs.
fn run(lab: &Lab, program: Program) -> Output {
    run_in(&lab.base, program)
}

fn run_in(folder: &str, program: Program) -> Output {
    let program = program.envs([("AWS_SECRET_ACCESS_KEY", SECRET)]);
    program.run().masked(folder)
}

/// The exit code of a failed run, and the end of its log from the `error:` line on.
fn failure(output: &Output) -> String {
    let start = output.stderr.find("error:").unwrap_or_default();
    // Two threads write versions, and either can be the first to fail.
    let error = output.stderr[start..].replace("[run]-01-", "[run]-00-");
    format!("exit {}\n{}", output.code, error.trim_end())
}

/// Every file of a lake with its content, and every folder but those of the state.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("inside").display().to_string();
            if path.is_dir() {
                if !name.starts_with("_glueless") {
                    found.insert(format!("{name}/"), Vec::new());
                }
                walk(root, &path, found);
            } else {
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

fn assert_unchanged(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) {
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let changed: Vec<&String> = before.keys().chain(after.keys()).filter(differs).collect();
    assert!(changed.is_empty(), "changed in the lake: {changed:#?}");
}

/// Runs what must be refused. Nothing in the lake may change, neither tables nor state; nothing
/// is printed on stdout; no message shows a secret, a row's value or any of `hidden`.
fn refusal_hiding(lab: &Lab, program: Program, hidden: &[&str]) -> String {
    let lake = lab.folder.path().join("lake");
    let before = contents(&lake);
    let output = run(lab, program);
    let failure = failure(&output);
    assert_ne!(output.code, 0, "it was not refused: {}", output.stderr);
    assert_eq!(output.stdout, "", "{failure}");
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    let ids = FIRST_ID.to_string();
    for value in [SECRET, NOTE, &ids[..5]].iter().chain(hidden) {
        assert!(!output.stderr.contains(value), "{value} in {failure}");
    }
    assert_unchanged(&before, &contents(&lake));
    failure
}

fn refusal(lab: &Lab, program: Program) -> String {
    refusal_hiding(lab, program, &[])
}

/// A run of one of the repository's pipelines over the fixtures, with a lake in a folder.
fn fixtures_program(pipeline: &str, folder: &Path, start: &str, end: &str) -> Program {
    let folder = folder.display();
    let program = Program::glueless()
        .arg("run")
        .arg(Path::new(REPOSITORY).join("sql").join(pipeline))
        .args(["--start-date", start, "--end-date", end])
        .set(&[
            &format!("raw.url={REPOSITORY}/fixtures/raw/cust_loyalty"),
            &format!("curated.url={folder}/curated"),
            &format!("aggregate.{pipeline}_daily.url={folder}/daily"),
        ]);
    if pipeline == "cust_loyalty" {
        return program.set(&[&format!("aggregate.{pipeline}_status.url={folder}/status")]);
    }
    program
}

fn run_fixtures(pipeline: &str, folder: &Path, options: &[&str]) -> Output {
    let program = fixtures_program(pipeline, folder, "2019-12-12", "2019-12-16");
    let output = run_in(&folder.display().to_string(), program.args(options));
    output.assert_success();
    output
}
