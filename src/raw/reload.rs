//! Reloads: a full load that was written again over the one that was folded.
//!
//! A full load comes before every CDC file. After a reload that is wrong for the CDC files from
//! before it: their changes are in the reload already, and older than it. A rebuild refuses to put
//! them after it.
//!
//! A full load is a reload only if an earlier run folded it with other content, and it was written
//! after that one. So a first load that took hours, and whose CDC files are older than it, is none;
//! nor is a copy of the raw folder, whose bytes are the same. Inputs that earlier versions folded
//! have no fingerprint; then a full load of the same size is a copy if the CDC files were all
//! written again too.
//!
//! A CDC file that was folded is older if its time is: the time in its name, else the time it was
//! written, or the start of its folder's date if that time is not in it. One that no run has read
//! is older only if it was also written before the reload; otherwise the time of the reload may be
//! that of a copy.

use chrono::{DateTime, Utc};
use tracing::warn;

use crate::config::Raw;
use crate::error::{Error, Result};
use crate::layout;
use crate::raw::discover::{Input, RawFile, Recorded, Rediscovered};
use crate::store::Folder;

/// Refuses to rebuild from a reload and CDC files from before it.
///
/// # Errors
/// Data, naming both.
pub(crate) fn check_reloads(
    folders: &[Folder],
    raw: &Raw,
    recorded: &dyn Recorded,
    found: &Rediscovered<'_>,
) -> Result<()> {
    let reloads = found.inputs.iter().filter(|input| input.full_load);
    let reloads = reloads.filter(|input| is_reload(folders, raw, recorded, input, &found.inputs));
    let Some(reload) = reloads.map(|input| &input.file).max_by_key(|file| file.modified) else {
        return Ok(());
    };
    let folded = cdc_files(&found.inputs);
    let mut older: Vec<&RawFile> =
        folded.filter(|file| time_of(raw, file) < reload.modified).collect();
    older.extend(found.others.iter().filter(|file| {
        !raw.is_full_load(file.location, &file.path)
            && time_of(raw, file).max(file.modified) < reload.modified
    }));
    let Some(first) = older.iter().min_by_key(|file| layout::file_order(file.location, &file.path))
    else {
        return Ok(());
    };
    let (load, first) =
        [reload, first].map(|file| folders[file.location].describe(&file.path)).into();
    let (count, at) = (older.len(), reload.modified.format("%Y-%m-%d %H:%M:%S"));
    Err(Error::data(format!(
        "{load} was reloaded at {at} UTC, after {count} CDC files, such as {first}: a rebuild would put their \
         older changes after the reload"
    ))
    .hint(
        "move the CDC files from before the reload to a folder outside of `raw.url`, then: \
         glueless rebuild --accept-missing; if the table was not reloaded, restore the file (if \
         local, with its modified time, as cp -p does)",
    ))
}

/// Whether a full load has other content than the one that was folded, and is newer.
fn is_reload(
    folders: &[Folder],
    raw: &Raw,
    recorded: &dyn Recorded,
    input: &Input,
    inputs: &[Input],
) -> bool {
    let file = &input.file;
    let Some(before) = recorded.folded(file.location, &file.path) else {
        return false;
    };
    let is_local = folders[file.location].location.file_path().is_some();
    if before.is_same(file, is_local) || file.modified <= before.modified {
        return false;
    }
    if before.size != file.size || before.fingerprint.is_some() {
        return true;
    }
    let is_written_again = |cdc: &RawFile| {
        let before = recorded.folded(cdc.location, &cdc.path);
        before.is_none_or(|before| before.modified != cdc.modified)
    };
    let older = cdc_files(inputs).filter(|cdc| time_of(raw, cdc) < file.modified);
    let mut older = older.peekable();
    let is_copy = older.peek().is_some() && older.all(is_written_again);
    if is_copy {
        warn!(
            "{} has another modified time than the file that was folded; it is taken for a copy \
             of it, because the CDC files were written again too",
            folders[file.location].describe(&file.path)
        );
    }
    !is_copy
}

fn cdc_files(inputs: &[Input]) -> impl Iterator<Item = &RawFile> {
    inputs.iter().filter(|input| !input.full_load).map(|input| &input.file)
}

/// The time of a CDC file.
fn time_of(raw: &Raw, file: &RawFile) -> DateTime<Utc> {
    let name = layout::base_name(&file.path);
    if let Some(time) = layout::cdc_file_time(name, raw.time_zone) {
        return time;
    }
    let written = file.window_time();
    match layout::folder_span(layout::parent(&file.path), raw.time_zone) {
        Some(span) if !span.contains(written) => span.start,
        _ => written,
    }
}
