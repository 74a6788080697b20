//! The files of a published table, as they are found.

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

/// The files of a table, next to those that were published.
pub(super) struct Files<'a> {
    folder: &'a Folder,
    published: Vec<&'a TableFile>,
    /// The objects that can be read, and their sizes.
    there: BTreeMap<String, u64>,
    /// Published files that are not there.
    pub(super) missing: Vec<String>,
    /// Published files that cannot be read.
    pub(super) damaged: Vec<String>,
    /// Files that readers would take for published ones.
    pub(super) unknown: Vec<String>,
}

impl<'a> Files<'a> {
    /// Looks for the files of a table. Those that nobody published count where `is_asked` says so of
    /// their path.
    pub(super) async fn find(
        folder: &'a Folder,
        published: impl Iterator<Item = &'a TableFile>,
        is_asked: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let published: Vec<&TableFile> = published.collect();
        let there = sizes(folder).await?;
        let known: BTreeSet<&String> = published.iter().map(|file| &file.path).collect();
        let missing = known.iter().filter(|path| !there.contains_key(**path));
        let missing = missing.map(|path| path.to_string()).collect();
        let unknown = there.keys().filter(|path| !is_hidden(path));
        let unknown = unknown.filter(|path| !known.contains(path) && is_asked(path));
        let unknown = unknown.cloned().collect();
        let mut files = Files {
            folder,
            published,
            there,
            missing,
            damaged: Vec::new(),
            unknown,
        };
        // One of another size may be another file, or a part of it.
        for file in files.published.clone() {
            let size = files.there.get(&file.path);
            let is_other = size.is_some_and(|bytes| *bytes != file.bytes);
            if is_other && open(folder, &file.path).await.is_err() {
                files.leave_out(&file.path);
            }
        }
        Ok(files)
    }

    fn leave_out(&mut self, path: &str) {
        self.there.remove(path);
        self.damaged.push(path.into());
    }

    /// The published files that can be read.
    pub(super) fn readable(&self) -> impl Iterator<Item = PartitionFile<'_>> {
        let files = self.published.iter();
        files.filter_map(|file| Some(PartitionFile::new(&file.path, *self.there.get(&file.path)?)))
    }

    /// Leaves out the files whose rows cannot be read; returns whether there are any.
    pub(super) async fn leave_out_damaged(&mut self) -> Result<bool> {
        let mut damaged = Vec::new();
        for file in self.readable() {
            if self.is_damaged(file.path).await? {
                damaged.push(file.path.to_string());
            }
        }
        damaged.iter().for_each(|path| self.leave_out(path));
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
            Err(Error {
                kind: Kind::Data, ..
            }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
