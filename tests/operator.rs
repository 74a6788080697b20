//! What a person on call asks: preview a run, list past runs, is the table right, and what was
//! never folded. One file per command; this one has the pipeline that they share.

mod catch_up;
mod explain_key;
mod plan;
mod runs;
mod verify;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::concat_batches;

use crate::support::{
    Answer, COUNT_PER_DAY, Change, DAY_US, History, Lab, LabBuilder, Row, batches_of,
    count_of_each_day_so_far, parquet,
};

const TABLES: [&str; 3] = ["lake/curated", "lake/daily", "lake/status"];

/// A pipeline with an aggregate of each kind.
fn builder() -> LabBuilder {
    Lab::builder()
        .set("raw.event_time", "event")
        .aggregate("daily", COUNT_PER_DAY)
        .running_aggregate("status", count_of_each_day_so_far("id"))
}

/// A lab with a file for each of some days.
fn lab(days: impl IntoIterator<Item = i64>) -> Lab {
    let lab = builder().build();
    days.into_iter().for_each(|day| put(&lab, day));
    lab
}

/// Writes the file of a day: a key of its own, and one that all days change.
fn put(lab: &Lab, day: i64) {
    lab.put_day(day, &[("I", 100 + day, "a"), ("U", 1, "b")]);
}

/// A lab whose windows select rows.
fn lab_with_windows_of_rows() -> Lab {
    builder().window_by("commit").build()
}

/// Writes a file with one row of each of some days.
fn put_rows(lab: &Lab, path: &str, days: &[i64]) {
    let rows = days.iter().map(|day| Change {
        op: "I",
        id: 1000 + day,
        cat: "a",
        v: *day,
        us: (day - 1) * DAY_US,
        event_us: 0,
    });
    lab.put_changes(path, 1, &rows.collect::<Vec<_>>());
    lab.set_modified(path, 5);
}

/// A run that does not look for files before its window.
fn run_without_lookback(lab: &Lab, first: i64, end: i64) {
    lab.run_days_with(first, end, &["raw.lookback=0d"]);
}

/// Reads an object, changes its rows, and writes it again.
pub fn rewrite(lab: &Lab, path: &str, change: impl Fn(RecordBatch) -> RecordBatch) {
    let batches = batches_of(lab.get(path));
    let whole = concat_batches(&batches[0].schema(), &batches).expect("one");
    lab.put(path, parquet(&change(whole), None));
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).expect("a column");
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    RecordBatch::try_new(batch.schema(), columns).expect("a batch")
}

/// A partition with four rows, of keys 1 to 4, and one with a fifth row; and the path of the first
/// partition's file.
fn lab_with_five_rows() -> (Lab, String) {
    let lab = lab([]);
    let rows = (1..=4).map(|id| ("I", id, "a"));
    lab.put_day(1, &rows.collect::<Vec<_>>());
    lab.put_day(2, &[("I", 9, "b")]);
    lab.run_days(1, 3);
    let mut files = lab.list("lake/curated").into_iter();
    let path = files.find(|path| path.contains("cat=a"));
    let path = format!("lake/curated/{}", path.expect("a file"));
    let found = lab.assert_verified();
    assert_eq!((found.files, found.rows_read, found.rows_expected, found.partitions), (2, 5, 5, 2));
    assert_eq!(found.exit_code(), 0);
    (lab, path)
}

fn history(lab: &Lab) -> History {
    lab.history().expect("a history")
}

fn tables(lab: &Lab) -> [Vec<Row>; 3] {
    lab.tables(TABLES)
}
