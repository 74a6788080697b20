//! `init`: a project for an unknown folder of raw files, which runs as it is, or asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{
    Database, Lab, Output, Place, Program, Row, environment_of, file_of_rows, glueless, gzip,
};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The names of columns in the guide, and here.
type Renamed = &'static [(&'static str, &'static str)];

/// The guide's fixtures: the folder of the table, the key `raw.url` of the guide if it is another one, and the columns of its
/// table that `init` calls otherwise, because the files do not name them.
const GUIDE: [(&str, &str, Renamed); 18] = [
    ("every_type", "", &[]),
    ("no_commit_time", "", &[]),
    ("full_and_cdc/shop/orders", "full_and_cdc/full", &[]),
    ("csv", "", &[("id", "column_1"), ("price", "column_2"), ("note", "column_3")]),
    ("csv_header", "", &[]),
    ("csv_dms", "", &[("id", "column_2"), ("name", "column_3")]),
    ("transactions/ins/policy", "", &[("id", "column_2"), ("level", "column_3")]),
    ("json", "", &[]),
    ("debezium", "", &[]),
    ("no_key", "", &[]),
    ("schema_changes", "", &[]),
    ("sequence", "", &[]),
    ("key_moves", "", &[]),
    ("local_times", "", &[]),
    ("loaded_again", "", &[]),
    ("qlik", "", &[]),
    ("sql_server", "", &[]),
    ("flat", "", &[]),
];

/// A lab whose folder has a project, and the command that writes it.
fn init(lab: &Lab, url: &str) -> Program {
    Program::glueless()
        .envs(environment_of(&lab.base))
        .args(["init", url, "--out"])
        .arg(lab.folder.path().join("sql"))
        .arg("--lake")
        .arg(format!("{}/lake", lab.base))
}

fn run(lab: &Lab) -> Program {
    Program::glueless()
        .envs(environment_of(&lab.base))
        .arg("run")
        .arg(lab.folder.path().join("sql"))
        .args(["--start-date", "2019-01-01", "--end-date", "2100-01-01"])
}

/// The exit codes of a command over several pipelines.
fn exit_codes(output: &Output) -> BTreeMap<String, u64> {
    let results = output.json();
    let results = results["results"].as_array().expect("results").iter();
    let code = |result: &Value| {
        let name = result["pipeline"].as_str().expect("a name").to_string();
        (name, result["exit_code"].as_u64().expect("a code"))
    };
    results.map(code).collect()
}

/// What was written of a table.
fn table<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut tables = report["tables"].as_array().expect("tables").iter();
    tables
        .find(|table| table["table"] == name)
        .unwrap_or_else(|| panic!("no table {name}: {report}"))
}

/// A setting of a table: its value as in the file, and how sure it is.
fn setting(report: &Value, name: &str, key: &str) -> (String, String) {
    let settings = table(report, name)["settings"].as_array().expect("settings").iter();
    let found = settings.into_iter().find(|setting| setting["key"] == key);
    let found = found.unwrap_or_else(|| panic!("{name} has no {key}: {report}"));
    (found["value"].to_string(), found["certainty"].as_str().expect("text").into())
}

/// Every file in a folder with its text.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), std::fs::read_to_string(&path).expect("text"));
        }
    }
    found
}

/// The rows that the guide shows for a fixture: the columns, and their values.
fn of_guide(fixture: &str) -> Vec<Row> {
    let guide = std::fs::read_to_string(format!("{REPOSITORY}/docs/raw.md")).expect("the guide");
    let section = guide
        .split("\n## ")
        .flat_map(|section| section.split("\n### "))
        .find(|section| {
            section.contains("```sql") && section.contains(&format!("fixtures/raw/{fixture}\""))
        })
        .unwrap_or_else(|| panic!("{fixture} is not in the guide"));
    let (_, below) = section.rsplit_once("```\n").expect("a query");
    let lines = below
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let mut lines = lines.map(cells);
    let columns = lines.next().expect("a header");
    let row = |values: Vec<String>| {
        columns.iter().cloned().zip(values).filter(|(_, value)| !value.is_empty()).collect()
    };
    lines.filter(|line| line[0] != "---").map(row).collect()
}

#[test]
fn every_fixture_gets_a_pipeline_that_gives_the_rows_of_the_guide() {
    let lab = Lab::new(Place::Local, "", &[]);
    let report = init(&lab, &format!("{REPOSITORY}/fixtures/raw")).succeed().json();
    let codes = exit_codes(&run(&lab).run());
    for (name, code) in &codes {
        // Its rows cannot all be read.
        assert_eq!(*code, if name == "bad" { 2 } else { 0 }, "{name}");
    }
    assert_eq!(codes.len(), report["tables"].as_array().expect("tables").len());
    assert_eq!(lab.table("lake/cust_loyalty").len(), 12, "live customers");
    for (folder, of_guide_at, renamed) in GUIDE {
        let mut expected = of_guide(if of_guide_at.is_empty() { folder } else { of_guide_at });
        let rows = lab.table(&format!("lake/{}", folder.replace('/', "__")));
        let new_name = |name: &str| {
            let known = renamed.iter().find(|(before, _)| *before == name);
            known.map_or(name, |(_, after)| *after).to_string()
        };
        // The columns that both have: queries of the guide make others, and the day depends on the commit time.
        let has = |name: &str| rows.iter().any(|row| row.contains_key(&new_name(name)));
        let shared: BTreeSet<String> =
            expected.iter().flat_map(|row| row.keys().cloned()).filter(|name| has(name)).collect();
        assert!(!shared.is_empty(), "{folder}: {rows:?}");
        let plain = |text: &str| {
            // As numbers, whatever their types.
            let text = text.replace(['\n', 'T'], " ").trim_end_matches('Z').to_string();
            text.parse::<f64>().map_or(text.clone(), |number| number.to_string())
        };
        let line = |row: &Row, new: bool| -> Vec<String> {
            let value = |name: &String| {
                let name = if new { new_name(name) } else { name.clone() };
                row.get(&name).map_or(String::new(), |text| plain(text))
            };
            shared.iter().filter(|name| *name != "event_dt").map(value).collect()
        };
        // A table with deleted rows is another setting.
        expected.retain(|row| row.get("_deleted").is_none_or(|deleted| deleted == "false"));
        let mut expected: Vec<_> = expected.iter().map(|row| line(row, false)).collect();
        let mut rows: Vec<_> = rows.iter().map(|row| line(row, true)).collect();
        expected.sort();
        rows.sort();
        assert_eq!(rows, expected, "{folder} by {shared:?}");
    }
}

/// The rows of a table of a database: a full load and changes of two days, of which key 1 is updated and key 2 deleted. Their
/// `v` is the number of the table.
fn load_and_changes(number: usize) -> [Vec<[String; 4]>; 2] {
    let row = |op: &str, id: &str, v: usize, ts: &str| {
        [op.to_string(), id.into(), v.to_string(), ts.into()]
    };
    let load = (1..=30)
        .map(|id| row("I", &id.to_string(), number, "2024-01-01 22:00:00.000000"))
        .collect();
    let changes = vec![
        row("U", "1", number + 1000, "2024-01-02 10:00:00.000000"),
        row("D", "2", number, "2024-01-02 10:00:01.000000"),
        row("I", "31", number, "2024-01-02 10:00:02.000000"),
    ];
    [load, changes]
}

/// Writes 50 tables in three layouts: the folder of DMS, date folders of compressed CSV, and loads beside changes.
fn put_tables(lab: &Lab, tables: std::ops::Range<usize>) {
    let csv = |rows: &[[String; 4]], has_op: bool| {
        let line = |row: &[String; 4]| {
            let from = usize::from(!has_op);
            let fields = [&row[0], &row[3], &row[1], &row[2]];
            fields[from..].iter().map(|field| field.as_str()).collect::<Vec<_>>().join(",") + "\n"
        };
        rows.iter().map(line).collect::<String>()
    };
    let mut objects = Vec::new();
    for number in tables {
        let [load, changes] = load_and_changes(number);
        let parquet =
            |rows: &[[String; 4]]| file_of_rows(&["Op", "order_id", "v", "transact_ts"], rows);
        match number % 3 {
            0 => {
                objects.push((
                    format!("raw/shop/orders_{number}/LOAD00000001.parquet"),
                    parquet(&load).into(),
                ));
                objects.push((
                    format!("raw/shop/orders_{number}/20240102-101500123.parquet"),
                    parquet(&changes).into(),
                ));
            }
            1 => {
                let folder = format!("raw/crm/people_{number}");
                objects.push((
                    format!("{folder}/LOAD00000001.csv.gz"),
                    gzip(&csv(&load, false)).into(),
                ));
                objects.push((
                    format!("{folder}/2024/01/02/20240102-101500123.csv.gz"),
                    gzip(&csv(&changes, true)).into(),
                ));
            }
            _ => {
                let folder = format!("raw/erp/items_{number}");
                objects.push((format!("{folder}/full/part-0.parquet"), parquet(&load).into()));
                objects.push((
                    format!("{folder}/cdc/dt=2024-01-02/part-0.parquet"),
                    parquet(&changes).into(),
                ));
            }
        }
    }
    lab.put_all(objects);
}

/// Checks a table that was made from [`put_tables`].
fn assert_folded(lab: &Lab, number: usize) {
    let (name, key, value) = match number % 3 {
        0 => (format!("shop/orders_{number}"), "order_id", "v"),
        1 => (format!("crm/people_{number}"), "column_2", "column_3"),
        _ => (format!("erp/items_{number}"), "order_id", "v"),
    };
    let rows = lab.table(&format!("lake/{name}"));
    let found: BTreeMap<String, String> =
        rows.iter().map(|row| (row[key].clone(), row[value].clone())).collect();
    let live = (1..=31)
        .filter(|id| *id != 2)
        .map(|id| (id.to_string(), if id == 1 { number + 1000 } else { number }.to_string()));
    assert_eq!(found, live.collect(), "{name}");
    assert_eq!(rows.len(), 30, "{name}");
}

#[test]
fn a_bucket_of_fifty_tables_in_three_layouts_is_folded_by_one_command() {
    let lab = Lab::new(Place::S3, "", &[]);
    put_tables(&lab, 0..50);
    let before = lab.list_all("raw");
    let report = init(&lab, &format!("{}/raw", lab.base)).succeed().json();
    assert_eq!(report["tables"].as_array().expect("tables").len(), 50);
    assert_eq!(lab.list_all("raw"), before, "it only reads");
    assert_eq!(
        setting(&report, "shop/orders_0", "key"),
        (r#"["order_id"]"#.into(), "likely".into())
    );
    assert_eq!(
        setting(&report, "erp/items_2", "raw.window_by"),
        (r#""path""#.into(), "sure".into())
    );
    assert_eq!(setting(&report, "crm/people_1", "raw.columns.commit_ts").0, r#""TIMESTAMP(6)""#);
    let codes =
        exit_codes(&run(&lab).args(["--jobs", "4", "--set", "limits.memory=1GB"]).succeed());
    assert_eq!(codes.len(), 50);
    (0..50).for_each(|number| assert_folded(&lab, number));
}

#[test]
fn a_second_time_adds_new_tables_and_leaves_what_was_edited() {
    let lab = Lab::new(Place::Local, "", &[]);
    put_tables(&lab, 0..3);
    let url = format!("{}/raw", lab.base);
    init(&lab, &url).succeed();
    let sql = lab.folder.path().join("sql");
    let edited = sql.join("shop/orders_0/pipeline.toml");
    let text = std::fs::read_to_string(&edited).expect("written") + "\n# mine\n";
    std::fs::write(&edited, &text).expect("edited");
    // One that has moved is known by its raw folder.
    std::fs::rename(sql.join("erp/items_2"), sql.join("erp/things")).expect("moved");
    let things = sql.join("erp/things/pipeline.toml");
    let moved = std::fs::read_to_string(&things).expect("text");
    let moved = format!("{moved}\n[curated]\nurl = '{0}/lake/erp/items_2'\n", lab.base)
        .replace("[raw]", &format!("[raw]\nurl = '{url}/erp/items_2'"));
    std::fs::write(&things, moved).expect("edited");
    let before = files(&sql);
    put_tables(&lab, 3..6);
    let report = init(&lab, &url).succeed().json();
    let after = files(&sql);
    for (path, text) in &before {
        assert_eq!(after.get(path), Some(text), "{}", path.display());
    }
    let new: Vec<String> = after
        .keys()
        .filter(|path| !before.contains_key(*path))
        .map(|path| path.strip_prefix(&sql).expect("below").display().to_string())
        .collect();
    assert_eq!(
        new,
        ["crm/people_4/pipeline.toml", "erp/items_5/pipeline.toml", "shop/orders_3/pipeline.toml"]
    );
    assert_eq!(table(&report, "erp/items_2")["is_new"], false);
    assert_eq!(report["project_is_new"], false);
    let codes = exit_codes(&run(&lab).succeed());
    assert_eq!(codes.len(), 6);
    (0..6).for_each(|number| assert_folded(&lab, number));
}

#[test]
fn a_new_table_that_differs_from_its_project_says_so() {
    let lab = Lab::new(Place::Local, "", &[]);
    let orders = |name: &str, columns: &[&str], rows: &[&[&str]]| {
        lab.put(
            &format!("raw/shop/{name}/20240102-101500123.parquet"),
            file_of_rows(columns, rows),
        );
    };
    for name in ["a", "b"] {
        orders(
            name,
            &["Op", "id", "commit_ts"],
            &[&["I", "1", "2024-01-02 10:00:00"], &["I", "2", "2024-01-02 10:00:00"]],
        );
    }
    let url = format!("{}/raw", lab.base);
    init(&lab, &url).succeed();
    let project =
        std::fs::read_to_string(lab.folder.path().join("sql/glueless.toml")).expect("written");
    assert!(
        project.contains("order_by = [\"commit_ts\"]") && project.contains("window_by = \"name\""),
        "{project}"
    );
    // It has no commit times.
    orders("c", &["Op", "id", "w"], &[&["I", "1", "x"], &["U", "1", "y"]]);
    init(&lab, &url).succeed();
    let text = std::fs::read_to_string(lab.folder.path().join("sql/shop/c/pipeline.toml"))
        .expect("written");
    assert!(text.contains("order_by = []"), "{text}");
    run(&lab).succeed();
    assert_eq!(lab.table("lake/shop/c")[0]["w"], "y");
}

#[test]
fn what_is_not_known_is_asked_and_does_not_run() {
    let lab = Lab::new(Place::Local, "", &[]);
    let rows = [["I", "a", "1"], ["U", "a", "2"], ["U", "b", "3"]];
    lab.put("raw/shop/moods/20240102-101500123.parquet", file_of_rows(&["Op", "mood", "n"], &rows));
    let report = init(&lab, &format!("{}/raw", lab.base)).succeed().json();
    assert_eq!(setting(&report, "shop/moods", "key"), (r#"["???"]"#.into(), "asked".into()));
    let refused = run(&lab).run();
    assert_eq!(exit_codes(&refused)["shop__moods"], 2);
    assert!(
        refused.stdout.contains("`key` is a question that is not answered"),
        "{}",
        refused.stdout
    );
    assert_eq!(lab.list_all("lake"), Vec::<String>::new());
    // An answer on the command line is one.
    run(&lab).set(&[r#"key=["mood"]"#]).succeed();
    assert_eq!(lab.table("lake/shop/moods").len(), 2);
}

#[test]
fn dated_folders_without_operations_are_asked_about() {
    let lab = Lab::new(Place::Local, "", &[]);
    let put = |day: u32, ids: &[&str]| {
        let rows: Vec<[&str; 2]> = ids.iter().map(|id| [*id, "x"]).collect();
        lab.put(
            &format!("raw/exports/people/2024-01-0{day}/part-0.parquet"),
            file_of_rows(&["person_id", "w"], &rows),
        );
    };
    put(1, &["1", "2", "3"]);
    put(2, &["1", "3", "4"]);
    let report = init(&lab, &format!("{}/raw", lab.base)).succeed().json();
    assert_eq!(setting(&report, "exports/people", "raw.kind").1, "asked");
    let file = lab.folder.path().join("sql/exports/people/pipeline.toml");
    let text = std::fs::read_to_string(&file).expect("written");
    std::fs::write(&file, text.replace("kind = \"???\"", "kind = \"snapshot\"")).expect("answered");
    run(&lab).set(&["raw.full_load_settle=0s"]).succeed();
    let ids: BTreeSet<String> =
        lab.table("lake/exports/people").iter().map(|row| row["person_id"].clone()).collect();
    assert_eq!(ids, ["1", "3", "4"].map(String::from).into());
}

#[test]
fn the_catalog_of_the_source_says_keys_and_columns() {
    let database = Database::new();
    database.ask(
        "CREATE TABLE line (ord bigint, pos integer, note text, at timestamp, PRIMARY KEY (ord, pos));
         CREATE TABLE log (what text, n integer)",
    );
    let lab = Lab::new(Place::Local, "", &[]);
    lab.put(
        "raw/public/line/LOAD00000001.csv",
        "1,1,a,2024-01-01 10:00:00,2024-01-01 22:00:00.000000\n",
    );
    let changes = "U,1,1,b,2024-01-01 10:00:00,2024-01-02 10:00:00.000000\nI,1,2,007,,2024-01-02 10:00:01.000000\n";
    lab.put("raw/public/line/20240102-101500123.csv", changes);
    lab.put(
        "raw/public/log/20240102-101500123.parquet",
        file_of_rows(&["Op", "what", "n"], &[["I", "x", "1"], ["I", "x", "1"]]),
    );
    let url = format!("{}/raw", lab.base);
    let with_source = |variable: &str| {
        init(&lab, &url).args(["--source-url-env", variable]).envs([("SOURCE", database.url())])
    };
    let report = with_source("SOURCE").succeed().json();
    assert_eq!(setting(&report, "public/line", "key"), (r#"["ord","pos"]"#.into(), "sure".into()));
    assert_eq!(setting(&report, "public/line", "raw.columns.pos").0, r#""INTEGER""#);
    assert_eq!(setting(&report, "public/log", "key"), ("[]".into(), "likely".into()));
    run(&lab).succeed();
    let rows = lab.lines("lake/public/line", ["ord", "pos", "note"]);
    assert_eq!(rows, ["1 1 b", "1 2 007"]);
    assert_eq!(lab.table("lake/public/log").len(), 2);
    let refused = with_source("OTHER").run();
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("the environment has no variable OTHER"), "{}", refused.stderr);
}

#[test]
fn personal_columns_are_proposed_and_no_value_is_shown() {
    let lab = Lab::new(Place::Local, "", &[]);
    let columns = ["Op", "id", "email", "pay", "born"];
    let rows: Vec<[String; 5]> = (1..=6)
        .map(|id| {
            [
                "I".into(),
                id.to_string(),
                format!("classified{id}@example.org"),
                "4111111111111111".into(),
                "classified".into(),
            ]
        })
        .collect();
    lab.put("raw/crm/people/LOAD00000001.parquet", file_of_rows(&columns, &rows));
    let program = init(&lab, &format!("{}/raw", lab.base)).args(["-vvv"]);
    let output = program.succeed();
    let report = output.json();
    let found: Vec<String> = table(&report, "crm/people")["personal"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|personal| {
            format!(
                "{} {}",
                personal["column"].as_str().expect("text"),
                personal["mask"].as_str().expect("text")
            )
        })
        .collect();
    assert_eq!(found, ["email hmac", "pay last4"]);
    let written: String = files(&lab.folder.path().join("sql")).into_values().collect();
    assert!(
        written.contains("# email = \"hmac\"") && written.contains("# pay = \"last4\""),
        "{written}"
    );
    for text in [&output.stdout, &output.stderr, &written] {
        assert!(!text.contains("classified") && !text.contains("4111"), "{text}");
    }
}

#[test]
fn what_is_no_folder_of_tables_is_refused() {
    let lab = Lab::new(Place::Local, "", &[]);
    let refused = |url: &str, more: &[&str]| {
        let output = init(&lab, url).args(more).run();
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(!lab.folder.path().join("sql").exists(), "nothing is written");
        output.stderr
    };
    assert!(refused(&format!("{}/none", lab.base), &[]).contains("is not an existing folder"));
    lab.put("raw/notes.txt", "x");
    let message = refused(&format!("{}/raw", lab.base), &[]);
    assert!(
        message.contains("has no raw files of a table") && message.contains("notes.txt"),
        "{message}"
    );
    lab.put("raw/lake/_delta_log/0.json", "{}");
    lab.put("raw/lake/part-0.parquet", file_of_rows(&["id"], &[["1"]]));
    assert!(
        refused(&format!("{}/raw", lab.base), &[]).contains("it is a Delta table, not changes")
    );
    lab.put("lake/orders/LOAD00000001.parquet", file_of_rows(&["id"], &[["1"], ["2"]]));
    assert!(refused(&format!("{}/lake/orders", lab.base), &[]).contains("overlap"));
}

#[test]
fn without_a_word_about_the_lake_it_is_beside_the_project() {
    let lab = Lab::new(Place::Local, "", &[]);
    put_tables(&lab, 0..1);
    let line = format!("cd {} && {} init raw", lab.folder.path().display(), glueless().display());
    Program::shell(&line).succeed();
    let project =
        std::fs::read_to_string(lab.folder.path().join("sql/glueless.toml")).expect("written");
    assert!(project.contains("url = \"../raw/{schema}/{table}\""), "{project}");
    assert!(project.contains("url = \"../lake/{schema}/{table}\""), "{project}");
    let line = format!(
        "cd {} && {} run sql --start-date 2024-01-01 --end-date 2024-02-01",
        lab.folder.path().display(),
        glueless().display()
    );
    Program::shell(&line).succeed();
    assert_folded(&lab, 0);
}
