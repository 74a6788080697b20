//! Opens another table to compare with: a Delta table, or a folder of Parquet files.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{OpenPipeline, Side, Verified, aligned};
use crate::error::{Error, Result};
use crate::layout::{base_name, is_hidden, parent, partition_values};
use crate::parquet_io::open::ParquetFile;
use crate::store::listing::list;
use crate::store::{Folder, Location, parse_path};
use crate::table::delta_log::{DeltaLog, LOG_FOLDER};
use crate::table::files::{FileTable, PartitionFile, register_store};
use crate::types::column_type::widen;

/// The number of files of another table that are opened at once.
const OPEN_FILES_MAX: usize = 16;

/// Opens the table at `url`, with the columns of the published table.
pub(super) async fn other_table(
    open: &OpenPipeline<'_>,
    context: &SessionContext,
    url: &str,
    columns: &[(String, DataType)],
    verified: &mut Verified,
) -> Result<Side> {
    let location = Location::parse(url, Path::new("."))?;
    let folder = open.run_context.stores.open(&location)?;
    let unusable = |why: String| {
        Error::usage(format!("cannot compare with {location}: {why}"))
            .hint("--against takes a Delta table, or a folder of Parquet files")
    };
    if location.file_path().is_some_and(|path| !path.is_dir()) {
        return Err(unusable("it is not a folder".into()));
    }
    let paths = list(&folder).await?;
    let rows = if paths.iter().any(|path| path.starts_with(LOG_FOLDER)) {
        let log = DeltaLog::new(folder.clone());
        let rows = log.rows(context).await;
        rows.map_err(|error| unusable(error.to_string()))?
    } else {
        let table = parquet_table(&folder, paths, columns).await?.map_err(unusable)?;
        register_store(context, &folder);
        context.read_table(Arc::new(table))?
    };
    let fields = rows.schema().fields().iter();
    let is_known = |name: &&String| {
        let mut columns = columns.iter();
        columns.any(|(known, _)| known.eq_ignore_ascii_case(name))
    };
    let more: Vec<&String> =
        fields.map(|field| field.name()).filter(|name| !is_known(name)).collect();
    if !more.is_empty() {
        let more: Vec<&str> = more.iter().map(|name| name.as_str()).collect();
        verified.notes.push(format!(
            "columns only in the other table, not compared: `{}`",
            more.join("`, `")
        ));
    }
    aligned(rows, columns)
}

/// A folder of Parquet files as a table, in its own types; or why it cannot be read as one.
async fn parquet_table(
    folder: &Folder,
    paths: Vec<String>,
    columns: &[(String, DataType)],
) -> Result<Result<FileTable, String>> {
    let is_data = |path: &String| !is_hidden(path) && base_name(path).ends_with(".parquet");
    let mut paths: Vec<String> = paths.into_iter().filter(is_data).collect();
    paths.sort();
    let Some(first) = paths.first() else {
        return Ok(Err("there are no Parquet files".into()));
    };
    let parts = |path: &str| -> Vec<String> {
        let named = partition_values(parent(path)).map(|(name, _)| name);
        let is_known = |part: &String| columns.iter().any(|(name, _)| name == part);
        named.filter(is_known).collect()
    };
    let partition_by = parts(first);
    if let Some(other) = paths.iter().find(|path| parts(path) != partition_by) {
        return Ok(Err(format!("{first} and {other} have different partition columns")));
    }
    let mut found: Vec<(String, DataType)> = Vec::new();
    let mut sizes = Vec::new();
    let opening = paths.iter().map(|path| open(folder, path));
    let mut opened = stream::iter(opening).buffered(OPEN_FILES_MAX);
    while let Some((bytes, file)) = opened.try_next().await? {
        sizes.push(bytes);
        let fields = file.schema().fields();
        for field in &fields[..fields.len() - 1] {
            let kind = field.data_type();
            match found.iter_mut().find(|(name, _)| name == field.name()) {
                None => found.push((field.name().clone(), kind.clone())),
                Some((_, known)) if known == kind => {}
                Some((name, known)) => match widen(known, kind) {
                    Some(wider) => *known = wider,
                    None => return Ok(Err(format!("its column `{name}` is {known} and {kind}"))),
                },
            }
        }
    }
    drop(opened);
    found.retain(|(name, _)| !partition_by.contains(name));
    // Partition values are text here; the comparison casts them.
    found.extend(partition_by.iter().map(|name| (name.clone(), DataType::Utf8)));
    let files = paths.iter().zip(&sizes).map(|(path, bytes)| PartitionFile::new(path, *bytes));
    FileTable::of_partitions(folder, files, &found, &partition_by).map(Ok)
}

pub(super) async fn open(folder: &Folder, path: &str) -> Result<(u64, ParquetFile)> {
    let failed = |error| Error::store(format!("read {}", folder.describe(path)), error);
    let store_path = parse_path(path)?;
    let bytes =
        object_store::ObjectStoreExt::head(&folder.store, &store_path).await.map_err(failed)?.size;
    let store = Arc::clone(&folder.store);
    let file = ParquetFile::open(store, store_path, bytes, folder.describe(path)).await?;
    Ok((bytes, file))
}
