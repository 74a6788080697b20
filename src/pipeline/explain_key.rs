//! Explain a key: every change of it in raw, which one is last and why, which run folded it, and
//! where its row is now.
//!
//! Of all raw files only the key's columns are read, and the other columns of the key's own rows.
//! What the table has comes from versions, as everything that is published does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{Date32Type, Int32Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::FutureExt;
use futures::TryStreamExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;

use super::inputs::told;
use super::{Job, Request, check_identity, check_not_lost, date, hull_of, object_store_root};
use crate::bad_rows::BadRows;
use crate::change_reader::{ChangesTable, find_key};
use crate::changes::{Changes, EVENT_DT, LIVE, POSITION};
use crate::column_type::cast_values;
use crate::config::{Keep, OnBad, Pipeline};
use crate::discover::{self, Input, Recorded};
use crate::error::{Error, Result};
use crate::key_moves::exchanges;
use crate::layout::parent;
use crate::ledger::{CURATED, Run, read_types};
use crate::opening::Opening;
use crate::parquet_file::ParquetFile;
use crate::partition_name::partition_folder;
use crate::position::Position;
use crate::report::Answer;
use crate::session::{BATCH_ROWS, session};
use crate::state::State;
use crate::store::{Folder, parse_path};
use crate::table_text::Table;
use crate::times::times_ns;
use crate::versions::{canonical_column, with_one_zero};
use crate::window::Window;
use crate::winners::Winners;

/// So many changes of a key are listed: the last ones.
const CHANGES_MAX: usize = 10_000;

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
    request: &'a Request<'_>,
    key: Vec<String>,
) -> LocalBoxFuture<'a, Result<Explained>> {
    async move { explain(request, &key).await }.boxed_local()
}

async fn explain(request: &Request<'_>, key: &[String]) -> Result<Explained> {
    let pipeline = request.pipeline;
    check_key(pipeline, key)?;
    let threads = request.resources.threads;
    let mut state = State::open(request.stores, pipeline).await?;
    check_not_lost(request, &mut state).await?;
    let hull = hull_of(&state, "explain")?;
    let job = Job::open(request, None, hull).await?;
    check_identity(&state, pipeline)?;
    state.check_known()?;
    let folders = job.raw()?;
    let inputs = discover::every(&folders, &pipeline.raw).await?;
    let gone: Vec<_> = discover::gone(state.ledger.inputs.values(), &inputs).collect();
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
    let opening = Opening {
        folders: &folders,
        raw: &pipeline.raw,
        kept_bytes_max: (request.resources.memory_bytes / 8) as usize,
        runtime: &job.runtime,
        threads,
        bad_rows: &bad_rows,
    };
    let known = match &state.ledger.shape {
        Some(shape) => shape.known_columns()?,
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

    let context = session(&job.runtime, threads);
    if !changes.before_images().is_empty() {
        changes.set_exchanges(exchanges(&context, &changes, threads).await?);
    }
    let teller = Teller {
        state: &state,
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
    let last = state.last_commit();
    let told = rows_now(&job, &state, &context, &folders, &values, &mut explained).await;
    let mut now = State::open(request.stores, pipeline).await?;
    now.refresh().await?;
    if now.last_commit() != last {
        return Err(Error::busy("another run published meanwhile").hint("ask again"));
    }
    told?;
    if job.is_publishing(&state).await? {
        explained.notes.push(
            "a run is publishing, or was interrupted: rows may not be in their places yet".into(),
        );
    }
    check_winners(pipeline.keep, &mut explained);
    explained.seconds = request.meter.seconds();
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
            Ok(with_one_zero(&value))
        })
        .collect()
}

/// A change of the key, as it was found.
struct Found {
    file: usize,
    told: KeyChange,
}

/// Positions of either kind, which sort as they should.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Packed(i128),
    Bytes(Box<[u8]>),
}

impl Rank {
    fn read(positions: &ArrayRef, is_packed: bool) -> Vec<Self> {
        match is_packed {
            true => <i128>::read(positions)
                .into_iter()
                .map(Rank::Packed)
                .collect(),
            false => <Box<[u8]>>::read(positions)
                .into_iter()
                .map(Rank::Bytes)
                .collect(),
        }
    }

    fn file_and_row(&self) -> (usize, usize) {
        match self {
            Rank::Packed(position) => position.file_and_row(),
            Rank::Bytes(position) => position.file_and_row(),
        }
    }
}

/// Tells of changes.
struct Teller<'a> {
    state: &'a State,
    changes: &'a Arc<Changes>,
    folders: &'a [Folder],
    pipeline: &'a Pipeline,
}

impl Teller<'_> {
    /// The last changes among those at some places, in the order of changes, and how many there are.
    async fn last_changes(
        &self,
        context: &SessionContext,
        places: Winners,
        threads: usize,
    ) -> Result<(Vec<Found>, usize)> {
        let raw = &self.pipeline.raw;
        let table = ChangesTable::new(self.changes, Some(Arc::new(places)), threads);
        let mut columns: Vec<String> = [POSITION, EVENT_DT, LIVE].map(String::from).to_vec();
        let named = raw.order_by.iter().chain([&raw.op.name, &raw.commit_time]);
        for name in named.filter_map(|name| self.name(name)) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let columns: Vec<Expr> = columns.iter().map(ident).collect();
        let rows = context.read_table(Arc::new(table))?.select(columns)?;
        let plan: Arc<dyn ExecutionPlan> = rows.create_physical_plan().await?;
        let mut last: BTreeMap<Rank, Found> = BTreeMap::new();
        let mut met = 0;
        for mut stream in execute_stream_partitioned(plan, context.task_ctx())? {
            while let Some(batch) = stream.try_next().await? {
                let positions = batch.column(batch.schema().index_of(POSITION)?);
                let ranks = Rank::read(positions, self.changes.is_packed());
                met += ranks.len();
                for (at, rank) in ranks.into_iter().enumerate() {
                    let is_full = last.len() == CHANGES_MAX;
                    if is_full
                        && last
                            .first_key_value()
                            .is_some_and(|(first, _)| rank < *first)
                    {
                        continue;
                    }
                    let (file, place) = rank.file_and_row();
                    let told = self.told(&batch, at, file, place);
                    last.insert(rank, Found { file, told });
                    if is_full {
                        last.pop_first();
                    }
                }
            }
        }
        Ok((last.into_values().collect(), met))
    }

    /// The name of a raw column as the relation has it.
    fn name(&self, column: &str) -> Option<String> {
        let at = self.changes.raw_column(column)?;
        Some(self.changes.raw_schema().field(at).name().clone())
    }

    fn told(&self, batch: &RecordBatch, at: usize, file: usize, place: usize) -> KeyChange {
        let raw = &self.pipeline.raw;
        let places = self.changes.places_per_row();
        let input = self.changes.inputs().nth(file);
        let column = |name: &str| batch.column_by_name(name);
        let value = |name: &str| column(name).map_or(String::new(), |column| shown(column, at));
        let order = raw.order_by.iter();
        let order = order.filter_map(|name| Some((name.clone(), value(&self.name(name)?))));
        let is_live = column(LIVE).is_some_and(|live| live.as_boolean().value(at));
        let op = match (places, place % places) {
            (2, 0) => "moved away".into(),
            _ => match self.name(&raw.op.name).map(|op| value(&op)) {
                Some(op) if !op.is_empty() => op,
                _ if is_live => "I".into(),
                _ => "D".into(),
            },
        };
        let days = column(EVENT_DT).map(|days| days.as_primitive::<Date32Type>());
        let day = days.filter(|days| days.is_valid(at));
        let day = day.and_then(|days| date(days.value(at)));
        let commit_time = self.name(&raw.commit_time).and_then(|name| {
            let times = times_ns(&column(&name)?.slice(at, 1), chrono_tz::Tz::UTC).ok()?;
            let ns = times.first().copied().flatten()?;
            DateTime::from_timestamp_micros(i64::try_from(ns.div_euclid(1000)).ok()?)
        });
        let row = place / places;
        let run = input.and_then(|input| self.folded_by(input, row as u64, commit_time));
        KeyChange {
            file: input.map_or(String::new(), |input| {
                self.folders[input.file.location].describe(&input.file.path)
            }),
            row: row as u64 + 1,
            op,
            full_load: input.is_some_and(|input| input.full_load),
            order: order.collect(),
            day,
            run_id: run.map(|run| run.run_id.clone()),
            wins: false,
            why: None,
        }
    }

    /// The run that folded a row.
    fn folded_by(
        &self,
        input: &Input,
        row: u64,
        commit_time: Option<DateTime<Utc>>,
    ) -> Option<&Run> {
        let ledger = &self.state.ledger;
        let (location, path) = (input.file.location, &input.file.path);
        let file = ledger.folded(location, path)?;
        let aside = ledger.put_aside.get(&(location, path.clone()));
        let aside = aside.and_then(|aside| aside.rows.as_ref());
        if aside.is_some_and(|rows| rows.contains(&row)) {
            return None;
        }
        let by = |commit: u64| ledger.runs.iter().find(|run| run.commit == commit);
        let Some(rows) = &file.rows else {
            return by(file.commit);
        };
        let time = commit_time?;
        let folds = |window: Window| window.contains(time);
        let mut later = ledger.runs.iter().filter(|run| run.commit > file.commit);
        // What the first run of the file read is told by its rows, as is what later ones read
        // beside their windows.
        let first = by(file.commit).filter(|run| run.folded().is_some_and(folds));
        let later =
            later.find(|run| run.by_rows && !file.is_absent && run.folded().is_some_and(folds));
        let known = rows.iter().any(|window| window.contains(time));
        first
            .or(later)
            .or_else(|| by(file.commit).filter(|_| known))
    }

    /// Notes on files that are not any more what was folded.
    fn changed_files(&self, changes: &[KeyChange]) -> Vec<String> {
        let files: BTreeSet<&String> = changes.iter().map(|change| &change.file).collect();
        let changed = self.changes.inputs().filter_map(|input| {
            let folder = &self.folders[input.file.location];
            let name = folder.describe(&input.file.path);
            let is_here = folder.location.file_path().is_some();
            let folded = self
                .state
                .ledger
                .folded(input.file.location, &input.file.path)?;
            let is_told = files.contains(&name) && !folded.is_same(&input.file, is_here);
            is_told.then(|| format!("{name} has changed since it was folded: its rows were others"))
        });
        changed.collect()
    }
}

/// Marks the winners among the changes that were folded, and says why they win.
fn tell_winners(keep: Keep, found: &mut [Found]) {
    // The last one so far, of the key or of each day.
    let mut last: BTreeMap<Option<NaiveDate>, usize> = BTreeMap::new();
    for at in 0..found.len() {
        if found[at].told.run_id.is_none() {
            continue;
        }
        let of = match keep {
            Keep::Latest => None,
            Keep::LatestPerDay => found[at].told.day,
        };
        let before = last.insert(of, at);
        let why = match before {
            None => "it is the only one".to_string(),
            Some(before) => why(&found[before], &found[at]),
        };
        if let Some(before) = before {
            found[before].told.wins = false;
            found[before].told.why = None;
        }
        found[at].told.wins = true;
        found[at].told.why = Some(why);
    }
}

/// Why a change comes after another.
fn why(one: &Found, other: &Found) -> String {
    let (before, after) = (&one.told, &other.told);
    if before.full_load && !after.full_load {
        return "a change of CDC comes after every full load".into();
    }
    let pairs = before.order.iter().zip(&after.order);
    let mut differing = pairs.filter(|(before, after)| before != after);
    if let Some((_, (column, _))) = differing.next() {
        return format!("its `{column}` is the greatest");
    }
    match one.file == other.file {
        true if before.row == after.row => {
            "of one update, the row comes after its key's delete".into()
        }
        true => "the order columns are equal, and its row comes last in the file".into(),
        false => "the order columns are equal, and its file comes last".into(),
    }
}

/// Finds the key's rows in the curated table.
async fn rows_now(
    job: &Job<'_>,
    state: &State,
    context: &SessionContext,
    folders: &[Folder],
    key: &[ArrayRef],
    explained: &mut Explained,
) -> Result<()> {
    let pipeline = job.request.pipeline;
    let (Some((versions, layout)), Some(shape)) = (state.versions()?, &state.ledger.shape) else {
        return Ok(());
    };
    let root = object_store_root(state.folder());
    context.register_object_store(&root, Arc::clone(&state.folder().root_store));
    let mut rows = context.read_table(Arc::new(versions))?;
    for (number, (value, (name, kind))) in key.iter().zip(&layout.keys).enumerate() {
        let value = canonical_column(value, name, kind)?;
        let value = ScalarValue::try_from_array(&value, 0)?;
        rows = rows.filter(ident(format!("key_{number}")).eq(lit(value)))?;
    }
    let batches = rows.collect().await?;
    let columns = read_types(&shape.columns)?;
    let places = 1 + usize::from(pipeline.raw.before_image_prefix.is_some());
    let wanted = explained.changes.iter().filter(|change| change.wins);
    let wanted: Vec<(String, u64)> = wanted
        .map(|change| (change.file.clone(), change.row))
        .collect();
    for batch in &batches {
        let column =
            |name: &str| Ok::<_, Error>(batch.column(batch.schema().index_of(name)?).clone());
        let deleted = column("deleted")?;
        let (days, locations) = (column("event_dt")?, column("location")?);
        let (files, row_numbers) = (
            cast(&column("file")?, &arrow::datatypes::DataType::Utf8)?,
            column("row")?,
        );
        let mut parts: Vec<ArrayRef> = Vec::new();
        for (number, (name, _)) in layout.partitions.iter().enumerate() {
            let kind = columns.iter().find(|(column, _)| column == name);
            let kind =
                kind.ok_or_else(|| Error::internal(format!("`{name}` is not in the ledger")))?;
            parts.push(cast(&column(&format!("part_{number}"))?, &kind.1)?);
        }
        let names: Vec<&str> = layout
            .partitions
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        for at in 0..batch.num_rows() {
            if deleted.as_boolean().value(at) {
                continue;
            }
            let location = locations.as_primitive::<Int32Type>().value(at) as usize;
            let path = files.as_string::<i32>().value(at);
            let change_file = folders
                .get(location)
                .map_or(path.to_string(), |folder| folder.describe(path));
            let change_row =
                row_numbers.as_primitive::<Int64Type>().value(at) as u64 / places as u64 + 1;
            // Under `latest` versions of earlier days tell what was, and have no row.
            let is_row = pipeline.keep == Keep::LatestPerDay
                || wanted.contains(&(change_file.clone(), change_row));
            if !is_row {
                continue;
            }
            let days = days.as_primitive::<Date32Type>();
            explained.rows_now.push(RowNow {
                day: days.is_valid(at).then(|| days.value(at)).and_then(date),
                partition: partition_folder(&names, &parts, at)?,
                place: None,
                change_file,
                change_row,
            });
        }
    }
    explained.rows_now.sort_by_key(|row| row.day);
    for row in &mut explained.rows_now {
        row.place = place_of(job, state, key, row).await?;
        if row.place.is_none() {
            explained.notes.push(format!(
                "the row that should be in {} was not found there: glueless verify tells more",
                row.partition
            ));
        }
    }
    Ok(())
}

/// Where in a partition's files a row is.
async fn place_of(
    job: &Job<'_>,
    state: &State,
    key: &[ArrayRef],
    wanted: &RowNow,
) -> Result<Option<(String, u64)>> {
    let pipeline = job.request.pipeline;
    let folder = &job.output(CURATED)?.folder;
    let files = state.ledger.files(CURATED);
    for listed in files.filter(|file| parent(&file.path) == wanted.partition) {
        let path = parse_path(&listed.path)?;
        let name = folder.describe(&listed.path);
        let opened = ParquetFile::open(Arc::clone(&folder.store), path, listed.bytes, name).await;
        let file = match opened {
            // The note says that the row was not found.
            Err(error) if crate::error::missing_object(&error).is_some() => continue,
            opened => opened?,
        };
        let place = |name: &str| file.schema().index_of(name).ok();
        let mut columns: Vec<(usize, ArrayRef)> = Vec::new();
        for (name, value) in pipeline.key.iter().zip(key) {
            columns.extend(place(name).map(|column| (column, value.clone())));
        }
        let per_day = pipeline.keep == Keep::LatestPerDay;
        if let (Some(column), true) = (place(EVENT_DT), per_day) {
            let day: ArrayRef = Arc::new(arrow::array::Date32Array::from(vec![
                wanted.day.map(Date32Type::from_naive_date),
            ]));
            columns.push((column, day));
        }
        columns.sort_by_key(|(column, _)| *column);
        columns.dedup_by_key(|(column, _)| *column);
        let read: Vec<usize> = columns.iter().map(|(column, _)| *column).collect();
        let mut batches = file.read(&read, BATCH_ROWS);
        while let Some(batch) = batches.try_next().await? {
            let mut is_it = vec![true; batch.num_rows()];
            for (at, (_, value)) in columns.iter().enumerate() {
                let value = cast(value, batch.column(at).data_type())?;
                let value = arrow::array::Scalar::new(value);
                let same = arrow::compute::kernels::cmp::not_distinct(batch.column(at), &value)?;
                let each = is_it.iter_mut().zip(same.values());
                each.for_each(|(is_it, same)| *is_it &= same);
            }
            if let Some(at) = is_it.iter().position(|is_it| *is_it) {
                let rows = batch
                    .column(batch.num_columns() - 1)
                    .as_primitive::<Int64Type>();
                return Ok(Some((listed.path.clone(), rows.value(at) as u64 + 1)));
            }
        }
    }
    Ok(None)
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

/// A value for a terminal, which control characters could do something to.
fn printable(value: &str) -> String {
    let escaped = value.chars().map(|c| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    });
    escaped.collect()
}

impl Answer for Explained {
    fn text(&self) -> String {
        let key = self.key.iter();
        let key = key.map(|(name, value)| format!("{name} {}", printable(value)));
        let mut text = format!(
            "{}  {}: {} changes among {} rows of {} files\n",
            self.pipeline,
            key.collect::<Vec<_>>().join(", "),
            self.changes.len(),
            self.rows,
            self.files
        );
        // Long paths are told once, where they are one.
        let mut folders = self.changes.iter().map(|change| parent(&change.file));
        let folder = folders.next().unwrap_or_default();
        let folder = match folders.all(|other| other == folder) && !folder.is_empty() {
            true => format!("{folder}/"),
            false => String::new(),
        };
        let name = |file: &str| file.strip_prefix(&folder).unwrap_or(file).to_string();
        if !folder.is_empty() {
            let _ = writeln!(text, "in {folder}");
        }
        if let Some(first) = self.changes.first() {
            let mut header = vec!["", "op"];
            header.extend(first.order.iter().map(|(name, _)| name.as_str()));
            header.extend(["day", "row", "file", "run"]);
            let mut table = Table::new(&header);
            for change in &self.changes {
                let mut cells = vec![
                    if change.wins {
                        "wins".into()
                    } else {
                        String::new()
                    },
                    change.op.clone(),
                ];
                cells.extend(change.order.iter().map(|(_, value)| printable(value)));
                cells.push(change.day.map_or(String::new(), |day| day.to_string()));
                cells.push(change.row.to_string());
                cells.push(name(&change.file));
                cells.push(change.run_id.clone().unwrap_or_else(|| "not folded".into()));
                table.row(cells);
            }
            text.push_str(&table.text());
        }
        for change in self.changes.iter().filter(|change| change.wins) {
            let why = change.why.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "wins: row {} of {}: {why}",
                change.row,
                name(&change.file)
            );
        }
        for row in &self.rows_now {
            let place = match &row.place {
                Some((path, at)) => format!("row {at} of {path}"),
                None => format!("not found in {}", row.partition),
            };
            let _ = writeln!(text, "now: {place}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }
}
