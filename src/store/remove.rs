//! Removing objects, and folders that become empty.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use tracing::debug;

use crate::error::{Error, Result};
use crate::layout::{base_name, is_leftover, parent};
use crate::store::{Folder, parse_path};

/// The number of objects removed concurrently.
const CONCURRENT_REMOVALS: usize = 16;

/// Removes objects of a folder, and folders that become empty. Missing objects are no error.
///
/// # Errors
/// Storage, when an object cannot be removed.
pub async fn remove(folder: &Folder, paths: Vec<String>) -> Result<()> {
    let removals = paths.iter().map(|path| async move {
        // The local store hides leftovers of a crash from deletes as well.
        let hidden = folder.location.file_path();
        if let Some(root) = hidden.filter(|_| is_leftover(base_name(path))) {
            let removed = std::fs::remove_file(root.join(path));
            return removed.or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(Error::storage(format!("cannot remove {}", folder.describe(path)))
                    .caused_by(error)),
            });
        }
        match folder.store.delete(&parse_path(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::store(format!("remove {}", folder.describe(path)), error)),
        }
    });
    stream::iter(removals).buffer_unordered(CONCURRENT_REMOVALS).try_collect::<()>().await?;
    if let Some(root) = folder.location.file_path() {
        for path in &paths {
            let mut emptied = root.join(parent(path));
            // Removing fails, as intended, at the first folder that is not empty.
            while emptied != root
                && emptied.starts_with(&root)
                && std::fs::remove_dir(&emptied).is_ok()
            {
                debug!("removed an empty folder");
                emptied.pop();
            }
        }
    }
    Ok(())
}
