//! The guide to raw folders: each of its pipelines is run on the fixtures that it names, and must
//! give the rows that the guide shows below it.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::support::{Lab, Place, Row, now};

const GUIDE: &str = include_str!("../docs/raw.md");
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/");

/// A section of the guide: its title and its text.
fn sections() -> Vec<(&'static str, &'static str)> {
    let sections = GUIDE.split("\n## ").skip(1);
    sections.map(|section| section.split_once('\n').expect("a text")).collect()
}

/// The text of a fenced block.
fn block(text: &str, kind: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("```{kind}\n"))?;
    Some(rest.split_once("```").expect("its end").0.to_string())
}

/// The tables below the query: lines of cells, the header first.
fn tables(text: &str) -> Vec<Vec<Vec<String>>> {
    let (_, text) = text.rsplit_once("```\n").expect("a query");
    let mut tables = vec![Vec::new()];
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            tables.push(Vec::new());
            continue;
        };
        let cells: Vec<String> = cells.split('|').map(|cell| cell.trim().to_string()).collect();
        if cells[0] != "---" {
            tables.last_mut().expect("a table").push(cells);
        }
    }
    tables.retain(|table| !table.is_empty());
    tables
}

/// A lab for which the fixtures were written long ago.
fn new_lab(toml: &str, sql: &str) -> Lab {
    let mut lab = Lab::new(Place::Local, toml, &[("curated.sql", sql)]);
    lab.now = now() + TimeDelta::days(1);
    lab
}

fn values(row: &Row, columns: &[String]) -> Vec<String> {
    let value = |name: &String| row.get(name).map_or(String::new(), |text| text.replace('\n', " "));
    columns.iter().map(value).collect()
}

#[test]
fn every_pipeline_of_the_guide_gives_the_rows_that_stand_below_it() {
    let mut run = 0;
    for (title, text) in sections() {
        let Some(toml) = block(text, "toml") else {
            continue;
        };
        let sql = block(text, "sql").unwrap_or_else(|| panic!("{title} has no query"));
        let toml = toml.replace("../fixtures/", FIXTURES).replace("../lake/", "{base}/lake/");
        let lab = new_lab(&toml, &sql);
        let table = toml.lines().rev().find_map(|line| line.split_once("/lake/"));
        let table = table.expect("a table").1.trim_end_matches('"').to_string();
        // In one run, and in two of which the later days come first.
        let days = [("2024-01-03", "2024-02-01"), ("2024-01-01", "2024-01-03")];
        for windows in [&[("2024-01-01", "2024-02-01")][..], &days] {
            let lab = new_lab(&toml, &sql);
            for (start, end) in windows {
                lab.run(start, end).unwrap_or_else(|error| panic!("{title}: {error}"));
            }
            let tables = tables(text);
            let (columns, expected) = tables[0].split_first().expect("a header");
            let mut found: Vec<_> = lab
                .table(&format!("lake/{table}"))
                .iter()
                .map(|row| values(row, columns))
                .collect();
            let mut expected = expected.to_vec();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{title}");
        }
        let report = lab.run("2024-01-01", "2024-02-01").expect("a run");
        if let Some(folder) = &report.quarantine {
            let path = folder.rsplit_once("/lake/").expect("below the lake").1;
            let mut found = lab.table(&format!("lake/{path}"));
            found.sort_by_key(|row| row.get("row").cloned());
            let tables = tables(text);
            let (columns, expected) = tables[1].split_first().expect("a header");
            assert_eq!(found.len(), expected.len());
            for (row, expected) in found.iter().zip(expected) {
                for (found, expected) in values(row, columns).iter().zip(expected) {
                    assert!(found.contains(expected), "{title}: {row:?}");
                }
            }
        }
        run += 1;
    }
    assert_eq!(run, 19);
}

#[test]
fn every_fixture_is_in_the_guide_or_the_loyalty_table() {
    let folders = std::fs::read_dir(format!("{FIXTURES}raw")).expect("listed");
    let used: BTreeMap<String, bool> = folders
        .map(|folder| {
            let name = folder.expect("a folder").file_name().into_string().expect("text");
            let is_used = GUIDE.contains(&format!("fixtures/raw/{name}")) || name == "cust_loyalty";
            (name, is_used)
        })
        .collect();
    assert!(used.values().all(|used| *used), "{used:?}");
}
