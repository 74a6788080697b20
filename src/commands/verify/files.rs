//! Compares the files in a table's folder with those that were published.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;

use super::other_table::open;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result};
use crate::layout::is_hidden;
use crate::store::Folder;
use crate::store::listing::sizes;
use crate::table::TableFile;
use crate::table::files::PartitionFile;

/// The files of a published table, and how they differ from those in its folder.
pub(super) struct Files<'a> {
    folder: &'a Folder,
    published: Vec<&'a TableFile>,
    /// The sizes of the files in the folder, without damaged ones.
    sizes_found: BTreeMap<String, u64>,
    /// Published files that are missing.
    pub(super) missing: Vec<String>,
    /// Published files that cannot be read.
    pub(super) damaged: Vec<String>,
    /// Files that were not published, but that readers of the folder would read.
    pub(super) unknown: Vec<String>,
}

impl<'a> Files<'a> {
    /// Lists the files of a table. Unpublished files count as unknown if `is_compared` accepts
    /// their path.
    pub(super) async fn find(
        folder: &'a Folder,
        published: impl Iterator<Item = &'a TableFile>,
        is_compared: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let published: Vec<&TableFile> = published.collect();
        let sizes_found = sizes(folder).await?;
        let vectors = published.iter().filter_map(|file| Some(&file.deleted.as_ref()?.path));
        let paths = published.iter().map(|file| &file.path);
        let known: BTreeSet<&String> = paths.chain(vectors).collect();
        let missing = known
            .iter()
            .filter(|path| !sizes_found.contains_key(**path))
            .map(|path| path.to_string())
            .collect();
        let unknown = sizes_found
            .keys()
            .filter(|path| !is_hidden(path) && !known.contains(path) && is_compared(path))
            .cloned()
            .collect();
        let mut files =
            Files { folder, published, sizes_found, missing, damaged: Vec::new(), unknown };
        // A file of another size may be another valid file, or truncated.
        for file in files.published.clone() {
            let size = files.sizes_found.get(&file.path);
            let has_other_size = size.is_some_and(|bytes| *bytes != file.bytes);
            if has_other_size && open(folder, &file.path).await.is_err() {
                files.exclude(&file.path);
            }
        }
        Ok(files)
    }

    fn exclude(&mut self, path: &str) {
        self.sizes_found.remove(path);
        self.damaged.push(path.into());
    }

    /// The published files that can be read.
    pub(super) fn readable(&self) -> impl Iterator<Item = PartitionFile<'_>> {
        let files = self.published.iter();
        files.filter_map(|file| {
            let bytes = *self.sizes_found.get(&file.path)?;
            let vectors = file.deleted.as_ref().map(|vector| &vector.path);
            let is_readable = vectors.is_none_or(|path| self.sizes_found.contains_key(path));
            is_readable.then(|| PartitionFile { bytes, ..PartitionFile::of(file) })
        })
    }

    /// Excludes the files whose rows cannot be read; returns whether there are any.
    pub(super) async fn exclude_damaged(&mut self) -> Result<bool> {
        let mut damaged = Vec::new();
        for file in self.readable() {
            if self.is_damaged(file.path).await? {
                damaged.push(file.path.to_string());
            }
            if let Some((rows, vector)) = file.deleted
                && let Err(Error { kind: Kind::Data, .. }) = vector.read_in(self.folder, rows).await
            {
                damaged.push(vector.path.clone());
            }
        }
        damaged.sort();
        damaged.dedup();
        damaged.iter().for_each(|path| self.exclude(path));
        Ok(!damaged.is_empty())
    }

    async fn is_damaged(&self, path: &str) -> Result<bool> {
        let read = async {
            let (_, file) = open(self.folder, path).await?;
            let columns: Vec<usize> = (0..file.schema().fields().len() - 1).collect();
            let mut rows = file.read(&columns, BATCH_ROWS);
            while rows.try_next().await?.is_some() {}
            Ok(())
        };
        match read.await {
            Ok(()) => Ok(false),
            Err(Error { kind: Kind::Data, .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
