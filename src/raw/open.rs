//! Opening inputs: many small files, as fast as storage delivers them.
//!
//! Local files are read by threads that block on the disk, because passing each of many small files
//! between threads costs more than reading it. Remote files are fetched concurrently. If several
//! files cannot be opened, the error names the first of them, because files are opened in order.
//!
//! CSV and JSON files, and envelopes in Parquet, are converted to flat Parquet here
//! ([`crate::raw::csv`], [`crate::raw::json`], [`crate::raw::envelope`]), into a few spill files that
//! many inputs share.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{DataType, SchemaRef};
use bytes::{Buf, Bytes};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SpillFile, SpillWriter};
use futures::executor::block_on;
use futures::future::try_join;
use futures::stream::{self, StreamExt, TryStreamExt};
use futures::{FutureExt, TryFutureExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use crate::config::{Envelope, Masks, OnBad, Raw, RawFormat};
use crate::engine::resources::Resources;
use crate::engine::session::BATCH_ROWS;
use crate::engine::tasks::{Work, spawn, spawn_blocking};
use crate::error::{Error, Kind, Result};
use crate::parquet_io::open::{Columns, ObjectReader, ParquetFile, SMALL_BYTES_MAX, read_error};
use crate::raw::bad_rows::{BadRow, BadRows};
use crate::raw::columns::UsedColumns;
use crate::raw::csv::{self, decompressed, spill_failed};
use crate::raw::discover::Input;
use crate::raw::envelope::Unavailable;
use crate::raw::envelope::flatten::{self, Declared, Layout};
use crate::raw::fingerprint::{self, Fingerprint, Passing};
use crate::raw::json::{self, Converted, Found, Unfolded};
use crate::raw::loads::EarlierLoads;
use crate::store::{Folder, parse_path};

/// The number of local files opened concurrently, and the least number of remote ones.
const OPENS: usize = 16;
/// The largest number of remote files opened concurrently, as memory allows.
const REMOTE_OPENS_MAX: usize = 64;
/// The size of one fetch of a CSV or JSON file.
const FETCHED_BYTES: u64 = 4 << 20;

/// An opened input.
#[derive(Debug)]
pub struct Opened {
    /// The input.
    pub input: Input,
    /// Its rows as a Parquet file.
    pub file: ParquetFile,
    /// The rows that could not be read; placeholders in `file`.
    pub bad_rows: Vec<BadRow>,
    /// Whether the input is empty and its columns are not known.
    pub is_blank: bool,
    /// The number of changes of other tables in the input, which are not rows of `file`.
    pub other_rows: u64,
    /// The numbers of the rows that are no changes, ascending; placeholders in `file`.
    pub ignored: Vec<u64>,
    /// The columns before they were masked, if the values in `file` are.
    pub source: Option<SchemaRef>,
}

/// The result of opening inputs.
#[derive(Debug, Default)]
pub struct OpenedInputs {
    /// The opened inputs, in order.
    pub opened: Vec<Opened>,
    /// The inputs that cannot be read, with their errors, if the pipeline quarantines them.
    pub bad: Vec<(Input, Error)>,
    /// The spill files that the opened inputs read from.
    pub spilled: Spilled,
}

/// Spill files, removed when this is dropped.
#[derive(Default)]
pub struct Spilled(Vec<Arc<dyn SpillFile>>);

impl fmt::Debug for Spilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} spilled files", self.0.len())
    }
}

/// The settings and resources for opening inputs.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The raw folders.
    pub folders: &'a [Folder],
    /// The raw settings of the pipeline.
    pub raw: &'a Raw,
    /// The limit of the bytes of small files that are cached.
    pub cached_bytes_max: usize,
    /// The engine's runtime, with the spill disk.
    pub runtime: &'a Arc<RuntimeEnv>,
    /// The number of files converted concurrently.
    pub threads: usize,
    /// The bad rows of the run, with their limits.
    pub bad_rows: &'a Arc<BadRows>,
    /// Whether pass one reads all texts that the pipeline uses, to find those that are not UTF-8.
    pub checks_texts: bool,
    /// The full loads of earlier runs.
    pub loads: EarlierLoads<'a>,
}

type OneOpened = Result<Opened, Box<(Input, Error)>>;

impl<'a> Opening<'a> {
    /// The settings for a run with these resources: small files are cached in up to an eighth of
    /// its memory.
    pub fn new(
        folders: &'a [Folder],
        raw: &'a Raw,
        resources: &Resources,
        runtime: &'a Arc<RuntimeEnv>,
        bad_rows: &'a Arc<BadRows>,
    ) -> Self {
        Opening {
            folders,
            raw,
            cached_bytes_max: (resources.memory_bytes / 8) as usize,
            runtime,
            threads: resources.threads,
            bad_rows,
            checks_texts: false,
            loads: EarlierLoads::default(),
        }
    }

    /// Opens inputs of a table with a key, or without.
    ///
    /// # Errors
    /// Data, for a damaged file, unless the pipeline quarantines such files; storage, when a file
    /// cannot be read.
    pub async fn open(
        &self,
        inputs: Vec<Input>,
        key: &[String],
        used: &UsedColumns,
    ) -> Result<OpenedInputs> {
        self.raw.masks.check_unlocked()?;
        let envelope = self.raw.envelope.as_ref();
        let marks = envelope.map(|envelope| Unavailable::of(envelope, used.clone()));
        let opener = Arc::new(Opener {
            folders: self.folders.to_vec(),
            cached_bytes_max: self.cached_bytes_max,
            cached_bytes: AtomicUsize::new(0),
            csv: [false, true].map(|full_load| csv::Form::of(self.raw, full_load)),
            json: json::Form::of(self.raw, key, marks.as_ref()),
            format: self.raw.format,
            envelope: envelope.cloned().zip(marks),
            masks: self.raw.masks.clone(),
            declared: self.raw.columns.clone(),
            runtime: Handle::current(),
            quarantines_files: self.raw.on_bad_file == OnBad::Quarantine,
            bad_rows: Arc::clone(self.bad_rows),
            spills: Spills { runtime: Arc::clone(self.runtime), free: Mutex::default() },
        });
        let converts = opener.converts();
        let concurrency = |opens: usize| if converts { self.threads.max(1) } else { opens };
        let is_local = |folder: &Folder| folder.location.file_path().is_some();
        let each = if self.folders.iter().all(is_local) {
            let opens = concurrency(OPENS);
            Arc::clone(&opener).open_local(inputs, opens).await?
        } else {
            let in_memory = self.cached_bytes_max / SMALL_BYTES_MAX as usize;
            let opens = concurrency(in_memory.clamp(OPENS, REMOTE_OPENS_MAX));
            Arc::clone(&opener).open_remote(inputs, opens).await?
        };
        let mut all = OpenedInputs::default();
        for one in each {
            match one.map_err(|failed| *failed) {
                Ok(opened) => all.opened.push(opened),
                Err((input, error)) if opener.quarantines(&error) => all.bad.push((input, error)),
                Err((_, error)) => return Err(error),
            }
        }
        let mut spills = opener.spills.free.lock().unwrap_or_else(PoisonError::into_inner);
        all.spilled = Spilled(spills.drain(..).map(|spill| spill.file).collect());
        drop(spills);
        Ok(all)
    }
}

struct Opener {
    folders: Vec<Folder>,
    cached_bytes_max: usize,
    cached_bytes: AtomicUsize,
    format: RawFormat,
    /// The format of CDC files in CSV, and of full loads.
    csv: [csv::Form; 2],
    /// The format of JSON files.
    json: json::Form,
    envelope: Option<(Envelope, Unavailable)>,
    /// The masks of the columns, which files are converted with.
    masks: Masks,
    /// `[raw.columns]`.
    declared: Vec<(String, DataType)>,
    /// The runtime that reads files for the threads that convert them.
    runtime: Handle,
    quarantines_files: bool,
    bad_rows: Arc<BadRows>,
    spills: Spills,
}

impl Opener {
    /// Whether files are converted when they are opened.
    fn converts(&self) -> bool {
        self.format != RawFormat::Parquet || self.envelope.is_some()
    }

    /// Whether a file with this error is quarantined instead of stopping the run.
    fn quarantines(&self, error: &Error) -> bool {
        self.quarantines_files && error.kind == Kind::Data && !error.is_of_rows
    }

    async fn open_local(
        self: Arc<Self>,
        inputs: Vec<Input>,
        opens: usize,
    ) -> Result<Vec<OneOpened>> {
        spawn_blocking(move || {
            let threads = inputs.len().min(opens);
            let work = Work::new(inputs.into_iter().enumerate().collect());
            let mut opened = std::thread::scope(|scope| {
                let started = (0..threads).map(|_| {
                    std::thread::Builder::new().spawn_scoped(scope, || self.open_some(&work))
                });
                let mut opened = Vec::new();
                // Start all threads before joining the first.
                for thread in started.collect::<Vec<_>>() {
                    let failed = |how| Error::internal(format!("a thread that opens files {how}"));
                    let thread = thread.map_err(|error| failed("cannot start").caused_by(error))?;
                    opened.extend(thread.join().map_err(|_| failed("ended abruptly"))?);
                }
                Ok::<_, Error>(opened)
            })?;
            opened.sort_unstable_by_key(|(index, _)| *index);
            Ok(opened.into_iter().map(|(_, opened)| opened).collect())
        })
        .await
    }

    /// Opens inputs, with their indices, until none is left or one stops the run.
    fn open_some(&self, work: &Work<(usize, Input)>) -> Vec<(usize, OneOpened)> {
        let (mut opened, mut known) = (Vec::new(), None);
        while let Some((index, input)) = work.next() {
            let tried = if self.converts() {
                self.open_converted(input, None)
            } else {
                block_on(self.open_parquet(input))
            };
            let one = tried.map(|one| one.without_footer(&mut known));
            let is_last = self.stops_at(&one);
            opened.push((index, one));
            if is_last {
                break;
            }
        }
        opened
    }

    async fn open_remote(
        self: Arc<Self>,
        inputs: Vec<Input>,
        opens: usize,
    ) -> Result<Vec<OneOpened>> {
        let mut tasks = stream::iter(inputs)
            .map(|input| {
                let opener = Arc::clone(&self);
                if self.converts() {
                    let handle = Some(Handle::current());
                    spawn_blocking(move || Ok(opener.open_converted(input, handle))).boxed()
                } else {
                    spawn(async move { Ok(opener.open_parquet(input).await) }).boxed()
                }
            })
            .buffered(opens);
        let (mut opened, mut known) = (Vec::new(), None);
        while let Some(one) = tasks.try_next().await? {
            let one = one.map(|one| one.without_footer(&mut known));
            let is_last = self.stops_at(&one);
            opened.push(one);
            if is_last {
                break;
            }
        }
        Ok(opened)
    }

    /// Whether the run stops at this input.
    fn stops_at(&self, opened: &OneOpened) -> bool {
        let failed = opened.as_ref().err();
        failed.is_some_and(|failed| !self.quarantines(&failed.1))
    }

    async fn open_parquet(&self, mut input: Input) -> OneOpened {
        match self.parquet(&input).await {
            Ok((file, fingerprint)) => {
                input.file.fingerprint = fingerprint;
                Ok(self.opened(input, file, Vec::new()))
            }
            Err(error) => Err(Box::new((input, error))),
        }
    }

    /// Opens a Parquet file. Returns its fingerprint, too.
    async fn parquet(&self, input: &Input) -> Result<(ParquetFile, Option<Fingerprint>)> {
        let size = input.file.size;
        // Only a file that no run has read needs its head for a fingerprint.
        let is_new = input.file.fingerprint.is_none();
        let head = fingerprint::head(size).filter(|_| is_new);
        let mut parts = Vec::new();
        let folder = &self.folders[input.file.location];
        let path = parse_path(&input.file.path)?;
        let name = folder.describe(&input.file.path);
        let reader = ObjectReader { store: Arc::clone(&folder.store), path, start: 0 };
        let Some(head) = head else {
            let file = ParquetFile::open_in(reader, size, name, &mut parts).await?;
            let known = input.file.fingerprint;
            return Ok((file, known.or_else(|| fingerprint::of_parts(size, &parts))));
        };
        let fetched = reader.range(head).map_err(|error| read_error(&name, error.into()));
        let file = ParquetFile::open_in(reader.clone(), size, name.clone(), &mut parts);
        let (file, fetched) = try_join(file, fetched).await?;
        parts.push((0, fetched));
        Ok((file, fingerprint::of_parts(size, &parts)))
    }

    /// Converts a file to a range of a spill file and opens that. Storage that needs the runtime is
    /// awaited through `handle`.
    fn open_converted(&self, mut input: Input, handle: Option<Handle>) -> OneOpened {
        let passing = RefCell::new(Passing::new(input.file.size));
        let opened = || {
            let folder = &self.folders[input.file.location];
            let name = folder.describe(&input.file.path);
            let mut spill = self.spills.take()?;
            let converted = self.convert(&input, &name, handle.as_ref(), &passing, &mut spill);
            // The bytes of a file that failed stay unused.
            let part = converted.and_then(|flat| Ok((spill.reader(flat.start)?, flat)));
            self.spills.put_back(spill);
            let ((reader, size), flat) = part?;
            Ok((block_on(ParquetFile::open_in(reader, size, name, &mut Vec::new()))?, flat))
        };
        match opened() {
            Ok((file, flat)) => {
                let known = input.file.fingerprint.or(flat.fingerprint);
                input.file.fingerprint = known.or_else(|| passing.borrow().fingerprint());
                Ok(Opened {
                    is_blank: flat.is_blank,
                    other_rows: flat.other_rows,
                    ignored: flat.ignored,
                    source: flat.source.filter(|_| !self.masks.is_empty()),
                    ..self.opened(input, file, flat.bad)
                })
            }
            Err(error) => Err(Box::new((input, error))),
        }
    }

    /// Converts a file, to the end of a spill file.
    fn convert(
        &self,
        input: &Input,
        name: &str,
        handle: Option<&Handle>,
        passing: &RefCell<Passing>,
        spill: &mut Spill,
    ) -> Result<Flat> {
        let store = || Arc::clone(&self.folders[input.file.location].store);
        let text = || {
            // A JSON file may be read twice.
            *passing.borrow_mut() = Passing::new(input.file.size);
            let object = ObjectRead {
                store: store(),
                path: parse_path(&input.file.path)?,
                rest: 0..input.file.size,
                fetched: Bytes::new(),
                passing,
                handle: handle.cloned(),
            };
            // A file without a byte has no rows, whatever its name says of its compression.
            match input.file.size {
                0 => Ok(Box::new(io::empty()) as Box<dyn Read>),
                _ => decompressed(&input.file.path, object),
            }
        };
        let mut flat = Flat { start: spill.written, ..Flat::default() };
        let bad_rows = &self.bad_rows;
        match (self.format, &self.envelope) {
            (RawFormat::Csv, _) => {
                let form = &self.csv[usize::from(input.full_load)];
                let csv::Converted { bad, is_blank, other_rows, source } =
                    csv::to_parquet(name, text()?, (form, &self.masks), bad_rows, spill)?;
                Ok(Flat { bad, is_blank, other_rows, source: Some(source), ..flat })
            }
            (RawFormat::Parquet, Some((envelope, marks))) => {
                let converted = async {
                    let (file, fingerprint) = self.parquet(input).await?;
                    let declared = Declared { columns: &self.declared, masks: &self.masks };
                    let layout = Layout::of(&file, envelope, &declared)?;
                    let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
                    let rows = file.read(&columns, BATCH_ROWS);
                    let unfolded =
                        flatten::to_parquet(name, &layout, marks, rows, bad_rows, spill).await?;
                    Ok::<_, Error>((unfolded, fingerprint))
                };
                // Large files are read ahead, in tasks.
                let (unfolded, fingerprint) = self.runtime.block_on(converted)?;
                let Unfolded { bad, ignored, source } = unfolded;
                Ok(Flat { bad, ignored, fingerprint, source, ..flat })
            }
            _ => {
                let mut found = Found::default();
                loop {
                    flat.start = spill.written;
                    let form = (&self.json, &self.masks);
                    match json::to_parquet(name, text()?, form, found, bad_rows, &mut *spill)? {
                        Converted::Whole(Unfolded { bad, ignored, source }) => {
                            return Ok(Flat { bad, ignored, source, ..flat });
                        }
                        Converted::Again(known) => found = known,
                    }
                }
            }
        }
    }

    fn opened(&self, input: Input, mut file: ParquetFile, bad_rows: Vec<BadRow>) -> Opened {
        let bytes = file.cached_bytes();
        if self.cached_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.cached_bytes_max {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
            file = file.without_bytes();
        }
        let ignored = Vec::new();
        let (is_blank, other_rows, source) = (false, 0, None);
        Opened { input, file, bad_rows, is_blank, other_rows, ignored, source }
    }
}

/// A file that was converted to flat Parquet.
#[derive(Default)]
struct Flat {
    /// Where it begins in its spill file.
    start: u64,
    bad: Vec<BadRow>,
    ignored: Vec<u64>,
    is_blank: bool,
    other_rows: u64,
    /// The fingerprint of the file, if it was taken when the file was opened.
    fingerprint: Option<Fingerprint>,
    /// The columns before they were masked.
    source: Option<SchemaRef>,
}

impl Opened {
    fn without_footer(mut self, known: &mut Option<Columns>) -> Self {
        self.file = self.file.without_footer(known);
        self
    }
}

/// A reader of a whole object, fetched range by range.
struct ObjectRead<'a> {
    store: Arc<dyn ObjectStore>,
    path: Path,
    rest: Range<u64>,
    fetched: Bytes,
    /// What a fingerprint looks at.
    passing: &'a RefCell<Passing>,
    handle: Option<Handle>,
}

impl Read for ObjectRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.fetched.is_empty() && !self.rest.is_empty() {
            let end = self.rest.end.min(self.rest.start + FETCHED_BYTES);
            let fetch = self.store.get_range(&self.path, self.rest.start..end);
            let fetched = match &self.handle {
                Some(handle) => handle.block_on(fetch),
                None => block_on(fetch),
            };
            let failed = |error| Error::store(format!("read {}", self.path), error);
            self.fetched = fetched.map_err(|error| io::Error::other(failed(error)))?;
            self.passing.borrow_mut().pass(self.rest.start, &self.fetched);
            self.rest.start = end;
        }
        (&mut self.fetched).reader().read(buffer)
    }
}

/// Spill files; one thread at a time appends to each.
struct Spills {
    runtime: Arc<RuntimeEnv>,
    free: Mutex<Vec<Spill>>,
}

struct Spill {
    file: Arc<dyn SpillFile>,
    writer: BufWriter<Box<dyn SpillWriter>>,
    written: u64,
}

impl Spills {
    fn take(&self) -> Result<Spill> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(spill) = free {
            return Ok(spill);
        }
        let file = self.runtime.disk_manager.create_tmp_file("converted raw files")?;
        Ok(Spill { writer: BufWriter::new(file.open_writer()?), written: 0, file })
    }

    fn put_back(&self, spill: Spill) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(spill);
    }
}

impl Spill {
    /// A reader of the bytes written since the offset `start`, and their size.
    fn reader(&mut self, start: u64) -> Result<(ObjectReader, u64)> {
        let failed = |error| spill_failed("the rows of a raw file", error);
        self.writer.flush().map_err(failed)?;
        let lost = || Error::internal("spilled data is not on a local disk");
        let path = Path::from_absolute_path(self.file.path().ok_or_else(lost)?)
            .map_err(|error| lost().caused_by(error))?;
        let store = Arc::new(LocalFileSystem::new());
        Ok((ObjectReader { store, path, start }, self.written - start))
    }
}

impl Write for Spill {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pipeline;
    use crate::error::Kind;
    use crate::raw::discover::RawFile;
    use crate::store::{Location, Stores};
    use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
    use chrono::DateTime;
    use parquet::arrow::ArrowWriter;

    fn input_of(path: String, bytes: usize) -> Input {
        let file = RawFile {
            location: 0,
            path,
            size: bytes as u64,
            modified: DateTime::UNIX_EPOCH,
            e_tag: None,
            fingerprint: None,
            first_modified: None,
            load: None,
            commit: 0,
            rows: None,
            is_absent: false,
        };
        Input { file, full_load: false, late: false, rows: None, only: None }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_that_stand_for_others_in_the_spill_folder_have_masked_values() {
        let event =
            r#"{"before": null, "after": {"id": 1, "mail": "ann@x.org"}, "op": "c", "ts_ms": 7}"#;
        for (format, dialect, text) in [
            ("csv", "dms", "I,1,ann@x.org\n"),
            ("json", "dms", "{\"Op\": \"I\", \"id\": 1, \"mail\": \"ann@x.org\"}\n"),
            ("json", "debezium", event),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let toml = format!(
                "name = \"p\"\nkey = [\"id\"]\n[raw]\nurl = \"raw\"\nformat = \"{format}\"\n\
                 dialect = \"{dialect}\"\n[curated]\nurl = \"t\"\n[mask]\nmail = \"hmac\"\nid = \"hmac\"\n"
            );
            std::fs::write(folder.path().join("pipeline.toml"), toml).expect("written");
            std::fs::write(folder.path().join("curated.sql"), "SELECT id").expect("written");
            std::fs::create_dir(folder.path().join("raw")).expect("a folder");
            let columns = "raw.columns={Op = \"VARCHAR\", id = \"BIGINT\", mail = \"VARCHAR\"}";
            let set = if format == "csv" { vec![columns.to_string()] } else { Vec::new() };
            let mut pipeline = Pipeline::read(folder.path(), &set).expect("a pipeline");
            let secret = "0123456789abcdef".to_string();
            let environment = [("GLUELESS_MASK_KEY".to_string(), secret)].into();
            pipeline.unlock(&environment).expect("a secret");
            let name = format!("20200101-000000000.{format}");
            std::fs::write(folder.path().join("raw").join(&name), text).expect("written");
            let raw = Stores::default().open(&pipeline.raw.urls[0]).expect("a folder");
            let (runtime, bad_rows) = (Arc::default(), Arc::new(BadRows::new(0)));
            let resources = Resources {
                memory_bytes: 1 << 30,
                spill_dir: folder.path().into(),
                spill_bytes_max: u64::MAX,
                threads: 1,
            };
            let folders = [raw];
            let opening = Opening::new(&folders, &pipeline.raw, &resources, &runtime, &bad_rows);
            let used = UsedColumns::of(&pipeline);
            let inputs = vec![input_of(name, text.len())];
            let opened = opening.open(inputs, &pipeline.key, &used).await.expect("opened").opened;
            let file = &opened[0].file;
            assert!(opened[0].source.is_some());
            for name in ["id", "mail"] {
                let column = file.schema().index_of(name).expect("a column");
                let rows: Vec<_> = file.read(&[column], 10).try_collect().await.expect("rows");
                let texts = rows[0].column(0).as_string_view();
                assert!(crate::types::mask::is_hash(texts.value(0)), "{format} {name}: {texts:?}");
            }
        }
    }

    #[tokio::test]
    async fn inputs_keep_their_order_and_the_error_names_the_first_bad_one() {
        let raw = tempfile::tempdir().expect("a folder");
        let location = Location::parse(".", raw.path()).expect("a location");
        let folder = Stores::default().open(&location).expect("a folder");
        let input = |number: usize| {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![0; number + 1]));
            let batch = RecordBatch::try_from_iter([("a", column)]).expect("a batch");
            let mut bytes = Vec::new();
            let mut writer =
                ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
            writer.write(&batch).expect("written");
            writer.close().expect("written");
            let path = format!("{number:02}.parquet");
            std::fs::write(raw.path().join(&path), &bytes).expect("written");
            input_of(path, bytes.len())
        };
        let inputs: Vec<Input> = (0..40).map(input).collect();
        let folders = [folder];
        let toml = "name = \"p\"\nkey = [\"a\"]\n[raw]\nurl = \".\"\norder_by = [\"a\"]\n\
                    [curated]\nurl = \"t\"";
        let pipeline = tempfile::tempdir().expect("a folder");
        std::fs::write(pipeline.path().join("pipeline.toml"), toml).expect("written");
        std::fs::write(pipeline.path().join("curated.sql"), "SELECT a").expect("written");
        let read = |set: &str| {
            let set = [format!("raw.on_bad_file={set}"), "raw.url=raw".into()];
            Pipeline::read(pipeline.path(), &set).expect("a pipeline").raw
        };
        let (fails, quarantines) = (read("fail"), read("quarantine"));
        let cached_bytes_max = 10_000;
        let runtime = Arc::new(RuntimeEnv::default());
        let opening = Opening {
            folders: &folders,
            raw: &fails,
            cached_bytes_max,
            runtime: &runtime,
            threads: 2,
            bad_rows: &Arc::new(BadRows::new(0)),
            checks_texts: false,
            loads: EarlierLoads::default(),
        };
        let opened = opening
            .open(inputs.clone(), &[], &UsedColumns::default())
            .await
            .expect("opened")
            .opened;
        let rows: Vec<u64> = opened.iter().map(|one| one.file.row_count()).collect();
        assert_eq!(rows, (1..=40).collect::<Vec<u64>>());
        let cached: usize = opened.iter().map(|one| one.file.cached_bytes()).sum();
        assert!(cached > 0 && cached <= cached_bytes_max, "{cached}");
        for bad in [37, 21, 22] {
            let file = &inputs[bad].file;
            let nothing = vec![0; file.size as usize];
            std::fs::write(raw.path().join(&file.path), nothing).expect("written");
        }
        let failed = opening
            .open(inputs.clone(), &[], &UsedColumns::default())
            .await
            .expect_err("three are damaged");
        assert_eq!(failed.kind, Kind::Data);
        assert!(failed.to_string().contains("21.parquet"), "{failed}");
        let opening = Opening { raw: &quarantines, ..opening };
        let opened = opening
            .open(inputs, &[], &UsedColumns::default())
            .await
            .expect("the others are opened");
        let bad: Vec<&str> = opened.bad.iter().map(|(input, _)| input.file.path.as_str()).collect();
        assert_eq!(bad, ["21.parquet", "22.parquet", "37.parquet"]);
        assert_eq!(opened.opened.len(), 37);
    }
}
