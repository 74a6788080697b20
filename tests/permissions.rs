//! Rights on S3: the policies in the documents are enough for what they are for, and `doctor` says what is missing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Output, Program, file_of_rows, python};

/// A server that checks rights, with two buckets: `landing` has raw files, `lake` is empty.
struct Server {
    folder: TempDir,
    endpoint: String,
    /// Key and secret of each user.
    keys: BTreeMap<String, (String, String)>,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const PIPELINE: &str = r#"
name = "orders"
key = ["id"]
[raw]
url = "s3://landing/raw/orders"
window_by = "name"
order_by = ["ts"]
[curated]
url = "s3://lake/orders"
partition_by = ["event_dt"]
[state]
url = "s3://lake/state/orders"
"#;

impl Server {
    fn start(policies: &BTreeMap<&str, Value>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["sql", "buckets/landing/raw/orders", "buckets/lake"] {
            std::fs::create_dir_all(at(name)).expect("a folder");
        }
        std::fs::write(at("sql/pipeline.toml"), PIPELINE).expect("written");
        std::fs::write(at("sql/curated.sql"), "SELECT id, cat, event_dt FROM latest")
            .expect("written");
        for day in 1..=3 {
            let rows = (0..5).map(|id| {
                let time = format!("2020-01-{day:02} 10:00:{id:02}");
                ["U".to_string(), id.to_string(), format!("c{day}"), time]
            });
            let file = file_of_rows(&["Op", "id", "cat", "ts"], &rows.collect::<Vec<_>>());
            let name = format!("buckets/landing/raw/orders/202001{day:02}-100000000.parquet");
            std::fs::write(at(&name), file).expect("written");
        }
        std::fs::write(at("policies.json"), json!(policies).to_string()).expect("written");
        let mut process = Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3_server.py"))
            .args([at("buckets"), at("policies.json")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(process.stdout.take().expect("its stdout")).lines();
        let mut next = || lines.next().expect("a line").expect("a line");
        let endpoint = format!("http://127.0.0.1:{}", next());
        let key = |line: String| {
            let parts: Vec<String> = line.split(' ').map(String::from).collect();
            let [user, key, secret] = <[String; 3]>::try_from(parts).expect("three parts");
            (user, (key, secret))
        };
        let keys = policies.iter().map(|_| key(next())).collect();
        Server { folder, endpoint, keys, process }
    }

    /// Runs a command as a user.
    fn run(&self, user: &str, arguments: &[&str]) -> Output {
        let (key, secret) = &self.keys[user];
        let environment = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
        ];
        let (command, rest) = arguments.split_first().expect("a command");
        let program = Program::glueless().envs(environment).arg(command);
        program.arg(self.folder.path().join("sql")).args(rest.iter().copied()).run()
    }
}

/// The policies in the documents, by the headings that they follow. The server does not know their conditions, and looks at the
/// bucket when it decides whether objects can be deleted.
fn documented() -> BTreeMap<String, Value> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/permissions.md"));
    let text = text.expect("the document");
    let (mut heading, mut found) = (String::new(), BTreeMap::new());
    let mut blocks = text.split("```");
    while let Some(prose) = blocks.next() {
        let last = prose.lines().filter_map(|line| line.strip_prefix("## ")).next_back();
        heading = last.map_or(heading, String::from);
        if let Some(policy) = blocks.next().and_then(|block| block.strip_prefix("json\n")) {
            let mut policy: Value = serde_json::from_str(policy).expect("JSON");
            for statement in policy["Statement"].as_array_mut().expect("a list") {
                statement.as_object_mut().expect("an object").remove("Condition");
                if statement["Action"].to_string().contains("DeleteObject") {
                    let resources = statement["Resource"].as_array_mut().expect("a list");
                    resources.push("arn:aws:s3:::lake".into());
                }
            }
            found.insert(heading.clone(), policy);
        }
    }
    found
}

/// A statement that grants nothing here.
fn nothing() -> Value {
    json!({"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::elsewhere/*"]})
}

/// A policy without an action.
fn without(policy: &Value, action: &str, resource: &str) -> Value {
    let mut policy = policy.clone();
    for statement in policy["Statement"].as_array_mut().expect("a list") {
        let is_of = statement["Resource"].to_string().contains(resource);
        let actions = statement["Action"].as_array_mut().expect("a list");
        actions.retain(|it| !(is_of && it == action));
        if actions.is_empty() {
            *statement = nothing();
        }
    }
    policy
}

const DATES: [&str; 4] = ["--start-date", "2020-01-01", "--end-date", "2020-01-03"];

fn with<'a>(command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    std::iter::once(command).chain(rest.iter().copied()).collect()
}

/// The findings of `doctor` that are no `ok`: the check, its level and its message.
fn findings(output: &Output) -> Vec<[String; 3]> {
    let found = output.json();
    let found =
        found["findings"].as_array().expect("findings").iter().filter(|one| one["level"] != "ok");
    let text = |value: &Value| value.as_str().expect("a text").to_string();
    found.map(|one| [text(&one["check"]), text(&one["level"]), text(&one["message"])]).collect()
}

#[test]
fn the_policies_of_the_documents_are_enough() {
    let documented = documented();
    let (run, ask) = (&documented["Run pipelines"], &documented["Ask questions"]);
    let landing = without(run, "s3:ListBucket", "landing");
    let policies: BTreeMap<&str, Value> = [
        ("run", run.clone()),
        ("ask", ask.clone()),
        ("no-list", landing),
        ("no-read", without(run, "s3:GetObject", "landing/")),
        ("no-write", without(run, "s3:PutObject", "lake/")),
        ("no-delete", without(run, "s3:DeleteObject", "lake/")),
        ("nothing", json!({"Version": "2012-10-17", "Statement": [nothing()]})),
    ]
    .into();
    let server = Server::start(&policies);
    let first = server.run("run", &["doctor"]);
    assert_eq!((first.code, findings(&first)), (0, Vec::new()), "{}", first.stdout);
    for arguments in [
        with("run", &DATES),
        with("backfill", &["--start-date", "2020-01-01", "--end-date", "2020-01-04", "--redo"]),
        with("catch-up", &[]),
        with("rebuild", &[]),
        with("doctor", &[]),
        with("verify", &[]),
    ] {
        let output = server.run("run", &arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {}{}", output.stdout, output.stderr);
    }
    for arguments in [
        with("plan", &DATES),
        with("runs", &[]),
        with("verify", &[]),
        with("explain-key", &["3"]),
        with("ddl", &["--dialect", "duckdb"]),
    ] {
        let output = server.run("ask", &arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
    }
    assert_eq!(server.run("ask", &with("rebuild", &[])).code, 69);

    // What is missing is found before a run stumbles over it.
    for (user, check, doing) in [
        ("no-list", "raw", "cannot list s3://landing/raw/orders"),
        ("no-read", "raw", "cannot read s3://landing/raw/orders/"),
        ("no-write", "curated", "cannot write s3://lake/orders/"),
        ("no-delete", "state", "cannot remove s3://lake/state/orders/"),
        ("ask", "state", "cannot write s3://lake/state/orders/"),
        ("nothing", "tables", "s3://lake/state/orders"),
    ] {
        let output = server.run(user, &["doctor"]);
        assert_eq!(output.code, 1, "{user}: {}", output.stderr);
        let found = findings(&output);
        let is_found = |[of, level, message]: &[String; 3]| {
            of == check && level == "error" && message.contains(doing)
        };
        assert!(found.iter().any(is_found), "{user}: {found:?}");
    }
}
