//! Commits of runs: each adds its ledger records and replaces files of versions and of the balance.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use chrono::{DateTime, Utc};
use deltalake::DeltaTableError;
use deltalake::kernel::Action;
use tracing::warn;

use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Result};
use crate::layout::{attempt_commit, attempt_name, base_name};
use crate::state::balance::{BALANCE, ENTERED, EXITED, NewBalance};
use crate::state::contract::TableContract;
use crate::state::ledger::{
    ALTERED_FORMAT, BALANCED_FORMAT, CAUSES_FORMAT, DIVIDED_FORMAT, FLOORS_FORMAT,
    FORGOTTEN_FORMAT, FORMAT, FROM_TABLE_FORMAT, Ledger, Record, TRUNCATES_FORMAT, VECTORS_FORMAT,
};
use crate::state::versions::VersionsLayout;
use crate::state::versions_writer::VersionsFile;
use crate::state::{State, record_schema};
use crate::store::Folder;
use crate::store::listing::list;
use crate::store::remove::remove;
use crate::table::delta_log::{Description, LoggedFile, add, delta_schema};
use crate::table::writer::{parquet_properties, parquet_writer, write_error};

/// The number of files from which the ledger is compacted into one.
const LEDGER_FILES_MAX: usize = 32;
/// The number for a small ledger, which is compacted sooner because that is cheap.
const SMALL_LEDGER_FILES_MAX: usize = 8;
/// The size of the largest file from which a ledger is not small.
const LARGE_LEDGER_BYTES: u64 = 1 << 20;

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

/// The next file of the ledger, written but not committed.
struct NewLedgerFile {
    path: String,
    bytes: u64,
    /// The ledger with the new records, if the file has all of them.
    compacted: Option<Ledger>,
    /// New files of old inputs: paths and sizes.
    old_inputs: Vec<(String, u64)>,
}

impl State {
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
        let mut written = Vec::new();
        if let Some(versions) = &versions {
            records.extend(versions.files.iter().map(|file| Record::Versions {
                path: file.path.clone(),
                days: file.days.iter().collect(),
            }));
            actions = self.versions_actions(versions, modified);
            actions.extend(self.log.metadata_action(&description)?);
            written.extend(versions.files.iter().map(|file| file.path.clone()));
            written.extend(versions.balance.file.iter().map(|(path, _)| path.clone()));
        }
        let attempt = attempt_name(number, run_id);
        let new = self.write_ledger(&attempt, &records, versions.as_ref()).await?;
        actions.extend(self.ledger_actions(&new, &records, modified));
        written.extend(new.old_inputs.iter().map(|(path, _)| path.clone()));
        written.push(new.path.clone());
        self.folder().sync(&written)?;
        let used = self.log.files().keys().cloned().chain(written).collect();
        match self.log.commit(actions, number, vec![]).await {
            Ok(()) => self.replay_written(new, records, versions.as_ref()),
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

    /// The actions that replace files of versions and of the balance.
    fn versions_actions(&self, versions: &NewVersions<'_>, modified: i64) -> Vec<Action> {
        let replaced: BTreeSet<&str> = versions.replaced.iter().map(String::as_str).collect();
        let mut actions = self.log.remove_actions(|path| replaced.contains(path));
        let added = versions.files.iter();
        actions.extend(added.map(|file| new_file("version", &file.path, file.bytes, modified)));
        let NewBalance { file, replaced } = versions.balance;
        actions.extend(self.log.remove_actions(|path| replaced.iter().any(|one| one == path)));
        let added = file.iter();
        actions.extend(added.map(|(path, bytes)| new_file(BALANCE, path, *bytes, modified)));
        actions
    }

    /// Writes the next file of the ledger: the new records, or all if it is compacted.
    async fn write_ledger(
        &self,
        attempt: &str,
        records: &[Record],
        versions: Option<&NewVersions<'_>>,
    ) -> Result<NewLedgerFile> {
        let mut new = NewLedgerFile {
            path: format!("kind=ledger/{attempt}.parquet"),
            bytes: 0,
            compacted: None,
            old_inputs: Vec::new(),
        };
        let inputs = &self.ledger.inputs;
        let is_rebuild = records.iter().any(Record::is_rebuild);
        let has = |is: fn(&Record) -> bool| records.iter().any(is);
        // Names of partitions can have values of forgotten keys: of files that are gone, none stays.
        let is_compacted = is_due_for_compaction(&self.data_files("ledger"))
            || inputs.are_many_old()
            || has(Record::is_of_forgotten_keys);
        if !is_compacted {
            let format = self.format_with(
                versions,
                [
                    (!inputs.files().is_empty() && !is_rebuild, DIVIDED_FORMAT),
                    (has(Record::has_deletion_vector), VECTORS_FORMAT),
                    (has(Record::is_floor), FLOORS_FORMAT),
                    (has(Record::is_truncate_by_hand), TRUNCATES_FORMAT),
                    (has(Record::is_of_forgotten_keys), FORGOTTEN_FORMAT),
                    (has(Record::compares_rows), ALTERED_FORMAT),
                    (has(Record::says_cause), CAUSES_FORMAT),
                    (has(Record::is_from_table), FROM_TABLE_FORMAT),
                ],
            );
            let records = records.iter().cloned();
            new.bytes = write_records(self.folder(), &new.path, format, records).await?;
            return Ok(new);
        }
        let path = |number| format!("kind=inputs/{attempt}-{number:03}.parquet");
        let parts = if is_rebuild { Vec::new() } else { inputs.divide(path) };
        let mut files = Vec::new();
        for (file, inputs) in parts {
            let inputs = inputs.into_iter().cloned().map(Record::Input);
            let bytes = write_records(self.folder(), &file.path, DIVIDED_FORMAT, inputs).await?;
            new.old_inputs.push((file.path.clone(), bytes));
            files.push(file);
        }
        let mut ledger = self.ledger.with_inputs(inputs.divided(files));
        replay_new(&mut ledger, records.to_vec(), versions);
        let format = self.format_with(
            versions,
            [
                (!ledger.inputs.files().is_empty(), DIVIDED_FORMAT),
                (ledger.has_vectors(), VECTORS_FORMAT),
                (!ledger.floors.is_empty(), FLOORS_FORMAT),
                (ledger.has_truncates_by_hand(), TRUNCATES_FORMAT),
                (ledger.has_forgotten_keys(), FORGOTTEN_FORMAT),
                (
                    ledger.contract.as_ref().is_some_and(TableContract::compares_rows),
                    ALTERED_FORMAT,
                ),
                (ledger.contract.as_ref().is_some_and(TableContract::says_cause), CAUSES_FORMAT),
                (ledger.is_from_table(), FROM_TABLE_FORMAT),
            ],
        );
        new.bytes = write_records(self.folder(), &new.path, format, ledger.records()).await?;
        new.compacted = Some(ledger);
        Ok(new)
    }

    /// The actions that add the next file of the ledger, and remove those that it replaces.
    fn ledger_actions(
        &self,
        new: &NewLedgerFile,
        records: &[Record],
        modified: i64,
    ) -> Vec<Action> {
        let (is_compacted, is_rebuild) =
            (new.compacted.is_some(), records.iter().any(Record::is_rebuild));
        let is_replaced = |path: &str| {
            (is_compacted && path.starts_with("kind=ledger/"))
                || (is_rebuild && path.starts_with("kind=inputs/"))
        };
        let mut actions = self.log.remove_actions(is_replaced);
        let added = new.old_inputs.iter();
        actions.extend(added.map(|(path, bytes)| new_file("inputs", path, *bytes, modified)));
        actions.push(new_file("ledger", &new.path, new.bytes, modified));
        actions
    }

    /// Brings the ledger to the commit that was written.
    fn replay_written(
        &mut self,
        new: NewLedgerFile,
        records: Vec<Record>,
        versions: Option<&NewVersions<'_>>,
    ) {
        match new.compacted {
            Some(ledger) => {
                self.ledger = ledger;
                self.replayed = Vec::new();
            }
            None => replay_new(&mut self.ledger, records, versions),
        }
        self.replayed.push((new.path, new.bytes));
    }

    /// The format of the ledger in a commit of these changes; `kinds` are kinds of records that it may have, and the
    /// formats that these need.
    fn format_with(&self, versions: Option<&NewVersions<'_>>, kinds: [(bool, u32); 8]) -> u32 {
        let needed = kinds.into_iter().filter_map(|(has, format)| has.then_some(format));
        if let Some(format) = needed.max() {
            return format;
        }
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

    /// Removes data files that the last commit does not list, those that it has replaced too.
    ///
    /// # Errors
    /// Storage, when they cannot be listed or removed.
    pub(crate) async fn remove_replaced(&self) -> Result<()> {
        let used = self.log.files().keys().cloned().collect();
        self.remove_unused(self.last_commit(), &used).await
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
}

/// Replays the new records, and forgets the versions files that are replaced.
fn replay_new(ledger: &mut Ledger, records: Vec<Record>, versions: Option<&NewVersions<'_>>) {
    for path in versions.iter().flat_map(|versions| versions.replaced) {
        ledger.versions.remove(path);
    }
    records.into_iter().for_each(|record| ledger.replay(record));
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
    add(path, partition, LoggedFile { bytes, deleted: None }, None, modified)
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
