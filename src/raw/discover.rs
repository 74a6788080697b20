//! Discovery: selects the raw files that a run reads, by its window and the ledger.
//!
//! The listing is pruned by dates ([`crate::raw::list`]); then every file is checked exactly. The
//! result is sorted in the order of files ([`FileOrder`](crate::layout::FileOrder)), which is part of the order of changes.

use std::collections::HashSet;

use chrono::{DateTime, NaiveDate, Utc};
use futures::stream::StreamExt;
use object_store::{ObjectMeta, ObjectStore};
use tracing::{debug, warn};

use crate::config::{Pipeline, Raw, RawFormat, WindowBy};
use crate::error::{Error, Result};
use crate::layout;
use crate::raw::identify::identify;
pub(crate) use crate::raw::input::{Input, RawFile, Recorded};
use crate::raw::list::{list, list_all, relative};
use crate::raw::loads::{Unsettled, is_reload};
use crate::store::Folder;
use crate::window::{Window, WindowSet};

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
    now: DateTime<Utc>,
) -> Result<Vec<Option<Window>>> {
    let raw = &pipeline.raw;
    let mut spans = Vec::new();
    for input in discover(folders, pipeline, window, recorded, now).await?.inputs {
        let (location, path) = (input.file.location, &input.file.path);
        let is_local = folders[location].location.file_path().is_some();
        let quarantined = recorded.quarantined(location, path);
        let is_same_quarantined =
            quarantined.is_some_and(|before| before.is_same(&input.file, is_local));
        let folded = recorded.folded(location, path);
        let is_new_load = |before| is_reload(raw, &folders[location], before, &input.file);
        if folded.is_some_and(|before| !is_new_load(before)) {
            if let Some(read) = recorded.rows_read(location, path) {
                let unread = WindowSet::from(*window).subtracting(&read);
                spans.extend(unread.iter().copied().map(Some));
            }
        } else if input.full_load {
            spans.push(Some(Window::instant(window.start)));
        } else if !is_same_quarantined {
            spans.push(span(raw, &input.file));
        }
    }
    Ok(spans)
}

/// Sorts inputs in the order of files.
fn sort(raw: &Raw, inputs: &mut [Input]) {
    raw.file_order().sort(inputs, |input| (input.file.location, &input.file.path));
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

/// The inputs of a window.
#[derive(Debug, Default)]
pub(crate) struct Discovered<'a> {
    /// The inputs to fold.
    pub inputs: Vec<Input>,
    /// Files that earlier runs folded or quarantined, and that have the same bytes but another time
    /// or ETag.
    pub renewed: Vec<RawFile>,
    /// Inputs that were folded and are missing: those in the window, and full loads.
    pub missing: Vec<&'a RawFile>,
    /// Full loads that are still being written: none of their files is among the inputs.
    pub unsettled: Unsettled,
}

/// Lists the inputs of a window: those in it, late ones, and every full load not yet folded. Inputs
/// of a table without a key are folded only once as well. `now` is the time of the run.
///
/// # Errors
/// Usage, when a raw location does not exist or has files of another format; data, when an input
/// has changed since it was folded, or when a file lacks the time that `window_by` selects by;
/// storage, when a listing fails.
pub(crate) async fn discover<'a>(
    folders: &[Folder],
    pipeline: &Pipeline,
    window: &Window,
    recorded: &'a dyn Recorded,
    now: DateTime<Utc>,
) -> Result<Discovered<'a>> {
    let raw = &pipeline.raw;
    let mut found = Discovered::default();
    let runs = recorded.windows();
    let folded = recorded.inputs();
    let mut wanted = folded.clone();
    wanted.retain(|file| is_in_window(raw, window, file));
    let mut seen: HashSet<(usize, &str)> = HashSet::new();
    for (location, folder) in folders.iter().enumerate() {
        let is_local = folder.location.file_path().is_some();
        let known = wanted.iter().filter(|file| file.location == location);
        let known: Vec<&str> = known.map(|file| file.path.as_str()).collect();
        let listed = list((location, folder), raw, window, &known, recorded).await?;
        let mut files = raw_files(location, folder, raw, listed.into_iter())?;
        // They are not of this window.
        files.retain(|file| !recorded.is_unread(&file.path));
        debug!("{} files listed in {}{}", files.len(), folder.location, lists_all(raw));
        found.renewed.extend(identify(folder, recorded, &mut files).await?);
        let unsettled = Unsettled::find(raw, folder, &files, recorded, now);
        let was_read = |file: &&RawFile| {
            file.location == location && RawFormat::of(&file.path) == Some(raw.format)
        };
        if files.is_empty() && !recorded.has_unread(location) && !folded.iter().any(was_read) {
            check_formats(folder, raw).await?;
        }
        seen.extend(unsettled.leave_out(raw, folder, &mut files, recorded));
        found.unsettled.extend(unsettled);
        for file in files {
            let path = &file.path;
            let full_load = raw.is_full_load(location, path);
            let folded = recorded.folded(location, path);
            seen.extend(folded.map(|folded| (location, folded.path.as_str())));
            let quarantined = recorded.quarantined(location, path);
            // No row of a file quarantined as a whole was folded: the file may have been replaced.
            let is_known = folded.is_some()
                || quarantined.is_some_and(|before| before.is_same(&file, is_local));
            let choice = if full_load {
                Some(false)
            } else {
                late_if_selected(folder, raw, window, &runs, &file, is_known)?
            };
            let is_new_load =
                full_load && folded.is_some_and(|folded| is_reload(raw, folder, folded, &file));
            if !is_new_load && folded.is_some_and(|folded| !folded.is_same(&file, is_local)) {
                return Err(changed(folder, path, full_load));
            }
            let is_once = (full_load || pipeline.key.is_empty()) && !is_new_load;
            let choice = choice.filter(|_| !is_once || folded.is_none());
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = by_rows.then(|| {
                if recorded.is_quarantined(location, path) {
                    // Read all rows again: fold those that are readable now, find those still bad.
                    return runs.union(&(*window).into());
                }
                let read = match folded {
                    Some(_) => recorded.rows_read(location, path),
                    None => Some(WindowSet::default()),
                };
                row_windows(raw, window, &runs, read.as_ref())
            });
            if let Some(late) = choice {
                found.inputs.push(Input { file, full_load, late, rows, only: None });
            }
        }
    }
    sort(raw, &mut found.inputs);
    found.missing = wanted;
    found.missing.retain(|file| {
        // An input quarantined as a whole was not folded.
        !seen.contains(&(file.location, file.path.as_str()))
            && recorded.folded(file.location, &file.path).is_some()
    });
    Ok(found)
}

/// What a listing costs by the way windows select files.
fn lists_all(raw: &Raw) -> &'static str {
    match raw.window_by {
        WindowBy::Name | WindowBy::Path => "",
        WindowBy::Modified | WindowBy::Commit => {
            ": every run lists all files; by `name` or `path` it lists those of its window"
        }
    }
}

/// Whether an object of a raw location, by its path, is a raw file.
pub(crate) fn is_raw_file(path: &str, raw: &Raw) -> bool {
    !layout::is_hidden(path) && RawFormat::of(path) == Some(raw.format)
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
        let file = RawFile::new(location, relative(&folder.prefix, &object.location), object);
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
pub(crate) fn changed(folder: &Folder, path: &str, full_load: bool) -> Error {
    let hint = if full_load {
        "if the table was reloaded, set `raw.full_load_at`, so that full loads have their time among \
         the changes, and rebuild: glueless rebuild --accept-missing; or move the CDC files from before the reload, \
         folded or not, to a folder outside of `raw.url`, and rebuild the tables without them: \
         glueless rebuild --accept-missing; if it was not, restore the file"
    } else {
        "restore it (if local, with its modified time, as cp -p does), or rebuild the tables from \
         raw: glueless rebuild"
    };
    let path = folder.describe(path);
    Error::data(format!("{path} was folded by an earlier run and has changed since")).hint(hint)
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

/// A file of which all rows are read, whichever window they are of.
fn whole(raw: &Raw, file: RawFile) -> Input {
    let full_load = raw.is_full_load(file.location, &file.path);
    Input { file, full_load, late: false, rows: None, only: None }
}

/// Lists the files of changes that may belong to a window, folded or not, in the order of files; full loads are left out.
///
/// # Errors
/// As [`discover_all`].
pub(crate) async fn changes_near(
    folders: &[Folder],
    raw: &Raw,
    window: &Window,
    recorded: &dyn Recorded,
) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for (location, folder) in folders.iter().enumerate() {
        let listed = list((location, folder), raw, window, &[], recorded).await?;
        let files = raw_files(location, folder, raw, listed.into_iter())?.into_iter();
        inputs.extend(files.map(|file| whole(raw, file)).filter(|input| !input.full_load));
    }
    sort(raw, &mut inputs);
    Ok(inputs)
}

/// The day of a file of changes, in the zone of names and folders: that by which windows select it, or where they select rows or
/// times of writing, that of its name or folder. A time of writing is none: a file that is written again would have another day.
///
/// # Errors
/// Data, when it lacks that time.
pub(crate) fn day_of_file(folder: &Folder, raw: &Raw, file: &RawFile) -> Result<NaiveDate> {
    let time = match raw.window_by {
        WindowBy::Commit | WindowBy::Modified => layout::file_time(&file.path, raw.time_zone)
            .ok_or_else(|| {
                Error::data(format!(
                    "{} has no time in its name or folder: it is of no day",
                    folder.describe(&file.path)
                ))
                .hint("let the task that writes the files put dates into their names or folders")
            })?,
        _ => span_or_error(folder, raw, file)?.start,
    };
    Ok(time.with_timezone(&raw.time_zone).date_naive())
}

/// The inputs of earlier runs, re-discovered.
#[derive(Debug, Default)]
pub(crate) struct Rediscovered<'a> {
    /// Those that were found.
    pub inputs: Vec<Input>,
    /// Those that are missing.
    pub missing: Vec<&'a RawFile>,
    /// Raw files that no run has read.
    pub others: Vec<RawFile>,
}

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
        inputs.extend(files.into_iter().map(|file| whole(raw, file)));
    }
    sort(raw, &mut inputs);
    Ok(inputs)
}

/// Lists the inputs that earlier runs folded or quarantined; for a rebuild also full loads with a time
/// that none has. Where windows select rows, all windows
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
    let mut found = Rediscovered::default();
    let windows = ledger.windows();
    let names: HashSet<(usize, &str)> =
        wanted.iter().map(|file| (file.location, file.path.as_str())).collect();
    for (location, folder) in folders.iter().enumerate() {
        let mut files = Vec::new();
        for object in list_all(folder).await? {
            let file = RawFile::new(location, relative(&folder.prefix, &object.location), object);
            // A load may be folded in part, or have been refused.
            let is_load = raw.full_loads.at.is_time()
                && !was_read
                && raw.is_full_load(location, &file.path)
                && RawFormat::of(&file.path) == Some(raw.format)
                && !layout::is_hidden(&file.path);
            if is_load || names.contains(&(location, file.path.as_str())) {
                files.push(file);
            } else if RawFormat::of(&file.path).is_some() && !layout::is_hidden(&file.path) {
                found.others.push(file);
            }
        }
        identify(folder, ledger, &mut files).await?;
        found.inputs.extend(files.into_iter().map(|file| {
            let full_load = raw.is_full_load(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let rows = if was_read {
                ledger.rows_read(location, &file.path)
            } else {
                by_rows.then(|| windows.clone())
            };
            Input { file, full_load, late: false, rows, only: None }
        }));
    }
    sort(raw, &mut found.inputs);
    found.missing = missing_files(wanted.into_iter(), &found.inputs).collect();
    Ok(found)
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
    /// As [`Discovered::renewed`].
    pub renewed: Vec<RawFile>,
    /// As [`Discovered::unsettled`].
    pub unsettled: Unsettled,
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
    now: DateTime<Utc>,
) -> Result<CatchUp<'a>> {
    let raw = &pipeline.raw;
    let runs = recorded.windows();
    let Some(span_of_all) = runs.span() else {
        return Ok(CatchUp::default());
    };
    let (mut inputs, mut seen, mut renewed) = (Vec::new(), HashSet::new(), Vec::new());
    let mut unsettled = Unsettled::default();
    for (location, folder) in folders.iter().enumerate() {
        let is_local = folder.location.file_path().is_some();
        let listed = list_all(folder).await?.into_iter();
        let mut files = raw_files(location, folder, raw, listed)?;
        renewed.extend(identify(folder, recorded, &mut files).await?);
        let of_folder = Unsettled::find(raw, folder, &files, recorded, now);
        let waiting = of_folder.leave_out(raw, folder, &mut files, recorded);
        seen.extend(waiting.into_iter().map(|(location, path)| (location, path.to_string())));
        unsettled.extend(of_folder);
        for file in files {
            let full_load = raw.is_full_load(location, &file.path);
            let folded = recorded.folded(location, &file.path);
            let is_quarantined = recorded.is_quarantined(location, &file.path);
            let by_rows = raw.window_by == WindowBy::Commit && !full_load;
            let read = recorded.rows_read(location, &file.path);
            // A file of which windows selected rows is read whole if windows now select files.
            let is_new_load = folded.is_some_and(|folded| is_reload(raw, folder, folded, &file));
            let is_unread = folded.is_none() || is_new_load || (read.is_some() && !by_rows);
            let (is_wanted, late) = if full_load || by_rows {
                let is_wanted = is_unread || is_quarantined;
                (is_wanted, folded.is_none() && !full_load)
            } else {
                let span = span_or_error(folder, raw, &file)?;
                let was_run = runs.overlaps(&span);
                let is_new = is_unread && span_of_all.overlaps(&span);
                (is_new || is_quarantined, is_new && was_run)
            };
            if folded.is_some() {
                seen.insert((location, file.path.clone()));
            }
            let rows = match (is_wanted, read) {
                (true, _) => span_of_all.into(),
                (false, Some(read)) if by_rows => WindowSet::from(span_of_all).subtracting(&read),
                (false, _) => WindowSet::default(),
            };
            // Every command that folds looks at full loads: what comes after one depends on it.
            if (full_load || !rows.is_empty())
                && !is_new_load
                && folded.is_some_and(|folded| !folded.is_same(&file, is_local))
            {
                return Err(changed(folder, &file.path, full_load));
            }
            if rows.is_empty() {
                continue;
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
    sort(raw, &mut inputs);
    let missing_quarantined = missing_files(quarantined.into_iter(), &inputs).collect();
    let is_missing = |file: &&RawFile| {
        let is_folded = recorded.folded(file.location, &file.path).is_some();
        is_folded && !seen.contains(&(file.location, file.path.clone()))
    };
    let missing_folded = recorded.inputs().into_iter().filter(is_missing).collect();
    Ok(CatchUp { inputs, missing_quarantined, missing_folded, renewed, unsettled })
}

/// The span by which windows select a file; `None` if the file has none, or if windows select rows.
pub(crate) fn span(raw: &Raw, file: &RawFile) -> Option<Window> {
    match raw.window_by {
        WindowBy::Commit => None,
        WindowBy::Modified => Some(Window::instant(file.window_time())),
        WindowBy::Name => {
            layout::cdc_file_time(layout::base_name(&file.path), raw.time_zone).map(Window::instant)
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

/// Whether an input that was folded belongs to a run of a window: if it is a full load, which every
/// run looks at, or in the window.
fn is_in_window(raw: &Raw, window: &Window, file: &RawFile) -> bool {
    let is_in_window = match span(raw, file) {
        Some(span) => window.overlaps(&span),
        // Any file can have rows of the window.
        None => raw.window_by == WindowBy::Commit,
    };
    is_in_window || raw.is_full_load(file.location, &file.path)
}

/// Whether a CDC file is late; `None` if it is not selected.
fn late_if_selected(
    folder: &Folder,
    raw: &Raw,
    window: &Window,
    runs: &WindowSet,
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
        && runs.overlaps(&span);
    Ok(is_late.then_some(true))
}

/// The span before the window in which late inputs are searched.
fn lookback_span(raw: &Raw, window: &Window) -> Option<Window> {
    let start = window.with_lookback(raw.lookback).start;
    (start < window.start).then_some(Window { start, end: window.start })
}

/// The windows of rows that a run folds of a file: the run's window, and the parts of earlier
/// windows that no run has read. `read` are the windows whose rows were read; `None` for all.
fn row_windows(
    raw: &Raw,
    window: &Window,
    runs: &WindowSet,
    read: Option<&WindowSet>,
) -> WindowSet {
    let mut windows = match (read, lookback_span(raw, window)) {
        (Some(read), Some(lookback)) => runs.within(&lookback).subtracting(read),
        _ => WindowSet::default(),
    };
    windows.insert(*window);
    windows
}
