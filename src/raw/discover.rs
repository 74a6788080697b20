//! Discovery: selects the raw files that a run reads, by its window and the ledger.
//!
//! Where windows select files by the dates in names or folders, the listing is pruned by date
//! folders (one day wider on each side, because the dates of a folder and of a name can differ by a
//! time zone or a flush); then every file is checked exactly. The result is sorted in the order of
//! files, which is part of the order of changes: base name, then path.

use std::collections::HashSet;

use chrono::{DateTime, Duration, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::config::{Pipeline, Raw, RawFormat, WindowBy};
use crate::error::{Error, Result};
use crate::layout;
use crate::store::Folder;
use crate::window::Window;

/// The number of folders listed concurrently.
const CONCURRENT_LISTINGS: usize = 16;

/// A raw file, as listed and as recorded in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFile {
    /// The index of the pipeline's raw URL that it is under.
    pub location: usize,
    /// Its path relative to that URL.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: DateTime<Utc>,
    /// Its ETag, if the store has one.
    pub e_tag: Option<String>,
    /// The number of the commit that folded it; 0 if none has.
    #[serde(default, skip_serializing_if = "is_none")]
    pub commit: u64,
    /// The windows that selected its rows in that commit; `None` for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<Window>>,
    /// Whether it was missing when a run last looked, so that later runs have read none of its
    /// rows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_absent: bool,
}

fn is_none(commit: &u64) -> bool {
    *commit == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// One raw file that a run reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// The file.
    pub file: RawFile,
    /// Whether it is a full load, whose rows come before every change of a CDC file.
    pub full_load: bool,
    /// Whether it is before the window and was missing when its own window was run.
    pub late: bool,
    /// The windows that select its rows by their commit time; `None` for all rows.
    pub rows: Option<Vec<Window>>,
    /// The numbers of the rows to fold, from 0 and ascending; `None` for all rows.
    pub only: Option<Vec<u64>>,
}

impl RawFile {
    fn new(location: usize, folder: &Folder, object: ObjectMeta) -> Self {
        RawFile {
            location,
            path: relative(&folder.prefix, &object.location),
            size: object.size,
            modified: object.last_modified,
            e_tag: object.e_tag,
            commit: 0,
            rows: None,
            is_absent: false,
        }
    }

    /// Whether a file is still the one that was folded: compared by size and ETag; in a local
    /// folder, where the ETag changes with a copy, by size and modified time.
    pub(crate) fn is_same(&self, found: &RawFile, is_local: bool) -> bool {
        let same_content = match (&self.e_tag, &found.e_tag) {
            (Some(folded), Some(found)) if !is_local => folded == found,
            _ => self.modified == found.modified,
        };
        self.size == found.size && same_content
    }
}

/// The spans of a window in which inputs, or rows of inputs, were never folded; `None` for an input
/// that can have rows of any window. A full load counts at the window's start, because the first
/// run folds it.
///
/// # Errors
/// As [`discover`].
pub(crate) async fn new_spans(
    folders: &[Folder],
    pipeline: &Pipeline,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Option<Window>>> {
    let raw = &pipeline.raw;
    let mut spans = Vec::new();
    for input in discover(folders, pipeline, window, recorded).await? {
        let (location, path) = (input.file.location, &input.file.path);
        let is_local = folders[location].location.file_path().is_some();
        let quarantined = recorded.quarantined(location, path);
        let is_same_quarantined =
            quarantined.is_some_and(|before| before.is_same(&input.file, is_local));
        if recorded.folded(location, path).is_some() {
            let read = recorded.rows_read(location, path);
            let unread = read.map(|read| window.without(&read));
            spans.extend(unread.into_iter().flatten().map(Some));
        } else if input.full_load {
            spans.push(Some(Window {
                start: window.start,
                end: window.start + Duration::nanoseconds(1),
            }));
        } else if !is_same_quarantined {
            spans.push(span(raw, &input.file));
        }
    }
    Ok(spans)
}

/// Sorts inputs in the order of files.
fn sort(inputs: &mut [Input]) {
    fn order(input: &Input) -> (&str, &str, usize) {
        layout::file_order(input.file.location, &input.file.path)
    }
    inputs.sort_by(|a, b| order(a).cmp(&order(b)));
}

/// The folded files that are not among the inputs found.
pub(crate) fn missing_files<'a>(
    folded: impl Iterator<Item = &'a RawFile>,
    found: &[Input],
) -> impl Iterator<Item = &'a RawFile> {
    let found: HashSet<(usize, &str)> =
        found.iter().map(|input| (input.file.location, input.file.path.as_str())).collect();
    folded.filter(move |file| !found.contains(&(file.location, file.path.as_str())))
}

/// The record of earlier runs, as discovery needs it.
pub(crate) trait Recorded {
    /// The input of this path, if an earlier run folded it.
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// All folded inputs.
    fn inputs(&self) -> Vec<&RawFile>;
    /// The input of this path, if an earlier run quarantined it as a whole.
    fn quarantined(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// Whether an input or any of its rows is quarantined.
    fn is_quarantined(&self, location: usize, path: &str) -> bool;
    /// The windows of earlier runs.
    fn windows(&self) -> Vec<Window>;
    /// The windows whose rows of an input were folded; `None` if all rows were.
    fn rows_read(&self, location: usize, path: &str) -> Option<Vec<Window>>;
}

/// Lists the inputs of a window: those in it, late ones, and every full load not yet folded. Inputs
/// of a table without a key are folded only once as well.
///
/// # Errors
/// Usage, when a raw location does not exist or has files of another format; data, when an input
/// has changed since it was folded, or when a file lacks the time that `window_by` selects by;
/// storage, when a listing fails.
pub(crate) async fn discover(
    folders: &[Folder],
    pipeline: &Pipeline,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Input>> {
    let raw = &pipeline.raw;
    let mut inputs = Vec::new();
    let runs = recorded.windows();
    for (location, folder) in folders.iter().enumerate() {
        let is_local = folder.location.file_path().is_some();
        let listed = list(folder, raw, window).await?.into_iter();
        let files = raw_files(location, folder, raw, listed)?;
        let is_of_location = |file: &&RawFile| file.location == location;
        if files.is_empty() && !recorded.inputs().iter().any(is_of_location) {
            check_formats(folder, raw).await?;
        }
        for file in files {
            let path = &file.path;
            let full_load = raw.is_full_load(location, path);
            let folded = recorded.folded(location, path);
            let quarantined = recorded.quarantined(location, path);
            // No row of a file quarantined as a whole was folded: the file may have been replaced.
            let is_known = folded.is_some()
                || quarantined.is_some_and(|before| before.is_same(&file, is_local));
            let choice = if full_load {
                Some(false)
            } else {
                late_if_selected(folder, raw, window, &runs, &file, is_known)?
            };
            if folded.is_some_and(|folded| !folded.is_same(&file, is_local)) {
                return Err(changed(folder, path));
            }
            let is_once = full_load || pipeline.key.is_empty();
            let choice = choice.filter(|_| !is_once || folded.is_none());
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = by_rows.then(|| {
                if recorded.is_quarantined(location, path) {
                    // Read all rows again: fold those that are readable now, find those still bad.
                    return runs.iter().chain([window]).copied().collect();
                }
                let read = match folded {
                    Some(_) => recorded.rows_read(location, path),
                    None => Some(Vec::new()),
                };
                row_windows(raw, window, &runs, read.as_deref())
            });
            if let Some(late) = choice {
                inputs.push(Input { file, full_load, late, rows, only: None });
            }
        }
    }
    sort(&mut inputs);
    Ok(inputs)
}

/// The raw files among the objects of a location.
fn raw_files(
    location: usize,
    folder: &Folder,
    raw: &Raw,
    objects: impl Iterator<Item = ObjectMeta>,
) -> Result<Vec<RawFile>> {
    let (mut ignored, mut example) = (0, String::new());
    let mut files = Vec::new();
    for object in objects {
        let file = RawFile::new(location, folder, object);
        let path = &file.path;
        if layout::is_hidden(path) {
            continue;
        }
        match RawFormat::of(path) {
            Some(format) if format == raw.format => files.push(file),
            Some(format) if format != RawFormat::Json => {
                return Err(other_format(folder, path, format, raw.format));
            }
            // Files in JSON are often not changes but about them, such as manifests.
            _ => {
                ignored += 1;
                debug!("not a {} file: {}", raw.format.name(), folder.describe(path));
                example.clone_from(path);
            }
        }
    }
    if ignored > 0 {
        let formats = match raw.format {
            RawFormat::Json => "Parquet, CSV or JSON",
            _ => "Parquet or CSV",
        };
        warn!(
            "{ignored} files under {}, such as {example}, are not named as {formats} files and were \
             ignored",
            folder.location
        );
    }
    Ok(files)
}

/// Checks that a location has files of the pipeline's format, or no files at all.
async fn check_formats(folder: &Folder, raw: &Raw) -> Result<()> {
    let mut objects = folder.root_store.list(Some(&folder.prefix));
    let first = |known: Option<String>, path: String| match known {
        // Listings are not sorted.
        Some(known) => Some(known.min(path)),
        None => Some(path),
    };
    let (mut json, mut example) = (None, None);
    while let Some(object) = objects.next().await {
        let object = match object {
            Err(object_store::Error::NotFound { .. }) => break,
            object => {
                object.map_err(|error| Error::store(format!("list {}", folder.location), error))?
            }
        };
        let path = relative(&folder.prefix, &object.location);
        match RawFormat::of(&path) {
            _ if layout::is_hidden(&path) => {}
            Some(format) if format == raw.format => return Ok(()),
            Some(RawFormat::Json) => json = first(json, path),
            Some(format) => return Err(other_format(folder, &path, format, raw.format)),
            None => example = first(example, path),
        }
    }
    if let Some(path) = json {
        return Err(other_format(folder, &path, RawFormat::Json, raw.format));
    }
    match example {
        None => Ok(()),
        Some(example) => Err(Error::usage(format!(
            "{} has only files that are not named as Parquet, CSV or JSON files, such as {example}",
            folder.location
        ))
        .hint(
            "check `raw.url`; names end in .parquet, in .csv (raw.format = \"csv\"), or in .json, \
             .jsonl or .ndjson (raw.format = \"json\"), the last two formats also with .gz or .zst",
        )),
    }
}

/// The error for a file that has changed since it was folded.
pub(crate) fn changed(folder: &Folder, path: &str) -> Error {
    Error::data(format!(
        "{} was folded by an earlier run and has changed since",
        folder.describe(path)
    ))
    .hint(
        "restore it (if local, with its modified time, as cp -p does), or rebuild the tables from \
         raw: glueless rebuild",
    )
}

fn other_format(folder: &Folder, path: &str, found: RawFormat, wanted: RawFormat) -> Error {
    let (found, wanted) = (found.name(), wanted.name());
    Error::usage(format!(
        "{} is not a file of the format `{wanted}`",
        folder.describe(path)
    ))
    .hint(format!(
        "set raw.format = \"{found}\"; if there are files of both formats, give each a folder, a \
         pipeline and a table of its own"
    ))
}

/// The inputs of earlier runs, re-discovered, and those that are missing.
pub(crate) type Rediscovered<'a> = (Vec<Input>, Vec<&'a RawFile>);

/// Lists every raw file, folded or not.
///
/// # Errors
/// Usage, when a raw location does not exist or has files of another format; storage, when a
/// listing fails.
pub(crate) async fn discover_all(folders: &[Folder], raw: &Raw) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for (location, folder) in folders.iter().enumerate() {
        let listed = list_all(folder).await?.into_iter();
        let files = raw_files(location, folder, raw, listed)?;
        if files.is_empty() {
            check_formats(folder, raw).await?;
        }
        inputs.extend(files.into_iter().map(|file| Input {
            full_load: raw.is_full_load(location, &file.path),
            file,
            late: false,
            rows: None,
            only: None,
        }));
    }
    sort(&mut inputs);
    Ok(inputs)
}

/// Lists the inputs that earlier runs folded or quarantined. Where windows select rows, all windows
/// of earlier runs select rows of each input, or with `was_read` only those whose rows were read.
///
/// # Errors
/// Usage, when a raw location does not exist; storage, when a listing fails.
pub(crate) async fn rediscover<'a>(
    folders: &[Folder],
    raw: &Raw,
    ledger: &'a dyn Recorded,
    was_read: bool,
) -> Result<Rediscovered<'a>> {
    let wanted = ledger.inputs();
    let mut inputs = Vec::new();
    let windows = ledger.windows();
    let names: HashSet<(usize, &str)> =
        wanted.iter().map(|file| (file.location, file.path.as_str())).collect();
    for (location, folder) in folders.iter().enumerate() {
        for object in list_all(folder).await? {
            let file = RawFile::new(location, folder, object);
            if !names.contains(&(location, file.path.as_str())) {
                continue;
            }
            let full_load = raw.is_full_load(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = if was_read {
                ledger.rows_read(location, &file.path)
            } else {
                by_rows.then(|| windows.clone())
            };
            inputs.push(Input { file, full_load, late: false, rows, only: None });
        }
    }
    sort(&mut inputs);
    let missing = missing_files(wanted.into_iter(), &inputs).collect();
    Ok((inputs, missing))
}

/// The inputs, or rows of inputs, that were never folded.
#[derive(Debug, Default)]
pub(crate) struct CatchUp<'a> {
    /// The inputs to fold.
    pub inputs: Vec<Input>,
    /// Inputs that were quarantined and are missing.
    pub missing_quarantined: Vec<&'a RawFile>,
    /// Inputs that were folded and are missing.
    pub missing_folded: Vec<&'a RawFile>,
}

/// Lists the inputs with rows that were never folded, in the span of all windows that were run:
/// those that were quarantined, those that no run has found, and those with rows between the
/// windows that selected rows. `quarantined` are the quarantined inputs as recorded.
///
/// # Errors
/// As [`discover`].
pub(crate) async fn catch_up<'a>(
    folders: &[Folder],
    pipeline: &Pipeline,
    recorded: &'a dyn Recorded,
    quarantined: Vec<&'a RawFile>,
) -> Result<CatchUp<'a>> {
    let raw = &pipeline.raw;
    let runs = recorded.windows();
    let Some(span_of_all) = runs.iter().copied().reduce(|span, run| span.span(&run)) else {
        return Ok(CatchUp::default());
    };
    let (mut inputs, mut seen) = (Vec::new(), HashSet::new());
    for (location, folder) in folders.iter().enumerate() {
        let is_local = folder.location.file_path().is_some();
        let listed = list_all(folder).await?.into_iter();
        for file in raw_files(location, folder, raw, listed)? {
            let full_load = raw.is_full_load(location, &file.path);
            let folded = recorded.folded(location, &file.path);
            let is_quarantined = recorded.is_quarantined(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let read = recorded.rows_read(location, &file.path);
            // A file of which windows selected rows is read whole if windows now select files.
            let is_unread = folded.is_none() || (read.is_some() && !by_rows);
            let (is_wanted, late) = if full_load || by_rows {
                let is_wanted = is_unread || is_quarantined;
                (is_wanted, folded.is_none() && !full_load)
            } else {
                let span = span_or_error(folder, raw, &file)?;
                let was_run = runs.iter().any(|run| run.overlaps(&span));
                let is_new = is_unread && span_of_all.overlaps(&span);
                (is_new || is_quarantined, is_new && was_run)
            };
            if folded.is_some() {
                seen.insert((location, file.path.clone()));
            }
            let rows = match (is_wanted, read) {
                (true, _) => vec![span_of_all],
                (false, Some(read)) if by_rows => span_of_all.without(&read),
                (false, _) => Vec::new(),
            };
            if rows.is_empty() {
                continue;
            }
            if folded.is_some_and(|folded| !folded.is_same(&file, is_local)) {
                return Err(changed(folder, &file.path));
            }
            inputs.push(Input {
                file,
                full_load,
                late: late && !is_quarantined,
                rows: by_rows.then_some(rows),
                only: None,
            });
        }
    }
    sort(&mut inputs);
    let missing_quarantined = missing_files(quarantined.into_iter(), &inputs).collect();
    let is_missing = |file: &&RawFile| {
        let is_folded = recorded.folded(file.location, &file.path).is_some();
        is_folded && !seen.contains(&(file.location, file.path.clone()))
    };
    let missing_folded = recorded.inputs().into_iter().filter(is_missing).collect();
    Ok(CatchUp { inputs, missing_quarantined, missing_folded })
}

/// The span by which windows select a file; `None` if the file has none, or if windows select rows.
fn span(raw: &Raw, file: &RawFile) -> Option<Window> {
    let instant = |at: DateTime<Utc>| Window { start: at, end: at + Duration::nanoseconds(1) };
    match raw.window_by {
        WindowBy::Commit => None,
        WindowBy::Modified => Some(instant(file.modified)),
        WindowBy::Name => {
            layout::cdc_file_time(layout::base_name(&file.path), raw.time_zone).map(instant)
        }
        WindowBy::Path => layout::folder_span(layout::parent(&file.path), raw.time_zone),
    }
}

/// The span by which windows select a file, or an error if the file has none.
fn span_or_error(folder: &Folder, raw: &Raw, file: &RawFile) -> Result<Window> {
    let what = match raw.window_by {
        WindowBy::Commit | WindowBy::Modified => "time",
        WindowBy::Name => "time in its name (yyyyMMdd-HHmmssSSS)",
        WindowBy::Path => "date in its folders",
    };
    span(raw, file).ok_or_else(|| {
        Error::data(format!("{} has no {what}", folder.describe(&file.path)))
            .hint("set `raw.full_load` if it is a full load, or another `raw.window_by`")
    })
}

/// The inputs of a window that were folded and are now missing, full loads excepted: they are not
/// read again.
pub(crate) fn missing_in_window<'a>(
    raw: &Raw,
    window: &Window,
    folded: impl Iterator<Item = &'a RawFile>,
    found: &[Input],
) -> Vec<&'a RawFile> {
    let is_in_window = |file: &&RawFile| {
        let is_full_load = raw.is_full_load(file.location, &file.path);
        let is_in_window = match span(raw, file) {
            Some(span) => window.overlaps(&span),
            // Any file can have rows of the window.
            None => raw.window_by == WindowBy::Commit,
        };
        is_in_window && !is_full_load
    };
    missing_files(folded.filter(is_in_window), found).collect()
}

/// Whether a CDC file is late; `None` if it is not selected.
fn late_if_selected(
    folder: &Folder,
    raw: &Raw,
    window: &Window,
    runs: &[Window],
    file: &RawFile,
    is_known: bool,
) -> Result<Option<bool>> {
    if raw.window_by == WindowBy::Commit {
        return Ok(Some(false));
    }
    let span = span_or_error(folder, raw, file)?;
    if window.overlaps(&span) {
        return Ok(Some(false));
    }
    let is_late = !is_known
        && lookback_span(raw, window).is_some_and(|lookback| lookback.overlaps(&span))
        && runs.iter().any(|run| run.overlaps(&span));
    Ok(is_late.then_some(true))
}

/// The span before the window in which late inputs are searched.
fn lookback_span(raw: &Raw, window: &Window) -> Option<Window> {
    let start = earlier(window.start, raw.lookback);
    (start < window.start).then_some(Window { start, end: window.start })
}

/// The windows of rows that a run folds of a file: the run's window, and the parts of earlier
/// windows that no run has read. `read` are the windows whose rows were read; `None` for all.
fn row_windows(
    raw: &Raw,
    window: &Window,
    runs: &[Window],
    read: Option<&[Window]>,
) -> Vec<Window> {
    let mut windows = vec![*window];
    if let (Some(read), Some(lookback)) = (read, lookback_span(raw, window)) {
        let late = runs.iter().filter_map(|run| run.intersection(&lookback));
        windows.extend(late.flat_map(|late| late.without(read)));
    }
    windows
}

fn earlier(instant: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    instant.checked_sub_signed(by).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

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
async fn list_all(folder: &Folder) -> Result<Vec<ObjectMeta>> {
    check_exists(folder)?;
    let listed = folder.root_store.list(Some(&folder.prefix)).try_collect();
    match listed.await {
        Err(object_store::Error::NotFound { .. }) => Err(missing_folder(folder)),
        listed => listed.map_err(|error| Error::store(format!("list {}", folder.location), error)),
    }
}

/// Lists every object that may belong to the window.
async fn list(folder: &Folder, raw: &Raw, window: &Window) -> Result<Vec<ObjectMeta>> {
    if matches!(raw.window_by, WindowBy::Modified | WindowBy::Commit) {
        // An object or row of the window can be in a folder of any date.
        return list_all(folder).await;
    }
    let failed = |error| Error::store(format!("list {}", folder.location), error);
    check_exists(folder)?;
    let store = &folder.root_store;
    let wanted = Window { start: earlier(window.start, raw.lookback), end: window.end }
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
                        Ok(object_store::ListResult { common_prefixes: Vec::new(), objects })
                    }
                    _ => store.list_with_delimiter(Some(&prefix)).await,
                }
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
    let rest = path.as_ref().strip_prefix(prefix.as_ref()).unwrap_or(path.as_ref());
    rest.trim_start_matches('/').to_string()
}
