//! State: what is remembered between runs, in one Delta table under the state folder.
//!
//! ```text
//! <state>/_glueless.json                          whose state this is
//! <state>/publishing/<attempt>                    an attempt that is about to commit and publish
//! <state>/versions/_delta_log/…                   one commit per run
//! <state>/versions/kind=version/<attempt>….parquet  versions: see crate::state::versions
//! <state>/versions/kind=ledger/<attempt>.parquet  the ledger: one JSON record per row
//! ```
//!
//! One commit carries a run's versions and its ledger records (see [`crate::state::ledger`]): both are
//! remembered, or neither. Ledger records are rows of data files, because the log's own commit
//! information does not outlive its cleanup.
//!
//! Whoever commits first wins: every commit names the number it is to have
//! ([`attempt_name`](crate::layout::attempt_name)), and nothing retries inside. What a loser wrote
//! is dead from then on, and anyone may remove it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, Utc};
use deltalake::kernel::Action;
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt};
use futures::{FutureExt, TryStreamExt};
use tracing::warn;

use crate::config::Pipeline;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result, missing_object};
use crate::layout::{attempt_commit, attempt_name, base_name};
use crate::parquet_io::open::ParquetFile;
use crate::state::ledger::{FORMAT, Ledger, Record};
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::VersionsFile;
use crate::store::listing::list;
use crate::store::remove::remove;
use crate::store::{Folder, Stores, parse_path};
use crate::table::delta_log::{DeltaLog, Description, add, delta_schema};
use crate::table::files::{FileTable, ListedFile};
use crate::table::writer::{parquet_properties, parquet_writer, write_error};

pub mod contract;
pub mod identity;
pub mod ledger;
pub mod quarantine;
pub mod versions;
pub mod versions_writer;

/// The ledger is written out again, as one file, once it has so many.
const LEDGER_FILES_MAX: usize = 32;
/// A ledger that is written out fast is written out sooner.
const SMALL_LEDGER_FILES_MAX: usize = 8;
/// From this size on, a ledger's file is not written out fast.
const LARGE_LEDGER_BYTES: u64 = 1 << 20;

/// The way out where a file of the state is not what was committed.
const RESTORE: &str = "restore this file of the state's folder from a backup; nothing was changed";

/// How many files of the ledger are read at once.
const READS: usize = 16;

/// The opened state of a pipeline.
pub struct State {
    /// What was committed when the state was opened.
    pub ledger: Ledger,
    log: DeltaLog,
    /// The ledger's files that it was replayed from.
    replayed: Vec<(String, u64)>,
    /// A file with versions that the ledger does not know.
    unknown: Option<String>,
}

/// How versions change in a commit.
#[derive(Debug)]
pub struct NewVersions<'a> {
    /// Their layout from here on.
    pub layout: &'a VersionsLayout,
    /// New files.
    pub files: &'a [VersionsFile],
    /// The paths of the files that go.
    pub replaced: &'a [String],
}

/// How a commit went wrong.
#[derive(Debug)]
pub struct NotCommitted {
    /// Why.
    pub error: Error,
    /// Whether it may still land: what was written for it must then stay.
    pub in_doubt: bool,
}

impl From<Error> for NotCommitted {
    fn from(error: Error) -> Self {
        NotCommitted {
            error,
            in_doubt: false,
        }
    }
}

impl State {
    /// Opens the state and reads the ledger; nothing is created.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub fn open<'a>(
        stores: &'a Stores,
        pipeline: &'a Pipeline,
    ) -> LocalBoxFuture<'a, Result<Self>> {
        Self::do_open(stores, pipeline).boxed_local()
    }

    async fn do_open(stores: &Stores, pipeline: &Pipeline) -> Result<Self> {
        let folder = stores.open(&pipeline.state.join("versions"))?;
        let mut state = State {
            log: DeltaLog::new(folder),
            ledger: Ledger::default(),
            replayed: Vec::new(),
            unknown: None,
        };
        state.read().await?;
        Ok(state)
    }

    /// The folder of the Delta table.
    pub fn folder(&self) -> &Folder {
        &self.log.folder
    }

    /// The number of the last commit; 0 before the first.
    pub fn last_commit(&self) -> u64 {
        self.log.version().unwrap_or_default()
    }

    /// The number the next commit will have.
    pub fn next_commit(&self) -> u64 {
        self.last_commit() + 1
    }

    /// Reads what was committed since.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub fn refresh(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        self.read().boxed_local()
    }

    /// Reads the log, and the files of the ledger that it names. A commit meanwhile may replace
    /// these files, and the one after it removes them: the log is then read again. Only a file
    /// that the newest commit names is missing.
    async fn read(&mut self) -> Result<()> {
        self.log.read().await?;
        loop {
            let commit = self.log.version();
            let Err(error) = self.replay().await else {
                return Ok(());
            };
            self.log.read().await?;
            if missing_object(&error).is_none() {
                return Err(error);
            }
            if self.log.version() == commit {
                return Err(Error::data("a file of the ledger is missing")
                    .hint(RESTORE)
                    .caused_by(error));
            }
        }
    }

    /// Replays the ledger's files that are new in the log.
    async fn replay(&mut self) -> Result<()> {
        let files = self.data_files("ledger");
        // Files never change: those that were read need not be read again.
        let (mut ledger, read) = if files.starts_with(&self.replayed) {
            (self.ledger.clone(), self.replayed.len())
        } else {
            (Ledger::default(), 0)
        };
        let new = files[read..].iter();
        let mut new =
            stream::iter(new.map(|file| read_records(&self.log.folder, file))).buffered(READS);
        while let Some(records) = new.try_next().await? {
            records.into_iter().for_each(|record| ledger.replay(record));
        }
        drop(new);
        let versions: BTreeSet<String> = self
            .data_files("version")
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        ledger.versions.retain(|path, _| versions.contains(path));
        let mut versions = versions.into_iter();
        self.unknown = versions.find(|path| !ledger.versions.contains_key(path));
        self.ledger = ledger;
        self.replayed = files;
        Ok(())
    }

    /// Checks that the ledger knows all versions.
    ///
    /// # Errors
    /// Data, naming a file that it does not know.
    pub fn check_known(&self) -> Result<()> {
        match &self.unknown {
            None => Ok(()),
            Some(path) => Err(
                Error::data(format!("the ledger does not know the versions {path}"))
                    .hint("the state is damaged: make it again with `glueless rebuild`"),
            ),
        }
    }

    /// The committed data files of one kind: path and size, in the order of their commits.
    pub fn data_files(&self, kind: &str) -> Vec<(String, u64)> {
        let prefix = format!("kind={kind}/");
        let files = self.log.files().iter();
        files
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(path, bytes)| (path.clone(), *bytes))
            .collect()
    }

    /// The committed versions as a relation, and their layout; `None` before the first run.
    ///
    /// # Errors
    /// Internal, when the ledger names a type that is none.
    pub fn versions(&self) -> Result<Option<(FileTable, VersionsLayout)>> {
        let Some(contract) = &self.ledger.contract else {
            return Ok(None);
        };
        let layout = contract.layout()?;
        let files = self
            .data_files("version")
            .into_iter()
            .map(|(path, bytes)| {
                Ok(ListedFile {
                    path: self.folder().root_path(&path)?,
                    bytes,
                    partition: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let table = FileTable::new(self.folder(), files, layout.schema(), Vec::new())?;
        Ok(Some((table, layout)))
    }

    /// What the paths of an attempt's files with versions begin with.
    pub fn versions_prefix(attempt: &str) -> String {
        format!("kind=version/{attempt}")
    }

    /// Commits a run: its ledger records, and how its versions change.
    ///
    /// # Errors
    /// Busy, when another run committed since the state was opened; storage, when the commit
    /// cannot be written. In both cases nothing is remembered of this run, unless it is in doubt.
    pub async fn commit(
        &mut self,
        run_id: &str,
        mut records: Vec<Record>,
        versions: Option<NewVersions<'_>>,
        now: DateTime<Utc>,
    ) -> Result<(), NotCommitted> {
        let number = self.next_commit();
        let layout = match (&versions, &self.ledger.contract) {
            (Some(versions), _) => versions.layout.clone(),
            (None, Some(contract)) => contract.layout()?,
            // A run that folded nothing: there are no versions yet.
            (None, None) => VersionsLayout::default(),
        };
        let description = describe(&layout)?;
        if self.log.version().is_none() {
            self.log.create(&description).await?;
            if self.log.version() != Some(0) {
                return Err(faster().into());
            }
        }
        let modified = now.timestamp_millis();
        let mut actions = Vec::new();
        if let Some(versions) = &versions {
            records.extend(versions.files.iter().map(|file| Record::Versions {
                path: file.path.clone(),
                days: file.days.iter().collect(),
            }));
            let replaced: BTreeSet<&str> = versions.replaced.iter().map(String::as_str).collect();
            actions.extend(self.log.remove_actions(|path| replaced.contains(path)));
            let added = versions.files.iter();
            actions.extend(added.map(|file| new_file("version", &file.path, file.bytes, modified)));
            actions.extend(self.log.metadata_action(&description)?);
        }
        let mut parts = self.data_files("ledger");
        let new = records.clone();
        let remember = |ledger: &mut Ledger| {
            for path in versions.iter().flat_map(|versions| versions.replaced) {
                ledger.versions.remove(path);
            }
            new.iter().cloned().for_each(|record| ledger.replay(record));
        };
        let largest = parts.iter().map(|(_, bytes)| *bytes).max();
        let parts_max = match largest.unwrap_or_default() {
            0..LARGE_LEDGER_BYTES => SMALL_LEDGER_FILES_MAX,
            _ => LEDGER_FILES_MAX,
        };
        if parts.len() >= parts_max {
            let mut ledger = self.ledger.clone();
            remember(&mut ledger);
            records = ledger.records();
            actions.extend(
                self.log
                    .remove_actions(|path| path.starts_with("kind=ledger/")),
            );
            parts.clear();
        }
        let path = format!("kind=ledger/{}.parquet", attempt_name(number, run_id));
        let bytes = write_records(self.folder(), &path, &records).await?;
        actions.push(new_file("ledger", &path, bytes, modified));
        parts.push((path.clone(), bytes));
        let mut written = vec![path];
        if let Some(versions) = &versions {
            written.extend(versions.files.iter().map(|file| file.path.clone()));
        }
        self.folder().sync(&written)?;
        let used = self.log.files().keys().cloned().chain(written).collect();
        match self.log.commit(actions, number, vec![]).await {
            Ok(()) => {
                remember(&mut self.ledger);
                self.replayed = parts;
            }
            Err(error) => {
                self.read().await.map_err(in_doubt)?;
                // A lost reply can look like a failure: what counts is what was committed.
                if self.ledger.run(run_id).is_none() {
                    if self.last_commit() < number {
                        return Err(NotCommitted {
                            error: self.log.failed("commit to", error),
                            // A request that timed out may still arrive; a local one cannot.
                            in_doubt: self.folder().location.file_path().is_none(),
                        });
                    }
                    return Err(faster().caused_by(error).into());
                }
            }
        }
        self.log.sync(number).map_err(in_doubt)?;
        if let Err(error) = self.remove_unused(number, &used).await {
            warn!("files that are no longer used are left behind: {error}");
        }
        Ok(())
    }

    /// Removes data files that no commit names: those that this one still replaces, which a
    /// reader may be reading, stay until the next.
    async fn remove_unused(&self, number: u64, used: &BTreeSet<String>) -> Result<()> {
        let strays = list(self.folder()).await?.into_iter();
        let strays = strays.filter(|path| {
            let is_dead = attempt_commit(base_name(path)).is_some_and(|commit| commit <= number);
            path.starts_with("kind=") && is_dead && !used.contains(path)
        });
        remove(self.folder(), strays.collect()).await
    }

    /// Removes what an attempt wrote for a commit that did not land and cannot any more.
    ///
    /// # Errors
    /// Storage, when a file cannot be removed.
    pub async fn discard(&self, attempt: &str) -> Result<()> {
        let files = list(self.folder()).await?.into_iter();
        let mine =
            files.filter(|path| path.starts_with("kind=") && base_name(path).starts_with(attempt));
        remove(self.folder(), mine.collect()).await
    }
}

fn faster() -> Error {
    Error::busy("another run of this pipeline was faster")
        .hint("run again: it starts from what the other run left")
}

fn in_doubt(error: Error) -> NotCommitted {
    NotCommitted {
        error,
        in_doubt: true,
    }
}

fn describe(layout: &VersionsLayout) -> Result<Description> {
    let mut fields = vec![Field::new("kind", DataType::Utf8, true)];
    let stored = layout.schema();
    fields.extend(stored.fields().iter().map(|field| field.as_ref().clone()));
    fields.push(Field::new("record", DataType::Utf8, true));
    Ok(Description {
        schema: delta_schema(fields)?,
        partition_by: vec!["kind".into()],
        configuration: vec![
            Description::checkpoint(),
            // Files that go are removed here, and not looked for in the log.
            (
                "delta.deletedFileRetentionDuration",
                "interval 0 seconds".into(),
            ),
        ],
    })
}

fn new_file(kind: &str, path: &str, bytes: u64, modified: i64) -> Action {
    let partition = HashMap::from([("kind".to_string(), Some(kind.to_string()))]);
    add(path, partition, bytes, None, modified)
}

fn record_schema() -> Schema {
    Schema::new(vec![Field::new("record", DataType::Utf8, true)])
}

async fn write_records(folder: &Folder, path: &str, records: &[Record]) -> Result<u64> {
    let format = Record::Format(FORMAT);
    let texts = std::iter::once(&format)
        .chain(records)
        .map(serde_json::to_string)
        .collect::<Result<Vec<String>, _>>()
        .map_err(|error| Error::internal("cannot write the ledger").caused_by(error))?;
    let schema = Arc::new(record_schema());
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![Arc::new(StringArray::from(texts))],
    )?;
    let properties = parquet_properties(path, &[]);
    let mut writer = parquet_writer(folder, path, schema, properties)?;
    let written = async {
        writer.write(&batch).await?;
        writer.finish().await
    };
    written
        .await
        .map_err(|error| write_error(folder, path, error))?;
    Ok(writer.bytes_written() as u64)
}

async fn read_records(folder: &Folder, (path, bytes): &(String, u64)) -> Result<Vec<Record>> {
    let store = Arc::clone(&folder.store);
    let file = ParquetFile::open(store, parse_path(path)?, *bytes, folder.describe(path)).await?;
    let wanted = file.schema().index_of("record")?;
    let mut batches = file.read(&[wanted], BATCH_ROWS);
    let mut records = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        for text in batch.column(0).as_string_view().iter().flatten() {
            let record = serde_json::from_str(text).map_err(|error| {
                Error::data(format!(
                    "{} holds a record this version cannot read",
                    file.name
                ))
                .hint("use the version of glueless that wrote it")
                .caused_by(error)
            })?;
            match record {
                Record::Format(format) if format > FORMAT => {
                    return Err(Error::usage(format!(
                        "{} was written by a newer version of glueless: its form is {format}, and \
                         this version reads {FORMAT}",
                        folder.location
                    ))
                    .hint("use that version, or a newer one"));
                }
                record => records.push(record),
            }
        }
    }
    Ok(records)
}
