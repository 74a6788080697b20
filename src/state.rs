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
//! <state>/versions/kind=inputs/<attempt>….parquet old inputs of the ledger: see crate::state::inputs
//! ```
//! One commit has a run's versions and its ledger records (see [`crate::state::ledger`]): both are
//! committed, or neither. Ledger records are rows of data files, because the commit information in
//! the log is lost when the log is cleaned up.
//! Of concurrent runs, the first to commit wins: every commit requires its number
//! ([`attempt_name`](crate::layout::attempt_name)), and is not retried on conflict. The files of a
//! losing run are unused from then on, and any run may remove them.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt};
use futures::{FutureExt, TryStreamExt};

use crate::config::Pipeline;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result, missing_object};
use crate::layout::base_name;
use crate::parquet_io::open::ParquetFile;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{Ledger, NEWEST_FORMAT, Record};
use crate::state::versions::VersionsLayout;
use crate::store::listing::list;
use crate::store::remove::remove;
use crate::store::{Folder, Stores, parse_path};
use crate::table::delta_log::DeltaLog;
use crate::table::files::{FileTable, ListedFile};

pub mod balance;
mod commit;
pub mod contract;
pub mod floors;
pub mod forgotten;
pub mod identity;
pub mod inputs;
pub mod ledger;
pub mod quarantine;
pub mod versions;
pub mod versions_writer;

pub use commit::{NewVersions, NotCommitted};

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
    /// The inputs that are read from files of their own.
    needed: NeededInputs,
    /// A committed versions file that is not in the ledger.
    unknown: Option<String>,
}

impl State {
    /// Opens the state and reads the ledger with the needed inputs; creates nothing.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub fn open<'a>(
        stores: &'a Stores,
        pipeline: &'a Pipeline,
        needed: NeededInputs,
    ) -> LocalBoxFuture<'a, Result<Self>> {
        Self::do_open(stores, pipeline, needed).boxed_local()
    }

    async fn do_open(stores: &Stores, pipeline: &Pipeline, needed: NeededInputs) -> Result<Self> {
        let folder = stores.open(&pipeline.state.join("versions"))?;
        let mut state = State {
            log: DeltaLog::new(folder),
            ledger: Ledger::default(),
            replayed: Vec::new(),
            needed,
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

    /// The number of the newest commit; 0 before the first.
    ///
    /// # Errors
    /// Storage, when the log cannot be read.
    pub async fn newest_commit(stores: &Stores, pipeline: &Pipeline) -> Result<u64> {
        let mut log = DeltaLog::new(stores.open(&pipeline.state.join("versions"))?);
        log.read().await?;
        Ok(log.version().unwrap_or_default())
    }

    /// Reads the commits since the state was last read.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub fn refresh(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        self.read().boxed_local()
    }

    /// Reads all inputs of the last commit read that were not read yet.
    ///
    /// # Errors
    /// Storage, when a file cannot be read; data, when it is missing: a rebuild may have removed it
    /// since.
    pub async fn read_all_inputs(&mut self) -> Result<()> {
        self.needed = NeededInputs::All;
        self.read_old_inputs().await.map_err(|error| match missing_object(&error) {
            Some(_) => missing_file(error),
            None => error,
        })
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
                return Err(missing_file(error));
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
        self.read_old_inputs().await
    }

    /// Reads the files of old inputs that are needed.
    async fn read_old_inputs(&mut self) -> Result<()> {
        let paths = self.ledger.inputs.needed(self.needed);
        let mut files = Vec::new();
        for path in &paths {
            let lost = || Error::data(format!("the log does not list {path}")).hint(RESTORE);
            let file = self.log.files().get(path).ok_or_else(lost)?;
            files.push((path.clone(), file.bytes));
        }
        let opened = files.iter().map(|file| open_records(&self.log.folder, file));
        let mut opened = stream::iter(opened).buffered(CONCURRENT_READS);
        let mut paths = paths.iter();
        while let (Some(file), Some(path)) = (opened.try_next().await?, paths.next()) {
            let mut inputs = Vec::new();
            read_records(&file, |record| {
                if let Record::Input(input) = record {
                    inputs.push(input);
                }
            })
            .await?;
            self.ledger.inputs.insert_old(path, inputs);
        }
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
            .map(|(path, file)| (path.clone(), file.bytes))
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
        Ok(ListedFile { path, bytes: *bytes, partition: Vec::new(), deleted: None })
    });
    FileTable::new(folder, files.collect::<Result<_>>()?, schema, Vec::new())
}

/// The error when a file that the last commit lists is missing.
fn missing_file(error: Error) -> Error {
    Error::data("a file of the ledger is missing").hint(RESTORE).caused_by(error)
}

fn record_schema() -> Schema {
    Schema::new(vec![Field::new("record", DataType::Utf8, true)])
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
                Record::Format(format) if format > NEWEST_FORMAT => {
                    return Err(Error::usage(format!(
                        "{} was written by a newer version of glueless: its format is {format}, and this version reads up to {NEWEST_FORMAT}",
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
