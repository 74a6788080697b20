//! Carrying out a plan for a table of plain Parquet files: staged files are moved to their places,
//! and what is no longer used is removed.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::layout::{OWNER_MARKER, attempt_commit, base_name, is_leftover, part_file_commit};
use crate::store::Folder;
use crate::store::listing::{list, list_and_prune};
use crate::store::remove::remove;
use crate::table::TableFile;

/// How many files are moved or removed at once.
const MOVES: usize = 16;

/// A larger file is swapped in alone.
const LARGE_BYTES: u64 = 16 << 20;

/// How often a swap is tried again that met another process's.
const SWAPS: usize = 20;

/// Publishes a commit's new files, and removes those that the table has no longer: `files` are all
/// that it has. `found` is what the folder held before, as [`list_and_prune`] tells it.
///
/// # Errors
/// Storage, when a file cannot be moved or removed. It is safe to publish again.
pub async fn publish(
    table: &Folder,
    staging: &Folder,
    added: &[&TableFile],
    files: &[&TableFile],
    commit: u64,
    found: Vec<String>,
) -> Result<()> {
    move_staged(table, staging, added).await?;
    let known: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    sweep(table, found, |path| known.contains(path), commit).await
}

/// Moves files from staging to their places; those already there stay.
///
/// # Errors
/// Storage, when a file cannot be moved.
pub async fn move_staged(table: &Folder, staging: &Folder, files: &[&TableFile]) -> Result<()> {
    // Files that are swapped in go through memory: large ones one at a time.
    let (large, small): (Vec<&TableFile>, Vec<&TableFile>) =
        files.iter().partition(|file| file.bytes > LARGE_BYTES);
    for (files, at_once) in [(small, MOVES), (large, 1)] {
        let moves = files.into_iter().map(|file| async move {
            let Some(from) = &file.staged else {
                return Ok(());
            };
            let to = table.root_path(&file.path)?;
            let moved = move_one(table, staging.root_path(from)?, to, file.bytes).await;
            moved.map_err(|error| {
                let (from, to) = (staging.describe(from), table.describe(&file.path));
                Error::store(format!("move {from} to {to}"), error)
            })
        });
        stream::iter(moves)
            .buffer_unordered(at_once)
            .try_collect::<()>()
            .await?;
    }
    let moved: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    table.sync(&moved)
}

/// Moves a file of so many bytes.
async fn move_one(table: &Folder, from: Path, to: Path, bytes: u64) -> object_store::Result<()> {
    let store = &table.root_store;
    let mut tries = 0;
    loop {
        // A local rename is one step by itself.
        let replaced = match table.location.file_path() {
            Some(_) => None,
            None => match store.head(&to).await {
                Err(object_store::Error::NotFound { .. }) => None,
                found => Some(found?),
            },
        };
        let moved = match replaced {
            None => store.rename(&from, &to).await,
            Some(replaced) => swap(table, &from, &to, replaced).await,
        };
        match moved {
            // It was moved before an interruption, or by another process.
            Err(object_store::Error::NotFound { .. })
                if store.head(&to).await.is_ok_and(|there| there.size == bytes) =>
            {
                return Ok(());
            }
            Err(object_store::Error::Precondition { .. }) if tries < SWAPS => tries += 1,
            moved => return moved,
        }
    }
}

/// Replaces an object by a staged one, if it still is what it was.
async fn swap(
    table: &Folder,
    from: &Path,
    to: &Path,
    replaced: ObjectMeta,
) -> object_store::Result<()> {
    let store = &table.root_store;
    let staged = store.get(from).await?.bytes().await?;
    let condition = PutMode::Update(UpdateVersion {
        e_tag: replaced.e_tag,
        version: replaced.version,
    });
    store
        .put_opts(to, PutPayload::from(staged), condition.into())
        .await?;
    match store.delete(from).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        deleted => deleted,
    }
}

/// Of what a folder held before a commit was published, removes files of ours that are not used,
/// nor made by a later commit than this one, and what a crashed writer left. Files that are not
/// ours are reported and left alone.
///
/// # Errors
/// Storage, when a file cannot be removed.
pub async fn sweep(
    table: &Folder,
    found: Vec<String>,
    is_used: impl Fn(&str) -> bool,
    commit: u64,
) -> Result<()> {
    let is_stray = |path: &String| {
        let name = base_name(path);
        if is_used(path) || name == OWNER_MARKER {
            return false;
        }
        let whole = name.split('#').next().unwrap_or_default();
        if whole == OWNER_MARKER && is_leftover(name) {
            return true;
        }
        let made_by = part_file_commit(whole).filter(|_| whole == name || is_leftover(name));
        let shown = table.describe(path);
        match made_by {
            Some(of) if of <= commit => debug!("removing the leftover {name}"),
            Some(_) => {}
            None => warn!("not a file of this pipeline, left alone: {shown}"),
        }
        made_by.is_some_and(|of| of <= commit)
    };
    remove(table, found.into_iter().filter(is_stray).collect()).await
}

/// Removes what attempts at commits up to this one left: none of them can land any more, and
/// what landed was published.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file not be removed.
pub async fn clear(staging: &Folder, commit: u64) -> Result<()> {
    let left = list_and_prune(staging).await?.into_iter();
    let is_dead = |path: &String| attempt_commit(path).is_some_and(|of| of <= commit);
    remove(staging, left.filter(is_dead).collect()).await?;
    if let Some(root) = staging.location.file_path() {
        // The folder and those it may be alone in, `_glueless/<name>/staging`.
        for folder in root.ancestors().take(4) {
            // Fails, as it should, at the first that holds something.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Removes what one attempt left in a folder.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file not be removed.
pub async fn discard(folder: &Folder, attempt: &str) -> Result<()> {
    let left = list(folder).await?.into_iter();
    remove(
        folder,
        left.filter(|path| path.starts_with(attempt)).collect(),
    )
    .await
}
