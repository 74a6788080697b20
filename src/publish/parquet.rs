//! Carries out a plan for a table of plain Parquet files: moves staged files into the table and
//! removes files that are no longer used.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::layout::{OWNER_MARKER, attempt_commit, base_name, is_leftover, own_file_commit};
use crate::store::Folder;
use crate::store::listing::{list, list_and_prune};
use crate::store::remove::remove;
use crate::table::{Staged, TableFile};

/// How many files are moved concurrently.
const CONCURRENT_MOVES: usize = 16;

/// Larger files are moved one at a time.
const LARGE_BYTES: u64 = 16 << 20;

/// How often replacing a file is retried after another process replaced it.
const SWAP_RETRIES_MAX: usize = 20;

/// Publishes a commit's new files, and removes files that the table no longer has: `files` are all
/// of its files. `found` is the listing of the folder before ([`list_and_prune`]).
///
/// # Errors
/// Storage, when a file cannot be moved or removed. It is safe to publish again.
pub(crate) async fn publish(
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

/// Moves files from staging into the table; those already moved stay.
///
/// # Errors
/// Storage, when a file cannot be moved.
pub(crate) async fn move_staged(
    table: &Folder,
    staging: &Folder,
    files: &[&TableFile],
) -> Result<()> {
    // Many files share a file of deletion vectors.
    let files: BTreeSet<Staged<'_>> = files.iter().flat_map(|file| file.to_move()).collect();
    // A file that replaces another on S3 is read into memory: large ones one at a time.
    let (large, small): (Vec<Staged<'_>>, Vec<Staged<'_>>) =
        files.iter().partition(|file| file.bytes > LARGE_BYTES);
    for (files, concurrency) in [(small, CONCURRENT_MOVES), (large, 1)] {
        let moves = files.into_iter().map(|file| async move {
            let (from, to) = (staging.root_path(file.from)?, table.root_path(file.path)?);
            move_one(table, from, to, file.bytes).await.map_err(|error| {
                let (from, to) = (staging.describe(file.from), table.describe(file.path));
                Error::store(format!("move {from} to {to}"), error)
            })
        });
        stream::iter(moves).buffer_unordered(concurrency).try_collect::<()>().await?;
    }
    let moved: Vec<String> = files.iter().map(|file| file.path.to_string()).collect();
    table.sync(&moved)
}

/// Moves one file. `bytes` is its size, by which a file that was moved before is recognized.
async fn move_one(table: &Folder, from: Path, to: Path, bytes: u64) -> object_store::Result<()> {
    let store = &table.root_store;
    let mut retries = 0;
    loop {
        // A local rename is atomic.
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
            Err(object_store::Error::Precondition { .. }) if retries < SWAP_RETRIES_MAX => {
                retries += 1
            }
            moved => return moved,
        }
    }
}

/// Replaces an object by a staged one, unless it has changed since `replaced` was read.
async fn swap(
    table: &Folder,
    from: &Path,
    to: &Path,
    replaced: ObjectMeta,
) -> object_store::Result<()> {
    let store = &table.root_store;
    let staged = store.get(from).await?.bytes().await?;
    let condition =
        PutMode::Update(UpdateVersion { e_tag: replaced.e_tag, version: replaced.version });
    store.put_opts(to, PutPayload::from(staged), condition.into()).await?;
    match store.delete(from).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        deleted => deleted,
    }
}

/// From the listing of a folder before a commit was published, removes files of this pipeline that
/// are not used and not made by a later commit, and leftovers of a crashed writer. Other files are
/// logged and not removed.
///
/// # Errors
/// Storage, when a file cannot be removed.
pub(crate) async fn sweep(
    table: &Folder,
    found: Vec<String>,
    is_used: impl Fn(&str) -> bool,
    commit: u64,
) -> Result<()> {
    let is_unused = |path: &String| {
        let name = base_name(path);
        if is_used(path) || name == OWNER_MARKER {
            return false;
        }
        let whole = name.split('#').next().unwrap_or_default();
        if whole == OWNER_MARKER && is_leftover(name) {
            return true;
        }
        let made_by = own_file_commit(whole).filter(|_| whole == name || is_leftover(name));
        let shown = table.describe(path);
        match made_by {
            Some(of) if of <= commit => debug!("removing the leftover {name}"),
            Some(_) => {}
            None => warn!("not a file of this pipeline, not removed: {shown}"),
        }
        made_by.is_some_and(|of| of <= commit)
    };
    remove(table, found.into_iter().filter(is_unused).collect()).await
}

/// Removes the staged files of all attempts at commits up to this one: none of them can commit any
/// more, and those that did were published.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file cannot be removed.
pub(crate) async fn clear(staging: &Folder, commit: u64) -> Result<()> {
    let left = list_and_prune(staging).await?.into_iter();
    let is_dead = |path: &String| attempt_commit(path).is_some_and(|of| of <= commit);
    remove(staging, left.filter(is_dead).collect()).await?;
    if let Some(root) = staging.location.file_path() {
        // Removes the empty folders of `_glueless/<name>/staging` too.
        for folder in root.ancestors().take(4) {
            // Fails, as intended, at the first folder that is not empty.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Removes the files of one attempt from a folder.
///
/// # Errors
/// Storage, when the folder cannot be listed or a file cannot be removed.
pub(crate) async fn discard(folder: &Folder, attempt: &str) -> Result<()> {
    let left = list(folder).await?.into_iter();
    remove(folder, left.filter(|path| path.starts_with(attempt)).collect()).await
}
