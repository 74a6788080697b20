//! What the tests stand on: a place for raw files and tables (a local folder or an S3 server), a
//! writer of raw Parquet, a runner, and a reader of tables that shares no code with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future::LocalBoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use glueless::commands::backfill::{Backfill, Backfilled, Watch, backfill};
use glueless::commands::{Compared, Planned, RunContext, Task, Verified, plan, run, verify};
use glueless::config::Pipeline;
use glueless::engine::resources::Resources;
use glueless::error::Error;
use glueless::report::{Meter, Report};
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

/// The program.
pub fn glueless() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("glueless").to_path_buf()
}

/// A window, by its dates.
pub fn window(start: &str, end: &str) -> Window {
    let date = |text| parse_instant(text).expect("a date");
    Window::new(date(start), date(end)).expect("a window")
}

/// An answer that is being made.
pub type Asked<'a, A> = LocalBoxFuture<'a, glueless::error::Result<A>>;

/// 2020-01-01, in microseconds since 1970.
const FIRST_US: i64 = 1_577_836_800_000_000;
pub const DAY_US: i64 = 86_400_000_000;

/// A raw row.
pub struct Change<'a> {
    pub op: &'a str,
    pub id: i64,
    pub cat: &'a str,
    pub v: i64,
    /// When it was committed, in microseconds of its file's day.
    pub us: i64,
    /// When it happened, in microseconds since 2020-01-01.
    pub event_us: i64,
}

/// A pipeline of a test, with its own raw folder and lake.
pub struct Lab {
    pub folder: TempDir,
    pub base: String,
    pub stores: Stores,
    pub pipeline: PathBuf,
    /// When runs think it is.
    pub now: DateTime<Utc>,
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
            now: DateTime::UNIX_EPOCH,
        }
    }

    /// The same lab, reached in another way.
    pub fn through(
        &self,
        wrap: impl Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Self {
        Lab {
            folder: tempfile::tempdir().expect("a folder"),
            base: self.base.clone(),
            stores: self.stores.clone().wrapped(Arc::new(wrap)),
            pipeline: self.pipeline.clone(),
            now: self.now,
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

    /// Writes the file of a day of January 2020: operation, key and category, with the day as value.
    pub fn put_day(&self, day: i64, changes: &[(&str, i64, &str)]) {
        let rows = changes.iter().zip(0..);
        let rows = rows.map(|((op, id, cat), row)| Change {
            op,
            id: *id,
            cat,
            v: day,
            us: row,
            event_us: 0,
        });
        self.put_changes(day, &rows.collect::<Vec<_>>());
    }

    /// Writes the file of a day of January 2020.
    pub fn put_changes(&self, day: i64, changes: &[Change]) {
        let text = |of: fn(&Change) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(changes.iter().map(of)))
        };
        let number = |of: fn(&Change) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(changes.iter().map(of)))
        };
        let times = |since: i64, of: fn(&Change) -> i64| -> ArrayRef {
            let times = changes.iter().map(|change| since + of(change));
            Arc::new(TimestampMicrosecondArray::from_iter_values(times))
        };
        let columns = vec![
            ("Op", text(|change| change.op.into())),
            ("id", number(|change| change.id)),
            ("cat", text(|change| change.cat.into())),
            ("v", number(|change| change.v)),
            (
                "ts",
                times(FIRST_US + (day - 1) * DAY_US, |change| change.us),
            ),
            ("event", times(FIRST_US, |change| change.event_us)),
        ];
        self.put_raw(
            &format!("202001{day:02}-000000000.parquet"),
            &batch(columns),
        );
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

    /// The names of a table's files, sorted: those of its Delta log if it has one, otherwise all
    /// that are not hidden.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.files(name).into_keys().collect()
    }

    /// A table's files, and the values of their partition columns.
    fn files(&self, name: &str) -> BTreeMap<String, Row> {
        if let Some((files, _)) = self.log_of(name) {
            return files;
        }
        let mut files = BTreeMap::new();
        for path in self.list_all(name) {
            if path.split('/').any(|part| part.starts_with('_')) {
                continue;
            }
            let parts = path.split('/').filter_map(|part| part.split_once('='));
            let values = parts.filter(|(_, value)| *value != "__HIVE_DEFAULT_PARTITION__");
            let values = values.map(|(column, value)| (decode(column), decode(value)));
            files.insert(path.clone(), values.collect());
        }
        files
    }

    /// What a Delta table's log comes to: its files with the values of their partition columns,
    /// and all that it ever had. As the protocol has it:
    /// <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>.
    fn log_of(&self, name: &str) -> Option<(BTreeMap<String, Row>, BTreeSet<String>)> {
        let (mut files, mut all) = (BTreeMap::new(), BTreeSet::new());
        let commits = self.commits(name);
        for action in commits.iter().flatten() {
            let path =
                |action: &serde_json::Value| decode(action["path"].as_str().expect("a path"));
            if let Some(add) = action.get("add") {
                let values = add["partitionValues"].as_object().expect("values").iter();
                let values = values.filter_map(|(column, value)| {
                    Some((column.clone(), value.as_str()?.to_string()))
                });
                files.insert(path(add), values.collect());
                all.insert(path(add));
            }
            if let Some(remove) = action.get("remove") {
                files.remove(&path(remove)).expect("a file of the table");
            }
        }
        (!commits.is_empty()).then_some((files, all))
    }

    /// The actions of a Delta table's commits.
    pub fn commits(&self, name: &str) -> Vec<Vec<serde_json::Value>> {
        let names = self.list_all(name).into_iter();
        let commits =
            names.filter(|path| path.starts_with("_delta_log/0") && path.ends_with(".json"));
        let read = |path: String| {
            let text = self.get(&format!("{name}/{path}"));
            let text = String::from_utf8(text.to_vec()).expect("text");
            let actions = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"));
            actions.collect()
        };
        commits.map(read).collect()
    }

    /// The names of all objects below a folder, sorted.
    pub fn list_all(&self, name: &str) -> Vec<String> {
        let folder = self.open(name);
        let listed = async { folder.store.list(None).try_collect::<Vec<_>>().await };
        let objects = RUNTIME.block_on(listed).expect("listed");
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

    /// Checks that of the runs nothing is left but tables, and what they remember: in a Delta
    /// table, no file that its log does not know.
    pub fn assert_tidy(&self) {
        let left = self.list_all("lake/_glueless").into_iter();
        let is_memory = |path: &str| {
            let path = path.split_once('/').map(|(_, path)| path);
            path.is_some_and(|path| {
                let kept = ["versions/", "quarantine/"];
                kept.iter().any(|folder| path.starts_with(folder)) || path == "_glueless.json"
            })
        };
        let strays: Vec<String> = left.filter(|path| !is_memory(path)).collect();
        assert!(strays.is_empty(), "{strays:?}");
        let known = self
            .log_of("lake/curated")
            .into_iter()
            .flat_map(|log| log.1);
        let known: BTreeSet<String> = known.collect();
        let files = self.list_all("lake/curated").into_iter();
        let mut files = files.filter(|path| path.contains("part-"));
        let stray = files.find(|path| !known.is_empty() && !known.contains(path));
        assert_eq!(stray, None);
    }

    /// What another engine reads of a table, or of a version of it.
    pub fn read_with(
        &self,
        engine: &str,
        name: &str,
        version: Option<u64>,
    ) -> Result<Foreign, String> {
        read_with(engine, &format!("{}/{name}", self.base), version)
    }

    /// The names and contents of all objects below a folder.
    pub fn contents(&self, name: &str) -> BTreeMap<String, Bytes> {
        let paths = self.list_all(name).into_iter();
        paths
            .map(|path| (path.clone(), self.get(&format!("{name}/{path}"))))
            .collect()
    }

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

    /// The checked pipeline, with overrides.
    pub fn read(&self, set: &[&str]) -> glueless::error::Result<Pipeline> {
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
    ) -> glueless::error::Result<Report> {
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
    ) -> glueless::error::Result<Report> {
        self.run_task(task(window(start, end)), set, spill_dir)
    }

    /// Makes everything again.
    pub fn rebuild(&self, accept_missing: bool, set: &[&str]) -> glueless::error::Result<Report> {
        self.run_task(Task::Rebuild { accept_missing }, set, std::env::temp_dir())
    }

    /// Folds again what was put aside.
    pub fn catch_up(&self, set: &[&str]) -> glueless::error::Result<Report> {
        self.run_task(Task::CatchUp, set, std::env::temp_dir())
    }

    fn run_task(
        &self,
        task: Task,
        set: &[&str],
        spill_dir: PathBuf,
    ) -> glueless::error::Result<Report> {
        self.ask_in(set, spill_dir, |request| run(request, task))
    }

    /// Asks a question about the pipeline in this process.
    pub fn ask<A>(
        &self,
        set: &[&str],
        question: impl for<'a> FnOnce(&'a RunContext<'_>) -> Asked<'a, A>,
    ) -> glueless::error::Result<A> {
        let spill_dir = tempfile::tempdir().expect("a folder");
        let answer = self.ask_in(set, spill_dir.path().to_path_buf(), question);
        let left = std::fs::read_dir(spill_dir.path()).expect("listed");
        assert_eq!(
            left.count(),
            0,
            "something is left in the folder to spill to"
        );
        answer
    }

    /// What a run of a window would do.
    pub fn plan(&self, start: &str, end: &str, folds: bool) -> glueless::error::Result<Planned> {
        self.ask(&[], |request| plan(request, window(start, end), folds))
    }

    /// Runs the days of a span, one after the other.
    pub fn backfill(&self, start: &str, end: &str) -> glueless::error::Result<Backfilled> {
        let spill_dir = tempfile::tempdir().expect("a folder");
        let pipeline = self.read(&[])?;
        let resources = self.resources(&pipeline, spill_dir.path().to_path_buf());
        let watcher = Watcher {
            lab: self,
            pipeline: &pipeline,
            resources: &resources,
        };
        let asked = Backfill {
            span: window(start, end),
            step: chrono::Duration::days(1),
            redo: false,
            fail_fast: false,
        };
        RUNTIME.block_on(backfill(&asked, &pipeline, &watcher))
    }

    /// Compares the curated table with raw.
    pub fn verify(&self) -> glueless::error::Result<Verified> {
        self.ask(&[], |request| verify(request, Compared::default()))
    }

    fn ask_in<A>(
        &self,
        set: &[&str],
        spill_dir: PathBuf,
        question: impl for<'a> FnOnce(&'a RunContext<'_>) -> Asked<'a, A>,
    ) -> glueless::error::Result<A> {
        let pipeline = self.read(set)?;
        let resources = self.resources(&pipeline, spill_dir);
        let request = self.request(&pipeline, &resources);
        RUNTIME.block_on(question(&request))
    }

    fn resources(&self, pipeline: &Pipeline, spill_dir: PathBuf) -> Resources {
        Resources {
            memory_bytes: pipeline.limits.memory_bytes.unwrap_or(1 << 30),
            spill_dir,
            spill_bytes_max: pipeline.limits.spill_bytes_max.unwrap_or(u64::MAX),
            threads: 2,
        }
    }

    fn request<'a>(&'a self, pipeline: &'a Pipeline, resources: &'a Resources) -> RunContext<'a> {
        RunContext {
            pipeline,
            run_id: uuid::Uuid::now_v7().to_string(),
            now: self.now,
            stores: &self.stores,
            resources,
            meter: Meter {
                started: std::time::Instant::now(),
                peak_memory_bytes: || 0,
            },
        }
    }

    /// Curates and aggregates.
    pub fn run(&self, start: &str, end: &str) -> glueless::error::Result<Report> {
        self.run_with(Task::Run, start, end, &[])
    }
}

/// Looks on at nothing.
struct Watcher<'a> {
    lab: &'a Lab,
    pipeline: &'a Pipeline,
    resources: &'a Resources,
}

impl<'a> Watch<'a> for Watcher<'a> {
    fn begin(&self, _window: &Window, _done: usize, _all: usize) -> RunContext<'a> {
        self.lab.request(self.pipeline, self.resources)
    }

    fn end(&self, _request: &RunContext<'a>, _ended: &glueless::error::Result<Report>) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// A table as another engine reads it: names and types of its columns, and its rows as text.
pub type Foreign = (Vec<(String, String)>, Vec<Vec<Option<String>>>);

/// What another engine reads of the table in a folder, or of a version of it.
pub fn read_with(engine: &str, place: &str, version: Option<u64>) -> Result<Foreign, String> {
    let output = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers.py"))
        .args([engine, place])
        .args(version.map(|version| version.to_string()))
        .envs(
            place
                .starts_with("s3://")
                .then(s3_environment)
                .into_iter()
                .flatten(),
        )
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

/// Checks how a run was refused: its exit code, and parts of its message and of its hint.
#[track_caller]
pub fn assert_refused(error: Error, code: u8, message: &str, hint: &str) {
    let told = error.to_string();
    assert_eq!(error.kind.exit_code(), code, "{told}");
    assert!(told.contains(message), "{told}");
    let found = error.hint.unwrap_or_default();
    assert!(found.contains(hint), "{found}");
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

/// Changes as Parquet: columns of text, but for those named `id`, `v` or `BI_id`, which are
/// BIGINT; `-` is null.
pub fn changes(columns: &[&str], rows: &[&[&str]]) -> Vec<u8> {
    let column = |(number, name): (usize, &&str)| -> ArrayRef {
        let values = rows
            .iter()
            .map(|row| Some(row[number]).filter(|value| *value != "-"));
        match *name {
            "id" | "v" | "BI_id" => {
                let number = |value: &str| value.parse::<i64>().expect("a number");
                Arc::new(
                    values
                        .map(|value| value.map(number))
                        .collect::<Int64Array>(),
                )
            }
            _ => Arc::new(values.collect::<StringArray>()),
        }
    };
    let arrays = columns.iter().enumerate().map(column);
    parquet(&batch(columns.iter().copied().zip(arrays).collect()), None)
}

/// Changes as Parquet, of cells that were made: see [`changes`].
pub fn changes_of<const N: usize>(columns: &[&str; N], rows: &[[String; N]]) -> Vec<u8> {
    let rows: Vec<[&str; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(String::as_str))
        .collect();
    let rows: Vec<&[&str]> = rows.iter().map(|row| &row[..]).collect();
    changes(columns, &rows)
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
