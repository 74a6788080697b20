//! States that earlier versions wrote: every later version reads them, or says which one does.
//!
//! `fixtures/states/<version>` holds the objects of small lakes with their states, as that version
//! wrote them to an S3 bucket, and the pipelines they are of. Their raw files are the fixtures'.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Database, Lab, Place, Program, environment_of};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// All files below a folder, by their paths relative to it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, top: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, top, found);
            } else {
                let name = path.strip_prefix(top).expect("below").to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

/// Writes a version's lakes to the S3 server, where they were: tables name their URLs.
fn restore(version: &Path) -> Lab {
    let lab = Lab::builder().place(Place::S3).build();
    let lab = Lab { base: format!("s3://lab/states/{}", name_of(version)), ..lab };
    let mut objects = files(&version.join("objects"));
    for raw in ["cust_loyalty", "bad"] {
        let raw_files = files(&Path::new(FIXTURES).join("raw").join(raw)).into_iter();
        objects.extend(raw_files.map(|(path, bytes)| (format!("raw/{raw}/{path}"), bytes)));
    }
    lab.put_all(objects.into_iter().map(|(path, bytes)| (path, bytes.into())).collect());
    lab
}

fn name_of(folder: &Path) -> String {
    folder.file_name().expect("a name").to_string_lossy().into_owned()
}

/// What a command answers; it must succeed.
#[track_caller]
fn answer(command: &str, pipeline: &Path, arguments: &[&str]) -> Value {
    let program = Program::glueless()
        .envs(environment_of("s3://lab"))
        .args(["--quiet", command])
        .arg(pipeline)
        .args(["--output", "json"])
        .args(arguments);
    program.succeed().json()
}

/// Loads the curated table into the table `loaded`; returns the follower's report.
#[track_caller]
fn load(pipeline: &Path, database: &Database) -> Value {
    let program = Program::glueless()
        .envs(environment_of("s3://lab"))
        .envs([("WAREHOUSE_URL", database.url())])
        .args(["--quiet", "load"])
        .arg(pipeline)
        .args(["--output", "json", "--set", "load.url_env=WAREHOUSE_URL"])
        .args(["--set", "load.table=loaded"]);
    program.succeed().json()["followers"][0].clone()
}

#[test]
fn the_state_of_every_earlier_version_is_read_run_onto_and_verified() {
    let mut versions: Vec<PathBuf> = fs::read_dir(Path::new(FIXTURES).join("states"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        let lab = restore(&version);
        let pipelines = version.join("pipelines");
        for name in ["latest", "by_day"] {
            let pipeline = pipelines.join(name);
            let before = answer("runs", &pipeline, &[]);
            assert_eq!(before["runs"].as_array().expect("runs").len(), 8, "{before}");
            assert!(answer("verify", &pipeline, &[])["is_equal"] == true);
            let database = (name == "latest").then(Database::new);
            if let Some(database) = &database {
                assert_eq!(load(&pipeline, database)["from_commit"], Value::Null);
            }
            let window = ["--start-date", "2019-12-15", "--end-date", "2019-12-16"];
            let report = answer("run", &pipeline, &window);
            assert_eq!(report["files"], 2, "{report}");
            if let Some(database) = &database {
                // Its versions do not say which commit accepted them.
                assert!(load(&pipeline, database)["from_commit"].is_number());
                let mut published = lab.lines("lake/latest", ["event_id", "cust_id"]);
                published.sort();
                let rows = "SELECT event_id || ' ' || cust_id FROM loaded";
                let mut rows = database.ask(rows);
                rows.sort();
                assert_eq!(rows, published);
            }
            let verified = answer("verify", &pipeline, &[]);
            assert!(verified["is_equal"] == true, "{verified}");
            let explained = answer("explain-key", &pipeline, &["Cust105"]);
            assert_eq!(explained["changes"].as_array().expect("changes").len(), 5, "{explained}");
        }
        let expected = fs::read_to_string(Path::new(FIXTURES).join("expected/curated_latest.csv"))
            .expect("a file");
        let mut ids: Vec<&str> =
            expected.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
        ids.sort_unstable();
        assert_eq!(lab.lines("lake/latest", ["event_id"]), ids);

        // An input without a fingerprint gets one when it is read.
        let latest = pipelines.join("latest");
        let file = |day: &str| {
            let files = lab.list_all("raw/cust_loyalty").into_iter();
            let path = files.into_iter().find(|path| path.contains(&format!("{day}-")));
            format!("raw/cust_loyalty/{}", path.expect("a file"))
        };
        let window = |day: &str, end: &str| {
            let arguments = ["--start-date", day, "--end-date", end, "--output", "json"];
            let program = Program::glueless().envs(environment_of("s3://lab"));
            program.args(["--quiet", "run"]).arg(&latest).args(arguments).run()
        };
        lab.put_in_parts(&file("20191215"), lab.get(&file("20191215")));
        assert_eq!(window("2019-12-15", "2019-12-16").code, 0);
        let unread = lab.get(&file("20191213"));
        lab.put_in_parts(&file("20191213"), unread.clone());
        assert_eq!(window("2019-12-13", "2019-12-14").code, 65);
        lab.put(&file("20191213"), unread.clone());
        assert_eq!(window("2019-12-13", "2019-12-14").code, 0);
        lab.put_in_parts(&file("20191213"), unread);
        assert_eq!(window("2019-12-13", "2019-12-14").code, 0);

        let quarantine = pipelines.join("quarantine");
        let report = answer("catch-up", &quarantine, &[]);
        assert_eq!(report["files_in_quarantine"], 2, "{report}");
        assert_eq!(lab.lines("lake/quarantine", ["id", "v"]), ["1 1"]);
        assert!(answer("verify", &quarantine, &[])["is_equal"] == true);
        answer("rebuild", &pipelines.join("latest"), &[]);
        assert_eq!(lab.lines("lake/latest", ["event_id"]), ids);
    }
}
