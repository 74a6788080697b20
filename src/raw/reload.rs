//! Reloads: a full load that was written again over the one that was folded.
//!
//! A full load comes before every CDC file. After a reload that is wrong for the CDC files from
//! before it: their changes are in the reload already, and older than it. A rebuild refuses to put
//! them after it.
//!
//! A full load is a reload only if an earlier run folded it with other content, and if it is not
//! older than that. So a first load that took hours, with CDC files from the time it ran, is none;
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
    raw.file_order().sort(&mut older, |file| (file.location, &file.path));
    let Some(first) = older.first() else {
        return Ok(());
    };
    let (load, first) =
        [reload, first].map(|file| folders[file.location].describe(&file.path)).into();
    let (count, at) = (older.len(), reload.modified.format("%Y-%m-%d %H:%M:%S"));
    Err(Error::data(format!(
        "{load} was written again at {at} UTC, after {count} CDC files, such as {first}: a rebuild \
         would put their older changes after this full load"
    ))
    .hint(
        "set `raw.full_load_at`, which puts full loads where they belong among the changes; or move the \
         CDC files from before the reload to a folder outside of `raw.url`; then: \
         glueless rebuild --accept-missing; if the table was not reloaded, restore the file (if \
         local, with its modified time, as cp -p does)",
    ))
}

/// Whether a full load has other content than the one that was folded, and is not older.
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
    if before.is_same(file, is_local) || file.modified < before.modified {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Pipeline;
    use crate::raw::fingerprint::{self, Fingerprint};
    use crate::store::{Location, Stores};
    use crate::window::WindowSet;

    /// The files of earlier runs.
    struct Known(Vec<RawFile>);

    impl Recorded for Known {
        fn folded(&self, _: usize, path: &str) -> Option<&RawFile> {
            self.0.iter().find(|file| file.path == path)
        }

        fn inputs(&self) -> Vec<&RawFile> {
            self.0.iter().collect()
        }

        fn quarantined(&self, _: usize, _: &str) -> Option<&RawFile> {
            None
        }

        fn has_unread(&self, _: usize) -> bool {
            false
        }

        fn is_unread(&self, _: &str) -> bool {
            false
        }

        fn folders(&self, _: usize) -> BTreeMap<&str, u64> {
            BTreeMap::new()
        }

        fn is_quarantined(&self, _: usize, _: &str) -> bool {
            false
        }

        fn windows(&self) -> WindowSet {
            WindowSet::default()
        }

        fn rows_read(&self, _: usize, _: &str) -> Option<WindowSet> {
            None
        }
    }

    fn print(text: &'static str) -> Option<Fingerprint> {
        fingerprint::of_parts(text.len() as u64, &[(0, text.into())])
    }

    fn file(path: &str, day: i64, fingerprint: Option<Fingerprint>) -> RawFile {
        RawFile {
            location: 0,
            path: path.into(),
            size: 7,
            modified: DateTime::UNIX_EPOCH + chrono::Duration::days(18_262 + day),
            e_tag: None,
            fingerprint,
            first_modified: None,
            load: None,
            commit: 1,
            rows: None,
            is_absent: false,
        }
    }

    /// Without a fingerprint, what happened to the CDC files decides.
    #[test]
    fn a_load_of_the_same_size_is_a_copy_if_all_files_are() {
        let (load, cdc) = ("LOAD1.parquet", "20200102-000000000.parquet");
        let (one, other) = (print("one"), print("other"));
        let folder = tempfile::tempdir().expect("a folder");
        let toml = "name = \"p\"\nkey = [\"a\"]\n[raw]\nurl = \"raw\"\norder_by = [\"a\"]\n\
                    [curated]\nurl = \"t\"";
        std::fs::write(folder.path().join("pipeline.toml"), toml).expect("written");
        std::fs::write(folder.path().join("curated.sql"), "SELECT a").expect("written");
        let raw = Pipeline::read(folder.path(), &[]).expect("a pipeline").raw;
        let location = Location::parse("raw", folder.path()).expect("a location");
        let folders = [Stores::default().open(&location).expect("a folder")];
        for (before, now, cdc_day, is_refused) in [
            // Known to be the same, or another.
            (one, (one, 9), 2, false),
            (one, (other, 9), 2, true),
            (one, (other, 9), 9, true),
            // Not known: reloaded, or all copied.
            (None, (None, 9), 2, true),
            (None, (None, 9), 9, false),
            // Older than the one that was folded.
            (None, (None, 2), 2, false),
            (one, (other, 2), 2, false),
        ] {
            let known = Known(vec![file(load, 3, before), file(cdc, 2, None)]);
            let (print, day) = now;
            let inputs = [(load, day, print), (cdc, cdc_day, None)].map(|(path, day, print)| {
                let full_load = path == load;
                let file = file(path, day, print);
                Input { file, full_load, late: false, rows: None, only: None }
            });
            let found = Rediscovered { inputs: inputs.into(), ..Default::default() };
            let checked = check_reloads(&folders, &raw, &known, &found);
            assert_eq!(checked.is_err(), is_refused, "{before:?}, {now:?}, {cdc_day}");
        }
    }
}
