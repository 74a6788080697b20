//! The keys whose changes were accepted after a commit, and which of them have no row.
//!
//! Versions say which commit accepted them, so that files of versions that were written after the
//! commit are enough to know the keys that changed: a file that was rewritten has its old versions too,
//! with their commits. A Bloom filter over these keys selects rows of the table. It lets a few rows of
//! other keys pass, which are rows of the table too, and do no harm to who applies them.
//!
//! Whether a key has no row must be known exactly. Under `latest-per-day` the version of the key and day
//! says it. Under `latest` the last of all versions of the key does, whatever their days: those of
//! keys with an accepted change that leaves no row are looked up in all files. Where deleted rows are kept, it is the
//! last version of an insert or update.
//!
//! Floors need no look-up, as there is none that is later than the commit: a change that is before a
//! floor takes no row away, since the floor had ended whatever row the key had before it.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;
use futures::stream::BoxStream;

use crate::changes::BEFORE_ALL;
use crate::config::Keep;
use crate::curate::merge::bloom::Bloom;
use crate::curate::merge::entries::{Entries, Files, column, hash};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns, of_keys};
use crate::curate::merge::version_reader::{VersionReader, open_versions};
use crate::engine::session::BATCH_ROWS;
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::layout::{FileOrder, attempt_commit, base_name};
use crate::parquet_io::open::conform;
use crate::state::versions::{COMMIT, VersionsLayout};
use crate::store::Folder;
use crate::table::sorter::{Readers, Sorted, Sorter};
use crate::types::key::{canonical, canonical_column};

/// The committed versions, and from which commit on their changes are wanted.
#[derive(Clone)]
pub(crate) struct VersionsSince {
    /// The folder of the state's Delta table.
    pub folder: Folder,
    /// The layout of versions.
    pub layout: Arc<VersionsLayout>,
    /// The files of versions: paths in the folder, sizes, and numbers of rows.
    pub files: Vec<(String, u64, u64)>,
    /// The order of raw files.
    pub order: FileOrder,
    /// Which rows the table has.
    pub keep: Keep,
    /// The types of the key columns in the table.
    pub key_types: Vec<DataType>,
    /// The commit after which changes are wanted: the last that has found a floor, or a later one.
    pub since: u64,
}

/// The keys whose changes were accepted.
pub(crate) struct ChangedKeys {
    versions: VersionsSince,
    /// The keys, as the table has them.
    changed: Bloom,
    /// The keys with an accepted change that leaves no row, as versions have them.
    deleted: Arc<Bloom>,
    has_deleted: bool,
    _memory: MemoryReservation,
}

impl VersionsSince {
    /// The files that have changes accepted after the commit.
    fn new_files(&self) -> impl Iterator<Item = &(String, u64, u64)> {
        let is_new =
            |path: &str| attempt_commit(base_name(path)).is_none_or(|commit| commit > self.since);
        self.files.iter().filter(move |(path, ..)| is_new(path))
    }

    /// The number of the pipeline's key columns.
    fn keys(&self) -> usize {
        self.layout.key_count()
    }

    /// The columns that are read: the key, then day, whether the change leaves no row, and commit.
    fn read_schema(&self) -> SchemaRef {
        let schema = self.layout.schema();
        let keys = &schema.fields()[..self.keys()];
        let others = [
            Field::new("event_dt", DataType::Date32, true),
            Field::new("deleted", DataType::Boolean, true),
            Field::new(COMMIT, DataType::Int64, true),
        ];
        let fields = keys.iter().map(|field| field.as_ref().clone()).chain(others);
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The changes of a file that were accepted after the commit, in the columns of
    /// [`VersionsSince::read_schema`].
    async fn changes(
        &self,
        path: &str,
        bytes: u64,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let (file, _) = open_versions(&self.folder, &self.layout, path, bytes).await?;
        let schema = self.read_schema();
        let fields = schema.fields().iter();
        let mut columns: Vec<usize> =
            fields.filter_map(|field| file.schema().index_of(field.name()).ok()).collect();
        columns.sort_unstable();
        let since = self.since as i64;
        let changes = file.read(&columns, BATCH_ROWS).and_then(move |read| {
            let changes = conform(&read, &schema).and_then(|versions| {
                let commits = column(&versions, COMMIT)?.as_primitive::<Int64Type>();
                // Where the commit is unknown, any may have accepted it.
                let is_new = commits.iter().map(|commit| Some(commit.is_none_or(|it| it > since)));
                Ok(filter_record_batch(&versions, &is_new.collect::<BooleanArray>())?)
            });
            std::future::ready(changes)
        });
        Ok(Box::pin(changes))
    }

    /// Keys of versions as the table has them.
    fn in_table(&self, keys: &RecordBatch) -> Result<RecordBatch> {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for (at, data_type) in self.key_types.iter().enumerate() {
            columns.push(cast(keys.column(at), data_type)?);
            fields.push(Field::new(&self.layout.keys[at].0, data_type.clone(), true));
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Keys of versions as the table has them, and their days.
    fn keys_and_days(&self, versions: &RecordBatch) -> Result<RecordBatch> {
        let keys = self.in_table(versions)?;
        let mut fields = keys.schema().fields().to_vec();
        fields.push(Arc::new(Field::new("event_dt", DataType::Date32, true)));
        let mut columns = keys.columns().to_vec();
        columns.push(Arc::clone(column(versions, "event_dt")?));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// A hash per row of keys as the table has them.
    fn table_hashes(&self, keys: &RecordBatch) -> Result<Vec<u64>> {
        let keys = self.key_types.iter().zip(keys.columns()).zip(&self.layout.keys);
        let canonical = keys
            .map(|((kind, values), (name, _))| canonical_column(values, name, &canonical(kind)));
        hash(&canonical.collect::<Result<Vec<_>>>()?)
    }
}

impl ChangedKeys {
    /// Reads the versions that were written since the commit; `None` if there is too little memory for
    /// their keys.
    ///
    /// # Errors
    /// Data, when versions are missing or damaged; storage, when they cannot be read.
    pub(crate) async fn read(
        versions: VersionsSince,
        runtime: &Arc<RuntimeEnv>,
        threads: usize,
    ) -> Result<Option<Self>> {
        let most = versions.new_files().map(|(.., rows)| rows).sum();
        let memory = MemoryConsumer::new("keys that changed").register(&runtime.memory_pool);
        if memory.try_grow(2 * Bloom::bytes_for(most)).is_err() {
            return Ok(None);
        }
        let (changed, deleted) = (Bloom::new(most), Bloom::new(most));
        let files: Vec<(String, u64)> =
            versions.new_files().map(|(path, bytes, _)| (path.clone(), *bytes)).collect();
        let shared = Arc::new((versions, changed, deleted, Work::new(files)));
        let tasks = (0..threads).map(|_| {
            let shared = Arc::clone(&shared);
            spawn(async move {
                let (versions, changed, deleted, files) = &*shared;
                let read = async {
                    let mut has_deleted = false;
                    while let Some((path, bytes)) = files.next() {
                        let mut changes = versions.changes(&path, bytes).await?;
                        while let Some(batch) = changes.try_next().await? {
                            let hashes = versions.table_hashes(&versions.in_table(&batch)?)?;
                            hashes.into_iter().for_each(|hash| changed.insert(hash));
                            let hashes = hash(&batch.columns()[..versions.keys()])?;
                            let is_deleted = column(&batch, "deleted")?.as_boolean();
                            for (hash, is_deleted) in hashes.into_iter().zip(is_deleted.values()) {
                                if is_deleted {
                                    deleted.insert(hash);
                                    has_deleted = true;
                                }
                            }
                        }
                    }
                    Ok(has_deleted)
                };
                files.run(read).await
            })
        });
        let has_deleted = join_all(tasks).await?.contains(&true);
        let (versions, changed, deleted, _) = Arc::into_inner(shared)
            .ok_or_else(|| Error::internal("the versions were not read to their end"))?;
        let deleted = Arc::new(deleted);
        Ok(Some(ChangedKeys { versions, changed, deleted, has_deleted, _memory: memory }))
    }

    /// Which rows of the table may have keys that changed, by their key columns.
    ///
    /// # Errors
    /// Data, when a key does not fit its canonical type.
    pub(crate) fn select(&self, keys: &RecordBatch) -> Result<BooleanArray> {
        let hashes = self.versions.table_hashes(keys)?;
        Ok(hashes.into_iter().map(|hash| Some(self.changed.may_contain(hash))).collect())
    }

    /// Passes the keys that have no row to `take`, as the table has them; under `latest-per-day` with
    /// the day, as the last column. Besides those that changed, these can be some that had none before.
    ///
    /// # Errors
    /// As [`ChangedKeys::read`]; those of `take`.
    pub(crate) async fn without_row(
        &self,
        runtime: &Arc<RuntimeEnv>,
        threads: usize,
        mut take: impl AsyncFnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if !self.has_deleted {
            return Ok(());
        }
        match self.versions.keep {
            Keep::LatestPerDay => self.days_without_row(&mut take).await,
            Keep::Latest | Keep::LatestAndDeleted | Keep::LatestAltered | Keep::History => {
                self.keys_without_row(runtime, threads, &mut take).await
            }
        }
    }

    async fn days_without_row(
        &self,
        take: &mut impl AsyncFnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        for (path, bytes, _) in self.versions.new_files() {
            let mut changes = self.versions.changes(path, *bytes).await?;
            while let Some(batch) = changes.try_next().await? {
                let is_deleted = column(&batch, "deleted")?.as_boolean();
                let deleted = filter_record_batch(&batch, is_deleted)?;
                if deleted.num_rows() == 0 {
                    continue;
                }
                take(self.versions.keys_and_days(&deleted)?).await?;
            }
        }
        Ok(())
    }

    async fn keys_without_row(
        &self,
        runtime: &Arc<RuntimeEnv>,
        threads: usize,
        take: &mut impl AsyncFnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let versions = &self.versions;
        let rows = versions.files.iter().map(|(.., rows)| rows).sum();
        let entries = Arc::new(Entries::new(&versions.layout, rows)?);
        let files = Arc::new(Files::of_earlier(versions.order));
        let all = versions.files.iter().map(|(path, bytes, _)| (path.clone(), *bytes));
        let queue = Arc::new(Work::new(all.collect()));
        let tasks = (0..threads).map(|_| {
            let (queue, entries, files) =
                (Arc::clone(&queue), Arc::clone(&entries), Arc::clone(&files));
            let (state, bloom) = (versions.folder.clone(), Arc::clone(&self.deleted));
            let mut sorter = Sorter::new(Arc::clone(&entries.order), Arc::clone(runtime));
            spawn(async move {
                let read = async {
                    let reader = VersionReader {
                        entries: &entries,
                        files: &files,
                        bloom: &bloom,
                        state: &state,
                    };
                    while let Some((path, bytes)) = queue.next() {
                        reader.look_up(&path, bytes, &mut sorter).await?;
                    }
                    Ok(sorter)
                };
                queue.run(read).await
            })
        });
        let sorted = Sorted::new(&entries.order, join_all(tasks).await?)?;
        let (ranked, mut readers) = (files.ranked(), Readers::new());
        for part in sorted.partitions() {
            let rows = entries.sorted_part(&sorted, &part, &mut readers)?;
            let columns = EntryColumns::of(&rows, &ranked)?;
            let mut without: Vec<u32> = Vec::new();
            // Where deleted rows are kept, a key has the row of its last insert or update.
            let instants = (versions.keep == Keep::LatestAndDeleted)
                .then(|| rows.column(versions.keys()).as_primitive::<Int64Type>());
            let counts =
                |at: &usize| instants.is_none_or(|instants| instants.value(*at) == BEFORE_ALL);
            for of_key in of_keys(&rows, versions.keys())? {
                let first = of_key.start as u32;
                let last = of_key.filter(counts);
                let last = last.fold(None, |last, at| columns.orders.later(last, at));
                if !last.is_some_and(|at| columns.entry(at).has_row) {
                    without.push(first);
                }
            }
            let chosen = UInt32Array::from(without);
            for first in (0..chosen.len()).step_by(BATCH_ROWS) {
                let chosen = chosen.slice(first, BATCH_ROWS.min(chosen.len() - first));
                let chosen = take_record_batch(&rows, &chosen)?;
                take(versions.in_table(&chosen)?).await?;
            }
        }
        Ok(())
    }
}
