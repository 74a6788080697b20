//! Which versions of a key have a row, and what has ended it: for questions, and keys that are forgotten.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;

use crate::config::Keep;
use crate::curate::merge::deletes::last_row;
use crate::curate::merge::entries::{Entries, Files, LOOKED_UP, column, hash};
use crate::curate::merge::entry::{ChangeOrder, EntryColumns};
use crate::curate::merge::floors::{Floors, SortedFloors};
use crate::curate::merge::intervals::{Held, hold, join};
use crate::curate::merge::seen_floors::SeenFloors;
use crate::error::Result;
use crate::layout::FileOrder;
use crate::parquet_io::open::conform;
use crate::state::floors::Floor;
use crate::state::versions::VersionsLayout;
use crate::table::row_end::{Cause, RowEnd};

/// The row of a version.
#[derive(Clone, Debug, Default)]
pub(crate) struct VersionRow {
    /// Its end, if it has ended and stays in the table.
    pub end: Option<RowEnd>,
    /// What deleted its key, where deleted rows are kept; or what took the row out of the table.
    pub ended_by: Option<EndedBy>,
    /// The version whose row it is: this one left it as it was.
    pub equals: Option<usize>,
    /// The version that has the partition columns of the row, but for the day.
    pub partition_of: usize,
}

/// What ended a row.
#[derive(Clone, Debug)]
pub(crate) enum EndedBy {
    /// The delete of this version.
    Delete(usize),
    /// A truncate or a full load.
    Floor(Floor),
}

/// Per version of a key, given in the columns of its layout, its row, if it has or had one that no later change has
/// replaced.
///
/// # Errors
/// Data, when the floors are damaged.
pub(crate) fn rows_of_versions(
    versions: &RecordBatch,
    layout: &Arc<VersionsLayout>,
    floors: &[Floor],
    order: FileOrder,
    keep: Keep,
) -> Result<Vec<Option<VersionRow>>> {
    let count = versions.num_rows();
    let instants = layout.has_instants.then(|| format!("key_{}", layout.key_count()));
    let instants = instants.map(|name| column(versions, &name)).transpose()?;
    let instants = instants.map(|instants| instants.as_primitive::<Int64Type>().values().as_ref());
    beside_floors(versions, layout, floors, order, |columns, sorted| {
        let mut rows = vec![None; count];
        let [_, seen] = &sorted.seen(count);
        let floors_of_key = KeyFloors { all: sorted.all(count), seen };
        for row in rows_of_key(keep, columns, 0..count, instants, floors_of_key) {
            let ended_by = row.ended_by.map(|by| {
                if by < count {
                    EndedBy::Delete(by)
                } else {
                    EndedBy::Floor(floors[sorted.given[by - count]].clone())
                }
            });
            let KeyRow { end, equals, partition_of, .. } = row;
            rows[row.at] = Some(VersionRow { end, ended_by, equals, partition_of });
        }
        rows
    })
}

/// The floors beside the versions of a key.
pub(super) struct KeyFloors<'a> {
    pub(super) all: Floors<'a>,
    pub(super) seen: &'a SeenFloors<'a>,
}

/// The row of a version among entries.
pub(super) struct KeyRow {
    /// The row of the version's entry.
    pub(super) at: usize,
    /// Whether the table has it.
    pub(super) is_in_table: bool,
    /// Its end, if it has ended and stays in the table.
    pub(super) end: Option<RowEnd>,
    /// The row of the delete or floor that has ended it; not of a history.
    pub(super) ended_by: Option<usize>,
    /// The row of the version whose row it is, and not one of its own.
    pub(super) equals: Option<usize>,
    /// The row of the version that has its partition columns, but for the day.
    pub(super) partition_of: usize,
}

/// The rows of a key that has only versions: those that the table has, and those that a floor has taken out of it.
pub(super) fn rows_of_key(
    keep: Keep,
    columns: &EntryColumns<'_>,
    of_key: Range<usize>,
    instants: Option<&[i64]>,
    floors: KeyFloors<'_>,
) -> Vec<KeyRow> {
    let orders = &columns.orders;
    // A row of a table whose rows do not end and stay.
    let plain = |at: usize| {
        let ended_by = floors.all.end_of(keep, (at, columns.entry(at).day), orders);
        let is_in_table = ended_by.is_none();
        KeyRow { at, is_in_table, end: None, ended_by, equals: None, partition_of: at }
    };
    let rows: Vec<KeyRow> = match (keep, instants) {
        (Keep::LatestPerDay, _) => of_key.map(plain).collect(),
        (Keep::LatestAndDeleted, Some(instants)) => {
            let last = last_of_instants(of_key, instants, orders).into_iter();
            let row = last_row(last.map(|at| (instants[at], at)), floors.all, orders);
            let row = row.map(|(at, deleted)| KeyRow {
                at,
                is_in_table: true,
                end: deleted.map(|(at, _)| RowEnd { at, by: Cause::Delete }),
                ended_by: deleted.map(|(_, by)| by),
                equals: None,
                partition_of: at,
            });
            row.into_iter().collect()
        }
        (Keep::LatestAltered | Keep::History, Some(instants)) => {
            let moments = last_of_instants(of_key, instants, orders);
            let changes = moments.iter().map(|at| (instants[*at], Some(*at)));
            let (mut held, mut firsts) = (Vec::new(), Vec::new());
            let left = |at| columns.left(at);
            hold(changes.clone(), left, floors.seen, orders, &mut held, |_, _| ());
            join(changes, left, &mut held, &mut firsts);
            let last = firsts.iter().rposition(Option::is_some);
            let of_last = last.and_then(|last| firsts[last]);
            let row = |((at, held), first): ((&usize, Held), Option<usize>)| {
                let equals = first.filter(|_| held.is_none()).map(|first| moments[first]);
                let (is_in_table, end) = (held.is_some(), held.flatten());
                let row =
                    KeyRow { at: *at, is_in_table, end, ended_by: None, equals, partition_of: *at };
                match (first?, last) {
                    _ if keep == Keep::History => Some(row),
                    // The table has the row of the last changes, if it has no end.
                    (first, Some(last)) if Some(first) == of_last => {
                        let partition_of = moments[last];
                        let ended_by = floors.all.least_after(partition_of, orders);
                        let ended_by = ended_by.filter(|_| end.is_some()).map(|(_, floor)| floor);
                        let is_in_table = is_in_table && end.is_none();
                        Some(KeyRow { is_in_table, end: None, ended_by, partition_of, ..row })
                    }
                    _ => None,
                }
            };
            moments.iter().zip(held).zip(firsts.iter().copied()).filter_map(row).collect()
        }
        _ => {
            let last = of_key.fold(None, |last, at| orders.later(last, at));
            last.into_iter().map(plain).collect()
        }
    };
    rows.into_iter().filter(|row| columns.entry(row.at).has_row).collect()
}

/// The last of some versions of each instant, in the order of time.
fn last_of_instants(
    versions: Range<usize>,
    instants: &[i64],
    order: &impl ChangeOrder,
) -> Vec<usize> {
    let mut by_time: Vec<usize> = versions.collect();
    by_time.sort_by(|a, b| instants[*a].cmp(&instants[*b]).then_with(|| order.compare(*a, *b)));
    let moments = by_time.chunk_by(|a, b| instants[*a] == instants[*b]);
    moments.filter_map(|moment| moment.last().copied()).collect()
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
