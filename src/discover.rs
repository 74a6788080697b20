//! Discovery: a window and the ledger decide which raw files a run reads.
//!
//! The listing is narrowed by date folders where the window is about dates in names or folders
//! (one day wider on each side, because a folder's date and a name's can differ by a zone or a
//! flush); then every file is judged exactly. The result is sorted in the order of files, which
//! is part of the order of changes: base name, then path.

use chrono::{DateTime, Duration, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tracing::{debug, warn};

use crate::config::{Raw, WindowBy};
use crate::error::{Error, Result};
use crate::layout;
use crate::store::Folder;
use crate::window::Window;

/// How many folders are listed at once.
const LISTINGS: usize = 16;

/// One raw file that a run reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// Which of the pipeline's raw URLs it lies under.
    pub location: usize,
    /// Its path relative to that URL.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: DateTime<Utc>,
    /// The store's tag of its content, if it has one.
    pub e_tag: Option<String>,
    /// Whether it is a full load: before every change of a CDC file.
    pub full_load: bool,
    /// Whether it lies before the window, and was not there when its own window was run.
    pub late: bool,
}

impl Input {
    /// What tells two files apart in the order of changes, and names one in the ledger.
    pub fn order(&self) -> (&str, &str, usize) {
        (layout::base_name(&self.path), &self.path, self.location)
    }
}

/// What earlier runs did, as far as discovery needs it.
pub trait Recorded {
    /// Whether an input was folded by an earlier run.
    fn is_folded(&self, location: usize, path: &str) -> bool;
    /// Whether an earlier run's window holds this span.
    fn was_run(&self, span: &Window) -> bool;
}

/// Lists the inputs of a window: those in it, late ones, and every full load.
///
/// # Errors
/// Usage, when a raw location does not exist; data, when a file has no time of the kind that
/// `window_by` asks for; storage, when a listing fails.
pub async fn discover(
    folders: &[Folder],
    raw: &Raw,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for (location, folder) in folders.iter().enumerate() {
        let mut others = 0;
        for object in list(folder, raw, window).await? {
            let path = relative(&folder.prefix, &object.location);
            let base_name = layout::base_name(&path);
            if path.split('/').any(|part| part.starts_with(['_', '.'])) {
                continue;
            }
            if !base_name.to_ascii_lowercase().ends_with(".parquet") {
                others += 1;
                debug!("not a Parquet file: {}", folder.describe(&path));
                continue;
            }
            let full_load = raw.full_load.matches(base_name);
            let choice = if full_load {
                Some(false)
            } else {
                choose(folder, raw, window, recorded, location, &path, &object)?
            };
            if let Some(late) = choice {
                inputs.push(Input {
                    location,
                    size: object.size,
                    modified: object.last_modified,
                    e_tag: object.e_tag,
                    full_load,
                    late,
                    path,
                });
            }
        }
        if others > 0 {
            warn!(
                "{others} files under {} are not named *.parquet and were left alone",
                folder.location
            );
        }
    }
    inputs.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(inputs)
}

/// Whether a CDC file is read, and if so whether it is late.
fn choose(
    folder: &Folder,
    raw: &Raw,
    window: &Window,
    recorded: &dyn Recorded,
    location: usize,
    path: &str,
    object: &ObjectMeta,
) -> Result<Option<bool>> {
    let no_time = |what: &str, hint: &str| {
        Error::data(format!("{} has no {what}", folder.describe(path))).hint(hint)
    };
    let instant = |at: DateTime<Utc>| Window {
        start: at,
        end: at + Duration::nanoseconds(1),
    };
    let span = match raw.window_by {
        WindowBy::Commit => return Ok(Some(false)),
        WindowBy::Modified => instant(object.last_modified),
        WindowBy::Name => layout::cdc_file_time(layout::base_name(path), raw.time_zone)
            .map(instant)
            .ok_or_else(|| {
                no_time(
                    "time in its name (yyyyMMdd-HHmmssSSS)",
                    "set `raw.full_load` if it is a full load, or another `raw.window_by`",
                )
            })?,
        WindowBy::Path => {
            layout::folder_span(layout::parent(path), raw.time_zone).ok_or_else(|| {
                no_time(
                    "date in its folders",
                    "set `raw.full_load` if it is a full load, or another `raw.window_by`",
                )
            })?
        }
    };
    if window.overlaps(&span) {
        return Ok(Some(false));
    }
    let looked_back = Window {
        start: earlier(window.start, raw.lookback),
        end: window.start,
    };
    let is_late = looked_back.start < looked_back.end
        && looked_back.overlaps(&span)
        && recorded.was_run(&span)
        && !recorded.is_folded(location, path);
    Ok(is_late.then_some(true))
}

fn earlier(instant: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    instant
        .checked_sub_signed(by)
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Every object that may belong to the window.
async fn list(folder: &Folder, raw: &Raw, window: &Window) -> Result<Vec<ObjectMeta>> {
    let failed = |error| Error::store(format!("list {}", folder.location), error);
    let missing = || {
        Error::usage(format!(
            "the raw location {} is not an existing folder",
            folder.location
        ))
        .hint("check `raw.url`")
    };
    if folder
        .location
        .file_path()
        .is_some_and(|path| !path.is_dir())
    {
        return Err(missing());
    }
    let store = &folder.root_store;
    if matches!(raw.window_by, WindowBy::Modified | WindowBy::Commit) {
        // An object written in the window, or a row of it, can lie in a folder of any date.
        return match store.list(Some(&folder.prefix)).try_collect().await {
            Err(object_store::Error::NotFound { .. }) => Err(missing()),
            listed => listed.map_err(failed),
        };
    }
    let wanted = Window {
        start: earlier(window.start, raw.lookback),
        end: window.end,
    }
    .widened_by(Duration::days(1));
    let mut found = Vec::new();
    let mut level = vec![folder.prefix.clone()];
    while !level.is_empty() {
        let listings: Vec<_> = stream::iter(level.into_iter().map(|prefix| {
            let relative = relative(&folder.prefix, &prefix);
            let decided = layout::folder_may_hold(&relative, raw.time_zone);
            async move {
                match decided {
                    Some(span) if wanted.covers(&span) => {
                        let objects = store.list(Some(&prefix)).try_collect().await?;
                        Ok(object_store::ListResult {
                            common_prefixes: Vec::new(),
                            objects,
                        })
                    }
                    _ => store.list_with_delimiter(Some(&prefix)).await,
                }
            }
        }))
        .buffered(LISTINGS)
        .collect()
        .await;
        level = Vec::new();
        for listing in listings {
            let listing = match listing {
                Err(object_store::Error::NotFound { .. }) if found.is_empty() => {
                    return Err(missing());
                }
                listing => listing.map_err(failed)?,
            };
            found.extend(listing.objects);
            level.extend(listing.common_prefixes.into_iter().filter(|prefix| {
                let relative = relative(&folder.prefix, prefix);
                layout::folder_may_hold(&relative, raw.time_zone)
                    .is_none_or(|span| wanted.overlaps(&span))
            }));
        }
    }
    Ok(found)
}

/// A store path relative to a prefix of it.
fn relative(prefix: &Path, path: &Path) -> String {
    let rest = path
        .as_ref()
        .strip_prefix(prefix.as_ref())
        .unwrap_or(path.as_ref());
    rest.trim_start_matches('/').to_string()
}
