//! The pipelines of the repository over the fixtures, read by engines that are not ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use insta::assert_snapshot;

use crate::support;

use super::{REPOSITORY, contents, fixtures_program, run_fixtures};

/// A table as another engine reads it: columns with the engine's types, and rows.
fn read_with(engine: &str, table: &Path) -> (String, Vec<BTreeMap<String, Option<String>>>) {
    let read = support::read_with(engine, &table.display().to_string(), None);
    let (columns, rows) = read.expect("read");
    let typed =
        columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect::<Vec<_>>().join("\n");
    let names = || columns.iter().map(|(name, _)| name.clone());
    let rows = rows.into_iter().map(|row| names().zip(row).collect());
    (typed, sorted(rows.collect()))
}

fn sorted<T: Ord>(mut rows: Vec<T>) -> Vec<T> {
    rows.sort();
    rows
}

/// A table of `fixtures/expected`, with times written as the engines write them.
fn expected(name: &str) -> Vec<BTreeMap<String, Option<String>>> {
    let file = Path::new(REPOSITORY).join("fixtures/expected").join(name);
    let text = fs::read_to_string(file).expect("a file");
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("names").split(',').collect();
    let cell = |(name, value): (&&str, &str)| {
        let mut value = value.to_string();
        if name.ends_with("_ts") || name.starts_with("valid_") {
            value = value.replace('T', " ");
            if value.contains('.') {
                value = value.trim_end_matches('0').to_string();
            }
            if name.starts_with("valid_") && !value.is_empty() {
                value += "+00";
            }
        }
        (name.to_string(), (!value.is_empty()).then_some(value))
    };
    let rows = lines.map(|line| names.iter().zip(line.split(',')).map(cell).collect());
    sorted(rows.collect())
}

const ENGINES: [&str; 2] = ["duckdb", "polars"];

/// Asserts what each engine reads from some tables, each with its file of expected rows; returns the
/// tables' types.
fn types_of_expected(folder: &Path, tables: &[(&str, &str)]) -> String {
    let mut types = Vec::new();
    for engine in ENGINES {
        for (table, csv) in tables {
            let (typed, rows) = read_with(engine, &folder.join(table));
            assert_eq!(rows, expected(csv), "{table} by {engine}");
            types.push(format!("{table} by {engine}\n{typed}"));
        }
    }
    types.join("\n\n")
}

#[test]
fn the_fixtures_come_out_as_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    run_fixtures("cust_loyalty", folder.path(), &[]);
    let tables =
        [("curated", "curated_latest.csv"), ("daily", "daily.csv"), ("status", "status.csv")];
    let types = types_of_expected(folder.path(), &tables);
    assert_snapshot!(types, @"
    curated by duckdb
    event_id BIGINT
    event_ts TIMESTAMP
    cust_id VARCHAR
    business_op_code VARCHAR
    recorded_ts TIMESTAMP
    event_dt DATE
    cust_loyalty_category VARCHAR

    daily by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    dt DATE

    status by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    total BIGINT
    dt DATE

    curated by polars
    event_id Int64
    event_ts Datetime(time_unit='us', time_zone=None)
    cust_id String
    business_op_code String
    recorded_ts Datetime(time_unit='us', time_zone=None)
    event_dt Date
    cust_loyalty_category String

    daily by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    dt Date

    status by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    total Int64
    dt Date
    ");
}

#[test]
fn the_history_of_the_fixtures_comes_out_as_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    run_fixtures("cust_loyalty_history", folder.path(), &[]);
    let types = types_of_expected(
        folder.path(),
        &[("curated", "curated_history.csv"), ("daily", "history_daily.csv")],
    );
    assert_snapshot!(types, @"
    curated by duckdb
    event_id BIGINT
    cust_id VARCHAR
    business_op_code VARCHAR
    cust_loyalty_category VARCHAR
    valid_from TIMESTAMP WITH TIME ZONE
    valid_to TIMESTAMP WITH TIME ZONE
    is_current BOOLEAN
    ended_by VARCHAR
    event_dt DATE

    daily by duckdb
    registered BIGINT
    upgraded BIGINT
    downgraded BIGINT
    still_current BIGINT
    dt DATE

    curated by polars
    event_id Int64
    cust_id String
    business_op_code String
    cust_loyalty_category String
    valid_from Datetime(time_unit='us', time_zone='UTC')
    valid_to Datetime(time_unit='us', time_zone='UTC')
    is_current Boolean
    ended_by String
    event_dt Date

    daily by polars
    registered Int64
    upgraded Int64
    downgraded Int64
    still_current Int64
    dt Date
    ");
}

#[test]
fn the_fixtures_by_day_come_out_as_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    run_fixtures("cust_loyalty_by_day", folder.path(), &[]);
    let tables = [("curated", "curated_by_day.csv"), ("daily", "daily.csv")];
    let types = types_of_expected(folder.path(), &tables);
    assert_snapshot!(types, @"
    curated by duckdb
    event_id BIGINT
    event_ts TIMESTAMP
    cust_id VARCHAR
    business_op_code VARCHAR
    recorded_ts TIMESTAMP
    event_dt DATE
    cust_loyalty_category VARCHAR

    daily by duckdb
    basic BIGINT
    silver BIGINT
    gold BIGINT
    platinum BIGINT
    dt DATE

    curated by polars
    event_id Int64
    event_ts Datetime(time_unit='us', time_zone=None)
    cust_id String
    business_op_code String
    recorded_ts Datetime(time_unit='us', time_zone=None)
    event_dt Date
    cust_loyalty_category String

    daily by polars
    basic Int64
    silver Int64
    gold Int64
    platinum Int64
    dt Date
    ");
}

#[test]
fn the_known_sample_lies_in_its_partition_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    fixtures_program("cust_loyalty", folder.path(), "2019-01-01", "2020-01-01").succeed();
    let day = folder.path().join("curated/event_dt=2019-04-01");
    let listed: Vec<String> = contents(&day).into_keys().collect();
    assert_eq!(
        listed,
        [
            "cust_loyalty_category=Basic/",
            "cust_loyalty_category=Basic/part-c00000001-00000.snappy.parquet"
        ]
    );
    for engine in ENGINES {
        let (_, there) = read_with(engine, &day.join("cust_loyalty_category=Basic"));
        let customers: Vec<&Option<String>> = there.iter().map(|row| &row["cust_id"]).collect();
        assert_eq!(customers, [&Some("Cust100".to_string())], "{engine}");
        let (_, all) = read_with(engine, &folder.path().join("curated"));
        let sample = all.iter().filter(|row| row["cust_id"].as_deref() == Some("Cust100"));
        assert_eq!(sample.count(), 1, "{engine}");

        let (_, daily) = read_with(engine, &folder.path().join("daily"));
        let of_day: Vec<String> = daily
            .iter()
            .filter(|row| row["dt"].as_deref() == Some("2019-04-01"))
            .map(|row| {
                let cells = row.iter();
                let shown = cells.map(|(name, value)| match value {
                    Some(value) => format!("{name} {value}"),
                    None => format!("{name} null"),
                });
                shown.collect::<Vec<_>>().join(", ")
            })
            .collect();
        assert_eq!(
            of_day,
            ["basic 1, dt 2019-04-01, gold null, platinum null, silver null"],
            "{engine}"
        );
    }
}
