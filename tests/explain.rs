//! One key explained: its changes in the fold's order, which one wins and why, which run folded
//! each, and where its row is.

use arrow::array::AsArray;
use glueless::commands::{Explained, Task, explain_key};
use glueless::report::Answer;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{Lab, Place, changes};

const TOML: &str = r#"
name = "loyalty"
key = ["cust_id"]
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["TIMESTAMP"]
event_time = "event_ts"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cust_loyalty_category"]
"#;

const SQL: &str = "SELECT event_id, cust_id, event_dt, cust_loyalty_category FROM latest";

/// A lab with the fixtures.
fn lab(keep: &str) -> Lab {
    let lab = Lab::new(
        Place::Local,
        &TOML.replace("{keep}", keep),
        &[("curated.sql", SQL)],
    );
    let raw = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/raw/cust_loyalty");
    for entry in std::fs::read_dir(raw).expect("the fixtures").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        lab.put(
            &format!("raw/{name}"),
            std::fs::read(entry.path()).expect("read"),
        );
    }
    lab
}

fn explain(lab: &Lab, key: &[&str]) -> Explained {
    let key = key.iter().map(ToString::to_string).collect();
    lab.ask(&[], |request| explain_key(request, key))
        .expect("explained")
}

/// The changes: file, row, operation; and of winners why.
fn told(explained: &Explained) -> Vec<String> {
    let changes = explained.changes.iter();
    changes
        .map(|change| {
            let file = change.file.rsplit('/').next().unwrap_or_default();
            let why = change
                .why
                .as_ref()
                .map_or(String::new(), |why| format!(": {why}"));
            assert_eq!(change.wins, change.why.is_some());
            format!("{} {} {}{why}", &file[..8], change.row, change.op)
        })
        .collect()
}

/// The key at the place of a row, as it stands in the table's file.
fn key_at(lab: &Lab, explained: &Explained) -> String {
    let (path, row) = explained.rows_now[0].place.clone().expect("a place");
    let bytes = lab.get(&format!("lake/curated/{path}"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a file");
    let mut reader = reader.build().expect("a reader");
    let batch = reader.next().expect("rows").expect("read");
    let keys = batch.column_by_name("cust_id").expect("keys");
    let keys = arrow::compute::cast(keys, &arrow::datatypes::DataType::Utf8).expect("text");
    keys.as_string::<i32>().value(row as usize - 1).to_string()
}

#[test]
fn the_winner_is_told_with_what_decides_and_where_its_row_is() {
    let lab = lab("latest");
    let first = lab.run("2019-12-12", "2019-12-13").expect("a run");
    let explained = explain(&lab, &["Cust101"]);
    assert_eq!(
        told(&explained),
        [
            "LOAD0000 1 I",
            "20191212 1 U: a change of CDC comes after every full load",
            "20191214 2 U",
        ]
    );
    let runs: Vec<Option<&str>> = explained
        .changes
        .iter()
        .map(|change| change.run_id.as_deref())
        .collect();
    assert_eq!(
        runs,
        [Some(first.run_id.as_str()), Some(&first.run_id), None]
    );
    assert!(
        explained.notes[0].contains("not folded"),
        "{:?}",
        explained.notes
    );
    assert_eq!(
        explained.rows_now[0].partition,
        "event_dt=2019-12-12/cust_loyalty_category=Silver"
    );

    let second = lab.run("2019-12-13", "2019-12-15").expect("a run");
    let explained = explain(&lab, &["Cust101"]);
    assert_eq!(
        told(&explained)[2],
        "20191214 2 U: its `TIMESTAMP` is the greatest"
    );
    assert_eq!(
        explained.changes[2].run_id.as_deref(),
        Some(second.run_id.as_str())
    );
    // Its event is of an earlier day: the row is there.
    assert_eq!(
        explained.rows_now[0].partition,
        "event_dt=2019-12-11/cust_loyalty_category=Gold"
    );
    assert_eq!(key_at(&lab, &explained), "Cust101");
    assert!(explained.notes.is_empty(), "{:?}", explained.notes);
}

#[test]
fn ties_are_decided_by_file_and_by_row() {
    let lab = lab("latest");
    lab.run("2019-12-12", "2019-12-15").expect("a run");
    let explained = explain(&lab, &["Cust105"]);
    assert_eq!(
        told(&explained),
        [
            "LOAD0000 5 I",
            "20191213 4 U",
            "20191214 1 U: the order columns are equal, and its file comes last",
            "20191215 2 D",
            "20191215 3 I",
        ]
    );
    lab.run("2019-12-15", "2019-12-16").expect("a run");
    let explained = explain(&lab, &["Cust105"]);
    let why = "the order columns are equal, and its row comes last in the file";
    assert_eq!(told(&explained)[4], format!("20191215 3 I: {why}"));
    assert_eq!(key_at(&lab, &explained), "Cust105");
}

#[test]
fn a_deleted_key_has_no_row_and_the_delete_is_why() {
    let lab = lab("latest");
    lab.run("2019-12-12", "2019-12-16").expect("a run");
    let explained = explain(&lab, &["Cust104"]);
    assert_eq!(
        told(&explained).last().expect("a change"),
        "20191214 4 D: its `TIMESTAMP` is the greatest"
    );
    assert!(explained.rows_now.is_empty());
    assert_eq!(explained.notes, ["no row: the last change is a delete"]);
    assert!(explained.text().contains("the last change is a delete"));
}

#[test]
fn under_latest_per_day_each_day_has_its_winner_and_row() {
    let lab = lab("latest-per-day");
    lab.run("2019-12-12", "2019-12-16").expect("a run");
    let explained = explain(&lab, &["Cust102"]);
    let wins = explained.changes.iter().filter(|change| change.wins);
    let days: Vec<String> = wins
        .map(|change| change.day.expect("a day").to_string())
        .collect();
    assert_eq!(days, ["2019-12-10", "2019-12-12"]);
    let rows: Vec<&str> = explained
        .rows_now
        .iter()
        .map(|row| row.partition.as_str())
        .collect();
    assert_eq!(
        rows,
        [
            "event_dt=2019-12-10/cust_loyalty_category=Basic",
            "event_dt=2019-12-12/cust_loyalty_category=Gold"
        ]
    );
}

#[test]
fn a_row_that_is_not_where_it_should_be_is_told() {
    let lab = lab("latest");
    lab.run("2019-12-12", "2019-12-16").expect("a run");
    let explained = explain(&lab, &["Cust100"]);
    let (path, _) = explained.rows_now[0].place.clone().expect("a place");
    lab.remove(&format!("lake/curated/{path}"));
    let explained = explain(&lab, &["Cust100"]);
    assert_eq!(explained.rows_now[0].place, None);
    assert!(
        explained.notes[0].contains("was not found there"),
        "{:?}",
        explained.notes
    );
}

#[test]
fn windows_of_rows_name_the_run_that_folded_each_row() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("window_by = \"name\"", "window_by = \"commit\"");
    let lab = Lab::new(Place::Local, &toml, &[("curated.sql", SQL)]);
    let columns = [
        "Op",
        "TIMESTAMP",
        "event_ts",
        "cust_id",
        "event_id",
        "cust_loyalty_category",
    ];
    let row = |day: &'static str| ["U", day, "2020-01-01", "a", "1", "x"];
    let rows = [
        "2020-01-01 10:00:00",
        "2020-01-02 10:00:00",
        "2020-01-03 10:00:00",
    ]
    .map(row);
    let rows: Vec<&[&str]> = rows.iter().map(|row| &row[..]).collect();
    lab.put("raw/a.parquet", changes(&columns, &rows));
    let second = lab.run("2020-01-02", "2020-01-03").expect("a run");
    let first = lab
        .run_with(Task::Curate, "2020-01-01", "2020-01-02", &[])
        .expect("a run");
    let explained = explain(&lab, &["a"]);
    let runs: Vec<Option<&str>> = explained
        .changes
        .iter()
        .map(|change| change.run_id.as_deref())
        .collect();
    assert_eq!(
        runs,
        [
            Some(first.run_id.as_str()),
            Some(second.run_id.as_str()),
            None
        ]
    );
    assert_eq!(
        explained
            .changes
            .iter()
            .map(|change| change.wins)
            .collect::<Vec<_>>(),
        [false, true, false]
    );
}

#[test]
fn a_key_that_moved_away_tells_so_and_the_new_one_has_the_row() {
    let toml = TOML
        .replace("{keep}", "latest")
        .replace("[curated]", "before_image_prefix = \"BI_\"\n[curated]");
    let lab = Lab::new(Place::Local, &toml, &[("curated.sql", SQL)]);
    let columns = [
        "Op",
        "TIMESTAMP",
        "event_ts",
        "cust_id",
        "BI_cust_id",
        "event_id",
        "cust_loyalty_category",
    ];
    let rows: [&[&str]; 2] = [
        &["I", "2020-01-01 10:00:00", "2020-01-01", "a", "a", "1", "x"],
        &["U", "2020-01-01 11:00:00", "2020-01-01", "b", "a", "2", "x"],
    ];
    lab.put("raw/20200101-110000000.parquet", changes(&columns, &rows));
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let left = explain(&lab, &["a"]);
    assert_eq!(
        told(&left),
        [
            "20200101 1 I",
            "20200101 2 moved away: its `TIMESTAMP` is the greatest"
        ]
    );
    assert!(left.rows_now.is_empty());
    let come = explain(&lab, &["b"]);
    assert_eq!(told(&come), ["20200101 2 U: it is the only one"]);
    assert_eq!(key_at(&lab, &come), "b");
}

#[test]
fn a_row_that_the_query_leaves_out_is_told() {
    let sql = format!("{SQL} WHERE cust_id <> 'Cust100'");
    let lab = lab("latest");
    std::fs::write(lab.pipeline.join("curated.sql"), sql).expect("written");
    lab.run("2019-12-12", "2019-12-13").expect("a run");
    let explained = explain(&lab, &["Cust100"]);
    assert!(explained.rows_now.is_empty());
    assert!(
        explained.notes[0].contains("curated.sql leaves it out"),
        "{:?}",
        explained.notes
    );
}
