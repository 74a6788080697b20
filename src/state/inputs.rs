//! The inputs of all runs. Those of old windows are in files of their own, which are read by need.
//!
//! When the ledger is compacted, inputs whose names have a time, and are older than the newest of them
//! by more than [`RECENT_DAYS`], move from the ledger to files `kind=inputs/…`; the ledger keeps a
//! summary of each ([`InputsFile`]). A run of a window reads those that can have inputs which the
//! window or its look-back selects; what looks at all inputs reads all.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Datelike, Duration, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::config::{Raw, WindowBy};
use crate::layout::{base_name, cdc_file_time, folder_span, parent};
use crate::raw::discover::RawFile;
use crate::window::Window;

/// The age, in days before the newest input, from which inputs are old.
const RECENT_DAYS: i64 = 7;
/// The least inputs of a file, and of a folder to be counted in its summary.
const FILE_INPUTS_MIN: usize = 1_000;
/// The number of old inputs in the ledger itself from which it is compacted at once.
const OLD_INPUTS_MAX: usize = 50_000;
/// Summaries are in UTC; names and folders are in a time zone that a pipeline can change.
const ZONE_DAYS: i64 = 2;

/// An input's name: location and path.
type Name = (usize, String);

/// The summary of a file of old inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputsFile {
    /// Its path relative to the state's table.
    pub path: String,
    /// The times in the names of its inputs, as if they were UTC.
    names: Window,
    /// The days of their folders, as if they were UTC; `None` if some have none.
    folders: Option<Window>,
    /// The locations of its inputs.
    locations: BTreeSet<usize>,
    /// Locations, folders and their number of inputs, where they are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    large_folders: Vec<(usize, String, u64)>,
}

/// The inputs that a reader of the ledger needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NeededInputs {
    /// None but those that the ledger itself has.
    Recent,
    /// Those whose names have a time in this span.
    Named(Window),
    /// Those whose folders have a date in this span.
    InFolders(Window),
    /// All.
    All,
}

impl NeededInputs {
    /// Those that decide what a run of a window reads: what it or its look-back selects.
    pub fn of(raw: &Raw, window: &Window) -> Self {
        let margin = Duration::days(ZONE_DAYS);
        let wide = window.with_lookback(raw.lookback).widened_by(margin);
        match raw.window_by {
            // Every run looks at all full loads: none of them may be among old inputs.
            _ if !raw.full_loads_have_other_names() => NeededInputs::All,
            WindowBy::Name => NeededInputs::Named(wide),
            WindowBy::Path => NeededInputs::InFolders(wide),
            WindowBy::Modified | WindowBy::Commit => NeededInputs::All,
        }
    }

    fn includes(&self, file: &InputsFile) -> bool {
        match self {
            NeededInputs::Recent => false,
            NeededInputs::Named(window) => window.overlaps(&file.names),
            NeededInputs::InFolders(window) => {
                file.folders.is_none_or(|folders| window.overlaps(&folders))
            }
            NeededInputs::All => true,
        }
    }
}

impl InputsFile {
    /// The summary of inputs, each with the time in its name.
    fn new(path: String, inputs: &[(DateTime<Utc>, &RawFile)]) -> Option<Self> {
        let names =
            inputs.iter().map(|(time, _)| Window::instant(*time)).reduce(|a, b| a.span(&b))?;
        let spans = inputs.iter().map(|(_, input)| folder_span(parent(&input.path), Tz::UTC));
        let spans: Option<Vec<Window>> = spans.collect();
        let folders = spans.and_then(|spans| spans.into_iter().reduce(|a, b| a.span(&b)));
        let mut counts: BTreeMap<(usize, &str), u64> = BTreeMap::new();
        for (_, input) in inputs {
            *counts.entry((input.location, parent(&input.path))).or_default() += 1;
        }
        counts.retain(|_, count| *count >= FILE_INPUTS_MIN as u64);
        let large_folders = counts.into_iter();
        let large_folders = large_folders
            .map(|((location, folder), count)| (location, folder.to_string(), count))
            .collect();
        let locations = inputs.iter().map(|(_, input)| input.location).collect();
        Some(InputsFile { path, names, folders, locations, large_folders })
    }

    /// Whether the file can have an input of this path.
    fn may_have(&self, path: &str) -> bool {
        let is_named = || name_time(path).is_some_and(|time| self.names.contains(time));
        let folder = || folder_span(parent(path), Tz::UTC);
        is_named()
            && self
                .folders
                .is_none_or(|folders| folder().is_some_and(|folder| folders.covers(&folder)))
    }
}

/// The inputs folded so far.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Those in the ledger itself. They replace old ones of the same name.
    recent: BTreeMap<Name, RawFile>,
    /// The files of old inputs, in the order in which they were written.
    files: Vec<InputsFile>,
    /// The paths of the files that were read.
    read: BTreeSet<String>,
    /// The inputs of these, and from which file each is: of several, from the last.
    old: Arc<BTreeMap<Name, (usize, RawFile)>>,
}

impl Inputs {
    /// Records an input, in place of its earlier record.
    pub fn insert(&mut self, input: RawFile) {
        self.recent.insert((input.location, input.path.clone()), input);
    }

    /// Records a file of old inputs.
    pub fn insert_file(&mut self, file: InputsFile) {
        self.files.push(file);
    }

    /// Adds the inputs of one of the files, which has been read.
    pub fn insert_old(&mut self, path: &str, inputs: Vec<RawFile>) {
        let Some(number) = self.files.iter().position(|file| file.path == path) else { return };
        let old = Arc::make_mut(&mut self.old);
        for input in inputs {
            let name = (input.location, input.path.clone());
            if old.get(&name).is_none_or(|(known, _)| *known <= number) {
                old.insert(name, (number, input));
            }
        }
        self.read.insert(path.to_string());
    }

    /// The input of this path, if a run has folded it.
    ///
    /// # Panics
    /// If it can be in a file that was not read.
    pub fn get(&self, location: usize, path: &str) -> Option<&RawFile> {
        let name = (location, path.to_string());
        let old = || self.old.get(&name).map(|(_, input)| input);
        let found = self.recent.get(&name).or_else(old);
        assert!(found.is_some() || !self.is_unread(path), "{path} can be among inputs not read");
        found
    }

    /// Whether an input of this path, if there is one, is in a file that was not read.
    pub fn is_unread(&self, path: &str) -> bool {
        self.unread().any(|file| file.may_have(path))
    }

    /// The inputs read so far, each once: old ones, then recent ones.
    pub fn iter(&self) -> impl Iterator<Item = &RawFile> {
        let old = self.old.iter().filter(|(name, _)| !self.recent.contains_key(name));
        old.map(|(_, (_, input))| input).chain(self.recent.values())
    }

    /// The inputs that are in the ledger itself.
    pub fn recent(&self) -> impl Iterator<Item = &RawFile> {
        self.recent.values()
    }

    /// The files of old inputs.
    pub fn files(&self) -> &[InputsFile] {
        &self.files
    }

    /// Whether inputs of a location are in a file that was not read.
    pub fn has_unread_of(&self, location: usize) -> bool {
        self.unread().any(|file| file.locations.contains(&location))
    }

    /// The files that were not read.
    pub fn unread(&self) -> impl Iterator<Item = &InputsFile> {
        self.files.iter().filter(|file| !self.read.contains(&file.path))
    }

    /// The paths of the files that were not read and are needed.
    pub fn needed(&self, needed: NeededInputs) -> Vec<String> {
        let files = self.unread().filter(|file| needed.includes(file));
        files.map(|file| file.path.clone()).collect()
    }

    /// The folders of a location, and about how many inputs each has.
    pub fn folders(&self, location: usize) -> BTreeMap<&str, u64> {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for input in self.iter().filter(|input| input.location == location) {
            *counts.entry(parent(&input.path)).or_default() += 1;
        }
        let unread = self.unread().flat_map(|file| &file.large_folders);
        for (_, folder, count) in unread.filter(|(of, _, _)| *of == location) {
            *counts.entry(folder).or_default() += count;
        }
        counts
    }

    /// About how much memory they need.
    pub fn bytes(&self) -> usize {
        let of_name = |name: &Name| size_of::<Name>() + name.1.len();
        let old = self.old.iter().map(|(name, (_, input))| of_name(name) + input.memory_bytes());
        let recent = self.recent.iter().map(|(name, input)| of_name(name) + input.memory_bytes());
        old.chain(recent).sum()
    }

    /// Whether so many old inputs are in the ledger itself that it should be compacted.
    pub fn are_many_old(&self) -> bool {
        self.recent.len() >= OLD_INPUTS_MAX && self.old_times().len() >= OLD_INPUTS_MAX
    }

    /// The old inputs in the ledger itself, each with the time in its name.
    fn old_times(&self) -> Vec<(DateTime<Utc>, &RawFile)> {
        let inputs = self.recent.values();
        let times = inputs.filter_map(|input| Some((name_time(&input.path)?, input)));
        let mut times: Vec<(DateTime<Utc>, &RawFile)> = times.collect();
        let newest = times.iter().map(|(time, _)| *time).max();
        let start = newest.map(|newest| newest - Duration::days(RECENT_DAYS));
        times.retain(|(time, _)| start.is_some_and(|start| *time < start));
        times
    }

    /// The old inputs in the ledger itself, by time, divided into new files. Paths are given by the
    /// number of the file.
    pub fn divide(&self, path: impl Fn(usize) -> String) -> Vec<(InputsFile, Vec<&RawFile>)> {
        let mut old = self.old_times();
        if old.len() < FILE_INPUTS_MIN {
            return Vec::new();
        }
        old.sort_by(|a, b| (a.0, &a.1.path).cmp(&(b.0, &b.1.path)));
        let parts = by_months(&old).into_iter().enumerate();
        let parts = parts.filter_map(|(number, inputs)| {
            let file = InputsFile::new(path(number), inputs)?;
            Some((file, inputs.iter().map(|(_, input)| *input).collect()))
        });
        parts.collect()
    }

    /// The inputs after the old ones have moved to these files.
    pub fn divided(&self, files: Vec<InputsFile>) -> Self {
        let old = if files.is_empty() { Vec::new() } else { self.old_times() };
        let old: HashSet<(usize, &str)> =
            old.into_iter().map(|(_, input)| (input.location, input.path.as_str())).collect();
        let recent = self.recent.iter();
        let recent = recent.filter(|((location, path), _)| !old.contains(&(*location, path)));
        let mut divided = Inputs {
            recent: recent.map(|(name, input)| (name.clone(), input.clone())).collect(),
            files: self.files.clone(),
            read: self.read.clone(),
            old: Arc::clone(&self.old),
        };
        divided.files.extend(files);
        divided
    }
}

/// Divides inputs in the order of time where a month ends, into parts that are not small.
fn by_months<'a, 'b>(
    inputs: &'a [(DateTime<Utc>, &'b RawFile)],
) -> Vec<&'a [(DateTime<Utc>, &'b RawFile)]> {
    let month = |at: usize| (inputs[at].0.year(), inputs[at].0.month());
    let (mut parts, mut first) = (Vec::new(), 0);
    for at in 1..inputs.len() {
        let is_large = at - first >= FILE_INPUTS_MIN && inputs.len() - at >= FILE_INPUTS_MIN;
        if is_large && month(at) != month(at - 1) {
            parts.push(&inputs[first..at]);
            first = at;
        }
    }
    parts.push(&inputs[first..]);
    parts
}

/// The time in a file's name, as if it were UTC.
fn name_time(path: &str) -> Option<DateTime<Utc>> {
    cdc_file_time(base_name(path), Tz::UTC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;
    use crate::config::Pipeline;

    const MINUTES: i64 = 40 * 1_440;

    /// Per step the files it folds: minute, and days of the folder after the name's.
    type Steps = Vec<Vec<(i64, i64)>>;
    /// An end of a file of old inputs, minutes after it, and the minutes of a window.
    type Place = (prop::sample::Index, i64, i64);

    fn raw(window_by: &str, zone: &str) -> Raw {
        let toml = format!(
            "name = \"p\"\nkey = [\"id\"]\n[raw]\nurl = \"/raw\"\nwindow_by = \"{window_by}\"\n\
             time_zone = \"{zone}\"\nlookback = \"1d\"\n[curated]\nurl = \"/curated\"\n"
        );
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("pipeline.toml"), toml).expect("written");
        std::fs::write(folder.path().join("curated.sql"), "SELECT id FROM latest")
            .expect("written");
        Pipeline::read(folder.path(), &[]).expect("a pipeline").raw
    }

    /// The path of a file whose name has a minute, in the folder of the day that is some days later.
    fn path(minute: i64, days_later: i64) -> String {
        let at = "2024-01-01T00:00:00Z".parse::<DateTime<Utc>>().expect("a time");
        let at = at + Duration::minutes(minute);
        let folder = (at + Duration::days(days_later)).format("%Y/%m/%d");
        format!("{folder}/{}", at.format("%Y%m%d-%H%M%S000.parquet"))
    }

    fn input(minute: i64, days_later: i64, size: u64) -> RawFile {
        let object = object_store::ObjectMeta {
            location: "".into(),
            last_modified: DateTime::UNIX_EPOCH,
            size,
            e_tag: None,
            version: None,
        };
        RawFile::new(0, path(minute, days_later), object)
    }

    /// Whether a window, or its look-back, selects a path.
    fn is_selected(raw: &Raw, window: &Window, path: &str) -> bool {
        let span = match raw.window_by {
            WindowBy::Name => cdc_file_time(base_name(path), raw.time_zone).map(Window::instant),
            _ => folder_span(parent(path), raw.time_zone),
        };
        let wide = Window { start: window.start - raw.lookback, end: window.end };
        span.is_none_or(|span| wide.overlaps(&span))
    }

    /// The inputs as the ledger stores them: the summaries, the files, and the rest.
    fn stored(inputs: &Inputs) -> Inputs {
        Inputs { recent: inputs.recent.clone(), files: inputs.files.clone(), ..Default::default() }
    }

    #[test]
    fn what_a_window_selects_is_never_among_the_inputs_not_read() {
        let zones = ["UTC", "Pacific/Kiritimati", "America/New_York"];
        let file = (0..MINUTES, -2i64..3);
        let times = prop::collection::vec(prop::collection::vec(file, 600..1_500), 1..4);
        // Windows are around the ends of files: which, after how many minutes, and for how long.
        let window = (any::<prop::sample::Index>(), -4_000i64..4_000, 1i64..3_000);
        let cases = (times, window, prop::bool::ANY, 0..zones.len());
        let mut runner = TestRunner::new(Config { cases: 100, ..Default::default() });
        let check = |(times, (end, after, minutes), by_name, zone): (Steps, Place, bool, usize)| {
            let raw = raw(if by_name { "name" } else { "path" }, zones[zone]);
            let (mut all, mut files) = (Inputs::default(), BTreeMap::new());
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for (step, times) in times.iter().enumerate() {
                for (minute, days_later) in times {
                    // Later steps record some of the inputs again.
                    let input = input(*minute, *days_later, step as u64);
                    expected.insert(input.path.clone(), input.size);
                    all.insert(input);
                }
                let parts = all.divide(|number| format!("{step}-{number}"));
                let mut new = Vec::new();
                for (file, inputs) in parts {
                    let inputs: Vec<RawFile> = inputs.into_iter().cloned().collect();
                    files.insert(file.path.clone(), inputs);
                    new.push(file);
                }
                all = all.divided(new);
            }
            let sizes = |inputs: &Inputs| -> BTreeMap<String, u64> {
                inputs.iter().map(|input| (input.path.clone(), input.size)).collect()
            };
            let ends: Vec<DateTime<Utc>> =
                all.files.iter().flat_map(|file| [file.names.start, file.names.end]).collect();
            prop_assume!(!ends.is_empty());
            let start = *end.get(&ends) + Duration::minutes(after);
            let window = Window { start, end: start + Duration::minutes(minutes) };
            let mut read = stored(&all);
            for path in read.needed(NeededInputs::of(&raw, &window)) {
                read.insert_old(&path, files[&path].clone());
            }
            for (path, size) in &expected {
                if is_selected(&raw, &window, path) {
                    prop_assert_eq!(read.get(0, path).map(|input| input.size), Some(*size));
                } else if !read.is_unread(path) {
                    prop_assert_eq!(read.get(0, path).map(|input| input.size), Some(*size));
                }
            }
            // A path that no run has folded is never said to be unread if it is selected.
            for minute in (0..MINUTES).step_by(977) {
                for days_later in -9..9 {
                    let path = path(minute, days_later);
                    if is_selected(&raw, &window, &path) {
                        prop_assert!(!read.is_unread(&path), "{path}");
                    }
                }
            }
            // The rest is read in any order.
            let mut rest = read.needed(NeededInputs::All);
            rest.reverse();
            for path in rest {
                read.insert_old(&path, files[&path].clone());
            }
            prop_assert_eq!(sizes(&read), expected);
            Ok(())
        };
        runner.run(&cases, check).expect("no input is missed");
    }
}
