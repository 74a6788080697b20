//! The changes of a key: their order, the run that folded each, which one wins and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, Int64Type};
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::catalog::TableProvider;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::{KeyChange, format_value};
use crate::changes::position::Position;
use crate::changes::reader::{ChangesTable, numbered};
use crate::changes::row_bitmap::Winners;
use crate::changes::{ChangeColumn, Changes};
use crate::commands::open_pipeline::date;
use crate::config::{Keep, Pipeline};
use crate::error::Result;
use crate::raw::discover::{Input, Recorded};
use crate::state::State;
use crate::state::ledger::Run;
use crate::store::Folder;
use crate::types::times::instants_ns;
use crate::window::Window;

/// The limit of changes listed per key; the last ones are listed.
const CHANGES_MAX: usize = 10_000;

/// A change of the key, and the number of its file.
pub(super) struct Found {
    file: usize,
    pub(super) change: KeyChange,
    /// Its commit time, as [`ChangeColumn::Instant`].
    instant: i64,
}

/// A position of either kind, in the order of changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Packed(i128),
    Bytes(Box<[u8]>),
}

impl Rank {
    fn read(positions: &ArrayRef, is_packed: bool) -> Vec<Self> {
        if is_packed {
            <i128>::read(positions).into_iter().map(Rank::Packed).collect()
        } else {
            <Box<[u8]>>::read(positions).into_iter().map(Rank::Bytes).collect()
        }
    }

    fn file_and_row(&self) -> (usize, usize) {
        match self {
            Rank::Packed(position) => position.file_and_row(),
            Rank::Bytes(position) => position.file_and_row(),
        }
    }
}

/// Lists the changes of a key.
pub(super) struct ChangeLister<'a> {
    pub(super) state: &'a State,
    pub(super) changes: &'a Arc<Changes>,
    pub(super) folders: &'a [Folder],
    pub(super) pipeline: &'a Pipeline,
}

impl ChangeLister<'_> {
    /// The last changes among `rows`, in the order of changes, and the number of changes read.
    pub(super) async fn last_changes(
        &self,
        context: &SessionContext,
        rows: Winners,
        threads: usize,
    ) -> Result<(Vec<Found>, usize)> {
        let columns = self.columns();
        let named = numbered(columns.clone());
        let table = ChangesTable::pass_two(self.changes, Arc::new(rows), named, threads);
        let plan = table.scan(&context.state(), None, &[], None).await?;
        let mut last: BTreeMap<Rank, Found> = BTreeMap::new();
        let mut seen = 0;
        for mut stream in execute_stream_partitioned(plan, context.task_ctx())? {
            while let Some(batch) = stream.try_next().await? {
                let ranks = Rank::read(batch.column(0), self.changes.is_packed());
                seen += ranks.len();
                for (at, rank) in ranks.into_iter().enumerate() {
                    let is_full = last.len() == CHANGES_MAX;
                    if is_full && last.first_key_value().is_some_and(|(first, _)| rank < *first) {
                        continue;
                    }
                    let (file, ordinal) = rank.file_and_row();
                    let found = self.found(&batch, &columns, at, (file, ordinal));
                    last.insert(rank, found);
                    if is_full {
                        last.pop_first();
                    }
                }
            }
        }
        Ok((last.into_values().collect(), seen))
    }

    /// The columns to read: first the position, the day, whether the change leaves a row, and the instant.
    fn columns(&self) -> Vec<ChangeColumn> {
        let raw = &self.pipeline.raw;
        use ChangeColumn::{Day, Instant, Live, Position};
        let mut columns = vec![Position, Day, Live, Instant];
        let named = raw.order_by.iter().chain(&raw.op.name);
        let named = named.filter_map(|name| self.changes.raw_column(name));
        for column in named.chain(self.changes.commit_time_column()) {
            if !columns.contains(&ChangeColumn::Raw(column)) {
                columns.push(ChangeColumn::Raw(column));
            }
        }
        columns
    }

    /// Reads the change in row `at` of a batch of [`Self::columns`]; it has an ordinal of a file.
    fn found(
        &self,
        batch: &RecordBatch,
        columns: &[ChangeColumn],
        at: usize,
        (file, ordinal): (usize, usize),
    ) -> Found {
        let raw = &self.pipeline.raw;
        let per_row = self.changes.ordinals_per_row();
        let input = self.changes.inputs().nth(file);
        let column_of = |raw: Option<usize>| {
            let wanted = ChangeColumn::Raw(raw?);
            Some(batch.column(columns.iter().position(|column| *column == wanted)?))
        };
        let value = |name: &str| Some(format_value(column_of(self.changes.raw_column(name))?, at));
        let order = raw.order_by.iter().filter_map(|name| Some((name.clone(), value(name)?)));
        let is_live = batch.column(2).as_boolean().value(at);
        let op = match (per_row, ordinal % per_row) {
            (2, 0) => "moved away".into(),
            _ => match raw.op.name.as_ref().and_then(|op| value(op)) {
                Some(op) if !op.is_empty() => op,
                _ if is_live => "I".into(),
                _ => "D".into(),
            },
        };
        let days = batch.column(1).as_primitive::<Date32Type>();
        let day = days.is_valid(at).then(|| days.value(at)).and_then(date);
        let commit_time = column_of(self.changes.commit_time_column()).and_then(|times| {
            let times = instants_ns(&times.slice(at, 1), self.changes.commit_unit_ns()).ok()?;
            let ns = times.first().copied().flatten()?;
            DateTime::from_timestamp_micros(i64::try_from(ns.div_euclid(1000)).ok()?)
        });
        let row = ordinal / per_row;
        let run = input.and_then(|input| self.folded_by(input, row as u64, commit_time));
        let full_load = input.is_some_and(|input| input.full_load);
        let load_at = input.and_then(|input| Some(input.file.load.as_ref()?.at));
        let change = KeyChange {
            file: input.map_or(String::new(), |input| {
                self.folders[input.file.location].describe(&input.file.path)
            }),
            row: row as u64 + 1,
            op,
            full_load,
            load_at,
            order: order.collect(),
            day,
            run_id: run.map(|run| run.run_id.clone()),
            wins: false,
            why: None,
        };
        Found { file, change, instant: batch.column(3).as_primitive::<Int64Type>().value(at) }
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
        let quarantined = ledger.quarantined.get(&(location, path.clone()));
        let quarantined_rows = quarantined.and_then(|quarantined| quarantined.rows.as_ref());
        if quarantined_rows.is_some_and(|rows| rows.contains(&row)) {
            return None;
        }
        let by = |commit: u64| ledger.runs.iter().find(|run| run.commit == commit);
        let Some(rows) = &file.rows else {
            return by(file.commit);
        };
        let time = commit_time?;
        let folds = |window: Window| window.contains(time);
        let mut later = ledger.runs.iter().filter(|run| run.commit > file.commit);
        // `rows` lists the windows of rows read by the file's first run, and those that later runs
        // read outside of their own windows.
        let first = by(file.commit).filter(|run| run.folded().is_some_and(folds));
        let later =
            later.find(|run| run.by_rows && !file.is_absent && run.folded().is_some_and(folds));
        let known = rows.contains(time);
        first.or(later).or_else(|| by(file.commit).filter(|_| known))
    }

    /// Notes on files that have changed since they were folded.
    pub(super) fn changed_files(&self, changes: &[KeyChange]) -> Vec<String> {
        let files: BTreeSet<&String> = changes.iter().map(|change| &change.file).collect();
        let changed = self.changes.inputs().filter_map(|input| {
            let folder = &self.folders[input.file.location];
            let name = folder.describe(&input.file.path);
            let is_local = folder.location.file_path().is_some();
            let folded = self.state.ledger.folded(input.file.location, &input.file.path)?;
            let is_listed = files.contains(&name) && !folded.is_same(&input.file, is_local);
            is_listed.then(|| {
                format!(
                    "{name} has changed since it was folded: the rows listed \
                     are not those that were folded"
                )
            })
        });
        changed.collect()
    }
}

/// Marks the winners among the folded changes, with the reason why each wins.
pub(super) fn mark_winners(pipeline: &Pipeline, found: &mut [Found]) {
    let is_ordered_by_files = pipeline.raw.is_ordered_by_files();
    // The last one so far, of the key, of each day, or of each commit time.
    let mut last: BTreeMap<(Option<NaiveDate>, Option<i64>), usize> = BTreeMap::new();
    for at in 0..found.len() {
        if found[at].change.run_id.is_none() {
            continue;
        }
        let of = match pipeline.keep {
            Keep::Latest | Keep::LatestAndDeleted | Keep::LatestAltered => (None, None),
            Keep::LatestPerDay => (found[at].change.day, None),
            Keep::History => (None, Some(found[at].instant)),
        };
        let before = last.insert(of, at);
        let why = match before {
            None if pipeline.keep == Keep::History => "it is the only one of its time".into(),
            None => "it is the only one".to_string(),
            Some(before) => why(is_ordered_by_files, &found[before], &found[at]),
        };
        if let Some(before) = before {
            found[before].change.wins = false;
            found[before].change.why = None;
        }
        found[at].change.wins = true;
        found[at].change.why = Some(why);
    }
}

/// Why a change comes after another.
fn why(is_ordered_by_files: bool, one: &Found, other: &Found) -> String {
    let (before, after) = (&one.change, &other.change);
    if before.load_at.is_some() || after.load_at.is_some() {
        if before.load_at != after.load_at {
            return "it comes last: a full load is at its time among the changes".into();
        }
    } else if before.full_load && !after.full_load {
        return "a CDC change comes after every full load".into();
    }
    // The rows of a full load with a time are all at that time.
    let pairs = before.order.iter().zip(&after.order).filter(|_| after.load_at.is_none());
    let mut differing = pairs.filter(|(before, after)| before != after);
    if let Some((_, (column, _))) = differing.next() {
        return format!("its `{column}` is the greatest");
    }
    if is_ordered_by_files {
        if one.file != other.file {
            return "its file comes last".into();
        }
        if before.row != after.row {
            return "its row comes last in the file".into();
        }
    }
    if one.file != other.file {
        "the order columns are equal, and its file comes last".into()
    } else if before.row == after.row {
        "both halves of one update: the new row comes after the delete of the old key".into()
    } else {
        "the order columns are equal, and its row comes last in the file".into()
    }
}
