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

/// Answers a question in the file of a pipeline.
fn answer(lab: &Lab, pipeline: &str, name: &str, value: &str) {
    let file = lab.folder.path().join("sql").join(pipeline).join("pipeline.toml");
    let text = std::fs::read_to_string(&file).expect("written");
    let asked = [format!("{name} = \"???\""), format!("{name} = [\"???\"]")];
    let asked = asked.iter().find(|asked| text.contains(*asked));
    let asked = asked.unwrap_or_else(|| panic!("{name} is not asked: {text}"));
    std::fs::write(&file, text.replace(asked, &format!("{name} = {value}"))).expect("answered");
}

/// A lab with these raw files, of texts or of Parquet, and what `init` says of them.
fn found(files: &[(&str, &str)]) -> (Lab, Value) {
    let lab = Lab::new(Place::Local, "", &[]);
    for (path, text) in files {
        let rows = || text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let bytes = if path.ends_with(".parquet") {
            let columns = rows().next().expect("a header");
            file_of_rows(&columns, &rows().skip(1).collect::<Vec<_>>())
        } else {
            text.as_bytes().to_vec()
        };
        lab.put(&format!("raw/{path}"), bytes);
    }
    let report = init(&lab, &format!("{}/raw", lab.base)).succeed().json();
    (lab, report)
}

/// Whether a table has a setting.
fn has(report: &Value, name: &str, key: &str) -> bool {
    let mut settings = table(report, name)["settings"].as_array().expect("settings").iter();
    settings.any(|setting| setting["key"] == key)
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
    // Whether these loads are parts of one is asked.
    answer(&lab, "loaded_again", "full_load_at", "\"name\"");
    let codes = exit_codes(&run(&lab).run());
    for (name, code) in &codes {
        // A null in its only insert leaves the key a question.
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
    answer(&lab, "exports/people", "kind", "\"snapshot\"");
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

#[test]
fn loads_of_one_day_are_parts_of_one() {
    let (lab, report) = found(&[
        ("orders/full/20240101-101500123.parquet", "order_id,w\n1,a\n2,b"),
        ("orders/full/20240101-101507456.parquet", "order_id,w\n3,c"),
        ("orders/cdc/20240102-101500123.parquet", "Op,order_id,w,ts\nU,1,x,2024-01-02 10:00:00"),
    ]);
    assert!(!has(&report, "orders", "raw.full_load_at"));
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/orders", ["order_id", "w"]), ["1 x", "2 b", "3 c"]);
}

#[test]
fn a_location_in_a_folder_of_loads_has_changes_too() {
    let lab = Lab::new(Place::Local, "", &[]);
    let put = |path: &str, text: &[[&str; 3]], columns: &[&str]| {
        lab.put(&format!("raw/full/export/{path}"), file_of_rows(columns, text));
    };
    put("full/part-0.parquet", &[["1", "a", "-"], ["2", "b", "-"]], &["order_id", "w", "ts"]);
    let changes = [["U", "1", "x"], ["D", "2", "-"]];
    put("cdc/20240102-101500123.parquet", &changes, &["Op", "order_id", "w"]);
    init(&lab, &format!("{}/raw/full/export", lab.base)).succeed();
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/export", ["order_id", "w"]), ["1 x"]);
}

#[test]
fn numbers_of_a_sequence_are_compared_as_numbers() {
    let csv = |from: u32| -> String {
        let rows = (0..3).map(|row| format!("U,{},1,v{}\n", from + row, from + row));
        std::iter::once("Op,change_seq,id,w\n".to_string()).chain(rows).collect()
    };
    let (lab, _) = found(&[
        ("t/20240102-101500123.csv", &csv(9_990)),
        ("t/20240102-101600123.csv", &csv(9_995)),
    ]);
    // Later it grows by a digit.
    lab.put("raw/t/20240102-101700123.csv", csv(9_998).into_bytes());
    // There are only updates of one key.
    answer(&lab, "t", "key", "[\"id\"]");
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/t", ["id", "w"]), ["1 v10000"]);
}

#[test]
fn times_and_values_of_the_application_are_not_those_of_the_tool() {
    // A line number, a price, and what a row is about.
    let lines = "Op,order_id,seq,old_price,price,action\nI,1,5,3,4,B\nI,2,4,4,4,B\nI,3,6,4,4,B";
    let (_, report) = found(&[("order_lines/20240102-101500123.parquet", lines)]);
    assert!(!has(&report, "order_lines", "raw.order_by"), "{report}");
    assert!(!has(&report, "order_lines", "raw.before_image_prefix"));
    assert!(!has(&report, "order_lines", "raw.op"));
    assert_ne!(setting(&report, "order_lines", "key").0, r#"["price"]"#);
    // Without another column of operations, it is asked.
    let log = "action,user_id\ncreate,1\ndelete,1\nupdate,2";
    let (lab, report) = found(&[("audit/20240102-101500123.parquet", log)]);
    assert_eq!(setting(&report, "audit", "raw.op").1, "asked");
    assert_eq!(exit_codes(&run(&lab).args(["--jobs", "1"]).run())["audit"], 2);
}

#[test]
fn the_first_line_of_csv_files_is_a_row_a_header_or_asked() {
    let countries = ("countries/LOAD00000001.csv", "CH,Switzerland\nCI,\"Cote d'Ivoire\"\n");
    let (lab, report) = found(&[countries]);
    assert_eq!(setting(&report, "countries", "raw.csv_header").1, "asked");
    let text = files(&lab.folder.path().join("sql")).into_values().collect::<String>()
        + &report.to_string();
    assert!(!text.contains("Switzerland"), "{text}");
    let more = ("countries/LOAD00000002.csv", "DE,Germany\n");
    let (_, report) = found(&[countries, more]);
    assert!(!has(&report, "countries", "raw.csv_header"));
    let prices = ("prices/LOAD00000001.csv", "id,price (EUR)\n1,2.50\n2,3.00\n");
    assert_eq!(setting(&found(&[prices]).1, "prices", "raw.csv_header").0, "true");
}

#[test]
fn words_of_operations_and_a_broken_line_are_read() {
    let changes: String = (1..=40).map(|id| format!("insert,{id},a\n")).collect();
    let changes = changes + "delete,1,a\nsomething else\n";
    let (lab, report) = found(&[("t/20240102-101500123.csv", &changes)]);
    assert_eq!(setting(&report, "t", "raw.op_values.delete").0, r#"["delete"]"#);
    assert!(!has(&report, "t", "raw.dialect"));
    assert_eq!(exit_codes(&run(&lab).args(["--jobs", "1"]).run())["t"], 65, "the broken line");
    run(&lab).set(&["raw.on_bad_row=quarantine"]).succeed();
    assert_eq!(lab.table("lake/t").len(), 39);
}

#[test]
fn tasks_of_two_sources_have_their_own_changes() {
    let line = |id: u32| format!("I,policy,ins,2024-01-02 10:00:0{id}.000000,{id},Gold\n");
    let (lab, _) = found(&[
        (
            "src1/ins/policy/LOAD00000001.csv",
            "2024-01-01 23:00:00.000000,1,Basic\n2024-01-01 23:00:00.000000,2,Basic\n",
        ),
        ("src1/cdc/CDC_TXN-20240102101500123.csv", &(line(3) + &line(4))),
        ("src1/ins/claim/LOAD00000001.csv", "2024-01-01 23:00:00.000000,10,1\n"),
        ("src2/cdc/CDC_TXN-20240102101500123.csv", &line(5)),
    ]);
    let project = files(&lab.folder.path().join("sql"));
    let urls = |name: &str| {
        let path = lab.folder.path().join("sql").join(name).join("pipeline.toml");
        project[&path].lines().find(|line| line.starts_with("url")).expect("a URL").to_string()
    };
    assert!(
        urls("src1/ins/policy").contains("src1/cdc") && !urls("src1/ins/policy").contains("src2")
    );
    assert!(
        urls("src1/ins/claim").contains("src1/cdc"),
        "its changes may be in files that were not read"
    );
    assert!(urls("src2/ins/policy").contains("src2/cdc"));
}

#[test]
fn pipelines_that_are_there_keep_their_settings() {
    let lab = Lab::new(Place::Local, "", &[]);
    put_tables(&lab, 0..1);
    let sql = lab.folder.path().join("sql");
    std::fs::create_dir_all(sql.join("mine")).expect("a folder");
    std::fs::write(sql.join("mine/pipeline.toml"), "name = 'mine'\nkey = ['id']\n")
        .expect("written");
    let url = format!("{}/raw", lab.base);
    let refused = init(&lab, &url).run();
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("belongs to no project"), "{}", refused.stderr);
    assert_eq!(files(&sql).len(), 1, "nothing is written");
    // In a project that has nothing, a table gets all that it needs. One that cannot be read stays.
    std::fs::write(sql.join("glueless.toml"), "").expect("written");
    std::fs::create_dir_all(sql.join("broken")).expect("a folder");
    std::fs::write(sql.join("broken/pipeline.toml"), "not TOML").expect("written");
    let report = init(&lab, &url).succeed().json();
    assert_eq!(report["project_is_new"], false);
    let text = std::fs::read_to_string(sql.join("shop/orders_0/pipeline.toml")).expect("written");
    assert!(text.contains("url = \"") && text.contains("[curated]"), "{text}");
}

#[test]
fn two_sources_of_one_table_get_two_pipelines_and_two_tables() {
    let lab = Lab::new(Place::Local, "", &[]);
    let changes = |v: &str| file_of_rows(&["Op", "order_id", "w"], &[["I", "1", v], ["U", "1", v]]);
    lab.put("raw/one/shop/orders/20240102-101500123.parquet", changes("a"));
    lab.put("raw/two/shop/orders/20240102-101500123.parquet", changes("b"));
    for source in ["one", "two"] {
        init(&lab, &format!("{}/raw/{source}", lab.base)).succeed();
    }
    let again = init(&lab, &format!("{}/raw/two", lab.base)).succeed().json();
    assert_eq!(again["tables"][0]["is_new"], false);
    assert!(again["tables"][0]["pipeline"].as_str().expect("a path").ends_with("orders_2"));
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/shop/orders", ["w"]), ["a"]);
    assert_eq!(lab.lines("lake/shop/orders_2", ["w"]), ["b"]);
}

#[test]
fn names_of_any_kind_are_written_so_that_they_can_be_read() {
    let lab = Lab::new(Place::Local, "", &[]);
    let columns = ["Op", "order_id", "it's \"x\"", "a\nb", "email\n"];
    lab.put(
        "raw/shop/100% sure/20240102-101500123.parquet",
        file_of_rows(&columns, &[["I", "1", "a", "b", "c"], ["U", "1", "a", "b", "c"]]),
    );
    lab.put("raw/shop/20240102-101500123.csv.GZ", gzip("I,1,a\nU,1,b\n"));
    let report = init(&lab, &format!("{}/raw", lab.base)).succeed().json();
    assert_eq!(
        report["tables"][0]["pipeline"].as_str().expect("text").rsplit('/').next(),
        Some("100__sure")
    );
    assert_eq!(report["left_out"][0]["folder"], "shop");
    run(&lab).succeed();
    // A folder with a load alone, beside others.
    let (lab, _) = found(&[
        ("shop/full/LOAD00000001.csv", "1,a\n2,b\n"),
        ("shop/orders/LOAD00000001.csv", "1,a\n2,b\n"),
    ]);
    assert_eq!(exit_codes(&run(&lab).run()).len(), 2);
}

#[test]
fn a_source_that_does_not_fit_is_not_believed() {
    let database = Database::new();
    database.ask(
        "CREATE TABLE people (id bigint PRIMARY KEY, v text, created_at timestamp);
         CREATE SCHEMA other; CREATE TABLE other.users (id bigint PRIMARY KEY, n bigint);
         CREATE TABLE clash (commit_ts timestamp, op text, id bigint PRIMARY KEY)",
    );
    let lab = Lab::new(Place::Local, "", &[]);
    let load = |from: u32| {
        (from..from + 3).map(|id| format!("{id},a,2024-01-02 09:00:0{id}\n")).collect::<String>()
    };
    lab.put("raw/public/people/LOAD00000001.csv", load(1).into_bytes());
    let changes = load(4).replace("4,a", "I,4,a").replace("5,a", "U,1,b").replace("6,a", "I,6,a");
    lab.put("raw/public/people/20240102-101500123.csv", changes.into_bytes());
    let users = [["I", "1", "1"], ["I", "1", "2"], ["I", "2", "3"]];
    lab.put("raw/shop/users/20240102-101500123.parquet", file_of_rows(&["Op", "id", "n"], &users));
    let clash = "I,2024-01-02 10:00:00.000000,2019-01-01 00:00:00,x,1\nU,2024-01-02 10:00:01.000000,2019-01-01 00:00:00,y,1\nI,2024-01-02 10:00:02.000000,2018-01-01 00:00:00,z,2\n";
    lab.put("raw/public/clash/20240102-101500123.csv", clash);
    let program = init(&lab, &format!("{}/raw", lab.base)).args(["--source-url-env", "SOURCE"]);
    let report = program.envs([("SOURCE", database.url())]).succeed().json();
    assert!(has(&report, "public/people", "raw.columns.created_at"), "{report}");
    assert!(!has(&report, "public/people", "raw.order_by"));
    assert_eq!(setting(&report, "shop/users", "key").1, "asked", "the rows contradict it");
    assert_eq!(setting(&report, "public/clash", "raw.order_by").0, r#"["_commit_ts"]"#);
    assert_eq!(setting(&report, "public/clash", "raw.op").0, r#""_Op""#);
    answer(&lab, "shop/users", "key", "[\"n\"]");
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/public/clash", ["id", "op"]), ["1 y", "2 z"]);
    assert_eq!(lab.lines("lake/public/people", ["id", "v"]), ["1 b", "2 a", "3 a", "4 a", "6 a"]);
}

#[test]
fn columns_of_folders_are_found_and_asked_about() {
    let changes = "Op,order_id,w\nI,1,a\nU,1,b";
    let (lab, report) = found(&[
        ("orders/tenant=acme/2024/01/02/20240102-101500123.parquet", changes),
        ("orders/tenant=beta/dt=2024-01-02/20240102-101500123.parquet", changes),
    ]);
    assert_eq!(setting(&report, "orders", "raw.path_columns").0, r#"["tenant"]"#);
    assert_eq!(setting(&report, "orders", "key").1, "asked");
    answer(&lab, "orders", "key", "[\"tenant\", \"order_id\"]");
    run(&lab).succeed();
    assert_eq!(lab.lines("lake/orders", ["tenant", "order_id", "w"]), ["acme 1 b", "beta 1 b"]);
}

#[test]
fn a_table_without_a_line_does_not_hold_up_others() {
    let (lab, report) = found(&[
        ("s/empty/LOAD00000001.csv", ""),
        ("s/blank/LOAD00000001.csv", "\n\n"),
        ("s/full/LOAD00000001.csv", "1,a\n2,b\n"),
        ("s/u/LOAD00000001.csv", "id,w\n1,a\n2,b\n"),
        ("s/v/20240102-101500123.json", "[{\"id\": 1}]\n"),
    ]);
    for name in ["s/empty", "s/blank"] {
        assert_eq!(setting(&report, name, "raw.csv_header").1, "asked");
    }
    let notes = table(&report, "s/v")["notes"].to_string();
    assert!(notes.contains("files are JSON arrays"), "{notes}");
    let codes = exit_codes(&run(&lab).run());
    assert_eq!((codes["s__u"], codes["s__empty"], codes["s__v"]), (0, 2, 2), "{codes:?}");
}

#[test]
fn a_table_of_another_depth_gets_what_its_project_does_not_give() {
    let changes = "Op,order_id,w\nI,1,a\nU,1,b";
    let (lab, _) = found(&[("shop/orders/20240102-101500123.parquet", changes)]);
    let bytes = lab.get("raw/shop/orders/20240102-101500123.parquet");
    for path in ["aaa", "eu/shop/orders", "eu/north/shop/orders"] {
        lab.put(&format!("raw/{path}/20240102-101500123.parquet"), bytes.clone());
    }
    init(&lab, &format!("{}/raw", lab.base)).succeed();
    let codes = exit_codes(&run(&lab).succeed());
    assert_eq!(codes.len(), 4, "{codes:?}");
    let written = lab
        .list_all("lake")
        .into_iter()
        .filter(|path| path.ends_with(".parquet") && !path.contains("_glueless"));
    assert_eq!(written.count(), 4, "each has a table of its own");
}

#[test]
fn flags_of_deleted_rows_are_read_by_their_values() {
    let rows = |deleted: &[&str]| {
        let lines =
            deleted.iter().enumerate().map(|(id, deleted)| format!("\n{id},w{id},{deleted}"));
        lines.collect::<String>()
    };
    let flat = |column: &str, deleted: &[&str]| {
        let text = format!("id,w,{column}{}", rows(deleted));
        let (lab, report) = found(&[("t/20240102-101500123.parquet", &text)]);
        let condition = has(&report, "t", "raw.delete_when")
            .then(|| setting(&report, "t", "raw.delete_when").0);
        run(&lab).succeed();
        (condition, lab.table("lake/t").len())
    };
    let condition = |text: &str| Some(format!("\"\\\"{text}\""));
    assert_eq!(flat("__deleted", &["true", "false"]), (condition("__deleted\\\" = 'true'"), 1));
    assert_eq!(flat("deleted_at", &["-", "2024-01-02"]), (condition("deleted_at\\\" <> ''"), 1));
    assert_eq!(flat("is_deleted", &["maybe", "no"]), (None, 2));
    // One that holds for all rows is not believed.
    assert_eq!(flat("__deleted", &["true", "true"]), (None, 2));
}
