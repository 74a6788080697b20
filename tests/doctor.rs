//! `doctor`: what would fail tonight is found, and nothing is changed.

use serde_json::Value;

use crate::support::{
    Database, FIRST_DAY_US, Glue, Lab, LabBuilder, Output, PLACES, Place, Program, environment_of,
    now, raw_file,
};

/// The findings that are no `ok`, each as `level check: message`.
fn findings(output: &Output) -> Vec<String> {
    let found = output.json();
    let found = found["findings"].as_array().expect("findings").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_string();
    found
        .filter(|one| one["level"] != "ok")
        .map(|one| {
            format!("{} {}: {}", text(&one["level"]), text(&one["check"]), text(&one["message"]))
        })
        .collect()
}

fn doctor(lab: &Lab, set: &[&str]) -> Output {
    lab.program("doctor").args(["--output", "json"]).set(set).run()
}

/// A lab whose runs were made now.
fn build(builder: &LabBuilder) -> Lab {
    Lab { now: now(), ..builder.build() }
}

#[track_caller]
fn assert_finds(output: &Output, code: i32, expected: &[&str]) {
    let found = findings(output);
    assert_eq!(output.code, code, "{found:?}{}", output.stderr);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found} is not {expected}");
    }
}

#[test]
fn a_pipeline_that_is_well_has_no_findings_and_nothing_is_left() {
    for place in PLACES {
        let lab = build(&Lab::builder().place(place));
        lab.put_day(1, &[("I", 1, "a")]);
        assert_finds(&doctor(&lab, &[]), 0, &[]);
        assert_eq!(lab.list_all("lake"), Vec::<String>::new());
        lab.run_days(1, 2);
        let before = lab.contents("");
        assert_finds(&doctor(&lab, &[]), 0, &[]);
        assert_eq!(lab.contents(""), before);
        let text = lab.program("doctor").args(["--output", "text"]).run();
        assert!(text.stdout.starts_with("lab\n  ok       raw "), "{}", text.stdout);
        // Its object is none that a first run could mistake for someone else's.
        let fresh = build(&Lab::builder().place(place));
        fresh.put_day(1, &[("I", 1, "a")]);
        fresh.put("lake/curated/_glueless-probe-0", "left by a killed doctor");
        fresh.run_days(1, 2);
    }
}

#[test]
fn what_runs_have_left_open_is_found() {
    let lab = build(&Lab::builder().set("raw.on_bad_row", "quarantine"));
    for day in [2, 3, 5] {
        lab.put_day(day, &[("I", day, "a")]);
    }
    lab.put_day(4, &[("X", 9, "a"), ("I", 4, "a")]);
    lab.run_days(2, 3);
    lab.run_days(4, 6);
    // Of the day before the first window, and of a window that was run, long ago.
    lab.put_day(1, &[("I", 1, "a")]);
    lab.copy(&raw_file(5), "raw/20200105-110000000.parquet");
    assert_finds(
        &doctor(&lab, &[]),
        0,
        &[
            "warning windows: 1 gaps between windows, such as 2020-01-03 to 2020-01-04",
            "warning quarantine: 1 raw files",
            "warning raw files: 2 files of windows that were run are not folded; the next run takes those of the last 2 days",
            "warning raw files: 1 files are from before the first window, 2020-01-02",
        ],
    );
}

#[test]
fn what_would_fail_the_next_run_is_an_error() {
    let lab = build(&Lab::builder());
    lab.put_day(1, &[("I", 1, "a")]);
    lab.run_days(1, 2);
    let finds = |set: &[&str], code: i32, expected: &[&str]| {
        assert_finds(&doctor(&lab, set), code, expected)
    };
    finds(&["key=[\"v\"]"], 1, &["error tables: the pipeline `lab` differs"]);
    finds(&["raw.url=nowhere"], 1, &["error raw: the raw location"]);
    finds(&["raw.format=csv", "raw.csv_header=true"], 1, &["warning raw: ", "error next run: "]);
    finds(&["limits.memory=900TB"], 1, &["error memory: the limit is"]);
    finds(
        &["mask.v=hmac"],
        1,
        &["error environment: the environment has no variable GLUELESS_MASK_KEY", "error tables"],
    );
    finds(&["raw.nothing=1"], 1, &["unknown key `raw.nothing`"]);
    finds(
        &["verify.url_env=SOURCE_URL", "verify.table=t"],
        1,
        &["error environment: the environment has no variable SOURCE_URL"],
    );
    // Another state's tables, and a state of a later version.
    let others = build(&Lab::builder());
    others.put_day(1, &[("I", 1, "a")]);
    let url = format!("curated.url={}/lake/curated", lab.base);
    let found = findings(&doctor(&others, &[&url, &format!("state.url={}/state", others.base)]));
    assert!(found.iter().any(|one| one.contains("belongs to")), "{found:?}");
    // Not writable.
    finds(
        &["curated.url=/sys/lake"],
        1,
        &["error curated: cannot write", "error state: cannot write"],
    );
    // Nothing answers.
    let silent = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_REGION", "x"),
    ];
    let output = lab
        .program("doctor")
        .args(["--output", "json", "--set", "raw.url=s3://silent/raw"])
        .envs(silent)
        .run();
    assert!(
        findings(&output)[0].starts_with("error raw: cannot list s3://silent/raw"),
        "{}",
        output.stdout
    );
}

#[test]
fn a_schedule_that_stopped_is_found() {
    let mut lab = Lab::builder().build();
    let first = chrono::DateTime::from_timestamp_micros(FIRST_DAY_US).expect("a time");
    for day in 1..=5 {
        lab.put_day(day, &[("I", day, "a")]);
        lab.now = first + chrono::TimeDelta::days(day);
        lab.run_days(day, day + 1);
    }
    // A backfill says nothing about the schedule.
    for day in 1..=5 {
        lab.now += chrono::TimeDelta::seconds(1);
        lab.run_days(day, day + 1);
    }
    let output = doctor(&lab, &[]);
    assert_finds(&output, 0, &["warning lag: the last run began"]);
    assert!(findings(&output)[0].contains("there is one every 24 h otherwise"), "{output:?}");
}

#[test]
fn the_targets_of_followers_are_examined() {
    let database = Database::new();
    let lab = build(&Lab::builder().partition_by(&["event_dt"]).loaded());
    lab.put_day(1, &[("I", 1, "a")]);
    let doctor = |url: &str| {
        let environment = [("WAREHOUSE_URL", url)];
        lab.program("doctor").args(["--output", "json"]).envs(environment).run()
    };
    // The first load makes it.
    assert_finds(&doctor(&database.url()), 0, &[]);
    database.ask("CREATE TABLE curated (id BIGINT PRIMARY KEY)");
    assert_finds(
        &doctor(&database.url()),
        1,
        &["error load: \"public\".\"curated\" in the database"],
    );
    database.ask("GRANT ALL ON curated TO lab");
    assert_finds(&doctor(&database.url()), 0, &[]);
    assert_finds(
        &doctor("postgresql://nobody@127.0.0.1:9/x"),
        1,
        &["error load: cannot reach the database"],
    );
    let lab = build(&Lab::builder().place(Place::S3).set("catalog.glue", "no_such_database"));
    lab.put_day(1, &[("I", 1, "a")]);
    let catalog = |set: &[&str]| lab.program("doctor").args(["--output", "json"]).set(set).run();
    assert_finds(
        &catalog(&[]),
        1,
        &["error catalog: the Glue catalog has no database `no_such_database`"],
    );
    let name = format!("catalog.glue={}", Glue::new().database);
    assert_finds(&catalog(&[&name]), 0, &[]);
}

#[test]
fn all_pipelines_of_a_project_are_examined() {
    let lab = Lab::new(Place::Local, "", &[]);
    let write = |name: &str, text: &str| {
        let path = lab.folder.path().join("sql").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    };
    let project = "key = ['id']\n[raw]\nurl = '../raw/{table}'\norder_by = ['ts']\n[curated]\nurl = '../lake/{table}'\n[state]\nurl = '../state/{table}'\n";
    write("glueless.toml", project);
    for table in ["a", "b", "c"] {
        write(&format!("{table}/pipeline.toml"), if table == "b" { "keys = 1" } else { "" });
        std::fs::create_dir_all(lab.folder.path().join("raw").join(table)).expect("a folder");
    }
    let shell = Program::shell("cd \"$0\" && exec \"$1\" doctor --output json --jobs 2")
        .envs(environment_of(""));
    let output = shell.arg(lab.folder.path().join("sql")).arg(crate::support::glueless()).run();
    assert_eq!(output.code, 1, "{}", output.stderr);
    let results = output.json();
    let codes: Vec<i64> = results["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| result["exit_code"].as_i64().expect("a code"))
        .collect();
    assert_eq!(codes, [0, 1, 0]);
    let finding = &results["results"][1]["report"]["findings"][0];
    assert_eq!(
        (&finding["check"], &finding["next"]),
        (&"configuration".into(), &"did you mean `key`?".into())
    );
}
