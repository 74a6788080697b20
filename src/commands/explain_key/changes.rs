//! A key's changes: in their order, by which run they were folded, which one wins and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Date32Type;
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::logical_expr::{Expr, ident};
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::{KeyChange, shown};
use crate::changes::position::Position;
use crate::changes::reader::ChangesTable;
use crate::changes::row_bitmap::Winners;
use crate::changes::{Changes, EVENT_DT, LIVE, POSITION};
use crate::commands::open_pipeline::date;
use crate::config::{Keep, Pipeline};
use crate::error::Result;
use crate::raw::discover::{Input, Recorded};
use crate::state::State;
use crate::state::ledger::Run;
use crate::store::Folder;
use crate::types::times::times_ns;
use crate::window::Window;

/// So many changes of a key are listed: the last ones.
const CHANGES_MAX: usize = 10_000;

/// A change of the key, as it was found.
pub(super) struct Found {
    file: usize,
    pub(super) told: KeyChange,
}

/// Positions of either kind, which sort as they should.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Packed(i128),
    Bytes(Box<[u8]>),
}

impl Rank {
    fn read(positions: &ArrayRef, is_packed: bool) -> Vec<Self> {
        if is_packed {
            let positions = <i128>::read(positions).into_iter();
            positions.map(Rank::Packed).collect()
        } else {
            let positions = <Box<[u8]>>::read(positions).into_iter();
            positions.map(Rank::Bytes).collect()
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
pub(super) struct Teller<'a> {
    pub(super) state: &'a State,
    pub(super) changes: &'a Arc<Changes>,
    pub(super) folders: &'a [Folder],
    pub(super) pipeline: &'a Pipeline,
}

impl Teller<'_> {
    /// The last changes among those at some places, in the order of changes, and how many there are.
    pub(super) async fn last_changes(
        &self,
        context: &SessionContext,
        places: Winners,
        threads: usize,
    ) -> Result<(Vec<Found>, usize)> {
        let raw = &self.pipeline.raw;
        let table = ChangesTable::pass_two(self.changes, Arc::new(places), threads);
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
        let places = self.changes.ordinals_per_row();
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
        let aside = ledger.quarantined.get(&(location, path.clone()));
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
    pub(super) fn changed_files(&self, changes: &[KeyChange]) -> Vec<String> {
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

/// RowBitmap the winners among the changes that were folded, and says why they win.
pub(super) fn tell_winners(keep: Keep, found: &mut [Found]) {
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
