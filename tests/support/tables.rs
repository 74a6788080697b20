//! Tables as they lie in the lake, read without the program's code.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::lab::Lab;

/// A row of a table: column name to value as text; null values are absent.
pub type Row = BTreeMap<String, String>;

impl Lab {
    /// Every row of a table of either format, sorted.
    pub fn table(&self, name: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        for (path, constants) in self.files(name) {
            for mut row in rows_of(self.get(&format!("{name}/{path}"))) {
                row.extend(constants.clone());
                rows.push(row);
            }
        }
        rows.sort();
        rows
    }

    /// Some columns of a table: see [`lines`].
    pub fn lines<const N: usize>(&self, name: &str, columns: [&str; N]) -> Vec<String> {
        lines(&self.table(name), columns)
    }

    /// Some columns of several tables.
    pub fn tables<const N: usize>(&self, names: [&str; N]) -> [Vec<Row>; N] {
        names.map(|name| self.table(name))
    }

    /// The names of a table's files, sorted: those of its Delta log if it has one, otherwise all
    /// that are not hidden.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.files(name).into_keys().collect()
    }

    /// The names and contents of a table's files.
    pub fn file_contents(&self, name: &str) -> BTreeMap<String, Bytes> {
        let paths = self.list(name).into_iter();
        let read = |path: &String| self.get(&format!("{name}/{path}"));
        paths.map(|path| (path.clone(), read(&path))).collect()
    }

    /// The names and contents of all objects below a folder.
    pub fn contents(&self, folder: &str) -> BTreeMap<String, Bytes> {
        let paths = self.list_all(folder).into_iter();
        let read = |path: &String| self.get(&format!("{folder}/{path}"));
        paths.map(|path| (path.clone(), read(&path))).collect()
    }

    /// A table's files, and the values of their partition columns.
    fn files(&self, name: &str) -> BTreeMap<String, Row> {
        if let Some((files, _)) = self.delta_files(name) {
            return files;
        }
        let mut files = BTreeMap::new();
        for path in self.list_all(name) {
            if path.split('/').any(|part| part.starts_with('_') && !part.contains('=')) {
                continue;
            }
            let parts = path.split('/').filter_map(|part| part.split_once('='));
            let values = parts
                .filter(|(_, value)| *value != "__HIVE_DEFAULT_PARTITION__")
                .map(|(column, value)| (decode(column), decode(value)));
            files.insert(path.clone(), values.collect());
        }
        files
    }

    /// The files that a Delta table's log comes to, with the values of their partition columns,
    /// and the names of all files that it ever had. The log is read as the protocol says:
    /// <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>.
    fn delta_files(&self, name: &str) -> Option<(BTreeMap<String, Row>, BTreeSet<String>)> {
        let (mut files, mut all) = (BTreeMap::new(), BTreeSet::new());
        let commits = self.commits(name);
        for action in commits.iter().flatten() {
            let path = |action: &Value| decode(action["path"].as_str().expect("a path"));
            if let Some(add) = action.get("add") {
                let values = add["partitionValues"].as_object().expect("values");
                let text = |(column, value): (&String, &Value)| {
                    Some((column.clone(), value.as_str()?.to_string()))
                };
                files.insert(path(add), values.iter().filter_map(text).collect());
                all.insert(path(add));
            }
            if let Some(remove) = action.get("remove") {
                files.remove(&path(remove)).expect("a file of the table");
            }
        }
        (!commits.is_empty()).then_some((files, all))
    }

    /// The actions of a Delta table's commits.
    pub fn commits(&self, name: &str) -> Vec<Vec<Value>> {
        let names = self.list_all(name).into_iter();
        let commits =
            names.filter(|path| path.starts_with("_delta_log/0") && path.ends_with(".json"));
        let read = |path: String| json_lines(&self.get_text(&format!("{name}/{path}")));
        commits.map(read).collect()
    }

    /// Checks that the runs left nothing but tables and their state; in a Delta table, no file
    /// that its log does not know.
    pub fn assert_tidy(&self) {
        let left = self.list_all("lake/_glueless").into_iter();
        let is_state = |path: &str| {
            let path = path.split_once('/').map(|(_, path)| path);
            path.is_some_and(|path| {
                let folders = ["versions/", "quarantine/"];
                folders.iter().any(|folder| path.starts_with(folder)) || path == "_glueless.json"
            })
        };
        let strays: Vec<String> = left.filter(|path| !is_state(path)).collect();
        assert!(strays.is_empty(), "{strays:?}");
        let log = self.delta_files("lake/curated").into_iter();
        let known: BTreeSet<String> = log.flat_map(|log| log.1).collect();
        let mut files =
            self.list_all("lake/curated").into_iter().filter(|path| path.contains("part-"));
        let stray = files.find(|path| !known.is_empty() && !known.contains(path));
        assert_eq!(stray, None);
    }
}

/// Chosen columns of some rows, sorted; null is `-`.
pub fn cells<const N: usize>(rows: &[Row], columns: [&str; N]) -> Vec<[String; N]> {
    let cell = |row: &Row, column| row.get(column).map_or("-", String::as_str).to_string();
    let rows = rows.iter();
    let mut cells: Vec<[String; N]> =
        rows.map(|row| columns.map(|column| cell(row, column))).collect();
    cells.sort();
    cells
}

/// Chosen columns of some rows, as one text for each row with spaces between the values. The texts
/// are sorted; null is `-`.
pub fn lines<const N: usize>(rows: &[Row], columns: [&str; N]) -> Vec<String> {
    let cells = cells(rows, columns).into_iter();
    let mut lines: Vec<String> = cells.map(|row| row.join(" ")).collect();
    lines.sort();
    lines
}

/// The lines of a text, each of which is JSON.
pub fn json_lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The rows of a batch as text.
pub fn rows(batch: &RecordBatch) -> Vec<Row> {
    let format = FormatOptions::new().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    let columns: Vec<_> = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| {
            let values = ArrayFormatter::try_new(column, &format).expect("a format");
            let text = |row: usize| column.is_valid(row).then(|| values.value(row).to_string());
            (field.name().clone(), (0..column.len()).map(text).collect::<Vec<_>>())
        })
        .collect();
    let row = |row: usize| {
        columns
            .iter()
            .filter_map(|(name, values)| Some((name.clone(), values[row].clone()?)))
            .collect()
    };
    (0..batch.num_rows()).map(row).collect()
}

/// The batches of a Parquet file.
pub fn batches_of(file: Bytes) -> Vec<RecordBatch> {
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("a reader");
    reader.map(|batch| batch.expect("a batch")).collect()
}

/// The rows of a Parquet file as text, in the file's order.
pub fn rows_of(file: Bytes) -> Vec<Row> {
    batches_of(file).iter().flat_map(rows).collect()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.extend(before.bytes());
        decoded.push(u8::from_str_radix(&after[..2], 16).expect("an escape"));
        rest = &after[2..];
    }
    decoded.extend(rest.bytes());
    String::from_utf8(decoded).expect("text")
}
