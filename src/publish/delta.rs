//! A curated table of `format = "delta"`: a run adds its new files and removes the old ones in one
//! commit to the table's own log.
//!
//! ```text
//! <curated.url>/_glueless.json                                  the owner of the table
//! <curated.url>/_delta_log/…                                    one commit per run
//! <curated.url>/event_dt=2019-04-01/part-c00000012-00000.snappy.parquet
//! <curated.url>/deletion_vector_00000000-000c-8000-a76c-75656c657373.bin    or with `_` before it
//! ```
//!
//! The state is committed first; its ledger lists the files of the table ([`crate::state::ledger`]).
//! Publishing moves the new files into the table, and commits to this log the difference between it
//! and the ledger. The commit carries the number of the state's commit: if a process is interrupted
//! between the two commits, the next command publishes; a process that comes late finds the number
//! and does nothing.
//!
//! A file from which rows are deleted is removed with its old deletion vector, if any, and added with
//! the new one. No file name is used twice, and replaced files stay for `curated.retention`, for
//! readers of an earlier version of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use deltalake::kernel::Action;

use crate::error::{Error, Result};
use crate::layout::{base_name, parent, part_file_commit, partition_values};
use crate::publish;
use crate::state::contract::{TableContract, read_types};
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::deletion_vector::DeletionVector;
use crate::table::delta_log::{DeltaLog, Description, LOG_FOLDER, LoggedFile, add, delta_schema};

/// How often a commit is retried after a conflicting commit of another program.
const RETRIES_MAX: u32 = 5;
/// The least time that the log keeps earlier versions of the table.
const LOG_RETENTION: TimeDelta = TimeDelta::days(30);

/// The property of a table whose writers mark deleted rows in deletion vectors.
const VECTORS_ENABLED: &str = "delta.enableDeletionVectors";

/// A Delta table as the ledger describes it.
#[derive(Debug)]
pub(crate) struct CuratedLog<'a> {
    /// The table's folder.
    pub table: &'a Folder,
    /// The table's columns and their types.
    pub contract: &'a TableContract,
    /// The table's files.
    pub files: Vec<&'a TableFile>,
    /// Files of deletion vectors that the table does not use any more, and that are kept.
    pub vectors_unused: Vec<&'a String>,
    /// Whether removed rows are marked in deletion vectors from now on.
    pub has_vectors: bool,
    /// How long replaced files are kept.
    pub retention: TimeDelta,
    /// The time of the run.
    pub now: DateTime<Utc>,
}

/// A run whose files are to be published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed<'a> {
    /// The run's id.
    pub run_id: &'a str,
    /// The number of the run's commit to the state.
    pub number: u64,
    /// Whether the table begins from empty: files that other programs added are removed too.
    pub from_empty: bool,
}

/// Opens the log of a table for writing, if the table has one.
///
/// # Errors
/// Data, when the log has later runs than the state, or another program made settings with which
/// glueless cannot write to the table; storage, when it cannot be read.
pub(crate) async fn open(table: &Folder, last_commit: u64) -> Result<DeltaLog> {
    let mut log = DeltaLog::new(table.clone());
    log.read().await?;
    let hint = format!(
        "or remove {} and rebuild the table with `glueless rebuild`",
        table.describe(LOG_FOLDER.trim_end_matches('/'))
    );
    let table = &table.location;
    if log.last_transaction().await? > Some(last_commit) {
        return Err(Error::data(format!(
            "the log of {table} has later runs than the pipeline's state"
        ))
        .hint(format!("restore the latest state, {hint}")));
    }
    log.check_writable().map_err(|error| {
        let refused =
            format!("the table {table} has settings with which glueless cannot write to it");
        let undo = format!("undo the settings that another program has made, {hint}");
        Error::data(refused).hint(undo).caused_by(error)
    })?;
    Ok(log)
}

impl CuratedLog<'_> {
    /// Checks that the table is as the runs of the pipeline left it.
    ///
    /// # Errors
    /// Data, when another program changed it.
    pub(crate) fn check(&self, log: &DeltaLog) -> Result<()> {
        let Some(snapshot) = log.snapshot() else {
            return self.changed("its log is missing");
        };
        let found = log.files();
        for file in &self.files {
            let path = &file.path;
            match found.get(path) {
                Some(found) if found.bytes != file.bytes => {
                    return self.changed(&format!("its log lists another {path}"));
                }
                Some(found) if !is_described(file, found) => {
                    return self.changed(&format!("rows were deleted from {path}"));
                }
                Some(_) => {}
                None => return self.changed(&format!("its log does not list {path}")),
            }
        }
        let known: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if let Some(path) = found.keys().find(|path| !known.contains(path.as_str())) {
            return self.changed(&format!("its log lists {path}"));
        }
        if snapshot.log_data().iter().count() > found.len() {
            return self.changed("its log lists a file twice");
        }
        if *snapshot.schema() != self.description()?.schema {
            return self.changed("its columns are different");
        }
        Ok(())
    }

    fn changed(&self, how: &str) -> Result<()> {
        let table = &self.table.location;
        let changed = format!("the table {table} is not as it was published: {how}");
        let hint = "another program changed it: rebuild it with `glueless rebuild`";
        Err(Error::data(changed).hint(hint))
    }

    /// Moves new files into the table and commits the difference between its log and the ledger.
    /// `found` is the listing of the folder before ([`crate::store::listing::list_and_prune`]).
    ///
    /// # Errors
    /// Storage; data, when another program changed the table. It is safe to publish again.
    pub(crate) async fn publish(
        &self,
        staging: &Folder,
        added: &[&TableFile],
        run: Committed<'_>,
        found: Vec<String>,
    ) -> Result<()> {
        let mut log = DeltaLog::new(self.table.clone());
        log.read().await?;
        if log.snapshot().is_none() && self.files.len() > added.len() {
            return self.changed("its log is missing");
        }
        let mut description = self.description()?;
        if !self.has_vectors && log.is_set(VECTORS_ENABLED, "true") {
            description.configuration.push((VECTORS_ENABLED, "false".into()));
        }
        let mut last = log.last_transaction().await?;
        let mut vectors = HashMap::new();
        if last < Some(run.number) {
            publish::move_staged(self.table, staging, added).await?;
            vectors = self.read_inline(added).await?;
            if log.snapshot().is_none() {
                log.create(&description).await?;
                last = log.last_transaction().await?;
            }
        }
        let mut retries = 0;
        while last < Some(run.number) {
            let actions = self.actions(&log, &description, (added, &vectors), run)?;
            if actions.is_empty() {
                break;
            }
            let before = log.version();
            let metadata = vec![("glueless.run_id".to_string(), run.run_id.to_string())];
            let committed = log.commit(actions, run.number, metadata).await;
            log.read().await?;
            // A commit that failed may have been written all the same.
            last = log.last_transaction().await?;
            if let Err(error) = committed
                && last < Some(run.number)
                && (log.version() == before || retries == RETRIES_MAX)
            {
                return Err(log.failed("commit to", error));
            }
            retries += 1;
        }
        log.version().map_or(Ok(()), |version| log.sync(version))?;
        if last == Some(run.number) {
            // Another program may have committed just before.
            self.check(&log)?;
        }
        self.sweep(&log, found, run.number).await
    }

    /// Reads the files of those deletion vectors that are to be in the log, by their paths.
    async fn read_inline(&self, added: &[&TableFile]) -> Result<HashMap<String, Bytes>> {
        let vectors = added.iter().filter_map(|file| file.deleted.as_ref());
        let paths: BTreeSet<&String> =
            vectors.filter(|vector| vector.is_inline()).map(|vector| &vector.path).collect();
        let mut read = HashMap::new();
        for path in paths {
            // Where a file is missing, its vectors are not found in it.
            read.extend(self.table.read(path).await?.map(|bytes| (path.clone(), bytes)));
        }
        Ok(read)
    }

    fn actions(
        &self,
        log: &DeltaLog,
        description: &Description,
        (added, vectors): (&[&TableFile], &HashMap<String, Bytes>),
        run: Committed<'_>,
    ) -> Result<Vec<Action>> {
        let listed = log.files();
        let known: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        let now = self.now.timestamp_millis();
        let is_ours = |path: &str| part_file_commit(base_name(path)).is_some();
        let mut new = BTreeMap::new();
        for file in added {
            let is_logged =
                |found: &LoggedFile| found.bytes == file.bytes && is_described(file, found);
            if !listed.get(&file.path).is_some_and(is_logged) {
                let described = |vector: &DeletionVector| {
                    vector.descriptor(vectors.get(&vector.path).map_or(&[], Bytes::as_ref))
                };
                let deleted = file.deleted.as_ref().map(described).transpose()?;
                let logged = LoggedFile { bytes: file.bytes, deleted };
                new.insert(file.path.as_str(), (file, logged));
            }
        }
        // A file with a new deletion vector is removed with the old one.
        let mut actions = log.remove_actions(|path| {
            let is_unused = !known.contains(path) && (run.from_empty || is_ours(path));
            is_unused || new.contains_key(path)
        });
        let fields = self.fields()?;
        for (path, (file, logged)) in new {
            // All rows of the file, as the protocol prescribes it.
            let stats = format!(r#"{{"numRecords":{}}}"#, file.rows);
            let partition = delta_partition(&fields, path)?;
            actions.push(add(path, partition, logged, Some(stats), now));
        }
        if self.has_vectors || self.files.iter().any(|file| file.deleted.is_some()) {
            actions.extend(log.deletion_vectors_action()?);
        }
        actions.extend(log.metadata_action(description)?);
        Ok(actions)
    }

    fn fields(&self) -> Result<Vec<Field>> {
        let columns = read_types(&self.contract.columns)?.into_iter();
        Ok(columns.map(|(name, data_type)| Field::new(name, data_type, true)).collect())
    }

    fn description(&self) -> Result<Description> {
        let interval = |span: TimeDelta| format!("interval {} seconds", span.num_seconds());
        let log_retention = self.retention.max(LOG_RETENTION);
        Ok(Description {
            schema: delta_schema(self.fields()?)?,
            partition_by: self.contract.partitions.iter().map(|part| part.0.clone()).collect(),
            configuration: [
                Description::checkpoint(),
                ("delta.deletedFileRetentionDuration", interval(self.retention)),
                ("delta.logRetentionDuration", interval(log_retention)),
            ]
            .into_iter()
            .chain(self.has_vectors.then(|| (VECTORS_ENABLED, "true".into())))
            .collect(),
        })
    }

    /// Removes files of this pipeline that neither the table nor an earlier version within the
    /// retention uses.
    async fn sweep(&self, log: &DeltaLog, found: Vec<String>, number: u64) -> Result<()> {
        let mut used: BTreeSet<String> = log.files().keys().cloned().collect();
        used.extend(self.files.iter().map(|file| file.path.clone()));
        let vectors = self.files.iter().filter_map(|file| file.deleted.as_ref());
        used.extend(vectors.map(|vector| vector.path.clone()));
        used.extend(self.vectors_unused.iter().copied().cloned());
        let until = self.now.checked_sub_signed(self.retention);
        let until = until.map_or(i64::MIN, |until| until.timestamp_millis());
        used.extend(log.removed_since(until).await?);
        let is_used = |path: &str| path.starts_with(LOG_FOLDER) || used.contains(path);
        publish::sweep(self.table, found, is_used, number).await
    }
}

/// Whether the log lists a file with its deletion vector, or with none if it has none.
fn is_described(file: &TableFile, found: &LoggedFile) -> bool {
    match (&file.deleted, &found.deleted) {
        (None, None) => true,
        (Some(vector), Some(found)) => vector.is_described_by(found),
        _ => false,
    }
}

/// The partition values in a file's path, in the form that Delta requires.
fn delta_partition(fields: &[Field], path: &str) -> Result<HashMap<String, Option<String>>> {
    let is_time = |name: &str| {
        let mut fields = fields.iter();
        let field = fields.find(|field| field.name() == name);
        field.is_some_and(|field| matches!(field.data_type(), DataType::Timestamp(_, _)))
    };
    partition_values(parent(path))
        .map(|(name, value)| match value {
            Some(text) if is_time(&name) => Ok((name, Some(time_value(&text)?))),
            value => Ok((name, value)),
        })
        .collect()
}

/// A time in the form that Delta requires.
fn time_value(text: &str) -> Result<String> {
    let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .map_err(|error| Error::internal("a partition's time cannot be read").caused_by(error))?;
    Ok(time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}
