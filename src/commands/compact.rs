//! Compacts raw: the small files of changes of a day become few, with all rows in the order of changes.
//!
//! Nothing in raw is changed. A day of the compacted folder is replaced as a whole:
//!
//! ```text
//! changedate=2024-01-02/part-2024-01-02-00001-<digest>.parquet    rows in the order of changes, with their file and row
//! changedate=2024-01-02/_compacted.json                          the raw files that they come from, and these files
//! ```
//!
//! New files are staged beside the days, counted, listed in `_compacted.json`, moved to their day, and only then are those
//! removed that they replace. So a day that was interrupted is recognized by the next command, which does it again: the files that
//! are listed are not those that are there. A day of which raw files have gone since stays as it is: it may be all that is left
//! of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Duration, NaiveDate, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::changes::Changes;
use crate::commands::compact::rows::{Written, write_day};
use crate::commands::open_pipeline::RunContext;
use crate::config::{ALL_COLUMNS, Compact, Keep, Kind, Masks, OnBad, OpColumn, Pipeline, Sql};
use crate::engine::session::{BATCH_ROWS, runtime};
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};
use crate::layout::fnv1a;
use crate::raw::bad_rows::BadRows;
use crate::raw::discover::{Input, RawFile, changes_near, day_of_file};
use crate::raw::open::Opening;
use crate::raw::schema_changes::KnownColumns;
use crate::report::text_table::Table;
use crate::report::{Answer, size, took};
use crate::state::ledger::Ledger;
use crate::store::listing::{list_and_prune, sizes};
use crate::store::remove::remove;
use crate::store::{Folder, parse_path};
use crate::types::times::days_in_window;
use crate::window::Window;

mod rows;

/// The name of the object that says what a day was made from.
const MANIFEST: &str = "_compacted.json";
/// The folder in which files are staged.
const STAGING: &str = "_glueless";
/// After this time staged files are those of a command that was killed.
const STAGED: TimeDelta = TimeDelta::days(1);

/// What was compacted. Field names and meanings are part of the program's public interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compacted {
    /// The pipeline's name.
    pub pipeline: String,
    /// The folder of the days.
    pub to: String,
    /// The days that have raw files, ascending.
    pub days: Vec<CompactedDay>,
    /// What the reader should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The process's peak resident memory.
    pub peak_memory_bytes: u64,
}

/// A day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompactedDay {
    /// The day.
    pub day: NaiveDate,
    /// Whether its files were written now; otherwise they are as they were.
    pub is_new: bool,
    /// The raw files that it has.
    pub files_read: u64,
    /// Their size.
    pub bytes_read: u64,
    /// Its rows.
    pub rows: u64,
    /// Its files.
    pub files_written: u64,
    /// Their size.
    pub bytes_written: u64,
}

/// What a day was made from, and its files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Manifest {
    inputs: Vec<RawFile>,
    files: Vec<CompactedFile>,
    /// `compact.file_bytes`.
    file_bytes: u64,
}

/// A file of a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CompactedFile {
    name: String,
    rows: u64,
    bytes: u64,
}

/// Compacts the days of a window.
///
/// # Errors
/// Usage, when no folder is named, or the pipeline's files cannot be compacted; data, when a raw file cannot be read, or has
/// changed since it was compacted; storage, when files cannot be read or written.
pub fn compact<'a>(
    run_context: &'a RunContext<'_>,
    window: Window,
) -> LocalBoxFuture<'a, Result<Compacted>> {
    async move {
        let pipeline = run_context.pipeline;
        check(pipeline)?;
        let Compact { url, file_bytes } = &pipeline.compact;
        let to = url.as_ref().ok_or_else(|| {
            Error::usage("nothing says where the compacted files are to go")
                .hint("name a folder: --to s3://bucket/compacted, or compact.url in pipeline.toml")
        })?;
        // The dates of folders and names, whatever their zone.
        let days = days_in_window(&window, chrono_tz::UTC);
        let resources = run_context.resources;
        let spill = SpillFolder::create(&resources.spill_dir, &run_context.run_id)?;
        let compacting = Compacting {
            run_context,
            raw: run_context.raw()?,
            as_rows: as_rows(pipeline),
            runtime: runtime(resources, &spill)?,
            to: run_context.stores.open(to)?,
            file_bytes: *file_bytes,
        };
        let mut report = Compacted {
            pipeline: pipeline.name.clone(),
            to: to.to_string(),
            ..Compacted::default()
        };
        let inputs = compacting.inputs(&window, &days).await?;
        compacting.remove_staged(|begun| run_context.now - begun > STAGED).await?;
        for (day, inputs) in inputs {
            report.days.extend(compacting.day(day, inputs, &mut report.notes).await?);
        }
        compacting.remove_empty_staging().await?;
        report.seconds = run_context.meter.seconds();
        report.peak_memory_bytes = (run_context.meter.peak_memory_bytes)();
        Ok(report)
    }
    .boxed_local()
}

/// Refuses pipelines whose files are not changes, or are not rows.
fn check(pipeline: &Pipeline) -> Result<()> {
    if pipeline.raw.kind == Kind::Snapshot {
        return Err(Error::usage("the raw files are snapshots: there are no changes to compact")
            .hint("snapshots are complete copies of a table; keep them, or let old ones expire"));
    }
    if pipeline.raw.envelope.is_some() {
        return Err(Error::usage(
            "envelopes cannot be compacted: their files would have no envelopes",
        )
        .hint("compact files of rows; for envelopes, let the connector write larger files"));
    }
    Ok(())
}

/// The pipeline that reads each raw row as it is: in all columns, as an insert of a table without a key, not masked.
fn as_rows(pipeline: &Pipeline) -> Pipeline {
    let mut pipeline = pipeline.clone();
    pipeline.key = Vec::new();
    pipeline.keep = Keep::Latest;
    let sql = pipeline.curated.sql.file.clone();
    pipeline.curated.sql = Sql { file: sql, text: ALL_COLUMNS.into(), is_default: true };
    let raw = &mut pipeline.raw;
    raw.op = OpColumn { name: None, required: false, values: raw.op.values.clone() };
    raw.delete_when = None;
    raw.event_time = None;
    raw.before_image_prefix = None;
    raw.on_bad_row = OnBad::Fail;
    raw.on_bad_file = OnBad::Fail;
    raw.masks = Masks::default();
    pipeline
}

struct Compacting<'a> {
    run_context: &'a RunContext<'a>,
    raw: Vec<Folder>,
    as_rows: Pipeline,
    runtime: Arc<datafusion::execution::runtime_env::RuntimeEnv>,
    to: Folder,
    file_bytes: u64,
}

impl Compacting<'_> {
    /// The files of each day.
    async fn inputs(
        &self,
        window: &Window,
        days: &[NaiveDate],
    ) -> Result<BTreeMap<NaiveDate, Vec<Input>>> {
        let raw = &self.run_context.pipeline.raw;
        let days: BTreeSet<NaiveDate> = days.iter().copied().collect();
        let near = window.widened_by(Duration::days(1));
        let mut of_days: BTreeMap<NaiveDate, Vec<Input>> = BTreeMap::new();
        for input in changes_near(&self.raw, raw, &near, &Ledger::default()).await? {
            let day = day_of_file(&self.raw[input.file.location], raw, &input.file)?;
            if days.contains(&day) {
                of_days.entry(day).or_default().push(input);
            }
        }
        Ok(of_days)
    }

    /// Compacts a day; `None` if it has to stay as it is.
    async fn day(
        &self,
        day: NaiveDate,
        inputs: Vec<Input>,
        notes: &mut Vec<String>,
    ) -> Result<Option<CompactedDay>> {
        let folder =
            self.run_context.stores.open(&self.to.location.join(&format!("changedate={day}")))?;
        let before = read_manifest(&folder).await?;
        let found = sizes(&folder).await?;
        if before.is_none() {
            check_is_empty(&folder, &found)?;
        }
        if let Some((before, gone)) =
            before.as_ref().and_then(|before| Some((before, missing(before, &inputs)?)))
        {
            let raw = self.raw.get(gone.location);
            let gone = raw.map_or_else(|| gone.path.clone(), |raw| raw.describe(&gone.path));
            if let Some(lost) = not_there(before, &found) {
                let lost = folder.describe(&lost.name);
                return Err(Error::data(format!(
                    "{lost} is not as it was compacted, and raw files that it comes from are gone, such as {gone}"
                ))
                .hint("restore one or the other; the other days can be compacted by their dates"));
            }
            let why = format!(
                "{day} stays as it was compacted: it has raw files that are gone, such as {gone}"
            );
            warn!("{why}");
            notes.push(why);
            return Ok(None);
        }
        if let Some(before) = before.as_ref().filter(|before| {
            self.is_current(before, &inputs) && not_there(before, &found).is_none()
        }) {
            remove_others(&folder, day, &found, &before.files).await?;
            return Ok(Some(self.reported(day, false, before)));
        }
        let staging = self.staging();
        let written = self.write(day, inputs, &staging, before.as_ref()).await;
        let manifest = match written {
            Ok(manifest) => manifest,
            Err(error) => {
                // What was staged is nothing.
                let _ = self.remove_staged(|_| false).await;
                return Err(error);
            }
        };
        put_manifest(&folder, &manifest).await?;
        self.move_files(&staging, &folder, &manifest.files).await?;
        remove_others(&folder, day, &found, &manifest.files).await?;
        let reported = self.reported(day, true, &manifest);
        info!("{day}: {} files in {}", reported.files_read, reported.files_written);
        Ok(Some(reported))
    }

    fn reported(&self, day: NaiveDate, is_new: bool, manifest: &Manifest) -> CompactedDay {
        CompactedDay {
            day,
            is_new,
            files_read: manifest.inputs.len() as u64,
            bytes_read: manifest.inputs.iter().map(|file| file.size).sum(),
            rows: manifest.files.iter().map(|file| file.rows).sum(),
            files_written: manifest.files.len() as u64,
            bytes_written: manifest.files.iter().map(|file| file.bytes).sum(),
        }
    }

    /// Whether a day was made from just these files, and would be made the same way.
    fn is_current(&self, manifest: &Manifest, inputs: &[Input]) -> bool {
        let known = by_path(manifest);
        let is_known = |input: &Input| {
            let before = known.get(&(input.file.location, input.file.path.as_str()));
            before.is_some_and(|before| {
                before.size == input.file.size
                    && before.has_same_stamp(&input.file, self.is_local(&input.file))
            })
        };
        manifest.file_bytes == self.file_bytes
            && manifest.inputs.len() == inputs.len()
            && inputs.iter().all(is_known)
    }

    fn is_local(&self, file: &RawFile) -> bool {
        self.raw[file.location].location.file_path().is_some()
    }

    /// Writes the files of a day to staging.
    async fn write(
        &self,
        day: NaiveDate,
        inputs: Vec<Input>,
        staging: &str,
        before: Option<&Manifest>,
    ) -> Result<Manifest> {
        let digest = digest(&inputs);
        let bad_rows = Arc::new(BadRows::new(0));
        let (raw, resources) = (&self.as_rows.raw, self.run_context.resources);
        let opening = Opening::new(&self.raw, raw, resources, &self.runtime, &bad_rows);
        let known = KnownColumns::default();
        let opened = Changes::open(inputs, opening, &self.as_rows, &known, BATCH_ROWS).await?;
        let changes = Arc::new(opened.0);
        let inputs: Vec<RawFile> = changes.inputs().map(|input| input.file.clone()).collect();
        let known = before.map(by_path).unwrap_or_default();
        let has_changed = |file: &&RawFile| {
            let before = known.get(&(file.location, file.path.as_str()));
            before.is_some_and(|before| !before.is_same(file, self.is_local(file)))
        };
        if let Some(changed) = inputs.iter().find(has_changed) {
            let path = self.raw[changed.location].describe(&changed.path);
            let hint = format!(
                "restore it; or, if it is right as it is now, remove the folder of {day} in {}, and compact again",
                self.to.location
            );
            return Err(
                Error::data(format!("{path} was compacted and has changed since")).hint(hint)
            );
        }
        let writing = Written {
            folder: &self.to,
            prefix: staging,
            name: &|number| name_of_file(day, number, digest),
            file_bytes: self.file_bytes,
        };
        let files =
            write_day(&changes, &self.raw, &writing, (&self.runtime, resources.threads)).await?;
        let written: u64 = files.iter().map(|file| file.rows).sum();
        let read: u64 = changes.row_counts().sum();
        if written != read {
            return Err(Error::internal(format!(
                "the raw files of {day} have {read} rows, and {written} were written"
            )));
        }
        Ok(Manifest { inputs, files, file_bytes: self.file_bytes })
    }

    /// The folder in which this command stages files.
    fn staging(&self) -> String {
        format!("{STAGING}/{}-{}", self.run_context.now.timestamp(), self.run_context.run_id)
    }

    async fn move_files(
        &self,
        staging: &str,
        folder: &Folder,
        files: &[CompactedFile],
    ) -> Result<()> {
        for CompactedFile { name, .. } in files {
            let staged = format!("{staging}/{name}");
            let (from, to) = (self.to.root_path(&staged)?, folder.root_path(name)?);
            let moved = self.to.root_store.rename(&from, &to).await;
            moved.map_err(|error| {
                Error::store(
                    format!("move {} to {}", self.to.describe(&staged), folder.describe(name)),
                    error,
                )
            })?;
        }
        let mut names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        names.push(MANIFEST.into());
        folder.sync(&names)
    }

    /// Removes the folders of staged files that are empty, of a local folder.
    async fn remove_empty_staging(&self) -> Result<()> {
        let folder = self.run_context.stores.open(&self.to.location.join(STAGING))?;
        let left = list_and_prune(&folder).await?;
        if let Some(path) = folder.location.file_path().filter(|_| left.is_empty()) {
            // Another process may stage files now.
            let _ = std::fs::remove_dir(path);
        }
        Ok(())
    }

    /// Removes staged files: those of this command, and those of commands that began at a time which is too long ago.
    async fn remove_staged(&self, is_old: impl Fn(DateTime<Utc>) -> bool) -> Result<()> {
        let own = self.staging();
        let folder = self.run_context.stores.open(&self.to.location.join(STAGING))?;
        let is_left = |path: &String| {
            let name = path.split('/').next().unwrap_or_default();
            let seconds = name.split('-').next().and_then(|text| text.parse::<i64>().ok());
            let begun = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
            own.ends_with(name) || begun.is_some_and(&is_old)
        };
        let left: Vec<String> = sizes(&folder).await?.into_keys().filter(is_left).collect();
        remove(&folder, left).await
    }
}

/// The files of a day by their location and path.
fn by_path(manifest: &Manifest) -> BTreeMap<(usize, &str), &RawFile> {
    manifest.inputs.iter().map(|file| ((file.location, file.path.as_str()), file)).collect()
}

/// A file that a day was made from and that is gone.
fn missing<'a>(manifest: &'a Manifest, inputs: &[Input]) -> Option<&'a RawFile> {
    let found: BTreeSet<(usize, &str)> =
        inputs.iter().map(|input| (input.file.location, input.file.path.as_str())).collect();
    manifest.inputs.iter().find(|file| !found.contains(&(file.location, file.path.as_str())))
}

/// A file of a day that is not in its folder as it was written.
fn not_there<'a>(
    manifest: &'a Manifest,
    found: &BTreeMap<String, u64>,
) -> Option<&'a CompactedFile> {
    manifest.files.iter().find(|file| found.get(&file.name) != Some(&file.bytes))
}

/// A number for files as they are now, so that files of a day that is made from others have other names.
fn digest(inputs: &[Input]) -> u64 {
    let described = inputs.iter().map(|Input { file, .. }| {
        let tag = file.e_tag.clone().unwrap_or_default();
        format!(
            "{} {} {} {} {tag}\n",
            file.location,
            file.path,
            file.size,
            file.modified.timestamp_micros()
        )
    });
    fnv1a(described.flat_map(String::into_bytes))
}

async fn read_manifest(folder: &Folder) -> Result<Option<Manifest>> {
    let Some(bytes) = folder.read(MANIFEST).await? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::data(format!("cannot read {}", folder.describe(MANIFEST)))
            .hint("remove the folder of this day, and compact it again, if its raw files are still there")
            .caused_by(error)
    })
}

async fn put_manifest(folder: &Folder, manifest: &Manifest) -> Result<()> {
    let bytes = serde_json::to_vec(manifest)
        .map_err(|error| Error::internal("cannot write the list of files").caused_by(error))?;
    let put = folder.store.put(&parse_path(MANIFEST)?, bytes.into()).await;
    put.map(|_| ())
        .map_err(|error| Error::store(format!("write {}", folder.describe(MANIFEST)), error))
}

fn name_of_file(day: NaiveDate, number: usize, digest: u64) -> String {
    format!("part-{day}-{number:05}-{digest:016x}.parquet")
}

/// Whether a name is one of those that [`name_of_file`] gives to files of a day.
fn is_name_of_file(day: NaiveDate, name: &str) -> bool {
    let middle =
        name.strip_prefix(&format!("part-{day}-")).and_then(|name| name.strip_suffix(".parquet"));
    let Some((number, digest)) = middle.and_then(|middle| middle.split_once('-')) else {
        return false;
    };
    let digest = u64::from_str_radix(digest, 16);
    let number = number.parse::<usize>();
    matches!((number, digest), (Ok(number), Ok(digest)) if name_of_file(day, number, digest) == name)
}

/// Refuses a day's folder that has files, and no list of them: nobody knows which raw files they come from, and these may be gone.
fn check_is_empty(folder: &Folder, found: &BTreeMap<String, u64>) -> Result<()> {
    match found.keys().next() {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!(
            "{} is not a compacted file that {MANIFEST} lists",
            folder.describe(name)
        ))
        .hint("name another folder, in which there is nothing yet: --to, or compact.url")),
    }
}

/// Removes the compacted files of a folder that are not among those of its day.
async fn remove_others(
    folder: &Folder,
    day: NaiveDate,
    found: &BTreeMap<String, u64>,
    files: &[CompactedFile],
) -> Result<()> {
    let known: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let is_other = |name: &&String| is_name_of_file(day, name) && !known.contains(name.as_str());
    remove(folder, found.keys().filter(is_other).cloned().collect()).await
}

impl Answer for Compacted {
    fn text(&self) -> String {
        let mut table =
            Table::new(&["day", "", "files", "size", "rows", "files after", "size after"]);
        for day in &self.days {
            table.row([
                day.day.to_string(),
                if day.is_new { "compacted" } else { "as it was" }.into(),
                day.files_read.to_string(),
                size(day.bytes_read),
                day.rows.to_string(),
                day.files_written.to_string(),
                size(day.bytes_written),
            ]);
        }
        let notes: String = self.notes.iter().map(|note| format!("note  {note}\n")).collect();
        let took = took(self.seconds, self.peak_memory_bytes);
        format!("{}  {}\n{}{notes}{took}", self.pipeline, self.to, table.text())
    }
}
