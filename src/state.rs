//! State: what is remembered between runs, in one Delta table under the state folder.
//!
//! ```text
//! <state>/_glueless.json                       whose state this is
//! <state>/publishing/<run>                     a run that is about to commit and publish
//! <state>/versions/_delta_log/…                one commit per run
//! <state>/versions/kind=version/….parquet      versions: see crate::versions
//! <state>/versions/kind=ledger/….parquet       the ledger: one JSON record per row
//! ```
//!
//! One commit carries a run's versions and its ledger records (the run, the inputs it folded, the
//! files of the tables it publishes): both are remembered, or neither. Ledger records are rows of
//! data files, because the log's own commit information does not outlive its cleanup.
//!
//! Until runs are merged with what earlier runs left, a run replaces all versions, and must
//! therefore read every input that was folded before ([`Ledger::check_complete`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, NaiveDate, Utc};
use deltalake::DeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, StructType, Transaction, new_metadata};
use deltalake::logstore::{StorageConfig, default_logstore};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::future::LocalBoxFuture;
use futures::{FutureExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::config::Pipeline;
use crate::discover::{Input, Recorded};
use crate::error::{Error, Result, storage_hint};
use crate::file_table::{FileTable, ListedFile};
use crate::parquet_file::{ParquetFile, Rows};
use crate::publish::{self, TableFile};
use crate::session::BATCH_ROWS;
use crate::store::{Folder, Stores, parse_path};
use crate::table_writer::{StagedFile, parquet_writer, write_error};
use crate::versions::VersionsLayout;
use crate::window::Window;

/// The ledger's name for the curated table.
pub const CURATED: &str = "curated";

/// What must not change while a pipeline keeps its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    curated: String,
    key: Vec<String>,
    keep: String,
    order_by: Vec<String>,
    commit_time: String,
    event_time: String,
    time_zone: String,
    partition_by: Vec<String>,
    curated_sql: String,
}

impl Identity {
    /// The identity of a pipeline as it is configured now.
    pub fn of(pipeline: &Pipeline) -> Self {
        Identity {
            curated: pipeline.curated.url.to_string(),
            key: pipeline.key.clone(),
            keep: pipeline.keep.to_string(),
            order_by: pipeline.raw.order_by.clone(),
            commit_time: pipeline.raw.commit_time.clone(),
            event_time: pipeline.raw.event_time.clone(),
            time_zone: pipeline.raw.time_zone.to_string(),
            partition_by: pipeline.curated.partition_by.clone(),
            curated_sql: fingerprint(&pipeline.curated.sql.text),
        }
    }

    /// The settings in which two identities differ.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("curated.url", self.curated != other.curated),
            ("key", self.key != other.key),
            ("keep", self.keep != other.keep),
            ("raw.order_by", self.order_by != other.order_by),
            ("raw.commit_time", self.commit_time != other.commit_time),
            ("raw.event_time", self.event_time != other.event_time),
            ("raw.time_zone", self.time_zone != other.time_zone),
            (
                "curated.partition_by",
                self.partition_by != other.partition_by,
            ),
            ("curated.sql", self.curated_sql != other.curated_sql),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// FNV-1a over the query with its comments and white space folded, so that a remark does not
/// change a pipeline.
fn fingerprint(sql: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let code = sql
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default());
    for word in code.flat_map(str::split_whitespace) {
        for byte in word.bytes().chain([b' ']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// A row of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// A run that was committed.
    Run(Box<Run>),
    /// An input that a run folded.
    Input(FoldedInput),
    /// A file of a table after a run.
    File {
        /// The table: [`CURATED`], or an aggregate's name.
        table: String,
        /// The file.
        #[serde(flatten)]
        file: TableFile,
    },
}

/// A run, as the ledger keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Unique, and growing with time.
    pub run_id: String,
    /// `curate` or `aggregate`.
    pub command: String,
    /// The window's start.
    pub start: DateTime<Utc>,
    /// The window's end.
    pub end: DateTime<Utc>,
    /// The tables whose files this commit lists.
    pub tables: Vec<String>,
    /// What a curate run was: absent from other runs.
    pub curate: Option<Curate>,
}

/// What only a curate run records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curate {
    /// The pipeline's identity.
    pub identity: Identity,
    /// The curated columns: name and Arrow type.
    pub columns: Vec<(String, String)>,
    /// The key columns in versions: name and Arrow type.
    pub keys: Vec<(String, String)>,
    /// The partition columns in versions: name and Arrow type.
    pub partitions: Vec<(String, String)>,
    /// Whether the only order column is the commit time.
    pub packed: bool,
    /// The days with changes, ascending.
    pub days: Vec<NaiveDate>,
}

/// An input that was folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldedInput {
    /// Which of the raw URLs it lies under.
    pub location: usize,
    /// Its path relative to that URL.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: DateTime<Utc>,
    /// The store's tag of its content.
    pub e_tag: Option<String>,
}

impl From<&Input> for FoldedInput {
    fn from(input: &Input) -> Self {
        FoldedInput {
            location: input.location,
            path: input.path.clone(),
            size: input.size,
            modified: input.modified,
            e_tag: input.e_tag.clone(),
        }
    }
}

/// What all committed runs left.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The runs, in the order of their commits.
    pub runs: Vec<Run>,
    /// The inputs folded so far.
    pub inputs: BTreeMap<(usize, String), FoldedInput>,
    /// Per table its files, as last committed.
    pub tables: BTreeMap<String, Vec<TableFile>>,
}

impl Ledger {
    /// The last curate run's record.
    pub fn curate(&self) -> Option<&Curate> {
        self.runs.iter().rev().find_map(|run| run.curate.as_ref())
    }

    /// A table's files, as last committed.
    pub fn files(&self, table: &str) -> &[TableFile] {
        self.tables.get(table).map_or(&[], Vec::as_slice)
    }

    /// Where the files of all tables were staged by the commits that made them.
    pub fn staged_paths(&self) -> impl Iterator<Item = &str> {
        let files = self.tables.values().flatten();
        files.filter_map(|file| file.staged.as_deref())
    }

    /// Refuses a window that was run before and has lost its inputs since.
    ///
    /// # Errors
    /// Data, naming the first missing input.
    pub fn check_not_lost(&self, inputs: &[Input], window: &Window) -> Result<()> {
        let is_covered = |run: &&Run| {
            let earlier = Window {
                start: run.start,
                end: run.end,
            };
            run.curate.is_some() && window.covers(&earlier)
        };
        match self.runs.iter().find(is_covered) {
            Some(_) => self.check_complete(inputs, window, false),
            None => Ok(()),
        }
    }

    /// Refuses a run that does not read every input folded before, because it could not rebuild
    /// what these left.
    ///
    /// # Errors
    /// Data, naming the first missing input and the window that would cover it.
    pub fn check_complete(&self, inputs: &[Input], window: &Window, by_rows: bool) -> Result<()> {
        let curates = self.runs.iter().filter(|run| run.curate.is_some());
        let hull = curates
            .map(|run| Window {
                start: run.start,
                end: run.end,
            })
            .fold(*window, |hull, earlier| hull.hull(&earlier));
        let day = |instant: DateTime<Utc>| instant.format("%Y-%m-%dT%H:%M:%SZ");
        let wider = || {
            format!(
                "run the window that covers it: --start-date {} --end-date {}",
                day(hull.start),
                day(hull.end)
            )
        };
        let chosen: BTreeSet<(usize, &str)> = inputs
            .iter()
            .map(|input| (input.location, input.path.as_str()))
            .collect();
        let missing = self
            .inputs
            .values()
            .find(|input| !chosen.contains(&(input.location, input.path.as_str())));
        match missing {
            Some(input) => Err(Error::data(format!(
                "{} was folded by an earlier run and is not read by this one",
                input.path
            ))
            .hint(if hull == *window {
                "it is no longer among the raw files: put it back".into()
            } else {
                wider()
            })),
            None if by_rows && hull != *window && !self.inputs.is_empty() => Err(Error::data(
                format!("rows outside of {window} were folded by an earlier run"),
            )
            .hint(wider())),
            None => Ok(()),
        }
    }
}

impl Recorded for Ledger {
    fn is_folded(&self, location: usize, path: &str) -> bool {
        self.inputs.contains_key(&(location, path.to_string()))
    }

    fn was_run(&self, span: &Window) -> bool {
        self.runs
            .iter()
            .filter(|run| run.curate.is_some())
            .any(|run| {
                Window {
                    start: run.start,
                    end: run.end,
                }
                .overlaps(span)
            })
    }
}

/// The opened state of a pipeline.
pub struct State {
    /// The folder of the Delta table.
    pub folder: Folder,
    /// What was committed when the state was opened.
    pub ledger: Ledger,
    table: DeltaTable,
    exists: bool,
}

impl State {
    /// Opens the state and reads the ledger; nothing is created.
    ///
    /// # Errors
    /// Storage, when it cannot be read; usage, when the pipeline is no longer what it was.
    pub fn open<'a>(
        stores: &'a Stores,
        pipeline: &'a Pipeline,
    ) -> LocalBoxFuture<'a, Result<Self>> {
        Self::do_open(stores, pipeline).boxed_local()
    }

    async fn do_open(stores: &Stores, pipeline: &Pipeline) -> Result<Self> {
        let folder = stores.open(&pipeline.state.join("versions"))?;
        let mut state = State {
            table: delta_table(&folder),
            ledger: Ledger::default(),
            exists: false,
            folder,
        };
        state.read().await?;
        if let Some(curate) = state.ledger.curate() {
            let differences = curate.identity.differences(&Identity::of(pipeline));
            if !differences.is_empty() {
                return Err(Error::usage(format!(
                    "the pipeline `{}` is no longer what made its tables: `{}` changed",
                    pipeline.name,
                    differences.join("`, `")
                ))
                .hint(format!(
                    "undo the change, or use another `name` and `curated.url`; the state is in {}",
                    pipeline.state
                )));
            }
        }
        Ok(state)
    }

    /// The number the next commit will have.
    pub fn next_commit(&self) -> u64 {
        if self.exists {
            self.table.version().unwrap_or_default() + 1
        } else {
            1
        }
    }

    async fn read(&mut self) -> Result<()> {
        let doing = || format!("cannot read the state {}", self.folder.location);
        let exists = self.table.verify_deltatable_existence().await;
        self.exists = exists.map_err(|error| Error::storage(doing()).caused_by(error))?;
        if !self.exists {
            return Ok(());
        }
        self.table
            .load()
            .await
            .map_err(|error| Error::storage(doing()).caused_by(error))?;
        let mut ledger = Ledger::default();
        for file in self.data_files("ledger")? {
            for record in read_records(&self.folder, &file).await? {
                match record {
                    Record::Run(run) => {
                        for table in &run.tables {
                            ledger.tables.insert(table.clone(), Vec::new());
                        }
                        ledger.runs.push(*run);
                    }
                    Record::Input(input) => {
                        ledger
                            .inputs
                            .insert((input.location, input.path.clone()), input);
                    }
                    Record::File { table, file } => {
                        ledger.tables.entry(table).or_default().push(file);
                    }
                }
            }
        }
        self.ledger = ledger;
        Ok(())
    }

    /// The committed data files of one kind: path and size, in the order of their commits.
    fn data_files(&self, kind: &str) -> Result<Vec<(String, u64)>> {
        let prefix = format!("kind={kind}/");
        let snapshot = self.table.snapshot().map_err(delta_error)?;
        let mut files: Vec<(String, u64)> = snapshot
            .log_data()
            .iter()
            .map(|file| (file.path().into_owned(), file.size().max(0) as u64))
            .filter(|(path, _)| path.starts_with(&prefix))
            .collect();
        files.sort();
        Ok(files)
    }

    /// The committed versions as a relation, and their layout; `None` before the first run.
    ///
    /// # Errors
    /// Internal, when the ledger names a type that is none.
    pub fn versions(&self) -> Result<Option<(FileTable, VersionsLayout)>> {
        let Some(curate) = self.ledger.curate() else {
            return Ok(None);
        };
        let layout = VersionsLayout {
            keys: read_types(&curate.keys)?,
            partitions: read_types(&curate.partitions)?,
            packed: curate.packed,
        };
        let files = self
            .data_files("version")?
            .into_iter()
            .map(|(path, bytes)| {
                Ok(ListedFile {
                    path: self.folder.root_path(&path)?,
                    bytes,
                    partition: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let table = FileTable::new(&self.folder, files, layout.schema(), Vec::new())?;
        Ok(Some((table, layout)))
    }

    /// The path of a new data file with versions.
    pub fn version_path(run_id: &str, number: usize) -> String {
        format!("kind=version/{run_id}-{number:05}.parquet")
    }

    /// Commits a run: its ledger records, and its versions, which replace all earlier ones.
    ///
    /// # Errors
    /// Busy, when another run committed since the state was opened; storage, when the commit
    /// cannot be written. In both cases nothing is remembered of this run.
    pub async fn commit(
        &mut self,
        run_id: &str,
        records: &[Record],
        versions: Option<(&VersionsLayout, &[StagedFile])>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let layout = match versions {
            Some((layout, _)) => layout.clone(),
            None => self
                .versions()?
                .map(|(_, layout)| layout)
                .ok_or_else(|| Error::internal("there is no state to add to"))?,
        };
        let schema = delta_schema(&layout)?;
        if !self.exists {
            self.create(&schema).await?;
        }
        let ledger = format!("kind=ledger/{:020}-{run_id}.parquet", self.next_commit());
        let bytes = write_records(&self.folder, &ledger, records).await?;
        let modified = now.timestamp_millis();
        let mut actions = vec![add("ledger", &ledger, bytes, modified)];
        let before: BTreeSet<String> = self.all_files()?;
        let snapshot = self.table.snapshot().map_err(delta_error)?;
        if let Some((_, staged)) = versions {
            for file in snapshot.log_data().iter() {
                if file.path().starts_with("kind=version/") {
                    actions.push(Action::Remove(file.remove_action(true)));
                }
            }
            actions.extend(
                staged
                    .iter()
                    .map(|file| add("version", &file.staged, file.bytes, modified)),
            );
            if *snapshot.schema() != schema {
                let metadata =
                    new_metadata(&schema, ["kind"], [("delta.checkpointInterval", "10")]);
                let metadata = metadata.map_err(|error| {
                    Error::internal("cannot describe the state").caused_by(error)
                })?;
                actions.push(Action::Metadata(metadata));
            }
        }
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec!["kind".into()]),
            predicate: None,
        };
        // Two plain appends from one version would both win; the shared application id makes
        // them conflict.
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_application_transaction(Transaction {
                app_id: "glueless".into(),
                version: self.next_commit() as i64,
                last_updated: None,
            });
        let prepared = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(snapshot), self.table.log_store(), operation)
            .into_prepared_commit_future()
            .await
            .map_err(delta_error)?;
        match prepared.await {
            Ok(landed) => {
                if let Err(error) = landed.await {
                    warn!("the commit landed, but its upkeep failed: {error}");
                }
                self.read().await?;
            }
            Err(error) => {
                // A lost reply can look like a failure: what counts is what was committed.
                let number = self.next_commit();
                self.read().await?;
                if !self.ledger.runs.iter().any(|run| run.run_id == run_id) {
                    if self.next_commit() == number {
                        return Err(delta_error(error));
                    }
                    return Err(Error::busy("another run of this pipeline was faster")
                        .hint("run again: it starts from what the other run left")
                        .caused_by(error));
                }
            }
        }
        // Files that were no longer used before this commit: nobody reads them by now.
        let mut used = before;
        used.extend(self.all_files()?);
        let strays = publish::list(&self.folder).await?;
        let strays = strays
            .into_iter()
            .filter(|path| path.starts_with("kind=") && !used.contains(path));
        publish::remove(&self.folder, strays.collect()).await
    }

    /// Removes a failed run's versions, which were never committed.
    ///
    /// # Errors
    /// Storage, when a file cannot be removed.
    pub async fn discard_versions(&mut self, run_id: &str) -> Result<()> {
        // The failure may have come after the commit landed.
        self.read().await?;
        let committed = if self.exists {
            self.all_files()?
        } else {
            BTreeSet::new()
        };
        let files = publish::list(&self.folder).await?.into_iter();
        let mine = files.filter(|path| path.contains(run_id) && !committed.contains(path));
        publish::remove(&self.folder, mine.collect()).await
    }

    fn all_files(&self) -> Result<BTreeSet<String>> {
        let snapshot = self.table.snapshot().map_err(delta_error)?;
        Ok(snapshot
            .log_data()
            .iter()
            .map(|file| file.path().into_owned())
            .collect())
    }

    async fn create(&mut self, schema: &StructType) -> Result<()> {
        debug!("creating the state {}", self.folder.location);
        let created = CreateBuilder::new()
            .with_log_store(self.table.log_store())
            .with_columns(schema.fields().cloned())
            .with_partition_columns(["kind"])
            .with_configuration([("delta.checkpointInterval", Some("10"))])
            .with_save_mode(SaveMode::Ignore)
            .await;
        self.table = created.map_err(|error| {
            Error::storage(format!("cannot create the state {}", self.folder.location))
                .hint("check its permissions and free space")
                .caused_by(error)
        })?;
        self.exists = true;
        if self.table.version() != Some(0) {
            return Err(Error::busy("another run of this pipeline was faster"));
        }
        Ok(())
    }
}

fn delta_table(folder: &Folder) -> DeltaTable {
    let log_store = default_logstore(
        Arc::clone(&folder.store),
        Arc::clone(&folder.root_store),
        folder.location.url(),
        &StorageConfig::default(),
    );
    DeltaTable::new(log_store)
}

fn delta_error(error: deltalake::DeltaTableError) -> Error {
    let hint = storage_hint(&error);
    let failed = Error::storage("cannot use the state").caused_by(error);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

fn delta_schema(layout: &VersionsLayout) -> Result<StructType> {
    let mut fields = vec![Field::new("kind", DataType::Utf8, true)];
    fields.extend(
        layout
            .schema()
            .fields()
            .iter()
            .map(|field| field.as_ref().clone()),
    );
    fields.push(Field::new("record", DataType::Utf8, true));
    (&Schema::new(fields))
        .try_into_kernel()
        .map_err(|error: arrow::error::ArrowError| {
            Error::internal("a type of the versions is none of Delta's").caused_by(error)
        })
}

fn add(kind: &str, path: &str, bytes: u64, modified: i64) -> Action {
    Action::Add(Add {
        path: path.into(),
        partition_values: HashMap::from([("kind".to_string(), Some(kind.to_string()))]),
        size: bytes as i64,
        modification_time: modified,
        data_change: true,
        ..Default::default()
    })
}

fn record_schema() -> Schema {
    Schema::new(vec![Field::new("record", DataType::Utf8, true)])
}

async fn write_records(folder: &Folder, path: &str, records: &[Record]) -> Result<u64> {
    let texts = records
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<Vec<String>, _>>()
        .map_err(|error| Error::internal("cannot write the ledger").caused_by(error))?;
    let schema = Arc::new(record_schema());
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![Arc::new(StringArray::from(texts))],
    )?;
    let mut writer = parquet_writer(folder, path, schema, &[])?;
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
    let mut batches = file.read(&[wanted], Rows::default(), BATCH_ROWS);
    let mut records = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        for text in batch.column(0).as_string_view().iter().flatten() {
            let record = serde_json::from_str(text).map_err(|error| {
                Error::data(format!(
                    "{} holds a record this version cannot read",
                    file.name
                ))
                .hint("it may be of a newer version of glueless")
                .caused_by(error)
            })?;
            records.push(record);
        }
    }
    Ok(records)
}

/// Names and types, as the ledger keeps them.
pub fn write_types<'a>(
    types: impl Iterator<Item = (&'a str, &'a DataType)>,
) -> Vec<(String, String)> {
    types
        .map(|(name, data_type)| (name.to_string(), data_type.to_string()))
        .collect()
}

/// Names and types, as the ledger kept them.
///
/// # Errors
/// Internal, when a type cannot be read.
pub fn read_types(types: &[(String, String)]) -> Result<Vec<(String, DataType)>> {
    types
        .iter()
        .map(|(name, text)| {
            let data_type = text.parse().map_err(|error: arrow::error::ArrowError| {
                Error::internal(format!("the ledger names the type `{text}`")).caused_by(error)
            })?;
            Ok((name.clone(), data_type))
        })
        .collect()
}

/// Removes what one run left in a folder, except `committed`.
///
/// # Errors
/// Storage, when a file cannot be removed.
pub async fn discard(folder: &Folder, run_id: &str, committed: &BTreeSet<&str>) -> Result<()> {
    let files = publish::list(folder).await?.into_iter();
    let mine = files.filter(|path| path.contains(run_id) && !committed.contains(path.as_str()));
    publish::remove(folder, mine.collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_does_not_change_a_pipeline_and_code_does() {
        let plain = fingerprint("SELECT a\nFROM latest");
        assert_eq!(
            plain,
            fingerprint("-- a remark\nSELECT a   FROM latest -- another\n")
        );
        assert_ne!(plain, fingerprint("SELECT b FROM latest"));
    }

    fn input(path: &str) -> Input {
        Input {
            location: 0,
            path: path.into(),
            size: 1,
            modified: DateTime::UNIX_EPOCH,
            e_tag: None,
            full_load: false,
            late: false,
        }
    }

    fn window(start: u32, end: u32) -> Window {
        let day = |day| {
            NaiveDate::from_ymd_opt(2020, 1, day)
                .expect("a day")
                .and_time(Default::default())
                .and_utc()
        };
        Window {
            start: day(start),
            end: day(end),
        }
    }

    fn ledger(window: &Window, inputs: &[&str]) -> Ledger {
        let curate = Curate {
            identity: Identity {
                curated: String::new(),
                key: vec![],
                keep: String::new(),
                order_by: vec![],
                commit_time: String::new(),
                event_time: String::new(),
                time_zone: String::new(),
                partition_by: vec![],
                curated_sql: String::new(),
            },
            columns: vec![],
            keys: vec![],
            partitions: vec![],
            packed: true,
            days: vec![],
        };
        let run = Run {
            run_id: "r".into(),
            command: "curate".into(),
            start: window.start,
            end: window.end,
            tables: vec![],
            curate: Some(curate),
        };
        let inputs = inputs
            .iter()
            .map(|path| ((0, path.to_string()), FoldedInput::from(&input(path))))
            .collect();
        Ledger {
            runs: vec![run],
            inputs,
            tables: BTreeMap::new(),
        }
    }

    #[test]
    fn a_run_that_misses_a_folded_input_is_told_the_window_that_covers_it() {
        let ledger = ledger(&window(1, 2), &["a", "b"]);
        let error = ledger
            .check_complete(&[input("b"), input("c")], &window(2, 3), false)
            .expect_err("refused");
        assert_eq!(error.kind.exit_code(), 65);
        assert!(error.to_string().starts_with("a was folded"), "{error}");
        let hint = error.hint.expect("a hint");
        assert!(
            hint.ends_with("--start-date 2020-01-01T00:00:00Z --end-date 2020-01-03T00:00:00Z"),
            "{hint}"
        );
        let gone = ledger
            .check_complete(&[input("b")], &window(1, 3), false)
            .expect_err("refused");
        assert!(gone.hint.expect("a hint").contains("put it back"));
        assert!(
            ledger
                .check_complete(&[input("a"), input("b"), input("c")], &window(2, 3), false)
                .is_ok()
        );
    }

    #[test]
    fn a_window_of_rows_must_hold_the_earlier_ones() {
        let ledger = ledger(&window(1, 3), &["a"]);
        assert!(
            ledger
                .check_complete(&[input("a")], &window(2, 3), true)
                .is_err()
        );
        assert!(
            ledger
                .check_complete(&[input("a")], &window(1, 4), true)
                .is_ok()
        );
    }
}
