//! What the tests stand on: a place for raw files and tables (a local folder or an S3 server), a
//! writer of raw Parquet, a runner, and a reader of tables that shares no code with the program.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use glueless::config::Pipeline;
use glueless::error::Result;
use glueless::pipeline::{Request, Task};
use glueless::report::Report;
use glueless::session::Resources;
use glueless::store::{Folder, Location, Stores, parse_path};
use glueless::window::{Window, parse_instant};
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

pub static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// A row of a table: column name to value as text; null values are absent.
pub type Row = BTreeMap<String, String>;

/// The virtual environment's Python, which the Makefile installs.
#[expect(
    clippy::disallowed_methods,
    reason = "the Makefile says where Python is"
)]
pub fn python() -> PathBuf {
    let python = std::env::var_os("GLUELESS_TEST_PYTHON");
    PathBuf::from(python.expect("GLUELESS_TEST_PYTHON is not set: run the tests with `make test`"))
}

/// An S3 server that ends with the tests: it stops when its standard input closes.
struct S3Server {
    endpoint: String,
    _child: Child,
    _stdin: ChildStdin,
}

static S3: LazyLock<S3Server> = LazyLock::new(|| {
    let mut child = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3_server.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the S3 server starts");
    let stdin = child.stdin.take().expect("its stdin");
    let mut port = String::new();
    BufReader::new(child.stdout.take().expect("its stdout"))
        .read_line(&mut port)
        .expect("its port");
    S3Server {
        endpoint: format!("http://127.0.0.1:{}", port.trim()),
        _child: child,
        _stdin: stdin,
    }
});

/// The environment that reaches the S3 server.
pub fn s3_environment() -> Vec<(String, String)> {
    let variables = [
        ("AWS_ENDPOINT_URL", S3.endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    variables
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .to_vec()
}

/// Where a test's raw files and tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Local,
    S3,
}

/// A pipeline of a test, with its own raw folder and lake.
pub struct Lab {
    pub folder: TempDir,
    pub base: String,
    pub stores: Stores,
    pub pipeline: PathBuf,
}

impl Lab {
    /// A lab with `pipeline.toml` and SQL files; `{base}` in the toml is the lab's base URL.
    pub fn new(place: Place, toml: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, stores) = match place {
            Place::Local => (folder.path().display().to_string(), Stores::default()),
            Place::S3 => {
                let name = folder.path().file_name().expect("a name").to_string_lossy();
                (
                    format!("s3://lab/{}", name.trim_start_matches('.')),
                    Stores::new(s3_environment()),
                )
            }
        };
        let pipeline = folder.path().join("pipeline");
        std::fs::create_dir(&pipeline).expect("a folder");
        std::fs::create_dir(folder.path().join("raw")).expect("a folder");
        std::fs::write(
            pipeline.join("pipeline.toml"),
            toml.replace("{base}", &base),
        )
        .expect("written");
        for (name, text) in files {
            std::fs::write(pipeline.join(name), text).expect("written");
        }
        Lab {
            folder,
            base,
            stores,
            pipeline,
        }
    }

    /// A folder below the lab's base.
    pub fn open(&self, name: &str) -> Folder {
        let location = Location::parse(&format!("{}/{name}", self.base), self.folder.path());
        self.stores
            .open(&location.expect("a location"))
            .expect("a folder")
    }

    /// Writes one object.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let base = self.open("");
        let written = async {
            base.store
                .put(&parse_path(path).expect("a path"), bytes.into())
                .await
        };
        RUNTIME.block_on(written).expect("written");
    }

    /// Writes many objects at once.
    pub fn put_all(&self, objects: Vec<(String, Vec<u8>)>) {
        let base = self.open("");
        let puts = objects.into_iter().map(|(path, bytes)| {
            let store = Arc::clone(&base.store);
            async move {
                store
                    .put(&parse_path(&path).expect("a path"), bytes.into())
                    .await
            }
        });
        let written = stream::iter(puts)
            .buffer_unordered(16)
            .try_for_each(|_| async { Ok(()) });
        RUNTIME.block_on(written).expect("written");
    }

    /// Removes one object.
    pub fn remove(&self, path: &str) {
        let base = self.open("");
        let removed = async { base.store.delete(&parse_path(path).expect("a path")).await };
        RUNTIME.block_on(removed).expect("removed");
    }

    /// Writes one raw Parquet file.
    pub fn put_raw(&self, path: &str, batch: &RecordBatch) {
        self.put(&format!("raw/{path}"), parquet(batch, None));
    }

    /// Sets when an object of a local lab was last written, in seconds since 1970.
    pub fn set_modified(&self, path: &str, seconds: i64) {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds as u64);
        let file = std::fs::File::options()
            .write(true)
            .open(format!("{}/{path}", self.base))
            .expect("a file");
        file.set_modified(at).expect("set");
    }

    /// The names of all objects below a folder, sorted, hidden ones left out.
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut names = self.list_all(name);
        names.retain(|name| !name.split('/').any(|part| part.starts_with('_')));
        names
    }

    /// The names of all objects below a folder, sorted.
    pub fn list_all(&self, name: &str) -> Vec<String> {
        let folder = self.open(name);
        let listed = async { folder.store.list(None).try_collect::<Vec<_>>().await };
        let objects = RUNTIME.block_on(listed).unwrap_or_default();
        let mut names: Vec<String> = objects
            .into_iter()
            .map(|object| object.location.to_string())
            .collect();
        names.sort();
        names
    }

    /// Reads one object.
    pub fn get(&self, path: &str) -> Bytes {
        let base = self.open("");
        let read = async {
            let found = base.store.get(&parse_path(path).expect("a path")).await?;
            found.bytes().await
        };
        RUNTIME.block_on(read).expect("read")
    }

    /// Every row of a Hive-partitioned Parquet table, sorted.
    pub fn table(&self, name: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        for path in self.list(name) {
            let mut constants = Row::new();
            for part in path.split('/') {
                if let Some((column, value)) = part.split_once('=')
                    && value != "__HIVE_DEFAULT_PARTITION__"
                {
                    constants.insert(decode(column), decode(value));
                }
            }
            for mut row in rows_of(self.get(&format!("{name}/{path}"))) {
                row.extend(constants.clone());
                rows.push(row);
            }
        }
        rows.sort();
        rows
    }

    /// The checked pipeline, with overrides.
    pub fn read(&self, set: &[&str]) -> Result<Pipeline> {
        let set: Vec<String> = set.iter().map(|text| text.to_string()).collect();
        Pipeline::read(&self.pipeline, &set)
    }

    /// Runs the pipeline in this process.
    pub fn run_with(
        &self,
        task: fn(Window) -> Task,
        start: &str,
        end: &str,
        set: &[&str],
    ) -> Result<Report> {
        self.run_in(task, start, end, set, std::env::temp_dir())
    }

    /// Runs the pipeline in this process, with a folder of its own to spill to.
    pub fn run_in(
        &self,
        task: fn(Window) -> Task,
        start: &str,
        end: &str,
        set: &[&str],
        spill_dir: PathBuf,
    ) -> Result<Report> {
        let date = |text| parse_instant(text).expect("a date");
        let window = Window::new(date(start), date(end)).expect("a window");
        self.run_task(task(window), set, spill_dir)
    }

    /// Makes everything again.
    pub fn rebuild(&self, accept_missing: bool, set: &[&str]) -> Result<Report> {
        self.run_task(Task::Rebuild { accept_missing }, set, std::env::temp_dir())
    }

    fn run_task(&self, task: Task, set: &[&str], spill_dir: PathBuf) -> Result<Report> {
        let pipeline = self.read(set)?;
        let request = Request {
            task,
            pipeline: &pipeline,
            run_id: &uuid::Uuid::now_v7().to_string(),
            now: chrono::DateTime::UNIX_EPOCH,
            stores: &self.stores,
            resources: &Resources {
                memory_bytes: pipeline.limits.memory_bytes.unwrap_or(1 << 30),
                spill_dir,
                threads: 2,
            },
        };
        RUNTIME.block_on(glueless::pipeline::run(&request))
    }

    /// Curates and aggregates.
    pub fn run(&self, start: &str, end: &str) -> Result<Report> {
        self.run_with(Task::Run, start, end, &[])
    }
}

/// Undoes the percent-encoding of a folder name.
fn decode(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        let code = u8::from_str_radix(&after[..2], 16).expect("an escape");
        decoded.push(char::from(code));
        rest = &after[2..];
    }
    decoded + rest
}

/// A batch as a Parquet file.
pub fn parquet(
    batch: &RecordBatch,
    properties: Option<parquet::file::properties::WriterProperties>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batch.schema(), properties).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("closed");
    bytes
}

/// A batch of nullable columns.
pub fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let field =
        |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(schema), arrays).expect("a batch")
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
            (
                field.name().clone(),
                (0..column.len()).map(text).collect::<Vec<_>>(),
            )
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

fn rows_of(file: Bytes) -> Vec<Row> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .expect("Parquet")
        .build()
        .expect("a reader");
    reader
        .flat_map(|batch| rows(&batch.expect("a batch")))
        .collect()
}
