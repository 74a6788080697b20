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
use tracing::warn;

use crate::commands::init::files::{Names, project_text};
use crate::commands::init::pipeline_file::Writing;
use crate::config::{
    PIPELINE_FILE, PROJECT_FILE, Pipeline, Places, UNANSWERED, full_path, pipelines_under,
    places_of,
};
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
    /// Why it was not written, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
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
        let (project, existing) = pipelines_under(context.out)?;
        if project.is_none() && !existing.is_empty() {
            return Err(Error::usage(format!(
                "{} has pipelines, such as {}, and belongs to no project: a {PROJECT_FILE} would give them other settings",
                context.out.display(),
                existing[0].display()
            ))
            .hint(format!("name a new folder with --out; or write a {PROJECT_FILE} into this one yourself, it may be empty")));
        }
        let found = survey(&folder, &known, (context.resources, &runtime)).await?;
        let names = Names::of(&found.proposals, &location);
        let text = project_text(context, &location, &found.proposals, &names)?;
        let project_is_new = project.is_none();
        let project = project.unwrap_or_else(|| context.out.join(PROJECT_FILE));
        if project_is_new {
            files::create(&project, &text)?;
        }
        let mut tables = Tables { context, location: &location, existing: read_places(existing) };
        let each = found.proposals.into_iter().zip(&names.folders);
        let tables = each.map(|(proposal, name)| tables.write(proposal, name)).collect::<Result<_>>()?;
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

/// Where pipelines read and write. One that cannot be read is left out.
fn read_places(pipelines: Vec<PathBuf>) -> Vec<(PathBuf, Places)> {
    let read = |folder: PathBuf| match places_of(&folder.join(PIPELINE_FILE)) {
        Ok(places) => Some((folder, places)),
        Err(error) => {
            warn!(
                "{} cannot be read, so that its raw files are not known: {error}",
                folder.display()
            );
            None
        }
    };
    pipelines.into_iter().filter_map(read).collect()
}

/// The pipelines of tables, as they are written.
struct Tables<'a> {
    context: &'a InitContext<'a>,
    location: &'a Location,
    /// Those that are there, also by this command.
    existing: Vec<(PathBuf, Places)>,
}

impl Tables<'_> {
    /// Writes the pipeline of a table, unless there is one.
    fn write(&mut self, proposal: Proposal, name: &str) -> Result<InitializedTable> {
        let urls: Vec<Location> =
            proposal.raw.iter().map(|raw| files::below(self.location, raw)).collect();
        let known = self.known(&urls, &proposal).map(Path::to_path_buf);
        let is_there = known.is_some();
        let (folder, is_new, failure) = match known {
            Some(folder) => (folder, false, None),
            None => {
                let folder = self.free_folder(name);
                let file = folder.join(PIPELINE_FILE);
                let text = self.text(&file, &urls, &proposal)?;
                match check(&file, &text) {
                    Ok(()) => {
                        let is_new = files::create(&file, &text)?;
                        self.existing.push((folder.clone(), places_of(&file)?));
                        (folder, is_new, None)
                    }
                    Err(error) => (folder, false, Some(error)),
                }
            }
        };
        Ok(InitializedTable {
            table: proposal.folder,
            pipeline: folder.display().to_string(),
            is_new,
            error: failure.as_ref().map(ToString::to_string),
            hint: failure.and_then(|error| error.hint),
            format: proposal.format.name(),
            files: proposal.files,
            bytes: proposal.bytes,
            rows: proposal.rows,
            // What stands in a file that was there is not looked at.
            settings: if is_there { Vec::new() } else { proposal.settings },
            personal: if is_there { Vec::new() } else { proposal.personal },
            notes: if is_there { Vec::new() } else { proposal.notes },
        })
    }

    /// The pipeline that reads these files, if there is one.
    fn known(&self, urls: &[Location], proposal: &Proposal) -> Option<&Path> {
        let table = proposal.settings.iter().find(|setting| setting.key == "raw.table");
        let table = table.and_then(|setting| setting.value.as_str());
        let reads = |places: &Places| {
            let has = |url: &Location| places.raw.iter().any(|other| other.url() == url.url());
            urls.iter().any(has) && places.table.as_deref() == table
        };
        let mut existing = self.existing.iter();
        existing.find(|(_, places)| reads(places)).map(|(folder, _)| folder.as_path())
    }

    /// A folder for a pipeline: of its name, or with a number behind it where there is another one.
    fn free_folder(&self, name: &str) -> PathBuf {
        let is_taken = |folder: &Path| {
            let nests = |(other, _): &(PathBuf, Places)| {
                other.starts_with(folder) || folder.starts_with(other)
            };
            folder.join(PIPELINE_FILE).exists() || self.existing.iter().any(nests)
        };
        let numbered = |_: &PathBuf, number| self.context.out.join(format!("{name}_{number}"));
        files::first_free(self.context.out.join(name), numbered, |folder| is_taken(folder))
    }

    /// The text of a pipeline's file. Its table gets a folder of its own where the project gives it that of another one.
    fn text(&self, file: &Path, urls: &[Location], proposal: &Proposal) -> Result<String> {
        let (context, out) = (self.context, self.context.out);
        let writing = |curated: Option<String>| Writing { file, out, urls, proposal, curated };
        let plain = writing(None).text(context)?;
        let given = writing(None).curated_of_project()?;
        let is_taken = |url: &Location| {
            let mut others = self.existing.iter().filter_map(|(_, places)| places.curated.as_ref());
            others.any(|other| other.overlaps(url))
        };
        let name = file.parent().and_then(|folder| folder.strip_prefix(out).ok());
        let name = name.unwrap_or(Path::new("table")).to_string_lossy().replace('/', "__");
        let wanted = match given {
            Some(given) if !is_taken(&given) => return Ok(plain),
            Some(given) => given,
            None => {
                let lake = context.lake.map(|lake| Location::parse(lake, context.current));
                let beside = full_path(out)?.join("../lake");
                let lake =
                    lake.unwrap_or_else(|| Location::parse(&beside.to_string_lossy(), &beside))?;
                lake.join(&name)
            }
        };
        let numbered = |taken: &Location, number| {
            taken.sibling(&format!("{name}_{number}")).unwrap_or_else(|| taken.join(&name))
        };
        let free = files::first_free(wanted, numbered, is_taken);
        writing(Some(free.folder().trim_end_matches('/').to_string())).text(context)
    }
}

/// Reads the text of a pipeline, as a run will once its questions are answered.
fn check(file: &Path, text: &str) -> Result<()> {
    let question = format!("\"{UNANSWERED}\"");
    let answered = text.lines().filter_map(|line| match line.split_once(" = ") {
        Some(("key", value)) => Some(format!("key = {}", value.replace(&question, "\"unknown\""))),
        Some(("csv_header", value)) if value == question => Some("csv_header = true".into()),
        Some((_, value)) if value == question => None,
        _ => Some(line.to_string()),
    });
    let answered: Vec<String> = answered.collect();
    Pipeline::of_text(file.to_path_buf(), &answered.join("\n"), &[]).map(|_| ())
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
                let _ =
                    write!(text, "  {:<7} {key} = {}", certainty.name(), files::rendered(value));
                let _ = writeln!(text, "{}{why}", if why.is_empty() { "" } else { ": " });
            }
            for (what, text_of) in [("error", &table.error), ("hint", &table.hint)] {
                if let Some(text_of) = text_of {
                    let _ = writeln!(text, "  {what:<7} {text_of}");
                }
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

    /// Whether each table has a pipeline.
    fn exit_code(&self) -> u8 {
        self.tables.iter().any(|table| table.error.is_some()).into()
    }
}
