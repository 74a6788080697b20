//! A Delta log, as used by the state and by curated tables of `format = "delta"`.
//!
//! The first commit of a version wins: a commit names the version it is to become and is not
//! retried internally. Two plain appends to one version would both succeed; a transaction in every
//! commit, with a fixed application id and the number of the run's commit, makes them conflict. It
//! also shows later whether a commit whose reply was lost has succeeded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::prelude::{DataFrame, SessionContext};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, PROTOCOL};
use deltalake::kernel::{
    Action, Add, DeletionVectorDescriptor, MetadataExt, Remove, StructType, Transaction,
    new_metadata,
};
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use futures::TryStreamExt;
use serde_json::Value;
use tracing::{debug, warn};

use crate::error::{Error, Result, storage_hint};
use crate::store::Folder;

/// The folder of the log's files.
pub(crate) const LOG_FOLDER: &str = "_delta_log/";

const APPLICATION: &str = "glueless";
/// The feature of a table that can have deletion vectors.
const DELETION_VECTORS: &str = "deletionVectors";
/// The features that readers of a protocol support which does not list them, and from which version on.
const READERS: [(u64, &str); 1] = [(2, "columnMapping")];
/// Those of writers.
const WRITERS: [(u64, &str); 7] = [
    (2, "appendOnly"),
    (2, "invariants"),
    (3, "checkConstraints"),
    (4, "changeDataFeed"),
    (4, "generatedColumns"),
    (5, "columnMapping"),
    (6, "identityColumns"),
];

/// The number of versions between checkpoints, at which expired log files are removed as well.
const CHECKPOINT_INTERVAL: u64 = 10;

/// The metadata of a table.
#[derive(Debug)]
pub(crate) struct Description {
    /// Its columns.
    pub schema: StructType,
    /// Its partition columns.
    pub partition_by: Vec<String>,
    /// Its properties.
    pub configuration: Vec<(&'static str, String)>,
}

impl Description {
    /// The property that sets the checkpoint interval.
    pub(crate) fn checkpoint() -> (&'static str, String) {
        ("delta.checkpointInterval", CHECKPOINT_INTERVAL.to_string())
    }
}

/// A data file, as the log lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoggedFile {
    /// Its size in bytes.
    pub bytes: u64,
    /// The rows that are deleted from it, if there are any.
    pub deleted: Option<DeletionVectorDescriptor>,
}

/// A Delta log and its last state read.
pub(crate) struct DeltaLog {
    /// The table's folder.
    pub folder: Folder,
    log_store: LogStoreRef,
    /// The state as last read; `None` if there is no log.
    state: Option<DeltaTableState>,
    /// The table's data files, by path.
    files: BTreeMap<String, LoggedFile>,
    /// The version committed since the state was read.
    committed: Option<u64>,
}

impl DeltaLog {
    /// The log of a folder, without reading it.
    pub(crate) fn new(folder: Folder) -> Self {
        let log_store = default_logstore(
            Arc::clone(&folder.store),
            Arc::clone(&folder.root_store),
            folder.location.url(),
            &StorageConfig::default(),
        );
        DeltaLog { log_store, state: None, files: BTreeMap::new(), committed: None, folder }
    }

    /// Reads the latest committed state.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub(crate) async fn read(&mut self) -> Result<()> {
        let log_store = Arc::clone(&self.log_store);
        let read = async {
            match &mut self.state {
                // A log that existed still exists: checking would cost a listing.
                Some(state) => state.update(log_store.as_ref(), None).await?,
                None if log_store.is_delta_table_location().await? => {
                    self.state = Some(DeltaTableState::try_new(log_store.as_ref(), None).await?);
                }
                None => {}
            }
            Ok(())
        };
        let result: Result<(), DeltaTableError> = read.await;
        result.map_err(|error| self.failed("read", error))?;
        self.committed = None;
        self.list_files();
        Ok(())
    }

    fn list_files(&mut self) {
        self.files.clear();
        if let Some(state) = &self.state {
            let data = state.log_data();
            self.files.extend(data.iter().map(|file| {
                let bytes = file.size().max(0) as u64;
                let deleted = file.deletion_vector_descriptor();
                (file.path().into_owned(), LoggedFile { bytes, deleted })
            }));
        }
    }

    /// The last version; `None` if there is no log.
    pub(crate) fn version(&self) -> Option<u64> {
        let read = self.state.as_ref().map(DeltaTableState::version);
        self.committed.or(read)
    }

    /// The state as last read; `None` if there was no log.
    pub(crate) fn snapshot(&self) -> Option<&DeltaTableState> {
        self.state.as_ref()
    }

    /// The rows of the table's latest version, as a reader sees them.
    ///
    /// # Errors
    /// Storage, when the table cannot be read, or the engine does not support it.
    pub(crate) async fn rows(&self, context: &SessionContext) -> Result<DataFrame> {
        let mut table = DeltaTable::new(Arc::clone(&self.log_store));
        let loaded = table.load().await;
        loaded.map_err(|error| self.failed("read", error))?;
        let registered = table.update_datafusion_session(&context.state());
        registered.map_err(|error| self.failed("read", error))?;
        Ok(context.read_table(table.table_provider().await?)?)
    }

    /// The table's data files as last read, by path.
    pub(crate) fn files(&self) -> &BTreeMap<String, LoggedFile> {
        &self.files
    }

    /// The actions that remove files from the table.
    pub(crate) fn remove_actions(&self, is_removed: impl Fn(&str) -> bool) -> Vec<Action> {
        let Some(snapshot) = self.snapshot() else {
            return Vec::new();
        };
        let data = snapshot.log_data();
        let removed = data.iter().filter(|file| is_removed(&file.path()));
        removed.map(|file| Action::Remove(file.remove_action(true))).collect()
    }

    /// The files removed from the table after a time, in milliseconds since 1970.
    ///
    /// # Errors
    /// Storage, when they cannot be read.
    pub(crate) async fn removed_since(&self, time: i64) -> Result<Vec<String>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(Vec::new());
        };
        let log_store = Arc::clone(&self.log_store);
        let tombstones = snapshot.all_tombstones(log_store.as_ref());
        let later = tombstones.try_filter_map(|removed| async move {
            let is_later = removed.deletion_timestamp().is_some_and(|at| at > time);
            Ok(is_later.then(|| removed.path().into_owned()))
        });
        let paths = later.try_collect().await;
        paths.map_err(|error| self.failed("read", error))
    }

    /// The number of the run's commit in the last transaction.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub(crate) async fn last_transaction(&self) -> Result<Option<u64>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(None);
        };
        let log_store = Arc::clone(&self.log_store);
        let version = snapshot.transaction_version(log_store.as_ref(), APPLICATION);
        let last = version.await.map_err(|error| self.failed("read", error))?;
        Ok(last.map(|last| last.max(0) as u64))
    }

    /// Creates the log, with version 0 for an empty table. If another process is faster, its log is
    /// used.
    ///
    /// # Errors
    /// Storage, when it cannot be written.
    pub(crate) async fn create(&mut self, description: &Description) -> Result<()> {
        debug!("creating the Delta table {}", self.folder.location);
        let configuration = description.configuration.iter();
        let created = CreateBuilder::new()
            .with_log_store(Arc::clone(&self.log_store))
            .with_columns(description.schema.fields().cloned())
            .with_partition_columns(&description.partition_by)
            .with_configuration(configuration.map(|(key, value)| (*key, Some(value.as_str()))))
            .with_save_mode(SaveMode::Ignore)
            .with_commit_properties(CommitProperties::default().with_max_retries(0))
            .await;
        match created {
            Ok(created) => {
                let state = created.snapshot().cloned();
                // If another process was faster, its log may have files already.
                self.state = Some(state.map_err(|error| self.failed("create", error))?);
                self.list_files();
            }
            Err(error) => {
                self.read().await?;
                if self.state.is_none() {
                    return Err(self.failed("create", error));
                }
            }
        }
        self.sync(0)
    }

    /// Whether a property of the table has a value.
    pub(crate) fn is_set(&self, property: &str, value: &str) -> bool {
        let configuration = self.snapshot().map(|state| state.metadata().configuration());
        configuration.and_then(|all| all.get(property)).is_some_and(|found| found == value)
    }

    /// The action that lets the table have deletion vectors, so that readers which do not support them
    /// refuse it; `None` if it can have them. The features of an older protocol are listed, as Delta
    /// prescribes it.
    ///
    /// # Errors
    /// Internal, when the protocol cannot be built.
    pub(crate) fn deletion_vectors_action(&self) -> Result<Option<Action>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(None);
        };
        let failed = |error| {
            let failed = format!("cannot describe the protocol of {}", self.folder.location);
            Error::internal(failed).caused_by(error)
        };
        let known = serde_json::to_value(snapshot.protocol()).map_err(failed)?;
        let mut readers = features(&known["readerFeatures"], &known["minReaderVersion"], &READERS);
        let mut writers = features(&known["writerFeatures"], &known["minWriterVersion"], &WRITERS);
        let mut is_changed = false;
        for listed in [&mut readers, &mut writers] {
            if !listed.iter().any(|name| name == DELETION_VECTORS) {
                listed.push(DELETION_VECTORS.into());
                is_changed = true;
            }
        }
        let protocol = serde_json::json!({
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": readers,
            "writerFeatures": writers,
        });
        let protocol = serde_json::from_value(protocol).map_err(failed)?;
        Ok(is_changed.then_some(Action::Protocol(protocol)))
    }

    /// The action that updates the table's metadata; `None` if it is up to date.
    ///
    /// # Errors
    /// Internal, when the metadata cannot be built.
    pub(crate) fn metadata_action(&self, description: &Description) -> Result<Option<Action>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(None);
        };
        let known = snapshot.metadata();
        let Description { schema, partition_by, configuration } = description;
        let is_set = |(key, value): &(&str, String)| known.configuration().get(*key) == Some(value);
        if *snapshot.schema() == *schema
            && known.partition_columns() == partition_by
            && configuration.iter().all(is_set)
        {
            return Ok(None);
        }
        // Keep the properties that others have set.
        let mut all: HashMap<String, String> = known.configuration().clone();
        let own = configuration.iter();
        all.extend(own.map(|(key, value)| (key.to_string(), value.clone())));
        let described = new_metadata(schema, partition_by, all)
            .and_then(|metadata| metadata.with_table_id(known.id().to_string()));
        described.map(|metadata| Some(Action::Metadata(metadata))).map_err(|error| {
            Error::internal(format!("cannot describe {}", self.folder.location)).caused_by(error)
        })
    }

    /// Checks that files can be added to the table and removed from it.
    ///
    /// # Errors
    /// The engine's, if its writer does not support the table.
    pub(crate) fn check_writable(&self) -> Result<(), DeltaTableError> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let removal = Action::Remove(Remove { data_change: true, ..Default::default() });
        PROTOCOL.can_commit(snapshot, &[removal], &operation(snapshot))?;
        Ok(())
    }

    /// Commits the next version, with the number of the run's commit and further commit
    /// information. The new state is not read.
    ///
    /// # Errors
    /// The engine's. The commit may have succeeded nevertheless: read the log and look for its
    /// transaction.
    pub(crate) async fn commit(
        &mut self,
        actions: Vec<Action>,
        number: u64,
        commit_info: Vec<(String, String)>,
    ) -> Result<(), DeltaTableError> {
        let snapshot = self.state.as_ref().ok_or(DeltaTableError::NotInitialized)?;
        let version = snapshot.version() + 1;
        // As the engine counts: version 9 is the first with a checkpoint.
        let has_checkpoint = (version + 1).is_multiple_of(CHECKPOINT_INTERVAL);
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_metadata(commit_info.into_iter().map(|(key, value)| (key, value.into())))
            .with_application_transaction(Transaction {
                app_id: APPLICATION.into(),
                version: number as i64,
                last_updated: None,
            });
        let prepared = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(snapshot), Arc::clone(&self.log_store), operation(snapshot))
            .into_prepared_commit_future()
            .await?;
        let committed = prepared.await?;
        self.committed = Some(version);
        // The checkpoint also reads the log again.
        if has_checkpoint && let Err(error) = committed.await {
            warn!("the commit succeeded, but its checkpoint failed: {error}");
        }
        Ok(())
    }

    /// Syncs a committed version to the disk, so that it survives a power failure.
    ///
    /// # Errors
    /// Storage, when it cannot be written.
    pub(crate) fn sync(&self, version: u64) -> Result<()> {
        self.folder.sync(&[format!("{LOG_FOLDER}{version:020}.json")])
    }

    /// The error for a failure of the engine.
    pub(crate) fn failed(&self, doing: &str, error: DeltaTableError) -> Error {
        let hint = storage_hint(&error)
            .unwrap_or("check its permissions and free space, and that its log is complete");
        let failed = format!("cannot {doing} the Delta table {}", self.folder.location);
        // The lines after the first are back traces.
        let text = error.to_string();
        let first_line = text.lines().next().unwrap_or_default().to_string();
        Error::storage(failed).hint(hint).caused_by(first_line)
    }
}

/// The features of a protocol: those that it lists, or else those of its version.
fn features(listed: &Value, version: &Value, implied: &[(u64, &str)]) -> Vec<String> {
    if let Some(listed) = listed.as_array() {
        return listed.iter().filter_map(|name| Some(name.as_str()?.to_string())).collect();
    }
    let version = version.as_u64().unwrap_or_default();
    let implied = implied.iter().filter(|(since, _)| version >= *since);
    implied.map(|(_, name)| name.to_string()).collect()
}

fn operation(snapshot: &DeltaTableState) -> DeltaOperation {
    DeltaOperation::Write {
        mode: SaveMode::Overwrite,
        partition_by: Some(snapshot.metadata().partition_columns().to_vec()),
        predicate: None,
    }
}

/// The action that adds a file.
pub(crate) fn add(
    path: &str,
    partition: HashMap<String, Option<String>>,
    LoggedFile { bytes, deleted }: LoggedFile,
    stats: Option<String>,
    modified: i64,
) -> Action {
    Action::Add(Add {
        path: path.into(),
        partition_values: partition,
        size: bytes as i64,
        modification_time: modified,
        data_change: true,
        stats,
        deletion_vector: deleted,
        ..Default::default()
    })
}

/// Converts a schema to Delta's types.
///
/// # Errors
/// Internal, when a type has no counterpart.
pub(crate) fn delta_schema(fields: impl IntoIterator<Item = Field>) -> Result<StructType> {
    let schema = Schema::new(fields.into_iter().collect::<Vec<_>>());
    (&schema).try_into_kernel().map_err(|error: arrow::error::ArrowError| {
        Error::internal("Delta has no type for a column").caused_by(error)
    })
}

/// The type that a Delta table stores a type as: the same, or one that represents all its values. A
/// time without a zone is one of UTC, because Delta's type for it needs newer readers. `None` if
/// there is no such type, and for nested types.
fn delta_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::Date32
        | DataType::Decimal128(_, _) => data_type.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(precision, scale) if *precision <= 38 => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Dictionary(_, values) => delta_type(values)?,
        _ => return None,
    })
}

/// The columns of `curated.sql` in types that Delta tables support.
///
/// # Errors
/// Usage, naming `file` and the column that cannot be stored.
pub(crate) fn delta_columns(file: &str, columns: Vec<Field>) -> Result<Vec<Field>> {
    let mut names = BTreeSet::new();
    for column in &columns {
        if !names.insert(column.name().to_lowercase()) {
            let name = column.name();
            return Err(Error::usage(format!(
                "{file}: two columns are named `{name}` except for case, which Delta tables ignore"
            ))
            .hint("rename it: AS …"));
        }
    }
    let to_delta = |column: Field| {
        let refused = |why: &str, hint: &str| {
            Err(Error::usage(format!("{file}: the column `{}` {why}", column.name())).hint(hint))
        };
        if column.name().contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=']) {
            return refused(
                "has a space or one of ,;{}()= in its name, which Delta tables do not allow",
                "rename it: AS …",
            );
        }
        match delta_type(column.data_type()) {
            Some(found) => Ok(column.with_data_type(found)),
            None => {
                let reason =
                    format!("is {}, which cannot be stored in a Delta table", column.data_type());
                refused(&reason, "cast it, for example to text: CAST(… AS VARCHAR)")
            }
        }
    };
    columns.into_iter().map(to_delta).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Stores};

    #[tokio::test]
    async fn a_log_that_another_process_created_first_is_used_with_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = || {
            let location = Location::parse("table", folder.path()).expect("a location");
            DeltaLog::new(Stores::default().open(&location).expect("a folder"))
        };
        let description = Description {
            schema: delta_schema([Field::new("a", DataType::Int64, true)]).expect("a schema"),
            partition_by: vec![],
            configuration: vec![],
        };
        let (mut first, mut second) = (log(), log());
        second.read().await.expect("nothing to read");
        first.create(&description).await.expect("created");
        let added = LoggedFile { bytes: 7, deleted: None };
        let file = add("a.parquet", HashMap::new(), added.clone(), None, 0);
        first.commit(vec![file], 1, vec![]).await.expect("committed");
        second.create(&description).await.expect("it exists");
        assert_eq!(second.version(), Some(1));
        assert_eq!(second.files(), &BTreeMap::from([("a.parquet".to_string(), added)]));
    }
}
