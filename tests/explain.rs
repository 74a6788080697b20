//! `explain-key`: the changes of one key in the fold's order, which one wins and why, which run
//! folded each of them, and where its row is.

use crate::support::{Answer, Explained, Lab, LabBuilder, Task, file_of_rows, rows_of};

const SQL: &str = "SELECT event_id, cust_id, event_dt, cust_loyalty_category FROM latest";

/// A pipeline over changes like those of the fixtures.
fn loyalty() -> LabBuilder {
    Lab::builder()
        .set("key", vec!["cust_id"])
        .set("raw.order_by", vec!["TIMESTAMP"])
        .set("raw.event_time", "event_ts")
        .partition_by(&["event_dt", "cust_loyalty_category"])
        .curated_sql(SQL)
}

/// A lab with the fixtures.
fn lab(keep: &str) -> Lab {
    let lab = loyalty().keep(keep).build();
    let raw = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/raw/cust_loyalty");
    for entry in std::fs::read_dir(raw).expect("the fixtures").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        let bytes = std::fs::read(entry.path()).expect("read");
        lab.put(&format!("raw/{name}"), bytes);
    }
    lab
}

/// The changes: file, row and operation, and why a winner wins.
fn described(explained: &Explained) -> Vec<String> {
    let changes = explained.changes.iter();
    changes
        .map(|change| {
            let file = change.file.rsplit('/').next().unwrap_or_default();
            let why = change.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            assert_eq!(change.wins, change.why.is_some());
            format!("{} {} {}{why}", &file[..8], change.row, change.op)
        })
        .collect()
}

/// The key in the row of the table's file that the explanation names.
fn key_at(lab: &Lab, explained: &Explained) -> String {
    let (path, row) = explained.rows_now[0].place.clone().expect("a place");
    let rows = rows_of(lab.get(&format!("lake/curated/{path}")));
    rows[row as usize - 1]["cust_id"].clone()
}

#[test]
fn the_winner_is_told_with_what_decides_and_where_its_row_is() {
    let lab = lab("latest");
    let first = lab.run("2019-12-12", "2019-12-13").expect("a run");
    let explained = lab.explain(&["Cust101"]);
    assert_eq!(
        described(&explained),
        ["LOAD0000 1 I", "20191212 1 U: a CDC change comes after every full load", "20191214 2 U",]
    );
    let runs: Vec<Option<&str>> =
        explained.changes.iter().map(|change| change.run_id.as_deref()).collect();
    assert_eq!(runs, [Some(first.run_id.as_str()), Some(&first.run_id), None]);
    assert!(explained.notes[0].contains("not folded"), "{:?}", explained.notes);
    assert_eq!(explained.rows_now[0].partition, "event_dt=2019-12-12/cust_loyalty_category=Silver");

    let second = lab.run("2019-12-13", "2019-12-15").expect("a run");
    let explained = lab.explain(&["Cust101"]);
    assert_eq!(described(&explained)[2], "20191214 2 U: its `TIMESTAMP` is the greatest");
    assert_eq!(explained.changes[2].run_id.as_deref(), Some(second.run_id.as_str()));
    // The event happened on an earlier day, and its partition has the row.
    assert_eq!(explained.rows_now[0].partition, "event_dt=2019-12-11/cust_loyalty_category=Gold");
    assert_eq!(key_at(&lab, &explained), "Cust101");
    assert!(explained.notes.is_empty(), "{:?}", explained.notes);
}

#[test]
fn ties_are_decided_by_file_and_by_row() {
    let lab = lab("latest");
    lab.run("2019-12-12", "2019-12-15").expect("a run");
    let explained = lab.explain(&["Cust105"]);
    assert_eq!(
        described(&explained),
        [
            "LOAD0000 5 I",
            "20191213 4 U",
            "20191214 1 U: the order columns are equal, and its file comes last",
            "20191215 2 D",
            "20191215 3 I",
        ]
    );
    lab.run("2019-12-15", "2019-12-16").expect("a run");
    let explained = lab.explain(&["Cust105"]);
    let why = "the order columns are equal, and its row comes last in the file";
    assert_eq!(described(&explained)[4], format!("20191215 3 I: {why}"));
    assert_eq!(key_at(&lab, &explained), "Cust105");
}

#[test]
fn a_deleted_key_has_no_row_and_the_delete_is_why() {
    let lab = lab("latest");
    lab.run("2019-12-12", "2019-12-16").expect("a run");
    let explained = lab.explain(&["Cust104"]);
    assert_eq!(
        described(&explained).last().expect("a change"),
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
    let explained = lab.explain(&["Cust102"]);
    let wins = explained.changes.iter().filter(|change| change.wins);
    let days: Vec<String> = wins.map(|change| change.day.expect("a day").to_string()).collect();
    assert_eq!(days, ["2019-12-10", "2019-12-12"]);
    let rows: Vec<&str> = explained.rows_now.iter().map(|row| row.partition.as_str()).collect();
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
    let explained = lab.explain(&["Cust100"]);
    let (path, _) = explained.rows_now[0].place.clone().expect("a place");
    lab.remove(&format!("lake/curated/{path}"));
    let explained = lab.explain(&["Cust100"]);
    assert_eq!(explained.rows_now[0].place, None);
    assert!(explained.notes[0].contains("was not found there"), "{:?}", explained.notes);
}

#[test]
fn windows_of_rows_name_the_run_that_folded_each_row() {
    let lab = loyalty().window_by("commit").build();
    let columns = ["Op", "TIMESTAMP", "event_ts", "cust_id", "event_id", "cust_loyalty_category"];
    let row = |day: &'static str| ["U", day, "2020-01-01", "a", "1", "x"];
    let rows = ["2020-01-01 10:00:00", "2020-01-02 10:00:00", "2020-01-03 10:00:00"].map(row);
    lab.put("raw/a.parquet", file_of_rows(&columns, &rows));
    let second = lab.run("2020-01-02", "2020-01-03").expect("a run");
    let first = lab.run_with(Task::Curate, "2020-01-01", "2020-01-02", &[]).expect("a run");
    let explained = lab.explain(&["a"]);
    let runs: Vec<Option<&str>> =
        explained.changes.iter().map(|change| change.run_id.as_deref()).collect();
    assert_eq!(runs, [Some(first.run_id.as_str()), Some(second.run_id.as_str()), None]);
    assert_eq!(
        explained.changes.iter().map(|change| change.wins).collect::<Vec<_>>(),
        [false, true, false]
    );
}

#[test]
fn a_key_that_moved_away_tells_so_and_the_new_one_has_the_row() {
    let lab = loyalty().set("raw.before_image_prefix", "BI_").build();
    let columns = [
        "Op",
        "TIMESTAMP",
        "event_ts",
        "cust_id",
        "BI_cust_id",
        "event_id",
        "cust_loyalty_category",
    ];
    let rows = [
        ["I", "2020-01-01 10:00:00", "2020-01-01", "a", "a", "1", "x"],
        ["U", "2020-01-01 11:00:00", "2020-01-01", "b", "a", "2", "x"],
    ];
    lab.put("raw/20200101-110000000.parquet", file_of_rows(&columns, &rows));
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let left = lab.explain(&["a"]);
    assert_eq!(
        described(&left),
        ["20200101 1 I", "20200101 2 moved away: its `TIMESTAMP` is the greatest"]
    );
    assert!(left.rows_now.is_empty());
    let come = lab.explain(&["b"]);
    assert_eq!(described(&come), ["20200101 2 U: it is the only one"]);
    assert_eq!(key_at(&lab, &come), "b");
}

#[test]
fn a_row_that_the_query_leaves_out_is_told() {
    let lab = lab("latest");
    lab.write_file("curated.sql", &format!("{SQL} WHERE cust_id <> 'Cust100'"));
    lab.run("2019-12-12", "2019-12-13").expect("a run");
    let explained = lab.explain(&["Cust100"]);
    assert!(explained.rows_now.is_empty());
    assert!(explained.notes[0].contains("curated.sql filters it out"), "{:?}", explained.notes);
}
