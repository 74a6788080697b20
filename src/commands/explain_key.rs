//! Explain a key: every change of it in raw, which one is last and why, which run folded it, and
//! where its row is now.
//!
//! Of all raw files only the key's columns are read, and the other columns of the key's own rows.
//! What the table has comes from versions, as everything that is published does.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::NaiveDate;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use crate::changes::Changes;
use crate::changes::key_moves::key_swaps;
use crate::changes::reader::find_key;
use crate::commands::one_commit::of_one_commit;
use crate::commands::open_pipeline::{OpenPipeline, RunContext, span_of};
use crate::commands::run::inputs::told;
use crate::config::{Keep, OnBad, Pipeline};
use crate::engine::session::{BATCH_ROWS, session};
use crate::error::{Error, Result};
use crate::raw::bad_rows::BadRows;
use crate::raw::discover;
use crate::raw::open::Opening;
use crate::state::State;
use crate::types::column_type::cast_values;
use crate::types::key::normalize_zeros;

use changes::{Teller, tell_winners};
use rows::rows_now;

mod answer;
mod changes;
mod rows;

/// What is known of a key.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explained {
    /// The pipeline's name.
    pub pipeline: String,
    /// The key columns, and their values.
    pub key: Vec<(String, String)>,
    /// Raw files that were looked at.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// The key's changes, in the fold's order, of very many the last ones: the last one of those that
    /// were folded wins.
    pub changes: Vec<KeyChange>,
    /// Its rows in the curated table: one under `latest`, one per day under `latest-per-day`.
    pub rows_now: Vec<RowNow>,
    /// What else is to be known.
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
    /// Its row there, from 1.
    pub row: u64,
    /// What it did: its operation as it stands there; `moved away` for the half of an update that
    /// takes the row to another key.
    pub op: String,
    /// Whether it is of a full load, which comes before every change of CDC.
    pub full_load: bool,
    /// The order columns, and their values.
    pub order: Vec<(String, String)>,
    /// Its day.
    pub day: Option<NaiveDate>,
    /// The run that folded it; none where none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Whether it is the last one: of the key, under `latest-per-day` of the key and day.
    pub wins: bool,
    /// Why it is, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A row of the key in the curated table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RowNow {
    /// Its day.
    pub day: Option<NaiveDate>,
    /// Its partition, as a folder; empty for an unpartitioned table.
    pub partition: String,
    /// Its file, and row there, from 1; none where it was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<(String, u64)>,
    /// The raw file of the change that made it.
    pub change_file: String,
    /// The row there, from 1.
    pub change_row: u64,
}

/// Explains a key: the values of its columns, in their order, as text.
///
/// # Errors
/// Usage, when the pipeline has no such key, or no run has folded anything; data and storage, when a
/// raw file cannot be read.
pub fn explain_key<'a>(
    run_context: &'a RunContext<'_>,
    key: Vec<String>,
) -> LocalBoxFuture<'a, Result<Explained>> {
    async move {
        check_key(run_context.pipeline, &key)?;
        of_one_commit(run_context, async |open, state| {
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
    let inputs = discover::discover_all(&folders, &pipeline.raw).await?;
    let gone: Vec<_> = discover::missing_files(state.ledger.inputs.values(), &inputs).collect();
    let mut explained = Explained {
        pipeline: pipeline.name.clone(),
        ..Default::default()
    };
    if let Some(told) = told(&gone) {
        let told = format!("{told}: changes in them are not listed, and may be later ones");
        explained.notes.push(told);
    }
    let bad_rows = Arc::new(BadRows::new(match pipeline.raw.on_bad_row {
        OnBad::Fail => 0,
        // Nothing is put aside here.
        OnBad::Quarantine => u64::MAX,
    }));
    let resources = run_context.resources;
    let opening = Opening::new(&folders, &pipeline.raw, resources, &open.runtime, &bad_rows);
    let known = match &state.ledger.contract {
        Some(contract) => contract.known_columns()?,
        None => Default::default(),
    };
    let opened = Changes::open(inputs, opening, pipeline, &known, BATCH_ROWS).await?;
    let (changes, unopened) = (Arc::new(opened.0), opened.1);
    for (input, error) in &unopened {
        let name = folders[input.file.location].describe(&input.file.path);
        explained
            .notes
            .push(format!("{name} was not looked at: {error}"));
    }
    explained.files = changes.inputs().count() as u64;
    explained.rows = changes.row_counts().sum();
    let values = key_values(pipeline, &changes, key)?;
    let names = pipeline.key.iter().cloned();
    explained.key = names
        .zip(values.iter().map(|value| shown(value, 0)))
        .collect();

    let context = session(&open.runtime, threads);
    if !changes.before_images().is_empty() {
        changes.set_key_swaps(key_swaps(&context, &changes, threads).await?);
    }
    let teller = Teller {
        state,
        changes: &changes,
        folders: &folders,
        pipeline,
    };
    let places = find_key(&changes, &values, threads).await?;
    let count = places.count();
    let (mut found, met) = teller.last_changes(&context, places, threads).await?;
    if count > met {
        explained.notes.push(format!(
            "{} changes of this key cannot be read, and are in quarantine or will be",
            count - met
        ));
    }
    if met > found.len() {
        explained.notes.push(format!(
            "{} changes before these are not listed",
            met - found.len()
        ));
    }
    tell_winners(pipeline.keep, &mut found);
    explained.changes = found.into_iter().map(|found| found.told).collect();
    explained
        .notes
        .extend(teller.changed_files(&explained.changes));
    if explained.changes.is_empty() {
        explained.notes.push("no change has this key".into());
    } else if explained
        .changes
        .iter()
        .any(|change| change.run_id.is_none())
    {
        explained.notes.push(
            "changes without a run were not folded: run their window, or glueless catch-up".into(),
        );
    }
    rows_now(open, state, &context, &folders, &values, &mut explained).await?;
    if open.is_publishing(state).await? {
        explained.notes.push(
            "a run is publishing, or was interrupted: rows may not be in their places yet".into(),
        );
    }
    check_winners(pipeline.keep, &mut explained);
    explained.seconds = run_context.meter.seconds();
    Ok(explained)
}

fn check_key(pipeline: &Pipeline, key: &[String]) -> Result<()> {
    if pipeline.key.is_empty() {
        return Err(Error::usage(
            "the pipeline has no key: its rows are only added",
        ));
    }
    if pipeline.key.len() != key.len() {
        return Err(Error::usage(format!(
            "the key has {} columns, and {} values were given",
            pipeline.key.len(),
            key.len()
        ))
        .hint(format!(
            "give a value for each of: {} (behind --, where one begins with a dash)",
            pipeline.key.join(", ")
        )));
    }
    Ok(())
}

/// The key in the types of its raw columns.
fn key_values(pipeline: &Pipeline, changes: &Changes, key: &[String]) -> Result<Vec<ArrayRef>> {
    let columns = pipeline.key.iter().zip(key);
    columns
        .map(|(name, text)| {
            let column = changes.raw_column(name);
            let column = column.ok_or_else(|| Error::internal(format!("`{name}` was lost")))?;
            let kind = changes.raw_schema().field(column).data_type();
            let given: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
            let value = cast_values(&given, kind).map_err(|_| {
                Error::usage(format!(
                    "`{text}` is not a value of the key column `{name}`"
                ))
                .hint(format!("its type is {kind}"))
            })?;
            Ok(normalize_zeros(&value))
        })
        .collect()
}

/// Notes where the winners and the table's rows do not meet.
fn check_winners(keep: Keep, explained: &mut Explained) {
    let winners = explained.changes.iter().filter(|change| change.wins);
    let mut told = Vec::new();
    for winner in winners {
        let is_its = |row: &RowNow| row.change_file == winner.file && row.change_row == winner.row;
        let has_row = explained.rows_now.iter().any(is_its);
        let is_delete = winner.op.eq_ignore_ascii_case("d") || winner.op == "moved away";
        let day = match (keep, winner.day) {
            (Keep::LatestPerDay, Some(day)) => format!(" on {day}"),
            _ => String::new(),
        };
        match (is_delete, has_row) {
            (true, false) => told.push(format!("no row{day}: the last change is a delete")),
            (false, false) => told.push(format!(
                "no row{day}: curated.sql leaves it out, or the state remembers another change \
                 (glueless verify tells)"
            )),
            _ => {}
        }
    }
    explained.notes.append(&mut told);
}

fn shown(column: &ArrayRef, at: usize) -> String {
    let format = FormatOptions::default();
    let value = ArrayFormatter::try_new(column, &format).map(|shown| shown.value(at).to_string());
    value.unwrap_or_default()
}
