//! Tables as other engines read them: DuckDB, Polars and delta-rs, by `readers.py`.

use std::path::PathBuf;
use std::process::Command;

use chrono::{DateTime, Utc};

use super::lab::Lab;
use super::s3::environment_of;

/// The Python of the virtual environment that the Makefile installs.
#[expect(clippy::disallowed_methods, reason = "the Makefile says where Python is")]
pub fn python() -> PathBuf {
    let python = std::env::var_os("GLUELESS_TEST_PYTHON");
    PathBuf::from(python.expect("GLUELESS_TEST_PYTHON is not set: run the tests with `make test`"))
}

/// A table as another engine reads it: names and types of its columns, and its rows as text.
pub type Foreign = (Vec<(String, String)>, Vec<Vec<Option<String>>>);

impl Lab {
    /// What another engine reads of a table, or of a version of it.
    pub fn read_with(
        &self,
        engine: &str,
        table: &str,
        version: Option<u64>,
    ) -> Result<Foreign, String> {
        read_with(engine, &format!("{}/{table}", self.base), version)
    }

    /// What two readers of Delta tables read of the curated table, or of a version of it; each row as
    /// `id cat v day`.
    pub fn read_delta(&self, version: Option<u64>) -> Vec<String> {
        let read = ["polars-delta", "deltalake"].map(|engine| {
            let (columns, rows) = self.read_with(engine, "lake/curated", version).expect("read");
            let names: Vec<&str> = columns.iter().map(|column| column.0.as_str()).collect();
            assert_eq!(names, ["id", "cat", "v", "event_dt"]);
            rows
        });
        assert_eq!(read[0], read[1]);
        read[0].iter().map(|row| row_as_text(row, " ")).collect()
    }
}

/// The time of the machine, which readers and writers of a Delta log go by.
#[expect(clippy::disallowed_methods, reason = "the log says itself when a file was replaced")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// What another engine reads of the table in a folder, or of a version of it.
pub fn read_with(engine: &str, folder: &str, version: Option<u64>) -> Result<Foreign, String> {
    let output = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers.py"))
        .args([engine, folder])
        .args(version.map(|version| version.to_string()))
        .envs(environment_of(folder))
        .output()
        .expect("the reader runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let read = |name: &str| read[name].clone();
    let columns = serde_json::from_value(read("columns")).expect("columns");
    Ok((columns, serde_json::from_value(read("rows")).expect("rows")))
}

/// The values of a row with a separator between them; null is `null`.
pub fn row_as_text(row: &[Option<String>], separator: &str) -> String {
    let values = row.iter().map(|value| value.as_deref().unwrap_or("null"));
    values.collect::<Vec<_>>().join(separator)
}
