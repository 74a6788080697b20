//! Discovery: a window and the ledger decide which raw files a run reads.
//!
//! The listing is narrowed by date folders where the window is about dates in names or folders
//! (one day wider on each side, because a folder's date and a name's can differ by a zone or a
//! flush); then every file is judged exactly. The result is sorted in the order of files, which
//! is part of the order of changes: base name, then path.

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

/// How many folders are listed at once.
const LISTINGS: usize = 16;

/// A raw file, as it is found and as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFile {
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
    /// The number of the commit that folded it; 0 for none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub commit: u64,
    /// The windows that selected its rows then; `None` for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<Window>>,
    /// Whether it was not there when the last run looked, so that later ones have read none of its
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
    /// Whether it is a full load: before every change of a CDC file.
    pub full_load: bool,
    /// Whether it lies before the window, and was not there when its own window was run.
    pub late: bool,
    /// The windows that select its rows by their commit time; `None` selects all.
    pub rows: Option<Vec<Window>>,
    /// The only rows that are folded, from 0 and ascending; `None` for no such choice.
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

    /// Whether a file is still the one that was folded: by size and tag; in a local folder, where
    /// a tag changes with a copy, by size and time.
    pub(crate) fn is_same(&self, found: &RawFile, local: bool) -> bool {
        let same_content = match (&self.e_tag, &found.e_tag) {
            (Some(folded), Some(found)) if !local => folded == found,
            _ => self.modified == found.modified,
        };
        self.size == found.size && same_content
    }
}

/// The spans of time of a window in which inputs, or rows of them, were never folded; `None` for an
/// input that can hold rows of any window. A full load belongs to the window's start: the first run
/// takes it.
///
/// # Errors
/// As [`discover`].
pub async fn new_spans(
    folders: &[Folder],
    pipeline: &Pipeline,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Option<Window>>> {
    let raw = &pipeline.raw;
    let mut spans = Vec::new();
    for input in discover(folders, pipeline, window, recorded).await? {
        let (location, path) = (input.file.location, &input.file.path);
        let is_here = folders[location].location.file_path().is_some();
        let quarantined = recorded.quarantined(location, path);
        let is_aside = quarantined.is_some_and(|before| before.is_same(&input.file, is_here));
        if recorded.folded(location, path).is_some() {
            let read = recorded.rows_read(location, path);
            let unread = read.map(|read| window.without(&read));
            spans.extend(unread.into_iter().flatten().map(Some));
        } else if input.full_load {
            spans.push(Some(Window {
                start: window.start,
                end: window.start + Duration::nanoseconds(1),
            }));
        } else if !is_aside {
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

/// Those of the folded files that are not among the inputs found.
pub(crate) fn gone<'a>(
    folded: impl Iterator<Item = &'a RawFile>,
    found: &[Input],
) -> impl Iterator<Item = &'a RawFile> {
    let found: HashSet<(usize, &str)> = found
        .iter()
        .map(|input| (input.file.location, input.file.path.as_str()))
        .collect();
    folded.filter(move |file| !found.contains(&(file.location, file.path.as_str())))
}

/// What earlier runs did, as far as discovery needs it.
pub trait Recorded {
    /// An input that was folded by an earlier run.
    fn folded(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// All of them.
    fn inputs(&self) -> Vec<&RawFile>;
    /// An input that was put aside as a whole by an earlier run.
    fn quarantined(&self, location: usize, path: &str) -> Option<&RawFile>;
    /// Whether anything of an input is put aside.
    fn is_quarantined(&self, location: usize, path: &str) -> bool;
    /// The windows of earlier runs.
    fn windows(&self) -> Vec<Window>;
    /// The windows whose rows of an input were folded; `None` for all rows.
    fn rows_read(&self, location: usize, path: &str) -> Option<Vec<Window>>;
}

/// Lists the inputs of a window: those in it, late ones, and every full load not yet folded. Inputs
/// of a table without a key are folded once as well.
///
/// # Errors
/// Usage, when a raw location does not exist, or holds files of the other format; data, when an
/// input was folded and has changed since, or when a file has no time of the kind that `window_by`
/// asks for; storage, when a listing fails.
pub async fn discover(
    folders: &[Folder],
    pipeline: &Pipeline,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Input>> {
    let raw = &pipeline.raw;
    let mut inputs = Vec::new();
    let runs = recorded.windows();
    for (location, folder) in folders.iter().enumerate() {
        let is_here = folder.location.file_path().is_some();
        let listed = list(folder, raw, window).await?.into_iter();
        for file in raw_files(location, folder, raw, listed)? {
            let path = &file.path;
            let full_load = raw.is_full_load(location, path);
            let folded = recorded.folded(location, path);
            let quarantined = recorded.quarantined(location, path);
            // Nothing of a file that was put aside whole was folded: it may be mended.
            let is_known = folded.is_some()
                || quarantined.is_some_and(|before| before.is_same(&file, is_here));
            let choice = if full_load {
                Some(false)
            } else {
                choose(folder, raw, window, &runs, &file, is_known)?
            };
            if folded.is_some_and(|folded| !folded.is_same(&file, is_here)) {
                return Err(changed(folder, path));
            }
            let is_once = full_load || pipeline.key.is_empty();
            let choice = choice.filter(|_| !is_once || folded.is_none());
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = by_rows.then(|| match recorded.is_quarantined(location, path) {
                // What can be read now is folded, and what still cannot is met.
                true => runs.iter().chain([window]).copied().collect(),
                false => {
                    let read = match folded {
                        Some(_) => recorded.rows_read(location, path),
                        None => Some(Vec::new()),
                    };
                    row_windows(raw, window, &runs, read.as_deref())
                }
            });
            if let Some(late) = choice {
                inputs.push(Input {
                    file,
                    full_load,
                    late,
                    rows,
                    only: None,
                });
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
    let (mut others, mut other) = (0, String::new());
    let mut files = Vec::new();
    for object in objects {
        let file = RawFile::new(location, folder, object);
        let path = &file.path;
        if layout::is_hidden(path) {
            continue;
        }
        match RawFormat::of(path) {
            Some(format) if format == raw.format => files.push(file),
            Some(format) => return Err(other_format(folder, path, format, raw.format)),
            None => {
                others += 1;
                debug!("neither Parquet nor CSV: {}", folder.describe(path));
                other.clone_from(path);
            }
        }
    }
    if others > 0 {
        warn!(
            "{others} files under {}, such as {other}, are not named as Parquet or CSV files and \
             were left alone",
            folder.location
        );
    }
    Ok(files)
}

/// The refusal of a file that is not what was folded.
pub(crate) fn changed(folder: &Folder, path: &str) -> Error {
    Error::data(format!(
        "{} was folded by an earlier run and has changed since",
        folder.describe(path)
    ))
    .hint(
        "restore it (on this machine with its time, as cp -p does), or make the tables again from \
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
        "write raw.format = \"{found}\"; where there are files of both, give each format a folder, a \
         pipeline and a table"
    ))
}

/// The inputs of earlier runs, as they are now, and those that are gone.
pub type Again<'a> = (Vec<Input>, Vec<&'a RawFile>);

/// Every raw file there is, folded or not.
///
/// # Errors
/// Usage, when a raw location does not exist, or holds files of the other format; storage, when a
/// listing fails.
pub async fn every(folders: &[Folder], raw: &Raw) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for (location, folder) in folders.iter().enumerate() {
        let listed = list_all(folder).await?.into_iter();
        let files = raw_files(location, folder, raw, listed)?.into_iter();
        inputs.extend(files.map(|file| Input {
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

/// The inputs that were folded or put aside so far. Of windows of rows all select rows of all of
/// them; with `was_read` only those that did.
///
/// # Errors
/// Usage, when a raw location does not exist; storage, when a listing fails.
pub async fn again<'a>(
    folders: &[Folder],
    raw: &Raw,
    ledger: &'a dyn Recorded,
    was_read: bool,
) -> Result<Again<'a>> {
    let wanted = ledger.inputs();
    let mut inputs = Vec::new();
    let windows = ledger.windows();
    let names: HashSet<(usize, &str)> = wanted
        .iter()
        .map(|file| (file.location, file.path.as_str()))
        .collect();
    for (location, folder) in folders.iter().enumerate() {
        for object in list_all(folder).await? {
            let file = RawFile::new(location, folder, object);
            if !names.contains(&(location, file.path.as_str())) {
                continue;
            }
            let full_load = raw.is_full_load(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = match was_read {
                true => ledger.rows_read(location, &file.path),
                false => by_rows.then(|| windows.clone()),
            };
            inputs.push(Input {
                file,
                full_load,
                late: false,
                rows,
                only: None,
            });
        }
    }
    sort(&mut inputs);
    let gone = gone(wanted.into_iter(), &inputs).collect();
    Ok((inputs, gone))
}

/// What was never folded.
#[derive(Debug, Default)]
pub struct CatchUp<'a> {
    /// The inputs.
    pub inputs: Vec<Input>,
    /// Inputs that were put aside and are gone.
    pub gone: Vec<&'a RawFile>,
    /// Inputs that were folded and are not there.
    pub absent: Vec<&'a RawFile>,
}

/// The inputs of which something was never folded, in the span of all windows that were run: those
/// that were put aside, those that no run has found, and rows between windows of rows. `quarantined`
/// are the first ones as they were.
///
/// # Errors
/// As [`discover`].
pub async fn catch_up<'a>(
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
        let is_here = folder.location.file_path().is_some();
        let listed = list_all(folder).await?.into_iter();
        for file in raw_files(location, folder, raw, listed)? {
            let full_load = raw.is_full_load(location, &file.path);
            let folded = recorded.folded(location, &file.path);
            let is_aside = recorded.is_quarantined(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let read = recorded.rows_read(location, &file.path);
            // Of what windows of rows have read, files of a window are read whole.
            let is_unread = folded.is_none() || (read.is_some() && !by_rows);
            let (is_wanted, late) = match full_load || by_rows {
                true => (is_unread || is_aside, folded.is_none() && !full_load),
                false => {
                    let span = span_or_refuse(folder, raw, &file)?;
                    let was_run = runs.iter().any(|run| run.overlaps(&span));
                    let is_new = is_unread && span_of_all.overlaps(&span);
                    (is_new || is_aside, is_new && was_run)
                }
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
            if folded.is_some_and(|folded| !folded.is_same(&file, is_here)) {
                return Err(changed(folder, &file.path));
            }
            inputs.push(Input {
                file,
                full_load,
                late: late && !is_aside,
                rows: by_rows.then_some(rows),
                only: None,
            });
        }
    }
    sort(&mut inputs);
    let gone = gone(quarantined.into_iter(), &inputs).collect();
    let absent = recorded.inputs().into_iter();
    let is_absent = |file: &&RawFile| {
        let is_folded = recorded.folded(file.location, &file.path).is_some();
        is_folded && !seen.contains(&(file.location, file.path.clone()))
    };
    let absent = absent.filter(is_absent).collect();
    Ok(CatchUp {
        inputs,
        gone,
        absent,
    })
}

/// The span of time by which windows select a file; `None` where there is none, or rows are
/// selected instead.
fn span(raw: &Raw, file: &RawFile) -> Option<Window> {
    let instant = |at: DateTime<Utc>| Window {
        start: at,
        end: at + Duration::nanoseconds(1),
    };
    match raw.window_by {
        WindowBy::Commit => None,
        WindowBy::Modified => Some(instant(file.modified)),
        WindowBy::Name => {
            layout::cdc_file_time(layout::base_name(&file.path), raw.time_zone).map(instant)
        }
        WindowBy::Path => layout::folder_span(layout::parent(&file.path), raw.time_zone),
    }
}

/// The span of time by which windows select a file.
fn span_or_refuse(folder: &Folder, raw: &Raw, file: &RawFile) -> Result<Window> {
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

/// The inputs of a window that were folded and are not there any more. Full loads are not looked
/// at: what is not read again is not missed.
pub fn vanished<'a>(
    raw: &Raw,
    window: &Window,
    folded: impl Iterator<Item = &'a RawFile>,
    found: &[Input],
) -> Vec<&'a RawFile> {
    let is_in_window = |file: &&RawFile| {
        let is_full_load = raw.is_full_load(file.location, &file.path);
        let is_in_window = match span(raw, file) {
            Some(span) => window.overlaps(&span),
            // Any file can hold rows of the window.
            None => raw.window_by == WindowBy::Commit,
        };
        is_in_window && !is_full_load
    };
    gone(folded.filter(is_in_window), found).collect()
}

/// Whether a CDC file is read, and if so whether it is late.
fn choose(
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
    let span = span_or_refuse(folder, raw, file)?;
    if window.overlaps(&span) {
        return Ok(Some(false));
    }
    let is_late = !is_known
        && looked_back(raw, window).is_some_and(|looked_back| looked_back.overlaps(&span))
        && runs.iter().any(|run| run.overlaps(&span));
    Ok(is_late.then_some(true))
}

/// The span before the window in which late inputs are looked for.
fn looked_back(raw: &Raw, window: &Window) -> Option<Window> {
    let start = earlier(window.start, raw.lookback);
    (start < window.start).then_some(Window {
        start,
        end: window.start,
    })
}

/// The rows of a file that a run of row windows folds: those in the window, and those of earlier
/// windows that no run has read; `read` are the windows whose rows were, `None` for all.
fn row_windows(
    raw: &Raw,
    window: &Window,
    runs: &[Window],
    read: Option<&[Window]>,
) -> Vec<Window> {
    let mut windows = vec![*window];
    if let (Some(read), Some(looked_back)) = (read, looked_back(raw, window)) {
        let late = runs.iter().filter_map(|run| run.common(&looked_back));
        windows.extend(late.flat_map(|late| late.without(read)));
    }
    windows
}

fn earlier(instant: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    instant
        .checked_sub_signed(by)
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

fn missing(folder: &Folder) -> Error {
    Error::usage(format!(
        "the raw location {} is not an existing folder",
        folder.location
    ))
    .hint("check `raw.url`")
}

/// Checks that a raw location on this machine is a folder; a remote one is found out when listed.
fn check_exists(folder: &Folder) -> Result<()> {
    match folder.location.file_path() {
        Some(path) if !path.is_dir() => Err(missing(folder)),
        _ => Ok(()),
    }
}

/// Every object of a raw location.
async fn list_all(folder: &Folder) -> Result<Vec<ObjectMeta>> {
    check_exists(folder)?;
    let listed = folder.root_store.list(Some(&folder.prefix)).try_collect();
    match listed.await {
        Err(object_store::Error::NotFound { .. }) => Err(missing(folder)),
        listed => listed.map_err(|error| Error::store(format!("list {}", folder.location), error)),
    }
}

/// Every object that may belong to the window.
async fn list(folder: &Folder, raw: &Raw, window: &Window) -> Result<Vec<ObjectMeta>> {
    if matches!(raw.window_by, WindowBy::Modified | WindowBy::Commit) {
        // An object written in the window, or a row of it, can lie in a folder of any date.
        return list_all(folder).await;
    }
    let failed = |error| Error::store(format!("list {}", folder.location), error);
    check_exists(folder)?;
    let store = &folder.root_store;
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
                    return Err(missing(folder));
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
