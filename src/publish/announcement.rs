//! Announcements: a marker file, written before the commit, that an attempt will publish.

use object_store::{ObjectStoreExt, PutPayload};

use crate::error::{Error, Result};
use crate::store::{Folder, parse_path};

/// Writes an attempt's announcement.
///
/// # Errors
/// Storage, when the marker cannot be written.
pub(crate) async fn announce(announced: &Folder, attempt: &str) -> Result<()> {
    let path = parse_path(attempt)?;
    match announced.store.put(&path, PutPayload::new()).await {
        Ok(_) => announced.sync(&[attempt.to_string()]),
        Err(error) => Err(Error::store(format!("write {}", announced.describe(attempt)), error)),
    }
}
