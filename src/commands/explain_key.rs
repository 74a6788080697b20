//! Explains a key: lists its changes in the raw files, the run that folded each, which change is
//! the last and why, and where the key's row is now.
//! Reads the key columns of all raw files, and other columns only for the key's changes. The rows
//! of the curated table are found through the versions.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::prelude::SessionContext;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use crate::changes::Changes;
use crate::changes::key_moves::key_swaps;
use crate::changes::reader::find_key;
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{OpenPipeline, RunContext, span_of};
use crate::commands::run::forget::key_columns;
use crate::commands::run::inputs::describe_missing;
use crate::config::{Keep, OnBad, Pipeline};
use crate::engine::session::{BATCH_ROWS, session};
use crate::error::{Error, Result};
use crate::raw::bad_rows::BadRows;
use crate::raw::discover::{self, Input, Recorded};
use crate::raw::loads::EarlierLoads;
use crate::raw::open::Opening;
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::store::Folder;
use crate::types::column_type::cast_values;
use crate::types::key::normalize_zeros;
use crate::types::key_hash::key_hashes;
use crate::types::mask::is_hash;

use changes::{ChangeLister, mark_winners};
use rows::{ROWS_MAX, rows_now};

mod answer;
mod changes;
mod rows;

/// The changes and rows of a key.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explained {
    /// The pipeline's name.
    pub pipeline: String,
    /// The key columns and their values.
    pub key: Vec<(String, String)>,
    /// Raw files searched.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// The key's changes, in the fold's order, limited to the last 10,000. The last folded change
    /// wins.
    pub changes: Vec<KeyChange>,
    /// The key's rows in the curated table: one under `latest`, one per day under `latest-per-day`, one per
    /// commit time in a history.
    pub rows_now: Vec<RowNow>,
    /// The key's rows that a truncate has ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<EndedRow>,
    /// The key's changes that left its row as it was, in a history.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub equal: Vec<EqualChange>,
    /// Further notes for the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

/// A change of the key.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KeyChange {
    /// Its raw file.
    pub file: String,
    /// Its row in the file, from 1.
    pub row: u64,
    /// Its operation as written in the file; `moved away` for the half of an update that removes
    /// the row from its old key.
    pub op: String,
    /// Whether it comes from a full load, which precedes every CDC change, unless it has a time.
    pub full_load: bool,
    /// The time of its full load, if full loads have a time: its place among the changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_at: Option<DateTime<Utc>>,
    /// The order columns and their values.
    pub order: Vec<(String, String)>,
    /// Its day.
    pub day: Option<NaiveDate>,
    /// The run that folded it; `None` if no run has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Whether it is the last change of the key, under `latest-per-day` of the key and day, in a history of the
    /// key and commit time.
    pub wins: bool,
    /// Why it wins, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A row of the key in the curated table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RowNow {
    /// Its day.
    pub day: Option<NaiveDate>,
    /// Its begin, in a history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<DateTime<Utc>>,
    /// Its end, in a history, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_to: Option<DateTime<Utc>>,
    /// What has ended the row of a history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<&'static str>,
    /// When its key was deleted, where deleted rows are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<DateTime<Utc>>,
    /// What deleted it then: a row of a file, a full load, or a truncate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<String>,
    /// Its partition, as a folder; empty for an unpartitioned table.
    pub partition: String,
    /// Its file, and its row in the file, from 1; `None` if it was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<(String, u64)>,
    /// The raw file of the change that wrote it.
    pub change_file: String,
    /// The change's row in that file, from 1.
    pub change_row: u64,
}

/// A change that left the row as it was.
#[derive(Clone, Debug, Serialize)]
pub struct EqualChange {
    /// Its raw file.
    pub change_file: String,
    /// Its row in the file, from 1.
    pub change_row: u64,
    /// The raw file of the change that the row is from.
    pub row_file: String,
    /// That change's row in the file, from 1.
    pub row_row: u64,
}

/// A row of the key that a truncate or a later full load has ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EndedRow {
    /// Its day.
    pub day: Option<NaiveDate>,
    /// The raw file of the change that wrote it.
    pub change_file: String,
    /// The change's row in that file, from 1.
    pub change_row: u64,
    /// The time of the truncate, if it was set by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_at: Option<DateTime<Utc>>,
    /// The raw file of the truncate, or the first file of the full load; empty if it was set by hand.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub truncate_file: String,
    /// The truncate's row in that file, from 1; `None` for a full load, and if it was set by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_row: Option<u64>,
}

/// Explains the key given by the values of its columns, in order, as text.
///
/// # Errors
/// Usage, when `key` does not match the pipeline's key, or no run has folded anything; data and
/// storage, when a raw file cannot be read.
pub fn explain_key<'a>(
    run_context: &'a RunContext<'_>,
    key: Vec<String>,
) -> LocalBoxFuture<'a, Result<Explained>> {
    async move {
        check_key(run_context.pipeline, &key)?;
        of_one_commit(run_context, (Reads::Files, NeededInputs::All), async |open, state| {
            explain(open, state, &key).await
        })
        .await
    }
    .boxed_local()
}

async fn explain(open: &OpenPipeline<'_>, state: &State, key: &[String]) -> Result<Explained> {
    let run_context = open.run_context;
    let pipeline = run_context.pipeline;
    let threads = run_context.resources.threads;
    span_of(state, "explain")?;
    let folders = run_context.raw()?;
    let mut explained = Explained { pipeline: pipeline.name.clone(), ..Default::default() };
    if let Some(forgotten) = forgotten(pipeline, state, key)? {
        explained.key = pipeline.key.iter().cloned().zip(key.iter().cloned()).collect();
        explained.notes.push(forgotten);
        return Ok(explained);
    }
    let changes = open_changes(open, state, &folders, &mut explained.notes).await?;
    explained.files = changes.inputs().count() as u64;
    explained.rows = changes.row_counts().sum();
    if changes.is_empty() && state.ledger.contract.is_none() {
        // No file has a row, and no run has found one: the key's type is not known.
        explained.key = pipeline.key.iter().cloned().zip(key.iter().cloned()).collect();
        explained.notes.push("no change has this key".into());
        return Ok(explained);
    }
    let values = key_values(pipeline, &changes, key, false);
    let has_mask = |name: &String| pipeline.raw.masks.of(name).is_some();
    let can_be_of_table =
        pipeline.key.iter().zip(key).any(|(name, text)| has_mask(name) && is_hash(text));
    let is_of_table = can_be_of_table
        && match &values {
            Ok(values) => find_key(&changes, values, threads).await?.count() == 0,
            Err(_) => true,
        };
    let values = if is_of_table { key_values(pipeline, &changes, key, true)? } else { values? };
    let names = pipeline.key.iter().cloned();
    explained.key = names.zip(values.iter().map(|value| format_value(value, 0))).collect();

    let context = session(&open.runtime, threads);
    if changes.has_transactions() {
        changes.set_key_swaps(key_swaps(&context, &changes, threads).await?);
    }
    let lister = ChangeLister { state, changes: &changes, folders: &folders, pipeline };
    list_changes(&lister, &context, &values, threads, &mut explained).await?;
    rows_now(open, state, &context, &folders, &values, &mut explained).await?;
    if open.is_publishing(state).await? {
        explained.notes.push(
            "a run is publishing, or was interrupted: the table may not have all committed rows \
             yet"
            .into(),
        );
    }
    check_winners(pipeline.keep, &mut explained);
    explained.seconds = run_context.meter.seconds();
    Ok(explained)
}

/// A note, if the key was forgotten.
fn forgotten(pipeline: &Pipeline, state: &State, key: &[String]) -> Result<Option<String>> {
    let forgotten = &state.ledger.forgotten;
    if forgotten.is_empty() {
        return Ok(None);
    }
    let columns = key_columns(pipeline, &state.ledger)?.of_texts(std::iter::once(key));
    let hashes = columns.ok().map(|columns| key_hashes(forgotten.salt_or(""), &columns));
    let hash = hashes.transpose()?.and_then(|hashes| hashes.first().copied());
    let commit = hash.and_then(|hash| forgotten.commit_of(&hash));
    let mut runs = state.ledger.runs.iter();
    let run = runs.find(|run| Some(run.commit) == commit);
    Ok(commit.map(|_| {
        let by = run.map_or(String::new(), |run| format!(" by run {} at {}", run.run_id, run.at));
        format!("this key was forgotten{by}: its changes in the raw files are left out")
    }))
}

/// Opens the changes of all raw files, and notes files that are missing or cannot be opened.
async fn open_changes(
    open: &OpenPipeline<'_>,
    state: &State,
    folders: &[Folder],
    notes: &mut Vec<String>,
) -> Result<Arc<Changes>> {
    let run_context = open.run_context;
    let pipeline = run_context.pipeline;
    let mut inputs = discover::discover_all(folders, &pipeline.raw).await?;
    for Input { file, .. } in &mut inputs {
        let is_local = folders[file.location].location.file_path().is_some();
        if let Some(before) = state.ledger.folded(file.location, &file.path) {
            file.adopt(before, is_local);
        }
    }
    let missing: Vec<_> = discover::missing_files(state.ledger.inputs.iter(), &inputs).collect();
    if let Some(missing) = describe_missing(&missing) {
        notes.push(format!(
            "{missing}: their changes are not listed, and may be later than those listed"
        ));
    }
    let bad_rows = Arc::new(BadRows::new(match pipeline.raw.on_bad_row {
        OnBad::Fail => 0,
        // Nothing is written to quarantine by this command.
        OnBad::Quarantine => u64::MAX,
    }));
    let resources = run_context.resources;
    let loads = state.ledger.timed_loads();
    let opening = Opening {
        // Rows that cannot be read are left out.
        checks_texts: true,
        loads: EarlierLoads { files: &loads, is_from_empty: false },
        ..Opening::new(folders, &pipeline.raw, resources, &open.runtime, &bad_rows)
    };
    let known = match &state.ledger.contract {
        Some(contract) => contract.known_columns()?,
        None => Default::default(),
    };
    let (changes, unopened) = Changes::open(inputs, opening, pipeline, &known, BATCH_ROWS).await?;
    for (input, error) in &unopened {
        let name = folders[input.file.location].describe(&input.file.path);
        notes.push(format!("{name} was not searched: {error}"));
    }
    Ok(Arc::new(changes))
}

/// Lists the key's changes, and notes those that are not listed or not folded.
async fn list_changes(
    lister: &ChangeLister<'_>,
    context: &SessionContext,
    key: &[ArrayRef],
    threads: usize,
    explained: &mut Explained,
) -> Result<()> {
    let rows = find_key(lister.changes, key, threads).await?;
    let count = rows.count();
    let (mut found, seen) = lister.last_changes(context, rows, threads).await?;
    let notes = &mut explained.notes;
    if count > seen {
        notes.push(format!(
            "{} changes of this key cannot be read: they are in quarantine, or the run that folds \
             them quarantines them",
            count - seen
        ));
    }
    if seen > found.len() {
        let earlier = seen - found.len();
        notes.push(format!("{earlier} earlier changes are not listed"));
    }
    mark_winners(lister.pipeline, &mut found);
    explained.changes = found.into_iter().map(|found| found.change).collect();
    notes.extend(lister.changed_files(&explained.changes));
    let is_unfolded = |change: &KeyChange| change.run_id.is_none();
    if explained.changes.is_empty() {
        notes.push("no change has this key".into());
    } else if explained.changes.iter().any(is_unfolded) {
        notes.push(
            "changes without a run were not folded: run their window, or `glueless catch-up`"
                .into(),
        );
    }
    Ok(())
}

fn check_key(pipeline: &Pipeline, key: &[String]) -> Result<()> {
    if pipeline.key.is_empty() {
        return Err(Error::usage("the pipeline has no key: its rows are only appended"));
    }
    if pipeline.key.len() != key.len() {
        return Err(Error::usage(format!(
            "the key has {} columns, and {} values were given",
            pipeline.key.len(),
            key.len()
        ))
        .hint(format!(
            "give a value for each of: {} (after --, if a value begins with a dash)",
            pipeline.key.join(", ")
        )));
    }
    Ok(())
}

/// The key's values in the types of its raw columns. `of_table` says whether texts that have the form of a hash are those of masked
/// values.
fn key_values(
    pipeline: &Pipeline,
    changes: &Changes,
    key: &[String],
    of_table: bool,
) -> Result<Vec<ArrayRef>> {
    let columns = pipeline.key.iter().zip(key);
    columns
        .map(|(name, text)| {
            let column = changes
                .raw_column(name)
                .ok_or_else(|| Error::internal(format!("the column `{name}` is missing")))?;
            let mask = pipeline.raw.masks.of(name).filter(|_| !(of_table && is_hash(text)));
            let kind = match mask {
                Some(_) => changes.source_type(column),
                None => changes.raw_schema().field(column).data_type(),
            };
            let given: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
            let no_value = |_| {
                Error::usage(format!("`{text}` is not a value of the key column `{name}`"))
                    .hint(format!("its type is {kind}"))
            };
            let value = cast_values(&given, kind).map_err(no_value)?;
            let value = mask.map_or(Ok(Arc::clone(&value)), |mask| mask.apply(&value));
            Ok(normalize_zeros(&value.map_err(no_value)?))
        })
        .collect()
}

/// Adds a note for each winner that has no row in the table.
fn check_winners(keep: Keep, explained: &mut Explained) {
    let winners = explained.changes.iter().filter(|change| change.wins);
    let mut notes = Vec::new();
    for winner in winners {
        let is_of_winner =
            |row: &RowNow| row.change_file == winner.file && row.change_row == winner.row;
        let has_row = explained.rows_now.iter().any(is_of_winner);
        let is_ended_winner =
            |row: &EndedRow| row.change_file == winner.file && row.change_row == winner.row;
        let is_equal_winner =
            |row: &&EqualChange| row.change_file == winner.file && row.change_row == winner.row;
        let equal = explained.equal.iter().find(is_equal_winner);
        let is_delete = winner.op.eq_ignore_ascii_case("d") || winner.op == "moved away";
        let day = match (keep, winner.day) {
            (Keep::LatestPerDay, Some(day)) => format!(" on {day}"),
            _ => String::new(),
        };
        match (is_delete, has_row) {
            // The row before says when it ends.
            (true, false) if keep == Keep::History => {}
            (true, false) if keep == Keep::LatestAndDeleted && !explained.rows_now.is_empty() => {}
            (true, false) if keep == Keep::LatestAndDeleted => notes.push(
                "no row: only deletes of this key were folded, or curated.sql filters its last insert or update out"
                    .into(),
            ),
            (false, false) if equal.is_some() => notes.extend(equal.map(|equal| {
                format!(
                    "row {} of {} has no row of its own: it leaves the row as it was, that of row {} of {}",
                    winner.row, winner.file, equal.row_row, equal.row_file
                )
            })),
            // Earlier ones are not looked for.
            (false, false) if keep == Keep::History && explained.rows_now.len() >= ROWS_MAX => {}
            (false, false) if keep == Keep::History => notes.push(format!(
                "row {} of {} has no row: an older change or a truncate is later in the order of changes, or \
                 curated.sql filters it out",
                winner.row, winner.file
            )),
            (true, false) => notes.push(format!("no row{day}: the last change is a delete")),
            (false, false) if explained.ended.iter().any(is_ended_winner) => {}
            (false, false) => notes.push(format!(
                "no row{day}: curated.sql filters it out, or the state lists another change \
                 (check with `glueless verify`)"
            )),
            _ => {}
        }
    }
    explained.notes.append(&mut notes);
}

fn format_value(column: &ArrayRef, at: usize) -> String {
    let format = FormatOptions::default();
    let value =
        ArrayFormatter::try_new(column, &format).map(|formatter| formatter.value(at).to_string());
    value.unwrap_or_default()
}
