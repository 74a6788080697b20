//! Projects: `glueless.toml` gives defaults to the pipelines in the folders under it.

use serde_json::Value;

use crate::support::{Lab, Output, Program, integers, texts};

/// Defaults for tables of any schema.
const PROJECT: &str = r#"
key = ["id"]
[raw]
url = "../raw/{schema}/{table}"
order_by = ["ts"]
window_by = "name"
[curated]
url = "../lake/{name}"
partition_by = ["event_dt"]
[state]
url = "../state/{name}"
"#;

/// A lab with a project in its folder `sql`.
fn project(toml: &str) -> Lab {
    let lab = Lab::builder().build();
    write(&lab, "glueless.toml", toml);
    lab
}

/// Writes a file of the project.
fn write(lab: &Lab, name: &str, text: &str) {
    let path = std::path::Path::new(&lab.base).join("sql").join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, text).expect("written");
}

/// Writes a raw file: a key column, and a value.
fn put(lab: &Lab, folder: &str, day: u32, key: &str, id: i64) {
    let path = format!("raw/{folder}/202001{day:02}-000000000.parquet");
    let columns = vec![
        ("Op", texts(["I"])),
        (key, integers([id])),
        ("name", texts([folder])),
        ("ts", texts([format!("2020-01-{day:02} 12:00:00")])),
    ];
    lab.put_columns(&path, columns);
}

fn run(lab: &Lab, paths: &[&str]) -> Output {
    let dates = ["--start-date", "2020-01-01", "--end-date", "2020-02-01"];
    let paths = paths.iter().map(|path| format!("{}/{path}", lab.base));
    Program::glueless().arg("run").args(paths).args(dates).run()
}

#[test]
fn pipelines_of_a_project_have_its_defaults_and_override_them() {
    let lab = project(PROJECT);
    write(&lab, "public/orders/pipeline.toml", "");
    write(
        &lab,
        "public/customers/pipeline.toml",
        "name = 'people'\nkey = ['cid']\n[curated]\npartition_by = []",
    );
    write(&lab, "public/customers/curated.sql", "SELECT cid, UPPER(name) AS name FROM latest");
    write(&lab, "sales/orders/pipeline.toml", "[curated]\nformat = 'delta'");
    put(&lab, "public/orders", 1, "id", 1);
    put(&lab, "public/customers", 2, "cid", 2);
    put(&lab, "sales/orders", 3, "id", 3);
    let output = run(&lab, &["sql"]);
    output.assert_success();
    let results: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(results["results"].as_array().map(Vec::len), Some(3), "{results}");
    let columns = ["id", "name", "ts", "event_dt"];
    let orders = "1 public/orders 2020-01-01 12:00:00 2020-01-01";
    assert_eq!(lab.lines("lake/public__orders", columns), [orders]);
    assert_eq!(lab.lines("lake/people", ["cid", "name"]), ["2 PUBLIC/CUSTOMERS"]);
    assert_eq!(
        lab.lines("lake/sales__orders", ["id", "name", "event_dt"]),
        ["3 sales/orders 2020-01-03"]
    );
    assert!(lab.list_all("lake/sales__orders").iter().any(|path| path.contains("_delta_log")));
    // The operation of a change is no column of a row.
    let row = &lab.table("lake/public__orders")[0];
    assert_eq!(row.keys().collect::<Vec<_>>(), ["event_dt", "id", "name", "ts"]);
    assert!(lab.list_all("state").iter().any(|path| path.starts_with("people/")));
    // A folder of a schema, the project's file, and one pipeline, each once.
    for (paths, count) in [
        (vec!["sql/public"], 2),
        (vec!["sql/glueless.toml"], 3),
        (vec!["sql/public", "sql/public/../public/orders", "sql/sales/orders/pipeline.toml"], 3),
        (vec!["sql/glueless.toml", "sql/public", "sql/sales"], 3),
    ] {
        let output = run(&lab, &paths);
        output.assert_success();
        let results: Value = serde_json::from_str(&output.stdout).expect("JSON");
        assert_eq!(results["results"].as_array().map(Vec::len), Some(count), "{paths:?}");
    }
    for path in ["sql/sales/orders", "sql/public/../sales/./orders/pipeline.toml"] {
        assert!(run(&lab, &[path]).stdout.contains(r#""pipeline":"sales__orders""#), "{path}");
    }
    assert_eq!(lab.list_all("state").iter().filter(|path| path.contains("..")).count(), 0);
    // A file of another name, and folders whose names could be those of others, need a name.
    write(&lab, "sales/orders/other.toml", "");
    write(&lab, "sales__orders/pipeline.toml", "");
    write(&lab, "sales/_orders/pipeline.toml", "");
    for path in ["sql/sales/orders/other.toml", "sql/sales/_orders"] {
        let output = run(&lab, &[path]);
        assert!(
            output.code == 2 && output.stderr.contains("`name` is missing"),
            "{}",
            output.stderr
        );
    }
}

#[test]
fn errors_name_the_file_that_a_key_stands_in() {
    let refused = |project_toml: &str, pipeline: &str, code: i32, file: &str, message: &str| {
        let lab = project(project_toml);
        write(&lab, "public/orders/pipeline.toml", pipeline);
        put(&lab, "public/orders", 1, "id", 1);
        let output = run(&lab, &["sql/public/orders"]);
        assert_eq!(output.code, code, "{}", output.stderr);
        let said = format!("{}/sql/{file}: {message}", lab.base);
        assert!(output.stderr.contains(&said), "{}", output.stderr);
        assert!(lab.list_all("lake").is_empty());
    };
    let (of_project, of_pipeline) = ("glueless.toml", "public/orders/pipeline.toml");
    refused(&PROJECT.replace("order_by", "order"), "", 2, of_project, "unknown key `raw.order`");
    refused(&format!("name = 'x'\n{PROJECT}"), "", 2, of_project, "`name` is of one pipeline");
    refused(
        &format!("{PROJECT}[[aggregate]]\nname = 'x'"),
        "",
        2,
        of_project,
        "`aggregate` is of one pipeline",
    );
    let wrong =
        PROJECT.replace("window_by = \"name\"", "window_by = \"name\"\nlookback = \"long\"");
    refused(&wrong, "", 2, of_project, "`raw.lookback`");
    refused(&wrong, "[raw]\nlookback = 'longer'", 2, of_pipeline, "`raw.lookback`");
    let wrong = PROJECT.replace("[\"event_dt\"]", "\"event_dt\"");
    refused(&wrong, "", 2, of_project, "`curated.partition_by`");
    refused(PROJECT, "[raw]\nkeys = 1", 2, of_pipeline, "unknown key `raw.keys`");
    let lab = project(PROJECT);
    write(&lab, "orders/pipeline.toml", "");
    let output = run(&lab, &["sql/orders"]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(output.stderr.contains("`raw.url` has `{schema}`"), "{}", output.stderr);
    // Where the pipeline sets the key, too, the default is not used.
    write(&lab, "orders/pipeline.toml", "[raw]\nurl = '../../raw/orders'");
    put(&lab, "orders", 1, "id", 1);
    run(&lab, &["sql/orders"]).assert_success();
    assert_eq!(lab.lines("lake/orders", ["id"]), ["1"]);
    let lab = project(&PROJECT.replace("{schema}", "{scheme}"));
    write(&lab, "orders/pipeline.toml", "");
    let output = run(&lab, &["sql/orders"]);
    assert!(
        output.code == 2 && output.stderr.contains("unknown placeholder `{scheme}`"),
        "{}",
        output.stderr
    );
    let output = run(&lab, &["sql/none"]);
    assert!(output.code == 2 && output.stderr.contains("no such pipeline"), "{}", output.stderr);
}

#[test]
fn columns_of_a_table_without_a_query_are_those_of_raw() {
    for format in ["parquet", "delta"] {
        let lab = project(&PROJECT.replace("[state]", &format!("format = '{format}'\n[state]")));
        write(&lab, "public/orders/pipeline.toml", "[raw]\nbefore_image_prefix = 'BI_'");
        put(&lab, "public/orders", 1, "id", 1);
        run(&lab, &["sql/public/orders"]).assert_success();
        let columns = vec![
            ("Op", texts(["U"])),
            ("BI_id", integers([1])),
            ("id", integers([1])),
            ("name", texts(["b"])),
            ("mail", texts(["m"])),
            ("ts", texts(["2020-01-02 12:00:00"])),
        ];
        lab.put_columns("raw/public/orders/20200102-000000000.parquet", columns);
        put(&lab, "public/orders", 3, "id", 3);
        run(&lab, &["sql/public/orders"]).assert_success();
        let lines = lab.lines("lake/public__orders", ["id", "name", "mail"]);
        assert_eq!(lines, ["1 b m", "3 public/orders -"], "{format}");
        let base = &lab.base;
        let verified =
            Program::glueless().args(["verify", &format!("{base}/sql/public/orders")]).run();
        assert_eq!(verified.code, 0, "{}{}", verified.stdout, verified.stderr);
        // A query in a file is another one, also if it reads as the default does.
        write(&lab, "public/orders/curated.sql", "SELECT latest.*, 1 AS one FROM latest");
        let output = run(&lab, &["sql/public/orders"]);
        assert!(
            output.code == 2 && output.stderr.contains("`curated.sql` changed"),
            "{}",
            output.stderr
        );
        write(&lab, "public/orders/curated.sql", "SELECT latest.* FROM latest");
        let output = run(&lab, &["sql/public/orders"]);
        assert!(
            output.code == 2 && output.stderr.contains("`curated.sql` changed"),
            "{}",
            output.stderr
        );
        write(
            &lab,
            "public/orders/curated.sql",
            "SELECT id, UPPER(name) AS name, event_dt FROM latest",
        );
        let again = ["rebuild", "--from-table", &format!("{base}/sql/public/orders")];
        Program::glueless().args(again).run().assert_success();
        assert_eq!(lab.lines("lake/public__orders", ["id", "name"]), ["1 B", "3 PUBLIC/ORDERS"]);
        std::fs::rename(
            format!("{base}/sql/public/orders/curated.sql"),
            format!("{base}/sql/public/orders/Curated.sql"),
        )
        .expect("renamed");
        let output = run(&lab, &["sql/public/orders"]);
        assert!(
            output.code == 2 && output.stderr.contains("is named `Curated.sql`"),
            "{}",
            output.stderr
        );
    }
}
