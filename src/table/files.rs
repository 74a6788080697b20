//! A relation over a list of Parquet files that glueless wrote: versions, ledger or a published
//! table.
//!
//! The list comes from a commit, never from a listing of a folder. The values of partition columns,
//! which are not stored in the files, are given per file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, Result as DataFusionResult, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetRowSelection;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::arrow_reader::RowSelection;

use crate::error::{Error, Result};
use crate::layout::{parent, partition_values};
use crate::store::Folder;
use crate::table::TableFile;
use crate::table::deletion_vector::DeletionVector;

/// One file of a [`FileTable`].
#[derive(Clone, Debug)]
pub struct ListedFile {
    /// Its path below the store's root.
    pub path: Path,
    /// Its size in bytes.
    pub bytes: u64,
    /// The values of the partition columns.
    pub partition: Vec<ScalarValue>,
    /// The rows that are deleted from it, if there are any.
    pub deleted: Option<DeletedRows>,
}

/// The deleted rows of a listed file.
#[derive(Clone, Debug)]
pub struct DeletedRows {
    /// The number of rows of the file.
    pub rows: u64,
    /// The deletion vector.
    pub vector: DeletionVector,
    /// The path of the file of vectors below the store's root.
    pub path: Path,
    /// Its name for messages.
    pub name: String,
}

/// A relation over Parquet files.
#[derive(Debug)]
pub struct FileTable {
    store: ObjectStoreUrl,
    files: Vec<ListedFile>,
    schema: TableSchema,
}

impl FileTable {
    /// A relation over files in a folder's store. `stored` are the columns in the files,
    /// `partitions` those given per file; they come last.
    ///
    /// # Errors
    /// Internal, when the store has no URL.
    pub fn new(
        folder: &Folder,
        files: Vec<ListedFile>,
        stored: SchemaRef,
        partitions: Vec<arrow::datatypes::FieldRef>,
    ) -> Result<Self> {
        let url = folder.location.url();
        let root = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
        let store = ObjectStoreUrl::parse(&root)
            .map_err(|error| Error::internal(format!("cannot use {root}")).caused_by(error))?;
        Ok(FileTable {
            store,
            files,
            schema: TableSchema::builder(stored).with_table_partition_cols(partitions).build(),
        })
    }
}

/// Makes the store of a folder known to a session that reads files in it.
pub(crate) fn register_store(context: &SessionContext, folder: &Folder) {
    let mut root = folder.location.url().clone();
    root.set_path("");
    context.register_object_store(&root, Arc::clone(&folder.root_store));
}

/// One file of a partition.
#[derive(Clone, Copy, Debug)]
pub struct PartitionFile<'a> {
    /// Its path relative to the table's folder.
    pub path: &'a str,
    /// The partition, as a relative folder.
    pub partition: &'a str,
    /// Its size in bytes.
    pub bytes: u64,
    /// The number of its rows and its deletion vector, if it has one.
    pub deleted: Option<(u64, &'a DeletionVector)>,
}

impl<'a> PartitionFile<'a> {
    /// A file in its partition's folder, without deleted rows.
    pub fn new(path: &'a str, bytes: u64) -> Self {
        PartitionFile { path, partition: parent(path), bytes, deleted: None }
    }

    /// A published file.
    pub fn of(file: &'a TableFile) -> Self {
        let deleted = file.deleted.as_ref().map(|vector| (file.rows, vector));
        PartitionFile { deleted, ..PartitionFile::new(&file.path, file.bytes) }
    }
}

impl FileTable {
    /// A relation over files of partitions whose columns are in the names of their folders. The
    /// stored columns come first, as listed, then those of the partitions.
    ///
    /// # Errors
    /// Internal, when a partition column is not in `columns`, or a value in a folder name does not
    /// fit the column's type.
    pub fn of_partitions<'a>(
        folder: &Folder,
        files: impl Iterator<Item = PartitionFile<'a>>,
        columns: &[(String, DataType)],
        partition_by: &[String],
    ) -> Result<Self> {
        let field = |(name, kind): &(String, DataType)| Field::new(name, kind.clone(), true);
        let stored: Vec<Field> =
            columns.iter().filter(|(name, _)| !partition_by.contains(name)).map(field).collect();
        let mut partitions = Vec::new();
        for part in partition_by {
            let column = columns
                .iter()
                .find(|(name, _)| name == part)
                .ok_or_else(|| Error::internal(format!("`{part}` is not in the ledger")))?;
            partitions.push(Arc::new(field(column)));
        }
        let files = files
            .map(|file| {
                let values: BTreeMap<String, Option<String>> =
                    partition_values(file.partition).collect();
                let partition = partitions.iter().map(|field| match values.get(field.name()) {
                    Some(Some(text)) => {
                        Ok(ScalarValue::try_from_string(text.clone(), field.data_type())?)
                    }
                    _ => Ok(ScalarValue::try_from(field.data_type())?),
                });
                let deleted = file.deleted.map(|(rows, vector)| {
                    let path = folder.root_path(&vector.path)?;
                    let name = folder.describe(&vector.path);
                    Ok::<_, Error>(DeletedRows { rows, vector: vector.clone(), path, name })
                });
                Ok(ListedFile {
                    path: folder.root_path(file.path)?,
                    bytes: file.bytes,
                    partition: partition.collect::<Result<Vec<_>>>()?,
                    deleted: deleted.transpose()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        FileTable::new(folder, files, Arc::new(Schema::new(stored)), partitions)
    }
}

impl FileTable {
    /// The files whose partition values pass the filters, as far as these are of partition columns alone.
    fn pruned(&self, state: &dyn Session, filters: &[Expr]) -> DataFusionResult<Vec<&ListedFile>> {
        let fields = self.schema.table_partition_cols();
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let is_of_partitions = |filter: &&Expr| {
            let columns = filter.column_refs();
            !columns.is_empty()
                && columns.iter().all(|column| schema.index_of(&column.name).is_ok())
        };
        let filter = conjunction(filters.iter().filter(is_of_partitions).cloned());
        let Some(filter) = filter.filter(|_| !self.files.is_empty()) else {
            return Ok(self.files.iter().collect());
        };
        let columns = (0..fields.len()).map(|at| {
            ScalarValue::iter_to_array(self.files.iter().map(|file| file.partition[at].clone()))
        });
        let columns = columns.collect::<DataFusionResult<Vec<_>>>()?;
        let values = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let filter = state.create_physical_expr(filter, &DFSchema::try_from(schema)?)?;
        // A part of a query's filter may fail for rows that another part excludes.
        let passes = filter.evaluate(&values).and_then(|found| found.into_array(self.files.len()));
        let Some(passes) = passes.ok().and_then(|passes| passes.as_boolean_opt().cloned()) else {
            return Ok(self.files.iter().collect());
        };
        let files = self.files.iter().zip(passes.iter());
        Ok(files.filter(|(_, passes)| *passes == Some(true)).map(|(file, _)| file).collect())
    }
}

/// How many deletion vectors are read at once.
const CONCURRENT_READS: usize = 16;

/// The rows of a file that are not deleted; `None` if all are.
async fn live_rows(
    store: Arc<dyn ObjectStore>,
    deleted: Option<DeletedRows>,
) -> DataFusionResult<Option<RowSelection>> {
    let Some(DeletedRows { rows, vector, path, name }) = deleted else {
        return Ok(None);
    };
    let deleted = vector.read(store.as_ref(), &path, &name, rows).await;
    let deleted = deleted.map_err(|error| DataFusionError::External(Box::new(error)))?;
    Ok(Some(RowSelection::from_boolean_buffer(!&deleted)))
}

#[async_trait]
impl TableProvider for FileTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.schema.table_schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Files and row groups are pruned by their statistics; a filter above the scan filters the
    /// rows.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let parts = state.config().target_partitions().max(1);
        let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); parts];
        let store = state.runtime_env().object_store(&self.store)?;
        let files = self.pruned(state, filters)?;
        let deleted: Vec<Option<DeletedRows>> =
            files.iter().map(|file| file.deleted.clone()).collect();
        let live = deleted.into_iter().map(|deleted| live_rows(Arc::clone(&store), deleted));
        let mut live = stream::iter(live).buffered(CONCURRENT_READS);
        for file in files {
            let live = live.try_next().await?.flatten();
            let meta = ObjectMeta {
                location: file.path.clone(),
                last_modified: chrono::DateTime::UNIX_EPOCH,
                size: file.bytes,
                e_tag: None,
                version: None,
            };
            let mut listed =
                PartitionedFile::new_from_meta(meta).with_partition_values(file.partition.clone());
            if let Some(live) = live {
                listed = listed.with_extension(ParquetRowSelection::new(live));
            }
            if let Some(least) = groups.iter_mut().min_by_key(|group| group.0) {
                least.0 += file.bytes;
                least.1.push(listed);
            }
        }
        let groups: Vec<FileGroup> = groups
            .into_iter()
            .filter(|(_, files)| !files.is_empty())
            .map(|(_, files)| FileGroup::new(files))
            .collect();
        let mut source = ParquetSource::new(self.schema.clone());
        if let Some(filter) = conjunction(filters.to_vec()) {
            let schema = DFSchema::try_from(self.schema())?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let source = Arc::new(source);
        let config = FileScanConfigBuilder::new(self.store.clone(), source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
