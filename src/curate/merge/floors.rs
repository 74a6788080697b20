//! Floors beside the entries of keys: what they end ([`crate::state::floors`]).

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int8Array, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Int64Type;

use crate::changes::file_order::RankedFiles;
use crate::config::Keep;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, column, hash};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns};
use crate::curate::merge::intervals::{Held, hold};
use crate::curate::merge::seen_floors::SeenFloors;
use crate::error::Result;
use crate::layout::FileOrder;
use crate::parquet_io::open::conform;
use crate::state::floors::{Floor, FloorsOfDays};
use crate::state::versions::VersionsLayout;

/// The floors of a merge, in the order of changes.
pub(super) struct SortedFloors {
    /// Their days and order, in the columns of sorted entries; null in others.
    rows: RecordBatch,
    days: Vec<Option<i32>>,
    /// Those of earlier runs, and all of them, as they are seen by their commit times.
    seen: [Vec<(i64, usize)>; 2],
    /// Of each the index in which it was given.
    given: Vec<usize>,
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
}

impl FloorIndex {
    /// `days` are those of all floors.
    pub(super) fn new(of: Vec<usize>, days: &[Option<i32>]) -> Self {
        let of_days = FloorsOfDays::new(of.iter().map(|at| (*at, days[*at])));
        FloorIndex { of, of_days }
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
            earlier: FloorIndex::new(earlier, &days),
            all: FloorIndex::new((0..sorted.len()).collect(), &days),
            none: FloorIndex::new(Vec::new(), &days),
            seen,
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
        let columns = columns.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (entries, floors) = (rows.project(&columns)?, self.rows.project(&columns)?);
        Ok(concat_batches(entries.schema_ref(), [&entries, &floors])?)
    }

    /// The floors of earlier runs beside so many entries.
    pub(super) fn earlier(&self, entries: usize) -> Floors<'_> {
        Floors { first: entries, days: &self.days, index: &self.earlier }
    }

    /// All floors beside so many entries.
    pub(super) fn all(&self, entries: usize) -> Floors<'_> {
        Floors { first: entries, days: &self.days, index: &self.all }
    }

    /// No floor: none takes a row away.
    pub(super) fn none(&self, entries: usize) -> Floors<'_> {
        Floors { first: entries, days: &self.days, index: &self.none }
    }

    /// The floors of earlier runs, and all of them, beside so many entries, as a history sees them.
    pub(super) fn seen(&self, entries: usize) -> [SeenFloors<'_>; 2] {
        let [earlier, all] = &self.seen;
        [SeenFloors::beside(entries, earlier), SeenFloors::beside(entries, all)]
    }
}

/// Per version, given in the columns of its layout, the floor that has ended its row, if it is the last
/// of its key, or under `latest-per-day` in any case.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn ends_of_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    keep: Keep,
) -> Result<Vec<Option<Floor>>> {
    let count = versions.num_rows();
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let all = sorted.all(count);
        let ends = (0..count).map(|at| {
            let end = all.end_of(keep, (at, columns.entry(at).day), &columns.orders)?;
            Some(floors[sorted.given[end - count]].clone())
        });
        ends.collect()
    })
}

/// Per version of a key of a history, given in the columns of its layout, when its row ends, if it has one.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn seen_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
) -> Result<Vec<Held>> {
    let count = versions.num_rows();
    let instants = column(versions, &format!("key_{}", layout.key_count()))?;
    let instants = instants.as_primitive::<Int64Type>();
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let mut seen = vec![None; count];
        let mut by_time: Vec<usize> = (0..count).collect();
        by_time.sort_by(|a, b| {
            let times = instants.value(*a).cmp(&instants.value(*b));
            times.then_with(|| columns.orders.compare(*a, *b))
        });
        // The last one of each time.
        let moments = by_time.chunk_by(|a, b| instants.value(*a) == instants.value(*b));
        let moments: Vec<usize> = moments.filter_map(|moment| moment.last().copied()).collect();
        let changes = moments.iter().map(|at| (instants.value(*at), Some(*at)));
        let [_, floors] = sorted.seen(count);
        let mut held = Vec::new();
        hold(changes, &floors, &columns.orders, &mut held, |_, _| ());
        for (at, held) in moments.iter().zip(held) {
            seen[*at] = held.filter(|_| columns.entry(*at).has_row);
        }
        seen
    })
}

/// Reads versions, given in the columns of their layout, beside floors.
fn beside_floors<T>(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    read: impl FnOnce(&EntryColumns<'_>, &SortedFloors) -> T,
) -> Result<T> {
    let floors = Floor::of_earlier(floors.iter().cloned());
    let entries = Entries::new(layout, versions.num_rows() as u64)?;
    let files = Files::of_earlier(order).with_floors(&floors);
    let versions = conform(versions, &layout.schema())?;
    let numbers = files.of_versions(&versions)?;
    let ranked = files.ranked();
    let sorted = SortedFloors::new(&floors, &entries, &files, &ranked)?;
    let hashes = hash(&versions.columns()[..layout.key_count()])?;
    let rows = entries.of_versions(&versions, &hashes, LOOKED_UP, &numbers)?;
    let rows = rows.project(&(0..rows.num_columns() - 1).collect::<Vec<_>>())?;
    let beside = sorted.beside(&rows)?;
    Ok(read(&EntryColumns::of(&beside, &ranked)?, &sorted))
}

/// Some floors beside entries, in the order of changes.
#[derive(Clone, Copy)]
pub(super) struct Floors<'a> {
    /// The row of the first floor of all.
    pub(super) first: usize,
    /// Per floor of all its day.
    pub(super) days: &'a [Option<i32>],
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
        let next = self.index.of.partition_point(|floor| !order.is_later(self.first + floor, at));
        let floor = *self.index.of.get(next)?;
        Some((self.first + floor, self.days[floor]))
    }

    /// A floor that differs from an entry only in file or row: its row.
    pub(super) fn tie_of(&self, at: usize, order: &impl ChangeOrder) -> Option<usize> {
        let of = &self.index.of;
        let next = of.partition_point(|floor| !order.is_later(self.first + floor, at));
        // Those with the same order columns are side by side.
        let near = of[next.saturating_sub(1)..].iter().take(2).map(|floor| self.first + floor);
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
    fn end_of(
        &self,
        keep: Keep,
        (at, day): (usize, Option<i32>),
        order: &impl ChangeOrder,
    ) -> Option<usize> {
        match keep {
            // A row that ends stays.
            Keep::History => None,
            Keep::Latest => {
                let last = self.first + self.index.of.last()?;
                order.is_later(last, at).then_some(last)
            }
            Keep::LatestPerDay => self.of_day_after(at, day, order),
        }
    }
}
