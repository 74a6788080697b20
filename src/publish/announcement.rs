//! Announcements: an attempt says, before its commit, that it is going to publish.

use object_store::{ObjectStoreExt, PutPayload};

use crate::error::{Error, Result};
use crate::store::{Folder, parse_path};

/// Says, before its commit, that an attempt is going to publish.
///
/// # Errors
/// Storage, when that cannot be written.
pub async fn announce(announced: &Folder, attempt: &str) -> Result<()> {
    let path = parse_path(attempt)?;
    match announced.store.put(&path, PutPayload::new()).await {
        Ok(_) => announced.sync(&[attempt.to_string()]),
        Err(error) => Err(Error::store(
            format!("write {}", announced.describe(attempt)),
            error,
        )),
    }
}
