//! Looks at an unknown folder of raw files, and writes a project with a pipeline for each table in it.
//!
//! Nothing is written but in the project's folder, and no file there is changed: a file that exists is somebody's. So the
//! command can be run again when there are new tables. `glueless.toml` is written first: a pipeline is read with it, and one that
//! was not written because the command was interrupted is found by the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use crate::commands::init::files::{Names, project_text};
use crate::commands::init::pipeline_file::Writing;
use crate::config::{PIPELINE_FILE, PROJECT_FILE, Pipeline, raw_urls_of};
use crate::engine::resources::Resources;
use crate::engine::session::runtime;
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};
use crate::report::{Answer, Meter, size, took};
use crate::store::{Location, Stores};
use crate::survey::{Certainty, PersonalColumn, Proposal, Setting, survey};

mod files;
mod known_tables;
mod pipeline_file;

/// What `init` gets from the program.
#[derive(Debug)]
pub struct InitContext<'a> {
    /// The folder with the raw files, as the user named it.
    pub url: &'a str,
    /// The folder of the project.
    pub out: &'a Path,
    /// The folder that gets the tables, as the user named it.
    pub lake: Option<&'a str>,
    /// The name of the variable with the URL of the source.
    pub source_url_env: Option<&'a str>,
    /// The current folder, in full.
    pub current: &'a Path,
    /// The id of this command.
    pub run_id: &'a str,
    /// Opens the stores of locations.
    pub stores: &'a Stores,
    /// The environment, which has the URL of the source.
    pub environment: &'a BTreeMap<String, String>,
    /// Memory and threads.
    pub resources: &'a Resources,
    /// Measures the command.
    pub meter: Meter,
}

/// What was written. Field names and meanings are part of the program's public interface.
#[derive(Debug, Default, Serialize)]
pub struct Initialized {
    /// The folder that was looked at.
    pub url: String,
    /// The project's file.
    pub project: String,
    /// Whether the project's file was written now.
    pub project_is_new: bool,
    /// The tables, in the order of their folders.
    pub tables: Vec<InitializedTable>,
    /// Files that belong to no table: their folder, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutFiles>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The process's peak resident memory.
    pub peak_memory_bytes: u64,
}

/// A table that was found.
#[derive(Debug, Serialize)]
pub struct InitializedTable {
    /// Its folder, below the one that was looked at.
    pub table: String,
    /// The folder of its pipeline.
    pub pipeline: String,
    /// Whether the pipeline was written now. One that exists is left as it is.
    pub is_new: bool,
    /// The format of its files.
    pub format: &'static str,
    /// Its files.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// The rows that were looked at.
    pub rows: usize,
    /// The settings that were written, with how sure they are, and why.
    pub settings: Vec<Setting>,
    /// Columns that look personal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub personal: Vec<PersonalColumn>,
    /// What its user should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Files that belong to no table.
#[derive(Debug, Serialize)]
pub struct LeftOutFiles {
    /// Their folder, below the one that was looked at.
    pub folder: String,
    /// How many there are.
    pub files: u64,
    /// Why.
    pub why: String,
}

/// What keys of columns of raw files begin with.
const COLUMNS: &str = "raw.columns.";

impl InitializedTable {
    /// The keys of settings that are questions.
    fn questions(&self) -> impl Iterator<Item = &str> {
        self.settings
            .iter()
            .filter(|setting| setting.certainty == Certainty::Asked)
            .map(|setting| setting.key.as_str())
    }
}

/// Looks at a folder and writes the project.
///
/// # Errors
/// Usage, when the folder has no raw files, the project's folder cannot be written, or its files cannot be read; storage,
/// when the raw folder or the source cannot be read.
pub fn init<'a>(context: &'a InitContext<'_>) -> LocalBoxFuture<'a, Result<Initialized>> {
    async move {
        let location = Location::parse(context.url, context.current)?;
        let spill = SpillFolder::create(&context.resources.spill_dir, context.run_id)?;
        let runtime = runtime(context.resources, &spill)?;
        let known = known_tables::of_source(context).await?;
        let folder = context.stores.open(&location)?;
        let found = survey(&folder, &known, (context.resources, &runtime)).await?;
        let names = Names::of(&found.proposals, &location);
        let project = context.out.join(PROJECT_FILE);
        let existing = existing_pipelines(context.out)?;
        let text = project_text(context, &location, &found.proposals, &names)?;
        let project_is_new = files::create(&project, &text)?;
        let mut tables = Vec::new();
        for (proposal, name) in found.proposals.into_iter().zip(&names.folders) {
            tables.push(write_table(context, (&location, &existing), proposal, name)?);
        }
        let left_out = found.left_out.into_iter().map(|left| LeftOutFiles {
            folder: left.folder,
            files: left.files,
            why: left.why.into(),
        });
        Ok(Initialized {
            url: location.to_string(),
            project: project.display().to_string(),
            project_is_new,
            tables,
            left_out: left_out.collect(),
            seconds: context.meter.seconds(),
            peak_memory_bytes: (context.meter.peak_memory_bytes)(),
        })
    }
    .boxed_local()
}

/// The pipelines in a project's folder, each with its raw locations.
fn existing_pipelines(out: &Path) -> Result<Vec<(PathBuf, Vec<Location>)>> {
    if !out.join(PROJECT_FILE).is_file() {
        return Ok(Vec::new());
    }
    let pipelines = crate::config::pipelines_of(out)?.unwrap_or_default();
    let with_urls = pipelines.into_iter().map(|folder| {
        let urls = raw_urls_of(&folder.join(PIPELINE_FILE))?;
        Ok((folder, urls))
    });
    with_urls.collect()
}

/// Writes the pipeline of a table, unless there is one.
fn write_table(
    context: &InitContext<'_>,
    (location, existing): (&Location, &[(PathBuf, Vec<Location>)]),
    proposal: Proposal,
    name: &str,
) -> Result<InitializedTable> {
    let urls: Vec<Location> = proposal.raw.iter().map(|raw| files::below(location, raw)).collect();
    let has_its_files = |(_, others): &&(PathBuf, Vec<Location>)| {
        // A folder with the changes of all tables is that of many pipelines.
        urls.first().is_some_and(|first| others.iter().any(|other| other.url() == first.url()))
    };
    let known = existing.iter().find(has_its_files).map(|(folder, _)| folder.clone());
    let folder = known.clone().unwrap_or_else(|| context.out.join(name));
    let file = folder.join(PIPELINE_FILE);
    let is_new = if known.is_some() || file.exists() {
        false
    } else {
        let writing = Writing { file: &file, urls: &urls, proposal: &proposal };
        let is_new = files::create(&file, &writing.text(context)?)?;
        check(&file, &proposal)?;
        is_new
    };
    Ok(InitializedTable {
        table: proposal.folder,
        pipeline: folder.display().to_string(),
        is_new,
        format: proposal.format.name(),
        files: proposal.files,
        bytes: proposal.bytes,
        rows: proposal.rows,
        settings: proposal.settings,
        personal: proposal.personal,
        notes: proposal.notes,
    })
}

/// Reads a pipeline that was written, as a run will.
fn check(file: &Path, proposal: &Proposal) -> Result<()> {
    let is_asked = proposal.settings.iter().any(|setting| setting.certainty == Certainty::Asked);
    match Pipeline::read(file, &[]) {
        Err(error) if !is_asked => Err(Error::internal(format!(
            "{} was written and cannot be read: {error}",
            file.display()
        ))
        .hint("correct the file, and report what is wrong with it")),
        _ => Ok(()),
    }
}

impl Answer for Initialized {
    fn text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let state = |is_new: bool| if is_new { "new" } else { "left as it is" };
        let _ = writeln!(text, "{} ({})", self.project, state(self.project_is_new));
        for table in &self.tables {
            let _ = writeln!(
                text,
                "\n{} ({}): {} files, {} of {}, {} rows looked at",
                table.pipeline,
                state(table.is_new),
                table.files,
                size(table.bytes),
                table.format,
                table.rows
            );
            let is_column =
                |setting: &&Setting| setting.key.starts_with(COLUMNS) && setting.why.is_empty();
            let is_shown = |setting: &&Setting| {
                let is_main = ["key", "raw.order_by"].contains(&setting.key.as_str());
                !is_column(setting) && (is_main || setting.certainty != Certainty::Sure)
            };
            let columns: Vec<&str> = table
                .settings
                .iter()
                .filter(is_column)
                .filter_map(|setting| setting.key.strip_prefix(COLUMNS))
                .collect();
            if !columns.is_empty() {
                let _ = writeln!(text, "  columns {}", columns.join(", "));
            }
            for Setting { key, value, certainty, why } in table.settings.iter().filter(is_shown) {
                let _ = write!(text, "  {:<7} {key} = {value}", certainty.name());
                let _ = writeln!(text, "{}{why}", if why.is_empty() { "" } else { ": " });
            }
            for PersonalColumn { column, mask, what } in &table.personal {
                let _ = writeln!(text, "  mask    {column} = \"{mask}\": it looks like {what}");
            }
            for note in &table.notes {
                let _ = writeln!(text, "  note    {note}");
            }
        }
        for left in &self.left_out {
            let folder = if left.folder.is_empty() { "." } else { &left.folder };
            let _ = writeln!(text, "\nleft out: {} files in {folder}: {}", left.files, left.why);
        }
        let new = self.tables.iter().filter(|table| table.is_new).count();
        let asking = self.tables.iter().filter(|table| table.questions().next().is_some()).count();
        let _ = writeln!(
            text,
            "\n{} tables, {new} of them new; {asking} with a question that is to be answered before they run",
            self.tables.len(),
        );
        text + &took(self.seconds, self.peak_memory_bytes)
    }
}
