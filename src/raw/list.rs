//! Lists raw folders.
//!
//! Where windows select files by the dates in names or folders, a listing is pruned by date folders:
//! those of the window and its look-back, one day wider on each side, because the dates of a folder
//! and of a name can differ by a time zone or a flush.
//!
//! A folder with very many files is not listed as a whole ([`flat`]).

use std::collections::{BTreeSet, HashSet};

use chrono::Duration;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore};

use crate::config::{Raw, WindowBy};
use crate::error::{Error, Result};
use crate::layout;
use crate::raw::input::Recorded;
use crate::raw::list::flat::FlatFolder;
use crate::store::Folder;
use crate::window::Window;

mod flat;

/// The number of folders listed concurrently.
const CONCURRENT_LISTINGS: usize = 16;

/// The number of files of a folder from which it is listed in ranges of names: so many come in one
/// reply of S3.
const FLAT_FILES_MIN: usize = 1_000;

fn missing_folder(folder: &Folder) -> Error {
    Error::usage(format!("the raw location {} is not an existing folder", folder.location))
        .hint("check `raw.url`")
}

/// Checks that a local raw location is a folder; a missing remote one is an error of the listing.
fn check_exists(folder: &Folder) -> Result<()> {
    match folder.location.file_path() {
        Some(path) if !path.is_dir() => Err(missing_folder(folder)),
        _ => Ok(()),
    }
}

/// Lists every object of a raw location.
///
/// # Errors
/// Usage, when it does not exist; storage, when the listing fails.
pub(super) async fn list_all(folder: &Folder) -> Result<Vec<ObjectMeta>> {
    check_exists(folder)?;
    let listed = folder.root_store.list(Some(&folder.prefix)).try_collect();
    match listed.await {
        Err(object_store::Error::NotFound { .. }) => Err(missing_folder(folder)),
        listed => listed.map_err(|error| Error::store(format!("list {}", folder.location), error)),
    }
}

/// Lists every object that may belong to the window, and those of the `known` paths that are in
/// other date folders.
///
/// # Errors
/// As [`list_all`].
pub(super) async fn list(
    (location, folder): (usize, &Folder),
    raw: &Raw,
    window: &Window,
    known: &[&str],
    recorded: &dyn Recorded,
) -> Result<Vec<ObjectMeta>> {
    if matches!(raw.window_by, WindowBy::Modified | WindowBy::Commit) {
        // An object or row of the window can be in a folder of any date.
        return list_all(folder).await;
    }
    let failed = |error| Error::store(format!("list {}", folder.location), error);
    check_exists(folder)?;
    let store = &folder.root_store;
    let files = window.with_lookback(raw.lookback);
    let wanted = files.widened_by(Duration::days(1));
    let is_listed = |folder: &str| {
        layout::folder_may_hold(folder, raw.time_zone).is_none_or(|span| wanted.overlaps(&span))
    };
    let flat = flat_folders(raw, location, recorded);
    let mut found = Vec::new();
    let mut level = vec![folder.prefix.clone()];
    while !level.is_empty() {
        let listings: Vec<_> = stream::iter(level.into_iter().map(|prefix| {
            let relative = relative(&folder.prefix, &prefix);
            let decided = layout::folder_may_hold(&relative, raw.time_zone);
            let is_flat = flat.contains(&relative);
            async move {
                if decided.is_some_and(|span| wanted.covers(&span)) {
                    let objects = store.list(Some(&prefix)).try_collect().await?;
                    return Ok(ListResult { common_prefixes: Vec::new(), objects });
                }
                if is_flat {
                    let (prefix, zone) = (&prefix, raw.time_zone);
                    let flat = FlatFolder { folder, prefix, zone, page: FLAT_FILES_MIN };
                    if let Some(listing) = flat.list(&files).await? {
                        return Ok(listing);
                    }
                }
                store.list_with_delimiter(Some(&prefix)).await
            }
        }))
        .buffered(CONCURRENT_LISTINGS)
        .collect()
        .await;
        level = Vec::new();
        for listing in listings {
            let listing = match listing {
                Err(object_store::Error::NotFound { .. }) if found.is_empty() => {
                    return Err(missing_folder(folder));
                }
                listing => listing.map_err(failed)?,
            };
            check_path_columns(folder, raw, listing.common_prefixes.iter())?;
            check_path_columns(folder, raw, listing.objects.iter().map(|object| &object.location))?;
            found.extend(listing.objects);
            level.extend(listing.common_prefixes.into_iter().filter(|prefix| {
                let relative = relative(&folder.prefix, prefix);
                is_listed(&relative)
            }));
        }
    }
    let folders: BTreeSet<&str> = known.iter().map(|path| layout::parent(path)).collect();
    let outside: BTreeSet<&str> = folders.into_iter().filter(|folder| !is_listed(folder)).collect();
    let outside = known.iter().filter(|path| outside.contains(layout::parent(path)));
    found.extend(list_known(folder, outside.copied().collect()).await?);
    Ok(found)
}

/// Refuses folders of `raw.path_columns` whose values would be taken for dates, as `tenant=200012`: files would be selected by them.
fn check_path_columns<'a>(
    folder: &Folder,
    raw: &Raw,
    mut paths: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    if raw.constants.is_empty() {
        return Ok(());
    }
    let is_date = |name: &str| {
        let Some((column, value)) = name.split_once('=') else { return false };
        raw.constants.is_of_path(column)
            && value.bytes().all(|byte| byte.is_ascii_digit())
            && layout::folder_may_hold(name, raw.time_zone).is_some()
    };
    let found = paths.find_map(|path| {
        relative(&folder.prefix, path).split('/').find(|name| is_date(name)).map(String::from)
    });
    let Some(found) = found else { return Ok(()) };
    Err(Error::usage(format!(
        "the value of the folder {found} of {} looks like a date: windows would select its files by it",
        folder.location
    ))
    .hint("set raw.window_by to \"modified\" or \"commit\""))
}

/// The folders, relative to the location, that are listed in ranges of names: windows select files by
/// the times in their names, earlier runs have folded very many of its files, and no full load has
/// such a name.
fn flat_folders(raw: &Raw, location: usize, recorded: &dyn Recorded) -> BTreeSet<String> {
    if raw.window_by != WindowBy::Name || !raw.full_loads_have_other_names() {
        return BTreeSet::new();
    }
    let many =
        recorded.folders(location).into_iter().filter(|(_, count)| *count >= FLAT_FILES_MIN as u64);
    many.map(|(folder, _)| folder.to_string()).collect()
}

/// Lists those of some paths that exist. There is one request per folder of them.
async fn list_known(folder: &Folder, paths: HashSet<&str>) -> Result<Vec<ObjectMeta>> {
    let parents: BTreeSet<&str> = paths.iter().map(|path| layout::parent(path)).collect();
    let listings = stream::iter(parents.into_iter().map(async |parent| {
        let prefix = folder.root_path(parent)?;
        match folder.root_store.list_with_delimiter(Some(&prefix)).await {
            Ok(listing) => Ok(listing.objects),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(Error::store(format!("list {}", folder.describe(parent)), error)),
        }
    }));
    let listed: Vec<Vec<ObjectMeta>> = listings.buffered(CONCURRENT_LISTINGS).try_collect().await?;
    let is_known =
        |object: &ObjectMeta| paths.contains(relative(&folder.prefix, &object.location).as_str());
    Ok(listed.into_iter().flatten().filter(is_known).collect())
}

/// A store path relative to a prefix of it.
pub(super) fn relative(prefix: &Path, path: &Path) -> String {
    let rest = path.as_ref().strip_prefix(prefix.as_ref()).unwrap_or(path.as_ref());
    rest.trim_start_matches('/').to_string()
}
