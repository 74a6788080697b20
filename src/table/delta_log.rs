//! A Delta log: what the state and a curated table of `format = "delta"` have in common.
//!
//! Whoever commits first wins: a commit names the version it is to become, and nothing retries
//! inside. Two plain appends from one version would both win; the transaction that every commit
//! carries, with one application id and the number of the run's commit, makes them conflict, and
//! tells afterwards whether a commit whose reply was lost has landed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::prelude::{DataFrame, SessionContext};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, PROTOCOL};
use deltalake::kernel::{Action, Add, MetadataExt, Remove, StructType, Transaction, new_metadata};
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use futures::TryStreamExt;
use tracing::{debug, warn};

use crate::error::{Error, Result, storage_hint};
use crate::store::Folder;

/// The folder of the log's own files.
pub const LOG_FOLDER: &str = "_delta_log/";

const APPLICATION: &str = "glueless";
/// Every so many versions the log gets a checkpoint, and what it no longer needs is removed.
const CHECKPOINT_INTERVAL: u64 = 10;

/// What a table is, beside its files.
#[derive(Debug)]
pub struct Description {
    /// Its columns.
    pub schema: StructType,
    /// Its partition columns.
    pub partition_by: Vec<String>,
    /// Its properties.
    pub configuration: Vec<(&'static str, String)>,
}

impl Description {
    /// How often the log is kept up.
    pub fn checkpoint() -> (&'static str, String) {
        ("delta.checkpointInterval", CHECKPOINT_INTERVAL.to_string())
    }
}

/// A Delta log, as last read.
pub struct DeltaLog {
    /// The table's folder.
    pub folder: Folder,
    log_store: LogStoreRef,
    /// What it comes to; `None` where there is no log.
    state: Option<DeltaTableState>,
    /// The data files in it: path and size.
    files: BTreeMap<String, u64>,
    /// The version that was committed since it was read.
    committed: Option<u64>,
}

impl DeltaLog {
    /// The log of a folder, not read yet.
    pub fn new(folder: Folder) -> Self {
        let log_store = default_logstore(
            Arc::clone(&folder.store),
            Arc::clone(&folder.root_store),
            folder.location.url(),
            &StorageConfig::default(),
        );
        DeltaLog {
            log_store,
            state: None,
            files: BTreeMap::new(),
            committed: None,
            folder,
        }
    }

    /// Reads what was committed.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub async fn read(&mut self) -> Result<()> {
        let log_store = Arc::clone(&self.log_store);
        let read = async {
            match &mut self.state {
                // A log that was there stays there: to ask again would cost a listing.
                Some(state) => state.update(log_store.as_ref(), None).await?,
                None if log_store.is_delta_table_location().await? => {
                    self.state = Some(DeltaTableState::try_new(log_store.as_ref(), None).await?);
                }
                None => {}
            }
            Ok(())
        };
        let read = read.await;
        read.map_err(|error| self.failed("read", error))?;
        self.committed = None;
        self.list_files();
        Ok(())
    }

    fn list_files(&mut self) {
        self.files.clear();
        if let Some(state) = &self.state {
            let files = state.log_data();
            let files = files.iter();
            let files = files.map(|file| (file.path().into_owned(), file.size().max(0) as u64));
            self.files.extend(files);
        }
    }

    /// The number of the last version; `None` where there is no log.
    pub fn version(&self) -> Option<u64> {
        let read = self.state.as_ref().map(DeltaTableState::version);
        self.committed.or(read)
    }

    /// What the log came to when it was read; `None` where there was none.
    pub fn snapshot(&self) -> Option<&DeltaTableState> {
        self.state.as_ref()
    }

    /// The rows of the table as it is now, for a reader.
    ///
    /// # Errors
    /// Storage, when it cannot be read, or is a table that the engine cannot read.
    pub async fn rows(&self, context: &SessionContext) -> Result<DataFrame> {
        let mut table = DeltaTable::new(Arc::clone(&self.log_store));
        let loaded = table.load().await;
        loaded.map_err(|error| self.failed("read", error))?;
        let registered = table.update_datafusion_session(&context.state());
        registered.map_err(|error| self.failed("read", error))?;
        Ok(context.read_table(table.table_provider().await?)?)
    }

    /// The data files when the log was read: path and size.
    pub fn files(&self) -> &BTreeMap<String, u64> {
        &self.files
    }

    /// The actions that take files out of the table.
    pub fn removes(&self, goes: impl Fn(&str) -> bool) -> Vec<Action> {
        let Some(snapshot) = self.snapshot() else {
            return Vec::new();
        };
        let files = snapshot.log_data();
        let files = files.iter().filter(|file| goes(&file.path()));
        files
            .map(|file| Action::Remove(file.remove_action(true)))
            .collect()
    }

    /// The files that were taken out of the table later than a time, in milliseconds since 1970.
    ///
    /// # Errors
    /// Storage, when they cannot be read.
    pub async fn removed_since(&self, time: i64) -> Result<Vec<String>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(Vec::new());
        };
        let log_store = Arc::clone(&self.log_store);
        let removed = snapshot.all_tombstones(log_store.as_ref());
        let removed = removed.try_filter_map(|removed| async move {
            let is_later = removed.deletion_timestamp().is_some_and(|at| at > time);
            Ok(is_later.then(|| removed.path().into_owned()))
        });
        let removed = removed.try_collect().await;
        removed.map_err(|error| self.failed("read", error))
    }

    /// The number of the run's commit that was carried last.
    ///
    /// # Errors
    /// Storage, when it cannot be read.
    pub async fn last_transaction(&self) -> Result<Option<u64>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(None);
        };
        let log_store = Arc::clone(&self.log_store);
        let last = snapshot.transaction_version(log_store.as_ref(), APPLICATION);
        let last = last.await.map_err(|error| self.failed("read", error))?;
        Ok(last.map(|last| last.max(0) as u64))
    }

    /// Makes the log, with version 0 for an empty table; where another process is faster, its log
    /// is the one.
    ///
    /// # Errors
    /// Storage, when it cannot be written.
    pub async fn create(&mut self, description: &Description) -> Result<()> {
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
                // Where another process was faster, its log may have files already.
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

    /// The action that makes the table what it should be; `None` where it is that already.
    ///
    /// # Errors
    /// Internal, when it cannot be described.
    pub fn described(&self, description: &Description) -> Result<Option<Action>> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(None);
        };
        let known = snapshot.metadata();
        let Description {
            schema,
            partition_by,
            configuration,
        } = description;
        let is_set = |(key, value): &(&str, String)| known.configuration().get(*key) == Some(value);
        if *snapshot.schema() == *schema
            && known.partition_columns() == partition_by
            && configuration.iter().all(is_set)
        {
            return Ok(None);
        }
        // What others have set stays.
        let mut all: HashMap<String, String> = known.configuration().clone();
        let own = configuration.iter();
        all.extend(own.map(|(key, value)| (key.to_string(), value.clone())));
        let described = new_metadata(schema, partition_by, all)
            .and_then(|metadata| metadata.with_table_id(known.id().to_string()));
        described
            .map(|metadata| Some(Action::Metadata(metadata)))
            .map_err(|error| {
                Error::internal(format!("cannot describe {}", self.folder.location))
                    .caused_by(error)
            })
    }

    /// Checks that files can be put into the table and taken out of it.
    ///
    /// # Errors
    /// The engine's.
    pub fn check_writable(&self) -> Result<(), DeltaTableError> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let removal = Action::Remove(Remove {
            data_change: true,
            ..Default::default()
        });
        PROTOCOL.can_commit(snapshot, &[removal], &operation(snapshot))?;
        Ok(())
    }

    /// Commits the next version, with the number of the run's commit and what else to tell of it.
    /// What it comes to is not read.
    ///
    /// # Errors
    /// The engine's failure to commit: the commit may have landed all the same, read the log and
    /// look for its transaction.
    pub async fn commit(
        &mut self,
        actions: Vec<Action>,
        number: u64,
        told: Vec<(String, String)>,
    ) -> Result<(), DeltaTableError> {
        let snapshot = self.state.as_ref().ok_or(DeltaTableError::NotInitialized)?;
        let version = snapshot.version() + 1;
        // As the engine counts: version 9 is the first with a checkpoint.
        let is_kept_up = (version + 1).is_multiple_of(CHECKPOINT_INTERVAL);
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_metadata(told.into_iter().map(|(key, value)| (key, value.into())))
            .with_application_transaction(Transaction {
                app_id: APPLICATION.into(),
                version: number as i64,
                last_updated: None,
            });
        let prepared = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(
                Some(snapshot),
                Arc::clone(&self.log_store),
                operation(snapshot),
            )
            .into_prepared_commit_future()
            .await?;
        let landed = prepared.await?;
        self.committed = Some(version);
        // The checkpoint also reads the log again.
        if is_kept_up && let Err(error) = landed.await {
            warn!("the commit landed, but its checkpoint failed: {error}");
        }
        Ok(())
    }

    /// Makes sure that a version that was committed outlives a power cut.
    ///
    /// # Errors
    /// Storage, when it cannot be written.
    pub fn sync(&self, version: u64) -> Result<()> {
        self.folder
            .sync(&[format!("{LOG_FOLDER}{version:020}.json")])
    }

    /// A failure of the engine's, told.
    pub fn failed(&self, doing: &str, error: DeltaTableError) -> Error {
        let hint = storage_hint(&error);
        let hint =
            hint.unwrap_or("check its permissions and free space, and that its log is whole");
        let failed = format!("cannot {doing} the Delta table {}", self.folder.location);
        // What follows are back traces.
        let told = error.to_string();
        let told = told.lines().next().unwrap_or_default().to_string();
        Error::storage(failed).hint(hint).caused_by(told)
    }
}

fn operation(snapshot: &DeltaTableState) -> DeltaOperation {
    DeltaOperation::Write {
        mode: SaveMode::Overwrite,
        partition_by: Some(snapshot.metadata().partition_columns().to_vec()),
        predicate: None,
    }
}

/// The action that adds a file.
pub fn add(
    path: &str,
    partition: HashMap<String, Option<String>>,
    bytes: u64,
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
        ..Default::default()
    })
}

/// A schema in Delta's types.
///
/// # Errors
/// Internal, when a type has no counterpart.
pub fn delta_schema(fields: impl IntoIterator<Item = Field>) -> Result<StructType> {
    let schema = Schema::new(fields.into_iter().collect::<Vec<_>>());
    (&schema)
        .try_into_kernel()
        .map_err(|error: arrow::error::ArrowError| {
            Error::internal("a column's type is none of Delta's").caused_by(error)
        })
}

/// The type in which a Delta table holds a column of another one: the same, or one that holds all
/// of its values. A time without a zone is one of UTC, because Delta's own type for it needs
/// readers of a newer kind. `None` where there is no such type, and for nested ones.
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

/// The columns of `curated.sql` in the types that a Delta table has.
///
/// # Errors
/// Usage, naming `file` and the column that cannot be stored.
pub fn delta_columns(file: &str, columns: Vec<Field>) -> Result<Vec<Field>> {
    let mut names = BTreeSet::new();
    for column in &columns {
        if !names.insert(column.name().to_lowercase()) {
            let name = column.name();
            return Err(Error::usage(format!(
                "{file}: another column has the name `{name}` but for its case, which is one name in a Delta table"
            ))
            .hint("rename it: AS …"));
        }
    }
    let to_delta = |column: Field| {
        let refused = |why: &str, hint: &str| {
            Err(Error::usage(format!("{file}: the column `{}` {why}", column.name())).hint(hint))
        };
        if column
            .name()
            .contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='])
        {
            return refused(
                "has a space or one of ,;{}()= in its name, which Delta tables do not allow",
                "rename it: AS …",
            );
        }
        match delta_type(column.data_type()) {
            Some(found) => Ok(column.with_data_type(found)),
            None => {
                let told = format!(
                    "is {}, which cannot be stored in a Delta table",
                    column.data_type()
                );
                refused(&told, "cast it, to text for one: CAST(… AS VARCHAR)")
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
    async fn a_log_that_another_process_made_first_is_listed_with_its_files() {
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
        let file = add("a.parquet", HashMap::new(), 7, None, 0);
        first
            .commit(vec![file], 1, vec![])
            .await
            .expect("committed");
        second.create(&description).await.expect("it is there");
        assert_eq!(second.version(), Some(1));
        assert_eq!(
            second.files(),
            &BTreeMap::from([("a.parquet".to_string(), 7)])
        );
    }
}
