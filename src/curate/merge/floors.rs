//! Floors beside the entries of keys: what they end ([`crate::state::floors`]).

use std::sync::Arc;

use arrow::array::{ArrayRef, Int8Array, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take_record_batch};

use crate::changes::file_order::RankedFiles;
use crate::config::Keep;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns};
use crate::curate::merge::seen_floors::SeenFloors;
use crate::error::Result;
use crate::state::floors::{Floor, FloorsOfDays};
use crate::state::versions::ROW_HASH;

/// The floors of a merge, in the order of changes.
pub(super) struct SortedFloors {
    /// Their days and order, in the columns of sorted entries; null in others.
    rows: RecordBatch,
    days: Vec<Option<i32>>,
    /// Whether each was set by hand: then it is before all changes of its time.
    by_hand: Vec<bool>,
    /// Whether each is a full load.
    loads: Vec<bool>,
    /// Those of earlier runs, and all of them, as they are seen by their commit times.
    seen: [Vec<(i64, usize)>; 2],
    /// Of each the index in which it was given.
    pub(super) given: Vec<usize>,
    /// Those of earlier runs, by their index.
    earlier: FloorIndex,
    /// All of them.
    all: FloorIndex,
    /// None of them.
    none: FloorIndex,
}

/// Some of the floors of a merge.
pub(super) struct FloorIndex {
    /// Which of all they are, in the order of changes.
    of: Vec<usize>,
    of_days: FloorsOfDays,
    /// For each of them, and where rows end: the least commit time of those from it on, in microseconds since 1970,
    /// and which of all that is.
    least: Vec<Option<(i64, usize)>>,
}

impl FloorIndex {
    /// `days` and `instants` are those of all floors; floors have commit times where rows end.
    pub(super) fn new(of: Vec<usize>, days: &[Option<i32>], instants: &[Option<i64>]) -> Self {
        let of_days = FloorsOfDays::new(of.iter().map(|at| (*at, days[*at])));
        let mut least: Vec<Option<(i64, usize)>> = Vec::with_capacity(of.len());
        for at in of.iter().rev() {
            let own = instants.get(*at).copied().flatten().map(|instant| (instant, *at));
            least.push(least.last().copied().flatten().into_iter().chain(own).min());
        }
        least.reverse();
        FloorIndex { of, of_days, least }
    }
}

impl SortedFloors {
    pub(super) fn new(
        floors: &[(Floor, bool)],
        entries: &Entries,
        files: &Files,
        ranked: &RankedFiles,
    ) -> Result<Self> {
        // The part is not stored with sorted entries.
        let fields = entries.schema.fields().len() - 1;
        let schema = Arc::new(entries.schema.project(&(0..fields).collect::<Vec<_>>())?);
        let each = floors.iter().map(|(floor, _)| floor);
        let known = Floor::columns(each.clone())?;
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match (field.name().as_str(), known.column_by_name(field.name())) {
                ("file", _) => {
                    let numbers = each.clone().map(|floor| files.of_floor(floor));
                    Arc::new(UInt32Array::from_iter_values(numbers))
                }
                ("origin", _) => Arc::new(Int8Array::from(vec![LOOKED_UP; floors.len()])),
                (_, Some(known)) => Arc::clone(known),
                (_, None) => new_null_array(field.data_type(), floors.len()),
            }
        });
        let rows = RecordBatch::try_new(Arc::clone(&schema), columns.collect())?;
        let mut sorted: Vec<usize> = (0..floors.len()).collect();
        let columns = EntryColumns::of(&rows, ranked)?;
        sorted.sort_by(|a, b| columns.orders.compare(*a, *b));
        let by_order = UInt32Array::from_iter_values(sorted.iter().map(|at| *at as u32));
        let is_earlier = |at: &usize| !floors[sorted[*at]].1;
        let days: Vec<Option<i32>> = sorted.iter().map(|at| floors[*at].0.day).collect();
        let earlier: Vec<usize> = (0..sorted.len()).filter(is_earlier).collect();
        let instants: Vec<_> = sorted.iter().map(|at| floors[*at].0.instant).collect();
        let seen = [
            SeenFloors::among(earlier.iter().copied(), &instants),
            SeenFloors::among(0..sorted.len(), &instants),
        ];
        Ok(SortedFloors {
            rows: take_record_batch(&rows, &by_order)?,
            earlier: FloorIndex::new(earlier, &days, &instants),
            all: FloorIndex::new((0..sorted.len()).collect(), &days, &instants),
            none: FloorIndex::new(Vec::new(), &days, &[]),
            seen,
            by_hand: sorted.iter().map(|at| floors[*at].0.by_hand.is_some()).collect(),
            loads: sorted.iter().map(|at| floors[*at].0.is_load).collect(),
            days,
            given: sorted,
        })
    }

    /// The days of those that this run has found, and of the next after each, which may have ended what
    /// the new one ends now.
    pub(super) fn changed_days(&self) -> impl Iterator<Item = i32> {
        let is_new = |at: &&usize| self.earlier.of.binary_search(at).is_err();
        let changed = self.all.of.iter().filter(is_new).flat_map(|at| [*at, at + 1]);
        changed.filter_map(|at| self.days.get(at).copied().flatten())
    }

    /// Sorted entries with the floors at their end, so that both are compared by their rows: the columns
    /// by which they are, which are copied. For none, the same entries.
    pub(super) fn beside(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        if self.all.of.is_empty() {
            return Ok(rows.clone());
        }
        let columns = EntryColumns::NAMES.map(|name| rows.schema_ref().index_of(name));
        let mut columns = columns.into_iter().collect::<Result<Vec<_>, _>>()?;
        columns.extend(rows.schema_ref().index_of(ROW_HASH).ok());
        let (entries, floors) = (rows.project(&columns)?, self.rows.project(&columns)?);
        Ok(concat_batches(entries.schema_ref(), [&entries, &floors])?)
    }

    /// The floors of earlier runs beside so many entries.
    pub(super) fn earlier(&self, entries: usize) -> Floors<'_> {
        self.beside_entries(entries, &self.earlier)
    }

    /// All floors beside so many entries.
    pub(super) fn all(&self, entries: usize) -> Floors<'_> {
        self.beside_entries(entries, &self.all)
    }

    /// No floor: none takes a row away.
    pub(super) fn none(&self, entries: usize) -> Floors<'_> {
        self.beside_entries(entries, &self.none)
    }

    fn beside_entries<'a>(&'a self, entries: usize, index: &'a FloorIndex) -> Floors<'a> {
        Floors { first: entries, days: &self.days, by_hand: &self.by_hand, index }
    }

    /// The floors of earlier runs, and all of them, beside so many entries, as a history sees them.
    pub(super) fn seen(&self, entries: usize) -> [SeenFloors<'_>; 2] {
        let [earlier, all] = &self.seen;
        [earlier, all].map(|floors| SeenFloors::beside(entries, floors, &self.loads))
    }
}

/// Some floors beside entries, in the order of changes.
#[derive(Clone, Copy)]
pub(super) struct Floors<'a> {
    /// The row of the first floor of all.
    pub(super) first: usize,
    /// Per floor of all its day.
    pub(super) days: &'a [Option<i32>],
    /// Per floor of all whether it was set by hand.
    pub(super) by_hand: &'a [bool],
    /// Which of all they are.
    pub(super) index: &'a FloorIndex,
}

impl Floors<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.index.of.is_empty()
    }

    /// The number of floors.
    pub(super) fn len(&self) -> usize {
        self.index.of.len()
    }

    /// The first floor later than an entry: its row and day.
    pub(super) fn after(
        &self,
        at: usize,
        order: &impl ChangeOrder,
    ) -> Option<(usize, Option<i32>)> {
        let floor = *self.index.of.get(self.first_after(at, order))?;
        Some((self.first + floor, self.days[floor]))
    }

    /// The least commit time of the floors later than an entry, and the row of that floor.
    pub(super) fn least_after(&self, at: usize, order: &impl ChangeOrder) -> Option<(i64, usize)> {
        let (instant, floor) = *self.index.least.get(self.first_after(at, order))?.as_ref()?;
        Some((instant, self.first + floor))
    }

    /// Which of these floors is the first later than an entry; their number, if none is.
    fn first_after(&self, at: usize, order: &impl ChangeOrder) -> usize {
        self.index.of.partition_point(|floor| !order.is_later(self.first + floor, at))
    }

    /// A floor that differs from an entry only in file or row, if these are of changes: its row.
    pub(super) fn tie_of(&self, at: usize, order: &impl ChangeOrder) -> Option<usize> {
        let (of, next) = (&self.index.of, self.first_after(at, order));
        // Those with the same order columns are side by side.
        let near = of[next.saturating_sub(1)..].iter().take(2);
        let near = near.filter(|floor| !self.by_hand[**floor]).map(|floor| self.first + floor);
        near.into_iter().find(|floor| order.is_tie(*floor, at))
    }

    /// The first floor of a day later than an entry: its row.
    pub(super) fn of_day_after(
        &self,
        at: usize,
        day: Option<i32>,
        order: &impl ChangeOrder,
    ) -> Option<usize> {
        let is_after = |floor: usize| order.is_later(self.first + floor, at);
        Some(self.first + self.index.of_days.first_after(day, is_after)?)
    }

    /// Whether a floor has ended the row of an entry, given by its row and day.
    pub(super) fn end(
        &self,
        keep: Keep,
        entry: (usize, Option<i32>),
        order: &impl ChangeOrder,
    ) -> bool {
        self.end_of(keep, entry, order).is_some()
    }

    /// A floor that has ended the row of an entry, given by its row and day: a later one, under
    /// `latest-per-day` one of its day. Returned is its row.
    pub(super) fn end_of(
        &self,
        keep: Keep,
        (at, day): (usize, Option<i32>),
        order: &impl ChangeOrder,
    ) -> Option<usize> {
        match keep {
            // Its changes say when a row ends.
            Keep::LatestAndDeleted | Keep::LatestAltered | Keep::History => None,
            Keep::Latest => {
                let last = self.first + self.index.of.last()?;
                order.is_later(last, at).then_some(last)
            }
            Keep::LatestPerDay => self.of_day_after(at, day, order),
        }
    }
}
