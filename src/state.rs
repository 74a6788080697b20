//! The state of a pipeline between runs: one Delta table under the state folder.
//!
//! ```text
//! <state>/_glueless.json                          the owner marker: the pipeline of this state
//! <state>/publishing/<attempt>                    an attempt that is about to commit and publish
//! <state>/versions/_delta_log/…                   one commit per run
//! <state>/versions/kind=version/<attempt>….parquet  versions: see crate::state::versions
//! <state>/versions/kind=balance/<attempt>.parquet the balance, if an aggregate reads it: see
//!                                                 crate::state::balance
//! <state>/versions/kind=ledger/<attempt>.parquet  the ledger: one JSON record per row
//! ```
//! One commit has a run's versions and its ledger records (see [`crate::state::ledger`]): both are
//! committed, or neither. Ledger records are rows of data files, because the commit information in
//! the log is lost when the log is cleaned up.
//! Of concurrent runs, the first to commit wins: every commit requires its number
//! ([`attempt_name`](crate::layout::attempt_name)), and is not retried on conflict. The files of a
//! losing run are unused from then on, and any run may remove them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use deltalake::DeltaTableError;
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
use crate::state::balance::{BALANCE, ENTERED, EXITED, NewBalance};
use crate::state::ledger::{BALANCED_FORMAT, FORMAT, Ledger, Record};
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::VersionsFile;
use crate::store::listing::list;
use crate::store::remove::remove;
use crate::store::{Folder, Stores, parse_path};
use crate::table::delta_log::{DeltaLog, Description, add, delta_schema};
use crate::table::files::{FileTable, ListedFile};
use crate::table::writer::{parquet_properties, parquet_writer, write_error};

pub mod balance;
pub mod contract;
pub mod identity;
pub mod ledger;
pub mod quarantine;
pub mod versions;
pub mod versions_writer;

/// The number of files from which the ledger is compacted into one.
const LEDGER_FILES_MAX: usize = 32;
/// The number for a small ledger, which is compacted sooner because that is cheap.
const SMALL_LEDGER_FILES_MAX: usize = 8;
/// The size of the largest file from which a ledger is not small.
const LARGE_LEDGER_BYTES: u64 = 1 << 20;

/// The hint when a file of the state is missing or differs from the committed one.
const RESTORE: &str = "restore this file in the state folder from a backup; nothing was changed";

/// The number of ledger files that are read at once.
const CONCURRENT_READS: usize = 16;

/// The open state of a pipeline.
pub struct State {
    /// The ledger as of the last commit read.
    pub ledger: Ledger,
    log: DeltaLog,
    /// The ledger files that were replayed.
    replayed: Vec<(String, u64)>,
    /// A committed versions file that is not in the ledger.
    unknown: Option<String>,
}

/// The changes of versions in a commit.
#[derive(Debug)]
pub struct NewVersions<'a> {
    /// The new layout.
    pub layout: &'a VersionsLayout,
    /// New files.
    pub files: &'a [VersionsFile],
    /// The paths of the files that are removed.
    pub replaced: &'a [String],
    /// What becomes of the balance.
    pub balance: &'a NewBalance,
}

/// The error of a commit.
#[derive(Debug)]
pub struct NotCommitted {
    /// The cause.
    pub error: Error,
    /// Whether the commit may still succeed: its files must then stay.
    pub in_doubt: bool,
}

impl From<Error> for NotCommitted {
    fn from(error: Error) -> Self {
        NotCommitted { error, in_doubt: false }
    }
}

impl State {
    /// Opens the state and reads the ledger; creates nothing.
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

    /// Reads the commits since the state was last read.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub fn refresh(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        self.read().boxed_local()
    }

    /// Reads the log, and the ledger files that it lists. A commit meanwhile may replace these
    /// files, and the commit after it removes them: the log is then read again. A file counts as
    /// missing only if the newest commit lists it.
    async fn read(&mut self) -> Result<()> {
        self.log.read().await?;
        loop {
            let commit = self.log.version();
            let Err(error) = self.replay().await else {
                return Ok(());
            };
            if missing_object(&error).is_none() {
                return Err(error);
            }
            self.log.read().await?;
            if self.log.version() == commit {
                return Err(Error::data("a file of the ledger is missing")
                    .hint(RESTORE)
                    .caused_by(error));
            }
        }
    }

    /// Replays the ledger files that are new in the log.
    async fn replay(&mut self) -> Result<()> {
        let files = self.data_files("ledger");
        // Files never change: those already replayed are not read again.
        let known = if files.starts_with(&self.replayed) { self.replayed.len() } else { 0 };
        let new = files[known..].iter();
        let opened = new.map(|file| open_records(&self.log.folder, file));
        let mut opened = stream::iter(opened).buffered(CONCURRENT_READS);
        if known == 0 {
            let mut ledger = Ledger::default();
            while let Some(file) = opened.try_next().await? {
                read_records(&file, |record| ledger.replay(record)).await?;
            }
            drop(opened);
            self.ledger = ledger;
        } else {
            // All or none is added.
            let mut records = Vec::new();
            while let Some(file) = opened.try_next().await? {
                read_records(&file, |record| records.push(record)).await?;
            }
            drop(opened);
            records.into_iter().for_each(|record| self.ledger.replay(record));
        }
        let listed: BTreeSet<String> =
            self.data_files("version").into_iter().map(|(path, _)| path).collect();
        let versions = &mut self.ledger.versions;
        versions.retain(|path, _| listed.contains(path));
        self.unknown = listed.into_iter().find(|path| !versions.contains_key(path));
        self.replayed = files;
        Ok(())
    }

    /// Checks that the ledger lists all versions files.
    ///
    /// # Errors
    /// Data, naming a file that it does not list.
    pub fn check_known(&self) -> Result<()> {
        match &self.unknown {
            None => Ok(()),
            Some(path) => {
                Err(Error::data(format!("the ledger does not list the versions file {path}"))
                    .hint("the state is damaged: rebuild it with `glueless rebuild`"))
            }
        }
    }

    /// The committed data files of one kind: path and size, in commit order.
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
    /// Internal, when the ledger has an unknown type.
    pub fn versions(&self) -> Result<Option<(FileTable, VersionsLayout)>> {
        let Some(contract) = &self.ledger.contract else {
            return Ok(None);
        };
        let layout = contract.layout()?;
        let table = table_of(self.folder(), &self.data_files("version"), layout.schema())?;
        Ok(Some((table, layout)))
    }

    /// The prefix of the paths of an attempt's versions files.
    pub fn versions_prefix(attempt: &str) -> String {
        format!("kind=version/{attempt}")
    }

    /// Commits a run: its ledger records, and the changes of versions.
    ///
    /// # Errors
    /// Busy, when another run committed since the state was opened; storage, when the commit cannot
    /// be written. In both cases nothing of this run is committed, unless it is in doubt.
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
                return Err(conflict().into());
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
            let NewBalance { file, replaced } = versions.balance;
            actions.extend(self.log.remove_actions(|path| replaced.iter().any(|one| one == path)));
            let added = file.iter();
            actions.extend(added.map(|(path, bytes)| new_file(BALANCE, path, *bytes, modified)));
            actions.extend(self.log.metadata_action(&description)?);
        }
        let mut ledger_files = self.data_files("ledger");
        let new = records.clone();
        let replay_new = |ledger: &mut Ledger| {
            for path in versions.iter().flat_map(|versions| versions.replaced) {
                ledger.versions.remove(path);
            }
            new.iter().cloned().for_each(|record| ledger.replay(record));
        };
        let path = format!("kind=ledger/{}.parquet", attempt_name(number, run_id));
        let format = self.format_with(versions.as_ref());
        let bytes = if is_due_for_compaction(&ledger_files) {
            let mut ledger = self.ledger.clone();
            replay_new(&mut ledger);
            actions.extend(self.log.remove_actions(|path| path.starts_with("kind=ledger/")));
            ledger_files.clear();
            write_records(self.folder(), &path, format, ledger.records()).await?
        } else {
            write_records(self.folder(), &path, format, records.into_iter()).await?
        };
        actions.push(new_file("ledger", &path, bytes, modified));
        ledger_files.push((path.clone(), bytes));
        let mut written = vec![path];
        if let Some(versions) = &versions {
            written.extend(versions.files.iter().map(|file| file.path.clone()));
            written.extend(versions.balance.file.iter().map(|(path, _)| path.clone()));
        }
        self.folder().sync(&written)?;
        let used = self.log.files().keys().cloned().chain(written).collect();
        match self.log.commit(actions, number, vec![]).await {
            Ok(()) => {
                replay_new(&mut self.ledger);
                self.replayed = ledger_files;
            }
            Err(error) => {
                self.read().await.map_err(in_doubt)?;
                // A lost reply looks like a failure: the log decides whether the run was committed.
                if self.ledger.run(run_id).is_none() {
                    return Err(self.commit_error(number, error));
                }
            }
        }
        self.log.sync(number).map_err(in_doubt)?;
        if let Err(error) = self.remove_unused(number, &used).await {
            warn!("cannot remove unused files of the state: {error}");
        }
        Ok(())
    }

    /// The format of the ledger in a commit of these changes.
    fn format_with(&self, versions: Option<&NewVersions<'_>>) -> u32 {
        let (new, replaced) = match versions {
            Some(versions) => (versions.balance.file.is_some(), &*versions.balance.replaced),
            None => (false, &[][..]),
        };
        let committed = self.data_files(BALANCE);
        let stays = committed.iter().any(|(path, _)| !replaced.contains(path));
        if new || stays { BALANCED_FORMAT } else { FORMAT }
    }

    /// The error of a commit that is not in the log.
    fn commit_error(&self, number: u64, error: DeltaTableError) -> NotCommitted {
        if self.last_commit() >= number {
            return conflict().caused_by(error).into();
        }
        NotCommitted {
            error: self.log.failed("commit to", error),
            // A request that timed out may still arrive at an object store; a local write cannot.
            in_doubt: self.folder().location.file_path().is_none(),
        }
    }

    /// Removes data files that no commit lists. Files that this commit replaces may still have
    /// readers: they stay until the next commit.
    async fn remove_unused(&self, number: u64, used: &BTreeSet<String>) -> Result<()> {
        let is_unused = |path: &String| {
            let is_past = attempt_commit(base_name(path)).is_some_and(|commit| commit <= number);
            path.starts_with("kind=") && is_past && !used.contains(path)
        };
        let files = list(self.folder()).await?.into_iter();
        remove(self.folder(), files.filter(is_unused).collect()).await
    }

    /// Removes the files of an attempt that was not committed, and cannot be committed any more.
    ///
    /// # Errors
    /// Storage, when a file cannot be removed.
    pub async fn discard(&self, attempt: &str) -> Result<()> {
        let is_of_attempt =
            |path: &String| path.starts_with("kind=") && base_name(path).starts_with(attempt);
        let files = list(self.folder()).await?.into_iter();
        remove(self.folder(), files.filter(is_of_attempt).collect()).await
    }
}

/// Files of the state as a relation: paths relative to its table, and sizes.
///
/// # Errors
/// Internal, when a path is no path.
pub fn table_of(folder: &Folder, files: &[(String, u64)], schema: SchemaRef) -> Result<FileTable> {
    let files = files.iter().map(|(path, bytes)| {
        let path = folder.root_path(path)?;
        Ok(ListedFile { path, bytes: *bytes, partition: Vec::new() })
    });
    FileTable::new(folder, files.collect::<Result<_>>()?, schema, Vec::new())
}

/// Whether the ledger has so many files that the next commit compacts them into one.
fn is_due_for_compaction(files: &[(String, u64)]) -> bool {
    let largest = files.iter().map(|(_, bytes)| *bytes).max();
    let files_max = match largest.unwrap_or_default() {
        0..LARGE_LEDGER_BYTES => SMALL_LEDGER_FILES_MAX,
        _ => LEDGER_FILES_MAX,
    };
    files.len() >= files_max
}

/// The error when another run has committed first.
fn conflict() -> Error {
    Error::busy("another run of this pipeline committed first")
        .hint("run the command again: it starts from the other run's commit")
}

fn in_doubt(error: Error) -> NotCommitted {
    NotCommitted { error, in_doubt: true }
}

/// The description of the Delta table for a layout of versions.
fn describe(layout: &VersionsLayout) -> Result<Description> {
    let mut fields = vec![Field::new("kind", DataType::Utf8, true)];
    let versions = layout.schema();
    fields.extend(versions.fields().iter().map(|field| field.as_ref().clone()));
    let counts = [ENTERED, EXITED].map(|name| Field::new(name, DataType::Int64, true));
    fields.extend(counts);
    fields.push(Field::new("record", DataType::Utf8, true));
    Ok(Description {
        schema: delta_schema(fields)?,
        partition_by: vec!["kind".into()],
        configuration: vec![
            Description::checkpoint(),
            // `State` removes replaced files itself, without the log's list of deleted files.
            ("delta.deletedFileRetentionDuration", "interval 0 seconds".into()),
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

/// Writes the format and the records to a file of the ledger. Returns its size in bytes.
async fn write_records(
    folder: &Folder,
    path: &str,
    format: u32,
    records: impl Iterator<Item = Record>,
) -> Result<u64> {
    let mut records = std::iter::once(Record::Format(format)).chain(records);
    let schema = Arc::new(record_schema());
    let properties = parquet_properties(path, &[]);
    let mut writer = parquet_writer(folder, path, Arc::clone(&schema), properties)?;
    let failed = |error| write_error(folder, path, error);
    loop {
        let texts = records.by_ref().take(BATCH_ROWS).map(|record| serde_json::to_string(&record));
        let texts = texts
            .collect::<Result<Vec<String>, _>>()
            .map_err(|error| Error::internal("cannot write the ledger").caused_by(error))?;
        if texts.is_empty() {
            break;
        }
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(texts))];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        writer.write(&batch).await.map_err(failed)?;
    }
    writer.finish().await.map_err(failed)?;
    Ok(writer.bytes_written() as u64)
}

async fn open_records(folder: &Folder, (path, bytes): &(String, u64)) -> Result<ParquetFile> {
    let store = Arc::clone(&folder.store);
    ParquetFile::open(store, parse_path(path)?, *bytes, folder.describe(path)).await
}

/// Reads the records of a file of the ledger, in their order.
async fn read_records(file: &ParquetFile, mut each: impl FnMut(Record)) -> Result<()> {
    let wanted = file.schema().index_of("record")?;
    let mut batches = file.read(&[wanted], BATCH_ROWS);
    while let Some(batch) = batches.try_next().await? {
        for text in batch.column(0).as_string_view().iter().flatten() {
            let record = serde_json::from_str(text).map_err(|error| {
                Error::data(format!("{} has a record that this version cannot read", file.name))
                    .hint("use the version of glueless that wrote it")
                    .caused_by(error)
            })?;
            match record {
                Record::Format(format) if format > BALANCED_FORMAT => {
                    return Err(Error::usage(format!(
                        "{} was written by a newer version of glueless: its format is {format}, and this version reads up to {BALANCED_FORMAT}",
                        file.name
                    ))
                    .hint("use that version, or a newer one"));
                }
                record => each(record),
            }
        }
    }
    Ok(())
}
