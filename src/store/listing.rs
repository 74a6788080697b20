//! Listing a folder, including leftovers of a crash.

use std::collections::BTreeMap;

use futures::TryStreamExt;

use crate::error::{Error, Result};
use crate::store::Folder;

/// Lists every object of a folder, relative to it and sorted, including crash leftovers of the
/// local store.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn list(folder: &Folder) -> Result<Vec<String>> {
    list_in(folder, false).await
}

/// Lists the objects of a folder, relative to it, with their sizes.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn sizes(folder: &Folder) -> Result<BTreeMap<String, u64>> {
    let objects = folder.store.list(None);
    objects
        .map_ok(|object| (object.location.to_string(), object.size))
        .try_collect()
        .await
        .map_err(|error| Error::store(format!("list {}", folder.location), error))
}

/// As [`list`], and removes empty folders.
///
/// # Errors
/// Storage, when the listing fails.
pub async fn list_and_prune(folder: &Folder) -> Result<Vec<String>> {
    list_in(folder, true).await
}

async fn list_in(folder: &Folder, prunes: bool) -> Result<Vec<String>> {
    // The local store hides leftovers named `name#1`, so a local folder is walked directly.
    if let Some(root) = folder.location.file_path() {
        let mut found = Vec::new();
        walk(&root, "", &mut found, prunes).map_err(|error| {
            Error::storage(format!("cannot list {}", folder.location)).caused_by(error)
        })?;
        found.sort();
        return Ok(found);
    }
    let mut found: Vec<String> = folder
        .store
        .list(None)
        .map_ok(|object| object.location.to_string())
        .try_collect()
        .await
        .map_err(|error| Error::store(format!("list {}", folder.location), error))?;
    found.sort();
    Ok(found)
}

fn walk(
    folder: &std::path::Path,
    prefix: &str,
    found: &mut Vec<String>,
    prunes: bool,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if !entry.file_type()?.is_dir() {
            found.push(name);
            continue;
        }
        let before = found.len();
        walk(&entry.path(), &format!("{name}/"), found, prunes)?;
        if prunes && found.len() == before {
            // Fails, as intended, if another process has added something to it.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    Ok(())
}
