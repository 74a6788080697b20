//! Owners: a marker file in a folder names the pipeline and the table that it belongs to.

use bytes::Bytes;
use object_store::{PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::{OWNER_MARKER, base_name, is_probe};
use crate::store::listing::list;
use crate::store::{Folder, parse_path};

/// The owner of a folder: the only table that may be written to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The pipeline's name.
    pub pipeline: String,
    /// `curated`, `state` or the aggregate's name.
    pub table: String,
    /// The pipeline's state folder.
    pub state: String,
}

impl Owner {
    /// Checks that a folder is this owner's or empty; changes nothing. Returns whether the folder
    /// has the marker already.
    ///
    /// # Errors
    /// Usage, when the folder is another owner's, or holds files and has no owner.
    pub(crate) async fn check(&self, folder: &Folder, setting: &str) -> Result<bool> {
        if self.check_marker(folder, setting).await? {
            return Ok(true);
        }
        // Another run may be writing the marker.
        let files = list(folder).await?.into_iter();
        let is_marker = |path: &String| path.split('#').next() == Some(OWNER_MARKER);
        let mut foreign_files = files.filter(|path| !is_marker(path) && !is_probe(base_name(path)));
        if self.check_marker(folder, setting).await? {
            return Ok(true);
        }
        match foreign_files.next() {
            None => Ok(false),
            Some(path) => Err(Error::usage(format!(
                "{} holds files that no run of this pipeline wrote, such as {path}",
                folder.location
            ))
            .hint(format!("set `{setting}` to an empty folder, or move the files elsewhere"))),
        }
    }

    /// Checks that a folder's marker, if it has one, is this owner's. Returns whether it has one.
    ///
    /// # Errors
    /// Usage, when the folder is another owner's.
    pub(crate) async fn check_marker(&self, folder: &Folder, setting: &str) -> Result<bool> {
        match folder.read(OWNER_MARKER).await? {
            Some(marker) => self.compare(folder, setting, &marker).map(|()| true),
            None => Ok(false),
        }
    }

    /// Marks a folder as this owner's.
    ///
    /// # Errors
    /// Usage, when another owner was faster; storage, when the marker cannot be written.
    pub(crate) async fn claim(&self, folder: &Folder, setting: &str) -> Result<()> {
        let marker =
            Bytes::from(serde_json::to_vec(self).map_err(|error| {
                Error::internal("cannot write an owner marker").caused_by(error)
            })?);
        let path = parse_path(OWNER_MARKER)?;
        match folder.store.put_opts(&path, PutPayload::from(marker), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                self.check(folder, setting).await.map(|_| ())
            }
            Err(error) => {
                Err(Error::store(format!("write {}", folder.describe(OWNER_MARKER)), error))
            }
        }
    }

    fn compare(&self, folder: &Folder, setting: &str, marker: &[u8]) -> Result<()> {
        let found: Owner = serde_json::from_slice(marker).map_err(|error| {
            Error::usage(format!("{} is not an owner marker", folder.describe(OWNER_MARKER)))
                .caused_by(error)
        })?;
        if found == *self {
            return Ok(());
        }
        let text = if found.pipeline == self.pipeline && found.table == self.table {
            format!(
                "{} belongs to a pipeline of the same name whose state is {}",
                folder.location, found.state
            )
        } else {
            format!(
                "{} belongs to `{}` of the pipeline `{}`",
                folder.location, found.table, found.pipeline
            )
        };
        Err(Error::usage(text).hint(format!("give each its own `{setting}`")))
    }
}
