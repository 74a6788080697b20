//! Statements for other engines: DuckDB and PostgreSQL run theirs; the procedures for Redshift run in
//! PostgreSQL, where both dialects agree.

use std::process::Command;

use crate::support::{
    Answer, COUNT_PER_DAY, Database, Lab, LabBuilder, Program, Task, day, python,
};

fn builder() -> LabBuilder {
    Lab::builder().set("name", "loyalty").aggregate("daily", COUNT_PER_DAY)
}

fn days(lab: &Lab) {
    lab.put_day(1, &[("I", 1, "a"), ("I", 2, "b/c: %"), ("I", 3, "b")]);
    lab.put_day(2, &[("D", 1, "a"), ("U", 2, "b"), ("I", 4, "it's")]);
    lab.put_day(3, &[("I", 1, "a"), ("D", 4, "it's"), ("U", 3, "c")]);
}

fn statements(lab: &Lab, dialect: &str) -> String {
    let output = Program::glueless()
        .arg("ddl")
        .arg(&lab.pipeline)
        .args(["--dialect", dialect, "--output", "text"])
        .envs(&lab.environment)
        .succeed();
    output.stdout.replace(&lab.base, "{base}")
}

#[test]
fn views_of_duckdb_have_the_published_rows() {
    let lab = builder().build();
    days(&lab);
    lab.run_days(1, 4);
    let sql = statements(&lab, "duckdb");
    insta::assert_snapshot!(sql, @r#"
    CREATE OR REPLACE VIEW "loyalty" AS
    SELECT "id", "cat", "v", "event_dt"
    FROM read_parquet('{base}/lake/curated/**/*.parquet', union_by_name = true, hive_partitioning = true, hive_types = {'event_dt': date, 'cat': text});

    CREATE OR REPLACE VIEW "daily" AS
    SELECT "dt", "n"
    FROM read_parquet('{base}/lake/daily/**/*.parquet', union_by_name = true, hive_partitioning = true, hive_types = {'dt': date});
    "#);
    let program = "import duckdb, sys\nduckdb.sql(sys.argv[1])\n\
        print(duckdb.sql('SELECT id, cat, v, event_dt FROM loyalty ORDER BY id').fetchall())\n\
        print(duckdb.sql('SELECT sum(n) FROM daily').fetchall())";
    let output = Command::new(python())
        .args(["-c", program, &sql.replace("{base}", &lab.base)])
        .output()
        .expect("DuckDB runs");
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = lab.lines("lake/curated", ["id", "cat", "v", "event_dt"]);
    let shown: Vec<String> = rows
        .iter()
        .map(|row| {
            let [id, cat, v, event_dt] = row.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            let date = event_dt.replace("-0", "-").replace('-', ", ");
            format!("({id}, '{cat}', {v}, datetime.date({date}))")
        })
        .collect();
    assert_eq!(
        found.lines().next(),
        Some(format!("[{}]", shown.join(", ")).as_str()),
        "{output:?}"
    );
}

#[test]
fn tables_for_postgres_are_accepted_by_a_load() {
    for keep in ["latest", "latest-per-day"] {
        let database = Database::new();
        let lab = builder().keep(keep).loaded().set("load.table", "loyalty").build();
        let lab = lab.follow(&database);
        days(&lab);
        lab.run_with(Task::Curate, &day(1), &day(3), &[]).expect("a run");
        database.ask(&format!("SET ROLE lab; {}", statements(&lab, "postgres")));
        let report = lab.run_days(3, 4);
        assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
        assert_eq!(database.rows("loyalty"), lab.published("curated"));
        lab.assert_followed(&database, &["daily"]);
    }
}

/// Followed tables stand for the external ones.
#[test]
fn procedures_for_redshift_bring_tables_to_the_published_rows() {
    for key in [vec!["id"], Vec::new()] {
        let database = Database::new();
        let lab =
            builder().set("key", key.clone()).loaded().set("load.table", "lake.loyalty").build();
        let lab = lab.follow(&database);
        lab.edit_pipeline("table = \"daily\"", "table = \"lake.daily\"");
        database.ask("CREATE SCHEMA lake AUTHORIZATION lab");
        if key.is_empty() {
            lab.put_day(1, &[("I", 1, "a")]);
            lab.put_day(2, &[("I", 1, "a")]);
            lab.put_day(3, &[("I", 1, "b")]);
        } else {
            days(&lab);
        }
        lab.run_days(1, 2);
        let sql = statements(&lab, "redshift");
        let (schema, rest) = sql.split_once(";\n").expect("statements");
        assert!(schema.starts_with("CREATE EXTERNAL SCHEMA IF NOT EXISTS \"lake\""), "{schema}");
        database.ask(rest);
        let call = if key.is_empty() { "CALL refill_loyalty()" } else { "CALL merge_loyalty()" };
        for first in 1..4 {
            let report = lab.run_days(first, first + 1);
            assert_eq!(report.exit_code(), 0, "{:?}", report.followers);
            let (start, end) = (day(first), day(first + 1));
            database.ask(&format!("{call}; CALL load_daily('{start}', '{end}')"));
            assert_eq!(database.rows("loyalty"), lab.published("curated"));
            assert_eq!(database.rows("daily"), lab.published("daily"));
        }
        // A call that is repeated writes no row.
        if !key.is_empty() {
            let written = "SELECT id, xmin FROM loyalty ORDER BY id";
            let before = database.ask(written);
            database.ask(call);
            assert_eq!(database.ask(written), before);
        }
    }
}

#[test]
fn external_tables_are_printed_for_athena_hive_and_spark() {
    let lab = builder().set("catalog.glue", "cdc").set("catalog.table", "Loyalty").build();
    days(&lab);
    lab.run_with(Task::Curate, &day(1), &day(2), &[]).expect("a run");
    insta::assert_snapshot!(statements(&lab, "athena"), @r"
    CREATE EXTERNAL TABLE IF NOT EXISTS `cdc`.`loyalty` (
        `id` bigint,
        `v` bigint
    )
    PARTITIONED BY (
        `event_dt` date,
        `cat` string
    )
    STORED AS PARQUET
    LOCATION '{base}/lake/curated/';
    -- Finds new partitions; run it after each run, or let `glueless catalog` keep them.
    MSCK REPAIR TABLE `cdc`.`loyalty`;

    CREATE EXTERNAL TABLE IF NOT EXISTS `cdc`.`daily` (
        `n` bigint
    )
    PARTITIONED BY (
        `dt` date
    )
    STORED AS PARQUET
    LOCATION '{base}/lake/daily/';
    -- Finds new partitions; run it after each run, or let `glueless catalog` keep them.
    MSCK REPAIR TABLE `cdc`.`daily`;
    ");
    let hive = statements(&lab, "hive");
    assert!(hive.contains("MSCK REPAIR TABLE `cdc`.`loyalty` SYNC PARTITIONS;"), "{hive}");
    let lab = builder().format("delta").build();
    let refused = Program::glueless().arg("ddl").arg(&lab.pipeline).args(["--dialect", "hive"]);
    let error = refused.run();
    assert_eq!(error.code, 2, "{}", error.stderr);
    days(&lab);
    lab.run_with(Task::Curate, &day(1), &day(2), &[]).expect("a run");
    let spark = statements(&lab, "spark");
    assert!(spark.contains("USING DELTA\nLOCATION '{base}/lake/curated/';"), "{spark}");
}
