//! Looks at an unknown folder of raw files, and proposes how each table in it is read.
//!
//! ```text
//! listing ─▶ tables ─▶ a few files each ─▶ their format ─▶ a sample of rows ─▶ operations, order, key, day ─▶ settings
//! ```
//!
//! Nothing is known for certain of files that somebody else has written. So each setting says how sure it is, and why, and what
//! cannot be known is asked ([`Certainty`]). A wrong guess must not lose rows in silence: what would do so, such as a
//! wrong key, is asked rather than guessed where nothing speaks for it. No value of a row is in what is proposed.

use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use serde::Serialize;
use tokio::sync::Semaphore;
use toml::Value;

use crate::config::RawFormat;
use crate::engine::resources::Resources;
use crate::error::{Error, Result};
use crate::store::Folder;
use crate::survey::propose::Proposing;
use crate::survey::sample::Reading;
use crate::survey::tables::{LeftOut, Listing};

mod csv_text;
mod csv_types;
mod days;
mod key;
mod operations;
mod order;
mod personal;
mod propose;
mod sample;
pub(crate) mod tables;
mod transactions;

/// The tables that are looked at at once.
const AT_ONCE: usize = 8;
/// The most tables of a folder; more are most likely parts of tables.
const TABLES_MAX: usize = 10_000;

/// How sure a proposal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// The files, or the source's catalog, say so.
    Sure,
    /// All that was read fits, and little else would.
    Likely,
    /// It fits best of what was found.
    #[default]
    Guess,
    /// It is not known: the user is asked.
    Asked,
}

impl Certainty {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Certainty::Sure => "sure",
            Certainty::Likely => "likely",
            Certainty::Guess => "guess",
            Certainty::Asked => "asked",
        }
    }
}

/// A setting of a pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Its key, such as `raw.order_by`, or the name of a column of `[raw.columns]` behind `raw.columns.`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// How sure it is.
    pub certainty: Certainty,
    /// What says so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A column that looks personal.
#[derive(Clone, Debug, Serialize)]
pub struct PersonalColumn {
    /// The raw column.
    pub column: String,
    /// The mask that fits.
    pub mask: &'static str,
    /// What it looks like.
    pub what: &'static str,
}

/// How a table is read.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    /// Its folder, relative to the one that was looked at; empty if it is that one itself.
    pub(crate) folder: String,
    /// The folders of its files, relative to that one.
    pub(crate) raw: Vec<String>,
    pub(crate) format: RawFormat,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// The rows that were looked at.
    pub(crate) rows: usize,
    /// The settings that are not the default, but for `raw.url`, the key first.
    pub(crate) settings: Vec<Setting>,
    pub(crate) personal: Vec<PersonalColumn>,
    /// What its user should know.
    pub(crate) notes: Vec<String>,
}

/// What the source's catalog says of a table.
#[derive(Clone, Debug)]
pub(crate) struct KnownTable {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// Its primary key, or a unique index without nulls; none if it has neither.
    pub(crate) key: Vec<String>,
    /// Its columns, with their types as `[raw.columns]` has them; `None` for a type that files have as text.
    pub(crate) columns: Vec<(String, Option<String>)>,
}

/// What was found in a folder.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The tables, in the order of their folders.
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// Looks at a folder.
///
/// # Errors
/// Usage, when it does not exist, or has no raw files; storage, when it cannot be read.
pub(crate) async fn survey(
    folder: &Folder,
    known: &[KnownTable],
    (resources, runtime): (&Resources, &Arc<RuntimeEnv>),
) -> Result<Survey> {
    let listing = list(folder).await?;
    let (other_files, example) = (listing.other_files, listing.other_example.clone());
    let (tables, mut left_out) = listing.tables();
    if tables.is_empty() {
        let message = format!("{} has no raw files of a table", folder.location);
        let found = match (left_out.first(), example) {
            (Some(left), _) => format!("{}: {}", folder.describe(&left.folder), left.why),
            (None, Some(example)) => format!("it has {other_files} other files, such as {example}"),
            (None, None) => "it is empty".into(),
        };
        return Err(Error::usage(message)
            .hint(format!("name the folder under which the tables are; their files end in .parquet, .csv or .json; {found}")));
    }
    if let Some(example) = example {
        tracing::info!(
            "{other_files} files are none of Parquet, CSV or JSON by their names, such as {example}"
        );
    }
    if tables.len() > TABLES_MAX {
        let (first, count) = (folder.describe(&tables[0].folder), tables.len());
        return Err(Error::usage(format!("{} has {count} folders that look like tables, such as {first}", folder.location))
            .hint(format!("name a folder with at most {TABLES_MAX} tables; parts of a table are known by date folders, column=value, or names that differ in digits alone")));
    }
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let reading = Reading { folder, resources, runtime, permits: &permits };
    let tables = transactions::split(&reading, tables, &mut left_out).await?;
    let done = std::sync::atomic::AtomicUsize::new(0);
    let all = tables.len();
    let proposals: Vec<Proposal> = stream::iter(&tables)
        .map(|table| async {
            let path = format!("{}{}", folder.location.folder(), table.found.folder);
            let known = known_table(known, &path);
            let is_known_by_schema = known.is_some_and(|(_, by_schema)| by_schema);
            let known = known.map(|(known, _)| known);
            let proposing = Proposing { reading: &reading, table, known, is_known_by_schema };
            let proposal = proposing.propose().await;
            let done = 1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tracing::info!(
                "looked at {} of {all} tables: {}",
                done,
                folder.describe(&table.found.folder)
            );
            proposal
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(Survey { proposals, left_out })
}

/// Lists all objects.
async fn list(folder: &Folder) -> Result<Listing> {
    let missing = || {
        Error::usage(format!("{} is not an existing folder", folder.location))
            .hint("name the folder or bucket with the raw files")
    };
    if folder.location.file_path().is_some_and(|path| !path.is_dir()) {
        return Err(missing());
    }
    let mut listing = Listing::default();
    let mut objects = folder.store.list(None);
    while let Some(object) = objects.next().await {
        match object {
            Ok(object) => listing.add(object.location.as_ref(), &object),
            Err(object_store::Error::NotFound { .. }) => return Err(missing()),
            Err(error) => return Err(Error::store(format!("list {}", folder.location), error)),
        }
    }
    Ok(listing)
}

/// What the source's catalog says of a table, by the last two folders of its path, and whether both are those of the table; or by the
/// last one, if only one table has that name.
fn known_table<'a>(known: &'a [KnownTable], path: &str) -> Option<(&'a KnownTable, bool)> {
    let mut names = path.trim_end_matches('/').rsplit('/');
    let (name, schema) = (names.next()?, names.next());
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let both = known.iter().find(|known| {
        same(&known.table, name) && schema.is_some_and(|schema| same(&known.schema, schema))
    });
    let mut by_name = known.iter().filter(|known| same(&known.table, name));
    let only = by_name.next().filter(|_| by_name.next().is_none());
    both.map(|known| (known, true)).or(only.map(|known| (known, false)))
}
