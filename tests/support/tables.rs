//! Tables as they lie in the lake, read without the program's code.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use serde_json::Value;

use super::lab::Lab;

/// A row of a table: column name to value as text; null values are absent.
pub type Row = BTreeMap<String, String>;

impl Lab {
    /// Every row of a table of either format, sorted.
    pub fn table(&self, name: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        for (path, file) in self.files(name) {
            let deleted = file.deleted.map(|vector| self.deleted_rows(name, &vector));
            for (at, mut row) in
                rows_of(self.get(&format!("{name}/{path}"))).into_iter().enumerate()
            {
                if deleted.as_ref().is_none_or(|deleted| !deleted.contains(at as u64)) {
                    row.extend(file.constants.clone());
                    rows.push(row);
                }
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

    /// A table's files.
    fn files(&self, name: &str) -> BTreeMap<String, ListedFile> {
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
            let file = ListedFile { constants: values.collect(), deleted: None };
            files.insert(path.clone(), file);
        }
        files
    }

    /// The rows that a deletion vector of a Delta log deletes.
    fn deleted_rows(&self, table: &str, vector: &Value) -> RoaringTreemap {
        let number = |name: &str| vector[name].as_u64().expect("a number") as usize;
        let text = vector["pathOrInlineDv"].as_str().expect("text");
        if vector["storageType"] == "i" {
            let data = z85::decode(text).expect("Z85");
            assert!(data.len() - number("sizeInBytes") < 4);
            return RoaringTreemap::deserialize_from(&data[4..]).expect("a bitmap");
        }
        let file = self.get(&format!("{table}/{}", vectors_path(vector)));
        assert_eq!(file[0], 1, "the version of the format");
        let bytes = &file[number("offset")..];
        let (size, bytes) = bytes.split_at(4);
        assert_eq!(size, (number("sizeInBytes") as u32).to_be_bytes());
        let data = &bytes[4..number("sizeInBytes")];
        let rows = RoaringTreemap::deserialize_from(data).expect("a bitmap");
        assert_eq!(rows.len() as usize, number("cardinality"));
        rows
    }

    /// The files that a Delta table's log comes to, and the names of all files that it ever had. The
    /// log is read as the protocol says:
    /// <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>.
    fn delta_files(&self, name: &str) -> Option<(BTreeMap<String, ListedFile>, BTreeSet<String>)> {
        let (mut files, mut all) = (BTreeMap::<String, ListedFile>::new(), BTreeSet::new());
        let commits = self.commits(name);
        for commit in &commits {
            // The order of the actions of a commit has no meaning.
            let mut added = Vec::new();
            for action in commit {
                let path = |action: &Value| decode(action["path"].as_str().expect("a path"));
                if let Some(add) = action.get("add") {
                    let values = add["partitionValues"].as_object().expect("values");
                    let text = |(column, value): (&String, &Value)| {
                        Some((column.clone(), value.as_str()?.to_string()))
                    };
                    let constants = values.iter().filter_map(text).collect();
                    let deleted = add.get("deletionVector").filter(|vector| !vector.is_null());
                    all.extend(
                        deleted.filter(|vector| vector["storageType"] == "u").map(vectors_path),
                    );
                    added.push((path(add), ListedFile { constants, deleted: deleted.cloned() }));
                    all.insert(path(add));
                }
                if let Some(remove) = action.get("remove") {
                    let removed = files.remove(&path(remove)).expect("a file of the table");
                    let deleted = remove.get("deletionVector").filter(|vector| !vector.is_null());
                    assert_eq!(removed.deleted.as_ref(), deleted, "{}", path(remove));
                }
            }
            files.extend(added);
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
        // Hidden files of vectors are known to the ledger alone.
        let is_data = |path: &str| {
            path.contains("part-") || (path.ends_with(".bin") && !path.starts_with('_'))
        };
        let log = self.delta_files("lake/curated").into_iter();
        let known: BTreeSet<String> = log.flat_map(|log| log.1).collect();
        let mut files = self.list_all("lake/curated").into_iter().filter(|path| is_data(path));
        let stray = files.find(|path| !known.is_empty() && !known.contains(path));
        assert_eq!(stray, None);
    }
}

/// A file of a table.
struct ListedFile {
    /// The values of its partition columns.
    constants: Row,
    /// Its deletion vector, as a Delta log describes it.
    deleted: Option<Value>,
}

/// The path of the file of a deletion vector.
fn vectors_path(vector: &Value) -> String {
    assert_eq!(vector["storageType"], "u");
    let uuid = z85::decode(vector["pathOrInlineDv"].as_str().expect("text")).expect("Z85");
    let uuid = uuid::Uuid::from_slice(&uuid).expect("a UUID");
    format!("deletion_vector_{uuid}.bin")
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

/// Checks that no file below a folder has a text, neither as it is nor decoded.
#[track_caller]
pub fn assert_nowhere(lab: &Lab, folder: &str, text: &str) {
    for path in lab.list_all(folder) {
        let bytes = lab.get(&format!("{folder}/{path}"));
        let is_there = bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!is_there, "{path} has {text}");
        if path.ends_with(".parquet") {
            let rows = rows_of(bytes);
            let has = |row: &Row| row.values().any(|value| value.contains(text));
            assert!(!rows.iter().any(has), "{path} has {text}");
        }
    }
}
